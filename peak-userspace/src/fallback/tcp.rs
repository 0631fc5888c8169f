//! Serves TCP: many queries on a connection, each answered when its answer is there (RFC 7766, sections 6 and 7).

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{
    bytes::{Buf, BytesMut},
    sync::CancellationToken,
};
use tracing::debug;

use super::{Counters, Limits, Pending, Responder, Transport};

/// Replies are handed to the system at the latest when they take this much, in bytes.
const WRITE_AT: usize = 1 << 16;

/// The connections there are.
pub(super) struct Connections {
    limit: usize,
    limit_per_client: usize,
    open: Mutex<Open>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    client: IpAddr,
    /// RFC 7766, section 3: idle means that every query has had its reply. `None` while one has not.
    idle_since: Option<Instant>,
    close: CancellationToken,
}

/// A connection's place among the others, until it is dropped.
struct Place {
    connections: Arc<Connections>,
    id: u64,
    close: CancellationToken,
}

impl Connections {
    pub(super) fn new(limits: &Limits, counters: Arc<Counters>) -> Self {
        Self {
            limit: limits.connections,
            limit_per_client: limits.connections_per_client,
            open: Mutex::default(),
            counters,
        }
    }

    /// Finds a place for a new connection, if need be at the expense of an idle one (RFC 7766, section 6.2.3).
    fn admit(self: &Arc<Self>, client: IpAddr, close: CancellationToken) -> Option<Place> {
        let mut open = self.lock();
        let of_client = open
            .by_id
            .values()
            .filter(|entry| entry.client == client)
            .count();
        let has_room = if of_client >= self.limit_per_client {
            self.evict(&mut open, |entry| entry.client == client)
        } else {
            open.by_id.len() < self.limit || self.evict(&mut open, |_| true)
        };
        if !has_room {
            self.counters.connections_refused.increment();
            return None;
        }
        let id = open.next;
        open.next += 1;
        let entry = Entry {
            client,
            idle_since: Some(Instant::now()),
            close: close.clone(),
        };
        open.by_id.insert(id, entry);
        self.counters.connections_accepted.increment();
        self.counters.connections_open.increment();
        Some(Place {
            connections: Arc::clone(self),
            id,
            close,
        })
    }

    /// Closes the one of these that has been idle longest, if one is.
    fn evict(&self, open: &mut Open, among: impl Fn(&Entry) -> bool) -> bool {
        let idle = open.by_id.iter().filter(|(_, entry)| among(entry));
        let oldest = idle
            .filter_map(|(&id, entry)| Some((entry.idle_since?, id)))
            .min();
        let Some(entry) = oldest.and_then(|(_, id)| open.by_id.remove(&id)) else {
            return false;
        };
        entry.close.cancel();
        self.counters.connections_evicted.increment();
        true
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// `false`: the place was given to another connection.
    fn set_idle(&self, since: Option<Instant>) -> bool {
        let mut open = self.connections.lock();
        let entry = open.by_id.get_mut(&self.id);
        entry.map(|entry| entry.idle_since = since).is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().by_id.remove(&self.id);
        self.connections.counters.connections_open.decrement();
    }
}

/// Accepts connections until shutdown.
pub(super) async fn serve(
    listener: TcpListener,
    connections: Arc<Connections>,
    responder: Arc<Responder>,
) {
    loop {
        let accepted = tokio::select! {
            () = responder.shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                if let Some(place) =
                    connections.admit(client.ip(), responder.shutdown.child_token())
                {
                    let connection = converse(stream, client, place, Arc::clone(&responder));
                    responder.tasks.spawn(connection);
                }
            }
            Err(error) => {
                debug!(%error, "accepting a connection");
                // Out of file descriptors, most likely, and the connection still waits: it gets an idle one's.
                connections.evict(&mut connections.lock(), |_| true);
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    place: Place,
    responder: Arc<Responder>,
) {
    let limits = &responder.limits;
    let _ = stream.set_nodelay(true);
    let mut received = BytesMut::new();
    let (mut reply, mut replies) = (Vec::new(), Vec::new());
    let mut pending = FuturesUnordered::new();
    let mut closing = false;
    // RFC 7766, section 6.2.3: only whole messages put off the end, or a slow sender could keep its place for ever.
    let mut active = Instant::now();
    loop {
        while pending.len() < limits.pipelined
            && replies.len() < WRITE_AT
            && let Some(message) = next_message(&mut received)
        {
            responder.counters.tcp.increment();
            let snapshot = responder.snapshot.load();
            let transport = Transport::Tcp;
            let reaction = responder.react(&snapshot, &message, transport, client.ip(), &mut reply);
            // What gets no reply does not put off the end.
            if !matches!(reaction, Pending::Nothing) {
                active = Instant::now();
            }
            match reaction {
                Pending::Reply(kind) => {
                    responder.counters.replies(kind, transport, 1);
                    push(&mut replies, &reply);
                }
                Pending::Forward(forward, room) => {
                    pending.push(responder.forward(forward, room, transport, client))
                }
                Pending::Nothing => {}
            }
        }
        if !replies.is_empty() {
            // Not idle before the last reply is out: who does not read keeps its place, and cannot have many more.
            if !place.set_idle(None) {
                break responder.counters.replies_dropped.add(pending.len() + 1);
            }
            // The client takes too long, or is gone. RFC 7766, section 6.2.4: what is left isn't sent.
            match timeout(limits.write_timeout, stream.write_all(&replies)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => break responder.counters.replies_dropped.add(pending.len() + 1),
                Err(_) => break responder.counters.connections_timed_out.increment(),
            }
            replies.clear();
            active = Instant::now();
            // There may be more messages that were received already.
            continue;
        }
        place.set_idle(pending.is_empty().then_some(active));
        if pending.is_empty() {
            if closing {
                let _ = timeout(limits.write_timeout, stream.shutdown()).await;
                break;
            }
            if received.is_empty() {
                // Idle connections cost little.
                received = BytesMut::new();
                (reply, replies) = (Vec::new(), Vec::new());
            }
        }
        tokio::select! {
            Some(reply) = pending.next(), if !pending.is_empty() => push(&mut replies, &reply),
            read = stream.read_buf(&mut received), if !closing && pending.len() < limits.pipelined => {
                // RFC 7766, section 6.2.4: replies to a client that has closed must not be sent.
                if !matches!(read, Ok(1..)) {
                    break responder.counters.replies_dropped.add(pending.len());
                }
            }
            () = sleep_until(active + limits.idle_timeout), if pending.is_empty() => {
                break responder.counters.connections_timed_out.increment();
            }
            // Shutdown or eviction.
            () = place.close.cancelled(), if !closing => closing = true,
        }
    }
}

/// RFC 1035, section 4.2.2: two bytes of length precede each message.
fn next_message(received: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16::from_be_bytes(*received.first_chunk()?));
    if received.len() < 2 + length {
        // Not more at once: the rest may never come.
        received.reserve((2 + length - received.len()).min(4096));
        return None;
    }
    received.advance(2);
    Some(received.split_to(length))
}

/// RFC 7766, section 8: length and message go together.
fn push(replies: &mut Vec<u8>, reply: &[u8]) {
    let length =
        u16::try_from(reply.len()).expect("replies are limited to what their length can say");
    replies.extend_from_slice(&length.to_be_bytes());
    replies.extend_from_slice(reply);
}
