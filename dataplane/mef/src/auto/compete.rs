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
//! Competing, the amount in flight is CUBIC's window (RFC 9438). Who lets the queue go
//! empty once in ten seconds and else takes nearly all of the line is no CUBIC but BBR,
//! which does not mind losses: against that at least somewhat more than what the path
//! holds at the highest rate of the last ten round trips stays in flight.

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
const CROWD_MEMORY: f64 = 3.0;
const CROWDED: f64 = 0.75;
/// How long a loss tells that the queue is full at times.
const OVERFLOWING: Duration = Duration::from_secs(10);
/// Dips that have to agree and how far they may differ, or fewer that differ less; the share up
/// to which there is somebody else, and that from which there is nobody.
const DIPS: usize = 5;
const AGREEMENT: f64 = 0.3;
const FEW_DIPS: usize = 3;
const FEW_AGREEMENT: f64 = 0.12;
const SHARED: f64 = 0.75;
const ALONE: f64 = 0.8;
/// Time between dips: while it is not known, and while it is.
const SOON: Duration = Duration::from_millis(500);
const MUCH_LATER: Duration = Duration::from_secs(6);
const LATER: Duration = Duration::from_secs(4);
/// What is held against BBR to begin with, at least and at most.
const HOLD: f64 = 1.15;
const LEAST_HOLD: f64 = 0.85;
const MOST_HOLD: f64 = 1.4;

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
}

/// Least and longest queue per two seconds, of the last twelve.
#[derive(Clone, Debug, Default)]
struct Queues {
    parts: VecDeque<(f64, f64, f64)>,
}

impl Queues {
    const PART: f64 = 2.0;
    const PARTS: usize = 6;

    fn push(&mut self, at: f64, queue: f64) {
        match self.parts.back_mut() {
            Some((start, least, most)) if at - *start < Self::PART => {
                *least = least.min(queue);
                *most = most.max(queue);
            }
            _ => self.parts.push_back((at, queue, queue)),
        }
        if self.parts.len() > Self::PARTS {
            self.parts.pop_front();
        }
    }
    /// Well filled, and all but empty once or twice.
    fn empties(&self) -> bool {
        let most = self.parts.iter().fold(0.0f64, |m, p| m.max(p.2));
        let below = |share: f64| self.parts.iter().filter(|p| p.1 < share * most).count();
        let (empty, low) = (below(0.15), below(0.3));
        self.parts.len() == Self::PARTS && (1..=2).contains(&empty) && low == empty
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
}

/// Whether somebody else fills the queue, and the window while that is so.
#[derive(Clone, Debug, Default)]
pub(super) struct Compete {
    /// Share of the time, of late, that more waited than is wanted.
    crowd: f64,
    noted: Option<Instant>,
    lost: Option<Instant>,
    window: Option<Window>,
    highest: Highest,
    /// Highest delivery rate before somebody else was noticed.
    before: f64,
    /// When the next loss counts as another event.
    deaf_until: f64,
    dip: Option<(Instant, Instant)>,
    next_dip: Option<Instant>,
    /// What the last dips showed.
    shares: VecDeque<f64>,
    share: Option<f64>,
    hold: Option<f64>,
    queues: Queues,
}

impl Compete {
    pub fn competes(&self) -> bool {
        self.window.is_some()
    }
    /// Whether the rate is to be low now, to see what the queue does.
    pub fn dips(&self, now: Instant) -> bool {
        self.dip.is_some_and(|(_, until)| now < until)
    }
    /// Bytes to hold in flight, while competing.
    pub fn wanted(&self, lag: f64) -> Option<f64> {
        let window = self.window?.cwnd * PACKET;
        let hold = self.hold.unwrap_or(0.0) * self.highest.get() * lag;
        Some(window.max(hold))
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
        self.highest.push(seen.at, seen.rate, BW_ROUNDS * round);
        self.queues.push(seen.at, seen.queue);
        let keep = (-time / CROWD_MEMORY).exp();
        self.crowd = self.crowd * keep + (1.0 - keep) * f64::from(u8::from(seen.more));
        if seen.lost {
            self.lost = Some(seen.now);
        }
        let overflows = self.lost.is_some_and(|t| seen.now.since(t) < OVERFLOWING);
        let suspicious = overflows && self.crowd > CROWDED && seen.busy;
        if self.window.is_none() && !suspicious {
            if self.crowd < 0.3 {
                self.before = seen.rate.max(self.before * keep);
                self.shares.clear();
            }
            self.dip = None;
            return;
        }
        self.measure(seen, slope, dip_rate);
        let Some(window) = &mut self.window else {
            if self.agreed().is_some_and(|share| share < SHARED) {
                self.begin(round);
            } else if self.shares.len() == DIPS {
                // A line that varies by itself, or nobody else: not asked again soon.
                self.shares.clear();
                self.next_dip = Some(seen.now + MUCH_LATER);
            }
            return;
        };
        if seen.lost && seen.at > self.deaf_until {
            self.deaf_until = seen.at + round;
            window.lose();
        }
        if seen.busy {
            window.grow(time, round);
        }
        if self.is_alone() {
            self.end();
        }
    }

