//! A row of dots for each transport on one logarithmic axis: quantiles of a delay.

use std::fmt::Write as _;

use super::summary::figure;
use super::svg::escape;

const WIDTH: f64 = 560.0;
const LEFT: f64 = 106.0;
const RIGHT: f64 = 84.0;
const ROW: f64 = 44.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;

#[derive(Clone, Debug)]
pub struct DotRow {
    pub name: String,
    pub class: String,
    /// p50, p95, p99.
    pub values: [f64; 3],
}

#[derive(Clone, Debug)]
pub struct Dots {
    pub description: String,
    /// Of the axis, with the unit.
    pub title: String,
    /// What is below is drawn here; a power of ten.
    pub floor: f64,
    pub rows: Vec<DotRow>,
}

impl Dots {
    pub fn svg(&self) -> String {
        let highest = self
            .rows
            .iter()
            .flat_map(|r| r.values)
            .filter(|v| v.is_finite());
        let highest = highest.fold(self.floor * 100.0, f64::max);
        let decades = (highest / self.floor).log10().ceil().clamp(1.0, 12.0);
        let right = WIDTH - RIGHT;
        let px =
            |v: f64| LEFT + (v.max(self.floor) / self.floor).log10() / decades * (right - LEFT);
        let bottom = TOP + ROW * self.rows.len() as f64;
        let height = bottom + BOTTOM;

        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.description)
        );
        for decade in 0..=decades as i32 {
            let value = self.floor * 10f64.powi(decade);
            let x = px(value);
            let text = if decade == 0 {
                format!("≤ {value}")
            } else {
                format!("{value:.0}")
            };
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"tick x\" x=\"{x:.1}\" y=\"{}\">{text}</text>",
                bottom + 17.0
            );
        }
        for (row, index) in self.rows.iter().zip(0u32..) {
            let y = TOP + ROW * (f64::from(index) + 0.5);
            let class = escape(&row.class);
            let [p50, p95, p99] = row.values.map(|v| if v.is_finite() { px(v) } else { LEFT });
            let _ = write!(
                out,
                "<text class=\"rowname c-{class}\" x=\"{}\" y=\"{:.1}\">{}</text>\
                 <line class=\"span c-{class}\" x1=\"{p50:.1}\" x2=\"{p99:.1}\" y1=\"{y}\" y2=\"{y}\"/>\
                 <circle class=\"dot c-{class}\" cx=\"{p50:.1}\" cy=\"{y}\" r=\"4\"><title>median {} ms</title></circle>\
                 <circle class=\"dot c-{class}\" cx=\"{p95:.1}\" cy=\"{y}\" r=\"5.5\"><title>p95 {} ms</title></circle>\
                 <circle class=\"dot c-{class}\" cx=\"{p99:.1}\" cy=\"{y}\" r=\"7\"><title>p99 {} ms</title></circle>\
                 <text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">p99 {} ms</text>",
                LEFT - 14.0,
                y + 4.0,
                escape(&row.name),
                figure(row.values[0]),
                figure(row.values[1]),
                figure(row.values[2]),
                p99 + 12.0,
                y + 4.0,
                figure(row.values[2]),
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"title x\" x=\"{}\" y=\"{}\">{}</text></svg>",
            (LEFT + right) / 2.0,
            height - 6.0,
            escape(&self.title)
        );
        out
    }
}
