//! What the steps of an answer cost at the least: done for one kind of query whose layout is known beforehand, over IPv6, without
//! a tag, with a name of 40 bytes and without EDNS, and for an answer with one address.

use aya_ebpf::{
    bindings::xdp_action, helpers::bpf_xdp_adjust_tail, macros::xdp, programs::XdpContext,
};
use peak_common::{
    abi::{
        BUCKET_ENTRIES, BUCKET_WORDS, Control, Entry, IndexRef, RecordHead, SEGMENT_BUCKETS, tag_of,
    },
    bench::{NAME, NAME_AT, QUERY, RECORD},
    hash,
    net::checksum::Sum,
    packet::Packet,
    table::{Tables, place},
    word::Word,
};

use super::{TEMPLATE, restore};
use crate::{maps::Maps, xdp_packet::XdpPacket};

const REPLY: usize = QUERY + RECORD;
const NAME_WORDS: usize = NAME / 8;
/// A record with a name of 40 bytes and its one address: head, name, address.
const RECORD_WORDS: usize = 1 + NAME_WORDS + 2;
/// Where the headers begin.
const IP: usize = 14;
const UDP: usize = IP + 40;
const DNS: usize = UDP + 8;

/// Growing the frame by a record at its tail. Restoring takes it back.
#[xdp(frags)]
pub fn floor_grow(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| grow(&ctx)))
}

/// One cache line of the index, by way of the array of maps.
#[xdp(frags)]
pub fn floor_look_up_1(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| line_of_index().map(drop)))
}

/// The same, and a line of the heap that cannot be told before the first one is there.
#[xdp(frags)]
pub fn floor_look_up_2(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| {
        let (number, first) = line_of_index()?;
        // Records of this size follow one another. The bit is 0, and the processor can't know.
        let location = 4 + 4 * number + (first >> 63) as u32;
        let (slot, at) = place(location);
        let words = Maps.heap_segment(slot)?.words::<RECORD_WORDS>(at)?;
        used(words[0].load())
    }))
}

/// Reading, folding and hashing the name.
#[xdp(frags)]
pub fn floor_hash(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| {
        let control = Maps.control()?;
        let packet = XdpPacket::new(&ctx);
        let name = packet.window::<NAME>(NAME_AT)?;
        used(hash_of(control, &words_of(name)))
    }))
}

/// Writing a reply's record, headers, addresses and checksum, in a frame that is as long as that already.
#[xdp(frags)]
pub fn floor_write(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| {
        let mut packet = XdpPacket::new(&ctx);
        write(packet.window_mut::<REPLY>(0)?, 5, [1, 2]);
        Some(())
    }))
}

/// All of it: an answer from the table, where the query is what was expected.
#[xdp(frags)]
pub fn floor_answer(ctx: XdpContext) -> u32 {
    code(restore(&ctx).and_then(|()| answer(&ctx)))
}

#[inline(always)]
fn answer(ctx: &XdpContext) -> Option<()> {
    let control = Maps.control()?;
    let packet = XdpPacket::new(ctx);
    let query = packet.window::<QUERY>(0)?;
    // The type of the frame and of the payload, the server's port; header, type and class of the question.
    let expected = half(query, 12) == 0x86dd_u16.to_be()
        && query[IP + 6] == 17
        && half(query, UDP + 2) == 53_u16.to_be()
        && half(query, DNS + 2) == 0x0100_u16.to_be()
        && word(query, DNS + 4) == 0x0100
        && word(query, QUERY - 8) >> 32 == 0x0100_1c00;
    if !expected {
        return None;
    }
    let name = words_of(packet.window::<NAME>(NAME_AT)?);
    let hash = hash_of(control, &name);
    let index = IndexRef(control.index.load());
    let (home, tag) = (index.home(hash), tag_of(hash));
    let found = match entry(bucket(index, home)?, tag) {
        Some(entry) => entry,
        // What did not fit its own bucket.
        None => entry(bucket(index, index.alternate(home, tag))?, tag)?,
    };
    let (slot, at) = place(found.location());
    let record = Maps.heap_segment(slot)?.words::<RECORD_WORDS>(at)?;
    let head = RecordHead(record[0].load());
    if head.name_length() != NAME || !head.has_one_address() {
        return None;
    }
    let mut differences = 0;
    for (word, stored) in name.iter().zip(&record[1..]) {
        let stored = stored.load();
        differences |= (word | hash::letters(stored)) ^ stored;
    }
    if differences != 0 {
        return None;
    }
    let address = [
        record[RECORD_WORDS - 2].load(),
        record[RECORD_WORDS - 1].load(),
    ];
    grow(ctx)?;
    write(
        XdpPacket::new(ctx).window_mut::<REPLY>(0)?,
        head.ttl(),
        address,
    );
    Some(())
}

#[inline(always)]
fn grow(ctx: &XdpContext) -> Option<()> {
    // SAFETY: the context is the kernel's, and no pointer into the frame is kept.
    (unsafe { bpf_xdp_adjust_tail(ctx.ctx, RECORD as i32) } == 0).then_some(())
}

