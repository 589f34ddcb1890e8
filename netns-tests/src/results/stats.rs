//! Statistics over measurements.

/// Quantile `q` (0..=1) by linear interpolation between the closest ranks
/// (method 7 of Hyndman & Fan 1996, numpy's default): of n sorted values the
/// one at position q * (n - 1). `None` for an empty slice. NaN counts as largest.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_sorted(&sorted, q)
}

/// As [`quantile`], of values that are sorted already.
pub fn quantile_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let position = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let below = *sorted.get(position.floor() as usize)?;
    let above = *sorted.get(position.ceil() as usize)?;
    Some(below + (above - below) * position.fract())
}

/// The middle value, of an even number the mean of the middle two.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// Jain, Chiu, Hawe 1984: (sum x)^2 / (n * sum x^2). 1 is equal shares, 1/n all
/// for one. 1 for less than two values or when nobody got anything.
pub fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|x| x * x).sum();
    if values.len() < 2 || squares <= 0.0 {
        return 1.0;
    }
    sum * sum / (values.len() as f64 * squares)
}

/// The most TCP payload that a line carries: `rate_bps` is charged on the
/// 1514-byte frame (Ethernet without FCS), of which 1448 are payload (IPv4, TCP
/// with timestamps), and of the frames (1 - `loss`) arrive.
pub fn ceiling(rate_bps: f64, loss: f64) -> f64 {
    rate_bps * 1448.0 / 1514.0 * (1.0 - loss)
}

/// Probability of at least `k` successes in `n` trials of probability `p`: the
/// p-value of "more than a share p exceeded the limit" when k of n did. Exact,
/// summed in logarithms so that large n do not overflow.
pub fn binomial_upper_tail(n: u64, k: u64, p: f64) -> f64 {
    if k == 0 {
        return 1.0;
    }
    if k > n || p <= 0.0 {
        return 0.0;
    }
    if p >= 1.0 {
        return 1.0;
    }
    // ln C(n, 0) + n ln(1-p), then from term i-1 to term i by the ratio of neighbours.
    let mut ln_term = n as f64 * (-p).ln_1p();
    let odds = p.ln() - (-p).ln_1p();
    let mut sum = 0.0;
    for i in 0..=n {
        if i > 0 {
            ln_term += ((n - i + 1) as f64).ln() - (i as f64).ln() + odds;
        }
        if i >= k {
            sum += ln_term.exp();
        }
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
    }

    #[test]
    fn quantiles_are_numpys() {
        let v = [15.0, 20.0, 35.0, 40.0, 50.0];
        assert_eq!(quantile(&v, 0.0), Some(15.0));
        assert_eq!(quantile(&v, 1.0), Some(50.0));
        assert!(close(quantile(&v, 0.4).unwrap(), 29.0));
        assert!(close(quantile(&v, 0.95).unwrap(), 48.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
    }

    #[test]
    fn jains_index() {
        assert!(close(jain(&[5.0, 5.0, 5.0, 5.0]), 1.0));
        assert!(close(jain(&[1.0, 0.0, 0.0, 0.0]), 0.25));
        assert!(close(
            jain(&[2.0, 2.0, 51.0, 36.0]),
            91.0 * 91.0 / (4.0 * 3_905.0)
        ));
        assert_eq!(jain(&[]), 1.0);
        assert_eq!(jain(&[0.0, 0.0]), 1.0);
    }

    #[test]
    fn the_ceiling_of_the_standard_line() {
        assert!((ceiling(100e6, 0.0) / 1e6 - 95.64).abs() < 0.01);
        assert!((ceiling(100e6, 0.15) / 1e6 - 81.29).abs() < 0.01);
    }

    #[test]
    fn binomial_tail_against_known_values() {
        // 1 - 0.95^100, and R's pbinom(9, 100, 0.05, lower.tail = FALSE).
        assert!(close(
            binomial_upper_tail(100, 1, 0.05),
            1.0 - 0.95f64.powi(100)
        ));
        assert!((binomial_upper_tail(100, 10, 0.05) - 0.028_188_3).abs() < 1e-6);
        assert!(close(binomial_upper_tail(4, 4, 0.5), 0.0625));
        assert_eq!(binomial_upper_tail(10, 0, 0.3), 1.0);
        assert_eq!(binomial_upper_tail(10, 11, 0.3), 0.0);
        // Would underflow as plain products.
        assert!((binomial_upper_tail(100_000, 50_000, 0.5) - 0.501_26).abs() < 1e-4);
    }

    proptest! {
        #[test]
        fn jain_is_between_one_nth_and_one(v in proptest::collection::vec(0.0f64..1e9, 2..20)) {
            let j = jain(&v);
            prop_assert!(j <= 1.0 + 1e-9 && j >= 1.0 / v.len() as f64 - 1e-9);
        }

        #[test]
        fn quantiles_grow_with_q_and_stay_inside(
            v in proptest::collection::vec(-1e6f64..1e6, 1..50), a in 0.0f64..1.0, b in 0.0f64..1.0,
        ) {
            let (low, high) = (a.min(b), a.max(b));
            let (x, y) = (quantile(&v, low).unwrap(), quantile(&v, high).unwrap());
            prop_assert!(x <= y + 1e-9);
            prop_assert!(v.iter().any(|z| *z <= x) && v.iter().any(|z| *z >= y));
        }

        #[test]
        fn binomial_tail_falls_with_k(n in 1u64..300, p in 0.001f64..0.999) {
            let tails: Vec<f64> = (0..=n).map(|k| binomial_upper_tail(n, k, p)).collect();
            prop_assert!(tails.windows(2).all(|w| w[1] <= w[0] + 1e-9));
            prop_assert!((tails[n as usize] - p.powi(n as i32)).abs() < 1e-9);
        }
    }
}
