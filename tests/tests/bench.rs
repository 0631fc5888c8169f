//! The benchmarks measure what they say. Their figures are nobody's business here.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result};
use peak_common::verdict::PassReason;
use peak_tests::program;
use serde_json::Value;

/// Left by `cargo xtask test`.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/peak-ebpf-bench");

/// Runs a benchmark, and gives the results of its report.
fn run(benchmark: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("kept.json");
    let output = Command::new(program("peak-bench")?)
        .arg(benchmark)
        .args(arguments)
        .args(["--quick", "--output", "json", "--save"])
        .arg(&file)
        .output()?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(shown.lines().last().context("it prints")?)?;
    assert_eq!(report["benchmark"], benchmark);
    let kept: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    assert_eq!(kept, report);
    let page = folder.path().join("report.html");
    let drawn = Command::new(program("peak-bench")?)
        .arg("report")
        .arg(&file)
        .arg("--out")
        .arg(&page)
        .output()?;
    assert!(
        drawn.status.success(),
        "{}",
        String::from_utf8_lossy(&drawn.stderr)
    );
    let page = fs::read_to_string(page)?;
    assert!(!page.contains("Not in these results"), "{benchmark}");
    assert!(report["machine"]["kernel"].is_string());
    let (commit, time) = (&report["commit"], &report["time"]);
    assert!(commit.as_str().is_some_and(|commit| commit != "unknown"));
    assert!(time.as_str().is_some_and(|time| time.ends_with('Z')));
    let command = report["command"].as_str().context("a command")?;
    assert!(
        command.starts_with(&format!("cargo xtask bench {benchmark} ")),
        "{command:?}"
    );
    let results = report["results"].as_array().context("results")?;
    for result in results {
        let figure = |key: &str| result[key].as_f64().context(key.to_owned());
        assert!(figure("median")? <= figure("p99")?, "{result}");
        assert!(figure("p99")? <= figure("max")?, "{result}");
        assert!(figure("spread")? >= 0.0, "{result}");
        for key in ["unit", "of", "better"] {
            assert!(result[key].is_string(), "{result}");
        }
        // Every sample is there.
        let samples = figure("samples")?;
        assert!(samples >= 1.0, "{result}");
        let kept = match (&result["raw"], &result["histogram"]) {
            (Value::Array(raw), Value::Null) => raw.len() as f64,
            (Value::Null, Value::Array(buckets)) => {
                buckets.iter().filter_map(|bucket| bucket[1].as_f64()).sum()
            }
            _ => panic!("neither samples nor a histogram: {result}"),
        };
        assert_eq!(kept, samples, "{result}");
    }
    Ok(results.clone())
}

#[test]
fn every_case_of_the_kernel_ends_as_it_should_and_is_in_the_report() -> Result<()> {
    let results = run("kernel", &["--object", OBJECT])?;
    let names: BTreeSet<_> = results
        .iter()
        .filter_map(|result| result["name"].as_str())
        .collect();
    let wanted = [
        "empty",
        "yardstick",
        "restore",
        "aaaa_hit",
        "aaaa_hit_in_yardsticks",
        "aaaa_hit_grown_by_head",
        "aaaa_hit_opt",
        "aaaa_hit_ipv4",
        "aaaa_hit_vlan",
        "aaaa_hit_name_of_100",
        "aaaa_hit_name_of_250",
        "aaaa_8_records",
        "aaaa_16_records",
        "a_hit",
        "nodata",
        "nxdomain",
        "pass",
        "hash_map",
        "memory",
        "stage",
        "floor",
        "traffic_empty",
        "traffic_aaaa_hit",
        "verified_instructions",
        "instructions",
        "jited_size",
        "stack_depth",
    ];
    assert_eq!(names, wanted.into());
    let labelled = |name: &str, label: &str| -> BTreeSet<&str> {
        let results = results.iter().filter(|result| result["name"] == name);
        results
            .filter_map(|result| result["labels"][label].as_str())
            .collect()
    };
    // A page holds what a frame can grow by, at one of its ends.
    let reasons = PassReason::ALL
        .iter()
        .filter(|reason| **reason != PassReason::NoRoom);
    assert_eq!(
        labelled("pass", "reason"),
        reasons.map(|reason| reason.as_str()).collect()
    );
    assert_eq!(
        labelled("stage", "stage"),
        [
            "enter", "parse", "name", "lookup", "grow", "answer", "checksum"
        ]
        .into()
    );
    assert_eq!(
        labelled("floor", "step"),
        [
            "grow",
            "hash",
            "lookup_1_line",
            "lookup_2_lines",
            "write",
            "answer"
        ]
        .into()
    );
    assert!(labelled("stack_depth", "function").contains("peak"));

    let with_limits = results.iter().filter(|result| {
        let [gate, aim] = ["gate", "aim"].map(|limit| result[limit]["limit"].as_f64());
        assert!(gate >= aim, "{result}");
        gate.is_some()
    });
    // Those of a hit among many names are not asked in a smoke run; one is about a ratio.
    assert_eq!(with_limits.count(), 7 + 1);
    Ok(())
}

