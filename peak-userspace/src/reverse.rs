//! Addresses as names, below `in-addr.arpa` (RFC 1035, section 3.5) and `ip6.arpa` (RFC 3596, section 2.5), and who
//! publishes which address.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, LazyLock},
};

use imbl::OrdSet;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    endpoints::Endpoint,
    name::{Name, labels},
    objects::generated_label,
    snapshot::{ServiceKey, ServiceRecords},
};

const IN_ADDR: &[u8] = b"in-addr";
const IP6: &[u8] = b"ip6";
const ARPA: &[u8] = b"arpa";

/// The zones of a range of addresses: several if it ends in the middle of a label.
pub(crate) fn zones_of(range: IpNet) -> Vec<Name> {
    match range {
        IpNet::V4(range) => {
            let whole = range.prefix_len().next_multiple_of(8);
            let zones = range.subnets(whole).expect("a longer prefix");
            zones.map(|zone| name_of(zone.into())).collect()
        }
        IpNet::V6(range) => {
            let whole = range.prefix_len().next_multiple_of(4);
            let zones = range.subnets(whole).expect("a longer prefix");
            zones.map(|zone| name_of(zone.into())).collect()
        }
    }
}

/// The name of a range that ends where a label does.
pub(crate) fn name_of(range: IpNet) -> Name {
    let (parts, family): (Vec<String>, _) = match range {
        IpNet::V4(range) => {
            let octets = range.network().octets();
            let octets = &octets[..usize::from(range.prefix_len() / 8)];
            (octets.iter().rev().map(u8::to_string).collect(), IN_ADDR)
        }
        IpNet::V6(range) => {
            let bits = range.network().to_bits();
            let nibbles = (32 - range.prefix_len() / 4)..32;
            let nibble = |at| format!("{:x}", bits >> (4 * u32::from(at)) & 15);
            (nibbles.map(nibble).collect(), IP6)
        }
    };
    let mut path: Vec<_> = parts.iter().map(String::as_bytes).collect();
    path.extend([family, ARPA]);
    Name::root()
        .descendant(&path)
        .expect("34 short labels make a name")
}

/// What a name in lower case and wire format stands for: one address, or all that begin with what its labels say.
pub(crate) fn range_of(name: &[u8]) -> Option<IpNet> {
    if !name.ends_with(b"\x04arpa\0") {
        return None;
    }
    let labels: Vec<_> = labels(name).collect();
    let [parts @ .., family, _arpa] = &*labels else {
        return None;
    };
    let count = parts.len() as u8;
    if *family == IN_ADDR && count <= 4 {
        let mut octets = [0; 4];
        for (octet, label) in octets.iter_mut().zip(parts.iter().rev()) {
            let text = str::from_utf8(label).ok()?;
            *octet = text.parse().ok()?;
            // One spelling each: neither `01` nor `+1`.
            if octet.to_string() != text {
                return None;
            }
        }
        Some(Ipv4Net::new(Ipv4Addr::from(octets), 8 * count).ok()?.into())
    } else if *family == IP6 && count <= 32 {
        let mut bits = 0;
        for label in parts.iter().rev() {
            let [digit] = label else { return None };
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        let bits = bits.checked_shl(128 - 4 * u32::from(count)).unwrap_or(0);
        Some(Ipv6Net::new(Ipv6Addr::from(bits), 4 * count).ok()?.into())
    } else {
        None
    }
}

/// That a service publishes an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Publisher {
    pub(crate) address: IpAddr,
    pub(crate) service: Arc<ServiceKey>,
    pub(crate) holder: Holder,
}

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Holder {
    /// The service itself.
    Service,
    /// An endpoint without a hostname, which is named after the address.
    Unnamed,
    /// An endpoint with this hostname.
    Named(Arc<str>),
}

/// Who publishes which address, for PTR. A persistent set: a copy shares all that did not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Publishers(OrdSet<Publisher>);

impl Publishers {
    /// Who publishes the addresses of a range, address by address.
    pub(crate) fn within(&self, range: IpNet) -> impl Iterator<Item = &Publisher> {
        static FIRST: LazyLock<Arc<ServiceKey>> =
            LazyLock::new(|| Arc::new(ServiceKey::new("", "")));
        let first = Publisher {
            address: range.network(),
            service: Arc::clone(&FIRST),
            holder: Holder::Service,
        };
        self.0
            .range(first..)
            .take_while(move |publisher| range.contains(&publisher.address))
    }

