//! How far past rates would have foretold what came after them, and from that how much is
//! wanted in flight: F times what the rate alone foretells.
//!
//! On a steady line F is a quantile of the past. On one that varies by itself it is as much as
//! leaves a bearable queue when the line falls as far as it did in the worst twentieth of the
//! past, within two quantiles: so a line that falls far gets shorter queues for a little goodput,
//! and one that falls little is used fully, instead of all of them at the same quantile.

use std::collections::VecDeque;

use super::reports::Reports;
use super::Params;

/// F is at most this.
const MOST: f64 = 3.0;
/// It changes over seconds and is not computed for every report, seconds.
const INTERVAL: f64 = 0.02;
/// A line on which so little more than foretold comes, at this quantile, does not vary by itself.
const STEADY: f64 = 1.2;
const VARIATION: f64 = 0.83;
/// Quantile that tells how far the line falls.
const FALL: f64 = 0.05;
/// Comparisons of a forecast with what came: fewer say nothing, more are not kept.
const ENOUGH: usize = 8;
const MAX_RATIOS: usize = 8192;
/// A line from which nothing came for so many seconds pauses: no factor would have been right.
const PAUSE: f64 = 0.08;

#[derive(Clone, Debug)]
pub(super) struct Forecast {
    /// When, seconds of the receiver's clock, and what came as a multiple of what the rate foretold.
    ratios: VecDeque<(f64, f64)>,
    sorted: Vec<f64>,
    /// Time of the newest point whose forecast has been compared.
    judged: f64,
    /// When F was computed, and F.
    computed: f64,
    factor: f64,
    /// The same of one quantile for all targets: whether the line varies by itself.
    variation: f64,
}

impl Default for Forecast {
    fn default() -> Self {
        Self {
            ratios: VecDeque::new(),
            sorted: Vec::new(),
            judged: 0.0,
            computed: f64::NEG_INFINITY,
            factor: 1.0,
            variation: 1.0,
        }
    }
}

impl Forecast {
    /// The peer's clock starts anew. What is known of the line stays until there is more.
    pub fn clear(&mut self) {
        *self = Self {
            factor: self.factor,
            variation: self.variation,
            ..Self::default()
        };
    }

    /// F.
    pub fn factor(&self) -> f64 {
        self.factor
    }

    pub fn varies(&self) -> bool {
        self.variation >= STEADY
    }

    /// Takes the newest reports. `lag` is the age of what is known of the line, seconds; `shared`
    /// says that somebody else may be what makes it vary.
    pub fn update(&mut self, reports: &Reports, lag: f64, shared: bool, p: &Params) {
        let Some(now) = reports.last().map(|p| p.at) else {
            return;
        };
        if now - self.computed < INTERVAL {
            return;
        }
        self.computed = now;
        self.judge(reports, now, lag, p.varying.memory.max(p.memory));
        self.variation = self.quantile(now, VARIATION, p.memory);
        let f = if self.varies() && !shared {
            let v = p.varying;
            // What is in flight when the line falls waits for as long as the fallen line needs.
            let bearable = 1.0 + (v.tail + v.tail_age * lag) / lag;
            let bearable = bearable * self.quantile(now, FALL, v.memory);
            let least = self.quantile(now, v.least, p.memory);
            let most = self.quantile(now, v.most, p.memory);
            let small = self.variation.min(1.0 + v.small / lag);
            bearable.min(most).max(least).max(small)
        } else {
            self.quantile(now, p.quantile, p.memory)
        };
        self.factor = f.clamp(1.0, MOST);
    }

    /// Compares, for every point old enough, what came within `horizon` seconds with what its rate
    /// foretold, and forgets comparisons older than `memory` seconds.
    fn judge(&mut self, reports: &Reports, now: f64, horizon: f64, memory: f64) {
        let points = reports.points();
        let first = points.partition_point(|p| p.at <= self.judged);
        for (i, p) in points.iter().enumerate().skip(first) {
            if p.at + horizon > now {
                break;
            }
            self.judged = p.at;
            if p.rate > 0.0 && !pauses(reports, i, horizon) {
                let came = reports.delivered_at(p.at + horizon) - p.delivered;
                self.ratios.push_back((p.at, came / (p.rate * horizon)));
            }
        }
        while self.ratios.len() > MAX_RATIOS
            || self.ratios.front().is_some_and(|r| now - r.0 > memory)
        {
            self.ratios.pop_front();
        }
    }

