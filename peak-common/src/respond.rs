//! From a query to its answer.
//!
//! [`respond`] decides: it reads the packet and the tables and returns an [`Answer`] or the reason to pass the
//! packet on. Nothing is written before [`Answer::write`], which first makes room, so that a packet
//! that is passed is passed as it came.

use core::sync::atomic::Ordering::Relaxed;

use crate::{
    abi::{Control, Interface, MAX_SUBTREE_DEPTHS, RecordHead, Segment, SetDescriptor, Zone},
    dns::{
        edns::{self, Opt},
        header::{self, Counts, HEADER, Header},
        name::Name,
        question::{self, CLASS_IN, TYPE_A, TYPE_AAAA, TYPE_AND_CLASS, TYPE_SOA},
    },
    net::{
        checksum,
        ethernet::{Ethernet, MAX_HEADER},
        ip::{Datagram, UDP_HEADER},
    },
    packet::{Packet, Resized},
    table::{self, Found, Tables},
    verdict::{AbortReason, Outcome, PassReason, QueryType, Verdict},
};

/// Bytes of a frame's least payload-carrying length with two tags; what is longer has no padding.
const PADDED_FRAME: usize = 68;

/// Name by pointer, type, class, TTL and length: what stands before a record's data.
const RECORD_PREFIX: usize = 12;
const AAAA_RECORD: usize = RECORD_PREFIX + 16;
const A_RECORD: usize = RECORD_PREFIX + 4;
/// Most records that fit [`edns::PAYLOAD_SIZE`] after the shortest question.
const MAX_RECORDS: usize = (edns::PAYLOAD_SIZE - HEADER - 1 - TYPE_AND_CLASS) / A_RECORD;

/// A compression pointer (RFC 1035, section 4.1.4) to the question's name.
const TO_QUESTION: u16 = 0xc000 | HEADER as u16;

/// An answer, decided, not yet written.
pub struct Answer<'t> {
    ethernet: Ethernet,
    datagram: Datagram,
    header: Header,
    name: Name,
    query_type: QueryType,
    opt: Option<Opt>,
    recursion: bool,
    body: Body<'t>,
}

/// What the answer says.
enum Body<'t> {
    /// Addresses of a set, from `first` on, the set taken as a ring.
    Addresses { segment: &'t Segment, word: usize, count: usize, first: usize, given: usize, ttl: u32 },
    /// Nothing: the SOA says for how long (RFC 2308, section 3).
    Negative { outcome: Outcome, soa: Soa },
}

/// The part of an SOA that varies. `ns.dns.<zone>` and `hostmaster.<zone>` are written with the zone as a
/// pointer into the question, so that every zone's takes the same room, and the query's case is echoed.
#[derive(Clone, Copy)]
struct Soa {
    zone_offset: usize,
    serial: u32,
    ttl: u32,
}

impl Soa {
    const LENGTH: usize = 54;
    /// Seconds, as CoreDNS's kubernetes plugin has them.
    const REFRESH: u32 = 7200;
    const RETRY: u32 = 1800;
    const EXPIRE: u32 = 86400;

    /// The record. TTL and MINIMUM are one value, so that their minimum is it (RFC 2308, section 5).
    #[inline(always)]
    fn record(self) -> [u8; Self::LENGTH] {
        let [z0, z1] = (0xc000 | (HEADER + self.zone_offset) as u16).to_be_bytes();
        let [y0, y1] = TYPE_SOA.to_be_bytes();
        let [c0, c1] = CLASS_IN.to_be_bytes();
        let [t0, t1, t2, t3] = self.ttl.to_be_bytes();
        let [s0, s1, s2, s3] = self.serial.to_be_bytes();
        let [f0, f1, f2, f3] = Self::REFRESH.to_be_bytes();
        let [r0, r1, r2, r3] = Self::RETRY.to_be_bytes();
        let [e0, e1, e2, e3] = Self::EXPIRE.to_be_bytes();
        #[rustfmt::skip]
        let record = [
            z0, z1, y0, y1, c0, c1, t0, t1, t2, t3, 0, (Self::LENGTH - RECORD_PREFIX) as u8,
            2, b'n', b's', 3, b'd', b'n', b's', z0, z1,
            10, b'h', b'o', b's', b't', b'm', b'a', b's', b't', b'e', b'r', z0, z1,
            s0, s1, s2, s3, f0, f1, f2, f3, r0, r1, r2, r3, e0, e1, e2, e3, t0, t1, t2, t3,
        ];
        record
    }
}

