//! `cargo xtask test`

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, build_ebpf, control_plane, peers,
    prerequisites::{self, Purpose},
    process::{self, say},
    setup,
};

/// Sets up, builds, and passes every test: unit, property, differential, namespaces
///
/// What needs root asks for sudo. No test is skipped: what a test needs and cannot be had fails it.
/// `cargo xtask test -- native_mode` runs the tests with that in their names.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// What each test program is given, such as a part of a test's name
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Their tests load programs into the kernel and make namespaces.
const PRIVILEGED: [&str; 1] = ["peak-tests"];

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(Purpose::Test)?;
    setup::install_clients()?;
    let assets = peers::assets()?;
    build_ebpf::build_for_benchmarks()?;
    build::build(false)?;
    build::program("peak-bench", "peak-bench", false)?;

    say("tests that any user may run");
    let mut cargo = process::cargo();
    cargo.args(["test", "--workspace", "--exclude", "peak-ebpf"]);
    for package in PRIVILEGED {
        cargo.args(["--exclude", package]);
    }
    process::run(cargo.arg("--").args(&args.arguments))?;

    say("tests that load programs and make namespaces");
    let mut cargo = process::cargo();
    cargo.arg("test").env(control_plane::ASSETS, assets);
    for package in PRIVILEGED {
        cargo.args(["--package", package]);
    }
    if !process::is_root() {
        cargo.args([
            "--config",
            &format!("target.'cfg(unix)'.runner={:?}", process::runner()),
        ]);
    }
    process::run(cargo.arg("--").args(&args.arguments))
}
