//! Two endpoints on a wire of virtual time. The wire does what the port and
//! the kernel do: it checks the checksum field it is given, cuts
//! super-segments, delays, and loses.

mod any;
mod corners;
mod ends;
mod handshake;
mod hostile;
mod loss;
mod pair;
mod pardon;
mod played;
mod poor_access;
mod transfer;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mef_packet::Instant;

use super::smoltcp_host::segment::{parse_tcp, Header, SynOptions, FIN, PSH};
use super::{wire, HostTcp, HostTcpConfig, Role, SegmentMeta};
pub use any::{AnyHost, Kind};

pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 40_000);
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 443);
pub const CLIENT6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
    40_000,
);
pub const SERVER6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2)),
    443,
);
pub const DELAY: Duration = Duration::from_micros(200);

/// The byte at position `i` of the stream with this seed.
pub fn stream_byte(seed: u64, i: u64) -> u8 {
    let x = (i ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 56) as u8
}

pub fn stream(seed: u64, from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64)
        .map(|i| stream_byte(seed, i))
        .collect()
}

pub fn header(from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, ack: u32) -> Header {
    Header {
        src: from,
        dst: to,
        seq,
        ack,
        flags,
        window: 60_000,
        syn: SynOptions::default(),
    }
}

/// A segment with payload, as a host would send it.
pub fn with_payload(h: Header, payload: &[u8]) -> Vec<u8> {
    let mut p = h.to_packet();
    p.extend_from_slice(payload);
    let len = (p.len() as u16).to_be_bytes();
    p[2..4].copy_from_slice(&len);
    p
}

/// Cuts a packet as segmentation offload does.
pub fn cut(packet: &[u8], meta: SegmentMeta) -> Vec<Vec<u8>> {
    let s = wire::parse_tcp(packet).unwrap();
    if meta.gso_size == 0 {
        return vec![packet.to_vec()];
    }
    let size = usize::from(meta.gso_size);
    let ip = wire::ip_header_len(s.dst.ip());
    let (headers, payload) = packet.split_at(packet.len() - s.payload.len());
    let parts: Vec<&[u8]> = payload.chunks(size).collect();
    let last = parts.len() - 1;
    parts
        .iter()
        .enumerate()
        .map(|(i, part)| {
            let mut p = headers.to_vec();
            p.extend_from_slice(part);
            if ip == 20 {
                let total = (p.len() as u16).to_be_bytes();
                p[2..4].copy_from_slice(&total);
            } else {
                let length = ((p.len() - 40) as u16).to_be_bytes();
                p[4..6].copy_from_slice(&length);
            }
            let seq = s.seq.wrapping_add((i * size) as u32).to_be_bytes();
            p[ip + 4..ip + 8].copy_from_slice(&seq);
            if i != last {
                p[ip + 13] &= !(FIN | PSH);
            }
            p
        })
        .collect()
}

/// One side: its endpoint, what it still has to send and what it has got.
pub struct Side {
    pub tcp: AnyHost,
    pub seed: u64,
    /// Bytes to send in all, and how many have been written.
    pub to_send: u64,
    pub written: u64,
    /// FIN when all is written.
    pub then_finish: bool,
    pub received: u64,
    /// Bytes read per step; 0 stops reading.
    pub read_limit: usize,
    /// Largest payload emitted and the gso_size it came with.
    pub largest: (usize, u16),
    finished: bool,
}

impl Side {
    fn new(tcp: AnyHost, seed: u64) -> Self {
        Self {
            tcp,
            seed,
            to_send: 0,
            written: 0,
            then_finish: false,
            received: 0,
            read_limit: usize::MAX,
            largest: (0, 0),
            finished: false,
        }
    }

    /// Reads and checks up to `limit` bytes of the stream with seed `peer`.
    pub fn read(&mut self, peer: u64, limit: usize) -> usize {
        let mut left = limit;
        while left > 0 {
            let at = self.received;
            let n = self.tcp.read(|bytes| {
                let n = bytes.len().min(left);
                let expected = stream(peer, at, n);
                assert!(bytes[..n] == expected[..], "bytes from {at} on differ");
                n
            });
            if n == 0 {
                break;
            }
            self.received += n as u64;
            left -= n;
        }
        limit - left
    }

    fn write(&mut self) {
        let n = (self.to_send - self.written).min(self.tcp.writable() as u64) as usize;
        if n > 0 {
            let data = stream(self.seed, self.written, n);
            assert_eq!(self.tcp.write(&data), n);
            self.written += n as u64;
        }
        if self.then_finish && self.written == self.to_send && !self.finished {
            self.tcp.finish();
            self.finished = true;
        }
    }
}

