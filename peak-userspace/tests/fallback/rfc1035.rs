//! RFC 1035, 2181 and 4343: names, addresses, sizes, and messages that can't be read.

use std::{collections::BTreeSet, net::Ipv4Addr};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, RecordType},
};
use peak_userspace::fallback::{
    Transport,
    answer::{Policy, Reaction, Silence},
};

use crate::fixture::*;

#[test]
fn section_4_1_1_responses_are_not_answered() {
    for opcode in 0..16 {
        let response = ask(WEB, AAAA).flags(0x8000 | opcode << 11).bytes();
        for message in [&response[..], &response[..12], &response[..20]] {
            assert!(matches!(
                reaction(message, Transport::Udp).0,
                Reaction::Silence(Silence::Response)
            ));
        }
    }
}

#[test]
fn section_4_1_1_less_than_a_header_is_not_answered() {
    let message = ask(WEB, AAAA).bytes();
    for length in 0..12 {
        let (reaction, _) = reaction(&message[..length], Transport::Udp);
        assert!(
            matches!(reaction, Reaction::Silence(Silence::Short)),
            "{length}"
        );
    }
}

#[test]
fn section_4_1_1_what_ends_early_or_late_is_formerr() {
    let whole = ask(WEB, AAAA).opt(OPT.option(10, b"12345678"));
    let question = 12 + whole.question().len();
    let whole = whole.bytes();
    let longer = [&whole[..], b"x"].concat();
    for message in (12..whole.len())
        .map(|end| &whole[..end])
        .chain([&longer[..]])
    {
        let octets = reply_to(message, Transport::Udp).unwrap();
        let reply = Message::from_vec(&octets).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
        assert_eq!(reply.metadata.id, 0x1234);
        // What could be read of the question is repeated.
        assert_eq!(reply.queries.len(), usize::from(message.len() >= question));
    }
}

#[test]
fn section_4_1_4_a_question_has_nothing_to_point_to() {
    for name in [
        &[0xc0, 0x0c][..],
        &[0xc0, 0x00],
        &[3, b'w', b'e', b'b', 0xc0, 0x0c],
        &[0x40, 0],
        &[0x80, 0],
    ] {
        let mut query = ask(WEB, AAAA);
        query.name = name.into();
        let octets = reply_to(&query.bytes(), Transport::Udp).unwrap();
        assert_eq!((octets.len(), octets[3] & 15), (12, 1), "{name:?}");
    }
}

#[test]
fn section_4_2_1_without_opt_512_bytes_are_the_most() {
    let query = ask(LARGE, AAAA);
    let octets = reply_to(&query.bytes(), Transport::Udp).unwrap();
    let reply = checked(&query, &octets);
    assert!(reply.metadata.truncation && reply.metadata.authoritative);
    // As many of them as fit, for clients that know no TCP.
    let fit = (512 - 12 - query.question().len()) / 28;
    assert_eq!(aaaa(&reply).len(), fit);
}

#[test]
fn section_4_2_1_a_reply_may_take_exactly_what_is_allowed() {
    // Each record takes 28 bytes: its name is a pointer.
    let without = |label: usize| ask(&format!("{}.shop.svc.{ZONE}", "x".repeat(label)), AAAA);
    let with = |label: usize| ask(&format!("{}.shop.svc.{ZONE}", "y".repeat(label)), AAAA).opt(OPT);
    for (query, records, length) in [(without(23), 16, 512), (with(32), 41, 1232)] {
        assert_eq!(aaaa(&resolve(&query)), v6(records));
        assert_eq!(
            reply_to(&query.bytes(), Transport::Udp).unwrap().len(),
            length
        );
    }
    for query in [without(24), with(33)] {
        assert!(resolve(&query).metadata.truncation, "one byte too many");
    }
}

#[test]
fn section_4_2_2_over_tcp_as_many_whole_records_as_fit() {
    let query = ask(HUGE, AAAA).opt(OPT);
    let octets = reply_to(&query.bytes(), Transport::Tcp).unwrap();
    let reply = checked(&query, &octets);
    assert!(reply.metadata.truncation);
    let fit = (65535 - 12 - query.question().len() - 11) / 28;
    assert_eq!(aaaa(&reply), v6(5000)[..fit]);
    assert_eq!(octets.len(), 12 + query.question().len() + 28 * fit + 11);
}

