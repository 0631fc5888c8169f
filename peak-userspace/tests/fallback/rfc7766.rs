//! RFC 7766: DNS over TCP.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use peak_userspace::fallback::{FallbackConfig, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::{fixture::*, forward::silent_upstream};

#[tokio::test]
async fn section_5_tcp_and_udp_say_the_same() {
    let server = serve(Default::default());
    for name in [WEB, ABSENT, ZONE] {
        let query = ask(name, AAAA).opt(OPT);
        let (mut udp, mut tcp) = (server.udp(&query).await, server.tcp(&query).await);
        // They are rotated.
        udp.answers.sort();
        tcp.answers.sort();
        assert_eq!(udp, tcp);
    }
    let figures = server.counters.figures();
    assert_eq!(
        (figures.udp, figures.tcp, figures.nxdomain, figures.noerror),
        (3, 3, 2, 4)
    );
}

#[tokio::test]
async fn section_5_what_is_truncated_over_udp_is_whole_over_tcp() {
    let server = serve(Default::default());
    let query = ask(LARGE, AAAA).opt(OPT);
    assert!(server.udp(&query).await.metadata.truncation);
    let reply = server.tcp(&query).await;
    assert!(!reply.metadata.truncation);
    assert_eq!(
        BTreeSet::from_iter(aaaa(&reply)),
        BTreeSet::from_iter(v6(60))
    );
    assert!(server.tcp(&ask(HUGE, AAAA)).await.metadata.truncation);
    let figures = server.counters.figures();
    assert_eq!((figures.udp_truncated, figures.tcp_truncated), (1, 1));
}

#[tokio::test]
async fn section_6_2_1_1_queries_are_pipelined() {
    let server = serve(Default::default());
    let mut stream = server.connect().await;
    let mut sent = Vec::new();
    for id in 0..1000_u16 {
        let name = [WEB, ABSENT, ZONE][usize::from(id) % 3];
        sent.extend(framed(&ask(name, AAAA).id(id).bytes()));
    }
    stream.write_all(&sent).await.unwrap();
    let mut ids = BTreeSet::new();
    for _ in 0..1000 {
        let octets = receive(&mut stream).await.unwrap();
        ids.insert(Message::from_vec(&octets).unwrap().metadata.id);
    }
    assert_eq!(ids, (0..1000).collect());
}

#[tokio::test]
async fn section_7_a_reply_does_not_wait_for_another() {
    let upstream = silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: Limits {
            upstream_timeout: Duration::from_millis(600),
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    let mut stream = server.connect().await;
    let slow = foreign("slow.example").id(1);
    let fast = ask(WEB, AAAA).id(2);
    send(&mut stream, &slow.bytes()).await;
    send(&mut stream, &fast.bytes()).await;
    let first = receive(&mut stream).await.unwrap();
    let second = receive(&mut stream).await.unwrap();
    assert_eq!(aaaa(&checked_with_ra(&fast, &first)).len(), 3);
    assert_eq!(
        checked_with_ra(&slow, &second).metadata.response_code,
        ResponseCode::ServFail
    );
}

fn checked_with_ra(query: &Ask, octets: &[u8]) -> Message {
    let message = checked(query, octets);
    assert!(message.metadata.recursion_available);
    message
}

#[tokio::test]
async fn section_8_a_message_may_come_in_pieces() {
    let server = serve(Default::default());
    let mut stream = server.connect().await;
    stream.set_nodelay(true).unwrap();
    for byte in framed(&ask(WEB, AAAA).bytes()).chunks(1) {
        stream.write_all(byte).await.unwrap();
        tokio::task::yield_now().await;
    }
    let reply = Message::from_vec(&receive(&mut stream).await.unwrap()).unwrap();
    assert_eq!(aaaa(&reply).len(), 3);
}

#[tokio::test]
async fn section_6_2_3_idle_connections_are_closed() {
    let limits = Limits {
        idle_timeout: Duration::from_millis(150),
        ..Default::default()
    };
    let server = serve(with_limits(limits));
    // Nothing at all, half a length, half a message, and a query answered before.
    let framed = framed(&ask(WEB, AAAA).bytes());
    for sent in [0, 1, 20, framed.len()] {
        let start = Instant::now();
        let mut stream = server.connect().await;
        stream.write_all(&framed[..sent]).await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest.is_empty(), sent < framed.len());
        assert!(start.elapsed() >= limits.idle_timeout, "too early");
    }
    until(|| server.counters.connections_open.get() == 0).await;
    assert_eq!(server.counters.connections_timed_out.get(), 4);
}

