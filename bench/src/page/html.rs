//! The page as HTML that needs nothing beside it: no script, no other file, no network.

use anyhow::Result;
use base64::{Engine, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Source,
    contents::{Page, Section, Tile},
    panel::{Drawn, Panel, quartiles},
    plot::Told,
};
use crate::{
    number::shown,
    report::{Figure, Gate, Label},
};

const STYLE: &str = include_str!("page.css");

/// Pixels of a plot that stands alone, of one beside another, and of one on a phone.
const ALONE: i32 = 960;
const BESIDE: i32 = 480;
const PHONE: i32 = 320;

/// # Errors
/// A plot can't be drawn.
pub(super) fn page(page: &Page) -> Result<String> {
    let sections: Vec<Markup> = page.sections.iter().map(section).collect::<Result<_>>()?;
    let beginning = page.beginning.as_ref();
    let beginning = beginning
        .map(|(panel, source)| self::panel(panel, source))
        .transpose()?;
    let markup = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Or browsers ask the server for one.
                link rel="icon" href="data:,";
                title { "Peak: how fast it is" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a .skip href="#main" { "Skip to the figures" }
                header {
                    h1 { "How fast Peak is, and how that was measured" }
                    p .lead {
                        "Peak answers DNS queries for Kubernetes services from the network driver. Every figure below names the command "
                        "that gives it again and the samples that it was made of, which are in this file. Measured on " (page.setting) ": "
                        a href="#limits" { "what that means" } "."
                    }
                    nav aria-label="Sections" {
                        ul {
                            @for section in &page.sections {
                                li { a href={ "#" (section.id) } { (section.title) } }
                            }
                            li { a href="#raw" { "Raw data" } }
                        }
                    }
                }
                main id="main" {
                    @if !page.tiles.is_empty() {
                        section .first aria-labelledby="short" {
                            h2 id="short" { "In short" }
                            ul .tiles {
                                @for tile in &page.tiles { (self::tile(tile)) }
                            }
                            @if let Some(beginning) = &beginning { (beginning) }
                        }
                    }
                    section aria-labelledby="limits" {
                        h2 id="limits" { "Before you believe any of it" }
                        ul .limits {
                            @for limit in &page.limits { li { (limit) } }
                        }
                        (machines(page.sources))
                    }
                    @for section in &sections { (section) }
                    (raw(page.sources))
                }
                footer {
                    p { "Made by " code { "cargo xtask bench report" } ". " code { "cargo xtask bench compare OLD NEW" }
                        " says what changed between two runs, and whether their spread lets one say so." }
                }
            }
        }
    };
    Ok(markup.into_string())
}

fn tile(tile: &Tile) -> Markup {
    html! {
        li {
            span .value { (tile.value) @if !tile.unit.is_empty() { " " small { (tile.unit) } } }
            span .what { a href={ "#" (tile.section) } { (tile.what) } }
            p .judged { (judged("gate", tile.gate)) (judged("aim", tile.aim)) }
        }
    }
}

/// A word on a limit, if there is one: the sign and the word say it, the colour only repeats it.
fn judged(limit: &str, reached: Option<bool>) -> Markup {
    html! {
        @match reached {
            Some(true) => span .yes { "✓ " (limit) " reached" },
            Some(false) => span .no { "✗ " (limit) " missed" },
            None => {},
        }
    }
}

fn machines(sources: &[Source]) -> Markup {
    let machine = sources.first().map(|source| &source.report.machine);
    html! {
        @if let Some(machine) = machine {
            p .about {
                (machine.processor) ", " (machine.processors) " processors, "
                (shown(machine.memory as f64 / f64::from(1 << 30))) " GiB of memory, Linux " (machine.kernel)
                @if machine.hypervisor { ", a virtual machine" }
                "."
            }
        }
        details {
            summary { "Runs, versions and the processor's mitigations" }
            (table("Runs", &["benchmark", "when", "commit", "kernel", "command"], sources.iter().map(|Source { report, .. }| html! {
                th scope="row" { (report.benchmark) }
                td { (report.time) }
                td { code { (report.commit) } }
                td { (report.machine.kernel) }
                td { code { (report.command) } }
            })))
            (table("Versions of what took part", &["benchmark", "what", "version"], sources.iter().flat_map(|Source { report, .. }| {
                report.versions.iter().map(|(name, version)| html! {
                    th scope="row" { (report.benchmark) }
                    td { (name) }
                    td .wrap { (version) }
                })
            })))
            @if let Some(machine) = machine {
                (table("The processor's vulnerabilities, and what the kernel does about them", &["vulnerability", "state"],
                    machine.mitigations.iter().map(|(name, state)| html! {
                        th scope="row" { (name) }
                        td .wrap { (state) }
                    })))
            }
        }
    }
}

/// Columns of numbers, which are flush right.
const NUMBERS: [&str; 7] = [
    "median",
    "middle half",
    "least",
    "p99",
    "p99.9",
    "most",
    "yardsticks",
];

/// A table that scrolls in itself where there is too little room.
fn table(caption: &str, columns: &[&str], rows: impl Iterator<Item = Markup>) -> Markup {
    html! {
        div .scroll role="region" aria-label=(caption) tabindex="0" {
            table {
                caption { (caption) }
                thead { tr { @for column in columns { th scope="col" .number[NUMBERS.contains(column)] { (column) } } } }
                tbody { @for row in rows { tr { (row) } } }
            }
        }
    }
}

