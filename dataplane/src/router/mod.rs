//! The router: one worker with its ports, lines, peers and flows. It has no
//! thread, clock or socket of its own: [`Router::poll`] takes what the ports
//! have, moves it along and hands out what may leave; [`Router::next_wake`]
//! says when to call again. The daemon runs it on a core, the simulator runs
//! many of them on a virtual clock.
//!
//! The journey of a packet is in `pipeline.rs`; each stage has a file.

mod admission;
mod carry;
mod crossing;
mod datagram;
mod direct;
mod drain;
mod fragments;
mod handover;
mod host_memory;
mod ingress;
mod keep_alive;
mod laps;
mod manner;
mod mss;
mod open;
mod output;
mod pipeline;
mod plain;
mod report;
mod route;
mod session;
mod share;
mod split;
mod status;
mod super_frame;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mef_crypto::{Gate, Responder};
use mef_io::Port;
use mef_packet::wire::ecn::Ecn;
use mef_packet::{BitRate, Bytes, Instant, Packet, PortId};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::line::Line;
use mef_protocol::link::{DatagramStats, LinkConfig};

use crate::config::{self, Config, PeerId, StaticRoute, Via};
use crate::drops::Counters;
use crate::fib::Fib;
use crate::flow_table::FlowTable;
use crate::half_open::HalfOpen;
use crate::icmp::Icmp;
use crate::neighbour::{Interface, Neighbours};
use crate::outer;
use crate::peer::Peer;
use crate::rate::RateLimit;
use crate::reassembly::Reassembly;
use crate::stats::Histogram;
use crate::troubles::Troubles;
use crate::workers::{Crew, Moment};

use drain::Drain;
pub use host_memory::HostShare;
pub use keep_alive::KeepAlive;
use laps::Lap;
pub use laps::Laps;

/// Packets taken from a port at a time.
pub const BATCH: usize = 64;
const ETHERNET: u16 = 14;
/// Answers to segments of unknown connections, at most: after a restart every host hears within a second.
const RESETS_PER_SECOND: u32 = 10_000;
/// Answers to packets of unknown sessions, at most.
const HINTS_PER_SECOND: u32 = 20;

struct PortState<P: Port> {
    port: P,
    mac: [u8; 6],
    mtu: u16,
    /// Frames ready to leave.
    out: Vec<Packet<P::Buf>>,
    /// Bytes in these.
    waiting: usize,
    line: Option<usize>,
    /// Takes super-frames, so that what waits for it together leaves together.
    super_frames: bool,
}

struct LineState<P: Port> {
    port: PortId,
    listen: u16,
    line: Line<plain::PlainPacket<P::Buf>>,
    /// Link packets carry the DS field of what is in them.
    copy_dscp: bool,
    /// What of its queues is already among the router's counters.
    counted: DatagramStats,
    peers: Vec<Peer>,
    /// What leaves is sent in slices of at least this, so that pacing does not cost a wake-up per packet.
    burst: Duration,
    last_sent: Instant,
}

/// Bytes that a line carries beside an IP packet.
fn frame_overhead(line: &config::Line) -> u16 {
    let bytes = i32::from(ETHERNET) + i32::from(line.overhead);
    u16::try_from(bytes.max(0)).unwrap_or(ETHERNET)
}

/// What a router needs from outside beside its configuration.
pub struct Seed {
    /// 32 bytes that nobody can predict, each time it is called.
    pub entropy: Box<dyn FnMut() -> [u8; 32]>,
    /// Different at every start.
    pub boot_id: u64,
    /// Above every value of an earlier start: nanoseconds of the wall clock serve.
    pub initiation_base: u64,
}

/// Why a router cannot be made of a configuration and its ports.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("port {port}: its interface has an MTU of {mtu} bytes, a port with peers or an IPv6 address needs at least 1280")]
    SmallMtu { port: String, mtu: u16 },
}

/// What came of a [`turn`](Router::turn) of the router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Packets that were taken from the ports, as they crossed the wire.
    pub packets: usize,
    /// There is work left: another turn is due at once.
    pub again: bool,
    /// Memory is short, so hosts have windows of a few segments: who lets them wait slows them down.
    pub scarce: bool,
}

/// How many packets of the wire came as this one.
fn on_the_wire<B: mef_packet::Buffer>(packet: &Packet<B>) -> usize {
    match usize::from(packet.meta.gso_size) {
        0 => 1,
        size => 1 + packet.buf.len() / size,
    }
}

