//! Decides what becomes of a message, without any input but its arguments, and writes the replies.

use std::{cmp::Reverse, net::IpAddr};

use domain::{
    base::{
        Header, MessageBuilder, Name, Serial, Ttl,
        iana::{Class, OptRcode, Rtype},
        message_builder::{AdditionalBuilder, AnswerBuilder},
        record::ComposeRecord,
    },
    rdata::{A, Aaaa, Cname, Ns, Ptr, Soa, Srv, Txt},
};
use ipnet::IpNet;

use super::{
    Transport,
    compressor::Compressor,
    query::{Edns, Query, Question, UDP_PAYLOAD},
};
use crate::{
    name,
    snapshot::{self, AddressSet, Lookup, Node, Services, Snapshot, Zone},
};

/// The bytes of an OPT record without options.
const OPT_LENGTH: usize = 11;
/// The most aliases that are followed for one question.
const MAX_CHAIN: usize = 8;

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

    /// The domain of a name in lower case.
    fn route(&self, name: &[u8]) -> Option<usize> {
        let mut domains = self.domains.iter();
        domains.position(|domain| name::offset_of(name, domain.as_wire()).is_some())
    }
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Reaction {
    /// It is answered with what was written.
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

/// A finished reply, which stands in the buffer that was given for it, without TCP's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
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
    /// The aliases that lead from the name that was asked to the one that the upstream is asked about: what each
    /// stands for, in order.
    pub(super) chain: Vec<name::Name>,
    /// The TTL of the aliases, in seconds.
    pub(super) chain_ttl: u32,
}

/// Decides about one message. `draw` is a random number, by which a name's addresses are rotated. A reply takes the place
/// of what is in `octets`, whose room is used again; without one they are left as they are.
pub fn answer(
    message: &[u8],
    transport: Transport,
    client: IpAddr,
    snapshot: &Snapshot,
    policy: &Policy,
    draw: u32,
    octets: &mut Vec<u8>,
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
        Err(rcode) => Reaction::Reply(writer.refusal(octets, rcode)),
        Ok(Decision::Forward(forward)) => Reaction::Forward(forward),
        Ok(Decision::Zone(found)) => {
            Reaction::Reply(writer.authoritative(octets, snapshot, &found, draw))
        }
    }
}

enum Decision<'a> {
    /// The zone answers.
    Zone(Found<'a>),
    Forward(Forward),
}

/// What the zones say of a question.
struct Found<'a> {
    question: Question<'a>,
    /// The zone of the last name.
    zone: &'a Zone,
    /// What each alias on the way stands for, in order.
    chain: Vec<name::Name>,
    end: End<'a>,
}

/// What the last name of a chain of aliases is, or the only name.
enum End<'a> {
    Present(Node<'a>),
    Absent,
    /// Nobody here can tell: it is outside the zones, or an alias on the way to itself.
    Unknown,
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
    let mut chain: Vec<name::Name> = Vec::new();
    let mut last_zone = None;
    loop {
        let name = chain
            .last()
            .map_or(question.name.as_slice(), name::Name::as_wire);
        let (zone, node) = match snapshot.lookup(name) {
            Lookup::Present { zone, node } => (zone, Some(node)),
            Lookup::Absent { zone } => (zone, None),
            Lookup::Outlying { zone, node }
                if matches!(question.qtype, Rtype::PTR | Rtype::ANY) =>
            {
                (zone, Some(node))
            }
            Lookup::Outlying { .. } | Lookup::OutsideZones => {
                let folded = name::Folded::new(name).map_err(|_| OptRcode::FORMERR)?;
                let folded = folded.as_wire();
                // RFC 5358, section 4: recursion is not for everybody.
                let route = policy.route(folded).filter(|_| policy.admits(client));
                return match (route, last_zone) {
                    // RFC 1034, section 4.3.2: without recursion, an alias alone is the answer.
                    (route, Some(zone)) if route.is_none() || !query.header.rd() => {
                        let end = End::Unknown;
                        Ok(Decision::Zone(Found {
                            question,
                            zone,
                            chain,
                            end,
                        }))
                    }
                    (None, _) => Err(OptRcode::REFUSED),
                    (Some(route), _) => Ok(Decision::Forward(Forward {
                        id: query.header.id(),
                        name: question.name.as_slice().into(),
                        folded: name::Name::from_wire(folded).map_err(|_| OptRcode::FORMERR)?,
                        qtype: question.qtype.to_int(),
                        recursion_desired: query.header.rd(),
                        checking_disabled: query.header.cd(),
                        authentic_data: query.header.ad(),
                        edns: query.edns,
                        limit: query.limit(transport),
                        route,
                        chain,
                        chain_ttl: snapshot.ttl(),
                    })),
                };
            }
        };
        // Before the first complete snapshot, nothing may be said not to exist; nor may others say so of an address that
        // may turn out to be published.
        if !snapshot.complete() {
            return Err(OptRcode::SERVFAIL);
        }
        // RFC 1034, section 3.6.2: an alias answers for the name it stands for, unless it is asked for itself.
        let alias = node.as_ref().and_then(|node| node.alias.as_deref());
        let end = match alias.filter(|_| !matches!(question.qtype, Rtype::CNAME | Rtype::ANY)) {
            Some(target) => {
                let asked = question
                    .name
                    .as_slice()
                    .eq_ignore_ascii_case(target.as_wire());
                let circle = asked || chain.contains(target);
                chain.push(target.clone());
                last_zone = Some(zone);
                if !circle && chain.len() < MAX_CHAIN {
                    continue;
                }
                End::Unknown
            }
            None => node.map_or(End::Absent, End::Present),
        };
        return Ok(Decision::Zone(Found {
            question,
            zone,
            chain,
            end,
        }));
    }
}

