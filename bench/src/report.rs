//! What every benchmark says: one JSON object with every sample in it, or a table.
//!
//! The types are read as well as written: the report's page and `compare` begin with files that benchmarks have left.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Of the JSON object; another number where old files can't be read any more.
pub(crate) const FORMAT: u32 = 1;

/// What all benchmarks can be told.
#[derive(clap::Args)]
pub(crate) struct Output {
    /// Few samples: does it run at all?
    #[arg(long)]
    pub(crate) quick: bool,
    /// `json` adds one object as the last line
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    output: String,
    /// Where the results are kept, with every sample [default: target/bench/BENCHMARK.json]
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

impl Output {
    /// Keeps the results, and prints them if they are wanted.
    ///
    /// # Errors
    /// The file can't be written.
    pub(crate) fn finish(&self, report: &Report) -> Result<()> {
        let file = match &self.save {
            Some(file) => file.clone(),
            None => self.default_file(&report.benchmark)?,
        };
        report.save(&file)?;
        eprintln!("every sample is in {}", file.display());
        if self.output == "json" {
            println!("{}", serde_json::to_string(report)?);
        }
        Ok(())
    }

    /// Beside the profile's folder that this program is in. Figures of a smoke run never take a measurement's place.
    fn default_file(&self, benchmark: &str) -> Result<PathBuf> {
        let program = env::current_exe().context("this program has no path")?;
        let target = program.ancestors().nth(2).context("it is in target/")?;
        let folder = if self.quick { "bench/quick" } else { "bench" };
        Ok(target.join(folder).join(format!("{benchmark}.json")))
    }
}

/// The outcome of a benchmark.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    /// [`FORMAT`].
    pub(crate) format: u32,
    pub(crate) benchmark: Cow<'static, str>,
    /// When it began, as RFC 3339 has it, in UTC.
    pub(crate) time: String,
    /// The commit that was measured; `-dirty` if the sources were not quite it.
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// Of whatever took part, by name.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) results: Vec<Figure>,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: Cow<'static, str>,
    pub(crate) labels: BTreeMap<Cow<'static, str>, Label>,
    pub(crate) unit: Cow<'static, str>,
    pub(crate) better: Better,
    /// What one sample is of: "batches", "rounds", "starts", …
    pub(crate) of: Cow<'static, str>,
    pub(crate) samples: u64,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) p999: Option<f64>,
    pub(crate) max: f64,
    /// Between the first and the third quartile.
    pub(crate) spread: f64,
    #[serde(flatten)]
    pub(crate) raw: Raw,
    /// What it may be, if somebody minds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gate: Option<Gate>,
    /// What it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) aim: Option<Gate>,
    /// How many times what the yardstick cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) yardsticks: Option<Ratios>,
    /// What a reader should know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) note: Option<Cow<'static, str>>,
}

/// Which way is progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
    /// It describes, and is nobody's aim.
    None,
}

/// All that was measured for a figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Raw {
    /// One after the other; where a cost was subtracted, the differences.
    #[serde(rename = "raw")]
    Samples(Vec<f64>),
    /// Highest value of a bucket, and how many were in it: for millions of samples.
    #[serde(rename = "histogram")]
    Histogram(Vec<(f64, u64)>),
}

/// What a figure is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(untagged)]
pub(crate) enum Label {
    Number(u64),
    Text(Cow<'static, str>),
}

impl From<u32> for Label {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Label {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&'static str> for Label {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Label {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// What one of a figure's numbers may be, and whether it is so.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Gate {
    pub(crate) limit: f64,
    pub(crate) reached: bool,
}

impl Gate {
    pub(crate) fn at_most(value: f64, limit: f64) -> Self {
        Self {
            limit,
            reached: value <= limit,
        }
    }

    #[allow(dead_code, reason = "for rates")]
    pub(crate) fn at_least(value: f64, limit: f64) -> Self {
        Self {
            limit,
            reached: value >= limit,
        }
    }
}

/// How many times what something else cost that was measured in the same rounds.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Ratios {
    /// The least of the one by the least of the other: as if nobody else had been on the machine.
    pub(crate) min: f64,
    /// The median of the ratios by round.
    pub(crate) median: f64,
}

/// What it ran on.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    /// In bytes.
    pub(crate) memory: u64,
    /// Whether the processor says that it is a virtual one.
    pub(crate) hypervisor: bool,
    /// Of the processor's vulnerabilities, those that concern it.
    pub(crate) mitigations: BTreeMap<String, String>,
    /// `net.core.bpf_jit_enable`.
    pub(crate) jit: String,
}

impl Report {
    pub(crate) fn new(benchmark: &'static str) -> Self {
        let peak = env!("CARGO_PKG_VERSION").to_owned();
        let rustc = env!("RUSTC_VERSION").to_owned();
        Self {
            format: FORMAT,
            benchmark: benchmark.into(),
            time: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            commit: commit(),
            command: command(),
            machine: Machine::this(),
            versions: [("peak".to_owned(), peak), ("rustc".to_owned(), rustc)].into(),
            results: Vec::new(),
        }
    }

