//! One direction of a WAN as a state machine without clock or sockets: a
//! drop-tail queue before a line, then loss, delay and jitter.
//!
//! ```text
//! push --mtu--> [ queue ] --line (rate | trace)--> loss --> delay + jitter --> deliver_at
//!        \drop     \drop                             \drop
//! ```
//!
//! Everything is computed in virtual time from the arrival of each frame, so
//! that who drives it may be late without disturbing what it emulates.

use std::collections::VecDeque;
use std::time::Duration;

use mef_packet::Instant;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::config::{Change, DirectionConfig, Line, Loss};
use super::histogram::Histogram;
use super::trace::OPPORTUNITY;

const ETHERNET_HEADER: u32 = 14;
const PS_PER_NS: u128 = 1000;
const PS_PER_S: u128 = 1_000_000_000_000;

/// Why a frame does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue before the line had no room.
    Queue,
    /// Random loss.
    Loss,
    /// Larger than the path MTU.
    Mtu,
    /// The line was a black hole.
    Blackhole,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Drop(DropReason),
    Deliver {
        at: Instant,
        /// The line was still busy with the frame before when this one came.
        back_to_back: bool,
        /// Time before the line began to send it.
        waited: Duration,
        /// Time between arrival and `at` that is neither waiting nor serialisation.
        propagation: Duration,
        /// A second copy, if the frame is duplicated.
        again: Option<Instant>,
    },
}

/// What a direction counted since it was made or since [`Direction::reset_counters`].
#[derive(Clone, Debug, Default)]
pub struct Counters {
    pub offered: u64,
    pub offered_bytes: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub duplicated: u64,
    pub queue_drops: u64,
    pub loss_drops: u64,
    pub mtu_drops: u64,
    pub blackhole_drops: u64,
    /// Time frames waited before the line began to send them, microseconds.
    pub queue_delay: Histogram,
}

/// One direction of the emulated path.
pub struct Direction {
    config: DirectionConfig,
    /// Instant the schedule of changes and the trace count from.
    origin: Instant,
    /// When the line has sent all it took, picoseconds.
    free_at: u128,
    /// Frames not yet sent completely: when they are, and their size.
    queued: VecDeque<(Instant, u32)>,
    queued_bytes: u64,
    /// Next delivery opportunity of a trace and what is left of it, bytes.
    opportunity: u64,
    credit: u32,
    bad_state: bool,
    last_arrival: Instant,
    last_delivery: Instant,
    loss_rng: SmallRng,
    jitter_rng: SmallRng,
    duplicate_rng: SmallRng,
    counters: Counters,
}

impl Direction {
    /// `origin` starts the trace and the schedule; the same `seed` gives the same losses.
    pub fn new(config: DirectionConfig, origin: Instant, seed: u64) -> Self {
        Self {
            config,
            origin,
            free_at: 0,
            queued: VecDeque::new(),
            queued_bytes: 0,
            opportunity: 0,
            credit: OPPORTUNITY,
            bad_state: false,
            last_arrival: Instant::ZERO,
            last_delivery: Instant::ZERO,
            loss_rng: SmallRng::seed_from_u64(seed ^ 0x6c6f_7373),
            jitter_rng: SmallRng::seed_from_u64(seed ^ 0x6a69_7474),
            duplicate_rng: SmallRng::seed_from_u64(seed ^ 0x6475_706c),
            counters: Counters::default(),
        }
    }

    pub fn config(&self) -> &DirectionConfig {
        &self.config
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn reset_counters(&mut self) {
        self.counters = Counters::default();
    }

    /// Starts the schedule of changes and the trace at `origin`.
    pub fn set_origin(&mut self, origin: Instant) {
        self.origin = origin;
        self.opportunity = 0;
        self.credit = OPPORTUNITY;
    }

    /// Bytes waiting or being sent at `now`.
    pub fn backlog(&mut self, now: Instant) -> u64 {
        while let Some(&(sent, len)) = self.queued.front() {
            if sent > now {
                break;
            }
            self.queued.pop_front();
            self.queued_bytes -= u64::from(len);
        }
        self.queued_bytes
    }

    /// Takes a frame of `len` bytes (Ethernet header included, FCS not) that came at
    /// `arrival`; a time before that of the previous frame counts as that time.
    pub fn push(&mut self, arrival: Instant, len: u32) -> Verdict {
        let arrival = arrival.max(self.last_arrival);
        self.last_arrival = arrival;
        self.counters.offered += 1;
        self.counters.offered_bytes += u64::from(len);

        if len.saturating_sub(ETHERNET_HEADER) > u32::from(self.mtu_at(arrival)) {
            self.counters.mtu_drops += 1;
            return Verdict::Drop(DropReason::Mtu);
        }
        if self.backlog(arrival) + u64::from(len) > self.config.queue.0 {
            self.counters.queue_drops += 1;
            return Verdict::Drop(DropReason::Queue);
        }
        let start = (u128::from(arrival.as_nanos()) * PS_PER_NS).max(self.free_at);
        let back_to_back = self.free_at >= u128::from(arrival.as_nanos()) * PS_PER_NS;
        let finish_ps = self.serve(start, len, back_to_back);
        self.free_at = finish_ps;
        let begun = from_ps(start);
        let sent = from_ps(finish_ps);
        if sent > arrival {
            self.queued.push_back((sent, len));
            self.queued_bytes += u64::from(len);
        }
        let waited = begun.since(arrival);
        self.counters
            .queue_delay
            .record(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));

        // The random process advances with every frame the line carried, whatever becomes of it.
        let lost = self.is_lost(sent);
        if self.is_blackhole(sent) {
            self.counters.blackhole_drops += 1;
            return Verdict::Drop(DropReason::Blackhole);
        }
        if lost {
            self.counters.loss_drops += 1;
            return Verdict::Drop(DropReason::Loss);
        }
        let at = self.arrival_of(sent);
        let propagation = at.since(sent);
        let again = (self.config.duplicate > 0.0
            && self.duplicate_rng.random::<f64>() < self.config.duplicate)
            .then(|| self.arrival_of(sent));
        self.counters.delivered += 1;
        self.counters.delivered_bytes += u64::from(len);
        self.counters.duplicated += u64::from(again.is_some());
        Verdict::Deliver {
            at,
            back_to_back,
            waited,
            propagation,
            again,
        }
    }

