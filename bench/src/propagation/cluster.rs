//! A made-up cluster of any size that looks like a real one to who reads it: Services and the EndpointSlices that the
//! controller would make for them, with all the fields that a DNS server has no use for.

use std::{fmt::Write as _, iter, net::Ipv6Addr};

use anyhow::{Context, Result};
use fastrand::Rng;
use http::{Request, header::CONTENT_TYPE};
use peak_tests::ControlPlane;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// Most endpoints of a slice, as the controller makes them by default.
pub(super) const SLICE: u32 = 100;
/// How many requests to the API server are under way while the cluster is made.
const REQUESTS: usize = 8;
/// Of so many services one is headless, with the hostnames of a StatefulSet's pods. The others have a ClusterIP.
const HEADLESS_ONE_IN: u32 = 5;
/// Services of a namespace.
const NAMESPACE: u32 = 20;
/// Pods of a node.
const NODE: u32 = 40;
/// How unevenly pods are spread over services: a service's share is a random number in (0, 1] to the power of minus this.
const SKEW: f64 = 0.7;

const WORDS: [&str; 24] = [
    "account",
    "audit",
    "billing",
    "cart",
    "catalog",
    "checkout",
    "coupon",
    "delivery",
    "fraud",
    "identity",
    "inventory",
    "invoice",
    "ledger",
    "mailer",
    "notification",
    "order",
    "payment",
    "pricing",
    "recommendation",
    "report",
    "search",
    "session",
    "shipment",
    "warehouse",
];
const ROLES: [&str; 6] = ["api", "worker", "gateway", "frontend", "scheduler", "grpc"];
const STATEFUL: [&str; 4] = ["db", "cache", "queue", "index"];
const ZONES: [&str; 3] = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];

/// A Service, and its pods.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) headless: bool,
    /// The number of its first pod in the cluster.
    first: u32,
    pub(super) pods: u32,
}

/// All of them, each with at least one pod if there are as many.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    pub(super) services: Vec<Service>,
    nodes: u32,
}

impl Cluster {
    /// The same for the same sizes.
    pub(super) fn new(services: u32, endpoints: u32) -> Self {
        let mut random = Rng::with_seed(u64::from(services) << 32 | u64::from(endpoints));
        let shares: Vec<f64> = iter::repeat_with(|| (1.0 - random.f64()).powf(-SKEW))
            .take(services as usize)
            .collect();
        let whole: f64 = shares.iter().sum();
        // One for each, and the rest by share: rounding the sums, not the parts, loses none.
        let spare = f64::from(endpoints.saturating_sub(services)) / whole;
        let (mut sum, mut first) = (0.0, 0);
        let services = (0..services)
            .zip(shares)
            .map(|(i, share)| {
                sum += share;
                let end = ((i + 1) + (sum * spare).round() as u32).min(endpoints);
                let word = WORDS[random.usize(..WORDS.len())];
                let headless = i % HEADLESS_ONE_IN == 0;
                let roles: &[&str] = if headless { &STATEFUL } else { &ROLES };
                let role = roles[random.usize(..roles.len())];
                let service = Service {
                    namespace: format!("team-{:03}", i / NAMESPACE),
                    name: format!("{word}-{role}-{}", i % NAMESPACE),
                    headless,
                    first,
                    pods: end - first,
                };
                first = end;
                service
            })
            .collect();
        Self {
            services,
            nodes: endpoints.div_ceil(NODE),
        }
    }

    /// How many slices it has.
    pub(super) fn slices(&self) -> u32 {
        self.services
            .iter()
            .map(|service| service.pods.div_ceil(SLICE))
            .sum()
    }

    /// A pod's address: pods that come one after the other are on different nodes.
    fn address(&self, pod: u32) -> Ipv6Addr {
        let (node, host) = (pod % self.nodes, pod / self.nodes + 2);
        Ipv6Addr::new(0xfd00, 0x10, 0x244, node as u16, 0, 0, 0, host as u16)
    }

