//! CoreDNS, which Peak is compared with.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hickory_proto::rr::RecordType;
use tempfile::TempDir;

use crate::{
    ControlPlane, Namespace, Running, ask,
    control_plane::{asset, free_ports, last_lines, make_logs},
    eventually, scratch,
};

/// How long it may take to have read everything from the API server.
const START: Duration = Duration::from_secs(60);
/// How long it may take to say whether it has.
const ANSWER: Duration = Duration::from_secs(2);

/// A running CoreDNS whose `kubernetes` plugin serves `cluster.local` and the reverse zones of both families. It ends with its
/// guard, and with this process.
#[derive(Debug)]
pub struct CoreDns {
    process: Running,
    address: SocketAddr,
    /// Where its `ready` plugin answers.
    ready: SocketAddr,
    log: PathBuf,
    _folder: TempDir,
}

impl CoreDns {
    /// Starts one on 127.0.0.1 with further lines for its `kubernetes` plugin (`pods insecure`), and waits until it has
    /// read everything. Its log is beside those of control planes, under `label`.
    ///
    /// # Errors
    /// It is not there (with the remedy), ends, or does not become ready: with what it said last.
    pub fn start(plane: &ControlPlane, label: &str, options: &[&str]) -> Result<Self> {
        let mut coredns = Self::launch(plane, label, Ipv4Addr::LOCALHOST.into(), options)?;
        coredns.ready()?;
        Ok(coredns)
    }

    /// Starts one as [`Self::start`] does, on another address, without waiting.
    ///
    /// # Errors
    /// It is not there (with the remedy).
    pub fn launch(
        plane: &ControlPlane,
        label: &str,
        address: IpAddr,
        options: &[&str],
    ) -> Result<Self> {
        let command = Command::new(asset("coredns")?);
        let bind = format!("bind {address}");
        Self::spawn(command, plane, label, (address, &bind), options)
    }

    /// Starts one as [`Self::start`] does, on all addresses of a namespace from which the API server is within reach: those that
    /// are not loopback's are its name server's.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(
        namespace: &Namespace,
        plane: &ControlPlane,
        label: &str,
        options: &[&str],
    ) -> Result<Self> {
        let command = namespace.command(asset("coredns")?);
        // To what it is bound by name it would not give out.
        let everywhere = (Ipv4Addr::LOCALHOST.into(), "");
        let mut coredns = Self::spawn(command, plane, label, everywhere, options)?;
        namespace.run(|| coredns.ready())?;
        Ok(coredns)
    }

    /// With an address at which it can be asked, and what makes it listen there.
    fn spawn(
        mut command: Command,
        plane: &ControlPlane,
        label: &str,
        (address, bind): (IpAddr, &str),
        options: &[&str],
    ) -> Result<Self> {
        let folder = scratch()?;
        let [port, ready] = free_ports()?;
        let ready = SocketAddr::from((Ipv4Addr::LOCALHOST, ready));
        let corefile = folder.path().join("Corefile");
        fs::write(
            &corefile,
            format!(
                ".:{port} {{\n {bind}\n errors\n ready {ready}\n \
                 kubernetes cluster.local in-addr.arpa ip6.arpa {{\n kubeconfig {}\n {}\n }}\n}}\n",
                plane.kubeconfig().display(),
                options.join("\n ")
            ),
        )?;
        command.arg("-conf").arg(&corefile);
        let log = make_logs(label)?.join("coredns.log");
        Ok(Self {
            process: Running::start_tied(command, &log)?,
            address: SocketAddr::new(address, port),
            ready,
            log,
            _folder: folder,
        })
    }

    /// Waits until it has read everything.
    ///
    /// # Errors
    /// It ends, or does not become ready: with what it said last.
    pub fn ready(&mut self) -> Result<()> {
        eventually("CoreDNS to be ready", START, || {
            if let Some(status) = self.process.ended()? {
                let said = fs::read_to_string(&self.log)?;
                bail!("coredns ended ({status}): {}", last_lines(&said));
            }
            // It may say so before it listens for questions.
            let ready = is_ready(self.ready).unwrap_or(false)
                && ask(self.address, "cluster.local", RecordType::SOA).is_ok();
            Ok(ready.then_some(()))
        })
        .with_context(|| format!("its log is {}", self.log.display()))
    }

    /// Where it answers, over UDP and TCP; in a namespace at its other addresses, too.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }
}

/// Asks its `ready` plugin.
fn is_ready(address: SocketAddr) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET /ready HTTP/1.0\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply
        .split_whitespace()
        .nth(1)
        .is_some_and(|status| status == "200"))
}
