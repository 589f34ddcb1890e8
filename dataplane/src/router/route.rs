//! Classify and Route: which flow a packet belongs to, how policy carries it,
//! and where the forwarding table sends it.

use mef_io::Port;
use mef_packet::wire::{ip, ipv4};
use mef_packet::{Buffer, Instant, Packet, PortId};

use super::ingress::Transit;
use super::pipeline::{dropped, Step};
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
    /// As Ingress found it.
    pub found: Option<Route>,
}

/// A packet that knows where it goes.
pub(super) struct Routed<B> {
    pub from: Classified<B>,
    pub route: Route,
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
    pub(super) fn classify(&mut self, transit: Transit<P::Buf>) -> Step<Classified<P::Buf>> {
        let Transit {
            packet,
            port,
            route,
        } = transit;
        let Some(tuple) = tuple_of(packet.buf.bytes()) else {
            return dropped(Stage::Classify, DropReason::Truncated);
        };
        let treatment = self.config.treatment(&tuple);
        Ok(Classified {
            packet,
            port,
            tuple,
            treatment,
            found: route,
        })
    }

    pub(super) fn route(
        &mut self,
        now: Instant,
        mut from: Classified<P::Buf>,
    ) -> Step<Routed<P::Buf>> {
        // The packet still has the TTL it came with: an ICMP error quotes it so.
        let expired =
            ip::View::parse_unverified(from.packet.buf.bytes()).map_or(true, |v| v.ttl() <= 1);
        if expired {
            self.complain(
                now,
                from.port,
                from.packet.buf.bytes(),
                IcmpError::TimeExceeded,
            );
            return dropped(Stage::Route, DropReason::TtlExpired);
        }
        let Some(route) = from.found else {
            self.complain(
                now,
                from.port,
                from.packet.buf.bytes(),
                IcmpError::NetUnreachable,
            );
            return dropped(Stage::Route, DropReason::NoRoute);
        };
        if ip::decrement_ttl(from.packet.buf.bytes_mut()).is_err() {
            return dropped(Stage::Route, DropReason::TtlExpired);
        }
        Ok(Routed { from, route })
    }
}
