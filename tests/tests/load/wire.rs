//! Queries as frames, and replies read without any of the agent's or the program's code.

use std::net::IpAddr;

use peak_userspace::name::Name;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_AAAA: u16 = 28;
/// TTL of every record, and of negative answers, in seconds.
pub(crate) const TTL: u32 = 5;
pub(crate) const PORT: u16 = 53;
/// What is asked.
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

const ETHERNET: usize = 14;
const UDP: usize = 8;
const HEADER: usize = 12;
/// An OPT of version 0 that offers 1232 bytes, without options (RFC 6891, section 6.1.2): the query's, and the reply's.
const OPT: [u8; 11] = [0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0];

/// The addresses that are asked, one a family.
pub(crate) fn servers() -> [IpAddr; 2] {
    [
        [0xfd00, 0, 0, 0, 0, 0, 0, 0x53].into(),
        [10, 0, 0, 53].into(),
    ]
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// A query for addresses, with RD, as the frame that it comes in.
pub(crate) struct Query {
    pub(crate) frame: Vec<u8>,
    /// Where the addresses of the IP header begin.
    addresses: usize,
    /// Where the DNS message begins.
    message: usize,
    /// Where the question ends.
    end: usize,
    edns: bool,
}

impl Query {
    pub(crate) fn new(name: &Name, qtype: u16, server: IpAddr, edns: bool) -> Self {
        let opt: &[u8] = if edns { &OPT } else { &[] };
        let question = name.as_wire().len() + 4;
        let length = (UDP + HEADER + question + opt.len()) as u16;
        let mut frame = [SERVER_MAC, CLIENT_MAC].concat();
        let client = match server {
            IpAddr::V6(_) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([17, 255]);
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 0xc])
            }
            IpAddr::V4(_) => {
                let mut header = vec![0x45, 0];
                header.extend((20 + length).to_be_bytes());
                header.extend([0xab, 0xcd, 0x40, 0, 255, 17]);
                let client = IpAddr::from([10, 0, 0, 12]);
                let sum = sum(&[&header[..], &octets(client), &octets(server)].concat());
                frame.extend([8, 0]);
                frame.extend(header);
                frame.extend((!fold(sum)).to_be_bytes());
                client
            }
        };
        let addresses = frame.len();
        frame.extend([octets(client), octets(server)].concat());
        for field in [40_000, PORT, length] {
            frame.extend(field.to_be_bytes());
        }
        // As a local sender leaves the checksum: of the pseudo-header alone, or so.
        frame.extend([0x12, 0x34]);
        let message = frame.len();
        frame.extend([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        frame.extend(name.as_wire());
        frame.extend(qtype.to_be_bytes());
        frame.extend([0, 1]);
        frame.extend(opt);
        Self {
            frame,
            addresses,
            message,
            end: message + HEADER + question,
            edns,
        }
    }

    /// Gives the message another ID.
    pub(crate) fn stamp(&mut self, id: u16) {
        self.frame[self.message..][..2].copy_from_slice(&id.to_be_bytes());
    }

    /// The name that is asked for, in wire format.
    pub(crate) fn name_mut(&mut self) -> &mut [u8] {
        &mut self.frame[self.message + HEADER..self.end - 4]
    }

    /// Reads a reply, all of which must be as it has to be but for its records.
    pub(crate) fn read<'r>(&self, reply: &'r [u8]) -> Reply<'r> {
        let query = &self.frame;
        let (ethernet, ip) = reply.split_at(ETHERNET);
        assert_eq!(
            ethernet,
            [&CLIENT_MAC[..], &SERVER_MAC, &query[12..14]].concat(),
            "Ethernet header"
        );
        let udp_at = self.message - UDP;
        let length = reply.len() - udp_at;
        let [high, low] = (length as u16).to_be_bytes();
        if udp_at == ETHERNET + 40 {
            assert_eq!(
                (ip[0], ip[1] & 0xf0),
                (0x60, 0),
                "version and traffic class"
            );
            assert_eq!(ip[4..8], [high, low, 17, 64], "IPv6 header");
        } else {
            let [high, low] = (length as u16 + 20).to_be_bytes();
            assert_eq!(
                ip[..10],
                [0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17],
                "IPv4 header"
            );
            assert_eq!(fold(sum(&ip[..20])), 0xffff, "header checksum");
        }
        let (client, server) =
            query[self.addresses..udp_at].split_at((udp_at - self.addresses) / 2);
        assert_eq!(reply[self.addresses..udp_at], [server, client].concat());
        let udp = &reply[udp_at..self.message];
        assert_eq!(udp[..2], query[udp_at + 2..udp_at + 4], "source port");
        assert_eq!(udp[2..4], query[udp_at..udp_at + 2], "destination port");
        assert_eq!(udp[4..6], [high, low], "UDP length");
        // RFC 768, and RFC 8200, section 8.1: over addresses, protocol and length too. Zero would be "none".
        assert_ne!(udp[6..], [0, 0], "no checksum");
        let checksum = fold(sum(&reply[self.addresses..]) + 17 + length as u64);
        assert_eq!(checksum, 0xffff, "UDP checksum");

        let header = &reply[self.message..][..HEADER];
        assert_eq!(header[..2], query[self.message..][..2], "ID");
        // QR, AA and RD; no RA.
        assert_eq!((header[2], header[3] & 0xf0), (0x85, 0), "flags");
        let count = |at| u16::from_be_bytes([header[at], header[at + 1]]);
        assert_eq!((count(4), count(10)), (1, self.edns.into()), "counts");
        assert_eq!(
            reply[self.message + HEADER..self.end],
            query[self.message + HEADER..self.end],
            "the question as it came"
        );
        let mut records = &reply[self.end..];
        if self.edns {
            records = records.strip_suffix(&OPT).expect("an OPT at the end");
        }
        Reply {
            rcode: header[3] & 0x0f,
            counts: [count(6), count(8)],
            records,
        }
    }

    /// The SOA of a zone whose name takes `zone` bytes, that of this question's name; without its serial.
    fn soa(&self, zone: usize) -> [Vec<u8>; 2] {
        let name = self.end - 4 - self.message;
        let zone = (0xc000 | (name - zone) as u16).to_be_bytes();
        let mut head = zone.to_vec();
        head.extend([0, 6, 0, 1]);
        head.extend(TTL.to_be_bytes());
        head.extend([0, 42]);
        head.extend(b"\x02ns\x03dns");
        head.extend(zone);
        head.extend(b"\x0ahostmaster");
        head.extend(zone);
        let times = [7200, 1800, 86400, TTL].map(u32::to_be_bytes);
        [head, times.concat()]
    }
}

