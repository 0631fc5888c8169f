//! One kind of object, in one namespace or in all: listed, then watched, for as long as the agent lives.
//!
//! `kube` has such a loop, too (`runtime::watcher`). This one exists because that one asks again at once whenever a server
//! ends a watch, knows nothing of `Retry-After`, can't say which object it could not read, and keeps to streaming lists
//! where the server has none.

use std::{error::Error as StdError, io, sync::Arc, time::Duration};

use axum::http::Request as HttpRequest;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use kube::{
    Client,
    client::Body,
    core::{
        Request, Status,
        params::{ListParams, WatchParams},
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Watch,
    access::Access,
    health::{Health, Trouble},
    object::{self, Event, EventKind, Head, Page},
};
use crate::source::{Object, ObjectId};

/// How long a server may take to begin an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a list, streamed or paged, may pause.
const LIST_PAUSE: Duration = Duration::from_secs(10);
/// How long a watch may be silent: servers send a bookmark each minute.
const SILENCE: Duration = Duration::from_secs(100);
/// How long the server keeps up a watch, in seconds; half as much again at most, lest all agents come back at once.
const WATCH: u32 = 240;
/// A watch that lasted this long was a good one: the next may begin at once.
const SETTLED: Duration = Duration::from_secs(5);
/// Objects in a page.
const PAGE: u32 = 500;
/// The longest line of a watch, in bytes: etcd holds objects of 1.5 MiB.
const LINE: usize = 16 << 20;
/// How much of a refusal is read, in bytes.
const REFUSAL: usize = 64 << 10;
/// Pauses after failures: from the first to the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The longest pause that a server may ask for.
const RETRY_AFTER: Duration = Duration::from_secs(120);

fn no_list(error: serde_json::Error) -> Trouble {
    Trouble::Unexpected(format!("a list that is none: {error}"))
}

/// What happened to the objects of a watch.
#[derive(Debug)]
pub(super) enum Change {
    /// These are all that there are now. Those that can't be read are there, too.
    Listed {
        objects: Vec<(ObjectId, Object)>,
        unreadable: Vec<ObjectId>,
    },
    Set(ObjectId, Object),
    Deleted(ObjectId),
}

/// A watch and what it stands on.
pub(super) struct Reflector {
    /// Its number, for the others.
    pub(super) index: usize,
    pub(super) watch: Watch,
    /// How to get another client; none if there is no other.
    pub(super) access: Option<Access>,
    pub(super) client: Client,
    pub(super) health: Arc<Health>,
    pub(super) changes: mpsc::Sender<(usize, Change)>,
}

/// How far the watch has come.
struct Position {
    /// The version from which to go on; none if there has to be a list first.
    version: Option<String>,
    /// The server has streaming lists, as far as is known.
    streams: bool,
    /// The server sends bookmarks.
    bookmarks: bool,
    /// The server was away: what comes back may know less than we do.
    was_away: bool,
}

/// Why a request came to nothing.
enum Failure {
    /// Something is wrong, and may be so for a while. The server may have said for how long.
    Trouble(Trouble, Option<Duration>),
    /// 410: what we know is too old to go on from. There has to be a list.
    Gone,
    /// The server understands no streaming list.
    NoStreaming,
    /// Nobody takes changes any more.
    End,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble, None)
    }
}

impl Reflector {
    /// Runs until nobody takes changes any more.
    pub(super) async fn run(mut self) {
        let mut position = Position {
            version: None,
            streams: true,
            bookmarks: false,
            was_away: false,
        };
        let mut backoff = Backoff::default();
        loop {
            let began = Instant::now();
            let outcome = self.turn(&mut position).await;
            // Whoever went on for a while begins anew with short pauses.
            if began.elapsed() >= SETTLED {
                backoff = Backoff::default();
            }
            let pause = match outcome {
                Ok(()) if began.elapsed() >= SETTLED => continue,
                Ok(()) => backoff.next(),
                Err(Failure::Gone) => {
                    tracing::debug!(watch = %self.watch, "too far behind: listing again");
                    position.version = None;
                    backoff.next()
                }
                Err(Failure::NoStreaming) => {
                    tracing::debug!(watch = %self.watch, "the server has no streaming lists: taking pages");
                    position.streams = false;
                    continue;
                }
                Err(Failure::Trouble(trouble, retry_after)) => {
                    let pause = backoff.next().max(retry_after.unwrap_or_default());
                    let renew =
                        matches!(trouble, Trouble::Certificate(_) | Trouble::Credentials(_));
                    // Another server may be there when this one is back.
                    let is_away = matches!(trouble, Trouble::Unreachable(_));
                    position.streams |= is_away;
                    position.was_away |= is_away;
                    self.health.fell(self.index, trouble);
                    if renew {
                        self.renew().await;
                    }
                    pause
                }
                Err(Failure::End) => return,
            };
            sleep(pause).await;
        }
    }

