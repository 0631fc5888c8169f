//! `cargo xtask advisories`

use anyhow::{Context, Result};

use crate::{
    ci,
    prerequisites::{self, Purpose},
};

/// Looks the dependencies up in the RustSec advisory database
///
/// Fetches the database from its repository, so this needs the internet; `ci` does not.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    prerequisites::check(Purpose::Build)?;
    ci::deny(&["advisories"])
        .context("an advisory applies, or the advisory database can't be fetched: see above")
}
