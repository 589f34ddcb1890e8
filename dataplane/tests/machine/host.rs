//! The hosts behind a router: they answer ARP and Neighbour Discovery for their own
//! addresses, their TCP is the endpoint that the router itself uses, and they keep the rest.

use std::net::{Ipv6Addr, SocketAddr};

use mef_dataplane::host_tcp::HostTcp;
use mef_packet::wire::icmpv6::{Advertisement, Message};
use mef_packet::wire::{arp, ethernet, ip, ipv4, ipv6};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Instant, Meta, Packet};

use super::world::Side;
use super::{completed, framed, from_host, inject, mac, HOST_MAC};

/// What the hosts' TCP has to send: super-segments whole, with a partial checksum, as kernels do.
pub fn transmit(now: Instant, s: &mut Side) {
    let mut packet = Vec::new();
    for host in s.hosts.values_mut() {
        while let Some(meta) = host.poll_transmit(now, &mut packet) {
            let v = ip::View::parse_unverified(&packet).unwrap();
            let gso = match v {
                _ if meta.gso_size == 0 => Gso::None,
                ip::View::V4(_) => Gso::TcpV4,
                ip::View::V6(_) => Gso::TcpV6,
            };
            let start = (ethernet::HEADER_LEN + v.header_len()) as u16;
            let meta = Meta {
                gso,
                gso_size: meta.gso_size,
                checksum: Checksum::Partial { start, offset: 16 },
                ..Meta::default()
            };
            inject(&s.lan, &from_host(mac(s.me, 0), &packet), meta);
        }
    }
}

/// A frame of the router has come.
pub fn receive(now: Instant, s: &mut Side, exists: fn(u8) -> bool, p: &Packet<HeapBuf>) {
    let (header, payload) = ethernet::Header::parse(p.buf.bytes()).unwrap();
    let answer = match header.ethertype {
        ethernet::ETHERTYPE_ARP => {
            let of_host = |ip: [u8; 4]| ip[..3] == [10, s.me, 0] && ip[3] != 1 && exists(ip[3]);
            if let Some(r) = arp_answer(payload, of_host) {
                inject(&s.lan, &r, Meta::default());
            }
            return;
        }
        ethernet::ETHERTYPE_IPV6 => neighbour_discovery(s.me, payload),
        _ => None,
    };
    match answer {
        Some(Some(r)) => return inject(&s.lan, &r, Meta::default()),
        Some(None) => return,
        None => {}
    }
    if let Some(key) = connection_of(payload) {
        if let Some(host) = s.hosts.get_mut(&key) {
            let _ = host.handle_segment(now, payload);
            return;
        }
    }
    s.inbox.push(completed(payload, p.meta.checksum));
}

/// The answer to an ARP request for an address of one who is there; announcements ask for their own.
pub fn arp_answer(payload: &[u8], is_there: impl Fn([u8; 4]) -> bool) -> Option<Vec<u8>> {
    let request = arp::Packet::parse(payload).unwrap();
    let asks = matches!(request.operation, arp::Operation::Request)
        && request.sender_ip != request.target_ip
        && is_there(request.target_ip.octets());
    if !asks {
        return None;
    }
    let reply = arp::Packet {
        operation: arp::Operation::Reply,
        sender_mac: HOST_MAC,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    let mut bytes = [0; arp::LEN];
    reply.emit(&mut bytes).unwrap();
    let to = request.sender_mac;
    Some(framed(to, HOST_MAC, ethernet::ETHERTYPE_ARP, &bytes))
}

/// What the host says to a packet of Neighbour Discovery; `None` for anything else.
fn neighbour_discovery(me: u8, payload: &[u8]) -> Option<Option<Vec<u8>>> {
    let v = ipv6::View::parse(payload).unwrap();
    if v.protocol() != ipv6::PROTOCOL_ICMPV6 {
        return None;
    }
    let own: [Ipv6Addr; 2] = [
        format!("2001:db8:{me}::2").parse().unwrap(),
        "fe80::99".parse().unwrap(),
    ];
    match Message::parse(v.payload(), v.src(), v.dst()).unwrap() {
        Message::Solicitation { target, .. } if own.contains(&target) => {
            assert_eq!(v.hop_limit(), 255);
            let answer = Message::Advertisement(Advertisement {
                target,
                mac: Some(HOST_MAC),
                router: false,
                solicited: true,
                replaces: true,
            });
            let header = ipv6::Header {
                hop_limit: 255,
                ..ipv6::Header::new(target, v.src(), ipv6::PROTOCOL_ICMPV6)
            };
            let mut packet = vec![0; ipv6::HEADER_LEN + answer.len()];
            answer.emit_packet(&mut packet, &header).unwrap();
            Some(Some(from_host(mac(me, 0), &packet)))
        }
        Message::Solicitation { .. } | Message::Advertisement(_) => Some(None),
        // Listener reports.
        Message::Other { kind: 143, .. } => Some(None),
        _ => None,
    }
}

/// Own and far end of a TCP segment, as its receiver sees them.
fn connection_of(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let v = ip::View::parse_unverified(packet).ok()?;
    let ports = v.payload().get(..4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    (v.protocol() == ipv4::PROTOCOL_TCP).then_some((
        SocketAddr::new(v.dst(), port(2)),
        SocketAddr::new(v.src(), port(0)),
    ))
}
