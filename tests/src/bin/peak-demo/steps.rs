//! What is shown, and what has to come out.

use std::{env, time::Duration};

use anyhow::{Context, Result, bail};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use peak_tests::{Counted, ask, eventually};
use serde::Serialize;

use crate::{
    client::Visits,
    scene::{HTTP, SERVER, Scene},
};

/// How long counters may lag behind the answer that they count.
const COUNTERS: Duration = Duration::from_secs(1);

/// One step.
pub(crate) struct Step {
    title: &'static str,
    /// What happens before.
    change: fn(&mut Scene) -> Result<()>,
    question: Question,
}

enum Question {
    /// A stub resolver asks A and AAAA at once; then every address is visited. These pods have to reply, no other.
    Visit {
        name: &'static str,
        pods: &'static [&'static str],
    },
    /// One question, and the answer that is due: an rcode, and whether there are records.
    Ask {
        name: &'static str,
        qtype: RecordType,
        rcode: ResponseCode,
        records: bool,
    },
}

/// All of them, in order.
pub(crate) fn all() -> [Step; 9] {
    use RecordType::{A, AAAA, NS, TXT};
    use ResponseCode::{NXDomain, NoError, Refused};

    const WEB: &str = "web.shop.svc.cluster.local";
    let nothing: fn(&mut Scene) -> Result<()> = |_| Ok(());
    let visit = |title, change, name, pods| Step {
        title,
        change,
        question: Question::Visit { name, pods },
    };
    let ask = |title, name, qtype, rcode, records| Step {
        title,
        change: nothing,
        question: Question::Ask {
            name,
            qtype,
            rcode,
            records,
        },
    };
    [
        visit("two pods serve", nothing, WEB, &["web-1", "web-2"]),
        visit(
            "a pod joins",
            Scene::web_joins,
            WEB,
            &["web-1", "web-2", "web-3"],
        ),
        visit("a pod leaves", Scene::web_leaves, WEB, &["web-2", "web-3"]),
        visit(
            "both families",
            nothing,
            "cart.shop.svc.cluster.local",
            &["cart-1"],
        ),
        ask("no such type", WEB, A, NoError, false),
        ask(
            "no such name",
            "nobody.shop.svc.cluster.local",
            AAAA,
            NXDomain,
            false,
        ),
        ask("another type", WEB, TXT, NoError, false),
        ask("the zone itself", "cluster.local", NS, NoError, true),
        ask("a name outside", "example.org", TXT, Refused, false),
    ]
}

/// What came out of a step.
#[derive(Serialize)]
pub(crate) struct Outcome {
    step: &'static str,
    pub(crate) question: String,
    /// Addresses or other record data; or the rcode, where there are none.
    pub(crate) answer: Vec<String>,
    /// Who replied at each address.
    pub(crate) pods: Vec<String>,
    pub(crate) queries: u64,
    pub(crate) answered_in_kernel: u64,
    pub(crate) answered_by_fallback: u64,
    /// What is wrong with it, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wrong: Option<String>,
}

impl Outcome {
    pub(crate) fn title(&self) -> &'static str {
        self.step
    }
}

impl Step {
    /// Plays the step. What goes wrong with it is part of the outcome.
    ///
    /// # Errors
    /// Peak itself does not answer its admin socket any more.
    pub(crate) fn play(&self, scene: &mut Scene) -> Result<Outcome> {
        let changed = (self.change)(scene);
        let before = scene.peak().status()?.counted();
        let mut outcome = Outcome {
            step: self.title,
            question: self.question.to_string(),
            answer: Vec::new(),
            pods: Vec::new(),
            queries: self.question.queries(),
            answered_in_kernel: 0,
            answered_by_fallback: 0,
            wrong: None,
        };
        let asked = changed.and_then(|()| self.question.put(scene, &mut outcome));

        let counted = || {
            scene
                .peak()
                .status()
                .map(|status| status.counted() - before)
        };
        let due = self.question.due();
        let matched = eventually("the counters", COUNTERS, || {
            Ok((counted()? == due).then_some(()))
        });
        let counted = counted()?;
        outcome.answered_in_kernel = counted.kernel;
        outcome.answered_by_fallback = counted.fallback;
        outcome.wrong = match (asked, matched) {
            (Err(error), _) => Some(format!("{error:#}")),
            (Ok(()), Err(_)) => Some(format!(
                "the counters should have grown by {due}, not {counted}"
            )),
            (Ok(()), Ok(())) => None,
        };
        Ok(outcome)
    }
}

impl Question {
    fn queries(&self) -> u64 {
        match self {
            Self::Visit { .. } => 2,
            Self::Ask { .. } => 1,
        }
    }

    /// Who has to answer: the kernel every A and AAAA.
    fn due(&self) -> Counted {
        let queries = self.queries();
        match self {
            Self::Ask { qtype, .. } if !matches!(qtype, RecordType::A | RecordType::AAAA) => {
                Counted {
                    kernel: 0,
                    fallback: queries,
                }
            }
            _ => Counted {
                kernel: queries,
                fallback: 0,
            },
        }
    }

    /// Puts the question, fills in what came back, and says what is wrong with it.
    fn put(&self, scene: &Scene, outcome: &mut Outcome) -> Result<()> {
        match self {
            Self::Visit { name, pods } => {
                let visits = visit(scene, name)?;
                outcome.answer = visits.keys().map(ToString::to_string).collect();
                outcome.pods = visits.values().cloned().collect();
                let wanted = scene.addresses(pods);
                if visits != wanted {
                    bail!("should be {wanted:?}");
                }
            }
            Self::Ask {
                name,
                qtype,
                rcode,
                records,
            } => {
                let server = (SERVER.parse::<std::net::IpAddr>()?, 53).into();
                let reply = scene.client().run(|| ask(server, name, *qtype))?;
                let answered = reply.metadata.response_code;
                outcome.answer = match answered {
                    ResponseCode::NoError if reply.answers.is_empty() => vec!["NODATA".to_owned()],
                    ResponseCode::NoError => reply
                        .answers
                        .iter()
                        .map(|record| record.data.to_string())
                        .collect(),
                    rcode => vec![mnemonic(rcode)],
                };
                if answered != *rcode || reply.answers.is_empty() == *records {
                    bail!(
                        "should be {} with{} records",
                        mnemonic(*rcode),
                        if *records { "" } else { "out" }
                    );
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Visit { name, .. } => write!(f, "{name} A, AAAA"),
            Self::Ask { name, qtype, .. } => write!(f, "{name} {qtype}"),
        }
    }
}

/// The rcode as RFC 1035 and its tools write it.
fn mnemonic(rcode: ResponseCode) -> String {
    match rcode {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("{other:?}").to_uppercase(),
    }
}

/// Runs the client: this program again, where the client's resolv.conf is.
fn visit(scene: &Scene, name: &str) -> Result<Visits> {
    let output = scene
        .client()
        .command(env::current_exe()?)
        .args(["visit", name, &HTTP.to_string()])
        .output()
        .context("cannot start the client")?;
    if !output.status.success() {
        bail!(
            "the client: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("cannot read what the client says")
}
