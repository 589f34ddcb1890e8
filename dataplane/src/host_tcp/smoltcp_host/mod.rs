//! [`HostTcp`] on smoltcp: one small interface and one socket per connection.
//!
//! smoltcp is told that the host takes segments of tens of kilobytes (its SYN
//! is rewritten on the way in) and that our MTU is 65535 (the MSS of our SYN
//! is rewritten on the way out); what it emits then crosses as super-segments
//! that the port or the kernel cuts to the host's real size.
//!
//! What it is not, and [`Endpoint`](super::Endpoint) is: its buffers and window
//! scale are fixed at creation, its retransmission timer starts at 1 s and never
//! goes below, it has no selective acknowledgement when it sends, no time-stamps, and no
//! congestion control.
//!
//! Around it this module keeps what smoltcp does not: sequence numbers for the
//! TIME-WAIT record and challenge acknowledgements (RFC 5961 §3.2, §4.2), the
//! edge of the window as the host was told it, why a connection ended, and a
//! timeout that spares idle connections.

mod device;
mod ingress;
pub(super) mod segment;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mef_packet::Instant;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, IpListenEndpoint};

use self::device::Wire;
use self::segment::{
    parse, parse_tcp, seq_diff, Header, Packet, SynOptions, ACK, FIN, IPV4_HEADER, RST, SYN,
    TCP_HEADER,
};
use super::{
    End, HostState, HostTcp, HostTcpConfig, HostTcpError, Role, SegmentError, SegmentMeta, TimeWait,
};

/// Segment size of a host that announces none (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;
/// Answers (acknowledgements of single segments, resets) kept until polled; the oldest go first.
const MAX_REPLIES: usize = 64;
/// Challenge acknowledgements at most this often (RFC 5961 §7).
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);
const BUFFER_RANGE: (usize, usize) = (4 << 10, 64 << 20);

/// A connection to one local host.
pub struct SmoltcpHost {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    local: SocketAddr,
    remote: SocketAddr,
    timeout: Option<Duration>,

    /// What our SYN announces.
    local_mss: u16,
    remote_mss: u16,
    /// What super-segments are cut to.
    send_mss: u16,

    /// Packets smoltcp or this module answered with, to go out before anything else.
    replies: VecDeque<Vec<u8>>,
    scratch: Vec<u8>,
    /// The latest time seen.
    clock: Instant,
    /// smoltcp may have something to send.
    dirty: bool,
    /// When smoltcp wants to be polled though nothing happened.
    wake: Option<Instant>,
    /// Since when the host has been silent while something waits for it; `None` if nothing does.
    silent_since: Option<Instant>,
    challenged: Option<Instant>,

    /// The host's initial sequence number.
    irs: Option<u32>,
    /// Bytes read by the caller, modulo 2^32.
    read: u32,
    /// Sequence number after the last one sent.
    snd_nxt: Option<u32>,
    /// The window of our SYN; it is never scaled (RFC 7323 §2.2).
    syn_window: u16,
    /// The shift of the windows we announce.
    window_shift: u8,
    /// Right edge of the window as the host was told it.
    window_edge: Option<u32>,

    established: bool,
    fin_received: bool,
    fin_acknowledged: bool,
    finish_requested: bool,
    end: Option<End>,
    /// Set when both FINs are through; from then on smoltcp only keeps unread bytes.
    time_wait: Option<TimeWait>,
    /// Nothing of smoltcp's is to go out any more.
    mute: bool,
}

fn smoltcp_time(t: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(t.as_micros()).unwrap_or(i64::MAX))
}

fn check_endpoint(e: SocketAddr) -> Result<SocketAddr, HostTcpError> {
    let a = e.ip();
    let broadcast = matches!(a, IpAddr::V4(a) if a.is_broadcast());
    if e.port() == 0 || a.is_unspecified() || a.is_multicast() || broadcast || a.is_ipv6() {
        return Err(HostTcpError::Unaddressable(e));
    }
    Ok(e)
}