    /// The name and the address of one of a service's endpoints.
    pub(super) fn endpoint(&self, service: &Service, index: u32) -> (String, Ipv6Addr) {
        let address = self.address(service.first + index);
        let label = if service.headless {
            format!("{}-{index}", service.name)
        } else {
            address.to_string().replace(':', "-")
        };
        let name = format!(
            "{label}.{}.{}.svc.cluster.local",
            service.name, service.namespace
        );
        (name, address)
    }

    /// A name that is known last, if objects are learnt in their order, and its address.
    pub(super) fn probe(&self) -> (String, Ipv6Addr) {
        let with_pods = self.services.iter().rfind(|service| service.pods > 0);
        self.endpoint(with_pods.expect("there is an endpoint"), 0)
    }

    /// A name at random, and its address.
    pub(super) fn any_endpoint(&self, random: &mut Rng) -> (String, Ipv6Addr) {
        loop {
            let service = &self.services[random.usize(..self.services.len())];
            if service.pods > 0 {
                return self.endpoint(service, random.u32(..service.pods));
            }
        }
    }

    /// Makes all of it.
    ///
    /// # Errors
    /// The API server refuses something.
    pub(super) fn create(&self, plane: &ControlPlane) -> Result<()> {
        let namespaces = self.services.iter().step_by(NAMESPACE as usize);
        create(
            plane,
            namespaces.map(|service| namespace(&service.namespace)),
        )?;
        let services = self.services.iter().map(|service| {
            let role = if service.headless { "None" } else { "" };
            self::service(&service.namespace, &service.name, role, &json!({}))
        });
        create(plane, services)?;
        let slices = self.services.iter().flat_map(|service| {
            (0..service.pods).step_by(SLICE as usize).map(move |begin| {
                let end = service.pods.min(begin + SLICE);
                let endpoints: Vec<_> = (begin..end)
                    .map(|index| {
                        let pod = service.first + index;
                        endpoint(service, index, self.address(pod), pod % self.nodes)
                    })
                    .collect();
                slice(&service.namespace, &service.name, begin / SLICE, &endpoints)
            })
        });
        create(plane, slices)
    }
}

/// A path of the API, and an object to be made there.
pub(crate) type Creation = (String, Value);

/// A namespace.
pub(crate) fn namespace(name: &str) -> Creation {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
    });
    ("/api/v1/namespaces".to_owned(), object)
}

/// A Service with the fields that Helm charts give one. An empty `cluster_ip` is one that the API server chooses.
pub(super) fn service(
    namespace: &str,
    name: &str,
    cluster_ip: &str,
    annotations: &Value,
) -> Creation {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "namespace": namespace, "name": name, "annotations": annotations, "labels": labels(name),
        },
        "spec": {
            "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack", "type": "ClusterIP",
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"},
                {"name": "metrics", "port": 9090, "targetPort": "metrics", "protocol": "TCP"},
            ],
            // Nobody follows it: the controllers are off.
            "selector": {"app.kubernetes.io/name": name, "app.kubernetes.io/instance": name},
        },
    });
    if !cluster_ip.is_empty() {
        object["spec"]["clusterIP"] = cluster_ip.into();
    }
    (format!("/api/v1/namespaces/{namespace}/services"), object)
}

fn labels(name: &str) -> Value {
    json!({
        "app.kubernetes.io/name": name, "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/part-of": "shop",
        "app.kubernetes.io/version": "2.17.3", "helm.sh/chart": "microservice-1.4.0",
    })
}

/// The name of a service's slice, with the five letters that the API server would draw.
pub(super) fn slice_name(service: &str, index: u32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = index.wrapping_mul(0x9e37_79b1);
    let mut name = format!("{service}-");
    for _ in 0..5 {
        name.push(LETTERS[rest as usize % LETTERS.len()].into());
        rest /= LETTERS.len() as u32;
    }
    // Drawn letters may come twice.
    write!(name, "{index}").expect("a string takes all");
    name
}