/// The number of the name that is asked, and a word from some line of the index that belongs to it alone.
#[inline(always)]
fn line_of_index() -> Option<(u32, u64)> {
    // SAFETY: benchmarks run one program at a time.
    let number = unsafe { &*TEMPLATE.get_ptr(0)? }.drawn();
    let index = IndexRef(Maps.control()?.index.load());
    let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bucket = bucket(index, index.home(mixed))?;
    let word = bucket[BUCKET_ENTRIES].load();
    used(word)?;
    Some((number, word))
}

#[inline(always)]
fn bucket(index: IndexRef, at: u32) -> Option<&'static [Word; BUCKET_WORDS]> {
    let segment = Maps.index_segment(index.first_slot() + at / SEGMENT_BUCKETS)?;
    segment.words((at % SEGMENT_BUCKETS) as usize * BUCKET_WORDS)
}

/// The first entry with this tag.
#[inline(always)]
fn entry(bucket: &[Word; BUCKET_WORDS], tag: u32) -> Option<Entry> {
    for slot in &bucket[..BUCKET_ENTRIES] {
        let entry = Entry(slot.load());
        if entry.tag() == tag {
            return Some(entry);
        }
    }
    None
}

/// Multilinear hashing, as in [`hash`]; the root label does not count.
#[inline(always)]
fn hash_of(control: &Control, name: &[u64; NAME_WORDS]) -> u64 {
    let mut sum = 0;
    for (i, &word) in name.iter().enumerate() {
        let keep = if i + 1 < NAME_WORDS {
            u64::MAX
        } else {
            u64::MAX >> 8
        };
        let keys = (
            control.hash_key[2 * i].load(),
            control.hash_key[2 * i + 1].load(),
        );
        sum = hash::add_word(sum, word, keep, keys);
    }
    sum
}

#[inline(always)]
fn words_of(name: &[u8; NAME]) -> [u64; NAME_WORDS] {
    let mut words = [0; NAME_WORDS];
    for (i, value) in words.iter_mut().enumerate() {
        *value = word(name, 8 * i);
    }
    words
}

/// Turns the query in the frame into its answer, with this one address.
#[inline(always)]
fn write(frame: &mut [u8; REPLY], ttl: u32, address: [u64; 2]) {
    // Ethernet: addresses exchanged.
    let (first, second) = (word(frame, 0), word(frame, 4));
    let [source, destination] = [second >> 16, first & 0xffff_ffff_ffff];
    put(frame, 0, (source | destination << 48).to_le_bytes());
    put(frame, 8, ((destination >> 16) as u32).to_le_bytes());

    // The record, and the message's header.
    let ttl = ttl.to_be();
    let record = [
        0x0100_1c00_0cc0 | u64::from(ttl) << 48,
        u64::from(ttl >> 16) | 0x1000 << 16,
    ];
    put(frame, QUERY, record[0].to_le_bytes());
    put(frame, QUERY + 8, (record[1] as u32).to_le_bytes());
    put(frame, QUERY + 12, address[0].to_le_bytes());
    put(frame, QUERY + 20, address[1].to_le_bytes());
    // QR, AA and RD; one question, one answer.
    let header = word(frame, DNS) & 0xffff | 0x0100_0100_0085 << 16;
    put(frame, DNS, header.to_le_bytes());

    // IPv6 and UDP: addresses and ports exchanged, lengths.
    let length = ((REPLY - UDP) as u16).to_be();
    let addresses = [
        word(frame, 22),
        word(frame, 30),
        word(frame, 38),
        word(frame, 46),
    ];
    let ports = (word(frame, UDP) as u32).rotate_left(16);
    put(
        frame,
        IP,
        (0x60 | u64::from(length) << 32 | 17 << 48 | 64 << 56).to_le_bytes(),
    );
    put(frame, 22, addresses[2].to_le_bytes());
    put(frame, 30, addresses[3].to_le_bytes());
    put(frame, 38, addresses[0].to_le_bytes());
    put(frame, 46, addresses[1].to_le_bytes());

    // The checksum of all that, the name and its type.
    let mut sum = Sum::ZERO.with_half(u64::from(ports) + 2 * u64::from(length) + 0x1100);
    for part in [header, record[0], record[1], address[0], address[1]] {
        sum = sum.with(part);
    }
    for part in addresses {
        sum = sum.with(part);
    }
    for i in 0..NAME_WORDS {
        sum = sum.with(word(frame, NAME_AT + 8 * i));
    }
    let sum = sum.with_half(0x0100_1c00);
    let udp = u64::from(ports) | u64::from(length) << 32 | u64::from(!sum.fold()) << 48;
    put(frame, UDP, udp.to_le_bytes());
}

/// Says that a number is needed, so that the compiler makes it.
#[inline(always)]
fn used(number: u64) -> Option<()> {
    (number != 0x7065_616b).then_some(())
}

#[inline(always)]
fn code(done: Option<()>) -> u32 {
    match done {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[inline(always)]
fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    let mut value = [0; 2];
    value.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(value)
}

#[inline(always)]
fn put<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, value: [u8; M]) {
    bytes[at..at + M].copy_from_slice(&value);
}
