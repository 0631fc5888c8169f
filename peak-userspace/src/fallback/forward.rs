//! Asks upstreams about names outside the zones, and remembers what they say.
//!
//! `hickory-resolver` brings the connections: UDP from random ports with retransmission, TCP with many questions at once.
//! Its cache and its `Resolver` stay out, because they answer DO=0 and DO=1 and CD=0 and CD=1 from one entry, can't send
//! CD, lose the flags of negative answers and answer some names themselves; here what is asked is passed on as asked.

use std::{
    collections::HashMap,
    fmt,
    net::{AddrParseError, SocketAddr},
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::base::iana::OptRcode;
use hickory_resolver::{
    ConnectionProvider, PoolContext, TlsConfig,
    config::{ConnectionConfig, ResolverOpts},
    net::{
        NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsExchange, DnsHandle, FirstAnswer},
    },
    proto::{
        op::{
            DnsRequest, DnsRequestOptions, DnsResponse, Edns, Message, MessageType, OpCode, Query,
            ResponseCode,
        },
        rr::{Name as WireName, RData, Record, RecordType, rdata::CNAME},
        serialize::binary::{BinDecodable, BinDecoder},
    },
};
use moka::{Expiry, sync::Cache};
use rand::random;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    Limits,
    answer::{Forward, Policy, Reply},
    counters::Counters,
    query::UDP_PAYLOAD,
};
use crate::name::{Name, NameError};

/// The longest that an answer is kept (RFC 8767, section 4, has a week as the most), and a negative one (RFC 2308,
/// section 5: one to three hours were found to work well).
const MAX_TTL: Duration = Duration::from_secs(86_400);
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(10_800);
/// RFC 9520, section 3.2: failures are kept for a second at least.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// What an entry of the cache takes, roughly, besides name and message, in bytes.
const ENTRY: usize = 512;
const _: () = assert!(size_of::<Key>() + size_of::<Entry>() < ENTRY / 2);
/// After how long without an answer a datagram is sent again.
const RETRANSMIT: Duration = Duration::from_millis(800);
/// How often an upstream may be probed for a loop, and how long it is left alone after one was found.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const LOOP_PENALTY: Duration = Duration::from_secs(30);
/// The first label of a probe is this and 16 hexadecimal digits.
const PROBE_PREFIX: &[u8] = b"peak-loop-";
/// The second one.
const PROBE_PARENT: &[u8] = b"peak-loop";

/// One upstream: `[DOMAIN=]ADDRESS:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// It is asked about names within this domain; the root means all names.
    pub domain: Name,
    /// Where it listens, on UDP and TCP.
    pub address: SocketAddr,
}

/// Why a text is not an [`Upstream`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// What precedes the `=` is not a name.
    #[error("{text:?} is not a domain: {error}")]
    Domain {
        /// What was read.
        text: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// What is left is not an address with a port.
    #[error("{text:?} is not ADDRESS:PORT (an IPv6 address stands in brackets): {error}")]
    Address {
        /// What was read.
        text: String,
        /// What is wrong with it.
        error: AddrParseError,
    },
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (domain, address) = text.split_once('=').unwrap_or((".", text));
        Ok(Self {
            domain: domain.parse().map_err(|error| UpstreamError::Domain {
                text: domain.into(),
                error,
            })?,
            address: address.parse().map_err(|error| UpstreamError::Address {
                text: address.into(),
                error,
            })?,
        })
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.domain != Name::root() {
            write!(f, "{}=", self.domain)?;
        }
        write!(f, "{}", self.address)
    }
}

/// What decides an upstream's answer, and so what it is kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: Name,
    qtype: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    dnssec_ok: bool,
}

impl Key {
    fn new(forward: &Forward) -> Self {
        Self {
            name: forward.folded.clone(),
            qtype: forward.qtype,
            recursion_desired: forward.recursion_desired,
            checking_disabled: forward.checking_disabled,
            dnssec_ok: forward.edns.is_some_and(|edns| edns.dnssec_ok),
        }
    }

    fn question(&self) -> Query {
        Query::query(wire(self.name.as_wire()), RecordType::from(self.qtype))
    }

    fn request(&self) -> DnsRequest {
        let mut message = Message::query();
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.checking_disabled = self.checking_disabled;
        // RFC 6840, section 5.7: AD in a query asks for AD in the answer. Who asked us gets it only if it wants it.
        message.metadata.authentic_data = true;
        message.add_query(self.question());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD)
            .set_dnssec_ok(self.dnssec_ok);
        message.set_edns(edns);
        let mut options = DnsRequestOptions::default();
        options.retry_interval = RETRANSMIT;
        DnsRequest::new(message, options)
    }
}

