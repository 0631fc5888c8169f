//! Decides what becomes of a message, without any input but its arguments, and writes the replies.

use std::{cmp::Reverse, net::IpAddr};

use domain::{
    base::{
        Header, MessageBuilder, Name, Serial, Ttl,
        iana::{Class, OptRcode, Rtype},
        message_builder::{AdditionalBuilder, AnswerBuilder, HashCompressor},
        record::ComposeRecord,
    },
    rdata::{A, Aaaa, Ns, Soa},
};
use ipnet::IpNet;

use super::{
    Transport,
    query::{Edns, Query, Question, UDP_PAYLOAD},
};
use crate::{
    name,
    snapshot::{self, Lookup, Node, Snapshot, Zone},
};

/// The bytes of an OPT record without options.
const OPT_LENGTH: usize = 11;

/// What is done for names outside the zones.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    domains: Vec<name::Name>,
    forward_for: Vec<IpNet>,
}

impl Policy {
    /// Forwards names within these domains for these clients.
    pub fn new(domains: impl IntoIterator<Item = name::Name>, forward_for: Vec<IpNet>) -> Self {
        let mut domains: Vec<_> = domains.into_iter().collect();
        domains.sort_by_cached_key(|domain| (Reverse(domain.labels().count()), domain.clone()));
        domains.dedup();
        Self {
            domains,
            forward_for,
        }
    }

    /// The domains, the one with most labels first, so that the first one that holds a name is the longest.
    pub(super) fn domains(&self) -> &[name::Name] {
        &self.domains
    }

    fn recursion_available(&self) -> bool {
        !self.domains.is_empty()
    }

    fn admits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.forward_for.iter().any(|range| range.contains(&client))
    }

    fn route(&self, name: &name::Name) -> Option<usize> {
        self.domains
            .iter()
            .position(|domain| name.is_within(domain))
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Reaction {
    /// It is answered with this.
    Reply(Reply),
    /// An upstream is to be asked.
    Forward(Forward),
    /// Nothing is sent.
    Silence(Silence),
}

/// Why a message gets no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It is a response itself: two servers that answered each other's would never stop.
    Response,
    /// It ends before its header does, so that there may be no ID to answer with.
    Short,
}

/// A finished reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The message, without TCP's length.
    pub octets: Vec<u8>,
    /// Its code, as far as the client's EDNS lets it see it.
    pub rcode: OptRcode,
    /// Whether it carries TC.
    pub truncated: bool,
}

/// A question for an upstream, and what the reply to it needs.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The query's ID.
    pub(super) id: u16,
    /// The name as it was asked.
    pub(super) name: Box<[u8]>,
    /// The same in lower case.
    pub(super) folded: name::Name,
    pub(super) qtype: u16,
    pub(super) recursion_desired: bool,
    pub(super) checking_disabled: bool,
    pub(super) authentic_data: bool,
    pub(super) edns: Option<Edns>,
    /// The longest reply, in bytes.
    pub(super) limit: usize,
    /// The place of the domain in [`Policy::domains`].
    pub(super) route: usize,
}

/// Decides about one message. `draw` is a random number, by which a name's addresses are rotated.
pub fn answer(
    message: &[u8],
    transport: Transport,
    client: IpAddr,
    snapshot: &Snapshot,
    policy: &Policy,
    draw: u32,
) -> Reaction {
    if message.len() < 12 {
        return Reaction::Silence(Silence::Short);
    }
    if Header::for_message_slice(message).qr() {
        return Reaction::Silence(Silence::Response);
    }
    let (query, outcome) = Query::read(message);
    let writer = Writer {
        query,
        transport,
        policy,
    };
    match outcome.and_then(|question| decide(&query, question, transport, client, snapshot, policy))
    {
        Err(rcode) => Reaction::Reply(writer.refusal(rcode)),
        Ok(Decision::Forward(forward)) => Reaction::Forward(forward),
        Ok(Decision::Zone(zone, question, node)) => {
            Reaction::Reply(writer.authoritative(snapshot, zone, question, node, draw))
        }
    }
}

enum Decision<'a> {
    /// The zone answers; without a node the name does not exist.
    Zone(&'a Zone, Question<'a>, Option<Node>),
    Forward(Forward),
}

