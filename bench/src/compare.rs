//! `cargo xtask bench compare`: what got faster or slower between two runs, and whether their spread lets one say so.

use std::{
    env, fmt,
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    number::shown,
    report::{Better, Figure, Machine, Raw, Report},
};

/// What got faster or slower between two runs of a benchmark, and whether their spread lets one say so
///
/// Compares each figure's median with that of the same name and labels, as a ratio with a 99 % interval from the samples.
/// Figures that were measured beside a yardstick are compared in yardsticks, so that a slower machine is not taken for slower
/// code. Exit status: 0 if nothing got worse beyond doubt, 1 if something did, 2 if the files can't be compared.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The earlier run's results (`--save`, or target/bench/BENCHMARK.json)
    old: PathBuf,
    /// The later run's
    new: PathBuf,
    /// Changes of less than this are taken for none
    #[arg(long, value_name = "PERCENT", default_value_t = 3.0)]
    least: f64,
    /// `json` adds one object as the last line
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

/// # Errors
/// A file can't be read, or they are of different benchmarks.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let old = Report::read(&args.old)?;
    let new = Report::read(&args.new)?;
    let comparison = Comparison::new(&old, &new, args.least / 100.0)?;
    let styled = stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    print!("{}", Printed(&comparison, styled));
    if args.output == "json" {
        println!("{}", serde_json::to_string(&comparison)?);
    }
    ensure!(!comparison.figures.is_empty(), "no figure is in both");
    Ok(if comparison.count(Verdict::Worse) > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// All that two runs say when they are held beside one another.
#[derive(Debug, Serialize)]
struct Comparison {
    benchmark: String,
    /// Why one should believe less of it.
    warnings: Vec<String>,
    figures: Vec<Compared>,
    only_old: Vec<String>,
    only_new: Vec<String>,
}

/// A figure that both runs have.
#[derive(Debug, Serialize)]
struct Compared {
    figure: String,
    unit: String,
    old: f64,
    new: f64,
    /// New by old: of medians, or of their yardsticks.
    ratio: Option<f64>,
    /// In which the ratio lies in 99 cases of 100, as far as the samples of one run tell.
    interval: Option<(f64, f64)>,
    in_yardsticks: bool,
    verdict: Verdict,
    /// The verdict in words.
    said: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Better,
    Worse,
    /// It changed, and nobody says which way is progress.
    Changed,
    /// If it changed, then by less than anybody minds.
    Same,
    /// The spread doesn't let one say.
    Unclear,
}

impl Comparison {
    /// # Errors
    /// They are of different benchmarks.
    fn new(old: &Report, new: &Report, least: f64) -> Result<Self> {
        ensure!(
            old.benchmark == new.benchmark,
            "these are results of different benchmarks, {} and {}: give two of the same",
            old.benchmark,
            new.benchmark
        );
        let has = |report: &Report, figure: &Figure| {
            report.results.iter().any(|other| is_same(other, figure))
        };
        let only = |here: &Report, there: &Report| {
            let here = here.results.iter();
            here.filter(|figure| !has(there, figure))
                .map(title)
                .collect()
        };
        let figures = old.results.iter().filter_map(|figure| {
            let later = new.results.iter().find(|other| is_same(other, figure))?;
            Some(Compared::new(figure, later, least))
        });
        Ok(Self {
            benchmark: old.benchmark.to_string(),
            warnings: warnings(old, new),
            figures: figures.collect(),
            only_old: only(old, new),
            only_new: only(new, old),
        })
    }

    fn count(&self, verdict: Verdict) -> usize {
        let figures = self.figures.iter();
        figures.filter(|figure| figure.verdict == verdict).count()
    }
}

/// Whether they are about the same thing.
fn is_same(one: &Figure, other: &Figure) -> bool {
    (&one.name, &one.labels, &one.unit) == (&other.name, &other.labels, &other.unit)
}

/// Name and labels.
fn title(figure: &Figure) -> String {
    let labels = figure.labels.iter();
    let labels = labels.map(|(name, label)| format!(" {name}={label}"));
    figure.name.to_string() + &labels.collect::<String>()
}

fn warnings(old: &Report, new: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for (which, report) in [("old", old), ("new", new)] {
        if report.commit.ends_with("-dirty") {
            warnings.push(format!(
                "the {which} run measured sources that are in no commit ({})",
                report.commit
            ));
        }
        if report.command.split(' ').any(|word| word == "--quick") {
            warnings.push(format!(
                "the {which} run is a smoke run (--quick): its samples are few"
            ));
        }
    }
    let (old_command, new_command) = (measured(&old.command), measured(&new.command));
    if old_command != new_command {
        warnings.push(format!("another command: {old_command} → {new_command}"));
    }
    type Of = fn(&Machine) -> String;
    let machine: [(_, Of); 7] = [
        ("kernel", |machine| machine.kernel.clone()),
        ("processor", |machine| machine.processor.clone()),
        ("number of processors", |machine| {
            machine.processors.to_string()
        }),
        ("memory", |machine| format!("{} MiB", machine.memory >> 20)),
        ("hypervisor", |machine| machine.hypervisor.to_string()),
        ("JIT setting", |machine| machine.jit.clone()),
        ("mitigations", |machine| {
            let all = machine.mitigations.iter();
            let all: Vec<_> = all
                .map(|(name, state)| format!("{name}: {state}"))
                .collect();
            all.join("; ")
        }),
    ];
    for (what, of) in machine {
        let (old, new) = (of(&old.machine), of(&new.machine));
        if old != new {
            warnings.push(format!("another {what}: {old} → {new}"));
        }
    }
    for (name, old) in &old.versions {
        // Peak's own is what is compared.
        if let Some(new) = new
            .versions
            .get(name)
            .filter(|new| *new != old && name != "peak")
        {
            warnings.push(format!("another version of {name}: {old} → {new}"));
        }
    }
    warnings
}

/// A command without what says where its results go.
fn measured(command: &str) -> String {
    let mut words = command.split(' ');
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "--save" | "--output") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

impl Compared {
    fn new(old: &Figure, new: &Figure, least: f64) -> Self {
        let yardsticks = old.yardsticks.zip(new.yardsticks);
        let yardsticks = yardsticks.filter(|(old, new)| old.median > 0.0 && new.median > 0.0);
        let of_medians = (old.median > 0.0 && new.median > 0.0).then(|| new.median / old.median);
        let ratio = match (of_medians, yardsticks) {
            (Some(_), Some((old, new))) => Some(new.median / old.median),
            (of_medians, _) => of_medians,
        };
        let interval = of_medians.zip(ratio).and_then(|(of_medians, ratio)| {
            let (low, high) = interval(old, new)?;
            // As wide as that of the times, about the ratio in yardsticks.
            Some((low * ratio / of_medians, high * ratio / of_medians))
        });
        let verdict = verdict(new.better, ratio, interval, least);
        Self {
            figure: title(old),
            unit: old.unit.to_string(),
            old: old.median,
            new: new.median,
            ratio,
            interval,
            in_yardsticks: ratio.is_some() && yardsticks.is_some(),
            verdict,
            said: said(verdict, ratio.unwrap_or(1.0), &old.unit),
        }
    }
}

fn verdict(
    better: Better,
    ratio: Option<f64>,
    interval: Option<(f64, f64)>,
    least: f64,
) -> Verdict {
    let (Some(ratio), Some((low, high))) = (ratio, interval) else {
        return Verdict::Unclear;
    };
    if 1.0 - least <= low && high <= 1.0 + least {
        Verdict::Same
    } else if low <= 1.0 && 1.0 <= high {
        Verdict::Unclear
    } else if (ratio - 1.0).abs() < least {
        Verdict::Same
    } else {
        match (better, ratio > 1.0) {
            (Better::None, _) => Verdict::Changed,
            (Better::Higher, true) | (Better::Lower, false) => Verdict::Better,
            (Better::Higher, false) | (Better::Lower, true) => Verdict::Worse,
        }
    }
}

/// What a change is called depends on what changed.
fn said(verdict: Verdict, ratio: f64, unit: &str) -> &'static str {
    let is_speed = matches!(unit, "ns" | "µs" | "us" | "ms" | "s")
        || unit.ends_with("/s")
        || unit.ends_with("-s");
    match verdict {
        Verdict::Better if is_speed => "faster",
        Verdict::Worse if is_speed => "slower",
        Verdict::Better | Verdict::Worse | Verdict::Changed if ratio < 1.0 => "less",
        Verdict::Better | Verdict::Worse | Verdict::Changed => "more",
        Verdict::Same => "same",
        Verdict::Unclear => "can't say",
    }
}

