//! What acknowledgements said lately: rates on both sides and the queue.

use super::{AckSample, QUIET};
use mef_packet::time::Duration;
use mef_packet::Instant;
use std::collections::VecDeque;

/// Points kept per window; acknowledgements that come closer together are joined.
const RESOLUTION: u32 = 16;
const MAX_POINTS: usize = 1024;
/// Bytes seen without a queue after which their loss is known, and after which it is forgotten.
const QUIET_ENOUGH: f64 = 300e3;
const QUIET_MEMORY: f64 = 6e6;
const BASE_BUCKETS: usize = 10;
const BASE_BUCKET: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
struct Point {
    sent_at: Instant,
    sent: u64,
    rx_us: u64,
    delivered: u64,
    drops: u64,
    /// Least of the joined samples, receiver's clock minus sender's.
    delay_us: i64,
}

/// What one window says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Bytes per second of the sender's clock.
    pub sent: f64,
    /// Bytes per second of the receiver's clock.
    pub delivered: f64,
    /// Least one-way delay of the window above the base.
    pub queue: Duration,
    /// The same of its newest quarter.
    pub queue_now: Duration,
    /// How fast it grew, in seconds per second; not negative.
    pub queue_growth: f64,
    /// How many reports told of new drops at the receiver.
    pub drop_reports: usize,
    pub first_sent_at: Instant,
    pub last_sent_at: Instant,
}

#[derive(Clone, Debug, Default)]
pub(super) struct History {
    points: VecDeque<Point>,
    /// Least delay per second, newest last.
    base: VecDeque<(Instant, i64)>,
    /// Start of the present event.
    event: Instant,
    /// Bytes sent and delivered between neighbouring points without a queue, decaying.
    quiet_sent: f64,
    quiet_delivered: f64,
}

impl History {
    /// Takes a sample and returns its queueing delay; `None` if it is older than what is known.
    pub fn push(&mut self, s: AckSample, window: Duration) -> Option<Duration> {
        let delay_us = (s.rx_us as i64).wrapping_sub(s.sent_at.as_micros() as i64);
        let mut point = Point {
            sent_at: s.sent_at,
            sent: s.sent_bytes,
            rx_us: s.rx_us,
            delivered: s.delivered_bytes,
            drops: s.receiver_drops,
            delay_us,
        };
        self.learn(s.sent_at, delay_us);
        let queue = self.above_base(delay_us);
        if let Some(last) = self.points.back() {
            let older = s.rx_us <= last.rx_us
                || s.delivered_bytes < last.delivered
                || s.sent_bytes < last.sent;
            if older || s.sent_at < last.sent_at {
                return None;
            }
        }
        // Joined with the last point if that is too near the one before it.
        let n = self.points.len();
        let near = n >= 2
            && self
                .points
                .get(n - 2)
                .zip(self.points.back())
                .is_some_and(|(before, last)| {
                    last.sent_at.since(before.sent_at) < window / RESOLUTION
                        && last.drops == s.receiver_drops
                });
        if near {
            if let Some(last) = self.points.pop_back() {
                point.delay_us = point.delay_us.min(last.delay_us);
            }
        }
        if let Some(before) = self.points.back() {
            let quiet = |p: &Point| self.above_base(p.delay_us) < QUIET;
            if quiet(before)
                && quiet(&point)
                && point.sent > before.sent
                && point.drops == before.drops
            {
                let (sent, delivered) = (
                    (point.sent - before.sent) as f64,
                    (point.delivered - before.delivered) as f64,
                );
                let keep = (-sent / QUIET_MEMORY).exp();
                self.quiet_sent = self.quiet_sent * keep + sent;
                self.quiet_delivered = self.quiet_delivered * keep + delivered;
            }
        }
        self.points.push_back(point);
        let keep = (8 * window).max(Duration::from_secs(3));
        while self.points.len() > MAX_POINTS
            || self
                .points
                .front()
                .is_some_and(|p| s.sent_at.since(p.sent_at) > keep)
        {
            self.points.pop_front();
        }
        Some(queue)
    }

