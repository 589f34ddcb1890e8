//! The budget of a line: one token bucket that everything leaving by the line
//! is charged to (data, repair, acknowledgements, control, handshake).
//!
//! A frame may leave while the credit is not negative and takes the credit
//! below zero by its own size; the next one waits until that debt is paid.
//! Whoever asks therefore needs no knowledge of the next frame's size to know
//! when to come back, and any interval of length T carries at most
//! `rate * T + cap + one frame`.
//!
//! The credit is capped at 1 ms of the rate or two full frames, whichever is
//! more; longer where whoever sends wakes up that seldom. What a late wake-up would have earned beyond the cap is lost: a pacer
//! that catches up fully turns its own lateness into a queue at the bottleneck.

use mef_packet::time::Duration;
use mef_packet::{BitRate, Bytes, Instant};

/// The largest Ethernet frame without FCS of a 1500-byte MTU.
const FULL_FRAME: u64 = 1514;
const CAP_TIME: Duration = Duration::from_millis(1);
/// How late a wake-up may be without losing anything.
const LATE: Duration = Duration::from_micros(750);
/// Credit is kept in bit/s times nanoseconds, so that no rounding ever accumulates.
const PER_BYTE: i64 = 8_000_000_000;

/// Token bucket of one line.
#[derive(Clone, Debug)]
pub struct LineBudget {
    rate: BitRate,
    overhead: i16,
    /// In 1e-9 bit; negative while a sent frame is not yet paid for.
    credit: i64,
    at: Instant,
    cap_time: Duration,
    /// Somebody has been told to wait, so credit beyond the cap is lost rather than unused.
    waiting: bool,
    lost: u128,
}

impl LineBudget {
    /// A bucket that is full at `now`. `overhead` is what the line adds to (or, negative, saves on)
    /// each frame as counted on Ethernet without FCS, in bytes.
    pub fn new(now: Instant, rate: BitRate, overhead: i16) -> Self {
        let mut b = Self {
            rate,
            overhead,
            credit: 0,
            at: now,
            cap_time: CAP_TIME,
            waiting: false,
            lost: 0,
        };
        b.credit = b.cap();
        b
    }

    pub fn rate(&self) -> BitRate {
        self.rate
    }

    /// Changes the rate from `now` on. What was earned so far was earned at the old rate; the
    /// remaining debt is paid at the new one, so [`next_at`](Self::next_at) moves forward when the rate rises.
    pub fn set_rate(&mut self, now: Instant, rate: BitRate) {
        self.refill(now);
        self.rate = rate;
        self.credit = self.credit.min(self.cap());
    }

    /// Whoever sends wakes up once in this time.
    pub fn set_interval(&mut self, interval: Duration) {
        self.cap_time = CAP_TIME.max(interval + LATE);
    }

    pub fn set_overhead(&mut self, overhead: i16) {
        self.overhead = overhead;
    }

    /// Takes one frame of `bytes` (Ethernet header included, FCS not) if the line is free for it.
    pub fn try_take(&mut self, now: Instant, bytes: Bytes) -> bool {
        self.try_take_frames(now, 1, bytes)
    }

    /// Takes `frames` frames of `bytes` in all, as one super-frame, if the line is free for its first.
    pub fn try_take_frames(&mut self, now: Instant, frames: u32, bytes: Bytes) -> bool {
        self.refill(now);
        self.waiting = self.credit < 0;
        if self.waiting {
            return false;
        }
        self.charge_frames(frames, bytes);
        true
    }

    /// Charges a frame that leaves whatever the credit, such as a handshake answer.
    pub fn charge(&mut self, now: Instant, bytes: Bytes) {
        self.refill(now);
        self.charge_frames(1, bytes);
    }

    /// When the next frame may leave: `now` if at once, [`Instant::FAR_FUTURE`] at rate zero.
    ///
    /// To be asked only when there is something to send: from here on credit that exceeds the cap counts as lost.
    pub fn next_at(&mut self, now: Instant) -> Instant {
        self.refill(now);
        self.waiting = true;
        let debt = self.credit.min(0).unsigned_abs();
        if debt == 0 {
            return now;
        }
        if self.rate.0 == 0 {
            return Instant::FAR_FUTURE;
        }
        self.at + Duration::from_nanos(debt.div_ceil(self.rate.0))
    }

