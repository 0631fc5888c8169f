//! The name of a question.

use crate::{
    abi::{Control, MAX_ZONES, NAME_WORDS, Zone},
    hash,
    net::checksum::Sum,
    packet::Packet,
    verifier::forget,
};

/// Longest label (RFC 1035, section 2.3.4); greater values in its place are pointers, or nobody's.
const MAX_LABEL: usize = 63;
/// Most labels of a name of 255 bytes.
const MAX_LABELS: usize = 127;

/// Zones that are compared whole, at most.
const CANDIDATES: usize = 2;

impl Zone {
    /// Whether `word`, which ends `8 * i` bytes before a name does, may stand there in the zone's.
    #[inline(always)]
    fn ends(&self, word: u64, i: usize) -> bool {
        const SEVENS: u64 = 0x7f7f_7f7f_7f7f_7f7f;
        let stored = self.suffix[i].load();
        // No byte of a zone's name is zero but the root label, which ends any name: zeros are before its beginning.
        let set = (((stored & SEVENS) + SEVENS) | stored) & !SEVENS;
        let keep = (set >> 7).wrapping_mul(0xff);
        (word & keep) | hash::letters(stored) == stored
    }
}

/// Room for a name, kept by the caller: a BPF stack has none to spare.
///
/// The name begins at byte 8, so that words that end with it may begin up to 7 bytes before it. Within the word
/// that holds its end, zeros follow.
pub struct NameBuffer([u8; NameBuffer::SIZE]);

impl NameBuffer {
    const BEFORE: usize = 8;
    const SIZE: usize = Self::BEFORE + 8 * NAME_WORDS + 8;

    /// An empty one.
    pub const EMPTY: Self = Self([0; Self::SIZE]);

    #[inline(always)]
    fn put(&mut self, i: usize, word: u64) {
        let at = Self::BEFORE + 8 * i;
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// Word `i` of the name.
    #[inline(always)]
    fn word(&self, i: usize) -> u64 {
        self.word_at(Self::BEFORE + 8 * i)
    }

    /// The 8 bytes at `at`, which counts from the buffer's start.
    #[inline(always)]
    fn word_at(&self, at: usize) -> u64 {
        match self.0.get(at..).and_then(|bytes| bytes.first_chunk()) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => 0,
        }
    }

    /// Byte `at` of the name.
    #[inline(always)]
    fn byte(&self, at: usize) -> usize {
        self.0
            .get(Self::BEFORE + at)
            .map_or(0, |&byte| usize::from(byte))
    }
}

/// What one walk over a name's words tells of it.
///
/// Its end is the first zero byte. For a plain sequence of labels without zero bytes in them, that is its root
/// label. Any other name differs from every stored one; where nothing is found, [`Name::labels_below`] tells.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// Bytes, the root label included: 1 to 255.
    pub length: usize,
    /// Its hash; see [`crate::hash`].
    pub hash: u64,
    /// The sum of its words.
    pub sum: Sum,
}

#[inline(always)]
fn keys(control: &Control, i: usize) -> (u64, u64) {
    (
        control.hash_key[2 * i].load(),
        control.hash_key[2 * i + 1].load(),
    )
}

impl Name {
    /// No name at all.
    pub const EMPTY: Self = Self {
        length: 0,
        hash: 0,
        sum: Sum::ZERO,
    };

    /// The same, with its length's bounds for the verifier to see, where it comes from memory.
    #[inline(always)]
    #[must_use]
    pub const fn bounded(self) -> Self {
        Self {
            length: self.length & 0xff,
            ..self
        }
    }

