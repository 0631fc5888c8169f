//! Every name that a cluster's objects ask for, by the specification alone: nothing here knows how Peak keeps them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::Result;
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::{Api, api::ListParams};
use peak_tests::ControlPlane;

/// The zone.
pub(crate) const ZONE: &str = "cluster.local.";

/// Names, each with the kind that it is of. `differences.txt` lists the kinds.
pub(crate) type Names = BTreeMap<String, &'static str>;

/// What a cluster has.
pub(crate) struct Objects {
    namespaces: Vec<String>,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl Objects {
    /// Reads the objects of those namespaces that `is_asked` about.
    pub(crate) fn read(plane: &ControlPlane, is_asked: impl Fn(&str) -> bool) -> Result<Self> {
        plane.run(async {
            let (client, all) = (plane.client(), ListParams::default());
            let namespaces = Api::<Namespace>::all(client.clone()).list(&all).await?;
            let services = Api::<Service>::all(client.clone()).list(&all).await?;
            let slices = Api::<EndpointSlice>::all(client).list(&all).await?;
            let in_asked = |namespace: &Option<String>| namespace.as_deref().is_some_and(&is_asked);
            let names = namespaces
                .items
                .into_iter()
                .filter_map(|one| one.metadata.name);
            Ok(Self {
                namespaces: names.filter(|name| is_asked(name)).collect(),
                services: services
                    .items
                    .into_iter()
                    .filter(|one| in_asked(&one.metadata.namespace))
                    .collect(),
                slices: slices
                    .items
                    .into_iter()
                    .filter(|one| in_asked(&one.metadata.namespace))
                    .collect(),
            })
        })
    }

    /// How many services there are.
    pub(crate) fn services(&self) -> usize {
        self.services.len()
    }

    /// All names that exist.
    pub(crate) fn names(&self) -> Names {
        let mut names = Names::new();
        let mut add = |name: String, kind| {
            names.entry(name).or_insert(kind);
        };
        for (name, kind) in [
            ("", "apex"),
            ("svc.", "svc"),
            ("pod.", "pod"),
            ("dns-version.", "dns-version"),
            ("dns.", "dns"),
            ("ns.dns.", "name-server"),
        ] {
            add(format!("{name}{ZONE}"), kind);
        }
        add("in-addr.arpa.".to_owned(), "reverse-apex");
        add("ip6.arpa.".to_owned(), "reverse-apex");
        let aliases: BTreeMap<_, _> = self.services.iter().filter_map(alias).collect();
        for service in &self.services {
            let (name, namespace) = (
                service.metadata.name.as_deref().unwrap_or_default(),
                service.metadata.namespace.as_deref().unwrap_or_default(),
            );
            add(format!("{namespace}.svc.{ZONE}"), "namespace");
            let own = format!("{name}.{namespace}.svc.{ZONE}");
            if alias(service).is_some() {
                continue;
            }
            let Some(spec) = &service.spec else { continue };
            if spec.type_.as_deref() == Some("ExternalName") {
                // Its target is an address, and so no name.
                continue;
            }
            let endpoints: Vec<_> = self.endpoints(service).collect();
            let cluster_ips = spec.cluster_ips.iter().flatten();
            let cluster_ips: Vec<IpAddr> = cluster_ips.filter_map(|ip| ip.parse().ok()).collect();
            let ports: BTreeSet<_> = if cluster_ips.is_empty() {
                let ports = endpoints
                    .iter()
                    .flat_map(|(slice, ..)| slice.ports.iter().flatten());
                ports
                    .filter(|port| port.port.is_some())
                    .map(|port| (port.name.clone(), port.protocol.clone()))
                    .collect()
            } else {
                let ports = spec.ports.iter().flatten();
                ports
                    .map(|port| (port.name.clone(), port.protocol.clone()))
                    .collect()
            };
            if cluster_ips.is_empty() && endpoints.is_empty() {
                continue;
            }
            for (port, protocol) in ports {
                let protocol = protocol.as_deref().unwrap_or("TCP").to_lowercase();
                if let Some(port) = port.filter(|port| !port.is_empty()) {
                    add(format!("_{port}._{protocol}.{own}"), "port");
                    add(format!("_{protocol}.{own}"), "protocol");
                }
            }
            for &address in &cluster_ips {
                for (name, kind) in reverse_names(address) {
                    add(name, kind);
                }
            }
            for (_, endpoint, address) in &endpoints {
                add(format!("{}.{own}", label(endpoint, address)), "endpoint");
                for (name, kind) in reverse_names(address.parse().expect("an address")) {
                    add(name, kind);
                }
            }
            add(own, "service");
        }
        let kinds: Vec<_> = aliases
            .keys()
            .map(|own| (own.clone(), kind_of_alias(&aliases, &names, own)))
            .collect();
        names.extend(kinds);
        for target in aliases.into_values() {
            if target.ends_with(&format!(".{ZONE}")) {
                names.entry(target).or_insert("absent");
            }
        }
        for namespace in &self.namespaces {
            let name = format!("{namespace}.svc.{ZONE}");
            names.entry(name).or_insert("empty-namespace");
        }
        // What was taken for a name is none beyond what DNS can hold.
        names.retain(|name, _| is_name(name));
        names
    }

    /// The published endpoints of a service, by address, each with its slice.
    fn endpoints<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a EndpointSlice, &'a Endpoint, &'a str)> {
        let metadata = &service.metadata;
        let spec = service.spec.as_ref();
        let not_ready_too = spec
            .and_then(|spec| spec.publish_not_ready_addresses)
            .unwrap_or_default();
        let slices = self.slices.iter().filter(move |slice| {
            let labels = slice.metadata.labels.as_ref();
            slice.metadata.namespace == metadata.namespace
                && labels.and_then(|labels| labels.get("kubernetes.io/service-name"))
                    == metadata.name.as_ref()
                && slice.address_type != "FQDN"
        });
        slices.flat_map(move |slice| {
            let endpoints = slice.endpoints.iter().flatten();
            let endpoints = endpoints.filter(move |one| not_ready_too || is_ready(one));
            endpoints.flat_map(move |one| {
                one.addresses
                    .iter()
                    .map(move |address| (slice, one, address.as_str()))
            })
        })
    }
}

