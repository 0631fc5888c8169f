//! The names below a service's, in chunks that successive versions share: a change costs the chunks that it touches, and
//! so does finding what two versions differ in.

use std::{cmp::Ordering, sync::Arc};

use crate::snapshot::{AddressSet, Port};

/// A name below a service's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its label, in lower case: a hostname, or made of the address.
    pub label: Arc<str>,
    /// The addresses of all endpoints that are called so.
    pub addresses: AddressSet,
    /// Their ports: sorted, each once. Endpoints of one slice share them.
    pub ports: Arc<[Port]>,
}

/// Endpoints, sorted by label, each label once. Cloning is cheap.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// None is empty.
    chunks: Arc<[Chunk]>,
}

type Chunk = Arc<[Endpoint]>;

/// The most endpoints of a chunk. A service of 10,000 has 157 chunks or more: both numbers are those of references to be
/// copied at a change.
const CHUNK: usize = 64;

/// What becomes of a label: another endpoint, or none.
pub(crate) type Edit = (Arc<str>, Option<Endpoint>);

impl Endpoints {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// All of them, by label.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The one with this label.
    #[must_use]
    pub fn get(&self, label: &[u8]) -> Option<&Endpoint> {
        let chunk = self.chunks[..self.chunk_of(label)].last()?;
        let at = chunk.binary_search_by(|own| own.label.as_bytes().cmp(label));
        Some(&chunk[at.ok()?])
    }

    /// How many chunks begin with the label or one before it: the last of these is where it belongs.
    fn chunk_of(&self, label: &[u8]) -> usize {
        self.chunks
            .partition_point(|chunk| chunk[0].label.as_bytes() <= label)
    }

    /// Those that only one of the two has, or that they have otherwise: ours and theirs.
    pub(crate) fn differing<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = (Option<&'a Endpoint>, Option<&'a Endpoint>)> {
        let (mut ours, mut theirs) = (Cursor::of(self), Cursor::of(other));
        std::iter::from_fn(move || {
            loop {
                if ours.skip_shared(&mut theirs) {
                    continue;
                }
                let order = match (ours.peek(), theirs.peek()) {
                    (None, None) => return None,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some(a), Some(b)) => a.label.cmp(&b.label),
                };
                match order {
                    Ordering::Less => return Some((ours.next(), None)),
                    Ordering::Greater => return Some((None, theirs.next())),
                    Ordering::Equal => match (ours.next(), theirs.next()) {
                        (a, b) if a != b => return Some((a, b)),
                        _ => {}
                    },
                }
            }
        })
    }

    /// The same with some edits, which are sorted by label and have each label once.
    pub(crate) fn with(&self, mut edits: &[Edit]) -> Self {
        let mut chunks = Vec::<Chunk>::with_capacity(self.chunks.len() + 1);
        let mut push = |chunk: Chunk| match chunks.last_mut() {
            // Small neighbours become one, lest there are ever more of them.
            Some(last) if last.len() + chunk.len() <= CHUNK / 2 => {
                *last = last.iter().chain(&*chunk).cloned().collect();
            }
            _ if chunk.is_empty() => {}
            _ => chunks.push(chunk),
        };
        let none = Chunk::default();
        let all = if self.is_empty() {
            &[none][..]
        } else {
            &self.chunks[..]
        };
        for (index, chunk) in all.iter().enumerate() {
            let here = match all.get(index + 1) {
                Some(next) => edits.partition_point(|(label, _)| *label < next[0].label),
                None => edits.len(),
            };
            let (here, rest) = edits.split_at(here);
            edits = rest;
            if here.is_empty() {
                push(Arc::clone(chunk));
            } else {
                edited(chunk, here).into_iter().for_each(&mut push);
            }
        }
        Self {
            chunks: chunks.into(),
        }
    }
}

/// A chunk with some edits: as many chunks as it takes.
fn edited(chunk: &[Endpoint], edits: &[Edit]) -> Vec<Chunk> {
    let mut endpoints = Vec::with_capacity(chunk.len() + edits.len());
    let mut rest = chunk;
    for (label, endpoint) in edits {
        let before = rest.partition_point(|own| own.label < *label);
        endpoints.extend_from_slice(&rest[..before]);
        endpoints.extend(endpoint.clone());
        rest = &rest[before..];
        if rest.first().is_some_and(|own| own.label == *label) {
            rest = &rest[1..];
        }
    }
    endpoints.extend_from_slice(rest);
    in_chunks(endpoints)
}

/// Chunks of about the same size.
fn in_chunks(endpoints: Vec<Endpoint>) -> Vec<Chunk> {
    if endpoints.len() <= CHUNK {
        return vec![endpoints.into()];
    }
    let count = endpoints.len().div_ceil(CHUNK);
    let chunks = endpoints.chunks(endpoints.len().div_ceil(count));
    chunks.map(Chunk::from).collect()
}

