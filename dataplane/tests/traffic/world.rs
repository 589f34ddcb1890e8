//! What the tests of this folder set, and what their hosts send.

use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::{ipv4, tcp, udp};

pub use super::machine::*;

/// What a test adds to the configuration of a router.
#[derive(Clone, Copy, Default)]
pub struct Extra {
    pub line: &'static str,
    pub end: &'static str,
}

pub fn policy(text: &'static str) -> Extra {
    Extra {
        end: text,
        ..Extra::default()
    }
}

/// Networks of large packets behind both routers, and a way between them in the clear.
pub fn settings(a: Extra, b: Extra) -> Settings {
    let [a_table, b_table] = [a, b].map(|extra| {
        let route = "[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"192.0.2.{other}\"";
        format!("{route}\n{}", extra.end)
    });
    Settings {
        wan: "\"192.0.2.{me}/30\"",
        line: [a.line, b.line],
        tables: [a_table, b_table],
        ports: |me| [caps(me, 0, 9000), caps(me, 1, 1500)],
        ..Settings::default()
    }
}

/// With the link up, and known hosts.
pub fn up(settings: Settings) -> World {
    let mut w = World::up(settings);
    w.host_sends(0, &udp_packet(A, B, 1, b"hello"));
    w.host_sends(1, &udp_packet(B, A, 1, b"hello"));
    w.run(ms(300));
    w.forget();
    w
}

pub fn up_with(a: Extra, b: Extra) -> World {
    up(settings(a, b))
}

pub fn up_plainly() -> World {
    up_with(Extra::default(), Extra::default())
}

pub fn ip(
    src: [u8; 4],
    dst: [u8; 4],
    protocol: u8,
    class: u8,
    dont_fragment: bool,
    payload: &[u8],
) -> Vec<u8> {
    let header = ipv4::Header {
        dscp_ecn: class,
        dont_fragment,
        ident: 99,
        ..ipv4::Header::new(src.into(), dst.into(), protocol)
    };
    ip_with(&header, payload)
}

pub fn udp_bytes(src: [u8; 4], dst: [u8; 4], port: u16, data: &[u8]) -> Vec<u8> {
    let mut u = vec![0; 8];
    let header = udp::Header {
        src_port: 5000,
        dst_port: port,
    };
    header.emit(&mut u, data.len()).unwrap();
    u.extend_from_slice(data);
    udp::fill_checksum(
        &mut u,
        std::net::Ipv4Addr::from(src),
        std::net::Ipv4Addr::from(dst),
    )
    .unwrap();
    u
}

pub fn udp_packet(src: [u8; 4], dst: [u8; 4], port: u16, data: &[u8]) -> Vec<u8> {
    ip(src, dst, 17, 0, true, &udp_bytes(src, dst, port, data))
}

pub fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 251) as u8).collect()
}

pub fn segment(
    src: ([u8; 4], u16),
    dst: ([u8; 4], u16),
    seq: u32,
    flags: tcp::Flags,
    payload: &[u8],
) -> Vec<u8> {
    let segment = Segment {
        seq,
        ack: 7,
        payload: payload.to_vec(),
        ..Segment::new(src, dst, flags.0)
    };
    ip(src.0, dst.0, 6, 0, true, &segment.tcp())
}

/// The packet behind two routers: its TTL is two less, its ECN bits are `ecn`.
pub fn behind(packet: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut p = packet.to_vec();
    for _ in 0..2 {
        ipv4::decrement_ttl(&mut p).unwrap();
    }
    ecn::set(&mut p, ecn).unwrap();
    p
}
