//! The short way of a datagram through a link whose line nobody waits for: framed,
//! sealed and sent in the buffer it came in, and at the other end opened and
//! sent on in the one that it arrived in. A queue would hold it for no time, and a
//! scheduler would have no choice; both cost more than the encryption.
//!
//! ```text
//!  came in      [ headroom .................................... | IP packet | tailroom ]
//!  goes out     [ .. | Ethernet IP UDP | LINK 16 | FRONT 15 | IP packet | tag 16 | .. ]
//! ```

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use mef_crypto::HEADER_LEN as LINK_HEADER;
use mef_io::Port;
use mef_packet::wire::{ipv4, ipv6};
use mef_packet::{Buffer, Checksum, Gso, Instant, Meta, Packet, PortId};
use mef_protocol::line::LinkEnd;
use mef_protocol::link::{DatagramFlow, FRONT};

use super::ingress::Transit;
use super::pipeline::{dropped, Step};
use super::route::{tuple_of, Classified};
use super::{mss, Router};
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::outer::Headers;

const TAG: usize = mef_crypto::OVERHEAD - LINK_HEADER;

/// What a sealed packet leaves with: from which port and UDP port, whereto, with which traffic class.
struct Out {
    port: PortId,
    listen: u16,
    to: SocketAddr,
    class: u8,
}

/// Where a datagram lies in the UDP payload that it came in, and the peer it is of.
pub(super) struct Arrived {
    pub peer: PeerId,
    pub place: Range<usize>,
}

/// How packets for one address of a peer leave.
pub(super) struct Way {
    to: SocketAddr,
    port: PortId,
    next_hop: IpAddr,
    headers: Headers,
}

/// Where what came over a link goes.
pub(super) struct Onward {
    pub port: PortId,
    pub next_hop: IpAddr,
    pub tcp: bool,
}

impl<P: Port> Router<P> {
    /// The flow of a packet that may be sent directly: a datagram whatever the state of its link or of
    /// any connection.
    pub(super) fn direct_flow(
        &self,
        transit: &Transit,
        packet: &Packet<P::Buf>,
    ) -> Option<DatagramFlow> {
        let whole = packet.meta.gso == Gso::None
            && !matches!(packet.meta.checksum, Checksum::Partial { .. });
        let other = matches!(
            transit.protocol,
            ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_ICMP | ipv6::PROTOCOL_ICMPV6
        );
        if !whole || other {
            return None;
        }
        let tuple = transit.tuple(packet.buf.bytes());
        let treatment = self.config.treatment(&tuple);
        (!treatment.allows_plain()).then(|| self.flow_of(&tuple, &treatment))
    }

    /// Sends a sealed packet to a peer, with headers that are kept for the next one.
    fn send_outer_to(&mut self, now: Instant, peer: PeerId, out: Out, mut buf: P::Buf) {
        let at = usize::from(peer.0);
        if self.ways.len() <= at {
            self.ways.resize_with(at + 1, || None);
        }
        let known = self.ways.get(at).and_then(Option::as_ref);
        if known.is_none_or(|w| w.to != out.to) {
            let way = self.way(&out);
            let Some(place) = self.ways.get_mut(at).filter(|_| way.is_some()) else {
                self.send_outer_as(now, out.port, out.listen, out.to, out.class, buf);
                return;
            };
            *place = way;
        }
        let Some(way) = self.ways.get(at).and_then(Option::as_ref) else {
            return;
        };
        if way.headers.put(&mut buf, out.class).is_err() {
            self.counters.count(Stage::Seal, DropReason::NoRoom);
            return;
        }
        let (port, next_hop) = (way.port, way.next_hop);
        let meta = Meta {
            checksum: Checksum::Verified,
            ..Meta::default()
        };
        self.send_ip(now, port, next_hop, Packet { buf, meta });
    }

    fn way(&mut self, out: &Out) -> Option<Way> {
        let (port, next_hop) = self.next_hop(out.to.ip())?;
        let from = SocketAddr::new(self.address(out.port, next_hop), out.listen);
        let headers = Headers::new(from, out.to)?;
        Some(Way {
            to: out.to,
            port,
            next_hop,
            headers,
        })
    }

