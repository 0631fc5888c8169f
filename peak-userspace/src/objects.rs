//! Kubernetes' objects, reduced to what DNS says of them: read once, small to keep, quick to compare.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Service as ApiService, ServiceSpec},
    discovery::v1::{EndpointConditions, EndpointSlice as ApiSlice},
};

use crate::{
    name::{MAX_LABEL, Name},
    snapshot::{AddressSet, Port, Protocol},
    validate::{self, Problem},
};

/// The label by which an EndpointSlice says which service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The ClusterIP of a headless service.
pub const HEADLESS: &str = "None";

/// The annotation by which a service says how many addresses an answer gives: `all`, `one` or a number.
pub const ANSWERS_ANNOTATION: &str = "peak/answers";

/// A Service. What is not valid in it, such as an address that is none, is left out alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What its name stands for.
    pub kind: ServiceKind,
    /// The ports of its `spec`: sorted, each once.
    pub ports: Arc<[Port]>,
    /// Publishes endpoints whether they are ready or not.
    pub publish_not_ready: bool,
    /// How many addresses an answer draws, if the service says it; 0: all of them.
    pub pick: Option<u8>,
    /// What is wrong with the object.
    pub problems: Box<[Problem]>,
}

/// What a service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Addresses of its own, if there are any.
    ClusterIp(AddressSet),
    /// Its endpoints.
    Headless,
    /// Another name (ExternalName).
    Alias(Name),
    /// Nothing: the object has no `spec`, or its ExternalName is no name.
    Nothing,
}

impl From<&ApiService> for Service {
    fn from(object: &ApiService) -> Self {
        let mut service = Self {
            kind: ServiceKind::Nothing,
            ports: Arc::default(),
            publish_not_ready: false,
            pick: answers_annotation(object).and_then(|answers| pick(answers).ok()),
            problems: first_of(validate::service(object)),
        };
        let Some(spec) = &object.spec else {
            return service;
        };
        service.kind = if spec.type_.as_deref() == Some("ExternalName") {
            external_name(spec).map_or(ServiceKind::Nothing, ServiceKind::Alias)
        } else if is_headless(spec) {
            ServiceKind::Headless
        } else {
            let addresses = cluster_ips(spec).filter_map(|(_, address)| address.parse().ok());
            ServiceKind::ClusterIp(addresses.collect())
        };
        service.ports = ports(spec.ports.iter().flatten().map(|port| {
            let (protocol, name) = (port.protocol.as_deref(), port.name.as_deref());
            self::port(protocol, name, port.port)
        }));
        service.publish_not_ready = spec.publish_not_ready_addresses.unwrap_or(false);
        service
    }
}

/// An EndpointSlice. What is not valid in it is left out alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The service that it belongs to, if it says so.
    pub service: Option<Box<str>>,
    /// Its endpoints: sorted, one entry for each address. None of an `FQDN` slice.
    pub endpoints: Box<[SliceEndpoint]>,
    /// The ports that all of them have: sorted, each once.
    pub ports: Arc<[Port]>,
    /// What is wrong with the object.
    pub problems: Box<[Problem]>,
}

/// One address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceEndpoint {
    /// The endpoint's name below the service's: its hostname, or made of the address.
    pub label: Arc<str>,
    /// The address.
    pub address: IpAddr,
    /// Whether it is to be published.
    pub condition: Condition,
}

impl SliceEndpoint {
    /// What slices are sorted by, but for the condition.
    pub(crate) fn place(&self) -> (&str, IpAddr) {
        (&self.label, self.address)
    }
}

#[cfg(test)]
impl SliceEndpoint {
    /// For property tests: few labels and addresses, so that slices have many in common.
    pub(crate) fn any(labels: u8) -> impl proptest::strategy::Strategy<Value = Self> {
        use proptest::{prelude::*, sample::select};
        let conditions = vec![
            Condition::Ready,
            Condition::Terminating,
            Condition::NotReady,
        ];
        (0..labels, 0..6_u8, select(conditions)).prop_map(|(label, address, condition)| Self {
            label: label.to_string().into(),
            address: match address {
                0..3 => IpAddr::from([10, 0, 0, address]),
                _ => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, address.into()]),
            },
            condition,
        })
    }
}

