//! `cargo xtask build`

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    build_ebpf,
    prerequisites::{self, Purpose},
    process::{self, say},
};

/// Builds `peak`, one file with the XDP program inside
///
/// Leaves it in target/debug/peak, or with --release in target/release/peak.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimise, as for use
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(Purpose::Build)?;
    let peak = build(args.release)?;
    say(format!("built {}", peak.display()));
    Ok(())
}

/// Builds the XDP program, then `peak`, and says where it is.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    build_ebpf::build()?;
    program("peak-userspace", "peak", release)
}

/// Builds a program of the workspace and says where it is.
pub(crate) fn program(package: &str, name: &str, release: bool) -> Result<PathBuf> {
    say(format!("building {name}"));
    let mut cargo = process::cargo();
    cargo.args(["build", "--package", package, "--bin", name]);
    if release {
        cargo.arg("--release");
    }
    process::run(&mut cargo)?;
    Ok(process::target()
        .join(if release { "release" } else { "debug" })
        .join(name))
}
