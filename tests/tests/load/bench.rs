//! The agent's dataplane, and its program at hand to be asked.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use aya::{
    TestRun, TestRunOptions,
    maps::{Array, ArrayOfMaps, Map, MapData, MapInfo},
    programs::{ProgramInfo, Xdp, loaded_programs},
};
use aya_obj::programs::XdpAttachType;
use peak_common::abi::SEGMENT_BYTES;
use peak_tests::Namespace;
use peak_userspace::{
    config::XdpMode,
    dataplane::live::Dataplane,
    interfaces::{Interface, Place},
    name::Name,
    snapshot::{ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};
use tokio::runtime::Runtime;

use crate::wire::{self, Query, Reply};

/// The loopback device's index in every namespace: BPF_PROG_TEST_RUN's frames come in there.
const LOOPBACK: u32 = 1;
/// From linux/bpf.h.
const XDP_TX: u32 = 3;
/// Bytes that the kernel takes for a segment: its one value, and a page of its own for what it is.
const SEGMENT_MEMORY: u64 = SEGMENT_BYTES as u64 + 4096;

/// One service with what it publishes; `None`: nothing any more.
pub(crate) type Update = (ServiceKey, Option<ServiceRecords>);

/// Seconds since 1970: what a serial is.
pub(crate) fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("it is later than 1970").as_secs() as u32
}

/// What the agent does with changes.
pub(crate) struct Writer {
    pub(crate) dataplane: Arc<Dataplane>,
    pub(crate) snapshot: Snapshot,
}

impl Writer {
    pub(crate) fn apply(&mut self, updates: Vec<Update>) {
        let (snapshot, changes) = self.snapshot.with(updates, SystemTime::now());
        self.dataplane.apply(&snapshot, &changes);
        self.snapshot = snapshot;
    }
}

/// Who asks the program, and remembers what it was asked.
pub(crate) struct Reader {
    zone: Name,
    program: Xdp,
    info: ProgramInfo,
    buffer: Vec<u8>,
    /// The last serial seen.
    serial: u32,
    pub(crate) asked: u64,
}

/// What a reply turns out to be.
#[derive(Debug)]
pub(crate) enum Answer<'r> {
    /// Addresses, to be compared.
    Records(Reply<'r>),
    NoData,
    NxDomain,
}

impl Reader {
    /// What the program answers; it must.
    pub(crate) fn ask(&mut self, query: &mut Query) -> Result<Answer<'_>> {
        query.stamp(self.asked as u16);
        self.asked += 1;
        let result = self.program.test_run(TestRunOptions {
            data_in: Some(&query.frame),
            data_out: Some(&mut self.buffer),
            ..TestRunOptions::default()
        })?;
        assert_eq!(result.return_value, XDP_TX, "not answered in the kernel");
        let reply = query.read(&self.buffer[..result.data_size_out as usize]);
        Ok(
            match reply.denies(query, &self.zone, &mut self.serial, now()) {
                None => Answer::Records(reply),
                Some(false) => Answer::NoData,
                Some(true) => Answer::NxDomain,
            },
        )
    }

    /// Bytes that the kernel takes for all maps of the program, segments included, as it accounts for them.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut bytes = 0;
        for id in self.info.map_ids()?.context("the kernel names no maps")? {
            let info = MapInfo::from_id(id)?;
            bytes += memory_locked(&info)?;
            if let Some("INDEX" | "HEAP") = info.name_as_str() {
                let outer = Map::from_map_data(MapData::from_id(id)?)?;
                let outer = ArrayOfMaps::<_, Array<MapData, [u8; SEGMENT_BYTES]>>::try_from(outer)?;
                let segments = (0..outer.len()).filter(|slot| outer.get(slot, 0).is_ok());
                bytes += segments.count() as u64 * SEGMENT_MEMORY;
            }
        }
        Ok(bytes)
    }
}

fn memory_locked(info: &MapInfo) -> Result<u64> {
    let map = info.fd()?;
    let path = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.with_context(|| path)?.trim().parse()?)
}

/// The dataplane of an agent that answers on the loopback device of a namespace of its own.
pub(crate) struct Bench {
    pub(crate) writer: Writer,
    pub(crate) reader: Reader,
    _namespace: Namespace,
    _runtime: Runtime,
}

impl Bench {
    /// With these services, the first complete snapshot.
    pub(crate) fn new(zone: &Name, services: Vec<Update>) -> Result<Self> {
        let namespace = Namespace::new("load")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let snapshot = Snapshot::empty(SnapshotConfig {
            zones: vec![zone.clone()],
            ttl: wire::TTL,
            nameservers: wire::servers().into(),
            ..SnapshotConfig::default()
        });
        let dataplane = {
            let _context = runtime.enter();
            Dataplane::load(snapshot.zones(), false, 0)?
        };
        let interface = Interface {
            index: LOOPBACK,
            name: "lo".to_owned(),
            mac: Some(wire::SERVER_MAC),
            mtu: 1500,
            ..Interface::default()
        };
        let places = wire::servers().map(|address| Place {
            interface: LOOPBACK,
            address,
            port: wire::PORT,
        });
        namespace.run(|| dataplane.attach(&interface, XdpMode::Generic))?;
        dataplane.follow(&[interface], &places, XdpMode::Generic);
        let mut writer = Writer {
            dataplane,
            snapshot,
        };
        writer.apply(services);

        let id = namespace.link("lo")?["xdp"]["prog"]["id"].clone();
        let id = id.as_u64().context("a program has a number")?;
        let info = loaded_programs()
            .filter_map(Result::ok)
            .find(|info| u64::from(info.id()) == id)
            .context("it is loaded")?;
        // Nothing is attached or detached through this handle: how it is attached does not matter.
        let program = Xdp::from_program_info(info, "peak".into(), XdpAttachType::Interface)?;
        let info = program.info()?;
        let reader = Reader {
            zone: zone.clone(),
            program,
            info,
            buffer: vec![0; 4096],
            serial: 0,
            asked: 0,
        };
        Ok(Self {
            writer,
            reader,
            _namespace: namespace,
            _runtime: runtime,
        })
    }

    /// What the program says that it did is what it was seen to do: `answered`, by type and outcome, and nothing else.
    pub(crate) fn counted(
        &self,
        answered: &BTreeMap<(&'static str, &'static str), u64>,
    ) -> Result<()> {
        let figures = self.writer.dataplane.figures()?;
        let [figures] = &figures[..] else {
            panic!("one interface, not {figures:?}");
        };
        for (qtype, outcomes) in &figures.answers {
            for (outcome, &count) in outcomes {
                let seen = answered.get(&(*qtype, *outcome)).copied();
                assert_eq!(
                    count,
                    seen.unwrap_or_default(),
                    "{qtype} {outcome}: {figures:?}"
                );
            }
        }
        let others = figures.passed.values().chain(figures.aborted.values());
        assert_eq!(others.sum::<u64>(), 0, "{figures:?}");
        assert_eq!(figures.answered, self.reader.asked);
        Ok(())
    }
}