/// How likely the ratio is below its interval, and as likely above.
const OUTSIDE: f64 = 0.005;
/// OUTSIDE of a normal distribution's values are this many standard deviations below its mean.
const DEVIATIONS: f64 = 2.576;
/// A histogram doesn't tell in which order its samples came. They count as so many at most, for neighbours among millions of
/// replies are alike.
const HISTOGRAM: u64 = 500;
/// So many pairs, or fewer, are counted out.
const EXACT: usize = 400;

/// In which new by old lies in 99 cases of 100, whatever the samples' distribution: by the test of Mann and Whitney, as Hodges
/// and Lehmann make an interval of it. Of all ratios of a new sample to an old one, it leaves out as many of the least, and of the
/// greatest, as chance alone would seldom put there. Nothing if there are too few samples.
fn interval(old: &Figure, new: &Figure) -> Option<(f64, f64)> {
    // Counted, not measured: what the verifier or the compiler says of a program is the same each time.
    if [old, new]
        .iter()
        .all(|figure| figure.samples == 1 && figure.of == "loads")
    {
        let ratio = new.median / old.median;
        return Some((ratio, ratio));
    }
    let [(old, old_worth), (new, new_worth)] = [old, new].map(|figure| samples(&figure.raw));
    let left_out = left_out(old_worth, new_worth)?;
    let pairs = old.iter().flat_map(|&old| {
        // What isn't above nothing has no ratio.
        new.iter()
            .map(move |&new| if old > 0.0 { new / old } else { f64::INFINITY })
    });
    let mut ratios: Vec<_> = pairs.collect();
    let last = ratios.len() - 1;
    let at = (left_out * ratios.len() as f64) as usize;
    let mut nth = |at| *ratios.select_nth_unstable_by(at, f64::total_cmp).1;
    Some((nth(at), nth(last - at)))
}

