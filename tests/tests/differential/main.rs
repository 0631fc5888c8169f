//! The same bytes through [`respond`] on the host and through the program in the kernel, over the same mapped tables:
//! both must come to the same verdict, and leave the same packet. And what they answer must be right.
//!
//! The kernel runs the program by BPF_PROG_TEST_RUN, as if the frame had come in on the loopback device (index 1), with
//! ample room at the frame's tail, and some before its head. So it never lacks room for a frame of one part: that is tested on the host alone. Frames
//! of several parts, which the host does not know, are tested in the kernel alone. [`AbortReason::Resized`] would take a
//! kernel whose helpers do something else than they say.
//!
//! `PEAK_SEED=<number>` repeats a run.

mod query;
mod reply;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use aya::{TestRun, TestRunOptions};
use fastrand::Rng;
use peak_common::{
    abi::{
        Control, Counters, HEAP_SEGMENTS, RecordHead, SEGMENT_GRANULES, Segment, Served,
        SetDescriptor,
    },
    packet::Buffer,
    respond::{Scratch, respond},
    table::Tables,
    verdict::{AbortReason, Kind, Outcome, PassReason, QueryType, Verdict},
};
use peak_userspace::{
    dataplane::{
        NodeRecord,
        compile::Table,
        kernel::KernelMemory,
        loader::{Kernel, LoadOptions, Program},
        memory::{Memory, Region},
        table::Writer,
    },
    endpoints::Endpoint,
    fallback::answer::Policy,
    name::Name,
    snapshot::{ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};
use query::{Opt, Query, TYPE_A, TYPE_AAAA, TYPE_TXT, below, bytes, mend_header, mutate, one_of};

/// Frames of one run.
const FRAMES: usize = 150_000;
/// How often each verdict must be reached.
const LEAST: u64 = 1000;

/// The loopback device's index, and its slot.
const IFINDEX: u32 = 1;
const MTU: u64 = 1500;
/// Room before and after the frame, itself included, in a page that BPF_PROG_TEST_RUN lays out: what is left of
/// 4096 bytes without XDP_PACKET_HEADROOM and `struct skb_shared_info`.
const HEADROOM: usize = 256;
const LINEAR: usize = 4096 - HEADROOM - 320;
/// What a frame may grow into of that: without `struct xdp_frame`.
const HEAD: usize = HEADROOM - 40;
// From linux/bpf.h.
const XDP_ABORTED: u32 = 0;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

const ZONES: [&str; 4] = [
    "cluster.local",
    // Within the first.
    "east.cluster.local",
    // Leaves 196 bytes: 3 labels of 63, and `svc`.
    "a-zone-whose-name-takes-fifty-nine-bytes.on-the-wire.test",
    "x",
];
/// RFC 7830, section 3.
const OPTION_PADDING: u16 = 12;
/// Services with addresses, numbered.
const SERVICES: usize = 26;

fn servers() -> [(IpAddr, u16); 4] {
    [
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53).into(), 53),
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x54).into(), 5353),
        (Ipv4Addr::new(10, 96, 0, 10).into(), 53),
        (Ipv4Addr::new(10, 96, 0, 11).into(), 5353),
    ]
}

