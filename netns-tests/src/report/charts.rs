//! The charts of one variant of a topology: which there are depends on what
//! was measured. Where a transport ran several times, the curve is the median
//! of the repeats and the band around it goes from the lowest to the highest.

use super::dots::{DotRow, Dots};
use super::summary::{figure, tasks, Row, Variant};
use super::svg::{Axis, Chart, Curve, Mark, Scale};
use crate::results::{stats, Run};

/// A chart with what is written above it.
#[derive(Clone, Debug)]
pub struct Figure {
    pub title: String,
    pub note: String,
    pub svg: String,
}

pub fn figures(variant: &Variant<'_>) -> Vec<Figure> {
    let mut figures = Vec::new();
    figures.extend(goodput(variant));
    figures.extend(delivered(variant));
    figures.extend(completion(variant));
    figures.extend(shares(variant));
    figures.extend(queue(variant));
    figures.extend(probe(variant));
    figures
}

fn bulk_rows<'a, 'b>(variant: &'b Variant<'a>) -> Vec<&'b Row<'a>> {
    variant.rows.iter().filter(|r| r.has_bulk()).collect()
}

fn seconds(variant: &Variant<'_>) -> f64 {
    let all = variant.rows.iter().flat_map(|r| &r.runs).map(|r| r.seconds);
    all.fold(0.0, f64::max)
}

fn time_axis(seconds: f64) -> Axis {
    Axis {
        title: "time, s".to_owned(),
        scale: Scale::Linear {
            min: 0.0,
            max: if seconds > 0.0 { seconds } else { 1.0 },
        },
    }
}

/// Width of the steps that goodput is drawn in: short enough to show the
/// start, long enough that a retransmission's wait is no gap.
fn step(seconds: f64) -> f64 {
    if seconds > 60.0 {
        1.0
    } else {
        0.5
    }
}

/// The mean of a series in steps from time 0 to the end of the run.
fn binned(values: &[f64], start_s: f64, interval_s: f64, step: f64, end: f64) -> Vec<f64> {
    let count = (end / step).floor().clamp(0.0, 10_000.0) as usize;
    let mut sums = vec![0.0; count];
    for (i, value) in values.iter().enumerate() {
        let at = start_s + (i as f64 + 0.5) * interval_s;
        if at >= 0.0 {
            if let Some(sum) = sums.get_mut((at / step) as usize) {
                *sum += value * interval_s / step;
            }
        }
    }
    sums
}

/// As in [`Curve`].
type Points = Vec<(f64, f64)>;
type Band = Vec<(f64, f64, f64)>;

/// Median curve and band of several runs' values at the same steps.
fn combined(runs: &[Vec<f64>], x_of: impl Fn(usize) -> f64) -> (Points, Band) {
    let count = runs.iter().map(Vec::len).min().unwrap_or(0);
    let mut points = Vec::new();
    let mut band = Vec::new();
    for i in 0..count {
        let mut values: Vec<f64> = runs.iter().filter_map(|r| r.get(i).copied()).collect();
        values.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (values.first(), values.last()) else {
            continue;
        };
        points.push((x_of(i), stats::quantile_sorted(&values, 0.5).unwrap_or(0.0)));
        if runs.len() > 1 {
            band.push((x_of(i), *low, *high));
        }
    }
    (points, band)
}

fn curve(row: &Row<'_>, runs: &[Vec<f64>], x_of: impl Fn(usize) -> f64) -> Curve {
    let (points, band) = combined(runs, x_of);
    Curve {
        name: row.label.clone(),
        class: row.class(),
        points,
        band,
        steps: false,
    }
}

fn goodput(variant: &Variant<'_>) -> Option<Figure> {
    let rows = bulk_rows(variant);
    let end = seconds(variant);
    let step = step(end);
    let curves: Vec<Curve> = rows
        .iter()
        .map(|row| {
            let runs: Vec<Vec<f64>> = row.runs.iter().map(|r| mbits(r, step, end)).collect();
            curve(row, &runs, |i| (i as f64 + 0.5) * step)
        })
        .filter(|c| !c.points.is_empty())
        .collect();
    let ceiling = rows
        .iter()
        .map(|r| r.median(|r| r.ceiling_bps) / 1e6)
        .fold(0.0, f64::max);
    let highest = curves
        .iter()
        .flat_map(|c| &c.points)
        .map(|p| p.1)
        .fold(0.0, f64::max);
    let top = if ceiling > 0.0 {
        ceiling * 1.08
    } else {
        highest
    };
    (!curves.is_empty()).then(|| Figure {
        title: "Goodput".to_owned(),
        note: "payload at the receiver, Mbit/s, over time".to_owned(),
        svg: Chart {
            description: "Goodput over time for each transport".to_owned(),
            x: time_axis(end),
            y: Axis {
                title: "goodput, Mbit/s".to_owned(),
                scale: Scale::from_zero(top),
            },
            curves,
            marks: if ceiling > 0.0 {
                vec![Mark {
                    name: format!("ceiling {}", figure(ceiling)),
                    y: ceiling,
                }]
            } else {
                Vec::new()
            },
        }
        .svg(),
    })
}

