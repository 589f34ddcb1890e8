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
use std::time::Duration;

use mef_crypto::HEADER_LEN as LINK_HEADER;
use mef_io::Port;
use mef_packet::wire::{ipv4, ipv6};
use mef_packet::{Buffer, Checksum, Gso, Instant, Meta, Packet, PortId};
use mef_protocol::classes::Class;
use mef_protocol::line::LinkEnd;
use mef_protocol::link::FRONT;

use super::ingress::Transit;
use super::pipeline::{dropped, Step};
use super::route::{tuple_of, Classified};
use super::{mss, Router};
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::neighbour::Resolution;
use crate::outer::Headers;

const TAG: usize = mef_crypto::OVERHEAD - LINK_HEADER;

/// How packets for one address of a peer leave.
pub(super) struct Way {
    to: SocketAddr,
    port: PortId,
    headers: Headers,
    /// What the neighbour table had come to when it named the neighbour that the headers have.
    resolved: Option<u64>,
}

/// What came over a link, and where it goes.
pub(super) struct Onward {
    pub transit: Transit,
    pub port: PortId,
    /// Where it is not its destination that is the next hop.
    pub gateway: Option<IpAddr>,
}

impl Onward {
    pub const NOWHERE: Self = Self {
        transit: Transit::NONE,
        port: PortId(0),
        gateway: None,
    };

    #[inline]
    pub fn is_tcp(&self) -> bool {
        self.transit.protocol == ipv4::PROTOCOL_TCP
    }

    #[inline]
    fn next_hop(&self) -> &IpAddr {
        self.gateway.as_ref().unwrap_or(&self.transit.dst)
    }
}

impl<P: Port> Router<P> {
    /// [Seals](Self::seal_directly) a packet that may be sent directly: a datagram whatever the state of its
    /// link or of any connection.
    #[inline]
    pub(super) fn seal_transit(
        &mut self,
        now: Instant,
        peer: PeerId,
        transit: &Transit,
        packet: &mut Packet<P::Buf>,
    ) -> Option<Step<u8>> {
        let whole = packet.meta.gso == Gso::None
            && !matches!(packet.meta.checksum, Checksum::Partial { .. });
        let other = matches!(
            transit.protocol,
            ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_ICMP | ipv6::PROTOCOL_ICMPV6
        );
        if !whole || other {
            return None;
        }
        let bytes = packet.buf.bytes();
        let class = if self.config.policies.is_empty() {
            Class::default()
        } else {
            let treatment = self.config.treatment(&transit.tuple(bytes));
            if treatment.allows_plain() {
                return None;
            }
            treatment.class
        };
        let flow = self.transit_number(transit, bytes, class);
        self.seal_directly(now, peer, flow, packet)
    }

    /// Frames and seals a datagram in its buffer, if it need not wait; with what traffic class it is to be
    /// [sent](Self::send_sealed). `None`, and the packet is unchanged, where it has to wait or its buffer
    /// has no room for what goes around it.
    #[inline]
    pub(super) fn seal_directly(
        &mut self,
        now: Instant,
        peer: PeerId,
        flow: u32,
        packet: &mut Packet<P::Buf>,
    ) -> Option<Step<u8>> {
        let len = packet.buf.len();
        let &(line, place) = self.places.get(usize::from(peer.0))?;
        let l = self.lines.get_mut(line)?;
        let port = self.ports.get(usize::from(l.port.0))?;
        if port.super_frames || !l.line.is_free(now, place) {
            return None;
        }
        let peer = l.peers.get_mut(place)?;
        let number = peer.next_number()?;
        if peer.path.address().is_none() || !peer.link.sends_directly(len) {
            return None;
        }
        packet.buf.append(TAG)?;
        if packet.buf.prepend(LINK_HEADER + FRONT).is_none() {
            packet.buf.truncate(len);
            return None;
        }
        let bytes = packet.buf.bytes_mut();
        let inner = bytes.get_mut(LINK_HEADER..LINK_HEADER + FRONT + len);
        let packed = inner.and_then(|i| peer.link.pack_directly(now, number, flow, i));
        let Some(packed) = packed else {
            return Some(dropped(Stage::Seal, DropReason::NoRoom));
        };
        l.line.charge_link(now, place, packed.line_bytes);
        l.last_sent = now;
        self.waited.record(Duration::ZERO);
        self.stats.datagrams_sent += 1;
        if peer.seal(bytes).is_err() {
            return Some(dropped(Stage::Seal, DropReason::NoSession));
        }
        Some(Ok(packed.traffic_class & if l.copy_dscp { 0xff } else { 3 }))
    }

