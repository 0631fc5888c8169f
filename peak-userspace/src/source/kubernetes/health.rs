//! How it goes with the API server: one line in the log for each change, and figures for commands and metrics.

use std::{
    fmt,
    mem::{Discriminant, discriminant},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;
use tokio::time::Instant;

use super::Watch;
use crate::source::{SourceFigures, SourceState};

/// What keeps a watch from going on.
#[derive(Clone, Debug)]
pub(super) enum Trouble {
    /// No connection, or none that lives.
    Unreachable(String),
    /// The server's certificate isn't to be trusted.
    Certificate(String),
    /// Who we are isn't known: 401, or there is nothing to show.
    Credentials(String),
    /// We may not: 403.
    Forbidden(Watch, String),
    /// 429.
    Overloaded(String),
    /// 5xx.
    Failing(String),
    /// What no API server should say.
    Unexpected(String),
}

impl Trouble {
    /// The reasons, for metrics.
    const REASONS: [&str; 7] = [
        "unreachable",
        "certificate",
        "credentials",
        "forbidden",
        "overloaded",
        "failing",
        "unexpected",
    ];

    fn reason(&self) -> &'static str {
        Self::REASONS[match self {
            Self::Unreachable(_) => 0,
            Self::Certificate(_) => 1,
            Self::Credentials(_) => 2,
            Self::Forbidden(..) => 3,
            Self::Overloaded(_) => 4,
            Self::Failing(_) => 5,
            Self::Unexpected(_) => 6,
        }]
    }

    /// What tells one trouble from another: not its wording, but of a missing rule, which one.
    fn identity(&self) -> (Discriminant<Self>, Option<&Watch>) {
        let watch = match self {
            Self::Forbidden(watch, _) => Some(watch),
            _ => None,
        };
        (discriminant(self), watch)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "can't reach the API server: {why}"),
            Self::Certificate(why) => write!(
                f,
                "the API server's certificate is not trusted: {why}; the kubeconfig or the service account has to \
                 name the authority that signed it"
            ),
            Self::Credentials(why) => write!(
                f,
                "the API server does not know us: {why}; the token or certificate of the kubeconfig or the service \
                 account has to be renewed"
            ),
            Self::Forbidden(watch, why) => write!(
                f,
                "the API server forbids (403) to list and watch {watch}: {why}; missing is the rule {{apiGroups: \
                 [{:?}], resources: [{:?}], verbs: [\"list\", \"watch\"]}}, which {} grants",
                watch.group(),
                watch.resource(),
                watch.role(),
            ),
            Self::Overloaded(why) => write!(f, "the API server asks to come later (429): {why}"),
            Self::Failing(why) => write!(f, "the API server fails: {why}"),
            Self::Unexpected(why) => {
                write!(f, "what answers is no API server as we know them: {why}")
            }
        }
    }
}

/// How one watch fares. Its fields are keys of `peak status --output json`.
#[derive(Clone, Debug, Serialize)]
pub struct WatchFigures {
    /// What is watched, such as `endpointslices.discovery.k8s.io`.
    pub resource: String,
    /// In which namespace; in all if there is none.
    pub namespace: Option<String>,
    /// It has been listed completely.
    pub listed: bool,
    /// Lists since the start.
    pub lists: u64,
    /// Events since the start.
    pub events: u64,
    /// Objects, or new versions of one, that could not be read.
    pub unreadable: u64,
    /// When the server was heard last, as seconds ago.
    pub heard_seconds_ago: Option<f64>,
    /// What is wrong.
    pub trouble: Option<String>,
}

#[derive(Debug)]
struct One {
    watch: Watch,
    lists: u64,
    events: u64,
    unreadable: u64,
    /// Since it was listed first: when the server was heard last.
    heard: Option<Instant>,
    trouble: Option<Trouble>,
}

/// The state of all watches.
#[derive(Debug)]
pub struct Health {
    server: String,
    watches: Mutex<Vec<One>>,
    bad_annotations: Arc<AtomicUsize>,
}

