//! Who sends next on a line: start-time fair queueing (P. Goyal, H. M. Vin,
//! H. Cheng, "Start-time Fair Queueing", SIGCOMM 1996).
//!
//! ```text
//!            activate: start = max(virtual time, last finish)
//!   (absent) ───────────────────────────────▶ ACTIVE ◀─┐ charge: start += bytes / weight
//!      ▲                                       │  ▲    │
//!      │ its last finish is in the past,       │  └────┘
//!      │ or the record is one too many         ▼ deactivate
//!      └───────────────────────────────────── IDLE
//! ```
//!
//! The flow with the smallest start tag is next; virtual time is the smallest
//! start tag in service. A packet's size is charged after it was picked, so it
//! need not be known before. An idle flow costs nothing. A waking flow starts
//! at the virtual time, hence is served with the very next packets; one that
//! left with service in advance finds its old finish tag and waits for it.
//! Over any interval in which two flows stay active their service differs, per
//! unit of weight, by at most one packet of each.

use core::hash::Hash;
use hashbrown::HashMap;
use mef_packet::time::Duration;
use mef_packet::{Bytes, Instant};

/// Virtual time: bytes per unit of weight, scaled by 2^32. In 128 bits it never wraps.
type Tag = u128;
const SCALE: u32 = 32;
/// Records kept of flows that left with service in advance.
const MAX_IDLE: usize = 1 << 16;
const LEVEL_WINDOW: Duration = Duration::from_millis(50);

/// What the scheduler gives at present.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceLevel {
    /// Bytes per second and unit of weight, measured over the last 50 to 100 ms.
    pub bytes_per_second: f64,
    /// Somebody was waiting during all of that time. If false, the line is not a bottleneck and a
    /// new flow would get more than the figure says.
    pub saturated: bool,
}

/// Weighted fair scheduler over the flows that have something to send.
/// Every operation is O(log n); nothing is allocated while the set of flows stays the same.
#[derive(Clone, Debug)]
pub struct FairScheduler<K> {
    index: HashMap<K, usize>,
    slots: Vec<Slot<K>>,
    free: Vec<usize>,
    active: Vec<usize>,
    idle: Vec<usize>,
    virtual_time: Tag,
    /// Of the active flows.
    weights: u64,
    arrivals: u64,
    older: Checkpoint,
    newer: Checkpoint,
}

#[derive(Clone, Copy, Debug)]
struct Slot<K> {
    key: K,
    weight: u32,
    /// Start tag of the next packet, which is the finish tag of the last.
    tag: Tag,
    /// Breaks ties in the order of arrival at the tag.
    order: u64,
    is_active: bool,
    /// Where it stands in the heap of its state.
    place: usize,
}

#[derive(Clone, Copy, Debug)]
struct Checkpoint {
    at: Instant,
    tag: Tag,
    /// The scheduler ran empty after this checkpoint.
    emptied: bool,
}

