//! What a Kubernetes DNS server must answer, from objects as Kubernetes writes them. Tests that begin with `s` are the
//! specification's own sentences (kubernetes/dns, version 1.1.0), `c` what CoreDNS does where it is silent, `e` the
//! EndpointSlice API.

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use peak_userspace::{
    fallback::{
        Transport,
        answer::{Policy, Reaction},
    },
    name::Name,
    objects::SERVICE_NAME_LABEL,
    pods::{PodKey, PodMode},
    records::{RecordPolicy, records_for},
    snapshot::{Batch, Change, ServiceKey, Snapshot, SnapshotConfig},
};
use serde_json::{Value, from_value, json};

use crate::fixture::*;

const CNAME: u16 = 5;
const TXT: u16 = 16;
const SRV: u16 = 33;

/// A cluster, and how it is answered for.
#[derive(Default)]
struct Cluster {
    services: Vec<(Service, Vec<EndpointSlice>)>,
    policy: RecordPolicy,
    pods: PodMode,
    running: Vec<(&'static str, &'static str)>,
    reverse: Vec<&'static str>,
}

impl Cluster {
    /// With a Service `shop/NAME`, and its slices.
    fn with(mut self, name: &str, spec: Value, slices: Vec<EndpointSlice>) -> Self {
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": name}, "spec": spec,
        });
        self.services.push((from_value(object).unwrap(), slices));
        self
    }

    fn annotated(mut self, annotation: &str, value: &str) -> Self {
        let (service, _) = self.services.last_mut().unwrap();
        let annotations = service.metadata.annotations.get_or_insert_default();
        annotations.insert(annotation.to_owned(), value.to_owned());
        self
    }

    fn snapshot(&self) -> (Snapshot, Vec<Change>) {
        let updates = self.services.iter().map(|(service, slices)| {
            let name = service.metadata.name.as_deref().unwrap();
            let records = records_for(service, slices, &self.policy);
            (ServiceKey::new("shop", name), Some(records))
        });
        let pods = self.running.iter().map(|&(namespace, address)| {
            let key = PodKey {
                namespace: namespace.into(),
                address: address.parse().unwrap(),
            };
            (key, true)
        });
        Snapshot::empty(SnapshotConfig {
            zones: vec![ZONE.parse().unwrap()],
            ttl: TTL,
            nameservers: vec!["fd00::53".parse().unwrap()],
            reverse: self
                .reverse
                .iter()
                .map(|range| range.parse().unwrap())
                .collect(),
            pods: self.pods,
        })
        .with(
            Batch {
                services: updates.collect(),
                pods: pods.collect(),
            },
            std::time::UNIX_EPOCH,
        )
    }

    fn octets(&self, name: &str, qtype: u16, transport: Transport, draw: u32) -> Vec<u8> {
        let client = "192.0.2.1".parse().unwrap();
        let (snapshot, _) = self.snapshot();
        let query = ask(name, qtype).opt(OPT).bytes();
        match decided(
            &query,
            transport,
            client,
            &snapshot,
            &Policy::default(),
            draw,
        ) {
            (Reaction::Reply(_), octets) => octets,
            other => panic!("{other:?}"),
        }
    }

    fn reply(&self, name: &str, qtype: u16) -> Message {
        let message = Message::from_vec(&self.octets(name, qtype, Transport::Tcp, 0)).unwrap();
        let over_udp = Message::from_vec(&self.octets(name, qtype, Transport::Udp, 0)).unwrap();
        if !over_udp.metadata.truncation {
            assert_eq!(
                over_udp.answers, message.answers,
                "{name}: TCP says what UDP says"
            );
        }
        for record in message.answers.iter().chain(&message.authorities) {
            assert_eq!(record.ttl, TTL, "{record}");
        }
        message
    }

    /// The answer's data, sorted; `NODATA`, `NXDOMAIN` or `REFUSED` where there is none.
    fn ask(&self, name: &str, qtype: u16) -> Vec<String> {
        let message = self.reply(name, qtype);
        let code = message.metadata.response_code;
        let mut data: Vec<_> = message
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect();
        data.sort();
        if code == ResponseCode::Refused {
            return vec!["REFUSED".to_owned()];
        }
        assert!(message.metadata.authoritative, "{name}: AA");
        match (&*data, code) {
            ([], ResponseCode::NoError) => negative(&message, "NODATA"),
            ([], ResponseCode::NXDomain) => negative(&message, "NXDOMAIN"),
            (_, ResponseCode::NoError) => data,
            (_, other) => panic!("{name}: {other}"),
        }
    }
}

