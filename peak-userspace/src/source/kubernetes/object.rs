//! The API server's JSON, object by object. Only the fields from which records are made are read: the others cost no
//! memory, and can't be unreadable.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Pod, PodIP, PodStatus, Service as ApiService, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice as ApiSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{
    objects::{ANSWERS_ANNOTATION, SERVICE_NAME_LABEL},
    pods,
    source::{Kind, Object, ObjectId},
    validate::{self, Problem},
};

/// One line of a watch.
#[derive(Debug, Deserialize)]
pub(super) struct Event<'a> {
    #[serde(rename = "type")]
    pub(super) kind: EventKind,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// What happened to the object.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum EventKind {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
    #[serde(other)]
    Other,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<'a> {
    pub(super) metadata: PageMeta,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'a RawValue>>,
}

/// Where a page stands in its list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// What is known of an object before it is read as what it is.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Head {
    #[serde(default)]
    pub(super) metadata: HeadMeta,
}

/// An object's names, version and annotations.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeadMeta {
    pub(super) name: Option<Box<str>>,
    pub(super) namespace: Option<Box<str>>,
    pub(super) resource_version: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Head {
    /// Reads what there is of it.
    pub(super) fn of(json: &RawValue) -> Self {
        serde_json::from_str(json.get()).unwrap_or_default()
    }

    /// Which object it is, as far as it says.
    pub(super) fn id(&self, kind: Kind) -> Option<ObjectId> {
        let HeadMeta {
            name, namespace, ..
        } = &self.metadata;
        Some(ObjectId {
            kind,
            namespace: namespace.clone()?,
            name: name.clone()?,
        })
    }

    /// Whether the bookmark says that a streaming list is complete.
    pub(super) fn ends_initial_events(&self) -> bool {
        self.metadata.annotations.as_ref().is_some_and(|all| {
            all.get("k8s.io/initial-events-end").map(String::as_str) == Some("true")
        })
    }
}

/// An object that was read, and its resource version.
pub(super) type Read = (ObjectId, Object, Option<String>);

/// Why an object can't be read, with the field where that is known.
pub(super) fn read(kind: Kind, json: &RawValue) -> Result<Read, String> {
    match kind {
        Kind::Service => typed::<SlimService>(json).map(|slim| {
            let (id, version) = slim.metadata.identity(kind);
            (
                id,
                Object::Service(Arc::new((&ApiService::from(slim)).into())),
                version,
            )
        }),
        Kind::EndpointSlice => typed::<SlimSlice>(json).map(|slim| {
            let (id, version) = slim.metadata.identity(kind);
            (
                id,
                Object::EndpointSlice(Arc::new((&ApiSlice::from(slim)).into())),
                version,
            )
        }),
        Kind::Pod => typed::<SlimPod>(json).and_then(|slim| {
            let (id, version) = slim.metadata.identity(kind);
            let pod = slim.into();
            match validate::pod_addresses(&pod).into_iter().next() {
                None => Ok((id, Object::Pod(pods::addresses(&pod)), version)),
                Some(Problem { field, message, .. }) => Err(format!("{field}: {message}")),
            }
        }),
    }
}

