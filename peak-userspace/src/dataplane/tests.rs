//! The writer against the program's own reader.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use peak_common::{
    abi::{
        Control, IndexRef, MIN_BUCKET_BITS, NAME_WORDS, RecordHead, SEGMENT_BUCKETS, SEGMENT_BYTES,
        Segment,
    },
    dns::name::{Name as Question, NameBuffer},
    packet::Buffer,
    table::{self, Found, Tables},
    verdict::QueryType,
};
use proptest::prelude::*;

use super::{
    NodeRecord,
    index::Index,
    memory::{HostMemory, HostTables, Memory, Region},
    table::{Stats, Writer},
};
use crate::{name::Name, snapshot::AddressSet};

const TTL: u32 = 5;

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// The `i`-th of many names of 40 bytes.
fn service(i: u64) -> Name {
    name(&format!("service-{i:08}.shop.svc.cluster.loca"))
}

fn key() -> [u64; 2 * NAME_WORDS] {
    key_of(1)
}

fn key_of(seed: u64) -> [u64; 2 * NAME_WORDS] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        state ^ state >> 29
    })
}

fn writer() -> (Writer<HostMemory>, Arc<HostTables>) {
    let memory = HostMemory::new();
    let tables = memory.tables().clone();
    (Writer::create_with_key(memory, key()).unwrap(), tables)
}

fn node(addresses: impl IntoIterator<Item = IpAddr>) -> NodeRecord {
    NodeRecord {
        addresses: addresses.into_iter().collect(),
        ttl: TTL,
        ..NodeRecord::default()
    }
}

fn v6(i: u64) -> IpAddr {
    Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(i)).into()
}

fn v4(i: u32) -> IpAddr {
    Ipv4Addr::from_bits(10 << 24 | i).into()
}

/// A name in a packet, as the program scans it.
fn ask<R>(tables: &HostTables, wire: &[u8], then: impl FnOnce(Found<'_>) -> R) -> R {
    const NAME_AT: usize = 54;
    let mut frame = vec![0xff; NAME_AT];
    frame.extend_from_slice(wire);
    frame.extend_from_slice(&[0, 28, 0, 1]);
    let packet = Buffer::<512>::new(&frame, 0, 0);
    let control = Tables::control(tables).unwrap();
    let mut buffer = NameBuffer::EMPTY;
    let question = Question::scan(&packet, NAME_AT, control, &mut buffer).unwrap();
    then(table::find(&question, &buffer, control, tables))
}

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Present(NodeRecord),
    Absent,
    AskFallback,
}

/// Looks up a name as the program does, in the case that it has in the packet.
fn see(tables: &HostTables, wire: &[u8]) -> Seen {
    ask(tables, wire, |found| match found {
        Found::Absent => Seen::Absent,
        Found::AskFallback => Seen::AskFallback,
        Found::Present(record) if record.head.flags() & RecordHead::ASK_FALLBACK != 0 => {
            Seen::AskFallback
        }
        Found::Present(record) => {
            let bytes = |query_type, size: usize| {
                let set = record.set(query_type);
                let length = set.count as usize * size;
                if length == 0 {
                    return Vec::new();
                }
                let segment = record.segment_of(set, tables).unwrap();
                let words = segment.0[set.word..].iter().take(length.div_ceil(8));
                let mut bytes: Vec<_> = words.flat_map(|word| word.load().to_ne_bytes()).collect();
                bytes.truncate(length);
                bytes
            };
            let v6 = bytes(QueryType::Aaaa, 16);
            let v4 = bytes(QueryType::A, 4);
            let v6 = v6.as_chunks::<16>().0.iter().map(|&octets| octets.into());
            let v4 = v4.as_chunks::<4>().0.iter().map(|&octets| octets.into());
            Seen::Present(NodeRecord {
                addresses: AddressSet {
                    v4: v4.collect(),
                    v6: v6.collect(),
                },
                ttl: record.head.ttl(),
                zone: record.head.zone() as u8,
                flags: record.head.flags(),
                pick: [QueryType::Aaaa, QueryType::A]
                    .map(|query_type| record.set(query_type).pick as u8)
                    .into_iter()
                    .max()
                    .unwrap(),
            })
        }
    })
}

/// The bytes of a name with every other letter in upper case.
fn mixed_case(name: &Name) -> Vec<u8> {
    let mut wire = name.as_wire().to_vec();
    wire.iter_mut()
        .step_by(2)
        .for_each(u8::make_ascii_uppercase);
    wire
}