/// What becomes of who follows an alias.
fn kind_of_alias(aliases: &BTreeMap<String, String>, names: &Names, own: &str) -> &'static str {
    let mut name = own;
    for _ in 0..=aliases.len() {
        match aliases.get(name) {
            Some(target) => name = target,
            None if !name.ends_with(&format!(".{ZONE}")) => return "alias-outside",
            None if names.contains_key(name) => return "alias-inside",
            None => return "alias-nowhere",
        }
    }
    "alias-circle"
}

/// The name of an ExternalName service, and what it stands for, unless that is an address.
fn alias(service: &Service) -> Option<(String, String)> {
    let (metadata, spec) = (&service.metadata, service.spec.as_ref()?);
    let target = spec.external_name.as_deref()?;
    let is_alias =
        spec.type_.as_deref() == Some("ExternalName") && target.parse::<IpAddr>().is_err();
    let (name, namespace) = (metadata.name.as_deref()?, metadata.namespace.as_deref()?);
    let own = format!("{name}.{namespace}.svc.{ZONE}");
    is_alias.then(|| (own, format!("{}.", target.trim_end_matches('.'))))
}

/// Ready, or nothing is said about that and it does not terminate.
fn is_ready(endpoint: &Endpoint) -> bool {
    match &endpoint.conditions {
        None => true,
        Some(conditions) => conditions
            .ready
            .unwrap_or(conditions.terminating != Some(true)),
    }
}

/// The hostname, or else the address with dashes.
fn label(endpoint: &Endpoint, address: &str) -> String {
    if let Some(hostname) = endpoint
        .hostname
        .as_deref()
        .filter(|hostname| !hostname.is_empty())
    {
        return hostname.to_owned();
    }
    let dashed = address.replace(['.', ':'], "-");
    match dashed.strip_suffix('-') {
        Some(_) => format!("{dashed}0"),
        None => dashed,
    }
}

/// The reverse name of an address, and names between it and its zone: those next to either.
fn reverse_names(address: IpAddr) -> impl Iterator<Item = (String, &'static str)> {
    let whole = reverse(address);
    let labels: Vec<_> = whole.split_inclusive('.').map(str::to_owned).collect();
    let last = labels.len() - 3;
    let first = (1..=last).filter(move |first| *first <= 3 || *first + 1 >= last);
    let above = first.map(move |first| (labels[first..].concat(), "above-address"));
    std::iter::once((whole, "address")).chain(above)
}

/// The reverse name of an address.
pub(crate) fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let labels: String = digits
                .chars()
                .rev()
                .flat_map(|digit| [digit, '.'])
                .collect();
            format!("{labels}ip6.arpa.")
        }
    }
}

/// RFC 1035, section 2.3.4: labels of 1 to 63 bytes, and 255 with their lengths and the root's.
pub(crate) fn is_name(name: &str) -> bool {
    let mut labels = name.trim_end_matches('.').split('.');
    name.len() < 255 && labels.all(|label| (1..=63).contains(&label.len()))
}

