//! `cargo xtask`: what a person who works on Peak types. One verb a file.

mod advisories;
mod bench;
mod build;
mod build_ebpf;
mod ci;
mod cluster;
mod control_plane;
mod demo;
mod peers;
mod prerequisites;
mod process;
mod run;
mod setup;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and shows Peak.
///
/// Every verb first looks for what it needs (rustup, a C compiler, iproute2, root or sudo, a kernel with BTF; Go for tests)
/// and names what is missing with its remedy. Tools of the right version are fetched once, into ${XDG_CACHE_HOME:-~/.cache}/peak.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::Args),
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    Bench(bench::Args),
    Cluster(cluster::Args),
    Ci(ci::Args),
    Advisories(advisories::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Setup(args) => setup::run(&args),
        Verb::BuildEbpf(args) => build_ebpf::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Cluster(args) => cluster::run(&args),
        Verb::Ci(args) => ci::run(&args),
        Verb::Advisories(args) => advisories::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            process::complain(&error);
            ExitCode::FAILURE
        }
    }
}
