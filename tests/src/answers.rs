//! Tables of answers that were written by hand, and what a reply comes to in their words.
//!
//! A line is `NAME TYPE EDNS RCODE FLAGS AUTHORITY BY RECORDS…`; `#` begins a comment.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};

use crate::{Namespace, Net, Peak, connect, exchange, over_tcp, query};

/// The TTL of all records, in seconds: the agent's default.
const TTL: u32 = 5;

/// A line of a table.
#[derive(Debug)]
pub struct Wanted<'t> {
    /// What is asked for.
    pub name: &'t str,
    /// And of which type.
    pub qtype: RecordType,
    /// Without EDNS, with it.
    pub edns: &'static [bool],
    /// Whether the kernel answers where it may; `None`: as there is room.
    pub by_kernel: Option<bool>,
    /// The answer.
    pub said: Said,
}

/// What an answer comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
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
    /// Reads all lines of a table.
    ///
    /// # Errors
    /// A line is not as described: it is named.
    pub fn all(table: &'t str) -> Result<Vec<Self>> {
        let lines = table.lines();
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(|line| Self::read(line).with_context(|| line.to_owned()))
            .collect()
    }

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
            qtype: rtype(qtype)?,
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

impl Wanted<'_> {
    /// Makes sure that a reply says this.
    fn hold(&self, reply: &Message) -> Result<()> {
        let said = Said::of(reply)?;
        ensure!(said == self.said, "it is {said:?}");
        // The case of the query comes back, in a negative answer's SOA, too.
        let query = query(self.name, self.qtype, false)?;
        let asked = query.queries[0].name();
        ensure!(
            reply.queries[0].name().eq_case(asked),
            "{:?}",
            reply.queries
        );
        if let Some(first) = reply.answers.first() {
            ensure!(first.name.eq_case(asked), "the owner is {}", first.name);
        } else if let Some(soa) = reply.authorities.first() {
            let zone = soa.name.to_ascii();
            ensure!(self.name.ends_with(&zone), "the SOA is that of {zone}");
        }
        let metadata = &reply.metadata;
        ensure!(
            metadata.recursion_desired && !metadata.recursion_available,
            "{metadata:?}"
        );
        Ok(())
    }
}

impl Said {
    /// Whether it comes from who is responsible for the name.
    #[must_use]
    pub fn is_authoritative(&self) -> bool {
        self.authoritative
    }

    /// Whether another server says the same in another way: it may add to an answer who is responsible, and after an alias leave
    /// out that the end of it has no such type.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        let negative = self.records.is_empty();
        self.rcode == other.rcode
            && self.authoritative == other.authoritative
            && self.truncated == other.truncated
            && (self.soa == other.soa || !negative)
            && self.records == other.records
    }

    /// What a reply says, with whatever an authority section may say of who is responsible.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn of_other(mut reply: Message) -> Result<Self> {
        reply
            .authorities
            .retain(|record| matches!(record.data, RData::SOA(_)));
        Self::of(&reply)
    }

    /// What a reply says.
    ///
    /// # Errors
    /// It says what no table could: another rcode, a TTL that isn't the default, an authority section with anything but an
    /// SOA whose minimum is that, a record twice.
    pub fn of(reply: &Message) -> Result<Self> {
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
        let mut records: BTreeSet<_> = reply.answers.iter().map(data).collect::<Result<_>>()?;
        ensure!(
            records.len() == reply.answers.len(),
            "some record comes twice"
        );
        if reply.metadata.truncation {
            // Which of them have room is chance, and no table has it.
            ensure!(!records.is_empty(), "TC, and none of the records");
            records.clear();
        }
        Ok(Self {
            rcode,
            authoritative: reply.metadata.authoritative,
            truncated: reply.metadata.truncation,
            soa,
            records,
        })
    }
}

/// A type by its name, or as RFC 3597 writes those that have none: `TYPE65280`.
///
/// # Errors
/// It is neither.
pub fn rtype(name: &str) -> Result<RecordType> {
    if let Some(number) = name.strip_prefix("TYPE") {
        return Ok(RecordType::from(number.parse::<u16>()?));
    }
    let known = name.parse().ok();
    known.with_context(|| format!("{name} is no type"))
}

