//! The agent as a process: what it answers, what it refuses, how it ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use peak_tests::{
    Namespace, Net, Peak, ask, eventually, http_get as get, join, pass, program, scratch,
};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");
const WEB: &str = "web.shop.svc.cluster.local";
const LIMIT: Duration = Duration::from_secs(10);

/// A copy of the samples that a test may change.
fn manifests() -> Result<TempDir> {
    let folder = scratch()?;
    for entry in fs::read_dir(SAMPLES)? {
        let entry = entry?;
        fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
    }
    Ok(folder)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of our own is UTF-8")
}

/// What `dig` says, in few words.
fn dig(namespace: &Namespace, server: SocketAddr, arguments: &[&str]) -> Result<String> {
    let output = namespace.run(|| {
        Command::new("dig")
            .arg(format!("@{}", server.ip()))
            .args(["-p", &server.port().to_string(), "+short", "+tries=1"])
            .args(arguments)
            .output()
    })?;
    let mut lines: Vec<_> = std::str::from_utf8(&output.stdout)?.lines().collect();
    lines.sort_unstable();
    Ok(lines.join(" "))
}

/// What Prometheus asks of names, and OpenMetrics 1.0 of the text: a family's TYPE and HELP once, before its samples;
/// counters end in `_total`, and what has a unit in that.
fn follows_conventions(metrics: &str) {
    let (mut families, mut samples) = (BTreeMap::new(), BTreeSet::new());
    let (mut family, mut help) = ("", "");
    let text = metrics.strip_suffix("# EOF\n").expect("an end");
    for line in text.lines() {
        if let Some(descriptor) = line.strip_prefix("# ") {
            let (keyword, rest) = descriptor.split_once(' ').expect(line);
            let (name, value) = rest.split_once(' ').expect(line);
            match keyword {
                "HELP" => {
                    assert!(value.ends_with('.') && !value.ends_with(".."), "{line}");
                    help = name;
                }
                "TYPE" => {
                    assert_eq!(name, help, "HELP belongs to {line}");
                    assert_eq!(families.insert(name, value), None, "{line}");
                    family = name;
                }
                "UNIT" => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let name = series.split('{').next().expect(line);
        let suffix = match families[family] {
            "counter" => "_total",
            "info" => "_info",
            "gauge" => "",
            _ => panic!("{line}"),
        };
        assert_eq!(name, format!("{family}{suffix}"), "{line}");
        assert!(name.starts_with("peak_"), "{line}");
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{line}"
        );
        assert!(
            value.parse::<f64>().is_ok_and(|value| value >= 0.0),
            "{line}"
        );
        assert!(samples.insert(series), "{line} stands there twice");
    }
    assert!(samples.len() > 50, "{metrics}");
}

/// Runs `peak` to its end.
fn peak(namespace: &Namespace, arguments: &[&str]) -> Result<Output> {
    let program = program("peak")?;
    Ok(namespace.run(|| Command::new(program).args(arguments).output())?)
}

/// The one line in which it says why it does not run.
fn complaint(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let mut complaints = said.lines().filter(|line| line.starts_with("error: "));
    let complaint = complaints.next().unwrap_or_default().to_owned();
    assert_eq!(complaints.next(), None, "{said}");
    complaint
}

const SERVERS: [&str; 2] = ["[fd00:10:1::1]:53", "10.1.0.1:53"];

/// The XDP program on the node's interface.
fn programs(net: &Net) -> Result<Value> {
    Ok(net.node.link("eth0")?["xdp"].clone())
}

#[test]
fn without_the_kernel_everything_is_answered_and_followed() -> Result<()> {
    let node = Namespace::new("node")?;
    let folder = manifests()?;
    let arguments = [
        "--manifests",
        text(folder.path()),
        "--xdp",
        "off",
        "--listen",
        "[::1]:53",
        "--listen",
        "127.0.0.1:53",
        "--metrics",
        "127.0.0.1:9953",
    ];
    let peak = Peak::start(&node, arguments)?;
    for server in ["[::1]:53", "127.0.0.1:53"] {
        for transport in ["+notcp", "+tcp"] {
            let said = dig(&node, server.parse()?, &[transport, WEB, "AAAA"])?;
            assert_eq!(
                said, "fd00:10:244:1::2 fd00:10:244:2::2",
                "{server} {transport}"
            );
        }
    }

    let status = peak.status()?;
    assert!(status.ready);
    assert_eq!(status.zones, ["cluster.local"]);
    assert_eq!(
        (status.snapshot.generation, status.interfaces.len()),
        (1, 0)
    );
    assert_eq!((status.fallback.udp, status.fallback.tcp), (2, 2));
    let found = peak.lookup(WEB, "AAAA")?;
    assert_eq!(found["name"], WEB);
    assert_eq!(
        (&found["type"], &found["rcode"]),
        (&"AAAA".into(), &"NOERROR".into())
    );
    assert_eq!(
        found["records"],
        serde_json::json!(["fd00:10:244:1::2", "fd00:10:244:2::2"])
    );
    assert_eq!(found["in_kernel"], false);
    assert_eq!(
        peak.lookup("no.shop.svc.cluster.local", "A")?["rcode"],
        "NXDOMAIN"
    );

    let endpoints = folder.path().join("web-endpoints.yaml");
    let changed = fs::read_to_string(&endpoints)?.replace("fd00:10:244:2::2", "fd00:10:244:9::9");
    fs::write(&endpoints, changed)?;
    eventually("the change", LIMIT, || {
        let said = dig(&node, "[::1]:53".parse()?, &[WEB, "AAAA"])?;
        Ok((said == "fd00:10:244:1::2 fd00:10:244:9::9").then_some(()))
    })?;
    assert_eq!(peak.status()?.snapshot.generation, 2);

    let get = |path| get(&node, "127.0.0.1:9953", path);
    // Connections that ask for nothing are in the way of others for a while only, however many there are.
    let mut silent = node.run(|| -> Result<_> {
        let connect = |_| TcpStream::connect("127.0.0.1:9953").context("a connection");
        (0..100).map(connect).collect::<Result<Vec<_>>>()
    })?;
    assert!(get("/healthz")?.starts_with("HTTP/1.1 200"));
    silent[0].set_nonblocking(true)?;
    assert_eq!(silent[0].read(&mut [0])?, 0, "it is closed");
    assert!(get("/readyz")?.starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics")?;
    for sample in [
        "peak_ready 1",
        "peak_snapshot_generation 2",
        "peak_fallback_queries_total{transport=\"tcp\"} 2",
        "peak_build_info{version=",
        "peak_snapshot_age_seconds ",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in {metrics}");
    }
    Ok(())
}

fn answers_in(mode: &str) -> Result<()> {
    let net = Net::new()?;
    let _pass = pass(&net.client, "eth0")?;
    let folder = manifests()?;
    let mut peak = Peak::on_eth0(&net.node, &folder, mode, &["--metrics", "[::1]:9953"])?;
    let asked =
        |server: &str, qtype| -> Result<_> { net.client.run(|| ask(server.parse()?, WEB, qtype)) };
    // From whom each server's answer came.
    let who = |peak: &Peak| -> Result<[(u64, u64); 2]> {
        let mut counts = [(0, 0); 2];
        for (server, counts) in SERVERS.iter().zip(&mut counts) {
            let before = peak.status()?.counted();
            let reply = asked(server, RecordType::AAAA)?;
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert_eq!(reply.answers.len(), 2);
            let counted = peak.status()?.counted() - before;
            *counts = (counted.kernel, counted.fallback);
        }
        Ok(counts)
    };
    assert_eq!(who(&peak)?, [(1, 0), (1, 0)]);
    let interface = &peak.status()?.interfaces[0];
    assert_eq!(interface.mode, mode);
    assert_eq!(
        interface.program.map(Into::into),
        programs(&net)?["prog"]["id"].as_u64()
    );
    assert_eq!(peak.lookup(WEB, "AAAA")?["in_kernel"], true);
    assert_eq!(
        peak.lookup("no.shop.svc.cluster.local", "A")?["in_kernel"],
        false
    );
    // What the kernel leaves to the fallback comes from it.
    let before = peak.status()?.counted();
    asked(SERVERS[0], RecordType::SOA)?;
    assert_eq!((peak.status()?.counted() - before).fallback, 1);

    let metrics = get(&net.node, "[::1]:9953", "/metrics")?;
    let metrics = metrics.split_once("\r\n\r\n").context("a body")?.1;
    follows_conventions(metrics);
    for sample in [
        format!("peak_kernel_attached{{interface=\"eth0\",mode=\"{mode}\"}} 1.0\n"),
        "peak_kernel_attached{interface=\"eth0\",mode=\"off\"} 0.0\n".to_owned(),
        "peak_kernel_answers_total{interface=\"eth0\",type=\"AAAA\",outcome=\"NOERROR\"} 2\n"
            .to_owned(),
        "peak_kernel_passed_packets_total{interface=\"eth0\",reason=\"type\"} 1\n".to_owned(),
    ] {
        assert!(metrics.contains(&sample), "{sample} is not in {metrics}");
    }

    peak.kernel(false)?;
    assert_eq!(who(&peak)?, [(0, 1), (0, 1)]);
    assert!(peak.status()?.interfaces[0].passed["disabled"] >= 2);
    peak.kernel(true)?;
    assert_eq!(who(&peak)?, [(1, 0), (1, 0)]);

    // A change is in the kernel before the fallback has it.
    let endpoints = folder.path().join("web-endpoints.yaml");
    let changed = fs::read_to_string(&endpoints)?.replace("fd00:10:244:2::2", "fd00:10:244:9::9");
    fs::write(&endpoints, changed)?;
    eventually("the change", LIMIT, || {
        Ok((peak.status()?.snapshot.generation == 2).then_some(()))
    })?;
    let reply = asked(SERVERS[0], RecordType::AAAA)?;
    assert!(format!("{:?}", reply.answers).contains("fd00:10:244:9::9"));
    assert_eq!(peak.lookup(WEB, "AAAA")?["in_kernel"], true);

    assert!(!programs(&net)?.is_null());
    peak.process().signal(Signal::TERM)?;
    assert!(peak.process().wait(LIMIT)?.success());
    assert!(programs(&net)?.is_null(), "{:?}", programs(&net));
    Ok(())
}

#[test]
fn native_mode_answers_in_the_kernel() -> Result<()> {
    answers_in("native")
}

#[test]
fn generic_mode_answers_in_the_kernel() -> Result<()> {
    answers_in("generic")
}

#[test]
fn packets_are_logged_if_asked_for() -> Result<()> {
    const LINE: &str = "XDP program: interface eth0: answered AAAA NOERROR";
    let net = Net::new()?;
    let _pass = pass(&net.client, "eth0")?;
    let folder = manifests()?;
    for log_one_in in ["1", "0"] {
        let mut peak = Peak::on_eth0(&net.node, &folder, "auto", &["--log-one-in", log_one_in])?;
        for _ in 0..10 {
            net.client
                .run(|| ask(SERVERS[0].parse()?, WEB, RecordType::AAAA))?;
        }
        assert_eq!(peak.status()?.counted().kernel, 10);
        let lines = |peak: &mut Peak| peak.process().log().matches(LINE).count();
        if log_one_in == "1" {
            eventually("a line a query", LIMIT, || {
                Ok((lines(&mut peak) == 10).then_some(()))
            })?;
        }
        peak.process().signal(Signal::TERM)?;
        assert!(peak.process().wait(LIMIT)?.success());
        let expected = if log_one_in == "1" { 10 } else { 0 };
        assert_eq!(lines(&mut peak), expected);
        let said = peak.process().log().matches("XDP program: ").count();
        assert!(log_one_in == "1" || said == 0, "{}", peak.process().log());
    }
    Ok(())
}

#[test]
fn interfaces_and_their_addresses_are_followed() -> Result<()> {
    let net = Net::new()?;
    let _pass = pass(&net.client, "eth0")?;
    let folder = manifests()?;
    let mut peak = Peak::on_eth0(&net.node, &folder, "native", &[])?;
    // Who answers there, if anybody.
    let who = |peak: &Peak, server: &str, qtype| -> Result<_> {
        let before = peak.status()?.counted();
        let reply = net.client.run(|| ask(server.parse()?, WEB, qtype));
        let counted = peak.status()?.counted() - before;
        Ok(reply.ok().map(|_| (counted.kernel, counted.fallback)))
    };
    assert_eq!(
        who(&peak, "[fd00:10:1::1]:53", RecordType::AAAA)?,
        Some((1, 0))
    );

    net.node.address("eth0", "fd00:10:1::7/64")?;
    let new = "[fd00:10:1::7]:53";
    eventually("the new address", LIMIT, || {
        Ok((who(&peak, new, RecordType::AAAA)? == Some((1, 0))).then_some(()))
    })?;
    assert_eq!(who(&peak, new, RecordType::SOA)?, Some((0, 1)));
    net.node.ip("address delete fd00:10:1::7/64 dev eth0")?;
    eventually("the address to go", LIMIT, || {
        Ok(peak.process().log().contains("no longer").then_some(()))
    })?;

    // However many come and go, what they leave behind is bounded.
    let files = {
        let folder = format!("/proc/{}/fd", peak.process().id());
        move || -> Result<_> { Ok(fs::read_dir(&folder)?.count()) }
    };
    let (before, many) = (files()?, 0x100..0x128);
    for host in many.clone() {
        net.node
            .address("eth0", &format!("fd00:10:1::{host:x}/64"))?;
    }
    for host in many.clone() {
        let listening = format!("listening address=[fd00:10:1::{host:x}]:53");
        eventually("every address to be listened at", LIMIT, || {
            Ok(peak.process().log().contains(&listening).then_some(()))
        })?;
    }
    let most = files()? - before;
    for host in many {
        net.node
            .ip(&format!("address delete fd00:10:1::{host:x}/64 dev eth0"))?;
    }
    eventually("most sockets to be closed", LIMIT, || {
        Ok((files()? - before <= most / 2).then_some(()))
    })?;

    // The same name again, with another index and MAC.
    net.node.ip("link delete eth0")?;
    eventually("the interface to be missed", LIMIT, || {
        Ok((peak.status()?.interfaces[0].mode == "off").then_some(()))
    })?;
    join((&net.client, "eth0"), (&net.node, "eth0"))?;
    let _pass = pass(&net.client, "eth0")?;
    net.client.address("eth0", "fd00:10:1::2/64")?;
    net.node.address("eth0", "fd00:10:1::1/64")?;
    eventually("the interface to be back", LIMIT, || {
        Ok((peak.status()?.interfaces[0].mode == "native").then_some(()))
    })?;
    eventually("its address", LIMIT, || {
        Ok((who(&peak, "[fd00:10:1::1]:53", RecordType::AAAA)? == Some((1, 0))).then_some(()))
    })?;
    Ok(())
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_left_attached() -> Result<()> {
    let net = Net::new()?;
    let folder = manifests()?;
    let admin = folder.path().join("admin.sock");
    let run = |arguments: &[&str]| {
        let mut all = vec![
            "run",
            "--manifests",
            text(folder.path()),
            "--admin",
            text(&admin),
        ];
        all.extend(arguments);
        peak(&net.node, &all)
    };
    let fails = |arguments: &[&str], status: i32, named: &[&str]| -> Result<()> {
        let output = run(arguments)?;
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        for named in named {
            assert!(complaint.contains(named), "{named} is not in {complaint}");
        }
        assert!(programs(&net)?.is_null());
        assert!(!admin.exists());
        Ok(())
    };

    fails(&["--xdp", "native"], 2, &["--interface"])?;
    fails(
        &["--interface", "nope"],
        1,
        &["no interface nope", "eth0", "lo"],
    )?;
    fails(
        &["--interface", "eth0", "--listen", "10.7.7.7:53"],
        1,
        &["10.7.7.7:53", "no interface"],
    )?;

    let (udp, tcp) = net.node.run(|| -> Result<_> {
        Ok((UdpSocket::bind(SERVERS[1])?, TcpListener::bind(SERVERS[0])?))
    })?;
    fails(
        &["--interface", "eth0", "--listen", SERVERS[1]],
        1,
        &["UDP port 10.1.0.1:53 is taken"],
    )?;
    fails(
        &["--interface", "eth0", "--listen", SERVERS[0]],
        1,
        &["TCP port [fd00:10:1::1]:53 is taken"],
    )?;
    drop((udp, tcp));

    let metrics = net.node.run(|| TcpListener::bind("127.0.0.1:9953"))?;
    fails(
        &["--interface", "eth0", "--metrics", "127.0.0.1:9953"],
        1,
        &["127.0.0.1:9953", "--metrics"],
    )?;
    drop(metrics);

    // A process of this personality is told that the kernel is a Linux 2.6.
    let arguments = ["--interface", "eth0", "--manifests", text(folder.path())];
    let old = net.node.run(|| {
        Command::new("setarch")
            .arg("--uname-2.6")
            .arg(program("peak")?)
            .arg("run")
            .args(arguments)
            .args(["--admin", text(&admin)])
            .output()
            .context("setarch, of util-linux")
    })?;
    assert_eq!(old.status.code(), Some(1), "{old:?}");
    for named in ["too old", "5.18", "this is 2.6.", "--xdp off"] {
        assert!(complaint(&old).contains(named), "{old:?}");
    }
    assert!(programs(&net)?.is_null());
    assert!(!admin.exists());
    Ok(())
}

#[test]
fn another_program_on_the_interface_is_left_alone() -> Result<()> {
    let net = Net::new()?;
    let folder = manifests()?;
    let admin = folder.path().join("admin.sock");
    let _theirs = pass(&net.node, "eth0")?;
    let before = programs(&net)?;
    for mode in ["auto", "native", "generic"] {
        let output = peak(
            &net.node,
            &[
                "run",
                "--manifests",
                text(folder.path()),
                "--admin",
                text(&admin),
                "--interface",
                "eth0",
                "--xdp",
                mode,
            ],
        )?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let complaint = complaint(&output);
        let id = before["prog"]["id"]
            .as_u64()
            .context("a program has a number")?;
        assert!(
            complaint.contains("eth0") && complaint.contains(&format!("number {id};")),
            "{complaint}"
        );
        assert_eq!(programs(&net)?, before);
    }
    Ok(())
}

#[test]
fn a_socket_left_by_the_dead_is_replaced_and_one_of_the_living_is_not() -> Result<()> {
    let node = Namespace::new("node")?;
    let folder = manifests()?;
    let admin = folder.path().join("admin.sock");
    let arguments = |port: &'static str| {
        [
            "run",
            "--manifests",
            text(folder.path()),
            "--admin",
            text(&admin),
            "--xdp",
            "off",
            "--listen",
            port,
        ]
    };
    drop(UnixListener::bind(&admin)?);
    let mut first = node.spawn(Command::new(program("peak")?).args(arguments("[::1]:5301")))?;
    eventually("the first agent", LIMIT, || {
        let status = peak(&node, &["status", "--admin", text(&admin)])?;
        Ok(status.status.success().then_some(()))
    })?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&admin)?.permissions());
    assert_eq!(mode & 0o777, 0o600);

    let second = peak(&node, &arguments("[::1]:5302"))?;
    assert_eq!(second.status.code(), Some(1));
    assert!(
        complaint(&second).contains("another agent answers at"),
        "{second:?}"
    );
    assert!(admin.exists());

    first.signal(Signal::INT)?;
    assert!(first.wait(LIMIT)?.success());
    assert!(!admin.exists());
    let status = peak(&node, &["status", "--admin", text(&admin)])?;
    assert_eq!(status.status.code(), Some(1));
    assert!(complaint(&status).contains("no agent at"));

    fs::write(&admin, "not a socket")?;
    let output = peak(&node, &arguments("[::1]:5303"))?;
    assert!(complaint(&output).contains("is no socket"), "{output:?}");
    assert_eq!(fs::read(&admin)?, b"not a socket");
    Ok(())
}

