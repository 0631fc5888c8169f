//! Kubernetes' API as a source: Services, the EndpointSlices that belong to one, and Pods if need be, listed and then
//! watched.
//!
//! Nothing is published before all has been listed once. From then on what is known stays in force whatever becomes of
//! the API server, and a new list replaces what is known when it is complete.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Client, Resource};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

use self::reflector::{Change, Reflector};
use super::{
    Batch, Kind, Object, ObjectId, Origin, Source, Store,
    annotations::{self, BadAnnotations},
};
use crate::{
    objects::SERVICE_NAME_LABEL,
    pods::{self, PodMode},
    records::RecordPolicy,
    validate::{Problem, Severity},
};

mod access;
mod health;
mod object;
mod reflector;

pub use access::{Access, AccessError};
pub use health::{Health, WatchFigures};

/// How many changes may wait to be taken up.
const CHANGES: usize = 256;

/// What to watch, and how to get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The way to the API server.
    pub access: Access,
    /// The namespaces; none means all.
    pub namespaces: Vec<String>,
}

/// One kind of object in one namespace, or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Watch {
    kind: Kind,
    namespace: Option<Box<str>>,
}

impl Watch {
    fn group(&self) -> &'static str {
        match self.kind {
            Kind::Service | Kind::Pod => "",
            Kind::EndpointSlice => "discovery.k8s.io",
        }
    }

    fn resource(&self) -> &'static str {
        match self.kind {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Pod => "pods",
        }
    }

    /// `endpointslices.discovery.k8s.io`
    fn full_resource(&self) -> String {
        match self.group() {
            "" => self.resource().to_owned(),
            group => format!("{}.{group}", self.resource()),
        }
    }

    fn path(&self) -> String {
        let namespace = self.namespace.as_deref();
        match self.kind {
            Kind::Service => Service::url_path(&(), namespace),
            Kind::EndpointSlice => EndpointSlice::url_path(&(), namespace),
            Kind::Pod => Pod::url_path(&(), namespace),
        }
    }

    /// A slice without this label belongs to no service.
    fn label_selector(&self) -> Option<String> {
        (self.kind == Kind::EndpointSlice).then(|| SERVICE_NAME_LABEL.to_owned())
    }

    /// Pods that have ended are many where jobs are, and nobody is at their addresses any more.
    fn field_selector(&self) -> Option<String> {
        let phases = pods::ENDED.map(|phase| format!("status.phase!={phase}"));
        (self.kind == Kind::Pod).then(|| phases.join(","))
    }

    /// What grants to list and watch it.
    fn role(&self) -> &'static str {
        match self.kind {
            Kind::Service | Kind::EndpointSlice => "deploy/rbac.yaml",
            Kind::Pod => "deploy/rbac-pods.yaml",
        }
    }

    fn holds(&self, id: &ObjectId) -> bool {
        self.kind == id.kind
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| *namespace == id.namespace)
    }
}

/// `services in all namespaces`
impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in ", self.full_resource())?;
        match &self.namespace {
            Some(namespace) => write!(f, "the namespace {namespace}"),
            None => f.write_str("all namespaces"),
        }
    }
}

/// Begins to watch. The API server need not be there yet.
///
/// # Errors
/// There is nothing that says where it is, or who we are.
pub async fn watch(
    config: &KubernetesConfig,
    policy: RecordPolicy,
    pods: PodMode,
) -> Result<Source, AccessError> {
    let (client, server) = config.access.client().await?;
    tracing::info!(server, "services come from the API server");
    Ok(start(
        client,
        server,
        Some(config.access.clone()),
        &config.namespaces,
        policy,
        pods,
    ))
}