    /// Reads credentials and authorities anew: they may have been replaced since.
    async fn renew(&mut self) {
        if let Some(access) = &self.access {
            match access.client().await {
                Ok((client, _)) => self.client = client,
                Err(error) => tracing::debug!(%error, "the old credentials stay"),
            }
        }
    }

    /// Lists if need be, then watches until the watch ends.
    async fn turn(&mut self, position: &mut Position) -> Result<(), Failure> {
        if position.was_away
            && let Some(version) = &position.version
            && self.is_ahead(version).await?
        {
            tracing::warn!(
                "the API server knows less of {} than we do (we are at version {version}): taking over what it has now",
                self.watch
            );
            position.version = None;
        }
        position.was_away = false;
        if position.version.is_none() && !position.streams {
            position.version = Some(self.list().await?);
        }
        self.watch(position).await
    }

    /// Whether our version is one that the server has yet to come to: its etcd was put back to an earlier time, or has lost
    /// everything. A watch from there on would be silent until then, and miss what happens meanwhile.
    async fn is_ahead(&self, version: &str) -> Result<bool, Failure> {
        let parameters = ListParams {
            label_selector: self.watch.label_selector(),
            field_selector: self.watch.field_selector(),
            limit: Some(1),
            ..ListParams::default()
        };
        let request = Request::new(self.watch.path()).list(&parameters);
        let text = self.read(request).await?;
        let page: Page<'_> = serde_json::from_slice(&text).map_err(no_list)?;
        // Versions of one kind can be compared as numbers.
        let number = |version: &str| version.parse::<u64>().ok();
        let theirs = page.metadata.resource_version.as_deref().and_then(number);
        Ok(theirs
            .zip(number(version))
            .is_some_and(|(theirs, ours)| theirs < ours))
    }

