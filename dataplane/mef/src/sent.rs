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

use crate::carried::CarriedSet;
use crate::codec::{take_varint, Received};
use crate::rtt::Rtt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Acked,
    Lost,
}

/// One for each packet of a round trip: on a fast line they are more than a cache holds.
#[derive(Debug)]
struct SentPacket {
    at: Instant,
    carried: CarriedSet,
    /// Line bytes sent in this session up to and including this packet.
    sent_bytes: u64,
    /// What others had sent on the line by then, modulo 2^32.
    beside: u32,
    /// IP packet size.
    size: u16,
    state: State,
    /// Its fate says something about the path's random loss.
    telling: bool,
}

const _: () = assert!(size_of::<SentPacket>() <= 48);

/// One packet's fate, as reported by [`SentLedger`].
#[derive(Clone, Debug)]
pub struct Fate {
    pub carried: CarriedSet,
    pub size: u16,
    pub sent_at: Instant,
    /// Declared lost before, and acknowledged now.
    pub spurious: bool,
    /// Declared lost because nothing was heard, not because something later arrived.
    pub unheard: bool,
}

/// What an acknowledgement settled, beside the fates that it brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Packets that were not known to have arrived.
    pub packets: usize,
    /// When the newest of them above the size asked for left, probes apart.
    pub newest_large: Option<Instant>,
    /// When the largest packet number acknowledged left, and the line bytes sent up to the last of the
    /// packets settled that left with it; `None` where there was none.
    pub sample: Option<(Instant, u64)>,
}

/// Packets that were given up and whose records went are remembered for so long, and so many of them.
const LATE: Duration = Duration::from_secs(5);
const LATE_MOST: usize = 4096;

/// What an acknowledgement is read with.
struct Reading<'a> {
    now: Instant,
    /// Packets above it are large.
    large: u16,
    /// Departure of the largest packet number.
    largest_at: Option<Instant>,
    acked: Acked,
    fates: &'a mut Vec<Fate>,
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
    beside: u32,
    /// Packets given up whose records went: number, departure, line bytes up to them.
    late: VecDeque<(u64, Instant, u64)>,
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
            beside: 0,
            late: VecDeque::new(),
            patience: Duration::ZERO,
        }
    }
}