#[test]
fn a_name_is_set_changed_and_removed() {
    let (mut writer, tables) = writer();
    let web = name("web.shop.svc.cluster.local");
    assert_eq!(see(&tables, web.as_wire()), Seen::Absent);
    for node in [
        node([v6(1)]),
        node([v6(1), v6(2), v4(1), v4(2), v4(3)]),
        node([]),
        node([v4(7)]),
        NodeRecord {
            ttl: 60,
            zone: 3,
            pick: 2,
            ..node((0..1000).map(v6))
        },
        node((0..1000).map(v6).chain((0..1001).map(v4))),
    ] {
        assert!(writer.set(&web, &node));
        assert_eq!(see(&tables, &mixed_case(&web)), Seen::Present(node.clone()));
        assert_eq!(writer.get(&web), Some(node));
        assert_eq!(writer.stats().names, 1);
    }
    assert!(writer.remove(&web));
    assert!(!writer.remove(&web));
    assert_eq!(see(&tables, web.as_wire()), Seen::Absent);
    assert_eq!(writer.get(&web), None);
    assert!(writer.settle());
    let stats = writer.stats();
    assert_eq!(
        (stats.names, stats.heap_used, stats.heap_quarantined),
        (0, 0, 0)
    );
}

/// Granules of a name's record and addresses.
fn granules(name: &Name, node: &NodeRecord) -> u64 {
    let record = (3 + name.as_wire().len().div_ceil(8)).div_ceil(2);
    let AddressSet { v4, v6 } = &node.addresses;
    match (v6.len(), v4.len()) {
        (1, 0) if node.pick == 0 => record as u64,
        (v6, v4) => (record + v6 + v4.div_ceil(4)) as u64,
    }
}

#[test]
fn the_table_grows_with_its_names() {
    const NAMES: u64 = 300_000;
    let (mut writer, tables) = writer();
    let check = |i: u64, there: bool| {
        let seen = see(&tables, service(i).as_wire());
        let wanted = if there {
            Seen::Present(node([v6(i)]))
        } else {
            Seen::Absent
        };
        assert_eq!(seen, wanted, "name {i}");
    };
    for i in 0..NAMES {
        assert!(writer.set(&service(i), &node([v6(i)])));
        if i % 7 == 0 {
            check(i, true);
            check(i * 31 % (i + 1), true);
            check(i + 1, false);
        }
    }
    (0..NAMES).step_by(5).for_each(|i| check(i, true));
    let stats = writer.stats();
    assert_eq!((stats.names, stats.unstored), (NAMES, 0));
    let doublings = stats.index_bits - MIN_BUCKET_BITS;
    assert_eq!(stats.rehashes, u64::from(doublings));

    // And shrinks with them: the index, and the heap by moving what is left together.
    for i in (0..NAMES).filter(|i| i % 29 != 0) {
        assert!(writer.remove(&service(i)));
    }
    for _ in 0..4 {
        if let Some(batch) = writer.take_quarantine() {
            writer.release(batch);
        }
    }
    (0..NAMES).step_by(29).for_each(|i| check(i, true));
    (1..NAMES).step_by(29).for_each(|i| check(i, false));
    let shrunk = writer.stats();
    assert_eq!(
        (shrunk.index_bits, shrunk.index_segments),
        (Index::bits_for(2 * shrunk.names), 1),
        "{shrunk:?}"
    );
    assert_eq!(shrunk.heap_quarantined, 0);
    assert!(shrunk.heap_segments <= 4, "{shrunk:?}");
    assert_eq!(
        writer.memory().segments() as u32,
        shrunk.heap_segments + shrunk.index_segments
    );
}

#[test]
fn memory_follows_the_data() {
    for names in [1_000, Index::limit(14) + 1, 100_000] {
        let (mut writer, _) = writer();
        for i in 0..names {
            writer.set(&service(i), &node([v6(i)]));
        }
        writer.settle();
        let stats = writer.stats();
        let bytes = (writer.memory().segments() * SEGMENT_BYTES) as u64;
        println!(
            "{names} names: {} B of segments, {} B a name; records take {} B a name",
            bytes,
            bytes / names,
            stats.heap_used / names,
        );
        // The index and the heap are a segment each at least, and a segment of the heap may be all but empty.
        let wanted = names * (128 + 16) + 2 * SEGMENT_BYTES as u64;
        assert!(
            bytes <= wanted,
            "{bytes} bytes for {names} names: {stats:?}"
        );
        // One cache line, the address included.
        assert_eq!(stats.heap_used, names * 64);
    }
}

