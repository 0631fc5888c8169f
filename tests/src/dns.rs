//! Questions over real sockets, read and written by a library that Peak's own answers don't come from.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks one question over UDP from an ordinary socket, in the namespace of the calling thread.
///
/// # Errors
/// No answer comes, or one to another question.
pub fn ask(server: SocketAddr, name: &str, qtype: RecordType) -> Result<Message> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, qtype));

    let any = if server.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; 1232];
    let length = socket
        .recv(&mut buffer)
        .with_context(|| format!("no answer from {server}"))?;
    let reply = Message::from_vec(&buffer[..length])?;
    ensure!(
        reply.metadata.id == query.metadata.id && reply.queries == query.queries,
        "{server} answered another question"
    );
    Ok(reply)
}
