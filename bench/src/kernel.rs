//! `cargo xtask bench kernel`: what the program costs a packet, by BPF_PROG_TEST_RUN.
//!
//! A sample is the mean of a batch of runs in one system call, in the calling thread's own time on the processor. In each
//! round of a case its programs run one after the other, so that all see the same machine. Each run restores the packet,
//! with the next of the case's names; what restoring costs alone, in the same round, is subtracted. Ratios are of one round,
//! too: whoever shares the processor's caches and threads slows all of it.

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
    report::{Figure, Report, Samples, Summary},
};

/// What the program costs a packet, case by case, beside a yardstick and an empty program
///
/// Times are above the empty program's, and without what it costs to restore the packet before each run. `yardsticks` is
/// the median of their ratios to a yardstick in the same round, a program that copies 64 bytes of the packet and looks them up
/// in a hash map; `gate` is what that ratio may be. `hash_map` looks the same names up in the kernel's hash map, `memory` is
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
    /// Few samples: does it run at all?
    #[arg(long)]
    quick: bool,
    /// `json` adds one object as the last line
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    output: String,
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
        .position(|&size| figure.labels.get("names") == Some(&size.into()))?;
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
    let effort = if args.quick {
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
        for size in SIZES {
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
            for case in cases {
                let elapsed = begin.elapsed().as_secs();
                eprintln!("{elapsed:>4} s  {}, {size} names", case.name);
                let labels = [("names", size.into())];
                let measured = bench.measure(case, &effort, &mut common)?;
                let pace = measured.whole.median;
                let figure = report.add(case.name, &labels, "ns", measured.whole);
                figure.yardsticks = Some(measured.yardsticks);
                if let Some(hash_map) = measured.hash_map {
                    let lines = size as usize;
                    report.add("hash_map", &labels, "ns", hash_map);
                    let memory = memory::latency(lines, pace, effort.rounds, effort.runs);
                    report.add("memory", &labels, "ns", memory.summary());
                }
            }
        }
    }
    common.report(&mut report);
    describe_program(&mut report)?;

    print(&report);
    if args.output == "json" {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}

/// What came of a case.
struct Measured {
    whole: Summary,
    yardsticks: f64,
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
        report.add("empty", &[], "ns", self.empty.summary());
        report.add("yardstick", &[], "ns", self.yardstick.without(&self.empty));
        report.add("restore", &[], "ns", self.restore.without(&self.empty));
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
        once(instructions),
    );
    report.add("jited_size", &[], "bytes", once(program.size_jitted()));
    Ok(())
}

fn print(report: &Report) {
    println!(
        "{:<24} {:>7} {:>9} {:>9} {:>9}  {:>10} {:>5}",
        "", "names", "min", "median", "p99", "yardsticks", "gate"
    );
    for figure in &report.results {
        let names = figure
            .labels
            .get("names")
            .map_or(String::new(), u64::to_string);
        print!(
            "{:<24} {names:>7} {:>9.1} {:>9.1} {:>9.1}",
            figure.name, figure.min, figure.median, figure.p99
        );
        if figure.unit != "ns" {
            print!("  {}", figure.unit);
        }
        if let Some(yardsticks) = figure.yardsticks {
            print!("  {yardsticks:>10.2}");
            if let Some(gate) = gate(figure) {
                let gate = gate / YARDSTICK;
                let reached = if yardsticks <= gate { "" } else { "  missed" };
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

    /// What the case costs, above restoring.
    fn measure(&mut self, case: &Case, effort: &Effort, common: &mut Common) -> Result<Measured> {
        let (frame, varied) = match case.asked {
            Asked::Query(name, query_type, edns) => {
                let (frame, name) = frame::query(name, query_type, edns)?;
                (frame, name + DIGITS)
            }
            Asked::Segment => (frame::segment()?, 14 + 40 + 20),
        };
        self.prepare(&frame, varied, case.by_head)?;
        let mut buffer = frame.clone();
        if case.by_head {
            buffer.resize(WHOLE_BUFFER, 0);
        }

        let stored = self.stored.clone();
        let before = self.program.counters(IFINDEX)?;
        let [
            mut empty,
            mut yardstick,
            mut restore,
            mut whole,
            mut hash_map,
        ] = [const { Samples(Vec::new()) }; 5];
        for _ in 0..effort.rounds {
            empty.0.push(self.batch("pass", &stored, effort.runs)?);
            restore
                .0
                .push(self.batch("restore_only", &buffer, effort.runs)?);
            whole.0.push(self.batch("restored", &buffer, effort.runs)?);
            if case.with_hash_map {
                hash_map
                    .0
                    .push(self.batch("hash_map", &buffer, effort.runs)?);
            }
            yardstick
                .0
                .push(self.batch("yardstick", &stored, effort.runs)?);
        }
        let after = self.program.counters(IFINDEX)?;
        let runs = effort.rounds as u64 * u64::from(effort.runs);
        let ended: Vec<_> = (0..COUNTERS)
            .map(|i| (i, after[i] - before[i]))
            .filter(|&(_, packets)| packets != 0)
            .collect();
        ensure!(
            ended == [(case.verdict.index(), runs)],
            "{}: {runs} packets should all have ended as verdict {}, and ended as (verdict, packets) {ended:?}",
            case.name,
            case.verdict.index(),
        );
        let measured = Measured {
            yardsticks: whole.in_units_of(&restore, &yardstick, &empty),
            whole: whole.without(&restore),
            hash_map: case.with_hash_map.then(|| hash_map.without(&restore)),
        };
        common.empty.0.append(&mut empty.0);
        common.yardstick.0.append(&mut yardstick.0);
        common.restore.0.append(&mut restore.0);
        Ok(measured)
    }

    /// Sets the frame that each run begins with.
    fn prepare(&mut self, frame: &[u8], varied: usize, by_head: bool) -> Result<()> {
        let mut template = Template {
            length: frame.len() as u32,
            varied: varied as u32,
            names: self.size,
            random: 1,
            by_head: by_head.into(),
            reserved: 0,
            frame: [0; FRAME],
        };
        template.frame[..frame.len()].copy_from_slice(frame);
        self.template.set(0, &Shared(template), 0)?;
        Ok(())
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
        endpoints: [].into(),
    };
    let (snapshot, _) = Snapshot::empty(SnapshotConfig {
        zones: [Name::parse("cluster.local").expect("a name")].into(),
        ttl: 5,
        nameservers: [IpAddr::from(frame::SERVER)].into(),
    })
    .with(
        (0..size)
            .map(|service| {
                let key = ServiceKey::new("workload", format!("web{service:08}"));
                (key, Some(records(service)))
            })
            .collect(),
        SystemTime::now(),
    );
    snapshot
}
