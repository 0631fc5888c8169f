//! `cargo xtask bench kernel`: what the program costs a packet, by BPF_PROG_TEST_RUN.
//!
//! A sample is the mean of a batch of runs in one system call, in the calling thread's own time on the processor. In each
//! round all cases of a table run one after the other, each case's programs likewise: whoever shares the processor's caches and
//! threads comes and goes, and slows all of them. Each run restores the packet, with a name drawn anew; what restoring costs
//! alone is subtracted.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap},
};
use hickory_proto::rr::RecordType;
use peak_common::{
    abi::COUNTERS,
    bench::{FRAME, KEY, NAME, NAME_AT, Template},
    verdict::{Outcome, PassReason, QueryType, Verdict},
};
use peak_userspace::{
    dataplane::{
        compile::Table,
        kernel::KernelMemory,
        loader::{Kernel, LoadOptions, Program},
        table::Writer,
    },
    name::Name,
    snapshot::{ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    frame, memory,
    report::{Better, Figure, Label, Output, Ratios, Report, Samples, Summary},
};

/// What the program costs a packet, case by case, beside a yardstick and an empty program
///
/// Times are above the empty program's, and without what it costs to restore the packet before each run. `yardsticks` are
/// their ratios to a yardstick, a program that copies 64 bytes of the packet and looks them up in a hash map: of the least
/// ones, and the median of those by round. `gate` is what the first may be: neighbours on the machine only add. `hash_map` looks the same names up in the kernel's hash map, `memory` is
/// what one load from as many cache lines costs at that pace.
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

/// The loopback device's index, and its slot: where BPF_PROG_TEST_RUN's frames come in.
const IFINDEX: u32 = 1;
const MTU: u32 = 1500;
/// The longest frame that BPF_PROG_TEST_RUN takes without a second buffer, and one that has no room at its tail: a page without
/// XDP_PACKET_HEADROOM and `struct skb_shared_info`.
const WHOLE_BUFFER: usize = 4096 - 256 - 320;
/// How many names are asked at random, of a table of as many.
const SIZES: [u32; 3] = [1, 1 << 14, 1 << 17];
/// A yardstick's nanoseconds on the machine that gates are given for.
const YARDSTICK: f64 = 32.0;

/// After how many rounds it is said how far it is.
const PROGRESS: usize = 25;
/// How often each name is asked, on the average, before a batch is timed.
const WARMING: u32 = 2;

/// What is run.
const PROGRAMS: [&str; 5] = ["pass", "yardstick", "restore_only", "restored", "hash_map"];

/// One row.
struct Case {
    name: &'static str,
    services: Services,
    asked: Asked,
    by_head: bool,
    /// Whether the kernel's hash map is asked for the same names, too.
    with_hash_map: bool,
    sizes: &'static [u32],
    verdict: Verdict,
    /// What it may cost, nanoseconds where the yardstick costs [`YARDSTICK`], for the first of the sizes.
    gates: &'static [f64],
}

/// What each service of the table has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Services {
    /// An address of each family.
    Dual,
    /// An IPv6 address.
    V6,
    /// 8 IPv6 addresses.
    Eight,
}