#[test]
fn section_3_4_1_addresses_with_authority_and_ttl() {
    let reply = resolve(&ask(WEB, A).flags(RD));
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(
        reply.metadata.authoritative
            && reply.authorities.is_empty()
            && reply.additionals.is_empty()
    );
    let [record] = reply.answers.as_slice() else {
        panic!("{reply}")
    };
    assert_eq!(
        (record.ttl, &record.data),
        (TTL, &RData::A(Ipv4Addr::new(10, 0, 0, 1).into()))
    );
    assert_eq!(aaaa(&resolve(&ask(WEB, AAAA))), v6(3));
}

#[test]
fn section_3_3_11_the_apex_has_a_name_server_with_glue() {
    let reply = resolve(&ask(ZONE, NS).opt(OPT));
    let [record] = reply.answers.as_slice() else {
        panic!("{reply}")
    };
    assert_eq!(record.data.to_string(), "ns.dns.cluster.local.");
    let glue: BTreeSet<_> = reply
        .additionals
        .iter()
        .map(|record| (record.name.to_string(), record.data.to_string()))
        .collect();
    let expected = ["10.96.0.10", "fd00::53"]
        .map(|address| ("ns.dns.cluster.local.".into(), address.to_string()));
    assert_eq!(glue, BTreeSet::from(expected));
    // What the glue says can be asked for.
    let reply = resolve(&ask("ns.dns.cluster.local", AAAA));
    assert_eq!(
        aaaa(&reply),
        ["fd00::53".parse::<std::net::Ipv6Addr>().unwrap()]
    );
}

/// RFC 4343, section 3 and RFC 1035, section 2.3.3: case does not matter, and is kept.
#[test]
fn section_2_3_3_names_in_any_case() {
    let name = "wEb.SHOP.svc.Cluster.Local";
    let reply = resolve(&ask(name, AAAA));
    assert_eq!(aaaa(&reply), v6(3));
    assert!(
        reply
            .answers
            .iter()
            .all(|record| record.name.to_string() == format!("{name}."))
    );
}

#[test]
fn section_2_3_4_the_longest_name_is_answered() {
    let labels = "a.".repeat((255 - 1 - 14) / 2);
    let query = ask(&format!("{labels}{ZONE}"), AAAA).opt(Opt {
        payload: 512,
        ..OPT
    });
    assert!(query.name.len() >= 254);
    let reply = resolve(&query);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
}

/// RFC 1794: the set as a whole, begun at a place of chance.
#[test]
fn all_addresses_are_rotated() {
    let first = |draw| {
        let message = ask(WEB, AAAA).bytes();
        match decided(
            &message,
            Transport::Udp,
            Ipv4Addr::LOCALHOST.into(),
            &snapshot(),
            &Policy::default(),
            draw,
        ) {
            (Reaction::Reply(_), octets) => {
                let set = aaaa(&Message::from_vec(&octets).unwrap());
                assert_eq!(BTreeSet::from_iter(&set), BTreeSet::from_iter(&v6(3)));
                assert_eq!(set.len(), 3);
                set[0]
            }
            other => panic!("{other:?}"),
        }
    };
    let third = u32::MAX / 3;
    assert_eq!(
        [0, third + 2, 2 * third + 2, u32::MAX].map(first),
        [v6(3)[0], v6(3)[1], v6(3)[2], v6(3)[2]]
    );
}

/// RFC 5936, section 2.2.1; RFC 1995.
#[test]
fn zone_transfers_are_refused() {
    for qtype in [AXFR, IXFR] {
        for name in [ZONE, WEB, "example.com"] {
            for transport in [Transport::Udp, Transport::Tcp] {
                let query = ask(name, qtype);
                let reply = checked(&query, &reply_to(&query.bytes(), transport).unwrap());
                assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
            }
        }
    }
}
