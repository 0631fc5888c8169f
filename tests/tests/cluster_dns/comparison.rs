//! One question, two servers.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr};

use anyhow::{Result, ensure};
use hickory_proto::rr::RecordType;
use peak_tests::{ControlPlane, CoreDns, comparable, rtype};

use crate::{
    REVERSE, Site,
    answer::{Answers, Places, Question, Transport},
    differences::{Differences, Said},
    names::{Names, ZONE},
    upstream::Upstream,
};

/// The types that are asked for.
const TYPES: [&str; 10] = [
    "A",
    "AAAA",
    "SRV",
    "PTR",
    "TXT",
    "CNAME",
    "SOA",
    "NS",
    "ANY",
    "TYPE65280",
];

/// As many AAAA records have room in any frame.
const KERNEL_HAS_ROOM: usize = 7;

/// What differs without an explanation, by kind of name, type and transport.
type Unexplained = BTreeMap<(&'static str, String, Transport), Vec<String>>;

/// Peak beside CoreDNS on one control plane.
pub(crate) struct Comparison<'p> {
    plane: &'p ControlPlane,
    types: Vec<RecordType>,
    /// Those that are wanted.
    differences: Differences,
    unexplained: Unexplained,
}

/// How both are started.
pub(crate) struct Run<'r> {
    pub(crate) peak: &'r [&'r str],
    /// Lines of the `kubernetes` plugin.
    pub(crate) coredns: &'r [&'r str],
    /// What these options make of the TTL.
    pub(crate) ttl: u32,
    /// Whether there is an [`Upstream`].
    pub(crate) upstream: bool,
}

impl Default for Run<'_> {
    fn default() -> Self {
        Self {
            peak: &[],
            coredns: &[],
            ttl: 5,
            upstream: false,
        }
    }
}

impl<'p> Comparison<'p> {
    /// With the text of a table of differences.
    pub(crate) fn new(plane: &'p ControlPlane, differences: &str) -> Result<Self> {
        let types: Vec<_> = TYPES
            .iter()
            .map(|name| rtype(name))
            .collect::<Result<_>>()?;
        Ok(Self {
            plane,
            differences: Differences::read(differences, &types)?,
            types,
            unexplained: Unexplained::new(),
        })
    }

    /// Starts both, and asks them about names: Peak with the kernel answering, without it, and over TCP, CoreDNS over UDP and
    /// TCP.
    ///
    /// # Errors
    /// Kernel and fallback differ, or the kernel did not answer what it can.
    pub(crate) fn run(&mut self, run: &Run<'_>, names: &Names) -> Result<()> {
        let site = Site::new(self.plane, &[&REVERSE, run.peak].concat())?;
        let node = &site.net.node;
        let coredns = CoreDns::start_in(node, self.plane, "cluster-dns-coredns", run.coredns)?;
        let upstream = run.upstream.then(|| Upstream::start(&site.net.node));
        let _upstream = upstream.transpose()?;
        let by_type = |name: &String| {
            let (name, kind) = (name.clone(), names[name]);
            let types = self.types.iter();
            let asked = types.filter(move |qtype| {
                // The others are other servers' to compare.
                !kind.starts_with("upstream") || qtype.is_ip_addr() || **qtype == RecordType::CNAME
            });
            asked.map(move |&qtype| Question {
                name: name.clone(),
                qtype,
            })
        };
        let apexes = names.keys().filter(|name| names[*name].contains("apex"));
        let transfer = |name: &String| Question {
            name: name.clone(),
            qtype: RecordType::AXFR,
        };
        let questions = names.keys().flat_map(by_type);
        let questions: Vec<_> = questions.chain(apexes.map(transfer)).collect();
        let places: Places = questions.iter().cloned().zip(0..).collect();
        let here = Site::server();
        let there = SocketAddr::new(here.ip(), coredns.address().port());
        let ask = |server, transport| Answers::ask(&site.net.client, server, transport, &questions);

        let before = site.peak.status()?.counted();
        let by_kernel = ask(here, Transport::Udp)?;
        let counted = site.peak.status()?.counted() - before;
        site.peak.kernel(false)?;
        let (udp, tcp) = (ask(here, Transport::Udp)?, ask(here, Transport::Tcp)?);
        let peak = Said {
            ttl: run.ttl,
            places: &places,
            udp: &udp,
            tcp: &tcp,
        };
        let (udp, tcp) = (ask(there, Transport::Udp)?, ask(there, Transport::Tcp)?);
        let coredns = Said {
            ttl: run.ttl,
            places: &places,
            udp: &udp,
            tcp: &tcp,
        };

        let (mut least, mut most) = (0, 0);
        for (place, question) in questions.iter().enumerate() {
            let Question { name, qtype } = question;
            let kind = names[name];
            let [with_kernel, without] =
                [&by_kernel, peak.udp].map(|answers| comparable(answers.replies[place].clone()));
            ensure!(
                with_kernel == without,
                "the kernel says {with_kernel:?}, the fallback {without:?}"
            );
            if is_kernels(name, kind, *qtype) {
                let answer = &by_kernel.answers[place];
                let has_room = !answer.truncated && answer.answers.len() <= KERNEL_HAS_ROOM;
                least += u64::from(has_room);
                most += 1;
            }
            for (transport, here, there) in [
                (Transport::Udp, peak.udp, coredns.udp),
                (Transport::Tcp, peak.tcp, coredns.tcp),
            ] {
                let [here, there] = [here, there].map(|answers| &answers.answers[place]);
                // What clients read depends on it.
                ensure!(here.aliases_first, "{question:?}: {here}");
                if here != there
                    && !self
                        .differences
                        .explain(question, kind, transport, &peak, &coredns)
                {
                    let what = format!("{name}\n    Peak    {here}\n    CoreDNS {there}");
                    let group = self.unexplained.entry((kind, qtype.to_string(), transport));
                    group.or_default().push(what);
                }
            }
        }
        ensure!(
            (least..=most).contains(&counted.kernel) && least > 0,
            "{counted}: the kernel can answer {least}, and at most {most} if there is room"
        );
        Ok(())
    }

