//! What becomes of packets that are not split TCP: two whole routers back to
//! back on ports in memory and a virtual clock, a host behind each, and a way
//! between the routers for packets in the clear.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== wire ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/30                   10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::time::Duration;

use mef_dataplane::control::{LinkState, Snapshot};
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::{ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Instant, Meta, Packet};

use machine::{caps, mac, public_key, seed, HOST_MAC};

/// What a test adds to the configuration of a router.
#[derive(Clone, Copy, Default)]
struct Extra {
    line: &'static str,
    end: &'static str,
    lan_mtu: Option<u16>,
}

fn policy(text: &'static str) -> Extra {
    Extra {
        end: text,
        ..Extra::default()
    }
}

fn config_text(me: u8, extra: Extra) -> String {
    let other = 3 - me;
    format!(
        r#"[router]
name = "r{me}"
private_key = "r.key"
memory = "64MiB"
engine = "aes-gcm"
[[port]]
name = "lan"
interface = "eth0"
addresses = ["10.{me}.0.1/24"]
[[port]]
name = "wan"
interface = "eth1"
addresses = ["192.0.2.{me}/30"]
[port.line]
up = "100Mbit/s"
down = "100Mbit/s"
{}
[[peer]]
name = "other"
public_key = "{}"
port = "wan"
endpoint = "192.0.2.{other}:4800"
prefixes = ["10.{other}.0.0/24"]
[[route]]
prefix = "0.0.0.0/0"
via = "192.0.2.{other}"
{}
"#,
        extra.line,
        public_key(other),
        extra.end
    )
}

struct Side {
    me: u8,
    router: Router<MemPort>,
    lan: MemWire,
    wan: MemWire,
    /// IP packets that the host has received.
    inbox: Vec<Vec<u8>>,
}

fn side(now: Instant, me: u8, extra: Extra) -> Side {
    let text = config_text(me, extra);
    let ports = [
        caps(me, 0, extra.lan_mtu.unwrap_or(9000)),
        caps(me, 1, 1500),
    ];
    let start = seed(me, me.into(), 1_000_000_000_000);
    let (router, [lan, wan]) = machine::router(now, me, &text, ports, 4096, start);
    Side {
        me,
        router,
        lan,
        wan,
        inbox: Vec::new(),
    }
}

struct World {
    now: Instant,
    sides: [Side; 2],
    /// Link packets do not pass; packets in the clear do.
    cut: bool,
    /// Every link packet that may be marked is.
    marks: bool,
    /// Frames on the WAN in the clear, and traffic classes of link packets, that passed.
    clear: Vec<Vec<u8>>,
    classes: Vec<u8>,
}

fn is_link(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 4800u16.to_be_bytes()
}

impl World {
    fn new(a: Extra, b: Extra) -> Self {
        let now = Instant::from_millis(1000);
        let mut w = Self {
            now,
            sides: [side(now, 1, a), side(now, 2, b)],
            cut: false,
            marks: false,
            clear: Vec::new(),
            classes: Vec::new(),
        };
        w.run(2000);
        for s in &mut w.sides {
            let snapshot = s.router.snapshot(now, Duration::ZERO);
            assert_eq!(snapshot.links[0].state, LinkState::Up);
        }
        // Who the hosts are is known from here on.
        w.host_sends(0, &udp_packet(A, B, 1, b"hello"));
        w.host_sends(1, &udp_packet(B, A, 1, b"hello"));
        w.run(300);
        w.forget();
        w
    }

    fn forget(&mut self) {
        for s in &mut self.sides {
            s.inbox.clear();
        }
        self.clear.clear();
        self.classes.clear();
    }