enum Asked {
    /// Name and type, with or without OPT. The 8 digits of the name vary.
    Query(&'static str, RecordType, bool),
    Segment,
}

/// 40 bytes on the wire.
const STORED: &str = "web00000000.workload.svc.cluster.local.";
const MISSING: &str = "ask00000000.workload.svc.cluster.local.";
const FOREIGN: &str = "www00000000.services.example.com.";
/// Where the digits begin, after the first label's length.
const DIGITS: usize = 4;

const PLAIN: Case = Case {
    name: "aaaa_hit",
    services: Services::V6,
    asked: Asked::Query(STORED, RecordType::AAAA, false),
    by_head: false,
    with_hash_map: false,
    sizes: &SIZES,
    verdict: Verdict::Answered(QueryType::Aaaa, Outcome::Records),
    gates: &[],
};

const CASES: &[Case] = &[
    Case {
        with_hash_map: true,
        gates: &[50.0, 110.0, 250.0],
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_grown_by_head",
        by_head: true,
        ..PLAIN
    },
    Case {
        name: "aaaa_hit_opt",
        asked: Asked::Query(STORED, RecordType::AAAA, true),
        gates: &[65.0],
        ..PLAIN
    },
    Case {
        name: "aaaa_8_records",
        services: Services::Eight,
        gates: &[90.0],
        ..PLAIN
    },
    Case {
        name: "a_hit",
        services: Services::Dual,
        asked: Asked::Query(STORED, RecordType::A, false),
        verdict: Verdict::Answered(QueryType::A, Outcome::Records),
        ..PLAIN
    },
    Case {
        name: "nodata",
        asked: Asked::Query(STORED, RecordType::A, false),
        verdict: Verdict::Answered(QueryType::A, Outcome::NoData),
        gates: &[90.0],
        ..PLAIN
    },
    Case {
        name: "nxdomain",
        asked: Asked::Query(MISSING, RecordType::AAAA, false),
        verdict: Verdict::Answered(QueryType::Aaaa, Outcome::NxDomain),
        gates: &[90.0],
        ..PLAIN
    },
    Case {
        name: "foreign_name",
        asked: Asked::Query(FOREIGN, RecordType::AAAA, false),
        verdict: Verdict::Passed(PassReason::ForeignName),
        gates: &[45.0],
        ..PLAIN
    },
    Case {
        name: "not_dns",
        asked: Asked::Segment,
        sizes: &[1],
        verdict: Verdict::Passed(PassReason::NotUdp),
        gates: &[12.0],
        ..PLAIN
    },
];

/// A gate of a figure, nanoseconds where the yardstick costs [`YARDSTICK`].
fn gate(figure: &Figure) -> Option<f64> {
    let case = CASES.iter().find(|case| case.name == figure.name)?;
    let size = SIZES
        .iter()
        .position(|&size| figure.labels.get("names") == Some(&Label::from(size)))?;
    case.gates.get(size).copied()
}

/// A size by its number.
fn size(text: &str) -> Result<u32, String> {
    SIZES
        .into_iter()
        .find(|size| size.to_string() == text)
        .ok_or_else(|| format!("tables have {SIZES:?} names"))
}

/// How much is measured.
struct Effort {
    rounds: usize,
    /// Runs in one batch.
    runs: u32,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let object =
        fs::read(&args.object).with_context(|| format!("cannot read {}", args.object.display()))?;
    let effort = if args.output.quick {
        Effort {
            rounds: 5,
            runs: 2_000,
        }
    } else {
        Effort {
            rounds: 150,
            runs: 20_000,
        }
    };
    let wanted = |case: &Case, size| {
        case.name.contains(&args.only)
            && case.sizes.contains(&size)
            && args.names.is_none_or(|names| names == size)
    };
    if !CASES
        .iter()
        .any(|case| SIZES.iter().any(|&size| wanted(case, size)))
    {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        bail!(
            "no such case: there are {}, not_dns for 1 name only",
            names.join(", ")
        );
    }

