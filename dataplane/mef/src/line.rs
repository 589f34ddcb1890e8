//! A line: what a port is attached to. One budget for everything it carries,
//! and one fair scheduler over the flows of all its links. A link whose
//! bottleneck is elsewhere (the peer's downlink, a capacity that the guard
//! found to be smaller) has a budget of its own; its flows are parked while
//! that one is in debt, so that the others use the line meanwhile.
//!
//! What leaves in the clear beside the links waits in queues of the line's own and
//! takes part like any other flow. Several users of a line of unknown capacity have a
//! [common rate](crate::auto) beside that.
//!
//! ```text
//!   links: streams, datagrams --\
//!                                 classes, fair shares --> budget --> the line
//!   packets in the clear --------/
//! ```

use core::time::Duration;

use mef_packet::{BitRate, Bytes, Instant};

use crate::aqm::{FlowQueues, Limits, Queued};
use crate::auto::users::Users;
use crate::bucket::LineBudget;
use crate::chunks::ChunkPool;
use crate::classes::{Class, ClassScheduler};
use crate::link::{DatagramFlow, Link, Packed, SendKey};

/// Share of the configured capacity that is used. The rest drains what jitter leaves in the
/// bottleneck's queue.
pub const UTILISATION: f64 = 0.995;
const ETHERNET: u16 = 14;

/// One end of a link as the line sees it.
pub trait LinkEnd {
    fn link(&self) -> &Link;
    fn link_mut(&mut self) -> &mut Link;
    /// Number that the next sealed packet gets; `None` where there is no session.
    fn next_number(&self) -> Option<u64>;
}

#[derive(Debug)]
struct Limit {
    budget: LineBudget,
    parked: Vec<(Class, SendKey, u32)>,
    spent: Bytes,
}

/// What a line, or a link's own limit, has to carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sums of the weights, in thousandths, of the flows that wait: latency, balanced, bulk.
    pub weights: [u64; 3],
    /// Charged since the start.
    pub spent: Bytes,
    /// How long nothing may leave.
    pub debt: Duration,
}

/// What leaves next.
#[derive(Debug)]
pub enum Departure<T> {
    /// A packet of the link in this place, written to the caller's buffer and to be sealed.
    Link(usize, Packed),
    /// A packet in the clear, and how long it waited.
    Plain(T, Duration),
}

/// Whose turn it is: the place of a link, or [`PLAIN`], and what of it.
type Turn = (usize, SendKey);
/// Stands for the line's own queues where a link's place is meant.
const PLAIN: usize = usize::MAX;
/// Round trips that senders in the clear are taken to have: nothing measures them here.
const PLAIN_RTT: Duration = Duration::from_millis(200);
/// Memory of the queues of packets in the clear, bytes.
const PLAIN_MEMORY: usize = 32 << 20;

/// Budget and scheduler of one line; `T` is what packets in the clear are kept as.
#[derive(Debug)]
pub struct Line<T = ()> {
    capacity: BitRate,
    budget: LineBudget,
    /// Charged since the start.
    spent: Bytes,
    /// How often the line is served.
    interval: Duration,
    scheduler: ClassScheduler<Turn>,
    plain: FlowQueues<T>,
    /// Bytes that the line carries beside the IP packet.
    frame_overhead: u16,
    /// Whose packet is to follow the last one directly.
    unfinished: Option<(Class, Turn)>,
    /// By link.
    limits: Vec<Option<Limit>>,
    /// On a line of unknown capacity, and the rate that the queues in the clear are sized for.
    users: Users,
    sized: BitRate,
    /// The links were asked for news and control at this time, and have no more.
    asked: Option<Instant>,
}