/// What was learnt, from when on it ages, and how long it may be used.
struct Entry {
    /// The message as it came: parsed, it takes twenty times as much, for whoever chooses its records.
    octets: Box<[u8]>,
    code: ResponseCode,
    learnt: Instant,
    ttl: Duration,
}

impl Entry {
    fn new(message: &Message, octets: Vec<u8>) -> Self {
        Self {
            octets: octets.into(),
            code: message.metadata.response_code,
            learnt: Instant::now(),
            ttl: lifetime(message),
        }
    }

    fn failure() -> Self {
        let message = Message::error_msg(0, OpCode::Query, ResponseCode::ServFail);
        let octets = message.to_vec().expect("a header can be written");
        Self::new(&message, octets)
    }
}

/// How long an answer may be kept.
fn lifetime(message: &Message) -> Duration {
    if message.metadata.truncation {
        return Duration::ZERO;
    }
    let shortest = message
        .all_sections()
        .map(|record| record.ttl)
        .min()
        .unwrap_or(0);
    let shortest = Duration::from_secs(shortest.into());
    match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => shortest.min(MAX_TTL),
        // RFC 2308, section 5: by the SOA, and without one not at all.
        ResponseCode::NoError | ResponseCode::NXDomain => message
            .authorities
            .iter()
            .find_map(|record| match &record.data {
                RData::SOA(soa) => Some(Duration::from_secs(soa.minimum.into())),
                _ => None,
            })
            .map_or(Duration::ZERO, |minimum| {
                shortest.min(minimum).min(MAX_NEGATIVE_TTL)
            }),
        _ => FAILURE_TTL,
    }
}

/// Entries leave the cache when they end.
struct ByLifetime;

impl Expiry<Key, Arc<Entry>> for ByLifetime {
    fn expire_after_create(&self, _: &Key, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl)
    }
}

/// A question under way. Whoever asks the same meanwhile waits for its answer.
struct Flight {
    asker: SocketAddr,
    landed: watch::Receiver<Option<Arc<Entry>>>,
}

/// The upstreams of one domain.
struct Pool {
    domain: Name,
    servers: Vec<Arc<Server>>,
    /// The place of the one that answered last, which is asked first.
    preferred: AtomicUsize,
}

struct Server {
    address: SocketAddr,
    context: PoolContext,
    runtime: TokioRuntimeProvider,
    /// RFC 7766, section 6.2.1: a connection is used for many questions.
    connection: Mutex<Option<DnsExchange<TokioRuntimeProvider>>>,
    probed: Mutex<Option<Instant>>,
    avoid_until: Mutex<Option<Instant>>,
    loop_found: Notify,
}

