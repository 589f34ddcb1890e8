//! Quantities that carry their unit.

use core::time::Duration;

/// A rate in bit/s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub u64);

impl BitRate {
    pub const fn from_mbit(mbit: u64) -> Self {
        Self(mbit * 1_000_000)
    }
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }
    pub fn bytes_per_second(self) -> f64 {
        self.0 as f64 / 8.0
    }
    /// How long `bytes` take at this rate; `Duration::MAX` at rate zero.
    pub fn time_for(self, bytes: Bytes) -> Duration {
        if self.0 == 0 {
            return Duration::MAX;
        }
        let ns = u128::from(bytes.0) * 8 * 1_000_000_000 / u128::from(self.0);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
    /// How many bytes fit into `time` at this rate, rounded down.
    pub fn bytes_in(self, time: Duration) -> Bytes {
        let b = u128::from(self.0) * time.as_nanos() / 8_000_000_000;
        Bytes(u64::try_from(b).unwrap_or(u64::MAX))
    }
    pub fn scale(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor) as u64)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);
