//! From a query to its answer, in stages:
//!
//! 1. [`parse`] reads the packet, and leaves what was asked in the [`Scratch`], or says why the packet is to be passed on.
//! 2. [`look_up`] looks the name up, and leaves an answer in the [`Scratch`] if it is in the table.
//! 3. [`deny`], if it is not: does it not exist, or can only the fallback tell? [`below_subtree`] is a part of it.
//! 4. [`make_room`] gives the frame the answer's length. It is the last stage that may pass the packet, and does so before
//!    anything is written: what is passed is passed as it came.
//! 5. [`write()`] turns the query into the answer.
//!
//! What one stage leaves to the next is in memory, as numbers. The kernel's verifier, which explores every way through
//! a program, thus finds that ways into a stage are the same, and explores what follows once.

use crate::{
    abi::{Control, Interface, MAX_NAME, RecordHead, Segment, Zone},
    bytes::put,
    dns::{
        edns::{self, Opt},
        header::{self, Counts, HEADER, Header},
        name::{Name, NameBuffer},
        question::{self, CLASS_IN, TYPE_A, TYPE_AAAA, TYPE_AND_CLASS, TYPE_SOA},
    },
    net::{
        checksum::Sum,
        ethernet::{self, Ethernet},
        ip::{self, Datagram, Family, UDP_HEADER},
    },
    packet::{First, Packet, ResizeError},
    table::{self, Found, Set, Tables},
    verdict::{AbortReason, Outcome, PassReason, QueryType, Verdict},
    verifier::forget,
};

/// Bytes of a frame's least payload-carrying length with two tags; what is longer has no padding.
const PADDED_FRAME: usize = 68;

/// Name by pointer, type, class, TTL and length: what stands before a record's data.
const RECORD_PREFIX: usize = 12;
const AAAA_RECORD: usize = RECORD_PREFIX + 16;
const A_RECORD: usize = RECORD_PREFIX + 4;
/// Most records that fit [`edns::PAYLOAD_SIZE`] after the shortest question.
const MAX_RECORDS: usize = (edns::PAYLOAD_SIZE - HEADER - 1 - TYPE_AND_CLASS) / A_RECORD;

/// The same of AAAA records.
const MAX_AAAA_RECORDS: usize = (edns::PAYLOAD_SIZE - HEADER - 1 - TYPE_AND_CLASS) / AAAA_RECORD;

/// Bounds for the verifier of what is kept in memory: where a question ends, and the bytes of records and OPT. More than
/// there can be, so that they change nothing.
const QUESTION_END_MASK: usize = 0x1ff;
const RECORDS_MASK: usize = 0xfff;
const OPT_MASK: usize = 0xf;
const _: () = {
    assert!(22 + 40 + UDP_HEADER + HEADER + MAX_NAME + TYPE_AND_CLASS <= QUESTION_END_MASK);
    assert!(MAX_RECORDS * AAAA_RECORD <= RECORDS_MASK && Soa::LENGTH <= RECORDS_MASK);
    assert!(edns::OPT <= OPT_MASK);
};

/// A compression pointer (RFC 1035, section 4.1.4) to the question's name.
const TO_QUESTION: u16 = 0xc000 | HEADER as u16;

/// What the stages leave to one another. What stands in it before the first does not matter.
pub struct Scratch {
    name: NameBuffer,
    ancestor: NameBuffer,
    question: Name,
    answer: Answer,
}

impl Scratch {
    /// An empty one.
    pub const EMPTY: Self = Self {
        name: NameBuffer::EMPTY,
        ancestor: NameBuffer::EMPTY,
        question: Name::EMPTY,
        answer: Answer::EMPTY,
    };
}

/// An answer, decided, not yet written.
///
/// Whom it goes to, and its ID, are read from the packet once more when it is written: carrying them along costs more
/// than the second look.
#[derive(Clone, Copy)]
#[repr(C)]
struct Answer {
    /// Where the IP header begins.
    ip: usize,
    /// Bytes of the IP header.
    ip_header: usize,
    /// Where the question ends.
    question_end: usize,
    /// Bytes of the longest frame that the client and the link take.
    longest: usize,
    /// 1 for AAAA, 0 for A.
    aaaa: usize,
    /// Bytes of the OPT record, or 0.
    opt: usize,
    /// The DO bit, where [`edns::reply`] wants it.
    dnssec_ok: u64,
    /// An [`Outcome`].
    outcome: usize,
    /// Without addresses: for how long (RFC 2308, section 3).
    soa: Soa,
    /// Seconds.
    ttl: u32,
    /// The set's first word in the segment.
    word: usize,
    /// Addresses of the set, which is taken as a ring.
    count: usize,
    /// The one that is given first.
    first: usize,
    /// How many are given.
    given: usize,
    /// Bytes of the records that follow the question, without the OPT.
    records: usize,
}

