//! `mef lab sweep`: a matrix of RTT, loss, size and transport, and the curves that it gives:
//! goodput against RTT at each loss, goodput against loss at each RTT, and for transfers of a
//! size the seconds that they take.

use std::path::{Path, PathBuf};

use clap::Args;
use mef_packet::BitRate;
use serde::{Deserialize, Serialize};

use crate::cli::{RunArgs, Transport};
use crate::results::{stats, Machine, Results, Run};
use crate::run::{self, RunError};
use crate::sim::{self, SimRequest};
use crate::topology::{read_text, units, Variant};

#[derive(Clone, Debug, Args)]
pub struct SweepArgs {
    /// Round-trip times.
    #[arg(long, value_delimiter = ',', default_values = ["20ms", "50ms", "100ms", "200ms", "400ms"])]
    pub rtt: Vec<String>,
    /// Shares of frames lost at random, both ways.
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 0.0001, 0.001, 0.01, 0.05])]
    pub loss: Vec<f64>,
    /// What is sent: `bulk`, or transfers of a size such as 1MB.
    #[arg(long, value_delimiter = ',', default_values = ["bulk"])]
    pub size: Vec<String>,
    /// Transports to compare, interleaved; with --sim only mef.
    #[arg(long, value_delimiter = ',', default_values = ["cubic", "bbr", "mef"])]
    pub transport: Vec<Transport>,
    /// Rate of the line.
    #[arg(long, default_value = "100Mbit/s")]
    pub rate: String,
    /// Queue before it.
    #[arg(long, default_value = "1BDP")]
    pub queue: String,
    /// Override another value of the topology, for example `--set router.auto=balanced`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Runs of each point.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repeat: u32,
    /// Length of a bulk run, and the longest of one with transfers, in seconds.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(2..=86400))]
    pub seconds: u32,
    /// Transfers of each size in a run, one after another.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub count: u32,
    /// Seed of every random choice.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Run in the simulator, in one process with a virtual clock (transport mef only).
    #[arg(long)]
    pub sim: bool,
    /// Write the points to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write an HTML page with the curves into this directory.
    #[arg(long)]
    pub report: Option<PathBuf>,
}

/// What a sweep measured: the JSON that `--json` writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sweep {
    pub machine: Machine,
    /// The command that made this file, as it could be typed again.
    pub command: String,
    pub rate_bps: u64,
    pub points: Vec<Point>,
}

/// One run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Point {
    pub rtt_ms: f64,
    /// 0 to 1, each way.
    pub loss: f64,
    /// Bytes of each transfer; nothing for bulk.
    pub size: Option<u64>,
    pub transport: String,
    pub repeat: u32,
    pub seed: u64,
    /// Of bulk over the tail, else of the median transfer.
    pub goodput_bps: f64,
    pub ceiling_bps: f64,
    /// connect() to the last byte, of the transfers that arrived whole.
    pub seconds: Vec<f64>,
    /// Transfers that did not.
    pub unfinished: u64,
    pub queue_p95_us: u64,
    pub errors: Vec<String>,
}

/// A place of the matrix.
struct Place {
    rtt_ms: f64,
    loss: f64,
    size: Option<u64>,
}

