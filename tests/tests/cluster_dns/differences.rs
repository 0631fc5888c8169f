//! `differences.txt`: where Peak and CoreDNS are wanted to differ. The file says how it is read.

use std::{cell::Cell, collections::BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{op::ResponseCode, rr::RecordType};

use peak_tests::rtype;

use crate::answer::{Answer, Answers, Entry, Places, Question, Transport};

/// The table.
pub(crate) struct Differences {
    entries: Vec<Difference>,
    /// As the documentation has them: `| what | Peak | CoreDNS | why |`.
    pub(crate) rows: Vec<String>,
}

struct Difference {
    /// As it is written, and in which line.
    line: (usize, String),
    names: Vec<String>,
    types: Vec<RecordType>,
    transports: Vec<Transport>,
    peak: Saying,
    coredns: Saying,
    explained: Cell<usize>,
}

/// What a server says; in `differences.txt` by these words.
enum Saying {
    /// `NODATA`, `NXDOMAIN`: with AA and an SOA; behind an `@` its TTL, if that is not the default.
    Negative(ResponseCode, Option<u32>),
    /// `REFUSED`, `SERVFAIL`: without records.
    Refusal(ResponseCode),
    /// `targets`: those addresses of the additional section to SRV that are of the type asked for; `targets, TC`: some
    /// of them, and TC.
    Targets { truncated: bool },
    /// `underscored`: as to the name whose first two labels begin with underscores.
    Underscored,
    /// `above`: as to the name without its first label.
    Above,
    /// `alias+target`: what it says to CNAME, and behind it what it says of that name.
    AliasAndTarget,
    /// `aliases`: the CNAMEs that lead on from here, each once; `aliases, NXDOMAIN` or `aliases, NODATA`: these, the code
    /// and another zone's SOA.
    Aliases(Option<ResponseCode>),
    /// `rrset`: one of its RRsets, whole.
    RrSet,
    /// `TC+part`: TC, and some of what it says over TCP.
    TruncatedPart,
    /// `fitting`: without TC the answer that it gives over TCP, with less beside it.
    Fitting,
    /// `whole`: the answer that it gives over TCP.
    Whole,
    /// `= RECORD…`: exactly these, with the TTL behind an `@`.
    Exactly(Vec<(Option<RecordType>, String, Option<u32>)>),
}

impl Saying {
    fn read(text: &str) -> Result<Self> {
        let (word, ttl) = with_ttl(text)?;
        Ok(match text {
            _ if word == "NODATA" => Self::Negative(ResponseCode::NoError, ttl),
            _ if word == "NXDOMAIN" => Self::Negative(ResponseCode::NXDomain, ttl),
            "REFUSED" => Self::Refusal(ResponseCode::Refused),
            "SERVFAIL" => Self::Refusal(ResponseCode::ServFail),
            "targets" => Self::Targets { truncated: false },
            "targets, TC" => Self::Targets { truncated: true },
            "underscored" => Self::Underscored,
            "above" => Self::Above,
            "alias+target" => Self::AliasAndTarget,
            "aliases" => Self::Aliases(None),
            "aliases, NODATA" => Self::Aliases(Some(ResponseCode::NoError)),
            "aliases, NXDOMAIN" => Self::Aliases(Some(ResponseCode::NXDomain)),
            "rrset" => Self::RrSet,
            "TC+part" => Self::TruncatedPart,
            "fitting" => Self::Fitting,
            "whole" => Self::Whole,
            _ => {
                let records = text
                    .strip_prefix("= ")
                    .with_context(|| format!("{text:?} is nothing that a server says"))?;
                let records = records.split_ascii_whitespace().map(|record| {
                    let (record, ttl) = with_ttl(record)?;
                    // An IPv6 address has colons, too.
                    let typed = record
                        .split_once(':')
                        .and_then(|(of, data)| Some((rtype(of).ok()?, data)));
                    let (of, data) = typed.map_or((None, record), |(of, data)| (Some(of), data));
                    Ok((of, data.to_owned(), ttl))
                });
                Self::Exactly(records.collect::<Result<_>>()?)
            }
        })
    }

    /// Whether a server says this to a question over a transport.
    fn holds(&self, question: &Question, transport: Transport, said: &Said<'_>) -> bool {
        let Question { name, qtype } = question;
        let Some(this) = said.to(name, *qtype, transport) else {
            return false;
        };
        let positive =
            this.rcode == ResponseCode::NoError && this.authoritative && this.authority.is_empty();
        let whole = said.to(name, *qtype, Transport::Tcp);
        let aliases = || {
            said.to(name, RecordType::CNAME, transport)
                .map(|cname| &cname.answers)
        };
        match self {
            Self::Negative(rcode, ttl) => {
                let soas: Vec<_> = this
                    .authority
                    .iter()
                    .map(|soa| (soa.ttl, &*soa.data))
                    .collect();
                this.rcode == *rcode
                    && this.authoritative
                    && !this.truncated
                    && this.has_no_records_but_authority()
                    && soas == [(ttl.unwrap_or(said.ttl), &*said.ttl.to_string())]
                    && this
                        .authority
                        .iter()
                        .all(|soa| is_zone_of(&soa.owner, name))
            }
            Self::Refusal(rcode) => {
                this.rcode == *rcode
                    && !this.authoritative
                    && this.has_no_records_but_authority()
                    && this.authority.is_empty()
            }
            Self::Targets { truncated } => {
                let srv = said.to(name, RecordType::SRV, Transport::Tcp);
                let addresses = srv.into_iter().flat_map(|srv| &srv.additional);
                let addresses: BTreeSet<_> = addresses
                    .filter(|entry| entry.rtype == *qtype)
                    .map(|entry| Entry {
                        owner: name.clone(),
                        ..entry.clone()
                    })
                    .collect();
                positive
                    && this.truncated == *truncated
                    && !this.answers.is_empty()
                    && this.answers.is_subset(&addresses)
                    && (this.answers != addresses) == *truncated
                    && this.additional.is_empty()
            }
            Self::Underscored => {
                let mut labels: Vec<_> = name.split('.').map(str::to_owned).collect();
                for label in labels.iter_mut().take(2) {
                    *label = format!("_{}", label.trim_start_matches('_'));
                }
                let underscored = labels.join(".");
                let over = if this.truncated {
                    Transport::Tcp
                } else {
                    transport
                };
                said.to(&underscored, *qtype, over).is_some_and(|other| {
                    let other = other.renamed(&underscored, name);
                    *this == other || positive && this.truncated && this.is_part_of(&other)
                })
            }
            Self::Above => {
                let (_, above) = name.split_once('.').unwrap_or_default();
                let other = said.to(above, *qtype, transport);
                other.is_some_and(|other| *this == other.renamed(above, name))
            }
            Self::AliasAndTarget => aliases().is_some_and(|aliases| {
                let Some(target) = aliases.first() else {
                    return false;
                };
                let Some(mut wanted) = said.to(&target.data, *qtype, transport).cloned() else {
                    return false;
                };
                wanted.answers.extend(aliases.iter().cloned());
                *this == wanted
            }),
            Self::Aliases(end) => {
                let (mut aliases, mut at) = (BTreeSet::new(), name.clone());
                while let Some(cname) = said.to(&at, RecordType::CNAME, transport)
                    && let Some(entry) = cname.answers.first()
                    && aliases.insert(entry.clone())
                {
                    at.clone_from(&entry.data);
                }
                let soas = this
                    .authority
                    .iter()
                    .filter(|entry| entry.rtype == RecordType::SOA);
                let is_said = match end {
                    None => positive,
                    Some(rcode) => {
                        let foreign = soas.filter(|soa| !is_zone_of(&soa.owner, name)).count();
                        this.rcode == *rcode
                            && this.authoritative
                            && (foreign, this.authority.len()) == (1, 1)
                    }
                };
                is_said && !this.truncated && this.answers == aliases && this.additional.is_empty()
            }
            Self::RrSet => {
                use RecordType::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
                // What is behind an alias is not the name's own.
                let is_own = |set: &&Answer| !set.answers.is_empty() || set.truncated;
                let cname = said.to(name, CNAME, transport).filter(is_own);
                let types = [AAAA, A, PTR, TXT, SOA, SRV].into_iter();
                let mut sets = types.filter_map(|rtype| said.to(name, rtype, transport));
                cname.or_else(|| sets.find(is_own)) == Some(this)
            }
            Self::TruncatedPart => {
                whole.is_some_and(|whole| positive && this.truncated && this.is_part_of(whole))
            }
            Self::Fitting => whole.is_some_and(|whole| {
                positive
                    && !this.truncated
                    && this.answers == whole.answers
                    && this.is_part_of(whole)
            }),
            Self::Whole => positive && whole == Some(this),
            Self::Exactly(records) => {
                let records = records.iter().map(|(of, data, ttl)| Entry {
                    owner: name.clone(),
                    rtype: of.unwrap_or(*qtype),
                    ttl: ttl.unwrap_or(said.ttl),
                    data: data.replace("{name}", name),
                });
                let may_have_more = matches!(qtype, RecordType::SRV | RecordType::NS);
                positive
                    && !this.truncated
                    && this.answers == records.collect()
                    && (may_have_more || this.additional.is_empty())
            }
        }
    }
}

/// Whether a name in a zone has that for its end, in the same case.
fn is_zone_of(zone: &str, name: &str) -> bool {
    let zones = ["cluster.local.", "in-addr.arpa.", "ip6.arpa."];
    zones.contains(&&*zone.to_lowercase()) && name.ends_with(zone)
}

/// What stands before an `@`, and the TTL behind it.
fn with_ttl(text: &str) -> Result<(&str, Option<u32>)> {
    Ok(match text.rsplit_once('@') {
        Some((before, ttl)) => (before, Some(ttl.parse()?)),
        None => (text, None),
    })
}

/// All that a server says.
pub(crate) struct Said<'a> {
    /// The TTL that it is told to give, in seconds.
    pub(crate) ttl: u32,
    pub(crate) places: &'a Places,
    pub(crate) udp: &'a Answers,
    pub(crate) tcp: &'a Answers,
}

