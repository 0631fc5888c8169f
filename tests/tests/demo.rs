//! The demo shows what it says, and leaves nothing behind.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use peak_tests::{Running, eventually, program};
use rustix::process::Signal;
use serde_json::Value;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
const LIMIT: Duration = Duration::from_secs(60);

/// One demo at a time: each sweeps what a killed one has left.
static STAGE: Mutex<()> = Mutex::new(());

fn demo() -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_peak-demo"));
    demo.args(["show", "--manifests", SAMPLES]);
    demo
}

fn stage() -> MutexGuard<'static, ()> {
    STAGE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the process has in the places where the demo puts things.
fn belongings(process: u32) -> Vec<String> {
    let own = format!("peak-{process}-");
    [
        "/run/netns",
        "/etc/netns",
        &std::env::temp_dir().to_string_lossy(),
    ]
    .iter()
    .filter_map(|folder| fs::read_dir(folder).ok())
    .flatten()
    .flatten()
    .map(|entry| entry.path().display().to_string())
    .filter(|path| path.contains(&own))
    .collect()
}

#[test]
fn every_step_is_right_and_every_address_question_is_answered_in_the_kernel() -> Result<()> {
    every_step_is_right(&[])
}

#[test]
fn every_step_is_right_from_a_cluster_too() -> Result<()> {
    every_step_is_right(&["--cluster"])
}

fn every_step_is_right(more: &[&str]) -> Result<()> {
    let _stage = stage();
    let mut demo = demo();
    let child = demo
        .args(["--output", "json"])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let process = child.id();
    let output = child.wait_with_output()?;
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );

    let report: Value = serde_json::from_str(shown.lines().last().context("it prints")?)?;
    assert_eq!(report["wrong"], 0);
    let steps = report["steps"].as_array().context("steps are listed")?;
    assert_eq!(steps.len(), 9);
    for step in steps {
        let question = step["question"].as_str().context("a step has a question")?;
        let due = if question.ends_with(" A") || question.ends_with("AAAA") {
            "answered_in_kernel"
        } else {
            "answered_by_fallback"
        };
        assert_eq!(step[due], step["queries"], "{step}");
    }
    let sum = |key: &str| report[key].as_u64().context("it is a number");
    assert_eq!(
        sum("answered_in_kernel")? + sum("answered_by_fallback")?,
        sum("queries")?
    );
    // web-1 was there for two steps, web-2 for three, web-3 for the last two.
    let pods = &report["pods"];
    for (address, requests) in [
        ("fd00:10:244:1::2", 2),
        ("fd00:10:244:2::2", 3),
        ("fd00:10:244:3::2", 2),
    ] {
        assert_eq!(pods[address], requests, "{pods}");
    }
    assert_eq!(belongings(process), Vec::<String>::new());
    Ok(())
}

#[test]
fn samples_are_valid() -> Result<()> {
    let check = Command::new(program("peak")?)
        .args(["check", SAMPLES])
        .output()?;
    let said = [check.stdout, check.stderr].concat();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&said));
    Ok(())
}

#[test]
fn interrupted_it_leaves_nothing_behind() -> Result<()> {
    let _stage = stage();
    let mut demo = demo();
    let mut running = Running::start(demo.arg("--hold").stdout(Stdio::null()))?;
    let process = running.id();
    eventually("the demo to hold", LIMIT, || {
        anyhow::ensure!(running.ended()?.is_none(), "it ended: {}", running.log());
        Ok(running.log().contains("Ctrl-C").then_some(()))
    })?;
    assert!(!belongings(process).is_empty());
    running.signal(Signal::INT)?;
    assert!(running.wait(LIMIT)?.success(), "{}", running.log());
    assert_eq!(belongings(process), Vec::<String>::new());
    Ok(())
}

#[test]
fn killed_it_trips_no_second_run() -> Result<()> {
    let _stage = stage();
    let mut demo = demo();
    let mut child = demo.stdout(Stdio::piped()).spawn()?;
    let process = child.id();
    let stdout = child.stdout.take().context("stdout is piped")?;
    // The first line comes when all namespaces are there.
    let first = BufReader::new(stdout)
        .lines()
        .next()
        .context("it prints")??;
    assert!(first.starts_with("STEP"), "{first}");
    child.kill()?;
    child.wait()?;
    assert!(!belongings(process).is_empty());

    let again = self::demo().output()?;
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stdout)
    );
    assert_eq!(belongings(process), Vec::<String>::new());
    assert!(!Path::new("/proc").join(process.to_string()).exists());
    Ok(())
}