/// A slice as the controller writes it.
pub(crate) fn slice(namespace: &str, service: &str, index: u32, endpoints: &[Value]) -> Creation {
    let mut labels = labels(service);
    labels["kubernetes.io/service-name"] = service.into();
    labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io".into();
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": slice_name(service, index), "generateName": format!("{service}-"),
            "labels": labels,
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T20:21:22Z"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "uid": uid(index),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv6",
        "endpoints": endpoints,
        "ports": [
            {"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"},
            {"name": "metrics", "port": 9090, "protocol": "TCP"},
        ],
    });
    (
        format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        object,
    )
}

/// An endpoint of a pod on a node. Those of a headless service have the hostname that a StatefulSet gives them.
fn endpoint(service: &Service, index: u32, address: Ipv6Addr, node: u32) -> Value {
    let pod = if service.headless {
        format!("{}-{index}", service.name)
    } else {
        let hash = index.wrapping_add(service.first).wrapping_mul(0x9e37_79b1);
        format!("{}-7d9c5b8f64-{hash:05x}", service.name)
    };
    let mut endpoint = pod_endpoint(&service.namespace, &pod, address, node);
    if service.headless {
        endpoint["hostname"] = pod.into();
    }
    endpoint
}

/// An endpoint without a hostname.
pub(crate) fn pod_endpoint(namespace: &str, pod: &str, address: Ipv6Addr, node: u32) -> Value {
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("ip-10-0-{}-{}.eu-central-1.compute.internal", node / 256, node % 256),
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod, "uid": uid(node)},
        "zone": ZONES[node as usize % ZONES.len()],
    })
}

/// As long as a UID is.
fn uid(number: u32) -> String {
    format!("{number:08x}-8d0f-4c2e-9a41-5be7f0c61d23")
}

/// Makes objects, several at once.
///
/// # Errors
/// The API server refuses one.
pub(crate) fn create(
    plane: &ControlPlane,
    objects: impl IntoIterator<Item = Creation>,
) -> Result<()> {
    plane.run(async {
        let mut requests: JoinSet<Result<()>> = JoinSet::new();
        for (path, object) in objects {
            if requests.len() == REQUESTS
                && let Some(done) = requests.join_next().await
            {
                done??;
            }
            let client = plane.client();
            let body = serde_json::to_vec(&object)?;
            requests.spawn(async move {
                let request = Request::post(&path)
                    .header(CONTENT_TYPE, "application/json")
                    .body(body)?;
                let made = client.request_text(request).await;
                made.map(drop)
                    .with_context(|| format!("cannot make {path} {}", object["metadata"]["name"]))
            });
        }
        while let Some(done) = requests.join_next().await {
            done??;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_pods_and_every_pod_an_address() {
        for (services, endpoints) in [(1, 1), (10, 100), (1000, 10_000), (3, 2)] {
            let cluster = Cluster::new(services, endpoints);
            let sizes = cluster.services.iter().map(|service| service.pods);
            assert_eq!(sizes.sum::<u32>(), endpoints);
            let all_have = cluster.services.iter().all(|service| service.pods > 0);
            assert_eq!(all_have, endpoints >= services);
            let of_service = |service| {
                (0..Service::clone(service).pods).map(|index| cluster.endpoint(service, index))
            };
            let (names, addresses): (BTreeSet<_>, BTreeSet<_>) =
                cluster.services.iter().flat_map(of_service).unzip();
            assert_eq!(names.len(), endpoints as usize);
            assert_eq!(addresses.len(), endpoints as usize);
        }
    }

    #[test]
    fn slices_have_names_of_their_own() {
        let names: BTreeSet<_> = (0..1000).map(|index| slice_name("web", index)).collect();
        assert_eq!(names.len(), 1000);
    }
}
