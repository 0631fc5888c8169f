//! The servers that are compared, each a process of its own in the namespace of the calling thread.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RecordType, rdata::opt::EdnsOption},
};
use peak_tests::{ControlPlane, CoreDns, Namespace, Net, Peak, Status, v6_addresses};

use crate::report::Label;

/// How long a server may take until it answers.
const START: Duration = Duration::from_secs(300);
/// How long an answer may take while the server starts; later it is lost after the second.
const ANSWER: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
/// How long to leave a server alone that is not ready.
const PAUSE: Duration = Duration::from_millis(2);
/// The largest reply that is asked for.
const PAYLOAD_SIZE: u16 = 1232;
/// The code and the length of the option COOKIE (RFC 7873), which dig sends.
const COOKIE: (u16, usize) = (10, 8);

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    CoreDns,
    Peak,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::CoreDns, Self::Peak];

    /// As it is labelled in reports.
    pub(super) fn label(self) -> (&'static str, Label) {
        let name = match self {
            Self::CoreDns => "coredns",
            Self::Peak => "peak",
        };
        ("server", name.into())
    }
}

/// As it is written in sentences.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CoreDns => "CoreDNS",
            Self::Peak => "Peak",
        })
    }
}

/// A running server.
pub(super) struct Server {
    program: Program,
    /// A client's socket to it.
    pub(super) socket: UdpSocket,
    started: Instant,
}

enum Program {
    CoreDns(CoreDns),
    Peak(Peak),
}

impl Server {
    /// Starts it on the node, to be asked from the client.
    pub(super) fn launch(kind: Kind, plane: &ControlPlane, net: &Net) -> Result<Self> {
        let node: IpAddr = Net::SERVERS[0].parse()?;
        let kubeconfig = plane.kubeconfig();
        let kubeconfig = kubeconfig.to_str().context("a plain path")?;
        let started = Instant::now();
        let (program, address) = match kind {
            Kind::CoreDns => {
                let coredns = CoreDns::launch(plane, "bench", node, &[])?;
                let address = coredns.address();
                (Program::CoreDns(coredns), address)
            }
            Kind::Peak => {
                let arguments = [
                    "--interface",
                    "eth0",
                    "--xdp",
                    "native",
                    "--kubeconfig",
                    kubeconfig,
                ];
                let peak = Peak::launch(&net.node, arguments)?;
                (Program::Peak(peak), SocketAddr::new(node, 53))
            }
        };
        Ok(Self {
            program,
            socket: connect(&net.client, address)?,
            started,
        })
    }

    /// Its process.
    pub(super) fn id(&mut self) -> u32 {
        match &mut self.program {
            Program::CoreDns(coredns) => coredns.process().id(),
            Program::Peak(peak) => peak.process().id(),
        }
    }

    /// Waits until it answers right about a name, from which on it knows all names: before that both say SERVFAIL, or
    /// nothing. Returns how long that took from its start.
    ///
    /// # Errors
    /// It says something else, or ends, or takes too long.
    pub(super) fn ready(&mut self, name: &str, address: Ipv6Addr) -> Result<Duration> {
        self.socket.set_read_timeout(Some(ANSWER))?;
        let query = query(name)?;
        loop {
            // Nobody listens there yet, or it has not heard us.
            if let Ok(reply) = exchange(&self.socket, &query) {
                let took = self.started.elapsed();
                let (rcode, addresses) = addresses(&reply)?;
                if rcode != ResponseCode::ServFail {
                    ensure!(
                        rcode == ResponseCode::NoError && addresses == [address],
                        "{name} is {address}, and was said to be {addresses:?} ({rcode})"
                    );
                    self.socket.set_read_timeout(Some(PATIENCE))?;
                    return Ok(took);
                }
            }
            let process = match &mut self.program {
                Program::CoreDns(coredns) => coredns.process(),
                Program::Peak(peak) => peak.process(),
            };
            if let Some(status) = process.ended()? {
                bail!("the server has ended ({status}): {}", process.log());
            }
            ensure!(self.started.elapsed() < START, "not ready within {START:?}");
            thread::sleep(PAUSE);
        }
    }

    /// Makes sure that a name has exactly this address.
    ///
    /// # Errors
    /// It says something else.
    pub(super) fn check(&self, name: &str, address: Ipv6Addr) -> Result<()> {
        let (rcode, addresses) = addresses(&exchange(&self.socket, &query(name)?)?)?;
        ensure!(
            rcode == ResponseCode::NoError && addresses == [address],
            "{name} is {address}, and was said to be {addresses:?} ({rcode})"
        );
        Ok(())
    }

    /// What Peak says of itself; nothing of another.
    pub(super) fn status(&self) -> Result<Option<Status>> {
        match &self.program {
            Program::CoreDns(_) => Ok(None),
            Program::Peak(peak) => peak.status().map(Some),
        }
    }
}

/// A socket of the namespace.
fn connect(namespace: &Namespace, server: SocketAddr) -> Result<UdpSocket> {
    namespace.run(|| peak_tests::connect(server))
}

/// An AAAA query as dig sends it, with a cookie. Its OPT is longer than the reply's: on a veth that makes room for a record
/// more.
pub(super) fn query(name: &str) -> Result<Vec<u8>> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, RecordType::AAAA));
    let mut opt = Edns::new();
    opt.set_max_payload(PAYLOAD_SIZE);
    let (code, length) = COOKIE;
    opt.options_mut()
        .insert(EdnsOption::Unknown(code, vec![0xc0; length]));
    query.edns = Some(opt);
    Ok(query.to_vec()?)
}

/// Sends a query, and receives the reply to it: those to earlier ones are passed over.
pub(super) fn exchange(socket: &UdpSocket, query: &[u8]) -> Result<Vec<u8>> {
    socket.send(query)?;
    let mut reply = vec![0; PAYLOAD_SIZE.into()];
    loop {
        let length = socket.recv(&mut reply)?;
        if reply[..2] == query[..2] {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

/// What a reply says.
pub(super) fn addresses(reply: &[u8]) -> Result<(ResponseCode, Vec<Ipv6Addr>)> {
    let reply = Message::from_vec(reply)?;
    let addresses = v6_addresses(&reply).collect();
    Ok((reply.metadata.response_code, addresses))
}
