//! What a reply must be: by the RFCs, and by what the fallback says to the same query.

use std::net::IpAddr;

use hickory_proto::{
    op::Message,
    rr::{Name, Record},
};
use peak_userspace::{
    fallback::{
        Transport,
        answer::{Policy, Reaction, answer},
    },
    snapshot::Snapshot,
};

use crate::query::{SERVICE_VLAN, VLAN, sum};

/// A frame with a UDP datagram, taken apart.
struct Parts<'a> {
    destination_mac: &'a [u8],
    source_mac: &'a [u8],
    tags: &'a [u8],
    ip: &'a [u8],
    addresses: [IpAddr; 2],
    ports: [u16; 2],
    udp: &'a [u8],
    message: &'a [u8],
}

fn field(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

impl<'a> Parts<'a> {
    /// Of a frame that was found sound, or is claimed to be.
    fn of(frame: &'a [u8]) -> Self {
        let mut start = 12;
        while [VLAN, SERVICE_VLAN].contains(&field(frame, start)) {
            start += 4;
        }
        let packet = &frame[start + 2..];
        let (header, length, addresses): (_, _, [IpAddr; 2]) = match field(frame, start) {
            0x86dd => {
                let address = |at| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap().into();
                (40, field(packet, 4), [address(8), address(24)])
            }
            0x0800 => {
                let address = |at| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into();
                (20, field(packet, 2) - 20, [address(12), address(16)])
            }
            other => panic!("type {other:#x} is not IP"),
        };
        let udp = &packet[header..header + usize::from(length)];
        Self {
            destination_mac: &frame[..6],
            source_mac: &frame[6..12],
            tags: &frame[12..start + 2],
            ip: &packet[..header],
            addresses,
            ports: [field(udp, 0), field(udp, 2)],
            udp,
            message: &udp[8..],
        }
    }

    /// The sum over UDP header, payload and pseudo-header (RFC 768; RFC 8200, section 8.1).
    fn udp_sum(&self) -> u16 {
        let mut bytes = Vec::new();
        for address in self.addresses {
            match address {
                IpAddr::V4(address) => bytes.extend(address.octets()),
                IpAddr::V6(address) => bytes.extend(address.octets()),
            }
        }
        bytes.extend((self.udp.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes.extend(self.udp);
        sum(&bytes)
    }
}

/// What the fallback says to a query.
fn fallback(
    asked: &Parts<'_>,
    transport: Transport,
    snapshot: &Snapshot,
    policy: &Policy,
) -> Message {
    let [client, _] = asked.addresses;
    let (message, mut octets) = (asked.message, Vec::new());
    let reaction = answer(message, transport, client, snapshot, policy, 0, &mut octets);
    let Reaction::Reply(_) = reaction else {
        panic!("the fallback does not answer: {reaction:?}");
    };
    Message::from_vec(&octets).expect("a message")
}

/// Whether the fallback's answer to `query` does not fit what the client takes.
pub(crate) fn is_truncated(query: &[u8], snapshot: &Snapshot, policy: &Policy) -> bool {
    let reply = fallback(&Parts::of(query), Transport::Udp, snapshot, policy);
    reply.metadata.truncation
}

/// Panics unless `reply` is the right frame to answer `query` with.
///
/// Of a name whose addresses are drawn (`picks`) it holds so many of the fallback's; of all others, all.
pub(crate) fn check(
    query: &[u8],
    reply: &[u8],
    snapshot: &Snapshot,
    policy: &Policy,
    picks: impl Fn(&[u8]) -> Option<usize>,
) {
    let asked = Parts::of(query);
    let parts = Parts::of(reply);
    let [client, server] = asked.addresses;
    assert_eq!(parts.destination_mac, asked.source_mac);
    assert_eq!(parts.source_mac, asked.destination_mac);
    assert_eq!(parts.tags, asked.tags);
    assert_eq!(parts.addresses, [server, client]);
    assert_eq!(parts.ports, [asked.ports[1], asked.ports[0]]);
    let before = parts.tags.len() + 12 + parts.ip.len();
    assert_eq!(before + parts.udp.len(), reply.len(), "bytes left over");
    assert_eq!(usize::from(field(parts.udp, 4)), parts.udp.len());
    assert_ne!(field(parts.udp, 6), 0, "no checksum");
    assert_eq!(parts.udp_sum(), 0xffff, "UDP checksum");
    match server {
        IpAddr::V4(_) => {
            assert_eq!(sum(parts.ip), 0xffff, "header checksum");
            assert_eq!(parts.ip[..2], [0x45, 0]);
            assert_eq!(parts.ip[4..10], [0, 0, 0x40, 0, 64, 17]);
        }
        IpAddr::V6(_) => {
            assert_eq!(field(parts.ip, 0) & 0xfff0, 0x6000);
            assert_eq!(parts.ip[6..8], [17, 64]);
        }
    }

    let question_end = 12
        + asked.message[12..]
            .iter()
            .position(|&byte| byte == 0)
            .unwrap()
        + 5;
    let name = &asked.message[12..question_end - 4];
    assert_eq!(
        parts.message[12..question_end],
        asked.message[12..question_end],
        "the question as it came"
    );
    let pick = picks(&name.to_ascii_lowercase());
    // An answer of all addresses may be too large where one of a few is not.
    let transport = match pick {
        Some(_) => Transport::Tcp,
        None => Transport::Udp,
    };
    let ours = Message::from_vec(parts.message).expect("a message");
    let other = fallback(&asked, transport, snapshot, policy);
    assert_eq!(ours.metadata, other.metadata);
    assert_eq!(ours.queries, other.queries);
    assert_eq!(ours.edns, other.edns);
    assert_eq!(ours.additionals, other.additionals);
    assert_eq!(ours.authorities, other.authorities);
    let want = pick.map_or(other.answers.len(), |pick| pick.min(other.answers.len()));
    assert_eq!(ours.answers.len(), want, "number of answers");
    for (i, record) in ours.answers.iter().enumerate() {
        assert!(!ours.answers[..i].contains(record), "twice: {record}");
        assert!(other.answers.contains(record), "not the name's: {record}");
    }
    // Names are equal without regard to case: here, the query's is wanted.
    let owners = |records: &[Record]| -> Vec<Name> {
        records.iter().map(|record| record.name.clone()).collect()
    };
    for owner in owners(&ours.answers)
        .iter()
        .chain(&owners(&ours.authorities))
    {
        assert!(
            name.ends_with(&wire(owner)),
            "the owner {owner} is not in the question's case"
        );
    }
}

fn wire(name: &Name) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.iter() {
        wire.push(label.len() as u8);
        wire.extend(label);
    }
    wire.push(0);
    wire
}
