//! A cluster of hundreds of services, drawn at random, as Kubernetes would have it.
//!
//! What servers are known to see differently is not drawn, but stands in the cases by hand: one endpoint in two slices, one
//! hostname with different ports, readiness that is at odds with other conditions.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, api::PostParams};
use peak_tests::ControlPlane;
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{select, subsequence},
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How many services there are.
pub(crate) const SERVICES: usize = 200;
/// What their namespaces begin with.
const NAMESPACE: &str = "generated";
const NAMESPACES: usize = 6;
/// The environment variable that has the seed of an earlier run.
const SEED: &str = "PEAK_SEED";

/// A service as it is drawn.
#[derive(Clone, Debug)]
struct Drawn {
    kind: Kind,
    ports: Vec<Port>,
    /// Endpoints with the same ports. Each has one slice a family.
    groups: Vec<Vec<Endpoint>>,
}

#[derive(Clone, Debug)]
enum Kind {
    /// With addresses of these families.
    ClusterIp(&'static [&'static str]),
    Headless,
    /// For the service of that number, or for a name outside the zone.
    ExternalName(Option<usize>),
}

#[derive(Clone, Debug)]
struct Port {
    name: &'static str,
    protocol: &'static str,
    number: u16,
}

#[derive(Clone, Debug)]
struct Endpoint {
    /// Its pod's number, of which its addresses are made: of one family or both.
    pod: u16,
    families: &'static [&'static str],
    /// Whether it has a hostname, and which.
    hostname: Option<u8>,
    conditions: Value,
}

const BOTH: &[&str] = &["IPv4", "IPv6"];
const FAMILIES: [&[&str]; 4] = [&["IPv4"], &["IPv6"], BOTH, &["IPv6", "IPv4"]];

fn service() -> impl Strategy<Value = Drawn> {
    let kind = prop_oneof![
        4 => select(&FAMILIES[..]).prop_map(Kind::ClusterIp),
        5 => Just(Kind::Headless),
        1 => option::of(0..SERVICES).prop_map(Kind::ExternalName),
    ];
    // Names and numbers are a service's own; two protocols may share a number.
    let ports = [
        ("http", "TCP", 80),
        ("https", "TCP", 443),
        ("dns", "UDP", 53),
        ("dns-tcp", "TCP", 53),
        ("sctp", "SCTP", 80),
        ("a", "TCP", 1),
    ];
    let ports = ports.map(|(name, protocol, number)| Port {
        name,
        protocol,
        number,
    });
    let ports = subsequence(ports.to_vec(), 0..=4);
    // Whom no other service selects, and whom many do.
    let pod = prop_oneof![3 => 1_u16..4096, 1 => 1_u16..40];
    let conditions = prop_oneof![
        6 => Just(json!({"ready": true, "serving": true, "terminating": false})),
        2 => Just(json!({})),
        1 => Just(json!({"ready": false, "serving": false, "terminating": false})),
        1 => Just(json!({"ready": false, "serving": true, "terminating": true})),
    ];
    let endpoint = (pod, select(&FAMILIES[..]), option::of(0_u8..4), conditions).prop_map(
        |(pod, families, hostname, conditions)| Endpoint {
            pod,
            families,
            hostname,
            conditions,
        },
    );
    // A few are many, so that UDP has no room for them.
    let group = prop_oneof![12 => vec(endpoint.clone(), 0..6), 1 => vec(endpoint, 6..60)];
    let groups = vec(group, 0..3);
    (kind, ports, groups).prop_map(|(kind, ports, groups)| {
        // Nobody is behind a name for a name.
        let groups = if matches!(kind, Kind::ExternalName(_)) {
            Vec::new()
        } else {
            groups
        };
        Drawn {
            kind,
            ports,
            groups,
        }
    })
}

/// The objects of a cluster, by the seed in `PEAK_SEED`, else by a new one, which is printed.
fn cluster() -> Result<Vec<Value>> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed.parse()?,
        Err(_) => fastrand::u64(..),
    };
    eprintln!("{SEED}={seed} gives this cluster again");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let services = vec(service(), SERVICES).new_tree(&mut runner);
    let services = services.map_err(|reason| anyhow!("{reason}"))?.current();
    let objects = services
        .iter()
        .enumerate()
        .flat_map(|(number, service)| objects(number, service));
    Ok(objects.collect())
}

/// Whether a name is of one of these services.
pub(crate) fn is_of_one(name: &str) -> bool {
    name.contains(NAMESPACE)
        || name.contains(".200.10.in-addr")
        || name.contains(".0.0.2.0.0.0.d.f.ip6")
}

