//! What goes out: control when it is due, a flow's next packet when it is its turn.

use core::time::Duration;

use mef_packet::Instant;

use super::{Control, Link, Opening, Packed, SendKey};
use crate::carried::{Carried, CarriedSet, MAX_CARRIED};
use crate::chunks::ChunkPool;
use crate::codec::{
    Builder, Frame, Hello, Setup, FLAG_ACK_NOW, FLAG_ELICITS_ACK, INNER_HEADER, STREAM_HEADER,
};
use crate::send_stream::{End, Next};

/// Share of the line that acknowledgements may take.
const CONTROL_SHARE: f64 = 0.01;
/// Packed control stays below this, so that it passes any path.
const CONTROL_LIMIT: usize = 1200;

/// What came of asking a flow for a packet.
enum Attempt {
    Packed(Packed),
    Nothing,
    /// What it offered could not be sent and was given up: it may have something else.
    Other,
}

struct CarriedList {
    frames: [Carried; MAX_CARRIED],
    count: usize,
}

impl CarriedList {
    const fn new() -> Self {
        Self {
            frames: [Carried::Nothing; MAX_CARRIED],
            count: 0,
        }
    }
    fn is_full(&self) -> bool {
        self.count == MAX_CARRIED
    }
    fn push(&mut self, c: Carried) {
        if let Some(s) = self.frames.get_mut(self.count) {
            *s = c;
            self.count += 1;
        }
    }
    fn set(&self) -> CarriedSet {
        CarriedSet::of(self.frames.get(..self.count).unwrap_or_default())
    }
}

impl Link {
    /// Packs the control that is due as packet `number`, appended to `out`; `None` when nothing is.
    pub fn poll_control(&mut self, now: Instant, number: u64, out: &mut Vec<u8>) -> Option<Packed> {
        if !self.in_session {
            return None;
        }
        if let Some(packed) = self.pack_probe(now, number, out) {
            return Some(packed);
        }
        let limit = self.inner_limit().min(CONTROL_LIMIT);
        let start = out.len();
        let mut b = Builder::new(out, limit);
        let mut carried = CarriedList::new();

        let acked = self.received.due(&self.rtt).is_some_and(|t| t <= now);
        if acked {
            let mut scratch = core::mem::take(&mut self.scratch);
            let ack = self.received.ack(now, &mut scratch);
            b.push(&Frame::Ack(ack));
            self.scratch = scratch;
        }
        // Also in a silence: it may end because the peer learns from this where this end is now.
        while !carried.is_full() {
            let Some(&token) = self.answers.front() else {
                break;
            };
            if !b.push(&Frame::PathResponse { token }) {
                break;
            }
            carried.push(Carried::Nothing);
            self.answers.pop_front();
        }
        self.control.ripen(now);
        while !self.silent && !carried.is_full() {
            // A peer that does not know yet who speaks takes nothing but HELLO.
            let Some(what) = self.control.first(!self.probing) else {
                break;
            };
            let Some((frame, c)) = self.control_frame(now, what) else {
                self.control.done(what);
                continue;
            };
            if !b.push(&frame) {
                break;
            }
            if let (Control::Window(flow), Frame::Window { max_offset, .. }) = (what, frame) {
                if flow == 0 {
                    self.announced = max_offset;
                }
            }
            carried.push(c);
            self.control.done(what);
        }
        if self.next_ping() <= now
            && !carried.is_full()
            && b.push(&Frame::Ping {
                floor: self.sent.floor(),
            })
        {
            carried.push(Carried::Ping);
            self.last_ping = now;
            self.ping_now = false;
        }
        if b.is_empty() {
            out.truncate(start);
            return None;
        }
        let elicits = carried.count > 0;
        if elicits {
            b.flag(self.control_flags());
        }
        let inner_len = b.finish();
        let packed = self.account(now, number, inner_len, carried.set(), elicits);
        if acked {
            let share = self.control_rate(CONTROL_SHARE);
            self.received.ack_sent(now, packed.line_bytes, share);
        }
        Some(packed)
    }