/// What [`look_up`] found.
#[derive(Clone, Copy)]
pub enum Decision<'t> {
    /// There is an answer, with addresses of this segment or without any.
    Answer(Option<&'t Segment>),
    /// The name is not in the table: [`deny`] decides.
    Absent,
}

/// The part of an SOA that varies. `ns.dns.<zone>` and `hostmaster.<zone>` are written with the zone as a
/// pointer into the question, so that every zone's takes the same room, and the query's case is echoed.
#[derive(Clone, Copy)]
#[repr(C)]
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

    /// Writes the record, and adds its words to `sum`. TTL and MINIMUM are one value, so that the lesser of them
    /// is it (RFC 2308, section 5).
    #[inline(always)]
    fn write(self, record: &mut [u8; Self::LENGTH], sum: Sum) -> Sum {
        let zone = (0xc000 | (HEADER + (self.zone_offset & 0xff)) as u16).to_be();
        let (ttl, serial) = (self.ttl.to_be(), self.serial.to_be());
        *record = Self::TEMPLATE;
        put(record, Self::OWNER, zone.to_le_bytes());
        put(record, Self::MNAME, zone.to_le_bytes());
        put(record, Self::RNAME, zone.to_le_bytes());
        put(record, Self::TTL, ttl.to_le_bytes());
        put(record, Self::SERIAL, serial.to_le_bytes());
        put(record, Self::MINIMUM, ttl.to_le_bytes());
        // MNAME's pointer is at an odd offset.
        let varying = 2 * u64::from(zone)
            + u64::from(zone.swap_bytes())
            + 2 * u64::from(ttl)
            + u64::from(serial);
        sum.with(Self::TEMPLATE_SUM + varying)
    }
}

/// The first stage: whether a packet that came in on `interface` is a query for the fast path.
///
/// # Errors
/// The reason to pass the packet on.
#[inline(always)]
pub fn parse<P: Packet, T: Tables>(
    packet: &P,
    scratch: &mut Scratch,
    control: &Control,
    tables: &T,
    interface: &Interface,
) -> Result<(), PassReason> {
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

    let message = (forget(udp, packet.len() as u64) & 0x7f) + UDP_HEADER;
    let header = Header::read(packet, message)?;
    let name_start = message + HEADER;
    let name =
        Name::scan(packet, name_start, control, &mut scratch.name).ok_or(PassReason::Name)?;
    let name_end = name_start + name.length;
    let query_type = question::read_type(packet, name_end)?;
    let question_end = name_end + TYPE_AND_CLASS;
    let opt = if header.additional {
        Opt::read(packet, question_end, end)?
    } else if question_end == end {
        Opt::ABSENT
    } else if question_end < end {
        return Err(PassReason::Leftover);
    } else {
        return Err(PassReason::Truncated);
    };
    scratch.question = name;
    let answer = &mut scratch.answer;
    answer.ip = ethernet.end;
    answer.ip_header = datagram.family.header();
    answer.question_end = question_end;
    answer.aaaa = (query_type == QueryType::Aaaa) as usize;
    answer.opt = if header.additional { edns::OPT } else { 0 };
    answer.dnssec_ok = opt.dnssec_ok();
    let longest = message + opt.payload_size().min(edns::PAYLOAD_SIZE);
    answer.longest = longest.min(ethernet.end + interface.mtu.load() as usize);
    Ok(())
}

