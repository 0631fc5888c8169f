//! A client and a node, joined by a veth pair that is the same for every server.
//!
//! Each end is polled by a kernel thread of its own (threaded NAPI): on processor 0 the client's end and who asks, on
//! processor 1 the node's end and the server. So what a server has the kernel do for it is on the account of a thread, to the
//! nanosecond, where the time of softirqs is sampled by ticks.
//!
//! - An end has a NAPI instance because GRO is on. An XDP program would bring one, too, but only Peak and Knot's AF_XDP have
//!   one, and the others need not pay for a frame's copy into a buffer with headroom.
//! - Segmentation offload is off at both ends. With it, a veth hands a socket's datagrams to the other end past NAPI, in the
//!   sender's own softirq; an XDP program there turns it off, and without one the server's work would be the sender's.
//! - The threads are of the first real-time priority, which is what softirqs are to processes: a frame that arrives goes
//!   before the program that will read it. Otherwise a server that is busy for a time slice would lose whatever exceeds the
//!   256 frames that a veth end holds.
//! - The client's end has a program that passes everything: without one a veth drops what the other end sends by XDP_TX.
//! - Neighbours are permanent: nobody asks for MAC addresses while somebody measures.

mod account;
mod device;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use peak_tests::{Namespace, PassProgram, eventually, pass};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_setaffinity},
};

pub(crate) use self::account::Spent;

/// The processor of the client's end and of who asks.
pub(crate) const CLIENT_CPU: usize = 0;
/// The processor of the node's end and of the server.
pub(crate) const SERVER_CPU: usize = 1;

/// How long a kernel thread may take to appear.
const THREAD_START: Duration = Duration::from_secs(5);

/// One end of the pair.
pub(crate) struct End {
    /// Where it is.
    pub(crate) namespace: Namespace,
    /// The interface's name: no other on this machine has it, because kernel threads are found by it.
    pub(crate) interface: String,
    /// Its index in its namespace.
    pub(crate) index: u32,
    /// Its MAC address.
    pub(crate) mac: [u8; 6],
    /// Its addresses.
    pub(crate) v6: Ipv6Addr,
    /// Its addresses.
    pub(crate) v4: Ipv4Addr,
    processor: usize,
}

/// Client and node. Everything goes when this is dropped.
pub(crate) struct Rig {
    /// Who asks.
    pub(crate) client: End,
    /// Where the server is, alone: each process in this namespace is on its account.
    pub(crate) node: End,
    pass: Mutex<Option<PassProgram>>,
}

impl Rig {
    /// # Errors
    /// Without root, iproute2, or two processors; or the kernel has no threaded NAPI (5.12).
    pub(crate) fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let processors = thread::available_parallelism().map_or(1, Into::into);
        ensure!(
            processors > SERVER_CPU,
            "a client and a server need a processor each, and there is {processors}"
        );
        let unique = format!(
            "{}x{}",
            process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let (client, node) = (Namespace::new("client")?, Namespace::new("node")?);
        let names = [format!("c{unique}"), format!("n{unique}")];
        let queues = "numtxqueues 1 numrxqueues 1";
        client.ip(&format!(
            "link add {} {queues} type veth peer name {} netns {} {queues}",
            names[0],
            names[1],
            node.name()
        ))?;
        let [client_name, node_name] = names;
        let client = End::new(client, client_name, 2, CLIENT_CPU)?;
        let node = End::new(node, node_name, 1, SERVER_CPU)?;
        client.knows(&node)?;
        node.knows(&client)?;
        let pass = pass(&client.namespace, &client.interface)?;
        for end in [&client, &node] {
            end.poll_by_thread()?;
        }
        Ok(Self {
            client,
            node,
            pass: Mutex::new(Some(pass)),
        })
    }

