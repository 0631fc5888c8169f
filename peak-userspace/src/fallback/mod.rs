//! The userspace responder: what the kernel program passes up, on UDP and TCP, from the same snapshot.
//!
//! [`answer`](answer::answer) decides about one message and needs no socket; [`Fallback`] has the sockets.
//! `domain` gives the wire format. Its `net::server` is not used: it answers FORMERR to what is itself a response,
//! drops replies when a connection's queue is full, closes the newest connection instead of the oldest idle one, knows
//! no limit by client, and sends an EDNS option nobody asked for.

pub mod answer;
mod compressor;
mod counters;
mod forward;
mod mmsg;
mod query;
mod sockets;
mod tcp;
mod udp;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tracing::warn;

pub use counters::{Counter, Counters, Figures};
pub use forward::{Upstream, UpstreamError};
pub use sockets::BindError;

use self::{
    answer::{Forward, Policy, Reaction, Reply, Silence, answer},
    forward::Forwarder,
};
use crate::snapshot::Snapshot;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the reply is short.
    Udp,
    /// On a connection: the reply is as long as its length field can say.
    Tcp,
}

/// What the fallback is told.
#[derive(Clone, Debug, Default)]
pub struct FallbackConfig {
    /// Where it listens, on UDP and TCP: addresses of this node and no wildcards, so that a reply comes from the
    /// address that was asked. Port 0 is any port that is free on both.
    pub listen: Vec<SocketAddr>,
    /// Who is asked about names outside the zones: those of the longest domain that holds the name.
    pub upstreams: Vec<Upstream>,
    /// Who may ask about names outside the zones.
    pub forward_for: Vec<IpNet>,
    /// What it may use.
    pub limits: Limits,
}

/// What keeps the fallback bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections in all; beyond, the one that has been idle longest is closed.
    pub connections: usize,
    /// TCP connections of one client address; beyond, the same among its own.
    pub connections_per_client: usize,
    /// Questions that one TCP connection may have under way; beyond, it is not read from.
    pub pipelined: usize,
    /// After how long without a whole query, or a reply to one, a connection is closed.
    pub idle_timeout: Duration,
    /// How long a client may take to accept a reply over TCP.
    pub write_timeout: Duration,
    /// Questions that may wait for upstreams; beyond, SERVFAIL.
    pub forwarded: usize,
    /// How long a question may wait for upstreams.
    pub upstream_timeout: Duration,
    /// What upstreams' answers may take, in bytes.
    pub cache: u64,
    /// How long questions under way may go on after the end was asked for.
    pub drain_timeout: Duration,
}

impl Limits {
    /// The default ones, as far as a process may have so many open files for them. A question that waits for upstreams
    /// takes up to seven: it is sent again from another port, and over TCP in the end.
    #[must_use]
    pub fn within(files: u64) -> Self {
        let default = Self::default();
        let share = |of: usize, part| of.min(usize::try_from(files / part).unwrap_or(of)).max(1);
        Self {
            connections: share(default.connections, 4),
            connections_per_client: share(default.connections_per_client, 16),
            forwarded: share(default.forwarded, 16),
            ..default
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_per_client: 256,
            pipelined: 128,
            idle_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(5),
            forwarded: 4096,
            // Stub resolvers wait five seconds for an answer.
            upstream_timeout: Duration::from_millis(4500),
            cache: 32 << 20,
            drain_timeout: Duration::from_secs(5),
        }
    }
}

/// The ranges that questions are forwarded for unless told otherwise: loopback, private, unique local and link local.
pub fn default_forward_for() -> Vec<IpNet> {
    [
        "127.0.0.0/8",
        "::1/128",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "fc00::/7",
        "169.254.0.0/16",
        "fe80::/10",
    ]
    .map(|range| range.parse().expect("a range"))
    .into()
}

/// The responder with all its sockets bound, not yet answering.
#[derive(Debug)]
pub struct Fallback {
    sockets: Vec<Sockets>,
    config: FallbackConfig,
    counters: Arc<Counters>,
    more: (
        mpsc::UnboundedSender<Sockets>,
        mpsc::UnboundedReceiver<Sockets>,
    ),
}

/// Gives a [`Fallback`] that answers already more addresses to answer at.
#[derive(Clone, Debug)]
pub struct Binder {
    upstreams: Vec<Upstream>,
    sockets: mpsc::UnboundedSender<Sockets>,
}

impl Binder {
    /// Binds the sockets of one more address, which then answers until the end, or until what is returned is dropped.
    ///
    /// # Errors
    /// The address can't be had; the others go on.
    pub fn bind(&self, address: SocketAddr) -> Result<DropGuard, BindError> {
        let sockets = sockets::bind(address)?;
        sockets::refuse_self(&self.upstreams, std::iter::once(sockets.address))?;
        let open = sockets.closed.clone().drop_guard();
        // Nobody takes them any more at the end.
        let _ = self.sockets.send(sockets);
        Ok(open)
    }
}

/// The sockets of one address.
#[derive(Debug)]
struct Sockets {
    address: SocketAddr,
    /// One for each of [`udp::Workers`].
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
    closed: CancellationToken,
}

