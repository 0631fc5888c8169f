//! From Kubernetes' objects to DNS records. Pure: the same objects always give the same records.
//!
//! What must be answered is the Kubernetes DNS-based service discovery specification, version 1.1.0; where it is silent,
//! what CoreDNS answers, because clients rely on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice},
};

use crate::{
    name::{MAX_LABEL, Name},
    snapshot::{AddressSet, Endpoint, Port, Protocol, ServiceRecords},
};

/// The label by which an EndpointSlice says which service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The ClusterIP of a headless service.
pub const HEADLESS: &str = "None";

/// The annotation by which a service says how many addresses an answer gives: `all`, `one` or a number.
pub const ANSWERS_ANNOTATION: &str = "peak/answers";

/// What is the agent's choice where objects leave one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordPolicy {
    /// Publishes endpoints that still serve while they terminate, where a service has no ready one.
    pub serving_terminating: bool,
    /// How many addresses an answer draws of services that don't say it; 0: all of them.
    pub pick: u8,
}

/// What a service publishes, given all the slices that belong to it.
///
/// What is not valid, such as an address that is none, is left out alone: [`crate::validate`] says what that is.
pub fn records_for<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    policy: &RecordPolicy,
) -> ServiceRecords {
    let Some(spec) = &service.spec else {
        return ServiceRecords::default();
    };
    // An ExternalName is a CNAME and owns no address; slices that carry its label mean nothing.
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceRecords {
            alias: external_name(spec).ok(),
            ..ServiceRecords::default()
        };
    }
    let endpoints = endpoints(spec, slices.into_iter().collect(), policy);
    let headless = is_headless(spec);
    let (addresses, ports): (AddressSet, BTreeSet<_>) = if headless {
        let addresses = endpoints.iter().flat_map(|one| one.addresses.iter());
        // Endpoints of one slice share theirs.
        let mut last: &[Port] = &[];
        let fresh = endpoints.iter().filter(|one| {
            let fresh = !std::ptr::eq(last, &*one.ports);
            last = &one.ports;
            fresh
        });
        let ports = fresh.flat_map(|one| one.ports.iter().cloned());
        (addresses.collect(), ports.collect())
    } else {
        let addresses: AddressSet = cluster_ips(spec)
            .filter_map(|(_, address)| address.parse::<IpAddr>().ok())
            .collect();
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter(|_| !addresses.is_empty());
        let ports = ports.filter_map(|port| {
            self::port(port.protocol.as_deref(), port.name.as_deref(), port.port)
        });
        let ports = ports.collect();
        (addresses, ports)
    };
    let pick = answers_annotation(service).and_then(|answers| pick(answers).ok());
    ServiceRecords {
        addresses,
        endpoints,
        ports: ports.into_iter().collect(),
        headless,
        alias: None,
        pick: pick.unwrap_or(policy.pick),
    }
}