/// What a reply says.
#[derive(Debug)]
pub(crate) struct Reply<'r> {
    rcode: u8,
    /// Of answers, and of the authority section.
    counts: [u16; 2],
    records: &'r [u8],
}

impl Reply<'_> {
    /// Whether it denies the name; `None` if it denies neither name nor type. The SOA must be the zone's, and its serial
    /// neither less than `serial`, which then becomes it, nor in the future.
    pub(crate) fn denies(
        &self,
        query: &Query,
        zone: &Name,
        serial: &mut u32,
        now: u32,
    ) -> Option<bool> {
        if self.counts != [0, 1] {
            return None;
        }
        let [head, times] = query.soa(zone.as_wire().len());
        let (found, rest) = self.records.split_at(head.len());
        let (found_serial, found_times) = rest.split_at(4);
        assert_eq!((found, found_times), (&head[..], &times[..]), "SOA");
        let found = u32::from_be_bytes(found_serial.try_into().expect("4 bytes"));
        assert!(
            (*serial..=now).contains(&found),
            "serial {found} after {serial}, at {now}"
        );
        *serial = found;
        match self.rcode {
            0 => Some(false),
            3 => Some(true),
            _ => None,
        }
    }
}

/// The records of a set, in all orders in which they may be given.
pub(crate) struct Ring {
    /// The records in their order, twice.
    twice: Vec<u8>,
    /// Bytes of one.
    record: usize,
    count: u16,
}

impl Ring {
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        let mut once = Vec::new();
        for &address in addresses {
            let data = octets(address);
            let qtype = if address.is_ipv6() { TYPE_AAAA } else { TYPE_A };
            once.extend([0xc0, HEADER as u8]);
            once.extend(qtype.to_be_bytes());
            once.extend([0, 1]);
            once.extend(TTL.to_be_bytes());
            once.extend((data.len() as u16).to_be_bytes());
            once.extend(data);
        }
        Self {
            record: once.len() / addresses.len(),
            count: addresses.len() as u16,
            twice: once.repeat(2),
        }
    }

    /// Whether the reply holds all of the set, each once, and nothing else.
    pub(crate) fn is_given(&self, reply: &Reply<'_>) -> bool {
        let length = self.twice.len() / 2;
        (reply.rcode, reply.counts) == (0, [self.count, 0])
            && reply.records.len() == length
            && self.twice[..length]
                .chunks(self.record)
                .position(|record| reply.records.starts_with(record))
                .is_some_and(|first| self.twice[first * self.record..][..length] == *reply.records)
    }
}

/// The sum of 16-bit words (RFC 1071), taken in larger pieces.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let add = |sum, word: &[u8; 8]| {
        let word = u64::from_be_bytes(*word);
        sum + (word >> 32) + (word & 0xffff_ffff)
    };
    words.iter().fold(add(0, &last), add)
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
