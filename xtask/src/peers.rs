//! The servers that Peak is compared with, and the load generator that asks them: from the distribution's packages, unpacked into
//! the cache. Nothing is installed on the machine, so that no service of theirs starts and nobody's configuration changes.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    control_plane,
    process::{self, say},
    toolchain,
};

/// The Debian packages, and the programs of each that are used.
const PACKAGES: [(&str, &[&str]); 8] = [
    ("knot", &["knotd"]),
    ("knot-dnssecutils", &["kzonecheck"]),
    ("nsd", &["nsd", "nsd-checkzone"]),
    ("bind9", &["named"]),
    ("bind9-utils", &["named-checkzone"]),
    ("unbound", &["unbound"]),
    ("pdns-server", &["pdns_server"]),
    ("dnsperf", &["dnsperf"]),
];

/// What else they need: what a package loads while it runs, and does not depend on.
const BACKENDS: [&str; 1] = ["pdns-backend-bind"];

/// Where a package has its programs.
const PROGRAM_FOLDERS: [&str; 3] = ["usr/sbin", "usr/bin", "sbin"];

/// The folders of [`control_plane::assets`] and that of the peers, as one value for [`control_plane::ASSETS`].
///
/// # Errors
/// As these.
pub(crate) fn assets() -> Result<OsString> {
    let others = control_plane::assets()?;
    let folders = env::split_paths(&others).chain([installed()?]);
    env::join_paths(folders).context("a folder of programs has a colon in its name")
}

/// A folder with each of the programs under its name.
///
/// # Errors
/// apt-get can't have the packages, or what is in them does not start. Where there is no apt-get, a program that is not in PATH
/// either: it is named.
pub(crate) fn installed() -> Result<PathBuf> {
    let programs: Vec<_> = PACKAGES
        .iter()
        .flat_map(|(_, programs)| *programs)
        .copied()
        .collect();
    let name = format!("peers-{}", distribution());
    let bin = if process::find("apt-get").is_some() {
        toolchain::install(&name, &programs, |unfinished| unpack(unfinished, &programs))?
    } else {
        toolchain::install(&name, &programs, |unfinished| link(unfinished, &programs))?
    };
    // What is unpacked uses libraries of the machine, which may have become others since.
    for program in ["knotd", "nsd", "named", "unbound", "pdns_server", "dnsperf"] {
        starts(&bin.join(program)).with_context(|| {
            let folder = bin.parent().unwrap_or(&bin).display();
            format!("remove {folder} and run `cargo xtask bench setup` again")
        })?;
    }
    Ok(bin)
}

/// What tells apart the packages of two distributions: `debian-12`.
fn distribution() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let mut lines = release.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or("unknown").trim_matches('"').to_owned()
    };
    format!("{}-{}", value("ID"), value("VERSION_ID"))
}

/// Fetches packages, with what they need and this machine lacks, and unpacks them into a folder.
fn unpack(folder: &Path, programs: &[&str]) -> Result<()> {
    let packages: Vec<_> = PACKAGES
        .iter()
        .map(|(package, _)| *package)
        .chain(BACKENDS)
        .collect();
    say(format!(
        "fetching {} with apt-get, to be unpacked into the cache: nothing is installed on this machine",
        packages.join(", ")
    ));
    let archives = folder.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    let fetch = || {
        process::run(
            Command::new("apt-get")
                // The listed ones even if this machine has them, in case it has not for long.
                .args(["install", "--download-only", "--reinstall", "--yes"])
                .args(["--quiet", "--no-install-recommends"])
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", archives.display()))
                // Whoever installs something meanwhile is not in the way: this only reads what is installed.
                .args(["-o", "Debug::NoLocking=true"])
                // The user that root would have it fetch as may not write to root's cache.
                .args(["-o", "APT::Sandbox::User=root"])
                .args(&packages),
        )
    };
    if fetch().is_err() {
        say("again with fresh package lists");
        process::run(process::privileged("apt-get").arg("update"))?;
        fetch().context("no packages of the servers that Peak is compared with")?;
    }
    let root = folder.join("root");
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive.extension().is_some_and(|kind| kind == "deb") {
            process::run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&archive, &root]),
            )?;
        }
    }
    fs::remove_dir_all(&archives)?;
    let bin = folder.join("bin");
    fs::create_dir(&bin)?;
    for program in programs {
        let mut places = PROGRAM_FOLDERS
            .iter()
            .map(|place| format!("{place}/{program}"));
        let place = places.find(|place| root.join(place).exists());
        let place = place.with_context(|| format!("no package has a program {program}"))?;
        let wrapper = bin.join(program);
        fs::write(&wrapper, wrapped(&place))?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// A script that becomes an unpacked program: with the process that it was started as, and the libraries unpacked beside it.
fn wrapped(place: &str) -> String {
    let machine = env::consts::ARCH;
    format!(
        "#!/bin/sh\n\
         root=$(dirname \"$(readlink -f \"$0\")\")/../root\n\
         libraries=$root/usr/lib/{machine}-linux-gnu:$root/lib/{machine}-linux-gnu:$root/usr/lib\n\
         export LD_LIBRARY_PATH=\"$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         exec \"$root/{place}\" \"$@\"\n"
    )
}

/// Links to the programs of the distribution's packages.
fn link(folder: &Path, programs: &[&str]) -> Result<()> {
    let (found, missing): (Vec<_>, Vec<_>) = programs
        .iter()
        .map(|program| (program, process::find(program)))
        .partition(|(_, path)| path.is_some());
    let missing: Vec<_> = missing.iter().map(|(program, _)| **program).collect();
    if !missing.is_empty() {
        bail!(
            "there is no apt-get to fetch {} with: install them with your distribution's packages, and have their services off",
            missing.join(", ")
        );
    }
    let bin = folder.join("bin");
    fs::create_dir_all(&bin)?;
    for (program, path) in found {
        let path = path.expect("those without were named");
        std::os::unix::fs::symlink(&path, bin.join(program))
            .with_context(|| format!("cannot link {}", path.display()))?;
    }
    Ok(())
}

/// Makes sure that a program starts: that all of its libraries are there.
fn starts(program: &Path) -> Result<()> {
    // dnsperf has no option for its version, and says so with its usage.
    let flag = match program.file_name().and_then(|name| name.to_str()) {
        Some("nsd") => "-v",
        Some("unbound" | "named") => "-V",
        Some("dnsperf") => "-h",
        _ => "--version",
    };
    let output = Command::new(program)
        .arg(flag)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // The dynamic linker's, and the shell's where there is no such program.
    ensure!(
        !matches!(output.status.code(), Some(126 | 127) | None),
        "{} does not start: {}",
        program.display(),
        said.trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_program_keeps_its_arguments_and_gets_its_libraries() {
        let script = wrapped("usr/sbin/nsd");
        assert!(script.starts_with("#!/bin/sh\n"), "{script}");
        assert!(
            script.ends_with("exec \"$root/usr/sbin/nsd\" \"$@\"\n"),
            "{script}"
        );
        assert!(script.contains("-linux-gnu"), "{script}");
    }

    #[test]
    fn a_distribution_has_a_name_that_a_folder_can_have() {
        let name = distribution();
        assert!(!name.is_empty() && !name.contains('/'), "{name}");
    }
}
