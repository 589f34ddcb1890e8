//! Sharing a queue with traffic that fills it: while somebody else does, holding back
//! leaves him the line and makes nothing faster, so the link behaves as one of them.
//!
//! ```text
//!          most of the time more waits than is wanted, the queue overflows,
//!          and dips of the rate agree that others have a part of the line
//!  ALONE ───────────────────────────────────────────────────────────▶ COMPETING
//!     ▲                                                                  │
//!     └────────────── two dips say that there is nobody else ────────────┘
//! ```
//!
//! A dip: when the rate falls to g times what is delivered for less than a round trip,
//! the queue's delay falls by (1 - g) * s per second, s being the share of the line
//! that the link has. Nobody's reaction to it can come that soon. On a line that varies
//! by itself dips disagree, and nothing is concluded.
//!
//! Competing, the amount in flight is CUBIC's window (RFC 9438), which also gives way when
//! the queue is as full as it was when it last overflowed: packets that are paced are
//! dropped less often than others' bursts. It is at least what holds a part of the line:
//! the dips tell the line's rate C (each by how much the queue's growth changed for so much
//! less sent, all of them together by least squares), and by Little's law a share f of the
//! line has f * C * (delay of the path and of the queue) in flight, whoever the others are.
//! When they leave, the queue and with it that amount shrinks.

use std::collections::VecDeque;

use mef_packet::time::Duration;
use mef_packet::Instant;

/// CUBIC's constants.
const BETA: f64 = 0.7;
const C: f64 = 0.4;
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);
const PACKET: f64 = 1514.0;
/// Round trips over which the highest delivery rate counts.
const BW_ROUNDS: f64 = 10.0;
/// Seconds over which a queue is judged, and the share of them that makes it suspicious.
const CROWD_MEMORY: f64 = 1.5;
const LONG_MEMORY: f64 = 3.0;
const CROWDED: f64 = 0.75;
/// How long a loss tells that the queue is full at times.
const OVERFLOWING: Duration = Duration::from_secs(10);
/// Dips that are remembered and that have to agree at least, how far they may differ (standard
/// deviation), and how many standard errors count as sure; the share up to which there is
/// somebody else, and that from which there is nobody.
const DIPS: usize = 8;
const FEW_DIPS: usize = 3;
const AGREEMENT: f64 = 0.4;
const LEAST_DEVIATION: f64 = 0.1;
const SURE: f64 = 1.5;
const SHARED: f64 = 0.8;
/// The same on a line that varies by itself, whose dips agree by chance at times: more of them
/// that differ less.
const VARYING_DIPS: usize = 5;
const VARYING_AGREEMENT: f64 = 0.3;
const CLOSE_AGREEMENT: f64 = 0.12;
const ALONE: f64 = 0.8;
/// Time between dips: while it is not known, and while it is.
const SOON: Duration = Duration::from_millis(250);
const LESS_SOON: Duration = Duration::from_millis(500);
const MUCH_LATER: Duration = Duration::from_secs(6);
const LATER: Duration = Duration::from_secs(4);
/// A rate below this share of that before the queue came: somebody may have taken the line.
const STARVED: f64 = 0.45;
/// Seconds that the rate before is remembered.
const BEFORE: f64 = 20.0;
/// For so long.
const VARYING: Duration = Duration::from_secs(10);
/// No queue for so long while competing: there is nobody.
const GONE: Duration = Duration::from_secs(2);
/// Share of the line that is held against one or two, and against many.
const HOLD: f64 = 0.40;
const HOLD_MANY: f64 = 0.22;
/// Many flows that give way on loss overflow the queue more often than one does (50 Mbit/s, 100 ms:
/// every 2 s, one every 7), and lose little; who does not give way loses much, if not all the time:
/// BBR leaves the queue alone for some seconds after it has looked for the path's delay. So many
/// overflows are looked at, the mean time between two, seconds, and the loss beyond the line's own
/// that there may have been since the first of them.
const EVENTS: usize = 4;
const OFTEN: f64 = 3.5;
const LITTLE: f64 = 0.005;
/// The line is taken to carry at most this multiple of what the link was seen to get.
const MOST_GUESS: f64 = 4.0;
/// A queue this near to the longest of late has overflowed, for somebody.
const FULL: f64 = 0.97;
/// By how much a dip counts less than the one behind it.
const FORGET: f64 = 0.93;
/// A queue of so few seconds may have been empty.
const DRY: f64 = 0.002;
/// Share of a dip that passes before all that is sent is sent at its rate.
const SETTLING: f64 = 0.12;
/// Seconds for which dips tell the rate of the line.
const FIT_MEMORY: f64 = 12.0;
/// Share of the line beyond which a link that competes does not go.
const MOST: f64 = 0.6;

