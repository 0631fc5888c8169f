//! From a query to its answer.
//!
//! [`respond`] decides: it reads the packet and the tables and returns an [`Answer`] or the reason to pass the
//! packet on. Nothing is written before [`Answer::write`], which first makes room, so that a packet
//! that is passed is passed as it came.

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
        ethernet::{self, Ethernet},
        ip::{self, Datagram, Family, UDP_HEADER},
    },
    packet::{Packet, ResizeError},
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
///
/// Whom it goes to, and its ID, are read from the packet once more when it is written: carrying them along
/// costs more than the second look.
pub struct Answer<'t> {
    /// Where the IP header begins.
    ip: usize,
    family: Family,
    name_length: usize,
    name_sum: u64,
    query_type: QueryType,
    opt: Option<Opt>,
    recursion: bool,
    body: Body<'t>,
}

/// What the answer says.
enum Body<'t> {
    /// Addresses of a set, from `first` on, the set taken as a ring.
    Addresses {
        segment: &'t Segment,
        word: usize,
        count: usize,
        first: usize,
        given: usize,
        ttl: u32,
    },
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

    /// The record, but for what varies.
    #[rustfmt::skip]
    const TEMPLATE: [u8; Self::LENGTH] = {
        let [f0, f1, f2, f3] = Self::REFRESH.to_be_bytes();
        let [r0, r1, r2, r3] = Self::RETRY.to_be_bytes();
        let [e0, e1, e2, e3] = Self::EXPIRE.to_be_bytes();
        [
            0, 0, 0, TYPE_SOA as u8, 0, CLASS_IN as u8, 0, 0, 0, 0, 0, (Self::LENGTH - RECORD_PREFIX) as u8,
            2, b'n', b's', 3, b'd', b'n', b's', 0, 0,
            10, b'h', b'o', b's', b't', b'm', b'a', b's', b't', b'e', b'r', 0, 0,
            0, 0, 0, 0, f0, f1, f2, f3, r0, r1, r2, r3, e0, e1, e2, e3, 0, 0, 0, 0,
        ]
    };
    /// Where the pointers to the zone's name stand: owner, MNAME, RNAME.
    const OWNER: usize = 0;
    const MNAME: usize = 19;
    const RNAME: usize = 32;
    const TTL: usize = 6;
    const SERIAL: usize = 34;
    const MINIMUM: usize = 50;
    const TEMPLATE_SUM: u64 = sum_of(&Self::TEMPLATE);

    /// Writes the record, and returns its sum. TTL and MINIMUM are one value, so that the lesser of them
    /// is it (RFC 2308, section 5).
    #[inline(always)]
    fn write(self, record: &mut [u8; Self::LENGTH]) -> u64 {
        let zone = (0xc000 | (HEADER + self.zone_offset) as u16).to_be();
        let (ttl, serial) = (self.ttl.to_be(), self.serial.to_be());
        *record = Self::TEMPLATE;
        put(record, Self::OWNER, zone.to_le_bytes());
        put(record, Self::MNAME, zone.to_le_bytes());
        put(record, Self::RNAME, zone.to_le_bytes());
        put(record, Self::TTL, ttl.to_le_bytes());
        put(record, Self::SERIAL, serial.to_le_bytes());
        put(record, Self::MINIMUM, ttl.to_le_bytes());
        // MNAME's pointer is at an odd offset.
        Self::TEMPLATE_SUM
            + 2 * u64::from(zone)
            + u64::from(zone.swap_bytes())
            + 2 * u64::from(ttl)
            + u64::from(serial)
    }
}

#[inline(always)]
fn put<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, value: [u8; M]) {
    bytes[at..at + M].copy_from_slice(&value);
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
    let ifindex = interface.ifindex.load() as u32;
    if !table::is_served(
        tables,
        ifindex,
        datagram.destination,
        datagram.destination_port,
    ) {
        return Err(PassReason::NotServed);
    }
    // Also what is sent to a group, and what a promiscuous interface overhears.
    if ethernet.destination != interface.mac.load() {
        return Err(PassReason::OtherHost);
    }
    let control = tables.control().ok_or(PassReason::NotReady)?;
    let flags = control.flags.load();
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
                let zone = control
                    .zones
                    .get(record.head.zone())
                    .ok_or(PassReason::AskFallback)?;
                negative(&name, zone, Outcome::NoData)
            } else {
                addresses(tables, set, record.head.ttl(), query_type, draw)?
            }
        }
        Found::Absent => {
            let zone = name.zone(packet, control).ok_or(PassReason::ForeignName)?;
            let boundary = name.length.wrapping_sub(zone.length.load() as usize);
            let labels = name.labels(packet, boundary).ok_or(PassReason::Name)?;
            if below_subtree(packet, &name, labels, control, tables) {
                return Err(PassReason::AskFallback);
            }
            negative(&name, zone, Outcome::NxDomain)
        }
        Found::AskFallback => return Err(PassReason::AskFallback),
    };

    let recursion = flags & Control::RECURSION_AVAILABLE != 0;
    let answer = Answer {
        ip: ethernet.end,
        family: datagram.family,
        name_length: name.length,
        name_sum: name.sum,
        query_type,
        opt,
        recursion,
        body,
    };
    let limit = opt
        .map_or(edns::PLAIN_PAYLOAD_SIZE, |opt| opt.payload_size())
        .min(edns::PAYLOAD_SIZE);
    let length = answer.message_length();
    let packet_length = length + UDP_HEADER + answer.family.header();
    if length > limit || packet_length > interface.mtu.load() as usize {
        return Err(PassReason::TooLarge);
    }
    Ok(answer)
}

