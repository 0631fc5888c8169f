//! Against an API server that each test plays itself.

use std::{collections::VecDeque, io, time::Duration};

use axum::{
    body::Body,
    http::{Request, Response},
};
use futures_util::{StreamExt, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use kube::client::Body as ClientBody;
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    pods::PodKey,
    snapshot::{ServiceKey, ServiceRecords},
    source::{SourceFigures, SourceState},
};

/// The other end of the agent's requests.
struct Server {
    requests: mpsc::UnboundedReceiver<Asked>,
    /// Those that are of another kind than was waited for.
    waiting: VecDeque<Asked>,
}

/// A request that waits for its answer.
struct Asked {
    path: String,
    query: String,
    answer: oneshot::Sender<io::Result<Response<Body>>>,
}

/// A watch that was answered. It ends when this is dropped.
struct Stream(mpsc::UnboundedSender<io::Result<String>>);

/// An agent's source, and the server that it asks.
fn source(namespaces: &[&str]) -> (Source, Server) {
    source_with(namespaces, PodMode::Insecure)
}

fn source_with(namespaces: &[&str], pods: PodMode) -> (Source, Server) {
    let (sender, requests) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<ClientBody>| {
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            answer,
        };
        let sent = sender.send(asked);
        async move {
            let gone = || io::Error::from(io::ErrorKind::ConnectionRefused);
            sent.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?
        }
    });
    let client = Client::new(service, "default");
    let namespaces: Vec<_> = namespaces.iter().map(|name| (*name).to_owned()).collect();
    let server = Server {
        requests,
        waiting: VecDeque::new(),
    };
    (
        start(
            client,
            "https://server".to_owned(),
            None,
            &namespaces,
            RecordPolicy::default(),
            pods,
        ),
        server,
    )
}

impl Server {
    /// The next request whose path ends so.
    async fn asked(&mut self, resource: &str) -> Asked {
        if let Some(at) = self
            .waiting
            .iter()
            .position(|asked| asked.path.ends_with(resource))
        {
            return self.waiting.remove(at).unwrap();
        }
        loop {
            let asked = timeout(Duration::from_secs(600), self.requests.recv())
                .await
                .unwrap_or_else(|_| panic!("nobody asks for {resource}"))
                .expect("reflectors live");
            if asked.path.ends_with(resource) {
                return asked;
            }
            self.waiting.push_back(asked);
        }
    }

    /// Says which version it is at, to who asks because it was away.
    async fn is_at(&mut self, resource: &str, version: &str) {
        let asked = self.asked(resource).await;
        assert_eq!(asked.parameter("limit"), Some("1"));
        assert_eq!(asked.parameter("resourceVersion"), None);
        asked.page(&[], version, "");
    }

    /// Answers the streaming lists of both kinds.
    async fn sync(&mut self, services: &[Value], slices: &[Value]) -> (Stream, Stream) {
        let services = self.asked("/services").await.stream_list(services, "10");
        let slices = self
            .asked("/endpointslices")
            .await
            .stream_list(slices, "10");
        (services, slices)
    }
}

impl Asked {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    fn answer(self, code: u16, headers: &[(&str, &str)], body: Body) {
        let mut response = Response::builder().status(code);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.answer.send(Ok(response.body(body).unwrap()));
    }

    fn refuse(self, code: u16, headers: &[(&str, &str)], message: &str) {
        let status =
            json!({"kind": "Status", "status": "Failure", "code": code, "message": message});
        self.answer(code, headers, status.to_string().into());
    }

    fn page(self, items: &[Value], version: &str, next: &str) {
        let list =
            json!({"metadata": {"resourceVersion": version, "continue": next}, "items": items});
        self.answer(200, &[], list.to_string().into());
    }