/// Decides what becomes of a packet that came in on `interface`.
///
/// `draw` gives a random number, and is asked only where there is a choice.
///
/// # Errors
/// The reason to pass the packet on.
#[inline(always)]
pub fn respond<'t, P: Packet, T: Tables>(
    packet: &P,
    tables: &'t T,
    interface: &Interface,
    draw: impl FnOnce() -> u32,
) -> Result<Answer<'t>, PassReason> {
    let ethernet = Ethernet::read(packet)?;
    let datagram = Datagram::read(packet, ethernet.end, ethernet.ether_type)?;
    let ifindex = interface.ifindex.load(Relaxed);
    if !table::is_served(tables, ifindex, datagram.destination, datagram.destination_port) {
        return Err(PassReason::NotServed);
    }
    // Also what is sent to a group, and what a promiscuous interface overhears.
    if ethernet.destination != interface.mac.load(Relaxed) {
        return Err(PassReason::OtherHost);
    }
    let control = tables.control().ok_or(PassReason::NotReady)?;
    let flags = control.flags.load(Relaxed);
    if flags & Control::ENABLED == 0 {
        return Err(PassReason::Disabled);
    }
    if flags & Control::COMPLETE == 0 {
        return Err(PassReason::NotReady);
    }
    datagram.check_headers()?;
    if ethernet.from_group() {
        return Err(PassReason::Source);
    }
    datagram.check_source()?;

    let udp = ethernet.end + datagram.family.header();
    let end = udp + datagram.length;
    if end > packet.len() {
        return Err(PassReason::Truncated);
    }
    // Short frames are padded; more than that is nobody's business here.
    if end < packet.len() && packet.len() > PADDED_FRAME {
        return Err(PassReason::Leftover);
    }

    let message = udp + UDP_HEADER;
    let header = Header::read(packet, message)?;
    let name = Name::scan(packet, message + HEADER, control).ok_or(PassReason::Name)?;
    let name_end = name.start + name.length;
    let query_type = question::read_type(packet, name_end)?;
    let question_end = name_end + TYPE_AND_CLASS;
    let opt = if header.additional {
        Some(Opt::read(packet, question_end, end)?)
    } else if question_end == end {
        None
    } else if question_end < end {
        return Err(PassReason::Leftover);
    } else {
        return Err(PassReason::Truncated);
    };

    let body = match table::find(packet, &name, control, tables) {
        Found::Present(record) => {
            if record.head.flags() & RecordHead::ASK_FALLBACK != 0 {
                return Err(PassReason::AskFallback);
            }
            let set = record.set(query_type);
            if set.count() == 0 {
                let zone = control.zones.get(record.head.zone()).ok_or(PassReason::AskFallback)?;
                negative(&name, zone, Outcome::NoData)
            } else {
                addresses(tables, set, record.head.ttl(), query_type, draw)?
            }
        }
        Found::Absent => {
            let zone = name.zone(packet, control).ok_or(PassReason::ForeignName)?;
            let boundary = name.length.wrapping_sub(zone.length.load(Relaxed) as usize);
            let labels = name.labels(packet, boundary).ok_or(PassReason::Name)?;
            if below_subtree(packet, &name, labels, control, tables) {
                return Err(PassReason::AskFallback);
            }
            negative(&name, zone, Outcome::NxDomain)
        }
        Found::AskFallback => return Err(PassReason::AskFallback),
    };

    let recursion = flags & Control::RECURSION_AVAILABLE != 0;
    let answer = Answer { ethernet, datagram, header, name, query_type, opt, recursion, body };
    let limit = opt.map_or(edns::PLAIN_PAYLOAD_SIZE, |opt| opt.payload_size()).min(edns::PAYLOAD_SIZE);
    let length = answer.message_length();
    let packet_length = length + UDP_HEADER + answer.datagram.family.header();
    if length > limit || packet_length > interface.mtu.load(Relaxed) as usize {
        return Err(PassReason::TooLarge);
    }
    Ok(answer)
}

#[inline(always)]
fn negative<'t>(name: &Name, zone: &Zone, outcome: Outcome) -> Body<'t> {
    let soa = Soa {
        zone_offset: name.length.wrapping_sub(zone.length.load(Relaxed) as usize) & 0xff,
        serial: zone.serial.load(Relaxed),
        ttl: zone.ttl.load(Relaxed),
    };
    Body::Negative { outcome, soa }
}

#[inline(always)]
fn addresses<T: Tables>(
    tables: &T,
    set: SetDescriptor,
    ttl: u32,
    query_type: QueryType,
    draw: impl FnOnce() -> u32,
) -> Result<Body<'_>, PassReason> {
    let count = set.count() as usize;
    let given = match set.pick() as usize {
        0 => count,
        pick => pick.min(count),
    };
    if given > MAX_RECORDS {
        return Err(PassReason::TooLarge);
    }
    let words = match query_type {
        QueryType::Aaaa => 2 * count,
        QueryType::A => count.div_ceil(2),
    };
    let (segment, word) = table::locate(tables, set.start()).ok_or(PassReason::AskFallback)?;
    if word + words > segment.0.len() {
        return Err(PassReason::AskFallback);
    }
    // Each address comes first equally often: the upper half of a product is uniform over `count`.
    let first = if count == 1 { 0 } else { (u64::from(draw()) * count as u64 >> 32) as usize };
    Ok(Body::Addresses { segment, word, count, first, given, ttl })
}

