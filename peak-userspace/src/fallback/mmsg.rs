//! Many datagrams in one system call, in memory that is used again and again.
//!
//! Of the crates that are well kept, `rustix` can send so but not receive, and `nix` reads addresses that nobody wrote
//! when it has sent.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::{offset_of, zeroed},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    ptr,
};

/// How many datagrams are taken from a socket at once. With 32 of them a system call's own cost is a fiftieth of what
/// they cost; more wait longer for the first reply.
pub(super) const BATCH: usize = 32;
/// The room for a datagram, in bytes: the longest one. The kernel writes as much as came, so that of this memory hardly
/// more than a page a datagram is ever in use; what is left over of it keeps the datagrams' beginnings apart, which
/// would all compete for the same lines of the processor's cache.
const ROOM: usize = (1 << 16) + 3 * 64;
/// More than any reply over UDP takes.
const REPLY_ROOM: usize = 1536;

/// The address of an IPv4 or IPv6 socket, as the kernel writes it.
///
/// Both kinds begin with family and port; an IPv4 address stands where the other has its flow information.
#[derive(Clone, Copy)]
struct Address(libc::sockaddr_in6);

const _: () = assert!(
    offset_of!(libc::sockaddr_in, sin_port) == offset_of!(libc::sockaddr_in6, sin6_port)
        && offset_of!(libc::sockaddr_in, sin_addr) == offset_of!(libc::sockaddr_in6, sin6_flowinfo)
        && size_of::<libc::sockaddr_in>() <= size_of::<libc::sockaddr_in6>()
);

impl Address {
    const NONE: Self = Self(libc::sockaddr_in6 {
        sin6_family: libc::AF_INET6 as libc::sa_family_t,
        sin6_port: 0,
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
        sin6_scope_id: 0,
    });

    fn get(&self) -> SocketAddr {
        let Self(raw) = self;
        let port = u16::from_be(raw.sin6_port);
        if i32::from(raw.sin6_family) == libc::AF_INET {
            let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin6_flowinfo));
            return SocketAddrV4::new(ip, port).into();
        }
        let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
        SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into()
    }

    fn length(&self) -> libc::socklen_t {
        let length = match i32::from(self.0.sin6_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            _ => size_of::<libc::sockaddr_in6>(),
        };
        length as libc::socklen_t
    }
}

/// A message of which nothing is said yet.
// SAFETY: zeros are a valid `mmsghdr`: numbers, and null pointers.
const EMPTY: libc::mmsghdr = unsafe { zeroed() };

/// Datagrams that came together, and the replies to them.
pub(super) struct Batch {
    received: Vec<u8>,
    lengths: [usize; BATCH],
    addresses: [Address; BATCH],
    replies: [Vec<u8>; BATCH],
    /// How many there are.
    count: usize,
}

/// One of them.
pub(super) struct Datagram<'a> {
    /// What came.
    pub(super) message: &'a [u8],
    pub(super) client: SocketAddr,
    /// What is to be sent back: nothing, if it stays empty.
    pub(super) reply: &'a mut Vec<u8>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            received: vec![0; BATCH * ROOM],
            lengths: [0; BATCH],
            addresses: [Address::NONE; BATCH],
            replies: std::array::from_fn(|_| Vec::with_capacity(REPLY_ROOM)),
            count: 0,
        }
    }

    /// Takes what has come to a socket, [`BATCH`] datagrams at most, in place of those there were, and says how many.
    ///
    /// # Errors
    /// `WouldBlock`, if nothing has come, and whatever else the system says.
    pub(super) fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.count = 0;
        let mut rooms = self.received.as_chunks_mut::<ROOM>().0.iter_mut();
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| IoSliceMut::new(rooms.next().expect("room for each")));
        let mut headers = [EMPTY; BATCH];
        for ((header, slice), address) in
            headers.iter_mut().zip(&mut slices).zip(&mut self.addresses)
        {
            // The standard library promises that an `IoSliceMut` is an `iovec`.
            header.msg_hdr.msg_iov = ptr::from_mut(slice).cast();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_mut(&mut address.0).cast();
            header.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
        }
        // SAFETY: there are as many headers as it is told of. Each has the address and the length of memory for one slice
        // and one address, which outlive the call and are borrowed for nothing else; any bytes are valid in them.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (length, header) in self.lengths.iter_mut().zip(&headers[..self.count]) {
            *length = header.msg_len as usize;
        }
        self.replies[..self.count].iter_mut().for_each(Vec::clear);
        Ok(self.count)
    }

    /// How many datagrams it holds.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The datagrams, each with its reply, which is empty at first.
    pub(super) fn datagrams(&mut self) -> impl Iterator<Item = Datagram<'_>> {
        let received = self
            .received
            .as_chunks::<ROOM>()
            .0
            .iter()
            .zip(&self.lengths);
        let clients = self.addresses.iter().map(Address::get);
        let all = received.zip(clients).zip(&mut self.replies);
        let all = all.take(self.count);
        all.map(|(((room, &length), client), reply)| Datagram {
            message: &room[..length],
            client,
            reply,
        })
    }

    /// Sends each reply at once, or not at all: `dropped` hears of those that the system didn't take.
    pub(super) fn send(&self, socket: impl AsFd, mut dropped: impl FnMut(SocketAddr, io::Error)) {
        let mut slices = [IoSlice::new(&[]); BATCH];
        let mut to = [&Address::NONE; BATCH];
        let replies = self.replies.iter().zip(&self.addresses).take(self.count);
        let mut count = 0;
        for (reply, address) in replies.filter(|(reply, _)| !reply.is_empty()) {
            (slices[count], to[count]) = (IoSlice::new(reply), address);
            count += 1;
        }
        let mut headers = [EMPTY; BATCH];
        for ((header, slice), address) in headers.iter_mut().zip(&slices).zip(&to).take(count) {
            // The standard library promises that an `IoSlice` is an `iovec`. Of neither is anything written.
            header.msg_hdr.msg_iov = ptr::from_ref(slice).cast_mut().cast();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_ref(&address.0).cast_mut().cast();
            header.msg_hdr.msg_namelen = address.length();
        }
        let mut sent = 0;
        while sent < count {
            let rest = &mut headers[sent..count];
            // SAFETY: there are as many headers as it is told of. Each has the address and the length of one slice and one
            // address, which outlive the call and are only read.
            let more = unsafe {
                libc::sendmmsg(
                    socket.as_fd().as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as libc::c_uint,
                    libc::MSG_DONTWAIT as _,
                )
            };
            sent += usize::try_from(more).unwrap_or_else(|_| {
                // It is about the first of them; the others get their turn.
                dropped(to[sent].get(), io::Error::last_os_error());
                1
            });
        }
    }
}

