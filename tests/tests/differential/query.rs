//! Queries as they come in on a wire, whole frames of them, sound or with a fault.

use std::net::IpAddr;

use fastrand::Rng;

/// The interface's own address.
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const SERVICE_VLAN: u16 = 0x88a8;
pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_TXT: u16 = 16;
pub(crate) const TYPE_AAAA: u16 = 28;
/// Type, class and TTL stand before the length of an OPT's options, after its owner, the root.
const TYPE_OPT: u16 = 41;

/// One query, part by part. [`Query::frame`] puts them together, whatever they are.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) destination_mac: [u8; 6],
    pub(crate) source_mac: [u8; 6],
    /// Types of the tags, the outermost first.
    pub(crate) tags: Vec<u16>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) udp_checksum: u16,
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// Of the four sections.
    pub(crate) counts: [u16; 4],
    /// In wire format, root label included.
    pub(crate) name: Vec<u8>,
    pub(crate) query_type: u16,
    pub(crate) class: u16,
    pub(crate) opt: Option<Opt>,
    /// What follows the last record within the datagram.
    pub(crate) rest: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Opt {
    pub(crate) payload_size: u16,
    pub(crate) version: u8,
    /// DO and the bits after it.
    pub(crate) flags: u16,
    pub(crate) options: Vec<u8>,
}

impl Opt {
    /// That of a client which takes what never needs a fragment, and nothing more.
    pub(crate) const PLAIN: Self = Self {
        payload_size: 1232,
        version: 0,
        flags: 0,
        options: Vec::new(),
    };

    fn random(rng: &mut Rng) -> Self {
        let mut options = Vec::new();
        let (count, longest) = match rng.u8(..20) {
            0 => (64, 0),
            1 => (rng.usize(1..=3), 600),
            2..10 => (rng.usize(1..=6), 40),
            _ => (0, 0),
        };
        for _ in 0..count {
            let length = rng.usize(..=longest);
            let data = bytes(rng, length);
            options.extend(option(rng.u16(..), &data));
        }
        let sizes = [0, 512, 1232, 1400, 4096, u16::MAX, rng.u16(512..1232)];
        let flags = [0, 0x8000, rng.u16(..)];
        let flags = one_of(rng, &flags);
        Self {
            payload_size: one_of(rng, &sizes),
            version: 0,
            flags,
            options,
        }
    }
}

impl Query {
    /// A sound query for a name, which is asked in mixed case.
    pub(crate) fn random(rng: &mut Rng, name: &[u8], server: (IpAddr, u16)) -> Self {
        let (destination, destination_port) = server;
        let mut source_mac = [0; 6];
        rng.fill(&mut source_mac);
        source_mac[0] &= !1;
        let source = match destination {
            IpAddr::V6(_) => {
                let mut source = [0; 16];
                rng.fill(&mut source);
                source[0] = 0x20 | source[0] & 0x1f;
                IpAddr::from(source)
            }
            IpAddr::V4(_) => IpAddr::from([10, rng.u8(..), rng.u8(..), rng.u8(..)]),
        };
        let tags = (0..rng.usize(..=2))
            .map(|_| one_of(rng, &[VLAN, SERVICE_VLAN]))
            .collect();
        let opt = rng.bool().then(|| Opt::random(rng));
        let mixed = |byte: &u8| match byte {
            b'a'..=b'z' if rng.bool() => byte.to_ascii_uppercase(),
            _ => *byte,
        };
        let name = name.iter().map(mixed).collect();
        Self {
            destination_mac: MAC,
            source_mac,
            tags,
            source,
            destination,
            source_port: rng.u16(1..),
            destination_port,
            udp_checksum: rng.u16(1..),
            id: rng.u16(..),
            // RD, AD, CD and Z; a client may set RA, AA and an rcode, which mean nothing in a query.
            flags: if rng.u8(..8) == 0 {
                rng.u16(..) & 0x05ff
            } else {
                rng.u16(..) & 0x0130
            },
            counts: [1, 0, 0, opt.is_some().into()],
            name,
            query_type: one_of(rng, &[TYPE_A, TYPE_AAAA]),
            class: 1,
            opt,
            rest: Vec::new(),
        }
    }