    let mut report = Report::new("kernel");
    let mut common = Common::default();
    let begin = Instant::now();
    for services in [Services::V6, Services::Dual, Services::Eight] {
        for (i, size) in SIZES.into_iter().enumerate() {
            // What each round of a larger table begins with, warming, takes longer.
            let rounds = (effort.rounds >> i).max(1);
            let cases: Vec<_> = CASES
                .iter()
                .filter(|case| case.services == services && wanted(case, size))
                .collect();
            if cases.is_empty() {
                continue;
            }
            let elapsed = begin.elapsed().as_secs();
            eprintln!("{elapsed:>4} s  loading the program, and a table of {size} services");
            let mut bench = Bench::new(&object, services, size)?;
            let names: Vec<_> = cases.iter().map(|case| case.name).collect();
            let elapsed = begin.elapsed().as_secs();
            eprintln!("{elapsed:>4} s  {size} names: {}", names.join(", "));
            let progress = |done| {
                if done % PROGRESS == 0 {
                    let elapsed = begin.elapsed().as_secs();
                    eprintln!("{elapsed:>4} s    {done} of {rounds} rounds");
                }
            };
            let effort = Effort { rounds, ..effort };
            for measured in bench.measure(&cases, &effort, &mut common, progress)? {
                let labels = [("names", size.into())];
                let pace = measured.whole.median;
                let figure = add(&mut report, measured.name, &labels, measured.whole);
                figure.yardsticks = Some(measured.yardsticks);
                if let Some(hash_map) = measured.hash_map {
                    let lines = size as usize;
                    add(&mut report, "hash_map", &labels, hash_map);
                    let memory = memory::latency(lines, pace, effort.rounds, effort.runs);
                    add(&mut report, "memory", &labels, memory.summary());
                }
            }
        }
    }
    common.report(&mut report);
    describe_program(&mut report)?;

    print(&report);
    args.output.finish(&report)
}

/// Adds a time of batches.
fn add<'r>(
    report: &'r mut Report,
    name: &'static str,
    labels: &[(&'static str, Label)],
    time: Summary,
) -> &'r mut Figure {
    report.add(name, labels, "ns", Better::Lower, "batches", time)
}

/// What came of a case.
struct Measured {
    name: &'static str,
    whole: Summary,
    yardsticks: Ratios,
    hash_map: Option<Summary>,
}

/// Figures of all cases together.
#[derive(Default)]
struct Common {
    empty: Samples,
    yardstick: Samples,
    restore: Samples,
}

impl Common {
    fn report(&self, report: &mut Report) {
        add(report, "empty", &[], self.empty.summary());
        add(
            report,
            "yardstick",
            &[],
            self.yardstick.without(&self.empty),
        );
        add(report, "restore", &[], self.restore.without(&self.empty));
    }
}

/// What the program is that agents load, without what is here for benchmarks.
fn describe_program(report: &mut Report) -> Result<()> {
    let mut program = Kernel::load(LoadOptions::default())?.program;
    let program = program.xdp("peak")?.info()?;
    let instructions = program
        .verified_instruction_count()
        .context("the kernel tells no count of verified instructions")?;
    let once = |value: u32| Samples(vec![value.into()]).summary();
    report.add(
        "verified_instructions",
        &[],
        "instructions",
        Better::Lower,
        "loads",
        once(instructions),
    );
    let jited = once(program.size_jitted());
    report.add("jited_size", &[], "bytes", Better::Lower, "loads", jited);
    Ok(())
}

fn print(report: &Report) {
    println!(
        "{:<24} {:>7} {:>9} {:>9} {:>9}  {:>13} {:>5}",
        "", "names", "min", "median", "p99", "yardsticks", "gate"
    );
    for figure in &report.results {
        let names = figure
            .labels
            .get("names")
            .map_or(String::new(), Label::to_string);
        print!(
            "{:<24} {names:>7} {:>9.1} {:>9.1} {:>9.1}",
            figure.name, figure.min, figure.median, figure.p99
        );
        if figure.unit != "ns" {
            print!("  {}", figure.unit);
        }
        if let Some(yardsticks) = figure.yardsticks {
            let Ratios { min, median } = yardsticks;
            print!("  {min:>6.2} {median:>6.2}");
            if let Some(gate) = gate(figure) {
                let gate = gate / YARDSTICK;
                let reached = if min <= gate { "" } else { "  missed" };
                print!(" {gate:>5.2}{reached}");
            }
        }
        println!();
    }
}

/// The benchmark's programs over one table.
struct Bench {
    program: Program,
    template: Array<aya::maps::MapData, Shared>,
    size: u32,
    /// A query whose beginning the yardstick's map holds.
    stored: Vec<u8>,
    /// Holds the table's maps.
    _table: Table<KernelMemory>,
}

/// A case, and what was measured of it so far.
struct Running<'c> {
    case: &'c Case,
    template: Template,
    /// The frame that the first run of a batch begins with.
    buffer: Vec<u8>,
    empty: Samples,
    yardstick: Samples,
    restore: Samples,
    whole: Samples,
    hash_map: Samples,
}