/// The second stage. `draw` gives a random number, and is asked only where there is a choice.
///
/// # Errors
/// The reason to pass the packet on.
#[inline(always)]
pub fn look_up<'t, T: Tables>(
    scratch: &mut Scratch,
    control: &Control,
    tables: &'t T,
    draw: impl FnOnce() -> u32,
) -> Result<Decision<'t>, PassReason> {
    let Scratch {
        name: buffer,
        question,
        answer,
        ..
    } = scratch;
    let name = question.bounded();
    let record = match table::find(&name, buffer, control, tables) {
        Found::Present(record) => record,
        Found::Absent => return Ok(Decision::Absent),
        Found::AskFallback => return Err(PassReason::AskFallback),
    };
    if record.head.flags() & RecordHead::ASK_FALLBACK != 0 {
        return Err(PassReason::AskFallback);
    }
    let set = record.set(answer.query_type());
    if set.count == 0 {
        let zone = control
            .zones
            .get(record.head.zone())
            .ok_or(PassReason::AskFallback)?;
        answer.negative(&name, zone, Outcome::NoData);
        return Ok(Decision::Answer(None));
    }
    let segment = record
        .segment_of(set, tables)
        .ok_or(PassReason::AskFallback)?;
    answer.addresses(set, record.head.ttl(), draw)?;
    Ok(Decision::Answer(Some(segment)))
}

/// The third stage, for a name that is not in the table.
///
/// # Errors
/// The reason to pass the packet on.
#[inline(always)]
pub fn deny<T: Tables>(
    scratch: &mut Scratch,
    tables: &T,
    mut below_subtree: impl FnMut(&mut Scratch, usize) -> bool,
) -> Result<(), PassReason> {
    let name = scratch.question.bounded();
    let control = tables.control().ok_or(PassReason::NotReady)?;
    let zone = name
        .zone(&scratch.name, control)
        .ok_or(PassReason::ForeignName)?;
    let labels = name
        .labels_below(&scratch.name, zone)
        .ok_or(PassReason::Name)?;
    let labels = labels + zone.labels.load() as usize;
    scratch.answer.negative(&name, zone, Outcome::NxDomain);
    for depth in &control.subtree_depths {
        let depth = depth.load() as usize;
        if depth == 0 {
            break;
        }
        if depth < labels && below_subtree(scratch, labels - depth) {
            return Err(PassReason::AskFallback);
        }
    }
    Ok(())
}

/// Whether the question's ancestor without its first `labels` labels leaves all that is below it to the fallback.
#[inline(always)]
pub fn below_subtree<T: Tables>(scratch: &mut Scratch, tables: &T, labels: usize) -> bool {
    let Scratch {
        name: buffer,
        ancestor,
        question,
        ..
    } = scratch;
    let Some(control) = tables.control() else {
        return true;
    };
    let name = question
        .bounded()
        .ancestor(buffer, labels, control, ancestor);
    match table::find(&name, ancestor, control, tables) {
        Found::Present(record) => record.head.flags() & RecordHead::SUBTREE != 0,
        Found::Absent => false,
        Found::AskFallback => true,
    }
}

impl Answer {
    const EMPTY: Self = Self {
        ip: 0,
        ip_header: 0,
        question_end: 0,
        longest: 0,
        aaaa: 0,
        opt: 0,
        dnssec_ok: 0,
        outcome: 0,
        soa: Soa {
            zone_offset: 0,
            serial: 0,
            ttl: 0,
        },
        ttl: 0,
        word: 0,
        count: 0,
        first: 0,
        given: 0,
        records: 0,
    };

    #[inline(always)]
    fn negative(&mut self, name: &Name, zone: &Zone, outcome: Outcome) {
        self.outcome = outcome as usize;
        self.records = Soa::LENGTH;
        self.soa.zone_offset = name.length.wrapping_sub(zone.length.load() as usize);
        self.soa.serial = zone.serial.load() as u32;
        self.soa.ttl = zone.ttl.load() as u32;
    }

    #[inline(always)]
    fn addresses(
        &mut self,
        set: Set,
        ttl: u32,
        draw: impl FnOnce() -> u32,
    ) -> Result<(), PassReason> {
        let count = set.count as usize;
        let given = match set.pick as usize {
            0 => count,
            pick => pick.min(count),
        };
        if given > MAX_RECORDS {
            return Err(PassReason::TooLarge);
        }
        // Each address comes first equally often: the upper half of a product is uniform over `count`.
        self.first = if count == 1 {
            0
        } else {
            ((u64::from(draw()) * count as u64) >> 32) as usize
        };
        self.outcome = Outcome::Records as usize;
        self.ttl = ttl;
        self.word = set.word;
        self.count = count;
        self.given = given;
        self.records = given * (A_RECORD + self.aaaa * (AAAA_RECORD - A_RECORD));
        Ok(())
    }

