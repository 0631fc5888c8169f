//! Fixtures of the suites in this package and of the demo: real namespaces, links, pods and `peak` itself.
//!
//! Everything is a guard: dropping it takes away what it made, also when a test panics. What a killed process could not
//! take away, the next one does. All of it needs root.

mod answers;
mod control_plane;
mod coredns;
mod dns;
mod frames;
mod http;
mod namespace;
mod peak;
mod pod;
mod process;
mod wait;
mod xdp;

pub use self::{
    answers::{Said, Wanted, check, comparable, data, rtype},
    control_plane::{Component, ControlPlane, Reach, asset},
    coredns::CoreDns,
    dns::{ask, connect, exchange, over_tcp, over_udp, query, v6_addresses},
    frames::{Datagram, Frames},
    http::http_get,
    namespace::{Namespace, Net, join, scratch},
    peak::{Counted, Fallback, Interface, Peak, SnapshotSize, Source, Status, Watch, give_away},
    pod::Pod,
    process::{Running, program},
    wait::eventually,
    xdp::{PassProgram, XdpProgram, pass},
};
