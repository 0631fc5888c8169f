//! Where the demo plays: a client, a node with Peak on the client's link, and pods behind the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use peak_tests::{
    ControlPlane, Namespace, PassProgram, Peak, Pod, Reach, eventually, join, pass, scratch,
};
use serde_json::json;
use tempfile::TempDir;

use crate::client::Visits;

/// What the client's resolv.conf names.
pub(crate) const SERVER: &str = "fd00:10:1::1";
const SERVER_V4: &str = "10.1.0.1";
/// Where pods serve.
pub(crate) const HTTP: u16 = 8080;
/// The node's interface towards the client: Peak's.
const UPLINK: &str = "eth0";
/// The service that changes, and the manifest that says so.
const WEB: &str = "web.shop.svc.cluster.local";
const WEB_MANIFEST: &str = "web-endpoints.yaml";
/// How long a change may take to be served.
const CHANGE: Duration = Duration::from_secs(5);

/// Everything that the demo makes. Dropped in this order.
pub(crate) struct Scene {
    peak: Peak,
    _pass: PassProgram,
    pods: BTreeMap<&'static str, Host>,
    /// What pods that have left had answered.
    left: BTreeMap<IpAddr, u64>,
    objects: Objects,
    client: Namespace,
    node: Namespace,
}

/// Where services are written down.
enum Objects {
    Folder(TempDir),
    /// In a control plane, which the node reaches at the address that a kubeconfig names.
    Cluster {
        _reach: Reach,
        plane: Box<ControlPlane>,
    },
}

impl Objects {
    /// With the manifests of a folder to begin with.
    fn new(samples: &Path, node: &Namespace, cluster: bool) -> Result<Self> {
        if !cluster {
            let manifests = scratch()?;
            copy(samples, manifests.path())
                .with_context(|| format!("cannot copy the manifests in {}", samples.display()))?;
            return Ok(Self::Folder(manifests));
        }
        eprintln!("starting etcd, kube-apiserver and kube-controller-manager");
        let plane = Box::new(ControlPlane::start("demo")?);
        plane.apply_folder(samples)?;
        Ok(Self::Cluster {
            _reach: plane.reach_from(node)?,
            plane,
        })
    }

    /// How the agent is told of them.
    fn argument(&self) -> Result<[String; 2]> {
        let (option, path) = match self {
            Self::Folder(folder) => ("--manifests", folder.path().to_owned()),
            Self::Cluster { plane, .. } => ("--kubeconfig", plane.kubeconfig()),
        };
        let path = path.to_str().context("a path of the demo's own is UTF-8")?;
        Ok([option, path].map(str::to_owned))
    }

    /// Writes one down, as JSON: that is YAML, too.
    fn publish(&self, object: &str) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                let file = folder.path().join(WEB_MANIFEST);
                let unfinished = file.with_extension("new");
                fs::write(&unfinished, object)?;
                Ok(fs::rename(&unfinished, &file)?)
            }
            Self::Cluster { plane, .. } => plane.apply(object),
        }
    }

    /// A command that changes them.
    fn editor(&self) -> String {
        match self {
            Self::Folder(folder) => {
                format!("$EDITOR {}", folder.path().join(WEB_MANIFEST).display())
            }
            Self::Cluster { plane, .. } => {
                let kubeconfig = plane.kubeconfig();
                format!(
                    "kubectl --kubeconfig {} -n shop edit endpointslice web-ipv6",
                    kubeconfig.display()
                )
            }
        }
    }
}

/// A pod: its servers, one an address, in its namespace.
struct Host {
    servers: Vec<(IpAddr, Pod)>,
    _namespace: Namespace,
}

impl Scene {
    /// Makes all of it, with `samples` as the manifests to begin with, in a folder or in a cluster.
    pub(crate) fn set(samples: &Path, cluster: bool) -> Result<Self> {
        let client = Namespace::new("client")?;
        let node = Namespace::new("node")?;
        join((&client, "eth0"), (&node, UPLINK))?;
        client.address("eth0", "fd00:10:1::2/64")?;
        client.address("eth0", "10.1.0.2/24")?;
        client.ip(&format!("route add default via {SERVER}"))?;
        client.ip(&format!("route add default via {SERVER_V4}"))?;
        node.address(UPLINK, &format!("{SERVER}/64"))?;
        node.address(UPLINK, &format!("{SERVER_V4}/24"))?;
        node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        client.etc("resolv.conf", &format!("nameserver {SERVER}\n"))?;
        // Not through a resolver of the host's, which would not see this namespace.
        client.etc("nsswitch.conf", "hosts: files dns\n")?;
        let pass = pass(&client, "eth0")?;

        let pods = [
            ("web-1", start(&node, 1, "web-1", false)?),
            ("web-2", start(&node, 2, "web-2", false)?),
            ("cart-1", start(&node, 9, "cart-1", true)?),
        ];

        let objects = Objects::new(samples, &node, cluster)?;
        let source = objects.argument()?;
        let listen = [format!("[{SERVER}]:53"), format!("{SERVER_V4}:53")];
        let mut arguments = vec![
            "--interface",
            UPLINK,
            "--xdp",
            "native",
            "--zone",
            "cluster.local",
        ];
        arguments.extend(source.iter().map(String::as_str));
        arguments.extend(listen.iter().flat_map(|address| ["--listen", address]));
        let peak = Peak::start(&node, arguments)?;
        let modes: Vec<_> = peak
            .status()?
            .interfaces
            .into_iter()
            .map(|one| one.mode)
            .collect();
        ensure!(
            modes == ["native"],
            "Peak is attached in mode {modes:?}, not native"
        );

        Ok(Self {
            peak,
            _pass: pass,
            pods: pods.into(),
            left: BTreeMap::new(),
            objects,
            client,
            node,
        })
    }