/// Names that don't exist, but almost, and some that are none of the zone's. `names` are those that do.
pub(crate) fn absent(names: &Names, is_one_of_many: impl Fn(&str) -> bool) -> Names {
    let mut absent = Names::new();
    let mut add = |name: String, kind| {
        if is_name(&name) && !names.contains_key(&name) {
            absent.entry(name).or_insert(kind);
        }
    };
    for (name, &kind) in names {
        let Some((first, above)) = name.split_once('.') else {
            continue;
        };
        // Of the many, a few are enough.
        if is_one_of_many(name) {
            if kind == "service" {
                for below in ["x", "_x._tcp"] {
                    add(format!("{below}.{name}"), "absent");
                }
                add(format!("x{name}"), "absent");
            }
            continue;
        }
        match kind {
            "service" => {
                let service = name;
                for below in [
                    "x",
                    "*",
                    "0",
                    "_tcp",
                    "_udp",
                    "_sctp",
                    "_http",
                    "1-2-3-4",
                    "fd00--1",
                    "x.y",
                    "_http._tcp",
                    "_http._udp",
                    "_http._sctp",
                    "_99._tcp",
                    "x.y.z",
                    "_x._http._tcp",
                ] {
                    add(format!("{below}.{service}"), "absent");
                }
                let (namespace, _) = above.split_once('.').unwrap_or((above, ""));
                for name in [
                    format!("x-{name}"),
                    format!("{first}x.{above}"),
                    format!("{first}.x-{above}"),
                    format!("{first}.{ZONE}"),
                    format!("{first}.{namespace}.{ZONE}"),
                    format!("{first}.{namespace}.pod.{ZONE}"),
                    format!("{first}.{namespace}.svc.svc.{ZONE}"),
                ] {
                    add(name, "absent");
                }
            }
            "endpoint" | "alias-inside" | "alias-outside" | "alias-circle" | "alias-nowhere" => {
                for below in ["x", "_http._tcp"] {
                    add(format!("{below}.{name}"), "absent");
                }
                add(format!("x{name}"), "absent");
            }
            "port" => {
                add(format!("x.{name}"), "absent");
                add(format!("_x{}", &name[1..]), "absent");
                let (protocol, service) = above.split_once('.').unwrap_or((above, ""));
                let (port, protocol) = (&first[1..], &protocol[1..]);
                for bare in [
                    format!("{port}.{protocol}"),
                    format!("_{port}.{protocol}"),
                    format!("{port}._{protocol}"),
                ] {
                    add(format!("{bare}.{service}"), "bare-port");
                }
            }
            "namespace" => {
                for below in [
                    "x",
                    "_x",
                    "www.example.com",
                    "kubernetes.default",
                    "a.b.c.d.e.f",
                ] {
                    add(format!("{below}.{name}"), "absent");
                }
                add(format!("{}.{name}", "x".repeat(63)), "absent");
                // As long as a name may be.
                let mut longest = name.clone();
                while longest.len() < 254 - 64 {
                    longest = format!("{}.{longest}", "y".repeat(62));
                }
                add(
                    format!("{}.{longest}", "z".repeat(253 - longest.len())),
                    "absent",
                );
                add(format!("{first}.pod.{ZONE}"), "pod-namespace");
                add(format!("10-1-2-3.{first}.pod.{ZONE}"), "pod-address");
                add(format!("{first}.{ZONE}"), "absent");
                add(format!("x{name}"), "absent");
            }
            "address" => {
                let is_v6 = name.ends_with("ip6.arpa.");
                add(
                    format!("x.{name}"),
                    if is_v6 { "below-address" } else { "absent" },
                );
                add(format!("0{name}"), "absent");
            }
            "apex" | "svc" | "pod" | "dns" | "name-server" | "dns-version" => {
                for below in ["x", "*", "_tcp", "www.example.com", "local"] {
                    add(format!("{below}.{name}"), "absent");
                }
            }
            "reverse-apex" => {
                for below in ["x", "1", "f", "_tcp", "254", "0.1", "256"] {
                    add(format!("{below}.{name}"), "absent");
                }
            }
            _ => {}
        }
    }
    for address in [
        "192.0.2.1",
        "10.96.255.254",
        "2001:db8::1",
        "fd00:10:96::ffff",
    ] {
        add(reverse(address.parse().expect("an address")), "absent");
    }
    for name in [
        "example.org.",
        "local.",
        "xcluster.local.",
        "arpa.",
        "cluster.local.example.com.",
    ] {
        add(name.to_owned(), "outside");
    }
    absent
}
