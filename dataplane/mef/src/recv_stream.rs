//! The receiving half of a split flow: puts bytes in order for the host.
//!
//! ```text
//!  0 ...... head ........ read ............ ready ............ highest
//!    freed       history       for the host       gaps and islands
//! ```
//!
//! Bytes that the host has read stay for about a round trip, because a repair
//! span starts at the sender's oldest unacknowledged byte, which it knows a
//! round trip late, and a symbol is recovered from all others of its span.

use core::time::Duration;
use std::collections::VecDeque;

use mef_packet::Instant;

use crate::chunks::{ChunkPool, StreamBuffer, Use};
use crate::codec::SpanId;
use crate::ranges::RangeSet;
use crate::repair::SpanDecoder;

/// Why a peer's frame was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("bytes beyond the credit that was granted")]
    BeyondCredit,
    #[error("bytes beyond the end of the stream, or two different ends")]
    BeyondEnd,
    #[error("no memory left within the budget")]
    NoMemory,
}

#[derive(Debug)]
struct Span {
    base: u64,
    symbols: u16,
    symbol: usize,
    last: u16,
    repairs: Vec<(u16, Vec<u8>)>,
}

impl Span {
    /// Where the first symbol starts: on a multiple of the symbols' size, unless it is alone. Its
    /// bytes below `base` count as zeros.
    fn first_symbol(&self) -> u64 {
        if self.symbols == 1 {
            self.base
        } else {
            self.base - self.base % self.symbol as u64
        }
    }
    fn end(&self) -> u64 {
        self.first_symbol()
            + (u64::from(self.symbols) - 1) * self.symbol as u64
            + u64::from(self.last)
    }

    /// Gives back what its symbols hold.
    fn release(&self, pool: &mut ChunkPool) {
        pool.give(Use::Receiving, self.repairs.len() * self.symbol);
    }
}

/// Most spans of one flow for which repair is kept.
const MAX_SPANS: usize = 64;

#[derive(Debug)]
pub struct RecvStream {
    buffer: StreamBuffer,
    received: RangeSet,
    read: u64,
    /// Everything that has arrived lies below.
    highest: u64,
    end: Option<u64>,
    reset: Option<u8>,
    max_offset: u64,
    /// Credit kept ahead of what the host has read.
    window: u64,
    spans: VecDeque<Span>,
    /// (when, offset read by then): what lies below the oldest entry may be freed.
    history: VecDeque<(Instant, u64)>,
    recovered: u64,
}

impl RecvStream {
    /// A stream that grants `window` bytes ahead of what was read.
    pub fn new(window: u64) -> Self {
        Self {
            buffer: StreamBuffer::new(),
            received: RangeSet::new(),
            read: 0,
            highest: 0,
            end: None,
            reset: None,
            max_offset: window,
            window,
            spans: VecDeque::new(),
            history: VecDeque::new(),
            recovered: 0,
        }
    }

    /// Everything up to here arrived.
    pub fn ready(&self) -> u64 {
        self.received
            .first()
            .filter(|r| r.0 == 0)
            .map_or(0, |r| r.1)
    }
    pub fn readable(&self) -> u64 {
        self.ready() - self.read
    }
    pub fn read_offset(&self) -> u64 {
        self.read
    }
    /// Highest offset seen, or the end where it is known.
    pub fn highest(&self) -> u64 {
        self.end.unwrap_or(self.highest)
    }
    /// Highest offset that bytes arrived for.
    pub fn arrived(&self) -> u64 {
        self.highest
    }
    /// Where the stream ends, once the peer has said so.
    pub fn end(&self) -> Option<u64> {
        self.end
    }
    /// The connection is to be reset behind the last byte.
    pub fn reset(&self) -> Option<u8> {
        self.reset
    }
    /// Every byte was read and the end is known.
    pub fn is_finished(&self) -> bool {
        self.end.is_some_and(|e| self.read >= e)
    }
    /// Bytes that came back through repair.
    pub fn recovered(&self) -> u64 {
        self.recovered
    }