/// Passes questions to upstreams and keeps their answers.
pub(super) struct Forwarder {
    pools: Vec<Pool>,
    cache: Cache<Key, Arc<Entry>>,
    flights: Mutex<HashMap<Key, Flight>>,
    /// Questions under way that look for a loop, by their first label.
    probes: Mutex<HashMap<Box<[u8]>, Arc<Server>>>,
    /// One permit for each question under way, and for each that waits for the same one's answer.
    room: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Forwarder {
    /// One pool of upstreams for each of the policy's domains.
    pub(super) fn new(
        upstreams: &[Upstream],
        policy: &Policy,
        limits: &Limits,
        counters: Arc<Counters>,
    ) -> Self {
        let pool = |domain: &Name| {
            let mut addresses: Vec<_> = upstreams
                .iter()
                .filter(|upstream| upstream.domain == *domain)
                .map(|upstream| upstream.address)
                .collect();
            addresses.dedup();
            // Each gets its share of the time, so that the last one's answer still comes in time.
            let share = limits.upstream_timeout / addresses.len() as u32;
            Pool {
                domain: domain.clone(),
                servers: addresses
                    .into_iter()
                    .map(|address| Arc::new(Server::new(address, share, limits.forwarded)))
                    .collect(),
                preferred: AtomicUsize::new(0),
            }
        };
        Self {
            pools: policy.domains().iter().map(pool).collect(),
            cache: Cache::builder()
                .max_capacity(limits.cache)
                .weigher(|key: &Key, entry: &Arc<Entry>| {
                    (key.name.as_wire().len() + entry.octets.len() + ENTRY) as u32
                })
                .expire_after(ByLifetime)
                .build(),
            flights: Mutex::default(),
            probes: Mutex::default(),
            room: Arc::new(Semaphore::new(limits.forwarded)),
            counters,
        }
    }

    /// The answer, if it is known already.
    pub(super) fn cached(&self, forward: &Forward, octets: &mut Vec<u8>) -> Option<Reply> {
        let entry = self.cache.get(&Key::new(forward))?;
        // Its room may be given back a little after its time is up.
        if entry.learnt.elapsed() >= entry.ttl {
            return None;
        }
        self.counters.forwarded.increment();
        self.counters.forward_cached.increment();
        Some(render(&entry, forward, octets))
    }

    /// Room for a question to be under way. It is asked for before there is a task: tasks are not bounded.
    ///
    /// # Errors
    /// There is none, or the question has come back from an upstream: SERVFAIL, written.
    pub(super) fn admit(
        &self,
        forward: &Forward,
        octets: &mut Vec<u8>,
    ) -> Result<OwnedSemaphorePermit, Reply> {
        self.counters.forwarded.increment();
        let failure = |octets| render(&Entry::failure(), forward, octets);
        if let Some(server) = self.returned_probe(&forward.folded) {
            self.counters.loops.increment();
            server.avoid();
            warn!(upstream = %server.address, "a question sent to this upstream came back: it forwards to us; left out for {LOOP_PENALTY:?}");
            return Err(failure(octets));
        }
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            self.counters.forward_overload.increment();
            failure(octets)
        })
    }

    /// Asks, and waits for the answer. SERVFAIL in the end, if there is none.
    pub(super) async fn forward(
        self: &Arc<Self>,
        forward: &Forward,
        permit: OwnedSemaphorePermit,
        client: SocketAddr,
        octets: &mut Vec<u8>,
    ) -> Reply {
        let (mut landed, _permit) = self.board(Key::new(forward), forward.route, client, permit);
        match landed.wait_for(Option::is_some).await {
            Ok(entry) => render(entry.as_ref().expect("it was waited for"), forward, octets),
            Err(_) => render(&Entry::failure(), forward, octets),
        }
    }

    /// Joins the same question if it is under way, or sends it on its way. That keeps the permit then: an asker who
    /// goes away makes no room by it, or one who always does could have any number of questions under way.
    fn board(
        self: &Arc<Self>,
        key: Key,
        route: usize,
        client: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> (
        watch::Receiver<Option<Arc<Entry>>>,
        Option<OwnedSemaphorePermit>,
    ) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key) {
            self.counters.forward_joined.increment();
            // A question that comes back through an upstream waits here like anybody's and goes round no more. Whether
            // it did come back can't be told from it, so one that nobody else can have asked is sent to find out.
            if flight.asker != client {
                self.probe(&key, route);
            }
            return (flight.landed.clone(), Some(permit));
        }
        let (land, landed) = watch::channel(None);
        flights.insert(
            key.clone(),
            Flight {
                asker: client,
                landed: landed.clone(),
            },
        );
        drop(flights);
        self.counters.forwarding.increment();
        let this = Arc::clone(self);
        // A task of its own: the answer is of use to others and to the cache, even if the asker goes away.
        tokio::spawn(async move {
            let landing = Landing {
                forwarder: &this,
                key,
                _permit: permit,
            };
            let entry = Arc::new(this.resolve(&landing.key, route).await);
            if !entry.ttl.is_zero() {
                this.cache.insert(landing.key.clone(), Arc::clone(&entry));
            }
            land.send_replace(Some(entry));
        });
        (landed, None)
    }

    async fn resolve(&self, key: &Key, route: usize) -> Entry {
        let Pool {
            servers, preferred, ..
        } = &self.pools[route];
        let first = preferred.load(Ordering::Relaxed);
        let mut unhelpful = None;
        for at in (first..first + servers.len()).map(|at| at % servers.len()) {
            let server = &servers[at];
            if server.is_avoided() {
                continue;
            }
            let loop_found = server.loop_found.notified();
            let response = tokio::select! {
                response = server.ask(key) => response,
                () = loop_found => continue,
            };
            match response {
                Ok(entry) => {
                    if matches!(entry.code, ResponseCode::ServFail | ResponseCode::Refused) {
                        unhelpful = Some(entry);
                    } else {
                        preferred.store(at, Ordering::Relaxed);
                        return entry;
                    }
                }
                Err(error) => {
                    debug!(upstream = %server.address, name = %key.name, %error, "no answer")
                }
            }
        }
        unhelpful.unwrap_or_else(|| {
            self.counters.forward_failed.increment();
            Entry::failure()
        })
    }

    /// Asks the upstreams about a name of their domain that was never asked before. If it comes back to us, they loop.
    ///
    /// Not one below the key's: who answers for that, and it may be the asker, would learn it, send it to us, and so
    /// keep us from asking the upstream anything.
    fn probe(self: &Arc<Self>, key: &Key, route: usize) {
        let Pool {
            domain, servers, ..
        } = &self.pools[route];
        for server in servers {
            if !server.may_be_probed() {
                continue;
            }
            let label = [PROBE_PREFIX, format!("{:016x}", random::<u64>()).as_bytes()].concat();
            // Two labels, as some forwarders keep single ones to themselves. A domain too long for them stays without
            // probe; the time-out still ends its loop.
            let Ok(name) = domain.descendant(&[&label, PROBE_PARENT]) else {
                return;
            };
            let (this, server, key) = (
                Arc::clone(self),
                Arc::clone(server),
                Key {
                    name,
                    ..key.clone()
                },
            );
            tokio::spawn(async move {
                lock(&this.probes).insert(label.clone().into(), Arc::clone(&server));
                let _ = server.ask(&key).await;
                lock(&this.probes).remove(&*label);
            });
        }
    }

    /// The upstream that a question was sent to by [`Self::probe`] and not by the client.
    fn returned_probe(&self, name: &Name) -> Option<Arc<Server>> {
        let label = name
            .labels()
            .next()
            .filter(|label| label.starts_with(PROBE_PREFIX))?;
        lock(&self.probes).get(label).cloned()
    }
}