/// The names below a service's.
fn endpoints(
    spec: &ServiceSpec,
    slices: Vec<&EndpointSlice>,
    policy: &RecordPolicy,
) -> Box<[Endpoint]> {
    let slices = slices.into_iter();
    let slices: Vec<_> = slices
        .filter_map(|slice| Some((Family::of(&slice.address_type)?, slice)))
        .collect();
    let mut all = slices
        .iter()
        .flat_map(|(_, slice)| slice.endpoints.iter().flatten());
    let last_resort = policy.serving_terminating && !all.any(is_ready);
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let is_published = |endpoint: &&SliceEndpoint| {
        not_ready_too || is_ready(endpoint) || last_resort && is_serving(endpoint)
    };
    let mut endpoints = BTreeMap::<Box<str>, (Vec<IpAddr>, Arc<[Port]>)>::new();
    let mut shared: Arc<[Port]> = Arc::default();
    for (family, slice) in slices {
        let ports: BTreeSet<_> = slice
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                self::port(port.protocol.as_deref(), port.name.as_deref(), port.port?)
            })
            .collect();
        if !ports.iter().eq(shared.iter()) {
            shared = ports.into_iter().collect();
        }
        for endpoint in slice.endpoints.iter().flatten().filter(is_published) {
            let hostname = endpoint
                .hostname
                .as_deref()
                .filter(|hostname| is_label(hostname));
            for address in endpoint
                .addresses
                .iter()
                .filter_map(|address| family.parse(address).ok())
            {
                let label = hostname.map_or_else(|| generated_label(address), str::to_owned);
                let (addresses, ports) = endpoints
                    .entry(label.into())
                    .or_insert_with(|| (Vec::new(), Arc::clone(&shared)));
                addresses.push(address);
                if *ports != shared {
                    let union: BTreeSet<_> = ports.iter().chain(&*shared).cloned().collect();
                    *ports = union.into_iter().collect();
                }
            }
        }
    }
    let endpoints = endpoints.into_iter();
    endpoints
        .map(|(label, (addresses, ports))| Endpoint {
            label: label.into(),
            addresses: addresses.into_iter().collect(),
            ports,
        })
        .collect()
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
pub(crate) fn answers_annotation(service: &Service) -> Option<&str> {
    let annotations = service.metadata.annotations.as_ref()?;
    annotations.get(ANSWERS_ANNOTATION).map(String::as_str)
}

