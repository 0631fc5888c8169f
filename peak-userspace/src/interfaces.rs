//! This node's network interfaces and their addresses, as netlink tells them: of the namespace that we run in, whatever
//! `/sys` shows.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, new_connection,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp},
    },
};

/// An interface at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address, if it is like Ethernet in that.
    pub mac: Option<[u8; 6]>,
    /// Its greatest packet, IP header included, in bytes.
    pub mtu: u32,
    /// The XDP program that is attached to it, by number.
    pub program: Option<u32>,
    /// Whether it is an end of a veth pair. A frame from a socket comes in a buffer of its own size there, which hardly ever
    /// leaves room at its tail.
    pub veth: bool,
    /// The VLAN interfaces on top of it, by name.
    pub vlans: Vec<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Those of its addresses of which it is not known yet whether another node has them (RFC 4862, section 5.4).
    pub tentative: Vec<IpAddr>,
}

/// Asks the kernel.
pub struct Interfaces {
    netlink: Handle,
}

impl Interfaces {
    /// Opens a netlink socket, in a task of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<Self> {
        let (connection, netlink, _) = new_connection()?;
        tokio::spawn(connection);
        Ok(Self { netlink })
    }

    /// Every interface of this namespace.
    ///
    /// # Errors
    /// Netlink's.
    pub async fn all(&self) -> io::Result<Vec<Interface>> {
        let links: Vec<LinkMessage> = self
            .netlink
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(io::Error::other)?;
        let addresses: Vec<AddressMessage> = self
            .netlink
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(io::Error::other)?;
        let mut interfaces = BTreeMap::new();
        let mut vlans = Vec::new();
        for link in links {
            let interface = read(&link);
            if let Some(below) = below_vlan(&link) {
                vlans.push((below, interface.name.clone()));
            }
            interfaces.insert(interface.index, interface);
        }
        for (below, name) in vlans {
            if let Some(interface) = interfaces.get_mut(&below) {
                interface.vlans.push(name);
            }
        }
        for message in addresses {
            if let Some(interface) = interfaces.get_mut(&message.header.index) {
                read_address(interface, &message);
            }
        }
        Ok(interfaces.into_values().collect())
    }
}

