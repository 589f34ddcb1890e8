//! What has been sent and not acknowledged, as ranges of the stream that share
//! their fate: when each was sent last, whether the host has it (SACK, RFC
//! 2018), whether it is taken for lost.
//!
//! ```text
//!   una                                        next
//!    |--sent--|==sacked==|--lost--|==sacked==|--sent--|
//! ```
//!
//! A range is what left in one piece, up to 64 KiB; acknowledgements cut it.

use std::collections::VecDeque;

use mef_packet::Instant;

use super::rate::Snapshot;

/// Most ranges kept; SACK blocks that would cut more finely are not followed.
const MAX_RANGES: usize = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// On its way.
    Flying,
    /// The host has it, but something before it is missing.
    Sacked,
    /// Taken for lost, to be sent again.
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub start: u64,
    pub end: u64,
    /// When it was sent last.
    pub at: Instant,
    pub fate: Fate,
    pub again: bool,
    pub snapshot: Snapshot,
}

impl Sent {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
}

#[derive(Debug, Default)]
pub(super) struct SentRanges {
    ranges: VecDeque<Sent>,
    flying: u64,
    lost: u64,
    sacked: u64,
}

impl SentRanges {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
    /// Bytes on their way.
    pub fn flying(&self) -> u64 {
        self.flying
    }
    /// Bytes to be sent again.
    pub fn lost(&self) -> u64 {
        self.lost
    }
    pub fn sacked(&self) -> u64 {
        self.sacked
    }
    pub fn first(&self) -> Option<&Sent> {
        self.ranges.front()
    }
    pub fn last(&self) -> Option<&Sent> {
        self.ranges.back()
    }

    fn sum(&mut self, fate: Fate) -> &mut u64 {
        match fate {
            Fate::Flying => &mut self.flying,
            Fate::Sacked => &mut self.sacked,
            Fate::Lost => &mut self.lost,
        }
    }

    /// New bytes, after all that is here.
    pub fn push(&mut self, sent: Sent) {
        *self.sum(sent.fate) += sent.len();
        self.ranges.push_back(sent);
    }

    fn set_fate(&mut self, index: usize, fate: Fate) {
        let Some(s) = self.ranges.get_mut(index) else {
            return;
        };
        let (len, old) = (s.len(), s.fate);
        s.fate = fate;
        *self.sum(old) -= len;
        *self.sum(fate) += len;
    }

    /// Index of the first range that ends after `offset`.
    fn find(&self, offset: u64) -> usize {
        self.ranges.partition_point(|s| s.end <= offset)
    }

    /// Makes a range begin at `offset`, if one holds it. False if that would be one too many.
    fn cut(&mut self, offset: u64) -> bool {
        let index = self.find(offset);
        let Some(s) = self.ranges.get_mut(index) else {
            return true;
        };
        if s.start >= offset {
            return true;
        }
        let mut right = *s;
        right.start = offset;
        if self.ranges.len() >= MAX_RANGES {
            return false;
        }
        if let Some(s) = self.ranges.get_mut(index) {
            s.end = offset;
        }
        self.ranges.insert(index + 1, right);
        true
    }

    /// Everything before `una` has been acknowledged: calls `f` with what had not been
    /// sacked before.
    pub fn acknowledge(&mut self, una: u64, mut f: impl FnMut(&Sent)) {
        while let Some(s) = self.ranges.front_mut() {
            if s.start >= una {
                break;
            }
            let mut done = *s;
            done.end = done.end.min(una);
            let whole = s.end <= una;
            s.start = done.end;
            *self.sum(done.fate) -= done.len();
            if whole {
                self.ranges.pop_front();
            }
            if done.fate != Fate::Sacked {
                f(&done);
            }
        }
        if self.ranges.is_empty() && self.ranges.capacity() > 64 {
            self.ranges = VecDeque::new();
        }
    }

    /// The host has `start..end`: calls `f` with what was not known before.
    pub fn sack(&mut self, start: u64, end: u64, mut f: impl FnMut(&Sent)) {
        let first = self.find(start);
        let news = self
            .ranges
            .iter()
            .skip(first)
            .take_while(|s| s.start < end)
            .any(|s| s.fate != Fate::Sacked);
        if !news || !self.cut(start) || !self.cut(end) {
            return;
        }
        let first = self.find(start);
        let mut index = first;
        while let Some(s) = self.ranges.get(index).copied().filter(|s| s.end <= end) {
            if s.fate != Fate::Sacked {
                self.set_fate(index, Fate::Sacked);
                f(&s);
            }
            index += 1;
        }
        // What is sacked is only a range any more: neighbours become one.
        let mut at = first.saturating_sub(1);
        let mut last = index;
        while at < last {
            match (self.ranges.get(at), self.ranges.get(at + 1)) {
                (Some(a), Some(b)) if a.fate == Fate::Sacked && b.fate == Fate::Sacked => {
                    let end = b.end;
                    if let Some(a) = self.ranges.get_mut(at) {
                        a.end = end;
                    }
                    self.ranges.remove(at + 1);
                    last -= 1;
                }
                _ => at += 1,
            }
        }
    }

