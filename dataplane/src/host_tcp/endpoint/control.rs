//! How much may be on its way to the host at a time.
//!
//! The access network belongs to the operator, often it is a radio. Bytes are
//! lost there without anything being full, and a sender that halves its window
//! at each loss (RFC 5681) would use a fifth of 100 Mbit/s at 20 ms and 0.1%.
//! So the window is made of what the path is measured to do, the way BBR does
//! it (draft-ietf-ccwg-bbr), and a loss by itself changes nothing:
//!
//! ```text
//!   window = gain * greatest delivery rate of 10 rounds * (least RTT + slack)
//!
//!   Startup ---------> Steady <--------> Congested
//!   gain 2.89          gain 2            gain 1.25
//!   doubles per        slack 4 ms        slack 1 ms
//!   round trip         every 10 s without a new least RTT: half of it for a round
//!        rate stops growing            a round in which more than 3 segments + 5% were lost;
//!        or too much is lost           left after 10 rounds without one
//! ```
//!
//! Congested, what leaves follows what arrives: a quarter more than the last
//! acknowledgements delivered, in small pieces (after RFC 6937), so that what was lost
//! in a burst is not lost again in the next.
//!
//! The slack covers hosts, radios and schedulers that acknowledge in bunches;
//! on a LAN it is what makes the window. What leaves is not paced: it comes paced from the
//! link, and goes in pieces as large as the window allows.
//!
//! What this is not: fair to a Reno or Cubic flow that shares a bottleneck on
//! the access network. Below 5% loss it takes what it can get, and keeps up to
//! a round trip's worth of bytes in the bottleneck's queue. A bottleneck there with
//! a shallow queue is overrun by up to a quarter in the congested state.

use std::time::Duration;

use mef_packet::Instant;

use super::rate::Sample;
use super::rtt::Rtt;

/// Window at first, bytes: a page or a request's answer goes out at once.
pub(super) const INITIAL_WINDOW: u64 = 64 << 10;
const STARTUP_GAIN: f64 = 2.89;
const STEADY_GAIN: f64 = 2.0;
const CONGESTED_GAIN: f64 = 1.25;
const DRAIN_GAIN: f64 = 0.5;
const SLACK: Duration = Duration::from_millis(4);
const CONGESTED_SLACK: Duration = Duration::from_millis(1);
/// Rounds over which the greatest rate is taken.
const RATE_ROUNDS: u64 = 10;
const CONGESTED_ROUNDS: u64 = 10;
/// A round counts as congestion if more than this many segments and this share were lost.
const HEAVY_LOSS: (u64, f64) = (3, 0.05);
/// The pipe is full after so many rounds in which the rate did not grow by a quarter.
const FULL_ROUNDS: u32 = 3;

/// What an acknowledgement brought.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acked {
    /// Bytes delivered by it.
    pub bytes: u64,
    /// Bytes delivered in all.
    pub delivered: u64,
    pub sample: Option<Sample>,
}

#[derive(Debug)]
pub(super) struct Control {
    mss: u64,
    window: u64,
    startup: bool,
    /// Greatest rates with the round of each, falling, the newest last.
    rates: Vec<(u64, f64)>,
    round: u64,
    /// The round ends when something sent after this much was delivered arrives.
    round_end: u64,
    round_start: u64,
    lost: u64,
    full_rate: f64,
    full_rounds: u32,
    congested_until: Option<u64>,
    drain: Option<Instant>,
    drained: Option<Instant>,
    /// The window, not the application or the host, stopped the sender.
    limited_by_window: bool,
}

impl Control {
    pub fn new(mss: u16) -> Self {
        Self {
            mss: u64::from(mss),
            window: INITIAL_WINDOW,
            startup: true,
            rates: Vec::new(),
            round: 0,
            round_end: 0,
            round_start: 0,
            lost: 0,
            full_rate: 0.0,
            full_rounds: 0,
            congested_until: None,
            drain: None,
            drained: None,
            limited_by_window: false,
        }
    }

    /// Bytes that may be on their way.
    pub fn window(&self) -> u64 {
        self.window
    }
    /// A queue on the way is known to overflow: nothing may leave in bursts.
    pub fn gently(&self) -> bool {
        self.congested()
    }
    pub fn set_mss(&mut self, mss: u16) {
        self.mss = u64::from(mss);
    }
    /// The window kept the sender from sending.
    pub fn limits(&mut self) {
        self.limited_by_window = true;
    }

    /// Greatest delivery rate of late, bytes per second; 0 before it has been measured.
    pub fn rate(&self) -> f64 {
        self.rates.first().map_or(0.0, |r| r.1)
    }

