//! Orchestration of a run.
pub(crate) const NAME: &str = "run";
