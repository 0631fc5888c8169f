//! The Internet checksum (RFC 1071).
//!
//! One's-complement sums do not depend on byte order as long as bytes keep their parity, so words are added
//! as they are loaded, and the result is stored as it is.

/// Adds the eight bytes of a word.
#[inline(always)]
#[must_use]
pub const fn add(sum: u64, word: u64) -> u64 {
    sum + (word & 0xffff_ffff) + (word >> 32)
}

/// The 16 bits of a sum: carries come in again from below.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What `sum` counts for when its first byte stands at an odd offset (RFC 1071, section 2 (B)).
#[inline(always)]
#[must_use]
pub const fn at_odd_offset(sum: u64) -> u64 {
    fold(sum).swap_bytes() as u64
}