/// One worker of the router.
pub struct Router<P: Port> {
    config: Config,
    seed: Seed,
    started: Instant,
    ports: Vec<PortState<P>>,
    lines: Vec<LineState<P>>,
    /// Line and place in it, by peer.
    places: Vec<(usize, usize)>,
    fib: Fib,
    /// Where packets go that leave in the clear: as if there were no peers.
    plain_fib: Fib,
    manners: manner::Manners,
    /// Keys the numbers of datagram flows.
    flow_numbers: datagram::FlowNumbers,
    /// How the peers' packets leave, by peer.
    ways: Vec<Option<direct::Way>>,
    /// ECN bits of the link packet, or super-frame of them, that is being opened.
    outer: Ecn,
    neighbours: Neighbours<Packet<P::Buf>>,
    icmp: Icmp,
    responder: Responder,
    /// Which initiations are read.
    gate: Gate,
    /// What is said to those whose session is not known.
    hints: RateLimit,
    /// What is said to segments of connections that are not known.
    resets: RateLimit,
    half_open: HalfOpen,
    reassembly: Reassembly,
    /// When the router was told to stop.
    draining: Option<Drain>,
    pool: ChunkPool,
    flows: FlowTable,
    dirty: Vec<usize>,
    /// Flows whose host waits for memory or room on the link.
    blocked: Vec<usize>,
    retry_blocked: Instant,
    counters: Counters,
    /// Time of datagrams in the queues of the lines.
    waited: Histogram,
    inbox: Vec<Packet<P::Buf>>,
    batch: pipeline::Batch,
    laps: Laps,
    scratch: Vec<u8>,
    inner: Vec<u8>,
    stats: Tallies,
    /// Of threads beside this one.
    troubles: Troubles,
    /// The others, where there are several workers.
    crew: Option<Box<Crew<P::Buf>>>,
    /// On what is shared with them.
    claims: share::Claims,
    /// Key of the hash by which the ports spread flows.
    steered_by: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tallies {
    flows_opened: u64,
    flows_refused: u64,
    flows_reset: u64,
    handshakes: u64,
    datagrams_sent: u64,
    datagrams_received: u64,
    /// TCP packets that came in fragments.
    packets_reassembled: u64,
    /// A peer answered a challenge from another address than before.
    peers_moved: u64,
    /// Another station was heard using one of our addresses.
    address_conflicts: u64,
}

impl<P: Port> Router<P> {
    /// A router on `ports`, which stand in the order of the configuration.
    ///
    /// # Errors
    /// [`RouterError`] where a port does not fit its role.
    pub fn new(
        now: Instant,
        config: Config,
        ports: Vec<P>,
        seed: Seed,
    ) -> Result<Self, RouterError> {
        Self::with_crew(now, config, ports, seed, None)
    }

