//! The table's one writer.
//!
//! A name is changed by writing a new record where nobody reads, and then storing its place into the name's entry:
//! one word, so that a reader sees the old record or the new. The old one's room is put into *quarantine*, and is
//! free when every reader that may still be in it has ended. What cannot be stored, for want of memory or of room in
//! its buckets, is left to the fallback and tried again: a name is never lost, and never denied.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Bound,
};

use peak_common::{
    abi::{
        ABI_VERSION, Control, Entry, GRANULE_BYTES, HEAP_SEGMENTS, INDEX_SLOTS, IndexRef,
        MAX_BUCKET_BITS, MAX_SUBTREE_DEPTHS, NAME_WORDS, RecordHead, SEGMENT_GRANULES, tag_of,
    },
    hash,
};
use rand::{TryRng, rngs::SysRng};
use thiserror::Error;
use tracing::{debug, warn};

use super::{
    heap::{Extent, Heap, Purpose, takes_record},
    index::{Index, Place},
    memory::{Memory, Region},
    record::{self, NodeRecord, Places, Sizes, Stored},
};
use crate::name::Name;

/// Up to so many granules, a record and its addresses are one piece: a hit then reads lines that follow one another.
const INLINE_GRANULES: u32 = 4096 / GRANULE_BYTES as u32;
/// With so many granules in quarantine, waiting for them comes before asking for more memory.
const QUARANTINE_GRANULES: u64 = 16 * SEGMENT_GRANULES as u64;
/// Records that a rehash asks memory for at one time.
const AHEAD: usize = 32;
/// Names that are tried again at one time.
const RETRIES: usize = 1024;

/// Why a running table can't be taken over. The remedy is a fresh one.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// Written by another version of the agent.
    #[error("its layout has version {0}, this agent's is {ABI_VERSION}")]
    Version(u64),
    /// It contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// The system refused what was needed.
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// Why a name is left to the fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It holds bytes that the kernel's comparison confounds.
    Name,
    /// The heap is full and the system gives no more.
    Memory,
    /// Its buckets are full, and no larger index can be had, or would help.
    Buckets,
}

struct Unstored {
    node: NodeRecord,
    refusal: Refusal,
}

/// Figures of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Names in the table.
    pub names: u64,
    /// Names that are left to the fallback until there is room for them.
    pub unstored: u64,
    /// Bytes of the heap that records take.
    pub heap_used: u64,
    /// Bytes of the heap that may be used again after a grace period.
    pub heap_quarantined: u64,
    /// Bytes of the heap that are free.
    pub heap_free: u64,
    /// Segments of the heap, a megabyte each.
    pub heap_segments: u32,
    /// Segments of the index, and of its predecessor until a grace period is over.
    pub index_segments: u32,
    /// Buckets of the index, as a power of two.
    pub index_bits: u32,
    /// New indexes since the agent's start.
    pub rehashes: u64,
}

/// Everything that was put into quarantine up to a moment. Whoever holds it waits for a grace period, and then
/// gives it to [`Writer::release`]. One that is dropped is released along with the next.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "room in quarantine is of use only after its release"]
pub struct Batch(u64);

/// Room that readers may still be in.
#[derive(Debug, Default)]
struct Quarantine {
    /// The number of the next batch.
    next: u64,
    open: Vec<Extent>,
    taken: VecDeque<(u64, Vec<Extent>)>,
    granules: u64,
    /// The index that was in force before, and its batch.
    index: Option<(u64, Index)>,
}

impl Quarantine {
    fn take(&mut self) -> Option<Batch> {
        let batch = self.next;
        let index = self.index.as_ref().is_some_and(|(of, _)| *of == batch);
        if self.open.is_empty() && !index {
            return None;
        }
        self.taken
            .push_back((batch, std::mem::take(&mut self.open)));
        self.next += 1;
        Some(Batch(batch))
    }
}