    /// Reads what a benchmark has left.
    ///
    /// # Errors
    /// The file can't be read, or is no such report.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: Option<u32>,
        }
        let shown = file.display();
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let Format { format } =
            serde_json::from_str(&text).with_context(|| format!("{shown} is not a report"))?;
        ensure!(
            format == Some(FORMAT),
            "{shown} has format {}, and this program reads {FORMAT}: measure again, or use the program that wrote it",
            format.map_or("none".to_owned(), |format| format.to_string()),
        );
        serde_json::from_str(&text).with_context(|| format!("{shown} is not a whole report"))
    }

    fn save(&self, file: &Path) -> Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(file, serde_json::to_string(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Tells the version of something that took part.
    #[allow(dead_code, reason = "for servers")]
    pub(crate) fn version(&mut self, of: impl Into<String>, version: impl Into<String>) {
        self.versions.insert(of.into(), version.into());
    }

    /// Adds a figure; `of` says what one of the samples is.
    pub(crate) fn add(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        labels: &[(&'static str, Label)],
        unit: &'static str,
        better: Better,
        of: &'static str,
        summary: impl Into<Summary>,
    ) -> &mut Figure {
        let Summary {
            min,
            median,
            p99,
            max,
            spread,
            raw,
        } = summary.into();
        self.results.push_mut(Figure {
            name: name.into(),
            labels: labels
                .iter()
                .map(|(name, label)| ((*name).into(), label.clone()))
                .collect(),
            unit: unit.into(),
            better,
            of: of.into(),
            samples: raw.len() as u64,
            min: rounded(min),
            median: rounded(median),
            p99: rounded(p99),
            p999: None,
            max: rounded(max),
            spread: rounded(spread),
            raw: Raw::Samples(raw.into_iter().map(rounded).collect()),
            gate: None,
            aim: None,
            yardsticks: None,
            note: None,
        })
    }

    /// Adds the times that a great many replies took. A unit of the figure is `scale` units of the histogram.
    #[allow(dead_code, reason = "for traffic")]
    pub(crate) fn add_latency(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        labels: &[(&'static str, Label)],
        unit: &'static str,
        times: &Histogram<u64>,
        scale: f64,
    ) -> &mut Figure {
        let quantile = |quantile| times.value_at_quantile(quantile) as f64 / scale;
        let summary = Summary {
            min: times.min() as f64 / scale,
            median: quantile(0.5),
            p99: quantile(0.99),
            max: times.max() as f64 / scale,
            spread: quantile(0.75) - quantile(0.25),
            raw: Vec::new(),
        };
        let figure = self.add(name, labels, unit, Better::Lower, "replies", summary);
        figure.samples = times.len();
        figure.p999 = Some(rounded(quantile(0.999)));
        let buckets = times.iter_recorded().map(|bucket| {
            let value = bucket.value_iterated_to() as f64 / scale;
            (rounded(value), bucket.count_at_value())
        });
        figure.raw = Raw::Histogram(buckets.collect());
        figure
    }
}

/// To six digits: more of a sample are noise.
fn rounded(sample: f64) -> f64 {
    format!("{sample:.5e}").parse().unwrap_or(sample)
}

/// What the user typed: without what `cargo xtask` added.
fn command() -> String {
    let mut words = vec!["cargo xtask bench".to_owned()];
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--object" {
            arguments.next();
        } else {
            words.push(argument);
        }
    }
    words.join(" ")
}

/// The commit that the sources are of, as far as git can tell.
fn commit() -> String {
    let described = Command::new("git")
        // Root measures, and the sources are somebody else's.
        .args(["-c", "safe.directory=*", "-C", env!("CARGO_MANIFEST_DIR")])
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ])
        .output();
    match described {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let line = |key: &str| {
            cpuinfo
                .lines()
                .find_map(|line| Some(line.strip_prefix(key)?.split_once(": ")?.1))
        };
        let mitigations = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, read(&entry.path().to_string_lossy()))
            })
            .filter(|(_, state)| state != "Not affected")
            .collect();
        Self {
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            processor: line("model name").unwrap_or("unknown").to_owned(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            memory: {
                let system = rustix::system::sysinfo();
                system.totalram * u64::from(system.mem_unit)
            },
            hypervisor: line("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            mitigations,
            jit: read("/proc/sys/net/core/bpf_jit_enable"),
        }
    }
}

