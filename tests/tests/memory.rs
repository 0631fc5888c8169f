//! The table's memory in the kernel.

use std::{
    os::fd::{AsFd, AsRawFd},
    thread,
};

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use peak_tests::XdpProgram;
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

/// Calls of a helper that a program makes to take its time: a millisecond or two.
const TURNS: u32 = 50_000;

/// A program that says when it begins, in the first word of the only value of `map`, and when it ends, in the second.
fn long_program(map: &MapData) -> Result<XdpProgram> {
    /// One instruction as linux/bpf.h lays it out on a little-endian machine.
    const fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
        code as u64
            | (registers as u64) << 8
            | (offset.cast_unsigned() as u64) << 16
            | (immediate as u64) << 32
    }
    Ok(XdpProgram::load(&[
        // r6 = the value's address (BPF_PSEUDO_MAP_VALUE), which takes two.
        instruction(0x18, 0x26, 0, map.fd().as_fd().as_raw_fd().cast_unsigned()),
        0,
        // r6[0] = 1; r7 = 0
        instruction(0x7a, 6, 0, 1),
        instruction(0xb7, 7, 0, 0),
        // do { bpf_ktime_get_ns(); r7 += 1 } while (r7 != TURNS)
        instruction(0x85, 0, 0, 5),
        instruction(0x07, 7, 0, 1),
        instruction(0x55, 7, -3, TURNS),
        // r6[1] = 1; return XDP_PASS
        instruction(0x7a, 6, 8, 1),
        instruction(0xb7, 0, 0, 2),
        instruction(0x95, 0, 0, 0),
    ])?)
}

#[test]
fn a_grace_period_lasts_until_running_programs_have_ended() -> Result<()> {
    let Kernel { mut memory, .. } = Kernel::load(LoadOptions::default())?;
    let map = aya_obj::Map::new_from_params(
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        size_of::<u32>() as u32,
        size_of::<[u64; 2]>() as u32,
        1,
        0,
    );
    let map = MapData::create(map, "peak_long", None)?;
    let program = long_program(&map)?;
    let mut words = Array::<_, [u64; 2]>::try_from(Map::from_map_data(map)?)?;
    for round in 0..20 {
        words.set(0, &[0; 2], 0)?;
        let ended = thread::scope(|scope| -> Result<_> {
            let running = scope.spawn(|| program.run());
            while words.get(&0, 0)?[0] == 0 && !running.is_finished() {}
            memory.barrier()?;
            let [begun, ended] = words.get(&0, 0)?;
            running.join().expect("it runs in the kernel")?;
            assert_eq!(begun, 1);
            Ok(ended)
        })?;
        assert_eq!(ended, 1, "the program was running still, in round {round}");
    }
    Ok(())
}
