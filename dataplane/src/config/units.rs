//! Rates and sizes as people write them: a number and a unit, nothing between.

use std::time::Duration;

use mef_packet::{BitRate, Bytes};

/// The text is no number with one of the accepted units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    #[error("a rate such as \"64kbit/s\", \"100Mbit/s\" or \"1.5Gbit/s\" (units: bit/s, kbit/s, Mbit/s, Gbit/s; no space)")]
    Rate,
    #[error("a size such as \"512MiB\" or \"1GiB\" (units: B, KiB, MiB, GiB, TiB; no space)")]
    Size,
    #[error("a time such as \"500ms\", \"5s\" or \"2min\" (units: ms, s, min; no space)")]
    Time,
}

const RATES: [(&str, u64); 4] = [
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1_000),
    ("bit/s", 1),
];
const TIMES: [(&str, u64); 3] = [("min", 60_000), ("ms", 1), ("s", 1000)];
const SIZES: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Reads a rate such as `1.5Gbit/s`; case matters.
pub fn parse_rate(text: &str) -> Result<BitRate, UnitError> {
    parse(text, &RATES).map(BitRate).ok_or(UnitError::Rate)
}

/// Reads a size such as `512MiB`; case matters.
pub fn parse_bytes(text: &str) -> Result<Bytes, UnitError> {
    parse(text, &SIZES).map(Bytes).ok_or(UnitError::Size)
}

/// Reads a time such as `5s`; the least that counts is a millisecond.
pub fn parse_time(text: &str) -> Result<Duration, UnitError> {
    parse(text, &TIMES)
        .map(Duration::from_millis)
        .ok_or(UnitError::Time)
}

/// The rate in the largest unit in which it is a whole number.
pub fn format_rate(rate: BitRate) -> String {
    format(rate.0, &RATES)
}

/// A measured rate as people say it: three significant digits, in the largest unit that leaves a
/// number of at least 1.
pub fn format_measured(rate: BitRate) -> String {
    let digits = rate.0.checked_ilog10().unwrap_or(0);
    let step = 10u64.pow(digits.saturating_sub(2));
    let rounded = (rate.0 + step / 2) / step * step;
    let (unit, factor) = RATES
        .iter()
        .find(|(_, factor)| rounded >= *factor)
        .or(RATES.last())
        .copied()
        .unwrap_or(("bit/s", 1));
    format!("{}{unit}", rounded as f64 / factor as f64)
}

/// The size in the largest unit in which it is a whole number.
pub fn format_bytes(bytes: Bytes) -> String {
    format(bytes.0, &SIZES)
}

fn format(value: u64, units: &[(&str, u64)]) -> String {
    let fits =
        |(_, factor): &&(&str, u64)| value >= *factor && value.checked_rem(*factor) == Some(0);
    let (unit, factor) = units
        .iter()
        .find(fits)
        .or(units.last())
        .copied()
        .unwrap_or(("", 1));
    format!("{}{unit}", value / factor)
}

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    // Longest units first, as "bit/s" also ends "kbit/s".
    let (number, factor) = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.len() <= 15 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let scaled = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor);
    let base = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    // Less than one bit or byte can not be told, so it is not accepted silently.
    if scaled % base != 0 {
        return None;
    }
    whole.checked_add(u64::try_from(scaled / base).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accepted() {
        for (text, bits) in [
            ("100Mbit/s", 100_000_000),
            ("1.5Gbit/s", 1_500_000_000),
            ("64kbit/s", 64_000),
            ("1bit/s", 1),
            ("0.001kbit/s", 1),
            ("18446744073bit/s", 18_446_744_073),
        ] {
            assert_eq!(parse_rate(text), Ok(BitRate(bits)), "{text}");
        }
        assert_eq!(parse_bytes("1GiB"), Ok(Bytes(1 << 30)));
        assert_eq!(parse_bytes("512MiB"), Ok(Bytes(512 << 20)));
        assert_eq!(parse_bytes("0.5KiB"), Ok(Bytes(512)));
        for (text, ms) in [("0s", 0), ("250ms", 250), ("1.5s", 1500), ("2min", 120_000)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["5", "s", "0.5ms", "-1s", "1 s", "5S", "1h"] {
            assert_eq!(parse_time(text), Err(UnitError::Time), "{text}");
        }
    }

    #[test]
    fn measured_rates_have_three_digits() {
        for (bits, text) in [
            (0, "0bit/s"),
            (999, "999bit/s"),
            (79_999_594, "80Mbit/s"),
            (50_026_551, "50Mbit/s"),
            (12_345_678, "12.3Mbit/s"),
            (999_600_000, "1Gbit/s"),
            (1_234_567_890, "1.23Gbit/s"),
        ] {
            assert_eq!(format_measured(BitRate(bits)), text);
        }
    }

    #[test]
    fn refused() {
        for text in [
            "",
            "100",
            "Mbit/s",
            "100 Mbit/s",
            "100mbit/s",
            "100MBit/s",
            "100Mbit",
            "100Mbps",
            "-1Mbit/s",
            "+1Mbit/s",
            "1e3Mbit/s",
            ".5Mbit/s",
            "5.Mbit/s",
            "1.2.3Mbit/s",
            "0.0001kbit/s",
            "999999999999999Gbit/s",
            "100Mbit/s ",
            "1GiB",
        ] {
            assert_eq!(parse_rate(text), Err(UnitError::Rate), "{text}");
        }
        for text in [
            "1GB",
            "1G",
            "1gib",
            "1 GiB",
            "1Mbit/s",
            "99999999TiB",
            "0.3B",
        ] {
            assert_eq!(parse_bytes(text), Err(UnitError::Size), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(bits in 0u64..1_000_000_000_000_000) {
            prop_assert_eq!(parse_rate(&format_rate(BitRate(bits))), Ok(BitRate(bits)));
            prop_assert_eq!(parse_bytes(&format_bytes(Bytes(bits))), Ok(Bytes(bits)));
        }

        #[test]
        fn any_text_is_an_answer(text in ".{0,24}") {
            let _ = (parse_rate(&text), parse_bytes(&text));
        }
    }
}