impl<'c> Running<'c> {
    fn new(case: &'c Case, names: u32) -> Result<Self> {
        let (frame, varied) = match case.asked {
            Asked::Query(name, query_type, edns) => {
                let (frame, name) = frame::query(name, query_type, edns)?;
                (frame, name + DIGITS)
            }
            Asked::Segment => (frame::segment()?, 14 + 40 + 20),
        };
        let mut template = Template {
            length: frame.len() as u32,
            varied: varied as u32,
            names,
            random: 1,
            by_head: case.by_head.into(),
            reserved: 0,
            frame: [0; FRAME],
        };
        template.frame[..frame.len()].copy_from_slice(&frame);
        let mut buffer = frame;
        if case.by_head {
            buffer.resize(WHOLE_BUFFER, 0);
        }
        Ok(Self {
            case,
            template,
            buffer,
            empty: Samples::default(),
            yardstick: Samples::default(),
            restore: Samples::default(),
            whole: Samples::default(),
            hash_map: Samples::default(),
        })
    }

    fn measured(&self) -> Measured {
        Measured {
            name: self.case.name,
            whole: self.whole.without(&self.restore),
            yardsticks: self
                .whole
                .in_units_of(&self.restore, &self.yardstick, &self.empty),
            hash_map: self
                .case
                .with_hash_map
                .then(|| self.hash_map.without(&self.restore)),
        }
    }
}

/// [`Template`], for aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shared(Template);
// SAFETY: integers and bytes without padding between them.
unsafe impl Pod for Shared {}

impl Bench {
    fn new(object: &[u8], services: Services, size: u32) -> Result<Self> {
        let Kernel {
            memory,
            mut program,
        } = Kernel::load_object(object, &PROGRAMS, LoadOptions::default(), |loader| {
            loader.map_max_entries("NAMES", size);
        })?;
        program.describe(IFINDEX, IFINDEX, frame::MAC, MTU);
        program
            .serve(IFINDEX, frame::SERVER.into(), frame::PORT)
            .context("there is room for one address")?;
        let mut take = |name| program.take_map(name).with_context(|| name);
        let template = Array::try_from(take("TEMPLATE")?)?;
        let mut yardstick: HashMap<_, [u8; KEY], u64> = HashMap::try_from(take("YARDSTICK")?)?;
        let (stored, _) = frame::query(STORED, RecordType::AAAA, false)?;
        yardstick.insert(stored.first_chunk::<KEY>().context("a frame")?, &1, 0)?;

        let mut names: HashMap<_, [u8; NAME], u64> = HashMap::try_from(take("NAMES")?)?;
        let mut name = *stored[NAME_AT..].first_chunk::<NAME>().context("a frame")?;
        for number in 0..size {
            name[DIGITS..][..8].copy_from_slice(format!("{number:08}").as_bytes());
            names.insert(&name, &1, 0)?;
        }

        let snapshot = snapshot(services, size);
        let mut table = Table::new(Writer::create(memory)?, snapshot.zones())?;
        table.sync(&snapshot);
        Ok(Self {
            program,
            template,
            size,
            stored,
            _table: table,
        })
    }

    /// What the cases cost, above restoring.
    fn measure(
        &mut self,
        cases: &[&Case],
        effort: &Effort,
        common: &mut Common,
        progress: impl Fn(usize),
    ) -> Result<Vec<Measured>> {
        let mut running: Vec<_> = cases
            .iter()
            .map(|case| Running::new(case, self.size))
            .collect::<Result<_>>()?;
        for round in 0..effort.rounds {
            for running in &mut running {
                self.round(running, effort.runs)?;
            }
            progress(round + 1);
        }
        let mut measured = Vec::new();
        for mut running in running {
            measured.push(running.measured());
            common.empty.0.append(&mut running.empty.0);
            common.yardstick.0.append(&mut running.yardstick.0);
            common.restore.0.append(&mut running.restore.0);
        }
        Ok(measured)
    }

