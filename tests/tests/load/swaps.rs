//! Names whose sets are swapped for disjoint ones, thousands of times a second, while they are asked for.
//!
//! Which set an answer must be is known from two counts that the writer keeps, of swaps that began and of those that were
//! made: one that began after the query was answered cannot be seen, one that was made before it was asked must be.

use std::{
    array,
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Release},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use fastrand::Rng;
use peak_common::abi::SEGMENT_BYTES;
use peak_tests::eventually;
use peak_userspace::snapshot::{ServiceKey, ServiceRecords};

use crate::{
    Addresses, EndWhenDropped, Expected, LIMIT, TYPES, ZONE, alone,
    bench::{Bench, Reader, Update, Writer},
    name,
    wire::{self, Query},
};

/// Queries, all of which must be answered.
const QUERIES: u64 = 2_000_000;
/// Swaps a second that are tried for.
const SWAPS: f64 = 4000.0;
/// Swaps that there have to be in all, or the queries have seen too few.
const LEAST_SWAPS: u64 = 2000;
/// How often each set must be seen in each way of asking.
const LEAST_SEEN: u64 = 1000;
/// Megabytes that the heap may take: some in use, some in quarantine.
const MOST_SEGMENTS: u32 = 4;
/// How often as much must have been written as the heap ever took.
const LEAST_TURNS: u64 = 5;

/// Addresses of a name, AAAA and A; `None`: it does not exist.
type Sizes = Option<(u16, u16)>;

/// Names, and how many addresses they have in one and the other state. Beyond 4 KiB a name's addresses lie apart from its
/// record: `six` and `four` have so many of one family that those of the other lie apart too.
const SWAPPED: [(&str, [Sizes; 2]); 10] = [
    ("one", [Some((1, 1)); 2]),
    ("three", [Some((3, 3)); 2]),
    ("eight", [Some((8, 8)); 2]),
    ("forty", [Some((40, 40)); 2]),
    ("six", [Some((20, 2000)); 2]),
    ("four", [Some((400, 30)); 2]),
    // Where one set was, a larger or a smaller one will be.
    ("uneven", [Some((1, 24)), Some((30, 2))]),
    ("grown-apart", [Some((2, 3)), Some((35, 1500))]),
    ("either", [Some((5, 0)), Some((0, 5))]),
    ("coming-and-going", [Some((2, 2)), None]),
];
/// Names that nothing happens to: among the others, and never there.
const NEIGHBOURS: [(&str, Sizes); 2] = [("neighbour", Some((4, 4))), ("nobody", None)];

/// Most records of an answer, AAAA and A; the fallback is not asked. And those of one without OPT.
const MOST_RECORDS: [usize; 2] = [40, 70];
const MOST_WITHOUT_OPT: usize = 8;

/// A service that publishes its own name, and nothing else.
struct Service {
    name: &'static str,
    states: [Option<Addresses>; 2],
    /// Swaps that began.
    began: AtomicU64,
    /// Swaps that were made: their parity is the state.
    made: AtomicU64,
}

impl Service {
    /// No other service or state has any of its addresses.
    fn new(number: u8, name: &'static str, sizes: [Sizes; 2]) -> Self {
        let states = array::from_fn(|state| {
            let (six, four) = sizes[state]?;
            let six = (1..=six).map(|i| {
                let subnet = u16::from_be_bytes([number, state as u8]);
                Ipv6Addr::new(0xfd00, 0xa, 0, subnet, 0xb, 0xc, subnet, i).into()
            });
            let four = (1..=four).map(|i| {
                let [high, low] = i.to_be_bytes();
                Ipv4Addr::new(10, 2 * number + state as u8, high, low).into()
            });
            Some([six.collect(), four.collect()])
        });
        Self {
            name,
            states,
            began: AtomicU64::default(),
            made: AtomicU64::default(),
        }
    }

    fn update(&self, state: usize) -> Update {
        let records = self.states[state].as_ref().map(|addresses| ServiceRecords {
            addresses: addresses.iter().flatten().copied().collect(),
            ..ServiceRecords::default()
        });
        (ServiceKey::new("shop", self.name), records)
    }

    fn is_swapped(&self) -> bool {
        SWAPPED.iter().any(|&(name, _)| name == self.name)
    }
}

/// One way of asking for one type of a service's addresses.
struct Case<'s> {
    service: &'s Service,
    qtype: &'static str,
    query: Query,
    /// In either state.
    expected: [Expected; 2],
    /// How often each was seen.
    seen: [u64; 2],
}

impl<'s> Case<'s> {
    /// Both types as far as their answers are small enough, over IPv6 and IPv4, with OPT and without.
    fn of(service: &'s Service) -> impl Iterator<Item = Self> {
        let sets = [0, 1].map(|family| {
            let states = service.states.each_ref();
            states.map(|state| Some(&state.as_ref()?[family][..]))
        });
        let largest = sets.map(|states| {
            states
                .into_iter()
                .flatten()
                .map(<[_]>::len)
                .max()
                .unwrap_or(0)
        });
        let families = (0..2).filter(move |&family| largest[family] <= MOST_RECORDS[family]);
        let ways = families.flat_map(|family| {
            wire::servers().map(|server| [false, true].map(|edns| (family, server, edns)))
        });
        ways.flatten()
            .filter(move |&(family, _, edns)| edns || largest[family] <= MOST_WITHOUT_OPT)
            .map(move |(family, server, edns)| {
                let (number, qtype) = TYPES[family];
                let name = name(&format!("{}.shop.svc.{ZONE}", service.name));
                Self {
                    service,
                    qtype,
                    query: Query::new(&name, number, server, edns),
                    expected: sets[family].map(Expected::new),
                    seen: [0; 2],
                }
            })
    }

