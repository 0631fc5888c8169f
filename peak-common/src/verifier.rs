//! What the compiler for BPF, and the kernel's verifier after it, need to be told.

use crate::{
    abi::{SEGMENT_BYTES, Segment},
    word::Word,
};

/// `N` words of a segment from word `at`; `None` beyond its end.
///
/// On the host, a slice. For BPF the pointer is added up in assembly from the very register that was compared: the
/// compiler would otherwise compare one expression and use another that it has derived from the same parts,
/// which is right, but the verifier knows the bounds of the first one only.
#[inline(always)]
#[must_use]
pub fn words<const N: usize>(segment: &Segment, at: usize) -> Option<&[Word; N]> {
    #[cfg(target_arch = "bpf")]
    #[expect(
        unsafe_code,
        clippy::pointers_in_nomem_asm_block,
        reason = "pointer arithmetic that the verifier checks"
    )]
    {
        let mut offset = at * 8;
        // SAFETY: a register is copied to itself, so that the comparison below is made of it, and not of `at`.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) offset, options(pure, nomem, nostack));
        }
        if offset > SEGMENT_BYTES - 8 * N {
            return None;
        }
        let mut start = core::ptr::from_ref(segment).cast::<[Word; N]>();
        // SAFETY: an addition. The sum points to a multiple of 8 bytes into the segment, at least `N` words before its
        // end, and lives as long as the segment.
        unsafe {
            core::arch::asm!("{0} += {1}", inout(reg) start, in(reg) offset, options(pure, nomem, nostack));
            Some(&*start)
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        const { assert!(8 * N <= SEGMENT_BYTES, "a window is smaller than a segment") };
        segment.0.get(at..)?.first_chunk()
    }
}

/// `value`, unchanged, but so that the verifier knows nothing of it. `noise` is any number that it does not know either.
///
/// The verifier follows each value that it knows, or must know, by itself: without this the rest of the program would
/// be explored anew for every length that a loop may have ended with, and every combination of them. Mask
/// the result to give it bounds again.
#[inline(always)]
#[must_use]
pub fn forget(value: usize, noise: u64) -> usize {
    #[cfg(target_arch = "bpf")]
    #[expect(unsafe_code, reason = "assembly, or the compiler would see through it")]
    {
        let mut value = value;
        // SAFETY: exclusive or with one number twice; no memory, no flags.
        unsafe {
            core::arch::asm!(
                "{0} ^= {1}",
                "{0} ^= {1}",
                inout(reg) value,
                in(reg) noise,
                options(pure, nomem, nostack)
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = noise;
        value
    }
}