/// Ends a flight, however it ends.
struct Landing<'a> {
    forwarder: &'a Forwarder,
    key: Key,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.forwarder.flights).remove(&self.key);
        self.forwarder.counters.forwarding.decrement();
    }
}

impl Server {
    /// `share` is for one question, `in_flight` for the connection.
    fn new(address: SocketAddr, share: Duration, in_flight: usize) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = share;
        options.max_active_requests = in_flight;
        Self {
            address,
            context: PoolContext::new(
                options,
                TlsConfig::new().expect("there is no TLS to configure"),
            ),
            runtime: TokioRuntimeProvider::default(),
            connection: Mutex::default(),
            probed: Mutex::default(),
            avoid_until: Mutex::default(),
            loop_found: Notify::new(),
        }
    }

    async fn ask(&self, key: &Key) -> Result<Entry, NetError> {
        let response = timeout(self.context.options.timeout, async {
            let request = key.request();
            let datagrams = self.connect(ConnectionConfig::udp()).await?;
            match datagrams.send(request.clone()).first_answer().await {
                Ok(response) if !response.metadata.truncation => Ok(response),
                Err(NetError::Timeout) => Err(NetError::Timeout),
                // RFC 7766, section 5: over TCP when truncated, and also when the datagram can't be made sense of.
                _ => self.ask_over_tcp(request).await,
            }
        })
        .await
        .unwrap_or(Err(NetError::Timeout))
        .inspect_err(|_| {
            // It may be the connection that is at fault: the next question gets another.
            lock(&self.connection).take();
        })?;
        let (message, octets) = response.into_parts();
        // RFC 5452, section 9.1: the answer to another question is no answer.
        match message.queries.as_slice() {
            [question] if *question == key.question() => Ok(Entry::new(&message, octets)),
            _ => Err(NetError::Message("the answer is to another question")),
        }
    }

    async fn ask_over_tcp(&self, request: DnsRequest) -> Result<DnsResponse, NetError> {
        let kept = lock(&self.connection).clone();
        if let Some(connection) = kept
            && let Ok(response) = connection.send(request.clone()).first_answer().await
        {
            return Ok(response);
        }
        // The server may have closed the one that was kept.
        let connection = self.connect(ConnectionConfig::tcp()).await?;
        *lock(&self.connection) = Some(connection.clone());
        connection.send(request).first_answer().await
    }

    async fn connect(
        &self,
        mut config: ConnectionConfig,
    ) -> Result<DnsExchange<TokioRuntimeProvider>, NetError> {
        config.port = self.address.port();
        self.runtime
            .new_connection(self.address.ip(), &config, &self.context)?
            .await
    }

    fn may_be_probed(&self) -> bool {
        let mut probed = lock(&self.probed);
        let due = probed.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL);
        if due {
            *probed = Some(Instant::now());
        }
        due
    }

    /// Gives up what it is asked now, and asks it no more for a while.
    fn avoid(&self) {
        *lock(&self.avoid_until) = Some(Instant::now() + LOOP_PENALTY);
        self.loop_found.notify_waiters();
    }

    fn is_avoided(&self) -> bool {
        lock(&self.avoid_until).is_some_and(|until| Instant::now() < until)
    }
}

