//! Round-trip time towards the host and the retransmission timeout made of it
//! (RFC 6298, with the minimum that Linux has).

use std::time::Duration;

use mef_packet::Instant;

/// Until a sample has been taken (RFC 6298 §2.1).
const INITIAL_RTO: Duration = Duration::from_secs(1);
/// The variance counts as at least this, so that a host that delays its acknowledgements is
/// not taken for a lost segment.
const MIN_MARGIN: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(60);
/// How long the least round-trip time seen is believed.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);

/// What is known of the round-trip time.
#[derive(Debug, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    min: Option<(Duration, Instant)>,
    backoff: u32,
}

impl Rtt {
    pub fn sample(&mut self, now: Instant, rtt: Duration) {
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
        let renews = self.min.is_none_or(|(m, at)| {
            // Close to the minimum is as good: it shows that there is no queue.
            rtt <= m + m / 16 || now.since(at) > 2 * MIN_RTT_WINDOW
        });
        if renews {
            let least = match self.min {
                Some((m, at)) if now.since(at) <= 2 * MIN_RTT_WINDOW => m.min(rtt),
                _ => rtt,
            };
            self.min = Some((least, now));
        }
    }

    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// Least round-trip time of late; zero before the first sample.
    pub fn min(&self) -> Duration {
        self.min.map_or(Duration::ZERO, |m| m.0)
    }

    /// The minimum was last seen long ago: whoever keeps a queue should let it drain once.
    pub fn min_is_old(&self, now: Instant) -> bool {
        self.min
            .is_some_and(|(_, at)| now.since(at) > MIN_RTT_WINDOW)
    }

    /// The retransmission timeout, backed off.
    pub fn rto(&self) -> Duration {
        let base = match self.smoothed {
            None => INITIAL_RTO,
            Some(s) => s + MIN_MARGIN.max(self.variation * 4),
        };
        (base * 2u32.saturating_pow(self.backoff.min(10))).min(MAX_RTO)
    }

    pub fn back_off(&mut self) {
        self.backoff += 1;
    }
    pub fn backoff(&self) -> u32 {
        self.backoff
    }
    /// New data was acknowledged.
    pub fn progress(&mut self) {
        self.backoff = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_timeout_follows_the_round_trip_time() {
        let mut r = Rtt::default();
        assert_eq!(r.rto(), INITIAL_RTO);
        let mut now = Instant::ZERO;
        for _ in 0..100 {
            now += 20 * MS;
            r.sample(now, 20 * MS);
        }
        assert_eq!(r.rto(), 220 * MS);
        r.back_off();
        assert_eq!(r.rto(), 440 * MS);
        for _ in 0..20 {
            r.back_off();
        }
        assert_eq!(r.rto(), MAX_RTO);
        r.progress();
        assert_eq!(r.rto(), 220 * MS);
    }

    #[test]
    fn the_minimum_ages() {
        let mut r = Rtt::default();
        let start = Instant::from_millis(1000);
        r.sample(start, 10 * MS);
        r.sample(start + Duration::from_secs(9), 30 * MS);
        assert!(!r.min_is_old(start + Duration::from_secs(9)));
        assert!(r.min_is_old(start + Duration::from_secs(11)));
        assert_eq!(r.min(), 10 * MS);
        r.sample(start + Duration::from_secs(21), 30 * MS);
        assert_eq!(r.min(), 30 * MS);
    }
}
