//! The servers that are compared: how each is started on the node, alone and on the server's processor, and stopped again.

mod config;

use std::{
    ffi::OsStr,
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use hickory_proto::{op::ResponseCode, rr::RecordType};
use peak_tests::{
    ControlPlane, Counted, Peak, Running, ask, asset, eventually, scratch, v6_addresses,
};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use self::config::Place;
use super::cluster::Cluster;
use crate::{
    propagation::{Memory, kernel_memory},
    report::Label,
    rig::{Rig, SERVER_CPU},
};

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(120);
/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(10);
/// DNS.
const PORT: u16 = 53;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// Peak in the kernel, in native mode, with the fallback for what passes it
    Peak,
    /// Peak with `--xdp off`
    PeakFallback,
    /// CoreDNS with its `kubernetes` plugin
    #[value(name = "coredns")]
    CoreDns,
    /// CoreDNS with its `file` plugin, without `cache`
    #[value(name = "coredns-file")]
    CoreDnsFile,
    /// Knot DNS on AF_XDP
    KnotXdp,
    /// Knot DNS
    Knot,
    Nsd,
    Unbound,
    Bind,
    /// PowerDNS
    Pdns,
}

impl Kind {
    pub(super) const ALL: [Self; 10] = [
        Self::Peak,
        Self::PeakFallback,
        Self::CoreDns,
        Self::CoreDnsFile,
        Self::KnotXdp,
        Self::Knot,
        Self::Nsd,
        Self::Unbound,
        Self::Bind,
        Self::Pdns,
    ];

    /// As it is written in reports and on command lines.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peak => "peak",
            Self::PeakFallback => "peak-fallback",
            Self::CoreDns => "coredns",
            Self::CoreDnsFile => "coredns-file",
            Self::KnotXdp => "knot-xdp",
            Self::Knot => "knot",
            Self::Nsd => "nsd",
            Self::Unbound => "unbound",
            Self::Bind => "bind",
            Self::Pdns => "pdns",
        }
    }

    pub(super) fn label(self) -> (&'static str, Label) {
        ("server", self.name().into())
    }

    /// Whether it asks others about names outside the zone.
    pub(super) fn forwards(self) -> bool {
        matches!(
            self,
            Self::Peak | Self::PeakFallback | Self::CoreDns | Self::Unbound
        )
    }

    /// Its program, and what has that tell its version; none of Peak, whose every report has it.
    fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Peak | Self::PeakFallback => None,
            Self::CoreDns | Self::CoreDnsFile => Some(("coredns", "-version")),
            Self::KnotXdp | Self::Knot => Some(("knotd", "--version")),
            Self::Nsd => Some(("nsd", "-v")),
            Self::Unbound => Some(("unbound", "-V")),
            Self::Bind => Some(("named", "-v")),
            Self::Pdns => Some(("pdns_server", "--version")),
        }
    }

    /// The program's name, and its version.
    ///
    /// # Errors
    /// It isn't there.
    pub(super) fn version(self) -> Result<Option<(&'static str, String)>> {
        let Some((program, flag)) = self.program() else {
            return Ok(None);
        };
        let output = Command::new(asset(program)?).arg(flag).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let version = number(&said).with_context(|| format!("{program} {flag} says: {said}"))?;
        Ok(Some((program, version)))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The first word that is a version, such as `9.18.49-1~deb12u3-Debian`.
fn number(said: &str) -> Option<String> {
    let words = said.split([' ', '\n', '\t', ',']);
    let words = words.map(|word| word.trim_start_matches("CoreDNS-"));
    words
        .filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .find(|word| word.split('.').count() >= 3 && !word.contains(':'))
        .map(str::to_owned)
}

/// What all of them have in common.
pub(super) struct Site<'a> {
    pub(super) rig: &'a Rig,
    pub(super) plane: &'a ControlPlane,
    pub(super) cluster: Cluster,
    pub(super) zone_file: &'a Path,
    pub(super) upstream: SocketAddr,
}

/// A running server.
pub(super) struct Server<'a> {
    kind: Kind,
    site: &'a Site<'a>,
    program: Option<Program>,
    pub(super) address: SocketAddr,
    _folder: TempDir,
}