    fn begin(&mut self, round: f64) {
        let rate = self.highest.get().max(0.3 * self.before);
        self.window = Some(Window::new(rate * round));
        self.share = self.agreed();
        self.hold = None;
    }

    fn end(&mut self) {
        self.window = None;
        self.crowd = 0.0;
        self.dip = None;
        self.shares.clear();
    }

    fn measure(
        &mut self,
        seen: Seen,
        slope: impl FnOnce(Instant, Instant) -> Option<Option<f64>>,
        dip_rate: f64,
    ) {
        let Some((from, until)) = self.dip else {
            if self.next_dip.is_none_or(|t| seen.now >= t) {
                let length = (0.5 * seen.lag).clamp(0.06, 0.2);
                let until = seen.now + Duration::from_secs_f64(length);
                self.dip = Some((seen.now, until));
            }
            return;
        };
        let Some(slope) = slope(from, until) else {
            return;
        };
        self.dip = None;
        if let Some(slope) = slope {
            let share = (-slope / (1.0 - dip_rate)).clamp(-2.0, 2.0);
            self.shares.push_back(share);
            if self.shares.len() > DIPS {
                self.shares.pop_front();
            }
            let share = share.clamp(0.0, 1.0);
            self.share = Some(self.share.map_or(share, |old| 0.7 * old + 0.3 * share));
            self.adapt();
        }
        let known = self.window.is_some() && self.shares.back().is_none_or(|s| *s < ALONE);
        self.next_dip = Some(seen.now + if known { LATER } else { SOON });
    }

    fn adapt(&mut self) {
        let Some(share) = self.share.filter(|_| self.window.is_some()) else {
            return;
        };
        self.hold = match self.hold {
            None if share < 0.25 && self.queues.empties() => Some(HOLD),
            Some(h) if share > 0.5 => Some((h * 0.95).max(LEAST_HOLD)),
            Some(h) if share < 0.4 => Some((h * 1.02).min(MOST_HOLD)),
            other => other,
        };
    }

    /// The mean share, if the dips agree.
    fn agreed(&self) -> Option<f64> {
        let n = self.shares.len() as f64;
        let mean = self.shares.iter().sum::<f64>() / n;
        let variance = self.shares.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n;
        let (few, many) = (self.shares.len() >= FEW_DIPS, self.shares.len() == DIPS);
        let deviation = variance.sqrt();
        let agree = (many && deviation < AGREEMENT) || (few && deviation < FEW_AGREEMENT);
        agree.then_some(mean)
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
        let mut c = Compete::default();
        c.shares.extend([0.5, 0.4]);
        assert_eq!(c.agreed(), None);
        c.shares.push_back(0.6);
        assert!((c.agreed().unwrap() - 0.5).abs() < 1e-9);
        c.shares = VecDeque::from([0.5, -0.6, 1.4, 0.1, 0.9]);
        assert_eq!(c.agreed(), None);
        assert!(!c.is_alone());
        c.shares.extend([1.0, 0.9]);
        assert!(c.is_alone());
    }

    #[test]
    fn a_queue_that_empties_once_in_ten_seconds_is_bbrs() {
        let fill = |empty: &[usize]| {
            let mut q = Queues::default();
            for i in 0..12 {
                q.push(i as f64, if empty.contains(&i) { 0.0 } else { 0.09 });
            }
            q.empties()
        };
        assert!(fill(&[5]));
        assert!(!fill(&[]));
        assert!(!fill(&[1, 3, 5, 7]));
    }
}