/// What an endpoint's conditions come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// `ready: nil` means ready, says the EndpointSlice API, but an endpoint on its way out is not.
    Ready,
    /// It still serves while it terminates: `serving` takes no notice of termination, and nil means true.
    Terminating,
    /// Neither.
    NotReady,
}

impl From<Option<&EndpointConditions>> for Condition {
    fn from(conditions: Option<&EndpointConditions>) -> Self {
        let Some(conditions) = conditions else {
            return Self::Ready;
        };
        let terminating = conditions.terminating.unwrap_or(false);
        if conditions.ready.unwrap_or(!terminating) {
            Self::Ready
        } else if terminating && conditions.serving.unwrap_or(true) {
            Self::Terminating
        } else {
            Self::NotReady
        }
    }
}

impl From<&ApiSlice> for EndpointSlice {
    fn from(object: &ApiSlice) -> Self {
        let labels = object.metadata.labels.as_ref();
        let service = labels.and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        let mut endpoints = Vec::new();
        if let Some(family) = Family::of(&object.address_type) {
            for endpoint in object.endpoints.iter().flatten() {
                let condition = endpoint.conditions.as_ref().into();
                let hostname = endpoint.hostname.as_deref();
                let hostname = hostname.filter(|hostname| is_label(hostname));
                let addresses = endpoint.addresses.iter();
                endpoints.extend(addresses.filter_map(|address| {
                    let address = family.parse(address).ok()?;
                    let label = match hostname {
                        Some(hostname) => hostname.into(),
                        None => generated_label(address).into(),
                    };
                    Some(SliceEndpoint {
                        label,
                        address,
                        condition,
                    })
                }));
            }
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        let ports = object.ports.iter().flatten().map(|port| {
            let (protocol, name) = (port.protocol.as_deref(), port.name.as_deref());
            self::port(protocol, name, port.port?)
        });
        Self {
            service: service.map(|service| service.as_str().into()),
            endpoints: endpoints.into(),
            ports: self::ports(ports),
            problems: first_of(validate::endpoint_slice(object)),
        }
    }
}

impl EndpointSlice {
    /// Those of a label.
    pub(crate) fn named(&self, label: &str) -> &[SliceEndpoint] {
        let start = self.endpoints.partition_point(|one| *one.label < *label);
        let count = self.endpoints[start..].partition_point(|one| *one.label == *label);
        &self.endpoints[start..start + count]
    }

    /// Keeps one copy of what its predecessor says, too: what is published holds on to that.
    pub(crate) fn share(&mut self, predecessor: &Self) {
        if self.ports == predecessor.ports {
            self.ports = Arc::clone(&predecessor.ports);
        }
        let mut olds = predecessor.endpoints.iter().peekable();
        for endpoint in &mut self.endpoints {
            // Both are sorted.
            while olds.next_if(|old| old.label < endpoint.label).is_some() {}
            if let Some(old) = olds.peek().filter(|old| old.label == endpoint.label) {
                endpoint.label = Arc::clone(&old.label);
            }
        }
    }
}

/// The first problems of an object, and how many more there are: some have tens of thousands.
fn first_of(mut problems: Vec<Problem>) -> Box<[Problem]> {
    const KEPT: usize = 8;
    let more = problems.len().saturating_sub(KEPT);
    problems.truncate(KEPT);
    if let (Some(last), 1..) = (problems.last_mut(), more) {
        last.message += &format!(" (and {more} more like this)");
    }
    problems.into()
}

fn ports(ports: impl Iterator<Item = Option<Port>>) -> Arc<[Port]> {
    let ports: BTreeSet<_> = ports.flatten().collect();
    ports.into_iter().collect()
}

/// A port, unless its number or protocol is none. One whose name is no label is without a name.
fn port(protocol: Option<&str>, name: Option<&str>, number: i32) -> Option<Port> {
    Some(Port {
        protocol: protocol_of(protocol)?,
        name: name
            .filter(|name| is_label(name))
            .unwrap_or_default()
            .into(),
        number: u16::try_from(number).ok().filter(|&number| number > 0)?,
    })
}

/// The protocol of a port; TCP where nothing is said.
pub(crate) fn protocol_of(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// What an ExternalName stands for; the error says what is wrong with it.
pub(crate) fn external_name(spec: &ServiceSpec) -> Result<Name, String> {
    let text = spec.external_name.as_deref().unwrap_or_default();
    if text.is_empty() {
        return Err("is missing: nothing is answered for this service".to_owned());
    }
    // A name of digits and dots, and nobody's: Kubernetes does not take it for the address either.
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "{text:?} is an address, not a name: nothing is answered for this service (a headless Service with an \
             EndpointSlice can stand for an address)"
        ));
    }
    Name::parse(text).map_err(|error| format!("{text:?} is no name: {error}"))
}