#[test]
fn a_table_is_measured_at_each_size() -> Result<()> {
    let results = run("scale", &["--object", OBJECT])?;
    for names in [200, 2_000] {
        let found = |name: &str| -> Vec<&Value> {
            let found = results
                .iter()
                .filter(|result| result["name"] == name && result["labels"]["names"] == names);
            found.collect()
        };
        for name in [
            "hot_hit",
            "hot_growth",
            "hit",
            "load",
            "load_snapshot",
            "load_table",
            "change",
            "change_snapshot",
            "change_table",
            "memory",
            "memory_per_name",
        ] {
            assert_eq!(found(name).len(), 1, "{name} of {names} names");
        }
        let misses: BTreeSet<_> = found("miss")
            .iter()
            .filter_map(|result| result["labels"]["answer"].as_str())
            .collect();
        assert_eq!(misses, ["nxdomain", "pass"].into());
        for name in ["hot_growth", "memory", "memory_per_name"] {
            assert!(found(name)[0]["gate"]["limit"].is_number(), "{name}");
        }
        assert!(found("change")[0]["min"].as_f64() > Some(0.0));
        // An index and a heap of a megabyte each, at the least.
        assert!(found("memory")[0]["min"].as_f64() > Some(2e6));
    }
    Ok(())
}

#[test]
fn the_fallbacks_answers_are_timed_mix_by_mix() -> Result<()> {
    let results = run("answer", &[])?;
    let timed: BTreeSet<_> = results
        .iter()
        .filter(|result| result["name"] == "fallback_answer" && result["min"].as_f64() > Some(0.0))
        .filter_map(|result| {
            let labels = &result["labels"];
            Some((labels["mix"].as_str()?, labels["names"].as_u64()?))
        })
        .collect();
    let mixes = [
        "aaaa", "edns", "eight", "nodata", "nxdomain", "search", "srv", "refused",
    ];
    let wanted = mixes.map(|mix| [(mix, 1 << 10), (mix, 1 << 17)]);
    assert_eq!(timed, wanted.into_iter().flatten().collect());
    Ok(())
}

