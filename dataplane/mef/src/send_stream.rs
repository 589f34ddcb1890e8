//! The sending half of a split flow: the queue towards the link.
//!
//! ```text
//!  0 ........ una ............ next ............. end
//!    acked,        in flight,        not yet sent      written by the host
//!    freed         acked or lost
//! ```
//!
//! Lost bytes go out again, oldest first, from the third loss on twice. When
//! the queue runs empty everything unacknowledged becomes a span and gets
//! repair symbols; inside a span a loss is answered with more repair, not with
//! retransmission, for as long as there is repair left to send.

use core::ops::Range;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use mef_packet::Instant;

use crate::chunks::{ChunkPool, StreamBuffer, Use};
use crate::codec::{SpanId, MAX_REPAIR_SYMBOLS, MAX_SPAN_SYMBOLS, RESET_ECHO};
use crate::ranges::RangeSet;
use crate::repair::{self, SpanEncoder};

/// How the stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    /// The host closed its half.
    Finished,
    /// The host reset the connection.
    Reset(u8),
}

/// What the flow wants to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Data {
        offset: u64,
        len: usize,
        generation: u8,
    },
    Repair {
        base: u64,
    },
}

#[derive(Debug)]
struct Span {
    base: u64,
    len: u64,
    /// Bytes of the first symbol that lie below `base`: they belong to nobody and count as zeros.
    lead: usize,
    symbol: usize,
    symbols: usize,
    encoder: SpanEncoder,
    next_index: usize,
    to_send: usize,
    in_flight: usize,
    arrived: usize,
    /// No repair left: losses inside are retransmitted.
    spent: bool,
    /// Bytes of repair symbols that were made.
    made: usize,
}

impl Span {
    fn end(&self) -> u64 {
        self.base + self.len
    }

    /// The span's encoder, and how it reads a range of the symbols; the flag falls when bytes are gone.
    fn encoder<'a>(
        &'a mut self,
        buffer: &'a StreamBuffer,
        held: &'a mut bool,
    ) -> (
        &'a mut SpanEncoder,
        impl FnMut(Range<usize>, &mut [u8]) + 'a,
    ) {
        let (base, lead) = (self.base, self.lead);
        let read = move |range: Range<usize>, out: &mut [u8]| {
            let zeros = lead.saturating_sub(range.start).min(range.len());
            let (head, rest) = out.split_at_mut(zeros.min(out.len()));
            head.fill(0);
            let bytes = range.len() - zeros;
            let from = base + (range.start + zeros - lead) as u64;
            *held &= bytes == 0 || buffer.copy_out(from, rest.get_mut(..bytes).unwrap_or(&mut []));
        };
        (&mut self.encoder, read)
    }

    /// Takes memory for the repair symbols of `block`, if they are not made yet; where there is
    /// none, what the span loses is retransmitted.
    fn afford(&mut self, pool: &mut ChunkPool, block: usize) -> bool {
        let layout = self.encoder.layout();
        let bytes = layout.repairs_per_block() * layout.repair_size();
        if !self.encoder.is_encoded(block) {
            if !pool.take(Use::Repair, bytes) {
                self.spent = true;
                self.to_send = 0;
                return false;
            }
            self.made += bytes;
        }
        true
    }
}

/// How long a queue must have been empty before its tail is repaired, unless the stream has ended.
const QUIET: Duration = Duration::from_millis(1);
/// From the how-manieth loss of the same bytes on they go out twice. One more copy of what was lost
/// twice would cost p^2 of the line (4% at 20% loss); of what was lost three times, p^3.
const TWICE_FROM: u8 = 3;
/// Most spans that may be open at once.
const MAX_SPANS: usize = 64;

#[derive(Debug)]
pub struct SendStream {
    buffer: StreamBuffer,
    una: u64,
    next: u64,
    end: u64,
    acked: RangeSet,
    /// Lost ranges by offset: (end, generation).
    lost: BTreeMap<u64, (u64, u8)>,
    /// Second copies still to go out.
    again: VecDeque<(u64, u64, u8)>,
    credit: u64,
    ending: End,
    end_acked: bool,
    spans: VecDeque<Span>,
    spanned: u64,
    empty_since: Option<Instant>,
    last_span: Option<Instant>,
    retransmitted: u64,
}

