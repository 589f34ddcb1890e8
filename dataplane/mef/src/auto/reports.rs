//! What the receiver's reports say of the line: how fast it delivers and what it loses.

use std::collections::VecDeque;

/// One report, in the units the estimator works in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Point {
    /// When it was true, seconds of the receiver's clock.
    pub at: f64,
    /// When the newest packet received was sent, seconds of the sender's clock.
    pub sent_at: f64,
    /// Bytes sent up to the newest packet received.
    pub sent: f64,
    /// Bytes received by then.
    pub delivered: f64,
    /// One-way delay of the newest packet, from an arbitrary zero, seconds.
    pub delay: f64,
    /// Delivery rate as it was estimated then, bytes/s; 0 where it tells nothing of the line.
    pub rate: f64,
}

/// Seconds of reports that are kept, and how many at most.
const KEEP: f64 = 3.0;
const MAX_POINTS: usize = 2048;
/// Bytes that tell a loss rate, and how many such samples are remembered.
const LOSS_BYTES: f64 = 300e3;
const LOSS_SAMPLES: usize = 16;
/// So many of them tell whether much is lost now.
const RECENT_PIECES: usize = 3;
/// Share of these samples that are taken to show too much loss: what was lost by sending too much.
const LOSS_QUANTILE: f64 = 0.25;
/// Packets of which a share lost says something; about how long one is.
const FEW_PACKETS: f64 = 30.0;
const PACKET: f64 = 1514.0;
/// A delay that changes by less has not changed; rates that differ by less are the same.
const FLAT: f64 = 0.003;
const SAME: f64 = 0.05;
/// Loss below which it does not matter where it comes from, and seconds that an answer holds.
const DOUBT: f64 = 0.03;
const ASK_AGAIN: f64 = 8.0;

#[derive(Clone, Debug, Default)]
pub(super) struct Reports {
    points: VecDeque<Point>,
    /// Loss of the last pieces of `LOSS_BYTES`, and where the present piece began.
    losses: VecDeque<f64>,
    piece: Option<Point>,
    /// That of the better pieces.
    usual: f64,
    verified: Option<Verified>,
}

/// Loss while less was sent than the line delivers.
#[derive(Clone, Copy, Debug)]
struct Verified {
    at: f64,
    loss: f64,
    /// There was no queue that could have overflowed.
    quiet: bool,
    /// Pieces since.
    pieces: usize,
}

impl Reports {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Oldest first.
    pub fn points(&self) -> &VecDeque<Point> {
        &self.points
    }

    pub fn last(&self) -> Option<&Point> {
        self.points.back()
    }

    pub fn push(&mut self, point: Point) {
        self.points.push_back(point);
        while self.points.len() > MAX_POINTS
            || self.points.front().is_some_and(|p| point.at - p.at > KEEP)
        {
            self.points.pop_front();
        }
        let piece = *self.piece.get_or_insert(point);
        let sent = point.sent - piece.sent;
        if sent >= LOSS_BYTES {
            let lost = 1.0 - (point.delivered - piece.delivered) / sent;
            self.losses.push_back(lost.clamp(0.0, 0.9));
            if let Some(v) = &mut self.verified {
                v.pieces += 1;
            }
            if self.losses.len() > LOSS_SAMPLES {
                self.losses.pop_front();
            }
            let mut sorted: Vec<f64> = self.losses.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            let k = (sorted.len() as f64 * LOSS_QUANTILE) as usize;
            self.usual = sorted.get(k).copied().unwrap_or(0.0);
            self.piece = Some(point);
        }
    }

    /// The newest point's rate is to be compared with what comes after it.
    pub fn foretell(&mut self, rate: f64) {
        if let Some(p) = self.points.back_mut() {
            p.rate = rate;
        }
    }

    /// Loss that does not come from sending too much.
    pub fn random_loss(&self) -> f64 {
        match self.verified {
            Some(v) => self.usual.min(v.loss + DOUBT).max(self.sudden(v)),
            None => self.usual,
        }
    }

    /// What is lost without a queue is random at once, not only when most pieces say so: these take the longer
    /// the slower the line seems.
    fn sudden(&self, v: Verified) -> f64 {
        if !v.quiet || self.points.back().is_none_or(|p| p.at - v.at > ASK_AGAIN) {
            return 0.0;
        }
        let since = self.losses.iter().rev().take(v.pieces).copied();
        match v.pieces {
            0 | 1 => v.loss,
            _ => since.take(2).fold(0.0, f64::max).min(v.loss),
        }
    }

