//! The short way of datagrams through a router, and a peer at the other end of its
//! link that has the right keys and may say anything:
//!
//! ```text
//!   host -- lan [router] wan ==== a session's other end, in the fuzzer's hands
//! ```
//!
//! What arrives damaged or twice reaches no host; a sound datagram arrives as it was sent,
//! but for its time to live, whichever way it is sealed; what leaves can be opened and is what
//! the host sent. What is not sent on is counted.

use std::time::Duration;

use mef_crypto::{PrivateKey, Responder, Session, SessionConfig, HEADER_LEN, OVERHEAD};
use mef_packet::wire::ip::View;
use mef_packet::wire::udp;
use mef_packet::{BitRate, Buffer, Gso, HeapBuf, Instant, Meta, Packet};
use mef_protocol::codec::{self, Builder, Frame, Hello, FLAG_ELICITS_ACK};
use mef_protocol::received::ReceivedLedger;

use super::input::Input;
use super::router::{arp_request, frame, inject, mac, side, Side, MEMORY};

const ME: u8 = 1;
/// Where a UDP payload begins in a frame over IPv4.
const PAYLOAD_AT: usize = 14 + 20 + 8;
const ROUTER: [u8; 4] = [192, 0, 2, 1];
const PEER: [u8; 4] = [192, 0, 2, 2];
const PORT: u16 = 4800;

/// Kinds of steps; the byte of a step is taken modulo their number.
pub const STEPS: [&str; 8] = [
    "time passes",
    "a datagram for the host",
    "a datagram with anything in its header",
    "frames of any kind",
    "a damaged packet",
    "the last packet again",
    "a super-frame",
    "a datagram of the host",
];

struct World {
    now: Instant,
    router: Side,
    responder: Responder,
    /// The newest last, and the one before it.
    sessions: Vec<Session>,
    heard: ReceivedLedger,
    /// The peer may have said anything, such as that its line carries nothing.
    unpredictable: bool,
    /// Datagrams that the router sent over the link.
    crossed: Vec<Vec<u8>>,
    /// IP packets that it sent to its host.
    arrived: Vec<Vec<u8>>,
}

pub fn datagrams(data: &[u8]) {
    let mut w = World::new();
    let mut input = Input(data);
    let mut last = Vec::new();
    for step in 0u16..200 {
        if input.is_empty() {
            break;
        }
        match input.u8() % STEPS.len() as u8 {
            0 => w.pass(Duration::from_millis(u64::from(input.u16() % 3000))),
            1 => {
                let class = input.u8();
                let packet = to_host(step, class, input.bytes());
                let sealed = w.seal(&datagram(&packet));
                w.expect_at_host(&[packet], |w| w.send(&sealed, 0));
                last = sealed;
            }
            2 => {
                let mut packet = to_host(step, 0, input.bytes());
                let (at, with) = (usize::from(input.u8()), input.u8());
                if let Some(byte) = packet.get_mut(at) {
                    *byte = with;
                }
                let outer = input.u8();
                last = w.seal(&datagram(&packet));
                let sealed = last.clone();
                w.send(&sealed, outer);
            }
            3 => {
                w.unpredictable = true;
                last = w.seal(input.bytes());
                let sealed = last.clone();
                w.send(&sealed, input.u8());
            }
            4 => {
                let mut sealed = w.seal(&datagram(&to_host(step, 0, input.bytes())));
                let at = usize::from(input.u16()) % sealed.len();
                sealed[at] ^= input.u8().max(1);
                w.expect_dropped(|w| w.send(&sealed, 0));
            }
            5 if !last.is_empty() => {
                let again = last.clone();
                w.expect_dropped(|w| w.send(&again, 0));
            }
            6 => {
                let (count, body) = (input.u8() % 5 + 1, input.bytes());
                let packets: Vec<Vec<u8>> = (0..count)
                    .map(|n| to_host(step << 3 | u16::from(n), 0, body))
                    .collect();
                let sealed: Vec<Vec<u8>> = packets.iter().map(|p| w.seal(&datagram(p))).collect();
                let size = sealed[0].len();
                w.expect_at_host(&packets, |w| w.send_cut(&sealed.concat(), size));
            }
            _ => {
                let to = [10, 2, 0, input.u8()];
                let packet = udp_packet([10, ME, 0, 2], to, step, 64, input.u8(), input.bytes());
                w.expect_crossed(&packet);
            }
        }
        w.turn();
        assert!(w.router.router.memory().0 <= MEMORY + (256 << 10), "memory");
    }
}

