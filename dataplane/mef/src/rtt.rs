//! Round-trip time of a link, smoothed as RFC 6298 does, and the delays that
//! the recovery derives from it.

use core::time::Duration;

/// Smoothed round-trip time.
#[derive(Clone, Copy, Debug)]
pub struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Duration,
}

/// What a link assumes before its first sample (RFC 9002's initial RTT is 333 ms; links here are measured by their handshake).
const INITIAL: Duration = Duration::from_millis(333);

impl Default for Rtt {
    fn default() -> Self {
        Self {
            smoothed: None,
            variation: INITIAL / 2,
            min: Duration::MAX,
        }
    }
}

impl Rtt {
    /// Takes a sample from which the peer's acknowledgement delay is already subtracted.
    pub fn sample(&mut self, rtt: Duration) {
        self.min = self.min.min(rtt);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variation = rtt / 2;
            }
            Some(s) => {
                self.variation = (self.variation * 3 + s.abs_diff(rtt)) / 4;
                self.smoothed = Some((s * 7 + rtt) / 8);
            }
        }
    }
    /// Packets take another way now: what the old one's least was says nothing of it.
    pub fn path_changed(&mut self) {
        self.min = Duration::MAX;
    }
    pub fn is_known(&self) -> bool {
        self.smoothed.is_some()
    }
    pub fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }
    /// Smallest sample seen; the initial value before the first.
    pub fn min(&self) -> Duration {
        if self.min == Duration::MAX {
            INITIAL
        } else {
            self.min
        }
    }
    pub fn variation(&self) -> Duration {
        self.variation
    }
    /// How long an acknowledgement may wait for company.
    pub fn ack_delay(&self) -> Duration {
        (self.smoothed() / 8).clamp(Duration::from_millis(5), Duration::from_millis(25))
    }
    /// When a packet without any acknowledgement behind it counts as lost.
    pub fn timeout(&self) -> Duration {
        self.smoothed() + (self.variation * 4).max(Duration::from_millis(4)) + self.ack_delay()
    }
}
