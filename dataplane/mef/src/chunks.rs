//! Stream bytes from one memory budget. Everything a router holds for its flows
//! is counted here, so the budget in the configuration is the truth: when a part
//! of it is spent, hosts are not read and windows close.
//!
//! ```text
//!  memory:  | to be sent 3/8 | from hosts 1/8 | to hosts 1/8 |     the rest      |
//!             streams, repair   windows told    TCP's buffers   arrived, repair;
//!                                                               5/16 is promised
//! ```
//!
//! A stream's bytes lie in chunks. One that holds much has whole chunks; one
//! that holds little has of its chunk what its bytes need, and one that holds
//! nothing has none: thousands of flows that wait cost what they wait with.

use std::collections::VecDeque;

/// Bytes per chunk.
pub const CHUNK: usize = 16 * 1024;
/// A part of a chunk is a multiple of this.
const GRAIN: usize = 512;
/// A stream that spans so many chunks gets whole ones.
const BULK: usize = 4;
/// Most whole chunks kept for reuse.
const MAX_FREE: usize = 4096;

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Bytes of hosts that are to be sent on a link.
    Sending,
    /// Repair symbols that are to be sent.
    Repair,
    /// Bytes that came over a link, and repair symbols that wait for more.
    Receiving,
    /// What hosts have been told they may send: it counts whether they do or not.
    FromHosts,
    /// Bytes on their way to hosts.
    ToHosts,
}

/// Hands out memory up to a limit and keeps whole chunks given back for reuse.
#[derive(Debug)]
pub struct ChunkPool {
    free: Vec<Vec<u8>>,
    /// Bytes by [`Use`].
    used: [usize; 5],
    /// Of what is counted for hosts, bytes that are really held.
    hosts: usize,
    limit: usize,
}

