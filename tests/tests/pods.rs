//! Names of pods that a cluster vouches for: `--pods verified`, beside CoreDNS's `pods verified`.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use peak_tests::{ControlPlane, CoreDns, Net, Peak, ask, eventually, pass};
use serde_json::json;

/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);

/// What an answer comes to.
type Said = (ResponseCode, BTreeSet<IpAddr>);

fn said(server: SocketAddr, name: &str, qtype: RecordType) -> Result<Said> {
    let reply = ask(server, name, qtype)?;
    let addresses = reply.answers.iter().filter_map(|one| one.data.ip_addr());
    ensure!(
        reply
            .answers
            .iter()
            .all(|one| !matches!(one.data, RData::CNAME(_))),
        "{name}: {reply}"
    );
    Ok((reply.metadata.response_code, addresses.collect()))
}

/// Makes a pod, and says of it what a kubelet would.
fn run_pod(
    plane: &ControlPlane,
    namespace: &str,
    name: &str,
    phase: &str,
    ips: &[&str],
) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [{"name": "c", "image": "c"}]},
    });
    // It is admitted once its namespace's service account is there, which a controller makes.
    eventually("a pod to be admitted", LIMIT, || {
        Ok(plane.apply(&pod.to_string()).ok())
    })?;
    let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let status = json!({"status": {"phase": phase, "podIP": ips.first(), "podIPs": all}});
    plane.run(async {
        let pods = Api::<Pod>::namespaced(plane.client(), namespace);
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await
    })?;
    Ok(())
}

