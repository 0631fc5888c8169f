//! Hands the XDP program's object to the crate, as `$OUT_DIR/peak-ebpf`.

use std::{env, fs, path::PathBuf};

/// Names another object than the one `cargo xtask build-ebpf` leaves.
const OBJECT: &str = "PEAK_EBPF_OBJECT";

fn main() {
    let folder = |variable| PathBuf::from(env::var_os(variable).expect("cargo sets it"));
    let object = env::var_os(OBJECT).map_or_else(
        || folder("CARGO_MANIFEST_DIR").join("../target/bpf/peak-ebpf"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-env-changed={OBJECT}");
    println!("cargo::rerun-if-changed={}", object.display());
    if let Err(error) = fs::copy(&object, folder("OUT_DIR").join("peak-ebpf")) {
        println!(
            "cargo::error=the XDP program's object {} can't be used ({error}): run `cargo xtask build-ebpf`",
            object.display()
        );
    }
}
