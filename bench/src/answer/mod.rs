//! `cargo xtask bench answer`: what the fallback's decision about a query costs, in process: reading it, finding the name, writing
//! the reply. No socket takes part; what those cost is part of the other benchmarks' figures.
//!
//! A sample is the mean of a batch of queries for names drawn at random, in the thread's own time on the processor. The queries
//! are copied before it begins, so that they are in the cache as if they had just been received; what the names' records
//! take is there only as far as earlier batches left it.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use peak_userspace::{
    endpoints::{Endpoint, Endpoints},
    fallback::{
        Transport,
        answer::{Policy, Reaction, answer},
    },
    snapshot::{AddressSet, Port, Protocol, ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};

use crate::{
    kernel::measure::processor_time,
    progress::Progress,
    report::{Better, Output, Report, Samples},
};

/// What an answer of the fallback costs without sockets, in nanoseconds
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    output: Output,
}

/// How many services there are. Half the queries' names of the smaller number are in the processor's first cache.
const NAMES: [u32; 2] = [1 << 10, 1 << 17];
/// Services of a namespace.
const SERVICES: u32 = 128;
/// Records of the service that has several.
const EIGHT: u32 = 8;
const CLIENT: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 7, 0, 0, 0, 2));

/// Measures, and says the results.
///
/// # Errors
/// An answer is not the expected one, or the results can't be kept.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (rounds, batch) = if args.output.quick {
        (5, 100)
    } else {
        (300, 1000)
    };
    let mut report = Report::new("answer");
    let progress = Progress::new(f64::from(rounds) * NAMES.len() as f64);
    println!(
        "{:<10} {:>7}  {:>8} {:>8} {:>8}   ns an answer",
        "mix", "names", "least", "median", "p99"
    );
    for names in NAMES {
        progress.say(&format!("answers from {names} services"));
        let (snapshot, policy) = (snapshot(names), Policy::default());
        let mut random = fastrand::Rng::with_seed(names.into());
        let mut octets = Vec::new();
        let mut measured = MIXES.map(|mix| (mix, Samples::default()));
        for round in 0..rounds {
            for (mix, samples) in &mut measured {
                let queries = (0..batch).map(|_| mix.query(random.u32(..names)));
                let queries: Vec<_> = queries.collect::<Result<_>>()?;
                if round == 0 {
                    for query in &queries {
                        ensure!(reply(query, &snapshot, &policy, 0, &mut octets), "silence");
                        mix.check(&octets)?;
                    }
                }
                let draw = random.u32(..);
                let began = processor_time();
                for query in &queries {
                    black_box(reply(query, &snapshot, &policy, draw, &mut octets));
                }
                let time = processor_time() - began;
                samples.0.push(time.as_nanos() as f64 / f64::from(batch));
            }
            progress.done(1.0);
        }
        for (mix, samples) in measured {
            let summary = samples.summary();
            let [least, median, p99] = [
                samples.0.iter().copied().fold(f64::INFINITY, f64::min),
                summary.median,
                summary.p99,
            ];
            println!(
                "{:<10} {names:>7}  {least:>8.0} {median:>8.0} {p99:>8.0}",
                mix.name
            );
            let labels = [("mix", mix.name.into()), ("names", names.into())];
            report.add(
                "fallback_answer",
                &labels,
                "ns",
                Better::Lower,
                "batches",
                samples,
            );
        }
    }
    args.output.finish(&report)
}

/// Whether there is a reply. It is in `octets` then.
fn reply(
    message: &[u8],
    snapshot: &Snapshot,
    policy: &Policy,
    draw: u32,
    octets: &mut Vec<u8>,
) -> bool {
    let transport = Transport::Udp;
    let reaction = answer(message, transport, CLIENT, snapshot, policy, draw, octets);
    matches!(reaction, Reaction::Reply(_))
}

/// Queries of one kind, and what is answered to them.
#[derive(Clone, Copy)]
struct Mix {
    name: &'static str,
    /// The name of the query with this number.
    of: fn(u32) -> String,
    record_type: RecordType,
    edns: bool,
    code: ResponseCode,
    answers: usize,
}

