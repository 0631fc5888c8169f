//! The two commands on arrays of maps that the library does not offer: both wait for running programs.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// `union bpf_attr` for commands on elements (`linux/bpf.h`).
#[repr(C)]
struct ElementCommand {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

fn element(command: libc::c_long, map: impl AsFd, key: u32, value: u32) -> io::Result<()> {
    let attributes = ElementCommand {
        map: map.as_fd().as_raw_fd() as u32,
        reserved: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: (&raw const value).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: the kernel reads as many bytes of the attributes as it is told of, and 4 each of key and value,
    // all of which live until it returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<ElementCommand>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Puts `inner` into slot `key` of an array of maps, then waits until every program that may still see the
/// slot's former map has ended.
pub(super) fn put_map(outer: impl AsFd, key: u32, inner: impl AsFd) -> io::Result<()> {
    element(
        BPF_MAP_UPDATE_ELEM,
        outer,
        key,
        inner.as_fd().as_raw_fd() as u32,
    )
}

/// Empties slot `key`, and waits as [`put_map`] does.
pub(super) fn remove_map(outer: impl AsFd, key: u32) -> io::Result<()> {
    element(BPF_MAP_DELETE_ELEM, outer, key, 0)
}