fn mbits(run: &Run, step: f64, end: f64) -> Vec<f64> {
    let s = &run.series;
    let mut values = binned(&s.goodput_bps, s.start_s, s.interval_s, step, end);
    values.iter_mut().for_each(|v| *v /= 1e6);
    values
}

fn delivered(variant: &Variant<'_>) -> Option<Figure> {
    let end = seconds(variant);
    let step = 0.1;
    let curves: Vec<Curve> = bulk_rows(variant)
        .iter()
        .map(|row| {
            let runs: Vec<Vec<f64>> = row
                .runs
                .iter()
                .map(|r| {
                    let mut sum = 0.0;
                    let rates = mbits(r, step, end);
                    std::iter::once(0.0)
                        .chain(rates.into_iter().map(|rate| {
                            sum += rate * step / 8.0;
                            sum
                        }))
                        .collect()
                })
                .collect();
            curve(row, &runs, |i| i as f64 * step)
        })
        .filter(|c| c.points.len() > 1)
        .collect();
    let highest = curves
        .iter()
        .flat_map(|c| &c.points)
        .map(|p| p.1)
        .fold(0.0, f64::max);
    (highest > 0.0).then(|| Figure {
        title: "Delivered".to_owned(),
        note: "how much had arrived so long after connect()".to_owned(),
        svg: Chart {
            description: "Bytes delivered since the start for each transport".to_owned(),
            x: time_axis(end),
            y: Axis {
                title: "delivered, MB".to_owned(),
                scale: Scale::from_zero(highest),
            },
            curves,
            marks: Vec::new(),
        }
        .svg(),
    })
}

