//! `cargo xtask bench wire`: Peak across a veth pair, in the kernel and by its fallback alone.
//!
//! How it is measured is told in [`crate::rig`] and [`crate::load`].

mod server;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use peak_tests::Peak;

use self::server::{Kind, Zone};
use crate::{
    load::{
        Outcome, answer, dnsperf, knee,
        live::Live,
        sockets::{self, Load, Pace, SOCKETS},
    },
    progress::Progress,
    report::{Better, Figure, Gate, Label, Output, Report, Samples},
    rig::{Rig, Spent},
};

/// Peak across a veth pair: how many answers, how soon, and for how much processor time
///
/// A client on one processor asks a node on the other, from ordinary sockets (`sockets`, ours), by `dnsperf`, and by the kernel's own `live-frames`. The offered
/// rate is raised until one of 1,000 replies is missing: `answers_per_second` is what comes at the highest rate below.
/// `round_trip` is of one query at a time; `latency` and `latency_curve` are of a load that is offered whatever becomes of
/// it, counted from when a query was due. `cpu_per_answer` is what all threads that work for the server had of a processor.
/// One of 64 replies is looked at byte by byte, and `by_receiver` and `by_responder` count them at both ends. `server` is `peak`
/// (in the kernel) or `peak-fallback` (the agent alone).
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The benchmarks' build of the XDP program
    #[arg(long, hide = true)]
    object: PathBuf,
    /// Services, each a name with one address
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    services: u32,
    #[command(flatten)]
    output: Output,
}

/// How much is measured.
struct Effort {
    /// Of one rate while the knee is looked for, and how long for all of them.
    step: Duration,
    search: Duration,
    /// Rounds of a figure, and how long each is.
    rounds: u32,
    round: Duration,
    /// Rates of the latency's curve, parts of the knee's.
    curve: &'static [f64],
    /// Whether work that is on nobody's account is a fault: others on the machine cause some.
    strict: bool,
}

const QUICK: Effort = Effort {
    step: Duration::from_millis(100),
    search: Duration::from_millis(500),
    rounds: 1,
    round: Duration::from_millis(200),
    curve: &[0.5, 1.0],
    strict: false,
};
const WHOLE: Effort = Effort {
    step: Duration::from_millis(500),
    search: Duration::from_secs(12),
    rounds: 5,
    round: Duration::from_secs(2),
    curve: &[
        0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05,
    ],
    strict: true,
};

/// How many queries wait for their replies when it is asked as fast as it goes.
const WAITING: usize = 512;
/// Where the search for the knee begins, of what is answered as fast as it goes.
const FIRST: f64 = 0.6;
/// Queries a second of a server that has nothing else to do.
const IDLE: f64 = 1000.0;
/// The loads of which latency and cost are told, parts of the knee's.
const LOADS: [(&str, f64); 2] = [("half", 0.5), ("nine_tenths", 0.9)];

/// Gate and aim: answers a second to live frames, and from ordinary sockets; round trips' median and p99, microseconds.
const LIVE_RATE: (f64, f64) = (2_500_000.0, 5_000_000.0);
const SOCKET_RATE: (f64, f64) = (400_000.0, 800_000.0);
const ROUND_TRIP_MEDIAN: (f64, f64) = (25.0, 12.0);
const ROUND_TRIP_P99: (f64, f64) = (80.0, 40.0);

const SENDER_BOUND: &str = "at a higher rate the sender could not keep up";

pub(crate) fn run(args: &Args) -> Result<()> {
    let effort = if args.output.quick { &QUICK } else { &WHOLE };
    let mut report = Report::new("wire");
    report.version("dnsperf", dnsperf::version()?);
    let rig = Rig::new()?;
    let zone = Zone::new(args.services)?;
    let progress = Progress::new(Kind::ALL.len() as f64 * PARTS);
    for kind in Kind::ALL {
        progress.say(&format!("starting {}", kind.name()));
        let peak = zone.serve(&rig, kind)?;
        let bench = Bench {
            rig: &rig,
            zone: &zone,
            object: &args.object,
            kind,
            peak: &peak,
            effort,
            progress: &progress,
        };
        bench
            .run(&mut report)
            .with_context(|| kind.name().to_owned())?;
    }
    print(&report);
    args.output.finish(&report)
}

/// What is measured of a server, for progress.
const PARTS: f64 = 7.0;

/// One server.
struct Bench<'a> {
    rig: &'a Rig,
    zone: &'a Zone,
    object: &'a Path,
    kind: Kind,
    peak: &'a Peak,
    effort: &'a Effort,
    progress: &'a Progress,
}

/// What came of a load, as its sender, its server and the interface in between count it.
struct Measured<T> {
    outcome: T,
    spent: Spent,
    responded: u64,
}

/// Rounds of a load.
#[derive(Default)]
struct Rounds {
    rates: Samples,
    costs: Samples,
    received: Samples,
    responded: Samples,
    medians: Samples,
    p99s: Samples,
    latency: Option<Histogram<u64>>,
}