/// The window of one TCP flow, in packets.
#[derive(Clone, Copy, Debug)]
struct Window {
    cwnd: f64,
    w_max: f64,
    w_est: f64,
    /// Seconds since the last decrease.
    time: f64,
    k: f64,
}

impl Window {
    fn new(bytes: f64) -> Self {
        let cwnd = (bytes / PACKET).max(4.0);
        Self {
            cwnd,
            w_max: cwnd,
            w_est: cwnd,
            time: 0.0,
            k: 0.0,
        }
    }
    fn grow(&mut self, time: f64, rtt: f64) {
        self.time += time;
        self.w_est += ALPHA * time / rtt;
        let cubic = C * (self.time - self.k).powi(3) + self.w_max;
        // No faster than by half per round trip.
        let most = self.cwnd * (1.0 + 0.5 * time / rtt);
        self.cwnd = cubic.max(self.w_est).clamp(self.cwnd, most);
    }
    fn lose(&mut self) {
        // Fast convergence.
        self.w_max = if self.cwnd < self.w_max {
            self.cwnd * (1.0 + BETA) / 2.0
        } else {
            self.cwnd
        };
        self.cwnd = (self.cwnd * BETA).max(4.0);
        self.k = ((self.w_max - self.cwnd).max(0.0) / C).cbrt();
        self.w_est = self.cwnd;
        self.time = 0.0;
    }
}

/// The highest delivery rate of late.
#[derive(Clone, Debug, Default)]
struct Highest {
    values: VecDeque<(f64, f64)>,
}

impl Highest {
    fn push(&mut self, at: f64, value: f64, memory: f64) {
        while self.values.back().is_some_and(|v| v.1 <= value) {
            self.values.pop_back();
        }
        self.values.push_back((at, value));
        while self.values.front().is_some_and(|v| at - v.0 > memory) {
            self.values.pop_front();
        }
    }
    fn get(&self) -> f64 {
        self.values.front().map_or(0.0, |v| v.1)
    }
    /// Of the last `memory` seconds before `at`, though nothing came since.
    fn value(&self, at: f64, memory: f64) -> f64 {
        let mut young = self.values.iter().filter(|v| at - v.0 <= memory);
        young.next().map_or(0.0, |v| v.1)
    }
}

/// Longest queue per two seconds, of the last twelve.
#[derive(Clone, Debug, Default)]
struct Queues {
    parts: VecDeque<(f64, f64)>,
}

impl Queues {
    const PART: f64 = 2.0;
    const PARTS: usize = 6;

    fn push(&mut self, at: f64, queue: f64) {
        match self.parts.back_mut() {
            Some((start, most)) if at - *start < Self::PART => *most = most.max(queue),
            _ => self.parts.push_back((at, queue)),
        }
        if self.parts.len() > Self::PARTS {
            self.parts.pop_front();
        }
    }
    fn most(&self) -> f64 {
        self.parts.iter().fold(0.0f64, |m, p| m.max(p.1))
    }
}

/// The line's rate from dips: by how much the queue's growth changed for so much less sent.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    /// Sums of (bytes/s less sent)^2 and of that times the change of growth.
    square: f64,
    product: f64,
    /// When the last one was, seconds.
    at: f64,
}

