//! Where services come from. A source is a stream of batches; which objects stand behind them is its own affair.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;
use tokio::sync::mpsc;

use self::kubernetes::{Health, WatchFigures};
pub use crate::snapshot::Batch;
use crate::{
    objects::{EndpointSlice, Service},
    pods::PodStore,
    records::{Merged, RecordPolicy},
    snapshot::{ServiceKey, ServiceRecords},
    validate::Problem,
};

mod annotations;
mod document;
pub mod kubernetes;
pub mod manifests;
mod watches;

/// A running source.
pub struct Source {
    batches: mpsc::Receiver<Batch>,
    origin: Arc<Origin>,
    /// Ends the source when it is dropped.
    _running: Box<dyn Send + Sync>,
}

impl Source {
    /// The next batch: the first is complete, and may be empty. `None` when the source has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// Where they come from.
    #[must_use]
    pub fn origin(&self) -> Arc<Origin> {
        Arc::clone(&self.origin)
    }
}

/// Where services come from.
#[derive(Debug)]
pub enum Origin {
    /// A folder of manifests.
    Manifests {
        /// The folder.
        folder: PathBuf,
        /// How many services have an annotation that makes no sense.
        bad_annotations: Arc<AtomicUsize>,
    },
    /// Kubernetes' API.
    Kubernetes(Arc<Health>),
}

impl Origin {
    /// How it fares.
    #[must_use]
    pub fn figures(&self) -> SourceFigures {
        match self {
            Self::Manifests {
                folder,
                bad_annotations,
            } => SourceFigures {
                kind: "manifests",
                from: folder.display().to_string(),
                state: SourceState::Current,
                age_seconds: None,
                bad_annotations: bad_annotations.load(Ordering::Relaxed),
                troubles: Vec::new(),
                watches: Vec::new(),
            },
            Self::Kubernetes(health) => health.figures(),
        }
    }
}

/// How a source fares. Its fields are keys of `peak status --output json`.
#[derive(Clone, Debug, Serialize)]
pub struct SourceFigures {
    /// `manifests` or `kubernetes`.
    pub kind: &'static str,
    /// The folder, or the API server's URL.
    pub from: String,
    /// Whether what is known is what there is.
    pub state: SourceState,
    /// How long ago the API server was heard last, in seconds: by the watch that has heard least. It sends a sign of life
    /// each minute.
    pub age_seconds: Option<f64>,
    /// How many services have an annotation for Peak that makes no sense.
    pub bad_annotations: usize,
    /// The troubles that there may be, and whether there are.
    #[serde(skip)]
    pub troubles: Vec<(&'static str, bool)>,
    /// Each watch of the API.
    pub watches: Vec<WatchFigures>,
}

/// Whether what is known is what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Not everything has been listed yet.
    Syncing,
    /// It is.
    Current,
    /// A watch can't go on: what was known stays in force.
    Stale,
}

/// The kinds of object that records are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Service,
    EndpointSlice,
    Pod,
}

/// Which object it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ObjectId {
    kind: Kind,
    namespace: Box<str>,
    name: Box<str>,
}

impl ObjectId {
    fn service(namespace: Box<str>, name: Box<str>) -> Self {
        Self {
            kind: Kind::Service,
            namespace,
            name,
        }
    }

    fn endpoint_slice(namespace: Box<str>, name: Box<str>) -> Self {
        Self {
            kind: Kind::EndpointSlice,
            namespace,
            name,
        }
    }

