//! Numbers for people: three digits that count, and a unit.

use std::time::Duration;

/// `value` with the largest unit of which it is at least one.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let found = units.iter().find(|(factor, _)| value.abs() >= *factor);
    let &(factor, unit) = found.or(units.last()).unwrap_or(&(1.0, ""));
    let v = value / factor;
    let digits = if v.abs() >= 99.95 || v == v.trunc() {
        0
    } else if v.abs() >= 9.995 {
        1
    } else {
        2
    };
    format!("{v:.digits$} {unit}")
}

/// A rate in bit/s.
pub fn rate(bps: f64) -> String {
    scaled(
        bps,
        &[
            (1e9, "Gbit/s"),
            (1e6, "Mbit/s"),
            (1e3, "kbit/s"),
            (1.0, "bit/s"),
        ],
    )
}

/// A size in bytes, in powers of two as the configuration has them.
pub fn size(bytes: u64) -> String {
    scaled(
        bytes as f64,
        &[
            ((1u64 << 40) as f64, "TiB"),
            ((1u64 << 30) as f64, "GiB"),
            ((1u64 << 20) as f64, "MiB"),
            (1024.0, "KiB"),
            (1.0, "B"),
        ],
    )
}

/// A time given in microseconds.
pub fn time(us: u64) -> String {
    let time = Duration::from_micros(us);
    if time >= Duration::from_secs(60) {
        let s = time.as_secs();
        return match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
            (0, 0, m, s) => format!("{m} min {s} s"),
            (0, h, m, _) => format!("{h} h {m} min"),
            (d, h, _, _) => format!("{d} d {h} h"),
        };
    }
    scaled(us as f64, &[(1e6, "s"), (1e3, "ms"), (1.0, "us")])
}

/// A share of one, as a percentage.
pub fn share(of_one: f64) -> String {
    match of_one * 100.0 {
        0.0 => "0 %".to_owned(),
        p if p < 0.01 => "<0.01 %".to_owned(),
        p if p < 10.0 => format!("{p:.2} %"),
        p => format!("{p:.1} %"),
    }
}

/// A count, in groups of three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(' ');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (bps, shown) in [
            (0.0, "0 bit/s"),
            (999.0, "999 bit/s"),
            (1234.0, "1.23 kbit/s"),
            (99_500_000.0, "99.5 Mbit/s"),
            (100e6, "100 Mbit/s"),
            (1.5e9, "1.50 Gbit/s"),
            (123.4e9, "123 Gbit/s"),
        ] {
            assert_eq!(rate(bps), shown);
        }
        assert_eq!(
            (size(1023), size(1536)),
            ("1023 B".into(), "1.50 KiB".into())
        );
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(
            (time(900), time(200_400)),
            ("900 us".into(), "200 ms".into())
        );
        assert_eq!(
            (time(61_000_000), time(7_260_000_000)),
            ("1 min 1 s".into(), "2 h 1 min".into())
        );
        assert_eq!(time(200_000_000_000), "2 d 7 h");
        assert_eq!(
            (share(0.0), share(0.012_34)),
            ("0 %".into(), "1.23 %".into())
        );
        assert_eq!(
            (share(0.000_001), share(0.5)),
            ("<0.01 %".into(), "50.0 %".into())
        );
        assert_eq!(
            (count(999), count(1_234_567)),
            ("999".into(), "1 234 567".into())
        );
    }
}