    /// Of the forecasts of the newest `memory` seconds, the share `q` lay below this multiple of what
    /// the rate foretold; 1 while too little is known.
    fn quantile(&mut self, now: f64, q: f64, memory: f64) -> f64 {
        let first = self.ratios.partition_point(|r| now - r.0 > memory);
        if self.ratios.len() - first < ENOUGH {
            return 1.0;
        }
        self.sorted.clear();
        self.sorted.extend(self.ratios.range(first..).map(|r| r.1));
        let k = ((self.sorted.len() - 1) as f64 * q) as usize;
        let (_, v, _) = self.sorted.select_nth_unstable_by(k, f64::total_cmp);
        *v
    }
}

/// Whether within `horizon` seconds from point `i` on nothing came for a while.
fn pauses(reports: &Reports, i: usize, horizon: f64) -> bool {
    let mut ahead = reports.points().range(i..);
    let Some(mut newest) = ahead.next() else {
        return false;
    };
    let end = newest.at + horizon;
    for p in ahead {
        if p.delivered > newest.delivered {
            newest = p;
        } else if p.at.min(end) - newest.at > PAUSE {
            return true;
        }
        if p.at > end {
            break;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::reports::Point;
    use super::super::Target;
    use super::*;

    /// What the line delivers in `seconds`, bytes/s by the time, reported every 10 ms; 0.1 s old.
    fn after(seconds: f64, rate: impl Fn(f64) -> f64, target: Target) -> Forecast {
        let (mut f, mut reports) = (Forecast::default(), Reports::default());
        let mut delivered = 0.0;
        for i in 0..(seconds * 100.0) as usize {
            let at = i as f64 / 100.0;
            delivered += 0.01 * rate(at);
            reports.push(Point {
                at,
                sent_at: at - 0.1,
                sent: delivered,
                delivered,
                delay: 0.1,
                rate: 0.0,
            });
            reports.foretell(reports.rate_over(0.05));
            f.update(&reports, 0.1, false, &Params::of(target));
        }
        f
    }

    #[test]
    fn on_a_steady_line_comes_what_was_foretold() {
        let f = after(10.0, |_| 1e6, Target::Balanced);
        assert!(!f.varies());
        assert!((f.factor() - 1.0).abs() < 0.01, "{}", f.factor());
    }

    /// A line that doubles and halves: twice what was foretold comes at times, and as often half.
    #[test]
    fn a_line_that_varies_wants_more_and_less_for_latency() {
        let swings = |t: f64| if (t * 7.0) as u64 % 2 == 0 { 1e6 } else { 2e6 };
        let of = |target| after(20.0, swings, target);
        let (least, most) = (of(Target::Latency), of(Target::Throughput));
        assert!(most.varies());
        assert!(most.factor() > 1.2, "{}", most.factor());
        assert!(least.factor() < most.factor(), "{}", least.factor());
    }

    /// The same ups; the downs of one go down to a tenth. A pause is no fall.
    #[test]
    fn where_the_line_falls_far_less_is_wanted() {
        let line = |low: f64| {
            move |t: f64| match (t * 7.0) as u64 % 2 {
                _ if t % 1.5 < 0.3 => low,
                0 => 1e6,
                _ => 2e6,
            }
        };
        let of = |low| after(30.0, line(low), Target::Balanced).factor();
        assert!(of(0.1e6) < of(1e6) - 0.1, "{} {}", of(0.1e6), of(1e6));
        assert!((of(0.0) - of(1e6)).abs() < 0.3, "{} {}", of(0.0), of(1e6));
    }
}
