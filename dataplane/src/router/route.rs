//! Route and Classify: where the forwarding table sends a packet, which flow it
//! belongs to and how policy carries it. Only packets that a policy or a queue
//! has a say in are classified.

use mef_io::Port;
use mef_packet::wire::{ip, ipv4};
use mef_packet::{Buffer, Instant, Packet, PortId};

use super::ingress::Transit;
use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::config::{FlowTuple, Treatment};
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::icmp::IcmpError;

/// A packet whose flow and treatment are known.
pub(super) struct Classified<B> {
    pub packet: Packet<B>,
    pub port: PortId,
    pub tuple: FlowTuple,
    pub treatment: Treatment,
}

/// The flow of an IP packet; ports are 0 in later fragments and where the protocol has none.
pub(super) fn tuple_of(bytes: &[u8]) -> Option<FlowTuple> {
    let v = ip::View::parse_unverified(bytes).ok()?;
    let ported =
        matches!(v.protocol(), ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_UDP) && v.fragment_offset() == 0;
    let (source_port, port) = match v.payload() {
        [a, b, c, d, ..] if ported => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
        _ => (0, 0),
    };
    Some(FlowTuple {
        source: v.src(),
        destination: v.dst(),
        protocol: v.protocol(),
        source_port,
        port,
    })
}

impl<P: Port> Router<P> {
    /// The forwarding table's answer `found` for a packet that goes further, whose time to live is
    /// counted down.
    pub(super) fn route<'r>(
        &mut self,
        now: Instant,
        packet: &mut Packet<P::Buf>,
        transit: &Transit,
        found: Option<&'r Route>,
    ) -> Step<&'r Route> {
        // The packet still has the TTL it came with: an ICMP error quotes it so.
        let Some(route) = found.filter(|_| transit.ttl > 1) else {
            return Err(self.no_way(now, packet, transit));
        };
        if ip::decrement_ttl(packet.buf.bytes_mut()).is_err() {
            return dropped(Stage::Route, DropReason::TtlExpired);
        }
        Ok(route)
    }

    #[cold]
    fn no_way(&mut self, now: Instant, packet: &Packet<P::Buf>, transit: &Transit) -> Stop {
        let (error, reason) = if transit.ttl <= 1 {
            (IcmpError::TimeExceeded, DropReason::TtlExpired)
        } else {
            (IcmpError::NetUnreachable, DropReason::NoRoute)
        };
        self.complain(now, packet.meta.port, packet.buf.bytes(), error);
        Stop::Drop(Stage::Route, reason)
    }

    /// The flow of a packet and what policy gives it.
    pub(super) fn classify(&self, packet: Packet<P::Buf>, transit: &Transit) -> Classified<P::Buf> {
        let tuple = transit.tuple(packet.buf.bytes());
        Classified {
            port: packet.meta.port,
            treatment: self.config.treatment(&tuple),
            tuple,
            packet,
        }
    }
}