fn endpoint(e: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(e.ip()), e.port())
}

impl SmoltcpHost {
    /// A connection that has sent and heard nothing yet. In [`Role::Passive`] it waits for the
    /// host's SYN, and answers it as soon as it is handed over; in [`Role::Active`] the next
    /// [`poll_transmit`](HostTcp::poll_transmit) yields the SYN.
    pub fn new(now: Instant, role: Role, config: &HostTcpConfig) -> Result<Self, HostTcpError> {
        let local = check_endpoint(role.local())?;
        let remote = check_endpoint(role.remote())?;
        if config.local_mtu < 576 {
            return Err(HostTcpError::Mtu(config.local_mtu));
        }
        let unaddressable = |_| HostTcpError::Unaddressable(remote);

        let mut scratch = Vec::new();
        let mut wire = Wire {
            rx: None,
            tx: &mut scratch,
            sent: false,
        };
        let mut interface_config = Config::new(HardwareAddress::Ip);
        interface_config.random_seed = config.isn_seed;
        let mut iface = Interface::new(interface_config, &mut wire, smoltcp_time(now));
        iface.update_ip_addrs(|addrs| {
            // There is room for two.
            let _ = addrs.push(IpCidr::new(IpAddress::from(local.ip()), 32));
        });

        let buffer = |n: usize| SocketBuffer::new(vec![0; n.clamp(BUFFER_RANGE.0, BUFFER_RANGE.1)]);
        let mut socket = Socket::new(buffer(config.rx_buffer), buffer(config.tx_buffer));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        match role {
            Role::Passive { .. } => socket
                .listen(IpListenEndpoint::from(endpoint(local)))
                .map_err(|_| HostTcpError::Unaddressable(local))?,
            Role::Active { .. } => socket
                .connect(iface.context(), endpoint(remote), endpoint(local))
                .map_err(unaddressable)?,
        }
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let local_mss = config.local_mtu - (IPV4_HEADER + TCP_HEADER) as u16;
        Ok(Self {
            iface,
            sockets,
            handle,
            local,
            remote,
            timeout: config.timeout,
            local_mss,
            remote_mss: DEFAULT_MSS,
            send_mss: DEFAULT_MSS.min(local_mss),
            replies: VecDeque::new(),
            scratch,
            clock: now,
            dirty: true,
            wake: None,
            silent_since: None,
            challenged: None,
            irs: None,
            read: 0,
            snd_nxt: None,
            syn_window: 0,
            window_shift: 0,
            window_edge: None,
            established: false,
            fin_received: false,
            fin_acknowledged: false,
            finish_requested: false,
            end: None,
            time_wait: None,
            mute: false,
        })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }
    fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// The sequence number expected from the host next.
    fn rcv_nxt(&self) -> Option<u32> {
        let queued = self.socket().recv_queue() as u32;
        let after_syn = self.irs?.wrapping_add(1);
        Some(
            after_syn
                .wrapping_add(self.read)
                .wrapping_add(queued)
                .wrapping_add(u32::from(self.fin_received)),
        )
    }

    /// Bytes the host may send beyond `rcv_nxt`: what it was told, never more than what fits,
    /// and nothing after its FIN (smoltcp would take it).
    fn window(&self, rcv_nxt: u32) -> usize {
        if self.fin_received {
            return 0;
        }
        let told = self.window_edge.map_or(0, |edge| seq_diff(edge, rcv_nxt));
        let free = self.socket().recv_capacity() - self.socket().recv_queue();
        usize::try_from(told).unwrap_or(0).min(free)
    }

    fn reply(&mut self, packet: Vec<u8>) {
        if self.replies.len() >= MAX_REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back(packet);
    }

