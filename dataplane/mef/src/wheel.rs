//! A hierarchical timing wheel (Varghese and Lauck, 1987): deadlines of very
//! many flows, each set, moved and cancelled in constant time.
//!
//! ```text
//!   level 0   64 slots of 1.024 us     what is due within the present 64 ticks
//!   level 1   64 slots of 65.5 us      ... within the present 4,096 ticks
//!     ...                              a slot whose time has come is dealt out
//!   level 10  the rest of 64 bits      to the levels below it
//! ```
//!
//! A deadline lies on the level of the highest digit (base 64) in which it
//! differs from the present, so every slot in use is ahead of the present and
//! the first one of the lowest level is the next. Nothing is due before its
//! deadline; a tick is the most by which it is late.

use mef_packet::Instant;

/// Nanoseconds of a tick, as a power of two.
const TICK_BITS: u32 = 10;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 11;
/// The list of what is due.
const DUE: usize = LEVELS * SLOTS;
const NONE: u32 = u32::MAX;
/// A slot with no more deadlines than this says exactly when its first one is; a longer one when it begins.
const SHORT: usize = 16;

#[derive(Clone, Copy, Debug)]
struct Entry {
    tick: u64,
    prev: u32,
    next: u32,
    /// Where it is listed, `NONE` if it has no deadline.
    list: u32,
}

const UNSET: Entry = Entry {
    tick: 0,
    prev: NONE,
    next: NONE,
    list: NONE,
};

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

/// Deadlines by the number of what they are for; numbers are small, as of places in a table.
#[derive(Debug)]
pub struct Wheel {
    /// Everything up to here has been dealt out.
    present: u64,
    entries: Vec<Entry>,
    lists: Vec<Ends>,
    /// One bit a slot in use.
    used: [u64; LEVELS],
    len: usize,
}

impl Default for Wheel {
    fn default() -> Self {
        let empty = Ends {
            first: NONE,
            last: NONE,
        };
        Self {
            present: 0,
            entries: Vec::new(),
            lists: vec![empty; DUE + 1],
            used: [0; LEVELS],
            len: 0,
        }
    }
}

/// The first tick that is not before `at`.
fn tick_of(at: Instant) -> u64 {
    at.as_nanos().div_ceil(1 << TICK_BITS)
}

fn instant_of(tick: u64) -> Instant {
    Instant::from_nanos(tick.saturating_mul(1 << TICK_BITS))
}

fn level_of(present: u64, tick: u64) -> usize {
    let differs = (present ^ tick).max(1);
    ((63 - differs.leading_zeros()) / SLOT_BITS) as usize
}

fn slot_of(level: usize, tick: u64) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize & (SLOTS - 1)
}

impl Wheel {
    /// How many deadlines there are.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The deadline of `id`, rounded up to a tick.
    pub fn get(&self, id: u32) -> Option<Instant> {
        let e = self.entries.get(id as usize)?;
        (e.list != NONE).then(|| instant_of(e.tick))
    }

    /// Gives `id` this deadline in place of the one it had.
    pub fn set(&mut self, id: u32, at: Instant) {
        let tick = tick_of(at);
        if self.entries.len() <= id as usize {
            self.entries.resize(id as usize + 1, UNSET);
        } else if self
            .entries
            .get(id as usize)
            .is_some_and(|e| e.list != NONE && e.tick == tick)
        {
            return;
        }
        self.cancel(id);
        if let Some(e) = self.entries.get_mut(id as usize) {
            e.tick = tick;
            self.len += 1;
            self.list(id, tick);
        }
    }

    /// `id` has no deadline any more.
    pub fn cancel(&mut self, id: u32) {
        let Some(&e) = self.entries.get(id as usize) else {
            return;
        };
        if e.list == NONE {
            return;
        }
        self.unlist(id, e);
        self.len -= 1;
    }

