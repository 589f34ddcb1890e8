//! Metrics for Prometheus: what the router counts, served as text over HTTP.
//!
//! ```text
//!   GET /metrics -> http.rs -> Asker -> the router's Sample -> families.rs -> text.rs
//! ```
//!
//! The router gives a copy of its counters; all text is made by the threads that
//! serve it. Every series is there from the start, and none speaks of a flow.

mod families;
mod http;
mod process;
mod text;

pub use families::render;
pub use http::{MetricsError, MetricsServer};

use mef_packet::Bytes;

use crate::control::Snapshot;
use crate::drops::Counters;
use crate::report::{Link, Port, Worker};
use crate::stats::Histogram;

/// A copy of what the router counts, from which the metrics are made.
#[derive(Clone, Debug)]
pub struct Sample {
    pub status: Snapshot,
    /// SHA-256 of the configuration.
    pub digest: [u8; 32],
    pub links: Vec<Link>,
    pub ports: Vec<Port>,
    pub drops: Counters,
    pub queue_wait: Histogram,
    pub memory_used: Bytes,
    pub memory_limit: Bytes,
    pub workers: Vec<Worker>,
}
