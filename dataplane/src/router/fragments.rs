//! Fragments of TCP for a peer's hosts are joined before their flow is looked
//! up, because only the first has ports and none has a segment's checksum.

use mef_io::Port;
use mef_packet::{Buffer, Instant, Meta, Packet};

use super::ingress::Transit;
use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::drops::{DropReason, Stage};
use crate::reassembly::Refused;

impl<P: Port> Router<P> {
    /// Takes a fragment, an IP packet; what goes on is the packet that it made whole.
    pub(super) fn join_fragments(
        &mut self,
        now: Instant,
        fragment: Packet<P::Buf>,
        transit: &Transit,
    ) -> Step<Packet<P::Buf>> {
        let whole = match self.reassembly.take(now, fragment.buf.bytes()) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Err(Stop::Done),
            Err(Refused::Bad) => return dropped(Stage::Carry, DropReason::FragmentBad),
            Err(Refused::Overlap) => return dropped(Stage::Carry, DropReason::FragmentOverlap),
        };
        let port = fragment.meta.port;
        let Some(buf) = self.buffer_of(port, &whole) else {
            return dropped(Stage::Carry, DropReason::NoRoom);
        };
        let meta = Meta {
            port,
            ..Meta::default()
        };
        let mut packet = Packet { buf, meta };
        let whole = Transit {
            fragment: false,
            ..*transit
        };
        Self::validate_transport(&mut packet, &whole)?;
        self.stats.packets_reassembled += 1;
        Ok(packet)
    }

    /// Drops the fragments that waited for others in vain.
    pub(super) fn expire_fragments(&mut self, now: Instant) {
        self.reassembly.expire(now);
        let (late, displaced) = self.reassembly.take_dropped();
        for (reason, n) in [
            (DropReason::FragmentLate, late),
            (DropReason::FragmentsFull, displaced),
        ] {
            self.counters.count_many(Stage::Carry, reason, n);
        }
    }
}
