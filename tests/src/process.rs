//! Processes that end with the test.

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        mpsc::{self, Sender, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal,
};

use crate::eventually;

/// How long what a process has said may take to be read after its end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A process that is killed when this is dropped. What it says on stderr is kept, and shown if the test panics.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
    /// Where else its log is.
    file: Option<PathBuf>,
    reader: JoinHandle<()>,
}

impl Running {
    /// Starts a process, in the namespace of the calling thread.
    ///
    /// # Errors
    /// The program can't be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let child = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Self::listen(name, child, None)
    }

    /// Starts a process that the kernel kills when this one ends, in whatever way, and that a terminal's Ctrl-C does not
    /// reach. What it says is added to the file `log`, too, which stays, as does what it prints.
    ///
    /// # Errors
    /// The program can't be started, or the file not be written.
    pub fn start_tied(mut command: Command, log: &Path) -> Result<Self> {
        let name = command.get_program().display().to_string();
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(Stdio::piped());
        let child = spawn_tied(command).with_context(|| format!("cannot start {name}"))?;
        Self::listen(name, child, Some((file, log.to_owned())))
    }

    /// Keeps what `child` says.
    fn listen(name: String, mut child: Child, file: Option<(File, PathBuf)>) -> Result<Self> {
        let (mut copy, file) = file.unzip();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = child.stderr.take().context("stderr is piped")?;
        let sink = Arc::clone(&log);
        let reader = thread::spawn(move || {
            for mut line in BufReader::new(stderr).lines().map_while(Result::ok) {
                line.push('\n');
                if let Some(file) = &mut copy {
                    // A full disk is no reason to let the process wait for somebody who reads.
                    let _ = file.write_all(line.as_bytes());
                }
                let mut log = sink.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
            }
        });
        Ok(Self {
            name,
            child,
            log,
            file,
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
            match &self.file {
                Some(file) => eprintln!("--- {} said: {}", self.name, file.display()),
                None => eprintln!("--- {} said:\n{}---", self.name, self.log()),
            }
        }
    }
}

/// A command to start, and where to say how that went.
type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts processes that end with this one.
///
/// To the kernel a parent is a thread, and those of tests end early: one that never does starts all of them.
static PARENT: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    thread::spawn(move || {
        for (mut command, reply) in inbox {
            // Who ordered it waits.
            let _ = reply.send(command.spawn());
        }
    });
    orders
});

fn spawn_tied(mut command: Command) -> io::Result<Child> {
    let parent = getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have ended before: then nobody will tell.
        if getppid() != Some(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are allowed, and no allocation: it makes two calls, and neither
    // conversion of an error allocates.
    unsafe { command.pre_exec(tie) };
    let (reply, outcome) = mpsc::sync_channel(1);
    PARENT
        .send((command, reply))
        .map_err(|_| io::ErrorKind::BrokenPipe)?;
    outcome.recv().map_err(|_| io::ErrorKind::BrokenPipe)?
}

/// Where the build leaves the programs of this workspace that have the caller's profile.
///
/// # Errors
/// The caller can't be told where it is.
pub(crate) fn build_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where this program is")?;
    // target/PROFILE/NAME for a program, target/PROFILE/deps/NAME for a test.
    let mut folders = own.ancestors().skip(1);
    let folder = folders.find(|folder| !folder.ends_with("deps"));
    folder
        .map(Path::to_owned)
        .context("a program is in a folder")
}

/// A program of this workspace, built with the same profile as the caller.
///
/// # Errors
/// It isn't there: cargo builds a package's own programs for its tests, and no other's.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = build_folder()?.join(name);
    ensure!(
        path.is_file(),
        "{} is not there: run `cargo xtask build`",
        path.display()
    );
    Ok(path)
}