fn read(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        ..Interface::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::LinkInfo(info) => {
                interface.veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Address(address) => interface.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Xdp(xdp) => {
                interface.program = xdp.iter().find_map(|xdp| match xdp {
                    LinkXdp::ProgId(id)
                    | LinkXdp::DrvProgId(id)
                    | LinkXdp::SkbProgId(id)
                    | LinkXdp::HwProgId(id)
                        if *id != 0 =>
                    {
                        Some(*id)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    interface
}

/// The interface below, if this is a VLAN's.
fn below_vlan(link: &LinkMessage) -> Option<u32> {
    let is_vlan = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkInfo(info) if info.contains(&LinkInfo::Kind(InfoKind::Vlan)));
    if !link.attributes.iter().any(is_vlan) {
        return None;
    }
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Link(below) => Some(*below),
            _ => None,
        })
}

fn read_address(interface: &mut Interface, message: &AddressMessage) {
    let (mut local, mut peer) = (None, None);
    let mut tentative = message
        .header
        .flags
        .intersects(AddressHeaderFlags::Tentative);
    let mut failed = message
        .header
        .flags
        .intersects(AddressHeaderFlags::Dadfailed);
    for attribute in &message.attributes {
        match attribute {
            // On a link between two points, IFA_ADDRESS is the other end's.
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(flags) => {
                tentative |= flags.contains(AddressFlags::Tentative);
                failed |= flags.contains(AddressFlags::Dadfailed);
            }
            _ => {}
        }
    }
    // Another node has it.
    let Some(address) = local.or(peer).filter(|_| !failed) else {
        return;
    };
    if tentative {
        interface.tentative.push(address);
    } else {
        interface.addresses.push(address);
    }
}

/// Where to answer: what `--listen` means on the interfaces as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// For the fallback's sockets.
    pub sockets: Vec<SocketAddr>,
    /// For the kernel: interface, address and port.
    pub served: Vec<Place>,
}

/// An address and port that the kernel answers at on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The interface's index.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

impl Place {
    /// The fallback's socket for it.
    #[must_use]
    pub fn socket(&self) -> SocketAddr {
        socket(self.address, self.port, self.interface)
    }
}

impl Places {
    /// What `listen` means on these interfaces.
    ///
    /// A wildcard is every address of its family on them, each where it is. Another address is where it stands
    /// for; one that none of them has (a service address on `lo`, say) is answered on all of them.
    #[must_use]
    pub fn new(listen: &[SocketAddr], interfaces: &[Interface]) -> Self {
        let mut places = Self::default();
        for listen in listen {
            let wanted = |address: &IpAddr| {
                if listen.ip().is_unspecified() {
                    address.is_ipv4() == listen.is_ipv4()
                } else {
                    *address == listen.ip()
                }
            };
            let scope = match listen {
                SocketAddr::V6(listen) => listen.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            let mut found = false;
            for interface in interfaces {
                if scope != 0 && scope != interface.index {
                    continue;
                }
                for &address in interface.addresses.iter().filter(|address| wanted(address)) {
                    found = true;
                    places.add(socket(address, listen.port(), interface.index));
                    places.serve(interface.index, address, listen.port());
                }
            }
            if !found && !listen.ip().is_unspecified() {
                places.add(*listen);
                for interface in interfaces {
                    places.serve(interface.index, listen.ip(), listen.port());
                }
            }
        }
        places
    }

    fn add(&mut self, socket: SocketAddr) {
        if !self.sockets.contains(&socket) {
            self.sockets.push(socket);
        }
    }

    fn serve(&mut self, interface: u32, address: IpAddr, port: u16) {
        let place = Place {
            interface,
            address,
            port,
        };
        // Nobody sends to loopback from outside.
        if !address.is_loopback() && !self.served.contains(&place) {
            self.served.push(place);
        }
    }
}

/// A socket's address; link-local ones need their interface (RFC 4007, section 6).
fn socket(address: IpAddr, port: u16, interface: u32) -> SocketAddr {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            SocketAddrV6::new(address, port, 0, interface).into()
        }
        _ => SocketAddr::new(address, port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, addresses: &[&str]) -> Interface {
        Interface {
            index,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..Interface::default()
        }
    }

    fn places(listen: &[&str], interfaces: &[Interface]) -> (Vec<String>, Vec<(u32, String)>) {
        let listen: Vec<_> = listen.iter().map(|text| text.parse().unwrap()).collect();
        let places = Places::new(&listen, interfaces);
        (
            places.sockets.iter().map(ToString::to_string).collect(),
            places
                .served
                .iter()
                .map(|place| (place.interface, place.address.to_string()))
                .collect(),
        )
    }

    #[test]
    fn a_wildcard_is_every_address_of_its_family_where_it_is() {
        let interfaces = [
            interface(2, &["10.0.0.1", "fd00::1", "fe80::1"]),
            interface(3, &["fe80::1", "127.0.0.1"]),
        ];
        let (sockets, served) = places(&["[::]:53", "0.0.0.0:5353"], &interfaces);
        assert_eq!(
            sockets,
            [
                "[fd00::1]:53",
                "[fe80::1%2]:53",
                "[fe80::1%3]:53",
                "10.0.0.1:5353",
                "127.0.0.1:5353"
            ]
        );
        assert_eq!(
            served,
            [
                (2, "fd00::1".to_owned()),
                (2, "fe80::1".to_owned()),
                (3, "fe80::1".to_owned()),
                (2, "10.0.0.1".to_owned())
            ]
        );
    }

    #[test]
    fn an_address_of_another_interface_is_answered_on_all() {
        let interfaces = [interface(2, &["10.0.0.1"]), interface(3, &["10.0.1.1"])];
        let (sockets, served) = places(
            &["10.0.0.1:53", "169.254.20.10:53", "127.0.0.1:53"],
            &interfaces,
        );
        assert_eq!(sockets, ["10.0.0.1:53", "169.254.20.10:53", "127.0.0.1:53"]);
        assert_eq!(
            served,
            [
                (2, "10.0.0.1".to_owned()),
                (2, "169.254.20.10".to_owned()),
                (3, "169.254.20.10".to_owned())
            ]
        );
    }
}