    fn congested(&self) -> bool {
        self.congested_until.is_some_and(|r| self.round <= r)
    }

    fn target(&self, rtt: &Rtt) -> u64 {
        let (gain, slack, least) = if self.drain.is_some() {
            (DRAIN_GAIN, CONGESTED_SLACK, 4)
        } else if self.congested() {
            (CONGESTED_GAIN, CONGESTED_SLACK, 4)
        } else if self.startup {
            (STARTUP_GAIN, SLACK, 16)
        } else {
            (STEADY_GAIN, SLACK, 16)
        };
        let bytes = gain * self.rate() * (rtt.min() + slack).as_secs_f64();
        (bytes as u64).max(least * self.mss)
    }

    /// Takes in what an acknowledgement brought.
    pub fn acked(&mut self, now: Instant, acked: Acked, rtt: &Rtt) {
        if let Some(s) = acked.sample {
            self.measured(&s);
            if s.prior_delivered >= self.round_end {
                self.end_round(acked.delivered, &s, rtt);
            }
        }
        self.schedule_drain(now, rtt);
        let target = self.target(rtt);
        if self.startup {
            if self.limited_by_window && self.window < target.max(2 * INITIAL_WINDOW) {
                self.window += acked.bytes;
            }
        } else if self.window < target {
            self.window = (self.window + acked.bytes).min(target);
        } else {
            self.window = target;
        }
        self.limited_by_window = false;
    }

    fn measured(&mut self, s: &Sample) {
        if s.limited && s.rate <= self.rate() {
            return;
        }
        let oldest = self.round.saturating_sub(RATE_ROUNDS);
        while self.rates.last().is_some_and(|r| r.1 <= s.rate) {
            self.rates.pop();
        }
        // One entry a round is enough.
        if self.rates.last().is_none_or(|r| r.0 < self.round) {
            self.rates.push((self.round, s.rate));
        }
        while self.rates.len() > 1 && self.rates.first().is_some_and(|r| r.0 < oldest) {
            self.rates.remove(0);
        }
    }

    fn end_round(&mut self, delivered: u64, s: &Sample, rtt: &Rtt) {
        let arrived = delivered - self.round_start;
        let heavy = HEAVY_LOSS.0 * self.mss + (HEAVY_LOSS.1 * (arrived + self.lost) as f64) as u64;
        if self.lost > heavy {
            self.startup = false;
            self.congested_until = Some(self.round + CONGESTED_ROUNDS);
            self.window = (self.window * 7 / 10).max(self.target(rtt));
        }
        self.lost = 0;
        self.round += 1;
        self.round_start = delivered;
        self.round_end = delivered;
        if self.startup && !s.limited {
            if self.rate() >= self.full_rate * 1.25 {
                self.full_rate = self.rate();
                self.full_rounds = 0;
            } else {
                self.full_rounds += 1;
                self.startup = self.full_rounds < FULL_ROUNDS;
            }
        }
    }

    /// A queue that this sender keeps full hides the least round-trip time: now and then it is
    /// left to drain.
    fn schedule_drain(&mut self, now: Instant, rtt: &Rtt) {
        const LEAST: Duration = Duration::from_millis(50);
        const PAUSE: Duration = Duration::from_secs(10);
        match self.drain {
            Some(end) if now >= end => {
                self.drain = None;
                self.drained = Some(now);
            }
            None if !self.startup
                && rtt.min_is_old(now)
                && self.drained.is_none_or(|t| now.since(t) > PAUSE) =>
            {
                let round = rtt.smoothed().unwrap_or(LEAST);
                self.drain = Some(now + (2 * round).max(LEAST));
            }
            _ => {}
        }
    }

    pub fn lost(&mut self, bytes: u64) {
        self.lost += bytes;
    }
    /// What was counted as lost had arrived.
    pub fn not_lost(&mut self, bytes: u64) {
        self.lost = self.lost.saturating_sub(bytes);
    }

    /// The retransmission timer ran out, with `flying` bytes not taken for lost by it: the
    /// window grows again from almost nothing as acknowledgements come.
    pub fn timed_out(&mut self, flying: u64, again: bool) {
        self.window = flying + 4 * self.mss;
        if again {
            // Nothing gets through: what the path could do is no longer known.
            self.rates.clear();
            self.full_rate = 0.0;
            self.full_rounds = 0;
            self.startup = true;
        }
    }
    /// The time-out was an error.
    pub fn restore(&mut self, window: u64) {
        self.window = self.window.max(window);
    }

    pub fn memory(&self) -> usize {
        self.rates.capacity() * std::mem::size_of::<(u64, f64)>()
    }
}