#[cfg(test)]
impl Batch {
    /// As if these had come.
    pub(super) fn of<'a>(datagrams: impl IntoIterator<Item = (&'a [u8], SocketAddr)>) -> Self {
        let mut batch = Self::new();
        for (message, client) in datagrams {
            let at = batch.count;
            batch.received[at * ROOM..][..message.len()].copy_from_slice(message);
            (batch.lengths[at], batch.addresses[at]) = (message.len(), client.into());
            batch.count += 1;
        }
        batch
    }
}

#[cfg(test)]
impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let mut raw = Self::NONE.0;
        raw.sin6_port = address.port().to_be();
        match address {
            SocketAddr::V4(address) => {
                raw.sin6_family = libc::AF_INET as libc::sa_family_t;
                raw.sin6_flowinfo = address.ip().to_bits().to_be();
            }
            SocketAddr::V6(address) => {
                raw.sin6_flowinfo = address.flowinfo();
                raw.sin6_addr.s6_addr = address.ip().octets();
                raw.sin6_scope_id = address.scope_id();
            }
        }
        Self(raw)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn socket(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind(address).unwrap();
        let patience = std::time::Duration::from_secs(10);
        socket.set_read_timeout(Some(patience)).unwrap();
        socket
    }

    /// Loopback hands a datagram over before the sender goes on.
    #[test]
    fn what_came_goes_back_to_whom_it_came_from() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (server, mut batch) = (socket(address), Batch::new());
            let to = server.local_addr().unwrap();
            assert_eq!(
                batch.receive(&server).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            let clients = [1, 60_000, 12, 1400, 0].map(|length| (length, socket(address)));
            for (length, client) in &clients {
                client.send_to(&vec![*length as u8; *length], to).unwrap();
            }
            assert_eq!(batch.receive(&server).unwrap(), clients.len());
            for (datagram, (length, client)) in batch.datagrams().zip(&clients) {
                assert_eq!(datagram.message, vec![*length as u8; *length]);
                assert_eq!(datagram.client, client.local_addr().unwrap());
                // Every other one gets a reply.
                if length % 8 == 0 {
                    datagram.reply.extend(length.to_be_bytes());
                }
            }
            batch.send(&server, |client, error| panic!("{client}: {error}"));
            for (length, client) in clients.iter().filter(|(length, _)| length % 8 == 0) {
                let mut reply = [0; 100];
                assert_eq!(client.recv_from(&mut reply).unwrap(), (8, to));
                assert_eq!(reply[..8], length.to_be_bytes());
            }
            assert!(batch.receive(&server).is_err());
            assert_eq!(batch.datagrams().count(), 0);
        }
    }

    #[test]
    fn more_than_a_batch_waits_for_the_next() {
        let (server, client, mut batch) = (socket("[::1]:0"), socket("[::1]:0"), Batch::new());
        for n in 0..2 * BATCH as u8 + 1 {
            client.send_to(&[n], server.local_addr().unwrap()).unwrap();
        }
        let mut seen = Vec::new();
        for count in [BATCH, BATCH, 1] {
            assert_eq!(batch.receive(&server).unwrap(), count);
            for datagram in batch.datagrams() {
                assert!(datagram.reply.is_empty());
                datagram.reply.push(datagram.message[0]);
                seen.push(datagram.message[0]);
            }
        }
        assert_eq!(seen, (0..2 * BATCH as u8 + 1).collect::<Vec<_>>());
    }

    /// One that the system refuses (a broadcast address, without leave to send there) keeps no other from going out.
    #[test]
    fn an_error_drops_one_reply() {
        let (server, client) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        let (good, bad) = (
            client.local_addr().unwrap(),
            "255.255.255.255:53".parse().unwrap(),
        );
        for bad_at in [&[0][..], &[2], &[4], &[0, 1, 3], &[3, 4], &[0, 1, 2, 3, 4]] {
            let to = |at| if bad_at.contains(&at) { bad } else { good };
            let mut batch = Batch::of((0..5).map(|at| (&b"query"[..], to(at))));
            for (at, datagram) in batch.datagrams().enumerate() {
                datagram.reply.push(at as u8);
            }
            let mut dropped = Vec::new();
            batch.send(&server, |client, _| dropped.push(client));
            assert_eq!(dropped, vec![bad; bad_at.len()]);
            for at in (0..5).filter(|at| !bad_at.contains(at)) {
                let mut reply = [0; 100];
                assert_eq!(client.recv(&mut reply).unwrap(), 1);
                assert_eq!(usize::from(reply[0]), at);
            }
        }
    }
}
