//! Peak as a cluster's DNS server, on a real API server: beside CoreDNS, and against what is written by hand.

mod answer;
mod comparison;
mod conformance;
mod differences;
mod generated;
mod names;
mod pods;
mod upstream;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use hickory_proto::{op::Message, rr::RecordType};
use peak_tests::{
    ControlPlane, CoreDns, Net, PassProgram, Peak, Reach, Wanted, check, connect, pass, query,
};

use self::{
    comparison::{Comparison, Run},
    differences::Differences,
    names::{Names, Objects, absent},
};

/// Objects for each line of what a Kubernetes DNS server must answer, and the answers, by hand.
const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster_dns");
const DIFFERENCES: &str = include_str!("differences.txt");

/// All reverse names are ours, as they are CoreDNS's.
const REVERSE: [&str; 4] = ["--reverse", "0.0.0.0/0", "--reverse", "::/0"];

/// A client, and a node with an agent that answers from a cluster.
struct Site {
    net: Net,
    peak: Peak,
    _reach: Reach,
    _pass: PassProgram,
}

impl Site {
    fn new(plane: &ControlPlane, options: &[&str]) -> Result<Self> {
        let net = Net::new()?;
        let pass = pass(&net.client, "eth0")?;
        let reach = plane.reach_from(&net.node)?;
        // CoreDNS would give these for its own.
        net.node.ip("-6 address flush dev eth0 scope link")?;
        let listen = ["--listen", "[fd00:10:1::1]:53", "--listen", "10.1.0.1:53"];
        let peak = Peak::of_cluster(&net.node, plane, &[&listen, options].concat())?;
        Ok(Self {
            net,
            peak,
            _reach: reach,
            _pass: pass,
        })
    }

    /// Where the agent is asked.
    fn server() -> SocketAddr {
        SocketAddr::from(([10, 1, 0, 1], 53))
    }
}

/// What a table's agent is started with: the line behind `#!`.
fn options(table: &str) -> Vec<&str> {
    let line = table.lines().find_map(|line| line.strip_prefix("#!"));
    line.unwrap_or_default().split_ascii_whitespace().collect()
}

#[test]
fn kernel_and_fallback_say_what_is_written_by_hand() -> Result<()> {
    let plane = ControlPlane::shared()?;
    apply_cases(&plane)?;
    let tables = tables()?;
    ensure!(tables.len() >= 30, "{} tables", tables.len());
    let mut by_options = BTreeMap::<_, Vec<_>>::new();
    for table in &tables {
        let wanted = Wanted::all(&table.text).with_context(|| table.name.clone())?;
        by_options
            .entry(options(&table.text))
            .or_default()
            .push((&table.name, wanted));
    }
    for (options, tables) in by_options {
        let site = Site::new(&plane, &[&REVERSE, &options[..]].concat())?;
        for (name, wanted) in tables {
            check(&site.peak, &site.net.client, &[&wanted]).with_context(|| name.clone())?;
        }
    }
    Ok(())
}

#[test]
fn names_of_255_bytes_live_and_longer_ones_are_told_with_their_service() -> Result<()> {
    let plane = ControlPlane::shared()?;
    apply_cases(&plane)?;
    // With it the service's name takes 255 bytes on the wire: 64 + 8 + 4 + 179.
    let zone = ["z".repeat(63), "y".repeat(63), "w".repeat(49)].join(".");
    let mut site = Site::new(&plane, &["--zone", &zone])?;
    let service = format!("{}.lengths.svc.{zone}", "x".repeat(63));
    let wanted = format!("{service}. A both NOERROR aa - kernel 10.244.36.1");
    check(&site.peak, &site.net.client, &[&Wanted::all(&wanted)?])?;
    let problem = format!(
        "Service lengths/{}: no name \"{}.",
        "x".repeat(63),
        "h".repeat(63)
    );
    let log = site.peak.process().log();
    ensure!(log.contains(&problem), "{problem} is not in {log}");
    Ok(())
}

#[test]
fn a_larger_payload_size_is_not_used() -> Result<()> {
    let plane = ControlPlane::shared()?;
    apply_cases(&plane)?;
    let site = Site::new(&plane, &[])?;
    let coredns = CoreDns::start_in(&site.net.node, &plane, "payload-coredns", &[])?;
    let mut query = query(
        "many.s-headless-addresses.svc.cluster.local",
        RecordType::AAAA,
        true,
    )?;
    let opt = query.edns.as_mut().context("an OPT")?;
    opt.set_max_payload(4096);
    let here = Site::server();
    let there = SocketAddr::new(here.ip(), coredns.address().port());
    for (server, is_whole) in [(here, false), (there, true)] {
        let socket = site.net.client.run(|| connect(server))?;
        socket.send(&query.to_vec()?)?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        let reply = Message::from_vec(&buffer[..length])?;
        ensure!(
            (length > 1232, reply.metadata.truncation) == (is_whole, !is_whole),
            "{server} sends {length} bytes"
        );
    }
    Ok(())
}

