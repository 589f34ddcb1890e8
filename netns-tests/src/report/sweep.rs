//! The curves of a sweep: goodput against RTT, a chart for each loss, and against loss, a chart
//! for each RTT; for transfers the seconds that they take. Medians, in a band from the lowest to
//! the highest where a point was measured several times.

use super::charts::Figure;
use super::summary::{bytes, figure};
use super::svg::{Axis, Chart, Curve, Scale};
use crate::results::stats;
use crate::sweep::{groups, Point, Sweep};

/// Where "no loss" stands on a logarithmic axis, as a share of the smallest loss.
const NONE: f64 = 0.2;

/// A section of the page: its title and its charts.
pub struct Section {
    pub title: String,
    pub figures: Vec<Figure>,
}

/// The median, lowest and highest of a place and transport.
struct Dot {
    x: f64,
    low: f64,
    mid: f64,
    high: f64,
}

/// What a chart shows of a point.
#[derive(Clone, Copy, PartialEq)]
enum Value {
    /// Mbit/s.
    Goodput,
    /// Median completion.
    Seconds,
}

impl Value {
    fn of(self, p: &Point) -> Option<f64> {
        match self {
            Self::Goodput => Some(p.goodput_bps / 1e6),
            Self::Seconds => stats::median(&p.seconds),
        }
    }
    fn title(self) -> &'static str {
        match self {
            Self::Goodput => "goodput, Mbit/s",
            Self::Seconds => "connect() to the last byte, s",
        }
    }
}

pub fn sections(sweep: &Sweep) -> Vec<Section> {
    let mut sizes: Vec<Option<u64>> = sweep.points.iter().map(|p| p.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut sections = Vec::new();
    for size in sizes {
        let points: Vec<&Point> = sweep.points.iter().filter(|p| p.size == size).collect();
        let (name, value) = match size {
            None => ("Bulk".to_owned(), Value::Goodput),
            Some(n) => (format!("Transfers of {}", bytes(n)), Value::Seconds),
        };
        let rtts = distinct(points.iter().map(|p| p.rtt_ms));
        let losses = distinct(points.iter().map(|p| p.loss));
        let mut figures = Vec::new();
        if rtts.len() > 1 {
            for loss in &losses {
                let of: Vec<&Point> = points.iter().copied().filter(|p| p.loss == *loss).collect();
                let title = format!("{}% loss", figure_of_share(*loss));
                figures.push(against(&of, value, title, "RTT, ms", |p| p.rtt_ms));
            }
        }
        if losses.len() > 1 {
            let least = losses.iter().copied().find(|l| *l > 0.0).unwrap_or(0.01);
            let place = move |p: &Point| 100.0 * if p.loss > 0.0 { p.loss } else { NONE * least };
            for rtt in &rtts {
                let of: Vec<&Point> = points
                    .iter()
                    .copied()
                    .filter(|p| p.rtt_ms == *rtt)
                    .collect();
                let title = format!("RTT {} ms", figure(*rtt));
                figures.push(against(
                    &of,
                    value,
                    title,
                    "loss, % (left edge: none)",
                    place,
                ));
            }
        }
        sections.push(Section {
            title: name,
            figures,
        });
    }
    sections
}

fn figure_of_share(share: f64) -> String {
    let percent = share * 100.0;
    format!("{}", (percent * 1e6).round() / 1e6)
}

fn distinct(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut list: Vec<f64> = values.collect();
    list.sort_by(f64::total_cmp);
    list.dedup();
    list
}

fn against(
    points: &[&Point],
    value: Value,
    title: String,
    axis: &str,
    x: impl Fn(&Point) -> f64,
) -> Figure {
    let owned: Vec<Point> = points.iter().map(|p| (*p).clone()).collect();
    let mut curves: Vec<Curve> = Vec::new();
    let mut add = |name: &str, class: &str, dots: Vec<Dot>| {
        let band = if dots.iter().any(|d| d.low < d.high) {
            dots.iter().map(|d| (d.x, d.low, d.high)).collect()
        } else {
            Vec::new()
        };
        curves.push(Curve {
            name: name.to_owned(),
            class: class.to_owned(),
            points: dots.iter().map(|d| (d.x, d.mid)).collect(),
            band,
            steps: false,
        });
    };
    let mut transports: Vec<&str> = points.iter().map(|p| p.transport.as_str()).collect();
    transports.sort_unstable();
    transports.dedup();
    if value == Value::Goodput {
        let mut dots: Vec<Dot> = points
            .iter()
            .map(|p| {
                let mid = p.ceiling_bps / 1e6;
                Dot {
                    x: x(p),
                    low: mid,
                    mid,
                    high: mid,
                }
            })
            .collect();
        dots.sort_by(|a, b| a.x.total_cmp(&b.x));
        dots.dedup_by(|a, b| a.x == b.x);
        add("ceiling", "other", dots);
    }
    for transport in transports {
        let mut dots: Vec<Dot> = groups(&owned)
            .iter()
            .filter(|g| g.first().is_some_and(|p| p.transport == transport))
            .filter_map(|g| {
                let values: Vec<f64> = g.iter().filter_map(|p| value.of(p)).collect();
                Some(Dot {
                    x: x(g.first()?),
                    low: values.iter().copied().fold(f64::INFINITY, f64::min),
                    mid: stats::median(&values)?,
                    high: values.iter().copied().fold(0.0, f64::max),
                })
            })
            .collect();
        dots.sort_by(|a, b| a.x.total_cmp(&b.x));
        add(&transport.to_uppercase(), transport, dots);
    }
    let all = || curves.iter().flat_map(|c| &c.points);
    let least = |f: fn(&(f64, f64)) -> f64| {
        all()
            .map(f)
            .filter(|v| *v > 0.0)
            .fold(f64::INFINITY, f64::min)
    };
    let most = |f: fn(&(f64, f64)) -> f64| all().map(f).fold(0.0, f64::max);
    let chart = Chart {
        description: format!("{} against {axis} at {title}", value.title()),
        x: Axis {
            title: axis.to_owned(),
            scale: Scale::log_around(least(|p| p.0), most(|p| p.0)),
        },
        y: Axis {
            title: value.title().to_owned(),
            scale: Scale::log_around(least(|p| p.1).max(1e-3), most(|p| p.1)),
        },
        curves,
        marks: Vec::new(),
    };
    Figure {
        title,
        note: format!("{}, both axes logarithmic", value.title()),
        svg: chart.svg(),
    }
}
