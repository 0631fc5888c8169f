//! Starting, ending, and what happens beyond the limits.

use std::{net::SocketAddr, time::Duration};

use peak_userspace::fallback::{BindError, Fallback, FallbackConfig, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

use crate::{fixture::*, forward::silent_upstream};

fn config(listen: &str) -> FallbackConfig {
    FallbackConfig {
        listen: vec![listen.parse().unwrap()],
        ..Default::default()
    }
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(soon(stream.read(&mut [0])).await, Ok(0) | Err(_))
}

async fn is_answered(stream: &mut TcpStream) -> bool {
    let query = ask(WEB, AAAA);
    send(stream, &query.bytes()).await;
    receive(stream)
        .await
        .is_some_and(|octets| aaaa(&checked(&query, &octets)).len() == 3)
}

#[test]
fn a_taken_port_is_named() {
    let first = Fallback::bind(config("127.0.0.1:0")).unwrap();
    let address = first.local_addrs()[0];
    let error = Fallback::bind(config(&address.to_string())).unwrap_err();
    assert!(
        matches!(error, BindError::Taken { address: taken, protocol: "TCP" } if taken == address)
    );
    assert!(
        error.to_string().contains(&address.to_string()) && error.to_string().contains("ss -lnp")
    );

    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = datagrams.local_addr().unwrap();
    let error = Fallback::bind(config(&address.to_string())).unwrap_err();
    assert!(
        matches!(error, BindError::Taken { address: taken, protocol: "UDP" } if taken == address)
    );
}

#[test]
fn addresses_that_cannot_be_had_are_named() {
    assert!(matches!(
        Fallback::bind(config("0.0.0.0:0")),
        Err(BindError::Wildcard(_))
    ));
    assert!(matches!(
        Fallback::bind(config("[::]:0")),
        Err(BindError::Wildcard(_))
    ));
    let error = Fallback::bind(config("192.0.2.1:53")).unwrap_err();
    assert!(
        matches!(error, BindError::NoSuchAddress(_)) && error.to_string().contains("192.0.2.1:53")
    );
}

#[test]
fn an_upstream_that_is_peak_itself_is_refused() {
    let free = Fallback::bind(config("127.0.0.1:0")).unwrap().local_addrs()[0];
    let with_upstream = |upstream: &str| {
        let upstreams = vec![upstream.parse().unwrap()];
        Fallback::bind(FallbackConfig {
            upstreams,
            ..config(&free.to_string())
        })
    };
    for text in [
        free.to_string(),
        format!("example.com={free}"),
        format!("[::ffff:127.0.0.1]:{}", free.port()),
    ] {
        let error = with_upstream(&text).unwrap_err();
        assert!(
            matches!(error, BindError::UpstreamIsSelf(_)),
            "{text}: {error}"
        );
    }
    assert!(matches!(
        with_upstream("0.0.0.0:53"),
        Err(BindError::UpstreamUnspecified(_))
    ));
    assert!(with_upstream(&format!("127.0.0.2:{}", free.port())).is_ok());
}

#[tokio::test]
async fn ipv6_and_several_addresses_are_served() {
    let listen = ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"].map(|address| address.parse().unwrap());
    let mut server = serve(FallbackConfig {
        listen: listen.into(),
        ..Default::default()
    });
    for address in server.addresses.clone() {
        server.address = address;
        // The client's socket is connected, so it takes no reply from another address.
        assert_eq!(aaaa(&server.udp(&ask(WEB, AAAA)).await).len(), 3);
        assert_eq!(aaaa(&server.tcp(&ask(WEB, AAAA)).await).len(), 3);
    }
}

#[tokio::test]
async fn many_connections_at_once() {
    let server = serve(Default::default());
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(server.connect().await);
    }
    for stream in &mut streams {
        assert!(is_answered(stream).await);
    }
    assert_eq!(server.counters.connections_open.get(), 200);
    drop(streams);
    until(|| server.counters.connections_open.get() == 0).await;
}

#[tokio::test]
async fn the_oldest_idle_connection_makes_room() {
    let server = serve(with_limits(Limits {
        connections: 3,
        ..Default::default()
    }));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = server.connect().await;
        assert!(is_answered(&mut stream).await);
        streams.push(stream);
    }
    // The first has been used since, so that the second is the oldest.
    assert!(is_answered(&mut streams[0]).await);
    let mut fourth = server.connect().await;
    assert!(is_answered(&mut fourth).await);
    assert!(is_closed(&mut streams[1]).await);
    assert!(is_answered(&mut streams[0]).await && is_answered(&mut streams[2]).await);
    assert_eq!(server.counters.connections_evicted.get(), 1);
}

async fn connect_from(source: &str, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(source.parse().unwrap()).unwrap();
    socket.connect(server).await.unwrap()
}