    #[inline(always)]
    const fn family(&self) -> Family {
        if self.ip_header == Family::V6.header() {
            Family::V6
        } else {
            Family::V4
        }
    }

    #[inline(always)]
    const fn query_type(&self) -> QueryType {
        if self.aaaa != 0 {
            QueryType::Aaaa
        } else {
            QueryType::A
        }
    }

    #[inline(always)]
    const fn outcome(&self) -> Outcome {
        if self.outcome == Outcome::Records as usize {
            Outcome::Records
        } else if self.outcome == Outcome::NoData as usize {
            Outcome::NoData
        } else {
            Outcome::NxDomain
        }
    }

    #[inline(always)]
    const fn layout(&self) -> Layout {
        let question_end = self.question_end & QUESTION_END_MASK;
        let records_end = question_end + (self.records & RECORDS_MASK);
        Layout {
            question_end,
            records_end,
            end: records_end + (self.opt & OPT_MASK),
        }
    }
}

/// The fourth stage: gives the frame the answer's length.
///
/// # Errors
/// The verdict that the packet deserves instead; if it is to be passed, it is untouched.
#[inline(always)]
pub fn make_room<P: Packet>(
    packet: &mut P,
    scratch: &Scratch,
    interface: &Interface,
) -> Result<(), Verdict> {
    let layout = scratch.answer.layout();
    if layout.end > scratch.answer.longest {
        return Err(Verdict::Passed(PassReason::TooLarge));
    }
    let first = match interface.head_first.load() {
        0 => First::Tail,
        _ => First::Head,
    };
    packet
        .resize(layout.end, layout.question_end, first)
        .map_err(|error| match error {
            ResizeError::NoRoom => Verdict::Passed(PassReason::NoRoom),
            ResizeError::Length => Verdict::Aborted(AbortReason::Resized),
        })
}

/// Where the parts of the answer end, from the frame's start.
struct Layout {
    question_end: usize,
    records_end: usize,
    end: usize,
}

/// The last stage: turns the query into the answer, in a frame that has room for it. If it fails, with
/// [`AbortReason::Table`], the frame is half-written.
#[inline(always)]
pub fn write<P: Packet>(
    packet: &mut P,
    scratch: &Scratch,
    control: &Control,
    segment: Option<&Segment>,
) -> Verdict {
    match write_frame(packet, scratch, control, segment) {
        Some((query_type, outcome)) => Verdict::Answered(query_type, outcome),
        None => Verdict::Aborted(AbortReason::Table),
    }
}

#[inline(always)]
fn write_frame<P: Packet>(
    packet: &mut P,
    scratch: &Scratch,
    control: &Control,
    segment: Option<&Segment>,
) -> Option<(QueryType, Outcome)> {
    let Scratch {
        question, answer, ..
    } = scratch;
    let Layout {
        question_end,
        records_end,
        end,
    } = answer.layout();
    let query_type = answer.query_type();
    let sum = question::type_sum(query_type);
    let outcome = answer.outcome();
    let mut sum = match outcome {
        Outcome::Records => write_records(packet, answer, segment?, question_end, sum)?,
        Outcome::NoData | Outcome::NxDomain => {
            let record = packet.window_mut(question_end)?;
            answer.soa.write(record, sum)
        }
    };
    if answer.opt != 0 {
        let record = packet.window_mut::<{ edns::OPT }>(records_end)?;
        let first = edns::reply(answer.dnssec_ok);
        put(record, 0, first.to_le_bytes());
        put(record, 8, [0; 3]);
        sum = sum.with(first);
    }
    if question.length & 1 == 1 {
        sum = sum.at_odd_offset();
    }

    let (answers, rcode) = match outcome {
        Outcome::Records => (answer.given as u16, header::NOERROR),
        Outcome::NoData => (0, header::NOERROR),
        Outcome::NxDomain => (0, header::NXDOMAIN),
    };
    let counts = Counts {
        answers,
        authority: answers == 0,
        additional: answer.opt != 0,
    };
    let recursion = control.flags.load() & Control::RECURSION_AVAILABLE != 0;
    let sum = sum.and(question.sum);
    let ip = answer.ip & 31;
    let udp = ip + (answer.ip_header & 0x3f);
    let sum = header::turn(packet, udp + UDP_HEADER, recursion, rcode, counts, sum)?;
    ip::turn(packet, ip, answer.family(), end - udp, sum)?;
    ethernet::turn(packet)?;
    Some((query_type, outcome))
}

