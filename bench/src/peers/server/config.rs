//! How each server is set up. All have one processor, and what their authors recommend for one; whatever would cost them time and isn't
//! needed to answer (logs of queries, statistics, limits of rates) is off. Where two settings are both recommended, the faster one on
//! the machine of record was taken.

use std::{net::SocketAddr, path::Path};

use super::super::cluster::ZONE;

/// What configurations speak of.
pub(super) struct Place<'a> {
    /// Where to answer.
    pub(super) listen: SocketAddr,
    /// The interface that has the address.
    pub(super) interface: &'a str,
    /// Who knows other names.
    pub(super) upstream: SocketAddr,
    pub(super) zone_file: &'a Path,
    pub(super) kubeconfig: &'a Path,
    /// A folder of the server's own.
    pub(super) folder: &'a Path,
}

/// What kubeadm installs, without what reports to others (`health`, `ready`, `prometheus`) or watches the Corefile (`reload`): each
/// of these costs time or nothing. `cache` keeps what is forwarded; the cluster's own zone is excepted there by kubeadm, too, as
/// the plugin answers from memory as fast. Its TTL is the plugin's default, as Peak's.
pub(super) fn coredns(place: &Place<'_>) -> String {
    let Place {
        listen,
        upstream,
        kubeconfig,
        ..
    } = place;
    format!(
        "\
.:{} {{
    bind {}
    errors
    kubernetes {ZONE} in-addr.arpa ip6.arpa {{
        kubeconfig {}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . {upstream} {{
        max_concurrent 1000
    }}
    cache 30 {{
        disable success {ZONE}
        disable denial {ZONE}
    }}
    loadbalance
}}
",
        listen.port(),
        listen.ip(),
        kubeconfig.display()
    )
}

/// CoreDNS as an ordinary authoritative server, without `cache`: what its machinery costs, apart from Kubernetes. The file is not
/// looked at again.
pub(super) fn coredns_file(place: &Place<'_>) -> String {
    format!(
        "\
{ZONE}:{} {{
    bind {}
    errors
    file {} {{
        reload 0
    }}
}}
",
        place.listen.port(),
        place.listen.ip(),
        place.zone_file.display()
    )
}

/// One worker of each kind, as for one processor. The zone is served from memory, and no journal is kept of what never changes.
/// With AF_XDP the sockets' port is another one: what XDP takes never gets there.
pub(super) fn knot(place: &Place<'_>, xdp: bool) -> String {
    let Place {
        listen, interface, ..
    } = place;
    let folder = place.folder.display();
    let (port, xdp) = match xdp {
        // Recommended: route-check is off by default, so that a reply goes back to where its query came from.
        true => (
            5353,
            format!("xdp:\n  listen: {interface}@{}\n  udp: on\n", listen.port()),
        ),
        false => (listen.port(), String::new()),
    };
    format!(
        "\
server:
  listen: {}@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
  rundir: {folder}
{xdp}\
database:
  storage: {folder}
log:
- target: stderr
  any: error
zone:
- domain: {ZONE}
  file: {}
  zonefile-load: whole
  zonefile-sync: -1
  journal-content: none
",
        listen.ip(),
        place.zone_file.display()
    )
}

/// One server process with `reuseport`, as the manual recommends, and no database on the disk. Debian builds it with rate limiting,
/// which by default would drop what exceeds 200 queries a second. `minimal-responses` leaves the NS records out of answers: less
/// to write.
pub(super) fn nsd(place: &Place<'_>) -> String {
    let folder = place.folder.display();
    format!(
        "\
server:
    ip-address: {}@{}
    server-count: 1
    reuseport: yes
    username: \"\"
    chroot: \"\"
    zonesdir: \"{folder}\"
    database: \"\"
    pidfile: \"\"
    xfrdfile: \"{folder}/xfrd.state\"
    xfrdir: \"{folder}\"
    zonelistfile: \"{folder}/zone.list\"
    verbosity: 0
    minimal-responses: yes
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: \"{ZONE}\"
    zonefile: \"{}\"
",
        place.listen.ip(),
        place.listen.port(),
        place.zone_file.display()
    )
}