#[test]
fn both_servers_know_a_cluster_and_answer_its_changes() -> Result<()> {
    let results = run("propagation", &["--services", "20", "--endpoints", "150"])?;
    let of_servers: BTreeSet<_> = results
        .iter()
        .filter(|result| result["labels"]["endpoints"].is_null())
        .filter_map(|result| {
            Some((
                result["name"].as_str()?,
                result["labels"]["server"].as_str()?,
            ))
        })
        .collect();
    let both = |name| [(name, "coredns"), (name, "peak")];
    let mut wanted: BTreeSet<_> = [
        "ready_time",
        "sync_cpu",
        "resident_rest",
        "resident_peak",
        "event_to_answer_growth",
        "change_to_answer_growth",
    ]
    .into_iter()
    .flat_map(both)
    .collect();
    wanted.insert(("kernel_memory", "peak"));
    assert_eq!(of_servers, wanted);
    for result in &results {
        // Times of a few changes may be less than nothing: a server may have an event before our own watch does.
        if result["unit"] != "ms" && result["unit"] != "x" {
            assert!(result["max"].as_f64() > Some(0.0), "{result}");
        }
    }

    for server in ["coredns", "peak"] {
        for endpoints in [10, 200] {
            let of_both = ["change_to_event", "event_to_answer", "change_to_answer"];
            let of_peak = ["slice_to_event", "slice_event_to_answer", "slice_to_answer"];
            let of_peak = of_peak.iter().filter(|_| server == "peak");
            for name in of_both.iter().chain(of_peak) {
                let found = results.iter().filter(|result| {
                    result["name"] == *name
                        && result["labels"]["server"] == server
                        && result["labels"]["endpoints"] == endpoints
                });
                let samples: Vec<_> = found.map(|result| &result["samples"]).collect();
                assert_eq!(
                    samples,
                    [5],
                    "{name} of {server} with {endpoints} endpoints"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn every_peer_is_asked_every_mix_that_it_can_answer() -> Result<()> {
    let results = run("peers", &[])?;
    let found: BTreeSet<_> = results
        .iter()
        .map(|result| {
            let labels = &result["labels"];
            ["name", "server", "mix", "load"].map(|key| {
                let value = if key == "name" {
                    &result[key]
                } else {
                    &labels[key]
                };
                value.as_str().unwrap_or_default().to_owned()
            })
        })
        .collect();
    let servers = [
        "peak",
        "peak-fallback",
        "coredns",
        "coredns-file",
        "knot-xdp",
        "knot",
        "nsd",
        "unbound",
        "bind",
        "pdns",
    ];
    let forwards = |server| ["peak", "peak-fallback", "coredns", "unbound"].contains(&server);
    let mut wanted = BTreeSet::new();
    let mut want = |name: &str, server: &str, mix: &str, load: &str| {
        wanted.insert([name, server, mix, load].map(str::to_owned));
    };
    for server in servers {
        want("resident", server, "", "");
        for mix in ["uniform", "zipf", "nxdomain", "cluster"] {
            if mix == "cluster" && !forwards(server) {
                continue;
            }
            want("answers_per_second", server, mix, "");
            want("answers_per_cpu_second", server, mix, "");
            want("latency", server, mix, "moderate");
            want("latency", server, mix, "half");
            if server.starts_with("peak") {
                want("kernel_share", server, mix, "");
                want("times_coredns", server, mix, "");
            }
            if server == "peak" && mix != "cluster" {
                want("times_knot_xdp", server, mix, "");
            }
            if server == "peak-fallback" && mix != "cluster" {
                want("times_nsd", server, mix, "");
            }
        }
    }
    assert_eq!(found, wanted);
    for result in &results {
        let share = result["name"] == "kernel_share";
        assert!(share || result["min"].as_f64() > Some(0.0), "{result}");
        if share {
            // Names of pods that are made up, and names outside, are the fallback's: 7 of 25 of the mix of a cluster.
            let least = match result["labels"]["mix"].as_str() {
                _ if result["labels"]["server"] == "peak-fallback" => 0.0,
                Some("cluster") => 0.6,
                _ => 0.9,
            };
            assert!(result["median"].as_f64() >= Some(least), "{result}");
        }
    }
    Ok(())
}

#[test]
fn answers_across_a_wire_are_counted_at_both_ends() -> Result<()> {
    let results = run("wire", &["--object", OBJECT, "--services", "50"])?;
    let of = |name: &str| -> BTreeSet<_> {
        let of = results.iter().filter(|result| result["name"] == name);
        of.filter_map(|result| {
            let label = |name| result["labels"][name].as_str();
            Some((label("server")?, label("sender")?, label("load")?))
        })
        .collect()
    };
    let loads = |loads: &[(&'static str, &'static str)]| -> BTreeSet<_> {
        ["peak", "peak-fallback"]
            .into_iter()
            .flat_map(|server| {
                loads
                    .iter()
                    .map(move |(sender, load)| (server, *sender, *load))
            })
            .collect()
    };
    let floods = [
        ("sockets", "knee"),
        ("dnsperf", "flood"),
        ("live-frames", "knee"),
        ("live-frames", "flood"),
    ];
    let paced = ["idle", "half", "nine_tenths"].map(|load| ("sockets", load));
    let one = [("sockets", "one")];
    assert_eq!(of("answers_per_second"), loads(&floods));
    assert_eq!(of("latency"), loads(&paced));
    assert_eq!(of("latency_curve"), loads(&[("sockets", "curve")]));
    for name in ["round_trip", "round_trip_p50", "round_trip_p99"] {
        assert_eq!(of(name), loads(&one), "{name}");
    }
    let all = [&floods[..], &paced, &one].concat();
    for name in ["cpu_per_answer", "by_receiver", "by_responder"] {
        assert_eq!(of(name), loads(&all), "{name}");
    }

    // Nothing is lost on the way back but what arrives after the last look.
    let counts = |name: &'static str| results.iter().filter(move |result| result["name"] == name);
    for (receiver, responder) in counts("by_receiver").zip(counts("by_responder")) {
        assert_eq!(receiver["labels"], responder["labels"]);
        let [received, responded] = [receiver, responder].map(|count| count["median"].as_f64());
        let (received, responded) = (received.context("a count")?, responded.context("a count")?);
        assert!(received > 0.0 && received <= responded, "{receiver}");
    }
    Ok(())
}
