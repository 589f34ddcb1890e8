//! Queues of whole packets, one per flow, kept short without starving their
//! senders: CoDel (RFC 8289) decides by how long packets wait, marks those that
//! are ECN-capable (RFC 3168) and drops the others.
//!
//! ```text
//!              wait < target                     wait >= target for an interval
//!  [ FINE ] <------------------ [ MARKING: every interval / sqrt(n) one packet ]
//!      '------------------------------------------^
//! ```
//!
//! The interval is about a round trip and more, so that a sender that doubles its
//! rate once per round trip is told once, not in bulk. What does not listen meets
//! harder bounds: bytes per flow, age of the oldest packet, bytes in all. Where the
//! latter are used up, who has most waiting loses.

use core::time::Duration;
use std::collections::VecDeque;

use hashbrown::HashMap;
use mef_packet::wire::ecn::Ecn;
use mef_packet::{BitRate, Bytes, Instant};

use crate::classes::Class;

/// A packet that can wait in a queue.
pub trait Queued {
    /// Bytes of the IP packet.
    fn size(&self) -> usize;
    fn ecn(&self) -> Ecn;
    /// Sets "congestion experienced" on an ECN-capable packet.
    fn mark(&mut self);
}

impl Queued for Vec<u8> {
    fn size(&self) -> usize {
        self.len()
    }
    fn ecn(&self) -> Ecn {
        Ecn::of(self)
    }
    fn mark(&mut self) {
        // A capable packet has an IP header, so this cannot fail.
        let _ = mef_packet::wire::ecn::set(self, Ecn::Ce);
    }
}

/// Nothing waits where nothing can.
impl Queued for () {
    fn size(&self) -> usize {
        0
    }
    fn ecn(&self) -> Ecn {
        Ecn::NotEct
    }
    fn mark(&mut self) {}
}

/// What a packet costs beside its bytes, so that many small ones do not hold more memory than they are counted for.
const PER_PACKET: usize = 256;
/// A backlog of one large packet is never too long.
const ONE_PACKET: usize = 1514 + PER_PACKET;

/// Bounds of a set of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Waiting time that is left alone.
    pub target: Duration,
    /// For how long waiting may exceed the target before anybody is told.
    pub interval: Duration,
    /// Bytes of one flow, and of all.
    pub flow_bytes: usize,
    pub total_bytes: usize,
}

impl Limits {
    /// Bounds for a line of rate `line` whose flows see round trips of `rtt`; all queues together hold at most
    /// `memory` bytes.
    pub fn new(line: BitRate, rtt: Duration, memory: usize) -> Self {
        let interval = rtt.clamp(Duration::from_millis(100), Duration::from_secs(1));
        let room = usize::try_from(line.bytes_in(interval * 4).0).unwrap_or(usize::MAX);
        let total_bytes = memory
            .max(256 * 1024)
            .min(room.saturating_mul(2))
            .max(256 * 1024);
        Self {
            // A quarter of the round trip: CUBIC, told once, falls by three tenths, and what then waits has
            // to cover that. The queue is the flow's own: nobody else waits in it. With a tenth a QUIC
            // download over 200 ms had 91% of the bare path, with a quarter 94%.
            // On a slow line two packets are no queue.
            target: (interval / 4).max(line.time_for(Bytes(2 * 1514))),
            interval,
            flow_bytes: room.clamp(64 * 1024, total_bytes / 2),
            total_bytes,
        }
    }

    /// A queue whose oldest packet is older takes no more. Slow start goes up to three round trips beyond the
    /// rate that there is before it hears of the first mark, so that a sender that sees marks loses nothing.
    fn full_age(&self) -> Duration {
        self.interval * 4
    }

    /// An older packet is worth nothing to anybody: the line stood still.
    fn stale_age(&self) -> Duration {
        self.interval * 8
    }
}

/// What happened to packets in the queues. `refused` ones never got in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Marked "congestion experienced" instead of dropped.
    pub marked: u64,
    /// Dropped because the flow's packets wait too long (CoDel).
    pub delayed: u64,
    /// Dropped to make room for flows with less waiting.
    pub evicted: u64,
    /// Dropped because they had waited so long that nobody misses them.
    pub stale: u64,
}

