//! From a change of an EndpointSlice to the changed answer.
//!
//! Three moments of one clock: the request is sent, its event arrives at a watch of ours, a client's socket gets the first
//! answer that shows it. Between the first two is the API server's work; the servers that are measured have watches like
//! ours.

use std::{
    fmt,
    net::{Ipv6Addr, UdpSocket},
    num::NonZeroU64,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use http::{Request, header::CONTENT_TYPE};
use http_body_util::BodyExt;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use peak_tests::ControlPlane;
use rustix::thread::set_current_timer_slack;
use serde_json::{Value, json};

use super::{
    cluster::{self, Creation, SLICE},
    server::{self, Server},
};
use crate::report::Samples;

/// The namespace of the services that change.
pub(super) const NAMESPACE: &str = "changing";
/// How long a change may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The pause between two changes, and how much longer it may be, so that no server's rhythm is kept: an agent is idle when
/// a change comes.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(10));
/// How long to wait between two questions. Asking without a pause would keep one of the machine's processors from the server
/// and the API server, for as long as the scheduler lets who never sleeps.
const BETWEEN: Duration = Duration::from_micros(40);
/// By how much the kernel may prolong a pause to save wake-ups, in nanoseconds.
const SLACK: NonZeroU64 = NonZeroU64::MIN;
/// What stands before the number of a change in addresses.
const MARK: u16 = 0xfeed;
/// How many questions for a service's name are under way at once.
const BURST: usize = 8;

/// A headless service of so many endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changing {
    pub(super) endpoints: u32,
}

/// What changes, and which name is asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The address of one endpoint; its own name.
    Endpoint,
    /// The addresses of all endpoints of a slice; the service's name. Which of its addresses are in an answer is drawn: with
    /// a single changed one among thousands, it would take as many answers to see it.
    Service,
}

/// As it is written in sentences.
impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Endpoint => "an endpoint",
            Self::Service => "a slice",
        })
    }
}

/// How long changes took, in milliseconds.
#[derive(Default)]
pub(super) struct Times {
    /// From the request to our watch.
    pub(super) to_event: Samples,
    /// From our watch to the answer. Below zero where the server had the event before us.
    pub(super) event_to_answer: Samples,
    /// From the request to the answer.
    pub(super) to_answer: Samples,
}

impl Changing {
    fn service(self) -> String {
        format!("fleet-{}", self.endpoints)
    }

    fn name(self) -> String {
        format!("{}.{NAMESPACE}.svc.cluster.local", self.service())
    }

    fn pod(self, index: u32) -> String {
        format!("{}-{index}", self.service())
    }

    fn slices(self) -> u32 {
        self.endpoints.div_ceil(SLICE)
    }

    /// The address of an endpoint that has changed so often. Pods that are in one slice are far from one another among all
    /// addresses, as a scheduler spreads them over nodes, wherever that leads.
    fn address(self, index: u32, version: u32) -> Ipv6Addr {
        let place = index % SLICE * self.slices() + index / SLICE;
        let [high, low] = [(version >> 16) as u16, version as u16];
        Ipv6Addr::new(
            0xfd00,
            0x10,
            0x245,
            self.endpoints as u16,
            place as u16,
            MARK,
            high,
            low,
        )
    }

    fn endpoint(self, index: u32, version: u32) -> Value {
        let pod = self.pod(index);
        let mut endpoint =
            cluster::pod_endpoint(NAMESPACE, &pod, self.address(index, version), index);
        endpoint["hostname"] = pod.into();
        endpoint
    }

    fn endpoints_of(self, slice: u32, version: u32) -> Vec<Value> {
        let begin = slice * SLICE;
        (begin..self.endpoints.min(begin + SLICE))
            .map(|index| self.endpoint(index, version))
            .collect()
    }

    /// The service, and its slices with endpoints that have not changed yet.
    pub(super) fn objects(self) -> impl Iterator<Item = Creation> {
        let annotations = json!({"peak/answers": "8"});
        let service = cluster::service(NAMESPACE, &self.service(), "None", &annotations);
        let slices = (0..self.slices()).map(move |slice| {
            let endpoints = self.endpoints_of(slice, 0);
            cluster::slice(NAMESPACE, &self.service(), slice, &endpoints)
        });
        [service].into_iter().chain(slices)
    }

    fn endpoint_name(self, index: u32) -> String {
        format!("{}.{}", self.pod(index), self.name())
    }
}

