//! An answer from the zones takes nothing from the heap, nor does a refusal: the reply is written where the one before it
//! was. A test binary of its own, as it has an allocator of its own.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::SystemTime,
};

use peak_userspace::{
    endpoints::Endpoint,
    fallback::{
        Transport,
        answer::{Policy, Reaction, answer},
    },
    pods::{PodKey, PodMode},
    snapshot::{
        AddressSet, Batch, Port, Protocol, ServiceKey, ServiceRecords, Snapshot, SnapshotConfig,
    },
};

/// The system's, which notes how often each thread has asked for memory.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn note() {
    // Not at the end of a thread, when there is nothing to note it in.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is left to the system's allocator; the note takes no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps to the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn snapshot() -> Snapshot {
    let set = |addresses: &[&str]| -> AddressSet {
        let addresses = addresses.iter().map(|one| one.parse::<IpAddr>().unwrap());
        addresses.collect()
    };
    let ports: Arc<[Port]> = Arc::new([Port {
        protocol: Protocol::Tcp,
        name: "http".into(),
        number: 80,
    }]);
    let endpoint = Endpoint {
        label: "web-0".into(),
        addresses: set(&["fd00::1", "10.0.0.1"]),
        ports: Arc::clone(&ports),
    };
    let web = ServiceRecords {
        addresses: set(&["fd00::1", "fd00::2", "10.0.0.1"]),
        endpoints: [endpoint].into_iter().collect(),
        ports,
        headless: true,
        ..ServiceRecords::default()
    };
    let many = ServiceRecords {
        addresses: (0..60).map(|n| IpAddr::from([10, 0, 1, n])).collect(),
        ..ServiceRecords::default()
    };
    let pod = PodKey {
        namespace: "shop".into(),
        address: "10.0.0.1".parse().unwrap(),
    };
    let empty = Snapshot::empty(SnapshotConfig {
        zones: vec!["cluster.local".parse().unwrap()],
        ttl: 5,
        nameservers: vec!["10.96.0.10".parse().unwrap()],
        pods: PodMode::Verified,
        ..SnapshotConfig::default()
    });
    let batch = Batch {
        services: vec![
            (ServiceKey::new("shop", "web"), Some(web)),
            (ServiceKey::new("shop", "many"), Some(many)),
        ],
        pods: vec![(pod, true)],
    };
    empty.with(batch, SystemTime::now()).0
}

fn query(name: &str, qtype: u16, edns: bool) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in name.split_terminator('.') {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.push(0);
    query.extend(qtype.to_be_bytes());
    query.extend([0, 1]);
    if edns {
        query[11] = 1;
        // With a cookie, as `dig` sends it (RFC 7873).
        query.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0\x0c\0\x0a\0\x08cookie!!");
    }
    query
}

#[test]
fn an_answer_allocates_nothing() {
    const A: u16 = 1;
    const SOA: u16 = 6;
    const AAAA: u16 = 28;
    const NS: u16 = 2;
    // Name, type, response code, and how many answers.
    let cases = [
        ("web.shop.svc.cluster.local", AAAA, 0, 2),
        ("web.shop.svc.cluster.local", A, 0, 1),
        ("WEB.Shop.svc.Cluster.LOCAL", AAAA, 0, 2),
        ("web-0.web.shop.svc.cluster.local", AAAA, 0, 1),
        ("many.shop.svc.cluster.local", A, 0, 60),
        // Empty non-terminals, and other types of a name that exists.
        ("many.shop.svc.cluster.local", AAAA, 0, 0),
        ("shop.svc.cluster.local", A, 0, 0),
        ("_tcp.web.shop.svc.cluster.local", A, 0, 0),
        ("_http._tcp.web.shop.svc.cluster.local", A, 0, 0),
        ("shop.pod.cluster.local", AAAA, 0, 0),
        // Names that don't exist: a typing error, and what a search path makes of names outside.
        ("nobody.shop.svc.cluster.local", AAAA, 3, 0),
        ("web.nowhere.svc.cluster.local", A, 3, 0),
        ("www.example.com.shop.svc.cluster.local", AAAA, 3, 0),
        ("www.example.com.svc.cluster.local", A, 3, 0),
        ("example.com.cluster.local", A, 3, 0),
        ("cluster.local", SOA, 0, 1),
        ("cluster.local", NS, 0, 1),
        ("www.example.com", AAAA, 5, 0),
    ];
    let (snapshot, policy) = (snapshot(), Policy::default());
    let client = Ipv4Addr::LOCALHOST.into();
    let mut octets = Vec::with_capacity(1536);
    for (name, qtype, code, answers) in cases {
        for (edns, transport) in [
            (false, Transport::Udp),
            (true, Transport::Udp),
            (true, Transport::Tcp),
        ] {
            let message = query(name, qtype, edns);
            let before = ALLOCATIONS.get();
            let reaction = answer(
                &message,
                transport,
                client,
                &snapshot,
                &policy,
                1 << 31,
                &mut octets,
            );
            let count = ALLOCATIONS.get() - before;
            assert!(matches!(reaction, Reaction::Reply(_)), "{name}");
            assert_eq!(octets[3] & 15, code, "{name}");
            if octets[2] & 2 == 0 {
                assert_eq!(
                    u16::from_be_bytes([octets[6], octets[7]]),
                    answers,
                    "{name}"
                );
            }
            assert_eq!(count, 0, "{name} {qtype} {edns} {transport:?}");
        }
    }
    // The count counts.
    let before = ALLOCATIONS.get();
    drop(vec![0; 100]);
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