/// RFC 8289, section 5.
#[derive(Clone, Copy, Debug, Default)]
struct CoDel {
    /// When waiting will have exceeded the target for an interval.
    too_long_at: Option<Instant>,
    marking: bool,
    next: Instant,
    count: u32,
    last_count: u32,
}

impl CoDel {
    /// Whether the packet that waited for `waited`, with `behind` bytes behind it, stands for a queue that stays.
    fn is_standing(&mut self, now: Instant, waited: Duration, behind: usize, l: &Limits) -> bool {
        if waited < l.target || behind <= ONE_PACKET {
            self.too_long_at = None;
            return false;
        }
        match self.too_long_at {
            None => {
                self.too_long_at = Some(now + l.interval);
                false
            }
            Some(at) => now >= at,
        }
    }

    fn after(&self, from: Instant, interval: Duration) -> Instant {
        from + interval.div_f64(f64::from(self.count.max(1)).sqrt())
    }

    /// Whether this packet is to be marked or dropped.
    fn strikes(&mut self, now: Instant, standing: bool, interval: Duration) -> bool {
        if !standing {
            self.marking = false;
            return false;
        }
        if self.marking {
            if now < self.next {
                return false;
            }
            self.count = self.count.saturating_add(1);
            self.next = self.after(self.next, interval);
            return true;
        }
        self.marking = true;
        // It was marking not long ago: the rate that was needed then is where it goes on.
        let before = self.count.saturating_sub(self.last_count);
        let recent = before > 1 && now.since(self.next) < interval * 16;
        self.count = if recent { before } else { 1 };
        self.last_count = self.count;
        self.next = self.after(now, interval);
        true
    }
}

#[derive(Clone, Debug)]
struct Queue<T> {
    packets: VecDeque<(Instant, T)>,
    bytes: usize,
    codel: CoDel,
    weight: u32,
    class: Class,
}

impl<T: Queued> Queue<T> {
    fn pop(&mut self, total: &mut usize) -> Option<(Instant, T)> {
        let (at, packet) = self.packets.pop_front()?;
        let cost = packet.size() + PER_PACKET;
        self.bytes = self.bytes.saturating_sub(cost);
        *total = total.saturating_sub(cost);
        Some((at, packet))
    }

    /// Drops what is too old to be of use, but never the last packet: on a slow line it would be every one.
    fn expire(&mut self, now: Instant, age: Duration, total: &mut usize, stats: &mut QueueStats) {
        while self.packets.len() > 1 && self.age(now) > age {
            self.pop(total);
            stats.stale += 1;
        }
    }

    fn age(&self, now: Instant) -> Duration {
        self.packets
            .front()
            .map_or(Duration::ZERO, |(at, _)| now.since(*at))
    }
}

/// Queues by flow number.
#[derive(Clone, Debug)]
pub struct FlowQueues<T> {
    limits: Limits,
    queues: HashMap<u32, Queue<T>>,
    bytes: usize,
    /// The flow with most waiting, as far as arrivals tell.
    largest: u32,
    stats: QueueStats,
    /// Memory of queues that ran empty.
    spare: Vec<VecDeque<(Instant, T)>>,
}

/// So many empty queues keep their memory for the next ones.
const MAX_SPARE: usize = 256;

impl<T> Default for FlowQueues<T> {
    /// For a line of 100 Mbit/s with round trips of 100 ms.
    fn default() -> Self {
        Self {
            limits: Limits::new(BitRate::from_mbit(100), Duration::from_millis(100), 8 << 20),
            queues: HashMap::new(),
            bytes: 0,
            largest: 0,
            stats: QueueStats::default(),
            spare: Vec::new(),
        }
    }
}

impl<T: Queued> FlowQueues<T> {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
    /// Bytes held, with what each packet costs beside its own.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    /// Flows with something waiting.
    pub fn len(&self) -> usize {
        self.queues.len()
    }
    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
    /// Since the queues were made.
    pub fn stats(&self) -> QueueStats {
        self.stats
    }
    /// Their numbers, smallest first, so that equal runs of a simulation are equal.
    pub fn flows(&self) -> Vec<u32> {
        let mut flows: Vec<u32> = self.queues.keys().copied().collect();
        flows.sort_unstable();
        flows
    }
    /// Weight in thousandths and class of a flow with something waiting.
    pub fn service(&self, flow: u32) -> Option<(u32, Class)> {
        self.queues.get(&flow).map(|q| (q.weight, q.class))
    }

