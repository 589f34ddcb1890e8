//! What goes to the host: bytes written and not acknowledged, which of them
//! to send next, and what to take for lost.
//!
//! ```text
//!   una                  next             end    (FIN)
//!    |-- sent (ranges) ---|-- to be sent --|
//!                                ^ edge: the host's window
//! ```
//!
//! Losses are found by time, not by counting (RACK, RFC 8985): what was sent
//! before something that has arrived, and longer ago than a round trip and the
//! reordering window, is lost. A tail that nothing follows is probed after two
//! round trips (TLP, RFC 8985 §7), and so is a repair of which nothing is heard.
//! Then comes the retransmission timer (RFC 6298), taken back when a time-stamp tells that it was an error (RFC 3522).
//! With hosts that have no SACK three duplicates count, and then one segment per
//! partial acknowledgement (RFC 6582).

mod loss;
mod timers;

use std::time::Duration;

use mef_packet::Instant;

use self::loss::DUPLICATES;
use super::bytes::ByteStream;
use super::control::{Acked, Control};
use super::rate::RateMeter;
use super::rtt::Rtt;
use super::sent::{Fate, Sent, SentRanges};

/// Bytes taken before the host has acknowledged any.
const INITIAL_LIMIT: usize = 128 << 10;
/// Most payload in one piece.
const SUPER_SEGMENT: u64 = 65_000;
/// Most segments in one go while the control wants no bursts.
const GENTLE_BURST: u64 = 16;

/// A part of the stream that is to leave now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub start: u64,
    /// The last byte's offset and one; the FIN, if there is one, comes after.
    pub end: u64,
    pub fin: bool,
    /// Nothing follows.
    pub push: bool,
}

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transmit {
    Piece(Piece),
    /// The window is closed: something that has to be answered.
    WindowProbe,
}

/// An acknowledgement, in offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ack<'a> {
    pub offset: u64,
    /// Where the host's window ends; `None` if the segment is too old to say (RFC 9293 §3.10.7.4).
    pub edge: Option<u64>,
    pub blocks: &'a [(u64, u64)],
    /// When what it acknowledges was sent at the earliest, by the time-stamp.
    pub echoed: Option<Instant>,
    /// It brought neither data nor a FIN.
    pub pure: bool,
}

/// What newly arrived ranges tell.
#[derive(Default)]
struct News {
    bytes: u64,
    /// When the last sent of those that were sent once left.
    clean: Option<Instant>,
    /// The last sent: when, its end, and whether it had been sent again.
    last: Option<(Instant, u64, bool)>,
    reordered: bool,
}

impl News {
    fn note(&mut self, s: &Sent, highest: u64) {
        self.bytes += s.len();
        if !s.again {
            self.clean = self.clean.max(Some(s.at));
            self.reordered |= s.end < highest;
        }
        if self
            .last
            .is_none_or(|(at, end, _)| (s.at, s.end) > (at, end))
        {
            self.last = Some((s.at, s.end, s.again));
        }
    }
}

#[derive(Debug)]
pub(super) struct Sender {
    buffer: ByteStream,
    una: u64,
    next: u64,
    end: u64,
    fin: bool,
    edge: u64,
    largest_window: u64,
    /// Payload of a packet on the wire.
    mss: u16,
    pub sack: bool,
    limit: usize,
    max_limit: usize,
    /// The writer would have written more.
    was_full: bool,

    sent: SentRanges,
    meter: RateMeter,
    control: Control,
    pub rtt: Rtt,

    /// Sending time and end of the last sent range that arrived, and its round-trip time.
    rack: Option<(Instant, u64)>,
    rack_rtt: Duration,
    reordering: Option<u32>,
    /// The reordering window grows at most once until this is acknowledged.
    reordering_mark: u64,
    highest: u64,
    /// A loss is being repaired until this is acknowledged.
    recovery: Option<u64>,
    /// From where to where something was sent again.
    again: Option<(u64, u64)>,
    duplicates: u32,
    /// What may leave while the control wants no bursts.
    allowance: u64,
    /// A tail probe is out; what it is to bring the acknowledgement of.
    probe: Option<u64>,
    /// When the retransmission timer last ran out, and the window before.
    timed_out: Option<(Instant, u64)>,

