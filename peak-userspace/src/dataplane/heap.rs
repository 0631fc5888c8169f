//! Which room of the heap is free.
//!
//! Nothing of this is in the maps: what the index reaches is used, and the rest is free. Best fit, the lowest place
//! first among equals, which leaves the upper segments to become empty and be given back. A record takes the first of the
//! best in which it lies in as few cache lines as it can.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use peak_common::abi::{
    GRANULE_BYTES, HEAP_SEGMENTS, MAX_RECORD_WORDS, SEGMENT_GRANULES, SEGMENT_WORDS,
};

/// The last granule of a segment that a record may start at: readers take [`MAX_RECORD_WORDS`] from there.
const LAST_RECORD_START: u32 = ((SEGMENT_WORDS - MAX_RECORD_WORDS) / (GRANULE_BYTES / 8)) as u32;

/// Granules of a cache line.
const LINE: u32 = (64 / GRANULE_BYTES) as u32;
/// How many of the smallest free extents that are large enough are tried for a place on few cache lines.
const TRIES: usize = 8;

/// Granules in a row, all in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Extent {
    /// The first one, counted from the heap's start.
    pub(super) start: u32,
    /// How many.
    pub(super) granules: u32,
}

impl Extent {
    pub(super) const fn new(start: u32, granules: u32) -> Self {
        Self { start, granules }
    }

    const fn end(self) -> u32 {
        self.start + self.granules
    }

    /// The slot of its segment.
    pub(super) const fn segment(self) -> u32 {
        self.start / SEGMENT_GRANULES
    }

    /// Whether it lies where the heap has granules to give, and in one segment.
    pub(super) const fn is_sound(self) -> bool {
        self.start != 0
            && self.granules > 0
            && self.granules <= SEGMENT_GRANULES
            && self.start % SEGMENT_GRANULES + self.granules <= SEGMENT_GRANULES
            && self.segment() < HEAP_SEGMENTS
    }
}

/// What room is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A record, which does not start in a segment's last words.
    Record,
    /// Addresses, which may start anywhere.
    Addresses,
}

/// Whether a record may start at `granule`.
pub(super) const fn takes_record(granule: u32) -> bool {
    granule % SEGMENT_GRANULES <= LAST_RECORD_START
}

/// The first granule from `start` on where a record of so many lies in as few cache lines as it can.
const fn well_placed(start: u32, granules: u32) -> u32 {
    if start % LINE + granules <= granules.next_multiple_of(LINE) {
        start
    } else {
        start.next_multiple_of(LINE)
    }
}

/// A segment's part of the books.
#[derive(Clone, Copy, Debug)]
struct Occupancy {
    /// Granules that are not free.
    used: u32,
    /// Nothing new comes in: it is being emptied.
    closing: bool,
}

/// The granules of a segment that can be given away: location 0 stands for "nothing" in an entry.
fn granules_of(slot: u32) -> Range<u32> {
    let start = slot * SEGMENT_GRANULES;
    start.max(1)..start + SEGMENT_GRANULES
}

/// The free room of all segments.
#[derive(Debug, Default)]
pub(super) struct Heap {
    segments: Vec<Option<Occupancy>>,
    /// Free extents, adjacent ones of a segment joined: start → granules.
    by_start: BTreeMap<u32, u32>,
    /// Those of segments that are not closing, as [`Self::key`] sorts them.
    by_size: BTreeSet<(bool, u32, u32)>,
    used: u64,
    count: u32,
}

impl Heap {
    /// The heap of the segments in `slots`, of which everything but `used` is free.
    ///
    /// # Errors
    /// An extent that is outside the segments, or shares room with another.
    pub(super) fn rebuild(
        slots: impl IntoIterator<Item = u32>,
        mut used: Vec<Extent>,
    ) -> Result<Self, Extent> {
        used.sort_unstable();
        let mut used = used.into_iter().peekable();
        let mut heap = Self::default();
        for slot in slots {
            let granules = granules_of(slot);
            let mut occupied = 0;
            let mut free_from = granules.start;
            let mut gaps = Vec::new();
            while let Some(extent) = used.next_if(|extent| extent.start < granules.end) {
                if !extent.is_sound() || extent.start < free_from {
                    return Err(extent);
                }
                gaps.push(Extent::new(free_from, extent.start - free_from));
                free_from = extent.end();
                occupied += extent.granules;
            }
            gaps.push(Extent::new(free_from, granules.end - free_from));
            heap.insert_segment(slot, occupied);
            for gap in gaps.into_iter().filter(|gap| gap.granules > 0) {
                heap.by_start.insert(gap.start, gap.granules);
                heap.by_size.insert(Self::key(gap));
            }
        }
        match used.next() {
            Some(stray) => Err(stray),
            None => Ok(heap),
        }
    }