    /// One of several workers, with its own queue of every port and its part of the memory; all have
    /// the same `boot_id` and `initiation_base`.
    ///
    /// # Errors
    /// [`RouterError`] where a port does not fit its role.
    pub fn with_crew(
        now: Instant,
        mut config: Config,
        ports: Vec<P>,
        mut seed: Seed,
        crew: Option<Crew<P::Buf>>,
    ) -> Result<Self, RouterError> {
        let (me, workers) = crew
            .as_ref()
            .map_or((0, 1), |c| (c.me(), c.shared.workers()));
        config.memory = Bytes(config.memory.0 / u64::from(workers));
        let flow_secret = (seed.entropy)();
        let mut states = Vec::new();
        let mut lines: Vec<LineState<P>> = Vec::new();
        for (i, (port, c)) in ports.into_iter().zip(&config.ports).enumerate() {
            let caps = port.caps();
            let mtu = c.mtu.unwrap_or(caps.mtu).min(caps.mtu);
            let id = PortId(u16::try_from(i).unwrap_or(u16::MAX));
            let line = c.line.map(|l| {
                let mut line = Line::new(now, l.up);
                line.set_frame_overhead(frame_overhead(&l));
                line.set_interval(l.burst);
                lines.push(LineState {
                    port: id,
                    listen: c.listen.saturating_add(me),
                    line,
                    copy_dscp: l.copy_dscp,
                    counted: DatagramStats::default(),
                    peers: Vec::new(),
                    burst: l.burst,
                    last_sent: Instant::ZERO,
                });
                lines.len() - 1
            });
            let needs_1280 = config.peers.iter().any(|p| p.port == id)
                || c.addresses.iter().any(|a| a.addr().is_ipv6());
            if needs_1280 && mtu < 1280 {
                return Err(RouterError::SmallMtu {
                    port: c.name.clone(),
                    mtu,
                });
            }
            states.push(PortState {
                mac: caps.mac,
                mtu,
                port,
                out: Vec::new(),
                waiting: 0,
                line,
                super_frames: caps.udp_gso,
            });
        }
        let own = config.private_key.public();
        let mut responder = Responder::new(config.private_key.clone()).with_boot_id(seed.boot_id);
        let links = config.peers.len().max(1) as u64;
        let mut places = Vec::new();
        for (i, p) in config.peers.iter().enumerate() {
            let id = PeerId(u16::try_from(i).unwrap_or(u16::MAX));
            responder.allow(p.public_key, None);
            let state = states.get(usize::from(p.port.0));
            let at = state.and_then(|s| s.line).unwrap_or(0);
            let line = config.port(p.port).and_then(|c| c.line);
            let (Some(line), Some(place)) = (line, lines.get_mut(at)) else {
                places.push((usize::MAX, 0));
                continue;
            };
            let v6 = config
                .port(p.port)
                .is_some_and(|c| c.addresses.iter().any(|a| a.addr().is_ipv6()));
            // Until a peer that comes to us has come, the larger of the headers that may be needed.
            let remote = p.endpoint.map_or(outer::any(v6), |e| e.ip());
            let link = LinkConfig {
                even_flows: own < p.public_key,
                boot_id: seed.boot_id,
                port_mtu: state.map_or(1280, |s| s.mtu),
                line_up: line.up,
                line_down: line.down,
                link_credit: ChunkPool::promise(config.memory.0) / links,
                packet_overhead: outer::packet_overhead(&remote),
                frame_overhead: frame_overhead(&line),
            };
            let endpoint = p
                .endpoint
                .map(|e| SocketAddr::new(e.ip(), e.port().saturating_add(me)));
            let mut peer = Peer::new(now, id, p.public_key, own, endpoint, link);
            if let Some(crew) = &crew {
                peer.link.set_workers(workers, crew.shared.key());
            }
            if let Some(target) = line.auto {
                peer.link.estimate_capacity(now, target);
            }
            place.peers.push(peer);
            places.push((at, place.peers.len() - 1));
        }
        let interfaces: Vec<Interface> = states
            .iter()
            .zip(&config.ports)
            .map(|(s, c)| Interface {
                mac: s.mac,
                addresses: c.addresses.clone(),
                // One worker speaks for the router.
                advertise: (c.advertise && me == 0).then_some(s.mtu),
            })
            .collect();
        let fib = Fib::new(&config.ports, &config.peers, &config.routes);
        let in_the_clear: Vec<StaticRoute> = config
            .routes
            .iter()
            .filter(|r| matches!(r.via, Via::Gateway { .. }))
            .copied()
            .collect();
        let plain_fib = Fib::new(&config.ports, &[], &in_the_clear);
        let fastest = lines.iter().map(|l| l.line.capacity()).max();
        let fastest = BitRate(fastest.unwrap_or(BitRate(0)).0 / u64::from(workers));
        let mut router = Self {
            pool: ChunkPool::new(config.memory.0),
            gate: Gate::new(now, (seed.entropy)()),
            hints: RateLimit::new(now, HINTS_PER_SECOND, HINTS_PER_SECOND),
            counters: Counters::new(config.ports.len(), config.peers.len()),
            resets: RateLimit::new(now, RESETS_PER_SECOND, RESETS_PER_SECOND),
            half_open: HalfOpen::new(now, fastest),
            reassembly: Reassembly::default(),
            draining: None,
            config,
            seed,
            started: now,
            ports: states,
            lines,
            places,
            fib,
            plain_fib,
            manners: manner::Manners::default(),
            flow_numbers: datagram::FlowNumbers::new(flow_secret),
            ways: Vec::new(),
            outer: Ecn::NotEct,
            neighbours: Neighbours::new(interfaces),
            icmp: Icmp::default(),
            responder,
            flows: FlowTable::default(),
            dirty: Vec::new(),
            blocked: Vec::new(),
            retry_blocked: now,
            waited: Histogram::new(),
            inbox: Vec::new(),
            batch: pipeline::Batch::default(),
            laps: Laps::default(),
            scratch: Vec::new(),
            inner: Vec::new(),
            stats: Tallies::default(),
            troubles: Troubles::default(),
            crew: crew.map(Box::new),
            claims: share::Claims::default(),
            steered_by: None,
        };
        let announced = if me == 0 { router.ports.len() } else { 0 };
        for i in 0..announced {
            router
                .neighbours
                .announce(now, PortId(u16::try_from(i).unwrap_or(u16::MAX)));
        }
        Ok(router)
    }

    /// Tells these among its alarms.
    pub fn tell_troubles(&mut self, troubles: Troubles) {
        self.troubles = troubles;
    }

    /// Takes what has arrived, lets time pass, and sends what may leave. Returns
    /// whether to be called again at once.
    pub fn poll(&mut self, now: Instant) -> bool {
        let turn = self.turn(now, |_| true);
        turn.packets > 0 || turn.again
    }