#[test]
fn what_peak_says_is_what_coredns_says_but_for_the_table() -> Result<()> {
    let plane = ControlPlane::shared()?;
    apply_cases(&plane)?;
    generated::create(&plane)?;
    let pods = pods::create(&plane)?;
    let objects = Objects::read(&plane, |namespace| !namespace.starts_with("conformance"))?;
    let mut names = objects.names();
    for (name, kind) in absent(&names, is_one_of_many) {
        names.entry(name).or_insert(kind);
    }
    for table in tables()? {
        for wanted in Wanted::all(&table.text)? {
            let kind = names.get(&wanted.name.to_lowercase()).copied();
            let name = wanted.name.to_owned();
            names.entry(name).or_insert(kind.unwrap_or("absent"));
        }
    }
    ensure!(
        objects.services() > generated::SERVICES && names.len() > 5_000,
        "{} services, {} names",
        objects.services(),
        names.len()
    );

    let few = names
        .iter()
        .filter(|(name, kind)| **kind != "absent" && !is_one_of_many(name));
    comparison::case_means_nothing(&plane, few.map(|(name, _)| name))?;
    let mut comparison = Comparison::new(&plane, DIFFERENCES)?;
    comparison.run(&Run::default(), &names)?;
    for (mode, names) in [("insecure", &pods::insecure()), ("verified", &pods)] {
        let run = Run {
            peak: &["--pods", mode],
            coredns: &[&format!("pods {mode}")],
            ..Run::default()
        };
        comparison.run(&run, names)?;
    }
    for ttl in [0, 3600] {
        let run = Run {
            peak: &["--ttl", &ttl.to_string()],
            coredns: &[&format!("ttl {ttl}")],
            ttl,
            ..Run::default()
        };
        comparison.run(&run, &of_other_ttl())?;
    }
    let run = Run {
        peak: &["--upstream", upstream::ADDRESS],
        // The plugin's block ends, and another's begins.
        coredns: &["}", &format!("forward . {} {{", upstream::ADDRESS)],
        upstream: true,
        ..Run::default()
    };
    comparison.run(&run, &upstream::names())?;
    comparison.finish()
}

/// Whether there are many names like this one.
fn is_one_of_many(name: &str) -> bool {
    generated::is_of_one(name)
        || ["c-srv-addresses", "mmm"]
            .iter()
            .any(|part| name.contains(part))
}

/// What is asked for where the TTL is not the default.
fn of_other_ttl() -> Names {
    let names = [
        (names::ZONE, "ttl-apex"),
        (
            "v4.s-cluster-ip-addresses.svc.cluster.local.",
            "ttl-service",
        ),
        (
            "a.web.s-headless-hostnames.svc.cluster.local.",
            "ttl-service",
        ),
        (
            "nobody.s-cluster-ip-addresses.svc.cluster.local.",
            "ttl-absent",
        ),
    ];
    names.map(|(name, kind)| (name.to_owned(), kind)).into()
}

/// Applies the objects of all cases, once a control plane: the API server fills in what would contradict them the next time.
fn apply_cases(plane: &ControlPlane) -> Result<()> {
    static APPLIED: Mutex<Option<SocketAddr>> = Mutex::new(None);
    let mut applied = APPLIED.lock().unwrap_or_else(PoisonError::into_inner);
    if *applied != Some(plane.address()) {
        plane.apply_folder(Path::new(CASES))?;
        *applied = Some(plane.address());
    }
    Ok(())
}

/// A table of answers that were written by hand.
struct Table {
    /// The file's name.
    name: String,
    text: String,
}

/// All tables, in the order of their names.
fn tables() -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for entry in fs::read_dir(CASES)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "txt") {
            let name = path.file_name().context("a file")?.display().to_string();
            tables.push(Table {
                name,
                text: fs::read_to_string(&path)?,
            });
        }
    }
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}

#[test]
fn the_documentation_has_the_same_differences() -> Result<()> {
    let documentation = include_str!("../../../docs/kubernetes.md");
    let (_, section) = documentation
        .split_once("## Differences from CoreDNS")
        .context("a section of that name")?;
    let (section, _) = section.split_once("\n## ").context("a section behind it")?;
    let rows = section.lines().filter(|line| line.starts_with('|'));
    // Behind the heading and the line below it.
    let documented: Vec<_> = rows.skip(2).collect();
    assert_eq!(documented, Differences::read(DIFFERENCES, &[])?.rows);
    Ok(())
}

/// What stands in the index of all rules exists, and it has all cases.
#[test]
fn the_index_has_every_case_and_names_tests_that_exist() -> Result<()> {
    let index = fs::read_to_string(format!("{CASES}/README.md"))?;
    let rows = index.lines().filter_map(|line| line.strip_prefix('|'));
    let (mut cases, mut tests) = (BTreeSet::new(), BTreeSet::new());
    for row in rows.skip(2) {
        let columns: Vec<_> = row.split('|').collect();
        let [_, rule, of_cases, of_tests, _] = columns[..] else {
            bail!("four columns are wanted: {row}");
        };
        let words = |column: &str| {
            let words = column.split_ascii_whitespace();
            words
                .map(|word| word.trim_matches('`').to_owned())
                .collect::<Vec<_>>()
        };
        let (of_cases, of_tests) = (words(of_cases), words(of_tests));
        let is_heading = rule.trim().starts_with("**");
        ensure!(
            is_heading == of_tests.is_empty(),
            "a rule has a test: {row}"
        );
        cases.extend(of_cases);
        tests.extend(of_tests);
    }
    let tables: BTreeSet<_> = tables()?
        .into_iter()
        .map(|table| table.name.trim_end_matches(".txt").to_owned())
        .collect();
    assert_eq!(cases, tables);

    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("a workspace")?;
    let mut sources = String::new();
    for folder in ["tests/tests", "peak-userspace/tests", "peak-userspace/src"] {
        read_sources(&root.join(folder), &mut sources)?;
    }
    let is_missing = |test: &&String| !sources.contains(&format!("fn {test}()"));
    let missing: Vec<_> = tests.iter().filter(is_missing).collect();
    ensure!(missing.is_empty(), "no test is called {missing:?}");
    Ok(())
}

/// Adds what all files of Rust below a folder say.
fn read_sources(folder: &Path, sources: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_sources(&path, sources)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            sources.push_str(&fs::read_to_string(path)?);
        }
    }
    Ok(())
}