impl Rounds {
    fn add(&mut self, measured: &Measured<Outcome>) -> Result<()> {
        let outcome = &measured.outcome;
        outcome.right()?;
        self.rates.0.push(outcome.rate());
        self.count(outcome.answered, measured.responded, &measured.spent);
        let at = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / MICROSECOND;
        self.medians.0.push(at(0.5));
        self.p99s.0.push(at(0.99));
        match &mut self.latency {
            Some(latency) => latency.add(&outcome.latency)?,
            none => *none = Some(outcome.latency.clone()),
        }
        Ok(())
    }

    fn count(&mut self, received: u64, responded: u64, spent: &Spent) {
        self.received.0.push(received as f64);
        self.responded.0.push(responded as f64);
        let cost = spent.account.total().as_nanos() as f64;
        self.costs.0.push(cost / responded.max(1) as f64);
    }
}

/// Nanoseconds.
const MICROSECOND: f64 = 1e3;

impl Bench<'_> {
    fn run(&self, report: &mut Report) -> Result<()> {
        self.say("one query at a time");
        let one = self.rounds(Pace::Waiting(1), 1)?;
        let labels = self.labels("sockets", "one");
        self.counts(report, &labels, &one);
        add_latency(report, "round_trip", &labels, &one);
        let bounds = [
            ("round_trip_p50", one.medians, ROUND_TRIP_MEDIAN),
            ("round_trip_p99", one.p99s, ROUND_TRIP_P99),
        ];
        for (name, samples, (gate, aim)) in bounds {
            let value = samples.summary().median;
            let figure = report.add(name, &labels, "µs", Better::Lower, "rounds", samples);
            if self.kind == Kind::Kernel {
                figure.gate = Some(Gate::at_most(value, gate));
                figure.aim = Some(Gate::at_most(value, aim));
            }
        }
        self.progress.done(1.0);

        self.say("how much it can take");
        let knee = self.knee()?;
        let knee_rate = knee.offered;
        self.progress.done(1.0);

        self.say(&format!("{knee_rate:.0} queries a second"));
        let most = self.rounds(Pace::PerSecond(knee_rate), SOCKETS)?;
        let labels = self.labels("sockets", "knee");
        self.counts(report, &labels, &most);
        let figure = self.rates(report, &labels, most.rates, SOCKET_RATE);
        if knee.sender_bound {
            figure.note = Some(SENDER_BOUND.into());
        }
        self.progress.done(1.0);

        let loads = LOADS.map(|(name, part)| (name, knee_rate * part));
        for (name, rate) in [("idle", IDLE.min(knee_rate / 2.0))]
            .into_iter()
            .chain(loads)
        {
            self.say(&format!("{name}: {rate:.0} queries a second"));
            let rounds = self.rounds(Pace::PerSecond(rate), SOCKETS)?;
            let labels = self.labels("sockets", name);
            self.counts(report, &labels, &rounds);
            add_latency(report, "latency", &labels, &rounds);
        }
        self.progress.done(1.0);

        self.say("latency over the offered rate");
        for part in self.effort.curve {
            let rate = knee_rate * part;
            let measured = self.ask(Pace::PerSecond(rate), SOCKETS)?;
            measured.outcome.right()?;
            let mut labels = self.labels("sockets", "curve");
            labels.push(("offered", (rate.round() as u64).into()));
            let latency = &measured.outcome.latency;
            report.add_latency("latency_curve", &labels, "µs", latency, MICROSECOND);
        }
        self.progress.done(1.0);

        self.say("dnsperf");
        let labels = self.labels("dnsperf", "flood");
        let mut rounds = Rounds::default();
        for _ in 0..self.effort.rounds {
            let measured = self.measure(|| {
                let queries = self.zone.queries();
                dnsperf::ask(self.rig, self.address(), queries, None, self.effort.round)
            })?;
            let said = measured.outcome;
            rounds.rates.0.push(said.rate);
            rounds.count(said.answered, measured.responded, &measured.spent);
        }
        self.counts(report, &labels, &rounds);
        self.rates(report, &labels, rounds.rates, SOCKET_RATE);
        self.progress.done(1.0);

        self.live(report)
    }

    /// What the kernel itself asks.
    fn live(&self, report: &mut Report) -> Result<()> {
        self.say("live frames");
        let query = self.zone.queries().message(0);
        let mut live = Live::new(self.rig, self.object, query, self.zone.services())?;
        let check = |service: usize, query: &[u8], reply: &[u8]| {
            answer::same(reply, &self.zone.answer_for(service as u32, query))
        };
        let Effort {
            step,
            search,
            rounds: count,
            round,
            ..
        } = *self.effort;
        let flood = live.ask(None, step, &check)?;
        let knee = knee::search(flood.rate() * FIRST, search, |rate| {
            live.ask(Some(rate), step, &check)
        })?;
        for (load, rate) in [("knee", Some(knee.offered)), ("flood", None)] {
            let mut rounds = Rounds::default();
            for _ in 0..count {
                let measured = self.measure(|| live.ask(rate, round, &check))?;
                let outcome = &measured.outcome;
                outcome.right()?;
                rounds.rates.0.push(outcome.rate());
                rounds.count(outcome.answered, measured.responded, &measured.spent);
            }
            let labels = self.labels("live-frames", load);
            self.counts(report, &labels, &rounds);
            let figure = self.rates(report, &labels, rounds.rates, LIVE_RATE);
            if load == "knee" && knee.sender_bound {
                figure.note = Some(SENDER_BOUND.into());
            }
        }
        self.progress.done(1.0);
        Ok(())
    }

    /// Answers a second; what the kernel's should be is gate and aim.
    fn rates<'r>(
        &self,
        report: &'r mut Report,
        labels: &[(&'static str, Label)],
        rates: Samples,
        (gate, aim): (f64, f64),
    ) -> &'r mut Figure {
        let rate = rates.summary().median;
        let name = "answers_per_second";
        let figure = report.add(name, labels, "1/s", Better::Higher, "rounds", rates);
        if self.kind == Kind::Kernel {
            figure.gate = Some(Gate::at_least(rate, gate));
            figure.aim = Some(Gate::at_least(rate, aim));
        }
        figure
    }

    /// The highest rate that it answers.
    fn knee(&self) -> Result<knee::Knee> {
        let load = |pace| Load {
            pace,
            duration: self.effort.step,
            sockets: SOCKETS,
        };
        let flood = self.ask_for(load(Pace::Waiting(WAITING)))?;
        knee::search(flood.rate() * FIRST, self.effort.search, |rate| {
            self.ask_for(load(Pace::PerSecond(rate)))
        })
    }

    fn rounds(&self, pace: Pace, sockets: usize) -> Result<Rounds> {
        let mut rounds = Rounds::default();
        for _ in 0..self.effort.rounds {
            rounds.add(&self.ask(pace, sockets)?)?;
        }
        Ok(rounds)
    }

    fn ask(&self, pace: Pace, sockets: usize) -> Result<Measured<Outcome>> {
        let load = Load {
            pace,
            duration: self.effort.round,
            sockets,
        };
        self.measure(|| self.ask_for(load))
    }

    fn ask_for(&self, load: Load) -> Result<Outcome> {
        let check = |number: usize, query: &[u8], reply: &[u8]| {
            answer::same(reply, &self.zone.answer(number, query))
        };
        sockets::ask(self.rig, self.address(), self.zone.queries(), load, &check)
    }

    fn measure<T>(&self, task: impl FnOnce() -> Result<T>) -> Result<Measured<T>> {
        let before = self.peak.status()?.counted();
        let (outcome, spent) = self.rig.measure(task)?;
        let counted = self.peak.status()?.counted() - before;
        if self.effort.strict {
            spent.is_all()?;
        }
        let all = counted.kernel + counted.fallback;
        let responded = self.kind.of(counted);
        ensure!(responded == all, "answers came from elsewhere: {counted}");
        Ok(Measured {
            outcome,
            spent,
            responded,
        })
    }

    /// What every load's figures are: what it cost, and how many answers both ends have counted.
    fn counts(&self, report: &mut Report, labels: &[(&'static str, Label)], rounds: &Rounds) {
        let costs = rounds.costs.clone();
        report.add(
            "cpu_per_answer",
            labels,
            "ns",
            Better::Lower,
            "rounds",
            costs,
        );
        let counts = [
            ("by_receiver", &rounds.received),
            ("by_responder", &rounds.responded),
        ];
        for (name, count) in counts {
            let count = count.clone();
            report.add(name, labels, "answers", Better::None, "rounds", count);
        }
    }

    fn labels(&self, sender: &'static str, load: &'static str) -> Vec<(&'static str, Label)> {
        vec![
            ("server", self.kind.name().into()),
            ("sender", sender.into()),
            ("load", load.into()),
        ]
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.rig.node.v6, 53))
    }

    fn say(&self, what: &str) {
        self.progress.say(&format!("{}: {what}", self.kind.name()));
    }
}