fn typed<T: DeserializeOwned>(json: &RawValue) -> Result<T, String> {
    serde_json::from_str(json.get()).map_err(|_| {
        // Once more, this time with a track of the fields: what is well doesn't pay for it.
        let deserializer = &mut serde_json::Deserializer::from_str(json.get());
        match serde_path_to_error::deserialize::<_, T>(deserializer) {
            Ok(_) => "is no object".to_owned(),
            Err(error) if error.path().to_string() == "." => error.inner().to_string(),
            Err(error) => format!("{}: {}", error.path(), error.inner()),
        }
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimMeta {
    name: String,
    namespace: String,
    resource_version: Option<String>,
    labels: Option<SlimLabels>,
    annotations: Option<SlimAnnotations>,
}

/// Of the labels the one that means something to Peak: others take no memory.
#[derive(Deserialize)]
struct SlimLabels {
    #[serde(
        rename = "kubernetes.io/service-name",
        default,
        deserialize_with = "text"
    )]
    service: Option<String>,
}

/// And of the annotations.
#[derive(Deserialize)]
struct SlimAnnotations {
    #[serde(rename = "peak/answers", default, deserialize_with = "text")]
    answers: Option<String>,
}

/// What is there is a text, and not null.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

impl SlimMeta {
    fn identity(&self, kind: Kind) -> (ObjectId, Option<String>) {
        let id = ObjectId {
            kind,
            namespace: self.namespace.as_str().into(),
            name: self.name.as_str().into(),
        };
        (id, self.resource_version.clone())
    }
}

impl From<SlimMeta> for ObjectMeta {
    fn from(slim: SlimMeta) -> Self {
        let entry = |key: &str, value: Option<String>| Some([(key.to_owned(), value?)].into());
        Self {
            name: Some(slim.name),
            namespace: Some(slim.namespace),
            labels: entry(SERVICE_NAME_LABEL, slim.labels.and_then(|all| all.service)),
            annotations: entry(
                ANSWERS_ANNOTATION,
                slim.annotations.and_then(|all| all.answers),
            ),
            ..Self::default()
        }
    }
}

#[derive(Deserialize)]
struct SlimService {
    metadata: SlimMeta,
    spec: Option<SlimSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    external_name: Option<String>,
    ports: Option<Vec<SlimServicePort>>,
    publish_not_ready_addresses: Option<bool>,
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct SlimServicePort {
    name: Option<String>,
    port: i32,
    protocol: Option<String>,
}

impl From<SlimService> for ApiService {
    fn from(slim: SlimService) -> Self {
        let port = |slim: SlimServicePort| ServicePort {
            name: slim.name,
            port: slim.port,
            protocol: slim.protocol,
            ..ServicePort::default()
        };
        Self {
            metadata: slim.metadata.into(),
            spec: slim.spec.map(|slim| ServiceSpec {
                cluster_ip: slim.cluster_ip,
                cluster_ips: slim.cluster_ips,
                external_name: slim.external_name,
                ports: slim
                    .ports
                    .map(|ports| ports.into_iter().map(port).collect()),
                publish_not_ready_addresses: slim.publish_not_ready_addresses,
                type_: slim.r#type,
                ..ServiceSpec::default()
            }),
            status: None,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimSlice {
    metadata: SlimMeta,
    address_type: String,
    endpoints: Option<Vec<SlimEndpoint>>,
    ports: Option<Vec<SlimEndpointPort>>,
}

#[derive(Deserialize)]
struct SlimEndpoint {
    addresses: Vec<String>,
    conditions: Option<SlimConditions>,
    hostname: Option<String>,
}

#[derive(Deserialize)]
struct SlimConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct SlimEndpointPort {
    name: Option<String>,
    port: Option<i32>,
    protocol: Option<String>,
}

impl From<SlimSlice> for ApiSlice {
    fn from(slim: SlimSlice) -> Self {
        let endpoint = |slim: SlimEndpoint| Endpoint {
            addresses: slim.addresses,
            conditions: slim.conditions.map(|slim| EndpointConditions {
                ready: slim.ready,
                serving: slim.serving,
                terminating: slim.terminating,
            }),
            hostname: slim.hostname,
            ..Endpoint::default()
        };
        let port = |slim: SlimEndpointPort| EndpointPort {
            name: slim.name,
            port: slim.port,
            protocol: slim.protocol,
            ..EndpointPort::default()
        };
        Self {
            metadata: slim.metadata.into(),
            address_type: slim.address_type,
            endpoints: slim
                .endpoints
                .map(|endpoints| endpoints.into_iter().map(endpoint).collect()),
            ports: slim
                .ports
                .map(|ports| ports.into_iter().map(port).collect()),
        }
    }
}

#[derive(Deserialize)]
struct SlimPod {
    metadata: SlimMeta,
    status: Option<SlimPodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SlimPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIP>>,
}

impl From<SlimPod> for Pod {
    fn from(slim: SlimPod) -> Self {
        Self {
            metadata: slim.metadata.into(),
            spec: None,
            status: slim.status.map(|slim| PodStatus {
                phase: slim.phase,
                pod_ip: slim.pod_ip,
                pod_ips: slim.pod_ips,
                ..PodStatus::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, value::to_raw_value};

    use super::*;

    fn read(kind: Kind, object: Value) -> Result<Read, String> {
        super::read(kind, &to_raw_value(&object).unwrap())
    }

    #[test]
    fn what_is_used_is_read() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "web", "namespace": "shop", "resourceVersion": "7", "uid": "u",
                "labels": {"app": "web"}, "annotations": {"peak/answers": "one", "other": "x"},
                "managedFields": [{"manager": "kubectl"}],
            },
            "spec": {
                "clusterIP": "fd00::10", "clusterIPs": ["fd00::10", "10.0.0.1"], "selector": {"app": "web"},
                "type": "ClusterIP", "publishNotReadyAddresses": true,
                "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {}},
        });
        let (id, object, version) = read(Kind::Service, service.clone()).unwrap();
        assert_eq!(
            (id.to_string().as_str(), version.as_deref()),
            ("Service shop/web", Some("7"))
        );
        let whole: ApiService = from_value(service).unwrap();
        assert_eq!(object, Object::Service(Arc::new((&whole).into())));

        let slice = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "generateName": "web-",
                "labels": {SERVICE_NAME_LABEL: "web", "app": "web"},
            },
            "addressType": "IPv6",
            "endpoints": [{
                "addresses": ["fd00::1"], "hostname": "a", "nodeName": "n", "zone": "z",
                "conditions": {"ready": false, "serving": null, "terminating": true}, "targetRef": {"kind": "Pod", "name": "p"},
            }],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "h2c"}],
        });
        let (_, object, version) = read(Kind::EndpointSlice, slice.clone()).unwrap();
        assert_eq!(version, None);
        let whole: ApiSlice = from_value(slice).unwrap();
        assert_eq!(object, Object::EndpointSlice(Arc::new((&whole).into())));
    }

    #[test]
    fn of_a_pod_only_its_addresses_are_read() {
        let pod = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "resourceVersion": "9"},
            "spec": {"containers": 1, "hostNetwork": true},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "hostIP": "192.0.2.1", "conditions": 1,
            },
        });
        let (id, object, version) = read(Kind::Pod, pod).unwrap();
        assert_eq!(
            (&*id.to_string(), version.as_deref()),
            ("Pod shop/web-1", Some("9"))
        );
        let addresses = ["10.0.0.1", "fd00::1"].map(|address| address.parse().unwrap());
        assert_eq!(object, Object::Pod(addresses.into()));
        let pending = json!({"metadata": {"name": "web-2", "namespace": "shop"}});
        assert_eq!(read(Kind::Pod, pending).unwrap().1, Object::Pod([].into()));
        let odd = json!({
            "metadata": {"name": "web-1", "namespace": "shop"}, "status": {"podIPs": [{"ip": "10.0.0"}]},
        });
        let error = read(Kind::Pod, odd).unwrap_err();
        assert_eq!(error, "status.podIPs[0].ip: \"10.0.0\" is no IP address");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field() {
        let metadata = json!({"name": "web", "namespace": "shop"});
        let slice = json!({
            "metadata": metadata, "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": "fd00::2"}],
        });
        let error = read(Kind::EndpointSlice, slice).unwrap_err();
        assert!(
            error.starts_with("endpoints[1].addresses: invalid type"),
            "{error}"
        );
        let error = read(Kind::Service, json!({"metadata": {"name": "web"}})).unwrap_err();
        assert!(
            error.starts_with("metadata: missing field `namespace`"),
            "{error}"
        );
        let json = to_raw_value(&json!({"metadata": metadata, "spec": 1})).unwrap();
        assert_eq!(
            Head::of(&json).id(Kind::Service).unwrap().to_string(),
            "Service shop/web"
        );
        assert!(super::read(Kind::Service, &json).is_err());
    }
}
