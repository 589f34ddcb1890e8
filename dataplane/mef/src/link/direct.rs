//! Datagrams that need not wait: where nothing else does, a whole datagram is
//! framed in front of where it lies, and taken out of a packet in place. What
//! waits in queues, shares a packet or comes in halves goes the long way.
//!
//! ```text
//!  packet   inner header 8 | DGRAM 3 | flow 4 | datagram
//!           '------------- FRONT -------------'
//! ```

use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::Instant;

use super::{Link, Packed};
use crate::carried::{Carried, CarriedSet};
use crate::codec::{self, DATAGRAM_OVERHEAD, INNER_HEADER};

/// Bytes in front of a datagram that has its packet to itself.
pub const FRONT: usize = INNER_HEADER + DATAGRAM_OVERHEAD;

impl Link {
    /// Whether a datagram of `size` bytes may overtake nothing on this link and goes in one piece.
    pub fn sends_directly(&self, size: usize) -> bool {
        self.in_session
            && !self.silent
            && self.probing
            && self.activated.is_empty()
            && self.datagrams.is_empty()
            && self.rests.is_empty()
            && self.half.is_none()
            && FRONT + size <= self.inner_limit()
    }

    /// Frames the datagram that `inner` holds behind [`FRONT`] bytes, as packet `number`. To be asked
    /// after [`sends_directly`](Self::sends_directly).
    pub fn pack_directly(
        &mut self,
        now: Instant,
        number: u64,
        flow: u32,
        inner: &mut [u8],
    ) -> Option<Packed> {
        let flags = self.data_flags();
        let len = inner.len();
        let (front, datagram) = inner.split_first_chunk_mut::<FRONT>()?;
        *front = codec::datagram_front(flags, flow, datagram.len())?;
        let traffic_class = ecn::traffic_class(datagram).unwrap_or(0);
        let carried = CarriedSet::one(Carried::Datagram);
        let mut packed = self.account(now, number, len, carried, true);
        packed.waited = Some(core::time::Duration::ZERO);
        packed.traffic_class = traffic_class;
        Some(packed)
    }

    /// Takes a packet that carries one whole datagram and nothing else, as
    /// [`handle_marked_packet`](Self::handle_marked_packet) does: the datagram is what stands in `inner`
    /// behind [`FRONT`] bytes. `false`, and nothing has changed, for any other packet, or while events
    /// wait that it would overtake.
    pub fn take_directly(
        &mut self,
        now: Instant,
        number: u64,
        line_bytes: u64,
        outer: Ecn,
        inner: &mut [u8],
    ) -> bool {
        if !self.probing || !self.events.is_empty() {
            return false;
        }
        let Some(flags) = codec::single_datagram(inner) else {
            return false;
        };
        let datagram = inner.get_mut(FRONT..).unwrap_or_default();
        let Some(ecn) = Ecn::of(datagram).leaving(outer) else {
            return false;
        };
        // Of what is no IP packet nothing is changed: who forwards it refuses it.
        let _ = ecn::set(datagram, ecn);
        self.note_received(now, number, line_bytes, flags);
        true
    }
}
