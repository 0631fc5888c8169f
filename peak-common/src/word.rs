//! One word of a map that two worlds share.

use core::sync::atomic::AtomicU64;

/// Eight bytes that the agent writes through `mmap` while the program reads them: whole, either old or new.
///
/// An [`AtomicU64`]. Its relaxed load is an ordinary one, but LLVM's BPF back end selects no instruction for it.
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// A word of the given value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// Its value. What is reached through it is at least as new: the processor orders loads that
    /// depend on one another.
    #[cfg(target_arch = "bpf")]
    #[inline(always)]
    #[must_use]
    #[expect(
        unsafe_code,
        reason = "the only one: the atomic load that the back end lacks"
    )]
    pub fn load(&self) -> u64 {
        // SAFETY: the pointer comes from a reference, so it is valid and aligned; an aligned volatile load of
        // eight bytes is one instruction, which is what an atomic one would be.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Its value. What is reached through it is at least as new.
    #[cfg(not(target_arch = "bpf"))]
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> u64 {
        self.0.load(core::sync::atomic::Ordering::Acquire)
    }

    /// Replaces the value; everything that was written before is seen by whoever sees it.
    #[cfg(not(target_arch = "bpf"))]
    pub fn store(&self, value: u64) {
        self.0.store(value, core::sync::atomic::Ordering::Release);
    }
}
