//! The program on interfaces: where it answers, and what it counted there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsRawFd,
    sync::Arc,
};

use aya::programs::{ProgramError, XdpMode as AyaMode, links::FdLink};
use peak_common::{
    abi::{MAX_INTERFACES, PROBES},
    verdict::Verdict,
};
use serde::Serialize;
use thiserror::Error;
use tracing::{info, warn};

use super::{
    kernel::GracePeriods,
    loader::{LoadError, Program},
};
use crate::{
    config::XdpMode,
    interfaces::{Interface, Place},
};

/// Why an interface can't have the program.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Somebody else's program is there.
    #[error(
        "interface {interface} already has an XDP program (number {program}; `bpftool prog show id {program}` tells of it): \
         detach it, or leave the interface out"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program's number.
        program: u32,
    },
    /// It has no MAC address that packets could be sent to.
    #[error("interface {0} is no Ethernet: leave it out, or say --xdp off")]
    NoEthernet(String),
    /// Tags are taken off before the program sees the packet, and would be lost in the reply.
    #[error(
        "interface {interface} takes VLAN tags off before XDP and carries {vlan}: \
         turn that off with `ethtool -K {interface} rxvlan off`, or say --xdp off"
    )]
    VlanOffload {
        /// The interface.
        interface: String,
        /// One of its VLAN interfaces.
        vlan: String,
    },
    /// The driver can't.
    #[error("the driver of {interface} has no native XDP ({error}): say --xdp generic, or auto")]
    NoNative {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// More than the maps have room for.
    #[error("too many interfaces: the XDP program takes {MAX_INTERFACES}, and {0} finds no room")]
    TooMany(String),
    /// Something else.
    #[error("can't attach the XDP program to {interface}: {error}")]
    Refused {
        /// The interface.
        interface: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The program is not what it should be.
    #[error(transparent)]
    Program(#[from] LoadError),
}

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver.
    Native,
    /// Behind the driver.
    Generic,
    /// Not at all.
    Off,
}

impl Mode {
    /// As in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        }
    }
}

/// What the program did on one interface. Its fields are keys in JSON.
#[derive(Clone, Debug, Serialize)]
pub struct InterfaceFigures {
    /// The interface.
    pub name: String,
    /// How the program is attached.
    pub mode: Mode,
    /// The program's number, as `bpftool prog show id` takes it.
    pub program: Option<u32>,
    /// Queries answered.
    pub answered: u64,
    /// The same by type and outcome.
    pub answers: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Packets that went up the stack, by reason.
    pub passed: BTreeMap<&'static str, u64>,
    /// Packets that were dropped half-written, by reason.
    pub aborted: BTreeMap<&'static str, u64>,
}

impl InterfaceFigures {
    /// Of an interface with these counters, in the order of [`Verdict::all`].
    #[must_use]
    pub fn new(name: String, mode: Mode, counters: &[u64]) -> Self {
        let mut figures = Self {
            name,
            mode,
            program: None,
            answered: 0,
            answers: BTreeMap::new(),
            passed: BTreeMap::new(),
            aborted: BTreeMap::new(),
        };
        for verdict in Verdict::all() {
            let count = counters.get(verdict.index()).copied().unwrap_or_default();
            match verdict {
                Verdict::Answered(query_type, outcome) => {
                    figures.answered += count;
                    let answers = figures.answers.entry(query_type.as_str()).or_default();
                    answers.insert(outcome.as_str(), count);
                }
                Verdict::Passed(reason) => {
                    figures.passed.insert(reason.as_str(), count);
                }
                Verdict::Aborted(reason) => {
                    figures.aborted.insert(reason.as_str(), count);
                }
            }
        }
        figures
    }
}

struct Attached {
    name: String,
    index: u32,
    slot: u32,
    mode: Mode,
    /// The program goes when this does.
    _link: FdLink,
}

/// The program with all it is attached to.
pub struct Attachments {
    program: Program,
    grace: Arc<GracePeriods>,
    attached: Vec<Attached>,
    /// The slot of each place that is served.
    served: BTreeMap<Place, u32>,
    /// Places that found no room: said once.
    homeless: BTreeSet<Place>,
}

impl Attachments {
    /// Of a program that is attached to nothing yet.
    #[must_use]
    pub fn new(program: Program, grace: Arc<GracePeriods>) -> Self {
        Self {
            program,
            grace,
            attached: Vec::new(),
            served: BTreeMap::new(),
            homeless: BTreeSet::new(),
        }
    }