impl<T: Queued> Line<T> {
    /// A line that carries `capacity` upwards, counted as Ethernet frames without FCS.
    pub fn new(now: Instant, capacity: BitRate) -> Self {
        Self {
            capacity,
            budget: LineBudget::new(now, capacity.scale(UTILISATION), 0),
            spent: Bytes(0),
            interval: Duration::ZERO,
            scheduler: ClassScheduler::new(now, capacity),
            plain: FlowQueues::new(Limits::new(capacity, PLAIN_RTT, PLAIN_MEMORY)),
            frame_overhead: ETHERNET,
            unfinished: None,
            limits: Vec::new(),
            users: Users::default(),
            sized: capacity,
            asked: None,
        }
    }
    /// Sets what the line carries beside each IP packet in the clear, bytes; an Ethernet header unless told otherwise.
    pub fn set_frame_overhead(&mut self, bytes: u16) {
        self.frame_overhead = bytes;
    }
    /// Uses this share of the capacity from `now` on; the rest is other workers'.
    pub fn set_share(&mut self, now: Instant, share: f64) {
        self.budget
            .set_rate(now, self.capacity.scale(UTILISATION * share));
    }
    /// What waits for the line, and what it has carried.
    pub fn load(&mut self, now: Instant) -> Load {
        Load {
            weights: self.scheduler.active_weights(),
            spent: self.spent,
            debt: self.budget.debt(now),
        }
    }
    /// The same of the own limit of the link in this place; flows that wait for the line alone do not count.
    pub fn link_load(&mut self, now: Instant, place: usize) -> Load {
        let Some(Some(limit)) = self.limits.get_mut(place) else {
            return Load::default();
        };
        let mut weights = [0; 3];
        for (class, _, weight) in &limit.parked {
            let [latency, balanced, bulk] = &mut weights;
            let sum = match class {
                Class::Latency => latency,
                Class::Balanced => balanced,
                Class::Bulk => bulk,
            };
            *sum += u64::from(*weight);
        }
        Load {
            weights,
            spent: limit.spent,
            debt: limit.budget.debt(now),
        }
    }
    /// The line is served once in this time, which every budget has to span.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
        self.budget.set_interval(interval);
    }
    /// The queues of packets in the clear.
    pub fn plain(&self) -> &FlowQueues<T> {
        &self.plain
    }

    /// Whether a packet of `size` bytes in the clear would be taken now; to be asked before it is put together.
    pub fn admits_plain(&mut self, now: Instant, flow: u32, size: usize) -> bool {
        self.plain.admits(now, flow, size)
    }

    /// Queues a packet in the clear.
    ///
    /// # Errors
    /// The packet, where its flow's queue is full.
    pub fn send_plain(&mut self, now: Instant, flow: DatagramFlow, packet: T) -> Result<(), T> {
        self.plain
            .push(now, flow.id, flow.weight, flow.class, packet)?;
        let turn = (PLAIN, SendKey::Datagram(flow.id));
        self.scheduler.activate(flow.class, turn, flow.weight);
        Ok(())
    }

    /// Whether the link in this place may send a packet at once: nobody waits for the line, so that it
    /// takes nobody's turn.
    pub fn is_free(&mut self, now: Instant, place: usize) -> bool {
        let limit = self.limits.get_mut(place).and_then(Option::as_mut);
        self.scheduler.is_empty()
            && self.unfinished.is_none()
            && self.budget.next_at(now) <= now
            && self.users.next_at(now) <= now
            && limit.is_none_or(|l| l.parked.is_empty() && l.budget.next_at(now) <= now)
    }

    /// Charges what the link in this place sent because the line [was free](Self::is_free).
    pub fn charge_link(&mut self, now: Instant, place: usize, bytes: u64) {
        self.pay(now, place, bytes, true);
    }

    pub fn capacity(&self) -> BitRate {
        self.capacity
    }
    /// Bytes of capacity that were lost because the router woke too late.
    pub fn lost_credit(&self) -> Bytes {
        Bytes(self.budget.lost_credit_bytes())
    }
    /// Charges a packet that does not wait for its turn, such as a handshake.
    pub fn charge(&mut self, now: Instant, bytes: u64) {
        self.spent.0 += bytes;
        self.budget.charge(now, Bytes(bytes));
        self.users.charge(now, bytes);
    }
    /// The same for what goes to a host on the line, which counts as a packet in the clear.
    pub fn charge_plain(&mut self, now: Instant, bytes: u64) {
        self.charge(now, bytes);
        self.users.sent_plain(now, bytes);
    }

    fn take_news<E: LinkEnd>(&mut self, now: Instant, ends: &mut [E]) {
        if self.limits.len() < ends.len() {
            self.limits.resize_with(ends.len(), || None);
        }
        let common = self.users.look(now, ends, self.interval);
        if let Some(rate) = common {
            self.size_plain(rate);
        }
        for (i, end) in ends.iter_mut().enumerate() {
            while let Some((key, weight, class)) = end.link_mut().poll_activated() {
                self.scheduler.activate(class, (i, key), weight);
            }
            let Some(limit) = self.limits.get_mut(i) else {
                continue;
            };
            self.users.tell(now, i, end);
            let rate = match common {
                Some(_) => end.link().known_limit(),
                None => end.link().rate_limit(),
            };
            if rate < self.capacity {
                let rate = rate.scale(UTILISATION);
                match limit {
                    Some(l) if l.budget.rate() != rate => l.budget.set_rate(now, rate),
                    Some(_) => {}
                    None => {
                        let mut budget = LineBudget::new(now, rate, 0);
                        budget.set_interval(self.interval);
                        *limit = Some(Limit {
                            budget,
                            parked: Vec::new(),
                            spent: Bytes(0),
                        })
                    }
                }
            } else if let Some(l) = limit.take() {
                for (class, key, weight) in l.parked {
                    self.scheduler.activate(class, (i, key), weight);
                }
            }
            if let Some(l) = limit {
                if !l.parked.is_empty() && l.budget.next_at(now) <= now {
                    for (class, key, weight) in l.parked.drain(..) {
                        self.scheduler.activate(class, (i, key), weight);
                    }
                }
            }
        }
    }

    /// Queues in the clear are those of a line of this rate, if it is another one by a quarter.
    fn size_plain(&mut self, rate: BitRate) {
        if rate > self.sized.scale(1.25) || rate < self.sized.scale(0.8) {
            self.sized = rate;
            self.plain
                .set_limits(Limits::new(rate, PLAIN_RTT, PLAIN_MEMORY));
        }
    }

    /// What may leave now: a link's next packet, packed and appended to `out`, or one in the clear. To be
    /// asked until there is nothing: control goes first, and is looked for again after that.
    pub fn poll<E: LinkEnd>(
        &mut self,
        now: Instant,
        ends: &mut [E],
        pool: &mut ChunkPool,
        out: &mut Vec<u8>,
    ) -> Option<Departure<T>> {
        let next = self.next(now, ends, pool, out);
        if next.is_none() {
            self.asked = None;
        }
        next
    }

    fn next<E: LinkEnd>(
        &mut self,
        now: Instant,
        ends: &mut [E],
        pool: &mut ChunkPool,
        out: &mut Vec<u8>,
    ) -> Option<Departure<T>> {
        if self.asked != Some(now) {
            self.take_news(now, ends);
        }
        if self.budget.next_at(now) > now {
            return None;
        }
        if self.asked != Some(now) {
            for (i, end) in ends.iter_mut().enumerate() {
                let Some(number) = end.next_number() else {
                    continue;
                };
                if let Some(packed) = end.link_mut().poll_control(now, number, out) {
                    self.pay(now, i, packed.line_bytes, false);
                    return Some(Departure::Link(i, packed));
                }
            }
            self.asked = Some(now);
        }
        if self.users.next_at(now) > now {
            return None;
        }
        if let Some((class, (i, key))) = self.unfinished.take() {
            if let Some(packed) = self.pack(now, class, i, key, ends, pool, out) {
                return Some(Departure::Link(i, packed));
            }
        }
        while let Some((class, (i, key))) = self.scheduler.pick(now) {
            if i == PLAIN {
                if let Some((packet, waited)) = self.take_plain(now, class, key) {
                    return Some(Departure::Plain(packet, waited));
                }
                continue;
            }
            if let Some(Some(limit)) = self.limits.get_mut(i) {
                if limit.budget.next_at(now) > now {
                    let weight = self.scheduler.weight(class, (i, key)).unwrap_or(1000);
                    self.scheduler.deactivate(class, (i, key));
                    limit.parked.push((class, key, weight));
                    continue;
                }
            }
            if let Some(packed) = self.pack(now, class, i, key, ends, pool, out) {
                return Some(Departure::Link(i, packed));
            }
        }
        self.budget.idle();
        self.users.idle();
        None
    }

    /// The next packet of a link's flow, paid for; without one the flow has had its turn.
    #[allow(clippy::too_many_arguments)]
    fn pack<E: LinkEnd>(
        &mut self,
        now: Instant,
        class: Class,
        link: usize,
        key: SendKey,
        ends: &mut [E],
        pool: &mut ChunkPool,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        let packed = ends.get_mut(link).and_then(|end| {
            let number = end.next_number()?;
            self.users.tell(now, link, end);
            end.link_mut().poll_flow(now, number, key, pool, out)
        });
        let Some(packed) = packed else {
            self.scheduler.deactivate(class, (link, key));
            return None;
        };
        let bytes = Bytes(packed.line_bytes);
        let more = packed.more || ends.get(link).is_none_or(|e| e.link().has_more(key));
        if more {
            self.scheduler.charge(class, (link, key), bytes);
        } else {
            self.scheduler.charge_last(class, (link, key), bytes);
        }
        self.pay(now, link, packed.line_bytes, true);
        if packed.more {
            self.unfinished = Some((class, (link, key)));
        }
        Some(packed)
    }

    fn take_plain(&mut self, now: Instant, class: Class, key: SendKey) -> Option<(T, Duration)> {
        let turn = (PLAIN, key);
        let popped = match key {
            SendKey::Datagram(flow) => self.plain.pop(now, flow),
            SendKey::Stream(_) => None,
        };
        let Some((packet, waited)) = popped else {
            self.scheduler.deactivate(class, turn);
            return None;
        };
        let bytes = Bytes(packet.size() as u64 + u64::from(self.frame_overhead));
        self.scheduler.charge(class, turn, bytes);
        self.charge_plain(now, bytes.0);
        Some((packet, waited))
    }

    fn pay(&mut self, now: Instant, link: usize, bytes: u64, data: bool) {
        self.charge(now, bytes);
        self.users.sent(now, link, bytes, data);
        if let Some(Some(l)) = self.limits.get_mut(link) {
            l.spent.0 += bytes;
            l.budget.charge(now, Bytes(bytes));
        }
    }

    /// When [`poll`](Self::poll) may have something to send next.
    pub fn poll_timeout<E: LinkEnd>(&mut self, now: Instant, ends: &[E]) -> Instant {
        let ready = self.budget.next_at(now);
        if !self.scheduler.is_empty() {
            return ready.max(self.users.next_at(now));
        }
        self.budget.idle();
        self.users.idle();
        let mut at = Instant::FAR_FUTURE;
        for l in self
            .limits
            .iter_mut()
            .flatten()
            .filter(|l| !l.parked.is_empty())
        {
            at = at.min(l.budget.next_at(now));
        }
        for end in ends {
            at = at.min(end.link().poll_timeout(now));
        }
        at.max(ready)
    }
}
