//! What arrives from the host (RFC 9293 §3.10.7, with RFC 5961 where it is
//! stricter, and RFC 7323's PAWS).

use std::time::Duration;

use super::super::wire::{
    self, seq_diff, DataOptions, IcmpError, IcmpKind, Packet, Segment, SynOptions, ACK, FIN,
    MAX_BLOCKS, RST, SYN, TIMESTAMPS_LEN,
};
use super::super::{rst_for, End, SegmentError, TimeWait};
use super::receive::Arrival;
use super::send::Ack;
use super::{Endpoint, Phase, Timestamps, DEFAULT_MSS};

/// Smallest segment size believed, as in Linux (`TCP_MIN_SND_MSS`).
const MIN_MSS: u16 = 48;
/// Smallest next-hop MTUs believed from an ICMP message, as in Linux (`min_pmtu`, and RFC 8200).
const MIN_PATH_MTU: (u32, u32) = (552, 1280);
/// Challenge acknowledgements at most this often (RFC 5961 §7).
const CHALLENGE_INTERVAL: Duration = Duration::from_secs(1);
/// Segments without data that are out of the window are answered at most this often, so that
/// two ends that disagree do not answer each other for ever.
const ANSWER_INTERVAL: Duration = Duration::from_millis(50);
/// A time-stamp of the host is believed so long (RFC 7323 §5.5).
const TIMESTAMP_LIFETIME: Duration = Duration::from_secs(24 * 24 * 3600);
/// Most duplicates told one by one.
const MAX_ACKS: u32 = 64;

