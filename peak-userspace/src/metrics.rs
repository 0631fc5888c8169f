//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    dataplane::attach::{InterfaceFigures, Mode},
    fallback::Figures,
    source::{SourceFigures, SourceState, kubernetes::WatchFigures},
    state::{State, Status},
};

/// Version 1.0.0 of OpenMetrics, which every Prometheus of the last years reads.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at one time; others wait.
const CONNECTIONS: usize = 64;
/// How long one may last. Who holds one for nothing has it no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the port.
///
/// # Errors
/// It can't be had.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| {
        format!("can't serve metrics at {address}: name another place with --metrics ADDRESS:PORT")
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers, for as long as this is polled.
///
/// # Errors
/// The system's.
pub async fn serve(listener: TcpListener, state: Arc<State>) -> Result<()> {
    let mut registry = Registry::with_prefix("peak");
    registry.register_collector(Box::new(StateCollector(Arc::clone(&state))));
    let registry = Arc::new(registry);
    let metrics = move || async move {
        let mut text = String::new();
        match encode(&mut text, &registry) {
            Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
            Err(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the kernel does not tell its counters\n",
            )
                .into_response(),
        }
    };
    let ready = move || async move {
        if state.ready() {
            (StatusCode::OK, "ready\n")
        } else if state.drain.is_cancelled() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "the first complete snapshot is not there yet\n",
            )
        }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready));
    let listener = tokio::net::TcpListener::from_std(listener)?;
    // axum::serve would take any number of connections, and wait for ever for what they ask.
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => TokioIo::new(stream),
            Err(error) => {
                debug!(%error, "accepting a connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = timeout(PATIENCE, server.serve_connection(stream, service)).await;
            drop(permit);
        });
    }
}

/// Reads everything at the moment it is asked for.
struct StateCollector(Arc<State>);

impl fmt::Debug for StateCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateCollector")
    }
}

impl Collector for StateCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let status = self.0.status().map_err(|_| fmt::Error)?;
        Metrics { encoder }.write(&status)
    }
}

/// Packets by reason.
type Reasons = fn(&InterfaceFigures) -> &BTreeMap<&'static str, u64>;

struct Metrics<'a> {
    encoder: DescriptorEncoder<'a>,
}

