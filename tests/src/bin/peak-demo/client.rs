//! The client: an ordinary stub resolver and an ordinary connection; and questions that a stub resolver does not ask.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};

/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which pod replied at which address.
pub(crate) type Visits = BTreeMap<IpAddr, String>;

/// Resolves `name` through the C library, A and AAAA together as every program does, visits each address, and prints
/// [`Visits`] as JSON. Runs in a process of its own, because the resolver reads `/etc/resolv.conf`.
pub(crate) fn visit(name: &str, port: u16) -> Result<()> {
    let addresses = (name, port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {name}"))?;
    let visits = addresses
        .map(|address| Ok((address.ip(), get(address)?)))
        .collect::<Result<Visits>>()?;
    println!("{}", serde_json::to_string(&visits)?);
    Ok(())
}

/// `GET /`: the body.
fn get(address: SocketAddr) -> Result<String> {
    let exchange = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    let reply = exchange().with_context(|| format!("no reply from {address}"))?;
    let (head, body) = reply
        .split_once("\r\n\r\n")
        .context("an HTTP reply has a head")?;
    ensure!(
        head.starts_with("HTTP/1.1 200 "),
        "{address} replied {head}"
    );
    Ok(body.to_owned())
}

/// What came back to one question.
pub(crate) struct Reply {
    pub(crate) rcode: ResponseCode,
    /// The answers' data, in presentation format.
    pub(crate) records: Vec<String>,
}

/// Asks one question over UDP, in the namespace of the calling thread.
pub(crate) fn ask(server: SocketAddr, name: &str, qtype: RecordType) -> Result<Reply> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    query.add_query(Query::query(name, qtype));

    let socket = UdpSocket::bind(if server.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    })?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; 1232];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("no answer from {server}"))?;
    let reply = Message::from_vec(&buffer[..length])?;
    if reply.metadata.id != query.metadata.id || reply.queries != query.queries {
        bail!("{server} answered another question");
    }
    Ok(Reply {
        rcode: reply.metadata.response_code,
        records: reply
            .answers
            .iter()
            .map(|record| record.data.to_string())
            .collect(),
    })
}
