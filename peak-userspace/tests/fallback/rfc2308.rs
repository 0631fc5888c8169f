//! RFC 2308: negative answers.

use std::net::Ipv4Addr;

use domain::base::iana::OptRcode;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RData,
};
use peak_userspace::{
    fallback::{
        Transport,
        answer::{Policy, Reaction},
    },
    name::Name,
    snapshot::Snapshot,
};

use crate::fixture::*;

/// The TTL of the one SOA in the authority section, whose minimum is the zone's.
fn negative_ttl(message: &Message) -> u32 {
    assert!(message.metadata.authoritative && message.answers.is_empty());
    let [record] = message.authorities.as_slice() else {
        panic!("{:?}", message.authorities)
    };
    let RData::SOA(soa) = &record.data else {
        panic!("{record:?}")
    };
    assert_eq!(soa.minimum, TTL);
    assert_eq!(soa.mname.to_string(), "ns.dns.cluster.local.");
    assert_eq!(soa.rname.to_string(), "hostmaster.cluster.local.");
    assert_eq!(soa.serial, snapshot().serial());
    record.ttl
}

#[test]
fn section_2_1_a_name_that_does_not_exist_is_nxdomain_with_soa() {
    for name in [
        ABSENT,
        "nobody.cluster.local",
        "a.b.c.d.e.f.web.shop.svc.cluster.local",
    ] {
        let reply = resolve(&ask(name, AAAA).opt(OPT));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "{name}"
        );
        assert_eq!(negative_ttl(&reply), TTL);
    }
}

#[test]
fn section_2_2_a_type_that_does_not_exist_is_nodata_with_soa() {
    for (name, qtype) in [
        (LARGE, A),
        (WEB, SOA),
        (WEB, 16),
        (ZONE, A),
        ("svc.cluster.local", AAAA),
        ("shop.svc.cluster.local", NS),
    ] {
        let reply = resolve(&ask(name, qtype));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert_eq!(negative_ttl(&reply), TTL);
    }
}

#[test]
fn section_3_the_soas_ttl_is_the_smaller_of_ttl_and_minimum() {
    // Both are the zone's TTL, whatever that is.
    assert_eq!(
        negative_ttl(&resolve(&ask(ABSENT, A))),
        snapshot().ttl().min(TTL)
    );
}

#[test]
fn section_2_1_the_soas_owner_is_written_in_the_querys_case() {
    let reply = resolve(&ask("NOBODY.Shop.Svc.Cluster.LOCAL", AAAA));
    assert_eq!(reply.authorities[0].name.to_string(), "Cluster.LOCAL.");
}

/// Before the first complete snapshot nothing may be denied.
#[test]
fn section_7_1_no_negative_answer_before_the_zone_is_known() {
    let ask_of = |snapshot: &Snapshot, name| {
        let message = ask(name, AAAA).opt(OPT).bytes();
        let client = Ipv4Addr::LOCALHOST.into();
        match decided(
            &message,
            Transport::Udp,
            client,
            snapshot,
            &Policy::default(),
            0,
        ) {
            (Reaction::Reply(_), octets) => Message::from_vec(&octets).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    for name in [WEB, ABSENT, ZONE] {
        let reply = ask_of(&incomplete(), name);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert!(reply.authorities.is_empty() && reply.edns.is_some());
    }
    assert_eq!(
        ask_of(&incomplete(), "example.com").metadata.response_code,
        ResponseCode::Refused
    );
}

/// Any address may turn out to be published: an upstream shall not deny its name meanwhile.
#[test]
fn section_7_1_no_upstream_denies_an_address_before_the_zone_is_known() {
    let policy = Policy::new([Name::root()], vec!["127.0.0.0/8".parse().unwrap()]);
    let reaction = |name, qtype| {
        let message = ask(name, qtype).bytes();
        let client = Ipv4Addr::LOCALHOST.into();
        decided(&message, Transport::Udp, client, &incomplete(), &policy, 0).0
    };
    let six = format!("{}ip6.arpa", "0.".repeat(32));
    for name in ["9.0.0.10.in-addr.arpa", &six] {
        let Reaction::Reply(reply) = reaction(name, PTR) else {
            panic!("{name} is forwarded")
        };
        assert_eq!(reply.rcode, OptRcode::SERVFAIL);
    }
    for (name, qtype) in [("0.10.in-addr.arpa", PTR), ("9.0.0.10.in-addr.arpa", AAAA)] {
        assert!(
            matches!(reaction(name, qtype), Reaction::Forward(_)),
            "{name}"
        );
    }
}
