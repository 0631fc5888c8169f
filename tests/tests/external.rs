//! ExternalNames whose targets are answered elsewhere: by a CoreDNS that is the agent's upstream, over a real network.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use peak_tests::{Namespace, Net, Peak, Running, asset, eventually, pass, scratch};

/// How long anything may take here, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(20);
/// The agent, and the upstream on the other side of the link.
const SERVER: &str = "fd00:10:1::1";
const UPSTREAM: &str = "[fd00:10:1::2]:5353";
/// Addresses of `big.example.com`: more than fit into UDP.
const BIG: usize = 60;

const SERVICES: [(&str, &str); 8] = [
    ("out", "www.example.com"),
    ("big", "big.example.com"),
    ("hop", "hop.example.com"),
    ("text", "text.example.com"),
    ("gone", "gone.example.com"),
    ("round", "round.example.com"),
    ("ring", "ring.test"),
    ("far", "out.shop.svc.cluster.local"),
];

fn manifests() -> String {
    let service = |(name, target)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{type: ExternalName, externalName: {target}}}\n"
        )
    };
    SERVICES.map(service).concat()
}

/// A zone file, and a server that asks the agent about everything else: a loop.
fn upstream(namespace: &Namespace, folder: &Path) -> Result<Running> {
    let mut zone = "\
$ORIGIN example.com.
@     3600 SOA   ns hostmaster 1 7200 1800 86400 60
@     3600 NS    ns
ns    3600 AAAA  2001:db8::53
www   3600 AAAA  2001:db8::80
www   3600 A     192.0.2.80
hop   3600 CNAME www
text  3600 TXT   \"nothing else\"
round 3600 CNAME round.shop.svc.cluster.local.
"
    .to_owned();
    for i in 0..BIG {
        zone += &format!("big 3600 AAAA 2001:db8:1::{i:x}\n");
    }
    let (file, corefile) = (folder.join("example.com"), folder.join("Corefile"));
    fs::write(&file, zone)?;
    let (address, port) = UPSTREAM.rsplit_once(':').context("a port")?;
    let address = address.trim_matches(['[', ']']);
    fs::write(
        &corefile,
        format!(
            "example.com:{port} {{\n bind {address}\n file {}\n}}\n.:{port} {{\n bind {address}\n forward . {SERVER}\n}}\n",
            file.display()
        ),
    )?;
    let mut command = Command::new(asset("coredns")?);
    namespace.spawn(command.arg("-conf").arg(corefile).stdout(Stdio::null()))
}

/// What `dig` says: the code, the flags, and the records of the answer without TTL, in their order.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: String,
    flags: String,
    records: Vec<String>,
    soa: bool,
}

fn dig(client: &Namespace, server: &str, arguments: &str) -> Result<Said> {
    let output = client.run(|| {
        Command::new("dig")
            .arg(server)
            .args([
                "+tries=1",
                "+timeout=8",
                "+noall",
                "+comments",
                "+answer",
                "+authority",
            ])
            .args(arguments.split_whitespace())
            .output()
    })?;
    let text = String::from_utf8(output.stdout)?;
    let between = |begin: &str, end: char| {
        let rest = text.split_once(begin).map(|(_, rest)| rest);
        rest.and_then(|rest| Some(rest.split_once(end)?.0.trim().to_owned()))
    };
    let records = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with(';'));
    let (soa, records): (Vec<_>, Vec<_>) = records
        .map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Without TTL and class.
            [&fields[..1], &fields[3..]].concat().join(" ")
        })
        // Where a zone's servers are is the upstream's to say or not.
        .filter(|record| !record.contains(" NS "))
        .partition(|record| record.contains(" SOA "));
    Ok(Said {
        code: between("status: ", ',').with_context(|| format!("{arguments}: {text}"))?,
        flags: between("flags: ", ';').context("flags")?,
        records,
        soa: !soa.is_empty(),
    })
}

