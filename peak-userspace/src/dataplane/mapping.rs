//! Maps that the agent writes through memory, without a system call.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd},
    ptr::{self, NonNull},
};

use peak_common::abi::{Control, Interface, Segment, Served};

/// A value of a map that program and agent share.
///
/// # Safety
/// Any bytes are a valid value, and every part that either side writes while the other may read is a
/// [`peak_common::word::Word`].
pub unsafe trait Shared {}

// SAFETY: words, arrays of words, and reserved integers that nobody writes.
unsafe impl Shared for Control {}
// SAFETY: as above.
unsafe impl Shared for Interface {}
// SAFETY: as above.
unsafe impl Shared for Served {}
// SAFETY: as above.
unsafe impl Shared for Segment {}

/// The values of an array map created with `BPF_F_MMAPABLE`, for as long as this lives.
pub struct Mapping<T: Shared> {
    start: NonNull<T>,
    count: usize,
}

// SAFETY: what is shared between threads is shared with the kernel already: see `Shared`.
unsafe impl<T: Shared> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Mapping<T> {}

impl<T: Shared> Mapping<T> {
    /// Maps the `count` values of the array map behind `map`, whose values have `T`'s size.
    ///
    /// # Errors
    /// The kernel's: the map is of another size, or not mappable.
    pub fn new(map: impl AsFd, count: usize) -> io::Result<Self> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "array values are padded to 8 bytes"
            )
        };
        // SAFETY: a new mapping at an address of the kernel's choice; it refuses lengths beyond the map's.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, count })
    }
}

impl<T: Shared> Deref for Mapping<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is that long, page-aligned, lives as long as `self`, and holds valid values, of
        // which only words change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl<T: Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.count * size_of::<T>()) };
    }
}
