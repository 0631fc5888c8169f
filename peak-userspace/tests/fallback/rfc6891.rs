//! RFC 6891: EDNS(0).

use hickory_proto::op::{Message, ResponseCode};
use peak_userspace::fallback::Transport;

use crate::fixture::*;

#[test]
fn section_6_1_1_two_opts_are_formerr() {
    let reply = resolve(&ask(WEB, AAAA).opt(OPT).opt(OPT));
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn section_6_1_1_an_opt_stands_in_the_additional_section() {
    let mut message = ask(WEB, AAAA).opt(OPT).bytes();
    // ANCOUNT or NSCOUNT instead of ARCOUNT.
    for count in [7, 9] {
        message[6..12].fill(0);
        message[count] = 1;
        let reply = Message::from_vec(&reply_to(&message, Transport::Udp).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    }
}

#[test]
fn section_6_1_1_an_opt_may_stand_between_other_records() {
    let mut message = ask(WEB, AAAA).opt(OPT).bytes();
    let other = b"\x01x\0\0\x10\0\x01\0\0\0\0\0\x02\x01y";
    let question = ask(WEB, AAAA).question().len();
    message.splice(12 + question..12 + question, other.iter().copied());
    message.extend(other);
    message[11] = 3;
    let reply = Message::from_vec(&reply_to(&message, Transport::Udp).unwrap()).unwrap();
    assert_eq!(aaaa(&reply), v6(3));
    assert!(reply.edns.is_some());
}

#[test]
fn section_6_1_2_an_opt_has_the_roots_name() {
    let mut message = ask(WEB, AAAA).opt(OPT).bytes();
    let at = message.len() - 11;
    message.splice(at..at + 1, *b"\x01x\0");
    let reply = Message::from_vec(&reply_to(&message, Transport::Udp).unwrap()).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn section_6_1_2_malformed_options_are_formerr() {
    // Half a code, no length, less data than the length says.
    for options in [&[0][..], &[0, 10, 0], &[0, 10, 0, 8, 1, 2, 3]] {
        let reply = resolve(&ask(WEB, AAAA).opt(Opt {
            options: options.into(),
            ..OPT
        }));
        assert_eq!(
            reply.metadata.response_code,
            ResponseCode::FormErr,
            "{options:?}"
        );
    }
}

#[test]
fn section_6_2_3_sizes_below_512_mean_512() {
    // 16 records of 28 bytes, a header, a question and an OPT take 503 bytes.
    for payload in [0, 100, 511, 512] {
        let reply = resolve(&ask(WEB, AAAA).opt(Opt { payload, ..OPT }));
        assert_eq!(aaaa(&reply), v6(3), "{payload}");
        assert!(
            resolve(&ask(LARGE, AAAA).opt(Opt { payload, ..OPT }))
                .metadata
                .truncation
        );
    }
}

#[test]
fn section_6_2_5_no_more_than_1232_bytes_are_sent() {
    let query = ask(LARGE, AAAA).opt(Opt {
        payload: 65535,
        ..OPT
    });
    let octets = reply_to(&query.bytes(), Transport::Udp).unwrap();
    let reply = checked(&query, &octets);
    assert!(reply.metadata.truncation && octets.len() <= 1232 && octets.len() > 1232 - 28);
}

#[test]
fn section_7_no_opt_without_opt() {
    // `checked` looks at it.
    assert_eq!(aaaa(&resolve(&ask(WEB, AAAA))), v6(3));
}

#[test]
fn section_6_1_1_nobody_asks_for_an_opt() {
    assert_eq!(
        resolve(&ask(WEB, 41)).metadata.response_code,
        ResponseCode::FormErr
    );
}