/// Whether an ancestor of the name leaves all that is below it to the fallback.
#[inline(always)]
fn below_subtree<P: Packet, T: Tables>(
    packet: &P,
    name: &Name,
    labels: usize,
    control: &Control,
    tables: &T,
) -> bool {
    for i in 0..MAX_SUBTREE_DEPTHS {
        let depth = control.subtree_depths[i].load(Relaxed) as usize;
        if depth == 0 {
            break;
        }
        if depth >= labels {
            continue;
        }
        let Some(ancestor) = name.parent(packet, labels - depth, control) else {
            return true;
        };
        match table::find(packet, &ancestor, control, tables) {
            Found::Present(record) if record.head.flags() & RecordHead::SUBTREE == 0 => {}
            Found::Absent => {}
            _ => return true,
        }
    }
    false
}

/// Why an answer was not written.
pub enum WriteError {
    /// The frame can't grow; it is untouched.
    NoRoom,
    /// The frame is half-written and must be dropped.
    Aborted(AbortReason),
}

impl Answer<'_> {
    /// What the answer counts as.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self.body {
            Body::Addresses { .. } => Outcome::Records,
            Body::Negative { outcome, .. } => outcome,
        }
    }

    /// The type that was asked for.
    #[inline(always)]
    #[must_use]
    pub const fn query_type(&self) -> QueryType {
        self.query_type
    }

    /// Bytes of the DNS message.
    #[inline(always)]
    fn message_length(&self) -> usize {
        let body = match self.body {
            Body::Addresses { given, .. } => given * self.record_length(),
            Body::Negative { .. } => Soa::LENGTH,
        };
        let opt = if self.opt.is_some() { edns::OPT } else { 0 };
        HEADER + self.name.length + TYPE_AND_CLASS + body + opt
    }

    #[inline(always)]
    const fn record_length(&self) -> usize {
        match self.query_type {
            QueryType::Aaaa => AAAA_RECORD,
            QueryType::A => A_RECORD,
        }
    }

    /// Turns the query into this answer.
    ///
    /// # Errors
    /// [`WriteError`].
    #[inline(always)]
    pub fn write<P: Packet>(&self, packet: &mut P) -> Result<(), WriteError> {
        let message = self.name.start - HEADER;
        let length = message + self.message_length();
        // From here on, the packet is no longer the query.
        let resized = packet.resize(length).map_err(|_| WriteError::NoRoom)?;
        if packet.len() != length {
            return Err(WriteError::Aborted(AbortReason::Resized));
        }
        self.write_frame(packet, message, resized)
            .ok_or(WriteError::Aborted(AbortReason::Table))
    }

    #[inline(always)]
    fn write_frame<P: Packet>(
        &self,
        packet: &mut P,
        message: usize,
        resized: Resized,
    ) -> Option<()> {
        let question = self.name.start;
        let question_length = self.name.length + TYPE_AND_CLASS;
        if let Resized::Moved(by) = resized {
            move_down(packet, question, question_length, by)?;
        }
        *packet.window_mut::<MAX_HEADER>(0)? = self.ethernet.reply();

        let mut at = question + self.name.length;
        let mut sum = u64::from(u32::from_le_bytes(*packet.window::<TYPE_AND_CLASS>(at)?));
        at += TYPE_AND_CLASS;
        let mut answers = 0;
        match self.body {
            Body::Addresses { segment, word, count, first, given, ttl } => {
                answers = given as u16;
                sum += match self.query_type {
                    QueryType::Aaaa => {
                        let prefix = record_prefix(TYPE_AAAA, ttl, 16);
                        let written = write_ring(given, count, first, |index| {
                            let [low, high] = segment.words::<2>(word + 2 * index)?;
                            let (low, high) = (low.load(Relaxed), high.load(Relaxed));
                            let record = packet.window_mut::<AAAA_RECORD>(at)?;
                            let [head @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = record;
                            *head = prefix;
                            record[12..20].copy_from_slice(&low.to_le_bytes());
                            record[20..28].copy_from_slice(&high.to_le_bytes());
                            at += AAAA_RECORD;
                            Some(checksum::add(checksum::add(0, low), high))
                        })?;
                        written + given as u64 * prefix_sum(&prefix)
                    }
                    QueryType::A => {
                        let prefix = record_prefix(TYPE_A, ttl, 4);
                        let written = write_ring(given, count, first, |index| {
                            let [pair] = segment.words::<1>(word + index / 2)?;
                            let address = (pair.load(Relaxed) >> ((index & 1) * 32)) as u32;
                            let record = packet.window_mut::<A_RECORD>(at)?;
                            let [head @ .., _, _, _, _] = record;
                            *head = prefix;
                            record[12..16].copy_from_slice(&address.to_le_bytes());
                            at += A_RECORD;
                            Some(u64::from(address))
                        })?;
                        written + given as u64 * prefix_sum(&prefix)
                    }
                };
            }
            Body::Negative { soa, .. } => {
                let record = soa.record();
                *packet.window_mut::<{ Soa::LENGTH }>(at)? = record;
                at += Soa::LENGTH;
                sum += sum_of(&record);
            }
        }
        if let Some(opt) = self.opt {
            let record = opt.reply();
            *packet.window_mut::<{ edns::OPT }>(at)? = record;
            sum += sum_of(&record);
        }
        if self.name.length & 1 == 1 {
            sum = checksum::at_odd_offset(sum);
        }

        let negative = matches!(self.body, Body::Negative { .. });
        let rcode = match self.outcome() {
            Outcome::Records | Outcome::NoData => header::NOERROR,
            Outcome::NxDomain => header::NXDOMAIN,
        };
        let counts = Counts { answers, authority: negative, additional: self.opt.is_some() };
        let header = self.header.reply(self.recursion, rcode, counts);
        *packet.window_mut::<HEADER>(message)? = header;
        sum += sum_of(&header) + u64::from(checksum::fold(self.name.sum));

        let length = UDP_HEADER + self.message_length();
        self.datagram.write_reply(packet, self.ethernet.end, length, sum)
    }
}

