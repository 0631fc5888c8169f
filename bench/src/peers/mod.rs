//! `cargo xtask bench peers`: Peak beside what a user would pick instead, each alone on one processor, with the same names, the same
//! queries and the same sender.

mod cluster;
mod mix;
mod server;
mod upstream;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use peak_tests::{Component, ControlPlane, scratch};

use self::{
    cluster::Cluster,
    mix::{Drawn, Mix},
    server::{Kind, Server, Site},
};
use crate::{
    load::{
        Outcome, knee,
        sockets::{self, Load, Pace, SOCKETS},
    },
    progress::Progress,
    report::{Better, Figure, Gate, Label, Output, Raw, Report, Samples},
    rig::{Rig, Spent},
};

/// How many times the answers for a processor's second Peak gives: gate and aim.
const TIMES_COREDNS: [f64; 2] = [10.0, 100.0];
const TIMES_KNOT_XDP: [f64; 2] = [2.0, 8.0];
/// The same of its fallback alone: more than CoreDNS, and about as many as NSD.
const FALLBACK_TIMES_COREDNS: f64 = 1.0;
const FALLBACK_TIMES_NSD: f64 = 1.0;
/// How many queries wait for their replies when it is asked as fast as it goes, and where the search for the knee begins, as a part
/// of what is answered then.
const WAITING: usize = 512;
const FIRST: f64 = 0.7;
const MEGABYTE: f64 = 1e6;

/// Peak beside CoreDNS, Knot, NSD, Unbound, BIND and PowerDNS: answers a second, answers for a processor's second, latency and
/// memory, in about a quarter of an hour
///
/// Each server runs alone on processor 1, with its recommended settings (bench/README.md has them with their reasons); who asks, on
/// processor 0. Servers take turns, and each begins anew in each round. Leave the machine alone meanwhile.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these servers; may be given several times
    #[arg(long, value_name = "SERVER", value_enum, value_delimiter = ',')]
    server: Vec<Kind>,
    /// Only these mixes of queries; may be given several times
    #[arg(long, value_name = "MIX", value_enum, value_delimiter = ',')]
    mix: Vec<Mix>,
    /// How often each server has its turn
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// How much is done.
struct Effort {
    names: u32,
    rounds: u32,
    /// How long one rate is tried while a knee is looked for, and about how long one is looked for.
    attempt: Duration,
    search: Duration,
    /// How long each of the measurements proper takes.
    measured: Duration,
    /// A load that all can carry with ease, queries a second.
    moderate: f64,
}

const FULL: Effort = Effort {
    names: 131_072,
    rounds: 3,
    attempt: Duration::from_millis(300),
    search: Duration::from_secs(3),
    measured: Duration::from_secs(1),
    moderate: 10_000.0,
};

const QUICK: Effort = Effort {
    names: 1024,
    rounds: 1,
    attempt: Duration::from_millis(50),
    search: Duration::from_millis(100),
    measured: Duration::from_millis(100),
    moderate: 1000.0,
};

pub(crate) fn run(args: &Args) -> Result<()> {
    let effort = if args.output.quick { &QUICK } else { &FULL };
    let chosen = |all: &[Kind]| -> Vec<Kind> {
        let chosen = all
            .iter()
            .filter(|kind| args.server.is_empty() || args.server.contains(kind));
        chosen.copied().collect()
    };
    let kinds = chosen(&Kind::ALL);
    let mixes: Vec<_> = Mix::ALL
        .into_iter()
        .filter(|mix| args.mix.is_empty() || args.mix.contains(mix))
        .collect();
    let rounds = args.rounds.unwrap_or(effort.rounds);
    let report = measure(effort, &kinds, &mixes, rounds)?;
    print(&report);
    args.output.finish(&report)
}

/// The mixes that a server is asked.
fn asked(kind: Kind, mixes: &[Mix]) -> impl Iterator<Item = Mix> {
    mixes
        .iter()
        .copied()
        .filter(move |mix| kind.forwards() || !mix.forwards())
}

