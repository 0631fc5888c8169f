//! From Kubernetes' objects to DNS records. The same objects always give the same records, in whatever order they came.
//!
//! What must be answered is the Kubernetes DNS-based service discovery specification, version 1.1.0; where it is silent,
//! what CoreDNS answers, because clients rely on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service as ApiService, discovery::v1::EndpointSlice as ApiSlice};

use crate::{
    endpoints::{Edit, Endpoint, Endpoints},
    objects::{Condition, EndpointSlice, Service, ServiceKind, SliceEndpoint},
    snapshot::{AddressSet, Port, ServiceRecords},
};

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
    service: &ApiService,
    slices: impl IntoIterator<Item = &'a ApiSlice>,
    policy: &RecordPolicy,
) -> ServiceRecords {
    let slices: Vec<_> = slices.into_iter().map(EndpointSlice::from).collect();
    Merged::new(&service.into(), slices.iter(), policy).records
}

/// What a service publishes, and what it takes to follow a change of one slice without looking at the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Merged {
    /// What it publishes.
    pub(crate) records: ServiceRecords,
    admits: Admits,
    /// The labels that more than one slice has, and how many have them.
    shared: BTreeMap<Arc<str>, usize>,
    /// The addresses that more than one name of a headless service has: once for each name but one. Sorted.
    repeated: Vec<IpAddr>,
}

/// All slices are read anew where more than this many were replaced, and more than one of so many.
const MANY: usize = 8;

/// A slice that came in the place of another: either may be missing.
pub(crate) type Replaced<'a> = (Option<&'a EndpointSlice>, Option<&'a EndpointSlice>);

impl Merged {
    /// Reads all slices of a service.
    pub(crate) fn new<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
        policy: &RecordPolicy,
    ) -> Self {
        let admits = Admits::new(service, slices.clone(), policy);
        let mut members: Vec<_> = slices
            .clone()
            .enumerate()
            .flat_map(|(number, slice)| {
                let endpoints = slice.endpoints.iter().filter(|one| admits.admits(one));
                endpoints.map(move |endpoint| (endpoint, &slice.ports, number))
            })
            .collect();
        // Slices are sorted: a stable sort finds them so.
        members.sort_by(|(a, ..), (b, ..)| a.label.cmp(&b.label));
        let mut shared = BTreeMap::new();
        let endpoints: Endpoints = members
            .chunk_by(|(a, ..), (b, ..)| a.label == b.label)
            .map(|members| {
                let count = members.chunk_by(|a, b| a.2 == b.2).count();
                if count > 1 {
                    shared.insert(Arc::clone(&members[0].0.label), count);
                }
                endpoint(members.iter().map(|(one, ports, _)| (*one, *ports)))
            })
            .collect();
        let mut merged = Self {
            records: ServiceRecords {
                pick: service.pick.unwrap_or(policy.pick),
                ..ServiceRecords::default()
            },
            admits,
            shared,
            repeated: Vec::new(),
        };
        let records = &mut merged.records;
        match &service.kind {
            ServiceKind::Nothing => records.pick = 0,
            ServiceKind::Alias(name) => {
                records.alias = Some(name.clone());
                records.pick = 0;
            }
            ServiceKind::ClusterIp(addresses) => {
                records.addresses = addresses.clone();
                if !addresses.is_empty() {
                    records.ports = Arc::clone(&service.ports);
                }
                records.endpoints = endpoints;
            }
            ServiceKind::Headless => {
                records.headless = true;
                records.ports = ports(slices, admits);
                let addresses = endpoints.iter().flat_map(|one| one.addresses.iter());
                let mut addresses: Vec<_> = addresses.collect();
                addresses.sort_unstable();
                merged.repeated = repeated(&addresses);
                records.addresses = addresses.into_iter().collect();
                records.endpoints = endpoints;
            }
        }
        merged
    }

    /// Follows a change of some slices; `slices` are all that there are now. The same as [`Self::new`], but for the time that
    /// it takes: each name that changed, and a copy of the service's addresses. Of a name that several slices have, all are
    /// searched.
    pub(crate) fn replace<'a>(
        &mut self,
        service: &Service,
        replaced: &[Replaced<'_>],
        slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
        policy: &RecordPolicy,
    ) {
        let admits = Admits::new(service, slices.clone(), policy);
        // Where many slices are new, to read them all is no more work.
        let many = replaced.len() > MANY && replaced.len() > slices.clone().count() / MANY;
        if many || admits != self.admits {
            *self = Self::new(service, slices, policy);
            return;
        }
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        let mut edits = Vec::<Edit>::new();
        for label in changed(replaced, admits) {
            let has = |slice: &&EndpointSlice| {
                let mut own = slice.named(label).iter();
                own.any(|one| admits.admits(one))
            };
            let left = replaced.iter().filter_map(|(old, _)| *old).filter(has);
            let joined = replaced.iter().filter_map(|(_, new)| *new).filter(has);
            let old = self.records.endpoints.get(label.as_bytes());
            let before = self.shared.get(label).copied();
            let others = before.unwrap_or(usize::from(old.is_some())) - left.count();
            let after = others + joined.clone().count();
            if after > 1 {
                self.shared.insert(Arc::clone(label), after);
            } else {
                self.shared.remove(label);
            }
            let new = if others == 0 {
                members_of(label, joined, admits)
            } else {
                members_of(label, slices.clone(), admits)
            };
            let nobody = AddressSet::default();
            let [was, is] =
                [old, new.as_ref()].map(|one| one.map_or(&nobody, |one| &one.addresses));
            gone.extend(was.iter().filter(|&address| !is.contains(address)));
            come.extend(is.iter().filter(|&address| !was.contains(address)));
            edits.push((Arc::clone(label), new));
        }
        let records = &mut self.records;
        records.endpoints = records.endpoints.with(&edits);
        if records.headless {
            let ports = ports(slices, admits);
            if ports != records.ports {
                records.ports = ports;
            }
            records.addresses = readdress(&records.addresses, &mut self.repeated, gone, come);
        }
    }
}

