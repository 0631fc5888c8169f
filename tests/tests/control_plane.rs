//! The control plane is a real one, does what it is told, and leaves nothing behind.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use hickory_proto::rr::{RData, RecordType, rdata::A};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use peak_tests::{Component, ControlPlane, CoreDns, Namespace, Running, ask, eventually, scratch};
use rustix::process::Signal;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);
/// How long `peak-cluster` may take to print where it is.
const START: Duration = Duration::from_secs(120);

const SLICE: &str = r#"
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  namespace: NAMESPACE
  name: web-1
  labels:
    kubernetes.io/service-name: web
addressType: IPv6
endpoints:
  - addresses: ["fd00::1"]
    hostname: first
  - addresses: ["fd00::2"]
    conditions: {ready: false}
ports:
  - {name: http, port: 8080}
"#;

/// The addresses of a namespace's slices.
async fn addresses(client: Client, namespace: &str) -> kube::Result<BTreeSet<String>> {
    let slices = Api::<EndpointSlice>::namespaced(client, namespace);
    let slices = slices.list(&ListParams::default()).await?;
    let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints);
    Ok(endpoints.flatten().flat_map(|one| one.addresses).collect())
}

/// A client as a kubeconfig says, without what the environment might add.
async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// The processes that work in a folder.
fn working_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // Others' processes come and go meanwhile.
        if fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder) {
            found.push(process);
        }
    }
    Ok(found)
}

/// Waits until the processes are gone.
fn gone(processes: &[PathBuf]) -> Result<()> {
    eventually("processes to be gone", LIMIT, || {
        let left = processes.iter().any(|process| process.exists());
        Ok((!left).then_some(()))
    })
}

#[test]
fn slices_are_applied_and_read_back() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(&SLICE.replace("NAMESPACE", "read-back"))?;
    // Applied again, they replace what was there.
    let changed = SLICE.replace("NAMESPACE", "read-back");
    plane.apply(&changed.replace("fd00::2", "fd00::3"))?;

    let slice = plane.run(async {
        Api::<EndpointSlice>::namespaced(plane.client(), "read-back")
            .get("web-1")
            .await
    })?;
    let endpoints = slice.endpoints.unwrap_or_default();
    let addresses: Vec<_> = endpoints.iter().flat_map(|one| &one.addresses).collect();
    assert_eq!(addresses, ["fd00::1", "fd00::3"]);
    assert_eq!(endpoints[0].hostname.as_deref(), Some("first"));
    let ready = |index: usize| endpoints[index].conditions.as_ref()?.ready;
    assert_eq!((ready(0), ready(1)), (None, Some(false)));
    Ok(())
}

#[test]
fn what_the_api_server_refuses_is_named() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let slice = SLICE.replace("NAMESPACE", "refused");
    let error = plane
        .apply(&slice.replace("fd00::1", "10.0.0.1"))
        .expect_err("an IPv4 address in a slice of IPv6");
    assert!(
        format!("{error:#}").contains("EndpointSlice web-1"),
        "{error:#}"
    );
    assert!(plane.apply("not: an object").is_err());
    Ok(())
}

#[test]
fn it_is_the_version_that_is_linked() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let version = plane.run(async { plane.client().apiserver_version().await })?;
    assert_eq!(
        (version.major.as_str(), version.minor.as_str()),
        ("1", "36")
    );
    Ok(())
}

#[test]
fn services_get_addresses_of_both_families() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(
        r"
apiVersion: v1
kind: Service
metadata: {namespace: both, name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, port: 80}]
",
    )?;
    let service = plane.run(async {
        Api::<Service>::namespaced(plane.client(), "both")
            .get("web")
            .await
    })?;
    let addresses = service.spec.and_then(|spec| spec.cluster_ips);
    let addresses = addresses.context("it has addresses")?;
    assert!(addresses[0].starts_with("10.96."), "{addresses:?}");
    assert!(addresses[1].starts_with("fd00:10:96::"), "{addresses:?}");
    Ok(())
}

#[test]
fn controllers_write_the_slices_of_pods() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(
        r"
apiVersion: v1
kind: Service
metadata: {namespace: pods, name: web}
spec:
  clusterIP: None
  ipFamilies: [IPv6]
  selector: {app: web}
  ports: [{name: http, port: 8080}]
",
    )?;
    // A pod counts if its node is there.
    let pod = r"
apiVersion: v1
kind: Node
metadata: {name: node}
---
apiVersion: v1
kind: Pod
metadata: {namespace: pods, name: web-1, labels: {app: web}}
spec:
  nodeName: node
  containers: [{name: web, image: web}]
