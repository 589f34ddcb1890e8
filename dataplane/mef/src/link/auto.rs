//! A link on a line of unknown capacity: what the controller is told, and what its rate stands for.

use core::time::Duration;

use mef_packet::{BitRate, Instant};

use super::beside::Beside;
use super::Link;
use crate::auto::{AutoRate, Report, Target};
use crate::codec::{Ack, FLAG_ACK_NOW, FLAG_ELICITS_ACK, FLAG_KEEP_REPORTING};

/// Acknowledgements may take this much of a line of which little is known yet.
const LEAST_CONTROL: BitRate = BitRate(96_000);
/// A line that pauses is not a dead one: mobile ones do for more than a second.
const SILENCE: Duration = Duration::from_secs(3);
/// Silence is no loss while queues may grow faster than the RTT is smoothed.
const PATIENCE: Duration = Duration::from_millis(1500);

#[derive(Debug)]
pub(super) struct Estimate {
    auto: AutoRate,
    /// The newest packet that the peer reported: its number, when it left, line bytes sent up to it, and
    /// others' by then modulo 2^32.
    newest: Option<(u64, Instant, u64, u32)>,
    beside: Beside,
    /// The newest packet of the last report, and the rate of the line when it was first reported, bytes/s.
    reported: Option<(u64, f64)>,
    /// The next packet of control asks for a report at once.
    sampling: bool,
}

impl Estimate {
    /// Bytes sent on the line, others' included.
    fn sent(&self, own: u64) -> u64 {
        own + self.beside.sent()
    }
}

impl Link {
    /// From here on the link finds out by itself what its line carries, up to the configured `line_up`.
    pub fn estimate_capacity(&mut self, now: Instant, target: Target) {
        self.sent.set_patience(PATIENCE);
        self.estimate = Some(Estimate {
            auto: AutoRate::new(now, target, self.config.line_up),
            newest: None,
            beside: Beside::default(),
            reported: None,
            sampling: false,
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
            (e.newest, e.reported) = (None, None);
            e.beside.restart();
            self.sent.set_beside(0);
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
                let beside = self.sent.beside(number).unwrap_or(0);
                e.newest = Some((number, at, bytes, beside));
            }
        }
    }

    pub(super) fn report(&mut self, now: Instant, ack: &Ack<'_>) {
        let rtt = self.rtt.min();
        let Some(e) = &mut self.estimate else {
            return;
        };
        let Some((_, sent_at, sent_bytes, before)) = e.newest.filter(|n| n.0 == ack.largest) else {
            return;
        };
        let next = self.sent.beside(ack.largest + 1).unwrap_or(before);
        let own = (sent_bytes, ack.delivered_bytes);
        let hold = Duration::from_micros(u64::from(ack.delay_us));
        // What arrived of others' since the newest packet did is not known: the first report of it is taken for
        // one of that moment.
        let again = e.reported.filter(|r| r.0 == ack.largest);
        let rate = match again {
            Some((_, rate)) => rate,
            None => e.auto.delivered().bytes_per_second(),
        };
        e.reported = Some((ack.largest, rate));
        let hold = if before == next || again.is_some() {
            hold
        } else {
            Duration::ZERO
        };
        let unseen = rate * hold.as_secs_f64();
        let (others, arrived) = e.beside.report(own, before, next, unseen);
        let report = Report {
            sent_at,
            sent_bytes: sent_bytes + others,
            rx_us: ack.rx_time_us,
            hold_us: hold.as_micros() as u64,
            delivered_bytes: ack.delivered_bytes + arrived,
        };
        e.auto.on_report(now, rtt, e.sent(self.sent_bytes), report);
    }

    pub(super) fn steer(&mut self, now: Instant) {
        if let Some(e) = &mut self.estimate {
            e.auto.poll(now, e.sent(self.sent_bytes));
        }
    }

    /// Others have sent `total` bytes on the line since it began. They count while the link is `in_use`: what the
    /// line does then is seen by what becomes of the link's packets.
    pub(crate) fn note_beside(&mut self, total: u64, in_use: bool) {
        if let Some(e) = &mut self.estimate {
            e.beside.tell(total, in_use);
            self.sent.set_beside(e.beside.sent() as u32);
        }
    }

    /// The controller, to be told who decides on the line.
    pub(crate) fn estimate_mut(&mut self) -> Option<&mut AutoRate> {
        self.estimate.as_mut().map(|e| &mut e.auto)
    }

    /// When the newest packet left that the peer has reported.
    pub(crate) fn knows_since(&self) -> Option<Instant> {
        self.estimate.as_ref()?.newest.map(|n| n.1)
    }

    /// Asks the peer for a report at once if nothing was asked for so long: a link that has nothing to send
    /// tells of the line all the same.
    pub(crate) fn sample(&mut self, now: Instant, interval: Duration) {
        if now.since(self.last_elicit) < interval || !self.probing {
            return;
        }
        if let Some(e) = &mut self.estimate {
            e.sampling = true;
            self.ping_now = true;
        }
    }

    /// How a packet of control that is to be acknowledged asks for that.
    pub(super) fn control_flags(&mut self) -> u16 {
        let sampling = self.estimate.as_mut().map(|e| &mut e.sampling);
        match sampling.map(core::mem::take) {
            Some(true) => FLAG_ELICITS_ACK | FLAG_ACK_NOW,
            _ => FLAG_ELICITS_ACK,
        }
    }

    pub(super) fn steer_at(&self) -> Instant {
        self.estimate
            .as_ref()
            .map_or(Instant::FAR_FUTURE, |e| e.auto.next_at())
    }
}
