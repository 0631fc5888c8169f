//! What is asked, and what has to be answered: the same for every server.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use fastrand::Rng;
use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};

use super::{
    cluster::{
        CLUSTER_IPS, Cluster, DEFAULT, SPELLED_PODS, ZONE, cluster_ip_name, cluster_ips,
        spelled_pod,
    },
    upstream,
};
use crate::load::Queries;

/// How steeply names differ in how often they are asked: the one at place n is asked 1/n times as often as the first. That of
/// words, of web pages, and about that of names which resolvers ask for.
const ZIPF: f64 = 1.0;
/// Queries of a mix that is drawn, before it begins anew: each name of a uniform one once.
const DRAWN: usize = 1 << 18;
/// Names outside that are asked for.
pub(super) const OUTSIDE: u32 = 64;

/// Which questions, and how often each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Mix {
    /// AAAA of each pod's name once, in no order
    Uniform,
    /// The same names, some of them much more often than others
    Zipf,
    /// What a pod's resolver asks in the cluster's zone for a name outside: A and AAAA with each suffix of its search path
    Nxdomain,
    /// That of Kubernetes' perf-tests: services, pods and names outside, with the search path; for servers that forward
    Cluster,
}

impl Mix {
    pub(super) const ALL: [Self; 4] = [Self::Uniform, Self::Zipf, Self::Nxdomain, Self::Cluster];

    /// As it is labelled in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
            Self::Nxdomain => "nxdomain",
            Self::Cluster => "cluster",
        }
    }

    /// Whether names outside the zone are part of it.
    pub(super) fn forwards(self) -> bool {
        self == Self::Cluster
    }
}

/// A mix, drawn.
pub(super) struct Drawn {
    pub(super) queries: Queries,
    wanted: Vec<Wanted>,
}

/// What has to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// This address, and no other.
    Address(IpAddr),
    /// The name doesn't exist (NXDOMAIN).
    Nothing,
}

impl Drawn {
    /// Draws a mix: the same for the same cluster.
    ///
    /// # Errors
    /// A name is none.
    pub(super) fn new(mix: Mix, cluster: Cluster) -> Result<Self> {
        let mut random = Rng::with_seed(u64::from(cluster.names));
        let of_pod = |pod: u32| {
            let wanted = Wanted::Address(cluster.address(pod).into());
            (cluster.name(pod), RecordType::AAAA, wanted)
        };
        let asked: Vec<_> = match mix {
            Mix::Uniform => {
                let mut pods: Vec<_> = (0..cluster.names).collect();
                random.shuffle(&mut pods);
                pods.into_iter().map(of_pod).collect()
            }
            Mix::Zipf => {
                // Which pods are asked most has nothing to do with where they stand.
                let mut pods: Vec<_> = (0..cluster.names).collect();
                random.shuffle(&mut pods);
                let places = Zipf::new(pods.len(), ZIPF);
                let drawn = (0..DRAWN).map(|_| of_pod(pods[places.draw(&mut random)]));
                drawn.collect()
            }
            Mix::Nxdomain => {
                let mut asked = Vec::new();
                for outside in 0..OUTSIDE {
                    for namespace in 0..cluster.namespaces().min(64) {
                        let name = upstream::name(outside);
                        for suffix in [&*format!("shop-{namespace}.svc."), "svc.", ""] {
                            for qtype in [RecordType::A, RecordType::AAAA] {
                                let name = format!("{name}.{suffix}{ZONE}");
                                asked.push((name, qtype, Wanted::Nothing));
                            }
                        }
                    }
                }
                random.shuffle(&mut asked);
                asked
            }
            Mix::Cluster => {
                let mut asked = Vec::new();
                for round in 0..DRAWN / PERF_TESTS {
                    let service = random.u32(..CLUSTER_IPS);
                    let other = random.u32(..CLUSTER_IPS);
                    let outside = random.u32(..OUTSIDE);
                    perf_tests(&mut asked, [service, other], outside, round as u32);
                }
                random.shuffle(&mut asked);
                asked
            }
        };
        // A message for each question, however often it is asked.
        let mut messages = BTreeMap::new();
        for (name, qtype, _) in &asked {
            let key = (name.as_str(), u16::from(*qtype));
            if let Entry::Vacant(slot) = messages.entry(key) {
                slot.insert(query(name, *qtype)?);
            }
        }
        let queries = asked
            .iter()
            .map(|(name, qtype, _)| messages[&(name.as_str(), u16::from(*qtype))].clone());
        Ok(Self {
            queries: Queries::new(queries)?,
            wanted: asked.iter().map(|(_, _, wanted)| *wanted).collect(),
        })
    }

    /// Makes sure that a reply to a query of this mix says what it should. Servers differ in what they add, and in which names
    /// they abbreviate.
    ///
    /// # Errors
    /// It doesn't.
    pub(super) fn check(&self, number: usize, reply: &[u8]) -> Result<()> {
        let reply = Message::from_vec(reply)?;
        let wanted = self.wanted[number];
        let rcode = reply.metadata.response_code;
        let question = reply.queries.first().context("no question")?;
        let addresses: Vec<IpAddr> = reply
            .answers
            .iter()
            .filter_map(|record| match record.data {
                RData::A(address) => Some(address.0.into()),
                RData::AAAA(address) => Some(address.0.into()),
                _ => None,
            })
            .collect();
        let right = match wanted {
            Wanted::Address(address) => rcode == ResponseCode::NoError && addresses == [address],
            Wanted::Nothing => rcode == ResponseCode::NXDomain && reply.answers.is_empty(),
        };
        ensure!(
            right && !reply.metadata.truncation,
            "{question} should be {wanted:?}, and is {rcode} {addresses:?}"
        );
        Ok(())
    }
}