";
    // A pod is admitted once its namespace's service account is there, which a controller makes.
    eventually("the pod to be admitted", LIMIT, || {
        Ok(plane.apply(pod).ok())
    })?;
    // A kubelet would say so.
    let status = json!({"status": {
        "phase": "Running",
        "podIP": "fd00::7",
        "podIPs": [{"ip": "fd00::7"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    plane.run(async {
        Api::<Pod>::namespaced(plane.client(), "pods")
            .patch_status("web-1", &PatchParams::default(), &Patch::Merge(status))
            .await
    })?;
    eventually("the pod's endpoint", LIMIT, || {
        let addresses = plane.run(addresses(plane.client(), "pods"))?;
        Ok((addresses == BTreeSet::from(["fd00::7".to_owned()])).then_some(()))
    })
}

#[test]
fn service_accounts_may_do_what_is_bound_to_them() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let kubeconfig = plane.kubeconfig_of("bound", "reader")?;
    let reader = plane.run(client(&kubeconfig))?;
    let list = || plane.run(addresses(reader.clone(), "bound"));
    match list() {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 403, "{status:?}"),
        other => bail!("a service account without a role has read {other:?}"),
    }
    plane.apply(
        r"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: slice-reader}
rules:
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: slice-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: slice-reader}
subjects: [{kind: ServiceAccount, namespace: bound, name: reader}]
",
    )?;
    let listed = eventually("the role to be in force", LIMIT, || Ok(list().ok()))?;
    assert!(listed.is_empty(), "{listed:?}");
    Ok(())
}

#[test]
fn it_is_within_reach_of_a_namespace_while_that_is_wanted() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let namespace = Namespace::new("reach")?;
    let connect = || namespace.run(|| TcpStream::connect(plane.address()));
    assert!(connect().is_err(), "a namespace has a loopback of its own");

    let reach = plane.reach_from(&namespace)?;
    let version = namespace.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let client = client(&plane.kubeconfig()).await?;
            anyhow::Ok(client.apiserver_version().await?)
        })
    })?;
    assert_eq!(version.minor, "36");

    drop(reach);
    eventually("the way to be closed", LIMIT, || {
        Ok(connect().is_err().then_some(()))
    })
}

#[test]
fn coredns_serves_what_the_api_server_has() -> Result<()> {
    let plane = ControlPlane::shared()?;
    let coredns = CoreDns::start(&plane, "coredns", &[])?;
    let name = "kubernetes.default.svc.cluster.local";
    let reply = ask(coredns.address(), name, RecordType::A)?;
    let answers: Vec<_> = reply.answers.iter().map(|record| &record.data).collect();
    // The first address of the range is the API server's own.
    assert_eq!(answers, [&RData::A(A::new(10, 96, 0, 1))]);
    assert!(reply.metadata.authoritative);
    Ok(())
}

#[test]
fn components_are_killed_and_restarted_without_loss() -> Result<()> {
    let mut plane = ControlPlane::start("restart")?;
    plane.apply(&SLICE.replace("NAMESPACE", "kept"))?;
    let expected = BTreeSet::from(["fd00::1", "fd00::2"].map(str::to_owned));
    let kept = |plane: &ControlPlane| plane.run(addresses(plane.client(), "kept"));
    assert_eq!(kept(&plane)?, expected);

    plane.kill(Component::ApiServer);
    assert!(TcpStream::connect(plane.address()).is_err());
    let before = fs::read(plane.kubeconfig())?;
    plane.renew_certificate()?;
    plane.restart(Component::ApiServer)?;
    assert_eq!(kept(&plane)?, expected);
    assert_eq!(fs::read(plane.kubeconfig())?, before);

    plane.restart(Component::Etcd)?;
    assert_eq!(kept(&plane)?, expected);
    plane.restart(Component::ControllerManager)?;
    plane.check()?;

    for component in ["etcd", "kube-apiserver", "kube-controller-manager"] {
        let log = plane.logs().join(component).with_extension("log");
        assert!(fs::metadata(&log)?.len() > 0, "{}", log.display());
    }

    let folder = plane.kubeconfig();
    let folder = folder.parent().context("it is in a folder")?;
    let processes = working_in(folder)?;
    assert_eq!(processes.len(), 3, "{processes:?}");
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let _plane = plane;
        panic_any(());
    }));
    assert!(outcome.is_err());
    assert!(processes.iter().all(|process| !process.exists()));
    assert!(!folder.exists());
    Ok(())
}

/// Starts `peak-cluster` and waits for the kubeconfig that it prints.
fn cluster(label: &str) -> Result<(Running, PathBuf)> {
    let folder = scratch()?;
    let printed = folder.path().join("stdout");
    let mut cluster = Running::start(
        Command::new(env!("CARGO_BIN_EXE_peak-cluster"))
            .args(["--manifests", "../deploy/samples", "--label", label])
            .stdout(fs::File::create(&printed)?),
    )?;
    let kubeconfig = eventually("the KUBECONFIG line", START, || {
        if let Some(status) = cluster.ended()? {
            bail!("it ended ({status}): {}", cluster.log());
        }
        let printed = fs::read_to_string(&printed)?;
        let line = printed
            .strip_suffix('\n')
            .and_then(|line| line.strip_prefix("export KUBECONFIG="));
        Ok(line.map(PathBuf::from))
    })?;
    Ok((cluster, kubeconfig))
}

#[test]
fn a_persons_cluster_has_the_samples_and_ends_with_ctrl_c() -> Result<()> {
    let (mut cluster, kubeconfig) = cluster("ctrl-c")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shop = runtime
        .block_on(async { anyhow::Ok(addresses(client(&kubeconfig).await?, "shop").await?) })?;
    assert!(shop.contains("fd00:10:244:9::2"), "{shop:?}");
    assert!(shop.contains("10.244.9.2"), "{shop:?}");

    let folder = kubeconfig.parent().context("it is in a folder")?;
    let processes = working_in(folder)?;
    assert_eq!(processes.len(), 3, "{processes:?}");
    cluster.signal(Signal::INT)?;
    assert!(cluster.wait(LIMIT)?.success(), "{}", cluster.log());
    assert!(processes.iter().all(|process| !process.exists()));
    assert!(!folder.exists());
    Ok(())
}

#[test]
fn nothing_outlives_a_killed_process() -> Result<()> {
    let (mut cluster, kubeconfig) = cluster("killed")?;
    let processes = working_in(kubeconfig.parent().context("it is in a folder")?)?;
    assert_eq!(processes.len(), 3, "{processes:?}");
    cluster.signal(Signal::KILL)?;
    assert!(!cluster.wait(LIMIT)?.success());
    gone(&processes)
}
