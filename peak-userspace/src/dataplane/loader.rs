//! The XDP program and its maps in the kernel.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, PerCpuArray},
    programs::Xdp,
};
use peak_common::{
    abi::{
        COUNTERS, Control, Counters, HEAP_SEGMENTS, INDEX_SLOTS, Interface, MAX_INTERFACES,
        SEGMENT_BYTES, SERVED_SLOTS, Segment, Served,
    },
    table::Tables,
};
use thiserror::Error;

use super::{mapping::Mapping, sys};

/// The compiled program, GPL-compatible for the kernel's sake.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/peak-ebpf"));

/// `BPF_F_MMAPABLE`: as the program declares its segments.
const SEGMENT_FLAGS: u32 = 1 << 10;

/// Why the program is not in the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A capability is missing.
    #[error(
        "the kernel refused to load the program: not permitted; it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
         (run as root, or with the systemd unit in deploy/)"
    )]
    NotPermitted,
    /// The verifier said no, or the kernel is too old.
    #[error("the kernel refused to load the program (Linux 5.18 or newer is needed): {0}")]
    Refused(String),
    /// A map of the program could not be used.
    #[error("map {name} of the XDP program: {source}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is fixed when the program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Log one of so many packets with its verdict; 0: none.
    pub log_one_in: u32,
    /// For tests: the number that stands for every random draw.
    pub fixed_draw: Option<u32>,
}

/// The loaded program with its maps.
pub struct Kernel {
    ebpf: Ebpf,
    control: Mapping<Control>,
    interfaces: Mapping<Interface>,
    served: Mapping<Served>,
    counters: PerCpuArray<MapData, Counters>,
    index: Segments,
    heap: Segments,
}

impl Kernel {
    /// Loads the program. It is attached to nothing yet.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        let fixed_draw = options.fixed_draw.map_or(0, |draw| draw.saturating_add(1));
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("LOG_ONE_IN", &options.log_one_in, true)
            .override_global("FIXED_DRAW", &fixed_draw, true)
            .load(OBJECT)
            .map_err(|error| refused(&error))?;
        let program: &mut Xdp = ebpf
            .program_mut("peak")
            .ok_or_else(|| LoadError::Refused("the object has no program `peak`".to_owned()))?
            .try_into()
            .map_err(|error| refused(&error))?;
        program.load().map_err(|error| refused(&error))?;

        let control = mapping(&mut ebpf, "CONTROL", 1)?;
        let interfaces = mapping(&mut ebpf, "INTERFACES", MAX_INTERFACES as usize)?;
        let served = mapping(&mut ebpf, "SERVED", SERVED_SLOTS as usize)?;
        let counters = PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)
            .map_err(|error| map_error("COUNTERS", error))?;
        let index = Segments::new(&mut ebpf, "INDEX", INDEX_SLOTS)?;
        let heap = Segments::new(&mut ebpf, "HEAP", HEAP_SEGMENTS)?;
        Ok(Self {
            ebpf,
            control,
            interfaces,
            served,
            counters,
            index,
            heap,
        })
    }

    /// A program of the object: `peak` or `pass`.
    ///
    /// # Errors
    /// [`LoadError::Refused`] if there is none of that name.
    pub fn program(&mut self, name: &str) -> Result<&mut Xdp, LoadError> {
        self.ebpf
            .program_mut(name)
            .ok_or_else(|| LoadError::Refused(format!("the object has no program `{name}`")))?
            .try_into()
            .map_err(|error| refused(&error))
    }

    /// The interfaces' slots.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The served addresses' slots.
    #[must_use]
    pub fn served_slots(&self) -> &[Served] {
        &self.served
    }

    /// The counters of the interface in `slot`, summed over all processors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self, slot: u32) -> io::Result<Counters> {
        let mut sum = [0; COUNTERS];
        for processor in self
            .counters
            .get(&slot, 0)
            .map_err(io::Error::other)?
            .iter()
        {
            for (sum, count) in sum.iter_mut().zip(processor) {
                *sum += count;
            }
        }
        Ok(sum)
    }

    /// The control block.
    #[must_use]
    pub fn control_block(&self) -> &Control {
        &self.control[0]
    }

    /// The index's segments.
    pub fn index_mut(&mut self) -> &mut Segments {
        &mut self.index
    }

    /// The heap's segments.
    pub fn heap_mut(&mut self) -> &mut Segments {
        &mut self.heap
    }
}

impl Tables for Kernel {
    fn control(&self) -> Option<&Control> {
        self.control.first()
    }
    fn index_segment(&self, slot: u32) -> Option<&Segment> {
        self.index.get(slot)
    }
    fn heap_segment(&self, slot: u32) -> Option<&Segment> {
        self.heap.get(slot)
    }
    fn served(&self, slot: u32) -> Option<&Served> {
        self.served.get(slot as usize)
    }
}

/// An array of maps, each of one segment.
pub struct Segments {
    outer: OwnedFd,
    mapped: Vec<Option<Mapping<Segment>>>,
}

impl Segments {
    fn new(ebpf: &mut Ebpf, name: &'static str, slots: u32) -> Result<Self, LoadError> {
        let Map::ArrayOfMaps(map) = take(ebpf, name)? else {
            return Err(map_error(name, "not an array of maps"));
        };
        let outer = map
            .fd()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| map_error(name, error))?;
        Ok(Self {
            outer,
            mapped: (0..slots).map(|_| None).collect(),
        })
    }

    /// The segment in a slot.
    #[must_use]
    pub fn get(&self, slot: u32) -> Option<&Segment> {
        self.mapped.get(slot as usize)?.as_ref()?.first()
    }

    /// Gives a slot a segment of zeros.
    ///
    /// # Errors
    /// The kernel has no memory for it, or there is no such slot.
    pub fn add(&mut self, slot: u32) -> io::Result<&Segment> {
        let place = self
            .mapped
            .get_mut(slot as usize)
            .ok_or_else(|| io::Error::other("the table has reached its greatest size"))?;
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
        place
            .insert(mapping)
            .first()
            .ok_or_else(|| io::Error::other("an empty mapping"))
    }

    /// Takes a slot's segment away, once no program can still read it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, slot: u32) -> io::Result<()> {
        sys::remove_map(&self.outer, slot)?;
        self.mapped[slot as usize] = None;
        Ok(())
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| map_error(name, "the object has no such map"))
}

fn mapping<T: super::mapping::Shared>(
    ebpf: &mut Ebpf,
    name: &'static str,
    count: usize,
) -> Result<Mapping<T>, LoadError> {
    let Map::Array(map) = take(ebpf, name)? else {
        return Err(map_error(name, "not an array"));
    };
    Mapping::new(map.fd(), count).map_err(|error| map_error(name, error))
}

fn map_error(
    name: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LoadError {
    LoadError::Map {
        name,
        source: io::Error::other(source),
    }
}

/// The cause of a chain of errors that an operator can act on.
fn refused(error: &(dyn std::error::Error + 'static)) -> LoadError {
    let mut message = error.to_string();
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.raw_os_error() == Some(libc::EPERM)
        {
            return LoadError::NotPermitted;
        }
        message = error.to_string();
        cause = error.source();
    }
    LoadError::Refused(message)
}
