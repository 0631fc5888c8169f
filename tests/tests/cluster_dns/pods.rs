//! Names of pods.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use peak_tests::{ControlPlane, eventually};
use serde_json::json;

use crate::names::Names;

/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "pods-verified";

/// What is asked for where any address is somebody's.
pub(crate) fn insecure() -> Names {
    let names = [
        ("10-1-2-3.s-case", "any-pod"),
        ("fd00--1.s-case", "any-pod"),
        ("fd00--0.s-case", "any-pod"),
        ("1-2-3-4-5-6-7-8.s-case", "any-pod"),
        ("10-1-2-3.default", "any-pod"),
        ("10-1-2-3.kube-system", "any-pod"),
        ("10-1-2-3.nowhere", "any-nowhere"),
        ("x.10-1-2-3.s-case", "any-below"),
        ("s-case", "any-namespace"),
        ("kube-system", "any-namespace"),
        ("nowhere", "any-nowhere-namespace"),
        ("web.s-case", "any-absent"),
        ("1-2-3.s-case", "any-absent"),
        ("256-1-1-1.s-case", "any-absent"),
        ("1-2-3-4-5.s-case", "any-absent"),
        ("10-1-2-3", "any-nowhere-namespace"),
    ];
    let mut names = in_zone(&names);
    names.insert("svc.cluster.local.".to_owned(), "svc");
    names
}

fn in_zone(names: &[(&str, &'static str)]) -> Names {
    let names = names.iter();
    names
        .map(|(name, kind)| (format!("{name}.pod.cluster.local."), *kind))
        .collect()
}

/// Creates pods, and gives the names that are to be asked for.
pub(crate) fn create(plane: &ControlPlane) -> Result<Names> {
    for (name, phase, ips) in [
        ("v4", "Running", &["10.201.0.1"][..]),
        ("v6", "Running", &["fd00:201::1"]),
        ("both", "Running", &["10.201.0.2", "fd00:201::2"]),
        ("ended", "Succeeded", &["10.201.0.3"]),
        ("failed", "Failed", &["10.201.0.4"]),
        ("goes", "Running", &["10.201.0.5"]),
        ("shares", "Running", &["10.201.0.1"]),
    ] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            // It stays while it goes, as with a kubelet that ends it.
            "metadata": {"namespace": NAMESPACE, "name": name, "finalizers": ["peak.test/stays"]},
            "spec": {"containers": [{"name": "c", "image": "c"}]},
        });
        // It is admitted once its namespace's service account is there, which a controller makes.
        eventually("a pod to be admitted", LIMIT, || {
            Ok(plane.apply(&pod.to_string()).ok())
        })?;
        let all: Vec<_> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"phase": phase, "podIP": ips[0], "podIPs": all}});
        plane.run(async {
            let pods = Api::<Pod>::namespaced(plane.client(), NAMESPACE);
            pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                .await?;
            if name == "goes" {
                pods.delete(name, &DeleteParams::default()).await?;
            }
            anyhow::Ok(())
        })?;
    }
    Ok(in_zone(&[
        ("10-201-0-1.pods-verified", "pod"),
        ("fd00-201--1.pods-verified", "pod"),
        ("10-201-0-2.pods-verified", "pod"),
        ("fd00-201--2.pods-verified", "second-address"),
        ("10-201-0-3.pods-verified", "no-pod"),
        ("10-201-0-4.pods-verified", "no-pod"),
        ("10-201-0-5.pods-verified", "terminating-pod"),
        ("10-201-0-9.pods-verified", "no-pod"),
        ("10-201-0-1.default", "no-pod"),
        ("10-201-0-1.nowhere", "no-pod"),
        ("web.pods-verified", "no-pod"),
        ("x.10-201-0-1.pods-verified", "below-pod"),
        ("pods-verified", "pods-namespace"),
        ("default", "no-pods-namespace"),
        ("nowhere", "no-pod"),
    ]))
}