    fn run(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while self.now < until {
            for s in &mut self.sides {
                s.router.poll(self.now);
            }
            let mut frames = [Vec::new(), Vec::new()];
            for (s, f) in self.sides.iter_mut().zip(&mut frames) {
                s.wan.take_sent(f);
                let mut out = Vec::new();
                s.lan.take_sent(&mut out);
                for p in out {
                    let bytes = p.buf.bytes().to_vec();
                    let asked = [10, s.me, 0, 2];
                    if bytes[12..14] == [8, 6] {
                        // The host answers for its own address only.
                        if bytes[20..22] == [0, 1] && bytes[38..42] == asked {
                            let mut r = bytes[..42].to_vec();
                            r[..6].copy_from_slice(&bytes[6..12]);
                            r[6..12].copy_from_slice(&HOST_MAC);
                            r[20..22].copy_from_slice(&[0, 2]);
                            r[32..42].copy_from_slice(&bytes[22..32]);
                            r[22..28].copy_from_slice(&HOST_MAC);
                            r[28..32].copy_from_slice(&asked);
                            inject(&s.lan, &r, Meta::default());
                        }
                    } else {
                        let ip = completed(&bytes[14..], p.meta.checksum);
                        s.inbox.push(ip);
                    }
                }
            }
            for (to, f) in frames.iter_mut().enumerate() {
                for p in f.drain(..) {
                    let mut bytes = p.buf.bytes().to_vec();
                    if is_link(&bytes) {
                        self.classes.push(bytes[15]);
                        if self.cut {
                            continue;
                        }
                        if self.marks && Ecn::of(&bytes[14..]).is_capable() {
                            ecn::set(&mut bytes[14..], Ecn::Ce).unwrap();
                        }
                    } else if bytes[12..14] == [8, 0] {
                        self.clear.push(bytes[14..].to_vec());
                    }
                    inject(&self.sides[1 - to].wan, &bytes, Meta::default());
                }
            }
            self.now += Duration::from_micros(500);
        }
    }

    fn host_sends(&mut self, side: usize, packet: &[u8]) {
        self.host_offers(side, packet, Meta::default());
    }

    fn host_offers(&mut self, side: usize, packet: &[u8], meta: Meta) {
        let s = &self.sides[side];
        let mut f = mac(s.me, 0).to_vec();
        f.extend_from_slice(&HOST_MAC);
        f.extend_from_slice(&[8, 0]);
        f.extend_from_slice(packet);
        inject(&s.lan, &f, meta);
    }

    fn count(&self, side: usize, stage: Stage, reason: DropReason) -> u64 {
        self.sides[side].router.counters().get(stage, reason)
    }

    fn snapshot(&self, side: usize) -> Snapshot {
        self.sides[side].router.snapshot(self.now, Duration::ZERO)
    }

    /// What the host has received since this was last asked.
    fn received(&mut self, side: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sides[side].inbox)
    }

    /// ICMP errors that the host has received: source, type, code, the two bytes of an MTU.
    fn icmp(&mut self, side: usize) -> Vec<([u8; 4], u8, u8, u16)> {
        let packets = self.received(side).into_iter().filter(|p| p[9] == 1);
        packets
            .map(|p| {
                let source = [p[12], p[13], p[14], p[15]];
                let mtu = u16::from_be_bytes([p[26], p[27]]);
                (source, p[20], p[21], mtu)
            })
            .collect()
    }

    fn nothing_dropped(&self) {
        for s in &self.sides {
            assert_eq!(s.router.counters().total(), 0, "{:?}", s.router.counters());
        }
    }
}

/// As the host's kernel sees it.
fn completed(packet: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut p = packet.to_vec();
    if let Checksum::Partial { start, offset } = checksum {
        mef_packet::wire::checksum::complete_partial(&mut p, start - 14, offset).unwrap();
    }
    p
}

fn inject(wire: &MemWire, frame: &[u8], meta: Meta) {
    let buf = HeapBuf::from_slice(frame);
    wire.inject(Packet { buf, meta }).unwrap();
}

const A: [u8; 4] = [10, 1, 0, 2];
const B: [u8; 4] = [10, 2, 0, 2];
const ROUTER_A: [u8; 4] = [10, 1, 0, 1];
const ROUTER_B: [u8; 4] = [10, 2, 0, 1];

