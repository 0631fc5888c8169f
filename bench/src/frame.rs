//! Frames that the benchmarks send.

use std::net::Ipv6Addr;

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};

/// Addresses of the interface and of the client.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const SERVER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 7, 0, 0, 0, 2);
/// Where DNS is served (RFC 1035, section 4.2.1).
pub(crate) const PORT: u16 = 53;
const CLIENT_PORT: u16 = 49_153;
const HOP_LIMIT: u8 = 64;

/// Ethernet, IPv6 and UDP before the message; the message's header before the name.
const NAME: usize = 14 + 40 + 8 + 12;

/// A query from the client to the server, and where in it its name begins.
pub(crate) fn query(name: &str, query_type: RecordType, edns: bool) -> Result<(Vec<u8>, usize)> {
    let name = Name::from_ascii(name).with_context(|| name.to_owned())?;
    let mut message = Message::new(0x4d2, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, query_type));
    if edns {
        let mut opt = Edns::new();
        opt.set_max_payload(1232);
        message.set_edns(opt);
    }
    let mut frame = Vec::new();
    ethernet()
        .udp(CLIENT_PORT, PORT)
        .write(&mut frame, &message.to_vec()?)?;
    Ok((frame, NAME))
}

/// What is not DNS: a TCP segment of the size of a query.
pub(crate) fn segment() -> Result<Vec<u8>> {
    let mut frame = Vec::new();
    ethernet()
        .tcp(CLIENT_PORT, PORT, 1, 1024)
        .write(&mut frame, &[0; 48])?;
    Ok(frame)
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(CLIENT_MAC, MAC).ipv6(CLIENT.octets(), SERVER.octets(), HOP_LIMIT)
}
