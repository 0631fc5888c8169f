//! What benchmarks left is drawn and compared: the page is opened in a real browser, without a network.

mod browser;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result};
use browser::{Browser, PHONE, Scheme, WIDE};
use peak_tests::{program, scratch};
use serde_json::Value;
use tempfile::TempDir;

/// Made-up results of each benchmark.
const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/report");
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn samples() -> Result<Vec<PathBuf>> {
    results(Path::new(SAMPLES))
}

/// The results in a folder.
fn results(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn bench(verb: &str, files: &[PathBuf], options: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("peak-bench")?);
    command.arg(verb).args(files).args(options);
    command.env_remove("NO_COLOR").output().context("it runs")
}

/// The folder with the page and the Markdown of it.
fn drawn(files: &[PathBuf]) -> Result<TempDir> {
    let folder = scratch()?;
    let page = folder.path().join("report.html");
    let docs = folder.path().join("docs");
    let text = |path: &Path| path.to_str().map(ToOwned::to_owned).context("UTF-8");
    let output = bench(
        "report",
        files,
        &["--out", &text(&page)?, "--docs", &text(&docs)?],
    )?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(folder)
}

/// Everything that a page has to be, of whatever results.
fn check(browser: &Browser, folder: &Path, files: &[PathBuf]) -> Result<()> {
    browser.open(&folder.join("report.html"))?;

    let mut backgrounds = Vec::new();
    for (width, scheme) in [
        (WIDE, Scheme::Light),
        (WIDE, Scheme::Dark),
        (PHONE, Scheme::Light),
        (PHONE, Scheme::Dark),
    ] {
        browser.show(width, scheme)?;
        let seen = browser.look()?;
        let what = format!("{width} px, {scheme:?}");
        assert_eq!(
            seen["complaints"],
            Value::from(Vec::<Value>::new()),
            "{what}"
        );
        let plots = seen["plots"].as_u64().context("a number")?;
        assert!(plots > 0, "no plots: {what}");
        backgrounds.push((seen["background"].clone(), seen["mark"].clone()));
    }
    let [light, dark, light_phone, dark_phone] = &*backgrounds else {
        panic!("four looks, not {backgrounds:?}");
    };
    assert_ne!(light.0, dark.0, "the background is the same in the dark");
    assert_ne!(light.1, dark.1, "marks are the same in the dark");
    assert_eq!((light, dark), (light_phone, dark_phone));

    // All that was measured is inside, as it was.
    for file in files {
        let inside = browser.saved(
            file.file_name()
                .and_then(|name| name.to_str())
                .context("a name")?,
        )?;
        assert_eq!(inside, fs::read_to_string(file)?, "{}", file.display());
    }
    assert_eq!(browser.log()?, [""; 0], "the console has errors");

    // Every picture that Markdown shows is there.
    let markdown = fs::read_to_string(folder.join("docs/performance.md"))?;
    let pictures: Vec<_> = markdown.split("](performance/").skip(1).collect();
    assert!(!pictures.is_empty(), "{markdown}");
    for picture in pictures {
        let name = picture.split(')').next().unwrap_or_default();
        let picture = fs::read_to_string(folder.join("docs/performance").join(name))?;
        assert!(
            picture.contains("class=\"mark\"") && picture.contains("prefers-color-scheme: dark"),
            "{name}"
        );
    }
    Ok(())
}

