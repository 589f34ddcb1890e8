//! The neighbour table's IPv6 side: Neighbour Discovery messages in and out
//! (RFC 4861 sections 7.1 and 7.2), Duplicate Address Detection of others
//! answered (RFC 4862), and the multicast listener reports (RFC 3810) without
//! which switches that snoop would keep solicitations from the router.

use std::net::{IpAddr, Ipv6Addr};

use mef_packet::wire::checksum::{pseudo_header, Sum};
use mef_packet::wire::ethernet::{self, ETHERTYPE_IPV6};
use mef_packet::wire::icmpv6::{Advertisement, Message, ND_HOP_LIMIT, ND_LEN};
use mef_packet::wire::ipv6::{self, PROTOCOL_ICMPV6};
use mef_packet::wire::MacAddr;
use mef_packet::{Instant, PortId};

use super::{advertise, Event, Interface, Neighbours, State, REACHABLE, UNCONFIRMED};
use crate::drops::DropReason;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Where listener reports go.
const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const LISTENER_QUERY: u8 = 130;
const LISTENER_REPORT: u8 = 143;
/// Listener reports, and what other routers of the port have to say: heard, and no matter of this
/// router, which does not follow others.
const BETWEEN_OTHERS: [u8; 5] = [131, 132, 134, 137, LISTENER_REPORT];
/// A record of a report: "the group's sources are all but none".
const CHANGE_TO_EXCLUDE: u8 = 4;

