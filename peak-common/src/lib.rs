//! What Peak's kernel program and its host side share: reading packets, DNS, the table's layout, and the
//! one function that turns a query into an answer, [`respond::respond`].
//!
//! Everything here is safe Rust without an allocator. Raw pointers, XDP actions and kernel helpers belong
//! to `peak-ebpf`; it gives this crate a [`packet::Packet`] and [`table::Tables`], and so do host tests.
#![no_std]
#![deny(unsafe_code)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_endian = "little"))]
compile_error!(
    "the table's words and the packet's are little-endian alike: big-endian hosts need a port"
);

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod bench;
mod bytes;
pub mod dns;
pub mod generator;
pub mod hash;
pub mod net;
pub mod packet;
pub mod respond;
pub mod table;
pub mod verdict;
pub mod verifier;
pub mod word;
