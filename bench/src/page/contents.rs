//! What the page says: which figures are shown how, and what they come to.

use std::collections::BTreeSet;

use super::{
    Source,
    plot::{Axis, Line, Lines, Plot, Point, Row, Rows, Shape},
};
use crate::{
    number::{about, short, shown},
    report::{Better, Figure, Machine, Raw, Report},
};

/// All that is told, in its order.
pub(super) struct Page<'s> {
    pub(super) sources: &'s [Source],
    pub(super) tiles: Vec<Tile>,
    pub(super) limits: Vec<String>,
    pub(super) sections: Vec<Section<'s>>,
}

/// One of the figures to begin with.
pub(super) struct Tile {
    pub(super) value: String,
    pub(super) unit: String,
    pub(super) what: &'static str,
    /// Whether gate and aim are reached, of those that there are.
    pub(super) gate: Option<bool>,
    pub(super) aim: Option<bool>,
    /// Where it is shown with all others.
    pub(super) section: &'static str,
}

/// What one benchmark says.
pub(super) struct Section<'s> {
    /// The benchmark.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) method: &'static str,
    /// Nothing where it was not measured.
    pub(super) source: Option<&'s Source>,
    pub(super) panels: Vec<Panel<'s>>,
    /// What there would be a panel for, had it been measured.
    pub(super) missing: Vec<&'static str>,
    /// Of which a limit was set.
    pub(super) judged: Vec<&'s Figure>,
}

/// Plots that belong together.
pub(super) struct Panel<'s> {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) said: &'static str,
    /// Whether it takes a row of its own where two would find room.
    pub(super) wide: bool,
    pub(super) plots: Vec<Drawn>,
    pub(super) figures: Vec<&'s Figure>,
}

/// A plot, and words to it.
pub(super) struct Drawn {
    /// What tells it from the others of its panel.
    pub(super) group: String,
    /// What Peak's figure is beside the others'.
    pub(super) outcome: String,
    /// What is to be known of some of its figures.
    pub(super) notes: Vec<String>,
    pub(super) plot: Plot,
}

/// How figures become a panel.
struct Shown {
    id: &'static str,
    title: &'static str,
    said: &'static str,
    names: Names,
    kind: Kind,
    /// A plot for each value of this label.
    each: Option<&'static str>,
    /// Only figures for which this label is that, if they have it.
    only: Option<(&'static str, &'static str)>,
    /// Labels that nobody has to be told.
    without: &'static [&'static str],
    /// Takes a row of its own where two panels would find room.
    wide: bool,
}

const SHOWN: Shown = Shown {
    id: "",
    title: "",
    said: "",
    names: Names::Of(&[]),
    kind: Kind::Bars,
    each: None,
    only: None,
    without: &[],
    wide: false,
};

/// Which figures are shown, by their names.
enum Names {
    Of(&'static [&'static str]),
    /// All times of packets, but for these.
    TimesBut(&'static [&'static str]),
}

impl Names {
    fn has(&self, figure: &Figure) -> bool {
        match self {
            Self::Of(names) => names.contains(&&*figure.name),
            Self::TimesBut(names) => figure.unit == "ns" && !names.contains(&&*figure.name),
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
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

struct Chapter {
    benchmark: &'static str,
    title: &'static str,
    method: &'static str,
    shown: &'static [Shown],
}

const CHAPTERS: &[Chapter] = &[
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
                said: "By one processor, by who asks: longer is better.",
                names: Names::Of(&["answers_per_second"]),
                without: &["load"],
                ..SHOWN
            },
            Shown {
                id: "cpu",
                title: "Processor time for an answer",
                said: "From the scheduler's own account of the responder's threads: shorter is better.",
                names: Names::Of(&["cpu_per_answer"]),
                ..SHOWN
            },
        ],
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
    },
];

/// One of the figures that the page begins with.
struct First {
    benchmark: &'static str,
    name: &'static str,
    labels: &'static [(&'static str, &'static str)],
    number: Number,
    what: &'static str,
}

