//! Every setting of `peak run` can be typed, stand in the environment and in the file; in this order of precedence.
//!
//! One test, in a program of its own: it changes the environment of the process.

use std::{env, fs};

use clap::Args as _;
use peak_userspace::{
    cli::{Cli, Command, RunArgs},
    config::RunConfig,
};

const README: &str = include_str!("../../README.md");

/// Three values of each setting: typed, of the environment, of the file.
const VALUES: [(&str, [&str; 3]); 18] = [
    ("manifests", ["/typed", "/environment", "/file"]),
    ("kubeconfig", ["/typed", "/environment", "/file"]),
    ("context", ["typed", "environment", "file"]),
    ("namespace", ["typed", "environment", "file"]),
    ("interface", ["typed", "environment", "file"]),
    ("listen", ["[::1]:1", "[::1]:2", "[::1]:3"]),
    ("zone", ["typed", "environment", "file"]),
    ("xdp", ["generic", "native", "off"]),
    (
        "upstream",
        ["192.0.2.1:53", "192.0.2.2:53", "file.example=192.0.2.3:53"],
    ),
    ("forward-for", ["fd00:1::/32", "fd00:2::/32", "fd00:3::/32"]),
    ("ttl", ["1", "2", "3"]),
    ("reverse", ["fd00:1::/32", "fd00:2::/32", "fd00:3::/32"]),
    ("pods", ["insecure", "disabled", "insecure"]),
    ("answers", ["one", "2", "3"]),
    ("serving-terminating", ["true", "false", "true"]),
    ("admin", ["/typed", "/environment", "/file"]),
    ("metrics", ["[::1]:1", "[::1]:2", "[::1]:3"]),
    ("log-one-in", ["1", "2", "3"]),
];

/// Sets a variable of the environment, or takes it away.
fn set(variable: &str, value: Option<&str>) {
    // SAFETY: this process has one test, and it starts no threads that could read the environment meanwhile.
    unsafe {
        match value {
            Some(value) => env::set_var(variable, value),
            None => env::remove_var(variable),
        }
    }
}

/// What `peak run` would do with these words.
fn config(words: &[&str]) -> RunConfig {
    let line = ["peak", "run"].iter().chain(words);
    let Command::Run(arguments) = Cli::of(line).expect("words that make sense").command else {
        panic!("{words:?} is no run");
    };
    RunConfig::from(&arguments).expect("settings that make sense")
}

#[test]
fn what_is_typed_goes_before_the_environment_and_that_before_the_file() {
    for (variable, _) in env::vars() {
        if variable.starts_with("PEAK_") {
            set(&variable, None);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("peak.toml");
    let path = file.to_str().unwrap();

    let command = RunArgs::augment_args(clap::Command::new("run"));
    let mut settings: Vec<_> = command
        .get_arguments()
        .map(|argument| {
            let name = argument.get_long().expect("a setting has a name");
            let variable = format!("PEAK_{}", name.replace('-', "_").to_uppercase());
            assert!(argument.get_help().is_some(), "{name} is not explained");
            assert!(
                README.contains(&format!("\n| `--{name} ")),
                "{name} is not in README's table"
            );
            assert_eq!(
                argument.get_env().and_then(|variable| variable.to_str()),
                Some(&*variable)
            );
            (name, variable)
        })
        .collect();
    settings.retain(|(name, _)| *name != "config");
    assert_eq!(settings.len(), VALUES.len());

    for (name, variable) in &settings {
        let (_, values) = VALUES
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("no values of {name}"));
        // What every run needs, unless it is what is looked at: services come from a cluster or from a folder.
        let source = match &**name {
            "kubeconfig" | "context" | "namespace" => "--kubeconfig",
            _ => "--manifests",
        };
        let needed = [(source, "/needed"), ("--interface", "needed")];
        let needed: Vec<&str> = needed
            .iter()
            .filter(|(flag, _)| flag[2..] != **name)
            .flat_map(|(flag, value)| [*flag, value])
            .collect();
        let flag = format!("--{name}");
        let run = |words: &[&str]| config(&[&needed, words].concat());
        let [typed, in_environment, in_file] = values.map(|value| run(&[&flag, value]));
        assert_ne!(typed, in_environment, "{name}");
        assert_ne!(in_environment, in_file, "{name}");

        let quoted = values[2].parse::<u32>().is_err();
        let quote = if quoted { "\"" } else { "" };
        fs::write(&file, format!("{name} = {quote}{}{quote}", values[2])).unwrap();
        assert_eq!(run(&["--config", path]), in_file, "{name}");
        set(variable, Some(values[1]));
        assert_eq!(run(&["--config", path]), in_environment, "{name}");
        assert_eq!(run(&["--config", path, &flag, values[0]]), typed, "{name}");
        set(variable, None);
        // An empty variable says nothing.
        set("PEAK_CONFIG", Some(path));
        set(variable, Some(""));
        assert_eq!(run(&[]), in_file, "{name}");
        set(variable, None);
        set("PEAK_CONFIG", None);
    }

    for (variable, words) in [
        ("PEAK_ADMIN", "peak status"),
        ("PEAK_ZONE", "peak check manifests"),
    ] {
        set(variable, Some(""));
        Cli::of(words.split(' ')).unwrap_or_else(|error| panic!("{variable}: {error}"));
        set(variable, None);
    }
}
