//! Whatever the bytes: no panic, no answer to a response, and replies that can be read.

use std::net::Ipv4Addr;

use hickory_proto::op::Message;
use peak_userspace::{
    fallback::{
        Transport,
        answer::{Policy, Reaction},
        default_forward_for,
    },
    snapshot::Snapshot,
};
use proptest::{prelude::*, sample::Index};

use crate::fixture::*;

fn check(
    message: &[u8],
    transport: Transport,
    snapshot: &Snapshot,
    draw: u32,
) -> Result<(), TestCaseError> {
    let policy = Policy::new(["example.com".parse().unwrap()], default_forward_for());
    let (reaction, octets) = decided(
        message,
        transport,
        Ipv4Addr::LOCALHOST.into(),
        snapshot,
        &policy,
        draw,
    );
    let to_answer = message.len() >= 12 && message[2] & 0x80 == 0;
    match reaction {
        Reaction::Silence(_) => prop_assert!(!to_answer),
        Reaction::Forward(_) => prop_assert!(to_answer),
        Reaction::Reply(_) => {
            prop_assert!(to_answer);
            let limit = if transport == Transport::Udp {
                1232
            } else {
                65535
            };
            prop_assert!((12..=limit).contains(&octets.len()));
            let read = Message::from_vec(&octets);
            prop_assert!(read.is_ok(), "{read:?}");
            prop_assert_eq!(&octets[..2], &message[..2]);
            prop_assert_eq!(octets[2] & 0xf9, message[2] & 0x79 | 0x80, "QR, opcode, RD");
            prop_assert_eq!(octets[3] & 0x70, message[3] & 0x10, "Z, AD, CD");
        }
    }
    Ok(())
}

fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![Just(Transport::Udp), Just(Transport::Tcp)]
}

/// Queries that make sense.
fn valid() -> impl Strategy<Value = Ask> {
    let name = prop_oneof![
        Just(WEB.to_owned()),
        Just(LARGE.to_owned()),
        Just(ABSENT.to_owned()),
        Just(ZONE.to_owned()),
        Just("www.example.com".to_owned()),
        Just(String::new()),
        "[a-zA-Z0-9-]{1,63}(\\.[a-z]{1,20}){0,3}\\.cluster\\.local",
    ];
    let opt = (
        any::<u16>(),
        prop_oneof![9 => Just(0), 1 => any::<u8>()],
        any::<u16>(),
        any::<u16>(),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(payload, version, flags, code, data)| {
            Opt {
                payload,
                version,
                flags,
                options: vec![],
            }
            .option(code, &data)
        });
    let class = prop_oneof![9 => Just(1), 1 => any::<u16>()];
    let qtype = prop_oneof![
        Just(A),
        Just(AAAA),
        Just(SOA),
        Just(NS),
        Just(ANY),
        Just(AXFR),
        any::<u16>()
    ];
    (
        any::<u16>(),
        any::<u16>(),
        name,
        qtype,
        class,
        prop::collection::vec(opt, 0..3),
    )
        .prop_map(|(id, flags, name, qtype, class, opts)| Ask {
            id,
            flags: flags & 0x07ff,
            class,
            opts,
            ..ask(&name, qtype)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_bytes(mut message in prop::collection::vec(any::<u8>(), 0..600), plain: bool, transport in transport(), draw: u32) {
        if plain && message.len() >= 12 {
            // A header that lets the rest be read.
            message[2..12].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        check(&message, transport, &snapshot_once(), draw)?;
    }

    #[test]
    fn valid_queries(query in valid(), transport in transport(), draw: u32) {
        check(&query.bytes(), transport, &snapshot_once(), draw)?;
    }

    #[test]
    fn mutated_queries(
        query in valid(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<Index>()),
        more in prop::collection::vec(any::<u8>(), 0..8),
        transport in transport(),
        draw: u32,
    ) {
        let mut message = query.bytes();
        message.extend(more);
        for (at, byte) in changes {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Some(cut) = cut {
            message.truncate(cut.index(message.len()));
        }
        check(&message, transport, &snapshot_once(), draw)?;
        check(&message, transport, &incomplete(), draw)?;
    }
}

/// Cheap to clone, dear to make.
fn snapshot_once() -> Snapshot {
    static SNAPSHOT: std::sync::LazyLock<Snapshot> = std::sync::LazyLock::new(snapshot);
    SNAPSHOT.clone()
}
