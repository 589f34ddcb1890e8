//! How many repair symbols a span needs more.
//!
//! Of a span, F data symbols are in flight, L are known to be lost, Rf repairs
//! are in flight and Rr have arrived. With r more repairs, each arriving with
//! probability 1 - p, the span cannot be restored when more of the F + Rf + r
//! in flight are lost than there will be spare repairs:
//!
//! ```text
//! P(Binom(F + Rf + r, p) > Rr + Rf + r - L) <= epsilon
//! ```
//!
//! The left side falls with r, so the least r is found by bisection around the
//! normal approximation with its skewness (Cornish-Fisher) correction.

/// Probability with which a span may still need another round trip.
pub const EPSILON: f64 = 1e-3;
const MAX_LOSS: f64 = 0.95;

/// Least number of further repair symbols after which the span can be restored from what is in
/// flight with probability 1 - `epsilon`, if each symbol is lost with probability `p`.
///
/// `p` is taken as at most 0.95. Where a span has several blocks, ask per block with
/// `epsilon` divided by their number.
pub fn repairs_needed(
    unacked_in_flight: usize,
    lost: usize,
    repairs_in_flight: usize,
    repairs_received: usize,
    p: f64,
    epsilon: f64,
) -> usize {
    let flying = unacked_in_flight.saturating_add(repairs_in_flight);
    let spare = repairs_received.saturating_add(repairs_in_flight);
    // Fewer than this cannot do even if nothing more is lost.
    let least = lost.saturating_sub(spare);
    if p.is_nan() || p <= 0.0 {
        return least;
    }
    let p = p.min(MAX_LOSS);
    // A probability that equals epsilon but for rounding is good enough.
    let epsilon = if epsilon > 0.0 {
        epsilon.min(1.0) * (1.0 + 1e-9)
    } else {
        EPSILON
    };
    let fails =
        |r: usize| tail(flying.saturating_add(r), spare.saturating_add(r) - lost, p) > epsilon;
    if !fails(least) {
        return least;
    }
    // Gallop from the estimate to a bracket (fails, does not), then bisect.
    let guess = estimate(flying, lost, spare, p, epsilon).clamp(least + 1, least + (1 << 24));
    let (mut bad, mut good, mut step) = (least, guess, 1);
    if fails(guess) {
        bad = guess;
        good = guess + step;
        while fails(good) {
            bad = good;
            step *= 2;
            good += step;
        }
    } else {
        while good - bad > step {
            if fails(good - step) {
                bad = good - step;
                break;
            }
            good -= step;
            step *= 2;
        }
    }
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        if fails(middle) {
            bad = middle;
        } else {
            good = middle;
        }
    }
    good
}

/// Standard normal quantile of `1 - epsilon` (Abramowitz & Stegun 26.2.23, error below 4.5e-4).
fn normal_quantile(epsilon: f64) -> f64 {
    if epsilon >= 0.5 {
        return 0.0;
    }
    let t = (-2.0 * epsilon.ln()).sqrt();
    t - (2.515517 + t * (0.802853 + t * 0.010328))
        / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
}

/// Closed form: with x repairs as many are lost on average as can be,
/// and `x + z sqrt(variance) + z^2 / (6 (1 - p)) + 0.5` do but for epsilon.
fn estimate(flying: usize, lost: usize, spare: usize, p: f64, epsilon: f64) -> usize {
    let q = 1.0 - p;
    let z = normal_quantile(epsilon);
    let x = ((flying as f64 * p + lost as f64 - spare as f64) / q).max(0.0);
    // Losses to come scatter over everything in flight, repairs to come included.
    let variance = p * (flying as f64 + x) / q;
    let r = x + z * variance.sqrt() + z * z / (6.0 * q) + 0.5;
    r.ceil().clamp(0.0, 1e9) as usize
}

/// P(Binom(n, p) > t), relative error below 1e-9; 0 < p < 1.
fn tail(n: usize, t: usize, p: f64) -> f64 {
    if t >= n {
        return 0.0;
    }
    let (nf, odds) = (n as f64, p / (1.0 - p));
    let term = |k: f64| {
        (ln_factorial(nf) - ln_factorial(k) - ln_factorial(nf - k)
            + k * p.ln()
            + (nf - k) * (-p).ln_1p())
        .exp()
    };
    // Sums away from the mean, where terms fall faster than a geometric series.
    if (t as f64) < nf * p {
        let mut k = t as f64;
        let mut x = term(k);
        let mut below = x;
        while k > 0.0 && x > below * 1e-12 {
            x *= k / ((nf - k + 1.0) * odds);
            k -= 1.0;
            below += x;
        }
        return (1.0 - below).max(0.0);
    }
    let mut k = t as f64 + 1.0;
    let mut x = term(k);
    let mut above = x;
    while k < nf && x > above * 1e-12 {
        x *= (nf - k) * odds / (k + 1.0);
        k += 1.0;
        above += x;
    }
    above.min(1.0)
}

