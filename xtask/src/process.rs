//! Running other programs, and saying so.

use std::{
    env,
    ffi::OsStr,
    io::{IsTerminal, stderr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Where cargo leaves the host's programs.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// Says on stderr what happens next.
pub(crate) fn say(text: impl AsRef<str>) {
    let (bold, plain) = style("\x1b[1;36m");
    eprintln!("{bold}peak{plain} {}", text.as_ref());
}

/// Says on stderr what went wrong, on one line.
pub(crate) fn complain(error: &anyhow::Error) {
    let (red, plain) = style("\x1b[1;31m");
    eprintln!("{red}error{plain} {error:#}");
}

/// Colour only where a person looks, and has not asked for none.
fn style(colour: &'static str) -> (&'static str, &'static str) {
    if stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
        (colour, "\x1b[0m")
    } else {
        ("", "")
    }
}

/// The host's cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// `program` as root: as it is for root, through sudo for anybody else.
pub(crate) fn privileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = match runner() {
        [] => return Command::new(program),
        [sudo, flags @ ..] => {
            let mut command = Command::new(sudo);
            command.args(flags);
            command
        }
    };
    command.arg(program);
    command
}

/// What to put before a program that has to be root.
pub(crate) fn runner() -> &'static [&'static str] {
    if is_root() { &[] } else { &["sudo", "-E"] }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The program's path, as PATH says; system administrators' folders too, which an ordinary user's PATH lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Runs to the end.
///
/// # Errors
/// Names the command line when it cannot be started or does not end well.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// What a command prints, if it ends well.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Becomes the other program, so that signals and the exit status are its own.
///
/// # Errors
/// Returns only when the program cannot be started.
pub(crate) fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", line(command)))
}

fn line(command: &Command) -> String {
    [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
