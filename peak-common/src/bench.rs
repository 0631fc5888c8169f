//! What the benchmarks' programs and their driver share.

/// Bytes of the longest frame; a power of two.
pub const FRAME: usize = 512;
/// Bytes of the yardstick's key.
pub const KEY: usize = 64;

/// Bytes of the names that are looked up in the kernel's hash map.
pub const NAME: usize = 40;
/// Where they begin: after Ethernet, IPv6, UDP and the message's header.
pub const NAME_AT: usize = 14 + 40 + 8 + 12;

/// A query, and what of it varies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    /// Bytes of the frame.
    pub length: u32,
    /// Where the eight bytes are that each run takes from the next word: an offset into the frame.
    pub varied: u32,
    /// How many words there are.
    pub words: u32,
    /// Which word is next.
    pub next: u32,
    /// Not 0: the frame lies at its buffer's end, so that it is restored, and grows, at its head.
    pub by_head: u32,
    /// Spelled-out padding.
    pub reserved: u32,
    /// The frame.
    pub frame: [u8; FRAME],
}
