//! `peak export`: the zones of one moment as master files (RFC 1035, section 5), for other name servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::{self, ExitCode},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use tokio::{runtime::Runtime, time::timeout};

use crate::{
    cli::ExportArgs,
    config::{RunConfig, SourceConfig},
    name::Name,
    snapshot::{Batch, Node, Snapshot, SnapshotConfig, Soa, Zone},
    source::{kubernetes, manifests},
    telemetry,
    validate::Severity,
};

/// How long the API server may take to list everything.
const LISTING: Duration = Duration::from_secs(60);

/// Writes the zones. Exit status 1 if manifests are broken, 2 if settings make no sense.
///
/// # Errors
/// The source can't be read, or a file not be written: none is then replaced.
pub fn run(arguments: &ExportArgs) -> Result<ExitCode> {
    telemetry::init();
    let config = match RunConfig::read(&arguments.run) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let Some(batch) = batch(&config)? else {
        return Ok(ExitCode::FAILURE);
    };
    let empty = Snapshot::empty(SnapshotConfig {
        nameservers: nameservers(arguments, &config),
        zones: config.zones,
        ttl: config.ttl,
        reverse: config.reverse,
        pods: config.pods,
    });
    let (snapshot, _) = empty.with(batch, SystemTime::now());
    for problem in snapshot.problems() {
        eprintln!("warning: {}: {problem}", problem.object);
    }
    let target = Target::of(&arguments.zone_file);
    let zones: Vec<_> = all_zones(&snapshot).collect();
    if let ([_, _, ..], Target::Stdout | Target::File(_)) = (&*zones, &target) {
        eprintln!(
            "error: {} zones don't fit into one file: name a folder with --zone-file FOLDER/",
            zones.len()
        );
        return Ok(ExitCode::from(2));
    }
    let written: Vec<_> = zones
        .iter()
        .map(|zone| target.write(zone, |out| write_zone(&snapshot, zone, out)))
        .collect::<Result<_>>()?;
    for ((records, place), zone) in written.into_iter().zip(&zones) {
        let place = place.put()?;
        eprintln!("{}: {records} records in {place}", zone.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// All that is served, once; nothing if manifests are broken, which was said then.
fn batch(config: &RunConfig) -> Result<Option<Batch>> {
    match &config.source {
        SourceConfig::Manifests(folder) => {
            let inventory = manifests::read(folder, config.records)?;
            let mut whole = true;
            for diagnostic in &inventory.diagnostics {
                let severity = match diagnostic.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                };
                eprintln!("{severity}: {diagnostic}");
                whole &= diagnostic.severity != Severity::Error;
            }
            if !whole {
                eprintln!("error: nothing is written: names would be missing");
            }
            Ok(whole.then_some(inventory.batch))
        }
        SourceConfig::Kubernetes(cluster) => Runtime::new().context("can't start")?.block_on(async {
            let mut source = kubernetes::watch(cluster, config.records, config.pods).await?;
            match timeout(LISTING, source.next()).await {
                Ok(Some(batch)) => Ok(Some(batch)),
                Ok(None) => bail!("the source of services has ended"),
                Err(_) => bail!(
                    "the API server has not listed everything within {LISTING:?}: what it said is in the log"
                ),
            }
        }),
    }
}

/// The addresses of the zones' name server: those given, else those at which an agent with these settings would answer, as
/// far as they stand there.
fn nameservers(arguments: &ExportArgs, config: &RunConfig) -> Vec<IpAddr> {
    if !arguments.nameserver.is_empty() {
        return arguments.nameserver.clone();
    }
    let listen = config.listen.iter().map(|listen| listen.ip());
    let named: BTreeSet<_> = listen.filter(|address| !address.is_unspecified()).collect();
    match named.is_empty() {
        true => vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()],
        false => named.into_iter().collect(),
    }
}

fn all_zones(snapshot: &Snapshot) -> impl Iterator<Item = &Zone> {
    snapshot.zones().iter().chain(snapshot.reverse_zones())
}

/// Where to.
enum Target {
    Stdout,
    File(PathBuf),
    /// A file for each zone, in a folder.
    Folder(PathBuf),
}

impl Target {
    fn of(path: &Path) -> Self {
        match path {
            path if path == Path::new("-") => Self::Stdout,
            path if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") => {
                Self::Folder(path.to_owned())
            }
            path => Self::File(path.to_owned()),
        }
    }

    /// Writes a zone beside its place, and says how many records it has.
    fn write(
        &self,
        zone: &Zone,
        write: impl FnOnce(&mut dyn Write) -> io::Result<usize>,
    ) -> Result<(usize, Place)> {
        let place = match self {
            Self::Stdout => Place::At("standard output".into()),
            // Nothing is put into the place of a pipe or a device.
            Self::File(path) if path.exists() && !path.is_file() => Place::At(path.clone()),
            Self::File(path) => Place::beside(path.clone()),
            Self::Folder(folder) => {
                fs::create_dir_all(folder)
                    .with_context(|| format!("can't make the folder {}", folder.display()))?;
                Place::beside(folder.join(file_name(zone)))
            }
        };
        let open = || -> io::Result<Box<dyn Write>> {
            Ok(match (self, &place) {
                (Self::Stdout, _) => Box::new(io::stdout().lock()),
                (_, Place::At(path)) => Box::new(File::options().write(true).open(path)?),
                (_, Place::Beside { unfinished, .. }) => Box::new(File::create(unfinished)?),
            })
        };
        let records = open().and_then(|file| {
            let mut out = BufWriter::new(file);
            let records = write(&mut out)?;
            out.flush()?;
            Ok(records)
        });
        let records = records.with_context(|| format!("can't write {}", place.path().display()))?;
        Ok((records, place))
    }
}