enum Program {
    Peak(Peak),
    Other(Running),
}

impl<'a> Server<'a> {
    /// Starts it, and waits until it answers right.
    ///
    /// # Errors
    /// It is not there (with the remedy), ends, or says something wrong: with what it said.
    pub(super) fn start(kind: Kind, site: &'a Site<'a>) -> Result<Self> {
        let folder = scratch()?;
        let address = SocketAddr::from((site.rig.node.v6, PORT));
        let program = match kind {
            Kind::Peak => Program::Peak(peak(site, "native")?),
            Kind::PeakFallback => Program::Peak(peak(site, "off")?),
            _ => Program::Other(other(kind, site, address, folder.path())?),
        };
        let mut server = Self {
            kind,
            site,
            program: Some(program),
            address,
            _folder: folder,
        };
        server
            .ready()
            .with_context(|| format!("{kind} does not serve the zone"))?;
        Ok(server)
    }

    /// Waits until it knows the first and the last name.
    fn ready(&mut self) -> Result<()> {
        let cluster = self.site.cluster;
        let begin = Instant::now();
        for pod in [0, cluster.names - 1] {
            let (name, address) = (cluster.name(pod), cluster.address(pod));
            loop {
                let said = self
                    .site
                    .rig
                    .as_client(|| ask(self.address, &name, RecordType::AAAA))?;
                // Before it knows everything it says SERVFAIL or REFUSED, if anything; or that it knows no such name.
                if let Ok(reply) = said
                    && reply.metadata.response_code == ResponseCode::NoError
                {
                    let addresses: Vec<_> = v6_addresses(&reply).collect();
                    ensure!(
                        addresses == [address],
                        "{name} is {address}, and was said to be {addresses:?}"
                    );
                    break;
                }
                let running = self.running();
                if let Some(status) = running.ended()? {
                    bail!("it has ended ({status}): {}", running.log());
                }
                ensure!(
                    begin.elapsed() < START,
                    "no answer about {name} within {START:?}: {}",
                    running.log()
                );
            }
        }
        Ok(())
    }

    fn running(&mut self) -> &mut Running {
        match self
            .program
            .as_mut()
            .expect("it is taken when it is dropped")
        {
            Program::Peak(peak) => peak.process(),
            Program::Other(running) => running,
        }
    }

    /// Who has answered so far; nothing of another than Peak.
    pub(super) fn counted(&self) -> Result<Option<Counted>> {
        match &self.program {
            Some(Program::Peak(peak)) => Ok(Some(peak.status()?.counted())),
            _ => Ok(None),
        }
    }

    /// What it holds of memory, bytes: all processes together, each page that they share once; and the BPF maps of Peak's, which
    /// are the kernel's.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn memory(&mut self) -> Result<u64> {
        if let Some(Program::Peak(peak)) = &mut self.program {
            let id = peak.process().id();
            return Ok(Memory::of(id)?.resident + kernel_memory(id)?);
        }
        let processes = processes(self.site.rig)?;
        let of_each = processes.iter().map(|process| {
            let path = format!("/proc/{}/smaps_rollup", process.as_raw_nonzero());
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kilobytes = line.and_then(|line| line.split_whitespace().next());
            let kilobytes: u64 = kilobytes.context("no Pss")?.parse()?;
            Ok(kilobytes * 1024)
        });
        of_each.sum()
    }

    /// Stops it, and makes sure that nothing of it is left.
    ///
    /// # Errors
    /// Something is.
    pub(super) fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut program) = self.program.take() else {
            return Ok(());
        };
        let running = match &mut program {
            Program::Peak(peak) => peak.process(),
            Program::Other(running) => running,
        };
        // Asked to, they take their XDP programs off and end their processes.
        if running.ended()?.is_none() {
            running.signal(Signal::TERM)?;
            // One that doesn't is killed with its guard.
            let _ = running.wait(END);
        }
        drop(program);
        let rig = self.site.rig;
        eventually("the server's processes to end", END, || {
            let left = processes(rig)?;
            for process in &left {
                // It may have ended meanwhile.
                let _ = kill_process(*process, Signal::KILL);
            }
            Ok(left.is_empty().then_some(()))
        })?;
        if self.kind == Kind::KnotXdp {
            let interface = &rig.node.interface;
            rig.node
                .namespace
                .ip(&format!("link set dev {interface} xdp off"))?;
        }
        Ok(())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // Where something went wrong already, that is what is told.
        let _ = self.end();
    }
}

