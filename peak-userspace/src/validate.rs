//! What is wrong with an object, field by field: the rules of Kubernetes' own API server that DNS depends on.

use std::net::IpAddr;

use k8s_openapi::{
    api::{
        core::v1::{Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    objects::{
        Family, HEADLESS, SERVICE_NAME_LABEL, answers_annotation, cluster_ips, external_name,
        is_headless, is_label, pick, protocol_of,
    },
    pods,
};

/// How much harm a problem does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object can't be used as it is.
    Error,
    /// The object can be used, but not all that it says is answered.
    Warning,
}

/// Something that is wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How much harm it does.
    pub severity: Severity,
    /// The field's path in the object, such as `endpoints[3].addresses[0]`.
    pub field: String,
    /// What is wrong, and the remedy where it isn't plain.
    pub message: String,
}

fn error(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        severity: Severity::Error,
        field: field.into(),
        message: message.into(),
    }
}

fn warning(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem {
        severity: Severity::Warning,
        field: field.into(),
        message: message.into(),
    }
}

/// The field by which a service says how many addresses an answer gives.
pub(crate) const ANSWERS_FIELD: &str = "metadata.annotations.peak/answers";

/// What a label may look like, for messages.
const LABEL_RULE: &str =
    "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends";

fn label(field: &str, text: &str) -> Option<Problem> {
    (!is_label(text)).then(|| error(field, format!("{text:?} is no DNS label ({LABEL_RULE})")))
}

fn namespace(metadata: &ObjectMeta) -> Option<Problem> {
    label("metadata.namespace", metadata.namespace.as_deref()?)
}

/// What is wrong with a Service.
pub fn service(service: &Service) -> Vec<Problem> {
    let mut problems = Vec::new();
    match &service.metadata.name {
        None => problems.push(error("metadata.name", "is missing")),
        Some(name) => problems.extend(label("metadata.name", name)),
    }
    problems.extend(namespace(&service.metadata));
    if let Some(Err(message)) = answers_annotation(service).map(pick) {
        problems.push(warning(
            ANSWERS_FIELD,
            format!("{message}: the agent's default applies"),
        ));
    }
    let Some(spec) = &service.spec else {
        problems.push(warning(
            "spec",
            "is missing: nothing is answered for this service",
        ));
        return problems;
    };
    match spec.type_.as_deref() {
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some("ExternalName") => {
            let wrong = external_name(spec).err();
            problems.extend(wrong.map(|message| warning("spec.externalName", message)));
            return problems;
        }
        Some(other) => problems.push(error(
            "spec.type",
            format!("{other:?} is none of ClusterIP, NodePort, LoadBalancer and ExternalName"),
        )),
    }
    let mut first = None;
    for (field, address) in cluster_ips(spec) {
        if address != HEADLESS {
            problems.extend(address.parse::<IpAddr>().is_err().then(|| {
                error(
                    field.clone(),
                    format!("{address:?} is neither an IP address nor \"None\""),
                )
            }));
        }
        let first = first.get_or_insert(address);
        // The API server keeps both fields equal and lets nothing stand beside "None".
        if field == "spec.clusterIPs[0]" && *first != address {
            problems.push(error(
                field,
                format!("{address:?} differs from spec.clusterIP, {first:?}"),
            ));
        } else if is_headless(spec) && address != HEADLESS {
            problems.push(error(
                field,
                format!("{address:?} can't stand beside \"None\""),
            ));
        }
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let (protocol, name) = (port.protocol.as_deref(), port.name.as_deref());
        problems.extend(self::port(&field, protocol, name, Some(port.port)));
    }
    if first.is_none() {
        let message = "is missing: nothing is answered for the service's own name (\"None\" makes it headless)";
        problems.push(warning("spec.clusterIP", message));
    }
    problems
}

/// What is wrong with a port: such ones have no SRV record, or none by name.
fn port(
    field: &str,
    protocol: Option<&str>,
    name: Option<&str>,
    number: Option<i32>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        let field = format!("{field}.name");
        problems.extend(label(&field, name));
        // RFC 2782: an underscore stands in front of the name, in one label.
        if is_label(name) && name.len() == crate::name::MAX_LABEL {
            let message = "takes 63 bytes: with its underscore it is no label, and SRV does not tell of it by name";
            problems.push(warning(field, message));
        }
    }
    if protocol_of(protocol).is_none() {
        let message = format!(
            "{:?} is none of TCP, UDP and SCTP",
            protocol.unwrap_or_default()
        );
        problems.push(error(format!("{field}.protocol"), message));
    }
    if number.is_some_and(|number| !(1..=i32::from(u16::MAX)).contains(&number)) {
        problems.push(error(
            format!("{field}.port"),
            "is no number from 1 to 65535",
        ));
    }
    problems
}

