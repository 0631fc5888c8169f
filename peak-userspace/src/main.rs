//! `peak`: the command.
fn main() {}
