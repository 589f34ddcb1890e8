//! Packets in the clear from port to port, as any IP router forwards them:
//! too large ones are fragmented or explained, super-segments stay whole where
//! the port cuts them. Where the port has a line, they wait in queues of their
//! flows for their share of it.

use std::net::IpAddr;

use mef_io::{Caps, Port};
use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::segment::{fragments, Segments};
use mef_packet::wire::{ipv4, WireError};
use mef_packet::{Buffer, Checksum, Gso, Instant, Meta, Packet, PortId};
use mef_protocol::aqm::Queued;
use mef_protocol::link::DatagramFlow;

use super::mss;
use super::pipeline::{dropped, Step};
use super::route::Classified;
use super::Router;
use crate::drops::{DropReason, Stage};
use crate::icmp::IcmpError;

/// An IP packet that waits for its turn on a line.
pub(super) struct PlainPacket<B> {
    pub packet: Packet<B>,
    pub next_hop: IpAddr,
}

impl<B: Buffer> Queued for PlainPacket<B> {
    fn size(&self) -> usize {
        self.packet.buf.len()
    }
    fn ecn(&self) -> Ecn {
        Ecn::of(self.packet.buf.bytes())
    }
    fn mark(&mut self) {
        // A capable packet has an IP header, so this cannot fail.
        let _ = ecn::set(self.packet.buf.bytes_mut(), Ecn::Ce);
    }
}

/// Bytes of the largest packet on the wire.
fn largest<B: Buffer>(packet: &Packet<B>) -> Result<usize, WireError> {
    let bytes = packet.buf.bytes();
    match packet.meta.gso {
        Gso::None => Ok(bytes.len()),
        _ => Segments::new(bytes, packet.meta.gso_size).map(|s| s.largest()),
    }
}

/// Whether a packet may be fragmented on its way.
pub(super) fn may_fragment(packet: &[u8]) -> bool {
    ipv4::View::parse_unverified(packet).is_ok_and(|v| !v.dont_fragment())
}

fn cuts(caps: Caps, gso: Gso) -> bool {
    match gso {
        Gso::None => true,
        Gso::TcpV4 | Gso::TcpV6 => caps.tcp_gso,
        Gso::Udp => caps.udp_gso,
    }
}

impl<P: Port> Router<P> {
    /// Sends a packet out of `port` to `next_hop`.
    pub(super) fn forward(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        mut from: Classified<P::Buf>,
    ) -> Step<()> {
        let Some(p) = self.ports.get(usize::from(port.0)) else {
            return dropped(Stage::Carry, DropReason::NoRoute);
        };
        let (mtu, line, caps) = (p.mtu, p.line, p.port.caps());
        if mss::is_syn(from.packet.buf.bytes()) {
            let came_by = self.ports.get(usize::from(from.port.0));
            let least = came_by.map_or(mtu, |p| p.mtu.min(mtu));
            Self::complete_checksum(&mut from.packet)?;
            mss::clamp(from.packet.buf.bytes_mut(), usize::from(least));
        }
        let gso = from.packet.meta.gso;
        if line.is_none() && gso == Gso::None && from.packet.buf.len() <= usize::from(mtu) {
            self.send_ip(now, port, next_hop, from.packet);
            return Ok(());
        }
        let size = match largest(&from.packet) {
            Ok(size) => size,
            Err(e) => return dropped(Stage::Carry, e),
        };
        let flow = self.datagram_flow(&from);
        if size > usize::from(mtu) {
            let bytes = from.packet.buf.bytes();
            if gso != Gso::None || !may_fragment(bytes) {
                self.complain(
                    now,
                    from.port,
                    bytes,
                    IcmpError::FragmentationNeeded { mtu },
                );
                return dropped(Stage::Carry, DropReason::TooBig);
            }
            Self::complete_checksum(&mut from.packet)?;
            let list = match fragments(from.packet.buf.bytes(), usize::from(mtu)) {
                Ok(list) => list,
                Err(e) => return dropped(Stage::Carry, e),
            };
            for fragment in list {
                self.forward_made(now, port, next_hop, flow, &fragment);
            }
            return Ok(());
        }
        if gso != Gso::None && (line.is_some() || !cuts(caps, gso)) {
            let bytes = from.packet.buf.bytes();
            let Ok(mut cut) = Segments::new(bytes, from.packet.meta.gso_size) else {
                return dropped(Stage::Carry, DropReason::BadLength);
            };
            while cut.remaining() > 0 {
                if !self.line_admits(now, line, flow, size) {
                    let n = cut.remaining() as u64;
                    self.counters
                        .count_many(Stage::Carry, DropReason::QueueFull, n);
                    break;
                }
                let Some(segment) = cut.next() else { break };
                self.forward_made(now, port, next_hop, flow, &segment);
            }
            return Ok(());
        }
        if !self.line_admits(now, line, flow, size) {
            return dropped(Stage::Carry, DropReason::QueueFull);
        }
        self.leave(now, port, next_hop, flow, from.packet);
        Ok(())
    }

    fn line_admits(
        &mut self,
        now: Instant,
        line: Option<usize>,
        flow: DatagramFlow,
        size: usize,
    ) -> bool {
        match line.and_then(|l| self.lines.get_mut(l)) {
            Some(l) => l.line.admits_plain(now, flow.id, size),
            None => true,
        }
    }

    /// Sends a packet that the router put together, with all its checksums.
    pub(super) fn forward_made(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        flow: DatagramFlow,
        bytes: &[u8],
    ) {
        let Some(buf) = self.buffer_of(port, bytes) else {
            return;
        };
        let meta = Meta {
            checksum: Checksum::Verified,
            ..Meta::default()
        };
        self.leave(now, port, next_hop, flow, Packet { buf, meta });
    }

    /// Out of the port, by way of its line where it has one.
    fn leave(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        flow: DatagramFlow,
        packet: Packet<P::Buf>,
    ) {
        let line = self.ports.get(usize::from(port.0)).and_then(|p| p.line);
        let Some(line) = line.and_then(|l| self.lines.get_mut(l)) else {
            self.send_ip(now, port, next_hop, packet);
            return;
        };
        let waiting = PlainPacket { packet, next_hop };
        if line.line.send_plain(now, flow, waiting).is_err() {
            self.counters.count(Stage::Carry, DropReason::QueueFull);
        }
    }
}
