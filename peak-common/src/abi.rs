//! The layout of everything the agent writes and the kernel program reads.
//!
//! Integers are in the machine's byte order unless a field says otherwise; addresses, ports and names are
//! bytes as they stand in a packet. Whatever a later agent needs to take over running maps is in them:
//! the allocator's state, for one, is the complement of what the index reaches.
//!
//! ```text
//! CONTROL[0] ── index ──► INDEX[segment] : buckets of 64 B: 7 entries and an overflow word
//!                              │  entry = tag (32 bits) │ location (32 bits, in granules of 16 B)
//!                              ▼
//!                         HEAP[segment]  : name records and address arrays
//!                              record = head, name, and its one address, or the descriptors of its sets
//! ```

use core::mem::{offset_of, size_of};

use crate::word::Word;

/// Version of this layout. An agent adopts only maps that carry its own version.
pub const ABI_VERSION: u32 = 3;

/// Bytes of one segment: one value of an inner array map of [`Segment`]s.
///
/// The arrays of an outer map are all of this size, so that the kernel can inline both look-ups; the
/// table grows by adding segments.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// 8-byte words of one segment.
pub const SEGMENT_WORDS: usize = SEGMENT_BYTES / 8;
/// Bytes of one granule, the unit in which locations in the heap are counted.
pub const GRANULE_BYTES: usize = 16;
/// Granules of one segment; a location is `segment * SEGMENT_GRANULES + granule`.
pub const SEGMENT_GRANULES: u32 = (SEGMENT_BYTES / GRANULE_BYTES) as u32;
/// Slots of the outer map of heap segments: 4 GiB of records.
pub const HEAP_SEGMENTS: u32 = 4096;
/// Segments of the largest index: 2,097,152 buckets.
pub const INDEX_SEGMENTS: u32 = 128;
/// Slots of the outer map of index segments: two generations, of which one is in force.
pub const INDEX_SLOTS: u32 = 2 * INDEX_SEGMENTS;

/// Words of a bucket: one cache line.
pub const BUCKET_WORDS: usize = 8;
/// Entries of a bucket; its last word tells what did not fit.
pub const BUCKET_ENTRIES: usize = BUCKET_WORDS - 1;
/// Buckets of one segment.
pub const SEGMENT_BUCKETS: u32 = (SEGMENT_WORDS / BUCKET_WORDS) as u32;
/// Least number of buckets, as a power of two. Fewer than a segment has take its beginning: what is read at random is better
/// close together.
pub const MIN_BUCKET_BITS: u32 = 8;
/// Greatest number of buckets, as a power of two.
pub const MAX_BUCKET_BITS: u32 = (SEGMENT_BUCKETS * INDEX_SEGMENTS).trailing_zeros();

/// Longest name on the wire, the root label included (RFC 1035, section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Words that hold the longest name.
pub const NAME_WORDS: usize = 32;
/// Zones that the kernel can hold.
pub const MAX_ZONES: usize = 16;
/// Depths (labels, the root not counted) at which subtrees may be left to the fallback.
pub const MAX_SUBTREE_DEPTHS: usize = 4;
/// Interfaces that the program may be attached to at one time.
pub const MAX_INTERFACES: u32 = 64;
/// Slots for pairs of served address and port.
pub const SERVED_SLOTS: u32 = 1024;
/// Slots of an open-addressed array that a look-up visits at most.
pub const PROBES: u32 = 4;
/// Counters kept for each interface and processor; see [`crate::verdict::Verdict::index`].
pub const COUNTERS: usize = 64;

/// A megabyte of table, read by the program and written by the agent through `mmap`.
///
/// Words, because a word is what one store publishes whole.
#[repr(C)]
pub struct Segment(pub [Word; SEGMENT_WORDS]);

/// Where the index in force lies: `first_slot << 8 | bucket_bits`, one word so that a rehash is published whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexRef(pub u64);

