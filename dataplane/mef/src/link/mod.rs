//! One link: an adjacency of two MEF routers, as a state machine without I/O.
//!
//! The router feeds decrypted packets to [`Link::handle_packet`], writes host
//! bytes with [`Link::write`], and asks for packets in two ways: control when it
//! is due ([`Link::poll_control`]) and a flow's next packet when the line's
//! scheduler picks that flow ([`Link::poll_flow`]). Packets are packed only then,
//! so nothing waits in a packed state.
//!
//! Methods by kind: commands (`open`, `accept`, `refuse`, `write`, `finish`,
//! `reset`, `consume`, `release`, `send_datagram`, `ask_heard`, `say_heard`, `tell_gone`), inputs (`session_started`, `session_renewed`, `path_changed`,
//! `handle_packet`, `handle_timeout`), outputs (`poll_event`, `poll_activated`,
//! `poll_control`, `poll_flow`, `poll_timeout`), getters (the rest). After any
//! command or input poll all outputs.
//!
//! ```text
//!  opener                              acceptor
//!  open ----------- SETUP (twice) ---> Event::Setup
//!  Event::Flow <--- OPENED ----------- accept
//!   or refused <--- REFUSED ---------- refuse
//!  write/consume <-- DATA, WINDOW ---> write/consume
//!  finish -- FIN(offset) -->           the flow is forgotten when both halves
//!  reset --- RESET(offset) -->         ended, everything was acknowledged
//!                                       and the router has released it
//! ```

mod auto;
mod control;
mod credit;
mod datagram;
mod direct;
mod heard;
mod input;
mod output;
mod path;
mod recovery;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use hashbrown::HashMap;
use mef_packet::wire::ecn::Ecn;
use mef_packet::{BitRate, Bytes, Instant};

use crate::aqm::FlowQueues;
use crate::chunks::{ChunkPool, Use};
use crate::classes::Class;
use crate::codec::{FrameError, Hello, Setup, DATA_OVERHEAD, INNER_HEADER, RESET_ECHO};
use crate::guard::CapacityGuard;
use crate::loss::LossEstimator;
use crate::pmtu::PathMtu;
use crate::ranges::RangeSet;
use crate::received::ReceivedLedger;
use crate::recv_stream::{RecvStream, StreamError};
use crate::rtt::Rtt;
use crate::send_stream::{End, SendStream};
use crate::sent::{Fate, SentLedger};
use control::ControlQueue;

pub use datagram::{DatagramFlow, DatagramStats, MAX_DATAGRAM};
use datagram::{Outgoing, Reassembly};
pub use direct::FRONT;

/// What a link is told when it is made.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Exactly one end has this set: it numbers its flows evenly, the other oddly.
    pub even_flows: bool,
    pub boot_id: u64,
    /// Largest IP packet of the port.
    pub port_mtu: u16,
    pub line_up: BitRate,
    pub line_down: BitRate,
    /// Stream bytes this end will hold for all flows of the link.
    pub link_credit: u64,
    /// IP, UDP and crypto bytes around the inner packet.
    pub packet_overhead: u16,
    /// Bytes that the line carries beside the IP packet.
    pub frame_overhead: u16,
}

/// A thing with packets to send, as the line's scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SendKey {
    Stream(u32),
    Datagram(u32),
}

/// What the router is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer has said HELLO: flows may be opened.
    Up,
    /// The peer has another boot id than before: every flow is gone.
    PeerRestarted {
        flows: Vec<u32>,
    },
    /// The peer wants a flow to one of our hosts.
    Setup {
        flow: u32,
        setup: Setup,
    },
    /// Something about a flow changed: opened, refused, readable, room to write, ended.
    Flow(u32),
    /// A datagram for a host on this side.
    Datagram(Vec<u8>),
    /// The peer's host wants to know whether ours is alive, or ours was last heard so long ago.
    AliveAsked {
        flow: u32,
    },
    Heard {
        flow: u32,
        ago: Duration,
    },
    /// A connection from before this router was restarted, whose host may still believe in it.
    Gone {
        host: SocketAddr,
        far: SocketAddr,
    },
    /// Nothing was acknowledged for so long that only probes are sent.
    Silent,
    /// Acknowledgements are back.
    Resumed,
    PathMtu(u16),
    /// The peer answered a challenge with this token.
    PathResponse(u64),
}