    /// Whether a packet of `size` bytes of `flow` would be taken now; to be asked before any work is done for it.
    pub fn admits(&mut self, now: Instant, flow: u32, size: usize) -> bool {
        let Some(q) = self.queues.get_mut(&flow) else {
            return true;
        };
        let stale = self.limits.stale_age();
        q.expire(now, stale, &mut self.bytes, &mut self.stats);
        q.bytes + size + PER_PACKET <= self.limits.flow_bytes
            && q.age(now) <= self.limits.full_age()
    }

    /// Takes a packet that [`admits`](Self::admits) lets in; in the name of a flow with less than its part of the
    /// memory, another's packet goes.
    ///
    /// # Errors
    /// The packet, where its flow's queue is full.
    pub fn push(
        &mut self,
        now: Instant,
        flow: u32,
        weight: u32,
        class: Class,
        packet: T,
    ) -> Result<(), T> {
        if !self.admits(now, flow, packet.size()) {
            return Err(packet);
        }
        self.push_admitted(now, flow, weight, class, packet)
    }

    /// As [`push`](Self::push), where [`admits`](Self::admits) was asked just now.
    ///
    /// # Errors
    /// The packet, where it has not less than others that the memory is full of.
    pub fn push_admitted(
        &mut self,
        now: Instant,
        flow: u32,
        weight: u32,
        class: Class,
        packet: T,
    ) -> Result<(), T> {
        let cost = packet.size() + PER_PACKET;
        while self.bytes + cost > self.limits.total_bytes {
            let own = self.queues.get(&flow).map_or(0, |q| q.bytes);
            if own >= self.largest_bytes() || !self.evict() {
                return Err(packet);
            }
        }
        let spare = &mut self.spare;
        let q = self.queues.entry(flow).or_insert_with(|| Queue {
            packets: spare.pop().unwrap_or_default(),
            bytes: 0,
            codel: CoDel::default(),
            weight,
            class,
        });
        (q.weight, q.class) = (weight, class);
        q.packets.push_back((now, packet));
        q.bytes += cost;
        self.bytes += cost;
        let own = q.bytes;
        if flow != self.largest && own > self.queues.get(&self.largest).map_or(0, |l| l.bytes) {
            self.largest = flow;
        }
        Ok(())
    }

    /// Bytes of the largest queue. Queues grow only in `push`, which compares: only where the largest
    /// known has shrunk below the mean is another one looked for.
    fn largest_bytes(&mut self) -> usize {
        let mean = self.bytes / self.queues.len().max(1);
        let known = self.queues.get(&self.largest).map_or(0, |q| q.bytes);
        if known > mean {
            return known;
        }
        let found = self.queues.iter().max_by_key(|(k, q)| (q.bytes, **k));
        let (flow, bytes) = found.map_or((0, 0), |(k, q)| (*k, q.bytes));
        self.largest = flow;
        bytes
    }

    /// Drops the oldest packet of the largest queue; false if there is none.
    fn evict(&mut self) -> bool {
        let flow = self.largest;
        let Some(q) = self.queues.get_mut(&flow) else {
            return false;
        };
        let dropped = q.pop(&mut self.bytes).is_some();
        self.stats.evicted += u64::from(dropped);
        if q.packets.is_empty() {
            self.remove(flow);
        }
        dropped
    }

    fn remove(&mut self, flow: u32) {
        if let Some(q) = self.queues.remove(&flow) {
            if self.spare.len() < MAX_SPARE {
                self.spare.push(q.packets);
            }
        }
    }

    /// Whether packets of the flow wait.
    pub fn has(&self, flow: u32) -> bool {
        self.queues.contains_key(&flow)
    }

    /// How many packets of the flow wait, as far as 16 bits tell.
    pub fn packets(&self, flow: u32) -> u16 {
        let n = self.queues.get(&flow).map_or(0, |q| q.packets.len());
        u16::try_from(n).unwrap_or(u16::MAX)
    }