/// C: negative answers carry the SOA.
fn negative(message: &Message, kind: &str) -> Vec<String> {
    let [record] = &message.authorities[..] else {
        panic!("one SOA, not {:?}", message.authorities)
    };
    let RData::SOA(soa) = &record.data else {
        panic!("{record}")
    };
    assert_eq!(soa.minimum, TTL, "C: the SOA minimum equals the TTL");
    vec![kind.to_owned()]
}

fn slice(service: &str, address_type: &str, ports: Value, endpoints: Value) -> EndpointSlice {
    from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "shop", "name": "s", "labels": {SERVICE_NAME_LABEL: service}},
        "addressType": address_type, "ports": ports, "endpoints": endpoints,
    }))
    .unwrap()
}

/// Dual stack, ClusterIPs, with a port that has a name and one that has none.
fn cart() -> Cluster {
    let spec = json!({
        "clusterIP": "fd00:96::20", "clusterIPs": ["fd00:96::20", "10.96.0.20"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}, {"port": 99}],
    });
    let endpoints = json!([{"addresses": ["fd00:244::1"], "hostname": "cart-0"}, {"addresses": ["fd00:244::2"]}]);
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    Cluster::default().with("cart", spec, vec![slice("cart", "IPv6", ports, endpoints)])
}

/// Headless: a hostname, none, one that is not ready.
fn web() -> Cluster {
    let ports =
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "", "port": 99}]);
    let endpoints = json!([
        {"addresses": ["fd00:244::1"], "hostname": "web-0", "conditions": {"ready": true}},
        {"addresses": ["fd00:244::2"]},
        {"addresses": ["fd00:244::3"], "hostname": "web-3", "conditions": {"ready": false}},
    ]);
    let v4 = json!([{"addresses": ["10.244.0.1"], "hostname": "web-0"}]);
    let slices = vec![
        slice("web", "IPv6", ports.clone(), endpoints),
        slice("web", "IPv4", ports, v4),
    ];
    Cluster::default().with("web", json!({"clusterIP": "None"}), slices)
}

fn reverse(address: &str) -> String {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        std::net::IpAddr::V6(address) => {
            let digits = format!("{:032x}", address.to_bits());
            let labels: Vec<_> = digits.chars().rev().map(String::from).collect();
            format!("{}.ip6.arpa", labels.join("."))
        }
    }
}

#[test]
fn s_cluster_ip_a_and_aaaa() {
    assert_eq!(cart().ask("cart.shop.svc.cluster.local", A), ["10.96.0.20"]);
    assert_eq!(
        cart().ask("cart.shop.svc.cluster.local", AAAA),
        ["fd00:96::20"]
    );
    let single = Cluster::default().with("cart", json!({"clusterIP": "10.96.0.20"}), vec![]);
    assert_eq!(single.ask("cart.shop.svc.cluster.local", AAAA), ["NODATA"]);
}

#[test]
fn s_cluster_ip_srv_of_each_named_port_with_the_service_as_target() {
    let name = "_http._tcp.cart.shop.svc.cluster.local";
    // C: priority 0, weight 100 by the two addresses.
    assert_eq!(
        cart().ask(name, SRV),
        ["0 50 80 cart.shop.svc.cluster.local."]
    );
    assert_eq!(
        cart().ask("_http._udp.cart.shop.svc.cluster.local", SRV),
        ["NXDOMAIN"]
    );
    assert_eq!(
        cart().ask("_x._tcp.cart.shop.svc.cluster.local", SRV),
        ["NXDOMAIN"]
    );
    let additional = cart().reply(name, SRV).additionals;
    let additional: Vec<_> = additional.iter().map(Record::to_string).collect();
    assert_eq!(
        additional,
        [
            "cart.shop.svc.cluster.local. 5 IN AAAA fd00:96::20",
            "cart.shop.svc.cluster.local. 5 IN A 10.96.0.20"
        ]
    );
}

#[test]
fn s_unnamed_ports_have_no_srv_name() {
    for name in ["_._tcp", "_99._tcp", "_"] {
        let name = format!("{name}.cart.shop.svc.cluster.local");
        assert_eq!(cart().ask(&name, SRV), ["NXDOMAIN"], "{name}");
    }
    let unnamed = Cluster::default().with(
        "cart",
        json!({"clusterIP": "10.96.0.20", "ports": [{"port": 99}]}),
        vec![],
    );
    assert_eq!(
        unnamed.ask("_tcp.cart.shop.svc.cluster.local", SRV),
        ["NXDOMAIN"]
    );
}