fn measure(effort: &Effort, kinds: &[Kind], mixes: &[Mix], rounds: u32) -> Result<Report> {
    let mut report = Report::new("peers");
    for kind in kinds {
        if let Some((program, version)) = kind.version()? {
            report.version(program, version);
        }
    }
    let cells: usize = kinds.iter().map(|kind| asked(*kind, mixes).count()).sum();
    ensure!(
        cells > 0,
        "none of these servers is asked any of these mixes: `cluster` is for those that forward"
    );
    let progress = Progress::new(cells as f64 * f64::from(rounds));

    let rig = Rig::new()?;
    let cluster = Cluster {
        names: effort.names,
    };
    progress.say("starting a control plane");
    let mut plane = ControlPlane::start("bench-peers")?;
    // Its objects are written as they are meant to be.
    plane.kill(Component::ControllerManager);
    progress.say(&format!("making {} names", cluster.names));
    cluster.create(&plane)?;
    let _reach = plane.reach_from(&rig.node.namespace)?;
    let folder = scratch()?;
    let zone_file = folder.path().join(format!("{}.zone", cluster::ZONE));
    cluster.export(&plane, &zone_file, rig.node.v6)?;
    let drawn: BTreeMap<_, _> = mixes
        .iter()
        .map(|mix| Ok((*mix, Drawn::new(*mix, cluster)?)))
        .collect::<Result<_>>()?;
    let site = Site {
        rig: &rig,
        plane: &plane,
        cluster,
        zone_file: &zone_file,
        upstream: upstream::start(&rig)?,
    };

    let mut results: BTreeMap<Kind, OfServer> = BTreeMap::new();
    for round in 0..rounds as usize {
        // Nobody always comes after the same one.
        let mut order = kinds.to_vec();
        order.rotate_left(round % kinds.len());
        for kind in order {
            progress.say(&format!("round {} of {rounds}: {kind}", round + 1));
            let mut server = Server::start(kind, &site)?;
            let of_server = results.entry(kind).or_default();
            for mix in asked(kind, mixes) {
                let of_mix = of_server.mixes.entry(mix).or_default();
                of_mix
                    .measure(&server, &rig, &drawn[&mix], effort)
                    .with_context(|| format!("{kind}, {}", mix.name()))?;
                progress.done(1.0);
            }
            of_server
                .resident
                .0
                .push(server.memory()? as f64 / MEGABYTE);
            server.stop()?;
        }
    }
    for (kind, of_server) in &results {
        of_server.report(&mut report, *kind, effort);
    }
    report_ratios(&mut report, &results, mixes);
    Ok(report)
}

/// What was measured of a server.
#[derive(Default)]
struct OfServer {
    mixes: BTreeMap<Mix, OfMix>,
    resident: Samples,
}

/// What was measured of a server with one mix, a sample a round.
#[derive(Default)]
struct OfMix {
    answers_per_second: Samples,
    answers_per_cpu_second: Samples,
    kernel_share: Samples,
    /// At a moderate load, and at half of the knee.
    moderate: Option<Histogram<u64>>,
    half: Option<Histogram<u64>>,
    /// The sender could not ask faster, in some round.
    sender_bound: bool,
    /// Some of the work was on nobody's account, in some round.
    unaccounted: Option<String>,
}

