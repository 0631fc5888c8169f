//! IPv6 (RFC 8200) and IPv4 (RFC 791) with UDP (RFC 768): one step, because one bounds check serves both
//! headers.

use network_types::{eth::EtherType, ip::IpProto};

use crate::{
    abi::mapped,
    bytes::{get, put, word},
    net::checksum::Sum,
    packet::Packet,
    verdict::PassReason,
};

/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;
/// Bytes of an IPv6 header.
pub const IPV6_HEADER: usize = 40;
/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;

const IPV6: u16 = EtherType::Ipv6 as u16;
const IPV4: u16 = EtherType::Ipv4 as u16;
const UDP: u8 = IpProto::Udp as u8;
/// RFC 1340's default, and RFC 8504's advice for what starts here.
const HOP_LIMIT: u8 = 64;

/// The family of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv6.
    V6,
    /// IPv4.
    V4,
}

impl Family {
    /// Bytes of the IP header.
    #[inline(always)]
    #[must_use]
    pub const fn header(self) -> usize {
        match self {
            Self::V6 => IPV6_HEADER,
            Self::V4 => IPV4_HEADER,
        }
    }
}

/// A UDP datagram's addresses and ports.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// The family, hence the header's size.
    pub family: Family,
    /// Source address as two words of network order; IPv4 mapped.
    pub source: [u64; 2],
    /// Destination address, likewise.
    pub destination: [u64; 2],
    /// Source port, in network byte order.
    pub source_port: u16,
    /// Destination port, in network byte order.
    pub destination_port: u16,
    /// Bytes of the UDP header and its payload, as the IP header tells.
    pub length: usize,
    /// Bytes of the same, as the UDP header tells.
    udp_length: usize,
    /// The UDP checksum field.
    udp_checksum: u16,
    /// The IPv4 header's sum, 0xffff if it is right; 0xffff for IPv6.
    header_sum: u16,
}

impl Datagram {
    /// Reads the headers of a packet of `ether_type` (network byte order) at `offset`.
    ///
    /// # Errors
    /// What tells it apart from a plain UDP datagram.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, offset: usize, ether_type: u16) -> Result<Self, PassReason> {
        match ether_type {
            IPV6 => Self::read_v6(packet, offset),
            IPV4 => Self::read_v4(packet, offset),
            _ => Err(PassReason::NotIp),
        }
    }

    #[inline(always)]
    fn read_v6<P: Packet>(packet: &P, offset: usize) -> Result<Self, PassReason> {
        const LENGTH: usize = IPV6_HEADER + UDP_HEADER;
        let bytes = packet
            .window::<LENGTH>(offset)
            .ok_or(PassReason::Truncated)?;
        if bytes[0] >> 4 != 6 {
            return Err(PassReason::BadHeader);
        }
        if bytes[6] != UDP {
            return Err(PassReason::NotUdp);
        }
        Ok(Self {
            family: Family::V6,
            source: [word(bytes, 8), word(bytes, 16)],
            destination: [word(bytes, 24), word(bytes, 32)],
            source_port: half(bytes, IPV6_HEADER),
            destination_port: half(bytes, IPV6_HEADER + 2),
            length: half(bytes, 4).to_be() as usize,
            udp_length: half(bytes, IPV6_HEADER + 4).to_be() as usize,
            udp_checksum: half(bytes, IPV6_HEADER + 6),
            header_sum: 0xffff,
        })
    }

    #[inline(always)]
    fn read_v4<P: Packet>(packet: &P, offset: usize) -> Result<Self, PassReason> {
        const LENGTH: usize = IPV4_HEADER + UDP_HEADER;
        let bytes = packet
            .window::<LENGTH>(offset)
            .ok_or(PassReason::Truncated)?;
        if bytes[0] >> 4 != 4 {
            return Err(PassReason::BadHeader);
        }
        if bytes[9] != UDP {
            return Err(PassReason::NotUdp);
        }
        if bytes[0] & 0xf != 5 {
            return Err(PassReason::IpOptions);
        }
        // More fragments follow, or this is a later one; the other two flags say nothing of that.
        if half(bytes, 6) & 0x3fff_u16.to_be() != 0 {
            return Err(PassReason::Fragment);
        }
        let sum = Sum::ZERO.with(word(bytes, 0)).with(word(bytes, 8));
        Ok(Self {
            family: Family::V4,
            source: mapped([bytes[12], bytes[13], bytes[14], bytes[15]]),
            destination: mapped([bytes[16], bytes[17], bytes[18], bytes[19]]),
            source_port: half(bytes, IPV4_HEADER),
            destination_port: half(bytes, IPV4_HEADER + 2),
            // Shorter than its header: no UDP length equals what the subtraction gives.
            length: (half(bytes, 2).to_be() as usize).wrapping_sub(IPV4_HEADER) & 0x1_ffff,
            udp_length: half(bytes, IPV4_HEADER + 4).to_be() as usize,
            udp_checksum: half(bytes, IPV4_HEADER + 6),
            header_sum: sum.with(word(bytes, 12) >> 32).fold(),
        })
    }

    /// Checks what the stack would drop the packet for.
    ///
    /// # Errors
    /// [`PassReason::BadHeader`], so that the stack does just that, and counts it.
    #[inline(always)]
    pub fn check_headers(&self) -> Result<(), PassReason> {
        // RFC 1122, section 3.2.1.2: a datagram with a wrong header checksum is discarded.
        let header_is_right = self.header_sum == 0xffff;
        let lengths_agree = self.udp_length == self.length && self.length >= UDP_HEADER;
        // RFC 8200, section 8.1: over IPv6, UDP without a checksum is discarded.
        let has_checksum = self.family == Family::V4 || self.udp_checksum != 0;
        if header_is_right && lengths_agree && has_checksum {
            Ok(())
        } else {
            Err(PassReason::BadHeader)
        }
    }

    /// Checks that the source is one that an answer can be sent to.
    ///
    /// # Errors
    /// [`PassReason::Source`].
    #[inline(always)]
    pub fn check_source(&self) -> Result<(), PassReason> {
        let [upper, lower] = self.source;
        let answerable = self.source_port != 0
            && match self.family {
                // RFC 4291, sections 2.5.2, 2.5.3, 2.7: unspecified, loopback, multicast. Mapped and compatible
                // IPv4 addresses never stand on a wire either (RFC 4942, section 2.2.2): upper 64 bits zero.
                Family::V6 => upper != 0 && upper as u8 != 0xff,
                // RFC 1122, section 3.2.1.3: "this" network, loopback, multicast and beyond.
                Family::V4 => {
                    let first = (lower >> 32) as u8;
                    first != 0 && first != 127 && first < 224
                }
            };
        if answerable {
            Ok(())
        } else {
            Err(PassReason::Source)
        }
    }
}

