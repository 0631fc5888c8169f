//! Serves one UDP socket.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{net::UdpSocket, time::sleep};
use tracing::debug;

use super::{Pending, Responder, Transport};

/// How many datagrams that had come before the end are still looked at.
const LAST_DATAGRAMS: usize = 1024;

/// Answers until shutdown, and then what has come already.
pub(super) async fn serve(socket: Arc<UdpSocket>, responder: Arc<Responder>) {
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        let received = tokio::select! {
            () = responder.shutdown.cancelled() => break,
            received = socket.recv_from(&mut datagram) => received,
        };
        match received {
            Ok((length, client)) => handle(&socket, &responder, &datagram[..length], client),
            Err(error) => {
                debug!(%error, "receiving a datagram");
                // Short of memory, most likely: not to be made worse by a busy loop.
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
    for _ in 0..LAST_DATAGRAMS {
        let Ok((length, client)) = socket.try_recv_from(&mut datagram) else {
            break;
        };
        handle(&socket, &responder, &datagram[..length], client);
    }
}

fn handle(socket: &Arc<UdpSocket>, responder: &Arc<Responder>, message: &[u8], client: SocketAddr) {
    // RFC 768: port 0 says that no reply is wanted; none could arrive either.
    if client.port() == 0 {
        responder.counters.udp.increment();
        responder.counters.ignored_port_zero.increment();
        return;
    }
    match responder.react(message, Transport::Udp, client.ip()) {
        Pending::Reply(reply) => send(socket, responder, &reply, client),
        Pending::Forward(forward) => {
            let (socket, responder) = (Arc::clone(socket), Arc::clone(responder));
            responder.clone().tasks.spawn(async move {
                let reply = responder.forward(forward, Transport::Udp, client).await;
                send(&socket, &responder, &reply, client);
            });
        }
        Pending::Nothing => {}
    }
}

/// Sends a reply at once, or not at all. What waits for neighbours that are not there fills the socket's buffer for
/// seconds: who sends from such addresses must not keep the others' queries from being read.
fn send(socket: &UdpSocket, responder: &Responder, reply: &[u8], client: SocketAddr) {
    if let Err(error) = SockRef::from(socket).send_to(reply, &client.into()) {
        responder.counters.replies_dropped.increment();
        debug!(%client, %error, "sending a reply");
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        fallback::{Counters, Limits, answer::Policy, forward::Forwarder},
        snapshot::{Snapshot, SnapshotConfig},
    };

    /// No socket of a test's can send from port 0.
    #[tokio::test]
    async fn port_0_gets_no_reply() {
        let config = SnapshotConfig {
            zones: vec!["cluster.local".parse().unwrap()],
            ttl: 5,
            ..SnapshotConfig::default()
        };
        let (limits, policy, counters) = (
            Limits::default(),
            Policy::default(),
            Arc::<Counters>::default(),
        );
        let responder = Arc::new(Responder {
            snapshot: Arc::new(ArcSwap::from_pointee(Snapshot::empty(config))),
            forwarder: Arc::new(Forwarder::new(&[], &policy, &limits, Arc::clone(&counters))),
            policy,
            limits,
            counters: Arc::clone(&counters),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        });
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let query = b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\x07cluster\x05local\0\0\x06\0\x01";
        handle(&socket, &responder, query, "127.0.0.1:0".parse().unwrap());
        let figures = counters.figures();
        assert_eq!(
            (
                figures.udp,
                figures.ignored_port_zero,
                figures.servfail,
                figures.replies_dropped
            ),
            (1, 1, 0, 0)
        );
        // From another port the same query is answered.
        handle(&socket, &responder, query, socket.local_addr().unwrap());
        assert_eq!(counters.servfail.get(), 1);
    }
}
