//! `cargo xtask build-ebpf`

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    prerequisites::{self, Purpose},
    process::{self, say},
    toolchain,
};

/// Builds the XDP program
///
/// Leaves the BPF object in target/bpf/peak-ebpf, from where the agent's build takes it. It is always optimised: the
/// kernel's verifier refuses code that isn't.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Builds the same program: only optimised code passes the verifier
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(_: &Args) -> Result<()> {
    prerequisites::check(Purpose::Build)?;
    let object = build()?;
    say(format!("the XDP program is in {}", object.display()));
    Ok(())
}

/// Builds the object and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    build_with(&[], "peak-ebpf")
}

/// Builds the object with what benchmarks need beside it, and says where it is. Beside that is another which sums nothing.
pub(crate) fn build_for_benchmarks() -> Result<PathBuf> {
    build_with(
        &["--features", "bench-no-checksum"],
        "peak-ebpf-bench-no-checksum",
    )?;
    build_with(&["--features", "bench"], "peak-ebpf-bench")
}

fn build_with(features: &[&str], name: &str) -> Result<PathBuf> {
    toolchain::install_nightly(&[])?;
    let mut cargo = toolchain::bpf_cargo("build")?;
    say(format!("building the XDP program, {name}"));
    process::run(cargo.args(features))?;
    let built = process::target().join("ebpf/bpfel-unknown-none/release/peak-ebpf");
    let object = process::workspace().join("target/bpf").join(name);
    copy_if_changed(&built, &object)
        .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    Ok(object)
}

/// Leaves an equal file alone: cargo would build the agent anew for its time stamp.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let object = fs::read(from)?;
    if fs::read(to).is_ok_and(|before| before == object) {
        return Ok(());
    }
    fs::create_dir_all(to.parent().context("a file is in a folder")?)?;
    // Renamed into place, so that a build beside this one never reads half of it.
    let unfinished = to.with_extension("new");
    fs::write(&unfinished, object)?;
    fs::rename(unfinished, to)?;
    Ok(())
}
