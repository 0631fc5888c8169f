//! `peak/answers: one` and `8`: each query draws anew, and every endpoint is as likely as every other, whoever answers.

use std::{fmt::Write, fs, net::SocketAddr};

use anyhow::Result;
use hickory_proto::{
    op::ResponseCode,
    rr::{RData, RecordType},
};
use peak_tests::{Net, Peak, connect, exchange, pass, query, scratch};

/// Queries of one name.
const DRAWS: u32 = 20_000;
/// Quantile of the normal distribution that is exceeded once in a million times: nothing here is to fail by chance.
const ONCE_IN_A_MILLION: f64 = 4.753;

/// How many addresses an answer gives, and of how many.
const SERVICES: [(usize, usize); 4] = [(1, 10), (1, 100), (8, 10), (8, 100)];

fn name(pick: usize, endpoints: usize) -> String {
    format!("pick-{pick}-of-{endpoints}")
}

fn manifests() -> Result<String> {
    let mut text = String::new();
    for (pick, endpoints) in SERVICES {
        let (name, answers) = (name(pick, endpoints), pick.to_string());
        let answers = if pick == 1 { "one" } else { &answers };
        write!(
            text,
            "---\napiVersion: v1\nkind: Service\n\
             metadata: {{name: {name}, namespace: shop, annotations: {{peak/answers: '{answers}'}}}}\n\
             spec: {{clusterIP: None}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             endpoints:\n"
        )?;
        for i in 0..endpoints {
            writeln!(text, "- addresses: [10.244.{pick}.{i}]")?;
        }
    }
    Ok(text)
}

/// Asserts that counts differ from what is expected of each no more than chance makes them (Pearson's chi-square, its
/// quantile by Wilson and Hilferty). `freedom`: how many of the counts the others do not tell.
fn assert_uniform(what: &str, counts: &[u32], freedom: usize) {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    let square = |&count: &u32| (f64::from(count) - expected).powi(2) / expected;
    let chi_square: f64 = counts.iter().map(square).sum();
    let freedom = freedom as f64;
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + ONCE_IN_A_MILLION * spread.sqrt()).powi(3);
    assert!(
        chi_square < limit,
        "{what}: chi-square {chi_square:.1}, at most {limit:.1}: {counts:?}"
    );
}

#[test]
fn every_endpoint_is_as_likely_as_every_other() -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let folder = scratch()?;
    fs::write(folder.path().join("services.yaml"), manifests()?)?;
    let peak = Peak::on_eth0(&node, &folder, "native", &[])?;
    let server = SocketAddr::new(Net::SERVERS[0].parse()?, 53);
    let socket = client.run(|| connect(server))?;
    for kernel in [true, false] {
        peak.kernel(kernel)?;
        for (pick, endpoints) in SERVICES {
            let name = name(pick, endpoints);
            let what = format!("{name}, kernel {kernel}");
            let mut query = query(
                &format!("{name}.shop.svc.cluster.local"),
                RecordType::A,
                false,
            )?;
            let before = peak.status()?.counted();
            // How often each was given, and which was first.
            let mut given = vec![0; endpoints];
            let mut firsts = Vec::new();
            for draw in 0..DRAWS {
                query.metadata.id = draw as u16;
                let reply = exchange(&socket, &query)?;
                assert_eq!(
                    reply.metadata.response_code,
                    ResponseCode::NoError,
                    "{what}"
                );
                let places: Vec<_> = reply
                    .answers
                    .iter()
                    .map(|record| match &record.data {
                        RData::A(a) => usize::from(a.octets()[3]),
                        other => panic!("{what}: {other}"),
                    })
                    .collect();
                assert_eq!(places.len(), pick, "{what}");
                for &place in &places {
                    given[place] += 1;
                }
                firsts.push(places[0]);
            }
            let counted = peak.status()?.counted() - before;
            let all = u64::from(DRAWS);
            let expected = if kernel { (all, 0) } else { (0, all) };
            assert_eq!((counted.kernel, counted.fallback), expected, "{what}");

            let mut counts = vec![0; endpoints];
            for &first in &firsts {
                counts[first] += 1;
            }
            assert_uniform(&format!("{what}, first"), &counts, endpoints - 1);
            // Those of one answer are not drawn independently, but each is in as many as chance allows.
            let share = pick as f64 / endpoints as f64;
            let mean = f64::from(DRAWS) * share;
            let deviation = (mean * (1.0 - share)).sqrt();
            for (place, &count) in given.iter().enumerate() {
                let off = (f64::from(count) - mean).abs() / deviation;
                // Of a hundred one is further off than the others.
                assert!(
                    off < ONCE_IN_A_MILLION + 1.0,
                    "{what}: {count} times {place}"
                );
            }
            if endpoints == 10 {
                // Which is first has nothing to do with which was before.
                let mut counts = [0; 100];
                for &[one, next] in firsts.as_chunks().0 {
                    counts[10 * one + next] += 1;
                }
                assert_uniform(&format!("{what}, pairs"), &counts, 99);
            }
        }
    }
    Ok(())
}
