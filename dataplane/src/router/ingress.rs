//! Ingress: is this a packet we can work with, and is it for the router itself?

use std::net::{IpAddr, SocketAddr};

use mef_io::Port;
use mef_packet::wire::{checksum, ethernet, ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, Gso, Instant, Packet, PortId};

use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::drops::{DropReason, Stage};
use crate::fib::{is_martian, Route};
use crate::host_tcp;
use crate::icmp::IcmpError;

/// A valid IPv4 packet that is to go further; its buffer begins with the IP header.
pub(super) struct Transit<B> {
    pub packet: Packet<B>,
    pub port: PortId,
}

impl<P: Port> Router<P> {
    pub(super) fn ingress(
        &mut self,
        now: Instant,
        mut packet: Packet<P::Buf>,
    ) -> Step<Transit<P::Buf>> {
        let port = packet.meta.port;
        let mac = self
            .ports
            .get(usize::from(port.0))
            .map_or([0; 6], |p| p.mac);
        let (header, _) = match ethernet::Header::parse(packet.buf.bytes()) {
            Ok(h) => h,
            Err(_) => return dropped(Stage::Ingress, DropReason::EthernetBad),
        };
        let multicast = ethernet::is_multicast(header.dst);
        if header.dst != mac && !multicast {
            return dropped(Stage::Ingress, DropReason::NotForUs);
        }
        if packet.buf.trim_front(ethernet::HEADER_LEN).is_none() {
            return dropped(Stage::Ingress, DropReason::EthernetBad);
        }
        match header.ethertype {
            ethernet::ETHERTYPE_IPV4 => {}
            ethernet::ETHERTYPE_ARP => {
                let done = self.neighbours.handle_arp(now, port, packet.buf.bytes());
                self.neighbour_events(now);
                return match done {
                    Ok(()) => Err(Stop::Done),
                    Err(reason) => dropped(Stage::Ingress, reason),
                };
            }
            _ => return dropped(Stage::Ingress, DropReason::EtherTypeUnsupported),
        }
        let (src, dst, protocol, total, fragment) = match ipv4::View::parse(packet.buf.bytes()) {
            Ok(v) => (
                IpAddr::from(v.src()),
                IpAddr::from(v.dst()),
                v.protocol(),
                v.total_len(),
                v.is_fragment(),
            ),
            Err(e) => return dropped(Stage::Ingress, e),
        };
        // Ethernet pads short frames.
        packet.buf.truncate(usize::from(total));
        if is_martian(src) {
            return dropped(Stage::Ingress, DropReason::MartianSource);
        }
        if self.fib.is_own(src) {
            return dropped(Stage::Ingress, DropReason::OwnAddressSpoofed);
        }
        if multicast {
            // Broadcasts end at a router.
            return dropped(Stage::Ingress, DropReason::MartianDestination);
        }
        self.validate_transport(&mut packet, protocol, fragment)?;
        match self.fib.lookup(dst) {
            Some(Route::Local(_)) => self.local(now, port, packet, protocol),
            Some(Route::Broadcast(_)) => dropped(Stage::Ingress, DropReason::MartianDestination),
            _ => Ok(Transit { packet, port }),
        }
    }

    /// Damaged segments must not reach a byte stream: what the kernel or the NIC has not verified, we do.
    fn validate_transport(
        &self,
        packet: &mut Packet<P::Buf>,
        protocol: u8,
        fragment: bool,
    ) -> Step<()> {
        if fragment
            || packet.meta.checksum != Checksum::Complete
            || packet.meta.gso != Gso::None
            || protocol != ipv4::PROTOCOL_TCP
        {
            return Ok(());
        }
        let checked = ipv4::View::parse_unverified(packet.buf.bytes()).and_then(|v| {
            tcp::View::parse(v.payload()).and_then(|t| t.verify_checksum(v.src(), v.dst()))
        });
        match checked {
            Ok(()) => {
                packet.meta.checksum = Checksum::Verified;
                Ok(())
            }
            Err(e) => dropped(Stage::Ingress, e),
        }
    }

    /// What is addressed to the router itself.
    fn local(
        &mut self,
        now: Instant,
        port: PortId,
        mut packet: Packet<P::Buf>,
        protocol: u8,
    ) -> Step<Transit<P::Buf>> {
        if protocol == ipv4::PROTOCOL_UDP {
            let view = ipv4::View::parse_unverified(packet.buf.bytes());
            let ends = view.ok().and_then(|v| {
                let u = udp::View::parse(v.payload()).ok()?;
                Some((
                    v.src(),
                    u.src_port(),
                    u.dst_port(),
                    v.header_len() + udp::HEADER_LEN,
                ))
            });
            let Some((src, src_port, dst_port, at)) = ends else {
                return dropped(Stage::Ingress, DropReason::Truncated);
            };
            let line = self.ports.get(usize::from(port.0)).and_then(|p| p.line);
            let listens = line.filter(|l| self.lines.get(*l).is_some_and(|l| l.listen == dst_port));
            if let Some(line) = listens {
                let from = SocketAddr::new(src.into(), src_port);
                return self.open(now, line, from, &mut packet, at);
            }
            self.complain(now, port, packet.buf.bytes(), IcmpError::PortUnreachable);
            return dropped(Stage::Ingress, DropReason::NoListener);
        }
        let mut out = core::mem::take(&mut self.scratch);
        let answer = if protocol == ipv4::PROTOCOL_TCP {
            match host_tcp::rst_for(packet.buf.bytes()) {
                Some(rst) => {
                    self.send_segment(now, &rst, 0);
                    dropped(Stage::Ingress, DropReason::NoListener)
                }
                None => dropped(Stage::Ingress, DropReason::NoListener),
            }
        } else {
            match self.icmp.echo_reply(now, packet.buf.bytes(), &mut out) {
                Ok(()) => {
                    self.send_own(now, &out);
                    Err(Stop::Done)
                }
                Err(reason) => dropped(Stage::Ingress, reason),
            }
        };
        self.scratch = out;
        answer
    }

    /// Tells the sender of `offending`, which came in through `port`, what became of it.
    pub(super) fn complain(
        &mut self,
        now: Instant,
        port: PortId,
        offending: &[u8],
        error: IcmpError,
    ) {
        let Ok(view) = ipv4::View::parse_unverified(offending) else {
            return;
        };
        let source = self.address(port, view.src().into());
        let mut out = Vec::new();
        if self
            .icmp
            .error(now, error, offending, source, false, &mut out)
            .is_ok()
        {
            self.send_own(now, &out);
        }
    }

    /// Completes what the sending host left to its NIC, before the packet goes where no NIC will.
    pub(super) fn complete_checksum(packet: &mut Packet<P::Buf>) -> Step<()> {
        if let Checksum::Partial { start, offset } = packet.meta.checksum {
            // The offsets count from the Ethernet header, which is off by now.
            let start = start.saturating_sub(ethernet::HEADER_LEN as u16);
            if let Err(e) = checksum::complete_partial(packet.buf.bytes_mut(), start, offset) {
                return dropped(Stage::Carry, e);
            }
            packet.meta.checksum = Checksum::Verified;
        }
        Ok(())
    }
}