impl Health {
    pub(super) fn new(
        server: String,
        watches: &[Watch],
        bad_annotations: Arc<AtomicUsize>,
    ) -> Self {
        let one = |watch: &Watch| One {
            watch: watch.clone(),
            lists: 0,
            events: 0,
            unreadable: 0,
            heard: None,
            trouble: None,
        };
        Self {
            server,
            watches: Mutex::new(watches.iter().map(one).collect()),
            bad_annotations,
        }
    }

    fn watches(&self) -> MutexGuard<'_, Vec<One>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something came, be it a sign of life.
    pub(super) fn heard(&self, watch: usize, is_event: bool) {
        let one = &mut self.watches()[watch];
        one.events += u64::from(is_event);
        // What came before a list was complete says nothing about the age of the whole.
        if let Some(heard) = &mut one.heard {
            *heard = Instant::now();
        }
    }

    /// A list is complete.
    pub(super) fn listed(&self, watch: usize) {
        let one = &mut self.watches()[watch];
        one.lists += 1;
        one.heard = Some(Instant::now());
    }

    pub(super) fn unreadable(&self, watch: usize) {
        self.watches()[watch].unreadable += 1;
    }

    /// The watch can't go on. Said once, though several watches have the same trouble.
    pub(super) fn fell(&self, watch: usize, trouble: Trouble) {
        let watches = &mut *self.watches();
        let has = |one: &One, identity| {
            one.trouble
                .as_ref()
                .is_some_and(|trouble| trouble.identity() == identity)
        };
        if watches.iter().any(|one| has(one, trouble.identity())) {
            tracing::debug!(watch = %watches[watch].watch, "{trouble}");
        } else {
            let goes_on = match watches.iter().all(|one| one.heard.is_some()) {
                true => "answers go on from what is known",
                false => "there are no answers before everything has been listed once",
            };
            tracing::warn!(server = self.server, "{trouble} ({goes_on})");
        }
        watches[watch].trouble = Some(trouble);
    }

    /// The watch goes on.
    pub(super) fn recovered(&self, watch: usize) {
        let watches = &mut *self.watches();
        if watches[watch].trouble.take().is_some() {
            let left = watches.iter().filter(|one| one.trouble.is_some()).count();
            if left == 0 {
                tracing::info!(server = self.server, "the API server is watched again");
            } else {
                tracing::debug!(watch = %watches[watch].watch, left, "watched again");
            }
        }
    }

    pub(in crate::source) fn figures(&self) -> SourceFigures {
        let watches = self.watches();
        let all = || watches.iter();
        let complete = all().all(|one| one.heard.is_some());
        let in_trouble = all().any(|one| one.trouble.is_some());
        let age = |one: &One| Some(one.heard?.elapsed().as_secs_f64());
        SourceFigures {
            kind: "kubernetes",
            from: self.server.clone(),
            state: match (complete, in_trouble) {
                (false, _) => SourceState::Syncing,
                (true, false) => SourceState::Current,
                (true, true) => SourceState::Stale,
            },
            bad_annotations: self.bad_annotations.load(Ordering::Relaxed),
            age_seconds: complete.then(|| all().filter_map(age).fold(0.0, f64::max)),
            troubles: Trouble::REASONS
                .iter()
                .map(|reason| {
                    let has = |one: &One| one.trouble.as_ref().map(Trouble::reason) == Some(reason);
                    (*reason, all().any(has))
                })
                .collect(),
            watches: all()
                .map(|one| WatchFigures {
                    resource: one.watch.full_resource(),
                    namespace: one.watch.namespace.as_deref().map(str::to_owned),
                    listed: one.heard.is_some(),
                    lists: one.lists,
                    events: one.events,
                    unreadable: one.unreadable,
                    heard_seconds_ago: age(one),
                    trouble: one.trouble.as_ref().map(Trouble::to_string),
                })
                .collect(),
        }
    }
}
