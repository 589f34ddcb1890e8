//! Losses on a host's access that its congestion control need not hear of.
//!
//! A host that sends over a radio loses segments without anything being full.
//! CUBIC and Reno take each loss for congestion: at 20 ms and 0.1% they reach a
//! fifth of 100 Mbit/s. No receiver can keep a segment from being lost and sent
//! again, but a sender takes its slowing down back when it learns from a
//! time-stamp that not the second sending arrived but the first (RFC 3522,
//! RFC 4015; Linux does so for time-outs and fast retransmits alike):
//!
//! ```text
//!   host:     1  2  x  4  5 ...  3 (time-stamp t')     window restored
//!   router:      ack 2, sack 4-5 ...  ack 5, echo of 2's time-stamp, not of t'
//! ```
//!
//! So the echo of a segment that fills such a hole is the one from before it.
//! That is done only for losses that show no sign of congestion: where the path
//! takes at least [`LEAST_RTT`] (nearer hosts recover by themselves), while the
//! time-stamps show no queue as the hole appears, and while less than one segment
//! in [`MOST_LOST`] is lost, which is what a policer or a shallow queue would
//! exceed. Otherwise every loss means to the host what it always meant. What it may
//! have in flight is bounded by our window in any case.

use std::time::Duration;

use mef_packet::Instant;

const LEAST_RTT: Duration = Duration::from_millis(2);
/// A delay above the least one that counts as a queue: this, or a quarter of the round trip.
const QUEUE: Duration = Duration::from_millis(5);
const MOST_LOST: u64 = 50;
/// Losses are counted over about so many segments, and this many are always possible.
const MEMORY: u64 = 4096;
const SOME: u64 = 8;
/// The least delay is that of the last one or two of these.
const EPOCH: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Pardon {
    wanted: bool,
    /// Least delays of the present epoch and of the one before: our milliseconds less the host's
    /// time-stamp, which mean something in comparison only.
    least: [Option<i32>; 2],
    epoch: Option<Instant>,
    queued: i32,
    segments: u64,
    lost: u64,
    granted: bool,
    total: u64,
}

impl Pardon {
    pub fn new(wanted: bool) -> Self {
        Self {
            wanted,
            ..Self::default()
        }
    }

    /// A segment came whose time-stamp is `value`.
    pub fn arrived(&mut self, now: Instant, value: u32) {
        let delay = (now.as_millis() as u32).wrapping_sub(value) as i32;
        if self.epoch.is_none_or(|at| now.since(at) > EPOCH) {
            self.epoch = Some(now);
            self.least = [None, self.least[0]];
        }
        let less = |a: i32, b: i32| if a.wrapping_sub(b) < 0 { a } else { b };
        let present = self.least[0].map_or(delay, |l| less(l, delay));
        self.least[0] = Some(present);
        let least = self.least[1].map_or(present, |l| less(l, present));
        self.queued = delay.wrapping_sub(least);
        self.segments += 1;
        if self.segments > MEMORY {
            self.segments /= 2;
            self.lost /= 2;
        }
    }

    /// Whether a hole that shows now is to be blamed on nothing but the path.
    pub fn is_clear(&self, rtt: Duration) -> bool {
        let limit = QUEUE.max(rtt / 4).as_millis() as i32;
        self.wanted && rtt >= LEAST_RTT && self.epoch.is_some() && self.queued <= limit
    }

    /// Something came late that was missing; `clear` is what was thought when it was missed.
    pub fn filled(&mut self, clear: bool) {
        self.lost += 1;
        let few = self.lost * MOST_LOST <= self.segments + SOME * MOST_LOST;
        self.granted = clear && few;
        self.total += u64::from(self.granted);
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether the last segment filled a hole that the host need not hear of; asked once.
    pub fn granted(&mut self) -> bool {
        std::mem::take(&mut self.granted)
    }
}
