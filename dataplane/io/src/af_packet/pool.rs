//! Buffers that were used before, in two sizes: a packet as on the wire, and a super-segment.

use mef_packet::HeapBuf;

/// Room for any frame on Ethernet with MTU 1500 and what a link puts around it.
const SMALL: usize = 2048;
/// Room for the longest IPv4 packet and its Ethernet header, with and without VLAN tag.
pub(super) const LARGE: usize = 65535 + 18;

/// At most these many bytes wait for reuse: 8 MiB each.
const MAX_SMALL: usize = 4096;
const MAX_LARGE: usize = 128;

#[derive(Default)]
pub(super) struct Pool {
    small: Vec<HeapBuf>,
    large: Vec<HeapBuf>,
}

impl Pool {
    /// An empty buffer with room for at least `capacity` bytes.
    pub fn get(&mut self, capacity: usize) -> HeapBuf {
        let (shelf, size) = match capacity {
            0..=SMALL => (&mut self.small, SMALL),
            _ => (&mut self.large, capacity.max(LARGE)),
        };
        match shelf.pop() {
            Some(buf) if buf.capacity() >= capacity => buf,
            _ => HeapBuf::with_capacity(size),
        }
    }

    /// Takes a buffer back, whoever made it; one of an odd size is freed.
    pub fn put(&mut self, mut buf: HeapBuf) {
        // First of all: a buffer that was never given memory has no headroom to speak of.
        buf.reset();
        match buf.capacity() {
            LARGE.. if self.large.len() < MAX_LARGE => self.large.push(buf),
            SMALL..LARGE if self.small.len() < MAX_SMALL => self.small.push(buf),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mef_packet::Buffer;

    #[test]
    fn gives_back_empty_buffers_of_the_size_asked_for() {
        let mut pool = Pool::default();
        for capacity in [0, 60, 2048, 2049, 65535, 70_000] {
            for _ in 0..2 {
                let mut buf = pool.get(capacity);
                assert!(buf.is_empty() && buf.capacity() >= capacity, "{capacity}");
                assert!(buf.prepend(HeapBuf::HEADROOM).is_some());
                pool.put(buf);
            }
        }
        // The large one that was too small for the longest has made room for it.
        assert_eq!((pool.small.len(), pool.large.len()), (1, 1));
        let small = pool.get(1);
        assert!(
            small.capacity() < LARGE,
            "a short packet does not hold a large buffer"
        );
        pool.put(HeapBuf::from_slice(b"odd"));
        assert_eq!(pool.small.len(), 0);
    }
}