    /// When the line, starting at `start`, has sent `len` bytes; picoseconds.
    fn serve(&mut self, start: u128, len: u32, back_to_back: bool) -> u128 {
        match &self.config.line {
            Line::Unlimited => start,
            Line::Rate(rate) => {
                let base = rate.bits_per_second();
                self.serve_at_rate(start, len, base)
            }
            Line::Trace(trace) => {
                let origin = self.origin.as_nanos();
                let from = u64::try_from(start / PS_PER_NS)
                    .unwrap_or(u64::MAX)
                    .saturating_sub(origin);
                // What an idle line could have sent is gone.
                let first = trace.first_at_or_after(from);
                if !back_to_back && first > self.opportunity {
                    self.opportunity = first;
                    self.credit = OPPORTUNITY;
                }
                let mut left = len;
                loop {
                    if self.credit == 0 {
                        self.opportunity += 1;
                        self.credit = OPPORTUNITY;
                    }
                    let take = left.min(self.credit);
                    self.credit -= take;
                    left -= take;
                    if left == 0 {
                        let ns = origin + trace.time_of(self.opportunity);
                        return (u128::from(ns) * PS_PER_NS).max(start);
                    }
                }
            }
        }
    }

    /// Serves through every change of rate on the way.
    fn serve_at_rate(&self, start: u128, len: u32, base: u64) -> u128 {
        let origin = u128::from(self.origin.as_nanos()) * PS_PER_NS;
        let mut rate = base;
        let mut at = start;
        // In bits times picoseconds per second, so that the division is exact at the end.
        let mut left = u128::from(len) * 8 * PS_PER_S;
        for s in &self.config.changes {
            let Change::Rate(next) = s.change else {
                continue;
            };
            let when = origin + s.at.as_nanos() * PS_PER_NS;
            if when > at {
                let possible = (when - at) * u128::from(rate);
                if possible >= left {
                    break;
                }
                left -= possible;
                at = when;
            }
            rate = next.bits_per_second();
        }
        at + left / u128::from(rate.max(1))
    }

    fn arrival_of(&mut self, sent: Instant) -> Instant {
        let mut at = sent + self.delay_at(sent);
        if !self.config.jitter.is_zero() {
            let most = u64::try_from(self.config.jitter.as_nanos()).unwrap_or(u64::MAX);
            at += Duration::from_nanos(self.jitter_rng.random_range(0..=most));
        }
        if !self.config.reorder {
            at = at.max(self.last_delivery);
            self.last_delivery = at;
        }
        at
    }

    fn is_lost(&mut self, sent: Instant) -> bool {
        let changed = self.last_change(sent, |c| match c {
            Change::Loss(p) => Some(Loss::Iid(p)),
            _ => None,
        });
        let p = match changed.unwrap_or(self.config.loss) {
            Loss::Iid(p) => p,
            Loss::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good,
                loss_bad,
            } => {
                let leave = if self.bad_state {
                    bad_to_good
                } else {
                    good_to_bad
                };
                if self.loss_rng.random::<f64>() < leave {
                    self.bad_state = !self.bad_state;
                }
                if self.bad_state {
                    loss_bad
                } else {
                    loss_good
                }
            }
        };
        self.loss_rng.random::<f64>() < p
    }

    fn delay_at(&self, when: Instant) -> Duration {
        self.last_change(when, |c| match c {
            Change::Delay(d) => Some(d),
            _ => None,
        })
        .unwrap_or(self.config.delay)
    }

    fn mtu_at(&self, when: Instant) -> u16 {
        self.last_change(when, |c| match c {
            Change::Mtu(m) => Some(m),
            _ => None,
        })
        .unwrap_or(self.config.mtu)
    }

    fn is_blackhole(&self, when: Instant) -> bool {
        self.last_change(when, |c| match c {
            Change::Blackhole(b) => Some(b),
            _ => None,
        })
        .unwrap_or(false)
    }

    /// The last scheduled change of a kind that has happened by `when`.
    fn last_change<T>(&self, when: Instant, pick: impl Fn(Change) -> Option<T>) -> Option<T> {
        self.config
            .changes
            .iter()
            .take_while(|s| self.origin + s.at <= when)
            .filter_map(|s| pick(s.change))
            .last()
    }
}

fn from_ps(ps: u128) -> Instant {
    Instant::from_nanos(u64::try_from(ps / PS_PER_NS).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
