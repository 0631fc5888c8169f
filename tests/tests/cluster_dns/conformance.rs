//! What Kubernetes' own conformance tests ask of a cluster's DNS (`test/e2e/network/dns.go`), asked in the same way: by `dig`, over
//! UDP and TCP, with a pod's `resolv.conf`. There they are content with any answer; here it has to be the right one.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use peak_tests::{ControlPlane, eventually};
use serde_json::{Value, json};

use crate::{Site, names::reverse};

/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);

/// A namespace of a cluster with one address family, and a pod that asks from there.
struct Cluster<'p> {
    plane: &'p ControlPlane,
    site: &'p Site,
    namespace: String,
    family: &'static str,
    /// The type of addresses.
    rtype: &'static str,
}

#[test]
fn clusters_with_ipv4_conform() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let site = Site::new(&plane, &["--reverse", "10.96.0.0/16", "--pods", "insecure"])?;
    let cluster = Cluster::new(&plane, &site, "IPv4", "A")?;
    cluster.the_cluster_itself()?;
    cluster.pods("10.244.77.")?;
    cluster.other_search_lists()
}

#[test]
fn clusters_with_ipv6_conform() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let site = Site::new(&plane, &["--reverse", "fd00:10:96::/112"])?;
    let cluster = Cluster::new(&plane, &site, "IPv6", "AAAA")?;
    cluster.pods("fd00:10:244:77::")
}

impl<'p> Cluster<'p> {
    fn new(
        plane: &'p ControlPlane,
        site: &'p Site,
        family: &'static str,
        rtype: &'static str,
    ) -> Result<Self> {
        let namespace = format!("conformance-{}", family.to_lowercase());
        let cluster = Self {
            plane,
            site,
            namespace,
            family,
            rtype,
        };
        plane.apply("{apiVersion: v1, kind: Node, metadata: {name: conformance}}")?;
        cluster.resolv_conf("")?;
        Ok(cluster)
    }

    /// A pod's, as a kubelet writes it, with further domains to search.
    fn resolv_conf(&self, searched: &str) -> Result<()> {
        let Self {
            namespace, family, ..
        } = self;
        let server = if *family == "IPv4" {
            "10.1.0.1"
        } else {
            "fd00:10:1::1"
        };
        let text = format!(
            "search {namespace}.svc.cluster.local svc.cluster.local cluster.local {searched}\nnameserver {server}\noptions ndots:5\n"
        );
        self.site.net.client.etc("resolv.conf", &text)
    }

