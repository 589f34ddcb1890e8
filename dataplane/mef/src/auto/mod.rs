//! Capacity `auto`: the rate of a line whose capacity nobody knows, found from what the
//! receiver reports.
//!
//! ```text
//!            queue, or loss that comes with the rate
//!  STARTING ────────────────────────────────────────▶ FOLLOWING ──┐ every few seconds, if no
//!  doubles per round trip                                ▲        │ packet passed without a queue
//!     ▲                                                  │        ▼
//!     └── after a long pause ────────────────────────────┴──── DRAINING
//! ```
//!
//! Following, the rate steers the amount in flight towards what the line will
//! deliver until an answer can come, and some more: with mu the delivery rate over
//! the last 50 ms and D the age of that knowledge plus the way of a packet,
//!
//! ```text
//! rate = mu + (mu * (D * F + q) - inflight) / delta
//! ```
//!
//! F comes from what came within D as a multiple of mu * D in the past (`forecast.rs`).
//! On a steady line it is 1, and the queue is q; on a mobile line it grows to what
//! the variations of this very line ask for, as in Sprout (Winstein, Sivaraman,
//! Balakrishnan, 2013), but without a model of the line.
//!
//! Reports say what arrived by the time they were written, so that a pause of the
//! line is seen while it lasts. The receiver's clock is compared only with itself
//! and with a base of the last 10 s. A queue that does not shrink although less is
//! sent than arrives is none: the path has become longer, and the base is learned anew.

mod base;
mod compete;
mod forecast;
mod leading;
mod phases;
mod reports;
mod target;
#[cfg(test)]
mod tests;
pub(crate) mod users;

use base::Base;
use compete::Compete;
use forecast::Forecast;

use mef_packet::time::Duration;
use mef_packet::{BitRate, Instant};
pub use phases::Phase;
use phases::State;
use reports::{Point, Reports};
pub use target::{Params, Target};

/// How often the rate is looked at between reports.
const TICK: Duration = Duration::from_millis(20);
/// A full Ethernet frame without FCS.
const FRAME: f64 = 1514.0;
/// What may be sent in the first round trip.
const FIRST_WINDOW: f64 = 32.0 * FRAME;
/// Never below, bytes/s: what keeps reports coming.
const FLOOR: f64 = 2.0 * FRAME / 0.05;
/// What that becomes while more than this is in flight, bytes: it will be reported when it arrives.
const LEAST: f64 = FLOOR / 10.0;
const ENOUGH_INFLIGHT: f64 = 10.0 * FRAME;
/// A queue that ends the start.
const START_QUEUE: f64 = 0.012;
/// Less than this is no queue.
const NO_QUEUE: f64 = 0.001;
/// A queue that overflows nowhere.
const QUIET: f64 = 0.004;
/// As none counts, for growth, also this share of the wanted one.
const SHORT: f64 = 0.15;
/// A varying line grows in time, not per round trip: by this factor in `GROWTH_TIME` seconds.
const LEAST_GROWTH: f64 = 1.5;
const GROWTH_TIME: f64 = 0.2;
/// The rate of a dip, as a share of what is delivered.
const DIP: f64 = 0.5;
/// How much less is sent than delivered while draining.
const DRAIN: f64 = 0.6;
/// Growth for some time after an overflow.
const CAREFUL_GROWTH: f64 = 1.05;
/// After a pause of this length the rate has to be found again.
const FORGET: Duration = Duration::from_secs(5);

/// What an acknowledgement says, and what the sender knows of its newest packet.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// When the newest packet received was sent.
    pub sent_at: Instant,
    /// Line bytes sent up to and including it.
    pub sent_bytes: u64,
    /// When it arrived, microseconds of the receiver's clock, whose origin does not matter.
    pub rx_us: u64,
    /// How long the receiver then waited before it wrote the report, microseconds.
    pub hold_us: u64,
    /// Line bytes received by then.
    pub delivered_bytes: u64,
}

