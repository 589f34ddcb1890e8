//! Carry: into a split flow, as a datagram over a link, or plainly to another port;
//! and what came over a link as a datagram, on to its host.

use std::net::IpAddr;

use mef_io::Port;
use mef_packet::wire::{ip, ipv4, ipv6, tcp};
use mef_packet::{Buffer, Gso, Instant, Packet, PortId};

use super::direct::Onward;
use super::ingress::Transit;
use super::manner::Manner;
use super::mss;
use super::pipeline::{dropped, Step};
use super::route::tuple_of;
use super::Router;
use crate::config::{PeerId, Treatment};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::icmp::IcmpError;

/// Subtype of the MPTCP option that joins a connection (RFC 8684 section 8).
const MP_JOIN: u8 = 1;

impl<P: Port> Router<P> {
    pub(super) fn carry(
        &mut self,
        now: Instant,
        mut packet: Packet<P::Buf>,
        transit: &Transit,
        route: &Route,
    ) -> Step<()> {
        let (port, next_hop) = match *route {
            Route::Connected { port } => (port, transit.dst),
            Route::Via { port, next_hop } => (port, next_hop),
            Route::Peer(peer) => {
                self.counters.at_link(peer.0);
                let from = if transit.fragment && transit.protocol == ipv4::PROTOCOL_TCP {
                    packet = self.join_fragments(now, packet, transit)?;
                    match Transit::of(packet.buf.bytes()) {
                        Ok(whole) => {
                            packet = self.keep_whole(peer, packet, &whole)?;
                            self.classify(packet, &whole)
                        }
                        Err(e) => return dropped(Stage::Classify, e),
                    }
                } else {
                    Self::validate_transport(&mut packet, transit)?;
                    self.classify(packet, transit)
                };
                self.icmp_for_flow(now, &from)?;
                return match self.manner(now, peer, &from) {
                    Manner::Split => self.carry_split(now, peer, from),
                    Manner::Datagram => self.carry_datagram(now, peer, from),
                    past @ (Manner::Plain | Manner::Fallback) => {
                        self.carry_plain(now, peer, past, from)
                    }
                };
            }
            Route::Local(_) | Route::Broadcast(_) => {
                return dropped(Stage::Carry, DropReason::MartianDestination)
            }
        };
        if self.passes(port, transit, &packet) {
            self.send_ip(now, port, next_hop, packet);
            return Ok(());
        }
        let from = self.classify(packet, transit);
        self.admit_plain(now, &from)?;
        self.forward(now, port, next_hop, from)
    }

    /// Whether a packet in the clear goes out of `port` as it is, whatever its flow: no policy, line
    /// or size has a say in it.
    fn passes(&self, port: PortId, transit: &Transit, packet: &Packet<P::Buf>) -> bool {
        let out = self.ports.get(usize::from(port.0));
        out.is_some_and(|p| p.line.is_none() && packet.buf.len() <= usize::from(p.mtu))
            && packet.meta.gso == Gso::None
            && self.fib.peer_of(transit.src).is_none()
            && !(transit.protocol == ipv4::PROTOCOL_TCP && mss::is_syn(packet.buf.bytes()))
    }

    /// TCP whose meaning is end to end: authenticated segments (RFC 2385, RFC 5925), and a connection
    /// that joins another as a further path of it (RFC 8684 section 3.2): only the host with that one
    /// can answer. `MP_CAPABLE` alone does not count: without it there is nothing to join.
    pub(super) fn must_stay_whole(&self, packet: &Packet<P::Buf>) -> bool {
        use mef_packet::wire::tcp_options::TcpOption;
        let Ok(v) = ip::View::parse_unverified(packet.buf.bytes()) else {
            return false;
        };
        if v.is_fragment() {
            return false;
        }
        tcp::View::parse(v.payload()).is_ok_and(|t| {
            t.options().any(|o| match o {
                Ok(TcpOption::Md5(_) | TcpOption::Ao(_)) => true,
                Ok(TcpOption::Mptcp(o)) => o.first().is_some_and(|b| b >> 4 == MP_JOIN),
                _ => false,
            })
        })
    }