/// Sets of 0 to 50 addresses in either family; one of 120, which no answer holds; names of all lengths.
fn services() -> Vec<(ServiceKey, Option<ServiceRecords>)> {
    let v6 = |service: usize, count: usize| {
        (0..count).map(move |i| {
            IpAddr::from(Ipv6Addr::new(
                0xfd00,
                0xa,
                0,
                0,
                0,
                0,
                service as u16,
                i as u16 + 1,
            ))
        })
    };
    let v4 = |service: usize, count: usize| {
        (0..count).map(move |i| IpAddr::from([10, 1, service as u8, i as u8 + 1]))
    };
    let mut services: Vec<_> = (0..SERVICES)
        .map(|i| {
            // One address in every third, both families in most, one of them in the others.
            let (six, four) = match i % 6 {
                0 => (1, 1),
                1 => (2 * i, i),
                2 => (i, 0),
                3 => (1, 0),
                4 => (0, i + 1),
                _ => (i / 2, 2 * i),
            };
            let endpoint = ["pod", &"e".repeat(63), "10-1-2-3"][i % 3].to_owned();
            let records = ServiceRecords {
                addresses: v6(i, six).chain(v4(i, four)).collect(),
                endpoints: [Endpoint {
                    label: endpoint.into(),
                    addresses: v6(i, 1).chain(v4(i, 1)).collect(),
                    ports: [].into(),
                }]
                .into_iter()
                .collect(),
                ..ServiceRecords::default()
            };
            let namespace = ["shop", &"n".repeat(63), "a"][i % 3].to_owned();
            let name = match i % 4 {
                0 => format!("s{i:02}{}", "s".repeat(60)),
                _ => format!("s{i}"),
            };
            (ServiceKey::new(namespace, name), Some(records))
        })
        .collect();
    for (name, count) in [("huge", 120), ("broken", 50), ("drawn", 50)] {
        let records = ServiceRecords {
            addresses: v6(200, count).chain(v4(200, count)).collect(),
            ..ServiceRecords::default()
        };
        services.push((ServiceKey::new("shop", name), Some(records)));
    }
    services
}

/// The program and the tables, seen from both sides.
struct Bench {
    table: Table<KernelMemory>,
    program: Program,
    snapshot: Snapshot,
    names: Vec<Name>,
    draw: u32,
    scratch: Scratch,
    counters: Counters,
}

/// The kernel's maps, for the host.
struct Shared<'b>(&'b KernelMemory, &'b Program);

impl Tables for Shared<'_> {
    fn control(&self) -> Option<&Control> {
        Some(self.0.control())
    }
    fn index_segment(&self, slot: u32) -> Option<&Segment> {
        self.0.segment(Region::Index, slot)
    }
    fn heap_segment(&self, slot: u32) -> Option<&Segment> {
        self.0.segment(Region::Heap, slot)
    }
    fn served(&self, slot: u32) -> Option<&Served> {
        self.1.served().get(slot as usize)
    }
}

/// How many addresses of [`DRAWN`] an answer holds.
const PICK: u8 = 3;
// Names that the table is told otherwise of than the snapshot.
const DRAWN: &str = "drawn.shop.svc.cluster.local";
const BROKEN: &str = "broken.shop.svc.cluster.local";
const HUGE: &str = "huge.shop.svc.cluster.local";
const ASK: &str = "s2.a.svc.cluster.local";
const SUBTREE: &str = "s5.a.svc.cluster.local";

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

impl Bench {
    fn new(rng: &mut Rng) -> Result<Self> {
        let draw = rng.u32(..);
        let Kernel { memory, program } = Kernel::load(LoadOptions {
            // Now and then, and with no reader: it must not change anything.
            log_one_in: 1000,
            fixed_draw: Some(draw),
        })?;
        let (snapshot, _) = Snapshot::empty(SnapshotConfig {
            zones: ZONES.map(name).into(),
            ttl: 5,
            nameservers: servers().map(|(address, _)| address).into(),
            ..SnapshotConfig::default()
        })
        .with(services(), UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert!(snapshot.problems().is_empty(), "{:?}", snapshot.problems());
        let mut table = Table::new(Writer::create(memory)?, snapshot.zones())?;
        table.sync(&snapshot);
        let changes: [(_, fn(&mut _)); 3] = [
            (DRAWN, |record: &mut NodeRecord| {
                record.pick = PICK;
            }),
            (ASK, |record| record.flags = RecordHead::ASK_FALLBACK),
            (SUBTREE, |record| record.flags = RecordHead::SUBTREE),
        ];
        for (text, change) in changes {
            let mut record = table.lookup(&name(text)).context(text)?;
            change(&mut record);
            table.writer_mut().set(&name(text), &record);
        }
        let names: Vec<_> = snapshot.names().map(|(_, name, _)| name).collect();
        let bench = Self {
            table,
            program,
            snapshot,
            names,
            draw,
            scratch: Scratch::EMPTY,
            counters: [0; _],
        };
        bench.corrupt(&name(BROKEN));
        bench.register();
        Ok(bench)
    }

    /// Lets the sets of a name reach beyond the end of their segment, which no writer does.
    fn corrupt(&self, name: &Name) {
        let mut wanted = Vec::new();
        for chunk in name.as_wire().chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            wanted.push(u64::from_le_bytes(word));
        }
        let memory = self.table.writer().memory();
        for segment in (0..HEAP_SEGMENTS).map_while(|slot| memory.segment(Region::Heap, slot)) {
            for stored in segment.0.windows(wanted.len() + 2) {
                let (stored, sets) = stored.split_at(wanted.len());
                if stored
                    .iter()
                    .map(|word| word.load())
                    .eq(wanted.iter().copied())
                {
                    let end = SetDescriptor::new(SEGMENT_GRANULES - 1, 20, 0);
                    sets[0].store(end.0);
                    sets[1].store(end.0);
                    return;
                }
            }
        }
        panic!("{name} is not in the table");
    }