/// One chart for each size: the share of flows that were done after so long.
fn completion(variant: &Variant<'_>) -> Vec<Figure> {
    let mut figures = Vec::new();
    for task in tasks(&variant.rows) {
        let done: Vec<(&Row<'_>, Vec<f64>, usize)> = variant
            .rows
            .iter()
            .map(|row| (row, row.completions(task)))
            .map(|(row, (seconds, of))| (row, seconds, of))
            .filter(|(_, seconds, _)| !seconds.is_empty())
            .collect();
        let all = || done.iter().flat_map(|d| &d.1).copied();
        let (least, most) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
        if most <= 0.0 {
            continue;
        }
        let scale = Scale::log_around(least * 0.9, most * 1.1);
        let Scale::Log { max, .. } = scale else {
            continue;
        };
        let curves = done
            .iter()
            .map(|(row, seconds, of)| {
                let share = |n: usize| n as f64 * 100.0 / (*of).max(1) as f64;
                let first = seconds.first().map(|s| (*s, 0.0));
                let last = (max, share(seconds.len()));
                Curve {
                    name: row.label.clone(),
                    class: row.class(),
                    points: first
                        .into_iter()
                        .chain(seconds.iter().enumerate().map(|(i, s)| (*s, share(i + 1))))
                        .chain([last])
                        .collect(),
                    band: Vec::new(),
                    steps: true,
                }
            })
            .collect();
        let medians: Vec<String> = done
            .iter()
            .filter_map(|(row, seconds, _)| {
                Some(format!(
                    "{} {} s",
                    row.label,
                    figure(stats::quantile_sorted(seconds, 0.5)?)
                ))
            })
            .collect();
        figures.push(Figure {
            title: format!("Completion of {}", task.name()),
            note: format!("medians: {}", medians.join(", ")),
            svg: Chart {
                description: format!("Share of flows of {} completed over time", task.name()),
                x: Axis {
                    title: "from connect() to the last byte, s (logarithmic)".to_owned(),
                    scale,
                },
                y: Axis {
                    title: "flows done, %".to_owned(),
                    scale: Scale::Linear {
                        min: 0.0,
                        max: 100.0,
                    },
                },
                curves,
                marks: Vec::new(),
            }
            .svg(),
        });
    }
    figures
}

/// How several bulk flows divided the line, one chart for each transport.
fn shares(variant: &Variant<'_>) -> Vec<Figure> {
    let end = seconds(variant);
    let step = step(end);
    let all = || {
        variant
            .rows
            .iter()
            .filter_map(|row| Some((row, row.runs.first()?)))
    };
    let curves: Vec<(&Row<'_>, f64, Vec<Curve>)> = all()
        .filter(|(_, run)| run.series.flows.len() > 1)
        .map(|(row, run)| {
            let s = &run.series;
            let curves = s.flows.iter().enumerate().map(|(i, (id, values))| {
                let mbit = binned(values, s.start_s, s.interval_s, step, end);
                let points = mbit
                    .iter()
                    .enumerate()
                    .map(|(i, v)| ((i as f64 + 0.5) * step, v / 1e6));
                Curve {
                    name: format!("flow {id}"),
                    class: format!("flow{}", i % 8),
                    points: points.collect(),
                    ..Curve::default()
                }
            });
            (row, run.jain, curves.collect())
        })
        .collect();
    let points = curves.iter().flat_map(|c| &c.2).flat_map(|c| &c.points);
    // One scale for all transports, so that the charts can be compared.
    let highest = points.map(|p| p.1).fold(0.0, f64::max);
    curves
        .into_iter()
        .map(|(row, jain, curves)| Figure {
            title: format!("{}: each flow", row.label),
            note: format!("Jain's index over the tail {jain:.3}"),
            svg: Chart {
                description: format!("Goodput of each flow with {}", row.label),
                x: time_axis(end),
                y: Axis {
                    title: "goodput, Mbit/s".to_owned(),
                    scale: Scale::from_zero(highest),
                },
                curves,
                marks: Vec::new(),
            }
            .svg(),
        })
        .collect()
}

/// The delays of 0.1 ms and less are alike: nobody is kept waiting.
const QUEUE_FLOOR_MS: f64 = 0.1;

fn queue(variant: &Variant<'_>) -> Option<Figure> {
    let title = "Queue in front of the line".to_owned();
    let with_series: Vec<&Row<'_>> = variant
        .rows
        .iter()
        .filter(|r| r.runs.iter().any(|r| r.series.queue_us.len() > 1))
        .collect();
    if with_series.is_empty() || with_series.iter().all(|r| !r.has_bulk()) {
        return queue_quantiles(variant, title);
    }
    let end = seconds(variant);
    let step = step(end);
    let count = (end / step) as usize;
    let curves: Vec<Curve> = with_series
        .iter()
        .map(|row| {
            let runs: Vec<Vec<f64>> = row
                .runs
                .iter()
                .map(|r| longest_ms(r, step, count))
                .collect();
            curve(row, &runs, |i| (i as f64 + 0.5) * step)
        })
        .collect();
    let highest = curves
        .iter()
        .flat_map(|c| &c.points)
        .map(|p| p.1)
        .fold(1.0, f64::max);
    Some(Figure {
        title,
        note: format!("longest delay of each {step} s, ms"),
        svg: Chart {
            description: "Queueing delay over time for each transport".to_owned(),
            x: time_axis(end),
            y: Axis {
                title: "queueing delay, ms (logarithmic)".to_owned(),
                scale: Scale::log_around(QUEUE_FLOOR_MS, highest),
            },
            curves,
            marks: Vec::new(),
        }
        .svg(),
    })
}

fn longest_ms(run: &Run, step: f64, count: usize) -> Vec<f64> {
    let s = &run.series;
    let mut longest = vec![QUEUE_FLOOR_MS; count];
    for (i, us) in s.queue_us.iter().enumerate() {
        let at = s.queue_start_s + (i as f64 + 0.5) * s.interval_s;
        if at >= 0.0 {
            if let Some(most) = longest.get_mut((at / step) as usize) {
                *most = most.max(*us as f64 / 1e3);
            }
        }
    }
    longest
}

fn queue_quantiles(variant: &Variant<'_>, title: String) -> Option<Figure> {
    let measured = variant
        .rows
        .iter()
        .filter(|r| r.runs.iter().any(|r| r.wan.offered > 0));
    let rows: Vec<DotRow> = measured
        .map(|row| DotRow {
            name: row.label.clone(),
            class: row.class(),
            values: [
                row.median(|r| r.wan.queue_p50_us as f64 / 1e3),
                row.median(|r| r.wan.queue_p95_us as f64 / 1e3),
                row.median(|r| r.wan.queue_p99_us as f64 / 1e3),
            ],
        })
        .collect();
    (!rows.is_empty()).then(|| Figure {
        title,
        note: "median, 95th and 99th percentile of the delay there".to_owned(),
        svg: Dots {
            description: "Quantiles of the queueing delay for each transport".to_owned(),
            title: "queueing delay, ms (logarithmic)".to_owned(),
            floor: QUEUE_FLOOR_MS,
            rows,
        }
        .svg(),
    })
}

fn probe(variant: &Variant<'_>) -> Option<Figure> {
    let with: Vec<&Row<'_>> = variant
        .rows
        .iter()
        .filter(|r| r.runs.iter().any(|r| !r.series.probe_us.is_empty()))
        .collect();
    let runs = || with.iter().flat_map(|r| &r.runs);
    let last = runs()
        .flat_map(|r| &r.series.probe_us)
        .map(|p| p.0)
        .fold(0.0, f64::max);
    let end = seconds(variant).max(if bulk_rows(variant).is_empty() {
        last
    } else {
        0.0
    });
    let step = step(end);
    let count = (end / step) as usize;
    let curves: Vec<Curve> = with
        .iter()
        .map(|row| {
            let runs: Vec<Vec<f64>> = row.runs.iter().map(|r| worst_ms(r, step, count)).collect();
            let mut curve = curve(row, &runs, |i| (i as f64 + 0.5) * step);
            // Steps in which no probe arrived at all have no point.
            curve.points.retain(|p| p.1 > 0.0);
            curve.band.retain(|p| p.1 > 0.0);
            curve
        })
        .filter(|c| c.points.len() > 1)
        .collect();
    let highest = curves
        .iter()
        .flat_map(|c| &c.points)
        .map(|p| p.1)
        .fold(0.0, f64::max);
    let idle: Vec<f64> = runs()
        .map(|r| r.probe_idle_p99_us as f64 / 1e3)
        .filter(|v| *v > 0.0)
        .collect();
    (!curves.is_empty()).then(|| Figure {
        title: "Delay of others".to_owned(),
        note: format!("a 64-byte probe beside the load, one way; the slowest of each {step} s"),
        svg: Chart {
            description: "One-way delay of a probe over time for each transport".to_owned(),
            x: time_axis(end),
            y: Axis {
                title: "one-way delay, ms".to_owned(),
                scale: Scale::from_zero(highest * 1.05),
            },
            curves,
            marks: stats::median(&idle)
                .map(|y| Mark {
                    name: format!("idle {}", figure(y)),
                    y,
                })
                .into_iter()
                .collect(),
        }
        .svg(),
    })
}

fn worst_ms(run: &Run, step: f64, count: usize) -> Vec<f64> {
    let mut worst = vec![0.0_f64; count];
    for (at, us) in &run.series.probe_us {
        if *at >= 0.0 {
            if let Some(most) = worst.get_mut((at / step) as usize) {
                *most = most.max(f64::from(*us) / 1e3);
            }
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_keep_the_amount() {
        // 1 s of 8 Mbit/s beginning at 0.25 s, in steps of 0.5 s.
        let bins = binned(&[8e6; 10], 0.25, 0.1, 0.5, 2.0);
        assert_eq!(bins.len(), 4);
        let bits: f64 = bins.iter().map(|b| b * 0.5).sum();
        assert!((bits - 8e6).abs() < 1.0);
        assert!(bins[0] < bins[1] && bins[3] == 0.0);
        assert!(binned(&[1.0], 0.0, 0.1, 0.5, 0.0).is_empty());
    }

    #[test]
    fn the_curve_is_the_median_and_the_band_the_spread() {
        let (points, band) = combined(&[vec![1.0, 5.0], vec![3.0, 5.0], vec![2.0]], |i| i as f64);
        assert_eq!(points, [(0.0, 2.0)]);
        assert_eq!(band, [(0.0, 1.0, 3.0)]);
        assert!(combined(&[vec![1.0]], |i| i as f64).1.is_empty());
    }
}
