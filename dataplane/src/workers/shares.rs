//! How workers divide what only the router as a whole may use: a line, or a peer's
//! narrower downlink. Each has a share and paces by it alone; once a millisecond it
//! says in its own cache line what waits, by weight, and what it used, and the
//! shares are made anew: max-min by the weight of the flows that wait, no more for
//! anyone than 1.25 times what it uses without waiting.
//!
//! ```text
//!   worker: waits, used --> its cell --\
//!   worker: waits, used --> its cell ---- settle, by whoever is first after 1 ms --> granted, in each cell
//!                     granted --> adopted, when the worker comes by
//! ```
//! That the line is never exceeded does not depend on anybody's timing: a worker
//! counts for the larger of what it was granted and what it has adopted, these sums
//! never exceed the whole, and only what is left is granted on top. A worker that
//! has nothing to send goes back to a small share before it sleeps, so nobody
//! waits for a sleeper. Settling is done by a worker that is awake anyway, and not
//! by one that would have to be woken for it; who finds another at it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::line::Load;

/// The whole, in the fixed point of shares.
const WHOLE: u64 = 1 << 31;
/// How often shares are made.
pub const PERIOD: Duration = Duration::from_millis(1);
/// Over which the use of a worker is averaged.
const USE: f64 = 0.010;
/// How fast the weight of flows that wait no more is forgotten, by period.
const FORGET: f64 = 0.9;
/// A worker whose debt lasts longer waits, if only for control.
const LONG_DEBT: Duration = Duration::from_millis(1);
/// Part of the whole for latency while its flows wait, and of the rest for balanced and bulk.
const LATENCY: f64 = 0.2;
const BALANCED: f64 = 0.9;
/// Weight that counts where only control waits.
const ORDINARY: f64 = 1000.0;

/// What one worker says and is told, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Cell {
    /// Granted in the upper half, adopted in the lower: one word, so that nothing comes between.
    share: AtomicU64,
    /// By class, each an `f32`, and the demand as a part of the whole, infinite where it waits.
    weights: AtomicU64,
    bulk_and_demand: AtomicU64,
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// The shares of one resource.
#[derive(Debug)]
pub struct Shares {
    cells: Box<[Cell]>,
    /// What a worker has that wants nothing.
    floor: u32,
    due: AtomicU64,
    busy: AtomicBool,
}

impl Shares {
    pub fn new(workers: u16) -> Self {
        let workers = u64::from(workers.max(1));
        let floor = (WHOLE / 200).min(WHOLE / 50 / workers) as u32;
        let cell = |_| Cell {
            share: AtomicU64::new(pair(floor, floor)),
            weights: AtomicU64::new(0),
            bulk_and_demand: AtomicU64::new(0),
        };
        Self {
            cells: (0..workers).map(cell).collect(),
            floor,
            due: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        }
    }

    /// Of a worker that wants nothing, as a part of the whole.
    fn least(&self) -> f64 {
        f64::from(self.floor) / WHOLE as f64
    }

    fn cell(&self, me: u16) -> Option<&Cell> {
        self.cells.get(usize::from(me))
    }

