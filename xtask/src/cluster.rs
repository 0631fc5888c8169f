//! `cargo xtask cluster`

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    build, control_plane,
    prerequisites::{self, Purpose},
    process,
};

/// Starts a Kubernetes control plane on loopback, with a sample application in it, until Ctrl-C
///
/// etcd, kube-apiserver and kube-controller-manager are the real ones, built once by Go; those in $KUBEBUILDER_ASSETS go before.
/// It prints the KUBECONFIG line for another terminal's kubectl, and needs no root. There is no kubelet: nothing runs in
/// it, but Services, EndpointSlices and whatever else is only stored are as in any cluster. Everything goes with it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A folder of manifests to apply instead of deploy/samples
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    prerequisites::check(Purpose::Cluster)?;
    let assets = control_plane::assets()?;
    let cluster = build::program("peak-tests", "peak-cluster", false)?;
    let samples = process::workspace().join("deploy/samples");
    process::become_program(
        std::process::Command::new(cluster)
            .arg("--manifests")
            .arg(args.manifests.as_ref().unwrap_or(&samples))
            .env(control_plane::ASSETS, assets),
    )
}
