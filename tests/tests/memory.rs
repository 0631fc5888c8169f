//! The table's memory in the kernel.

use anyhow::Result;
use peak_userspace::dataplane::{
    loader::{Kernel, LoadOptions},
    memory::{Memory, Region},
};

#[test]
fn segments_come_and_go_and_are_zeros_each_time() -> Result<()> {
    let Kernel { mut memory, .. } = Kernel::load(LoadOptions::default())?;
    for (region, slot) in [(Region::Index, 0), (Region::Heap, 4095)] {
        assert!(memory.segment(region, slot).is_none());
        assert!(memory.remove_segment(region, slot).is_err());
        for _ in 0..2 {
            memory.add_segment(region, slot)?;
            assert!(memory.add_segment(region, slot).is_err());
            let word = memory
                .segment(region, slot)
                .map(|segment| &segment.0[7])
                .expect("it was added");
            assert_eq!(word.load(), 0);
            word.store(7);
            memory.barrier()?;
            memory.remove_segment(region, slot)?;
            assert!(memory.segment(region, slot).is_none());
        }
    }
    assert!(memory.add_segment(Region::Heap, 4096).is_err());
    Ok(())
}
