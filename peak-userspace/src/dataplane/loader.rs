//! The XDP program and its maps in the kernel.

use std::{io, net::IpAddr};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    programs::Xdp,
    util::nr_cpus,
};
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use peak_common::{
    abi::{
        COUNTERS, Control, Counters, HEAP_SEGMENTS, INDEX_SLOTS, Interface, MAX_INTERFACES, PROBES,
        SERVED_SLOTS, Segment, Served, mapped, served_slot, service_key,
    },
    table::Tables,
    verdict::Verdict,
};
use rustix::{system::uname, thread::CapabilitySet};
use thiserror::Error;
use tracing::{error, info};

use super::{
    kernel::{GracePeriods, KernelMemory, Segments},
    mapping::Mapping,
    memory::{Memory, Region},
};

/// The compiled program, GPL-compatible for the kernel's sake.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/peak-ebpf"));

/// The first kernel with programs for frames in several buffers (`BPF_F_XDP_HAS_FRAGS`): major and minor.
const OLDEST_KERNEL: (u32, u32) = (5, 18);

/// Why the program is not in the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A capability is missing, or something else is in the way.
    #[error(
        "the kernel refused to load or attach the program: {0} (run as root, or with the systemd unit in deploy/)"
    )]
    NotPermitted(String),
    /// The kernel lacks what the program uses.
    #[error(
        "the kernel is too old: the XDP program needs Linux {major}.{minor} or newer, and this is {0}; boot a newer one, or \
         let the fallback alone answer with --xdp off",
        major = OLDEST_KERNEL.0,
        minor = OLDEST_KERNEL.1
    )]
    TooOld(String),
    /// Programs may be preempted by others on their processor (`PREEMPT_RT`), whose answers would get mixed up with theirs.
    #[error(
        "this is a real-time kernel ({0}), where XDP programs interrupt one another: boot another, or let the fallback alone \
         answer with --xdp off"
    )]
    RealTime(String),
    /// The verifier said no, or something is missing.
    #[error("the kernel refused to load the program: {0}")]
    Refused(String),
    /// A map of the program could not be used.
    #[error("map {name} of the XDP program")]
    Map {
        /// The map's name.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What is fixed when the program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoadOptions {
    /// Log one of so many packets with its verdict; 0: none.
    pub log_one_in: u32,
    /// For tests: the number that stands for every random draw.
    pub fixed_draw: Option<u32>,
}

/// The loaded program, and the memory that it reads.
pub struct Kernel {
    /// The table's memory: the writer's.
    pub memory: KernelMemory,
    /// The program and what it knows of interfaces.
    pub program: Program,
}

/// The loaded program with the maps that are no part of the table.
pub struct Program {
    ebpf: Ebpf,
    interfaces: Mapping<Interface>,
    served: Mapping<Served>,
    counters: PerCpuArray<MapData, Counters>,
}

impl Kernel {
    /// Loads the program. It is attached to nothing yet.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(options: LoadOptions) -> Result<Self, LoadError> {
        Self::load_object(OBJECT, &["peak"], options, |_| ())
    }

    /// Loads `programs` from another build of the object, which may hold more maps too; `configure` knows of those.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load_object(
        object: &[u8],
        programs: &[&str],
        options: LoadOptions,
        configure: impl FnOnce(&mut EbpfLoader<'_>),
    ) -> Result<Self, LoadError> {
        let release = uname().release().to_string_lossy().into_owned();
        if version(&release).is_some_and(|version| version < OLDEST_KERNEL) {
            return Err(LoadError::TooOld(release));
        }
        let build = uname().version().to_string_lossy().into_owned();
        if is_real_time(&build) {
            return Err(LoadError::RealTime(build));
        }
        let fixed_draw = options.fixed_draw.map_or(0, |draw| u64::from(draw) + 1);
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("LOG_ONE_IN", &options.log_one_in, true)
            .override_global("FIXED_DRAW", &fixed_draw, true);
        configure(&mut loader);
        let mut ebpf = loader.load(object).map_err(|error| refused(&error))?;
        // While the object still has the maps: the programs name them by their descriptors.
        for name in programs {
            xdp(&mut ebpf, name)?
                .load()
                .map_err(|error| refused(&error))?;
        }

        let memory = KernelMemory::new(
            mapping(&mut ebpf, "CONTROL", 1)?,
            segments(&mut ebpf, "INDEX", INDEX_SLOTS)?,
            segments(&mut ebpf, "HEAP", HEAP_SEGMENTS)?,
            GracePeriods::new().map_err(|error| map_error("peak_grace", error))?,
        );
        let program = Program {
            interfaces: mapping(&mut ebpf, "INTERFACES", MAX_INTERFACES as usize)?,
            served: mapping(&mut ebpf, "SERVED", SERVED_SLOTS as usize)?,
            counters: PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)
                .map_err(|error| map_error("COUNTERS", error))?,
            ebpf,
        };
        Ok(Self { memory, program })
    }
}