/// The part of all pairs' ratios that is below the interval, of samples so many each.
fn left_out(old: usize, new: usize) -> Option<f64> {
    let pairs = old * new;
    let below = if pairs <= EXACT {
        let ways = ways(old, new);
        let all: f64 = ways.iter().sum();
        let mut sum = 0.0;
        let seldom = ways.iter().take_while(|&&ways| {
            sum += ways;
            sum / all <= OUTSIDE
        });
        // The interval begins with the last one of these.
        seldom.count().checked_sub(1)? as f64
    } else {
        let pairs = pairs as f64;
        let deviation = (pairs * (old + new + 1) as f64 / 12.0).sqrt();
        pairs / 2.0 - DEVIATIONS * deviation
    };
    (below >= 0.0).then(|| below / pairs as f64)
}

/// In how many ways 0, 1, 2, … of all pairs have the new sample below the old one, if any order of the samples is as likely as any
/// other: the coefficients of the Gaussian binomial.
fn ways(old: usize, new: usize) -> Vec<f64> {
    let mut ways = vec![0.0; old * new + 1];
    ways[0] = 1.0;
    for i in 1..=new {
        for pairs in (old + i..ways.len()).rev() {
            ways[pairs] -= ways[pairs - old - i];
        }
        for pairs in i..ways.len() {
            ways[pairs] += ways[pairs - i];
        }
    }
    ways
}

/// Samples, or what stands for those of a histogram; and how many independent ones they are worth.
fn samples(raw: &Raw) -> (Vec<f64>, usize) {
    match raw {
        Raw::Samples(samples) => (samples.clone(), independent(samples)),
        Raw::Histogram(buckets) => {
            let total: u64 = buckets.iter().map(|(_, count)| count).sum();
            let kept = total.min(HISTOGRAM);
            let mut buckets = buckets.iter();
            let mut reached = (0.0, 0);
            let quantile = |i: u64| {
                // In the middle of the i-th of equal parts.
                while reached.1 * kept * 2 <= (2 * i + 1) * total {
                    let Some((value, count)) = buckets.next() else {
                        break;
                    };
                    reached = (*value, reached.1 + count);
                }
                reached.0
            };
            ((0..kept).map(quantile).collect(), kept as usize)
        }
    }
}

