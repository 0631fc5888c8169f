//! From the snapshot to the table: what `dataplane` does with a change.

use std::{cmp::Reverse, io};

use peak_common::abi::{Control, MAX_ZONES, NAME_WORDS, RecordHead, Zone as ZoneWords};
use thiserror::Error;

use super::{
    memory::Memory,
    record::NodeRecord,
    table::{Batch, Stats, Writer, is_comparable},
};
use crate::{
    name::Name,
    snapshot::{AddressSet, Change, Lookup, Node, Snapshot, Zone},
};

/// Why the kernel can't answer for a list of zones. The remedy is another list, or no kernel program.
#[derive(Debug, Error)]
pub enum ZonesError {
    /// More zones than the control block has room for.
    #[error("{0} zones: the kernel program takes at most {MAX_ZONES}")]
    TooMany(usize),
    /// A zone's name has bytes that the kernel's comparison takes for letters.
    #[error(
        "zone {0}: the kernel program compares only names of printable ASCII without `{{|}}~ and backquotes"
    )]
    Name(Name),
    /// The system refused a grace period.
    #[error(transparent)]
    Memory(#[from] io::Error),
}

/// The table as a compiled form of the snapshot.
pub struct Table<M> {
    writer: Writer<M>,
    /// For each zone of the snapshot its place in [`Control::zones`].
    places: Box<[u8]>,
}

impl<M: Memory> Table<M> {
    /// Lets the table hold these zones, the snapshot's. An adopted table that holds the same ones goes on being
    /// read; one that holds others answers nothing until [`Self::sync`].
    ///
    /// # Errors
    /// [`ZonesError`]; the table is as it was then.
    pub fn new(mut writer: Writer<M>, zones: &[Zone]) -> Result<Self, ZonesError> {
        if zones.len() > MAX_ZONES {
            return Err(ZonesError::TooMany(zones.len()));
        }
        if let Some(zone) = zones.iter().find(|zone| !is_comparable(&zone.name)) {
            return Err(ZonesError::Name(zone.name.clone()));
        }
        // The longest first: readers take the first that fits.
        let mut order: Vec<_> = (0..zones.len()).collect();
        order.sort_by_key(|&zone| Reverse(zones[zone].name.as_wire().len()));
        let mut places = vec![0; zones.len()];
        for (place, &zone) in order.iter().enumerate() {
            places[zone] = place as u8;
        }
        let names: Vec<_> = order.iter().map(|&zone| &zones[zone].name).collect();
        let control = writer.memory().control();
        if !holds_zones(control, &names) {
            if control.flags.load() & Control::COMPLETE != 0 {
                writer.set_flags(Control::COMPLETE, 0);
                writer.memory_mut().barrier()?;
            }
            let control = writer.memory().control();
            for zone in &control.zones {
                zone.length.store(0);
            }
            for (zone, name) in control.zones.iter().zip(&names) {
                zone.length.store(name.as_wire().len() as u64);
                zone.labels.store(name.labels().count() as u64);
                for (word, value) in zone.suffix.iter().zip(suffix_words(name)) {
                    word.store(value);
                }
            }
            control.zone_count.store(names.len() as u64);
        }
        Ok(Self {
            writer,
            places: places.into(),
        })
    }

    /// Makes the table equal to the snapshot, whatever it holds. Nothing is done for a snapshot that is not complete.
    pub fn sync(&mut self, snapshot: &Snapshot) {
        if !snapshot.complete() {
            return;
        }
        let before = self.writer.stats();
        for (zone, name, node) in snapshot.names() {
            self.set(snapshot, zone, &name, &node);
        }
        // An empty table has nothing else now, and looking all names up would take longer than setting them did.
        if before.names + before.unstored > 0 {
            let exists =
                |name: &Name| matches!(snapshot.lookup(name.as_wire()), Lookup::Present { .. });
            self.writer.retain(exists);
        }
        self.publish(snapshot);
    }

