//! `mef lab check`: whether measured results are good enough, for scripts and
//! CI. Looks at the runs over MEF routers only, because the others are there to
//! be compared with, and takes the median of the repeats of each variant, as one
//! run on a busy machine says little.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::results::stats::median;
use crate::results::{Results, Run};

/// What results have to reach.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Least goodput as a share of the ceiling, 0 to 1.
    pub goodput: Option<f64>,
    /// Longest 99th percentile of the emulator's queue.
    pub queue: Option<Duration>,
}

/// The repeats of one variant, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Topology and variant.
    pub name: String,
    /// What was measured, in words.
    pub seen: String,
    /// What is not good enough; empty if all is.
    pub failures: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = if self.failures.is_empty() {
            "ok    "
        } else {
            "FAILED"
        };
        write!(f, "{head} {}: {}", self.name, self.seen)?;
        self.failures
            .iter()
            .try_for_each(|failure| write!(f, "\n       {failure}"))
    }
}

/// One verdict for each variant; a result without a run over MEF routers fails, because nothing was shown then.
pub fn check(results: &Results, limits: &Limits) -> Vec<Verdict> {
    let mut variants: BTreeMap<(&str, &str), Vec<&Run>> = BTreeMap::new();
    for run in results.runs.iter().filter(|r| r.transport == "mef") {
        let open = run.open.as_deref().unwrap_or_default();
        variants.entry((&run.variant, open)).or_default().push(run);
    }
    if variants.is_empty() {
        return vec![Verdict {
            name: results.topology.clone(),
            seen: "no run over MEF routers".to_owned(),
            failures: vec!["expected at least one; run it with --transport mef".to_owned()],
        }];
    }
    let verdict = |((variant, open), runs): ((&str, &str), Vec<&Run>)| {
        let parts = [results.topology.as_str(), variant, open];
        let name = parts
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join(", ");
        judge(name, &runs, limits)
    };
    variants.into_iter().map(verdict).collect()
}

fn judge(name: String, runs: &[&Run], limits: &Limits) -> Verdict {
    let of = |value: fn(&Run) -> f64| {
        median(&runs.iter().map(|r| value(r)).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let share = of(|r| r.goodput_bps / r.ceiling_bps);
    let queue_ms = of(|r| r.wan.queue_p99_us as f64 / 1e3);
    let mut failures = Vec::new();
    // A figure that is not a number (nothing ran) is as good as none.
    if let Some(least) = limits
        .goodput
        .filter(|least| share.is_nan() || share < *least)
    {
        failures.push(format!(
            "goodput is {:.1}% of the ceiling, expected at least {:.1}%",
            share * 100.0,
            least * 100.0
        ));
    }
    if let Some(most) = limits
        .queue
        .map(|q| q.as_secs_f64() * 1e3)
        .filter(|most| queue_ms.is_nan() || queue_ms > *most)
    {
        failures.push(format!(
            "the queue's p99 is {queue_ms:.1} ms, expected at most {most:.1} ms"
        ));
    }
    if limits.queue.is_some() {
        let dropped: u64 = runs.iter().map(|r| r.wan.queue_drops).sum();
        if dropped > 0 {
            failures.push(format!(
                "the line's queue dropped {dropped} packets, expected none"
            ));
        }
    }
    let flows = || runs.iter().flat_map(|r| &r.flows);
    if flows().next().is_none() {
        failures.push("no flow was measured".to_owned());
    }
    let damaged = flows().filter(|f| !f.sha256_ok).count();
    if damaged > 0 {
        failures.push(format!(
            "{damaged} of {} flows did not arrive as they were sent",
            flows().count()
        ));
    }
    failures.extend(runs.iter().flat_map(|r| &r.errors).take(5).cloned());
    let seen = format!(
        "goodput {:.1}% of the ceiling, queue p99 {queue_ms:.1} ms",
        share * 100.0
    );
    Verdict {
        name,
        seen,
        failures,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Flow, Wan};

    const LIMITS: Limits = Limits {
        goodput: Some(0.95),
        queue: Some(Duration::from_millis(5)),
    };

    fn run(share: f64) -> Run {
        Run {
            transport: "mef".to_owned(),
            ceiling_bps: 1e8,
            goodput_bps: share * 1e8,
            flows: vec![Flow {
                sha256_ok: true,
                ..Flow::default()
            }],
            wan: Wan {
                queue_p99_us: 900,
                ..Wan::default()
            },
            ..Run::default()
        }
    }

    fn failures(runs: Vec<Run>) -> Vec<String> {
        let results = Results {
            runs,
            ..Results::default()
        };
        check(&results, &LIMITS)
            .into_iter()
            .flat_map(|v| v.failures)
            .collect()
    }

    #[test]
    fn the_median_of_the_repeats_counts() {
        assert!(failures(vec![run(0.97), run(0.5), run(0.96)]).is_empty());
        assert_eq!(failures(vec![run(0.97), run(0.5), run(0.94)]).len(), 1);
    }

    #[test]
    fn each_limit_can_fail() {
        let worse: [fn(&mut Run); 6] = [
            |r| r.goodput_bps = 0.949e8,
            |r| r.wan.queue_p99_us = 5_100,
            |r| r.wan.queue_drops = 1,
            |r| r.flows[0].sha256_ok = false,
            |r| r.flows.clear(),
            |r| r.errors.push("router b ended during the run".to_owned()),
        ];
        for (i, worsen) in worse.into_iter().enumerate() {
            let mut r = run(0.97);
            worsen(&mut r);
            assert_eq!(failures(vec![r]).len(), 1, "{i}");
        }
    }

    #[test]
    fn variants_are_judged_one_by_one_and_other_transports_not() {
        let lossy = Run {
            variant: "1% loss".to_owned(),
            ..run(0.2)
        };
        let cubic = Run {
            transport: "cubic".to_owned(),
            ..run(0.01)
        };
        let results = Results {
            runs: vec![run(0.97), lossy, cubic.clone()],
            ..Results::default()
        };
        let bad: Vec<bool> = check(&results, &LIMITS)
            .iter()
            .map(|v| !v.failures.is_empty())
            .collect();
        assert_eq!(bad, [false, true]);
        assert_eq!(failures(vec![cubic]).len(), 1);
    }

    #[test]
    fn figures_that_are_no_numbers_fail() {
        let nothing = Run {
            goodput_bps: 0.0,
            ceiling_bps: 0.0,
            ..run(0.0)
        };
        assert_eq!(failures(vec![nothing]).len(), 1);
    }
}
