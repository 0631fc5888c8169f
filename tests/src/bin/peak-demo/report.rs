//! The table, and the same as JSON.

use std::{
    collections::BTreeMap,
    env,
    io::{IsTerminal, stdout},
    net::IpAddr,
};

use serde::Serialize;

use crate::steps::Outcome;

/// All outcomes and their sums.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    steps: Vec<Outcome>,
    queries: u64,
    answered_in_kernel: u64,
    answered_by_fallback: u64,
    wrong: u64,
    /// Requests answered at each address.
    pub(crate) pods: BTreeMap<IpAddr, u64>,
}

impl Report {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.queries += outcome.queries;
        self.answered_in_kernel += outcome.answered_in_kernel;
        self.answered_by_fallback += outcome.answered_by_fallback;
        self.wrong += u64::from(outcome.wrong.is_some());
        self.steps.push(outcome);
    }

    /// Every step did what it shows, and whoever was due answered it.
    pub(crate) fn is_right(&self) -> bool {
        self.wrong == 0 && self.answered_in_kernel + self.answered_by_fallback == self.queries
    }
}

/// Prints the table's first line.
pub(crate) fn heading() {
    line(["STEP", "QUESTION", "ANSWER", "POD", "ANSWERED BY"]);
}

/// Prints a step: one line an address.
pub(crate) fn row(outcome: &Outcome) {
    let by = [
        (outcome.answered_in_kernel, "kernel", "\x1b[32m"),
        (outcome.answered_by_fallback, "fallback", "\x1b[33m"),
    ];
    let by: Vec<_> = by
        .into_iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, who, colour)| paint(colour, &format!("{who} {count}/{}", outcome.queries)))
        .collect();
    let by = if by.is_empty() {
        "nobody".to_owned()
    } else {
        by.join(", ")
    };
    for number in 0..outcome.answer.len().max(1) {
        let cell = |cells: &[String]| cells.get(number).cloned().unwrap_or_default();
        let (answer, pod) = (cell(&outcome.answer), cell(&outcome.pods));
        if number == 0 {
            line([outcome.title(), &outcome.question, &answer, &pod, &by]);
        } else {
            line(["", "", &answer, &pod, ""]);
        }
    }
    if let Some(wrong) = &outcome.wrong {
        println!("  {} {wrong}", paint("\x1b[31m", "wrong:"));
    }
}

/// Prints the sums.
pub(crate) fn summary(report: &Report) {
    println!(
        "\n{} queries: {} answered in the kernel, {} by the fallback; {} wrong",
        report.queries, report.answered_in_kernel, report.answered_by_fallback, report.wrong
    );
}

fn line([step, question, answer, pod, by]: [&str; 5]) {
    println!("{step:<16} {question:<36} {answer:<26} {pod:<7} {by}");
}

/// Colour only where a person looks, and has not asked for none.
fn paint(colour: &str, text: &str) -> String {
    if stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) {
        format!("{colour}{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
