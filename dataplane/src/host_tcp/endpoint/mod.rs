//! The router's own TCP endpoint (RFC 9293), made for hosts at the end of any
//! access network: a LAN where 64 KiB cross in one piece, or a radio that delays
//! and loses.
//!
//! ```text
//!              segment in                                        read / write / finish / abort
//!                 |                                                         |
//!   wire.rs --> input.rs --> receive.rs (window, gaps, SACK) -- bytes.rs ---'
//!                     '----> send.rs (RACK-TLP, timers) ------- bytes.rs
//!                             |- sent.rs     what is with the host
//!                             |- rate.rs, rtt.rs   what the path does
//!                             '- control.rs  how much may be on its way
//!   wire.rs <-- output.rs <--'
//!
//!   Listen -- SYN --> SynReceived --ACK--.            both FINs
//!   (passive)                            v            acknowledged
//!                                      Open -----------------------> TimeWait (a record answers)
//!   SynSent ---------- SYN-ACK ----------^   RST, time-out, abort
//!   (active)                                 '--------------------> Closed
//! ```
//!
//! Open covers RFC 9293's ESTABLISHED to LAST-ACK: the directions end
//! independently, each with the FIN of its [`send`] or [`receive`] half.
//!
//! Options: MSS, window scale and time-stamps (RFC 7323, with PAWS), SACK (RFC
//! 2018) with duplicates (RFC 2883). Multipath TCP and fast open are ignored,
//! data on a SYN is not acknowledged. The urgent pointer is ignored: its data
//! stays in line (RFC 6093). A crossing SYN (simultaneous open) is not answered.
//! Acknowledgements are not delayed; a batch of segments costs one.
//!
//! An idle connection holds no buffers; see [`HostTcp::memory`].

mod bytes;
mod control;
mod input;
mod keep_alive;
mod memory;
mod output;
mod pardon;
mod rate;
mod receive;
mod rtt;
mod send;
mod sent;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mef_packet::Instant;

use self::receive::Receiver;
use self::send::Sender;
use super::{
    wire, End, HostState, HostTcp, HostTcpConfig, HostTcpError, Role, SegmentError, SegmentMeta,
    TimeWait,
};

/// Segment size of a host that announces none (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;
const BUFFER_RANGE: (usize, usize) = (4 << 10, 64 << 20);
/// Answers (resets, those of the TIME-WAIT record) kept until polled; the oldest go first.
const MAX_REPLIES: usize = 64;
/// After so long without anything to do, memory kept for reuse is given back.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Listen,
    SynSent,
    SynReceived,
    Open,
    TimeWait,
    Closed,
}

/// Our SYN or SYN-ACK.
#[derive(Clone, Copy, Debug)]
struct Syn {
    first: Option<Instant>,
    sent: u32,
    due: Instant,
}

/// Time-stamps (RFC 7323).
#[derive(Clone, Copy, Debug)]
struct Timestamps {
    /// The host's, to be echoed, and since when it is known.
    recent: u32,
    recent_at: Instant,
}

/// A connection to one local host.
#[derive(Debug)]
pub struct Endpoint {
    local: SocketAddr,
    remote: SocketAddr,
    timeout: Option<Duration>,
    /// What our SYN announces.
    local_mss: u16,
    remote_mss: u16,
    phase: Phase,
    /// The latest time seen.
    clock: Instant,

    tx: Sender,
    rx: Receiver,
    iss: u32,
    irs: Option<u32>,
    syn: Syn,
    /// Shift of the windows that the host announces.
    remote_scale: Option<u8>,
    /// In use, once the handshake is over.
    timestamps: Option<Timestamps>,
    /// Our time-stamps are milliseconds plus this.
    timestamp_offset: u32,
    /// Sequence and acknowledgement number of the segment that last set the host's window.
    window_from: (u32, u32),
    last_ack_sent: u32,

    /// Acknowledgements to be sent; more than one only to hosts without SACK.
    acks: u32,
    challenged: Option<Instant>,
    answered: Option<Instant>,
    replies: VecDeque<Vec<u8>>,
    reset_due: bool,