/// Why a packet was refused; it counts as not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("an acknowledgement of packets that were never sent")]
    AckOfUnsent,
    #[error("a flow number that the peer may not use")]
    BadFlow,
    #[error("frames of flows before the HELLO of this session")]
    BeforeHello,
}

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    #[error("the flow's queue is full")]
    QueueFull,
    #[error("larger than a link takes")]
    TooBig,
}

/// A packet that [`Link::poll_control`] or [`Link::poll_flow`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the inner packet appended to the caller's buffer.
    pub inner_len: usize,
    /// Bytes that the line is charged.
    pub line_bytes: u64,
    /// How long a datagram waited in its queue.
    pub waited: Option<Duration>,
    /// For the packet around: that of the datagram in it, or the DS field of a split flow and Not-ECT (its
    /// ECN ends at the router that answers its host); 0 for control.
    pub traffic_class: u8,
    /// The flow's next packet belongs behind this one, before anybody else's: the other half of a datagram.
    pub more: bool,
}

/// How far the opening of a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Pending,
    Open,
    Refused(u8),
}

/// What the router can see of a flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    pub opening: Opening,
    pub readable: u64,
    /// The peer's half ended behind what is readable.
    pub recv_end: Option<End>,
    /// All of the peer's bytes were consumed.
    pub recv_finished: bool,
    pub unsent: u64,
    pub held: u64,
    pub retransmitted: u64,
    pub recovered: u64,
    /// Stream bytes sent at least once, and read by the router.
    pub sent: u64,
    pub read: u64,
    /// How far the peer lets this end send, and this end the peer.
    pub credit: u64,
    pub granted: u64,
}

#[derive(Debug)]
struct Flow {
    setup: Option<Setup>,
    weight: u32,
    opening: Opening,
    send: SendStream,
    recv: RecvStream,
    /// When the current shortage began in which every span waits for word of its repair.
    stalled_since: Option<Instant>,
    /// The router no longer reads or writes: what arrives is discarded.
    abandoned: bool,
    /// The router has let go of the flow: it may be forgotten.
    released: bool,
    /// Bytes of this flow already counted as consumed for the link's credit.
    counted: u64,
    /// What the far host has read, and how far ahead of it its router lets the flow be.
    peer_read: u64,
    vouched: u64,
    /// The far host is known to read.
    proven: bool,
    reader: credit::Reader,
    told: bool,
    /// When our host was last heard, as the peer was told.
    heard: Option<Instant>,
}

