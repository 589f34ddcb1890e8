//! Carry: into a split flow, as a datagram over a link, or plainly to another port.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use mef_io::Port;
use mef_packet::wire::{ipv4, tcp};
use mef_packet::{Buffer, Gso, Instant, Packet, PortId};
use mef_protocol::link::DatagramError;

use super::pipeline::{dropped, Step, Stop};
use super::route::{tuple_of, Classified, Routed};
use super::Router;
use crate::config::{FlowTuple, Mode, PeerId};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::icmp::IcmpError;

impl<P: Port> Router<P> {
    pub(super) fn carry(&mut self, now: Instant, routed: Routed<P::Buf>) -> Step<()> {
        let Routed { from, route } = routed;
        match route {
            Route::Peer(peer) => {
                let tcp = from.tuple.protocol == ipv4::PROTOCOL_TCP;
                if tcp && from.treatment.mode == Mode::Split && !self.must_stay_whole(&from.packet)
                {
                    self.carry_split(now, peer, from)
                } else if self.icmp_for_flow(now, &from) {
                    Err(Stop::Done)
                } else {
                    self.carry_datagram(now, peer, from)
                }
            }
            Route::Connected { port } => self.forward(now, port, from.tuple.destination, from),
            Route::Via { port, next_hop } => self.forward(now, port, next_hop, from),
            Route::Local(_) | Route::Broadcast(_) => {
                dropped(Stage::Carry, DropReason::MartianDestination)
            }
        }
    }

    /// TCP whose meaning is end to end: authenticated segments (RFC 2385, RFC 5925).
    fn must_stay_whole(&self, packet: &Packet<P::Buf>) -> bool {
        use mef_packet::wire::tcp_options::{KIND_AO, KIND_MD5};
        let Ok(v) = ipv4::View::parse_unverified(packet.buf.bytes()) else {
            return false;
        };
        if v.is_fragment() {
            return false;
        }
        tcp::View::parse(v.payload()).is_ok_and(|t| {
            t.options()
                .any(|o| o.is_ok_and(|o| matches!(o.kind(), KIND_MD5 | KIND_AO)))
        })
    }

    /// An ICMP error of a host about a segment that we sent in another's name.
    fn icmp_for_flow(&mut self, now: Instant, from: &Classified<P::Buf>) -> bool {
        if from.tuple.protocol != ipv4::PROTOCOL_ICMP {
            return false;
        }
        self.icmp_into_flow(now, from.packet.buf.bytes())
    }

    fn carry_datagram(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut from: Classified<P::Buf>,
    ) -> Step<()> {
        Self::complete_checksum(&mut from.packet)?;
        if from.packet.meta.gso != Gso::None {
            // Super-segments of flows that are not split would have to be cut first.
            return dropped(Stage::Carry, DropReason::TooBig);
        }
        let bytes = from.packet.buf.bytes().to_vec();
        let flow = hash_of(&from.tuple);
        let Some(p) = self.peer_mut(peer) else {
            return dropped(Stage::Carry, DropReason::NoRoute);
        };
        if !p.link.is_up() {
            self.complain(now, from.port, &bytes, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::NoSession);
        }
        match p.link.send_datagram(now, flow, bytes) {
            Ok(()) => {
                self.stats.datagrams_sent += 1;
                Ok(())
            }
            Err(DatagramError::QueueFull) => dropped(Stage::Carry, DropReason::QueueFull),
            Err(DatagramError::TooBig) => {
                let mtu = p.link.path_mtu().saturating_sub(100) * 2;
                self.complain(
                    now,
                    from.port,
                    from.packet.buf.bytes(),
                    IcmpError::FragmentationNeeded { mtu },
                );
                dropped(Stage::Carry, DropReason::TooBig)
            }
        }
    }

