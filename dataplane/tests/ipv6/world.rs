//! The two routers, their hosts, and what these send.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use mef_dataplane::control::LinkState;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::{Endpoint, HostTcp};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::wire::icmpv6::{Advertisement, Error, Message};
use mef_packet::wire::{arp, ethernet, icmpv4, ip, ipv4, ipv6, udp};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Instant, Meta, Packet};

use super::machine::{self, caps, mac, public_key, seed, HOST_MAC};

pub const A: &str = "2001:db8:1::2";
pub const B: &str = "2001:db8:2::2";
pub const ROUTER_A: &str = "2001:db8:1::1";
pub const ROUTER_B: &str = "2001:db8:2::1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

/// `more`: tables of both; ME in them is 1 or 2.
pub fn config_text(me: u8, underlay: Underlay, more: &str) -> String {
    let other = 3 - me;
    let more = more.replace("ME", &me.to_string());
    let (wan, endpoint) = match underlay {
        Underlay::V4 => (format!("192.0.2.{me}/30"), format!("192.0.2.{other}:4800")),
        Underlay::V6 => (
            format!("2001:db8:f::{me}/64"),
            format!("[2001:db8:f::{other}]:4800"),
        ),
    };
    format!(
        r#"[router]
name = "r{me}"
private_key = "r.key"
memory = "64MiB"
engine = "aes-gcm"

[[port]]
name = "lan"
interface = "eth0"
addresses = ["10.{me}.0.1/24", "2001:db8:{me}::1/64"]

[[port]]
name = "wan"
interface = "eth1"
addresses = ["{wan}"]
[port.line]
up = "100Mbit/s"
down = "100Mbit/s"

[[peer]]
name = "other"
public_key = "{}"
port = "wan"
endpoint = "{endpoint}"
prefixes = ["10.{other}.0.0/24", "2001:db8:{other}::/48"]
{more}
"#,
        public_key(other)
    )
}

pub struct Side {
    pub me: u8,
    pub router: Router<MemPort>,
    pub lan: MemWire,
    pub wan: MemWire,
    /// IP packets that the host has received.
    pub inbox: Vec<Vec<u8>>,
    /// Its end of a TCP connection.
    pub tcp: Option<Endpoint>,
}

pub fn side(now: Instant, me: u8, underlay: Underlay, more: &str) -> Side {
    let text = config_text(me, underlay, more);
    let mut ports = [caps(me, 0, 1500), caps(me, 1, 1500)];
    ports[0].tcp_gso = true;
    let start = seed(me, me.into(), 1_000_000_000_000);
    let (router, [lan, wan]) = machine::router(now, me, &text, ports, 4096, start);
    Side {
        me,
        router,
        lan,
        wan,
        inbox: Vec::new(),
        tcp: None,
    }
}

pub fn inject(wire: &MemWire, frame: &[u8]) {
    let _ = wire.inject(Packet {
        buf: HeapBuf::from_slice(frame),
        meta: Meta::default(),
    });
}

pub fn framed(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14];
    let header = ethernet::Header {
        dst,
        src,
        ethertype,
    };
    header.emit(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

pub fn ethertype_of(packet: &[u8]) -> u16 {
    match packet[0] >> 4 {
        6 => ethernet::ETHERTYPE_IPV6,
        _ => ethernet::ETHERTYPE_IPV4,
    }
}

pub struct World {
    pub now: Instant,
    pub sides: [Side; 2],
}

impl World {
    /// Two routers whose link is up, with the path's size found.
    pub fn up(underlay: Underlay, more: &str) -> Self {
        let now = Instant::from_millis(1000);
        let mut w = Self {
            now,
            sides: [side(now, 1, underlay, more), side(now, 2, underlay, more)],
        };
        w.run(2000);
        for s in &mut w.sides {
            let snapshot = s.router.snapshot(w.now, Duration::ZERO);
            assert_eq!(snapshot.links[0].state, LinkState::Up);
            assert_eq!(snapshot.links[0].mtu, 1500);
            s.inbox.clear();
        }
        assert_eq!(w.dropped(), [0, 0]);
        w
    }

    pub fn run(&mut self, ms: u64) {
        for _ in 0..2 * ms {
            for i in 0..2 {
                let s = &mut self.sides[i];
                host_transmits(self.now, s);
                s.router.poll(self.now);
                let mut frames = Vec::new();
                s.lan.take_sent(&mut frames);
                for f in frames.drain(..) {
                    host_receives(self.now, s, f.buf.bytes());
                }
                s.wan.take_sent(&mut frames);
                for f in frames {
                    crosses(f.buf.bytes());
                    inject(&self.sides[1 - i].wan, f.buf.bytes());
                }
            }
            self.now += Duration::from_micros(500);
        }
    }

    pub fn host_sends(&mut self, side: usize, packet: &[u8]) {
        let s = &self.sides[side];
        let frame = framed(mac(s.me, 0), HOST_MAC, ethertype_of(packet), packet);
        inject(&s.lan, &frame);
    }

    /// What host `to` gets of a packet that host `from` sends.
    pub fn carried(&mut self, from: usize, to: usize, packet: &[u8]) -> Vec<Vec<u8>> {
        self.host_sends(from, packet);
        self.run(60);
        std::mem::take(&mut self.sides[to].inbox)
    }

    pub fn dropped(&self) -> [u64; 2] {
        [0, 1].map(|i: usize| self.sides[i].router.counters().total())
    }

    /// Host A sends; exactly this one drop more is counted at A.
    pub fn a_drops(&mut self, packet: &[u8], stage: Stage, reason: DropReason) {
        let count = |w: &Self| {
            let c = w.sides[0].router.counters();
            (c.total(), c.get(stage, reason))
        };
        let before = count(self);
        self.host_sends(0, packet);
        self.run(20);
        let after = count(self);
        let named = self.sides[0].router.counters().named();
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            (1, 1),
            "{stage:?} {reason:?}: {named:?}"
        );
    }

    /// The ICMPv6 errors that host A has received: who from, and what.
    pub fn errors(&mut self) -> Vec<(String, Error)> {
        let read = |p: Vec<u8>| {
            let v = ipv6::View::parse(&p).ok()?;
            assert!(p.len() <= 1280);
            match Message::parse(v.payload(), v.src(), v.dst()).unwrap() {
                Message::Error { error, .. } => Some((v.src().to_string(), error)),
                _ => None,
            }
        };
        self.sides[0].inbox.drain(..).filter_map(read).collect()
    }
}