fn start(
    client: Client,
    server: String,
    access: Option<Access>,
    namespaces: &[String],
    policy: RecordPolicy,
    pods: PodMode,
) -> Source {
    let mut kinds = vec![Kind::Service, Kind::EndpointSlice];
    kinds.extend((pods == PodMode::Verified).then_some(Kind::Pod));
    let namespaces: Vec<Option<Box<str>>> = match namespaces {
        [] => vec![None],
        some => some.iter().map(|name| Some(name.as_str().into())).collect(),
    };
    let watches: Vec<_> = namespaces
        .into_iter()
        .flat_map(|namespace| {
            kinds.iter().map(move |&kind| Watch {
                kind,
                namespace: namespace.clone(),
            })
        })
        .collect();
    let annotations = BadAnnotations::default();
    let health = Arc::new(Health::new(server, &watches, annotations.count()));
    let (sender, changes) = mpsc::channel(CHANGES);
    let mut reflectors = JoinSet::new();
    for (index, watch) in watches.iter().enumerate() {
        let reflector = Reflector {
            index,
            watch: watch.clone(),
            access: access.clone(),
            client: client.clone(),
            health: Arc::clone(&health),
            changes: sender.clone(),
        };
        reflectors.spawn(reflector.run());
    }
    // One batch may wait while another is written; what changes meanwhile becomes the next.
    let (batches, receiver) = mpsc::channel(1);
    let cluster = Cluster {
        store: Store::new(policy),
        annotations,
        unlisted: (0..watches.len()).collect(),
        watches,
    };
    let running = tokio::spawn(cluster.run(reflectors, changes, batches));
    Source {
        batches: receiver,
        origin: Arc::new(Origin::Kubernetes(health)),
        _running: Box::new(Running(running)),
    }
}

/// Ends the task when it is dropped.
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What is known of the cluster.
struct Cluster {
    store: Store,
    annotations: BadAnnotations,
    watches: Vec<Watch>,
    /// The watches that have not been listed yet.
    unlisted: HashSet<usize>,
}

impl Cluster {
    /// Until nobody takes batches any more, or a reflector dies.
    async fn run(
        mut self,
        mut reflectors: JoinSet<()>,
        mut changes: mpsc::Receiver<(usize, Change)>,
        batches: mpsc::Sender<Batch>,
    ) {
        let mut first = true;
        loop {
            let due = self.unlisted.is_empty() && (first || self.store.has_changes());
            tokio::select! {
                // Before more changes are taken: one alone is published at once.
                biased;
                room = batches.reserve(), if due => {
                    let Ok(room) = room else { return };
                    room.send(self.store.take_batch());
                    first = false;
                }
                change = changes.recv() => {
                    let Some((watch, change)) = change else { return };
                    self.take(watch, change);
                }
                _ = reflectors.join_next() => return,
            }
        }
    }

    fn take(&mut self, watch: usize, change: Change) {
        match change {
            Change::Set(id, object) => self.set(&id, object),
            Change::Deleted(id) => self.remove(&id),
            Change::Listed {
                objects,
                unreadable,
            } => {
                let mut gone: BTreeSet<_> = self.store.ids(|id| self.watches[watch].holds(id));
                for id in objects.iter().map(|(id, _)| id).chain(&unreadable) {
                    gone.remove(id);
                }
                for (id, object) in objects {
                    self.set(&id, object);
                }
                for id in gone {
                    self.remove(&id);
                }
                self.unlisted.remove(&watch);
            }
        }
    }

    fn remove(&mut self, id: &ObjectId) {
        self.annotations.note(id, &[]);
        self.store.set(id, None);
    }

    fn set(&mut self, id: &ObjectId, object: Object) {
        let problems = object.problems().to_vec();
        if !self.store.set(id, Some(object)) {
            return;
        }
        let is_news = self.annotations.note(id, &problems);
        for problem in problems {
            let Problem { field, message, .. } = &problem;
            match problem.severity {
                Severity::Error => {
                    tracing::warn!("{id}: {field}: {message} (the rest of it is used)");
                }
                // What somebody has said to Peak alone, nobody else tells them. Once will do.
                Severity::Warning if is_news && annotations::is_ours(field) => {
                    tracing::warn!("{id}: {field}: {message}");
                }
                Severity::Warning => tracing::debug!("{id}: {field}: {message}"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