const FIRST: &[First] = &[
    First {
        benchmark: "peers",
        name: "times_coredns",
        labels: &[("server", "peak"), ("mix", "uniform")],
        number: Number::Median,
        what: "CoreDNS's answers for the same processor time",
    },
    First {
        benchmark: "peers",
        name: "times_knot_xdp",
        labels: &[("server", "peak"), ("mix", "uniform")],
        number: Number::Median,
        what: "those of Knot DNS with AF_XDP",
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
        labels: &[("server", "peak"), ("sender", "sockets")],
        number: Number::Median,
        what: "by one processor, over veth to ordinary sockets",
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

#[derive(Clone, Copy)]
enum Number {
    Median,
    P99,
}

impl<'s> Page<'s> {
    pub(super) fn new(sources: &'s [Source]) -> Self {
        let by = |benchmark: &str| {
            let mut sources = sources.iter();
            sources.find(|source| source.report.benchmark == benchmark)
        };
        let tile = |first: &First| {
            let results = &by(first.benchmark)?.report.results;
            let figure = results
                .iter()
                .find(|figure| figure.name == first.name && has(figure, first.labels))?;
            let value = match first.number {
                Number::Median => figure.median,
                Number::P99 => figure.p99,
            };
            let (value, unit) = match &*figure.unit {
                "x" => (shown(value) + "×", String::new()),
                "1/s" => (short(value), "answers/s".to_owned()),
                unit => (short(value), unit.to_owned()),
            };
            Some(Tile {
                value,
                unit,
                what: first.what,
                gate: figure.gate.map(|gate| gate.reached),
                aim: figure.aim.map(|aim| aim.reached),
                section: first.benchmark,
            })
        };
        Self {
            sources,
            tiles: FIRST.iter().filter_map(tile).collect(),
            limits: limits(sources),
            sections: CHAPTERS
                .iter()
                .map(|chapter| Section::new(chapter, by(chapter.benchmark)))
                .collect(),
        }
    }
}

/// What nobody should believe of these figures, in plain words.
fn limits(sources: &[Source]) -> Vec<String> {
    let mut limits = Vec::new();
    let machines: Vec<&Machine> = sources
        .iter()
        .map(|source| &source.report.machine)
        .collect();
    if let Some(machine) = machines.first() {
        let processors = match machine.processors {
            1 => "One processor".to_owned(),
            2 => "Two processors".to_owned(),
            n => format!("{n} processors"),
        };
        limits.push(format!(
            "{processors}: one for the responder, the rest for who asks. Nothing here shows how anything scales over cores; read \
             the figures as those of a core."
        ));
        if machine.hypervisor {
            limits.push(
                "A virtual machine: other guests share caches, memory and clock rate, and come and go. Absolute times drift from \
                 run to run by tens of percent; ratios within one run, to a yardstick or to a peer, do so much less. Bars carry \
                 the middle half of their samples."
                    .to_owned(),
            );
        }
    }
    if machines.windows(2).any(|pair| pair[0] != pair[1]) {
        limits.push("The benchmarks below did not all run on the same machine: compare none of one with one of another.".to_owned());
    }
    limits.push(
        "veth in place of a network card: no bus, no interrupts, no line rate. What a card's driver costs or saves isn't in any \
         figure, and a frame's copy from one namespace to the other is."
            .to_owned(),
    );
    limits.push(
        "Times of the XDP program are means of batches. Their percentiles are of batches: a single packet's worst case isn't in them."
            .to_owned(),
    );
    let which = |is_so: fn(&Report) -> bool| {
        let reports = sources.iter().map(|source| &source.report);
        let which = reports.filter(|report| is_so(report));
        let which: Vec<_> = which.map(|report| &*report.benchmark).collect();
        (!which.is_empty()).then(|| which.join(", "))
    };
    let is_quick = |report: &Report| report.command.split(' ').any(|word| word == "--quick");
    if let Some(which) = which(is_quick) {
        limits.push(format!(
            "Smoke runs (--quick), whose samples are too few to mean anything: {which}."
        ));
    }
    if let Some(which) = which(|report| report.commit.ends_with("-dirty")) {
        limits.push(format!(
            "Measured with sources that are in no commit: {which}."
        ));
    }
    limits
}

impl<'s> Section<'s> {
    fn new(chapter: &'static Chapter, source: Option<&'s Source>) -> Self {
        let results = source.map_or(&[][..], |source| &source.report.results);
        let (mut panels, mut missing) = (Vec::new(), Vec::new());
        for shown in chapter.shown {
            match shown.panel(results) {
                Some(panel) => panels.push(panel),
                None => missing.push(shown.title),
            }
        }
        Self {
            id: chapter.benchmark,
            title: chapter.title,
            method: chapter.method,
            source,
            panels,
            missing,
            judged: results
                .iter()
                .filter(|figure| figure.gate.is_some() || figure.aim.is_some())
                .collect(),
        }
    }
}

impl Shown {
    /// Nothing without figures.
    fn panel<'s>(&self, results: &'s [Figure]) -> Option<Panel<'s>> {
        let is_shown = |figure: &&Figure| {
            let fits = |(label, wanted)| text(figure, label).is_none_or(|value| value == wanted);
            self.names.has(figure) && self.only.is_none_or(fits)
        };
        let mut figures: Vec<_> = results.iter().filter(is_shown).collect();
        // Ours come first, whoever was measured first.
        figures.sort_by_key(|figure| colour(figure));
        let group_of = |figure: &Figure| {
            let group = self.each.and_then(|label| text(figure, label));
            group.unwrap_or_default()
        };
        let mut panel = Panel {
            id: self.id,
            title: self.title,
            said: self.said,
            wide: self.wide,
            plots: Vec::new(),
            figures: Vec::new(),
        };
        let mut groups: Vec<_> = results.iter().filter(is_shown).map(group_of).collect();
        groups = distinct(groups.into_iter());
        for group in groups {
            let of_group = figures.iter().copied();
            let of_group = of_group.filter(|figure| group_of(figure) == group);
            if let Some((plot, of_plot)) = self.plot(of_group.collect()) {
                panel.plots.push(Drawn {
                    group: label_shown(self.each.unwrap_or_default(), &group),
                    outcome: outcome(&of_plot).unwrap_or_default(),
                    notes: notes(&of_plot, &self.without()),
                    plot,
                });
                panel.figures.extend(of_plot);
            }
        }
        (!panel.plots.is_empty()).then_some(panel)
    }

    /// Labels that all figures of a plot have, or that nobody has to be told.
    fn without(&self) -> Vec<&str> {
        let only = self.only.map(|(label, _)| label);
        let known = [self.each, only].into_iter().flatten();
        known.chain(self.without.iter().copied()).collect()
    }

    /// The plot, and the figures that are in it.
    fn plot<'s>(&self, mut figures: Vec<&'s Figure>) -> Option<(Plot, Vec<&'s Figure>)> {
        let unit = figures.first()?.unit.clone();
        // One axis has one unit.
        figures.retain(|figure| figure.unit == unit);
        let plot = match self.kind {
            Kind::Bars => rows(&mut figures, &unit, false, &self.without()),
            Kind::Ranges => rows(&mut figures, &unit, true, &self.without()),
            Kind::Over {
                x,
                x_label,
                y_label,
                y_log,
                percentiles,
            } => {
                figures.retain(|figure| number(figure, x).is_some());
                Plot::Lines(Lines {
                    x: Axis {
                        label: x_label.to_owned(),
                        log: true,
                    },
                    y: Axis {
                        label: format!("{}, {y_label}", unit_shown(&unit)),
                        log: y_log,
                    },
                    lines: lines(&figures, x, percentiles),
                })
            }
            Kind::Stacks { rows, parts } => stacks(&figures, &unit, rows, parts),
        };
        (plot.values() > 0).then_some((plot, figures))
    }
}