/// Controller of one link's rate.
#[derive(Clone, Debug)]
pub struct AutoRate {
    params: Params,
    state: State,
    /// Bytes/s.
    rate: f64,
    ceiling: f64,
    /// Delivery rate, bytes/s, corrected for random loss.
    mu: f64,
    reports: Reports,
    base: Base,
    /// Zero of the receiver's clock and of the sender's, so that differences stay exact.
    origin: Option<(u64, Instant)>,
    /// Bytes sent up to the newest packet that is known to have arrived.
    acked: u64,
    /// Age of the newest report's knowledge when it came.
    lag: f64,
    queue: f64,
    reported: Instant,
    forecast: Forecast,
    /// What could have been sent and was, decaying: whether there is anything to send.
    updated: Instant,
    allowed: f64,
    used: f64,
    sent: u64,
    last_sent: Instant,
    rtt: f64,
    /// When and to what the delivery rate last grew by a quarter.
    peak: (Instant, f64),
    careful_until: Instant,
    /// When the queue overflowed last, and the time before.
    overflowed: (Option<Instant>, Option<Instant>),
    next_drain: Instant,
    /// Length of the next drain if the last one was too short, seconds.
    drain_time: f64,
    /// Base before the last drain, and when what it showed is known.
    drained: Option<(f64, Instant)>,
    /// The highest delivery rate of late, and when it was.
    fastest: (Instant, f64),
    base_changes: u64,
    compete: Compete,
    /// Bytes between which the loss was asked for, until they are acknowledged.
    asked: Option<(u64, u64)>,
    next_ask: Instant,
    /// Another controller of the same line decides on its rate.
    led: bool,
    /// The rate when the last report came, and what is not fallen below until then: what is reported by then left
    /// while nobody knew that the former leader's path was gone.
    heard_rate: f64,
    held: Option<(Instant, f64)>,
}

impl AutoRate {
    /// A line of which nothing is known but that it carries no more than `ceiling`.
    pub fn new(now: Instant, target: Target, ceiling: BitRate) -> Self {
        Self::with_params(now, Params::of(target), ceiling)
    }

    /// The same with figures of one's own, for measurements.
    pub fn with_params(now: Instant, params: Params, ceiling: BitRate) -> Self {
        let rtt = 0.2;
        Self {
            params,
            state: State::Starting,
            rate: FIRST_WINDOW / rtt,
            ceiling: ceiling.bytes_per_second().max(FLOOR),
            mu: 0.0,
            reports: Reports::default(),
            base: Base::default(),
            origin: None,
            acked: 0,
            lag: rtt,
            queue: 0.0,
            reported: now,
            forecast: Forecast::default(),
            updated: now,
            allowed: 0.0,
            used: 0.0,
            sent: 0,
            last_sent: now,
            rtt,
            peak: (now, 0.0),
            careful_until: now,
            overflowed: (None, None),
            next_drain: now,
            drain_time: 0.0,
            drained: None,
            fastest: (now, 0.0),
            base_changes: 0,
            compete: Compete::default(),
            asked: None,
            next_ask: now,
            led: false,
            heard_rate: 0.0,
            held: None,
        }
    }

    /// The rate to send at.
    pub fn rate(&self) -> BitRate {
        BitRate((self.rate * 8.0) as u64)
    }
    /// What the line was last seen to deliver.
    pub fn delivered(&self) -> BitRate {
        BitRate((self.mu * 8.0) as u64)
    }
    /// Whether others fill the queue, so that holding back would leave the line to them.
    pub fn competes(&self) -> bool {
        self.compete.competes()
    }
    /// Queueing delay that is wanted while nobody else fills the queue.
    pub fn wanted(&self) -> Duration {
        Duration::from_secs_f64(self.wanted_queue().clamp(0.0, 3600.0))
    }
    /// Round trip of a packet that meets no queue, the peer's wait before it reports included.
    pub fn base_rtt(&self) -> Duration {
        Duration::from_secs_f64(self.lag.clamp(0.0, 3600.0))
    }
    /// Share of the packets that are lost whatever is sent, 0 to 1.
    pub fn random_loss(&self) -> f64 {
        self.reports.random_loss()
    }
    /// How often the path was found to have become longer.
    pub fn base_changes(&self) -> u64 {
        self.base_changes
    }
    /// Queueing delay of the newest packet reported.
    pub fn queue(&self) -> Duration {
        Duration::from_secs_f64(self.queue.clamp(0.0, 3600.0))
    }

