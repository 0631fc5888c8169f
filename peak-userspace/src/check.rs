//! `peak check`: what the agent would say of a folder of manifests, without one.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    cli::{CheckArgs, Output},
    records::RecordPolicy,
    snapshot::{Snapshot, SnapshotConfig},
    source::manifests::{self, Diagnostic},
    validate::Severity,
};

/// What the folder holds and what is wrong with it. Its fields are the keys of `--output json`.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    files: usize,
    services: usize,
    endpoint_slices: usize,
    pods: usize,
    names: usize,
    skipped: BTreeSet<String>,
    diagnostics: Vec<Diagnostic>,
}

/// Checks the folder and says what it found: exit status 1 if there is an error, 2 if the folder can't be read.
///
/// # Errors
/// Writing fails.
pub fn run(arguments: &CheckArgs) -> Result<ExitCode> {
    check(
        arguments,
        &mut io::stdout().lock(),
        &mut io::stderr().lock(),
    )
}

fn check(arguments: &CheckArgs, out: &mut impl Write, err: &mut impl Write) -> Result<ExitCode> {
    let inventory = match manifests::read(&arguments.folder, RecordPolicy::default()) {
        Ok(inventory) => inventory,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(ExitCode::from(2));
        }
    };
    let config = SnapshotConfig {
        zones: arguments.zone.clone(),
        ..SnapshotConfig::default()
    };
    let (snapshot, _) = Snapshot::empty(config).with(inventory.batch, SystemTime::now());
    let mut diagnostics = inventory.diagnostics;
    diagnostics.extend(snapshot.problems().iter().map(|problem| {
        let message = format!("{}: {problem}", problem.object);
        Diagnostic::of_file(Severity::Error, &arguments.folder, message)
    }));
    let report = Report {
        ok: diagnostics
            .iter()
            .all(|diagnostic| diagnostic.severity != Severity::Error),
        files: inventory.files,
        services: inventory.services,
        endpoint_slices: inventory.endpoint_slices,
        pods: inventory.pods,
        names: snapshot.name_count(),
        skipped: inventory.skipped,
        diagnostics,
    };
    match arguments.output {
        Output::Text => report.print(out),
        Output::Json => serde_json::to_writer(&mut *out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out)),
    }
    .context("can't write the report")?;
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Report {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for diagnostic in &self.diagnostics {
            let severity = match diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(out, "{severity}: {diagnostic}")?;
        }
        for kind in &self.skipped {
            writeln!(
                out,
                "note: objects of the kind {kind} are skipped: only Service, EndpointSlice and Pod matter here"
            )?;
        }
        let count = |severity| {
            self.diagnostics
                .iter()
                .filter(|diagnostic| diagnostic.severity == severity)
                .count()
        };
        writeln!(
            out,
            "{} in {}, {}, {}: {}, {}",
            number(self.services, "Service"),
            number(self.files, "file"),
            number(self.endpoint_slices, "EndpointSlice"),
            number(self.pods, "Pod"),
            number(count(Severity::Error), "error"),
            number(count(Severity::Warning), "warning"),
        )
    }
}

fn number(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;
    use crate::name::Name;

    const GOOD: &str =
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: fd00::1}\n";

    /// The exit status, and what is said on standard output and standard error.
    fn checked(folder: &TempDir, zone: &str, output: Output) -> (ExitCode, String, String) {
        let arguments = CheckArgs {
            folder: folder.path().to_owned(),
            zone: vec![Name::parse(zone).unwrap()],
            output,
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = check(&arguments, &mut out, &mut err).unwrap();
        let text = |bytes| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&folder.path().display().to_string(), "DIR")
        };
        (status, text(out), text(err))
    }

    #[test]
    fn a_good_folder() {
        let folder = TempDir::new().unwrap();
        fs::write(
            folder.path().join("a.yaml"),
            format!("{GOOD}---\napiVersion: v1\nkind: ConfigMap\n"),
        )
        .unwrap();
        let (status, out, err) = checked(&folder, "cluster.local", Output::Text);
        assert_eq!(status, ExitCode::SUCCESS);
        assert_eq!(
            out,
            "note: objects of the kind v1 ConfigMap are skipped: only Service, EndpointSlice and Pod matter here\n\
             1 Service in 1 file, 0 EndpointSlices, 0 Pods: 0 errors, 0 warnings\n"
        );
        assert_eq!(err, "");
    }

    #[test]
    fn errors_are_counted_and_placed() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), GOOD.replace("fd00", "fdoo")).unwrap();
        let (status, out, _) = checked(&folder, "cluster.local", Output::Text);
        assert_eq!(status, ExitCode::FAILURE);
        let expected = "error: DIR/a.yaml:4: document 1: spec.clusterIP: \"fdoo::1\" is neither an IP address nor \"None\"\n\
             0 Services in 1 file, 0 EndpointSlices, 0 Pods: 1 error, 0 warnings\n";
        assert_eq!(out, expected);
        let (status, out, _) = checked(&folder, "cluster.local", Output::Json);
        assert_eq!(status, ExitCode::FAILURE);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["ok"], false);
        assert_eq!(report["diagnostics"][0]["severity"], "error");
        assert_eq!(report["diagnostics"][0]["file"], "DIR/a.yaml");
        assert_eq!(report["diagnostics"][0]["document"], 1);
        assert_eq!(report["diagnostics"][0]["line"], 4);
        assert_eq!(report["diagnostics"][0]["field"], "spec.clusterIP");
    }

    #[test]
    fn a_pod_is_checked_as_far_as_its_addresses() {
        let folder = TempDir::new().unwrap();
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web-1}\nstatus:\n  podIPs:\n  - ip: fd00::1\n  - ip: fd00\n";
        fs::write(folder.path().join("a.yaml"), pod).unwrap();
        let (status, out, _) = checked(&folder, "cluster.local", Output::Text);
        assert_eq!(status, ExitCode::FAILURE);
        let expected = "error: DIR/a.yaml:7: document 1: status.podIPs[1].ip: \"fd00\" is no IP address\n\
             0 Services in 1 file, 0 EndpointSlices, 0 Pods: 1 error, 0 warnings\n";
        assert_eq!(out, expected);
        fs::write(
            folder.path().join("a.yaml"),
            pod.replace("ip: fd00\n", "ip: 10.0.0.1\n"),
        )
        .unwrap();
        let (status, out, _) = checked(&folder, "cluster.local", Output::Text);
        assert_eq!(status, ExitCode::SUCCESS);
        assert!(
            out.ends_with("0 EndpointSlices, 1 Pod: 0 errors, 0 warnings\n"),
            "{out}"
        );
    }

    #[test]
    fn a_name_that_does_not_fit_the_zone_is_an_error() {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("a.yaml"), GOOD).unwrap();
        let zone = format!("{0}.{0}.{0}.{1}", "z".repeat(63), "z".repeat(50));
        let (status, out, _) = checked(&folder, &zone, Output::Text);
        assert_eq!(status, ExitCode::FAILURE);
        assert!(
            out.contains("error: DIR: Service default/web: no name \"web.default.svc\""),
            "{out}"
        );
    }

    #[test]
    fn a_folder_that_is_none() {
        let folder = TempDir::new().unwrap();
        fs::remove_dir(folder.path()).unwrap();
        let (status, out, err) = checked(&folder, "cluster.local", Output::Text);
        assert_eq!((status, &*out), (ExitCode::from(2), ""));
        assert!(
            err.starts_with("error: can't read the folder of manifests DIR: No such file"),
            "{err}"
        );
    }
}