#[tokio::test]
async fn section_6_2_3_a_slow_sender_does_not_put_off_the_end() {
    let limits = Limits {
        idle_timeout: Duration::from_millis(200),
        ..Default::default()
    };
    let server = serve(with_limits(limits));
    // One message of 60 bytes, and many of none, which get no reply.
    for (timed_out, first) in [[0, 60], [0, 0]].into_iter().enumerate() {
        let (mut read, mut write) = server.connect().await.into_split();
        // A byte each 50 ms would take three seconds.
        let dripping = tokio::spawn(async move {
            for byte in first.into_iter().chain([0; 60]) {
                if write.write_all(&[byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let start = Instant::now();
        let _ = soon(read.read_to_end(&mut Vec::new())).await;
        assert!(start.elapsed() < Duration::from_secs(2));
        assert_eq!(
            server.counters.connections_timed_out.get(),
            timed_out as u64 + 1
        );
        dripping.abort();
    }
}

#[tokio::test]
async fn section_6_2_3_a_slow_reader_is_given_up() {
    let limits = Limits {
        write_timeout: Duration::from_millis(150),
        ..Default::default()
    };
    let server = serve(with_limits(limits));
    let mut stream = server.connect().await;
    // Some hundreds of 64 KiB are more than the buffers between us hold.
    for id in 0..400 {
        let framed = framed(&ask(HUGE, AAAA).id(id).bytes());
        if tokio::time::timeout(Duration::from_millis(300), stream.write_all(&framed))
            .await
            .is_err()
        {
            break;
        }
    }
    until(|| server.counters.connections_open.get() == 0).await;
    assert_eq!(server.counters.connections_timed_out.get(), 1);
}

#[tokio::test]
async fn section_6_2_4_nothing_is_sent_to_who_has_closed() {
    let upstream = silent_upstream().await;
    let server = serve(forwarding_to(&[upstream.address]));
    let mut stream = server.connect().await;
    send(&mut stream, &foreign("slow.example").bytes()).await;
    until(|| server.counters.forwarding.get() == 1).await;
    drop(stream);
    until(|| server.counters.connections_open.get() == 0).await;
    assert_eq!(server.counters.replies_dropped.get(), 1);
}

#[tokio::test]
async fn what_gets_no_reply_leaves_the_connection_as_it_is() {
    let server = serve(Default::default());
    let mut stream = server.connect().await;
    send(&mut stream, b"").await;
    send(&mut stream, b"short").await;
    send(&mut stream, &ask(WEB, AAAA).id(1).flags(0x8000).bytes()).await;
    let reply = exchange(&mut stream, &ask(WEB, AAAA).id(2)).await;
    assert_eq!(aaaa(&reply).len(), 3);
    let figures = server.counters.figures();
    assert_eq!((figures.ignored_short, figures.ignored_responses), (2, 1));
}

/// What one client may have under way on a connection is limited: beyond, it is not read from.
#[tokio::test]
async fn section_6_2_1_1_pipelining_has_its_limit() {
    let upstream = silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: Limits {
            pipelined: 2,
            upstream_timeout: Duration::from_millis(400),
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    let mut stream = server.connect().await;
    for (id, name) in (1..).zip(["a.example", "b.example", WEB]) {
        send(&mut stream, &ask(name, AAAA).id(id).flags(RD).bytes()).await;
    }
    let mut codes = Vec::new();
    for _ in 0..3 {
        let reply = Message::from_vec(&receive(&mut stream).await.unwrap()).unwrap();
        codes.push(reply.metadata.response_code);
    }
    assert_eq!(
        codes[0],
        ResponseCode::ServFail,
        "the third had to wait for the first or the second"
    );
    codes.sort_by_key(|&code| u16::from(code));
    assert_eq!(
        codes,
        [
            ResponseCode::NoError,
            ResponseCode::ServFail,
            ResponseCode::ServFail
        ]
    );
}