/// Runs the matrix.
///
/// # Errors
/// An argument that is none, or what stops a lab.
pub fn sweep(args: &SweepArgs, command: &str) -> Result<Sweep, RunError> {
    let usage = |key: &str, found: &str, expected: &str| {
        RunError::Usage(format!("--{key}: found {found:?}, expected {expected}"))
    };
    let rate = units::rate(&args.rate)
        .ok_or_else(|| usage("rate", &args.rate, "a rate such as 100Mbit/s"))?;
    let mut places = Vec::new();
    let mut variants = Vec::new();
    for size in &args.size {
        let bytes = match size.as_str() {
            "bulk" => None,
            text => Some(
                units::bytes(text)
                    .ok_or_else(|| usage("size", text, "bulk, or a size such as 1MB"))?
                    .0,
            ),
        };
        for rtt in &args.rtt {
            let time =
                units::duration(rtt).ok_or_else(|| usage("rtt", rtt, "a time such as 50ms"))?;
            for &loss in &args.loss {
                let place = Place {
                    rtt_ms: time.as_secs_f64() * 1e3,
                    loss,
                    size: bytes,
                };
                variants.push(variant(args, &place, rtt)?);
                places.push(place);
            }
        }
    }
    let results = if args.sim {
        simulate(args, &variants, command)?
    } else {
        measure(args, &variants, command)?
    };
    let mut points = Vec::new();
    for run in &results.runs {
        let place = variants.iter().position(|v| v.label == run.variant);
        if let Some(place) = place.and_then(|i| places.get(i)) {
            points.push(point(place, run, rate));
        }
    }
    Ok(Sweep {
        machine: results.machine,
        command: command.to_owned(),
        rate_bps: rate.0,
        points,
    })
}

fn variant(args: &SweepArgs, place: &Place, rtt: &str) -> Result<Variant, RunError> {
    let load = match place.size {
        None => "kind = \"bulk\"".to_owned(),
        Some(size) => format!(
            "kind = \"transfer\"\nsize = \"{size}B\"\ncount = {}",
            args.count
        ),
    };
    let text = format!(
        "description = \"one place of a matrix\"\nseconds = {}\n[wan]\nrate = {:?}\nrtt = {rtt:?}\nqueue = {:?}\nloss = {:?}\n[probe]\noff = true\n[[load]]\n{load}\n",
        args.seconds, args.rate, args.queue, place.loss
    );
    let mut list = read_text(&text, Path::new("sweep.toml"), &args.set)?;
    let mut variant = list
        .pop()
        .ok_or_else(|| RunError::Usage("--set: leaves no topology to run".to_owned()))?;
    variant.label = format!(
        "{}, {rtt}, {}% loss",
        size_name(place.size),
        place.loss * 100.0
    );
    Ok(variant)
}

fn size_name(size: Option<u64>) -> String {
    size.map_or("bulk".to_owned(), |n| format!("{n} B"))
}

fn simulate(args: &SweepArgs, variants: &[Variant], command: &str) -> Result<Results, RunError> {
    let mut all = Results::default();
    for (i, v) in variants.iter().enumerate() {
        eprintln!("[{}/{}] simulated, {}", i + 1, variants.len(), v.label);
        let request = SimRequest {
            variants: std::slice::from_ref(v),
            repeat: args.repeat,
            seconds: None,
            seed: args.seed,
            command,
        };
        let one = sim::run(&request).map_err(|e| RunError::Usage(e.to_string()))?;
        all.machine = one.machine;
        all.runs.extend(one.runs);
    }
    Ok(all)
}

fn measure(args: &SweepArgs, variants: &[Variant], command: &str) -> Result<Results, RunError> {
    let request = RunArgs {
        topology: PathBuf::from("sweep.toml"),
        transport: args.transport.clone(),
        repeat: args.repeat,
        seconds: None,
        seed: args.seed,
        driver: None,
        json: None,
        report: None,
        sim: false,
        set: Vec::new(),
        trace: None,
        keep: false,
    };
    let outcome = run::run(&request, variants, command)?;
    if let Some(e) = outcome.failure {
        // What was measured before is worth more than nothing.
        eprintln!("mef lab: ended early: {e}");
    }
    Ok(outcome.results)
}

fn point(place: &Place, run: &Run, rate: BitRate) -> Point {
    let mut seconds: Vec<f64> = Vec::new();
    let mut unfinished = 0;
    for f in run.flows.iter().filter(|_| place.size.is_some()) {
        if f.complete {
            seconds.push(f.seconds);
        } else {
            unfinished += 1;
        }
    }
    let goodput_bps = match place.size {
        None => run.goodput_bps,
        Some(size) => stats::median(&seconds).map_or(0.0, |s| size as f64 * 8.0 / s),
    };
    Point {
        rtt_ms: place.rtt_ms,
        loss: place.loss,
        size: place.size,
        transport: run.transport.clone(),
        repeat: run.repeat,
        seed: run.seed,
        goodput_bps,
        ceiling_bps: stats::ceiling(rate.0 as f64, place.loss),
        seconds,
        unfinished,
        queue_p95_us: run.wan.queue_p95_us,
        errors: run.errors.clone(),
    }
}

