//! All that Peak answers at one moment: an immutable snapshot of every zone.
//!
//! A snapshot holds the services' records in a persistent map and derives every name from it, so that a change of one
//! service costs the logarithm of their number and that service, and a look-up walks the labels of the name.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use equivalent::{Comparable, Equivalent};
use imbl::{HashMap, OrdMap};
use ipnet::IpNet;

use crate::{
    endpoints::Endpoints,
    name::{Folded, Name, NameError, labels, offset_of},
    objects::{generated_label, is_label},
    pods::{self, PodKey, PodMode, Running},
    reverse::{self, Holder, Publishers},
};

/// What a service is called. Both parts are labels in lower case, as Kubernetes wants them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's namespace; first, so that a namespace's services stand together.
    pub namespace: Box<str>,
    /// The service's own name.
    pub name: Box<str>,
}

impl ServiceKey {
    /// The key of `namespace`/`name`.
    pub fn new(namespace: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Hash for ServiceKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (namespace, name) = (self.namespace.as_bytes(), self.name.as_bytes());
        KeyRef { namespace, name }.hash(state);
    }
}

/// A [`ServiceKey`] borrowed from a query. `str` and its bytes have the same order.
#[derive(PartialEq, Eq, Hash)]
struct KeyRef<'a> {
    namespace: &'a [u8],
    name: &'a [u8],
}

impl Equivalent<Arc<ServiceKey>> for KeyRef<'_> {
    fn equivalent(&self, key: &Arc<ServiceKey>) -> bool {
        self.name == key.name.as_bytes() && self.namespace == key.namespace.as_bytes()
    }
}

impl Comparable<Arc<ServiceKey>> for KeyRef<'_> {
    fn compare(&self, key: &Arc<ServiceKey>) -> Ordering {
        (self.namespace, self.name).cmp(&(key.namespace.as_bytes(), key.name.as_bytes()))
    }
}

/// All services. Cloning is cheap: copies share what did not change.
#[derive(Clone, Debug, Default)]
struct Directory {
    /// By namespace, for what concerns all of one.
    ordered: OrdMap<Arc<ServiceKey>, Arc<ServiceRecords>>,
    /// The same for look-ups. To search the order among 131,072 names reads some forty places that are not in the
    /// processor's cache, this reads ten.
    by_hash: HashMap<Arc<ServiceKey>, Arc<ServiceRecords>>,
}

impl Directory {
    fn get(&self, namespace: &[u8], name: &[u8]) -> Option<(&ServiceKey, &ServiceRecords)> {
        let found = self.by_hash.get_key_value(&KeyRef { namespace, name });
        found.map(|(key, records)| (&**key, &**records))
    }

    fn records(&self, key: &Arc<ServiceKey>) -> Option<&ServiceRecords> {
        self.by_hash.get(key).map(Arc::as_ref)
    }

    fn set(&mut self, key: &Arc<ServiceKey>, records: Option<ServiceRecords>) {
        match records.map(Arc::new) {
            Some(records) => {
                self.by_hash.insert(Arc::clone(key), Arc::clone(&records));
                self.ordered.insert(Arc::clone(key), records);
            }
            None => {
                self.by_hash.remove(key);
                self.ordered.remove(key);
            }
        }
    }

    fn has_namespace(&self, namespace: &[u8]) -> bool {
        let name = &b""[..];
        let first = self.ordered.get_next(&KeyRef { namespace, name });
        first.is_some_and(|(key, _)| key.namespace.as_bytes() == namespace)
    }

    /// By namespace, then by name.
    fn iter(&self) -> impl Iterator<Item = (&ServiceKey, &ServiceRecords)> {
        let all = self.ordered.iter();
        all.map(|(key, records)| (&**key, &**records))
    }
}

/// The addresses of one name: sorted, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    /// What an A query is answered with.
    pub v4: Arc<[Ipv4Addr]>,
    /// What an AAAA query is answered with.
    pub v6: Arc<[Ipv6Addr]>,
}

impl AddressSet {
    /// How many addresses of both families it holds.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether it holds no address of either family.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.binary_search(&address).is_ok(),
            IpAddr::V6(address) => self.v6.binary_search(&address).is_ok(),
        }
    }

    /// The set without the addresses that were lost, which it holds, and with those that were won, which it does not hold.
    /// Both are sorted.
    pub(crate) fn with(&self, lost: &[IpAddr], won: &[IpAddr]) -> Self {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        let v6 = |address: &IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        };
        Self {
            v4: exchanged(
                &self.v4,
                lost.iter().filter_map(v4),
                won.iter().filter_map(v4),
            ),
            v6: exchanged(
                &self.v6,
                lost.iter().filter_map(v6),
                won.iter().filter_map(v6),
            ),
        }
    }

    /// The addresses of both families.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6.iter().copied().map(IpAddr::V6))
    }
}

impl FromIterator<IpAddr> for AddressSet {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => v4.push(address),
                IpAddr::V6(address) => v6.push(address),
            }
        }
        Self {
            v4: sorted(v4),
            v6: sorted(v6),
        }
    }
}

/// A sorted list without some of its members and with others, both sorted.
fn exchanged<T: Copy + Ord>(
    all: &Arc<[T]>,
    lost: impl Iterator<Item = T>,
    won: impl Iterator<Item = T>,
) -> Arc<[T]> {
    let (mut lost, mut won) = (lost.peekable(), won.peekable());
    if lost.peek().is_none() && won.peek().is_none() {
        return Arc::clone(all);
    }
    let mut new = Vec::with_capacity(all.len() + 1);
    for &one in &**all {
        while let Some(before) = won.next_if(|other| *other < one) {
            new.push(before);
        }
        if lost.next_if_eq(&one).is_none() {
            new.push(one);
        }
    }
    new.extend(won);
    new.into()
}

fn sorted<T: Ord>(mut addresses: Vec<T>) -> Arc<[T]> {
    if addresses.is_empty() {
        return Arc::default();
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP, which a port has that names none.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The label of the protocol (RFC 2782): with an underscore, so that it is nobody's host name.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Tcp => b"_tcp",
            Self::Udp => b"_udp",
            Self::Sctp => b"_sctp",
        }
    }

    fn of_label(label: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|protocol| protocol.label() == label)
    }
}

/// A port that SRV records tell of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its name, in lower case and without an underscore; empty if it has none.
    pub name: Box<str>,
    /// Its number.
    pub number: u16,
}

/// What one service publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRecords {
    /// The service name's own: its ClusterIPs, or all endpoints of a headless service.
    pub addresses: AddressSet,
    /// The names below the service's.
    pub endpoints: Endpoints,
    /// The ports of its SRV records, sorted, each once: the service's own, or those of a headless one's endpoints.
    pub ports: Arc<[Port]>,
    /// Whether its addresses are its endpoints'.
    pub headless: bool,
    /// What an ExternalName stands for. Such a service publishes nothing else.
    pub alias: Option<Name>,
    /// How many addresses an answer draws; 0: all of them.
    pub pick: u8,
}

