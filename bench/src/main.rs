//! Benchmarks of Peak. `cargo xtask bench` builds what they need, and runs this.

mod answer;
mod compare;
mod frame;
mod kernel;
mod load;
mod memory;
mod number;
mod page;
mod peers;
mod progress;
mod propagation;
mod report;
mod rig;
mod scale;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    Answer(answer::Args),
    Compare(compare::Args),
    Kernel(kernel::Args),
    Peers(peers::Args),
    Propagation(propagation::Args),
    Report(page::Args),
    Scale(scale::Args),
    Wire(wire::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().benchmark {
        Benchmark::Answer(args) => answer::run(&args),
        Benchmark::Kernel(args) => kernel::run(&args),
        Benchmark::Peers(args) => peers::run(&args),
        Benchmark::Propagation(args) => propagation::run(&args),
        Benchmark::Wire(args) => wire::run(&args),
        Benchmark::Report(args) => page::run(&args),
        Benchmark::Scale(args) => scale::run(&args),
        // Its exit status tells of the figures.
        Benchmark::Compare(args) => {
            return compare::run(&args).unwrap_or_else(|error| failed(&error, ExitCode::from(2)));
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, ExitCode::FAILURE),
    }
}

fn failed(error: &anyhow::Error, status: ExitCode) -> ExitCode {
    eprintln!("error: {error:#}");
    status
}
