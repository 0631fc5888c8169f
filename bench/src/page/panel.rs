//! Figures become plots.

use std::collections::BTreeSet;

use super::{
    chapters::{Kind, Shown},
    plot::{Axis, Line, Lines, Plot, Point, Row, Rows, Shape},
    words::{capital, label_shown, name_shown, unit_shown},
};
use crate::{
    number::{about, shown},
    report::{Better, Figure, Raw},
};

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

impl Shown {
    /// Nothing without figures.
    pub(super) fn panel<'s>(&self, results: &'s [Figure]) -> Option<Panel<'s>> {
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
                    notes: notes(&of_plot, &self.shared()),
                    plot,
                });
                panel.figures.extend(of_plot);
            }
        }
        (!panel.plots.is_empty()).then_some(panel)
    }

    /// Labels that all figures of a plot have, or as good as have.
    fn shared(&self) -> Vec<&str> {
        let only = self.only.map(|(label, _)| label);
        [self.each, only].into_iter().flatten().collect()
    }

    /// The plot, and the figures that are in it.
    fn plot<'s>(&self, mut figures: Vec<&'s Figure>) -> Option<(Plot, Vec<&'s Figure>)> {
        let unit = figures.first()?.unit.clone();
        // One axis has one unit.
        figures.retain(|figure| figure.unit == unit);
        let plot = match self.kind {
            Kind::Bars => rows(&mut figures, &unit, false, &self.shared()),
            Kind::Ranges => rows(&mut figures, &unit, true, &self.shared()),
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
                    lines: lines(&figures, x, percentiles, y_log),
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

fn lines(figures: &[&Figure], x: &str, percentiles: bool, log: bool) -> Vec<Line> {
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
            // On a logarithm only what is above nothing has a place.
            points.retain(|point| !log || point.y > 0.0);
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
        // Who asks, before how fast.
        labels.sort_by_key(|label| label == "load");
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
pub(super) fn has(figure: &Figure, labels: &[(&str, &str)]) -> bool {
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
