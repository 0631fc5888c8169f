//! Serves UDP: a thread for each of an address's sockets, and many datagrams at a time.

use std::{
    cell::RefCell, io, net::SocketAddr, pin::pin, rc::Rc, sync::Arc, thread, time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::Interest,
    net::UdpSocket,
    runtime,
    sync::mpsc,
    task::{LocalSet, yield_now},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Pending, Responder, Transport,
    answer::Reply,
    mmsg::{BATCH, Batch},
    sockets::UDP_SOCKETS,
};

/// How many datagrams that had come before the end are still looked at: more small ones than a socket holds.
const LAST_DATAGRAMS: usize = 4096;

/// The threads that read the sockets.
///
/// They are not those of the agent's runtime: there, whichever thread waits for events wakes another before it reads, and
/// what the agent does with a large change keeps queries waiting.
pub(super) struct Workers(Vec<mpsc::UnboundedSender<Task>>);

/// A socket, and what says that it is wanted no longer.
type Task = (std::net::UdpSocket, CancellationToken);

impl Workers {
    /// Starts them. They end when this is dropped and no socket is served any more: `responder.tasks` waits for them.
    pub(super) fn start(responder: &Arc<Responder>) -> io::Result<Self> {
        let start = |index| {
            let runtime = runtime::Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()?;
            let (sender, tasks) = mpsc::unbounded_channel();
            let (responder, token) = (Arc::clone(responder), responder.tasks.token());
            thread::Builder::new()
                .name(format!("peak-udp-{index}"))
                .spawn(move || {
                    let sockets = LocalSet::new();
                    runtime.block_on(sockets.run_until(work(tasks, responder)));
                    runtime.block_on(sockets);
                    drop(token);
                })?;
            Ok(sender)
        };
        Ok(Self(
            (0..*UDP_SOCKETS)
                .map(start)
                .collect::<Result<_, io::Error>>()?,
        ))
    }

    /// Has the sockets of one address served, each by another thread.
    pub(super) fn serve(&self, sockets: Vec<std::net::UdpSocket>, closed: &CancellationToken) {
        for (worker, socket) in self.0.iter().cycle().zip(sockets) {
            // It lives as long as it can be told something.
            let _ = worker.send((socket, closed.clone()));
        }
    }
}

/// Takes on sockets.
async fn work(mut tasks: mpsc::UnboundedReceiver<Task>, responder: Arc<Responder>) {
    let batch = Rc::new(RefCell::new(Batch::new()));
    while let Some((socket, closed)) = tasks.recv().await {
        let socket = match UdpSocket::from_std(socket) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                warn!(%error, "can't wait for datagrams");
                continue;
            }
        };
        let (responder, batch) = (Arc::clone(&responder), Rc::clone(&batch));
        tokio::task::spawn_local(async move {
            let serve = serve(&socket, &responder, &batch);
            closed.run_until_cancelled(serve).await;
        });
    }
}

