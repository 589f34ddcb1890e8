//! What a connection holds and may hold: for a router that has thousands of them
//! and one budget. Promised room counts as held, as a host may fill it at any time.

use super::{Endpoint, Phase};

impl Endpoint {
    /// The window begins with `bytes`, instead of 64 KiB. To be called before the first segment.
    pub fn begin_with_window(&mut self, bytes: usize) {
        self.rx.begin_with_window(bytes);
    }
    /// The window grows to `bytes` at most, from now on; it never shrinks.
    pub fn cap_window(&mut self, bytes: usize) {
        self.rx.cap_window(bytes);
    }
    /// Bytes that the host may have us hold: what it has been told it may send.
    pub fn window(&self) -> usize {
        self.rx.promised()
    }
    /// Bytes held of what the host sent, and of what is on its way to it.
    pub fn held(&self) -> [usize; 2] {
        [self.rx.memory(), self.tx.memory()]
    }
    /// Bytes that the host has said it takes, beyond those written.
    pub fn host_room(&self) -> u64 {
        match self.phase {
            Phase::Open => self.tx.host_room(),
            _ => 0,
        }
    }
    /// The host has taken more than fits between it and a program that does not read: twice its
    /// largest window, as a window grows with what arrives whether it is read or not.
    pub fn is_read(&self) -> bool {
        self.tx.una() > self.tx.largest_window().saturating_mul(2)
    }
    /// Gives back the memory that is kept for reuse.
    pub fn release_spare(&mut self) {
        self.tx.release_spare();
        self.rx.release_spare();
    }
}
