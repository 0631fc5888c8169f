//! What the page says, made of what was measured.

use super::{
    Source,
    chapters::{BEGINNING, CHAPTERS, Chapter, FIRST, First, Number},
    panel::{Panel, has},
};
use crate::{
    number::{short, shown},
    report::{Figure, Machine, Report},
};

/// All that is told, in its order.
pub(super) struct Page<'s> {
    pub(super) sources: &'s [Source],
    pub(super) tiles: Vec<Tile>,
    /// What to look at first, if it was measured.
    pub(super) beginning: Option<(Panel<'s>, &'s Source)>,
    /// On what it was measured, in few words.
    pub(super) setting: String,
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
            beginning: by("peers")
                .and_then(|source| Some((BEGINNING.panel(&source.report.results)?, source))),
            setting: setting(sources),
            limits: limits(sources),
            sections: CHAPTERS
                .iter()
                .filter(|chapter| !chapter.optional || by(chapter.benchmark).is_some())
                .map(|chapter| Section::new(chapter, by(chapter.benchmark)))
                .collect(),
        }
    }
}

fn setting(sources: &[Source]) -> String {
    let machine = sources.first().map(|source| &source.report.machine);
    machine.map_or_else(String::new, |machine| {
        let of = if machine.hypervisor {
            " of a virtual machine"
        } else {
            ""
        };
        format!("{}{of}, over veth", processors(machine))
    })
}

fn processors(machine: &Machine) -> String {
    match machine.processors {
        1 => "one processor".to_owned(),
        2 => "two processors".to_owned(),
        n => format!("{n} processors"),
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
        limits.push(format!(
            "There are {}: one for the responder, the rest for who asks. Nothing here shows how anything scales over cores; read \
             the figures as those of a core.",
            processors(machine)
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
