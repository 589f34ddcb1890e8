//! Quantities as people write them in a topology: `"100Mbit/s"`, `"200ms"`,
//! `"2.5MB"`. A bare number is refused, because its unit would be a guess.

use std::fmt;
use std::time::Duration;

use mef_packet::{BitRate, Bytes};
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Splits `text` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let number = text.get(..end)?.parse::<f64>().ok()?;
    let unit = text.get(end..)?.trim();
    number.is_finite().then_some((number, unit))
}

/// A rate in bit/s: `bit/s`, `kbit/s`, `Mbit/s`, `Gbit/s`, powers of 1000.
pub fn rate(text: &str) -> Option<BitRate> {
    let (n, unit) = split(text)?;
    let scale = match unit {
        "bit/s" => 1.0,
        "kbit/s" => 1e3,
        "Mbit/s" => 1e6,
        "Gbit/s" => 1e9,
        _ => return None,
    };
    let bits = (n * scale).round();
    (1.0..=1e12).contains(&bits).then_some(BitRate(bits as u64))
}

/// A time: `us`, `ms`, `s`, `min`; at most a day.
pub fn duration(text: &str) -> Option<Duration> {
    let (n, unit) = split(text)?;
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        _ => return None,
    };
    let seconds = n * scale;
    (seconds <= 86_400.0).then(|| Duration::from_nanos((seconds * 1e9).round() as u64))
}

/// A size: `B`, `kB`, `MB`, `GB` (powers of 1000), `KiB`, `MiB`, `GiB` (powers of 1024).
pub fn bytes(text: &str) -> Option<Bytes> {
    let (n, unit) = split(text)?;
    let scale = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = (n * scale).round();
    (bytes <= 1e13).then_some(Bytes(bytes as u64))
}

/// Room of a queue: a size, a time at the line's rate, or a multiple of the bandwidth-delay product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueueSize {
    Bytes(Bytes),
    Time(Duration),
    Bdp(f64),
}

pub fn queue(text: &str) -> Option<QueueSize> {
    match split(text)? {
        (n, "BDP") if n <= 1000.0 => Some(QueueSize::Bdp(n)),
        _ => bytes(text)
            .map(QueueSize::Bytes)
            .or_else(|| duration(text).map(QueueSize::Time)),
    }
}

struct Text<T> {
    parse: fn(&str) -> Option<T>,
    expected: &'static str,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }
    fn visit_str<E: de::Error>(self, v: &str) -> Result<T, E> {
        (self.parse)(v).ok_or_else(|| E::invalid_value(de::Unexpected::Str(v), &self))
    }
}

macro_rules! quantity {
    ($name:ident, $inner:ty, $parse:path, $expected:literal) => {
        #[doc = concat!("As written in a file: ", $expected, ".")]
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $name(pub $inner);
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                d.deserialize_str(Text {
                    parse: $parse,
                    expected: $expected,
                })
                .map(Self)
            }
        }
    };
}

quantity!(
    RateText,
    BitRate,
    rate,
    "a rate with its unit such as \"100Mbit/s\""
);
quantity!(
    TimeText,
    Duration,
    duration,
    "a time with its unit such as \"200ms\""
);
quantity!(
    SizeText,
    Bytes,
    bytes,
    "a size with its unit such as \"100kB\""
);
quantity!(
    QueueText,
    QueueSize,
    queue,
    "a queue size such as \"1BDP\", \"2500kB\" or \"50ms\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_carry_their_unit() {
        assert_eq!(rate("100Mbit/s"), Some(BitRate::from_mbit(100)));
        assert_eq!(rate("1.5 Gbit/s"), Some(BitRate::from_mbit(1500)));
        assert_eq!(duration("200ms"), Some(Duration::from_millis(200)));
        assert_eq!(duration("0.5s"), Some(Duration::from_millis(500)));
        assert_eq!(bytes("100kB"), Some(Bytes(100_000)));
        assert_eq!(bytes("1MiB"), Some(Bytes(1 << 20)));
        assert_eq!(queue("0.5BDP"), Some(QueueSize::Bdp(0.5)));
        assert_eq!(
            queue("50ms"),
            Some(QueueSize::Time(Duration::from_millis(50)))
        );
        assert_eq!(queue("64KiB"), Some(QueueSize::Bytes(Bytes(65536))));
    }

    #[test]
    fn a_number_without_a_known_unit_is_refused() {
        for text in [
            "100", "", "Mbit/s", "100mbps", "-5ms", "1e3ms", "200 m", "0Mbit/s",
        ] {
            assert_eq!(rate(text), None, "{text}");
            assert_eq!(duration(text), None, "{text}");
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
