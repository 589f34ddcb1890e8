//! What the runs of a topology come to: one row for each variant, transport
//! and open mode, medians over the repeats. The terminal's table and the
//! page's are made from the same columns and cells.

use std::collections::BTreeMap;

use crate::results::{stats, Flow, Playback, Probe, Results, Run};

/// All runs of one kind.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub transport: String,
    pub open: Option<String>,
    /// `MEF`, `MEF early`, `BBR`, ...
    pub label: String,
    pub runs: Vec<&'a Run>,
}

/// Flows of one kind and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    pub size: u64,
    pub request: bool,
}

impl Task {
    /// `None` for bulk.
    pub fn of(flow: &Flow) -> Option<Self> {
        match flow.kind.as_str() {
            "transfer" | "request" => Some(Self {
                size: flow.size,
                request: flow.kind == "request",
            }),
            _ => None,
        }
    }

    pub fn name(self) -> String {
        let verb = if self.request { " request" } else { "" };
        format!("{}{verb}", bytes(self.size))
    }
}

impl Row<'_> {
    fn per_run(&self, f: impl Fn(&Run) -> f64) -> Vec<f64> {
        self.runs.iter().map(|r| f(r)).collect()
    }
    pub fn median(&self, f: impl Fn(&Run) -> f64) -> f64 {
        stats::median(&self.per_run(f)).unwrap_or(0.0)
    }
    pub fn has_bulk(&self) -> bool {
        self.runs.iter().any(|r| r.tail_seconds > 0.0)
    }
    /// Goodput of bulk flows over the ceiling, 0..1.
    pub fn share(&self) -> f64 {
        self.median(|r| {
            if r.ceiling_bps > 0.0 {
                r.goodput_bps / r.ceiling_bps
            } else {
                0.0
            }
        })
    }
    /// How much later than on the idle path the probe's slowest percent came, us; may be negative.
    pub fn probe_above_us(&self) -> f64 {
        self.median(|r| r.probe_p99_us as f64 - r.probe_idle_p99_us as f64)
    }
    pub fn has_probe(&self) -> bool {
        self.runs.iter().any(|r| r.probe_p99_us > 0)
    }
    /// Seconds of the flows of a kind that arrived whole, of all repeats, ascending; and how many there were.
    pub fn completions(&self, task: Task) -> (Vec<f64>, usize) {
        let flows = || {
            self.runs
                .iter()
                .flat_map(|r| &r.flows)
                .filter(|f| Task::of(f) == Some(task))
        };
        let mut seconds: Vec<f64> = flows().filter(|f| f.complete).map(|f| f.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        (seconds, flows().count())
    }
    pub fn errors(&self) -> impl Iterator<Item = (u32, &str)> {
        self.runs
            .iter()
            .flat_map(|r| r.errors.iter().map(|e| (r.repeat, e.as_str())))
    }
    /// For the style sheet: the transport's own colour, another one for `early`.
    pub fn class(&self) -> String {
        match (self.transport.as_str(), self.label.ends_with("early")) {
            ("mef", true) => "early".to_owned(),
            ("mef" | "bbr" | "cubic", _) => self.transport.clone(),
            _ => "other".to_owned(),
        }
    }
}

/// The runs of one variant.
#[derive(Clone, Debug)]
pub struct Variant<'a> {
    pub name: String,
    pub rows: Vec<Row<'a>>,
}

/// Rows in the order in which they first ran, MEF last, so that a table reads towards it.
pub fn variants(results: &Results) -> Vec<Variant<'_>> {
    let both = ["early", "confirm"].iter().all(|open| {
        results
            .runs
            .iter()
            .any(|r| r.open.as_deref() == Some(*open))
    });
    let mut variants: Vec<Variant<'_>> = Vec::new();
    for run in &results.runs {
        let at = match variants.iter().position(|v| v.name == run.variant) {
            Some(at) => at,
            None => {
                variants.push(Variant {
                    name: run.variant.clone(),
                    rows: Vec::new(),
                });
                variants.len() - 1
            }
        };
        let Some(variant) = variants.get_mut(at) else {
            continue;
        };
        match variant
            .rows
            .iter_mut()
            .find(|r| r.transport == run.transport && r.open == run.open)
        {
            Some(row) => row.runs.push(run),
            None => variant.rows.push(Row {
                transport: run.transport.clone(),
                open: run.open.clone(),
                label: label(run, both),
                runs: vec![run],
            }),
        }
    }
    for variant in &mut variants {
        variant.rows.sort_by_key(|r| r.transport == "mef");
    }
    variants
}

