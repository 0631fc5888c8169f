//! `cargo xtask ci`

use anyhow::Result;

use crate::{
    build_ebpf,
    prerequisites::{self, Purpose},
    process::{self, say},
    test, toolchain,
};

/// All that a change has to pass: format, lints, documentation, licences, then `test`
///
/// Advisories are a verb of their own: they need a database from elsewhere.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    prerequisites::check(Purpose::Test)?;

    say("format");
    process::run(process::cargo().args(["fmt", "--all", "--check"]))?;

    toolchain::install_nightly(&["clippy"])?;
    // First, because the agent has it inside.
    build_ebpf::build()?;

    say("lints of the XDP program");
    process::run(
        toolchain::bpf_cargo("clippy")?
            .arg("--all-features")
            .args(["--", "--deny", "warnings"]),
    )?;
    say("lints of the host's code");
    process::run(
        process::cargo()
            .args([
                "clippy",
                "--workspace",
                "--exclude",
                "peak-ebpf",
                "--all-targets",
                "--locked",
            ])
            .args(["--", "--deny", "warnings"]),
    )?;

    say("documentation");
    process::run(
        toolchain::bpf_cargo("doc")?
            .arg("--no-deps")
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )?;
    process::run(
        process::cargo()
            .args(["doc", "--workspace", "--exclude", "peak-ebpf", "--no-deps"])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )?;

    say("licences, sources and bans");
    deny(&["bans", "licenses", "sources"])?;

    test::run(&test::Args::default())
}

/// Asks cargo-deny.
///
/// # Errors
/// A check fails, or cargo-deny can't be installed.
pub(crate) fn deny(checks: &[&str]) -> Result<()> {
    let mut command = std::process::Command::new(toolchain::CARGO_DENY.installed()?);
    process::run(
        command
            .current_dir(process::workspace())
            .arg("check")
            .args(checks),
    )
}