/// Writes an upstream's answer as the client gets it, in place of what is in `octets`.
fn render(entry: &Entry, forward: &Forward, octets: &mut Vec<u8>) -> Reply {
    // It was read when it came; but nothing that others sent shall end the loop that we are in.
    let mut message = Message::from_vec(&entry.octets)
        .unwrap_or_else(|_| Message::error_msg(0, OpCode::Query, ResponseCode::ServFail));
    let age = u32::try_from(entry.learnt.elapsed().as_secs()).unwrap_or(u32::MAX);
    for records in [
        &mut message.answers,
        &mut message.authorities,
        &mut message.additionals,
    ] {
        for record in records {
            record.decrement_ttl(age);
        }
    }
    let header = &mut message.metadata;
    header.id = forward.id;
    header.message_type = MessageType::Response;
    // RFC 1035, section 4.1.1: only who owns the name has authority, and a cache does not. Where aliases led to the
    // upstream, authority is about the first of them.
    header.authoritative = !forward.chain.is_empty();
    header.recursion_available = true;
    header.recursion_desired = forward.recursion_desired;
    header.checking_disabled = forward.checking_disabled;
    // RFC 6840, section 5.8: AD only for those who show that they understand it.
    header.authentic_data &= forward.chain.is_empty()
        && (forward.authentic_data || forward.edns.is_some_and(|edns| edns.dnssec_ok));
    message.signature = None;
    message.edns = forward.edns.map(|edns| {
        let mut ours = Edns::new();
        ours.set_max_payload(UDP_PAYLOAD)
            .set_dnssec_ok(edns.dnssec_ok);
        ours
    });
    // RFC 6891, section 6.1.3: without OPT there is no room for a longer code.
    if message.edns.is_none() && u16::from(message.metadata.response_code) > 15 {
        message.metadata.response_code = ResponseCode::ServFail;
    }
    let asked = wire(&forward.name);
    let targets = || forward.chain.iter().map(|target| wire(target.as_wire()));
    let aliases = std::iter::once(asked.clone())
        .chain(targets())
        .zip(targets());
    let aliases = aliases.map(|(owner, target)| {
        Record::from_rdata(owner, forward.chain_ttl, RData::CNAME(CNAME(target)))
    });
    message.answers.splice(0..0, aliases);
    message.queries = vec![Query::query(asked, RecordType::from(forward.qtype))];
    *octets = match message.to_vec() {
        Ok(octets) if octets.len() <= forward.limit => octets,
        Ok(_) => truncated(message.clone(), forward.limit),
        Err(error) => {
            debug!(name = %forward.folded, %error, "an upstream's answer can't be written");
            message.metadata.response_code = ResponseCode::ServFail;
            message.take_all_sections().for_each(drop);
            message
                .to_vec()
                .expect("a question and an OPT can be written")
        }
    };
    Reply {
        truncated: octets[2] & 0x02 != 0,
        rcode: OptRcode::masked_from_int(message.metadata.response_code.into()),
    }
}

/// A message with TC, and as many of its answers as fit (RFC 2181, section 9): clients that know no TCP have nothing else.
fn truncated(mut message: Message, limit: usize) -> Vec<u8> {
    message.metadata.truncation = true;
    message.authorities.clear();
    message.additionals.clear();
    let answers = std::mem::take(&mut message.answers);
    let mut with = |count: usize| {
        message.answers = answers[..count].to_vec();
        message.to_vec().ok().filter(|octets| octets.len() <= limit)
    };
    // The least count with which it is too long: none, at most, as question and OPT fit 512 bytes.
    let (mut fits, mut exceeds) = (0, answers.len() + 1);
    while exceeds - fits > 1 {
        let count = fits.midpoint(exceeds);
        match with(count) {
            Some(_) => fits = count,
            None => exceeds = count,
        }
    }
    with(fits).expect("a question and an OPT fit")
}

fn wire(name: &[u8]) -> WireName {
    WireName::read(&mut BinDecoder::new(name)).expect("both kinds of name keep to RFC 1035")
}

/// Nothing that is locked here is left half done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