/// A record's data as tables have it, without spaces, names in lower case; an SOA's is without its serial.
///
/// # Errors
/// It is of a type that no table has.
pub fn data(record: &Record) -> Result<String> {
    let text = match &record.data {
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
    };
    Ok(text.to_lowercase())
}

/// The message without what differs from one answer to the next: ID, rotation, what of a set has room, the zone's serial.
#[must_use]
pub fn comparable(mut message: Message) -> Message {
    message.metadata.id = 0;
    // Other objects may change meanwhile, and with them the serial.
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        if let RData::SOA(soa) = &mut record.data {
            soa.serial = 0;
        }
    }
    // They are rotated, and which of them have room depends on it.
    message.answers.sort();
    if message.metadata.truncation {
        message.answers.clear();
    }
    message
}

/// Asks an agent on [`Net`]'s node about tables: at both of its addresses, with the kernel answering, without it, and over TCP.
/// It has to say what is written, and the kernel and the fallback the same; who answers is counted table by table. The agent
/// is left with the kernel off.
///
/// # Errors
/// With the line, and what was said.
pub fn check<'t>(peak: &Peak, client: &Namespace, tables: &[&[Wanted<'t>]]) -> Result<()> {
    let servers =
        Net::SERVERS.map(|server| SocketAddr::new(server.parse().expect("it is one"), 53));
    let sockets = client.run(|| servers.map(connect));
    let [a, b] = sockets;
    let sockets = [a?, b?];
    let mut answers = [Vec::new(), Vec::new()];
    for (kernel, answers) in [true, false].into_iter().zip(&mut answers) {
        peak.kernel(kernel)?;
        for table in tables {
            let before = peak.status()?.counted();
            let (mut asked, mut by_kernel) = (0, 0..=0);
            for wanted in *table {
                let what = || format!("kernel {kernel}: {wanted:?}");
                let from = asked;
                for (socket, &edns) in sockets
                    .iter()
                    .flat_map(|socket| wanted.edns.iter().map(move |edns| (socket, edns)))
                {
                    let query = query(wanted.name, wanted.qtype, edns)?;
                    let reply = exchange(socket, &query).with_context(what)?;
                    wanted.hold(&reply).with_context(what)?;
                    ensure!(reply.edns.is_some() == edns, "OPT, {}", what());
                    answers.push(comparable(reply));
                    asked += 1;
                }
                let (least, most) = match wanted.by_kernel {
                    _ if !kernel => (0, 0),
                    Some(true) => (asked - from, asked - from),
                    Some(false) => (0, 0),
                    None => (0, asked - from),
                };
                by_kernel = by_kernel.start() + least..=by_kernel.end() + most;
            }
            let counted = peak.status()?.counted() - before;
            ensure!(
                counted.kernel + counted.fallback == asked && by_kernel.contains(&counted.kernel),
                "{counted}, not {by_kernel:?} in the kernel of {asked}, kernel {kernel}: {table:?}"
            );
        }
    }
    let [with_kernel, without] = answers;
    for (with_kernel, without) in with_kernel.iter().zip(&without) {
        ensure!(
            with_kernel == without,
            "the kernel says {with_kernel:?}, the fallback {without:?}"
        );
    }
    // RFC 7766: what is truncated over UDP is whole here, and no table has it.
    let wanted = tables
        .iter()
        .copied()
        .flatten()
        .filter(|wanted| !wanted.said.truncated);
    for wanted in wanted {
        let query = query(wanted.name, wanted.qtype, true)?;
        let replies =
            client.run(|| servers.map(|server| over_tcp(server, std::slice::from_ref(&query))));
        for replies in replies {
            let what = || format!("TCP: {wanted:?}");
            wanted
                .hold(&replies.with_context(what)?[0])
                .with_context(what)?;
        }
    }
    Ok(())
}