#[test]
fn verified_pods_are_those_of_the_cluster() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&fs::read_to_string("../deploy/rbac.yaml")?)?;
    let kubeconfig = plane.kubeconfig_of("peak", "peak")?;
    run_pod(
        &plane,
        "shop",
        "web-1",
        "Running",
        &["10.244.1.7", "fd00:10:244:1::7"],
    )?;
    run_pod(&plane, "shop", "web-2", "Running", &["fd00:10:244:1::8"])?;
    run_pod(&plane, "shop", "web-3", "Pending", &[])?;
    run_pod(&plane, "shop", "job", "Succeeded", &["10.244.1.9"])?;
    // As those in their node's network do.
    run_pod(&plane, "db", "a", "Running", &["192.0.2.10"])?;
    run_pod(&plane, "db", "b", "Running", &["192.0.2.10"])?;

    // Not before the rule is there is anything denied.
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let _reach = plane.reach_from(&node)?;
    let path = kubeconfig.to_str().context("a plain path")?;
    let arguments = [
        "--interface",
        "eth0",
        "--kubeconfig",
        path,
        "--pods",
        "verified",
    ];
    let mut peak = Peak::launch(&node, arguments)?;
    let rule = r#"{apiGroups: [""], resources: ["pods"], verbs: ["list", "watch"]}, which deploy/rbac-pods.yaml grants"#;
    eventually("the missing rule to be named", LIMIT, || {
        Ok(peak.process().log().contains(rule).then_some(()))
    })?;
    let server = SocketAddr::new(Net::SERVERS[0].parse()?, 53);
    let peak_says = |name: &str, qtype| client.run(|| said(server, name, qtype));
    let first = "10-244-1-7.shop.pod.cluster.local";
    assert_eq!(peak_says(first, RecordType::A)?.0, ResponseCode::ServFail);
    plane.apply(&fs::read_to_string("../deploy/rbac-pods.yaml")?)?;
    peak.ready()?;

    let coredns = CoreDns::start(&plane, "pods", &["pods verified"])?;
    let names = [
        ("10-244-1-7.shop", true),
        // CoreDNS knows a pod's first address alone,
        ("fd00-10-244-1--7.shop", false),
        ("fd00-10-244-1--8.shop", true),
        ("10-244-1-8.shop", true),
        ("10-244-1-9.shop", true),
        ("10-244-1-7.db", true),
        ("192-0-2-10.db", true),
        ("web-1.shop", true),
        ("shop", true),
        // and that a namespace is there, not whether it has pods.
        ("default", false),
        ("nowhere", true),
        ("10-244-1-7.nowhere", true),
    ];
    for kernel in [true, false] {
        peak.kernel(kernel)?;
        let before = peak.status()?.counted();
        for (name, is_same) in names {
            let name = format!("{name}.pod.cluster.local");
            let answers = [RecordType::A, RecordType::AAAA].map(|qtype| {
                let theirs = said(coredns.address(), &name, qtype)?;
                anyhow::Ok((peak_says(&name, qtype)?, theirs))
            });
            let mut same = true;
            for answer in answers {
                let (ours, theirs) = answer?;
                same &= ours == theirs;
                assert!(!is_same || ours == theirs, "{name}: {ours:?} or {theirs:?}");
            }
            assert_eq!(same, is_same, "{name}");
        }
        let counted = peak.status()?.counted() - before;
        let all = 2 * names.len() as u64;
        let expected = if kernel { (all, 0) } else { (0, all) };
        assert_eq!((counted.kernel, counted.fallback), expected);
    }
    peak.kernel(true)?;
    let is = |name: &str, qtype, address: &str| -> Result<()> {
        let said = peak_says(&format!("{name}.pod.cluster.local"), qtype)?;
        assert_eq!(
            said,
            (ResponseCode::NoError, [address.parse()?].into()),
            "{name}"
        );
        Ok(())
    };
    is("10-244-1-7.shop", RecordType::A, "10.244.1.7")?;
    is(
        "fd00-10-244-1--7.shop",
        RecordType::AAAA,
        "fd00:10:244:1::7",
    )?;
    is("192-0-2-10.db", RecordType::A, "192.0.2.10")?;

    // Pods end, go, and come.
    let vanishes = |name: &str| {
        eventually(&format!("{name} to be gone"), LIMIT, || {
            let (rcode, _) = peak_says(&format!("{name}.pod.cluster.local"), RecordType::A)?;
            Ok((rcode == ResponseCode::NXDomain).then_some(()))
        })
    };
    let delete = |namespace: &str, name: &str| {
        plane.run(async {
            let pods = Api::<Pod>::namespaced(plane.client(), namespace);
            pods.delete(name, &DeleteParams::default().grace_period(0))
                .await
        })
    };
    run_pod(&plane, "shop", "web-1", "Failed", &["10.244.1.7"])?;
    vanishes("10-244-1-7.shop")?;
    delete("db", "a")?;
    run_pod(&plane, "db", "c", "Running", &["192.0.2.11"])?;
    eventually("the new pod", LIMIT, || {
        let (rcode, _) = peak_says("192-0-2-11.db.pod.cluster.local", RecordType::A)?;
        Ok((rcode == ResponseCode::NoError).then_some(()))
    })?;
    is("192-0-2-10.db", RecordType::A, "192.0.2.10")?;
    delete("db", "b")?;
    vanishes("192-0-2-10.db")?;

    // The role allows no more than it says.
    let refused = plane.run(async {
        let kubeconfig = Kubeconfig::read_from(&kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        Api::<Pod>::all(client.clone())
            .list(&ListParams::default())
            .await?;
        let pods = Api::<Pod>::namespaced(client, "db");
        anyhow::Ok([
            ("get", pods.get("c").await.err()),
            ("log", pods.logs("c", &Default::default()).await.err()),
            (
                "delete",
                pods.delete("c", &DeleteParams::default()).await.err(),
            ),
        ])
    })?;
    for (verb, error) in refused {
        let error = error.with_context(|| format!("Peak's role may {verb} a pod"))?;
        ensure!(
            matches!(&error, kube::Error::Api(status) if status.code == 403),
            "{verb}: {error}"
        );
    }
    Ok(())
}