impl SentLedger {
    /// Notes that packet `number` left at `now`. Numbers come in order without gaps;
    /// `elicits` is false for packets whose arrival nobody waits for. Inlined so that the record is written
    /// to where it stays.
    #[inline]
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
            self.packets.push_back(SentPacket {
                at: now,
                carried: CarriedSet::NOTHING,
                sent_bytes,
                beside: self.beside,
                size: 0,
                state: State::Acked,
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
            self.pings += usize::from(carried.is_ping());
            self.oldest_in_flight.get_or_insert(now);
        }
        self.packets.push_back(SentPacket {
            at: now,
            telling: elicits && !carried.is_probe(),
            carried,
            sent_bytes,
            beside: self.beside,
            size,
            state,
        });
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

    /// Waits `patience` longer for an answer before silence counts as loss.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }
    /// What others have sent on the line, bytes modulo 2^32: it is noted with every packet that leaves from here on.
    pub fn set_beside(&mut self, bytes: u32) {
        self.beside = bytes;
    }
    /// What others had sent when packet `number` left, as it was [set](Self::set_beside), or by now where it has not
    /// left yet; `None` where it is no longer on record.
    pub fn beside(&self, number: u64) -> Option<u32> {
        let i = usize::try_from(number.checked_sub(self.floor)?).ok()?;
        Some(self.packets.get(i).map_or(self.beside, |p| p.beside))
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

    /// Settles the packets with numbers from `low` to `high`.
    fn ack_run(&mut self, low: u64, high: u64, r: &mut Reading<'_>) {
        let place = |number: u64| usize::try_from(number.saturating_sub(self.floor)).ok();
        let (Some(start), Some(end)) = (place(low), place(high.saturating_add(1))) else {
            return;
        };
        let end = end.min(self.packets.len());
        if start >= end {
            return;
        }
        for p in self.packets.range_mut(start..end) {
            let was = p.state;
            if was == State::Acked {
                continue;
            }
            p.state = State::Acked;
            let spurious = was == State::Lost;
            if spurious {
                if self.reorder_sixteenths < 8 && r.now.since(self.last_spurious) > Duration::ZERO {
                    self.reorder_sixteenths += 1;
                }
                self.last_spurious = r.now;
            } else {
                self.in_flight -= 1;
                self.pings -= usize::from(p.carried.is_ping());
            }
            self.newest_acked = self.newest_acked.max(p.at);
            r.acked.packets += 1;
            if r.largest_at == Some(p.at) {
                let bytes = r.acked.sample.map_or(0, |(_, bytes)| bytes);
                r.acked.sample = Some((p.at, bytes.max(p.sent_bytes)));
            }
            if p.size > r.large && !p.carried.is_probe() {
                r.acked.newest_large = r.acked.newest_large.max(Some(p.at));
            }
            if spurious || !p.carried.arrives_unnoticed() {
                r.fates.push(Fate {
                    carried: core::mem::take(&mut p.carried),
                    size: p.size,
                    sent_at: p.at,
                    spurious,
                    unheard: false,
                });
            }
        }
    }

    /// Settles what an acknowledgement says arrived; the fates of what was newly acknowledged and
    /// matters, or had been declared lost, are appended to `fates`. `None` where it speaks of packets
    /// that were never sent. A packet of more than `large` bytes is a large one.
    pub fn on_ack(
        &mut self,
        now: Instant,
        largest: u64,
        received: &Received<'_>,
        large: u16,
        fates: &mut Vec<Fate>,
    ) -> Option<Acked> {
        if largest >= self.floor + self.packets.len() as u64 {
            return None;
        }
        if largest < self.floor {
            return Some(self.arrived_late(largest));
        }
        let mut r = Reading {
            now,
            large,
            largest_at: self.sent_at(largest),
            acked: Acked::default(),
            fates,
        };
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
                        if n >= self.floor {
                            self.ack_run(n, n, &mut r);
                        }
                    }
                }
            }
            Received::Runs(mut bytes) => {
                let mut top = Some(largest);
                while let (Some(high), Some(run)) = (top, take_varint(&mut bytes)) {
                    let low = high.saturating_sub(run.saturating_sub(1)).max(self.floor);
                    if run > 0 && high >= low {
                        self.ack_run(low, high, &mut r);
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
        Some(r.acked)
    }

    /// The newest that arrived was given up so long ago that its record went: the path has become longer than all
    /// that was waited for, and only such a packet says by how much.
    #[cold]
    fn arrived_late(&mut self, number: u64) -> Acked {
        let Ok(i) = self.late.binary_search_by_key(&number, |l| l.0) else {
            return Acked::default();
        };
        let (_, at, bytes) = self.late[i];
        // What was sent before it is answered, or never will be.
        self.late.drain(..=i);
        Acked {
            packets: 1,
            newest_large: None,
            sample: Some((at, bytes)),
        }
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

    /// Reports, in the order in which they were sent, the packets whose fate is known: true for
    /// arrived, and how many in a row.
    pub fn settle(&mut self, mut report: impl FnMut(bool, u32)) {
        self.unsettled = self.unsettled.max(self.floor);
        let start = usize::try_from(self.unsettled - self.floor).unwrap_or(usize::MAX);
        let (mut arrived, mut run) = (true, 0);
        for p in self.packets.range(start.min(self.packets.len())..) {
            if p.state == State::InFlight {
                break;
            }
            self.unsettled += 1;
            if !p.telling {
                continue;
            }
            if arrived != (p.state == State::Acked) {
                if run > 0 {
                    report(arrived, run);
                }
                (arrived, run) = (!arrived, 0);
            }
            run += 1;
        }
        if run > 0 {
            report(arrived, run);
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
                self.pings -= usize::from(p.carried.is_ping());
                out.push(Fate {
                    // It may arrive after all.
                    carried: p.carried.clone(),
                    size: p.size,
                    sent_at: p.at,
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
            if p.state == State::Lost {
                let (at, bytes) = (p.at, p.sent_bytes);
                self.remember_late(now, self.floor, at, bytes);
            }
            self.packets.pop_front();
            self.floor += 1;
        }
        self.scan = self.scan.max(self.floor);
    }

    fn remember_late(&mut self, now: Instant, number: u64, at: Instant, sent_bytes: u64) {
        while self.late.len() >= LATE_MOST || self.late.front().is_some_and(|l| l.1 + LATE < now) {
            self.late.pop_front();
        }
        self.late.push_back((number, at, sent_bytes));
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
    use crate::carried::Carried;

    const LARGE: u16 = 1280;

    fn rtt() -> Rtt {
        let mut r = Rtt::default();
        r.sample(Duration::from_millis(100));
        r
    }
    /// Nothing is settled while the estimate is wrong, and the estimate is only mended by what is settled.
    #[test]
    fn a_path_that_becomes_much_longer_is_learned_from_packets_given_up_long_ago() {
        let mut l = SentLedger::default();
        let (mut rtt, mut out) = (Rtt::default(), Vec::new());
        rtt.sample(Duration::from_millis(20));
        let (mut numbers, mut arrived) = (0u64, 0);
        for t in 0..4000u64 {
            let now = Instant::from_millis(10_000 + t);
            if t % 5 == 0 {
                l.sent(now, numbers, 200, 200 * (numbers + 1), data(numbers), true);
                numbers += 1;
            }
            // 300 ms for all packets, each acknowledged by itself.
            if t >= 300 && t % 5 == 0 {
                let run = [1u8];
                let acked = l
                    .on_ack(now, arrived, &Received::Runs(&run), LARGE, &mut out)
                    .unwrap();
                if let Some((at, _)) = acked.sample {
                    rtt.sample(now.since(at));
                }
                arrived += 1;
            }
            l.detect_lost(now, &rtt, &mut out);
            l.forget(now, &rtt);
        }
        let off = rtt.smoothed().abs_diff(Duration::from_millis(300));
        assert!(off < Duration::from_millis(20), "{:?}", rtt.smoothed());
        out.clear();
        l.detect_lost(Instant::from_millis(14_000), &rtt, &mut out);
        assert!(out.is_empty());
        assert!(l.late.is_empty(), "{}", l.late.len());
    }

    fn data(offset: u64) -> CarriedSet {
        CarriedSet::one(Carried::Data {
            flow: 1,
            offset,
            len: 100,
            generation: 0,
        })
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

    fn ack(
        l: &mut SentLedger,
        now: Instant,
        largest: u64,
        received: &Received<'_>,
        fates: &mut Vec<Fate>,
    ) -> Acked {
        l.on_ack(now, largest, received, LARGE, fates).unwrap()
    }

    #[test]
    fn a_gap_is_lost_once_the_window_has_passed() {
        let mut l = ledger(40);
        let (mut acked, mut lost) = (Vec::new(), Vec::new());
        // 0, 2, 3 arrived: 1 left 2 ms before 3, inside the window of 6 ms.
        let settled = ack(&mut l, ms(103), 3, &Received::Bitmap(&[0b1011]), &mut acked);
        assert_eq!(
            settled,
            Acked {
                packets: 3,
                newest_large: Some(ms(3)),
                sample: Some((ms(3), 3 * 1514)),
            }
        );
        l.detect_lost(ms(103), &rtt(), &mut lost);
        assert_eq!((acked.len(), lost.len()), (3, 0));
        ack(&mut l, ms(110), 10, &Received::Runs(&[7]), &mut acked);
        l.detect_lost(ms(110), &rtt(), &mut lost);
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].carried, data(100));
        // It arrives after all: spurious, and the window grows.
        let before = l.reorder_window(&rtt());
        acked.clear();
        let late = ack(
            &mut l,
            ms(112),
            10,
            &Received::Bitmap(&[0xff, 0x03]),
            &mut acked,
        );
        assert!(acked.len() == 1 && acked[0].spurious && acked[0].carried == data(100));
        assert_eq!((late.packets, late.sample), (1, None));
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
        let none = l.on_ack(ms(5), 3, &Received::Runs(&[1]), LARGE, &mut Vec::new());
        assert_eq!(none, None);
    }

    #[test]
    fn what_arrives_unnoticed_is_counted_all_the_same() {
        let mut l = SentLedger::default();
        let carried = [
            vec![Carried::Datagram],
            vec![Carried::Ping],
            vec![Carried::Hello, Carried::Window { flow: 4 }],
            vec![Carried::Window { flow: 4 }, Carried::Fin { flow: 4 }],
            vec![Carried::Probe { size: 1500 }],
        ];
        for (i, c) in (0..).zip(&carried) {
            let size = if i == 4 { 1500 } else { 1281 + i as u16 };
            l.sent(ms(i), i, size, i * 1514, CarriedSet::of(c), true);
        }
        assert!(l.awaits());
        let mut fates = Vec::new();
        let settled = ack(&mut l, ms(100), 4, &Received::Runs(&[5]), &mut fates);
        assert_eq!((settled.packets, l.in_flight()), (5, 0));
        // A probe's arrival says nothing of other large packets.
        assert_eq!(settled.newest_large, Some(ms(3)));
        assert_eq!(settled.sample, Some((ms(4), 4 * 1514)));
        let told: Vec<Vec<Carried>> = fates.iter().map(|f| f.carried.iter().collect()).collect();
        assert_eq!(told, carried[2..]);
        assert!(!l.awaits());
    }

    #[test]
    fn runs_and_bitmap_say_the_same() {
        let mut a = ledger(64);
        let mut b = ledger(64);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        // 60..=63, not 58..=59, 50..=57
        let bitmap = Received::Bitmap(&[0b1100_1111, 0b0011_1111]);
        let one = ack(&mut a, ms(200), 63, &Received::Runs(&[4, 2, 8]), &mut x);
        assert_eq!(one, ack(&mut b, ms(200), 63, &bitmap, &mut y));
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
        ack(&mut l, ms(120), 9, &Received::Runs(&[10]), &mut v);
        l.detect_lost(ms(120), &rtt(), &mut v);
        let mut arrived = 0;
        l.settle(|a, n| arrived += n * u32::from(a));
        l.forget(ms(120), &rtt());
        assert_eq!((arrived, l.floor()), (10, 10));
    }
}
