//! Ingress: is this a packet we can work with, and is it for the router itself?

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mef_io::Port;
use mef_packet::wire::{checksum, ethernet, ip, ipv4, ipv6, tcp, udp, WireError};
use mef_packet::{Buffer, Checksum, Gso, Instant, Meta, Packet, PortId};

use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::config::{FlowTuple, PeerId};
use crate::drops::{DropReason, Stage};
use crate::fib::is_martian;
use crate::host_tcp;
use crate::icmp::IcmpError;
use crate::workers::Why;

/// What is known of a valid IP packet that is to go further; its buffer begins with the IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transit {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub fragment: bool,
    /// Where the ports stand, 0 where there are none.
    pub ports_at: u16,
}

impl Transit {
    /// Stands for nothing yet.
    pub const NONE: Self = Self {
        src: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        dst: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        protocol: 0,
        ttl: 0,
        fragment: false,
        ports_at: 0,
    };

    /// What is known of the IP packet that `bytes` begin with.
    pub fn of(bytes: &[u8]) -> Result<Self, WireError> {
        let mut transit = Self::NONE;
        transit.read(bytes)?;
        Ok(transit)
    }

    /// Reads the header of the IP packet that `bytes` begin with; its length. Written field by field
    /// to where it stays: to move it right after would wait for the stores.
    #[inline]
    pub fn read(&mut self, bytes: &[u8]) -> Result<usize, WireError> {
        if ip::version(bytes) == 6 {
            let v = ipv6::View::parse(bytes)?;
            (self.src, self.dst) = (v.src().into(), v.dst().into());
            (self.protocol, self.ttl) = (v.protocol(), v.hop_limit());
            self.fragment = v.is_fragment();
            let first = v.fragment().is_none_or(|f| f.offset == 0);
            self.find_ports(first, v.header_len(), v.payload().len());
            return Ok(v.total_len());
        }
        let v = ipv4::View::parse(bytes)?;
        (self.src, self.dst) = (v.src().into(), v.dst().into());
        (self.protocol, self.ttl) = (v.protocol(), v.ttl());
        self.fragment = v.is_fragment();
        self.find_ports(v.fragment_offset() == 0, v.header_len(), v.payload().len());
        Ok(v.total_len().into())
    }

    #[inline]
    fn find_ports(&mut self, first: bool, header: usize, payload: usize) {
        let ported = matches!(self.protocol, ipv4::PROTOCOL_TCP | ipv4::PROTOCOL_UDP);
        let there = ported && first && payload >= 4;
        self.ports_at = if there {
            u16::try_from(header).unwrap_or(0)
        } else {
            0
        };
    }

    /// Source and destination port, 0 where there are none.
    #[inline]
    pub fn ports(&self, bytes: &[u8]) -> (u16, u16) {
        let at = usize::from(self.ports_at);
        let ports = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
        let [a, b, c, d] = ports.filter(|_| at > 0).copied().unwrap_or([0; 4]);
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }

    /// The flow of the packet.
    pub fn tuple(&self, bytes: &[u8]) -> FlowTuple {
        let (source_port, port) = self.ports(bytes);
        FlowTuple {
            source: self.src,
            destination: self.dst,
            protocol: self.protocol,
            source_port,
            port,
        }
    }
}

