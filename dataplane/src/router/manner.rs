//! How a packet for a peer's host is carried: what policy says, what the state
//! of the link allows, and what an earlier packet of its connection decided.
//!
//! ```text
//!   connection that is not split already ----------------------> as before
//!   mode = "plain" --------------------------------------------> in the clear
//!   no session, or silent, and fallback = "plain" -------------> in the clear, counted, alarmed
//!   TCP, mode = "split", nothing in it that speaks against it --> split
//!   everything else -------------------------------------------> datagram
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mef_io::Port;
use mef_packet::wire::segment::transport;
use mef_packet::wire::{ipv4, tcp};
use mef_packet::{Buffer, Instant};

use super::pipeline::{dropped, Step, Stop};
use super::route::Classified;
use super::Router;
use crate::config::{Fallback, FlowTuple, Mode, PeerId};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::flow_table::FlowKey;
use crate::icmp::IcmpError;
use crate::pinned::Whole;

/// A link that has heard nothing for as long counts as down for flows that may go past it.
const DOWN_AFTER: Duration = Duration::from_secs(3);
/// The alarm ends when no packet took the fallback for as long.
const ALARM: Duration = Duration::from_secs(60);
/// So many SYNs without an answer from the far side: the answers seem to take another way.
const ASYMMETRIC_SYNS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Split,
    Datagram,
    Plain,
    /// In the clear, because the link does not work or the flow is asymmetric.
    Fallback,
}

/// What left in the clear for a peer that could not be reached through its link.
#[derive(Clone, Copy, Debug, Default)]
struct Fallen {
    packets: u64,
    last: Instant,
}

/// What left in the clear though it was for a peer, and the connections that are not split.
#[derive(Debug, Default)]
pub(super) struct Manners {
    pub pinned: crate::pinned::Pinned,
    fallen: BTreeMap<PeerId, Fallen>,
    pub plain_packets: u64,
    pub flows_asymmetric: u64,
    /// Connections that both hosts opened at once.
    pub flows_crossing: u64,
}

impl Manners {
    fn fell_back(&mut self, now: Instant, peer: PeerId) {
        let f = self.fallen.entry(peer).or_default();
        f.packets += 1;
        f.last = now;
    }

    /// Packets that took the fallback.
    pub fn fallback_packets(&self) -> u64 {
        self.fallen.values().map(|f| f.packets).sum()
    }

    /// Peers whose packets leave in the clear at present.
    pub fn in_fallback(&self, now: Instant) -> impl Iterator<Item = PeerId> + '_ {
        self.fallen
            .iter()
            .filter(move |(_, f)| now.since(f.last) < ALARM)
            .map(|(id, _)| *id)
    }
}

/// The connection of a TCP packet that a host on this side sent.
fn from_host(t: &FlowTuple) -> FlowKey {
    FlowKey {
        host: SocketAddr::new(t.source, t.source_port),
        far: SocketAddr::new(t.destination, t.port),
    }
}

/// The TCP flags of a packet that has them.
pub(super) fn tcp_flags(packet: &[u8]) -> Option<tcp::Flags> {
    let (at, protocol) = transport(packet)?;
    let segment = packet
        .get(at..)
        .filter(|_| protocol == ipv4::PROTOCOL_TCP)?;
    Some(tcp::View::parse(segment).ok()?.flags())
}

fn is_syn(packet: &[u8]) -> bool {
    tcp_flags(packet).is_some_and(|f| {
        f.contains(tcp::Flags::SYN) && !f.intersects(tcp::Flags::ACK | tcp::Flags::RST)
    })
}

impl<P: Port> Router<P> {
    pub(super) fn manner(
        &mut self,
        now: Instant,
        peer: PeerId,
        from: &Classified<P::Buf>,
    ) -> Manner {
        let t = from.treatment;
        let tcp = from.tuple.protocol == ipv4::PROTOCOL_TCP;
        if !tcp {
            return match t.mode {
                Mode::Plain => Manner::Plain,
                _ if t.fallback == Fallback::Plain && !self.link_works(now, peer) => {
                    Manner::Fallback
                }
                _ => Manner::Datagram,
            };
        }
        let key = from_host(&from.tuple);
        if !self.manners.pinned.is_empty() {
            let syn = is_syn(from.packet.buf.bytes());
            match self.manners.pinned.get(now, &key, syn) {
                Some(Whole::Datagram) => return Manner::Datagram,
                Some(Whole::Plain) if t.mode == Mode::Plain => return Manner::Plain,
                Some(Whole::Plain) => return Manner::Fallback,
                None => {}
            }
        }
        if t.mode == Mode::Plain {
            return Manner::Plain;
        }
        if t.fallback == Fallback::Plain
            && !self.link_works(now, peer)
            && self.flows.by_key(&key).is_none()
            && is_syn(from.packet.buf.bytes())
        {
            self.manners.pinned.pin(now, key, Whole::Plain);
            return Manner::Fallback;
        }
        if t.mode != Mode::Split {
            return Manner::Datagram;
        }
        if !self.must_stay_whole(&from.packet) {
            return Manner::Split;
        }
        if is_syn(from.packet.buf.bytes()) {
            // What speaks against it may stand in the SYN alone.
            self.manners.pinned.pin(now, key, Whole::Datagram);
        }
        Manner::Datagram
    }