    /// Mean loss of the pieces that are remembered, some seconds.
    pub fn mean_loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }

    /// Whether so much is lost that it has to be asked, again, whether that comes of sending too much. Where
    /// there is no queue (`quiet`) a few packets are enough.
    pub fn loss_in_doubt(&self, quiet: bool) -> bool {
        let recent = self.losses.iter().rev().take(RECENT_PIECES);
        let usual = recent.copied().fold(0.0, f64::max);
        let usual = usual.max(if quiet { self.loss_of_few() } else { 0.0 });
        let known = match (self.verified, self.points.back()) {
            (Some(v), Some(p)) => p.at - v.at < ASK_AGAIN && usual < 2.0 * v.loss + DOUBT,
            _ => false,
        };
        usual > DOUBT && !known
    }

    /// Loss of the present piece, less what may be chance; 0 while there are too few packets.
    fn loss_of_few(&self) -> f64 {
        let (Some(a), Some(b)) = (self.piece, self.points.back()) else {
            return 0.0;
        };
        let sent = b.sent - a.sent;
        if sent < 2.0 * FEW_PACKETS * PACKET {
            return 0.0;
        }
        let lost = (1.0 - (b.delivered - a.delivered) / sent).clamp(0.0, 0.9);
        lost - 2.0 * (lost * (1.0 - lost) * PACKET / sent).sqrt()
    }

    /// Notes the loss of what was sent between `from` and `to`, bytes, at a rate that the line delivers; `quiet`
    /// where no queue is left. Whether it is random.
    pub fn verify(&mut self, from: f64, to: f64, quiet: bool) -> bool {
        let first = self.points.iter().find(|p| p.sent >= from);
        let last = self.points.iter().rfind(|p| p.sent <= to);
        let (Some(a), Some(b)) = (first, last) else {
            return false;
        };
        if b.sent - a.sent <= FEW_PACKETS * PACKET {
            return false;
        }
        let lost = 1.0 - (b.delivered - a.delivered) / (b.sent - a.sent);
        self.verified = Some(Verified {
            at: b.at,
            loss: lost.clamp(0.0, 0.9),
            quiet,
            pieces: 0,
        });
        quiet && lost > DOUBT
    }

    /// Whether the newest `window` seconds saw clearly more loss than that, by at least `excess`.
    pub fn loses_more(&self, window: f64, excess: f64) -> bool {
        let Some(last) = self.points.back().filter(|_| !self.losses.is_empty()) else {
            return false;
        };
        let Some(first) = self.newest_before(last.at - window) else {
            return false;
        };
        let packets = (last.sent - first.sent) / PACKET;
        if packets < FEW_PACKETS {
            return false;
        }
        let lost = 1.0 - (last.delivered - first.delivered) / (last.sent - first.sent);
        let usual = self.random_loss();
        let deviation = (usual.max(0.01) * (1.0 - usual) / packets).sqrt();
        lost > usual + excess + 3.0 * deviation
    }

    /// Delivery rate over the newest `window` seconds, bytes/s.
    pub fn rate_over(&self, window: f64) -> f64 {
        let (Some(first), Some(last)) = (self.points.front(), self.points.back()) else {
            return 0.0;
        };
        let from = first.at.max(last.at - window);
        if last.at <= from {
            return 0.0;
        }
        (last.delivered - self.delivered_at(from)) / (last.at - from)
    }

    fn newest_before(&self, at: f64) -> Option<&Point> {
        let i = self.points.partition_point(|p| p.at <= at);
        self.points.get(i.checked_sub(1)?)
    }

    /// Bytes delivered by `at`; between two reports as if at a constant rate.
    pub fn delivered_at(&self, at: f64) -> f64 {
        let i = self.points.partition_point(|p| p.at <= at);
        let before = i.checked_sub(1).and_then(|i| self.points.get(i));
        match (before, self.points.get(i)) {
            (Some(a), Some(b)) if b.at > a.at => {
                a.delivered + (b.delivered - a.delivered) * (at - a.at) / (b.at - a.at)
            }
            (Some(a), _) => a.delivered,
            (None, Some(b)) => b.delivered,
            (None, None) => 0.0,
        }
    }

    /// Least delay among the reports of the newest `window` seconds.
    pub fn least_delay(&self, window: f64) -> f64 {
        let Some(last) = self.points.back() else {
            return 0.0;
        };
        self.points
            .iter()
            .rev()
            .take_while(|p| p.at >= last.at - window)
            .fold(last.delay, |least, p| least.min(p.delay))
    }

    /// By how many seconds per second the delay of packets sent between `from` and `to` grew.
    pub fn slope(&self, from: f64, to: f64) -> Option<f64> {
        let first = self.points.iter().find(|p| p.sent_at >= from)?;
        let last = self.points.iter().rfind(|p| p.sent_at <= to)?;
        let time = last.sent_at - first.sent_at;
        (time > 0.4 * (to - from)).then(|| (last.delay - first.delay) / time)
    }

    /// Bytes lost between the last two reports.
    pub fn newly_lost(&self) -> f64 {
        let mut newest = self.points.iter().rev();
        match (newest.next(), newest.next()) {
            (Some(b), Some(a)) => (b.sent - a.sent) - (b.delivered - a.delivered),
            _ => 0.0,
        }
    }

    /// Whether both halves of the newest `window` seconds delivered what was sent, at a delay that did
    /// not change: what is sent passes through, so nothing drains and nothing builds up.
    pub fn passes_through(&self, window: f64) -> bool {
        let Some(last) = self.points.back() else {
            return false;
        };
        let usual = 1.0 - self.random_loss();
        let half = |from: f64, to: f64| {
            let (a, b) = (self.newest_before(from)?, self.newest_before(to)?);
            let sent = (b.sent - a.sent) / (b.sent_at - a.sent_at);
            let came = (b.delivered - a.delivered) / (b.at - a.at) / usual;
            let flat = (b.delay - a.delay).abs() < FLAT;
            Some(flat && b.sent - a.sent > 6.0 * PACKET && (came / sent - 1.0).abs() < SAME)
        };
        let middle = last.at - window / 2.0;
        half(last.at - window, middle) == Some(true) && half(middle, last.at) == Some(true)
    }
}
