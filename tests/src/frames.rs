//! Whole frames, sent and received past the stack; and whether what is in them is sound.

use std::{
    ffi::{c_int, c_void},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{
    IpHeaders, LinkExtHeader, LinkHeader, NetHeaders, PacketHeaders, TransportHeader, UdpHeader,
};

use crate::{Namespace, eventually};

/// Where the tags of a frame begin.
const ADDRESSES: usize = 12;

/// A packet socket on one interface: it sends any frame, and sees all that come in.
#[derive(Debug)]
pub struct Frames {
    socket: OwnedFd,
}

impl Frames {
    /// Opens one.
    ///
    /// # Errors
    /// There is no such interface; without CAP_NET_RAW.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = namespace.link(interface)?["ifindex"]
            .as_i64()
            .and_then(|index| c_int::try_from(index).ok())
            .context("an interface has an index")?;
        let opened = namespace.run(|| open(index));
        let socket =
            opened.with_context(|| format!("cannot listen to the frames of {interface}"))?;
        Ok(Self { socket })
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// It is longer than the interface's MTU allows, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the kernel reads as many bytes as the frame has.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        ensure!(
            usize::try_from(sent) == Ok(frame.len()),
            "cannot send a frame of {} bytes: {}",
            frame.len(),
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// The next frame that `wanted` makes something of. What comes before it is thrown away.
    ///
    /// # Errors
    /// `wanted`'s own; none comes within `limit`.
    pub fn receive<T>(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> Result<Option<T>>,
    ) -> Result<T> {
        eventually("a frame", limit, || {
            while let Some(frame) = receive(&self.socket)? {
                if let Some(found) = wanted(&frame)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        })
    }

    /// The next UDP datagram from `source`, whose frame must be sound: see [`Datagram`].
    ///
    /// # Errors
    /// None comes within `limit`, or it is not sound.
    pub fn datagram(&self, source: SocketAddr, limit: Duration) -> Result<Datagram> {
        self.receive(limit, |frame| {
            let Ok(headers) = PacketHeaders::from_ethernet_slice(frame) else {
                return Ok(None);
            };
            match Datagram::new(frame, headers)? {
                Some(datagram) if datagram.source() == source => Ok(Some(datagram)),
                _ => Ok(None),
            }
        })
        .with_context(|| format!("of a datagram from {source}"))
    }
}

/// A UDP datagram with all that is around it. Its lengths and checksums are right.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Addresses and type of the frame.
    pub link: etherparse::Ethernet2Header,
    /// The VLAN tags' bytes, the outermost first: type and what it says, four bytes a tag.
    pub tags: Vec<u8>,
    /// IP header, with options or extension headers.
    pub ip: IpHeaders,
    /// UDP header.
    pub udp: UdpHeader,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Datagram {
    /// `None` where it is something else.
    fn new(frame: &[u8], headers: PacketHeaders<'_>) -> Result<Option<Self>> {
        let (Some(LinkHeader::Ethernet2(link)), Some(TransportHeader::Udp(udp))) =
            (headers.link, headers.transport)
        else {
            return Ok(None);
        };
        let payload = headers.payload.slice();
        let tags = headers
            .link_exts
            .iter()
            .map(LinkExtHeader::header_len)
            .sum::<usize>();
        let (ip, checksum) = match headers.net {
            Some(NetHeaders::Ipv6(ip, extensions)) => {
                let wanted = udp.calc_checksum_ipv6_raw(ip.source, ip.destination, payload)?;
                (IpHeaders::Ipv6(ip, extensions), wanted)
            }
            Some(NetHeaders::Ipv4(ip, extensions)) => {
                let header = ip.calc_header_checksum();
                ensure!(
                    ip.header_checksum == header,
                    "IPv4 header checksum: {ip:?}, not {header:#x}"
                );
                let wanted = udp.calc_checksum_ipv4_raw(ip.source, ip.destination, payload)?;
                (IpHeaders::Ipv4(ip, extensions), wanted)
            }
            _ => bail!("a datagram without IP"),
        };
        ensure!(
            udp.checksum == checksum,
            "UDP checksum: {udp:?}, not {checksum:#x}"
        );
        let whole = link.header_len() + tags + ip.header_len() + udp.header_len() + payload.len();
        ensure!(
            whole == frame.len(),
            "{} bytes, and {} in the frame",
            whole,
            frame.len()
        );
        ensure!(
            usize::from(udp.length) == udp.header_len() + payload.len(),
            "{udp:?}"
        );
        Ok(Some(Self {
            link,
            tags: frame[ADDRESSES..ADDRESSES + tags].to_vec(),
            ip,
            udp,
            payload: payload.to_vec(),
        }))
    }

    /// Who sent it.
    pub fn source(&self) -> SocketAddr {
        let address: IpAddr = match &self.ip {
            IpHeaders::Ipv4(ip, _) => ip.source.into(),
            IpHeaders::Ipv6(ip, _) => ip.source.into(),
        };
        SocketAddr::new(address, self.udp.source_port)
    }
}

/// A packet socket that does not block, on the interface of this index in the namespace of the calling thread.
fn open(index: c_int) -> io::Result<OwnedFd> {
    let every = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no pointers.
    let socket = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            // No frames of other interfaces before it is bound.
            0,
        )
    };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for option in [libc::PACKET_AUXDATA, libc::PACKET_IGNORE_OUTGOING] {
        let on: c_int = 1;
        // SAFETY: the kernel reads a number of that size.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: a structure of numbers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = every;
    address.sll_ifindex = index;
    // SAFETY: the kernel reads an address of that size.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// A frame as it was on the wire, if there is one.
///
/// The kernel takes the outermost tag off what it receives, and tells of it beside the frame (packet(7), `PACKET_AUXDATA`):
/// it is put back.
fn receive(socket: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut frame = vec![0_u8; 65536];
    let mut beside = [0_u64; 16];
    let mut part = libc::iovec {
        iov_base: frame.as_mut_ptr().cast::<c_void>(),
        iov_len: frame.len(),
    };
    // SAFETY: a structure of numbers and pointers, which may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = beside.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&beside);
    // SAFETY: the kernel writes into the two buffers, of which it knows the lengths.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.kind() {
            io::ErrorKind::WouldBlock => Ok(None),
            _ => Err(error),
        };
    };
    frame.truncate(length);

    // SAFETY: the kernel has written whole control messages, of the length that it left in `message`.
    let mut control = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    while let Some(header) = control {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: what follows such a header is this structure, aligned or not.
            let told: libc::tpacket_auxdata = unsafe {
                libc::CMSG_DATA(header)
                    .cast::<libc::tpacket_auxdata>()
                    .read_unaligned()
            };
            if told.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let tag = [told.tp_vlan_tpid, told.tp_vlan_tci].map(u16::to_be_bytes);
                frame.splice(ADDRESSES..ADDRESSES, tag.as_flattened().iter().copied());
            }
        }
        // SAFETY: as above.
        control = unsafe { libc::CMSG_NXTHDR(&raw const message, header).as_ref() };
    }
    Ok(Some(frame))
}