/// Changes the table. There is one writer at a time.
pub struct Writer<M> {
    memory: M,
    /// The hash function's secret, as the control block has it.
    key: Box<[u64; 2 * NAME_WORDS]>,
    index: Index,
    heap: Heap,
    names: u64,
    quarantine: Quarantine,
    unstored: BTreeMap<Name, Unstored>,
    /// After an adoption: the index has marks of names that this agent has not been told yet.
    foreign_marks: bool,
    /// The index does not grow until something was released.
    growth_refused: bool,
    /// An index that had to grow for full buckets does not shrink below this.
    least_bits: u32,
    /// There are subtrees at more depths than readers look at: they may deny nothing.
    too_many_depths: bool,
    /// The last name that was tried again.
    retry_from: Option<Name>,
    /// The system gave no segment when it was last asked.
    heap_refused: bool,
    rehashes: u64,
}

impl<M: Memory> Writer<M> {
    /// Makes an empty table in memory that is all zeros, with a new secret for the hash function.
    ///
    /// # Errors
    /// The system's, if it refuses the first segment.
    pub fn create(memory: M) -> io::Result<Self> {
        let mut key = [0; 2 * NAME_WORDS];
        for word in &mut key {
            *word = SysRng.try_next_u64()?;
        }
        Self::create_with_key(memory, key)
    }

    /// As [`Self::create`], with a given secret: for tests and benchmarks that are to be repeated.
    ///
    /// # Errors
    /// The system's, if it refuses the first segment.
    pub fn create_with_key(mut memory: M, key: [u64; 2 * NAME_WORDS]) -> io::Result<Self> {
        let index = Index::create(&mut memory, None, Index::bits_for(0))?;
        let control = memory.control();
        for (word, value) in control.hash_key.iter().zip(key) {
            word.store(value);
        }
        control.index.store(index.reference().0);
        control.flags.store(Control::ENABLED);
        // Last: what carries a version is whole.
        control.abi_version.store(ABI_VERSION.into());
        Ok(Self::new(memory, index, Heap::default(), 0))
    }

    fn new(memory: M, index: Index, heap: Heap, names: u64) -> Self {
        let key = std::array::from_fn(|i| memory.control().hash_key[i].load());
        let writer = Self {
            foreign_marks: index.unstored_marks > 0,
            memory,
            key: Box::new(key),
            index,
            heap,
            names,
            quarantine: Quarantine::default(),
            unstored: BTreeMap::new(),
            growth_refused: false,
            least_bits: 0,
            too_many_depths: false,
            retry_from: None,
            heap_refused: false,
            rehashes: 0,
        };
        writer.count_names();
        writer
    }

    /// Takes over a table that another agent has written, wherever it stopped: used is what the index reaches.
    /// Readers go on meanwhile.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn adopt(mut memory: M) -> Result<Self, AdoptError> {
        let control = memory.control();
        let version = control.abi_version.load();
        if version != u64::from(ABI_VERSION) {
            return Err(AdoptError::Version(version));
        }
        let index = Index::adopt(&memory, IndexRef(control.index.load()))
            .ok_or(AdoptError::Damaged("the index lacks segments"))?;

        // What the predecessor replaced last may still be read.
        memory.barrier()?;
        for slot in (0..INDEX_SLOTS).filter(|slot| !index.slots().contains(slot)) {
            if memory.segment(Region::Index, slot).is_some() {
                memory.remove_segment(Region::Index, slot)?;
            }
        }

