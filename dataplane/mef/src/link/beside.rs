//! What others send on the line of a link, seen through the link's own packets.
//!
//! A line's queue is first in, first out: when a packet of the link has arrived, all that left
//! before it has passed the bottleneck, whoever it is for. The link's packets are samples of
//! the line, and its controller sees the line as if all of it were the link's own:
//!
//! ```text
//!   sent by others   ──────┬────────┬───▶     counted up to each packet of the link
//!   sent by the link   ●   │    ●   │ ●
//!                      └───┴────┴───┘
//!   arrived: as much of the others' as of the link's own
//! ```
//!
//! Between its newest packet and its next one the line may have delivered others' that
//! cannot be seen: as much as the known rate makes of the time, and no more than left before the next.

/// Bytes of the link's own over which the share that arrives is averaged.
const MEMORY: f64 = 45e3;

#[derive(Clone, Debug)]
pub(super) struct Beside {
    /// Bytes of others as the line counts them, and those that left while this link was in use.
    told: u64,
    sent: u64,
    /// Of these, what had left before the newest packet reported, and what of it counts as delivered.
    reported: u64,
    delivered: f64,
    /// What was last said to be delivered.
    said: u64,
    /// Own bytes sent and delivered at the last report.
    own: (u64, u64),
    /// Share of the own bytes that arrives.
    arrives: f64,
}

impl Default for Beside {
    fn default() -> Self {
        Self {
            told: 0,
            sent: 0,
            reported: 0,
            delivered: 0.0,
            said: 0,
            own: (0, 0),
            arrives: 1.0,
        }
    }
}

impl Beside {
    /// The peer counts from zero again.
    pub fn restart(&mut self) {
        *self = Self {
            told: self.told,
            ..Self::default()
        };
    }

    /// Others have sent `total` bytes since the line began; it `counts` while the link is in use.
    pub fn tell(&mut self, total: u64, counts: bool) {
        let new = total.saturating_sub(self.told);
        self.told = total;
        if counts {
            self.sent += new;
        }
    }

    /// Bytes of others that count.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The newest packet reported left when the link had sent `own.0` bytes, of which `own.1` have arrived, and
    /// others `before`; the one after it when these had sent `next`, both modulo 2^32. In the time since it arrived
    /// the line carries `unseen` bytes. Others' bytes sent before that packet, and delivered by now.
    pub fn report(&mut self, own: (u64, u64), before: u32, next: u32, unseen: f64) -> (u64, u64) {
        let (sent, arrived) = (
            own.0.saturating_sub(self.own.0) as f64,
            own.1.saturating_sub(self.own.1) as f64,
        );
        if sent > 0.0 {
            let keep = (-sent / MEMORY).exp();
            let share = (arrived / sent).min(2.0);
            self.arrives = (self.arrives * keep + (1.0 - keep) * share).min(1.0);
            self.own = own;
        }
        let new = before.wrapping_sub(self.reported as u32);
        // An older packet than a former report's says nothing new.
        let new = if new > u32::MAX / 2 { 0 } else { new };
        self.reported += u64::from(new);
        self.delivered += f64::from(new) * self.arrives;
        let waiting = f64::from(next.wrapping_sub(before)).min(unseen) * self.arrives;
        self.said = self.said.max((self.delivered + waiting) as u64);
        (self.reported, self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_delivered_as_the_links_own_are() {
        let mut b = Beside::default();
        b.tell(1000, false);
        b.tell(3000, true);
        assert_eq!(b.sent(), 2000);
        // Nothing is lost.
        let (sent, delivered) = b.report((1500, 1500), 800, 2000, 0.0);
        assert_eq!((sent, delivered), (800, 800));
        // The rest may have arrived meanwhile, but not more than left.
        assert_eq!(b.report((1500, 1500), 800, 2000, 500.0), (800, 1300));
        assert_eq!(b.report((1500, 1500), 800, 2000, 5000.0), (800, 2000));
        // What was said is not taken back.
        assert_eq!(b.report((3000, 3000), 2000, 2000, 0.0), (2000, 2000));
        // A tenth is lost.
        let (mut own, mut others) = ((3000, 3000), 2000);
        for _ in 0..1000 {
            own = (own.0 + 1000, own.1 + 900);
            others += 4000;
            b.tell(1000 + u64::from(others), true);
            b.report(own, others, others, 0.0);
        }
        let (sent, before) = b.report(own, others, others, 0.0);
        assert_eq!(sent, 4_002_000);
        let (_, delivered) = b.report((own.0 + 1000, own.1 + 900), others + 100_000, 0, 0.0);
        assert!(delivered.abs_diff(before + 90_000) < 1000, "{delivered}");
    }

    #[test]
    fn counters_that_wrap_lose_nothing() {
        let mut b = Beside::default();
        let (mut total, mut own) = (0u64, 0);
        for _ in 0..12 {
            total += 1 << 30;
            own += 1000;
            b.tell(total, true);
            let low = total as u32;
            assert_eq!(b.report((own, own), low, low, 0.0), (total, total));
        }
    }

    #[test]
    fn alone_it_adds_nothing() {
        let mut b = Beside::default();
        for i in 1..100 {
            b.tell(0, true);
            assert_eq!(b.report((i * 1514, i * 1400), 0, 0, 1e6), (0, 0));
        }
        b.restart();
        assert_eq!(b.sent(), 0);
    }
}
