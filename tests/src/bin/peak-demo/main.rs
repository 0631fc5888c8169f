//! Peak's point, with real parts: `cargo xtask demo` builds and starts this as root.
//!
//! A client resolves a service's name as any program does and connects straight to the pods, while pods come and go.
//! The table that is printed says who answered each question, kernel or fallback, by Peak's own counters.

mod client;
mod report;
mod scene;
mod steps;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use clap::{Parser, Subcommand};
use peak_tests::eventually;
use signal_hook::{consts::TERM_SIGNALS, flag};

use crate::{report::Report, scene::Scene};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Sets the scene, shows every step, and takes all away.
    Show(Show),
    /// The client of one step, in its namespace: resolves and connects.
    #[command(hide = true)]
    Visit { name: String, port: u16 },
}

#[derive(clap::Args)]
struct Show {
    /// The manifests to begin with
    #[arg(long)]
    manifests: PathBuf,
    /// Serve a cluster's services, from a control plane of the demo's own, instead of a folder's
    #[arg(long)]
    cluster: bool,
    /// Stay up after the last step, until Ctrl-C
    #[arg(long)]
    hold: bool,
    /// `json` adds one object as the last line
    #[arg(long, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Visit { name, port } => client::visit(&name, port).map(|()| true),
        Role::Show(show) => show.run().map(|report| report.is_right()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Show {
    fn run(&self) -> Result<Report> {
        let interrupt = Interrupt::new()?;
        self.play(&interrupt).map_err(|error| {
            // On a terminal Ctrl-C ends Peak and the client as well: what they say of it is no news.
            if interrupt.raised() {
                anyhow!("interrupted")
            } else {
                error
            }
        })
    }

    fn play(&self, interrupt: &Interrupt) -> Result<Report> {
        let mut scene = Scene::set(&self.manifests, self.cluster)?;
        let mut report = Report::default();
        report::heading();
        for step in steps::all() {
            let outcome = step.play(&mut scene)?;
            ensure!(!interrupt.raised(), "interrupted");
            report::row(&outcome);
            report.add(outcome);
        }
        report.pods = scene.requests();
        report::summary(&report);
        if self.output == Output::Json {
            println!("{}", serde_json::to_string(&report)?);
        }
        if self.hold {
            scene.explain();
            // A day is as long as anybody looks.
            eventually("Ctrl-C", Duration::from_secs(86_400), || {
                Ok(interrupt.raised().then_some(()))
            })?;
        }
        Ok(report)
    }
}

/// Whether somebody wants this to end. The signal only raises a flag, so that every guard takes its part away.
struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    fn new() -> Result<Self> {
        let raised = Arc::new(AtomicBool::new(false));
        for signal in TERM_SIGNALS.iter().chain(&[signal_hook::consts::SIGHUP]) {
            flag::register(*signal, Arc::clone(&raised))?;
        }
        Ok(Self(raised))
    }

    fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
