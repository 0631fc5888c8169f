//! `cargo xtask bench scale`: what it costs to know many names, and whether knowing more makes answers dearer.

mod load;

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    kernel::{
        cases::{ANSWERS, Case, FOREIGN_NAME, PLAIN},
        measure::{Bench, Effort, Measured, Object},
        print::print,
        table::Services,
        trampoline::Trampoline,
    },
    progress::Progress,
    report::{Better, Gate, Label, Output, Report, Samples},
};

/// What a thousand to a million names cost, with an endpoint each
///
/// Hits and misses as `cargo xtask bench kernel` times them, kernel memory, the time to tell the kernel all names, and to
/// change one of them.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The benchmark's build of the XDP program
    #[arg(long, hide = true)]
    object: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// How many names there are.
const SIZES: &[u32] = &[1_000, 10_000, 100_000, 1_000_000];
const QUICK_SIZES: &[u32] = &[200, 2_000];

/// How many times as much a hot hit may cost among more names as among the fewest.
const GROWTH: f64 = 1.3;

/// What is run over each table.
const HOT: Case = Case {
    name: "hot_hit",
    ..PLAIN
};
const HIT: Case = Case {
    name: "hit",
    ..PLAIN
};

/// Names that are not there: in the zone, and elsewhere.
fn misses() -> impl Iterator<Item = Case> {
    let nxdomain = ANSWERS.iter().find(|case| case.name == "nxdomain");
    let with = |answer, case: Case| Case {
        name: "miss",
        label: Some(("answer", answer)),
        ..case
    };
    let nxdomain = nxdomain.map(|case| with("nxdomain", *case));
    nxdomain.into_iter().chain([with("pass", FOREIGN_NAME)])
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let object = Object::read(&args.object)?;
    let quick = args.output.quick;
    let sizes = if quick { QUICK_SIZES } else { SIZES };
    let mut report = Report::new("scale");
    let costs = |names: u32| f64::from(names) + 50_000.0;
    let total: f64 = sizes.iter().map(|&names| 2.0 * costs(names)).sum();
    let progress = Progress::new(total);
    for &names in sizes {
        progress.say(&format!("{names} names: memory, loading, changes"));
        load::measure(&mut report, names, quick)?;
        progress.done(costs(names));
    }
    packets(&mut report, &object, sizes, quick, |names, what| {
        progress.say(&format!("{names} names: {what}"));
        progress.done(costs(names) / 2.0);
    })?;
    print(&report);
    args.output.finish(&report)
}

/// What packets cost. All tables are there at once, and take turns: a machine has better and worse minutes.
fn packets(
    report: &mut Report,
    object: &Object,
    sizes: &[u32],
    quick: bool,
    say: impl Fn(u32, &str),
) -> Result<()> {
    let trampoline = Trampoline::new()?;
    let mut tables = Vec::new();
    for &names in sizes {
        say(names, "loading the program, and a table");
        let snapshot = Services::V6.snapshot(names);
        let bench = Bench::new(&trampoline, object, &[PLAIN], names, &snapshot)?;
        tables.push((names, bench, Measured::new(HOT, 1)?));
    }
    let effort = if quick { Effort::QUICK } else { Effort::WHOLE };
    for _ in 0..effort.rounds {
        for (_, bench, hot) in &mut tables {
            bench.round(hot, effort.runs)?;
        }
    }
    let mut fewest: Option<(f64, Samples)> = None;
    for (names, bench, hot) in &mut tables {
        let labels = [("names", (*names).into())];
        add(report, hot, &labels);
        let (least, all) = (hot.least(), hot.costs());
        let (first, base) = fewest.get_or_insert_with(|| (least, all.clone()));
        let ratios = all.0.iter().zip(&base.0).map(|(cost, base)| cost / base);
        let figure = report.add(
            "hot_growth",
            &labels,
            "x",
            Better::Lower,
            "batches",
            Samples(ratios.collect()),
        );
        figure.gate = Some(Gate::at_most(least / *first, GROWTH));
        figure.note = Some(
            "a hot hit beside one among the fewest names; the gate is about the least times".into(),
        );

        say(*names, "hits and misses at random");
        let cases = [HIT].into_iter().chain(misses());
        let mut cases: Vec<_> = cases
            .map(|case| Measured::new(case, *names))
            .collect::<Result<_>>()?;
        let effort = effort.of(*names);
        for _ in 0..effort.rounds {
            for measured in &mut cases {
                bench.round(measured, effort.runs)?;
            }
        }
        for measured in &cases {
            let mut labels = labels.to_vec();
            labels.extend(
                measured
                    .case
                    .label
                    .map(|(label, value)| (label, value.into())),
            );
            add(report, measured, &labels);
        }
    }
    Ok(())
}

fn add(report: &mut Report, measured: &Measured, labels: &[(&'static str, Label)]) {
    let name = measured.case.name;
    let figure = report.add(
        name,
        labels,
        "ns",
        Better::Lower,
        "batches",
        measured.cost(),
    );
    figure.yardsticks = Some(measured.ratios());
}