/// Somebody who changes slices, and watches them.
pub(super) struct Changer {
    changes: Sender<Change>,
    sent: Receiver<Result<Instant>>,
    events: Receiver<Result<Event>>,
    /// How often anything was changed: all addresses of a change have its number.
    version: u32,
    random: Rng,
}

/// A JSON patch (RFC 6902) of a slice.
struct Change {
    slice: String,
    patch: Vec<u8>,
}

/// A line of a watch, and when it was there.
struct Event {
    at: Instant,
    line: Vec<u8>,
}

impl Changer {
    /// Begins to watch.
    ///
    /// # Errors
    /// The API server refuses.
    pub(super) fn start(plane: &ControlPlane) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(plane.kubeconfig())?;
        let (changes, inbox) = mpsc::channel();
        let (outbox, sent) = mpsc::channel();
        let (watched, events) = mpsc::channel();
        let (begun, beginning) = mpsc::channel();
        let of_watch = kubeconfig.clone();
        thread::spawn(move || {
            let task = async |client| watch(client, &begun, &watched).await;
            if let Err(error) = on_runtime(of_watch, task) {
                // In the end nobody listens any more.
                let _ = watched.send(Err(error.context("the benchmark's watch has ended")));
            }
        });
        thread::spawn(move || {
            let task = async |client| {
                while let Ok(change) = inbox.recv() {
                    if outbox.send(apply(&client, change).await).is_err() {
                        break;
                    }
                }
                Ok(())
            };
            if let Err(error) = on_runtime(kubeconfig, task) {
                let _ = outbox.send(Err(error));
            }
        });
        beginning
            .recv_timeout(LIMIT)
            .context("the API server does not begin a watch")?;
        Ok(Self {
            changes,
            sent,
            events,
            version: 0,
            random: Rng::with_seed(1),
        })
    }

    /// Makes changes, one after the other, and takes the time until a server's answers show each.
    ///
    /// # Errors
    /// One doesn't come through, or an answer is neither what was nor what is.
    pub(super) fn measure(
        &mut self,
        server: &Server,
        changing: Changing,
        asked: Asked,
        changes: usize,
    ) -> Result<Times> {
        set_current_timer_slack(Some(SLACK))?;
        let mut times = Times::default();
        for _ in 0..changes {
            let (shortest, more) = PAUSE;
            thread::sleep(shortest + more.mul_f64(self.random.f64()));
            self.version += 1;
            let version = self.version;
            let index = self.random.u32(..changing.endpoints);
            let slice = index / SLICE;
            let (path, value) = match asked {
                Asked::Endpoint => (
                    format!("/endpoints/{}/addresses/0", index % SLICE),
                    json!(changing.address(index, version)),
                ),
                Asked::Service => (
                    "/endpoints".to_owned(),
                    changing.endpoints_of(slice, version).into(),
                ),
            };
            let patch = json!([{"op": "replace", "path": path, "value": value}]);
            self.changes
                .send(Change {
                    slice: cluster::slice_name(&changing.service(), slice),
                    patch: serde_json::to_vec(&patch)?,
                })
                .context("nobody makes changes")?;
            let answered = match asked {
                Asked::Endpoint => {
                    let query = server::query(&changing.endpoint_name(index))?;
                    see_endpoint(&server.socket, &query, changing.address(index, version))?
                }
                Asked::Service => {
                    let query = server::query(&changing.name())?;
                    see_service(&server.socket, &query, version, changing.endpoints)?
                }
            };
            let sent = self
                .sent
                .recv_timeout(LIMIT)
                .context("the API server doesn't answer a patch")??;
            let event = self.event(&changing.address(index, version))?;
            times.to_event.0.push(milliseconds(sent, event));
            times.event_to_answer.0.push(milliseconds(event, answered));
            times.to_answer.0.push(milliseconds(sent, answered));
        }
        Ok(times)
    }

    /// When the event came that tells of this address.
    fn event(&mut self, address: &Ipv6Addr) -> Result<Instant> {
        let text = format!("\"{address}\"");
        let deadline = Instant::now() + LIMIT;
        loop {
            let patience = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(patience);
            let event = event
                .with_context(|| format!("the benchmark's watch has not told of {address}"))??;
            if contains(&event.line, text.as_bytes()) {
                return Ok(event.at);
            }
        }
    }
}

/// From the one to the other, which may have come first.
fn milliseconds(from: Instant, to: Instant) -> f64 {
    let later = to.saturating_duration_since(from).as_secs_f64();
    let earlier = from.saturating_duration_since(to).as_secs_f64();
    (later - earlier) * 1e3
}

