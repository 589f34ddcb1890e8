//! One of several workers: which packets are another's, how they go there, and
//! what is agreed with peers about it. A router with one worker has none of this.
//!
//! ```text
//!   Ingress, FIB -- of a flow with a peer's hosts: hash of its 5-tuple --> that worker
//!            '----- for the UDP port of a worker's links ----------------> that worker
//!            '----- all else ----------------------------------------------> stays
//! ```
//! Neighbours speak to one worker and mean the router: the one that hears them
//! answers, and the others get a copy to learn from.

use mef_io::Port;
use mef_packet::wire::{ip, ipv4, ipv6};
use mef_packet::{Buffer, Instant, Meta, Packet, PortId};

use super::ingress::Transit;
use super::pipeline::{Step, Stop};
use super::{Router, BATCH};
use crate::config::{FlowTuple, PeerId};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::host_tcp;
use crate::workers::{CrewStats, Handed, Why};

/// The flow that a packet counts for when workers divide flows: without ports where it is a fragment,
/// as only the first has them, and that of the segment which an ICMP error is about.
fn dividing_flow(transit: &Transit, bytes: &[u8]) -> FlowTuple {
    let icmp = matches!(
        transit.protocol,
        ipv4::PROTOCOL_ICMP | ipv6::PROTOCOL_ICMPV6
    );
    if let Some((a, b)) = icmp.then(|| host_tcp::icmp_flow(bytes)).flatten() {
        return FlowTuple {
            source: a.ip(),
            destination: b.ip(),
            protocol: ipv4::PROTOCOL_TCP,
            source_port: a.port(),
            port: b.port(),
        };
    }
    let mut flow = transit.tuple(bytes);
    if transit.fragment {
        (flow.source_port, flow.port) = (0, 0);
    }
    flow
}

impl<P: Port> Router<P> {
    /// Number of this worker.
    pub fn worker(&self) -> u16 {
        self.crew.as_ref().map_or(0, |c| c.me())
    }

    /// What it has exchanged with the others.
    pub fn crew_stats(&self) -> CrewStats {
        self.crew.as_ref().map(|c| c.stats).unwrap_or_default()
    }

    /// About to wait for packets: false where another worker has just handed one over.
    pub fn sleep(&mut self) -> bool {
        self.crew.as_mut().is_none_or(|c| c.sleep())
    }

    /// The wait is over.
    pub fn wake(&mut self) {
        if let Some(crew) = &mut self.crew {
            crew.wake();
        }
    }

    /// The packet, unless it is another worker's, which has it then.
    #[inline]
    pub(super) fn keep_own(
        &mut self,
        packet: Packet<P::Buf>,
        transit: &Transit,
        route: &Option<Route>,
    ) -> Option<Packet<P::Buf>> {
        if self.crew.is_none() {
            return Some(packet);
        }
        let owner = self.owner(&packet, transit, route);
        match owner.filter(|o| *o != self.worker()) {
            None => Some(packet),
            Some(owner) => {
                self.hand_over(owner, Why::Onward, packet);
                None
            }
        }
    }

    /// The worker that a packet belongs to; `None` where anyone may have it.
    fn owner(
        &self,
        packet: &Packet<P::Buf>,
        transit: &Transit,
        route: &Option<Route>,
    ) -> Option<u16> {
        let crew = self.crew.as_ref()?;
        let bytes = packet.buf.bytes();
        let peer = match route {
            Some(Route::Peer(peer)) => *peer,
            Some(Route::Local(_)) if transit.protocol == ipv4::PROTOCOL_UDP => {
                let port = self.ports.get(usize::from(packet.meta.port.0))?;
                let line = self.lines.get(port.line?)?;
                let first = line.listen.wrapping_sub(crew.me());
                let worker = transit.tuple(bytes).port.wrapping_sub(first);
                return (worker < crew.shared.workers()).then_some(worker);
            }
            // What comes in the clear from behind a peer: its flow may have a worker.
            Some(Route::Connected { .. } | Route::Via { .. }) => self.fib.peer_of(transit.src)?,
            _ => return None,
        };
        Some(crew.shared.owner(peer, &dividing_flow(transit, bytes)))
    }

    /// Of a packet that was put together from its fragments: it may be another worker's.
    pub(super) fn keep_whole(
        &mut self,
        peer: PeerId,
        packet: Packet<P::Buf>,
        transit: &Transit,
    ) -> Step<Packet<P::Buf>> {
        let Some(crew) = &self.crew else {
            return Ok(packet);
        };
        let flow = transit.tuple(packet.buf.bytes());
        let owner = crew.shared.owner(peer, &flow);
        if owner == crew.me() {
            return Ok(packet);
        }
        self.hand_over(owner, Why::Carry, packet);
        Err(Stop::Done)
    }

    fn hand_over(&mut self, to: u16, why: Why, packet: Packet<P::Buf>) {
        let Some(crew) = &mut self.crew else { return };
        if let Err(packet) = crew.give(to, why, packet) {
            self.counters.count(Stage::Ingress, DropReason::Handover);
            self.recycle(packet.meta.port, packet.buf);
        }
    }

