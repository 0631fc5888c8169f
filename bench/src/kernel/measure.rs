//! Runs programs, and takes the time.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, MapData},
};
use peak_common::{
    abi::Control,
    bench::{FRAME, KEY, NAME, NAME_AT, Template},
    verdict::{PassReason, Verdict},
};
use peak_userspace::{
    dataplane::{
        compile::Table,
        kernel::KernelMemory,
        loader::{Kernel, LoadOptions, Program},
        table::Writer,
    },
    snapshot::Snapshot,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    cases::{Case, DIGITS, PLAIN, State},
    trampoline::Trampoline,
};
use crate::{
    frame,
    report::{Label, Ratios, Samples, Summary},
};

/// The loopback device's index, and its slot: where BPF_PROG_TEST_RUN's frames come in.
const IFINDEX: u32 = 1;
const MTU: u32 = 1500;
/// The longest frame that BPF_PROG_TEST_RUN takes without a second buffer, and one that has no room at its tail: a page without
/// XDP_PACKET_HEADROOM and `struct skb_shared_info`.
const WHOLE_BUFFER: usize = 4096 - 256 - 320;
/// How often each name is asked, on the average, before a batch is timed, and how many are asked at most: more than any cache
/// holds.
const WARMING: u32 = 2;
const MOST_WARMING: u32 = 1 << 19;
/// One in so many packets at most is for a name that the fallback knows, where there are more names than that.
const FEW: u32 = 500;

/// Programs that every case needs: what is subtracted, and what is compared with.
const ALWAYS: [&str; 3] = ["pass", "restore_only", "yardstick"];

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// Runs in one batch.
    pub(crate) runs: u32,
}

/// A build of the XDP object.
pub(crate) struct Object(Vec<u8>);

impl Object {
    /// # Errors
    /// There is no such file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let object = fs::read(path);
        let object = object.with_context(|| {
            format!(
                "cannot read {}: `cargo xtask bench` builds it",
                path.display()
            )
        })?;
        Ok(Self(object))
    }
}

/// The benchmark's programs over one table.
pub(crate) struct Bench {
    program: Program,
    template: Array<MapData, Shared>,
    table: Table<KernelMemory>,
    /// A query whose beginning the yardstick's map holds.
    stored: Vec<u8>,
}

/// A case, what it is asked for, and what was measured of it so far: as many samples of each program, in the same order.
pub(crate) struct Measured {
    pub(crate) case: Case,
    /// How many names are asked at random.
    pub(crate) names: u32,
    pub(crate) empty: Samples,
    pub(crate) yardstick: Samples,
    pub(crate) restore: Samples,
    pub(crate) whole: Samples,
    template: Template,
    /// The frame that the first run of a batch begins with.
    buffer: Vec<u8>,
}

impl Measured {
    /// Nothing yet.
    pub(crate) fn new(case: Case, names: u32) -> Result<Self> {
        let (mut buffer, varied) = case.frame()?;
        let mut template = Template {
            length: buffer.len() as u32,
            varied: varied as u32,
            names,
            random: 1,
            by_head: case.by_head.into(),
            reserved: 0,
            frame: [0; FRAME],
        };
        template.frame[..buffer.len()].copy_from_slice(&buffer);
        if case.by_head {
            buffer.resize(WHOLE_BUFFER, 0);
        }
        Ok(Self {
            case,
            names,
            empty: Samples::default(),
            yardstick: Samples::default(),
            restore: Samples::default(),
            whole: Samples::default(),
            template,
            buffer,
        })
    }

    /// What it costs, above restoring the frame.
    pub(crate) fn cost(&self) -> Summary {
        self.whole.without(&self.restore)
    }

    /// What its figures are labelled with.
    pub(crate) fn labels(&self) -> Vec<(&'static str, Label)> {
        let label = self.case.label.map(|(label, value)| (label, value.into()));
        [("names", self.names.into())]
            .into_iter()
            .chain(label)
            .collect()
    }

    /// The same, round by round.
    pub(crate) fn costs(&self) -> Samples {
        let pairs = self.whole.0.iter().zip(&self.restore.0);
        Samples(pairs.map(|(whole, restore)| whole - restore).collect())
    }

