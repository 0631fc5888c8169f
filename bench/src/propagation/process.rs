//! What a process has cost so far, as the kernel tells it.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{ArrayOfMaps, Map, MapData};

/// What stands in `/proc/PID/smaps` for the memory of a BPF map.
const MAPPED_MAP: &str = "anon_inode:bpf-map";
/// From linux/bpf.h.
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u64 = 12;

/// A process' memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident now, without what is mapped of BPF maps: that is the kernel's, and counted by [`kernel_memory`].
    pub(crate) resident: u64,
    /// The most that was ever resident, BPF maps included: the kernel does not tell what it was made of.
    pub(super) peak: u64,
}

impl Memory {
    /// # Errors
    /// The process has ended, or isn't ours to look at.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let status = read(process, "status")?;
        let (resident, peak) = (field(&status, "VmRSS:")?, field(&status, "VmHWM:")?);
        let maps = mapped_maps(&read(process, "smaps")?);
        Ok(Self {
            resident: (resident * 1024).saturating_sub(maps),
            peak: peak * 1024,
        })
    }
}

/// How much of BPF maps is resident in a process.
fn mapped_maps(smaps: &str) -> u64 {
    let mut is_map = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        // A mapping begins with its addresses, its fields with their names.
        match line.strip_prefix("Rss:") {
            Some(size) if is_map => bytes += kilobytes(size) * 1024,
            Some(_) => {}
            None if line.contains('-') && !line.contains(": ") => {
                is_map = line.ends_with(MAPPED_MAP)
            }
            None => {}
        }
    }
    bytes
}

/// How long all threads of a process, those that have ended among them, have been on a processor.
///
/// # Errors
/// The process has ended.
pub(super) fn processor_time(process: u32) -> Result<Duration> {
    let stat = read(process, "stat")?;
    // The program's name may hold anything, but stands in parentheses.
    let (_, fields) = stat.rsplit_once(')').context("a program's name")?;
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    let a_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs(ticks).div_f64(a_second as f64))
}

/// What the BPF maps take that a process has open, and those that are in these, in bytes: what the kernel has
/// allocated for them, slots of processors and of arrays of maps included.
///
/// # Errors
/// The process has ended, or we lack CAP_SYS_ADMIN.
pub(crate) fn kernel_memory(process: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    let folder = Path::new("/proc").join(process.to_string()).join("fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))? {
        // Descriptors come and go.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let (Ok(id), Ok(bytes)) = (field(&info, "map_id:"), field(&info, "memlock:")) else {
            continue;
        };
        maps.insert(id, bytes);
        if field(&info, "map_type:")? == BPF_MAP_TYPE_ARRAY_OF_MAPS {
            inner_maps(id, &mut maps)?;
        }
    }
    Ok(maps.values().sum())
}

/// Adds the maps of an array of maps, which the process itself needn't have open.
fn inner_maps(id: u64, maps: &mut BTreeMap<u64, u64>) -> Result<()> {
    let outer = MapData::from_id(u32::try_from(id)?)?;
    let outer: ArrayOfMaps<_, MapData> = Map::ArrayOfMaps(outer).try_into()?;
    for slot in 0..outer.len() {
        let Ok(inner) = outer.get(&slot, 0) else {
            // Empty.
            continue;
        };
        let descriptor = inner.fd().as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
        maps.insert(field(&info, "map_id:")?, field(&info, "memlock:")?);
    }
    Ok(())
}

fn read(process: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{process}/{file}");
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// The number after a name that a line begins with.
fn field(text: &str, name: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map(kilobytes)
        .with_context(|| format!("no {name}"))
}

/// A number before its unit.
fn kilobytes(text: &str) -> u64 {
    let number = text.split_whitespace().next();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_told_from_other_mappings() {
        let smaps = "\
7f0000000000-7f0000100000 rw-s 00000000 00:0f 1064 anon_inode:bpf-map
Size:               1024 kB
Rss:                1024 kB
VmFlags: rd wr sh mr
7f0000200000-7f0000300000 rw-p 00000000 00:00 0 
Rss:                  64 kB
VmFlags: rd wr
7f0000400000-7f0000401000 rw-s 00000000 00:0f 1064                       anon_inode:bpf-map
Rss:                   4 kB
";
        assert_eq!(mapped_maps(smaps), 1028 * 1024);
    }

    #[test]
    fn this_process_has_cost_something() -> Result<()> {
        let me = std::process::id();
        let memory = Memory::of(me)?;
        assert!(
            memory.resident > 0 && memory.peak >= memory.resident,
            "{memory:?}"
        );
        // Some ticks.
        let begin = std::time::Instant::now();
        while processor_time(me)?.is_zero() {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        Ok(())
    }
}