    /// The peer's counters and its clock start anew.
    pub fn session_started(&mut self, now: Instant, rtt: Duration) {
        self.reports.clear();
        self.base = Base::default();
        self.origin = None;
        self.acked = 0;
        self.sent = 0;
        self.queue = 0.0;
        self.lag = rtt.as_secs_f64();
        self.rtt = self.lag.max(0.001);
        self.forecast.clear();
        self.compete = Compete::default();
        self.asked = None;
        self.drained = None;
        self.reported = now;
        self.updated = now;
        if self.mu == 0.0 {
            self.rate = (FIRST_WINDOW / self.rtt.max(0.02)).clamp(FLOOR, self.ceiling);
        }
    }

    /// One report. `rtt` is the path's least round trip, `sent` the line bytes sent so far.
    /// What is older than a former report is ignored.
    pub fn on_report(&mut self, now: Instant, rtt: Duration, sent: u64, r: Report) {
        let (rx_zero, tx_zero) = *self.origin.get_or_insert((r.rx_us, r.sent_at));
        let rx = (r.rx_us as i64).wrapping_sub(rx_zero as i64) as f64 * 1e-6;
        let tx = r.sent_at.since(tx_zero).as_secs_f64();
        let hold = r.hold_us as f64 * 1e-6;
        let at = rx + hold;
        if self
            .reports
            .last()
            .is_some_and(|l| at <= l.at || (r.delivered_bytes as f64) < l.delivered)
        {
            return;
        }
        let delay = rx - tx;
        // While the line pauses no packet can pass without waiting: what is known does not age.
        if let Some(last) = self.reports.last().filter(|_| self.mu < LEAST) {
            self.base.pause(at - last.at);
        }
        self.base.line_varies(self.is_mobile(now));
        self.base.learn(at, delay);
        self.rtt = rtt.as_secs_f64().clamp(0.001, 5.0);
        self.queue = self.base.above(delay);
        self.lag = (now.since(r.sent_at).as_secs_f64() - self.queue - hold).max(0.001);
        self.acked = self.acked.max(r.sent_bytes);
        self.reported = now;
        self.reports.push(Point {
            at,
            sent_at: tx,
            sent: r.sent_bytes as f64,
            delivered: r.delivered_bytes as f64,
            delay,
            rate: 0.0,
        });
        // A window holds enough packets to tell a rate.
        let enough = if self.mu > 0.0 {
            8.0 * FRAME / self.mu
        } else {
            0.0
        };
        let window = self.params.window.max(enough).min(0.5);
        let measured = self.reports.rate_over(window) / (1.0 - self.reports.random_loss());
        let idle = self.is_idle() && self.queue < START_QUEUE;
        if !idle || measured > self.mu {
            self.mu = measured;
        }
        // While nothing waits, what arrives tells what was sent.
        let tells =
            !idle && self.state != State::Starting && self.recent_queue(window) > 2.0 * NO_QUEUE;
        self.reports.foretell(if tells { measured } else { 0.0 });
        let shared = self.compete.overflows(now);
        self.forecast
            .update(&self.reports, self.lag, shared, &self.params);
        if !self.led {
            self.change_state(now);
        }
        self.steer(now, sent);
        self.heard_rate = self.rate;
    }

    /// Lets time pass; `sent` are the line bytes sent so far.
    pub fn poll(&mut self, now: Instant, sent: u64) {
        self.steer(now, sent);
    }

    /// When [`poll`](Self::poll) is due without a report: while anything may be in flight.
    pub fn next_at(&self) -> Instant {
        if self.updated.since(self.last_sent) < Duration::from_secs(2) {
            self.updated + TICK
        } else {
            Instant::FAR_FUTURE
        }
    }

    /// The line varies by itself, and nobody is seen to fill its queue.
    fn is_mobile(&self, now: Instant) -> bool {
        self.forecast.varies() && !self.compete.overflows(now)
    }

    /// Less was sent than could have been: the hosts have no more.
    fn is_idle(&self) -> bool {
        self.used < 0.7 * self.allowed
    }

