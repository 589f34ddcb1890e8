//! Three classes of service in front of the fair scheduler: `latency` goes first
//! within a fifth of the line, the rest is divided between `balanced` and `bulk`,
//! nine to one where both want it; inside a class flows share by weight.
//!
//! ```text
//!   latency  --- within 20% of the line, or nobody else waits -----> first
//!   balanced ---\
//!                start-time fair, 9 : 1 ---------------------------> next
//!   bulk -------/
//! ```
//!
//! What nobody of a class uses is the others': a class costs nothing while it is empty.

use core::hash::Hash;
use core::time::Duration;

use mef_packet::{BitRate, Bytes, Instant};

use crate::scheduler::FairScheduler;

/// How a flow's packets stand towards those of other flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// First, up to a fifth of the line.
    Latency,
    #[default]
    Balanced,
    /// A tenth of what others leave, all of it when they leave it all.
    Bulk,
}

/// Share of the line up to which the latency class goes first.
pub const LATENCY_SHARE: f64 = 0.2;
/// Bytes that may go first after a pause are those of this much of the share, at least four packets.
const LATENCY_BURST: Duration = Duration::from_millis(20);
const BALANCED_WEIGHT: u32 = 9;
const BULK_WEIGHT: u32 = 1;

/// Token bucket of the latency class, in bytes.
#[derive(Clone, Debug)]
struct Allowance {
    rate: BitRate,
    credit: f64,
    cap: f64,
    at: Instant,
}

impl Allowance {
    fn new(now: Instant, rate: BitRate) -> Self {
        let cap = (rate.bytes_in(LATENCY_BURST).0 as f64).max(4.0 * 1514.0);
        Self {
            rate,
            credit: cap,
            cap,
            at: now,
        }
    }
    fn refill(&mut self, now: Instant) {
        if now <= self.at {
            return;
        }
        let earned = self.rate.bits_per_second() as f64 / 8.0 * now.since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.credit = (self.credit + earned).min(self.cap);
    }
}

/// Weighted fair scheduler with classes. A flow's key belongs to one class for as long as it is active.
#[derive(Clone, Debug)]
pub struct ClassScheduler<K> {
    latency: FairScheduler<K>,
    balanced: FairScheduler<K>,
    bulk: FairScheduler<K>,
    between: FairScheduler<Class>,
    allowance: Allowance,
}

impl<K: Copy + Eq + Hash> ClassScheduler<K> {
    /// For a line of rate `line`.
    pub fn new(now: Instant, line: BitRate) -> Self {
        Self {
            latency: FairScheduler::new(),
            balanced: FairScheduler::new(),
            bulk: FairScheduler::new(),
            between: FairScheduler::new(),
            allowance: Allowance::new(now, line.scale(LATENCY_SHARE)),
        }
    }

    fn flows(&self, class: Class) -> &FairScheduler<K> {
        match class {
            Class::Latency => &self.latency,
            Class::Balanced => &self.balanced,
            Class::Bulk => &self.bulk,
        }
    }
    fn flows_mut(&mut self, class: Class) -> &mut FairScheduler<K> {
        match class {
            Class::Latency => &mut self.latency,
            Class::Balanced => &mut self.balanced,
            Class::Bulk => &mut self.bulk,
        }
    }

    /// The flow has something to send; see [`FairScheduler::activate`].
    pub fn activate(&mut self, class: Class, key: K, weight: u32) {
        self.flows_mut(class).activate(key, weight);
        match class {
            Class::Latency => {}
            Class::Balanced => self.between.activate(class, BALANCED_WEIGHT),
            Class::Bulk => self.between.activate(class, BULK_WEIGHT),
        }
    }

    /// The flow to send from, and its class.
    pub fn pick(&mut self, now: Instant) -> Option<(Class, K)> {
        let first = self.latency.pick().map(|k| (Class::Latency, k));
        self.allowance.refill(now);
        if first.is_some() && self.allowance.credit > 0.0 {
            return first;
        }
        let Some(class) = self.between.pick() else {
            return first;
        };
        self.flows(class).pick().map(|k| (class, k))
    }

    /// Charges what the flow sent.
    pub fn charge(&mut self, class: Class, key: K, bytes: Bytes) {
        self.flows_mut(class).charge(key, bytes);
        if class == Class::Latency {
            // Beyond its share it goes only when nobody else waits: that is no debt.
            let cap = self.allowance.cap;
            self.allowance.credit = (self.allowance.credit - bytes.0 as f64).max(-cap);
        } else {
            self.between.charge(class, bytes);
        }
    }

    /// Charges the last packet that the flow has.
    pub fn charge_last(&mut self, class: Class, key: K, bytes: Bytes) {
        if class == Class::Latency {
            self.charge(class, key, bytes);
            self.deactivate(class, key);
            return;
        }
        self.flows_mut(class).charge_last(key, bytes);
        if self.flows(class).is_empty() {
            self.between.charge_last(class, bytes);
        } else {
            self.between.charge(class, bytes);
        }
    }