    /// Takes bytes from the link.
    ///
    /// # Errors
    /// See [`StreamError`]; the packet must then not be acknowledged.
    pub fn on_data(
        &mut self,
        pool: &mut ChunkPool,
        offset: u64,
        data: &[u8],
    ) -> Result<(), StreamError> {
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(StreamError::BeyondEnd)?;
        if end > self.max_offset {
            return Err(StreamError::BeyondCredit);
        }
        if self.end.is_some_and(|e| end > e) {
            return Err(StreamError::BeyondEnd);
        }
        self.store(pool, offset, data)?;
        self.try_spans(pool);
        Ok(())
    }

    fn store(&mut self, pool: &mut ChunkPool, offset: u64, data: &[u8]) -> Result<(), StreamError> {
        let end = offset + data.len() as u64;
        if !self.received.covers(offset, end) {
            let stored = self.buffer.write(pool, offset, data);
            if stored < data.len() {
                return Err(StreamError::NoMemory);
            }
            self.received.insert(offset, end);
        }
        self.highest = self.highest.max(end);
        Ok(())
    }

    /// The peer says that the stream ends at `end`, with a reset behind it where `reset` says so.
    ///
    /// # Errors
    /// `BeyondEnd` where more was already received or another end was stated.
    pub fn on_end(&mut self, end: u64, reset: Option<u8>) -> Result<(), StreamError> {
        let known = self.end.unwrap_or(end);
        if end < self.highest || known != end {
            return Err(StreamError::BeyondEnd);
        }
        self.end = Some(end);
        self.reset = self.reset.or(reset);
        Ok(())
    }

    /// Takes a repair symbol; `true` if bytes came back through it.
    pub fn on_repair(
        &mut self,
        pool: &mut ChunkPool,
        id: SpanId,
        index: u16,
        symbol: &[u8],
    ) -> bool {
        let base = id.base_near(self.ready());
        let at = match self.spans.iter().position(|s| {
            s.base == base
                && s.symbols == id.symbols
                && s.last == id.last
                && s.symbol == symbol.len()
        }) {
            Some(i) => i,
            None => {
                let span = Span {
                    base,
                    symbols: id.symbols,
                    symbol: symbol.len(),
                    last: id.last,
                    repairs: Vec::new(),
                };
                let beyond =
                    span.end() > self.max_offset || self.end.is_some_and(|e| span.end() > e);
                if beyond || self.received.covers(base, span.end()) {
                    return false;
                }
                if self.spans.len() >= MAX_SPANS {
                    if let Some(old) = self.spans.pop_front() {
                        old.release(pool);
                    }
                }
                self.spans.push_back(span);
                self.spans.len() - 1
            }
        };
        if let Some(span) = self.spans.get_mut(at) {
            if span.repairs.len() < usize::from(span.symbols)
                && !span.repairs.iter().any(|r| r.0 == index)
                && pool.take(Use::Receiving, symbol.len())
            {
                span.repairs.push((index, symbol.to_vec()));
            }
        }
        self.try_spans(pool)
    }

    fn try_spans(&mut self, pool: &mut ChunkPool) -> bool {
        let mut back = false;
        let mut i = 0;
        while let Some(span) = self.spans.get(i) {
            let (base, end) = (span.base, span.end());
            if self.received.covers(base, end) {
                if let Some(span) = self.spans.remove(i) {
                    span.release(pool);
                }
                continue;
            }
            if self.missing(span) <= span.repairs.len() {
                if let Some(span) = self.spans.remove(i) {
                    back |= self.decode(pool, &span);
                    span.release(pool);
                }
                continue;
            }
            i += 1;
        }
        back
    }

