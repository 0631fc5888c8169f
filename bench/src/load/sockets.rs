//! Queries from ordinary sockets, in batches of one system call each.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt;

use super::{
    Check, HEADER, Outcome, QUERY_SIZE, Queries,
    batch::{Received, Sending},
};
use crate::rig::Rig;

/// How fast it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// This many a second, each at its time.
    PerSecond(f64),
    /// As fast as it goes, with at most so many waiting for their replies; one that is not there after [`PATIENCE`] is lost.
    Waiting(usize),
}

/// How long, how fast, and from how many sockets it is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) pace: Pace,
    pub(crate) duration: Duration,
    /// Each has a source port of its own.
    pub(crate) sockets: usize,
}

/// How many sockets a load has where nothing speaks for another number.
pub(crate) const SOCKETS: usize = 16;
/// Datagrams of one system call, at most.
const BATCH: usize = 32;
/// How many queries of one socket may wait for their replies; the next takes the place of the oldest, which is lost.
const WAITING: usize = 4096;
/// Of how many replies one is looked at byte by byte.
const CHECKED_ONE_IN: u64 = 64;
/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// Replies that wait to be read, bytes of one socket: the receiver loses none.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Asks the server from the client's side, and receives what it says.
///
/// # Errors
/// The kernel's; the server's replies being wrong is no error, see [`Outcome::right`].
pub(crate) fn ask(
    rig: &Rig,
    server: SocketAddr,
    queries: &Queries,
    load: Load,
    check: &Check<'_>,
) -> Result<Outcome> {
    rig.as_client(|| Asking::new(server, queries, load, check)?.run())?
        .with_context(|| format!("cannot ask {server}"))
}

/// A query that waits for its reply.
#[derive(Clone, Copy, Default)]
struct Waiting {
    /// When it was due, nanoseconds from the beginning.
    due: u64,
    query: u32,
    id: u16,
    waits: bool,
}

struct Source {
    socket: UdpSocket,
    waiting: Box<[Waiting]>,
    /// How many wait.
    count: usize,
    next: u16,
}

struct Asking<'a> {
    sources: Vec<Source>,
    queries: &'a Queries,
    load: Load,
    check: &'a Check<'a>,
    outcome: Outcome,
    /// The query that is next.
    next: usize,
    sending: Sending,
}

impl<'a> Asking<'a> {
    fn new(
        server: SocketAddr,
        queries: &'a Queries,
        load: Load,
        check: &'a Check<'a>,
    ) -> Result<Self> {
        ensure!(load.sockets > 0, "without sockets nothing can be asked");
        let sources = (0..load.sockets).map(|_| Source::open(server));
        let intended = match load.pace {
            Pace::PerSecond(_) => load.duration,
            Pace::Waiting(_) => Duration::MAX / 2,
        };
        Ok(Self {
            sources: sources.collect::<Result<_>>()?,
            queries,
            load,
            check,
            outcome: Outcome::new(intended),
            next: 0,
            sending: Sending::new(BATCH),
        })
    }

    fn run(mut self) -> Result<Outcome> {
        let mut received = Received::new(BATCH);
        let (mut to, mut from) = (0, 0);
        let begin = Instant::now();
        let now = || begin.elapsed().as_nanos() as u64;
        let mut last_reply = 0;
        let last_reply_by = PATIENCE.as_nanos() as u64;
        let end = self.load.duration.as_nanos() as u64;
        loop {
            let time = now();
            let waiting = self.waiting();
            let due = self.due(time, waiting, end);
            if due > 0 {
                self.send(to, due.min(BATCH as u64) as usize, time)?;
                to = (to + 1) % self.sources.len();
                self.outcome.sending = Duration::from_nanos(now());
                last_reply = last_reply.max(time);
            } else if time >= end && waiting == 0 {
                break;
            } else if time.saturating_sub(last_reply) > last_reply_by {
                // Nobody answers any more.
                self.give_up();
                if time >= end {
                    break;
                }
            }

            // The next socket that waits for something; the others have nothing to say.
            let sources = self.sources.len();
            let Some(ahead) = (0..sources).find(|i| self.sources[(from + i) % sources].count > 0)
            else {
                continue;
            };
            from = (from + ahead) % sources;
            let source = &mut self.sources[from];
            let replies = received.receive(&source.socket)?;
            let time = now();
            for reply in replies {
                last_reply = time;
                judge(
                    source,
                    reply,
                    time,
                    self.queries,
                    self.check,
                    &mut self.outcome,
                );
            }
            from = (from + 1) % sources;
        }
        Ok(self.outcome)
    }