/// Which endpoints a service publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admits {
    Nobody,
    Ready,
    Terminating,
    Everybody,
}

impl Admits {
    fn new<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a EndpointSlice>,
        policy: &RecordPolicy,
    ) -> Self {
        let is_ready = |one: &SliceEndpoint| one.condition == Condition::Ready;
        match service.kind {
            // An ExternalName is a CNAME and owns no address; slices that carry its label mean nothing.
            ServiceKind::Nothing | ServiceKind::Alias(_) => Self::Nobody,
            _ if service.publish_not_ready => Self::Everybody,
            _ if !policy.serving_terminating => Self::Ready,
            _ if { slices }.any(|slice| slice.endpoints.iter().any(is_ready)) => Self::Ready,
            _ => Self::Terminating,
        }
    }

    fn admits(self, endpoint: &SliceEndpoint) -> bool {
        match self {
            Self::Nobody => false,
            Self::Ready => endpoint.condition == Condition::Ready,
            Self::Terminating => endpoint.condition == Condition::Terminating,
            Self::Everybody => true,
        }
    }
}

/// The ports of a headless service: those of its endpoints.
fn ports<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, admits: Admits) -> Arc<[Port]> {
    let mut all = BTreeSet::new();
    let mut last: &[Port] = &[];
    for slice in slices {
        // Mostly all slices have the same.
        if *slice.ports != *last && slice.endpoints.iter().any(|one| admits.admits(one)) {
            last = &slice.ports;
            all.extend(last);
        }
    }
    if all.iter().copied().eq(last) {
        return last.into();
    }
    all.into_iter().cloned().collect()
}

/// The endpoint that some members of slices, at least one, with one label are.
fn endpoint<'a>(
    members: impl Iterator<Item = (&'a SliceEndpoint, &'a Arc<[Port]>)> + Clone,
) -> Endpoint {
    let (first, ports) = members.clone().next().expect("a member");
    let ports = if members.clone().all(|(_, other)| other == ports) {
        Arc::clone(ports)
    } else {
        let all = members.clone().flat_map(|(_, ports)| ports.iter());
        all.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    };
    Endpoint {
        label: Arc::clone(&first.label),
        addresses: members.map(|(one, _)| one.address).collect(),
        ports,
    }
}

/// The endpoint that some slices have of a label, if they have one.
fn members_of<'a>(
    label: &str,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    admits: Admits,
) -> Option<Endpoint> {
    let members: Vec<_> = slices
        .flat_map(|slice| {
            let own = slice.named(label).iter().filter(|one| admits.admits(one));
            own.map(|one| (one, &slice.ports))
        })
        .collect();
    (!members.is_empty()).then(|| endpoint(members.into_iter()))
}

