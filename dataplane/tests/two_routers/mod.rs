//! Two whole routers, a path between them and TCP hosts behind them, on a virtual clock.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== path ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/30                   10.2.0.0/24
//! ```
//!
//! The hosts are the endpoints that the router itself uses, in the hosts' place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

#[path = "../machine/mod.rs"]
mod machine;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mef_dataplane::control::{LinkState, Snapshot};
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::{Endpoint, HostTcp, HostTcpConfig, Role};
use mef_dataplane::router::Router;
use mef_io::{Caps, MemPort, MemWire};
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Instant, Meta, Packet};

use machine::{caps, mac, public_key, seed, HOST_MAC};

pub const A: [u8; 4] = [10, 1, 0, 2];
pub const B: [u8; 4] = [10, 2, 0, 2];
const STEP: Duration = Duration::from_micros(500);

/// What a test may set of both routers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// More keys of `[router]`.
    pub router: String,
    pub rate: &'static str,
    /// Whether router B knows where A is.
    pub endpoint_of_a: bool,
    /// One way.
    pub delay: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            router: "memory = \"64MiB\"".into(),
            rate: "100Mbit/s",
            endpoint_of_a: true,
            delay: Duration::from_millis(20),
        }
    }
}

fn config_text(me: u8, s: &Settings) -> String {
    let other = 3 - me;
    let endpoint = if me == 1 || s.endpoint_of_a {
        format!("endpoint = \"192.0.2.{other}:4800\"")
    } else {
        String::new()
    };
    format!(
        r#"[router]
name = "r{me}"
private_key = "r.key"
engine = "aes-gcm"
{}

[[port]]
name = "lan"
interface = "eth0"
addresses = ["10.{me}.0.1/24"]

[[port]]
name = "wan"
interface = "eth1"
addresses = ["192.0.2.{me}/24"]
listen = 4800
[port.line]
up = "{rate}"
down = "{rate}"

[[peer]]
name = "other"
public_key = "{key}"
port = "wan"
{endpoint}
prefixes = ["10.{other}.0.0/24"]
"#,
        s.router,
        rate = s.rate,
        key = public_key(other),
    )
}

/// One router and what is plugged into it.
pub struct Side {
    pub me: u8,
    pub router: Router<MemPort>,
    lan: MemWire,
    wan: MemWire,
    /// TCP endpoints in the place of hosts, by their own and the far address.
    pub hosts: HashMap<(SocketAddr, SocketAddr), Endpoint>,
    /// IP packets that the hosts received and that are no segment of theirs.
    pub inbox: Vec<Vec<u8>>,
}

/// Whether a frame is lost, by the side that sent it.
pub type Lose = Box<dyn FnMut(usize, &[u8]) -> bool>;

pub struct World {
    pub now: Instant,
    pub settings: Settings,
    pub sides: [Side; 2],
    /// Nothing passes.
    pub cut: bool,
    /// What is lost, by sender and frame.
    pub lose: Lose,
    /// Frames of A appear to come from here, and this is where A is reached.
    pub a_is_at: Option<(Ipv4Addr, u16)>,
    pub frames: [u64; 2],
    pub bytes: [u64; 2],
    flying: VecDeque<(Instant, usize, Packet<HeapBuf>)>,
    starts: u64,
    seed: u64,
}

fn side(now: Instant, me: u8, s: &Settings, boot: u64, base: u64) -> Side {
    let text = config_text(me, s);
    let ports = [0, 1].map(|port| Caps {
        tcp_gso: true,
        tx_checksum: true,
        ..caps(me, port, 1500)
    });
    let start = seed(me, boot, base);
    let (router, [lan, wan]) = machine::router(now, me, &text, ports, 1 << 16, start);
    Side {
        me,
        router,
        lan,
        wan,
        hosts: HashMap::new(),
        inbox: Vec::new(),
    }
}

impl World {
    pub fn new(settings: Settings) -> Self {
        let now = Instant::from_millis(1000);
        Self {
            now,
            sides: [
                side(now, 1, &settings, 11, now.as_nanos()),
                side(now, 2, &settings, 12, now.as_nanos()),
            ],
            settings,
            cut: false,
            lose: Box::new(|_, _| false),
            a_is_at: None,
            frames: [0; 2],
            bytes: [0; 2],
            flying: VecDeque::new(),
            starts: 12,
            seed: 1,
        }
    }