fn decide<'a>(
    query: &Query<'a>,
    question: Question<'a>,
    transport: Transport,
    client: IpAddr,
    snapshot: &'a Snapshot,
    policy: &Policy,
) -> Result<Decision<'a>, OptRcode> {
    // Nothing is known in other classes, nor in all of them at once. Not NOTIMP, which says that the kind of query is
    // unknown (RFC 1035, section 4.1.1) and makes some resolvers give up on the server.
    if question.class != Class::IN {
        return Err(OptRcode::REFUSED);
    }
    // Zone transfers (RFC 5936, section 2.2.1; RFC 1995): refused by policy, whatever the name.
    if matches!(question.qtype, Rtype::AXFR | Rtype::IXFR) {
        return Err(OptRcode::REFUSED);
    }
    let (zone, node) = match snapshot.lookup(question.name.as_slice()) {
        Lookup::OutsideZones => {
            // RFC 5358, section 4: recursion is not for everybody.
            if !policy.admits(client) {
                return Err(OptRcode::REFUSED);
            }
            let folded =
                name::Name::from_wire(question.name.as_slice()).map_err(|_| OptRcode::FORMERR)?;
            let route = policy.route(&folded).ok_or(OptRcode::REFUSED)?;
            return Ok(Decision::Forward(Forward {
                id: query.header.id(),
                name: question.name.as_slice().into(),
                folded,
                qtype: question.qtype.to_int(),
                recursion_desired: query.header.rd(),
                checking_disabled: query.header.cd(),
                authentic_data: query.header.ad(),
                edns: query.edns,
                limit: query.limit(transport),
                route,
            }));
        }
        Lookup::Present { zone, node } => (zone, Some(node)),
        Lookup::Absent { zone } => (zone, None),
    };
    // Before the first complete snapshot, nothing may be said not to exist.
    if !snapshot.complete() {
        return Err(OptRcode::SERVFAIL);
    }
    Ok(Decision::Zone(zone, question, node))
}

/// What an existing name answers to a type.
enum RrSet<'a> {
    A(&'a Node),
    Aaaa(&'a Node),
    Soa,
    Ns,
}

impl<'a> RrSet<'a> {
    fn select(node: &'a Node, qtype: Rtype) -> Option<Self> {
        let v4 = (!node.addresses.v4.is_empty()).then_some(Self::A(node));
        let v6 = (!node.addresses.v6.is_empty()).then_some(Self::Aaaa(node));
        let apex = |set| node.apex.then_some(set);
        match qtype {
            Rtype::A => v4,
            Rtype::AAAA => v6,
            Rtype::SOA => apex(Self::Soa),
            Rtype::NS => apex(Self::Ns),
            // RFC 8482, section 4.1: one of the name's RRsets, as it is, is an answer to ANY.
            Rtype::ANY => v6.or(v4).or(apex(Self::Soa)),
            _ => None,
        }
    }
}

type Target = HashCompressor<Vec<u8>>;

/// Writes replies to one query.
struct Writer<'a> {
    query: Query<'a>,
    transport: Transport,
    policy: &'a Policy,
}