impl ChunkPool {
    /// A pool that hands out at most `bytes`.
    pub fn new(bytes: u64) -> Self {
        Self {
            free: Vec::new(),
            used: [0; 5],
            hosts: 0,
            limit: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }

    /// Stream bytes that `memory` lets all peers together be promised: less than what is for bytes
    /// that arrive, which chunks' ends and what stays for the sake of repair share.
    pub fn promise(memory: u64) -> u64 {
        memory / 16 * 5
    }

    fn of(&self, what: Use) -> usize {
        self.used.get(what as usize).copied().unwrap_or(0)
    }
    fn total(&self) -> usize {
        self.used.iter().sum()
    }
    /// Bytes of the part of the budget that `what` belongs to.
    pub fn share(&self, what: Use) -> usize {
        match what {
            Use::Sending => self.limit / 8 * 3,
            Use::Repair => self.limit / 8,
            Use::FromHosts | Use::ToHosts => self.limit / 8,
            Use::Receiving => self.limit,
        }
    }
    /// Bytes of that part that nobody holds.
    pub fn room(&self, what: Use) -> usize {
        let sending = self.of(Use::Sending) + self.of(Use::Repair);
        match what {
            Use::Sending => self.share(what).saturating_sub(sending),
            Use::Repair => {
                let own = self.share(what).saturating_sub(self.of(what));
                own.min(self.share(Use::Sending).saturating_sub(sending))
            }
            Use::FromHosts | Use::ToHosts => self.share(what).saturating_sub(self.of(what)),
            // What the others leave is not refused to what was promised.
            Use::Receiving => self.limit.saturating_sub(self.total()),
        }
    }

    /// Takes `bytes` for `what`; `false`, and nothing is taken, where they are not there.
    pub fn take(&mut self, what: Use, bytes: usize) -> bool {
        let fits = bytes <= self.room(what);
        if fits {
            self.add(what, bytes);
        }
        fits
    }
    fn add(&mut self, what: Use, bytes: usize) {
        if let Some(u) = self.used.get_mut(what as usize) {
            *u += bytes;
        }
        // What is kept for reuse makes room for what is in use.
        let most = self.limit.saturating_sub(self.total()) / CHUNK;
        if self.free.len() > most {
            self.free.truncate(most);
        }
    }
    /// Gives back what [`take`](Self::take) took.
    pub fn give(&mut self, what: Use, bytes: usize) {
        if let Some(u) = self.used.get_mut(what as usize) {
            *u = u.saturating_sub(bytes);
        }
    }
    /// What is counted for `what` changes from `old` to `new` bytes, and what is really held by
    /// `held`: for those who keep their own books within [`room`](Self::room).
    pub fn recount(&mut self, what: Use, old: usize, new: usize, held: [usize; 2]) {
        self.give(what, old);
        self.add(what, new);
        self.hosts = (self.hosts + held[1]).saturating_sub(held[0]);
    }

    fn chunk(&mut self, what: Use, bytes: usize) -> Option<Vec<u8>> {
        if !self.take(what, bytes) {
            return None;
        }
        if bytes == CHUNK {
            if let Some(chunk) = self.free.pop() {
                return Some(chunk);
            }
        }
        Some(vec![0; bytes])
    }
    fn put(&mut self, chunk: Vec<u8>, what: Use) {
        self.give(what, chunk.len());
        // What is free beyond a burst goes back to the system.
        if chunk.len() == CHUNK && self.free.len() < MAX_FREE {
            self.free.push(chunk);
        }
    }
    /// Bytes held, those promised to hosts not counted.
    pub fn used_bytes(&self) -> u64 {
        let streams: usize = [Use::Sending, Use::Repair, Use::Receiving]
            .iter()
            .map(|u| self.of(*u))
            .sum();
        (streams + self.hosts) as u64
    }
    /// Bytes held for connections to hosts.
    pub fn host_bytes(&self) -> u64 {
        self.hosts as u64
    }
    pub fn limit_bytes(&self) -> u64 {
        self.limit as u64
    }
    /// Little is left for what arrives: what is only kept for the sake of repair has to go.
    pub fn is_short(&self) -> bool {
        self.room(Use::Receiving) < self.limit / 16
    }
}

/// A part of a chunk, from `start` bytes into it on.
#[derive(Debug)]
struct Piece {
    start: usize,
    bytes: Vec<u8>,
}

impl Piece {
    fn end(&self) -> usize {
        self.start + self.bytes.len()
    }
}

/// A sparse window onto a byte stream, addressed by stream offset.
#[derive(Debug)]
pub struct StreamBuffer {
    /// Number of the chunk at the front.
    first: u64,
    chunks: VecDeque<Option<Piece>>,
    what: Use,
}

fn locate(offset: u64) -> (u64, usize) {
    (offset / CHUNK as u64, (offset % CHUNK as u64) as usize)
}

impl Default for StreamBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamBuffer {
    /// A buffer of bytes that have arrived.
    pub const fn new() -> Self {
        Self {
            first: 0,
            chunks: VecDeque::new(),
            what: Use::Receiving,
        }
    }
    /// A buffer of bytes that are to be sent.
    pub const fn for_sending() -> Self {
        Self {
            first: 0,
            chunks: VecDeque::new(),
            what: Use::Sending,
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
            let bulk = self.chunks.len() > BULK;
            let Some(slot) = self.chunks.get_mut(index) else {
                break;
            };
            let take = rest.len().min(CHUNK - at);
            let Some(piece) = cover(slot, pool, self.what, at, at + take, bulk) else {
                break;
            };
            let from = at - piece.start;
            if let (Some(to), Some(from)) =
                (piece.bytes.get_mut(from..from + take), rest.get(..take))
            {
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
            .and_then(|p| {
                let from = at.checked_sub(p.start)?;
                p.bytes
                    .get(from..from.saturating_add(max).min(p.bytes.len()))
            })
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

    /// Appends `len` bytes from `offset` on to `out`; `false` where some are not stored.
    pub fn append_to(&self, offset: u64, len: usize, out: &mut Vec<u8>) -> bool {
        let mut done = 0;
        while done < len {
            let s = self.slice(offset + done as u64, len - done);
            if s.is_empty() {
                return false;
            }
            out.extend_from_slice(s);
            done += s.len();
        }
        true
    }

    /// Gives back every chunk that lies wholly below `offset`.
    pub fn free_before(&mut self, pool: &mut ChunkPool, offset: u64) {
        let (n, at) = locate(offset);
        while self.first < n {
            match self.chunks.pop_front() {
                Some(p) => {
                    if let Some(p) = p {
                        pool.put(p.bytes, self.what);
                    }
                    self.first += 1;
                }
                None => self.first = n,
            }
        }
        let lone = self.chunks.len() == 1;
        // What is left of a long stream may have to stay for long: not with all of its chunk.
        if let (Some(Some(piece)), true) = (self.chunks.front_mut(), self.first == n) {
            let dead = (at / GRAIN * GRAIN).saturating_sub(piece.start);
            let dead = dead.min(piece.bytes.len());
            if lone && piece.bytes.len() >= CHUNK / 4 && dead >= piece.bytes.len() / 2 {
                piece.bytes = piece.bytes.split_off(dead);
                piece.start += dead;
                pool.give(self.what, dead);
            }
        }
    }

    /// Gives everything back; what is written from now on may lie anywhere from the freed chunks on.
    pub fn clear(&mut self, pool: &mut ChunkPool) {
        for p in core::mem::take(&mut self.chunks).into_iter().flatten() {
            pool.put(p.bytes, self.what);
        }
    }
}

/// Lets `slot` hold the bytes from `start` to `end` of its chunk; `None` where the budget does not.
fn cover<'a>(
    slot: &'a mut Option<Piece>,
    pool: &mut ChunkPool,
    what: Use,
    start: usize,
    end: usize,
    whole: bool,
) -> Option<&'a mut Piece> {
    let (old_start, old_end) = slot.as_ref().map_or((start, start), |p| (p.start, p.end()));
    if slot.is_none() || start < old_start || end > old_end {
        let mut from = old_start.min(start) / GRAIN * GRAIN;
        let mut to = old_end.max(end).next_multiple_of(GRAIN);
        if end > old_end && old_end - old_start >= CHUNK / 4 {
            // Grows by half at least, or a stream of small pieces would be copied each time.
            to = to.max((old_end + (old_end - old_start) / 2).next_multiple_of(GRAIN));
        }
        to = to.min(CHUNK);
        if whole || to - from > CHUNK / 4 * 3 {
            (from, to) = (0, CHUNK);
        }
        // The old piece makes room for the new.
        let held = old_end - old_start;
        pool.give(what, held);
        let Some(mut bytes) = pool.chunk(what, to - from) else {
            pool.add(what, held);
            return None;
        };
        if let Some(old) = slot.take() {
            let at = old.start.saturating_sub(from);
            if let Some(room) = bytes.get_mut(at..at + old.bytes.len()) {
                room.copy_from_slice(&old.bytes);
            }
        }
        *slot = Some(Piece { start: from, bytes });
    }
    slot.as_mut()
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
        let mut pool = ChunkPool::new(16 * CHUNK as u64);
        let (mut out, mut inn) = (StreamBuffer::for_sending(), StreamBuffer::new());
        let bytes = vec![1; 16 * CHUNK];
        assert_eq!(out.write(&mut pool, 0, &bytes), 6 * CHUNK);
        assert_eq!(pool.room(Use::Sending), 0);
        assert_eq!(pool.room(Use::Repair), 0);
        assert_eq!(inn.write(&mut pool, 0, &bytes), 10 * CHUNK);
        assert_eq!(pool.used_bytes(), pool.limit_bytes());
        out.clear(&mut pool);
        assert_eq!(pool.room(Use::Sending), 6 * CHUNK);
    }