    /// Uses what was granted from now on; returns it.
    fn adopt(&self, me: u16) -> u32 {
        let Some(cell) = self.cell(me) else { return 0 };
        let mut word = cell.share.load(Ordering::Acquire);
        loop {
            let (granted, adopted) = halves(word);
            if granted == adopted {
                return granted;
            }
            let new = pair(granted, granted);
            match cell
                .share
                .compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return granted,
                Err(now) => word = now,
            }
        }
    }

    /// Gives back all but the floor.
    fn let_go(&self, me: u16) -> u32 {
        if let Some(cell) = self.cell(me) {
            self.say(me, [0.0; 3], 0.0);
            cell.share
                .store(pair(self.floor, self.floor), Ordering::Release);
        }
        self.floor
    }

    fn say(&self, me: u16, weights: [f64; 3], demand: f64) {
        let Some(cell) = self.cell(me) else { return };
        let [latency, balanced, bulk, demand] =
            [weights[0], weights[1], weights[2], demand].map(|x| (x as f32).to_bits());
        cell.weights
            .store(pair(latency, balanced), Ordering::Relaxed);
        cell.bulk_and_demand
            .store(pair(bulk, demand), Ordering::Relaxed);
    }

    /// Makes the shares anew, if it is time and nobody else is at it.
    fn settle(&self, now: Instant, at_once: bool) {
        let due = self.due.load(Ordering::Relaxed);
        if (now.as_nanos() < due && !at_once) || self.busy.swap(true, Ordering::Acquire) {
            return;
        }
        self.due.store((now + PERIOD).as_nanos(), Ordering::Relaxed);
        self.grant(&self.targets());
        self.busy.store(false, Ordering::Release);
    }

    /// What each is to have.
    fn targets(&self) -> Vec<u32> {
        let said = |cell: &Cell| {
            let (latency, balanced) = halves(cell.weights.load(Ordering::Relaxed));
            let (bulk, demand) = halves(cell.bulk_and_demand.load(Ordering::Relaxed));
            let weights = [latency, balanced, bulk].map(|w| f64::from(f32::from_bits(w)));
            (weights, f64::from(f32::from_bits(demand)))
        };
        let all: Vec<([f64; 3], f64)> = self.cells.iter().map(said).collect();
        let floor = self.least();
        let weights = entitlements(all.iter().map(|(w, _)| *w));
        let wants: Vec<(f64, f64)> = weights
            .iter()
            .zip(&all)
            .map(|(w, (_, demand))| (*w, (demand - floor).max(0.0)))
            .collect();
        let rest = 1.0 - floor * self.cells.len() as f64;
        let parts = water_fill(rest, &wants);
        let fixed = |part: f64| ((part + floor) * WHOLE as f64) as u32;
        parts.into_iter().map(fixed).collect()
    }

    /// Takes back what is above its target, and gives what is free to those below.
    fn grant(&self, targets: &[u32]) {
        let mut promised = 0;
        for (cell, target) in self.cells.iter().zip(targets) {
            let change = |word| {
                let (granted, adopted) = halves(word);
                (*target < granted).then_some(pair(*target, adopted))
            };
            let word = update(&cell.share, change);
            let (granted, adopted) = halves(word);
            promised += u64::from(granted.max(adopted));
        }
        let mut free = WHOLE.saturating_sub(promised);
        for (cell, target) in self.cells.iter().zip(targets) {
            let mut given = 0;
            let change = |word| {
                let (granted, adopted) = halves(word);
                // What it has adopted is its own already.
                let held = granted.max(adopted);
                let more = u64::from(target.saturating_sub(held)).min(free) as u32;
                given = more;
                let new = held.saturating_add(more).min(*target).max(granted);
                (new > granted).then_some(pair(new, adopted))
            };
            update(&cell.share, change);
            free = free.saturating_sub(u64::from(given));
        }
    }

    /// What all may use now, as a part of the whole; never above 1.
    pub fn promised(&self) -> f64 {
        let held = self.cells.iter().map(|c| {
            let (granted, adopted) = halves(c.share.load(Ordering::Acquire));
            u64::from(granted.max(adopted))
        });
        held.sum::<u64>() as f64 / WHOLE as f64
    }
}

/// Changes a word as `change` says, unless it says nothing; returns what is there then.
fn update(word: &AtomicU64, mut change: impl FnMut(u64) -> Option<u64>) -> u64 {
    let mut old = word.load(Ordering::Acquire);
    loop {
        let Some(new) = change(old) else { return old };
        match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return new,
            Err(now) => old = now,
        }
    }
}

