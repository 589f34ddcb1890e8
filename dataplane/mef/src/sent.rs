//! The sender's ledger of packets: what each one carried, when it left, and
//! whether it arrived. Loss is detected as RACK does (RFC 8985): a packet is
//! lost once one that left a reordering window later has arrived. The window
//! starts at RTT/16 and grows to RTT/2 whenever a packet that was declared lost
//! turns out to have arrived.
//!
//! ```text
//!            acked                    (record dropped when the floor passes)
//!   in flight ----> acknowledged
//!       | later packet acked, or timeout
//!       v                acked late
//!      lost -----------------------> acknowledged (spurious: window grows)
//! ```

use core::time::Duration;
use std::collections::VecDeque;

use mef_packet::Instant;

use crate::codec::{take_varint, Received};
use crate::rtt::Rtt;

/// What a packet carried that somebody wants to hear of again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Nothing,
    /// `generation` counts how often these bytes had been declared lost before.
    Data {
        flow: u32,
        offset: u64,
        len: u16,
        generation: u8,
    },
    Repair {
        flow: u32,
        base: u64,
    },
    Setup {
        flow: u32,
    },
    Opened {
        flow: u32,
    },
    Refused {
        flow: u32,
    },
    Fin {
        flow: u32,
    },
    Reset {
        flow: u32,
        code: u8,
    },
    Window {
        flow: u32,
    },
    Hello,
    Ping,
    Probe {
        size: u16,
    },
    Datagram,
}

/// At most this many frames that matter ride in one packet.
pub const MAX_CARRIED: usize = 4;
pub type CarriedSet = [Carried; MAX_CARRIED];

/// Whether the packet did nothing but ask whether the peer is there.
fn is_ping(carried: &CarriedSet) -> bool {
    matches!(carried.first(), Some(Carried::Ping))
}

