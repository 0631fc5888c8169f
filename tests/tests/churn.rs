//! EndpointSlices of one service change as fast as the API server takes it, while clients ask for both families over both:
//! every answer is the set before or after some single change.
//!
//! Each write to the API is recorded before it is sent, with the set that the service has from then on. What a client is told
//! has to be one of these sets, whole, and none that is older than what it was told before.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fastrand::Rng;
use hickory_proto::{op::ResponseCode, rr::RecordType};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client, api::PostParams};
use peak_tests::{
    Component, ControlPlane, Net, PassProgram, Peak, Reach, connect, eventually, exchange, pass,
    query,
};
use serde_json::{from_value, json};
use tokio::task::JoinSet;

const NAMESPACE: &str = "churn";
const NAME: &str = "web.churn.svc.cluster.local";
/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);
/// How long each kind of trouble lasts.
const PHASE: Duration = Duration::from_secs(2);
/// Most endpoints of a family: their records have room on a veth device.
const MOST: usize = 6;
/// Sets that must be seen, of each family, while nothing else is wrong. Hundreds change a second on a machine of its own.
const LEAST_SETS: usize = 30;

/// The sets that a family has had.
#[derive(Debug, Default)]
struct History {
    count: usize,
    /// When, in numbers of writes, the service had a set.
    versions: HashMap<BTreeSet<IpAddr>, Vec<usize>>,
    last: BTreeSet<IpAddr>,
}

impl History {
    fn record(&mut self, set: BTreeSet<IpAddr>) {
        self.versions
            .entry(set.clone())
            .or_default()
            .push(self.count);
        self.count += 1;
        self.last = set;
    }

