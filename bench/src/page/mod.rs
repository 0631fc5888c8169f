//! `cargo xtask bench report`: what was measured, drawn, as a page that needs nothing else and as docs/performance.md.

mod chapters;
mod contents;
mod html;
mod markdown;
mod panel;
mod plot;
mod words;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use self::contents::Page;
use crate::report::Report;

/// Draws what was measured: one HTML page that works offline, and docs/performance.md
///
/// Both are made of the same results. The page has them inside, every sample too, so that it can be handed on alone.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Results of benchmarks [default: the figures of record, bench/results/*.json]
    files: Vec<PathBuf>,
    /// Where the page goes [default: target/bench/report.html]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The folder for performance.md and its pictures [default: docs, and nowhere for other results than those of record]
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

/// Results, and where they are from.
struct Source {
    report: Report,
    file: PathBuf,
    /// As it stands in the file.
    text: String,
}

/// # Errors
/// There are no results or they can't be read, two files are of one benchmark, or what is made can't be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("bench/ is in the workspace")?;
    let of_record = args.files.is_empty();
    let files = if of_record {
        figures_of_record(&workspace.join("bench/results"))?
    } else {
        args.files.clone()
    };
    let sources = files
        .into_iter()
        .map(Source::read)
        .collect::<Result<Vec<_>>>()?;
    for (i, source) in sources.iter().enumerate() {
        let same = sources[..i]
            .iter()
            .find(|other| other.report.benchmark == source.report.benchmark);
        if let Some(same) = same {
            anyhow::bail!(
                "{} and {} are both of the benchmark {}: give one of them",
                same.file.display(),
                source.file.display(),
                source.report.benchmark
            );
        }
    }
    let page = Page::new(&sources);

    let out = match &args.out {
        Some(out) => out.clone(),
        None => target()?.join("bench/report.html"),
    };
    write(&out, &html::page(&page)?)?;
    eprintln!("the page is {}", out.display());

    let docs = args
        .docs
        .clone()
        .or_else(|| of_record.then(|| workspace.join("docs")));
    if let Some(docs) = docs {
        markdown::write(&page, &docs)?;
        eprintln!(
            "the same as Markdown is {}",
            docs.join("performance.md").display()
        );
    }
    Ok(())
}

/// The folder of builds, in which this program is.
fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("this program has no path")?;
    let target = program.ancestors().nth(2);
    target.map(Path::to_owned).context("it is in target/")
}

fn figures_of_record(folder: &Path) -> Result<Vec<PathBuf>> {
    let remedy = || {
        format!(
            "no figures of record in {}: measure (`cargo xtask bench all`) and name the files that it leaves in target/bench",
            folder.display()
        )
    };
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(remedy)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    ensure!(!files.is_empty(), remedy());
    files.sort();
    Ok(files)
}

impl Source {
    fn read(file: PathBuf) -> Result<Self> {
        let report = Report::read(&file)?;
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self { report, file, text })
    }
}

/// Writes a file, and makes its folder.
fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