/// Answers until shutdown, and then what has come already.
async fn serve(socket: &Arc<UdpSocket>, responder: &Arc<Responder>, batch: &RefCell<Batch>) {
    let mut shutdown = pin!(responder.shutdown.cancelled());
    loop {
        let ready = tokio::select! {
            biased;
            () = &mut shutdown => break,
            ready = socket.readable() => ready,
        };
        let outcome = ready.and_then(|()| {
            socket.try_io(Interest::READABLE, || {
                match exchange(socket, responder, &mut batch.borrow_mut())? {
                    BATCH => Ok(()),
                    // All that had come is read. What comes from now on is an event of its own: no need to look again.
                    _ => Err(io::ErrorKind::WouldBlock.into()),
                }
            })
        });
        match outcome {
            // There may be more; the others have their turn first.
            Ok(()) => yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                debug!(%error, "receiving datagrams");
                // Short of memory, most likely: not to be made worse by a busy loop.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    let mut batch = batch.borrow_mut();
    for _ in 0..LAST_DATAGRAMS / BATCH {
        if !matches!(exchange(socket, responder, &mut batch), Ok(BATCH)) {
            break;
        }
    }
}

/// Answers what has come, as far as it fits a batch, and says how many datagrams that was.
fn exchange(
    socket: &Arc<UdpSocket>,
    responder: &Arc<Responder>,
    batch: &mut Batch,
) -> io::Result<usize> {
    let count = batch.receive(&**socket)?;
    answer_all(socket, responder, batch);
    batch.send(&**socket, |client, error| {
        drop_reply(responder, client, &error)
    });
    Ok(count)
}

/// Writes the replies to a batch, or has upstreams asked.
fn answer_all(socket: &Arc<UdpSocket>, responder: &Arc<Responder>, batch: &mut Batch) {
    let counters = &responder.counters;
    counters.udp.add(batch.len());
    let snapshot = responder.snapshot.load();
    let mut alike: Option<(Reply, usize)> = None;
    for datagram in batch.datagrams() {
        let (client, octets) = (datagram.client, datagram.reply);
        // RFC 768: port 0 says that no reply is wanted; none could arrive either.
        if client.port() == 0 {
            counters.ignored_port_zero.increment();
            continue;
        }
        let transport = Transport::Udp;
        match responder.react(&snapshot, datagram.message, transport, client.ip(), octets) {
            // Counted together: each processor would have to wait for the others' counting.
            Pending::Reply(reply) => match &mut alike {
                Some((last, count)) if *last == reply => *count += 1,
                _ => {
                    if let Some((last, count)) = alike.replace((reply, 1)) {
                        counters.replies(last, transport, count);
                    }
                }
            },
            Pending::Forward(forward, room) => {
                let (socket, responder) = (Arc::clone(socket), Arc::clone(responder));
                let tasks = responder.tasks.clone();
                let runtime = responder.runtime.clone();
                let reply = async move {
                    let reply = responder.forward(forward, room, transport, client).await;
                    if let Err(error) = SockRef::from(&*socket).send_to(&reply, &client.into()) {
                        drop_reply(&responder, client, &error);
                    }
                };
                tasks.spawn_on(reply, &runtime);
            }
            Pending::Nothing => {}
        }
    }
    if let Some((last, count)) = alike {
        counters.replies(last, Transport::Udp, count);
    }
}

/// A reply is sent at once, or not at all. What waits for neighbours that are not there fills the socket's buffer for
/// seconds: who sends from such addresses must not keep the others' queries from being read.
fn drop_reply(responder: &Responder, client: SocketAddr, error: &io::Error) {
    responder.counters.replies_dropped.increment();
    debug!(%client, %error, "sending a reply");
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        fallback::{Counters, Limits, answer::Policy, forward::Forwarder},
        snapshot::{Snapshot, SnapshotConfig},
    };

    /// No socket of a test's can send from port 0.
    #[tokio::test]
    async fn port_0_gets_no_reply() {
        let config = SnapshotConfig {
            zones: vec!["cluster.local".parse().unwrap()],
            ttl: 5,
            ..SnapshotConfig::default()
        };
        let (limits, policy, counters) = (
            Limits::default(),
            Policy::default(),
            Arc::<Counters>::default(),
        );
        let responder = Arc::new(Responder {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty(config))),
            forwarder: Arc::new(Forwarder::new(&[], &policy, &limits, Arc::clone(&counters))),
            policy,
            limits,
            counters: Arc::clone(&counters),
            tasks: TaskTracker::new(),
            runtime: runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        });
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let own = socket.local_addr().unwrap();
        let query = b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\x07cluster\x05local\0\0\x06\0\x01";
        // From another port the same query is answered.
        let clients = [
            "127.0.0.1:0".parse().unwrap(),
            own,
            "[::1]:0".parse().unwrap(),
        ];
        let mut batch = Batch::of(clients.map(|client| (&query[..], client)));
        answer_all(&socket, &responder, &mut batch);
        let replies = batch.datagrams().map(|one| one.reply.len());
        assert_eq!(replies.collect::<Vec<_>>(), [0, query.len(), 0]);
        let figures = counters.figures();
        assert_eq!(
            (figures.udp, figures.ignored_port_zero, figures.servfail),
            (3, 2, 1)
        );
    }
}
