//! What the controller does when: the states of the drawing in the parent module, and what leads from one to the next.

use mef_packet::time::Duration;
use mef_packet::Instant;

use super::compete::Seen;
use super::{AutoRate, DIP, DRAIN, FLOOR, FRAME, NO_QUEUE, START_QUEUE};

/// The same on a slow line, packets.
const START_PACKETS: f64 = 4.0;
/// Losses that are no further apart are of one overflow, and how soon another follows it where the
/// queue is others'.
const SAME_OVERFLOW: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(20);
/// So long after an overflow the rate grows by little.
const CAREFUL: Duration = Duration::from_secs(4);
/// A base not seen for this share of what is remembered is looked for by draining.
const STALE_BASE: f64 = 0.6;
/// Random loss below which every loss counts as one of a full queue.
const NO_LOSS: f64 = 0.003;
/// A queue that may be others', whatever the line's variations ask for, as a share of the round trip.
const CROWD: f64 = 0.1;
/// Loss above the line's own that is a sign of overflow.
const OVERFLOW: f64 = 0.04;
/// Loss above the line's own at which no share of the line is held any more.
const WASTE: f64 = 0.1;

/// What the controller is doing, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Doubling per round trip.
    Starting,
    /// Following what the line delivers.
    Following,
    /// Emptying the queue to see the delay of the path.
    Draining,
    /// Sending a little less, to see whether the loss goes away.
    Asking,
    /// Sending less for a moment, to see whether somebody else fills the queue.
    Dipping,
    /// Holding what a TCP flow would, as somebody else fills the queue.
    Competing,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Following => "following",
            Self::Draining => "draining",
            Self::Asking => "asking",
            Self::Dipping => "dipping",
            Self::Competing => "competing",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum State {
    Starting,
    Following,
    /// Sends a little less than is delivered, to see whether the loss goes away.
    Asking {
        since: u64,
        until: Instant,
        /// What was delivered at the beginning, where no queue makes that change.
        quiet: Option<f64>,
    },
    /// Empties the queue to see the base delay.
    Draining {
        until: Instant,
    },
}