#[test]
fn s_ptr_of_cluster_ips_in_both_families() {
    for address in ["10.96.0.20", "fd00:96::20"] {
        assert_eq!(
            cart().ask(&reverse(address), PTR),
            ["cart.shop.svc.cluster.local."]
        );
    }
}

#[test]
fn c_a_bare_srv_query_is_answered_too() {
    // Four shares: two ports by two addresses.
    let both = [
        "0 25 80 cart.shop.svc.cluster.local.",
        "0 25 99 cart.shop.svc.cluster.local.",
    ];
    assert_eq!(cart().ask("cart.shop.svc.cluster.local", SRV), both);
    let of_endpoint = cart().ask("cart-0.cart.shop.svc.cluster.local", SRV);
    assert_eq!(
        of_endpoint,
        ["0 100 8080 cart-0.cart.shop.svc.cluster.local."]
    );
}

#[test]
fn c_the_weight_is_at_least_1() {
    let endpoints: Vec<_> = (1..=150)
        .map(|i| json!({"addresses": [format!("fd00:244::{i:x}")]}))
        .collect();
    let ports = json!([{"name": "http", "port": 80}]);
    let slices = vec![slice("many", "IPv6", ports, endpoints.into())];
    let many = Cluster::default().with("many", json!({"clusterIP": "None"}), slices);
    let records = many.ask("_http._tcp.many.shop.svc.cluster.local", SRV);
    assert_eq!(records.len(), 150);
    assert!(
        records.iter().all(|record| record.starts_with("0 1 80 ")),
        "{records:?}"
    );
    // Too many for UDP: TC, some of them, and nothing beside.
    let over_udp = many.octets(
        "_http._tcp.many.shop.svc.cluster.local",
        SRV,
        Transport::Udp,
        0,
    );
    let over_udp = Message::from_vec(&over_udp).unwrap();
    assert!(
        over_udp.metadata.truncation
            && !over_udp.answers.is_empty()
            && over_udp.additionals.is_empty()
    );
}

#[test]
fn c_srv_has_as_many_addresses_beside_it_as_fit() {
    let mut without_all = 0;
    for count in 5..60 {
        let endpoints: Vec<_> = (1..=count)
            .map(
                |i| json!({"addresses": [format!("fd00:244::{i:x}")], "hostname": format!("h{i}")}),
            )
            .collect();
        let ports = json!([{"name": "http", "port": 80}]);
        let slices = vec![slice("many", "IPv6", ports, endpoints.into())];
        let many = Cluster::default().with("many", json!({"clusterIP": "None"}), slices);
        let octets = many.octets(
            "_http._tcp.many.shop.svc.cluster.local",
            SRV,
            Transport::Udp,
            0,
        );
        let reply = Message::from_vec(&octets).unwrap();
        if reply.metadata.truncation {
            assert!(without_all > 0 && reply.additionals.is_empty());
            break;
        }
        assert_eq!(reply.answers.len(), count);
        // An address takes 28 bytes, its owner being a pointer.
        let has_room = octets.len() + 28 <= 1232;
        if reply.additionals.len() < count {
            assert!(!has_room, "{count}: there is room for another");
            without_all += 1;
        }
    }
}

#[test]
fn c_endpoints_have_names_below_cluster_ip_services_too() {
    assert_eq!(
        cart().ask("cart-0.cart.shop.svc.cluster.local", AAAA),
        ["fd00:244::1"]
    );
    assert_eq!(
        cart().ask("fd00-244--2.cart.shop.svc.cluster.local", AAAA),
        ["fd00:244::2"]
    );
}

#[test]
fn c_a_service_without_endpoints_has_its_cluster_ip() {
    let idle = Cluster::default().with(
        "idle",
        json!({"clusterIP": "10.96.0.9", "ports": [{"name": "a", "port": 1}]}),
        vec![],
    );
    assert_eq!(idle.ask("idle.shop.svc.cluster.local", A), ["10.96.0.9"]);
    let srv = idle.ask("_a._tcp.idle.shop.svc.cluster.local", SRV);
    assert_eq!(srv, ["0 100 1 idle.shop.svc.cluster.local."]);
}

#[test]
fn s_headless_all_ready_endpoints() {
    assert_eq!(
        web().ask("web.shop.svc.cluster.local", AAAA),
        ["fd00:244::1", "fd00:244::2"]
    );
    assert_eq!(web().ask("web.shop.svc.cluster.local", A), ["10.244.0.1"]);
}