    /// Queues an acknowledgement of what has arrived, with the window the host knows.
    fn acknowledge(&mut self) {
        let (Some(ack), Some(seq)) = (self.rcv_nxt(), self.snd_nxt) else {
            return;
        };
        let window = self.window(ack) >> self.window_shift;
        let header = Header {
            src: self.local,
            dst: self.remote,
            seq,
            ack,
            flags: ACK,
            window: u16::try_from(window).unwrap_or(u16::MAX),
            syn: SynOptions::default(),
        };
        self.reply(header.to_packet());
    }

    fn challenge(&mut self) {
        let due = self
            .challenged
            .is_none_or(|t| self.clock.since(t) >= CHALLENGE_INTERVAL);
        if due {
            self.challenged = Some(self.clock);
            self.acknowledge();
        }
    }

    /// Lets smoltcp process `packet` and keeps what it answers.
    fn feed(&mut self, packet: &[u8]) {
        let mut wire = Wire {
            rx: Some(packet),
            tx: &mut self.scratch,
            sent: false,
        };
        let now = smoltcp_time(self.clock);
        self.iface
            .poll_ingress_single(now, &mut wire, &mut self.sockets);
        self.dirty = true;
        if wire.sent {
            let mut answer = std::mem::take(&mut self.scratch);
            self.sent(&mut answer);
            self.reply(answer);
        }
    }

    /// Completes a packet of smoltcp's and notes what it tells the host.
    fn sent(&mut self, packet: &mut [u8]) -> SegmentMeta {
        let mut gso_size = 0;
        if let Some(s) = parse_tcp(packet) {
            let next = s.seq.wrapping_add(s.seq_len());
            if !s.has(RST) && self.snd_nxt.is_none_or(|n| seq_diff(next, n) > 0) {
                self.snd_nxt = Some(next);
            }
            if s.has(SYN) {
                self.syn_window = s.window;
                self.window_shift = s.syn_options().window_scale.unwrap_or(0);
            }
            let shift = if s.has(SYN) { 0 } else { self.window_shift };
            if s.has(ACK) && !s.has(RST) {
                self.window_edge = Some(s.ack.wrapping_add(u32::from(s.window) << shift));
            }
            if s.payload_len > usize::from(self.send_mss) {
                gso_size = self.send_mss;
            }
            if s.has(SYN) {
                segment::set_mss(packet, self.local_mss);
            }
        }
        segment::set_partial_checksum(packet);
        SegmentMeta { gso_size }
    }

    /// smoltcp must not be closed before the handshake is over: it would forget an unanswered
    /// SYN, and take the acknowledgement of its SYN-ACK for that of its FIN.
    fn close_if_due(&mut self) {
        let open = matches!(self.socket().state(), State::Established | State::CloseWait);
        if self.finish_requested && open {
            self.socket_mut().close();
            self.dirty = true;
        }
    }

    /// Whether the host owes an acknowledgement.
    fn waits_for_host(&self) -> bool {
        let handshake_or_fin = matches!(
            self.socket().state(),
            State::SynSent | State::SynReceived | State::FinWait1 | State::Closing | State::LastAck
        );
        !self.mute && (handshake_or_fin || self.socket().send_queue() > 0)
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.silent_since? + self.timeout?)
    }

    fn give_up(&mut self, why: End) {
        // Without a SYN either way the host has heard of no connection.
        self.mute |= self.snd_nxt.is_none() && self.irs.is_none();
        self.socket_mut().abort();
        self.end = Some(why);
        self.dirty = true;
    }
}