fn ip(
    src: [u8; 4],
    dst: [u8; 4],
    protocol: u8,
    class: u8,
    dont_fragment: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut p = vec![0; 20];
    let header = ipv4::Header {
        dscp_ecn: class,
        dont_fragment,
        ident: 99,
        ..ipv4::Header::new(src.into(), dst.into(), protocol)
    };
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

fn udp_bytes(src: [u8; 4], dst: [u8; 4], port: u16, data: &[u8]) -> Vec<u8> {
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

fn udp_packet(src: [u8; 4], dst: [u8; 4], port: u16, data: &[u8]) -> Vec<u8> {
    ip(src, dst, 17, 0, true, &udp_bytes(src, dst, port, data))
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 251) as u8).collect()
}

fn segment(
    src: ([u8; 4], u16),
    dst: ([u8; 4], u16),
    seq: u32,
    flags: tcp::Flags,
    payload: &[u8],
) -> Vec<u8> {
    let mut t = Vec::new();
    t.extend_from_slice(&src.1.to_be_bytes());
    t.extend_from_slice(&dst.1.to_be_bytes());
    t.extend_from_slice(&seq.to_be_bytes());
    t.extend_from_slice(&[0, 0, 0, 7, 0x50, flags.0, 0xff, 0xff, 0, 0, 0, 0]);
    t.extend_from_slice(payload);
    let (s, d) = (
        std::net::Ipv4Addr::from(src.0),
        std::net::Ipv4Addr::from(dst.0),
    );
    tcp::fill_checksum(&mut t, s, d).unwrap();
    ip(src.0, dst.0, 6, 0, true, &t)
}

/// The packet behind two routers: its TTL is two less, its ECN bits are `ecn`.
fn behind(packet: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut p = packet.to_vec();
    for _ in 0..2 {
        ipv4::decrement_ttl(&mut p).unwrap();
    }
    ecn::set(&mut p, ecn).unwrap();
    p
}

#[test]
fn datagrams_keep_all_but_ttl_and_marks() {
    let mut w = World::new(Extra::default(), Extra::default());
    for (class, len) in [(0, 8), (0xb8, 100), (0x29, 1472), (0x2a, 1472), (0x03, 700)] {
        let packet = ip(A, B, 17, class, len != 100, &udp_bytes(A, B, 9, &data(len)));
        w.forget();
        w.host_sends(0, &packet);
        w.run(50);
        assert_eq!(w.received(1), [behind(&packet, Ecn::of_class(class))]);
        // Its class stands outside, for whoever carries the line; control has none.
        assert!(w.classes.contains(&class), "{:?}", w.classes);
        assert!(w.classes.iter().all(|c| [0, class].contains(c)));
        w.marks = true;
        w.host_sends(0, &packet);
        w.run(50);
        let marked = if class & 3 == 0 { Ecn::NotEct } else { Ecn::Ce };
        assert_eq!(w.received(1), [behind(&packet, marked)]);
        w.marks = false;
    }
    w.nothing_dropped();
}