impl Endpoint {
    pub(super) fn input(
        &mut self,
        packet: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<(), SegmentError> {
        let s = match wire::parse(packet)? {
            Packet::Icmp(e) => return self.handle_icmp(&e),
            Packet::Tcp(s) => s,
        };
        if (s.src, s.dst) != (self.remote, self.local) {
            return Err(SegmentError::WrongFlow);
        }
        self.was_heard();
        match self.phase {
            Phase::Listen => self.handle_first(&s),
            Phase::SynSent => self.handle_answer(packet, &s),
            Phase::SynReceived | Phase::Open => self.handle(packet, &s, sink),
            Phase::TimeWait => {
                if let Some(ack) = self.time_wait.and_then(|t| t.answer(packet)) {
                    self.reply(ack);
                }
            }
            Phase::Closed => {
                if let Some(rst) = rst_for(packet) {
                    self.reply(rst);
                }
            }
        }
        Ok(())
    }

    fn handle_first(&mut self, s: &Segment<'_>) {
        if s.flags & (SYN | ACK | RST | FIN) != SYN {
            return;
        }
        self.irs = Some(s.seq);
        self.negotiate(s, s.syn_options());
        self.phase = Phase::SynReceived;
        self.syn.due = self.clock;
    }

    /// In SYN-SENT. A SYN without ACK crosses ours: not a case for a split flow.
    fn handle_answer(&mut self, packet: &[u8], s: &Segment<'_>) {
        if !s.has(ACK) || self.syn.sent == 0 {
            return;
        }
        if s.ack != self.seq(0) {
            if let Some(rst) = rst_for(packet) {
                self.reply(rst);
            }
            return;
        }
        if s.has(RST) {
            self.close(End::Refused);
        } else if s.has(SYN) && !s.has(FIN) {
            self.irs = Some(s.seq);
            self.negotiate(s, s.syn_options());
            self.open(s, u64::from(s.window));
            self.acks = 1;
        }
    }

    fn negotiate(&mut self, s: &Segment<'_>, offered: SynOptions) {
        self.remote_mss = match offered.mss {
            None | Some(0) => DEFAULT_MSS,
            Some(mss) => mss.max(MIN_MSS),
        };
        if offered.window_scale.is_none() {
            self.rx.without_scale();
        }
        self.remote_scale = offered.window_scale;
        self.timestamps = offered.timestamps.map(|(value, _)| Timestamps {
            recent: value,
            recent_at: self.clock,
        });
        let overhead = if offered.timestamps.is_some() {
            TIMESTAMPS_LEN
        } else {
            0
        };
        let mss = self.remote_mss.min(self.local_mss).saturating_sub(overhead);
        let mss = mss.max(MIN_MSS - TIMESTAMPS_LEN);
        let window = u64::from(s.window);
        self.tx
            .establish(self.clock, mss, offered.sack_permitted, window);
        self.last_ack_sent = s.seq.wrapping_add(1);
    }

    /// The handshake is over.
    fn open(&mut self, s: &Segment<'_>, window: u64) {
        self.phase = Phase::Open;
        self.established = true;
        self.window_from = (s.seq, s.ack);
        self.tx.set_edge(window);
        if let (Some(first), 1) = (self.syn.first, self.syn.sent) {
            self.tx.rtt.sample(self.clock, self.clock.since(first));
        }
    }

    fn handle(&mut self, packet: &[u8], s: &Segment<'_>, sink: &mut dyn FnMut(&[u8]) -> usize) {
        let Some(expected) = self.expected() else {
            return;
        };
        let ahead = i64::from(seq_diff(s.seq, expected));
        let window = self.rx.window() as i64;
        if s.has(RST) {
            // RFC 5961 §3.2: only the exact sequence number resets, so that no byte sent before
            // it is skipped; anything else in the window is asked to prove itself.
            if ahead == 0 {
                self.close(End::ResetByPeer);
            } else if ahead > 0 && ahead <= window {
                self.challenge();
            }
            return;
        }
        if s.has(SYN) {
            if self.phase == Phase::SynReceived && Some(s.seq) == self.irs {
                // The SYN once more: our answer was lost.
                self.syn.due = self.clock;
            } else {
                // RFC 5961 §4.2: the host either has forgotten the connection and resets it on
                // seeing where it stands, or this is not the host.
                self.challenge();
            }
            return;
        }
        let options = s.data_options();
        let length = s.payload.len() as i64 + i64::from(s.has(FIN));
        let is_new = if length == 0 {
            (0..=window).contains(&ahead)
        } else {
            ahead <= window && ahead + length > 0
        };
        if !is_new || self.is_old_duplicate(&options) {
            self.answer_old(s, ahead);
            return;
        }
        if !s.has(ACK) {
            return;
        }
        if !self.handle_ack(packet, s, &options) {
            return;
        }
        let pardoned = length > 0 && self.handle_data(s, ahead, &options, sink);
        if let (Some(t), Some((value, _))) = (&mut self.timestamps, options.timestamps) {
            // RFC 7323 §4.3.
            let counts = seq_diff(s.seq, self.last_ack_sent) <= 0 && !pardoned;
            if counts && seq_diff(value, t.recent) >= 0 {
                t.recent = value;
                t.recent_at = self.clock;
            }
        }
        self.retire_if_over();
    }

    /// PAWS (RFC 7323 §5.3). A segment without time-stamps is let through, as Linux does.
    fn is_old_duplicate(&self, options: &DataOptions) -> bool {
        let (Some(t), Some((value, _))) = (&self.timestamps, options.timestamps) else {
            return false;
        };
        seq_diff(value, t.recent) < 0 && self.clock.since(t.recent_at) < TIMESTAMP_LIFETIME
    }

    /// Something the window has no place for: a duplicate, a keep-alive, a probe of a closed
    /// window. The host is told where the connection stands.
    fn answer_old(&mut self, s: &Segment<'_>, ahead: i64) {
        if !s.payload.is_empty() || s.has(FIN) {
            if ahead < 0 {
                let offset = self.rx.acknowledged() as i64 + ahead;
                self.rx.arrive(offset, s.payload, false);
            }
            self.add_ack();
            return;
        }
        let due = self
            .answered
            .is_none_or(|t| self.clock.since(t) >= ANSWER_INTERVAL);
        if due {
            self.answered = Some(self.clock);
            self.acks = self.acks.max(1);
        }
    }

    fn challenge(&mut self) {
        let due = self
            .challenged
            .is_none_or(|t| self.clock.since(t) >= CHALLENGE_INTERVAL);
        if due {
            self.challenged = Some(self.clock);
            self.acks = self.acks.max(1);
        }
    }

    fn add_ack(&mut self) {
        self.acks = if self.tx.sack {
            1
        } else {
            (self.acks + 1).min(MAX_ACKS)
        };
    }

    /// False if the segment is not to be looked at any further.
    fn handle_ack(&mut self, packet: &[u8], s: &Segment<'_>, options: &DataOptions) -> bool {
        let una = self.tx.una();
        let Ok(offset) = u64::try_from(una as i64 + i64::from(seq_diff(s.ack, self.seq(una))))
        else {
            // Before the first byte: the SYN itself has not been acknowledged.
            if self.phase == Phase::SynReceived {
                self.refuse_ack(packet);
            } else {
                self.challenge();
            }
            return false;
        };
        if self.phase == Phase::SynReceived && (offset != 0 || self.syn.sent == 0) {
            self.refuse_ack(packet);
            return false;
        }
        // RFC 5961 §5.2.
        if offset > self.tx.next() || offset + self.tx.largest_window() < una {
            self.challenge();
            return false;
        }
        let window = u64::from(s.window) << self.remote_scale.unwrap_or(0);
        if self.phase == Phase::SynReceived {
            self.open(s, offset + window);
        }
        if offset < una {
            return true;
        }
        let (from_seq, from_ack) = self.window_from;
        let newer = seq_diff(s.seq, from_seq);
        let tells = newer > 0 || (newer == 0 && seq_diff(s.ack, from_ack) >= 0);
        if tells {
            self.window_from = (s.seq, s.ack);
        }
        let mut blocks = [(0, 0); MAX_BLOCKS];
        let mut count = 0;
        for &(a, b) in options.blocks().iter().filter(|_| self.tx.sack) {
            let place = |seq| u64::try_from(una as i64 + i64::from(seq_diff(seq, self.seq(una))));
            if let (Ok(a), Ok(b), Some(slot)) = (place(a), place(b), blocks.get_mut(count)) {
                if a < b && b <= self.tx.next() {
                    *slot = (a, b);
                    count += 1;
                }
            }
        }
        let echoed = options
            .timestamps
            .filter(|_| self.timestamps.is_some())
            .and_then(|(_, echo)| self.sent_at(echo));
        let ack = Ack {
            offset,
            edge: tells.then_some(offset + window),
            blocks: blocks.get(..count).unwrap_or(&[]),
            echoed,
            pure: s.payload.is_empty() && !s.has(FIN),
        };
        self.tx.acknowledge(self.clock, &ack);
        true
    }

    /// In SYN-RECEIVED: an acknowledgement of what was never sent (RFC 9293 §3.10.7.4).
    fn refuse_ack(&mut self, packet: &[u8]) {
        if let Some(rst) = rst_for(packet) {
            self.reply(rst);
        }
    }

    /// When we sent a segment with this time-stamp; `None` for one that we cannot have sent.
    fn sent_at(&self, echo: u32) -> Option<mef_packet::Instant> {
        let age = seq_diff(self.timestamp(self.clock), echo);
        let age = u64::try_from(age).ok()?;
        Some(self.clock - Duration::from_millis(age))
    }

    /// True if it had been lost, and the host is not to hear of it.
    fn handle_data(
        &mut self,
        s: &Segment<'_>,
        ahead: i64,
        options: &DataOptions,
        sink: &mut dyn FnMut(&[u8]) -> usize,
    ) -> bool {
        let timestamp = options.timestamps.map(|t| t.0);
        self.rx.segment(self.clock, timestamp, self.tx.rtt.min());
        let offset = self.rx.acknowledged() as i64 + ahead;
        let rtt = self.tx.rtt.smoothed().unwrap_or_default();
        let at = (self.clock, rtt);
        match self.rx.arrive_into(offset, s.payload, s.has(FIN), at, sink) {
            Arrival::InOrder => self.acks = self.acks.max(1),
            Arrival::OutOfOrder | Arrival::Duplicate => self.add_ack(),
        }
        self.rx.pardon.granted()
    }

    /// Both FINs are through: a record takes over, the endpoint only keeps unread bytes.
    fn retire_if_over(&mut self) {
        let Some(expected) = self.expected() else {
            return;
        };
        if self.phase != Phase::Open || !self.rx.finished() || !self.tx.fin_acknowledged() {
            return;
        }
        let record = TimeWait {
            local: self.local,
            remote: self.remote,
            snd_nxt: self.seq(self.tx.next()),
            rcv_nxt: expected,
            timestamps: self
                .timestamps
                .map(|t| (self.timestamp(self.clock), t.recent)),
        };
        if self.acks > 0 {
            self.acks = 0;
            self.reply(record.ack());
        }
        self.time_wait = Some(record);
        self.phase = Phase::TimeWait;
        self.silent_since = None;
    }

    fn handle_icmp(&mut self, e: &IcmpError) -> Result<(), SegmentError> {
        if (e.src, e.dst) != (self.local, self.remote) {
            return Err(SegmentError::WrongFlow);
        }
        // RFC 5927 §4.1: it must quote a segment in flight.
        let first = match self.phase {
            Phase::SynSent | Phase::SynReceived => self.iss,
            Phase::Open => self.seq(self.tx.una()),
            _ => return Err(SegmentError::StaleIcmp),
        };
        let span = seq_diff(self.seq(self.tx.next()), first);
        let at = seq_diff(e.seq, first);
        if at < 0 || at >= span || self.syn.sent == 0 {
            return Err(SegmentError::StaleIcmp);
        }
        match e.kind {
            IcmpKind::TooBig { mtu } => {
                let least = if self.remote.is_ipv4() {
                    MIN_PATH_MTU.0
                } else {
                    MIN_PATH_MTU.1
                };
                let headers = wire::ip_header_len(self.remote.ip()) + wire::TCP_HEADER;
                let overhead = headers as u32
                    + if self.timestamps.is_some() {
                        u32::from(TIMESTAMPS_LEN)
                    } else {
                        0
                    };
                let mss = mtu.max(least) - overhead;
                self.tx.shrink_mss(u16::try_from(mss).unwrap_or(u16::MAX));
            }
            IcmpKind::Unreachable { code } if !self.established => {
                // Nobody is there to be reset.
                self.close(End::Unreachable { code });
            }
            // Once established it is a hint at most (RFC 5461 §2.2).
            IcmpKind::Unreachable { .. } => {}
        }
        Ok(())
    }
}
