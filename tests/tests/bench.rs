//! `cargo xtask bench kernel` measures what it says. Its figures are nobody's business here.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result};
use peak_tests::program;
use serde_json::Value;

/// Left by `cargo xtask test`.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/peak-ebpf-bench");

#[test]
fn every_case_ends_as_it_should_and_is_in_the_report() -> Result<()> {
    let output = Command::new(program("peak-bench")?)
        .args(["kernel", "--object", OBJECT, "--quick", "--names", "1"])
        .args(["--output", "json"])
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(shown.lines().last().context("it prints")?)?;
    assert_eq!(report["benchmark"], "kernel");
    assert!(report["machine"]["kernel"].is_string());
    let command = report["command"].as_str().context("a command")?;
    assert!(
        command.starts_with("cargo xtask bench kernel"),
        "{command:?}"
    );

    let results = report["results"].as_array().context("results")?;
    for result in results {
        let figure = |key: &str| result[key].as_f64().context(key.to_owned());
        assert!(figure("median")? <= figure("p99")?, "{result}");
        assert!(figure("samples")? >= 1.0, "{result}");
        assert!(result["unit"].is_string(), "{result}");
    }
    let names: BTreeSet<_> = results
        .iter()
        .filter_map(|result| result["name"].as_str())
        .collect();
    let wanted = [
        "empty",
        "yardstick",
        "restore",
        "aaaa_hit",
        "aaaa_hit_grown_by_head",
        "aaaa_hit_opt",
        "aaaa_8_records",
        "a_hit",
        "nodata",
        "nxdomain",
        "foreign_name",
        "not_dns",
        "hash_map",
        "memory",
        "verified_instructions",
        "jited_size",
    ];
    assert_eq!(names, wanted.into());
    Ok(())
}