/// ln(n!) by Stirling's series, exact to 1e-12 from 16 on; below, by multiplication.
fn ln_factorial(n: f64) -> f64 {
    if n < 16.0 {
        let mut product = 1.0;
        let mut k = 2.0;
        while k <= n {
            product *= k;
            k += 1.0;
        }
        return f64::ln(product);
    }
    let i = 1.0 / n;
    let series = i * (1.0 / 12.0 - i * i * (1.0 / 360.0 - i * i * (1.0 / 1260.0 - i * i / 1680.0)));
    n * n.ln() - n + 0.5 * (2.0 * core::f64::consts::PI * n).ln() + series
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// P(Binom(n, p) > t) by the recurrence over trials: slow, and sharing nothing with `tail`.
    fn exact_tail(n: usize, t: usize, p: f64) -> f64 {
        let mut dist = vec![0.0; n + 2];
        dist[0] = 1.0;
        for i in 0..n {
            for k in (0..=i).rev() {
                dist[k + 1] += dist[k] * p;
                dist[k] *= 1.0 - p;
            }
        }
        dist.iter().skip(t + 1).sum()
    }

    fn brute_force(f: usize, l: usize, rf: usize, rr: usize, p: f64, eps: f64) -> usize {
        (0..)
            .find(|r| {
                let t = (rr + rf + r) as i64 - l as i64;
                t >= 0 && exact_tail(f + rf + r, t as usize, p) <= eps * (1.0 + 1e-9)
            })
            .unwrap()
    }

    #[test]
    fn the_table_of_the_rule() {
        for (k, p, r) in [
            (71, 0.01, 4),
            (71, 0.05, 11),
            (71, 0.2, 34),
            (706, 0.01, 17),
            (706, 0.05, 58),
            (706, 0.2, 225),
        ] {
            let got = repairs_needed(k, 0, 0, 0, p, EPSILON);
            assert!(got.abs_diff(r) <= 1, "K {k} p {p}: {got} instead of {r}");
        }
    }

    #[test]
    fn equals_the_exact_solution_on_a_grid() {
        for f in [0, 1, 2, 3, 7, 20, 71, 150] {
            for l in [0, 1, 5] {
                for (rf, rr) in [(0, 0), (3, 0), (0, 3), (6, 8)] {
                    for p in [0.001, 0.01, 0.05, 0.2, 0.5] {
                        for eps in [1e-3, 1e-2] {
                            let (a, b) = (
                                repairs_needed(f, l, rf, rr, p, eps),
                                brute_force(f, l, rf, rr, p, eps),
                            );
                            assert_eq!(a, b, "F {f} L {l} Rf {rf} Rr {rr} p {p} eps {eps}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_closed_form_is_near_the_exact_solution() {
        for f in [50, 300, 1000] {
            for p in [0.01, 0.05, 0.2] {
                let exact = repairs_needed(f, 0, 0, 0, p, EPSILON);
                let guess = estimate(f, 0, 0, p, EPSILON);
                assert!(
                    exact.abs_diff(guess) <= 2,
                    "K {f} p {p}: {guess} instead of {exact}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_needed_where_nothing_is_missing() {
        assert_eq!(repairs_needed(0, 0, 0, 0, 0.2, EPSILON), 0);
        assert_eq!(repairs_needed(0, 3, 0, 3, 0.2, EPSILON), 0);
        assert_eq!(repairs_needed(100, 0, 0, 0, 0.0, EPSILON), 0);
        assert_eq!(repairs_needed(100, 4, 1, 1, 0.0, EPSILON), 2);
        assert_eq!(repairs_needed(5, 4, 0, 0, f64::NAN, EPSILON), 4);
    }

    #[test]
    fn large_spans_and_heavy_loss_end() {
        let r = repairs_needed(32_768, 1000, 0, 0, 0.99, 1e-9);
        assert!(r > 32_768 * 19, "{r}");
        assert!(repairs_needed(usize::MAX / 4, 0, 0, 0, 0.0, 1e-3) == 0);
    }

    proptest! {
        #[test]
        fn is_the_least_that_does(f in 0usize..3000, l in 0usize..300, rf in 0usize..300, rr in 0usize..300, p in 0.001f64..0.6) {
            let r = repairs_needed(f, l, rf, rr, p, EPSILON);
            let ok = |r: usize| rr + rf + r >= l && tail(f + rf + r, rr + rf + r - l, p) <= EPSILON * (1.0 + 1e-9);
            prop_assert!(ok(r));
            prop_assert!(r == 0 || !ok(r - 1));
        }

        #[test]
        fn tail_is_exact(n in 0usize..200, t in 0usize..200, p in 0.001f64..0.9) {
            let (a, b) = (tail(n, t, p), exact_tail(n, t, p));
            prop_assert!((a - b).abs() <= 1e-9 + 1e-7 * b, "{a} {b}");
        }
    }
}
