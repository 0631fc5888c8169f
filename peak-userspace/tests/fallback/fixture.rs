//! A zone, queries of any shape, and servers on loopback.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use peak_userspace::{
    fallback::{
        Counters, Fallback, FallbackConfig, Limits, Transport,
        answer::{Policy, Reaction, answer},
        default_forward_for,
    },
    snapshot::{AddressSet, ServiceKey, ServiceRecords, Snapshot, SnapshotConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub(crate) const ZONE: &str = "cluster.local";
/// Three AAAA, one A.
pub(crate) const WEB: &str = "web.shop.svc.cluster.local";
/// 60 AAAA: too many for UDP.
pub(crate) const LARGE: &str = "large.shop.svc.cluster.local";
/// 5,000 AAAA: too many for TCP.
pub(crate) const HUGE: &str = "huge.shop.svc.cluster.local";
pub(crate) const ABSENT: &str = "nobody.shop.svc.cluster.local";
pub(crate) const TTL: u32 = 5;

pub(crate) const A: u16 = 1;
pub(crate) const NS: u16 = 2;
pub(crate) const SOA: u16 = 6;
pub(crate) const AAAA: u16 = 28;
pub(crate) const PTR: u16 = 12;
pub(crate) const IXFR: u16 = 251;
pub(crate) const AXFR: u16 = 252;
pub(crate) const ANY: u16 = 255;

pub(crate) const RD: u16 = 0x0100;
pub(crate) const AD: u16 = 0x0020;
pub(crate) const CD: u16 = 0x0010;

/// `fd00::1:0` and the addresses after it.
pub(crate) fn v6(n: usize) -> Vec<Ipv6Addr> {
    (0..n as u128)
        .map(|n| Ipv6Addr::from(0xfd00_u128 << 112 | 1 << 16 | n))
        .collect()
}

fn empty_snapshot() -> Snapshot {
    Snapshot::empty(SnapshotConfig {
        zones: vec![ZONE.parse().unwrap()],
        ttl: TTL,
        nameservers: vec!["10.96.0.10".parse().unwrap(), "fd00::53".parse().unwrap()],
        ..SnapshotConfig::default()
    })
}

pub(crate) fn snapshot() -> Snapshot {
    let headless = |addresses: AddressSet| {
        Some(ServiceRecords {
            addresses,
            ..ServiceRecords::default()
        })
    };
    let set = |n| v6(n).into_iter().map(IpAddr::V6);
    let web = set(3)
        .chain([IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))])
        .collect();
    let of_length = |letter: &str, label, records| {
        (
            ServiceKey::new("shop", letter.repeat(label)),
            headless(set(records).collect()),
        )
    };
    let services = vec![
        // Replies that just fit, and just don't: see `rfc1035`.
        of_length("x", 23, 16),
        of_length("x", 24, 16),
        of_length("y", 32, 41),
        of_length("y", 33, 41),
        (ServiceKey::new("shop", "web"), headless(web)),
        (
            ServiceKey::new("shop", "large"),
            headless(set(60).collect()),
        ),
        (
            ServiceKey::new("shop", "huge"),
            headless(set(5000).collect()),
        ),
    ];
    empty_snapshot()
        .with(
            services,
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        )
        .0
}

/// The zone before its first complete snapshot.
pub(crate) fn incomplete() -> Snapshot {
    empty_snapshot()
}

/// A query, to be made as wrong as a test wants it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: u16,
    /// The second 16 bits of the header.
    pub(crate) flags: u16,
    pub(crate) name: Vec<u8>,
    pub(crate) qtype: u16,
    pub(crate) class: u16,
    pub(crate) opts: Vec<Opt>,
}

#[derive(Clone, Debug)]
pub(crate) struct Opt {
    pub(crate) payload: u16,
    pub(crate) version: u8,
    pub(crate) flags: u16,
    pub(crate) options: Vec<u8>,
}

pub(crate) const OPT: Opt = Opt {
    payload: 1232,
    version: 0,
    flags: 0,
    options: Vec::new(),
};
pub(crate) const DO: u16 = 0x8000;

