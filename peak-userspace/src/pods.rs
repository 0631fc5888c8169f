//! Pods, as far as names go: which addresses run in which namespace.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use equivalent::{Comparable, Equivalent};
use imbl::OrdSet;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::objects::generated_label;

/// What `<address>.<namespace>.pod.<zone>` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMode {
    /// No name, as the specification has it since version 1.1.0.
    #[default]
    Disabled,
    /// The address that the name spells, whoever has it.
    Insecure,
    /// That address, if a pod of the namespace has it.
    Verified,
}

/// An address that pods of a namespace have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodKey {
    /// The namespace; first, so that a namespace's pods stand together.
    pub namespace: Arc<str>,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.address, self.namespace)
    }
}

/// A [`PodKey`] borrowed from a query; with the unspecified IPv4 address it is before all of its namespace.
#[derive(PartialEq, Eq)]
struct KeyRef<'a> {
    namespace: &'a [u8],
    address: IpAddr,
}

impl Equivalent<PodKey> for KeyRef<'_> {
    fn equivalent(&self, key: &PodKey) -> bool {
        self.compare(key).is_eq()
    }
}

impl Comparable<PodKey> for KeyRef<'_> {
    fn compare(&self, key: &PodKey) -> Ordering {
        (self.namespace, self.address).cmp(&(key.namespace.as_bytes(), key.address))
    }
}

/// The addresses that have names. A persistent set: a copy shares all that did not change.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Running(OrdSet<PodKey>);

impl Running {
    /// Notes whether a pod of the namespace has the address. Says whether that is news.
    pub(crate) fn set(&mut self, key: &PodKey, runs: bool) -> bool {
        match runs {
            true => self.0.insert(key.clone()).is_none(),
            false => self.0.remove(key).is_some(),
        }
    }

    pub(crate) fn contains(&self, namespace: &[u8], address: IpAddr) -> bool {
        self.0.contains(&KeyRef { namespace, address })
    }

    pub(crate) fn has_namespace(&self, namespace: &[u8]) -> bool {
        let address = Ipv4Addr::UNSPECIFIED.into();
        let first = self.0.get_next(&KeyRef { namespace, address });
        first.is_some_and(|key| key.namespace.as_bytes() == namespace)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PodKey> {
        self.0.iter()
    }
}

/// The address that a label spells, with dashes instead of dots or colons.
pub(crate) fn spelled(label: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(label).ok()?;
    match text.replace('-', ".").parse::<Ipv4Addr>() {
        Ok(address) => Some(address.into()),
        Err(_) => Some(text.replace('-', ":").parse::<Ipv6Addr>().ok()?.into()),
    }
}

/// As [`spelled`], of the one spelling that a pod's address has in its name.
pub(crate) fn named(label: &[u8]) -> Option<IpAddr> {
    spelled(label).filter(|&address| generated_label(address).as_bytes() == label)
}

/// The addresses of a pod that runs; none of one that has ended, or has none yet. What is no address is left out;
/// sources refuse a pod that has one, and say so. A pod that terminates runs until it is gone. One in its node's network has the
/// node's address.
pub(crate) fn addresses(pod: &Pod) -> Arc<[IpAddr]> {
    let status = pod.status.iter().filter(|status| !has_ended(status));
    let addresses = status.flat_map(|status| written(status).map(|(_, text)| parse(text)));
    let addresses: BTreeSet<_> = addresses.filter_map(Result::ok).collect();
    addresses.into_iter().collect()
}

/// The phases in which nobody is at a pod's address any more, or that is not known. CoreDNS asks for the others.
pub(crate) const ENDED: [&str; 3] = ["Succeeded", "Failed", "Unknown"];

fn has_ended(status: &PodStatus) -> bool {
    status
        .phase
        .as_deref()
        .is_some_and(|phase| ENDED.contains(&phase))
}

/// A pod's addresses as they are written, each with its field. `podIP` is the first of `podIPs`, and stands alone in
/// objects from before dual stack.
pub(crate) fn written(status: &PodStatus) -> impl Iterator<Item = (String, &str)> {
    let single = status.pod_ip.iter();
    let single = single.map(|text| ("status.podIP".to_owned(), &**text));
    let all = status.pod_ips.iter().flatten().enumerate();
    let all = all.map(|(index, one)| (format!("status.podIPs[{index}].ip"), &*one.ip));
    // Empty is one that is not there yet.
    single.chain(all).filter(|(_, text)| !text.is_empty())
}

/// Reads a pod's address; the error says what is wrong with it.
pub(crate) fn parse(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is no IP address"))?;
    // An IPv4-mapped one is an IPv4 address, and is called so.
    Ok(address.to_canonical())
}

/// A pod: its namespace and name.
pub(crate) type PodId = (Box<str>, Box<str>);

/// The pods by name, and which addresses came or went since the last batch.
#[derive(Debug, Default)]
pub(crate) struct PodStore {
    pods: HashMap<PodId, Arc<[IpAddr]>>,
    /// How many pods of a namespace have an address: those in their node's network share one.
    running: BTreeMap<Arc<str>, BTreeMap<IpAddr, usize>>,
    touched: BTreeSet<PodKey>,
}

impl PodStore {
    /// Puts a pod's addresses in the place of those that it had, or takes it away. `false` if that changed nothing.
    pub(crate) fn set(&mut self, id: PodId, addresses: Option<Arc<[IpAddr]>>) -> bool {
        let namespace = match self.running.get_key_value(&*id.0) {
            Some((namespace, _)) => Arc::clone(namespace),
            None => Arc::from(&*id.0),
        };
        let new = addresses.clone();
        let old = match addresses {
            Some(addresses) => self.pods.insert(id, addresses),
            None => self.pods.remove(&id),
        };
        if old == new {
            return false;
        }
        for &address in new.iter().flat_map(|new| new.iter()) {
            let all = self.running.entry(Arc::clone(&namespace)).or_default();
            let count = all.entry(address).or_default();
            *count += 1;
            if *count == 1 {
                self.touch(&namespace, address);
            }
        }
        for &address in old.iter().flat_map(|old| old.iter()) {
            let all = self.running.get_mut(&namespace).expect("it has pods");
            let count = all.get_mut(&address).expect("a pod has it");
            *count -= 1;
            if *count == 0 {
                all.remove(&address);
                if all.is_empty() {
                    self.running.remove(&namespace);
                }
                self.touch(&namespace, address);
            }
        }
        true
    }