    fn register(&self) {
        self.program
            .describe(IFINDEX, IFINDEX, query::MAC, MTU as u32, false);
        for (address, port) in servers() {
            self.program
                .serve(IFINDEX, address, port)
                .expect("there is room for a few");
        }
    }

    fn control(&self) -> &Control {
        self.table.writer().memory().control()
    }

    /// Lets it answer, over a link that takes what links commonly take.
    fn open(&self) {
        self.control()
            .flags
            .store(Control::ENABLED | Control::COMPLETE);
        self.program.interfaces()[IFINDEX as usize].mtu.store(MTU);
    }

    fn on_host<const CAPACITY: usize>(&mut self, packet: &mut Buffer<CAPACITY>) -> Verdict {
        let tables = Shared(self.table.writer().memory(), &self.program);
        let interface = &self.program.interfaces()[IFINDEX as usize];
        respond(packet, &mut self.scratch, &tables, interface, || self.draw)
    }

    /// What the program counted and did, and the frame that it left.
    fn in_kernel(&mut self, frame: &[u8]) -> Result<(Vec<usize>, u32, Vec<u8>)> {
        let mut out = vec![0; LINEAR.max(frame.len())];
        let result = self.program.xdp("peak")?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        let counters = self.program.counters(IFINDEX)?;
        let moved = (0..counters.len())
            .flat_map(|i| std::iter::repeat_n(i, (counters[i] - self.counters[i]) as usize))
            .collect();
        self.counters = counters;
        Ok((moved, result.return_value, out))
    }

    /// The verdict that host and kernel agree on, and the frame that is left.
    fn both(&mut self, frame: &[u8]) -> Result<(Verdict, Vec<u8>)> {
        let mut packet = Buffer::<4096>::new(frame, HEAD, LINEAR - frame.len());
        let verdict = self.on_host(&mut packet);
        let (moved, action, out) = self.in_kernel(frame)?;
        let names: Vec<_> = moved
            .iter()
            .map(|&index| Verdict::all().nth(index))
            .collect();
        assert_eq!(
            names,
            [Some(verdict)],
            "the kernel's verdict, and the host's"
        );
        let wanted = match Verdict::kind(verdict.index()) {
            Kind::Aborted => XDP_ABORTED,
            Kind::Passed => XDP_PASS,
            Kind::Answered => XDP_TX,
        };
        assert_eq!(action, wanted, "XDP action");
        assert_eq!(out, packet.frame(), "the kernel's frame, and the host's");
        Ok((verdict, out))
    }
}

/// How the tables are while one frame is looked at.
struct Circumstances {
    flags: u64,
    mtu: u64,
    head_first: bool,
}