    /// Where the IP header begins.
    pub(crate) fn ip(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the UDP header begins.
    pub(crate) fn udp(&self) -> usize {
        self.ip() + if self.source.is_ipv6() { 40 } else { 20 }
    }

    /// The DNS message.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        for field in [self.id, self.flags].iter().chain(&self.counts) {
            message.extend(field.to_be_bytes());
        }
        message.extend(&self.name);
        message.extend(self.query_type.to_be_bytes());
        message.extend(self.class.to_be_bytes());
        if let Some(opt) = &self.opt {
            message.push(0);
            message.extend(TYPE_OPT.to_be_bytes());
            message.extend(opt.payload_size.to_be_bytes());
            message.extend([0, opt.version]);
            message.extend(opt.flags.to_be_bytes());
            message.extend((opt.options.len() as u16).to_be_bytes());
            message.extend(&opt.options);
        }
        message.extend(&self.rest);
        message
    }

    /// The whole frame.
    pub(crate) fn frame(&self, rng: &mut Rng) -> Vec<u8> {
        let message = self.message();
        let length = (8 + message.len()) as u16;
        let mut frame = [self.destination_mac, self.source_mac].concat();
        for &tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend(bytes(rng, 2));
        }
        match (self.source, self.destination) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame.extend([0x86, 0xdd, 0x60 | rng.u8(..16)]);
                frame.extend(bytes(rng, 3));
                frame.extend(length.to_be_bytes());
                frame.extend([17, rng.u8(1..)]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame.extend([0x08, 0x00, 0x45, rng.u8(..)]);
                frame.extend((length + 20).to_be_bytes());
                frame.extend(bytes(rng, 2));
                frame.extend([one_of(rng, &[0, 0x40, 0x80]), 0, rng.u8(1..), 17, 0, 0]);
                frame.extend(source.octets());
                frame.extend(destination.octets());
            }
            _ => panic!("both ends are of one family"),
        }
        frame.extend(self.source_port.to_be_bytes());
        frame.extend(self.destination_port.to_be_bytes());
        frame.extend(length.to_be_bytes());
        frame.extend(self.udp_checksum.to_be_bytes());
        frame.extend(message);
        if self.source.is_ipv4() {
            mend_header(&mut frame, self.ip());
        }
        // What a sender adds to the least length of a frame: nothing, zeros, or whatever it finds (RFC 1042).
        let least = 60 + 4 * rng.usize(..=2);
        if frame.len() < least && rng.bool() {
            let padding = bytes(rng, least - frame.len());
            frame.extend(padding);
        }
        frame
    }
}

/// An EDNS option.
pub(crate) fn option(code: u16, data: &[u8]) -> Vec<u8> {
    let header = [code, data.len() as u16].map(u16::to_be_bytes);
    [header.as_flattened(), data].concat()
}

/// Computes the checksum of the IPv4 header at `ip`, as far as the frame has one.
pub(crate) fn mend_header(frame: &mut [u8], ip: usize) {
    let Some(header) = frame.get_mut(ip..ip + 20) else {
        return;
    };
    header[10..12].fill(0);
    let checksum = !sum(header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The one's complement sum of 16-bit words (RFC 1071), the plain way.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Labels of any bytes but zero before a name, as many as fit 255 bytes.
pub(crate) fn below(rng: &mut Rng, name: &[u8]) -> Vec<u8> {
    let mut whole = name.to_vec();
    for _ in 0..rng.usize(1..=4) {
        let longest = 63.min(254_usize.saturating_sub(whole.len()));
        if longest == 0 {
            break;
        }
        let length = match rng.u8(..8) {
            0 => longest,
            1 => rng.usize(1..=longest),
            _ => rng.usize(1..=longest.min(12)),
        };
        let plain = rng.u8(..4) != 0;
        let label = (0..length).map(|_| {
            if plain {
                one_of(rng, b"abcdefghijklmnopqrstuvwxyz0123456789-")
            } else {
                rng.u8(1..)
            }
        });
        let mut longer = vec![length as u8];
        longer.extend(label);
        longer.extend(whole);
        whole = longer;
    }
    whole
}

/// Harms a frame: bits, bytes, fields, and its length. What then is wrong with it, nobody knows.
pub(crate) fn mutate(rng: &mut Rng, frame: &mut Vec<u8>, ip: usize) {
    for _ in 0..rng.usize(1..=4) {
        // Most of what is decided is decided by the first hundred bytes.
        let end = frame.len().min(one_of(rng, &[40, 100, 4000]));
        let at = rng.usize(..end);
        match rng.u8(..12) {
            0..6 => frame[at] ^= 1 << rng.u8(..8),
            6 | 7 => frame[at] = rng.u8(..),
            8 => {
                let fields = [0, 1, 0xff, 0xffff, rng.u16(..), frame.len() as u16];
                let field = one_of(rng, &fields).to_be_bytes();
                for (byte, value) in frame[at..].iter_mut().zip(field) {
                    *byte = value;
                }
            }
            9 => frame.truncate(rng.usize(14..=frame.len())),
            10 => {
                let more = rng.usize(1..=40);
                frame.extend(bytes(rng, more));
            }
            _ => frame[at..].rotate_left(1),
        }
    }
    if rng.bool() && frame.get(ip).is_some_and(|byte| byte >> 4 == 4) {
        mend_header(frame, ip);
    }
}

pub(crate) fn one_of<T: Copy>(rng: &mut Rng, choice: &[T]) -> T {
    choice[rng.usize(..choice.len())]
}

pub(crate) fn bytes(rng: &mut Rng, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes
}
