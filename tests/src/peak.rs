//! The agent under test.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    io::{BufReader, Seek},
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::{ControlPlane, Namespace, Running, eventually, program, scratch};

/// A user and a group without anything of their own.
const NOBODY: u32 = 65534;

/// Makes of a mount namespace what a pod has in it, and of itself what stands behind it. `/var/run` is emptied, because a
/// folder that is mounted to has to be made.
const IN_POD: &str = r#"set -e
mount -t tmpfs tmpfs /var/run
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
export KUBERNETES_SERVICE_HOST="$2" KUBERNETES_SERVICE_PORT="$3"
shift 3
exec "$@"
"#;

/// How long an agent may take from its start until it is ready.
const START: Duration = Duration::from_secs(20);

/// How long an agent may take to tell of itself.
const ADMIN: Duration = Duration::from_secs(5);

/// A running agent, killed when dropped.
#[derive(Debug)]
pub struct Peak {
    process: Running,
    program: PathBuf,
    socket: PathBuf,
    _folder: TempDir,
}

impl Peak {
    /// Starts `peak run` with `arguments` in `namespace`, with an admin socket of its own, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or isn't ready in time: with what it said.
    pub fn start<A: AsRef<OsStr>>(
        namespace: &Namespace,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let mut peak = Self::launch(namespace, arguments)?;
        peak.ready()?;
        Ok(peak)
    }

    /// As [`Self::start`], with the manifests of a folder, on `eth0` in an XDP mode; `more` are further arguments.
    ///
    /// # Errors
    /// It ends, or isn't ready in time: with what it said.
    pub fn on_eth0(
        namespace: &Namespace,
        manifests: impl AsRef<Path>,
        xdp: &str,
        more: &[&str],
    ) -> Result<Self> {
        let manifests = manifests.as_ref().as_os_str();
        let common = ["--interface", "eth0", "--xdp", xdp, "--manifests"];
        let common = common.iter().map(OsStr::new).chain([manifests]);
        Self::start(namespace, common.chain(more.iter().map(OsStr::new)))
    }

    /// As [`Self::start`], with a cluster's objects as its administrator sees them, on `eth0`; `more` are further arguments.
    ///
    /// # Errors
    /// It ends, or isn't ready in time: with what it said.
    pub fn of_cluster(namespace: &Namespace, plane: &ControlPlane, more: &[&str]) -> Result<Self> {
        let kubeconfig = plane.kubeconfig();
        let common = ["--interface", "eth0", "--kubeconfig"].map(OsStr::new);
        let common = common.into_iter().chain([kubeconfig.as_os_str()]);
        Self::start(namespace, common.chain(more.iter().map(OsStr::new)))
    }

    /// Starts `peak run` as [`Self::start`] does, without waiting.
    ///
    /// # Errors
    /// It can't be started.
    pub fn launch<A: AsRef<OsStr>>(
        namespace: &Namespace,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let folder = scratch()?;
        let program = program("peak")?;
        let command = Command::new(&program);
        Self::launch_with(namespace, command, program, folder, arguments)
    }

    /// Starts `peak run` as a pod does that has a service account: with these files where a kubelet would mount them, and the
    /// API server in the environment. Nobody else sees either.
    ///
    /// # Errors
    /// It can't be started.
    pub fn launch_in_pod(
        namespace: &Namespace,
        service_account: &Path,
        api_server: SocketAddr,
        arguments: &[&str],
    ) -> Result<Self> {
        let program = program("peak")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", IN_POD, "sh"]);
        command.arg(service_account);
        command.args([api_server.ip().to_string(), api_server.port().to_string()]);
        command.arg(&program);
        Self::launch_with(namespace, command, program, scratch()?, arguments)
    }

    /// Starts `peak run` as an ordinary user who has these capabilities (`CAP_BPF`, …) and can't get others, and waits
    /// until it is ready.
    ///
    /// # Errors
    /// It ends, or isn't ready in time: with what it said. Without `setpriv`.
    pub fn start_confined<A: AsRef<OsStr>>(
        namespace: &Namespace,
        capabilities: &[&str],
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        // The program is copied, because a checkout may be where only its owner can go.
        let folder = scratch()?;
        let program = folder.path().join("peak");
        fs::copy(self::program("peak")?, &program)?;
        give_away(folder.path())?;
        let set = capabilities
            .iter()
            .fold("-all".to_owned(), |set, capability| {
                set + ",+" + &capability.trim_start_matches("CAP_").to_ascii_lowercase()
            });
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={NOBODY}"))
            .arg(format!("--regid={NOBODY}"));
        command.args(["--clear-groups", "--no-new-privs"]);
        for kind in ["bounding-set", "inh-caps", "ambient-caps"] {
            command.arg(format!("--{kind}={set}"));
        }
        command.arg("--").arg(&program);
        let mut peak = Self::launch_with(namespace, command, program, folder, arguments)?;
        peak.ready()?;
        Ok(peak)
    }