impl IndexRef {
    /// An index of `1 << bucket_bits` buckets whose first segment is at `first_slot` of the outer map.
    #[must_use]
    pub const fn new(first_slot: u32, bucket_bits: u32) -> Self {
        Self((first_slot as u64) << 8 | bucket_bits as u64)
    }
    /// Slot of the first segment.
    #[inline(always)]
    #[must_use]
    pub const fn first_slot(self) -> u32 {
        (self.0 >> 8) as u32
    }
    /// Number of buckets, as a power of two.
    #[inline(always)]
    #[must_use]
    pub const fn bucket_bits(self) -> u32 {
        (self.0 & 0xff) as u32
    }
    /// The bucket at which the search for a hash begins.
    #[inline(always)]
    #[must_use]
    pub const fn home(self, hash: u64) -> u32 {
        // Bits 5 and up of the shift never differ: a mask spares the program Rust's overflow check.
        (hash >> ((64 - self.bucket_bits()) & 63)) as u32
    }
    /// The bucket that takes what did not fit `home`. An odd distance: never `home` itself. Of the tag the upper bits, as
    /// only those of the hash are sure to look random ([`crate::hash`]).
    #[inline(always)]
    #[must_use]
    pub const fn alternate(self, home: u32, tag: u32) -> u32 {
        (home ^ (tag >> 21 | 1)) & ((1u32 << (self.bucket_bits() & 31)) - 1)
    }
}

/// One entry of a bucket; zero is an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// The empty entry.
    pub const EMPTY: Self = Self(0);
    /// An entry for the record at `location` (in granules; 0 is never a record's).
    #[must_use]
    pub const fn new(tag: u32, location: u32) -> Self {
        Self((tag as u64) << 32 | location as u64)
    }
    /// Bits of the hash that the bucket's number does not tell.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// Where the record lies, in granules from the heap's start.
    #[inline(always)]
    #[must_use]
    pub const fn location(self) -> u32 {
        self.0 as u32
    }
}

/// The last word of a bucket: what is *not* in it though it would be its home.
///
/// Two sets of hashed tags: names that are in their alternate bucket, and names that could not be
/// stored at all, whose absence therefore means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow(pub u64);

impl Overflow {
    #[inline(always)]
    const fn bit(tag: u32) -> u64 {
        1 << (tag >> 27)
    }
    /// Marks `tag` as spilled to the alternate bucket.
    #[must_use]
    pub const fn with_spilled(self, tag: u32) -> Self {
        Self(self.0 | Self::bit(tag))
    }
    /// Marks `tag` as not stored.
    #[must_use]
    pub const fn with_unstored(self, tag: u32) -> Self {
        Self(self.0 | Self::bit(tag) << 32)
    }
    /// Whether a name of this tag may be in the alternate bucket.
    #[inline(always)]
    #[must_use]
    pub const fn spilled(self, tag: u32) -> bool {
        self.0 & Self::bit(tag) != 0
    }
    /// Whether a name of this tag may exist without being stored.
    #[inline(always)]
    #[must_use]
    pub const fn unstored(self, tag: u32) -> bool {
        (self.0 >> 32) & Self::bit(tag) != 0
    }
}

/// The tag of a hash: bits that overlap as little as possible with the bucket's number.
#[inline(always)]
#[must_use]
pub const fn tag_of(hash: u64) -> u32 {
    (hash >> 11) as u32
}

/// A set of addresses, apart from the name that owns it: `start | count << 32 | pick << 56`.
///
/// The addresses stand one after the other in network byte order, 16 or 4 bytes each, inside one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetDescriptor(pub u64);

impl SetDescriptor {
    /// No address: the type does not exist at this name.
    pub const EMPTY: Self = Self(0);
    /// Most addresses of one set.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;
    /// `count` addresses from granule `start`; an answer draws `pick` of them, or gives all if that is 0.
    #[must_use]
    pub const fn new(start: u32, count: u32, pick: u8) -> Self {
        Self(start as u64 | ((count & Self::MAX_COUNT) as u64) << 32 | (pick as u64) << 56)
    }
    /// First granule of the addresses.
    #[inline(always)]
    #[must_use]
    pub const fn start(self) -> u32 {
        self.0 as u32
    }
    /// How many addresses there are.
    #[inline(always)]
    #[must_use]
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_COUNT
    }
    /// The policy: how many addresses an answer draws; 0 stands for all of them, rotated.
    #[inline(always)]
    #[must_use]
    pub const fn pick(self) -> u32 {
        (self.0 >> 56) as u32
    }
}