impl Flow {
    /// Nothing more is to come: all was read, or nobody reads on and the peer's reset drops the rest.
    fn is_received(&self) -> bool {
        self.recv.is_finished() || (self.abandoned && self.recv.reset().is_some())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Control {
    Hello,
    Setup(u32),
    Opened(u32),
    Refused(u32),
    End(u32),
    Window(u32),
    AskHeard(u32),
    Heard(u32),
    Gone(u32),
}

/// Counters of a link since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkStats {
    pub packets_sent: u64,
    /// As the line counts them.
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub bytes_received: u64,
    pub packets_lost: u64,
    pub packets_spurious: u64,
    pub repairs_sent: u64,
    pub bytes_retransmitted: u64,
    pub bytes_recovered: u64,
    pub datagrams: DatagramStats,
}

pub struct Link {
    config: LinkConfig,
    /// Workers of this end, and their hash key.
    workers: (u16, u64),
    /// Of the peer's downlink.
    share: f64,
    peer: Option<Hello>,
    in_session: bool,
    /// The peer's HELLO has come in this session: it is known to be the one that the flows belong to,
    /// and the path's MTU is being or was probed.
    probing: bool,
    flows: HashMap<u32, Flow>,
    next_flow: u32,
    /// Halves of the flow numbers the peer has used.
    seen: RangeSet,
    rtt: Rtt,
    sent: SentLedger,
    received: ReceivedLedger,
    loss: LossEstimator,
    pmtu: PathMtu,
    guard: CapacityGuard,
    /// In the guard's place where nobody knows the capacity.
    estimate: Option<auto::Estimate>,
    control: ControlQueue,
    events: VecDeque<Event>,
    activated: Vec<(SendKey, u32)>,
    /// Memory of datagrams that are on their way.
    buffers: Vec<Vec<u8>>,
    datagrams: FlowQueues<Vec<u8>>,
    /// The second half of the datagram that was sent last.
    half: Option<Outgoing>,
    /// By flow, what is left of its last packet for its next turn.
    rests: HashMap<u32, Outgoing>,
    /// ECN bits of the packet whose frames are being read.
    outer: Ecn,
    reassembly: HashMap<u32, Reassembly>,
    next_fragment: u32,
    /// Flows whose queue ran empty and whose tail waits for its span.
    quiet: BTreeSet<u32>,
    /// Encoding or decoding took about as long as the line's credit lasts since this was last asked.
    took_long: bool,
    /// Flows with open spans.
    spanned: BTreeSet<u32>,
    sent_bytes: u64,
    /// New stream bytes sent on the link, and how many may be.
    stream_sent: u64,
    stream_credit: u64,
    /// Stream bytes taken from the link by hosts, and the credit last announced.
    consumed: u64,
    announced: u64,
    /// Stream bytes that have arrived, gaps below them included.
    arrived: u64,
    /// What every HELLO of this end grants to each new flow: both ends must start from one figure.
    promised: u64,
    /// Connections that ended with the peer's life before, until it has been told.
    gone: BTreeMap<u32, heard::Gone>,
    next_gone: u32,
    blocked_on_link: bool,
    /// Departure of the newest packet above the base MTU that was acknowledged.
    newest_large_acked: Instant,
    last_ack: Instant,
    last_elicit: Instant,
    /// Since when something has been asked and nothing heard.
    unanswered: Option<Instant>,
    last_ping: Instant,
    /// A new session waits for the peer to see its first packet.
    ping_now: bool,
    /// Tokens of challenges that are to be answered.
    answers: VecDeque<u64>,
    silent: bool,
    silent_since: Instant,
    next_sweep: Instant,
    scratch: Vec<u8>,
    fates: Vec<Fate>,
    stats: LinkStats,
}

/// Most flows of one link.
const MAX_FLOWS: usize = 100_000;
/// Stream bytes that stay readable for repair beyond what the round trip asks for.
const HISTORY_MARGIN: Bytes = Bytes(2 << 20);
const SWEEP: Duration = Duration::from_millis(200);
/// Between questions whether the peer is there: with flows, whose hosts are to hear soon that it was
/// restarted, and without, where address translators on the way want little and bytes may cost.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_UNUSED: Duration = Duration::from_secs(5);

impl Link {
    pub fn new(now: Instant, config: LinkConfig) -> Self {
        let mut link = Self {
            config,
            workers: (1, 0),
            share: 1.0,
            peer: None,
            in_session: false,
            probing: false,
            flows: HashMap::new(),
            next_flow: if config.even_flows { 2 } else { 3 },
            seen: RangeSet::new(),
            rtt: Rtt::default(),
            sent: SentLedger::default(),
            received: ReceivedLedger::default(),
            loss: LossEstimator::new(),
            pmtu: PathMtu::new(),
            guard: CapacityGuard::new(config.line_up),
            estimate: None,
            control: ControlQueue::default(),
            events: VecDeque::new(),
            activated: Vec::new(),
            buffers: Vec::new(),
            datagrams: FlowQueues::default(),
            half: None,
            rests: HashMap::new(),
            outer: Ecn::NotEct,
            reassembly: HashMap::new(),
            next_fragment: 0,
            quiet: BTreeSet::new(),
            took_long: false,
            spanned: BTreeSet::new(),
            sent_bytes: 0,
            stream_sent: 0,
            stream_credit: 0,
            consumed: 0,
            announced: config.link_credit,
            arrived: 0,
            promised: 0,
            gone: BTreeMap::new(),
            next_gone: 0,
            blocked_on_link: false,
            newest_large_acked: Instant::ZERO,
            last_ack: now,
            last_elicit: now,
            unanswered: None,
            last_ping: now,
            ping_now: false,
            answers: VecDeque::new(),
            silent: false,
            silent_since: now,
            next_sweep: now + SWEEP,
            scratch: Vec::new(),
            fates: Vec::new(),
            stats: LinkStats::default(),
        };
        link.datagrams.set_limits(link.datagram_limits());
        link
    }

    // ---- getters