impl<T> Neighbours<T> {
    /// Takes in an ICMPv6 message that may be Neighbour Discovery's: the packet `view` that arrived
    /// at `port` in a frame from `mac`. `Ok(false)` if it is another message.
    ///
    /// # Errors
    /// The reason to count the packet under, when it is invalid or claims an
    /// address that no neighbour on this port can have.
    pub fn handle_nd(
        &mut self,
        now: Instant,
        port: PortId,
        view: &ipv6::View<'_>,
    ) -> Result<bool, DropReason> {
        if view.is_fragment() {
            // RFC 6980: never fragmented.
            return Ok(false);
        }
        let (src, dst) = (view.src(), view.dst());
        let message = Message::parse(view.payload(), src, dst)?;
        let discovery = matches!(
            message,
            Message::Solicitation { .. } | Message::Advertisement(_)
        );
        if discovery && view.hop_limit() != ND_HOP_LIMIT {
            // Only a neighbour's has it.
            return Err(DropReason::NeighbourDiscoveryBad);
        }
        match message {
            Message::Solicitation { target, source } => {
                self.solicited(now, port, (src, dst), target, source)?;
            }
            Message::Advertisement(a) => self.advertised(now, port, dst, &a)?,
            Message::Other {
                kind: LISTENER_QUERY,
                ..
            } if view.hop_limit() == 1 && ipv6::is_link_local(src) => {
                if let Some(table) = self.tables.get(usize::from(port.0)) {
                    let report = listener_report(&table.interface);
                    self.events
                        .extend(report.map(|frame| Event::Send { port, frame }));
                }
            }
            Message::Other {
                kind: advertise::SOLICITATION,
                ..
            } => {
                advertise::check_solicitation(src, view.hop_limit(), view.payload())?;
                let table = self.tables.get_mut(usize::from(port.0));
                if let Some(advertiser) = table.and_then(|t| t.advertiser.as_mut()) {
                    advertiser.solicited(now);
                }
            }
            Message::Other { kind, .. } if BETWEEN_OTHERS.contains(&kind) => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Somebody asks for `target`.
    fn solicited(
        &mut self,
        now: Instant,
        port: PortId,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        target: Ipv6Addr,
        source: Option<MacAddr>,
    ) -> Result<(), DropReason> {
        let bad = Err(DropReason::NeighbourDiscoveryBad);
        let Some(table) = self.tables.get(usize::from(port.0)) else {
            return bad;
        };
        let interface = &table.interface;
        let own = interface.is_own(target.into());
        if target.is_multicast() {
            return bad;
        }
        if src.is_unspecified() {
            // Duplicate Address Detection: `target` is not used by its sender yet.
            if dst != ipv6::solicited_node(target) || source.is_some() {
                return bad;
            }
            if own {
                let frame = advertisement(interface, target, None);
                self.events.push_back(Event::Send { port, frame });
            }
            return Ok(());
        }
        if !own {
            return Ok(());
        }
        if interface.is_own(src.into()) {
            let event = Event::Conflict {
                port,
                address: src.into(),
                mac: source.unwrap_or_default(),
            };
            self.events.push_back(event);
            return Ok(());
        }
        let ip = IpAddr::V6(src);
        if !interface.may_be_neighbour(ip) || source.is_some_and(|m| !may_be_station(interface, m))
        {
            return bad;
        }
        let known = match table.entries.get(&ip).map(|e| &e.state) {
            Some(State::Reachable(mac) | State::Probing { mac, .. }) => Some(*mac),
            _ => None,
        };
        // Solicitations by unicast may leave the address out, as it was known to be known.
        let Some(mac) = source.or(known) else {
            return Ok(());
        };
        let frame = advertisement(interface, target, Some((src, mac)));
        if known != Some(mac) {
            self.learn(now, port, ip, mac, UNCONFIRMED);
        }
        self.events.push_back(Event::Send { port, frame });
        Ok(())
    }

    /// Somebody says where an address is (RFC 4861 section 7.2.5).
    fn advertised(
        &mut self,
        now: Instant,
        port: PortId,
        dst: Ipv6Addr,
        a: &Advertisement,
    ) -> Result<(), DropReason> {
        let bad = Err(DropReason::NeighbourDiscoveryBad);
        let Some(table) = self.tables.get(usize::from(port.0)) else {
            return bad;
        };
        let interface = &table.interface;
        let ip = IpAddr::V6(a.target);
        if a.target.is_multicast() || (dst.is_multicast() && a.solicited) {
            return bad;
        }
        if interface.is_own(ip) {
            let event = Event::Conflict {
                port,
                address: ip,
                mac: a.mac.unwrap_or_default(),
            };
            self.events.push_back(event);
            return Ok(());
        }
        if !interface.may_be_neighbour(ip) || a.mac.is_some_and(|m| !may_be_station(interface, m)) {
            return bad;
        }
        let wait = if a.solicited { REACHABLE } else { UNCONFIRMED };
        let mac = match table.entries.get(&ip).map(|e| &e.state) {
            None => None,
            Some(State::Incomplete { .. }) => a.mac,
            Some(State::Reachable(known) | State::Probing { mac: known, .. }) => {
                match a.mac.filter(|mac| mac != known) {
                    // Another address, from somebody who does not insist on it: what is known
                    // stays, and is soon asked about.
                    Some(_) if !a.replaces => {
                        let known = *known;
                        self.learn(now, port, ip, known, UNCONFIRMED);
                        None
                    }
                    Some(mac) => Some(mac),
                    // The same as before, unasked: that says nothing new.
                    None => a.solicited.then_some(*known),
                }
            }
        };
        if let Some(mac) = mac {
            self.learn(now, port, ip, mac, wait);
        }
        Ok(())
    }
}

fn may_be_station(interface: &Interface, mac: MacAddr) -> bool {
    !ethernet::is_multicast(mac) && mac != [0; 6] && mac != interface.mac
}

/// Every own IPv6 address, the link-local one first.
fn own(interface: &Interface) -> impl Iterator<Item = Ipv6Addr> + '_ {
    let configured = interface.addresses.iter().filter_map(|n| match n.addr() {
        IpAddr::V6(ip) => Some(ip),
        IpAddr::V4(_) => None,
    });
    interface.link_local().into_iter().chain(configured)
}

/// What a port says when it starts: the groups it listens to, and for every own address whether
/// somebody else has it, and where it is.
pub(super) fn announcements(interface: &Interface) -> impl Iterator<Item = Vec<u8>> + '_ {
    let addresses = own(interface).flat_map(|target| {
        let group = ipv6::solicited_node(target);
        let question = Message::Solicitation {
            target,
            source: None,
        };
        [
            frame(
                interface.mac,
                ipv6::multicast_mac(group),
                (Ipv6Addr::UNSPECIFIED, group),
                &question,
            ),
            advertisement(interface, target, None),
        ]
    });
    listener_report(interface).into_iter().chain(addresses)
}

