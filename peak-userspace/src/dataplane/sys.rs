//! Commands on arrays of maps that the library does not offer. Those that change one wait for running programs.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    ptr,
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

/// `union bpf_attr` for the creation of a map, as far as it is used here.
#[repr(C)]
struct CreateCommand {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// Without a value there must be no pointer to one: the kernel wants zeros in what a command does not take.
fn element(command: libc::c_long, map: impl AsFd, key: u32, value: Option<u32>) -> io::Result<()> {
    let attributes = ElementCommand {
        map: map.as_fd().as_raw_fd() as u32,
        reserved: 0,
        key: (&raw const key).expose_provenance() as u64,
        value: value
            .as_ref()
            .map_or(0, |value| ptr::from_ref(value).expose_provenance() as u64),
        flags: 0,
    };
    // SAFETY: the kernel reads as many bytes of the attributes as it is told of, and 4 each of key and value (if any),
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
        Some(inner.as_fd().as_raw_fd() as u32),
    )
}

/// Empties slot `key`, and waits as [`put_map`] does.
pub(super) fn remove_map(outer: impl AsFd, key: u32) -> io::Result<()> {
    element(BPF_MAP_DELETE_ELEM, outer, key, None)
}

/// Makes an array of one 4-byte value, or of one map like `inner`.
pub(super) fn create_array(inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let attributes = CreateCommand {
        kind: inner.map_or(BPF_MAP_TYPE_ARRAY, |_| BPF_MAP_TYPE_ARRAY_OF_MAPS),
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner_map: inner.map_or(0, |inner| inner.as_raw_fd() as u32),
    };
    // SAFETY: the kernel reads as many bytes of the attributes as it is told of, and takes the rest for zeros.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            &raw const attributes,
            size_of::<CreateCommand>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the command's result is a new descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