/// How many questions [`perf_tests`] has.
const PERF_TESTS: usize = 25;

/// The questions of `dns/queries/all-queries.txt` in github.com/kubernetes/perf-tests, with names of this cluster: of two
/// services the name alone and with what a search path may add to it, of which one exists; a name outside in the same way; and a
/// pod's. Of 25 questions 4 are about a service that there is, 1 is about a pod, 14 are about names that the zone does not have,
/// and 6 go to the upstream, which has 2 of the names.
fn perf_tests(
    asked: &mut Vec<(String, RecordType, Wanted)>,
    services: [u32; 2],
    outside: u32,
    round: u32,
) {
    let both = [RecordType::A, RecordType::AAAA];
    for service in services {
        let name = cluster_ip_name(service);
        let (v6, v4) = cluster_ips(service);
        for (qtype, address) in both.into_iter().zip([IpAddr::from(v4), v6.into()]) {
            asked.push((name.clone(), qtype, Wanted::Nothing));
            asked.push((format!("{name}.{ZONE}"), qtype, Wanted::Nothing));
            asked.push((format!("{name}.svc.{ZONE}"), qtype, Wanted::Nothing));
            let wanted = Wanted::Address(address);
            asked.push((format!("{name}.{DEFAULT}.svc.{ZONE}"), qtype, wanted));
        }
    }
    let name = upstream::name(outside);
    let (v6, v4) = upstream::addresses(outside);
    for (qtype, address) in both.into_iter().zip([IpAddr::from(v4), v6.into()]) {
        for suffix in [&*format!("{DEFAULT}.svc."), "svc.", ""] {
            asked.push((format!("{name}.{suffix}{ZONE}"), qtype, Wanted::Nothing));
        }
        asked.push((name.clone(), qtype, Wanted::Address(address)));
    }
    let (name, address) = spelled_pod(round % SPELLED_PODS);
    asked.push((name, RecordType::A, Wanted::Address(address.into())));
}

/// A query as glibc's resolver sends it, without EDNS.
pub(super) fn query(name: &str, qtype: RecordType) -> Result<Vec<u8>> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, qtype));
    Ok(query.to_vec()?)
}

/// Places drawn by Zipf's law.
struct Zipf {
    /// Of each place, how often it or one before it is drawn.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(places: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=places).map(|place| {
            sum += (place as f64).powf(-exponent);
            sum
        });
        Self {
            sums: sums.collect(),
        }
    }

    fn draw(&self, random: &mut Rng) -> usize {
        let whole = self.sums.last().copied().unwrap_or_default();
        let at = random.f64() * whole;
        self.sums
            .partition_point(|sum| *sum <= at)
            .min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_is_drawn_twice_as_often_as_the_second() {
        let places = Zipf::new(1000, 1.0);
        let mut random = Rng::with_seed(1);
        let mut counts = vec![0_u32; 1000];
        for _ in 0..1_000_000 {
            counts[places.draw(&mut random)] += 1;
        }
        // 1,000,000 by the sum of 1/n for n up to 1000, 7.485.
        assert!(counts[0].abs_diff(133_600) < 2000, "{}", counts[0]);
        assert!(counts[1].abs_diff(66_800) < 2000, "{}", counts[1]);
        assert!(counts[999] > 0);
    }

    #[test]
    fn the_parts_of_the_mix_of_perf_tests() {
        let mut asked = Vec::new();
        perf_tests(&mut asked, [0, 1], 0, 0);
        assert_eq!(asked.len(), PERF_TESTS);
        let inside = |name: &str| name.ends_with(ZONE);
        let count = |of: &dyn Fn(&str, Wanted) -> bool| {
            asked
                .iter()
                .filter(|(name, _, wanted)| of(name, *wanted))
                .count()
        };
        assert_eq!(
            count(&|name, wanted| inside(name) && wanted != Wanted::Nothing),
            5
        );
        assert_eq!(
            count(&|name, wanted| inside(name) && wanted == Wanted::Nothing),
            14
        );
        assert_eq!(count(&|name, _| !inside(name)), 6);
    }

    #[test]
    fn each_mix_can_be_drawn_and_knows_wrong_answers() -> Result<()> {
        let cluster = Cluster { names: 64 };
        for mix in Mix::ALL {
            let drawn = Drawn::new(mix, cluster)?;
            assert_eq!(drawn.queries.len(), drawn.wanted.len(), "{mix:?}");
            let mut refusal = Message::from_vec(drawn.queries.message(0))?;
            refusal.metadata.response_code = ResponseCode::Refused;
            assert!(drawn.check(0, &refusal.to_vec()?).is_err(), "{mix:?}");
        }
        let drawn = Drawn::new(Mix::Uniform, cluster)?;
        assert_eq!(drawn.queries.len(), 64);
        let mut names: Vec<_> = drawn
            .wanted
            .iter()
            .map(|wanted| format!("{wanted:?}"))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 64, "each once");
        Ok(())
    }
}