#[test]
fn a_split_connection_keeps_the_class_of_its_syn_and_ends_its_marks_here() {
    let mut w = World::new(Extra::default(), Extra::default());
    let (from, to) = ((A, 40_000), (B, 80));
    let mut syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    // AF41, and ECT(0), which no SYN should have.
    ecn::set_traffic_class(&mut syn, 0x8a).unwrap();
    w.host_sends(0, &syn);
    w.run(50);
    let opened = w.received(1).remove(0);
    assert_eq!((opened[1], opened[9]), (0x88, 6));
    let seq = tcp::View::parse(&opened[20..]).unwrap().seq();
    let mut answer = segment(to, from, 5000, tcp::Flags::SYN | tcp::Flags::ACK, b"");
    answer[28..32].copy_from_slice(&(seq + 1).to_be_bytes());
    let (s, d) = (std::net::Ipv4Addr::from(B), std::net::Ipv4Addr::from(A));
    tcp::fill_checksum(&mut answer[20..], s, d).unwrap();
    w.host_sends(1, &answer);
    w.run(50);
    let accepted = w.received(0).remove(0);
    assert_eq!((accepted[1], accepted[9]), (0x88, 6));
    let theirs = tcp::View::parse(&accepted[20..]).unwrap().seq();
    w.forget();
    let mut data = segment(from, to, 1001, tcp::Flags::ACK, b"GET /");
    data[28..32].copy_from_slice(&(theirs + 1).to_be_bytes());
    tcp::fill_checksum(&mut data[20..], d, s).unwrap();
    w.host_sends(0, &data);
    w.run(50);
    let delivered = w.received(1);
    assert!(delivered
        .iter()
        .any(|p| p.ends_with(b"GET /") && p[1] == 0x88));
    // The stream's packets show the class; control does not.
    assert!(w.classes.contains(&0x88), "{:?}", w.classes);
    assert!(
        w.classes.iter().all(|c| [0, 0x88].contains(c)),
        "{:?}",
        w.classes
    );
}

#[test]
fn the_class_outside_can_be_switched_off_but_not_the_marks() {
    let zero = Extra {
        line: "dscp = \"zero\"",
        ..Extra::default()
    };
    let mut w = World::new(zero, Extra::default());
    w.host_sends(
        0,
        &ip(A, B, 17, 0xba, true, &udp_bytes(A, B, 9, &data(100))),
    );
    w.run(50);
    assert!(w.classes.contains(&2) && w.classes.iter().all(|c| c & 0xfc == 0));
    assert_eq!(w.received(1)[0][1], 0xba);
}

#[test]
fn hosts_have_a_path_of_1500_bytes_and_are_told_so() {
    let mut w = World::new(Extra::default(), Extra::default());
    w.host_sends(0, &udp_packet(A, B, 9, &data(1473)));
    w.run(50);
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 4, 1500)]);
    assert_eq!(w.count(0, Stage::Carry, DropReason::TooBig), 1);
    assert_eq!(w.received(1).len(), 0);
    // Where its header allows it, it is fragmented instead.
    let large = ip(A, B, 17, 0, false, &udp_bytes(A, B, 9, &data(4000)));
    w.host_sends(0, &large);
    w.run(50);
    let fragments = w.received(1);
    assert_eq!(
        fragments.iter().map(Vec::len).collect::<Vec<_>>(),
        [1500, 1500, 1068]
    );
    let mut joined = Vec::new();
    for f in &fragments {
        let v = ipv4::View::parse(f).unwrap();
        assert_eq!(
            (usize::from(v.fragment_offset()), v.ident()),
            (joined.len(), 99)
        );
        joined.extend_from_slice(v.payload());
    }
    assert_eq!(joined, large[20..]);
}

#[test]
fn a_smaller_network_behind_the_other_router_is_reported_by_it() {
    let small = Extra {
        lan_mtu: Some(1300),
        ..Extra::default()
    };
    let mut w = World::new(Extra::default(), small);
    w.host_sends(0, &udp_packet(A, B, 9, &data(1400)));
    w.run(50);
    assert_eq!(w.icmp(0), [(ROUTER_B, 3, 4, 1300)]);
    assert_eq!(w.count(1, Stage::Carry, DropReason::TooBig), 1);
    w.host_sends(0, &ip(A, B, 17, 0, false, &udp_bytes(A, B, 9, &data(1400))));
    w.run(50);
    assert_eq!(
        w.received(1).iter().map(Vec::len).collect::<Vec<_>>(),
        [1300, 148]
    );
    // Nobody is there: the host hears it from the router that knows.
    w.host_sends(0, &udp_packet(A, [10, 2, 0, 77], 9, &data(10)));
    w.run(5000);
    assert_eq!(w.icmp(0), [(ROUTER_B, 3, 1, 0)]);
}