impl OfMix {
    /// One round.
    fn measure(
        &mut self,
        server: &Server<'_>,
        rig: &Rig,
        drawn: &Drawn,
        effort: &Effort,
    ) -> Result<()> {
        let check = |number: usize, _: &[u8], reply: &[u8]| drawn.check(number, reply);
        let ask = |pace: Pace, duration: Duration| {
            let load = Load {
                pace,
                duration,
                sockets: SOCKETS,
            };
            sockets::ask(rig, server.address, &drawn.queries, load, &check)
        };
        // Who is asked for more than it can answer may say so (SERVFAIL), or answer when nobody waits any more: a wrong answer
        // counts as none then, and a server that has no others has no knee.
        let overloaded = |pace: Pace| -> Result<Outcome> {
            let mut outcome = ask(pace, effort.attempt)?;
            outcome.wrong = 0;
            Ok(outcome)
        };
        // What it keeps of answers it may keep from here on.
        let flood = overloaded(Pace::Waiting(WAITING))?;
        let first = (flood.rate() * FIRST).max(effort.moderate);
        let knee = knee::search(first, effort.search, |rate| {
            overloaded(Pace::PerSecond(rate))
        })?;
        self.sender_bound |= knee.sender_bound;

        let measured =
            |rate: f64| right(|| rig.measure(|| ask(Pace::PerSecond(rate), effort.measured)));
        let counted = server.counted()?;
        let (outcome, spent) = measured(knee.offered)?;
        if let (Some(before), Some(after)) = (counted, server.counted()?) {
            let by = after - before;
            let all = (by.kernel + by.fallback).max(1);
            self.kernel_share.0.push(by.kernel as f64 / all as f64);
        }
        if let Err(error) = spent.is_all() {
            self.unaccounted = Some(error.to_string());
        }
        let answered = outcome.answered as f64;
        self.answers_per_second.0.push(outcome.rate());
        let per_cpu_second = answered / spent.account.total().as_secs_f64();
        self.answers_per_cpu_second.0.push(per_cpu_second);

        let (moderate, _) = measured(effort.moderate)?;
        let (half, _) = measured(knee.offered / 2.0)?;
        add(&mut self.moderate, &moderate)?;
        add(&mut self.half, &half)
    }
}

/// How often a load may have wrong answers before that is the server's fault: while something else has the processor, it is asked
/// for more than it can answer, too.
const TRIES: usize = 3;

/// A load without a wrong answer.
///
/// # Errors
/// Each of them has one.
fn right(ask: impl Fn() -> Result<(Outcome, Spent)>) -> Result<(Outcome, Spent)> {
    let mut measured = ask()?;
    for _ in 1..TRIES {
        if measured.0.right().is_err() {
            measured = ask()?;
        }
    }
    measured.0.right().map(|()| measured)
}

/// Adds the latencies of a load.
fn add(all: &mut Option<Histogram<u64>>, outcome: &Outcome) -> Result<()> {
    match all {
        Some(all) => all
            .add(&outcome.latency)
            .context("they have the same bounds"),
        None => {
            *all = Some(outcome.latency.clone());
            Ok(())
        }
    }
}

impl OfServer {
    fn report(&self, report: &mut Report, kind: Kind, effort: &Effort) {
        for (mix, of_mix) in &self.mixes {
            let labels = [kind.label(), ("mix", mix.name().into())];
            let note = of_mix.note();
            let rows = [
                (
                    "answers_per_cpu_second",
                    "1/CPU-s",
                    &of_mix.answers_per_cpu_second,
                ),
                ("answers_per_second", "1/s", &of_mix.answers_per_second),
            ];
            for (name, unit, samples) in rows {
                let figure = report.add(
                    name,
                    &labels,
                    unit,
                    Better::Higher,
                    "rounds",
                    samples.clone(),
                );
                figure.note = note.clone().map(Into::into);
            }
            if !of_mix.kernel_share.0.is_empty() {
                let share = of_mix.kernel_share.clone();
                report.add(
                    "kernel_share",
                    &labels,
                    "of answers",
                    Better::None,
                    "rounds",
                    share,
                );
            }
            for (load, times) in [("moderate", &of_mix.moderate), ("half", &of_mix.half)] {
                let Some(times) = times else { continue };
                let [server, mix] = labels.clone();
                let labels = [server, mix, ("load", load.into())];
                let figure = report.add_latency("latency", &labels, "µs", times, 1e3);
                let what = match load {
                    "moderate" => format!("{} queries a second", effort.moderate),
                    _ => "at half of what it answers at most".to_owned(),
                };
                figure.note = Some(what.into());
            }
        }
        let resident = self.resident.clone();
        report.add(
            "resident",
            &[kind.label()],
            "MB",
            Better::Lower,
            "rounds",
            resident,
        );
    }
}

