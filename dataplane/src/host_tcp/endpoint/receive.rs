//! What has arrived from the host: bytes in order for the reader, bytes beyond
//! gaps, where the host's FIN is, which window the host has been told, and how
//! large it should be.
//!
//! ```text
//!      read          next                    edge
//!  ------|-------------|-----[range]--[range]--|------------
//!   gone   for reader    gap                     not to be sent yet
//! ```
//!
//! The window follows the reader: it doubles whenever three quarters of it
//! were read within two round-trip times, and starts small. Its right edge
//! never moves back: where rounding to the window scale makes it look so, what
//! had been promised is still taken (RFC 7323 §2.4).

use std::time::Duration;

use mef_packet::Instant;

use super::super::wire::MAX_BLOCKS;
use super::bytes::ByteStream;
use super::pardon::Pardon;

/// Window at first, bytes.
pub(super) const INITIAL_WINDOW: usize = 64 << 10;
/// Most separate ranges beyond a gap; what would make one more is left to the host's
/// retransmission.
pub(super) const MAX_RANGES: usize = 256;
/// A retransmission that comes this much later than a round trip may be due to a time-out: no
/// common system has a shorter one (Linux: 200 ms).
const TIMEOUT: Duration = Duration::from_millis(150);
/// Time that counts as a round trip where the real one is less: the reader is not that regular.
const LEAST_EPOCH: Duration = Duration::from_millis(4);

/// Bytes beyond a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    /// The larger, the later it grew.
    stamp: u64,
    /// Since when something before it is missing, and whether a queue may be why.
    missed: Missed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    at: Instant,
    clear: bool,
}

/// What a segment brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Something the reader can have, or the FIN.
    InOrder,
    /// Something beyond a gap.
    OutOfOrder,
    /// Nothing new.
    Duplicate,
}

#[derive(Debug)]
pub(super) struct Receiver {
    buffer: ByteStream,
    /// Offset of the first byte not read.
    read: u64,
    /// Offset of the first byte that has not arrived.
    next: u64,
    /// The furthest offset the host was told it may send to.
    edge: u64,
    /// What the host believes the edge to be: less by what its scale rounds off.
    told: u64,
    fin_at: Option<u64>,
    ranges: Vec<Range>,
    stamp: u64,
    /// A range that came twice, to be told once (RFC 2883).
    duplicate: Option<(u64, u64)>,
    window: usize,
    /// The window grows no further.
    cap: usize,
    largest_window: usize,
    pub scale: u8,
    epoch: (Instant, u64),
    /// The present, for holes that show, and how far away the host is.
    present: Missed,
    rtt: Duration,
    pub pardon: Pardon,
}

impl Receiver {
    pub fn new(now: Instant, largest_window: usize, pardon: bool) -> Self {
        let mut scale = 0;
        while scale < 14 && (65_535usize << scale) < largest_window {
            scale += 1;
        }
        Self {
            buffer: ByteStream::default(),
            read: 0,
            next: 0,
            edge: 0,
            told: 0,
            fin_at: None,
            ranges: Vec::new(),
            stamp: 0,
            duplicate: None,
            window: INITIAL_WINDOW.min(largest_window),
            cap: largest_window,
            largest_window,
            scale,
            epoch: (now, 0),
            present: Missed {
                at: now,
                clear: false,
            },
            rtt: Duration::MAX,
            pardon: Pardon::new(pardon),
        }
    }

