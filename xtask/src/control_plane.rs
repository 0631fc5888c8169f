//! A Kubernetes control plane, and CoreDNS, for tests: linked by small Go modules of this workspace from the released sources,
//! built once a machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    process::{self, say},
    toolchain,
};

/// What tells fixtures the folders that [`assets`] names.
pub(crate) const ASSETS: &str = "PEAK_ASSETS";

/// Where operators' tests look for a control plane. What somebody has put there goes before what is built here.
const KUBEBUILDER_ASSETS: &str = "KUBEBUILDER_ASSETS";

const MODULES: [Module; 2] = [
    Module {
        folder: "tests/control-plane",
        links: "k8s.io/kubernetes",
        programs: &["etcd", "kube-apiserver", "kube-controller-manager"],
    },
    Module {
        folder: "tests/coredns",
        links: "github.com/coredns/coredns",
        programs: &["coredns"],
    },
];

/// The folders with etcd, kube-apiserver, kube-controller-manager and coredns, in the order in which to look, as one value
/// for [`ASSETS`].
///
/// # Errors
/// Something has to be built, and can't be.
pub(crate) fn assets() -> Result<OsString> {
    let given = env::var_os(KUBEBUILDER_ASSETS)
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from);
    let mut folders = Vec::from_iter(given.clone());
    for module in MODULES {
        let is_given = |program| {
            given
                .as_ref()
                .is_some_and(|folder| folder.join(program).is_file())
        };
        if !module.programs.iter().all(is_given) {
            folders.push(module.installed()?);
        }
    }
    env::join_paths(folders).context("a folder of programs has a colon in its name")
}

/// A Go module that links programs of others.
struct Module {
    /// Where it is in the workspace.
    folder: &'static str,
    /// The module that its programs are of, in the version that its go.mod requires.
    links: &'static str,
    programs: &'static [&'static str],
}

impl Module {
    /// The folder with its programs, built into the cache unless they are there already.
    fn installed(&self) -> Result<PathBuf> {
        let folder = process::workspace().join(self.folder);
        let version = self.version(&folder)?;
        let label = folder.file_name().unwrap_or_default().display();
        let digest = digest(&folder)?;
        let name = format!("{label}-{version}-{digest:016x}");
        toolchain::install(&name, self.programs, |unfinished| {
            say("several processor-minutes; Go names each package that it has compiled");
            process::run(
                Command::new("go")
                    .current_dir(&folder)
                    .args(["build", "-v", "-trimpath", "-buildvcs=false"])
                    // What is committed decides, not a workspace or a module mode from elsewhere.
                    .args(["-mod=readonly", "-ldflags", &link_flags(&version)])
                    .args([OsStr::new("-o"), unfinished.join("bin/").as_os_str()])
                    .arg("./...")
                    .env("GOWORK", "off"),
            )
        })
    }

    /// The version that go.mod requires of what is linked, such as `1.36.2`.
    fn version(&self, folder: &Path) -> Result<String> {
        let path = folder.join("go.mod");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.lines()
            .find_map(|line| {
                let line = line.trim().trim_start_matches("require ");
                line.strip_prefix(self.links)?.strip_prefix(" v")
            })
            .map(str::to_owned)
            .with_context(|| format!("{} does not require {}", path.display(), self.links))
    }
}

/// A release without symbols that knows its version: Kubernetes' own build sets it so, and clients ask.
fn link_flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let [major, minor] = [(); 2].map(|()| numbers.next().unwrap_or_default());
    let variables = [
        ("gitVersion", format!("v{version}")),
        ("gitMajor", major.to_owned()),
        ("gitMinor", minor.to_owned()),
    ];
    variables
        .iter()
        .fold("-s -w".to_owned(), |flags, (variable, value)| {
            format!("{flags} -X k8s.io/component-base/version.{variable}={value}")
        })
}

/// A number that changes with any file of a module, its sums of all dependencies among them: FNV-1a, which is the same with
/// every compiler.
fn digest(folder: &Path) -> Result<u64> {
    let mut files = Vec::new();
    collect(folder, &mut files)?;
    files.sort();
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        for byte in fs::read(&file).with_context(|| format!("cannot read {}", file.display()))? {
            digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(digest)
}

/// The files below a folder.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_module_requires_what_it_links() -> Result<()> {
        for module in MODULES {
            let folder = process::workspace().join(module.folder);
            let version = module.version(&folder)?;
            assert_eq!(version.split('.').count(), 3, "{version}");
        }
        Ok(())
    }

    #[test]
    fn clients_are_told_the_version() {
        assert_eq!(
            link_flags("1.36.2"),
            "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.2 \
             -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
        );
    }
}
