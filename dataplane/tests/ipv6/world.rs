//! Settings of routers that speak IPv6, and what their hosts send.

use std::net::{IpAddr, Ipv6Addr};

use mef_dataplane::control::LinkState;
use mef_packet::wire::icmpv6::{Error, Message};
use mef_packet::wire::{ethernet, ip, ipv4, ipv6, udp};

pub use super::machine::*;

pub const A: &str = "2001:db8:1::2";
pub const B: &str = "2001:db8:2::2";
pub const ROUTER_A: &str = "2001:db8:1::1";
pub const ROUTER_B: &str = "2001:db8:2::1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

/// Two routers whose link is up, with the path's size found; `more` are tables of both.
pub fn up(underlay: Underlay, more: &'static str) -> World {
    let (wan, endpoint) = match underlay {
        Underlay::V4 => ("\"192.0.2.{me}/30\"", "192.0.2.{other}:4800"),
        Underlay::V6 => ("\"2001:db8:f::{me}/64\"", "[2001:db8:f::{other}]:4800"),
    };
    let mut w = World::new(Settings {
        lan: "\"10.{me}.0.1/24\", \"2001:db8:{me}::1/64\"",
        wan,
        endpoint,
        prefixes: "\"10.{other}.0.0/24\", \"2001:db8:{other}::/48\"",
        tables: [more; 2].map(str::to_owned),
        ports: |me| {
            let mut ports = [caps(me, 0, 1500), caps(me, 1, 1500)];
            ports[0].tcp_gso = true;
            ports
        },
        ..Settings::default()
    });
    w.lose = Box::new(|_, frame| {
        crosses(frame);
        false
    });
    w.run(ms(2000));
    for side in 0..2 {
        let snapshot = w.snapshot(side);
        assert_eq!(snapshot.links[0].state, LinkState::Up);
        assert_eq!(snapshot.links[0].mtu, 1500);
    }
    w.forget();
    assert_eq!(w.dropped(), [0, 0]);
    w
}

/// What host `to` gets of a packet that host `from` sends.
pub fn carried(w: &mut World, from: usize, to: usize, packet: &[u8]) -> Vec<Vec<u8>> {
    w.host_sends(from, packet);
    w.run(ms(60));
    w.received(to)
}

/// The ICMPv6 errors that host A has received: who from, and what.
pub fn errors(w: &mut World) -> Vec<(String, Error)> {
    let read = |p: Vec<u8>| {
        let v = ipv6::View::parse(&p).ok()?;
        assert!(p.len() <= 1280);
        match Message::parse(v.payload(), v.src(), v.dst()).unwrap() {
            Message::Error { error, .. } => Some((v.src().to_string(), error)),
            _ => None,
        }
    };
    w.received(0).into_iter().filter_map(read).collect()
}

/// Every frame on the WAN is one that any router on the way would carry.
pub fn crosses(frame: &[u8]) {
    assert!(frame.len() <= 1514, "{}", frame.len());
    let (_, packet) = ethernet::Header::parse(frame).unwrap();
    let v = ip::View::parse(packet).unwrap();
    if v.protocol() == ipv4::PROTOCOL_UDP {
        let u = udp::View::parse(v.payload()).unwrap();
        u.verify_checksum(v.src(), v.dst()).unwrap();
    }
}

pub fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

pub fn icmp6(src: &str, dst: &str, hop_limit: u8, message: &Message<'_>) -> Vec<u8> {
    let header = ipv6::Header {
        hop_limit,
        ..ipv6::Header::new(addr(src), addr(dst), ipv6::PROTOCOL_ICMPV6)
    };
    let mut packet = vec![0; ipv6::HEADER_LEN + message.len()];
    message.emit_packet(&mut packet, &header).unwrap();
    packet
}

/// An echo request with `data` bytes.
pub fn ping(src: &str, dst: &str, hop_limit: u8, data: usize) -> Vec<u8> {
    let message = Message::EchoRequest {
        ident: 7,
        seq: 1,
        data: &vec![0x55; data],
    };
    icmp6(src, dst, hop_limit, &message)
}

/// A packet with any next header and payload.
pub fn packet(src: &str, dst: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; ipv6::HEADER_LEN];
    let header = ipv6::Header::new(addr(src), addr(dst), next_header);
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

pub fn datagram(src: &str, dst: &str, port: u16, data: &[u8]) -> Vec<u8> {
    let mut u = vec![0; 8];
    let header = udp::Header {
        src_port: 999,
        dst_port: port,
    };
    header.emit(&mut u, data.len()).unwrap();
    u.extend_from_slice(data);
    udp::fill_checksum(&mut u, addr(src), addr(dst)).unwrap();
    packet(src, dst, ipv4::PROTOCOL_UDP, &u)
}

pub fn kind_of(packet: &[u8]) -> (IpAddr, u8) {
    let v = ip::View::parse(packet).unwrap();
    assert!(v.is_icmp());
    (v.src(), v.payload()[0])
}
