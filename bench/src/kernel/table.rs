//! The tables that packets meet.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::SystemTime,
};

use peak_userspace::{
    name::Name,
    snapshot::{Batch, ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};

use super::cases::{DIGITS, STORED};
use crate::frame;

/// What each service of a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Services {
    /// An IPv6 address.
    V6,
    /// An address of each family.
    Dual,
    /// So many IPv6 addresses.
    Several(u16),
    /// An IPv6 address, and a name as long as this.
    Long(&'static str),
    /// An IPv6 address; and beside each there are one that is an alias, and one with more addresses than an answer of 512
    /// bytes holds.
    Special,
}

/// More IPv6 addresses than an answer of 512 bytes holds.
const MANY: u16 = 32;

impl Services {
    /// What the name of a service looks like: `NAME.NAMESPACE.svc.ZONE.`, digits and all.
    const fn pattern(self) -> &'static str {
        match self {
            Self::Long(name) => name,
            _ => STORED,
        }
    }

    fn records(self, service: u32) -> ServiceRecords {
        let first = v6(service, 1);
        ServiceRecords {
            addresses: match self {
                Self::Dual => [first, v4(service)].into_iter().collect(),
                Self::Several(count) => (1..=count).map(|i| v6(service, i)).collect(),
                Self::V6 | Self::Long(_) | Self::Special => [first].into_iter().collect(),
            },
            ..ServiceRecords::default()
        }
    }

    /// The labels of the pattern: service, namespace, and zone.
    fn labels(self) -> (&'static str, &'static str, &'static str) {
        let pattern = self.pattern().trim_end_matches('.');
        let (service, rest) = pattern.split_once('.').expect("a service");
        let (namespace, zone) = rest.split_once(".svc.").expect("a namespace");
        (service, namespace, zone)
    }

    /// What the service of this number is called.
    pub(crate) fn key(self, number: u32) -> ServiceKey {
        let (service, namespace, _) = self.labels();
        let (before, after) = (&service[..DIGITS - 1], &service[DIGITS - 1 + 8..]);
        ServiceKey::new(namespace, format!("{before}{number:08}{after}"))
    }

    /// So many services of this kind.
    pub(crate) fn batch(self, size: u32) -> Batch {
        let mut services: Vec<_> = (0..size)
            .map(|i| (self.key(i), Some(self.records(i))))
            .collect();
        if self == Self::Special {
            for i in 0..size {
                let alias = ServiceRecords {
                    alias: Some(Name::parse("example.com").expect("a name")),
                    ..ServiceRecords::default()
                };
                let (_, namespace, _) = self.labels();
                let key = |kind| ServiceKey::new(namespace, format!("{kind}{i:08}"));
                services.push((key("ext"), Some(alias)));
                services.push((key("big"), Some(Self::Several(MANY).records(i))));
            }
        }
        services.into()
    }

    /// The first snapshot, with these services.
    pub(crate) fn snapshot_of(self, batch: Batch) -> Snapshot {
        let (_, _, zone) = self.labels();
        let (snapshot, _) = Snapshot::empty(SnapshotConfig {
            zones: [Name::parse(zone).expect("a zone")].into(),
            ttl: 5,
            nameservers: [IpAddr::from(frame::SERVER)].into(),
            ..SnapshotConfig::default()
        })
        .with(batch, SystemTime::now());
        snapshot
    }

    /// A snapshot with so many services of this kind.
    pub(crate) fn snapshot(self, size: u32) -> Snapshot {
        self.snapshot_of(self.batch(size))
    }
}

/// An address of a service.
pub(crate) fn v6(service: u32, i: u16) -> IpAddr {
    let [high, low] = [(service >> 16) as u16, service as u16];
    IpAddr::from(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, high, low, i))
}

fn v4(service: u32) -> IpAddr {
    IpAddr::from(Ipv4Addr::from_bits(0x0a80_0000 | service))
}