/// What was measured, one after the other: where programs are timed, means of batches, each in a round of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

/// The least, the middle, nearly the greatest and the greatest of samples, and the samples.
pub(crate) struct Summary {
    min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    spread: f64,
    raw: Vec<f64>,
}

impl From<Samples> for Summary {
    fn from(samples: Samples) -> Self {
        samples.summary()
    }
}

impl Samples {
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            min: self.quantile(0.0),
            median: self.quantile(0.5),
            p99: self.quantile(0.99),
            max: self.quantile(1.0),
            spread: self.quantile(0.75) - self.quantile(0.25),
            raw: self.0.clone(),
        }
    }

    /// How many times `unit` this is, without `cost` and `unit_cost`, all measured in the same rounds.
    pub(crate) fn in_units_of(&self, cost: &Self, unit: &Self, unit_cost: &Self) -> Ratios {
        let differences = self.0.iter().zip(&cost.0).map(|(whole, cost)| whole - cost);
        let units = unit.0.iter().zip(&unit_cost.0);
        let units = units.map(|(whole, cost)| whole - cost);
        let ratios = differences.zip(units).map(|(time, unit)| time / unit);
        Ratios {
            min: self.without(cost).min / unit.without(unit_cost).min,
            median: Self(ratios.collect()).quantile(0.5),
        }
    }

    /// Without a cost that was measured in the same rounds. Median and p99 are those of the differences by round: what slows
    /// a machine down for a while slows down both. The least is the difference of the least.
    pub(crate) fn without(&self, cost: &Self) -> Summary {
        let pairs = self.0.iter().zip(&cost.0);
        let differences = Self(pairs.map(|(whole, cost)| whole - cost).collect());
        Summary {
            min: self.quantile(0.0) - cost.quantile(0.0),
            ..differences.summary()
        }
    }

    /// # Panics
    /// If there are no samples.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        sorted[(last as f64 * quantile).round() as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() -> Result<()> {
        let mut report = Report::new("kernel");
        let samples = Samples((1..=100).map(f64::from).collect());
        let labels = [("names", 16u32.into()), ("server", "peak".into())];
        let figure = report.add("aaaa_hit", &labels, "ns", Better::Lower, "batches", samples);
        figure.gate = Some(Gate::at_most(51.0, 50.0));
        let mut times = Histogram::<u64>::new(3)?;
        for time in 1..=1000 {
            times.record(time * 1000)?;
        }
        report.add_latency("latency", &labels, "µs", &times, 1e3);

        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a/b.json");
        report.save(&file)?;
        let read = Report::read(&file)?;
        assert!(serde_json::to_value(&read)? == serde_json::to_value(&report)?);

        let [hit, latency] = &*read.results else {
            panic!("two figures, not {:?}", read.results);
        };
        assert_eq!(
            (hit.min, hit.median, hit.p99, hit.max),
            (1.0, 51.0, 99.0, 100.0)
        );
        assert_eq!((hit.samples, hit.spread), (100, 49.0));
        assert!(hit.gate.is_some_and(|gate| !gate.reached));
        assert!(matches!(&hit.raw, Raw::Samples(raw) if raw.len() == 100));
        assert_eq!(latency.samples, 1000);
        assert!(
            (latency.median - 500.0).abs() < 1.0,
            "{} µs",
            latency.median
        );
        assert!(latency.p999 > Some(latency.p99));
        let Raw::Histogram(buckets) = &latency.raw else {
            panic!("a histogram");
        };
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 1000);
        Ok(())
    }

    #[test]
    fn other_files_are_refused_with_what_to_do() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("x.json");
        for (text, wanted) in [
            ("{", "is not a report"),
            ("{}", "has format none"),
            (r#"{"format":7}"#, "has format 7, and this program reads 1"),
            (r#"{"format":1}"#, "is not a whole report"),
        ] {
            fs::write(&file, text)?;
            let error = format!("{:#}", Report::read(&file).expect_err(text));
            assert!(error.contains(wanted), "{error}");
            assert!(error.contains("x.json"), "{error}");
        }
        Ok(())
    }

    #[test]
    fn costs_are_subtracted_by_round() {
        let whole = Samples(vec![10.0, 110.0, 12.0]);
        let cost = Samples(vec![4.0, 100.0, 5.0]);
        let summary = whole.without(&cost);
        assert_eq!((summary.min, summary.median), (6.0, 7.0));
        assert_eq!(summary.raw, [6.0, 10.0, 7.0]);
    }
}
