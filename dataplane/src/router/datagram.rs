//! Packets over a link as they are: into the queue of their flow, cut or
//! fragmented where they are larger than what the link takes, and at the other
//! end out to their host.

use std::hash::{DefaultHasher, Hash, Hasher};

use mef_io::Port;
use mef_packet::wire::segment::{fragments, Segments};
use mef_packet::{Buffer, Gso, Instant};
use mef_protocol::link::{DatagramError, DatagramFlow, DatagramStats, Link};

use super::mss;
use super::pipeline::{dropped, Step};
use super::plain::may_fragment;
use super::route::Classified;
use super::Router;
use crate::config::{FlowTuple, PeerId, Treatment};
use crate::drops::{Counters, DropReason, Stage};
use crate::icmp::IcmpError;

/// What became of a packet at the link's door.
#[derive(Default)]
struct Taken {
    sent: u64,
    full: u64,
    too_big: bool,
}

impl Taken {
    /// Queues what `make` puts together, if there is room for `size` bytes of it.
    fn offer(
        &mut self,
        now: Instant,
        link: &mut Link,
        flow: DatagramFlow,
        size: usize,
        make: impl FnOnce() -> Option<Vec<u8>>,
    ) -> bool {
        let result = link.admits_datagram(now, flow.id, size).and_then(|()| {
            make().map_or(Err(DatagramError::TooBig), |packet| {
                link.send_datagram(now, flow, packet)
            })
        });
        match result {
            Ok(()) => self.sent += 1,
            Err(DatagramError::QueueFull) => self.full += 1,
            Err(DatagramError::TooBig) => self.too_big = true,
        }
        result.is_ok()
    }
}

impl<P: Port> Router<P> {
    /// The queue of a packet, and what it is given.
    pub(super) fn datagram_flow(&self, from: &Classified<P::Buf>) -> DatagramFlow {
        self.flow_of(&from.tuple, &from.treatment)
    }

    /// Queue number of a flow. Keyed, so that nobody can choose to share another's queue; 24 bits
    /// keep the number of queues of a flood bounded.
    pub(super) fn flow_of(&self, tuple: &FlowTuple, treatment: &Treatment) -> DatagramFlow {
        let mut h = DefaultHasher::new();
        self.flow_secret.hash(&mut h);
        (tuple.source, tuple.destination, tuple.protocol).hash(&mut h);
        (tuple.source_port, tuple.port, treatment.class).hash(&mut h);
        DatagramFlow {
            id: (h.finish() & 0xff_ffff) as u32,
            weight: (treatment.weight * 1000.0) as u32,
            class: treatment.class,
        }
    }

    pub(super) fn carry_datagram(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut from: Classified<P::Buf>,
    ) -> Step<()> {
        let gso = from.packet.meta.gso != Gso::None;
        if !gso {
            Self::complete_checksum(&mut from.packet)?;
        }
        let flow = self.datagram_flow(&from);
        let whole = self.peer(peer).and_then(|p| p.link.whole_datagram());
        if let (Some(whole), false) = (whole, gso) {
            mss::clamp(from.packet.buf.bytes_mut(), whole);
        }
        let bytes = from.packet.buf.bytes();
        let Some(p) = self.peer_mut(peer) else {
            return dropped(Stage::Carry, DropReason::NoRoute);
        };
        if !p.link.is_up() {
            self.complain(now, from.port, bytes, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::NoSession);
        }
        let link = &mut p.link;
        let limit = link.datagram_limit();
        let mut taken = Taken::default();
        if gso {
            let mut cut = match Segments::new(bytes, from.packet.meta.gso_size) {
                Ok(cut) => cut,
                Err(e) => return dropped(Stage::Carry, e),
            };
            let size = cut.largest();
            while cut.remaining() > 0 {
                if !taken.offer(now, link, flow, size, || cut.next()) {
                    if !taken.too_big {
                        // The one refused is counted.
                        taken.full += cut.remaining().saturating_sub(1) as u64;
                    }
                    break;
                }
            }
        } else if bytes.len() > limit && may_fragment(bytes) {
            match fragments(bytes, limit) {
                Ok(list) => {
                    for f in list {
                        taken.offer(now, link, flow, f.len(), || Some(f));
                    }
                }
                Err(e) => return dropped(Stage::Carry, e),
            }
        } else {
            taken.offer(now, link, flow, bytes.len(), || Some(bytes.to_vec()));
        }
        self.stats.datagrams_sent += taken.sent;
        self.counters
            .count_many(Stage::Carry, DropReason::QueueFull, taken.full);
        if taken.too_big {
            let mtu = u16::try_from(limit).unwrap_or(u16::MAX);
            self.complain(
                now,
                from.port,
                from.packet.buf.bytes(),
                IcmpError::FragmentationNeeded { mtu },
            );
            return dropped(Stage::Carry, DropReason::TooBig);
        }
        Ok(())
    }

    /// Counts what the queues of links and lines have dropped since this was last done.
    pub(super) fn count_queue_drops(&mut self) {
        for l in &mut self.lines {
            let total = DatagramStats {
                queues: l.line.plain().stats(),
                ..DatagramStats::default()
            };
            self.counters.elsewhere();
            count_new(&mut self.counters, &mut l.counted, total);
            for p in &mut l.peers {
                self.counters.at_link(p.id.0);
                count_new(&mut self.counters, &mut p.counted, p.link.datagram_stats());
            }
        }
        self.counters.elsewhere();
    }
}

fn count_new(counters: &mut Counters, counted: &mut DatagramStats, total: DatagramStats) {
    if *counted == total {
        return;
    }
    let (a, b) = (&total.queues, &counted.queues);
    for (stage, reason, n) in [
        (
            Stage::Line,
            DropReason::QueueDelay,
            a.delayed.saturating_sub(b.delayed),
        ),
        (
            Stage::Line,
            DropReason::QueueFull,
            a.evicted.saturating_sub(b.evicted),
        ),
        (
            Stage::Line,
            DropReason::QueueStale,
            a.stale.saturating_sub(b.stale),
        ),
        (
            Stage::Open,
            DropReason::HalfMissing,
            total.halves_expired.saturating_sub(counted.halves_expired),
        ),
        (
            Stage::Open,
            DropReason::MarkUnseen,
            total.mark_unseen.saturating_sub(counted.mark_unseen),
        ),
    ] {
        counters.count_many(stage, reason, n);
    }
    *counted = total;
}