/// A query that is passed for one reason, any of them, and that reason.
fn faulty(rng: &mut Rng, now: &mut Circumstances) -> (Vec<u8>, PassReason) {
    let simple = name("s3.shop.svc.cluster.local");
    let reason = loop {
        match one_of(rng, PassReason::ALL) {
            PassReason::NoRoom => {}
            reason => break reason,
        }
    };
    let server = match reason {
        PassReason::Fragment | PassReason::IpOptions => one_of(rng, &servers()[2..]),
        _ => one_of(rng, &servers()),
    };
    let v4 = server.0.is_ipv4();
    let mut query = Query::random(rng, simple.as_wire(), server);
    // What is done to the parts; then, what to the frame.
    match reason {
        PassReason::NotServed => match rng.u8(..3) {
            0 => query.destination_port ^= 1 << rng.u8(..16),
            _ => {
                query.destination = if v4 {
                    [10, 96, 0, 12].into()
                } else {
                    [0xfd; 16].into()
                }
            }
        },
        PassReason::OtherHost => query.destination_mac[rng.usize(..6)] ^= 1 << rng.u8(..8),
        PassReason::Source => match rng.u8(..3) {
            0 => query.source_mac[0] |= 1,
            1 => query.source_port = 0,
            _ if v4 => query.source = [one_of(rng, &[0, 127, 224, 255]), 0, 0, rng.u8(..)].into(),
            _ => {
                let sources = ["::", "::1", "ff02::1", "::ffff:10.0.0.1"];
                query.source = one_of(rng, &sources).parse::<Ipv6Addr>().unwrap().into();
            }
        },
        PassReason::Disabled => now.flags &= !Control::ENABLED,
        PassReason::NotReady => now.flags &= !Control::COMPLETE,
        PassReason::Response => query.flags |= 0x8000,
        PassReason::Opcode => query.flags |= rng.u16(1..16) << 11,
        PassReason::Questions => query.counts[0] = one_of(rng, &[0, 2, u16::MAX]),
        PassReason::Sections => match rng.u8(..4) {
            0 => query.counts[3] = rng.u16(2..),
            1 => {
                query.opt = None;
                query.counts[3] = 1;
                // A TSIG, or so.
                query.rest = [&[0, 0, 250][..], &bytes(rng, 20)].concat();
            }
            n => query.counts[n as usize - 1] = rng.u16(1..),
        },
        PassReason::Name => {
            let mut name = below(rng, simple.as_wire());
            match rng.u8(..3) {
                0 => name = vec![rng.u8(1..); rng.usize(256..400)],
                _ => name[0] = rng.u8(64..),
            }
            query.name = name;
            // Whatever the labels of the first kind are followed by, no zero byte may end them.
            query.opt = None;
            query.counts[3] = 0;
            (query.query_type, query.class) = match query.name.last() {
                Some(0) => (TYPE_A, 1),
                _ => (0x0101, 0x0101),
            };
        }
        PassReason::Class => query.class = one_of(rng, &[0, 3, 4, 254, 255, 0x8001]),
        PassReason::Type => {
            query.query_type = one_of(rng, &[0, 2, 5, 6, 12, 15, 16, 33, 64, 65, 252, 255]);
        }
        PassReason::Edns => {
            let mut opt = Opt {
                payload_size: rng.u16(..),
                version: 0,
                flags: rng.u16(..),
                options: Vec::new(),
            };
            match rng.u8(..3) {
                0 => opt.version = rng.u8(1..),
                1 => opt.options = [0, 10, 0, 8, 1, 2, 3][..rng.usize(1..8)].into(),
                _ => opt.options = vec![0; 4 * rng.usize(65..100)],
            }
            query.opt = Some(opt);
            query.counts[3] = 1;
        }
        PassReason::Leftover => {
            let more = rng.usize(1..40);
            query.rest = bytes(rng, more);
        }
        PassReason::ForeignName => {
            let foreign = [
                &b"\0"[..],
                b"\x03com\0",
                b"\x07example\x03org\0",
                b"\x05local\0",
            ];
            let foreign = one_of(rng, &foreign);
            query.name = match rng.bool() {
                true => foreign.into(),
                false => below(rng, b"\x07example\0"),
            };
        }
        PassReason::AskFallback => {
            query.name = match rng.bool() {
                true => name(ASK).as_wire().into(),
                // No names but those of its endpoints are there.
                false => below(rng, name(&format!("other.{SUBTREE}")).as_wire()),
            };
        }
        PassReason::TooLarge => {
            if rng.bool() {
                query.name = name(HUGE).as_wire().into();
            } else {
                now.mtu = 68;
            }
        }
        _ => {}
    }
    let mut frame = query.frame(rng);
    let (ip, udp) = (query.ip(), query.udp());
    match reason {
        PassReason::NotIp => {
            let types = [0x0806_u16, 0x88cc, 0x8847, 0, 1500];
            frame[ip - 2..ip].copy_from_slice(&one_of(rng, &types).to_be_bytes());
        }
        PassReason::NotUdp => {
            let at = if v4 { 9 } else { 6 };
            frame[ip + at] = one_of(rng, &[0, 1, 6, 43, 44, 58, 60]);
        }
        PassReason::Truncated => match rng.u8(..4) {
            0 => frame[udp + 10] |= 2,
            _ => frame.truncate(rng.usize(14..udp + 8 + query.message().len())),
        },
        PassReason::BadHeader => match rng.u8(..3) {
            0 => frame[ip] ^= 0x10 << rng.u8(..4),
            1 => frame[udp + 5] ^= 1 << rng.u8(..8),
            _ if v4 => frame[ip + one_of(rng, &[1, 4, 5, 8, 10, 11])] ^= 1 << rng.u8(..8),
            _ => frame[udp + 6..udp + 8].fill(0),
        },
        PassReason::Fragment => {
            let field = [0x2000_u16, rng.u16(1..0x2000), 0x2000 | rng.u16(..0x2000)];
            frame[ip + 6..ip + 8].copy_from_slice(&one_of(rng, &field).to_be_bytes());
            mend_header(&mut frame, ip);
        }
        PassReason::IpOptions => frame[ip] = 0x40 | one_of(rng, &[0, 4, 6, 15]),
        _ => {}
    }
    (frame, reason)
}