    /// Seals and sends a datagram at once.
    ///
    /// # Errors
    /// The packet, unchanged, where it has to wait or its buffer has no room for what goes around it.
    pub(super) fn send_directly(
        &mut self,
        now: Instant,
        peer: PeerId,
        flow: u32,
        mut packet: Packet<P::Buf>,
    ) -> Result<Step<()>, Packet<P::Buf>> {
        let (id, len) = (peer, packet.buf.len());
        let Some(&(line, place)) = self.places.get(usize::from(peer.0)) else {
            return Err(packet);
        };
        let Some(l) = self.lines.get_mut(line) else {
            return Err(packet);
        };
        let port = self.ports.get(usize::from(l.port.0));
        let free = port.is_some_and(|p| !p.super_frames) && l.line.is_free(now, place);
        let Some(peer) = l.peers.get_mut(place).filter(|_| free) else {
            return Err(packet);
        };
        let (Some(number), Some(to), true) = (
            peer.next_number(),
            peer.path.address(),
            peer.link.sends_directly(len),
        ) else {
            return Err(packet);
        };
        if packet.buf.append(TAG).is_none() {
            return Err(packet);
        }
        if packet.buf.prepend(LINK_HEADER + FRONT).is_none() {
            packet.buf.truncate(len);
            return Err(packet);
        }
        let bytes = packet.buf.bytes_mut();
        let inner = bytes.get_mut(LINK_HEADER..LINK_HEADER + FRONT + len);
        let packed = inner.and_then(|i| peer.link.pack_directly(now, number, flow, i));
        let Some(packed) = packed else {
            return Ok(dropped(Stage::Seal, DropReason::NoRoom));
        };
        l.line.charge_link(now, place, packed.line_bytes);
        l.last_sent = now;
        self.waited.record(Duration::ZERO);
        self.stats.datagrams_sent += 1;
        let out = Out {
            port: l.port,
            listen: l.listen,
            to,
            class: packed.traffic_class & if l.copy_dscp { 0xff } else { 3 },
        };
        if peer.seal(bytes).is_err() {
            return Ok(dropped(Stage::Seal, DropReason::NoSession));
        }
        self.send_outer_to(now, id, out, packet.buf);
        Ok(Ok(()))
    }

    /// A datagram arrived in `packet`, whose buffer begins with the UDP payload.
    pub(super) fn deliver_directly(
        &mut self,
        now: Instant,
        mut packet: Packet<P::Buf>,
        arrived: Arrived,
    ) -> Step<()> {
        if packet.buf.trim_front(arrived.place.start).is_none() {
            return dropped(Stage::Open, DropReason::Truncated);
        }
        packet.buf.truncate(arrived.place.len());
        packet.meta = Meta::default();
        match self.arrive(now, arrived.peer, packet.buf.bytes_mut())? {
            Some(onward) => self.leave_link(now, onward, packet),
            None => Ok(()),
        }
    }

    /// Sends what came over a link on to its host.
    pub(super) fn leave_link(
        &mut self,
        now: Instant,
        onward: Onward,
        packet: Packet<P::Buf>,
    ) -> Step<()> {
        let Onward {
            port,
            next_hop,
            tcp,
        } = onward;
        let bytes = packet.buf.bytes();
        let out = self.ports.get(usize::from(port.0));
        let passes = out.is_some_and(|p| p.line.is_none() && bytes.len() <= usize::from(p.mtu));
        if passes && packet.meta.gso == Gso::None && !(tcp && mss::is_syn(bytes)) {
            self.send_ip(now, port, next_hop, packet);
            return Ok(());
        }
        let Some(tuple) = tuple_of(bytes) else {
            return dropped(Stage::Open, DropReason::Truncated);
        };
        // An error about it goes back the way it came, from the address on its destination's side.
        let from = Classified {
            port,
            treatment: self.config.treatment(&tuple),
            tuple,
            packet,
        };
        self.forward(now, port, next_hop, from)
    }
}