    #[test]
    fn stops_at_the_budget() {
        let mut pool = ChunkPool::new(2 * CHUNK as u64);
        let mut b = StreamBuffer::new();
        assert_eq!(b.write(&mut pool, 0, &vec![1; 3 * CHUNK]), 2 * CHUNK);
        b.free_before(&mut pool, CHUNK as u64);
        assert_eq!(b.write(&mut pool, 2 * CHUNK as u64, &[2; 10]), 10);
    }

    #[test]
    fn a_few_bytes_cost_a_few_bytes() {
        let mut pool = ChunkPool::new(1 << 20);
        let mut b = StreamBuffer::new();
        // Anywhere in the stream, written a packet at a time.
        b.free_before(&mut pool, 1_000_000);
        for k in 0..3 {
            b.write(&mut pool, 1_000_000 + k * 1000, &[1; 1000]);
        }
        assert!(pool.used_bytes() <= 4096, "{}", pool.used_bytes());
        let mut out = [0; 3000];
        assert!(b.copy_out(1_000_000, &mut out) && out == [1; 3000]);
        b.clear(&mut pool);
        assert_eq!(pool.used_bytes(), 0);
        // What had been freed below stays freed, what comes after is taken.
        assert_eq!(b.write(&mut pool, 1_003_000, &[2; 700]), 700);
        assert!(pool.used_bytes() <= 1536);
        assert_eq!(b.slice(1_003_000, 700), [2; 700]);
    }

    #[test]
    fn what_hosts_hold_counts_and_what_they_were_promised_is_kept_free() {
        let mut pool = ChunkPool::new(1 << 20);
        assert_eq!(pool.room(Use::FromHosts), 128 << 10);
        pool.recount(Use::FromHosts, 0, 100 << 10, [0, 5000]);
        assert_eq!(
            (pool.room(Use::FromHosts), pool.used_bytes()),
            (28 << 10, 5000)
        );
        assert_eq!(pool.room(Use::Receiving), (1 << 20) - (100 << 10));
        pool.recount(Use::FromHosts, 100 << 10, 0, [5000, 0]);
        assert_eq!(
            (pool.room(Use::FromHosts), pool.host_bytes()),
            (128 << 10, 0)
        );
    }
}