#[test]
fn kernel_and_host_agree_and_answer_as_the_fallback_does() -> Result<()> {
    let seed = match env::var("PEAK_SEED") {
        Ok(seed) => seed.parse().context("PEAK_SEED is a number")?,
        Err(_) => fastrand::u64(..),
    };
    println!("PEAK_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut bench = Bench::new(&mut rng)?;
    assert!(bench.names.len() >= 200, "{} names", bench.names.len());
    let lengths: BTreeSet<_> = bench
        .names
        .iter()
        .map(|name| name.as_wire().len())
        .collect();
    assert_eq!((lengths.first(), lengths.last()), (Some(&3), Some(&255)));

    let forwarding = Policy::new([Name::parse(".")?], Vec::new());
    let not_forwarding = Policy::default();
    let drawn = name(DRAWN);
    let picks = |asked: &[u8]| (asked == drawn.as_wire()).then_some(usize::from(PICK));
    let mut reached = BTreeMap::<Verdict, u64>::new();
    for _ in 0..FRAMES {
        let recursion = rng.bool();
        let mut now = Circumstances {
            flags: Control::ENABLED
                | Control::COMPLETE
                | if recursion {
                    Control::RECURSION_AVAILABLE
                } else {
                    0
                },
            mtu: if rng.u8(..20) == 0 { 600 } else { MTU },
            head_first: rng.bool(),
        };
        let (frame, expected) = match rng.u8(..100) {
            0..26 => {
                let (frame, reason) = faulty(&mut rng, &mut now);
                (frame, Some(Verdict::Passed(reason)))
            }
            26 => {
                let broken = name(BROKEN);
                let server = one_of(&mut rng, &servers());
                let mut query = Query::random(&mut rng, broken.as_wire(), server);
                // So that 20 records fit.
                query.opt = Some(Opt::PLAIN);
                query.counts[3] = 1;
                now.mtu = MTU;
                (
                    query.frame(&mut rng),
                    Some(Verdict::Aborted(AbortReason::Table)),
                )
            }
            kind => {
                let stored = rng.usize(..bench.names.len());
                let stored = bench.names[stored].as_wire();
                let asked = match rng.u8(..4) {
                    0 => below(&mut rng, stored),
                    _ => stored.into(),
                };
                let server = one_of(&mut rng, &servers());
                let query = Query::random(&mut rng, &asked, server);
                let mut frame = query.frame(&mut rng);
                if kind >= 80 {
                    mutate(&mut rng, &mut frame, query.ip());
                }
                (frame, None)
            }
        };
        bench.control().flags.store(now.flags);
        let interface = &bench.program.interfaces()[IFINDEX as usize];
        interface.mtu.store(now.mtu);
        interface.head_first.store(now.head_first.into());
        let policy = if recursion {
            &forwarding
        } else {
            &not_forwarding
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<Verdict> {
            let (verdict, left) = bench.both(&frame)?;
            if let Some(expected) = expected {
                assert_eq!(
                    verdict, expected,
                    "the verdict, and the one that was aimed at"
                );
            }
            match verdict {
                Verdict::Answered(..) => {
                    reply::check(&frame, &left, &bench.snapshot, policy, picks);
                }
                Verdict::Passed(_) => assert_eq!(left, frame, "passed, but not as it came"),
                Verdict::Aborted(_) => {}
            }
            Ok(verdict)
        }));
        match outcome {
            Ok(verdict) => *reached.entry(verdict?).or_default() += 1,
            Err(panic) => {
                eprintln!("PEAK_SEED={seed} frame {}", hex(&frame));
                resume_unwind(panic);
            }
        }
    }

    println!("{reached:#?}");
    for verdict in Verdict::all() {
        let times = reached.get(&verdict).copied().unwrap_or(0);
        match verdict {
            Verdict::Passed(PassReason::NoRoom) | Verdict::Aborted(AbortReason::Resized) => {
                assert_eq!(times, 0, "{verdict:?} can't be reached here");
            }
            _ => assert!(times >= LEAST, "{verdict:?}: {times} times"),
        }
    }
    let answered: u64 = reached
        .iter()
        .filter(|(verdict, _)| matches!(verdict, Verdict::Answered(..)))
        .map(|(_, times)| times)
        .sum();
    assert!(answered as usize >= FRAMES / 3, "{answered} answers");

    without_tailroom(&mut rng, &mut bench)
}

