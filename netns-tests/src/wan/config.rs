//! What one direction of the emulated WAN does, as plain values (and as JSON,
//! in which the lab hands them to the emulator's process).

use std::sync::Arc;
use std::time::Duration;

use mef_packet::{BitRate, Bytes};
use serde::{Deserialize, Serialize};

use super::trace::Trace;

/// Units of `mef_packet` as their number.
mod as_number {
    pub mod rate {
        use mef_packet::BitRate;
        use serde::{Deserialize, Deserializer, Serializer};
        pub fn serialize<S: Serializer>(r: &BitRate, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_u64(r.0)
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BitRate, D::Error> {
            u64::deserialize(d).map(BitRate)
        }
    }
    pub mod bytes {
        use mef_packet::Bytes;
        use serde::{Deserialize, Deserializer, Serializer};
        pub fn serialize<S: Serializer>(b: &Bytes, s: S) -> Result<S::Ok, S::Error> {
            s.serialize_u64(b.0)
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
            u64::deserialize(d).map(Bytes)
        }
    }
    pub mod trace {
        use crate::wan::trace::Trace;
        use serde::{Deserialize, Deserializer, Serialize, Serializer};
        use std::sync::Arc;
        pub fn serialize<S: Serializer>(t: &Arc<Trace>, s: S) -> Result<S::Ok, S::Error> {
            t.serialize(s)
        }
        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Arc<Trace>, D::Error> {
            Trace::deserialize(d).map(Arc::new)
        }
    }
}

/// What the line can carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Line {
    /// No bottleneck: delay and loss only.
    Unlimited,
    /// A constant rate, charged on the Ethernet frame without FCS.
    Rate(#[serde(with = "as_number::rate")] BitRate),
    /// Recorded delivery opportunities.
    Trace(#[serde(with = "as_number::trace")] Arc<Trace>),
}

impl Line {
    /// Mean rate, `None` for an unlimited line.
    pub fn mean_rate(&self) -> Option<BitRate> {
        match self {
            Self::Unlimited => None,
            Self::Rate(r) => Some(*r),
            Self::Trace(t) => Some(t.mean_rate()),
        }
    }
}

/// Which frames the line loses, after it has carried them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Loss {
    /// Every frame with the same probability, independently.
    Iid(f64),
    /// Two states with their own loss probability (Gilbert 1960, Elliott 1963);
    /// transition probabilities per frame.
    GilbertElliott {
        good_to_bad: f64,
        bad_to_good: f64,
        loss_good: f64,
        loss_bad: f64,
    },
}

impl Loss {
    pub const NONE: Self = Self::Iid(0.0);

    /// A Gilbert model with a mean loss and a mean number of frames lost in a row (at least 1).
    pub fn bursts(mean: f64, length: f64) -> Self {
        let bad_to_good = 1.0 / length.max(1.0);
        Self::GilbertElliott {
            good_to_bad: (mean * bad_to_good / (1.0 - mean)).min(1.0),
            bad_to_good,
            loss_good: 0.0,
            loss_bad: 1.0,
        }
    }

    /// Share of frames lost in the long run.
    pub fn mean(self) -> f64 {
        match self {
            Self::Iid(p) => p,
            Self::GilbertElliott {
                good_to_bad,
                bad_to_good,
                loss_good,
                loss_bad,
            } => {
                let sum = good_to_bad + bad_to_good;
                if sum <= 0.0 {
                    return loss_good;
                }
                let bad = good_to_bad / sum;
                bad * loss_bad + (1.0 - bad) * loss_good
            }
        }
    }
}

/// Something that changes while the load runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    Rate(#[serde(with = "as_number::rate")] BitRate),
    Delay(Duration),
    Loss(f64),
    Mtu(u16),
    /// True: everything is lost; false: back to normal.
    Blackhole(bool),
}

/// A change and when it happens, counted from the origin (the start of the load).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scheduled {
    pub at: Duration,
    pub change: Change,
}

