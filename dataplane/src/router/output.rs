//! Pack, Seal and tx: from the queues of a line to the wire, and every other
//! way out of the router.

use std::net::{IpAddr, SocketAddr};

use mef_crypto::HEADER_LEN as LINK_HEADER;
use mef_io::Port;
use mef_packet::wire::{ethernet, ip, tcp};
use mef_packet::{Buffer, Checksum, Gso, Instant, Meta, Packet, PortId};
use mef_protocol::link::Packed;

use super::pipeline::{dropped, Step};
use super::plain::PlainPacket;
use super::{Router, ETHERNET};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::flow_table::FlowKey;
use crate::host_tcp;
use crate::icmp::IcmpError;
use crate::neighbour::{Event, Resolution};
use crate::outer;

pub(super) const TAG: usize = mef_crypto::OVERHEAD - LINK_HEADER;

/// Bytes that wait to be handed to a port, at most: they are to be in the cache still.
const MOST_WAITING: usize = 256 << 10;

impl<P: Port> Router<P> {
    /// Gives a buffer back to the port that it came from.
    pub(super) fn recycle(&mut self, port: PortId, buf: P::Buf) {
        if let Some(p) = self.ports.get_mut(usize::from(port.0)) {
            p.port.recycle(buf);
        }
    }

    /// Seals the packet in `self.inner` and sends it to `to`, or where its peer is.
    pub(super) fn seal_to(
        &mut self,
        now: Instant,
        line: usize,
        place: usize,
        packed: Packed,
        to: Option<SocketAddr>,
    ) -> Step<()> {
        let Some(l) = self.lines.get_mut(line) else {
            return Ok(());
        };
        let (port, listen) = (l.port, l.listen);
        let class = packed.traffic_class & if l.copy_dscp { 0xff } else { 3 };
        let Some(peer) = l.peers.get_mut(place) else {
            return Ok(());
        };
        let Some(p) = self.ports.get_mut(usize::from(port.0)) else {
            return Ok(());
        };
        let len = LINK_HEADER + packed.inner_len + TAG;
        let mut buf = p.port.alloc(len);
        let Some(bytes) = buf.append(len) else {
            return dropped(Stage::Seal, DropReason::NoRoom);
        };
        if let Some(to) = bytes.get_mut(LINK_HEADER..LINK_HEADER + packed.inner_len) {
            to.copy_from_slice(&self.inner);
        }
        let sealed = peer.seal(bytes);
        let (Ok(_), Some(to)) = (sealed, to.or(peer.path.address())) else {
            return dropped(Stage::Seal, DropReason::NoSession);
        };
        self.send_outer_as(now, port, listen, to, class, buf);
        Ok(())
    }

    /// A packet in the clear whose turn on the line it is.
    pub(super) fn send_plain(
        &mut self,
        now: Instant,
        line: usize,
        plain: PlainPacket<P::Buf>,
    ) -> Step<()> {
        if let Some(port) = self.lines.get(line).map(|l| l.port) {
            self.send_ip(now, port, plain.next_hop, plain.packet);
        }
        Ok(())
    }

    /// A buffer of `port` with a copy of `bytes`.
    pub(super) fn buffer_of(&mut self, port: PortId, bytes: &[u8]) -> Option<P::Buf> {
        let Self { ports, inner, .. } = self;
        let p = ports.get_mut(usize::from(port.0))?;
        let mut buf = p.port.alloc(bytes.len());
        buf.append_with(inner, |out| out.extend_from_slice(bytes))?;
        Some(buf)
    }

    /// Through which port and neighbour `destination` is reached without a link; counted where it is not.
    pub(super) fn next_hop(&mut self, destination: IpAddr) -> Option<(PortId, IpAddr)> {
        match self.fib.lookup(destination) {
            Some(Route::Connected { port }) => Some((port, destination)),
            Some(Route::Via { port, next_hop }) => Some((port, next_hop)),
            _ => {
                self.counters.count(Stage::Route, DropReason::NoRoute);
                None
            }
        }
    }

