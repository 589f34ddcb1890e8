//! Repair of a stream: spans, what repair they get, and when they are given up.
//!
//! ```text
//!      una        settled          next       settled: every byte below was
//!  ----|-----------|----------------|--->     acknowledged or lost once
//!    [middle][middle]            [ tail ]
//! ```
//!
//! A tail is everything unacknowledged once the queue has run empty; its losses
//! are answered with repair alone. A middle is a stretch of a bulk transfer on
//! a path so long and lossy that in each round trip bytes are lost which had
//! been sent again: its first losses are sent again, and a few repair symbols
//! make good what is lost of those, so that the reader waits one round trip for
//! what is lost and not now one, now two, three or four.

use core::ops::Range;
use core::time::Duration;

use mef_packet::Instant;

use super::{End, SendStream, MAX_SPANS, QUIET};
use crate::chunks::{ChunkPool, StreamBuffer, Use};
use crate::codec::{SpanId, MAX_REPAIR_SYMBOLS, MAX_SPAN_SYMBOLS};
use crate::repair::{self, SpanEncoder};

#[derive(Debug)]
pub(super) struct Span {
    pub(super) base: u64,
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
    /// A stretch of a bulk transfer: only what is lost again is left to repair.
    middle: bool,
    /// Probability with which it may need another round trip.
    epsilon: f64,
    /// What the repair rule was asked last: missing, known to be lost, on their way, arrived.
    asked: Option<[usize; 4]>,
    /// Bytes of repair symbols that were made.
    pub(super) made: usize,
}

/// What was sent again has been lost when it is lost for the second time.
pub(super) const AGAIN: u8 = 2;

impl Span {
    pub(super) fn end(&self) -> u64 {
        self.base + self.len
    }

    /// Whether bytes from `offset` on that were lost for the `generation`-th time are left to repair.
    pub(super) fn protects(&self, offset: u64, generation: u8) -> bool {
        let left = !self.middle || generation >= AGAIN;
        left && !self.spent && offset >= self.base && offset < self.end()
    }

    /// Whether bytes from `offset` on were to be brought back by repair that did not suffice.
    pub(super) fn failed_at(&self, offset: u64) -> bool {
        self.middle && self.spent && offset >= self.base && offset < self.end()
    }

    /// Its next symbol, if one is to go out and is made.
    fn is_ready(&self) -> bool {
        self.to_send > 0 && self.encoder.is_encoded(0)
    }

