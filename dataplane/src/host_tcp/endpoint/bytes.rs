//! Bytes of one direction of a connection, addressed by their offset in the
//! stream. Memory comes in chunks as bytes arrive and goes as they leave, so
//! that a connection costs what it holds, not what it may hold.

use std::collections::VecDeque;

/// Most bytes per chunk. Small streams get smaller ones.
pub(super) const CHUNK: usize = 16 * 1024;
const SMALLEST: usize = 2 * 1024;
/// Empty chunks kept for reuse while the connection is busy: memory that has just been used is
/// in the cache, and need not be asked of the system again.
const SPARE: usize = 64;

/// A window onto a byte stream; out-of-order bytes leave gaps whose content means nothing.
#[derive(Debug, Default)]
pub(super) struct ByteStream {
    /// Stream offset of the first byte of the first chunk.
    base: u64,
    /// Bytes before this offset are gone.
    start: u64,
    chunks: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl ByteStream {
    fn locate(&self, offset: u64) -> (usize, usize) {
        let from_base = offset.saturating_sub(self.base);
        (
            (from_base / CHUNK as u64) as usize,
            (from_base % CHUNK as u64) as usize,
        )
    }

    /// Stores `data` at `offset`; what lies before `start` is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let skip = self.start.saturating_sub(offset);
        let Some(mut rest) = usize::try_from(skip).ok().and_then(|s| data.get(s..)) else {
            return;
        };
        let mut at = offset + skip;
        while !rest.is_empty() {
            let (index, within) = self.locate(at);
            while self.chunks.len() <= index {
                self.chunks.push_back(Vec::new());
            }
            let (part, later) = rest.split_at(rest.len().min(CHUNK - within));
            if let Some(chunk) = self.chunks.get_mut(index) {
                make_room(chunk, within + part.len(), &mut self.spare);
                if chunk.len() < within {
                    chunk.resize(within, 0);
                }
                let (over, new) = part.split_at(part.len().min(chunk.len() - within));
                if let Some(old) = chunk.get_mut(within..within + over.len()) {
                    old.copy_from_slice(over);
                }
                chunk.extend_from_slice(new);
            }
            at += part.len() as u64;
            rest = later;
        }
    }

    /// The contiguous bytes from `offset` on, up to `end`.
    pub fn contiguous(&self, offset: u64, end: u64) -> &[u8] {
        let (index, within) = self.locate(offset);
        let wanted = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let chunk = self.chunks.get(index).map_or(&[][..], Vec::as_slice);
        let to = chunk.len().min(within.saturating_add(wanted));
        chunk.get(within..to).unwrap_or(&[])
    }

    /// Appends the bytes from `offset` up to `end` to `out`.
    pub fn copy_to(&self, mut offset: u64, end: u64, out: &mut Vec<u8>) {
        while offset < end {
            let part = self.contiguous(offset, end);
            if part.is_empty() {
                return;
            }
            out.extend_from_slice(part);
            offset += part.len() as u64;
        }
    }

    /// Drops the bytes before `offset`. `end` is where the stream ends so far: with nothing
    /// left, the memory is free for other offsets.
    pub fn consume_to(&mut self, offset: u64, end: u64) {
        self.start = self.start.max(offset);
        while self.start >= self.base + CHUNK as u64 && !self.chunks.is_empty() {
            self.base += CHUNK as u64;
            if let Some(chunk) = self.chunks.pop_front() {
                self.recycle(chunk);
            }
        }
        if self.start >= end {
            while let Some(chunk) = self.chunks.pop_front() {
                self.recycle(chunk);
            }
            self.base = self.start;
        }
        self.compact(end);
    }

    /// A little that stays does so without what lay before it: it may stay for long.
    fn compact(&mut self, end: u64) {
        let live = end.saturating_sub(self.start);
        if live > CHUNK as u64 / 2 || self.start - self.base < CHUNK as u64 / 4 {
            return;
        }
        let mut rest = Vec::new();
        rest.reserve_exact((live as usize).next_power_of_two().max(SMALLEST));
        self.copy_to(self.start, end, &mut rest);
        // Bytes beyond a gap that is still to be written stay where they are.
        if rest.len() as u64 == live {
            while let Some(chunk) = self.chunks.pop_front() {
                self.recycle(chunk);
            }
            self.chunks.push_back(rest);
            self.base = self.start;
        }
    }