        let key = std::array::from_fn(|i| memory.control().hash_key[i].load());
        let mut used = Vec::new();
        let mut names = 0;
        for (bucket, word) in index.entries(&memory) {
            let entry = Entry(word.load());
            let stored = Some(entry.location())
                .filter(|&location| location != 0 && takes_record(location))
                .and_then(|location| Stored::at(&memory, location))
                .ok_or(AdoptError::Damaged("an entry leads to no record"))?;
            let name = stored
                .name()
                .filter(|name| stored.is_of(name))
                .ok_or(AdoptError::Damaged("a record has no name"))?;
            let hash = hash_of(&key, &name);
            if entry.tag() != tag_of(hash) || !index.leads_to(&memory, hash, bucket) {
                return Err(AdoptError::Damaged(
                    "a name is in a bucket that is not its own",
                ));
            }
            used.extend(stored.extents());
            names += 1;
        }
        let slots: Vec<_> = (0..HEAP_SEGMENTS)
            .filter(|&slot| memory.segment(Region::Heap, slot).is_some())
            .collect();
        let heap = Heap::rebuild(slots, used)
            .map_err(|_| AdoptError::Damaged("records overlap or leave the heap"))?;
        Ok(Self::new(memory, index, heap, names))
    }

    /// The memory that the table is in.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// The memory that the table is in, to change what is no concern of the table's.
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }

    /// Leaves the table as it is, for readers and the next writer.
    pub fn into_memory(self) -> M {
        self.memory
    }

    /// Gives `name` this record, whatever it held before, in one step. `false`: there is no room for it, and the
    /// name is left to the fallback until there is.
    pub fn set(&mut self, name: &Name, node: &NodeRecord) -> bool {
        let node = node.storable();
        if node.flags & RecordHead::SUBTREE != 0 {
            // First, so that nobody denies what is below it.
            self.list_depth(name.labels().count());
        }
        match self.store(name, &node) {
            Ok(()) => {
                self.unstored.remove(name);
                true
            }
            Err(refusal) => {
                self.leave_to_fallback(name, node, refusal);
                false
            }
        }
    }

    /// Takes `name` out of the table. `false`: it was not in it.
    pub fn remove(&mut self, name: &Name) -> bool {
        let unstored = self.unstored.remove(name).is_some();
        let Some(place) = self.find(self.hash(name), name) else {
            return unstored;
        };
        self.erase(place);
        true
    }

    fn erase(&mut self, place: Place) {
        let word = self.index.word(&self.memory, place);
        let entry = Entry(word.load());
        word.store(Entry::EMPTY.0);
        self.index.left += u64::from(place.spilled);
        self.retire(entry.location());
        self.names -= 1;
        self.count_names();
    }

    /// What the table holds of `name`, as a reader would find it.
    pub fn get(&self, name: &Name) -> Option<NodeRecord> {
        let place = self.find(self.hash(name), name)?;
        Some(self.record(place)?.node())
    }

    /// Every name that is in the table.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.index
            .entries(&self.memory)
            .filter_map(|(_, word)| Stored::at(&self.memory, Entry(word.load()).location())?.name())
    }

    /// Takes every name out of the table that is not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&Name) -> bool) {
        let unwanted: Vec<_> = self.names().filter(|name| !wanted(name)).collect();
        for name in &unwanted {
            self.remove(name);
        }
        self.unstored.retain(|name, _| wanted(name));
    }

    /// Says that every name that exists has been set: what else the index has marks of does not.
    pub fn all_names_set(&mut self) {
        self.foreign_marks = false;
    }

    /// Sets those flags of [`Control::flags`] that are in `mask` to what they are in `value`.
    pub fn set_flags(&mut self, mask: u64, value: u64) {
        let mask = if self.too_many_depths {
            mask & !Control::COMPLETE
        } else {
            mask
        };
        let flags = &self.memory.control().flags;
        flags.store(flags.load() & !mask | value & mask);
    }

    fn hash(&self, name: &Name) -> u64 {
        hash_of(&self.key, name)
    }

    fn find(&self, hash: u64, name: &Name) -> Option<Place> {
        self.find_in(&self.index, hash, name)
    }

    fn find_in(&self, index: &Index, hash: u64, name: &Name) -> Option<Place> {
        index.find(&self.memory, hash, |location| {
            self.stored(location)
                .is_some_and(|record| record.is_of(name))
        })
    }

    fn record(&self, place: Place) -> Option<Stored<'_, M>> {
        self.stored(Entry(self.index.word(&self.memory, place).load()).location())
    }

    fn stored(&self, location: u32) -> Option<Stored<'_, M>> {
        Stored::at(&self.memory, location)
    }

    /// Where the records are.
    fn locations(&self) -> impl Iterator<Item = u32> {
        let entries = self.index.entries(&self.memory);
        entries.map(|(_, word)| Entry(word.load()).location())
    }

    fn count_names(&self) {
        self.memory.control().names.store(self.names);
    }

    fn store(&mut self, name: &Name, node: &NodeRecord) -> Result<(), Refusal> {
        if !is_comparable(name) {
            return Err(Refusal::Name);
        }
        let hash = self.hash(name);
        let old = self.find(hash, name);
        if let Some(place) = old
            && self.record(place).is_some_and(|record| record.holds(node))
        {
            return Ok(());
        }
        let location = self.write(name, node)?;
        if let Some(place) = old {
            self.repoint(place, Entry::new(tag_of(hash), location));
            return Ok(());
        }
        if let Err(refusal) = self.insert(hash, location) {
            self.unwrite(location);
            return Err(refusal);
        }
        self.names += 1;
        self.count_names();
        Ok(())
    }

    /// As [`Self::store`], in an index that nobody reads yet. Returns the location of the record that was
    /// replaced there, and that readers still find in the index in force.
    fn store_in(
        &mut self,
        next: &Index,
        name: &Name,
        node: &NodeRecord,
    ) -> Result<Option<u32>, Refusal> {
        if !is_comparable(name) {
            return Err(Refusal::Name);
        }
        let hash = self.hash(name);
        let location = self.write(name, node)?;
        if let Some(place) = self.find_in(next, hash, name) {
            let word = next.word(&self.memory, place);
            let old = Entry(word.load());
            word.store(Entry::new(tag_of(hash), location).0);
            return Ok(Some(old.location()));
        }
        if next.insert(&self.memory, hash, location).is_err() {
            self.unwrite(location);
            return Err(Refusal::Buckets);
        }
        self.names += 1;
        Ok(None)
    }

    /// Frees a record that nobody has seen.
    fn unwrite(&mut self, location: u32) {
        for extent in extents_at(&self.memory, location) {
            self.heap.free(extent);
        }
    }

    /// Makes an entry lead to another record of the same name: the one store that readers notice.
    fn repoint(&mut self, place: Place, entry: Entry) {
        let word = self.index.word(&self.memory, place);
        let old = Entry(word.load());
        word.store(entry.0);
        self.retire(old.location());
    }

    fn retire(&mut self, location: u32) {
        for extent in extents_at(&self.memory, location) {
            self.quarantine.granules += u64::from(extent.granules);
            self.quarantine.open.push(extent);
        }
    }

    /// Leaves a name to the fallback that the table can't hold as it is to be.
    fn leave_to_fallback(&mut self, name: &Name, node: NodeRecord, refusal: Refusal) {
        let hash = self.hash(name);
        match self.find(hash, name).and_then(|place| self.record(place)) {
            // The mark would come too late for a reader that is about to find no entry.
            Some(record) => record.ask_fallback(),
            None => self.index.mark_unstored(&self.memory, hash),
        }
        if self.unstored.is_empty() {
            warn!(%name, ?refusal, "there are names that are left to the fallback: this is the first");
        } else {
            debug!(%name, ?refusal, "left to the fallback");
        }
        self.unstored
            .insert(name.clone(), Unstored { node, refusal });
    }

    /// Writes a record that no entry leads to yet.
    fn write(&mut self, name: &Name, node: &NodeRecord) -> Result<u32, Refusal> {
        let sizes = Sizes::of(name, node);
        let places = self.place(sizes).ok_or(Refusal::Memory)?;
        record::write(&self.memory, name, node, places);
        Ok(places.record)
    }

    fn place(&mut self, sizes: Sizes) -> Option<Places> {
        if sizes.total() <= INLINE_GRANULES {
            let all = self.allocate(sizes.total(), Purpose::Record)?;
            let v6 = all.start + sizes.record;
            return Some(Places {
                record: all.start,
                v6,
                v4: v6 + sizes.v6,
            });
        }
        let wanted = [
            (sizes.record, Purpose::Record),
            (sizes.v6, Purpose::Addresses),
            (sizes.v4, Purpose::Addresses),
        ];
        let mut found = [None; 3];
        for (i, (granules, purpose)) in wanted.into_iter().enumerate() {
            if granules == 0 {
                continue;
            }
            found[i] = self.allocate(granules, purpose);
            if found[i].is_none() {
                for extent in found.into_iter().flatten() {
                    self.heap.free(extent);
                }
                return None;
            }
        }
        let [record, v6, v4] = found.map(|extent| extent.map_or(0, |extent: Extent| extent.start));
        Some(Places { record, v6, v4 })
    }

    /// Room, made if need be.
    fn allocate(&mut self, granules: u32, purpose: Purpose) -> Option<Extent> {
        // The cheapest first. Each says whether it changed anything.
        let remedies: [fn(&mut Self) -> bool; 4] = [
            |writer| {
                let quarantined = writer.quarantine.granules;
                let live = writer.heap.used() - quarantined;
                quarantined > live.max(QUARANTINE_GRANULES) && writer.settle()
            },
            Self::add_heap_segment,
            |writer| writer.heap.reopen(),
            |writer| writer.quarantine.granules > 0 && writer.settle(),
        ];
        let mut found = self.heap.allocate(granules, purpose);
        for remedy in remedies {
            if found.is_none() && remedy(self) {
                found = self.heap.allocate(granules, purpose);
            }
        }
        found
    }

    fn add_heap_segment(&mut self) -> bool {
        let Some(slot) = self.heap.vacant_slot() else {
            return false;
        };
        match self.memory.add_segment(Region::Heap, slot) {
            Ok(()) => {
                self.heap.add_segment(slot);
                self.heap_refused = false;
                true
            }
            Err(error) => {
                if !self.heap_refused {
                    warn!(slot, %error, "no further segment for records");
                }
                self.heap_refused = true;
                false
            }
        }
    }

    fn insert(&mut self, hash: u64, location: u32) -> Result<(), Refusal> {
        if self.names >= Index::limit(self.index.bits()) {
            self.grow();
        }
        while self.index.insert(&self.memory, hash, location).is_err() {
            // Full buckets at a low load come from hashes that agree in more than the buckets' numbers. Up to four
            // times the buckets that the names need are tried.
            let bits = self.index.bits();
            if bits >= Index::bits_for(self.names) + 2 || !self.grow() {
                return Err(Refusal::Buckets);
            }
            // By chance alone some fill up a little early: that says nothing of the table when it is smaller again.
            if self.names * 2 < Index::limit(bits) {
                self.least_bits = self.index.bits();
            }
        }
        Ok(())
    }

    /// Doubles the index. `false`: it can't be.
    fn grow(&mut self) -> bool {
        let bits = self.index.bits() + 1;
        if self.growth_refused || bits > MAX_BUCKET_BITS {
            return false;
        }
        if let Err(error) = self.rehash(bits) {
            warn!(bits, %error, "the index does not grow");
            self.growth_refused = true;
            return false;
        }
        true
    }

    /// Builds a new index of all that the old one reaches, while that one is in force; then puts it in force.
    pub(super) fn rehash(&mut self, bits: u32) -> io::Result<()> {
        if self.quarantine.index.is_some() {
            // The slots that the new one is to have.
            self.memory.barrier()?;
            self.release_all();
        }
        let mut next = Index::create(&mut self.memory, Some(&self.index), bits)?;
        let mut left_over = Vec::new();
        let locations: Vec<_> = self.locations().collect();
        for locations in locations.chunks(AHEAD) {
            let records = || {
                let records = locations.iter();
                records.filter_map(|&location| Some((location, self.stored(location)?)))
            };
            // Records lie anywhere: loads that do not depend on one another wait for memory together.
            let heads = records().fold(0, |heads, (_, record)| heads ^ record.head().0);
            std::hint::black_box(heads);
            for (location, record) in records() {
                let hash = record.with_name(|wire| hash::hash_name(&self.key, wire));
                if next.insert(&self.memory, hash, location).is_err() {
                    next.mark_unstored(&self.memory, hash);
                    left_over.push(location);
                }
            }
        }
        // What waits for room may have it there, and leaves no mark then.
        let mut replaced = Vec::new();
        for (name, unstored) in std::mem::take(&mut self.unstored) {
            match self.store_in(&next, &name, &unstored.node) {
                Ok(old) => replaced.extend(old),
                Err(_) => {
                    next.mark_unstored(&self.memory, self.hash(&name));
                    self.unstored.insert(name, unstored);
                }
            }
        }
        if self.foreign_marks {
            next.inherit_unstored(&self.memory, &self.index);
        }
        self.memory.control().index.store(next.reference().0);
        let old = std::mem::replace(&mut self.index, next);
        // Only now may room that the old index leads to be waited for.
        self.quarantine.index = Some((self.quarantine.next, old));
        for location in replaced {
            self.retire(location);
        }
        for location in left_over {
            if let Some(record) = self.stored(location)
                && let Some(name) = record.name()
            {
                let unstored = Unstored {
                    node: record.node(),
                    refusal: Refusal::Buckets,
                };
                // A newer node may be waiting for room.
                self.unstored.entry(name).or_insert(unstored);
            }
            self.retire(location);
            self.names -= 1;
        }
        self.count_names();
        self.rehashes += 1;
        Ok(())
    }

    /// Tries again some of what could not be stored, the next ones each time.
    fn retry(&mut self) {
        let from = self.retry_from.take();
        let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let names: Vec<_> = self
            .unstored
            .range((from, Bound::Unbounded))
            .take(RETRIES)
            .map(|(name, _)| name.clone())
            .collect();
        if names.len() == RETRIES {
            self.retry_from = names.last().cloned();
        }
        // What is not smaller than a record that found no room finds none either.
        let mut too_large = u32::MAX;
        for name in names {
            let Some(unstored) = self.unstored.get(&name) else {
                continue;
            };
            let size = Sizes::of(&name, &unstored.node).total();
            if unstored.refusal == Refusal::Name || size >= too_large {
                continue;
            }
            let node = unstored.node.clone();
            match self.store(&name, &node) {
                Ok(()) => {
                    self.unstored.remove(&name);
                }
                Err(Refusal::Memory) => too_large = size,
                Err(Refusal::Buckets | Refusal::Name) => {}
            }
        }
    }

    /// Makes readers look for subtrees at this depth.
    fn list_depth(&mut self, depth: usize) {
        let depths = &self.memory.control().subtree_depths;
        let listed: [usize; MAX_SUBTREE_DEPTHS] =
            std::array::from_fn(|i| depths[i].load() as usize);
        if listed.contains(&depth) {
            return;
        }
        // One that is no longer needed is replaced by one store: readers walk the list meanwhile.
        let needed = |depth| {
            let is_subtree = |flags: u8| flags & RecordHead::SUBTREE != 0;
            let records = self.locations().filter_map(|location| {
                let record = self.stored(location)?;
                is_subtree(record.head().flags()).then(|| record.name())?
            });
            let unstored = self.unstored.iter();
            let unstored = unstored.filter(|(_, unstored)| is_subtree(unstored.node.flags));
            records
                .chain(unstored.map(|(name, _)| name.clone()))
                .any(|name| name.labels().count() == depth)
        };
        match listed
            .iter()
            .position(|&other| other == 0 || !needed(other))
        {
            Some(i) => depths[i].store(depth as u64),
            None => {
                warn!(
                    depth,
                    "subtrees at too many depths: the kernel answers nothing"
                );
                self.set_flags(Control::COMPLETE, 0);
                self.too_many_depths = true;
            }
        }
    }

    /// What is in quarantine and not yet waited for; `None` if nothing is.
    pub fn take_quarantine(&mut self) -> Option<Batch> {
        self.quarantine.take()
    }

    /// Frees what a batch holds, a grace period after it was taken, and puts the table in order: what could not
    /// be stored is tried again, an index with many stale marks or few names is replaced, a sparse heap is
    /// drawn together. Some of that puts more into quarantine.
    pub fn release(&mut self, batch: Batch) {
        self.free(&batch);
        self.maintain();
    }

    /// Waits for a grace period, here and now, and frees all that is in quarantine. `false`: it failed.
    pub fn settle(&mut self) -> bool {
        match self.memory.barrier() {
            Ok(()) => {
                self.release_all();
                true
            }
            Err(error) => {
                warn!(%error, "no grace period");
                false
            }
        }
    }

    fn release_all(&mut self) {
        if let Some(batch) = self.quarantine.take() {
            self.free(&batch);
        } else if let Some(last) = self.quarantine.next.checked_sub(1) {
            self.free(&Batch(last));
        }
    }

    fn free(&mut self, batch: &Batch) {
        let quarantine = &mut self.quarantine;
        while let Some((_, extents)) = quarantine.taken.pop_front_if(|(of, _)| *of <= batch.0) {
            for extent in extents {
                quarantine.granules -= u64::from(extent.granules);
                self.heap.free(extent);
            }
        }
        if let Some((_, index)) = quarantine.index.take_if(|(of, _)| *of <= batch.0) {
            for slot in index.slots() {
                if let Err(error) = self.memory.remove_segment(Region::Index, slot) {
                    warn!(slot, %error, "a segment of the index is not given back");
                }
            }
        }
    }

    /// Puts the table in order where that is due: to be called now and then also when nothing is in quarantine,
    /// since the system may have memory again.
    pub fn maintain(&mut self) {
        self.growth_refused = false;
        self.rehash_if_due();
        if !self.unstored.is_empty() {
            self.retry();
        }
        self.compact_if_sparse();
        while let Some(slot) = self.heap.surplus() {
            if let Err(error) = self.memory.remove_segment(Region::Heap, slot) {
                warn!(slot, %error, "a segment of the heap is not given back");
                break;
            }
            self.heap.remove_segment(slot);
        }
    }

    fn rehash_if_due(&mut self) {
        if self.quarantine.index.is_some() {
            return;
        }
        let bits = self.index.bits();
        if self.names >= Index::limit(bits) && self.grow() {
            return;
        }
        let fitting = Index::bits_for(2 * self.names).max(self.least_bits);
        let sparse = self.names * 4 < Index::limit(bits) && fitting < bits;
        let buckets = u64::from(self.index.buckets());
        let unstored = self.unstored.len() as u64;
        // A stale mark of a stored name costs one miss in 32 a cache line, one of a name that is not stored sends
        // that miss to the fallback.
        let stale = self.index.left > buckets
            || self.index.unstored_marks > buckets / 32 + 2 * unstored && !self.foreign_marks;
        if sparse || stale {
            let bits = if sparse { fitting } else { bits };
            if let Err(error) = self.rehash(bits) {
                warn!(%error, "the index is not put in order");
            }
        }
    }

    /// Empties the sparsest segments of a heap of which less than half is used.
    fn compact_if_sparse(&mut self) {
        if self.heap.used() * 2 >= self.heap.capacity()
            || self.heap.segments() <= 4
            || self.heap.any_closing()
            || !self.heap.close_sparsest()
        {
            return;
        }
        let is_closing = |location| {
            extents_at(&self.memory, location).any(|extent| self.heap.is_closing(extent))
        };
        let closing: Vec<_> = self
            .locations()
            .filter(|&location| is_closing(location))
            .collect();
        for location in closing {
            let Some(record) = self.stored(location) else {
                continue;
            };
            let (Some(name), node) = (record.name(), record.node()) else {
                continue;
            };
            let hash = self.hash(&name);
            let moved = self.find(hash, &name).is_some_and(|place| {
                self.write(&name, &node)
                    .map(|to| self.repoint(place, Entry::new(tag_of(hash), to)))
                    .is_ok()
            });
            if !moved {
                self.heap.reopen();
                return;
            }
        }
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let bytes = |granules| granules * GRANULE_BYTES as u64;
        let quarantined = self.quarantine.granules;
        let old_index = self.quarantine.index.iter();
        let old_index: u32 = old_index.map(|(_, index)| index.slots().len() as u32).sum();
        Stats {
            names: self.names,
            unstored: self.unstored.len() as u64,
            heap_used: bytes(self.heap.used() - quarantined),
            heap_quarantined: bytes(quarantined),
            heap_free: bytes(self.heap.capacity() - self.heap.used()),
            heap_segments: self.heap.segments(),
            index_segments: self.index.slots().len() as u32 + old_index,
            index_bits: self.index.bits(),
            rehashes: self.rehashes,
        }
    }
}

fn extents_at<M: Memory>(memory: &M, location: u32) -> impl Iterator<Item = Extent> + use<M> {
    Stored::at(memory, location)
        .map(|record| record.extents())
        .into_iter()
        .flatten()
}

/// The hash of a name as readers compute it, who take the first zero byte for the root label.
fn hash_of(key: &[u64; 2 * NAME_WORDS], name: &Name) -> u64 {
    let wire = name.as_wire();
    let end = wire.iter().position(|&byte| byte == 0).unwrap_or_default();
    hash::hash_name(key, &wire[..=end])
}

/// Whether readers tell this name from any other: their comparison takes some bytes for letters that are none
/// ([`hash::letters`]), and a zero byte for the root label.
pub(super) fn is_comparable(name: &Name) -> bool {
    let (_root, labels) = name
        .as_wire()
        .split_last()
        .expect("a name has a root label");
    labels.iter().all(|byte| !matches!(byte, 0 | 0x60 | 0x7b..))
}
