//! The client: an ordinary stub resolver and an ordinary connection.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// How long a connection or a reply may take.
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
