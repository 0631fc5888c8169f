//! Reads a query as far as it can be read.

use domain::{
    base::{
        Header, HeaderCounts, Name, ParsedRecord,
        iana::{Class, Opcode, OptRcode, Rtype},
        opt::Opt,
        wire::ParseError,
    },
    dep::octseq::Parser,
};

use super::Transport;

/// The most that is sent over UDP, and the size our own OPT announces, in bytes: it passes every path without fragments.
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// RFC 1035, section 4.2.1: what any client takes over UDP, in bytes.
const PLAIN_UDP_PAYLOAD: u16 = 512;

/// What the client's OPT says (RFC 6891, section 6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    pub(super) payload: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
}

/// The one question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    /// Uncompressed, in the client's case.
    pub(super) name: &'a Name<[u8]>,
    pub(super) qtype: Rtype,
    pub(super) class: Class,
}

/// A query: what a reply to it needs, whether it can be read to its end or not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) header: Header,
    /// `None` if there is no question that can be repeated in the reply.
    pub(super) question: Option<Question<'a>>,
    /// `None` if the client speaks no EDNS, or nothing can be said about it.
    pub(super) edns: Option<Edns>,
}

impl<'a> Query<'a> {
    /// Reads a message that is at least a header long. `Err` is the code to refuse it with.
    pub(super) fn read(message: &'a [u8]) -> (Self, Result<Question<'a>, OptRcode>) {
        let mut query = Self {
            header: *Header::for_message_slice(message),
            question: None,
            edns: None,
        };
        let outcome = query.body(message);
        (query, outcome)
    }

    fn body(&mut self, message: &'a [u8]) -> Result<Question<'a>, OptRcode> {
        let counts = *HeaderCounts::for_message_slice(message);
        let mut parser = Parser::from_ref(message);
        parser.advance(12).map_err(|_| OptRcode::FORMERR)?;

        // RFC 8906, section 3.1.4: an unknown opcode has no defined format but the header, and NOTIMP is the only code
        // that makes sense. None but QUERY is known here.
        if self.header.opcode() != Opcode::QUERY {
            // RFC 6891, section 6.1.1: an OPT is answered with an OPT; so it is looked for where it would be.
            if (0..counts.qdcount()).all(|_| skip_question(&mut parser).is_ok()) {
                let _ = self.records(&mut parser, counts);
            }
            return Err(OptRcode::NOTIMP);
        }
        // RFC 9619, section 4: a QUERY with more than one question is FORMERR. One with none asks nothing; the only
        // use for it is a server cookie (RFC 7873, section 5.4), and cookies are not supported.
        if counts.qdcount() != 1 {
            if counts.qdcount() == 0 {
                let _ = self.records(&mut parser, counts);
            }
            return Err(OptRcode::FORMERR);
        }
        let question = question(&mut parser).map_err(|_| OptRcode::FORMERR)?;
        self.question = Some(question);
        self.records(&mut parser, counts)?;
        // RFC 6891, section 6.1.1: OPT is a pseudo record; nobody can ask for it.
        if parser.remaining() > 0 || question.qtype == Rtype::OPT {
            return Err(OptRcode::FORMERR);
        }
        Ok(question)
    }

    /// Reads the other sections; only the OPT counts. Other records, TSIG for one, are not acted on.
    fn records(
        &mut self,
        parser: &mut Parser<'a, [u8]>,
        counts: HeaderCounts,
    ) -> Result<(), OptRcode> {
        let before_additional = usize::from(counts.ancount()) + usize::from(counts.nscount());
        let mut fault = Ok(());
        for index in 0..before_additional + usize::from(counts.arcount()) {
            let record = ParsedRecord::parse(parser).map_err(|_| OptRcode::FORMERR)?;
            if record.rtype() != Rtype::OPT {
                continue;
            }
            let seen = self.edns.is_some();
            let edns = Edns {
                payload: record.class().to_int(),
                version: (record.ttl().as_secs() >> 16) as u8,
                dnssec_ok: record.ttl().as_secs() & 0x8000 != 0,
            };
            self.edns = Some(edns);
            // RFC 6891, section 6.1.1: in the additional section, with the root's name, and only once.
            if index < before_additional || seen || !record.owner().is_root() {
                return Err(OptRcode::FORMERR);
            }
            fault = if edns.version != 0 {
                // RFC 6891, section 6.1.3: whatever else such a version means by its OPT.
                Err(OptRcode::BADVERS)
            } else if record.to_record::<Opt<_>>().is_err() {
                Err(OptRcode::FORMERR)
            } else {
                Ok(())
            };
        }
        fault
    }

    /// How long the reply may be, in bytes.
    pub(super) fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP_PAYLOAD.into(),
            // RFC 6891, section 6.2.3: values lower than 512 mean 512.
            (Transport::Udp, Some(edns)) => {
                edns.payload.clamp(PLAIN_UDP_PAYLOAD, UDP_PAYLOAD).into()
            }
        }
    }
}

/// Reads a question. RFC 1035, section 4.1.4: a pointer leads to a prior name, and none precedes the first question's.
fn question<'a>(parser: &mut Parser<'a, [u8]>) -> Result<Question<'a>, ParseError> {
    Ok(Question {
        name: Name::from_slice(Name::parse(parser)?.into_octets())?,
        qtype: Rtype::parse(parser)?,
        class: Class::parse(parser)?,
    })
}

fn skip_question(parser: &mut Parser<'_, [u8]>) -> Result<(), ParseError> {
    question(parser).map(drop)
}