/// Asks for an endpoint's name until the answer is this address.
fn see_endpoint(socket: &UdpSocket, query: &[u8], address: Ipv6Addr) -> Result<Instant> {
    let began = Instant::now();
    loop {
        let reply = server::exchange(socket, query)?;
        let now = Instant::now();
        ensure_answer(&reply, 1)?;
        if contains(&reply, &address.octets()) {
            return Ok(now);
        }
        ensure!(
            began.elapsed() < LIMIT,
            "no answer has {address} within {LIMIT:?}"
        );
        thread::sleep(BETWEEN);
    }
}

/// Asks for a service's name until an answer has an address of this change.
fn see_service(socket: &UdpSocket, query: &[u8], version: u32, endpoints: u32) -> Result<Instant> {
    let [a, b] = MARK.to_be_bytes();
    let [c, d, e, f] = version.to_be_bytes();
    let began = Instant::now();
    let mut reply = [0; 1232];
    loop {
        for _ in 0..BURST {
            socket.send(query)?;
        }
        let mut seen = None;
        for _ in 0..BURST {
            let length = socket.recv(&mut reply).context("a reply is missing")?;
            let now = Instant::now();
            ensure_answer(&reply[..length], endpoints.min(8) as u16)?;
            if seen.is_none() && contains(&reply[..length], &[a, b, c, d, e, f]) {
                seen = Some(now);
            }
        }
        if let Some(seen) = seen {
            return Ok(seen);
        }
        ensure!(
            began.elapsed() < LIMIT,
            "no answer shows change {version} within {LIMIT:?}"
        );
        thread::sleep(BETWEEN);
    }
}

/// Makes sure that a reply is an answer with so many records.
fn ensure_answer(reply: &[u8], records: u16) -> Result<()> {
    // RFC 1035, section 4.1.1: the lower half of the fourth byte is RCODE, bytes 6 and 7 are ANCOUNT.
    let answers = reply.get(6..8).map(|count| [count[0], count[1]]);
    let answers = answers.map(u16::from_be_bytes);
    ensure!(
        reply.len() > 8 && reply[3] & 15 == 0 && answers == Some(records),
        "meanwhile an answer was {:?}",
        server::addresses(reply)
    );
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Runs a task with a client of its own on this thread.
fn on_runtime(kubeconfig: Kubeconfig, task: impl AsyncFnOnce(Client) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        task(Client::try_from(config)?).await
    })
}

/// Sends each line of a watch on, with the moment at which it was whole.
async fn watch(client: Client, begun: &Sender<()>, events: &Sender<Result<Event>>) -> Result<()> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=true&timeoutSeconds=86400"
    );
    let mut answer = client.send(Request::get(path).body(Body::empty())?).await?;
    ensure!(
        answer.status().is_success(),
        "the API server said {}",
        answer.status()
    );
    begun.send(())?;
    let mut line = Vec::new();
    while let Some(frame) = answer.body_mut().frame().await {
        let at = Instant::now();
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let mut rest = &data[..];
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            line.extend_from_slice(&rest[..end]);
            let line = std::mem::take(&mut line);
            if events.send(Ok(Event { at, line })).is_err() {
                return Ok(());
            }
            rest = &rest[end + 1..];
        }
        line.extend_from_slice(rest);
    }
    bail!("the API server has ended it")
}

/// Sends a patch, and says when it did.
async fn apply(client: &Client, change: Change) -> Result<Instant> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/{}",
        change.slice
    );
    let request = Request::patch(path)
        .header(CONTENT_TYPE, "application/json-patch+json")
        .body(change.patch)?;
    let sent = Instant::now();
    client.request_text(request).await?;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_slice_is_spread_over_the_service() {
        let changing = Changing { endpoints: 10_000 };
        let all: BTreeSet<_> = (0..10_000)
            .map(|index| changing.address(index, 0))
            .collect();
        assert_eq!(all.len(), 10_000);
        let of_slice: BTreeSet<_> = (0..SLICE).map(|index| changing.address(index, 0)).collect();
        let positions: Vec<_> = all
            .iter()
            .enumerate()
            .filter(|(_, address)| of_slice.contains(address))
            .map(|(position, _)| position)
            .collect();
        assert!(
            positions.windows(2).all(|pair| pair[1] - pair[0] == 100),
            "{positions:?}"
        );
    }

    #[test]
    fn changes_may_be_seen_before_they_are_told() {
        let now = Instant::now();
        let later = now + Duration::from_micros(1500);
        assert_eq!(milliseconds(now, later), 1.5);
        assert_eq!(milliseconds(later, now), -1.5);
    }
}
