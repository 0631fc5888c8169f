//! What ExternalNames stand for outside the zone, through one upstream of both servers.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Result;
use hickory_proto::rr::RecordType;
use peak_tests::{Namespace, Running, ask, asset, eventually, scratch};
use tempfile::TempDir;

use crate::names::Names;

/// How long it may take to start, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(30);
/// Where it is, in the servers' namespace.
pub(crate) const ADDRESS: &str = "127.0.0.1:5300";

/// A server of `example.com`.
pub(crate) struct Upstream {
    _process: Running,
    _folder: TempDir,
}

impl Upstream {
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        // Without TTLs, so that no answer is older than another.
        let mut zone = "\
$ORIGIN example.com.
@     0 SOA   ns hostmaster 1 7200 1800 86400 0
www   0 AAAA  2001:db8::80
www   0 A     192.0.2.80
hop   0 CNAME www
text  0 TXT   \"nothing else\"
"
        .to_owned();
        for host in 0..60 {
            writeln!(
                zone,
                "big 0 AAAA 2001:db8:1::{host:x}\nbig 0 A 198.51.100.{host}"
            )?;
        }
        let folder = scratch()?;
        let [file, corefile] = ["example.com", "Corefile"].map(|name| folder.path().join(name));
        fs::write(&file, zone)?;
        let address: SocketAddr = ADDRESS.parse()?;
        let (ip, port) = (address.ip(), address.port());
        fs::write(
            &corefile,
            format!(
                "example.com:{port} {{\n bind {ip}\n file {}\n}}\n",
                file.display()
            ),
        )?;
        let mut command = Command::new(asset("coredns")?);
        let process = namespace.spawn(command.arg("-conf").arg(corefile).stdout(Stdio::null()))?;
        eventually("the upstream", LIMIT, || {
            Ok(namespace
                .run(|| ask(address, "example.com", RecordType::SOA))
                .ok())
        })?;
        Ok(Self {
            _process: process,
            _folder: folder,
        })
    }
}

/// What is asked for.
pub(crate) fn names() -> Names {
    let aliases = [
        ("outside", "upstream"),
        ("far", "upstream"),
        ("hop", "upstream"),
        ("big", "upstream"),
        ("text", "upstream-nodata"),
        ("gone", "upstream-nxdomain"),
    ];
    let aliases =
        aliases.map(|(name, kind)| (format!("{name}.s-external-name.svc.cluster.local."), kind));
    let kubernetes = (
        "kubernetes.default.svc.cluster.local.".to_owned(),
        "service",
    );
    aliases.into_iter().chain([kubernetes]).collect()
}
