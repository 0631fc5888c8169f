//! Spares BPF_PROG_TEST_RUN what it does around its runs.
//!
//! The kernel calls XDP programs by way of a trampoline that knows them ("dispatcher", kernel/bpf/dispatcher.c), and
//! BPF_PROG_TEST_RUN writes the program into it before the runs and takes it out after them: two RCU grace periods, tens of
//! milliseconds, for a millisecond of runs. A program that is attached somewhere in native mode is in it already.

use std::io;

use anyhow::{Context, Result};
use aya::programs::{Xdp, XdpMode};
use peak_tests::Namespace;

/// How many programs there is room for: two benches' worth of them. The trampoline itself has 48 places.
const PROGRAMS: usize = 24;

/// Interfaces to attach programs to: they are down, so that no packet ever comes.
pub(crate) struct Trampoline {
    namespace: Namespace,
    interfaces: Vec<u32>,
}

impl Trampoline {
    /// # Errors
    /// Without root, or iproute2.
    pub(crate) fn new() -> Result<Self> {
        let namespace = Namespace::new("bench")?;
        let mut interfaces = Vec::new();
        for pair in 0..PROGRAMS / 2 {
            let ends = [format!("a{pair}"), format!("b{pair}")];
            let [a, b] = &ends;
            namespace.ip(&format!("link add {a} type veth peer name {b}"))?;
            for end in ends {
                let index = namespace.link(&end)?["ifindex"].as_u64();
                interfaces.push(u32::try_from(index.context("an interface has an index")?)?);
            }
        }
        Ok(Self {
            namespace,
            interfaces,
        })
    }

    /// Attaches a program to an interface that has none, for as long as the program is loaded.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub(crate) fn hold(&self, program: &mut Xdp) -> Result<()> {
        self.namespace.run(|| {
            for &interface in &self.interfaces {
                match program.attach(interface, XdpMode::Driver) {
                    Ok(_) => return Ok(()),
                    Err(error) if is_busy(&error) => {}
                    Err(error) => return Err(error).context("cannot attach a program to a veth"),
                }
            }
            anyhow::bail!("more than {PROGRAMS} programs are to be run")
        })
    }
}

/// Whether another program is attached there.
fn is_busy(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error() == Some(libc::EBUSY);
        }
        cause = error.source();
    }
    false
}