    /// How long it takes at this rate until a frame may leave. Asking changes nothing.
    pub fn debt(&mut self, now: Instant) -> Duration {
        self.refill(now);
        let debt = self.credit.min(0).unsigned_abs();
        match debt.div_ceil(self.rate.0.max(1)) {
            _ if debt > 0 && self.rate.0 == 0 => Duration::MAX,
            nanos => Duration::from_nanos(nanos),
        }
    }

    /// Nobody has anything to send: what is earned beyond the cap from here on is unused, not lost.
    pub fn idle(&mut self) {
        self.waiting = false;
    }

    /// Credit in bytes, rounded down; negative while a sent frame is not yet paid for.
    pub fn credit(&mut self, now: Instant) -> i64 {
        self.refill(now);
        self.credit.div_euclid(PER_BYTE)
    }

    /// Bytes that somebody waited for and did not get because the wake-up came too late.
    pub fn lost_credit_bytes(&self) -> u64 {
        u64::try_from(self.lost / PER_BYTE as u128).unwrap_or(u64::MAX)
    }

    fn cap(&self) -> i64 {
        let time = i128::from(self.rate.0) * self.cap_time.as_nanos() as i128;
        let frames = i128::from(2 * FULL_FRAME) * i128::from(PER_BYTE);
        i64::try_from(time.max(frames)).unwrap_or(i64::MAX)
    }

    fn charge_frames(&mut self, frames: u32, bytes: Bytes) {
        let wire = i64::try_from(bytes.0).unwrap_or(i64::MAX);
        let wire = wire.saturating_add(i64::from(self.overhead) * i64::from(frames));
        let cost = wire.max(0).saturating_mul(PER_BYTE);
        self.credit = self.credit.saturating_sub(cost);
    }