impl SendStream {
    /// A stream that may send `credit` bytes before the peer grants more.
    pub fn new(credit: u64) -> Self {
        Self {
            buffer: StreamBuffer::for_sending(),
            una: 0,
            next: 0,
            end: 0,
            acked: RangeSet::new(),
            lost: BTreeMap::new(),
            again: VecDeque::new(),
            credit,
            ending: End::Open,
            end_acked: false,
            spans: VecDeque::new(),
            spanned: 0,
            empty_since: None,
            last_span: None,
            retransmitted: 0,
        }
    }

    /// Bytes written and not yet sent for the first time.
    pub fn unsent(&self) -> u64 {
        self.end - self.next
    }
    /// Bytes held: written and not yet acknowledged.
    pub fn held(&self) -> u64 {
        self.end - self.una
    }
    pub fn written(&self) -> u64 {
        self.end
    }
    /// First offset that was never sent.
    pub fn sent(&self) -> u64 {
        self.next
    }
    pub fn credit(&self) -> u64 {
        self.credit
    }
    pub fn ending(&self) -> End {
        self.ending
    }
    pub fn retransmitted(&self) -> u64 {
        self.retransmitted
    }
    /// Everything, the ending included, has been acknowledged.
    pub fn is_done(&self) -> bool {
        self.end_acked && self.una == self.end
    }

    /// Takes bytes from the host; returns how many fitted into the memory budget.
    pub fn write(&mut self, pool: &mut ChunkPool, data: &[u8]) -> usize {
        if self.ending != End::Open {
            return 0;
        }
        let n = self.buffer.write(pool, self.end, data);
        self.end += n as u64;
        if n > 0 {
            self.empty_since = None;
        }
        n
    }
    /// No more bytes will be written.
    pub fn finish(&mut self) {
        if self.ending == End::Open {
            self.ending = End::Finished;
        }
    }
    /// No more bytes will be written and the connection is to be reset behind those that were.
    pub fn reset(&mut self, code: u8) {
        let stands = match self.ending {
            End::Reset(old) => old & RESET_ECHO == 0 || code & RESET_ECHO != 0,
            _ => false,
        };
        if !stands {
            self.ending = End::Reset(code);
            self.end_acked = false;
        }
    }
    /// Drops everything held: nobody reads it any more. The end may have been stated, so it stays
    /// where it is; returns how many bytes up to it were never sent.
    pub fn discard(&mut self, pool: &mut ChunkPool) -> u64 {
        let unsent = self.unsent();
        self.una = self.end;
        self.next = self.end;
        self.acked.clear();
        self.lost.clear();
        self.again.clear();
        self.release(pool);
        unsent
    }
    /// Gives back all memory.
    pub fn release(&mut self, pool: &mut ChunkPool) {
        self.buffer.clear(pool);
        for span in core::mem::take(&mut self.spans) {
            pool.give(Use::Repair, span.made);
        }
    }
    pub fn end_acked(&mut self) {
        self.end_acked = true;
    }
    pub fn is_end_acked(&self) -> bool {
        self.end_acked
    }
    pub fn set_credit(&mut self, max_offset: u64) {
        self.credit = self.credit.max(max_offset);
    }

    /// Bytes `[offset, offset + len)` arrived.
    pub fn on_acked(&mut self, pool: &mut ChunkPool, offset: u64, len: u64) {
        let end = (offset + len).min(self.next);
        self.acked.insert(offset.max(self.una), end);
        self.clear_lost(offset, end);
        if let Some((s, e)) = self.acked.first() {
            if s <= self.una {
                self.una = e;
                self.acked.remove(s, e);
                self.buffer.free_before(pool, self.una);
            }
        }
        if self.una == self.end && self.next == self.end {
            // Nothing is held: a flow that waits keeps no memory.
            self.release(pool);
            self.acked = RangeSet::new();
            self.again = VecDeque::new();
            return;
        }
        while self.spans.front().is_some_and(|s| s.end() <= self.una) {
            if let Some(span) = self.spans.pop_front() {
                pool.give(Use::Repair, span.made);
            }
        }
    }

