//! The smallest XDP program, for the other end of a veth pair, and others as small.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};

use crate::Namespace;

// From linux/bpf.h.
const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_TEST_RUN: c_long = 10;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Without it, an interface with a jumbo MTU takes no program.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// From linux/if_link.h: run in the driver, or not at all.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`, each instruction as the kernel lays it out on a little-endian machine.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// A program that lets everything pass. It is detached when this is dropped.
#[derive(Debug)]
pub struct PassProgram {
    _link: OwnedFd,
}

/// Attaches a program that lets everything pass, in native mode.
///
/// A veth end drops what its peer sends by XDP_TX unless it runs an XDP program itself: with one, it polls (NAPI).
///
/// # Errors
/// The interface isn't there or has a program already; without CAP_BPF and CAP_NET_ADMIN.
pub fn pass(namespace: &Namespace, interface: &str) -> Result<PassProgram> {
    let index = namespace.link(interface)?["ifindex"]
        .as_u64()
        .and_then(|index| u32::try_from(index).ok())
        .context("an interface has an index")?;
    let program = XdpProgram::load(&PASS).context("cannot load an XDP program")?;
    // The index is looked up in the namespace of the thread that attaches.
    let link = namespace
        .run(|| attach(&program.0, index))
        .with_context(|| {
            format!(
                "cannot attach an XDP program to {interface} of {}",
                namespace.name()
            )
        })?;
    Ok(PassProgram { _link: link })
}

/// An XDP program, unloaded when dropped.
#[derive(Debug)]
pub struct XdpProgram(OwnedFd);

impl XdpProgram {
    /// Loads a program.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(instructions: &[u64]) -> io::Result<Self> {
        /// The first fields of `union bpf_attr` for this command; the kernel takes the rest as zero.
        #[repr(C)]
        struct Load {
            program_type: u32,
            instruction_count: u32,
            instructions: u64,
            licence: u64,
            log: [u64; 2],
            kernel_version: u32,
            flags: u32,
        }
        let attributes = Load {
            program_type: BPF_PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            licence: c"MIT".as_ptr() as u64,
            log: [0; 2],
            kernel_version: 0,
            flags: BPF_F_XDP_HAS_FRAGS,
        };
        // SAFETY: both pointers are good while this lasts; the command reads the attributes and gives a new descriptor.
        unsafe { bpf(BPF_PROG_LOAD, &attributes) }.map(Self)
    }

    /// Runs it once, on a frame of zeros.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&self) -> io::Result<()> {
        /// The fields of `union bpf_attr` for this command up to the last that it writes.
        #[repr(C)]
        struct TestRun {
            program: u32,
            result: u32,
            frame_length: u32,
            reply_length: u32,
            frame: u64,
            reply: u64,
            repeat: u32,
            duration: u32,
        }
        const FRAME: [u8; 64] = [0; 64];
        let mut attributes = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            result: 0,
            frame_length: FRAME.len() as u32,
            reply_length: 0,
            frame: FRAME.as_ptr() as u64,
            reply: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: the frame is that long, no reply is asked for, and the command writes to these attributes alone.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attributes,
                size_of::<TestRun>(),
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn attach(program: &OwnedFd, interface: u32) -> io::Result<OwnedFd> {
    /// The first fields of `union bpf_attr` for this command.
    #[repr(C)]
    struct LinkCreate {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
    }
    let attributes = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        interface,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: no pointers; the command reads the attributes and gives a new descriptor.
    unsafe { bpf(BPF_LINK_CREATE, &attributes) }
}

/// The system call, for commands that give a descriptor.
///
/// # Safety
/// `attributes` is laid out as `union bpf_attr` for `command`, its pointers are valid, and the command's result is a new
/// file descriptor.
unsafe fn bpf<T>(command: c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at `attributes`; the caller vouches for what they mean.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match i32::try_from(result) {
        // SAFETY: the caller says that the result is a descriptor, and nobody else has it.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
