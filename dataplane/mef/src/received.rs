//! The receiver's side of recovery: which packets arrived, and when to say so.
//!
//! An acknowledgement goes out every 64 packets, after the acknowledgement
//! delay, or at once where the sender asks for it; the last one of a burst is
//! repeated, because nothing behind it would make good its loss. The interval
//! stretches so that acknowledgements stay below their share of the line.

use core::time::Duration;

use mef_packet::{BitRate, Bytes, Instant};

use crate::codec::{put_varint, Ack, Received};
use crate::ranges::RangeSet;
use crate::rtt::Rtt;

/// Packets after which an acknowledgement goes out whatever the timer says.
const EVERY: u32 = 64;
/// How long it waits where the sender wants to know how fast the line is.
const REPORT_DELAY: Duration = Duration::from_millis(10);
/// How often the acknowledgement of the last packets is said again.
const REPEATS: u8 = 3;
/// Most bytes of runs or bitmap in one ACK.
const MAX_REPORT: usize = 1024;

/// Most gaps that are remembered: 20% loss at 10 Gbit/s and 200 ms make about 80,000 in flight.
const MAX_RANGES: usize = 1 << 18;

/// Packets received in one session.
#[derive(Debug, Default)]
pub struct ReceivedLedger {
    numbers: RangeSet,
    floor: u64,
    largest: u64,
    largest_at: Instant,
    /// Packets since the last acknowledgement that want one.
    pending: u32,
    first_pending: Instant,
    ack_now: bool,
    repeats_left: u8,
    /// Until then acknowledgements go out whether anything arrives or not.
    reporting_until: Instant,
    last_sent: Instant,
    not_before: Instant,
    delivered_bytes: u64,
    drops: u32,
}