/// One thread. The zone is local data ([`unbound_data`]): an `auth-zone` that is answered downstream took a quarter more time for an
/// answer. Names outside go to the upstream and into its cache. Nothing is signed, so that the module that validates is left out.
/// Large buffers of sockets and `so-reuseport` are recommended by its guide to performance.
pub(super) fn unbound(place: &Place<'_>) -> String {
    let Place {
        listen, upstream, ..
    } = place;
    let folder = place.folder.display();
    format!(
        "\
server:
    num-threads: 1
    interface: {}@{}
    port: {}
    access-control: ::/0 allow
    access-control: 0.0.0.0/0 allow
    so-reuseport: yes
    so-rcvbuf: 4m
    so-sndbuf: 4m
    module-config: \"iterator\"
    minimal-responses: yes
    do-not-query-localhost: no
    use-syslog: no
    verbosity: 0
    log-queries: no
    statistics-interval: 0
    username: \"\"
    chroot: \"\"
    directory: \"{folder}\"
    pidfile: \"\"
    local-zone: \"{ZONE}.\" static
    include: \"{folder}/data.conf\"
remote-control:
    control-enable: no
forward-zone:
    name: \".\"
    forward-addr: {}@{}
",
        listen.ip(),
        listen.port(),
        listen.port(),
        upstream.ip(),
        upstream.port()
    )
}

/// The records of a zone file, as `peak export` writes them, as local data of Unbound's: with whole names, because it knows of no
/// origin there.
pub(super) fn unbound_data(zone: &str) -> String {
    let whole = |name: &str| match name {
        "@" => format!("{ZONE}."),
        name if name.ends_with('.') => name.to_owned(),
        name => format!("{name}.{ZONE}."),
    };
    let mut ttl = "";
    let mut lines = String::new();
    for line in zone.lines() {
        if let Some(given) = line.strip_prefix("$TTL ") {
            ttl = given;
        }
        let [owner, class, rtype, data] = line.split('\t').collect::<Vec<_>>()[..] else {
            continue;
        };
        let mut words: Vec<_> = data.split(' ').map(str::to_owned).collect();
        let names = match rtype {
            "SOA" => 0..2,
            "NS" | "CNAME" | "PTR" => 0..1,
            "SRV" => 3..4,
            _ => 0..0,
        };
        for word in &mut words[names] {
            *word = whole(word);
        }
        let (owner, data) = (whole(owner), words.join(" "));
        lines += &format!("local-data: '{owner} {ttl} {class} {rtype} {data}'\n");
    }
    lines
}

/// An authoritative server, as its manual has it: no recursion, no transfers. `minimal-responses` leaves the NS records and their
/// addresses out of answers: less to write. It logs no queries, and counts none by zone.
pub(super) fn bind(place: &Place<'_>) -> String {
    let folder = place.folder.display();
    format!(
        "\
options {{
    directory \"{folder}\";
    listen-on {{ none; }};
    listen-on-v6 port {} {{ {}; }};
    pid-file none;
    session-keyfile none;
    recursion no;
    allow-query {{ any; }};
    allow-transfer {{ none; }};
    notify no;
    dnssec-validation no;
    empty-zones-enable no;
    minimal-responses yes;
    querylog no;
    zone-statistics none;
}};
controls {{ }};
zone \"{ZONE}\" {{
    type primary;
    file \"{}\";
}};
",
        place.listen.port(),
        place.listen.ip(),
        place.zone_file.display()
    )
}

/// The zone file that PowerDNS' `bind` backend is told of.
pub(super) fn pdns_zones(place: &Place<'_>) -> String {
    format!(
        "zone \"{ZONE}\" {{ type master; file \"{}\"; }};\n",
        place.zone_file.display()
    )
}

/// Its `bind` backend, which keeps zones in memory, one receiver and one distributor thread, as for one processor. The packet cache and the
/// query cache are what its guide to performance builds on: on, with their defaults and room for every question. All backends
/// agree, as there is one (`consistent-backends`), which saves look-ups.
pub(super) fn pdns(place: &Place<'_>, modules: Option<&Path>) -> String {
    let folder = place.folder.display();
    let modules = modules.map_or(String::new(), |folder| {
        format!("module-dir={}\n", folder.display())
    });
    format!(
        "\
{modules}\
launch=bind
bind-config={folder}/zones.conf
bind-check-interval=0
consistent-backends=yes
local-address={}
local-port={}
receiver-threads=1
distributor-threads=1
cache-ttl=20
query-cache-ttl=20
negquery-cache-ttl=60
max-packet-cache-entries=1000000
max-cache-entries=1000000
daemon=no
guardian=no
write-pid=no
disable-syslog=yes
loglevel=3
log-dns-queries=no
security-poll-suffix=
socket-dir={folder}
",
        place.listen.ip(),
        place.listen.port()
    )
}