impl Sockets {
    fn serve(
        self,
        responder: &Arc<Responder>,
        workers: &udp::Workers,
        connections: &Arc<tcp::Connections>,
    ) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.tcp)?;
        workers.serve(self.udp, &self.closed);
        let serve = tcp::serve(listener, Arc::clone(connections), Arc::clone(responder));
        responder
            .tasks
            .spawn(self.closed.run_until_cancelled_owned(serve));
        Ok(())
    }
}

impl Fallback {
    /// Binds every socket, or none: an address that can't be had is named, with the remedy.
    pub fn bind(config: FallbackConfig) -> Result<Self, BindError> {
        let sockets = config
            .listen
            .iter()
            .map(|&address| sockets::bind(address))
            .collect::<Result<Vec<_>, _>>()?;
        sockets::refuse_self(
            &config.upstreams,
            sockets.iter().map(|sockets| sockets.address),
        )?;
        Ok(Self {
            sockets,
            config,
            counters: Arc::default(),
            more: mpsc::unbounded_channel(),
        })
    }

    /// Binds more addresses later.
    pub fn binder(&self) -> Binder {
        Binder {
            upstreams: self.config.upstreams.clone(),
            sockets: self.more.0.clone(),
        }
    }

    /// Where it listens, in the configured order, with the ports that were found for port 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|sockets| sockets.address).collect()
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Answers until `shutdown`, and then what is under way, for a while. An error is one of the system's, at the start.
    pub async fn serve(
        self,
        snapshot: Arc<ArcSwap<Snapshot>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let FallbackConfig {
            upstreams,
            forward_for,
            limits,
            ..
        } = self.config;
        let policy = Policy::new(
            upstreams.iter().map(|upstream| upstream.domain.clone()),
            forward_for,
        );
        let forwarder = Arc::new(Forwarder::new(
            &upstreams,
            &policy,
            &limits,
            Arc::clone(&self.counters),
        ));
        let responder = Arc::new(Responder {
            snapshot,
            policy,
            forwarder,
            limits,
            counters: self.counters,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            shutdown: shutdown.clone(),
        });
        let workers = udp::Workers::start(&responder)?;
        let connections = Arc::new(tcp::Connections::new(
            &limits,
            Arc::clone(&responder.counters),
        ));
        for sockets in self.sockets {
            sockets.serve(&responder, &workers, &connections)?;
        }
        let (_sender, mut more) = self.more;
        while let Some(Some(sockets)) = shutdown.run_until_cancelled(more.recv()).await {
            let address = sockets.address;
            if let Err(error) = sockets.serve(&responder, &workers, &connections) {
                warn!(%address, %error, "can't answer at this address");
            }
        }
        drop(workers);
        responder.tasks.close();
        if timeout(limits.drain_timeout, responder.tasks.wait())
            .await
            .is_err()
        {
            warn!(
                tasks = responder.tasks.len(),
                "left unanswered at the end of the drain time"
            );
        }
        Ok(())
    }
}

/// What every socket shares.
struct Responder {
    snapshot: Arc<ArcSwap<Snapshot>>,
    policy: Policy,
    forwarder: Arc<Forwarder>,
    limits: Limits,
    counters: Arc<Counters>,
    tasks: TaskTracker,
    /// Where connections and what waits for upstreams are at home.
    runtime: Handle,
    shutdown: CancellationToken,
}

/// What is left to do about a message.
enum Pending {
    /// A reply is written.
    Reply(Reply),
    /// Upstreams are to be asked, for which there is room.
    Forward(Forward, OwnedSemaphorePermit),
    Nothing,
}

impl Responder {
    /// Does all that can be done at once. A reply takes the place of what is in `octets`.
    fn react(
        &self,
        snapshot: &Snapshot,
        message: &[u8],
        transport: Transport,
        client: IpAddr,
        octets: &mut Vec<u8>,
    ) -> Pending {
        let draw = rand::random();
        match answer(
            message,
            transport,
            client,
            snapshot,
            &self.policy,
            draw,
            octets,
        ) {
            Reaction::Reply(reply) => Pending::Reply(reply),
            Reaction::Forward(forward) => match self.forwarder.cached(&forward, octets) {
                Some(reply) => Pending::Reply(reply),
                None => match self.forwarder.admit(&forward, octets) {
                    Ok(room) => Pending::Forward(forward, room),
                    Err(reply) => Pending::Reply(reply),
                },
            },
            Reaction::Silence(silence) => {
                match silence {
                    Silence::Response => &self.counters.ignored_responses,
                    Silence::Short => &self.counters.ignored_short,
                }
                .increment();
                Pending::Nothing
            }
        }
    }

    /// Has upstreams asked, and returns the reply's octets.
    async fn forward(
        &self,
        forward: Forward,
        room: OwnedSemaphorePermit,
        transport: Transport,
        client: SocketAddr,
    ) -> Vec<u8> {
        let mut octets = Vec::new();
        let reply = self.forwarder.forward(&forward, room, client, &mut octets);
        let reply = reply.await;
        self.counters.replies(reply, transport, 1);
        octets
    }
}
