//! A frame, as [`crate::respond`] sees it.

/// Offsets beyond this are outside every packet: a query that long is not for the fast path, and the verifier
/// follows packet pointers only so far.
pub const MAX_OFFSET: usize = 0x3fff;

/// Where a frame's bytes are after [`Packet::resize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resized {
    /// Where they were: the frame has grown, or shrunk, at its tail.
    InPlace,
    /// So many bytes further: room was made before the head.
    Moved(usize),
}

/// The frame's buffer cannot take as many bytes. The frame is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// A frame that can be read, resized, and written: the kernel's, or a host test's.
///
/// Reading hands out *windows*, arrays of fixed size, each checked once against the frame's end.
pub trait Packet {
    /// Bytes of the frame.
    fn len(&self) -> usize;

    /// The `N` bytes at `offset`; `None` where the frame ends before, or beyond [`MAX_OFFSET`].
    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// As [`Self::window`], to be written.
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;

    /// Gives the frame `length` bytes, at its tail where there is room, else at its head.
    ///
    /// # Errors
    /// [`NoRoom`]; the frame is then as it was.
    fn resize(&mut self, length: usize) -> Result<Resized, NoRoom>;

    /// `value`, unchanged, but so that the verifier does not know it.
    ///
    /// The verifier would otherwise explore the rest of the program anew for each value that it knows
    /// a length may have, which multiplies with every header. Mask the result to give it bounds again.
    #[inline(always)]
    #[must_use]
    fn opaque(&self, value: usize) -> usize {
        value
    }

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The 8 bytes at `offset`, the first one lowest; zeros stand for what is beyond the frame's end.
    ///
    /// `None` if not even one byte is left, or the frame has fewer than 8.
    #[inline(always)]
    fn word(&self, offset: usize) -> Option<u64> {
        if let Some(bytes) = self.window::<8>(offset) {
            return Some(u64::from_le_bytes(*bytes));
        }
        let length = self.len();
        if offset >= length || length < 8 {
            return None;
        }
        let beyond = offset + 8 - length;
        let bytes = self.window::<8>(length - 8)?;
        Some(u64::from_le_bytes(*bytes) >> ((8 * beyond) & 63))
    }
}

/// A frame in memory, with room around it: for tests and tools on the host.
#[derive(Clone, Debug)]
pub struct Buffer<const CAPACITY: usize> {
    bytes: [u8; CAPACITY],
    start: usize,
    end: usize,
    tail_end: usize,
}

impl<const CAPACITY: usize> Buffer<CAPACITY> {
    /// `frame` with `headroom` bytes before it that it may grow into, and `tailroom` after it.
    ///
    /// # Panics
    /// If `CAPACITY` is less than all of them together.
    #[must_use]
    pub fn new(frame: &[u8], headroom: usize, tailroom: usize) -> Self {
        let mut bytes = [0; CAPACITY];
        let end = headroom + frame.len();
        assert!(end + tailroom <= CAPACITY, "the buffer is too small");
        bytes[headroom..end].copy_from_slice(frame);
        Self { bytes, start: headroom, end, tail_end: end + tailroom }
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl<const CAPACITY: usize> Packet for Buffer<CAPACITY> {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.frame().get(offset..)?.first_chunk()
    }

    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.bytes[self.start..self.end].get_mut(offset..)?.first_chunk_mut()
    }

    fn resize(&mut self, length: usize) -> Result<Resized, NoRoom> {
        let growth = length.saturating_sub(self.len());
        if self.start + length <= self.tail_end {
            self.end = self.start + length;
            Ok(Resized::InPlace)
        } else if growth <= self.start {
            self.start -= growth;
            Ok(Resized::Moved(growth))
        } else {
            Err(NoRoom)
        }
    }
}