    fn account(&mut self, now: Instant, sent: u64) {
        let time = now.since(self.updated);
        self.updated = now;
        let new = sent.saturating_sub(self.sent) as f64;
        self.sent = sent;
        let keep = (-time.as_secs_f64() / 0.1).exp();
        self.allowed = self.allowed * keep + self.rate * time.as_secs_f64();
        self.used = self.used * keep + new;
        if new > 0.0 {
            if now.since(self.last_sent) > FORGET && !self.led {
                self.state = State::Starting;
                self.peak = (now, 0.0);
                self.rate = (self.rate / 2.0).max(FIRST_WINDOW / self.rtt.max(0.02));
            }
            self.last_sent = now;
        }
    }

    /// Least queue of the newest `window` seconds of reports.
    fn recent_queue(&self, window: f64) -> f64 {
        self.base.above(self.reports.least_delay(window))
    }

    fn held_rate(&self, now: Instant) -> f64 {
        match self.held {
            Some((until, rate)) if now < until && self.recent_queue(0.03) < START_QUEUE => rate,
            _ => 0.0,
        }
    }

    /// Nothing waits that could overflow anything.
    fn is_quiet(&self) -> bool {
        self.recent_queue(0.03) < QUIET + self.packet_time()
    }

    /// What a packet takes at the rate delivered: less than that is no queue.
    fn packet_time(&self) -> f64 {
        FRAME / self.mu.max(FLOOR)
    }

    fn wanted_queue(&self) -> f64 {
        self.params.queue + self.lag * (self.forecast.factor() - 1.0)
    }

    /// The factor on the delivery rate while there is no queue.
    fn growth(&self, mobile: bool) -> f64 {
        let most = self.params.grow;
        if mobile {
            most.powf(self.lag / GROWTH_TIME)
                .min(most)
                .max(LEAST_GROWTH)
        } else {
            most
        }
    }

    fn steer(&mut self, now: Instant, sent: u64) {
        self.account(now, sent);
        if self.led {
            return;
        }
        let p = self.params;
        let mu = self.mu;
        let inflight = sent.saturating_sub(self.acked) as f64;
        // Reports that stay away tell nothing good: what may be in flight stops growing.
        let silence = now.since(self.reported).as_secs_f64();
        let lag = self.lag + silence.min(self.lag.max(0.2));
        let idle = self.is_idle();
        let rate = match self.state {
            State::Starting => {
                if idle {
                    return;
                }
                // Continuous, so that the last round trip overshoots by 0.44 of it only.
                let elapsed = now.since(self.reported).as_secs_f64();
                let behind = (self.lag + elapsed + p.window / 2.0) / self.rtt.max(0.06);
                self.rate.max(mu * 2f64.powf(behind.min(2.0)))
            }
            State::Asking { quiet, .. } => {
                let delivered = mu * (1.0 - self.reports.random_loss());
                0.95 * delivered.max(quiet.unwrap_or(0.0))
            }
            State::Draining { .. } => (1.0 - DRAIN) * mu,
            State::Following => {
                if self.compete.dips(now) {
                    DIP * mu
                } else if let Some(wanted) = self.compete.wanted(lag, self.queue) {
                    // What is lost to a full queue is not made up for.
                    let mu = mu * (1.0 - self.reports.random_loss());
                    let rate = mu + (wanted - inflight) / (lag + self.queue);
                    rate.clamp(0.5 * mu, 1.5 * mu)
                } else {
                    let forecast = lag * self.forecast.factor() + p.queue;
                    let excess = mu * forecast - inflight;
                    let mut rate = mu + excess / p.delta;
                    let mobile = self.is_mobile(now);
                    let grow = self.growth(mobile);
                    let short = if mobile {
                        NO_QUEUE.max(SHORT * self.wanted_queue())
                    } else {
                        NO_QUEUE.max(self.packet_time())
                    };
                    if self.recent_queue(0.03) < short {
                        rate = rate.max(grow * mu);
                    }
                    let most = if now < self.careful_until {
                        CAREFUL_GROWTH
                    } else {
                        grow
                    };
                    rate.min(most * mu).max(self.held_rate(now))
                }
            }
        };
        let rate = if idle {
            rate.min(self.rate.max(mu))
        } else {
            rate
        };
        // What is in flight makes reports when it arrives.
        let floor = if inflight > ENOUGH_INFLIGHT {
            LEAST
        } else {
            FLOOR
        };
        self.rate = rate.clamp(floor, self.ceiling);
    }
}
