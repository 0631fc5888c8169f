//! A name's record, written into the heap and read back from it.

use std::net::{Ipv4Addr, Ipv6Addr};

use peak_common::{
    abi::{
        GRANULE_BYTES, MAX_NAME, RECORD_FIXED_WORDS, RecordHead, SEGMENT_GRANULES, SEGMENT_WORDS,
        Segment, SetDescriptor,
    },
    word::Word,
};

use super::{
    heap::Extent,
    memory::{Memory, Region},
};
use crate::{name::Name, snapshot::AddressSet};

const GRANULE_WORDS: usize = GRANULE_BYTES / 8;
const V4_PER_GRANULE: usize = GRANULE_BYTES / 4;

/// What the table holds of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its A and AAAA records. None of them are kept of a name that is left to the fallback.
    pub addresses: AddressSet,
    /// Seconds that an answer may be kept.
    pub ttl: u32,
    /// The zone's place in [`peak_common::abi::Control::zones`].
    pub zone: u8,
    /// [`RecordHead::ASK_FALLBACK`] and [`RecordHead::SUBTREE`].
    pub flags: u8,
    /// How many addresses an answer draws; 0: all of them.
    pub pick: u8,
}

impl NodeRecord {
    /// This node as it can be stored: one whose addresses no segment can hold is left to the fallback, and the
    /// addresses of such a node need no room.
    pub(super) fn storable(&self) -> Self {
        let most = SEGMENT_GRANULES - 1;
        let fits = v6_granules(self.addresses.v6.len()) <= most
            && v4_granules(self.addresses.v4.len()) <= most;
        if fits && self.flags & RecordHead::ASK_FALLBACK == 0 {
            return self.clone();
        }
        Self {
            addresses: AddressSet::default(),
            flags: self.flags | RecordHead::ASK_FALLBACK,
            ..*self
        }
    }
}

fn v6_granules(count: usize) -> u32 {
    count as u32
}

fn v4_granules(count: usize) -> u32 {
    count.div_ceil(V4_PER_GRANULE) as u32
}

/// The one address that takes the place of the set descriptors.
fn only_address(node: &NodeRecord) -> Option<Ipv6Addr> {
    match &node.addresses.v6[..] {
        &[address] if node.addresses.v4.is_empty() && node.pick == 0 => Some(address),
        _ => None,
    }
}

/// The granules of a record and of its addresses outside of it: AAAA, A.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) record: u32,
    pub(super) v6: u32,
    pub(super) v4: u32,
}

impl Sizes {
    pub(super) fn of(name: &Name, node: &NodeRecord) -> Self {
        let outside = if only_address(node).is_some() {
            [0; 2]
        } else {
            let AddressSet { v4, v6 } = &node.addresses;
            [v6_granules(v6.len()), v4_granules(v4.len())]
        };
        Self {
            record: record_granules(name.as_wire().len()),
            v6: outside[0],
            v4: outside[1],
        }
    }

    pub(super) fn total(self) -> u32 {
        self.record + self.v6 + self.v4
    }
}

fn record_granules(name_length: usize) -> u32 {
    (RECORD_FIXED_WORDS + name_length.div_ceil(8)).div_ceil(GRANULE_WORDS) as u32
}

/// Where a record and its addresses go: first granules.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) record: u32,
    pub(super) v6: u32,
    pub(super) v4: u32,
}

/// Writes a node to where nobody reads.
pub(super) fn write(memory: &impl Memory, name: &Name, node: &NodeRecord, places: Places) {
    let AddressSet { v4, v6 } = &node.addresses;
    let wire = name.as_wire();
    let head = RecordHead::new(wire.len() as u8, node.flags, node.zone, node.ttl);
    let record = |head: RecordHead, sets: [u64; 2]| {
        let words = [head.0].into_iter().chain(name_words(wire)).chain(sets);
        store(memory, places.record, words);
    };
    if let Some(address) = only_address(node) {
        record(head.with_one_address(), address_words(address));
        return;
    }
    let set = |start, count: usize| match count {
        0 => SetDescriptor::EMPTY.0,
        count => SetDescriptor::new(start, count as u32, node.pick).0,
    };
    record(head, [set(places.v6, v6.len()), set(places.v4, v4.len())]);
    let v6_words = v6.iter().flat_map(|&address| address_words(address));
    store(memory, places.v6, v6_words);
    let v4_words = v4.chunks(2).map(|pair| {
        let mut bytes = [0; 8];
        for (four, address) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(pair) {
            *four = address.octets();
        }
        u64::from_ne_bytes(bytes)
    });
    store(memory, places.v4, v4_words);
}

fn address_words(address: Ipv6Addr) -> [u64; 2] {
    let bytes = address.octets();
    let (words, _) = bytes.as_chunks::<8>();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}

fn store(memory: &impl Memory, start: u32, values: impl Iterator<Item = u64>) {
    let mut values = values.peekable();
    if values.peek().is_none() {
        return;
    }
    let words = words_at(memory, start).expect("room was allocated in a segment");
    for (word, value) in words.iter().zip(values) {
        word.store(value);
    }
}