impl Opt {
    pub(crate) fn option(mut self, code: u16, data: &[u8]) -> Self {
        self.options.extend(code.to_be_bytes());
        self.options.extend((data.len() as u16).to_be_bytes());
        self.options.extend(data);
        self
    }
}

/// Asks without RD and without OPT.
pub(crate) fn ask(name: &str, qtype: u16) -> Ask {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend(label.bytes());
    }
    wire.push(0);
    Ask {
        id: 0x1234,
        flags: 0,
        name: wire,
        qtype,
        class: 1,
        opts: Vec::new(),
    }
}

/// Asks with RD for a name outside the zone.
pub(crate) fn foreign(name: &str) -> Ask {
    ask(name, A).flags(RD)
}

impl Ask {
    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }

    pub(crate) fn opcode(self, opcode: u16) -> Self {
        self.flags(opcode << 11)
    }

    pub(crate) fn class(mut self, class: u16) -> Self {
        self.class = class;
        self
    }

    pub(crate) fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub(crate) fn opt(mut self, opt: Opt) -> Self {
        self.opts.push(opt);
        self
    }

    pub(crate) fn question(&self) -> Vec<u8> {
        [
            &*self.name,
            &self.qtype.to_be_bytes(),
            &self.class.to_be_bytes(),
        ]
        .concat()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = [self.id, self.flags, 1, 0, 0, self.opts.len() as u16];
        let mut bytes: Vec<u8> = header
            .iter()
            .flat_map(|field| field.to_be_bytes())
            .collect();
        bytes.extend(self.question());
        for opt in &self.opts {
            bytes.extend([0, 0, 41]);
            bytes.extend(opt.payload.to_be_bytes());
            bytes.extend([0, opt.version]);
            bytes.extend(opt.flags.to_be_bytes());
            bytes.extend((opt.options.len() as u16).to_be_bytes());
            bytes.extend(&opt.options);
        }
        bytes
    }
}

/// What is said to these bytes on `transport`, by a server without upstreams; and the reply, if there is one.
pub(crate) fn reaction(message: &[u8], transport: Transport) -> (Reaction, Vec<u8>) {
    let client = Ipv4Addr::new(192, 0, 2, 1).into();
    let policy = Policy::default();
    decided(message, transport, client, &snapshot(), &policy, 0)
}

/// As [`answer`], with a buffer that held something else before.
pub(crate) fn decided(
    message: &[u8],
    transport: Transport,
    client: IpAddr,
    snapshot: &Snapshot,
    policy: &Policy,
    draw: u32,
) -> (Reaction, Vec<u8>) {
    let before = b"what was there before".to_vec();
    let mut octets = before.clone();
    let reaction = answer(
        message,
        transport,
        client,
        snapshot,
        policy,
        draw,
        &mut octets,
    );
    assert!(matches!(reaction, Reaction::Reply(_)) || octets == before);
    (reaction, octets)
}

/// The reply's bytes, if there is a reply.
pub(crate) fn reply_to(message: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let (reaction, octets) = reaction(message, transport);
    matches!(reaction, Reaction::Reply(_)).then_some(octets)
}

/// The reply over UDP, which answers this very query: ID, opcode, RD and CD, QR, no Z, and the question as it came.
pub(crate) fn resolve(ask: &Ask) -> Message {
    let octets = reply_to(&ask.bytes(), Transport::Udp).expect("a reply");
    assert!(
        octets.len()
            <= ask
                .opts
                .first()
                .map_or(512, |opt| opt.payload.clamp(512, 1232).into())
    );
    checked(ask, &octets)
}

pub(crate) fn checked(ask: &Ask, octets: &[u8]) -> Message {
    let flags = u16::from_be_bytes([octets[2], octets[3]]);
    let copied = 0x7800 | RD | CD;
    assert_eq!(octets[..2], ask.id.to_be_bytes());
    assert_eq!(flags & 0x8000, 0x8000, "QR");
    assert_eq!(flags & 0x0040, 0, "Z");
    assert_eq!(flags & copied, ask.flags & copied, "opcode, RD, CD");
    let message = Message::from_vec(octets).expect("hickory reads it");
    if !message.queries.is_empty() {
        assert!(
            octets[12..].starts_with(&ask.question()),
            "the question is not as it came"
        );
    }
    assert_eq!(
        message.edns.is_some(),
        !ask.opts.is_empty(),
        "OPT exactly if the query had one"
    );
    if let Some(edns) = &message.edns {
        assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
        assert_eq!(edns.flags().dnssec_ok, ask.opts[0].flags & DO != 0, "DO");
        assert_eq!(edns.flags().z, 0, "flags of the OPT");
        assert!(edns.options().options.is_empty(), "options of the OPT");
    }
    message
}

