//! What of the bytes on their way is lost: RACK (RFC 8985 section 6) where the
//! host has SACK, three duplicates where it has not.

use std::time::Duration;

use mef_packet::Instant;

use super::{Ack, News, Sender, ONE_MS};

/// Duplicates that tell a loss where there is no SACK (RFC 5681 §3.2).
pub(super) const DUPLICATES: u32 = 3;
/// The reordering window is at least this, once reordering was seen.
const LEAST_REORDERING: Duration = Duration::from_millis(1);

impl Sender {
    /// Round-trip time and RACK's view of what has arrived.
    pub(super) fn learn(&mut self, now: Instant, news: &News, ack: &Ack<'_>) {
        if news.reordered {
            self.reordering.get_or_insert(1);
        }
        match (news.clean, ack.echoed) {
            (Some(at), _) => self.rtt.sample(now, now.since(at)),
            // Only what was sent again has arrived: the time-stamp tells when it left.
            (None, Some(at)) => self.rtt.sample(now, now.since(at)),
            (None, None) => {}
        }
        let Some((at, end, again)) = news.last else {
            return;
        };
        let rtt = now.since(at);
        // The acknowledgement of the first of two sendings (RFC 8985 §6.2 step 2).
        let of_the_first =
            again && (rtt < self.rtt.min() || ack.echoed.is_some_and(|e| e < at - ONE_MS));
        if !of_the_first {
            self.rack_rtt = rtt;
            if self.rack.is_none_or(|r| (at, end) > r) {
                self.rack = Some((at, end));
            }
        }
    }

    /// A duplicate that the host reports (RFC 2883): something was sent again in vain, so the
    /// reordering window is too small (RFC 8985 §6.2 step 4).
    pub(super) fn note_duplicate_sack(&mut self, ack: &Ack<'_>) {
        let Some(&(start, end)) = ack.blocks.first() else {
            return;
        };
        let inside = ack
            .blocks
            .get(1)
            .is_some_and(|&(s, e)| start >= s && end <= e);
        let in_vain = self.again.is_some_and(|(s, e)| start >= s && end <= e);
        if in_vain && (end <= ack.offset || inside) {
            self.control.not_lost(end - start);
            if self.una >= self.reordering_mark {
                self.reordering_mark = self.next;
                self.reordering = Some((self.reordering.unwrap_or(0) + 1).min(16));
            }
        }
    }

    pub(super) fn reordering_window(&self) -> Duration {
        let dup_threshold = u64::from(DUPLICATES) * u64::from(self.mss);
        match self.reordering {
            None if self.recovery.is_some() || self.sent.sacked() >= dup_threshold => {
                Duration::ZERO
            }
            n => {
                let window = (self.rtt.min() / 4 * n.unwrap_or(1)).max(LEAST_REORDERING);
                window.min(self.rtt.smoothed().unwrap_or(window).max(LEAST_REORDERING))
            }
        }
    }

    /// RFC 8985 §6.2 step 5.
    pub(super) fn detect(&mut self, now: Instant) {
        let Some(rack) = self.rack else { return };
        let patience = self.rack_rtt + self.reordering_window();
        let mut again_at: Option<Instant> = None;
        let lost = self.sent.mark_lost(|s| {
            if (s.at, s.end) >= rack {
                return false;
            }
            let due = s.at + patience;
            if due > now {
                again_at = Some(again_at.map_or(due, |a| a.min(due)));
            }
            due <= now
        });
        self.reorder_at = again_at;
        if lost > 0 {
            self.control.lost(lost);
            self.recovery.get_or_insert(self.next);
        }
    }

    /// Without SACK: the first segment is lost.
    pub(super) fn repair_first(&mut self) {
        let lost = self.sent.mark_first_lost(u64::from(self.mss));
        self.control.lost(lost);
        self.recovery.get_or_insert(self.next);
    }
}
