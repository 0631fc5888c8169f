//! The API server, seen from namespaces that tests make.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use anyhow::{Context, Result};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::Notify,
    task::{JoinHandle, JoinSet},
};

use crate::Namespace;

/// Passes connections on from a namespace's loopback to the host's. When dropped, it refuses them and ends those that are.
#[derive(Debug)]
pub struct Reach {
    passing: JoinHandle<()>,
    hang_up: Arc<Notify>,
}

impl Reach {
    pub(super) fn new(
        runtime: &Runtime,
        namespace: &Namespace,
        address: SocketAddr,
    ) -> Result<Self> {
        // Sockets keep to the namespace that they were made in, whoever uses them.
        let listener = namespace
            .run(|| StdListener::bind(address))
            .with_context(|| format!("cannot listen on {address} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let hang_up = Arc::new(Notify::new());
        let hung_up = Arc::clone(&hang_up);
        let passing = runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("it is non-blocking");
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((near, _)) = accepted else { return };
                        connections.spawn(pass(near, address));
                        // Those that have ended need no memory.
                        while connections.try_join_next().is_some() {}
                    }
                    () = hung_up.notified() => connections.abort_all(),
                }
            }
        });
        Ok(Self { passing, hang_up })
    }

    /// Ends the connections that there are. New ones are passed on.
    pub fn hang_up(&self) {
        self.hang_up.notify_one();
    }
}

/// Passes on both ways until both ends are done. Where there is no API server the connection ends at once.
async fn pass(mut near: TcpStream, address: SocketAddr) {
    let Ok(mut far) = TcpStream::connect(address).await else {
        return;
    };
    // What is to be passed on has been waited for already.
    let _ = near.set_nodelay(true).and(far.set_nodelay(true));
    // How it ended is between the two.
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

impl Drop for Reach {
    fn drop(&mut self) {
        // The connections' tasks go with their set.
        self.passing.abort();
    }
}
