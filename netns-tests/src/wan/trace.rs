//! Recorded links in the format of Mahimahi (Netravali et al., 2015): each line
//! of the file is a millisecond at which the link could deliver 1500 bytes, and
//! the whole repeats with the last line as its period.

use std::time::Duration;

use mef_packet::{BitRate, Bytes};
use serde::{Deserialize, Serialize};

/// Bytes that one opportunity delivers.
pub const OPPORTUNITY: u32 = 1500;

/// Eleven days; times are computed in nanoseconds.
pub const MAX_MS: u64 = 1_000_000_000;

/// Delivery opportunities of one direction, ascending, milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct Trace {
    at_ms: Vec<u64>,
    period_ms: u64,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TraceError {
    #[error("line {line}: found {found:?}, expected a whole number of milliseconds")]
    NotANumber { line: usize, found: String },
    #[error("line {line}: {found} ms comes after {previous} ms; the lines must ascend")]
    NotAscending {
        line: usize,
        found: u64,
        previous: u64,
    },
    #[error("no delivery opportunity, or all of them at 0 ms")]
    Empty,
    #[error("{found} ms is more than a trace can last, {MAX_MS} ms")]
    TooLong { found: u64 },
}

impl TryFrom<Vec<u64>> for Trace {
    type Error = TraceError;

    fn try_from(at_ms: Vec<u64>) -> Result<Self, TraceError> {
        let mut previous = 0;
        for (i, &ms) in at_ms.iter().enumerate() {
            if ms < previous {
                return Err(TraceError::NotAscending {
                    line: i + 1,
                    found: ms,
                    previous,
                });
            }
            previous = ms;
        }
        if previous == 0 {
            return Err(TraceError::Empty);
        }
        if previous > MAX_MS {
            return Err(TraceError::TooLong { found: previous });
        }
        Ok(Self {
            at_ms,
            period_ms: previous,
        })
    }
}

impl From<Trace> for Vec<u64> {
    fn from(t: Trace) -> Self {
        t.at_ms
    }
}

impl Trace {
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut at_ms = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let found = line.trim();
            let ms = found.parse::<u64>().map_err(|_| TraceError::NotANumber {
                line: i + 1,
                found: found.chars().take(40).collect(),
            })?;
            at_ms.push(ms);
        }
        Self::try_from(at_ms)
    }

    /// Capacity over one period.
    pub fn mean_rate(&self) -> BitRate {
        let bits = self.at_ms.len() as u128 * u128::from(OPPORTUNITY) * 8 * 1000;
        BitRate((bits / u128::from(self.period_ms)) as u64)
    }

    /// What the link can deliver in the first `time` of the trace, repeating.
    pub fn capacity(&self, time: Duration) -> Bytes {
        let n = self.first_at_or_after(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        Bytes(n * u64::from(OPPORTUNITY))
    }

    /// When opportunity `n` comes, nanoseconds from the start; the trace repeats for ever.
    pub fn time_of(&self, n: u64) -> u64 {
        let len = self.at_ms.len().max(1) as u64;
        let within = self.at_ms.get((n % len) as usize).copied().unwrap_or(0);
        (n / len)
            .saturating_mul(self.period_ms)
            .saturating_add(within)
            .saturating_mul(1_000_000)
    }

    /// The first opportunity at or after `ns` from the start.
    pub fn first_at_or_after(&self, ns: u64) -> u64 {
        let ms = ns.div_ceil(1_000_000);
        let (cycle, within) = (ms / self.period_ms, ms % self.period_ms);
        let index = self.at_ms.partition_point(|&t| t < within) as u64;
        // What the last line of the previous cycle offers falls on this cycle's zero.
        let mut n = cycle * self.at_ms.len() as u64 + index;
        while n > 0 && self.time_of(n - 1) >= ns {
            n -= 1;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_with_the_last_line_as_period() {
        let t = Trace::parse("1\n1\n5\n10\n").unwrap();
        let times: Vec<u64> = (0..6).map(|n| t.time_of(n) / 1_000_000).collect();
        assert_eq!(times, [1, 1, 5, 10, 11, 11]);
        assert_eq!(t.mean_rate(), BitRate(4 * 1500 * 8 * 100));
        assert_eq!(t.first_at_or_after(0), 0);
        assert_eq!(t.first_at_or_after(1_000_000), 0);
        assert_eq!(t.first_at_or_after(1_000_001), 2);
        assert_eq!(t.first_at_or_after(10_000_000), 3);
        assert_eq!(t.first_at_or_after(10_000_001), 4);
        assert_eq!(t.capacity(Duration::from_millis(100)).0, 39 * 1500);
    }

    #[test]
    fn refuses_what_is_no_trace() {
        assert_eq!(Trace::parse(""), Err(TraceError::Empty));
        assert_eq!(Trace::parse("0\n0\n"), Err(TraceError::Empty));
        assert_eq!(
            Trace::parse("6666666666666669"),
            Err(TraceError::TooLong {
                found: 6666666666666669
            })
        );
        assert!(matches!(
            Trace::parse("1\nx\n"),
            Err(TraceError::NotANumber { line: 2, .. })
        ));
        assert!(matches!(
            Trace::parse("5\n4\n"),
            Err(TraceError::NotAscending { line: 2, .. })
        ));
    }
}
