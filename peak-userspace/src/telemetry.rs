//! The log: lines on stderr.

use std::{
    env,
    io::{self, IsTerminal},
};

use tracing_subscriber::EnvFilter;

/// What is logged, in `tracing`'s directives: `info`, or `info,peak_userspace::fallback=debug`.
const VARIABLE: &str = "PEAK_LOG";

/// What is logged unless told otherwise. What the library for BPF finds odd is told by the error that follows.
const DEFAULT: &str = "info,aya=error";

/// Colour only where a person looks, and has not asked for none (no-color.org).
fn is_colourful() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Starts logging. A filter that makes no sense is said, and the default taken in its place.
pub fn init() {
    let filter = EnvFilter::builder().with_env_var(VARIABLE);
    let (filter, problem) = match env::var_os(VARIABLE).map(|_| filter.try_from_env()) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT), Some(error)),
        None => (EnvFilter::new(DEFAULT), None),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(is_colourful())
        .with_target(false)
        .init();
    if let Some(error) = problem {
        tracing::warn!(%error, "{VARIABLE} is no filter for the log: the default is taken");
    }
}