    established: bool,
    end: Option<End>,
    time_wait: Option<TimeWait>,
    /// When something was sent that the host has to answer; nothing has come from it since.
    silent_since: Option<Instant>,
    /// When the host was last heard, and what asks whether it is there.
    heard: Instant,
    probing: Option<keep_alive::Probing>,
    /// Something may be to be sent.
    dirty: bool,
    idle_at: Option<Instant>,
}

fn check_end(e: SocketAddr) -> Result<SocketAddr, HostTcpError> {
    let broadcast = matches!(e.ip(), IpAddr::V4(a) if a.is_broadcast());
    if e.port() == 0 || e.ip().is_unspecified() || e.ip().is_multicast() || broadcast {
        return Err(HostTcpError::Unaddressable(e));
    }
    Ok(e)
}

impl Endpoint {
    /// A connection that has sent and heard nothing yet. In [`Role::Passive`] it waits for the
    /// host's SYN; in [`Role::Active`] the next [`poll_transmit`](HostTcp::poll_transmit)
    /// yields the SYN.
    ///
    /// # Errors
    /// Where the ends are no addresses of hosts, not of one family, or the MTU is too small.
    pub fn new(now: Instant, role: Role, config: &HostTcpConfig) -> Result<Self, HostTcpError> {
        let local = check_end(role.local())?;
        let remote = check_end(role.remote())?;
        if local.is_ipv4() != remote.is_ipv4() {
            return Err(HostTcpError::Unaddressable(local));
        }
        if config.local_mtu < 576 {
            return Err(HostTcpError::Mtu(config.local_mtu));
        }
        let headers = wire::ip_header_len(remote.ip()) + wire::TCP_HEADER;
        let local_mss = config.local_mtu - headers as u16;
        // RFC 6528: a secret of the caller's, the connection, and a clock of 4 us.
        let mut hasher = DefaultHasher::new();
        (config.isn_seed, local, remote).hash(&mut hasher);
        let secret = hasher.finish();
        let clamp = |n: usize| n.clamp(BUFFER_RANGE.0, BUFFER_RANGE.1);
        Ok(Self {
            local,
            remote,
            timeout: config.timeout,
            local_mss,
            remote_mss: DEFAULT_MSS,
            phase: match role {
                Role::Passive { .. } => Phase::Listen,
                Role::Active { .. } => Phase::SynSent,
            },
            clock: now,
            tx: Sender::new(now, DEFAULT_MSS, clamp(config.tx_buffer)),
            rx: Receiver::new(now, clamp(config.rx_buffer), config.pardon),
            iss: (secret as u32).wrapping_add((now.as_micros() / 4) as u32),
            irs: None,
            syn: Syn {
                first: None,
                sent: 0,
                due: now,
            },
            remote_scale: None,
            timestamps: None,
            timestamp_offset: (secret >> 32) as u32,
            window_from: (0, 0),
            last_ack_sent: 0,
            acks: 0,
            challenged: None,
            answered: None,
            replies: VecDeque::new(),
            reset_due: false,
            established: false,
            end: None,
            time_wait: None,
            silent_since: None,
            heard: now,
            probing: None,
            dirty: true,
            idle_at: None,
        })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Our sequence number of a stream offset.
    fn seq(&self, offset: u64) -> u32 {
        self.iss.wrapping_add(1).wrapping_add(offset as u32)
    }
    /// The sequence number expected from the host next.
    fn expected(&self) -> Option<u32> {
        Some(
            self.irs?
                .wrapping_add(1)
                .wrapping_add(self.rx.acknowledged() as u32),
        )
    }
    /// The host has heard of this connection, or we of the host.
    fn known_to_host(&self) -> bool {
        self.irs.is_some() || self.syn.sent > 0
    }

    fn timestamp(&self, at: Instant) -> u32 {
        (at.as_millis() as u32).wrapping_add(self.timestamp_offset)
    }

    fn reply(&mut self, packet: Vec<u8>) {
        if self.replies.len() >= MAX_REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back(packet);
    }

    /// The connection ends here and now.
    fn close(&mut self, why: End) {
        self.end = Some(why);
        self.phase = Phase::Closed;
        self.acks = 0;
        self.tx.clear();
        self.silent_since = None;
    }

    fn give_up(&mut self, why: End) {
        self.reset_due = self.known_to_host();
        // The reset's place in the stream is needed until it is sent.
        self.close(why);
        self.dirty = true;
    }

    /// Whether the host owes an acknowledgement.
    fn waits_for_host(&self) -> bool {
        match self.phase {
            Phase::SynSent | Phase::SynReceived => true,
            Phase::Open => self.tx.waits(),
            _ => false,
        }
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.silent_since? + self.timeout?)
    }
}

