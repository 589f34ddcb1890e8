//! Shares beside others on a line of unknown capacity, in virtual time: every two seconds the
//! Mbit/s of the controller, a star where it competes, and the longest queue in ms.
//!
//! ```text
//! cargo run --release -p mef-protocol --example auto_beside -- rtt=100 mbit=50 queue=100 \
//!     cubic@0 bbr@10 cbr25@5-40
//! ```
//!
//! A flow is its kind, its start, and its end if it has one, in seconds; `8*cubic@0` are eight.

#[path = "../tests/auto_model/mod.rs"]
mod auto_model;

use auto_model::foreign::{Foreign, Kind};
use auto_model::{run, Line, Setup};
use mef_protocol::auto::{Params, Target};

fn flow(text: &str) -> Option<Vec<Foreign>> {
    let (n, text) = text.split_once('*').unwrap_or(("1", text));
    let (kind, times) = text.split_once('@')?;
    let (start, end) = times.split_once('-').unwrap_or((times, "inf"));
    let kind = match kind {
        "cubic" => Kind::Cubic,
        "bbr" => Kind::Bbr,
        cbr => Kind::Constant(cbr.strip_prefix("cbr")?.parse().ok()?),
    };
    let flow = Foreign {
        kind,
        start: start.parse().ok()?,
        end: end.parse().ok()?,
    };
    Some(vec![flow; n.parse().ok()?])
}

fn main() {
    let (mut rtt, mut mbit, mut queue, mut seconds, mut loss) = (100.0, 50.0, None, 60.0, 0.0);
    let mut seed = 0.0;
    let mut foreign = Vec::new();
    for arg in std::env::args().skip(1) {
        if let Some((key, value)) = arg.split_once('=') {
            let Ok(value) = value.parse::<f64>() else {
                return eprintln!("{arg}: expected KEY=NUMBER");
            };
            match key {
                "rtt" => rtt = value,
                "mbit" => mbit = value,
                "queue" => queue = Some(value),
                "seconds" => seconds = value,
                "loss" => loss = value,
                "seed" => seed = value,
                _ => return eprintln!("{key}: no such key"),
            }
        } else {
            match flow(&arg) {
                Some(flows) => foreign.extend(flows),
                None => return eprintln!("{arg}: expected such as cubic@0, 8*bbr@10-40, cbr25@0"),
            }
        }
    }
    let setup = Setup {
        line: Line::Steps(vec![(0.0, mbit)]),
        forward: rtt as usize / 2,
        back: rtt as usize / 2,
        longer: Vec::new(),
        queue: queue.unwrap_or(rtt) / 1e3,
        loss,
        seconds,
        from: seconds / 2.0,
        ack_ms: (rtt as usize / 8).clamp(5, 10),
        foreign,
        quiet: 0.0,
        seed: seed as u64,
    };
    let o = run(&setup, Params::of(Target::Balanced));
    for (mef, all) in o.mef.chunks(200).zip(o.series.chunks(200)) {
        let mbit = mef.iter().map(|m| m.0).sum::<f64>() * 8e-6 / (mef.len() as f64 / 100.0);
        let star = if mef.iter().any(|m| m.2) { "*" } else { "" };
        let queue = all.iter().map(|a| a.1).fold(0.0, f64::max);
        print!("{mbit:.0}{star}/{queue:.0} ");
    }
    let shares: Vec<String> = o.shares.iter().map(|s| format!("{s:.2}")).collect();
    let drops: Vec<String> = o
        .foreign_drops
        .iter()
        .map(|d| format!("{:.4}", d.0 as f64 / d.1.max(1) as f64))
        .collect();
    println!(
        "\nsecond half: shares {}, p50 {} ms, p95 {} ms, lost {}",
        shares.join(" "),
        o.p50,
        o.p95,
        drops.join(" ")
    );
}
