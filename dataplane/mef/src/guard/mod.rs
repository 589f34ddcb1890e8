//! A configured capacity is an upper bound, not a truth: this watches what the
//! receiver reports and holds the rate of a line to what it really carries.
//!
//! ```text
//!            queue above 20 ms and delivered < 97% of sent,
//!            or the receiver drops
//!  TRUSTING ─────────────────────────────────────▶ DRAINING  the queue built so far, by
//!     ▲                                             │    ▲   sending below what was seen
//!     │ back at the                         drained │    │
//!     │ configured rate                             ▼    │ queue above 8 ms
//!     └──────────────────────────────────────── LIMITED ─┘
//!                                               grows in steps of 2 to 8%
//! ```
//!
//! Loss alone changes nothing, nor does jitter: the queue is the least one-way
//! delay over a window of half a round trip, above the least over 10 s, so
//! single late packets do not count and clock skew (50 ppm are 0.5 ms in that
//! time) stays below the thresholds. Sent and delivered are compared as rates,
//! each over its own clock, corrected for the loss known before the queue rose.
//!
//! What was delivered while the queue stood is what the line carries. A queue
//! that draining does not shrink is none: the path has become longer, and the
//! base is learned anew.

#[cfg(test)]
mod tests;
mod window;

use mef_packet::time::Duration;
use mef_packet::{BitRate, Bytes, Instant};
use window::{History, Window};

/// Queueing that is evidence of a line slower than configured.
const SUSPICIOUS_QUEUE: Duration = Duration::from_millis(20);
/// The same once a limit is known.
const LIMITED_QUEUE: Duration = Duration::from_millis(8);
/// Less than this is no queue.
const QUIET: Duration = Duration::from_millis(4);
/// Delivered over sent, below which the line is slower than what was sent.
const DELIVERED: f64 = 0.97;
/// Who sends less than this share of the configured rate is believed that the line carries not even that only
/// where two windows in a row say so, by more than the losses of few packets: one may be a path that became longer.
const LITTLE: f64 = 0.1;
const DELIVERED_OF_LITTLE: f64 = 0.9;
/// Share of what was seen that is used, so that what is left of the queue drains.
const HEADROOM: f64 = 0.98;
/// A window holds at least this much of what may be sent: 64 full frames.
const WINDOW_BYTES: u64 = 64 * 1514;
const MAX_WINDOW: Duration = Duration::from_secs(2);
const STEP: f64 = 0.02;
const MAX_STEP: f64 = 0.08;
const MAX_INTERVAL: Duration = Duration::from_secs(30);
/// Never below, as a share of the configured rate: a peer that reports nonsense hurts only itself, and not for good.
const FLOOR: f64 = 0.005;

/// What one acknowledgement says of the packet that was the newest to arrive.
#[derive(Clone, Copy, Debug)]
pub struct AckSample {
    /// When that packet was sent.
    pub sent_at: Instant,
    /// Bytes sent on the line up to and including that packet.
    pub sent_bytes: u64,
    /// When it was received, in microseconds of the receiver's clock, whose origin does not matter.
    pub rx_us: u64,
    /// Bytes the receiver had received by then, counted as in `sent_bytes`.
    pub delivered_bytes: u64,
    /// Packets the receiver had to drop so far.
    pub receiver_drops: u64,
}