/// First word of a name's record: `name_length | flags << 8 | zone << 16 | one_address << 24 | ttl << 32`.
///
/// The name follows, lower case, in wire format, padded with zeros to whole words; then come two words more. They are the
/// [`SetDescriptor`]s of its AAAA and A records, or, if an IPv6 address is all that the name has, that address: with a name of
/// up to 40 bytes, as most are, such a record takes one cache line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHead(pub u64);

impl RecordHead {
    /// The fallback knows what this name holds; the kernel only that it exists.
    pub const ASK_FALLBACK: u8 = 1;
    /// Every name below this one is the fallback's as well.
    pub const SUBTREE: u8 = 2;
    /// An IPv6 address is all that the name has, and stands where the descriptors would.
    const ONE_ADDRESS: u64 = 1 << 24;
    /// A head for a name of `name_length` bytes (root label included) in `zone`; `ttl` in seconds.
    #[must_use]
    pub const fn new(name_length: u8, flags: u8, zone: u8, ttl: u32) -> Self {
        Self(name_length as u64 | (flags as u64) << 8 | (zone as u64) << 16 | (ttl as u64) << 32)
    }
    /// The same, of a record that ends with its one address.
    #[must_use]
    pub const fn with_one_address(self) -> Self {
        Self(self.0 | Self::ONE_ADDRESS)
    }
    /// The same, with this flag, too.
    #[must_use]
    pub const fn with_flag(self, flag: u8) -> Self {
        Self(self.0 | (flag as u64) << 8)
    }
    /// Whether an IPv6 address is all that the name has, and stands where the descriptors would.
    #[inline(always)]
    #[must_use]
    pub const fn has_one_address(self) -> bool {
        self.0 & Self::ONE_ADDRESS != 0
    }
    /// Which of the record's words the first one after the name is: where the descriptors begin, or the one address.
    #[inline(always)]
    #[must_use]
    pub const fn sets(self) -> usize {
        1 + self.name_length().div_ceil(8)
    }
    /// Bytes of the name on the wire, the root label included.
    #[inline(always)]
    #[must_use]
    pub const fn name_length(self) -> usize {
        (self.0 & 0xff) as usize
    }
    /// [`Self::ASK_FALLBACK`] and [`Self::SUBTREE`].
    #[inline(always)]
    #[must_use]
    pub const fn flags(self) -> u8 {
        (self.0 >> 8) as u8
    }
    /// Which of [`Control::zones`] the name belongs to.
    #[inline(always)]
    #[must_use]
    pub const fn zone(self) -> usize {
        (self.0 >> 16 & 0xff) as usize
    }
    /// Seconds that an answer may be kept.
    #[inline(always)]
    #[must_use]
    pub const fn ttl(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Words of a record besides the name's: its head, and two that follow the name.
pub const RECORD_FIXED_WORDS: usize = 3;
/// Words of a record with the longest name.
pub const MAX_RECORD_WORDS: usize = RECORD_FIXED_WORDS + NAME_WORDS;

/// A zone that the kernel answers for. All fields here and below are words: BPF has no smaller atomics.
#[repr(C)]
pub struct Zone {
    /// The name's words, lower case, **from its end**: word 0 is its last 8 bytes. A partial last word
    /// holds the first bytes of the name in its upper end and zeros below.
    pub suffix: [Word; NAME_WORDS],
    /// Bytes of the name on the wire, the root label included; 0: no zone here.
    pub length: Word,
    /// Labels of the name, the root not counted.
    pub labels: Word,
    /// Serial of the SOA, 32 bits: see the documentation of the agent's snapshot for its rule.
    pub serial: Word,
    /// Seconds: TTL of the SOA and its MINIMUM, hence of negative answers (RFC 2308, section 5).
    pub ttl: Word,
}

/// What holds for the whole program; the only value of its map.
#[repr(C)]
pub struct Control {
    /// [`ABI_VERSION`] of whoever wrote the maps.
    pub abi_version: Word,
    /// [`Self::ENABLED`] and its like.
    pub flags: Word,
    /// The index in force, an [`IndexRef`].
    pub index: Word,
    /// Generation of the snapshot that the table holds.
    pub generation: Word,
    /// Names in the table.
    pub names: Word,
    /// Number of zones, in order of falling length, so that the first that fits is the closest.
    pub zone_count: Word,
    /// Depths at which a [`RecordHead::SUBTREE`] may be found; 0 ends the list.
    pub subtree_depths: [Word; MAX_SUBTREE_DEPTHS],
    /// The hash function's secret, drawn once for these maps; see [`crate::hash`].
    pub hash_key: [Word; 2 * NAME_WORDS],
    /// The zones.
    pub zones: [Zone; MAX_ZONES],
}

impl Control {
    /// The operator's switch: without it every packet passes.
    pub const ENABLED: u64 = 1;
    /// The table holds a complete snapshot; without it nothing may be denied, so every packet passes.
    pub const COMPLETE: u64 = 2;
    /// The fallback forwards: RA is set (RFC 1035, section 4.1.1).
    pub const RECURSION_AVAILABLE: u64 = 4;
}

/// An interface that the program is attached to. Its place in the map is `ifindex`, or one of the
/// [`PROBES`] − 1 slots after it, modulo [`MAX_INTERFACES`]; the same place is its row of counters.
#[repr(C)]
pub struct Interface {
    /// The interface's index; 0: free. Written last, cleared first.
    pub ifindex: Word,
    /// Greatest packet, IP header included, that may be sent, in bytes.
    pub mtu: Word,
    /// The unicast MAC address in the word's first 6 bytes, then zeros.
    pub mac: Word,
    /// Not 0: frames hardly ever have room at their tail, and are given it at their head first.
    pub head_first: Word,
}

/// An address and port that the agent serves on an interface; see [`served_slot`] for its place.
#[repr(C)]
pub struct Served {
    /// The address, 16 bytes in network order, as two words; IPv4 as `::ffff:a.b.c.d`.
    pub address: [Word; 2],
    /// Interface and port, a [`service_key`]; 0: free. Written last, cleared first.
    pub service: Word,
    /// Spelled-out padding: half a cache line.
    pub reserved: u64,
}

/// Interface and port (in network byte order) as one word of [`Served`].
#[inline(always)]
#[must_use]
pub const fn service_key(ifindex: u32, port: u16) -> u64 {
    (port as u64) << 32 | ifindex as u64
}

/// Where the search for a served address begins: in words as [`Served`] holds them.
#[inline(always)]
#[must_use]
pub const fn served_slot(address: [u64; 2], service: u64) -> u32 {
    let mixed = address[0] ^ address[1] ^ service;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & (SERVED_SLOTS - 1)
}

/// `::ffff:a.b.c.d` as the two words of [`Served::address`].
#[inline(always)]
#[must_use]
pub const fn mapped(address: [u8; 4]) -> [u64; 2] {
    let [a, b, c, d] = address;
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])]
}

/// Counters of one interface on one processor.
pub type Counters = [u64; COUNTERS];

const _: () = {
    assert!(size_of::<Segment>() == SEGMENT_BYTES);
    assert!(size_of::<Zone>() == 288);
    assert!(offset_of!(Control, hash_key) == 80);
    assert!(offset_of!(Control, zones) == 592);
    assert!(size_of::<Control>() == 592 + 16 * 288);
    assert!(size_of::<Interface>() == 32);
    assert!(size_of::<Served>() == 32);
    assert!(MAX_BUCKET_BITS == 21);
};
