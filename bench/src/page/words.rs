//! Names and units as people read them.

/// A figure's name in words.
pub(super) fn name_shown(name: &str) -> String {
    let words = name.split('_').map(|word| match word {
        "aaaa" => "AAAA".to_owned(),
        "a" => "A".to_owned(),
        "opt" => "OPT".to_owned(),
        "dns" => "DNS".to_owned(),
        "nxdomain" => "NXDOMAIN".to_owned(),
        "nodata" => "NODATA".to_owned(),
        "ip" => "IP".to_owned(),
        "ipv4" => "IPv4".to_owned(),
        "udp" => "UDP".to_owned(),
        "edns" => "EDNS".to_owned(),
        "vlan" => "VLAN".to_owned(),
        word => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A label's value in words.
pub(super) fn label_shown(label: &str, value: &str) -> String {
    let shown = match (label, value) {
        ("server", "peak") => "Peak",
        ("server", "peak-fallback") => "Peak's fallback",
        ("server", "coredns") => "CoreDNS",
        ("server", "coredns-file") => "CoreDNS, file",
        ("server", "knot") => "Knot",
        ("server", "knot-xdp") => "Knot, AF_XDP",
        ("server", "nsd") => "NSD",
        ("server", "unbound") => "Unbound",
        ("server", "bind") => "BIND",
        ("server", "pdns") => "PowerDNS",
        ("mix", "uniform") => "AAAA of any service",
        ("mix", "zipf") => "Zipf over all names",
        ("mix", "nxdomain") => "NXDOMAIN by search path",
        ("mix", "cluster") => "A cluster's mix",
        ("load", "one") => "one at a time",
        ("load", "half") => "half of the knee",
        ("load", "nine_tenths") => "nine tenths of the knee",
        ("load", "knee") => "at the knee",
        ("load", "flood") => "as fast as it can",
        ("sender", "live-frames") => "frames of the kernel's own",
        (_, value) => return name_shown(value),
    };
    shown.to_owned()
}

/// What an axis says of a unit.
pub(super) fn unit_shown(unit: &str) -> String {
    match unit {
        "ns" => "nanoseconds",
        "us" | "µs" => "microseconds",
        "ms" => "milliseconds",
        "s" => "seconds",
        "MB" => "megabytes",
        "x" => "times",
        "1/s" => "answers a second",
        "1/CPU-s" => "answers for a processor's second",
        unit => unit,
    }
    .to_owned()
}

/// As a sentence begins.
pub(super) fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(characters).collect()
}