/// The line carries less than its configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub configured: BitRate,
    pub seen: BitRate,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Trusting,
    Draining {
        since: Instant,
        until: Instant,
    },
    Limited {
        /// Only packets sent from here on tell of the present rate.
        since: Instant,
        /// Queue that the last drain set out to remove, until that is seen to have worked.
        drained: Option<Drained>,
        probe_at: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Drained {
    queue: Duration,
    /// The rate to go back to if there was no queue after all.
    before: BitRate,
}

/// Guard of one line's capacity.
#[derive(Clone, Debug)]
pub struct CapacityGuard {
    configured: BitRate,
    rate: BitRate,
    /// What the line was last seen to carry.
    seen: BitRate,
    state: State,
    history: History,
    /// Loss as it was while there was no queue.
    loss: f64,
    rtt: Duration,
    step: f64,
    interval: Duration,
    /// Last rate that was used for a whole interval without a queue.
    good: BitRate,
    drained: Option<Drained>,
    /// Departure of the newest packet of a window in which little was sent and less arrived.
    doubted: Option<Instant>,
}

impl CapacityGuard {
    pub fn new(configured: BitRate) -> Self {
        Self {
            configured,
            rate: configured,
            seen: configured,
            state: State::Trusting,
            history: History::default(),
            loss: 0.0,
            rtt: Duration::from_millis(100),
            step: STEP,
            interval: Duration::from_secs(1),
            good: BitRate(0),
            drained: None,
            doubted: None,
        }
    }

    /// A: the rate the line may be used at, at most the configured one.
    pub fn rate(&self) -> BitRate {
        self.rate
    }

    /// Stands while the line is held below its configured rate.
    pub fn alarm(&self) -> Option<Alarm> {
        (self.rate < self.configured).then_some(Alarm {
            configured: self.configured,
            seen: self.seen,
        })
    }

    /// Another rate was configured; what was learned of the line is kept if it still limits.
    pub fn set_configured(&mut self, configured: BitRate) {
        self.configured = configured;
        if self.rate >= configured || matches!(self.state, State::Trusting) {
            self.rate = configured;
            self.trust();
        }
    }

    /// The peer's counters and its clock start anew. What the line was seen to carry still holds.
    pub fn session_started(&mut self, now: Instant) {
        self.history = History::default();
        self.drained = None;
        self.doubted = None;
        if !matches!(self.state, State::Trusting) {
            self.rate = self.bounded(self.seen.scale(HEADROOM).0);
            self.limited(now, None);
        }
    }

    /// One acknowledgement. `rtt` is the path's least round trip, `loss` the mean loss
    /// ([`LossEstimator::mean`](crate::loss::LossEstimator::mean)). What is older than a former sample is ignored.
    pub fn on_ack(&mut self, now: Instant, rtt: Duration, loss: f64, sample: AckSample) {
        self.rtt = rtt.clamp(Duration::from_millis(1), Duration::from_secs(5));
        let window = self.window();
        let Some(queue) = self.history.push(sample, window) else {
            return;
        };
        // The path's own estimate takes losses of a full queue for random ones: it is used only
        // until there is a measurement of times without a queue.
        match self.history.quiet_loss() {
            Some(measured) => self.loss = measured.clamp(0.0, 0.9),
            None if queue < QUIET && matches!(self.state, State::Trusting) => {
                self.loss = loss.clamp(0.0, 0.9)
            }
            None => {}
        }
        self.aim(window);
        self.poll(now);
        match self.state {
            State::Trusting => self.watch(now, window),
            State::Draining { .. } => {}
            State::Limited {
                since,
                drained,
                probe_at,
            } => self.hold(now, window, since, drained, probe_at),
        }
    }

    /// Half a round trip, but no fewer packets than tell a rate and a least delay apart from jitter.
    fn window(&self) -> Duration {
        let enough = self.rate.time_for(Bytes(WINDOW_BYTES)).min(MAX_WINDOW);
        (self.rtt / 2).max(Duration::from_millis(30)).max(enough)
    }

    /// Does what is due by time alone.
    pub fn poll(&mut self, now: Instant) {
        let State::Draining { until, .. } = self.state else {
            return;
        };
        if now < until {
            return;
        }
        // By now all that was delivered under a standing queue has been reported, but for the last
        // round trip: a longer look at what the line carries.
        if let Some(carried) = self.history.rate_while_queued(LIMITED_QUEUE) {
            self.seen = self.plausible(carried);
        }
        self.rate = self.bounded(self.seen.scale(HEADROOM).0.min(self.good_or_max()));
        let drained = self.drained.take();
        self.limited(until, drained);
    }

    /// When [`poll`](Self::poll) has something to do without an acknowledgement.
    pub fn next_at(&self) -> Instant {
        match self.state {
            State::Draining { until, .. } => until,
            State::Trusting | State::Limited { .. } => Instant::FAR_FUTURE,
        }
    }

    /// The first packets sent while draining tell how much queue there was really, and so when it is gone.
    fn aim(&mut self, window: Duration) {
        let State::Draining { since, .. } = self.state else {
            return;
        };
        let Some((queue, sent_at)) = self.history.queue_since(since, window / 4) else {
            return;
        };
        let share = 1.0 - self.rate.0 as f64 / self.seen.0.max(1) as f64;
        if share > 0.05 {
            let until = sent_at + queue.div_f64(share).min(Duration::from_secs(10));
            self.state = State::Draining { since, until };
        }
    }

    fn watch(&mut self, now: Instant, window: Duration) {
        let Some(w) = self.history.window(window, Instant::ZERO) else {
            return;
        };
        let slow = w.delivered < DELIVERED * (1.0 - self.loss) * w.sent;
        if slow && (w.queue > SUSPICIOUS_QUEUE || w.drop_reports >= 2) && self.convinced(&w) {
            self.seen = self.plausible(w.delivered);
            self.step = STEP;
            self.interval = self.least_interval();
            self.good = BitRate(0);
            self.drain(now, &w);
        }
    }

    /// Whether a window that looks slow is enough: where little was sent its few packets tell nothing.
    fn convinced(&mut self, w: &Window) -> bool {
        if w.sent > LITTLE * self.configured.bytes_per_second() {
            return true;
        }
        let enough = Duration::from_secs_f64(WINDOW_BYTES as f64 / w.sent.max(1.0));
        let length = enough.min(MAX_WINDOW).max(self.rtt / 2);
        let Some(w) = self.history.window(length, Instant::ZERO) else {
            return false;
        };
        if w.delivered > DELIVERED_OF_LITTLE * (1.0 - self.loss) * w.sent {
            return false;
        }
        let before = *self.doubted.get_or_insert(w.last_sent_at);
        if w.first_sent_at < before {
            return false;
        }
        self.doubted = None;
        // What was doubted long ago has nothing to do with it.
        w.first_sent_at.since(before) < MAX_WINDOW
    }

    fn hold(
        &mut self,
        now: Instant,
        window: Duration,
        since: Instant,
        drained: Option<Drained>,
        probe_at: Instant,
    ) {
        let Some(w) = self.history.window(window, since) else {
            return;
        };
        let slow = w.delivered < DELIVERED * (1.0 - self.loss) * w.sent;
        if w.queue > LIMITED_QUEUE || (slow && w.drop_reports >= 2) {
            match drained {
                Some(d) if w.queue > d.queue.mul_f64(0.7) && !slow => {
                    // Draining did not help, so this is how long the path is now.
                    self.history.learn_base();
                    self.rate = d.before;
                    if self.rate >= self.configured {
                        self.trust();
                    } else {
                        self.limited(now, None);
                    }
                }
                _ => self.fall_back(now, &w),
            }
            return;
        }
        if drained.is_some() {
            self.state = State::Limited {
                since,
                drained: None,
                probe_at,
            };
        }
        if now < probe_at {
            return;
        }
        // A rate that was not used has not been tried.
        if self.history.sent_rate(since) < 0.9 * self.rate.bytes_per_second() {
            self.state = State::Limited {
                since: now,
                drained: None,
                probe_at: now + self.interval,
            };
            return;
        }
        self.good = self.rate;
        self.seen = self.seen.max(self.rate);
        self.rate = self.bounded(self.rate.scale(1.0 + self.step).0);
        self.step = (2.0 * self.step).min(MAX_STEP);
        if self.rate >= self.configured {
            self.trust();
        } else {
            self.limited(now, None);
        }
    }

    /// A queue although a limit is known: a step too far, or the line has become slower still.
    fn fall_back(&mut self, now: Instant, w: &Window) {
        let carried = self.plausible(w.delivered);
        if self.good > BitRate(0) && self.good < self.rate && carried.scale(1.02) >= self.good {
            // The step failed: back to what held, and the next try later.
            self.seen = carried.max(self.good);
            self.interval = (2 * self.interval).min(MAX_INTERVAL);
        } else {
            self.seen = carried.min(self.rate);
            self.good = BitRate(0);
            self.interval = self.least_interval();
        }
        self.step = STEP;
        self.drain(now, w);
    }

    /// Sends below what the line carries for as long as the queue needs that will have been built
    /// when the new rate gets there.
    fn drain(&mut self, now: Instant, w: &Window) {
        let excess = (self.rate.0 as f64 / self.seen.0.max(1) as f64 - 1.0).max(0.0);
        // A queue that overflows grows no more, whatever the excess.
        let growth = excess.min(1.2 * w.queue_growth + 0.05);
        let under_way = now.since(w.last_sent_at).mul_f64(growth);
        let queue = w.queue_now + under_way;
        let share = (queue.as_secs_f64() / self.rtt.max(Duration::from_millis(100)).as_secs_f64())
            .clamp(0.1, 0.5);
        let time = queue.div_f64(share).min(Duration::from_secs(10));
        self.drained = Some(Drained {
            queue: w.queue_now,
            before: self.rate,
        });
        self.rate = self.bounded(self.seen.scale(1.0 - share).0);
        self.history.mark_event(w.first_sent_at);
        self.state = State::Draining {
            since: now,
            until: now + time,
        };
    }

    fn limited(&mut self, since: Instant, drained: Option<Drained>) {
        self.state = State::Limited {
            since,
            drained,
            probe_at: since + self.interval,
        };
    }

    fn trust(&mut self) {
        self.seen = self.configured;
        self.state = State::Trusting;
    }

    /// What the line carries if `delivered` bytes/s arrive: what was lost at random took its room too.
    fn plausible(&self, delivered: f64) -> BitRate {
        BitRate(self.bounded((delivered * 8.0 / (1.0 - self.loss)) as u64).0)
    }

    fn good_or_max(&self) -> u64 {
        if self.good.0 > 0 {
            self.good.0.max(self.seen.scale(HEADROOM).0)
        } else {
            u64::MAX
        }
    }

    fn bounded(&self, rate: u64) -> BitRate {
        let floor = self.configured.scale(FLOOR).0.max(1);
        BitRate(rate.clamp(floor, self.configured.0.max(floor)))
    }

    fn least_interval(&self) -> Duration {
        Duration::from_secs(1).max(5 * self.rtt)
    }
}
