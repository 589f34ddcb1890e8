//! Two whole routers, a path between them and hosts behind them, on a virtual clock.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== path ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/24                   10.2.0.0/24
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mef_dataplane::control::{LinkState, Snapshot};
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::{Endpoint, HostTcp, HostTcpConfig, Role};
use mef_dataplane::router::Router;
use mef_io::{MemPort, MemWire};
use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::{Buffer, HeapBuf, Instant, Meta, Packet};

use super::{from_host, host, inject, mac, ms, packet, seed, sum, Settings, A, B, HOST_MAC};

const STEP: Duration = Duration::from_micros(500);

/// One router and what is plugged into it.
pub struct Side {
    pub me: u8,
    pub router: Router<MemPort>,
    pub lan: MemWire,
    pub wan: MemWire,
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
    /// Link packets do not pass; packets in the clear do.
    pub cut: bool,
    /// What is lost, by sender and frame.
    pub lose: Lose,
    /// Every link packet that may be marked is.
    pub marks: bool,
    /// Frames of A appear to come from here, and this is where A is reached.
    pub a_is_at: Option<(Ipv4Addr, u16)>,
    pub frames: [u64; 2],
    pub bytes: [u64; 2],
    /// IPv4 packets in the clear on the path, and traffic classes of link packets.
    pub clear: Vec<Vec<u8>>,
    pub classes: BTreeSet<u8>,
    flying: VecDeque<(Instant, usize, Packet<HeapBuf>)>,
    starts: u64,
    seed: u64,
}

fn side(now: Instant, me: u8, s: &Settings, boot: u64, base: u64) -> Side {
    let start = seed(me, boot, base);
    let ports = (s.ports)(me);
    let (router, [lan, wan]) = super::router(now, me, &s.text(me), ports, 1 << 16, start);
    Side {
        me,
        router,
        lan,
        wan,
        hosts: HashMap::new(),
        inbox: Vec::new(),
    }
}