    fn recycle(&mut self, mut chunk: Vec<u8>) {
        if chunk.capacity() >= CHUNK && self.spare.len() < SPARE {
            chunk.clear();
            self.spare.push(chunk);
        }
    }

    /// Gives back what is kept for reuse.
    pub fn release_spare(&mut self) {
        self.spare = Vec::new();
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        let of = |v: &Vec<u8>| v.capacity() + std::mem::size_of::<Vec<u8>>();
        self.chunks.iter().map(of).sum::<usize>() + self.spare.iter().map(of).sum::<usize>()
    }
}

/// Lets `chunk` hold `len` bytes: by a spare one if it is new, which while the connection is busy saves
/// growing it by and by, or by growing twofold.
fn make_room(chunk: &mut Vec<u8>, len: usize, spare: &mut Vec<Vec<u8>>) {
    if chunk.capacity() >= len {
        return;
    }
    if chunk.is_empty() {
        if let Some(s) = spare.pop() {
            *chunk = s;
            return;
        }
    }
    let capacity = len.next_power_of_two().clamp(SMALLEST, CHUNK);
    chunk.reserve_exact(capacity.saturating_sub(chunk.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_little_that_stays_costs_little() {
        let mut s = ByteStream::default();
        s.write(0, &[1; 20_000]);
        s.consume_to(18_000, 20_000);
        s.release_spare();
        // 3,616 bytes of the second chunk were written.
        assert!(s.memory() < 4096 + 64, "{}", s.memory());
        s.write(20_000, &[2; 30_000]);
        let mut out = Vec::new();
        s.copy_to(18_000, 50_000, &mut out);
        assert!(out[..2000] == [1; 2000] && out[2000..] == [2; 30_000]);
    }

    #[test]
    fn memory_follows_what_is_held() {
        let mut s = ByteStream::default();
        assert_eq!(s.memory(), 0);
        s.write(0, &[1; 100]);
        // 3,616 bytes of the second chunk were written.
        assert!(s.memory() < 4096 + 64, "{}", s.memory());
        s.write(100, &[2; 1 << 20]);
        assert!(s.memory() > 1 << 20 && s.memory() < (1 << 20) + (64 << 10));
        s.consume_to(1 << 20, (1 << 20) + 100);
        assert!(s.memory() <= (SPARE + 1) * (CHUNK + 64), "{}", s.memory());
        s.consume_to((1 << 20) + 100, (1 << 20) + 100);
        s.release_spare();
        assert_eq!(s.memory(), 0);
    }

    proptest! {
        /// Any order of writes of the right bytes gives the right bytes.
        #[test]
        fn holds_what_was_written(
            pieces in proptest::collection::vec((0u64..100_000, 1usize..40_000), 1..40),
            consume in 0u64..50_000,
        ) {
            let byte = |i: u64| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8;
            let mut s = ByteStream::default();
            let mut covered = vec![false; 150_000];
            let mut consumed = 0;
            for (n, (at, len)) in pieces.into_iter().enumerate() {
                let data: Vec<u8> = (at..at + len as u64).map(byte).collect();
                s.write(at, &data);
                for i in at..at + len as u64 {
                    covered[i as usize] = true;
                }
                if n == 3 {
                    consumed = consume;
                    s.consume_to(consume, 150_000);
                }
            }
            let mut at = consumed;
            while at < 149_999 {
                if !covered[at as usize] {
                    at += 1;
                    continue;
                }
                let mut end = at;
                while end < 149_999 && covered[end as usize] {
                    end += 1;
                }
                let mut out = Vec::new();
                s.copy_to(at, end, &mut out);
                // Bytes consumed before they were written again are not held.
                let expected: Vec<u8> = (at..end).map(byte).collect();
                prop_assert_eq!(&out, &expected);
                at = end;
            }
        }
    }
}
