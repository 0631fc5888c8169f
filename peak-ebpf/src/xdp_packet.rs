//! The frame under XDP: the only place with raw packet pointers.

use core::{arch::asm, hint, ptr};

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use peak_common::packet::{First, MAX_OFFSET, Packet, ResizeError, Room};

/// Less than any driver's buffer for a frame's first part, in bytes.
const SHORTEST_BUFFER: usize = 1024;

/// The frame between `start` and `end`, its linear part if it has several.
pub(crate) struct XdpPacket<'c> {
    ctx: &'c XdpContext,
    start: usize,
    end: usize,
}

impl<'c> XdpPacket<'c> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'c XdpContext) -> Self {
        let (start, end);
        // SAFETY: loads of `data` and `data_end` (`struct xdp_md`, linux/bpf.h) from the kernel's context. Declared as
        // 32 bits they are pointers all the same; in assembly, so that the compiler never keeps half of one.
        unsafe {
            asm!(
                "{0} = *(u32 *)({2} + 0)",
                "{1} = *(u32 *)({2} + 4)",
                out(reg) start,
                lateout(reg) end,
                in(reg) ctx.ctx,
                options(readonly, nostack),
            );
        }
        Self { ctx, start, end }
    }

    #[inline(always)]
    fn reload(&mut self) {
        *self = Self::new(self.ctx);
    }

    /// Where `N` bytes at `offset` begin, if the frame has them.
    #[inline(always)]
    fn checked<const N: usize>(&self, offset: usize) -> Option<usize> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut begin = self.start;
        // SAFETY: an addition; no memory, no flags. In assembly, so that the sum is a number of its own: otherwise the
        // compiler derives one window's pointer from another's, at offsets that the verifier did not see checked.
        unsafe {
            asm!("{0} += {1}", inout(reg) begin, in(reg) offset, options(pure, nomem, nostack))
        };
        if begin + N > self.end {
            return None;
        }
        // SAFETY: no frame lies at address 0. Said, or the compiler tells a reference from none by looking.
        unsafe { hint::assert_unchecked(begin != 0) };
        Some(begin)
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn window<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        let begin = self.checked::<N>(offset)?;
        // SAFETY: `begin` to `begin + N` lies within the frame, which stays where it is until it is resized,
        // for which it is borrowed mutably; an array of bytes has no alignment or invalid value.
        Some(unsafe { &*ptr::with_exposed_provenance(begin) })
    }

    #[inline(always)]
    fn window_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        let begin = self.checked::<N>(offset)?;
        // SAFETY: as above, and the mutable borrow of `self` makes this the only reference.
        Some(unsafe { &mut *ptr::with_exposed_provenance_mut(begin) })
    }

    #[inline(always)]
    fn forget(&mut self) {
        self.reload();
    }

    #[inline(always)]
    fn make_room(&mut self, length: usize, first: First) -> Result<Room, ResizeError> {
        let growth = length as i32 - self.len() as i32;
        // SAFETY: the context is the one that the kernel gave; the pointers into the frame, which the helpers
        // invalidate, are read anew before anything uses them.
        let room = unsafe {
            let tail = |growth| bpf_xdp_adjust_tail(self.ctx.ctx, growth) == 0;
            let head = |growth: i32| bpf_xdp_adjust_head(self.ctx.ctx, -growth) == 0;
            // The helper for tails resizes the last part of a frame that has several, that for heads the first, which alone
            // is seen here. To ask how many there are costs as much as to resize, and where the first part is short, there
            // is no other: drivers split behind the headers, before a query, or where a buffer ends.
            let in_one_part = || {
                self.len() < SHORTEST_BUFFER
                    || bpf_xdp_get_buff_len(self.ctx.ctx) == self.len() as u64
            };
            if growth <= 0 {
                if !(in_one_part() && tail(growth)) {
                    return Err(ResizeError::NoRoom);
                }
                Room::Tail
            } else if first == First::Head && in_one_part() && head(growth) {
                Room::Head(growth as usize & MAX_OFFSET)
            } else if tail(growth) {
                // Not asked before, what is common being one part: so it is seen now, and taken back.
                self.reload();
                if self.len() == length {
                    return Ok(Room::Tail);
                }
                tail(-growth);
                return Err(ResizeError::NoRoom);
            } else if first == First::Tail && in_one_part() && head(growth) {
                Room::Head(growth as usize & MAX_OFFSET)
            } else {
                return Err(ResizeError::NoRoom);
            }
        };
        self.reload();
        Ok(room)
    }
}