    /// The flow's next packet and how long it waited; `None` where it has none left.
    pub fn pop(&mut self, now: Instant, flow: u32) -> Option<(T, Duration)> {
        let limits = self.limits;
        let q = self.queues.get_mut(&flow)?;
        q.expire(now, limits.stale_age(), &mut self.bytes, &mut self.stats);
        let found = loop {
            let Some((at, mut packet)) = q.pop(&mut self.bytes) else {
                break None;
            };
            let waited = now.since(at);
            let standing = q.codel.is_standing(now, waited, q.bytes, &limits);
            if q.codel.strikes(now, standing, limits.interval) {
                if !packet.ecn().is_capable() {
                    self.stats.delayed += 1;
                    continue;
                }
                packet.mark();
                self.stats.marked += 1;
            }
            break Some((packet, waited));
        };
        if q.packets.is_empty() {
            self.remove(flow);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Fake {
        size: usize,
        ecn: Ecn,
        id: u64,
    }
    impl Queued for Fake {
        fn size(&self) -> usize {
            self.size
        }
        fn ecn(&self) -> Ecn {
            self.ecn
        }
        fn mark(&mut self) {
            self.ecn = Ecn::Ce;
        }
    }

    const RTT: Duration = Duration::from_millis(200);

    fn queues(mbit: u64) -> FlowQueues<Fake> {
        FlowQueues::new(Limits::new(BitRate::from_mbit(mbit), RTT, 64 << 20))
    }

    fn packet(ecn: Ecn, id: u64) -> Fake {
        Fake {
            size: 1250,
            ecn,
            id,
        }
    }

    /// Offers `factor` times what leaves, a packet each `gap`, for `time`; the longest and last waits.
    fn overload(
        q: &mut FlowQueues<Fake>,
        ecn: Ecn,
        factor: u64,
        time: Duration,
    ) -> (Duration, Duration, u64, u64) {
        let gap = Duration::from_micros(1000);
        let (mut now, mut id, mut left, mut refused) = (Instant::from_millis(1), 0, 0, 0);
        let (mut longest, mut last) = (Duration::ZERO, Duration::ZERO);
        let end = now + time;
        while now < end {
            for _ in 0..factor {
                id += 1;
                refused += u64::from(
                    q.push(now, 7, 1000, Class::Balanced, packet(ecn, id))
                        .is_err(),
                );
            }
            if let Some((p, waited)) = q.pop(now, 7) {
                assert!(p.id > left, "out of order");
                left = p.id;
                longest = longest.max(waited);
                last = waited;
            }
            now += gap;
        }
        (longest, last, id, refused)
    }

    #[test]
    fn a_burst_of_a_round_trip_is_let_through_whole() {
        // Slow start: 200 ms of the line (10 Mbit/s) at once, every 200 ms.
        let mut q = queues(10);
        let mut now = Instant::from_millis(1);
        for _ in 0..10 {
            for id in 0..200 {
                q.push(now, 7, 1000, Class::Balanced, packet(Ecn::NotEct, id))
                    .unwrap();
            }
            for id in 0..200 {
                now += Duration::from_millis(1);
                assert_eq!(q.pop(now, 7).unwrap().0.id, id);
            }
            assert!(q.pop(now, 7).is_none());
        }
        assert_eq!(q.stats(), QueueStats::default());
        assert_eq!((q.bytes(), q.len()), (0, 0));
    }

    #[test]
    fn a_queue_that_stays_is_marked_or_dropped_ever_more_often() {
        for ecn in [Ecn::Ect0, Ecn::Ect1, Ecn::NotEct] {
            let mut q = queues(10);
            let mut now = Instant::from_millis(1);
            // A standing queue of 100 ms: one in, one out.
            for id in 0..100 {
                q.push(now, 7, 1000, Class::Balanced, packet(ecn, id))
                    .unwrap();
            }
            let mut strikes = Vec::new();
            for id in 100..4_000 {
                now += Duration::from_millis(1);
                let before = q.stats();
                let popped = q.pop(now, 7).unwrap().0;
                let s = q.stats();
                if s != before {
                    strikes.push(id);
                    assert_eq!(popped.ecn == Ecn::Ce, ecn.is_capable());
                    assert_eq!(s.marked - before.marked, u64::from(ecn.is_capable()));
                    assert_eq!(s.delayed - before.delayed, u64::from(!ecn.is_capable()));
                    if !ecn.is_capable() {
                        q.push(now, 7, 1000, Class::Balanced, packet(ecn, id))
                            .unwrap();
                    }
                }
                q.push(now, 7, 1000, Class::Balanced, packet(ecn, id))
                    .unwrap();
            }
            // First an interval after the target was passed, then after interval / sqrt(n).
            let first = strikes[0] - 100;
            assert!((240..260).contains(&first), "{strikes:?}");
            let gaps: Vec<u64> = strikes.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(
                strikes.len() > 50 && gaps.windows(2).all(|g| g[1] <= g[0] + 1),
                "{gaps:?}"
            );
        }
    }

    #[test]
    fn who_does_not_listen_is_held_to_bytes_and_age() {
        for ecn in [Ecn::NotEct, Ecn::Ect0] {
            let mut q = queues(10);
            let (longest, last, offered, refused) =
                overload(&mut q, ecn, 3, Duration::from_secs(20));
            assert!(longest <= RTT * 4 + Duration::from_millis(5), "{longest:?}");
            assert!(last > RTT, "{last:?}");
            // The line is never idle: one in three leaves.
            let dropped = q.stats().delayed + refused;
            assert!(offered - dropped >= 20_000 - 1, "{offered} {dropped}");
        }
    }

    #[test]
    fn memory_is_taken_from_who_has_most() {
        let mut q = queues(1000);
        let limits = Limits {
            flow_bytes: 1 << 20,
            total_bytes: 1 << 20,
            ..*q.limits()
        };
        q.set_limits(limits);
        let now = Instant::from_millis(1);
        let mut id = 0;
        while q
            .push(now, 1, 1000, Class::Balanced, packet(Ecn::NotEct, id))
            .is_ok()
        {
            id += 1;
        }
        let full = q.bytes();
        for flow in 2..100 {
            q.push(now, flow, 1000, Class::Balanced, packet(Ecn::NotEct, 0))
                .unwrap();
        }
        assert!(q.bytes() <= limits.total_bytes && full <= limits.total_bytes);
        assert!(q.stats().evicted >= 97, "{:?}", q.stats());
        assert_eq!(q.len(), 99);
        // Its oldest went.
        assert_eq!(q.pop(now, 1).unwrap().0.id, q.stats().evicted);
    }

    #[test]
    fn what_waited_through_an_outage_is_not_sent_but_the_last_is() {
        let mut q = queues(10);
        let mut now = Instant::from_millis(1);
        for id in 0..10 {
            q.push(now, 7, 1000, Class::Balanced, packet(Ecn::Ect0, id))
                .unwrap();
        }
        now += Duration::from_secs(5);
        assert_eq!(q.pop(now, 7).unwrap().0.id, 9);
        assert_eq!(q.stats().stale, 9);
    }

    proptest! {
        /// Whatever comes and goes: nothing is lost but what is counted, and bytes are those held.
        #[test]
        fn every_packet_leaves_or_is_counted(
            steps in prop::collection::vec((0u32..6, 40usize..1600, any::<bool>(), 0u64..30, any::<bool>()), 1..600),
        ) {
            let mut q = FlowQueues::new(Limits {
                target: Duration::from_millis(5),
                interval: Duration::from_millis(50),
                flow_bytes: 20_000,
                total_bytes: 40_000,
            });
            let mut now = Instant::from_millis(1);
            let (mut offered, mut left, mut refused) = (0u64, 0u64, 0u64);
            for (flow, size, capable, ms, take) in steps {
                now += Duration::from_millis(ms);
                if take {
                    left += u64::from(q.pop(now, flow).is_some());
                } else {
                    offered += 1;
                    let ecn = if capable { Ecn::Ect0 } else { Ecn::NotEct };
                    let p = Fake { size, ecn, id: 0 };
                    refused += u64::from(q.push(now, flow, 1000, Class::Balanced, p).is_err());
                }
                let held: usize = q.queues.values().map(|x| x.bytes).sum();
                prop_assert_eq!(held, q.bytes());
                prop_assert!(held <= 40_000);
                prop_assert!(q.queues.values().all(|x| !x.packets.is_empty()));
            }
            let waiting: u64 = q.queues.values().map(|x| x.packets.len() as u64).sum();
            let s = q.stats();
            prop_assert_eq!(offered, left + refused + waiting + s.delayed + s.evicted + s.stale);
        }
    }
}