    retransmit_from: Instant,
    probe_from: Instant,
    reorder_at: Option<Instant>,
    persist_at: Option<Instant>,
    persist_count: u32,
    /// The persist timer has run out.
    forced: bool,
}

impl Sender {
    pub fn new(now: Instant, mss: u16, max_limit: usize) -> Self {
        Self {
            buffer: ByteStream::default(),
            una: 0,
            next: 0,
            end: 0,
            fin: false,
            edge: 0,
            largest_window: 0,
            mss,
            sack: false,
            limit: INITIAL_LIMIT.min(max_limit),
            max_limit,
            was_full: false,
            sent: SentRanges::default(),
            meter: RateMeter::default(),
            control: Control::new(mss),
            rtt: Rtt::default(),
            rack: None,
            rack_rtt: Duration::ZERO,
            reordering: None,
            reordering_mark: 0,
            highest: 0,
            recovery: None,
            again: None,
            duplicates: 0,
            allowance: 0,
            probe: None,
            timed_out: None,
            retransmit_from: now,
            probe_from: now,
            reorder_at: None,
            persist_at: None,
            persist_count: 0,
            forced: false,
        }
    }

    pub fn una(&self) -> u64 {
        self.una
    }
    pub fn next(&self) -> u64 {
        self.next
    }
    pub fn buffer(&self) -> &ByteStream {
        &self.buffer
    }
    pub fn mss(&self) -> u16 {
        self.mss
    }
    /// The largest window the host ever had, bytes.
    pub fn largest_window(&self) -> u64 {
        self.largest_window
    }
    pub fn queued(&self) -> usize {
        (self.end - self.una.min(self.end)) as usize
    }
    pub fn room(&self) -> usize {
        if self.fin {
            return 0;
        }
        self.limit.saturating_sub(self.queued())
    }
    /// Bytes of the host's window that nothing was written for.
    pub fn host_room(&self) -> u64 {
        self.edge.saturating_sub(self.end)
    }
    /// Both every byte and the FIN have been acknowledged.
    pub fn fin_acknowledged(&self) -> bool {
        self.fin && self.una > self.end
    }
    pub fn finish(&mut self) {
        self.fin = true;
    }
    /// Something is with the host, or is to be.
    pub fn waits(&self) -> bool {
        self.una < self.total()
    }
    /// The stream's length in sequence space.
    fn total(&self) -> u64 {
        self.end + u64::from(self.fin)
    }

    pub fn write(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(self.room());
        self.buffer.write(self.end, data.get(..n).unwrap_or(&[]));
        self.end += n as u64;
        self.was_full |= self.queued() >= self.limit;
        n
    }

    /// The host takes smaller packets than it said; what is on its way in larger ones is lost.
    pub fn shrink_mss(&mut self, mss: u16) {
        if mss >= self.mss {
            return;
        }
        self.mss = mss;
        self.control.set_mss(mss);
        if self.sent.mark_lost(|s| s.len() > u64::from(mss)) > 0 {
            self.recovery.get_or_insert(self.next);
        }
    }

    /// What the handshake settled.
    pub fn establish(&mut self, now: Instant, mss: u16, sack: bool, window: u64) {
        self.mss = mss;
        self.control.set_mss(mss);
        self.sack = sack;
        self.set_edge(window);
        self.retransmit_from = now;
    }

    pub fn set_edge(&mut self, edge: u64) {
        let opens = edge > self.edge;
        self.edge = edge;
        self.largest_window = self.largest_window.max(edge.saturating_sub(self.una));
        if opens {
            self.persist_at = None;
            self.persist_count = 0;
            self.forced = false;
        }
    }

