//! Stream bytes in equal chunks from one memory budget. Everything a router
//! holds for its flows lives here, so the budget in the configuration is the
//! truth: when it is spent, hosts are not read and their windows close.

use std::collections::VecDeque;

/// Bytes per chunk.
pub const CHUNK: usize = 16 * 1024;

type Chunk = Box<[u8]>;

/// Hands out chunks up to a limit and keeps those given back for reuse.
#[derive(Debug)]
pub struct ChunkPool {
    free: Vec<Chunk>,
    used: usize,
    /// Of these, chunks with bytes that are to be sent.
    sending: usize,
    limit: usize,
}

impl ChunkPool {
    /// A pool that hands out at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self {
            free: Vec::new(),
            used: 0,
            sending: 0,
            limit: usize::try_from(bytes).unwrap_or(usize::MAX) / CHUNK,
        }
    }
    /// Half of the budget is for what is to be sent: the rest is promised to the peers as credit.
    fn get(&mut self, sending: bool) -> Option<Chunk> {
        if self.used >= self.limit || (sending && !self.may_send_more()) {
            return None;
        }
        self.used += 1;
        self.sending += usize::from(sending);
        Some(
            self.free
                .pop()
                .unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()),
        )
    }
    fn put(&mut self, chunk: Chunk, sending: bool) {
        self.used -= 1;
        self.sending -= usize::from(sending);
        // What is free beyond a burst goes back to the system.
        if self.free.len() < 4096 {
            self.free.push(chunk);
        }
    }
    pub fn used_bytes(&self) -> u64 {
        (self.used * CHUNK) as u64
    }
    pub fn limit_bytes(&self) -> u64 {
        (self.limit * CHUNK) as u64
    }
    /// Whether hosts may be read: what they send has a place.
    pub fn may_send_more(&self) -> bool {
        self.sending < self.limit.div_ceil(2)
    }
}

/// A sparse window onto a byte stream, addressed by stream offset.
#[derive(Debug, Default)]
pub struct StreamBuffer {
    /// Number of the chunk at the front.
    first: u64,
    chunks: VecDeque<Option<Chunk>>,
    sending: bool,
}

fn locate(offset: u64) -> (u64, usize) {
    (offset / CHUNK as u64, (offset % CHUNK as u64) as usize)
}

impl StreamBuffer {
    /// A buffer of bytes that have arrived.
    pub const fn new() -> Self {
        Self {
            first: 0,
            chunks: VecDeque::new(),
            sending: false,
        }
    }
    /// A buffer of bytes that are to be sent.
    pub const fn for_sending() -> Self {
        Self {
            first: 0,
            chunks: VecDeque::new(),
            sending: true,
        }
    }

    /// Stores `data` at `offset`; returns how many bytes fitted into the budget.
    /// Bytes below what was freed are counted as stored and ignored.
    pub fn write(&mut self, pool: &mut ChunkPool, offset: u64, data: &[u8]) -> usize {
        let mut done = 0;
        if offset < self.first * CHUNK as u64 {
            done = usize::try_from(self.first * CHUNK as u64 - offset)
                .unwrap_or(usize::MAX)
                .min(data.len());
        }
        while let Some(rest) = data.get(done..).filter(|r| !r.is_empty()) {
            let (n, at) = locate(offset + done as u64);
            let Some(index) = n
                .checked_sub(self.first)
                .and_then(|i| usize::try_from(i).ok())
            else {
                break;
            };
            while self.chunks.len() <= index {
                self.chunks.push_back(None);
            }
            let Some(slot) = self.chunks.get_mut(index) else {
                break;
            };
            if slot.is_none() {
                *slot = pool.get(self.sending);
            }
            let Some(chunk) = slot else { break };
            let take = rest.len().min(CHUNK - at);
            if let (Some(to), Some(from)) = (chunk.get_mut(at..at + take), rest.get(..take)) {
                to.copy_from_slice(from);
            }
            done += take;
        }
        done
    }

    /// The bytes stored from `offset` to the end of its chunk, at most `max`; empty where nothing is stored.
    pub fn slice(&self, offset: u64, max: usize) -> &[u8] {
        let (n, at) = locate(offset);
        n.checked_sub(self.first)
            .and_then(|i| usize::try_from(i).ok())
            .and_then(|i| self.chunks.get(i))
            .and_then(|c| c.as_ref())
            .and_then(|c| c.get(at..(at + max).min(CHUNK)))
            .unwrap_or(&[])
    }

    /// Copies `out.len()` bytes from `offset`; `false` where some are not stored.
    pub fn copy_out(&self, offset: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            let s = self.slice(offset + done as u64, out.len() - done);
            if s.is_empty() {
                return false;
            }
            if let Some(o) = out.get_mut(done..done + s.len()) {
                o.copy_from_slice(s);
            }
            done += s.len();
        }
        true
    }

    /// Gives back every chunk that lies wholly below `offset`.
    pub fn free_before(&mut self, pool: &mut ChunkPool, offset: u64) {
        let (n, _) = locate(offset);
        while self.first < n {
            match self.chunks.pop_front() {
                Some(c) => {
                    if let Some(c) = c {
                        pool.put(c, self.sending);
                    }
                    self.first += 1;
                }
                None => self.first = n,
            }
        }
    }

    pub fn clear(&mut self, pool: &mut ChunkPool) {
        for c in self.chunks.drain(..).flatten() {
            pool.put(c, self.sending);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_what_was_written(writes in proptest::collection::vec((0u64..200_000, 1usize..40_000), 1..20)) {
            let mut pool = ChunkPool::new(1 << 22);
            let mut b = StreamBuffer::new();
            let mut model = vec![None; 300_000];
            for (i, (off, len)) in writes.into_iter().enumerate() {
                let data: Vec<u8> = (0..len).map(|k| (k * 7 + i) as u8).collect();
                prop_assert_eq!(b.write(&mut pool, off, &data), len);
                for (k, d) in data.iter().enumerate() { model[off as usize + k] = Some(*d); }
            }
            for (i, m) in model.iter().enumerate().step_by(97) {
                if let Some(m) = m {
                    let mut one = [0];
                    prop_assert!(b.copy_out(i as u64, &mut one));
                    prop_assert_eq!(one[0], *m);
                }
            }
            b.free_before(&mut pool, 300_000);
            b.clear(&mut pool);
            prop_assert_eq!(pool.used_bytes(), 0);
        }
    }

    #[test]
    fn what_is_to_be_sent_leaves_room_for_what_arrives() {
        let mut pool = ChunkPool::new(4 * CHUNK as u64);
        let (mut out, mut inn) = (StreamBuffer::for_sending(), StreamBuffer::new());
        assert_eq!(out.write(&mut pool, 0, &vec![1; 3 * CHUNK]), 2 * CHUNK);
        assert!(!pool.may_send_more());
        assert_eq!(inn.write(&mut pool, 0, &vec![1; 3 * CHUNK]), 2 * CHUNK);
        out.clear(&mut pool);
        assert!(pool.may_send_more());
    }

    #[test]
    fn stops_at_the_budget() {
        let mut pool = ChunkPool::new(2 * CHUNK as u64);
        let mut b = StreamBuffer::new();
        assert_eq!(b.write(&mut pool, 0, &vec![1; 3 * CHUNK]), 2 * CHUNK);
        b.free_before(&mut pool, CHUNK as u64);
        assert_eq!(b.write(&mut pool, 2 * CHUNK as u64, &[2; 10]), 10);
    }
}
