//! The maps, laid out in [`peak_common::abi`].

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, PerCpuArray},
    macros::btf_map,
};
use peak_common::{
    abi::{
        Control, Counters, HEAP_SEGMENTS, INDEX_SLOTS, Interface, MAX_INTERFACES, SERVED_SLOTS,
        Segment, Served,
    },
    respond::Scratch,
    table::Tables,
};

/// The agent writes through `mmap`, without a system call. (The kernel lets nobody map what is declared read-only for
/// programs, though they only read here.)
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

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

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// What the stages leave to one another on this processor.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: bytes of this processor's own, which nothing else touches while the program runs: it is not
    // preempted by another XDP program on the same processor (the agent refuses kernels where it is, those with
    // PREEMPT_RT). Each function asks once.
    Some(unsafe { &mut *scratch })
}

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

/// Counts the verdict of an index in an interface's row.
#[inline(always)]
pub(crate) fn count(row: u32, verdict: usize) {
    let Some(counters) = COUNTERS.get_ptr_mut(row) else {
        return;
    };
    // SAFETY: the pointer is to this processor's counters, which nothing else writes while the
    // program runs, as above.
    let counters = unsafe { &mut *counters };
    if let Some(counter) = counters.get_mut(verdict) {
        *counter += 1;
    }
}
