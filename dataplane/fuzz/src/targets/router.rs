//! Two whole routers with a link between them, and anything on their ports:
//!
//! ```text
//!   frames -- lan [router A] wan ==== wan [router B] lan -- frames
//! ```
//!
//! Neither may panic, keep memory for ever, or lose a frame without counting it.

use std::path::Path;
use std::time::Duration;

use mef_crypto::PrivateKey;
use mef_dataplane::config::{self, Host};
use mef_dataplane::router::{Router, Seed};
use mef_io::{Caps, MemPort, MemWire};
use mef_packet::wire::checksum::Sum;
use mef_packet::{Buffer, HeapBuf, Instant, Meta, Packet};

use super::input::Input;

struct Machine(u8);

impl Host for Machine {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([self.0; 32]))
    }
}

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
pub const MEMORY: u64 = 4 << 20;

pub fn config_text(me: u8) -> String {
    let other = 3 - me;
    let key = PrivateKey::generate([other; 32]).public();
    format!(
        r#"[router]
name = "r{me}"
private_key = "r.key"
memory = "4MiB"

[[port]]
name = "lan"
interface = "eth0"
addresses = ["10.{me}.0.1/24", "fd00:{me}::1/64"]

[[port]]
name = "wan"
interface = "eth1"
addresses = ["192.0.2.{me}/30"]
listen = 4800
[port.line]
up = "1Gbit/s"
down = "1Gbit/s"

[[peer]]
name = "other"
public_key = "{key}"
port = "wan"
endpoint = "192.0.2.{other}:4800"
prefixes = ["10.{other}.0.0/24", "fd00:{other}::/64"]
"#
    )
}

pub fn mac(router: u8, port: u8) -> [u8; 6] {
    [2, 0, 0, 0, router, port]
}

pub struct Side {
    pub router: Router<MemPort>,
    pub lan: MemWire,
    pub wan: MemWire,
}

pub fn side(now: Instant, me: u8) -> Side {
    let file = Path::new("/etc/mef/r.toml");
    let config =
        config::parse(&config_text(me), file, &Machine(me)).expect("a valid configuration");
    let port = |port| {
        let caps = Caps {
            mtu: 1500,
            mac: mac(me, port),
            tcp_gso: false,
            udp_gso: false,
            tx_checksum: false,
        };
        MemPort::detached(caps, 512)
    };
    let ((lan_port, lan), (wan_port, wan)) = (port(0), port(1));
    let mut n = u64::from(me) * 1000;
    let seed = Seed {
        entropy: Box::new(move || {
            n += 1;
            let mut e = [0; 32];
            e[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
            e
        }),
        boot_id: u64::from(me),
        initiation_base: 1,
    };
    let router = Router::new(now, config, vec![lan_port, wan_port], seed).expect("fitting ports");
    Side { router, lan, wan }
}

pub fn inject(wire: &MemWire, frame: &[u8]) {
    let _ = wire.inject(Packet {
        buf: HeapBuf::from_slice(frame),
        meta: Meta::default(),
    });
}

/// Lets both routers do what they have to; what they send to hosts is returned.
fn turn(now: Instant, sides: &mut [Side; 2]) -> [Vec<Vec<u8>>; 2] {
    let mut to_hosts = [Vec::new(), Vec::new()];
    for _ in 0..4 {
        let mut crossing = [Vec::new(), Vec::new()];
        for (i, s) in sides.iter_mut().enumerate() {
            s.router.poll(now);
            s.wan.take_sent(&mut crossing[1 - i]);
            let mut out = Vec::new();
            s.lan.take_sent(&mut out);
            to_hosts[i].extend(out.iter().map(|p| p.buf.bytes().to_vec()));
        }
        for (s, frames) in sides.iter().zip(&crossing) {
            for p in frames {
                inject(&s.wan, p.buf.bytes());
            }
        }
    }
    to_hosts
}

pub fn frames(data: &[u8]) {
    let mut now = Instant::from_millis(1000);
    let mut sides = [side(now, 1), side(now, 2)];
    for (me, s) in [1, 2].into_iter().zip(&sides) {
        // The hosts make themselves known, so that packets for them do not wait.
        inject(&s.lan, &arp_request([10, me, 0, 2], [10, me, 0, 1]));
    }
    for _ in 0..20 {
        turn(now, &mut sides);
        now += Duration::from_micros(500);
    }
    let mut last = [Vec::new(), Vec::new()];
    let mut input = Input(data);
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let at = usize::from(op & 1);
        let me = at as u8 + 1;
        match op >> 1 & 7 {
            0 => now += Duration::from_millis(u64::from(input.u16() % 5000)),
            1 => inject(&sides[at].lan, input.bytes()),
            2 => inject(&sides[at].wan, input.bytes()),
            3 => {
                let packet = ipv6(&mut input, me);
                inject(&sides[at].lan, &frame(mac(me, 0), [0x86, 0xdd], &packet));
            }
            // The answer of a host to what it was last sent.
            4 => {
                let answer = answer(&mut input, &last[at]);
                inject(&sides[at].lan, &frame(mac(me, 0), [8, 0], &answer));
            }
            5 => {
                // To the listening port of a link, from anywhere.
                let mut udp = vec![0x12, 0xc0, 0x12, 0xc0, 0, 0, 0, 0];
                udp.extend_from_slice(input.bytes());
                let n = udp.len() as u16;
                udp[4..6].copy_from_slice(&n.to_be_bytes());
                let from = [192, 0, 2, 2 - at as u8];
                let packet = ip(&mut input, from, [192, 0, 2, me], 17, &udp);
                inject(&sides[at].wan, &frame(mac(me, 1), [8, 0], &packet));
            }
            _ => {
                let (protocol, to) = (input.u8(), input.u8());
                let protocol = [6, 6, 17, 1, 6, 17, 1, protocol][usize::from(protocol % 8)];
                let mut body = input.bytes().to_vec();
                let far = [10, 2 - at as u8, 0, to % 4];
                let from = [10, me, 0, 2];
                complete(&mut body, protocol, from, far);
                let packet = ip(&mut input, from, far, protocol, &body);
                inject(&sides[at].lan, &frame(mac(me, 0), [8, 0], &packet));
            }
        }
        let sent = turn(now, &mut sides);
        for (last, mut sent) in last.iter_mut().zip(sent) {
            if let Some(frame) = sent.pop() {
                *last = frame;
            }
        }
        now += Duration::from_micros(200);
        for s in &mut sides {
            let _ = s.router.next_wake(now);
            assert!(s.router.memory().0 <= MEMORY + (256 << 10), "memory");
        }
    }
    for s in &sides {
        let dropped = s.router.counters().total();
        let snapshot = s.router.snapshot(now, Duration::ZERO);
        assert_eq!(snapshot.drops.values().sum::<u64>(), dropped);
    }
}

