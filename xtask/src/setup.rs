//! `cargo xtask setup`

use anyhow::{Context, Result, bail};

use crate::{
    peers,
    prerequisites::{self, Purpose},
    process::{self, say},
    toolchain,
};

/// Fetches all that building, testing and checking need
///
/// The pinned nightly compiler with `rust-src` (through rustup); bpf-linker, cargo-deny, a Kubernetes control plane and
/// CoreDNS (built once into ${XDG_CACHE_HOME:-~/.cache}/peak); the other DNS servers that Peak is compared with (Debian packages,
/// unpacked there, not installed); and the programs that tests drive (`dig`, `kdig`, Chromium: Debian packages).
/// The other verbs fetch what they need by themselves; this one is for before you go offline.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    prerequisites::check(Purpose::Setup)?;
    toolchain::install_nightly(&["clippy"])?;
    toolchain::BPF_LINKER.installed()?;
    toolchain::CARGO_DENY.installed()?;
    peers::assets()?;
    install_clients()?;
    say("everything is here");
    Ok(())
}

/// The DNS clients that tests ask with, the browser that they look at the benchmarks' report with, and the Debian packages that
/// hold them.
const CLIENTS: [(&str, &str); 4] = [
    ("dig", "bind9-dnsutils"),
    ("kdig", "knot-dnsutils"),
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
];

/// Makes sure of [`CLIENTS`].
///
/// # Errors
/// apt-get fails; or one is missing where there is no apt-get, and it is named.
pub(crate) fn install_clients() -> Result<()> {
    let missing: Vec<_> = CLIENTS
        .iter()
        .filter(|(program, _)| process::find(program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing
        .iter()
        .map(|(program, _)| *program)
        .collect::<Vec<_>>()
        .join(" and ");
    if process::find("apt-get").is_none() {
        bail!(
            "tests need {programs}: install them with your distribution's packages (BIND's and Knot's tools, Chromium and its driver)"
        );
    }
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    say(format!(
        "installing {} with apt-get, for {programs}",
        packages.join(" and ")
    ));
    let install = || {
        process::run(
            process::privileged("apt-get")
                .args(["install", "--yes", "--no-install-recommends"])
                .args(&packages),
        )
    };
    if install().is_err() {
        say("again with fresh package lists");
        process::run(process::privileged("apt-get").arg("update"))?;
        install().with_context(|| format!("tests need {programs}"))?;
    }
    Ok(())
}