/// Whether a frame on the path is the link's, over IPv4.
fn is_link(frame: &[u8]) -> bool {
    is_ipv4(frame) && frame[23] == 17 && frame[36..38] == 4800u16.to_be_bytes()
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame.len() >= 38 && frame[12..14] == [8, 0]
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
            marks: false,
            a_is_at: None,
            frames: [0; 2],
            bytes: [0; 2],
            clear: Vec::new(),
            classes: BTreeSet::new(),
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
        w.forget();
        w
    }

    /// What has been received and seen until now.
    pub fn forget(&mut self) {
        for s in &mut self.sides {
            s.inbox.clear();
        }
        self.clear.clear();
        self.classes.clear();
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
        host::transmit(now, s);
        s.router.poll(now);
        let mut frames = Vec::new();
        s.lan.take_sent(&mut frames);
        for p in frames.drain(..) {
            host::receive(now, s, self.settings.hosts, &p);
        }
        s.wan.take_sent(&mut frames);
        for p in frames {
            let mut bytes = p.buf.bytes().to_vec();
            let arrives = match bytes.get(12..14) {
                Some([8, 6]) => self.arp_crosses(i, &bytes).then_some(now),
                _ => self
                    .crosses(i, &mut bytes)
                    .then(|| now + self.settings.delay),
            };
            if let Some(at) = arrives {
                let p = packet(&bytes, Meta::default());
                self.flying.push_back((at, 1 - i, p));
            }
        }
    }

    /// Whether an ARP packet is for the other router to hear: who is neither of both is somewhere on
    /// the path, which answers.
    fn arp_crosses(&mut self, i: usize, frame: &[u8]) -> bool {
        let is_router = |ip| [[192, 0, 2, 1], [192, 0, 2, 2]].contains(&ip);
        let answer = host::arp_answer(&frame[14..], |ip| !is_router(ip));
        if let Some(r) = &answer {
            inject(&self.sides[i].wan, r, Meta::default());
        }
        answer.is_none()
    }

    /// What becomes of a frame on the path, and whether it arrives.
    fn crosses(&mut self, i: usize, bytes: &mut [u8]) -> bool {
        self.frames[i] += 1;
        self.bytes[i] += bytes.len() as u64;
        if is_link(bytes) {
            self.classes.insert(bytes[15]);
            if self.cut {
                return false;
            }
            if self.marks && Ecn::of(&bytes[14..]).is_capable() {
                ecn::set(&mut bytes[14..], Ecn::Ce).unwrap();
            }
        } else if is_ipv4(bytes) {
            self.clear.push(bytes[14..].to_vec());
        }
        if (self.lose)(i, bytes) {
            return false;
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
                return false;
            }
            bytes[24..26].fill(0);
            let c = sum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&c);
        }
        if bytes[..6] == HOST_MAC {
            bytes[..6].copy_from_slice(&mac(2 - i as u8, 1));
        }
        true
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
    /// Packets that each router has dropped.
    pub fn dropped(&self) -> [u64; 2] {
        [0, 1].map(|i: usize| self.sides[i].router.counters().total())
    }
    pub fn flow_counts(&self) -> [usize; 2] {
        [0, 1].map(|i: usize| self.sides[i].router.flow_count())
    }

    /// The host of `side` sends an IP packet whose checksums are right.
    pub fn host_sends(&mut self, side: usize, packet: &[u8]) {
        self.host_offers(side, packet, Meta::default());
    }
    /// One that its port is to finish.
    pub fn host_offers(&mut self, side: usize, packet: &[u8], meta: Meta) {
        let s = &self.sides[side];
        inject(&s.lan, &from_host(mac(s.me, 0), packet), meta);
    }
    /// An IP packet comes to the WAN port of `side`.
    pub fn wan_receives(&mut self, side: usize, packet: &[u8]) {
        let s = &self.sides[side];
        inject(&s.wan, &from_host(mac(s.me, 1), packet), Meta::default());
    }

    /// Host A sends; exactly this one drop more is counted at A.
    pub fn a_drops(&mut self, packet: &[u8], stage: Stage, reason: DropReason) {
        let before = (self.dropped()[0], self.count(0, stage, reason));
        self.host_sends(0, packet);
        self.run(ms(20));
        let after = (self.dropped()[0], self.count(0, stage, reason));
        let named = self.sides[0].router.counters().named();
        assert_eq!(
            (after.0 - before.0, after.1 - before.1),
            (1, 1),
            "{stage:?} {reason:?}: {named:?}"
        );
    }

    /// What the hosts of a side have received since this was last asked.
    pub fn received(&mut self, side: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.sides[side].inbox)
    }

    /// Of that the ICMP messages: source, type, code, and the two bytes of an MTU.
    pub fn icmp_and_mtu(&mut self, side: usize) -> Vec<([u8; 4], u8, u8, u16)> {
        let packets = self.received(side).into_iter().filter(|p| p[9] == 1);
        packets
            .map(|p| {
                let source = [p[12], p[13], p[14], p[15]];
                let mtu = u16::from_be_bytes([p[26], p[27]]);
                (source, p[20], p[21], mtu)
            })
            .collect()
    }
    pub fn icmp(&mut self, side: usize) -> Vec<([u8; 4], u8, u8)> {
        let all = self.icmp_and_mtu(side).into_iter();
        all.map(|(source, kind, code, _)| (source, kind, code))
            .collect()
    }

    /// TCP packets with RST that came for nobody known.
    pub fn stray_resets(&mut self, side: usize) -> usize {
        let inbox = &mut self.sides[side].inbox;
        let before = inbox.len();
        inbox.retain(|p| !(p[9] == 6 && p[33] & 4 != 0));
        before - inbox.len()
    }

    /// Opens a connection from `port` of host A to `far_port` of host B; gives both ends' keys.
    /// The server accepts at once.
    pub fn connect(&mut self, port: u16, far_port: u16) -> Flow {
        self.connect_between((A, port).into(), (B, far_port).into())
    }

    pub fn connect_between(&mut self, client: SocketAddr, server: SocketAddr) -> Flow {
        self.seed += 1;
        let config = HostTcpConfig {
            isn_seed: self.seed,
            ..HostTcpConfig::default()
        };
        let active = Role::Active {
            local: client,
            remote: server,
        };
        let passive = Role::Passive {
            local: server,
            remote: client,
        };
        let [a, b] = [active, passive].map(|role| Endpoint::new(self.now, role, &config).unwrap());
        self.sides[0].hosts.insert((client, server), a);
        self.sides[1].hosts.insert((server, client), b);
        Flow { client, server }
    }

    /// The end of a connection at the host of this side.
    pub fn tcp(&mut self, side: usize, flow: Flow) -> &mut Endpoint {
        let key = match side {
            0 => (flow.client, flow.server),
            _ => (flow.server, flow.client),
        };
        self.sides[side].hosts.get_mut(&key).unwrap()
    }
    pub fn client(&mut self, flow: Flow) -> &mut Endpoint {
        self.tcp(0, flow)
    }
    pub fn server(&mut self, flow: Flow) -> &mut Endpoint {
        self.tcp(1, flow)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub client: SocketAddr,
    pub server: SocketAddr,
}
