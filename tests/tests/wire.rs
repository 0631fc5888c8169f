//! Frames as they are on a wire, sent and received past the client's stack: what the kernel makes of tags, headers and
//! checksums, and what it leaves alone.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketHeaders, TransportHeader,
};
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{RData, RecordType, rdata::opt::EdnsOption},
};
use peak_tests::{
    Datagram, Frames, Interface, Namespace, Net, PassProgram, Peak, eventually, join, pass,
};

/// See `zone.rs`.
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/zone");
const NAME: &str = "cart.shop.svc.cluster.local.";
/// All addresses of [`NAME`].
const ADDRESSES: [&str; 2] = ["fd00:10:96::20", "10.96.0.20"];
const CLIENTS: [&str; 2] = ["fd00:10:1::2", "10.1.0.2"];
const DNS: u16 = 53;
const LIMIT: Duration = Duration::from_secs(5);

/// A node that answers, and a client at the wire.
struct Wire {
    frames: Frames,
    client: [u8; 6],
    node: [u8; 6],
    peak: Peak,
    net: Net,
    _pass: PassProgram,
}

impl Wire {
    fn new(mode: &str, mtu: u16) -> Result<Self> {
        let net = Net::new()?;
        for namespace in [&net.client, &net.node] {
            namespace.ip(&format!("link set eth0 mtu {mtu}"))?;
        }
        let pass = pass(&net.client, "eth0")?;
        Ok(Self {
            frames: Frames::open(&net.client, "eth0")?,
            client: net.client.mac("eth0")?,
            node: net.node.mac("eth0")?,
            peak: Peak::on_eth0(&net.node, MANIFESTS, mode, &[])?,
            net,
            _pass: pass,
        })
    }

    /// A frame from the client to the node.
    fn frame(&self, ip: IpHeaders, port: u16, message: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.client, self.node)
            .ip(ip)
            .udp(port, DNS)
            .write(&mut frame, message)
            .expect("it fits a packet");
        frame
    }

    /// The same datagram as two fragments.
    fn fragments(&self, ip: &IpHeaders, port: u16, message: &[u8]) -> Vec<Vec<u8>> {
        let whole = self.frame(ip.clone(), port, message);
        let (link, udp) = (&whole[..14], &whole[14 + ip.header_len()..]);
        let (first, last) = udp.split_at(16);
        let fragment = |blocks: u16, more: bool, part: &[u8]| {
            let offset = IpFragOffset::try_new(blocks).expect("a small offset");
            let mut ip = match ip.clone() {
                IpHeaders::Ipv4(ip, extensions) => {
                    let ip = Ipv4Header {
                        more_fragments: more,
                        fragment_offset: offset,
                        ..ip
                    };
                    IpHeaders::Ipv4(ip, extensions)
                }
                IpHeaders::Ipv6(ip, extensions) => {
                    let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, 7);
                    IpHeaders::Ipv6(
                        ip,
                        Ipv6Extensions {
                            fragment: Some(fragment),
                            ..extensions
                        },
                    )
                }
            };
            ip.set_next_headers(IpNumber::UDP);
            ip.set_payload_len(part.len()).expect("a small packet");
            let mut frame = link.to_vec();
            ip.write(&mut frame).expect("there is memory");
            frame.extend(part);
            frame
        };
        vec![fragment(0, true, first), fragment(2, false, last)]
    }

    /// The IDs of the DNS messages that come in until all `wanted` have come.
    fn replies(&self, wanted: &[u16]) -> Result<Vec<u16>> {
        let mut seen = Vec::new();
        self.frames.receive(LIMIT, |frame| {
            let Ok(PacketHeaders {
                transport: Some(TransportHeader::Udp(udp)),
                payload,
                ..
            }) = PacketHeaders::from_ethernet_slice(frame)
            else {
                return Ok(None);
            };
            if udp.source_port == DNS {
                let id = payload.slice().first_chunk().context("a DNS message")?;
                seen.push(u16::from_be_bytes(*id));
            }
            Ok(wanted.iter().all(|id| seen.contains(id)).then_some(()))
        })?;
        seen.sort_unstable();
        Ok(seen)
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A header in which nothing is as a reply's should be.
fn header(source: IpAddr, destination: IpAddr) -> IpHeaders {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0xbb,
                flow_label: 0xa_5a5a.try_into().expect("20 bits"),
                hop_limit: 17,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                dscp: 46.try_into().expect("6 bits"),
                ecn: 3.try_into().expect("2 bits"),
                identification: 0x4321,
                dont_fragment: false,
                time_to_live: 17,
                protocol: IpNumber::UDP,
                source: source.octets(),
                destination: destination.octets(),
                ..Default::default()
            };
            IpHeaders::Ipv4(header, Default::default())
        }
        _ => panic!("both ends are of one family"),
    }
}

