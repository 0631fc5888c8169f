//! The agent takes services from a real API server, and goes on without it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use k8s_openapi::api::{
    core::v1::{Namespace as KubeNamespace, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use peak_tests::{
    Component, ControlPlane, Namespace, Peak, Reach, ask, eventually, http_get, v6_addresses,
};
use tempfile::TempDir;

/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a change may take on an idle agent, the API server's own time included.
const CHANGE: Duration = Duration::from_secs(5);

/// A headless service `web` in `namespace` with one slice that has this address.
fn web(namespace: &str, address: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Service
metadata: {{namespace: {namespace}, name: web}}
spec: {{clusterIP: None, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: {namespace}, name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv6
endpoints: [{{addresses: ["{address}"]}}]
"#
    )
}

/// A node with an agent that answers from the cluster.
struct Node {
    peak: Peak,
    namespace: Namespace,
}

impl Node {
    /// Starts an agent that need not get ready.
    fn launch(label: &str, kubeconfig: &Path, more: &[&str]) -> Result<Self> {
        let namespace = Namespace::new(label)?;
        let kubeconfig = kubeconfig.to_str().context("a plain path")?;
        let common = [
            "--xdp",
            "off",
            "--listen",
            "[::1]:53",
            "--kubeconfig",
            kubeconfig,
        ];
        let peak = Peak::launch(&namespace, common.iter().chain(more))?;
        Ok(Self { peak, namespace })
    }

    fn ask(&self, name: &str) -> Result<(ResponseCode, BTreeSet<Ipv6Addr>)> {
        let server = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 53);
        let reply = self.namespace.run(|| ask(server, name, RecordType::AAAA))?;
        let addresses = v6_addresses(&reply).collect();
        Ok((reply.metadata.response_code, addresses))
    }

    /// Whether the service `web` of the namespace is this one address.
    fn says(&self, namespace: &str, address: &str) -> Result<bool> {
        let (rcode, addresses) = self.ask(&format!("web.{namespace}.svc.cluster.local"))?;
        Ok(rcode == ResponseCode::NoError && addresses == BTreeSet::from([address.parse()?]))
    }

    /// Waits until it does.
    fn comes_to_say(&self, namespace: &str, address: &str, limit: Duration) -> Result<()> {
        eventually(&format!("{namespace} to be {address}"), limit, || {
            Ok(self.says(namespace, address)?.then_some(()))
        })
    }

    /// Waits for the source's state that `peak status` tells.
    fn becomes(&self, state: &str) -> Result<()> {
        eventually(&format!("the source to be {state}"), LIMIT, || {
            let source = self.peak.status()?.source;
            Ok((source.state == state).then_some(()))
        })
    }
}

/// An agent that is ready, and the way to the API server that it has.
fn node(
    plane: &ControlPlane,
    label: &str,
    kubeconfig: &Path,
    more: &[&str],
) -> Result<(Node, Reach)> {
    let mut node = Node::launch(label, kubeconfig, more)?;
    let reach = plane.reach_from(&node.namespace)?;
    node.peak.ready()?;
    Ok((node, reach))
}

#[test]
fn what_the_cluster_has_is_answered_and_changes_are_seen() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&web("seen", "fd00::1"))?;
    let (node, _reach) = node(&plane, "seen", &plane.kubeconfig(), &[])?;
    assert!(node.says("seen", "fd00::1")?);
    // The service through which pods reach the API server is every cluster's.
    let (rcode, _) = node.ask("kubernetes.default.svc.cluster.local")?;
    assert_eq!(rcode, ResponseCode::NoError);

    for address in ["fd00::2", "fd00::3", "fd00::4"] {
        plane.apply(&web("seen", address))?;
        node.comes_to_say("seen", address, CHANGE)?;
    }
    plane.run(async {
        let services = Api::<Service>::namespaced(plane.client(), "seen");
        services.delete("web", &DeleteParams::default()).await
    })?;
    eventually("the service to be gone", CHANGE, || {
        let (rcode, _) = node.ask("web.seen.svc.cluster.local")?;
        Ok((rcode == ResponseCode::NXDomain).then_some(()))
    })?;
    let source = node.peak.status()?.source;
    assert_eq!((&*source.kind, &*source.state), ("kubernetes", "current"));
    assert_eq!(source.from, format!("https://{}", plane.address()));
    Ok(())
}

