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
//! retransmission, for as long as there is repair left to send. Spans are in
//! `spans`.

mod spans;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use mef_packet::Instant;

use crate::chunks::{ChunkPool, StreamBuffer, Use};
use crate::codec::RESET_ECHO;
use crate::ranges::RangeSet;
use spans::{Span, AGAIN};

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
    /// Every byte below was acknowledged or lost once.
    settled: u64,
    /// Below, no middle will be opened any more.
    passed: u64,
    /// When the first loss beyond was declared.
    torn_since: Option<Instant>,
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
            settled: 0,
            passed: 0,
            torn_since: None,
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
    /// Losses are declared in the order of sending.
    pub fn on_lost(&mut self, now: Instant, offset: u64, len: u64, generation: u8) {
        let start = offset.max(self.una);
        // The number may have been that of another flow, whose packets are no concern of this one.
        let end = (offset + len).min(self.next);
        if generation > 0 && end > self.settled {
            // Bytes go out in order for the first time, and these for the first time after all below.
            self.settled = end;
            self.torn_since.get_or_insert(now);
        }
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
            .find(|&(s, _, g)| !self.is_protected(s, g));
        if let Some((offset, mut end, generation)) = lost {
            // Pieces of another packet size are joined, or a smaller MTU would halve the packets again and again.
            while end - offset < max as u64 {
                match self.lost.get(&end) {
                    Some(&(e, g)) if g == generation && !self.is_protected(end, g) => end = e,
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
        if let Some(base) = self.middle_ready() {
            return Some(Next::Repair { base });
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
        self.repair_due().map(|base| Next::Repair { base })
    }

    /// Whether a span answers this loss with repair.
    fn is_protected(&self, offset: u64, generation: u8) -> bool {
        self.spans.iter().any(|s| s.protects(offset, generation))
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
        let failed = generation >= AGAIN && self.spans.iter().any(|s| s.failed_at(offset));
        if generation >= TWICE_FROM || failed {
            self.again.push_back((offset, end, generation));
        }
        0
    }

    /// Appends `len` stream bytes to a packet; `false` where some are not held.
    pub fn append_to(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> bool {
        self.buffer.append_to(offset, len, out)
    }

    pub fn is_fully_sent(&self) -> bool {
        self.next == self.end
            && self.lost.is_empty()
            && self.again.is_empty()
            && self.repair_due().is_none()
    }
}
