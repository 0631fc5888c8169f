//! What a running agent knows of itself, for commands and metrics.

use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use domain::{
    base::{Message, MessageBuilder, Name as WireName, iana::Rtype},
    rdata::AllRecordData,
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    dataplane::{
        attach::{InterfaceFigures, Mode},
        live::Dataplane,
        table::Stats,
    },
    fallback::{
        Counters, Figures, Transport,
        answer::{Policy, Reaction, answer},
    },
    name::Name,
    snapshot::Snapshot,
    source::{Origin, SourceFigures},
};

/// What the parts of the agent share.
pub struct State {
    /// What the fallback answers from; the kernel's table is never behind it.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Where services come from.
    pub source: Arc<Origin>,
    /// The kernel's side, unless it is off.
    pub dataplane: Option<Arc<Dataplane>>,
    /// What the fallback counts.
    pub fallback: Arc<Counters>,
    /// The interfaces that were named.
    pub interfaces: Vec<String>,
    /// Cancelled when the agent is to end: what is under way is answered still, and nothing new should come.
    pub drain: CancellationToken,
}

/// What `peak status` says. Its fields are the keys of `--output json`.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The first complete snapshot is served, by the kernel too, and the agent is not about to end.
    pub ready: bool,
    /// The agent's version.
    pub version: &'static str,
    /// The zones, without the final dot.
    pub zones: Vec<String>,
    /// Where services come from, and how that fares.
    pub source: SourceFigures,
    /// The snapshot in force.
    pub snapshot: SnapshotFigures,
    /// The kernel's table, unless the kernel is off.
    pub kernel: Option<KernelFigures>,
    /// Each interface that was named.
    pub interfaces: Vec<InterfaceFigures>,
    /// What the fallback did.
    pub fallback: Figures,
}

/// The snapshot's number, size and age.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotFigures {
    /// Grows with each change.
    pub generation: u64,
    /// Serial of the zones' SOA.
    pub serial: u32,
    /// How many names it has.
    pub names: usize,
    /// How many records.
    pub records: usize,
    /// How long it has been in force, in seconds.
    pub age_seconds: f64,
}

/// The kernel's table and switch.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFigures {
    /// The operator lets the kernel answer.
    pub enabled: bool,
    /// The table's figures.
    pub table: Stats,
}

/// What `peak lookup` says. Its fields are the keys of `--output json`.
#[derive(Clone, Debug, Serialize)]
pub struct LookupResult {
    /// The name, without the final dot.
    pub name: String,
    /// The type asked for.
    #[serde(rename = "type")]
    pub record_type: String,
    /// What the snapshot answers.
    pub rcode: String,
    /// The data of the answer's records, as zone files write it.
    pub records: Vec<String>,
    /// Their TTL, in seconds.
    pub ttl: Option<u32>,
    /// The kernel's table holds the name, with these addresses.
    pub in_kernel: bool,
}

impl State {
    /// Whether queries should come here: the first complete snapshot is in force, and the agent is not draining.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.snapshot.load().complete() && !self.drain.is_cancelled()
    }

    /// How old the snapshot is; nothing before the first.
    #[must_use]
    pub fn age(&self) -> Duration {
        let snapshot = self.snapshot.load();
        if !snapshot.complete() {
            return Duration::ZERO;
        }
        SystemTime::now()
            .duration_since(snapshot.created())
            .unwrap_or_default()
    }

    /// What `peak status` says.
    ///
    /// # Errors
    /// The kernel does not tell its counters.
    pub fn status(&self) -> io::Result<Status> {
        let snapshot = self.snapshot.load();
        Ok(Status {
            ready: self.ready(),
            version: env!("CARGO_PKG_VERSION"),
            zones: snapshot
                .zones()
                .iter()
                .map(|zone| without_dot(&zone.name))
                .collect(),
            source: self.source.figures(),
            snapshot: SnapshotFigures {
                generation: snapshot.generation(),
                serial: snapshot.serial(),
                names: snapshot.name_count(),
                records: snapshot.record_count(),
                age_seconds: self.age().as_secs_f64(),
            },
            kernel: self.dataplane.as_ref().map(|dataplane| KernelFigures {
                enabled: dataplane.enabled(),
                table: dataplane.stats(),
            }),
            interfaces: self.interfaces()?,
            fallback: self.fallback.figures(),
        })
    }

    /// Each interface that was named, with what was counted there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn interfaces(&self) -> io::Result<Vec<InterfaceFigures>> {
        let mut figures: BTreeMap<_, _> = match &self.dataplane {
            Some(dataplane) => dataplane.figures()?,
            None => Vec::new(),
        }
        .into_iter()
        .map(|figures| (figures.name.clone(), figures))
        .collect();
        Ok(self
            .interfaces
            .iter()
            .map(|name| {
                figures
                    .remove(name)
                    .unwrap_or_else(|| InterfaceFigures::new(name.clone(), Mode::Off, &[]))
            })
            .collect())
    }

    /// What the snapshot says of a name, and whether the kernel's table says the same.
    ///
    /// # Errors
    /// The type is none.
    pub fn lookup(&self, name: &Name, record_type: &str) -> Result<LookupResult> {
        let snapshot = self.snapshot.load();
        let qtype: Rtype = record_type
            .parse()
            .ok()
            .with_context(|| format!("{record_type} is no type of record that is known here"))?;
        let mut query = MessageBuilder::new_vec().question();
        query.push((WireName::from_slice(name.as_wire())?, qtype))?;
        let mut octets = Vec::new();
        let Reaction::Reply(reply) = answer(
            &query.finish(),
            Transport::Tcp,
            std::net::Ipv6Addr::LOCALHOST.into(),
            &snapshot,
            &Policy::default(),
            0,
            &mut octets,
        ) else {
            bail!("the snapshot has no answer to {name} {record_type}");
        };
        let message = Message::from_octets(&octets)?;
        let (mut records, mut ttl) = (Vec::new(), None);
        for record in message.answer()?.limit_to::<AllRecordData<_, _>>() {
            let record = record?;
            ttl = Some(record.ttl().as_secs());
            records.push(record.data().to_string());
        }
        let in_kernel = self
            .dataplane
            .as_ref()
            .and_then(|dataplane| dataplane.lookup(name))
            .is_some_and(|held| {
                use crate::snapshot::Lookup;
                matches!(
                    snapshot.lookup(name.as_wire()),
                    Lookup::Present { node, .. }
                        if *node.addresses == held.addresses && !node.asks_fallback()
                )
            });
        Ok(LookupResult {
            name: without_dot(name),
            record_type: record_type.to_owned(),
            rcode: reply.rcode.to_string(),
            records,
            ttl,
            in_kernel,
        })
    }

    /// The operator's switch.
    ///
    /// # Errors
    /// There is no program to switch.
    pub fn set_enabled(&self, enabled: bool) -> Result<()> {
        let Some(dataplane) = &self.dataplane else {
            bail!(
                "the agent has no kernel program: it runs with --xdp off, or without an interface"
            );
        };
        dataplane.set_enabled(enabled);
        tracing::info!(enabled, "the operator has switched the kernel");
        Ok(())
    }
}

fn without_dot(name: &Name) -> String {
    let mut text = name.to_string();
    if text.len() > 1 {
        text.pop();
    }
    text
}