#[test]
fn super_frames_are_cut_into_the_packets_they_stand_for() {
    let mut w = World::new(
        policy("[[policy]]\nprotocol = \"tcp\"\nmode = \"datagram\""),
        Extra::default(),
    );
    let gso = |gso, gso_size, offset| Meta {
        gso,
        gso_size,
        checksum: Checksum::Partial { start: 34, offset },
        ..Meta::default()
    };
    w.host_offers(
        0,
        &udp_packet(A, B, 443, &data(10_000)),
        gso(Gso::Udp, 1200, 6),
    );
    w.run(50);
    let mut joined = Vec::new();
    for p in w.received(1) {
        let v = ipv4::View::parse(&p).unwrap();
        let u = udp::View::parse(v.payload()).unwrap();
        u.verify_checksum(v.src(), v.dst()).unwrap();
        assert!(u.payload().len() == 1200 || u.payload().len() == 400);
        joined.extend_from_slice(u.payload());
    }
    assert_eq!(joined, data(10_000));

    let (from, to) = ((A, 40_000), (B, 80));
    let flags = tcp::Flags::ACK | tcp::Flags::PSH;
    let big = segment(from, to, 1000, flags, &data(20_000));
    w.host_offers(0, &big, gso(Gso::TcpV4, 1460, 16));
    w.run(50);
    let (mut joined, mut seq) = (Vec::new(), 1000);
    let pieces = w.received(1);
    for (i, p) in pieces.iter().enumerate() {
        let v = ipv4::View::parse(p).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        t.verify_checksum(v.src(), v.dst()).unwrap();
        assert_eq!(t.seq(), seq);
        assert_eq!(t.flags().contains(tcp::Flags::PSH), i + 1 == pieces.len());
        seq += t.payload().len() as u32;
        joined.extend_from_slice(t.payload());
    }
    assert_eq!(joined, data(20_000));
    assert_eq!(pieces.len(), 14);
    // Each of them is too big: said once.
    w.host_offers(
        0,
        &udp_packet(A, B, 443, &data(10_000)),
        gso(Gso::Udp, 2000, 6),
    );
    w.run(50);
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 4, 1500)]);
}

#[test]
fn a_connection_that_one_router_carries_whole_is_not_split_by_the_other() {
    let a = policy("[[policy]]\nprotocol = \"tcp\"\nport = 22\nmode = \"datagram\"");
    let mut w = World::new(a, Extra::default());
    let (from, to) = ((A, 40_000), (B, 22));
    let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    w.host_sends(0, &syn);
    w.run(50);
    assert_eq!(w.received(1), [behind(&syn, Ecn::NotEct)]);
    for (flags, payload) in [
        (tcp::Flags::SYN | tcp::Flags::ACK, &b""[..]),
        (tcp::Flags::ACK, b"SSH-2.0"),
        (tcp::Flags::FIN | tcp::Flags::ACK, b""),
    ] {
        let answer = segment(to, from, 5000, flags, payload);
        w.host_sends(1, &answer);
        w.run(50);
        assert_eq!(w.received(0), [behind(&answer, Ecn::NotEct)]);
    }
    assert_eq!(w.sides[0].router.flow_count(), 0);
    assert_eq!(w.sides[1].router.flow_count(), 0);
    w.nothing_dropped();
}

const PLAIN_DNS: &str = "[[policy]]\nprotocol = \"udp\"\nport = 53\nmode = \"plain\"";

#[test]
fn plain_mode_goes_past_the_link_where_both_routers_agree() {
    let mut w = World::new(policy(PLAIN_DNS), policy(PLAIN_DNS));
    let query = udp_packet(A, B, 53, &data(40));
    w.host_sends(0, &query);
    w.host_sends(0, &udp_packet(A, B, 54, &data(40)));
    w.run(50);
    assert_eq!(w.clear.len(), 1);
    let mut received = w.received(1);
    received.sort_by_key(|p| p[23]);
    assert_eq!(received[0], behind(&query, Ecn::NotEct));
    assert_eq!(received.len(), 2);
    assert_eq!(w.snapshot(0).counters["plain_packets"], 1);
    assert_eq!(w.snapshot(0).counters["fallback_packets"], 0);
    assert!(w.snapshot(0).alarms.is_empty());
    // Too large for the way in the clear.
    w.host_sends(0, &udp_packet(A, B, 53, &data(1473)));
    w.run(50);
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 4, 1500)]);
}