impl Fit {
    fn add(&mut self, at: f64, less: f64, change: f64) {
        self.at = at;
        self.square = FORGET * self.square + less * less;
        self.product = FORGET * self.product + less * change;
    }
    /// Bytes/s; beyond all bounds while sending less changes nothing.
    fn capacity(&self) -> f64 {
        if self.product > 0.0 {
            self.square / self.product
        } else {
            f64::INFINITY
        }
    }
}

/// What a report says that matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub now: Instant,
    /// Seconds of the receiver's clock.
    pub at: f64,
    /// Delivery rate, bytes/s.
    pub rate: f64,
    /// Time of a packet without a queue, and in the queue, seconds.
    pub lag: f64,
    pub queue: f64,
    /// More waits than is wanted.
    pub more: bool,
    /// Something was lost that is not lost at random.
    pub lost: bool,
    /// The hosts send as much as they may.
    pub busy: bool,
    /// The line varies by itself, as it seems.
    pub varies: bool,
    /// Share lost of late beyond what is lost at random.
    pub loss: f64,
    /// So much is lost that more in flight only makes more losses.
    pub wasteful: bool,
}

/// Whether somebody else fills the queue, and the window while that is so.
#[derive(Clone, Debug, Default)]
pub(super) struct Compete {
    /// Share of the time, of late, that more waited than is wanted.
    crowd: f64,
    long_crowd: f64,
    /// The line varies by itself.
    varies: bool,
    varied: Option<Instant>,
    noted: Option<Instant>,
    lost: Option<Instant>,
    window: Option<Window>,
    highest: Highest,
    /// Highest delivery rate before there was more in the queue than is wanted.
    before: Highest,
    /// When the queue was last longer than nothing.
    queued: Option<Instant>,
    /// When the next loss counts as another event.
    deaf_until: f64,
    /// From when until when, and the delivery rate before.
    dip: Option<(Instant, Instant, f64)>,
    next_dip: Option<Instant>,
    /// What the last dips showed.
    shares: VecDeque<f64>,
    fit: Fit,
    /// Time of the newest report, seconds, and whether much of what was sent before it was lost.
    seen_at: f64,
    wasteful: bool,
    queues: Queues,
    /// When the queue last overflowed, seconds, and whether that tells of many.
    events: VecDeque<f64>,
    /// When more than little was lost, seconds.
    costly: f64,
    many: bool,
}

impl Compete {
    pub fn competes(&self) -> bool {
        self.window.is_some()
    }
    /// Whether the line varied by itself within the last ten seconds.
    pub fn varies(&self) -> bool {
        self.varies
    }
    /// Whether the queue overflowed of late.
    pub fn overflows(&self, now: Instant) -> bool {
        self.lost.is_some_and(|t| now.since(t) < OVERFLOWING)
    }
    /// Whether the rate is to be low now, to see what the queue does.
    pub fn dips(&self, now: Instant) -> bool {
        self.dip.is_some_and(|d| now < d.1)
    }
    /// Bytes to hold in flight, while competing, at this delay of the path and of the queue, seconds.
    pub fn wanted(&self, lag: f64, queue: f64) -> Option<f64> {
        let window = self.window?.cwnd * PACKET;
        let least = self.held(lag + queue);
        let most = MOST * self.capacity() * (lag + queue);
        Some(window.min(most).max(least))
    }

    fn held(&self, round: f64) -> f64 {
        let hold = if self.many { HOLD_MANY } else { HOLD };
        hold * self.capacity() * round
    }

    /// Of the line, bytes/s: what dips show, within what is plausible.
    fn capacity(&self) -> f64 {
        let seen = self.highest.get();
        if self.wasteful || self.seen_at - self.fit.at > FIT_MEMORY {
            return seen;
        }
        self.fit.capacity().clamp(seen, MOST_GUESS * seen)
    }