/// A query for [`NAME`], with DO if it has an OPT.
fn query(id: u16, qtype: RecordType, edns: bool) -> Message {
    let mut query = peak_tests::query(NAME, qtype, edns).expect("a name");
    query.metadata.id = id;
    if let Some(opt) = &mut query.edns {
        opt.set_dnssec_ok(true);
    }
    query
}

/// Panics unless `reply` is the answer to a query for [`NAME`].
fn check_message(query: &Message, reply: &[u8]) {
    let reply = Message::from_vec(reply).expect("a message");
    let mut wanted = query.metadata;
    wanted.message_type = MessageType::Response;
    wanted.authoritative = true;
    assert_eq!(reply.metadata, wanted);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.queries, query.queries);
    let edns = reply
        .edns
        .map(|edns| (edns.max_payload(), edns.flags().dnssec_ok, edns.version()));
    assert_eq!(
        edns,
        query
            .edns
            .as_ref()
            .map(|edns| (1232, edns.flags().dnssec_ok, 0))
    );
    let [record] = &reply.answers[..] else {
        panic!("not one record: {:?}", reply.answers);
    };
    let address: IpAddr = match &record.data {
        RData::A(a) => a.0.into(),
        RData::AAAA(aaaa) => aaaa.0.into(),
        other => panic!("{other:?}"),
    };
    let v6 = query.queries[0].query_type() == RecordType::AAAA;
    assert_eq!(address.to_string(), ADDRESSES[usize::from(!v6)]);
}

/// Panics unless the reply's headers are a server's of its own, to the sender of `header(client, server)`.
fn check_headers(reply: &Datagram, wire: &Wire, client: SocketAddr, server: IpAddr) {
    assert_eq!(
        (reply.link.source, reply.link.destination),
        (wire.node, wire.client)
    );
    assert_eq!(
        (reply.udp.source_port, reply.udp.destination_port),
        (DNS, client.port())
    );
    match (&reply.ip, client.ip(), server) {
        (IpHeaders::Ipv6(ip, extensions), IpAddr::V6(client), IpAddr::V6(server)) => {
            assert_eq!((ip.source_addr(), ip.destination_addr()), (server, client));
            assert_eq!((ip.traffic_class, ip.hop_limit), (0, 64));
            assert!(extensions.is_empty());
        }
        (IpHeaders::Ipv4(ip, _), IpAddr::V4(client), IpAddr::V4(server)) => {
            assert_eq!(
                (ip.source, ip.destination),
                (server.octets(), client.octets())
            );
            assert_eq!(
                (ip.dscp.value(), ip.ecn.value(), ip.time_to_live),
                (0, 0, 64)
            );
            // RFC 6864, section 4.1.
            assert_eq!((ip.dont_fragment, ip.identification), (true, 0));
            assert_eq!((ip.more_fragments, ip.fragment_offset.value()), (false, 0));
            assert!(ip.options.is_empty());
        }
        other => panic!("{other:?}"),
    }
}