impl Writer<'_> {
    /// Header and question, with room kept for the OPT.
    fn start(&self, rcode: OptRcode, authoritative: bool) -> AnswerBuilder<Target> {
        let mut builder = MessageBuilder::from_target(HashCompressor::new(Vec::with_capacity(512)))
            .expect("a Vec has room for a header");
        let asked = &self.query.header;
        let header = builder.header_mut();
        header.set_id(asked.id());
        header.set_qr(true);
        header.set_opcode(asked.opcode());
        header.set_aa(authoritative);
        header.set_rd(asked.rd());
        header.set_ra(self.policy.recursion_available());
        header.set_cd(asked.cd());
        header.set_rcode(rcode.rcode());
        // A push must end before its limit, not at it.
        let opt = self.query.edns.map_or(0, |_| OPT_LENGTH);
        builder.set_push_limit(self.query.limit(self.transport) + 1 - opt);
        let mut builder = builder.question();
        if let Some(Question { name, qtype, class }) = self.query.question {
            builder
                .push((name, qtype, class))
                .expect("a question and an OPT fit 512 bytes");
        }
        builder.answer()
    }

    /// A reply without records.
    fn refusal(&self, rcode: OptRcode) -> Reply {
        self.finish(self.start(rcode, false).additional(), rcode)
    }

    fn authoritative(
        &self,
        snapshot: &Snapshot,
        zone: &Zone,
        question: Question<'_>,
        node: Option<Node>,
        draw: u32,
    ) -> Reply {
        let rcode = match node {
            Some(_) => OptRcode::NOERROR,
            None => OptRcode::NXDOMAIN,
        };
        let mut answer = self.start(rcode, true);
        let set = node
            .as_ref()
            .and_then(|node| RrSet::select(node, question.qtype));
        let soa = snapshot.soa(zone);
        let ttl = Ttl::from_secs(snapshot.ttl());
        let owner = question.name;
        let fits = match set {
            None => {
                let mut authority = answer.authority();
                // RFC 2308, section 3: the SOA's TTL says how long the negative answer may be kept.
                let ttl = ttl.min(Ttl::from_secs(soa.minimum));
                authority
                    .push((wire(&zone.name), Class::IN, ttl, soa_data(&soa)))
                    .expect("a name, an SOA below it and an OPT fit 512 bytes");
                return self.finish(authority.additional(), rcode);
            }
            Some(RrSet::A(node)) => push_all(
                &mut answer,
                rotated(&node.addresses.v4, draw)
                    .map(|&address| (owner, Class::IN, ttl, A::new(address))),
            ),
            Some(RrSet::Aaaa(node)) => push_all(
                &mut answer,
                rotated(&node.addresses.v6, draw)
                    .map(|&address| (owner, Class::IN, ttl, Aaaa::new(address))),
            ),
            Some(RrSet::Soa) => push_all(&mut answer, [(owner, Class::IN, ttl, soa_data(&soa))]),
            Some(RrSet::Ns) => push_all(
                &mut answer,
                [(owner, Class::IN, ttl, Ns::new(wire(&soa.mname)))],
            ),
        };
        if !fits {
            answer.header_mut().set_tc(true);
            // RFC 2181, section 9: TC makes the client ask again over TCP and ignore this, so a part of the set would
            // be sent for nothing. TCP has no more to offer: there the client gets the whole records that fit.
            if self.transport == Transport::Udp {
                answer.rewind();
            }
        }
        let mut additional = answer.additional();
        if let Some(RrSet::Ns) = set
            && let Lookup::Present { node, .. } = snapshot.lookup(soa.mname.as_wire())
        {
            // RFC 2181, section 9: the reply is not truncated if these don't fit; nobody asked for them.
            let server = wire(&soa.mname);
            for &address in node.addresses.v6.iter() {
                let _ = additional.push((server, Class::IN, ttl, Aaaa::new(address)));
            }
            for &address in node.addresses.v4.iter() {
                let _ = additional.push((server, Class::IN, ttl, A::new(address)));
            }
        }
        self.finish(additional, rcode)
    }

    /// RFC 6891, section 6.1.1: an OPT if the query had one, and none otherwise. No option is known, so none is sent.
    fn finish(&self, mut additional: AdditionalBuilder<Target>, rcode: OptRcode) -> Reply {
        additional.clear_push_limit();
        if let Some(edns) = self.query.edns {
            additional
                .opt(|opt| {
                    opt.set_udp_payload_size(UDP_PAYLOAD);
                    opt.set_rcode(rcode);
                    // RFC 3225, section 3: DO is copied.
                    opt.set_dnssec_ok(edns.dnssec_ok);
                    Ok(())
                })
                .expect("room was kept for it");
        }
        let truncated = additional.header().tc();
        Reply {
            octets: additional.finish().into_target(),
            rcode,
            truncated,
        }
    }
}

/// Whether all records fit. Those that do are kept.
fn push_all(
    answer: &mut AnswerBuilder<Target>,
    records: impl IntoIterator<Item = impl ComposeRecord>,
) -> bool {
    records
        .into_iter()
        .all(|record| answer.push(record).is_ok())
}

/// The whole set, begun at a place that `draw` decides.
fn rotated<T>(set: &[T], draw: u32) -> impl Iterator<Item = &T> {
    let start = ((u64::from(draw) * set.len() as u64) >> 32) as usize;
    set[start..].iter().chain(&set[..start])
}

fn soa_data(soa: &snapshot::Soa) -> Soa<&Name<[u8]>> {
    Soa::new(
        wire(&soa.mname),
        wire(&soa.rname),
        Serial(soa.serial),
        Ttl::from_secs(soa.refresh),
        Ttl::from_secs(soa.retry),
        Ttl::from_secs(soa.expire),
        Ttl::from_secs(soa.minimum),
    )
}

fn wire(name: &name::Name) -> &Name<[u8]> {
    Name::from_slice(name.as_wire()).expect("both kinds of name keep to RFC 1035")
}
