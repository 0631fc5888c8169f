//! Many datagrams in one system call.

use std::{io, net::UdpSocket, os::fd::AsRawFd, ptr};

use super::QUERY_SIZE;

/// The longest reply that is read whole; what a longer one has beyond is cut, and the length then tells.
const REPLY_SIZE: usize = 4096;

/// Room for datagrams of one direction.
struct Batch<const SIZE: usize> {
    room: Box<[[u8; SIZE]]>,
    lengths: Box<[usize]>,
    parts: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

// SAFETY: the pointers are into what it owns, and are set anew before each use.
unsafe impl<const SIZE: usize> Send for Batch<SIZE> {}

impl<const SIZE: usize> Batch<SIZE> {
    fn new(datagrams: usize) -> Self {
        // SAFETY: structures of numbers and pointers, which may be null.
        let (part, header) = unsafe {
            let part: libc::iovec = std::mem::zeroed();
            let header: libc::mmsghdr = std::mem::zeroed();
            (part, header)
        };
        Self {
            room: vec![[0; SIZE]; datagrams].into(),
            lengths: vec![0; datagrams].into(),
            parts: vec![part; datagrams].into(),
            headers: vec![header; datagrams].into(),
        }
    }

    /// Headers for the datagrams of a range, as long as `length` says.
    fn headers(
        &mut self,
        first: usize,
        count: usize,
        length: impl Fn(usize) -> usize,
    ) -> *mut libc::mmsghdr {
        for i in first..first + count {
            self.parts[i] = libc::iovec {
                iov_base: self.room[i].as_mut_ptr().cast(),
                iov_len: length(self.lengths[i]).min(SIZE),
            };
            let header = &mut self.headers[i].msg_hdr;
            header.msg_iov = &raw mut self.parts[i];
            header.msg_iovlen = 1;
        }
        self.headers[first..].as_mut_ptr()
    }
}

/// Datagrams to send.
pub(super) struct Sending {
    batch: Batch<QUERY_SIZE>,
    count: usize,
}

impl Sending {
    pub(super) fn new(datagrams: usize) -> Self {
        Self {
            batch: Batch::new(datagrams),
            count: 0,
        }
    }

    /// Adds a copy of a message, with another ID (RFC 1035, section 4.1.1: its first 16 bits).
    ///
    /// # Panics
    /// There are as many as there is room for.
    pub(super) fn push(&mut self, message: &[u8], id: u16) {
        let room = &mut self.batch.room[self.count];
        room[..message.len()].copy_from_slice(message);
        room[..2].copy_from_slice(&id.to_be_bytes());
        self.batch.lengths[self.count] = message.len();
        self.count += 1;
    }

    /// Sends all of them. Those that the kernel has no room for are dropped, as a network would.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn send(&mut self, socket: &UdpSocket) -> io::Result<()> {
        let mut done = 0;
        while done < self.count {
            let rest = self.count - done;
            let headers = self.batch.headers(done, rest, |length| length);
            // SAFETY: as many headers, whose parts are what the batch owns; the kernel reads them.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), headers, rest as u32, libc::MSG_DONTWAIT)
            };
            done += match usize::try_from(sent) {
                Ok(sent) => sent,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match (error.kind(), error.raw_os_error()) {
                        (io::ErrorKind::WouldBlock, _) | (_, Some(libc::ENOBUFS)) => 1,
                        // What a server that isn't there had the kernel say about an earlier one.
                        (io::ErrorKind::ConnectionRefused, _) => 0,
                        (io::ErrorKind::Interrupted, _) => 0,
                        _ => return Err(error),
                    }
                }
            };
        }
        self.count = 0;
        Ok(())
    }
}

/// Datagrams received.
pub(super) struct Received {
    batch: Batch<REPLY_SIZE>,
}

impl Received {
    pub(super) fn new(datagrams: usize) -> Self {
        Self {
            batch: Batch::new(datagrams),
        }
    }

    /// What a socket has now, up to what there is room for.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn receive<'r>(
        &'r mut self,
        socket: &UdpSocket,
    ) -> io::Result<impl Iterator<Item = &'r [u8]> + use<'r>> {
        let count = self.batch.room.len();
        let headers = self.batch.headers(0, count, |_| REPLY_SIZE);
        // SAFETY: as many headers, whose parts are what the batch owns, and as long as they say; without a time-out.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers,
                count as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let received = match usize::try_from(received) {
            Ok(received) => received,
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionRefused => 0,
                    _ => return Err(error),
                }
            }
        };
        let datagrams = self.batch.headers.iter().zip(&self.batch.room);
        Ok(datagrams
            .take(received)
            .map(|(header, room)| &room[..(header.msg_len as usize).min(REPLY_SIZE)]))
    }
}