impl<K: Copy + Eq + Hash> Default for FairScheduler<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Copy + Eq + Hash> FairScheduler<K> {
    pub fn new() -> Self {
        let start = Checkpoint {
            at: Instant::ZERO,
            tag: 0,
            emptied: true,
        };
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            idle: Vec::new(),
            virtual_time: 0,
            weights: 0,
            arrivals: 0,
            older: start,
            newer: start,
        }
    }

    /// The flow has something to send. `weight` 0 counts as 1. Of an active flow only the weight changes.
    pub fn activate(&mut self, key: K, weight: u32) {
        self.arrivals += 1;
        let order = self.arrivals;
        let weight = weight.max(1);
        if let Some(&slot) = self.index.get(&key) {
            self.reweigh(slot, weight);
            if !self.slots[slot].is_active {
                self.heap_remove(slot);
                let s = &mut self.slots[slot];
                s.tag = s.tag.max(self.virtual_time);
                s.order = order;
                self.heap_insert(slot, true);
            }
            return;
        }
        let new = Slot {
            key,
            weight,
            tag: self.virtual_time,
            order,
            is_active: false,
            place: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = new;
                slot
            }
            None => {
                self.slots.push(new);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, slot);
        self.heap_insert(slot, true);
    }

    /// The flow to send from; the same one until it is charged or deactivated.
    pub fn pick(&self) -> Option<K> {
        self.active.first().map(|&slot| self.slots[slot].key)
    }

    /// Charges `bytes` to the flow, which stays as active as it was. Nothing is remembered of an idle
    /// flow whose service is all in the past: what still has repair to send is to stay active for it.
    pub fn charge(&mut self, key: K, bytes: Bytes) {
        let Some(&slot) = self.index.get(&key) else {
            return;
        };
        self.pay(slot, bytes);
        let Slot {
            is_active, place, ..
        } = self.slots[slot];
        self.sift_down(is_active, place);
        if !is_active {
            self.forget_past();
        }
    }

    /// [`charge`](Self::charge) and [`deactivate`](Self::deactivate) in one: it was the flow's last packet.
    pub fn charge_last(&mut self, key: K, bytes: Bytes) {
        match self.index.get(&key) {
            Some(&slot) if self.slots[slot].is_active => {
                self.pay(slot, bytes);
                self.heap_remove(slot);
                self.heap_insert(slot, false);
                self.after_leaving();
            }
            _ => self.charge(key, bytes),
        }
    }

    /// Moves the flow's tag; its place in the heap is as before.
    fn pay(&mut self, slot: usize, bytes: Bytes) {
        self.advance();
        self.arrivals += 1;
        let s = &mut self.slots[slot];
        let cost = match bytes.0.checked_mul(1 << SCALE) {
            Some(scaled) => Tag::from(scaled / u64::from(s.weight)),
            None => (Tag::from(bytes.0) << SCALE) / Tag::from(s.weight),
        };
        s.tag = s.tag.max(self.virtual_time) + cost;
        s.order = self.arrivals;
    }

    /// The flow has nothing to send. Its finish tag is kept until the virtual time has passed it.
    pub fn deactivate(&mut self, key: K) {
        let Some(&slot) = self.index.get(&key) else {
            return;
        };
        if !self.slots[slot].is_active {
            return;
        }
        self.advance();
        self.heap_remove(slot);
        self.heap_insert(slot, false);
        self.after_leaving();
    }

    /// The flow is gone, and its record too.
    pub fn remove(&mut self, key: K) {
        let Some(slot) = self.index.remove(&key) else {
            return;
        };
        self.advance();
        let was_active = self.slots[slot].is_active;
        self.heap_remove(slot);
        self.free.push(slot);
        if was_active {
            // Its service counts: if nobody is left, what it was given in advance is history.
            if self.active.is_empty() {
                self.virtual_time = self.virtual_time.max(self.slots[slot].tag);
            }
            self.after_leaving();
        }
    }

    /// Changes the weight from the next packet on; 0 counts as 1.
    pub fn set_weight(&mut self, key: K, weight: u32) {
        if let Some(&slot) = self.index.get(&key) {
            self.reweigh(slot, weight.max(1));
        }
    }

    fn reweigh(&mut self, slot: usize, weight: u32) {
        let s = &mut self.slots[slot];
        if s.is_active {
            self.weights = self.weights - u64::from(s.weight) + u64::from(weight);
        }
        s.weight = weight;
    }

    /// Sum of the weights of the flows that have something to send.
    pub fn active_weight(&self) -> u64 {
        self.weights
    }

    /// Weight of a flow that is active or remembered.
    pub fn weight(&self, key: K) -> Option<u32> {
        self.index
            .get(&key)
            .and_then(|&slot| self.slots.get(slot))
            .map(|s| s.weight)
    }

    pub fn is_active(&self, key: K) -> bool {
        self.index
            .get(&key)
            .is_some_and(|&slot| self.slots[slot].is_active)
    }

    /// Number of flows that have something to send.
    pub fn active_len(&self) -> usize {
        self.active.len()
    }

    /// No flow has anything to send.
    pub fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    /// What the scheduler gives; `None` until it was asked twice with 50 ms in between.
    ///
    /// Virtual time is service per unit of weight, so its slope is the level.
    pub fn level(&mut self, now: Instant) -> Option<ServiceLevel> {
        self.advance();
        let result = (self.older.at > Instant::ZERO && now > self.older.at).then(|| ServiceLevel {
            bytes_per_second: (self.virtual_time - self.older.tag) as f64
                / (1u64 << SCALE) as f64
                / now.since(self.older.at).as_secs_f64(),
            saturated: !self.older.emptied && !self.newer.emptied,
        });
        if now.since(self.newer.at) >= LEVEL_WINDOW {
            self.older = self.newer;
            self.newer = Checkpoint {
                at: now,
                tag: self.virtual_time,
                emptied: self.active.is_empty(),
            };
        }
        result
    }

    fn advance(&mut self) {
        if let Some(&slot) = self.active.first() {
            self.virtual_time = self.virtual_time.max(self.slots[slot].tag);
        }
    }

    fn after_leaving(&mut self) {
        if self.active.is_empty() {
            self.newer.emptied = true;
            // End of a busy period: nobody was waiting, so nobody has taken anything from anybody.
            let last = self
                .idle
                .iter()
                .map(|&s| self.slots[s].tag)
                .max()
                .unwrap_or(0);
            self.virtual_time = self.virtual_time.max(last);
            // All of that is in the past.
            self.idle.clear();
            self.index.clear();
            self.slots.clear();
            self.free.clear();
        }
        self.forget_past();
    }

    fn forget_past(&mut self) {
        while let Some(&slot) = self.idle.first() {
            if self.slots[slot].tag > self.virtual_time && self.idle.len() <= MAX_IDLE {
                break;
            }
            self.heap_remove(slot);
            self.index.remove(&self.slots[slot].key);
            self.free.push(slot);
        }
    }

    // Two binary heaps of slot numbers. Every slot that is not free stands in exactly one of them,
    // at `place`, so none of the indices below comes from outside.

    fn heap(&mut self, active: bool) -> &mut Vec<usize> {
        if active {
            &mut self.active
        } else {
            &mut self.idle
        }
    }

    fn heap_insert(&mut self, slot: usize, active: bool) {
        self.slots[slot].is_active = active;
        if active {
            self.weights += u64::from(self.slots[slot].weight);
        }
        let heap = self.heap(active);
        heap.push(slot);
        let place = heap.len() - 1;
        self.sift_up(active, place);
    }

    fn heap_remove(&mut self, slot: usize) {
        let Slot {
            is_active,
            place,
            weight,
            ..
        } = self.slots[slot];
        if is_active {
            self.weights -= u64::from(weight);
        }
        let heap = self.heap(is_active);
        heap.swap_remove(place);
        if place < heap.len() {
            let place = self.sift_up(is_active, place);
            self.sift_down(is_active, place);
        }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.slots[a], &self.slots[b]);
        (a.tag, a.order) < (b.tag, b.order)
    }

    fn put(&mut self, active: bool, place: usize, slot: usize) {
        self.heap(active)[place] = slot;
        self.slots[slot].place = place;
    }

    fn sift_up(&mut self, active: bool, mut place: usize) -> usize {
        let slot = self.heap(active)[place];
        while place > 0 {
            let parent_place = (place - 1) / 2;
            let parent = self.heap(active)[parent_place];
            if !self.before(slot, parent) {
                break;
            }
            self.put(active, place, parent);
            place = parent_place;
        }
        self.put(active, place, slot);
        place
    }

    fn sift_down(&mut self, active: bool, mut place: usize) {
        let slot = self.heap(active)[place];
        loop {
            let len = self.heap(active).len();
            let mut child_place = 2 * place + 1;
            if child_place >= len {
                break;
            }
            let mut child = self.heap(active)[child_place];
            if child_place + 1 < len {
                let right = self.heap(active)[child_place + 1];
                if self.before(right, child) {
                    (child_place, child) = (child_place + 1, right);
                }
            }
            if !self.before(child, slot) {
                break;
            }
            self.put(active, place, child);
            place = child_place;
        }
        self.put(active, place, slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn serve(s: &mut FairScheduler<u32>, bytes: u64) -> u32 {
        let k = s.pick().unwrap();
        s.charge(k, Bytes(bytes));
        k
    }

    #[test]
    fn weights_rule_the_shares() {
        let mut s = FairScheduler::new();
        for (k, w) in [(0, 1), (1, 2), (2, 4)] {
            s.activate(k, w);
        }
        let mut served = [0u32; 3];
        for _ in 0..7000 {
            served[serve(&mut s, 1500) as usize] += 1;
        }
        for (k, w) in [(0, 1), (1, 2), (2, 4u32)] {
            assert!(served[k].abs_diff(1000 * w) <= 2, "{served:?}");
        }
    }

    #[test]
    fn a_waking_flow_is_next() {
        let mut s = FairScheduler::new();
        for k in 0..10 {
            s.activate(k, 1);
        }
        for _ in 0..1005 {
            serve(&mut s, 1500);
        }
        s.activate(99, 1);
        let next: Vec<u32> = (0..6).map(|_| serve(&mut s, 1500)).collect();
        assert!(
            next.contains(&99),
            "served after those that were before it in this round: {next:?}"
        );
    }

    #[test]
    fn leaving_and_returning_gains_nothing() {
        let mut s = FairScheduler::new();
        s.activate(0, 1);
        s.activate(1, 1);
        let mut served = [0u32; 2];
        for _ in 0..2000 {
            let k = serve(&mut s, 1500);
            served[k as usize] += 1;
            if k == 1 {
                s.deactivate(1);
                s.activate(1, 1);
            }
        }
        assert!(served[0].abs_diff(served[1]) <= 1, "{served:?}");
    }

    #[test]
    fn a_flow_charged_while_idle_pays_when_it_returns() {
        let mut s = FairScheduler::new();
        s.activate(0, 1);
        s.activate(1, 1);
        s.charge(1, Bytes(1_000));
        s.deactivate(1);
        s.charge(1, Bytes(8_500));
        s.activate(1, 1);
        let first: Vec<u32> = (0..10).map(|_| serve(&mut s, 1000)).collect();
        assert_eq!(first, [0; 10]);
        assert_eq!(serve(&mut s, 1000), 1);
    }

    #[test]
    fn records_of_idle_flows_are_bounded() {
        let mut s = FairScheduler::new();
        s.activate(u32::MAX, 1);
        for k in 0..MAX_IDLE as u32 + 100 {
            s.activate(k, 1);
            s.charge(k, Bytes(1_000_000));
            s.deactivate(k);
        }
        assert!(s.index.len() <= MAX_IDLE + 2, "{}", s.index.len());
        s.remove(u32::MAX);
        assert!(s.index.is_empty() && s.is_empty() && s.pick().is_none());
    }

    #[test]
    fn the_level_is_the_rate_per_weight() {
        let mut s = FairScheduler::new();
        s.activate(0, 1);
        s.activate(1, 3);
        let mut level = None;
        for ms in 1..=300 {
            for _ in 0..10 {
                serve(&mut s, 1000);
            }
            level = s.level(Instant::from_millis(ms));
        }
        let level = level.unwrap();
        assert!(level.saturated);
        assert!(
            (level.bytes_per_second / 2_500_000.0 - 1.0).abs() < 0.02,
            "{level:?}"
        );
        s.deactivate(0);
        s.deactivate(1);
        assert!(!s.level(Instant::from_millis(320)).unwrap().saturated);
    }

    proptest! {
        /// Goyal's fairness theorem: over any interval in which both stay active, normalised
        /// service differs by at most one largest packet of each. Others come and go.
        #[test]
        fn within_a_packet_of_the_ideal(
            weights in prop::collection::vec(1u32..100, 2..8),
            steps in prop::collection::vec((60u64..1515, 0usize..8, 0u8..4), 10..400),
        ) {
            let mut s = FairScheduler::new();
            let n = weights.len();
            for (k, &w) in weights.iter().enumerate() {
                s.activate(k, w);
            }
            // Flows 0 and 1 stay; the rest toggle.
            let mut log = vec![(0u64, 0u64)];
            let (mut a, mut b) = (0, 0);
            for (size, other, action) in steps {
                if other % n > 1 {
                    match action {
                        0 => s.deactivate(other % n),
                        1 => s.activate(other % n, weights[other % n]),
                        2 => s.remove(other % n),
                        _ => {}
                    }
                }
                let k = s.pick().unwrap();
                s.charge(k, Bytes(size));
                if k == 0 { a += size }
                if k == 1 { b += size }
                log.push((a, b));
            }
            let (wa, wb) = (f64::from(weights[0]), f64::from(weights[1]));
            let bound = 1514.0 / wa + 1514.0 / wb + 1e-6;
            for i in 0..log.len() {
                for j in i..log.len() {
                    let (x, y) = (log[j].0 - log[i].0, log[j].1 - log[i].1);
                    let gap = (x as f64 / wa - y as f64 / wb).abs();
                    prop_assert!(gap <= bound, "{gap} > {bound}");
                }
            }
        }

        /// With everybody backlogged each flow is within one packet per competitor of its GPS share.
        #[test]
        fn near_gps_when_all_are_backlogged(weights in prop::collection::vec(1u32..50, 1..10), sizes in prop::collection::vec(60u64..1515, 100..500)) {
            let mut s = FairScheduler::new();
            for (k, &w) in weights.iter().enumerate() {
                s.activate(k, w);
            }
            let mut served = vec![0u64; weights.len()];
            let mut total = 0;
            for size in sizes {
                let k = s.pick().unwrap();
                s.charge(k, Bytes(size));
                served[k] += size;
                total += size;
            }
            let sum: u32 = weights.iter().sum();
            for (k, &w) in weights.iter().enumerate() {
                let ideal = total as f64 * f64::from(w) / f64::from(sum);
                // Ahead by at most its own packet; behind by at most its share of one packet of each.
                let share = f64::from(w) / f64::from(sum);
                let slack = 1514.0 * (1.0 + share * weights.len() as f64);
                prop_assert!((served[k] as f64 - ideal).abs() <= slack, "{k}: {} vs {ideal}", served[k]);
            }
        }

        /// The heaps stay consistent under arbitrary operations: what is picked has the smallest tag.
        #[test]
        fn pick_is_the_minimum(ops in prop::collection::vec((0u8..5, 0u32..20, 1u64..3000), 1..300)) {
            let mut s = FairScheduler::new();
            for (op, k, n) in ops {
                match op {
                    0 | 1 => s.activate(k, (n % 7) as u32),
                    2 => s.deactivate(k),
                    3 => s.remove(k),
                    _ => s.charge(k, Bytes(n)),
                }
                let least = s.index.values().map(|&i| &s.slots[i]).filter(|x| x.is_active).map(|x| (x.tag, x.order)).min();
                let picked = s.pick().map(|k| &s.slots[s.index[&k]]).map(|x| (x.tag, x.order));
                prop_assert_eq!(picked, least);
                prop_assert_eq!(s.active.len() + s.idle.len(), s.index.len());
            }
        }
    }
}
