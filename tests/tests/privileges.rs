//! The agent under exactly the capabilities that its systemd unit grants.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use peak_tests::{Namespace, Peak, ask, join, pass};

const UNIT: &str = include_str!("../../deploy/peak.service");
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples");

/// The values of a setting in the unit.
fn setting(key: &str) -> Vec<&'static str> {
    let value = UNIT
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().split_whitespace().collect()
}

#[test]
fn four_capabilities_are_enough() -> Result<()> {
    let capabilities = setting("AmbientCapabilities");
    assert_eq!(
        capabilities,
        [
            "CAP_BPF",
            "CAP_NET_ADMIN",
            "CAP_PERFMON",
            "CAP_NET_BIND_SERVICE"
        ]
    );
    assert_eq!(setting("CapabilityBoundingSet"), capabilities);

    let (client, node) = (Namespace::new("client")?, Namespace::new("node")?);
    join((&client, "eth0"), (&node, "eth0"))?;
    client.address("eth0", "fd00:10:1::2/64")?;
    node.address("eth0", "fd00:10:1::1/64")?;
    let _pass = pass(&client, "eth0")?;
    // Where an ordinary user can read them.
    let manifests = peak_tests::scratch()?;
    for entry in fs::read_dir(SAMPLES)? {
        let entry = entry?;
        fs::copy(entry.path(), manifests.path().join(entry.file_name()))?;
    }
    peak_tests::give_away(manifests.path())?;

    let listen = "[fd00:10:1::1]:53";
    let folder = manifests
        .path()
        .to_str()
        .context("a path of our own is UTF-8")?;
    let mut peak = Peak::start_confined(
        &node,
        &capabilities,
        [
            "--manifests",
            folder,
            "--interface",
            "eth0",
            "--xdp",
            "native",
            "--listen",
            listen,
        ],
    )?;

    let status = fs::read_to_string(format!("/proc/{}/status", peak.process().id()))?;
    let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    // Bits 10 (NET_BIND_SERVICE), 12 (NET_ADMIN), 38 (PERFMON) and 39 (BPF) of linux/capability.h.
    assert_eq!(field("CapEff:").map(str::trim), Some("000000c000001400"));
    assert_eq!(field("CapBnd:").map(str::trim), Some("000000c000001400"));
    assert_ne!(
        field("Uid:").and_then(|ids| ids.split_whitespace().next()),
        Some("0")
    );

    let server: SocketAddr = listen.parse()?;
    let reply = client.run(|| ask(server, "web.shop.svc.cluster.local", RecordType::AAAA))?;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers.len(), 2);
    let status = peak.status()?;
    assert_eq!(status.interfaces[0].mode, "native");
    assert_eq!(status.counted().kernel, 1);
    Ok(())
}

#[test]
fn a_missing_capability_is_named_and_nothing_left_attached() -> Result<()> {
    let node = Namespace::new("node")?;
    let peer = Namespace::new("peer")?;
    join((&node, "eth0"), (&peer, "eth0"))?;
    node.address("eth0", "fd00:10:1::1/64")?;
    let manifests = peak_tests::scratch()?;
    peak_tests::give_away(manifests.path())?;
    let folder = manifests
        .path()
        .to_str()
        .context("a path of our own is UTF-8")?;
    let needed = setting("AmbientCapabilities");
    for missing in &needed {
        let granted: Vec<_> = needed
            .iter()
            .filter(|capability| *capability != missing)
            .copied()
            .collect();
        let arguments = [
            "--manifests",
            folder,
            "--interface",
            "eth0",
            "--listen",
            "[fd00:10:1::1]:53",
        ];
        let Err(error) = Peak::start_confined(&node, &granted, arguments) else {
            anyhow::bail!("it runs without {missing}");
        };
        let said = format!("{error:#}");
        assert!(said.contains(missing), "{missing} is not in {said}");
        assert!(node.link("eth0")?["xdp"].is_null());
    }
    Ok(())
}
