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
mod beside;
mod commands;
mod control;
mod credit;
mod datagram;
mod direct;
mod heard;
mod input;
mod middle;
mod output;
mod path;
mod recovery;
mod types;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hashbrown::HashMap;
use mef_packet::wire::ecn::Ecn;
use mef_packet::{BitRate, Bytes, Instant};

use crate::aqm::FlowQueues;
use crate::codec::{Hello, Setup, INNER_HEADER, STREAM_HEADER};
use crate::guard::CapacityGuard;
use crate::loss::LossEstimator;
use crate::pmtu::PathMtu;
use crate::ranges::RangeSet;
use crate::received::ReceivedLedger;
use crate::recv_stream::RecvStream;
use crate::rtt::Rtt;
use crate::send_stream::{End, SendStream};
use crate::sent::{Fate, SentLedger};
use control::ControlQueue;

pub use datagram::{DatagramFlow, DatagramStats, MAX_DATAGRAM};
use datagram::{Outgoing, Reassembly};
pub use direct::FRONT;
pub use types::{
    DatagramError, Event, FlowView, LinkConfig, LinkStats, Opening, Packed, PacketError, SendKey,
};

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
    /// Flows of which a stretch is torn, by when it is looked at.
    torn: middle::Torn,
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
            torn: middle::Torn::default(),
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
        let known = self.known_limit();
        self.estimated_rate().map_or(known, |rate| rate.min(known))
    }
    /// The same without what the link found its line to carry.
    pub(crate) fn known_limit(&self) -> BitRate {
        let down = match self.narrower_downlink() {
            // Other workers use the rest.
            Some(down) => down.scale(self.share),
            None => self.config.line_up,
        };
        self.guard.rate().min(down)
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
    /// Stream bytes in one full packet where tails are encoded. Even, because the erasure code works on
    /// 16-bit words.
    pub fn payload_size(&self) -> usize {
        self.largest_payload() & !1
    }
    /// The most that a packet has room for. Where Ethernet's 1500 bytes are IPv4, what is encrypted
    /// are whole blocks of AES then, which takes a seventh less time than a byte less.
    fn largest_payload(&self) -> usize {
        let around = usize::from(self.config.packet_overhead) + INNER_HEADER + STREAM_HEADER;
        usize::from(self.pmtu.current())
            .saturating_sub(around)
            .max(64)
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
}

/// Scheduler weight: thousandths, 10 to 1,000,000.
fn weight_of(w: f32) -> u32 {
    (w.clamp(0.01, 1000.0) * 1000.0) as u32
}
