//! Names outside the zones, against upstreams of the tests' own.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, rdata},
};
use peak_userspace::fallback::{
    FallbackConfig, Limits, Transport, Upstream, UpstreamError,
    answer::{Policy, Reaction},
    default_forward_for,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fixture::*;

/// A name server on loopback, on UDP and TCP, that ends with this value.
pub(crate) struct TestUpstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<(Transport, Message)>>>,
    _guard: DropGuard,
}

impl TestUpstream {
    /// What it was asked so far.
    fn seen(&self) -> Vec<(Transport, Message)> {
        self.seen.lock().unwrap().clone()
    }

    /// Starts one that says `reply` to each query.
    async fn start(
        reply: impl Fn(Transport, &Message) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        Self::closing_after(usize::MAX, reply).await
    }

    /// Starts one that closes each TCP connection after so many replies.
    async fn closing_after(
        replies: usize,
        reply: impl Fn(Transport, &Message) -> Option<Message> + Send + Sync + 'static,
    ) -> Self {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = tcp.local_addr().unwrap();
        let (seen, end) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let record = Arc::clone(&seen);
        let respond = Arc::new(move |transport, octets: &[u8]| {
            let query = Message::from_vec(octets).unwrap();
            let reply = reply(transport, &query);
            record.lock().unwrap().push((transport, query));
            reply.map(|reply| reply.to_vec().unwrap())
        });
        let for_udp = Arc::clone(&respond);
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            let mut buffer = vec![0; 65535];
            loop {
                let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(reply) = for_udp(Transport::Udp, &buffer[..length]) {
                    udp.send_to(&reply, client).await.unwrap();
                }
            }
        }));
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let respond = Arc::clone(&respond);
                tokio::spawn(async move {
                    for _ in 0..replies {
                        let Some(query) = receive(&mut stream).await else {
                            break;
                        };
                        if let Some(reply) = respond(Transport::Tcp, &query) {
                            send(&mut stream, &reply).await;
                        }
                    }
                });
            }
        }));
        Self {
            address,
            seen,
            _guard: end.drop_guard(),
        }
    }

    fn for_domain(&self, domain: &str) -> Upstream {
        Upstream {
            domain: domain.parse().unwrap(),
            address: self.address,
        }
    }
}

/// An upstream that takes queries and says nothing.
pub(crate) async fn silent_upstream() -> TestUpstream {
    TestUpstream::start(|_, _| None).await
}

fn reply_with(query: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.checking_disabled = query.metadata.checking_disabled;
    reply.queries = query.queries.clone();
    reply.edns = query.edns.clone();
    reply
}

fn address_record(query: &Message, ttl: u32, last: u8) -> Record {
    let address = Ipv4Addr::new(198, 51, 100, last).into();
    Record::from_rdata(query.queries[0].name().clone(), ttl, RData::A(address))
}

/// Nothing but this code.
fn only(
    code: ResponseCode,
) -> impl Fn(Transport, &Message) -> Option<Message> + Send + Sync + 'static {
    move |_, query| Some(reply_with(query, code))
}

/// NOERROR with `198.51.100.1` and this TTL, AA and AD.
fn found(ttl: u32) -> impl Fn(Transport, &Message) -> Option<Message> + Send + Sync + 'static {
    move |_, query| {
        let mut reply = reply_with(query, ResponseCode::NoError);
        reply.metadata.authoritative = true;
        reply.metadata.authentic_data = true;
        reply.add_answer(address_record(query, ttl, 1));
        Some(reply)
    }
}

#[track_caller]
fn is_found(reply: &Message) {
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(
        reply.answers[0].data,
        RData::A(Ipv4Addr::new(198, 51, 100, 1).into())
    );
}

