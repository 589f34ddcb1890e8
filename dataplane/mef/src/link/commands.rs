//! What the router asks of the link for its flows: to open and end them, to take the
//! hosts' bytes and to give them those that have come; and what it is told in return.

use core::time::Duration;

use mef_packet::Instant;

use super::{
    credit, weight_of, Control, Event, Flow, Link, Opening, SendKey, HISTORY_MARGIN, MAX_FLOWS,
};
use crate::chunks::{ChunkPool, Use};
use crate::classes::Class;
use crate::codec::{Setup, RESET_ECHO};
use crate::recv_stream::RecvStream;
use crate::send_stream::{End, SendStream};

impl Link {
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

    pub(super) fn make_flow(&self, setup: Option<Setup>) -> Flow {
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
    pub(super) fn abandon(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32) {
        if let Some(f) = self.flows.get_mut(&flow) {
            f.abandoned = true;
            f.released = true;
        }
        self.drain_abandoned(now, pool, flow);
        self.reap(pool, flow);
    }

    pub(super) fn drain_abandoned(&mut self, now: Instant, pool: &mut ChunkPool, flow: u32) {
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

    pub(super) fn count_consumed(&mut self, flow: u32, total: u64) {
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
    pub(super) fn history_time(&self, pool: &ChunkPool) -> Duration {
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
    pub(super) fn reap(&mut self, pool: &mut ChunkPool, flow: u32) {
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

    pub(super) fn queue_control(&mut self, what: Control) {
        self.control.now(what);
    }
    /// Sends now and once more a moment later, so that one loss does not cost a round trip.
    pub(super) fn control_twice(&mut self, now: Instant, what: Control) {
        self.control.now(what);
        self.control.at(now + Duration::from_millis(3), what);
    }
    /// Something waits to be said, beside acknowledgements.
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }
    pub(super) fn tell(&mut self, flow: u32) {
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