impl FromIterator<Endpoint> for Endpoints {
    /// Takes endpoints that are sorted by label, each label once.
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        debug_assert!(endpoints.is_sorted_by(|a, b| a.label < b.label));
        if endpoints.is_empty() {
            return Self::default();
        }
        Self {
            chunks: in_chunks(endpoints).into(),
        }
    }
}

impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        self.differing(other).next().is_none()
    }
}

impl Eq for Endpoints {}

/// The way through the chunks of one version.
struct Cursor<'a> {
    chunks: &'a [Chunk],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn of(endpoints: &'a Endpoints) -> Self {
        Self {
            chunks: &endpoints.chunks,
            at: 0,
        }
    }

    fn peek(&self) -> Option<&'a Endpoint> {
        self.chunks.first().map(|chunk| &chunk[self.at])
    }

    fn next(&mut self) -> Option<&'a Endpoint> {
        let endpoint = self.peek()?;
        self.at += 1;
        if self.at == self.chunks[0].len() {
            *self = Self {
                chunks: &self.chunks[1..],
                at: 0,
            };
        }
        Some(endpoint)
    }

    /// Passes a chunk that both share, if both stand at its beginning.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = self.at == 0
            && other.at == 0
            && matches!((self.chunks, other.chunks), ([a, ..], [b, ..]) if Arc::ptr_eq(a, b));
        if shared {
            self.chunks = &self.chunks[1..];
            other.chunks = &other.chunks[1..];
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(label: u16, address: u8) -> Endpoint {
        Endpoint {
            label: format!("{label:04}").into(),
            addresses: [std::net::IpAddr::from([10, 0, 0, address])]
                .into_iter()
                .collect(),
            ports: Arc::default(),
        }
    }

    fn shared(a: &Endpoints, b: &Endpoints) -> usize {
        let is_in_b = |chunk: &&Chunk| b.chunks.iter().any(|other| Arc::ptr_eq(other, chunk));
        a.chunks.iter().filter(is_in_b).count()
    }

    #[test]
    fn a_change_of_one_copies_one_chunk() {
        let all: Endpoints = (0..10_000).map(|label| endpoint(label, 1)).collect();
        let edits = [("4999".into(), Some(endpoint(4999, 2)))];
        let next = all.with(&edits);
        assert_eq!(shared(&all, &next), all.chunks.len() - 1);
        let differing: Vec<_> = all.differing(&next).collect();
        let (old, new) = (endpoint(4999, 1), endpoint(4999, 2));
        assert_eq!(differing, [(Some(&old), Some(&new))]);
        assert_eq!(next.get(b"4999"), Some(&new));
        assert_eq!(next.get(b"10000"), None);
        assert_eq!(next.get(b""), None);
    }

    #[test]
    fn few_that_are_left_are_in_few_chunks() {
        let mut all: Endpoints = (0..1000).map(|label| endpoint(label, 1)).collect();
        for label in (0..1000).filter(|label| label % 50 != 0) {
            all = all.with(&[(format!("{label:04}").into(), None)]);
        }
        assert_eq!((all.iter().count(), all.chunks.len()), (20, 1));
        let last: Vec<_> = all
            .iter()
            .map(|one| (Arc::clone(&one.label), None))
            .collect();
        assert!(all.with(&last).is_empty());
    }

    proptest! {
        #[test]
        fn edits_do_what_a_map_does(
            history in prop::collection::vec(
                prop::collection::btree_map(0..400_u16, prop::option::of(0..3_u8), 0..120), 1..12,
            )
        ) {
            let (mut plain, mut all) = (BTreeMap::new(), Endpoints::default());
            for edits in history {
                let (before, old) = (plain.clone(), all.clone());
                for (&label, &address) in &edits {
                    match address {
                        Some(address) => plain.insert(label, endpoint(label, address)),
                        None => plain.remove(&label),
                    };
                }
                let edit = |(label, address): (u16, Option<u8>)| {
                    (format!("{label:04}").into(), address.map(|address| endpoint(label, address)))
                };
                all = old.with(&edits.into_iter().map(edit).collect::<Vec<_>>());
                prop_assert!(all.iter().eq(plain.values()));
                prop_assert!(all.chunks.iter().all(|chunk| (1..=CHUNK).contains(&chunk.len())));
                for label in 0..400_u16 {
                    prop_assert_eq!(all.get(format!("{label:04}").as_bytes()), plain.get(&label));
                }
                let differing: Vec<_> = (0..400_u16)
                    .map(|label| (before.get(&label), plain.get(&label)))
                    .filter(|(a, b)| a != b)
                    .collect();
                prop_assert_eq!(old.differing(&all).collect::<Vec<_>>(), differing);
                prop_assert_eq!(old == all, before == plain);
                prop_assert_eq!(plain.into_values().collect::<Endpoints>() == all, true);
                plain = all.iter().map(|one| (one.label.parse().unwrap(), one.clone())).collect();
            }
        }
    }
}
