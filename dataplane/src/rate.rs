//! A limit of so many a second, for answers that somebody else provokes.

use std::time::Duration;

use mef_packet::Instant;

/// A token bucket, full when made. It keeps the time that tokens are worth.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    cost: Duration,
    full: Duration,
    saved: Duration,
    at: Instant,
}

impl RateLimit {
    /// `per_second` (at least 1) on average, `burst` at once.
    pub fn new(now: Instant, per_second: u32, burst: u32) -> Self {
        let cost = Duration::from_secs(1) / per_second.max(1);
        Self {
            cost,
            full: cost * burst,
            saved: cost * burst,
            at: now,
        }
    }

    /// Whether one more may be done now.
    pub fn take(&mut self, now: Instant) -> bool {
        self.saved = (self.saved + now.since(self.at)).min(self.full);
        self.at = now;
        let left = self.saved.checked_sub(self.cost);
        self.saved = left.unwrap_or(self.saved);
        left.is_some()
    }

    /// What was taken for one shall not count.
    pub fn give_back(&mut self) {
        self.saved = (self.saved + self.cost).min(self.full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let now = Instant::ZERO;
        let mut r = RateLimit::new(now, 1, 2);
        assert!(r.take(now) && r.take(now) && !r.take(now));
        r.give_back();
        assert!(r.take(now) && !r.take(now));
        for _ in 0..5 {
            r.give_back();
        }
        assert_eq!((0..5).filter(|_| r.take(now)).count(), 2);
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut now = Instant::ZERO;
        let mut r = RateLimit::new(now, 100, 20);
        assert_eq!((0..50).filter(|_| r.take(now)).count(), 20);
        let mut passed = 0;
        for _ in 0..10_000 {
            now += Duration::from_micros(100);
            passed += u32::from(r.take(now));
        }
        assert_eq!(passed, 100);
        now += Duration::from_secs(60);
        assert_eq!((0..50).filter(|_| r.take(now)).count(), 20);
    }
}