    /// Attaches the program to an interface.
    ///
    /// # Errors
    /// [`AttachError`]; the interface is as it was then.
    pub fn attach(&mut self, interface: &Interface, mode: XdpMode) -> Result<Mode, AttachError> {
        let name = || interface.name.clone();
        suits(interface, strips_vlan_tags)?;
        let slot = self
            .free_slot(interface.index)
            .ok_or_else(|| AttachError::TooMany(name()))?;
        // A slot's former interface is no matter of this one.
        if let Err(error) = self.program.reset_counters(slot) {
            warn!(interface = interface.name, %error, "can't set the kernel's counters to zero");
        }
        self.describe(slot, interface);
        let outcome = match mode {
            XdpMode::Generic => self.link(interface, Mode::Generic),
            XdpMode::Native => self.link(interface, Mode::Native),
            XdpMode::Auto | XdpMode::Off => match self.link(interface, Mode::Native) {
                Err(AttachError::NoNative { error, .. }) => {
                    info!(
                        interface = interface.name,
                        %error,
                        "the driver has no native XDP: the kernel answers in generic mode, which is slower"
                    );
                    self.link(interface, Mode::Generic)
                }
                outcome => outcome,
            },
        };
        match outcome {
            Ok((mode, link)) => {
                info!(
                    interface = interface.name,
                    mode = mode.as_str(),
                    "XDP program attached"
                );
                self.attached.push(Attached {
                    name: name(),
                    index: interface.index,
                    slot,
                    mode,
                    _link: link,
                });
                Ok(mode)
            }
            Err(error) => {
                self.program.interfaces()[slot as usize].ifindex.store(0);
                Err(error)
            }
        }
    }

    fn link(&mut self, interface: &Interface, mode: Mode) -> Result<(Mode, FdLink), AttachError> {
        let aya_mode = match mode {
            Mode::Native => AyaMode::Driver,
            Mode::Generic | Mode::Off => AyaMode::Skb,
        };
        let program = self.program.xdp("peak")?;
        let link = program
            .attach(interface.index, aya_mode)
            .and_then(|id| program.take_link(id));
        let refused = |error: io::Error| match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE) if mode == Mode::Native => {
                AttachError::NoNative {
                    interface: interface.name.clone(),
                    error,
                }
            }
            Some(libc::EPERM) => AttachError::Program(LoadError::not_permitted()),
            _ => AttachError::Refused {
                interface: interface.name.clone(),
                error,
            },
        };
        let link = link.map_err(|error| refused(cause(error)))?;
        // An attachment without a link would outlive us.
        let link = FdLink::try_from(link)
            .map_err(|_| refused(io::Error::from_raw_os_error(libc::EINVAL)))?;
        Ok((mode, link))
    }

    /// Where an interface is registered: a slot where nobody is.
    fn free_slot(&self, index: u32) -> Option<u32> {
        (0..PROBES)
            .map(|probe| (index + probe) & (MAX_INTERFACES - 1))
            .find(|&slot| self.program.interfaces()[slot as usize].ifindex.load() == 0)
    }

    fn describe(&self, slot: u32, interface: &Interface) {
        let mac = interface.mac.unwrap_or_default();
        let Interface {
            index, mtu, veth, ..
        } = *interface;
        self.program.describe(slot, index, mac, mtu, veth);
    }

    /// Whether the program is attached to the interface of this index.
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.attached.iter().any(|attached| attached.index == index)
    }

    /// Takes note of what became of the interfaces.
    pub fn update(&mut self, interfaces: &[Interface]) {
        self.attached.retain(|attached| {
            let is_there = interfaces
                .iter()
                .any(|interface| interface.index == attached.index);
            if !is_there {
                warn!(
                    interface = attached.name,
                    "the interface is gone, and the XDP program with it"
                );
                self.program.interfaces()[attached.slot as usize]
                    .ifindex
                    .store(0);
            }
            is_there
        });
        for attached in &self.attached {
            if let Some(interface) = interfaces
                .iter()
                .find(|interface| interface.index == attached.index)
            {
                self.describe(attached.slot, interface);
            }
        }
    }

    /// Serves these places as far as the program is attached there, and no others.
    pub fn serve(&mut self, places: &[Place]) {
        let wanted: BTreeSet<Place> = places
            .iter()
            .filter(|place| self.has(place.interface))
            .copied()
            .collect();
        let unwanted: Vec<_> = self
            .served
            .extract_if(.., |place, _| !wanted.contains(place))
            .collect();
        for (place, slot) in &unwanted {
            info!(address = %place.address, port = place.port, "the kernel serves this address no longer");
            self.program.served()[*slot as usize].service.store(0);
        }
        // A slot gets another address when nobody can read its former one any more.
        if !unwanted.is_empty()
            && let Err(error) = self.grace.wait()
        {
            warn!(%error, "can't wait for running programs: addresses of the kernel stay as they are");
            return;
        }
        for place in wanted {
            if !self.served.contains_key(&place) {
                self.register(place);
            }
        }
        self.homeless.retain(|place| places.contains(place));
    }

    fn register(&mut self, place: Place) {
        let Some(slot) = self
            .program
            .serve(place.interface, place.address, place.port)
        else {
            if self.homeless.insert(place) {
                warn!(
                    address = %place.address,
                    port = place.port,
                    "no room among the kernel's addresses: the fallback answers there"
                );
            }
            return;
        };
        info!(address = %place.address, port = place.port, "the kernel serves this address");
        self.served.insert(place, slot);
    }

    /// What was counted, interface by interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn figures(&self) -> io::Result<Vec<InterfaceFigures>> {
        let program = Some(self.program.id()?);
        self.attached
            .iter()
            .map(|attached| {
                let counters = self.program.counters(attached.slot)?;
                Ok(InterfaceFigures {
                    program,
                    ..InterfaceFigures::new(attached.name.clone(), attached.mode, &counters)
                })
            })
            .collect()
    }

    /// Detaches the program everywhere.
    pub fn detach(&mut self) {
        for attached in self.attached.drain(..) {
            self.program.interfaces()[attached.slot as usize]
                .ifindex
                .store(0);
            info!(interface = attached.name, "XDP program detached");
        }
    }
}