fn label(run: &Run, both_modes: bool) -> String {
    let name = run.transport.to_uppercase();
    match &run.open {
        Some(open) if both_modes && run.transport == "mef" => format!("{name} {open}"),
        _ => name,
    }
}

/// Every kind of fixed-size flow in the results.
pub fn tasks(rows: &[Row<'_>]) -> Vec<Task> {
    let mut tasks: Vec<Task> = rows
        .iter()
        .flat_map(|r| &r.runs)
        .flat_map(|r| &r.flows)
        .filter_map(Task::of)
        .collect();
    tasks.sort_unstable();
    tasks.dedup();
    tasks
}

/// A column's head, its unit, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub unit: &'static str,
    pub help: &'static str,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    /// Per row its label, its class and its cells; variants with a name have a line before their rows.
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug)]
pub enum Line {
    Variant(String),
    Cells {
        label: String,
        class: String,
        cells: Vec<String>,
        share: Option<f64>,
    },
}

/// The table of a topology: only columns that have something to say.
pub fn table(results: &Results) -> Table {
    let variants = variants(results);
    let rows: Vec<Row<'_>> = variants
        .iter()
        .flat_map(|v| v.rows.iter().cloned())
        .collect();
    let bulk = rows.iter().any(Row::has_bulk);
    let tasks = tasks(&rows);
    let probe = rows.iter().any(Row::has_probe);
    let shared = rows.iter().flat_map(|r| &r.runs).any(|r| bulk_flows(r) > 1);
    let repeated = rows.iter().any(|r| r.runs.len() > 1);

    let column = |name: &str, unit, help| Column {
        name: name.to_owned(),
        unit,
        help,
    };
    let mut columns = Vec::new();
    if repeated {
        columns.push(column(
            "runs",
            "",
            "how often it was measured; figures are medians",
        ));
    }
    if bulk {
        columns.push(column(
            "goodput",
            "Mbit/s",
            "payload at the receiver over the tail of the run",
        ));
        columns.push(column(
            "of ceiling",
            "%",
            "of the most payload that the line carries at this loss",
        ));
        columns.push(column(
            "from start",
            "Mbit/s",
            "payload at the receiver from connect() on, the start included",
        ));
    }
    for task in &tasks {
        columns.push(column(
            &task.name(),
            "s",
            "median time from connect() to the last byte at the receiver",
        ));
    }
    if shared {
        columns.push(column(
            "first flow",
            "%",
            "share of the first flow in what all of them got",
        ));
        columns.push(column(
            "Jain",
            "",
            "Jain's index of the flows' goodput: 1 is equal shares",
        ));
    }
    columns.extend(paced_columns(&rows));
    columns.push(column(
        "queue p95",
        "ms",
        "delay in the queue in front of the line",
    ));
    columns.push(column(
        "queue p99",
        "ms",
        "delay in the queue in front of the line",
    ));
    if probe {
        columns.push(column(
            "probe p99",
            "+ms",
            "how much later than on the idle path a 64-byte probe arrived",
        ));
    }
    columns.push(column(
        "resent",
        "seg.",
        "segments that the hosts' TCP sent again, per run",
    ));
    if rows
        .iter()
        .flat_map(|r| &r.runs)
        .any(|r| !r.errors.is_empty())
    {
        columns.push(column("errors", "", "of all runs; listed below"));
    }

    let mut lines = Vec::new();
    for variant in &variants {
        if !variant.name.is_empty() {
            lines.push(Line::Variant(variant.name.clone()));
        }
        for row in &variant.rows {
            lines.push(Line::Cells {
                label: row.label.clone(),
                class: row.class(),
                cells: columns.iter().map(|c| cell(row, c, &tasks)).collect(),
                share: row.has_bulk().then(|| row.share()),
            });
        }
    }
    Table { columns, lines }
}