    /// The host's FIN has arrived, and every byte before it.
    pub fn finished(&self) -> bool {
        self.fin_at == Some(self.next)
    }
    /// In sequence space: the FIN counts.
    pub fn acknowledged(&self) -> u64 {
        self.next + u64::from(self.finished())
    }
    pub fn readable(&self) -> usize {
        (self.next - self.read) as usize
    }
    pub fn has_gaps(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Bytes beyond `next` that are taken.
    pub fn room(&self) -> u64 {
        match self.fin_at {
            Some(fin) => fin - self.next,
            None => self.edge.saturating_sub(self.next),
        }
    }

    /// Sequence numbers beyond `next` that are in the window: a known FIN takes one too, and
    /// what the host sends after it carries the next.
    pub fn window(&self) -> u64 {
        self.room() + u64::from(self.fin_at.is_some_and(|fin| fin > self.next))
    }

    /// A segment is about to be taken in, with this time-stamp, from a host this far away.
    pub fn segment(&mut self, now: Instant, timestamp: Option<u32>, rtt: Duration) {
        if let Some(value) = timestamp {
            self.pardon.arrived(now, value);
        }
        self.rtt = rtt;
        self.present = Missed {
            at: now,
            clear: timestamp.is_some() && self.pardon.is_clear(rtt),
        };
    }

    /// Bytes from `start` on have arrived: late, if what lies behind them has been there for long.
    fn note_late(&mut self, start: u64) {
        let behind = self.ranges.partition_point(|r| r.start <= start);
        let Some(r) = self.ranges.get(behind) else {
            return;
        };
        let age = self.present.at.since(r.missed.at);
        if age >= self.rtt / 2 {
            // A fast retransmission. After a time-out the echo is needed for the round-trip time.
            let clear = r.missed.clear && age < self.rtt.saturating_add(TIMEOUT);
            self.pardon.filled(clear);
        }
    }

    /// Takes a segment's bytes, which begin `offset` from the start of the stream, as far as they
    /// are within the window. A FIN counts only if everything before it fits.
    pub fn arrive(&mut self, offset: i64, payload: &[u8], fin: bool) -> Arrival {
        let at = (self.epoch.0, Duration::ZERO);
        self.arrive_into(offset, payload, fin, at, &mut |_| 0)
    }

    /// The same, at a time and with a round-trip time. Where nothing waits for the reader he is shown
    /// what comes in order; `read` says how much of it he took.
    pub fn arrive_into(
        &mut self,
        offset: i64,
        payload: &[u8],
        fin: bool,
        (now, rtt): (Instant, Duration),
        read: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Arrival {
        let limit = self.next + self.room();
        let end = offset.saturating_add(payload.len() as i64);
        let Ok(end) = u64::try_from(end) else {
            return Arrival::Duplicate;
        };
        let start = u64::try_from(offset).unwrap_or(0);
        if fin && self.fin_at.is_none() && end <= limit && end >= self.highest() {
            self.fin_at = Some(end);
        }
        let fits = end.min(limit);
        if fits <= self.next {
            if end <= self.next && !payload.is_empty() {
                self.duplicate = Some((start, end));
            }
            return if fin && self.finished() {
                Arrival::InOrder
            } else {
                Arrival::Duplicate
            };
        }
        if start >= fits {
            return Arrival::Duplicate;
        }
        let from = start.max(self.next);
        let bytes = payload
            .get((from as i64 - offset) as usize..(fits as i64 - offset) as usize)
            .unwrap_or(&[]);
        if !self.ranges.is_empty() {
            self.note_late(from);
        }
        if start <= self.next {
            let mut kept = bytes;
            if self.readable() == 0 && !bytes.is_empty() {
                let n = read(bytes).min(bytes.len());
                self.next += n as u64;
                self.taken(now, n, rtt);
                kept = bytes.get(n..).unwrap_or(&[]);
            }
            self.buffer.write(self.next, kept);
            self.next = fits;
            self.join();
            return Arrival::InOrder;
        }
        match self.note_range(start, fits) {
            Some(true) => {
                self.buffer.write(start, bytes);
                Arrival::OutOfOrder
            }
            Some(false) => {
                self.duplicate = Some((start, fits));
                Arrival::Duplicate
            }
            None => Arrival::Duplicate,
        }
    }

    /// Offset after the last byte that has arrived.
    fn highest(&self) -> u64 {
        self.ranges.last().map_or(self.next, |r| r.end)
    }

    /// Takes over the ranges that `next` has reached.
    fn join(&mut self) {
        let reached = self
            .ranges
            .iter()
            .take_while(|r| r.start <= self.next)
            .count();
        for r in self.ranges.drain(..reached) {
            self.next = self.next.max(r.end);
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 16 {
            self.ranges = Vec::new();
        }
    }

    /// Enters a range; whether it has anything new, `None` if there is no place for it.
    fn note_range(&mut self, start: u64, end: u64) -> Option<bool> {
        self.stamp += 1;
        let stamp = self.stamp;
        let first = self.ranges.partition_point(|r| r.end < start);
        let last = first
            + self
                .ranges
                .get(first..)
                .map_or(0, |rest| rest.partition_point(|r| r.start <= end));
        let Some(touched) = self.ranges.get_mut(first..last).filter(|t| !t.is_empty()) else {
            if self.ranges.len() >= MAX_RANGES {
                return None;
            }
            let missed = self.present;
            self.ranges.insert(
                first,
                Range {
                    start,
                    end,
                    stamp,
                    missed,
                },
            );
            return Some(true);
        };
        let known = matches!(touched, [r] if r.start <= start && r.end >= end);
        let low = touched.first().map_or(start, |r| r.start.min(start));
        let high = touched.last().map_or(end, |r| r.end.max(end));
        if let Some(r) = touched.first_mut() {
            *r = Range {
                start: low,
                end: high,
                stamp,
                missed: r.missed,
            };
        }
        self.ranges.drain(first + 1..last);
        Some(!known)
    }

    /// The blocks for a SACK option (RFC 2018 §4): a duplicate first, then what changed last.
    /// The duplicate is told once.
    pub fn blocks(&mut self, most: usize, out: &mut [(u64, u64); MAX_BLOCKS]) -> usize {
        let mut count = 0;
        let mut put = |block| {
            if let Some(slot) = out.get_mut(count).filter(|_| count < most) {
                *slot = block;
                count += 1;
            }
        };
        if let Some(d) = self.duplicate.take() {
            put(d);
        }
        let mut below = u64::MAX;
        for _ in 0..most {
            let newest = self
                .ranges
                .iter()
                .filter(|r| r.stamp < below)
                .max_by_key(|r| r.stamp);
            let Some(r) = newest else { break };
            below = r.stamp;
            put((r.start, r.end));
        }
        count
    }

    pub fn has_duplicate(&self) -> bool {
        self.duplicate.is_some()
    }

    /// The bytes to be read next, as far as they lie together.
    pub fn front(&self) -> &[u8] {
        self.buffer.contiguous(self.read, self.next)
    }

    /// The reader took `n` bytes of [`front`](Self::front).
    pub fn taken(&mut self, now: Instant, n: usize, rtt: Duration) {
        self.read = (self.read + n as u64).min(self.next);
        let end = self.highest();
        self.buffer.consume_to(self.read, end);
        if now.since(self.epoch.0) > (rtt * 2).max(LEAST_EPOCH) {
            self.epoch = (now, self.read - n as u64);
        }
        if self.read - self.epoch.1 >= self.window as u64 * 3 / 4 {
            let grown = (self.window * 2).min(self.largest_window).min(self.cap);
            self.window = self.window.max(grown);
            self.epoch = (now, self.read);
        }
    }

    /// Where the window would end if the host were told now.
    fn wanted_edge(&self) -> u64 {
        let end = self.read + self.window as u64;
        // After the FIN there is nothing to come, but a window of zero would be probed.
        end.max(self.edge)
    }

    /// The window field for a segment that goes out now. `syn`: it is never scaled there.
    pub fn tell(&mut self, syn: bool) -> u16 {
        let scale = if syn { 0 } else { self.scale };
        let open = self.wanted_edge() - self.next;
        let field = (open >> scale).min(65_535);
        self.told = self.next + (field << scale);
        self.edge = self.edge.max(self.told);
        field as u16
    }

    /// Whether the reader has made so much room that the host should hear of it at once: it had
    /// no window worth a segment, or it at least doubles.
    pub fn update_is_due(&self, mss: u16) -> bool {
        if self.fin_at.is_some() {
            return false;
        }
        let old = self.told.saturating_sub(self.next);
        let open = self.wanted_edge() - self.next;
        // As it can be told: without this the same update would be due again at once.
        let new = (open >> self.scale).min(65_535) << self.scale;
        // From nothing only by something worth while (RFC 9293 §3.8.6.2.2).
        let least = u64::from(mss).min(self.window as u64 / 2);
        new >= least && new > old && (old < least || new >= 2 * old)
    }

    pub fn begin_with_window(&mut self, bytes: usize) {
        self.window = bytes.min(self.largest_window);
    }
    pub fn cap_window(&mut self, bytes: usize) {
        self.cap = bytes;
    }
    /// Bytes from the first that was not read to the end of the window.
    pub fn promised(&self) -> usize {
        self.window
            .max((self.edge - self.read.min(self.edge)) as usize)
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.buffer.memory() + self.ranges.capacity() * std::mem::size_of::<Range>()
    }
    pub fn release_spare(&mut self) {
        self.buffer.release_spare();
    }
    /// Without window scaling nothing beyond 64 KiB can be told.
    pub fn without_scale(&mut self) {
        self.scale = 0;
        self.largest_window = self.largest_window.min(65_535);
        self.window = self.window.min(self.largest_window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(window: usize) -> Receiver {
        let mut r = Receiver::new(Instant::ZERO, window, true);
        r.tell(false);
        r
    }

    fn told(r: &mut Receiver) -> u64 {
        u64::from(r.tell(false)) << r.scale
    }

    #[test]
    fn ranges_join_and_are_reported_by_recency() {
        let mut r = receiver(64 << 10);
        let p = [7u8; 1000];
        assert_eq!(r.arrive(5000, &p, false), Arrival::OutOfOrder);
        assert_eq!(r.arrive(2000, &p, false), Arrival::OutOfOrder);
        assert_eq!(r.arrive(8000, &p, false), Arrival::OutOfOrder);
        let mut out = [(0, 0); MAX_BLOCKS];
        assert_eq!(r.blocks(3, &mut out), 3);
        assert_eq!(out[..3], [(8000, 9000), (2000, 3000), (5000, 6000)]);
        // A duplicate is told first, and once (RFC 2883).
        assert_eq!(r.arrive(5000, &p, false), Arrival::Duplicate);
        assert_eq!(r.blocks(3, &mut out), 3);
        assert_eq!(out[..3], [(5000, 6000), (5000, 6000), (8000, 9000)]);
        assert_eq!(r.arrive(3000, &[7; 2000], false), Arrival::OutOfOrder);
        assert_eq!(r.blocks(3, &mut out), 2);
        assert_eq!(out[..2], [(2000, 6000), (8000, 9000)]);
        assert_eq!(r.arrive(0, &[7; 2500], false), Arrival::InOrder);
        assert_eq!(r.next, 6000);
        assert_eq!(r.arrive(6000, &[7; 2500], true), Arrival::InOrder);
        assert_eq!(r.next, 9000);
        assert!(
            !r.finished(),
            "a FIN below bytes that have arrived is a lie"
        );
        assert!(!r.has_gaps());
    }

    #[test]
    fn ranges_are_bounded() {
        let mut r = receiver(4 << 20);
        r.window = 4 << 20;
        r.tell(false);
        for i in 0..2 * MAX_RANGES as i64 {
            r.arrive(10 + i * 10, &[1], false);
        }
        assert_eq!(r.ranges.len(), MAX_RANGES);
        assert!(r.memory() < 64 << 10);
    }

    #[test]
    fn the_edge_never_moves_back_and_what_was_promised_is_taken() {
        let mut r = receiver(4 << 20);
        assert_eq!(r.scale, 7);
        let edge = told(&mut r);
        assert_eq!(edge, 64 << 10);
        r.arrive(0, &[1; 100], false);
        let field = told(&mut r);
        assert!(100 + field <= edge && 100 + field > edge - 128);
        assert_eq!(r.room(), edge - 100, "what rounding hid is still taken");
    }

    #[test]
    fn the_window_follows_the_reader() {
        let mut r = receiver(1 << 20);
        let mut now = Instant::from_millis(10);
        let rtt = Duration::from_millis(20);
        let data = vec![1; 64 << 10];
        for _ in 0..100 {
            // A window per round trip.
            now += rtt;
            let room = r.room().min(data.len() as u64) as usize;
            r.arrive(r.next as i64, &data[..room], false);
            while r.readable() > 0 {
                let n = r.front().len();
                r.taken(now, n, rtt);
            }
            r.tell(false);
        }
        // Two to three times 64 KiB are read within two round trips.
        assert!(
            r.window == 256 << 10 || r.window == 512 << 10,
            "{}",
            r.window
        );
        // A reader that is slow gets no more.
        let mut r = receiver(1 << 20);
        for _ in 0..100 {
            now += rtt * 10;
            let room = r.room().min(data.len() as u64) as usize;
            r.arrive(r.next as i64, &data[..room], false);
            let n = r.front().len().min(4000);
            r.taken(now, n, rtt);
            r.tell(false);
        }
        assert_eq!(r.window, 64 << 10);
    }
}
