//! A control plane for a person to look at: `cargo xtask cluster` builds and starts this.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::Parser;
use peak_tests::ControlPlane;
use signal_hook::{
    consts::{SIGHUP, TERM_SIGNALS},
    flag,
};

/// How long between two looks at whether it all still runs.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Parser)]
struct Cli {
    /// The manifests to apply
    #[arg(long)]
    manifests: PathBuf,
    /// What the folder of its logs is called
    #[arg(long, default_value = "cluster")]
    label: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    // The signal only raises a flag, so that the guard takes everything away.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS.iter().chain(&[SIGHUP]) {
        flag::register(*signal, Arc::clone(&interrupted))?;
    }
    let mut plane = ControlPlane::start(&cli.label)?;
    plane.apply_folder(&cli.manifests)?;
    println!("export KUBECONFIG={}", plane.kubeconfig().display());
    eprintln!(
        "\nThe API server is at https://{}, with the manifests of {} applied; the logs are in {}.\n\
         It stays up until Ctrl-C. From another terminal, after the line above:\n  \
         kubectl get services,endpointslices --all-namespaces",
        plane.address(),
        cli.manifests.display(),
        plane.logs().display(),
    );
    while !interrupted.load(Ordering::Relaxed) {
        plane.check()?;
        thread::sleep(LOOK);
    }
    Ok(())
}