/// Replies to neighbours that are not there wait until these are given up, and hold up no others meanwhile.
#[test]
fn sources_that_do_not_exist_hold_up_nobody() -> Result<()> {
    const LONG_BEFORE_A_NEIGHBOUR_FAILS: Duration = Duration::from_millis(1500);
    const QUERIES: u16 = 1000;
    let wire = Wire::new("native", 1500)?;
    let server = address(Net::SERVERS[1]);
    let send = |client, id: u16| {
        let query = query(id, RecordType::TXT, false).to_vec()?;
        wire.frames
            .send(&wire.frame(header(client, server), 1024 + id, &query))
    };
    for id in 0..QUERIES {
        send([10, 1, 0, 100 + (id % 8) as u8].into(), id)?;
    }
    eventually(
        "most queries to be read",
        LONG_BEFORE_A_NEIGHBOUR_FAILS,
        || Ok((wire.peak.status()?.counted().fallback >= u64::from(QUERIES) / 2).then_some(())),
    )?;
    // For each of the node's sockets one that it gets.
    for id in QUERIES..QUERIES + 16 {
        let asked = Instant::now();
        send(address(CLIENTS[1]), id)?;
        wire.replies(&[id])?;
        assert!(asked.elapsed() < LONG_BEFORE_A_NEIGHBOUR_FAILS);
    }
    Ok(())
}

/// Tags that are in the frame stay in the reply, with priority and drop eligibility; all else is the server's own.
fn tagged(mode: &str) -> Result<()> {
    let wire = Wire::new(mode, 1500)?;
    let before = wire.peak.status()?.counted();
    let mut asked = 0;
    for tags in [
        &[][..],
        &[0x8100, 0xb005],
        &[0x8100, 0x0000],
        &[0x88a8, 0x6064, 0x8100, 0x2fff],
        &[0x8100, 0x0001, 0x8100, 0x0002],
    ] {
        let tags: Vec<u8> = tags
            .iter()
            .flat_map(|field: &u16| field.to_be_bytes())
            .collect();
        for (client, server) in CLIENTS
            .map(address)
            .into_iter()
            .zip(Net::SERVERS.map(address))
        {
            let mut labels = BTreeSet::new();
            for edns in [false, true] {
                for qtype in [RecordType::A, RecordType::AAAA] {
                    for port in [1, 5353, 40_000, u16::MAX] {
                        let query = query(asked, qtype, edns);
                        let mut frame = wire.frame(header(client, server), port, &query.to_vec()?);
                        frame.splice(12..12, tags.iter().copied());
                        wire.frames.send(&frame)?;
                        let what = format!("{mode} {tags:x?} {server} {edns} {qtype} {port}");
                        let reply = wire
                            .frames
                            .datagram((server, DNS).into(), LIMIT)
                            .context(what.clone())?;
                        assert_eq!(reply.tags, tags, "{what}");
                        check_headers(&reply, &wire, (client, port).into(), server);
                        check_message(&query, &reply.payload);
                        if let IpHeaders::Ipv6(ip, _) = &reply.ip {
                            labels.insert((port, ip.flow_label.value()));
                        }
                        asked += 1;
                    }
                }
            }
            if server.is_ipv6() {
                // RFC 6437, section 3: a flow has one label, and others have others.
                let distinct: BTreeSet<_> = labels.iter().map(|(_, label)| label).collect();
                assert_eq!((labels.len(), distinct.len()), (4, 4), "{labels:x?}");
            }
        }
    }
    let counted = wire.peak.status()?.counted() - before;
    assert_eq!(
        (counted.kernel, counted.fallback),
        (asked.into(), 0),
        "{mode}"
    );
    Ok(())
}

#[test]
fn vlan_tags_stay_and_headers_are_our_own_in_native_mode() -> Result<()> {
    tagged("native")
}

#[test]
fn vlan_tags_stay_and_headers_are_our_own_in_generic_mode() -> Result<()> {
    tagged("generic")
}

/// Who answers what the kernel leaves alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    Fallback,
    /// The server behind the node.
    Behind,
}

