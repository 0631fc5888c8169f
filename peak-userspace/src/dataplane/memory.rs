//! Where the table's segments come from.
//!
//! The agent maps the kernel's; tests, tools and benchmarks keep them on the heap. The writer knows neither.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use peak_common::{
    abi::{Control, HEAP_SEGMENTS, INDEX_SLOTS, SERVED_SLOTS, Segment, Served},
    table::Tables,
    word::Word,
};

/// The two outer maps that segments belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Buckets: [`INDEX_SLOTS`] slots.
    Index,
    /// Records and addresses: [`HEAP_SEGMENTS`] slots.
    Heap,
}

/// The memory that the kernel program reads and one [`super::table::Writer`] writes.
pub trait Memory {
    /// The control block.
    fn control(&self) -> &Control;

    /// The segment in a slot, if there is one.
    fn segment(&self, region: Region, slot: u32) -> Option<&Segment>;

    /// Puts a segment of zeros into a slot that has none.
    ///
    /// # Errors
    /// The system's, where it refuses: the table then goes on with what it has.
    fn add_segment(&mut self, region: Region, slot: u32) -> io::Result<()>;

    /// Takes the segment out of a slot. The writer does so a grace period after the last reader could find
    /// its way there.
    ///
    /// # Errors
    /// The system's; the segment is then still there.
    fn remove_segment(&mut self, region: Region, slot: u32) -> io::Result<()>;

    /// Waits for a grace period: until every reader that runs now has ended.
    ///
    /// The writer asks for one where it cannot go on otherwise, which is seldom; ordinarily the
    /// agent waits in the background, see [`super::table::Writer::take_quarantine`].
    ///
    /// # Errors
    /// The system's; nothing may be taken for ended then.
    fn barrier(&mut self) -> io::Result<()>;
}

/// The maps, in ordinary memory, shared by a writer's [`HostMemory`] and readers.
pub struct HostTables {
    control: Box<Control>,
    index: Box<[HostSlot]>,
    heap: Box<[HostSlot]>,
    served: Box<[Served]>,
}

/// Once made, a segment stays until the end, so that a shared reference to it is always good; a reader that
/// breaks the rules meets zeros or strangers there, as tests can notice.
#[derive(Default)]
struct HostSlot {
    segment: OnceLock<Box<Segment>>,
    present: AtomicBool,
}

impl HostSlot {
    fn get(&self) -> Option<&Segment> {
        if !self.present.load(Ordering::Acquire) {
            return None;
        }
        self.segment.get().map(|segment| &**segment)
    }
}

impl HostTables {
    fn new() -> Self {
        let slots = |count: u32| (0..count).map(|_| HostSlot::default()).collect();
        let free = || Served {
            address: [Word::new(0), Word::new(0)],
            service: Word::new(0),
            reserved: 0,
        };
        Self {
            // SAFETY: a control block is nothing but `Word`s, atomic integers, for which all zeros is a value.
            control: unsafe { Box::new_zeroed().assume_init() },
            index: slots(INDEX_SLOTS),
            heap: slots(HEAP_SEGMENTS),
            served: (0..SERVED_SLOTS).map(|_| free()).collect(),
        }
    }

    fn slot(&self, region: Region, slot: u32) -> Option<&HostSlot> {
        match region {
            Region::Index => self.index.get(slot as usize),
            Region::Heap => self.heap.get(slot as usize),
        }
    }
}

impl Tables for HostTables {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }
    fn index_segment(&self, slot: u32) -> Option<&Segment> {
        self.slot(Region::Index, slot)?.get()
    }
    fn heap_segment(&self, slot: u32) -> Option<&Segment> {
        self.slot(Region::Heap, slot)?.get()
    }
    fn served(&self, slot: u32) -> Option<&Served> {
        self.served.get(slot as usize)
    }
}

/// A [`Memory`] without a kernel.
pub struct HostMemory {
    tables: Arc<HostTables>,
    segments: usize,
    limit: usize,
    grace: Box<dyn FnMut() + Send>,
}

impl HostMemory {
    /// Memory that is all zeros, of as many segments as there are slots, whose readers have always just ended.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: Arc::new(HostTables::new()),
            segments: 0,
            limit: (INDEX_SLOTS + HEAP_SEGMENTS) as usize,
            grace: Box::new(|| {}),
        }
    }

    /// From now on there are `limit` segments at most.
    pub fn limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// From now on a grace period is over when `grace` returns.
    pub fn on_barrier(&mut self, grace: impl FnMut() + Send + 'static) {
        self.grace = Box::new(grace);
    }

    /// What readers see.
    #[must_use]
    pub fn tables(&self) -> &Arc<HostTables> {
        &self.tables
    }

    /// How many segments there are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments
    }

    fn slot(&self, region: Region, slot: u32) -> io::Result<&HostSlot> {
        self.tables
            .slot(region, slot)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Default for HostMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory for HostMemory {
    fn control(&self) -> &Control {
        &self.tables.control
    }

    fn segment(&self, region: Region, slot: u32) -> Option<&Segment> {
        self.tables.slot(region, slot)?.get()
    }

    fn add_segment(&mut self, region: Region, slot: u32) -> io::Result<()> {
        if self.segments >= self.limit {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let slot = self.slot(region, slot)?;
        if slot.present.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let Some(used) = slot.segment.get() {
            used.0.iter().for_each(|word| word.store(0));
        } else {
            // SAFETY: a segment is nothing but `Word`s, atomic integers, for which all zeros is a value.
            slot.segment
                .get_or_init(|| unsafe { Box::new_zeroed().assume_init() });
        }
        slot.present.store(true, Ordering::Release);
        self.segments += 1;
        Ok(())
    }

    fn remove_segment(&mut self, region: Region, slot: u32) -> io::Result<()> {
        if !self
            .slot(region, slot)?
            .present
            .swap(false, Ordering::AcqRel)
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.segments -= 1;
        Ok(())
    }

    fn barrier(&mut self) -> io::Result<()> {
        (self.grace)();
        Ok(())
    }
}
