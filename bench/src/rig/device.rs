//! What only the kernel's own calls can set.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use rustix::{
    net::{AddressFamily, SocketType, socket},
    process::Pid,
};

// From linux/ethtool.h.
const ETHTOOL_STSO: u32 = 0x1f;
const ETHTOOL_SGRO: u32 = 0x2c;

/// Turns GRO on and segmentation offload off, for an interface of the calling thread's namespace.
pub(super) fn set_offloads(interface: &str) -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    set(&socket, interface, ETHTOOL_SGRO, true).context("generic receive offload")?;
    set(&socket, interface, ETHTOOL_STSO, false).context("segmentation offload")
}

fn set(socket: &OwnedFd, interface: &str, command: u32, on: bool) -> io::Result<()> {
    /// `struct ethtool_value`
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command,
        data: on.into(),
    };
    // SAFETY: a structure of numbers and pointers, which may be null.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = request.ifr_name.iter_mut().zip(interface.bytes());
    for (to, from) in name {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request and what it points to are as this call wants them, and outlive it.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a thread the first real-time priority: it runs before every ordinary one, as soon as there is something to do.
pub(super) fn before_processes(thread: Pid) -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is read only.
    let set = unsafe {
        libc::sched_setscheduler(
            thread.as_raw_nonzero().get(),
            libc::SCHED_FIFO,
            &raw const priority,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()).context("real-time priority"),
    }
}