#[test]
fn page_is_whole_in_a_browser_without_a_network() -> Result<()> {
    let files = samples()?;
    assert_eq!(files.len(), 5, "a file for each benchmark: {files:?}");
    let folder = drawn(&files)?;
    let browser = Browser::start()?;
    check(&browser, folder.path(), &files)?;
    let missing =
        browser.ask("return [...document.querySelectorAll('.missing')].map(e => e.textContent)")?;
    assert_eq!(
        missing,
        Value::from(Vec::<Value>::new()),
        "all kinds of figures are in the samples"
    );

    // What is looked for is found where it is.
    browser.ask("console.error('on purpose')")?;
    let log = browser.log()?;
    assert!(
        log.iter().any(|line| line.contains("on purpose")),
        "{log:?}"
    );
    for (damage, complaint) in [
        (
            "document.querySelector('svg').querySelectorAll('.mark').forEach(mark => mark.remove())",
            "marks",
        ),
        (
            "document.querySelector('h2').style.color = '#888'",
            "contrast",
        ),
        (
            "document.querySelector('h1').style.width = '4000px'",
            "overflow",
        ),
        (
            "document.querySelector('h2').outerHTML = '<h5>x</h5>'",
            "heading",
        ),
    ] {
        browser.open(&folder.path().join("report.html"))?;
        browser.show(WIDE, Scheme::Light)?;
        browser.ask(damage)?;
        let seen = browser.look()?["complaints"].to_string();
        assert!(seen.contains(complaint), "{damage}: {seen}");
    }

    // One benchmark alone makes a page, which says what it lacks.
    for file in &files {
        let one = std::slice::from_ref(file);
        let folder = drawn(one)?;
        check(&browser, folder.path(), one)?;
        let missing = browser.ask("return document.querySelectorAll('.missing').length")?;
        assert_eq!(missing, 4, "{}", file.display());
    }

    // The figures of record, and what was made of them.
    let of_record = Path::new(WORKSPACE).join("bench/results");
    if of_record.exists() {
        let files = results(&of_record)?;
        let folder = drawn(&files)?;
        check(&browser, folder.path(), &files)?;
        let made = |docs: &Path| -> Result<_> {
            let mut pictures = Vec::new();
            for entry in fs::read_dir(docs.join("performance"))? {
                let entry = entry?;
                pictures.push((entry.file_name(), fs::read_to_string(entry.path())?));
            }
            pictures.sort();
            // Where the results are, seen from the page, differs.
            let page = fs::read_to_string(docs.join("performance.md"))?;
            let lines = page.lines().filter(|line| !line.starts_with("Again: "));
            let lines: Vec<_> = lines.map(ToOwned::to_owned).collect();
            Ok((lines, pictures))
        };
        let committed = made(&Path::new(WORKSPACE).join("docs"))?;
        assert!(
            committed == made(&folder.path().join("docs"))?,
            "docs/performance.md is not what bench/results come to: run `cargo xtask bench report`"
        );
    }
    Ok(())
}

#[test]
fn results_that_cannot_be_drawn_are_named() -> Result<()> {
    let folder = scratch()?;
    let copy = folder.path().join("again.json");
    let kernel = Path::new(SAMPLES).join("kernel.json");
    fs::copy(&kernel, &copy)?;
    let other = folder.path().join("other.json");
    fs::write(&other, r#"{"format":99}"#)?;
    for (files, wanted) in [
        (
            vec![kernel.clone(), copy],
            "are both of the benchmark kernel",
        ),
        (vec![other], "has format 99"),
        (vec![folder.path().join("none.json")], "cannot read"),
    ] {
        let page = folder.path().join("report.html");
        let output = bench(
            "report",
            &files,
            &["--out", page.to_str().context("UTF-8")?],
        )?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(wanted), "{said}");
        assert!(!page.exists());
    }
    Ok(())
}

#[test]
fn comparison_tells_by_its_exit_status() -> Result<()> {
    let folder = scratch()?;
    let kernel = Path::new(SAMPLES).join("kernel.json");
    let text = fs::read_to_string(&kernel)?;
    // As many samples as a real run has, all of them changed or none.
    let times = |factor: f64, name: &str| -> Result<PathBuf> {
        let mut report: Value = serde_json::from_str(&text)?;
        for figure in report["results"].as_array_mut().context("results")? {
            let samples = figure["raw"].as_array().context("samples")?;
            let samples: Vec<_> = samples
                .iter()
                .filter_map(Value::as_f64)
                .map(|sample| sample * factor)
                .collect();
            figure["raw"] = samples
                .iter()
                .cycle()
                .take(samples.len() * 20)
                .copied()
                .collect();
            figure["median"] = (figure["median"].as_f64().context("a median")? * factor).into();
            if let Some(yardsticks) = figure.get_mut("yardsticks") {
                yardsticks["median"] =
                    (yardsticks["median"].as_f64().context("a ratio")? * factor).into();
            }
        }
        let file = folder.path().join(name);
        fs::write(&file, report.to_string())?;
        Ok(file)
    };
    let (same, slower) = (times(1.0, "same.json")?, times(1.5, "slower.json")?);
    let wire = Path::new(SAMPLES).join("wire.json");
    for (old, new, status, wanted) in [
        (&same, &same, 0, " the same"),
        (&same, &slower, 1, "slower"),
        (&slower, &same, 0, "faster"),
        (&same, &wire, 2, "different benchmarks"),
    ] {
        let output = bench(
            "compare",
            &[old.clone(), new.clone()],
            &["--output", "json"],
        )?;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(wanted), "{said}");
        assert!(
            !said.contains('\x1b'),
            "colour, though nobody looks: {said}"
        );
        if status < 2 {
            let last = said.lines().last().context("it prints")?;
            let json: Value = serde_json::from_str(last)?;
            assert_eq!(json["benchmark"], "kernel");
        }
    }
    Ok(())
}