impl Program {
    /// A program of the object: `peak` or `pass`.
    ///
    /// # Errors
    /// [`LoadError::Refused`] if there is none of that name.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp, LoadError> {
        xdp(&mut self.ebpf, name)
    }

    /// A map of the object that is not the agent's, once.
    #[must_use]
    pub fn take_map(&mut self, name: &str) -> Option<Map> {
        self.ebpf.take_map(name)
    }

    /// The number by which the kernel knows the program that answers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn id(&self) -> io::Result<u32> {
        let program = self
            .ebpf
            .program("peak")
            .ok_or_else(|| io::Error::other("the object has no program `peak`"))?;
        let info = program.info().map_err(io::Error::other)?;
        Ok(info.id())
    }

    /// What the program logs, once.
    ///
    /// # Errors
    /// The object logs nothing, or somebody has this already.
    pub fn log(&mut self) -> Result<EbpfLogger<Words>, LoadError> {
        EbpfLogger::init_with_logger(&mut self.ebpf, Words)
            .map_err(|error| map_error("AYA_LOGS", error))
    }

    /// Counts the interface in `slot` from zero.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reset_counters(&mut self, slot: u32) -> io::Result<()> {
        let processors = nr_cpus().map_err(|(_, error)| error)?.get() as usize;
        let zeros = PerCpuValues::try_from(vec![[0; COUNTERS]; processors])?;
        self.counters.set(slot, zeros, 0).map_err(io::Error::other)
    }

    /// Tells the program what it must know of the interface in `slot`, its index last. `mtu` in bytes; `head_first` for
    /// one whose frames hardly ever have room at their tail.
    pub fn describe(&self, slot: u32, ifindex: u32, mac: [u8; 6], mtu: u32, head_first: bool) {
        let described = &self.interfaces[slot as usize];
        let [a, b, c, d, e, f] = mac;
        described
            .mac
            .store(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]));
        described.mtu.store(mtu.into());
        described.head_first.store(head_first.into());
        described.ifindex.store(ifindex.into());
    }

    /// Serves an address and port on an interface: the slot that they are in, or `None` where there is no room.
    pub fn serve(&self, ifindex: u32, address: IpAddr, port: u16) -> Option<u32> {
        let address = match address {
            IpAddr::V4(address) => mapped(address.octets()),
            IpAddr::V6(address) => {
                let bytes = address.octets();
                let (halves, _) = bytes.as_chunks::<8>();
                [halves[0], halves[1]].map(u64::from_ne_bytes)
            }
        };
        let service = service_key(ifindex, port.to_be());
        let first = served_slot(address, service);
        let slot = (0..PROBES)
            .map(|probe| (first + probe) & (SERVED_SLOTS - 1))
            .find(|&slot| self.served[slot as usize].service.load() == 0)?;
        let served = &self.served[slot as usize];
        served.address[0].store(address[0]);
        served.address[1].store(address[1]);
        served.service.store(service);
        Some(slot)
    }

    /// The interfaces' slots.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The served addresses' slots.
    #[must_use]
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// The counters of the interface in `slot`, summed over all processors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self, slot: u32) -> io::Result<Counters> {
        let mut sum = [0; COUNTERS];
        for processor in self
            .counters
            .get(&slot, 0)
            .map_err(io::Error::other)?
            .iter()
        {
            for (sum, count) in sum.iter_mut().zip(processor) {
                *sum += count;
            }
        }
        Ok(sum)
    }
}

impl Tables for Kernel {
    fn control(&self) -> Option<&Control> {
        Some(self.memory.control())
    }
    fn index_segment(&self, slot: u32) -> Option<&Segment> {
        self.memory.segment(Region::Index, slot)
    }
    fn heap_segment(&self, slot: u32) -> Option<&Segment> {
        self.memory.segment(Region::Heap, slot)
    }
    fn served(&self, slot: u32) -> Option<&Served> {
        self.program.served.get(slot as usize)
    }
}

/// The program's lines, in the agent's log. It tells interfaces and verdicts by number: here they get their names.
#[derive(Clone, Copy, Debug)]
pub struct Words;

impl Log for Words {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = in_words(&record.args().to_string(), interface_name);
        match record.level() {
            Level::Error => error!("XDP program: {line}"),
            _ => info!("XDP program: {line}"),
        }
    }

    fn flush(&self) {}
}

