//! The maps, laid out in [`peak_common::abi`].

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_RDONLY_PROG},
    btf_maps::{Array, ArrayOfMaps, PerCpuArray},
    macros::btf_map,
};
use peak_common::{
    abi::{
        Control, Counters, HEAP_SEGMENTS, INDEX_SLOTS, Interface, MAX_INTERFACES, SERVED_SLOTS,
        Segment, Served,
    },
    table::Tables,
    verdict::Verdict,
};

/// The agent writes through `mmap`, without a system call; the program only reads.
const MMAPABLE: usize = (BPF_F_MMAPABLE | BPF_F_RDONLY_PROG) as usize;

#[btf_map]
static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
#[btf_map]
static INDEX: ArrayOfMaps<Array<Segment, 1, MMAPABLE>, { INDEX_SLOTS as usize }> =
    ArrayOfMaps::new();
#[btf_map]
static HEAP: ArrayOfMaps<Array<Segment, 1, MMAPABLE>, { HEAP_SEGMENTS as usize }> =
    ArrayOfMaps::new();
#[btf_map]
static INTERFACES: Array<Interface, { MAX_INTERFACES as usize }, MMAPABLE> = Array::new();
#[btf_map]
static SERVED: Array<Served, { SERVED_SLOTS as usize }, MMAPABLE> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, { MAX_INTERFACES as usize }> = PerCpuArray::new();

/// The program's maps as [`Tables`].
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }
    #[inline(always)]
    fn index_segment(&self, slot: u32) -> Option<&Segment> {
        INDEX.get_value(slot, &0)
    }
    #[inline(always)]
    fn heap_segment(&self, slot: u32) -> Option<&Segment> {
        HEAP.get_value(slot, &0)
    }
    #[inline(always)]
    fn served(&self, slot: u32) -> Option<&Served> {
        SERVED.get(slot)
    }
}

/// A slot of the interfaces.
#[inline(always)]
pub(crate) fn interface(slot: u32) -> Option<&'static Interface> {
    INTERFACES.get(slot)
}

/// Counts a verdict in an interface's row.
#[inline(always)]
pub(crate) fn count(row: u32, verdict: Verdict) {
    let Some(counters) = COUNTERS.get_ptr_mut(row) else {
        return;
    };
    // SAFETY: the pointer is to this processor's counters, which nothing else writes while the
    // program runs: it is not preempted by another XDP program on the same processor.
    let counters = unsafe { &mut *counters };
    if let Some(counter) = counters.get_mut(verdict.index()) {
        *counter += 1;
    }
}