    /// A datagram came over the link from `peer`, among others or in parts.
    pub(super) fn deliver_datagram(
        &mut self,
        now: Instant,
        peer: PeerId,
        bytes: &mut [u8],
    ) -> Step<()> {
        let mut onward = Onward::NOWHERE;
        if !self.arrive(now, peer, bytes, &mut onward)? {
            return Ok(());
        }
        let Some(buf) = self.buffer_of(onward.port, bytes) else {
            return Ok(());
        };
        self.leave_link(now, &onward, buf)
    }

    /// A datagram came over the link from `peer`: may it, and where does it go, its time to live
    /// counted down? `false` where it was for the router itself. Written to where the answer stays: to move
    /// it right after would wait for the stores.
    #[inline]
    pub(super) fn arrive(
        &mut self,
        now: Instant,
        peer: PeerId,
        bytes: &mut [u8],
        onward: &mut Onward,
    ) -> Step<bool> {
        let transit = &mut onward.transit;
        if let Err(e) = transit.read(bytes) {
            return dropped(Stage::Open, e);
        }
        if !self.fib.source_allowed(peer, &transit.src) {
            return dropped(Stage::Open, DropReason::SourceNotAllowed);
        }
        self.stats.datagrams_received += 1;
        match self.fib.find(&transit.dst) {
            Some(Route::Connected { port }) => onward.port = *port,
            Some(Route::Via { port, next_hop }) => {
                onward.port = *port;
                onward.gateway = Some(*next_hop);
            }
            _ => return self.arrive_here(now, bytes, transit.dst).map(|()| false),
        }
        let icmp = matches!(
            transit.protocol,
            ipv4::PROTOCOL_ICMP | ipv6::PROTOCOL_ICMPV6
        );
        if icmp && is_icmp(bytes) && self.icmp_into_flow(now, bytes) {
            return Ok(false);
        }
        if ip::decrement_ttl(bytes).is_err() {
            self.complain(now, onward.port, bytes, IcmpError::TimeExceeded);
            return dropped(Stage::Route, DropReason::TtlExpired);
        }
        if onward.is_tcp() {
            self.arrive_tcp(now, peer, bytes);
        }
        Ok(true)
    }

    /// A datagram came over a link that goes to no host.
    #[cold]
    fn arrive_here(&mut self, now: Instant, bytes: &[u8], dst: IpAddr) -> Step<()> {
        match self.fib.lookup(dst) {
            Some(Route::Local(_)) => {
                let mut out = Vec::new();
                match self.icmp.echo_reply(now, bytes, &mut out) {
                    Ok(()) => {
                        self.send_own(now, &out);
                        Ok(())
                    }
                    Err(reason) => dropped(Stage::Open, reason),
                }
            }
            Some(_) => dropped(Stage::Route, DropReason::DestinationNotAllowed),
            None => {
                let port = self.local_port_of(dst);
                self.complain(now, port, bytes, IcmpError::NetUnreachable);
                dropped(Stage::Route, DropReason::NoRoute)
            }
        }
    }

    fn arrive_tcp(&mut self, now: Instant, peer: PeerId, bytes: &mut [u8]) {
        // The far router did this for its direction of the path, this is for the other.
        if let Some(whole) = self.peer(peer).and_then(|p| p.link.whole_datagram()) {
            mss::clamp(bytes, whole);
        }
        if let Some(tuple) = tuple_of(bytes) {
            self.arrived_whole(now, &tuple);
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

    /// Sends a whole IP packet that the router made or unpacked, wherever the forwarding table says.
    pub(super) fn send_own(&mut self, now: Instant, bytes: &[u8]) {
        let Some(tuple) = tuple_of(bytes) else { return };
        let flow = self.flow_of(&tuple, &Treatment::default());
        if let Some(Route::Peer(peer)) = self.fib.lookup(tuple.destination) {
            let queued = self
                .peer_mut(peer)
                .map(|p| p.link.send_datagram(now, flow, bytes.to_vec()));
            if let Some(Err(_)) = queued {
                self.counters.count(Stage::Carry, DropReason::QueueFull);
            }
            return;
        }
        let Some((port, next_hop)) = self.next_hop(tuple.destination) else {
            return;
        };
        self.forward_made(now, port, next_hop, flow, bytes);
    }
}

/// Whether an IP packet is ICMP of its own version.
fn is_icmp(bytes: &[u8]) -> bool {
    ip::View::parse_unverified(bytes).is_ok_and(|v| v.is_icmp())
}
