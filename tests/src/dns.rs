//! Questions over real sockets, read and written by a library that Peak's own answers don't come from.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RecordType},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes of an answer.
const PAYLOAD_SIZE: usize = 1232;

/// A query as a stub resolver sends it: RD, and an OPT with a payload size of 1232 bytes if it knows EDNS.
///
/// # Errors
/// `name` is none.
pub fn query(name: &str, qtype: RecordType, edns: bool) -> Result<Message> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, qtype));
    if edns {
        let mut opt = Edns::new();
        opt.set_max_payload(PAYLOAD_SIZE as u16);
        query.edns = Some(opt);
    }
    Ok(query)
}

/// A UDP socket that speaks to `server` alone, in the namespace of the calling thread.
///
/// # Errors
/// There is no way to `server`.
pub fn connect(server: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a query, and waits for its answer.
///
/// # Errors
/// No answer comes, or one to another question.
pub fn exchange(socket: &UdpSocket, query: &Message) -> Result<Message> {
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; PAYLOAD_SIZE];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("no answer to {:?}", query.queries))?;
    let reply = Message::from_vec(&buffer[..length])?;
    ensure!(
        reply.metadata.id == query.metadata.id && reply.queries == query.queries,
        "{:?} was answered, not {:?}",
        reply.queries,
        query.queries
    );
    Ok(reply)
}

/// Asks one question without EDNS from an ordinary socket, in the namespace of the calling thread.
///
/// # Errors
/// As [`query`], [`connect`] and [`exchange`].
pub fn ask(server: SocketAddr, name: &str, qtype: RecordType) -> Result<Message> {
    exchange(&connect(server)?, &query(name, qtype, false)?)
}
