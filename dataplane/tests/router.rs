//! Two whole routers back to back on ports in memory and a virtual clock: what
//! an ordinary IP router owes its neighbours, the link's handshake, and that
//! rubbish on any port is counted and leaves nothing behind.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== wire ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/30                   10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::time::Duration;

use mef_dataplane::control::LinkState;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::{Buffer, HeapBuf, Instant, Meta, Packet};

use machine::{caps, mac, public_key, seed, HOST_MAC};

fn config_text(me: u8, peer_key: u8) -> String {
    let other = 3 - me;
    format!(
        r#"[router]
name = "r{me}"
private_key = "r.key"
memory = "64MiB"
engine = "aes-gcm"
open = "confirm"

[[port]]
name = "lan"
interface = "eth0"
addresses = ["10.{me}.0.1/24"]

[[port]]
name = "wan"
interface = "eth1"
addresses = ["192.0.2.{me}/30"]
listen = 4800
[port.line]
up = "100Mbit/s"
down = "100Mbit/s"

[[peer]]
name = "other"
public_key = "{}"
port = "wan"
endpoint = "192.0.2.{other}:4800"
prefixes = ["10.{other}.0.0/24"]
"#,
        public_key(peer_key)
    )
}

struct Side {
    me: u8,
    router: Router<MemPort>,
    lan: MemWire,
    wan: MemWire,
    /// Frames that the host has received.
    inbox: Vec<Vec<u8>>,
}

fn side(now: Instant, me: u8, peer_key: u8, boot: u64) -> Side {
    let text = config_text(me, peer_key);
    let ports = [caps(me, 0, 1500), caps(me, 1, 1500)];
    let start = seed(me, boot, boot * 1_000_000_000_000);
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
    cut: bool,
}

impl World {
    fn new() -> Self {
        Self::with_key_of_b(2)
    }
    fn with_key_of_b(key: u8) -> Self {
        let now = Instant::from_millis(1000);
        Self {
            now,
            sides: [side(now, 1, key, 11), side(now, 2, 1, 12)],
            cut: false,
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
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
                    // The host answers for its own address only.
                    let asked = [10, s.me, 0, 2];
                    if bytes.len() >= 42
                        && bytes[12..14] == [8, 6]
                        && bytes[20..22] == [0, 1]
                        && bytes[38..42] == asked
                    {
                        let mut r = bytes[..42].to_vec();
                        r[..6].copy_from_slice(&bytes[6..12]);
                        r[6..12].copy_from_slice(&HOST_MAC);
                        r[20..22].copy_from_slice(&[0, 2]);
                        r[32..42].copy_from_slice(&bytes[22..32]);
                        r[22..28].copy_from_slice(&HOST_MAC);
                        r[28..32].copy_from_slice(&asked);
                        inject(&s.lan, &r);
                    }
                    s.inbox.push(bytes);
                }
            }
            for (to, f) in frames.iter_mut().enumerate() {
                for p in f.drain(..) {
                    if !self.cut {
                        inject(&self.sides[1 - to].wan, p.buf.bytes());
                    }
                }
            }
            self.now += Duration::from_micros(500);
        }
    }

    fn is_up(&self, side: usize) -> bool {
        let s = self.sides[side].router.snapshot(self.now, Duration::ZERO);
        s.links.first().is_some_and(|l| l.state == LinkState::Up)
    }

    fn up(&mut self) {
        self.run(Duration::from_secs(2));
        assert!(self.is_up(0) && self.is_up(1));
        for s in &mut self.sides {
            s.inbox.clear();
        }
    }

    fn count(&self, side: usize, stage: Stage, reason: DropReason) -> u64 {
        self.sides[side].router.counters().get(stage, reason)
    }

    /// Host A sends; exactly `expected` more is dropped at A.
    fn a_drops(&mut self, packet: &[u8], stage: Stage, reason: DropReason) {
        let (all, this) = (
            self.sides[0].router.counters().total(),
            self.count(0, stage, reason),
        );
        self.host_sends(0, packet);
        self.run(Duration::from_millis(20));
        assert_eq!(
            self.count(0, stage, reason) - this,
            1,
            "{stage:?} {reason:?}: {:?}",
            self.sides[0].router.counters().named()
        );
        assert_eq!(self.sides[0].router.counters().total() - all, 1);
    }

    fn host_sends(&mut self, side: usize, packet: &[u8]) {
        let me = self.sides[side].me;
        let mut f = Vec::new();
        f.extend_from_slice(&mac(me, 0));
        f.extend_from_slice(&HOST_MAC);
        f.extend_from_slice(&[8, 0]);
        f.extend_from_slice(packet);
        inject(&self.sides[side].lan, &f);
    }

    /// ICMP messages the host has received: source, type, code.
    fn icmp(&mut self, side: usize) -> Vec<([u8; 4], u8, u8)> {
        self.sides[side]
            .inbox
            .drain(..)
            .filter(|f| f.len() >= 42 && f[12..14] == [8, 0] && f[23] == 1)
            .map(|f| ([f[26], f[27], f[28], f[29]], f[34], f[35]))
            .collect()
    }
}

