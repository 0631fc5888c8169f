//! Frames from ordinary sockets, which have hardly any room to grow: on a veth device a frame is copied into a buffer of
//! its own size, and what is left of its alignment differs from length to length.
//!
//! Their UDP checksums are left to be computed on the way, which a veth device never does: the replies' are verified as they
//! come in, before the client's stack takes them for granted.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use peak_tests::{Frames, Net, Peak, connect, exchange, pass, query, scratch};
use peak_userspace::interfaces::Interfaces;

/// Lengths of a service's label: with the two namespaces, frames of every length modulo 64, and more.
const LABELS: std::ops::RangeInclusive<usize> = 1..=63;
const NAMESPACES: [&str; 2] = ["a", "aa"];
/// A service whose answer, at 28 bytes a record, never fits what alignment leaves at a frame's tail, but the room before
/// its head: the 256 bytes of XDP_PACKET_HEADROOM, less what the kernel keeps there.
const LARGE: &str = "large.a.svc.cluster.local.";
const LARGE_RECORDS: usize = 7;
const LIMIT: Duration = Duration::from_secs(2);
const SERVERS: [&str; 2] = ["[fd00:10:1::1]:53", "10.1.0.1:53"];

/// The two addresses of the service with a label of `length` bytes in namespace `which`.
fn addresses(which: usize, length: usize) -> (Ipv4Addr, Ipv6Addr) {
    let (which, length) = (which as u8, length as u8);
    (
        Ipv4Addr::new(10, 96, which, length),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, which.into(), length.into()),
    )
}

/// Services whose names are of all lengths, and [`LARGE`].
fn manifests() -> Result<String> {
    let mut documents = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: large, namespace: a}\n\
         spec: {clusterIP: None, ports: [{port: 80}]}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {name: large-1, namespace: a, labels: {kubernetes.io/service-name: large}}\n\
         addressType: IPv6\nports: []\nendpoints:\n",
    );
    for i in 1..=LARGE_RECORDS {
        writeln!(documents, "- addresses: ['fd00:10:244::{i:x}']")?;
    }
    for (which, namespace) in NAMESPACES.iter().enumerate() {
        for length in LABELS {
            let (v4, v6) = addresses(which, length);
            let name = "s".repeat(length);
            write!(
                documents,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{clusterIP: {v4}, clusterIPs: [{v4}, '{v6}'], ipFamilies: [IPv4, IPv6], \
                 ports: [{{port: 80}}]}}\n"
            )?;
        }
    }
    Ok(documents)
}

/// Every length, both families, both types, with and without OPT: each answered by the kernel.
fn every_length(mode: &str) -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let folder = scratch()?;
    fs::write(folder.path().join("services.yaml"), manifests()?)?;
    let mut more = vec!["--zone", "cluster.local"];
    for server in SERVERS {
        more.extend(["--listen", server]);
    }
    let peak = Peak::on_eth0(&node, &folder, mode, &more)?;

    let frames = Frames::open(&client, "eth0")?;
    let before = peak.status()?.counted();
    let mut asked = 0;
    for server in SERVERS {
        let server: SocketAddr = server.parse()?;
        for edns in [false, true] {
            let mut remainders = BTreeSet::new();
            client.run(|| -> Result<()> {
                let socket = connect(server)?;
                for (which, namespace) in NAMESPACES.iter().enumerate() {
                    for length in LABELS {
                        let name = format!("{}.{namespace}.svc.cluster.local.", "s".repeat(length));
                        let (v4, v6) = addresses(which, length);
                        for (qtype, address) in [
                            (RecordType::A, IpAddr::V4(v4)),
                            (RecordType::AAAA, IpAddr::V6(v6)),
                        ] {
                            let query = query(&name, qtype, edns)?;
                            let reply = exchange(&socket, &query)?;
                            assert_eq!(reply.edns.is_some(), edns, "{name} {qtype}");
                            frames.datagram(server, LIMIT)?;
                            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
                            let answers: Vec<_> = reply
                                .answers
                                .iter()
                                .map(|record| match &record.data {
                                    RData::A(a) => IpAddr::V4(a.0),
                                    RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
                                    other => panic!("{name} {qtype}: {other:?}"),
                                })
                                .collect();
                            assert_eq!(answers, [address], "{name} {qtype}");
                            remainders.insert(query.to_vec()?.len() % 64);
                            asked += 1;
                        }
                    }
                }
                if edns {
                    let reply = exchange(&socket, &query(LARGE, RecordType::AAAA, edns)?)?;
                    assert_eq!(reply.answers.len(), LARGE_RECORDS);
                    frames.datagram(server, LIMIT)?;
                    asked += 1;
                }
                Ok(())
            })?;
            assert_eq!(remainders.len(), 64, "not every length was asked");
        }
    }

    let after = peak.status()?.counted();
    assert_eq!(
        after.kernel - before.kernel,
        asked,
        "the kernel did not answer each"
    );
    assert_eq!(
        after.fallback, before.fallback,
        "the fallback answered some"
    );
    Ok(())
}

#[test]
fn the_kernel_answers_frames_of_every_length_in_native_mode() -> Result<()> {
    every_length("native")
}

#[test]
fn the_kernel_answers_frames_of_every_length_in_generic_mode() -> Result<()> {
    every_length("generic")
}

/// Whose frames are given room at their head first is told by the kind of the link.
#[test]
fn ends_of_veth_pairs_are_known() -> Result<()> {
    let net = Net::new()?;
    let interfaces = net.node.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async { anyhow::Ok(Interfaces::new()?.all().await?) })
    })?;
    let kinds: BTreeSet<_> = interfaces
        .iter()
        .map(|interface| (&*interface.name, interface.veth))
        .collect();
    assert_eq!(kinds, [("eth0", true), ("lo", false)].into());
    Ok(())
}