    /// Sends a sealed packet to where its peer is, with headers that are kept for the next one.
    #[inline]
    pub(super) fn send_sealed(&mut self, now: Instant, peer: PeerId, class: u8, mut buf: P::Buf) {
        let changes = self.neighbours.changes();
        let to = self.peer(peer).and_then(|p| p.path.address());
        let way = self.ways.get(usize::from(peer.0)).and_then(Option::as_ref);
        let way = way.filter(|w| w.resolved == Some(changes) && Some(w.to) == to);
        let Some(way) = way else {
            return self.send_first_sealed(now, peer, class, buf);
        };
        let Some(p) = self.ports.get_mut(usize::from(way.port.0)) else {
            return;
        };
        if way.headers.put_frame(&mut buf, class).is_err() {
            self.counters.count(Stage::Seal, DropReason::NoRoom);
            return;
        }
        let meta = Meta {
            checksum: Checksum::Verified,
            ..Meta::default()
        };
        Self::queue_frame(p, Packet { buf, meta });
    }

    /// The same, where the way has to be found first.
    #[cold]
    fn send_first_sealed(&mut self, now: Instant, peer: PeerId, class: u8, mut buf: P::Buf) {
        let Some(&(line, place)) = self.places.get(usize::from(peer.0)) else {
            return;
        };
        let Some(l) = self.lines.get(line) else {
            return;
        };
        let (port, listen) = (l.port, l.listen);
        let Some(to) = l.peers.get(place).and_then(|p| p.path.address()) else {
            self.counters.count(Stage::Seal, DropReason::NoSession);
            return;
        };
        let at = usize::from(peer.0);
        if self.ways.len() <= at {
            self.ways.resize_with(at + 1, || None);
        }
        let Some((out_port, next_hop)) = self.next_hop(to.ip()) else {
            return;
        };
        let from = SocketAddr::new(self.address(port, next_hop), listen);
        let Some(mut headers) = Headers::new(from, to) else {
            self.send_outer_as(now, port, listen, to, class, buf);
            return;
        };
        if headers.put(&mut buf, class).is_err() {
            self.counters.count(Stage::Seal, DropReason::NoRoom);
            return;
        }
        let mut resolved = None;
        if let Resolution::Known(mac) = self.neighbours.resolve(now, out_port, next_hop) {
            let own = self.ports.get(usize::from(out_port.0)).map(|p| p.mac);
            headers.set_neighbour(mac, own.unwrap_or_default());
            resolved = Some(self.neighbours.changes());
        }
        if let Some(place) = self.ways.get_mut(at) {
            *place = Some(Way {
                to,
                port: out_port,
                headers,
                resolved,
            });
        }
        let meta = Meta {
            checksum: Checksum::Verified,
            ..Meta::default()
        };
        self.send_ip(now, out_port, next_hop, Packet { buf, meta });
    }

    /// A datagram arrived from a host of `peer`, and is all that is left in the buffer of `packet`.
    #[inline]
    pub(super) fn deliver_directly(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut packet: Packet<P::Buf>,
    ) -> Step<()> {
        let mut onward = Onward::NOWHERE;
        if self.arrive(now, peer, packet.buf.bytes_mut(), &mut onward)? {
            self.leave_link(now, &onward, packet.buf)
        } else {
            Ok(())
        }
    }

    /// Sends what came over a link on to its host.
    #[inline]
    pub(super) fn leave_link(&mut self, now: Instant, onward: &Onward, buf: P::Buf) -> Step<()> {
        let bytes = buf.bytes();
        let port = onward.port;
        let out = self.ports.get(usize::from(port.0));
        let passes = out.is_some_and(|p| p.line.is_none() && bytes.len() <= usize::from(p.mtu));
        if !passes || (onward.is_tcp() && mss::is_syn(bytes)) {
            return self.leave_by_line(now, onward, buf);
        }
        let meta = Meta::default();
        match self.neighbours.known(port, onward.next_hop()) {
            Some(mac) => self.send_frame(port, mac, Packet { buf, meta }),
            None => self.send_ip(now, port, *onward.next_hop(), Packet { buf, meta }),
        }
        Ok(())
    }

    fn leave_by_line(&mut self, now: Instant, onward: &Onward, buf: P::Buf) -> Step<()> {
        let Some(tuple) = tuple_of(buf.bytes()) else {
            return dropped(Stage::Open, DropReason::Truncated);
        };
        // An error about it goes back the way it came, from the address on its destination's side.
        let meta = Meta::default();
        let from = Classified {
            port: onward.port,
            treatment: self.config.treatment(&tuple),
            tuple,
            packet: Packet { buf, meta },
        };
        self.forward(now, onward.port, *onward.next_hop(), from)
    }
}