    /// Losses inside are retransmitted from now on.
    fn give_up(&mut self) {
        self.spent = true;
        self.to_send = 0;
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

impl SendStream {
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
        let base = self.spanned.max(self.una);
        self.cut_spans(base..self.next, symbol, MAX_SPAN_SYMBOLS, None);
        self.last_span = Some(now);
    }

    /// Cuts a range into spans of at most `most` symbols of `symbol` bytes, of middles where `middle`
    /// says with which probability each may need another round trip.
    fn cut_spans(&mut self, range: Range<u64>, symbol: usize, most: usize, middle: Option<f64>) {
        let (mut base, end) = (range.start, range.end);
        while base < end && self.spans.len() < MAX_SPANS {
            let rest = end - base;
            // Symbols lie on multiples of their size, as packets do; one alone is just its bytes.
            let (lead, symbol) = if rest <= symbol as u64 {
                (0, (rest as usize).next_multiple_of(2))
            } else {
                ((base % symbol as u64) as usize, symbol)
            };
            let len = rest.min((symbol * most - lead) as u64);
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
                middle: middle.is_some(),
                epsilon: middle.unwrap_or(repair::EPSILON),
                asked: None,
                made: 0,
            });
            base += len;
        }
        self.spanned = self.spanned.max(base);
    }

    /// When the first loss was declared of the stretch that [`open_middle`](Self::open_middle) would cover.
    pub fn torn_since(&self) -> Option<Instant> {
        self.torn_since
    }

    /// What [`open_middle`](Self::open_middle) would cover.
    fn torn(&self) -> Range<u64> {
        let from = self.spanned.max(self.una).max(self.passed);
        let first = self.acked.gaps(from, self.settled).next();
        first.map_or(self.settled, |(s, _)| s)..self.settled
    }

    /// How many symbols of `symbol` bytes the stretch has.
    pub fn torn_symbols(&self, symbol: usize) -> usize {
        let torn = self.torn();
        let bytes = torn.end.saturating_sub(torn.start);
        usize::try_from(bytes.div_ceil(symbol as u64)).unwrap_or(0)
    }

    /// Covers the stretch whose first transmissions are all settled with spans of at most `most` symbols.
    pub fn open_middle(&mut self, symbol: usize, most: usize, epsilon: f64) {
        self.cut_spans(self.torn(), symbol, most, Some(epsilon));
        self.pass_middle();
    }

    /// The stretch gets no repair.
    pub fn pass_middle(&mut self) {
        self.passed = self.settled;
        self.torn_since = None;
    }

    /// The next repair symbol of a middle that is made.
    pub(super) fn middle_ready(&self) -> Option<u64> {
        let ready = |s: &&Span| s.middle && s.is_ready();
        self.spans.iter().find(ready).map(|s| s.base)
    }

    /// The next repair symbol.
    pub(super) fn repair_due(&self) -> Option<u64> {
        self.spans.iter().find(|s| s.to_send > 0).map(|s| s.base)
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
            span.give_up();
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
            empty_since,
            ..
        } = self;
        // At the end nothing follows that a reader could take meanwhile.
        let at_end = empty_since.is_some();
        for span in spans.iter_mut().filter(|s| !s.spent) {
            let (base, end) = (span.base.max(*una), span.end());
            let missing: u64 = acked
                .gaps(base, end)
                .map(|(s, e)| (e - s).div_ceil(span.symbol as u64))
                .sum();
            // Of a middle, what was lost once is sent again before any repair: it is as good as in flight.
            let (first, from) = (
                lost.range(..=base).next_back(),
                if span.middle { AGAIN } else { 0 },
            );
            let first = first.map_or(base, |(s, _)| *s).min(end);
            let known_lost: u64 = lost
                .range(first..end)
                .filter(|(_, &(e, g))| e > base && g >= from)
                .map(|(s, (e, _))| (e - s).div_ceil(span.symbol as u64))
                .sum();
            let missing = usize::try_from(missing)
                .unwrap_or(span.symbols)
                .min(span.symbols);
            let known_lost = usize::try_from(known_lost).unwrap_or(missing).min(missing);
            // What is still to be sent counts as in flight: asking again must not ask twice.
            let on_its_way = span.in_flight + span.to_send;
            let asked = Some([missing, known_lost, on_its_way, span.arrived]);
            if span.asked == asked && !at_end {
                continue;
            }
            span.asked = asked;
            if span.middle && known_lost > on_its_way + span.arrived {
                // It takes another round trip. By then the receiver may have freed what its host has
                // read of the span, so these bytes themselves are sent.
                span.give_up();
                continue;
            }
            let epsilon = if at_end {
                span.epsilon.min(repair::EPSILON)
            } else {
                span.epsilon
            };
            let more = repair::repairs_needed(
                missing - known_lost,
                known_lost,
                on_its_way,
                span.arrived,
                loss,
                epsilon,
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
            span.give_up();
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
    /// All that `span` will send has been heard of, yet bytes are missing that nothing is on its way for.
    fn is_awaited(&self, span: &Span) -> Option<bool> {
        if span.to_send > 0 || span.in_flight > 0 {
            return None;
        }
        let mut missing = false;
        for (start, _) in self.acked.gaps(span.base.max(self.una), span.end()) {
            missing = true;
            let before = self.lost.range(..=start).next_back();
            if before.is_none_or(|(_, &(end, _))| end <= start) {
                return None;
            }
        }
        Some(missing)
    }

    /// The middle that the reader waits for.
    fn middle_at_head(&self) -> Option<&Span> {
        let una = self.una;
        let front = self.spans.front();
        front.filter(|s| s.middle && !s.spent && s.base <= una)
    }

    /// Every span that still relies on repair has sent what it will and heard of it all, yet bytes
    /// are missing. Spans whose losses are retransmitted are no reason to wait, and of middles only
    /// the one counts that the reader waits for.
    pub fn waits_for_word(&self) -> bool {
        if let Some(span) = self.middle_at_head() {
            return self.is_awaited(span) == Some(true);
        }
        let mut missing = false;
        for span in self.spans.iter().filter(|s| !s.spent && !s.middle) {
            match self.is_awaited(span) {
                Some(is) => missing |= is,
                None => return false,
            }
        }
        missing
    }
    /// The span at `base` cannot be repaired any more: its losses are retransmitted.
    pub fn give_up_span(&mut self, base: u64) {
        if let Some(s) = self.spans.iter_mut().find(|s| s.base == base) {
            s.give_up();
        }
    }
    /// Repair did not bring the spans home: their losses are retransmitted.
    pub fn give_up_spans(&mut self) {
        let given_up = match self.middle_at_head() {
            Some(_) => 1,
            None => self.spans.len(),
        };
        self.spans.iter_mut().take(given_up).for_each(Span::give_up);
    }
    /// Whether any span waits for the repair rule.
    pub fn has_spans(&self) -> bool {
        !self.spans.is_empty()
    }
}
