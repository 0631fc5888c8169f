//! The Internet checksum (RFC 1071).
//!
//! One's-complement sums do not depend on byte order as long as bytes keep their parity, so words are added
//! as they are loaded, and the result is stored as it is.

/// A sum of words of eight bytes, of 2³¹ at most.
///
/// BPF has no carry. So what is kept is the sum of the words modulo 2⁶⁴ and that of their upper halves, which is enough to
/// tell the sum of the lower ones when all are added.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    words: u64,
    upper: u64,
}

impl Sum {
    /// Of no words.
    pub const ZERO: Self = Self { words: 0, upper: 0 };

    /// With one word more.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, word: u64) -> Self {
        self.with_halves(word, word >> 32)
    }

    /// With one word more whose upper half is zero.
    #[inline(always)]
    #[must_use]
    pub const fn with_half(self, half: u64) -> Self {
        self.with_halves(half, 0)
    }

    /// The same as [`Self::with`], where the word's upper half, `word >> 32`, is at hand.
    #[inline(always)]
    #[must_use]
    pub const fn with_halves(self, word: u64, upper: u64) -> Self {
        if cfg!(feature = "no-checksum") {
            return self;
        }
        Self {
            words: self.words.wrapping_add(word),
            upper: self.upper.wrapping_add(upper),
        }
    }

    /// With all words of another.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        self.with_halves(other.words, other.upper)
    }

    /// The sum of both halves of all words: not yet folded.
    #[inline(always)]
    #[must_use]
    pub const fn total(self) -> u64 {
        let lower = self.words.wrapping_sub(self.upper << 32);
        lower.wrapping_add(self.upper)
    }

    /// What the sum is when its first byte stands at an odd offset (RFC 1071, section 2 (B)).
    #[inline(always)]
    #[must_use]
    pub const fn at_odd_offset(self) -> Self {
        Self::ZERO.with(self.fold().swap_bytes() as u64)
    }

    /// The 16 bits of the sum: carries come in again from below.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = self.total();
        let sum = (sum & 0xffff_ffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }
}
