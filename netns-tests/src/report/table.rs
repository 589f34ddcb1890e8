//! The table for the terminal.

use super::summary::{count, headline, table, Line};
use crate::results::Results;

/// Aligned columns with their units under the heads; ends with a newline.
pub fn print_table(results: &Results) -> String {
    let table = table(results);
    let labels = table.lines.iter().map(|line| match line {
        Line::Cells { label, .. } => width(label),
        Line::Variant(_) => 0,
    });
    let label_width = labels.max().unwrap_or(0).max("transport".len());
    let widths: Vec<usize> = table
        .columns
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let cells = table.lines.iter().filter_map(|line| match line {
                Line::Cells { cells, .. } => cells.get(i).map(|c| width(c)),
                Line::Variant(_) => None,
            });
            cells
                .max()
                .unwrap_or(0)
                .max(width(&c.name))
                .max(width(c.unit))
        })
        .collect();
    let row = |label: &str, cells: &mut dyn Iterator<Item = &str>| {
        let mut line = format!("  {}", pad_right(label, label_width));
        for (cell, w) in cells.zip(&widths) {
            line.push_str("   ");
            line.push_str(&" ".repeat(w.saturating_sub(width(cell))));
            line.push_str(cell);
        }
        line.trim_end().to_owned() + "\n"
    };

    let mut out = results.topology.clone();
    if !results.description.is_empty() {
        out = format!("{out}: {}", results.description);
    }
    out.push('\n');
    if let Some(sentence) = headline(results) {
        out.push_str(&sentence);
        out.push('\n');
    }
    out.push('\n');
    out.push_str(&row(
        "transport",
        &mut table.columns.iter().map(|c| c.name.as_str()),
    ));
    out.push_str(&row("", &mut table.columns.iter().map(|c| c.unit)));
    for line in &table.lines {
        match line {
            Line::Variant(name) => out.push_str(&format!("{name}\n")),
            Line::Cells { label, cells, .. } => {
                out.push_str(&row(label, &mut cells.iter().map(String::as_str)));
            }
        }
    }
    out.push_str(&steps(results));
    if !results.discarded.is_empty() {
        out.push_str(&format!(
            "\n{} measured again:\n",
            count(results.discarded.len(), "run")
        ));
        for d in &results.discarded {
            let run = &d.run;
            out.push_str(&format!(
                "  {} {} repeat {}: {}\n",
                run.transport, run.variant, run.repeat, d.reason
            ));
        }
    }
    let errors: Vec<String> = results.errors().collect();
    if !errors.is_empty() {
        out.push_str("\nErrors:\n");
        out.extend(errors.iter().take(10).map(|e| format!("  {e}\n")));
        if errors.len() > 10 {
            out.push_str(&format!("  and {} more, in the JSON\n", errors.len() - 10));
        }
    }
    out
}

/// A line for each time at which the line changed, of each run.
fn steps(results: &Results) -> String {
    let mut out = String::new();
    for run in results.runs.iter().filter(|r| !r.steps.is_empty()) {
        out.push_str(&format!(
            "\n{} {} repeat {}: after each change, 90% of the line, queue above 100 ms, used, least second\n",
            run.transport,
            run.variant,
            run.repeat + 1
        ));
        for s in &run.steps {
            let reached = s
                .reached_s
                .map_or("never".to_owned(), |t| format!("{t:.1} s"));
            out.push_str(&format!(
                "  {:6.1} s  {:7.1} Mbit/s   {:>7}   {:5.1} s   {:5.1}%   {:5.1}%\n",
                s.at_s,
                s.rate_bps as f64 / 1e6,
                reached,
                s.queue_s,
                100.0 * s.share,
                100.0 * s.least
            ));
        }
    }
    out
}

/// Columns on the screen: characters, which is right for what we print.
fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad_right(text: &str, to: usize) -> String {
    format!("{text}{}", " ".repeat(to.saturating_sub(width(text))))
}