#[test]
fn memory_follows_names_of_all_sizes() {
    let (mut writer, _) = writer();
    let mut addresses = 0;
    let set = |writer: &mut Writer<HostMemory>, i: u64, salt: u64| {
        // 15 to 62 bytes on the wire; one address, one of each family, or up to eight.
        let name = name(&format!(
            "{}.s{i:06}.local",
            "a".repeat(1 + (i * 7 % 47) as usize)
        ));
        let count = [1, 1, 2, 8][(i % 4) as usize];
        let node = match i % 4 {
            2 => node([v6(i ^ salt), v4(i as u32)]),
            _ => node((0..count).map(|j| v6(i << 8 ^ salt << 40 | j))),
        };
        assert!(writer.set(&name, &node));
        count
    };
    const NAMES: u64 = 30_000;
    for i in 0..NAMES {
        addresses += set(&mut writer, i, 0);
    }
    // What is replaced leaves room, which is used again.
    for salt in 1..4 {
        for i in (0..NAMES).filter(|i| i % 3 == salt % 3) {
            set(&mut writer, i, salt);
        }
        writer.settle();
    }
    let bytes = (writer.memory().segments() * SEGMENT_BYTES) as u64;
    let wanted = NAMES * 128 + addresses * 16 + 2 * SEGMENT_BYTES as u64;
    assert!(
        bytes <= wanted,
        "{bytes} of {wanted} B: {:?}",
        writer.stats()
    );
}

#[test]
fn an_index_that_grew_early_shrinks_again() {
    /// The first of a hundred secrets under which it does.
    const SEED: u64 = 15;
    // Two full buckets before the index is due to grow: so it is under one key in ten.
    let early = |seed| {
        let mut writer = Writer::create_with_key(HostMemory::new(), key_of(seed)).unwrap();
        let mut names = 0;
        while writer.stats().index_bits <= 14 {
            assert!(writer.set(&service(names), &node([])));
            names += 1;
        }
        (names < Index::limit(14)).then_some((writer, names))
    };
    let (mut writer, names) = (SEED..SEED + 100).find_map(early).unwrap();
    for i in 0..names {
        assert!(writer.remove(&service(i)));
    }
    while let Some(batch) = writer.take_quarantine() {
        writer.release(batch);
    }
    assert_eq!(writer.stats().index_bits, MIN_BUCKET_BITS);
}

#[test]
fn names_whose_hashes_differ_in_few_bits_fill_the_index() {
    // '1' and 'q' in the same place differ, folded, by 2⁶ in the high part of a half: products leave the hash's lowest
    // 30 bits as they are.
    let one = |i: u64| {
        let word = |bit: u32| {
            if (i >> bit).is_multiple_of(2) {
                "aa1aaaa"
            } else {
                "aaqaaaa"
            }
        };
        let labels: Vec<_> = (0..17).map(word).collect();
        name(&format!("{}.svc.cluster.local", labels.join(".")))
    };
    let (mut writer, tables) = writer();
    let names = Index::limit(14);
    for i in 0..names {
        assert!(writer.set(&one(i), &node([v6(i)])));
    }
    assert_eq!(writer.stats().index_bits, 14);
    let mut twins = 0;
    for i in 0..names {
        match see(&tables, one(i).as_wire()) {
            // Tags of 13 bits that vary: now and then two are the same in a bucket.
            Seen::AskFallback => twins += 1,
            seen => assert_eq!(seen, Seen::Present(node([v6(i)])), "name {i}"),
        }
    }
    assert!(twins < names / 1000, "{twins}");
}

/// A secret under which names collide in all 64 bits that differ only in what follows [`collision`]'s "same".
fn weak_key() -> [u64; 2 * NAME_WORDS] {
    let mut key = key();
    key[2] = u64::from(u32::from_le_bytes(*b"same")).wrapping_neg();
    key
}

fn collision(i: u64) -> Name {
    name(&format!("paddingsame{i:04}.svc.cluster.local"))
}

#[test]
fn names_that_collide_are_never_lost() {
    const NAMES: u64 = 40;
    /// Two buckets full.
    const STORED: u64 = 14;
    const OTHERS: u64 = 10;
    let memory = HostMemory::new();
    let tables = memory.tables().clone();
    let mut writer = Writer::create_with_key(memory, weak_key()).unwrap();
    for i in 0..OTHERS {
        assert!(writer.set(&service(i), &node([v6(i)])));
    }
    let stored = |writer: &Writer<HostMemory>, names: std::ops::Range<u64>| {
        let mut stored = 0;
        for i in names {
            let there = writer.get(&collision(i)).is_some();
            match see(&tables, &mixed_case(&collision(i))) {
                Seen::Present(seen) => assert!(there && seen == node([v6(i)]), "name {i}"),
                // Also what is stored, but not at home: its home bucket has the mark.
                seen => assert_eq!(seen, Seen::AskFallback, "name {i}"),
            }
            stored += u64::from(there);
        }
        stored
    };
    for i in 0..NAMES {
        assert_eq!(writer.set(&collision(i), &node([v6(i)])), i < STORED);
        assert_eq!(stored(&writer, 0..i + 1), STORED.min(i + 1));
    }
    let stats = writer.stats();
    assert_eq!(
        (stats.names, stats.unstored),
        (OTHERS + STORED, NAMES - STORED)
    );
    assert_eq!(
        stats.index_bits,
        MIN_BUCKET_BITS + 2,
        "it tried two doublings, and no more"
    );
    assert_eq!(see(&tables, collision(NAMES).as_wire()), Seen::AskFallback);

    // Room for some: the others take it.
    for i in 0..10 {
        assert!(writer.remove(&collision(i)));
    }
    let batch = writer.take_quarantine().unwrap();
    writer.release(batch);
    assert_eq!(stored(&writer, 10..NAMES), STORED);
    assert_eq!(writer.stats().unstored, NAMES - STORED - 10);
    for i in 10..NAMES {
        assert!(writer.remove(&collision(i)));
    }
    // A new index has no marks.
    writer.rehash(16).unwrap();
    assert_eq!(see(&tables, collision(NAMES).as_wire()), Seen::Absent);
    for i in 0..OTHERS {
        assert_eq!(
            see(&tables, service(i).as_wire()),
            Seen::Present(node([v6(i)]))
        );
    }
}