    /// Tells the other workers what a neighbour said.
    pub(super) fn tell_others(&mut self, port: PortId, why: Why, bytes: &[u8]) {
        let (Some(me), Some(workers)) = (
            self.crew.as_ref().map(|c| c.me()),
            self.crew.as_ref().map(|c| c.shared.workers()),
        ) else {
            return;
        };
        for to in (0..workers).filter(|to| *to != me) {
            let Some(buf) = self.buffer_of(port, bytes) else {
                return;
            };
            let meta = Meta {
                port,
                ..Meta::default()
            };
            self.hand_over(to, why, Packet { buf, meta });
        }
    }

    /// Takes what the other workers have handed over; whether there was anything.
    pub(super) fn take_handed(&mut self, now: Instant) -> bool {
        let rings = match &self.crew {
            Some(crew) => crew.rings(),
            None => return false,
        };
        let mut any = false;
        for ring in 0..rings {
            for _ in 0..BATCH {
                let Some(handed) = self.crew.as_mut().and_then(|c| c.take(ring)) else {
                    break;
                };
                any = true;
                self.counters.at_port(handed.packet.meta.port.0);
                if let Err(Stop::Drop(stage, reason)) = self.take_one(now, handed) {
                    self.counters.count(stage, reason);
                }
            }
        }
        self.counters.elsewhere();
        any
    }

    fn take_one(&mut self, now: Instant, handed: Handed<P::Buf>) -> Step<()> {
        let Handed { why, packet } = handed;
        if let Why::Arp | Why::NeighbourDiscovery = why {
            self.overhear(now, why, &packet);
            self.recycle(packet.meta.port, packet.buf);
            return Ok(());
        }
        let transit = match Transit::of(packet.buf.bytes()) {
            Ok(transit) => transit,
            Err(e) => return super::pipeline::dropped(Stage::Ingress, e),
        };
        let route = self.fib.lookup(transit.dst);
        match (why, &route) {
            (Why::Carry, Some(route)) => self.carry(now, packet, &transit, route),
            _ => self.onward(now, packet, &transit, &route),
        }
    }

    /// Learns what a neighbour said to another worker, which has answered and counted it.
    fn overhear(&mut self, now: Instant, why: Why, packet: &Packet<P::Buf>) {
        self.neighbour_events(now);
        let (port, bytes) = (packet.meta.port, packet.buf.bytes());
        if why == Why::Arp {
            let _ = self.neighbours.handle_arp(now, port, bytes);
        } else if let Ok(ip::View::V6(view)) = ip::View::parse_unverified(bytes) {
            let _ = self.neighbours.handle_nd(now, port, &view);
        }
        self.neighbours.say_nothing();
        self.neighbour_events(now);
    }

    /// The peer has said HELLO on one of its links: what follows from it for all workers.
    pub(super) fn learn_lanes(&mut self, peer: PeerId) {
        let Some(hello) = self.peer(peer).and_then(|p| p.link.peer().copied()) else {
            return;
        };
        let Some(crew) = &self.crew else { return };
        let shared = &crew.shared;
        if shared.learn(peer, hello.workers, hello.hash_key) {
            tracing::info!(
                peer = self.peer_name(peer),
                lanes = shared.lanes(peer),
                "workers with a link to the peer"
            );
        }
        self.steer();
    }

    /// Ports spread flows as they are divided for most peers with several workers.
    fn steer(&mut self) {
        let Some(crew) = self.crew.as_ref().filter(|c| c.me() == 0) else {
            return;
        };
        let key = crew.shared.key_of_most();
        if self.steered_by != Some(key) {
            self.steered_by = Some(key);
            for p in &mut self.ports {
                p.port.steer(key);
            }
        }
    }

    /// Whether this worker has a link to the peer: both ends need as many.
    pub(super) fn has_lane(&self, peer: PeerId) -> bool {
        match &self.crew {
            None => true,
            Some(crew) => u32::from(crew.me()) < crew.shared.lanes(peer),
        }
    }

    /// Ends what is left of links whose peer has fewer workers now.
    pub(super) fn close_lanes(&mut self, now: Instant) {
        if self.crew.as_ref().is_none_or(|c| c.me() == 0) {
            return;
        }
        for id in 0..self.places.len() {
            let id = PeerId(u16::try_from(id).unwrap_or(u16::MAX));
            if self.has_lane(id) || !self.peer(id).is_some_and(|p| p.has_session()) {
                continue;
            }
            let of_peer = |i: &usize| self.flows.get(*i).is_some_and(|f| f.peer == id);
            let flows: Vec<usize> = self.flows.indices().filter(of_peer).collect();
            for index in flows {
                self.reset_host(now, index);
            }
            if let Some(p) = self.peer_mut(id) {
                p.close();
            }
        }
    }
}
