//! RFC 8906, section 8: the tests that find servers which fail to communicate. `A` is asked where it says `SOA`, too.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use peak_userspace::fallback::Transport;

use crate::fixture::*;

/// NOERROR with authority, and the apex' SOA as the answer.
fn is_soa(message: &Message) {
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.metadata.authoritative && !message.metadata.truncation);
    let types: Vec<_> = message
        .answers
        .iter()
        .map(|record| record.record_type())
        .collect();
    assert_eq!(types, [RecordType::SOA]);
}

#[test]
fn section_8_1_1_the_server_is_configured_for_the_zone() {
    is_soa(&resolve(&ask(ZONE, SOA)));
}

#[test]
fn section_8_1_2_unknown_types_are_nodata() {
    for qtype in [0, 998, 1000, 65280, 65535] {
        let reply = resolve(&ask(ZONE, qtype));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NoError,
            "TYPE{qtype}"
        );
        assert!(reply.metadata.authoritative && reply.answers.is_empty());
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
        let reply = resolve(&ask(ABSENT, qtype));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::NXDomain,
            "TYPE{qtype}"
        );
    }
}

#[test]
fn section_8_1_3_1_cd_is_copied() {
    let reply = resolve(&ask(ZONE, SOA).flags(CD));
    is_soa(&reply);
    assert!(reply.metadata.checking_disabled);
}

#[test]
fn section_8_1_3_2_ad_is_answered_without_ad() {
    let reply = resolve(&ask(ZONE, SOA).flags(AD));
    is_soa(&reply);
    assert!(!reply.metadata.authentic_data);
}

#[test]
fn section_8_1_3_3_the_reserved_bit_is_not_copied() {
    // `checked` looks at it.
    is_soa(&resolve(&ask(ZONE, SOA).flags(0x0040)));
}

#[test]
fn section_8_1_3_4_rd_is_copied_and_ra_says_that_there_is_no_recursion() {
    let reply = resolve(&ask(ZONE, SOA).flags(RD));
    is_soa(&reply);
    assert!(reply.metadata.recursion_desired && !reply.metadata.recursion_available);
}

#[test]
fn section_8_1_4_unknown_opcodes_are_notimp() {
    for opcode in 1..16 {
        let full = ask(ZONE, SOA).opcode(opcode).bytes();
        // With a header alone, with a question, and with what such an opcode may mean by the rest.
        for message in [
            &[0x12, 0x34, (opcode as u8) << 3, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &full,
            &[&full[..], b"more"].concat(),
        ] {
            let octets = reply_to(message, Transport::Udp).expect("a reply");
            let reply = Message::from_vec(&octets).unwrap();
            assert_eq!(
                reply.metadata.response_code,
                ResponseCode::NotImp,
                "opcode {opcode}"
            );
            assert_eq!(reply.metadata.op_code, OpCode::from_u8(opcode as u8));
            assert!(!reply.metadata.authoritative && !reply.metadata.authentic_data);
            assert_eq!((reply.metadata.id, octets.len()), (0x1234, 12));
        }
        let with_opt = resolve(&ask(ZONE, SOA).opcode(opcode).opt(OPT));
        assert_eq!(with_opt.metadata.response_code, ResponseCode::NotImp);
    }
}

#[tokio::test]
async fn section_8_1_5_tcp_is_answered() {
    is_soa(&serve(Default::default()).tcp(&ask(ZONE, SOA)).await);
}

#[test]
fn section_8_2_1_minimal_edns() {
    is_soa(&resolve(&ask(ZONE, SOA).opt(OPT)));
}

/// BADVERS with an OPT of version 0, and nothing else.
fn is_badvers(message: &Message) {
    // 16 has two names; `hickory-proto` reads the other.
    assert_eq!(u16::from(message.metadata.response_code), 16);
    assert!(message.answers.is_empty() && message.authorities.is_empty());
}

#[test]
fn section_8_2_2_edns_version_negotiation() {
    for version in [1, 100, 255] {
        is_badvers(&resolve(&ask(ZONE, SOA).opt(Opt { version, ..OPT })));
    }
}

#[test]
fn section_8_2_3_unknown_options_are_ignored() {
    is_soa(&resolve(&ask(ZONE, SOA).opt(OPT.option(100, b""))));
    is_soa(&resolve(
        &ask(ZONE, SOA).opt(OPT.option(65001, b"some data")),
    ));
}

#[test]
fn section_8_2_4_unknown_edns_flags_are_ignored() {
    for bit in 0..15 {
        is_soa(&resolve(&ask(ZONE, SOA).opt(Opt {
            flags: 1 << bit,
            ..OPT
        })));
    }
}

#[test]
fn section_8_2_5_version_negotiation_with_unknown_flags() {
    is_badvers(&resolve(&ask(ZONE, SOA).opt(Opt {
        version: 1,
        flags: 0x40,
        ..OPT
    })));
}

#[test]
fn section_8_2_6_version_negotiation_with_unknown_options() {
    is_badvers(&resolve(&ask(ZONE, SOA).opt(Opt {
        version: 1,
        ..OPT.option(100, b"")
    })));
    // Another version may give the bytes another meaning.
    is_badvers(&resolve(&ask(ZONE, SOA).opt(Opt {
        version: 1,
        options: vec![1, 2, 3],
        ..OPT
    })));
}

#[test]
fn section_8_2_7_truncated_replies_have_an_opt() {
    let reply = resolve(&ask(LARGE, AAAA).opt(Opt {
        payload: 512,
        flags: DO,
        ..OPT
    }));
    assert!(reply.metadata.truncation && reply.edns.is_some());
}

#[test]
fn section_8_2_8_do_is_copied() {
    is_soa(&resolve(&ask(ZONE, SOA).opt(Opt { flags: DO, ..OPT })));
}

#[test]
fn section_8_2_9_version_negotiation_with_do() {
    is_badvers(&resolve(&ask(ZONE, SOA).opt(Opt {
        version: 1,
        flags: DO,
        ..OPT
    })));
}

#[test]
fn section_8_2_10_many_known_options_at_once() {
    // NSID, client subnet, cookie, expire, TCP keepalive, padding.
    let opt = OPT
        .option(3, b"")
        .option(8, &[0, 1, 0, 0])
        .option(10, b"\x01\x23\x45\x67\x89\xab\xcd\xef")
        .option(9, b"")
        .option(11, b"")
        .option(12, &[0; 16]);
    is_soa(&resolve(&ask(ZONE, SOA).opt(opt)));
}

#[tokio::test]
async fn section_3_2_7_edns_over_tcp() {
    is_soa(
        &serve(Default::default())
            .tcp(&ask(ZONE, SOA).opt(Opt { flags: DO, ..OPT }))
            .await,
    );
}

#[test]
fn section_3_1_1_other_zones_are_refused() {
    let reply = resolve(&ask("example.com", A).flags(RD));
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!reply.metadata.authoritative && !reply.metadata.recursion_available);
}

#[test]
fn section_3_1_2_other_classes_are_refused() {
    // CH, HS, NONE, ANY and ones that nobody defined.
    for class in [0, 2, 3, 4, 254, 255, 256, 65535] {
        let reply = resolve(&ask(WEB, AAAA).class(class));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::Refused,
            "CLASS{class}"
        );
        assert!(!reply.metadata.authoritative && reply.answers.is_empty());
    }
}
