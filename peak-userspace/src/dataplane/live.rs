//! The kernel's side of a running agent.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use aya_log::EbpfLogger;
use peak_common::abi::Control;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

use super::{
    NodeRecord,
    attach::{AttachError, Attachments, InterfaceFigures, Mode},
    compile::Table,
    kernel::{GracePeriods, KernelMemory},
    loader::{Kernel, LoadOptions, Words},
    memory::Memory,
    table::{Stats, Writer},
};
use crate::{
    config::XdpMode,
    interfaces::{Interface, Place},
    name::Name,
    snapshot::{Change, Snapshot, Zone},
};

/// How long after a failed wait for running programs the next is tried.
const RETRY: Duration = Duration::from_secs(1);

/// The program, its table, and a thread that makes room in it.
pub struct Dataplane {
    table: Mutex<Table<KernelMemory>>,
    attachments: Mutex<Attachments>,
    /// Tells the thread that something was changed.
    changed: SyncSender<()>,
}

impl Dataplane {
    /// Loads the program with an empty table. It is attached to nothing yet. What it logs, of one packet in
    /// `log_one_in` among others, is told in a task.
    ///
    /// # Errors
    /// The kernel refuses, or the zones don't fit.
    pub fn load(zones: &[Zone], recursion_available: bool, log_one_in: u32) -> Result<Arc<Self>> {
        let Kernel {
            memory,
            mut program,
        } = Kernel::load(LoadOptions {
            log_one_in,
            ..LoadOptions::default()
        })?;
        // SAFETY: the logger owns its descriptor, and neither closes nor replaces it while it lives.
        let log = unsafe { AsyncFd::register_with_interest(program.log()?, Interest::READABLE) }
            .context("can't read what the kernel program logs")?;
        tokio::spawn(tell(log));
        let grace = memory.grace_periods();
        let writer = Writer::create(memory).context("can't make the kernel's table")?;
        let mut table =
            Table::new(writer, zones).context("the kernel can't answer for the zones")?;
        table.set_recursion_available(recursion_available);
        let (changed, changes) = sync_channel(1);
        let dataplane = Arc::new(Self {
            table: Mutex::new(table),
            attachments: Mutex::new(Attachments::new(program, Arc::clone(&grace))),
            changed,
        });
        let weak = Arc::downgrade(&dataplane);
        thread::Builder::new()
            .name("reclaim".into())
            .spawn(move || reclaim(&weak, &grace, &changes))
            .context("can't start a thread")?;
        Ok(dataplane)
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&self, interface: &Interface, mode: XdpMode) -> Result<Mode, AttachError> {
        lock(&self.attachments).attach(interface, mode)
    }

    /// Follows what became of the interfaces: attaches the program to those that are back, and serves these places
    /// and no others.
    pub fn follow(&self, interfaces: &[Interface], places: &[Place], mode: XdpMode) {
        let mut attachments = lock(&self.attachments);
        attachments.update(interfaces);
        for interface in interfaces {
            if !attachments.has(interface.index)
                && let Err(error) = attachments.attach(interface, mode)
            {
                warn!("{error}: the fallback answers there");
            }
        }
        attachments.serve(places);
    }

    /// Brings the table to this snapshot.
    pub fn apply(&self, snapshot: &Snapshot, changes: &[Change]) {
        let mut table = lock(&self.table);
        if table.writer().memory().control().flags.load() & Control::COMPLETE == 0 {
            table.sync(snapshot);
        } else {
            table.apply(snapshot, changes);
        }
        drop(table);
        // A full channel is one that will be looked into.
        let _ = self.changed.try_send(());
    }

    /// The operator's switch: whether the kernel answers at all.
    pub fn set_enabled(&self, enabled: bool) {
        lock(&self.table).set_enabled(enabled);
    }

    /// Whether the kernel answers, as far as the operator is concerned.
    #[must_use]
    pub fn enabled(&self) -> bool {
        let table = lock(&self.table);
        table.writer().memory().control().flags.load() & Control::ENABLED != 0
    }

    /// What the kernel holds of a name.
    #[must_use]
    pub fn lookup(&self, name: &Name) -> Option<NodeRecord> {
        lock(&self.table).lookup(name)
    }

    /// The table's figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        lock(&self.table).stats()
    }

    /// What the program counted, interface by interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn figures(&self) -> io::Result<Vec<InterfaceFigures>> {
        lock(&self.attachments).figures()
    }

    /// Detaches the program everywhere.
    pub fn detach(&self) {
        lock(&self.attachments).detach();
    }
}

/// Hands what the program logs to the agent's log: packets that are sampled, half-written replies that it had to drop.
async fn tell(mut log: AsyncFd<EbpfLogger<Words>>) {
    while let Ok(mut ready) = log.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

/// Frees what nobody reads any more, until the dataplane is gone.
fn reclaim(dataplane: &Weak<Dataplane>, grace: &GracePeriods, changes: &Receiver<()>) {
    let quarantined = || lock(&dataplane.upgrade()?.table).take_quarantine();
    while changes.recv().is_ok() {
        while let Some(batch) = quarantined() {
            while let Err(error) = grace.wait() {
                warn!(%error, "can't wait for running programs, so no room in the table is freed");
                thread::sleep(RETRY);
            }
            if let Some(dataplane) = dataplane.upgrade() {
                lock(&dataplane.table).release(batch);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