/// Creates all objects, many at once.
pub(crate) fn create(plane: &ControlPlane) -> Result<()> {
    /// As many are under way at once.
    const SHARES: usize = 16;
    for namespace in (0..NAMESPACES).map(namespace) {
        let object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        plane.apply(&object.to_string())?;
    }
    let mut shares = vec![Vec::new(); SHARES];
    for (index, object) in cluster()?.into_iter().enumerate() {
        shares[index % SHARES].push(object);
    }
    let client = plane.client();
    plane.run(async {
        let mut tasks = JoinSet::new();
        for share in shares {
            let client = client.clone();
            tasks.spawn(async move {
                for object in share {
                    let context = || format!("cannot create {object}");
                    let namespace = object["metadata"]["namespace"]
                        .as_str()
                        .context("a namespace")?;
                    let params = PostParams::default();
                    if object["kind"] == "Service" {
                        let api = Api::<Service>::namespaced(client.clone(), namespace);
                        let object = serde_json::from_value(object.clone())?;
                        api.create(&params, &object).await.with_context(context)?;
                    } else {
                        let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
                        let object = serde_json::from_value(object.clone())?;
                        api.create(&params, &object).await.with_context(context)?;
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })
}

fn name(number: usize) -> String {
    format!("service-{number}")
}

fn namespace(number: usize) -> String {
    format!("{NAMESPACE}-{}", number % NAMESPACES)
}

/// A service and its slices.
fn objects(number: usize, drawn: &Drawn) -> Vec<Value> {
    let ports: Vec<_> = match &drawn.ports[..] {
        // A ClusterIP needs one, and one alone needs no name.
        [] if matches!(drawn.kind, Kind::ClusterIp(_)) => vec![json!({"port": 80})],
        ports => ports
            .iter()
            .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.number}))
            .collect(),
    };
    let spec = match drawn.kind {
        Kind::ClusterIp(families) => {
            let policy = if families.len() == 2 {
                "RequireDualStack"
            } else {
                "SingleStack"
            };
            json!({"ipFamilies": families, "ipFamilyPolicy": policy, "ports": ports})
        }
        Kind::Headless => {
            json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "ports": ports})
        }
        Kind::ExternalName(Some(other)) => {
            let target = format!("{}.{}.svc.cluster.local", name(other), namespace(other));
            json!({"type": "ExternalName", "externalName": target})
        }
        Kind::ExternalName(None) => {
            json!({"type": "ExternalName", "externalName": "www.example.com"})
        }
    };
    let metadata = json!({"namespace": namespace(number), "name": name(number)});
    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    let mut pods = Vec::new();
    let slices = drawn
        .groups
        .iter()
        .enumerate()
        .flat_map(|(group, endpoints)| {
            // A pod is in one group.
            let endpoints: Vec<_> = endpoints
                .iter()
                .filter(|endpoint| {
                    let fresh = !pods.contains(&endpoint.pod);
                    pods.push(endpoint.pod);
                    fresh
                })
                .collect();
            let ports: Vec<_> = drawn
                .ports
                .iter()
                .map(|port| {
                    // The target's number, which may be another in each group.
                    let target = port.number + 8000 * group as u16;
                    json!({"name": port.name, "protocol": port.protocol, "port": target})
                })
                .collect();
            ["IPv4", "IPv6"].map(|family| {
                let endpoints = endpoints
                    .iter()
                    .filter(|one| one.families.contains(&family));
                let endpoints: Vec<_> = endpoints.map(|one| one.object(group, family)).collect();
                json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "namespace": namespace(number),
                        "name": format!("{}-{group}-{}", name(number), family.to_lowercase()),
                        "labels": {"kubernetes.io/service-name": name(number)},
                    },
                    "addressType": family,
                    "ports": ports,
                    "endpoints": endpoints,
                })
            })
        });
    std::iter::once(service).chain(slices).collect()
}

impl Endpoint {
    fn object(&self, group: usize, family: &str) -> Value {
        let [high, low] = self.pod.to_be_bytes();
        let address = match family {
            "IPv4" => Ipv4Addr::new(10, 200, high, low).to_string(),
            _ => Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, self.pod).to_string(),
        };
        let mut object = json!({"addresses": [address], "conditions": self.conditions});
        if let Some(hostname) = self.hostname {
            object["hostname"] = json!(format!("pod-{group}-{hostname}"));
        }
        object
    }
}
