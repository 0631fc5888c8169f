//! The results as a table.

use crate::report::{Figure, Gate, Label, Report};

/// Prints them: times in nanoseconds, gates and aims as the yardstick of this run makes them.
pub(crate) fn print(report: &Report) {
    println!(
        "{:<32} {:>9} {:>9} {:>9} {:>9}  {:>13} {:>9} {:>9}",
        "", "names", "min", "median", "p99", "yardsticks", "gate", "aim"
    );
    for figure in &report.results {
        println!("{}", line(figure).trim_end());
    }
}

fn line(figure: &Figure) -> String {
    let mut title = figure.name.to_string();
    for (label, value) in &figure.labels {
        if label != "names" {
            title += &format!(" {value}");
        }
    }
    if figure.unit != "ns" {
        title += &format!(", {}", figure.unit);
    }
    let names = figure.labels.get("names").map(Label::to_string);
    let ratios = figure.yardsticks.map_or(String::new(), |ratios| {
        format!("{:>6.2} {:>6.2}", ratios.min, ratios.median)
    });
    let limit = |gate: Option<Gate>| gate.map_or(String::new(), |gate| short(gate.limit));
    let missed = |gate: Option<Gate>| gate.is_some_and(|gate| !gate.reached);
    let verdict = if missed(figure.gate) {
        "gate missed"
    } else if missed(figure.aim) {
        "aim missed"
    } else {
        ""
    };
    format!(
        "{title:<32} {:>9} {:>9} {:>9} {:>9}  {ratios:>13} {:>9} {:>9} {verdict}",
        names.unwrap_or_default(),
        short(figure.min),
        short(figure.median),
        short(figure.p99),
        limit(figure.gate),
        limit(figure.aim),
    )
}

/// With as many decimals as mean anything.
fn short(number: f64) -> String {
    match number.abs() {
        0.0..10.0 => format!("{number:.2}"),
        10.0..1000.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}