    /// Bytes `[offset, offset + len)` were declared lost for the `generation`-th time (0 if that is not known to be the path's doing).
    pub fn on_lost(&mut self, offset: u64, len: u64, generation: u8) {
        let start = offset.max(self.una);
        // The number may have been that of another flow, whose packets are no concern of this one.
        let end = (offset + len).min(self.next);
        let missing: Vec<(u64, u64)> = self.acked.gaps(start, end).collect();
        for (s, e) in missing {
            if s < e {
                // A second copy, or pieces sent after the path's MTU fell, may be lost already.
                self.clear_lost(s, e);
                self.lost.insert(s, (e, generation));
            }
        }
    }

    fn clear_lost(&mut self, start: u64, end: u64) {
        // Ranges go lost and come back packet by packet, so exact matches are the rule.
        let hits: Vec<(u64, u64, u8)> = self
            .lost
            .range(..end)
            .rev()
            .take_while(|(_, &(e, _))| e > start)
            .map(|(&s, &(e, g))| (s, e, g))
            .collect();
        for (s, e, g) in hits {
            self.lost.remove(&s);
            if s < start {
                self.lost.insert(s, (start, g));
            }
            if e > end {
                self.lost.insert(end, (e, g));
            }
        }
    }

    /// What to send next in at most `max` payload bytes; `link_room` bounds bytes never sent before.
    pub fn next(&mut self, now: Instant, max: usize, link_room: u64) -> Option<Next> {
        let protected = self.protected();
        let mut again = None;
        while let Some(&(s, e, g)) = self.again.front() {
            if s >= self.una && !self.acked.covers(s, e) {
                again = Some((s, e, g));
                break;
            }
            self.again.pop_front();
        }
        let lost = self
            .lost
            .iter()
            .map(|(&s, &(e, g))| (s, e, g))
            .find(|&(s, _, _)| !protected.iter().any(|&(b, t)| s >= b && s < t));
        if let Some((offset, mut end, generation)) = lost {
            // Pieces of another packet size are joined, or a smaller MTU would halve the packets again and again.
            while end - offset < max as u64 {
                match self.lost.get(&end) {
                    Some(&(e, g))
                        if g == generation
                            && !protected.iter().any(|&(b, t)| end >= b && end < t) =>
                    {
                        end = e
                    }
                    _ => break,
                }
            }
            let len = usize::try_from(end - offset).unwrap_or(max).min(max);
            return Some(Next::Data {
                offset,
                len,
                generation,
            });
        }
        if let Some((offset, end, generation)) = again {
            let len = usize::try_from(end - offset).unwrap_or(max).min(max);
            return Some(Next::Data {
                offset,
                len,
                generation,
            });
        }
        let fresh = self
            .unsent()
            .min(self.credit.saturating_sub(self.next))
            .min(link_room);
        if fresh > 0 {
            // Packets end where symbols do, also after a short one: losing a packet that straddled two
            // symbols would cost two repairs.
            let to_boundary = max as u64 - self.next % max as u64;
            let len = usize::try_from(fresh.min(to_boundary)).unwrap_or(max);
            return Some(Next::Data {
                offset: self.next,
                len,
                generation: 0,
            });
        }
        if self.unsent() == 0 {
            self.empty_since.get_or_insert(now);
        }
        self.spans
            .iter()
            .find(|s| s.to_send > 0)
            .map(|s| Next::Repair { base: s.base })
    }

    /// Spans inside which losses are answered with repair.
    fn protected(&self) -> Vec<(u64, u64)> {
        self.spans
            .iter()
            .filter(|s| !s.spent)
            .map(|s| (s.base, s.end()))
            .collect()
    }