#[test]
fn one_signal_drains_and_a_second_one_ends_at_once() -> Result<()> {
    let node = Namespace::new("node")?;
    let folder = manifests()?;
    // An upstream that never answers keeps a question under way.
    let silent = node.run(|| UdpSocket::bind("[::1]:5353"))?;
    let mut peak = Peak::start(
        &node,
        [
            "--manifests",
            text(folder.path()),
            "--xdp",
            "off",
            "--listen",
            "[::1]:53",
            "--upstream",
            "[::1]:5353",
            "--metrics",
            "[::1]:9953",
        ],
    )?;
    assert!(get(&node, "[::1]:9953", "/readyz")?.starts_with("HTTP/1.1 200"));
    let client = node.run(|| UdpSocket::bind("[::1]:0"))?;
    // QUERY with RD for `a.` AAAA IN.
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x1c\x00\x01";
    client.send_to(query, ("::1".parse::<IpAddr>()?, 53))?;
    silent.set_read_timeout(Some(LIMIT))?;
    silent.recv(&mut [0; 512])?;

    peak.process().signal(Signal::TERM)?;
    eventually("the drain to begin", LIMIT, || {
        Ok(peak.process().log().contains("draining").then_some(()))
    })?;
    // Load balancers stop sending, while what is under way is finished.
    eventually("the agent to be unready", LIMIT, || {
        let ready = get(&node, "[::1]:9953", "/readyz")?;
        Ok((ready.starts_with("HTTP/1.1 503") && ready.contains("draining")).then_some(()))
    })?;
    assert!(get(&node, "[::1]:9953", "/healthz")?.starts_with("HTTP/1.1 200"));
    assert!(!peak.status()?.ready);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(peak.process().ended()?, None);
    peak.process().signal(Signal::TERM)?;
    let status = peak.process().wait(Duration::from_secs(1))?;
    assert_eq!(status.code(), Some(1));
    Ok(())
}