#[tokio::test]
async fn answers_are_passed_on_and_kept() {
    let upstream = TestUpstream::start(found(60)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    for query in [
        foreign("www.example.com"),
        foreign("WWW.Example.COM").id(7),
        foreign("www.example.com").opt(OPT),
    ] {
        let reply = server.udp(&query).await;
        is_found(&reply);
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative);
    }
    is_found(&server.tcp(&foreign("www.example.com")).await);
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1, "the rest came from the cache");
    assert_eq!(seen[0].1.queries[0].name().to_string(), "www.example.com.");
    let figures = server.counters.figures();
    assert_eq!(
        (
            figures.forwarded,
            figures.forward_cached,
            figures.forward_failed
        ),
        (4, 3, 0)
    );
}

#[tokio::test]
async fn ttls_run_down_and_out() {
    let upstream = TestUpstream::start(found(3)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    let start = Instant::now();
    let mut ttls = Vec::new();
    while upstream.seen().len() < 2 {
        ttls.push(server.udp(&foreign("www.example.com")).await.answers[0].ttl);
        sleep(Duration::from_millis(100)).await;
    }
    assert!(
        start.elapsed() >= Duration::from_secs(3),
        "asked again too early"
    );
    assert_eq!(ttls.pop(), Some(3), "what was asked again is new");
    assert!(
        ttls.is_sorted_by(|earlier, later| earlier >= later) && ttls.iter().any(|&ttl| ttl < 3),
        "{ttls:?}"
    );
}

#[tokio::test]
async fn ttl_0_is_not_kept() {
    let upstream = TestUpstream::start(found(0)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    for asked in 1..=3 {
        is_found(&server.udp(&foreign("www.example.com")).await);
        assert_eq!(upstream.seen().len(), asked);
    }
}

#[tokio::test]
async fn rd_cd_and_do_are_passed_on_as_asked_and_kept_apart() {
    let upstream = TestUpstream::start(found(60)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    for rd in [0, RD] {
        for cd in [0, CD] {
            for dnssec_ok in [0, DO] {
                for _ in 0..2 {
                    let query = ask("www.example.com", A).flags(rd | cd).opt(Opt {
                        flags: dnssec_ok,
                        ..OPT
                    });
                    is_found(&server.udp(&query).await);
                }
                let (_, asked) = upstream.seen().pop().unwrap();
                assert_eq!(asked.metadata.recursion_desired, rd != 0);
                assert_eq!(asked.metadata.checking_disabled, cd != 0);
                assert_eq!(asked.edns.unwrap().flags().dnssec_ok, dnssec_ok != 0);
            }
        }
    }
    assert_eq!(upstream.seen().len(), 8);
}

/// RFC 6840, section 5.8.
#[tokio::test]
async fn ad_is_for_those_who_understand_it() {
    let upstream = TestUpstream::start(found(60)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    let plain = foreign("www.example.com");
    for (query, told) in [
        (plain.clone(), false),
        (plain.clone().opt(OPT), false),
        (plain.clone().flags(RD | AD), true),
        (plain.opt(Opt { flags: DO, ..OPT }), true),
    ] {
        let reply = server.udp(&query).await;
        assert_eq!(reply.metadata.authentic_data, told, "{query:?}");
    }
}

fn negative(
    code: ResponseCode,
    ttl: u32,
    minimum: u32,
) -> impl Fn(Transport, &Message) -> Option<Message> + Send + Sync + 'static {
    move |_, query| {
        let zone = Name::from_ascii("example.com.").unwrap();
        let soa = rdata::SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, minimum);
        let mut reply = reply_with(query, code);
        reply.metadata.authentic_data = true;
        reply.add_authority(Record::from_rdata(zone, ttl, RData::SOA(soa)));
        Some(reply)
    }
}

#[tokio::test]
async fn negative_answers_are_passed_on_and_kept_as_long_as_rfc_2308_says() {
    let codes = [ResponseCode::NXDomain, ResponseCode::NoError];
    let cases = codes
        .into_iter()
        .flat_map(|code| [(60, 2), (2, 60)].map(|times| (code, times)));
    join_all(cases.map(async |(code, (ttl, minimum))| {
        let upstream = TestUpstream::start(negative(code, ttl, minimum)).await;
        let server = serve(forwarding_to(&[upstream.address]));
        let query = foreign("nobody.example.com").flags(RD | AD);
        for _ in 0..2 {
            let reply = server.udp(&query).await;
            assert_eq!(reply.metadata.response_code, code);
            assert!(
                reply.answers.is_empty()
                    && reply.authorities.len() == 1
                    && reply.metadata.authentic_data
            );
        }
        assert_eq!(upstream.seen().len(), 1);
        sleep(Duration::from_millis(2100)).await;
        server.udp(&query).await;
        assert_eq!(upstream.seen().len(), 2);
    }))
    .await;
}

#[tokio::test]
async fn a_negative_answer_without_soa_is_not_kept() {
    let upstream = TestUpstream::start(only(ResponseCode::NXDomain)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    for asked in 1..=2 {
        let reply = server.udp(&foreign("nobody.example.com")).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(upstream.seen().len(), asked);
    }
}

/// Truncated over UDP, 100 records over TCP.
fn large(transport: Transport, query: &Message) -> Option<Message> {
    let mut reply = reply_with(query, ResponseCode::NoError);
    match transport {
        Transport::Udp => reply.metadata.truncation = true,
        Transport::Tcp => {
            for last in 0..100 {
                reply.add_answer(address_record(query, 60, last));
            }
        }
    }
    Some(reply)
}

#[tokio::test]
async fn over_tcp_when_truncated() {
    let upstream = TestUpstream::start(large).await;
    let server = serve(forwarding_to(&[upstream.address]));
    // Too much for the client's UDP as well: what fits. Over TCP it gets it all.
    let query = foreign("large.example.com").opt(OPT);
    let reply = server.udp(&query).await;
    let fit = (1232 - 12 - query.question().len() - 11) / 16;
    assert!(reply.metadata.truncation && reply.edns.is_some());
    assert_eq!(reply.answers.len(), fit);
    assert_eq!(server.tcp(&query).await.answers.len(), 100);
    let transports: Vec<_> = upstream
        .seen()
        .into_iter()
        .map(|(transport, _)| transport)
        .collect();
    assert_eq!(transports, [Transport::Udp, Transport::Tcp]);
    assert_eq!(server.counters.udp_truncated.get(), 1);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_is_replaced() {
    for replies in [1, 2, usize::MAX] {
        let upstream = TestUpstream::closing_after(replies, large).await;
        let server = serve(forwarding_to(&[upstream.address]));
        for name in ["a.example", "b.example", "c.example"] {
            assert_eq!(
                server.tcp(&foreign(name)).await.answers.len(),
                100,
                "{name}"
            );
        }
        assert_eq!(upstream.seen().len(), 6);
    }
}

#[tokio::test]
async fn a_lost_datagram_is_sent_again() {
    let lost = Mutex::new(false);
    let answer = found(60);
    let upstream = TestUpstream::start(move |transport, query| {
        let first = !std::mem::replace(&mut *lost.lock().unwrap(), true);
        if first {
            None
        } else {
            answer(transport, query)
        }
    })
    .await;
    let server = serve(forwarding_to(&[upstream.address]));
    is_found(&server.udp(&foreign("www.example.com")).await);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn no_answer_is_servfail_in_time_and_remembered() {
    let upstream = silent_upstream().await;
    let limits = Limits {
        upstream_timeout: Duration::from_millis(500),
        ..Default::default()
    };
    let server = serve(FallbackConfig {
        limits,
        ..forwarding_to(&[upstream.address])
    });
    let start = Instant::now();
    let query = foreign("www.example.com").opt(OPT);
    assert_eq!(server.code(&query).await, ResponseCode::ServFail);
    assert!((500..2000).contains(&start.elapsed().as_millis()));
    // RFC 9520, section 3.2: it isn't asked again at once.
    let asked = upstream.seen().len();
    assert_eq!(server.code(&query).await, ResponseCode::ServFail);
    assert_eq!(upstream.seen().len(), asked);
    assert_eq!(server.counters.forward_failed.get(), 1);
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_is_no_help() {
    let silent = silent_upstream().await;
    let failing = TestUpstream::start(only(ResponseCode::ServFail)).await;
    let good = TestUpstream::start(found(60)).await;
    let limits = Limits {
        upstream_timeout: Duration::from_millis(900),
        ..Default::default()
    };
    let server = serve(FallbackConfig {
        limits,
        ..forwarding_to(&[silent.address, failing.address, good.address])
    });
    is_found(&server.udp(&foreign("www.example.com")).await);
    assert_eq!(
        (silent.seen().len(), failing.seen().len(), good.seen().len()),
        (1, 1, 1)
    );
    // From now on the one that helped comes first.
    is_found(&server.udp(&foreign("other.example.com")).await);
    assert_eq!(
        (silent.seen().len(), failing.seen().len(), good.seen().len()),
        (1, 1, 2)
    );
}

#[tokio::test]
async fn codes_are_passed_on() {
    let upstream = TestUpstream::start(only(ResponseCode::Refused)).await;
    let server = serve(forwarding_to(&[upstream.address]));
    assert_eq!(
        server.code(&foreign("www.example.com")).await,
        ResponseCode::Refused
    );
}

#[tokio::test]
async fn the_longest_domain_decides() {
    let all = TestUpstream::start(found(60)).await;
    let com = TestUpstream::start(found(60)).await;
    let example = TestUpstream::start(found(60)).await;
    let upstreams = vec![
        all.for_domain("."),
        com.for_domain("COM"),
        example.for_domain("example.com."),
    ];
    let server = serve(FallbackConfig {
        upstreams,
        ..Default::default()
    });
    for name in [
        "www.example.com",
        "example.com",
        "WWW.EXAMPLE.COM",
        "notexample.com",
        "com",
        "example.org",
    ] {
        is_found(&server.udp(&foreign(name)).await);
    }
    let names = |upstream: &TestUpstream| -> Vec<_> {
        upstream
            .seen()
            .iter()
            .map(|(_, query)| query.queries[0].name().to_string())
            .collect()
    };
    assert_eq!(names(&example), ["www.example.com.", "example.com."]);
    assert_eq!(names(&com), ["notexample.com.", "com."]);
    assert_eq!(names(&all), ["example.org."]);
    // The zones' own names never leave.
    assert_eq!(
        server.code(&ask(ABSENT, A).flags(RD)).await,
        ResponseCode::NXDomain
    );
    assert_eq!(all.seen().len(), 1);
}

#[test]
fn only_some_clients_and_domains_are_forwarded_for() {
    let policy = Policy::new(["example.com".parse().unwrap()], default_forward_for());
    let reaction = |client: &str, name: &str| {
        let message = foreign(name).bytes();
        let client: IpAddr = client.parse().unwrap();
        decided(&message, Transport::Udp, client, &snapshot(), &policy, 0)
    };
    let admitted = [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.1.1",
        "fd00::1",
        "fe80::1",
        "::ffff:10.0.0.1",
    ];
    for client in admitted {
        assert!(
            matches!(reaction(client, "www.example.com").0, Reaction::Forward(_)),
            "{client}"
        );
    }
    let refused = |client, name| match reaction(client, name) {
        (Reaction::Reply(_), octets) => {
            let reply = checked(&foreign(name), &octets);
            reply.metadata.response_code == ResponseCode::Refused
                && reply.metadata.recursion_available
        }
        _ => false,
    };
    for client in ["192.0.2.1", "172.32.0.1", "2001:db8::1", "::ffff:192.0.2.1"] {
        assert!(refused(client, "www.example.com"), "{client}");
    }
    assert!(refused("127.0.0.1", "example.org"), "no upstream for it");
    // The zones are for everybody.
    assert!(
        matches!(reaction("192.0.2.1", WEB), (Reaction::Reply(_), octets) if octets[3] & 15 == 0)
    );
}

#[tokio::test]
async fn without_upstreams_foreign_names_are_refused() {
    let reply = serve(Default::default())
        .udp(&foreign("www.example.com"))
        .await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!reply.metadata.recursion_available);
}

#[tokio::test]
async fn questions_under_way_are_limited() {
    let upstream = silent_upstream().await;
    let limits = Limits {
        forwarded: 2,
        upstream_timeout: Duration::from_secs(3),
        ..Default::default()
    };
    let server = serve(FallbackConfig {
        limits,
        ..forwarding_to(&[upstream.address])
    });
    let waiting = server.client().await;
    for name in ["a.example", "b.example"] {
        waiting.send(&foreign(name).bytes()).await.unwrap();
    }
    until(|| server.counters.forwarding.get() == 2).await;
    let start = Instant::now();
    assert_eq!(
        server.code(&foreign("c.example")).await,
        ResponseCode::ServFail
    );
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(server.counters.forward_overload.get(), 1);
}

/// What there is no room for is told at once, by who reads it: the runtime on which questions wait does nothing meanwhile.
#[tokio::test]
async fn questions_beyond_the_limit_become_no_tasks() {
    const LIMIT: usize = 2;
    const ASKED: u16 = 500;
    let upstream = silent_upstream().await;
    let limits = Limits {
        forwarded: LIMIT,
        ..Default::default()
    };
    let server = serve(FallbackConfig {
        limits,
        ..forwarding_to(&[upstream.address])
    });
    // All is up.
    assert_eq!(
        server.code(&ask("cluster.local", NS)).await,
        ResponseCode::NoError
    );

    let socket = std::net::UdpSocket::bind((server.address.ip(), 0)).unwrap();
    socket.connect(server.address).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut reply = [0; 512];
    for id in 0..ASKED {
        let question = foreign(&format!("name{id}.example")).id(id);
        socket.send(&question.bytes()).unwrap();
        if usize::from(id) < LIMIT {
            continue;
        }
        let length = socket.recv(&mut reply).unwrap();
        let reply = Message::from_vec(&reply[..length]).unwrap();
        assert_eq!(reply.metadata.id, id);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(
        server.counters.forward_overload.get(),
        u64::from(ASKED) - LIMIT as u64
    );
}

/// An upstream that is silent until it is opened; then the retransmission is answered.
async fn closed_upstream() -> (TestUpstream, Arc<AtomicBool>) {
    let (gate, answer) = (Arc::new(AtomicBool::new(false)), found(60));
    let open = Arc::clone(&gate);
    let reply = move |transport, query: &Message| {
        let open = open.load(Ordering::Relaxed);
        open.then(|| answer(transport, query)).flatten()
    };
    (TestUpstream::start(reply).await, gate)
}

#[tokio::test]
async fn the_same_question_is_asked_once_at_a_time() {
    let (upstream, open) = closed_upstream().await;
    let server = serve(forwarding_to(&[upstream.address]));
    let client = server.client().await;
    for id in 0..20 {
        client
            .send(&foreign("www.example.com").id(id).bytes())
            .await
            .unwrap();
    }
    until(|| server.counters.forward_joined.get() == 19 && !upstream.seen().is_empty()).await;
    open.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        is_found(&Message::from_vec(&datagram(&client).await).unwrap());
    }
    // The first one, and the next try of the same; on a slow machine one more.
    let asked = upstream.seen().len();
    assert!((2..=3).contains(&asked), "{asked}");
}

/// Passes datagrams on to `target` and its replies back, as a forwarder would.
async fn relay(target: Arc<Mutex<Option<SocketAddr>>>) -> (SocketAddr, Arc<Mutex<usize>>) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = socket.local_addr().unwrap();
    let count = Arc::new(Mutex::new(0));
    let passed = Arc::clone(&count);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let (query, socket, target) = (
                buffer[..length].to_vec(),
                Arc::clone(&socket),
                target.lock().unwrap().unwrap(),
            );
            *passed.lock().unwrap() += 1;
            tokio::spawn(async move {
                let onward = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                onward.connect(target).await.unwrap();
                onward.send(&query).await.unwrap();
                let mut reply = vec![0; 4096];
                let length = onward.recv(&mut reply).await.unwrap();
                socket.send_to(&reply[..length], client).await.unwrap();
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_loop_is_noticed_and_broken_however_long_it_is() {
    for hops in 1..=3 {
        let target = Arc::new(Mutex::new(None));
        let (mut first, passed) = relay(Arc::clone(&target)).await;
        for _ in 1..hops {
            first = relay(Arc::new(Mutex::new(Some(first)))).await.0;
        }
        let server = serve(forwarding_to(&[first]));
        *target.lock().unwrap() = Some(server.address);

        let start = Instant::now();
        let query = foreign("www.example.com");
        assert_eq!(server.code(&query).await, ResponseCode::ServFail);
        assert!(
            start.elapsed() < Duration::from_secs(4),
            "{hops} hops: only a time-out ended it"
        );
        assert_eq!(server.counters.loops.get(), 1);
        let went_round = *passed.lock().unwrap();
        assert!(went_round <= 3, "{went_round}");
        // The upstream is left alone now.
        assert_eq!(
            server.code(&foreign("other.example.com")).await,
            ResponseCode::ServFail
        );
        assert_eq!(*passed.lock().unwrap(), went_round);
    }
}

#[tokio::test]
async fn two_who_ask_the_same_are_no_loop() {
    let (upstream, open) = closed_upstream().await;
    let server = serve(forwarding_to(&[upstream.address]));
    let (one, two) = (server.client().await, server.client().await);
    for client in [&one, &two] {
        client
            .send(&foreign("www.example.com").bytes())
            .await
            .unwrap();
    }
    until(|| server.counters.forward_joined.get() == 1).await;
    open.store(true, Ordering::Relaxed);
    for client in [&one, &two] {
        is_found(&Message::from_vec(&datagram(client).await).unwrap());
    }
    assert_eq!(server.counters.loops.get(), 0);
    // Its upstream was asked for a sign of a loop, and whoever answers for the name itself does not learn which.
    let sign = || {
        let mut names = upstream.seen().into_iter().map(|(_, query)| query);
        names.find_map(|query| {
            let name = query.queries[0].name().to_string();
            name.starts_with("peak-loop-").then_some(name)
        })
    };
    until(|| sign().is_some()).await;
    assert!(!sign().unwrap().ends_with("example.com."), "{:?}", sign());
}

#[test]
fn upstreams_are_read_from_text() {
    let read = |text: &str| text.parse::<Upstream>();
    assert_eq!(read("192.0.2.1:53").unwrap().to_string(), "192.0.2.1:53");
    assert_eq!(
        read("Example.COM=[2001:db8::1]:5353").unwrap().to_string(),
        "example.com.=[2001:db8::1]:5353"
    );
    for text in [
        "192.0.2.1",
        "2001:db8::1:53",
        "[2001:db8::1]",
        "dns.example:53",
        "",
    ] {
        assert!(
            matches!(read(text), Err(UpstreamError::Address { .. })),
            "{text}"
        );
    }
    assert!(matches!(
        read("a..b=192.0.2.1:53"),
        Err(UpstreamError::Domain { .. })
    ));
    assert!(
        read("a..b=192.0.2.1:53")
            .unwrap_err()
            .to_string()
            .contains("a..b")
    );
}
