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
