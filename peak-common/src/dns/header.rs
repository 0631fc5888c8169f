//! The header (RFC 1035, section 4.1.1).

use crate::{net::checksum::Sum, packet::Packet, verdict::PassReason};

/// Bytes of a header.
pub const HEADER: usize = 12;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const CD: u16 = 0x0010;

/// NOERROR.
pub const NOERROR: u16 = 0;
/// NXDOMAIN.
pub const NXDOMAIN: u16 = 3;

/// A query's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Whether one additional record follows the question.
    pub additional: bool,
}

impl Header {
    /// Reads a query's header at `offset`.
    ///
    /// # Errors
    /// What tells the message apart from a plain query.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, offset: usize) -> Result<Self, PassReason> {
        let bytes = packet
            .window::<HEADER>(offset)
            .ok_or(PassReason::Truncated)?;
        let flags = u16::from_be_bytes([bytes[2], bytes[3]]);
        if flags & QR != 0 {
            return Err(PassReason::Response);
        }
        if flags & OPCODE != 0 {
            return Err(PassReason::Opcode);
        }
        if flags & TC != 0 {
            return Err(PassReason::Truncated);
        }
        // RFC 9619, section 4: a QUERY carries one question. None at all is RFC 7873's, or nobody's.
        if u16::from_be_bytes([bytes[4], bytes[5]]) != 1 {
            return Err(PassReason::Questions);
        }
        let records = u32::from_be_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]);
        let additional = u16::from_be_bytes([bytes[10], bytes[11]]);
        if records != 0 || additional > 1 {
            return Err(PassReason::Sections);
        }
        Ok(Self {
            additional: additional == 1,
        })
    }
}

/// Turns the query's header at `offset` into its answer's, and adds its words to `sum`.
///
/// RD (RFC 1035) and CD (RFC 4035, section 3.2.2) are copied, everything else is cleared but QR, AA, and
/// RA where `recursion` is available. `None` where the frame ends before.
#[inline(always)]
pub fn turn<P: Packet>(
    packet: &mut P,
    offset: usize,
    recursion: bool,
    rcode: u16,
    counts: Counts,
    sum: Sum,
) -> Option<Sum> {
    let bytes = packet.window_mut::<HEADER>(offset)?;
    let [i0, i1, f0, f1, ..] = *bytes;
    let id = u16::from_le_bytes([i0, i1]);
    let available = if recursion { RA } else { 0 };
    let flags = u16::from_be_bytes([f0, f1]) & (RD | CD) | QR | AA | available | rcode;
    let first = u64::from(id)
        | u64::from(flags.to_be()) << 16
        | u64::from(1_u16.to_be()) << 32
        | u64::from(counts.answers.to_be()) << 48;
    let second = u32::from(u16::from(counts.authority).to_be())
        | u32::from(u16::from(counts.additional).to_be()) << 16;
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..].copy_from_slice(&second.to_le_bytes());
    Some(sum.with(first).with_half(u64::from(second)))
}

/// Records of a reply's sections.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Answers.
    pub answers: u16,
    /// Whether an SOA stands in the authority section.
    pub authority: bool,
    /// Whether an OPT stands in the additional section.
    pub additional: bool,
}