#[test]
fn names_that_readers_cannot_tell_apart_are_left_to_the_fallback() {
    let (mut writer, tables) = writer();
    for label in [&b"a`b"[..], b"a{b", b"a~", b"\xe4", b"a\x7f"] {
        let odd = Name::root().child(label).unwrap();
        assert!(!writer.set(&odd, &node([v6(1)])));
        assert_eq!(see(&tables, odd.as_wire()), Seen::AskFallback, "{odd}");
        assert!(writer.remove(&odd));
    }
    let zero = Name::root().child(b"a\0b").unwrap();
    assert!(!writer.set(&zero, &node([v6(1)])));
    let plain = ["_dns-1.example", "x[1]^.example", "9.example", "."];
    for text in plain {
        assert!(writer.set(&name(text), &node([v6(2)])), "{text}");
        assert_eq!(
            see(&tables, &mixed_case(&name(text))),
            Seen::Present(node([v6(2)]))
        );
    }
    assert_eq!(writer.stats().names, plain.len() as u64);
    // A bracket's bit 5 is no letter's, but its hash is the same.
    assert_eq!(
        see(&tables, name("x{1}^.example").as_wire()),
        Seen::AskFallback
    );
}

#[test]
fn a_set_that_no_segment_holds_is_left_to_the_fallback() {
    let (mut writer, tables) = writer();
    let (fits, large) = (name("fits"), name("large"));
    let most = node((0..65_535).map(v6));
    assert!(writer.set(&fits, &most));
    assert_eq!(see(&tables, fits.as_wire()), Seen::Present(most));
    assert!(writer.set(&large, &node((0..65_536).map(v6))));
    assert_eq!(see(&tables, large.as_wire()), Seen::AskFallback);
    assert!(writer.set(&large, &node([v6(1)])));
    assert_eq!(see(&tables, large.as_wire()), Seen::Present(node([v6(1)])));
}

#[test]
fn without_memory_names_wait_and_answers_are_never_stale() {
    let (mut writer, tables) = writer();
    writer.memory_mut().limit(3);
    let large = |i| node((0..1000).map(|j| v6(1000 * i + j)));
    let mut stored = 0;
    while writer.set(&service(stored), &large(stored)) {
        stored += 1;
    }
    assert!(stored > 100, "two megabytes");
    assert!(!writer.set(&service(stored + 1), &large(0)));
    // The old addresses must not be given any more.
    assert!(!writer.set(&service(0), &node((0..65_000).map(v6))));
    assert_eq!(see(&tables, service(0).as_wire()), Seen::AskFallback);
    assert_eq!(writer.stats().unstored, 3);
    for i in stored..stored + 2 {
        assert_eq!(see(&tables, service(i).as_wire()), Seen::AskFallback);
    }
    assert_eq!(see(&tables, service(1).as_wire()), Seen::Present(large(1)));

    // One goes: another takes its room, as soon as the readers have left.
    assert!(writer.remove(&service(1)));
    let batch = writer.take_quarantine().unwrap();
    writer.release(batch);
    assert_eq!(writer.stats().unstored, 2);
    // The system has memory again.
    writer.memory_mut().limit(100);
    writer.maintain();
    assert_eq!(writer.stats().unstored, 0);
    assert_eq!(
        see(&tables, service(stored).as_wire()),
        Seen::Present(large(stored))
    );
    assert_eq!(
        see(&tables, service(0).as_wire()),
        Seen::Present(node((0..65_000).map(v6)))
    );
    assert_eq!(see(&tables, service(1).as_wire()), Seen::Absent);
}