    /// The same, but takes only what has arrived at the ports that `listen` names by their place.
    pub fn turn(&mut self, now: Instant, listen: impl Fn(usize) -> bool) -> Turn {
        let mut turn = Turn::default();
        self.laps.start();
        for i in 0..self.ports.len() {
            if !listen(i) {
                continue;
            }
            let mut inbox = core::mem::take(&mut self.inbox);
            if let Some(p) = self.ports.get_mut(i) {
                p.port.rx(&mut inbox, BATCH);
            }
            turn.packets += inbox.iter().map(on_the_wire).sum::<usize>();
            self.laps.end(Lap::Rx);
            let port = PortId(u16::try_from(i).unwrap_or(u16::MAX));
            self.push(now, port, &mut inbox);
            self.inbox = inbox;
        }
        turn.packets += usize::from(self.take_handed(now));
        self.timers(now);
        self.count_queue_drops();
        self.take_link_events(now);
        self.pump_dirty(now);
        let mut late = false;
        for p in self.lines.iter_mut().flat_map(|l| &mut l.peers) {
            late |= p.link.took_long();
        }
        if late {
            self.flush();
            turn.again = true;
            return turn;
        }
        self.take_shares(now, Moment::Before);
        self.laps.end(Lap::Flows);
        self.pull(now);
        self.take_shares(now, Moment::Behind);
        self.laps.end(Lap::Pull);
        // What was pulled made room: the hosts' next bytes are read before the next wake-up.
        self.take_link_events(now);
        self.pump_dirty(now);
        self.laps.end(Lap::Flows);
        turn.scarce = host_memory::is_scarce(&self.pool);
        self.flush();
        self.laps.end(Lap::Tx);
        turn
    }

    fn timers(&mut self, now: Instant) {
        self.neighbours.handle_timeout(now);
        self.neighbour_events(now);
        self.session_timers(now);
        for l in &mut self.lines {
            for p in &mut l.peers {
                p.link.handle_timeout(now, &mut self.pool);
            }
        }
        self.drain_timers(now);
        self.open_waiting(now);
        self.expire_fragments(now);
        while let Some(index) = self.flows.pop_due(now) {
            self.mark(index);
        }
        if now >= self.retry_blocked && !self.blocked.is_empty() {
            self.retry_blocked = now + Duration::from_millis(20);
            for index in core::mem::take(&mut self.blocked) {
                self.mark(index);
            }
        }
    }

    /// When [`poll`](Self::poll) has something to do at the latest, if nothing arrives before.
    pub fn next_wake(&mut self, now: Instant) -> Instant {
        let mut at = now + Duration::from_millis(500);
        for l in &mut self.lines {
            let ready = l.line.poll_timeout(now, &l.peers);
            at = at.min(ready.max(l.last_sent + l.burst));
        }
        at = at.min(self.session_due(now));
        at = at.min(self.half_open.due(now).unwrap_or(at));
        at = at.min(self.drain_due().unwrap_or(at));
        at = at.min(self.reassembly.due().unwrap_or(at));
        at = at.min(self.neighbours.poll_timeout().unwrap_or(at));
        at = at.min(self.flows.next_timer().unwrap_or(at));
        at = at.min(self.shares_due().unwrap_or(at));
        if !self.blocked.is_empty() {
            at = at.min(self.retry_blocked);
        }
        at
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        let &(line, place) = self.places.get(usize::from(id.0))?;
        self.lines.get(line)?.peers.get(place)
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        let &(line, place) = self.places.get(usize::from(id.0))?;
        self.lines.get_mut(line)?.peers.get_mut(place)
    }

    /// The router's address on `port`, as a source towards `neighbour`.
    fn address(&self, port: PortId, neighbour: IpAddr) -> IpAddr {
        let on_port = self.config.port(port);
        // A port without an address of that family speaks from another port's.
        on_port
            .into_iter()
            .chain(&self.config.ports)
            .find_map(|p| p.address_towards(neighbour))
            .unwrap_or(outer::any(neighbour.is_ipv6()))
    }

    /// Bytes in use of the memory budget.
    pub fn memory(&self) -> Bytes {
        Bytes(self.pool.used_bytes())
    }
    /// Bytes that the flows' connections to their hosts hold.
    pub fn host_buffers(&self) -> Bytes {
        Bytes(self.pool.host_bytes())
    }
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }
    /// Cycles that the stages have taken, measured from the first call on.
    pub fn laps(&mut self) -> Laps {
        self.laps.measure()
    }
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
    /// Descriptors to wait on for arriving packets.
    pub fn poll_fds(&self) -> Vec<std::os::fd::RawFd> {
        self.ports.iter().filter_map(|p| p.port.poll_fd()).collect()
    }
}
