//! A zone written by hand, with the answers that it must give: what kernel and fallback say is compared with that, and
//! with one another.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use peak_tests::{Net, Peak, connect, exchange, pass, query};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/zone");
const TTL: u32 = 5;

/// A line of `answers.txt`.
#[derive(Debug)]
struct Wanted<'t> {
    name: &'t str,
    qtype: RecordType,
    /// Without EDNS, with it.
    edns: &'static [bool],
    /// `None`: as there is room.
    by_kernel: Option<bool>,
    said: Said,
}

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    rcode: &'static str,
    authoritative: bool,
    truncated: bool,
    soa: bool,
    records: BTreeSet<String>,
}

/// The member of a closed set that a word stands for.
fn one<T: Copy>(word: Option<&str>, set: &[(&'static str, T)]) -> Result<(&'static str, T)> {
    let word = word.context("a field is missing")?;
    let found = set.iter().find(|(member, _)| *member == word);
    found
        .copied()
        .with_context(|| format!("{word} is none of its kind"))
}

impl<'t> Wanted<'t> {
    fn read(line: &'t str) -> Result<Self> {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next().context("a name")?;
        let qtype = fields.next().context("a type")?;
        let edns = [
            ("no", &[false][..]),
            ("yes", &[true]),
            ("both", &[false, true]),
        ];
        let (_, edns) = one(fields.next(), &edns)?;
        let (rcode, ()) = one(
            fields.next(),
            &[("NOERROR", ()), ("NXDOMAIN", ()), ("REFUSED", ())],
        )?;
        let flags = [
            ("-", (false, false)),
            ("aa", (true, false)),
            ("aa,tc", (true, true)),
        ];
        let (_, (authoritative, truncated)) = one(fields.next(), &flags)?;
        let (_, soa) = one(fields.next(), &[("-", false), ("SOA", true)])?;
        let by = [
            ("fallback", Some(false)),
            ("kernel", Some(true)),
            ("either", None),
        ];
        let (_, by_kernel) = one(fields.next(), &by)?;
        let records = fields.map(str::to_owned).collect();
        Ok(Self {
            name,
            qtype: qtype.parse().ok().context("a type")?,
            edns,
            by_kernel,
            said: Said {
                rcode,
                authoritative,
                truncated,
                soa,
                records,
            },
        })
    }
}

impl Said {
    fn of(reply: &Message) -> Result<Self> {
        let rcode = match reply.metadata.response_code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::Refused => "REFUSED",
            other => bail!("{other}"),
        };
        for record in reply.answers.iter().chain(&reply.authorities) {
            ensure!(record.ttl == TTL, "the TTL of {record}");
        }
        let soa = match &reply.authorities[..] {
            [] => false,
            [
                Record {
                    data: RData::SOA(soa),
                    ..
                },
            ] => {
                // RFC 2308, section 5: the lesser of the two counts.
                ensure!(soa.minimum == TTL, "{soa}");
                true
            }
            other => bail!("in the authority section: {other:?}"),
        };
        let records: BTreeSet<_> = reply.answers.iter().map(text).collect::<Result<_>>()?;
        ensure!(
            records.len() == reply.answers.len(),
            "some record comes twice"
        );
        Ok(Self {
            rcode,
            authoritative: reply.metadata.authoritative,
            truncated: reply.metadata.truncation,
            soa,
            records,
        })
    }
}

/// A record's data as `answers.txt` has it, without spaces; an SOA's is without its serial.
fn text(record: &Record) -> Result<String> {
    Ok(match &record.data {
        RData::A(a) => a.to_string(),
        RData::AAAA(aaaa) => aaaa.to_string(),
        RData::NS(ns) => ns.to_string(),
        RData::CNAME(target) => target.to_string(),
        RData::PTR(target) => target.to_string(),
        RData::SRV(srv) => format!(
            "{}/{}/{}/{}",
            srv.priority, srv.weight, srv.port, srv.target
        ),
        RData::TXT(txt) => format!("\"{txt}\""),
        RData::SOA(soa) => format!(
            "{}/{}/{}/{}/{}/{}",
            soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum
        ),
        other => bail!("{other} is not expected"),
    })
}

/// The message without what differs from one answer to the next.
fn comparable(mut message: Message) -> Message {
    message.metadata.id = 0;
    // They are rotated.
    message.answers.sort();
    message
}

#[test]
fn kernel_and_fallback_answer_as_is_written() -> Result<()> {
    let Net { client, node } = Net::new()?;
    let _pass = pass(&client, "eth0")?;
    let servers =
        Net::SERVERS.map(|server| SocketAddr::new(server.parse().expect("an address"), 53));
    let listen = servers.map(|server| server.to_string());
    let listen = ["--listen", &listen[0], "--listen", &listen[1]];
    let zone = ["--reverse", "10.96.0.0/16", "--pods", "insecure"];
    let peak = Peak::on_eth0(&node, FOLDER, "auto", &[&listen[..], &zone].concat())?;
    let sockets = client.run(|| servers.map(connect));

    let table = fs::read_to_string(format!("{FOLDER}/answers.txt"))?;
    let lines = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let wanted: Vec<_> = lines
        .map(|line| Wanted::read(line).with_context(|| line.to_owned()))
        .collect::<Result<_>>()?;
    assert!(wanted.len() >= 100, "{} lines", wanted.len());

    let mut answers = [Vec::new(), Vec::new()];
    for (kernel, answers) in [true, false].into_iter().zip(&mut answers) {
        peak.kernel(kernel)?;
        for wanted in &wanted {
            let before = peak.status()?.counted();
            let mut asked = 0;
            for (socket, &edns) in sockets
                .iter()
                .flat_map(|socket| wanted.edns.iter().map(move |edns| (socket, edns)))
            {
                let what = || format!("{} {} {edns}, kernel {kernel}", wanted.name, wanted.qtype);
                let socket = socket.as_ref().expect("a socket");
                let query = query(wanted.name, wanted.qtype, edns)?;
                let reply = exchange(socket, &query).with_context(what)?;
                assert_eq!(
                    Said::of(&reply).with_context(what)?,
                    wanted.said,
                    "{}",
                    what()
                );
                assert!(
                    reply.metadata.recursion_desired && !reply.metadata.recursion_available,
                    "{}",
                    what()
                );
                assert_eq!(reply.edns.is_some(), edns, "{}", what());
                answers.push(comparable(reply));
                asked += 1;
            }
            let counted = peak.status()?.counted() - before;
            let what = format!("kernel {kernel}: {wanted:?}");
            assert_eq!(counted.kernel + counted.fallback, asked, "{what}");
            match wanted.by_kernel {
                Some(true) if kernel => assert_eq!(counted.kernel, asked, "{what}"),
                None if kernel => {}
                _ => assert_eq!(counted.kernel, 0, "{what}"),
            }
        }
    }
    let [with_kernel, without] = answers;
    assert_eq!(with_kernel, without);
    Ok(())
}