#[test]
fn s_headless_without_ready_endpoints_is_nxdomain() {
    let endpoints = json!([{"addresses": ["fd00:244::1"], "conditions": {"ready": false}}]);
    let slices = vec![slice(
        "idle",
        "IPv6",
        json!([{"name": "http", "port": 1}]),
        endpoints,
    )];
    let idle = Cluster::default().with("idle", json!({"clusterIP": "None"}), slices);
    for name in ["idle", "_http._tcp.idle", "_tcp.idle", "fd00-244--1.idle"] {
        let name = format!("{name}.shop.svc.cluster.local");
        assert_eq!(idle.ask(&name, AAAA), ["NXDOMAIN"], "{name}");
    }
}

#[test]
fn c_headless_endpoints_of_the_other_family_only_is_nodata() {
    let slices = vec![slice(
        "web",
        "IPv6",
        json!([]),
        json!([{"addresses": ["fd00:244::1"]}]),
    )];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(web.ask("web.shop.svc.cluster.local", A), ["NODATA"]);
}

#[test]
fn s_headless_hostname_and_several_endpoints_of_one() {
    let endpoints = json!([
        {"addresses": ["fd00:244::1"], "hostname": "a"},
        {"addresses": ["fd00:244::2"], "hostname": "a"},
    ]);
    let ports = json!([{"name": "http", "port": 80}]);
    let web = Cluster::default().with(
        "web",
        json!({"clusterIP": "None"}),
        vec![slice("web", "IPv6", ports, endpoints)],
    );
    assert_eq!(
        web.ask("a.web.shop.svc.cluster.local", AAAA),
        ["fd00:244::1", "fd00:244::2"]
    );
    // C: targets of one hostname are merged; both addresses count for the weight.
    let srv = web.ask("_http._tcp.web.shop.svc.cluster.local", SRV);
    assert_eq!(srv, ["0 50 80 a.web.shop.svc.cluster.local."]);
    assert_eq!(
        web.reply("_http._tcp.web.shop.svc.cluster.local", SRV)
            .additionals
            .len(),
        2
    );
}

#[test]
fn s_headless_an_endpoint_without_hostname_has_a_name() {
    let endpoints = json!([{"addresses": ["5678:abcd::1"]}, {"addresses": ["5678:abcd::"]}]);
    let v4 = json!([{"addresses": ["172.0.0.2"]}]);
    let slices = vec![
        slice("web", "IPv6", json!([]), endpoints),
        slice("web", "IPv4", json!([]), v4),
    ];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(
        web.ask("172-0-0-2.web.shop.svc.cluster.local", A),
        ["172.0.0.2"]
    );
    assert_eq!(
        web.ask("5678-abcd--1.web.shop.svc.cluster.local", AAAA),
        ["5678:abcd::1"]
    );
    assert_eq!(
        web.ask("5678-abcd--0.web.shop.svc.cluster.local", AAAA),
        ["5678:abcd::"]
    );
}

#[test]
fn s_headless_srv_is_endpoints_by_named_ports() {
    let srv = web().ask("_http._tcp.web.shop.svc.cluster.local", SRV);
    assert_eq!(
        srv,
        [
            "0 33 8080 fd00-244--2.web.shop.svc.cluster.local.",
            "0 33 8080 web-0.web.shop.svc.cluster.local."
        ]
    );
    assert_eq!(web().ask("web.shop.svc.cluster.local", SRV).len(), 4);
}

#[test]
fn s_headless_ptr_to_each_endpoint() {
    let web_0 = ["web-0.web.shop.svc.cluster.local."];
    assert_eq!(web().ask(&reverse("fd00:244::1"), PTR), web_0);
    assert_eq!(web().ask(&reverse("10.244.0.1"), PTR), web_0);
    let generated = web().ask(&reverse("fd00:244::2"), PTR);
    assert_eq!(generated, ["fd00-244--2.web.shop.svc.cluster.local."]);
    assert_eq!(
        web().ask(&reverse("fd00:244::3"), PTR),
        ["REFUSED"],
        "not ready"
    );
}

#[test]
fn c_one_ptr_for_each_service_that_selects_the_address() {
    let endpoints =
        || json!([{"addresses": ["fd00:244::1"], "hostname": "a"}, {"addresses": ["fd00:244::2"]}]);
    let headless = json!({"clusterIP": "None"});
    let cluster = Cluster::default()
        .with(
            "one",
            headless.clone(),
            vec![slice("one", "IPv6", json!([]), endpoints())],
        )
        .with(
            "two",
            headless,
            vec![slice("two", "IPv6", json!([]), endpoints())],
        )
        .with(
            "own",
            json!({"clusterIP": "10.96.0.1"}),
            vec![slice("own", "IPv6", json!([]), endpoints())],
        );
    let expected =
        ["one", "own", "two"].map(|service| format!("a.{service}.shop.svc.cluster.local."));
    assert_eq!(cluster.ask(&reverse("fd00:244::1"), PTR), expected);
    let expected = ["one", "own", "two"]
        .map(|service| format!("fd00-244--2.{service}.shop.svc.cluster.local."));
    assert_eq!(cluster.ask(&reverse("fd00:244::2"), PTR), expected);
}

