//! Many datagrams at once: each is answered, whatever comes beside it.

use std::{collections::BTreeMap, net::UdpSocket, time::Duration};

use hickory_proto::op::ResponseCode;
use peak_userspace::fallback::FallbackConfig;
use socket2::SockRef;

use crate::fixture::*;

/// More than are read at a time, several times over.
const BURST: u16 = 200;

/// Sends without giving the server a chance to answer one before the next has come.
fn burst(server: &Server, datagrams: impl IntoIterator<Item = Vec<u8>>) -> UdpSocket {
    let socket = UdpSocket::bind((server.address.ip(), 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    // It doesn't read before it has sent all.
    let room = SockRef::from(&socket);
    room.set_recv_buffer_size(1 << 20).unwrap();
    for datagram in datagrams {
        socket.send_to(&datagram, server.address).unwrap();
    }
    socket
}

/// So many replies, by their ID.
fn replies(socket: &UdpSocket, count: usize) -> BTreeMap<u16, Vec<u8>> {
    let mut buffer = vec![0; 65_535];
    let replies = (0..count).map(|_| {
        let length = socket.recv(&mut buffer).expect("a reply");
        let id = u16::from_be_bytes([buffer[0], buffer[1]]);
        (id, buffer[..length].to_vec())
    });
    let replies: BTreeMap<_, _> = replies.collect();
    assert_eq!(replies.len(), count, "one reply each");
    replies
}

/// A query with a record so long behind it that only the longest datagrams hold it.
fn oversize(id: u16) -> Vec<u8> {
    let mut opt = OPT;
    opt = opt.option(65_001, &vec![0; 60_000]);
    ask(WEB, AAAA).id(id).opt(opt).bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_is_answered_whole() {
    let server = serve(FallbackConfig::default());
    let names = [WEB, LARGE, ABSENT, "example.com"];
    let query = |id: u16| {
        let query = ask(names[usize::from(id) % names.len()], AAAA).id(id);
        if id.is_multiple_of(3) {
            query.opt(OPT)
        } else {
            query
        }
    };
    let socket = burst(&server, (0..BURST).map(|id| query(id).bytes()));
    for (id, octets) in replies(&socket, BURST.into()) {
        let reply = checked(&query(id), &octets);
        let (code, records) = match id % 4 {
            0 => (ResponseCode::NoError, 3),
            1 => (ResponseCode::NoError, reply.answers.len()),
            2 => (ResponseCode::NXDomain, 0),
            _ => (ResponseCode::Refused, 0),
        };
        assert_eq!(reply.metadata.response_code, code);
        assert_eq!(reply.answers.len(), records);
        assert_eq!(reply.metadata.truncation, id % 4 == 1);
    }
    let figures = server.counters.figures();
    let each = u64::from(BURST) / 4;
    assert_eq!(figures.udp, u64::from(BURST));
    assert_eq!(
        (figures.noerror, figures.nxdomain, figures.refused),
        (2 * each, each, each)
    );
    assert_eq!((figures.udp_truncated, figures.replies_dropped), (each, 0));
}

/// What is long, broken or no query at all is dealt with as if it had come alone.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_in_a_batch_disturbs_the_others() {
    let server = serve(FallbackConfig::default());
    let datagram = |id: u16| match id % 5 {
        0 => oversize(id),
        1 => ask(WEB, AAAA).id(id).bytes()[..7].to_vec(),
        2 => ask(WEB, AAAA).id(id).flags(0x8000).bytes(),
        3 => [&ask(WEB, AAAA).id(id).bytes()[..], &[0; 40_000]].concat(),
        _ => ask(WEB, AAAA).id(id).bytes(),
    };
    // Few enough to be held by a socket whose buffer could not be made larger.
    for round in 0..5 {
        let ids = round * 10..(round + 1) * 10;
        let socket = burst(&server, ids.clone().map(datagram));
        let replies = replies(&socket, 6);
        for id in ids {
            let reply = replies.get(&id);
            match id % 5 {
                1 | 2 => assert_eq!(reply, None),
                3 => assert_eq!(reply.unwrap()[3] & 15, 1, "FORMERR"),
                kind => {
                    let mut query = ask(WEB, AAAA).id(id);
                    if kind == 0 {
                        query = query.opt(OPT);
                    }
                    assert_eq!(aaaa(&checked(&query, reply.unwrap())).len(), 3);
                }
            }
        }
    }
    let figures = server.counters.figures();
    assert_eq!(
        (figures.udp, figures.noerror, figures.formerr),
        (50, 20, 10)
    );
    assert_eq!((figures.ignored_short, figures.ignored_responses), (10, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_and_own_names_come_together() {
    let upstream = crate::forward::silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: peak_userspace::fallback::Limits {
            upstream_timeout: Duration::from_millis(300),
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    let query = |id: u16| match id % 2 {
        0 => ask(WEB, AAAA).id(id),
        _ => foreign("slow.example").id(id),
    };
    let socket = burst(&server, (0..100).map(|id| query(id).bytes()));
    // Ours don't wait for theirs.
    for (id, octets) in replies(&socket, 50) {
        assert_eq!(id % 2, 0);
        assert_eq!(aaaa(&checked(&query(id), &octets)).len(), 3);
    }
    let theirs = tokio::task::spawn_blocking(move || replies(&socket, 50));
    for (id, octets) in soon(theirs).await.unwrap() {
        let reply = checked(&query(id), &octets);
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_what_had_come_is_answered() {
    let server = serve(FallbackConfig::default());
    // A first one, so that the socket is being served.
    server.udp(&ask(WEB, AAAA)).await;
    let socket = burst(&server, (0..BURST).map(|id| ask(WEB, AAAA).id(id).bytes()));
    server.shutdown.cancel();
    for (id, octets) in replies(&socket, BURST.into()) {
        assert_eq!(aaaa(&checked(&ask(WEB, AAAA).id(id), &octets)).len(), 3);
    }
    soon(server.task).await.unwrap();
}

/// Who never stops asking neither puts off the end, nor keeps other sockets from being read.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_leaves_room_for_others_and_for_the_end() {
    let server = serve(FallbackConfig {
        listen: vec![
            "127.0.0.1:0".parse().unwrap(),
            "127.0.0.1:0".parse().unwrap(),
        ],
        ..Default::default()
    });
    let flooded = server.addresses[1];
    let over = tokio_util::sync::CancellationToken::new();
    let flood = std::thread::spawn({
        let over = over.clone();
        move || {
            let sockets: Vec<_> = (0..8)
                .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
                .collect();
            let query = ask(WEB, AAAA).bytes();
            while !over.is_cancelled() {
                for socket in &sockets {
                    // Nobody reads what comes back.
                    let _ = socket.send_to(&query, flooded);
                }
            }
        }
    });
    until(|| server.counters.udp.get() > 1000).await;
    for _ in 0..20 {
        assert_eq!(aaaa(&server.udp(&ask(WEB, AAAA)).await).len(), 3);
        assert_eq!(aaaa(&server.tcp(&ask(WEB, AAAA)).await).len(), 3);
    }
    server.shutdown.cancel();
    let ended = soon(server.task).await;
    over.cancel();
    flood.join().unwrap();
    ended.unwrap();
}
