//! Goodput against queueing delay of a line of unknown capacity, in virtual time: the controller
//! with figures from the command line, over recorded or synthetic traces in Mahimahi's format.
//!
//! ```text
//! cargo run --release -p mef-protocol --example auto_frontier -- \
//!     topologies/traces/synthetic-lte-slow.trace quantile=0.6,0.7,0.8,0.9 loss=0,0.01
//! ```
//!
//! Keys: `quantile`, `window`, `delta`, `queue`, `grow`, `memory` (see `Params`), `loss`, `rtt` (ms), `from`, `seconds` (what is measured).
//! A figure is payload as a share of the trace, its queue's median and 95th percentile in ms.

#[path = "../tests/auto_model/mod.rs"]
mod auto_model;

use auto_model::{run, Line, Setup, FRAME};
use mef_protocol::auto::{Params, Target};

/// Stream bytes of a full packet.
const PAYLOAD: f64 = 1416.0;

fn set(p: &mut Params, s: &mut Setup, key: &str, value: f64) -> bool {
    match key {
        "quantile" => p.quantile = value,
        "window" => p.window = value,
        "delta" => p.delta = value,
        "queue" => p.queue = value,
        "grow" => p.grow = value,
        "memory" => p.memory = value,
        "loss" => s.loss = value,
        "from" => s.from = value,
        "seconds" => s.seconds = value,
        "rtt" => (s.forward, s.back) = (value as usize / 2, value as usize / 2),
        _ => return false,
    }
    true
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
        for line in &traces {
            let mut p = Params::of(Target::Balanced);
            let mut s = Setup {
                line: line.clone(),
                forward: 100,
                back: 100,
                longer: Vec::new(),
                queue: 1.0,
                loss: 0.0,
                seconds: 120.0,
                from: 5.0,
                ack_ms: 10,
                foreign: Vec::new(),
            };
            for (key, value) in &case {
                if !set(&mut p, &mut s, key, *value) {
                    return eprintln!("{key}: no such key");
                }
            }
            let o = run(&s, p);
            let goodput = o.used * PAYLOAD / FRAME as f64;
            print!(" | {goodput:.3} {:4.0} {:5.0}", o.p50, o.p95);
        }
        println!();
    }
}
