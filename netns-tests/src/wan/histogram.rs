//! A histogram of microseconds with bounded memory and less than 1.6% error:
//! linear up to 64 us, then 64 steps for every doubling.

/// Counts of durations in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

const STEPS: u64 = 64;

impl Histogram {
    fn bucket(us: u64) -> usize {
        if us < STEPS {
            return us as usize;
        }
        let doubling = u64::from(us.ilog2()) - 6;
        let step = (us >> doubling) - STEPS;
        (STEPS + doubling * STEPS + step) as usize
    }

    /// Largest value of the bucket.
    fn upper(bucket: usize) -> u64 {
        let b = bucket as u64;
        if b < STEPS {
            return b;
        }
        let (doubling, step) = ((b - STEPS) / STEPS, (b - STEPS) % STEPS);
        ((STEPS + step + 1) << doubling) - 1
    }

    pub fn record(&mut self, us: u64) {
        // An hour is more than anything measured here, and bounds the memory.
        let us = us.min(3_600_000_000);
        let bucket = Self::bucket(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        if let Some(c) = self.counts.get_mut(bucket) {
            *c += 1;
        }
        self.total += 1;
        self.max = self.max.max(us);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The smallest value that at least the share `q` of the samples does not exceed
    /// (nearest rank), microseconds; zero without samples.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((q * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::upper(bucket).min(self.max);
            }
        }
        0
    }

    pub fn clear(&mut self) {
        self.counts.clear();
        self.total = 0;
        self.max = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_of_a_known_set() {
        let mut h = Histogram::default();
        assert_eq!(h.quantile(0.99), 0);
        for us in 1..=50 {
            h.record(us);
        }
        assert_eq!(
            (h.quantile(0.5), h.quantile(0.99), h.quantile(1.0)),
            (25, 50, 50)
        );
    }

    proptest! {
        #[test]
        fn within_two_percent_of_the_exact_quantile(
            mut values in proptest::collection::vec(0u64..10_000_000, 1..300), q in 0.0f64..=1.0,
        ) {
            let mut h = Histogram::default();
            values.iter().for_each(|v| h.record(*v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let got = h.quantile(q);
            prop_assert!(got >= exact && got as f64 <= exact as f64 * 1.016 + 1.0, "{got} {exact}");
        }
    }
}
