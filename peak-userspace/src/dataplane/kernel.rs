//! The table's memory in the kernel.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use aya::maps::MapData;
use peak_common::abi::{Control, SEGMENT_BYTES, Segment};

use super::{
    mapping::Mapping,
    memory::{Memory, Region},
    sys,
};

/// `BPF_F_MMAPABLE`: as the program declares its segments.
const SEGMENT_FLAGS: u32 = 1 << 10;

/// The maps that the program reads and the table's writer writes.
pub struct KernelMemory {
    control: Mapping<Control>,
    index: Segments,
    heap: Segments,
    grace: Arc<GracePeriods>,
}

impl KernelMemory {
    pub(super) fn new(
        control: Mapping<Control>,
        index: Segments,
        heap: Segments,
        grace: GracePeriods,
    ) -> Self {
        Self {
            control,
            index,
            heap,
            grace: Arc::new(grace),
        }
    }

    /// Waits for grace periods, for who does so in the background.
    #[must_use]
    pub fn grace_periods(&self) -> Arc<GracePeriods> {
        Arc::clone(&self.grace)
    }

    fn region(&mut self, region: Region) -> &mut Segments {
        match region {
            Region::Index => &mut self.index,
            Region::Heap => &mut self.heap,
        }
    }
}

impl Memory for KernelMemory {
    fn control(&self) -> &Control {
        &self.control[0]
    }

    fn segment(&self, region: Region, slot: u32) -> Option<&Segment> {
        match region {
            Region::Index => &self.index,
            Region::Heap => &self.heap,
        }
        .get(slot)
    }

    fn add_segment(&mut self, region: Region, slot: u32) -> io::Result<()> {
        self.region(region).add(slot)
    }

    fn remove_segment(&mut self, region: Region, slot: u32) -> io::Result<()> {
        self.region(region).remove(slot)
    }

    fn barrier(&mut self) -> io::Result<()> {
        self.grace.wait()
    }
}

/// An array of maps, each of one segment.
pub struct Segments {
    outer: OwnedFd,
    mapped: Vec<Option<Mapping<Segment>>>,
}

impl Segments {
    pub(super) fn new(outer: impl AsFd, slots: u32) -> io::Result<Self> {
        Ok(Self {
            outer: outer.as_fd().try_clone_to_owned()?,
            mapped: (0..slots).map(|_| None).collect(),
        })
    }

    fn get(&self, slot: u32) -> Option<&Segment> {
        self.mapped.get(slot as usize)?.as_ref()?.first()
    }

    fn add(&mut self, slot: u32) -> io::Result<()> {
        let place = self
            .mapped
            .get_mut(slot as usize)
            .ok_or_else(|| io::Error::other("the table has reached its greatest size"))?;
        if place.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let map = aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            size_of::<u32>() as u32,
            SEGMENT_BYTES as u32,
            1,
            SEGMENT_FLAGS,
        );
        let map = MapData::create(map, "peak_segment", None).map_err(io::Error::other)?;
        let mapping = Mapping::new(map.fd(), 1)?;
        sys::put_map(&self.outer, slot, map.fd())?;
        *place = Some(mapping);
        Ok(())
    }

    fn remove(&mut self, slot: u32) -> io::Result<()> {
        let place = self
            .mapped
            .get_mut(slot as usize)
            .ok_or(io::ErrorKind::NotFound)?;
        sys::remove_map(&self.outer, slot)?;
        *place = None;
        Ok(())
    }
}

/// Waits until every program that runs now has ended.
///
/// The kernel does so after each change of an array of maps: this one has no other purpose.
pub struct GracePeriods {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl GracePeriods {
    pub(super) fn new() -> io::Result<Self> {
        let inner = sys::create_array(None)?;
        let outer = sys::create_array(Some(&inner))?;
        Ok(Self { outer, inner })
    }

    /// Waits for one: milliseconds, as a rule.
    ///
    /// # Errors
    /// The kernel's; nothing may be taken for ended then.
    pub fn wait(&self) -> io::Result<()> {
        sys::put_map(&self.outer, 0, &self.inner)
    }
}