/// The medians of the points as a table for the terminal, a row each place.
pub fn table(sweep: &Sweep) -> String {
    let mut out = format!(
        "{:>10} {:>9} {:>8}  {:8} {:>12} {:>10} {:>10}\n",
        "size", "RTT ms", "loss %", "", "Mbit/s", "% of max", "queue p95"
    );
    for group in groups(&sweep.points) {
        let Some(p) = group.first() else { continue };
        let median = |f: fn(&Point) -> f64| {
            stats::median(&group.iter().map(|p| f(p)).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        let goodput = median(|p| p.goodput_bps);
        out += &format!(
            "{:>10} {:>9} {:>8}  {:8} {:>12.2} {:>10.1} {:>7.1} ms\n",
            size_name(p.size),
            p.rtt_ms,
            p.loss * 100.0,
            p.transport,
            goodput / 1e6,
            100.0 * goodput / p.ceiling_bps.max(1.0),
            median(|p| p.queue_p95_us as f64) / 1e3,
        );
    }
    out
}

/// The points of each place and transport together, in the order in which they came.
pub(crate) fn groups(points: &[Point]) -> Vec<Vec<&Point>> {
    let mut groups: Vec<Vec<&Point>> = Vec::new();
    let key = |p: &Point| {
        (
            p.size,
            p.rtt_ms.to_bits(),
            p.loss.to_bits(),
            p.transport.clone(),
        )
    };
    for p in points {
        match groups
            .iter_mut()
            .find(|g| g.first().is_some_and(|q| key(q) == key(p)))
        {
            Some(group) => group.push(p),
            None => groups.push(vec![p]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SweepArgs,
    }

    fn args(text: &str) -> SweepArgs {
        Line::parse_from(std::iter::once("sweep").chain(text.split(' '))).args
    }

    #[test]
    fn a_simulated_matrix_has_every_place_and_the_ceiling_falls_with_the_loss() {
        let args = args("--sim --rtt 20ms,60ms --loss 0,0.05 --size bulk,100kB --rate 10Mbit/s --seconds 4 --count 2");
        let done = sweep(&args, "mef lab sweep").unwrap();
        assert_eq!(done.points.len(), 8);
        for p in &done.points {
            assert!(p.errors.is_empty(), "{p:?}");
            assert!(
                p.goodput_bps > 0.0 && p.goodput_bps <= 1.05 * p.ceiling_bps,
                "{p:?}"
            );
            assert_eq!(p.seconds.len(), if p.size.is_some() { 2 } else { 0 });
        }
        let bulk = |loss: f64| {
            let mut all = done.points.iter();
            all.find(|p| p.size.is_none() && p.loss == loss && p.rtt_ms == 60.0)
                .unwrap()
        };
        assert!(bulk(0.05).ceiling_bps < bulk(0.0).ceiling_bps);
        // Neither the distance nor the loss matters to bulk.
        assert!(
            bulk(0.05).goodput_bps > 0.9 * bulk(0.05).ceiling_bps,
            "{:?}",
            bulk(0.05)
        );
        assert_eq!(groups(&done.points).len(), 8);
        assert_eq!(table(&done).lines().count(), 9);
    }

    #[test]
    fn what_is_no_time_no_rate_and_no_size_is_said() {
        for (text, key) in [
            ("--sim --rtt fast", "rtt"),
            ("--sim --rate 100", "rate"),
            ("--sim --size big", "size"),
        ] {
            let e = sweep(&args(text), "").unwrap_err();
            assert!(e.is_input() && e.to_string().contains(key), "{e}");
        }
    }
}