impl ServiceRecords {
    /// What the service's own name holds. RFC 8020: a name exists as long as one below it does.
    fn node(&self) -> Option<Node<'_>> {
        let exists =
            !self.addresses.is_empty() || !self.endpoints.is_empty() || self.alias.is_some();
        exists.then(|| Node {
            alias: self.alias.as_ref().map(Cow::Borrowed),
            ..self.holding(&self.addresses)
        })
    }

    fn holding<'a>(&self, addresses: &'a AddressSet) -> Node<'a> {
        Node {
            pick: self.pick,
            ..Node::holding(Cow::Borrowed(addresses))
        }
    }

    /// The ports that SRV tells of at `_<port>._<proto>` below the service.
    fn named(&self, port: &[u8], protocol: &[u8]) -> Option<PortFilter<'_>> {
        let protocol = Protocol::of_label(protocol)?;
        let name = port.strip_prefix(b"_")?;
        let port = self.ports.iter().find(|port| {
            port.protocol == protocol && !name.is_empty() && port.name.as_bytes() == name
        })?;
        Some(PortFilter::Named(protocol, &port.name))
    }

    /// The names that ports make below the service's: `_<port>._<proto>`, and `_<proto>` above it.
    fn port_names(&self) -> BTreeSet<(Protocol, &str)> {
        let named = self.ports.iter().filter(|port| !port.name.is_empty());
        named
            .flat_map(|port| [(port.protocol, ""), (port.protocol, &*port.name)])
            .collect()
    }
}

/// Calls `take` with the labels of a port's name below its service's.
fn with_port_path<T>(
    (protocol, name): (Protocol, &str),
    service: [&[u8]; 3],
    take: impl FnOnce(&[&[u8]]) -> T,
) -> T {
    let [a, b, c] = service;
    let protocol = protocol.label();
    match name {
        "" => take(&[protocol, a, b, c]),
        name => take(&[format!("_{name}").as_bytes(), protocol, a, b, c]),
    }
}

/// Which of a service's ports are meant.
#[derive(Clone, Copy)]
enum PortFilter<'a> {
    All,
    Named(Protocol, &'a str),
}

impl PortFilter<'_> {
    fn admits(self, port: &Port) -> bool {
        match self {
            Self::All => true,
            Self::Named(protocol, name) => port.protocol == protocol && *port.name == *name,
        }
    }
}

/// More SRV records than any reply has room for: one takes 20 bytes and its target, a name of 19 at least.
const MOST_SERVICES: usize = 4096;

/// What SRV tells of a service (RFC 2782). The priority is always 0.
#[derive(Debug)]
pub struct Services<'a> {
    /// The weight of each record: an equal share of 100, but at least 1, as CoreDNS has it.
    pub weight: u16,
    zone: &'a Zone,
    key: &'a ServiceKey,
    members: Vec<Member<'a>>,
}

/// One record: an endpoint, or the service itself, and a port.
#[derive(Clone, Copy, Debug)]
struct Member<'a> {
    label: Option<&'a str>,
    addresses: &'a AddressSet,
    port: u16,
}

impl<'a> Services<'a> {
    fn new(
        zone: &'a Zone,
        key: &'a ServiceKey,
        places: impl Iterator<Item = (Option<&'a str>, &'a AddressSet, &'a [Port])>,
        filter: PortFilter<'_>,
    ) -> Self {
        let (mut members, mut shares) = (Vec::new(), 0);
        let (mut last, mut admitted, mut numbers) = (&[][..], 0, Vec::new());
        for (label, addresses, ports) in places {
            // Endpoints of one slice share theirs.
            if !std::ptr::eq(last, ports) {
                last = ports;
                numbers.clear();
                let all = ports.iter().filter(|port| filter.admits(port));
                numbers.extend(all.map(|port| port.number));
                admitted = numbers.len();
                // One record for a number, whatever it is called.
                numbers.sort_unstable();
                numbers.dedup();
            }
            shares += addresses.len() * admitted;
            let room = MOST_SERVICES - members.len();
            let numbers = numbers.iter().take(room);
            members.extend(numbers.map(|&port| Member {
                label,
                addresses,
                port,
            }));
        }
        let weight = (100 / shares.max(1)).max(1) as u16;
        Self {
            weight,
            zone,
            key,
            members,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Port, target and the target's addresses of each record. Records of one target follow one another.
    pub fn iter(&self) -> impl Iterator<Item = (u16, Name, &'a AddressSet)> + '_ {
        let ServiceKey { namespace, name } = self.key;
        let service = [name.as_bytes(), namespace.as_bytes(), SVC];
        self.members.iter().filter_map(move |member| {
            let label = member.label.map(str::as_bytes);
            let path: Vec<_> = label.into_iter().chain(service).collect();
            // A target that is no name is not published either.
            let target = self.zone.name.descendant(&path).ok()?;
            Some((member.port, target, member.addresses))
        })
    }
}

/// One zone that is answered with authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// The zone's apex.
    pub name: Name,
    /// The primary name server, and who is responsible: what its SOA says.
    mname: Name,
    rname: Name,
}

impl Zone {
    /// A zone whose name server is in `home`. Where that is so long that `ns.dns` or `hostmaster` doesn't fit below it, it
    /// stands for itself.
    pub(crate) fn new(name: Name, home: &Name) -> Self {
        let below = |labels: &[&[u8]]| home.descendant(labels).unwrap_or_else(|_| home.clone());
        Self {
            mname: below(&[NS, DNS]),
            rname: below(&[b"hostmaster"]),
            name,
        }
    }
}

/// What changed since the batch before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The services that changed, each with all it publishes now, or `None` if it is gone.
    pub services: Vec<(ServiceKey, Option<ServiceRecords>)>,
    /// The addresses that pods have now, or no longer.
    pub pods: Vec<(PodKey, bool)>,
}

impl Batch {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.pods.is_empty()
    }
}

impl From<Vec<(ServiceKey, Option<ServiceRecords>)>> for Batch {
    fn from(services: Vec<(ServiceKey, Option<ServiceRecords>)>) -> Self {
        Self {
            services,
            ..Self::default()
        }
    }
}

/// What stays the same from snapshot to snapshot.
#[derive(Clone, Debug, Default)]
pub struct SnapshotConfig {
    /// The zones, each with the same services. Of zones within one another the longest that fits a name answers.
    pub zones: Vec<Name>,
    /// The TTL of every record and of negative answers, in seconds.
    pub ttl: u32,
    /// The addresses of `ns.dns.<zone>`.
    pub nameservers: Vec<IpAddr>,
    /// The ranges of which every reverse name is answered with authority.
    pub reverse: Vec<IpNet>,
    /// What is answered about pods.
    pub pods: PodMode,
}

/// What one name holds. A default node is an empty non-terminal: the name exists, and every type is NODATA.
/// What SRV tells is not in it: see [`Snapshot::services`].
///
/// It borrows from the snapshot what it can: to count the references to what many processors answer with at once would
/// keep them waiting for one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Its A and AAAA records.
    pub addresses: Cow<'a, AddressSet>,
    /// How many addresses an answer draws; 0: all of them.
    pub pick: u8,
    /// Whether it is a zone's apex, with SOA and NS.
    pub apex: bool,
    /// The name that it is an alias of (CNAME). Nothing else stands beside one (RFC 1034, section 3.6.2).
    pub alias: Option<Cow<'a, Name>>,
    /// What its address is called (PTR).
    pub pointers: Vec<Name>,
    /// What TXT says.
    pub text: Option<&'static str>,
    /// Whether there are names below it that no list holds.
    pub open: bool,
}

impl Default for Node<'_> {
    fn default() -> Self {
        static NONE: LazyLock<AddressSet> = LazyLock::new(AddressSet::default);
        Self::holding(Cow::Borrowed(&NONE))
    }
}

impl<'a> Node<'a> {
    fn holding(addresses: Cow<'a, AddressSet>) -> Self {
        Self {
            addresses,
            pick: 0,
            apex: false,
            alias: None,
            pointers: Vec::new(),
            text: None,
            open: false,
        }
    }

