//! What the kernel's own load generator shares with who drives it.

use crate::bench::{FRAME, NAME_AT, digits};

/// Where the UDP checksum of an IPv6 query stands, the message's ID after it, and the eight digits of the name, after the
/// first label's length and three letters: all of them at even distances from the UDP header.
pub const CHECKSUM_AT: usize = 14 + 40 + 6;
/// The message's ID.
pub const ID_AT: usize = 14 + 40 + 8;
/// The digits.
pub const DIGITS_AT: usize = NAME_AT + 4;
/// How many frames may go out at once where the pace was not kept: fewer than a veth end holds (256).
pub const BURST: u64 = 64;
/// Of how many answers one goes on to the stack, to be looked at; a power of two.
pub const PASSED_ONE_IN: u64 = 512;

const SECOND: u64 = 1_000_000_000;

/// A query, and how fast it is asked.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Generator {
    /// Frames a second; 0: as fast as it goes.
    pub rate: u64,
    /// Until when frames were granted, nanoseconds of the kernel's monotonic clock; 0: not begun.
    pub granted_until: u64,
    /// Frames that may be sent now.
    pub credit: u64,
    /// Frames sent.
    pub sent: u64,
    /// How often it was too early for another.
    pub early: u64,
    /// What the checksum covers but the ID and the digits, in native words of 16 bits, summed.
    pub sum: u64,
    /// How many numbers there are to draw from.
    pub names: u32,
    /// State of the generator that draws; not 0.
    pub random: u32,
    /// Bytes of the frame.
    pub length: u64,
    /// The frame.
    pub frame: [u8; FRAME],
}

/// What arrived at the client's end.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Responses over IPv6 with one answer, no error, from the port of DNS.
    pub answers: u64,
    /// Other responses from there.
    pub others: u64,
}

/// What of a frame varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varied {
    /// The ID, as it stands in the frame.
    pub id: [u8; 2],
    /// The digits.
    pub digits: [u8; 8],
    /// The UDP checksum of a frame with both (RFC 768; RFC 8200, section 8.1).
    pub checksum: [u8; 2],
}

impl Generator {
    /// Whether a frame may be sent now. `clock` is only asked where it matters.
    #[inline(always)]
    pub fn grant(&mut self, clock: impl FnOnce() -> u64) -> bool {
        if self.rate != 0 {
            if self.credit == 0 {
                let now = clock();
                if self.granted_until == 0 {
                    self.granted_until = now;
                }
                let due = now.saturating_sub(self.granted_until) * self.rate / SECOND;
                if due == 0 {
                    self.early += 1;
                    return false;
                }
                if due > BURST {
                    // What is more was due while something else ran here. It is not sent: nobody would send so many at once.
                    self.credit = BURST;
                    self.granted_until = now;
                } else {
                    self.credit = due;
                    self.granted_until += due * SECOND / self.rate;
                }
            }
            self.credit -= 1;
        }
        self.sent += 1;
        true
    }

    /// Draws the next name.
    #[inline(always)]
    pub const fn draw(&mut self) -> Varied {
        // Marsaglia, "Xorshift RNGs" (2003).
        let mut random = self.random;
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        self.random = random;
        let number = ((random as u64 * self.names as u64) >> 32) as u32;
        let (id, digits) = (Self::id(number), digits(number));
        let mut sum = self.sum + id as u64 + (digits & 0xffff_ffff) + (digits >> 32);
        // To 16 bits: no more than 34 before.
        sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let checksum = match !(sum as u16) {
            // None would be 0.
            0 => 0xffff,
            checksum => checksum,
        };
        Varied {
            id: id.to_ne_bytes(),
            digits: digits.to_ne_bytes(),
            checksum: checksum.to_ne_bytes(),
        }
    }

    /// The ID of the query for a name, as a native word: a reply is to have that of the name it is about.
    #[inline(always)]
    #[must_use]
    pub const fn id(number: u32) -> u16 {
        number as u16 ^ 0x5a5a
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generator(rate: u64) -> Generator {
        Generator {
            rate,
            granted_until: 0,
            credit: 0,
            sent: 0,
            early: 0,
            sum: 0,
            names: 1000,
            random: 1,
            length: 100,
            frame: [0; FRAME],
        }
    }

    #[test]
    fn the_pace_is_kept() {
        for rate in [1_000, 333_333, 5_000_000] {
            let mut generator = generator(rate);
            // Asked each 50 ns for 10 ms.
            for i in 0..200_000_u64 {
                generator.grant(|| SECOND + i * 50);
            }
            let wanted = rate / 100;
            assert!(
                generator.sent.abs_diff(wanted) <= wanted / 100 + 1,
                "{} of {wanted}",
                generator.sent
            );
        }
    }

    #[test]
    fn after_a_pause_there_is_one_burst() {
        let mut generator = generator(1_000_000);
        assert!(!generator.grant(|| SECOND));
        let granted = |generator: &mut Generator, now| {
            (0..1000).filter(|_| generator.grant(|| now)).count() as u64
        };
        assert_eq!(granted(&mut generator, 2 * SECOND), BURST);
        assert_eq!(granted(&mut generator, 2 * SECOND + 10_000), 10);
    }

    #[test]
    fn without_a_pace_all_is_granted_and_no_clock_read() {
        let mut generator = generator(0);
        assert!((0..1000).all(|_| generator.grant(|| unreachable!())));
        assert_eq!(generator.sent, 1000);
    }
}
