//! Kernel memory, and the time that it takes to write it.

use std::{
    process,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, ensure};
use peak_userspace::{
    dataplane::{
        compile::Table,
        kernel::{GracePeriods, KernelMemory},
        loader::{Kernel, LoadOptions, Program},
        table::Writer,
    },
    snapshot::{Batch, ServiceKey, ServiceRecords, Snapshot},
};

use crate::{
    kernel::table::{Services, v6},
    propagation::kernel_memory,
    report::{Better, Gate, Label, Report, Samples},
};

/// Bytes of kernel memory that a name and an address may take.
const A_NAME: f64 = 128.0;
const AN_ADDRESS: f64 = 16.0;
/// How many addresses a name has where there are many.
const MANY: u16 = 16;
/// Changes between two grace periods, for which the agent waits in the background.
const CHANGES_AT_ONCE: u32 = 50;

/// How often all is told anew, and how many changes there are.
const fn effort(names: u32, quick: bool) -> (usize, u32) {
    match (quick, names) {
        (true, _) => (1, 100),
        (false, 0..500_000) => (5, 1_000),
        (false, _) => (3, 1_000),
    }
}

/// Measures tables of so many names with an address each, and of as many addresses in sets.
pub(super) fn measure(report: &mut Report, names: u32, quick: bool) -> Result<()> {
    let (loads, changes) = effort(names, quick);
    let labels: [(_, Label); 1] = [("names", names.into())];
    let mut times: [Samples; 3] = Default::default();
    let mut bytes = 0;
    for round in 0..loads {
        let mut kernel = Loaded::new()?;
        let batch = Services::V6.batch(names);
        let begin = Instant::now();
        let snapshot = Services::V6.snapshot_of(batch);
        let known = begin.elapsed();
        kernel.load(&snapshot)?;
        let loaded = begin.elapsed();
        for (samples, time) in times.iter_mut().zip([loaded, known, loaded - known]) {
            samples.0.push(time.as_secs_f64() * 1e3);
        }
        if round + 1 == loads {
            bytes = kernel.bytes()?;
            changes_of(report, &labels, &mut kernel, snapshot, names, changes)?;
        }
    }
    for (name, samples) in ["load", "load_snapshot", "load_table"]
        .into_iter()
        .zip(times)
    {
        report.add(name, &labels, "ms", Better::Lower, "loads", samples);
    }
    memory(report, names, names, bytes);
    let per_name = bytes as f64 / f64::from(names);
    let figure = report.add(
        "memory_per_name",
        &labels,
        "bytes",
        Better::Lower,
        "loads",
        Samples(vec![per_name]),
    );
    figure.gate = Some(Gate::at_most(per_name, A_NAME + AN_ADDRESS));
    figure.note = Some("with its address, and a share of all maps of fixed size: of an index and a heap of a megabyte each, at the least".into());

    // As many addresses, of fewer names.
    let sets = names / u32::from(MANY);
    let in_sets = |services: Services| -> Result<u64> {
        let mut kernel = Loaded::new()?;
        kernel.load(&services.snapshot(sets))?;
        kernel.bytes()
    };
    let [few, many] = [Services::Several(1), Services::Several(1 + MANY)];
    let (few, many) = (in_sets(few)?, in_sets(many)?);
    let addresses = sets * u32::from(1 + MANY);
    memory(report, sets, addresses, many);
    let added = f64::from(sets * u32::from(MANY));
    let figure = report.add(
        "memory_per_address",
        &[("names", sets.into()), ("endpoints", addresses.into())],
        "bytes",
        Better::Lower,
        "loads",
        Samples(vec![(many - few) as f64 / added]),
    );
    figure.note = Some(
        "by what 16 more addresses a name add to the kernel's memory, which comes in megabytes"
            .into(),
    );
    Ok(())
}

/// Adds what a table takes in all, with the gate for that.
fn memory(report: &mut Report, names: u32, addresses: u32, bytes: u64) {
    let labels = [("names", names.into()), ("endpoints", addresses.into())];
    let samples = Samples(vec![bytes as f64]);
    let figure = report.add("memory", &labels, "bytes", Better::Lower, "loads", samples);
    let limit = A_NAME * f64::from(names) + AN_ADDRESS * f64::from(addresses);
    figure.gate = Some(Gate::at_most(bytes as f64, limit));
}

/// What it takes to change a name's one address, snapshot and table.
fn changes_of(
    report: &mut Report,
    labels: &[(&'static str, Label)],
    kernel: &mut Loaded,
    mut snapshot: Snapshot,
    names: u32,
    changes: u32,
) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut times: [Samples; 3] = Default::default();
    for change in 0..changes {
        let service = random.u32(0..names);
        let records = ServiceRecords {
            addresses: [v6(service, 2 + change as u16)].into_iter().collect(),
            ..ServiceRecords::default()
        };
        let key: ServiceKey = Services::V6.key(service);
        let batch = Batch::from(vec![(key, Some(records))]);
        let begin = Instant::now();
        let (next, changed) = snapshot.with(batch, SystemTime::now());
        let known = begin.elapsed();
        kernel.table.apply(&next, &changed);
        let written = begin.elapsed();
        for (samples, time) in times.iter_mut().zip([written, known, written - known]) {
            samples.0.push(time.as_secs_f64() * 1e6);
        }
        snapshot = next;
        if change % CHANGES_AT_ONCE == 0 {
            kernel.settle()?;
        }
    }
    for (name, samples) in ["change", "change_snapshot", "change_table"]
        .into_iter()
        .zip(times)
    {
        report.add(name, labels, "µs", Better::Lower, "changes", samples);
    }
    Ok(())
}

/// The program as agents load it, and its table.
struct Loaded {
    table: Table<KernelMemory>,
    grace: Arc<GracePeriods>,
    /// Holds the other maps.
    _program: Program,
}

impl Loaded {
    fn new() -> Result<Self> {
        let Kernel { memory, program } = Kernel::load(LoadOptions::default())?;
        let zones = Services::V6.snapshot(0);
        Ok(Self {
            grace: memory.grace_periods(),
            table: Table::new(Writer::create(memory)?, zones.zones())?,
            _program: program,
        })
    }

    fn load(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.table.sync(snapshot);
        self.settle()?;
        let stats = self.table.stats();
        ensure!(
            stats.unstored == 0 && stats.names as usize == snapshot.name_count(),
            "of {} names the kernel holds {}",
            snapshot.name_count(),
            stats.names
        );
        Ok(())
    }

    /// Frees what nobody reads any more, as the agent does in the background.
    fn settle(&mut self) -> Result<()> {
        while let Some(batch) = self.table.take_quarantine() {
            self.grace.wait()?;
            self.table.release(batch);
        }
        Ok(())
    }

    /// All maps of this process: of this table, and of the program.
    fn bytes(&self) -> Result<u64> {
        kernel_memory(process::id()).context("cannot tell what maps take")
    }
}