/// A network behind the node, with a server of its own. What is not the node's is routed there.
fn behind(node: &Namespace) -> Result<(Namespace, [UdpSocket; 2])> {
    let far = Namespace::new("far")?;
    join((node, "eth1"), (&far, "eth0"))?;
    for (namespace, interface, host) in [(node, "eth1", 1), (&far, "eth0", 2)] {
        namespace.address(interface, &format!("fd00:10:2::{host}/64"))?;
        namespace.address(interface, &format!("10.2.0.{host}/24"))?;
    }
    far.ip("route add default via fd00:10:2::1")?;
    far.ip("route add default via 10.2.0.1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    let listen = |address: &str| -> Result<UdpSocket> {
        let socket = far.run(|| UdpSocket::bind((address, DNS)))?;
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    };
    let sockets = [listen("fd00:10:2::2")?, listen("10.2.0.2")?];
    Ok((far, sockets))
}

/// What the kernel must not answer, it counts by its reason and leaves as it is to the stack. Whether that makes
/// something of it is the stack's affair: `Who` tells.
fn left_alone(mode: &str) -> Result<()> {
    let wire = Wire::new(mode, 1500)?;
    let (_far, servers) = behind(&wire.net.node)?;
    let ends = CLIENTS
        .map(address)
        .into_iter()
        .zip(Net::SERVERS.map(address));
    for ((client, server), far) in ends.zip(&servers) {
        let v6 = server.is_ipv6();
        let either = |six: &'static str, four: &'static str| if v6 { six } else { four };
        let header = |source, destination| header(address(source), address(destination));
        let (client, server) = (client.to_string(), server.to_string());
        let plain = header(&client, &server);
        let message = query(1, RecordType::AAAA, false).to_vec()?;
        let sound = wire.frame(plain.clone(), 4000, &message);
        let from = |source| wire.frame(header(source, &server), 4000, &message);
        let to = |destination| wire.frame(header(&client, destination), 4000, &message);
        let to_mac = |mac: [u8; 6]| [&mac[..], &sound[6..]].concat();
        let mut extended = plain.clone();
        match &mut extended {
            IpHeaders::Ipv4(ip, _) => ip.options = [1, 1, 1, 0].into(),
            IpHeaders::Ipv6(_, extensions) => {
                // PadN (RFC 8200, section 4.2).
                let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]);
                extensions.destination_options = Some(padding?);
            }
        }
        let mut response = message.clone();
        response[2] |= 0x80;
        let mut from_group = sound.clone();
        from_group[6] |= 1;

        let mut cases = vec![
            (
                "a MAC of another",
                vec![to_mac([2, 0, 0, 0, 0, 99])],
                "other_host",
                Who::Nobody,
            ),
            (
                "broadcast",
                vec![to_mac([0xff; 6])],
                "other_host",
                Who::Fallback,
            ),
            (
                "multicast",
                vec![to_mac([0x33, 0x33, 0, 0, 0, 1])],
                "other_host",
                Who::Fallback,
            ),
            (
                "an address not served",
                vec![to(either("fd00:10:2::1", "10.2.0.1"))],
                "not_served",
                Who::Nobody,
            ),
            (
                "a server behind",
                vec![to(either("fd00:10:2::2", "10.2.0.2"))],
                "not_served",
                Who::Behind,
            ),
            (
                "fragments",
                wire.fragments(&plain, 4000, &message),
                either("not_udp", "fragment"),
                Who::Fallback,
            ),
            (
                "options",
                vec![wire.frame(extended, 4000, &message)],
                either("not_udp", "ip_options"),
                Who::Fallback,
            ),
            (
                "a response",
                vec![wire.frame(plain.clone(), 4000, &response)],
                "response",
                Who::Nobody,
            ),
            (
                "from port 0",
                vec![wire.frame(plain.clone(), 0, &message)],
                "source",
                Who::Nobody,
            ),
            (
                "from a group's MAC",
                vec![from_group],
                "source",
                Who::Fallback,
            ),
        ];
        let sources = either(
            "ff02::1 :: ::1 ::ffff:10.1.0.2",
            "224.0.0.1 0.0.0.0 127.0.0.1 255.255.255.255",
        );
        cases.extend(
            sources
                .split(' ')
                .map(|source| (source, vec![from(source)], "source", Who::Nobody)),
        );

        for ((what, frames, reason, who), marker) in cases.into_iter().zip(100..) {
            let before = wire.peak.status()?;
            for frame in &frames {
                wire.frames.send(frame)?;
            }
            if who == Who::Behind {
                let mut buffer = [0; 512];
                let (length, client) = far.recv_from(&mut buffer)?;
                assert_eq!(buffer[..length], message, "routed, but not as it came");
                far.send_to(&buffer[..length], client)?;
            }
            // Who says nothing to the first of two says something to the second.
            let after = query(marker, RecordType::TXT, false).to_vec()?;
            wire.frames.send(&wire.frame(plain.clone(), 4001, &after))?;
            let wanted = if who == Who::Nobody {
                vec![marker]
            } else {
                vec![1, marker]
            };
            let replies = wire
                .replies(&wanted)
                .with_context(|| format!("{mode} {server}, {what}"))?;
            assert_eq!(replies, wanted, "{mode} {server}, {what}");

            let after = wire.peak.status()?;
            assert_eq!(
                (after.counted() - before.counted()).kernel,
                0,
                "{mode} {server}, {what}"
            );
            let [before, after] = [before, after].map(|status| status.interfaces[0].clone());
            let passed = |status: &Interface| status.passed.get(reason).copied().unwrap_or(0);
            let more = passed(&after) - passed(&before);
            // Neighbours are looked for meanwhile.
            let exact =
                more == frames.len() as u64 || (reason == "not_udp" && more > frames.len() as u64);
            assert!(exact, "{mode} {server}, {what}: {reason} {more} times");
            assert!(after.aborted.values().all(|&times| times == 0), "{after:?}");
        }
    }
    Ok(())
}