#[test]
fn an_index_that_cannot_grow_sends_what_it_lacks_to_the_fallback() {
    const NAMES: u64 = 100_000;
    let (mut writer, tables) = writer();
    let fill = |writer: &mut Writer<HostMemory>, names: std::ops::Range<u64>| {
        for i in names {
            writer.set(&service(i), &node([v6(i)]));
        }
    };
    // Refused once, it does not ask again for each name.
    let full = Index::limit(14);
    fill(&mut writer, 0..full);
    let segments = writer.memory().segments();
    writer.memory_mut().limit(segments);
    fill(&mut writer, full..full + 1);
    writer.memory_mut().limit(1000);
    fill(&mut writer, full + 1..NAMES);
    let stats = writer.stats();
    assert_eq!(stats.index_bits, 14);
    assert!(stats.unstored > 0 && stats.unstored < 20_000, "{stats:?}");
    let count = |refused: bool| {
        let mut asked = 0;
        for i in 0..NAMES {
            match see(&tables, service(i).as_wire()) {
                Seen::AskFallback => asked += 1,
                seen => assert_eq!(
                    seen,
                    Seen::Present(node([v6(i)])),
                    "name {i}, refused: {refused}"
                ),
            }
        }
        asked
    };
    // And some that are not at home, where a mark stands for them too.
    let asked = count(true);
    assert!(
        (stats.unstored..stats.unstored + 100).contains(&asked),
        "{asked}"
    );
    for _ in 0..stats.unstored.div_ceil(1024) {
        writer.maintain();
    }
    assert_eq!(count(false), 0);
    assert_eq!(writer.stats().unstored, 0);
}

#[test]
fn subtrees_are_looked_for_at_their_depths() {
    let (mut writer, tables) = writer();
    let control = Tables::control(&*tables).unwrap();
    let depths = || control.subtree_depths.each_ref().map(|depth| depth.load());
    let subtree = NodeRecord {
        flags: RecordHead::SUBTREE | RecordHead::ASK_FALLBACK,
        ..node([])
    };
    writer.set_flags(Control::COMPLETE, Control::COMPLETE);
    for text in ["a.b", "b", "c.b", "x.y.z", "a.x.y.z"] {
        assert!(writer.set(&name(text), &subtree));
        assert_eq!(see(&tables, name(text).as_wire()), Seen::AskFallback);
    }
    assert_eq!(depths(), [2, 1, 3, 4]);
    writer.remove(&name("b"));
    assert_eq!(depths(), [2, 1, 3, 4]);
    assert!(writer.set(&name("1.2.3.4.5"), &subtree));
    assert_eq!(
        depths(),
        [2, 5, 3, 4],
        "one that is needed takes the place of one that is not"
    );
    assert_ne!(control.flags.load() & Control::COMPLETE, 0);
    assert!(writer.set(&name("1.2.3.4.5.6"), &subtree));
    writer.set_flags(Control::COMPLETE, Control::COMPLETE);
    assert_eq!(
        control.flags.load() & Control::COMPLETE,
        0,
        "nothing may be denied"
    );
}

#[test]
fn a_table_that_is_damaged_or_foreign_is_not_adopted() {
    let adopt = |damage: &dyn Fn(&HostMemory)| {
        let (mut writer, _) = writer();
        (0..100).for_each(|i| assert!(writer.set(&service(i), &node([v6(i), v4(1)]))));
        (100..110).for_each(|i| assert!(writer.set(&service(i), &node([v6(i)]))));
        let memory = writer.into_memory();
        damage(&memory);
        Writer::adopt(memory)
            .map(|writer| writer.stats().names)
            .map_err(|error| error.to_string())
    };
    let entry = |memory: &HostMemory| -> usize {
        let Segment(words) = memory.segment(Region::Index, 0).unwrap();
        words.iter().position(|word| word.load() != 0).unwrap()
    };
    assert_eq!(adopt(&|_| {}), Ok(110));
    let error = adopt(&|memory| memory.control().abi_version.store(7)).unwrap_err();
    assert!(error.contains("version 7"), "{error}");
    adopt(&|memory| memory.control().index.store(IndexRef::new(0, 15).0)).unwrap_err();
    adopt(&|memory| memory.control().index.store(IndexRef::new(1, 14).0)).unwrap_err();
    adopt(&|memory| memory.control().hash_key[0].store(1)).unwrap_err();
    for broken in [0, 1 << 32, u64::MAX, 0xffff] {
        adopt(&|memory| {
            let word = &memory.segment(Region::Index, 0).unwrap().0[entry(memory)];
            word.store(word.load() ^ broken.max(1));
        })
        .unwrap_err();
    }
    // Two records that claim the same addresses.
    adopt(&|memory| {
        let Segment(words) = memory.segment(Region::Heap, 0).unwrap();
        let claims: Vec<_> = words.iter().filter(|word| word.load() >> 32 == 1).collect();
        claims[0].store(claims[4].load());
    })
    .unwrap_err();
}