#[test]
fn only_the_namespaces_that_were_named_are_answered() -> Result<()> {
    let plane = ControlPlane::shared()?;
    for namespace in ["named-a", "named-b", "unnamed"] {
        plane.apply(&web(namespace, "fd00::1"))?;
    }
    let names = ["--namespace", "named-a,named-b"];
    let (node, _reach) = node(&plane, "named", &plane.kubeconfig(), &names)?;
    assert!(node.says("named-a", "fd00::1")? && node.says("named-b", "fd00::1")?);
    let (rcode, _) = node.ask("web.unnamed.svc.cluster.local")?;
    assert_eq!(rcode, ResponseCode::NXDomain);
    Ok(())
}

/// SERVFAIL before the first list is complete; and what happens while the agent has no way to the API server is caught up
/// with, deletions included.
#[test]
fn the_way_to_the_api_server_comes_and_goes() -> Result<()> {
    let plane = ControlPlane::shared()?;
    for namespace in ["stays", "goes"] {
        plane.apply(&web(namespace, "fd00::1"))?;
    }
    let mut node = Node::launch("away", &plane.kubeconfig(), &[])?;
    eventually("an answer", LIMIT, || {
        Ok(node.ask("web.stays.svc.cluster.local").ok())
    })?;
    for name in [
        "web.stays.svc.cluster.local",
        "nobody.stays.svc.cluster.local",
    ] {
        assert_eq!(node.ask(name)?.0, ResponseCode::ServFail);
    }
    assert!(!node.peak.status()?.ready);
    let reach = plane.reach_from(&node.namespace)?;
    node.peak.ready()?;
    assert!(node.says("stays", "fd00::1")? && node.says("goes", "fd00::1")?);

    drop(reach);
    node.becomes("stale")?;
    plane.apply(&web("stays", "fd00::2"))?;
    plane.run(async {
        let client = plane.client();
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), "goes");
        slices.delete("web-1", &DeleteParams::default()).await?;
        let services = Api::<Service>::namespaced(client, "goes");
        services.delete("web", &DeleteParams::default()).await
    })?;
    assert!(node.peak.status()?.ready, "readiness stays");
    assert!(node.says("stays", "fd00::1")? && node.says("goes", "fd00::1")?);
    let _reach = plane.reach_from(&node.namespace)?;
    node.comes_to_say("stays", "fd00::2", LIMIT)?;
    eventually("the service to be gone", LIMIT, || {
        let (rcode, _) = node.ask("web.goes.svc.cluster.local")?;
        Ok((rcode == ResponseCode::NXDomain).then_some(()))
    })?;
    node.becomes("current")
}

#[test]
fn the_api_server_and_etcd_may_die() -> Result<()> {
    let mut plane = ControlPlane::start("outage")?;
    plane.apply(&web("outage", "fd00::1"))?;
    let (mut node, _reach) = node(&plane, "outage", &plane.kubeconfig(), &[])?;
    assert!(node.says("outage", "fd00::1")?);

    plane.kill(Component::ApiServer);
    node.becomes("stale")?;
    assert!(node.says("outage", "fd00::1")? && node.peak.status()?.ready);
    plane.renew_certificate()?;
    plane.restart(Component::ApiServer)?;
    plane.apply(&web("outage", "fd00::2"))?;
    node.comes_to_say("outage", "fd00::2", LIMIT)?;
    node.becomes("current")?;

    plane.kill(Component::Etcd);
    for _ in 0..20 {
        assert!(node.says("outage", "fd00::2")? && node.peak.status()?.ready);
        std::thread::sleep(Duration::from_millis(50));
    }
    plane.restart(Component::Etcd)?;
    plane.apply(&web("outage", "fd00::3"))?;
    node.comes_to_say("outage", "fd00::3", LIMIT)?;

    // Each change of state is one line, whatever number of watches and attempts there was.
    let log = node.peak.process().log();
    let lost = log.matches("can't reach the API server").count();
    let again = log.matches("the API server is watched again").count();
    assert!((1..=4).contains(&lost) && (1..=4).contains(&again), "{log}");
    Ok(())
}