#[tokio::test]
async fn one_client_takes_only_from_itself() {
    let server = serve(with_limits(Limits {
        connections_per_client: 2,
        ..Default::default()
    }));
    let mut other = connect_from("127.0.0.2:0", server.address).await;
    assert!(is_answered(&mut other).await);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = connect_from("127.0.0.3:0", server.address).await;
        assert!(is_answered(&mut stream).await);
        streams.push(stream);
    }
    assert!(is_closed(&mut streams[0]).await);
    assert!(is_answered(&mut streams[1]).await && is_answered(&mut streams[2]).await);
    assert!(
        is_answered(&mut other).await,
        "the oldest of all, but another client's"
    );
}

#[tokio::test]
async fn a_connection_that_waits_for_a_reply_is_not_idle() {
    let upstream = silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: Limits {
            connections: 1,
            upstream_timeout: Duration::from_millis(500),
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    let mut busy = server.connect().await;
    let query = foreign("slow.example");
    send(&mut busy, &query.bytes()).await;
    until(|| server.counters.forwarding.get() == 1).await;
    let mut late = server.connect().await;
    assert!(is_closed(&mut late).await);
    assert_eq!(server.counters.connections_refused.get(), 1);
    checked(
        &query,
        &receive(&mut busy).await.expect("a reply, late as it is"),
    );
}

#[tokio::test]
async fn a_connection_whose_replies_are_not_read_is_not_idle() {
    let server = serve(with_limits(Limits {
        connections: 1,
        write_timeout: Duration::from_secs(2),
        ..Default::default()
    }));
    let (_deaf, mut mouth) = server.connect().await.into_split();
    let queries = framed(&ask(HUGE, AAAA).bytes()).repeat(1000);
    tokio::spawn(async move { mouth.write_all(&queries).await });
    // Its replies fill every buffer between, and then none are made of what follows.
    loop {
        let made = server.counters.tcp_truncated.get();
        sleep(Duration::from_millis(300)).await;
        if made > 0 && made == server.counters.tcp_truncated.get() {
            break;
        }
    }
    assert!(is_closed(&mut server.connect().await).await);
    assert_eq!(server.counters.connections_evicted.get(), 0);
    until(|| server.counters.connections_timed_out.get() == 1).await;
    assert!(is_answered(&mut server.connect().await).await);
}

#[tokio::test]
async fn who_goes_away_makes_no_room_upstream() {
    let upstream = silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: Limits {
            forwarded: 5,
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    for client in 0..4 {
        let mut stream = server.connect().await;
        for name in 0..2 {
            let query = foreign(&format!("{name}.{client}.example"));
            send(&mut stream, &query.bytes()).await;
        }
        until(|| server.counters.forwarded.get() == 2 * (client + 1)).await;
        drop(stream);
        until(|| server.counters.connections_open.get() == 0).await;
    }
    assert_eq!(server.counters.forwarding.get(), 5);
    assert_eq!(server.counters.forward_overload.get(), 3);
}

#[test]
fn what_may_be_open_bounds_the_rest() {
    assert_eq!(Limits::within(u64::MAX), Limits::default());
    assert_eq!(Limits::within(65_536), Limits::default());
    for files in [64, 256, 1024, 4096, 20_000] {
        let limits = Limits::within(files);
        let most = limits.connections + 7 * limits.forwarded;
        assert!(most as u64 * 4 <= files * 3, "{files}: {limits:?}");
        assert!(limits.connections_per_client * 4 <= limits.connections);
    }
}

#[tokio::test]
async fn at_the_end_what_is_under_way_is_answered() {
    let upstream = silent_upstream().await;
    let server = serve(FallbackConfig {
        limits: Limits {
            upstream_timeout: Duration::from_millis(400),
            ..Default::default()
        },
        ..forwarding_to(&[upstream.address])
    });
    let query = foreign("slow.example");
    let (datagrams, mut stream, mut idle) = (
        server.client().await,
        server.connect().await,
        server.connect().await,
    );
    assert!(is_answered(&mut idle).await);
    datagrams.send(&query.bytes()).await.unwrap();
    send(&mut stream, &query.bytes()).await;
    until(|| server.counters.forwarded.get() == 2).await;
    server.shutdown.cancel();
    assert!(is_closed(&mut idle).await);
    checked(&query, &datagram(&datagrams).await);
    checked(&query, &receive(&mut stream).await.expect("a reply"));
    assert!(is_closed(&mut stream).await);
    soon(server.task).await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn the_end_does_not_wait_for_ever() {
    let upstream = silent_upstream().await;
    let limits = Limits {
        drain_timeout: Duration::from_millis(100),
        ..Default::default()
    };
    let server = serve(FallbackConfig {
        limits,
        ..forwarding_to(&[upstream.address])
    });
    let datagrams = server.client().await;
    datagrams
        .send(&foreign("slow.example").bytes())
        .await
        .unwrap();
    until(|| server.counters.forwarding.get() == 1).await;
    server.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(2), server.task)
        .await
        .expect("bounded")
        .unwrap();
}