#[test]
fn targets_are_asked_of_the_upstream() -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let folder = scratch()?;
    fs::write(folder.path().join("services.yaml"), manifests())?;
    let mut upstream = upstream(&client, folder.path())?;
    eventually("the upstream to answer", LIMIT, || {
        assert_eq!(upstream.ended()?, None, "{}", upstream.log());
        Ok(dig(&client, "@fd00:10:1::2", "-p 5353 www.example.com AAAA").ok())
    })?;
    let start = |more: &[&str]| Peak::on_eth0(&node, &folder, "native", more);
    let mut peak = start(&["--upstream", UPSTREAM])?;

    let name = |service: &str| format!("{service}.shop.svc.cluster.local");
    let records = |service: &str, more: &[&str]| {
        let (_, target) = SERVICES
            .iter()
            .find(|(name, _)| *name == service)
            .expect("a service");
        let alias = format!("{}. CNAME {target}.", name(service));
        let more = more.iter().map(|&record| record.to_owned());
        [alias].into_iter().chain(more).collect::<Vec<_>>()
    };
    let www = "www.example.com. AAAA 2001:db8::80";
    let www_4 = "www.example.com. A 192.0.2.80";
    let hop = "hop.example.com. CNAME www.example.com.";
    let cases = [
        (
            "out",
            "AAAA",
            "NOERROR",
            "qr aa rd ra",
            records("out", &[www]),
            false,
        ),
        (
            "out",
            "A",
            "NOERROR",
            "qr aa rd ra",
            records("out", &[www_4]),
            false,
        ),
        (
            "out",
            "AAAA +tcp",
            "NOERROR",
            "qr aa rd ra",
            records("out", &[www]),
            false,
        ),
        // RFC 1034, section 4.3.2: who wants no recursion gets what is known here.
        (
            "out",
            "AAAA +norec",
            "NOERROR",
            "qr aa ra",
            records("out", &[]),
            false,
        ),
        (
            "out",
            "CNAME",
            "NOERROR",
            "qr aa rd ra",
            records("out", &[]),
            false,
        ),
        // An alias in the zone on the way to one outside, and one more at the upstream.
        (
            "far",
            "AAAA",
            "NOERROR",
            "qr aa rd ra",
            records("far", &[&records("out", &[])[0], www]),
            false,
        ),
        (
            "hop",
            "AAAA",
            "NOERROR",
            "qr aa rd ra",
            records("hop", &[hop, www]),
            false,
        ),
        // NODATA and NXDOMAIN are the target's, with its zone's SOA (RFC 2308, section 2).
        (
            "text",
            "AAAA",
            "NOERROR",
            "qr aa rd ra",
            records("text", &[]),
            true,
        ),
        (
            "text",
            "TXT",
            "NOERROR",
            "qr aa rd ra",
            records("text", &["text.example.com. TXT \"nothing else\""]),
            false,
        ),
        (
            "gone",
            "AAAA",
            "NXDOMAIN",
            "qr aa rd ra",
            records("gone", &[]),
            true,
        ),
        // What doesn't fit: TC, and a part (RFC 2181, section 9), with EDNS and without.
        (
            "big",
            "AAAA +ignore",
            "NOERROR",
            "qr aa tc rd ra",
            Vec::new(),
            false,
        ),
        (
            "big",
            "AAAA +ignore +noedns",
            "NOERROR",
            "qr aa tc rd ra",
            Vec::new(),
            false,
        ),
        // Below the name there is nothing, upstream or not.
        ("x.out", "AAAA", "NXDOMAIN", "qr aa rd ra", Vec::new(), true),
    ];
    let server = format!("@{SERVER}");
    for (service, arguments, code, flags, records, soa) in cases {
        let mut said = dig(&client, &server, &format!("{} {arguments}", name(service)))?;
        if flags.contains(" tc ") {
            let alias = said
                .records
                .first()
                .is_some_and(|first| first.contains(" CNAME "));
            assert!(alias && (2..=BIG).contains(&said.records.len()), "{said:?}");
            said.records.clear();
        }
        let expected = Said {
            code: code.to_owned(),
            flags: flags.to_owned(),
            records,
            soa,
        };
        assert_eq!(said, expected, "{service} {arguments}");
    }
    // Over TCP, as after TC, all of it.
    let said = dig(&client, &server, &format!("{} AAAA", name("big")))?;
    assert_eq!((&*said.flags, said.records.len()), ("qr aa rd ra", 1 + BIG));

    // An upstream that asks us, about the target or about the name that is an alias of it: noticed, told, and ended.
    for service in ["ring", "round"] {
        drop(peak);
        peak = start(&["--upstream", UPSTREAM])?;
        let said = dig(&client, &server, &format!("{} AAAA", name(service)))?;
        assert_eq!(
            (&*said.code, said.records),
            ("SERVFAIL", records(service, &[]))
        );
        eventually("the loop to be told", LIMIT, || {
            let told = peak.process().log().contains("it forwards to us");
            Ok(told.then_some(()))
        })?;
    }

    // Recursion is not for everybody (RFC 5358, section 4): others get the alias.
    drop(peak);
    let _peak = start(&["--upstream", UPSTREAM, "--forward-for", "192.0.2.0/24"])?;
    let said = dig(&client, &server, &format!("{} AAAA", name("out")))?;
    assert_eq!(
        (&*said.code, said.records),
        ("NOERROR", records("out", &[]))
    );
    Ok(())
}