    /// Walks the name at `start` of the packet: copies it, finds its end, folds, hashes and sums it, eight bytes
    /// a step.
    ///
    /// `None` if it does not end within 255 bytes, or the frame.
    #[inline(always)]
    pub fn scan<P: Packet>(
        packet: &P,
        start: usize,
        control: &Control,
        buffer: &mut NameBuffer,
    ) -> Option<Self> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let mut hash = 0;
        let mut sum = Sum::ZERO;
        for i in 0..NAME_WORDS {
            let word = packet.word(start + 8 * i)?;
            // The highest bits of bytes that are zero; above the lowest of them, also others.
            let zeros = word.wrapping_sub(ONES) & !word & HIGHS;
            if zeros == 0 {
                buffer.put(i, word);
                let upper = word >> 32;
                hash = hash::add_word(hash, word, u64::MAX, keys(control, i));
                sum = sum.with_halves(word, upper);
                continue;
            }
            let keep = (zeros.isolate_lowest_one() >> 7) - 1;
            let before = ((keep & ONES).wrapping_mul(ONES) >> 56) as usize;
            buffer.put(i, word & keep);
            if keep != 0 {
                hash = hash::add_word(hash, word, keep, keys(control, i));
                sum = sum.with(word & keep);
            }
            // One of 255 lengths, and the verifier shall not follow each.
            let length = forget(8 * i + before + 1, packet.len() as u64) & 0xff;
            return if length == 0 {
                None
            } else {
                Some(Self { length, hash, sum })
            };
        }
        None
    }

    /// Whether `stored`, lower-case words in wire format padded with zeros, is this name without
    /// regard to case (RFC 4343).
    #[inline(always)]
    pub fn matches(&self, buffer: &NameBuffer, mut stored: impl FnMut(usize) -> u64) -> bool {
        // A copy, because what the verifier learns from comparisons in a loop tells one round's end from another's.
        let length = forget(self.length, self.hash) & 0xff;
        let mut i = 0;
        while 8 * i < length {
            let stored = stored(i);
            if buffer.word(i) | hash::letters(stored) != stored {
                return false;
            }
            i += 1;
        }
        true
    }

    /// The closest of the zones that this name is in, unless its labels say otherwise ([`Self::labels_below`]).
    ///
    /// Zones are told apart by their last 16 bytes first. Where more than two have these in common, the
    /// shorter ones may not be found.
    #[inline(always)]
    pub fn zone<'c>(&self, buffer: &NameBuffer, control: &'c Control) -> Option<&'c Zone> {
        let last = self.word_from_end(buffer, 0);
        let before = self.word_from_end(buffer, 1);
        let mut begin = 0;
        for _ in 0..CANDIDATES {
            let mut candidate = MAX_ZONES;
            for (i, zone) in control.zones.iter().enumerate() {
                if i >= begin && zone.ends(last, 0) && zone.ends(before, 1) {
                    candidate = i;
                    break;
                }
            }
            // Any of them, for all that the verifier shall know.
            let candidate = forget(candidate, self.hash);
            let zone = control.zones.get(candidate)?;
            if self.ends_with(buffer, zone) {
                return Some(zone);
            }
            begin = candidate + 1;
        }
        None
    }

    /// The word that ends `8 * i` bytes before the name does.
    #[inline(always)]
    fn word_from_end(&self, buffer: &NameBuffer, i: usize) -> u64 {
        let end = NameBuffer::BEFORE + self.length;
        buffer.word_at(forget(end.wrapping_sub(8 * (i + 1)), self.hash) & 0x1ff)
    }

    /// Whether the name's last bytes are the zone's name.
    #[inline(always)]
    fn ends_with(&self, buffer: &NameBuffer, zone: &Zone) -> bool {
        let length = zone.length.load() as usize;
        // The first slot without a zone ends the list.
        if length == 0 || length > self.length {
            return false;
        }
        let length = forget(length, self.hash) & 0xff;
        for i in 0..NAME_WORDS {
            if 8 * i >= length {
                break;
            }
            if !zone.ends(self.word_from_end(buffer, i), i) {
                return false;
            }
        }
        true
    }

    /// Walks the labels before `zone`, whose name the last bytes are equal to: how many there are.
    ///
    /// `None` unless they are a plain sequence that ends where the zone's first label begins; the zone's own
    /// labels need no walk.
    #[inline(always)]
    pub fn labels_below(&self, buffer: &NameBuffer, zone: &Zone) -> Option<usize> {
        let end = forget(
            self.length.wrapping_sub(zone.length.load() as usize),
            self.hash,
        ) & 0xff;
        let mut at = 0;
        let mut labels = 0;
        for _ in 0..MAX_LABELS {
            if at >= end {
                break;
            }
            let length = buffer.byte(at);
            if length == 0 || length > MAX_LABEL {
                return None;
            }
            at = forget(at + length + 1, self.hash) & 0x1ff;
            labels += 1;
        }
        if at == end {
            Some(forget(labels, self.hash))
        } else {
            None
        }
    }

    /// This name without its first `labels` labels, of which it has more, in `ancestor`.
    #[inline(always)]
    pub fn ancestor(
        &self,
        buffer: &NameBuffer,
        labels: usize,
        control: &Control,
        ancestor: &mut NameBuffer,
    ) -> Self {
        let mut skipped = 0;
        for label in 0..MAX_LABELS {
            if label >= labels {
                break;
            }
            skipped = forget(skipped + buffer.byte(skipped) + 1, self.hash) & 0xff;
        }
        let length = forget(self.length.wrapping_sub(skipped), self.hash) & 0xff;
        let mut hash = 0;
        for i in 0..NAME_WORDS {
            if 8 * i + 1 >= length {
                ancestor.put(i, 0);
                break;
            }
            let left = (length - 1 - 8 * i).min(8);
            let keep = u64::MAX >> ((8 * (8 - left)) & 63);
            let at = NameBuffer::BEFORE + (forget(skipped, self.hash) & 0xff) + 8 * i;
            let word = buffer.word_at(at) & keep;
            ancestor.put(i, word);
            hash = hash::add_word(hash, word, keep, keys(control, i));
        }
        Self {
            length: forget(length, self.hash) & 0xff,
            hash,
            sum: Sum::ZERO,
        }
    }
}