impl OfMix {
    /// What a reader should know of the rates.
    fn note(&self) -> Option<String> {
        let mut notes = Vec::new();
        if !self.kernel_share.0.is_empty() {
            let share = self.kernel_share.summary().median * 100.0;
            notes.push(format!("the kernel answered {share:.2} %"));
        }
        if self.sender_bound {
            notes.push("the sender could not ask faster".to_owned());
        }
        notes.extend(self.unaccounted.clone());
        (!notes.is_empty()).then(|| notes.join("; "))
    }
}

/// Adds how many times another's answers for a processor's second one gives, round by round.
fn report_ratios(report: &mut Report, results: &BTreeMap<Kind, OfServer>, mixes: &[Mix]) {
    let [gate_coredns, aim_coredns] = TIMES_COREDNS;
    let [gate_knot, aim_knot] = TIMES_KNOT_XDP;
    let rows = [
        (
            "times_coredns",
            Kind::Peak,
            Kind::CoreDns,
            Some(gate_coredns),
            Some(aim_coredns),
        ),
        (
            "times_knot_xdp",
            Kind::Peak,
            Kind::KnotXdp,
            Some(gate_knot),
            Some(aim_knot),
        ),
        (
            "times_coredns",
            Kind::PeakFallback,
            Kind::CoreDns,
            Some(FALLBACK_TIMES_COREDNS),
            None,
        ),
        (
            "times_nsd",
            Kind::PeakFallback,
            Kind::Nsd,
            None,
            Some(FALLBACK_TIMES_NSD),
        ),
    ];
    for (name, of, other, gate, aim) in rows {
        for mix in mixes {
            let rates = |kind: Kind| {
                let of_mix = results.get(&kind)?.mixes.get(mix)?;
                Some(&of_mix.answers_per_cpu_second.0)
            };
            let (Some(ours), Some(theirs)) = (rates(of), rates(other)) else {
                continue;
            };
            let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
            let ratios = Samples(ratios.collect());
            let labels = [of.label(), ("mix", mix.name().into())];
            let figure = report.add(name, &labels, "x", Better::Higher, "rounds", ratios);
            figure.gate = gate.map(|limit| Gate::at_least(figure.median, limit));
            figure.aim = aim.map(|limit| Gate::at_least(figure.median, limit));
        }
    }
}

/// A line for each figure; latencies have one for each load.
fn print(report: &Report) {
    println!(
        "{:<24} {:<14} {:<9} {:<9} {:>10} {:>10} {:>10}  {:<14}",
        "", "server", "mix", "load", "min", "median", "p99", "unit"
    );
    for figure in &report.results {
        let label = |name| {
            figure
                .labels
                .get(name)
                .map_or(String::new(), Label::to_string)
        };
        print!(
            "{:<24} {:<14} {:<9} {:<9} {:>10} {:>10} {:>10}  {:<14}",
            figure.name,
            label("server"),
            label("mix"),
            label("load"),
            shown(figure.min),
            shown(figure.median),
            shown(figure.p99),
            figure.unit
        );
        println!("{}", remarks(figure).trim_end());
    }
}

/// Gate, aim and note.
fn remarks(figure: &Figure) -> String {
    let mut text = String::new();
    for (what, gate) in [("gate", figure.gate), ("aim", figure.aim)] {
        if let Some(gate) = gate {
            let missed = if gate.reached { "" } else { " missed" };
            text += &format!("{what} {}{missed}  ", gate.limit);
        }
    }
    match (&figure.note, &figure.raw) {
        (Some(note), Raw::Samples(_)) => text + note,
        _ => text,
    }
}

/// To three or four digits.
fn shown(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
