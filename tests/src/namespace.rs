//! Network namespaces, and links between them.

use std::{
    env,
    fs::{self, File},
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsFd,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::{
        Mutex, Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use tempfile::TempDir;

use crate::Running;

/// Where `ip netns` keeps namespaces by name.
const NAMES: &str = "/run/netns";
/// Where `ip netns exec` looks for files to lay over `/etc`.
const OVERLAYS: &str = "/etc/netns";
/// What the names of all of ours begin with.
const PREFIX: &str = "peak-";

/// `ip netns` prepares its folder when it is first used: one at a time.
static IP_NETNS: Mutex<()> = Mutex::new(());

/// A network namespace that exists as long as this does.
///
/// Its name is `peak-PID-NUMBER-LABEL`, so that two processes never meet, and a name whose process has ended is known
/// to be nobody's.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace whose `lo` is up and whose addresses are usable at once (no duplicate address detection).
    ///
    /// # Errors
    /// Without root, or without iproute2.
    pub fn new(label: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", process::id());
        let added = {
            let _one = IP_NETNS.lock();
            run(Command::new("ip").args(["netns", "add", &name]))
        };
        added.context("cannot make a network namespace (needs root and iproute2)")?;
        let namespace = Self { name };
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it, with `arguments` separated by spaces: `namespace.ip("link set eth0 mtu 9000")`.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(arguments.split_whitespace()))
    }

    /// Gives an interface an address with its prefix length, such as `fd00::1/64`.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface} {nodad}"))
    }

    /// Sets a network parameter, such as `net/ipv6/conf/all/forwarding`.
    ///
    /// # Errors
    /// There is no such parameter, or it does not take the value.
    pub fn sysctl(&self, parameter: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(parameter);
        // /proc/sys/net shows the namespace of the thread that looks.
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {} to {value}", path.display()))
    }

    /// An interface's MAC address.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn mac(&self, interface: &str) -> Result<[u8; 6]> {
        let link = self.link(interface)?;
        let text = link["address"].as_str().unwrap_or_default();
        let bytes = text
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<Vec<_>, _>>();
        bytes
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .with_context(|| format!("{interface} has no MAC address but {text:?}"))
    }

    /// What `ip -json -details link show` tells of an interface.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn link(&self, interface: &str) -> Result<serde_json::Value> {
        let mut command = Command::new("ip");
        command.args([
            "-n", &self.name, "-json", "-details", "link", "show", "dev", interface,
        ]);
        let links: Vec<serde_json::Value> = serde_json::from_str(&output(&mut command)?)?;
        links
            .into_iter()
            .next()
            .with_context(|| format!("no interface {interface} in {}", self.name))
    }

    /// Runs `task` on a thread inside: sockets that it opens belong to this namespace, wherever they are used later,
    /// and so do the processes that it starts.
    ///
    /// # Panics
    /// With `task`'s own panic, and if the namespace can't be entered.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMES).join(&self.name);
        let inside = || {
            let namespace =
                File::open(&path).expect("a namespace has a file while its guard lives");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a namespace");
            task()
        };
        let outcome = thread::scope(|scope| scope.spawn(inside).join());
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Starts a process inside. It sees the host's files as they are.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Running> {
        self.run(|| Running::start(command))
    }

    /// A command that runs inside with [`Self::etc`]'s files laid over `/etc`, and a `/sys` of its own.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name])
            .arg(program.as_ref());
        command
    }

    /// Lays a file over the one of that name in `/etc`, for [`Self::command`].
    ///
    /// # Errors
    /// The file can't be written.
    pub fn etc(&self, file: &str, contents: &str) -> Result<()> {
        let path = self.overlay().join(file);
        fs::create_dir_all(self.overlay())
            .and_then(|()| fs::write(&path, contents))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// A port of `address` that neither UDP nor TCP uses now.
    ///
    /// # Errors
    /// The address isn't one of this namespace's.
    pub fn free_port(&self, address: IpAddr) -> Result<u16> {
        self.run(|| {
            loop {
                let tcp = TcpListener::bind(SocketAddr::new(address, 0))
                    .with_context(|| format!("cannot listen on {address}"))?;
                let port = tcp.local_addr()?.port();
                match UdpSocket::bind((address, port)) {
                    Ok(_) => return Ok(port),
                    Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }

    fn overlay(&self) -> PathBuf {
        Path::new(OVERLAYS).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Joins two namespaces by a veth pair, whose ends are named and up.
///
/// # Errors
/// An end's name is taken.
pub fn join(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    run(Command::new("ip")
        .args([
            "link",
            "add",
            "name",
            a.1,
            "netns",
            a.0.name(),
            "type",
            "veth",
        ])
        .args(["peer", "name", b.1, "netns", b.0.name()]))?;
    for (namespace, interface) in [a, b] {
        namespace.ip(&format!("link set {interface} up"))?;
    }
    Ok(())
}

/// Ends what still runs inside and takes the namespace's name away. Its links go with its last user.
fn remove(name: &str) {
    let _one = IP_NETNS.lock();
    let pids = output(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in pids
        .lines()
        .filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?))
    {
        if pid.as_raw_nonzero().get().unsigned_abs() != process::id() {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    // Somebody may have taken it away by hand, and most namespaces have no overlay.
    let _ = run(Command::new("ip").args(["netns", "delete", name]));
    let _ = fs::remove_dir_all(Path::new(OVERLAYS).join(name));
    // Ours only if it is empty.
    let _ = fs::remove_dir(OVERLAYS);
}

/// A client and a node with an `eth0` each, joined, with addresses of both families.
pub struct Net {
    /// fd00:10:1::2 and 10.1.0.2.
    pub client: Namespace,
    /// [`Net::SERVERS`].
    pub node: Namespace,
}

impl Net {
    /// The node's addresses.
    pub const SERVERS: [&str; 2] = ["fd00:10:1::1", "10.1.0.1"];

    /// Makes both.
    ///
    /// # Errors
    /// As [`Namespace::new`] and [`join`].
    pub fn new() -> Result<Self> {
        let (client, node) = (Namespace::new("client")?, Namespace::new("node")?);
        join((&client, "eth0"), (&node, "eth0"))?;
        for (namespace, host) in [(&client, 2), (&node, 1)] {
            namespace.address("eth0", &format!("fd00:10:1::{host}/64"))?;
            namespace.address("eth0", &format!("10.1.0.{host}/24"))?;
        }
        Ok(Self { client, node })
    }
}

/// A folder that goes with its guard, or with the sweep after a killed process.
///
/// # Errors
/// There is no room for temporary files.
pub fn scratch() -> Result<TempDir> {
    sweep();
    TempDir::with_prefix(format!("{PREFIX}{}-", process::id()))
        .context("cannot make a temporary folder")
}

/// Removes, once a process, what processes that were killed have left: namespaces, files for them, folders.
fn sweep() {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(remove_stale);
}

fn remove_stale() {
    let listed = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    // A predecessor with this process's number is rare, and left to the next sweep.
    let stale = |name: &String| {
        owner(name).is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists())
    };
    for name in listed(Path::new(NAMES))
        .iter()
        .chain(&listed(Path::new(OVERLAYS)))
        .filter(|name| stale(name))
    {
        remove(name);
    }
    let temporary = env::temp_dir();
    for name in listed(&temporary).iter().filter(|name| stale(name)) {
        // Another sweep may be at it.
        let _ = fs::remove_dir_all(temporary.join(name));
    }
}

/// The process whose namespace has this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn run(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn owner_is_read_from_the_name() {
        assert_eq!(owner("peak-4711-0-client"), Some(4711));
        assert_eq!(owner("peak-client"), None);
        assert_eq!(owner("other-4711-0"), None);
    }
}