    /// Asks, and takes note of which state the answer is from.
    fn ask(&mut self, reader: &mut Reader) -> Result<()> {
        let made = self.service.made.load(Acquire);
        let answer = reader.ask(&mut self.query)?;
        let began = self.service.began.load(Acquire);
        let mut states = (made..=began).take(2).map(|swaps| (swaps % 2) as usize);
        match states.find(|&state| self.expected[state].is(&answer)) {
            Some(state) => self.seen[state] += 1,
            None => panic!(
                "{} {} after {made} swaps, or up to {began}: {answer:?}",
                self.service.name, self.qtype
            ),
        }
        Ok(())
    }
}

#[test]
fn a_set_is_swapped_in_one_step() -> Result<()> {
    let _alone = alone();
    let neighbours = NEIGHBOURS.map(|(name, sizes)| (name, [sizes; 2]));
    let services: Vec<_> = SWAPPED
        .into_iter()
        .chain(neighbours)
        .zip(0..)
        .map(|((name, sizes), number)| Service::new(number, name, sizes))
        .collect();
    let swapped = &services[..SWAPPED.len()];
    let at_first = || services.iter().map(|service| service.update(0)).collect();
    let mut cases: Vec<_> = services.iter().flat_map(Case::of).collect();
    let mut bench = Bench::new(&name(ZONE), at_first())?;
    let before = bench.writer.dataplane.stats();

    let Bench { writer, reader, .. } = &mut bench;
    let end = AtomicBool::new(false);
    let (turned_over, elapsed) = thread::scope(|scope| -> Result<_> {
        let writing = scope.spawn(|| swap(writer, swapped, &end));
        let end = EndWhenDropped(&end);
        let began = Instant::now();
        let mut rng = Rng::new();
        for _ in 0..QUERIES {
            let at = rng.usize(..cases.len());
            cases[at].ask(reader)?;
        }
        let elapsed = began.elapsed();
        drop(end);
        Ok((writing.join().expect("the writer panicked"), elapsed))
    })?;

    let made: u64 = swapped
        .iter()
        .map(|service| service.made.load(Acquire))
        .sum();
    let rate = made as f64 / elapsed.as_secs_f64();
    println!(
        "{QUERIES} queries and {made} swaps in {elapsed:?}, {rate:.0} a second; {turned_over:?}"
    );
    assert!(made >= LEAST_SWAPS, "{made} swaps");
    let mut answered = BTreeMap::new();
    for Case {
        service,
        qtype,
        expected,
        seen,
        ..
    } in &cases
    {
        for (expected, seen) in expected.iter().zip(seen) {
            *answered.entry((*qtype, expected.label())).or_default() += seen;
        }
        let seen = if service.is_swapped() {
            &seen[..]
        } else {
            &seen[..1]
        };
        let enough = seen.iter().all(|&times| times >= LEAST_SEEN);
        assert!(enough, "{} {qtype}: {seen:?}", service.name);
    }
    bench.counted(&answered)?;

    // Room was used again and again, and none was lost.
    let TurnedOver {
        written,
        most_segments,
    } = turned_over;
    assert!(most_segments <= MOST_SEGMENTS, "{most_segments} MB");
    let capacity = u64::from(most_segments) * SEGMENT_BYTES as u64;
    assert!(
        written >= LEAST_TURNS * capacity,
        "{written} bytes were written"
    );
    bench.writer.apply(at_first());
    eventually("quarantine to end", LIMIT, || {
        let stats = bench.writer.dataplane.stats();
        Ok((stats.heap_quarantined == 0).then_some(()))
    })?;
    let after = bench.writer.dataplane.stats();
    assert_eq!(
        (after.names, after.unstored, after.heap_used),
        (before.names, 0, before.heap_used)
    );
    Ok(())
}

/// What went through the heap.
#[derive(Debug, Default)]
struct TurnedOver {
    /// Bytes of addresses that were written.
    written: u64,
    /// Segments of the heap at any one time, at most.
    most_segments: u32,
}

/// Swaps one service after the other until the end.
fn swap(writer: &mut Writer, services: &[Service], end: &AtomicBool) -> TurnedOver {
    let mut turned_over = TurnedOver::default();
    let start = Instant::now();
    for (made, service) in services.iter().cycle().enumerate() {
        while made as f64 > start.elapsed().as_secs_f64() * SWAPS {
            thread::sleep(Duration::from_micros(100));
        }
        if end.load(Acquire) {
            break;
        }
        let state = (service.began.load(Acquire) as usize + 1) % 2;
        let update = service.update(state);
        service.began.fetch_add(1, Release);
        writer.apply(vec![update]);
        service.made.fetch_add(1, Release);
        for address in service.states[state].iter().flatten().flatten() {
            turned_over.written += if address.is_ipv6() { 16 } else { 4 };
        }
        let segments = writer.dataplane.stats().heap_segments;
        turned_over.most_segments = turned_over.most_segments.max(segments);
    }
    turned_over
}