    /// Takes for lost what is flying and of which `lost` says so; returns their bytes.
    pub fn mark_lost(&mut self, mut lost: impl FnMut(&Sent) -> bool) -> u64 {
        let before = self.lost;
        for index in 0..self.ranges.len() {
            let is_lost = self
                .ranges
                .get(index)
                .is_some_and(|s| s.fate == Fate::Flying && lost(s));
            if is_lost {
                self.set_fate(index, Fate::Lost);
            }
        }
        self.lost - before
    }

    /// Takes the first `bytes` that are not acknowledged for lost; returns how many were flying.
    pub fn mark_first_lost(&mut self, bytes: u64) -> u64 {
        let Some(start) = self.ranges.front().map(|s| s.start) else {
            return 0;
        };
        self.cut(start + bytes);
        self.mark_lost(|s| s.start == start)
    }

    /// Takes what is flying from `offset` on for lost; returns how much that was.
    pub fn mark_lost_from(&mut self, offset: u64) -> u64 {
        self.cut(offset);
        self.mark_lost(|s| s.start >= offset)
    }

    /// What was taken for lost and not sent again is on its way after all.
    pub fn unmark_lost(&mut self) {
        for index in 0..self.ranges.len() {
            if self.ranges.get(index).is_some_and(|s| s.fate == Fate::Lost) {
                self.set_fate(index, Fate::Flying);
            }
        }
    }

    /// The host has thrown away what it had sacked (RFC 2018 §8).
    pub fn forget_sacks(&mut self) {
        for index in 0..self.ranges.len() {
            if self
                .ranges
                .get(index)
                .is_some_and(|s| s.fate == Fate::Sacked)
            {
                self.set_fate(index, Fate::Flying);
            }
        }
    }

    /// The first bytes to be sent again, at most `most` of them.
    pub fn first_lost(&self, most: u64) -> Option<(u64, u64)> {
        if self.lost == 0 {
            return None;
        }
        let s = self.ranges.iter().find(|s| s.fate == Fate::Lost)?;
        Some((s.start, s.end.min(s.start + most)))
    }

    /// `start..end`, the beginning of a range, is sent again.
    pub fn sent_again(&mut self, start: u64, end: u64, now: Instant, snapshot: Snapshot) {
        self.cut(start);
        self.cut(end);
        let index = self.find(start);
        self.set_fate(index, Fate::Flying);
        if let Some(s) = self.ranges.get_mut(index) {
            s.at = now;
            s.again = true;
            s.snapshot = snapshot;
        }
    }

    pub fn memory(&self) -> usize {
        self.ranges.capacity() * std::mem::size_of::<Sent>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(pieces: &[(u64, u64)]) -> SentRanges {
        let mut s = SentRanges::default();
        for &(start, end) in pieces {
            s.push(Sent {
                start,
                end,
                at: Instant::ZERO,
                fate: Fate::Flying,
                again: false,
                snapshot: Snapshot::default(),
            });
        }
        s
    }

    #[test]
    fn sacks_cut_and_join() {
        let mut s = with(&[(0, 1000), (1000, 2000)]);
        let mut news = 0;
        s.sack(500, 1500, |r| news += r.len());
        assert_eq!((news, s.flying(), s.sacked()), (1000, 1000, 1000));
        s.sack(600, 1600, |r| news += r.len());
        assert_eq!((news, s.ranges.len()), (1100, 3));
        assert_eq!(s.mark_lost(|r| r.start < 500), 500);
        assert_eq!(s.first_lost(100), Some((0, 100)));
        s.sent_again(0, 100, Instant::from_millis(1), Snapshot::default());
        assert_eq!(s.first_lost(1000), Some((100, 500)));
        let mut acked = 0;
        s.acknowledge(550, |r| acked += r.len());
        assert_eq!(acked, 500);
        assert_eq!((s.lost(), s.sacked(), s.flying()), (0, 1050, 400));
    }

    proptest! {
        /// Whatever happens, the sums are those of the ranges, and the ranges lie side by side.
        #[test]
        fn sums_hold(ops in proptest::collection::vec((0u8..5, 0u64..10_000, 0u64..3000), 1..80)) {
            let mut s = with(&[(0, 3000), (3000, 6000), (6000, 10_000)]);
            let mut una = 0;
            for (op, at, len) in ops {
                match op {
                    0 => {
                        una = una.max(at.min(una + len));
                        s.acknowledge(una, |_| {});
                    }
                    1 => s.sack(at.max(una), (at.max(una) + len).min(10_000), |_| {}),
                    2 => {
                        s.mark_lost(|r| r.start >= at);
                    }
                    3 => {
                        s.mark_first_lost(len + 1);
                    }
                    _ => {
                        if let Some((a, b)) = s.first_lost(len + 1) {
                            s.sent_again(a, b, Instant::ZERO, Snapshot::default());
                        }
                    }
                }
                let mut at = una;
                let mut sums = [0u64; 3];
                for r in s.ranges.iter() {
                    prop_assert_eq!(r.start, at);
                    prop_assert!(r.end > r.start);
                    at = r.end;
                    sums[r.fate as usize] += r.len();
                }
                prop_assert_eq!(at, 10_000.max(una));
                prop_assert_eq!(sums, [s.flying(), s.sacked(), s.lost()]);
            }
        }
    }
}
