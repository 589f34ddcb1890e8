//! Two whole routers on a virtual clock, with hosts of both IP versions behind
//! them and a link over either: what an IPv6 router owes its neighbours
//! (RFC 4861, RFC 4443, RFC 8200), and that nothing of it depends on what the link runs over.
//!
//! ```text
//!   host A ::2 -- lan ::1 [router A] wan ==== wire ==== wan [router B] lan ::1 -- host B ::2
//!       2001:db8:1::/64, 10.1.0.0/24                      2001:db8:2::/64, 10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mef_dataplane::control::LinkState;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::{Endpoint, HostTcp, HostTcpConfig, Role};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::wire::icmpv6::{Advertisement, Error, Message};
use mef_packet::wire::tcp_options::TcpOption;
use mef_packet::wire::{arp, ethernet, icmpv4, ip, ipv4, ipv6, tcp, tcp_options, udp};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Instant, Meta, Packet};

use machine::{caps, mac, public_key, seed, HOST_MAC};

const A: &str = "2001:db8:1::2";
const B: &str = "2001:db8:2::2";
const ROUTER_A: &str = "2001:db8:1::1";
const ROUTER_B: &str = "2001:db8:2::1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Underlay {
    V4,
    V6,
}

/// `more`: tables of both; ME in them is 1 or 2.
fn config_text(me: u8, underlay: Underlay, more: &str) -> String {
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

struct Side {
    me: u8,
    router: Router<MemPort>,
    lan: MemWire,
    wan: MemWire,
    /// IP packets that the host has received.
    inbox: Vec<Vec<u8>>,
    /// Its end of a TCP connection.
    tcp: Option<Endpoint>,
}

fn side(now: Instant, me: u8, underlay: Underlay, more: &str) -> Side {
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

fn inject(wire: &MemWire, frame: &[u8]) {
    let _ = wire.inject(Packet {
        buf: HeapBuf::from_slice(frame),
        meta: Meta::default(),
    });
}

fn framed(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
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

fn ethertype_of(packet: &[u8]) -> u16 {
    match packet[0] >> 4 {
        6 => ethernet::ETHERTYPE_IPV6,
        _ => ethernet::ETHERTYPE_IPV4,
    }
}

struct World {
    now: Instant,
    sides: [Side; 2],
}

impl World {
    /// Two routers whose link is up, with the path's size found.
    fn up(underlay: Underlay, more: &str) -> Self {
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

    fn run(&mut self, ms: u64) {
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

    fn host_sends(&mut self, side: usize, packet: &[u8]) {
        let s = &self.sides[side];
        let frame = framed(mac(s.me, 0), HOST_MAC, ethertype_of(packet), packet);
        inject(&s.lan, &frame);
    }

    /// What host `to` gets of a packet that host `from` sends.
    fn carried(&mut self, from: usize, to: usize, packet: &[u8]) -> Vec<Vec<u8>> {
        self.host_sends(from, packet);
        self.run(60);
        std::mem::take(&mut self.sides[to].inbox)
    }

    fn dropped(&self) -> [u64; 2] {
        [0, 1].map(|i: usize| self.sides[i].router.counters().total())
    }

    /// Host A sends; exactly this one drop more is counted at A.
    fn a_drops(&mut self, packet: &[u8], stage: Stage, reason: DropReason) {
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
    fn errors(&mut self) -> Vec<(String, Error)> {
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
fn crosses(frame: &[u8]) {
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
fn host_receives(now: Instant, s: &mut Side, frame: &[u8]) {
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
fn host_transmits(now: Instant, s: &mut Side) {
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

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn icmp6(src: &str, dst: &str, hop_limit: u8, message: &Message<'_>) -> Vec<u8> {
    let header = ipv6::Header {
        hop_limit,
        ..ipv6::Header::new(addr(src), addr(dst), ipv6::PROTOCOL_ICMPV6)
    };
    let mut packet = vec![0; ipv6::HEADER_LEN + message.len()];
    message.emit_packet(&mut packet, &header).unwrap();
    packet
}

/// An echo request with `data` bytes.
fn ping(src: &str, dst: &str, hop_limit: u8, data: usize) -> Vec<u8> {
    let message = Message::EchoRequest {
        ident: 7,
        seq: 1,
        data: &vec![0x55; data],
    };
    icmp6(src, dst, hop_limit, &message)
}

fn ping4(src: [u8; 4], dst: [u8; 4], data: usize) -> Vec<u8> {
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
fn packet(src: &str, dst: &str, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; ipv6::HEADER_LEN];
    let header = ipv6::Header::new(addr(src), addr(dst), next_header);
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

fn datagram(src: &str, dst: &str, port: u16, data: &[u8]) -> Vec<u8> {
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

fn kind_of(packet: &[u8]) -> (IpAddr, u8) {
    let v = ip::View::parse(packet).unwrap();
    assert!(v.is_icmp());
    (v.src(), v.payload()[0])
}

#[test]
fn pings_of_both_versions_cross_links_over_both_versions() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let mut w = World::up(underlay, "");
        // Up to the largest that an Ethernet carries, in two pieces over the link.
        for data in [0, 56, 1300, 1452] {
            let sent = ping(A, B, 64, data);
            let [got] = w.carried(0, 1, &sent).try_into().unwrap();
            // Two routers have seen it, and nothing else has changed.
            let mut expected = sent;
            expected[7] = 62;
            assert!(got == expected, "{underlay:?} {data}");
        }
        let [got] = w
            .carried(0, 1, &ping4([10, 1, 0, 2], [10, 2, 0, 2], 1472))
            .try_into()
            .unwrap();
        assert_eq!(got.len(), 1500);
        for (router, dst) in [(ROUTER_A, ROUTER_A), (ROUTER_B, ROUTER_B)] {
            let [got] = w.carried(0, 0, &ping(A, dst, 64, 56)).try_into().unwrap();
            assert_eq!(kind_of(&got), (router.parse().unwrap(), 129));
        }
        assert_eq!(w.dropped(), [0, 0], "{underlay:?}");
    }
}

#[test]
fn the_router_answers_at_its_link_local_address() {
    let mut w = World::up(Underlay::V6, "");
    let own = ipv6::link_local(mac(1, 0)).to_string();
    for src in ["fe80::99", A] {
        let [got] = w
            .carried(0, 0, &ping(src, &own, 255, 8))
            .try_into()
            .unwrap();
        assert_eq!(kind_of(&got), (own.parse().unwrap(), 129), "{src}");
    }
    // From a link-local address the router itself can be reached, and nobody beyond it.
    let [got] = w
        .carried(0, 0, &ping("fe80::99", ROUTER_A, 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), (ROUTER_A.parse().unwrap(), 129));
    let beyond = ping("fe80::99", B, 64, 8);
    w.a_drops(&beyond, Stage::Ingress, DropReason::MartianSource);
    let elsewhere = ping(A, "fe80::1234", 64, 8);
    w.a_drops(&elsewhere, Stage::Route, DropReason::NoRoute);
}

#[test]
fn a_next_hop_may_be_link_local() {
    let route = "[[route]]\nprefix = \"2001:db8:ME:7::/64\"\nvia = \"fe80::99%lan\"";
    let mut w = World::up(Underlay::V4, route);
    let [got] = w
        .carried(0, 1, &ping(A, "2001:db8:2:7::5", 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), (A.parse().unwrap(), 128));
    let [got] = w
        .carried(1, 0, &ping("2001:db8:2:7::5", A, 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), ("2001:db8:2:7::5".parse().unwrap(), 128));
    assert_eq!(w.dropped(), [0, 0]);
}

#[test]
fn what_cannot_go_further_is_counted_once_and_explained() {
    let mut w = World::up(Underlay::V4, "");
    w.a_drops(&ping(A, B, 1, 8), Stage::Route, DropReason::TtlExpired);
    let exceeded = |from: &str| (from.to_owned(), Error::TimeExceeded(0));
    assert_eq!(w.errors(), [exceeded(ROUTER_A)]);
    // The second router of a traceroute.
    w.host_sends(0, &ping(A, B, 2, 8));
    w.run(60);
    assert_eq!(w.errors(), [exceeded(ROUTER_B)]);
    let nowhere = ping(A, "2001:db8:99::1", 64, 8);
    w.a_drops(&nowhere, Stage::Route, DropReason::NoRoute);
    let unreachable = |code| (ROUTER_A.to_owned(), Error::Unreachable(code));
    assert_eq!(w.errors(), [unreachable(0)]);
    let to_router = datagram(A, ROUTER_A, 53, b"hello");
    w.a_drops(&to_router, Stage::Ingress, DropReason::NoListener);
    assert_eq!(w.errors(), [unreachable(4)]);
    // No IPv6 router fragments; what the link takes is said.
    let large = datagram(A, B, 53, &[1; 1453]);
    w.a_drops(&large, Stage::Carry, DropReason::TooBig);
    let too_big = Error::TooBig { mtu: 1500 };
    assert_eq!(w.errors(), [(ROUTER_A.to_owned(), too_big)]);
    // Nobody there, at the far end: three questions, and then the sender hears of it.
    w.host_sends(0, &ping(A, "2001:db8:2::77", 64, 8));
    w.run(3100);
    let missing = (ROUTER_B.to_owned(), Error::Unreachable(3));
    assert_eq!(w.errors(), [missing]);
}

#[test]
fn what_nobody_may_send_is_counted_and_goes_nowhere() {
    let mut w = World::up(Underlay::V6, "");
    let mut spoofed_version = ping(A, B, 64, 8);
    for (packet, reason) in [
        (ping("::1", B, 64, 8), DropReason::MartianSource),
        (ping("::", B, 64, 8), DropReason::MartianSource),
        (ping("ff02::1", B, 64, 8), DropReason::MartianSource),
        (ping("::ffff:10.1.0.2", B, 64, 8), DropReason::MartianSource),
        (ping(ROUTER_A, B, 64, 8), DropReason::OwnAddressSpoofed),
        (ping(A, "ff0e::1", 64, 8), DropReason::MartianDestination),
        // Neighbour Discovery that a router has passed on.
        (
            icmp6(
                A,
                ROUTER_A,
                254,
                &Message::Solicitation {
                    target: addr(ROUTER_A),
                    source: Some(HOST_MAC),
                },
            ),
            DropReason::NeighbourDiscoveryBad,
        ),
        // A hop-by-hop header that is not the first.
        (
            packet(A, B, 60, &[0, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0]),
            DropReason::ExtensionHeaders,
        ),
        (packet(A, B, 60, &[58, 1, 1, 4]), DropReason::Truncated),
        // For the router itself, in pieces.
        (
            packet(
                A,
                ROUTER_A,
                44,
                &[58, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 0],
            ),
            DropReason::FragmentUnsupported,
        ),
    ] {
        w.a_drops(&packet, Stage::Ingress, reason);
    }
    // An IPv4 header in an IPv6 frame.
    spoofed_version[0] = 0x45;
    let frame = framed(
        mac(1, 0),
        HOST_MAC,
        ethernet::ETHERTYPE_IPV6,
        &spoofed_version,
    );
    inject(&w.sides[0].lan, &frame);
    w.run(5);
    let count =
        |w: &World, side: usize, stage, reason| w.sides[side].router.counters().get(stage, reason);
    assert_eq!(count(&w, 0, Stage::Ingress, DropReason::BadVersion), 1);
    assert!(w.errors().is_empty());
    // A source that is not behind its router: refused by the other one.
    w.host_sends(0, &ping("2001:db8:77::1", B, 64, 8));
    w.run(60);
    assert!(w.sides[1].inbox.is_empty());
    assert_eq!(count(&w, 1, Stage::Open, DropReason::SourceNotAllowed), 1);
}

#[test]
fn extension_headers_and_fragments_cross_as_they_are() {
    let mut w = World::up(Underlay::V6, "");
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    let mut with_options = packet(A, B, 60, &[&options[..], &[9; 40]].concat());
    let first = packet(
        A,
        B,
        44,
        &[&[17, 0, 0, 1, 0, 0, 0, 5][..], &[8; 64]].concat(),
    );
    let later = packet(
        A,
        B,
        44,
        &[&[17, 0, 0, 64, 0, 0, 0, 5][..], &[7; 64]].concat(),
    );
    for sent in [&mut with_options, &mut first.clone(), &mut later.clone()] {
        let got = w.carried(0, 1, sent);
        sent[7] -= 2;
        assert_eq!(got, std::slice::from_ref(sent));
    }
}

/// A SYN with an MSS option.
fn syn(src: &str, dst: &str, mss: u16) -> Vec<u8> {
    let mut options = [0; 40];
    let n = tcp_options::emit(&mut options, &[TcpOption::Mss(mss)]).unwrap();
    let header = tcp::Header {
        src_port: 40_000,
        dst_port: 22,
        seq: 1,
        flags: tcp::Flags::SYN,
        window: 65_535,
        ..Default::default()
    };
    let mut segment = vec![0; 60];
    let len = header.emit(&mut segment, &options[..n]).unwrap();
    segment.truncate(len);
    tcp::fill_checksum(&mut segment, addr(src), addr(dst)).unwrap();
    packet(src, dst, ipv4::PROTOCOL_TCP, &segment)
}

#[test]
fn tcp_that_is_not_split_is_told_what_the_path_carries() {
    let policy = "[[policy]]\nprotocol = \"tcp\"\nmode = \"datagram\"";
    for (underlay, outer) in [(Underlay::V4, 28), (Underlay::V6, 48)] {
        let mut w = World::up(underlay, policy);
        let [got] = w.carried(0, 1, &syn(A, B, 1440)).try_into().unwrap();
        let v = ipv6::View::parse(&got).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        t.verify_checksum(v.src(), v.dst()).unwrap();
        // LINK header and tag, inner header, DGRAM frame; IPv6 and TCP header of the host's own.
        let mss = 1500 - outer - 32 - 8 - 7 - 60;
        assert_eq!(t.options().next(), Some(Ok(TcpOption::Mss(mss))));
        // What is low enough is left alone.
        let [got] = w.carried(0, 1, &syn(A, B, 1000)).try_into().unwrap();
        let v = ipv6::View::parse(&got).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        assert_eq!(t.options().next(), Some(Ok(TcpOption::Mss(1000))));
    }
}

#[test]
fn a_port_without_ipv6_does_not_speak_it() {
    let mut w = World::up(Underlay::V4, "");
    let question = icmp6(
        "fe80::99",
        "ff02::1:ff00:101",
        255,
        &Message::Solicitation {
            target: ipv6::link_local(mac(1, 1)),
            source: Some(HOST_MAC),
        },
    );
    let frame = framed(mac(1, 1), HOST_MAC, ethernet::ETHERTYPE_IPV6, &question);
    inject(&w.sides[0].wan, &frame);
    w.run(5);
    let counters = w.sides[0].router.counters();
    assert_eq!(
        counters.get(Stage::Ingress, DropReason::EtherTypeUnsupported),
        1
    );
}

/// The byte at `i` of what side `side` sends.
fn byte(side: usize, i: usize) -> u8 {
    ((i ^ side << 20).wrapping_mul(0x9E37_79B1) >> 15) as u8
}

#[test]
fn split_connections_of_either_version_carry_every_byte() {
    const BYTES: usize = 3_000_000;
    for (underlay, client, server) in [
        (Underlay::V4, A, B),
        (Underlay::V6, A, B),
        (Underlay::V6, "10.1.0.2", "10.2.0.2"),
    ] {
        let mut w = World::up(underlay, "");
        let client = SocketAddr::new(client.parse().unwrap(), 40_000);
        let server = SocketAddr::new(server.parse().unwrap(), 443);
        let roles = [
            Role::Active {
                local: client,
                remote: server,
            },
            Role::Passive {
                local: server,
                remote: client,
            },
        ];
        for (s, role) in w.sides.iter_mut().zip(roles) {
            let config = HostTcpConfig {
                isn_seed: s.me.into(),
                ..HostTcpConfig::default()
            };
            s.tcp = Some(Endpoint::new(w.now, role, &config).unwrap());
        }
        let mut written = [0; 2];
        let mut read = [0; 2];
        for _ in 0..20_000 {
            w.run(1);
            for i in 0..2 {
                let tcp = w.sides[i].tcp.as_mut().unwrap();
                let room = tcp.writable().min(BYTES - written[i]);
                let data: Vec<u8> = (0..room).map(|n| byte(i, written[i] + n)).collect();
                written[i] += tcp.write(&data);
                if written[i] == BYTES {
                    tcp.finish();
                }
                tcp.read(|got| {
                    let from = read[i];
                    let right = got.iter().enumerate();
                    assert!(right.clone().all(|(n, b)| *b == byte(1 - i, from + n)));
                    read[i] += got.len();
                    got.len()
                });
            }
            if w.sides
                .iter()
                .all(|s| s.tcp.as_ref().unwrap().state().remote_finished)
            {
                break;
            }
        }
        assert_eq!(read, [BYTES; 2], "{client} over {underlay:?}");
        for s in &w.sides {
            let state = s.tcp.as_ref().unwrap().state();
            assert!(state.remote_finished && state.end.is_none(), "{state:?}");
            let counters = s.router.snapshot(w.now, Duration::ZERO).counters;
            assert_eq!(counters["flows_opened"], 1);
        }
        assert_eq!(w.dropped(), [0, 0]);
    }
}

#[test]
fn refused_and_unreachable_come_back_as_the_far_host_would_say_it() {
    let mut w = World::up(Underlay::V6, "");
    // Nobody has this address: the far router asks for it three times.
    w.host_sends(0, &syn(A, "2001:db8:2::77", 1440));
    w.run(4000);
    assert_eq!(w.errors(), [(ROUTER_A.to_owned(), Error::Unreachable(3))]);
    // Nobody listens: host B says so, and so does the router in its name.
    w.host_sends(0, &syn(A, B, 1440));
    w.run(60);
    let [asked] = std::mem::take(&mut w.sides[1].inbox).try_into().unwrap();
    let v = ipv6::View::parse(&asked).unwrap();
    let t = tcp::View::parse(v.payload()).unwrap();
    t.verify_checksum(v.src(), v.dst()).unwrap();
    assert_eq!((v.src(), v.dst()), (addr(A), addr(B)));
    assert_eq!(t.flags(), tcp::Flags::SYN);
    let header = tcp::Header {
        src_port: 22,
        dst_port: 40_000,
        ack: t.seq().wrapping_add(1),
        flags: tcp::Flags::RST | tcp::Flags::ACK,
        ..Default::default()
    };
    let mut rst = vec![0; 20];
    header.emit(&mut rst, &[]).unwrap();
    tcp::fill_checksum(&mut rst, addr(B), addr(A)).unwrap();
    let [answer] = w
        .carried(1, 0, &packet(B, A, ipv4::PROTOCOL_TCP, &rst))
        .try_into()
        .unwrap();
    let v = ipv6::View::parse(&answer).unwrap();
    let t = tcp::View::parse(v.payload()).unwrap();
    t.verify_checksum(v.src(), v.dst()).unwrap();
    assert_eq!((v.src(), t.ack()), (addr(B), 2));
    assert!(t.flags().contains(tcp::Flags::RST));
}
