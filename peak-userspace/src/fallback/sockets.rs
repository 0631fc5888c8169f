//! Binds sockets, and says what is in the way.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::LazyLock,
    thread::available_parallelism,
};

use rustix::net::sockopt::{set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force};
use socket2::{Domain, Protocol, Socket, Type};

use tokio_util::sync::CancellationToken;

use super::{Sockets, Upstream};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;
/// How many ports are tried where any will do but UDP and TCP must agree.
const ATTEMPTS: usize = 16;
/// How many UDP sockets an address has, and how many threads read them: one for each processor that the process may use.
/// More than eight bring no more answers.
pub(super) static UDP_SOCKETS: LazyLock<usize> =
    LazyLock::new(|| available_parallelism().map_or(1, |processors| processors.get().min(8)));
/// What replies may take, in bytes, that wait for a neighbour's address, or for the link. One neighbour that is not there
/// holds up to 200 kB for three seconds, all that a socket has by default.
const SEND_BUFFER: usize = 8 << 20;
/// What queries may take that wait to be read, in bytes, of which the kernel grants twice as much: 2,700 of them, 10 ms
/// of work. What a socket has by default is full after a millisecond in which another had the processor.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Why the fallback can't start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket of a wildcard would answer from another address than the one that was asked.
    #[error("can't listen on the wildcard {0}: name the addresses themselves")]
    Wildcard(SocketAddr),
    /// Somebody else has the port.
    #[error(
        "{protocol} port {address} is taken: stop the server that has it (`ss -lnp` names it) or listen elsewhere"
    )]
    Taken {
        /// The address asked for.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
    },
    /// No interface has the address.
    #[error(
        "no interface of this node has the address of {0}: add it first, or listen on one that is there"
    )]
    NoSuchAddress(SocketAddr),
    /// Ports below 1024 need a capability.
    #[error("not allowed to listen on {0}: run as root or with CAP_NET_BIND_SERVICE")]
    Denied(SocketAddr),
    /// Something else.
    #[error("can't listen on {address}: {error}")]
    Other {
        /// The address asked for.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Each question would come back for ever.
    #[error("the upstream {0} is this server itself: name another, or leave it out")]
    UpstreamIsSelf(Upstream),
    /// No server has this address; the system would take it for itself.
    #[error("the upstream {0} has no address: name the server's own")]
    UpstreamUnspecified(Upstream),
}

impl BindError {
    fn new(address: SocketAddr, protocol: &'static str, error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::AddrInUse => Self::Taken { address, protocol },
            ErrorKind::AddrNotAvailable => Self::NoSuchAddress(address),
            ErrorKind::PermissionDenied => Self::Denied(address),
            _ => Self::Other { address, error },
        }
    }
}

/// Binds TCP and UDP to one address.
pub(super) fn bind(address: SocketAddr) -> Result<Sockets, BindError> {
    if address.ip().is_unspecified() {
        return Err(BindError::Wildcard(address));
    }
    let mut attempts = if address.port() == 0 { ATTEMPTS } else { 1 };
    loop {
        attempts -= 1;
        match bind_both(address) {
            Err(BindError::Taken {
                protocol: "UDP", ..
            }) if attempts > 0 => {}
            result => return result,
        }
    }
}

fn bind_both(address: SocketAddr) -> Result<Sockets, BindError> {
    // TCP first, and without SO_REUSEPORT: that is what finds another server, even another Peak.
    let tcp = bind_tcp(address).map_err(|error| BindError::new(address, "TCP", error))?;
    let address = tcp
        .local_addr()
        .map_err(|error| BindError::Other { address, error })?;
    let udp = (0..*UDP_SOCKETS)
        .map(|_| bind_udp(address))
        .collect::<io::Result<_>>()
        .map_err(|error| BindError::new(address, "UDP", error))?;
    Ok(Sockets {
        address,
        udp,
        tcp,
        closed: CancellationToken::new(),
    })
}

fn bind_tcp(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket(address, Type::STREAM, Protocol::TCP)?;
    // Connections of a server that is gone don't hold up the next one.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One of several sockets, between which the kernel divides the clients.
fn bind_udp(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket(address, Type::DGRAM, Protocol::UDP)?;
    socket.set_reuse_port(true)?;
    // Beyond the system's limit with CAP_NET_ADMIN only.
    if set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
        socket.set_send_buffer_size(SEND_BUFFER)?;
    }
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Refuses an upstream that would ask this server.
pub(super) fn refuse_self(
    upstreams: &[Upstream],
    listening: impl Iterator<Item = SocketAddr> + Clone,
) -> Result<(), BindError> {
    for upstream in upstreams {
        let ip = upstream.address.ip().to_canonical();
        if ip.is_unspecified() {
            return Err(BindError::UpstreamUnspecified(upstream.clone()));
        }
        let is_self =
            |address: SocketAddr| address.ip() == ip && address.port() == upstream.address.port();
        if listening.clone().any(is_self) {
            return Err(BindError::UpstreamIsSelf(upstream.clone()));
        }
    }
    Ok(())
}
