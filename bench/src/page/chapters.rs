//! What there is to be said: which figures are shown, in which order, how, and with what words.

use crate::report::Figure;

/// How figures become a panel.
pub(super) struct Shown {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) said: &'static str,
    pub(super) names: Names,
    pub(super) kind: Kind,
    /// A plot for each value of this label.
    pub(super) each: Option<&'static str>,
    /// Only figures for which this label is that, if they have it.
    pub(super) only: Option<(&'static str, &'static str)>,
    /// Takes a row of its own where two panels would find room.
    pub(super) wide: bool,
}

const SHOWN: Shown = Shown {
    id: "",
    title: "",
    said: "",
    names: Names::Of(&[]),
    kind: Kind::Bars,
    each: None,
    only: None,
    wide: false,
};

/// Which figures are shown, by their names.
pub(super) enum Names {
    Of(&'static [&'static str]),
    /// All times of packets, but for these.
    TimesBut(&'static [&'static str]),
}

impl Names {
    pub(super) fn has(&self, figure: &Figure) -> bool {
        match self {
            Self::Of(names) => names.contains(&&*figure.name),
            Self::TimesBut(names) => figure.unit == "ns" && !names.contains(&&*figure.name),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bars,
    /// From the median to the 99th percentile, over a logarithm.
    Ranges,
    /// A line for each name and each set of other labels, over this label.
    Over {
        x: &'static str,
        x_label: &'static str,
        y_label: &'static str,
        y_log: bool,
        percentiles: bool,
    },
    /// A row for each value of `rows`, with a part for each value of `parts`.
    Stacks {
        rows: &'static str,
        parts: &'static str,
    },
}

const OVER_NAMES: Kind = Kind::Over {
    x: "names",
    x_label: "names",
    y_label: "a packet",
    y_log: false,
    percentiles: false,
};

pub(super) struct Chapter {
    pub(super) benchmark: &'static str,
    pub(super) title: &'static str,
    pub(super) method: &'static str,
    pub(super) shown: &'static [Shown],
    /// Not of `bench all`: nobody misses it.
    pub(super) optional: bool,
}

pub(super) const CHAPTERS: &[Chapter] = &[
    Chapter {
        benchmark: "peers",
        title: "Beside what one would run instead",
        method: "Every server has one processor, the same zone and the same questions, in the same run on the same machine; their \
                 rounds take turns. The senders are ordinary sockets. Processor time is user, system and softirq together: the veth's \
                 NAPI has a thread of its own for it, which is pinned beside the server and counted with it.",
        shown: &[
            Shown {
                id: "cpu",
                title: "Answers for a second of processor time",
                said: "What a processor's second is worth: longer is better.",
                names: Names::Of(&["answers_per_cpu_second"]),
                each: Some("mix"),
                ..SHOWN
            },
            Shown {
                id: "rate",
                title: "Answers a second",
                said: "The most that was answered before loss, by one processor: longer is better. Where it says that the sender \
                       could not ask faster, the server has more to give.",
                names: Names::Of(&["answers_per_second"]),
                each: Some("mix"),
                ..SHOWN
            },
            Shown {
                id: "latency",
                title: "Latency when all are asked the same",
                said: "From when a query was due to its answer, median and 99 of 100, over a logarithm: further left is better.",
                names: Names::Of(&["latency"]),
                kind: Kind::Ranges,
                each: Some("mix"),
                only: Some(("load", "moderate")),
                ..SHOWN
            },
            Shown {
                id: "latency-half",
                title: "Latency at half of what each one answers",
                said: "From when a query was due to its answer, median and 99 of 100, over a logarithm: further left is better. \
                       Who answers more is asked more here.",
                names: Names::Of(&["latency"]),
                kind: Kind::Ranges,
                each: Some("mix"),
                only: Some(("load", "half")),
                ..SHOWN
            },
            Shown {
                id: "resident",
                title: "Resident memory",
                said: "Of all of a server's processes, with the zone loaded: shorter is better.",
                names: Names::Of(&["resident"]),
                ..SHOWN
            },
        ],
        optional: false,
    },
    Chapter {
        benchmark: "wire",
        title: "Over a veth pair",
        method: "Sender and responder are in two network namespaces, pinned to different processors. The rate is raised until \
                 answers are lost; answers are counted by the responder and by the receiver, and a sample of them is compared byte by byte.",
        shown: &[
            Shown {
                id: "load",
                title: "Latency over offered load",
                said: "Each query has a time at which it is due, whether or not the one before is answered; latency counts from \
                       then. Where a line turns up is the knee. Both axes are logarithms.",
                names: Names::Of(&["latency_curve"]),
                kind: Kind::Over {
                    x: "offered",
                    x_label: "offered, queries a second",
                    y_label: "latency",
                    y_log: true,
                    percentiles: true,
                },
                each: Some("server"),
                ..SHOWN
            },
            Shown {
                id: "latency",
                title: "Latency by load",
                said: "One query at a time, idle, and at parts of the knee; median and 99 of 100, over a logarithm: further left is better.",
                names: Names::Of(&["round_trip", "latency"]),
                kind: Kind::Ranges,
                each: Some("server"),
                ..SHOWN
            },
            Shown {
                id: "rate",
                title: "Answers a second",
                said: "By one processor, by who asks and how fast: longer is better.",
                names: Names::Of(&["answers_per_second"]),
                each: Some("server"),
                ..SHOWN
            },
            Shown {
                id: "cpu",
                title: "Processor time for an answer",
                said: "From the scheduler's own account of the responder's threads: shorter is better.",
                names: Names::Of(&["cpu_per_answer"]),
                each: Some("server"),
                ..SHOWN
            },
        ],
        optional: false,
    },
    Chapter {
        benchmark: "kernel",
        title: "The XDP program alone",
        method: "Run by BPF_PROG_TEST_RUN, with no driver and no sockets. A sample is the mean of a batch, so that percentiles are of \
                 batches and not of packets; times are above the empty program's and without what it costs to make the frame a query \
                 again, by medians of paired differences. Names are drawn at random in the program, so that none is learnt by heart. \
                 Gates and aims are about the least times, scaled by what the yardstick costs: a program that looks 64 bytes of the packet \
                 up in the kernel's own hash map.",
        shown: &[
            Shown {
                id: "cases",
                title: "What a packet costs",
                said: "One name, everything in the cache: shorter is better.",
                names: Names::TimesBut(&[
                    "empty",
                    "restore",
                    "memory",
                    "stage",
                    "floor",
                    "pass",
                    "traffic_empty",
                    "traffic_aaaa_hit",
                ]),
                only: Some(("names", "1")),
                wide: true,
                ..SHOWN
            },
            Shown {
                id: "stages",
                title: "Where the nanoseconds go",
                said: "A hit, cut after each of its stages: what each adds to those before. Less than nothing is less than can be told.",
                names: Names::Of(&["stage"]),
                kind: Kind::Stacks {
                    rows: "names",
                    parts: "stage",
                },
                wide: true,
                ..SHOWN
            },
            Shown {
                id: "names",
                title: "What a packet costs as names become more",
                said: "Names are drawn at random from all that there are. Beyond what the processor's caches hold, memory is waited \
                       for: the line of memory is one load that misses as often.",
                names: Names::Of(&[
                    "aaaa_hit",
                    "nxdomain",
                    "aaaa_8_records",
                    "hash_map",
                    "memory",
                ]),
                kind: OVER_NAMES,
                wide: true,
                ..SHOWN
            },
            Shown {
                id: "floor",
                title: "The least that its steps can cost",
                said: "Each step by itself, written for one kind of packet only: what no program with that step can go below.",
                names: Names::Of(&["floor"]),
                only: Some(("names", "1")),
                ..SHOWN
            },
            Shown {
                id: "traffic",
                title: "The kernel's own account",
                said: "The same hit under real traffic over veth, by the kernel's statistics of the program, with what counting itself costs.",
                names: Names::Of(&["aaaa_hit", "traffic_aaaa_hit"]),
                only: Some(("names", "1")),
                ..SHOWN
            },
            Shown {
                id: "pass",
                title: "What is passed up, by reason",
                said: "What Peak costs those packets that aren't its own: shorter is better.",
                names: Names::Of(&["pass"]),
                only: Some(("names", "1")),
                ..SHOWN
            },
        ],
        optional: false,
    },
    Chapter {
        benchmark: "scale",
        title: "As the cluster grows",
        method: "The same program and agent with a thousand names up to a million, each with an address.",
        shown: &[
            Shown {
                id: "cost",
                title: "What a packet costs",
                said: "Names drawn at random, and one name over and over (hot).",
                names: Names::Of(&["hot_hit", "hit", "miss"]),
                kind: OVER_NAMES,
                ..SHOWN
            },
            Shown {
                id: "memory",
                title: "Kernel memory for a name",
                said: "With its address, and its share of maps of fixed size. Both axes are logarithms.",
                names: Names::Of(&["memory_per_name"]),
                kind: Kind::Over {
                    x: "names",
                    x_label: "names",
                    y_label: "a name",
                    y_log: true,
                    percentiles: false,
                },
                ..SHOWN
            },
            Shown {
                id: "load",
                title: "Time to load all",
                said: "From records in memory to the kernel's complete table, and the parts of that. Both axes are logarithms.",
                names: Names::Of(&["load", "load_snapshot", "load_table"]),
                kind: Kind::Over {
                    x: "names",
                    x_label: "names",
                    y_label: "all of them",
                    y_log: true,
                    percentiles: false,
                },
                ..SHOWN
            },
            Shown {
                id: "change",
                title: "Cost of one change",
                said: "Of one name among so many, and the parts of that.",
                names: Names::Of(&["change", "change_snapshot", "change_table"]),
                kind: Kind::Over {
                    x: "names",
                    x_label: "names",
                    y_label: "a change",
                    y_log: false,
                    percentiles: false,
                },
                ..SHOWN
            },
        ],
        optional: false,
    },
    Chapter {
        benchmark: "propagation",
        title: "From a change to its answer",
        method: "A real API server, with etcd. One endpoint gets another address, and its name is asked all the while. What the API server \
                 takes until the event arrives is told apart from what the responder takes from there.",
        shown: &[
            Shown {
                id: "change",
                title: "Event to changed answer",
                said: "By the number of endpoints that the service has: lower is better. Both axes are logarithms.",
                names: Names::Of(&["event_to_answer"]),
                kind: Kind::Over {
                    x: "endpoints",
                    x_label: "endpoints of the service",
                    y_label: "from the event",
                    y_log: true,
                    percentiles: true,
                },
                wide: true,
                ..SHOWN
            },
            Shown {
                id: "ready",
                title: "Start to first answer",
                said: "From the start of the process until it knows the whole cluster and answers: shorter is better.",
                names: Names::Of(&["ready_time"]),
                ..SHOWN
            },
            Shown {
                id: "memory",
                title: "Memory for the cluster",
                said: "Resident memory of the process a while after it is ready, and what the kernel holds in maps: shorter is better.",
                names: Names::Of(&["resident_rest", "kernel_memory"]),
                ..SHOWN
            },
        ],
        optional: false,
    },
    Chapter {
        benchmark: "answer",
        title: "The fallback's answer without sockets",
        method: "In process: reading the query, finding the name, writing the reply. System calls and waking up are not in it.",
        shown: &[Shown {
            id: "cost",
            title: "What an answer costs",
            said: "Names drawn at random; a sample is the mean of a batch.",
            names: Names::Of(&["fallback_answer"]),
            kind: OVER_NAMES,
            wide: true,
            ..SHOWN
        }],
        optional: true,
    },
];

/// One of the figures that the page begins with.
pub(super) struct First {
    pub(super) benchmark: &'static str,
    pub(super) name: &'static str,
    pub(super) labels: &'static [(&'static str, &'static str)],
    pub(super) number: Number,
    pub(super) what: &'static str,
}

pub(super) const FIRST: &[First] = &[
    First {
        benchmark: "peers",
        name: "times_coredns",
        labels: &[("server", "peak"), ("mix", "uniform")],
        number: Number::Median,
        what: "the answers of CoreDNS, for the same processor time",
    },
    First {
        benchmark: "peers",
        name: "times_knot_xdp",
        labels: &[("server", "peak"), ("mix", "uniform")],
        number: Number::Median,
        what: "the answers of Knot DNS with AF_XDP, for the same processor time",
    },
    First {
        benchmark: "kernel",
        name: "aaaa_hit",
        labels: &[("names", "1")],
        number: Number::Median,
        what: "for an AAAA answer in the kernel, its name in the cache",
    },
    First {
        benchmark: "wire",
        name: "answers_per_second",
        labels: &[
            ("server", "peak"),
            ("sender", "live-frames"),
            ("load", "knee"),
        ],
        number: Number::Median,
        what: "by one processor, to frames of the kernel's own",
    },
    First {
        benchmark: "wire",
        name: "answers_per_second",
        labels: &[("server", "peak"), ("sender", "sockets")],
        number: Number::Median,
        what: "by one processor, to ordinary sockets",
    },
    First {
        benchmark: "wire",
        name: "round_trip_p50",
        labels: &[("server", "peak")],
        number: Number::Median,
        what: "from a socket's query to its answer, median",
    },
    First {
        benchmark: "propagation",
        name: "event_to_answer",
        labels: &[("server", "peak"), ("endpoints", "10000")],
        number: Number::P99,
        what: "from an endpoint's event to the changed answer, 99 of 100",
    },
    First {
        benchmark: "scale",
        name: "memory_per_name",
        labels: &[("names", "1000000")],
        number: Number::Median,
        what: "of kernel memory a name, among a million",
    },
];

/// What they are shown beside.
pub(super) const BEGINNING: Shown = Shown {
    id: "beginning",
    title: "Answers for a second of processor time",
    said: "The same zone, the same questions, one processor each: longer is better.",
    names: Names::Of(&["answers_per_cpu_second"]),
    only: Some(("mix", "uniform")),
    wide: true,
    ..SHOWN
};

#[derive(Clone, Copy)]
pub(super) enum Number {
    Median,
    P99,
}