impl Said<'_> {
    fn to(&self, name: &str, qtype: RecordType, transport: Transport) -> Option<&Answer> {
        let question = Question {
            name: name.to_owned(),
            qtype,
        };
        let place = *self.places.get(&question)?;
        let answers = match transport {
            Transport::Udp => self.udp,
            Transport::Tcp => self.tcp,
        };
        answers.answers.get(place)
    }
}

impl Differences {
    /// Reads the table; `types` are those of which `*` stands for all.
    pub(crate) fn read(text: &str, types: &[RecordType]) -> Result<Self> {
        let (mut entries, mut rows) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            match line.chars().next() {
                None | Some('#') => {}
                Some('|') => rows.push(line.to_owned()),
                Some(_) => {
                    let entry = Difference::read(index + 1, line, types);
                    entries.push(entry.with_context(|| format!("line {}: {line}", index + 1))?);
                }
            }
        }
        Ok(Self { entries, rows })
    }

    /// Whether an entry explains that these two differ. The first that does is counted, but for names that chance has made:
    /// each entry needs a case.
    pub(crate) fn explain(
        &self,
        question: &Question,
        kind: &str,
        transport: Transport,
        peak: &Said<'_>,
        coredns: &Said<'_>,
    ) -> bool {
        let mut entries = self.entries.iter().filter(|entry| {
            entry
                .names
                .iter()
                .any(|names| *names == kind || *names == question.name)
                && entry.types.contains(&question.qtype)
                && entry.transports.contains(&transport)
        });
        let entry = entries.find(|entry| {
            entry.peak.holds(question, transport, peak)
                && entry.coredns.holds(question, transport, coredns)
        });
        if let Some(entry) = entry {
            let by_hand = !crate::generated::is_of_one(&question.name);
            entry
                .explained
                .set(entry.explained.get() + usize::from(by_hand));
        }
        entry.is_some()
    }

    /// Makes sure that each entry has explained something.
    ///
    /// # Errors
    /// With those that have not.
    pub(crate) fn all_used(&self) -> Result<()> {
        let idle = self
            .entries
            .iter()
            .filter(|entry| entry.explained.get() == 0);
        let idle: Vec<_> = idle
            .map(|entry| format!("\n  {}: {}", entry.line.0, entry.line.1))
            .collect();
        ensure!(
            idle.is_empty(),
            "differences.txt has what does not differ:{}",
            idle.concat()
        );
        Ok(())
    }
}

impl Difference {
    fn read(number: usize, line: &str, types: &[RecordType]) -> Result<Self> {
        let fields: Vec<_> = line.split(';').map(str::trim).collect();
        let [names, of_types, transports, peak, coredns] = fields[..] else {
            bail!("five fields are wanted");
        };
        let transports = match transports {
            "UDP" => vec![Transport::Udp],
            "TCP" => vec![Transport::Tcp],
            "both" => vec![Transport::Udp, Transport::Tcp],
            other => bail!("{other} is no transport"),
        };
        Ok(Self {
            line: (number, line.to_owned()),
            names: names.split_ascii_whitespace().map(str::to_owned).collect(),
            types: match of_types {
                "*" => types.to_vec(),
                some => some
                    .split_ascii_whitespace()
                    .map(rtype)
                    .collect::<Result<_>>()?,
            },
            transports,
            peak: Saying::read(peak)?,
            coredns: Saying::read(coredns)?,
            explained: Cell::new(0),
        })
    }
}