    pub(crate) fn peak(&self) -> &Peak {
        &self.peak
    }

    pub(crate) fn client(&self) -> &Namespace {
        &self.client
    }

    /// The addresses of pods, and who should reply there.
    pub(crate) fn addresses(&self, pods: &[&str]) -> Visits {
        let hosts = self.pods.iter().filter(|(name, _)| pods.contains(name));
        hosts
            .flat_map(|(name, host)| {
                host.servers
                    .iter()
                    .map(|(address, _)| (*address, (*name).to_owned()))
            })
            .collect()
    }

    /// The third web pod starts, and its endpoint appears.
    pub(crate) fn web_joins(&mut self) -> Result<()> {
        self.pods
            .insert("web-3", start(&self.node, 3, "web-3", false)?);
        self.publish(&["web-1", "web-2", "web-3"])
    }

    /// The first web pod's endpoint disappears, and it stops.
    pub(crate) fn web_leaves(&mut self) -> Result<()> {
        self.publish(&["web-2", "web-3"])?;
        let host = self
            .pods
            .remove("web-1")
            .context("it was there from the start")?;
        self.left.extend(host.requests());
        Ok(())
    }

    /// How many requests were answered at each address.
    pub(crate) fn requests(&self) -> BTreeMap<IpAddr, u64> {
        let present = self.pods.values().flat_map(Host::requests);
        present
            .chain(self.left.iter().map(|(address, count)| (*address, *count)))
            .collect()
    }

    /// Replaces web's EndpointSlice and waits until Peak serves it.
    fn publish(&self, pods: &[&str]) -> Result<()> {
        let endpoints: Vec<_> = self
            .addresses(pods)
            .into_iter()
            .map(|(address, pod)| json!({"addresses": [address], "hostname": pod, "conditions": {"ready": true}}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "shop",
                "name": "web-ipv6",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv6",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": HTTP, "protocol": "TCP"}],
        });
        self.objects.publish(&format!("{slice:#}\n"))?;
        let wanted: BTreeSet<_> = self.addresses(pods).into_keys().collect();
        eventually("Peak to serve the change", CHANGE, || {
            let said = self.peak.lookup(WEB, "AAAA")?;
            let records = said["records"].as_array().context("records")?;
            let served = records
                .iter()
                .filter_map(|record| record.as_str()?.parse().ok());
            Ok((served.collect::<BTreeSet<IpAddr>>() == wanted).then_some(()))
        })
    }

    /// How to look around while it is up, on stderr.
    pub(crate) fn explain(&self) {
        let sudo = if env::var_os("SUDO_UID").is_some() {
            "sudo "
        } else {
            ""
        };
        let client = format!("{sudo}ip netns exec {}", self.client.name());
        let peak = format!("{sudo}{}", self.peak.program().display());
        let admin = format!("--admin {}", self.peak.socket().display());
        let name = WEB;
        eprintln!("\nIt stays up until Ctrl-C. From another terminal:");
        for command in [
            format!("{client} dig AAAA {name}"),
            format!("{client} getent ahosts {name}"),
            format!("{client} curl http://{name}:{HTTP}/"),
            format!("{peak} status {admin}"),
            format!("{peak} lookup {name} AAAA {admin}"),
            format!("{sudo}{}", self.objects.editor()),
        ] {
            eprintln!("  {command}");
        }
    }
}

impl Host {
    fn requests(&self) -> impl Iterator<Item = (IpAddr, u64)> {
        self.servers
            .iter()
            .map(|(address, server)| (*address, server.requests()))
    }
}

/// Starts a pod on a link of its own to the node, at `fd00:10:244:NUMBER::2`, and at `10.244.NUMBER.2` if asked for.
fn start(node: &Namespace, number: u8, name: &'static str, dual_stack: bool) -> Result<Host> {
    let namespace = Namespace::new(name)?;
    join((&namespace, "eth0"), (node, name))?;
    let mut networks = vec![(format!("fd00:10:244:{number}::"), 64)];
    if dual_stack {
        networks.push((format!("10.244.{number}."), 24));
    }
    let mut servers = Vec::new();
    for (network, length) in networks {
        node.address(name, &format!("{network}1/{length}"))?;
        namespace.address("eth0", &format!("{network}2/{length}"))?;
        namespace.ip(&format!("route add default via {network}1"))?;
        let address: IpAddr = format!("{network}2").parse()?;
        servers.push((
            address,
            Pod::serve(&namespace, name, SocketAddr::new(address, HTTP))?,
        ));
    }
    Ok(Host {
        servers,
        _namespace: namespace,
    })
}

/// Copies the files of a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut empty = true;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
        empty = false;
    }
    if empty {
        bail!("no manifest is there");
    }
    Ok(())
}