/// How many addresses an answer draws, as it is written; 0: all of them. The error says what is wrong with it.
pub(crate) fn pick(text: &str) -> Result<u8, String> {
    match text {
        "all" => Ok(0),
        "one" => Ok(1),
        number => number.parse().ok().filter(|&pick| pick > 0).ok_or_else(|| {
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

/// `ready: nil` means ready, says the EndpointSlice API, but an endpoint on its way out is not.
fn is_ready(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| {
        conditions
            .ready
            .unwrap_or_else(|| !conditions.terminating.unwrap_or(false))
    })
}

/// Whether the endpoint still serves while it terminates: `serving` takes no notice of termination, and nil means true.
fn is_serving(endpoint: &SliceEndpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|conditions| {
        conditions.terminating == Some(true) && conditions.serving.unwrap_or(true)
    })
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
    use serde_json::{Value, from_value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec});
        from_value(object).unwrap()
    }

    fn headless() -> Service {
        service(json!({"clusterIP": "None"}))
    }

    fn slice(address_type: &str, endpoints: Value) -> EndpointSlice {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "web-1"},
            "addressType": address_type, "endpoints": endpoints,
        });
        from_value(object).unwrap()
    }

    /// The service's addresses and its endpoints as text.
    fn published(service: &Service, slices: &[EndpointSlice]) -> (Vec<String>, Vec<String>) {
        let text = |set: &AddressSet| {
            let v4 = set.v4.iter().map(ToString::to_string);
            v4.chain(set.v6.iter().map(ToString::to_string))
                .collect::<Vec<_>>()
        };
        let records = records_for(service, slices, &RecordPolicy::default());
        let endpoints = records
            .endpoints
            .iter()
            .map(|one| format!("{} {}", one.label, text(&one.addresses).join(" ")));
        (text(&records.addresses), endpoints.collect())
    }

    #[test]
    fn a_headless_service_is_its_ready_endpoints_of_all_slices() {
        let slices = [
            slice(
                "IPv4",
                json!([
                    {"addresses": ["172.0.0.3"], "hostname": "b"},
                    {"addresses": ["172.0.0.2"], "conditions": {"ready": true}},
                    {"addresses": ["172.0.0.4"], "conditions": {"ready": false}},
                    {"addresses": ["172.0.0.5"], "conditions": {"ready": null, "serving": true, "terminating": true}},
                ]),
            ),
            slice(
                "IPv6",
                json!([
                    {"addresses": ["fd00::3"], "hostname": "b", "conditions": {}},
                    {"addresses": ["5678:abcd::1"]},
                    {"addresses": ["5678:abcd:0::"]},
                ]),
            ),
            slice("IPv4", json!([{"addresses": ["172.0.0.2"]}])),
        ];
        let (addresses, endpoints) = published(&headless(), &slices);
        assert_eq!(
            addresses,
            [
                "172.0.0.2",
                "172.0.0.3",
                "5678:abcd::",
                "5678:abcd::1",
                "fd00::3"
            ]
        );
        let expected = [
            "172-0-0-2 172.0.0.2",
            "5678-abcd--0 5678:abcd::",
            "5678-abcd--1 5678:abcd::1",
            "b 172.0.0.3 fd00::3",
        ];
        assert_eq!(endpoints, expected);
    }

    #[test]
    fn several_endpoints_share_a_hostname() {
        let endpoints = json!([
            {"addresses": ["fd00::2"], "hostname": "a"},
            {"addresses": ["fd00::1", "fd00::3"], "hostname": "a"},
        ]);
        let (addresses, endpoints) = published(&headless(), &[slice("IPv6", endpoints)]);
        assert_eq!(addresses, ["fd00::1", "fd00::2", "fd00::3"]);
        assert_eq!(endpoints, ["a fd00::1 fd00::2 fd00::3"]);
    }

    #[test]
    fn not_ready_addresses_are_published_on_demand() {
        let service = service(json!({"clusterIP": "None", "publishNotReadyAddresses": true}));
        let endpoints = json!([{"addresses": ["fd00::1"], "conditions": {"ready": false, "terminating": true}}]);
        assert_eq!(
            published(&service, &[slice("IPv6", endpoints)]).0,
            ["fd00::1"]
        );
    }

    #[test]
    fn a_service_with_cluster_ips_has_endpoint_names_too() {
        let service =
            service(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::10"]}));
        let slices = [slice(
            "IPv6",
            json!([{"addresses": ["fd00::1"], "hostname": "a"}]),
        )];
        let (addresses, endpoints) = published(&service, &slices);
        assert_eq!(addresses, ["10.0.0.1", "fd00::10"]);
        assert_eq!(endpoints, ["a fd00::1"]);
        assert_eq!(published(&service, &[]).0, ["10.0.0.1", "fd00::10"]);
        let single = self::service(json!({"clusterIP": "fd00::10"}));
        assert_eq!(published(&single, &[]).0, ["fd00::10"]);
    }

    #[test]
    fn what_is_not_valid_is_left_out_alone() {
        let slices = [
            slice(
                "IPv6",
                json!([
                    {"addresses": ["fd00::x", "10.0.0.1", "ff02::1", "::", "fd00::1"], "hostname": "Not.A.Label"},
                ]),
            ),
            slice("FQDN", json!([{"addresses": ["example.com"]}])),
            slice("IPv4", Value::Null),
        ];
        let (addresses, endpoints) = published(&headless(), &slices);
        assert_eq!(addresses, ["fd00::1"]);
        assert_eq!(endpoints, ["fd00--1 fd00::1"]);
    }

    #[test]
    fn an_external_name_is_an_alias_and_nothing_else() {
        let policy = RecordPolicy::default();
        let slices = [slice("IPv6", json!([{"addresses": ["fd00::1"]}]))];
        let of = |name: &str| {
            let external = service(json!({"type": "ExternalName", "externalName": name}));
            records_for(&external, &slices, &policy)
        };
        let alias = ServiceRecords {
            alias: Some(Name::parse("example.com").unwrap()),
            ..ServiceRecords::default()
        };
        assert_eq!(of("Example.com"), alias);
        assert_eq!(of("example.com."), alias);
        // An address is no name, and one that is none stands for nothing.
        for nothing in ["", "192.0.2.1", "2001:db8::1", "a..b"] {
            assert_eq!(of(nothing), ServiceRecords::default(), "{nothing}");
        }
        let empty = records_for(&service(Value::Null), &slices, &policy);
        assert_eq!(empty, ServiceRecords::default());
        let idle = records_for(&headless(), &[], &policy);
        assert!(idle.headless && idle.addresses.is_empty() && idle.endpoints.is_empty());
    }

    /// Ports as text: `name/protocol/number`.
    fn ports(ports: &[Port]) -> Vec<String> {
        let text = |port: &Port| format!("{}/{:?}/{}", port.name, port.protocol, port.number);
        ports.iter().map(text).collect()
    }

    #[test]
    fn ports_are_those_of_the_service_or_of_a_headless_ones_endpoints() {
        let of = |cluster_ip: &str| {
            let service = service(json!({"clusterIP": cluster_ip, "ports": [
                {"name": "http", "port": 80, "targetPort": 8080},
                {"name": "dns", "protocol": "UDP", "port": 53},
                {"port": 99},
            ]}));
            let mut one = slice("IPv6", json!([{"addresses": ["fd00::1"], "hostname": "a"}]));
            one.ports = from_value(json!([
                {"name": "http", "port": 8080, "protocol": "TCP"},
                {"name": "all", "protocol": "TCP"},
                {"name": "No", "port": 1},
                {"name": "zero", "port": 0},
                {"name": "odd", "port": 1, "protocol": "QUIC"},
            ]))
            .unwrap();
            let mut other = slice(
                "IPv4",
                json!([{"addresses": ["10.0.0.1"], "hostname": "a"}]),
            );
            other.ports = from_value(json!([{"name": "http", "port": 8081}])).unwrap();
            records_for(&service, &[one, other], &RecordPolicy::default())
        };
        let of_endpoint = ["/Tcp/1", "http/Tcp/8080", "http/Tcp/8081"];
        assert_eq!(
            ports(&of("fd00::10").ports),
            ["/Tcp/99", "http/Tcp/80", "dns/Udp/53"]
        );
        assert_eq!(ports(&of("fd00::10").endpoints[0].ports), of_endpoint);
        assert_eq!(ports(&of("None").ports), of_endpoint);
        assert!(of("not an address").ports.is_empty());
    }

    #[test]
    fn serving_and_terminating_is_the_last_resort_where_it_is_asked_for() {
        let terminating = json!({"ready": false, "serving": true, "terminating": true});
        let slices = |first: Value| {
            [slice(
                "IPv6",
                json!([
                    {"addresses": ["fd00::1"], "conditions": first},
                    {"addresses": ["fd00::2"], "conditions": terminating},
                    {"addresses": ["fd00::3"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                    {"addresses": ["fd00::4"], "conditions": {"ready": false, "serving": true}},
                ]),
            )]
        };
        let published = |first: Value, serving_terminating| {
            let policy = RecordPolicy {
                serving_terminating,
                pick: 0,
            };
            let records = records_for(&headless(), &slices(first), &policy);
            records
                .addresses
                .iter()
                .map(|address| address.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(published(json!({"ready": false}), false), [""; 0]);
        assert_eq!(published(json!({"ready": false}), true), ["fd00::2"]);
        assert_eq!(published(json!({"ready": true}), true), ["fd00::1"]);
    }

    #[test]
    fn how_many_addresses_an_answer_gives_is_the_services_choice() {
        let policy = RecordPolicy {
            pick: 3,
            ..RecordPolicy::default()
        };
        let of = |answers: Option<&str>| {
            let mut service = headless();
            service.metadata.annotations =
                answers.map(|text| [(ANSWERS_ANNOTATION.to_owned(), text.to_owned())].into());
            records_for(&service, &[], &policy).pick
        };
        assert_eq!(
            [None, Some("all"), Some("one"), Some("8"), Some("255")].map(of),
            [3, 0, 1, 8, 255]
        );
        for bad in ["", "0", "256", "-1", "two", "All"] {
            assert_eq!(of(Some(bad)), 3, "{bad}: the agent's choice");
            assert!(pick(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_kubernetes_labels() {
        for good in ["a", "0", "a-b", "web-0", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