    /// Answers with a watch.
    fn watch(self) -> Stream {
        let (sender, lines) = mpsc::unbounded_channel();
        let body = stream::unfold(lines, |mut lines| async {
            Some((lines.recv().await?, lines))
        });
        self.answer(200, &[], Body::from_stream(body));
        Stream(sender)
    }

    /// Answers with a whole streaming list.
    fn stream_list(self, objects: &[Value], version: &str) -> Stream {
        assert_eq!(self.parameter("sendInitialEvents"), Some("true"));
        let watch = self.watch();
        for object in objects {
            watch.event("ADDED", object);
        }
        watch.event("BOOKMARK", &initial_events_end(version));
        watch
    }
}

impl Stream {
    fn event(&self, kind: &str, object: &Value) {
        let line = json!({"type": kind, "object": object}).to_string() + "\n";
        let _ = self.0.send(Ok(line));
    }
}

fn initial_events_end(version: &str) -> Value {
    json!({"metadata": {"resourceVersion": version, "annotations": {"k8s.io/initial-events-end": "true"}}})
}

fn bookmark(version: &str) -> Value {
    json!({"metadata": {"resourceVersion": version}})
}

fn pod(name: &str, addresses: &[&str]) -> Value {
    let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "13"},
        "status": {"phase": "Running", "podIP": addresses[0], "podIPs": ips},
    })
}

fn service(name: &str) -> Value {
    service_in("shop", name)
}

fn service_in(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": "11"},
        "spec": {"clusterIP": "None"},
    })
}

fn slice(service: &str, address: &str) -> Value {
    json!({
        "metadata": {
            "name": format!("{service}-1"), "namespace": "shop", "resourceVersion": "12",
            "labels": {SERVICE_NAME_LABEL: service},
        },
        "addressType": "IPv6",
        "endpoints": [{"addresses": [address]}],
    })
}

/// `name addresses` of each service of the next batch.
async fn batch(source: &mut Source) -> Vec<String> {
    let batch = timeout(Duration::from_secs(600), source.next())
        .await
        .expect("a batch");
    let one = |(key, records): (ServiceKey, Option<ServiceRecords>)| match records {
        Some(records) => format!("{} {:?}", key.name, records.addresses.v6),
        None => format!("{} gone", key.name),
    };
    let Batch { services, pods } = batch.expect("a source");
    let pod = |(PodKey { namespace, address }, runs)| format!("{namespace} {address} {runs}");
    let services = services.into_iter().map(one);
    services.chain(pods.into_iter().map(pod)).collect()
}

async fn no_batch(source: &mut Source, within: Duration) {
    let batch = timeout(within, source.next()).await;
    assert!(batch.is_err(), "{batch:?}");
}

fn figures(source: &Source) -> SourceFigures {
    source.origin().figures()
}

fn troubles(source: &Source) -> Vec<&'static str> {
    let troubles = figures(source).troubles;
    troubles
        .into_iter()
        .filter_map(|(reason, is)| is.then_some(reason))
        .collect()
}

/// Waits for a condition that needs no request.
async fn eventually(mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("waited in vain");
}

const MOMENT: Duration = Duration::from_millis(50);

#[tokio::test(start_paused = true)]
async fn nothing_is_published_before_all_is_listed() {
    let (mut source, mut server) = source(&[]);
    let services = server.asked("/services").await;
    assert_eq!(services.path, "/api/v1/services");
    // A list that is up to date, not one that some server has in store.
    assert_eq!(services.parameter("resourceVersion"), Some(""));
    assert_eq!(services.parameter("labelSelector"), None);
    let _services = services.stream_list(&[service("web"), service("db")], "10");
    no_batch(&mut source, MOMENT).await;
    assert_eq!(figures(&source).state, SourceState::Syncing);
    assert_eq!(figures(&source).age_seconds, None);

    let slices = server.asked("/endpointslices").await;
    assert_eq!(slices.path, "/apis/discovery.k8s.io/v1/endpointslices");
    assert_eq!(
        slices.parameter("labelSelector"),
        Some("kubernetes.io%2Fservice-name")
    );
    let slices = slices.watch();
    slices.event("ADDED", &slice("web", "fd00::1"));
    no_batch(&mut source, MOMENT).await;
    slices.event("BOOKMARK", &initial_events_end("10"));
    assert_eq!(batch(&mut source).await, ["db []", "web [fd00::1]"]);
    let figures = figures(&source);
    assert_eq!(figures.state, SourceState::Current);
    assert!(figures.age_seconds.is_some_and(|age| age < 1.0));
}

