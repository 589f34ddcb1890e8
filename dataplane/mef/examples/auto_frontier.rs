//! Goodput against queueing delay of a line of unknown capacity, in virtual time: the controller
//! with figures from the command line, over recorded or synthetic traces in Mahimahi's format.
//!
//! ```text
//! cargo run --release -p mef-protocol --example auto_frontier -- \
//!     topologies/traces/synthetic-lte-slow.trace tail=0.1,0.15,0.2,0.3 loss=0,0.01
//! ```
//!
//! `windows=14` measures as many windows of 120 s instead, the traces rotated from one to the next,
//! and prints their mean over all traces: one window is chance.
//!
//! Keys: `target` (0 latency, 1 balanced, 2 throughput), `quantile` (where the line does not vary), `least`, `most`, `tail`, `tail_age`, `small`, `window`, `delta`, `queue`, `grow`, `memory` (see `Params`), `loss`, `rtt` (ms), `seed`, `from`, `seconds` (what is measured).
//! A figure is payload as a share of the trace, its queue's median and 95th percentile in ms.

#[path = "../tests/auto_model/mod.rs"]
mod auto_model;

use auto_model::{run, Line, Setup, FRAME};
use mef_protocol::auto::{Params, Target};

/// Stream bytes of a full packet.
const PAYLOAD: f64 = 1424.0;

fn set(p: &mut Params, s: &mut Setup, key: &str, value: f64) -> bool {
    match key {
        "quantile" => p.quantile = value,
        "least" => p.varying.least = value,
        "most" => p.varying.most = value,
        "tail" => p.varying.tail = value,
        "small" => p.varying.small = value,
        "tail_age" => p.varying.tail_age = value,
        "window" => p.window = value,
        "delta" => p.delta = value,
        "queue" => p.queue = value,
        "grow" => p.grow = value,
        "memory" => p.varying.memory = value,
        "loss" => s.loss = value,
        "seed" => s.seed = value as u64,
        "from" => s.from = value,
        "seconds" => s.seconds = value,
        "rtt" => (s.forward, s.back) = (value as usize / 2, value as usize / 2),
        _ => return false,
    }
    true
}

/// Goodput as a share of the line, median and 95th percentile of the queue in ms.
fn one(line: Line, case: &[(String, f64)], seconds: f64) -> Option<(f64, f64, f64)> {
    let target = case.iter().find(|c| c.0 == "target").map_or(1.0, |c| c.1);
    let mut p = Params::of(match target as usize {
        0 => Target::Latency,
        1 => Target::Balanced,
        _ => Target::Throughput,
    });
    let mut s = Setup {
        line,
        forward: 100,
        back: 100,
        longer: Vec::new(),
        queue: 1.0,
        loss: 0.0,
        seconds,
        from: 5.0,
        ack_ms: 10,
        foreign: Vec::new(),
        quiet: 0.0,
        seed: 0,
    };
    for (key, value) in case {
        if key != "windows" && key != "target" && !set(&mut p, &mut s, key, *value) {
            return None;
        }
    }
    let o = run(&s, p);
    Some((o.used * PAYLOAD / FRAME as f64, o.p50, o.p95))
}

/// The mean of `n` windows of each trace, which is rotated by `1/n` of itself from one to the next.
fn mean(traces: &[Line], case: &[(String, f64)], n: usize) -> Option<(f64, f64, f64)> {
    let mut sum = (0.0, 0.0, 0.0);
    for line in traces {
        for i in 0..n {
            let mut line = line.clone();
            if let Line::Trace(t) = &mut line {
                let by = i * t.len() / n.max(1);
                t.rotate_left(by);
            }
            let o = one(line, case, 125.0)?;
            sum = (sum.0 + o.0, sum.1 + o.1, sum.2 + o.2);
        }
    }
    let all = (n * traces.len()).max(1) as f64;
    Some((sum.0 / all, sum.1 / all, sum.2 / all))
}

fn main() {
    let mut traces = Vec::new();
    let mut cases: Vec<Vec<(String, f64)>> = vec![Vec::new()];
    for arg in std::env::args().skip(1) {
        let Some((key, values)) = arg.split_once('=') else {
            match Line::read(std::path::Path::new(&arg)) {
                Some(line) => traces.push(line),
                None => return eprintln!("{arg}: expected a trace, or KEY=VALUE,..."),
            }
            continue;
        };
        let values: Vec<f64> = values.split(',').filter_map(|v| v.parse().ok()).collect();
        cases = cases
            .iter()
            .flat_map(|c| {
                values.iter().map(|v| {
                    let mut c = c.clone();
                    c.push((key.to_owned(), *v));
                    c
                })
            })
            .collect();
    }
    for case in cases {
        let label: Vec<String> = case.iter().map(|(k, v)| format!("{k}={v}")).collect();
        print!("{:40}", label.join(" "));
        let windows = case.iter().find(|c| c.0 == "windows");
        if let Some((_, n)) = windows {
            match mean(&traces, &case, *n as usize) {
                Some((goodput, p50, p95)) => println!(" | {goodput:.4} {p50:4.0} {p95:5.0}"),
                None => return eprintln!("{}: no such key", label.join(" ")),
            }
            continue;
        }
        for line in &traces {
            let Some((goodput, p50, p95)) = one(line.clone(), &case, 120.0) else {
                return eprintln!("{}: no such key", label.join(" "));
            };
            print!(" | {goodput:.3} {p50:4.0} {p95:5.0}");
        }
        println!();
    }
}
