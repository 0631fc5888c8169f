//! The pinned tools, fetched once a machine: into rustup's own store, and into `${XDG_CACHE_HOME:-~/.cache}/peak`.

use std::{
    env, fs,
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process::{self, say};

/// Compiles the eBPF program. Pinned, because its LLVM (22) has to be the one that [`BPF_LINKER`] understands.
pub(crate) const NIGHTLY: &str = "nightly-2026-07-07";

/// Links what the nightly compiles into one BPF object with BTF.
pub(crate) const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.10.3",
};

/// Checks licences, sources and banned crates.
pub(crate) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
};

/// A program that cargo builds from its registry.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
}

impl Tool {
    /// The program, built into the cache unless it is there already.
    ///
    /// # Errors
    /// The cache can't be written, or cargo cannot build the tool.
    pub(crate) fn installed(&self) -> Result<PathBuf> {
        let Self { name, version } = self;
        let folder = install(&format!("{name}-{version}"), &[name], |unfinished| {
            process::run(
                process::cargo()
                    .args(["install", "--locked", name, "--version", version, "--root"])
                    .arg(unfinished)
                    .env_remove("CARGO_TARGET_DIR"),
            )
        })?;
        Ok(folder.join(name))
    }
}

/// What `name` has in its `bin` folder in the cache: `programs`, which `build` is to put there unless they are there already.
///
/// # Errors
/// The cache can't be written, or the build fails.
pub(crate) fn install(
    name: &str,
    programs: &[&str],
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let tools = cache()?.join("tools");
    let folder = tools.join(name);
    let bin = folder.join("bin");
    let complete = || programs.iter().all(|program| bin.join(program).exists());
    if complete() {
        return Ok(bin);
    }
    let _lock = lock(&tools)?;
    if complete() {
        return Ok(bin);
    }
    say(format!(
        "building {name}: some minutes, once, into {}",
        folder.display()
    ));
    // Built elsewhere and renamed, so that what is under its final name is whole.
    let unfinished = tools.join(format!(".{name}"));
    for leftover in [&unfinished, &folder] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)
                .with_context(|| format!("cannot remove {}", leftover.display()))?;
        }
    }
    build(&unfinished)?;
    fs::rename(&unfinished, &folder)
        .with_context(|| format!("cannot move {} into place", unfinished.display()))?;
    Ok(bin)
}

/// Makes sure of the pinned nightly with `rust-src` and what else is asked for.
///
/// # Errors
/// rustup can't install it.
pub(crate) fn install_nightly(components: &[&str]) -> Result<()> {
    let wanted = ["rust-src"].iter().chain(components);
    if has_components(wanted.clone()) {
        return Ok(());
    }
    let _lock = lock(&cache()?)?;
    if has_components(wanted.clone()) {
        return Ok(());
    }
    say(format!("installing {NIGHTLY} with rustup, once"));
    let mut rustup = Command::new("rustup");
    rustup.args([
        "toolchain",
        "install",
        NIGHTLY,
        "--no-self-update",
        "--profile",
        "minimal",
    ]);
    for component in wanted {
        rustup.args(["--component", component]);
    }
    let has_default = process::output(Command::new("rustup").arg("default")).is_some();
    process::run(&mut rustup)?;
    if !has_default {
        // The first toolchain that is installed becomes the default: this one shall rule no other project.
        process::run(Command::new("rustup").args(["default", "none"]))?;
    }
    Ok(())
}

fn has_components<'a>(mut wanted: impl Iterator<Item = &'a &'a str>) -> bool {
    let list = process::output(
        Command::new("rustup")
            .args(["component", "list", "--installed", "--toolchain", NIGHTLY])
            // Asked about a toolchain that is not there, rustup would fetch it, and nobody would see why this takes so long.
            .env("RUSTUP_AUTO_INSTALL", "0"),
    );
    // A line is the component's name, with the host's triple behind it where there is one a host.
    list.is_some_and(|list| {
        wanted.all(|component| list.lines().any(|line| line.starts_with(component)))
    })
}

/// The nightly's cargo in the workspace, set to compile for BPF, with the linker at hand.
///
/// # Errors
/// A tool is missing and can't be installed.
pub(crate) fn bpf_cargo(verb: &str) -> Result<Command> {
    let linker = BPF_LINKER.installed()?;
    let folder = linker.parent().context("a program is in a folder")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [folder.to_owned()]
            .into_iter()
            .chain(env::split_paths(&path)),
    )?;
    let mut command = Command::new("rustup");
    command
        .current_dir(process::workspace())
        .args(["run", NIGHTLY, "cargo", verb, "--package", "peak-ebpf"])
        .args([
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--release",
        ])
        // Apart from the host's: another compiler works here, and neither shall wait for the other's lock.
        .arg("--target-dir")
        .arg(process::target().join("ebpf"))
        .env("PATH", path)
        .env("CARGO_ENCODED_RUSTFLAGS", bpf_flags().join("\x1f"));
    // This program was started by the host's cargo, whose choice of compiler is not meant here.
    for inherited in [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(inherited);
    }
    Ok(command)
}

/// How code for the kernel is compiled.
fn bpf_flags() -> [String; 6] {
    [
        // Which registers a probe finds its arguments in; aya-ebpf asks.
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        // 32-bit instructions and jumps, atomics that return a value: all in the kernels that Peak supports.
        "-Ctarget-cpu=v3".to_owned(),
        // Where the processor can load any word from any address, so can BPF: packets align nothing.
        "-Ctarget-feature=+allows-misaligned-mem-access".to_owned(),
        // BTF is made from debug information: maps and the verifier's messages need it.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The linker tells of a file it could not use as LLVM before it uses the right one. Its errors still show.
        "-Alinker-messages".to_owned(),
    ]
}

/// `${XDG_CACHE_HOME:-~/.cache}/peak`, made if need be.
fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        // The XDG base directory specification: a relative path is invalid and ignored.
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep tools")?;
    Ok(base.join("peak"))
}

/// Keeps two installations apart. Released when dropped.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say(format!(
                "another installation is under way: waiting for {}",
                path.display()
            ));
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(file)
}
