//! The two routers, their hosts, and what these send.

use std::time::Duration;

use mef_dataplane::control::{LinkState, Snapshot};
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::{ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, HeapBuf, Instant, Meta, Packet};

use super::machine::{self, caps, mac, public_key, seed, HOST_MAC};

/// What a test adds to the configuration of a router.
#[derive(Clone, Copy, Default)]
pub struct Extra {
    pub line: &'static str,
    pub end: &'static str,
    pub lan_mtu: Option<u16>,
}

pub fn policy(text: &'static str) -> Extra {
    Extra {
        end: text,
        ..Extra::default()
    }
}

pub fn config_text(me: u8, extra: Extra) -> String {
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

pub struct Side {
    pub me: u8,
    pub router: Router<MemPort>,
    pub lan: MemWire,
    pub wan: MemWire,
    /// IP packets that the host has received.
    pub inbox: Vec<Vec<u8>>,
}

pub fn side(now: Instant, me: u8, extra: Extra) -> Side {
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

pub struct World {
    pub now: Instant,
    pub sides: [Side; 2],
    /// Link packets do not pass; packets in the clear do.
    pub cut: bool,
    /// Every link packet that may be marked is.
    pub marks: bool,
    /// Frames on the WAN in the clear, and traffic classes of link packets, that passed.
    pub clear: Vec<Vec<u8>>,
    pub classes: Vec<u8>,
}

pub fn is_link(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 4800u16.to_be_bytes()
}

impl World {
    pub fn new(a: Extra, b: Extra) -> Self {
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

    pub fn forget(&mut self) {
        for s in &mut self.sides {
            s.inbox.clear();
        }
        self.clear.clear();
        self.classes.clear();
    }

    pub fn run(&mut self, ms: u64) {
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

    pub fn host_sends(&mut self, side: usize, packet: &[u8]) {
        self.host_offers(side, packet, Meta::default());
    }

    pub fn host_offers(&mut self, side: usize, packet: &[u8], meta: Meta) {
        let s = &self.sides[side];
        let mut f = mac(s.me, 0).to_vec();
        f.extend_from_slice(&HOST_MAC);
        f.extend_from_slice(&[8, 0]);
        f.extend_from_slice(packet);
        inject(&s.lan, &f, meta);
    }

    pub fn count(&self, side: usize, stage: Stage, reason: DropReason) -> u64 {
        self.sides[side].router.counters().get(stage, reason)
    }

    pub fn snapshot(&self, side: usize) -> Snapshot {
        self.sides[side].router.snapshot(self.now, Duration::ZERO)
    }

    /// What the host has received since this was last asked.
    pub fn received(&mut self, side: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sides[side].inbox)
    }

    /// ICMP errors that the host has received: source, type, code, the two bytes of an MTU.
    pub fn icmp(&mut self, side: usize) -> Vec<([u8; 4], u8, u8, u16)> {
        let packets = self.received(side).into_iter().filter(|p| p[9] == 1);
        packets
            .map(|p| {
                let source = [p[12], p[13], p[14], p[15]];
                let mtu = u16::from_be_bytes([p[26], p[27]]);
                (source, p[20], p[21], mtu)
            })
            .collect()
    }

    pub fn nothing_dropped(&self) {
        for s in &self.sides {
            assert_eq!(s.router.counters().total(), 0, "{:?}", s.router.counters());
        }
    }
}

/// As the host's kernel sees it.
pub fn completed(packet: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut p = packet.to_vec();
    if let Checksum::Partial { start, offset } = checksum {
        mef_packet::wire::checksum::complete_partial(&mut p, start - 14, offset).unwrap();
    }
    p
}

pub fn inject(wire: &MemWire, frame: &[u8], meta: Meta) {
    let buf = HeapBuf::from_slice(frame);
    wire.inject(Packet { buf, meta }).unwrap();
}

pub const A: [u8; 4] = [10, 1, 0, 2];
pub const B: [u8; 4] = [10, 2, 0, 2];
pub const ROUTER_A: [u8; 4] = [10, 1, 0, 1];
pub const ROUTER_B: [u8; 4] = [10, 2, 0, 1];

pub fn ip(
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
pub fn behind(packet: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut p = packet.to_vec();
    for _ in 0..2 {
        ipv4::decrement_ttl(&mut p).unwrap();
    }
    ecn::set(&mut p, ecn).unwrap();
    p
}