#[inline(always)]
fn negative<'t>(name: &Name, zone: &Zone, outcome: Outcome) -> Body<'t> {
    let soa = Soa {
        zone_offset: name.length.wrapping_sub(zone.length.load() as usize) & 0xff,
        serial: zone.serial.load() as u32,
        ttl: zone.ttl.load() as u32,
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
    let first = if count == 1 {
        0
    } else {
        ((u64::from(draw()) * count as u64) >> 32) as usize
    };
    Ok(Body::Addresses {
        segment,
        word,
        count,
        first,
        given,
        ttl,
    })
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
        let depth = control.subtree_depths[i].load() as usize;
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
        HEADER + self.name_length + TYPE_AND_CLASS + body + opt
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
        let message = self.ip + self.family.header() + UDP_HEADER;
        let question_end = message + HEADER + self.name_length + TYPE_AND_CLASS;
        // From here on, the packet is no longer the query.
        packet
            .resize(message + self.message_length(), question_end)
            .map_err(|error| match error {
                ResizeError::NoRoom => WriteError::NoRoom,
                ResizeError::Length => WriteError::Aborted(AbortReason::Resized),
            })?;
        self.write_frame(packet, message)
            .ok_or(WriteError::Aborted(AbortReason::Table))
    }

    #[inline(always)]
    fn write_frame<P: Packet>(&self, packet: &mut P, message: usize) -> Option<()> {
        let mut at = message + HEADER + self.name_length;
        let mut sum = u64::from(u32::from_le_bytes(*packet.window::<TYPE_AND_CLASS>(at)?));
        at += TYPE_AND_CLASS;
        let mut answers = 0;
        match self.body {
            Body::Addresses {
                segment,
                word,
                count,
                first,
                given,
                ttl,
            } => {
                answers = given as u16;
                sum += match self.query_type {
                    QueryType::Aaaa => {
                        let prefix = RecordPrefix::new(TYPE_AAAA, ttl, 16);
                        let written = write_ring(given, count, first, |index| {
                            let [low, high] = segment.words::<2>(word + 2 * index)?;
                            let (low, high) = (low.load(), high.load());
                            let record = packet.window_mut::<AAAA_RECORD>(at)?;
                            prefix.write(record);
                            put(record, RECORD_PREFIX, low.to_le_bytes());
                            put(record, RECORD_PREFIX + 8, high.to_le_bytes());
                            at += AAAA_RECORD;
                            Some(checksum::add(checksum::add(0, low), high))
                        })?;
                        written + given as u64 * prefix.sum()
                    }
                    QueryType::A => {
                        let prefix = RecordPrefix::new(TYPE_A, ttl, 4);
                        let written = write_ring(given, count, first, |index| {
                            let [pair] = segment.words::<1>(word + index / 2)?;
                            let address = (pair.load() >> ((index & 1) * 32)) as u32;
                            let record = packet.window_mut::<A_RECORD>(at)?;
                            prefix.write(record);
                            put(record, RECORD_PREFIX, address.to_le_bytes());
                            at += A_RECORD;
                            Some(u64::from(address))
                        })?;
                        written + given as u64 * prefix.sum()
                    }
                };
            }
            Body::Negative { soa, .. } => {
                sum += soa.write(packet.window_mut(at)?);
                at += Soa::LENGTH;
            }
        }
        if let Some(opt) = self.opt {
            let record = packet.window_mut::<{ edns::OPT }>(at)?;
            let first = opt.reply();
            put(record, 0, first.to_le_bytes());
            put(record, 8, [0; 3]);
            sum = checksum::add(sum, first);
        }
        if self.name_length & 1 == 1 {
            sum = checksum::at_odd_offset(sum);
        }
        sum += u64::from(checksum::fold(self.name_sum));

        let counts = Counts {
            answers,
            authority: matches!(self.body, Body::Negative { .. }),
            additional: self.opt.is_some(),
        };
        let rcode = match self.outcome() {
            Outcome::Records | Outcome::NoData => header::NOERROR,
            Outcome::NxDomain => header::NXDOMAIN,
        };
        sum += header::turn(packet, message, self.recursion, rcode, counts)?;
        let length = UDP_HEADER + self.message_length();
        ip::turn(packet, self.ip, self.family, length, sum)?;
        ethernet::turn(packet)
    }
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

/// A record but for its data, the first byte lowest: 8 bytes and 4.
#[derive(Clone, Copy)]
struct RecordPrefix(u64, u32);

impl RecordPrefix {
    #[inline(always)]
    const fn new(record_type: u16, ttl: u32, length: u16) -> Self {
        let ttl = ttl.to_be();
        Self(
            TO_QUESTION.to_be() as u64
                | (record_type.to_be() as u64) << 16
                | (CLASS_IN.to_be() as u64) << 32
                | (ttl as u64) << 48,
            ttl >> 16 | (length.to_be() as u32) << 16,
        )
    }

    #[inline(always)]
    fn write<const N: usize>(self, record: &mut [u8; N]) {
        put(record, 0, self.0.to_le_bytes());
        put(record, 8, self.1.to_le_bytes());
    }

    #[inline(always)]
    const fn sum(self) -> u64 {
        checksum::add(self.1 as u64, self.0)
    }
}

/// The sum of an array's 16-bit words.
const fn sum_of<const N: usize>(bytes: &[u8; N]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += (bytes[i] as u64) << (8 * (i & 1));
        i += 1;
    }
    sum
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