/// Whether the packet did nothing but probe the path's MTU.
pub fn is_probe(carried: &CarriedSet) -> bool {
    matches!(carried.first(), Some(Carried::Probe { .. }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Acked,
    Lost,
}

#[derive(Clone, Copy, Debug)]
struct SentPacket {
    at: Instant,
    /// IP packet size.
    size: u16,
    state: State,
    carried: CarriedSet,
    /// Line bytes sent in this session up to and including this packet.
    sent_bytes: u64,
    /// Its fate says something about the path's random loss.
    telling: bool,
}

/// One packet's fate, as reported by [`SentLedger`].
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    pub carried: CarriedSet,
    pub size: u16,
    pub sent_at: Instant,
    pub sent_bytes: u64,
    /// Declared lost before, and acknowledged now.
    pub spurious: bool,
    /// Declared lost because nothing was heard, not because something later arrived.
    pub unheard: bool,
}

/// Packets sent in one session, by packet number.
#[derive(Debug)]
pub struct SentLedger {
    packets: VecDeque<SentPacket>,
    /// Packet number of the front.
    floor: u64,
    in_flight: usize,
    /// Those of them that only ask whether the peer is there.
    pings: usize,
    /// Latest departure among acknowledged packets.
    newest_acked: Instant,
    /// RTT fraction of the reordering window, 1/16 to 1/2, in sixteenths.
    reorder_sixteenths: u32,
    last_spurious: Instant,
    /// First packet number that may still be in flight: scans start here.
    scan: u64,
    /// First packet number whose fate [`settle`](Self::settle) has not reported.
    unsettled: u64,
    oldest_in_flight: Option<Instant>,
    /// Added to what is waited for an answer, where queues come and go faster than the RTT's estimate.
    patience: Duration,
}

impl Default for SentLedger {
    fn default() -> Self {
        Self {
            packets: VecDeque::new(),
            floor: 0,
            in_flight: 0,
            pings: 0,
            newest_acked: Instant::ZERO,
            reorder_sixteenths: 1,
            last_spurious: Instant::ZERO,
            scan: 0,
            unsettled: 0,
            oldest_in_flight: None,
            patience: Duration::ZERO,
        }
    }
}

impl SentLedger {
    /// Notes that packet `number` left at `now`. Numbers come in order without gaps;
    /// `elicits` is false for packets whose arrival nobody waits for.
    pub fn sent(
        &mut self,
        now: Instant,
        number: u64,
        size: u16,
        sent_bytes: u64,
        carried: CarriedSet,
        elicits: bool,
    ) {
        if self.packets.is_empty() {
            self.floor = number;
            self.scan = number;
            self.unsettled = number;
        }
        // A number that was burnt without a packet leaves a settled record.
        while self.floor + (self.packets.len() as u64) < number {
            self.push(SentPacket {
                at: now,
                size: 0,
                state: State::Acked,
                carried: [Carried::Nothing; MAX_CARRIED],
                sent_bytes,
                telling: false,
            });
        }
        let state = if elicits {
            State::InFlight
        } else {
            State::Acked
        };
        if elicits {
            self.in_flight += 1;
            self.pings += usize::from(is_ping(&carried));
            self.oldest_in_flight.get_or_insert(now);
        }
        self.push(SentPacket {
            at: now,
            size,
            state,
            carried,
            sent_bytes,
            telling: elicits && !matches!(carried, [Carried::Probe { .. }, ..]),
        });
    }

    fn push(&mut self, p: SentPacket) {
        self.packets.push_back(p);
    }

    /// Packets in flight that elicit an acknowledgement.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
    /// Something is in flight beside the question whether the peer is there.
    pub fn awaits(&self) -> bool {
        self.in_flight > self.pings
    }
    /// Departure of the oldest packet in flight.
    pub fn oldest_in_flight(&self) -> Option<Instant> {
        self.oldest_in_flight
    }
    /// Lowest packet number whose fate still matters.
    pub fn floor(&self) -> u64 {
        self.floor
    }
    pub fn reorder_window(&self, rtt: &Rtt) -> Duration {
        (rtt.smoothed() * self.reorder_sixteenths / 16).max(Duration::from_millis(1))
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut SentPacket> {
        let i = usize::try_from(number.checked_sub(self.floor)?).ok()?;
        self.packets.get_mut(i)
    }

    /// Waits `patience` longer for an answer before silence counts as loss.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }
    /// When packet `number` left and the line bytes sent up to and including it, if it is still on record.
    pub fn mark(&self, number: u64) -> Option<(Instant, u64)> {
        let i = usize::try_from(number.checked_sub(self.floor)?).ok()?;
        let p = self.packets.get(i).filter(|p| p.size > 0)?;
        Some((p.at, p.sent_bytes))
    }
    /// When packet `number` left, if it is still on record.
    pub fn sent_at(&self, number: u64) -> Option<Instant> {
        let i = usize::try_from(number.checked_sub(self.floor)?).ok()?;
        self.packets.get(i).filter(|p| p.size > 0).map(|p| p.at)
    }

    fn ack_one(&mut self, now: Instant, number: u64, out: &mut Vec<Fate>) {
        let Some(p) = self.get_mut(number) else {
            return;
        };
        let was = p.state;
        if was == State::Acked {
            return;
        }
        p.state = State::Acked;
        let (at, fate) = (
            p.at,
            Fate {
                carried: p.carried,
                size: p.size,
                sent_at: p.at,
                sent_bytes: p.sent_bytes,
                spurious: was == State::Lost,
                unheard: false,
            },
        );
        if was == State::InFlight {
            self.in_flight -= 1;
            self.pings -= usize::from(is_ping(&fate.carried));
        } else {
            if self.reorder_sixteenths < 8 && now.since(self.last_spurious) > Duration::ZERO {
                self.reorder_sixteenths += 1;
            }
            self.last_spurious = now;
        }
        self.newest_acked = self.newest_acked.max(at);
        out.push(fate);
    }

    /// Settles what an acknowledgement says arrived; newly acknowledged packets are appended to `out`.
    /// Returns `false` where it speaks of packets that were never sent.
    pub fn on_ack(
        &mut self,
        now: Instant,
        largest: u64,
        received: &Received<'_>,
        out: &mut Vec<Fate>,
    ) -> bool {
        if largest >= self.floor + self.packets.len() as u64 {
            return false;
        }
        match *received {
            Received::Bitmap(bytes) => {
                for (j, byte) in bytes.iter().enumerate() {
                    let mut bits = *byte;
                    while bits != 0 {
                        let i = bits.trailing_zeros();
                        bits &= bits - 1;
                        let Some(n) = largest.checked_sub(8 * j as u64 + u64::from(i)) else {
                            break;
                        };
                        self.ack_one(now, n, out);
                    }
                }
            }
            Received::Runs(mut bytes) => {
                let mut top = Some(largest);
                while let (Some(high), Some(run)) = (top, take_varint(&mut bytes)) {
                    let low = high.saturating_sub(run.saturating_sub(1)).max(self.floor);
                    if run > 0 {
                        for n in low..=high {
                            self.ack_one(now, n, out);
                        }
                    }
                    let Some(gap) = take_varint(&mut bytes) else {
                        break;
                    };
                    top = high.checked_sub(run).and_then(|t| t.checked_sub(gap));
                    if top.is_some_and(|t| t < self.floor) {
                        break;
                    }
                }
            }
        }
        true
    }

    /// Declares lost what the reordering window and, in the absence of newer
    /// acknowledgements, the timeout have passed by; appends their fates to `out`.
    pub fn detect_lost(&mut self, now: Instant, rtt: &Rtt, out: &mut Vec<Fate>) {
        let before = self.newest_acked - self.reorder_window(rtt);
        let timed_out = now - rtt.timeout() - self.patience - self.reorder_window(rtt);
        // What left about when the newest arrival did shares its path: its timeout is a loss like any other.
        let witnessed = self.newest_acked + self.reorder_window(rtt);
        self.declare(out, witnessed, before.max(timed_out));
    }

    /// Declares lost and forgets what left longer than `age` ago.
    pub fn forget_stale(&mut self, now: Instant, age: Duration, out: &mut Vec<Fate>) {
        let before = now - age;
        self.declare(out, Instant::ZERO, before);
        while self.packets.len() > 1 && self.packets.front().is_some_and(|p| p.at < before) {
            self.packets.pop_front();
            self.floor += 1;
        }
        self.scan = self.scan.max(self.floor);
    }

    /// Declares everything in flight lost: the session it travelled in is over.
    pub fn declare_all_lost(&mut self, out: &mut Vec<Fate>) {
        self.declare(out, Instant::ZERO, Instant::FAR_FUTURE);
        *self = Self {
            reorder_sixteenths: self.reorder_sixteenths,
            patience: self.patience,
            ..Self::default()
        };
    }

    /// Reports, in the order in which they were sent, the packets whose fate is known: true for arrived.
    pub fn settle(&mut self, mut report: impl FnMut(bool)) {
        self.unsettled = self.unsettled.max(self.floor);
        let start = usize::try_from(self.unsettled - self.floor).unwrap_or(usize::MAX);
        for p in self.packets.iter().skip(start) {
            if p.state == State::InFlight {
                break;
            }
            if p.telling {
                report(p.state == State::Acked);
            }
            self.unsettled += 1;
        }
    }

    /// Gives up what is in flight because nothing is heard any more; appends the fates to `out`.
    pub fn declare_unheard(&mut self, out: &mut Vec<Fate>) {
        self.declare(out, Instant::ZERO, Instant::FAR_FUTURE);
    }

    /// Declares lost what left until `limit`; what left until `witnessed` had others around it that arrived.
    fn declare(&mut self, out: &mut Vec<Fate>, witnessed: Instant, limit: Instant) {
        let start = usize::try_from(self.scan.saturating_sub(self.floor)).unwrap_or(0);
        let mut first_open = None;
        for (i, p) in self.packets.iter_mut().enumerate().skip(start) {
            if p.at > limit {
                first_open = Some(i);
                break;
            }
            if p.state == State::InFlight {
                p.state = State::Lost;
                p.telling &= p.at <= witnessed;
                self.in_flight -= 1;
                self.pings -= usize::from(is_ping(&p.carried));
                out.push(Fate {
                    carried: p.carried,
                    size: p.size,
                    sent_at: p.at,
                    sent_bytes: p.sent_bytes,
                    spurious: false,
                    unheard: p.at > witnessed,
                });
            }
        }
        let open = first_open.unwrap_or(self.packets.len());
        self.scan = self.floor + open as u64;
        self.oldest_in_flight = self
            .packets
            .iter()
            .skip(open)
            .find(|p| p.state == State::InFlight)
            .map(|p| p.at);
    }

    /// Drops the records of settled packets; those declared lost stay for two RTT, so that a late arrival is recognised.
    pub fn forget(&mut self, now: Instant, rtt: &Rtt) {
        let keep = now - rtt.smoothed() * 2;
        while let Some(p) = self.packets.front() {
            let done = match p.state {
                State::Acked => true,
                State::Lost => p.at < keep,
                State::InFlight => false,
            };
            // The last record stays: it says which number comes next.
            if !done || self.packets.len() == 1 {
                break;
            }
            self.packets.pop_front();
            self.floor += 1;
        }
        self.scan = self.scan.max(self.floor);
    }

    /// When [`detect_lost`](Self::detect_lost) has something to do at the latest.
    pub fn timeout(&self, rtt: &Rtt) -> Option<Instant> {
        self.oldest_in_flight
            .map(|at| at + rtt.timeout() + self.patience + self.reorder_window(rtt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtt() -> Rtt {
        let mut r = Rtt::default();
        r.sample(Duration::from_millis(100));
        r
    }
    fn data(offset: u64) -> CarriedSet {
        let mut c = [Carried::Nothing; MAX_CARRIED];
        c[0] = Carried::Data {
            flow: 1,
            offset,
            len: 100,
            generation: 0,
        };
        c
    }
    fn ms(n: u64) -> Instant {
        Instant::from_millis(1000 + n)
    }

    fn ledger(n: u64) -> SentLedger {
        let mut l = SentLedger::default();
        for i in 0..n {
            l.sent(ms(i), i, 1500, i * 1514, data(i * 100), true);
        }
        l
    }

    #[test]
    fn a_gap_is_lost_once_the_window_has_passed() {
        let mut l = ledger(40);
        let (mut acked, mut lost) = (Vec::new(), Vec::new());
        // 0, 2, 3 arrived: 1 left 2 ms before 3, inside the window of 6 ms.
        assert!(l.on_ack(ms(103), 3, &Received::Bitmap(&[0b1011]), &mut acked));
        l.detect_lost(ms(103), &rtt(), &mut lost);
        assert_eq!((acked.len(), lost.len()), (3, 0));
        assert!(l.on_ack(ms(110), 10, &Received::Runs(&[7]), &mut acked));
        l.detect_lost(ms(110), &rtt(), &mut lost);
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].carried, data(100));
        // It arrives after all: spurious, and the window grows.
        let before = l.reorder_window(&rtt());
        acked.clear();
        l.on_ack(ms(112), 10, &Received::Bitmap(&[0xff, 0x03]), &mut acked);
        assert!(acked.len() == 1 && acked[0].spurious);
        assert!(l.reorder_window(&rtt()) > before);
    }

    #[test]
    fn the_last_packets_time_out() {
        let mut l = ledger(3);
        let mut lost = Vec::new();
        l.detect_lost(ms(100), &rtt(), &mut lost);
        assert!(lost.is_empty());
        let due = l.timeout(&rtt()).unwrap();
        l.detect_lost(due + Duration::from_millis(5), &rtt(), &mut lost);
        assert_eq!(lost.len(), 3);
        assert_eq!(l.in_flight(), 0);
        assert_eq!(l.timeout(&rtt()), None);
    }

    #[test]
    fn an_ack_of_the_future_is_refused() {
        let mut l = ledger(3);
        assert!(!l.on_ack(ms(5), 3, &Received::Runs(&[1]), &mut Vec::new()));
    }

    #[test]
    fn runs_and_bitmap_say_the_same() {
        let mut a = ledger(64);
        let mut b = ledger(64);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        // 60..=63, not 58..=59, 50..=57
        a.on_ack(ms(200), 63, &Received::Runs(&[4, 2, 8]), &mut x);
        b.on_ack(
            ms(200),
            63,
            &Received::Bitmap(&[0b1100_1111, 0b0011_1111]),
            &mut y,
        );
        let k = |v: &[Fate]| {
            let mut v: Vec<_> = v.iter().map(|f| f.sent_at).collect();
            v.sort();
            v
        };
        assert_eq!(k(&x), k(&y));
        assert_eq!(x.len(), 12);
    }

    #[test]
    fn the_floor_rises() {
        let mut l = ledger(20);
        let mut v = Vec::new();
        l.on_ack(ms(120), 9, &Received::Runs(&[10]), &mut v);
        l.detect_lost(ms(120), &rtt(), &mut v);
        let mut arrived = 0;
        l.settle(|a| arrived += u32::from(a));
        l.forget(ms(120), &rtt());
        assert_eq!((arrived, l.floor()), (10, 10));
    }
}
