//! `cargo xtask bench`

use std::ffi::OsString;

use anyhow::Result;

use crate::{
    build, build_ebpf,
    prerequisites::{self, Purpose},
    process,
};

/// Measures Peak: `cargo xtask bench kernel`
///
/// `kernel` times the XDP program case by case, beside an empty program, a yardstick, and the kernel's own hash map, in some
/// minutes. `cargo xtask bench kernel --help` lists its options. Figures of one run compare with one another; those of two
/// machines by their ratio to the yardstick. Leave the machine alone meanwhile.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is measured
    #[arg(value_parser = ["kernel"])]
    benchmark: String,
    /// The benchmark's own options
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    options: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(Purpose::Run)?;
    let object = build_ebpf::build_for_benchmarks()?;
    build_ebpf::build()?;
    let bench = build::program("peak-bench", "peak-bench", true)?;
    process::become_program(
        process::privileged(bench)
            .arg(&args.benchmark)
            .arg("--object")
            .arg(object)
            .args(&args.options),
    )
}