/// Every frame on the WAN is one that any router on the way would carry.
pub fn crosses(frame: &[u8]) {
    assert!(frame.len() <= 1514, "{}", frame.len());
    let (header, packet) = ethernet::Header::parse(frame).unwrap();
    if header.ethertype == ethernet::ETHERTYPE_ARP {
        return;
    }
    let v = ip::View::parse(packet).unwrap();
    if v.protocol() == ipv4::PROTOCOL_UDP {
        let u = udp::View::parse(v.payload()).unwrap();
        u.verify_checksum(v.src(), v.dst()).unwrap();
    }
}

/// The host answers ARP and Neighbour Discovery for its own addresses, and keeps the rest.
pub fn host_receives(now: Instant, s: &mut Side, frame: &[u8]) {
    let (header, payload) = ethernet::Header::parse(frame).unwrap();
    if header.ethertype == ethernet::ETHERTYPE_ARP {
        let request = arp::Packet::parse(payload).unwrap();
        if request.target_ip.octets() == [10, s.me, 0, 2] {
            let reply = arp::Packet {
                operation: arp::Operation::Reply,
                sender_mac: HOST_MAC,
                sender_ip: request.target_ip,
                target_mac: request.sender_mac,
                target_ip: request.sender_ip,
            };
            let mut bytes = [0; arp::LEN];
            reply.emit(&mut bytes).unwrap();
            inject(
                &s.lan,
                &framed(mac(s.me, 0), HOST_MAC, header.ethertype, &bytes),
            );
        }
        return;
    }
    if header.ethertype == ethernet::ETHERTYPE_IPV6 {
        let v = ipv6::View::parse(payload).unwrap();
        if v.protocol() == ipv6::PROTOCOL_ICMPV6 {
            let own: [Ipv6Addr; 2] = [
                format!("2001:db8:{}::2", s.me).parse().unwrap(),
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
                    let packet = icmp6(&target.to_string(), &v.src().to_string(), 255, &answer);
                    let frame = framed(mac(s.me, 0), HOST_MAC, header.ethertype, &packet);
                    return inject(&s.lan, &frame);
                }
                Message::Solicitation { .. } | Message::Advertisement(_) => return,
                // Listener reports.
                Message::Other { kind: 143, .. } => return,
                _ => {}
            }
        }
    }
    if let Some(tcp) = &mut s.tcp {
        if tcp.handle_segment(now, payload).is_ok() {
            return;
        }
    }
    s.inbox.push(payload.to_vec());
}

/// Super-segments leave whole, with a partial checksum, as a host's do.
pub fn host_transmits(now: Instant, s: &mut Side) {
    let mut packet = Vec::new();
    while let Some(meta) = s
        .tcp
        .as_mut()
        .and_then(|t| t.poll_transmit(now, &mut packet))
    {
        let v = ip::View::parse(&packet).unwrap();
        let gso = match v {
            _ if meta.gso_size == 0 => Gso::None,
            ip::View::V4(_) => Gso::TcpV4,
            ip::View::V6(_) => Gso::TcpV6,
        };
        let start = 14 + v.header_len() as u16;
        let frame = framed(mac(s.me, 0), HOST_MAC, ethertype_of(&packet), &packet);
        let _ = s.lan.inject(Packet {
            buf: HeapBuf::from_slice(&frame),
            meta: Meta {
                gso,
                gso_size: meta.gso_size,
                checksum: Checksum::Partial { start, offset: 16 },
                ..Meta::default()
            },
        });
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

pub fn ping4(src: [u8; 4], dst: [u8; 4], data: usize) -> Vec<u8> {
    let data = vec![0x55; data];
    let message = icmpv4::Message::EchoRequest {
        ident: 7,
        seq: 1,
        data: &data,
    };
    let mut packet = vec![0; 20 + message.len()];
    let (head, body) = packet.split_at_mut(20);
    let len = message.emit(body).unwrap();
    let header = ipv4::Header::new(src.into(), dst.into(), ipv4::PROTOCOL_ICMP);
    header.emit(head, len).unwrap();
    packet
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
