//! `peak run`: configure, build, serve, wait, drain.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr, TcpListener},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, block_in_place},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use crate::{
    admin::AdminSocket,
    cli::RunArgs,
    config::{RunConfig, SourceConfig, XdpMode},
    dataplane::live::Dataplane,
    fallback::{Binder, Fallback, FallbackConfig, Limits},
    interfaces::{Interface, Interfaces, Places},
    metrics,
    snapshot::{Snapshot, SnapshotConfig},
    source::{Source, kubernetes, manifests},
    state::State,
    telemetry,
};

/// How often it is looked what became of the interfaces.
const FOLLOW: Duration = Duration::from_secs(1);
/// How many addresses that went keep their sockets.
const WENT: usize = 16;
/// How long is waited for addresses that are not known yet to be ours alone.
const TENTATIVE: Duration = Duration::from_secs(5);

/// Answers queries until a signal. Exit status 2 if the settings make no sense.
///
/// # Errors
/// Whatever keeps it from answering; nothing is left attached then.
pub fn run(arguments: &RunArgs) -> Result<ExitCode> {
    telemetry::init();
    let config = match RunConfig::from(arguments) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    Runtime::new().context("can't start")?.block_on(async {
        let signals = Signals::new()?;
        let agent = Agent::build(config).await?;
        agent.serve(signals).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// How many files the process may have open: as many as it can get. What one has by default is spent by a few hundred
/// questions that wait for an upstream, and then manifests can't be read either.
fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = setrlimit(Resource::Nofile, most).map_or(limit, |()| most);
    limit.current.unwrap_or(u64::MAX)
}

/// The parts, built and not yet answering.
struct Agent {
    state: Arc<State>,
    source: Source,
    fallback: Fallback,
    admin: AdminSocket,
    metrics: Option<TcpListener>,
    watch: Watch,
}

/// What is needed to follow the interfaces.
struct Watch {
    listen: Vec<SocketAddr>,
    names: Vec<String>,
    xdp: XdpMode,
    interfaces: Interfaces,
    /// Where there are sockets: the kernel answers nowhere else.
    sockets: Vec<SocketAddr>,
    /// The later ones of these.
    bound: Vec<(SocketAddr, DropGuard)>,
    binder: Binder,
}

impl Agent {
    async fn build(config: RunConfig) -> Result<Self> {
        let interfaces = Interfaces::new().context("can't open a netlink socket")?;
        let named = usable(&interfaces, &config.interfaces).await?;
        let places = Places::new(&config.listen, &named);
        if places.sockets.is_empty() {
            bail!(
                "nowhere to answer: no interface has an address that --listen means; add one, or name another interface"
            );
        }
        let recursion_available = !config.upstreams.is_empty();
        let fallback = Fallback::bind(FallbackConfig {
            listen: places.sockets.clone(),
            upstreams: config.upstreams,
            forward_for: config.forward_for,
            limits: Limits::within(open_files()),
        })?;
        let binder = fallback.binder();
        let metrics = config.metrics.map(metrics::bind).transpose()?;
        let admin = AdminSocket::bind(&config.admin)?;
        let source = match &config.source {
            SourceConfig::Manifests(folder) => manifests::watch(folder, config.records)?,
            SourceConfig::Kubernetes(cluster) => {
                kubernetes::watch(cluster, config.records, config.pods).await?
            }
        };
        let snapshot = Snapshot::empty(SnapshotConfig {
            zones: config.zones,
            ttl: config.ttl,
            nameservers: nameservers(&places.sockets),
            reverse: config.reverse,
            pods: config.pods,
        });

        let attaches = config.xdp != XdpMode::Off && !named.is_empty();
        let dataplane = if attaches {
            let dataplane =
                Dataplane::load(snapshot.zones(), recursion_available, config.log_one_in)?;
            for interface in &named {
                dataplane.attach(interface, config.xdp)?;
            }
            dataplane.follow(&named, &places.served, config.xdp);
            Some(dataplane)
        } else {
            info!("the kernel answers nothing: the fallback alone does");
            None
        };
        let state = State {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            source: source.origin(),
            dataplane,
            fallback: fallback.counters(),
            interfaces: config.interfaces.clone(),
            drain: CancellationToken::new(),
        };
        Ok(Self {
            state: Arc::new(state),
            source,
            fallback,
            admin,
            metrics,
            watch: Watch {
                listen: config.listen,
                names: config.interfaces,
                xdp: config.xdp,
                interfaces,
                sockets: places.sockets,
                bound: Vec::new(),
                binder,
            },
        })
    }

    async fn serve(self, mut signals: Signals) -> Result<()> {
        let Self {
            state,
            source,
            fallback,
            admin,
            metrics,
            watch,
        } = self;
        for address in fallback.local_addrs() {
            info!(%address, "listening");
        }
        let mut answering =
            tokio::spawn(fallback.serve(Arc::clone(&state.snapshot), state.drain.clone()));
        let updates = spawn(update(source, Arc::clone(&state)));
        let commands = spawn(admin.serve(Arc::clone(&state)));
        let following = spawn(watch.follow(Arc::clone(&state)));
        let scrapes = spawn(serve_metrics(metrics, Arc::clone(&state)));

        let mut tasks = (updates, commands, following, scrapes);
        let outcome = tokio::select! {
            () = signals.next() => Ok(()),
            ended = &mut answering => ended.context("the fallback failed")?.context("the fallback can't answer"),
            ended = &mut tasks.0.0 => ended.context("updates failed")?,
            ended = &mut tasks.1.0 => ended.context("the admin socket failed"),
            ended = &mut tasks.2.0 => ended.context("following the interfaces failed"),
            ended = &mut tasks.3.0 => ended.context("serving metrics failed")?,
        };

        signals.end_at_once();
        state.drain.cancel();
        if let Some(dataplane) = &state.dataplane {
            dataplane.detach();
        }
        if !answering.is_finished() {
            answering.await.context("the fallback failed")??;
        }
        outcome
    }
}

/// Each batch: to the kernel, then to the fallback, so that who sees it in the one finds it in the other.
async fn update(mut source: Source, state: Arc<State>) -> Result<()> {
    while let Some(batch) = source.next().await {
        let began = Instant::now();
        let (snapshot, changes) = state.snapshot.load().with(batch, SystemTime::now());
        for problem in snapshot.problems() {
            warn!("{}: {problem}", problem.object);
        }
        if let Some(dataplane) = &state.dataplane {
            block_in_place(|| dataplane.apply(&snapshot, &changes));
        }
        let first = !state.snapshot.load().complete();
        let (generation, names) = (snapshot.generation(), snapshot.name_count());
        state.snapshot.store(Arc::new(snapshot));
        let took = began.elapsed();
        if first {
            info!(generation, names, ?took, "ready");
        } else {
            tracing::debug!(generation, names, changes = changes.len(), ?took, "updated");
        }
    }
    bail!("the source of services has ended")
}

impl Watch {
    /// Follows the interfaces: that they go and come back, their addresses, MACs and MTUs.
    async fn follow(mut self, state: Arc<State>) {
        let mut ticks = interval(FOLLOW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = Vec::new();
        loop {
            ticks.tick().await;
            match self.interfaces.all().await {
                Ok(mut now) => {
                    now.retain(|interface| self.names.contains(&interface.name));
                    // What could not be done is tried again.
                    if now != before && self.adapt(&now, state.dataplane.as_deref()) {
                        before = now;
                    }
                }
                Err(error) => warn!(%error, "can't ask netlink what became of the interfaces"),
            }
        }
    }

    /// Answers where `--listen` now means. `false` if a socket can't be had.
    fn adapt(&mut self, interfaces: &[Interface], dataplane: Option<&Dataplane>) -> bool {
        let mut places = Places::new(&self.listen, interfaces);
        let mut whole = true;
        for &socket in &places.sockets {
            if self.sockets.contains(&socket) {
                continue;
            }
            match self.binder.bind(socket) {
                Ok(open) => {
                    info!(address = %socket, "listening");
                    self.sockets.push(socket);
                    self.bound.push((socket, open));
                }
                Err(error) => {
                    warn!("{error}");
                    whole = false;
                }
            }
        }
        self.close_some_of_those_that_went(&places.sockets);
        places
            .served
            .retain(|place| self.sockets.contains(&place.socket()));
        if let Some(dataplane) = dataplane {
            block_in_place(|| dataplane.follow(interfaces, &places.served, self.xdp));
        }
        whole
    }

    /// Addresses that go often come back, and then answer at once. But a network may give and take any number of them.
    fn close_some_of_those_that_went(&mut self, wanted: &[SocketAddr]) {
        let went = |address: &SocketAddr| !wanted.contains(address);
        let mut excess = self
            .bound
            .iter()
            .filter(|(address, _)| went(address))
            .count();
        self.bound.retain(|(address, _)| {
            let close = excess > WENT && went(address);
            if close {
                info!(%address, "listening no longer: the address went");
                self.sockets.retain(|socket| socket != address);
                excess -= 1;
            }
            !close
        });
    }
}

/// The interfaces of these names, once all their addresses are known to be theirs.
async fn usable(interfaces: &Interfaces, names: &[String]) -> Result<Vec<Interface>> {
    let began = Instant::now();
    loop {
        let all = interfaces
            .all()
            .await
            .context("can't ask netlink for the interfaces")?;
        let named: Vec<_> = names
            .iter()
            .map(|name| {
                let found = all.iter().find(|interface| interface.name == *name);
                found.cloned().with_context(|| {
                    let there: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
                    format!("no interface {name}: there are {}", there.join(", "))
                })
            })
            .collect::<Result<_>>()?;
        if named.iter().all(|interface| interface.tentative.is_empty())
            || began.elapsed() > TENTATIVE
        {
            for interface in &named {
                for address in &interface.tentative {
                    warn!(interface = interface.name, %address, "not answering here: whether another node has the address is not known yet");
                }
            }
            return Ok(named);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// The addresses of the name server: those that clients elsewhere can reach, if there are any.
fn nameservers(sockets: &[SocketAddr]) -> Vec<IpAddr> {
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let all = || sockets.iter().map(SocketAddr::ip);
    let reachable: Vec<_> = all()
        .filter(|address| !address.is_loopback() && !is_link_local(address))
        .collect();
    if reachable.is_empty() {
        all().filter(|address| !is_link_local(address)).collect()
    } else {
        reachable
    }
}

async fn serve_metrics(listener: Option<TcpListener>, state: Arc<State>) -> Result<()> {
    match listener {
        Some(listener) => metrics::serve(listener, state).await,
        None => std::future::pending().await,
    }
}

/// A task that ends when this is dropped.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task(tokio::spawn(task))
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("can't wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("can't wait for SIGINT")?,
        })
    }

    async fn next(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!("{name}: draining; a second one ends at once");
    }

    /// From now on the next one ends the process.
    fn end_at_once(mut self) {
        tokio::spawn(async move {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            warn!("a second signal: ended without draining");
            std::process::exit(1);
        });
    }
}
