//! Parts of byte arrays. Each is one load or store: of bytes named one by one, BPF's compiler makes as many.

/// The `M` bytes from `at`.
#[inline(always)]
pub(crate) fn get<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    let mut value = [0; M];
    value.copy_from_slice(&bytes[at..at + M]);
    value
}

/// The 8 bytes from `at`, the first one lowest.
#[inline(always)]
pub(crate) fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

/// Puts `value` at `at`.
#[inline(always)]
pub(crate) fn put<const N: usize, const M: usize>(bytes: &mut [u8; N], at: usize, value: [u8; M]) {
    bytes[at..at + M].copy_from_slice(&value);
}