impl World {
    /// A router whose session with the peer is there, and whose neighbours are known.
    fn new() -> Self {
        let now = Instant::from_millis(1000);
        let key = |n: u8| PrivateKey::generate([n; 32]);
        let mut responder = Responder::new(key(2)).with_boot_id(2);
        responder.allow(key(ME).public(), None);
        let mut w = Self {
            now,
            router: side(now, ME),
            responder,
            sessions: Vec::new(),
            heard: ReceivedLedger::default(),
            unpredictable: false,
            crossed: Vec::new(),
            arrived: Vec::new(),
        };
        inject(&w.router.lan, &arp_request([10, ME, 0, 2], [10, ME, 0, 1]));
        inject(&w.router.wan, &arp_request(PEER, ROUTER));
        while w.sessions.is_empty() {
            w.pass(Duration::from_millis(1));
        }
        let mut inner = Vec::new();
        let mut b = Builder::new(&mut inner, 1000);
        b.push(&Frame::Hello(Hello {
            boot_id: 2,
            workers: 1,
            hash_key: 0,
            mtu: 1500,
            line_up: BitRate::from_mbit(1000),
            line_down: BitRate::from_mbit(1000),
            link_credit: 1 << 20,
            flow_credit: 1 << 16,
        }));
        b.flag(FLAG_ELICITS_ACK);
        b.finish();
        let sealed = w.seal(&inner);
        w.send(&sealed, 0);
        for _ in 0..20 {
            w.pass(Duration::from_millis(10));
        }
        w
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.turn();
    }

    /// Lets the router do what it has to, and answers it as a peer that is well.
    fn turn(&mut self) {
        for _ in 0..4 {
            self.router.router.poll(self.now);
            let mut sent = Vec::new();
            self.router.wan.take_sent(&mut sent);
            for p in &sent {
                self.take(p.buf.bytes());
            }
            let mut out = Vec::new();
            self.router.lan.take_sent(&mut out);
            let ip = |p: &Packet<HeapBuf>| p.buf.bytes().get(14..).map(<[u8]>::to_vec);
            self.arrived.extend(out.iter().filter_map(ip));
            if sent.is_empty() {
                break;
            }
            self.acknowledge();
        }
    }

    /// A frame that the router sent over its line.
    fn take(&mut self, frame: &[u8]) {
        if frame[12..14] == [8, 6] {
            return inject(&self.router.wan, &arp_request(PEER, ROUTER));
        }
        let Some(payload) = frame.get(PAYLOAD_AT..) else {
            return;
        };
        let mut opened = None;
        for session in self.sessions.iter_mut().rev() {
            let mut packet = payload.to_vec();
            if let Ok(o) = session.open(&mut packet) {
                opened = Some((o.counter, packet[o.payload].to_vec()));
                break;
            }
        }
        if let Some((number, inner)) = opened {
            let (header, frames) = codec::parse(&inner).expect("what the router packed");
            let elicits = header.flags & FLAG_ELICITS_ACK != 0;
            let bytes = frame.len() as u64;
            self.heard
                .on_packet(self.now, number, bytes, elicits, false);
            for frame in frames {
                if let Frame::Datagram { packet, .. } = frame.expect("a sound frame") {
                    self.crossed.push(packet.to_vec());
                }
            }
        } else if let Ok(initiation) = self.responder.read(payload) {
            let (config, index) = (
                SessionConfig::default(),
                77 + initiation.peer_index() % 1000,
            );
            let accepted = self.responder.accept(initiation, index, [9; 32], config);
            let (mut session, answer) = accepted.expect("a fresh initiation");
            if let Some(old) = self.sessions.last() {
                session.number_from(old.next_counter());
            }
            self.sessions.push(session);
            if self.sessions.len() > 2 {
                self.sessions.remove(0);
            }
            self.send(&answer, 0);
        }
    }

    fn acknowledge(&mut self) {
        if self.heard.delivered_bytes() == 0 {
            return;
        }
        let (mut inner, mut scratch) = (Vec::new(), Vec::new());
        let mut b = Builder::new(&mut inner, 1100);
        b.push(&Frame::Ack(self.heard.ack(self.now, &mut scratch)));
        b.finish();
        let sealed = self.seal(&inner);
        self.send(&sealed, 0);
    }

    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; inner.len() + OVERHEAD];
        packet[HEADER_LEN..HEADER_LEN + inner.len()].copy_from_slice(inner);
        let session = self.sessions.last_mut().expect("a session");
        session.seal_in_place(&mut packet).expect("a fresh key");
        packet
    }

    /// Puts a UDP payload from the peer onto the line.
    fn send(&mut self, payload: &[u8], class: u8) {
        let packet = udp_packet(PEER, ROUTER, PORT, 64, class, payload);
        inject(&self.router.wan, &frame(mac(ME, 1), [8, 0], &packet));
    }

    /// The same, of packets of `size` bytes each that a port joined.
    fn send_cut(&mut self, payload: &[u8], size: usize) {
        let packet = udp_packet(PEER, ROUTER, PORT, 64, 0, payload);
        let meta = Meta {
            gso: Gso::Udp,
            gso_size: size as u16,
            ..Meta::default()
        };
        let frame = frame(mac(ME, 1), [8, 0], &packet);
        let buf = HeapBuf::from_slice(&frame);
        let _ = self.router.wan.inject(Packet { buf, meta });
    }

    /// What `send` sends reaches the host, all of it and in order, a time to live counted down.
    fn expect_at_host(&mut self, packets: &[Vec<u8>], send: impl FnOnce(&mut Self)) {
        // A host that the router has to ask for again answers.
        inject(
            &self.router.lan,
            &arp_request([10, ME, 0, 2], [10, ME, 0, 1]),
        );
        self.turn();
        self.arrived.clear();
        send(self);
        self.turn();
        let mut arrived = core::mem::take(&mut self.arrived);
        // Connections that the peer has opened may have segments for the host.
        arrived.retain(|p| View::parse(p).is_ok_and(|v| v.protocol() == 17));
        assert_eq!(arrived.len(), packets.len(), "{:?}", self.drops());
        for (sent, got) in packets.iter().zip(&arrived) {
            same_but_for_ttl(sent, got);
        }
    }

    /// Nothing of what `send` sends reaches a host, and it is counted.
    fn expect_dropped(&mut self, send: impl FnOnce(&mut Self)) {
        self.turn();
        self.arrived.clear();
        let before = self.drops();
        send(self);
        self.turn();
        self.arrived
            .retain(|p| View::parse(p).is_ok_and(|v| v.protocol() == 17));
        assert!(self.arrived.is_empty());
        assert!(self.drops() > before, "a packet went without a count");
    }

    /// A host's packet crosses the link, or is counted as dropped.
    fn expect_crossed(&mut self, packet: &[u8]) {
        self.crossed.clear();
        let before = self.drops();
        inject(&self.router.lan, &frame(mac(ME, 0), [8, 0], packet));
        for _ in 0..40 {
            self.pass(Duration::from_millis(5));
            if !self.crossed.is_empty() {
                break;
            }
        }
        if self.unpredictable {
            return;
        }
        match &self.crossed[..] {
            [crossed] => same_but_for_ttl(packet, crossed),
            [] => assert!(self.drops() > before, "lost without a count"),
            more => panic!("{} times", more.len()),
        }
    }

    fn drops(&self) -> u64 {
        self.router.router.counters().total()
    }
}