    /// The same without the snapshot.
    fn into_owned(self) -> Node<'static> {
        let Self {
            addresses,
            pick,
            apex,
            alias,
            pointers,
            text,
            open,
        } = self;
        Node {
            addresses: Cow::Owned(addresses.into_owned()),
            alias: alias.map(|alias| Cow::Owned(alias.into_owned())),
            pick,
            apex,
            pointers,
            text,
            open,
        }
    }

    /// How many resource records the name owns, the apex' SOA and NS included, SRV left out.
    pub fn record_count(&self) -> usize {
        self.addresses.len()
            + if self.apex { 2 } else { 0 }
            + usize::from(self.alias.is_some())
            + usize::from(self.text.is_some())
            + self.pointers.len()
    }

    /// Whether only the fallback can answer for addresses: they are those of another name.
    pub fn asks_fallback(&self) -> bool {
        self.alias.is_some()
    }
}

/// One name's difference between a snapshot and the one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The name now holds exactly this, whatever it held before.
    Set {
        /// The zone's place in [`Snapshot::zones`].
        zone: usize,
        /// The name.
        name: Name,
        /// What it holds.
        node: Node<'static>,
    },
    /// The name no longer exists.
    Remove {
        /// The zone's place in [`Snapshot::zones`].
        zone: usize,
        /// The name.
        name: Name,
    },
}

/// What a snapshot says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// No zone of ours holds the name (nor could any, if it isn't a name at all).
    OutsideZones,
    /// No zone of ours holds the name, but it is that of an address which is published; before the first complete set of
    /// objects, that of any address.
    Outlying {
        /// The zone that its pointers lead into.
        zone: &'a Zone,
        /// What it holds: pointers.
        node: Node<'a>,
    },
    /// The name does not exist.
    Absent {
        /// The zone it would be in.
        zone: &'a Zone,
    },
    /// The name exists.
    Present {
        /// The zone it is in.
        zone: &'a Zone,
        /// What it holds.
        node: Node<'a>,
    },
}

/// A name that the objects ask for and DNS cannot hold. It is left out, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no name {path:?} below {zone}: {error}")]
pub struct NameProblem {
    /// What asks for it: `Service shop/web`.
    pub object: String,
    /// The zone it would be in.
    pub zone: Name,
    /// The labels that were to stand below the zone, joined with dots.
    pub path: String,
    /// What is wrong with it.
    pub error: NameError,
}

/// The start of a zone's authority (RFC 1035, section 3.3.13). Times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Soa<'a> {
    /// The primary name server.
    pub mname: &'a Name,
    /// The mailbox of who is responsible.
    pub rname: &'a Name,
    /// The version of the zone.
    pub serial: u32,
    /// After how long a secondary asks again.
    pub refresh: u32,
    /// After how long it retries a failed refresh.
    pub retry: u32,
    /// After how long it stops answering without one.
    pub expire: u32,
    /// The TTL of negative answers (RFC 2308, section 4).
    pub minimum: u32,
}

/// The zones at one moment. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Snapshot {
    fixed: Arc<Fixed>,
    services: Directory,
    publishers: Publishers,
    pods: Running,
    complete: bool,
    generation: u64,
    serial: u32,
    created: SystemTime,
    names: usize,
    records: usize,
    problems: Arc<[NameProblem]>,
}

#[derive(Debug)]
struct Fixed {
    zones: Vec<Zone>,
    reverse: Vec<Zone>,
    ttl: u32,
    nameservers: AddressSet,
    pods: PodMode,
}

/// The most labels that a name has below a zone: `_<port>._<proto>.<service>.<namespace>.svc`.
const DEPTH: usize = 5;

impl Snapshot {
    /// A snapshot from before the first complete set of objects: no name exists yet, and none may be said not to.
    pub fn empty(config: SnapshotConfig) -> Self {
        let reverse: BTreeSet<_> = config
            .reverse
            .into_iter()
            .flat_map(reverse::zones_of)
            .collect();
        // A reverse zone has the name server of the first zone.
        let home = config.zones.first();
        let reverse = reverse.into_iter().map(|name| {
            let home = home.unwrap_or(&name).clone();
            Zone::new(name, &home)
        });
        let reverse = reverse.collect();
        let zones = config.zones.iter();
        let zones = zones.map(|name| Zone::new(name.clone(), name)).collect();
        Self {
            fixed: Arc::new(Fixed {
                zones,
                reverse,
                ttl: config.ttl,
                nameservers: config.nameservers.into_iter().collect(),
                pods: config.pods,
            }),
            services: Directory::default(),
            publishers: Publishers::default(),
            pods: Running::default(),
            complete: false,
            generation: 0,
            serial: 0,
            created: UNIX_EPOCH,
            names: 0,
            records: 0,
            problems: Arc::default(),
        }
    }

    /// The snapshot after a batch, and what that changes name by name. The first call completes an empty snapshot and so
    /// gives every name.
    pub fn with(&self, batch: impl Into<Batch>, now: SystemTime) -> (Snapshot, Vec<Change>) {
        let Batch { services, mut pods } = batch.into();
        let mut next = Self {
            complete: true,
            generation: self.generation + 1,
            serial: self.next_serial(now),
            created: now,
            ..self.clone()
        };
        let mut touched = BTreeSet::new();
        for (key, records) in services {
            let key = Arc::new(key);
            next.services.set(&key, records);
            touched.insert(key);
        }
        for key in &touched {
            let (old, new) = (self.services.records(key), next.services.records(key));
            if old != new {
                next.publishers.replace(key, old, new);
            }
        }
        pods.retain(|(key, runs)| {
            self.fixed.pods == PodMode::Verified && next.pods.set(key, *runs)
        });
        pods.sort_unstable();
        let mut diff = Diff {
            old: self,
            new: &next,
            names: 0,
            records: 0,
            changes: Vec::new(),
            problems: Vec::new(),
        };
        if !self.complete {
            for (zone, name, node) in next.fixed_names() {
                diff.record(zone, name, None, Some(node));
            }
        }
        let mut namespace = "";
        for key in &touched {
            if *key.namespace != *namespace {
                namespace = &key.namespace;
                diff.at(&format_args!("Service {key}"), &[namespace.as_bytes(), SVC]);
            }
            diff.service(key);
        }
        let mut namespace = "";
        for (key, _) in &pods {
            let object = &format_args!("Pod {key}");
            if *key.namespace != *namespace {
                namespace = &key.namespace;
                diff.at(object, &[namespace.as_bytes(), POD]);
            }
            let label = generated_label(key.address);
            diff.at(object, &[label.as_bytes(), namespace.as_bytes(), POD]);
        }
        let Diff {
            names,
            records,
            changes,
            problems,
            ..
        } = diff;
        next.names = next.names.strict_add_signed(names);
        next.records = next.records.strict_add_signed(records);
        next.problems = problems.into();
        (next, changes)
    }

