//! The same topologies in one process with a virtual clock.

use crate::results::Results;
use crate::topology::Variant;

/// What `mef lab run --sim` is asked for.
#[derive(Clone, Debug)]
pub struct SimRequest<'a> {
    pub variants: &'a [Variant],
    pub repeat: u32,
    /// Length of a run; the topology's own if not given.
    pub seconds: Option<u32>,
    pub seed: u64,
    /// For the results: the command as typed.
    pub command: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error("--sim is not part of this build; run without it, in network namespaces (as root)")]
    NotBuilt,
}

/// Runs every variant with MEF routers in the simulator.
pub fn run(_request: &SimRequest<'_>) -> Result<Results, SimError> {
    Err(SimError::NotBuilt)
}