    fn control_frame(&mut self, now: Instant, what: Control) -> Option<(Frame<'static>, Carried)> {
        let window = self.flow_window();
        Some(match what {
            Control::Hello => {
                let hello = Hello {
                    boot_id: self.config.boot_id,
                    workers: self.workers.0,
                    hash_key: self.workers.1,
                    mtu: self.config.port_mtu,
                    line_up: self.config.line_up,
                    line_down: self.config.line_down,
                    link_credit: self.config.link_credit,
                    flow_credit: self.promised,
                };
                (Frame::Hello(hello), Carried::Hello)
            }
            Control::Setup(flow) => {
                let f = self.flows.get(&flow).filter(|f| {
                    f.opening == Opening::Pending || f.setup.is_some_and(|s| s.early)
                })?;
                let setup: Setup = f.setup?;
                (Frame::Setup { flow, setup }, Carried::Setup { flow })
            }
            Control::Opened(flow) => {
                self.flows.get(&flow)?;
                (Frame::Opened { flow }, Carried::Opened { flow })
            }
            Control::Refused(flow) => match self.flows.get(&flow)?.opening {
                Opening::Refused(code) => {
                    (Frame::Refused { flow, code }, Carried::Refused { flow })
                }
                _ => return None,
            },
            Control::End(flow) => {
                let f = self.flows.get(&flow).filter(|f| !f.send.is_end_acked())?;
                let offset = f.send.written();
                match f.send.ending() {
                    End::Open => return None,
                    End::Finished => (Frame::Fin { flow, offset }, Carried::Fin { flow }),
                    End::Reset(code) => (
                        Frame::Reset { flow, offset, code },
                        Carried::Reset { flow, code },
                    ),
                }
            }
            Control::Window(0) => {
                let max_offset = self.consumed.saturating_add(self.config.link_credit);
                (
                    Frame::Window {
                        flow: 0,
                        max_offset,
                        received: 0,
                        read: 0,
                        room: 0,
                        pace: 0,
                    },
                    Carried::Window { flow: 0 },
                )
            }
            Control::Window(flow) => {
                let f = self.flows.get_mut(&flow)?;
                f.recv.set_window(window);
                let (read, room, pace) = Self::say_read(f, window);
                let frame = Frame::Window {
                    flow,
                    max_offset: f.recv.grant(),
                    received: f.recv.ready(),
                    read,
                    room,
                    pace,
                };
                (frame, Carried::Window { flow })
            }
            Control::AskHeard(_) | Control::Heard(_) | Control::Gone(_) => {
                (self.heard_frame(now, what)?, Carried::Nothing)
            }
        })
    }

    fn pack_probe(&mut self, now: Instant, number: u64, out: &mut Vec<u8>) -> Option<Packed> {
        if self.silent || !self.probing {
            return None;
        }
        let size = self.pmtu.poll_probe(now)?;
        let inner = usize::from(size.checked_sub(self.config.packet_overhead)?);
        let mut b = Builder::new(out, inner);
        let padding = inner.checked_sub(INNER_HEADER + crate::codec::FRAME_HEADER)?;
        b.push(&Frame::Probe { padding });
        b.flag(FLAG_ELICITS_ACK);
        let inner_len = b.finish();
        let carried = CarriedSet::one(Carried::Probe { size });
        Some(self.account(now, number, inner_len, carried, true))
    }

    /// Packs the next packet of the flow or datagram queue `key`, appended to `out`; `None` when it has nothing to send.
    pub fn poll_flow(
        &mut self,
        now: Instant,
        number: u64,
        key: SendKey,
        pool: &mut ChunkPool,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        if !self.in_session || self.silent || !self.probing {
            return None;
        }
        match key {
            SendKey::Stream(flow) => self.pack_stream(now, pool, number, flow, out),
            SendKey::Datagram(flow) => self.pack_datagram(now, number, flow, out),
        }
    }

    fn pack_stream(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        number: u64,
        id: u32,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        loop {
            match self.try_stream(now, pool, number, id, out) {
                Attempt::Packed(packed) => return Some(packed),
                Attempt::Nothing => return None,
                Attempt::Other => {}
            }
        }
    }