    /// The lowest slot without a segment.
    pub(super) fn vacant_slot(&self) -> Option<u32> {
        let slot = self
            .segments
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.segments.len()) as u32;
        (slot < HEAP_SEGMENTS).then_some(slot)
    }

    /// Takes over a segment, all of it free.
    pub(super) fn add_segment(&mut self, slot: u32) {
        self.insert_segment(slot, 0);
        let granules = granules_of(slot);
        let all = Extent::new(granules.start, granules.end - granules.start);
        self.by_start.insert(all.start, all.granules);
        self.by_size.insert(Self::key(all));
    }

    fn insert_segment(&mut self, slot: u32, used: u32) {
        let slot = slot as usize;
        if slot >= self.segments.len() {
            self.segments.resize(slot + 1, None);
        }
        self.segments[slot] = Some(Occupancy {
            used,
            closing: false,
        });
        self.used += u64::from(used);
        self.count += 1;
    }

    /// Room for `granules`; `None` if no free extent is as large.
    pub(super) fn allocate(&mut self, granules: u32, purpose: Purpose) -> Option<Extent> {
        let records = |least| self.by_size.range((false, least, 0)..(true, 0, 0));
        let tails = || self.by_size.range((true, granules, 0)..);
        let whole = |&(_, free, start): &(bool, u32, u32)| (Extent::new(start, free), start);
        let (free, start) = match purpose {
            Purpose::Record => {
                let place = |&(_, free, start): &(bool, u32, u32)| {
                    let at = well_placed(start, granules);
                    let fits = at + granules <= start + free && takes_record(at);
                    fits.then_some((Extent::new(start, free), at))
                };
                let close = records(granules).take(TRIES).find_map(place);
                close
                    .or_else(|| records(granules + LINE - 1).take(TRIES).find_map(place))
                    .or_else(|| records(granules).next().map(whole))
            }
            Purpose::Addresses => tails()
                .next()
                .or_else(|| records(granules).next())
                .map(whole),
        }?;
        self.forget_free(free);
        let extent = Extent::new(start, granules);
        for rest in [
            Extent::new(free.start, start - free.start),
            Extent::new(extent.end(), free.end() - extent.end()),
        ] {
            if rest.granules > 0 {
                self.by_start.insert(rest.start, rest.granules);
                self.by_size.insert(Self::key(rest));
            }
        }
        self.occupancy(extent).used += granules;
        self.used += u64::from(granules);
        Some(extent)
    }

    /// Gives room back.
    pub(super) fn free(&mut self, extent: Extent) {
        let occupancy = self.occupancy(extent);
        occupancy.used -= extent.granules;
        let closing = occupancy.closing;
        self.used -= u64::from(extent.granules);

        let mut free = extent;
        let before = self.by_start.range(..extent.start).next_back();
        if let Some((&start, &granules)) = before {
            let before = Extent::new(start, granules);
            debug_assert!(before.end() <= extent.start, "{extent:?} is free already");
            if before.end() == extent.start && before.segment() == extent.segment() {
                self.forget_free(before);
                free = Extent::new(start, granules + free.granules);
            }
        }
        let after = self.by_start.range(extent.start..).next();
        if let Some((&start, &granules)) = after {
            let after = Extent::new(start, granules);
            debug_assert!(start >= extent.end(), "{extent:?} is free already");
            if start == extent.end() && after.segment() == extent.segment() {
                self.forget_free(after);
                free.granules += granules;
            }
        }
        self.by_start.insert(free.start, free.granules);
        if !closing {
            self.by_size.insert(Self::key(free));
        }
    }

    fn forget_free(&mut self, free: Extent) {
        self.by_start.remove(&free.start);
        self.by_size.remove(&Self::key(free));
    }

    /// Sorts room that takes records before what is too near its segment's end, then by size, then by place.
    fn key(free: Extent) -> (bool, u32, u32) {
        (!takes_record(free.start), free.granules, free.start)
    }

    fn occupancy(&mut self, extent: Extent) -> &mut Occupancy {
        self.segments[extent.segment() as usize]
            .as_mut()
            .expect("room belongs to a segment")
    }

    /// An empty segment to be given back: any that was being emptied, of the others all but one, the highest first.
    pub(super) fn surplus(&self) -> Option<u32> {
        let empty = |closing| {
            let segments = self.segments.iter().enumerate().rev();
            segments
                .filter(move |(_, segment)| {
                    segment.is_some_and(|s| s.used == 0 && s.closing == closing)
                })
                .map(|(slot, _)| slot as u32)
        };
        let mut open = empty(false);
        let highest = open.next();
        empty(true).next().or(open.next().and(highest))
    }

    /// Parts with a segment that nothing is in.
    pub(super) fn remove_segment(&mut self, slot: u32) {
        let granules = granules_of(slot);
        self.forget_free(Extent::new(granules.start, granules.end - granules.start));
        self.segments[slot as usize] = None;
        self.count -= 1;
    }

    /// Closes the sparsest segments that the others have ample room for. `false` if there are none.
    pub(super) fn close_sparsest(&mut self) -> bool {
        let mut sparsest: Vec<(u32, usize)> = self
            .segments
            .iter()
            .enumerate()
            .filter_map(|(slot, segment)| Some((segment.as_ref()?.used, slot)))
            .collect();
        sparsest.sort_unstable();
        // A fifth more than what is used stays, and a segment: room that is scattered is not all of use.
        let needed = self.used * 6 / 5 / u64::from(SEGMENT_GRANULES) + 2;
        let surplus = sparsest.len().saturating_sub(needed as usize);
        for &(_, slot) in &sparsest[..surplus] {
            self.set_closing(slot, true);
        }
        surplus > 0
    }

    /// Whether an extent is in a segment that is being emptied.
    pub(super) fn is_closing(&self, extent: Extent) -> bool {
        self.segments[extent.segment() as usize].is_some_and(|segment| segment.closing)
    }

    /// Whether any segment is being emptied.
    pub(super) fn any_closing(&self) -> bool {
        self.segments
            .iter()
            .flatten()
            .any(|segment| segment.closing)
    }

    /// Takes segments that are being emptied back into use. `false` if there are none.
    pub(super) fn reopen(&mut self) -> bool {
        let closing = |segment: &Option<Occupancy>| segment.is_some_and(|segment| segment.closing);
        let slots: Vec<_> = (0..self.segments.len())
            .filter(|&slot| closing(&self.segments[slot]))
            .collect();
        for &slot in &slots {
            self.set_closing(slot, false);
        }
        !slots.is_empty()
    }

    fn set_closing(&mut self, slot: usize, closing: bool) {
        for (&start, &granules) in self.by_start.range(granules_of(slot as u32)) {
            let key = Self::key(Extent::new(start, granules));
            if closing {
                self.by_size.remove(&key);
            } else {
                self.by_size.insert(key);
            }
        }
        if let Some(segment) = &mut self.segments[slot] {
            segment.closing = closing;
        }
    }

    /// Granules that are not free.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    /// Granules of all segments.
    pub(super) fn capacity(&self) -> u64 {
        u64::from(self.count) * u64::from(SEGMENT_GRANULES)
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A heap, and what was taken from it.
    #[derive(Default)]
    struct Books {
        heap: Heap,
        taken: Vec<Extent>,
    }

    impl Books {
        fn allocate(&mut self, granules: u32, purpose: Purpose) {
            let extent = self.heap.allocate(granules, purpose).unwrap_or_else(|| {
                self.heap.add_segment(self.heap.vacant_slot().unwrap());
                self.heap.allocate(granules, purpose).unwrap()
            });
            assert!(extent.is_sound() && extent.granules == granules);
            assert!(purpose == Purpose::Addresses || takes_record(extent.start));
            self.taken.push(extent);
        }

        /// Nothing overlaps, and what is neither taken nor free does not exist.
        fn check(&mut self) {
            self.taken.sort_unstable();
            let apart = |pair: &[Extent]| pair[0].end() <= pair[1].start;
            assert!(self.taken.windows(2).all(apart), "{:?}", self.taken);
            let slots: Vec<_> = (0..self.heap.segments.len() as u32)
                .filter(|&slot| self.heap.segments[slot as usize].is_some())
                .collect();
            let rebuilt = Heap::rebuild(slots, self.taken.clone()).unwrap();
            assert_eq!(rebuilt.by_start, self.heap.by_start);
            assert_eq!(rebuilt.by_size, self.heap.by_size);
            assert_eq!(rebuilt.used(), self.heap.used());
            assert_eq!(rebuilt.capacity(), self.heap.capacity());
        }
    }

    #[test]
    fn a_record_leaves_its_readers_a_window() {
        let mut books = Books::default();
        books.allocate(LAST_RECORD_START, Purpose::Addresses);
        books.allocate(3, Purpose::Record);
        assert_eq!(
            books.taken[1].start,
            LAST_RECORD_START + 1 + SEGMENT_GRANULES - 1 - LAST_RECORD_START
        );
        books.allocate(3, Purpose::Addresses);
        assert_eq!(
            books.taken[2].start,
            LAST_RECORD_START + 1,
            "the tail is for addresses"
        );
        books.check();
    }

    #[test]
    fn a_record_lies_in_as_few_lines_as_it_can() {
        let mut books = Books::default();
        for granules in [5, 4, 6, 3, 4, 7, 1, 8, 2, 4, 5, 3] {
            books.allocate(granules, Purpose::Record);
        }
        for extent in &books.taken {
            let lines = (extent.end() - 1) / LINE - extent.start / LINE + 1;
            assert_eq!(lines, extent.granules.div_ceil(LINE), "{extent:?}");
        }
        // What was left between them is not lost.
        books.allocate(1, Purpose::Addresses);
        let last = books.taken.last().unwrap();
        assert!(last.end() < books.taken.iter().map(|e| e.end()).max().unwrap());
        books.check();
    }

    #[test]
    fn empty_segments_are_given_back_but_for_one() {
        let mut books = Books::default();
        for _ in 0..4 {
            books.allocate(SEGMENT_GRANULES - 1, Purpose::Addresses);
        }
        assert_eq!(books.heap.surplus(), None);
        for extent in books.taken.drain(1..) {
            books.heap.free(extent);
        }
        for slot in [3, 2] {
            assert_eq!(books.heap.surplus(), Some(slot));
            books.heap.remove_segment(slot);
        }
        assert_eq!(books.heap.surplus(), None);
        assert_eq!(books.heap.vacant_slot(), Some(2));
        books.check();
    }

    #[test]
    fn a_closing_segment_takes_nothing_until_it_is_reopened() {
        let mut books = Books::default();
        for _ in 0..10 {
            books.allocate(SEGMENT_GRANULES - 1, Purpose::Addresses);
        }
        for extent in books.taken.drain(1..) {
            books.heap.free(extent);
        }
        books.allocate(1, Purpose::Record);
        assert!(books.heap.close_sparsest());
        let segments = books.heap.segments();
        assert!(books.heap.any_closing());
        let open = (0..10).filter(|slot| {
            !books
                .heap
                .is_closing(Extent::new(slot * SEGMENT_GRANULES, 1))
        });
        let room = open.count() as u32 - 1;
        for _ in 0..room {
            books.allocate(SEGMENT_GRANULES / 2 + 1, Purpose::Record);
        }
        assert_eq!(books.heap.segments(), segments);
        books.allocate(SEGMENT_GRANULES / 2 + 1, Purpose::Record);
        assert_eq!(
            books.heap.segments(),
            segments + 1,
            "closing segments took no part"
        );
        assert!(books.heap.reopen());
        assert!(!books.heap.reopen());
        books.check();
    }

    proptest! {
        #[test]
        fn room_is_given_once_and_joined_again(
            steps in prop::collection::vec((any::<bool>(), 1..40_000u32, any::<prop::sample::Index>()), 1..200)
        ) {
            let mut books = Books::default();
            for (allocate, size, index) in steps {
                if allocate || books.taken.is_empty() {
                    // Many small ones, some large.
                    let large = size % 8 == 0;
                    let purpose = if large { Purpose::Addresses } else { Purpose::Record };
                    books.allocate(if large { size } else { 1 + size % 32 }, purpose);
                } else {
                    let extent = books.taken.swap_remove(index.index(books.taken.len()));
                    books.heap.free(extent);
                }
                books.check();
            }
            for extent in std::mem::take(&mut books.taken) {
                books.heap.free(extent);
            }
            books.check();
            prop_assert_eq!(books.heap.used(), 0);
            prop_assert_eq!(books.heap.by_start.len() as u32, books.heap.segments());
        }
    }
}