#[test]
fn who_claims_to_come_from_behind_a_peer_in_the_clear_is_refused() {
    let mut w = World::new(policy(PLAIN_DNS), Extra::default());
    w.host_sends(0, &udp_packet(A, B, 53, &data(40)));
    w.run(50);
    assert_eq!(w.clear.len(), 1);
    assert_eq!(w.received(1).len(), 0);
    assert_eq!(w.count(1, Stage::Carry, DropReason::PeerInTheClear), 1);
}

const FALLBACK: &str = "[[policy]]\nprotocol = \"tcp\"\nfallback = \"plain\"\n\
                        [[policy]]\nprotocol = \"udp\"\nport = 9\nfallback = \"plain\"";

#[test]
fn fallback_takes_new_flows_past_a_link_that_does_not_work_and_keeps_them_there() {
    let mut w = World::new(policy(FALLBACK), policy(FALLBACK));
    w.cut = true;
    // Something has to be sent before silence is noticed.
    w.host_sends(0, &udp_packet(A, B, 10, b"x"));
    w.host_sends(1, &udp_packet(B, A, 10, b"x"));
    w.run(8000);
    w.forget();
    let datagram = udp_packet(A, B, 9, &data(40));
    let (from, to) = ((A, 40_000), (B, 80));
    let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    w.host_sends(0, &datagram);
    w.host_sends(0, &syn);
    // No policy lets these: they wait for the link.
    w.host_sends(0, &udp_packet(A, B, 10, &data(40)));
    w.run(50);
    assert_eq!(
        w.received(1),
        [behind(&datagram, Ecn::NotEct), behind(&syn, Ecn::NotEct)]
    );
    let s = w.snapshot(0);
    assert_eq!(
        (s.counters["fallback_packets"], s.counters["flows"]),
        (2, 0)
    );
    assert!(
        s.alarms
            .iter()
            .any(|a| a == "link to other: fallback in use, packets leave in the clear"),
        "{:?}",
        s.alarms
    );
    let answer = segment(to, from, 5000, tcp::Flags::SYN | tcp::Flags::ACK, b"");
    w.host_sends(1, &answer);
    w.run(50);
    assert_eq!(w.received(0), [behind(&answer, Ecn::NotEct)]);

    // The link is back: what began in the clear stays there, what is new does not.
    w.cut = false;
    w.run(8000);
    assert_eq!(w.snapshot(0).links[0].state, LinkState::Up);
    w.forget();
    let ack = segment(from, to, 1001, tcp::Flags::ACK, b"GET /");
    w.host_sends(0, &ack);
    w.host_sends(0, &datagram);
    w.run(100);
    let clear: Vec<u8> = w.clear.iter().map(|p| p[9]).collect();
    assert_eq!(clear, [6]);
    assert_eq!(w.received(1).len(), 2);
    let (from, to) = ((A, 40_001), (B, 80));
    w.host_sends(0, &segment(from, to, 1000, tcp::Flags::SYN, b""));
    w.run(100);
    assert_eq!(
        (
            w.sides[0].router.flow_count(),
            w.sides[1].router.flow_count()
        ),
        (1, 1)
    );
    w.run(60_000);
    assert!(
        w.snapshot(0).alarms.is_empty(),
        "{:?}",
        w.snapshot(0).alarms
    );
}

