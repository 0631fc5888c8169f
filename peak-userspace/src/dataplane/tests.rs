//! The writer against the program's own reader.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use peak_common::{
    abi::{NAME_WORDS, RecordHead},
    dns::name::Name as Question,
    packet::Buffer,
    table::{self, Found, Tables},
    verdict::QueryType,
};

use super::{
    NodeRecord,
    memory::{HostMemory, HostTables},
    table::Writer,
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
    let mut state = 1u64;
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

/// What a reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Present(NodeRecord),
    Absent,
    AskFallback,
}

/// Looks up a name as the program does, in the case that it has in the packet.
fn see(tables: &HostTables, wire: &[u8]) -> Seen {
    const NAME_AT: usize = 54;
    let mut frame = vec![0xff; NAME_AT];
    frame.extend_from_slice(wire);
    frame.extend_from_slice(&[0, 28, 0, 1]);
    let packet = Buffer::<512>::new(&frame, 0, 0);
    let control = Tables::control(tables).unwrap();
    let question = Question::scan(&packet, NAME_AT, control).unwrap();
    match table::find(&packet, &question, control, tables) {
        Found::Absent => Seen::Absent,
        Found::AskFallback => Seen::AskFallback,
        Found::Present(record) if record.head.flags() & RecordHead::ASK_FALLBACK != 0 => {
            Seen::AskFallback
        }
        Found::Present(record) => {
            let bytes = |query_type, size: usize| {
                let set = record.set(query_type);
                let length = set.count() as usize * size;
                let (segment, word) = table::locate(tables, set.start()).unwrap();
                let words = segment.0[word..].iter().take(length.div_ceil(8));
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
                pick: record.set(QueryType::Aaaa).pick() as u8,
            })
        }
    }
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
    assert_eq!(stats.rehashes, 3, "one for each doubling");
}
