//! Tells the program which compiler made it: results name it.

use std::{env, process::Command};

fn main() {
    let compiler = env::var_os("RUSTC").expect("cargo sets it");
    let version = Command::new(compiler)
        .arg("--version")
        .output()
        .expect("the compiler runs");
    let version = String::from_utf8_lossy(&version.stdout);
    println!("cargo::rustc-env=RUSTC_VERSION={}", version.trim());
    println!("cargo::rerun-if-changed=build.rs");
}