/// The part of each worker where all want more than they get: classes first, weights inside of them.
fn entitlements(weights: impl Iterator<Item = [f64; 3]> + Clone) -> Vec<f64> {
    let mut sums = [0.0; 3];
    for w in weights.clone() {
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum += w;
        }
    }
    let [latency, balanced, bulk] = sums.map(|s| s > 0.0);
    let first = match (latency, balanced || bulk) {
        (true, true) => LATENCY,
        (true, false) => 1.0,
        (false, _) => 0.0,
    };
    let ordinary = match (balanced, bulk) {
        (true, true) => BALANCED,
        (true, false) => 1.0,
        (false, _) => 0.0,
    };
    let portions = [
        first,
        (1.0 - first) * ordinary,
        (1.0 - first) * (1.0 - ordinary),
    ];
    let part = |w: [f64; 3]| {
        let classes = portions.iter().zip(w).zip(sums);
        let parts = classes.map(|((p, w), sum)| if sum > 0.0 { p * w / sum } else { 0.0 });
        parts.sum()
    };
    weights.map(part).collect()
}

/// Divides `whole` among (weight, demand): nobody gets more than the demand, and all others the same by
/// weight.
fn water_fill(whole: f64, wants: &[(f64, f64)]) -> Vec<f64> {
    let mut parts = vec![0.0; wants.len()];
    let mut open: Vec<usize> = (0..wants.len()).collect();
    let want = |i: usize| wants.get(i).copied().unwrap_or_default();
    let mut rest = whole;
    loop {
        open.retain(|i| want(*i).0 > 0.0);
        let weight: f64 = open.iter().map(|i| want(*i).0).sum();
        if weight <= 0.0 {
            return parts;
        }
        let level = rest / weight;
        let (sated, hungry): (Vec<usize>, Vec<usize>) = open
            .iter()
            .partition(|i| want(**i).1 <= level * want(**i).0);
        for i in if sated.is_empty() { &hungry } else { &sated } {
            let (weight, demand) = want(*i);
            let part = demand.min(level * weight);
            if let Some(p) = parts.get_mut(*i) {
                *p = part;
            }
            rest -= part;
        }
        if sated.is_empty() {
            return parts;
        }
        open = hungry;
    }
}

/// When in its turn a worker looks at its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// What may be sent has not been sent yet.
    Before,
    Behind,
}

/// One worker's side of one resource.
#[derive(Debug)]
pub struct Claim {
    /// It has more than the floor, and looks once a period.
    active: bool,
    said: Instant,
    spent: u64,
    /// As a part of the whole.
    used: f64,
    weights: [f64; 3],
    share: u32,
}

impl Default for Claim {
    fn default() -> Self {
        Self {
            active: false,
            said: Instant::ZERO,
            spent: 0,
            used: 0.0,
            weights: [0.0; 3],
            share: u32::MAX,
        }
    }
}

impl Claim {
    /// Says what there is to say and takes what there is to take: to be called at every turn, before and
    /// behind what is sent. `load` is of the resource, of which there is `whole`. The new share, where
    /// it has changed.
    pub fn turn(
        &mut self,
        now: Instant,
        moment: Moment,
        me: u16,
        shares: &Shares,
        whole: BitRate,
        load: Load,
    ) -> Option<f64> {
        let waits = load.weights.iter().any(|w| *w > 0);
        let hungry = load.debt > Duration::ZERO && (waits || load.debt > LONG_DEBT);
        if !self.active && !hungry && !waits {
            (self.said, self.spent) = (now, load.spent.0);
            return self.take(shares.floor);
        }
        let begins = !self.active;
        // Before anything is sent who waits has no debt: whether he has to, shows behind it.
        if begins || (moment == Moment::Behind && now.since(self.said) >= PERIOD) {
            self.publish(now, me, shares, whole, &load, hungry || begins);
            self.active = hungry || waits || self.used >= shares.least();
            if self.active {
                shares.settle(now, begins);
            }
        }
        if self.active {
            self.take(shares.adopt(me))
        } else {
            (self.used, self.weights) = (0.0, [0.0; 3]);
            self.take(shares.let_go(me))
        }
    }

    fn take(&mut self, share: u32) -> Option<f64> {
        let changed = share != self.share;
        self.share = share;
        changed.then(|| f64::from(share) / WHOLE as f64)
    }