const HIT: Mix = Mix {
    name: "aaaa",
    of: |n| format!("{}.svc.cluster.local.", service(n)),
    record_type: RecordType::AAAA,
    edns: false,
    code: ResponseCode::NoError,
    answers: 1,
};
const MIXES: [Mix; 8] = [
    HIT,
    Mix {
        name: "edns",
        edns: true,
        ..HIT
    },
    Mix {
        name: "eight",
        of: |n| format!("eight.{}.svc.cluster.local.", namespace(n)),
        answers: EIGHT as usize,
        ..HIT
    },
    Mix {
        name: "nodata",
        record_type: RecordType::A,
        answers: 0,
        ..HIT
    },
    Mix {
        name: "nxdomain",
        of: |n| format!("no-{n:06}.{}.svc.cluster.local.", namespace(n)),
        code: ResponseCode::NXDomain,
        answers: 0,
        ..HIT
    },
    // What a resolver's search path makes of a name outside.
    Mix {
        name: "search",
        of: |n| format!("www.example.com.{}.svc.cluster.local.", namespace(n)),
        code: ResponseCode::NXDomain,
        answers: 0,
        ..HIT
    },
    Mix {
        name: "srv",
        of: |n| format!("_http._tcp.{}.svc.cluster.local.", service(n)),
        record_type: RecordType::SRV,
        ..HIT
    },
    // A name outside, where there is no upstream.
    Mix {
        name: "refused",
        of: |n| format!("www-{n:06}.example.com."),
        code: ResponseCode::Refused,
        answers: 0,
        ..HIT
    },
];

impl Mix {
    fn query(&self, n: u32) -> Result<Vec<u8>> {
        let mut message = Message::new(n as u16, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        let name = Name::from_ascii((self.of)(n))?;
        message.add_query(Query::query(name, self.record_type));
        if self.edns {
            let mut opt = Edns::new();
            opt.set_max_payload(1232);
            message.set_edns(opt);
        }
        Ok(message.to_vec()?)
    }

    fn check(&self, octets: &[u8]) -> Result<()> {
        let message = Message::from_vec(octets).context("the reply is no message")?;
        let found = (message.metadata.response_code, message.answers.len());
        ensure!(
            found == (self.code, self.answers),
            "{}: {message}",
            self.name
        );
        Ok(())
    }
}

fn namespace(n: u32) -> String {
    format!("team-{:04}", n / SERVICES)
}

fn service(n: u32) -> String {
    format!("app-{n:06}.{}", namespace(n))
}

/// So many services with a ClusterIP and a named port, and in each namespace a headless one of [`EIGHT`] endpoints.
fn snapshot(names: u32) -> Snapshot {
    let ports: Arc<[Port]> = Arc::new([Port {
        protocol: Protocol::Tcp,
        name: "http".into(),
        number: 80,
    }]);
    let address = |n: u32| IpAddr::V6(Ipv6Addr::from_bits(0xfd00_0010_0096 << 80 | u128::from(n)));
    let mut services = Vec::new();
    for n in 0..names {
        let records = ServiceRecords {
            addresses: AddressSet::from_iter([address(n)]),
            ports: Arc::clone(&ports),
            ..ServiceRecords::default()
        };
        let key = ServiceKey::new(namespace(n), format!("app-{n:06}"));
        services.push((key, Some(records)));
        if n % SERVICES == 0 {
            let endpoints = (0..EIGHT).map(|endpoint| Endpoint {
                label: format!("pod-{endpoint}").into(),
                addresses: AddressSet::from_iter([address(1 << 24 | n << 3 | endpoint)]),
                ports: Arc::clone(&ports),
            });
            let endpoints: Endpoints = endpoints.collect();
            let addresses = endpoints.iter().flat_map(|one| one.addresses.iter());
            let records = ServiceRecords {
                addresses: addresses.collect(),
                ports: Arc::clone(&ports),
                headless: true,
                endpoints: endpoints.clone(),
                ..ServiceRecords::default()
            };
            services.push((ServiceKey::new(namespace(n), "eight"), Some(records)));
        }
    }
    let empty = Snapshot::empty(SnapshotConfig {
        zones: vec!["cluster.local".parse().expect("a name")],
        ttl: 5,
        nameservers: vec!["fd00:10:96::a".parse().expect("an address")],
        ..SnapshotConfig::default()
    });
    empty.with(services, SystemTime::now()).0
}
