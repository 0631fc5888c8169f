//! What replies come to, in words that can be compared.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    thread,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};
use peak_tests::{Namespace, data, over_tcp, over_udp, query};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// With the final dot.
    pub(crate) name: String,
    pub(crate) qtype: RecordType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A record without its class. The owner is as it came: it has the case of the query. Names in its data are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) owner: String,
    pub(crate) rtype: RecordType,
    pub(crate) ttl: u32,
    pub(crate) data: String,
}

impl Entry {
    fn of(record: &Record) -> Result<Self> {
        Ok(Self {
            owner: record.name.to_ascii(),
            rtype: record.record_type(),
            ttl: record.ttl,
            data: data(record)?,
        })
    }
}

/// An answer: of the additional section the addresses (OPT is left out: servers differ in options and sizes), of the header
/// what is about the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) rcode: ResponseCode,
    pub(crate) authoritative: bool,
    pub(crate) truncated: bool,
    pub(crate) answers: BTreeSet<Entry>,
    /// Whether no CNAME comes behind another record.
    pub(crate) aliases_first: bool,
    /// Of an SOA the owner, the TTL and the minimum: the rest is compared where it is asked for.
    pub(crate) authority: BTreeSet<Entry>,
    /// Owners in lower case.
    pub(crate) additional: BTreeSet<Entry>,
}

impl Answer {
    fn of(reply: &Message) -> Result<Self> {
        let mut answers = BTreeSet::new();
        for record in &reply.answers {
            ensure!(answers.insert(Entry::of(record)?), "{record} comes twice");
        }
        let is_alias = |record: &Record| record.record_type() == RecordType::CNAME;
        let behind = reply.answers.iter().skip_while(|record| is_alias(record));
        let authority = reply.authorities.iter().map(|record| {
            let mut entry = Entry::of(record)?;
            if let RData::SOA(soa) = &record.data {
                entry.data = soa.minimum.to_string();
            }
            Ok(entry)
        });
        let additional = reply.additionals.iter().map(|record| {
            let mut entry = Entry::of(record)?;
            entry.owner = entry.owner.to_lowercase();
            Ok(entry)
        });
        Ok(Self {
            rcode: reply.metadata.response_code,
            authoritative: reply.metadata.authoritative,
            truncated: reply.metadata.truncation,
            aliases_first: !behind.into_iter().any(is_alias),
            answers,
            authority: authority.collect::<Result<_>>()?,
            additional: additional.collect::<Result<_>>()?,
        })
    }

    /// Whether there is neither an answer nor anything additional.
    pub(crate) fn has_no_records_but_authority(&self) -> bool {
        self.answers.is_empty() && self.additional.is_empty()
    }

    /// Whether all records are among those of `whole`, which has more.
    pub(crate) fn is_part_of(&self, whole: &Self) -> bool {
        self.answers.is_subset(&whole.answers)
            && self.additional.is_subset(&whole.additional)
            && (&self.answers, &self.additional) != (&whole.answers, &whole.additional)
    }

    /// The same with all owners in lower case, and without what of a set has room: that is chance.
    pub(crate) fn folded(&self) -> Self {
        let folded = |entries: &BTreeSet<Entry>| {
            let entries = entries.iter().map(|entry| Entry {
                owner: entry.owner.to_lowercase(),
                ..entry.clone()
            });
            entries.collect()
        };
        Self {
            answers: if self.truncated {
                BTreeSet::new()
            } else {
                folded(&self.answers)
            },
            authority: folded(&self.authority),
            ..self.clone()
        }
    }

    /// The same to a question with another name in the place of `name`.
    pub(crate) fn renamed(&self, name: &str, other: &str) -> Self {
        let renamed = |entries: &BTreeSet<Entry>| {
            let entries = entries.iter().map(|entry| Entry {
                owner: if entry.owner == name {
                    other.to_owned()
                } else {
                    entry.owner.clone()
                },
                ..entry.clone()
            });
            entries.collect()
        };
        Self {
            answers: renamed(&self.answers),
            ..self.clone()
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rcode,
            authoritative,
            truncated,
            ..
        } = self;
        write!(f, "{rcode:?}")?;
        for flag in [("aa", authoritative), ("tc", truncated)] {
            if *flag.1 {
                write!(f, " {}", flag.0)?;
            }
        }
        for (section, entries) in [
            ("", &self.answers),
            (" authority", &self.authority),
            (" additional", &self.additional),
        ] {
            if !entries.is_empty() {
                write!(f, "{section}")?;
            }
            for Entry {
                owner,
                rtype,
                ttl,
                data,
            } in entries
            {
                write!(f, " [{owner} {ttl} {rtype} {data}]")?;
            }
        }
        Ok(())
    }
}

/// What a server says over one transport.
pub(crate) struct Answers {
    pub(crate) replies: Vec<Message>,
    pub(crate) answers: Vec<Answer>,
}

impl Answers {
    /// Asks all of it, from a namespace. Half of the names are asked for with an OPT.
    pub(crate) fn ask(
        client: &Namespace,
        server: SocketAddr,
        transport: Transport,
        questions: &[Question],
    ) -> Result<Self> {
        /// As many sockets are in use at once.
        const WAYS: usize = 4;
        let share = questions.len().div_ceil(WAYS).max(1);
        let parts = thread::scope(|scope| {
            let asking: Vec<_> = questions
                .chunks(share)
                .map(|part| scope.spawn(move || ask_part(client, server, transport, part)))
                .collect();
            let parts = asking
                .into_iter()
                .map(|part| part.join().expect("it does not panic"));
            parts.collect::<Result<Vec<_>>>()
        });
        let parts = parts.with_context(|| format!("{server} over {transport:?}"))?;
        let (replies, answers) = parts.into_iter().flatten().unzip();
        Ok(Self { replies, answers })
    }
}

/// Whether there is an OPT in queries about a name: in all of them or in none, in either case, with and without underscores, so
/// that what has room in one answer has it in the other.
fn has_edns(name: &str) -> bool {
    let bytes = name.bytes().filter(|&byte| byte != b'_');
    let sum = bytes.fold(0, |sum: u8, byte| {
        sum.wrapping_add(byte.to_ascii_lowercase())
    });
    sum % 2 == 0
}

fn ask_part(
    client: &Namespace,
    server: SocketAddr,
    transport: Transport,
    questions: &[Question],
) -> Result<Vec<(Message, Answer)>> {
    let queries = questions.iter().map(|question| {
        let Question { name, qtype } = question;
        query(name, *qtype, has_edns(name)).with_context(|| format!("{question:?}"))
    });
    let queries: Vec<_> = queries.collect::<Result<_>>()?;
    let replies = client.run(|| match transport {
        Transport::Udp => over_udp(server, &queries),
        Transport::Tcp => over_tcp(server, &queries),
    })?;
    let answers = replies.into_iter().zip(questions).map(|(reply, question)| {
        let answer = Answer::of(&reply).with_context(|| format!("{question:?}: {reply:?}"))?;
        Ok((reply, answer))
    });
    answers.collect()
}

/// Where each question stands in a list.
pub(crate) type Places = HashMap<Question, usize>;