/// Turns the query's IP and UDP headers at `offset` into its answer's.
///
/// `length` is the bytes of UDP header and payload, `payload_sum` the sum of the payload's words. `None` where the
/// frame ends before.
#[inline(always)]
pub fn turn<P: Packet>(
    packet: &mut P,
    offset: usize,
    family: Family,
    length: usize,
    payload_sum: Sum,
) -> Option<()> {
    let udp_length = (length as u16).to_be();
    // Pseudo-header and UDP header (RFC 8200, section 8.1; RFC 768), but for addresses and ports.
    let sum = payload_sum.with_half(2 * u64::from(udp_length) + u64::from(u16::from(UDP).to_be()));
    match family {
        Family::V6 => {
            let bytes = packet.window_mut::<{ IPV6_HEADER + UDP_HEADER }>(offset)?;
            let source = [word(bytes, 8), word(bytes, 16)];
            let destination = [word(bytes, 24), word(bytes, 32)];
            let ports = turned_ports(word(bytes, 40));
            let sum = sum.with(source[0]).with(source[1]);
            let sum = sum.with(destination[0]).with(destination[1]);
            let first = (6 << 28 | flow_label(source, destination, ports)).to_be();
            let second = u32::from(udp_length) | u32::from(UDP) << 16 | u32::from(HOP_LIMIT) << 24;
            put(
                bytes,
                0,
                (u64::from(first) | u64::from(second) << 32).to_le_bytes(),
            );
            put(bytes, 8, destination[0].to_le_bytes());
            put(bytes, 16, destination[1].to_le_bytes());
            put(bytes, 24, source[0].to_le_bytes());
            put(bytes, 32, source[1].to_le_bytes());
            put(bytes, 40, udp_header(ports, udp_length, sum).to_le_bytes());
        }
        Family::V4 => {
            let bytes = packet.window_mut::<{ IPV4_HEADER + UDP_HEADER }>(offset)?;
            let addresses = word(bytes, 12).rotate_left(32);
            let ports = turned_ports(word(bytes, 20));
            let total = ((length + IPV4_HEADER) as u16).to_be();
            // RFC 6864, section 4.1: an atomic datagram (DF, no fragment) needs no ID.
            let first = 0x45 | u64::from(total) << 16 | u64::from(0x4000_u16.to_be()) << 48;
            let second = u32::from(HOP_LIMIT) | u32::from(UDP) << 8;
            let header_sum = Sum::ZERO
                .with(u64::from(second))
                .with(first)
                .with(addresses);
            let second = second | u32::from(!header_sum.fold()) << 16;
            put(bytes, 0, first.to_le_bytes());
            put(bytes, 12, addresses.to_le_bytes());
            put(
                bytes,
                8,
                (u64::from(second) | addresses << 32).to_le_bytes(),
            );
            put(
                bytes,
                20,
                udp_header(ports, udp_length, sum.with(addresses)).to_le_bytes(),
            );
        }
    }
    Some(())
}

/// Source and destination port of a UDP header's word, exchanged.
#[inline(always)]
const fn turned_ports(udp: u64) -> u32 {
    (udp as u32).rotate_left(16)
}

/// The UDP header as a word. `sum` lacks the ports.
#[inline(always)]
const fn udp_header(ports: u32, length: u16, sum: Sum) -> u64 {
    // Computed in full: a local sender leaves the checksum of its query partial. Zero would mean that there is
    // none, and is sent as its other representation (RFC 768).
    let checksum = match !sum.with_half(ports as u64).fold() {
        0 => 0xffff,
        checksum => checksum,
    };
    ports as u64 | (length as u64) << 32 | (checksum as u64) << 48
}

/// A label for the flow of the replies (RFC 6437, section 3): the same for one flow, and flows spread over
/// all values.
#[inline(always)]
const fn flow_label(source: [u64; 2], destination: [u64; 2], ports: u32) -> u32 {
    let mixed = source[0] ^ source[1].rotate_left(17) ^ destination[1] ^ ((ports as u64) << 24);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as u32
}

/// The 2 bytes from `at`, in the order of the packet.
#[inline(always)]
fn half<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_ne_bytes(get(bytes, at))
}
