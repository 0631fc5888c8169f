//! `peak export`: what it writes is valid to the tools of other servers, and answered by these as Peak itself answers.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::rr::RecordType;
use peak_tests::{
    ControlPlane, Net, Running, Said, Wanted, ask, asset, connect, eventually, exchange, program,
    query, scratch,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/zone");
/// Those that `answers.txt` knows: of both families, and of a range of addresses.
const NAMESERVERS: &str = "fd00:10:1::1,10.1.0.1";
const REVERSE: [&str; 2] = ["10.96.0.0/16", "fd00:10::/32"];
/// How long a server may take from its start until it answers.
const START: Duration = Duration::from_secs(20);

/// Exports into a folder, and gives what was said on stderr.
fn export(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program("peak")?)
        .args(["export", "--zone-file"])
        .arg(folder)
        .args(arguments)
        .env("PEAK_LOG", "warn")
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{}: {said}", output.status);
    Ok(said)
}

/// Exports the folder of which `answers.txt` tells.
fn export_zones(folder: &Path) -> Result<()> {
    let mut arguments = vec!["--manifests", FOLDER, "--nameserver", NAMESERVERS];
    for range in REVERSE {
        arguments.extend(["--reverse", range]);
    }
    export(folder, &arguments).map(drop)
}

/// The zones of a folder and their files.
fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let zone = path.file_stem().and_then(|stem| stem.to_str());
        files.push((zone.context("a name")?.to_owned(), path));
    }
    files.sort();
    Ok(files)
}

/// Has the tools of three servers read all files of a folder.
fn check(folder: &Path) -> Result<()> {
    for (zone, file) in files(folder)? {
        let file = file.to_str().context("a plain path")?;
        let checks: [(&str, &[&str]); 3] = [
            ("kzonecheck", &["-o", &zone, file]),
            // As strict as it can be about names.
            (
                "named-checkzone",
                &["-k", "ignore", "-i", "local", &zone, file],
            ),
            ("nsd-checkzone", &[&zone, file]),
        ];
        for (tool, arguments) in checks {
            let output = Command::new(asset(tool)?).args(arguments).output()?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            ensure!(output.status.success(), "{tool} {arguments:?}: {said}");
        }
    }
    Ok(())
}

/// Whether a server that has the files alone can say what the table does.
fn is_in_files(wanted: &Wanted<'_>, heads: &str) -> bool {
    // They say themselves what is not in them.
    let is_told = heads.contains(&format!(
        "Not in here: {} ",
        wanted.name.to_ascii_lowercase()
    ));
    let is_ours = wanted.said.is_authoritative();
    // RFC 8482 leaves the answer to each server.
    let is_any = wanted.qtype == RecordType::ANY;
    // An address's name outside the ranges that are ours; a pod's that is made up when it is asked for.
    let is_outlying = wanted.name == "2.5.244.10.in-addr.arpa.";
    let is_pod = wanted.name.contains(".pod.");
    is_ours && !is_told && !is_any && !is_outlying && !is_pod
}

/// Starts a server in the node of `net`, and compares its answers with the table, but for one name.
fn compare(
    net: &Net,
    folder: &Path,
    name: &str,
    mut command: Command,
    except: Option<&str>,
) -> Result<()> {
    let server = SocketAddr::new(Net::SERVERS[0].parse()?, 53);
    let mut running: Running = net.node.spawn(command.stdout(Stdio::null()))?;
    eventually(name, START, || {
        if let Some(status) = running.ended()? {
            bail!("{name} has ended ({status}): {}", running.log());
        }
        let asked = net
            .client
            .run(|| ask(server, "cluster.local", RecordType::SOA));
        Ok(asked
            .is_ok_and(|reply| !reply.answers.is_empty())
            .then_some(()))
    })?;
    let heads: String = files(folder)?
        .into_iter()
        .map(|(_, path)| fs::read_to_string(path))
        .collect::<Result<_, _>>()?;
    let table = fs::read_to_string(format!("{FOLDER}/answers.txt"))?;
    let socket = net.client.run(|| connect(server))?;
    let mut compared = 0;
    for wanted in Wanted::all(&table)? {
        if !is_in_files(&wanted, &heads) || except == Some(wanted.name) {
            continue;
        }
        // Without EDNS servers differ in what they leave out of an answer that is too large.
        let reply = exchange(&socket, &query(wanted.name, wanted.qtype, true)?)?;
        if wanted.edns.contains(&true) {
            let said = Said::of_other(reply).with_context(|| format!("{name}: {wanted:?}"))?;
            ensure!(
                wanted.said.agrees(&said),
                "{name}: {wanted:?}, not {said:?}"
            );
            compared += 1;
        }
    }
    ensure!(compared >= 80, "{name}: {compared} lines of the table");
    Ok(())
}