/// What an existing name answers to a type.
enum RrSet<'a> {
    A(&'a Node<'a>),
    Aaaa(&'a Node<'a>),
    Cname(&'a name::Name),
    Ptr(&'a [name::Name]),
    Srv(Services<'a>),
    Txt(&'static str),
    Soa,
    Ns,
}

impl<'a> RrSet<'a> {
    fn select(
        snapshot: &'a Snapshot,
        name: &[u8],
        node: &'a Node<'a>,
        qtype: Rtype,
    ) -> Option<Self> {
        let v4 = (!node.addresses.v4.is_empty()).then_some(Self::A(node));
        let v6 = (!node.addresses.v6.is_empty()).then_some(Self::Aaaa(node));
        let cname = node.alias.as_deref().map(Self::Cname);
        let ptr = (!node.pointers.is_empty()).then_some(Self::Ptr(&node.pointers));
        let txt = node.text.map(Self::Txt);
        let srv = || snapshot.services(name).map(Self::Srv);
        let apex = |set| node.apex.then_some(set);
        match qtype {
            Rtype::A => v4,
            Rtype::AAAA => v6,
            Rtype::CNAME => cname,
            Rtype::PTR => ptr,
            Rtype::SRV => srv(),
            Rtype::TXT => txt,
            Rtype::SOA => apex(Self::Soa),
            Rtype::NS => apex(Self::Ns),
            // RFC 8482, section 4.1: one of the name's RRsets, as it is, is an answer to ANY.
            Rtype::ANY => {
                let any = v6.or(v4).or(cname).or(ptr).or(txt).or(apex(Self::Soa));
                any.or_else(srv)
            }
            _ => None,
        }
    }
}

/// Writes replies to one query.
struct Writer<'a> {
    query: Query<'a>,
    transport: Transport,
    policy: &'a Policy,
}

impl Writer<'_> {
    /// Header and question, with room kept for the OPT.
    fn start<'a>(
        &self,
        octets: &'a mut Vec<u8>,
        rcode: OptRcode,
        authoritative: bool,
    ) -> AnswerBuilder<Compressor<'a>> {
        let Ok(mut builder) = MessageBuilder::from_target(Compressor::new(octets));
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
    fn refusal(&self, octets: &mut Vec<u8>, rcode: OptRcode) -> Reply {
        self.finish(self.start(octets, rcode, false).additional(), rcode)
    }

    fn authoritative(
        &self,
        octets: &mut Vec<u8>,
        snapshot: &Snapshot,
        found: &Found<'_>,
        draw: u32,
    ) -> Reply {
        let Found {
            question,
            zone,
            chain,
            end,
        } = found;
        // RFC 6604, section 3: the code is about the last name of a chain of aliases.
        let rcode = match end {
            End::Present(_) | End::Unknown => OptRcode::NOERROR,
            End::Absent => OptRcode::NXDOMAIN,
        };
        let mut answer = self.start(octets, rcode, true);
        let soa = snapshot.soa(zone);
        let ttl = Ttl::from_secs(snapshot.ttl());
        let owners = std::iter::once(question.name).chain(chain.iter().map(wire));
        let aliases = owners.clone().zip(chain);
        let aliases =
            aliases.map(|(owner, target)| (owner, Class::IN, ttl, Cname::new(wire(target))));
        let mut fits = push_all(&mut answer, aliases);
        let owner = owners.last().expect("the question's name at least");
        let set = match end {
            End::Present(node) => RrSet::select(snapshot, owner.as_slice(), node, question.qtype),
            End::Absent | End::Unknown => None,
        };
        fits = fits
            && match &set {
                None if matches!(end, End::Unknown) => true,
                None => {
                    let mut authority = answer.authority();
                    // RFC 2308, section 3: the SOA's TTL says how long the negative answer may be kept.
                    let ttl = ttl.min(Ttl::from_secs(soa.minimum));
                    let soa = (wire(&zone.name), Class::IN, ttl, soa_data(&soa));
                    if authority.push(soa).is_err() {
                        // Only behind long aliases.
                        authority.header_mut().set_tc(true);
                    }
                    return self.finish(authority.additional(), rcode);
                }
                Some(RrSet::A(node)) => push_all(
                    &mut answer,
                    drawn(&node.addresses.v4, node.pick, draw)
                        .map(|&address| (owner, Class::IN, ttl, A::new(address))),
                ),
                Some(RrSet::Aaaa(node)) => push_all(
                    &mut answer,
                    drawn(&node.addresses.v6, node.pick, draw)
                        .map(|&address| (owner, Class::IN, ttl, Aaaa::new(address))),
                ),
                Some(RrSet::Cname(target)) => push_all(
                    &mut answer,
                    [(owner, Class::IN, ttl, Cname::new(wire(target)))],
                ),
                Some(RrSet::Ptr(targets)) => push_all(
                    &mut answer,
                    targets
                        .iter()
                        .map(|target| (owner, Class::IN, ttl, Ptr::new(wire(target)))),
                ),
                Some(RrSet::Srv(services)) => services.iter().all(|(port, target, _)| {
                    let data = Srv::new(0, services.weight, port, wire(&target));
                    answer.push((owner, Class::IN, ttl, data)).is_ok()
                }),
                Some(RrSet::Txt(text)) => {
                    let data =
                        Txt::<Vec<u8>>::build_from_slice(text.as_bytes()).expect("a short text");
                    push_all(&mut answer, [(owner, Class::IN, ttl, data)])
                }
                Some(RrSet::Soa) => {
                    push_all(&mut answer, [(owner, Class::IN, ttl, soa_data(&soa))])
                }
                Some(RrSet::Ns) => push_all(
                    &mut answer,
                    [(owner, Class::IN, ttl, Ns::new(wire(soa.mname)))],
                ),
            };
        if !fits {
            // RFC 2181, section 9: the part of the set that fits may stay. Clients ask again over TCP and ignore it, but
            // those that know no TCP (musl's resolver before 1.2.4) have nothing else.
            answer.header_mut().set_tc(true);
        }
        let mut additional = answer.additional();
        match &set {
            _ if !fits => {}
            Some(RrSet::Ns) => {
                if let Lookup::Present { node, .. } = snapshot.lookup(soa.mname.as_wire()) {
                    push_glue(&mut additional, soa.mname, &node.addresses, ttl);
                }
            }
            // RFC 2782: the addresses of the targets, as many as fit.
            Some(RrSet::Srv(services)) => {
                let mut last = None;
                for (_, target, addresses) in services.iter() {
                    if last.as_ref() != Some(&target)
                        && !push_glue(&mut additional, &target, addresses, ttl)
                    {
                        break;
                    }
                    last = Some(target);
                }
            }
            _ => {}
        }
        self.finish(additional, rcode)
    }

    /// RFC 6891, section 6.1.1: an OPT if the query had one, and none otherwise. No option is known, so none is sent.
    fn finish(&self, mut additional: AdditionalBuilder<Compressor<'_>>, rcode: OptRcode) -> Reply {
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
        Reply {
            rcode,
            truncated: additional.header().tc(),
        }
    }
}