impl ReceivedLedger {
    /// Notes an authentic packet of `line_bytes`; `false` for one seen before.
    pub fn on_packet(
        &mut self,
        now: Instant,
        number: u64,
        line_bytes: u64,
        elicits: bool,
        ack_now: bool,
    ) -> bool {
        if number < self.floor || self.numbers.insert(number, number + 1) == 0 {
            return false;
        }
        if self.numbers.count() > MAX_RANGES {
            // A peer that never raises its floor does not fill the memory.
            let middle = self.numbers.iter().nth(MAX_RANGES / 2);
            self.set_floor(middle.map_or(0, |r| r.0));
        }
        self.delivered_bytes += line_bytes;
        if number >= self.largest {
            self.largest = number;
            self.largest_at = now;
        }
        if elicits {
            if self.pending == 0 {
                self.first_pending = now;
            }
            self.pending += 1;
            self.repeats_left = REPEATS;
            self.ack_now |= ack_now;
        }
        true
    }
    /// The sender wants reports until `until`, in silence too.
    pub fn keep_reporting(&mut self, until: Instant) {
        self.reporting_until = self.reporting_until.max(until);
    }
    /// Notes a packet that arrived and could not be kept.
    pub fn on_drop(&mut self) {
        self.drops = self.drops.wrapping_add(1);
    }
    pub fn delivered_bytes(&self) -> u64 {
        self.delivered_bytes
    }
    /// The peer no longer cares for packets below `floor`.
    pub fn set_floor(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor.min(self.largest);
            self.numbers.remove(0, self.floor);
        }
    }

    /// When the next acknowledgement is due.
    pub fn due(&self, rtt: &Rtt) -> Option<Instant> {
        let mut wait = rtt.ack_delay();
        if self.reporting_until > self.last_sent {
            wait = wait.min(REPORT_DELAY);
        }
        let at = if self.pending > 0 {
            if self.ack_now || self.pending >= EVERY {
                self.first_pending
            } else {
                self.first_pending + wait
            }
        } else if self.repeats_left > 0 || self.last_sent + wait < self.reporting_until {
            self.last_sent + wait
        } else {
            return None;
        };
        Some(at.max(self.not_before))
    }

    /// Writes which packets arrived into `scratch` and returns the acknowledgement of `now`.
    pub fn ack<'a>(&self, now: Instant, scratch: &'a mut Vec<u8>) -> Ack<'a> {
        scratch.clear();
        let span = self
            .numbers
            .first()
            .map_or(0, |(s, _)| self.largest + 1 - s.min(self.largest + 1));
        let mut upper: Option<u64> = None;
        for (s, e) in self.numbers.iter().rev() {
            if let Some(u) = upper {
                put_varint(u - e, scratch);
            }
            put_varint(e - s, scratch);
            upper = Some(s);
            if scratch.len() > MAX_REPORT {
                break;
            }
        }
        let bitmap = usize::try_from(span.div_ceil(8))
            .unwrap_or(usize::MAX)
            .min(MAX_REPORT);
        let received = if bitmap < scratch.len() {
            scratch.clear();
            scratch.resize(bitmap, 0);
            for (s, e) in self.numbers.iter().rev() {
                for n in (s..e).rev() {
                    let i = self.largest - n;
                    let Some(byte) = scratch.get_mut((i / 8) as usize) else {
                        break;
                    };
                    *byte |= 1 << (i % 8);
                }
            }
            Received::Bitmap(scratch)
        } else {
            Received::Runs(scratch)
        };
        Ack {
            largest: self.largest,
            rx_time_us: self.largest_at.as_micros(),
            delay_us: u32::try_from(now.since(self.largest_at).as_micros()).unwrap_or(u32::MAX),
            delivered_bytes: self.delivered_bytes,
            drops: self.drops,
            received,
        }
    }

    /// An acknowledgement of `bytes` line bytes left; acknowledgements may take `share` of the line.
    pub fn ack_sent(&mut self, now: Instant, bytes: u64, share: BitRate) {
        if self.pending == 0 {
            self.repeats_left = self.repeats_left.saturating_sub(1);
        }
        self.pending = 0;
        self.ack_now = false;
        self.last_sent = now;
        self.not_before = now + share.time_for(Bytes(bytes)).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::carried::{Carried, CarriedSet};
    use crate::sent::SentLedger;
    use proptest::prelude::*;

    proptest! {
        /// What the receiver says is what the sender learns, whichever encoding is chosen.
        #[test]
        fn sender_learns_what_arrived(arrived in proptest::collection::vec(any::<bool>(), 1..600)) {
            let mut sent = SentLedger::default();
            let mut rcvd = ReceivedLedger::default();
            let t = Instant::from_millis(5);
            for (i, a) in arrived.iter().enumerate() {
                let c = CarriedSet::one(Carried::Data { flow: 1, offset: i as u64, len: 1, generation: 0 });
                sent.sent(t, i as u64, 100, 0, c, true);
                if *a { rcvd.on_packet(t, i as u64, 100, true, false); }
            }
            let mut scratch = Vec::new();
            let ack = rcvd.ack(t, &mut scratch);
            let mut fates = Vec::new();
            prop_assert!(sent.on_ack(t, ack.largest, &ack.received, 1280, &mut fates).is_some());
            let mut got: Vec<u64> = fates.iter().map(|f| match f.carried.first() { Carried::Data { offset, .. } => offset, _ => 0 }).collect();
            got.sort_unstable();
            let want: Vec<u64> = arrived.iter().enumerate().filter(|(_, a)| **a).map(|(i, _)| i as u64).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn the_last_ack_is_repeated_and_then_rests() {
        let rtt = Rtt::default();
        let mut r = ReceivedLedger::default();
        let mut now = Instant::from_millis(100);
        r.on_packet(now, 0, 1514, true, false);
        let mut sent = 0;
        while let Some(due) = r.due(&rtt) {
            now = now.max(due);
            r.ack_sent(now, 100, BitRate::from_mbit(1));
            sent += 1;
            assert!(sent < 10);
        }
        assert_eq!(sent, 1 + u32::from(REPEATS));
    }

    #[test]
    fn gaps_are_remembered_within_bounds() {
        let mut r = ReceivedLedger::default();
        for i in 0..3 * MAX_RANGES as u64 {
            assert!(r.on_packet(Instant::ZERO, 2 * i, 1, true, false));
        }
        assert!(r.numbers.count() <= MAX_RANGES + 1);
        assert!(!r.on_packet(Instant::ZERO, 0, 1, true, false));
    }

    #[test]
    fn duplicates_are_recognised() {
        let mut r = ReceivedLedger::default();
        assert!(r.on_packet(Instant::ZERO, 4, 1, true, false));
        assert!(!r.on_packet(Instant::ZERO, 4, 1, true, false));
        r.set_floor(4);
        assert!(!r.on_packet(Instant::ZERO, 3, 1, true, false));
    }
}
