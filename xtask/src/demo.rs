//! `cargo xtask demo`

use anyhow::Result;

use crate::{
    build, control_plane,
    prerequisites::{self, Purpose},
    process,
};

/// Shows what Peak is for, in network namespaces that it makes and removes
///
/// A client resolves web.shop.svc.cluster.local with an ordinary stub resolver and connects straight to the pods, while
/// pods come and go. The node between them runs `peak` on a veth, in native XDP mode. A table tells for each step the
/// question, the answer, which pod replied, and who answered by Peak's own counters: the kernel or the fallback. The
/// exit status is 0 only if every answer was right and every A and AAAA query was answered by the kernel.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Take services from a real API server instead of a folder of manifests: that takes Go, once
    #[arg(long)]
    cluster: bool,
    /// Stay up after the last step, print commands to look around with, and end with Ctrl-C
    #[arg(long)]
    hold: bool,
    /// `json` adds one object as the last line
    #[arg(long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    output: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(if args.cluster {
        Purpose::Test
    } else {
        Purpose::Run
    })?;
    let assets = args.cluster.then(control_plane::assets).transpose()?;
    build::build(false)?;
    let demo = build::program("peak-tests", "peak-demo", false)?;
    let mut command = process::privileged(demo);
    command
        .args(["show", "--output", &args.output, "--manifests"])
        .arg(process::workspace().join("deploy/samples"));
    if let Some(assets) = assets {
        command.arg("--cluster").env(control_plane::ASSETS, assets);
    }
    if args.hold {
        command.arg("--hold");
    }
    process::become_program(&mut command)
}