    fn try_stream(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        number: u64,
        id: u32,
        out: &mut Vec<u8>,
    ) -> Attempt {
        let repairs = self.repairs();
        let max = if repairs {
            self.payload_size()
        } else {
            self.largest_payload()
        };
        let limit = self.inner_limit();
        let link_room = self.flows.get(&id).map_or(0, |f| self.new_bytes(f));
        let gap = self.span_gap();
        let flags = self.data_flags();
        let start = out.len();
        let Some(f) = self.flows.get_mut(&id) else {
            return Attempt::Nothing;
        };
        let next = f.send.next(now, max, link_room);
        if next.is_none() && repairs && f.send.span_due(gap).is_some() {
            // Opened, and encoded, when time passes: between two packets it would hold up pacing.
            self.quiet.insert(id);
        }
        let Some(next) = next else {
            if f.send.unsent() > 0 && link_room < max as u64 {
                self.blocked_on_link = true;
            }
            return Attempt::Nothing;
        };
        let mut b = Builder::new(out, limit);
        let carried;
        match next {
            Next::Data {
                offset,
                len,
                generation,
            } => {
                let stream = &f.send;
                if !b.push_data(id, offset, len, |to| stream.append_to(offset, len, to)) {
                    // Only a defect of this program could lead here; give the range up rather than loop on it.
                    out.truncate(start);
                    f.send.on_sent(offset, len, generation);
                    return Attempt::Other;
                }
                let before = f.send.retransmitted();
                let fresh = f.send.on_sent(offset, len, generation);
                self.stats.bytes_retransmitted += f.send.retransmitted() - before;
                self.stream_sent += fresh;
                carried = Carried::Data {
                    flow: id,
                    offset,
                    len: u16::try_from(len).unwrap_or(u16::MAX),
                    generation,
                };
                if fresh > 0 {
                    // The host may be read again.
                    if !f.told && f.send.unsent() < 32 * 1024 {
                        f.told = true;
                        self.events.push_back(super::Event::Flow(id));
                    }
                }
            }
            Next::Repair { base } => {
                let mut symbol = core::mem::take(&mut self.scratch);
                symbol.clear();
                let named = f.send.repair(pool, base, &mut symbol);
                let pushed = named.is_some_and(|(span, index)| {
                    b.push(&Frame::Repair {
                        flow: id,
                        span,
                        index,
                        symbol: &symbol,
                    })
                });
                debug_assert!(
                    named.is_none()
                        || pushed
                        || symbol.len() + STREAM_HEADER + INNER_HEADER > limit
                );
                self.scratch = symbol;
                if !pushed {
                    // The path's MTU fell below the symbols' size since the span was cut.
                    out.truncate(start);
                    f.send.give_up_span(base);
                    return Attempt::Other;
                }
                self.stats.repairs_sent += 1;
                carried = Carried::Repair { flow: id, base };
            }
        }
        b.flag(flags);
        if f.send.is_fully_sent() {
            b.flag(FLAG_ACK_NOW);
        }
        let inner_len = b.finish();
        let dscp = f.setup.map_or(0, |s| s.dscp);
        let carried = CarriedSet::one(carried);
        let mut packed = self.account(now, number, inner_len, carried, true);
        packed.traffic_class = dscp << 2;
        Attempt::Packed(packed)
    }

    fn pack_datagram(
        &mut self,
        now: Instant,
        number: u64,
        flow: u32,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        let limit = self.inner_limit();
        let flags = self.data_flags();
        let start = out.len();
        let mut b = Builder::new(out, limit);
        let Some((traffic_class, waited)) = self.fill_datagrams(now, flow, &mut b) else {
            out.truncate(start);
            return None;
        };
        b.flag(flags);
        let inner_len = b.finish();
        let carried = CarriedSet::one(Carried::Datagram);
        let mut packed = self.account(now, number, inner_len, carried, true);
        packed.waited = Some(waited);
        packed.traffic_class = traffic_class;
        packed.more = self.half.is_some();
        Some(packed)
    }

    #[inline]
    pub(super) fn account(
        &mut self,
        now: Instant,
        number: u64,
        inner_len: usize,
        carried: CarriedSet,
        elicits: bool,
    ) -> Packed {
        let size = inner_len + usize::from(self.config.packet_overhead);
        let line_bytes = (size + usize::from(self.config.frame_overhead)) as u64;
        self.sent_bytes += line_bytes;
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        // Probes are expected to be lost: they are no evidence of a black hole.
        if !carried.is_probe() {
            self.pmtu.on_packet_sent(now, size);
        }
        self.sent
            .sent(now, number, size, self.sent_bytes, carried, elicits);
        self.stats.packets_sent += 1;
        self.stats.bytes_sent += line_bytes;
        if elicits {
            self.last_elicit = now;
            self.unanswered.get_or_insert(now);
        }
        Packed {
            inner_len,
            line_bytes,
            waited: None,
            traffic_class: 0,
            more: false,
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`poll_control`](Self::poll_control) has something to do.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        if !self.in_session {
            return Instant::FAR_FUTURE;
        }
        if !self.answers.is_empty() {
            return now;
        }
        let mut at = self.next_ping().min(self.next_sweep);
        if let Some(t) = self.received.due(&self.rtt) {
            at = at.min(t);
        }
        if self.silent {
            return at;
        }
        if let Some(t) = self.sent.timeout(&self.rtt) {
            at = at.min(t);
        }
        if self.probing {
            at = at.min(self.pmtu.next_at(now));
        }
        at = at.min(self.guard.next_at());
        at = at.min(self.steer_at());
        at = at.min(self.control.due(!self.probing));
        at = at.min(self.torn.due());
        let gap: Duration = self.span_gap();
        for id in &self.quiet {
            if let Some(t) = self.flows.get(id).and_then(|f| f.send.span_due(gap)) {
                at = at.min(t);
            }
        }
        at
    }
}