    /// Runs `task` on a thread of the server's processor. Processes and threads that it starts stay there.
    ///
    /// # Errors
    /// The processor is not ours to use.
    pub(crate) fn on_server_cpu<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        on_processor(SERVER_CPU, task)
    }

    /// Runs `task` on a thread of the client's processor that is in the client's namespace: so are the sockets that it opens,
    /// and the processes that it starts.
    ///
    /// # Errors
    /// The processor is not ours to use.
    pub(crate) fn as_client<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        on_processor(CLIENT_CPU, || self.client.namespace.run(task))
    }

    /// Takes the program off the client's end, so that another can take its place until [`Self::with_pass`].
    pub(crate) fn without_pass(&self) {
        *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Puts it back.
    ///
    /// # Errors
    /// There is another one.
    pub(crate) fn with_pass(&self) -> Result<()> {
        let pass = pass(&self.client.namespace, &self.client.interface)?;
        *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = Some(pass);
        Ok(())
    }

    /// What the server spends on a task of the client's, and what passes it meanwhile.
    ///
    /// # Errors
    /// The task's own; an end has no thread that polls it; the interface has gone.
    pub(crate) fn measure<T>(&self, task: impl FnOnce() -> Result<T>) -> Result<(T, Spent)> {
        self.client.pin()?;
        self.node.pin()?;
        let before = Spent::so_far(&self.node)?;
        let outcome = task()?;
        Ok((outcome, Spent::so_far(&self.node)? - before))
    }
}

impl End {
    fn new(namespace: Namespace, interface: String, host: u16, processor: usize) -> Result<Self> {
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 1, 0, 0, 0, 0, host);
        let v4 = Ipv4Addr::new(10, 1, 0, host as u8);
        namespace.address(&interface, &format!("{v6}/64"))?;
        namespace.address(&interface, &format!("{v4}/24"))?;
        namespace.ip(&format!("link set {interface} up"))?;
        namespace
            .run(|| device::set_offloads(&interface))
            .with_context(|| format!("cannot set the offloads of {interface}"))?;
        let index = namespace.link(&interface)?["ifindex"]
            .as_u64()
            .and_then(|index| u32::try_from(index).ok())
            .context("an interface has an index")?;
        let mac = namespace.mac(&interface)?;
        Ok(Self {
            namespace,
            interface,
            index,
            mac,
            v6,
            v4,
            processor,
        })
    }

    /// Tells this end the other's MAC address for good.
    fn knows(&self, other: &Self) -> Result<()> {
        let mac = other.mac.map(|byte| format!("{byte:02x}")).join(":");
        for address in [IpAddr::from(other.v6), other.v4.into()] {
            self.namespace.ip(&format!(
                "neighbour replace {address} lladdr {mac} dev {} nud permanent",
                self.interface
            ))?;
        }
        Ok(())
    }

    /// Has a kernel thread poll this end.
    fn poll_by_thread(&self) -> Result<()> {
        // Its /sys is another one.
        let mut command = self.namespace.command("sh");
        let file = format!("/sys/class/net/{}/threaded", self.interface);
        let output = command
            .args(["-c", "echo 1 > \"$1\"", "sh", &file])
            .output()
            .context("cannot start ip")?;
        ensure!(
            output.status.success(),
            "cannot have a thread poll {} ({file}): {}",
            self.interface,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        self.pin()
    }

    /// Makes sure that the thread which polls is on its processor: attaching a program may have made it anew.
    fn pin(&self) -> Result<()> {
        let thread = self.thread()?;
        pin(thread, self.processor)
            .and_then(|()| device::before_processes(thread))
            .with_context(|| format!("cannot place the thread that polls {}", self.interface))
    }

    /// The kernel thread that polls this end.
    fn thread(&self) -> Result<Pid> {
        let prefix = format!("napi/{}-", self.interface);
        let what = format!("a kernel thread {prefix}*");
        eventually(&what, THREAD_START, || {
            let mut found = Vec::new();
            for entry in fs::read_dir("/proc")? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                // Processes come and go.
                let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                if comm.starts_with(&prefix) {
                    found.extend(Pid::from_raw(pid));
                }
            }
            match found[..] {
                [] => Ok(None),
                [thread] => Ok(Some(thread)),
                _ => bail!("{} threads {prefix}*: one queue has one", found.len()),
            }
        })
    }
}

/// Runs `task` on a thread of one processor, as are all threads and processes that it starts.
fn on_processor<T: Send>(processor: usize, task: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let pinned = scope.spawn(|| -> Result<T> {
            let mut set = CpuSet::new();
            set.set(processor);
            sched_setaffinity(None, &set)
                .with_context(|| format!("cannot run on processor {processor}"))?;
            Ok(task())
        });
        match pinned.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn pin(thread: Pid, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(Some(thread), &set)
        .with_context(|| format!("no thread {thread:?} on processor {processor}"))
}
