//! `cargo xtask bench kernel`: what the program costs a packet, by BPF_PROG_TEST_RUN.
//!
//! A sample is the mean of a batch of runs in one system call, in the calling thread's own time on the processor. In each
//! round all cases of a table run one after the other, each case's programs likewise: whoever shares the processor's caches and
//! threads comes and goes, and slows all of them. Each run restores the packet, with a name drawn anew; what restoring costs
//! alone is subtracted.

pub(crate) mod cases;
pub(crate) mod measure;
mod parts;
pub(crate) mod print;
mod program;
pub(crate) mod table;
mod traffic;
pub(crate) mod trampoline;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use self::{
    cases::{ANSWERS, Case, Limits, PASSES, PLAIN, SIZES},
    measure::{Bench, Effort, Measured, Object},
    table::Services,
    trampoline::Trampoline,
};
use crate::{
    memory,
    progress::Progress,
    report::{Better, Figure, Gate, Label, Output, Report, Samples, Summary},
};

/// What the program costs a packet, case by case, beside a yardstick and an empty program
///
/// Times are above the empty program's, and without what it costs to restore the packet before each run. `yardsticks` are
/// their ratios to a yardstick, a program that copies 64 bytes of the packet and looks them up in a hash map: of the least
/// ones, and the median of those by round. Gates and aims grow with the yardstick, and are about the least time: neighbours on
/// the machine only add.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The benchmark's build of the XDP program
    #[arg(long, hide = true)]
    object: PathBuf,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Only tables of this many names
    #[arg(long, value_name = "NUMBER", value_parser = size)]
    names: Option<u32>,
    #[command(flatten)]
    output: Output,
}

/// A yardstick's nanoseconds on the machine that gates are given for.
pub(crate) const YARDSTICK: f64 = 32.0;
/// How many yardsticks a hit in the cache may cost, and should.
const YARDSTICKS: (f64, f64) = (1.5, 1.0);
/// Of the names that are asked, how many a smoke run asks, and of which case.
const QUICK: (u32, &str) = (1 << 10, PLAIN.name);
/// What the figures of the whole benchmark are called that are no case's.
const PARTS: [&str; 2] = ["stage", "floor"];
const TRAFFIC: &str = "traffic_aaaa_hit";
const PROGRAM: &str = "program";

/// A size by its number.
fn size(text: &str) -> Result<u32, String> {
    SIZES
        .into_iter()
        .find(|size| size.to_string() == text)
        .ok_or_else(|| format!("tables have {SIZES:?} names"))
}

impl Effort {
    pub(crate) const QUICK: Self = Self {
        rounds: 3,
        runs: 1_000,
    };
    pub(crate) const WHOLE: Self = Self {
        rounds: 150,
        runs: 20_000,
    };

    /// What each round of a larger table begins with, warming, takes longer.
    pub(crate) fn of(self, names: u32) -> Self {
        let divisor = match names {
            0..2 => 1,
            2..0x8000 => 2,
            0x8000..0x4_0000 => 4,
            _ => 12,
        };
        Self {
            rounds: self.rounds.div_ceil(divisor),
            ..self
        }
    }
}

/// What is measured over one table.
struct Job {
    services: Services,
    names: u32,
    cases: Vec<Case>,
    /// Whether a hit is taken apart as well.
    in_parts: bool,
}