    /// Whether the peer's HELLO has come in this session.
    pub fn is_up(&self) -> bool {
        self.in_session && self.peer.is_some()
    }
    pub fn is_silent(&self) -> bool {
        self.silent
    }
    /// How long nothing was acknowledged, while silent.
    pub fn silent_for(&self, now: Instant) -> Duration {
        if self.silent {
            now.since(self.silent_since)
        } else {
            Duration::ZERO
        }
    }
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }
    pub fn loss(&self) -> f64 {
        self.loss.mean()
    }
    /// Largest IP packet that the path is known to carry.
    pub fn path_mtu(&self) -> u16 {
        self.pmtu.current()
    }
    /// Rate that the link may use: what the guard leaves of the configured capacity, or the peer's downlink.
    pub fn rate_limit(&self) -> BitRate {
        let down = match self.narrower_downlink() {
            // Other workers use the rest.
            Some(down) => down.scale(self.share),
            None => self.config.line_up,
        };
        let known = self.guard.rate().min(down);
        self.estimated_rate().map_or(known, |rate| rate.min(known))
    }
    /// The peer's downlink, where it is narrower than the line up.
    pub fn narrower_downlink(&self) -> Option<BitRate> {
        let down = self.peer?.line_down;
        (down < self.config.line_up).then_some(down)
    }
    pub fn guard(&self) -> &CapacityGuard {
        &self.guard
    }
    pub fn peer(&self) -> Option<&Hello> {
        self.peer.as_ref()
    }
    pub fn flow_count(&self) -> usize {
        self.flows.len()
    }
    pub fn stats(&self) -> LinkStats {
        self.stats
    }
    /// Flows with datagrams that wait, and the bytes of these.
    pub fn datagram_queues(&self) -> (usize, usize) {
        (self.datagrams.len(), self.datagrams.bytes())
    }
    /// Stream bytes of the link: sent and allowed to be sent; consumed here and announced to the peer.
    pub fn stream_credit(&self) -> [u64; 4] {
        [
            self.stream_sent,
            self.stream_credit,
            self.consumed,
            self.announced,
        ]
    }
    pub fn setup_of(&self, flow: u32) -> Option<&Setup> {
        self.flows.get(&flow)?.setup.as_ref()
    }
    pub fn view(&self, flow: u32) -> Option<FlowView> {
        let f = self.flows.get(&flow)?;
        let recv_end = f
            .recv
            .end()
            .map(|_| f.recv.reset().map_or(End::Finished, End::Reset));
        Some(FlowView {
            opening: f.opening,
            readable: f.recv.readable(),
            recv_end,
            recv_finished: f.recv.is_finished(),
            unsent: f.send.unsent(),
            held: f.send.held(),
            retransmitted: f.send.retransmitted(),
            recovered: f.recv.recovered(),
            sent: f.send.sent(),
            read: f.recv.read_offset(),
            credit: f.send.credit(),
            granted: f.recv.granted(),
        })
    }
    /// What HELLO says of the workers of this end: their number, 1 unless told otherwise, and the key
    /// of the hash that divides flows among them.
    pub fn set_workers(&mut self, workers: u16, hash_key: u64) {
        self.workers = (workers, hash_key);
    }
    /// How much of the peer's downlink this link may use; other workers' links to it have the rest.
    pub fn set_share(&mut self, share: f64) {
        self.share = share;
    }
    /// What stands around an inner packet from now on, as [`LinkConfig::packet_overhead`]: the peer
    /// is reached over another IP version.
    pub fn set_packet_overhead(&mut self, bytes: u16) {
        self.config.packet_overhead = bytes;
    }
    /// Stream bytes in one full packet. Even, because the erasure code works on 16-bit words.
    pub fn payload_size(&self) -> usize {
        let around = usize::from(self.config.packet_overhead) + INNER_HEADER + DATA_OVERHEAD;
        usize::from(self.pmtu.current())
            .saturating_sub(around)
            .max(64)
            & !1
    }
    fn inner_limit(&self) -> usize {
        usize::from(
            self.pmtu
                .current()
                .saturating_sub(self.config.packet_overhead),
        )
    }
    fn flow_credit(&self) -> u64 {
        self.peer.map_or(0, |h| h.flow_credit)
    }
    /// Credit that this end grants each flow ahead of what its host reads: eight times what the
    /// line brings in a round trip (one lost packet in five takes seven to put in order), within
    /// three quarters of what the link may hold. It is no promise: the link's credit is.
    fn flow_window(&self) -> u64 {
        let rtt = self.rtt.smoothed().max(Duration::from_millis(20)) + Duration::from_millis(50);
        let bdp = self.config.line_down.bytes_in(rtt).0;
        (8 * bdp)
            .max(256 * 1024)
            .min(self.config.link_credit / 4 * 3)
    }

    // ---- commands