    /// Takes in an acknowledgement of nothing beyond `next`.
    pub fn acknowledge(&mut self, now: Instant, ack: &Ack<'_>) {
        let advances = ack.offset > self.una;
        let old_edge = self.edge;
        let mut news = News::default();
        let highest = self.highest;
        let Self { sent, meter, .. } = self;
        let mut note = |s: &Sent| {
            meter.delivered_range(now, s.len(), s.snapshot, s.at);
            news.note(s, highest);
        };
        if advances {
            sent.acknowledge(ack.offset, &mut note);
        }
        for &(start, end) in ack.blocks {
            sent.sack(start.max(ack.offset), end, &mut note);
        }
        if advances {
            self.una = ack.offset;
            self.highest = self.highest.max(ack.offset);
            self.buffer.consume_to(self.una.min(self.end), self.end);
        }
        for &(_, end) in ack.blocks {
            self.highest = self.highest.max(end);
        }
        self.note_duplicate_sack(ack);
        if let Some(edge) = ack.edge {
            self.set_edge(edge);
        }
        if news.bytes > 0 {
            self.learn(now, &news, ack);
            self.probe_from = now;
            if self.recovery.is_some() {
                self.probe = None;
            }
        }
        if advances {
            self.advanced(now, ack);
        } else if ack.pure && !self.sack && self.edge == old_edge && !self.sent.is_empty() {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES && self.recovery.is_none() {
                self.repair_first();
            }
        }
        if self.sack && (self.sent.sacked() > 0 || self.again.is_some()) {
            self.detect(now);
        } else {
            self.reorder_at = None;
        }
        if news.bytes > 0 {
            let acked = Acked {
                bytes: news.bytes,
                delivered: self.meter.delivered(),
                sample: self.meter.sample(now, self.rtt.min()),
            };
            self.control.acked(now, acked, &self.rtt);
            let most = GENTLE_BURST * u64::from(self.mss);
            self.allowance = (self.allowance + news.bytes * 5 / 4).min(most);
            self.grow();
        }
    }

    /// The oldest byte has been acknowledged.
    fn advanced(&mut self, now: Instant, ack: &Ack<'_>) {
        self.duplicates = 0;
        self.retransmit_from = now;
        self.probe_from = now;
        self.rtt.progress();
        if let Some((at, window)) = self.timed_out.take() {
            // The answer to the first sending: nothing had been lost (RFC 3522).
            if ack.echoed.is_some_and(|e| e + ONE_MS < at) {
                self.sent.unmark_lost();
                self.control.restore(window);
                self.recovery = None;
            }
        }
        if self.probe.is_some_and(|p| self.una >= p) {
            self.probe = None;
        }
        match self.recovery {
            Some(until) if self.una >= until => self.recovery = None,
            Some(_) if !self.sack => self.repair_first(),
            _ => {}
        }
        if self.again.is_some_and(|(_, end)| self.una >= end) && self.sent.is_empty() {
            self.again = None;
        }
    }

    /// A writer that keeps the buffer full has it grow to twice the window.
    fn grow(&mut self) {
        if self.was_full {
            let wanted = usize::try_from(2 * self.control.window()).unwrap_or(usize::MAX);
            self.limit = self.limit.max(wanted.min(self.max_limit));
            self.was_full = self.queued() >= self.limit;
        }
    }

    /// Bytes on their way as far as is known.
    fn flying(&self) -> u64 {
        let arrived = u64::from(self.duplicates) * u64::from(self.mss);
        self.sent.flying().saturating_sub(arrived)
    }