    /// The least that it costs, in nanoseconds.
    pub(crate) fn least(&self) -> f64 {
        self.whole.quantile(0.0) - self.restore.quantile(0.0)
    }

    /// What it costs in yardsticks, round by round.
    pub(crate) fn by_yardstick(&self) -> Samples {
        let unit = self.yardstick.0.iter().zip(&self.empty.0);
        let unit = unit.map(|(yardstick, empty)| yardstick - empty);
        Samples(
            self.costs()
                .0
                .iter()
                .zip(unit)
                .map(|(cost, unit)| cost / unit)
                .collect(),
        )
    }

    pub(crate) fn ratios(&self) -> Ratios {
        self.whole
            .in_units_of(&self.restore, &self.yardstick, &self.empty)
    }

    /// The yardstick's least cost, in nanoseconds, in the rounds of this case.
    pub(crate) fn least_yardstick(&self) -> f64 {
        self.yardstick.quantile(0.0) - self.empty.quantile(0.0)
    }
}

/// [`Template`], for aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared(Template);
// SAFETY: integers and bytes without padding between them.
unsafe impl Pod for Shared {}

impl Bench {
    /// Loads what the cases' programs are, over a table of this snapshot. `names` is how many names the kernel's hash map shall hold,
    /// where one of the programs asks it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn new(
        trampoline: &Trampoline,
        object: &Object,
        cases: &[Case],
        names: u32,
        snapshot: &Snapshot,
    ) -> Result<Self> {
        let mut programs: Vec<_> = cases.iter().map(|case| case.program).collect();
        programs.extend(ALWAYS);
        programs.sort_unstable();
        programs.dedup();
        let with_hash_map = programs.contains(&"hash_map");
        let Kernel {
            memory,
            mut program,
        } = Kernel::load_object(&object.0, &programs, LoadOptions::default(), |loader| {
            loader.map_max_entries("NAMES", if with_hash_map { names } else { 1 });
        })?;
        program.describe(IFINDEX, IFINDEX, frame::MAC, MTU, false);
        for address in [frame::SERVER.into(), frame::SERVER_V4.into()] {
            program
                .serve(IFINDEX, address, frame::PORT)
                .context("there is room for two addresses")?;
        }
        let mut take = |name| program.take_map(name).with_context(|| name);
        let template = Array::try_from(take("TEMPLATE")?)?;
        let mut yardstick: HashMap<_, [u8; KEY], u64> = HashMap::try_from(take("YARDSTICK")?)?;
        let (stored, _) = PLAIN.frame()?;
        yardstick.insert(stored.first_chunk::<KEY>().context("a frame")?, &1, 0)?;
        if with_hash_map {
            let mut map: HashMap<_, [u8; NAME], u64> = HashMap::try_from(take("NAMES")?)?;
            let mut name = *stored[NAME_AT..].first_chunk::<NAME>().context("a frame")?;
            for number in 0..names {
                name[DIGITS..][..8].copy_from_slice(format!("{number:08}").as_bytes());
                map.insert(&name, &1, 0)?;
            }
        }
        let mut table = Table::new(Writer::create(memory)?, snapshot.zones())?;
        table.sync(snapshot);
        for name in programs {
            trampoline.hold(program.xdp(name)?)?;
        }
        Ok(Self {
            program,
            template,
            table,
            stored,
        })
    }

    /// Brings the table into a case's state.
    fn enter(&mut self, state: State) {
        self.table.set_enabled(state != State::Disabled);
        let complete = if state == State::Incomplete {
            0
        } else {
            Control::COMPLETE
        };
        self.table
            .writer_mut()
            .set_flags(Control::COMPLETE, complete);
    }

    /// One sample of each of a case's programs.
    pub(crate) fn round(&mut self, measured: &mut Measured, runs: u32) -> Result<()> {
        let case = measured.case;
        self.template.set(0, &Shared(measured.template), 0)?;
        let stored = self.stored.clone();
        let sample = self.batch("pass", &stored, runs)?;
        measured.empty.0.push(sample);
        let sample = self.batch("restore_only", &measured.buffer, runs)?;
        measured.restore.0.push(sample);

        self.enter(case.state);
        self.program
            .describe(IFINDEX, IFINDEX, frame::MAC, MTU, case.by_head);
        self.warm(case.program, measured)?;
        let before = self.program.counters(IFINDEX)?;
        let sample = self.batch(case.program, &measured.buffer, runs)?;
        measured.whole.0.push(sample);
        let after = self.program.counters(IFINDEX)?;
        self.enter(State::Ready);
        let ended: Vec<_> = Verdict::all()
            .map(|verdict| (verdict, after[verdict.index()] - before[verdict.index()]))
            .filter(|&(_, packets)| packets != 0)
            .collect();
        ensure!(
            as_wanted(&ended, case.verdict, runs, measured.names),
            "{}, one of {} names: {runs} packets should have ended as {:?}, and ended as {ended:?}",
            case.title(),
            measured.names,
            case.verdict,
        );

        let sample = self.batch("yardstick", &stored, runs)?;
        measured.yardstick.0.push(sample);
        measured.template = self.template.get(&0, 0)?.0;
        Ok(())
    }

    /// Brings what a program reads to where it is under its own load: what ran before it has had the caches to itself.
    fn warm(&mut self, program: &str, measured: &Measured) -> Result<()> {
        let runs = measured.names.saturating_mul(WARMING).min(MOST_WARMING);
        self.batch(program, &measured.buffer, runs).map(drop)
    }

    /// Nanoseconds for each of so many runs of a program.
    fn batch(&mut self, program: &str, frame: &[u8], runs: u32) -> Result<f64> {
        let test = self.program.xdp(program)?;
        let begin = processor_time();
        let result = test.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: runs,
            ..TestRunOptions::default()
        })?;
        let time = processor_time() - begin;
        // From linux/bpf.h: XDP_ABORTED.
        ensure!(result.return_value != 0, "a run of {program} was aborted");
        Ok(time.as_nanos() as f64 / f64::from(runs))
    }

    /// The frame that one run of a case's program leaves.
    pub(crate) fn reply(&mut self, measured: &Measured) -> Result<Vec<u8>> {
        self.template.set(0, &Shared(measured.template), 0)?;
        let mut reply = vec![0; WHOLE_BUFFER];
        let result = self
            .program
            .xdp(measured.case.program)?
            .test_run(TestRunOptions {
                data_in: Some(&measured.buffer),
                data_out: Some(&mut reply),
                ..TestRunOptions::default()
            })?;
        reply.truncate(result.data_size_out as usize);
        Ok(reply)
    }
}