impl HostTcp for SmoltcpHost {
    fn handle_segment(&mut self, now: Instant, ip_packet: &[u8]) -> Result<(), SegmentError> {
        self.clock = self.clock.max(now);
        match parse(ip_packet)? {
            Packet::Unreachable(u) => self.handle_unreachable(&u),
            Packet::Tcp(s) => {
                if (s.src, s.dst) != (self.remote, self.local) {
                    return Err(SegmentError::WrongFlow);
                }
                if self.silent_since.is_some() {
                    self.silent_since = Some(self.clock);
                }
                self.handle_tcp(ip_packet, &s);
                Ok(())
            }
        }
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        self.clock = self.clock.max(now);
        if let Some(reply) = self.replies.pop_front() {
            // Copied, not swapped: the caller's buffer is large and stays the caller's.
            out.clear();
            out.extend_from_slice(&reply);
            self.scratch = reply;
            return Some(SegmentMeta { gso_size: 0 });
        }
        if self.mute {
            return None;
        }
        let waits = self.end.is_none() && self.waits_for_host();
        if waits && self.deadline().is_some_and(|t| t <= self.clock) {
            self.give_up(End::TimedOut);
        }
        if !self.dirty && self.wake.is_none_or(|t| t > self.clock) {
            return None;
        }
        let time = smoltcp_time(self.clock);
        let mut wire = Wire {
            rx: None,
            tx: out,
            sent: false,
        };
        self.iface.poll_egress(time, &mut wire, &mut self.sockets);
        let sent = wire.sent;
        if !self.waits_for_host() {
            self.silent_since = None;
        } else if self.silent_since.is_none() {
            self.silent_since = Some(self.clock);
        }
        if sent {
            self.dirty = true;
            return Some(self.sent(out));
        }
        self.dirty = false;
        self.wake = self.iface.poll_at(time, &self.sockets).map(|t| {
            // Whatever smoltcp had to send now has been sent, so this cannot be due yet.
            let at = Instant::from_micros(u64::try_from(t.total_micros()).unwrap_or(0));
            at.max(self.clock + Duration::from_millis(1))
        });
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        if !self.replies.is_empty() || (self.dirty && !self.mute) {
            return Some(self.clock);
        }
        if self.mute {
            return None;
        }
        match (self.wake, self.deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn readable(&self) -> usize {
        self.socket().recv_queue()
    }

    fn read<F: FnOnce(&[u8]) -> usize>(&mut self, f: F) -> usize {
        let taken = self.socket_mut().recv(|bytes| {
            let n = f(bytes).min(bytes.len());
            (n, n)
        });
        let n = taken.unwrap_or(0);
        self.read = self.read.wrapping_add(n as u32);
        self.dirty |= n > 0;
        n
    }

    fn writable(&self) -> usize {
        let socket = self.socket();
        if self.end.is_some() || self.finish_requested || !socket.may_send() {
            return 0;
        }
        socket.send_capacity() - socket.send_queue()
    }

    fn write(&mut self, data: &[u8]) -> usize {
        if self.writable() == 0 {
            return 0;
        }
        let n = self.socket_mut().send_slice(data).unwrap_or(0);
        self.dirty |= n > 0;
        n
    }

    fn unacknowledged(&self) -> usize {
        self.socket().send_queue()
    }

    fn finish(&mut self) {
        self.finish_requested = true;
        self.close_if_due();
    }

    fn abort(&mut self) {
        if self.end.is_none() && self.time_wait.is_none() {
            self.give_up(End::Aborted);
        }
    }

    fn state(&self) -> HostState {
        HostState {
            established: self.established,
            remote_finished: self.fin_received && self.readable() == 0,
            local_finished: self.fin_acknowledged,
            time_wait: self.time_wait.is_some(),
            end: self.end,
        }
    }

    fn remote_mss(&self) -> u16 {
        self.remote_mss
    }

    fn is_keep_alive(&self, ip_packet: &[u8]) -> bool {
        let (Some(s), Some(expected)) = (parse_tcp(ip_packet), self.rcv_nxt()) else {
            return false;
        };
        (s.src, s.dst) == (self.remote, self.local)
            && s.payload_len <= 1
            && !s.has(SYN)
            && !s.has(FIN)
            && !s.has(RST)
            && seq_diff(s.seq, expected) == -1
    }

    fn time_wait_record(&self) -> Option<TimeWait> {
        self.time_wait
    }

    fn memory(&self) -> usize {
        self.socket().recv_capacity() + self.socket().send_capacity()
    }
}
