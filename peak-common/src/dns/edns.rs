//! EDNS(0) (RFC 6891).

use crate::{packet::Packet, verdict::PassReason};

/// Bytes of an OPT record without options.
pub const OPT: usize = 11;
/// The greatest payload that never needs a fragment: what we say we take, and at most send.
pub const PAYLOAD_SIZE: usize = 1232;
/// What a client without EDNS takes (RFC 1035, section 4.2.1).
pub const PLAIN_PAYLOAD_SIZE: usize = 512;
/// Options that are walked; a query with more is left to the fallback.
const MAX_OPTIONS: usize = 64;
const TYPE_OPT: u16 = 41;
const OPTION_HEADER: usize = 4;

/// A query's OPT record.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    payload_size: u16,
    dnssec_ok: u8,
}

impl Opt {
    /// What a query without OPT amounts to.
    pub const ABSENT: Self = Self {
        payload_size: PLAIN_PAYLOAD_SIZE as u16,
        dnssec_ok: 0,
    };

    /// Reads the message's last record, from `offset` to `end`.
    ///
    /// # Errors
    /// What only the fallback has an answer for.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, offset: usize, end: usize) -> Result<Self, PassReason> {
        let bytes = packet.window::<OPT>(offset).ok_or(PassReason::Truncated)?;
        // RFC 6891, section 6.1.2: the owner is the root.
        if bytes[0] != 0 || u16::from_be_bytes([bytes[1], bytes[2]]) != TYPE_OPT {
            return Err(PassReason::Sections);
        }
        // RFC 6891, section 6.1.3: other versions are answered with BADVERS.
        if bytes[6] != 0 {
            return Err(PassReason::Edns);
        }
        let options = offset + OPT;
        let options_end = options + usize::from(u16::from_be_bytes([bytes[9], bytes[10]]));
        if options_end != end {
            let reason = if options_end < end {
                PassReason::Leftover
            } else {
                PassReason::Truncated
            };
            return Err(reason);
        }
        let opt = Self {
            payload_size: u16::from_be_bytes([bytes[3], bytes[4]]),
            dnssec_ok: bytes[7] & 0x80,
        };
        // Options that we do not act on are ignored (RFC 6891, section 6.1.2), as long as they are well-formed.
        let mut at = options;
        for _ in 0..MAX_OPTIONS {
            if at == end {
                return Ok(opt);
            }
            let header = packet.window::<OPTION_HEADER>(at).ok_or(PassReason::Edns)?;
            at += OPTION_HEADER + usize::from(u16::from_be_bytes([header[2], header[3]]));
            if at > end {
                return Err(PassReason::Edns);
            }
        }
        if at == end {
            Ok(opt)
        } else {
            Err(PassReason::Edns)
        }
    }

    /// The largest message that the client takes, in bytes. RFC 6891, section 6.2.3: less than 512 counts as 512.
    #[inline(always)]
    #[must_use]
    pub fn payload_size(&self) -> usize {
        usize::from(self.payload_size).max(PLAIN_PAYLOAD_SIZE)
    }

    /// The DO bit (RFC 3225, section 3) where [`reply`] wants it.
    #[inline(always)]
    #[must_use]
    pub const fn dnssec_ok(&self) -> u64 {
        (self.dnssec_ok as u64) << 56
    }
}

/// Our OPT, the first byte of its 8 lowest; 3 zeros follow. Version 0, no options, DO as the query had it.
#[inline(always)]
#[must_use]
pub const fn reply(dnssec_ok: u64) -> u64 {
    let [t0, t1] = TYPE_OPT.to_be_bytes();
    let [p0, p1] = (PAYLOAD_SIZE as u16).to_be_bytes();
    u64::from_le_bytes([0, t0, t1, p0, p1, 0, 0, 0]) | dnssec_ok
}
