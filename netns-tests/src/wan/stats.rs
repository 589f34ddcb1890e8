//! What the running emulator tells: measured on the frames as they left, not
//! copied from the configuration.

use serde::{Deserialize, Serialize};

/// Step of [`DirectionSnapshot::queue_us`], seconds.
pub const SERIES_STEP_S: f64 = 0.1;

/// Both directions since the last `window` command (or the start).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Length of the window.
    pub seconds: f64,
    pub a_to_b: DirectionSnapshot,
    pub b_to_a: DirectionSnapshot,
    /// Median delay of both directions together, without queueing and serialisation.
    pub rtt_us: u64,
    /// How much later than due frames left.
    pub lateness_p50_us: u64,
    pub lateness_p99_us: u64,
    pub lateness_max_us: u64,
    /// Super-segments that came in one piece: an offload was left on, and the line's rate is not exact.
    pub unsegmented: u64,
    /// The thread runs at real-time priority.
    pub realtime: bool,
    /// Processor time of the emulator since its start.
    pub cpu_s: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectionSnapshot {
    /// Bits per second that left while the line was never idle; 0 if it always was.
    pub rate_bps: f64,
    pub offered: u64,
    pub offered_bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub duplicated: u64,
    pub queue_drops: u64,
    pub loss_drops: u64,
    pub mtu_drops: u64,
    pub blackhole_drops: u64,
    pub queue_p50_us: u64,
    pub queue_p95_us: u64,
    pub queue_p99_us: u64,
    pub queue_max_us: u64,
    /// Median time in the emulator without queueing and serialisation.
    pub delay_us: u64,
    /// Frames that the kernel lost before the emulator saw them, since the start.
    pub missed: u64,
    /// Frames that the kernel refused to send, since the start.
    pub refused: u64,
    /// Longest wait in the queue per step of [`SERIES_STEP_S`], from the origin on.
    pub queue_us: Vec<u64>,
}

impl DirectionSnapshot {
    /// Share of the frames carried that were lost at random.
    pub fn loss(&self) -> f64 {
        let carried = self.delivered + self.loss_drops;
        if carried == 0 {
            0.0
        } else {
            self.loss_drops as f64 / carried as f64
        }
    }
}

/// What the lab tells a running emulator, one JSON value a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// The load starts now: the schedule of changes, the trace and the series count from here.
    Origin,
    /// Forget what was counted.
    Window,
    /// Answer with a [`Snapshot`].
    Snapshot,
    /// End.
    Quit,
}