/// One direction of the WAN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectionConfig {
    pub line: Line,
    /// Propagation delay, one way.
    pub delay: Duration,
    /// Drop-tail bound on what waits and is being sent.
    #[serde(with = "as_number::bytes")]
    pub queue: Bytes,
    pub loss: Loss,
    /// Extra delay, uniform in 0..=jitter per frame.
    pub jitter: Duration,
    /// Whether jitter may let a frame overtake another.
    pub reorder: bool,
    /// Probability that a frame is delivered twice.
    pub duplicate: f64,
    /// Largest IP packet (frame without its 14-byte header); larger ones vanish.
    pub mtu: u16,
    /// In order of time.
    pub changes: Vec<Scheduled>,
}

impl Default for DirectionConfig {
    fn default() -> Self {
        Self {
            line: Line::Unlimited,
            delay: Duration::ZERO,
            queue: Bytes(u64::MAX),
            loss: Loss::NONE,
            jitter: Duration::ZERO,
            reorder: false,
            duplicate: 0.0,
            mtu: u16::MAX,
            changes: Vec::new(),
        }
    }
}

impl DirectionConfig {
    /// What the line can carry from `from` to `to` after the origin, as a mean rate;
    /// `None` for an unlimited line.
    pub fn mean_rate(&self, from: Duration, to: Duration) -> Option<BitRate> {
        let seconds = to.saturating_sub(from).as_secs_f64();
        if seconds <= 0.0 {
            return self.line.mean_rate();
        }
        let bits = match &self.line {
            Line::Unlimited => return None,
            Line::Trace(trace) => 8.0 * (trace.capacity(to).0 - trace.capacity(from).0) as f64,
            Line::Rate(rate) => {
                let mut steps = vec![(Duration::ZERO, *rate)];
                steps.extend(self.changes.iter().filter_map(|s| match s.change {
                    Change::Rate(rate) => Some((s.at, rate)),
                    _ => None,
                }));
                let ends = steps.iter().skip(1).map(|(at, _)| *at).chain([to]);
                let spans = steps.iter().zip(ends);
                spans
                    .map(|((start, rate), end)| {
                        let span = end.min(to).saturating_sub((*start).max(from));
                        rate.bits_per_second() as f64 * span.as_secs_f64()
                    })
                    .sum()
            }
        };
        Some(BitRate((bits / seconds).round() as u64))
    }
}

/// Both directions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WanConfig {
    pub a_to_b: DirectionConfig,
    pub b_to_a: DirectionConfig,
}

impl WanConfig {
    /// Delay both ways, without queues and serialisation.
    pub fn rtt(&self) -> Duration {
        self.a_to_b.delay + self.b_to_a.delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_rate_of_a_window_counts_every_change_in_it() {
        let s = Duration::from_secs;
        let change = |at, mbit| Scheduled {
            at: s(at),
            change: Change::Rate(BitRate::from_mbit(mbit)),
        };
        let d = DirectionConfig {
            line: Line::Rate(BitRate::from_mbit(100)),
            changes: vec![change(4, 20), change(6, 50)],
            ..DirectionConfig::default()
        };
        let mbit = |from, to| d.mean_rate(s(from), s(to)).map(|r| r.0 / 1_000_000);
        assert_eq!(mbit(0, 4), Some(100));
        assert_eq!(mbit(2, 6), Some(60));
        assert_eq!(mbit(5, 8), Some(40));
        assert_eq!(mbit(9, 10), Some(50));
        assert_eq!(mbit(3, 3), Some(100));
    }

    #[test]
    fn a_configuration_survives_its_way_to_the_emulator() {
        let trace = Trace::parse("3\n7\n").unwrap();
        let config = WanConfig {
            a_to_b: DirectionConfig {
                line: Line::Trace(Arc::new(trace)),
                loss: Loss::bursts(0.05, 7.0),
                jitter: Duration::from_micros(1500),
                reorder: true,
                changes: vec![Scheduled {
                    at: Duration::from_millis(10),
                    change: Change::Blackhole(true),
                }],
                ..DirectionConfig::default()
            },
            b_to_a: DirectionConfig {
                line: Line::Rate(BitRate(12_345)),
                queue: Bytes(99),
                ..DirectionConfig::default()
            },
        };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<WanConfig>(&text).unwrap(), config);
    }
}
