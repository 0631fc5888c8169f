//! What is missing is named, with its remedy, before anything else happens.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// What a verb says on stderr where PATH is `path`, on which it must fail.
fn complaint(verb: &str, path: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg(verb)
        .env("PATH", path)
        .output()
        .expect("xtask starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("it says text")
}

fn assert_missing<'a>(
    lines: impl Iterator<Item = &'a str>,
    missing: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    let lines: Vec<_> = lines.collect();
    // Neither a terminal nor colour.
    assert_eq!(lines[0], "error missing on this machine:");
    let mut rest = lines[1..].iter();
    for (program, remedy) in missing {
        let line = rest.next().unwrap_or(&"");
        assert!(
            line.starts_with(&format!("  - {program} (")) && line.contains(remedy),
            "{program}: {lines:#?}"
        );
    }
    assert_eq!(rest.next(), None);
}

const TO_BUILD: [(&str, &str); 3] = [
    ("rustup", "https://rustup.rs"),
    ("git", "apt-get install git"),
    ("cc", "apt-get install gcc"),
];

const GO: (&str, &str) = ("go 1.26 or newer", "https://go.dev/dl");

#[test]
fn all_that_is_missing_is_named_at_once() {
    let said = complaint("build-ebpf", Path::new("/nowhere"));
    assert_missing(said.lines(), TO_BUILD);
}

#[test]
fn a_control_plane_takes_go() {
    let said = complaint("cluster", Path::new("/nowhere"));
    assert_missing(said.lines(), TO_BUILD.into_iter().chain([GO]));
}

#[test]
fn go_is_a_matter_of_tests_and_not_of_the_demo() {
    let names_go = |verb| complaint(verb, Path::new("/nowhere")).contains(GO.0);
    assert!(names_go("test"));
    assert!(names_go("ci"));
    assert!(!names_go("demo"));
}

#[test]
fn an_old_go_is_named_with_its_version() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("old-go");
    fs::create_dir_all(&folder).expect("cargo's folder is writable");
    let go = folder.join("go");
    fs::write(&go, "#!/bin/sh\necho go1.25.9\n").expect("the folder is writable");
    fs::set_permissions(&go, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let said = complaint("cluster", &folder);
    assert_missing(said.lines(), TO_BUILD.into_iter().chain([GO]));
    assert!(said.contains("\"go1.25.9\""), "{said}");
}
