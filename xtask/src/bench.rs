//! `cargo xtask bench`

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, build_ebpf,
    prerequisites::{self, Purpose},
    process,
};

/// Measures
///
/// Times drift on small or shared machines: compare with the yardstick of the same run. `--output json` ends the
/// output with one JSON object on a line.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(clap::Subcommand)]
enum Benchmark {
    /// The XDP program alone, with BPF_PROG_TEST_RUN: nanoseconds a packet
    #[command(disable_help_flag = true)]
    Kernel {
        /// What the benchmark is given (`--help` lists it)
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGS"
        )]
        arguments: Vec<OsString>,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Benchmark::Kernel { arguments } = &args.benchmark;
    prerequisites::check(Purpose::Run)?;
    build_ebpf::build()?;
    let bench = build::program("peak-bench", "peak-bench", true)?;
    process::become_program(process::privileged(bench).arg("kernel").args(arguments))
}
