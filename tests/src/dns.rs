//! Questions over real sockets, read and written by a library that Peak's own answers don't come from.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RData, RecordType},
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
    // Labels may begin with a dash, which host names may not.
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut name = Name::from_labels(labels.map(str::as_bytes))?;
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

/// The addresses of a reply's AAAA records.
pub fn v6_addresses(reply: &Message) -> impl Iterator<Item = Ipv6Addr> {
    let data = reply.answers.iter().map(|record| &record.data);
    data.filter_map(|data| match data {
        RData::AAAA(address) => Some(address.0),
        _ => None,
    })
}

/// Asks one question without EDNS from an ordinary socket, in the namespace of the calling thread.
///
/// # Errors
/// As [`query`], [`connect`] and [`exchange`].
pub fn ask(server: SocketAddr, name: &str, qtype: RecordType) -> Result<Message> {
    exchange(&connect(server)?, &query(name, qtype, false)?)
}

/// How many queries are under way at once on one socket. Servers close connections that go on for too long: CoreDNS after
/// 128.
const WINDOW: usize = 64;
/// How often a query without an answer is sent again over UDP, where it or the answer may be lost.
const RETRIES: usize = 3;

/// The answers to queries, in their order, with their own IDs. Many are under way at once.
struct Window<'q> {
    queries: BTreeMap<u16, &'q Message>,
    replies: BTreeMap<u16, Message>,
}

impl<'q> Window<'q> {
    fn new(queries: &'q [Message]) -> Self {
        let queries = queries.iter().enumerate();
        Self {
            queries: queries
                .map(|(index, query)| (index as u16, query))
                .collect(),
            replies: BTreeMap::new(),
        }
    }

    /// Those without an answer, as they go onto the wire.
    fn pending(&self) -> Result<Vec<Vec<u8>>> {
        let pending = self
            .queries
            .iter()
            .filter(|(id, _)| !self.replies.contains_key(id));
        pending
            .map(|(&id, query)| {
                let mut octets = query.to_vec()?;
                octets[..2].copy_from_slice(&id.to_be_bytes());
                Ok(octets)
            })
            .collect()
    }

    fn take(&mut self, octets: &[u8]) -> Result<()> {
        let mut reply = Message::from_vec(octets)?;
        let id = reply.metadata.id;
        let query = self
            .queries
            .get(&id)
            .with_context(|| format!("{id} is no query's ID"))?;
        ensure!(
            reply.queries == query.queries,
            "{:?} was answered, not {:?}",
            reply.queries,
            query.queries
        );
        reply.metadata.id = query.metadata.id;
        self.replies.insert(id, reply);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.replies.len() == self.queries.len()
    }
}

/// Sends queries over UDP, in the namespace of the calling thread, and waits for the answers. What is lost is sent again.
///
/// # Errors
/// As [`connect`]; an answer does not come, or is to no question.
pub fn over_udp(server: SocketAddr, queries: &[Message]) -> Result<Vec<Message>> {
    let socket = connect(server)?;
    let mut replies = Vec::with_capacity(queries.len());
    let mut buffer = [0; 1 << 16];
    for queries in queries.chunks(WINDOW) {
        let mut window = Window::new(queries);
        let mut tries = 0;
        while !window.is_complete() {
            let pending = window.pending()?;
            ensure!(tries <= RETRIES, "no answer to {pending:?}");
            tries += 1;
            for octets in pending {
                socket.send(&octets)?;
            }
            while !window.is_complete() {
                match socket.recv(&mut buffer) {
                    Ok(length) => window.take(&buffer[..length])?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        replies.extend(window.replies.into_values());
    }
    Ok(replies)
}

/// Sends queries over TCP, in the namespace of the calling thread, many on one connection, and waits for the answers.
///
/// # Errors
/// The server can't be reached, or closes the connection; an answer does not come, or is to no question.
pub fn over_tcp(server: SocketAddr, queries: &[Message]) -> Result<Vec<Message>> {
    let mut replies = Vec::with_capacity(queries.len());
    for queries in queries.chunks(WINDOW) {
        let mut window = Window::new(queries);
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let framed = window.pending()?.into_iter().flat_map(|octets| {
            let length = octets.len() as u16;
            length.to_be_bytes().into_iter().chain(octets)
        });
        stream.write_all(&framed.collect::<Vec<_>>())?;
        while !window.is_complete() {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut octets = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut octets)?;
            window.take(&octets)?;
        }
        replies.extend(window.replies.into_values());
    }
    Ok(replies)
}
