//! What a lab run measured: the JSON that `--json` writes, the statistics over
//! it, and how the outcomes of the load agents become one [`Run`].

mod machine;
mod merge;
mod playback;
pub mod stats;
mod steps;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use machine::Machine;
pub use merge::{kind_name, merge, tail_window, MergeInput};
pub use playback::Playback;
pub use steps::{steps, Step};

/// One file of `--json`: everything that one `mef lab run` did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    pub machine: Machine,
    /// The topology's name (`lossy-200ms`).
    pub topology: String,
    /// One sentence: what the topology shows.
    pub description: String,
    /// The command that made this file, as it could be typed again.
    pub command: String,
    pub runs: Vec<Run>,
    /// Runs that were measured and repeated, with the reason.
    pub discarded: Vec<Discarded>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discarded {
    pub reason: String,
    pub run: Run,
}

/// One transport over one variant of the topology, once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Run {
    /// `mef`, `cubic` or `bbr`.
    pub transport: String,
    pub repeat: u32,
    /// `confirm` or `early`: when the routers answer a host's SYN; `None` where no router does.
    pub open: Option<String>,
    /// Which variant of the topology this was, for people (`1% loss`); empty if there is only one.
    pub variant: String,
    /// Loss of the direction that carries the payload, as configured, 0..1.
    pub loss: f64,
    pub seed: u64,
    /// How long the load ran, as asked for.
    pub seconds: f64,
    /// Length of the window that `goodput_bps` and `jain` are taken over; 0 without bulk flows.
    pub tail_seconds: f64,
    pub flows: Vec<Flow>,
    /// Payload at the receivers over the tail, all bulk flows together; without
    /// bulk flows all payload between the first connect() and the last byte.
    pub goodput_bps: f64,
    /// Payload at the receivers from the first connect() to the end of the load.
    pub goodput_from_connect_bps: f64,
    /// See [`stats::ceiling`].
    pub ceiling_bps: f64,
    /// Jain's index of the bulk flows' goodput over the tail; 1 for less than two.
    pub jain: f64,
    pub probe_p99_us: u64,
    pub probe_idle_p99_us: u64,
    pub probe: Probe,
    pub probe_idle: Probe,
    pub wan: Wan,
    pub router: Router,
    pub series: Series,
    /// Where the line changes while the load runs: how soon the run follows.
    pub steps: Vec<Step>,
    /// Whatever went wrong, in words.
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flow {
    pub id: u64,
    /// `bulk`, `transfer`, `request`, `stream` or `cbr`.
    pub kind: String,
    /// What was asked for, 0 for bulk.
    pub size: u64,
    /// Payload at the receiver.
    pub bytes: u64,
    /// Bulk, stream and CBR: over the tail. Else: `bytes` over `seconds`.
    pub goodput_bps: f64,
    /// connect() to the last byte at the receiver.
    pub seconds: f64,
    /// connect() to its return.
    pub connect_seconds: f64,
    /// The receiver's hash is the sender's; for a bulk flow cut off at the end
    /// of the run: every byte that arrived was the one that was sent there.
    pub sha256_ok: bool,
    /// Segments that the sending host's TCP sent again.
    pub retransmitted: u64,
    /// All of it arrived (of a bulk flow: all until it was cut off).
    pub complete: bool,
    /// From the run's origin.
    pub start_s: f64,
    pub error: Option<String>,
    /// Of a stream.
    pub playback: Option<Playback>,
    /// Of CBR: counts of all of it, delays of what was sent in the tail.
    pub datagrams: Option<Probe>,
}

/// A stream of small packets beside the load, host to host, one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probe {
    pub sent: u64,
    pub received: u64,
    pub duplicates: u64,
    pub p50_us: u64,
    pub p95_us: u64,
    pub p99_us: u64,
    pub p999_us: u64,
    pub max_us: u64,
}

/// What the emulator of the WAN measured in the direction that carries the payload, over the tail.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wan {
    pub rate_bps: f64,
    pub rtt_us: u64,
    pub loss: f64,
    pub lateness_p99_us: u64,
    pub offered: u64,
    pub delivered: u64,
    pub queue_drops: u64,
    pub loss_drops: u64,
    pub queue_p50_us: u64,
    pub queue_p95_us: u64,
    pub queue_p99_us: u64,
}

/// What the routers counted, both together; all zero without routers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Router {
    /// Per `stage.reason`.
    pub drops: BTreeMap<String, u64>,
    pub queue_p99_us: u64,
    pub cpu_s: f64,
    pub alarms: Vec<String>,
}

impl Router {
    /// Adds another router's figures: drops and CPU time sum up, the longer queue counts.
    pub fn add(&mut self, other: &Router) {
        for (reason, n) in &other.drops {
            *self.drops.entry(reason.clone()).or_default() += n;
        }
        self.queue_p99_us = self.queue_p99_us.max(other.queue_p99_us);
        self.cpu_s += other.cpu_s;
        self.alarms.extend(other.alarms.iter().cloned());
    }
}

/// What a router knew of its line at a time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estimate {
    /// From the run's origin.
    pub seconds: f64,
    pub phase: String,
    pub competes: bool,
    pub rate_bps: u64,
    pub delivered_bps: u64,
    pub queue_us: u64,
    pub wanted_queue_us: u64,
}

/// Curves for the charts. Time counts from the run's origin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Series {
    /// Width of a step of the goodput and queue series, seconds.
    pub interval_s: f64,
    /// When the first step of `goodput_bps` begins, seconds.
    pub start_s: f64,
    /// Payload at the receivers, all flows.
    pub goodput_bps: Vec<f64>,
    /// Of the bulk flows, by id, if there are several; steps as in `goodput_bps`.
    pub flows: BTreeMap<u64, Vec<f64>>,
    /// Longest queueing delay in the emulator per step from `queue_start_s` on, if it tells.
    pub queue_us: Vec<u64>,
    pub queue_start_s: f64,
    /// What the sending router knew of a line of unknown capacity, twice a second.
    pub estimates: Vec<Estimate>,
    /// Probe beside the load: (seconds, delay in us), thinned out to the worst of each step.
    pub probe_us: Vec<(f64, u32)>,
}

#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path}: not a result of `mef lab run --json`: {source}")]
    Json {
        path: String,
        source: serde_json::Error,
    },
}

impl Results {
    /// What went wrong, with the run that it was in.
    pub fn errors(&self) -> impl Iterator<Item = String> + '_ {
        let of_run = |r: &'_ Run| {
            let run = format!("{} {} repeat {}", r.transport, r.variant, r.repeat);
            let said = r.errors.iter().map(|e| format!("{run}: {e}"));
            said.collect::<Vec<_>>()
        };
        self.runs.iter().flat_map(of_run)
    }

    /// Reads a file that `write` (so `--json`) has written.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let text = std::fs::read_to_string(path).map_err(|source| ResultsError::Io {
            path: path.display().to_string(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| ResultsError::Json {
            path: path.display().to_string(),
            source,
        })
    }

    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        let text = serde_json::to_string(self).map_err(|source| ResultsError::Json {
            path: path.display().to_string(),
            source,
        })?;
        std::fs::write(path, text + "\n").map_err(|source| ResultsError::Io {
            path: path.display().to_string(),
            source,
        })
    }
}
