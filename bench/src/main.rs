//! Benchmarks of Peak. `cargo xtask bench` builds what they need, and runs this.

mod frame;
mod kernel;
mod memory;
mod progress;
mod propagation;
mod report;

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
    Kernel(kernel::Args),
    Propagation(propagation::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().benchmark {
        Benchmark::Kernel(args) => kernel::run(&args),
        Benchmark::Propagation(args) => propagation::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
