//! Pods: namespaces with a small HTTP server that says its name.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use axum::{Router, routing::get};
use tokio::sync::oneshot;

use crate::Namespace;

/// An HTTP server that answers `GET /` with its name, and counts. It stops when dropped.
#[derive(Debug)]
pub struct Pod {
    name: String,
    requests: Arc<AtomicU64>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pod {
    /// Serves on `address` of `namespace`. It accepts connections when this returns.
    ///
    /// # Errors
    /// The address is not the namespace's, or taken.
    pub fn serve(namespace: &Namespace, name: &str, address: SocketAddr) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind(address))
            .with_context(|| format!("pod {name} cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;

        let requests = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let router = Router::new().route("/", get(greeting(name, &requests)));
        // The socket belongs to the namespace; the thread needn't.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let listener =
                        tokio::net::TcpListener::from_std(listener).expect("it is non-blocking");
                    tokio::select! {
                        _ = axum::serve(listener, router) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            name: name.to_owned(),
            requests,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What it says.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many requests it has answered.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A handler that counts and says `name`.
fn greeting(
    name: &str,
    requests: &Arc<AtomicU64>,
) -> impl Fn() -> std::future::Ready<String> + Clone + Send + Sync + 'static {
    let (name, requests) = (name.to_owned(), Arc::clone(requests));
    move || {
        requests.fetch_add(1, Ordering::Relaxed);
        std::future::ready(name.clone())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic, if any, was shown by its own thread.
            let _ = thread.join();
        }
    }
}
