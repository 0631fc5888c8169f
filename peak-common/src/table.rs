//! Looking up names: readers' side of the layout in [`crate::abi`].
//!
//! A hit costs the cache line of its bucket, those of its record (mostly one or two, with its addresses),
//! and those of the hash key, which every query shares. A miss costs the bucket's.
//!
//! The writer publishes records by one store into a bucket. A reader that took the entry before sees the
//! old record, which is not used again before every reader of that time has ended; one that takes it after
//! sees the new. The record's words are reached through the entry, so the processor keeps their order.

use crate::{
    abi::{
        BUCKET_ENTRIES, BUCKET_WORDS, Control, Entry, GRANULE_BYTES, IndexRef, Interface,
        MAX_RECORD_WORDS, Overflow, PROBES, RecordHead, SEGMENT_BUCKETS, SEGMENT_GRANULES,
        SERVED_SLOTS, Segment, Served, SetDescriptor, served_slot, service_key, tag_of,
    },
    dns::name::{Name, NameBuffer},
    verdict::QueryType,
    verifier,
    word::Word,
};

/// The maps, as the program or a host test reaches them.
pub trait Tables {
    /// The control block.
    fn control(&self) -> Option<&Control>;
    /// A segment of an index.
    fn index_segment(&self, slot: u32) -> Option<&Segment>;
    /// A segment of the heap.
    fn heap_segment(&self, slot: u32) -> Option<&Segment>;
    /// A slot of the served addresses.
    fn served(&self, slot: u32) -> Option<&Served>;
}

impl Segment {
    /// `N` words from word `at`.
    #[inline(always)]
    #[must_use]
    pub fn words<const N: usize>(&self, at: usize) -> Option<&[Word; N]> {
        verifier::words(self, at)
    }
}

/// What the table says of a name.
#[derive(Clone, Copy)]
pub enum Found<'t> {
    /// It exists.
    Present(Record<'t>),
    /// It does not, as far as the kernel holds the snapshot.
    Absent,
    /// The table cannot say.
    AskFallback,
}

/// A name's record.
#[derive(Clone, Copy)]
pub struct Record<'t> {
    slot: u32,
    segment: &'t Segment,
    at: usize,
    words: &'t [Word; MAX_RECORD_WORDS],
    /// Its head.
    pub head: RecordHead,
}

/// The addresses of a type, and where they are.
#[derive(Clone, Copy)]
pub struct Set {
    /// The heap's segment.
    pub slot: u32,
    /// The word in it.
    pub word: usize,
    /// How many there are.
    pub count: u32,
    /// How many an answer draws; 0: all of them.
    pub pick: u32,
}

impl<'t> Record<'t> {
    /// The addresses of a type.
    #[inline(always)]
    #[must_use]
    pub fn set(&self, query_type: QueryType) -> Set {
        let sets = self.head.sets();
        if self.head.has_one_address() {
            return Set {
                slot: self.slot,
                word: self.at + sets,
                count: u32::from(query_type == QueryType::Aaaa),
                pick: 0,
            };
        }
        let descriptor = match query_type {
            QueryType::Aaaa => sets,
            QueryType::A => sets + 1,
        };
        let descriptor = SetDescriptor(self.words.get(descriptor).map_or(0, Word::load));
        let (slot, word) = place(descriptor.start());
        Set {
            slot,
            word,
            count: descriptor.count(),
            pick: descriptor.pick(),
        }
    }