/// `cluster.local.zone`
fn file_name(zone: &Zone) -> String {
    // RFC 2317, section 4: zones that stand for a part of a network may be written with a slash.
    let name = zone.name.to_string().replace('/', "_");
    format!("{}.zone", name.trim_end_matches('.'))
}

/// A file that was written.
enum Place {
    /// Where it is to be.
    At(PathBuf),
    /// Beside that, so that no server ever reads half of it.
    Beside { path: PathBuf, unfinished: PathBuf },
}

impl Place {
    fn beside(path: PathBuf) -> Self {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}", process::id()));
        let unfinished = path.with_file_name(name);
        Self::Beside { path, unfinished }
    }

    fn path(&self) -> &Path {
        let (Self::At(path) | Self::Beside { path, .. }) = self;
        path
    }

    /// Puts it where it is to be, and says where that is.
    fn put(self) -> Result<String> {
        if let Self::Beside { path, unfinished } = &self {
            fs::rename(unfinished, path)
                .with_context(|| format!("can't write {}", path.display()))?;
        }
        Ok(self.path().display().to_string())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Beside { unfinished, .. } = self {
            // It is there only if something went wrong.
            let _ = fs::remove_file(unfinished);
        }
    }
}

/// Writes one zone of a complete snapshot as a master file, and says how many records it has.
///
/// # Errors
/// Those of `out`.
pub fn write_zone(
    snapshot: &Snapshot,
    zone: &Zone,
    out: &mut (impl Write + ?Sized),
) -> io::Result<usize> {
    let contents = Contents::of(snapshot, zone);
    contents.write_head(out)?;
    let mut file = Records {
        zone: &zone.name,
        out,
        count: 0,
    };
    let soa = snapshot.soa(zone);
    file.write_apex(&zone.name, &soa)?;
    for (name, entry) in &contents.entries {
        if let Entry::Delegation(nameserver, glue) = entry {
            file.write(name, "NS", &file.relative(nameserver))?;
            file.write_addresses(nameserver, glue)?;
        } else if let Entry::Node(node) = entry {
            file.write_node(snapshot, name, node)?;
        }
    }
    Ok(file.count)
}

