//! Frames that the benchmarks send.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, VlanId, ip_number::UDP};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};

/// Addresses of the interface and of the client.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa);
pub(crate) const SERVER_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 7, 0, 0, 0, 2);
const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 7, 2);
/// Where DNS is served (RFC 1035, section 4.2.1).
pub(crate) const PORT: u16 = 53;
const CLIENT_PORT: u16 = 49_153;
const HOP_LIMIT: u8 = 64;
const VLAN: u16 = 7;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const UDP_HEADER: usize = 8;
const DNS_HEADER: usize = 12;

/// A query from the client to the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The name, absolute.
    pub(crate) name: &'static str,
    pub(crate) query_type: RecordType,
    /// Whether there is an OPT, of [`PAYLOAD_SIZE`].
    pub(crate) edns: bool,
    /// Whether it comes over IPv4.
    pub(crate) v4: bool,
    /// Whether it carries a VLAN tag.
    pub(crate) tagged: bool,
}

/// What the OPT of a query says that the client takes.
pub(crate) const PAYLOAD_SIZE: u16 = 1232;

/// A frame that carries a query, and where its parts are.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// Where the IP header begins.
    pub(crate) ip: usize,
    /// Where the UDP header begins.
    pub(crate) udp: usize,
}

impl Asked {
    /// The query as it comes from a wire, checksums and all.
    pub(crate) fn frame(&self) -> Result<Frame> {
        let message = self.message()?;
        let (headers, ip_header) = if self.v4 {
            let length = (UDP_HEADER + message.len()) as u16;
            let (source, destination) = (CLIENT_V4.octets(), SERVER_V4.octets());
            let header = Ipv4Header::new(length, HOP_LIMIT, UDP, source, destination)?;
            (
                IpHeaders::Ipv4(header, Default::default()),
                Ipv4Header::MIN_LEN,
            )
        } else {
            let header = Ipv6Header {
                source: CLIENT.octets(),
                destination: SERVER.octets(),
                hop_limit: HOP_LIMIT,
                ..Ipv6Header::default()
            };
            (IpHeaders::Ipv6(header, Default::default()), Ipv6Header::LEN)
        };
        let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, MAC);
        let (ip, udp) = if self.tagged {
            let vlan = VlanId::try_new(VLAN)?;
            (ETHERNET + TAG, ethernet.single_vlan(vlan).ip(headers))
        } else {
            (ETHERNET, ethernet.ip(headers))
        };
        let mut bytes = Vec::new();
        udp.udp(CLIENT_PORT, PORT).write(&mut bytes, &message)?;
        Ok(Frame {
            bytes,
            ip,
            udp: ip + ip_header,
        })
    }

    /// The DNS message.
    pub(crate) fn message(&self) -> Result<Vec<u8>> {
        let name = Name::from_ascii(self.name).with_context(|| self.name.to_owned())?;
        let mut message = Message::new(0x4d2, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name, self.query_type));
        if self.edns {
            let mut opt = Edns::new();
            opt.set_max_payload(PAYLOAD_SIZE);
            message.set_edns(opt);
        }
        Ok(message.to_vec()?)
    }
}

impl Frame {
    /// Where the DNS message begins.
    pub(crate) const fn message(&self) -> usize {
        self.udp + UDP_HEADER
    }

    /// Where the question's name begins.
    pub(crate) const fn name(&self) -> usize {
        self.message() + DNS_HEADER
    }
}