    /// All of an answer.
    async fn read(
        &self,
        request: Result<HttpRequest<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<BytesMut, Failure> {
        let mut body = self.send(request).await?;
        let mut text = BytesMut::new();
        while let Some(chunk) = frame(&mut body, LIST_PAUSE).await? {
            self.health.heard(self.index, false);
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    /// A paged list. Returns its version.
    async fn list(&self) -> Result<String, Failure> {
        let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
        let mut parameters = ListParams {
            label_selector: self.watch.label_selector(),
            field_selector: self.watch.field_selector(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let request = Request::new(self.watch.path()).list(&parameters);
            let text = self.read(request).await?;
            let page: Page<'_> = serde_json::from_slice(&text).map_err(no_list)?;
            for item in page.items.unwrap_or_default() {
                match object::read(self.watch.kind, item) {
                    Ok((id, object, _)) => objects.push((id, object)),
                    Err(why) => unreadable.extend(self.unreadable(&Head::of(item), &why)),
                }
            }
            let next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_some() {
                parameters.continue_token = next;
                continue;
            }
            let version = page.metadata.resource_version.ok_or_else(|| {
                Trouble::Unexpected("a list without metadata.resourceVersion".to_owned())
            })?;
            self.listed(objects, unreadable).await?;
            return Ok(version);
        }
    }

    /// Watches, after a streaming list if there is no version to go on from. `Ok` if the watch has ended as watches do.
    async fn watch(&self, position: &mut Position) -> Result<(), Failure> {
        // Random, lest all agents come back at once.
        let more = rand::random::<u32>() % (WATCH / 2);
        let parameters = WatchParams {
            label_selector: self.watch.label_selector(),
            field_selector: self.watch.field_selector(),
            timeout: Some(WATCH + more),
            bookmarks: true,
            send_initial_events: position.version.is_none(),
        };
        // A list without a version is one that is up to date, not whatever the server has at hand.
        let version = position.version.as_deref().unwrap_or_default();
        let request = Request::new(self.watch.path()).watch(&parameters, version);
        let mut lines = Lines::new(self.send(request).await?);
        let mut list = position.version.is_none().then(|| (Vec::new(), Vec::new()));
        if list.is_none() {
            self.recovered();
        }
        loop {
            let pause = if list.is_some() { LIST_PAUSE } else { SILENCE };
            let line = match timeout(pause, lines.next()).await {
                Ok(Ok(Some(line))) => line,
                Ok(Ok(None)) if list.is_none() => return Ok(()),
                Ok(Ok(None)) => {
                    let why = "the connection ended in the middle of a list".to_owned();
                    return Err(Trouble::Unreachable(why).into());
                }
                Ok(Err(why)) => return Err(Trouble::Unreachable(why).into()),
                // A server that doesn't know streaming lists takes this for an ordinary watch.
                Err(_) if list.is_some() => return Err(Failure::NoStreaming),
                Err(_) => {
                    // Bookmarks were due. A server whose etcd was put back to an earlier time keeps silent about all
                    // versions up to ours.
                    if position.bookmarks {
                        position.version = None;
                    }
                    return Ok(());
                }
            };
            let event: Event<'_> = serde_json::from_slice(&line)
                .map_err(|error| Trouble::Unexpected(format!("an event that is none: {error}")))?;
            let is_object = matches!(
                event.kind,
                EventKind::Added | EventKind::Modified | EventKind::Deleted
            );
            self.health.heard(self.index, is_object);
            match event.kind {
                EventKind::Added | EventKind::Modified => {
                    match object::read(self.watch.kind, event.object) {
                        Ok((id, object, version)) => match &mut list {
                            Some((objects, _)) => objects.push((id, object)),
                            None => {
                                self.send_change(Change::Set(id, object)).await?;
                                position.advance(version);
                            }
                        },
                        Err(why) => {
                            let head = Head::of(event.object);
                            let id = self.unreadable(&head, &why);
                            match &mut list {
                                Some((_, unreadable)) => unreadable.extend(id),
                                None => position.advance(head.metadata.resource_version),
                            }
                        }
                    }
                }
                EventKind::Deleted => {
                    let head = Head::of(event.object);
                    match (head.id(self.watch.kind), &mut list) {
                        (None, _) => {
                            self.unreadable(&head, "is deleted, but has no name");
                            return Err(Failure::Gone);
                        }
                        (Some(id), Some((objects, unreadable))) => {
                            objects.retain(|(other, _)| *other != id);
                            unreadable.retain(|other| *other != id);
                        }
                        (Some(id), None) => {
                            self.send_change(Change::Deleted(id)).await?;
                            position.advance(head.metadata.resource_version);
                        }
                    }
                }
                EventKind::Bookmark => {
                    let head = Head::of(event.object);
                    if let Some((objects, unreadable)) = list.take() {
                        if !head.ends_initial_events() {
                            return Err(Failure::NoStreaming);
                        }
                        self.listed(objects, unreadable).await?;
                    }
                    position.bookmarks = true;
                    position.advance(head.metadata.resource_version);
                }
                EventKind::Error => {
                    let status: Status = serde_json::from_str(event.object.get())
                        .unwrap_or_else(|_| Status::failure(event.object.get(), ""));
                    return Err(self.refused(&status, None));
                }
                EventKind::Other => {}
            }
        }
    }

    async fn listed(
        &self,
        objects: Vec<(ObjectId, Object)>,
        unreadable: Vec<ObjectId>,
    ) -> Result<(), Failure> {
        tracing::debug!(watch = %self.watch, objects = objects.len(), "listed");
        let change = Change::Listed {
            objects,
            unreadable,
        };
        self.send_change(change).await?;
        self.health.listed(self.index);
        self.recovered();
        Ok(())
    }

    fn recovered(&self) {
        self.health.recovered(self.index);
    }

    async fn send_change(&self, change: Change) -> Result<(), Failure> {
        let sent = self.changes.send((self.index, change)).await;
        sent.map_err(|_| Failure::End)
    }

    /// One object can't be read: what was known of it stays in force, and of the others all goes on.
    fn unreadable(&self, head: &Head, why: &str) -> Option<ObjectId> {
        self.health.unreadable(self.index);
        let id = head.id(self.watch.kind);
        match &id {
            Some(id) => tracing::warn!("{id} can't be read, and stays as it was: {why}"),
            None => tracing::warn!("one of {} can't be read: {why}", self.watch),
        }
        id
    }

    /// The body of an answer that is none but 200.
    async fn send(
        &self,
        request: Result<HttpRequest<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Body, Failure> {
        let request = request
            .map_err(|error| Trouble::Unexpected(error.to_string()))?
            .map(Body::from);
        let (path, query) = (
            request.uri().path().to_owned(),
            request.uri().query().unwrap_or_default().to_owned(),
        );
        let answer = match timeout(ANSWER, self.client.send(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(connection_trouble(&error).into()),
            Err(_) => {
                let why = format!("no answer within {} s", ANSWER.as_secs());
                return Err(Trouble::Unreachable(why).into());
            }
        };
        let code = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        let text = timeout(
            LIST_PAUSE,
            Limited::new(answer.into_body(), REFUSAL).collect(),
        )
        .await;
        let text = match text {
            Ok(Ok(text)) => text.to_bytes(),
            _ => Bytes::new(),
        };
        let mut status = serde_json::from_slice(&text).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&text);
            let line = text.trim().lines().next().unwrap_or_default();
            Status::failure(line, "")
        });
        status.code = code;
        if status.message.is_empty() {
            status.message = format!("status {code}");
        }
        // Without the feature (before Kubernetes 1.27 unknown, switched off in some later ones) the parameter is invalid.
        if matches!(code, 400 | 422) && query.contains("sendInitialEvents") {
            return Err(Failure::NoStreaming);
        }
        tracing::debug!(path, query, code, "refused");
        Err(self.refused(&status, retry_after))
    }

    fn refused(&self, status: &Status, retry_after: Option<Duration>) -> Failure {
        let what = status.message.clone();
        let seconds = status
            .details
            .as_ref()
            .map(|details| details.retry_after_seconds);
        let retry_after =
            retry_after.or(seconds.map(|seconds| Duration::from_secs(seconds.into())));
        let trouble = match status.code {
            401 => Trouble::Credentials(format!("{what} (401)")),
            403 => Trouble::Forbidden(self.watch.clone(), what),
            404 => Trouble::Unexpected(format!(
                "{} is not there (404): {what}",
                self.watch.full_resource()
            )),
            410 => return Failure::Gone,
            429 => Trouble::Overloaded(what),
            500.. => Trouble::Failing(format!("{what} ({})", status.code)),
            code => Trouble::Unexpected(format!("{what} ({code})")),
        };
        Failure::Trouble(trouble, retry_after.map(|wait| wait.min(RETRY_AFTER)))
    }
}

impl Position {
    fn advance(&mut self, version: Option<String>) {
        if version.is_some() {
            self.version = version;
        }
    }
}

/// What kept a request from being answered.
fn connection_trouble(error: &kube::Error) -> Trouble {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    let mut innermost = String::new();
    while let Some(current) = cause {
        if let Some(why @ rustls::Error::InvalidCertificate(_)) = current.downcast_ref() {
            return Trouble::Certificate(why.to_string());
        }
        if let Some(why) = current.downcast_ref::<kube::client::AuthError>() {
            return Trouble::Credentials(why.to_string());
        }
        let io = current.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return Trouble::Unreachable("the connection broke off".to_owned());
        }
        innermost = current.to_string();
        // An I/O error passes over the error that it wraps when it is asked for its source.
        cause = match io.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => current.source(),
        };
    }
    Trouble::Unreachable(innermost)
}

/// Waits longer each time, and never as long as the others.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let (first, longest) = PAUSES;
        let pause = first
            .saturating_mul(1 << self.failures.min(16))
            .min(longest);
        self.failures += 1;
        pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

/// The next piece of a body, which must come in time.
async fn frame(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, Trouble> {
    loop {
        return match timeout(patience, body.frame()).await {
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(Some(data)),
                Err(_) => continue,
            },
            Ok(Some(Err(error))) => Err(connection_trouble(&error)),
            Err(_) => Err(Trouble::Unreachable(format!(
                "nothing more of an answer within {} s",
                patience.as_secs()
            ))),
        };
    }
}

/// A body, line by line.
struct Lines {
    body: Body,
    buffer: BytesMut,
    /// There is no line's end before this.
    searched: usize,
}

impl Lines {
    fn new(body: Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next line; `None` at the end. An unfinished last line is nothing. The error says what happened.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let end = self.buffer[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(self.searched + end).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE {
                return Err(format!("an event of more than {LINE} bytes"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    return match connection_trouble(&error) {
                        Trouble::Unreachable(why) => Err(why),
                        other => Err(other.to_string()),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_never_the_same() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        let (first, longest) = PAUSES;
        assert!(pauses[0] >= first / 2 && pauses[0] <= first, "{pauses:?}");
        assert!(
            pauses[20..]
                .iter()
                .all(|pause| *pause >= longest / 2 && *pause <= longest)
        );
        assert!(pauses[20..].windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[tokio::test]
    async fn lines_come_in_any_pieces() {
        let text = Body::from(b"{\"a\":1}\n\n{\"b\":2}\nunfinished".to_vec());
        let mut lines = Lines::new(text);
        assert_eq!(lines.next().await.unwrap().unwrap(), "{\"a\":1}");
        assert_eq!(lines.next().await.unwrap().unwrap(), "{\"b\":2}");
        assert_eq!(lines.next().await.unwrap(), None);
    }
}
