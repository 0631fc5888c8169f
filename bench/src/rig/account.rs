//! What a server has cost so far, and what has passed it.

use std::{
    fs,
    ops::Sub,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;

use super::{End, SERVER_CPU};

/// What a server has spent, and what has passed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Processor time.
    pub(crate) account: Account,
    /// Frames through the node's end.
    pub(crate) frames: Frames,
    /// How often a processor was to receive packets in a softirq, anybody's. As threads poll, next to never; what is done there
    /// is on nobody's account.
    pub(crate) softirqs: u64,
}

impl Spent {
    pub(super) fn so_far(node: &End) -> Result<Self> {
        Ok(Self {
            account: Account::of(node)?,
            frames: Frames::of(node)?,
            softirqs: receive_softirqs(&fs::read_to_string("/proc/softirqs")?)
                .context("no NET_RX in /proc/softirqs")?,
        })
    }

    /// # Errors
    /// A part of the server's work is on nobody's account.
    pub(crate) fn is_all(&self) -> Result<()> {
        ensure!(
            self.softirqs <= self.frames.received / SOFTIRQS_ONE_IN + SOFTIRQS_OF_OTHERS,
            "{} packets arrived, and {} softirqs received packets: these are on nobody's account",
            self.frames.received,
            self.softirqs
        );
        Ok(())
    }
}

/// What was spent since.
impl Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            account: self.account - before.account,
            frames: self.frames - before.frames,
            softirqs: self.softirqs - before.softirqs,
        }
    }
}

/// On how many packets of a server one softirq may come, and how many others on the machine may cause.
const SOFTIRQS_ONE_IN: u64 = 50;
const SOFTIRQS_OF_OTHERS: u64 = 2000;

/// How often packets were to be received in softirqs so far, on all processors.
fn receive_softirqs(table: &str) -> Option<u64> {
    let counts = table
        .lines()
        .find_map(|line| line.trim().strip_prefix("NET_RX:"))?;
    counts
        .split_whitespace()
        .map(|count| count.parse::<u64>().ok())
        .sum()
}

/// Processor time of who works for the server, by `schedstat`: nanoseconds, where `stat` has ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    /// The kernel thread that polls the node's end: receiving, XDP programs, and sending what they answer.
    pub(crate) polling: Duration,
    /// All threads of all processes in the node's namespace, their system calls included: sending is one.
    pub(crate) processes: Duration,
    /// `ksoftirqd` of the server's processor. It works for anybody, but should have nothing to do.
    pub(crate) softirqs: Duration,
}

impl Account {
    pub(super) fn of(node: &End) -> Result<Self> {
        let mut processes = Duration::ZERO;
        for process in processes_of(node)? {
            processes += of_threads(process)?;
        }
        Ok(Self {
            polling: of_thread(Path::new("/proc").join(number(node.thread()?)))?,
            processes,
            softirqs: of_thread(ksoftirqd()?)?,
        })
    }

    /// All of it.
    pub(crate) fn total(self) -> Duration {
        self.polling + self.processes + self.softirqs
    }
}

/// What was spent since.
impl Sub for Account {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        // A process that has ended meanwhile is missing in the later one.
        Self {
            polling: self.polling.saturating_sub(before.polling),
            processes: self.processes.saturating_sub(before.processes),
            softirqs: self.softirqs.saturating_sub(before.softirqs),
        }
    }
}

/// Frames through the node's end, as the interface counts them, in the driver and past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    /// From the client.
    pub(crate) received: u64,
    /// To the client: a server's answers, and little else.
    pub(crate) sent: u64,
}

impl Frames {
    pub(super) fn of(node: &End) -> Result<Self> {
        let table = node
            .namespace
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .context("cannot read /proc/net/dev")?;
        Self::in_table(&table, &node.interface)
            .with_context(|| format!("no {} in /proc/net/dev", node.interface))
    }

    fn in_table(table: &str, interface: &str) -> Option<Self> {
        let numbers = table.lines().find_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            (name.trim() == interface).then_some(numbers)
        })?;
        // Bytes, packets and six more of what came in, then the same of what went out.
        let mut numbers = numbers.split_whitespace().map(str::parse);
        Some(Self {
            received: numbers.nth(1)?.ok()?,
            sent: numbers.nth(7)?.ok()?,
        })
    }
}

/// What passed since.
impl Sub for Frames {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            received: self.received - before.received,
            sent: self.sent - before.sent,
        }
    }
}

/// The processes in the node's namespace.
fn processes_of(node: &End) -> Result<Vec<Pid>> {
    let namespace = node
        .namespace
        .run(|| fs::read_link("/proc/thread-self/ns/net"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // One that ends meanwhile has no namespace any more.
        if fs::read_link(entry.path().join("ns/net")).is_ok_and(|of| of == namespace) {
            found.extend(pid.and_then(Pid::from_raw));
        }
    }
    Ok(found)
}

fn of_threads(process: Pid) -> Result<Duration> {
    let folder = Path::new("/proc").join(number(process)).join("task");
    let mut sum = Duration::ZERO;
    let threads = fs::read_dir(&folder).with_context(|| format!("no {}", folder.display()))?;
    for thread in threads {
        // A thread may end meanwhile.
        sum += of_thread(thread?.path()).unwrap_or_default();
    }
    Ok(sum)
}

fn of_thread(folder: impl AsRef<Path>) -> Result<Duration> {
    let file = folder.as_ref().join("schedstat");
    let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
    on_processor(&text).with_context(|| format!("{}: {text:?}", file.display()))
}

/// The first of schedstat's three numbers: nanoseconds on a processor.
fn on_processor(schedstat: &str) -> Option<Duration> {
    let nanoseconds = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

fn ksoftirqd() -> Result<PathBuf> {
    let name = format!("ksoftirqd/{SERVER_CPU}");
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let comm = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            return Ok(folder);
        }
    }
    bail!("no kernel thread {name}")
}

fn number(process: Pid) -> String {
    process.as_raw_nonzero().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_begins_with_the_time_on_a_processor() {
        assert_eq!(
            on_processor("36671 2342379 2\n"),
            Some(Duration::from_nanos(36671))
        );
        assert_eq!(on_processor(""), None);
    }

    #[test]
    fn softirqs_are_summed_over_processors() {
        let table = "      CPU0   CPU1\n NET_TX:    1    2\n NET_RX:   40    2\n";
        assert_eq!(receive_softirqs(table), Some(42));
        assert_eq!(receive_softirqs(""), None);
    }

    #[test]
    fn packets_are_told_from_bytes() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
  n7x0:   11800     100    0    2    0     0          0         0    14600      99    0    0    0     0       0          0
";
        let frames = Frames {
            received: 100,
            sent: 99,
        };
        assert_eq!(Frames::in_table(table, "n7x0"), Some(frames));
        assert_eq!(Frames::in_table(table, "n7"), None);
    }

    #[test]
    fn a_thread_that_works_has_more_time_than_before() -> Result<()> {
        let me = Pid::from_raw(std::process::id().cast_signed()).context("a process")?;
        let before = of_threads(me)?;
        let begin = std::time::Instant::now();
        while of_threads(me)? <= before {
            assert!(begin.elapsed() < Duration::from_secs(60));
        }
        Ok(())
    }
}