/// The processes of the node: a server's, as nothing else is there.
fn processes(rig: &Rig) -> Result<Vec<Pid>> {
    let output = Command::new("ip")
        .args(["netns", "pids", rig.node.namespace.name()])
        .output()?;
    ensure!(output.status.success(), "ip netns pids: {}", output.status);
    let pids = String::from_utf8(output.stdout)?;
    let pids = pids.lines().filter_map(|pid| pid.trim().parse().ok());
    Ok(pids.filter_map(Pid::from_raw).collect())
}

fn peak(site: &Site<'_>, xdp: &str) -> Result<Peak> {
    let kubeconfig = site.plane.kubeconfig();
    let upstream = site.upstream.to_string();
    let arguments: [&OsStr; 10] = [
        "--interface".as_ref(),
        site.rig.node.interface.as_ref(),
        "--xdp".as_ref(),
        xdp.as_ref(),
        "--pods".as_ref(),
        "insecure".as_ref(),
        "--upstream".as_ref(),
        upstream.as_ref(),
        "--kubeconfig".as_ref(),
        kubeconfig.as_os_str(),
    ];
    site.rig
        .on_server_cpu(|| Peak::launch(&site.rig.node.namespace, arguments))?
}

fn other(kind: Kind, site: &Site<'_>, listen: SocketAddr, folder: &Path) -> Result<Running> {
    let kubeconfig = site.plane.kubeconfig();
    let place = Place {
        listen,
        interface: &site.rig.node.interface,
        upstream: site.upstream,
        zone_file: site.zone_file,
        kubeconfig: &kubeconfig,
        folder,
    };
    let file = folder.join("config");
    let text = match kind {
        Kind::CoreDns => config::coredns(&place),
        Kind::CoreDnsFile => config::coredns_file(&place),
        Kind::KnotXdp => config::knot(&place, true),
        Kind::Knot => config::knot(&place, false),
        Kind::Nsd => config::nsd(&place),
        Kind::Unbound => {
            let zone = fs::read_to_string(site.zone_file)?;
            fs::write(folder.join("data.conf"), config::unbound_data(&zone))?;
            config::unbound(&place)
        }
        Kind::Bind => config::bind(&place),
        Kind::Pdns => {
            fs::write(folder.join("zones.conf"), config::pdns_zones(&place))?;
            config::pdns(&place, pdns_modules()?.as_deref())
        }
        Kind::Peak | Kind::PeakFallback => bail!("Peak has no configuration file here"),
    };
    // It reads a folder.
    let file = match kind {
        Kind::Pdns => folder.join("pdns.conf"),
        _ => file,
    };
    fs::write(&file, text)?;
    let (program, _) = kind.program().context("it has a program")?;
    // Both become the next program: the process stays the one that was started.
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", &SERVER_CPU.to_string(), "nsenter"])
        .arg(format!(
            "--net=/run/netns/{}",
            site.rig.node.namespace.name()
        ))
        .arg("--")
        .arg(asset(program)?);
    match kind {
        // One processor, and one thread that runs Go at a time.
        Kind::CoreDns | Kind::CoreDnsFile => {
            command.env("GOMAXPROCS", "1").arg("-conf").arg(&file);
        }
        Kind::KnotXdp | Kind::Knot => {
            command.arg("--config").arg(&file);
        }
        // In the foreground.
        Kind::Nsd | Kind::Unbound => {
            command.arg("-d").arg("-c").arg(&file);
        }
        // In the foreground, logging to stderr; one thread, one socket that listens.
        Kind::Bind => {
            command.args(["-g", "-n", "1", "-U", "1", "-c"]).arg(&file);
        }
        Kind::Pdns => {
            command.arg(format!("--config-dir={}", folder.display()));
        }
        Kind::Peak | Kind::PeakFallback => {}
    }
    Running::start_tied(command, &folder.join("log"))
}