    fn launch_with<A: AsRef<OsStr>>(
        namespace: &Namespace,
        mut command: Command,
        program: PathBuf,
        folder: TempDir,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let socket = folder.path().join("admin.sock");
        for (variable, _) in env::vars_os() {
            // A developer's own settings are not the test's.
            let is_ours = variable.as_encoded_bytes().starts_with(b"PEAK_");
            if is_ours || variable == "KUBECONFIG" || variable == "KUBERNETES_SERVICE_HOST" {
                command.env_remove(variable);
            }
        }
        command
            .arg("run")
            .args(arguments)
            .arg("--admin")
            .arg(&socket);
        Ok(Self {
            process: namespace.spawn(&mut command)?,
            program,
            socket,
            _folder: folder,
        })
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// It ends, or isn't ready in time: with what it said.
    pub fn ready(&mut self) -> Result<()> {
        let Self {
            process,
            program,
            socket,
            ..
        } = self;
        let ready = eventually("peak to be ready", START, || {
            if let Some(status) = process.ended()? {
                bail!("peak ended ({status})");
            }
            // Until its socket is there, asking fails.
            Ok(status(program, socket)
                .ok()
                .filter(|status| status.ready)
                .map(|_| ()))
        });
        ready.with_context(|| format!("peak said:\n{}", self.process.log()))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where it takes `peak status` and its like.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What `peak status` says now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Status> {
        status(&self.program, &self.socket)
    }

    /// Lets the kernel answer, or pass everything: `peak kernel on|off`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn kernel(&self, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        admin::<serde_json::Value>(&self.program, &self.socket, &["kernel", state]).map(drop)
    }

    /// What `peak lookup NAME TYPE` says.
    ///
    /// # Errors
    /// It does not answer.
    pub fn lookup(&self, name: &str, qtype: &str) -> Result<serde_json::Value> {
        admin(&self.program, &self.socket, &["lookup", name, qtype])
    }
}

/// Makes a folder and the files in it the ordinary user's of [`Peak::start_confined`].
///
/// # Errors
/// Without root.
pub fn give_away(folder: &Path) -> Result<()> {
    let files = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    for path in files.chain([Ok(folder.to_owned())]) {
        chown(path?, Some(NOBODY), Some(NOBODY))?;
    }
    Ok(())
}

fn status(program: &Path, socket: &Path) -> Result<Status> {
    admin(program, socket, &["status"])
}

/// Runs a command of `peak` that speaks to a running agent.
fn admin<T: for<'de> Deserialize<'de>>(
    program: &Path,
    socket: &Path,
    arguments: &[&str],
) -> Result<T> {
    let asked = || -> Result<T> {
        let mut answer = tempfile::tempfile()?;
        let mut asking = Running::start(
            Command::new(program)
                .args(arguments)
                .args(["--output", "json", "--admin"])
                .arg(socket)
                .stdout(answer.try_clone()?),
        )?;
        let status = asking.wait(ADMIN)?;
        ensure!(status.success(), "{}", asking.log().trim());
        answer.rewind()?;
        Ok(serde_json::from_reader(BufReader::new(answer))?)
    };
    asked().with_context(|| format!("peak {}", arguments.join(" ")))
}

/// What `peak status --output json` says, as far as tests ask.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The first complete snapshot is served, by the kernel too.
    pub ready: bool,
    /// The zones that are served.
    pub zones: Vec<String>,
    /// Where services come from.
    pub source: Source,
    /// The snapshot in force.
    pub snapshot: SnapshotSize,
    /// Each interface with a program.
    pub interfaces: Vec<Interface>,
    /// What the fallback did.
    pub fallback: Fallback,
}

impl Status {
    /// Who has answered how many queries so far.
    pub fn counted(&self) -> Counted {
        Counted {
            kernel: self
                .interfaces
                .iter()
                .map(|interface| interface.answered)
                .sum(),
            fallback: self.fallback.udp + self.fallback.tcp,
        }
    }
}

/// How many queries were answered, by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// By the XDP program.
    pub kernel: u64,
    /// By the fallback, over UDP and TCP.
    pub fallback: u64,
}

impl std::ops::Sub for Counted {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            kernel: self.kernel - before.kernel,
            fallback: self.fallback - before.fallback,
        }
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} in the kernel and {} by the fallback",
            self.kernel, self.fallback
        )
    }
}

/// Where services come from, and how that fares.
#[derive(Clone, Debug, Deserialize)]
pub struct Source {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    /// The folder, or the API server's URL.
    pub from: String,
    /// `syncing`, `current` or `stale`.
    pub state: String,
    /// Each watch of the API.
    pub watches: Vec<Watch>,
}

/// One watch of the API.
#[derive(Clone, Debug, Deserialize)]
pub struct Watch {
    /// What is watched, such as `endpointslices.discovery.k8s.io`.
    pub resource: String,
    /// Complete lists since the start.
    pub lists: u64,
    /// Events since the start.
    pub events: u64,
}

/// The snapshot's number and size.
#[derive(Clone, Debug, Deserialize)]
pub struct SnapshotSize {
    /// Grows with each change.
    pub generation: u64,
    /// How many names it has.
    pub names: u64,
    /// How many records.
    pub records: u64,
}

/// One interface and its program's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `native`, `generic` or `off`.
    pub mode: String,
    /// The program's number, if one is attached.
    pub program: Option<u32>,
    /// Queries that were answered there.
    pub answered: u64,
    /// Packets that went on to the stack, by reason.
    pub passed: BTreeMap<String, u64>,
    /// Packets lost after the first write, by reason.
    pub aborted: BTreeMap<String, u64>,
}

/// The fallback's counters.
#[derive(Clone, Debug, Deserialize)]
pub struct Fallback {
    /// Queries over UDP.
    pub udp: u64,
    /// Queries over TCP.
    pub tcp: u64,
    /// Queries that went to an upstream.
    pub forwarded: u64,
}