    /// What is to leave now, if anything.
    pub fn poll(&mut self, now: Instant) -> Option<Transmit> {
        self.run_timers(now);
        let window = self.control.window();
        let mss = u64::from(self.mss);
        let mut room = window.saturating_sub(self.flying());
        let mut most = SUPER_SEGMENT / mss * mss;
        if self.control.gently() {
            let least = if self.flying() == 0 { 4 * mss } else { 0 };
            room = room.min(self.allowance.max(least));
            most = most.min(window / 32 / mss * mss);
        }
        let most = most.max(mss);
        if self.sent.lost() > 0 {
            let fits = (room / mss).max(1) * mss;
            match self.sent.first_lost(fits.min(most)) {
                Some((start, end)) if room > 0 && (end <= self.edge || start == self.una) => {
                    return Some(Transmit::Piece(self.send_again(now, start, end)));
                }
                _ => {}
            }
            if room < mss {
                self.control.limits();
                return None;
            }
        }
        let waiting = self.end - self.next.min(self.end);
        let allowed = self.edge.saturating_sub(self.next);
        let fin_waits = self.fin && self.next <= self.end;
        if waiting == 0 && !fin_waits {
            if self.flying() < window {
                self.meter.limited(self.flying());
            }
            return None;
        }
        let mut n = waiting.min(room).min(allowed).min(most);
        if n < waiting {
            let goal = (window / 8).min(most).min(waiting);
            let defers = n < goal.max(mss) && !self.forced && !self.sent.is_empty();
            if room < allowed && defers {
                // Acknowledgements will come, and then a larger piece can go.
                self.control.limits();
                return None;
            }
            if allowed <= room {
                self.meter.limited(self.flying());
            }
            if n >= mss {
                n -= n % mss;
            } else if !self.forced && n * 2 < self.largest_window.max(1) {
                // Silly windows are not filled (RFC 9293 §3.8.6.2.1).
                return self.persist(now);
            }
        }
        let fin = fin_waits && n == waiting && (allowed > n || self.forced);
        if n == 0 && !fin {
            return self.persist(now);
        }
        self.forced = false;
        self.persist_at = None;
        Some(Transmit::Piece(self.send_new(now, n, fin)))
    }

    fn send_new(&mut self, now: Instant, n: u64, fin: bool) -> Piece {
        let (start, end) = (self.next, self.next + n);
        if self.sent.is_empty() {
            self.retransmit_from = now;
        }
        self.probe_from = now;
        self.allowance = self.allowance.saturating_sub(n);
        let snapshot = self.meter.sent(now, self.sent.is_empty());
        self.next = end + u64::from(fin);
        self.sent.push(Sent {
            start,
            end: self.next,
            at: now,
            fate: Fate::Flying,
            again: false,
            snapshot,
        });
        Piece {
            start,
            end,
            fin,
            push: end == self.end,
        }
    }

    fn send_again(&mut self, now: Instant, start: u64, end: u64) -> Piece {
        if start == self.una {
            self.retransmit_from = now;
        }
        self.probe_from = now;
        self.allowance = self.allowance.saturating_sub(end - start);
        let snapshot = self.meter.sent(now, self.sent.flying() == 0);
        self.sent.sent_again(start, end, now, snapshot);
        self.again = Some(
            self.again
                .map_or((start, end), |(s, e)| (s.min(start), e.max(end))),
        );
        let data_end = end.min(self.end);
        Piece {
            start,
            end: data_end,
            fin: end > self.end,
            push: data_end == self.end,
        }
    }

    /// Nothing will be sent any more.
    pub fn clear(&mut self) {
        let done = self.fin_acknowledged();
        *self = Self {
            una: self.una,
            next: self.next,
            end: if done { self.end } else { self.una },
            fin: done,
            edge: self.edge,
            largest_window: self.largest_window,
            ..Self::new(self.retransmit_from, self.mss, self.max_limit)
        };
    }

    pub fn memory(&self) -> usize {
        self.buffer.memory() + self.sent.memory() + self.control.memory()
    }
    pub fn release_spare(&mut self) {
        self.buffer.release_spare();
    }
}

/// Resolution of our time-stamps.
const ONE_MS: Duration = Duration::from_millis(1);