/// Where the backends of PowerDNS are, if it was not installed but unpacked.
fn pdns_modules() -> Result<Option<PathBuf>> {
    let wrapper = asset("pdns_server")?;
    let folder = wrapper.parent().and_then(Path::parent);
    let libraries = format!("root/usr/lib/{}-linux-gnu/pdns", std::env::consts::ARCH);
    Ok(folder
        .map(|folder| folder.join(libraries))
        .filter(|folder| folder.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let said = [
            ("knotd (Knot DNS), version 3.2.6", "3.2.6"),
            ("NSD version 4.6.1\nWritten by NLnet Labs.", "4.6.1"),
            (
                "BIND 9.18.49-1~deb12u3-Debian (Extended Support Version) <id:>",
                "9.18.49-1~deb12u3-Debian",
            ),
            (
                "Version 1.17.1\n\nConfigure line: --build=x86_64-linux-gnu",
                "1.17.1",
            ),
            ("CoreDNS-1.13.1\nlinux/amd64, go1.26.8, ", "1.13.1"),
            (
                "Nov 22 00:32:17 PowerDNS Authoritative Server 4.7.3 (C) 2001-2022",
                "4.7.3",
            ),
        ];
        for (said, wanted) in said {
            assert_eq!(number(said).as_deref(), Some(wanted), "{said}");
        }
        assert_eq!(number("no such option"), None);
    }

    #[test]
    fn every_server_has_a_name_of_its_own() {
        for kind in Kind::ALL {
            let value = kind.to_possible_value().expect("none is hidden");
            assert_eq!(value.get_name(), kind.name());
        }
    }

    #[test]
    fn configurations_name_where_to_listen_and_what_to_serve() {
        let place = Place {
            listen: "[fd00:10:1::1]:53".parse().expect("an address"),
            interface: "eth0",
            upstream: "[fd00:10:1::2]:5300".parse().expect("an address"),
            zone_file: Path::new("/z/zone"),
            kubeconfig: Path::new("/k/config"),
            folder: Path::new("/f"),
        };
        let of_file = [
            config::coredns_file(&place),
            config::knot(&place, false),
            config::nsd(&place),
            config::bind(&place),
        ];
        for text in of_file {
            assert!(
                text.contains("fd00:10:1::1") && text.contains("/z/zone"),
                "{text}"
            );
            assert!(!text.contains("{{") && !text.contains("}}"), "{text}");
        }
        let xdp = config::knot(&place, true);
        assert!(
            xdp.contains("listen: fd00:10:1::1@5353") && xdp.contains("listen: eth0@53"),
            "{xdp}"
        );
        assert!(config::coredns(&place).contains("forward . [fd00:10:1::2]:5300"));
        let unbound = config::unbound(&place);
        assert!(unbound.contains("interface: fd00:10:1::1@53"), "{unbound}");
        assert!(
            unbound.contains("forward-addr: fd00:10:1::2@5300"),
            "{unbound}"
        );
    }

    #[test]
    fn a_zone_file_becomes_local_data() {
        let zone = "; a comment\n$ORIGIN cluster.local.\n$TTL 5\n@\tIN\tSOA\tns.dns hostmaster 1 2 3 4 5\n\
                    web\tIN\tAAAA\tfd00::1\nhttp.web\tIN\tSRV\t0 100 80 web\nout\tIN\tCNAME\ta.example.\n\
                    v\tIN\tTXT\t\"1.1.0\"\n";
        let wanted = "\
local-data: 'cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 2 3 4 5'
local-data: 'web.cluster.local. 5 IN AAAA fd00::1'
local-data: 'http.web.cluster.local. 5 IN SRV 0 100 80 web.cluster.local.'
local-data: 'out.cluster.local. 5 IN CNAME a.example.'
local-data: 'v.cluster.local. 5 IN TXT \"1.1.0\"'
";
        assert_eq!(config::unbound_data(zone), wanted);
    }
}