impl<P: Port> Router<P> {
    pub(super) fn ingress(
        &mut self,
        now: Instant,
        packet: &mut Packet<P::Buf>,
        transit: &mut Transit,
    ) -> Step<()> {
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
            ethernet::ETHERTYPE_IPV6 if self.neighbours.link_local(port).is_some() => {}
            ethernet::ETHERTYPE_ARP => {
                let done = self.neighbours.handle_arp(now, port, packet.buf.bytes());
                self.neighbour_events(now);
                return match done {
                    Ok(()) => {
                        self.tell_others(port, Why::Arp, packet.buf.bytes());
                        Err(Stop::Done)
                    }
                    Err(reason) => dropped(Stage::Ingress, reason),
                };
            }
            _ => return dropped(Stage::Ingress, DropReason::EtherTypeUnsupported),
        }
        if ip::version(packet.buf.bytes()) != version_of(header.ethertype) {
            return dropped(Stage::Ingress, DropReason::BadVersion);
        }
        let total = match transit.read(packet.buf.bytes()) {
            Ok(total) => total,
            Err(e) => return dropped(Stage::Ingress, e),
        };
        let src = transit.src;
        // Ethernet pads short frames.
        packet.buf.truncate(total);
        if src.is_ipv6() && (transit.protocol == ipv6::PROTOCOL_ICMPV6 || is_martian(src)) {
            // Neighbours speak of and from addresses that the forwarding table does not know.
            if let Some(protocol) = self.between_neighbours(now, port, packet)? {
                transit.protocol = protocol;
                if let Some(peer) = self.local(now, packet, transit)? {
                    self.deliver_datagram(now, peer, packet.buf.bytes_mut())?;
                }
                return Err(Stop::Done);
            }
        }
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
        Ok(())
    }

    /// IPv6 between neighbours: Neighbour Discovery is done here; what is for the router's own
    /// link-local address, or from a neighbour's to the router, goes to [`local`](Self::local) with
    /// the protocol returned; `None` for what is no matter between neighbours.
    fn between_neighbours(
        &mut self,
        now: Instant,
        port: PortId,
        packet: &mut Packet<P::Buf>,
    ) -> Step<Option<u8>> {
        Self::complete_checksum(packet)?;
        let Ok(view) = ipv6::View::parse(packet.buf.bytes()) else {
            return dropped(Stage::Ingress, DropReason::Truncated);
        };
        let (src, dst, protocol) = (view.src(), view.dst(), view.protocol());
        let ours = self.neighbours.is_own(port, dst.into());
        if protocol == ipv6::PROTOCOL_ICMPV6 && (ours || dst.is_multicast()) {
            let done = self.neighbours.handle_nd(now, port, &view);
            self.neighbour_events(now);
            match done {
                Ok(true) => {
                    self.tell_others(port, Why::NeighbourDiscovery, packet.buf.bytes());
                    return Err(Stop::Done);
                }
                Ok(false) => {}
                Err(reason) => return dropped(Stage::Ingress, reason),
            }
        }
        if dst.is_multicast() {
            return dropped(Stage::Ingress, DropReason::MartianDestination);
        }
        let link_local = ipv6::is_link_local(src) || ipv6::is_link_local(dst);
        match link_local && ours {
            true if self.neighbours.is_own(port, src.into()) => {
                dropped(Stage::Ingress, DropReason::OwnAddressSpoofed)
            }
            true => Ok(Some(protocol)),
            false => Ok(None),
        }
    }

    /// Damaged segments must not reach a byte stream: what the kernel or the NIC has not verified, we do.
    pub(super) fn validate_transport(packet: &mut Packet<P::Buf>, transit: &Transit) -> Step<()> {
        if transit.fragment
            || packet.meta.checksum != Checksum::Complete
            || packet.meta.gso != Gso::None
            || transit.protocol != ipv4::PROTOCOL_TCP
        {
            return Ok(());
        }
        let checked = ip::View::parse_unverified(packet.buf.bytes()).and_then(|v| {
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

    /// What is addressed to the router itself. The peer of whose hosts a datagram is left in the buffer of
    /// `packet`, if one was in it that goes further.
    pub(super) fn local(
        &mut self,
        now: Instant,
        packet: &mut Packet<P::Buf>,
        transit: &Transit,
    ) -> Step<Option<PeerId>> {
        let (port, protocol) = (packet.meta.port, transit.protocol);
        if protocol == ipv4::PROTOCOL_UDP {
            let at = usize::from(transit.ports_at);
            let datagram = packet.buf.bytes().get(at..).filter(|_| at > 0);
            let ends = datagram.and_then(|d| udp::View::parse(d).ok());
            let Some((src_port, dst_port)) = ends.map(|u| (u.src_port(), u.dst_port())) else {
                return dropped(Stage::Ingress, DropReason::Truncated);
            };
            let line = self.ports.get(usize::from(port.0)).and_then(|p| p.line);
            let listens = line.filter(|l| self.lines.get(*l).is_some_and(|l| l.listen == dst_port));
            if let Some(line) = listens {
                let from = SocketAddr::new(transit.src, src_port);
                return self.open(now, line, from, packet, at + udp::HEADER_LEN);
            }
            self.complain(now, port, packet.buf.bytes(), IcmpError::PortUnreachable);
            return dropped(Stage::Ingress, DropReason::NoListener);
        }
        self.local_other(now, packet, transit)
    }

    fn local_other(
        &mut self,
        now: Instant,
        packet: &mut Packet<P::Buf>,
        transit: &Transit,
    ) -> Step<Option<PeerId>> {
        Self::validate_transport(packet, transit)?;
        let (port, protocol) = (packet.meta.port, transit.protocol);
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
                    self.send_answer(now, port, &out);
                    Ok(None)
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
        let Ok(view) = ip::View::parse_unverified(offending) else {
            return;
        };
        let source = self.address(port, view.src());
        let mut out = Vec::new();
        if self
            .icmp
            .error(now, error, offending, source, false, &mut out)
            .is_ok()
        {
            self.send_own(now, &out);
        }
    }

    /// Sends the answer to a packet that came in through `port`: back there if it is for a
    /// link-local address, else wherever the forwarding table says.
    fn send_answer(&mut self, now: Instant, port: PortId, answer: &[u8]) {
        let to = ip::View::parse_unverified(answer).map(|v| v.dst());
        match to {
            Ok(IpAddr::V6(to)) if ipv6::is_link_local(to) => {
                if let Some(buf) = self.buffer_of(port, answer) {
                    let meta = Meta::default();
                    self.send_ip(now, port, to.into(), Packet { buf, meta });
                }
            }
            _ => self.send_own(now, answer),
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

/// The IP version that packets of an Ethernet type have.
const fn version_of(ethertype: u16) -> u8 {
    if ethertype == ethernet::ETHERTYPE_IPV6 {
        6
    } else {
        4
    }
}