/// Columns for streams and CBR, where there are any.
fn paced_columns(rows: &[Row<'_>]) -> Vec<Column> {
    let runs = || rows.iter().flat_map(|r| &r.runs);
    let mut columns = Vec::new();
    let mut add = |name: &str, unit, help| {
        columns.push(Column {
            name: name.to_owned(),
            unit,
            help,
        });
    };
    if runs().any(|r| playbacks(r).next().is_some()) {
        add(
            "stalls",
            "",
            "times that a player of the stream had nothing to show, and for how long in all",
        );
    }
    if runs().any(|r| datagrams(r).next().is_some()) {
        add("CBR lost", "%", "datagrams of constant rate that were lost");
        add("CBR p99.9", "ms", "their one-way delay");
    }
    columns
}

fn playbacks(run: &Run) -> impl Iterator<Item = &Playback> {
    run.flows.iter().filter_map(|f| f.playback.as_ref())
}

fn datagrams(run: &Run) -> impl Iterator<Item = &Probe> {
    run.flows.iter().filter_map(|f| f.datagrams.as_ref())
}

fn cbr_lost(run: &Run) -> f64 {
    let sent: u64 = datagrams(run).map(|d| d.sent).sum();
    let received: u64 = datagrams(run).map(|d| d.received).sum();
    sent.saturating_sub(received) as f64 / sent.max(1) as f64
}

/// Share of the first bulk flow in the goodput of all.
fn first_share(run: &Run) -> f64 {
    let of = |f: &&Flow| f.kind == "bulk";
    let first = run.flows.iter().find(of).map_or(0.0, |f| f.goodput_bps);
    let all: f64 = run.flows.iter().filter(of).map(|f| f.goodput_bps).sum();
    if all > 0.0 {
        first / all
    } else {
        0.0
    }
}

fn bulk_flows(run: &Run) -> usize {
    run.flows.iter().filter(|f| f.kind == "bulk").count()
}

fn cell(row: &Row<'_>, column: &Column, tasks: &[Task]) -> String {
    let bulk = |text: String| {
        if row.has_bulk() {
            text
        } else {
            "–".to_owned()
        }
    };
    match column.name.as_str() {
        "runs" => row.runs.len().to_string(),
        "goodput" => bulk(figure(row.median(|r| r.goodput_bps) / 1e6)),
        "of ceiling" => bulk(format!("{:.1}", row.share() * 100.0)),
        "from start" => bulk(figure(row.median(|r| r.goodput_from_connect_bps) / 1e6)),
        "first flow" => bulk(figure(row.median(first_share) * 100.0)),
        "stalls" => format!(
            "{:.0} ({:.1} s)",
            row.median(|r| playbacks(r).map(|p| p.stalls as f64).sum()),
            row.median(|r| playbacks(r).map(|p| p.stalled_s).sum()),
        ),
        "CBR lost" => format!("{:.3}", row.median(cbr_lost) * 100.0),
        "CBR p99.9" => {
            figure(row.median(|r| datagrams(r).map(|d| d.p999_us as f64).fold(0.0, f64::max)) / 1e3)
        }
        "queue p95" => figure(row.median(|r| r.wan.queue_p95_us as f64) / 1e3),
        "Jain" => bulk(format!("{:.3}", row.median(|r| r.jain))),
        "queue p99" => figure(row.median(|r| r.wan.queue_p99_us as f64) / 1e3),
        "probe p99" if row.has_probe() => format!("{:+.1}", row.probe_above_us() / 1e3),
        "probe p99" => "–".to_owned(),
        "resent" => {
            let resent =
                row.median(|r| r.flows.iter().map(|f| f.retransmitted).sum::<u64>() as f64);
            format!("{resent:.0}")
        }
        "errors" => row.errors().count().to_string(),
        name => match tasks.iter().find(|t| t.name() == name) {
            Some(task) => completion(row, *task),
            None => String::new(),
        },
    }
}

fn completion(row: &Row<'_>, task: Task) -> String {
    let (seconds, of) = row.completions(task);
    match stats::quantile_sorted(&seconds, 0.5) {
        Some(median) if seconds.len() == of => figure(median),
        Some(median) => format!("{} ({}/{of})", figure(median), seconds.len()),
        None if of > 0 => format!("none of {of}"),
        None => "–".to_owned(),
    }
}

/// The sentence that says what the rows show, if there is anything to compare.
pub fn headline(results: &Results) -> Option<String> {
    let variants = variants(results);
    let variant = variants
        .iter()
        .find(|v| v.rows.len() > 1)
        .or(variants.first())?;
    let mef = variant.rows.iter().rev().find(|r| r.transport == "mef")?;
    let place = if variant.name.is_empty() {
        String::new()
    } else {
        format!("At {}: ", variant.name)
    };
    let others = || variant.rows.iter().filter(|r| r.transport != "mef");
    if mef.has_bulk() {
        let goodput = mef.median(|r| r.goodput_bps);
        let ratios: Vec<String> = others()
            .filter(|r| r.has_bulk() && r.median(|r| r.goodput_bps) > 0.0)
            .map(|r| {
                format!(
                    "{}×\u{a0}{}",
                    ratio(goodput / r.median(|r| r.goodput_bps)),
                    r.label
                )
            })
            .collect();
        let fairness = if mef.runs.iter().any(|r| bulk_flows(r) > 1) {
            let of: Vec<String> = others()
                .filter(|r| r.has_bulk())
                .map(|r| format!("{:.2} with {}", r.median(|r| r.jain), r.label))
                .collect();
            let against = if of.is_empty() { "" } else { ", against " };
            format!(
                "; Jain’s fairness index {:.3}{against}{}",
                mef.median(|r| r.jain),
                of.join(" and ")
            )
        } else {
            String::new()
        };
        return Some(format!(
            "{place}{} carried {} Mbit/s, {:.1}% of what the line can carry{}{}{fairness}.",
            if place.is_empty() {
                "Two MEF routers"
            } else {
                "two MEF routers"
            },
            figure(goodput / 1e6),
            mef.share() * 100.0,
            if ratios.is_empty() { "" } else { ": " },
            ratios.join(" and "),
        ));
    }
    let task = *tasks(&variant.rows).first()?;
    let own = stats::median(&mef.completions(task).0)?;
    let than: Vec<String> = others()
        .filter_map(|r| {
            Some(format!(
                "{} s with {}",
                figure(stats::median(&r.completions(task).0)?),
                r.label
            ))
        })
        .collect();
    Some(format!(
        "{place}{} took {} s with {}{}{}.",
        task.name(),
        figure(own),
        mef.label,
        if than.is_empty() { "" } else { ", " },
        than.join(", "),
    ))
}

fn ratio(x: f64) -> String {
    if x >= 10.0 {
        format!("{x:.0}")
    } else {
        format!("{x:.2}")
    }
}

/// Three significant digits, or one decimal from 100 on.
pub fn figure(x: f64) -> String {
    match x.abs() {
        a if a >= 999.5 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        a if a >= 0.995 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

/// A size for people: `100 kB`, `1 MB`.
pub fn bytes(n: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let x = n as f64 / unit as f64;
        if x.fract() == 0.0 {
            format!("{x:.0} {name}")
        } else {
            format!("{x:.1} {name}")
        }
    };
    match n {
        1_000_000_000.. => scaled(1_000_000_000, "GB"),
        1_000_000.. => scaled(1_000_000, "MB"),
        1_000.. => scaled(1_000, "kB"),
        _ => format!("{n} B"),
    }
}

/// What the emulator measured, over all runs: medians, and the worst lateness.
pub fn measured(results: &Results) -> Option<BTreeMap<&'static str, f64>> {
    let runs: Vec<&Run> = results.runs.iter().filter(|r| r.wan.offered > 0).collect();
    let median =
        |f: &dyn Fn(&Run) -> f64| stats::median(&runs.iter().map(|r| f(r)).collect::<Vec<_>>());
    Some(BTreeMap::from([
        ("rtt_ms", median(&|r| r.wan.rtt_us as f64 / 1e3)?),
        (
            "late_ms",
            runs.iter().map(|r| r.wan.lateness_p99_us).max()? as f64 / 1e3,
        ),
    ]))
}

/// `1 run`, `2 runs`.
pub fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