/// Whether the program may be attached to an interface.
fn suits(
    interface: &Interface,
    strips_vlan_tags: impl FnOnce(&str) -> io::Result<bool>,
) -> Result<(), AttachError> {
    let name = || interface.name.clone();
    if let Some(program) = interface.program {
        return Err(AttachError::Occupied {
            interface: name(),
            program,
        });
    }
    if interface
        .mac
        .is_none_or(|mac| mac == [0; 6] || mac[0] & 1 != 0)
    {
        return Err(AttachError::NoEthernet(name()));
    }
    if let Some(vlan) = interface.vlans.first()
        && strips_vlan_tags(&interface.name).unwrap_or_else(|error| {
            warn!(interface = interface.name, %error, "can't ask for the interface's offloads");
            false
        })
    {
        return Err(AttachError::VlanOffload {
            interface: name(),
            vlan: vlan.clone(),
        });
    }
    Ok(())
}

/// What the system said, somewhere below an error of the library's.
fn cause(error: ProgramError) -> io::Error {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = next {
        if let Some(code) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return io::Error::from_raw_os_error(code);
        }
        next = error.source();
    }
    io::Error::other(error)
}

/// Whether the interface takes VLAN tags off received packets (`rxvlan` of ethtool).
fn strips_vlan_tags(interface: &str) -> io::Result<bool> {
    /// `struct ethtool_value` (`linux/ethtool.h`).
    #[repr(C)]
    struct EthtoolValue {
        command: u32,
        data: u32,
    }
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;

    let mut value = EthtoolValue {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    // SAFETY: all zeros is a value of this structure of integers and pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: the kernel reads the request, and reads and writes the value that it points to; both live on.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.data & ETH_FLAG_RXVLAN != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            ..Interface::default()
        }
    }

    #[test]
    fn tags_that_are_taken_off_are_refused_where_there_are_vlans() {
        let asked = |vlans: &[&str], strips: io::Result<bool>| {
            let vlans = vlans.iter().map(|&vlan| vlan.to_owned()).collect();
            suits(&Interface { vlans, ..eth0() }, |_| strips)
        };
        assert!(asked(&[], Ok(true)).is_ok());
        assert!(asked(&["eth0.7"], Ok(false)).is_ok());
        // Drivers without offloads can't tell of them.
        assert!(asked(&["eth0.7"], Err(io::ErrorKind::Unsupported.into())).is_ok());
        let refused = asked(&["eth0.7"], Ok(true)).unwrap_err().to_string();
        assert!(
            refused.contains("ethtool -K eth0 rxvlan off") && refused.contains("eth0.7"),
            "{refused}"
        );
    }

    #[test]
    fn only_ethernet_without_another_program_suits() {
        for mac in [None, Some([0; 6]), Some([1, 0, 0x5e, 0, 0, 1])] {
            let interface = Interface { mac, ..eth0() };
            assert!(matches!(
                suits(&interface, |_| Ok(false)),
                Err(AttachError::NoEthernet(_))
            ));
        }
        let interface = Interface {
            program: Some(7),
            ..eth0()
        };
        let refused = suits(&interface, |_| Ok(false)).unwrap_err().to_string();
        assert!(refused.contains("number 7;"), "{refused}");
    }

    #[test]
    fn offloads_of_an_interface_that_is_not_there_are_an_error() {
        assert!(strips_vlan_tags("nope").is_err());
    }

    #[test]
    fn every_counter_is_told() {
        let counters: Vec<u64> = (1..=64).collect();
        let figures = InterfaceFigures::new("eth0".to_owned(), Mode::Native, &counters);
        // Six answers, 1 to 6; then the reasons in their order.
        assert_eq!(figures.answered, 21);
        assert_eq!(figures.answers["A"]["NOERROR"], 1);
        assert_eq!(figures.answers["AAAA"]["NXDOMAIN"], 6);
        assert_eq!(figures.passed["not_ip"], 7);
        let told = figures.answered
            + figures.passed.values().sum::<u64>()
            + figures.aborted.values().sum::<u64>();
        let verdicts = Verdict::all().count() as u64;
        assert_eq!(told, verdicts * (verdicts + 1) / 2);
    }
}
