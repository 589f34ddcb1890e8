//! What comes in: sessions, packets, the passing of time.

use core::time::Duration;

use mef_packet::Instant;

use super::{
    Control, Event, Link, Opening, PacketError, Reassembly, SendKey, KEEPALIVE, MAX_FLOWS, SWEEP,
};
use crate::chunks::ChunkPool;
use crate::codec::{self, Ack, Frame, Hello, FLAG_ACK_NOW, FLAG_ELICITS_ACK, RESET_ECHO};
use crate::guard::AckSample;
use crate::received::ReceivedLedger;
use crate::recv_stream::{RecvStream, StreamError};
use crate::send_stream::{End, SendStream};
use crate::sent::{is_probe, Carried, Fate};

fn speaks_of_flow(frame: &Frame<'_>) -> bool {
    !matches!(
        frame,
        Frame::Hello(_)
            | Frame::Ack(_)
            | Frame::Ping { .. }
            | Frame::Probe { .. }
            | Frame::Unknown { .. }
    )
}

/// How long an answer is awaited while nothing is acknowledged.
const STALE: Duration = Duration::from_secs(10);
/// Most datagrams whose other half is awaited.
const MAX_REASSEMBLY: usize = 256;

impl Link {
    /// A session with the peer was confirmed: packet numbers start anew. `rtt` is what the handshake took, where known.
    pub fn session_started(&mut self, now: Instant, rtt: Option<Duration>) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.declare_all_lost(&mut fates);
        self.in_session = true;
        self.probing = false;
        for fate in fates.drain(..) {
            self.apply_lost(now, &fate);
        }
        self.fates = fates;
        self.received = ReceivedLedger::default();
        self.sent_bytes = 0;
        if self.silent {
            self.silent = false;
            self.events.push_back(Event::Resumed);
        }
        self.last_ack = now;
        self.last_elicit = now;
        self.guard.session_started(now);
        if let Some(rtt) = rtt {
            self.rtt.sample(rtt);
        }
        if self.promised == 0 {
            self.promised = self.flow_window();
        }
        for delay in [0, 20, 100] {
            self.control
                .push_back((now + Duration::from_millis(delay), Control::Hello));
        }
    }

    /// The session is gone; nothing is sent until the next one.
    pub fn session_lost(&mut self) {
        self.in_session = false;
    }

    /// Takes a decrypted packet that arrived at `now` and took `line_bytes` of the line.
    ///
    /// # Errors
    /// [`PacketError`]: the packet is to be counted as dropped; it will not be acknowledged.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        number: u64,
        line_bytes: u64,
        inner: &[u8],
    ) -> Result<(), PacketError> {
        let taken = self.take_frames(now, pool, inner);
        match taken {
            // Not a loss of this end's making: the peer sends it again once it may.
            Err(PacketError::BeforeHello) => Err(PacketError::BeforeHello),
            // Credit is what answers a lack of memory; it says nothing of what the line carries.
            Err(PacketError::Stream(StreamError::NoMemory)) => Err(StreamError::NoMemory.into()),
            Ok(flags) => {
                let elicits = flags & FLAG_ELICITS_ACK != 0;
                self.received.on_packet(
                    now,
                    number,
                    line_bytes,
                    elicits,
                    flags & FLAG_ACK_NOW != 0,
                );
                self.stats.packets_received += 1;
                Ok(())
            }
            Err(e) => {
                self.received.on_drop();
                Err(e)
            }
        }
    }

    fn take_frames(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        inner: &[u8],
    ) -> Result<u16, PacketError> {
        let (header, frames) = codec::parse(inner)?;
        // All or nothing: a packet with a broken frame changes nothing.
        for f in frames.clone() {
            f?;
        }
        for frame in frames {
            let frame = frame?;
            // A peer that restarted counts its flows anew; its HELLO says so and goes first.
            if !self.probing && speaks_of_flow(&frame) {
                return Err(PacketError::BeforeHello);
            }
            self.take_frame(now, pool, frame)?;
        }
        Ok(header.flags)
    }

    /// Finds the flow a frame speaks of; a new number of the peer's makes a flow whose SETUP is still to come.
    fn flow_for(&mut self, flow: u32) -> Result<bool, PacketError> {
        if self.flows.contains_key(&flow) {
            return Ok(true);
        }
        if flow < 2 {
            return Err(PacketError::BadFlow);
        }
        let ours = (flow % 2 == 0) == self.config.even_flows;
        let n = u64::from(flow / 2);
        if ours || self.seen.contains(n) {
            return Ok(false);
        }
        if self.flows.len() >= MAX_FLOWS {
            return Err(PacketError::BadFlow);
        }
        self.seen.insert(n, n + 1);
        let fresh = self.make_flow(None);
        self.flows.insert(flow, fresh);
        Ok(true)
    }

    fn take_frame(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        frame: Frame<'_>,
    ) -> Result<(), PacketError> {
        match frame {
            Frame::Data {
                flow,
                offset,
                payload,
            } => {
                if self.flow_for(flow)? {
                    self.with_recv(flow, |recv| recv.on_data(pool, offset, payload))?;
                    self.after_receive(now, pool, flow);
                }
            }
            Frame::Repair {
                flow,
                span,
                index,
                symbol,
            } => {
                if self.flow_for(flow)? {
                    let back = self
                        .flows
                        .get_mut(&flow)
                        .is_some_and(|f| f.recv.on_repair(pool, span, index, symbol));
                    if back {
                        self.took_long = true;
                        self.control_twice(now, Control::Window(flow));
                        self.after_receive(now, pool, flow);
                    }
                }
            }
            Frame::Fin { flow, offset } => {
                if self.flow_for(flow)? {
                    self.with_recv(flow, |recv| recv.on_end(offset, None))?;
                    self.after_receive(now, pool, flow);
                }
            }
            Frame::Reset { flow, offset, code } => {
                if self.flow_for(flow)? {
                    let echo = code & RESET_ECHO != 0;
                    let code = code & !RESET_ECHO;
                    self.with_recv(flow, |recv| recv.on_end(offset, Some(code)))?;
                    let ours = (flow % 2 == 0) == self.config.even_flows;
                    if let Some(f) = self.flows.get_mut(&flow) {
                        if !matches!(f.send.ending(), End::Reset(_)) {
                            // The far host is gone: what we still hold for it interests nobody.
                            self.stream_sent += f.send.discard(pool);
                            let reads_on = f.setup.is_some() && !f.abandoned;
                            f.send.reset(code | if reads_on { RESET_ECHO } else { 0 });
                            self.control_twice(now, Control::End(flow));
                        } else if !echo {
                            // Both were reset: the peer throws away what we still hold.
                            self.stream_sent += f.send.discard(pool);
                        }
                    }
                    if let Some(f) = self.flows.get_mut(&flow) {
                        if ours && offset == 0 && f.opening == Opening::Pending {
                            // The reset overtook a REFUSED that may be lost for good.
                            f.opening = Opening::Refused(code);
                        } else if f.setup.is_none() {
                            // Reset before its SETUP came: the router need not hear of it.
                            f.abandoned = true;
                            f.released = true;
                        }
                    }
                    self.after_receive(now, pool, flow);
                }
            }
            Frame::Setup { flow, setup } => {
                if self.flow_for(flow)? {
                    if let Some(f) = self
                        .flows
                        .get_mut(&flow)
                        .filter(|f| f.setup.is_none() && !f.abandoned)
                    {
                        f.setup = Some(setup);
                        f.weight = super::weight_of(setup.weight);
                        self.events.push_back(Event::Setup { flow, setup });
                    }
                }
            }
            Frame::Opened { flow } => {
                if let Some(f) = self
                    .flows
                    .get_mut(&flow)
                    .filter(|f| f.opening == Opening::Pending)
                {
                    f.opening = Opening::Open;
                    self.tell(flow);
                }
            }
            Frame::Refused { flow, code } => {
                if let Some(f) = self
                    .flows
                    .get_mut(&flow)
                    .filter(|f| f.opening == Opening::Pending)
                {
                    f.opening = Opening::Refused(code);
                    self.tell(flow);
                }
            }
            Frame::Window {
                flow: 0,
                max_offset,
                ..
            } => {
                self.stream_credit = self.stream_credit.max(max_offset);
                if self.blocked_on_link {
                    self.blocked_on_link = false;
                    self.activate_all();
                }
            }
            Frame::Window {
                flow,
                max_offset,
                received,
            } => {
                if let Some(f) = self.flows.get_mut(&flow) {
                    if received > f.send.sent() {
                        return Err(PacketError::AckOfUnsent);
                    }
                    f.send.set_credit(max_offset);
                    f.send.on_acked(pool, 0, received);
                    self.after_ack(pool, flow);
                }
            }
            Frame::Ack(ack) => self.on_ack(now, pool, &ack)?,
            Frame::Hello(hello) => self.on_hello(now, pool, hello),
            Frame::Ping { floor } => self.received.set_floor(floor),
            Frame::Datagram { packet, .. } => {
                self.events.push_back(Event::Datagram(packet.to_vec()))
            }
            Frame::Fragment {
                id,
                index,
                count: 2,
                bytes,
            } => self.join(now, id, index, bytes),
            Frame::Fragment { .. } | Frame::Probe { .. } | Frame::Unknown { .. } => {}
        }
        Ok(())
    }

    fn with_recv<T, E: Into<PacketError>>(
        &mut self,
        flow: u32,
        f: impl FnOnce(&mut RecvStream) -> Result<T, E>,
    ) -> Result<Option<T>, PacketError> {
        self.flows
            .get_mut(&flow)
            .map(|x| f(&mut x.recv))
            .transpose()
            .map_err(Into::into)
    }

    fn after_receive(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32) {
        let Some(f) = self.flows.get(&flow) else {
            return;
        };
        if f.abandoned {
            self.drain_abandoned(now, pool, flow);
        } else {
            self.tell(flow);
        }
        self.reap(pool, flow);
    }

    fn join(&mut self, now: Instant, id: u32, index: u8, bytes: &[u8]) {
        if index > 1 {
            return;
        }
        if !self.reassembly.contains_key(&id) && self.reassembly.len() >= MAX_REASSEMBLY {
            self.expire_fragments(now);
            if self.reassembly.len() >= MAX_REASSEMBLY {
                self.stats.fragments_expired += 1;
                return;
            }
        }
        let r = self.reassembly.entry(id).or_insert_with(|| Reassembly {
            at: now,
            parts: [None, None],
        });
        if let Some(p) = r.parts.get_mut(usize::from(index)) {
            *p = Some(bytes.to_vec());
        }
        if r.parts.iter().all(Option::is_some) {
            if let Some(r) = self.reassembly.remove(&id) {
                let whole = r.parts.into_iter().flatten().flatten().collect();
                self.events.push_back(Event::Datagram(whole));
            }
        }
    }

    fn expire_fragments(&mut self, now: Instant) {
        let limit = Duration::from_millis(100) + self.rtt.smoothed() / 2;
        let before = self.reassembly.len();
        self.reassembly.retain(|_, r| now.since(r.at) < limit);
        self.stats.fragments_expired += (before - self.reassembly.len()) as u64;
    }

    fn on_hello(&mut self, now: Instant, pool: &mut ChunkPool, hello: Hello) {
        let restarted = self.peer.is_some_and(|p| p.boot_id != hello.boot_id);
        if restarted {
            let flows = self.flow_numbers();
            for (_, mut f) in self.flows.drain() {
                f.send.release(pool);
                f.recv.release(pool);
            }
            self.seen.clear();
            self.quiet.clear();
            self.spanned.clear();
            self.stream_sent = 0;
            self.stream_credit = 0;
            self.consumed = 0;
            self.announced = self.config.link_credit;
            self.events.push_back(Event::PeerRestarted { flows });
        }
        let first = self.peer.is_none() || restarted;
        let up = !self.probing || first;
        self.peer = Some(hello);
        self.stream_credit = self.stream_credit.max(hello.link_credit);
        if up {
            self.events.push_back(Event::Up);
            self.activate_all();
        }
        if !self.probing {
            self.probing = true;
            self.pmtu.start(now, self.config.port_mtu.min(hello.mtu));
        }
    }

    /// In order, so that equal runs of a simulation are equal.
    fn flow_numbers(&self) -> Vec<u32> {
        let mut flows: Vec<u32> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        flows
    }

    fn activate_all(&mut self) {
        for id in self.flow_numbers() {
            if let Some(f) = self.flows.get(&id) {
                self.activated.push((SendKey::Stream(id), f.weight));
            }
        }
        let mut waiting: Vec<u32> = self.datagrams.keys().copied().collect();
        waiting.sort_unstable();
        for flow in waiting {
            self.activated.push((SendKey::Datagram(flow), 1000));
        }
    }

    fn on_ack(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        ack: &Ack<'_>,
    ) -> Result<(), PacketError> {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        let largest_sent = self.sent.sent_at(ack.largest);
        let known = self
            .sent
            .on_ack(now, ack.largest, &ack.received, &mut fates);
        if !known {
            self.fates = fates;
            return Err(PacketError::AckOfUnsent);
        }
        if let Some(at) = largest_sent.filter(|at| fates.iter().any(|f| f.sent_at == *at)) {
            let raw = now.since(at);
            self.rtt
                .sample(raw.saturating_sub(Duration::from_micros(u64::from(ack.delay_us))));
            self.pmtu.set_rtt(self.rtt.smoothed(), self.rtt.ack_delay());
            let sent_bytes = fates
                .iter()
                .filter(|f| f.sent_at == at)
                .map(|f| f.sent_bytes)
                .max()
                .unwrap_or(0);
            let sample = AckSample {
                sent_at: at,
                sent_bytes,
                rx_us: ack.rx_time_us,
                delivered_bytes: ack.delivered_bytes,
                receiver_drops: u64::from(ack.drops),
            };
            self.guard
                .on_ack(now, self.rtt.min(), self.loss.mean(), sample);
        }
        if !fates.is_empty() {
            self.last_ack = now;
            if self.silent {
                self.silent = false;
                self.pmtu.path_returned();
                self.events.push_back(Event::Resumed);
                self.activate_all();
            }
        }
        for fate in &fates {
            if fate.spurious {
                self.loss.on_spurious(1);
                self.stats.packets_spurious += 1;
            }
            if is_probe(&fate.carried) {
                self.apply_acked(now, pool, fate);
                continue;
            }
            if fate.size > crate::pmtu::BASE {
                self.newest_large_acked = self.newest_large_acked.max(fate.sent_at);
            }
            self.pmtu.on_packet_acked(fate.size);
            self.apply_acked(now, pool, fate);
        }
        self.fates = fates;
        self.detect_lost(now);
        self.top_up(now);
        Ok(())
    }

    fn detect_lost(&mut self, now: Instant) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.detect_lost(now, &self.rtt, &mut fates);
        let loss = &mut self.loss;
        self.sent.settle(|arrived| {
            if arrived {
                loss.on_acked(1)
            } else {
                loss.on_lost(1)
            }
        });
        self.sent.forget(now, &self.rtt);
        let mtu = self.pmtu.current();
        for fate in &fates {
            self.stats.packets_lost += 1;
            // A loss that a later large packet survived says nothing about size.
            if fate.sent_at > self.newest_large_acked && !is_probe(&fate.carried) {
                self.pmtu.on_packet_lost(now, fate.size);
            }
            self.apply_lost(now, fate);
        }
        self.fates = fates;
        if self.pmtu.current() != mtu {
            self.events.push_back(Event::PathMtu(self.pmtu.current()));
        }
    }

    fn apply_acked(&mut self, now: Instant, pool: &mut ChunkPool, fate: &Fate) {
        for c in fate.carried {
            match c {
                Carried::Data {
                    flow, offset, len, ..
                } => {
                    if let Some(f) = self.flows.get_mut(&flow) {
                        f.send.on_acked(pool, offset, u64::from(len));
                        self.after_ack(pool, flow);
                    }
                }
                Carried::Repair { flow, base } => {
                    if let Some(f) = self.flows.get_mut(&flow) {
                        f.send.on_repair(base, true);
                    }
                }
                Carried::Fin { flow } | Carried::Reset { flow, .. } => {
                    if let Some(f) = self.flows.get_mut(&flow) {
                        let said = match c {
                            Carried::Reset { code, .. } => End::Reset(code),
                            _ => End::Finished,
                        };
                        if f.send.ending() == said {
                            f.send.end_acked();
                        }
                        self.after_ack(pool, flow);
                    }
                }
                Carried::Probe { size } => {
                    let before = self.pmtu.current();
                    self.pmtu.on_probe_acked(now, size);
                    if self.pmtu.current() != before {
                        self.events.push_back(Event::PathMtu(self.pmtu.current()));
                    }
                }
                _ => {}
            }
        }
    }

    /// A flow whose bytes were acknowledged may have room again, or be over.
    fn after_ack(&mut self, pool: &mut ChunkPool, flow: u32) {
        if let Some(f) = self.flows.get(&flow) {
            if f.send.unsent() > 0 {
                self.activated.push((SendKey::Stream(flow), f.weight));
            }
        }
        self.reap(pool, flow);
    }

    fn apply_lost(&mut self, now: Instant, fate: &Fate) {
        for c in fate.carried {
            match c {
                Carried::Data {
                    flow,
                    offset,
                    len,
                    generation,
                } => {
                    if let Some(f) = self.flows.get_mut(&flow) {
                        // Only a loss that the path is known to have caused counts towards sending twice.
                        let generation = generation.saturating_add(u8::from(!fate.unheard));
                        f.send.on_lost(offset, u64::from(len), generation);
                        self.activated.push((SendKey::Stream(flow), f.weight));
                    }
                }
                Carried::Repair { flow, base } => {
                    if let Some(f) = self.flows.get_mut(&flow) {
                        f.send.on_repair(base, false);
                    }
                }
                Carried::Setup { flow } => self.again(flow, Control::Setup(flow), |s| {
                    s.opening == Opening::Pending
                }),
                Carried::Opened { flow } => self.again(flow, Control::Opened(flow), |_| true),
                Carried::Refused { flow } => self.again(flow, Control::Refused(flow), |_| true),
                Carried::Fin { flow } | Carried::Reset { flow, .. } => {
                    self.again(flow, Control::End(flow), |f| !f.send.is_end_acked());
                }
                Carried::Window { flow: 0 } => {
                    self.queue_control(Instant::ZERO, Control::Window(0))
                }
                Carried::Window { flow } => self.again(flow, Control::Window(flow), |_| true),
                Carried::Hello => self.queue_control(Instant::ZERO, Control::Hello),
                Carried::Probe { size } => self.pmtu.on_probe_lost(now, size),
                Carried::Nothing | Carried::Ping | Carried::Datagram => {}
            }
        }
    }

    fn again(&mut self, flow: u32, what: Control, still: impl Fn(&super::Flow) -> bool) {
        if self.flows.get(&flow).is_some_and(still) {
            self.queue_control(Instant::ZERO, what);
        }
    }

    /// Applies the repair rule to every flow with open spans.
    fn top_up(&mut self, now: Instant) {
        let loss = self.loss.repair_loss();
        let patience = self.rtt.smoothed() / 4 + Duration::from_millis(30);
        let mut over = Vec::new();
        for id in &self.spanned {
            let Some(f) = self.flows.get_mut(id) else {
                over.push(*id);
                continue;
            };
            f.send.top_up(loss);
            if !f.send.has_spans() {
                over.push(*id);
                f.stalled_since = None;
            } else if f.send.waits_for_word() {
                // All that was sent is settled, enough repair arrived, and still no word that the span is whole.
                let since = *f.stalled_since.get_or_insert(now);
                if now.since(since) > patience {
                    f.send.give_up_spans();
                    f.stalled_since = None;
                }
            } else {
                f.stalled_since = None;
            }
            if !f.send.is_fully_sent() {
                self.activated.push((SendKey::Stream(*id), f.weight));
            }
        }
        for id in over {
            self.spanned.remove(&id);
        }
    }

    fn open_span(send: &mut SendStream, now: Instant, symbol: usize, loss: f64) {
        send.open_span(now, symbol);
        send.top_up(loss);
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant, pool: &mut ChunkPool) {
        if !self.in_session {
            return;
        }
        if !self.silent {
            if self.sent.timeout(&self.rtt).is_some_and(|t| t <= now) {
                self.detect_lost(now);
                self.top_up(now);
            }
            self.check_silence(now);
        }
        let (symbol, loss, gap) = (
            self.payload_size(),
            self.loss.repair_loss(),
            self.span_gap(),
        );
        let due: Vec<u32> = self
            .quiet
            .iter()
            .copied()
            .filter(|id| {
                self.flows
                    .get(id)
                    .is_none_or(|f| f.send.span_due(gap).is_none_or(|t| t <= now))
            })
            .collect();
        for id in due {
            self.quiet.remove(&id);
            if let Some(f) = self.flows.get_mut(&id) {
                if f.send.span_due(gap).is_some() {
                    Self::open_span(&mut f.send, now, symbol, loss);
                    self.spanned.insert(id);
                    self.activated.push((SendKey::Stream(id), f.weight));
                }
            }
        }
        // One at a time: each takes about as long as the line's credit lasts.
        for id in &self.spanned {
            let Some(f) = self.flows.get_mut(id) else {
                continue;
            };
            if f.send.encode_one() {
                self.took_long = true;
                // With its repair, or with its losses where there is none to be had.
                self.activated.push((SendKey::Stream(*id), f.weight));
                break;
            }
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            if self.silent {
                self.forget_stale(now);
            }
            let keep = self.history_time();
            for f in self.flows.values_mut() {
                f.recv.free(pool, now, keep);
            }
            self.expire_fragments(now);
            self.top_up(now);
        }
        self.guard.poll(now);
    }

    /// Probes of a long silence are not remembered for ever. They are no sample of the path's loss.
    fn forget_stale(&mut self, now: Instant) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.forget_stale(now, STALE, &mut fates);
        for fate in &fates {
            self.apply_lost(now, fate);
        }
        self.fates = fates;
    }

    /// Least time between two spans of one flow: a flow that its host feeds slowly runs empty all the time.
    pub(super) fn span_gap(&self) -> Duration {
        self.rtt.smoothed() / 32
    }

    fn check_silence(&mut self, now: Instant) {
        let Some(oldest) = self.sent.oldest_in_flight().map(|o| o.max(self.last_ack)) else {
            return;
        };
        let limit = (self.rtt.smoothed() * 3).max(Duration::from_secs(1));
        // Lost packets leave the ledger's flight; the last answer is what counts.
        let quiet = now
            .since(self.last_ack)
            .min(now.since(self.last_ack.min(oldest)));
        if quiet > limit && self.last_elicit > self.last_ack {
            self.silent = true;
            let mut fates = core::mem::take(&mut self.fates);
            fates.clear();
            self.sent.declare_unheard(&mut fates);
            for fate in &fates {
                self.apply_lost(now, fate);
            }
            self.fates = fates;
            self.silent_since = self.last_ack;
            self.events.push_back(Event::Silent);
        }
    }

    /// How far apart probes are while answers are awaited.
    pub(super) fn ping_interval(&self) -> Duration {
        (self.rtt.smoothed() / 4).clamp(Duration::from_millis(20), Duration::from_millis(250))
    }

    pub(super) fn next_ping(&self) -> Instant {
        if self.silent || self.sent.in_flight() > 0 {
            self.last_ping + self.ping_interval()
        } else {
            self.last_elicit.max(self.last_ping) + KEEPALIVE
        }
    }
}