    /// The first version from `floor` on that was this set.
    fn find(&self, set: &BTreeSet<IpAddr>, floor: usize) -> Option<usize> {
        let versions = self.versions.get(set)?;
        let at = versions.partition_point(|&version| version < floor);
        versions.get(at).copied()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A family's slices, and the sets that they came to.
struct Writer {
    slices: Api<EndpointSlice>,
    ipv6: bool,
    /// The endpoints of either slice, by number.
    held: [BTreeSet<u16>; 2],
    /// The number of the next endpoint: none comes twice.
    next: u16,
    history: Arc<Mutex<History>>,
    rng: Rng,
}

impl Writer {
    fn new(client: Client, ipv6: bool) -> Self {
        Self {
            slices: Api::namespaced(client, NAMESPACE),
            ipv6,
            held: Default::default(),
            next: 1,
            history: Arc::default(),
            rng: Rng::new(),
        }
    }

    fn address(&self, number: u16) -> IpAddr {
        match self.ipv6 {
            true => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number).into(),
            false => Ipv4Addr::from_bits(0x0af4_0000 | u32::from(number)).into(),
        }
    }

    fn fresh(&mut self, count: usize) -> BTreeSet<u16> {
        let first = self.next;
        self.next += count as u16;
        (first..self.next).collect()
    }

    /// One slice: its name, and all of it.
    fn object(&self, slice: usize) -> (String, EndpointSlice) {
        let family = if self.ipv6 { "IPv6" } else { "IPv4" };
        let name = format!("web-{}-{slice}", family.to_lowercase());
        let endpoints: Vec<_> = self.held[slice]
            .iter()
            .map(|&one| json!({"addresses": [self.address(one)]}))
            .collect();
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family, "endpoints": endpoints, "ports": [],
        });
        (name, from_value(object).expect("a slice"))
    }

    /// Writes one slice, for as long as it takes. It says all that the slice holds, so that to say it twice does no harm.
    async fn put(&mut self, slice: usize, endpoints: BTreeSet<u16>) {
        self.held[slice] = endpoints;
        let union = self.held.iter().flatten().map(|&one| self.address(one));
        lock(&self.history).record(union.collect());
        let (name, object) = self.object(slice);
        let parameters = PostParams::default();
        while let Err(error) = self.slices.replace(&name, &parameters, &object).await {
            // It is away, or not whole yet. What it refuses for good, it refuses for ever.
            assert!(
                !matches!(&error, kube::Error::Api(status) if status.code == 400 || status.code == 422),
                "{error}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Some change that a controller might make.
    async fn change(&mut self) {
        let count = self.held.iter().map(BTreeSet::len).sum::<usize>();
        let slice = self.rng.usize(..2);
        let other = 1 - slice;
        let mut held = self.held[slice].clone();
        match self.rng.u8(..4) {
            // Scaled up,
            0 if count < MOST => {
                held.extend(self.fresh(1));
                self.put(slice, held).await;
            }
            // and down.
            1 if count > 1 && !held.is_empty() => {
                held.pop_first();
                self.put(slice, held).await;
            }
            // Every pod is another one now: slice by slice.
            2 => {
                for slice in [slice, other] {
                    let fresh = self.fresh(self.held[slice].len());
                    self.put(slice, fresh).await;
                }
            }
            // Endpoints move: they are in both slices meanwhile.
            _ if !held.is_empty() => {
                let moved: BTreeSet<_> = (0..self.rng.usize(1..=held.len()))
                    .filter_map(|_| held.pop_last())
                    .collect();
                let both = self.held[other].union(&moved).copied().collect();
                self.put(other, both).await;
                self.put(slice, held).await;
            }
            _ => {}
        }
    }

    async fn run(mut self, end: Arc<AtomicBool>) {
        while !end.load(Relaxed) {
            self.change().await;
        }
    }
}

/// What a reader has seen.
#[derive(Debug, Default)]
struct Seen {
    asked: u64,
    /// Sets of either family.
    sets: [usize; 2],
}

/// Asks until the end: both types, over both families.
fn read(
    sockets: &[UdpSocket; 2],
    histories: &[Arc<Mutex<History>>; 2],
    end: &AtomicBool,
) -> Result<Seen> {
    let mut seen = Seen::default();
    // The version that was told last: no later answer may be older.
    let mut floors = [None; 2];
    let types = [RecordType::AAAA, RecordType::A];
    let mut queries = [query(NAME, types[0], false)?, query(NAME, types[1], false)?];
    while !end.load(Relaxed) {
        // The API server, too, needs a processor.
        thread::sleep(Duration::from_micros(100));
        for socket in sockets {
            for (family, query) in queries.iter_mut().enumerate() {
                query.metadata.id = seen.asked as u16;
                let reply = exchange(socket, query)?;
                seen.asked += 1;
                assert_eq!(
                    reply.metadata.response_code,
                    ResponseCode::NoError,
                    "{reply}"
                );
                let given: BTreeSet<_> = reply
                    .answers
                    .iter()
                    .filter_map(|one| one.data.ip_addr())
                    .collect();
                assert_eq!(
                    given.len(),
                    reply.answers.len(),
                    "something comes twice: {reply}"
                );
                let history = lock(&histories[family]);
                let floor = floors[family].unwrap_or_default();
                let Some(version) = history.find(&given, floor) else {
                    panic!(
                        "{} {given:?} after version {floor} of {}: {:?}",
                        types[family],
                        history.count,
                        history.versions.get(&given)
                    );
                };
                if floors[family] != Some(version) {
                    floors[family] = Some(version);
                    seen.sets[family] += 1;
                }
            }
        }
    }
    Ok(seen)
}

/// An agent, and a client of it.
struct Node {
    peak: Peak,
    sockets: [UdpSocket; 2],
    /// Who answers: all of it.
    kernel: bool,
    reach: Option<Reach>,
    net: Net,
    _pass: PassProgram,
}

impl Node {
    fn start(plane: &ControlPlane, xdp: &str) -> Result<Self> {
        let net = Net::new()?;
        let pass = pass(&net.client, "eth0")?;
        let reach = plane.reach_from(&net.node)?;
        let peak = Peak::of_cluster(&net.node, plane, &["--xdp", xdp])?;
        let [six, four] = Net::SERVERS.map(|server| {
            let server = SocketAddr::new(server.parse().expect("an address"), 53);
            net.client.run(|| connect(server))
        });
        Ok(Self {
            peak,
            sockets: [six?, four?],
            kernel: xdp != "off",
            reach: Some(reach),
            net,
            _pass: pass,
        })
    }
}

/// Lists of slices that an agent has had.
fn lists(peak: &Peak) -> Result<u64> {
    let watches = peak.status()?.source.watches;
    let slices = watches
        .iter()
        .find(|watch| watch.resource.starts_with("endpointslices"));
    Ok(slices.context("a watch")?.lists)
}

/// What clients see of all nodes while `meanwhile` goes on.
fn watched(
    what: &str,
    nodes: &mut [Node; 2],
    histories: &[Arc<Mutex<History>>; 2],
    meanwhile: impl FnOnce(&mut [(&Peak, &Net, &mut Option<Reach>); 2]) -> Result<()>,
) -> Result<[Seen; 2]> {
    let counted = |nodes: &[Node; 2]| -> Result<_> {
        let [one, two] = nodes
            .each_ref()
            .map(|node| anyhow::Ok(node.peak.status()?.counted()));
        Ok([one?, two?])
    };
    let written = || {
        histories
            .iter()
            .map(|history| lock(history).count)
            .sum::<usize>()
    };
    let before = counted(nodes)?;
    let (began, first) = (Instant::now(), written());
    let end = AtomicBool::new(false);
    let (seen, outcome) = thread::scope(|scope| {
        let parts = nodes.each_mut().map(|node| {
            let sockets = &node.sockets;
            let reader = scope.spawn(|| read(sockets, histories, &end));
            (reader, (&node.peak, &node.net, &mut node.reach))
        });
        let [(one, one_parts), (two, two_parts)] = parts;
        let outcome = meanwhile(&mut [one_parts, two_parts]);
        end.store(true, Relaxed);
        (
            [one, two].map(|reader| reader.join().expect("a wrong answer")),
            outcome,
        )
    });
    outcome?;
    let [one, two] = seen;
    let seen = [one?, two?];
    let writes = written() - first;
    let rate = writes as f64 / began.elapsed().as_secs_f64();
    println!(
        "{what}: {writes} writes, {rate:.0} a second; by the kernel {:?}, by the fallback {:?}",
        seen[0], seen[1]
    );
    for ((node, seen), (before, after)) in nodes
        .iter()
        .zip(&seen)
        .zip(before.into_iter().zip(counted(nodes)?))
    {
        let counted = after - before;
        let expected = if node.kernel {
            (seen.asked, 0)
        } else {
            (0, seen.asked)
        };
        assert_eq!((counted.kernel, counted.fallback), expected, "{what}");
        // Without the API server nothing changes; with it at hand again, more.
        assert!(seen.sets.iter().all(|&sets| sets > 1), "{what}: {seen:?}");
    }
    Ok(seen)
}

#[test]
fn every_answer_is_the_set_before_or_after_some_change() -> Result<()> {
    let mut plane = ControlPlane::start("churn")?;
    plane.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {NAMESPACE}, name: web}}\n\
         spec: {{clusterIP: None, ipFamilyPolicy: RequireDualStack, ports: [{{port: 80}}]}}\n"
    ))?;
    let mut writers = [true, false].map(|ipv6| Writer::new(plane.client(), ipv6));
    for writer in &mut writers {
        for slice in 0..2 {
            plane.apply(&serde_json::to_string(&writer.object(slice).1)?)?;
        }
        let first = writer.fresh(3);
        plane.run(writer.put(0, first));
    }
    let histories = writers.each_ref().map(|writer| Arc::clone(&writer.history));
    let mut nodes = [Node::start(&plane, "native")?, Node::start(&plane, "off")?];
    let end = Arc::new(AtomicBool::new(false));
    let mut writing = JoinSet::new();
    plane.run(async {
        for writer in writers {
            writing.spawn(writer.run(Arc::clone(&end)));
        }
    });

    let seen = watched("all is well", &mut nodes, &histories, |_| {
        thread::sleep(2 * PHASE);
        Ok(())
    })?;
    let enough = seen
        .iter()
        .flat_map(|seen| seen.sets)
        .all(|sets| sets >= LEAST_SETS);
    assert!(enough, "{seen:?}");

    watched("connections end", &mut nodes, &histories, |parts| {
        for _ in 0..6 {
            for (_, _, reach) in &mut *parts {
                reach.as_ref().expect("it is there").hang_up();
            }
            thread::sleep(PHASE / 4);
        }
        Ok(())
    })?;

    for node in &nodes {
        assert_eq!(
            lists(&node.peak)?,
            1,
            "an ended watch goes on from where it was"
        );
    }
    watched(
        "the API server is killed",
        &mut nodes,
        &histories,
        |parts| {
            // What is written once the agents are cut off is more than they know, and no event that the new server has at hand:
            // they have to list.
            for (_, _, reach) in &mut *parts {
                reach.take();
            }
            thread::sleep(PHASE / 4);
            plane.kill(Component::ApiServer);
            thread::sleep(PHASE / 4);
            plane.restart(Component::ApiServer)?;
            for (_, net, reach) in &mut *parts {
                reach.replace(plane.reach_from(&net.node)?);
            }
            for (peak, _, _) in &mut *parts {
                eventually("the agent to have listed anew", LIMIT, || {
                    Ok((lists(peak)? > 1).then_some(()))
                })?;
            }
            thread::sleep(PHASE / 2);
            Ok(())
        },
    )?;

    // In the end it is what the API server has.
    end.store(true, Relaxed);
    plane.run(writing.join_all());
    for node in &nodes {
        for (family, qtype) in [RecordType::AAAA, RecordType::A].into_iter().enumerate() {
            eventually("the last set", LIMIT, || {
                let reply = exchange(&node.sockets[family], &query(NAME, qtype, false)?)?;
                let given = reply.answers.iter().filter_map(|one| one.data.ip_addr());
                Ok((given.collect::<BTreeSet<_>>() == lock(&histories[family]).last).then_some(()))
            })?;
        }
    }
    Ok(())
}
