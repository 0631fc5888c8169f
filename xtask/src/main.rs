//! `cargo xtask`: one verb a file.
fn main() {}