#[test]
fn without_a_fallback_a_link_that_was_never_up_refuses() {
    let now = Instant::from_millis(1000);
    let mut w = World {
        now,
        sides: [
            side(now, 1, Extra::default()),
            side(now, 2, Extra::default()),
        ],
        cut: true,
        marks: false,
        clear: Vec::new(),
        classes: Vec::new(),
    };
    w.run(500);
    w.host_sends(0, &segment((A, 40_000), (B, 80), 1, tcp::Flags::SYN, b""));
    w.host_sends(0, &udp_packet(A, B, 9, b"x"));
    w.run(100);
    let told: Vec<_> = w.icmp(0).into_iter().map(|i| (i.0, i.1, i.2)).collect();
    assert_eq!(told, [(ROUTER_A, 3, 1), (ROUTER_A, 3, 1)]);
    assert_eq!(w.clear.len(), 0);
    assert_eq!(w.count(0, Stage::Carry, DropReason::NoSession), 2);
}

#[test]
fn three_syns_without_an_answer_are_asymmetric_and_take_the_fallback() {
    for fallback in [true, false] {
        let extra = if fallback {
            policy(FALLBACK)
        } else {
            Extra::default()
        };
        let mut w = World::new(extra, extra);
        let (from, to) = ((A, 40_000), (B, 80));
        let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
        // Host B's answers take another way: here nothing comes back.
        for wait in [1000, 2000, 1000] {
            assert_eq!(w.snapshot(0).counters["flows_asymmetric"], 0);
            w.host_sends(0, &syn);
            w.run(wait);
        }
        assert_eq!(w.snapshot(0).counters["flows_asymmetric"], 1);
        assert_eq!(w.clear.len(), usize::from(fallback));
        let own = w
            .received(1)
            .iter()
            .filter(|p| **p == behind(&syn, Ecn::NotEct))
            .count();
        assert_eq!(own, usize::from(fallback));
        assert_eq!(w.sides[0].router.flow_count(), 0);
        // Without a fallback the host hears that the far one is unreachable.
        let told: Vec<_> = w.icmp(0).into_iter().map(|i| (i.0, i.1, i.2)).collect();
        let expected: &[_] = if fallback { &[] } else { &[(ROUTER_A, 3, 1)] };
        assert_eq!(told, expected);
        // Repeated once more, it goes the way that was found, or is asked anew.
        w.forget();
        w.host_sends(0, &syn);
        w.run(100);
        assert_eq!(w.clear.len(), usize::from(fallback));
        assert_eq!(w.sides[0].router.flow_count(), usize::from(!fallback));
    }
}

#[test]
fn what_leaves_in_the_clear_stays_within_the_line_and_shares_it_with_the_link() {
    let mut w = World::new(Extra::default(), Extra::default());
    let far = [203, 0, 113, 9];
    let (mut clear, mut linked) = (0u64, 0u64);
    // 240 Mbit/s for a stranger in the clear, as much over the link, for a second.
    for ms in 0..1500 {
        for i in 0..20 {
            w.host_sends(0, &udp_packet(A, far, 7000, &data(1400 + i % 2)));
            w.host_sends(0, &udp_packet(A, B, 7000, &data(1300)));
        }
        if ms == 500 {
            w.forget();
        }
        w.run(1);
    }
    clear += w.clear.iter().map(|p| p.len() as u64 + 14).sum::<u64>();
    linked += w.received(1).len() as u64 * (1328 + 15 + 60 + 14);
    let used = (clear + linked) as f64 * 8.0 / 100e6;
    assert!(used > 0.97 && used < 1.0, "{used}");
    let share = clear as f64 / (clear + linked) as f64;
    assert!((share - 0.5).abs() < 0.02, "{share}");
    let full = w.count(0, Stage::Carry, DropReason::QueueFull);
    assert!(full > 20_000, "{full}");
    // Every packet that went in left, waits, or is counted.
    let counters = w.sides[0].router.counters();
    assert_eq!(
        counters.total(),
        counters.by_reason(DropReason::QueueFull) + counters.by_reason(DropReason::QueueDelay)
    );
}