/// A question for `ip`, to its last known address or to the group of those that may have it.
pub(super) fn solicitation(interface: &Interface, ip: Ipv6Addr, mac: Option<MacAddr>) -> Vec<u8> {
    let near = interface
        .addresses
        .iter()
        .find(|n| n.contains(&IpAddr::V6(ip)));
    let src = match near.map(|n| n.addr()) {
        Some(IpAddr::V6(own)) => own,
        _ => ipv6::link_local(interface.mac),
    };
    let message = Message::Solicitation {
        target: ip,
        source: Some(interface.mac),
    };
    let group = ipv6::solicited_node(ip);
    match mac {
        Some(mac) => frame(interface.mac, mac, (src, ip), &message),
        None => frame(
            interface.mac,
            ipv6::multicast_mac(group),
            (src, group),
            &message,
        ),
    }
}

/// Where the own address `target` is, to one who asked, or to all.
fn advertisement(
    interface: &Interface,
    target: Ipv6Addr,
    to: Option<(Ipv6Addr, MacAddr)>,
) -> Vec<u8> {
    let message = Message::Advertisement(Advertisement {
        target,
        mac: Some(interface.mac),
        router: true,
        solicited: to.is_some(),
        replaces: true,
    });
    let (dst, mac) = to.unwrap_or((ALL_NODES, ipv6::multicast_mac(ALL_NODES)));
    frame(interface.mac, mac, (target, dst), &message)
}

fn frame(
    from: MacAddr,
    to: MacAddr,
    (src, dst): (Ipv6Addr, Ipv6Addr),
    message: &Message<'_>,
) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_LEN + ipv6::HEADER_LEN + ND_LEN];
    let ethernet = ethernet::Header {
        dst: to,
        src: from,
        ethertype: ETHERTYPE_IPV6,
    };
    let header = ipv6::Header {
        hop_limit: ND_HOP_LIMIT,
        ..ipv6::Header::new(src, dst, PROTOCOL_ICMPV6)
    };
    let (head, packet) = frame.split_at_mut(ethernet::HEADER_LEN);
    let written = ethernet
        .emit(head)
        .and_then(|()| message.emit_packet(packet, &header));
    debug_assert!(written.is_ok(), "a message of at most {ND_LEN} bytes");
    frame.truncate(ethernet::HEADER_LEN + written.unwrap_or(0));
    frame
}

/// Which solicited-node groups the port listens to (RFC 3810 section 5.2), behind a hop-by-hop
/// header with the router alert that makes switches look (section 5).
fn listener_report(interface: &Interface) -> Option<Vec<u8>> {
    let src = interface.link_local()?;
    let mut groups: Vec<Ipv6Addr> = own(interface).map(ipv6::solicited_node).collect();
    if interface.advertise.is_some() {
        groups.push(advertise::ALL_ROUTERS);
    }
    groups.sort_unstable();
    groups.dedup();
    let mut report = vec![LISTENER_REPORT, 0, 0, 0, 0, 0];
    report.extend(u16::try_from(groups.len()).unwrap_or(0).to_be_bytes());
    for group in &groups {
        report.extend([CHANGE_TO_EXCLUDE, 0, 0, 0]);
        report.extend(group.octets());
    }
    let dst = ALL_MLDV2_ROUTERS;
    let sum = pseudo_header(src, dst, PROTOCOL_ICMPV6, report.len()).folded();
    let checksum = Sum::ZERO.word(sum).bytes(&report).checksum();
    if let Some(field) = report.get_mut(2..4) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
    // Next header, length, PadN, router alert "MLD" (RFC 2711).
    let hop_by_hop = [PROTOCOL_ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let mut frame = vec![0; ethernet::HEADER_LEN + ipv6::HEADER_LEN];
    let (head, ip) = frame.split_at_mut(ethernet::HEADER_LEN);
    let ethernet = ethernet::Header {
        dst: ipv6::multicast_mac(dst),
        src: interface.mac,
        ethertype: ETHERTYPE_IPV6,
    };
    let header = ipv6::Header {
        hop_limit: 1,
        ..ipv6::Header::new(src, dst, ipv6::HOP_BY_HOP)
    };
    let written = ethernet
        .emit(head)
        .and_then(|()| header.emit(ip, hop_by_hop.len() + report.len()));
    written.ok()?;
    frame.extend(hop_by_hop);
    frame.extend(report);
    Some(frame)
}

#[cfg(test)]
#[path = "nd_tests.rs"]
mod tests;
