//! The hash index: from a name's hash to its record.
//!
//! A name is in its home bucket or in one other that its tag tells; the home's last word says of which tags
//! that is so. From four entries on, a home shares: a name goes to whichever of the two buckets holds less. That
//! evens them out, so that an index takes 4.2 names a bucket or more before the first one is left over, and doubles
//! only at 4.06: a power of two of names has four a bucket. The price is a second cache line for 15 hits of 100 at that
//! load, for 4 at half of it. Simulated beside it, for 2¹⁸ buckets: sharing from three entries on takes 4.3, and 21 of 100
//! pay; from five on, 3.9 and 8; filling the home first leaves the first name over at 1.6.
//!
//! Nothing moves within an index that is in force: a reader that looked where a name no longer is, and then where
//! it was not yet, would deny it. What cannot be helped in place is helped by a new index.

use std::io;

use peak_common::{
    abi::{
        BUCKET_ENTRIES, BUCKET_WORDS, Entry, INDEX_SEGMENTS, INDEX_SLOTS, IndexRef,
        MAX_BUCKET_BITS, MIN_BUCKET_BITS, Overflow, SEGMENT_BUCKETS, tag_of,
    },
    word::Word,
};

use super::memory::{Memory, Region};

/// Entries from which on a home shares with the alternate.
const SHARE_FROM: usize = 4;

/// An index in the maps, and what its agent knows of it.
#[derive(Clone, Debug)]
pub(super) struct Index {
    reference: IndexRef,
    /// Entries that left their alternate bucket: each may have left a mark behind.
    pub(super) left: u64,
    /// Marks of names that are not stored.
    pub(super) unstored_marks: u64,
}

/// Both buckets of a name are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    bucket: u32,
    slot: usize,
    /// Whether it is not at home.
    pub(super) spilled: bool,
}

impl Index {
    /// The names that `1 << bits` buckets should hold at most.
    pub(super) const fn limit(bits: u32) -> u64 {
        (65 << bits) / 16
    }

    /// The least number of buckets, as a power of two, for so many names.
    pub(super) fn bits_for(names: u64) -> u32 {
        (MIN_BUCKET_BITS..MAX_BUCKET_BITS)
            .find(|&bits| names <= Self::limit(bits))
            .unwrap_or(MAX_BUCKET_BITS)
    }

    /// An empty index that nobody reads yet, in the half of the slots that `predecessor` is not in.
    ///
    /// # Errors
    /// The system's, if it refuses a segment; there is no trace of the attempt then.
    pub(super) fn create(
        memory: &mut impl Memory,
        predecessor: Option<&Self>,
        bits: u32,
    ) -> io::Result<Self> {
        let first_slot = match predecessor {
            Some(index) if index.reference.first_slot() == 0 => INDEX_SEGMENTS,
            _ => 0,
        };
        let index = Self::new(IndexRef::new(first_slot, bits));
        for slot in index.slots() {
            // One that could not be given back when it was time.
            if memory.segment(Region::Index, slot).is_some() {
                memory.remove_segment(Region::Index, slot)?;
            }
            if let Err(error) = memory.add_segment(Region::Index, slot) {
                for slot in first_slot..slot {
                    memory.remove_segment(Region::Index, slot)?;
                }
                return Err(error);
            }
        }
        Ok(index)
    }

    fn new(reference: IndexRef) -> Self {
        Self {
            reference,
            left: 0,
            unstored_marks: 0,
        }
    }

    /// The index that a control block points to; `None` if it can't be one.
    pub(super) fn adopt(memory: &impl Memory, reference: IndexRef) -> Option<Self> {
        let mut index = Self::new(reference);
        let sound = (MIN_BUCKET_BITS..=MAX_BUCKET_BITS).contains(&reference.bucket_bits())
            && reference.first_slot() < INDEX_SLOTS
            && reference.first_slot().is_multiple_of(INDEX_SEGMENTS)
            && index
                .slots()
                .all(|slot| memory.segment(Region::Index, slot).is_some());
        if !sound {
            return None;
        }
        let marks = |at| index.overflow(memory, at).0.load() >> 32;
        index.unstored_marks = (0..index.buckets())
            .map(|at| u64::from(marks(at).count_ones()))
            .sum();
        Some(index)
    }

    pub(super) fn reference(&self) -> IndexRef {
        self.reference
    }

    pub(super) fn bits(&self) -> u32 {
        self.reference.bucket_bits()
    }

    /// The slots of its segments.
    pub(super) fn slots(&self) -> std::ops::Range<u32> {
        let first = self.reference.first_slot();
        first..first + self.buckets().div_ceil(SEGMENT_BUCKETS)
    }

    pub(super) fn buckets(&self) -> u32 {
        1 << self.bits()
    }