/// How many independent samples these are worth. Where a neighbour comes and goes, samples one after the other are alike, and the
/// next only repeats what one has said. By the correlation between being above the median now and a while later.
fn independent(samples: &[f64]) -> usize {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(&median) = sorted.get(samples.len() / 2) else {
        return 0;
    };
    let sides = samples.iter().map(|sample| sample.total_cmp(&median) as i8);
    let sides: Vec<_> = sides.map(f64::from).collect();
    let count = samples.len() as f64;
    let noise = 2.0 / count.sqrt();
    let correlation = |lag: usize| {
        let pairs = sides.iter().zip(&sides[lag..]);
        pairs.map(|(now, later)| now * later).sum::<f64>() / count
    };
    let repeated: f64 = (1..samples.len() / 2)
        .map(correlation)
        .take_while(|&correlation| correlation > noise)
        .sum();
    (count / (1.0 + 2.0 * repeated)).round() as usize
}

/// A comparison as a table, with or without colours.
struct Printed<'c>(&'c Comparison, bool);

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(comparison, styled) = *self;
        let style = |code: &'static str| if styled { code } else { "" };
        let plain = style("\x1b[0m");
        for warning in &comparison.warnings {
            writeln!(f, "{}warning{plain}: {warning}", style("\x1b[1;33m"))?;
        }
        let titles = comparison.figures.iter().map(|figure| figure.figure.len());
        let width = titles.max().unwrap_or_default();
        writeln!(
            f,
            "{:<width$} {:>11} {:>11} {:<14} {:>8} {:>18}",
            "", "old", "new", "unit", "change", "99 % interval"
        )?;
        for figure in &comparison.figures {
            let colour = match figure.verdict {
                Verdict::Better => style("\x1b[32m"),
                Verdict::Worse => style("\x1b[31m"),
                Verdict::Changed => style("\x1b[33m"),
                Verdict::Same | Verdict::Unclear => style("\x1b[2m"),
            };
            let percent = |ratio: f64| {
                if ratio.is_finite() {
                    format!("{:+.1} %", (ratio - 1.0) * 100.0)
                } else {
                    "∞".to_owned()
                }
            };
            let change = figure.ratio.map_or("–".to_owned(), percent);
            let interval = figure.interval.map_or("–".to_owned(), |(low, high)| {
                format!("{} … {}", percent(low), percent(high))
            });
            writeln!(
                f,
                "{:<width$} {:>11} {:>11} {:<14} {change:>8} {interval:>18}  {colour}{}{plain}{}",
                figure.figure,
                shown(figure.old),
                shown(figure.new),
                figure.unit,
                figure.said,
                if figure.in_yardsticks {
                    " (in yardsticks)"
                } else {
                    ""
                },
            )?;
        }
        for (which, titles) in [("old", &comparison.only_old), ("new", &comparison.only_new)] {
            for title in titles {
                writeln!(f, "only in the {which} run: {title}")?;
            }
        }
        let counts = [
            (Verdict::Better, "better"),
            (Verdict::Worse, "worse"),
            (Verdict::Changed, "changed"),
            (Verdict::Same, "the same"),
            (Verdict::Unclear, "can't be told"),
        ];
        let counts = counts
            .map(|(verdict, name)| (comparison.count(verdict), name))
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"));
        let counts: Vec<_> = counts.collect();
        let of = comparison.figures.len();
        writeln!(
            f,
            "{of} figures of {} are in both: {}",
            comparison.benchmark,
            counts.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::report::{Label, Ratios, Samples};

    /// Samples about a value, as a machine with neighbours gives them: mostly close above it, some far.
    fn samples(value: f64, count: usize, seed: u64) -> Samples {
        let mut random = Rng::with_seed(seed);
        let around = (0..count).map(|_| {
            let noise = random.f64() * 0.1 + if random.u8(..) < 20 { 0.8 } else { 0.0 };
            value * (1.0 + noise)
        });
        Samples(around.collect())
    }

    fn run(figures: &[(&'static str, Better, &'static str, Samples)]) -> Report {
        let mut report = Report::new("kernel");
        for (name, better, unit, samples) in figures {
            let labels = [("names", Label::from(1u32))];
            report.add(*name, &labels, unit, *better, "batches", samples.clone());
        }
        report.commit = "0123456789ab".into();
        report.command = "cargo xtask bench kernel".into();
        report
    }

    fn compared(old: &Report, new: &Report) -> Comparison {
        Comparison::new(old, new, 0.03).expect("of one benchmark")
    }

    #[test]
    fn a_real_change_is_told_with_its_direction() {
        let old = run(&[
            ("hit", Better::Lower, "ns", samples(100.0, 150, 1)),
            ("rate", Better::Higher, "1/s", samples(100.0, 150, 2)),
            ("resident", Better::Lower, "MB", samples(100.0, 150, 3)),
            ("mix", Better::None, "%", samples(100.0, 150, 4)),
        ]);
        let new = run(&[
            ("hit", Better::Lower, "ns", samples(80.0, 150, 5)),
            ("rate", Better::Higher, "1/s", samples(80.0, 150, 6)),
            ("resident", Better::Lower, "MB", samples(120.0, 150, 7)),
            ("mix", Better::None, "%", samples(120.0, 150, 8)),
        ]);
        let comparison = compared(&old, &new);
        let said: Vec<_> = comparison
            .figures
            .iter()
            .map(|figure| (figure.verdict, figure.said))
            .collect();
        assert_eq!(
            said,
            [
                (Verdict::Better, "faster"),
                (Verdict::Worse, "slower"),
                (Verdict::Worse, "more"),
                (Verdict::Changed, "more"),
            ]
        );
        let (low, high) = comparison.figures[0].interval.expect("enough samples");
        assert!(
            0.75 < low && low < 0.8 && 0.8 < high && high < 0.85,
            "{low} {high}"
        );
        assert_eq!(comparison.warnings, [""; 0]);
    }

    #[test]
    fn noise_is_no_change() {
        let mut wrong = 0;
        for seed in 0..100 {
            let old = run(&[("hit", Better::Lower, "ns", samples(100.0, 40, 2 * seed))]);
            let new = run(&[("hit", Better::Lower, "ns", samples(100.0, 40, 2 * seed + 1))]);
            let comparison = Comparison::new(&old, &new, 0.0).expect("of one benchmark");
            wrong += comparison.count(Verdict::Better) + comparison.count(Verdict::Worse);
        }
        // 99 of 100 intervals have the truth in them.
        assert!(wrong <= 4, "{wrong} of 100");
    }

    #[test]
    fn a_neighbour_who_stays_for_a_while_is_no_change() {
        // Each run has a slow half, of another length.
        let half_slow = |slow: usize, seed| {
            let Samples(mut all) = samples(100.0, 100, seed);
            all.iter_mut().take(slow).for_each(|sample| *sample *= 1.3);
            run(&[("hit", Better::Lower, "ns", Samples(all))])
        };
        let comparison = compared(&half_slow(40, 1), &half_slow(60, 2));
        assert_eq!(
            comparison.figures[0].verdict,
            Verdict::Unclear,
            "{comparison:?}"
        );
        assert!(comparison.figures[0].ratio > Some(1.1));
    }

    #[test]
    fn few_samples_say_nothing_and_counts_say_all() {
        let few = |count: u32, value: f64| {
            let samples = (0..count).map(|i| value * (1.0 + f64::from(i) / 100.0));
            run(&[("start", Better::Lower, "s", Samples(samples.collect()))])
        };
        let comparison = compared(&few(4, 1.0), &few(4, 2.0));
        assert_eq!(comparison.figures[0].verdict, Verdict::Unclear);
        assert_eq!(comparison.figures[0].interval, None);
        // Of the 252 orders of five and five, one has all the new ones above the old ones.
        let comparison = compared(&few(5, 1.0), &few(5, 2.0));
        assert_eq!(comparison.figures[0].verdict, Verdict::Worse);
        let comparison = compared(&few(5, 1.0), &few(5, 1.03));
        assert_eq!(comparison.figures[0].verdict, Verdict::Unclear);

        let counted = |count| {
            let mut report = Report::new("kernel");
            let samples = Samples(vec![count]);
            report.add(
                "verified",
                &[],
                "instructions",
                Better::Lower,
                "loads",
                samples,
            );
            report
        };
        let comparison = compared(&counted(1000.0), &counted(900.0));
        assert_eq!(comparison.figures[0].verdict, Verdict::Better);
        assert_eq!(comparison.figures[0].said, "less");
    }

    #[test]
    fn a_slower_machine_is_not_slower_code() {
        let with = |value, yardsticks, seed| {
            let mut report = run(&[("hit", Better::Lower, "ns", samples(value, 150, seed))]);
            report.results[0].yardsticks = Some(Ratios {
                min: yardsticks,
                median: yardsticks,
            });
            report
        };
        let comparison = compared(&with(100.0, 1.5, 1), &with(150.0, 1.5, 2));
        let [figure] = &*comparison.figures else {
            panic!("one figure, not {comparison:?}");
        };
        assert_eq!((figure.in_yardsticks, figure.ratio), (true, Some(1.0)));
        assert_ne!(figure.verdict, Verdict::Worse);
        let comparison = compared(&with(100.0, 1.5, 1), &with(100.0, 1.8, 2));
        assert_eq!(comparison.figures[0].verdict, Verdict::Worse);
    }

    #[test]
    fn orders_are_counted() {
        // Partitions of 0 to 5 into at most four parts of at most four.
        assert_eq!(ways(4, 4)[..6], [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]);
        assert_eq!(ways(4, 4).iter().sum::<f64>(), 70.0);
        let (exact, about) = (left_out(20, 20), left_out(21, 20));
        let (exact, about) = (exact.expect("enough"), about.expect("enough"));
        assert!((exact - about).abs() < 0.02, "{exact} {about}");
    }

    #[test]
    fn histograms_are_compared_too() {
        let with = |from: u64| {
            let mut times = hdrhistogram::Histogram::<u64>::new(3).expect("three digits");
            for time in 0..10_000 {
                times.record(from + time).expect("in its range");
            }
            let mut report = Report::new("wire");
            report.add_latency("latency", &[], "µs", &times, 1e3);
            report
        };
        let comparison = compared(&with(20_000), &with(40_000));
        assert_eq!(comparison.figures[0].verdict, Verdict::Worse);
        let (low, high) = comparison.figures[0].interval.expect("enough replies");
        assert!(1.7 < low && high < 1.9, "{low} {high}");
        assert_eq!(
            compared(&with(20_000), &with(20_000)).figures[0].verdict,
            Verdict::Same
        );
    }

    #[test]
    fn what_only_one_has_is_named() {
        let old = run(&[("gone", Better::Lower, "ns", samples(1.0, 20, 1))]);
        let mut new = run(&[("come", Better::Lower, "ns", samples(1.0, 20, 1))]);
        new.commit = "0123456789ab-dirty".into();
        new.machine.kernel = "7.0".into();
        new.command += " --save new.json --names 1";
        let comparison = compared(&old, &new);
        assert_eq!(comparison.only_old, ["gone names=1"]);
        assert_eq!(comparison.only_new, ["come names=1"]);
        assert_eq!(comparison.warnings.len(), 3, "{:?}", comparison.warnings);
        let printed = Printed(&comparison, false).to_string();
        assert!(
            printed.contains("only in the old run: gone names=1"),
            "{printed}"
        );
        assert!(
            printed.contains("another kernel") && printed.contains("-dirty"),
            "{printed}"
        );
        assert!(
            printed.contains(
                "another command: cargo xtask bench kernel → cargo xtask bench kernel --names 1"
            ),
            "{printed}"
        );
        assert!(!printed.contains('\x1b'), "{printed}");
        assert!(Printed(&comparison, true).to_string().contains('\x1b'));
    }

    #[test]
    fn results_of_different_benchmarks_are_refused() {
        let error = Comparison::new(&Report::new("kernel"), &Report::new("wire"), 0.03);
        let error = error.expect_err("they differ").to_string();
        assert!(error.contains("kernel and wire"), "{error}");
    }
}