    /// Puts what a service publishes now in the place of what it published.
    pub(crate) fn replace(
        &mut self,
        service: &Arc<ServiceKey>,
        old: Option<&ServiceRecords>,
        new: Option<&ServiceRecords>,
    ) {
        let publisher = |(address, holder)| Publisher {
            address,
            service: Arc::clone(service),
            holder,
        };
        let nothing = ServiceRecords::default();
        let (old, new) = (old.unwrap_or(&nothing), new.unwrap_or(&nothing));
        for own in own(old).map(publisher) {
            self.0.remove(&own);
        }
        for own in own(new).map(publisher) {
            self.0.insert(own);
        }
        for (gone, come) in old.endpoints.differing(&new.endpoints) {
            for publisher in gone.into_iter().flat_map(of_endpoint).map(publisher) {
                self.0.remove(&publisher);
            }
            for publisher in come.into_iter().flat_map(of_endpoint).map(publisher) {
                self.0.insert(publisher);
            }
        }
    }
}

/// The addresses that are the service's own.
fn own(records: &ServiceRecords) -> impl Iterator<Item = (IpAddr, Holder)> {
    let own = (!records.headless).then(|| records.addresses.iter());
    let own = own.into_iter().flatten();
    own.map(|address| (address, Holder::Service))
}

/// The addresses of an endpoint.
fn of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = (IpAddr, Holder)> {
    endpoint.addresses.iter().map(|address| {
        let holder = if *generated_label(address) == *endpoint.label {
            Holder::Unnamed
        } else {
            Holder::Named(Arc::clone(&endpoint.label))
        };
        (address, holder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones(range: &str) -> Vec<String> {
        let zones = zones_of(range.parse().unwrap());
        zones.iter().map(Name::to_string).collect()
    }

    fn range(name: &str) -> Option<String> {
        range_of(Name::parse(name).unwrap().as_wire()).map(|range| range.to_string())
    }

    #[test]
    fn a_range_is_one_zone_or_several() {
        assert_eq!(zones("10.244.0.0/16"), ["244.10.in-addr.arpa."]);
        assert_eq!(zones("0.0.0.0/0"), ["in-addr.arpa."]);
        assert_eq!(zones("::/0"), ["ip6.arpa."]);
        assert_eq!(
            zones("10.2.0.0/15"),
            ["2.10.in-addr.arpa.", "3.10.in-addr.arpa."]
        );
        assert_eq!(zones("10.0.0.128/25").len(), 128);
        assert_eq!(zones("10.0.0.7/32"), ["7.0.0.10.in-addr.arpa."]);
        assert_eq!(zones("fd00:10::/32"), ["0.1.0.0.0.0.d.f.ip6.arpa."]);
        assert_eq!(
            zones("fd00:10::/31"),
            ["0.1.0.0.0.0.d.f.ip6.arpa.", "1.1.0.0.0.0.d.f.ip6.arpa."]
        );
    }

    #[test]
    fn names_stand_for_addresses_and_ranges() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(range("4.3.2.10.in-addr.arpa"), some("10.2.3.4/32"));
        assert_eq!(range("10.in-addr.arpa"), some("10.0.0.0/8"));
        assert_eq!(range("in-addr.arpa"), some("0.0.0.0/0"));
        assert_eq!(range("ip6.arpa"), some("::/0"));
        assert_eq!(range("0.1.0.0.0.0.d.F.ip6.arpa"), some("fd00:10::/32"));
        let host = format!("1.{}0.1.0.0.0.0.d.f.ip6.arpa", "0.".repeat(23));
        assert_eq!(range(&host), some("fd00:10::1/128"));
        let others = [
            "arpa",
            "5.4.3.2.10.in-addr.arpa",
            "256.in-addr.arpa",
            "01.in-addr.arpa",
            "+1.in-addr.arpa",
            "x.10.in-addr.arpa",
            "10.ip6.arpa",
            "g.ip6.arpa",
            "1.in-addr.arpa.example",
            "example",
        ];
        for other in others {
            assert_eq!(range(other), None, "{other}");
        }
        assert_eq!(range(&format!("0.{host}")), None);
    }
}