    /// When something may be due: the first deadline, or earlier where many are close to it.
    pub fn next(&self) -> Option<Instant> {
        if self.ends(DUE).first != NONE {
            return Some(Instant::ZERO);
        }
        let (list, start) = self.first_slot()?;
        let mut id = self.ends(list).first;
        let mut least = u64::MAX;
        for _ in 0..SHORT {
            let Some(e) = self.entries.get(id as usize) else {
                return Some(instant_of(least));
            };
            least = least.min(e.tick);
            id = e.next;
        }
        Some(instant_of(if id == NONE { least } else { start }))
    }

    /// The next of those whose deadline has passed; it has none any more.
    pub fn poll(&mut self, now: Instant) -> Option<u32> {
        let now = now.as_nanos() >> TICK_BITS;
        loop {
            let due = self.ends(DUE).first;
            if let Some(&e) = self.entries.get(due as usize) {
                self.unlist(due, e);
                self.len -= 1;
                return Some(due);
            }
            let Some((list, start)) = self.first_slot().filter(|s| s.1 <= now) else {
                self.present = self.present.max(now);
                return None;
            };
            self.present = start;
            self.deal_out(list);
        }
    }

    /// The first slot in use, and the tick at which it begins.
    fn first_slot(&self) -> Option<(usize, u64)> {
        let (level, used) = self.used.iter().enumerate().find(|(_, u)| **u != 0)?;
        let slot = used.trailing_zeros() as usize;
        let below = SLOT_BITS * level as u32;
        let above = self.present.checked_shr(below + SLOT_BITS).unwrap_or(0);
        let start = above.checked_shl(below + SLOT_BITS).unwrap_or(0) | (slot as u64) << below;
        Some((level * SLOTS + slot, start))
    }

    fn deal_out(&mut self, list: usize) {
        let mut id = self.ends(list).first;
        while let Some(&e) = self.entries.get(id as usize) {
            self.unlist(id, e);
            self.list(id, e.tick);
            id = e.next;
        }
    }

    fn ends(&self, list: usize) -> Ends {
        self.lists.get(list).copied().unwrap_or(Ends {
            first: NONE,
            last: NONE,
        })
    }

    /// Appends `id` to the list of its tick.
    fn list(&mut self, id: u32, tick: u64) {
        let list = if tick <= self.present {
            DUE
        } else {
            let level = level_of(self.present, tick);
            let slot = slot_of(level, tick);
            if let Some(u) = self.used.get_mut(level) {
                *u |= 1 << slot;
            }
            level * SLOTS + slot
        };
        let Some(ends) = self.lists.get_mut(list) else {
            return;
        };
        let last = std::mem::replace(&mut ends.last, id);
        if last == NONE {
            ends.first = id;
        } else if let Some(l) = self.entries.get_mut(last as usize) {
            l.next = id;
        }
        if let Some(e) = self.entries.get_mut(id as usize) {
            (e.prev, e.next, e.list) = (last, NONE, list as u32);
        }
    }