fn same_but_for_ttl(sent: &[u8], got: &[u8]) {
    let (sent, got) = (
        View::parse(sent).expect("sound"),
        View::parse(got).expect("sound"),
    );
    assert_eq!((sent.src(), sent.dst()), (got.src(), got.dst()));
    assert_eq!(sent.ttl() - 1, got.ttl());
    assert_eq!(sent.dscp_ecn(), got.dscp_ecn());
    assert_eq!(sent.payload(), got.payload());
}

/// An inner packet with one datagram.
fn datagram(packet: &[u8]) -> Vec<u8> {
    let front = codec::datagram_front(FLAG_ELICITS_ACK, 5, packet.len()).expect("a short one");
    [&front[..], packet].concat()
}

/// From behind the peer to the router's host.
fn to_host(step: u16, class: u8, body: &[u8]) -> Vec<u8> {
    udp_packet([10, 2, 0, 2], [10, ME, 0, 2], step, 64, class, body)
}

/// IPv4 and UDP, without a UDP checksum; cut at what a path of 1280 bytes takes whole.
fn udp_packet(src: [u8; 4], dst: [u8; 4], port: u16, ttl: u8, class: u8, body: &[u8]) -> Vec<u8> {
    use mef_packet::wire::ipv4;
    let most = if src == PEER { 60_000 } else { 1100 };
    let body = body.get(..most).unwrap_or(body);
    let mut packet = vec![0; 28 + body.len()];
    let header = ipv4::Header {
        dscp_ecn: class,
        ttl,
        ..ipv4::Header::new(src.into(), dst.into(), ipv4::PROTOCOL_UDP)
    };
    header.emit(&mut packet, 8 + body.len()).expect("room");
    let ports = udp::Header {
        src_port: PORT,
        dst_port: port,
    };
    ports.emit(&mut packet[20..], body.len()).expect("room");
    packet[28..].copy_from_slice(body);
    packet
}

/// Some of every step, for the fuzzer to start from.
pub fn seeds() -> Vec<Vec<u8>> {
    use super::input::with_length;
    let body = with_length(b"a datagram");
    let mut ping = Vec::new();
    let mut b = Builder::new(&mut ping, 1000);
    b.push(&Frame::Ping { floor: 0 });
    b.push(&Frame::Fragment {
        id: 1,
        index: 0,
        count: 2,
        bytes: &[0x45; 40],
    });
    b.finish();
    let steps: [&[u8]; 8] = [
        &[0, 0, 40],
        &[1, 2],
        &[2],
        &[3],
        &[4],
        &[5],
        &[6, 3],
        &[7, 9, 0],
    ];
    let all = steps.map(|s| match s[0] {
        0 | 5 => s.to_vec(),
        2 => [s, &body, &[8, 1, 3]].concat(),
        3 => [s, &with_length(&ping), &[1]].concat(),
        4 => [s, &body, &[0, 30, 7]].concat(),
        _ => [s, &body].concat(),
    });
    let longest = with_length(&[0xa5; 1100]);
    vec![
        all.concat(),
        [&all[1][..], &all[5], &all[7], &[0, 11, 0], &all[1], &all[7]].concat(),
        [
            &[7, 1, 3][..],
            &longest,
            &[1, 1],
            &longest,
            &[6, 4],
            &longest,
        ]
        .concat(),
    ]
}
