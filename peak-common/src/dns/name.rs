//! The name of a question.

use crate::{
    abi::{Control, NAME_WORDS, Zone},
    hash,
    net::checksum,
    packet::Packet,
};

/// Longest label (RFC 1035, section 2.3.4); greater values in its place are pointers, or nobody's.
const MAX_LABEL: usize = 63;
/// Most labels of a name of 255 bytes.
const MAX_LABELS: usize = 127;

/// A name in a packet, as far as one walk over its words tells.
///
/// Its end is the first zero byte. For a plain sequence of labels without zero bytes in them, that is its root
/// label. Any other name differs from every stored one; where nothing is found, [`labels`] tells.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// Where it begins in the frame.
    pub start: usize,
    /// Bytes, the root label included: 1 to 255.
    pub length: usize,
    /// Its hash; see [`crate::hash`].
    pub hash: u64,
    /// The sum of its words, for a checksum.
    pub sum: u64,
}

/// The bytes of the last word of a name that stand before its `length`-th: the root label's zero.
#[inline(always)]
const fn keep_before_root(length: usize) -> u64 {
    (1 << (((length - 1) & 7) * 8)) - 1
}

impl Name {
    /// Walks the name at `start`: finds its end, folds, hashes and sums it, eight bytes a step.
    ///
    /// `None` if it does not end within 255 bytes, or the frame.
    #[inline(always)]
    pub fn scan<P: Packet>(packet: &P, start: usize, control: &Control) -> Option<Self> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let mut hash = 0;
        let mut sum = 0;
        for i in 0..NAME_WORDS {
            let word = packet.word(start + 8 * i)?;
            let keys = (
                control.hash_key[2 * i].load(),
                control.hash_key[2 * i + 1].load(),
            );
            // The highest bits of bytes that are zero; above the lowest of them, also others.
            let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
            if zeros == 0 {
                hash = hash::add_word(hash, word, u64::MAX, keys);
                sum = checksum::add(sum, word);
                continue;
            }
            let lowest = zeros.isolate_lowest_one();
            let keep = (lowest >> 7) - 1;
            let before = ((keep & ONES).wrapping_mul(ONES) >> 56) as usize;
            if keep != 0 {
                hash = hash::add_word(hash, word, keep, keys);
                sum = checksum::add(sum, word & keep);
            }
            // One of 255 lengths, and the verifier shall not follow each.
            let length = packet.opaque(8 * i + before + 1) & 0xff;
            return if length == 0 {
                None
            } else {
                Some(Self {
                    start,
                    length,
                    hash,
                    sum,
                })
            };
        }
        None
    }

    /// Whether `stored`, lower-case words in wire format padded with zeros, is this name without
    /// regard to case (RFC 4343).
    #[inline(always)]
    pub fn matches<P: Packet>(
        &self,
        packet: &P,
        mut stored: impl FnMut(usize) -> Option<u64>,
    ) -> bool {
        for i in 0..NAME_WORDS {
            if 8 * i >= self.length {
                break;
            }
            let (Some(word), Some(stored)) = (packet.word(self.start + 8 * i), stored(i)) else {
                return false;
            };
            let last = 8 * (i + 1) >= self.length;
            let word = if last {
                word & keep_before_root(self.length)
            } else {
                word
            };
            if word | hash::letters(stored) != stored {
                return false;
            }
        }
        true
    }

    /// The closest of the zones that this name is in, unless its labels say otherwise ([`labels`]).
    #[inline(always)]
    pub fn zone<'c, P: Packet>(&self, packet: &P, control: &'c Control) -> Option<&'c Zone> {
        let count = control.zone_count.load() as usize;
        for (i, zone) in control.zones.iter().enumerate() {
            if i >= count {
                break;
            }
            if self.ends_with(packet, zone) {
                return Some(zone);
            }
        }
        None
    }

    /// Whether the name's last bytes are the zone's name.
    #[inline(always)]
    fn ends_with<P: Packet>(&self, packet: &P, zone: &Zone) -> bool {
        let length = zone.length.load() as usize;
        if length == 0 || length > self.length {
            return false;
        }
        // The header stands before the name: words may begin up to 7 bytes before it.
        let end = self.start + self.length;
        for i in 0..NAME_WORDS {
            if 8 * i >= length {
                break;
            }
            let Some(word) = packet.word(end.wrapping_sub(8 * (i + 1))) else {
                return false;
            };
            let missing = (8 * (i + 1)).saturating_sub(length);
            let word = word & (u64::MAX << ((8 * missing) & 63));
            let stored = zone.suffix[i].load();
            if word | hash::letters(stored) != stored {
                return false;
            }
        }
        true
    }

    /// Walks the labels. `Some(n)`: a plain sequence of `n` labels that ends with the root where
    /// [`Self::scan`] found it, and one of which begins at `boundary` (bytes from the name's start).
    #[inline(always)]
    pub fn labels<P: Packet>(&self, packet: &P, boundary: usize) -> Option<usize> {
        let mut at = 0;
        let mut found = false;
        for label in 0..=MAX_LABELS {
            found |= at == boundary;
            let length = usize::from(packet.window::<1>(self.start + at)?[0]);
            if length == 0 {
                return if found && at + 1 == self.length {
                    Some(label)
                } else {
                    None
                };
            }
            if length > MAX_LABEL {
                return None;
            }
            at += length + 1;
            if at >= self.length {
                return None;
            }
        }
        None
    }

    /// This name without its first `labels` labels, scanned anew.
    #[inline(always)]
    pub fn parent<P: Packet>(&self, packet: &P, labels: usize, control: &Control) -> Option<Self> {
        let mut at = 0;
        for label in 0..=MAX_LABELS {
            if label >= labels {
                break;
            }
            at += usize::from(packet.window::<1>(self.start + at)?[0]) + 1;
            if at >= self.length {
                return None;
            }
        }
        Self::scan(packet, self.start + (packet.opaque(at) & 0xff), control)
    }
}
