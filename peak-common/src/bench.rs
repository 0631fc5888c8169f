//! What the benchmarks' programs and their driver share.

use crate::verdict::PassReason;

/// Bytes of the longest frame; a power of two.
pub const FRAME: usize = 512;
/// Bytes of the yardstick's key.
pub const KEY: usize = 64;

/// Bytes of the names that are looked up in the kernel's hash map, and by what knows the frame beforehand.
pub const NAME: usize = 40;
/// Where they begin: after Ethernet, IPv6, UDP and the message's header.
pub const NAME_AT: usize = 14 + 40 + 8 + 12;
/// Bytes of such a query's frame: type and class follow the name.
pub const QUERY: usize = NAME_AT + NAME + 4;
/// Bytes of the AAAA record of an answer.
pub const RECORD: usize = 28;

/// How packets are counted that were taken as far as a stage, and no further.
pub const STOPPED: PassReason = PassReason::Disabled;

/// A query, and what of it varies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// Bytes of the frame.
    pub length: u32,
    /// Where the eight digits stand that each run draws anew: an offset into the frame.
    pub varied: u32,
    /// How many numbers there are to draw from.
    pub names: u32,
    /// State of the generator that draws; not 0.
    pub random: u32,
    /// Not 0: the frame lies at its buffer's end, so that it is restored, and grows, at its head.
    pub by_head: u32,
    /// Spelled-out padding.
    pub reserved: u32,
    /// The frame.
    pub frame: [u8; FRAME],
}

impl Template {
    /// Draws a number below [`Self::names`], each as likely as any other, and gives its eight decimal digits.
    #[inline(always)]
    pub const fn draw(&mut self) -> u64 {
        // Marsaglia, "Xorshift RNGs" (2003): every number but 0 comes once in 2³² − 1 draws.
        let mut random = self.random;
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random = random;
        digits(self.drawn())
    }

    /// The number that was drawn last.
    #[inline(always)]
    #[must_use]
    pub const fn drawn(&self) -> u32 {
        ((self.random as u64 * self.names as u64) >> 32) as u32
    }
}

/// Eight decimal digits of a number, the first one in the lowest byte.
///
/// Halves, then their halves: all quotients of a step by one multiplication with the divisor's inverse, rounded up.
#[inline(always)]
#[must_use]
pub const fn digits(number: u32) -> u64 {
    let (high, low) = (number as u64 / 10_000, number as u64 % 10_000);
    let fours = high | low << 32;
    let high = ((fours * 10_486) >> 20) & 0x7f_0000_007f;
    let twos = high | (fours - 100 * high) << 16;
    let high = ((twos * 103) >> 10) & 0x000f_000f_000f_000f;
    let ones = high | (twos - 10 * high) << 8;
    ones | 0x3030_3030_3030_3030
}

#[cfg(test)]
mod tests {
    use std::format;

    use super::digits;

    #[test]
    fn digits_are_those_of_the_number() {
        for number in (0..100_000_000).step_by(9_973).chain([99_999_999, 1 << 20]) {
            assert_eq!(
                digits(number).to_le_bytes(),
                *format!("{number:08}").as_bytes()
            );
        }
    }
}