    /// One sample of each of a case's programs.
    fn round(&mut self, running: &mut Running<'_>, runs: u32) -> Result<()> {
        self.template.set(0, &Shared(running.template), 0)?;
        let stored = self.stored.clone();
        let sample = self.batch("pass", &stored, runs)?;
        running.empty.0.push(sample);
        let sample = self.batch("restore_only", &running.buffer, runs)?;
        running.restore.0.push(sample);

        self.warm("restored", &running.buffer)?;
        let before = self.program.counters(IFINDEX)?;
        let sample = self.batch("restored", &running.buffer, runs)?;
        running.whole.0.push(sample);
        let after = self.program.counters(IFINDEX)?;
        let ended: Vec<_> = (0..COUNTERS)
            .map(|i| (i, after[i] - before[i]))
            .filter(|&(_, packets)| packets != 0)
            .collect();
        let verdict = running.case.verdict.index();
        ensure!(
            ended == [(verdict, u64::from(runs))],
            "{}: {runs} packets should all have ended as verdict {verdict}, and ended as (verdict, packets) {ended:?}",
            running.case.name,
        );

        if running.case.with_hash_map {
            self.warm("hash_map", &running.buffer)?;
            let sample = self.batch("hash_map", &running.buffer, runs)?;
            running.hash_map.0.push(sample);
        }
        let sample = self.batch("yardstick", &stored, runs)?;
        running.yardstick.0.push(sample);
        running.template = self.template.get(&0, 0)?.0;
        Ok(())
    }

    /// Brings what a program reads to where it is under its own load: what ran before it has had the caches to itself.
    fn warm(&mut self, program: &str, frame: &[u8]) -> Result<()> {
        self.batch(program, frame, WARMING * self.size).map(drop)
    }

    /// Nanoseconds for each of so many runs of a program.
    fn batch(&mut self, program: &str, frame: &[u8], runs: u32) -> Result<f64> {
        let program = self.program.xdp(program)?;
        let begin = processor_time();
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            repeat: runs,
            ..TestRunOptions::default()
        })?;
        let time = processor_time() - begin;
        // From linux/bpf.h: XDP_ABORTED.
        ensure!(result.return_value != 0, "a run was aborted");
        Ok(time.as_nanos() as f64 / f64::from(runs))
    }
}

/// How long this thread has been on a processor, system calls included.
pub(crate) fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// As many services as are asked for.
fn snapshot(services: Services, size: u32) -> Snapshot {
    let v6 = |service: u32, i: u16| {
        let [high, low] = [(service >> 16) as u16, service as u16];
        IpAddr::from(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, high, low, i))
    };
    let v4 = |service: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a80_0000 | service));
    let records = |service: u32| ServiceRecords {
        addresses: match services {
            Services::Dual => [v6(service, 1), v4(service)].into_iter().collect(),
            Services::V6 => [v6(service, 1)].into_iter().collect(),
            Services::Eight => (1..=8).map(|i| v6(service, i)).collect(),
        },
        ..ServiceRecords::default()
    };
    let (snapshot, _) = Snapshot::empty(SnapshotConfig {
        zones: [Name::parse("cluster.local").expect("a name")].into(),
        ttl: 5,
        nameservers: [IpAddr::from(frame::SERVER)].into(),
        ..SnapshotConfig::default()
    })
    .with(
        (0..size)
            .map(|service| {
                let key = ServiceKey::new("workload", format!("web{service:08}"));
                (key, Some(records(service)))
            })
            .collect::<Vec<_>>(),
        SystemTime::now(),
    );
    snapshot
}
