//! A link on a line of unknown capacity: what the controller is told, and what its rate stands for.

use core::time::Duration;

use mef_packet::{BitRate, Instant};

use super::Link;
use crate::auto::{AutoRate, Report, Target};
use crate::codec::{Ack, FLAG_ELICITS_ACK, FLAG_KEEP_REPORTING};

/// Acknowledgements may take this much of a line of which little is known yet.
const LEAST_CONTROL: BitRate = BitRate(96_000);
/// A line that pauses is not a dead one: mobile ones do for more than a second.
const SILENCE: Duration = Duration::from_secs(3);
/// Silence is no loss while queues may grow faster than the RTT is smoothed.
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Debug)]
pub(super) struct Estimate {
    auto: AutoRate,
    /// The newest packet that the peer reported: its number, when it left, line bytes sent up to it.
    newest: Option<(u64, Instant, u64)>,
}

impl Link {
    /// From here on the link finds out by itself what its line carries, up to the configured `line_up`.
    pub fn estimate_capacity(&mut self, now: Instant, target: Target) {
        self.sent.set_patience(PATIENCE);
        self.estimate = Some(Estimate {
            auto: AutoRate::new(now, target, self.config.line_up),
            newest: None,
        });
    }

    /// The controller, on a line of unknown capacity.
    pub fn estimate(&self) -> Option<&AutoRate> {
        self.estimate.as_ref().map(|e| &e.auto)
    }

    pub(super) fn estimated_rate(&self) -> Option<BitRate> {
        self.estimate().map(AutoRate::rate)
    }

    /// What the line carries upwards, as far as that is known.
    pub(super) fn uplink(&self) -> BitRate {
        self.estimated_rate().unwrap_or(self.config.line_up)
    }

    /// What acknowledgements may take of the line, if that is the `share` of a known one.
    pub(super) fn control_rate(&self, share: f64) -> BitRate {
        match self.estimated_rate() {
            Some(rate) => rate.scale(share).max(LEAST_CONTROL),
            None => self.config.line_up.scale(share),
        }
    }

    pub(super) fn data_flags(&self) -> u16 {
        match self.estimate {
            Some(_) => FLAG_ELICITS_ACK | FLAG_KEEP_REPORTING,
            None => FLAG_ELICITS_ACK,
        }
    }

    /// How long nothing may be acknowledged before the path counts as gone.
    pub(super) fn silence(&self) -> Duration {
        match self.estimate {
            Some(_) => SILENCE,
            None => Duration::from_secs(1),
        }
    }

    pub(super) fn estimate_anew(&mut self, now: Instant) {
        let rtt = self.rtt.smoothed();
        if let Some(e) = &mut self.estimate {
            e.newest = None;
            e.auto.session_started(now, rtt);
        }
    }

    /// Remembers the newest packet reported before the ledger forgets it.
    pub(super) fn note_newest(&mut self, number: u64) {
        let Some(e) = &mut self.estimate else {
            return;
        };
        if e.newest.is_none_or(|n| n.0 < number) {
            if let Some((at, bytes)) = self.sent.mark(number) {
                e.newest = Some((number, at, bytes));
            }
        }
    }

    pub(super) fn report(&mut self, now: Instant, ack: &Ack<'_>) {
        let rtt = self.rtt.min();
        let Some(e) = &mut self.estimate else {
            return;
        };
        let Some((_, sent_at, sent_bytes)) = e.newest.filter(|n| n.0 == ack.largest) else {
            return;
        };
        let report = Report {
            sent_at,
            sent_bytes,
            rx_us: ack.rx_time_us,
            hold_us: u64::from(ack.delay_us),
            delivered_bytes: ack.delivered_bytes,
        };
        e.auto.on_report(now, rtt, self.sent_bytes, report);
    }

    pub(super) fn steer(&mut self, now: Instant) {
        if let Some(e) = &mut self.estimate {
            e.auto.poll(now, self.sent_bytes);
        }
    }

    pub(super) fn steer_at(&self) -> Instant {
        self.estimate
            .as_ref()
            .map_or(Instant::FAR_FUTURE, |e| e.auto.next_at())
    }
}