    /// Makes sure that the table has all differences of all runs, and no others.
    ///
    /// # Errors
    /// With those that it has not, or that are none.
    pub(crate) fn finish(self) -> Result<()> {
        let unexplained = listed(&self.unexplained);
        ensure!(
            unexplained.is_empty(),
            "differences.txt does not explain:{unexplained}"
        );
        self.differences.all_used()
    }
}

/// Asks Peak about names in upper case, where it has to say what it says of them in lower case, and to echo the case: of the name
/// in answers, of the zone in a negative answer's SOA.
pub(crate) fn case_means_nothing<'n>(
    plane: &ControlPlane,
    names: impl Iterator<Item = &'n String>,
) -> Result<()> {
    let site = Site::new(plane, &REVERSE)?;
    let types = TYPES.iter().map(|name| rtype(name));
    let types: Vec<_> = types.collect::<Result<_>>()?;
    let by_type = |name: &String| {
        let name = name.to_lowercase();
        types.clone().into_iter().map(move |qtype| Question {
            name: name.clone(),
            qtype,
        })
    };
    let lower: Vec<_> = names.flat_map(by_type).collect();
    let upper = lower.iter().map(|question| Question {
        name: question.name.to_uppercase(),
        ..question.clone()
    });
    let upper: Vec<_> = upper.collect();
    let ask = |questions| Answers::ask(&site.net.client, Site::server(), Transport::Udp, questions);
    let (in_lower, in_upper) = (ask(&lower)?, ask(&upper)?);
    for ((question, in_lower), in_upper) in
        upper.iter().zip(&in_lower.answers).zip(&in_upper.answers)
    {
        ensure!(
            in_upper.folded() == in_lower.folded(),
            "{question:?}: {in_upper}, not {in_lower}"
        );
        let mut owners = in_upper.answers.iter().map(|entry| &entry.owner);
        let echoed = match in_upper.authority.first() {
            Some(soa) if in_upper.answers.is_empty() => question.name.ends_with(&soa.owner),
            _ => in_upper.answers.is_empty() || owners.any(|owner| *owner == question.name),
        };
        ensure!(echoed, "{question:?}: {in_upper}");
    }
    Ok(())
}

/// Whether the kernel answers a question if there is room: addresses in the zone, but those of aliases' targets, and of pods that
/// nobody has verified.
fn is_kernels(name: &str, kind: &str, qtype: RecordType) -> bool {
    let is_address = matches!(qtype, RecordType::A | RecordType::AAAA);
    let in_zone = name.to_lowercase().ends_with(ZONE) && kind != "outside";
    is_address
        && in_zone
        && !["alias", "upstream", "any-"]
            .iter()
            .any(|other| kind.starts_with(other))
}

/// Some of each.
fn listed(unexplained: &Unexplained) -> String {
    let mut text = String::new();
    for ((kind, qtype, transport), all) in unexplained {
        let _ = write!(text, "\n{kind} {qtype} {transport:?}: {}", all.len());
        for one in all.iter().take(2) {
            let _ = write!(text, "\n  {one}");
        }
    }
    text
}