/// The name and the namespace of an object whose name is a subdomain.
fn subdomain_metadata(metadata: &ObjectMeta) -> Vec<Problem> {
    let mut problems = Vec::new();
    match &metadata.name {
        None => problems.push(error("metadata.name", "is missing")),
        Some(name) if !is_subdomain(name) => {
            let message = format!(
                "{name:?} is no DNS name (labels of {LABEL_RULE}, joined with dots, 253 in all)"
            );
            problems.push(error("metadata.name", message));
        }
        Some(_) => {}
    }
    problems.extend(namespace(metadata));
    problems
}

/// What is wrong with a Pod, as far as it matters here: its names and its addresses.
pub fn pod(pod: &Pod) -> Vec<Problem> {
    let mut problems = subdomain_metadata(&pod.metadata);
    problems.extend(pod_addresses(pod));
    problems
}

/// What is wrong with a Pod's addresses.
pub(crate) fn pod_addresses(pod: &Pod) -> Vec<Problem> {
    let written = pod.status.iter().flat_map(pods::written);
    written
        .filter_map(|(field, text)| Some(error(field, pods::parse(text).err()?)))
        .collect()
}

/// What is wrong with an EndpointSlice.
pub fn endpoint_slice(slice: &EndpointSlice) -> Vec<Problem> {
    let mut problems = subdomain_metadata(&slice.metadata);
    let service = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    match service {
        None => problems.push(warning(
            "metadata.labels",
            format!("has no {SERVICE_NAME_LABEL}: the slice belongs to no service"),
        )),
        Some(name) => problems.extend(label(
            &format!("metadata.labels.{SERVICE_NAME_LABEL}"),
            name,
        )),
    }
    let family = match (&*slice.address_type, Family::of(&slice.address_type)) {
        (_, Some(family)) => family,
        ("FQDN", _) => {
            problems.push(warning(
                "addressType",
                "FQDN is deprecated and not answered: the slice is skipped",
            ));
            return problems;
        }
        (other, _) => {
            problems.push(error(
                "addressType",
                format!("{other:?} is none of IPv4, IPv6 and FQDN"),
            ));
            return problems;
        }
    };
    for (index, port) in slice.ports.iter().flatten().enumerate() {
        let field = format!("ports[{index}]");
        let (protocol, name) = (port.protocol.as_deref(), port.name.as_deref());
        problems.extend(self::port(&field, protocol, name, port.port));
    }
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        // Made only of what is wrong: slices are many, and mostly in order.
        let field = |of: std::fmt::Arguments<'_>| format!("endpoints[{index}].{of}");
        if endpoint.addresses.is_empty() {
            problems.push(error(
                field(format_args!("addresses")),
                "has no address: an endpoint needs at least one",
            ));
        }
        for (index, address) in endpoint.addresses.iter().enumerate() {
            let wrong = family.parse(address).err();
            problems.extend(
                wrong.map(|message| error(field(format_args!("addresses[{index}]")), message)),
            );
        }
        let hostname = endpoint.hostname.as_deref().filter(|name| !is_label(name));
        problems.extend(hostname.and_then(|name| label(&field(format_args!("hostname")), name)));
    }
    problems
}