fn inject(wire: &MemWire, frame: &[u8]) {
    let _ = wire.inject(Packet {
        buf: HeapBuf::from_slice(frame),
        meta: Meta::default(),
    });
}

fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut s = 0u32;
    for c in bytes.chunks(2) {
        s += u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0));
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    (!(s as u16)).to_be_bytes()
}

fn ip(src: [u8; 4], dst: [u8; 4], ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut p = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, ttl, protocol, 0, 0];
    p[2..4].copy_from_slice(&len.to_be_bytes());
    p.extend_from_slice(&src);
    p.extend_from_slice(&dst);
    let c = sum(&p);
    p[10..12].copy_from_slice(&c);
    p.extend_from_slice(payload);
    p
}

fn ping(src: [u8; 4], dst: [u8; 4], ttl: u8, size: usize) -> Vec<u8> {
    let mut m = vec![8, 0, 0, 0, 0, 7, 0, 1];
    m.resize(8 + size, 0x55);
    let c = sum(&m);
    m[2..4].copy_from_slice(&c);
    ip(src, dst, ttl, 1, &m)
}

fn syn(src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let mut t = vec![
        0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let mut pseudo = Vec::new();
    pseudo.extend_from_slice(&src);
    pseudo.extend_from_slice(&dst);
    pseudo.extend_from_slice(&[0, 6, 0, 20]);
    pseudo.extend_from_slice(&t);
    let c = sum(&pseudo);
    t[16..18].copy_from_slice(&c);
    ip(src, dst, 64, 6, &t)
}

const A: [u8; 4] = [10, 1, 0, 2];
const B: [u8; 4] = [10, 2, 0, 2];
const ROUTER_A: [u8; 4] = [10, 1, 0, 1];

#[test]
fn pings_cross_and_both_routers_answer() {
    let mut w = World::new();
    w.up();
    w.host_sends(0, &ping(A, B, 64, 56));
    w.host_sends(0, &ping(A, ROUTER_A, 64, 56));
    w.host_sends(0, &ping(A, [10, 2, 0, 1], 64, 56));
    w.run(Duration::from_millis(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
    let mut answers = w.icmp(0);
    answers.sort_unstable();
    assert_eq!(answers, [(ROUTER_A, 0, 0), ([10, 2, 0, 1], 0, 0)]);
    // As large as a host's packets come: in two pieces over the link.
    w.host_sends(0, &ping(A, B, 64, 1472));
    w.run(Duration::from_millis(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
    assert_eq!(w.sides[0].router.counters().total(), 0);
    assert_eq!(w.sides[1].router.counters().total(), 0);
}

#[test]
fn what_cannot_go_further_is_counted_once_and_explained() {
    let mut w = World::new();
    w.up();
    w.a_drops(&ping(A, B, 1, 8), Stage::Route, DropReason::TtlExpired);
    assert_eq!(w.icmp(0), [(ROUTER_A, 11, 0)]);
    w.a_drops(
        &ping(A, [203, 0, 113, 9], 64, 8),
        Stage::Route,
        DropReason::NoRoute,
    );
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 0)]);
    // The second router of a traceroute.
    w.host_sends(0, &ping(A, B, 2, 8));
    w.run(Duration::from_millis(50));
    assert_eq!(w.icmp(0), [([10, 2, 0, 1], 11, 0)]);
    assert_eq!(w.count(1, Stage::Route, DropReason::TtlExpired), 1);
    for martian in [
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [0, 0, 0, 0],
        [255, 255, 255, 255],
    ] {
        w.a_drops(
            &ping(martian, B, 64, 8),
            Stage::Ingress,
            DropReason::MartianSource,
        );
    }
    w.a_drops(
        &ping(ROUTER_A, B, 64, 8),
        Stage::Ingress,
        DropReason::OwnAddressSpoofed,
    );
    w.a_drops(
        &ping(A, [10, 1, 0, 255], 64, 8),
        Stage::Ingress,
        DropReason::MartianDestination,
    );
    assert_eq!(w.icmp(0), []);
    let mut broken = ping(A, B, 64, 8);
    broken[10] ^= 1;
    w.a_drops(&broken, Stage::Ingress, DropReason::BadChecksum);
    // Nobody is there.
    w.host_sends(0, &ping(A, [10, 2, 0, 77], 64, 8));
    w.run(Duration::from_secs(5));
    assert_eq!(w.icmp(0), [([10, 2, 0, 1], 3, 1)]);
    // Not of the prefixes that B grants A.
    w.host_sends(0, &ping([10, 77, 0, 2], B, 64, 8));
    w.run(Duration::from_millis(50));
    assert_eq!(w.count(1, Stage::Open, DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_peer_with_another_key_gets_no_session() {
    let mut w = World::with_key_of_b(7);
    w.run(Duration::from_secs(5));
    assert!(!w.is_up(0) && !w.is_up(1));
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(Duration::from_millis(50));
    assert_eq!(w.count(0, Stage::Carry, DropReason::NoSession), 1);
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 1)]);
}

#[test]
fn a_restarted_peer_ends_the_flows_and_an_outage_does_not_end_the_link() {
    let mut w = World::new();
    w.up();
    w.host_sends(0, &syn(A, B));
    w.run(Duration::from_millis(100));
    assert_eq!(
        (
            w.sides[0].router.flow_count(),
            w.sides[1].router.flow_count()
        ),
        (1, 1)
    );
    w.sides[0].inbox.clear();
    w.sides[1] = side(w.now, 2, 1, 13);
    w.run(Duration::from_secs(12));
    assert!(w.is_up(0) && w.is_up(1));
    assert_eq!(
        (
            w.sides[0].router.flow_count(),
            w.sides[1].router.flow_count()
        ),
        (0, 0)
    );
    let resets = w.sides[0]
        .inbox
        .iter()
        .filter(|f| f[12..14] == [8, 0] && f[23] == 6 && f[47] & 4 != 0)
        .count();
    assert_eq!(resets, 1);
    w.cut = true;
    w.run(Duration::from_secs(8));
    w.cut = false;
    w.run(Duration::from_secs(6));
    w.sides[1].inbox.clear();
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(Duration::from_millis(100));
    assert_eq!(w.icmp(1), [(A, 8, 0)]);
}

#[test]
fn rubbish_is_counted_and_leaves_nothing() {
    let mut w = World::new();
    w.up();
    let mut x = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut real = vec![
        ping(A, B, 64, 300),
        syn(A, B),
        ip(A, [192, 0, 2, 1], 64, 17, &[0; 60]),
    ];
    for p in &mut real {
        let mut f = mac(1, 0).to_vec();
        f.extend_from_slice(&HOST_MAC);
        f.extend_from_slice(&[8, 0]);
        f.append(p);
        *p = f;
    }
    let mut sealed = Vec::new();
    w.host_sends(1, &ping(B, A, 64, 600));
    w.sides[1].router.poll(w.now);
    w.sides[1].wan.take_sent(&mut sealed);
    real.extend(sealed.iter().map(|p| p.buf.bytes().to_vec()));
    for i in 0..20_000u64 {
        let mut f = real[(random() % real.len() as u64) as usize].clone();
        match random() % 3 {
            0 => f.truncate((random() % f.len() as u64) as usize),
            1 => {
                let at = (random() % f.len() as u64) as usize;
                f[at] ^= 1 << (random() % 8);
            }
            _ => {
                f = (0..random() % 200).map(|_| random() as u8).collect();
                if f.len() > 14 {
                    f[..6].copy_from_slice(&mac(1, (i % 2) as u8));
                }
            }
        }
        let s = &w.sides[0];
        inject(if i % 2 == 0 { &s.lan } else { &s.wan }, &f);
        if i % 50 == 0 {
            w.run(Duration::from_millis(1));
        }
    }
    w.run(Duration::from_secs(1));
    assert!(w.sides[0].router.counters().total() > 10_000);
    assert!(w.is_up(0) && w.is_up(1));
    // A SYN whose damage passes is a SYN; nothing else makes state.
    assert!(w.sides[0].router.flow_count() <= 1);
    w.sides[1].inbox.clear();
    w.host_sends(0, &ping(A, B, 64, 8));
    w.run(Duration::from_millis(100));
    assert!(w.icmp(1).contains(&(A, 8, 0)));
}