pub fn frame(to: [u8; 6], kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&to[..], &HOST_MAC, &kind, payload].concat()
}

/// The neighbour `host` makes itself known to the router.
pub fn arp_request(host: [u8; 4], router: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let body = [&head[..], &HOST_MAC, &host, &[0; 6], &router].concat();
    frame([0xff; 6], [8, 6], &body)
}

/// An IPv4 packet whose header the fuzzer may change a little; its checksum is right.
fn ip(input: &mut Input<'_>, src: [u8; 4], dst: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    let len = (20 + body.len()) as u16;
    let mut p = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
    p[2..4].copy_from_slice(&len.to_be_bytes());
    p.extend_from_slice(&src);
    p.extend_from_slice(&dst);
    let (at, with) = (input.u8(), input.u8());
    if let Some(byte) = p.get_mut(usize::from(at)) {
        *byte = with;
    }
    let sum = Sum::ZERO.bytes(&p).checksum();
    p[10..12].copy_from_slice(&sum.to_be_bytes());
    p.extend_from_slice(body);
    p
}

/// An IPv6 packet of a host, to the other site's or to the router; its checksum is right where there is one.
fn ipv6(input: &mut Input<'_>, me: u8) -> Vec<u8> {
    let (next, to) = (input.u8(), input.u8());
    let next = [6, 58, 17, 6, 58, 0, 44, next][usize::from(next % 8)];
    let address = |site: u8, host: u8| {
        let mut a = [0; 16];
        (a[0], a[3], a[15]) = (0xfd, site, host);
        a
    };
    let (src, dst) = (address(me, 2), address(to & 3, to >> 2 & 3));
    let mut body = input.bytes().to_vec();
    let at = match next {
        6 if body.len() >= 20 => Some(16),
        17 if body.len() >= 8 => Some(6),
        58 if body.len() >= 8 => Some(2),
        _ => None,
    };
    let len = body.len() as u16;
    if let Some(at) = at {
        body[at..at + 2].fill(0);
        let pseudo = Sum::ZERO
            .bytes(&src)
            .bytes(&dst)
            .word(len)
            .word(next.into());
        let sum = pseudo.bytes(&body).checksum();
        body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    packet[4..6].copy_from_slice(&len.to_be_bytes());
    packet.extend_from_slice(&src);
    packet.extend_from_slice(&dst);
    let (at, with) = (input.u8(), input.u8());
    if let Some(byte) = packet.get_mut(usize::from(at)) {
        *byte = with;
    }
    packet.extend_from_slice(&body);
    packet
}

/// Puts the right checksum into what seems to be TCP or ICMP.
fn complete(body: &mut [u8], protocol: u8, src: [u8; 4], dst: [u8; 4]) {
    let (at, pseudo) = match protocol {
        6 if body.len() >= 20 => {
            let len = body.len() as u16;
            (16, Sum::ZERO.bytes(&src).bytes(&dst).word(6).word(len))
        }
        1 if body.len() >= 8 => (2, Sum::ZERO),
        _ => return,
    };
    body[at..at + 2].fill(0);
    let sum = pseudo.bytes(body).checksum();
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A segment or message back to where the frame came from: ends swapped, TCP numbers fitting.
fn answer(input: &mut Input<'_>, frame: &[u8]) -> Vec<u8> {
    let Some(packet) = frame.get(14..).filter(|p| p.len() >= 40 && p[0] == 0x45) else {
        return Vec::new();
    };
    let src = [packet[12], packet[13], packet[14], packet[15]];
    let dst = [packet[16], packet[17], packet[18], packet[19]];
    let mut body = packet[20..].to_vec();
    let protocol = packet[9];
    if protocol == 6 {
        let payload = body.len().saturating_sub(usize::from(body[12] >> 4) * 4);
        let flags = body[13];
        let number = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        let (seq, ack) = (number(&body[4..]), number(&body[8..]));
        let next = seq
            .wrapping_add(payload as u32)
            .wrapping_add(u32::from(flags & 3 != 0));
        let ports = [body[2], body[3], body[0], body[1]];
        let own = if flags & 2 != 0 && flags & 0x10 == 0 {
            input.u32()
        } else {
            ack
        };
        let reply = input.u8();
        let reply = [0x10, 0x12, 0x18, 0x11, 0x14, 0x04, 0x10, reply][usize::from(reply % 8)];
        body = [&ports[..], &own.to_be_bytes(), &next.to_be_bytes()].concat();
        body.extend_from_slice(&[0x50, reply, 0xff, 0xff, 0, 0, 0, 0]);
        body.extend_from_slice(input.bytes());
    }
    complete(&mut body, protocol, dst, src);
    ip(input, dst, src, protocol, &body)
}