/// What stands at a name.
enum Entry<'a> {
    Node(Node<'a>),
    /// Another zone begins there. Its name server, and the addresses of that if they stand in it.
    Delegation(Name, Node<'a>),
}

/// A zone's names in the order of RFC 4034, section 6.1: a name stands right before those below it.
struct Contents<'a> {
    snapshot: &'a Snapshot,
    zone: &'a Zone,
    entries: Vec<(Name, Entry<'a>)>,
    /// The names that exist without a record at them or below, and so can't be written.
    empty: Vec<Name>,
    /// How many names have answers of fewer addresses than they have.
    drawn: usize,
    /// The names below which every name that spells an address exists.
    open: Vec<Name>,
}

impl<'a> Contents<'a> {
    fn of(snapshot: &'a Snapshot, zone: &'a Zone) -> Self {
        let is_forward = snapshot.zones().contains(zone);
        let mut entries: BTreeMap<Vec<Box<[u8]>>, (Name, Entry<'a>)> = BTreeMap::new();
        let mut insert = |name: Name, entry| {
            let place = name.labels().rev().map(Into::into).collect();
            entries.insert(place, (name, entry));
        };
        if is_forward {
            let own = snapshot
                .names()
                .filter(|(index, ..)| snapshot.zones().get(*index).is_some_and(|of| of == zone));
            for (_, name, node) in own {
                insert(name, Entry::Node(node));
            }
        } else {
            for (name, node) in snapshot.reverse_names(zone) {
                insert(name, Entry::Node(node));
            }
        }
        for inner in all_zones(snapshot) {
            let holder = all_zones(snapshot)
                .filter(|outer| outer.name != inner.name && inner.name.is_within(&outer.name))
                .max_by_key(|outer| outer.name.labels().count());
            if holder == Some(zone) {
                let nameserver = snapshot.soa(inner).mname;
                let glue = match nameserver.is_within(&inner.name) {
                    true => node_at(snapshot, nameserver),
                    false => Node::default(),
                };
                insert(
                    inner.name.clone(),
                    Entry::Delegation(nameserver.clone(), glue),
                );
            }
        }
        let mut contents = Self {
            snapshot,
            zone,
            entries: entries.into_values().collect(),
            empty: Vec::new(),
            drawn: 0,
            open: Vec::new(),
        };
        contents.look_over();
        contents
    }

    /// Finds what can't be written.
    fn look_over(&mut self) {
        // From the end on: whether a name has any below it with records is known from the one behind it that has.
        let mut behind: Option<&Name> = None;
        for (name, entry) in self.entries.iter().rev() {
            let holds = match entry {
                Entry::Delegation(..) => true,
                Entry::Node(node) => {
                    self.drawn += usize::from(draws(node));
                    self.open.extend(node.open.then(|| name.clone()));
                    node.record_count() > 0 || self.snapshot.services(name.as_wire()).is_some()
                }
            };
            if holds {
                behind = Some(name);
            } else if behind.is_none_or(|behind| !behind.is_within(name)) {
                self.empty.push(name.clone());
            }
        }
        self.empty.reverse();
    }

    /// What this is, what it lacks, and how names and TTLs are to be read.
    fn write_head(&self, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let zone = &self.zone.name;
        writeln!(
            out,
            "; {zone} as Peak {} answers it, at one moment: serial {}. Written by `peak export`.",
            env!("CARGO_PKG_VERSION"),
            self.snapshot.serial()
        )?;
        if self.drawn > 0 {
            writeln!(
                out,
                "; Not in here: that Peak draws some of a name's addresses for each answer (peak/answers). So it is with {} \
                 names; all of their addresses are here.",
                self.drawn
            )?;
        }
        for open in &self.open {
            writeln!(
                out,
                "; Not in here: the names of pods (--pods insecure) below {open} There is one for each address in each \
                 namespace, made up when it is asked for."
            )?;
        }
        for empty in &self.empty {
            writeln!(
                out,
                "; Not in here: {empty} It exists and holds nothing, so that Peak says NODATA and not NXDOMAIN."
            )?;
        }
        writeln!(out, "$ORIGIN {zone}")?;
        writeln!(out, "$TTL {}", self.snapshot.ttl())
    }
}

/// Whether an answer gives fewer addresses than there are.
fn draws(node: &Node<'_>) -> bool {
    let most = node.addresses.v4.len().max(node.addresses.v6.len());
    node.pick > 0 && most > usize::from(node.pick)
}

fn node_at<'a>(snapshot: &'a Snapshot, name: &Name) -> Node<'a> {
    match snapshot.lookup(name.as_wire()) {
        crate::snapshot::Lookup::Present { node, .. } => node,
        _ => Node::default(),
    }
}

