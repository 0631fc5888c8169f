//! `cargo xtask bench`

use std::{
    ffi::OsString,
    path::{self, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use crate::{
    build, build_ebpf, control_plane, peers,
    prerequisites::{self, Purpose},
    process::{self, say},
};

/// Measures Peak: `cargo xtask bench all`, or one benchmark at a time
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
    /// Kernel, scale, wire, peers and propagation, one after the other, then the report of them: about an hour
    All,
    /// The XDP program case by case and stage by stage, beside an empty program, a yardstick, and the kernel's own hash map, in
    /// some minutes
    Kernel,
    /// What a thousand to a million names cost: hits and misses, kernel memory, loading, changes; in some minutes
    Scale,
    /// Answers across a veth pair: how many, how soon, and for how much processor time, in some minutes
    Wire,
    /// Beside CoreDNS, Knot, NSD, Unbound, BIND and PowerDNS, each on one processor with the same names, in a quarter of an hour
    Peers,
    /// What it costs to know a cluster, and how soon a change of it is answered, beside CoreDNS, in some minutes
    Propagation,
    /// What an answer of the fallback costs without sockets, in a minute
    Answer,
    /// Fetches what the others need, the servers that Peak is compared with among it, for before you go offline. Nothing of it is
    /// installed on this machine, and no service of theirs starts
    Setup,
    /// Draws what was measured: a page that works offline, and docs/performance.md
    Report,
    /// What got faster or slower between two runs, and whether their spread lets one say so
    Compare,
}

/// All benchmarks that measure, in the order in which [`Benchmark::All`] has them.
const MEASURING: [Benchmark; 5] = [
    Benchmark::Kernel,
    Benchmark::Scale,
    Benchmark::Wire,
    Benchmark::Peers,
    Benchmark::Propagation,
];

/// Measures everything, one benchmark after the other, and draws it
///
/// A benchmark that fails does not keep the others from being run; the exit status tells of it, and the report is of what there is.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench all")]
struct All {
    /// Few samples: does it run at all?
    #[arg(long)]
    quick: bool,
    /// The folder for the results; bench/results has those of record [default: target/bench, or target/bench/quick]
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match args.benchmark {
        Benchmark::All => all(&args.options),
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
            Ok(())
        }
        benchmark => process::become_program(benchmark.command()?.args(&args.options)),
    }
}

fn all(options: &[OsString]) -> Result<()> {
    let name = OsString::from("all");
    let All { quick, save } = All::parse_from([&name].into_iter().chain(options));
    let folder = save.unwrap_or_else(|| {
        let folder = process::target().join("bench");
        if quick { folder.join("quick") } else { folder }
    });
    // What is missing shows before anything is measured.
    let commands = MEASURING.map(|benchmark| Ok((benchmark, benchmark.command()?)));
    let commands = commands.into_iter().collect::<Result<Vec<_>>>()?;
    let mut failed = Vec::new();
    let mut files = Vec::new();
    for (i, (benchmark, mut command)) in commands.into_iter().enumerate() {
        let name = benchmark.name();
        let place = format!("{} of {}", i + 1, MEASURING.len());
        say(format!("benchmark {place}: {name}"));
        let file = folder.join(format!("{name}.json"));
        if quick {
            command.arg("--quick");
        }
        match process::run(command.arg("--save").arg(&file)) {
            Ok(()) => files.push(file),
            Err(error) => {
                say(format!("{error:#}"));
                failed.push(name);
            }
        }
    }
    ensure!(!files.is_empty(), "all benchmarks failed");
    let mut report = Benchmark::Report.command()?;
    if path::absolute(&folder)? != process::workspace().join("bench/results") {
        report.args(&files);
    }
    process::run(&mut report)?;
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

impl Benchmark {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is hidden");
        value.get_name().to_owned()
    }

    /// Builds and fetches what it takes, and gives the command that runs it.
    fn command(self) -> Result<Command> {
        // Files in, files out: nothing is worth optimising.
        let only_reads = matches!(self, Self::Report | Self::Compare);
        let any_user_may = only_reads || matches!(self, Self::Answer);
        let mut environment = None;
        let mut object = None;
        match self {
            Self::Kernel | Self::Scale => {
                prerequisites::check(Purpose::Run)?;
                object = Some(build_ebpf::build_for_benchmarks()?);
                build_ebpf::build()?;
            }
            Self::Wire => {
                prerequisites::check(Purpose::Run)?;
                environment = Some(peers::installed()?.into_os_string());
                object = Some(build_ebpf::build_for_benchmarks()?);
                build::build(true)?;
            }
            Self::Peers => {
                prerequisites::check(Purpose::Test)?;
                environment = Some(peers::assets()?);
                build::build(true)?;
            }
            Self::Propagation => {
                prerequisites::check(Purpose::Test)?;
                environment = Some(control_plane::assets()?);
                build::build(true)?;
            }
            Self::Answer | Self::Report | Self::Compare => {
                prerequisites::check(Purpose::Build)?;
                build_ebpf::build()?;
            }
            Self::All | Self::Setup => unreachable!("it is no program's"),
        }
        let program = build::program("peak-bench", "peak-bench", !only_reads)?;
        let mut command = if any_user_may {
            Command::new(program)
        } else {
            process::privileged(program)
        };
        command.arg(self.name());
        if let Some(object) = object {
            command.arg("--object").arg(object);
        }
        if let Some(assets) = environment {
            command.env(control_plane::ASSETS, assets);
        }
        Ok(command)
    }
}