    /// The segment that a set of this record is in. Mostly it is the record's own.
    #[inline(always)]
    #[must_use]
    pub fn segment_of<T: Tables>(&self, set: Set, tables: &'t T) -> Option<&'t Segment> {
        if set.slot == self.slot {
            Some(self.segment)
        } else {
            tables.heap_segment(set.slot)
        }
    }

    /// Word `i` of the folded name: within the word that holds its end, zeros follow.
    #[inline(always)]
    #[must_use]
    pub fn name_word(&self, i: usize) -> u64 {
        self.words.get(1 + i).map_or(0, Word::load)
    }
}

/// Whether `address` and `port` (network byte order) are served on the interface.
#[inline(always)]
#[must_use]
pub fn is_served<T: Tables>(tables: &T, ifindex: u32, address: [u64; 2], port: u16) -> bool {
    let service = service_key(ifindex, port);
    let first = served_slot(address, service);
    for probe in 0..PROBES {
        let Some(served) = tables.served((first + probe) & (SERVED_SLOTS - 1)) else {
            return false;
        };
        if served.service.load() == service
            && served.address[0].load() == address[0]
            && served.address[1].load() == address[1]
        {
            return true;
        }
    }
    false
}

/// The place of an interface in its map: the first of at most [`PROBES`] slots that carries its index.
#[inline(always)]
pub fn interface<'t>(
    ifindex: u32,
    slot: impl Fn(u32) -> Option<&'t Interface>,
) -> Option<(u32, &'t Interface)> {
    for probe in 0..PROBES {
        let at = (ifindex + probe) & (crate::abi::MAX_INTERFACES - 1);
        let interface = slot(at)?;
        if interface.ifindex.load() == u64::from(ifindex) {
            return Some((at, interface));
        }
    }
    None
}

/// Looks the packet's name up.
#[inline(always)]
pub fn find<'t, T: Tables>(
    name: &Name,
    buffer: &NameBuffer,
    control: &Control,
    tables: &'t T,
) -> Found<'t> {
    let index = IndexRef(control.index.load());
    let tag = tag_of(name.hash);
    let home = index.home(name.hash);
    let mut at = home;
    // Home first, then the alternate bucket, if anything of this tag ever went there.
    for visit in 0..2 {
        let Some(bucket) = bucket(tables, index, at) else {
            return Found::AskFallback;
        };
        let mut candidate = Entry::EMPTY;
        for slot in &bucket[..BUCKET_ENTRIES] {
            let entry = Entry(slot.load());
            if entry.tag() == tag && entry != Entry::EMPTY {
                candidate = entry;
                break;
            }
        }
        if candidate != Entry::EMPTY {
            let Some(record) = record(tables, candidate) else {
                return Found::AskFallback;
            };
            // Another name of the same bucket and tag is as rare as the hash is long; the fallback knows what it hides.
            return if record.head.name_length() == name.length
                && name.matches(buffer, |i| record.name_word(i))
            {
                Found::Present(record)
            } else {
                Found::AskFallback
            };
        }
        if visit == 1 {
            break;
        }
        let overflow = Overflow(bucket[BUCKET_ENTRIES].load());
        if overflow.unstored(tag) {
            return Found::AskFallback;
        }
        if !overflow.spilled(tag) {
            break;
        }
        at = index.alternate(home, tag);
    }
    Found::Absent
}

#[inline(always)]
fn bucket<T: Tables>(tables: &T, index: IndexRef, at: u32) -> Option<&[Word; BUCKET_WORDS]> {
    let segment = tables.index_segment(index.first_slot() + at / SEGMENT_BUCKETS)?;
    segment.words((at % SEGMENT_BUCKETS) as usize * BUCKET_WORDS)
}

#[inline(always)]
fn record<T: Tables>(tables: &T, entry: Entry) -> Option<Record<'_>> {
    let (slot, at) = place(entry.location());
    let segment = tables.heap_segment(slot)?;
    let words = segment.words(at)?;
    Some(Record {
        slot,
        segment,
        at,
        words,
        head: RecordHead(words[0].load()),
    })
}

/// The segment, and the word in it, of a location in the heap.
#[inline(always)]
#[must_use]
pub const fn place(location: u32) -> (u32, usize) {
    (
        location / SEGMENT_GRANULES,
        (location % SEGMENT_GRANULES) as usize * (GRANULE_BYTES / 8),
    )
}