/// Resource records, a line each.
struct Records<'a, W: ?Sized> {
    zone: &'a Name,
    out: &'a mut W,
    count: usize,
}

impl<W: Write + ?Sized> Records<'_, W> {
    /// A name as it stands below the zone's, or absolute if it is outside.
    fn relative(&self, name: &Name) -> String {
        let text = name.to_string();
        if name == self.zone {
            return "@".to_owned();
        }
        match name.is_within(self.zone) {
            // The labels of both are written alike; a dot stands between.
            true => text[..text.len() - self.zone.to_string().len() - 1].to_owned(),
            false => text,
        }
    }

    fn write(&mut self, owner: &Name, rtype: &str, data: &str) -> io::Result<()> {
        let owner = self.relative(owner);
        self.count += 1;
        writeln!(self.out, "{owner}\tIN\t{rtype}\t{data}")
    }

    fn write_apex(&mut self, apex: &Name, soa: &Soa<'_>) -> io::Result<()> {
        let nameserver = self.relative(soa.mname);
        let data = format!(
            "{nameserver} {} {} {} {} {} {}",
            self.relative(soa.rname),
            soa.serial,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.minimum
        );
        self.write(apex, "SOA", &data)?;
        self.write(apex, "NS", &nameserver)
    }

    fn write_addresses(&mut self, owner: &Name, node: &Node<'_>) -> io::Result<()> {
        for address in node.addresses.iter() {
            let rtype = match address {
                IpAddr::V4(_) => "A",
                IpAddr::V6(_) => "AAAA",
            };
            self.write(owner, rtype, &address.to_string())?;
        }
        Ok(())
    }

    fn write_node(&mut self, snapshot: &Snapshot, name: &Name, node: &Node<'_>) -> io::Result<()> {
        if draws(node) {
            writeln!(
                self.out,
                "; an answer of Peak's has {} of these:",
                node.pick
            )?;
        }
        self.write_addresses(name, node)?;
        if let Some(target) = &node.alias {
            self.write(name, "CNAME", &self.relative(target))?;
        }
        for pointer in &node.pointers {
            self.write(name, "PTR", &self.relative(pointer))?;
        }
        if let Some(text) = node.text {
            self.write(name, "TXT", &format!("\"{text}\""))?;
        }
        if let Some(services) = snapshot.services(name.as_wire()) {
            for (port, target, _) in services.iter() {
                let weight = services.weight;
                let target = self.relative(&target);
                self.write(name, "SRV", &format!("0 {weight} {port} {target}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        endpoints::Endpoint,
        pods::PodMode,
        snapshot::{AddressSet, ServiceKey, ServiceRecords},
    };

    fn addresses(all: &[&str]) -> AddressSet {
        all.iter()
            .map(|address| address.parse::<IpAddr>().unwrap())
            .collect()
    }

    fn written(pods: PodMode, records: Vec<(ServiceKey, Option<ServiceRecords>)>) -> String {
        let snapshot = Snapshot::empty(SnapshotConfig {
            zones: vec![Name::parse("cluster.local").unwrap()],
            ttl: 30,
            nameservers: vec!["192.0.2.53".parse().unwrap()],
            pods,
            ..SnapshotConfig::default()
        });
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (snapshot, _) = snapshot.with(records, now);
        let mut out = Vec::new();
        let count = write_zone(&snapshot, &snapshot.zones()[0], &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let records = text.lines().filter(|line| !line.starts_with([';', '$']));
        assert_eq!(records.count(), count);
        text
    }

    #[test]
    fn a_zone_says_what_it_holds_and_what_it_can_not() {
        let web = ServiceRecords {
            addresses: addresses(&["fd00::1", "fd00::2"]),
            endpoints: [("a", "fd00::1"), ("b", "fd00::2")]
                .into_iter()
                .map(|(label, address)| Endpoint {
                    label: label.into(),
                    addresses: addresses(&[address]),
                    ports: [].into(),
                })
                .collect(),
            headless: true,
            pick: 1,
            ..ServiceRecords::default()
        };
        let far = ServiceRecords {
            alias: Some(Name::parse("www.example.com").unwrap()),
            ..ServiceRecords::default()
        };
        let idle = ServiceRecords {
            headless: true,
            ..ServiceRecords::default()
        };
        let records = vec![
            (ServiceKey::new("shop", "web"), Some(web)),
            (ServiceKey::new("shop", "far"), Some(far)),
            (ServiceKey::new("quiet", "idle"), Some(idle)),
        ];
        let version = env!("CARGO_PKG_VERSION");
        let expected = format!(
            "; cluster.local. as Peak {version} answers it, at one moment: serial 1800000000. Written by `peak export`.\n\
             ; Not in here: that Peak draws some of a name's addresses for each answer (peak/answers). So it is with 1 names; \
             all of their addresses are here.\n\
             ; Not in here: the names of pods (--pods insecure) below pod.cluster.local. There is one for each address in \
             each namespace, made up when it is asked for.\n\
             ; Not in here: pod.cluster.local. It exists and holds nothing, so that Peak says NODATA and not NXDOMAIN.\n\
             ; Not in here: quiet.svc.cluster.local. It exists and holds nothing, so that Peak says NODATA and not NXDOMAIN.\n\
             $ORIGIN cluster.local.\n\
             $TTL 30\n\
             @\tIN\tSOA\tns.dns hostmaster 1800000000 7200 1800 86400 30\n\
             @\tIN\tNS\tns.dns\n\
             ns.dns\tIN\tA\t192.0.2.53\n\
             dns-version\tIN\tTXT\t\"1.1.0\"\n\
             far.shop.svc\tIN\tCNAME\twww.example.com.\n\
             ; an answer of Peak's has 1 of these:\n\
             web.shop.svc\tIN\tAAAA\tfd00::1\n\
             web.shop.svc\tIN\tAAAA\tfd00::2\n\
             a.web.shop.svc\tIN\tAAAA\tfd00::1\n\
             b.web.shop.svc\tIN\tAAAA\tfd00::2\n"
        );
        assert_eq!(written(PodMode::Insecure, records), expected);
    }

    #[test]
    fn a_zone_without_services_is_one_too() {
        let text = written(PodMode::Disabled, Vec::new());
        assert!(
            text.contains("; Not in here: svc.cluster.local. It exists"),
            "{text}"
        );
        assert!(
            text.ends_with("dns-version\tIN\tTXT\t\"1.1.0\"\n"),
            "{text}"
        );
    }

    #[test]
    fn what_a_path_means() {
        assert!(matches!(Target::of(Path::new("-")), Target::Stdout));
        assert!(matches!(Target::of(Path::new("/tmp")), Target::Folder(_)));
        assert!(matches!(
            Target::of(Path::new("nowhere/")),
            Target::Folder(_)
        ));
        assert!(matches!(Target::of(Path::new("nowhere")), Target::File(_)));
        let name = Name::parse("0/25.2.0.192.in-addr.arpa").unwrap();
        let zone = Zone::new(name.clone(), &name);
        assert_eq!(file_name(&zone), "0_25.2.0.192.in-addr.arpa.zone");
    }
}