fn rows(figures: &mut Vec<&Figure>, unit: &str, ranges: bool, without: &[&str]) -> Plot {
    // Servers best first; cases in their own order.
    if figures
        .iter()
        .any(|figure| text(figure, "server").is_some())
    {
        figures.sort_by(|a, b| {
            let order = a.median.total_cmp(&b.median);
            if a.better == Better::Higher {
                order.reverse()
            } else {
                order
            }
        });
    }
    // On a logarithm only what is above nothing has a place.
    figures.retain(|figure| !ranges || figure.median > 0.0);
    let differing = Differing::among(figures, without);
    let row = |figure: &&Figure| Row {
        label: differing.of(figure),
        series: colour(figure),
        shape: if ranges {
            Shape::Range {
                median: figure.median,
                p99: figure.p99,
            }
        } else {
            Shape::Bar {
                median: figure.median,
                quartiles: quartiles(&figure.raw),
                gate: figure.gate.map(|gate| gate.limit),
                aim: figure.aim.map(|aim| aim.limit),
            }
        },
    };
    Plot::Rows(Rows {
        axis: unit_shown(unit),
        log: ranges,
        rows: figures.iter().map(row).collect(),
        parts: Vec::new(),
    })
}

fn stacks(figures: &[&Figure], unit: &str, rows: &str, parts: &str) -> Plot {
    let values = |label| distinct(figures.iter().filter_map(|figure| text(figure, label)));
    let names = values(parts);
    let row = |value: &String| {
        let of_row = || {
            figures
                .iter()
                .filter(|figure| text(figure, rows).as_ref() == Some(value))
        };
        let parts = names.iter().enumerate().filter_map(|(i, part)| {
            let figure = of_row().find(|figure| text(figure, parts).as_ref() == Some(part))?;
            Some((i, figure.median))
        });
        Row {
            label: match value.parse() {
                Ok(1.0) => "1 name".to_owned(),
                Ok(number) => format!("{} {rows}", about(number)),
                Err(_) => label_shown(rows, value),
            },
            series: 0,
            shape: Shape::Stack(parts.collect()),
        }
    };
    Plot::Rows(Rows {
        axis: unit_shown(unit),
        log: false,
        rows: values(rows).iter().map(row).collect(),
        parts: names.iter().map(|name| label_shown(parts, name)).collect(),
    })
}