    fn touch(&mut self, namespace: &Arc<str>, address: IpAddr) {
        let namespace = Arc::clone(namespace);
        self.touched.insert(PodKey { namespace, address });
    }

    /// The pods that there are.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &PodId> {
        self.pods.keys()
    }

    /// Whether the next batch would say anything.
    pub(crate) fn has_changes(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Whether pods have the addresses that were touched since the last batch.
    pub(crate) fn take_batch(&mut self) -> Vec<(PodKey, bool)> {
        let touched = std::mem::take(&mut self.touched).into_iter();
        let runs = |key: &PodKey| {
            let all = self.running.get(&key.namespace);
            all.is_some_and(|all| all.contains_key(&key.address))
        };
        touched
            .map(|key| (runs(&key), key))
            .map(|(runs, key)| (key, runs))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn addresses_of(status: Value) -> Vec<String> {
        let pod = from_value(json!({"apiVersion": "v1", "kind": "Pod", "status": status})).unwrap();
        let addresses = addresses(&pod);
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_has_the_addresses_of_both_fields_while_it_runs() {
        let ips = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        let both = json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": ips});
        assert_eq!(addresses_of(both), ["10.0.0.1", "fd00::1"]);
        assert_eq!(addresses_of(json!({"podIP": "fd00::1"})), ["fd00::1"]);
        let mapped = json!({"podIPs": [{"ip": "::ffff:10.0.0.1"}, {"ip": "none"}]});
        assert_eq!(addresses_of(mapped), ["10.0.0.1"]);
        assert_eq!(
            addresses_of(json!({"phase": "Pending", "podIP": ""})),
            [""; 0]
        );
        for phase in ENDED {
            let ended = json!({"phase": phase, "podIP": "10.0.0.1"});
            assert_eq!(addresses_of(ended), [""; 0], "{phase}");
        }
        assert_eq!(addresses_of(Value::Null), [""; 0]);
    }

    #[test]
    fn labels_spell_addresses() {
        let text = |address: Option<IpAddr>| address.map(|address| address.to_string());
        for (label, address, is_name) in [
            ("10-1-2-3", Some("10.1.2.3"), true),
            ("fd00--1", Some("fd00::1"), true),
            ("fd00-1--0", Some("fd00:1::"), true),
            ("fd00-1--", Some("fd00:1::"), false),
            ("fd00-0-0-0-0-0-0-1", Some("fd00::1"), false),
            ("10-1-2", None, false),
            ("10-1-2-03", None, false),
            ("web-1", None, false),
        ] {
            let spelled = text(spelled(label.as_bytes()));
            assert_eq!(spelled.as_deref(), address, "{label}");
            let named = text(named(label.as_bytes()));
            assert_eq!(named, spelled.filter(|_| is_name), "{label}");
        }
    }

    /// `+address of namespace` and `-…` of the next batch.
    fn batch(store: &mut PodStore) -> Vec<String> {
        let sign = |runs| if runs { '+' } else { '-' };
        let batch = store.take_batch().into_iter();
        batch
            .map(|(key, runs)| format!("{}{key}", sign(runs)))
            .collect()
    }

    #[test]
    fn an_address_stays_until_its_last_pod_goes() {
        let mut store = PodStore::default();
        let set = |store: &mut PodStore, name: &str, addresses: Option<&[&str]>| {
            let addresses =
                addresses.map(|all| all.iter().map(|one| one.parse().unwrap()).collect());
            store.set(("kube-system".into(), name.into()), addresses)
        };
        assert!(set(&mut store, "proxy", Some(&["10.0.0.1"])));
        assert!(set(&mut store, "agent", Some(&["10.0.0.1", "fd00::1"])));
        assert!(!set(&mut store, "agent", Some(&["10.0.0.1", "fd00::1"])));
        assert!(!set(&mut store, "nobody", None));
        assert!(store.has_changes());
        assert_eq!(
            batch(&mut store),
            ["+10.0.0.1 of kube-system", "+fd00::1 of kube-system"]
        );
        assert!(!store.has_changes());
        set(&mut store, "proxy", None);
        set(&mut store, "agent", Some(&["10.0.0.1"]));
        assert_eq!(batch(&mut store), ["-fd00::1 of kube-system"]);
        set(&mut store, "agent", Some(&[]));
        assert_eq!(batch(&mut store), ["-10.0.0.1 of kube-system"]);
        assert_eq!(store.ids().count(), 1, "a pod without an address is there");
        set(&mut store, "agent", None);
        assert!(store.running.is_empty() && store.pods.is_empty());
    }
}