    /// Puts UDP and IP around a sealed packet or a handshake message and sends it.
    pub(super) fn send_outer(
        &mut self,
        now: Instant,
        port: PortId,
        source_port: u16,
        to: SocketAddr,
        buf: P::Buf,
    ) {
        self.send_outer_as(now, port, source_port, to, 0, buf);
    }

    /// The same, with a traffic class (DS field and ECN bits) for the packet around.
    pub(super) fn send_outer_as(
        &mut self,
        now: Instant,
        port: PortId,
        source_port: u16,
        to: SocketAddr,
        class: u8,
        buf: P::Buf,
    ) {
        self.send_outer_cut(now, port, source_port, to, class, buf, None);
    }

    /// The same, of a super-frame whose packets are of `cut` bytes each.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn send_outer_cut(
        &mut self,
        now: Instant,
        port: PortId,
        source_port: u16,
        to: SocketAddr,
        class: u8,
        mut buf: P::Buf,
        cut: Option<u16>,
    ) {
        let Some((out_port, next_hop)) = self.next_hop(to.ip()) else {
            return;
        };
        let from = SocketAddr::new(self.address(port, next_hop), source_port);
        let Ok(checksum) = outer::wrap(&mut buf, from, to, class) else {
            self.counters.count(Stage::Seal, DropReason::NoRoom);
            return;
        };
        let meta = Meta {
            checksum,
            gso: if cut.is_some() { Gso::Udp } else { Gso::None },
            gso_size: cut.unwrap_or(0),
            ..Meta::default()
        };
        self.send_ip(now, out_port, next_hop, Packet { buf, meta });
    }

    /// Sends a TCP segment that the router made, with its partial checksum, to a host.
    pub(super) fn send_segment(&mut self, now: Instant, bytes: &[u8], gso_size: u16) {
        let Ok(view) = ip::View::parse_unverified(bytes) else {
            return;
        };
        let Some((port, next_hop)) = self.next_hop(view.dst()) else {
            return;
        };
        let Some(buf) = self.buffer_of(port, bytes) else {
            return;
        };
        self.send_segment_in(now, port, next_hop, buf, gso_size);
    }

    /// The same, of a segment in a buffer of the port that it leaves by.
    pub(super) fn send_segment_in(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        buf: P::Buf,
        gso_size: u16,
    ) {
        let bytes = buf.bytes();
        let Ok(view) = ip::View::parse_unverified(bytes) else {
            return;
        };
        let start = (ethernet::HEADER_LEN + view.header_len()) as u16;
        let meta = Meta {
            port,
            gso: match view {
                _ if gso_size == 0 => Gso::None,
                ip::View::V4(_) => Gso::TcpV4,
                ip::View::V6(_) => Gso::TcpV6,
            },
            gso_size,
            checksum: Checksum::Partial {
                start,
                offset: tcp::CHECKSUM_AT as u16,
            },
            ..Meta::default()
        };
        let line = self.ports.get(usize::from(port.0)).and_then(|p| p.line);
        if let Some(l) = line.and_then(|l| self.lines.get_mut(l)) {
            // A host on a line: its window paces it, what it gets is the line's all the same.
            l.line
                .charge_plain(now, bytes.len() as u64 + u64::from(ETHERNET));
        }
        self.send_ip(now, port, next_hop, Packet { buf, meta });
    }

    /// Sends an IP packet to a neighbour, or keeps it until the neighbour's address is known.
    pub(super) fn send_ip(
        &mut self,
        now: Instant,
        port: PortId,
        next_hop: IpAddr,
        packet: Packet<P::Buf>,
    ) {
        match self.neighbours.resolve(now, port, next_hop) {
            Resolution::Known(mac) => self.send_frame(port, mac, packet),
            Resolution::Pending => {
                self.neighbours.hold(port, next_hop, packet);
                self.neighbour_events(now);
            }
            Resolution::Refused(reason) => {
                self.counters.count(Stage::Route, reason);
                self.neighbour_events(now);
            }
        }
    }

    #[inline]
    pub(super) fn send_frame(&mut self, port: PortId, dst: [u8; 6], mut packet: Packet<P::Buf>) {
        let Some(p) = self.ports.get_mut(usize::from(port.0)) else {
            return;
        };
        let header = ethernet::Header {
            dst,
            src: p.mac,
            ethertype: match ip::version(packet.buf.bytes()) {
                6 => ethernet::ETHERTYPE_IPV6,
                _ => ethernet::ETHERTYPE_IPV4,
            },
        };
        let emitted = packet
            .buf
            .prepend(ethernet::HEADER_LEN)
            .is_some_and(|h| header.emit(h).is_ok());
        if !emitted {
            self.counters.count(Stage::Tx, DropReason::NoRoom);
            return;
        }
        Self::queue_frame(p, packet);
    }

    /// A whole frame leaves by `p`. Inlined so that the frame is written to where it waits.
    #[inline(always)]
    pub(super) fn queue_frame(p: &mut super::PortState<P>, frame: Packet<P::Buf>) {
        p.waiting += frame.buf.len();
        p.out.push(frame);
        if p.out.len() >= super::BATCH || p.waiting >= MOST_WAITING {
            Self::flush_port(p);
        }
    }

    fn flush_port(p: &mut super::PortState<P>) {
        if !p.out.is_empty() {
            p.port.tx(&mut p.out);
        }
        p.waiting = 0;
    }

    /// Hands everything that is ready to the ports.
    pub(super) fn flush(&mut self) {
        for p in &mut self.ports {
            Self::flush_port(p);
        }
        if let Some(crew) = &mut self.crew {
            crew.ring();
        }
    }

    /// Does what the neighbour table asks for.
    pub(super) fn neighbour_events(&mut self, now: Instant) {
        while let Some(event) = self.neighbours.poll_event() {
            match event {
                Event::Send { port, frame } => {
                    let meta = Meta {
                        port,
                        checksum: Checksum::Verified,
                        ..Meta::default()
                    };
                    let buf = self.buffer_of(port, &frame);
                    if let (Some(buf), Some(p)) = (buf, self.ports.get_mut(usize::from(port.0))) {
                        p.out.push(Packet { buf, meta });
                    }
                }
                Event::Deliver { port, mac, packet } => self.send_frame(port, mac, packet),
                Event::Unreachable { port, packet, .. } => {
                    self.counters
                        .count(Stage::Route, DropReason::UnresolvedNeighbour);
                    self.unreachable(now, port, packet.buf.bytes());
                }
                Event::Dropped { reason, .. } => self.counters.count(Stage::Route, reason),
                Event::Conflict { .. } => self.stats.address_conflicts += 1,
            }
        }
    }

    /// Nobody answers for the destination of `packet`: its sender hears of it, be it a host or one of our flows.
    fn unreachable(&mut self, now: Instant, port: PortId, packet: &[u8]) {
        let Ok(view) = ip::View::parse_unverified(packet) else {
            return;
        };
        let source = self.address(port, view.dst());
        let mut out = Vec::new();
        if self
            .icmp
            .error(
                now,
                IcmpError::HostUnreachable,
                packet,
                source,
                false,
                &mut out,
            )
            .is_ok()
            && !self.icmp_into_flow(now, &out)
            && !self.of_split_flow(&out)
        {
            self.send_own(now, &out);
        }
    }

    /// Whether an ICMP error is about a segment that we sent in another's name: of several that
    /// waited, the first ended the flow, and the other host knows nothing of the rest.
    fn of_split_flow(&self, icmp: &[u8]) -> bool {
        host_tcp::icmp_flow(icmp).is_some_and(|(far, host)| {
            let key = FlowKey { host, far };
            self.flows.by_key(&key).is_some()
        })
    }
}