/// The labels of which the slices that were replaced say something else now.
fn changed<'a>(replaced: &[Replaced<'a>], admits: Admits) -> BTreeSet<&'a Arc<str>> {
    let mut labels = BTreeSet::new();
    for &(old, new) in replaced {
        for (slice, other) in [(old, new), (new, old)] {
            let Some(slice) = slice else { continue };
            let other = other.filter(|other| other.ports == slice.ports);
            let admitted = |slice: &'a EndpointSlice| {
                let endpoints = slice.endpoints.iter();
                endpoints.filter(move |one| admits.admits(one))
            };
            let mut others = other.into_iter().flat_map(admitted).peekable();
            for one in admitted(slice) {
                // Both are sorted.
                while others
                    .next_if(|other| other.place() < one.place())
                    .is_some()
                {}
                if others
                    .peek()
                    .is_none_or(|other| other.place() != one.place())
                {
                    labels.insert(&one.label);
                }
            }
        }
    }
    labels
}

/// The addresses that are there more than once in a sorted list: once less than there.
fn repeated(sorted: &[IpAddr]) -> Vec<IpAddr> {
    let pairs = sorted.windows(2).filter(|pair| pair[0] == pair[1]);
    pairs.map(|pair| pair[0]).collect()
}

/// A sorted list without those of another, as often as they stand there.
fn without(all: &[IpAddr], others: &[IpAddr]) -> Vec<IpAddr> {
    let mut others = others.iter().peekable();
    let rest = all.iter().filter(|one| {
        while others.next_if(|other| other < one).is_some() {}
        others.next_if_eq(one).is_none()
    });
    rest.copied().collect()
}

/// The addresses of a service after some of its names have lost (`gone`) and others won (`come`) some: `repeated` knows
/// which of them other names still have.
fn readdress(
    addresses: &AddressSet,
    repeated: &mut Vec<IpAddr>,
    mut gone: Vec<IpAddr>,
    mut come: Vec<IpAddr>,
) -> AddressSet {
    gone.sort_unstable();
    come.sort_unstable();
    // What one name gives to another has neither gone nor come.
    let (gone, come) = (without(&gone, &come), without(&come, &gone));
    let lost = without(&gone, repeated);
    *repeated = without(repeated, &gone);
    let mut won = Vec::new();
    for address in come {
        if addresses.contains(address) || won.last() == Some(&address) {
            repeated.push(address);
        } else {
            won.push(address);
        }
    }
    repeated.sort_unstable();
    addresses.with(&lost, &won)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, from_value, json};

    use super::{ApiService as Service, ApiSlice as EndpointSlice, *};
    use crate::{
        name::Name,
        objects::{self, ANSWERS_ANNOTATION, pick},
    };

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
        assert_eq!(
            ports(&of("fd00::10").endpoints.get(b"a").unwrap().ports),
            of_endpoint
        );
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

    /// Few labels and addresses, so that slices have many in common.
    fn slices() -> impl Strategy<Value = objects::EndpointSlice> {
        let endpoints = prop::collection::btree_set(SliceEndpoint::any(8), 0..12);
        let ports = prop::collection::btree_set(0..3_u16, 0..2);
        (endpoints, ports).prop_map(|(endpoints, ports)| objects::EndpointSlice {
            service: None,
            endpoints: endpoints.into_iter().collect(),
            ports: ports
                .into_iter()
                .map(|number| numbered(80 + number))
                .collect(),
            problems: [].into(),
        })
    }

    fn numbered(number: u16) -> Port {
        Port {
            protocol: crate::snapshot::Protocol::Tcp,
            name: "http".into(),
            number,
        }
    }

    proptest! {
        /// What is followed slice by slice comes to what is read at once.
        #[test]
        fn following_is_reading_anew(
            headless: bool,
            publish_not_ready: bool,
            serving_terminating: bool,
            history in prop::collection::vec(
                prop::collection::btree_map(0..14_u8, prop::option::weighted(0.8, slices()), 0..14), 1..20,
            ),
        ) {
            let service = objects::Service {
                kind: if headless { ServiceKind::Headless } else {
                    ServiceKind::ClusterIp([IpAddr::from([10, 1, 0, 1])].into_iter().collect())
                },
                ports: [numbered(1)].into(),
                publish_not_ready,
                pick: None,
                problems: [].into(),
            };
            let policy = RecordPolicy { serving_terminating, pick: 3 };
            let mut all = BTreeMap::<u8, objects::EndpointSlice>::new();
            let mut merged = Merged::new(&service, all.values(), &policy);
            for changes in history {
                let old = all.clone();
                for (number, slice) in &changes {
                    match slice {
                        Some(slice) => all.insert(*number, slice.clone()),
                        None => all.remove(number),
                    };
                }
                let replaced = changes.keys().map(|number| (old.get(number), all.get(number)));
                merged.replace(&service, &replaced.collect::<Vec<_>>(), all.values(), &policy);
                prop_assert_eq!(&merged, &Merged::new(&service, all.values(), &policy));
            }
        }
    }
}
