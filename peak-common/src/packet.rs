//! A frame, as [`crate::respond`] sees it.

use crate::verifier::forget;

/// Offsets beyond this are outside every packet: a query that long is not for the fast path, and the verifier
/// follows packet pointers only so far.
pub const MAX_OFFSET: usize = 0x3fff;

/// Where a frame is tried to be given room first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// At its tail: nothing has to be moved.
    Tail,
    /// Before its head: for drivers whose frames hardly ever have a tail.
    Head,
}

/// How a frame was given room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// At the tail, or taken from it: all bytes are where they were.
    Tail,
    /// Before the head: all bytes are so many further.
    Head(usize),
}

/// Why a frame was not resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeError {
    /// Its buffer cannot take as many bytes, or it has parts that are not seen here. The frame is unchanged.
    NoRoom,
    /// It was, and is not as long as it should be.
    Length,
}

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

    /// Gives the frame `length` bytes, where there is room: at its tail or at its head, as `first` says, else at the other.
    /// What the bytes are that it has gained is not defined.
    ///
    /// # Errors
    /// [`ResizeError::NoRoom`].
    fn make_room(&mut self, length: usize, first: First) -> Result<Room, ResizeError>;

    /// Gives the frame `length` bytes, of which the first `keep` are as they were.
    ///
    /// `length` is at least `keep + 8`, or less than the frame's.
    ///
    /// # Errors
    /// [`ResizeError`].
    #[inline(always)]
    fn resize(&mut self, length: usize, keep: usize, first: First) -> Result<(), ResizeError> {
        let room = self.make_room(length, first)?;
        if self.len() != length {
            return Err(ResizeError::Length);
        }
        match room {
            Room::Tail => Ok(()),
            Room::Head(by) => {
                move_down(self, keep, by).ok_or(ResizeError::Length)?;
                self.forget();
                Ok(())
            }
        }
    }

    /// Makes the verifier forget which bytes it knows to be in the frame, so that ways which differ by no more than
    /// that go on as one.
    fn forget(&mut self) {}

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
        // A number of its own, so that its bounds are checked, and not those of what it is derived from.
        let bytes = self.window::<8>(forget(length - 8, offset as u64))?;
        Some(u64::from_le_bytes(*bytes) >> ((8 * beyond) & 63))
    }
}

/// Longest part of a query that its answer begins with: two tags, IPv6, UDP, header, question.
const MAX_KEPT: usize = 22 + 40 + 8 + 12 + crate::abi::MAX_NAME + 4;

/// Moves `length` bytes from offset `by` to the frame's start, a word at a time, upwards: what is written
/// has been read. The last word may bring up to 7 bytes more.
#[inline(always)]
fn move_down<P: Packet + ?Sized>(packet: &mut P, length: usize, by: usize) -> Option<()> {
    // A copy, so that what the rounds tell of it does not make each round's end one of its own for the verifier.
    let length = forget(length, packet.len() as u64) & 0x1ff;
    for i in 0..MAX_KEPT.div_ceil(8) {
        if 8 * i >= length {
            break;
        }
        let word = packet.word(by + 8 * i)?;
        *packet.window_mut::<8>(8 * i)? = word.to_le_bytes();
    }
    Some(())
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
        Self {
            bytes,
            start: headroom,
            end,
            tail_end: end + tailroom,
        }
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
        self.bytes[self.start..self.end]
            .get_mut(offset..)?
            .first_chunk_mut()
    }

    fn make_room(&mut self, length: usize, first: First) -> Result<Room, ResizeError> {
        let growth = length.saturating_sub(self.len());
        let has_tail = self.start + length <= self.tail_end;
        let has_head = growth > 0 && growth <= self.start;
        if has_tail && (first == First::Tail || !has_head) {
            self.end = self.start + length;
            Ok(Room::Tail)
        } else if has_head {
            self.start -= growth;
            Ok(Room::Head(growth))
        } else {
            Err(ResizeError::NoRoom)
        }
    }
}
