//! Whole IP packets over the link: a bounded queue per flow, and two fragments for what
//! exceeds one packet.

use core::time::Duration;

use mef_packet::Instant;

use super::{DatagramError, Event, Link, QueuedDatagram, Reassembly, SendKey};
use crate::codec::INNER_HEADER;

/// Largest IP packet.
const MAX_PACKET: usize = 65_535;
/// Most datagrams whose other half is awaited.
const MAX_REASSEMBLY: usize = 256;

impl Link {
    /// Queues an IP packet of datagram flow `flow`; two near-equal fragments where it exceeds one packet.
    ///
    /// # Errors
    /// [`DatagramError`], and the packet is to be dropped.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        flow: u32,
        packet: Vec<u8>,
    ) -> Result<(), DatagramError> {
        let limit = self
            .config
            .line_up
            .bytes_in(Duration::from_millis(50))
            .0
            .clamp(32 * 1024, 1 << 20) as usize;
        let whole = self
            .inner_limit()
            .saturating_sub(INNER_HEADER + crate::codec::DATAGRAM_OVERHEAD);
        let part = self
            .inner_limit()
            .saturating_sub(INNER_HEADER + crate::codec::FRAGMENT_OVERHEAD);
        if packet.len() > whole && packet.len().div_ceil(2) > part {
            return Err(DatagramError::TooBig);
        }
        // Whatever the number of flows, a host that floods does not fill the memory.
        if self.datagram_bytes + packet.len() > 4 * limit.max(MAX_PACKET) {
            return Err(DatagramError::QueueFull);
        }
        let id = self.next_fragment;
        let queue = self.datagrams.entry(flow).or_default();
        if queue.bytes + packet.len() > limit {
            return Err(DatagramError::QueueFull);
        }
        queue.bytes += packet.len();
        self.datagram_bytes += packet.len();
        if packet.len() <= whole {
            queue
                .packets
                .push_back((now, QueuedDatagram::Whole(packet)));
        } else {
            self.next_fragment = id.wrapping_add(1);
            let (a, b) = packet.split_at(packet.len().div_ceil(2));
            for (index, bytes) in [(0, a), (1, b)] {
                queue.packets.push_back((
                    now,
                    QueuedDatagram::Part {
                        id,
                        index,
                        bytes: bytes.to_vec(),
                    },
                ));
            }
        }
        self.activated.push((SendKey::Datagram(flow), 1000));
        Ok(())
    }

    pub(super) fn join(&mut self, now: Instant, id: u32, index: u8, bytes: &[u8]) {
        if index > 1 {
            return;
        }
        if !self.reassembly.contains_key(&id) && self.reassembly.len() >= MAX_REASSEMBLY {
            self.expire_fragments(now);
            if self.reassembly.len() >= MAX_REASSEMBLY {
                self.stats.fragments_expired += 1;
                return;
            }
        }
        let r = self.reassembly.entry(id).or_insert_with(|| Reassembly {
            at: now,
            parts: [None, None],
        });
        if let Some(p) = r.parts.get_mut(usize::from(index)) {
            *p = Some(bytes.to_vec());
        }
        if r.parts.iter().all(Option::is_some) {
            if let Some(r) = self.reassembly.remove(&id) {
                let whole = r.parts.into_iter().flatten().flatten().collect();
                self.events.push_back(Event::Datagram(whole));
            }
        }
    }

    pub(super) fn expire_fragments(&mut self, now: Instant) {
        let limit = Duration::from_millis(100) + self.rtt.smoothed() / 2;
        let before = self.reassembly.len();
        self.reassembly.retain(|_, r| now.since(r.at) < limit);
        self.stats.fragments_expired += (before - self.reassembly.len()) as u64;
    }
}