/// What the wire does beside losing.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// One way.
    pub delay: Duration,
    /// Each packet is late by up to this.
    pub jitter: Duration,
    /// Packets that come twice, per thousand.
    pub duplicate: u64,
    /// Bits per second, and bytes that may wait for their turn; without it, no line is full.
    pub line: Option<(u64, u64)>,
}

/// The wire between the endpoint that opens (0) and the one that answers (1).
pub struct Net {
    pub now: Instant,
    pub sides: [Side; 2],
    ends: [SocketAddr; 2],
    /// By arrival; the number tells packets of one time apart.
    wire: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    pub path: Path,
    /// When the line of each direction is free again.
    free_at: [Instant; 2],
    /// Packets lost per thousand.
    pub loss: u64,
    /// Deliver super-segments whole, as between virtual interfaces.
    pub whole: bool,
    /// While set, nothing is delivered.
    pub cut_off: bool,
    random: u64,
    pub sent_packets: u64,
    /// Packets that found the line's queue full.
    pub overflowed: u64,
}

pub fn config(seed: u64) -> HostTcpConfig {
    HostTcpConfig {
        isn_seed: seed,
        rx_buffer: 256 << 10,
        tx_buffer: 256 << 10,
        ..Default::default()
    }
}

impl Net {
    pub fn new() -> Self {
        Self::with(config(1), config(2))
    }

    pub fn with(opener: HostTcpConfig, answerer: HostTcpConfig) -> Self {
        Self::between([Kind::Own, Kind::Own], [CLIENT, SERVER], [opener, answerer])
    }

    pub fn between(kinds: [Kind; 2], ends: [SocketAddr; 2], configs: [HostTcpConfig; 2]) -> Self {
        let now = Instant::from_millis(5_000);
        let [client, server] = ends;
        let opens = Role::Active {
            local: client,
            remote: server,
        };
        let answers = Role::Passive {
            local: server,
            remote: client,
        };
        let a = kinds[0].endpoint(now, opens, &configs[0]);
        let b = kinds[1].endpoint(now, answers, &configs[1]);
        Self {
            now,
            sides: [Side::new(a, 11), Side::new(b, 22)],
            ends,
            wire: BTreeMap::new(),
            path: Path {
                delay: DELAY,
                jitter: Duration::ZERO,
                duplicate: 0,
                line: None,
            },
            free_at: [Instant::ZERO; 2],
            loss: 0,
            whole: false,
            cut_off: false,
            random: 0x1234_5678_9abc_def1,
            sent_packets: 0,
            overflowed: 0,
        }
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % below.max(1)
    }