    /// Brings the table from the snapshot before this one to this one.
    pub fn apply(&mut self, snapshot: &Snapshot, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Set { zone, name, node } => self.set(snapshot, *zone, name, node),
                Change::Remove { name, .. } => {
                    self.writer.remove(name);
                }
            }
        }
        self.publish(snapshot);
    }

    fn set(&mut self, snapshot: &Snapshot, zone: usize, name: &Name, node: &Node<'_>) {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(node.asks_fallback(), RecordHead::ASK_FALLBACK)
            | flag(node.open, RecordHead::SUBTREE);
        let record = NodeRecord {
            addresses: AddressSet::clone(&node.addresses),
            ttl: snapshot.ttl(),
            zone: self.places[zone],
            flags,
            pick: node.pick,
        };
        self.writer.set(name, &record);
    }

    /// Says which snapshot it is that the table now holds: a serial that is seen stands for data that is there.
    fn publish(&mut self, snapshot: &Snapshot) {
        let control = self.writer.memory().control();
        for zone in &control.zones[..self.places.len()] {
            zone.ttl.store(snapshot.ttl().into());
            zone.serial.store(snapshot.serial().into());
        }
        control.generation.store(snapshot.generation());
        if snapshot.complete() {
            self.writer.all_names_set();
            self.writer.set_flags(Control::COMPLETE, Control::COMPLETE);
        }
    }

    /// Whether the fallback forwards, and answers hence say that recursion is available.
    pub fn set_recursion_available(&mut self, available: bool) {
        let flag = Control::RECURSION_AVAILABLE;
        self.writer
            .set_flags(flag, if available { flag } else { 0 });
    }

    /// The operator's switch: whether the kernel answers at all.
    pub fn set_enabled(&mut self, enabled: bool) {
        let flag = Control::ENABLED;
        self.writer.set_flags(flag, if enabled { flag } else { 0 });
    }

    /// What the kernel holds of a name.
    pub fn lookup(&self, name: &Name) -> Option<NodeRecord> {
        self.writer.get(name)
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        self.writer.stats()
    }

    /// See [`Writer::take_quarantine`].
    pub fn take_quarantine(&mut self) -> Option<Batch> {
        self.writer.take_quarantine()
    }

    /// See [`Writer::release`].
    pub fn release(&mut self, batch: Batch) {
        self.writer.release(batch);
    }

    /// What writes the table.
    pub fn writer(&self) -> &Writer<M> {
        &self.writer
    }

    /// What writes the table, to be given what the snapshot does not know.
    pub fn writer_mut(&mut self) -> &mut Writer<M> {
        &mut self.writer
    }
}

/// The words of a zone's name from its end, as [`ZoneWords::suffix`] holds them, all of them.
fn suffix_words(name: &Name) -> [u64; NAME_WORDS] {
    let mut words = [0; NAME_WORDS];
    for (word, chunk) in words.iter_mut().zip(name.as_wire().rchunks(8)) {
        let mut bytes = [0; 8];
        bytes[8 - chunk.len()..].copy_from_slice(chunk);
        *word = u64::from_le_bytes(bytes);
    }
    words
}

