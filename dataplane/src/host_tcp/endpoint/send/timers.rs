//! What happens because nothing did: the tail probe (RFC 8985 section 7), the
//! retransmission timer (RFC 6298), and the probes of a window that stays closed
//! (RFC 9293 section 3.8.6.1).

use std::time::Duration;

use mef_packet::Instant;

use super::super::sent::Fate;
use super::{Sender, Transmit};

const MAX_PERSIST: Duration = Duration::from_secs(60);

impl Sender {
    /// The window does not let anything go: after a time something does.
    pub(super) fn persist(&mut self, now: Instant) -> Option<Transmit> {
        if !self.sent.is_empty() {
            return None;
        }
        if self.forced {
            self.forced = false;
            self.persist_at = Some(now + self.persist_interval());
            return Some(Transmit::WindowProbe);
        }
        if self.persist_at.is_none() {
            self.persist_at = Some(now + self.persist_interval());
        }
        None
    }

    pub(super) fn persist_interval(&self) -> Duration {
        (self.rtt.rto() * 2u32.saturating_pow(self.persist_count.min(10))).min(MAX_PERSIST)
    }

    pub(super) fn run_timers(&mut self, now: Instant) {
        if self.reorder_at.is_some_and(|t| t <= now) {
            self.detect(now);
        }
        if self.persist_at.is_some_and(|t| t <= now) {
            self.persist_at = None;
            self.persist_count += 1;
            self.forced = true;
        }
        match self.retransmit_timer() {
            Some((at, true)) if at <= now => self.probe_tail(now),
            Some((at, false)) if at <= now => self.time_out(now),
            _ => {}
        }
    }

    /// When the retransmission timer runs out, or (true) a tail probe is due before.
    pub(super) fn retransmit_timer(&self) -> Option<(Instant, bool)> {
        if self.sent.is_empty() {
            return None;
        }
        let timeout = self.retransmit_from + self.rtt.rto();
        let quiet =
            self.sack && self.sent.lost() == 0 && self.probe.is_none() && self.rtt.backoff() == 0;
        if let (true, Some(rtt)) = (quiet, self.rtt.smoothed()) {
            // A host may hold back the acknowledgement of a single segment.
            let held_back = if self.sent.flying() <= u64::from(self.mss) {
                Duration::from_millis(200)
            } else {
                Duration::from_millis(2)
            };
            let probe = self.probe_from + 2 * rtt + held_back;
            if probe < timeout {
                return Some((probe, true));
            }
        }
        Some((timeout, false))
    }

    /// RFC 8985 §7.3: something new if there is something, otherwise the last segment again. In
    /// the middle of a repair it is the first: what was sent again has been lost again, and
    /// nothing else is on its way to tell.
    pub(super) fn probe_tail(&mut self, now: Instant) {
        self.probe = Some(self.next);
        self.probe_from = now;
        self.retransmit_from = now;
        let room = self.control.window().saturating_sub(self.flying());
        if self.recovery.is_some() || self.sent.sacked() > 0 {
            self.repair_first();
        } else if self.next < self.end && self.next < self.edge && room > 0 {
            self.forced = true;
        } else if let Some(last) = self.sent.last().copied() {
            let from = last.start.max(last.end.saturating_sub(u64::from(self.mss)));
            let cut = self.sent.mark_lost_from(from);
            self.control.lost(cut);
        }
    }

    pub(super) fn time_out(&mut self, now: Instant) {
        self.rtt.back_off();
        if self.sent.first().is_some_and(|s| s.fate == Fate::Sacked) {
            self.sent.forget_sacks();
        }
        let patience = self.rack_rtt + self.reordering_window();
        let una = self.una;
        let lost = self
            .sent
            .mark_lost(|s| s.start == una || s.at + patience <= now);
        self.control.lost(lost);
        let window = self.control.window();
        self.timed_out.get_or_insert((now, window));
        self.control
            .timed_out(self.sent.flying(), self.rtt.backoff() > 1);
        self.duplicates = 0;
        self.probe = None;
        self.recovery = Some(self.next);
        self.retransmit_from = now;
    }

    /// When [`poll`](Self::poll) has to be called if nothing else happens.
    pub fn timeout(&self) -> Option<Instant> {
        let retransmit = self.retransmit_timer().map(|t| t.0);
        [retransmit, self.reorder_at, self.persist_at]
            .into_iter()
            .flatten()
            .min()
    }
}
