//! Commands to a running agent over a unix socket: one JSON object a line, answered by one.

use std::{
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tracing::{debug, warn};

use crate::{
    cli::{AdminArgs, KernelArgs, LookupArgs, Output, Switch},
    name::Name,
    state::State,
};

/// The longest command, in bytes: a name may be written with four for one.
const LONGEST_COMMAND: u64 = 4096;
/// How long a client waits for the agent, and the agent for a client.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "command", rename_all = "lowercase")]
enum Command {
    Status,
    Lookup {
        name: String,
        #[serde(rename = "type")]
        record_type: String,
    },
    Kernel {
        enabled: bool,
    },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ok(Value),
    Error(String),
}

/// The agent's socket. Its file goes when this is dropped.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = fs::remove_file(&self.path);
    }
}

impl AdminSocket {
    /// Listens at `path`, for its owner alone. The file that a dead agent left is replaced.
    ///
    /// # Errors
    /// Another agent listens there, something else is there, or the folder can't be written.
    pub fn bind(path: &Path) -> Result<Self> {
        let what = || format!("can't make the admin socket {}", path.display());
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            && !folder.exists()
        {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .with_context(|| {
                    format!(
                        "{}: make its folder first, or name another with --admin",
                        what()
                    )
                })?;
        }
        let listener = match listen(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                remove_stale(path)?;
                listen(path)
            }
            result => result,
        };
        let listener =
            listener.with_context(|| format!("{}: name another with --admin SOCKET", what()))?;
        Ok(Self {
            path: path.to_owned(),
            listener: UnixListener::from_std(listener.into())?,
        })
    }

    /// Takes commands, for as long as this is polled.
    pub async fn serve(self, state: Arc<State>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let state = Arc::clone(&state);
                    tokio::spawn(async move {
                        match tokio::time::timeout(PATIENCE, converse(stream, &state)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!(%error, "an admin client went away"),
                            Err(_) => debug!("an admin client took too long"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "can't accept a client on the admin socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// A socket with mode 0600 from its first moment on: its file gets the mode that it has itself when it is bound.
fn listen(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(16)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn remove_stale(path: &Path) -> Result<()> {
    let shown = path.display();
    let file = fs::symlink_metadata(path)?.file_type();
    if !file.is_socket() {
        bail!("{shown} is no socket: remove it, or name another with --admin SOCKET");
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            debug!(socket = %shown, "replacing the socket that another agent has left");
            Ok(fs::remove_file(path)?)
        }
        Err(error) => Err(error).with_context(|| format!("can't tell whose the socket {shown} is")),
        Ok(_) => bail!(
            "another agent answers at {shown}: stop it, or name another socket with --admin SOCKET"
        ),
    }
}

async fn converse(stream: tokio::net::UnixStream, state: &State) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LONGEST_COMMAND))
        .read_line(&mut line)
        .await?;
    let reply = match obey(&line, state) {
        Ok(value) => Reply::Ok(value),
        Err(error) => Reply::Error(format!("{error:#}")),
    };
    let mut bytes = serde_json::to_vec(&reply)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

fn obey(line: &str, state: &State) -> Result<Value> {
    let command = serde_json::from_str(line).context("not a command of this agent's version")?;
    Ok(match command {
        Command::Status => serde_json::to_value(state.status()?)?,
        Command::Lookup { name, record_type } => {
            serde_json::to_value(state.lookup(&Name::parse(&name)?, &record_type)?)?
        }
        Command::Kernel { enabled } => {
            state.set_enabled(enabled)?;
            serde_json::json!({ "enabled": enabled })
        }
    })
}

/// `peak status`.
///
/// # Errors
/// There is no agent, or it can't tell.
pub fn status(arguments: &AdminArgs) -> Result<ExitCode> {
    let status = ask(&arguments.admin, &Command::Status)?;
    print(arguments.output, &status, status_text)
}

/// `peak lookup`.
///
/// # Errors
/// There is no agent, or it can't tell.
pub fn lookup(arguments: &LookupArgs) -> Result<ExitCode> {
    let command = Command::Lookup {
        name: arguments.name.to_string(),
        record_type: arguments.record_type.clone(),
    };
    let answer = ask(&arguments.admin.admin, &command)?;
    print(arguments.admin.output, &answer, lookup_text)
}

/// `peak kernel`.
///
/// # Errors
/// There is no agent, or it has no kernel program.
pub fn kernel(arguments: &KernelArgs) -> Result<ExitCode> {
    let enabled = arguments.state == Switch::On;
    let answer = ask(&arguments.admin.admin, &Command::Kernel { enabled })?;
    print(arguments.admin.output, &answer, |_| {
        match enabled {
            true => "The kernel answers what it can.\n",
            false => "The kernel passes every packet up, and the fallback answers.\n",
        }
        .to_owned()
    })
}

fn ask(socket: &Path, command: &Command) -> Result<Value> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "no agent at {shown}: start one with `peak run`, or say where it is with --admin SOCKET"
        ),
        ErrorKind::PermissionDenied => {
            anyhow!("not allowed to speak to the agent at {shown}: ask as the user it runs as, or as root")
        }
        _ => anyhow!("can't reach the agent at {shown}: {error}"),
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = || -> io::Result<String> {
        writeln!(stream, "{}", serde_json::to_string(command)?)?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = asked().with_context(|| format!("the agent at {shown} does not answer"))?;
    match serde_json::from_str(&line)
        .with_context(|| format!("what answers at {shown} is no agent of this version"))?
    {
        Reply::Ok(value) => Ok(value),
        Reply::Error(error) => Err(anyhow!(error)),
    }
}

fn print(output: Output, value: &Value, text: impl Fn(&Value) -> String) -> Result<ExitCode> {
    let said = match output {
        Output::Text => text(value),
        Output::Json => format!("{value}\n"),
    };
    match io::stdout().lock().write_all(said.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result
            .map(|()| ExitCode::SUCCESS)
            .context("can't write to standard output"),
    }
}

fn status_text(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |label: &str, what: String| {
        writeln!(text, "{label:<12}{what}").expect("a string takes all");
    };
    let snapshot = &status["snapshot"];
    line("ready", yes(&status["ready"]).to_owned());
    line("version", plain(&status["version"]));
    line(
        "zones",
        status["zones"]
            .as_array()
            .map(|zones| zones.iter().map(plain).collect::<Vec<_>>().join(", "))
            .unwrap_or_default(),
    );
    line(
        "snapshot",
        format!(
            "generation {}, serial {}, {} names, {} records, {:.0} s old",
            snapshot["generation"],
            snapshot["serial"],
            snapshot["names"],
            snapshot["records"],
            snapshot["age_seconds"].as_f64().unwrap_or_default()
        ),
    );
    let source = &status["source"];
    let age = source["age_seconds"]
        .as_f64()
        .map_or_else(String::new, |age| format!(", heard {age:.0} s ago"));
    line(
        "source",
        format!(
            "{} {}, {}{age}",
            plain(&source["kind"]),
            plain(&source["from"]),
            plain(&source["state"])
        ),
    );
    for watch in source["watches"].as_array().into_iter().flatten() {
        let namespace = watch["namespace"]
            .as_str()
            .map_or_else(String::new, |namespace| format!(" in {namespace}"));
        let trouble = watch["trouble"]
            .as_str()
            .map_or_else(String::new, |trouble| format!(": {trouble}"));
        line(
            "",
            format!(
                "{}{namespace}: {} lists, {} events{trouble}",
                plain(&watch["resource"]),
                watch["lists"],
                watch["events"]
            ),
        );
    }
    if let Some(bad @ 1..) = source["bad_annotations"].as_u64() {
        line(
            "",
            format!("Services with a peak/answers that makes no sense: {bad}"),
        );
    }
    let kernel = &status["kernel"];
    if kernel.is_object() {
        let table = &kernel["table"];
        line(
            "kernel",
            format!(
                "{}, {} names in the table, {} left to the fallback, {} MiB",
                if kernel["enabled"] == true {
                    "on"
                } else {
                    "switched off"
                },
                table["names"],
                table["unstored"],
                table["heap_segments"].as_u64().unwrap_or_default()
                    + table["index_segments"].as_u64().unwrap_or_default()
            ),
        );
    }
    for interface in status["interfaces"].as_array().into_iter().flatten() {
        line(
            &plain(&interface["name"]),
            format!(
                "{}, {}answered {}",
                plain(&interface["mode"]),
                interface["program"]
                    .as_u64()
                    .map(|program| format!("program {program}, "))
                    .unwrap_or_default(),
                interface["answered"]
            ),
        );
        for (query_type, outcomes) in interface["answers"].as_object().into_iter().flatten() {
            let counted = counted(outcomes);
            if !counted.is_empty() {
                line("", format!("{query_type}: {counted}"));
            }
        }
        for what in ["passed", "aborted"] {
            let counted = counted(&interface[what]);
            if !counted.is_empty() {
                line("", format!("{what}: {counted}"));
            }
        }
    }
    let counted = counted(&status["fallback"]);
    line(
        "fallback",
        if counted.is_empty() {
            "nothing yet".to_owned()
        } else {
            counted
        },
    );
    text
}

fn lookup_text(answer: &Value) -> String {
    let records = answer["records"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let mut text = format!(
        "{} {}: {}, {} record{}, {}\n",
        plain(&answer["name"]),
        plain(&answer["type"]),
        plain(&answer["rcode"]),
        records.len(),
        if records.len() == 1 { "" } else { "s" },
        if answer["in_kernel"] == true {
            "in the kernel's table"
        } else {
            "not in the kernel's table"
        }
    );
    for record in records {
        writeln!(text, "{}", plain(record)).expect("a string takes all");
    }
    text
}

/// `name 1, other 2`, without zeros.
fn counted(counters: &Value) -> String {
    counters
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| **count != 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn plain(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned)
}

fn yes(value: &Value) -> &'static str {
    if *value == true { "yes" } else { "no" }
}