    /// Bytes that [`next`](Self::next) offered left in a packet. Returns how many were sent for the first time.
    pub fn on_sent(&mut self, offset: u64, len: usize, generation: u8) -> u64 {
        let end = offset + len as u64;
        if offset == self.next {
            self.next = end;
            return len as u64;
        }
        self.retransmitted += len as u64;
        if self.again.front().is_some_and(|&(s, _, _)| s == offset)
            && !self.lost.contains_key(&offset)
        {
            self.again.pop_front();
            return 0;
        }
        self.clear_lost(offset, end);
        if generation >= TWICE_FROM {
            self.again.push_back((offset, end, generation));
        }
        0
    }

    /// Appends `len` stream bytes to a packet; `false` where some are not held.
    pub fn append_to(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> bool {
        self.buffer.append_to(offset, len, out)
    }

    /// When [`open_span`](Self::open_span) has something to do.
    pub fn span_due(&self, min_gap: Duration) -> Option<Instant> {
        let since = self.empty_since?;
        if self.next <= self.spanned.max(self.una) {
            return None;
        }
        let quiet = if self.ending == End::Open {
            QUIET
        } else {
            Duration::ZERO
        };
        Some((since + quiet).max(self.last_span.map_or(Instant::ZERO, |t| t + min_gap)))
    }

    /// Opens a span over what is unacknowledged and in no span yet, cut into symbols of `symbol` bytes.
    pub fn open_span(&mut self, now: Instant, symbol: usize) {
        let mut base = self.spanned.max(self.una);
        while base < self.next && self.spans.len() < MAX_SPANS {
            let rest = self.next - base;
            // Symbols lie on multiples of their size, as packets do; one alone is just its bytes.
            let (lead, symbol) = if rest <= symbol as u64 {
                (0, (rest as usize).next_multiple_of(2))
            } else {
                ((base % symbol as u64) as usize, symbol)
            };
            let len = rest.min((symbol * MAX_SPAN_SYMBOLS - lead) as u64);
            let Ok(encoder) = SpanEncoder::new(lead + len as usize, symbol) else {
                break;
            };
            let symbols = encoder.layout().symbols();
            self.spans.push_back(Span {
                base,
                len,
                lead,
                symbol,
                symbols,
                encoder,
                next_index: 0,
                to_send: 0,
                in_flight: 0,
                arrived: 0,
                spent: false,
                made: 0,
            });
            base += len;
        }
        self.spanned = base;
        self.last_span = Some(now);
    }

    /// Encodes the first span whose repair is wanted and not made yet; `false` where there is none.
    pub fn encode_one(&mut self, pool: &mut ChunkPool) -> bool {
        let Self { spans, buffer, .. } = self;
        let waiting =
            |s: &&mut Span| s.to_send > 0 && s.next_index == 0 && !s.encoder.is_encoded(0);
        let Some(span) = spans.iter_mut().find(waiting) else {
            return false;
        };
        if !span.afford(pool, 0) {
            return true;
        }
        let mut held = true;
        let (encoder, read) = span.encoder(buffer, &mut held);
        let done = encoder.encode_next(read).is_err();
        if done || !held {
            // The chunks of an acknowledged head are gone: nothing left that repair could say.
            span.spent = true;
            span.to_send = 0;
        }
        true
    }

    /// Applies the repair rule to every open span; `loss` is the probability that a packet is lost.
    pub fn top_up(&mut self, loss: f64) {
        let Self {
            spans,
            acked,
            lost,
            una,
            ..
        } = self;
        for span in spans.iter_mut().filter(|s| !s.spent) {
            let (base, end) = (span.base.max(*una), span.end());
            let missing: u64 = acked
                .gaps(base, end)
                .map(|(s, e)| (e - s).div_ceil(span.symbol as u64))
                .sum();
            let known_lost: u64 = lost
                .range(..end)
                .filter(|(_, &(e, _))| e > base)
                .map(|(s, (e, _))| (e - s).div_ceil(span.symbol as u64))
                .sum();
            let missing = usize::try_from(missing)
                .unwrap_or(span.symbols)
                .min(span.symbols);
            let known_lost = usize::try_from(known_lost).unwrap_or(missing).min(missing);
            // What is still to be sent counts as in flight: asking again must not ask twice.
            let on_its_way = span.in_flight + span.to_send;
            let more = repair::repairs_needed(
                missing - known_lost,
                known_lost,
                on_its_way,
                span.arrived,
                loss,
                repair::EPSILON,
            );
            let left = span
                .encoder
                .layout()
                .repairs()
                .min(MAX_REPAIR_SYMBOLS)
                .saturating_sub(span.next_index + span.to_send);
            if more > left {
                span.spent = true;
            }
            span.to_send += more.min(left);
        }
    }

    /// Writes the next repair symbol of the span at `base` into `out` and returns how to name it.
    pub fn repair(
        &mut self,
        pool: &mut ChunkPool,
        base: u64,
        out: &mut Vec<u8>,
    ) -> Option<(SpanId, u16)> {
        let Self { spans, buffer, .. } = self;
        let span = spans.iter_mut().find(|s| s.base == base)?;
        span.to_send = span.to_send.saturating_sub(1);
        let span_index = span.next_index;
        let block = span.encoder.layout().block_of_repair(span_index);
        if !span.afford(pool, block) {
            return None;
        }
        let mut held = true;
        let (encoder, read) = span.encoder(buffer, &mut held);
        let made = match encoder.repair(span_index, read) {
            Ok(symbol) => {
                out.extend_from_slice(symbol);
                true
            }
            Err(_) => false,
        };
        if !made || !held {
            // The chunks of an acknowledged head are gone: nothing left that repair could say.
            out.clear();
            span.spent = true;
            span.to_send = 0;
            return None;
        }
        let last = span.lead as u64 + span.len - (span.symbols as u64 - 1) * span.symbol as u64;
        let id = SpanId::new(
            span.base,
            u16::try_from(span.symbols).ok()?,
            u16::try_from(last).ok()?,
        );
        let index = u16::try_from(span.next_index).ok()?;
        span.next_index += 1;
        span.in_flight += 1;
        Some((id, index))
    }

    /// A repair symbol of the span at `base` arrived or was lost.
    pub fn on_repair(&mut self, base: u64, arrived: bool) {
        if let Some(span) = self.spans.iter_mut().find(|s| s.base == base) {
            span.in_flight = span.in_flight.saturating_sub(1);
            if arrived {
                span.arrived += 1;
            }
        }
    }
    /// Every span that still relies on repair has sent what it will and heard of it all, yet bytes
    /// are missing. Spans whose losses are retransmitted are no reason to wait.
    pub fn waits_for_word(&self) -> bool {
        let mut missing = false;
        for span in self.spans.iter().filter(|s| !s.spent) {
            if span.to_send > 0 || span.in_flight > 0 {
                return false;
            }
            for (start, _) in self.acked.gaps(span.base.max(self.una), span.end()) {
                missing = true;
                let is_lost = self
                    .lost
                    .range(..=start)
                    .next_back()
                    .is_some_and(|(_, &(end, _))| end > start);
                if !is_lost {
                    return false;
                }
            }
        }
        missing
    }
    /// The span at `base` cannot be repaired any more: its losses are retransmitted.
    pub fn give_up_span(&mut self, base: u64) {
        if let Some(s) = self.spans.iter_mut().find(|s| s.base == base) {
            s.spent = true;
            s.to_send = 0;
        }
    }
    /// Repair did not bring the spans home: their losses are retransmitted.
    pub fn give_up_spans(&mut self) {
        for s in &mut self.spans {
            s.spent = true;
            s.to_send = 0;
        }
    }
    /// Whether any span waits for the repair rule.
    pub fn has_spans(&self) -> bool {
        !self.spans.is_empty()
    }
    pub fn is_fully_sent(&self) -> bool {
        self.next == self.end
            && self.lost.is_empty()
            && self.again.is_empty()
            && self.spans.iter().all(|s| s.to_send == 0)
    }
}