    fn link_works(&self, now: Instant, peer: PeerId) -> bool {
        self.peer(peer)
            .is_some_and(|p| p.link.is_up() && p.link.silent_for(now) < DOWN_AFTER)
    }

    /// Sends a packet for a peer's host past the link.
    pub(super) fn carry_plain(
        &mut self,
        now: Instant,
        peer: PeerId,
        manner: Manner,
        from: Classified<P::Buf>,
    ) -> Step<()> {
        let (port, next_hop) = match self.plain_fib.lookup(from.tuple.destination) {
            Some(Route::Connected { port }) => (port, from.tuple.destination),
            Some(Route::Via { port, next_hop }) => (port, next_hop),
            _ => {
                let bytes = from.packet.buf.bytes();
                self.complain(now, from.port, bytes, IcmpError::NetUnreachable);
                return dropped(Stage::Carry, DropReason::NoRoute);
            }
        };
        self.manners.plain_packets += 1;
        if manner == Manner::Fallback {
            self.manners.fell_back(now, peer);
        }
        self.forward(now, port, next_hop, from)
    }

    /// A packet in the clear that goes to no peer: what claims to come from behind one may do so only where
    /// policy lets its flow go in the clear, in this direction or the other.
    pub(super) fn admit_plain(&mut self, now: Instant, from: &Classified<P::Buf>) -> Step<()> {
        let t = &from.tuple;
        if self.fib.peer_of(t.source).is_none() {
            return Ok(());
        }
        let back = t.reversed();
        if !from.treatment.allows_plain() && !self.config.treatment(&back).allows_plain() {
            return dropped(Stage::Carry, DropReason::PeerInTheClear);
        }
        if t.protocol == ipv4::PROTOCOL_TCP {
            // Its answers go back the way it came.
            self.manners.pinned.pin(now, from_host(&back), Whole::Plain);
        }
        Ok(())
    }

    /// A TCP packet came over the link as a datagram: its answers go back so.
    pub(super) fn arrived_whole(&mut self, now: Instant, tuple: &FlowTuple) {
        if tuple.protocol == ipv4::PROTOCOL_TCP && tuple.port != 0 {
            let key = from_host(&tuple.reversed());
            self.manners.pinned.pin(now, key, Whole::Datagram);
        }
    }

    /// A host repeats its SYN while the far one has not answered.
    pub(super) fn syn_again(
        &mut self,
        now: Instant,
        index: usize,
        from: Classified<P::Buf>,
    ) -> Step<()> {
        let Some(f) = self.flows.get_mut(index) else {
            return Ok(());
        };
        f.syns = f.syns.saturating_add(1);
        let (key, peer, asymmetric) = (f.key, f.peer, f.syns == ASYMMETRIC_SYNS);
        // While nothing is heard of the peer, nothing is known of the flow.
        if !asymmetric || !self.link_works(now, peer) {
            return Ok(());
        }
        self.manners.flows_asymmetric += 1;
        if from.treatment.fallback == Fallback::Refuse {
            self.refuse_unanswered(now, index);
            return Ok(());
        }
        self.close(now, index, true);
        self.manners.pinned.pin(now, key, Whole::Plain);
        self.carry_plain(now, peer, Manner::Fallback, from)
    }

    /// An ICMP error of a host about a segment that we sent in another's name.
    pub(super) fn icmp_for_flow(&mut self, now: Instant, from: &Classified<P::Buf>) -> Step<()> {
        if from.tuple.is_icmp() && self.icmp_into_flow(now, from.packet.buf.bytes()) {
            return Err(Stop::Done);
        }
        Ok(())
    }
}