/// What etcd has lost comes to be known: first what was there some time ago, then nothing at all.
#[test]
fn etcd_may_lose_what_it_holds() -> Result<()> {
    let mut plane = ControlPlane::start("loss")?;
    plane.apply(&web("loss", "fd00::1"))?;
    plane.apply(&fs::read_to_string("../deploy/rbac.yaml")?)?;
    let account = plane.kubeconfig_of("peak", "peak")?;
    let (mut stranger, _strangers_reach) = self::node(&plane, "stranger", &account, &[])?;
    let (node, _reach) = node(&plane, "loss", &plane.kubeconfig(), &[])?;
    plane.kill(Component::Etcd);
    let saved = plane.save_etcd()?;
    plane.restart(Component::Etcd)?;
    plane.apply(&web("loss", "fd00::2"))?;
    plane.apply(&web("later", "fd00::3"))?;
    node.comes_to_say("loss", "fd00::2", LIMIT)?;
    node.comes_to_say("later", "fd00::3", LIMIT)?;

    let lose = |plane: &mut ControlPlane, saved: Option<&TempDir>, known: &str| -> Result<()> {
        plane.kill(Component::ApiServer);
        plane.kill(Component::Etcd);
        plane.put_etcd_back(saved)?;
        node.becomes("stale")?;
        assert!(node.says("loss", known)? && node.peak.status()?.ready);
        plane.restart(Component::Etcd)?;
        plane.restart(Component::ApiServer)
    };
    let vanishes = |namespace: &str| {
        eventually(&format!("{namespace} to be gone"), LIMIT, || {
            let (rcode, _) = node.ask(&format!("web.{namespace}.svc.cluster.local"))?;
            Ok((rcode == ResponseCode::NXDomain).then_some(()))
        })
    };
    lose(&mut plane, Some(&saved), "fd00::2")?;
    node.comes_to_say("loss", "fd00::1", LIMIT)?;
    vanishes("later")?;
    node.becomes("current")?;
    plane.apply(&web("loss", "fd00::4"))?;
    node.comes_to_say("loss", "fd00::4", CHANGE)?;

    // An API server that says there is nothing is believed. One that does not know us any more says nothing.
    stranger.comes_to_say("loss", "fd00::4", LIMIT)?;
    lose(&mut plane, None, "fd00::4")?;
    vanishes("loss")?;
    eventually("the account to be unknown", LIMIT, || {
        let said = stranger.peak.process().log();
        Ok(said
            .contains("the API server does not know us")
            .then_some(()))
    })?;
    assert!(stranger.says("loss", "fd00::4")? && stranger.peak.status()?.ready);
    node.becomes("current")?;
    plane.apply(&web("loss", "fd00::5"))?;
    node.comes_to_say("loss", "fd00::5", CHANGE)?;
    assert!(node.peak.status()?.ready);
    Ok(())
}

