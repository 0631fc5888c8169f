//! `cargo xtask bench propagation`: what it costs to know a cluster, and how soon a change of it is answered.
//!
//! The cluster is made once, on a real API server. Then CoreDNS and Peak take turns: each is started, asked until it answers,
//! left alone, weighed and stopped. In the end services are changed that were not there before, for the one and then for the
//! other. The control plane and both servers are in the namespace of a node, who asks is in another, a veth pair away.

mod change;
pub(crate) mod cluster;
mod process;
pub(crate) use self::process::{Memory, kernel_memory};
mod server;

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use fastrand::Rng;
use peak_tests::{Component, ControlPlane, Net, pass};

use self::{
    change::{Asked, Changer, Changing, Times},
    cluster::Cluster,
    server::{Kind, Server},
};
use crate::{
    progress::Progress,
    report::{Better, Gate, Label, Output, Report, Samples},
};

/// What it costs to know a cluster, and how soon a change of it is answered, beside CoreDNS
///
/// Makes a cluster of Services and EndpointSlices on a real API server. Then CoreDNS and Peak are started in turn, and it is
/// told how long each takes from its start to its first right answer (`ready_time`), how long its threads ran till then
/// (`sync_cpu`), how much memory is resident a while later (`resident_rest`), how much was at most (`resident_peak`), and
/// what the kernel holds for it in BPF maps (`kernel_memory`). After that one endpoint at a time changes in headless services of
/// several sizes, and its name is asked all the while: `change_to_answer` is from the request to the first changed answer, of
/// which `change_to_event` is the API server's (until a watch of ours has the event), and `event_to_answer` the rest.
/// `slice_to_answer` and `slice_event_to_answer` are of changes of a whole slice, as seen in the service's own name.
/// `gate` is what a figure may be.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Services of the cluster
    #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: u32,
    /// Endpoints of all services together
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    endpoints: u32,
    #[command(flatten)]
    output: Output,
}

/// How much is measured.
struct Effort {
    /// How often each server is started.
    starts: usize,
    /// How long a server is left alone before its memory at rest is taken.
    rest: Duration,
    /// Changes of each service.
    changes: usize,
    /// How large these are.
    changing: &'static [u32],
    /// Changes before the first that counts.
    warming: usize,
}

// Weights are seconds, about, by which it is told what is left.
/// Of the control plane's start, and of a service that is made in it.
const PLANE: f64 = 12.0;
const SERVICE: f64 = 0.006;
/// Of a server's start, without its rest.
const START: f64 = 3.0;
/// Of a change.
const CHANGE: f64 = 0.025;

impl Effort {
    fn weight(&self, services: u32) -> f64 {
        let servers = Kind::ALL.len() as f64;
        let start = START + self.rest.as_secs_f64();
        let changes = (self.changes * self.changing.len()) as f64 * CHANGE;
        // Peak is asked in two ways.
        PLANE
            + f64::from(services) * SERVICE
            + (self.starts + 1) as f64 * servers * start
            + (servers + 1.0) * changes
    }
}

const FULL: Effort = Effort {
    starts: 3,
    rest: Duration::from_secs(15),
    changes: 1000,
    changing: &[10, 1000, 10_000],
    warming: 20,
};
const QUICK: Effort = Effort {
    starts: 1,
    rest: Duration::from_millis(500),
    changes: 5,
    changing: &[10, 200],
    warming: 1,
};

/// Names that are asked of a server that says that it is ready.
const CHECKS: usize = 200;
/// Of so many answers about endpoints one may come from the fallback.
const BY_FALLBACK: u64 = 1000;

// The gates.
/// Seconds until Peak is ready.
const READY: f64 = 10.0;
/// Bytes of kernel memory for a name, and for an address.
const NAME: u64 = 128;
const ADDRESS: u64 = 16;
/// Milliseconds from an event to the answer that shows it, 99 of 100 times.
const ANSWER: f64 = 10.0;
const ANSWER_AIM: f64 = 1.0;
/// How many times that of the smallest service it may be for the largest.
const FLAT: f64 = 2.0;

/// What samples are of.
const STARTS: &str = "starts";
const CHANGES: &str = "changes";

const MEGABYTE: f64 = 1e6;

pub(crate) fn run(args: &Args) -> Result<()> {
    let net = Net::new()?;
    // Everything that this thread and its children start is on the node.
    let report = net.node.run(|| measure(args, &net))?;
    print(&report);
    args.output.finish(&report)
}

