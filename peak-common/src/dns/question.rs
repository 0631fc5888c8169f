//! What follows a question's name (RFC 1035, section 4.1.2).

use crate::{
    net::checksum::Sum,
    packet::Packet,
    verdict::{PassReason, QueryType},
};

/// Bytes of type and class.
pub const TYPE_AND_CLASS: usize = 4;

/// Type A.
pub const TYPE_A: u16 = 1;
/// Type SOA.
pub const TYPE_SOA: u16 = 6;
/// Type AAAA (RFC 3596).
pub const TYPE_AAAA: u16 = 28;
/// Class IN.
pub const CLASS_IN: u16 = 1;

/// Reads type and class at `offset`.
///
/// # Errors
/// [`PassReason::Truncated`], [`PassReason::Class`], [`PassReason::Type`].
#[inline(always)]
pub fn read_type<P: Packet>(packet: &P, offset: usize) -> Result<QueryType, PassReason> {
    let bytes = packet
        .window::<TYPE_AND_CLASS>(offset)
        .ok_or(PassReason::Truncated)?;
    if u16::from_be_bytes([bytes[2], bytes[3]]) != CLASS_IN {
        return Err(PassReason::Class);
    }
    match u16::from_be_bytes([bytes[0], bytes[1]]) {
        TYPE_AAAA => Ok(QueryType::Aaaa),
        TYPE_A => Ok(QueryType::A),
        _ => Err(PassReason::Type),
    }
}

/// The sum of what follows the name of a question of this type, in class IN.
#[inline(always)]
#[must_use]
pub const fn type_sum(query_type: QueryType) -> Sum {
    let record_type = match query_type {
        QueryType::Aaaa => TYPE_AAAA,
        QueryType::A => TYPE_A,
    };
    Sum::ZERO.with((record_type.to_be() as u64) | (CLASS_IN.to_be() as u64) << 16)
}