/// What is drawn of a figure for each value of a line.
type Of = (&'static str, fn(&Figure) -> Option<f64>);

fn lines(figures: &[&Figure], x: &str, percentiles: bool) -> Vec<Line> {
    let of: &[Of] = if percentiles {
        &[
            ("p50", |figure| Some(figure.median)),
            ("p99", |figure| Some(figure.p99)),
            ("p99.9", |figure| figure.p999),
        ]
    } else {
        &[("", |figure| Some(figure.median))]
    };
    let differing = Differing::among(figures, &[x]);
    let mut lines = Vec::new();
    for name in distinct(figures.iter().map(|figure| differing.of(figure))) {
        for (percentile, of) in of {
            let of_line = figures.iter().filter(|figure| differing.of(figure) == name);
            let mut points: Vec<_> = of_line
                .filter_map(|figure| {
                    Some(Point {
                        x: number(figure, x)?,
                        y: of(figure)?,
                        spread: (!percentiles).then(|| quartiles(&figure.raw)),
                    })
                })
                .collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            // A line needs two.
            if points.len() > 1 {
                let label = match differing.is_needed() || percentile.is_empty() {
                    true => format!("{name} {percentile}").trim_end().to_owned(),
                    false => (*percentile).to_owned(),
                };
                lines.push(Line {
                    label,
                    series: lines.len(),
                    points,
                });
            }
        }
    }
    lines
}

/// Notes of figures, each with whom it is about.
fn notes(figures: &[&Figure], without: &[&str]) -> Vec<String> {
    let differing = Differing::among(figures, without);
    let notes = distinct(
        figures
            .iter()
            .filter_map(|figure| Some(figure.note.as_ref()?.to_string())),
    );
    let about = |note: String| {
        let of_note = figures
            .iter()
            .filter(|figure| figure.note.as_deref() == Some(&note));
        let whom = distinct(of_note.map(|figure| differing.of(figure)));
        let all = whom.len() == distinct(figures.iter().map(|figure| differing.of(figure))).len();
        if all {
            capital(&note) + "."
        } else {
            format!("{}: {note}.", whom.join("; "))
        }
    };
    notes.into_iter().map(about).collect()
}

/// As a sentence begins.
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(characters).collect()
}

/// How many times the best of the others, and CoreDNS, Peak's figure is.
fn outcome(figures: &[&Figure]) -> Option<String> {
    // Of several figures of one server, none is the one to compare.
    let servers = distinct(figures.iter().filter_map(|figure| text(figure, "server")));
    if servers.len() != figures.len() {
        return None;
    }
    let median = |wanted: &str| {
        let mut figures = figures.iter();
        let figure = figures.find(|figure| text(figure, "server").as_deref() == Some(wanted))?;
        Some(figure.median)
    };
    // Rows have the best first.
    let best = figures.iter().find_map(|figure| {
        let server = text(figure, "server")?;
        (!server.starts_with("peak")).then_some(server)
    })?;
    let ours = median("peak")?;
    let times = |server: &str| {
        let times = ours / median(server)?;
        Some(format!(
            "{} × {}",
            shown(times),
            label_shown("server", server)
        ))
    };
    let mut servers = vec![&*best];
    if best != "coredns" && median("coredns").is_some() {
        servers.push("coredns");
    }
    let all: Option<Vec<_>> = servers.into_iter().map(times).collect();
    Some(format!("Peak: {}", all?.join(" · ")))
}

