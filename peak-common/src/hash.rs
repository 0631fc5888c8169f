//! The keyed hash of names.
//!
//! *Multilinear* hashing, the half-multiplication form of Lemire and Kaser, "Strongly universal string
//! hashing is fast" (2014): with secret 64-bit words `k`, and the name as 32-bit halves `x`,
//!
//! ```text
//! h = Σ (k[2i] + x[2i]) · (k[2i+1] + x[2i+1])   mod 2⁶⁴
//! ```
//!
//! Its upper 32 bits are strongly universal: for any two names of one length chosen without knowledge of
//! `k`, they collide with probability 2⁻³². (Names of different length differ by a product of two
//! keys that the shorter one does not use, which is as unpredictable.) So whoever may create services, and does not
//! know the secret, cannot aim at a bucket: buckets are numbered by the uppermost bits. The family costs
//! one multiplication for eight bytes, none of which waits for the one before, and needs no 128-bit
//! product, which BPF lacks.
//!
//! Case is taken out by setting bit 5 of every byte. That maps a few other bytes together, too: those names
//! share a hash, and the comparison that follows every hit tells them apart.

/// Bit 5 of each byte: the difference between upper and lower case letters in ASCII.
pub const CASE: u64 = 0x2020_2020_2020_2020;

/// Adds word `i` of a name to its hash. `keep` masks the bytes of the word that belong to the name.
#[inline(always)]
#[must_use]
pub const fn add_word(hash: u64, word: u64, keep: u64, keys: (u64, u64)) -> u64 {
    let word = (word | CASE) & keep;
    let low = word & 0xffff_ffff;
    let high = word >> 32;
    hash.wrapping_add(
        keys.0
            .wrapping_add(low)
            .wrapping_mul(keys.1.wrapping_add(high)),
    )
}

/// The hash of a name in wire format, root label included, as the program computes it from a packet.
///
/// `key` holds [`crate::abi::NAME_WORDS`] pairs. Bytes beyond [`crate::abi::MAX_NAME`] do not count.
#[must_use]
pub fn hash_name(key: &[u64; 2 * crate::abi::NAME_WORDS], wire: &[u8]) -> u64 {
    let labels = wire.strip_suffix(&[0]).unwrap_or(wire);
    let mut hash = 0;
    for (chunk, keys) in labels.chunks(8).zip(key.as_chunks::<2>().0) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        let keep = u64::MAX >> (8 * (8 - chunk.len()));
        hash = add_word(hash, u64::from_le_bytes(bytes), keep, (keys[0], keys[1]));
    }
    hash
}

/// Which bytes of a stored, lower-case word are letters: bit 5 of each.
///
/// Setting these bits in a query's word folds exactly the letters. Bytes 0x60 and 0x7b to 0x7f would be
/// mistaken for letters: names that hold one are never stored.
#[inline(always)]
#[must_use]
pub const fn letters(stored: u64) -> u64 {
    stored & (stored >> 1) & CASE
}