    /// Symbols of `span` of which some bytes are missing.
    fn missing(&self, span: &Span) -> usize {
        let (mut count, mut last) = (0, u64::MAX);
        for (s, e) in self.received.gaps(span.base, span.end()) {
            let first = (s - span.first_symbol()) / span.symbol as u64;
            let until = (e - 1 - span.first_symbol()) / span.symbol as u64;
            count += until - first + 1 - u64::from(first == last);
            last = until;
        }
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    fn decode(&mut self, pool: &mut ChunkPool, span: &Span) -> bool {
        let first = span.first_symbol();
        let lead = (span.base - first) as usize;
        let len = span.end() - first;
        let Ok(mut decoder) = SpanDecoder::new(len as usize, span.symbol) else {
            return false;
        };
        let mut piece = vec![0; span.symbol];
        for k in 0..u64::from(span.symbols) {
            let symbol = first + k * span.symbol as u64;
            let start = symbol.max(span.base);
            let end = (symbol + span.symbol as u64).min(span.end());
            if !self.received.covers(start, end) {
                continue;
            }
            let Some(p) = piece.get_mut(..(end - symbol) as usize) else {
                continue;
            };
            let (zeros, bytes) = p.split_at_mut((start - symbol) as usize);
            zeros.fill(0);
            // A head that was already freed: this span can no longer be solved.
            if !self.buffer.copy_out(start, bytes)
                || decoder.add_data((symbol - first) as usize, p).is_err()
            {
                return false;
            }
        }
        for (index, symbol) in &span.repairs {
            if decoder.add_repair(usize::from(*index), symbol).is_err() {
                return false;
            }
        }
        let mut back = false;
        for found in decoder.try_decode().unwrap_or_default() {
            let skip = lead.saturating_sub(found.offset);
            let bytes = found.bytes.get(skip..).unwrap_or_default();
            let offset = first + (found.offset + skip) as u64;
            if self.store(pool, offset, bytes).is_ok() {
                self.recovered += bytes.len() as u64;
                back = true;
            }
        }
        back
    }

    /// The bytes in order that the host has not read, as far as they lie in one piece.
    pub fn peek(&self) -> &[u8] {
        let n = usize::try_from(self.readable()).unwrap_or(usize::MAX);
        self.buffer.slice(self.read, n)
    }

    /// The host took `n` bytes.
    pub fn consume(&mut self, now: Instant, n: usize) {
        self.read = (self.read + n as u64).min(self.ready());
        match self.history.back_mut() {
            Some(h) if now.since(h.0) < Duration::from_millis(5) => h.1 = self.read,
            _ => self.history.push_back((now, self.read)),
        }
    }

    /// Frees history older than `keep`.
    pub fn free(&mut self, pool: &mut ChunkPool, now: Instant, keep: Duration) {
        let mut upto = None;
        while self.history.front().is_some_and(|h| now.since(h.0) > keep) {
            upto = self.history.pop_front().map(|h| h.1);
        }
        if let Some(u) = upto {
            self.buffer.free_before(pool, u);
        }
        if self.history.is_empty() && self.read >= self.highest {
            // Nothing is held: a flow that waits keeps no memory.
            self.buffer.clear(pool);
            self.history = VecDeque::new();
        }
    }

    /// The credit to announce, if it has grown enough to be worth saying.
    pub fn credit_due(&self) -> bool {
        // The end is stated ahead of the last bytes: they may still lie beyond the credit.
        self.end.is_none_or(|e| e > self.max_offset)
            && self.read + self.window >= self.max_offset + self.window / 8
    }
    /// How far the peer may send.
    pub fn granted(&self) -> u64 {
        self.max_offset
    }
    /// Changes how far ahead of the host's reading the peer may send; what was granted stays granted.
    pub fn set_window(&mut self, window: u64) {
        self.window = window;
    }
    /// Raises the credit to what reading allows and returns it.
    pub fn grant(&mut self) -> u64 {
        self.max_offset = self.max_offset.max(self.read + self.window);
        self.max_offset
    }
    pub fn release(&mut self, pool: &mut ChunkPool) {
        self.buffer.clear(pool);
        for span in core::mem::take(&mut self.spans) {
            span.release(pool);
        }
    }
}