/// `interface 2: verdict 3` as `interface eth0: answered AAAA NOERROR`; what looks otherwise, as it is.
fn in_words(line: &str, name: impl Fn(u32) -> Option<String>) -> String {
    let named = || {
        let (interface, rest) = line.strip_prefix("interface ")?.split_once(": ")?;
        let (rest, verdict) = rest.rsplit_once("verdict ")?;
        let verdict = match Verdict::all().nth(verdict.parse().ok()?)? {
            Verdict::Answered(query_type, outcome) => {
                format!("answered {} {}", query_type.as_str(), outcome.as_str())
            }
            Verdict::Passed(reason) => format!("passed, {}", reason.as_str()),
            Verdict::Aborted(reason) => format!("aborted, {}", reason.as_str()),
        };
        let interface = name(interface.parse().ok()?).unwrap_or_else(|| interface.to_owned());
        Some(format!("interface {interface}: {rest}{verdict}"))
    };
    named().unwrap_or_else(|| line.to_owned())
}

fn interface_name(index: u32) -> Option<String> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )
    .ok()?;
    rustix::net::netdevice::index_to_name(socket, index).ok()
}

/// Major and minor of a kernel's release such as `6.18.44-fc`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether a kernel's build such as `#1 SMP PREEMPT_DYNAMIC` is one with preemptible softirqs. Since Linux 6.18, and 6.12.57,
/// these no longer wait for one another (kernel/softirq.c), while the program counts on its processor's memory being its own.
fn is_real_time(build: &str) -> bool {
    build.contains("PREEMPT_RT")
}

fn xdp<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, LoadError> {
    ebpf.program_mut(name)
        .ok_or_else(|| LoadError::Refused(format!("the object has no program `{name}`")))?
        .try_into()
        .map_err(|error| refused(&error))
}

fn segments(ebpf: &mut Ebpf, name: &'static str, slots: u32) -> Result<Segments, LoadError> {
    let Map::ArrayOfMaps(map) = take(ebpf, name)? else {
        return Err(map_error(name, "not an array of maps"));
    };
    Segments::new(map.fd(), slots).map_err(|error| map_error(name, error))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| map_error(name, "the object has no such map"))
}

fn mapping<T: super::mapping::Shared>(
    ebpf: &mut Ebpf,
    name: &'static str,
    count: usize,
) -> Result<Mapping<T>, LoadError> {
    let Map::Array(map) = take(ebpf, name)? else {
        return Err(map_error(name, "not an array"));
    };
    Mapping::new(map.fd(), count).map_err(|error| map_error(name, error))
}

fn map_error(
    name: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LoadError {
    LoadError::Map {
        name,
        source: io::Error::other(source),
    }
}

impl LoadError {
    /// Says which capability is missing, if one is.
    pub(super) fn not_permitted() -> Self {
        Self::NotPermitted(missing_capabilities().unwrap_or_else(|| {
            "not permitted, though no capability is missing: by a security module, or outside the first user namespace"
                .to_owned()
        }))
    }
}

/// Which of the capabilities that loading and attaching take are missing.
fn missing_capabilities() -> Option<String> {
    let effective = rustix::thread::capabilities(None).ok()?.effective;
    let missing: Vec<_> = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ]
    .into_iter()
    .filter(|(capability, _)| !effective.intersects(*capability | CapabilitySet::SYS_ADMIN))
    .map(|(_, name)| name)
    .collect();
    (!missing.is_empty()).then(|| format!("{} missing", missing.join(", ")))
}

/// The cause of a chain of errors that an operator can act on.
fn refused(error: &(dyn std::error::Error + 'static)) -> LoadError {
    let mut message = error.to_string();
    let mut cause = Some(error);
    while let Some(error) = cause {
        // Without CAP_PERFMON the verifier itself refuses, with EACCES, as it does what is unsafe.
        match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            Some(libc::EPERM) => return LoadError::not_permitted(),
            Some(libc::EACCES) if missing_capabilities().is_some() => {
                return LoadError::not_permitted();
            }
            _ => {}
        }
        message = error.to_string();
        cause = error.source();
    }
    LoadError::Refused(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert!(version("5.9.0") < version("5.18-rc1"));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn real_time_kernels_are_known_by_their_build() {
        assert!(is_real_time("#1 SMP PREEMPT_RT Debian 6.12.57-1"));
        assert!(!is_real_time("#1 SMP PREEMPT_DYNAMIC Debian 6.12.57-1"));
    }

    #[test]
    fn what_the_program_logs_is_told_in_words() {
        let told = |line: &str| in_words(line, |index| (index == 2).then(|| "eth0".to_owned()));
        assert_eq!(
            told("interface 2: verdict 3"),
            "interface eth0: answered AAAA NOERROR"
        );
        assert_eq!(
            told("interface 7: verdict 6"),
            "interface 7: passed, not_ip"
        );
        let aborted = Verdict::all().count() - 1;
        assert_eq!(
            told(&format!(
                "interface 2: dropped a half-written reply: verdict {aborted}"
            )),
            "interface eth0: dropped a half-written reply: aborted, table"
        );
        for line in ["interface 2: verdict 1000", "something else"] {
            assert_eq!(told(line), line);
        }
    }
}
