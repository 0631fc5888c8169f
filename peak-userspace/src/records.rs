//! From Kubernetes' objects to DNS records. Pure: the same objects always give the same records.
//!
//! What must be answered is the Kubernetes DNS-based service discovery specification, version 1.1.0; where it is silent,
//! what CoreDNS answers, because clients rely on it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::{
    name::MAX_LABEL,
    snapshot::{AddressSet, ServiceRecords},
};

/// The label by which an EndpointSlice says which service it belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The ClusterIP of a headless service.
pub const HEADLESS: &str = "None";

/// What a service publishes, given all the slices that belong to it.
///
/// What is not valid, such as an address that is none, is left out alone: [`crate::validate`] says what that is.
pub fn records_for<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> ServiceRecords {
    let Some(spec) = &service.spec else {
        return ServiceRecords::default();
    };
    // An ExternalName is a CNAME and owns no address; slices that carry its label mean nothing.
    if spec.type_.as_deref() == Some("ExternalName") {
        return ServiceRecords::default();
    }
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut endpoints: BTreeMap<Box<str>, Vec<IpAddr>> = BTreeMap::new();
    for slice in slices {
        let Some(family) = Family::of(&slice.address_type) else {
            continue;
        };
        for endpoint in slice
            .endpoints
            .iter()
            .flatten()
            .filter(|endpoint| not_ready_too || is_ready(endpoint))
        {
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
                endpoints.entry(label.into()).or_default().push(address);
            }
        }
    }
    let addresses = if is_headless(spec) {
        endpoints.values().flatten().copied().collect()
    } else {
        cluster_ips(spec)
            .filter_map(|(_, address)| address.parse::<IpAddr>().ok())
            .collect()
    };
    let endpoints = endpoints
        .into_iter()
        .map(|(label, addresses)| (label, addresses.into_iter().collect::<AddressSet>()));
    ServiceRecords {
        addresses,
        endpoints: endpoints.collect(),
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
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_none_or(|conditions| {
        conditions
            .ready
            .unwrap_or_else(|| !conditions.terminating.unwrap_or(false))
    })
}

/// The label of an endpoint without a hostname: its address with dashes, `172-0-0-2` or `5678-abcd--1`. A trailing
/// dash, from `::`, gets a zero behind it, so that the label ends as host names do.
fn generated_label(address: IpAddr) -> String {
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
        let records = records_for(service, slices);
        let endpoints = records
            .endpoints
            .iter()
            .map(|(label, set)| format!("{label} {}", text(set).join(" ")));
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
    fn an_external_name_and_an_empty_spec_publish_nothing() {
        let external = service(json!({"type": "ExternalName", "externalName": "example.com"}));
        let slices = [slice("IPv6", json!([{"addresses": ["fd00::1"]}]))];
        assert_eq!(records_for(&external, &slices), ServiceRecords::default());
        assert_eq!(
            records_for(&service(Value::Null), &slices),
            ServiceRecords::default()
        );
        assert_eq!(records_for(&headless(), &[]), ServiceRecords::default());
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