fn measure(args: &Args, net: &Net) -> Result<Report> {
    let effort = if args.output.quick { QUICK } else { FULL };
    let progress = Progress::new(effort.weight(args.services));
    let say = |what: &str| progress.say(what);

    say("starting a control plane");
    // The client's end of the link needs a program, for replies by XDP_TX to arrive.
    let _pass = pass(&net.client, "eth0")?;
    let mut plane = ControlPlane::start("bench")?;
    // All slices are ours.
    plane.kill(Component::ControllerManager);
    let cluster = Cluster::new(args.services, args.endpoints);
    say(&format!(
        "making {} services with {} endpoints in {} slices",
        args.services,
        args.endpoints,
        cluster.slices()
    ));
    cluster.create(&plane)?;
    progress.done(PLANE + f64::from(args.services) * SERVICE);

    let mut report = Report::new("propagation");
    let mut syncs = Kind::ALL.map(|kind| (kind, Sync::default()));
    for start in 1..=effort.starts {
        for (kind, sync) in &mut syncs {
            say(&format!("{kind}: start {start} of {}", effort.starts));
            sync.measure(*kind, &plane, net, &cluster, effort.rest)?;
            progress.done(START + effort.rest.as_secs_f64());
        }
    }
    let [(_, coredns), (_, peak)] = syncs;
    report_syncs(&mut report, &coredns, &peak);

    say("making services to be changed");
    let changing = effort.changing.iter();
    let changing: Vec<_> = changing.map(|&endpoints| Changing { endpoints }).collect();
    cluster::create(&plane, [cluster::namespace(change::NAMESPACE)])?;
    for service in &changing {
        cluster::create(&plane, service.objects())?;
    }
    let mut changer = Changer::start(&plane)?;
    for kind in Kind::ALL {
        let mut server = Server::launch(kind, &plane, net)?;
        let (name, address) = cluster.probe();
        server.ready(&name, address)?;
        thread::sleep(effort.rest);
        progress.done(START + effort.rest.as_secs_f64());
        let asked: &[Asked] = match kind {
            // It gives all addresses, so that a larger service's own name is answered with TC and nothing else.
            Kind::CoreDns => &[Asked::Endpoint],
            Kind::Peak => &[Asked::Endpoint, Asked::Service],
        };
        for &asked in asked {
            let mut all = Vec::new();
            for &service in &changing {
                say(&format!(
                    "{kind}: {} changes of {asked} of {}",
                    effort.changes, service.endpoints
                ));
                changer.measure(&server, service, asked, effort.warming)?;
                let before = server.status()?;
                let times = changer.measure(&server, service, asked, effort.changes)?;
                progress.done(effort.changes as f64 * CHANGE);
                if let (Some(before), Some(after)) = (before, server.status()?) {
                    let by = after.counted() - before.counted();
                    say(&format!("  {by}"));
                    // Eight records don't always find room on a veth.
                    ensure!(
                        asked == Asked::Service || by.fallback * BY_FALLBACK <= by.kernel,
                        "the kernel should have answered; it were {by}: {:?}",
                        after.interfaces
                    );
                }
                report_times(&mut report, kind, asked, service, &times);
                all.push(times);
            }
            if let (Asked::Endpoint, [smallest, .., largest]) = (asked, &*all) {
                report_growth(&mut report, kind, smallest, largest);
            }
        }
    }
    Ok(report)
}

/// What starts of a server came to.
#[derive(Default)]
struct Sync {
    ready_time: Samples,
    sync_cpu: Samples,
    resident_rest: Samples,
    resident_peak: Samples,
    kernel_memory: Samples,
    /// Names and addresses of which the kernel knows.
    size: (u64, u64),
}

impl Sync {
    /// Starts a server, and stops it.
    fn measure(
        &mut self,
        kind: Kind,
        plane: &ControlPlane,
        net: &Net,
        cluster: &Cluster,
        rest: Duration,
    ) -> Result<()> {
        let mut server = Server::launch(kind, plane, net)?;
        let process = server.id();
        let (name, address) = cluster.probe();
        let ready = server.ready(&name, address)?;
        let sync_cpu = process::processor_time(process)?;
        let mut random = Rng::with_seed(2);
        for _ in 0..CHECKS {
            let (name, address) = cluster.any_endpoint(&mut random);
            server.check(&name, address)?;
        }
        thread::sleep(rest);
        let memory = Memory::of(process)?;
        self.ready_time.0.push(ready.as_secs_f64());
        self.sync_cpu.0.push(sync_cpu.as_secs_f64());
        self.resident_rest.0.push(memory.resident as f64 / MEGABYTE);
        self.resident_peak.0.push(memory.peak as f64 / MEGABYTE);
        if let Some(status) = server.status()? {
            let bytes = process::kernel_memory(process)?;
            self.kernel_memory.0.push(bytes as f64 / MEGABYTE);
            self.size = (status.snapshot.names, status.snapshot.records);
        }
        Ok(())
    }
}

