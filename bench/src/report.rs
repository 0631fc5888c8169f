//! What every benchmark says: one JSON object, or a table.

use std::{collections::BTreeMap, env, fmt, fs};

use serde::Serialize;

/// The outcome of a benchmark.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) benchmark: &'static str,
    pub(crate) machine: Machine,
    pub(crate) command: String,
    pub(crate) results: Vec<Figure>,
}

/// One figure.
#[derive(Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) labels: BTreeMap<&'static str, Label>,
    pub(crate) unit: &'static str,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) samples: usize,
    /// What it may be, if somebody minds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gate: Option<Gate>,
    /// How many times what the yardstick cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) yardsticks: Option<Ratios>,
}

/// What a figure is about.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Label {
    Number(u64),
    Text(&'static str),
}

impl From<u32> for Label {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<&'static str> for Label {
    fn from(text: &'static str) -> Self {
        Self::Text(text)
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

/// What one of a figure's numbers may be, and whether it is no more.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Gate {
    pub(crate) limit: f64,
    pub(crate) reached: bool,
}

impl Gate {
    pub(crate) fn new(value: f64, limit: f64) -> Self {
        Self {
            limit,
            reached: value <= limit,
        }
    }
}

/// How many times what something else cost that was measured in the same rounds.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Ratios {
    /// The least of the one by the least of the other: as if nobody else had been on the machine.
    pub(crate) min: f64,
    /// The median of the ratios by round.
    pub(crate) median: f64,
}

/// What it ran on.
#[derive(Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    mitigations: BTreeMap<String, String>,
    jit: String,
}

impl Report {
    pub(crate) fn new(benchmark: &'static str) -> Self {
        Self {
            benchmark,
            machine: Machine::this(),
            command: command(),
            results: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, Label)],
        unit: &'static str,
        summary: Summary,
    ) -> &mut Figure {
        let Summary {
            min,
            median,
            p99,
            max,
            samples,
        } = summary;
        self.results.push_mut(Figure {
            name,
            labels: labels.iter().cloned().collect(),
            unit,
            min,
            median,
            p99,
            max,
            samples,
            gate: None,
            yardsticks: None,
        })
    }
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

impl Machine {
    fn this() -> Self {
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let cpuinfo = read("/proc/cpuinfo");
        let processor = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
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
            processor: processor.to_owned(),
            processors: std::thread::available_parallelism().map_or(1, Into::into),
            mitigations,
            jit: read("/proc/sys/net/core/bpf_jit_enable"),
        }
    }
}

/// What was measured, one after the other: where programs are timed, means of batches, each in a round of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

/// The least, the middle, nearly the greatest and the greatest of samples.
pub(crate) struct Summary {
    min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    samples: usize,
}

impl Samples {
    pub(crate) fn summary(&self) -> Summary {
        Summary {
            min: self.quantile(0.0),
            median: self.quantile(0.5),
            p99: self.quantile(0.99),
            max: self.quantile(1.0),
            samples: self.0.len(),
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
    fn quantile(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        sorted[(last as f64 * quantile).round() as usize]
    }
}