/// Writes the addresses after the question, and adds the words of their records to `sum`. `None` where the frame or the
/// segment ends before.
#[inline(always)]
fn write_records<P: Packet>(
    packet: &mut P,
    answer: &Answer,
    segment: &Segment,
    start: usize,
    sum: Sum,
) -> Option<Sum> {
    match answer.query_type() {
        QueryType::Aaaa => write_aaaa(packet, answer, segment, start, sum),
        QueryType::A => write_a(packet, answer, segment, start, sum),
    }
}

#[inline(always)]
fn write_aaaa<P: Packet>(
    packet: &mut P,
    answer: &Answer,
    segment: &Segment,
    start: usize,
    sum: Sum,
) -> Option<Sum> {
    let prefix = RecordPrefix::new(TYPE_AAAA, answer.ttl, 16);
    write_ring(answer, MAX_AAAA_RECORDS, sum, |i, index, sum| {
        let [low, high] = segment.words::<2>(answer.word + 2 * index)?;
        let (low, high) = (low.load(), high.load());
        let record = packet.window_mut::<AAAA_RECORD>(start + i * AAAA_RECORD)?;
        prefix.write(record);
        put(record, RECORD_PREFIX, low.to_le_bytes());
        put(record, RECORD_PREFIX + 8, high.to_le_bytes());
        Some(prefix.add_to(sum).with(low).with(high))
    })
}

#[inline(always)]
fn write_a<P: Packet>(
    packet: &mut P,
    answer: &Answer,
    segment: &Segment,
    start: usize,
    sum: Sum,
) -> Option<Sum> {
    let prefix = RecordPrefix::new(TYPE_A, answer.ttl, 4);
    write_ring(answer, MAX_RECORDS, sum, |i, index, sum| {
        let [pair] = segment.words::<1>(answer.word + index / 2)?;
        let address = (pair.load() >> ((index & 1) * 32)) as u32;
        let record = packet.window_mut::<A_RECORD>(start + i * A_RECORD)?;
        prefix.write(record);
        put(record, RECORD_PREFIX, address.to_le_bytes());
        Some(prefix.add_to(sum).with_half(u64::from(address)))
    })
}

/// Calls `write` with 0, 1, …, the elements of the ring that are given, and the sum so far.
#[inline(always)]
fn write_ring(
    answer: &Answer,
    most: usize,
    mut sum: Sum,
    mut write: impl FnMut(usize, usize, Sum) -> Option<Sum>,
) -> Option<Sum> {
    // Copies, because what the verifier learns from comparisons in a loop tells one round's end from another's.
    let noise = answer.word as u64;
    let given = forget(answer.given, noise);
    for i in 0..most {
        if i >= given {
            break;
        }
        // `first` is less than `count`, and no more are given than there are.
        let beyond = forget(answer.first + i, noise);
        let index = if beyond >= answer.count {
            beyond - answer.count
        } else {
            beyond
        };
        sum = write(i, forget(index, noise), sum)?;
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
    const fn add_to(self, sum: Sum) -> Sum {
        sum.with(self.0).with_half(self.1 as u64)
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

/// All stages: answers the packet in place, or leaves it alone. All that becomes of it but the sending.
pub fn respond<P: Packet, T: Tables>(
    packet: &mut P,
    scratch: &mut Scratch,
    tables: &T,
    interface: &Interface,
    draw: impl FnOnce() -> u32,
) -> Verdict {
    let Some(control) = tables.control() else {
        return Verdict::Passed(PassReason::NotReady);
    };
    let decided = parse(packet, scratch, control, tables, interface)
        .and_then(|()| look_up(scratch, control, tables, draw))
        .and_then(|decision| match decision {
            Decision::Answer(segment) => Ok(segment),
            Decision::Absent => deny(scratch, tables, |scratch, labels| {
                below_subtree(scratch, tables, labels)
            })
            .map(|()| None),
        });
    let segment = match decided {
        Ok(segment) => segment,
        Err(reason) => return Verdict::Passed(reason),
    };
    if let Err(verdict) = make_room(packet, scratch, interface) {
        return verdict;
    }
    write(packet, scratch, control, segment)
}