/// The words from a granule to its segment's end.
fn words_at(memory: &impl Memory, granule: u32) -> Option<&[Word]> {
    let Segment(words) = memory.segment(Region::Heap, granule / SEGMENT_GRANULES)?;
    words.get((granule % SEGMENT_GRANULES) as usize * GRANULE_WORDS..)
}

/// A name as the record holds it: words, the first byte lowest, zeros after its end.
fn name_words(wire: &[u8]) -> impl Iterator<Item = u64> {
    wire.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(bytes)
    })
}

/// A record in the heap.
#[derive(Clone, Copy)]
pub(super) struct Stored<'m, M> {
    memory: &'m M,
    location: u32,
    words: &'m [Word],
}

impl<'m, M: Memory> Stored<'m, M> {
    /// The record at a location; `None` if there is no room for any.
    pub(super) fn at(memory: &'m M, location: u32) -> Option<Self> {
        let words = words_at(memory, location)?;
        let head = RecordHead(words.first()?.load());
        (words.len() >= RECORD_FIXED_WORDS + head.name_length().div_ceil(8)).then_some(Self {
            memory,
            location,
            words,
        })
    }

    pub(super) fn head(&self) -> RecordHead {
        RecordHead(self.words[0].load())
    }

    /// What follows the name.
    fn sets(&self) -> [u64; 2] {
        let at = self.head().sets();
        [self.words[at].load(), self.words[at + 1].load()]
    }

    /// The sets of AAAA and A records that stand apart.
    fn apart(&self) -> [SetDescriptor; 2] {
        if self.head().has_one_address() {
            [SetDescriptor::EMPTY; 2]
        } else {
            self.sets().map(SetDescriptor)
        }
    }

    fn name_words(&self) -> &'m [Word] {
        &self.words[1..self.head().sets()]
    }

    /// Whether this is the record of `name`.
    pub(super) fn is_of(&self, name: &Name) -> bool {
        let wire = name.as_wire();
        self.head().name_length() == wire.len()
            && self
                .name_words()
                .iter()
                .map(Word::load)
                .eq(name_words(wire))
    }

    /// Calls `f` with the name in wire format.
    pub(super) fn with_name<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        let mut bytes = [0; MAX_NAME + 1];
        for (chunk, word) in bytes
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(self.name_words())
        {
            *chunk = word.load().to_le_bytes();
        }
        f(&bytes[..self.head().name_length()])
    }

    /// The name, if it is one.
    pub(super) fn name(&self) -> Option<Name> {
        self.with_name(|wire| Name::from_wire(wire).ok())
    }

    /// From now on, readers of this record leave the name to the fallback.
    pub(super) fn ask_fallback(&self) {
        let head = self.head().with_flag(RecordHead::ASK_FALLBACK);
        self.words[0].store(head.0);
    }

    /// The room that the record takes: its own, and its addresses'.
    pub(super) fn extents(&self) -> impl Iterator<Item = Extent> + use<M> {
        let [v6, v4] = self.apart();
        [
            Extent::new(self.location, record_granules(self.head().name_length())),
            Extent::new(v6.start(), v6_granules(v6.count() as usize)),
            Extent::new(v4.start(), v4_granules(v4.count() as usize)),
        ]
        .into_iter()
        .filter(|extent| extent.granules > 0)
    }

    fn v6_addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        let head = self.head();
        let (words, count) = if head.has_one_address() {
            (&self.words[head.sets()..], 1)
        } else {
            let [set, _] = self.apart();
            let words = words_at(self.memory, set.start()).unwrap_or_default();
            (words, set.count() as usize)
        };
        let addresses = words.as_chunks::<2>().0.iter().map(|[first, second]| {
            let words = [first.load().to_ne_bytes(), second.load().to_ne_bytes()];
            let mut octets = [0; 16];
            octets.copy_from_slice(words.as_flattened());
            Ipv6Addr::from(octets)
        });
        addresses.take(count)
    }

    fn v4_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let [_, set] = self.apart();
        let words = words_at(self.memory, set.start()).unwrap_or_default();
        let addresses = words.iter().flat_map(|pair| {
            let [a, b, c, d, e, f, g, h] = pair.load().to_ne_bytes();
            [Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h)]
        });
        addresses.take(set.count() as usize)
    }

    fn pick(&self) -> u8 {
        let [v6, v4] = self.apart();
        v6.pick().max(v4.pick()) as u8
    }

    /// Whether this is what writing `node` would give.
    pub(super) fn holds(&self, node: &NodeRecord) -> bool {
        let head = self.head();
        let AddressSet { v4, v6 } = &node.addresses;
        (head.ttl(), head.zone(), head.flags()) == (node.ttl, node.zone.into(), node.flags)
            && (self.pick() == node.pick || node.addresses.is_empty())
            && self.v6_addresses().eq(v6.iter().copied())
            && self.v4_addresses().eq(v4.iter().copied())
    }

    /// What was written.
    pub(super) fn node(&self) -> NodeRecord {
        let head = self.head();
        NodeRecord {
            addresses: AddressSet {
                v4: self.v4_addresses().collect(),
                v6: self.v6_addresses().collect(),
            },
            ttl: head.ttl(),
            zone: head.zone() as u8,
            flags: head.flags(),
            pick: self.pick(),
        }
    }
}

const _: () = assert!(SEGMENT_WORDS == SEGMENT_GRANULES as usize * GRANULE_WORDS);
