//! What goes to the host, one packet at a time: answers and resets first, then
//! the handshake, then selective acknowledgements, data, plain acknowledgements.

use std::time::Duration;

use super::super::wire::{Outgoing, SynOptions, ACK, FIN, MAX_BLOCKS, PSH, RST, SYN};
use super::super::{End, SegmentMeta};
use super::send::{Piece, Transmit};
use super::{Endpoint, Phase, IDLE};

/// Between the first two SYNs (RFC 6298 §2.1); doubles.
const SYN_INTERVAL: Duration = Duration::from_secs(1);

impl Endpoint {
    pub(super) fn output(&mut self, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        if let Some(reply) = self.replies.pop_front() {
            out.extend_from_slice(&reply);
            if self.replies.is_empty() {
                self.replies = Default::default();
            }
            return Some(SegmentMeta { gso_size: 0 });
        }
        if self.waits_for_host() && self.deadline().is_some_and(|t| t <= self.clock) {
            self.give_up(End::TimedOut);
        }
        if self.reset_due {
            self.reset_due = false;
            return Some(self.emit_reset(out));
        }
        let sent = match self.phase {
            Phase::Listen | Phase::TimeWait | Phase::Closed => return None,
            Phase::SynSent | Phase::SynReceived => self.output_syn(out),
            Phase::Open => self.output_open(out),
        };
        if !self.waits_for_host() {
            self.silent_since = None;
        } else if sent.is_some() {
            self.silent_since.get_or_insert(self.clock);
        }
        if sent.is_none() {
            self.dirty = false;
        }
        sent
    }

    fn output_syn(&mut self, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        if self.syn.due > self.clock {
            return None;
        }
        self.syn.first.get_or_insert(self.clock);
        let interval = SYN_INTERVAL * 2u32.saturating_pow(self.syn.sent.min(6));
        self.syn.sent += 1;
        self.syn.due = self.clock + interval;
        let answering = self.phase == Phase::SynReceived;
        let flags = if answering { SYN | ACK } else { SYN };
        // Passively only what the host offered is agreed to (RFC 7323 §2.2, §3.2, RFC 2018 §2).
        let scaling = !answering || self.remote_scale.is_some();
        let syn = SynOptions {
            mss: Some(self.local_mss),
            window_scale: scaling.then_some(self.rx.scale),
            sack_permitted: !answering || self.tx.sack,
            timestamps: None,
        };
        let timestamps = match (answering, self.timestamps) {
            (false, _) => Some((self.timestamp(self.clock), 0)),
            (true, t) => t.map(|t| (self.timestamp(self.clock), t.recent)),
        };
        let window = self.rx.tell(true);
        Outgoing {
            src: self.local,
            dst: self.remote,
            seq: self.iss,
            ack: self.expected().unwrap_or(0),
            flags,
            window,
            syn: Some(syn),
            timestamps,
            sack: &[],
            payload_len: 0,
        }
        .emit(out);
        Some(SegmentMeta { gso_size: 0 })
    }

    fn output_open(&mut self, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        // Selective acknowledgements go alone, so that they take no room from data.
        if self.acks > 0 && (self.rx.has_gaps() || self.rx.has_duplicate()) {
            return Some(self.emit_ack(out));
        }
        match self.tx.poll(self.clock) {
            Some(Transmit::Piece(piece)) => {
                self.acks = 0;
                return Some(self.emit_piece(out, piece));
            }
            Some(Transmit::WindowProbe) => {
                // One below what the host expects: it has to say where it stands.
                let seq = self.seq(self.tx.una()).wrapping_sub(1);
                return Some(self.emit(out, seq, ACK, &[], None));
            }
            None => {}
        }
        if self.acks > 0 || self.rx.update_is_due(self.local_mss) {
            return Some(self.emit_ack(out));
        }
        if let Some(sent) = self.output_probe(out) {
            return Some(sent);
        }
        self.rest();
        None
    }

    /// Nothing to do: if it stays so, memory kept for reuse goes.
    fn rest(&mut self) {
        let busy = self.tx.waits() || self.rx.readable() > 0 || self.rx.has_gaps();
        if busy {
            self.idle_at = None;
        } else if self.idle_at.is_some_and(|t| t <= self.clock) {
            self.idle_at = None;
            self.tx.release_spare();
            self.rx.release_spare();
        } else if self.dirty && self.tx.memory() + self.rx.memory() > 0 {
            self.idle_at = Some(self.clock + IDLE);
        }
    }

    fn emit_ack(&mut self, out: &mut Vec<u8>) -> SegmentMeta {
        self.acks = self.acks.saturating_sub(1);
        let mut blocks = [(0, 0); MAX_BLOCKS];
        let mut wire = [(0, 0); MAX_BLOCKS];
        let mut count = 0;
        if self.tx.sack {
            // Beside time-stamps there is room for three (RFC 2018 §3).
            let most = MAX_BLOCKS - usize::from(self.timestamps.is_some());
            count = self.rx.blocks(most, &mut blocks);
        }
        let base = self.irs.unwrap_or(0).wrapping_add(1);
        for (to, from) in wire.iter_mut().zip(&blocks) {
            *to = (
                base.wrapping_add(from.0 as u32),
                base.wrapping_add(from.1 as u32),
            );
        }
        let seq = self.seq(self.tx.next());
        self.emit(out, seq, ACK, wire.get(..count).unwrap_or(&[]), None)
    }

    fn emit_piece(&mut self, out: &mut Vec<u8>, piece: Piece) -> SegmentMeta {
        let mut flags = ACK;
        if piece.push {
            flags |= PSH;
        }
        if piece.fin {
            flags |= FIN;
        }
        let seq = self.seq(piece.start);
        self.emit(out, seq, flags, &[], Some((piece.start, piece.end)))
    }

    pub(super) fn emit(
        &mut self,
        out: &mut Vec<u8>,
        seq: u32,
        flags: u8,
        sack: &[(u32, u32)],
        payload: Option<(u64, u64)>,
    ) -> SegmentMeta {
        let ack = self.expected().unwrap_or(0);
        let window = self.rx.tell(false);
        self.last_ack_sent = ack;
        let length = payload.map_or(0, |(from, to)| to - from);
        Outgoing {
            src: self.local,
            dst: self.remote,
            seq,
            ack,
            flags,
            window,
            syn: None,
            timestamps: self
                .timestamps
                .map(|t| (self.timestamp(self.clock), t.recent)),
            sack,
            payload_len: length as usize,
        }
        .emit(out);
        if let Some((from, to)) = payload {
            self.tx.buffer().copy_to(from, to, out);
        }
        let mss = self.tx.mss();
        let gso_size = if length > u64::from(mss) { mss } else { 0 };
        SegmentMeta { gso_size }
    }

    /// The sequence number is the one after the last sent, so that the host believes it.
    pub(super) fn emit_reset(&mut self, out: &mut Vec<u8>) -> SegmentMeta {
        let flags = if self.irs.is_some() { RST | ACK } else { RST };
        let (seq, ack) = (self.seq(self.tx.next()), self.expected().unwrap_or(0));
        Outgoing::new(self.local, self.remote, seq, ack, flags).emit(out);
        SegmentMeta { gso_size: 0 }
    }
}
