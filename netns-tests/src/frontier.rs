//! `mef lab frontier`: goodput against the 95th percentile of the queueing delay, a panel for each
//! topology of unknown capacity: the controller's settings in the simulator, an oracle, and what
//! was measured over real kernels, from the files of `mef lab run --json`.
//!
//! The oracle knows exactly what the line carried and how much waited one round trip ago, sends
//! frames that cost nothing to recover, and aims at a fixed queue: what is lost against it is lost
//! by estimating, what it loses itself by nobody's knowing the future.

use std::collections::VecDeque;
use std::path::PathBuf;

use clap::Args;

use crate::results::{stats, tail_window, Results};

use crate::run::RunError;
use crate::sim::{self, SimRequest};
use crate::topology::{read, Side, Topology, Variant};
use crate::wan::config::Line;

#[derive(Clone, Debug, Args)]
pub struct FrontierArgs {
    /// Topology files with a recorded line, such as `topologies/lte-verizon.toml`; of a list of
    /// variants the first is taken.
    #[arg(required = true)]
    pub topologies: Vec<PathBuf>,
    /// Traces instead of the topologies' own, in their order.
    #[arg(long, value_name = "FILE")]
    pub trace: Vec<PathBuf>,
    /// Results of `mef lab run --json`; runs of these topologies without random loss are drawn, as
    /// medians of their repeats.
    #[arg(long = "with", value_name = "FILE")]
    pub measured: Vec<PathBuf>,
    /// Length of a simulated run; the topology's own if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=86400))]
    pub seconds: Option<u32>,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the drawing to this file.
    #[arg(long)]
    pub svg: PathBuf,
}

/// One topology.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Panel {
    pub title: String,
    pub curves: Vec<Curve>,
}

/// Places that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    pub name: String,
    /// Whether its points are settings of one thing, and joined by a line.
    pub joined: bool,
    pub points: Vec<Point>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    pub name: String,
    /// 95th percentile, ms.
    pub queue_ms: f64,
    /// Share of the most that the line can carry.
    pub goodput: f64,
}

const TARGETS: [&str; 3] = ["latency", "balanced", "throughput"];
/// Queues that the oracle aims at, ms.
const ORACLE_MS: [f64; 8] = [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];

/// Simulates, reads what was measured, and puts both together.
///
/// # Errors
/// What a topology or a file of results is refused for.
pub fn frontier(args: &FrontierArgs, command: &str) -> Result<Vec<Panel>, RunError> {
    let mut measured = Vec::new();
    for path in &args.measured {
        measured.push(Results::read(path).map_err(|e| RunError::Usage(e.to_string()))?);
    }
    let mut panels = Vec::new();
    for (i, path) in args.topologies.iter().enumerate() {
        let mut sets = Vec::new();
        if let Some(trace) = args.trace.get(i) {
            let absolute = std::path::absolute(trace).map_err(|source| RunError::File {
                path: trace.clone(),
                source,
            })?;
            let text = absolute.display().to_string();
            sets.push(format!("wan.a_to_b.trace={text:?}"));
        }
        let mut settings = Vec::new();
        for target in TARGETS {
            let mut sets = sets.clone();
            sets.push(format!("router.auto={target:?}"));
            sets.push("wan.loss=0".to_owned());
            let variant = read(path, &sets)?.into_iter().next();
            let mut variant =
                variant.ok_or_else(|| RunError::Usage(format!("{}: empty", path.display())))?;
            target.clone_into(&mut variant.label);
            settings.push(variant);
        }
        panels.extend(panel(args, &settings, &measured, command)?);
    }
    Ok(panels)
}

fn panel(
    args: &FrontierArgs,
    settings: &[Variant],
    measured: &[Results],
    command: &str,
) -> Result<Option<Panel>, RunError> {
    let Some(topology) = settings.first().map(|v| &v.topology) else {
        return Ok(None);
    };
    let results = sim::run(&SimRequest {
        variants: settings,
        repeat: 1,
        seconds: args.seconds,
        seed: args.seed,
        command,
    })
    .map_err(|e| RunError::Usage(e.to_string()))?;
    let ours = results.runs.iter().map(|run| Point {
        name: run.variant.clone(),
        queue_ms: run.wan.queue_p95_us as f64 / 1e3,
        goodput: run.goodput_bps / run.ceiling_bps.max(1.0),
    });
    let mut curves = vec![Curve {
        name: "MEF, simulated".to_owned(),
        joined: true,
        points: ours.collect(),
    }];
    let seconds = args.seconds.unwrap_or(topology.seconds);
    let oracle = ORACLE_MS
        .iter()
        .filter_map(|ms| oracle(topology, seconds, *ms));
    let oracle: Vec<Point> = oracle.collect();
    if !oracle.is_empty() {
        curves.push(Curve {
            name: "oracle, a round trip late".to_owned(),
            joined: true,
            points: oracle,
        });
    }
    for transport in ["mef", "bbr", "cubic"] {
        let runs = measured
            .iter()
            .filter(|r| r.topology == topology.name)
            .flat_map(|r| &r.runs)
            .filter(|r| r.transport == transport && r.loss == 0.0);
        let (queue, goodput): (Vec<f64>, Vec<f64>) = runs
            .map(|r| {
                let share = r.goodput_bps / r.ceiling_bps.max(1.0);
                (r.wan.queue_p95_us as f64 / 1e3, share)
            })
            .unzip();
        if let (Some(queue_ms), Some(goodput)) = (stats::median(&queue), stats::median(&goodput)) {
            let name = format!("{}, measured", transport.to_uppercase());
            curves.push(Curve {
                name: name.clone(),
                joined: false,
                points: vec![Point {
                    name,
                    queue_ms,
                    goodput,
                }],
            });
        }
    }
    Ok(Some(Panel {
        title: topology.name.clone(),
        curves,
    }))
}