/// Whether the text is a subdomain as Kubernetes validates it: labels joined with dots, at most 253 bytes.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::objects::ANSWERS_ANNOTATION;

    fn of_service(metadata: Value, spec: Value) -> Vec<String> {
        let object =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        summary(service(&from_value(object).unwrap()))
    }

    fn of_slice(metadata: Value, address_type: &str, endpoints: Value) -> Vec<String> {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
            "addressType": address_type, "endpoints": endpoints,
        });
        summary(endpoint_slice(&from_value(object).unwrap()))
    }

    fn summary(problems: Vec<Problem>) -> Vec<String> {
        problems
            .into_iter()
            .map(|problem| format!("{:?} {}", problem.severity, problem.field))
            .collect()
    }

    #[test]
    fn good_objects_have_no_problems() {
        let name = json!({"name": "web", "namespace": "shop"});
        assert_eq!(
            of_service(
                name.clone(),
                json!({"clusterIP": "None", "clusterIPs": ["None"]})
            ),
            [""; 0]
        );
        assert_eq!(
            of_service(
                name,
                json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"]})
            ),
            [""; 0]
        );
        let slice = json!({"name": "web-1.a", "labels": {SERVICE_NAME_LABEL: "web"}});
        assert_eq!(
            of_slice(
                slice,
                "IPv6",
                json!([{"addresses": ["fd00::1"], "hostname": "a"}])
            ),
            [""; 0]
        );
    }

    #[test]
    fn each_field_of_a_service_is_checked() {
        let spec = json!({"clusterIP": "None"});
        assert_eq!(of_service(json!({}), spec.clone()), ["Error metadata.name"]);
        let names = json!({"name": "Web", "namespace": "a.b"});
        assert_eq!(
            of_service(names, spec),
            ["Error metadata.name", "Error metadata.namespace"]
        );
        let name = json!({"name": "web"});
        assert_eq!(of_service(name.clone(), Value::Null), ["Warning spec"]);
        assert_eq!(
            of_service(name.clone(), json!({})),
            ["Warning spec.clusterIP"]
        );
        assert_eq!(
            of_service(name.clone(), json!({"type": "ExternalName"})),
            ["Warning spec.externalName"]
        );
        let external = json!({"type": "ExternalName", "externalName": "example.com"});
        assert_eq!(of_service(name.clone(), external), [""; 0]);
        let odd = json!({"name": "web", "annotations": {ANSWERS_ANNOTATION: "some"}});
        assert_eq!(
            of_service(odd, json!({"clusterIP": "None"})),
            [format!("Warning metadata.annotations.{ANSWERS_ANNOTATION}")]
        );
        let ports = json!({"clusterIP": "None", "ports": [
            {"name": "http", "port": 80}, {"port": 0}, {"name": "a.b", "port": 1, "protocol": "QUIC"},
            {"name": "p".repeat(63), "port": 1},
        ]});
        let expected = [
            "Error spec.ports[1].port",
            "Error spec.ports[2].name",
            "Error spec.ports[2].protocol",
            "Warning spec.ports[3].name",
        ];
        assert_eq!(of_service(name.clone(), ports), expected);
        assert_eq!(
            of_service(name.clone(), json!({"type": "x", "clusterIP": "None"})),
            ["Error spec.type"]
        );
        assert_eq!(
            of_service(name.clone(), json!({"clusterIP": "10.0.0"})),
            ["Error spec.clusterIP"]
        );
        let both = json!({"clusterIP": "None", "clusterIPs": ["None", "fd00::1"]});
        assert_eq!(of_service(name.clone(), both), ["Error spec.clusterIPs[1]"]);
        let unequal = json!({"clusterIP": "fd00::2", "clusterIPs": ["fd00::1"]});
        assert_eq!(of_service(name, unequal), ["Error spec.clusterIPs[0]"]);
    }

    #[test]
    fn each_field_of_a_pod_is_checked() {
        let of_pod = |metadata: Value, status: Value| {
            let object =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status});
            summary(pod(&from_value(object).unwrap()))
        };
        let name = json!({"name": "web-1.a", "namespace": "shop"});
        assert_eq!(of_pod(name.clone(), Value::Null), [""; 0]);
        let good = json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]});
        assert_eq!(of_pod(name, good), [""; 0]);
        let odd =
            json!({"podIP": "10.0.0", "podIPs": [{"ip": "fd00::1"}, {"ip": "x"}, {"ip": ""}]});
        let expected = [
            "Error metadata.name",
            "Error metadata.namespace",
            "Error status.podIP",
            "Error status.podIPs[1].ip",
        ];
        assert_eq!(
            of_pod(json!({"name": "A", "namespace": "a.b"}), odd),
            expected
        );
    }

    #[test]
    fn each_field_of_a_slice_is_checked() {
        let endpoints = json!([]);
        assert_eq!(
            of_slice(json!({}), "IPv6", endpoints.clone()),
            ["Error metadata.name", "Warning metadata.labels"]
        );
        let odd = json!({"name": "a..b", "labels": {SERVICE_NAME_LABEL: "a.b"}});
        let expected = [
            "Error metadata.name",
            "Error metadata.labels.kubernetes.io/service-name",
        ];
        assert_eq!(of_slice(odd, "IPv6", endpoints.clone()), expected);
        let good = json!({"name": "a", "labels": {SERVICE_NAME_LABEL: "a"}});
        assert_eq!(
            of_slice(good.clone(), "FQDN", endpoints.clone()),
            ["Warning addressType"]
        );
        assert_eq!(
            of_slice(good.clone(), "ipv6", endpoints),
            ["Error addressType"]
        );
        let endpoints = json!([
            {"addresses": []},
            {"addresses": ["fd00::1", "10.0.0.1"]},
            {"addresses": ["fd00::1"], "hostname": "A"},
        ]);
        let expected = [
            "Error endpoints[0].addresses",
            "Error endpoints[1].addresses[1]",
            "Error endpoints[2].hostname",
        ];
        assert_eq!(of_slice(good, "IPv6", endpoints), expected);
    }
}