/// Metrics tell how the source fares; a `peak/answers` that makes no sense is counted there, and told once.
#[test]
fn what_is_wrong_is_counted_and_told_once() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let service = |answers: &str, port: u16| {
        format!(
            r#"
apiVersion: v1
kind: Service
metadata: {{namespace: told, name: web, annotations: {{peak/answers: "{answers}"}}}}
spec: {{clusterIP: None, ipFamilyPolicy: SingleStack, ipFamilies: [IPv6], ports: [{{port: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: told, name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv6
endpoints: [{{addresses: ["fd00::1"]}}, {{addresses: ["fd00::2"]}}]
"#
        )
    };
    plane.apply(&service("some", 80))?;
    let more = ["--namespace", "told", "--metrics", "127.0.0.1:9953"];
    let (mut node, reach) = node(&plane, "told", &plane.kubeconfig(), &more)?;
    let samples = |node: &Node| -> Result<BTreeSet<String>> {
        let said = http_get(&node.namespace, "127.0.0.1:9953", "/metrics")?;
        let of_source = said.lines().filter(|line| line.starts_with("peak_source_"));
        Ok(of_source.map(str::to_owned).collect())
    };
    let told = |node: &mut Node| {
        let line = "Service told/web: metadata.annotations.peak/answers: ";
        node.peak.process().log().matches(line).count()
    };
    let before = samples(&node)?;
    for expected in [
        r#"peak_source_info{kind="kubernetes"} 1"#,
        "peak_source_current 1.0",
        "peak_source_bad_annotations 1.0",
        r#"peak_source_lists_total{resource="services"} 1"#,
        r#"peak_source_lists_total{resource="endpointslices.discovery.k8s.io"} 1"#,
        r#"peak_source_unreadable_objects_total{resource="services"} 0"#,
        r#"peak_source_trouble{reason="unreachable"} 0.0"#,
        r#"peak_source_trouble{reason="forbidden"} 0.0"#,
    ] {
        assert!(
            before.contains(expected),
            "{expected} is not in {before:#?}"
        );
    }
    let age = before
        .iter()
        .find_map(|line| line.strip_prefix("peak_source_age_seconds "));
    assert!(age.context("an age")?.parse::<f64>()? < 60.0);
    assert_eq!(told(&mut node), 1);
    let answers = |node: &Node| anyhow::Ok(node.ask("web.told.svc.cluster.local")?.1.len());
    assert_eq!(answers(&node)?, 2, "the default applies");

    // Another change says nothing new of it; another value does, and a good one is the end.
    for (value, port, lines, bad) in [
        ("some", 81, 1, "1.0"),
        ("0", 81, 2, "1.0"),
        ("one", 81, 2, "0.0"),
    ] {
        let generation = node.peak.status()?.snapshot.generation;
        plane.apply(&service(value, port))?;
        eventually("the change", CHANGE, || {
            Ok((node.peak.status()?.snapshot.generation > generation).then_some(()))
        })?;
        assert_eq!(told(&mut node), lines, "{value}");
        let sample = format!("peak_source_bad_annotations {bad}");
        assert!(samples(&node)?.contains(&sample), "{value}");
    }
    assert_eq!(answers(&node)?, 1);
    let services = |samples: &BTreeSet<String>| {
        let prefix = r#"peak_source_events_total{resource="services"} "#;
        let count = samples.iter().find_map(|line| line.strip_prefix(prefix));
        count.and_then(|count| count.parse::<u64>().ok())
    };
    assert_eq!(
        services(&samples(&node)?),
        services(&before).map(|count| count + 3)
    );

    drop(reach);
    eventually("the trouble to be told", LIMIT, || {
        let now = samples(&node)?;
        let stale = now.contains("peak_source_current 0.0");
        Ok(
            (stale && now.contains(r#"peak_source_trouble{reason="unreachable"} 1.0"#))
                .then_some(()),
        )
    })
}

/// What `deploy/rbac.yaml` grants is enough, and all of it is needed.
#[test]
fn the_role_is_enough_and_no_more() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&fs::read_to_string("../deploy/rbac.yaml")?)?;
    plane.apply(&web("role", "fd00::1"))?;
    let kubeconfig = plane.kubeconfig_of("peak", "peak")?;
    let (node, _reach) = node(&plane, "role", &kubeconfig, &[])?;
    assert!(node.says("role", "fd00::1")?);
    plane.apply(&web("role", "fd00::2"))?;
    node.comes_to_say("role", "fd00::2", CHANGE)?;

    let refused = plane.run(async {
        let kubeconfig = Kubeconfig::read_from(&kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        let all = ListParams::default();
        let services = || Api::<Service>::namespaced(client.clone(), "role");
        let mut service = services().list(&all).await?.items.remove(0);
        let slices = || Api::<EndpointSlice>::namespaced(client.clone(), "role");
        slices().list(&all).await?;
        service.metadata.resource_version = None;
        anyhow::Ok([
            ("get a service", services().get("web").await.err()),
            (
                "create a service",
                services()
                    .create(&PostParams::default(), &service)
                    .await
                    .err(),
            ),
            (
                "delete a service",
                services()
                    .delete("web", &DeleteParams::default())
                    .await
                    .err(),
            ),
            ("get a slice", slices().get("web-1").await.err()),
            (
                "list pods",
                Api::<Pod>::all(client.clone()).list(&all).await.err(),
            ),
            (
                "list secrets",
                Api::<Secret>::all(client.clone()).list(&all).await.err(),
            ),
            (
                "list namespaces",
                Api::<KubeNamespace>::all(client.clone())
                    .list(&all)
                    .await
                    .err(),
            ),
        ])
    })?;
    for (what, error) in refused {
        let error = error.with_context(|| format!("Peak's role may {what}"))?;
        ensure!(
            matches!(&error, kube::Error::Api(status) if status.code == 403),
            "{what}: {error}"
        );
    }
    Ok(())
}

/// In a pod, the service account is all that is needed.
#[test]
fn a_pod_needs_no_kubeconfig() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&fs::read_to_string("../deploy/rbac.yaml")?)?;
    plane.apply(&web("pod", "fd00::1"))?;
    let account = plane.service_account("peak", "peak")?;
    let namespace = Namespace::new("pod")?;
    let _reach = plane.reach_from(&namespace)?;
    let arguments = ["--xdp", "off", "--listen", "[::1]:53"];
    let peak = Peak::launch_in_pod(&namespace, account.path(), plane.address(), &arguments)?;
    let mut node = Node { peak, namespace };
    node.peak.ready()?;
    assert!(node.says("pod", "fd00::1")?);
    plane.apply(&web("pod", "fd00::2"))?;
    node.comes_to_say("pod", "fd00::2", CHANGE)?;
    let source = node.peak.status()?.source;
    assert_eq!(source.from, format!("https://{}", plane.address()));
    Ok(())
}

#[test]
fn a_missing_rule_is_named() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&web("missing", "fd00::1"))?;
    let kubeconfig = plane.kubeconfig_of("missing", "half")?;
    let role = |rules: &str| {
        format!(
            r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: half}}
rules:
  - {{apiGroups: [""], resources: [services], verbs: [list, watch]}}
{rules}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: half}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: half}}
subjects: [{{kind: ServiceAccount, namespace: missing, name: half}}]
"#
        )
    };
    plane.apply(&role(""))?;
    let mut node = Node::launch("missing", &kubeconfig, &[])?;
    let _reach = plane.reach_from(&node.namespace)?;
    let rule = r#"{apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]}"#;
    eventually("the missing rule to be named", LIMIT, || {
        Ok(node.peak.process().log().contains(rule).then_some(()))
    })?;
    assert!(!node.peak.status()?.ready);
    assert_eq!(
        node.ask("web.missing.svc.cluster.local")?.0,
        ResponseCode::ServFail
    );
    plane.apply(&role(
        "  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}",
    ))?;
    node.peak.ready()?;
    assert!(node.says("missing", "fd00::1")?);
    Ok(())
}