impl AutoRate {
    /// What the controller is doing.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Starting => Phase::Starting,
            State::Draining { .. } => Phase::Draining,
            State::Asking { .. } => Phase::Asking,
            State::Following if self.compete.dips(self.updated) => Phase::Dipping,
            State::Following if self.competes() => Phase::Competing,
            State::Following => Phase::Following,
        }
    }
    pub(super) fn change_state(&mut self, now: Instant) {
        let recent = self.lag.max(0.1);
        let overflows = self.reports.loses_more(recent, OVERFLOW);
        // A mobile line's queue overflows at times when the line falls back, and what then matters is
        // to be there when it returns. Where somebody else fills the queue it overflows again and again.
        if overflows {
            let (newest, before) = self.overflowed;
            self.overflowed = match newest {
                Some(t) if now.since(t) < SAME_OVERFLOW => (Some(now), before),
                _ => (Some(now), newest),
            };
        }
        let again = self.overflowed.1.is_some_and(|t| now.since(t) < AGAIN);
        if overflows && (again || !self.forecast.varies()) {
            self.careful_until = now + CAREFUL;
        }
        match self.state {
            State::Starting => {
                // What is not sent cannot show how much would arrive, and has put nothing into the queue.
                let idle = self.is_idle();
                if self.mu > 1.25 * self.peak.1 {
                    self.peak = (now, self.mu);
                } else if idle {
                    self.peak.0 = now;
                }
                let most = START_QUEUE.max(START_PACKETS * self.packet_time());
                let full = now.since(self.peak.0).as_secs_f64() > 2.5 * self.lag.max(0.06)
                    || self.recent_queue(0.03) > most;
                if overflows || (full && !idle) {
                    self.state = State::Following;
                    self.next_drain = now + Duration::from_secs(3);
                }
            }
            State::Following => {
                let Some(at) = self.reports.last().map(|p| p.at) else {
                    return;
                };
                self.watch_base(now, at);
                if self.watch_others(now, at) {
                    return;
                }
                if let Some((from, to)) = self.asked.filter(|a| self.acked >= a.1) {
                    let quiet = self.is_quiet();
                    if self.reports.verify(from as f64, to as f64, quiet) {
                        self.careful_until = now;
                    }
                    self.asked = None;
                }
                let quiet = self.is_quiet();
                if now >= self.next_ask && !self.is_idle() && self.reports.loss_in_doubt(quiet) {
                    let most = if quiet { 2.0 } else { 0.5 };
                    let time = (60.0 * FRAME / self.mu.max(FLOOR)).clamp(0.1, most);
                    self.state = State::Asking {
                        since: self.sent,
                        until: now + Duration::from_secs_f64(time),
                        quiet: quiet.then_some(self.mu * (1.0 - self.reports.random_loss())),
                    };
                    return;
                }
                if let Some((before, judge_at)) = self.drained.filter(|d| now >= d.1) {
                    // A drain that found a shorter path than was known has not found its end.
                    let found = before - self.base.least() > 0.5 * DRAIN * self.drain_time;
                    self.drain_time = if found { 2.0 * self.drain_time } else { 0.0 };
                    self.drained = None;
                    self.next_drain = judge_at;
                }
                let stale = self.drain_time > 0.0 || self.base.staleness(at, NO_QUEUE) > STALE_BASE;
                // What is more than wanted is being drained already.
                let more = self.queue > 1.3 * self.wanted_queue();
                let rest = self.is_idle() || more || self.drained.is_some();
                if now >= self.next_drain && !rest && stale {
                    self.drain_time = self.drain_time.max(1.5 * self.queue + 0.02).min(0.5);
                    let until = now + Duration::from_secs_f64(self.drain_time);
                    let seen = until + Duration::from_secs_f64(self.lag + 0.05);
                    self.drained = Some((self.base.least(), seen));
                    self.state = State::Draining { until };
                }
            }
            State::Asking { since, until, .. } => {
                if now >= until {
                    self.asked = Some((since, self.sent));
                    self.next_ask = now + Duration::from_secs_f64(2.0 * self.lag + 0.5);
                    self.state = State::Following;
                }
            }
            State::Draining { until } => {
                if now >= until {
                    self.state = State::Following;
                }
            }
        }
    }

    /// Looks for others who fill the queue; true while they do.
    fn watch_others(&mut self, now: Instant, at: f64) -> bool {
        let random = self.reports.random_loss();
        let queue = self.base.above_floor(self.reports.least_delay(0.03));
        // Some seconds without a loss do not make a lossy line one whose every loss is an overflow.
        let clean = self.reports.mean_loss() < NO_LOSS || !self.compete.varies();
        let lost = if random < NO_LOSS && clean {
            self.reports.newly_lost() > 0.5 * FRAME
        } else {
            let excess = if self.compete.varies() { OVERFLOW } else { 0.0 };
            self.reports.loses_more((self.lag + queue).max(0.1), excess)
        };
        let seen = Seen {
            now,
            at,
            rate: self.mu * (1.0 - random),
            lag: self.lag,
            queue,
            more: queue
                > 1.3
                    * self
                        .wanted_queue()
                        .min(self.params.queue + CROWD * self.lag)
                    + 0.005,
            lost,
            busy: !self.is_idle(),
            varies: self.forecast.varies(),
            loss: (self.reports.mean_loss() - random).max(0.0),
            wasteful: self.reports.loses_more((self.lag + queue).max(0.1), WASTE),
        };
        let (reports, origin) = (&self.reports, self.origin);
        let tx = |t: Instant| origin.map_or(0.0, |o| t.since(o.1).as_secs_f64());
        let slope = |from, to| {
            let known = reports.last().is_some_and(|p| p.sent_at >= tx(to));
            known.then(|| reports.slope(tx(from), tx(to)))
        };
        self.compete.on_report(seen, slope, DIP);
        self.compete.competes()
    }

    /// A queue that stands although less was sent than used to arrive is a longer path.
    fn watch_base(&mut self, now: Instant, at: f64) {
        if self.mu >= self.fastest.1 {
            self.fastest = (now, self.mu);
        }
        // Forgotten by half in a second: what the line has become counts.
        let age = now.since(self.fastest.0).as_secs_f64();
        let fastest = self.fastest.1 * 0.5f64.powf(age);
        if fastest < self.mu {
            self.fastest = (now, self.mu);
        }
        let window = (2.0 * self.lag).max(0.4);
        let queue = self.recent_queue(window);
        let wanted = 1.3 * self.wanted_queue();
        if queue > wanted && self.mu < 0.93 * fastest && self.reports.passes_through(window) {
            let delay = self.reports.least_delay(window);
            self.base.replace(at, delay);
            self.base_changes += 1;
        }
    }
}
