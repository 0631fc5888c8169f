//! The layers below DNS: each a step that checks lengths before it reads.

pub mod checksum;
pub mod ethernet;
pub mod ip;