/// What tells the figures of one plot apart.
struct Differing {
    names: bool,
    labels: Vec<String>,
}

impl Differing {
    /// Some labels nobody has to be told.
    fn among(figures: &[&Figure], without: &[&str]) -> Self {
        let differs = |of: &dyn Fn(&Figure) -> Option<String>| {
            figures.windows(2).any(|pair| of(pair[0]) != of(pair[1]))
        };
        let all = figures.iter().flat_map(|figure| figure.labels.keys());
        let mut labels = distinct(all.map(ToString::to_string));
        labels
            .retain(|label| !without.contains(&&**label) && differs(&|figure| text(figure, label)));
        let told = figures.iter().map(|figure| {
            let values = labels.iter().map(|label| text(figure, label));
            values.collect::<Vec<_>>()
        });
        let told = told.collect::<BTreeSet<_>>().len();
        Self {
            // Where labels say it all, a name adds nothing.
            names: told < figures.len() && differs(&|figure| Some(figure.name.to_string())),
            labels,
        }
    }

    /// Whether there is anything to tell.
    fn is_needed(&self) -> bool {
        self.names || !self.labels.is_empty()
    }

    fn of(&self, figure: &Figure) -> String {
        let shown = |label: &str| Some(label_shown(label, &text(figure, label)?));
        let differing = |is_server: bool| {
            let labels = self.labels.iter();
            labels.filter(move |label| (*label == "server") == is_server)
        };
        // Who it is, what it is, how it was asked.
        let server = differing(true).filter_map(|label| shown(label));
        let name = self.names.then(|| name_shown(&figure.name));
        let labels = differing(false).filter_map(|label| shown(label));
        let all: Vec<_> = server.chain(name).chain(labels).collect();
        if all.is_empty() {
            shown("server").unwrap_or_else(|| name_shown(&figure.name))
        } else {
            all.join(", ")
        }
    }
}

/// Whether all these labels are as given.
fn has(figure: &Figure, labels: &[(&str, &str)]) -> bool {
    labels
        .iter()
        .all(|(label, value)| text(figure, label).as_deref() == Some(value))
}

fn text(figure: &Figure, label: &str) -> Option<String> {
    figure.labels.get(label).map(ToString::to_string)
}

fn number(figure: &Figure, label: &str) -> Option<f64> {
    text(figure, label)?.parse().ok()
}

/// Each once, where it comes first.
fn distinct(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts.filter(|text| seen.insert(text.clone())).collect()
}

/// Peak's own colour, its fallback's, and one for all others.
fn colour(figure: &Figure) -> usize {
    const OTHERS: usize = 7;
    const NOT_OURS: [&str; 3] = ["yardstick", "hash_map", "memory"];
    match text(figure, "server").as_deref() {
        Some("peak") => 0,
        Some("peak-fallback") => 1,
        Some(_) => OTHERS,
        None if NOT_OURS.contains(&&*figure.name) || figure.name.starts_with("floor") => OTHERS,
        None => 0,
    }
}

/// First and third quartile.
pub(super) fn quartiles(raw: &Raw) -> (f64, f64) {
    let quantile = |quantile: f64| match raw {
        Raw::Samples(samples) => {
            let mut sorted = samples.clone();
            sorted.sort_by(f64::total_cmp);
            let at = sorted.len().saturating_sub(1) as f64 * quantile;
            sorted.get(at.round() as usize).copied()
        }
        Raw::Histogram(buckets) => {
            let total: u64 = buckets.iter().map(|(_, count)| count).sum();
            let mut seen = 0;
            let mut buckets = buckets.iter();
            let bucket = buckets.find(|(_, count)| {
                seen += count;
                seen as f64 >= total as f64 * quantile
            });
            bucket.map(|(value, _)| *value)
        }
    };
    (
        quantile(0.25).unwrap_or_default(),
        quantile(0.75).unwrap_or_default(),
    )
}

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
        ("sender", "frames") => "frames made in the kernel",
        (_, value) => return name_shown(value),
    };
    shown.to_owned()
}

/// What an axis says of a unit.
fn unit_shown(unit: &str) -> String {
    match unit {
        "ns" => "nanoseconds",
        "us" | "µs" => "microseconds",
        "ms" => "milliseconds",
        "s" => "seconds",
        "MB" => "megabytes",
        "x" => "times",
        "1/s" | "answers/s" => "answers a second",
        "answers/CPU-s" => "answers for a processor's second",
        unit => unit,
    }
    .to_owned()
}
