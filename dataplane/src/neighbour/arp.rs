//! The neighbour table's IPv4 side: ARP messages in and out.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use mef_packet::wire::arp::{self, Operation};
use mef_packet::wire::ethernet::{self, BROADCAST, ETHERTYPE_ARP};
use mef_packet::wire::MacAddr;
use mef_packet::{Instant, PortId};

use super::{Event, Interface, Neighbours, REACHABLE};
use crate::drops::DropReason;

/// Ethernet and ARP header; ports pad it to the minimum of Ethernet.
const FRAME_LEN: usize = ethernet::HEADER_LEN + arp::LEN;

impl<T> Neighbours<T> {
    /// Takes in the payload of an ARP frame that arrived at `port`.
    ///
    /// # Errors
    /// The reason to count the frame under, when it is no valid ARP or claims
    /// an address that no neighbour on this port can have.
    pub fn handle_arp(
        &mut self,
        now: Instant,
        port: PortId,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        let packet = arp::Packet::parse(payload)?;
        let Some(table) = self.tables.get_mut(usize::from(port.0)) else {
            return Err(DropReason::ArpBad);
        };
        let (ip, mac) = (IpAddr::V4(packet.sender_ip), packet.sender_mac);
        if ethernet::is_multicast(mac) || mac == [0; 6] || mac == table.interface.mac {
            return Err(DropReason::ArpBad);
        }
        if table.interface.is_own(ip) {
            self.events.push_back(Event::Conflict {
                port,
                address: ip,
                mac,
            });
            return Ok(());
        }
        let for_us = packet.operation == Operation::Request
            && table.interface.is_own(packet.target_ip.into());
        // A sender of 0.0.0.0 checks whether an address is free (RFC 5227): answered, not learned.
        if !packet.sender_ip.is_unspecified() {
            if !table.interface.may_be_neighbour(ip) {
                return Err(DropReason::ArpBad);
            }
            if table.entries.contains_key(&ip) || for_us {
                self.learn(now, port, ip, mac, REACHABLE);
            }
        }
        if for_us {
            self.reply(port, &packet);
        }
        Ok(())
    }

    fn reply(&mut self, port: PortId, request: &arp::Packet) {
        let Some(table) = self.tables.get(usize::from(port.0)) else {
            return;
        };
        let reply = arp::Packet {
            operation: Operation::Reply,
            sender_mac: table.interface.mac,
            sender_ip: request.target_ip,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        self.events.push_back(Event::Send {
            port,
            frame: frame(request.sender_mac, &reply),
        });
    }
}

/// The own IPv4 address in the network of `ip`, else the first.
fn source_towards(interface: &Interface, ip: Ipv4Addr) -> Ipv4Addr {
    let v4 = || {
        interface.addresses.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        })
    };
    let near = v4().find(|net| net.contains(&ip));
    near.or(v4().next())
        .map_or(Ipv4Addr::UNSPECIFIED, |net| net.addr())
}

/// A request for every own address, which hosts learn from.
pub(super) fn announcements(interface: &Interface) -> impl Iterator<Item = Vec<u8>> + '_ {
    interface.addresses.iter().filter_map(|net| {
        let IpAddr::V4(ip) = net.addr() else {
            return None;
        };
        let packet = arp::Packet {
            operation: Operation::Request,
            sender_mac: interface.mac,
            sender_ip: ip,
            target_mac: [0; 6],
            target_ip: ip,
        };
        Some(frame(BROADCAST, &packet))
    })
}

/// A request for `ip`, to its last known address or to all.
pub(super) fn request(interface: &Interface, ip: Ipv4Addr, mac: Option<MacAddr>) -> Vec<u8> {
    let packet = arp::Packet {
        operation: Operation::Request,
        sender_mac: interface.mac,
        sender_ip: source_towards(interface, ip),
        target_mac: [0; 6],
        target_ip: ip,
    };
    frame(mac.unwrap_or(BROADCAST), &packet)
}

fn frame(dst: MacAddr, packet: &arp::Packet) -> Vec<u8> {
    let mut frame = vec![0; FRAME_LEN];
    let header = ethernet::Header {
        dst,
        src: packet.sender_mac,
        ethertype: ETHERTYPE_ARP,
    };
    let (head, body) = frame.split_at_mut(ethernet::HEADER_LEN);
    let written = header.emit(head).and_then(|()| packet.emit(body));
    debug_assert!(written.is_ok(), "an ARP frame always has {FRAME_LEN} bytes");
    frame
}
