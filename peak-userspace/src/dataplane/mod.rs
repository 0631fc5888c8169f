//! The kernel's table, and the program that reads it.

mod heap;
mod index;
mod record;

pub mod compile;
pub mod memory;
pub mod table;

#[cfg(test)]
mod tests;

pub use record::NodeRecord;