fn holds_zones(control: &Control, names: &[&Name]) -> bool {
    let holds = |(zone, name): (&ZoneWords, &&Name)| {
        zone.length.load() == name.as_wire().len() as u64
            && zone
                .suffix
                .iter()
                .zip(suffix_words(name))
                .all(|(word, value)| word.load() == value)
    };
    control.zone_count.load() == names.len() as u64 && control.zones.iter().zip(names).all(holds)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, Ipv4Addr, Ipv6Addr},
        sync::Arc,
        time::{Duration, SystemTime, UNIX_EPOCH},
    };

    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::RData,
    };
    use peak_common::{
        abi::{Interface, served_slot, service_key},
        packet::Buffer,
        respond::{self, Scratch},
        table::Tables,
        verdict::{Outcome, PassReason, QueryType, Verdict},
        word::Word,
    };

    use super::*;
    use crate::{
        dataplane::memory::{HostMemory, HostTables},
        endpoints::Endpoint,
        pods::{PodKey, PodMode},
        snapshot::{
            AddressSet, Batch as Changed, Port, Protocol, ServiceKey, ServiceRecords,
            SnapshotConfig,
        },
    };

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const IFINDEX: u32 = 7;
    const SERVER: &str = "fd00::53";
    const START: u64 = 1_800_000_000;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(START)
    }

    fn empty(zones: &[&str]) -> Snapshot {
        Snapshot::empty(SnapshotConfig {
            zones: zones.iter().map(|zone| name(zone)).collect(),
            ttl: 5,
            nameservers: vec![SERVER.parse().unwrap()],
            ..SnapshotConfig::default()
        })
    }

    fn web(addresses: &[&str]) -> (ServiceKey, Option<ServiceRecords>) {
        let set = |texts: &[&str]| -> AddressSet {
            texts
                .iter()
                .map(|text| text.parse::<IpAddr>().unwrap())
                .collect()
        };
        let endpoints = addresses.iter().enumerate();
        let records = ServiceRecords {
            addresses: set(addresses),
            endpoints: endpoints
                .map(|(i, address)| Endpoint {
                    label: format!("pod-{i}").into(),
                    addresses: set(&[address]),
                    ports: [].into(),
                })
                .collect(),
            ..ServiceRecords::default()
        };
        (ServiceKey::new("shop", "web"), Some(records))
    }

    fn table(snapshot: &Snapshot) -> (Table<HostMemory>, Arc<HostTables>) {
        let memory = HostMemory::new();
        let tables = memory.tables().clone();
        let address = SERVER.parse::<Ipv6Addr>().unwrap().octets();
        let (words, _) = address.as_chunks::<8>();
        let address = [words[0], words[1]].map(u64::from_ne_bytes);
        let service = service_key(IFINDEX, 53_u16.to_be());
        let slot = Tables::served(&*tables, served_slot(address, service)).unwrap();
        slot.address[0].store(address[0]);
        slot.address[1].store(address[1]);
        slot.service.store(service);
        let writer = Writer::create(memory).unwrap();
        (Table::new(writer, snapshot.zones()).unwrap(), tables)
    }

    /// What the program does with a query for `name`, and its reply if it gives one.
    fn query(
        tables: &HostTables,
        name: &Name,
        query_type: QueryType,
    ) -> (Verdict, Option<Message>) {
        query_with(tables, name, query_type, None)
    }

    /// The same, with an OPT that says how much the client takes.
    fn query_with(
        tables: &HostTables,
        name: &Name,
        query_type: QueryType,
        payload_size: Option<u16>,
    ) -> (Verdict, Option<Message>) {
        let wire = name.as_wire();
        let opt = payload_size.map(|size| {
            let [s0, s1] = size.to_be_bytes();
            [0, 0, 41, s0, s1, 0, 0, 0, 0, 0, 0]
        });
        let opt = opt.as_ref().map_or(&[][..], |opt| opt);
        let length = (8 + 12 + wire.len() + 4 + opt.len()) as u16;
        let mut frame = Vec::new();
        frame.extend(MAC);
        frame.extend([2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([17, 64]);
        frame.extend("fd00::c".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend(SERVER.parse::<Ipv6Addr>().unwrap().octets());
        frame.extend([0x30, 0x39, 0, 53]);
        frame.extend(length.to_be_bytes());
        frame.extend([1, 1]);
        let message = frame.len();
        frame.extend([0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0]);
        frame.push(u8::from(payload_size.is_some()));
        frame.extend(wire.to_ascii_uppercase());
        let query_type = match query_type {
            QueryType::A => 1,
            QueryType::Aaaa => 28,
        };
        frame.extend([0, query_type, 0, 1]);
        frame.extend(opt);

        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&MAC);
        let interface = Interface {
            ifindex: Word::new(IFINDEX.into()),
            mtu: Word::new(1500),
            mac: Word::new(u64::from_le_bytes(mac)),
            head_first: Word::new(0),
        };
        let mut packet = Buffer::<4096>::new(&frame, 0, 2048);
        let mut scratch = Scratch::EMPTY;
        let verdict = respond::respond(&mut packet, &mut scratch, tables, &interface, || {
            0x8000_0000
        });
        let answered = matches!(verdict, Verdict::Answered(..));
        let reply = answered.then(|| Message::from_vec(&packet.frame()[message..]).unwrap());
        (verdict, reply)
    }

    /// The kernel says of every name of the snapshot, and of some that do not exist, what the snapshot says.
    fn compare(tables: &HostTables, snapshot: &Snapshot) {
        let absent = ["", "no.", "x.web.shop.svc.", "pod-9.web.shop.svc."]
            .iter()
            .flat_map(|path| {
                snapshot
                    .zones()
                    .iter()
                    .map(move |zone| format!("{path}{}", zone.name))
            });
        let names: BTreeSet<_> = snapshot
            .names()
            .map(|(_, name, _)| name)
            .chain(absent.map(|text| name(&text)))
            .collect();
        for name in &names {
            for query_type in [QueryType::A, QueryType::Aaaa] {
                let (verdict, reply) = query(tables, name, query_type);
                let (zone, node) = match snapshot.lookup(name.as_wire()) {
                    Lookup::Present { zone, node } => (zone, Some(node)),
                    Lookup::Absent { zone } => (zone, None),
                    Lookup::Outlying { .. } | Lookup::OutsideZones => panic!("{name} is in a zone"),
                };
                let wanted: Vec<IpAddr> = match (&node, query_type) {
                    (None, _) => Vec::new(),
                    (Some(node), QueryType::A) => {
                        node.addresses.v4.iter().map(|&a| a.into()).collect()
                    }
                    (Some(node), QueryType::Aaaa) => {
                        node.addresses.v6.iter().map(|&a| a.into()).collect()
                    }
                };
                let outcome = match &node {
                    None => Outcome::NxDomain,
                    Some(_) if wanted.is_empty() => Outcome::NoData,
                    Some(_) => Outcome::Records,
                };
                assert_eq!(verdict, Verdict::Answered(query_type, outcome), "{name}");
                let reply = reply.unwrap();
                let rcode = if node.is_some() {
                    ResponseCode::NoError
                } else {
                    ResponseCode::NXDomain
                };
                assert_eq!(reply.metadata.response_code, rcode);
                let mut addresses: Vec<IpAddr> = reply
                    .answers
                    .iter()
                    .map(|r| r.data.ip_addr().unwrap())
                    .collect();
                addresses.sort_unstable();
                assert_eq!(addresses, wanted, "{name}");
                assert!(
                    reply
                        .answers
                        .iter()
                        .all(|record| record.ttl == snapshot.ttl())
                );
                if wanted.is_empty() {
                    let [record] = &reply.authorities[..] else {
                        panic!("{name}: one SOA")
                    };
                    let RData::SOA(soa) = &record.data else {
                        panic!("{name}: an SOA")
                    };
                    assert_eq!(soa.serial, snapshot.serial());
                    assert_eq!(soa.minimum, snapshot.ttl());
                    let owner = record.name.to_ascii().to_ascii_lowercase();
                    assert_eq!(owner, zone.name.to_string(), "{name}");
                }
            }
        }
    }

    #[test]
    fn a_set_of_any_size_is_given_whole_or_left_to_the_fallback() {
        let first = empty(&["cluster.local"]);
        let (mut table, tables) = table(&first);
        let mut snapshot = first;
        let name = name("web.shop.svc.cluster.local");
        for count in 1..=100_usize {
            let v6 = |i| IpAddr::from(Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(i)));
            let v4 = |i| IpAddr::from(Ipv4Addr::from_bits(0x0a00_0100 | i));
            let records = ServiceRecords {
                addresses: (1..=count as u32).flat_map(|i| [v6(i), v4(i)]).collect(),
                ..ServiceRecords::default()
            };
            let web = (ServiceKey::new("shop", "web"), Some(records));
            let (next, _) = snapshot.with(vec![web], now());
            snapshot = next;
            table.sync(&snapshot);
            for (query_type, size) in [(QueryType::A, 4), (QueryType::Aaaa, 16)] {
                for payload_size in [None, Some(0), Some(600), Some(1232), Some(u16::MAX)] {
                    let limit = payload_size.map_or(512, |size| size.clamp(512, 1232));
                    let opt = if payload_size.is_some() { 11 } else { 0 };
                    let length = 12 + name.as_wire().len() + 4 + count * (12 + size) + opt;
                    let (verdict, reply) = query_with(&tables, &name, query_type, payload_size);
                    let wanted = if length <= limit.into() {
                        Verdict::Answered(query_type, Outcome::Records)
                    } else {
                        Verdict::Passed(PassReason::TooLarge)
                    };
                    assert_eq!(
                        verdict, wanted,
                        "{count} × {query_type:?}, {payload_size:?}"
                    );
                    let given = reply.map(|reply| reply.answers.len());
                    assert!(
                        given.is_none_or(|given| given == count),
                        "{given:?} of {count}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_kernel_says_what_the_snapshot_says() {
        let zones = [
            "cluster.local",
            "example",
            "b.a.cluster.local",
            "clusters.local",
        ];
        let first = empty(&zones);
        let (mut table, tables) = table(&first);
        let apex = name("cluster.local");
        let passed = Verdict::Passed;
        let verdict = |name: &Name| query(&tables, name, QueryType::A).0;

        table.sync(&first);
        assert_eq!(
            verdict(&apex),
            passed(PassReason::NotReady),
            "nothing is complete yet"
        );
        let (second, changes) = first.with(vec![web(&["fd00::1", "fd00::2", "10.0.0.1"])], now());
        table.apply(&second, &changes);
        compare(&tables, &second);
        assert_eq!(
            verdict(&name("example.com")),
            passed(PassReason::ForeignName)
        );
        assert_eq!(
            verdict(&name("xcluster.local")),
            passed(PassReason::ForeignName)
        );
        let (third, changes) = second.with(vec![web(&["fd00::3", "10.0.0.1"])], now());
        table.apply(&third, &changes);
        compare(&tables, &third);
        let control = Tables::control(&*tables).unwrap();
        assert_eq!(control.generation.load(), third.generation());
        assert_eq!(control.names.load(), third.name_count() as u64);
        for (_, name, node) in third.names() {
            assert_eq!(
                table.lookup(&name).unwrap().addresses,
                *node.addresses,
                "{name}"
            );
        }

        table.set_enabled(false);
        assert_eq!(verdict(&apex), passed(PassReason::Disabled));
        table.set_enabled(true);
        table.set_recursion_available(true);
        let (_, reply) = query(&tables, &apex, QueryType::A);
        assert!(reply.unwrap().metadata.recursion_available);
    }

    /// What only the fallback can answer is neither denied nor answered by the kernel; all around it is.
    #[test]
    fn what_only_the_fallback_knows_is_left_to_it() {
        let first = Snapshot::empty(SnapshotConfig {
            zones: vec![name("cluster.local")],
            ttl: 5,
            pods: PodMode::Insecure,
            ..SnapshotConfig::default()
        });
        let (mut table, tables) = table(&first);
        let alias = ServiceRecords {
            alias: Some(name("example.com")),
            ..ServiceRecords::default()
        };
        let cart = ServiceRecords {
            addresses: ["fd00::1".parse::<IpAddr>().unwrap()].into_iter().collect(),
            ports: [Port {
                protocol: Protocol::Tcp,
                name: "http".into(),
                number: 80,
            }]
            .into(),
            ..ServiceRecords::default()
        };
        let services = vec![
            (ServiceKey::new("shop", "alias"), Some(alias.clone())),
            (ServiceKey::new("shop", "cart"), Some(cart)),
        ];
        let (second, changes) = first.with(services, now());
        table.apply(&second, &changes);
        let ask = Verdict::Passed(PassReason::AskFallback);
        let answered = |outcome| Verdict::Answered(QueryType::A, outcome);
        let cases = [
            ("alias.shop.svc", ask),
            ("x.alias.shop.svc", answered(Outcome::NxDomain)),
            ("_http._tcp.cart.shop.svc", answered(Outcome::NoData)),
            ("_tcp.cart.shop.svc", answered(Outcome::NoData)),
            ("_udp.cart.shop.svc", answered(Outcome::NxDomain)),
            ("_x._tcp.cart.shop.svc", answered(Outcome::NxDomain)),
            ("dns-version", answered(Outcome::NoData)),
            ("www.example.com.shop.svc", answered(Outcome::NxDomain)),
            ("pod", answered(Outcome::NoData)),
            ("shop.pod", ask),
            ("10-1-2-3.shop.pod", ask),
            ("a.b.c.d.pod", ask),
            ("pods", answered(Outcome::NxDomain)),
        ];
        for (path, verdict) in cases {
            let name = name(&format!("{path}.cluster.local"));
            assert_eq!(query(&tables, &name, QueryType::A).0, verdict, "{path}");
        }
        // It becomes a service like others, and an alias again.
        let (third, changes) = second.with(
            vec![(
                ServiceKey::new("shop", "alias"),
                Some(ServiceRecords::default()),
            )],
            now(),
        );
        table.apply(&third, &changes);
        let alias_name = name("alias.shop.svc.cluster.local");
        let verdict = |tables: &HostTables| query(tables, &alias_name, QueryType::A).0;
        assert_eq!(verdict(&tables), answered(Outcome::NxDomain));
        let (fourth, changes) =
            third.with(vec![(ServiceKey::new("shop", "alias"), Some(alias))], now());
        table.apply(&fourth, &changes);
        assert_eq!(verdict(&tables), ask);
    }

    #[test]
    fn verified_pods_are_answered_and_all_others_denied() {
        let first = Snapshot::empty(SnapshotConfig {
            zones: vec![name("cluster.local")],
            ttl: 5,
            pods: PodMode::Verified,
            ..SnapshotConfig::default()
        });
        let (mut table, tables) = table(&first);
        let runs = |runs| Changed {
            pods: ["10.1.2.3", "fd00::1"]
                .map(|address| PodKey {
                    namespace: "shop".into(),
                    address: address.parse().unwrap(),
                })
                .map(|key| (key, runs))
                .into(),
            ..Changed::default()
        };
        let (second, changes) = first.with(runs(true), now());
        table.apply(&second, &changes);
        let cases = [
            ("10-1-2-3.shop.pod", Outcome::Records),
            ("fd00--1.shop.pod", Outcome::NoData),
            ("shop.pod", Outcome::NoData),
            ("pod", Outcome::NoData),
            ("10-1-2-4.shop.pod", Outcome::NxDomain),
            ("x.10-1-2-3.shop.pod", Outcome::NxDomain),
            ("10-1-2-3.db.pod", Outcome::NxDomain),
        ];
        let verdict = |path: &str| {
            let name = name(&format!("{path}.cluster.local"));
            query(&tables, &name, QueryType::A).0
        };
        for (path, outcome) in cases {
            let answered = Verdict::Answered(QueryType::A, outcome);
            assert_eq!(verdict(path), answered, "{path}");
        }
        let (third, changes) = second.with(runs(false), now());
        table.apply(&third, &changes);
        let denied = Verdict::Answered(QueryType::A, Outcome::NxDomain);
        assert_eq!(
            (verdict("10-1-2-3.shop.pod"), verdict("shop.pod")),
            (denied, denied)
        );
    }

    #[test]
    fn the_kernel_draws_as_many_as_the_service_wants() {
        let first = empty(&["cluster.local"]);
        let (mut table, tables) = table(&first);
        let (key, records) = web(&["fd00::1", "fd00::2", "fd00::3", "10.0.0.1"]);
        let service = name("web.shop.svc.cluster.local");
        let mut snapshot = first;
        for (pick, given) in [(1, 1), (2, 2), (9, 3), (0, 3)] {
            let records = records
                .clone()
                .map(|records| ServiceRecords { pick, ..records });
            let (next, changes) = snapshot.with(vec![(key.clone(), records)], now());
            table.apply(&next, &changes);
            snapshot = next;
            let reply = query(&tables, &service, QueryType::Aaaa).1.unwrap();
            assert_eq!(reply.answers.len(), given, "{pick}");
            // The draw is a half: the ring begins at the second of three.
            assert_eq!(
                reply.answers[0].data.ip_addr().unwrap(),
                "fd00::2".parse::<IpAddr>().unwrap()
            );
        }
    }

    #[test]
    fn an_agent_takes_over_what_another_left() {
        let zones = ["cluster.local", "example"];
        let first = empty(&zones);
        let (old, _) = first.with(vec![web(&["fd00::1", "fd00::2"])], now());
        let (mut before, tables) = table(&first);
        before.sync(&old);

        // Another agent, the same zones, and other services: it serves the old until it has the new.
        let writer = Writer::adopt(before.writer.into_memory()).unwrap();
        let mut after = Table::new(writer, first.zones()).unwrap();
        compare(&tables, &old);
        after.sync(&first);
        compare(&tables, &old);
        let (new, _) = first.with(vec![web(&["fd00::9"])], now());
        let stats = after.stats();
        after.sync(&new);
        compare(&tables, &new);
        assert_eq!(after.stats().names, new.name_count() as u64);
        after.sync(&new);
        assert!(after.writer.settle());
        assert!(after.stats().heap_used < stats.heap_used);
        assert_eq!(
            after.take_quarantine(),
            None,
            "what is as it should be is left alone"
        );

        // Other zones: nothing is answered until all is right.
        let other = empty(&["cluster.local", "other"]);
        let writer = Writer::adopt(after.writer.into_memory()).unwrap();
        let mut last = Table::new(writer, other.zones()).unwrap();
        let apex = name("example");
        assert_eq!(
            query(&tables, &apex, QueryType::A).0,
            Verdict::Passed(PassReason::NotReady)
        );
        let (other, _) = other.with(vec![web(&["10.0.0.9"])], now());
        last.sync(&other);
        compare(&tables, &other);
        assert_eq!(
            query(&tables, &apex, QueryType::A).0,
            Verdict::Passed(PassReason::ForeignName)
        );
    }

    #[test]
    fn zones_that_the_kernel_cannot_hold_are_refused() {
        let refuse = |zones: &[&str]| {
            let snapshot = empty(zones);
            let writer = Writer::create(HostMemory::new()).unwrap();
            Table::new(writer, snapshot.zones())
                .err()
                .map(|error| error.to_string())
        };
        assert_eq!(refuse(&["."]), None);
        assert!(refuse(&["a`b.example"]).unwrap().contains("a`b.example"));
        let many: Vec<_> = (0..=MAX_ZONES).map(|i| format!("z{i}.example")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(refuse(&many[1..]), None);
        let refusal = refuse(&many).unwrap();
        assert!(
            refusal.contains(&format!("{} zones", many.len())),
            "{refusal}"
        );
    }
}