fn report_syncs(report: &mut Report, coredns: &Sync, peak: &Sync) {
    let (names, addresses) = peak.size;
    let table = (names * NAME + addresses * ADDRESS) as f64 / MEGABYTE;
    type Of = fn(&Sync) -> &Samples;
    let rows: [(_, _, Of); 5] = [
        ("ready_time", "s", |sync| &sync.ready_time),
        ("sync_cpu", "s", |sync| &sync.sync_cpu),
        ("resident_rest", "MB", |sync| &sync.resident_rest),
        ("resident_peak", "MB", |sync| &sync.resident_peak),
        ("kernel_memory", "MB", |sync| &sync.kernel_memory),
    ];
    for (name, unit, of) in rows {
        let theirs = of(coredns);
        let ours = of(peak).summary();
        let gate = match name {
            "ready_time" => Some(Gate::at_most(ours.max, READY)),
            "kernel_memory" => Some(Gate::at_most(ours.max, table)),
            "sync_cpu" => None,
            _ => Some(Gate::at_most(ours.median, theirs.summary().median)),
        };
        if !theirs.0.is_empty() {
            let label = [Kind::CoreDns.label()];
            report.add(name, &label, unit, Better::Lower, STARTS, theirs.summary());
        }
        let label = [Kind::Peak.label()];
        report
            .add(name, &label, unit, Better::Lower, STARTS, ours)
            .gate = gate;
    }
}

/// Adds how long changes of one size took.
fn report_times(report: &mut Report, kind: Kind, asked: Asked, service: Changing, times: &Times) {
    let labels = [kind.label(), ("endpoints", service.endpoints.into())];
    let [to_event, event_to_answer, to_answer] = match asked {
        Asked::Endpoint => ["change_to_event", "event_to_answer", "change_to_answer"],
        Asked::Service => ["slice_to_event", "slice_event_to_answer", "slice_to_answer"],
    };
    let mut add = |name, times, gate, aim| {
        let figure = report.add(name, &labels, "ms", Better::Lower, CHANGES, times);
        (figure.gate, figure.aim) = (gate, aim);
    };
    let event = times.event_to_answer.summary();
    let limit = |limit| (kind == Kind::Peak).then(|| Gate::at_most(event.p99, limit));
    let (gate, aim) = (limit(ANSWER), limit(ANSWER_AIM));
    add(to_event, times.to_event.summary(), None, None);
    add(event_to_answer, event, gate, aim);
    add(to_answer, times.to_answer.summary(), None, None);
}

/// Adds how many times the smallest service's the largest one's times are, 99 of 100 of them.
fn report_growth(report: &mut Report, kind: Kind, smallest: &Times, largest: &Times) {
    type Of = fn(&Times) -> &Samples;
    let is_ours = kind == Kind::Peak;
    // The whole is mostly the API server's.
    let rows: [(_, Of, _); 2] = [
        (
            "event_to_answer_growth",
            |times| &times.event_to_answer,
            is_ours,
        ),
        ("change_to_answer_growth", |times| &times.to_answer, false),
    ];
    for (name, of, has_gate) in rows {
        let growth = of(largest).summary().p99 / of(smallest).summary().p99;
        let growth_is = Samples(vec![growth]);
        let figure = report.add(name, &[kind.label()], "x", Better::Lower, "p99s", growth_is);
        figure.gate = has_gate.then(|| Gate::at_most(growth, FLAT));
    }
}

fn print(report: &Report) {
    println!(
        "{:<24} {:<8} {:>9} {:>9} {:>9} {:>9} {:>9}  {:<4} gate",
        "", "", "endpoints", "min", "median", "p99", "max", "unit"
    );
    for figure in &report.results {
        let label = |name| {
            figure
                .labels
                .get(name)
                .map_or(String::new(), Label::to_string)
        };
        print!(
            "{:<24} {:<8} {:>9} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {:<4}",
            figure.name,
            label("server"),
            label("endpoints"),
            figure.min,
            figure.median,
            figure.p99,
            figure.max,
            figure.unit
        );
        if let Some(gate) = figure.gate {
            let reached = if gate.reached { "" } else { "  missed" };
            print!(" {:.2}{reached}", gate.limit);
        }
        println!();
    }
}