    /// Takes a report. `slope` tells by how many seconds per second the delay grew of the packets
    /// sent between two times; `None` while not all of them are reported.
    pub fn on_report(
        &mut self,
        seen: Seen,
        slope: impl FnOnce(Instant, Instant) -> Option<Option<f64>>,
        dip_rate: f64,
    ) {
        let round = seen.lag + seen.queue;
        let time = self
            .noted
            .map_or(0.0, |t| seen.now.since(t).as_secs_f64().min(1.0));
        self.noted = Some(seen.now);
        (self.seen_at, self.wasteful) = (seen.at, seen.wasteful);
        self.highest.push(seen.at, seen.rate, BW_ROUNDS * round);
        self.queues.push(seen.at, seen.queue);
        let keep = (-time / CROWD_MEMORY).exp();
        let more = f64::from(u8::from(seen.more));
        self.crowd = self.crowd * keep + (1.0 - keep) * more;
        let keep = (-time / LONG_MEMORY).exp();
        self.long_crowd = self.long_crowd * keep + (1.0 - keep) * more;
        if seen.varies {
            self.varied = Some(seen.now);
        }
        self.varies = self.varied.is_some_and(|t| seen.now.since(t) < VARYING);
        if seen.lost {
            self.lost = Some(seen.now);
        }
        let overflows = self.overflows(seen.now);
        if self.crowd < 0.3 {
            self.before.push(seen.at, seen.rate, BEFORE);
        }
        let before = self.before.value(seen.at, BEFORE);
        let starved = seen.rate < STARVED * before && !self.varies;
        let crowd = if self.varies {
            self.long_crowd
        } else {
            self.crowd
        };
        let suspicious = (overflows || starved) && crowd > CROWDED && seen.busy;
        if self.window.is_none() && !suspicious {
            if self.crowd < 0.3 {
                self.shares.clear();
            }
            self.dip = None;
            return;
        }
        self.measure(seen, slope, dip_rate);
        let full = seen.queue > FULL * self.queues.most();
        let Some(window) = &mut self.window else {
            if self.is_shared() {
                self.begin(round);
            } else if self.shares.len() == DIPS {
                // A line that varies by itself, or nobody else: not asked again soon.
                self.shares.clear();
                self.next_dip = Some(seen.now + MUCH_LATER);
            }
            return;
        };
        if seen.lost && self.events.back().is_none_or(|t| seen.at - t > round) {
            self.events.push_back(seen.at);
            if self.events.len() > EVENTS {
                self.events.pop_front();
            }
        }
        if seen.loss >= LITTLE {
            self.costly = seen.at;
        }
        let often = |first: &f64| seen.at - first < OFTEN * EVENTS as f64 && self.costly < *first;
        self.many = self.events.len() == EVENTS && self.events.front().is_some_and(often);
        if (seen.lost || full) && seen.at > self.deaf_until {
            self.deaf_until = seen.at + round;
            window.lose();
        }
        if seen.busy {
            window.grow(time, round);
        }
        if seen.queue > 0.05 * seen.lag + 0.002 {
            self.queued = Some(seen.now);
        }
        let gone = seen.busy && self.queued.is_some_and(|t| seen.now.since(t) > GONE);
        if self.is_alone() || gone {
            self.end();
        }
    }

    fn begin(&mut self, round: f64) {
        self.window = Some(Window::new(self.highest.get() * round));
        self.queued = self.noted;
    }

    fn end(&mut self) {
        self.window = None;
        self.crowd = 0.0;
        self.long_crowd = 0.0;
        self.dip = None;
        self.shares.clear();
        self.fit = Fit::default();
        self.events.clear();
        self.many = false;
    }