/// The AAAA records of the answer section, as they are sorted there.
pub(crate) fn aaaa(message: &Message) -> Vec<Ipv6Addr> {
    let address = |record: &hickory_proto::rr::Record| match record.data {
        hickory_proto::rr::RData::AAAA(address) => address.0,
        ref other => panic!("not AAAA: {other:?}"),
    };
    message.answers.iter().map(address).collect()
}

/// A fallback on loopback that ends with this value.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: tokio::task::JoinHandle<()>,
    _guard: DropGuard,
}

pub(crate) fn with_limits(limits: Limits) -> FallbackConfig {
    FallbackConfig {
        limits,
        ..Default::default()
    }
}

/// With these upstreams for every domain.
pub(crate) fn forwarding_to(upstreams: &[SocketAddr]) -> FallbackConfig {
    let upstreams = upstreams
        .iter()
        .map(|upstream| upstream.to_string().parse());
    FallbackConfig {
        upstreams: upstreams.collect::<Result<_, _>>().unwrap(),
        ..Default::default()
    }
}

/// Starts a fallback on a free port of 127.0.0.1 that forwards for the default ranges.
pub(crate) fn serve(config: FallbackConfig) -> Server {
    serve_snapshot(config, snapshot())
}

pub(crate) fn serve_snapshot(mut config: FallbackConfig, snapshot: Snapshot) -> Server {
    if config.listen.is_empty() {
        config.listen = vec!["127.0.0.1:0".parse().unwrap()];
    }
    config.forward_for = default_forward_for();
    let fallback = Fallback::bind(config).unwrap();
    let (addresses, counters) = (fallback.local_addrs(), fallback.counters());
    let shutdown = CancellationToken::new();
    let (snapshot, token) = (Arc::new(ArcSwap::from_pointee(snapshot)), shutdown.clone());
    let task = tokio::spawn(async move { fallback.serve(snapshot, token).await.unwrap() });
    Server {
        address: addresses[0],
        addresses,
        counters,
        _guard: shutdown.clone().drop_guard(),
        shutdown,
        task,
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for what must come, and fails the test if it does not.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Waits until something holds.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
}

impl Server {
    pub(crate) async fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind((self.address.ip(), 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    pub(crate) async fn udp(&self, ask: &Ask) -> Message {
        let socket = self.client().await;
        socket.send(&ask.bytes()).await.unwrap();
        checked(ask, &datagram(&socket).await)
    }

    /// The rcode of the reply over UDP.
    pub(crate) async fn code(&self, ask: &Ask) -> ResponseCode {
        self.udp(ask).await.metadata.response_code
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.unwrap()
    }

    pub(crate) async fn tcp(&self, ask: &Ask) -> Message {
        exchange(&mut self.connect().await, ask).await
    }
}

pub(crate) async fn datagram(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65535];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    buffer
}

/// A message after its length, as TCP wants it.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

pub(crate) async fn send(stream: &mut TcpStream, message: &[u8]) {
    soon(stream.write_all(&framed(message))).await.unwrap();
}

/// The reply to the only query under way on the connection.
pub(crate) async fn exchange(stream: &mut TcpStream, ask: &Ask) -> Message {
    send(stream, &ask.bytes()).await;
    checked(ask, &receive(stream).await.expect("a reply"))
}

/// The next message; `None` if the server has closed.
pub(crate) async fn receive(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = soon(stream.read_u16()).await.ok()?;
    let mut message = vec![0; length.into()];
    soon(stream.read_exact(&mut message)).await.ok()?;
    Some(message)
}