    /// The newest `length` of what was sent from `since` on; `None` until there is that much of it.
    pub fn window(&self, length: Duration, since: Instant) -> Option<Window> {
        let last = self.points.back()?;
        let from = last.sent_at - length;
        // The newest point at or before the window's start belongs to it: it is where the rates start.
        let start = self.points.iter().rposition(|p| p.sent_at <= from)?;
        let first = self.points.get(start)?;
        if first.sent_at < since {
            return None;
        }
        let quarter = last.sent_at - length / 4;
        let points = || self.points.range(start..);
        let least = |from: Instant| {
            points()
                .filter(|p| p.sent_at >= from)
                .map(|p| p.delay_us)
                .min()
        };
        let (queue, queue_now) = (
            self.above_base(least(first.sent_at)?),
            self.above_base(least(quarter)?),
        );
        let drop_reports = points()
            .zip(points().skip(1))
            .filter(|(a, b)| b.drops > a.drops)
            .count();
        Some(Window {
            sent: rate(last.sent - first.sent, last.sent_at.since(first.sent_at)),
            delivered: rate(
                last.delivered - first.delivered,
                Duration::from_micros(last.rx_us - first.rx_us),
            ),
            queue,
            queue_now,
            queue_growth: queue_now.saturating_sub(queue).as_secs_f64()
                / length.mul_f64(0.75).as_secs_f64(),
            drop_reports,
            first_sent_at: first.sent_at,
            last_sent_at: last.sent_at,
        })
    }

    /// Queue of the newest packets, those sent within `length`, if the oldest of them was sent from
    /// `since` on; and when the newest was sent.
    pub fn queue_since(&self, since: Instant, length: Duration) -> Option<(Duration, Instant)> {
        let last = self.points.back()?;
        let from = last.sent_at - length;
        let points = self.points.iter().rev().take_while(|p| p.sent_at >= from);
        let least = points.map(|p| p.delay_us).min()?;
        (from >= since).then(|| (self.above_base(least), last.sent_at))
    }

    /// Loss while there was no queue, once enough was seen.
    pub fn quiet_loss(&self) -> Option<f64> {
        (self.quiet_sent >= QUIET_ENOUGH).then(|| 1.0 - self.quiet_delivered / self.quiet_sent)
    }

    /// Bytes per second sent from `since` on, as far as acknowledged.
    pub fn sent_rate(&self, since: Instant) -> f64 {
        let first = self.points.iter().find(|p| p.sent_at >= since);
        match (first, self.points.back()) {
            (Some(a), Some(b)) => rate(b.sent - a.sent, b.sent_at.since(a.sent_at)),
            _ => 0.0,
        }
    }

    /// The event that began with packets sent at `since` is being handled.
    pub fn mark_event(&mut self, since: Instant) {
        self.event = since;
    }

    /// Bytes per second delivered during the present event while more than `queue` stood. Where the
    /// later half was much faster, the line had only paused, and that half tells what it carries.
    pub fn rate_while_queued(&self, queue: Duration) -> Option<f64> {
        let standing = |p: &&Point| p.sent_at >= self.event && self.above_base(p.delay_us) > queue;
        let first = self.points.iter().find(standing)?;
        let last = self.points.iter().rfind(standing)?;
        let middle_us = first.rx_us + (last.rx_us - first.rx_us) / 2;
        let middle = self.points.iter().find(|p| p.rx_us >= middle_us)?;
        let carried = |from: &Point| {
            rate(
                last.delivered - from.delivered,
                Duration::from_micros(last.rx_us - from.rx_us),
            )
        };
        let (whole, later) = (carried(first), carried(middle));
        let long = |from: &Point, ms: u64| last.rx_us - from.rx_us >= 1000 * ms;
        if long(middle, 15) && later > 1.15 * whole {
            return Some(later);
        }
        long(first, 30).then_some(whole)
    }

    /// Forgets the base, so that the delay of now becomes it.
    pub fn learn_base(&mut self) {
        self.base.clear();
        if let Some(last) = self.points.back() {
            let from = last.sent_at - Duration::from_millis(100);
            if let Some(least) = self
                .points
                .iter()
                .filter(|p| p.sent_at >= from)
                .map(|p| p.delay_us)
                .min()
            {
                let at = last.sent_at;
                self.learn(at, least);
            }
        }
    }

    fn learn(&mut self, at: Instant, delay_us: i64) {
        match self.base.back_mut() {
            Some((start, least)) if at.since(*start) < BASE_BUCKET => *least = delay_us.min(*least),
            _ => self.base.push_back((at, delay_us)),
        }
        while self.base.len() > BASE_BUCKETS {
            self.base.pop_front();
        }
    }

    fn above_base(&self, delay_us: i64) -> Duration {
        let base = self.base.iter().map(|b| b.1).min().unwrap_or(delay_us);
        Duration::from_micros(u64::try_from(delay_us.saturating_sub(base)).unwrap_or(0))
    }
}

fn rate(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() {
        return 0.0;
    }
    bytes as f64 / time.as_secs_f64()
}