    pub fn seed(&mut self, seed: u64) {
        self.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    /// Puts a packet on the wire.
    fn carry(&mut self, from: usize, p: Vec<u8>) {
        let mut leaves = self.now;
        if let Some((rate, queue)) = self.path.line {
            let start = self.free_at[from].max(self.now);
            let waiting = start.since(self.now).as_nanos() as u64 * rate / 8 / 1_000_000_000;
            if waiting > queue {
                self.overflowed += 1;
                return;
            }
            leaves = start + Duration::from_nanos(p.len() as u64 * 8 * 1_000_000_000 / rate);
            self.free_at[from] = leaves;
        }
        if self.chance(1000) < self.loss || self.cut_off {
            return;
        }
        let copies = 1 + u64::from(self.chance(1000) < self.path.duplicate);
        for _ in 0..copies {
            let late = self.chance(1 + self.path.jitter.as_nanos() as u64);
            let at = leaves + self.path.delay + Duration::from_nanos(late);
            self.sent_packets += 1;
            self.wire
                .insert((at, self.sent_packets), (1 - from, p.clone()));
        }
    }

    /// Sends what the endpoints have to send.
    fn transmit(&mut self) {
        for from in 0..2 {
            let mut out = Vec::new();
            let mut burst = 0;
            while let Some(meta) = self.sides[from].tcp.poll_transmit(self.now, &mut out) {
                burst += 1;
                assert!(burst < 10_000, "an endpoint that never stops sending");
                self.check(&out, meta, from);
                let parts = if self.whole {
                    vec![out.clone()]
                } else {
                    cut(&out, meta)
                };
                for p in parts {
                    self.carry(from, p);
                }
            }
        }
    }

    /// What holds of every packet an endpoint emits.
    fn check(&mut self, packet: &[u8], meta: SegmentMeta, from: usize) {
        let s = wire::parse_tcp(packet).unwrap();
        assert_eq!((s.src, s.dst), (self.ends[from], self.ends[1 - from]));
        let ip = wire::ip_header_len(s.dst.ip());
        let sum = |bytes: &[u8]| -> u32 {
            let mut sum: u32 = bytes
                .chunks(2)
                .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])))
                .sum();
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            sum
        };
        let mut pseudo = if ip == 20 {
            assert_eq!(
                packet.len(),
                usize::from(u16::from_be_bytes([packet[2], packet[3]]))
            );
            assert_eq!(
                (packet[1], packet[6] & 0x40, packet[8]),
                (0, 0x40, 64),
                "DSCP, DF, TTL"
            );
            assert_eq!(sum(&packet[..20]), 0xffff, "IP checksum");
            packet[12..20].to_vec()
        } else {
            assert_eq!(
                packet.len() - 40,
                usize::from(u16::from_be_bytes([packet[4], packet[5]]))
            );
            assert_eq!((packet[0], packet[7]), (0x60, 64), "version, hop limit");
            packet[8..40].to_vec()
        };
        pseudo.extend([0, 6]);
        pseudo.extend(((packet.len() - ip) as u16).to_be_bytes());
        let field = u16::from_be_bytes([packet[ip + 16], packet[ip + 17]]);
        assert_eq!(sum(&pseudo), u32::from(field), "pseudo-header sum");
        if meta.gso_size == 0 {
            assert!(s.payload.len() <= 1460.max(usize::from(self.sides[from].tcp.remote_mss())));
        } else {
            assert!(s.payload.len() > usize::from(meta.gso_size));
        }
        if s.payload.len() > self.sides[from].largest.0 {
            self.sides[from].largest = (s.payload.len(), meta.gso_size);
        }
    }

    /// One round: applications read and write, endpoints send, and time goes on to whatever
    /// comes next. False if nothing ever comes and
    /// nothing was left to read.
    pub fn step(&mut self) -> bool {
        let mut read = 0;
        for i in 0..2 {
            let peer = self.sides[1 - i].seed;
            let limit = self.sides[i].read_limit;
            read += self.sides[i].read(peer, limit);
            self.sides[i].write();
        }
        self.transmit();
        let timer = self.sides.iter().filter_map(|s| s.tcp.poll_timeout()).min();
        let arrival = self.wire.keys().next().map(|w| w.0);
        let Some(next) = timer.into_iter().chain(arrival).min() else {
            return read > 0;
        };
        self.now = self.now.max(next);
        while let Some(w) = self.wire.first_entry().filter(|w| w.key().0 <= self.now) {
            let (to, p) = w.remove();
            self.sides[to].tcp.handle_segment(self.now, &p).unwrap();
        }
        true
    }

    /// Steps until `done`; fails after `limit` of virtual time, or if nothing happens any more.
    #[track_caller]
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&Net) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            let goes_on = self.step();
            if done(self) {
                return;
            }
            assert!(goes_on, "nothing happens any more: {:?}", self.states());
            assert!(
                self.now <= end,
                "not done after {limit:?}: {:?}",
                self.states()
            );
        }
    }

    /// Steps until nothing is left to happen.
    #[track_caller]
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("never settles: {:?}", self.states());
    }

    pub fn states(&self) -> [super::HostState; 2] {
        [self.sides[0].tcp.state(), self.sides[1].tcp.state()]
    }

    #[track_caller]
    pub fn established() -> Self {
        let mut net = Self::new();
        net.connect();
        net
    }

    #[track_caller]
    pub fn connect(&mut self) {
        self.run(Duration::from_secs(30), |n| {
            n.states().iter().all(|s| s.established)
        });
        self.settle();
    }

    /// Everything `from` has to send to the other side now, without delivering it.
    pub fn collect(&mut self, from: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut out = Vec::new();
        while let Some(meta) = self.sides[from].tcp.poll_transmit(self.now, &mut out) {
            self.check(&out, meta, from);
            all.push(out.clone());
        }
        all
    }
}

/// The option of a SYN that says the segment size.
pub fn mss_of(packet: &[u8]) -> Option<u16> {
    parse_tcp(packet).and_then(|s| s.syn_options().mss)
}

/// An ICMP destination unreachable quoting the first bytes of `about`.
pub fn icmp_unreachable(about: &[u8], code: u8, mtu: u16) -> Vec<u8> {
    let mut p = header(SERVER, CLIENT, 0, 0, 0).to_packet();
    p.truncate(20);
    p[9] = 1;
    p.extend([3, code, 0, 0, 0, 0]);
    p.extend(mtu.to_be_bytes());
    p.extend_from_slice(&about[..28]);
    let total = (p.len() as u16).to_be_bytes();
    p[2..4].copy_from_slice(&total);
    assert!(super::icmp_flow(&p).is_some());
    p
}
