//! The cluster whose names are asked, the same for every server: made in a real API server, and exported from there for those that
//! read zone files.

use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use peak_tests::{ControlPlane, program};
use serde_json::json;

use crate::propagation::cluster::{Creation, create, namespace, pod_endpoint, slice};

/// The zone.
pub(super) const ZONE: &str = "cluster.local";
/// Pods of a headless service, as those of a StatefulSet: each has a name.
const PODS: u32 = 16;
/// Headless services of a namespace.
const SERVICES: u32 = 128;
/// Pods of a node.
const NODE: u32 = 64;
/// Namespace, and number, of the services with addresses of their own.
pub(super) const DEFAULT: &str = "default";
pub(super) const CLUSTER_IPS: u32 = 256;

/// Its size: `names` of pods of headless services, 16 each, and [`CLUSTER_IPS`] services with a ClusterIP of either family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster {
    pub(super) names: u32,
}

impl Cluster {
    /// The name of a pod of a headless service, 40 bytes or one or two more in a message.
    pub(super) fn name(self, pod: u32) -> String {
        let service = pod / PODS;
        format!(
            "pod-{}.web-{}.{}.svc.{ZONE}",
            pod % PODS,
            service % SERVICES,
            namespace_of(service)
        )
    }

    /// The pod's address.
    pub(super) fn address(self, pod: u32) -> Ipv6Addr {
        let (node, host) = (pod / NODE, pod % NODE + 2);
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, host as u16)
    }

    /// How many namespaces the headless services are in.
    pub(super) fn namespaces(self) -> u32 {
        self.services().div_ceil(SERVICES)
    }

    fn services(self) -> u32 {
        self.names.div_ceil(PODS)
    }

    /// Makes all of it.
    ///
    /// # Errors
    /// The API server refuses something.
    pub(super) fn create(self, plane: &ControlPlane) -> Result<()> {
        create(
            plane,
            (0..self.services())
                .step_by(SERVICES as usize)
                .map(|service| namespace(&namespace_of(service))),
        )?;
        let headless = (0..self.services()).map(|service| {
            let name = format!("web-{}", service % SERVICES);
            let spec = json!({"clusterIP": "None", "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"});
            self::service(&namespace_of(service), &name, &spec)
        });
        create(plane, headless)?;
        let slices = (0..self.services()).map(|service| {
            let namespace = namespace_of(service);
            let pods = (service * PODS..(service + 1) * PODS).take_while(|pod| *pod < self.names);
            let endpoints: Vec<_> = pods
                .map(|pod| {
                    let hostname = format!("pod-{}", pod % PODS);
                    let mut endpoint =
                        pod_endpoint(&namespace, &hostname, self.address(pod), pod / NODE);
                    endpoint["hostname"] = hostname.into();
                    endpoint
                })
                .collect();
            let service = format!("web-{}", service % SERVICES);
            let (path, mut object) = slice(&namespace, &service, 0, &endpoints);
            // SRV is not asked for, and would be most of a zone file.
            object["ports"] = json!([]);
            (path, object)
        });
        create(plane, slices)?;
        let cluster_ips = (0..CLUSTER_IPS).map(|service| {
            let (v6, v4) = cluster_ips(service);
            let spec = json!({
                "clusterIP": v6, "clusterIPs": [v6, v4],
                "ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": 80, "protocol": "TCP"}],
            });
            self::service(DEFAULT, &cluster_ip_name(service), &spec)
        });
        create(plane, cluster_ips)
    }

    /// Writes its zone with `peak export`, and adds the names of pods that are made up when they are asked for, of those that
    /// will be.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn export(
        self,
        plane: &ControlPlane,
        file: &Path,
        nameserver: Ipv6Addr,
    ) -> Result<()> {
        let output = Command::new(program("peak")?)
            .args(["export", "--pods", "insecure", "--nameserver"])
            .arg(nameserver.to_string())
            .arg("--kubeconfig")
            .arg(plane.kubeconfig())
            .arg("--zone-file")
            .arg(file)
            .env("PEAK_LOG", "warn")
            .output()
            .context("cannot start peak")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "peak export failed: {said}");
        let mut zone = fs::read_to_string(file)?;
        for pod in 0..SPELLED_PODS {
            let (name, address) = spelled_pod(pod);
            writeln!(zone, "{name}.\tIN\tA\t{address}")?;
        }
        fs::write(file, zone).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn namespace_of(service: u32) -> String {
    format!("shop-{}", service / SERVICES)
}

/// A Service as it may be: of what charts add to one, no server here keeps anything.
fn service(namespace: &str, name: &str, spec: &serde_json::Value) -> Creation {
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    });
    (format!("/api/v1/namespaces/{namespace}/services"), object)
}

/// The name of a service with addresses of its own, in [`DEFAULT`].
pub(super) fn cluster_ip_name(service: u32) -> String {
    format!("svc-{service}")
}

/// Its addresses.
pub(super) fn cluster_ips(service: u32) -> (Ipv6Addr, Ipv4Addr) {
    let [high, low] = (0x2000 + service as u16).to_be_bytes();
    let v6 = Ipv6Addr::new(
        0xfd00,
        0x10,
        0x96,
        0,
        0,
        0,
        0,
        u16::from_be_bytes([high, low]),
    );
    (v6, Ipv4Addr::new(10, 96, high, low))
}

/// Pods that are asked for by their address.
pub(super) const SPELLED_PODS: u32 = 64;

/// `10-244-1-2.default.pod.cluster.local`, and what it spells.
pub(super) fn spelled_pod(pod: u32) -> (String, Ipv4Addr) {
    let address = Ipv4Addr::new(10, 244, 1, 2 + pod as u8);
    let label = address.to_string().replace('.', "-");
    (format!("{label}.{DEFAULT}.pod.{ZONE}"), address)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_pod_has_a_name_and_an_address_of_its_own() {
        let cluster = Cluster { names: 131_072 };
        assert_eq!((cluster.services(), cluster.namespaces()), (8192, 64));
        let names: BTreeSet<_> = (0..cluster.names).map(|pod| cluster.name(pod)).collect();
        let addresses: BTreeSet<_> = (0..cluster.names).map(|pod| cluster.address(pod)).collect();
        assert_eq!((names.len(), addresses.len()), (131_072, 131_072));
        let on_the_wire: BTreeSet<_> = names.iter().map(|name| name.len() + 2).collect();
        assert!(on_the_wire.first() >= Some(&38) && on_the_wire.last() <= Some(&43));
        assert_eq!(cluster.name(0), "pod-0.web-0.shop-0.svc.cluster.local");
        assert_eq!(
            cluster.name(131_071),
            "pod-15.web-127.shop-63.svc.cluster.local"
        );
    }

    #[test]
    fn addresses_of_services_are_in_their_ranges() {
        let (v6, v4) = cluster_ips(CLUSTER_IPS - 1);
        assert_eq!(v6.to_string(), "fd00:10:96::20ff");
        assert_eq!(v4.to_string(), "10.96.32.255");
    }
}