#[test]
fn c_a_headless_service_without_ports_has_addresses() {
    let slices = vec![slice(
        "web",
        "IPv6",
        Value::Null,
        json!([{"addresses": ["fd00:244::1"]}]),
    )];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(web.ask("web.shop.svc.cluster.local", AAAA), ["fd00:244::1"]);
    assert_eq!(web.ask("web.shop.svc.cluster.local", SRV), ["NODATA"]);
}

#[test]
fn reverse_names_that_nobody_here_has_go_upstream() {
    let mut web = web();
    web.reverse = vec!["10.244.0.0/16"];
    let (snapshot, _) = web.snapshot();
    let policy = Policy::new([Name::root()], vec!["0.0.0.0/0".parse().unwrap()]);
    let is_forwarded = |address| {
        let query = ask(&reverse(address), PTR).bytes();
        let client = "192.0.2.1".parse().unwrap();
        let (reaction, _) = decided(&query, Transport::Udp, client, &snapshot, &policy, 0);
        matches!(reaction, Reaction::Forward(_))
    };
    // Beyond the range, but an endpoint's; in it, an endpoint's and nobody's.
    for ours in ["fd00:244::1", "10.244.0.1", "10.244.0.9"] {
        assert!(!is_forwarded(ours), "{ours}");
    }
    for others in ["fd00:244::9", "10.245.0.1", "192.0.2.1"] {
        assert!(is_forwarded(others), "{others}");
    }
}

#[test]
fn reverse_ranges_are_ours_as_a_whole() {
    let mut web = web();
    web.reverse = vec!["10.244.0.0/16", "fd00:244::/32"];
    assert_eq!(
        web.ask(&reverse("10.244.0.1"), PTR),
        ["web-0.web.shop.svc.cluster.local."]
    );
    assert_eq!(web.ask(&reverse("10.244.0.9"), PTR), ["NXDOMAIN"]);
    assert_eq!(web.ask(&reverse("10.244.0.1"), TXT), ["NODATA"]);
    assert_eq!(
        web.ask(&reverse("10.245.0.1"), PTR),
        ["REFUSED"],
        "others are upstreams' affair"
    );
    assert_eq!(
        web.ask("0.244.10.in-addr.arpa", PTR),
        ["NODATA"],
        "above what exists"
    );
    assert_eq!(web.ask("1.244.10.in-addr.arpa", PTR), ["NXDOMAIN"]);
    assert_eq!(web.ask("x.244.10.in-addr.arpa", PTR), ["NXDOMAIN"]);
    assert_eq!(
        web.ask("244.10.in-addr.arpa", NS),
        ["ns.dns.cluster.local."]
    );
    assert_eq!(web.ask("4.4.2.0.0.0.d.f.ip6.arpa", A), ["NODATA"]);
    assert_eq!(web.ask("4.4.2.0.0.0.d.f.ip6.arpa", SOA).len(), 1);
    let soa = web.ask("4.4.2.0.0.0.0.0.d.f.ip6.arpa", SOA);
    assert_eq!(soa, ["REFUSED"], "no range's name");
    let unknown = web.reply(&reverse("fd00:244::9"), PTR);
    assert_eq!(
        unknown.authorities[0].name.to_ascii(),
        "4.4.2.0.0.0.d.f.ip6.arpa."
    );
}

fn aliases() -> Cluster {
    let to = |name: &str| json!({"type": "ExternalName", "externalName": name});
    cart()
        .with("out", to("www.example.com"), vec![])
        .with("in", to("Cart.shop.svc.cluster.local"), vec![])
        .with("far", to("in.shop.svc.cluster.local"), vec![])
        .with("gone", to("nobody.shop.svc.cluster.local"), vec![])
        .with("ping", to("pong.shop.svc.cluster.local"), vec![])
        .with("pong", to("ping.shop.svc.cluster.local"), vec![])
        .with("self", to("self.shop.svc.cluster.local"), vec![])
        .with("number", to("192.0.2.1"), vec![])
}

#[test]
fn s_external_name_is_a_cname() {
    for qtype in [CNAME, A, AAAA, TXT, ANY] {
        assert_eq!(
            aliases().ask("out.shop.svc.cluster.local", qtype),
            ["www.example.com."]
        );
    }
    assert_eq!(
        aliases().ask("number.shop.svc.cluster.local", A),
        ["NXDOMAIN"]
    );
}

