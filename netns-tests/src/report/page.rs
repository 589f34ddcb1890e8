//! The HTML page: for each topology what it shows, its table and its charts;
//! at the end how to read the figures, the machine and the commands. One file
//! without anything from outside, not even a font or a script.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::charts::{figures, Figure};
use super::summary::{count, headline, measured, table, variants, Line, Table};
use super::svg::escape;
use super::sweep::sections;
use crate::results::Results;
use crate::sweep::Sweep;

const STYLE: &str = include_str!("style.css");

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(title)
    )
}

pub fn page(all: &[Results]) -> String {
    let title = match all {
        [one] if !one.topology.is_empty() => format!("MEF lab: {}", one.topology),
        _ => "MEF lab report".to_owned(),
    };
    let mut out = head(&title);
    let _ = writeln!(
        out,
        "<header>\n<h1>{}</h1>\n<p class=\"lead\">Unmodified Linux senders over an emulated long line: \
         the kernel’s own congestion control, and the same hosts behind two MEF routers.</p>",
        escape(&title)
    );
    if all.len() > 1 {
        out.push_str("<nav>");
        for (i, results) in all.iter().enumerate() {
            let _ = write!(out, "<a href=\"#t{i}\">{}</a>", escape(&results.topology));
        }
        out.push_str("</nav>\n");
    }
    out.push_str("</header>\n");
    for (i, results) in all.iter().enumerate() {
        section(&mut out, i, results, all.len() > 1);
    }
    footer(&mut out, all);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// The page of a sweep.
pub fn sweep_page(sweep: &Sweep) -> String {
    let rate = sweep.rate_bps as f64 / 1e6;
    let mut out = head("MEF lab: sweep");
    let _ = writeln!(
        out,
        "<header>\n<h1>Goodput against distance and loss</h1>\n<p class=\"lead\">A line of {rate} Mbit/s: \
         what hosts carry over it by themselves, and behind two MEF routers.</p></header>"
    );
    for section in sections(sweep) {
        let _ = writeln!(out, "<section>\n<h2>{}</h2>", escape(&section.title));
        figures_html(&mut out, &section.figures);
        out.push_str("</section>\n");
    }
    let _ = writeln!(
        out,
        "<footer>\n<dl>\n<dt>Ceiling</dt><dd>line rate × 1448/1514 × (1 − loss)</dd>\n\
         <dt>Curves</dt><dd>medians; where a point was measured several times, in a band from the lowest to the highest.</dd>\n\
         <dt>Machine</dt><dd>{}</dd>\n<dt>Command</dt><dd><code>{}</code></dd>\n</dl>\n</footer>\n</main>\n</body>\n</html>",
        escape(&sweep.machine.line()),
        escape(&sweep.command)
    );
    out
}

fn section(out: &mut String, index: usize, results: &Results, titled: bool) {
    let _ = writeln!(out, "<section id=\"t{index}\">");
    if titled {
        let _ = writeln!(out, "<h2>{}</h2>", escape(&results.topology));
    }
    if !results.description.is_empty() {
        let _ = writeln!(
            out,
            "<p class=\"shows\">{}</p>",
            escape(&results.description)
        );
    }
    if let Some(sentence) = headline(results) {
        let _ = writeln!(out, "<p class=\"headline\">{}</p>", escape(&sentence));
    }
    html_table(out, &table(results));
    conditions(out, results);
    for variant in variants(results) {
        let figures = figures(&variant);
        if figures.is_empty() {
            continue;
        }
        if !variant.name.is_empty() {
            let _ = writeln!(out, "<h3>{}</h3>", escape(&variant.name));
        }
        figures_html(out, &figures);
    }
    notes(out, results);
    out.push_str("</section>\n");
}

fn figures_html(out: &mut String, figures: &[Figure]) {
    out.push_str("<div class=\"charts\">\n");
    for figure in figures {
        let _ = writeln!(
            out,
            "<figure><figcaption>{}<span>{}</span></figcaption>{}</figure>",
            escape(&figure.title),
            escape(&figure.note),
            figure.svg
        );
    }
    out.push_str("</div>\n");
}

fn html_table(out: &mut String, table: &Table) {
    out.push_str("<div class=\"scroll\"><table>\n<thead><tr><th>transport</th>");
    for column in &table.columns {
        let _ = write!(
            out,
            "<th title=\"{}\">{}<span>{}</span></th>",
            escape(column.help),
            escape(&column.name),
            escape(column.unit)
        );
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for line in &table.lines {
        match line {
            Line::Variant(name) => {
                let _ = writeln!(
                    out,
                    "<tr class=\"variant\"><td colspan=\"{}\">{}</td></tr>",
                    table.columns.len() + 1,
                    escape(name)
                );
            }
            Line::Cells {
                label,
                class,
                cells,
                share,
            } => {
                let class = escape(class);
                let _ = write!(
                    out,
                    "<tr class=\"r-{class} c-{class}\"><td><i class=\"key\"></i>{}</td>",
                    escape(label)
                );
                for (column, cell) in table.columns.iter().zip(cells) {
                    let bar = match share {
                        Some(share) if column.unit == "%" => {
                            format!(
                                "<span class=\"bar\"><i style=\"width:{:.1}%\"></i></span>",
                                share.clamp(0.0, 1.0) * 100.0
                            )
                        }
                        _ => String::new(),
                    };
                    let _ = write!(out, "<td>{bar}{}</td>", escape(cell));
                }
                out.push_str("</tr>\n");
            }
        }
    }
    out.push_str("</tbody></table></div>\n");
}

/// What the emulator says of the line, so that nobody has to believe the topology's file.
fn conditions(out: &mut String, results: &Results) {
    let Some(figures) = measured(results) else {
        return;
    };
    let of = |key| figures.get(key).copied().unwrap_or(0.0);
    let _ = writeln!(
        out,
        "<p class=\"measured\">Measured by the emulator during the runs: RTT {:.1} ms; packets late by at most {:.2} ms (p99 of the worst run).</p>",
        of("rtt_ms"),
        of("late_ms")
    );
}

fn notes(out: &mut String, results: &Results) {
    if !results.discarded.is_empty() {
        let _ = write!(
            out,
            "<details><summary>{} measured again</summary><ul>",
            count(results.discarded.len(), "run")
        );
        for d in &results.discarded {
            let _ = write!(
                out,
                "<li>{} {} repeat {}: {}</li>",
                escape(&d.run.transport),
                escape(&d.run.variant),
                d.run.repeat,
                escape(&d.reason)
            );
        }
        out.push_str("</ul></details>\n");
    }
    let errors: Vec<String> = results.errors().collect();
    if !errors.is_empty() {
        let _ = write!(
            out,
            "<details class=\"errors\"><summary>{}</summary><ul>",
            count(errors.len(), "error")
        );
        for e in errors.iter().take(200) {
            let _ = write!(out, "<li>{}</li>", escape(e));
        }
        out.push_str("</ul></details>\n");
    }
}

fn footer(out: &mut String, all: &[Results]) {
    out.push_str(
        "<footer>\n<dl>\n<dt>Goodput</dt><dd>TCP payload at the receiving host, over the tail of the run \
         (the last two thirds, at most 30 s). Every byte was compared with the one that was sent.</dd>\n\
         <dt>Ceiling</dt><dd>line rate × 1448/1514 × (1 − loss): 1448 bytes of payload in each 1514-byte frame, and what the line loses is gone. \
         For a moment goodput can be above it: what waited at the receiver for a missing packet counts when that has come.</dd>\n\
         <dt>Completion</dt><dd>from the sender’s connect() to the last byte at the receiver.</dd>\n\
         <dt>Curves</dt><dd>where a run was repeated: the median, in a band from the lowest to the highest.</dd>\n",
    );
    let mut machines: BTreeMap<String, ()> = BTreeMap::new();
    for results in all {
        machines.insert(results.machine.line(), ());
    }
    for line in machines.keys().filter(|l| !l.is_empty()) {
        let _ = writeln!(out, "<dt>Machine</dt><dd>{}</dd>", escape(line));
    }
    for results in all.iter().filter(|r| !r.command.is_empty()) {
        let _ = writeln!(
            out,
            "<dt>Command</dt><dd><code>{}</code></dd>",
            escape(&results.command)
        );
    }
    out.push_str("</dl>\n</footer>\n");
}