fn add_latency(
    report: &mut Report,
    name: &'static str,
    labels: &[(&'static str, Label)],
    rounds: &Rounds,
) {
    if let Some(latency) = &rounds.latency {
        report.add_latency(name, labels, "µs", latency, MICROSECOND);
    }
}

fn print(report: &Report) {
    println!(
        "{:<20} {:<14} {:<8} {:<12} {:>11} {:>11} {:>11}",
        "", "server", "sender", "load", "median", "p99", "p99.9"
    );
    for figure in &report.results {
        let label = |name| {
            figure
                .labels
                .get(name)
                .map_or(String::new(), Label::to_string)
        };
        let load = match label("offered") {
            none if none.is_empty() => label("load"),
            offered => offered,
        };
        print!(
            "{:<20} {:<14} {:<8} {load:<12} {:>11.1} {:>11.1} {:>11} {:<8}",
            figure.name,
            label("server"),
            label("sender"),
            figure.median,
            figure.p99,
            figure
                .p999
                .map_or(String::new(), |p999| format!("{p999:.1}")),
            figure.unit,
        );
        for (name, bound) in [("gate", figure.gate), ("aim", figure.aim)] {
            if let Some(Gate { limit, reached }) = bound {
                let reached = if reached { "" } else { " missed" };
                print!(" {name} {limit}{reached}");
            }
        }
        println!();
    }
}
