//! Serves one UDP socket.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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
            Ok((length, client)) => handle(&socket, &responder, &datagram[..length], client).await,
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
        handle(&socket, &responder, &datagram[..length], client).await;
    }
}

async fn handle(
    socket: &Arc<UdpSocket>,
    responder: &Arc<Responder>,
    message: &[u8],
    client: SocketAddr,
) {
    // RFC 768: port 0 says that no reply is wanted; none could arrive either.
    if client.port() == 0 {
        responder.counters.udp.increment();
        responder.counters.ignored_port_zero.increment();
        return;
    }
    match responder.react(message, Transport::Udp, client.ip()) {
        Pending::Reply(reply) => send(socket, responder, &reply, client).await,
        Pending::Forward(forward) => {
            let (socket, responder) = (Arc::clone(socket), Arc::clone(responder));
            responder.clone().tasks.spawn(async move {
                let reply = responder.forward(forward, Transport::Udp, client).await;
                send(&socket, &responder, &reply, client).await;
            });
        }
        Pending::Nothing => {}
    }
}

async fn send(socket: &UdpSocket, responder: &Responder, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        responder.counters.replies_dropped.increment();
        debug!(%client, %error, "sending a reply");
    }
}