/// On the host alone: a frame that can only grow before its head becomes the reply that it would have become
/// otherwise; one that cannot grow at all passes as it came.
fn without_tailroom(rng: &mut Rng, bench: &mut Bench) -> Result<()> {
    bench.open();
    let one = name("s3.shop.svc.cluster.local");
    for _ in 0..LEAST {
        let server = one_of(rng, &servers());
        let mut query = Query::random(rng, one.as_wire(), server);
        query.opt = None;
        query.counts[3] = 0;
        query.query_type = TYPE_AAAA;
        let frame = query.frame(rng);
        let (verdict, reply) = bench.both(&frame)?;
        assert_eq!(
            verdict,
            Verdict::Answered(QueryType::Aaaa, Outcome::Records)
        );

        let mut by_head = Buffer::<4096>::new(&frame, reply.len() - frame.len(), 0);
        assert_eq!(bench.on_host(&mut by_head), verdict);
        assert_eq!(by_head.frame(), reply);
        let mut narrow = Buffer::<4096>::new(&frame, reply.len() - frame.len() - 1, 0);
        let verdict = bench.on_host(&mut narrow);
        assert_eq!(verdict, Verdict::Passed(PassReason::NoRoom));
        assert_eq!(narrow.frame(), frame);
    }
    Ok(())
}

