//! The zone, and Peak serving it.

use std::{fmt::Write, fs, net::Ipv6Addr};

use anyhow::Result;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use peak_tests::{Counted, Peak, scratch};
use tempfile::TempDir;

use crate::{
    load::{
        Queries,
        answer::{self, AA, QR, RD},
    },
    rig::Rig,
};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The XDP program.
    Kernel,
    /// The agent alone.
    Fallback,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Kernel, Self::Fallback];

    /// As reports name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kernel => "peak",
            Self::Fallback => "peak-fallback",
        }
    }

    /// `--xdp`
    fn mode(self) -> &'static str {
        match self {
            Self::Kernel => "native",
            Self::Fallback => "off",
        }
    }

    /// How many of these answers are its.
    pub(super) fn of(self, counted: Counted) -> u64 {
        match self {
            Self::Kernel => counted.kernel,
            Self::Fallback => counted.fallback,
        }
    }
}

/// Of all records, seconds.
const TTL: u32 = 5;

/// Headless services with one IPv6 address each, whose names take 40 bytes of a query.
pub(super) struct Zone {
    manifests: TempDir,
    services: u32,
    queries: Queries,
    /// Which service each query asks for.
    asked: Vec<u32>,
}

impl Zone {
    /// # Errors
    /// There is no room for temporary files.
    pub(super) fn new(services: u32) -> Result<Self> {
        let manifests = scratch()?;
        let mut text = String::new();
        for service in 0..services {
            let name = name(service);
            let address = address(service);
            write!(
                text,
                "---
apiVersion: v1
kind: Service
metadata: {{namespace: workload, name: {name}}}
spec: {{clusterIP: None, ipFamilies: [IPv6], ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: workload, name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv6
ports: []
endpoints: [{{addresses: [\"{address}\"]}}]
"
            )?;
        }
        fs::write(manifests.path().join("services.yaml"), text)?;
        // Each as often as the others, in no order that could be learnt.
        let mut asked: Vec<_> = (0..services).flat_map(|service| [service; 8]).collect();
        fastrand::shuffle(&mut asked);
        let messages = asked.iter().map(|&service| query(service));
        Ok(Self {
            manifests,
            services,
            queries: Queries::new(messages.collect::<Result<Vec<_>>>()?)?,
            asked,
        })
    }

    /// What is asked.
    pub(super) fn queries(&self) -> &Queries {
        &self.queries
    }

    /// How many services there are.
    pub(super) fn services(&self) -> u32 {
        self.services
    }

    /// What the reply to a query for a service has to be.
    pub(super) fn answer_for(&self, service: u32, query: &[u8]) -> Vec<u8> {
        answer::aaaa(query, QR | AA | RD, TTL, address(service))
    }

    /// What the reply to a query has to be.
    pub(super) fn answer(&self, number: usize, query: &[u8]) -> Vec<u8> {
        self.answer_for(self.asked[number], query)
    }

    /// Starts Peak on the node's end.
    ///
    /// # Errors
    /// As [`Peak::start`].
    pub(super) fn serve(&self, rig: &Rig, kind: Kind) -> Result<Peak> {
        let manifests = self.manifests.path().as_os_str();
        let arguments = [
            "--interface",
            &rig.node.interface,
            "--xdp",
            kind.mode(),
            "--manifests",
        ];
        let arguments = arguments
            .iter()
            .map(|argument| argument.as_ref())
            .chain([manifests]);
        rig.on_server_cpu(|| Peak::start(&rig.node.namespace, arguments))?
    }
}

fn name(service: u32) -> String {
    format!("web{service:08}")
}

fn address(service: u32) -> Ipv6Addr {
    let [high, low] = [(service >> 16) as u16, service as u16];
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, high, low, 1)
}

fn query(service: u32) -> Result<Vec<u8>> {
    let name = Name::from_ascii(format!("{}.workload.svc.cluster.local.", name(service)))?;
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::AAAA));
    Ok(message.to_vec()?)
}