    /// Opens a flow to a host behind the peer; returns its number.
    pub fn open(&mut self, now: Instant, setup: Setup) -> Option<u32> {
        if !self.is_up() || self.flows.len() >= MAX_FLOWS {
            return None;
        }
        let id = self.next_flow;
        self.next_flow = self.next_flow.wrapping_add(2);
        let mut flow = self.make_flow(Some(setup));
        flow.opening = Opening::Pending;
        self.flows.insert(id, flow);
        self.control_twice(now, Control::Setup(id));
        Some(id)
    }

    fn make_flow(&self, setup: Option<Setup>) -> Flow {
        let mut recv = RecvStream::new(self.promised);
        recv.set_window(self.flow_window());
        Flow {
            weight: setup.map_or(1000, |s| weight_of(s.weight)),
            setup,
            opening: Opening::Pending,
            send: SendStream::new(self.flow_credit()),
            recv,
            stalled_since: None,
            abandoned: false,
            released: false,
            counted: 0,
            peer_read: 0,
            vouched: 0,
            proven: false,
            reader: credit::Reader::default(),
            told: false,
            heard: None,
        }
    }

    /// The host on this side has accepted the connection.
    pub fn accept(&mut self, now: Instant, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.opening = Opening::Open;
            self.control_twice(now, Control::Opened(flow));
        }
    }

    /// The host on this side refuses the connection, or cannot be reached; `code` says why.
    pub fn refuse(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32, code: u8) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.opening = Opening::Refused(code);
            self.stream_sent += f.send.discard(pool);
            f.send.reset(code & !RESET_ECHO);
            self.control_twice(now, Control::Refused(flow));
            self.control_twice(now, Control::End(flow));
            self.abandon(now, pool, flow);
        }
    }

    /// How many bytes the flow takes now: its queue towards the link is kept short enough to follow
    /// the rate, and within the memory budget.
    pub fn write_room(&self, pool: &ChunkPool, flow: u32) -> usize {
        let Some(f) = self.flows.get(&flow) else {
            return 0;
        };
        if f.send.ending() != End::Open || f.abandoned {
            return 0;
        }
        // 20 ms of the line ahead keeps every flow busy between two reads of its host.
        let ahead = self
            .uplink()
            .bytes_in(Duration::from_millis(20))
            .0
            .clamp(64 * 1024, 4 << 20);
        let room = self
            .may_wait(pool, f, ahead)
            .saturating_sub(f.send.unsent());
        if pool.room(Use::Sending) == 0 {
            return 0;
        }
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// Whether host bytes are still wanted, if not at once: neither half has been reset.
    pub fn takes_bytes(&self, flow: u32) -> bool {
        self.flows
            .get(&flow)
            .is_some_and(|f| f.send.ending() == End::Open && !f.abandoned)
    }

    /// Queues host bytes; returns how many were taken.
    pub fn write(&mut self, pool: &mut ChunkPool, flow: u32, data: &[u8]) -> usize {
        let Some(f) = self.flows.get_mut(&flow) else {
            return 0;
        };
        let n = f.send.write(pool, data);
        if n > 0 {
            self.activated.push((SendKey::Stream(flow), f.weight));
        }
        n
    }

    /// The host closed its half.
    pub fn finish(&mut self, now: Instant, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            if f.send.ending() == End::Open {
                f.send.finish();
                let weight = f.weight;
                self.activated.push((SendKey::Stream(flow), weight));
                self.control_twice(now, Control::End(flow));
            }
        }
    }

    /// The host reset the connection: the far host gets its bytes, then a reset. Nothing more is read.
    pub fn reset(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32, code: u8) {
        if let Some(f) = self.flows.get_mut(&flow) {
            let before = f.send.ending();
            f.send.reset(code & !RESET_ECHO);
            if f.send.ending() != before {
                self.control_twice(now, Control::End(flow));
            }
            self.abandon(now, pool, flow);
        }
    }

    /// From here on nobody reads the flow: what arrives is thrown away.
    fn abandon(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.abandoned = true;
            f.released = true;
        }
        self.drain_abandoned(now, pool, flow);
        self.reap(pool, flow);
    }

    fn drain_abandoned(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32) {
        let Some(f) = self.flows.get_mut(&flow).filter(|f| f.abandoned) else {
            return;
        };
        let n = usize::try_from(f.recv.readable()).unwrap_or(usize::MAX);
        f.recv.consume(now, n);
        f.recv.free(pool, now, Duration::ZERO);
        // Bytes that will never come count as consumed too, or the link's credit would leak.
        let total = match f.recv.end() {
            Some(end) if f.is_received() => end,
            _ => f.recv.read_offset(),
        };
        if f.recv.credit_due() {
            self.queue_control(Control::Window(flow));
        }
        self.count_consumed(flow, total);
    }

    fn count_consumed(&mut self, flow: u32, total: u64) {
        if let Some(f) = self.flows.get_mut(&flow) {
            let more = total.saturating_sub(f.counted);
            self.consumed = self.consumed.saturating_add(more);
            f.counted = f.counted.max(total);
        }
        let credit = self.config.link_credit;
        if self.consumed.saturating_add(credit) > self.announced.saturating_add(credit / 32) {
            self.queue_control(Control::Window(0));
        }
    }

    /// Bytes in order for the host, as far as they lie in one piece.
    pub fn peek(&self, flow: u32) -> &[u8] {
        self.flows.get(&flow).map_or(&[], |f| f.recv.peek())
    }
    /// The host took `n` of the bytes that [`peek`](Self::peek) showed.
    pub fn consume(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32, n: usize) {
        let keep = self.history_time(pool);
        let Some(f) = self.flows.get_mut(&flow) else {
            return;
        };
        f.recv.consume(now, n);
        f.recv.free(pool, now, keep);
        let total = f.recv.read_offset();
        self.note_read(now, flow, n as u64);
        self.count_consumed(flow, total);
        self.reap(pool, flow);
    }

    /// How long bytes that the host has read stay for the sake of repair.
    fn history_time(&self, pool: &ChunkPool) -> Duration {
        // Neither end sends repair on a short path.
        if pool.is_short() || !self.repairs() {
            return Duration::ZERO;
        }
        // On a fast line that would be more than a cache holds.
        let margin = self.config.line_down.time_for(HISTORY_MARGIN);
        let margin = margin.clamp(Duration::from_millis(2), Duration::from_millis(20));
        self.rtt.smoothed() * 5 / 4 + self.rtt.ack_delay() + margin
    }

    /// The router has no more use for the flow. It is forgotten once both halves ended and everything was acknowledged.
    pub fn release(&mut self, pool: &mut ChunkPool, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.released = true;
        }
        self.reap(pool, flow);
    }

    /// Forgets a released flow once both halves ended and everything was acknowledged.
    fn reap(&mut self, pool: &mut ChunkPool, flow: u32) {
        let done = self
            .flows
            .get(&flow)
            .is_some_and(|f| f.released && f.send.is_done() && f.is_received());
        if !done {
            return;
        }
        if let Some(mut f) = self.flows.remove(&flow) {
            f.send.release(pool);
            f.recv.release(pool);
            self.quiet.remove(&flow);
            self.spanned.remove(&flow);
        }
    }

    fn queue_control(&mut self, what: Control) {
        self.control.now(what);
    }
    /// Sends now and once more a moment later, so that one loss does not cost a round trip.
    fn control_twice(&mut self, now: Instant, what: Control) {
        self.control.now(what);
        self.control.at(now + Duration::from_millis(3), what);
    }
    /// Something waits to be said, beside acknowledgements.
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }
    fn tell(&mut self, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            if !f.told {
                f.told = true;
                self.events.push_back(Event::Flow(flow));
            }
        }
    }

    /// Whether `now` has become old since this was last asked, because a span was encoded or decoded:
    /// who paces by it would send the credit of that time twice.
    pub fn took_long(&mut self) -> bool {
        core::mem::take(&mut self.took_long)
    }

    /// The next thing the router should know.
    pub fn poll_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        if let Event::Flow(id) = event {
            if let Some(f) = self.flows.get_mut(&id) {
                f.told = false;
            }
        }
        Some(event)
    }
    /// A flow that has got something to send, with its weight in thousandths and its class, for the line's scheduler.
    pub fn poll_activated(&mut self) -> Option<(SendKey, u32, Class)> {
        let (key, weight) = self.activated.pop()?;
        let class = match key {
            SendKey::Stream(id) => self.flows.get(&id).and_then(|f| f.setup).map(|s| s.class),
            SendKey::Datagram(id) => self.datagrams.service(id).map(|(_, class)| class),
        };
        Some((key, weight, class.unwrap_or_default()))
    }
}

/// Scheduler weight: thousandths, 10 to 1,000,000.
fn weight_of(w: f32) -> u32 {
    (w.clamp(0.01, 1000.0) * 1000.0) as u32
}
