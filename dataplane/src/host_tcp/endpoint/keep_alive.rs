//! Whether the host is still there (RFC 9293 section 3.8.4): when it was last
//! heard, probes that ask it, and its own probes, whose answers may be held back.
//!
//! ```text
//!  probe() -> 0 s, 1, 3, 7, 15, 31 s: a segment just below its window -- anything heard --> over
//!                 '-- 63 s without a word ------------------------------------------------> timed out, RST
//! ```

use std::time::Duration;

use mef_packet::Instant;

use super::super::SegmentMeta;
use super::super::{wire, End};
use super::{Endpoint, Phase};

/// Probes that a host may leave unanswered, each waited for twice as long as the one before. Together
/// less than the 75 s after which Linux repeats a keep-alive.
const PROBES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Probes that are under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probing {
    sent: u32,
    pub due: Instant,
}

impl Endpoint {
    /// When the host was last heard; before that, when this endpoint was made.
    pub fn heard(&self) -> Instant {
        self.heard
    }

    /// Asks the host whether it is there. Where it does not answer the connection ends as timed out.
    pub fn probe(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
        if self.phase == Phase::Open && self.probing.is_none() {
            self.probing = Some(Probing { sent: 0, due: now });
            self.dirty = true;
        }
    }

    /// Takes note of a keep-alive without answering it.
    pub fn hold_keep_alive(&mut self, now: Instant) {
        self.clock = self.clock.max(now);
        self.was_heard();
    }

    /// Answers a keep-alive that was held back.
    pub fn answer_keep_alive(&mut self) {
        if self.phase == Phase::Open {
            self.acks = self.acks.max(1);
            self.dirty = true;
        }
    }

    /// Whether a segment with this sequence number may be a keep-alive: a quick look, before
    /// [`is_keep_alive`](super::super::HostTcp::is_keep_alive).
    pub fn is_just_below_window(&self, seq: u32) -> bool {
        self.expected()
            .is_some_and(|e| wire::seq_diff(seq, e) == -1)
    }

    /// Something came from the host.
    pub(super) fn was_heard(&mut self) {
        self.heard = self.clock;
        self.silent_since = None;
        self.probing = None;
    }

    /// The probe that is due, or the end where the last one was not answered.
    pub(super) fn output_probe(&mut self, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        let probing = self.probing.filter(|p| p.due <= self.clock)?;
        if probing.sent >= PROBES {
            self.probing = None;
            self.give_up(End::TimedOut);
            self.reset_due = false;
            return Some(self.emit_reset(out));
        }
        self.probing = Some(Probing {
            sent: probing.sent + 1,
            due: self.clock + FIRST_WAIT * 2u32.saturating_pow(probing.sent),
        });
        // One below what the host expects: it has to say where it stands.
        let seq = self.seq(self.tx.una()).wrapping_sub(1);
        Some(self.emit(out, seq, wire::ACK, &[], None))
    }
}
