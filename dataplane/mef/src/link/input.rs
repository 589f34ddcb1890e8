//! What comes in: sessions, packets, the passing of time.

use core::time::Duration;

use mef_packet::wire::ecn::Ecn;
use mef_packet::Instant;

use super::{Control, Event, Link, Opening, PacketError, SendKey, MAX_FLOWS, SWEEP};
use crate::chunks::ChunkPool;
use crate::codec::{
    self, Frame, Hello, FLAG_ACK_NOW, FLAG_ELICITS_ACK, FLAG_KEEP_REPORTING, RESET_ECHO,
};
use crate::received::ReceivedLedger;
use crate::recv_stream::{RecvStream, StreamError};
use crate::send_stream::End;

/// How long reports go on behind the last packet of a sender that estimates its line.
const REPORTING: Duration = Duration::from_millis(1500);

fn speaks_of_flow(frame: &Frame<'_>) -> bool {
    !matches!(
        frame,
        Frame::Hello(_)
            | Frame::Ack(_)
            | Frame::Ping { .. }
            | Frame::PathChallenge { .. }
            | Frame::PathResponse { .. }
            | Frame::Probe { .. }
            | Frame::Unknown { .. }
    )
}

impl Link {
    /// A session with the peer was confirmed: packet numbers start anew. `rtt` is what the handshake took, where known.
    pub fn session_started(&mut self, now: Instant, rtt: Option<Duration>) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.declare_all_lost(&mut fates);
        self.in_session = true;
        self.half = None;
        self.rests.clear();
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
        self.unanswered = None;
        self.guard.session_started(now);
        if let Some(rtt) = rtt {
            self.rtt.sample(rtt);
        }
        self.estimate_anew(now);
        if self.promised == 0 {
            self.promised = self.flow_window().min(self.config.link_credit / 4);
        }
        self.answers.clear();
        for delay in [0, 20, 100] {
            self.control
                .at(now + Duration::from_millis(delay), Control::Hello);
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
        self.handle_marked_packet(now, pool, number, line_bytes, Ecn::NotEct, inner)
    }

    /// As [`handle_packet`](Self::handle_packet), of a packet that arrived with the ECN bits `outer`.
    ///
    /// # Errors
    /// The same.
    pub fn handle_marked_packet(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        number: u64,
        line_bytes: u64,
        outer: Ecn,
        inner: &[u8],
    ) -> Result<(), PacketError> {
        self.outer = outer;
        let taken = self.take_frames(now, pool, inner);
        match taken {
            // Not a loss of this end's making: the peer sends it again once it may.
            Err(PacketError::BeforeHello) => Err(PacketError::BeforeHello),
            // Credit is what answers a lack of memory; it says nothing of what the line carries.
            Err(PacketError::Stream(StreamError::NoMemory)) => Err(StreamError::NoMemory.into()),
            Ok(flags) => {
                self.note_received(now, number, line_bytes, flags);
                Ok(())
            }
            Err(e) => {
                self.received.on_drop();
                Err(e)
            }
        }
    }

    pub(super) fn note_received(&mut self, now: Instant, number: u64, line_bytes: u64, flags: u16) {
        let elicits = flags & FLAG_ELICITS_ACK != 0;
        let at_once = flags & FLAG_ACK_NOW != 0;
        self.received
            .on_packet(now, number, line_bytes, elicits, at_once);
        if flags & FLAG_KEEP_REPORTING != 0 {
            self.received.keep_reporting(now + REPORTING);
        }
        self.stats.packets_received += 1;
        self.stats.bytes_received += line_bytes;
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
                    self.count_arrived(flow, offset.saturating_add(payload.len() as u64))?;
                    let more = self.with_recv(flow, |recv| {
                        let before = recv.arrived();
                        recv.on_data(pool, offset, payload)?;
                        Ok::<_, StreamError>(recv.arrived() - before)
                    })?;
                    self.arrived += more.unwrap_or(0);
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
                    let back = self.flows.get_mut(&flow).is_some_and(|f| {
                        let before = (f.recv.recovered(), f.recv.arrived());
                        let back = f.recv.on_repair(pool, span, index, symbol);
                        self.stats.bytes_recovered += f.recv.recovered() - before.0;
                        self.arrived += f.recv.arrived() - before.1;
                        back
                    });
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
                read,
                room,
                pace,
            } => {
                if let Some(f) = self.flows.get_mut(&flow) {
                    if received > f.send.sent() || read > f.send.sent() {
                        return Err(PacketError::AckOfUnsent);
                    }
                    f.send.set_credit(max_offset);
                    Self::heard_read(f, read, room, pace);
                    f.send.on_acked(pool, 0, received);
                    self.after_ack(pool, flow);
                }
            }
            Frame::Heard { flow, ago_ms } => self.on_heard(flow, ago_ms),
            Frame::Gone { host, far } => self.events.push_back(Event::Gone { host, far }),
            Frame::Ack(ack) => self.on_ack(now, pool, &ack)?,
            Frame::Hello(hello) => self.on_hello(now, pool, hello),
            Frame::Ping { floor } => self.received.set_floor(floor),
            Frame::Datagram { packet, .. } => {
                let mut datagram = self.buffer();
                datagram.extend_from_slice(packet);
                self.arrive(datagram, self.outer);
            }
            Frame::PathChallenge { token } => self.on_challenge(token),
            Frame::PathResponse { token } => self.events.push_back(Event::PathResponse(token)),
            Frame::Fragment {
                id,
                index,
                count: 2,
                bytes,
            } => self.join(now, id, index, bytes, self.outer),
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

    fn on_hello(&mut self, now: Instant, pool: &mut ChunkPool, hello: Hello) {
        let restarted = self.peer.is_some_and(|p| p.boot_id != hello.boot_id);
        if restarted {
            let flows = self.flow_numbers();
            for (_, mut f) in self.flows.drain() {
                f.send.release(pool);
                f.recv.release(pool);
            }
            self.seen.clear();
            self.gone.clear();
            self.quiet.clear();
            self.spanned.clear();
            self.torn = Default::default();
            self.stream_sent = 0;
            self.stream_credit = 0;
            self.consumed = 0;
            self.announced = self.config.link_credit;
            self.arrived = 0;
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

    pub(super) fn activate_all(&mut self) {
        for id in self.flow_numbers() {
            if let Some(f) = self.flows.get(&id) {
                self.activated.push((SendKey::Stream(id), f.weight));
            }
        }
        for flow in self.datagrams.flows() {
            if let Some((weight, _)) = self.datagrams.service(flow) {
                self.activated.push((SendKey::Datagram(flow), weight));
            }
        }
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
        if !self.quiet.is_empty() {
            self.open_spans(now);
        }
        self.open_middles(now);
        // One at a time: each takes about as long as the line's credit lasts.
        for id in &self.spanned {
            let Some(f) = self.flows.get_mut(id) else {
                continue;
            };
            if f.send.encode_one(pool) {
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
            let keep = self.history_time(pool);
            for f in self.flows.values_mut() {
                f.recv.free(pool, now, keep);
            }
            self.tell_reads(now);
            self.expire_fragments(now);
            let limits = self.datagram_limits();
            self.datagrams.set_limits(limits);
            self.top_up(now);
        }
        self.guard.poll(now);
        self.steer(now);
    }

    /// Opens the spans of flows that have been quiet for long enough.
    fn open_spans(&mut self, now: Instant) {
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
    }
}
