//! The buffer that a packet lives in: bytes with room in front, so that a
//! header can be put on or taken off without moving the payload.

use alloc::vec::Vec;

/// Bytes of one packet (or one super-segment), with headroom and tailroom.
pub trait Buffer {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
    fn len(&self) -> usize {
        self.bytes().len()
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Grows at the front by `n` bytes of unspecified content; `None` if the headroom is too small.
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]>;
    /// Grows at the back by `n` bytes of unspecified content; `None` if the tailroom is too small.
    fn append(&mut self, n: usize) -> Option<&mut [u8]>;
    /// Grows at the back by what `write` appends to the vector that it is given, and must leave
    /// otherwise as it is; `None` if the tailroom is too small. A buffer that is no vector itself
    /// has it written to `scratch`, and copies.
    fn append_with<T>(
        &mut self,
        scratch: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> Option<T> {
        scratch.clear();
        let result = write(scratch);
        self.append(scratch.len())?.copy_from_slice(scratch);
        Some(result)
    }
    /// Cuts `n` bytes off the front; `None` (and no change) if there are fewer.
    fn trim_front(&mut self, n: usize) -> Option<()>;
    /// Shortens to `len` bytes; no change if it is already shorter.
    fn truncate(&mut self, len: usize);
}

/// A buffer on the heap, recycled by the pool of the port that handed it out.
#[derive(Clone, Debug, Default)]
pub struct HeapBuf {
    data: Vec<u8>,
    head: usize,
}

impl HeapBuf {
    /// Room kept in front of a packet: more than any set of headers the router puts on.
    pub const HEADROOM: usize = 128;

    /// An empty buffer with [`HEADROOM`](Self::HEADROOM) in front and at least `capacity` bytes behind it.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut data = Vec::with_capacity(Self::HEADROOM + capacity);
        data.resize(Self::HEADROOM, 0);
        Self {
            data,
            head: Self::HEADROOM,
        }
    }
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut b = Self::with_capacity(bytes.len());
        b.data.extend_from_slice(bytes);
        b
    }
    /// Empties the buffer for its next packet, keeping its memory.
    pub fn reset(&mut self) {
        self.data.truncate(Self::HEADROOM);
        self.data.resize(Self::HEADROOM, 0);
        self.head = Self::HEADROOM;
    }
    /// Replaces the content by `bytes`.
    pub fn set(&mut self, bytes: &[u8]) {
        self.reset();
        self.data.extend_from_slice(bytes);
    }
    /// Headroom and content, for a device that writes into the room behind the content.
    pub fn vec_mut(&mut self) -> &mut Vec<u8> {
        &mut self.data
    }
    pub fn capacity(&self) -> usize {
        self.data.capacity().saturating_sub(Self::HEADROOM)
    }
}

impl Buffer for HeapBuf {
    fn bytes(&self) -> &[u8] {
        &self.data[self.head..]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.head..]
    }
    fn prepend(&mut self, n: usize) -> Option<&mut [u8]> {
        self.head = self.head.checked_sub(n)?;
        Some(&mut self.data[self.head..self.head + n])
    }
    fn append(&mut self, n: usize) -> Option<&mut [u8]> {
        let at = self.data.len();
        self.data.resize(at + n, 0);
        Some(&mut self.data[at..])
    }
    fn append_with<T>(
        &mut self,
        _scratch: &mut Vec<u8>,
        write: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> Option<T> {
        Some(write(&mut self.data))
    }
    fn trim_front(&mut self, n: usize) -> Option<()> {
        if n > self.len() {
            return None;
        }
        self.head += n;
        Some(())
    }
    fn truncate(&mut self, len: usize) {
        self.data.truncate(self.head + len);
    }
}
