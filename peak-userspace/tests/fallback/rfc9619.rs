//! RFC 9619: a QUERY asks one question.

use hickory_proto::op::{Message, ResponseCode};
use peak_userspace::fallback::Transport;

use crate::fixture::*;

#[test]
fn section_4_two_questions_are_formerr() {
    let mut message = ask(WEB, AAAA).bytes();
    message.extend(ask(WEB, A).question());
    message[5] = 2;
    let reply = reply_to(&message, Transport::Udp).unwrap();
    let read = Message::from_vec(&reply).unwrap();
    assert_eq!(read.metadata.response_code, ResponseCode::FormErr);
    assert_eq!((read.metadata.id, reply.len()), (0x1234, 12));
}

#[test]
fn section_4_no_question_is_formerr() {
    // A server cookie asked for alone (RFC 7873, section 5.4) is one of these.
    let mut message = ask(WEB, AAAA).opt(OPT.option(10, b"12345678")).bytes();
    let question = ask(WEB, AAAA).question().len();
    message.drain(12..12 + question);
    message[5] = 0;
    let reply = Message::from_vec(&reply_to(&message, Transport::Udp).unwrap()).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    assert!(reply.edns.is_some() && reply.queries.is_empty());
}