    /// The flow has nothing to send.
    pub fn deactivate(&mut self, class: Class, key: K) {
        self.flows_mut(class).deactivate(key);
        if class != Class::Latency && self.flows(class).is_empty() {
            self.between.deactivate(class);
        }
    }

    /// Weight of a flow that is active or remembered.
    pub fn weight(&self, class: Class, key: K) -> Option<u32> {
        self.flows(class).weight(key)
    }

    /// Sums of the weights of the flows that have something to send: latency, balanced, bulk.
    pub fn active_weights(&self) -> [u64; 3] {
        [&self.latency, &self.balanced, &self.bulk].map(FairScheduler::active_weight)
    }

    pub fn is_empty(&self) -> bool {
        self.latency.is_empty() && self.between.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: BitRate = BitRate(100_000_000);
    const PACKET: u64 = 1250;
    const GAP: Duration = Duration::from_micros(100);

    /// Serves the line for `packets` turns; per flow what it got. `wants` says whether a flow has something then.
    fn serve(flows: &[(Class, u32)], packets: u64, wants: impl Fn(usize, u64) -> bool) -> Vec<f64> {
        let mut now = Instant::from_millis(5);
        let mut s = ClassScheduler::new(now, LINE);
        let mut got = vec![0.0; flows.len()];
        for turn in 0..packets {
            for (i, (class, weight)) in flows.iter().enumerate() {
                if wants(i, turn) {
                    s.activate(*class, i, *weight);
                }
            }
            while let Some((class, i)) = s.pick(now) {
                if !wants(i, turn) {
                    s.deactivate(class, i);
                    continue;
                }
                s.charge(class, i, Bytes(PACKET));
                got[i] += 1.0 / packets as f64;
                break;
            }
            now += GAP;
        }
        got
    }

    fn close(got: &[f64], expected: &[f64]) {
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 0.01, "{got:?}, expected {expected:?}");
        }
    }

    #[test]
    fn latency_is_first_within_a_fifth_of_the_line() {
        use Class::{Balanced, Latency};
        // Both always want: the latency class is held to its fifth.
        let flows = [(Latency, 1000), (Balanced, 1000)];
        close(&serve(&flows, 50_000, |_, _| true), &[0.2, 0.8]);
        // It wants a tenth: it gets that, whatever the weights and numbers of others.
        let flows = [
            (Latency, 1000),
            (Balanced, 1_000_000),
            (Balanced, 1_000_000),
        ];
        let got = serve(&flows, 50_000, |i, turn| i > 0 || turn % 10 == 0);
        close(&got, &[0.1, 0.45, 0.45]);
        // Alone it has everything.
        close(&serve(&flows[..1], 50_000, |_, _| true), &[1.0]);
    }

    #[test]
    fn a_latency_packet_goes_next_whatever_waits() {
        let now = Instant::from_millis(5);
        let mut s = ClassScheduler::new(now, LINE);
        for i in 0..100 {
            s.activate(Class::Balanced, i, 1_000_000);
        }
        s.activate(Class::Latency, 100, 10);
        assert_eq!(s.pick(now), Some((Class::Latency, 100)));
        s.deactivate(Class::Latency, 100);
        assert!(matches!(s.pick(now), Some((Class::Balanced, _))));
    }

    #[test]
    fn bulk_has_a_tenth_of_what_is_wanted_and_all_that_is_not() {
        use Class::{Balanced, Bulk, Latency};
        let flows = [
            (Balanced, 1000),
            (Balanced, 1000),
            (Bulk, 1000),
            (Bulk, 3000),
        ];
        let got = serve(&flows, 50_000, |_, _| true);
        close(&got, &[0.45, 0.45, 0.025, 0.075]);
        let got = serve(&flows, 50_000, |i, turn| i >= 2 || turn % 4 == 0);
        assert!(got[2] + got[3] > 0.5, "{got:?}");
        let flows = [(Latency, 1000), (Balanced, 1000), (Bulk, 1000)];
        close(&serve(&flows, 50_000, |_, _| true), &[0.2, 0.72, 0.08]);
        close(&serve(&flows[2..], 1_000, |_, _| true), &[1.0]);
    }

    #[test]
    fn nothing_waits_when_all_have_left() {
        let now = Instant::from_millis(5);
        let mut s = ClassScheduler::new(now, LINE);
        for class in [Class::Latency, Class::Balanced, Class::Bulk] {
            s.activate(class, class, 1000);
            assert!(!s.is_empty());
            s.deactivate(class, class);
            assert!(s.is_empty());
            assert_eq!(s.pick(now), None);
        }
    }
}
