//! Queries from `dnsperf` (DNS-OARC), whose way of asking others know.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use peak_tests::{Running, asset, scratch};

use super::Queries;
use crate::rig::Rig;

/// How long it may take longer than it was told to.
const PATIENCE: Duration = Duration::from_secs(15);
/// Sockets that it asks from, and queries that wait at most.
const CLIENTS: usize = 16;
const WAITING: usize = 1000;

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Said {
    /// Queries sent.
    pub(crate) sent: u64,
    /// Queries with a reply.
    pub(crate) answered: u64,
    /// Queries without one.
    pub(crate) lost: u64,
    /// Answers a second.
    pub(crate) rate: f64,
}

/// Its version, such as `2.10.0`.
///
/// # Errors
/// It is not installed.
pub(crate) fn version() -> Result<String> {
    let output = Command::new(asset("dnsperf")?).arg("-h").output();
    let output = output.context("cannot start dnsperf")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let version = text.lines().find_map(|line| line.split_once("ersion "));
    let (_, version) = version.context("dnsperf -h tells no version")?;
    Ok(version.trim().to_owned())
}

/// Asks as fast as it goes, or `rate` times a second, for so many whole seconds.
///
/// # Errors
/// It is not installed, or fails.
pub(crate) fn ask(
    rig: &Rig,
    server: SocketAddr,
    queries: &Queries,
    rate: Option<f64>,
    duration: Duration,
) -> Result<Said> {
    let folder = scratch()?;
    let [asked, said] = ["queries", "said"].map(|name| folder.path().join(name));
    fs::write(&asked, queries.lines()?)?;
    let mut command = Command::new(asset("dnsperf")?);
    command
        .args(["-s", &server.ip().to_string()])
        .args(["-p", &server.port().to_string()])
        .args(["-l", &duration.as_secs().max(1).to_string()])
        .args(["-c", &CLIENTS.to_string(), "-q", &WAITING.to_string()])
        .args(["-t", "1", "-d"])
        .arg(&asked)
        .stdout(File::create(&said)?);
    if let Some(rate) = rate {
        command.args(["-Q", &rate.round().to_string()]);
    }
    let mut running = rig
        .as_client(|| Running::start(&mut command))?
        .context("cannot start dnsperf")?;
    let status = running.wait(duration + PATIENCE)?;
    let text = fs::read_to_string(&said)?;
    ensure!(
        status.success(),
        "dnsperf failed ({status}): {}{text}",
        running.log()
    );
    parse(&text).with_context(|| format!("dnsperf said: {text}"))
}

/// What it prints in the end.
fn parse(text: &str) -> Result<Said> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(name)?.split_whitespace().next())
            .with_context(|| format!("no {name:?}"))
    };
    Ok(Said {
        sent: field("Queries sent:")?.parse()?,
        answered: field("Queries completed:")?.parse()?,
        lost: field("Queries lost:")?.parse()?,
        rate: field("Queries per second:")?.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As version 2.10 prints it.
    const SAID: &str = "\
Statistics:

  Queries sent:         1234567
  Queries completed:    1234560 (100.00%)
  Queries lost:         7 (0.00%)

  Response codes:       NOERROR 1234560 (100.00%)
  Average packet size:  request 58, response 86
  Run time (s):         5.000123
  Queries per second:   246905.926186

  Average Latency (s):  0.000350 (min 0.000021, max 0.004410)
  Latency StdDev (s):   0.000120

";

    #[test]
    fn its_statistics_are_read() -> Result<()> {
        let said = Said {
            sent: 1_234_567,
            answered: 1_234_560,
            lost: 7,
            rate: 246_905.926186,
        };
        assert_eq!(parse(SAID)?, said);
        assert!(parse("[Status] Command line: dnsperf").is_err());
        Ok(())
    }
}