    /// What a program prints in the pod, line by line.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<BTreeSet<String>> {
        let output = self
            .site
            .net
            .client
            .command(program)
            .args(arguments)
            .output()?;
        let printed = String::from_utf8(output.stdout)?;
        let fields = printed
            .lines()
            .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        Ok(fields.collect())
    }

    /// Waits until `dig` prints these records for a name, over UDP and TCP: owner, type and data.
    fn dig(&self, name: &str, rtype: &str, records: &[&str]) -> Result<()> {
        for transport in ["+notcp", "+tcp"] {
            let arguments = [transport, "+noall", "+answer", "+search", name, rtype];
            let wanted: BTreeSet<_> = records
                .iter()
                .map(|record| {
                    let (owner, record) = record.split_once(' ').context("an owner and more")?;
                    // The TTL and the class are those of all.
                    Ok(format!("{owner} 5 IN {record}"))
                })
                .collect::<Result<_>>()?;
            self.comes_to_print("dig", &arguments, &wanted)?;
        }
        Ok(())
    }

    fn comes_to_print(
        &self,
        program: &str,
        arguments: &[&str],
        wanted: &BTreeSet<String>,
    ) -> Result<()> {
        let mut printed = BTreeSet::new();
        let waited = eventually(&format!("{program} {arguments:?}"), LIMIT, || {
            printed = self.run(program, arguments)?;
            Ok((printed == *wanted).then_some(()))
        });
        waited.with_context(|| format!("it printed {printed:?}, not {wanted:?}"))
    }

    /// "should provide DNS for the cluster", "should resolve DNS of partial qualified names for the cluster".
    fn the_cluster_itself(&self) -> Result<()> {
        let kubernetes = "kubernetes.default.svc.cluster.local";
        let before = self.site.peak.status()?.counted();
        for name in [kubernetes, "kubernetes.default", "kubernetes.default.svc"] {
            self.dig(name, "A", &[&format!("{kubernetes}. A 10.96.0.1")])?;
        }
        // Over UDP the kernel has ended the search, too: two names that don't exist in front of each that does.
        let counted = self.site.peak.status()?.counted() - before;
        ensure!(counted.kernel >= 6 && counted.fallback >= 3, "{counted}");
        Ok(())
    }

    /// The tests that have pods, whose addresses begin with this.
    fn pods(&self, prefix: &str) -> Result<()> {
        let Self {
            namespace, rtype, ..
        } = self;
        let (headless, regular) = ("dns-test-service", "test-service-2");
        let selector = json!({"dns-test": "true"});
        let cluster_ip =
            self.service(headless, json!({"clusterIP": "None", "selector": selector}))?;
        ensure!(cluster_ip == "None");
        let cluster_ip = self.service(regular, json!({"selector": selector}))?;
        let addresses = [7, 8].map(|host| format!("{prefix}{host}"));
        self.pod("dns-querier-1", headless, &selector, &addresses[0])?;
        self.pod("dns-querier-3", headless, &selector, &addresses[1])?;

        // "should provide DNS for services", "should resolve DNS of partial qualified names for services".
        let svc = format!("{namespace}.svc.cluster.local.");
        let of_headless = [0, 1].map(|pod| format!("{headless}.{svc} {rtype} {}", addresses[pod]));
        let of_headless = of_headless.each_ref().map(String::as_str);
        let before = self.site.peak.status()?.counted();
        for name in [
            format!("{headless}.{namespace}.svc.cluster.local"),
            headless.to_owned(),
            format!("{headless}.{namespace}"),
            format!("{headless}.{namespace}.svc"),
        ] {
            self.dig(&name, rtype, &of_headless)?;
        }
        let counted = self.site.peak.status()?.counted() - before;
        ensure!(counted.kernel >= 4, "{counted}");
        for ending in [".cluster.local", ""] {
            let name = format!("_http._tcp.{headless}.{namespace}.svc");
            let records = ["dns-querier-1", "dns-querier-3"]
                .map(|pod| format!("{name}.cluster.local. SRV 0 50 80 {pod}.{headless}.{svc}"));
            self.dig(
                &format!("{name}{ending}"),
                "SRV",
                &records.each_ref().map(String::as_str),
            )?;
            let name = format!("_http._tcp.{regular}.{namespace}.svc");
            let record = format!("{name}.cluster.local. SRV 0 100 80 {regular}.{svc}");
            self.dig(&format!("{name}{ending}"), "SRV", &[&record])?;
        }
        let name = reverse(cluster_ip.parse()?);
        self.dig(&name, "PTR", &[&format!("{name} PTR {regular}.{svc}")])?;
        // As operators ask: `dig -x`.
        let wanted = BTreeSet::from([format!("{regular}.{svc}")]);
        self.comes_to_print("dig", &["+short", "-x", &cluster_ip], &wanted)?;

        // "should provide DNS for pods for Hostname", "… for Subdomain".
        let (subdomain, host) = ("dns-test-service-2", "dns-querier-2");
        let selector = json!({"dns-test-hostname-attribute": "true"});
        self.service(
            subdomain,
            json!({"clusterIP": "None", "selector": selector}),
        )?;
        let address = format!("{prefix}9");
        self.pod(host, subdomain, &selector, &address)?;
        let fqdn = format!("{host}.{subdomain}.{namespace}.svc.cluster.local");
        self.dig(&fqdn, rtype, &[&format!("{fqdn}. {rtype} {address}")])?;
        let name = format!("{subdomain}.{namespace}.svc.cluster.local");
        self.dig(&name, rtype, &[&format!("{name}. {rtype} {address}")])?;
        // By a pod's own resolver, which asks for AAAA before A.
        self.comes_to_print(
            "getent",
            &["hosts", &fqdn],
            &[format!("{address} {fqdn}")].into(),
        )?;
        // The pod's address as a name, which is not asked for since the specification's version 1.1.0.
        if *rtype == "A" {
            let name = format!(
                "{}.{namespace}.pod.cluster.local",
                address.replace('.', "-")
            );
            self.dig(&name, rtype, &[&format!("{name}. A {address}")])?;
        }

        self.external_name()?;
        self.a_digit_first()
    }

    /// "should work with a service name that starts with a digit".
    fn a_digit_first(&self) -> Result<()> {
        let cluster_ip = self.service("1kubernetes", json!({}))?;
        let name = format!("1kubernetes.{}.svc.cluster.local", self.namespace);
        let record = format!("{name}. {} {cluster_ip}", self.rtype);
        self.dig(&name, self.rtype, &[&record])
    }

    /// "should provide DNS for ExternalName services", and when they become others.
    fn external_name(&self) -> Result<()> {
        let service = "dns-test-service-3";
        let name = format!("{service}.{}.svc.cluster.local", self.namespace);
        for target in ["foo.example.com", "bar.example.com"] {
            self.service(
                service,
                json!({"type": "ExternalName", "externalName": target}),
            )?;
            self.comes_to_print(
                "dig",
                &["+short", &name, "CNAME"],
                &[format!("{target}.")].into(),
            )?;
        }
        let change = json!({"spec": {
            "type": "ClusterIP", "externalName": null,
            "ipFamilies": [self.family], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        }});
        let cluster_ip = self.plane.run(async {
            let services = Api::<Service>::namespaced(self.plane.client(), &self.namespace);
            let changed = services
                .patch(service, &PatchParams::default(), &Patch::Merge(change))
                .await?;
            changed
                .spec
                .and_then(|spec| spec.cluster_ip)
                .context("a ClusterIP")
        })?;
        self.comes_to_print("dig", &["+short", &name, self.rtype], &[cluster_ip].into())
    }

    /// "should work with the pod containing more than 6 DNS search paths and longer than 256 search list characters", "should work
    /// with a search path containing an underscore and a search path with a single dot".
    fn other_search_lists(&self) -> Result<()> {
        let long: Vec<_> = (1..=6)
            .map(|number| format!("{number:038}.k8s.io"))
            .collect();
        for searched in [&*long.join(" "), ". _sip._tcp.abc_d.example.com"] {
            self.resolv_conf(searched)?;
            for name in ["kubernetes.default", "kubernetes.default.svc"] {
                self.dig(
                    name,
                    "A",
                    &["kubernetes.default.svc.cluster.local. A 10.96.0.1"],
                )?;
            }
        }
        Ok(())
    }

    /// Makes a service with the port `http`, and gives its ClusterIP.
    fn service(&self, name: &str, mut spec: Value) -> Result<String> {
        let metadata = json!({"namespace": self.namespace, "name": name});
        if spec.get("externalName").is_none() {
            spec["ipFamilies"] = json!([self.family]);
            spec["ipFamilyPolicy"] = json!("SingleStack");
            spec["ports"] = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
        }
        let service =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        self.plane.apply(&service.to_string())?;
        self.plane.run(async {
            let services = Api::<Service>::namespaced(self.plane.client(), &self.namespace);
            let service = services.get(name).await?;
            Ok(service
                .spec
                .and_then(|spec| spec.cluster_ip)
                .unwrap_or_default())
        })
    }

    /// Makes a pod with a hostname in a subdomain, and says of it what a kubelet would.
    fn pod(&self, hostname: &str, subdomain: &str, labels: &Value, address: &str) -> Result<()> {
        let address: IpAddr = address.parse().with_context(|| address.to_owned())?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": format!("dns-test-{hostname}"), "labels": labels},
            "spec": {
                "nodeName": "conformance", "hostname": hostname, "subdomain": subdomain,
                "containers": [{"name": "querier", "image": "querier"}],
            },
        });
        // It is admitted once its namespace's service account is there, which a controller makes.
        eventually("a pod to be admitted", LIMIT, || {
            Ok(self.plane.apply(&pod.to_string()).ok())
        })?;
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        self.plane.run(async {
            let pods = Api::<Pod>::namespaced(self.plane.client(), &self.namespace);
            let name = format!("dns-test-{hostname}");
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await
        })?;
        Ok(())
    }
}
