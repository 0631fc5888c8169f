//! The same over ordinary sockets: a client asks over IPv6 and IPv4 while the manifests are written anew.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use peak_tests::{Net, Peak, pass, scratch};

use crate::alone;

/// Queries, at least.
const QUERIES: usize = 40_000;
/// Versions of the manifests, and the time between them: the agent reads what is quiet for a moment.
const VERSIONS: u64 = 120;
const PAUSE: Duration = Duration::from_millis(25);
/// Versions that must have been served.
const LEAST_SERVED: u64 = 30;
/// Endpoints of each service.
const ENDPOINTS: u8 = 4;

/// The addresses of `service` (0 never changes) in a version, AAAA and A.
fn addresses(service: u8, version: u8) -> [Vec<IpAddr>; 2] {
    let version = if service == 0 { 0 } else { version };
    let six = |i| format!("fd00:10:244:{service}:{version}::{i}");
    let four = |i| format!("10.244.{service}.{}", 10 * (version + 1) + i);
    let parse = |text: String| text.parse().expect("an address");
    [
        (1..=ENDPOINTS).map(six).map(parse).collect(),
        (1..=ENDPOINTS).map(four).map(parse).collect(),
    ]
}

/// Two headless services with endpoints in both families.
fn manifests(version: u8) -> String {
    let mut documents = String::new();
    for service in 0..2 {
        documents += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: shop}}\n\
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}\n"
        );
        for (family, addresses) in ["IPv6", "IPv4"].iter().zip(addresses(service, version)) {
            let endpoints: String = addresses
                .iter()
                .map(|address| format!("- addresses: ['{address}']\n"))
                .collect();
            documents += &format!(
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
                 metadata:\n  name: s{service}-{}\n  namespace: shop\n  labels: {{kubernetes.io/service-name: s{service}}}\n\
                 endpoints:\n{endpoints}ports: [{{port: 80}}]\n",
                family.to_lowercase()
            );
        }
    }
    documents
}

/// Writes one version after the other: in place, as some editors do, and by renaming, as others do.
fn rewrite(folder: &Path) -> Result<()> {
    let file = folder.join("services.yaml");
    for version in 1..=VERSIONS {
        thread::sleep(PAUSE);
        let contents = manifests((version % 2) as u8);
        if version % 4 < 2 {
            fs::write(&file, contents)?;
        } else {
            let other = folder.join("services.new");
            fs::write(&other, contents)?;
            fs::rename(&other, &file)?;
        }
    }
    Ok(())
}

/// The addresses that a server gives.
fn ask(socket: &UdpSocket, id: u16, name: &Name, qtype: RecordType) -> Result<BTreeSet<IpAddr>> {
    let mut query = Message::query();
    query.metadata.id = id;
    query.add_query(Query::query(name.clone(), qtype));
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; 1232];
    let length = socket.recv(&mut buffer).context("no answer")?;
    let reply = Message::from_vec(&buffer[..length])?;
    ensure!(
        (reply.metadata.id, &reply.queries) == (id, &query.queries),
        "an answer to another question"
    );
    assert_eq!(
        reply.metadata.response_code,
        ResponseCode::NoError,
        "{name} {qtype}"
    );
    let address = |data: &RData| match data {
        RData::A(a) => IpAddr::V4(a.0),
        RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
        other => panic!("{name} {qtype}: {other:?}"),
    };
    let given: BTreeSet<_> = reply
        .answers
        .iter()
        .map(|record| address(&record.data))
        .collect();
    assert_eq!(
        given.len(),
        reply.answers.len(),
        "{name} {qtype}: an address twice"
    );
    Ok(given)
}

#[test]
fn manifests_are_rewritten_under_queries() -> Result<()> {
    let _alone = alone();
    let net = Net::new()?;
    let _pass = pass(&net.client, "eth0")?;
    let folder = scratch()?;
    fs::write(folder.path().join("services.yaml"), manifests(0))?;
    let peak = Peak::on_eth0(&net.node, &folder, "native", &[])?;
    let sockets = Net::SERVERS.map(|server| {
        let server = SocketAddr::new(server.parse().expect("an address"), 53);
        net.client.run(|| -> Result<UdpSocket> {
            let any = if server.is_ipv6() {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(Duration::from_secs(2)))?;
            Ok(socket)
        })
    });
    let [six, four] = sockets;
    let sockets = [six?, four?];
    let before = peak.status()?;

    // How often each version was seen, by service, type, and family of the transport.
    let mut seen = [[[[0_u64; 2]; 2]; 2]; 2];
    let mut asked = 0;
    thread::scope(|scope| {
        let writing = scope.spawn(|| rewrite(folder.path()));
        while asked < QUERIES || !writing.is_finished() {
            let i = asked;
            let (transport, family, service) = (i % 2, i / 2 % 2, i / 4 % 2);
            let name = Name::from_ascii(format!("s{service}.shop.svc.cluster.local."))?;
            let qtype = [RecordType::AAAA, RecordType::A][family];
            let given = ask(&sockets[transport], i as u16, &name, qtype)?;
            let version = (0..2).find(|&version| {
                given
                    == addresses(service as u8, version)[family]
                        .iter()
                        .copied()
                        .collect()
            });
            let version = version.with_context(|| format!("{name} {qtype}: {given:?}"))?;
            seen[service][family][transport][usize::from(version)] += 1;
            asked += 1;
        }
        writing.join().expect("the writer panicked")
    })?;

    let after = peak.status()?;
    let served = after.snapshot.generation - before.snapshot.generation;
    println!("{asked} queries and {served} of {VERSIONS} versions: {seen:?}");
    assert!(served >= LEAST_SERVED, "{served} versions were served");
    let counted = after.counted() - before.counted();
    assert_eq!((counted.kernel, counted.fallback), (asked as u64, 0));
    let least = asked as u64 / 100;
    let [same, swapped] = seen;
    assert!(
        same.as_flattened().iter().all(|&[_, other]| other == 0),
        "{same:?}"
    );
    let all = swapped.as_flattened().as_flattened();
    assert!(all.iter().all(|&times| times >= least), "{swapped:?}");
    Ok(())
}
