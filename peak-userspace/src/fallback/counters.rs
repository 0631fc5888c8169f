//! What the fallback counts: a closed set, so that a metric made of it can't grow without limit.

use std::sync::atomic::{AtomicU64, Ordering};

use domain::base::iana::OptRcode;
use serde::Serialize;

use super::{Transport, answer::Reply};

/// A number that any thread may change.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts one more.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts `n` more.
    pub fn add(&self, n: usize) {
        self.0.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Counts one less (gauges only).
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// The fallback's counters since the agent started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
        }

        /// [`Counters`] read at one moment, each for itself.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Figures {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Reads every counter.
            pub fn figures(&self) -> Figures {
                Figures { $($name: self.$name.get(),)+ }
            }
        }
    };
}

counters! {
    /// Messages that came over UDP, answered or not.
    udp,
    /// Messages that came over TCP, answered or not.
    tcp,
    /// Replies with NOERROR.
    noerror,
    /// Replies with FORMERR.
    formerr,
    /// Replies with SERVFAIL.
    servfail,
    /// Replies with NXDOMAIN.
    nxdomain,
    /// Replies with NOTIMP.
    notimp,
    /// Replies with REFUSED.
    refused,
    /// Replies with BADVERS.
    badvers,
    /// Replies with any other code, as an upstream gave it.
    other_rcode,
    /// Replies with TC over UDP.
    udp_truncated,
    /// Replies with TC over TCP: more than 64 KiB of records.
    tcp_truncated,
    /// Messages left alone because they are responses themselves.
    ignored_responses,
    /// Messages left alone because they are shorter than a header.
    ignored_short,
    /// Datagrams left alone because they came from port 0.
    ignored_port_zero,
    /// Replies that the network did not take, or that nobody waited for any more.
    replies_dropped,
    /// Questions for names outside the zones that were taken on.
    forwarded,
    /// Of these, answered from the cache.
    forward_cached,
    /// Of these, waiting for the same question that was already under way.
    forward_joined,
    /// Of these, without any answer from an upstream.
    forward_failed,
    /// Questions refused with SERVFAIL because too many were under way.
    forward_overload,
    /// Questions of ours that came back to us through an upstream.
    loops,
    /// Questions under way now (a gauge).
    forwarding,
    /// TCP connections taken.
    connections_accepted,
    /// TCP connections open now (a gauge).
    connections_open,
    /// Idle TCP connections that made room for a new one.
    connections_evicted,
    /// TCP connections refused because none of those in the way was idle.
    connections_refused,
    /// TCP connections closed because they were idle, or slow, for too long.
    connections_timed_out,
}

impl Counters {
    /// Counts some replies that are alike.
    pub(super) fn replies(&self, reply: Reply, transport: Transport, count: usize) {
        match reply.rcode {
            OptRcode::NOERROR => &self.noerror,
            OptRcode::FORMERR => &self.formerr,
            OptRcode::SERVFAIL => &self.servfail,
            OptRcode::NXDOMAIN => &self.nxdomain,
            OptRcode::NOTIMP => &self.notimp,
            OptRcode::REFUSED => &self.refused,
            OptRcode::BADVERS => &self.badvers,
            _ => &self.other_rcode,
        }
        .add(count);
        if reply.truncated {
            match transport {
                Transport::Udp => &self.udp_truncated,
                Transport::Tcp => &self.tcp_truncated,
            }
            .add(count);
        }
    }
}
