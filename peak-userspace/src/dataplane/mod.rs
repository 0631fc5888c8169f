//! The kernel's table, and the program that reads it.

mod heap;
mod index;
mod record;
mod sys;

pub mod attach;
pub mod compile;
pub mod kernel;
pub mod live;
pub mod loader;
pub mod mapping;
pub mod memory;
pub mod table;

#[cfg(test)]
mod tests;

pub use record::NodeRecord;
