//! How soon a run follows a line that changes while the load runs: a section for the start and for
//! each change of rate, delay or loss.

use serde::{Deserialize, Serialize};

use super::{stats, Series};
use crate::wan::config::{Change, DirectionConfig, Line};

/// Goodput over this long tells that a rate has been reached, seconds.
const REACHED_OVER: f64 = 0.3;
const REACHED: f64 = 0.9;
/// A queue longer than this is counted, microseconds.
const LONG_QUEUE_US: u64 = 100_000;

/// From one change of the line to the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Step {
    /// Seconds from the start of the load.
    pub at_s: f64,
    /// Until the next change or the end.
    pub until_s: f64,
    /// What the line carries then.
    pub rate_bps: u64,
    /// Until goodput was first at nine tenths of the most possible, 0.3 s long; nothing if it never was.
    pub reached_s: Option<f64>,
    /// Seconds in which the longest queue was above 100 ms.
    pub queue_s: f64,
    /// Goodput behind the first second, as a share of the most possible.
    pub share: f64,
    /// That of its least second: bytes that arrive behind a gap wait for it.
    pub least: f64,
}

/// Of a line with a rate that changes at times; empty for any other.
pub fn steps(series: &Series, line: &DirectionConfig, seconds: f64) -> Vec<Step> {
    let Line::Rate(rate) = line.line else {
        return Vec::new();
    };
    let (mut rate, mut loss) = (rate, line.loss.mean());
    let mut sections = vec![(0.0, rate, loss)];
    for s in &line.changes {
        match s.change {
            Change::Rate(r) => rate = r,
            Change::Loss(p) => loss = p,
            Change::Delay(_) => {}
            Change::Mtu(_) | Change::Blackhole(_) => return Vec::new(),
        }
        let at = s.at.as_secs_f64();
        match sections.last_mut() {
            Some(last) if last.0 == at => *last = (at, rate, loss),
            _ => sections.push((at, rate, loss)),
        }
    }
    if sections.len() < 2 {
        return Vec::new();
    }
    let ends = sections.iter().skip(1).map(|s| s.0).chain([seconds]);
    let of = sections.iter().zip(ends);
    of.filter(|(s, end)| s.0 < *end)
        .map(|(&(at, rate, loss), end)| {
            let most = stats::ceiling(rate.bits_per_second() as f64, loss);
            step(series, (at, end), rate.bits_per_second(), most)
        })
        .collect()
}

fn step(series: &Series, (at, end): (f64, f64), rate_bps: u64, most: f64) -> Step {
    let dt = series.interval_s.max(1e-3);
    let index = |start: f64, t: f64| (((t - start) / dt).round().max(0.0)) as usize;
    let part = |from: f64, to: f64| {
        let of = index(series.start_s, from)..index(series.start_s, to);
        series.goodput_bps.get(of).unwrap_or_default()
    };
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    let window = ((REACHED_OVER / dt).round() as usize).max(1);
    let whole = part(at.max(series.start_s), end);
    // What passed before the load began to arrive counts.
    let before = (series.start_s - at).max(0.0);
    let reached = whole
        .windows(window)
        .position(|w| mean(w) >= REACHED * most)
        .map(|i| before + (i + window) as f64 * dt);
    let mut least = f64::INFINITY;
    let mut second = at + 1.0;
    while second + 1.0 <= end + 1e-6 {
        least = least.min(mean(part(second, second + 1.0)) / most.max(1.0));
        second += 1.0;
    }
    let queue = index(series.queue_start_s, at)..index(series.queue_start_s, end);
    let long = series.queue_us.get(queue).unwrap_or_default();
    Step {
        at_s: at,
        until_s: end,
        rate_bps,
        reached_s: reached,
        queue_s: long.iter().filter(|q| **q > LONG_QUEUE_US).count() as f64 * dt,
        share: mean(part(at + 1.0, end)) / most.max(1.0),
        least: if least.is_finite() { least } else { 0.0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::config::{Loss, Scheduled};
    use mef_packet::BitRate;
    use std::time::Duration;

    #[test]
    fn a_step_that_is_followed_late_is_told_with_its_queue() {
        let most = |mbit: f64| stats::ceiling(mbit * 1e6, 0.0);
        // 10 Mbit/s for 3 s, then 20 of which half is used for a second.
        let mut goodput = vec![most(10.0); 30];
        goodput.extend(vec![most(10.0); 10]);
        goodput.extend(vec![most(20.0); 20]);
        let mut queue = vec![0; 60];
        queue[32..39].fill(150_000);
        let series = Series {
            interval_s: 0.1,
            goodput_bps: goodput,
            queue_us: queue,
            ..Series::default()
        };
        let line = DirectionConfig {
            line: Line::Rate(BitRate::from_mbit(10)),
            loss: Loss::NONE,
            changes: vec![Scheduled {
                at: Duration::from_secs(3),
                change: Change::Rate(BitRate::from_mbit(20)),
            }],
            ..DirectionConfig::default()
        };
        let steps = steps(&series, &line, 6.0);
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].at_s, steps[0].until_s), (0.0, 3.0));
        assert!((steps[0].reached_s.unwrap() - 0.3).abs() < 1e-9);
        assert!((steps[0].least - 1.0).abs() < 1e-9);
        assert!((steps[0].share - 1.0).abs() < 1e-9);
        assert_eq!(steps[0].queue_s, 0.0);
        assert_eq!(steps[1].rate_bps, 20_000_000);
        assert!((steps[1].reached_s.unwrap() - 1.3).abs() < 1e-9);
        assert!((steps[1].queue_s - 0.7).abs() < 1e-9);
        assert!(
            (steps[1].least - 1.0).abs() < 1e-9,
            "the first second is another matter"
        );
    }

    #[test]
    fn a_line_that_does_not_change_has_none() {
        let line = DirectionConfig {
            line: Line::Rate(BitRate::from_mbit(10)),
            ..DirectionConfig::default()
        };
        assert!(steps(&Series::default(), &line, 6.0).is_empty());
    }
}