/// Every name, A, AAAA and another type, with and without EDNS: what the kernel does not answer has its reason, and what
/// it answers is what the fallback says.
#[test]
fn every_name_is_answered_as_the_fallback_answers_it() -> Result<()> {
    let mut rng = Rng::with_seed(0);
    let mut bench = Bench::new(&mut rng)?;
    bench.open();
    let policy = Policy::default();
    let (drawn, ask, broken) = (name(DRAWN), name(ASK), name(BROKEN));
    let picks = |asked: &[u8]| (asked == drawn.as_wire()).then_some(usize::from(PICK));
    let mut answered = 0;
    let names = bench.names.clone();
    for name in names.iter().filter(|&name| *name != broken) {
        for server in servers() {
            for (opt, query_type) in [None, Some(Opt::PLAIN)]
                .into_iter()
                .flat_map(|opt| [TYPE_A, TYPE_AAAA, TYPE_TXT].map(|qtype| (opt.clone(), qtype)))
            {
                let mut query = Query::random(&mut rng, name.as_wire(), server);
                query.counts[3] = opt.is_some().into();
                (query.opt, query.query_type) = (opt, query_type);
                let frame = query.frame(&mut rng);
                let (verdict, left) = bench.both(&frame)?;
                let what = format!("{name} {query_type} to {server:?}: {verdict:?}");
                let Verdict::Answered(..) = verdict else {
                    let reason = if query_type == TYPE_TXT {
                        PassReason::Type
                    } else if *name == ask {
                        PassReason::AskFallback
                    } else {
                        let truncated = reply::is_truncated(&frame, &bench.snapshot, &policy);
                        assert!(truncated, "{what}");
                        PassReason::TooLarge
                    };
                    assert_eq!(verdict, Verdict::Passed(reason), "{what}");
                    assert!(left == frame, "{what}: passed, but not as it came");
                    continue;
                };
                reply::check(&frame, &left, &bench.snapshot, &policy, picks);
                answered += 1;
            }
        }
    }
    // Two types of three, but for those that are too large.
    assert!(answered > names.len() * servers().len() * 3, "{answered}");
    Ok(())
}

/// What the program sees of a frame in several parts is the first of them. It passes, whatever that holds, and also where
/// the query ends with it, so that only resizing tells that something follows.
#[test]
fn frames_in_several_parts_pass_as_they_came() -> Result<()> {
    let mut rng = Rng::with_seed(0);
    let mut bench = Bench::new(&mut rng)?;
    bench.open();
    let one = name("s3.shop.svc.cluster.local");
    for server in servers() {
        for (end, reason) in [
            (LINEAR - 1, PassReason::Leftover),
            (LINEAR, PassReason::NoRoom),
            (LINEAR + 1, PassReason::Truncated),
        ] {
            let mut query = Query::random(&mut rng, one.as_wire(), server);
            query.query_type = TYPE_AAAA;
            query.opt = Some(Opt::PLAIN);
            query.counts[3] = 1;
            let options = end - query.udp() - 8 - query.message().len();
            query.opt = Some(Opt {
                options: query::option(OPTION_PADDING, &vec![0; options - 4]),
                ..Opt::PLAIN
            });
            let sound = query.frame(&mut rng);
            assert_eq!(sound.len(), end);
            // Without anything after it, in one part.
            if end <= LINEAR {
                let (verdict, _) = bench.both(&sound)?;
                let answered = Verdict::Answered(QueryType::Aaaa, Outcome::Records);
                assert_eq!(verdict, answered, "{server:?} {end}");
            }
            for more in [1, 2, 1000, 4096, 10_000] {
                let frame = [&sound[..], &bytes(&mut rng, more)].concat();
                let (moved, action, out) = bench.in_kernel(&frame)?;
                let what = format!("{server:?} {end} and {more} more");
                assert_eq!(moved, [Verdict::Passed(reason).index()], "{what}");
                assert_eq!(action, XDP_PASS, "{what}");
                assert!(out == frame, "{what}: passed, but not as it came");
            }
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