impl Job {
    /// About how long it takes, in runs of a program.
    fn weight(&self, effort: Effort) -> f64 {
        let Effort { rounds, runs } = effort.of(self.names);
        let parts = if self.in_parts { 14 } else { 0 };
        let slower = if self.names > 1 << 15 { 3.0 } else { 1.0 };
        let warming = f64::from(self.names.min(1 << 18)) * 2.0 * slower;
        let a_round = f64::from(runs) * (2.0 + slower) + warming;
        let loading = 5e6 + f64::from(self.names) * 40.0;
        (self.cases.len() + parts) as f64 * rounds as f64 * a_round + loading
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let object = Object::read(&args.object)?;
    let mut unsummed = args.object.clone().into_os_string();
    unsummed.push("-no-checksum");
    let unsummed = Object::read(unsummed.as_ref())?;
    let quick = args.output.quick;
    let effort = if quick { Effort::QUICK } else { Effort::WHOLE };

    let jobs = jobs(args);
    let wants = |name: &str| name.contains(&args.only);
    let with_traffic = wants(TRAFFIC) && args.names.is_none();
    let with_program = wants(PROGRAM) && args.names.is_none();
    ensure!(
        !jobs.is_empty() || with_traffic || with_program,
        "no such case: there are {}",
        titles().join(", ")
    );

    let mut report = Report::new("kernel");
    let mut common = Common::default();
    let trampoline = Trampoline::new()?;
    let progress = Progress::new(jobs.iter().map(|job| job.weight(effort)).sum());
    for job in &jobs {
        let names: Vec<_> = job.cases.iter().map(Case::title).collect();
        let more = if job.in_parts { ", part by part" } else { "" };
        progress.say(&format!("{} names: {}{more}", job.names, names.join(", ")));
        measure_job(
            job,
            &trampoline,
            [&object, &unsummed],
            effort,
            &mut report,
            &mut common,
        )?;
        progress.done(job.weight(effort));
    }
    common.report(&mut report);
    if with_traffic {
        progress.say("real traffic");
        traffic::measure(&mut report, &effort.of(SIZES[2]))?;
    }
    if with_program {
        program::describe(&mut report)?;
    }
    print::print(&report);
    args.output.finish(&report)
}

/// What is wanted, table by table.
fn jobs(args: &Args) -> Vec<Job> {
    let all = || ANSWERS.iter().chain(PASSES);
    let mut kinds: Vec<Services> = Vec::new();
    for case in all() {
        if !kinds.contains(&case.services) {
            kinds.push(case.services);
        }
    }
    let in_quick = |case: &str, names| !args.output.quick || names == 1 || (names, case) == QUICK;
    let wanted = |names| args.names.is_none_or(|wanted| wanted == names);
    let mut jobs = Vec::new();
    for services in kinds {
        for names in SIZES {
            let cases: Vec<_> = all()
                .filter(|case| case.services == services && case.sizes.contains(&names))
                .filter(|case| case.title().contains(&args.only) && in_quick(case.name, names))
                .filter(|_| wanted(names))
                .copied()
                .collect();
            let in_parts = services == Services::V6
                && parts::SIZES.contains(&names)
                && wanted(names)
                && PARTS
                    .iter()
                    .any(|part| part.contains(&args.only) && in_quick(part, names));
            if !cases.is_empty() || in_parts {
                jobs.push(Job {
                    services,
                    names,
                    cases,
                    in_parts,
                });
            }
        }
    }
    jobs
}

/// What `--only` can choose.
fn titles() -> Vec<String> {
    let cases = ANSWERS.iter().chain(PASSES).map(Case::title);
    let more = PARTS.iter().chain(&[TRAFFIC, PROGRAM]);
    cases.chain(more.map(|&part| part.to_owned())).collect()
}

fn measure_job(
    job: &Job,
    trampoline: &Trampoline,
    [object, unsummed]: [&Object; 2],
    effort: Effort,
    report: &mut Report,
    common: &mut Common,
) -> Result<()> {
    let snapshot = job.services.snapshot(job.names);
    let effort = effort.of(job.names);
    let fits = |case: &&Case| case.sizes.contains(&job.names);
    let (mut stages, mut cases) = (Vec::new(), job.cases.clone());
    if job.in_parts {
        stages.extend(parts::STAGES);
        cases.push(parts::LAST);
        cases.extend(parts::FLOORS.iter().filter(fits));
    }
    let mut bench = Bench::new(trampoline, object, &cases, job.names, &snapshot)?;
    let new = |case: &Case| Measured::new(*case, job.names);
    let mut cases: Vec<_> = cases.iter().map(new).collect::<Result<_>>()?;
    let mut apart = if job.in_parts {
        check_floor(&mut bench, &cases)?;
        Some(Bench::new(
            trampoline, unsummed, &stages, job.names, &snapshot,
        )?)
    } else {
        None
    };
    let mut stages: Vec<_> = stages.iter().map(new).collect::<Result<_>>()?;
    for _ in 0..effort.rounds {
        for measured in &mut cases {
            bench.round(measured, effort.runs)?;
        }
        for measured in &mut stages {
            if let Some(bench) = &mut apart {
                bench.round(measured, effort.runs)?;
            }
        }
    }
    let last = cases
        .iter()
        .position(|measured| measured.case.name == parts::LAST.name);
    if let Some(last) = last {
        stages.push(cases.remove(last));
    }
    add_stages(report, &stages);
    for measured in cases.iter().chain(&stages) {
        common.add(measured);
    }
    for measured in &cases {
        add_case(report, measured);
        if measured.case.name == PLAIN.name {
            let pace = measured.cost().median;
            let Effort { rounds, runs } = effort;
            let latency = memory::latency(job.names as usize, pace, rounds, runs);
            add(report, "memory", &[("names", job.names.into())], latency);
        }
    }
    Ok(())
}

/// What knows beforehand what it is asked shall give the same answer as the program: else it is no floor of it.
fn check_floor(bench: &mut Bench, cases: &[Measured]) -> Result<()> {
    let titles = [parts::LAST.title(), parts::ANSWER.title()];
    let replies: Vec<_> = cases
        .iter()
        .filter(|measured| titles.contains(&measured.case.title()))
        .map(|measured| bench.reply(measured))
        .collect::<Result<_>>()?;
    // The flow label is anybody's choice, and in no checksum.
    let compared = |reply: &[u8]| [&reply[..14], &reply[18..]].concat();
    ensure!(
        replies.len() == 2 && compared(&replies[0]) == compared(&replies[1]),
        "the answer that is hard-wired is not the program's: {replies:02x?}"
    );
    Ok(())
}

/// Adds a time of batches.
fn add<'r>(
    report: &'r mut Report,
    name: &'static str,
    labels: &[(&'static str, Label)],
    time: impl Into<Summary>,
) -> &'r mut Figure {
    report.add(name, labels, "ns", Better::Lower, "batches", time)
}

/// Adds a case with its ratios and limits.
pub(crate) fn add_case(report: &mut Report, measured: &Measured) {
    let Measured { case, names, .. } = measured;
    let labels = measured.labels();
    let ratios = measured.ratios();
    let figure = add(report, case.name, &labels, measured.cost());
    figure.yardsticks = Some(ratios);
    if let Some(Limits { gate, aim, .. }) = case.limits(*names) {
        let limit =
            |ns: f64| Gate::at_most(figure.min, ns / YARDSTICK * measured.least_yardstick());
        (figure.gate, figure.aim) = (Some(limit(gate)), Some(limit(aim)));
    }
    if case.name == PLAIN.name && *names == 1 {
        let (gate, aim) = YARDSTICKS;
        let figure = report.add(
            "aaaa_hit_in_yardsticks",
            &labels,
            "yardsticks",
            Better::Lower,
            "batches",
            measured.by_yardstick(),
        );
        figure.gate = Some(Gate::at_most(ratios.min, gate));
        figure.aim = Some(Gate::at_most(ratios.min, aim));
        figure.note = Some("gate and aim are about the ratio of the least times".into());
    }
}

/// Adds what each stage costs more than the one before, and the first more than restoring the frame, as they all do.
fn add_stages(report: &mut Report, stages: &[Measured]) {
    let mut before = stages.first().map(|measured| &measured.restore);
    for measured in stages {
        if let Some(before) = before.replace(&measured.whole) {
            let stage = measured.whole.without(before);
            add(report, measured.case.name, &measured.labels(), stage);
        }
    }
}

/// Figures of all cases together.
#[derive(Default)]
struct Common {
    empty: Samples,
    yardstick: Samples,
    restore: Samples,
}

impl Common {
    fn add(&mut self, measured: &Measured) {
        self.empty.0.extend(&measured.empty.0);
        self.yardstick.0.extend(&measured.yardstick.0);
        self.restore.0.extend(&measured.restore.0);
    }

    fn report(&self, report: &mut Report) {
        if self.empty.0.is_empty() {
            return;
        }
        add(report, "empty", &[], self.empty.clone());
        add(
            report,
            "yardstick",
            &[],
            self.yardstick.without(&self.empty),
        );
        add(report, "restore", &[], self.restore.without(&self.empty));
    }
}