    fn bucket<'m>(&self, memory: &'m impl Memory, at: u32) -> &'m [Word; BUCKET_WORDS] {
        let slot = self.reference.first_slot() + at / SEGMENT_BUCKETS;
        memory
            .segment(Region::Index, slot)
            .and_then(|segment| segment.words((at % SEGMENT_BUCKETS) as usize * BUCKET_WORDS))
            .expect("an index has all its segments")
    }

    /// The last word of a bucket.
    fn overflow<'m>(&self, memory: &'m impl Memory, at: u32) -> Flagged<'m> {
        Flagged(&self.bucket(memory, at)[BUCKET_ENTRIES])
    }

    /// The word of an entry.
    pub(super) fn word<'m>(&self, memory: &'m impl Memory, place: Place) -> &'m Word {
        &self.bucket(memory, place.bucket)[place.slot]
    }

    /// The entry of `hash` whose record `is_it`.
    pub(super) fn find(
        &self,
        memory: &impl Memory,
        hash: u64,
        is_it: impl Fn(u32) -> bool,
    ) -> Option<Place> {
        let tag = tag_of(hash);
        let home = self.reference.home(hash);
        let find_in = |bucket, spilled| {
            let slot = self.bucket(memory, bucket)[..BUCKET_ENTRIES]
                .iter()
                .map(|word| Entry(word.load()))
                .position(|entry| {
                    entry != Entry::EMPTY && entry.tag() == tag && is_it(entry.location())
                })?;
            Some(Place {
                bucket,
                slot,
                spilled,
            })
        };
        find_in(home, false).or_else(|| {
            let spilled = self.overflow(memory, home).get().spilled(tag);
            spilled
                .then(|| find_in(self.reference.alternate(home, tag), true))
                .flatten()
        })
    }

    /// Points to a record of `hash` that is in no bucket yet.
    pub(super) fn insert(
        &self,
        memory: &impl Memory,
        hash: u64,
        location: u32,
    ) -> Result<(), Full> {
        let tag = tag_of(hash);
        let home = self.reference.home(hash);
        let entry = Entry::new(tag, location);
        let room = |bucket| {
            let words = &self.bucket(memory, bucket)[..BUCKET_ENTRIES];
            let empty = |word: &&Word| Entry(word.load()) == Entry::EMPTY;
            (
                words.iter().filter(|w| !empty(w)).count(),
                words.iter().find(empty),
            )
        };
        let (at_home, free) = room(home);
        if at_home >= SHARE_FROM {
            let (elsewhere, free) = room(self.reference.alternate(home, tag));
            if let Some(word) = free.filter(|_| elsewhere < at_home) {
                // First the mark, then what it leads to.
                let overflow = self.overflow(memory, home);
                overflow.set(overflow.get().with_spilled(tag));
                word.store(entry.0);
                return Ok(());
            }
        }
        free.ok_or(Full)?.store(entry.0);
        Ok(())
    }

    /// Makes readers that miss a name of `hash` ask the fallback.
    ///
    /// Marks are not taken back in an index that is in force: a reader may have missed the name before it was
    /// stored, and look for the mark after.
    pub(super) fn mark_unstored(&mut self, memory: &impl Memory, hash: u64) {
        self.add_unstored(
            memory,
            self.reference.home(hash),
            Overflow(0).with_unstored(tag_of(hash)),
        );
    }

    fn add_unstored(&mut self, memory: &impl Memory, bucket: u32, marks: Overflow) {
        let overflow = self.overflow(memory, bucket);
        let old = overflow.get();
        let new = Overflow(old.0 | marks.0 >> 32 << 32);
        if new != old {
            overflow.set(new);
            self.unstored_marks += u64::from((new.0 ^ old.0).count_ones());
        }
    }

    /// Takes over all marks of names that are not stored, for an agent that does not know which names those are.
    pub(super) fn inherit_unstored(&mut self, memory: &impl Memory, old: &Self) {
        for bucket in 0..old.buckets() {
            let marks = old.overflow(memory, bucket).get();
            if marks.0 >> 32 == 0 {
                continue;
            }
            // A bucket's names are those of two buckets in an index of twice the size.
            let first = if self.bits() >= old.bits() {
                bucket << (self.bits() - old.bits())
            } else {
                bucket >> (old.bits() - self.bits())
            };
            let count = 1 << self.bits().saturating_sub(old.bits());
            for heir in first..first + count {
                self.add_unstored(memory, heir, marks);
            }
        }
    }

    /// The word of every entry, and its bucket.
    pub(super) fn entries<'m>(
        &self,
        memory: &'m impl Memory,
    ) -> impl Iterator<Item = (u32, &'m Word)> {
        (0..self.buckets()).flat_map(move |bucket| {
            let words = &self.bucket(memory, bucket)[..BUCKET_ENTRIES];
            let entries = words.iter().filter(|word| word.load() != Entry::EMPTY.0);
            entries.map(move |word| (bucket, word))
        })
    }

    /// Whether readers of `hash` come by `bucket`.
    pub(super) fn leads_to(&self, memory: &impl Memory, hash: u64, bucket: u32) -> bool {
        let tag = tag_of(hash);
        let home = self.reference.home(hash);
        bucket == home
            || bucket == self.reference.alternate(home, tag)
                && self.overflow(memory, home).get().spilled(tag)
    }
}

/// A bucket's last word.
struct Flagged<'m>(&'m Word);

impl Flagged<'_> {
    fn get(&self) -> Overflow {
        Overflow(self.0.load())
    }
    fn set(&self, overflow: Overflow) {
        self.0.store(overflow.0);
    }
}