    /// How many should be sent now.
    fn due(&self, time: u64, waiting: usize, end: u64) -> u64 {
        match self.load.pace {
            Pace::PerSecond(rate) => {
                // The first is due at once; none after the end.
                let so_far = (time.min(end.saturating_sub(1)) as f64 * 1e-9 * rate) as u64 + 1;
                so_far.saturating_sub(self.outcome.sent)
            }
            Pace::Waiting(most) if time < end => most.saturating_sub(waiting) as u64,
            Pace::Waiting(_) => 0,
        }
    }

    fn send(&mut self, to: usize, count: usize, time: u64) -> Result<()> {
        let source = &mut self.sources[to];
        for _ in 0..count {
            let due = match self.load.pace {
                Pace::PerSecond(rate) => (self.outcome.sent as f64 / rate * 1e9) as u64,
                Pace::Waiting(_) => time,
            };
            let id = source.wait(self.next, due);
            self.sending.push(self.queries.message(self.next), id);
            self.next = (self.next + 1) % self.queries.len();
            self.outcome.sent += 1;
        }
        Ok(self.sending.send(&source.socket)?)
    }

    fn waiting(&self) -> usize {
        self.sources.iter().map(|source| source.count).sum()
    }

    /// Whoever waits, waits no more.
    fn give_up(&mut self) {
        for source in &mut self.sources {
            source.count = 0;
            source.waiting.fill(Waiting::default());
        }
    }
}

impl Source {
    fn open(server: SocketAddr) -> Result<Self> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_BUFFER)
            .context("cannot enlarge a receive buffer")?;
        Ok(Self {
            socket,
            waiting: vec![Waiting::default(); WAITING].into(),
            count: 0,
            next: fastrand::u16(..),
        })
    }

    /// Notes a query that is about to be sent, and gives its ID.
    fn wait(&mut self, query: usize, due: u64) -> u16 {
        let id = self.next;
        self.next = id.wrapping_add(1);
        let slot = &mut self.waiting[usize::from(id) % WAITING];
        self.count += usize::from(!slot.waits);
        *slot = Waiting {
            due,
            query: query as u32,
            id,
            waits: true,
        };
        id
    }
}

/// Counts a reply.
fn judge(
    source: &mut Source,
    reply: &[u8],
    time: u64,
    queries: &Queries,
    check: &Check<'_>,
    outcome: &mut Outcome,
) {
    let judged = (|| {
        let (id, rest) = reply.split_first_chunk().context("no header")?;
        let id = u16::from_be_bytes(*id);
        let slot = &mut source.waiting[usize::from(id) % WAITING];
        ensure!(
            slot.waits && slot.id == id,
            "nobody waits for a reply with the ID {id:#06x}"
        );
        slot.waits = false;
        source.count -= 1;
        let query = slot.query as usize;
        let question = queries.question(query);
        ensure!(
            rest.first().is_some_and(|flags| flags & 0x80 != 0)
                && reply.get(HEADER..HEADER + question.len()) == Some(question),
            "not a reply to its question: {reply:02x?}, not {question:02x?}"
        );
        outcome.rcodes[usize::from(reply[3] & 0xf)] += 1;
        if outcome.answered.is_multiple_of(CHECKED_ONE_IN) {
            let message = queries.message(query);
            let mut asked = [0; QUERY_SIZE];
            asked[..message.len()].copy_from_slice(message);
            asked[..2].copy_from_slice(&id.to_be_bytes());
            outcome.checked += 1;
            check(query, &asked[..message.len()], reply)?;
        }
        outcome.answered += 1;
        outcome
            .latency
            .saturating_record(time.saturating_sub(slot.due).max(1));
        anyhow::Ok(())
    })();
    if let Err(error) = judged {
        outcome.wrong += 1;
        outcome
            .complaint
            .get_or_insert_with(|| format!("{error:#}"));
    }
}
