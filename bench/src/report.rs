//! What every benchmark says: one JSON object, or a table.

use std::{collections::BTreeMap, env, fs};

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
    pub(crate) labels: BTreeMap<&'static str, u64>,
    pub(crate) unit: &'static str,
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) samples: usize,
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
            command: format!(
                "cargo xtask bench {}",
                env::args().skip(1).collect::<Vec<_>>().join(" ")
            ),
            results: Vec::new(),
        }
    }

    pub(crate) fn add(
        &mut self,
        name: &'static str,
        labels: &[(&'static str, u64)],
        unit: &'static str,
        samples: &Samples,
    ) {
        self.results.push(Figure {
            name,
            labels: labels.iter().copied().collect(),
            unit,
            min: samples.quantile(0.0),
            median: samples.median(),
            p99: samples.quantile(0.99),
            samples: samples.0.len(),
        });
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

/// Batch means, in order of size.
#[derive(Clone, Debug)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// # Panics
    /// If there are none.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "there are samples");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Each less `cost`.
    pub(crate) fn above(&self, cost: f64) -> Self {
        Self(self.0.iter().map(|value| value - cost).collect())
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        let last = self.0.len() - 1;
        self.0[(last as f64 * quantile).round() as usize]
    }
}
