//! What the kernel program and the host share.
#![no_std]
#![forbid(unsafe_code)]