    fn unlist(&mut self, id: u32, e: Entry) {
        if let Some(p) = self.entries.get_mut(e.prev as usize) {
            p.next = e.next;
        }
        if let Some(n) = self.entries.get_mut(e.next as usize) {
            n.prev = e.prev;
        }
        let list = e.list as usize;
        if let Some(ends) = self.lists.get_mut(list) {
            if ends.first == id {
                ends.first = e.next;
            }
            if ends.last == id {
                ends.last = e.prev;
            }
            if ends.first == NONE && list != DUE {
                if let Some(u) = self.used.get_mut(list / SLOTS) {
                    *u &= !(1 << (list % SLOTS));
                }
            }
        }
        if let Some(e) = self.entries.get_mut(id as usize) {
            (e.prev, e.next, e.list) = (NONE, NONE, NONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Do {
        Set(u32, u64),
        Cancel(u32),
        Wait(u64),
    }

    fn action() -> impl Strategy<Value = Do> {
        let far = prop_oneof![
            0u64..5_000,
            0u64..10_000_000,
            0u64..1_000_000_000_000,
            Just(u64::MAX / 2)
        ];
        prop_oneof![
            4 => (0u32..40, far.clone()).prop_map(|(id, ns)| Do::Set(id, ns)),
            1 => (0u32..40).prop_map(Do::Cancel),
            2 => prop_oneof![0u64..5_000, 0u64..50_000_000, 0u64..2_000_000_000_000].prop_map(Do::Wait),
        ]
    }

    proptest! {
        /// Against an ordered map: everything comes, once, in the order of ticks, not early and
        /// not late, and `next` never says a time after the first deadline.
        #[test]
        fn like_an_ordered_map(actions in prop::collection::vec(action(), 1..200)) {
            let mut wheel = Wheel::default();
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            let mut now = 0u64;
            for a in actions {
                match a {
                    Do::Set(id, after) => {
                        let at = now.saturating_add(after);
                        wheel.set(id, Instant::from_nanos(at));
                        model.insert(id, at.div_ceil(1024));
                    }
                    Do::Cancel(id) => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    Do::Wait(ns) => {
                        now += ns;
                        let mut due = Vec::new();
                        while let Some(id) = wheel.poll(Instant::from_nanos(now)) {
                            due.push((model.remove(&id).unwrap(), id));
                        }
                        // What was late when it was set comes first.
                        let before = (now - ns) >> 10;
                        let ahead: Vec<u64> = due.iter().map(|d| d.0).filter(|t| *t > before).collect();
                        prop_assert!(ahead.is_sorted(), "{:?}", due);
                        prop_assert!(due.iter().all(|d| d.0 << 10 <= now));
                        prop_assert!(model.values().all(|t| t << 10 > now));
                    }
                }
                prop_assert_eq!(wheel.len(), model.len());
                let first = model.values().min().map(|t| t << 10);
                match (wheel.next(), first) {
                    (None, None) => {}
                    (Some(n), Some(f)) => {
                        prop_assert!(n.as_nanos() <= f);
                        // With few deadlines it is exact, unless they are past.
                        prop_assert!(n.as_nanos() == f || n == Instant::ZERO || model.len() > SHORT);
                    }
                    (n, f) => prop_assert!(false, "{:?} and {:?}", n, f),
                }
                for (id, tick) in &model {
                    prop_assert_eq!(wheel.get(*id), Some(Instant::from_nanos(tick << 10)));
                }
            }
        }
    }

    #[test]
    fn in_the_order_of_their_deadlines() {
        let mut wheel = Wheel::default();
        let mut at = 1u64;
        for id in 0..1000 {
            at = at
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(id.into());
            wheel.set(id, Instant::from_nanos(at >> 30));
        }
        let (mut last, mut n) = (Instant::ZERO, 0);
        while let Some(next) = wheel.next() {
            while let Some(id) = wheel.poll(next) {
                let due = tick_of(next);
                assert!(wheel.get(id).is_none() && due >= tick_of(last));
                n += 1;
            }
            assert!(next >= last);
            last = next;
        }
        assert_eq!(n, 1000);
    }

    /// A million flows that are paced: each has a next packet all the time.
    #[test]
    fn a_million_flows_keep_their_pace() {
        const FLOWS: u32 = 1_000_000;
        // 1,000 packets a second each would be too many for a test: one in 100 ms, 300 ms long.
        let gap = |id: u32| u64::from(90_000 + id % 20_000) * 1000;
        let mut wheel = Wheel::default();
        let mut due: Vec<u64> = (0..FLOWS)
            .map(|id| gap(id) * u64::from(id % 97) / 97)
            .collect();
        for (id, at) in due.iter().enumerate() {
            wheel.set(id as u32, Instant::from_nanos(*at));
        }
        let (mut sent, mut worst) = (0u64, 0);
        // Polled every 50 us, as a worker would.
        for step in 1..=6000u64 {
            let now = step * 50_000;
            while let Some(id) = wheel.poll(Instant::from_nanos(now)) {
                let at = &mut due[id as usize];
                assert!(*at <= now);
                worst = worst.max(now - *at);
                *at += gap(id);
                wheel.set(id, Instant::from_nanos(*at));
                sent += 1;
            }
        }
        assert!(worst <= 50_000 + 1024, "{worst} ns late");
        assert!((2_900_000..3_700_000).contains(&sent), "{sent}");
        assert_eq!(wheel.len(), FLOWS as usize);
    }
}