    fn pod(namespace: Box<str>, name: Box<str>) -> Self {
        Self {
            kind: Kind::Pod,
            namespace,
            name,
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// An object that records are made of.
#[derive(Clone, Debug, PartialEq)]
enum Object {
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    /// Of a pod only its addresses matter.
    Pod(Arc<[IpAddr]>),
}

impl Object {
    /// What is wrong with it.
    fn problems(&self) -> &[Problem] {
        match self {
            Self::Service(service) => &service.problems,
            Self::EndpointSlice(slice) => &slice.problems,
            // What is wrong with one was said when it was read.
            Self::Pod(_) => &[],
        }
    }
}

/// The objects by service, and what they changed since the last batch.
#[derive(Debug, Default)]
struct Store {
    policy: RecordPolicy,
    services: BTreeMap<ServiceKey, Entry>,
    /// The service that each slice belongs to.
    owners: HashMap<ObjectId, ServiceKey>,
    touched: BTreeMap<ServiceKey, Touched>,
    pods: PodStore,
}

/// A service, the slices that belong to it, and what both came to in the last batch. Each may be missing.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    slices: BTreeMap<Box<str>, Arc<EndpointSlice>>,
    merged: Option<Merged>,
}

/// What became another since the last batch.
#[derive(Debug, Default)]
struct Touched {
    service: bool,
    /// What the slices were then.
    slices: BTreeMap<Box<str>, Option<Arc<EndpointSlice>>>,
}

impl Store {
    fn new(policy: RecordPolicy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Puts an object in the place of its predecessor, or takes it away. `false` if that changed nothing.
    fn set(&mut self, id: &ObjectId, object: Option<Object>) -> bool {
        match id.kind {
            Kind::Service => {
                let service = match object {
                    Some(Object::Service(service)) => Some(service),
                    _ => None,
                };
                let key = ServiceKey::new(id.namespace.clone(), id.name.clone());
                let old = self.services.get(&key).and_then(|of| of.service.as_ref());
                if old == service.as_ref() {
                    return false;
                }
                self.touched.entry(key.clone()).or_default().service = true;
                self.services.entry(key).or_default().service = service;
                true
            }
            Kind::EndpointSlice => {
                let slice = match object {
                    Some(Object::EndpointSlice(slice)) => Some(slice),
                    _ => None,
                };
                let owner = slice.as_ref().and_then(|slice| {
                    let service = slice.service.clone()?;
                    Some(ServiceKey::new(id.namespace.clone(), service))
                });
                let left = match self.owners.get(id) {
                    Some(old) if Some(old) != owner.as_ref() => self.owners.remove(id),
                    _ => None,
                };
                let left = left.is_some_and(|old| self.set_slice(old, &id.name, None));
                let Some(owner) = owner else { return left };
                if !self.owners.contains_key(id) {
                    self.owners.insert(id.clone(), owner.clone());
                }
                self.set_slice(owner, &id.name, slice) || left
            }
            Kind::Pod => {
                let addresses = match object {
                    Some(Object::Pod(addresses)) => Some(addresses),
                    _ => None,
                };
                self.pods
                    .set((id.namespace.clone(), id.name.clone()), addresses)
            }
        }
    }

    fn set_slice(
        &mut self,
        owner: ServiceKey,
        name: &str,
        mut slice: Option<Arc<EndpointSlice>>,
    ) -> bool {
        let slices = &mut self.services.entry(owner.clone()).or_default().slices;
        let old = slices.get(name);
        if old == slice.as_ref() {
            return false;
        }
        if let (Some(old), Some(new)) = (old, slice.as_mut().and_then(Arc::get_mut)) {
            new.share(old);
        }
        let old = match slice {
            Some(slice) => slices.insert(name.into(), slice),
            None => slices.remove(name),
        };
        let now = slices.contains_key(name);
        let touched = self.touched.entry(owner.clone()).or_default();
        let before = touched.slices.entry(name.into()).or_insert(old);
        // It came and went. As long as nobody takes batches, many may.
        if before.is_none() && !now {
            touched.slices.remove(name);
            if touched.slices.is_empty() && !touched.service {
                self.touched.remove(&owner);
                self.forget_if_empty(&owner);
            }
        }
        true
    }

    fn forget_if_empty(&mut self, key: &ServiceKey) {
        let entry = self.services.get(key);
        if entry
            .is_some_and(|of| of.service.is_none() && of.slices.is_empty() && of.merged.is_none())
        {
            self.services.remove(key);
        }
    }

    /// The objects that are there and wanted.
    fn ids(&self, wanted: impl Fn(&ObjectId) -> bool) -> BTreeSet<ObjectId> {
        let services = self.services.iter().filter(|(_, of)| of.service.is_some());
        let services =
            services.map(|(key, _)| ObjectId::service(key.namespace.clone(), key.name.clone()));
        let pods = self.pods.ids().cloned();
        services
            .chain(self.owners.keys().cloned())
            .chain(pods.map(|(namespace, name)| ObjectId::pod(namespace, name)))
            .filter(wanted)
            .collect()
    }

    /// Whether the next batch would say anything.
    fn has_changes(&self) -> bool {
        !self.touched.is_empty() || self.pods.has_changes()
    }

    /// What the services that were touched since the last batch publish now, and the pods.
    fn take_batch(&mut self) -> Batch {
        let touched = std::mem::take(&mut self.touched);
        let records = |(key, touched): (ServiceKey, Touched)| {
            let entry = self.services.get_mut(&key).expect("what was touched");
            let records = entry.merge(&touched, &self.policy);
            self.forget_if_empty(&key);
            (key, records)
        };
        Batch {
            services: touched.into_iter().map(records).collect(),
            pods: self.pods.take_batch(),
        }
    }
}

impl Entry {
    fn merge(&mut self, touched: &Touched, policy: &RecordPolicy) -> Option<ServiceRecords> {
        let Self {
            service,
            slices,
            merged,
        } = self;
        let service = service.as_deref();
        let all = slices.values().map(Arc::as_ref);
        match (service, merged.as_mut().filter(|_| !touched.service)) {
            (None, _) => *merged = None,
            (Some(service), None) => *merged = Some(Merged::new(service, all, policy)),
            (Some(service), Some(merged)) => {
                let replaced = touched.slices.iter();
                let replaced: Vec<_> = replaced
                    .map(|(name, old)| (old.as_deref(), slices.get(name).map(Arc::as_ref)))
                    .collect();
                merged.replace(service, &replaced, all, policy);
            }
        }
        merged.as_ref().map(|merged| merged.records.clone())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        core::v1::Service as ApiService, discovery::v1::EndpointSlice as ApiSlice,
    };
    use proptest::prelude::*;
    use serde_json::{from_value, json};

    use super::*;
    use crate::objects::{SERVICE_NAME_LABEL, ServiceKind, SliceEndpoint};

    fn service() -> Object {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {"clusterIP": "None"}});
        Object::Service(Arc::new(
            (&from_value::<ApiService>(object).unwrap()).into(),
        ))
    }

    fn slice(service: &str, address: &str) -> Object {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: service}},
            "endpoints": [{"addresses": [address]}],
        });
        Object::EndpointSlice(Arc::new((&from_value::<ApiSlice>(object).unwrap()).into()))
    }

    /// `name addresses` of each service in the batch.
    fn summary(batch: Batch) -> Vec<String> {
        let one = |(key, records): (ServiceKey, Option<ServiceRecords>)| match records {
            Some(records) => format!("{} {:?}", key.name, records.addresses.v6),
            None => format!("{} gone", key.name),
        };
        batch.services.into_iter().map(one).collect()
    }

    #[test]
    fn only_what_changed_is_in_a_batch() {
        let web = ObjectId::service("a".into(), "web".into());
        let (one, two) = (
            ObjectId::endpoint_slice("a".into(), "1".into()),
            ObjectId::endpoint_slice("a".into(), "2".into()),
        );
        let mut store = Store::default();
        store.set(&one, Some(slice("web", "fd00::1")));
        store.set(&web, Some(service()));
        assert_eq!(summary(store.take_batch()), ["web [fd00::1]"]);
        store.set(&two, Some(slice("web", "fd00::2")));
        assert_eq!(summary(store.take_batch()), ["web [fd00::1, fd00::2]"]);
        // The same again, and the removal of what isn't there.
        store.set(&web, Some(service()));
        store.set(&two, Some(slice("web", "fd00::2")));
        store.set(&ObjectId::service("b".into(), "web".into()), None);
        store.set(&ObjectId::endpoint_slice("b".into(), "1".into()), None);
        assert_eq!(store.take_batch(), Batch::default());
        // A slice goes over to another service; then all goes.
        store.set(&two, Some(slice("other", "fd00::2")));
        assert_eq!(summary(store.take_batch()), ["other gone", "web [fd00::1]"]);
        store.set(&one, None);
        store.set(&two, None);
        assert_eq!(summary(store.take_batch()), ["other gone", "web []"]);
        store.set(&web, None);
        assert_eq!(summary(store.take_batch()), ["web gone"]);
        assert!(store.owners.is_empty() && store.services.is_empty());
    }

    #[test]
    fn pods_are_in_batches_of_their_own() {
        let id = ObjectId::pod("a".into(), "web-1".into());
        let pod = Object::Pod([IpAddr::from([10, 0, 0, 1])].into());
        let mut store = Store::default();
        assert!(store.set(&id, Some(pod.clone())));
        assert!(!store.set(&id, Some(pod)) && store.has_changes());
        assert_eq!(store.ids(|_| true), [id.clone()].into());
        let Batch { services, pods } = store.take_batch();
        assert_eq!((services, pods[0].1, pods.len()), (Vec::new(), true, 1));
        store.set(&id, None);
        assert_eq!(store.take_batch().pods, [(pods[0].0.clone(), false)]);
        assert!(!store.has_changes());
    }

    /// What happens to a store.
    #[derive(Clone, Debug)]
    enum Step {
        Service(&'static str, Option<Service>),
        /// The slice's number, and what it says.
        Slice(u8, Option<EndpointSlice>),
        TakeBatch,
    }

    fn steps() -> impl Strategy<Value = Step> {
        let name = || prop::sample::select(vec!["web", "db"]);
        let kind = prop::sample::select(vec![
            ServiceKind::Headless,
            ServiceKind::Headless,
            ServiceKind::ClusterIp([IpAddr::from([10, 96, 0, 1])].into_iter().collect()),
            ServiceKind::Nothing,
        ]);
        let service = (kind, any::<bool>()).prop_map(|(kind, publish_not_ready)| Service {
            kind,
            ports: Arc::default(),
            publish_not_ready,
            pick: None,
            problems: [].into(),
        });
        let slice = (
            prop::option::of(name()),
            prop::collection::btree_set(SliceEndpoint::any(4), 0..5),
        );
        let slice = slice.prop_map(|(service, endpoints)| EndpointSlice {
            service: service.map(Into::into),
            endpoints: endpoints.into_iter().collect(),
            ports: Arc::default(),
            problems: [].into(),
        });
        prop_oneof![
            2 => (name(), prop::option::weighted(0.8, service))
                .prop_map(|(name, service)| Step::Service(name, service)),
            5 => (0..4_u8, prop::option::weighted(0.8, slice))
                .prop_map(|(number, slice)| Step::Slice(number, slice)),
            2 => Just(Step::TakeBatch),
        ]
    }

    proptest! {
        /// Whatever happened since the last batch, and in whatever order: with the next one all is as the objects say.
        #[test]
        fn batches_add_up_to_the_objects(
            serving_terminating: bool,
            history in prop::collection::vec(steps(), 1..60),
        ) {
            let policy = RecordPolicy { serving_terminating, pick: 0 };
            let mut store = Store::new(policy);
            let (mut services, mut slices) = (BTreeMap::new(), BTreeMap::new());
            let mut published = BTreeMap::new();
            let none_is_left = ["web", "db"].map(|name| Step::Service(name, None));
            let none_is_left = none_is_left.into_iter().chain((0..4).map(|number| Step::Slice(number, None)));
            for step in history.into_iter().chain(none_is_left).chain([Step::TakeBatch]) {
                match step {
                    Step::Service(name, service) => {
                        let object = service.clone().map(|service| Object::Service(Arc::new(service)));
                        store.set(&ObjectId::service("a".into(), name.into()), object);
                        match service {
                            Some(service) => services.insert(name, service),
                            None => services.remove(name),
                        };
                    }
                    Step::Slice(number, slice) => {
                        let object = slice.clone().map(|slice| Object::EndpointSlice(Arc::new(slice)));
                        let id = ObjectId::endpoint_slice("a".into(), number.to_string().into());
                        store.set(&id, object);
                        match slice {
                            Some(slice) => slices.insert(number, slice),
                            None => slices.remove(&number),
                        };
                    }
                    Step::TakeBatch => {
                        for (key, records) in store.take_batch().services {
                            match records {
                                Some(records) => published.insert(key.name, records),
                                None => published.remove(&key.name),
                            };
                        }
                        let wanted: BTreeMap<Box<str>, _> = services
                            .iter()
                            .map(|(&name, service)| {
                                let own = slices
                                    .values()
                                    .filter(|slice: &&EndpointSlice| slice.service.as_deref() == Some(name));
                                (name.into(), Merged::new(service, own, &policy).records)
                            })
                            .collect();
                        prop_assert_eq!(&published, &wanted);
                        prop_assert!(!store.has_changes());
                    }
                }
            }
            prop_assert!(store.services.is_empty() && store.owners.is_empty() && store.touched.is_empty());
        }
    }

    #[test]
    fn what_comes_and_goes_before_the_first_batch_leaves_nothing() {
        let mut store = Store::default();
        for number in 0..100 {
            let id = ObjectId::endpoint_slice("a".into(), number.to_string().into());
            store.set(&id, Some(slice("web", "fd00::1")));
            store.set(&id, None);
        }
        assert!(store.services.is_empty() && store.owners.is_empty() && store.touched.is_empty());
    }

    #[test]
    fn a_slice_shares_what_its_predecessor_said() {
        let id = ObjectId::endpoint_slice("a".into(), "1".into());
        let mut store = Store::default();
        let label = |store: &Store| {
            let slice = &store.services[&ServiceKey::new("a", "web")].slices["1"];
            Arc::clone(&slice.endpoints[0].label)
        };
        store.set(&id, Some(slice("web", "fd00::1")));
        let before = label(&store);
        let more = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": {"name": "s", "labels": {SERVICE_NAME_LABEL: "web"}},
            "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["fd00::2"]}],
        });
        let more = (&from_value::<ApiSlice>(more).unwrap()).into();
        store.set(&id, Some(Object::EndpointSlice(Arc::new(more))));
        assert!(Arc::ptr_eq(&label(&store), &before));
    }
}