#[test]
fn c_an_external_name_inside_the_zone_is_resolved_inline_cname_first() {
    let reply = aliases().reply("FAR.shop.svc.cluster.local", A);
    let answers: Vec<_> = reply.answers.iter().map(Record::to_string).collect();
    assert_eq!(
        answers,
        [
            "FAR.shop.svc.cluster.local. 5 IN CNAME in.shop.svc.cluster.local.",
            "in.shop.svc.cluster.local. 5 IN CNAME cart.shop.svc.cluster.local.",
            "cart.shop.svc.cluster.local. 5 IN A 10.96.0.20",
        ]
    );
    assert_eq!(
        aliases().ask("in.shop.svc.cluster.local", CNAME),
        ["cart.shop.svc.cluster.local."]
    );
    assert_eq!(
        aliases()
            .reply("in.shop.svc.cluster.local", SRV)
            .answers
            .len(),
        3
    );
    // RFC 2308, section 2.2: the SOA is there where the last name has no such type, or does not exist.
    let nodata = aliases().reply("in.shop.svc.cluster.local", TXT);
    assert_eq!((nodata.answers.len(), nodata.authorities.len()), (1, 1));
    let gone = aliases().reply("gone.shop.svc.cluster.local", A);
    assert_eq!(gone.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!((gone.answers.len(), gone.authorities.len()), (1, 1));
}

#[test]
fn s_circles_of_external_names_end() {
    let ping = aliases().ask("ping.shop.svc.cluster.local", AAAA);
    assert_eq!(
        ping,
        [
            "ping.shop.svc.cluster.local.",
            "pong.shop.svc.cluster.local."
        ]
    );
    assert_eq!(
        aliases().ask("self.shop.svc.cluster.local", A),
        ["self.shop.svc.cluster.local."]
    );
}

#[test]
fn c_names_below_an_external_name_are_nxdomain() {
    for name in ["x.out", "_http._tcp.out", "_tcp.out"] {
        let name = format!("{name}.shop.svc.cluster.local");
        assert_eq!(aliases().ask(&name, SRV), ["NXDOMAIN"], "{name}");
    }
}

#[test]
fn s_dns_version() {
    let cluster = Cluster::default();
    let reply = cluster.reply("dns-version.cluster.local", TXT);
    let RData::TXT(txt) = &reply.answers[0].data else {
        panic!("{reply:?}")
    };
    assert_eq!(txt.txt_data, [b"1.1.0".to_vec().into_boxed_slice()].into());
    assert_eq!(cluster.ask("dns-version.cluster.local", A), ["NODATA"]);
}

#[test]
fn s_pods_have_no_names_by_default() {
    assert_eq!(
        web().ask("10-244-0-1.shop.pod.cluster.local", A),
        ["NXDOMAIN"]
    );
    assert_eq!(web().ask("shop.pod.cluster.local", A), ["NXDOMAIN"]);
}

#[test]
fn c_insecure_pods_are_what_their_names_spell() {
    let mut web = web();
    web.pods = PodMode::Insecure;
    assert_eq!(web.ask("10-1-2-3.shop.pod.cluster.local", A), ["10.1.2.3"]);
    assert_eq!(web.ask("10-1-2-3.shop.pod.cluster.local", AAAA), ["NODATA"]);
    assert_eq!(web.ask("fd00--1.shop.pod.cluster.local", AAAA), ["fd00::1"]);
    assert_eq!(
        web.ask("5678-abcd--0.shop.pod.cluster.local", AAAA),
        ["5678:abcd::"]
    );
    assert_eq!(web.ask("shop.pod.cluster.local", A), ["NODATA"]);
    for no_address in ["10-1-2", "10-1-2-256", "web-0", "x.10-1-2-3"] {
        let name = format!("{no_address}.shop.pod.cluster.local");
        assert_eq!(web.ask(&name, A), ["NXDOMAIN"], "{name}");
    }
}

#[test]
fn c_verified_pods_are_those_that_run_in_the_namespace() {
    let mut web = web();
    web.pods = PodMode::Verified;
    web.running = vec![
        ("shop", "10.1.2.3"),
        ("shop", "fd00::1"),
        ("db", "10.1.2.4"),
    ];
    for name in ["10-1-2-3.shop", "10-1-2-4.db"] {
        let address = name.split('.').next().unwrap().replace('-', ".");
        let name = format!("{name}.pod.cluster.local");
        assert_eq!(web.ask(&name, A), [address]);
        assert_eq!(web.ask(&name, AAAA), ["NODATA"]);
    }
    assert_eq!(web.ask("fd00--1.shop.pod.cluster.local", AAAA), ["fd00::1"]);
    for name in ["shop.pod", "db.pod", "pod"] {
        let name = format!("{name}.cluster.local");
        assert_eq!(web.ask(&name, A), ["NODATA"], "{name}");
    }
    for nobody in [
        "10-1-2-4.shop",
        "10-1-2-3.db",
        "fd00-0-0-0-0-0-0-1.shop",
        "web-0.shop",
        "default",
    ] {
        let name = format!("{nobody}.pod.cluster.local");
        for qtype in [A, AAAA, SRV] {
            assert_eq!(web.ask(&name, qtype), ["NXDOMAIN"], "{name}");
        }
    }
}

#[test]
fn s_names_match_without_regard_to_case_and_c_the_case_is_echoed() {
    let name = "_HTTP._Tcp.Cart.SHOP.svc.Cluster.LOCAL";
    assert_eq!(cart().ask(name, SRV).len(), 1);
    let reply = cart().reply(name, SRV);
    assert_eq!(reply.answers[0].name.to_ascii(), format!("{name}."));
    assert_eq!(cart().ask("10-96-0-20.IN-ADDR.arpa", PTR), ["REFUSED"]);
    assert_eq!(cart().ask("20.0.96.10.IN-addr.ARPA", PTR).len(), 1);
}

#[test]
fn c_unknown_services_namespaces_and_endpoints_are_nxdomain() {
    for name in [
        "nobody.shop",
        "cart.nowhere",
        "x.cart.shop",
        "nowhere",
        "a.b.c.cart.shop",
    ] {
        let name = format!("{name}.svc.cluster.local");
        for qtype in [A, AAAA, SRV, TXT, CNAME] {
            assert_eq!(cart().ask(&name, qtype), ["NXDOMAIN"], "{name}");
        }
    }
}

#[test]
fn c_empty_non_terminals_are_nodata() {
    for name in ["svc", "pod", "shop.svc", "_tcp.cart.shop.svc", "dns"] {
        let name = format!("{name}.cluster.local");
        for qtype in [A, AAAA, SRV, TXT, PTR, SOA] {
            assert_eq!(cart().ask(&name, qtype), ["NODATA"], "{name}");
        }
    }
    // A name that has SRV alone has no addresses, but exists.
    assert_eq!(
        cart().ask("_http._tcp.cart.shop.svc.cluster.local", A),
        ["NODATA"]
    );
}

#[test]
fn c_soa_and_ns_at_the_apex_with_glue() {
    assert_eq!(cart().ask(ZONE, SOA).len(), 1);
    assert_eq!(cart().ask(ZONE, NS), ["ns.dns.cluster.local."]);
    let glue = cart().reply(ZONE, NS).additionals;
    assert_eq!(glue[0].data.to_string(), "fd00::53");
    assert_eq!(cart().ask(ZONE, AXFR), ["REFUSED"]);
    assert_eq!(cart().ask(ZONE, IXFR), ["REFUSED"]);
}

#[test]
fn e_slices_are_joined_and_an_endpoint_in_two_counts_once() {
    let one = json!([{"addresses": ["fd00:244::1"], "hostname": "a"}]);
    let ports = || json!([{"name": "http", "port": 80}]);
    let slices = vec![
        slice("web", "IPv6", ports(), one.clone()),
        slice("web", "IPv6", ports(), one),
    ];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(web.ask("web.shop.svc.cluster.local", AAAA), ["fd00:244::1"]);
    let srv = web.ask("_http._tcp.web.shop.svc.cluster.local", SRV);
    assert_eq!(srv, ["0 100 80 a.web.shop.svc.cluster.local."]);
    assert_eq!(web.ask(&reverse("fd00:244::1"), PTR).len(), 1);
}

#[test]
fn e_readiness() {
    let endpoints = || {
        json!([
            {"addresses": ["fd00:244::1"], "conditions": {"ready": null}},
            {"addresses": ["fd00:244::2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["fd00:244::3"], "conditions": {"ready": false}},
        ])
    };
    let published = |spec: Value| {
        let slices = vec![slice("web", "IPv6", json!([]), endpoints())];
        let cluster = Cluster::default().with("web", spec, slices);
        cluster.ask("web.shop.svc.cluster.local", AAAA).len()
    };
    assert_eq!(published(json!({"clusterIP": "None"})), 1);
    assert_eq!(
        published(json!({"clusterIP": "None", "publishNotReadyAddresses": true})),
        3
    );
}

#[test]
fn e_serving_and_terminating_is_the_last_resort_on_demand() {
    let endpoints = json!([{"addresses": ["fd00:244::2"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let slices = vec![slice("web", "IPv6", json!([]), endpoints)];
    let mut web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(web.ask("web.shop.svc.cluster.local", AAAA), ["NXDOMAIN"]);
    web.policy.serving_terminating = true;
    assert_eq!(web.ask("web.shop.svc.cluster.local", AAAA), ["fd00:244::2"]);
}

#[test]
fn e_fqdn_slices_are_skipped() {
    let slices = vec![slice(
        "web",
        "FQDN",
        json!([]),
        json!([{"addresses": ["example.com"]}]),
    )];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    assert_eq!(web.ask("web.shop.svc.cluster.local", AAAA), ["NXDOMAIN"]);
}

#[test]
fn names_at_the_limits_live_and_what_is_none_is_reported_alone() {
    // 1 + 63 + 1 + 62 with its underscores: a port's name of 62 bytes fits, one of 63 does not.
    let (fits, does_not) = ("p".repeat(62), "q".repeat(63));
    let service = "s".repeat(63);
    let spec = json!({"clusterIP": "fd00:96::1", "ports": [
        {"name": fits, "port": 1}, {"name": does_not, "port": 2},
    ]});
    let cluster = Cluster::default().with(&service, spec, vec![]);
    let (snapshot, _) = cluster.snapshot();
    assert_eq!(snapshot.problems().len(), 1, "{:?}", snapshot.problems());
    assert!(
        snapshot.problems()[0]
            .path
            .starts_with(&format!("_{does_not}._tcp."))
    );
    let service = format!("{service}.shop.svc.cluster.local");
    assert_eq!(
        cluster.ask(&format!("_{fits}._tcp.{service}"), SRV).len(),
        1
    );
    assert_eq!(cluster.ask(&service, SRV).len(), 2);
    assert_eq!(cluster.ask(&service, AAAA), ["fd00:96::1"]);
}

#[test]
fn every_name_of_the_snapshot_is_answered_with_its_own_records() {
    let mut cluster = aliases();
    cluster.services.extend(web().services);
    let (snapshot, changes) = cluster.snapshot();
    let names: Vec<Name> = snapshot.names().map(|(_, name, _)| name).collect();
    assert_eq!(changes.len(), names.len());
    for name in names {
        for qtype in [A, AAAA, SRV, PTR, TXT, CNAME, SOA, NS, ANY, 65] {
            let reply = cluster.reply(&name.to_string(), qtype);
            let loose = |record: &Record| {
                let kind = u16::from(record.record_type());
                kind != qtype && kind != CNAME && qtype != ANY
            };
            assert!(!reply.answers.iter().any(loose), "{name} {qtype}");
            let ends_absent = reply.metadata.response_code == ResponseCode::NXDomain;
            let is_alias =
                reply.answers.first().map(Record::record_type) == Some(RecordType::CNAME);
            assert!(!ends_absent || is_alias, "{name} {qtype}: the name exists");
        }
    }
}

/// Chi-square by the number of times that each of `count` addresses was given.
fn chi_square(given: &[u32]) -> f64 {
    let expected = f64::from(given.iter().sum::<u32>()) / given.len() as f64;
    let square = |&given: &u32| (f64::from(given) - expected).powi(2) / expected;
    given.iter().map(square).sum()
}

#[test]
fn peak_answers_draws_every_endpoint_equally_often() {
    let count = 10;
    let endpoints: Vec<_> = (0..count)
        .map(|i| json!({"addresses": [format!("fd00:244::{i:x}:1")]}))
        .collect();
    let slices = vec![slice("web", "IPv6", json!([]), endpoints.into())];
    let web = Cluster::default().with("web", json!({"clusterIP": "None"}), slices);
    for (answers, pick) in [("one", 1), ("3", 3), ("all", count), ("200", count)] {
        let web = Cluster {
            services: web.services.clone(),
            ..Cluster::default()
        }
        .annotated("peak/answers", answers);
        let mut given = vec![0; count];
        // A generator of its own, so that the test says the same each time.
        let mut draw = 1_u32;
        for _ in 0..2_000 {
            draw = draw.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let octets = web.octets(
                "web.shop.svc.cluster.local",
                AAAA,
                Transport::Udp,
                draw ^ draw >> 16,
            );
            let addresses = aaaa(&Message::from_vec(&octets).unwrap());
            assert_eq!(addresses.len(), pick);
            for address in addresses {
                given[usize::from(address.segments()[6])] += 1;
            }
        }
        // 9 degrees of freedom: 27.9 is exceeded once in 1,000 times.
        assert!(chi_square(&given) < 27.9, "{answers}: {given:?}");
    }
}