fn section(section: &Section) -> Result<Markup> {
    let Section {
        id,
        title,
        method,
        source,
        panels,
        missing,
        judged,
    } = section;
    let Some(source) = source else {
        return Ok(html! {
            section id=(id) aria-labelledby={ (id) "-title" } {
                h2 id={ (id) "-title" } { (title) }
                p .missing { "Not measured in what this page was made of. " code { "cargo xtask bench " (id) } " does it." }
            }
        });
    };
    let panels: Vec<Markup> = panels
        .iter()
        .map(|panel| self::panel(panel, source))
        .collect::<Result<_>>()?;
    let report = &source.report;
    Ok(html! {
        section id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (title) }
            p .about { (method) }
            @if !judged.is_empty() {
                div .judgements { (table("Gates and aims", &["figure", "least", "median", "p99", "unit", "gate", "aim"], judged.iter().map(|figure| html! {
                    th scope="row" { (name(figure)) }
                    td .number { (shown(figure.min)) }
                    td .number { (shown(figure.median)) }
                    td .number { (shown(figure.p99)) }
                    td { (figure.unit) }
                    td { (limit(figure.gate)) }
                    td { (limit(figure.aim)) }
                }))) }
            }
            div .panels { @for panel in &panels { (panel) } }
            @if !missing.is_empty() {
                p .missing { "Not in these results: " (missing.join("; ")) "." }
            }
            details {
                summary { "Every figure of this benchmark" }
                (figures(&report.results.iter().collect::<Vec<_>>(), &format!("Every figure of {id}")))
                (from(source))
            }
        }
    })
}

/// The command and the samples behind figures.
fn from(Source { report, .. }: &Source) -> Markup {
    html! {
        p .from {
            "Again: " code { (report.command) } " at commit " code { (report.commit) } ". Every sample: "
            a href={ "#raw-" (report.benchmark) } { (report.benchmark) ".json" } "."
        }
    }
}

fn limit(gate: Option<Gate>) -> Markup {
    html! {
        @if let Some(Gate { limit, reached }) = gate {
            (shown(limit)) " "
            @if reached { span .yes { "✓ reached" } } @else { span .no { "✗ missed" } }
        }
    }
}

fn panel(panel: &Panel, source: &Source) -> Result<Markup> {
    let id = format!("{}-{}", source.report.benchmark, panel.id);
    let wide = if panel.wide { ALONE } else { BESIDE };
    let mut plots = Vec::new();
    for (
        i,
        Drawn {
            group,
            outcome,
            notes,
            plot,
        },
    ) in panel.plots.iter().enumerate()
    {
        let title = if group.is_empty() {
            panel.title.to_owned()
        } else {
            format!("{}: {group}", panel.title)
        };
        let draw = |width, variant: &str| {
            plot.draw(
                width,
                &Told {
                    id: &format!("{id}-{i}-{variant}"),
                    title: &title,
                    description: &format!("{} The numbers are in the table below.", panel.said),
                    style: None,
                },
            )
        };
        plots.push(html! {
            div {
                @if !group.is_empty() { h4 { (group) } }
                @if !outcome.is_empty() { p .outcome { (outcome) } }
                div .wide { (draw(wide, "wide")?) }
                div .narrow { (draw(PHONE, "narrow")?) }
                @for note in notes { p .note { (note) } }
            }
        });
    }
    Ok(html! {
        figure id=(id) .whole[panel.wide || plots.len() > 1] aria-labelledby={ (id) "-title" } {
            figcaption {
                h3 id={ (id) "-title" } { (panel.title) }
                p { (panel.said) }
            }
            div .plots .many[plots.len() > 1] { @for plot in &plots { (plot) } }
            details {
                summary { "The numbers" }
                (figures(&panel.figures, panel.title))
            }
            (from(source))
        }
    })
}

/// Name and labels.
fn name(figure: &Figure) -> String {
    let labels = figure
        .labels
        .iter()
        .map(|(name, value): (_, &Label)| format!(" {name}={value}"));
    figure.name.to_string() + &labels.collect::<String>()
}

/// All that is known of figures but for their samples.
fn figures(figures: &[&Figure], caption: &str) -> Markup {
    let columns = [
        "figure",
        "unit",
        "median",
        "middle half",
        "least",
        "p99",
        "p99.9",
        "most",
        "samples",
        "yardsticks",
        "gate",
        "aim",
        "note",
    ];
    table(caption, &columns, figures.iter().map(|figure| {
        let (low, high) = quartiles(&figure.raw);
        html! {
            th scope="row" { (name(figure)) }
            td { (figure.unit) }
            td .number { (shown(figure.median)) }
            td .number { (shown(low)) "–" (shown(high)) }
            td .number { (shown(figure.min)) }
            td .number { (shown(figure.p99)) }
            td .number { @if let Some(p999) = figure.p999 { (shown(p999)) } }
            td .number { (shown(figure.max)) }
            td { (figure.samples) " " (figure.of) }
            td .number { @if let Some(yardsticks) = figure.yardsticks { (shown(yardsticks.median)) } }
            td { (limit(figure.gate)) }
            td { (limit(figure.aim)) }
            td .wrap { @if let Some(note) = &figure.note { (note) } }
        }
    }))
}

/// The files themselves, within this one.
fn raw(sources: &[Source]) -> Markup {
    html! {
        section id="raw" aria-labelledby="raw-title" {
            h2 id="raw-title" { "Raw data" }
            p .about { "Every sample of every figure, as the benchmark wrote it. The files are inside this page: following a link saves one." }
            ul {
                @for Source { report, text, .. } in sources {
                    li id={ "raw-" (report.benchmark) } {
                        a download={ (report.benchmark) ".json" } href={ "data:application/json;base64," (BASE64_STANDARD.encode(text)) } {
                            (report.benchmark) ".json"
                        }
                        " (" (shown(text.len() as f64 / 1e3)) " kB, " (report.results.len()) " figures), of " (report.time) ": "
                        code { (report.command) }
                    }
                }
            }
        }
    }
}