/// Whether all records fit. Those that do are kept.
fn push_all(
    answer: &mut AnswerBuilder<Compressor<'_>>,
    records: impl IntoIterator<Item = impl ComposeRecord>,
) -> bool {
    records
        .into_iter()
        .all(|record| answer.push(record).is_ok())
}

/// Adds a name's addresses, and says whether all fit. RFC 2181, section 9: the reply is not truncated if these don't
/// fit; nobody asked for them.
fn push_glue(
    additional: &mut AdditionalBuilder<Compressor<'_>>,
    owner: &name::Name,
    addresses: &AddressSet,
    ttl: Ttl,
) -> bool {
    let owner = wire(owner);
    let AddressSet { v4, v6 } = addresses;
    let mut v6 = v6
        .iter()
        .map(|&address| (owner, Class::IN, ttl, Aaaa::new(address)));
    let mut v4 = v4
        .iter()
        .map(|&address| (owner, Class::IN, ttl, A::new(address)));
    v6.all(|record| additional.push(record).is_ok())
        && v4.all(|record| additional.push(record).is_ok())
}

/// The set as a ring, begun at a place that `draw` decides: `pick` of it, or all if that is 0. Each address is given
/// equally often, as in the kernel.
fn drawn<T>(set: &[T], pick: u8, draw: u32) -> impl Iterator<Item = &T> {
    let start = ((u64::from(draw) * set.len() as u64) >> 32) as usize;
    let given = match pick {
        0 => set.len(),
        pick => pick.into(),
    };
    set[start..].iter().chain(&set[..start]).take(given)
}

fn soa_data<'a>(soa: &snapshot::Soa<'a>) -> Soa<&'a Name<[u8]>> {
    Soa::new(
        wire(soa.mname),
        wire(soa.rname),
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
