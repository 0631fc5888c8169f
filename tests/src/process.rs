//! Processes that end with the test.

use std::{
    env,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;

/// How long what a process has said may take to be read after its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A process that is killed when this is dropped. What it says on stderr is kept, and shown if the test panics.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Running {
    /// Starts a process, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{}", command.get_program().display());
        let mut child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().context("stderr is piped")?;
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        Ok(Self {
            name,
            child,
            log,
            reader,
        })
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr so far.
    pub fn log(&self) -> String {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Its exit status, once it has ended. [`Self::log`] is whole then.
    ///
    /// # Errors
    /// It can't be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            // A process of its own may hold its stderr open: not for longer than this.
            let _ = eventually("its last words", LAST_WORDS, || {
                Ok(self.reader.is_finished().then_some(()))
            });
        }
        Ok(status)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It runs on for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        eventually(&what, limit, || self.ended())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {} said:\n{}---", self.name, self.log());
        }
    }
}

/// A program of this workspace, built with the same profile as the caller.
///
/// # Errors
/// It isn't there: cargo builds a package's own programs for its tests, and no other's.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    // target/PROFILE/NAME for a program, target/PROFILE/deps/NAME for a test.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{name} is not beside {}: run `cargo xtask build`",
                own.display()
            )
        })
}
