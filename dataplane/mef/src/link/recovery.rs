//! What acknowledgements and their absence lead to: packets settled, ranges sent again,
//! repair topped up, silence.

use core::time::Duration;

use mef_packet::Instant;

use super::{Control, Event, Link, Opening, PacketError, SendKey, KEEPALIVE, KEEPALIVE_UNUSED};
use crate::carried::Carried;
use crate::chunks::ChunkPool;
use crate::codec::Ack;
use crate::guard::AckSample;
use crate::pmtu;
use crate::send_stream::{End, SendStream};
use crate::sent::Fate;

/// Round trip in which bytes are sent again as soon as they can be encoded and decoded.
const SHORT_PATH: Duration = Duration::from_millis(4);
/// How long an answer is awaited while nothing is acknowledged.
const STALE: Duration = Duration::from_secs(10);

impl Link {
    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        pool: &mut ChunkPool,
        ack: &Ack<'_>,
    ) -> Result<(), PacketError> {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.note_newest(ack.largest);
        let known = self
            .sent
            .on_ack(now, ack.largest, &ack.received, pmtu::BASE, &mut fates);
        let Some(acked) = known else {
            self.fates = fates;
            return Err(PacketError::AckOfUnsent);
        };
        if let Some((at, sent_bytes)) = acked.sample {
            let raw = now.since(at);
            self.rtt
                .sample(raw.saturating_sub(Duration::from_micros(u64::from(ack.delay_us))));
            self.pmtu.set_rtt(self.rtt.smoothed(), self.rtt.ack_delay());
            let sample = AckSample {
                sent_at: at,
                sent_bytes,
                rx_us: ack.rx_time_us,
                delivered_bytes: ack.delivered_bytes,
                receiver_drops: u64::from(ack.drops),
            };
            if self.estimate.is_none() {
                self.guard
                    .on_ack(now, self.rtt.min(), self.loss.mean(), sample);
            }
        }
        self.report(now, ack);
        if acked.packets > 0 {
            self.last_ack = now;
            self.unanswered = (self.sent.in_flight() > 0).then_some(now);
            if self.silent {
                self.silent = false;
                self.pmtu.path_returned();
                self.events.push_back(Event::Resumed);
                self.activate_all();
            }
        }
        if let Some(at) = acked.newest_large {
            self.newest_large_acked = self.newest_large_acked.max(at);
            self.pmtu.on_large_acked();
        }
        for fate in &fates {
            if fate.spurious {
                self.loss.on_spurious(1);
                self.stats.packets_spurious += 1;
            }
            self.apply_acked(now, pool, fate);
        }
        self.fates = fates;
        self.detect_lost(now);
        self.top_up(now);
        Ok(())
    }

    pub(super) fn detect_lost(&mut self, now: Instant) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.detect_lost(now, &self.rtt, &mut fates);
        let loss = &mut self.loss;
        self.sent.settle(|arrived, packets| {
            if arrived {
                loss.on_acked(packets)
            } else {
                loss.on_lost(packets)
            }
        });
        self.sent.forget(now, &self.rtt);
        let mtu = self.pmtu.current();
        for fate in &fates {
            self.stats.packets_lost += 1;
            // A loss that a later large packet survived says nothing about size.
            if fate.sent_at > self.newest_large_acked && !fate.carried.is_probe() {
                self.pmtu.on_packet_lost(now, fate.size);
            }
            self.apply_lost(now, fate);
        }
        self.fates = fates;
        if self.pmtu.current() != mtu {
            self.events.push_back(Event::PathMtu(self.pmtu.current()));
        }
    }

    pub(super) fn apply_acked(&mut self, now: Instant, pool: &mut ChunkPool, fate: &Fate) {
        for c in fate.carried.iter() {
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
    pub(super) fn after_ack(&mut self, pool: &mut ChunkPool, flow: u32) {
        if let Some(f) = self.flows.get(&flow) {
            if f.send.unsent() > 0 {
                self.activated.push((SendKey::Stream(flow), f.weight));
            }
        }
        self.reap(pool, flow);
    }

    pub(super) fn apply_lost(&mut self, now: Instant, fate: &Fate) {
        for c in fate.carried.iter() {
            match c {
                Carried::Data {
                    flow,
                    offset,
                    len,
                    generation,
                } => {
                    let mut torn = false;
                    if let Some(f) = self.flows.get_mut(&flow) {
                        // Only a loss that the path is known to have caused counts towards sending twice.
                        let generation = generation.saturating_add(u8::from(!fate.unheard));
                        f.send.on_lost(now, offset, u64::from(len), generation);
                        torn |= f.send.torn_since() == Some(now);
                        self.activated.push((SendKey::Stream(flow), f.weight));
                    }
                    if torn {
                        self.note_torn(now, flow);
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
                Carried::Window { flow: 0 } => self.queue_control(Control::Window(0)),
                Carried::Window { flow } => self.again(flow, Control::Window(flow), |_| true),
                Carried::Hello => self.queue_control(Control::Hello),
                Carried::Probe { size } => self.pmtu.on_probe_lost(now, size),
                Carried::Nothing | Carried::Ping | Carried::Datagram => {}
            }
        }
    }

    pub(super) fn again(&mut self, flow: u32, what: Control, still: impl Fn(&super::Flow) -> bool) {
        if self.flows.get(&flow).is_some_and(still) {
            self.queue_control(what);
        }
    }

    /// Applies the repair rule to every flow with open spans.
    pub(super) fn top_up(&mut self, now: Instant) {
        if self.spanned.is_empty() {
            return;
        }
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

    pub(super) fn open_span(send: &mut SendStream, now: Instant, symbol: usize, loss: f64) {
        send.open_span(now, symbol);
        send.top_up(loss);
    }

    /// Probes of a long silence are not remembered for ever. They are no sample of the path's loss.
    pub(super) fn forget_stale(&mut self, now: Instant) {
        let mut fates = core::mem::take(&mut self.fates);
        fates.clear();
        self.sent.forget_stale(now, STALE, &mut fates);
        for fate in &fates {
            self.apply_lost(now, fate);
        }
        self.fates = fates;
    }

    /// Whether the tails of streams get repair: it saves a round trip, at the price of encoding.
    pub(super) fn repairs(&self) -> bool {
        self.rtt.min() >= SHORT_PATH
    }

    /// Least time between two spans of one flow: a flow that its host feeds slowly runs empty all the time.
    pub(super) fn span_gap(&self) -> Duration {
        self.rtt.smoothed() / 32
    }

    pub(super) fn check_silence(&mut self, now: Instant) {
        let limit = (self.rtt.smoothed() * 3).max(self.silence());
        if self.unanswered.is_some_and(|t| now.since(t) > limit) {
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
        if self.ping_now {
            return Instant::ZERO;
        }
        let next = self.last_ping + self.ping_interval();
        match self.unanswered {
            _ if self.silent || self.sent.awaits() => next,
            // A single question: it is asked again when the answer is overdue.
            Some(since) => next.max(since + self.rtt.timeout()),
            None if self.flows.is_empty() => {
                self.last_elicit.max(self.last_ping) + KEEPALIVE_UNUSED
            }
            None => self.last_elicit.max(self.last_ping) + KEEPALIVE,
        }
    }
}
