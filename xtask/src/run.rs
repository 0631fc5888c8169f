//! `cargo xtask run`

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build,
    prerequisites::{self, Purpose},
    process,
};

/// Builds `peak` and runs it as root: `cargo xtask run -- run --help`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the optimised build
    #[arg(long)]
    release: bool,
    /// What `peak` is given
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(Purpose::Run)?;
    let peak = build::build(args.release)?;
    process::become_program(process::privileged(peak).args(&args.arguments))
}