    fn measure(
        &mut self,
        seen: Seen,
        slope: impl FnOnce(Instant, Instant) -> Option<Option<f64>>,
        dip_rate: f64,
    ) {
        let Some((from, until, rate)) = self.dip else {
            if self.next_dip.is_none_or(|t| seen.now >= t) {
                let length = (0.5 * seen.lag).clamp(0.06, 0.2);
                let until = seen.now + Duration::from_secs_f64(length);
                self.dip = Some((seen.now, until, seen.rate));
            }
            return;
        };
        let settled = from + until.since(from).mul_f64(SETTLING);
        let Some(slope) = slope(settled, until) else {
            return;
        };
        self.dip = None;
        // A queue that ran dry before the dip was over tells only that the share is not less.
        let dry = |s: f64| seen.queue < DRY && -s < ALONE * (1.0 - dip_rate);
        let slope = slope.filter(|s| !dry(*s));
        if let Some(slope) = slope {
            let share = (-slope / (1.0 - dip_rate)).clamp(-2.0, 2.0);
            self.shares.push_back(share);
            if self.shares.len() > DIPS {
                self.shares.pop_front();
            }
            self.fit.add(seen.at, (1.0 - dip_rate) * rate, -slope);
        }
        let known = slope.is_some()
            && self.window.is_some()
            && self.shares.back().is_none_or(|s| *s < ALONE);
        self.next_dip = Some(
            seen.now
                + match (known, self.varies) {
                    (true, _) => LATER,
                    (false, true) => LESS_SOON,
                    (false, false) => SOON,
                },
        );
    }

    /// Whether the dips agree that somebody else has a part of the line.
    fn is_shared(&self) -> bool {
        let n = self.shares.len() as f64;
        let mean = self.shares.iter().sum::<f64>() / n;
        let variance = self.shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let deviation = variance.sqrt();
        let agree = match self.shares.len() {
            n if n < FEW_DIPS => false,
            _ if !self.varies => deviation < AGREEMENT,
            n if n < VARYING_DIPS => deviation < CLOSE_AGREEMENT,
            _ => deviation < VARYING_AGREEMENT,
        };
        agree && mean + SURE * deviation.max(LEAST_DEVIATION) / n.sqrt() < SHARED
    }

    fn is_alone(&self) -> bool {
        let last = self.shares.iter().rev().take(2);
        last.filter(|s| **s > ALONE).count() == 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_back_where_it_lost_after_cubics_time() {
        let mut w = Window::new(1000.0 * PACKET);
        w.lose();
        assert_eq!(w.cwnd, 700.0);
        let k = (300.0f64 / C).cbrt();
        for _ in 0..(k * 100.0) as usize {
            w.grow(0.01, 0.1);
        }
        assert!((w.cwnd / 1000.0 - 1.0).abs() < 0.02, "{}", w.cwnd);
        // Losing again below that leaves room to others.
        w.lose();
        w.grow(0.1, 0.1);
        w.lose();
        assert!(w.w_max < w.cwnd / BETA);
    }

    #[test]
    fn dips_that_disagree_say_nothing() {
        let of = |shares: &[f64]| Compete {
            shares: shares.iter().copied().collect(),
            ..Compete::default()
        };
        assert!(!of(&[0.5, 0.4]).is_shared());
        assert!(of(&[0.5, 0.4, 0.6]).is_shared());
        assert!(!of(&[0.9, 1.0, 0.8]).is_shared());
        assert!(!of(&[0.5, -0.6, 1.4, 0.1, 0.9]).is_shared());
        assert!(!of(&[0.5, -0.6, 1.4, 0.1, 0.9]).is_alone());
        assert!(of(&[0.2, 1.0, 0.9]).is_alone());
    }

    #[test]
    fn dips_tell_the_rate_of_the_line_whatever_each_of_them_is_off_by() {
        let mut fit = Fit::default();
        assert_eq!(fit.capacity(), f64::INFINITY);
        // A line of 6 MB/s; the link's own rate grows, what others do adds to each dip.
        for i in 0..40 {
            let less = 0.2e6 + 0.02e6 * f64::from(i);
            let noise = if i % 2 == 0 { 0.05 } else { -0.05 };
            fit.add(f64::from(i), less, less / 6e6 + noise);
        }
        assert!(
            (fit.capacity() / 6e6 - 1.0).abs() < 0.1,
            "{}",
            fit.capacity()
        );
    }
}