    /// A world whose link is up, with the path's size found.
    pub fn up(settings: Settings) -> Self {
        let mut w = Self::new(settings);
        w.run(Duration::from_secs(2));
        assert!(w.is_up(0) && w.is_up(1));
        for s in &mut w.sides {
            s.inbox.clear();
        }
        w
    }

    /// Kills the router of `side` and starts another, whose clock is `behind` where it should be.
    pub fn restart(&mut self, side_index: usize, behind: Duration) {
        self.starts += 1;
        let base = self.now.as_nanos().saturating_sub(behind.as_nanos() as u64);
        self.restart_with_base(side_index, base);
    }

    pub fn restart_with_base(&mut self, side_index: usize, base: u64) {
        let me = self.sides[side_index].me;
        let fresh = side(self.now, me, &self.settings, self.starts, base);
        let old = std::mem::replace(&mut self.sides[side_index], fresh);
        self.sides[side_index].hosts = old.hosts;
    }

    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step();
        }
    }

    /// Runs until `done`, and says how long that took.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !done(self) {
            assert!(self.now.since(start) < limit, "not within {limit:?}");
            self.step();
        }
        self.now.since(start)
    }

    pub fn step(&mut self) {
        for i in 0..2 {
            self.poll_side(i);
        }
        while self.flying.front().is_some_and(|f| f.0 <= self.now) {
            let (_, to, packet) = self.flying.pop_front().unwrap();
            let _ = self.sides[to].wan.inject(packet);
        }
        self.now += STEP;
    }

    fn poll_side(&mut self, i: usize) {
        let now = self.now;
        let s = &mut self.sides[i];
        let mut out = Vec::new();
        for ((own, far), host) in &mut s.hosts {
            let mut packet = Vec::new();
            while let Some(meta) = host.poll_transmit(now, &mut packet) {
                let _ = (own, far);
                out.push((packet.clone(), meta.gso_size));
            }
        }
        for (packet, gso_size) in out {
            let meta = Meta {
                gso: if gso_size > 0 { Gso::TcpV4 } else { Gso::None },
                gso_size,
                checksum: Checksum::Partial {
                    start: 34,
                    offset: 16,
                },
                ..Meta::default()
            };
            inject(&s.lan, &ethernet(mac(s.me, 0), &packet), meta);
        }
        s.router.poll(now);
        let mut frames = Vec::new();
        s.lan.take_sent(&mut frames);
        for p in frames.drain(..) {
            Self::host_receives(now, s, p.buf.bytes());
        }
        s.wan.take_sent(&mut frames);
        for p in frames {
            let mut bytes = p.buf.bytes().to_vec();
            // Both ends answer for the other's address: there is one neighbour only.
            if bytes.get(12..14) == Some(&[8, 6]) {
                if let Some(r) = arp_answer(&bytes) {
                    let _ = s.wan.inject(Packet {
                        buf: HeapBuf::from_slice(&r),
                        meta: Meta::default(),
                    });
                }
                continue;
            }
            self.frames[i] += 1;
            self.bytes[i] += bytes.len() as u64;
            if self.cut || (self.lose)(i, &bytes) {
                continue;
            }
            if let Some((address, port)) = self.a_is_at {
                let own = [192, 0, 2, 1];
                if i == 0 {
                    bytes[26..30].copy_from_slice(&address.octets());
                    bytes[34..36].copy_from_slice(&port.to_be_bytes());
                } else if bytes[30..34] == address.octets() && bytes[36..38] == port.to_be_bytes() {
                    bytes[30..34].copy_from_slice(&own);
                    bytes[36..38].copy_from_slice(&4800u16.to_be_bytes());
                } else {
                    // The address that A had is nobody's now.
                    continue;
                }
                bytes[24..26].fill(0);
                let c = sum(&bytes[14..34]);
                bytes[24..26].copy_from_slice(&c);
            }
            bytes[..6].copy_from_slice(&mac(2 - i as u8, 1));
            let packet = Packet {
                buf: HeapBuf::from_slice(&bytes),
                meta: Meta::default(),
            };
            self.flying
                .push_back((now + self.settings.delay, 1 - i, packet));
        }
    }

    fn host_receives(now: Instant, s: &mut Side, frame: &[u8]) {
        if frame.get(12..14) == Some(&[8, 6]) {
            let asked = [10, s.me, 0];
            if frame.len() >= 42 && frame[38..41] == asked && frame[41] != 1 {
                if let Some(r) = arp_answer(frame) {
                    inject(&s.lan, &r, Meta::default());
                }
            }
            return;
        }
        let packet = &frame[14..];
        if packet[9] == 6 {
            let end = |ip: usize, port: usize| {
                let a: [u8; 4] = packet[ip..ip + 4].try_into().unwrap();
                SocketAddr::from((a, u16::from_be_bytes([packet[port], packet[port + 1]])))
            };
            let (far, own) = (end(12, 20), end(16, 22));
            if let Some(host) = s.hosts.get_mut(&(own, far)) {
                let _ = host.handle_segment(now, packet);
                return;
            }
        }
        s.inbox.push(packet.to_vec());
    }

    pub fn snapshot(&self, side: usize) -> Snapshot {
        self.sides[side].router.snapshot(self.now, Duration::ZERO)
    }
    pub fn is_up(&self, side: usize) -> bool {
        let s = self.snapshot(side);
        s.links.first().is_some_and(|l| l.state == LinkState::Up)
    }
    pub fn counter(&self, side: usize, name: &str) -> u64 {
        *self
            .snapshot(side)
            .counters
            .get(name)
            .unwrap_or_else(|| panic!("{name}"))
    }
    pub fn count(&self, side: usize, stage: Stage, reason: DropReason) -> u64 {
        self.sides[side].router.counters().get(stage, reason)
    }

    /// The host of `side` sends an IP packet whose checksums are right.
    pub fn host_sends(&mut self, side: usize, packet: &[u8]) {
        let s = &self.sides[side];
        inject(&s.lan, &ethernet(mac(s.me, 0), packet), Meta::default());
    }

    /// A frame comes to the WAN port of `side` as it is.
    pub fn wan_receives(&mut self, side: usize, ip_packet: &[u8]) {
        let s = &self.sides[side];
        inject(&s.wan, &ethernet(mac(s.me, 1), ip_packet), Meta::default());
    }

    /// Opens a connection from `port` of host A to `far_port` of host B; gives both ends' keys.
    /// The server accepts at once.
    pub fn connect(&mut self, port: u16, far_port: u16) -> Flow {
        self.connect_from(A, port, far_port)
    }

    pub fn connect_from(&mut self, source: [u8; 4], port: u16, far_port: u16) -> Flow {
        let client = SocketAddr::from((source, port));
        let server = SocketAddr::from((B, far_port));
        self.seed += 1;
        let config = HostTcpConfig {
            isn_seed: self.seed,
            ..HostTcpConfig::default()
        };
        let role = |local, remote, active| {
            if active {
                Role::Active { local, remote }
            } else {
                Role::Passive { local, remote }
            }
        };
        let a = Endpoint::new(self.now, role(client, server, true), &config).unwrap();
        let b = Endpoint::new(self.now, role(server, client, false), &config).unwrap();
        self.sides[0].hosts.insert((client, server), a);
        self.sides[1].hosts.insert((server, client), b);
        Flow { client, server }
    }

    pub fn client(&mut self, flow: Flow) -> &mut Endpoint {
        self.sides[0]
            .hosts
            .get_mut(&(flow.client, flow.server))
            .unwrap()
    }
    pub fn server(&mut self, flow: Flow) -> &mut Endpoint {
        self.sides[1]
            .hosts
            .get_mut(&(flow.server, flow.client))
            .unwrap()
    }

    /// TCP packets with RST that came for nobody known.
    pub fn stray_resets(&mut self, side: usize) -> usize {
        let inbox = &mut self.sides[side].inbox;
        let before = inbox.len();
        inbox.retain(|p| !(p[9] == 6 && p[33] & 4 != 0));
        before - inbox.len()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

fn arp_answer(frame: &[u8]) -> Option<Vec<u8>> {
    if frame.len() < 42 || frame[20..22] != [0, 1] {
        return None;
    }
    // Announcements ask for their own address.
    if frame[28..32] == frame[38..42] {
        return None;
    }
    let mut r = frame[..42].to_vec();
    r[..6].copy_from_slice(&frame[6..12]);
    r[6..12].copy_from_slice(&HOST_MAC);
    r[20..22].copy_from_slice(&[0, 2]);
    r[32..42].copy_from_slice(&frame[22..32]);
    r[22..28].copy_from_slice(&HOST_MAC);
    r[28..32].copy_from_slice(&frame[38..42]);
    Some(r)
}

fn ethernet(dst: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut f = dst.to_vec();
    f.extend_from_slice(&HOST_MAC);
    f.extend_from_slice(&[8, 0]);
    f.extend_from_slice(packet);
    f
}

fn inject(wire: &MemWire, frame: &[u8], meta: Meta) {
    let _ = wire.inject(Packet {
        buf: HeapBuf::from_slice(frame),
        meta,
    });
}

pub fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut s = 0u32;
    for c in bytes.chunks(2) {
        s += u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0));
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    (!(s as u16)).to_be_bytes()
}