    /// Plain forwarding to another port.
    fn forward(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        from: Classified<P::Buf>,
    ) -> Step<()> {
        let mtu = self.ports.get(usize::from(port.0)).map_or(0, |p| p.mtu);
        let Classified {
            packet,
            port: came_by,
            ..
        } = from;
        if packet.meta.gso == Gso::None && packet.buf.len() > usize::from(mtu) {
            self.complain(
                now,
                came_by,
                packet.buf.bytes(),
                IcmpError::FragmentationNeeded { mtu },
            );
            return dropped(Stage::Carry, DropReason::TooBig);
        }
        self.send_ip(now, port, next_hop, packet);
        Ok(())
    }

    /// A datagram came over the link from `peer`.
    pub(super) fn deliver_datagram(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut bytes: Vec<u8>,
    ) -> Step<()> {
        let (src, dst, ttl, protocol) = match ipv4::View::parse(&bytes) {
            Ok(v) => (
                IpAddr::from(v.src()),
                IpAddr::from(v.dst()),
                v.ttl(),
                v.protocol(),
            ),
            Err(e) => return dropped(Stage::Open, e),
        };
        if !self.fib.source_allowed(peer, src) {
            return dropped(Stage::Open, DropReason::SourceNotAllowed);
        }
        self.stats.datagrams_received += 1;
        match self.fib.lookup(dst) {
            Some(Route::Local(_)) => {
                let mut out = Vec::new();
                match self.icmp.echo_reply(now, &bytes, &mut out) {
                    Ok(()) => {
                        self.send_own(now, &out);
                        Ok(())
                    }
                    Err(reason) => dropped(Stage::Open, reason),
                }
            }
            Some(Route::Connected { .. } | Route::Via { .. }) => {
                if protocol == ipv4::PROTOCOL_ICMP && self.icmp_into_flow(now, &bytes) {
                    return Ok(());
                }
                if ttl <= 1 {
                    let port = self.local_port_of(dst);
                    self.complain(now, port, &bytes, IcmpError::TimeExceeded);
                    return dropped(Stage::Route, DropReason::TtlExpired);
                }
                if ipv4::decrement_ttl(&mut bytes).is_err() {
                    return dropped(Stage::Route, DropReason::TtlExpired);
                }
                self.send_own(now, &bytes);
                Ok(())
            }
            Some(Route::Peer(_) | Route::Broadcast(_)) => {
                dropped(Stage::Route, DropReason::DestinationNotAllowed)
            }
            None => {
                let port = self.local_port_of(dst);
                self.complain(now, port, &bytes, IcmpError::NetUnreachable);
                dropped(Stage::Route, DropReason::NoRoute)
            }
        }
    }

    /// The port on whose side `address` is, or the first.
    fn local_port_of(&self, address: IpAddr) -> PortId {
        match self.fib.lookup(address) {
            Some(
                Route::Connected { port }
                | Route::Via { port, .. }
                | Route::Local(port)
                | Route::Broadcast(port),
            ) => port,
            _ => PortId(0),
        }
    }

    /// Sends a whole IPv4 packet that the router made or unpacked, wherever the forwarding table says.
    pub(super) fn send_own(&mut self, now: Instant, bytes: &[u8]) {
        let Some(tuple) = tuple_of(bytes) else { return };
        if let Some(Route::Peer(peer)) = self.fib.lookup(tuple.destination) {
            let queued = self
                .peer_mut(peer)
                .map(|p| p.link.send_datagram(now, hash_of(&tuple), bytes.to_vec()));
            if let Some(Err(_)) = queued {
                self.counters.count(Stage::Carry, DropReason::QueueFull);
            }
            return;
        }
        let Some((port, next_hop)) = self.next_hop(tuple.destination) else {
            return;
        };
        let Some(buf) = self.buffer_of(port, bytes) else {
            return;
        };
        self.send_ip(
            now,
            port,
            next_hop,
            Packet {
                buf,
                meta: Default::default(),
            },
        );
    }
}

/// Queue of a datagram flow; 24 bits keep the number of queues of a flood bounded.
fn hash_of(tuple: &FlowTuple) -> u32 {
    let mut h = DefaultHasher::new();
    (
        tuple.source,
        tuple.destination,
        tuple.protocol,
        tuple.source_port,
        tuple.port,
    )
        .hash(&mut h);
    (h.finish() & 0xff_ffff) as u32
}
