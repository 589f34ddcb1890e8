//! How fast the host takes what is sent to it, measured over whatever was
//! delivered between the sending of a range and its acknowledgement
//! (draft-cheng-iccrg-delivery-rate-estimation).

use std::time::Duration;

use mef_packet::Instant;

/// State of the connection when a range was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// The sender had less to send than it might have.
    limited: bool,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second.
    pub rate: f64,
    /// What was delivered when the range was sent: tells the rounds.
    pub prior_delivered: u64,
    /// The sender could have sent more: the rate says what is possible at least, not at most.
    pub limited: bool,
}

#[derive(Debug, Default)]
pub(super) struct RateMeter {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    /// Ranges sent before this much was delivered belong to a time when there was too little to send.
    limited_until: u64,
    /// The newest range of the acknowledgement at hand.
    newest: Option<(Snapshot, Instant)>,
}

impl RateMeter {
    /// Bytes delivered in all.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// To be kept with a range that is sent now.
    pub fn sent(&mut self, now: Instant, nothing_in_flight: bool) -> Snapshot {
        if nothing_in_flight {
            self.first_sent_at = now;
            self.delivered_at = now;
        }
        Snapshot {
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent_at: self.first_sent_at,
            limited: self.limited_until > self.delivered,
        }
    }

    /// There is nothing more to send though it were allowed.
    pub fn limited(&mut self, in_flight: u64) {
        self.limited_until = self.delivered + in_flight.max(1);
    }

    /// `bytes` of a range that was sent at `at` have arrived.
    pub fn delivered_range(&mut self, now: Instant, bytes: u64, snapshot: Snapshot, at: Instant) {
        self.delivered += bytes;
        self.delivered_at = now;
        if self
            .newest
            .is_none_or(|(s, _)| snapshot.delivered >= s.delivered)
        {
            self.newest = Some((snapshot, at));
            self.first_sent_at = at;
        }
    }

    /// The measurement of the acknowledgement at hand. Nothing shorter than `least`, the
    /// least round-trip time, is one.
    pub fn sample(&mut self, now: Instant, least: Duration) -> Option<Sample> {
        let (s, at) = self.newest.take()?;
        let interval = at.since(s.first_sent_at).max(now.since(s.delivered_at));
        if interval.is_zero() || interval < least {
            return None;
        }
        Some(Sample {
            rate: (self.delivered - s.delivered) as f64 / interval.as_secs_f64(),
            prior_delivered: s.delivered,
            limited: s.limited,
        })
    }
}