pub fn ip(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment(src, dst, protocol, 1, 0x4000, payload)
}

/// An IPv4 packet whose fragmentation field is `field`.
pub fn fragment(
    src: [u8; 4],
    dst: [u8; 4],
    protocol: u8,
    id: u16,
    field: u16,
    payload: &[u8],
) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    p[2..4].copy_from_slice(&len.to_be_bytes());
    p[4..6].copy_from_slice(&id.to_be_bytes());
    p[6..8].copy_from_slice(&field.to_be_bytes());
    p.extend_from_slice(&src);
    p.extend_from_slice(&dst);
    let c = sum(&p);
    p[10..12].copy_from_slice(&c);
    p.extend_from_slice(payload);
    p
}

pub fn ping(src: [u8; 4], dst: [u8; 4], sequence: u16) -> Vec<u8> {
    let mut m = vec![8, 0, 0, 0, 0, 7];
    m.extend_from_slice(&sequence.to_be_bytes());
    m.resize(64, 0x55);
    let c = sum(&m);
    m[2..4].copy_from_slice(&c);
    ip(src, dst, 1, &m)
}

/// A TCP segment, header first, with its checksum.
#[derive(Clone, Debug)]
pub struct Segment {
    pub src: ([u8; 4], u16),
    pub dst: ([u8; 4], u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

impl Segment {
    pub fn new(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8) -> Self {
        Self {
            src,
            dst,
            seq: 1000,
            ack: 0,
            flags,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The segment without its IP header.
    pub fn tcp(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        while options.len() % 4 != 0 {
            options.push(1);
        }
        let mut t = Vec::new();
        t.extend_from_slice(&self.src.1.to_be_bytes());
        t.extend_from_slice(&self.dst.1.to_be_bytes());
        t.extend_from_slice(&self.seq.to_be_bytes());
        t.extend_from_slice(&self.ack.to_be_bytes());
        t.push((((20 + options.len()) / 4) << 4) as u8);
        t.push(self.flags);
        t.extend_from_slice(&[0xff, 0xff, 0, 0, 0, 0]);
        t.extend_from_slice(&options);
        t.extend_from_slice(&self.payload);
        let mut pseudo = Vec::new();
        pseudo.extend_from_slice(&self.src.0);
        pseudo.extend_from_slice(&self.dst.0);
        pseudo.extend_from_slice(&[0, 6]);
        pseudo.extend_from_slice(&(t.len() as u16).to_be_bytes());
        pseudo.extend_from_slice(&t);
        let c = sum(&pseudo);
        t[16..18].copy_from_slice(&c);
        t
    }

    pub fn packet(&self) -> Vec<u8> {
        ip(self.src.0, self.dst.0, 6, &self.tcp())
    }
}