    fn refill(&mut self, now: Instant) {
        if now <= self.at {
            return;
        }
        let earned = i128::from(self.rate.0) * now.since(self.at).as_nanos() as i128;
        self.at = self.at.max(now);
        let full = i128::from(self.credit) + earned;
        let cap = i128::from(self.cap());
        if self.waiting && full > cap {
            self.lost += (full - cap) as u128;
        }
        self.credit = full.min(cap) as i64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAME: Bytes = Bytes(1514);

    #[test]
    fn only_what_somebody_waited_for_is_lost() {
        let mut b = LineBudget::new(Instant::ZERO, BitRate::from_mbit(100), 0);
        let at = |ms| Instant::ZERO + Duration::from_millis(ms);
        b.charge(at(0), FRAME);
        let _ = b.next_at(at(0));
        b.idle();
        b.charge(at(1000), FRAME);
        assert_eq!(b.lost_credit_bytes(), 0);
        let _ = b.next_at(at(1000));
        b.charge(at(2000), FRAME);
        // A second at 100 Mbit/s less what fills the bucket again.
        let lost = b.lost_credit_bytes();
        assert!((12_480_000..12_500_000).contains(&lost), "{lost}");
    }

    fn drained(rate: BitRate) -> LineBudget {
        let mut b = LineBudget::new(Instant::ZERO, rate, 0);
        while b.try_take(Instant::ZERO, FRAME) {}
        b
    }

    #[test]
    fn paces_exactly_at_the_rate() {
        let rate = BitRate::from_mbit(100);
        let mut b = drained(rate);
        let mut now = Instant::ZERO;
        let mut sent = 0;
        while now < Instant::from_millis(1000) {
            now = b.next_at(now);
            assert!(
                b.try_take(now, FRAME),
                "next_at must be early enough and not too late"
            );
            assert!(!b.try_take(now, FRAME));
            sent += FRAME.0;
        }
        let ideal = rate.bytes_in(Duration::from_secs(1)).0;
        assert!(sent.abs_diff(ideal) <= 2 * FRAME.0, "{sent} of {ideal}");
        assert_eq!(b.lost_credit_bytes(), 0);
    }

    #[test]
    fn a_late_wake_up_loses_what_exceeds_a_millisecond() {
        let mut b = drained(BitRate::from_mbit(100));
        let at = b.next_at(Instant::ZERO);
        let late = at + Duration::from_millis(5);
        let mut burst = 0;
        while b.try_take(late, FRAME) {
            burst += FRAME.0;
        }
        assert!(
            burst <= 12_500 + FRAME.0,
            "1 ms of 100 Mbit/s and the frame that crosses zero, got {burst}"
        );
        assert_eq!(b.lost_credit_bytes(), 4 * 12_500);
    }

    #[test]
    fn an_idle_line_loses_nothing() {
        let mut b = LineBudget::new(Instant::ZERO, BitRate::from_mbit(100), 0);
        assert!(b.try_take(Instant::ZERO, FRAME));
        assert!(b.try_take(Instant::from_millis(500), FRAME));
        assert_eq!(b.lost_credit_bytes(), 0);
    }

    #[test]
    fn a_rising_rate_pulls_the_deadline_forward() {
        let mut b = drained(BitRate(8_000));
        let slow = b.next_at(Instant::ZERO);
        b.set_rate(Instant::ZERO, BitRate(8_000_000));
        let fast = b.next_at(Instant::ZERO);
        assert_eq!(slow.as_nanos(), fast.as_nanos() * 1000);
        assert!(!b.try_take(fast - Duration::from_nanos(1), FRAME));
        assert!(b.try_take(fast, FRAME));
    }

    #[test]
    fn rate_zero_never_sends_once_the_credit_is_gone() {
        let mut b = drained(BitRate(0));
        assert_eq!(b.next_at(Instant::ZERO), Instant::FAR_FUTURE);
        assert!(!b.try_take(Instant::from_millis(10_000), FRAME));
    }

    #[test]
    fn overhead_counts_per_frame() {
        let mut plain = drained(BitRate::from_mbit(10));
        let mut heavy = plain.clone();
        heavy.set_overhead(24);
        let t = plain.next_at(Instant::ZERO);
        assert!(plain.try_take_frames(t, 10, Bytes(10_000)));
        assert!(heavy.try_take_frames(t, 10, Bytes(10_000)));
        assert_eq!(plain.credit(t) - heavy.credit(t), 240);
    }

    proptest! {
        /// No interval carries more than rate * T + cap + one frame, whatever the wake-ups.
        #[test]
        fn conforms_over_every_interval(mbit in 1u64..10_000, steps in prop::collection::vec((0u64..3_000_000, 60u64..1515), 1..200)) {
            let rate = BitRate::from_mbit(mbit);
            let mut b = LineBudget::new(Instant::ZERO, rate, 0);
            let cap = (rate.0 / 8_000).max(2 * FULL_FRAME);
            let mut now = Instant::ZERO;
            let mut log: Vec<(u64, u64)> = vec![];
            for (dt, size) in steps {
                now += Duration::from_nanos(dt);
                let mut sent = 0;
                while b.try_take(now, Bytes(size)) {
                    sent += size;
                }
                log.push((now.as_nanos(), sent));
            }
            for i in 0..log.len() {
                let mut sum = 0;
                for &(t, sent) in &log[i..] {
                    sum += sent;
                    let time = Duration::from_nanos(t - log[i].0);
                    prop_assert!(sum <= rate.bytes_in(time).0 + cap + FULL_FRAME + 1);
                }
            }
        }

        /// Credit is earned, spent or lost: nothing else.
        #[test]
        fn earned_is_spent_or_lost(steps in prop::collection::vec(0u64..5_000_000, 1..200)) {
            let rate = BitRate::from_mbit(80);
            let mut b = drained(rate);
            let start = b.credit(Instant::ZERO);
            let mut now = Instant::ZERO;
            let mut spent = 0u64;
            for dt in steps {
                now += Duration::from_nanos(dt);
                while b.try_take(now, FRAME) {
                    spent += FRAME.0;
                }
            }
            let earned = rate.bytes_in(now.since(Instant::ZERO)).0 as i64;
            let kept = b.credit(now) - start;
            let balance = earned - spent as i64 - b.lost_credit_bytes() as i64 - kept;
            prop_assert!(balance.abs() <= 3, "{balance}");
        }
    }
}