    fn publish(
        &mut self,
        now: Instant,
        me: u16,
        shares: &Shares,
        whole: BitRate,
        load: &Load,
        hungry: bool,
    ) {
        let time = now.since(self.said).as_secs_f64();
        if time > 0.0 && self.active {
            let bits = load.spent.0.saturating_sub(self.spent) as f64 * 8.0;
            let used = bits / time / (whole.bits_per_second() as f64).max(1.0);
            self.used += (used - self.used) * (time / USE).min(1.0);
        }
        (self.said, self.spent) = (now, load.spent.0);
        for (kept, w) in self.weights.iter_mut().zip(load.weights) {
            let faded = if *kept < 1.0 { 0.0 } else { *kept * FORGET };
            *kept = (w as f64).max(faded);
        }
        let moves = hungry || self.used >= shares.least();
        if moves && self.weights.iter().all(|w| *w <= 0.0) {
            self.weights[1] = ORDINARY;
        }
        let demand = if hungry {
            f64::INFINITY
        } else {
            self.used * 1.25
        };
        shares.say(me, self.weights, demand);
    }

    /// When to take the next turn, if nothing happens before.
    pub fn due(&self) -> Option<Instant> {
        self.active.then(|| self.said + PERIOD)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const LINE: BitRate = BitRate(100_000_000);

    /// A worker that sends as its share lets it.
    #[derive(Default)]
    struct Sender {
        claim: Claim,
        share: f64,
        /// Of the line, without end where it is infinite.
        wants: f64,
        weights: [u64; 3],
        spent: f64,
        got: f64,
    }

    impl Sender {
        fn new(wants: f64, weights: [u64; 3]) -> Self {
            Self {
                wants,
                weights,
                ..Self::default()
            }
        }

        /// One step of `time`.
        fn step(&mut self, now: Instant, me: u16, shares: &Shares, time: Duration) {
            let load = |s: &Self, debt: bool| Load {
                weights: if s.wants > s.share { s.weights } else { [0; 3] },
                spent: mef_packet::Bytes(s.spent as u64),
                debt: Duration::from_micros(if debt { 100 } else { 0 }),
            };
            for moment in [Moment::Before, Moment::Behind] {
                let debt = moment == Moment::Behind && self.wants > self.share;
                let load = load(self, debt);
                if let Some(share) = self.claim.turn(now, moment, me, shares, LINE, load) {
                    self.share = share;
                }
                if moment == Moment::Before {
                    let part = self.wants.min(self.share) * time.as_secs_f64();
                    self.got += part;
                    self.spent += part * LINE.0 as f64 / 8.0;
                }
            }
        }
    }

    /// Lets the senders run for `ms`; what each got of the line in the last half.
    fn run(shares: &Shares, senders: &mut [Sender], from: &mut Instant, ms: u64) -> Vec<f64> {
        let step = Duration::from_micros(250);
        let steps = ms * 4;
        for n in 0..steps {
            if n == steps / 2 {
                senders.iter_mut().for_each(|s| s.got = 0.0);
            }
            for (me, s) in (0..).zip(senders.iter_mut()) {
                s.step(*from, me, shares, step);
            }
            assert!(shares.promised() <= 1.0, "{}", shares.promised());
            assert!(senders.iter().map(|s| s.share).sum::<f64>() <= 1.0 + 1e-9);
            *from += step;
        }
        let time = ms as f64 / 2e3;
        senders.iter().map(|s| s.got / time).collect()
    }

    fn close(got: &[f64], expected: &[f64]) {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 0.02;
        assert!(
            got.iter().zip(expected).all(near),
            "{got:?}, not {expected:?}"
        );
    }

    #[test]
    fn shares_follow_the_flows() {
        let shares = Shares::new(2);
        let mut now = Instant::from_millis(1000);
        let all = f64::INFINITY;
        let flows = |n: u64| [0, n * 1000, 0];
        // Three flows beside five.
        let mut s = [Sender::new(all, flows(3)), Sender::new(all, flows(5))];
        close(&run(&shares, &mut s, &mut now, 40), &[0.375, 0.625]);
        // All of them on one worker: it has the line.
        s[0].weights = flows(8);
        s[1].wants = 0.0;
        close(&run(&shares, &mut s, &mut now, 100), &[0.995, 0.0]);
        // One that wants a tenth gets it, and the other the rest.
        s[1].wants = 0.1;
        s[1].weights = flows(1);
        close(&run(&shares, &mut s, &mut now, 100), &[0.885, 0.1]);
        // Nobody wants anything; then one flow has all from its first millisecond on.
        s.iter_mut().for_each(|s| s.wants = 0.0);
        run(&shares, &mut s, &mut now, 200);
        assert!(s.iter().all(|s| s.share < 0.01 && s.claim.due().is_none()));
        s[1].wants = all;
        s[1].step(now, 1, &shares, PERIOD);
        assert!(s[1].share > 0.98, "{}", s[1].share);
    }

    #[test]
    fn classes_come_before_weights() {
        let mut now = Instant::from_millis(1000);
        let all = f64::INFINITY;
        let mut of = |a: [u64; 3], b: [u64; 3]| {
            let mut s = [Sender::new(all, a), Sender::new(all, b)];
            run(&Shares::new(2), &mut s, &mut now, 60)
        };
        close(&of([0, 1000, 0], [0, 0, 7000]), &[0.9, 0.1]);
        close(&of([1000, 0, 0], [0, 1000, 0]), &[0.2, 0.8]);
        close(&of([1000, 0, 0], [9000, 0, 0]), &[0.1, 0.9]);
        close(&of([0, 1000, 1000], [0, 1000, 0]), &[0.55, 0.45]);
        close(&of([0, 0, 1000], [0, 0, 3000]), &[0.25, 0.75]);
    }

    proptest! {
        /// Whoever comes by when, and wants what: together they never use more than there is.
        #[test]
        fn never_more_than_the_whole(
            workers in 2u16..6,
            turns in prop::collection::vec((0u16..6, 0u64..3000, 0u8..4, 1u64..9), 1..400),
        ) {
            let shares = Shares::new(workers);
            let mut senders: Vec<Sender> = (0..workers).map(|_| Sender::default()).collect();
            let mut now = Instant::from_millis(1000);
            for (who, micros, wants, weight) in turns {
                let me = who % workers;
                now += Duration::from_micros(micros);
                let s = &mut senders[usize::from(me)];
                s.wants = [0.0, 0.05, 0.5, f64::INFINITY][usize::from(wants)];
                s.weights = [0, weight * 1000, u64::from(wants) * 500];
                s.step(now, me, &shares, Duration::from_micros(micros));
                prop_assert!(shares.promised() <= 1.0);
                prop_assert!(senders.iter().map(|s| s.share).sum::<f64>() <= 1.0 + 1e-9);
            }
        }
    }

    #[test]
    fn threads_that_never_wait_for_each_other_keep_to_the_whole() {
        const WORKERS: u16 = 3;
        let shares = Arc::new(Shares::new(WORKERS));
        let threads: Vec<_> = (0..WORKERS)
            .map(|me| {
                let shares = Arc::clone(&shares);
                std::thread::spawn(move || {
                    let mut s = Sender::new(f64::INFINITY, [0, 1000, 0]);
                    let mut now = Instant::from_millis(1000);
                    for n in 0..60_000u64 {
                        // On for a while, off for a while, each at its own pace.
                        let on = n / (20 + 7 * u64::from(me)) % 3 > 0;
                        s.wants = if on { f64::INFINITY } else { 0.0 };
                        now += Duration::from_micros(250);
                        s.step(now, me, &shares, Duration::from_micros(250));
                    }
                })
            })
            .collect();
        let watched = Arc::clone(&shares);
        while threads.iter().any(|t| !t.is_finished()) {
            // What is read is not of one moment, so only what each holds can be said of it.
            assert!(watched.promised() <= f64::from(WORKERS));
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert!(shares.promised() <= 1.0, "{}", shares.promised());
    }
}
