//! The page as Markdown, with its pictures beside it.

use std::{
    fmt::Write as _,
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    Source,
    contents::{Page, Section},
    panel::{Drawn, Panel, quartiles},
    plot::Told,
};
use crate::{
    number::shown,
    report::{Figure, Gate},
};

const WIDTH: i32 = 720;
/// Where the pictures are, beside the text.
const PICTURES: &str = "performance";

/// Writes performance.md into a folder, and its pictures into one below it, in which nothing else stays.
///
/// # Errors
/// A plot can't be drawn, or a file can't be written.
pub(super) fn write(page: &Page, folder: &Path) -> Result<()> {
    let pictures = folder.join(PICTURES);
    // One that isn't made any more shall not be taken for one that is.
    for entry in fs::read_dir(&pictures).into_iter().flatten().flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "svg")
        {
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    let mut text = format!(
        "# Performance\n\n\
         <!-- Made by `cargo xtask bench report` from bench/results: what is changed here is lost. -->\n\n\
         How fast Peak is, and how that was measured. Each figure names the command that gives it again and the samples that it was made \
         of. `cargo xtask bench report` makes the same as one HTML page. Measured on {}: \
         [what that means](#before-you-believe-any-of-it).\n",
        page.setting
    );
    if !page.tiles.is_empty() {
        text += "\n| | | gate | aim |\n|---|---|---|---|\n";
        for tile in &page.tiles {
            let said = |reached| match reached {
                Some(true) => "reached",
                Some(false) => "**missed**",
                None => "",
            };
            writeln!(
                text,
                "| **{}** {} | [{}](#{}) | {} | {} |",
                tile.value,
                tile.unit,
                tile.what,
                anchor(section_title(page, tile.section)),
                said(tile.gate),
                said(tile.aim)
            )?;
        }
    }
    if let Some((panel, source)) = &page.beginning {
        self::panel(&mut text, panel, source, folder)?;
    }
    text += "\n## Before you believe any of it\n\n";
    for limit in &page.limits {
        writeln!(text, "- {limit}")?;
    }
    text += "\n| benchmark | when | commit | machine | command |\n|---|---|---|---|---|\n";
    for Source { report, .. } in page.sources {
        let machine = &report.machine;
        writeln!(
            text,
            "| {} | {} | `{}` | {}, {} processors, Linux {} | `{}` |",
            report.benchmark,
            report.time,
            report.commit,
            machine.processor,
            machine.processors,
            machine.kernel,
            report.command
        )?;
    }
    for section in &page.sections {
        self::section(&mut text, section, folder)?;
    }
    super::write(&folder.join("performance.md"), &text)
}

fn section_title<'p>(page: &'p Page, id: &str) -> &'p str {
    let mut sections = page.sections.iter();
    sections
        .find(|section| section.id == id)
        .map_or("", |section| section.title)
}

/// What a heading is linked by.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn section(text: &mut String, section: &Section, folder: &Path) -> Result<()> {
    let Section {
        id,
        title,
        method,
        source,
        panels,
        missing,
        judged,
    } = section;
    write!(text, "\n## {title}\n\n")?;
    let Some(source) = source else {
        writeln!(text, "Not measured yet: `cargo xtask bench {id}` does it.")?;
        return Ok(());
    };
    writeln!(text, "{method}")?;
    if !judged.is_empty() {
        *text += "\n| figure | least | median | p99 | unit | gate | aim |\n|---|---|---|---|---|---|---|\n";
        for figure in judged {
            writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                name(figure),
                shown(figure.min),
                shown(figure.median),
                shown(figure.p99),
                figure.unit,
                limit(figure.gate),
                limit(figure.aim)
            )?;
        }
    }
    for panel in panels {
        self::panel(text, panel, source, folder)?;
    }
    if !missing.is_empty() {
        writeln!(text, "\nNot in these results: {}.", missing.join("; "))?;
    }
    Ok(())
}

fn limit(gate: Option<Gate>) -> String {
    match gate {
        Some(Gate {
            limit,
            reached: true,
        }) => format!("{} reached", shown(limit)),
        Some(Gate {
            limit,
            reached: false,
        }) => format!("{} **missed**", shown(limit)),
        None => String::new(),
    }
}

fn panel(text: &mut String, panel: &Panel, source: &Source, folder: &Path) -> Result<()> {
    let benchmark = &source.report.benchmark;
    write!(text, "\n### {}\n\n{}\n", panel.title, panel.said)?;
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
        let name = format!("{benchmark}-{}-{i}", panel.id);
        let title = if group.is_empty() {
            panel.title.to_owned()
        } else {
            format!("{}: {group}", panel.title)
        };
        let picture = plot.draw(
            WIDTH,
            &Told {
                id: &name,
                title: &title,
                description: panel.said,
                style: Some(&style()),
            },
        )?;
        super::write(
            &folder.join(PICTURES).join(format!("{name}.svg")),
            &picture.into_string(),
        )?;
        if !group.is_empty() {
            write!(text, "\n**{group}**\n")?;
        }
        if !outcome.is_empty() {
            write!(text, "\n{outcome}\n")?;
        }
        write!(text, "\n![{title}]({PICTURES}/{name}.svg)\n")?;
        for note in notes {
            write!(text, "\n{note}\n")?;
        }
    }
    *text += "\n<details><summary>The numbers</summary>\n\n\
              | figure | unit | median | middle half | p99 | samples |\n|---|---|---|---|---|---|\n";
    for figure in &panel.figures {
        let (low, high) = quartiles(&figure.raw);
        writeln!(
            text,
            "| {} | {} | {} | {}–{} | {} | {} {} |",
            name(figure),
            figure.unit,
            shown(figure.median),
            shown(low),
            shown(high),
            shown(figure.p99),
            figure.samples,
            figure.of
        )?;
    }
    writeln!(
        text,
        "\n</details>\n\nAgain: `{}`. Every sample: [{}]({}).",
        source.report.command,
        source
            .file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy(),
        relative(folder, &source.file)?.display()
    )?;
    Ok(())
}

/// Name and labels, as one code span.
fn name(figure: &Figure) -> String {
    let labels = figure
        .labels
        .iter()
        .map(|(name, value)| format!(" {name}={value}"));
    format!("`{}{}`", figure.name, labels.collect::<String>())
}

/// The page's colours, in a picture by itself.
fn style() -> String {
    let page = include_str!("page.css");
    // Its beginning is the colours, for light and for dark.
    let end = page.find("* {").unwrap_or(page.len());
    page[..end].to_owned() + "svg { background: var(--paper); }"
}

/// The way from a folder to a file.
fn relative(folder: &Path, file: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let [from, to] = [folder, file].map(fs::canonicalize);
    let (from, to) = (from?, to?);
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| Component::ParentDir);
    Ok(up.chain(to.components().skip(shared)).collect())
}