/// Moves `length` bytes from `to + by` down to `to`, a word at a time, which may write up to 7 bytes more.
#[inline(always)]
fn move_down<P: Packet>(packet: &mut P, to: usize, length: usize, by: usize) -> Option<()> {
    const MAX_WORDS: usize = (crate::abi::MAX_NAME + TYPE_AND_CLASS).div_ceil(8);
    for i in 0..MAX_WORDS {
        if 8 * i >= length {
            break;
        }
        let word = packet.word(to + by + 8 * i)?;
        *packet.window_mut::<8>(to + 8 * i)? = word.to_le_bytes();
    }
    Some(())
}

/// Calls `write` for `given` elements of a ring of `count` from `first` on, and adds what it returns.
#[inline(always)]
fn write_ring(
    given: usize,
    count: usize,
    first: usize,
    mut write: impl FnMut(usize) -> Option<u64>,
) -> Option<u64> {
    let mut sum = 0;
    let mut index = first;
    for i in 0..MAX_RECORDS {
        if i >= given {
            break;
        }
        sum += write(index)?;
        index += 1;
        if index >= count {
            index = 0;
        }
    }
    Some(sum)
}

#[inline(always)]
const fn record_prefix(record_type: u16, ttl: u32, length: u8) -> [u8; RECORD_PREFIX] {
    let [n0, n1] = TO_QUESTION.to_be_bytes();
    let [y0, y1] = record_type.to_be_bytes();
    let [c0, c1] = CLASS_IN.to_be_bytes();
    let [t0, t1, t2, t3] = ttl.to_be_bytes();
    [n0, n1, y0, y1, c0, c1, t0, t1, t2, t3, 0, length]
}

#[inline(always)]
fn prefix_sum(prefix: &[u8; RECORD_PREFIX]) -> u64 {
    sum_of(prefix)
}

/// The sum of an array's 16-bit words; an odd last byte counts as followed by zero.
#[inline(always)]
fn sum_of<const N: usize>(bytes: &[u8; N]) -> u64 {
    let mut sum = 0;
    let mut pairs = bytes.chunks_exact(2);
    for pair in &mut pairs {
        sum += u64::from(u16::from_le_bytes([pair[0], pair[1]]));
    }
    sum + pairs.remainder().first().map_or(0, |&last| u64::from(last))
}

/// Answers the packet in place, or leaves it alone: all that becomes of it but the sending.
#[inline(always)]
pub fn handle<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    interface: &Interface,
    draw: impl FnOnce() -> u32,
) -> Verdict {
    match respond(packet, tables, interface, draw) {
        Ok(answer) => match answer.write(packet) {
            Ok(()) => Verdict::Answered(answer.query_type(), answer.outcome()),
            Err(WriteError::NoRoom) => Verdict::Passed(PassReason::NoRoom),
            Err(WriteError::Aborted(reason)) => Verdict::Aborted(reason),
        },
        Err(reason) => Verdict::Passed(reason),
    }
}