/// Full frames of one sender, a millisecond at a time; `None` if the line has no trace.
fn oracle(topology: &Topology, seconds: u32, target_ms: f64) -> Option<Point> {
    const FRAME: f64 = 1514.0;
    let line = topology.wan_from(Side::A);
    let Line::Trace(trace) = &line.line else {
        return None;
    };
    let rtt = (line.delay + topology.wan_from(Side::B).delay).as_millis() as usize;
    let (from, to) = tail_window(f64::from(seconds), 0.0);
    let at = |ms: usize| {
        trace
            .capacity(std::time::Duration::from_millis(ms as u64))
            .0 as f64
    };
    // What the line had delivered, and what had been sent, by the end of each millisecond.
    let (mut delivered, mut sent) = (vec![0.0f64], vec![0.0f64]);
    let mut queue: VecDeque<(usize, f64)> = VecDeque::new();
    let (mut tokens, mut credit, mut queued) = (0.0f64, 0.0f64, 0.0f64);
    let (mut offered, mut carried) = (0.0, 0.0);
    let mut delays: Vec<f64> = Vec::new();
    let limit = line.queue.0 as f64;
    for ms in 0..(to * 1e3) as usize {
        // The rate of the line over the 50 ms before what is known.
        let known = ms.saturating_sub(rtt);
        let rate = (at(known.max(50)) - at(known.max(50) - 50)) / 50.0;
        let inflight = sent.last()? - delivered.get(known)?;
        let wanted = rate * (rtt as f64 + target_ms);
        let send = (rate + (wanted - inflight) / rtt.max(1) as f64).clamp(0.0, 2.0 * rate);
        tokens = (tokens + send).min(send + FRAME);
        let mut total = *sent.last()?;
        while tokens >= FRAME && queued + FRAME <= limit {
            tokens -= FRAME;
            total += FRAME;
            queued += FRAME;
            queue.push_back((ms, FRAME));
        }
        sent.push(total);
        let more = at(ms + 1) - at(ms);
        credit = if queue.is_empty() {
            more
        } else {
            credit + more
        };
        let mut out = *delivered.last()?;
        let measured = ms as f64 >= from * 1e3;
        while let Some((since, size)) = queue.front().copied().filter(|f| credit >= f.1) {
            queue.pop_front();
            credit -= size;
            queued -= size;
            out += size;
            if measured {
                delays.push((ms - since) as f64);
                carried += size;
            }
        }
        delivered.push(out);
        if measured {
            offered += more;
        }
    }
    Some(Point {
        name: format!("{target_ms} ms wanted"),
        queue_ms: stats::quantile(&delays, 0.95)?,
        goodput: carried / offered,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../topologies")
            .join(name)
    }

    #[test]
    fn a_longer_queue_carries_more_and_the_settings_are_in_order() {
        let args = FrontierArgs {
            topologies: vec![file("lte-verizon.toml")],
            trace: vec![file("traces/synthetic-lte-slow.trace")],
            measured: Vec::new(),
            seconds: Some(40),
            seed: 1,
            svg: PathBuf::new(),
        };
        let panels = frontier(&args, "").unwrap();
        let curves = &panels[0].curves;
        let oracle = &curves[1].points;
        assert_eq!(oracle.len(), ORACLE_MS.len());
        assert!(oracle[6].goodput > oracle[0].goodput + 0.02, "{oracle:?}");
        assert!(oracle[6].queue_ms > 2.0 * oracle[0].queue_ms, "{oracle:?}");
        assert!(oracle.iter().all(|p| p.goodput <= 1.001), "{oracle:?}");
        let ours = &curves[0].points;
        assert_eq!(ours.len(), 3);
        for pair in ours.windows(2) {
            assert!(pair[0].queue_ms < pair[1].queue_ms, "{ours:?}");
            assert!(pair[0].goodput < pair[1].goodput + 0.01, "{ours:?}");
        }
    }
}
