//! From a thousand names to a million and back, while names that are there and names that are not are asked for.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Acquire, Release},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use fastrand::Rng;
use peak_common::abi::SEGMENT_BYTES;
use peak_tests::eventually;
use peak_userspace::{
    dataplane::table::Stats,
    snapshot::{ServiceKey, ServiceRecords},
};

use crate::{
    Addresses, EndWhenDropped, Expected, LIMIT, TYPES, ZONE, alone,
    bench::{Answer, Bench, Update, Writer},
    name,
    wire::{self, Query},
};

/// Names at first and in the end.
const FEW: u64 = 1000;
const MANY: u64 = 1_000_000;
/// Names of one change.
const BATCH: u64 = 1000;
/// Queries that must have been answered while it grew.
const LEAST_QUERIES: u64 = 100_000;

/// Bytes of kernel memory that may be taken for a name, for an address, and whatever the table holds: a megabyte of index,
/// four of heap that are not worth being drawn together, and maps of a fixed size.
const NAME_BYTES: u64 = 128;
const ADDRESS_BYTES: u64 = 16;
const BASE_BYTES: u64 = 6 << 20;

/// Bytes that a table of so many services may take.
fn most_memory(services: u64) -> u64 {
    // Every other one has two addresses.
    BASE_BYTES + services * NAME_BYTES + services * 3 / 2 * ADDRESS_BYTES
}

/// Bytes that the agent says the table takes.
fn in_segments(stats: Stats) -> u64 {
    u64::from(stats.heap_segments + stats.index_segments) * SEGMENT_BYTES as u64
}

/// The addresses of the `i`-th service.
fn addresses(i: u64) -> Addresses {
    let six = Ipv6Addr::from_bits(0xfd00_000a << 96 | u128::from(i) << 20 | 7);
    let four = (i % 2 == 1).then(|| Ipv4Addr::from_bits(10 << 24 | i as u32));
    [vec![six.into()], four.into_iter().map(Into::into).collect()]
}

/// Services that publish one name each: all of them, or nothing any more.
fn updates(services: Range<u64>, there: bool) -> Vec<Update> {
    let update = |i| {
        let key = ServiceKey::new(format!("team-{:03}", i / 1000), format!("svc-{i:07}"));
        let records = ServiceRecords {
            addresses: addresses(i).into_iter().flatten().collect(),
            ..ServiceRecords::default()
        };
        (key, there.then_some(records))
    };
    services.map(update).collect()
}

/// A service's name, of 40 bytes in wire format.
const NAME: &str = "svc-0000000.team-000.svc.cluster.local";

/// Writes another service's number into [`NAME`].
fn renumber(name: &mut [u8], i: u64) {
    for (digits, mut number) in [(5..12, i), (18..21, i / 1000)] {
        for digit in name[digits].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
}

/// Services below `least` exist, and none from `most` on.
#[derive(Default)]
struct Extent {
    least: AtomicU64,
    most: AtomicU64,
}

impl Extent {
    fn load(&self) -> (u64, u64) {
        (self.least.load(Acquire), self.most.load(Acquire))
    }
}

/// Answers that were given, by type and outcome.
type Answered = BTreeMap<(&'static str, &'static str), u64>;

#[test]
fn the_table_grows_and_shrinks_under_queries() -> Result<()> {
    let _alone = alone();
    assert_eq!(name(NAME).as_wire().len(), 40);
    let mut bench = Bench::new(&name(ZONE), updates(0..FEW, true))?;
    let extent = Extent::default();
    extent.least.store(FEW, Release);
    extent.most.store(FEW, Release);
    let mut answered = Answered::new();

    let began = Instant::now();
    under_queries(&mut bench, &extent, &mut answered, |writer| {
        for from in (FEW..MANY).step_by(BATCH as usize) {
            let to = from + BATCH;
            let updates = updates(from..to, true);
            extent.most.store(to, Release);
            writer.apply(updates);
            extent.least.store(to, Release);

            let stats = writer.dataplane.stats();
            let most = most_memory(to);
            assert!(
                in_segments(stats) <= most,
                "{to} services, not in {most} bytes: {stats:?}"
            );
        }
    })?;
    let asked = bench.reader.asked;
    let stats = bench.writer.dataplane.stats();
    println!(
        "{MANY} services after {:?} and {asked} queries: {stats:?}",
        began.elapsed()
    );
    assert!(asked >= LEAST_QUERIES, "{asked} queries");
    assert!(stats.names >= MANY && stats.rehashes >= 5, "{stats:?}");
    assert_eq!(stats.unstored, 0);
    let memory = bench.reader.memory()?;
    println!("{memory} bytes of kernel memory");
    assert!(memory >= in_segments(stats), "some are not counted");
    assert!(
        memory <= most_memory(MANY),
        "{memory} bytes of kernel memory"
    );

    let began = Instant::now();
    under_queries(&mut bench, &extent, &mut answered, |writer| {
        for batch in (FEW / BATCH..MANY / BATCH).rev() {
            let (from, to) = (batch * BATCH, (batch + 1) * BATCH);
            let updates = updates(from..to, false);
            extent.least.store(from, Release);
            writer.apply(updates);
            extent.most.store(from, Release);
        }
    })?;
    println!("{FEW} services after {:?}: {answered:?}", began.elapsed());
    bench.counted(&answered)?;
    let mut memory = 0;
    eventually("memory to be given back", LIMIT, || {
        memory = bench.reader.memory()?;
        Ok((memory <= most_memory(FEW)).then_some(()))
    })
    .with_context(|| format!("{memory} bytes: {:?}", bench.writer.dataplane.stats()))?;
    Ok(())
}

/// Asks for services that exist and for some that don't, as long as `write` writes.
fn under_queries(
    bench: &mut Bench,
    extent: &Extent,
    answered: &mut Answered,
    write: impl FnOnce(&mut Writer) + Send,
) -> Result<()> {
    let mut ways: Vec<_> = (0..2)
        .flat_map(|family| wire::servers().map(|server| (family, server)))
        .flat_map(|(family, server)| [false, true].map(|edns| (family, server, edns)))
        .map(|(family, server, edns)| {
            (
                family,
                Query::new(&name(NAME), TYPES[family].0, server, edns),
            )
        })
        .collect();
    let Bench { writer, reader, .. } = bench;
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let _end = EndWhenDropped(&end);
            write(writer);
        });
        let mut rng = Rng::new();
        while !end.load(Acquire) {
            let before = extent.load();
            // Most of them exist; of those that don't, some soon will, or just did.
            let i = match rng.u8(..4) {
                0 => rng.u64(..2 * MANY),
                1 => before.1.saturating_sub(BATCH) + rng.u64(..2 * BATCH),
                _ => rng.u64(..before.0),
            };
            let way = rng.usize(..ways.len());
            let (family, query) = &mut ways[way];
            renumber(query.name_mut(), i);
            let answer = reader.ask(query)?;
            let after = extent.load();

            let (_, qtype) = TYPES[*family];
            let there = Expected::new(Some(&addresses(i)[*family]));
            let may_be_there = i < before.1.max(after.1);
            let may_be_absent = i >= before.0.min(after.0);
            let seen = match answer {
                Answer::NxDomain if may_be_absent => Expected::NxDomain,
                _ if may_be_there && there.is(&answer) => there,
                _ => panic!("{i} {qtype} at {before:?} to {after:?}: {answer:?}"),
            };
            *answered.entry((qtype, seen.label())).or_default() += 1;
        }
        writing.join().expect("the writer panicked");
        Ok(())
    })
}
