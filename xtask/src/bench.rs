//! `cargo xtask bench`

use std::{ffi::OsString, process::Command};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::{
    build, build_ebpf, control_plane, peers,
    prerequisites::{self, Purpose},
    process::{self, say},
};

/// Measures Peak: `cargo xtask bench kernel`, `cargo xtask bench propagation`
///
/// `cargo xtask bench kernel --help` lists its options, as for the others. Figures of one run compare with one another; those of
/// two machines only by their ratios. Leave the machine alone meanwhile.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is measured
    benchmark: Benchmark,
    /// The benchmark's own options
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTIONS"
    )]
    options: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// The XDP program case by case and stage by stage, beside an empty program, a yardstick, and the kernel's own hash map, in
    /// some minutes
    Kernel,
    /// Fetches what the others need, the servers that Peak is compared with among it, for before you go offline. Nothing of it is
    /// installed on this machine, and no service of theirs starts
    Setup,
    /// What it costs to know a cluster, and how soon a change of it is answered, beside CoreDNS, in some minutes
    Propagation,
    /// Answers across a veth pair: how many, how soon, and for how much processor time, in some minutes
    Wire,
    /// What a thousand to a million names cost: hits and misses, kernel memory, loading, changes; in some minutes
    Scale,
    /// Beside CoreDNS, Knot, NSD, Unbound, BIND and PowerDNS, each on one processor with the same names, in a quarter of an hour
    Peers,
    /// Draws what was measured: a page that works offline, and docs/performance.md
    Report,
    /// What got faster or slower between two runs, and whether their spread lets one say so
    Compare,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let benchmark = args.benchmark.to_possible_value();
    let benchmark = benchmark.expect("none is hidden");
    let mut command;
    match args.benchmark {
        Benchmark::Kernel | Benchmark::Scale => {
            prerequisites::check(Purpose::Run)?;
            let object = build_ebpf::build_for_benchmarks()?;
            build_ebpf::build()?;
            command = process::privileged(program()?);
            command
                .arg(benchmark.get_name())
                .arg("--object")
                .arg(object);
        }
        Benchmark::Setup => {
            ensure!(
                args.options.is_empty(),
                "`cargo xtask bench setup` has no options"
            );
            prerequisites::check(Purpose::Test)?;
            let folder = peers::installed()?;
            control_plane::assets()?;
            say(format!(
                "servers to compare with are in {}",
                folder.display()
            ));
            return Ok(());
        }
        Benchmark::Propagation => {
            prerequisites::check(Purpose::Test)?;
            let assets = control_plane::assets()?;
            build::build(true)?;
            command = process::privileged(program()?);
            command
                .arg(benchmark.get_name())
                .env(control_plane::ASSETS, assets);
        }
        Benchmark::Peers => {
            prerequisites::check(Purpose::Test)?;
            let assets = peers::assets()?;
            build::build(true)?;
            command = process::privileged(program()?);
            command
                .arg(benchmark.get_name())
                .env(control_plane::ASSETS, assets);
        }
        Benchmark::Wire => {
            prerequisites::check(Purpose::Run)?;
            let asker = peers::installed()?;
            build::build(true)?;
            command = process::privileged(program()?);
            command
                .arg(benchmark.get_name())
                .env(control_plane::ASSETS, asker);
        }
        // Files in, files out: any user may, and nothing is worth optimising.
        Benchmark::Report | Benchmark::Compare => {
            prerequisites::check(Purpose::Build)?;
            build_ebpf::build()?;
            command = Command::new(build::program("peak-bench", "peak-bench", false)?);
            command.arg(benchmark.get_name());
        }
    }
    process::become_program(command.args(&args.options))
}

fn program() -> Result<std::path::PathBuf> {
    build::program("peak-bench", "peak-bench", true)
}