    /// What the zones say of a name in uncompressed wire format and any case.
    pub fn lookup(&self, name: &[u8]) -> Lookup<'_> {
        let Ok(name) = Folded::new(name) else {
            return Lookup::OutsideZones;
        };
        let name = name.as_wire();
        let (zone, node) = if let Some((zone, offset)) = self.zone_of(name) {
            (&self.fixed.zones[zone], self.node(name, offset))
        } else if let Some((zone, _)) = closest(&self.fixed.reverse, name) {
            let zone = &self.fixed.reverse[zone];
            (zone, self.reverse_node(name, zone))
        } else {
            let address = reverse::range_of(name).filter(is_one_address);
            let node = address.map(|address| self.pointing(address));
            return match (node, self.fixed.zones.first()) {
                (Some(node), Some(zone)) if !node.pointers.is_empty() || !self.complete => {
                    Lookup::Outlying { zone, node }
                }
                _ => Lookup::OutsideZones,
            };
        };
        match node {
            Some(node) => Lookup::Present { zone, node },
            None => Lookup::Absent { zone },
        }
    }

    /// What SRV tells at a name in wire format and any case; nothing, if it is no service's.
    pub fn services(&self, name: &[u8]) -> Option<Services<'_>> {
        let name = Folded::new(name).ok()?;
        let name = name.as_wire();
        let (zone, offset) = self.zone_of(name)?;
        let path: Vec<_> = labels(&name[..offset]).take(DEPTH + 1).collect();
        let find = |name, namespace| self.services.get(namespace, name);
        let zone = &self.fixed.zones[zone];
        let ((key, records), filter) = match *path {
            [endpoint, name, namespace, SVC] => {
                let (key, records) = find(name, namespace)?;
                let endpoint = records.endpoints.get(endpoint)?;
                let place = (
                    Some(&*endpoint.label),
                    &endpoint.addresses,
                    &*endpoint.ports,
                );
                let services = Services::new(zone, key, [place].into_iter(), PortFilter::All);
                return (!services.is_empty()).then_some(services);
            }
            [name, namespace, SVC] => (find(name, namespace)?, PortFilter::All),
            [port, protocol, name, namespace, SVC] => {
                let found = find(name, namespace)?;
                (found, found.1.named(port, protocol)?)
            }
            _ => return None,
        };
        let services = if records.headless {
            let endpoints = records.endpoints.iter();
            let places = endpoints.map(|one| (Some(&*one.label), &one.addresses, &*one.ports));
            Services::new(zone, key, places, filter)
        } else {
            let place = (None, &records.addresses, &*records.ports);
            Services::new(zone, key, [place].into_iter(), filter)
        };
        (!services.is_empty()).then_some(services)
    }

    /// Every name of every zone, with its zone's place in [`Snapshot::zones`]; each once, in no promised order.
    pub fn names(&self) -> impl Iterator<Item = (usize, Name, Node<'_>)> + '_ {
        let fixed = if self.complete {
            self.fixed_names()
        } else {
            Vec::new()
        };
        fixed
            .into_iter()
            .chain((0..self.fixed.zones.len()).flat_map(|zone| self.service_names(zone)))
            .chain((0..self.fixed.zones.len()).flat_map(|zone| self.pod_names(zone)))
    }

    /// Every address's name in one of [`Self::reverse_zones`], with the pointers that it holds, in the order of addresses.
    pub fn reverse_names(&self, zone: &Zone) -> impl Iterator<Item = (Name, Node<'_>)> + '_ {
        let range = reverse::range_of(zone.name.as_wire());
        let own = self.fixed.reverse.iter().position(|one| one == zone);
        let publishers = range
            .into_iter()
            .flat_map(|range| self.publishers.within(range));
        let mut last = None;
        let addresses = publishers
            .map(|publisher| publisher.address)
            .filter(move |address| last.replace(*address) != Some(*address));
        addresses.filter_map(move |address| {
            let range = IpNet::from(address);
            let name = reverse::name_of(range);
            let is_own = self.zone_of(name.as_wire()).is_none()
                && closest(&self.fixed.reverse, name.as_wire()).map(|(index, _)| index) == own;
            is_own.then(|| (name, self.pointing(range)))
        })
    }

    /// How many snapshots came before this one since the agent started.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The serial of every zone: the Unix seconds at which the snapshot was made, and never less than the one
    /// before by RFC 1982's arithmetic. A restart goes on from the clock, so nothing needs to be kept.
    pub fn serial(&self) -> u32 {
        self.serial
    }

    /// The TTL of every record, in seconds.
    pub fn ttl(&self) -> u32 {
        self.fixed.ttl
    }

    /// The zones, in the order in which they were configured.
    pub fn zones(&self) -> &[Zone] {
        &self.fixed.zones
    }

    /// The zones of reverse names that are answered with authority, in their names' order.
    pub fn reverse_zones(&self) -> &[Zone] {
        &self.fixed.reverse
    }

    /// Whether a first complete set of objects has come: from then on a name that is absent does not exist.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// When the snapshot was made; the Unix epoch for an empty one.
    pub fn created(&self) -> SystemTime {
        self.created
    }

    /// How many names exist in all zones.
    pub fn name_count(&self) -> usize {
        self.names
    }

    /// How many resource records they hold.
    pub fn record_count(&self) -> usize {
        self.records
    }

    /// The names that had to be left out of what the last [`Snapshot::with`] was given.
    pub fn problems(&self) -> &[NameProblem] {
        &self.problems
    }

    /// The zone's SOA. A reverse zone has the name server of the first zone.
    pub fn soa<'a>(&self, zone: &'a Zone) -> Soa<'a> {
        Soa {
            mname: &zone.mname,
            rname: &zone.rname,
            serial: self.serial,
            refresh: 7200,
            retry: 1800,
            expire: 86400,
            minimum: self.fixed.ttl,
        }
    }

    fn next_serial(&self, now: SystemTime) -> u32 {
        // The lower 32 bits: the serial wraps in 2106, as its arithmetic allows.
        let seconds = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs() as u32;
        // RFC 1982, section 3.2: the greater of two serials is the one that lies less than half the circle ahead.
        let backwards = (seconds.wrapping_sub(self.serial) as i32) < 0;
        if self.complete && backwards {
            self.serial
        } else {
            seconds
        }
    }

    /// The zone that a name in lower case belongs to, and where the zone's own labels begin in it.
    fn zone_of(&self, name: &[u8]) -> Option<(usize, usize)> {
        closest(&self.fixed.zones, name)
    }

    /// What a reverse name in lower case holds, in one of our zones.
    fn reverse_node(&self, name: &[u8], zone: &Zone) -> Option<Node<'_>> {
        if !self.complete {
            return None;
        }
        let apex = name == zone.name.as_wire();
        let range = reverse::range_of(name);
        let node = range.map_or_else(Node::default, |range| self.pointing(range));
        // RFC 8020: what stands above the name of an address exists.
        let exists = apex
            || !node.pointers.is_empty()
            || range.is_some_and(|range| {
                !is_one_address(&range) && self.publishers.within(range).next().is_some()
            });
        exists.then_some(Node { apex, ..node })
    }

    /// The names of an address, which is a range of one; nothing of a larger range. Where an address is a service's
    /// own, it is called after that alone.
    fn pointing(&self, range: IpNet) -> Node<'_> {
        let mut node = Node::default();
        if !is_one_address(&range) {
            return node;
        }
        let Some(zone) = self.fixed.zones.first() else {
            return node;
        };
        for publisher in self.publishers.within(range) {
            let ServiceKey { namespace, name } = &*publisher.service;
            let service = [name.as_bytes(), namespace.as_bytes(), SVC];
            let generated;
            let label = match &publisher.holder {
                Holder::Service => {
                    node.pointers = zone.name.descendant(&service).into_iter().collect();
                    break;
                }
                Holder::Named(hostname) => &**hostname,
                Holder::Unnamed => {
                    generated = generated_label(range.addr());
                    &*generated
                }
            };
            let [a, b, c] = service;
            node.pointers
                .extend(zone.name.descendant(&[label.as_bytes(), a, b, c]));
        }
        node
    }

    /// What a name in lower case holds; its zone begins at `offset`.
    fn node(&self, name: &[u8], offset: usize) -> Option<Node<'_>> {
        let mut path = [&[][..]; DEPTH];
        let mut depth = 0;
        for label in labels(&name[..offset]) {
            if depth < DEPTH {
                path[depth] = label;
            }
            depth += 1;
        }
        let held = path.get(..depth).and_then(|path| self.held(path));
        held.or_else(|| self.is_above_zone(name).then(Node::default))
    }

    /// What stands at some labels below a zone, whatever the zone.
    fn held(&self, path: &[&[u8]]) -> Option<Node<'_>> {
        if !self.complete {
            return None;
        }
        match *path {
            [] => Some(Node {
                apex: true,
                ..Node::default()
            }),
            [SVC] | [DNS] => Some(Node::default()),
            [POD] => Some(Node {
                open: self.fixed.pods == PodMode::Insecure,
                ..Node::default()
            }),
            [VERSION] => Some(Node {
                text: Some(SCHEMA_VERSION),
                ..Node::default()
            }),
            [NS, DNS] => Some(Node::holding(Cow::Borrowed(&self.fixed.nameservers))),
            [namespace, SVC] => self.services.has_namespace(namespace).then(Node::default),
            [namespace, POD] => self.has_pods(namespace).then(Node::default),
            [name, namespace, SVC] => self.services.get(namespace, name)?.1.node(),
            [address, namespace, POD] => self.pod(address, namespace),
            [label, name, namespace, SVC] => {
                let (_, records) = self.services.get(namespace, name)?;
                match Protocol::of_label(label) {
                    Some(protocol) => {
                        let mut ports = records.ports.iter();
                        let is_above =
                            |port: &Port| port.protocol == protocol && !port.name.is_empty();
                        ports.any(is_above).then(Node::default)
                    }
                    None => Some(records.holding(&records.endpoints.get(label)?.addresses)),
                }
            }
            [port, protocol, name, namespace, SVC] => {
                let (_, records) = self.services.get(namespace, name)?;
                records.named(port, protocol).map(|_| Node::default())
            }
            _ => None,
        }
    }

    /// Whether pods of the namespace have names. Who does not know the pods takes any label for a namespace.
    fn has_pods(&self, namespace: &[u8]) -> bool {
        match self.fixed.pods {
            PodMode::Disabled => false,
            PodMode::Insecure => str::from_utf8(namespace).is_ok_and(is_label),
            PodMode::Verified => self.pods.has_namespace(namespace),
        }
    }

    /// The pod of an address, which is spelled with dashes instead of dots or colons.
    fn pod(&self, label: &[u8], namespace: &[u8]) -> Option<Node<'_>> {
        let address = match self.fixed.pods {
            PodMode::Disabled => None,
            PodMode::Insecure if !self.has_pods(namespace) => None,
            PodMode::Insecure => pods::spelled(label),
            PodMode::Verified => {
                pods::named(label).filter(|&address| self.pods.contains(namespace, address))
            }
        };
        let addresses = AddressSet::from_iter([address?]);
        Some(Node::holding(Cow::Owned(addresses)))
    }

    /// Whether a zone begins below a name: then the name exists (RFC 8020), be it in another zone's middle.
    fn is_above_zone(&self, name: &[u8]) -> bool {
        let zones = &self.fixed.zones;
        self.complete
            && zones.len() > 1
            && zones
                .iter()
                .any(|zone| offset_of(zone.name.as_wire(), name) > Some(0))
    }

    /// The names that no service brings: the same from the first complete snapshot on.
    fn fixed_names(&self) -> Vec<(usize, Name, Node<'_>)> {
        let mut names = Vec::new();
        for (index, zone) in self.fixed.zones.iter().enumerate() {
            for path in [&[][..], &[SVC], &[POD], &[VERSION], &[DNS], &[NS, DNS]] {
                if let (Some(node), Ok(name)) = (self.held(path), zone.name.descendant(path))
                    && self.is_own(index, &name)
                {
                    names.push((index, name, node));
                }
            }
        }
        let mut between = BTreeMap::new();
        for zone in &self.fixed.zones {
            let mut name = zone.name.clone();
            while let Some(parent) = name.parent() {
                if let Some((index, offset)) = self.zone_of(parent.as_wire())
                    && offset > 0
                    && !self.is_held(&parent, offset)
                {
                    between.insert(parent.clone(), index);
                }
                name = parent;
            }
        }
        names.extend(
            between
                .into_iter()
                .map(|(name, zone)| (zone, name, Node::default())),
        );
        names
    }

    fn is_held(&self, name: &Name, offset: usize) -> bool {
        let path: Vec<_> = labels(&name.as_wire()[..offset]).collect();
        self.held(&path).is_some()
    }

    /// The names that the services bring into one zone.
    fn service_names(&self, zone: usize) -> impl Iterator<Item = (usize, Name, Node<'_>)> + '_ {
        let mut last_namespace = None;
        let services = self.services.iter().flat_map(move |(key, records)| {
            let namespace = (last_namespace.replace(&key.namespace) != Some(&key.namespace))
                .then(|| (vec![key.namespace.as_bytes(), SVC], Node::default()));
            let service = vec![key.name.as_bytes(), key.namespace.as_bytes(), SVC];
            let endpoints = records.endpoints.iter().map({
                let service = service.clone();
                move |endpoint| {
                    let path = [&[endpoint.label.as_bytes()], &service[..]].concat();
                    (path, records.holding(&endpoint.addresses))
                }
            });
            let service = records.node().map(|node| (service, node));
            namespace.into_iter().chain(service).chain(endpoints)
        });
        let services = services.filter_map(move |(path, node)| {
            let name = descendant(&self.fixed.zones[zone].name, &path).ok()?;
            Some((name, node))
        });
        let ports = self.services.iter().flat_map(move |(key, records)| {
            let service = [key.name.as_bytes(), key.namespace.as_bytes(), SVC];
            let apex = &self.fixed.zones[zone].name;
            let names = records.port_names().into_iter();
            names.filter_map(move |port| {
                let name = with_port_path(port, service, |path| descendant(apex, path)).ok()?;
                Some((name, Node::default()))
            })
        });
        services
            .chain(ports)
            .filter(move |(name, _)| self.is_own(zone, name))
            .map(move |(name, node)| (zone, name, node))
    }

    /// The names that pods bring into one zone.
    fn pod_names(&self, zone: usize) -> impl Iterator<Item = (usize, Name, Node<'_>)> + '_ {
        let mut last_namespace = None;
        let pods = self.pods.iter().flat_map(move |key| {
            let namespace = [key.namespace.as_bytes(), POD];
            let first = last_namespace.replace(&key.namespace) != Some(&key.namespace);
            let label = generated_label(key.address);
            let apex = &self.fixed.zones[zone].name;
            let address = AddressSet::from_iter([key.address]);
            let address = Node::holding(Cow::Owned(address));
            let address = (
                descendant(apex, &[label.as_bytes(), namespace[0], POD]),
                address,
            );
            let namespace = first.then(|| (descendant(apex, &namespace), Node::default()));
            namespace.into_iter().chain([address])
        });
        pods.filter_map(|(name, node)| Some((name.ok()?, node)))
            .filter(move |(name, _)| self.is_own(zone, name))
            .map(move |(name, node)| (zone, name, node))
    }

    /// Whether no longer zone takes a name from this one.
    fn is_own(&self, zone: usize, name: &Name) -> bool {
        self.fixed.zones.len() == 1
            || self
                .zone_of(name.as_wire())
                .is_some_and(|(index, _)| index == zone)
    }
}

/// The version of the specification (`TXT` of `dns-version.<zone>`).
const SCHEMA_VERSION: &str = "1.1.0";

const SVC: &[u8] = b"svc";
const POD: &[u8] = b"pod";
const VERSION: &[u8] = b"dns-version";
const DNS: &[u8] = b"dns";
const NS: &[u8] = b"ns";

fn is_one_address(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

/// The longest of some zones that a name in lower case belongs to, and where its own labels begin in the name.
fn closest(zones: &[Zone], name: &[u8]) -> Option<(usize, usize)> {
    let zones = zones.iter().enumerate();
    zones
        .filter_map(|(index, zone)| Some((index, offset_of(name, zone.name.as_wire())?)))
        .min_by_key(|(_, at)| *at)
}

/// The name of a path that objects asked for. They write their names in lower case; one that doesn't could never be
/// found, because queries are folded.
fn descendant(zone: &Name, path: &[&[u8]]) -> Result<Name, NameError> {
    if path
        .iter()
        .any(|label| label.iter().any(u8::is_ascii_uppercase))
    {
        return Err(NameError::UpperCase);
    }
    zone.descendant(path)
}

/// The walk that finds what differs between two snapshots.
struct Diff<'a> {
    old: &'a Snapshot,
    new: &'a Snapshot,
    names: isize,
    records: isize,
    changes: Vec<Change>,
    problems: Vec<NameProblem>,
}

impl Diff<'_> {
    fn service(&mut self, key: &Arc<ServiceKey>) {
        let nothing = ServiceRecords::default();
        let [old, new] = [self.old, self.new].map(|of| of.services.records(key));
        if old == new {
            return;
        }
        let path = [key.name.as_bytes(), key.namespace.as_bytes(), SVC];
        let object = &format_args!("Service {key}");
        self.at(object, &path);
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        let [a, b, c] = path;
        // Answers of every name draw as many.
        let labels: BTreeSet<_> = if old.pick == new.pick {
            let changed = old.endpoints.differing(&new.endpoints);
            changed
                .filter_map(|(old, new)| old.or(new))
                .map(|one| &*one.label)
                .collect()
        } else {
            let all = old.endpoints.iter().chain(new.endpoints.iter());
            all.map(|one| &*one.label).collect()
        };
        for label in labels {
            self.at(object, &[label.as_bytes(), a, b, c]);
        }
        for &port in old.port_names().symmetric_difference(&new.port_names()) {
            with_port_path(port, path, |path| self.at(object, path));
        }
    }

    /// Compares what stands at one path in every zone.
    fn at(&mut self, object: &dyn fmt::Display, path: &[&[u8]]) {
        let (old, new) = (self.old.held(path), self.new.held(path));
        if old == new {
            return;
        }
        for (index, zone) in self.new.fixed.zones.iter().enumerate() {
            match descendant(&zone.name, path) {
                Ok(name) if self.new.is_own(index, &name) => {
                    let above = |snapshot: &Snapshot| {
                        let above = snapshot.is_above_zone(name.as_wire());
                        above.then(Node::default)
                    };
                    let old = old.clone().or_else(|| above(self.old));
                    let new = new.clone().or_else(|| above(self.new));
                    self.record(index, name, old, new);
                }
                Ok(_) => {}
                Err(error) if new.is_some() => self.problems.push(NameProblem {
                    object: object.to_string(),
                    zone: zone.name.clone(),
                    path: path
                        .iter()
                        .map(|label| String::from_utf8_lossy(label))
                        .collect::<Vec<_>>()
                        .join("."),
                    error,
                }),
                Err(_) => {}
            }
        }
    }

    fn record(&mut self, zone: usize, name: Name, old: Option<Node<'_>>, new: Option<Node<'_>>) {
        if old == new {
            return;
        }
        let size = |node: &Option<Node<'_>>| match node {
            Some(node) => (1, node.record_count() as isize),
            None => (0, 0),
        };
        let ((old_names, old_records), (new_names, new_records)) = (size(&old), size(&new));
        self.names += new_names - old_names;
        self.records += new_records - old_records;
        self.changes.push(match new {
            Some(node) => Change::Set {
                zone,
                name,
                node: node.into_owned(),
            },
            None => Change::Remove { zone, name },
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoints::Endpoint;

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn set(addresses: &[&str]) -> AddressSet {
        addresses
            .iter()
            .map(|address| address.parse::<IpAddr>().unwrap())
            .collect()
    }

    fn empty(zones: &[&str]) -> Snapshot {
        Snapshot::empty(SnapshotConfig {
            zones: zones.iter().map(|zone| name(zone)).collect(),
            ttl: 5,
            nameservers: vec!["fd00::53".parse().unwrap()],
            ..SnapshotConfig::default()
        })
    }

    fn port(protocol: Protocol, name: &str, number: u16) -> Port {
        Port {
            protocol,
            name: name.into(),
            number,
        }
    }

    fn endpoint(label: &str, addresses: &[&str], ports: &[Port]) -> Endpoint {
        Endpoint {
            label: label.into(),
            addresses: set(addresses),
            ports: ports.into(),
        }
    }

    fn records(addresses: &[&str], endpoints: &[(&str, &[&str])]) -> ServiceRecords {
        ServiceRecords {
            addresses: set(addresses),
            endpoints: endpoints
                .iter()
                .map(|(label, addresses)| endpoint(label, addresses, &[]))
                .collect(),
            headless: true,
            ..ServiceRecords::default()
        }
    }

    fn node(addresses: &[&str]) -> Option<Node<'static>> {
        Some(Node::holding(Cow::Owned(set(addresses))))
    }

    /// What the snapshot says of a name: the outer `None` for one outside its zones.
    fn lookup<'a>(snapshot: &'a Snapshot, text: &str) -> Option<Option<Node<'a>>> {
        match snapshot.lookup(name(text).as_wire()) {
            Lookup::Outlying { .. } | Lookup::OutsideZones => None,
            Lookup::Absent { .. } => Some(None),
            Lookup::Present { node, .. } => Some(Some(node)),
        }
    }

    /// The changes as text: `+name` and `-name`, sorted.
    fn summary(changes: &[Change]) -> Vec<String> {
        let mut lines: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Set { name, .. } => format!("+{name}"),
                Change::Remove { name, .. } => format!("-{name}"),
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn an_empty_snapshot_says_nothing() {
        let snapshot = empty(&["cluster.local"]);
        assert!(!snapshot.complete());
        assert_eq!(snapshot.names().count(), 0);
        assert_eq!(lookup(&snapshot, "cluster.local"), Some(None));
        assert_eq!(lookup(&snapshot, "example.com"), None);
        assert_eq!(snapshot.lookup(b"\x07cluster"), Lookup::OutsideZones);
    }

    #[test]
    fn the_first_set_of_objects_gives_every_name() {
        let (snapshot, changes) = empty(&["cluster.local"]).with(Vec::new(), at(START));
        assert!(snapshot.complete());
        let fixed = [
            "+cluster.local.",
            "+dns-version.cluster.local.",
            "+dns.cluster.local.",
            "+ns.dns.cluster.local.",
            "+pod.cluster.local.",
            "+svc.cluster.local.",
        ];
        assert_eq!(summary(&changes), fixed);
        let apex = Node {
            apex: true,
            ..Node::default()
        };
        assert_eq!(lookup(&snapshot, "cluster.local"), Some(Some(apex)));
        assert_eq!(
            lookup(&snapshot, "ns.dns.cluster.local"),
            Some(node(&["fd00::53"]))
        );
        assert_eq!((snapshot.name_count(), snapshot.record_count()), (6, 4));
        assert_eq!(
            (snapshot.generation(), snapshot.serial()),
            (1, START as u32)
        );
    }

    #[test]
    fn a_service_brings_its_names_and_takes_them_away() {
        let key = ServiceKey::new("shop", "web");
        let web = records(
            &["fd00::1", "10.0.0.1"],
            &[("a", &["fd00::1"]), ("b", &["10.0.0.1"])],
        );
        let (first, _) = empty(&["cluster.local"]).with(Vec::new(), at(START));
        let (second, changes) = first.with(vec![(key.clone(), Some(web.clone()))], at(START));
        let added = [
            "+a.web.shop.svc.cluster.local.",
            "+b.web.shop.svc.cluster.local.",
            "+shop.svc.cluster.local.",
            "+web.shop.svc.cluster.local.",
        ];
        assert_eq!(summary(&changes), added);
        assert_eq!(
            lookup(&second, "WEB.shop.SVC.cluster.local"),
            Some(node(&["10.0.0.1", "fd00::1"]))
        );
        assert_eq!(
            lookup(&second, "a.web.shop.svc.cluster.local"),
            Some(node(&["fd00::1"]))
        );
        assert_eq!(lookup(&second, "c.web.shop.svc.cluster.local"), Some(None));
        assert_eq!(
            lookup(&second, "x.a.web.shop.svc.cluster.local"),
            Some(None)
        );
        assert_eq!(lookup(&second, "shop.svc.cluster.local"), Some(node(&[])));
        assert_eq!(
            lookup(&first, "shop.svc.cluster.local"),
            Some(None),
            "an old snapshot stays as it is"
        );

        // Nothing new: no change.
        assert_eq!(second.with(vec![(key.clone(), Some(web))], at(START)).1, []);

        // One endpoint of two moves; the other is left alone.
        let moved = records(
            &["fd00::2", "10.0.0.1"],
            &[("a", &["fd00::2"]), ("b", &["10.0.0.1"])],
        );
        let (third, changes) = second.with(vec![(key.clone(), Some(moved))], at(START));
        assert_eq!(
            summary(&changes),
            [
                "+a.web.shop.svc.cluster.local.",
                "+web.shop.svc.cluster.local."
            ]
        );

        // Without endpoints the names go, the namespace stays.
        let (fourth, changes) = third.with(
            vec![(key.clone(), Some(ServiceRecords::default()))],
            at(START),
        );
        let removed = [
            "-a.web.shop.svc.cluster.local.",
            "-b.web.shop.svc.cluster.local.",
            "-web.shop.svc.cluster.local.",
        ];
        assert_eq!(summary(&changes), removed);
        assert_eq!(lookup(&fourth, "shop.svc.cluster.local"), Some(node(&[])));

        let (fifth, changes) = fourth.with(vec![(key, None)], at(START));
        assert_eq!(summary(&changes), ["-shop.svc.cluster.local."]);
        assert_eq!((fifth.name_count(), fifth.record_count()), (6, 4));
        assert_eq!(fifth.generation(), 5);
    }

    #[test]
    fn the_longest_zone_answers() {
        let key = ServiceKey::new("shop", "web");
        let zones = [
            "cluster.local",
            "shop.svc.cluster.local",
            "b.a.cluster.local",
        ];
        let (snapshot, _) =
            empty(&zones).with(vec![(key, Some(records(&["fd00::1"], &[])))], at(START));
        // The inner zone's apex, and nothing of the outer zone's namespace.
        assert!(
            lookup(&snapshot, "shop.svc.cluster.local")
                .flatten()
                .is_some_and(|node| node.apex)
        );
        assert_eq!(lookup(&snapshot, "web.shop.svc.cluster.local"), Some(None));
        assert_eq!(
            lookup(&snapshot, "web.shop.svc.shop.svc.cluster.local"),
            Some(node(&["fd00::1"]))
        );
        assert_eq!(
            lookup(&snapshot, "web.shop.svc.b.a.cluster.local"),
            Some(node(&["fd00::1"]))
        );
        // RFC 8020: what stands between two apexes exists.
        assert_eq!(lookup(&snapshot, "a.cluster.local"), Some(node(&[])));
    }

    #[test]
    fn a_name_that_does_not_fit_is_left_out_alone() {
        let long = format!("{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(60));
        let label = "e".repeat(63);
        let service = records(&["fd00::1"], &[("a", &["fd00::1"]), (&label, &["fd00::2"])]);
        let updates = vec![
            (ServiceKey::new("shop", "web"), Some(service)),
            (ServiceKey::new("Shop", "x"), None),
        ];
        let (snapshot, changes) = empty(&["cluster.local", &long]).with(updates, at(START));
        assert_eq!(snapshot.problems().len(), 1, "{:?}", snapshot.problems());
        assert_eq!(snapshot.problems()[0].error, NameError::TooLong);
        assert_eq!(snapshot.problems()[0].path, format!("{label}.web.shop.svc"));
        assert_eq!(changes.len(), snapshot.name_count());
        assert_eq!(
            lookup(&snapshot, &format!("{label}.web.shop.svc.cluster.local")),
            Some(node(&["fd00::2"]))
        );
        assert_eq!(
            lookup(&snapshot, &format!("a.web.shop.svc.{long}")),
            Some(node(&["fd00::1"]))
        );

        let odd = vec![(
            ServiceKey::new("shop", "Web"),
            Some(records(&["fd00::1"], &[])),
        )];
        let (snapshot, changes) = snapshot.with(odd, at(START));
        assert_eq!(changes, []);
        assert_eq!(
            snapshot
                .problems()
                .iter()
                .map(|p| p.error)
                .collect::<Vec<_>>(),
            [NameError::UpperCase; 2]
        );
        let (snapshot, _) = snapshot.with(Vec::new(), at(START));
        assert_eq!(snapshot.problems(), []);
    }

    #[test]
    fn the_serial_never_goes_back() {
        let (first, _) = empty(&["cluster.local"]).with(Vec::new(), at(START));
        let (earlier, _) = first.with(Vec::new(), at(START - 100));
        assert_eq!(earlier.serial(), START as u32);
        let (later, _) = earlier.with(Vec::new(), at(START + 1));
        assert_eq!(later.serial(), START as u32 + 1);
        // Past 2038 at the start, and over the end of 32 bits in 2106.
        let (late, _) = empty(&["cluster.local"]).with(Vec::new(), at((1 << 32) - 1));
        assert_eq!(late.serial(), u32::MAX);
        assert_eq!(late.with(Vec::new(), at((1 << 32) + 4)).0.serial(), 4);
    }

    #[test]
    fn the_soa_of_a_zone() {
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(58));
        let snapshot = empty(&["cluster.local", &long]);
        let soa = snapshot.soa(&snapshot.zones()[0]);
        assert_eq!(*soa.mname, name("ns.dns.cluster.local"));
        assert_eq!(*soa.rname, name("hostmaster.cluster.local"));
        assert_eq!(soa.minimum, 5);
        assert_eq!(*snapshot.soa(&snapshot.zones()[1]).mname, name(&long));
    }

    fn pod(namespace: &str, address: &str) -> PodKey {
        PodKey {
            namespace: namespace.into(),
            address: address.parse().unwrap(),
        }
    }

    fn pods(pods: &[(&PodKey, bool)]) -> Batch {
        Batch {
            pods: pods
                .iter()
                .map(|&(key, runs)| (key.clone(), runs))
                .collect(),
            ..Batch::default()
        }
    }

    #[test]
    fn verified_pods_have_names_while_they_run() {
        let config = SnapshotConfig {
            zones: vec![name("cluster.local")],
            pods: PodMode::Verified,
            ..SnapshotConfig::default()
        };
        let (v4, v6) = (pod("shop", "10.0.0.1"), pod("shop", "fd00:1::"));
        let other = pod("web", "10.0.0.1");
        let (first, changes) = Snapshot::empty(config.clone())
            .with(pods(&[(&v4, true), (&v6, true), (&other, true)]), at(START));
        let names: Vec<_> = summary(&changes)
            .into_iter()
            .filter(|line| line.contains("pod"))
            .collect();
        let expected = [
            "+10-0-0-1.shop.pod.cluster.local.",
            "+10-0-0-1.web.pod.cluster.local.",
            "+fd00-1--0.shop.pod.cluster.local.",
            "+pod.cluster.local.",
            "+shop.pod.cluster.local.",
            "+web.pod.cluster.local.",
        ];
        assert_eq!(names, expected);
        let is = |text: &str, expected: Option<Node<'_>>| {
            assert_eq!(lookup(&first, text), Some(expected), "{text}")
        };
        is("10-0-0-1.shop.pod.cluster.local", node(&["10.0.0.1"]));
        is("FD00-1--0.shop.pod.cluster.local", node(&["fd00:1::"]));
        // One spelling each, and only where the pod is.
        is("fd00-1--.shop.pod.cluster.local", None);
        is("fd00-1--0.web.pod.cluster.local", None);
        is("10-0-0-2.shop.pod.cluster.local", None);
        is("web-1.shop.pod.cluster.local", None);
        is("x.10-0-0-1.shop.pod.cluster.local", None);
        is("shop.pod.cluster.local", node(&[]));
        is("none.pod.cluster.local", None);
        // All of them are known: none is left to whoever asks.
        is("pod.cluster.local", node(&[]));

        let (second, changes) = first.with(pods(&[(&v6, false), (&other, false)]), at(START));
        let expected = [
            "-10-0-0-1.web.pod.cluster.local.",
            "-fd00-1--0.shop.pod.cluster.local.",
            "-web.pod.cluster.local.",
        ];
        assert_eq!(summary(&changes), expected);
        assert_eq!(
            second
                .with(pods(&[(&v4, true), (&other, false)]), at(START))
                .1,
            []
        );

        let disabled = SnapshotConfig {
            pods: PodMode::Disabled,
            ..config
        };
        let (snapshot, _) = Snapshot::empty(disabled).with(pods(&[(&v4, true)]), at(START));
        assert_eq!(
            lookup(&snapshot, "10-0-0-1.shop.pod.cluster.local"),
            Some(None)
        );
        assert_eq!(snapshot.name_count(), snapshot.names().count());
    }

    #[test]
    fn a_pod_whose_name_does_not_fit_is_left_out_alone() {
        let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(40));
        let config = SnapshotConfig {
            zones: vec![name(&long)],
            pods: PodMode::Verified,
            ..SnapshotConfig::default()
        };
        let (short, long) = (pod("a", "10.0.0.1"), pod("a", "2001:db8:1:2:3:4:5:6"));
        let batch = pods(&[(&short, true), (&long, true)]);
        let (snapshot, changes) = Snapshot::empty(config).with(batch, at(START));
        let objects: Vec<_> = snapshot
            .problems()
            .iter()
            .map(|problem| &*problem.object)
            .collect();
        assert_eq!(objects, ["Pod 2001:db8:1:2:3:4:5:6 of a"]);
        assert_eq!(changes.len(), snapshot.name_count());
    }

    /// Few addresses in few namespaces, one of which is a zone of its own.
    fn pod_updates() -> impl Strategy<Value = Vec<(PodKey, bool)>> {
        let namespace = prop::sample::select(vec!["a", "b", "Odd"]);
        let address = prop::sample::select(vec!["10.0.0.1", "fd00::1", "fd00::"]);
        let key = (namespace, address).prop_map(|(namespace, address)| pod(namespace, address));
        prop::collection::btree_map(key, any::<bool>(), 0..4)
            .prop_map(|pods| pods.into_iter().collect())
    }

    /// Few keys and values, so that a history meets each of them again.
    fn updates() -> impl Strategy<Value = Vec<(ServiceKey, Option<ServiceRecords>)>> {
        let addresses = prop::collection::vec(
            prop::sample::select(vec!["10.0.0.1", "fd00::1", "fd00::2"]),
            0..3,
        );
        let label = prop::sample::select(vec![
            "a",
            "b",
            "c",
            "0123456789012345678901234567890123456789",
        ]);
        let endpoints = prop::collection::btree_map(label, addresses.clone(), 0..4);
        let named = (
            prop::sample::select(vec![Protocol::Tcp, Protocol::Udp]),
            prop::sample::select(vec!["", "http", "dns"]),
        );
        let ports = prop::collection::btree_set(named, 0..3);
        let alias = prop::option::weighted(0.1, Just(name("example.com")));
        let parts = (addresses, endpoints, ports, any::<bool>(), alias, 0..2_u8);
        let records = parts.prop_map(|(addresses, endpoints, ports, headless, alias, pick)| {
            let ports: Vec<_> = ports
                .iter()
                .map(|&(protocol, name)| port(protocol, name, 80))
                .collect();
            let endpoints = endpoints.iter();
            ServiceRecords {
                addresses: set(&addresses),
                endpoints: endpoints
                    .map(|(label, addresses)| endpoint(label, addresses, &ports))
                    .collect(),
                ports: if addresses.is_empty() {
                    [].into()
                } else {
                    ports.clone().into()
                },
                headless,
                alias,
                pick,
            }
        });
        let key = (
            prop::sample::select(vec!["a", "b", "Odd"]),
            prop::sample::select(vec!["a", "web", "x"]),
        );
        let update = (
            key.prop_map(|(namespace, name)| ServiceKey::new(namespace, name)),
            prop::option::of(records),
        );
        prop::collection::vec(update, 0..5)
    }

    proptest! {
        #[test]
        fn changes_add_up_to_the_names(
            history in prop::collection::vec((updates(), pod_updates()), 1..12),
            mode in prop::sample::select(vec![PodMode::Disabled, PodMode::Insecure, PodMode::Verified]),
        ) {
            let long = format!("{0}.{0}.{0}.cluster.local", "l".repeat(63));
            let zones = [
                "cluster.local", "a.svc.cluster.local", "y.x.web.b.svc.cluster.local", "m.n.a.a.a.svc.cluster.local",
                "cluster.local", "example", "a.pod.cluster.local", "x.fd00--1.b.pod.cluster.local", &long,
            ];
            let mut snapshot = Snapshot::empty(SnapshotConfig {
                zones: zones.iter().map(|zone| name(zone)).collect(),
                pods: mode,
                ..SnapshotConfig::default()
            });
            let mut names = BTreeMap::new();
            for (services, pods) in history {
                let (next, changes) = snapshot.with(Batch { services, pods }, at(START));
                let count = changes.len();
                let mut changed = BTreeSet::new();
                for change in changes {
                    match change {
                        Change::Set { zone, name, node } => {
                            prop_assert!(changed.insert(name.clone()), "{name} changes twice");
                            let old = names.insert(name.clone(), (zone, node.clone()));
                            prop_assert_ne!(old, Some((zone, node)), "{} set to what it was", name);
                        }
                        Change::Remove { zone, name } => {
                            prop_assert!(changed.insert(name.clone()), "{name} changes twice");
                            let old = names.remove(&name);
                            prop_assert!(old.is_some_and(|old| old.0 == zone), "{name} removed, not there");
                        }
                    }
                }
                prop_assert!(count > 0 || next.names().count() == snapshot.names().count());
                snapshot = next;
                let listed: Vec<_> = snapshot.names().map(|(zone, name, node)| (name, (zone, node))).collect();
                prop_assert_eq!(snapshot.name_count(), listed.len(), "a name is listed twice");
                prop_assert_eq!(&listed.into_iter().collect::<BTreeMap<_, _>>(), &names);
                let records: usize = names.values().map(|(_, node)| node.record_count()).sum();
                prop_assert_eq!(snapshot.record_count(), records);
                let mut publishers = Publishers::default();
                for (key, records) in snapshot.services.iter() {
                    publishers.replace(&Arc::new(key.clone()), None, Some(records));
                }
                prop_assert_eq!(&snapshot.publishers, &publishers);
                for (name, (zone, node)) in &names {
                    let found = Lookup::Present { zone: &snapshot.zones()[*zone], node: node.clone() };
                    prop_assert_eq!(snapshot.lookup(&name.as_wire().to_ascii_uppercase()), found, "{}", name);
                }
            }
        }

        #[test]
        fn a_lookup_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (snapshot, _) = empty(&["cluster.local", "."]).with(Vec::new(), at(START));
            let found = snapshot.lookup(&bytes);
            prop_assert_eq!(found == Lookup::OutsideZones, Name::from_wire(&bytes).is_err());
        }
    }
}