impl Metrics<'_> {
    fn write(&mut self, status: &Status) -> fmt::Result {
        self.encoder
            .encode_descriptor("build", "The agent's version.", None, MetricType::Info)?
            .encode_info(&[("version", status.version)])?;
        let flag = |is: bool| f64::from(u8::from(is));
        self.gauge(
            "ready",
            "Whether the first complete snapshot is served and the agent is not draining.",
            None,
            flag(status.ready),
        )?;
        let snapshot = &status.snapshot;
        self.gauge(
            "snapshot_generation",
            "Changes since the start.",
            None,
            snapshot.generation as f64,
        )?;
        self.gauge(
            "snapshot_names",
            "Names in the snapshot.",
            None,
            snapshot.names as f64,
        )?;
        self.gauge(
            "snapshot_records",
            "Records in the snapshot.",
            None,
            snapshot.records as f64,
        )?;
        // Before the first snapshot there is no age: a zero would be the youngest of all.
        if snapshot.generation > 0 {
            self.gauge(
                "snapshot_age",
                "Time since the last change.",
                Some(Unit::Seconds),
                snapshot.age_seconds,
            )?;
        }
        self.source(&status.source)?;
        if let Some(kernel) = &status.kernel {
            let table = &kernel.table;
            let segments = u64::from(table.heap_segments + table.index_segments);
            self.gauge(
                "kernel_enabled",
                "Whether the operator lets the kernel answer.",
                None,
                flag(kernel.enabled),
            )?;
            self.gauge(
                "kernel_names",
                "Names in the kernel's table.",
                None,
                table.names as f64,
            )?;
            self.gauge(
                "kernel_unstored_names",
                "Names that the kernel leaves to the fallback for want of room.",
                None,
                table.unstored as f64,
            )?;
            self.gauge(
                "kernel_table",
                "Memory of the kernel's table.",
                Some(Unit::Bytes),
                (segments << 20) as f64,
            )?;
            self.total(
                "kernel_rehashes",
                "New indexes of the kernel's table.",
                table.rehashes,
            )?;
        }
        let interfaces = &status.interfaces;
        let mut attached = self.encoder.encode_descriptor(
            "kernel_attached",
            "How the kernel's program is attached to the interface: 1 for the mode that it is.",
            None,
            MetricType::Gauge,
        )?;
        for interface in interfaces {
            for mode in [Mode::Native, Mode::Generic, Mode::Off] {
                attached
                    .encode_family(&[("interface", &*interface.name), ("mode", mode.as_str())])?
                    .encode_gauge(&flag(interface.mode == mode))?;
            }
        }
        self.counter(
            "kernel_answers",
            "Queries that the kernel answered.",
            interfaces.iter().flat_map(|interface| {
                interface
                    .answers
                    .iter()
                    .flat_map(move |(query_type, outcomes)| {
                        outcomes.iter().map(move |(outcome, count)| {
                            let labels = [
                                ("interface", &*interface.name),
                                ("type", query_type),
                                ("outcome", outcome),
                            ];
                            (labels, *count)
                        })
                    })
            }),
        )?;
        for (name, help, of) in [
            (
                "kernel_passed_packets",
                "Packets that the kernel's program left to the stack.",
                (|interface| &interface.passed) as Reasons,
            ),
            (
                "kernel_aborted_packets",
                "Packets that the kernel's program dropped half-written.",
                |interface| &interface.aborted,
            ),
        ] {
            let samples = interfaces.iter().flat_map(|interface| {
                let counts: &std::collections::BTreeMap<&'static str, u64> = of(interface);
                counts.iter().map(move |(reason, count)| {
                    (
                        [("interface", &*interface.name), ("reason", reason)],
                        *count,
                    )
                })
            });
            self.counter(name, help, samples)?;
        }
        self.fallback(&status.fallback)
    }

    fn source(&mut self, source: &SourceFigures) -> fmt::Result {
        let flag = |is: bool| f64::from(u8::from(is));
        self.encoder
            .encode_descriptor(
                "source",
                "Where services come from.",
                None,
                MetricType::Info,
            )?
            .encode_info(&[("kind", source.kind)])?;
        self.gauge(
            "source_current",
            "Whether all that is served is known to be what there is now.",
            None,
            flag(source.state == SourceState::Current),
        )?;
        if let Some(age) = source.age_seconds {
            self.gauge(
                "source_age",
                "Time since the API server was heard last: a minute or two while all is well.",
                Some(Unit::Seconds),
                age,
            )?;
        }
        self.gauge(
            "source_bad_annotations",
            "Services with a peak/answers that makes no sense: the agent's default applies.",
            None,
            source.bad_annotations as f64,
        )?;
        if source.watches.is_empty() {
            return Ok(());
        }
        let mut trouble = self.encoder.encode_descriptor(
            "source_trouble",
            "What keeps the API server from being watched: 1 for what does.",
            None,
            MetricType::Gauge,
        )?;
        for (reason, is) in &source.troubles {
            trouble
                .encode_family(&[("reason", *reason)])?
                .encode_gauge(&flag(*is))?;
        }
        for (name, help, of) in [
            (
                "source_lists",
                "Complete lists of the API's objects.",
                (|watch| watch.lists) as fn(&WatchFigures) -> u64,
            ),
            ("source_events", "Events of the API's watches.", |watch| {
                watch.events
            }),
            (
                "source_unreadable_objects",
                "Versions of an object that could not be read.",
                |watch| watch.unreadable,
            ),
        ] {
            let mut counts = BTreeMap::new();
            for watch in &source.watches {
                *counts.entry(&*watch.resource).or_default() += of(watch);
            }
            let samples = counts
                .into_iter()
                .map(|(resource, count): (&str, u64)| ([("resource", resource)], count));
            self.counter(name, help, samples)?;
        }
        Ok(())
    }

    fn fallback(&mut self, figures: &Figures) -> fmt::Result {
        let queries = [("udp", figures.udp), ("tcp", figures.tcp)];
        self.labelled(
            "fallback_queries",
            "Messages that came to the fallback.",
            "transport",
            &queries,
        )?;
        let replies = [
            ("NOERROR", figures.noerror),
            ("FORMERR", figures.formerr),
            ("SERVFAIL", figures.servfail),
            ("NXDOMAIN", figures.nxdomain),
            ("NOTIMP", figures.notimp),
            ("REFUSED", figures.refused),
            ("BADVERS", figures.badvers),
            ("other", figures.other_rcode),
        ];
        self.labelled(
            "fallback_replies",
            "Replies of the fallback.",
            "rcode",
            &replies,
        )?;
        let truncated = [
            ("udp", figures.udp_truncated),
            ("tcp", figures.tcp_truncated),
        ];
        self.labelled(
            "fallback_truncated_replies",
            "Replies with TC.",
            "transport",
            &truncated,
        )?;
        let ignored = [
            ("response", figures.ignored_responses),
            ("short", figures.ignored_short),
            ("port_zero", figures.ignored_port_zero),
        ];
        self.labelled(
            "fallback_ignored",
            "Messages that got no reply.",
            "reason",
            &ignored,
        )?;
        let closed = [
            ("evicted", figures.connections_evicted),
            ("refused", figures.connections_refused),
            ("timed_out", figures.connections_timed_out),
        ];
        self.labelled(
            "fallback_connections_closed",
            "TCP connections that the fallback ended.",
            "reason",
            &closed,
        )?;
        for (name, help, count) in [
            (
                "fallback_replies_dropped",
                "Replies that the network did not take.",
                figures.replies_dropped,
            ),
            (
                "fallback_connections_accepted",
                "TCP connections taken.",
                figures.connections_accepted,
            ),
            (
                "forwarded_queries",
                "Questions for names outside the zones.",
                figures.forwarded,
            ),
            (
                "forwarded_cached",
                "Of these, answered from the cache.",
                figures.forward_cached,
            ),
            (
                "forwarded_joined",
                "Of these, joined to one under way.",
                figures.forward_joined,
            ),
            (
                "forwarded_failed",
                "Of these, without an answer.",
                figures.forward_failed,
            ),
            (
                "forwarded_overload",
                "Questions refused because too many were under way.",
                figures.forward_overload,
            ),
            (
                "forwarded_loops",
                "Questions that came back through an upstream.",
                figures.loops,
            ),
        ] {
            self.total(name, help, count)?;
        }
        self.gauge(
            "fallback_connections_open",
            "TCP connections open.",
            None,
            figures.connections_open as f64,
        )?;
        self.gauge(
            "forwarded_pending",
            "Questions that wait for upstreams.",
            None,
            figures.forwarding as f64,
        )
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?
            .encode_gauge(&value)
    }

    fn total(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        self.encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    fn labelled(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        counts: &[(&'static str, u64)],
    ) -> fmt::Result {
        self.counter(
            name,
            help,
            counts
                .iter()
                .map(|(value, count)| ([(label, *value)], *count)),
        )
    }

    fn counter<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in samples {
            metric
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows a source's figures alone.
    #[derive(Debug)]
    struct OfSource(SourceFigures);

    impl Collector for OfSource {
        fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
            Metrics { encoder }.source(&self.0)
        }
    }

    /// The samples, without what describes them.
    fn samples(source: SourceFigures) -> Vec<String> {
        let mut registry = Registry::with_prefix("peak");
        registry.register_collector(Box::new(OfSource(source)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(str::to_owned).collect()
    }

    fn watch(resource: &str, namespace: &str, count: u64) -> WatchFigures {
        WatchFigures {
            resource: resource.to_owned(),
            namespace: Some(namespace.to_owned()),
            listed: true,
            lists: count,
            events: 10 * count,
            unreadable: 100 * count,
            heard_seconds_ago: Some(1.0),
            trouble: None,
        }
    }

    #[test]
    fn a_source_is_told_kind_by_kind() {
        let cluster = SourceFigures {
            kind: "kubernetes",
            from: "https://server".to_owned(),
            state: SourceState::Stale,
            age_seconds: Some(2.5),
            bad_annotations: 3,
            troubles: vec![("unreachable", false), ("forbidden", true)],
            watches: vec![
                watch("services", "shop", 1),
                watch("pods", "shop", 7),
                watch("services", "web", 2),
            ],
        };
        let expected = [
            r#"peak_source_info{kind="kubernetes"} 1"#,
            "peak_source_current 0.0",
            "peak_source_age_seconds 2.5",
            "peak_source_bad_annotations 3.0",
            r#"peak_source_trouble{reason="unreachable"} 0.0"#,
            r#"peak_source_trouble{reason="forbidden"} 1.0"#,
            r#"peak_source_lists_total{resource="pods"} 7"#,
            r#"peak_source_lists_total{resource="services"} 3"#,
            r#"peak_source_events_total{resource="pods"} 70"#,
            r#"peak_source_events_total{resource="services"} 30"#,
            r#"peak_source_unreadable_objects_total{resource="pods"} 700"#,
            r#"peak_source_unreadable_objects_total{resource="services"} 300"#,
        ];
        assert_eq!(samples(cluster), expected);
    }

    #[test]
    fn a_folder_has_neither_age_nor_watches() {
        let folder = SourceFigures {
            kind: "manifests",
            from: "/etc/peak".to_owned(),
            state: SourceState::Current,
            age_seconds: None,
            bad_annotations: 0,
            troubles: Vec::new(),
            watches: Vec::new(),
        };
        let expected = [
            r#"peak_source_info{kind="manifests"} 1"#,
            "peak_source_current 1.0",
            "peak_source_bad_annotations 0.0",
        ];
        assert_eq!(samples(folder), expected);
    }
}
