//! What has to be on the machine before Peak can be built or run: all of it is looked at first, and named together.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::process::{self, say};

/// The oldest kernel that Peak runs on: programs that accept multi-buffer frames (`xdp.frags`) came with 5.18.
const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// The oldest Go that Kubernetes 1.36 can be built with.
const OLDEST_GO: (u32, u32) = (1, 26);

/// What Peak, its tests and its demo do, by capability number (`linux/capability.h`).
const CAPABILITIES: [(u32, &str); 4] = [
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
    (38, "CAP_PERFMON"),
    (39, "CAP_BPF"),
];

/// What is about to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compile, for host and kernel.
    Build,
    /// Fetch what the others take.
    Setup,
    /// Compile, then load programs and make network namespaces.
    Run,
    /// As [`Self::Run`], against a Kubernetes control plane.
    Test,
    /// Compile a Kubernetes control plane and start it, as any user.
    Cluster,
}

impl Purpose {
    fn needs_root(self) -> bool {
        matches!(self, Self::Setup | Self::Run | Self::Test)
    }

    fn needs_go(self) -> bool {
        matches!(self, Self::Setup | Self::Test | Self::Cluster)
    }
}

/// Looks for all that `purpose` needs.
///
/// # Errors
/// Lists everything that is missing, each with its remedy.
pub(crate) fn check(purpose: Purpose) -> Result<()> {
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|program| purpose.needs_root() || !program.for_root)
        .filter(|program| process::find(program.name).is_none())
        .map(|program| {
            format!(
                "{} ({}): {}",
                program.name, program.what_for, program.remedy
            )
        })
        .collect();
    if purpose.needs_go() {
        missing.extend(go());
    }
    if purpose.needs_root() {
        missing.extend(privileges());
        missing.extend(kernel());
    }
    if !missing.is_empty() {
        bail!("missing on this machine:\n  - {}", missing.join("\n  - "));
    }
    if matches!(purpose, Purpose::Run | Purpose::Test) && !process::is_root() {
        ask_sudo()?;
    }
    Ok(())
}

/// Makes sure that sudo lets this user, now rather than after minutes of building.
fn ask_sudo() -> Result<()> {
    if process::output(Command::new("sudo").args(["-n", "true"])).is_some() {
        return Ok(());
    }
    say("root will load BPF programs and make namespaces: sudo may want your password");
    let granted = Command::new("sudo").arg("-v").status();
    if !granted.is_ok_and(|status| status.success()) {
        bail!(
            "sudo does not let this user: run this as root, as somebody who may use sudo, or from a terminal if sudo wants \
             a password"
        );
    }
    Ok(())
}

struct Program {
    name: &'static str,
    what_for: &'static str,
    remedy: &'static str,
    /// Only used by what root does.
    for_root: bool,
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "rustup",
        what_for: "fetches the two pinned compilers",
        remedy: "install it from https://rustup.rs",
        for_root: false,
    },
    Program {
        name: "git",
        what_for: "the sources' version",
        remedy: "`apt-get install git`, or your distribution's package",
        for_root: false,
    },
    Program {
        name: "cc",
        what_for: "the linker of host programs",
        remedy: "`apt-get install gcc libc6-dev`, or your distribution's C compiler",
        for_root: false,
    },
    Program {
        name: "ip",
        what_for: "network namespaces and veth pairs",
        remedy: "`apt-get install iproute2`, or your distribution's package",
        for_root: true,
    },
];

/// A Go that is new enough, without what it might fetch instead of itself.
fn go() -> Option<String> {
    let (major, minor) = OLDEST_GO;
    let wanted = format!(
        "go {major}.{minor} or newer (builds the Kubernetes control plane of tests and of `demo --cluster`)"
    );
    let remedy = "install it from https://go.dev/dl and have its bin folder in PATH";
    if process::find("go").is_none() {
        return Some(format!("{wanted}: {remedy}"));
    }
    let found = process::output(
        Command::new("go")
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local"),
    )
    .unwrap_or_default();
    let found = found.trim();
    version(found.trim_start_matches("go"))
        .is_none_or(|version| version < OLDEST_GO)
        .then(|| format!("{wanted}: this is {found:?}; {remedy}"))
}

/// Root with what root has outside a container, or sudo.
fn privileges() -> Option<String> {
    if !process::is_root() {
        return process::find("sudo").is_none().then(|| {
            "root (loads BPF programs, makes namespaces): install sudo, or run this as root"
                .to_owned()
        });
    }
    let effective = fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        })?;
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "{} (this root does without, as in a container): run it outside, or in a privileged container",
            lacking.join(", ")
        )
    })
}

/// A kernel that is new enough, and describes its own types.
fn kernel() -> Vec<String> {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let (major, minor) = OLDEST_KERNEL;
    let mut missing = Vec::new();
    if version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
        missing.push(format!(
            "Linux {major}.{minor} or newer (XDP programs for multi-buffer frames): this is {release}; boot a newer kernel"
        ));
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        missing.push(
            "/sys/kernel/btf/vmlinux (the kernel's BTF): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y".to_owned(),
        );
    }
    missing
}

/// Major and minor of a release such as `6.18.44-fc`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn release_is_read_up_to_the_minor_number() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn releases_are_ordered_as_numbers() {
        assert!(version("5.9.0") < version("5.18.0"));
    }
}