/// What a service says of how many addresses an answer gives.
pub(crate) fn answers_annotation(service: &ApiService) -> Option<&str> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(ANSWERS_ANNOTATION).map(String::as_str)
}

/// How many addresses an answer draws, as it is written; 0: all of them. The error says what is wrong with it.
pub(crate) fn pick(text: &str) -> Result<u8, String> {
    match text {
        "all" => Ok(0),
        "one" => Ok(1),
        number => number.parse().ok().filter(|&pick| pick > 0).ok_or_else(|| {
            // Whoever may edit a service may write 256 KiB here, which nobody wants to read or keep.
            let text: String = text.chars().take(40).collect();
            format!("{text:?} is none of \"all\", \"one\" and the numbers from 1 to 255")
        }),
    }
}

/// Whether the service's name stands for its endpoints rather than for an address of its own.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    cluster_ips(spec).any(|(_, address)| address == HEADLESS)
}

/// The service's ClusterIPs as they are written, each with its field. `clusterIP` is the first of `clusterIPs`, and
/// stands alone in objects from before dual stack.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> impl Iterator<Item = (String, &str)> {
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec
        .cluster_ip
        .as_deref()
        .filter(|address| !address.is_empty());
    let single = single.map(|address| ("spec.clusterIP".to_owned(), address));
    let all = all
        .iter()
        .enumerate()
        .map(|(index, address)| (format!("spec.clusterIPs[{index}]"), &**address));
    single.into_iter().chain(all)
}

/// The label of an endpoint without a hostname: its address with dashes, `172-0-0-2` or `5678-abcd--1`. A trailing
/// dash, from `::`, gets a zero behind it, so that the label ends as host names do.
pub(crate) fn generated_label(address: IpAddr) -> String {
    let mut label = address.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// Whether the text is a label as RFC 1123 has it and Kubernetes validates it: lower-case letters, digits and
/// dashes, neither first nor last a dash, 1 to 63 bytes.
pub(crate) fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= MAX_LABEL
        && bytes.first().is_some_and(|&byte| plain(byte))
        && bytes.last().is_some_and(|&byte| plain(byte))
        && bytes.iter().all(|&byte| plain(byte) || byte == b'-')
}

/// The address family of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// `None` for `FQDN`, which is deprecated and answered by nobody, and for what Kubernetes doesn't know.
    pub(crate) fn of(address_type: &str) -> Option<Self> {
        match address_type {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }

    /// Reads an address of this family that a client can connect to; the error says what is wrong with it.
    pub(crate) fn parse(self, text: &str) -> Result<IpAddr, String> {
        let address = match self {
            Self::V4 => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            Self::V6 => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        };
        let address = address.ok_or_else(|| match self {
            Self::V4 => format!("{text:?} is not an IPv4 address"),
            Self::V6 => format!("{text:?} is not an IPv6 address"),
        })?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(format!(
                "nobody can connect to {text}: an endpoint needs a unicast address"
            ));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kubernetes_labels() {
        for good in ["a", "0", "a-b", "web-0", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }

    #[test]
    fn what_a_predecessor_says_too_is_kept_once() {
        let slice = |labels: &[&str]| EndpointSlice {
            service: None,
            endpoints: labels
                .iter()
                .map(|&label| SliceEndpoint {
                    label: label.into(),
                    address: IpAddr::from([10, 0, 0, 1]),
                    condition: Condition::Ready,
                })
                .collect(),
            ports: [Port {
                protocol: Protocol::Tcp,
                name: "http".into(),
                number: 80,
            }]
            .into(),
            problems: [].into(),
        };
        let old = slice(&["b", "c", "e"]);
        let mut new = slice(&["a", "b", "d", "e"]);
        new.share(&old);
        assert_eq!(new, slice(&["a", "b", "d", "e"]));
        assert!(Arc::ptr_eq(&new.ports, &old.ports));
        for (at, old_at) in [(1, 0), (3, 2)] {
            assert!(Arc::ptr_eq(
                &new.endpoints[at].label,
                &old.endpoints[old_at].label
            ));
        }
    }
}