impl Endpoint {
    /// Losses of the host's that it was not told of.
    pub fn losses_pardoned(&self) -> u64 {
        self.rx.pardon.total()
    }
}

impl HostTcp for Endpoint {
    fn handle_segment(&mut self, now: Instant, ip_packet: &[u8]) -> Result<(), SegmentError> {
        self.handle_segment_into(now, ip_packet, &mut |_| 0)
    }

    fn handle_segment_into(
        &mut self,
        now: Instant,
        ip_packet: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<(), SegmentError> {
        self.clock = self.clock.max(now);
        self.dirty = true;
        self.input(ip_packet, sink)
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        let before = out.len();
        let meta = self.append_transmit(now, out)?;
        out.drain(..before);
        Some(meta)
    }

    fn append_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        self.clock = self.clock.max(now);
        self.output(out)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        if !self.replies.is_empty() || self.reset_due {
            return Some(self.clock);
        }
        let own = match self.phase {
            Phase::Listen | Phase::TimeWait | Phase::Closed => return None,
            _ if self.dirty => Some(self.clock),
            Phase::SynSent | Phase::SynReceived => Some(self.syn.due),
            Phase::Open => self.tx.timeout(),
        };
        let probe = self.probing.map(|p| p.due);
        [own, probe, self.deadline(), self.idle_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn readable(&self) -> usize {
        self.rx.readable()
    }

    fn read<F: FnOnce(&[u8]) -> usize>(&mut self, f: F) -> usize {
        let bytes = self.rx.front();
        if bytes.is_empty() {
            return 0;
        }
        let n = f(bytes).min(bytes.len());
        let rtt = self.tx.rtt.smoothed().unwrap_or_default();
        self.rx.taken(self.clock, n, rtt);
        self.dirty |= n > 0;
        n
    }

    fn writable(&self) -> usize {
        match self.phase {
            Phase::Open => self.tx.room(),
            _ => 0,
        }
    }

    fn write(&mut self, data: &[u8]) -> usize {
        if self.writable() == 0 {
            return 0;
        }
        let n = self.tx.write(data);
        self.dirty |= n > 0;
        n
    }

    fn unacknowledged(&self) -> usize {
        self.tx.queued()
    }

    fn finish(&mut self) {
        self.tx.finish();
        self.dirty = true;
    }

    fn abort(&mut self) {
        if self.end.is_none() && self.time_wait.is_none() {
            self.give_up(End::Aborted);
        }
    }

    fn state(&self) -> HostState {
        HostState {
            established: self.established,
            remote_finished: self.rx.finished() && self.readable() == 0,
            local_finished: self.tx.fin_acknowledged(),
            time_wait: self.time_wait.is_some(),
            end: self.end,
        }
    }

    fn remote_mss(&self) -> u16 {
        self.remote_mss
    }

    fn is_keep_alive(&self, ip_packet: &[u8]) -> bool {
        let (Some(s), Some(expected)) = (wire::parse_tcp(ip_packet), self.expected()) else {
            return false;
        };
        (s.src, s.dst) == (self.remote, self.local)
            && s.payload.len() <= 1
            && s.flags & (wire::SYN | wire::FIN | wire::RST) == 0
            && wire::seq_diff(s.seq, expected) == -1
            // A closed window is asked after in the same way (RFC 9293 §3.8.6.1), and that is answered.
            && self.rx.window() > 0
    }

    fn time_wait_record(&self) -> Option<TimeWait> {
        self.time_wait
    }

    fn memory(&self) -> usize {
        let replies: usize = self.replies.iter().map(Vec::capacity).sum();
        self.tx.memory() + self.rx.memory() + replies
    }
}

#[cfg(test)]
impl Endpoint {
    /// Before anything was sent.
    pub(super) fn set_initial_sequence(&mut self, iss: u32) {
        self.iss = iss;
    }
}