/// Whether packets ended as they should. By the chance of its key a table may have two names of one bucket and one tag, of which
/// the fallback knows one: among many names that is no fault.
fn as_wanted(ended: &[(Verdict, u64)], wanted: Option<Verdict>, runs: u32, names: u32) -> bool {
    const FALLBACK: Verdict = Verdict::Passed(PassReason::AskFallback);
    let Some(wanted) = wanted else {
        return ended.is_empty();
    };
    let (mut good, mut bad) = (0, 0);
    for &(verdict, packets) in ended {
        match verdict {
            _ if verdict == wanted => good += packets,
            FALLBACK if names > FEW => good += packets.min(u64::from(runs / FEW)),
            _ => bad += packets,
        }
    }
    bad == 0 && good == u64::from(runs)
}

/// How long this thread has been on a processor, system calls included.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use peak_common::verdict::{Outcome, QueryType};

    use super::*;

    #[test]
    fn batches_end_as_their_case_does() {
        let hit = Verdict::Answered(QueryType::Aaaa, Outcome::Records);
        let fallback = Verdict::Passed(PassReason::AskFallback);
        let no_room = Verdict::Passed(PassReason::NoRoom);
        let good = |ended: &[_], names| as_wanted(ended, Some(hit), 20_000, names);
        assert!(good(&[(hit, 20_000)], 1));
        assert!(!good(&[(hit, 19_999)], 1 << 14));
        assert!(!good(&[(hit, 19_999), (no_room, 1)], 1 << 14));
        assert!(!good(&[(hit, 19_999), (fallback, 1)], 1));
        // Of 16,384 names one.
        assert!(good(&[(hit, 19_999), (fallback, 1)], 1 << 14));
        assert!(!good(&[(hit, 19_000), (fallback, 1_000)], 1 << 14));
        assert!(as_wanted(&[], None, 20_000, 1));
        assert!(!as_wanted(&[(hit, 1)], None, 20_000, 1));
    }
}
