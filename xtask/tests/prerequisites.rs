//! What is missing is named, with its remedy, before anything else happens.

use std::process::Command;

#[test]
fn all_that_is_missing_is_named_at_once() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("build-ebpf")
        .env("PATH", "/nowhere")
        .output()
        .expect("xtask starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let said = String::from_utf8_lossy(&output.stderr);
    let mut lines = said.lines();
    // Neither a terminal nor colour.
    assert_eq!(lines.next(), Some("error missing on this machine:"));
    let missing = [
        ("rustup", "https://rustup.rs"),
        ("git", "apt-get install git"),
        ("cc", "apt-get install gcc"),
    ];
    for ((program, remedy), line) in missing.into_iter().zip(lines.by_ref()) {
        assert!(
            line.starts_with(&format!("  - {program} (")) && line.contains(remedy),
            "{said}"
        );
    }
    assert_eq!(lines.next(), None);
}