#[tokio::test(start_paused = true)]
async fn pods_are_watched_where_their_names_are_verified() {
    let (mut source, mut server) = source_with(&[], PodMode::Verified);
    let _watches = server.sync(&[service("web")], &[]).await;
    no_batch(&mut source, MOMENT).await;
    let pods = server.asked("/pods").await;
    assert_eq!(pods.path, "/api/v1/pods");
    let running =
        "status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed%2Cstatus.phase%21%3DUnknown";
    assert_eq!(pods.parameter("fieldSelector"), Some(running));
    assert_eq!(pods.parameter("labelSelector"), None);
    let pods = pods.stream_list(&[pod("web-1", &["10.0.0.1", "fd00::1"])], "10");
    let first = ["web []", "shop 10.0.0.1 true", "shop fd00::1 true"];
    assert_eq!(batch(&mut source).await, first);

    pods.event("MODIFIED", &pod("web-1", &["10.0.0.1"]));
    assert_eq!(batch(&mut source).await, ["shop fd00::1 false"]);
    // Nothing that matters, and what can't be read.
    pods.event("MODIFIED", &pod("web-1", &["10.0.0.1"]));
    pods.event("MODIFIED", &pod("web-1", &["10.0.0.256"]));
    no_batch(&mut source, MOMENT).await;
    assert_eq!(figures(&source).watches[2].unreadable, 1);
    pods.event("DELETED", &pod("web-1", &["10.0.0.1"]));
    assert_eq!(batch(&mut source).await, ["shop 10.0.0.1 false"]);

    // A new list replaces what is known, page by page as well.
    pods.event("ADDED", &pod("web-2", &["fd00::2"]));
    assert_eq!(batch(&mut source).await, ["shop fd00::2 true"]);
    drop(pods);
    server.asked("/pods").await.refuse(410, &[], "gone");
    server.asked("/pods").await.refuse(422, &[], "no streams");
    let list = server.asked("/pods").await;
    assert_eq!(list.parameter("fieldSelector"), Some(running));
    list.page(&[pod("web-3", &["fd00::3"])], "20", "");
    let replaced = ["shop fd00::2 false", "shop fd00::3 true"];
    assert_eq!(batch(&mut source).await, replaced);

    server.asked("/pods").await.refuse(403, &[], "forbidden");
    eventually(|| troubles(&source) == ["forbidden"]).await;
    let said = figures(&source).watches[2].trouble.clone().unwrap();
    for part in [
        r#"{apiGroups: [""], resources: ["pods"], verbs: ["list", "watch"]}"#,
        "deploy/rbac-pods.yaml",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_cluster_is_complete_too() {
    let (mut source, mut server) = source(&[]);
    let _watches = server.sync(&[], &[]).await;
    assert_eq!(batch(&mut source).await, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn one_change_is_there_at_once_and_many_are_one_batch() {
    let (mut source, mut server) = source(&[]);
    let (services, slices) = server.sync(&[service("web")], &[]).await;
    assert_eq!(batch(&mut source).await, ["web []"]);
    let began = Instant::now();
    slices.event("ADDED", &slice("web", "fd00::1"));
    assert_eq!(batch(&mut source).await, ["web [fd00::1]"]);
    assert_eq!(began.elapsed(), Duration::ZERO);
    // What says nothing new is no change.
    services.event("MODIFIED", &service("web"));
    no_batch(&mut source, MOMENT).await;

    // Nobody takes batches for a while: one waits, and the others become one.
    slices.event("MODIFIED", &slice("web", "fd00::2"));
    sleep(MOMENT).await;
    for n in 3..100 {
        slices.event("MODIFIED", &slice("web", &format!("fd00::{n:x}")));
    }
    services.event("ADDED", &service("db"));
    sleep(MOMENT).await;
    assert_eq!(batch(&mut source).await, ["web [fd00::2]"]);
    assert_eq!(batch(&mut source).await, ["db []", "web [fd00::63]"]);
    slices.event("DELETED", &slice("web", "fd00::63"));
    services.event("DELETED", &service("db"));
    sleep(MOMENT).await;
    let mut all = batch(&mut source).await;
    if all.len() == 1 {
        all.extend(batch(&mut source).await);
    }
    all.sort();
    assert_eq!(all, ["db gone", "web []"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_gives_pages() {
    let (mut source, mut server) = source(&[]);
    for (resource, items) in [
        ("/services", [service("web"), service("db")]),
        (
            "/endpointslices",
            [slice("web", "fd00::1"), slice("db", "fd00::2")],
        ),
    ] {
        let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch";
        server.asked(resource).await.refuse(422, &[], message);
        let first = server.asked(resource).await;
        assert_eq!(
            (first.parameter("watch"), first.parameter("limit")),
            (None, Some("500"))
        );
        first.page(&items[..1], "20", "more");
        let second = server.asked(resource).await;
        assert_eq!(second.parameter("continue"), Some("more"));
        second.page(&items[1..], "20", "");
    }
    assert_eq!(batch(&mut source).await, ["db [fd00::2]", "web [fd00::1]"]);
    let watch = server.asked("/endpointslices").await;
    assert_eq!(watch.parameter("watch"), Some("true"));
    assert_eq!(watch.parameter("resourceVersion"), Some("20"));
    assert_eq!(watch.parameter("sendInitialEvents"), None);
    let watch = watch.watch();
    watch.event("MODIFIED", &slice("web", "fd00::3"));
    assert_eq!(batch(&mut source).await, ["web [fd00::3]"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ignores_the_wish_for_a_streaming_list_gives_pages() {
    let (mut source, mut server) = source(&[]);
    // One is silent after all objects, the other goes over to ordinary bookmarks.
    let silent = server.asked("/services").await.watch();
    silent.event("ADDED", &service("web"));
    let ordinary = server.asked("/endpointslices").await.watch();
    ordinary.event("BOOKMARK", &bookmark("19"));
    for resource in ["/services", "/endpointslices"] {
        let list = server.asked(resource).await;
        assert_eq!(list.parameter("limit"), Some("500"));
        list.page(&[], "20", "");
    }
    assert_eq!(batch(&mut source).await, [""; 0]);
    assert_eq!(troubles(&source), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_has_expired_begins_the_list_anew() {
    let (mut source, mut server) = source(&[]);
    let _slices = server.asked("/endpointslices").await.stream_list(&[], "1");
    server
        .asked("/services")
        .await
        .refuse(400, &[], "unknown parameter");
    server
        .asked("/services")
        .await
        .page(&[service("old")], "20", "more");
    server
        .asked("/services")
        .await
        .refuse(410, &[], "the continue token has expired");
    let again = server.asked("/services").await;
    assert_eq!(again.parameter("continue"), None);
    again.page(&[service("new")], "21", "");
    assert_eq!(batch(&mut source).await, ["new []"]);
}

/// What was deleted while nobody watched goes with the new list, and nothing else is touched meanwhile.
#[tokio::test(start_paused = true)]
async fn a_version_that_is_gone_is_followed_by_a_list() {
    let (mut source, mut server) = source(&[]);
    let all = [service("web"), service("db")];
    let slices = [slice("web", "fd00::1"), slice("db", "fd00::2")];
    let (services, watched) = server.sync(&all, &slices).await;
    batch(&mut source).await;

    // Said in the answer,
    drop(services);
    let resumed = server.asked("/services").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("10"));
    resumed.refuse(410, &[], "too old resource version");
    let list = server.asked("/services").await.watch();
    list.event("ADDED", &service("web"));
    no_batch(&mut source, Duration::from_secs(5)).await;
    list.event("BOOKMARK", &initial_events_end("30"));
    assert_eq!(batch(&mut source).await, ["db gone"]);

    // or in the watch.
    let expired = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    watched.event("ERROR", &expired);
    let list = server.asked("/endpointslices").await.watch();
    list.event("ADDED", &slice("web", "fd00::3"));
    no_batch(&mut source, Duration::from_secs(5)).await;
    list.event("BOOKMARK", &initial_events_end("30"));
    let batch = batch(&mut source).await;
    assert_eq!(batch, ["db gone", "web [fd00::3]"]);
    assert_eq!(troubles(&source), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_rule_is_named() {
    let (mut source, mut server) = source(&["shop"]);
    let message =
        r#"endpointslices.discovery.k8s.io is forbidden: User "peak" cannot watch resource"#;
    let _services = server.asked("/services").await.stream_list(&[], "10");
    server
        .asked("/endpointslices")
        .await
        .refuse(403, &[], message);
    eventually(|| troubles(&source) == ["forbidden"]).await;
    let said = figures(&source).watches[1].trouble.clone().unwrap();
    for part in [
        "endpointslices.discovery.k8s.io in the namespace shop",
        message,
        r#"{apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]}"#,
        "deploy/rbac.yaml",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(figures(&source).state, SourceState::Syncing);
    // The rule was added.
    let _slices = server.asked("/endpointslices").await.stream_list(&[], "10");
    assert_eq!(batch(&mut source).await, [""; 0]);
    assert_eq!(figures(&source).state, SourceState::Current);
}

/// Whatever happens, what is known stays, and is known to be old.
#[tokio::test(start_paused = true)]
async fn the_server_may_refuse_fail_or_vanish() {
    let (mut source, mut server) = source(&[]);
    let (services, _slices) = server.sync(&[service("web")], &[]).await;
    batch(&mut source).await;
    drop(services);
    let began = Instant::now();
    for (code, reason) in [
        (401, "credentials"),
        (403, "forbidden"),
        (404, "unexpected"),
        (429, "overloaded"),
        (500, "failing"),
        (503, "failing"),
    ] {
        server.asked("/services").await.refuse(code, &[], "no");
        eventually(|| troubles(&source) == [reason]).await;
        assert_eq!(figures(&source).state, SourceState::Stale, "{code}");
    }
    // No connection, then one that says nothing.
    drop(server.asked("/services").await);
    eventually(|| troubles(&source) == ["unreachable"]).await;
    let silent = server.asked("/services").await;
    sleep(Duration::from_secs(31)).await;
    assert!(
        figures(&source).watches[0]
            .trouble
            .as_ref()
            .unwrap()
            .contains("within 30 s")
    );
    drop(silent);
    // One that breaks off.
    server.is_at("/services", "10").await;
    let broken = server.asked("/services").await.watch();
    eventually(|| troubles(&source).is_empty()).await;
    broken
        .0
        .send(Err(io::ErrorKind::ConnectionReset.into()))
        .unwrap();
    eventually(|| troubles(&source) == ["unreachable"]).await;
    let age = figures(&source).age_seconds.unwrap();
    assert!(age > 31.0 && age <= began.elapsed().as_secs_f64(), "{age}");
    no_batch(&mut source, MOMENT).await;

    // Back: it goes on where it was.
    server.is_at("/services", "12").await;
    let resumed = server.asked("/services").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("10"));
    let resumed = resumed.watch();
    resumed.event("ADDED", &service("db"));
    assert_eq!(batch(&mut source).await, ["db []"]);
    assert_eq!(figures(&source).state, SourceState::Current);
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_to_come_later_does() {
    let (_source, mut server) = source(&[]);
    let header = [("retry-after", "17")];
    server
        .asked("/services")
        .await
        .refuse(429, &header, "too many requests");
    let began = Instant::now();
    server.asked("/services").await;
    assert!(
        began.elapsed() >= Duration::from_secs(17),
        "{:?}",
        began.elapsed()
    );
    // A proxy says it without a Status.
    let asked = server.asked("/services").await;
    asked.answer(503, &[("retry-after", "9")], Body::from("<html>busy"));
    let began = Instant::now();
    server.asked("/services").await;
    assert!(
        began.elapsed() >= Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let (mut source, mut server) = source(&[]);
    let (services, _slices) = server.sync(&[service("web")], &[]).await;
    batch(&mut source).await;
    services.event("BOOKMARK", &bookmark("44"));
    sleep(MOMENT).await;
    drop(services);
    let resumed = server.asked("/services").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("44"));
    let resumed = resumed.watch();
    resumed.event("MODIFIED", &service("web"));
    sleep(MOMENT).await;
    drop(resumed);
    let resumed = server.asked("/services").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("11"));
    assert_eq!(troubles(&source), [""; 0]);
}

/// A server whose history was put back says nothing until it has caught up with the version that is asked for.
#[tokio::test(start_paused = true)]
async fn a_watch_without_its_bookmarks_is_followed_by_a_list() {
    let (mut source, mut server) = source(&[]);
    let (_services, _slices) = server.sync(&[service("web")], &[]).await;
    batch(&mut source).await;
    let list = server.asked("/services").await;
    let _list = list.stream_list(&[], "2");
    assert_eq!(batch(&mut source).await, ["web gone"]);
}

/// A server that was away may come back with less than we know. It is not waited for to catch up.
#[tokio::test(start_paused = true)]
async fn a_server_that_knows_less_than_we_do_is_listed_at_once() {
    let (mut source, mut server) = source(&[]);
    let (services, slices) = server.sync(&[service("web")], &[]).await;
    batch(&mut source).await;
    let break_off = |stream: Stream| {
        let _ = stream.0.send(Err(io::ErrorKind::ConnectionReset.into()));
    };
    // Numbers, not texts: 9 is before 10.
    break_off(services);
    server.is_at("/services", "9").await;
    let list = server.asked("/services").await;
    let services = list.stream_list(&[], "9");
    assert_eq!(batch(&mut source).await, ["web gone"]);
    // What is as far, or farther, goes on; as does one whose versions say nothing to us.
    break_off(services);
    server.is_at("/services", "9").await;
    let resumed = server.asked("/services").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("9"));
    break_off(slices);
    server.is_at("/endpointslices", "x").await;
    let resumed = server.asked("/endpointslices").await;
    assert_eq!(resumed.parameter("resourceVersion"), Some("10"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_watch_is_not_hammered() {
    let (mut source, mut server) = source(&[]);
    let (services, _slices) = server.sync(&[], &[]).await;
    batch(&mut source).await;
    drop(services);
    let began = Instant::now();
    let mut asked = 0;
    while began.elapsed() < Duration::from_secs(120) {
        drop(server.asked("/services").await.watch());
        asked += 1;
    }
    assert!(asked < 35, "{asked} requests");
}

#[tokio::test(start_paused = true)]
async fn a_bad_object_is_alone() {
    let (mut source, mut server) = source(&[]);
    let bad = |name: &str| json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "50"}, "spec": 1});
    let (services, slices) = server
        .sync(
            &[service("web"), bad("bad"), json!([])],
            &[slice("web", "fd00::1")],
        )
        .await;
    assert_eq!(batch(&mut source).await, ["web [fd00::1]"]);
    assert_eq!(figures(&source).watches[0].unreadable, 2);
    // What was good stays in force, and the watch goes on behind it.
    services.event("MODIFIED", &bad("web"));
    services.event("ADDED", &service("db"));
    assert_eq!(batch(&mut source).await, ["db []"]);
    // In a list as well.
    drop(services);
    server.asked("/services").await.refuse(410, &[], "gone");
    let again = server.asked("/services").await;
    let _services = again.stream_list(&[bad("web"), service("new")], "60");
    assert_eq!(batch(&mut source).await, ["db gone", "new []"]);
    // What can be read, but not be used whole, is used as far as it can.
    let mut odd = slice("web", "fd00::2");
    odd["endpoints"][0]["addresses"] = json!(["fd00::2", "no address"]);
    slices.event("MODIFIED", &odd);
    assert_eq!(batch(&mut source).await, ["web [fd00::2]"]);
    assert_eq!(troubles(&source), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn each_namespace_is_listed_for_itself() {
    let (mut source, mut server) = source(&["shop", "web"]);
    let mut watches = Vec::new();
    for namespace in ["shop", "web"] {
        let services = format!("/api/v1/namespaces/{namespace}/services");
        let one = [service_in(namespace, namespace)];
        watches.push(server.asked(&services).await.stream_list(&one, "10"));
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        watches.push(server.asked(&slices).await.stream_list(&[], "10"));
    }
    assert_eq!(batch(&mut source).await, ["shop []", "web []"]);
    // A list of one namespace says nothing of the other.
    watches.remove(0);
    server.asked("shop/services").await.refuse(410, &[], "gone");
    let _list = server.asked("shop/services").await.stream_list(&[], "20");
    assert_eq!(batch(&mut source).await, ["shop gone"]);
}

/// A kubeconfig for a server, with a token.
fn kubeconfig(server: &str, token: &str) -> String {
    json!({
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": server}}],
        "users": [{"name": "a", "user": {"token": token}}],
    })
    .to_string()
}

fn through(kubeconfig: &std::path::Path) -> KubernetesConfig {
    KubernetesConfig {
        access: Access::Kubeconfig {
            files: vec![kubeconfig.to_owned()],
            context: None,
        },
        namespaces: Vec::new(),
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig(&server, "t")).unwrap();
    let config = through(file.path());
    let source = watch(&config, RecordPolicy::default(), PodMode::Disabled).await;
    let source = source.unwrap();
    eventually(|| troubles(&source) == ["unreachable"]).await;
    let said = figures(&source).watches[0].trouble.clone();
    assert!(said.unwrap_or_default().contains("refused"));
    assert_eq!(figures(&source).from, server);
}

#[tokio::test]
async fn a_token_that_was_replaced_is_read_anew() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(|request: Request<Body>| async move {
        let authorization = request.headers().get("authorization");
        if authorization.is_none_or(|token| token != "Bearer new") {
            return Response::builder()
                .status(401)
                .body("Unauthorized".into())
                .unwrap();
        }
        let end = json!({"type": "BOOKMARK", "object": initial_events_end("7")});
        let line = stream::iter([Ok::<_, io::Error>(format!("{end}\n"))]);
        let body = line.chain(stream::pending());
        Response::new(Body::from_stream(body))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(router.clone());
            let server = auto::Builder::new(TokioExecutor::new());
            tokio::spawn(async move {
                server
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok()
            });
        }
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig(&server, "old")).unwrap();
    let config = through(file.path());
    let source = watch(&config, RecordPolicy::default(), PodMode::Disabled).await;
    let mut source = source.unwrap();
    eventually(|| troubles(&source) == ["credentials"]).await;
    std::fs::write(file.path(), kubeconfig(&server, "new")).unwrap();
    assert_eq!(batch(&mut source).await, [""; 0]);
    assert_eq!(troubles(&source), [""; 0]);
}