/// A reader that has begun: which index and words it may still read, and what these must be.
struct Begun {
    at: u64,
    index: IndexRef,
    words: Vec<(u32, usize, u64)>,
}

/// The words of a name's addresses: slot, place, and value.
fn words_of(tables: &HostTables, name: &Name) -> Vec<(u32, usize, u64)> {
    let sets = ask(tables, name.as_wire(), |found| match found {
        Found::Present(record) => {
            [(QueryType::Aaaa, 4), (QueryType::A, 1)].map(|(query_type, halves)| {
                let set = record.set(query_type);
                (set.slot, set.word, (set.count * halves).div_ceil(2))
            })
        }
        _ => [(0, 0, 0); 2],
    });
    let mut words = Vec::new();
    for (slot, first, count) in sets.into_iter().filter(|&(_, _, count)| count > 0) {
        let segment = tables.heap_segment(slot).unwrap();
        let values = segment.0[first..].iter().take(count as usize);
        words.extend(
            values
                .enumerate()
                .map(|(i, word)| (slot, first + i, word.load())),
        );
    }
    words
}

#[derive(Clone, Default)]
struct Readers(Arc<Mutex<Vec<Begun>>>);

impl Readers {
    /// Ends the readers that began before `at`.
    fn end(&self, tables: &HostTables, at: u64) {
        self.0.lock().unwrap().retain(|reader| {
            if reader.at >= at {
                return true;
            }
            let last = ((1 << reader.index.bucket_bits()) - 1) / SEGMENT_BUCKETS;
            for slot in [0, last] {
                let segment = tables.index_segment(reader.index.first_slot() + slot);
                assert!(segment.is_some(), "a reader's index is there");
            }
            for &(slot, word, value) in &reader.words {
                let segment = tables
                    .heap_segment(slot)
                    .expect("a reader's segment is there");
                assert_eq!(segment.0[word].load(), value, "changed under its reader");
            }
            false
        });
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(usize, usize, usize),
    Remove(usize),
    Take,
    Release,
    Settle,
    Rehash(u32),
    Limit(Option<usize>),
    Adopt,
    Sync,
    Begin(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let count = prop_oneof![8 => 0..4usize, 2 => 0..300usize, 1 => 2_000..30_000usize];
    let step = prop_oneof![
        30 => (0..80usize, count.clone(), count).prop_map(|(name, v6, v4)| Step::Set(name, v6, v4)),
        12 => (0..80usize).prop_map(Step::Remove),
        6 => Just(Step::Take),
        6 => Just(Step::Release),
        2 => Just(Step::Settle),
        1 => (14..16u32).prop_map(Step::Rehash),
        1 => prop::option::of(2..6usize).prop_map(Step::Limit),
        1 => Just(Step::Adopt),
        2 => Just(Step::Sync),
        6 => (0..80usize).prop_map(Step::Begin),
    ];
    prop::collection::vec(step, 1..120)
}

/// Names of all kinds: plain ones, colliding ones, the longest, and ones that readers can't tell from others.
fn names() -> Vec<Name> {
    let long = format!("{0}.{0}.{0}.{1}", "l".repeat(63), "m".repeat(60));
    let mut names: Vec<_> = (0..50).map(service).chain((0..20).map(collision)).collect();
    names.extend((0..5).map(|i| name(&format!("{i}{}", &long[1 + i..]))));
    names.extend(
        [
            "a`b.example",
            "a{b.example",
            "example",
            ".",
            r"a\000b.example",
        ]
        .map(name),
    );
    names
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn readers_see_what_was_set(steps in steps()) {
        let names = names();
        let is_plain = |i: usize| i < 50 || (70..75).contains(&i) || (77..79).contains(&i);
        let mut wanted: BTreeMap<usize, NodeRecord> = BTreeMap::new();
        let mut limited = false;
        let mut batches = VecDeque::new();
        let readers = Readers::default();
        let mut memory = HostMemory::new();
        let tables = memory.tables().clone();
        let (all, at_barrier) = (readers.clone(), tables.clone());
        memory.on_barrier(move || all.end(&at_barrier, u64::MAX));
        let mut writer = Writer::create_with_key(memory, weak_key()).unwrap();

        let index = || IndexRef(Tables::control(&*tables).unwrap().index.load());
        let check = |wanted: &BTreeMap<usize, NodeRecord>, i: usize, limited: bool| {
            let seen = see(&tables, &mixed_case(&names[i]));
            let right = wanted.get(&i).map_or(Seen::Absent, |node| Seen::Present(node.clone()));
            let may_ask = limited || !is_plain(i);
            assert!(seen == right || may_ask && seen == Seen::AskFallback, "{}: {seen:?}, not {right:?}", names[i]);
        };
        for (now, step) in steps.into_iter().enumerate() {
            let now = now as u64;
            match step {
                Step::Set(i, v6s, v4s) => {
                    let first = now * 100_000;
                    let addresses = (first..first + v6s as u64).map(v6);
                    let node = node(addresses.chain((0..v4s as u32).map(v4)));
                    let pick = u8::from(!node.addresses.is_empty());
                    let node = NodeRecord { pick, ..node };
                    writer.set(&names[i], &node);
                    wanted.insert(i, node);
                    check(&wanted, i, limited);
                }
                Step::Remove(i) => {
                    writer.remove(&names[i]);
                    wanted.remove(&i);
                    check(&wanted, i, limited);
                }
                Step::Take => batches.extend(writer.take_quarantine().map(|batch| (now, batch))),
                Step::Release => {
                    if let Some((at, batch)) = batches.pop_front() {
                        readers.end(&tables, at);
                        writer.release(batch);
                    }
                }
                Step::Settle => prop_assert!(writer.settle()),
                Step::Rehash(bits) => {
                    let done = writer.rehash(bits);
                    prop_assert!(done.is_ok() || limited);
                }
                Step::Limit(limit) => {
                    let segments = writer.memory().segments();
                    writer.memory_mut().limit(limit.map_or(1000, |more| segments + more));
                    limited |= limit.is_some();
                }
                Step::Adopt => {
                    prop_assert!(writer.settle());
                    let before = writer.stats();
                    batches.clear();
                    writer = Writer::adopt(writer.into_memory()).unwrap();
                    let after = writer.stats();
                    prop_assert_eq!((before.names, before.heap_used, before.heap_free), (after.names, after.heap_used, after.heap_free));
                }
                Step::Sync => {
                    for (&i, node) in &wanted {
                        writer.set(&names[i], node);
                    }
                    let kept: BTreeSet<_> = wanted.keys().map(|&i| &names[i]).collect();
                    writer.retain(|name| kept.contains(name));
                    writer.all_names_set();
                }
                Step::Begin(i) => {
                    let words = words_of(&tables, &names[i]);
                    readers.0.lock().unwrap().push(Begun { at: now, index: index(), words });
                }
            }
            if now.is_multiple_of(8) {
                (0..names.len()).for_each(|i| check(&wanted, i, limited));
            }
        }
        (0..names.len()).for_each(|i| check(&wanted, i, limited));
        // Nothing is lost of the room, whoever counts.
        while let Some(batch) = writer.take_quarantine() {
            readers.end(&tables, u64::MAX);
            writer.release(batch);
        }
        prop_assert!(writer.settle());
        (0..names.len()).for_each(|i| check(&wanted, i, limited));
        let used: u64 = names.iter().filter_map(|name| Some(granules(name, &writer.get(name)?))).sum();
        prop_assert_eq!(writer.stats().heap_used, used * 16);
        let before = writer.stats();
        let adopted = Writer::adopt(writer.into_memory()).unwrap().stats();
        prop_assert_eq!(adopted, Stats { unstored: 0, rehashes: 0, ..before });
        (0..names.len()).for_each(|i| check(&wanted, i, limited));
    }
}

/// The addresses of a generation of a name: their number and values tell it.
fn generation(g: u64) -> NodeRecord {
    node((0..g * 7919 % 20 + 1).map(|i| v6(g << 16 | i)))
}

/// Which generation a record is of, if it is whole.
fn generation_of(node: &NodeRecord) -> Option<u64> {
    let first = node.addresses.v6.first()?;
    let g = (first.to_bits() as u64) >> 16;
    (*node == generation(g)).then_some(g)
}

#[test]
fn a_reader_sees_the_old_or_the_new_and_never_a_gap() {
    const HOT: usize = 4;
    const SWAPS: u64 = 30_000;
    /// Names that come and go, so that the index grows and shrinks meanwhile.
    const OTHERS: u64 = 60_000;
    let (mut writer, tables) = writer();
    let hot: Arc<Vec<_>> = Arc::new((0..HOT as u64).map(|i| service(1_000_000 + i)).collect());
    let steady = service(2_000_000);
    assert!(writer.set(&steady, &node([v6(1)])));
    hot.iter()
        .for_each(|name| assert!(writer.set(name, &generation(1))));

    // Which generations may be seen, name by name: set for certain, and perhaps set.
    let certain: Arc<[AtomicU64; HOT]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(1)));
    let perhaps: Arc<[AtomicU64; HOT]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(1)));
    let pauses = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));

    let reader = std::thread::spawn({
        let (tables, hot, certain, perhaps) = (
            tables.clone(),
            hot.clone(),
            certain.clone(),
            perhaps.clone(),
        );
        let (pauses, done) = (pauses.clone(), done.clone());
        move || {
            let mut swaps_seen = 0;
            let mut last = [0; HOT];
            while !done.load(SeqCst) {
                for (i, name) in hot.iter().enumerate() {
                    let from = certain[i].load(SeqCst);
                    let seen = see(&tables, name.as_wire());
                    let to = perhaps[i].load(SeqCst);
                    let Seen::Present(node) = &seen else {
                        panic!("{name}: {seen:?}")
                    };
                    let g = generation_of(node)
                        .unwrap_or_else(|| panic!("{name}: a mixture, {node:?}"));
                    assert!(
                        (from..=to).contains(&g),
                        "{name}: generation {g} of {from} to {to}"
                    );
                    swaps_seen += u64::from(g != last[i]);
                    last[i] = g;
                }
                assert_eq!(see(&tables, steady.as_wire()), Seen::Present(node([v6(1)])));
                assert_eq!(see(&tables, service(3_000_000).as_wire()), Seen::Absent);
                // Between two packets: what the kernel calls a quiescent state.
                pauses.fetch_add(1, SeqCst);
            }
            pauses.store(u64::MAX, SeqCst);
            swaps_seen
        }
    });
    // Should this thread panic, the other one ends all the same.
    struct Done(Arc<AtomicBool>);
    impl Drop for Done {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let guard = Done(done);

    let at_barrier = pauses.clone();
    writer.memory_mut().on_barrier(move || {
        let begun = at_barrier.load(SeqCst);
        while at_barrier.load(SeqCst) <= begun && begun != u64::MAX {
            std::thread::yield_now();
        }
    });
    let mut waiting = VecDeque::new();
    let mut reused = 0;
    for swap in 2..SWAPS {
        let i = swap as usize % HOT;
        perhaps[i].store(swap, SeqCst);
        assert!(writer.set(&hot[i], &generation(swap)));
        certain[i].store(swap, SeqCst);
        for other in 4 * swap..4 * swap + 4 {
            let round = other / OTHERS;
            let other = service(other % OTHERS);
            if round.is_multiple_of(2) {
                assert!(writer.set(&other, &node([v6(swap)])));
            } else {
                writer.remove(&other);
            }
        }
        if swap.is_multiple_of(16) {
            let batch = writer.take_quarantine();
            waiting.extend(batch.map(|batch| (pauses.load(SeqCst), batch)));
            while waiting
                .front()
                .is_some_and(|(begun, _)| pauses.load(SeqCst) > *begun)
            {
                writer.release(waiting.pop_front().unwrap().1);
                reused += 1;
            }
        }
    }
    drop(guard);
    let swaps_seen = reader.join().unwrap();
    assert!(swaps_seen > 100, "the reader saw {swaps_seen} swaps");
    assert!(reused > 100, "room was free again {reused} times");
    let stats = writer.stats();
    assert!(stats.rehashes > 1, "{stats:?}");
    assert!(stats.heap_segments < 20, "room is used again: {stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_adopted_can_be_put_right(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..64u32), 1..4)
    ) {
        let (mut writer, tables) = writer();
        let names: Vec<_> = (0..60).map(service).collect();
        let nodes: Vec<_> = (0..60).map(|i| node((0..i % 4).map(v6).chain([v4(1)]))).collect();
        for (name, node) in names.iter().zip(&nodes) {
            prop_assert!(writer.set(name, node));
        }
        let memory = writer.into_memory();
        // Any bit of what is in use: the control block's head, buckets that are not empty, and records.
        let control = memory.control();
        let in_use = |region| {
            let Segment(words) = memory.segment(region, 0).unwrap();
            words.iter().filter(|word| word.load() != 0)
        };
        let words: Vec<_> = [&control.index, &control.names, &control.flags, &control.hash_key[2]]
            .into_iter()
            .chain(in_use(Region::Index))
            .chain(in_use(Region::Heap))
            .collect();
        for (index, bit) in flips {
            let word = index.get(&words);
            word.store(word.load() ^ 1 << bit);
        }
        if let Ok(mut writer) = Writer::adopt(memory) {
            for (name, node) in names.iter().zip(&nodes) {
                prop_assert!(writer.set(name, node));
            }
            writer.retain(|name| names.contains(name));
            prop_assert!(writer.settle());
            for (name, node) in names.iter().zip(&nodes) {
                prop_assert_eq!(see(&tables, name.as_wire()), Seen::Present(node.clone()));
            }
            let used: u64 = names.iter().zip(&nodes).map(|(name, node)| granules(name, node)).sum();
            prop_assert_eq!(writer.stats().heap_used, used * 16);
            prop_assert_eq!(writer.stats().names, 60);
        }
    }
}