#[test]
fn what_must_not_be_answered_is_left_alone_in_native_mode() -> Result<()> {
    left_alone("native")
}

#[test]
fn what_must_not_be_answered_is_left_alone_in_generic_mode() -> Result<()> {
    left_alone("generic")
}

/// Frames that are longer than a page come in several parts, of which the program sees one. They pass, and the fallback
/// answers them, wherever the query ends and whatever follows it in the frame.
fn in_several_parts(mode: &str) -> Result<()> {
    let wire = Wire::new(mode, 9000)?;
    for (client, server) in CLIENTS
        .map(address)
        .into_iter()
        .zip(Net::SERVERS.map(address))
    {
        let before = wire.peak.status()?;
        // The first part is a page, less the room around it: some 3.5 KiB.
        let mut asked = 0;
        for (length, after) in [(100, 4000), (100, 8000), (7000, 0), (7000, 1)]
            .into_iter()
            .chain((3300..3600).map(|length| (length, 1500)))
        {
            let mut query = query(asked, RecordType::AAAA, true);
            let opt = query.edns.as_mut().context("it has one")?;
            // RFC 7830.
            opt.options_mut()
                .insert(EdnsOption::Unknown(12, vec![0; length]));
            let mut frame = wire.frame(header(client, server), 4000, &query.to_vec()?);
            frame.resize(frame.len() + after, 0xee);
            wire.frames.send(&frame)?;
            let what = || format!("{mode} {server} {length} and {after}");
            assert_eq!(
                wire.replies(&[asked]).with_context(what)?,
                [asked],
                "{}",
                what()
            );
            asked += 1;
        }
        let after = wire.peak.status()?;
        let counted = after.counted() - before.counted();
        assert_eq!(
            (counted.kernel, counted.fallback),
            (0, asked.into()),
            "{mode} {server}"
        );
        let after = &after.interfaces[0];
        assert!(after.aborted.values().all(|&times| times == 0), "{after:?}");
        for reason in ["leftover", "truncated", "no_room"] {
            assert!(after.passed[reason] > 0, "{mode} {server}: never {reason}");
        }
    }
    Ok(())
}

#[test]
fn frames_in_several_parts_reach_the_fallback_in_native_mode() -> Result<()> {
    in_several_parts("native")
}

#[test]
fn frames_in_several_parts_reach_the_fallback_in_generic_mode() -> Result<()> {
    in_several_parts("generic")
}