#[test]
fn the_files_are_valid_and_served_by_others_as_they_are_by_peak() -> Result<()> {
    let folder = scratch()?;
    // With a slash: a folder that is to be made.
    let zones = folder.path().join("zones/");
    export_zones(&zones)?;
    let names: Vec<_> = files(&zones)?.into_iter().map(|(name, _)| name).collect();
    let wanted = [
        "0.1.0.0.0.0.d.f.ip6.arpa",
        "96.10.in-addr.arpa",
        "cluster.local",
    ];
    assert_eq!(names, wanted);
    check(&zones)?;

    let net = Net::new()?;
    let node = Net::SERVERS[0];
    let run = folder.path().display();
    let config = folder.path().join("knot.conf");
    let knot_zones: String = files(&zones)?
        .iter()
        .map(|(zone, file)| format!("- domain: {zone}\n  file: {}\n", file.display()))
        .collect();
    fs::write(
        &config,
        format!(
            "server:\n  listen: {node}@53\n  rundir: {run}\ndatabase:\n  storage: {run}\n\
             log:\n- target: stderr\n  any: warning\nzone:\n{knot_zones}"
        ),
    )?;
    let mut knot = Command::new(asset("knotd")?);
    knot.arg("--config").arg(&config);
    compare(&net, &zones, "knotd", knot, None)?;

    let config = folder.path().join("Corefile");
    let blocks: String = files(&zones)?
        .iter()
        .map(|(zone, file)| {
            let file = file.display();
            format!("{zone}:53 {{\n bind {node}\n errors\n file {file} {zone}\n}}\n")
        })
        .collect();
    fs::write(&config, blocks)?;
    let mut coredns = Command::new(asset("coredns")?);
    coredns.arg("-conf").arg(&config);
    // Of an alias of itself it tells as often as it follows it.
    let circle = Some("circle.kinds.svc.cluster.local.");
    compare(&net, &zones, "coredns", coredns, circle)
}

#[test]
fn zones_within_one_another_are_delegated() -> Result<()> {
    let folder = scratch()?;
    let zones = ["--zone", "cluster.local,shop.svc.cluster.local"];
    let source = ["--manifests", FOLDER];
    let ranges = ["--reverse", "10.0.0.0/8,10.96.0.0/16"];
    export(folder.path(), &[source, zones, ranges].concat())?;
    check(folder.path())?;
    let outer = fs::read_to_string(folder.path().join("cluster.local.zone"))?;
    assert!(
        outer.contains("\nshop.svc\tIN\tNS\tns.dns.shop.svc\n"),
        "{outer}"
    );
    assert!(
        outer.contains("\nns.dns.shop.svc\tIN\tAAAA\t::1\n"),
        "{outer}"
    );
    assert!(!outer.contains("web.shop.svc"), "{outer}");
    let outer = fs::read_to_string(folder.path().join("10.in-addr.arpa.zone"))?;
    assert!(
        outer.contains("\n96\tIN\tNS\tns.dns.cluster.local.\n"),
        "{outer}"
    );
    assert!(!outer.contains("20.0.96\t"), "{outer}");
    Ok(())
}

#[test]
fn a_cluster_is_exported_as_its_manifests_are() -> Result<()> {
    let plane = ControlPlane::shared()?;
    plane.apply(
        "{apiVersion: v1, kind: Service, metadata: {namespace: export, name: web}, spec: {clusterIP: None}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {namespace: export, name: web-1, labels: {kubernetes.io/service-name: web}}\n\
         addressType: IPv6\nports: []\nendpoints: [{addresses: ['fd00:10:244::1'], hostname: web-0}]\n",
    )?;
    let folder = scratch()?;
    let file = folder.path().join("file.zone");
    let kubeconfig = plane.kubeconfig();
    let kubeconfig = kubeconfig.to_str().context("a plain path")?;
    let said = export(
        &file,
        &["--kubeconfig", kubeconfig, "--namespace", "export"],
    )?;
    assert!(said.contains("cluster.local.: 7 records in"), "{said}");
    let zone = fs::read_to_string(&file)?;
    for line in [
        "web.export.svc\tIN\tAAAA\tfd00:10:244::1",
        "web-0.web.export.svc\tIN\tAAAA\tfd00:10:244::1",
    ] {
        assert!(
            zone.lines().any(|one| one == line),
            "{line} is not in {zone}"
        );
    }
    // Nothing but the file is left.
    assert_eq!(fs::read_dir(folder.path())?.count(), 1);
    Ok(())
}

#[test]
fn broken_manifests_are_not_exported() -> Result<()> {
    let folder = scratch()?;
    fs::write(
        folder.path().join("a.yaml"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: fdoo::1}\n",
    )?;
    let zones = folder.path().join("zones");
    let output = Command::new(program("peak")?)
        .args(["export", "--manifests"])
        .arg(folder.path())
        .arg("--zone-file")
        .arg(&zones)
        .output()?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("a.yaml:4: document 1: spec.clusterIP"),
        "{said}"
    );
    assert!(
        said.ends_with("error: nothing is written: names would be missing\n"),
        "{said}"
    );
    assert!(!zones.exists());
    Ok(())
}
