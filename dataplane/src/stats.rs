//! A histogram of times in fixed memory, for delays between a microsecond and
//! 100 seconds: exact below 64 us, above that 32 steps to every doubling, so
//! that a percentile is off by at most 1.6%. The layout is that of
//! HdrHistogram (Tene): the place of a value is its exponent and its first
//! five bits behind the leading one.

use core::time::Duration;

const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// The largest value told apart, 100 s in microseconds; larger ones count as this one.
const MAX_US: u64 = 100_000_000;
const LEN: usize = index(MAX_US) + 1;

/// The place of a value of at most [`MAX_US`].
const fn index(us: u64) -> usize {
    if us < 2 * SUB {
        return us as usize;
    }
    let shift = us.ilog2() - SUB_BITS;
    // The mantissa lies in SUB..2*SUB, so consecutive octaves follow each other without a gap.
    (SUB * shift as u64 + (us >> shift)) as usize
}

/// The middle of the values that share place `i`, in microseconds.
const fn value(i: usize) -> u64 {
    let i = i as u64;
    if i < 2 * SUB {
        return i;
    }
    let shift = i / SUB - 1;
    let low = (i - SUB * shift) << shift;
    low + ((1 << shift) - 1) / 2
}

/// Counts of times in microseconds; about 6 kB.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; LEN]>,
    count: u64,
    sum_us: u64,
    min_us: u64,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    pub fn new() -> Self {
        Self {
            counts: Box::new([0; LEN]),
            count: 0,
            sum_us: 0,
            min_us: u64::MAX,
            max_us: 0,
        }
    }

    /// Counts one time; anything above 100 s counts as 100 s.
    #[inline]
    pub fn record(&mut self, time: Duration) {
        self.record_us(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one time of `us` microseconds.
    #[inline]
    pub fn record_us(&mut self, us: u64) {
        let us = us.min(MAX_US);
        if let Some(c) = self.counts.get_mut(index(us)) {
            *c += 1;
        }
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(us);
        self.min_us = self.min_us.min(us);
        self.max_us = self.max_us.max(us);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest time counted, microseconds; 0 when there is none.
    pub fn min_us(&self) -> u64 {
        if self.count == 0 {
            0
        } else {
            self.min_us
        }
    }

    /// The largest time counted, microseconds; 0 when there is none.
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// Mean, microseconds; 0 when nothing was counted.
    pub fn mean_us(&self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum_us as f64 / self.count as f64
        }
    }

    /// Sum of all times, microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// How many times are at most `us` microseconds, to the accuracy of a place.
    pub fn at_most_us(&self, us: u64) -> u64 {
        let places = index(us.min(MAX_US)) + 1;
        self.counts.iter().take(places).sum()
    }

    /// The smallest time such that at least the share `q` (0 ..= 1) of all
    /// times are not above it (nearest rank), microseconds; 0 when nothing was counted.
    pub fn percentile_us(&self, q: f64) -> u64 {
        if self.count == 0 {
            return 0;
        }
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (i, &c) in self.counts.iter().enumerate() {
            seen += c;
            if seen >= rank {
                return value(i).clamp(self.min_us, self.max_us);
            }
        }
        self.max_us
    }

    /// Adds what another histogram counted.
    pub fn merge(&mut self, other: &Self) {
        for (a, b) in self.counts.iter_mut().zip(other.counts.iter()) {
            *a += b;
        }
        self.count += other.count;
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.min_us = self.min_us.min(other.min_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Forgets everything, keeping the memory.
    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.count = 0;
        self.sum_us = 0;
        self.min_us = u64::MAX;
        self.max_us = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_follow_each_other_without_gap_or_overlap() {
        let mut last = 0;
        for us in 1..200_000 {
            let i = index(us);
            assert!(i == last || i == last + 1, "{us}: {last} -> {i}");
            last = i;
        }
        for i in 0..LEN {
            assert_eq!(index(value(i).min(MAX_US)), i);
        }
    }

    #[test]
    fn empty_and_single() {
        let mut h = Histogram::new();
        assert_eq!(
            (h.percentile_us(0.99), h.min_us(), h.max_us(), h.mean_us()),
            (0, 0, 0, 0.0)
        );
        h.record(Duration::from_millis(200));
        for q in [0.0, 0.5, 1.0] {
            assert_eq!(h.percentile_us(q), 200_000);
        }
        h.clear();
        assert_eq!((h.count(), h.percentile_us(0.5)), (0, 0));
    }

    #[test]
    fn counts_what_is_at_most_a_time() {
        let mut h = Histogram::new();
        for us in [10, 20, 1000, 5000, 200_000_000] {
            h.record_us(us);
        }
        let at_most = [5, 10, 900, 1000, 10_000, 1 << 40].map(|us| h.at_most_us(us));
        assert_eq!(at_most, [0, 1, 2, 3, 4, 5]);
        assert_eq!(h.sum_us(), 6030 + MAX_US);
    }

    #[test]
    fn too_large_counts_as_the_largest() {
        let mut h = Histogram::new();
        h.record(Duration::MAX);
        h.record(Duration::from_secs(101));
        assert_eq!((h.count(), h.percentile_us(0.5)), (2, MAX_US));
    }

    proptest! {
        #[test]
        fn percentiles_are_within_three_percent(
            // Exponents, so that every decade is met as often as the next.
            logs in prop::collection::vec(0.0f64..8.0, 1..400),
            q in 0.0f64..=1.0,
        ) {
            let mut times: Vec<u64> = logs.iter().map(|l| 10f64.powf(*l) as u64).collect();
            let mut h = Histogram::new();
            times.iter().for_each(|&t| h.record_us(t));
            times.sort_unstable();
            let rank = ((q * times.len() as f64).ceil() as usize).clamp(1, times.len());
            let exact = times[rank - 1] as f64;
            let got = h.percentile_us(q) as f64;
            prop_assert!((got - exact).abs() <= 0.016 * exact, "{got} for {exact}");
        }

        #[test]
        fn merging_is_counting_together(
            a in prop::collection::vec(0u64..200_000_000, 0..100),
            b in prop::collection::vec(0u64..200_000_000, 0..100),
        ) {
            let (mut ha, mut hb, mut both) = (Histogram::new(), Histogram::new(), Histogram::new());
            a.iter().for_each(|&t| { ha.record_us(t); both.record_us(t); });
            b.iter().for_each(|&t| { hb.record_us(t); both.record_us(t); });
            ha.merge(&hb);
            prop_assert_eq!(ha.count(), both.count());
            prop_assert_eq!(&ha.counts[..], &both.counts[..]);
            prop_assert_eq!((ha.min_us(), ha.max_us(), ha.mean_us()), (both.min_us(), both.max_us(), both.mean_us()));
        }
    }
}
