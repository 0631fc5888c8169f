//! The fixtures do what they say, and leave nothing behind.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    panic::catch_unwind,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Result;
use peak_tests::{Namespace, Pod, eventually, join, pass};

const LIMIT: Duration = Duration::from_secs(5);
const LEFT: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1)), 8080);

fn is_there(name: &str) -> bool {
    Path::new("/run/netns").join(name).exists() || Path::new("/etc/netns").join(name).exists()
}

/// Two namespaces, joined, with an address each.
fn pair() -> Result<(Namespace, Namespace)> {
    let (left, right) = (Namespace::new("left")?, Namespace::new("right")?);
    join((&left, "eth0"), (&right, "eth0"))?;
    left.address("eth0", "fd00:1::1/64")?;
    left.address("eth0", "10.1.0.1/24")?;
    right.address("eth0", "fd00:1::2/64")?;
    right.address("eth0", "10.1.0.2/24")?;
    Ok((left, right))
}

#[test]
fn namespace_goes_with_its_guard() -> Result<()> {
    let namespace = Namespace::new("guard")?;
    namespace.etc("resolv.conf", "nameserver ::1\n")?;
    let name = namespace.name().to_owned();
    assert!(is_there(&name));
    drop(namespace);
    assert!(!is_there(&name));
    Ok(())
}

#[test]
fn namespace_goes_with_a_panic() {
    let outcome = catch_unwind(|| {
        let namespace = Namespace::new("panic").expect("root makes namespaces");
        std::panic::panic_any(namespace.name().to_owned());
    });
    let name = outcome.expect_err("it panics");
    let name = name.downcast_ref::<String>().expect("the name is thrown");
    assert!(!is_there(name));
}

#[test]
fn stale_namespaces_are_swept_with_what_runs_in_them() -> Result<()> {
    // This process's own sweep shall be over.
    let _first = Namespace::new("first")?;
    // No process has a number above the kernel's limit of 2^22.
    let stale = "peak-4194305-0-stale";
    assert!(
        Command::new("ip")
            .args(["netns", "add", stale])
            .status()?
            .success()
    );
    let folder = std::env::temp_dir().join(stale);
    std::fs::create_dir_all(&folder)?;
    let mut inside = Command::new("ip")
        .args(["netns", "exec", stale, "sleep", "600"])
        .spawn()?;
    eventually("sleep to be inside", LIMIT, || {
        let pids = Command::new("ip").args(["netns", "pids", stale]).output()?;
        Ok((!pids.stdout.is_empty()).then_some(()))
    })?;
    // The sweep comes with a process's first namespace: let it be another process's.
    let sweeper = Command::new(std::env::current_exe()?)
        .args(["--exact", "namespace_goes_with_its_guard"])
        .output()?;
    let gone = !is_there(stale) && !folder.exists();
    let ended = eventually("sleep to end", LIMIT, || Ok(inside.try_wait()?));
    let _ = inside.kill();
    assert!(
        sweeper.status.success(),
        "{}",
        String::from_utf8_lossy(&sweeper.stdout)
    );
    assert!(gone);
    assert!(!ended?.success());
    Ok(())
}

#[test]
fn sockets_meet_over_a_link_in_both_families() -> Result<()> {
    let (left, right) = pair()?;
    for (server, client) in [("fd00:1::1", "fd00:1::2"), ("10.1.0.1", "10.1.0.2")] {
        let server: IpAddr = server.parse()?;
        let client: IpAddr = client.parse()?;
        let port = left.free_port(server)?;
        let receiver = left.run(|| UdpSocket::bind((server, port)))?;
        receiver.set_read_timeout(Some(LIMIT))?;
        let sender = right.run(|| UdpSocket::bind((client, 0)))?;
        sender.send_to(b"ping", (server, port))?;
        let mut buffer = [0; 16];
        let (length, from) = receiver.recv_from(&mut buffer)?;
        assert_eq!((&buffer[..length], from.ip()), (&b"ping"[..], client));
    }
    Ok(())
}

#[test]
fn mac_addresses_are_read() -> Result<()> {
    let (left, right) = pair()?;
    assert_ne!(left.mac("eth0")?, right.mac("eth0")?);
    assert_eq!(
        left.mac("eth0")?[0] & 1,
        0,
        "an interface's own address is unicast"
    );
    assert!(left.mac("eth1").is_err());
    Ok(())
}

#[test]
fn pod_says_its_name_and_counts() -> Result<()> {
    let (left, right) = pair()?;
    let pod = Pod::serve(&left, "web-1", LEFT)?;
    let mut stream = right.run(|| TcpStream::connect_timeout(&LEFT, LIMIT))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    assert!(
        reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nweb-1"),
        "{reply}"
    );
    assert_eq!(pod.requests(), 1);
    drop(pod);
    // A process that another test is about to start has the socket, too, until it is another program.
    eventually("connections to be refused", LIMIT, || {
        let connected = right.run(|| TcpStream::connect_timeout(&LEFT, LIMIT));
        Ok(connected.is_err().then_some(()))
    })
}

#[test]
fn pass_program_comes_and_goes() -> Result<()> {
    let (left, right) = pair()?;
    let attached = || -> Result<bool> { Ok(right.link("eth0")?.get("xdp").is_some()) };
    let program = pass(&right, "eth0")?;
    assert!(attached()?);
    assert!(
        pass(&right, "eth0").is_err(),
        "an interface has one program"
    );
    // Packets pass.
    let receiver = right.run(|| UdpSocket::bind("[fd00:1::2]:5353"))?;
    receiver.set_read_timeout(Some(LIMIT))?;
    left.run(|| UdpSocket::bind("[fd00:1::1]:0"))?
        .send_to(b"x", "[fd00:1::2]:5353")?;
    assert_eq!(receiver.recv(&mut [0; 4])?, 1);
    drop(program);
    // A process that another thread starts has a copy of the link until it executes its program.
    eventually("the program to be gone", LIMIT, || {
        Ok((!attached()?).then_some(()))
    })
}

#[test]
fn process_runs_inside_and_ends_with_its_guard() -> Result<()> {
    let namespace = Namespace::new("process")?;
    let running = namespace.spawn(Command::new("sleep").arg("600"))?;
    let proc = format!("/proc/{}", running.id());
    let inside = std::fs::read_link(format!("{proc}/ns/net"))?;
    assert_ne!(inside, std::fs::read_link("/proc/self/ns/net")?);
    drop(running);
    assert!(!Path::new(&proc).exists());
    Ok(())
}

#[test]
fn waiting_in_vain_names_what_was_waited_for() {
    let error = eventually("the moon", Duration::from_millis(5), || Ok(None::<()>)).unwrap_err();
    assert!(error.to_string().contains("the moon"), "{error}");
}
