//! A small writer of line charts as inline SVG: titled axes with nice ticks,
//! curves with bands, names written at the curves' ends instead of a legend.
//! Colours come from the page's style sheet, so that a chart follows the
//! reader's light or dark scheme.

use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Least distance of two names, px.
const NAME_STEP: f64 = 15.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    Linear {
        min: f64,
        max: f64,
    },
    /// Both ends above zero; what is below `min` is drawn at `min`.
    Log {
        min: f64,
        max: f64,
    },
}

impl Scale {
    /// From 0 to a tenth of a step above `max`.
    pub fn from_zero(max: f64) -> Self {
        let max = if max.is_finite() { max.max(1e-9) } else { 1.0 };
        Self::Linear {
            min: 0.0,
            max: max + nice_step(max / 5.0) / 10.0,
        }
    }

    /// Round numbers (1, 2 or 5 times a power of ten) around the values.
    pub fn log_around(min: f64, max: f64) -> Self {
        let clean = |x: f64| {
            if x.is_finite() {
                x.clamp(1e-6, 1e12)
            } else {
                1.0
            }
        };
        let min = clean(min);
        let max = clean(max).max(min * 1.5);
        Self::Log {
            min: round_125(min, false),
            max: round_125(max, true),
        }
    }

    /// 0..1 of the axis; `None` for what is no number.
    fn place(self, x: f64) -> Option<f64> {
        let share = match self {
            Self::Linear { min, max } => (x - min) / (max - min),
            Self::Log { min, max } => (x.max(min) / min).ln() / (max / min).ln(),
        };
        share.is_finite().then_some(share)
    }

    /// (value, text) of each tick.
    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Linear { min, max } => {
                let step = nice_step((max - min) / 5.0);
                let first = (min / step).ceil() as i64;
                let last = (max / step + 1e-9).floor() as i64;
                (first..=last.min(first + 20))
                    .map(|i| (i as f64 * step, number(i as f64 * step)))
                    .collect()
            }
            Self::Log { min, max } => {
                let decades = (max / min).log10();
                let digits: &[f64] = if decades <= 2.3 {
                    &[1.0, 2.0, 5.0]
                } else {
                    &[1.0]
                };
                let from = min.log10().floor() as i32;
                let to = max.log10().ceil() as i32;
                (from..=to)
                    .flat_map(|e| digits.iter().map(move |d| d * 10f64.powi(e)))
                    .filter(|v| *v >= min * 0.999 && *v <= max * 1.001)
                    .map(|v| (v, number(v)))
                    .collect()
            }
        }
    }
}

fn nice_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.max(1e-12).log10().floor());
    let lead = rough / power;
    let nice = if lead <= 1.0 {
        1.0
    } else if lead <= 2.0 {
        2.0
    } else if lead <= 2.5 {
        2.5
    } else if lead <= 5.0 {
        5.0
    } else {
        10.0
    };
    nice * power
}

fn round_125(x: f64, up: bool) -> f64 {
    let power = 10f64.powf(x.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|d| d * power);
    if up {
        steps.into_iter().find(|s| *s >= x * 0.999).unwrap_or(x)
    } else {
        steps
            .into_iter()
            .rev()
            .find(|s| *s <= x * 1.001)
            .unwrap_or(x)
    }
}

/// A number without a tail of zeros.
fn number(x: f64) -> String {
    let text = if x.abs() >= 1.0 || x == 0.0 {
        format!("{x:.2}")
    } else {
        format!("{x:.4}")
    };
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text.is_empty() || text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

#[derive(Clone, Debug)]
pub struct Axis {
    /// With the unit.
    pub title: String,
    pub scale: Scale,
}

#[derive(Clone, Debug, Default)]
pub struct Curve {
    pub name: String,
    /// Of the style sheet: `mef`, `bbr`, ...
    pub class: String,
    pub points: Vec<(f64, f64)>,
    /// (x, low, high): the spread over the repeats.
    pub band: Vec<(f64, f64, f64)>,
    pub steps: bool,
}

/// A dashed line across the chart.
#[derive(Clone, Debug)]
pub struct Mark {
    pub name: String,
    pub y: f64,
}

#[derive(Clone, Debug)]
pub struct Chart {
    /// What a screen reader says.
    pub description: String,
    pub x: Axis,
    pub y: Axis,
    pub curves: Vec<Curve>,
    pub marks: Vec<Mark>,
}

/// Escapes text for HTML and SVG.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

impl Chart {
    fn px(&self, x: f64) -> Option<f64> {
        Some(LEFT + self.x.scale.place(x)?.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT))
    }
    /// Kept inside the chart: a curve that leaves it runs along its edge.
    fn py(&self, y: f64) -> Option<f64> {
        Some(HEIGHT - BOTTOM - self.y.scale.place(y)?.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM))
    }

    /// The chart as one `<svg>` element.
    pub fn svg(&self) -> String {
        let mut out = String::new();
        let _ = write!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(&self.description)
        );
        self.grid(&mut out);
        let mut names: Vec<(f64, String, String)> = Vec::new();
        for mark in &self.marks {
            let Some(y) = self.py(mark.y) else { continue };
            let _ = write!(
                out,
                "<line class=\"mark\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                WIDTH - RIGHT
            );
            names.push((y, mark.name.clone(), "markname".to_owned()));
        }
        for curve in &self.curves {
            self.curve(&mut out, curve);
            if let Some(y) = curve.points.last().and_then(|p| self.py(p.1)) {
                names.push((y, curve.name.clone(), format!("name c-{}", curve.class)));
            }
        }
        for (y, name, class) in spread(names) {
            let _ = write!(
                out,
                "<text class=\"{}\" x=\"{}\" y=\"{:.1}\">{}</text>",
                escape(&class),
                WIDTH - RIGHT + 8.0,
                y + 4.0,
                escape(&name)
            );
        }
        out.push_str("</svg>");
        out
    }

    fn grid(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for (value, text) in self.y.scale.ticks() {
            let Some(y) = self.py(value) else { continue };
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick y\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                LEFT - 8.0,
                y + 4.0
            );
        }
        for (value, text) in self.x.scale.ticks() {
            let Some(x) = self.px(value) else { continue };
            let _ = write!(
                out,
                "<line class=\"tickmark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
                 <text class=\"tick x\" x=\"{x:.1}\" y=\"{}\">{text}</text>",
                bottom + 4.0,
                bottom + 17.0
            );
        }
        let _ = write!(
            out,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"title x\" x=\"{}\" y=\"{}\">{}</text>\
             <text class=\"title y\" transform=\"translate(13 {}) rotate(-90)\">{}</text>",
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x.title),
            (TOP + bottom) / 2.0,
            escape(&self.y.title)
        );
    }

    fn curve(&self, out: &mut String, curve: &Curve) {
        let class = escape(&curve.class);
        if curve.band.len() > 1 {
            let mut path = String::new();
            let there = curve.band.iter().map(|(x, low, _)| (*x, *low));
            let back = curve.band.iter().rev().map(|(x, _, high)| (*x, *high));
            for (x, y) in there.chain(back) {
                if let (Some(x), Some(y)) = (self.px(x), self.py(y)) {
                    let _ = write!(
                        path,
                        "{}{x:.1} {y:.1}",
                        if path.is_empty() { "M" } else { "L" }
                    );
                }
            }
            let _ = write!(out, "<path class=\"band c-{class}\" d=\"{path}Z\"/>");
        }
        let mut path = String::new();
        let mut before: Option<f64> = None;
        for (x, y) in &curve.points {
            let (Some(x), Some(y)) = (self.px(*x), self.py(*y)) else {
                continue;
            };
            match (before, curve.steps) {
                (None, _) => {
                    let _ = write!(path, "M{x:.1} {y:.1}");
                }
                (Some(last), true) => {
                    let _ = write!(path, "L{x:.1} {last:.1}L{x:.1} {y:.1}");
                }
                (Some(_), false) => {
                    let _ = write!(path, "L{x:.1} {y:.1}");
                }
            }
            before = Some(y);
        }
        let _ = write!(
            out,
            "<path class=\"curve c-{class}\" d=\"{path}\"><title>{}</title></path>",
            escape(&curve.name)
        );
    }
}

/// Moves names apart that would lie on each other, and into the chart.
fn spread(mut names: Vec<(f64, String, String)>) -> Vec<(f64, String, String)> {
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut least = TOP;
    for name in &mut names {
        name.0 = name.0.max(least);
        least = name.0 + NAME_STEP;
    }
    let mut most = HEIGHT - BOTTOM;
    for name in names.iter_mut().rev() {
        name.0 = name.0.min(most);
        most = name.0 - NAME_STEP;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scales_are_round() {
        assert_eq!(
            Scale::log_around(0.13, 3.1),
            Scale::Log { min: 0.1, max: 5.0 }
        );
        let ticks: Vec<String> = Scale::from_zero(105.2)
            .ticks()
            .into_iter()
            .map(|t| t.1)
            .collect();
        assert_eq!(ticks, ["0", "25", "50", "75", "100"]);
        let ticks: Vec<String> = Scale::log_around(0.1, 5.0)
            .ticks()
            .into_iter()
            .map(|t| t.1)
            .collect();
        assert_eq!(ticks, ["0.1", "0.2", "0.5", "1", "2", "5"]);
    }

    #[test]
    fn names_do_not_lie_on_each_other() {
        let names = (0..5)
            .map(|i| (250.0 + f64::from(i), format!("{i}"), String::new()))
            .collect();
        let placed = spread(names);
        assert!(placed
            .windows(2)
            .all(|w| w[1].0 - w[0].0 >= NAME_STEP - 1e-9));
        assert!(placed.iter().all(|n| n.0 <= HEIGHT - BOTTOM && n.0 >= TOP));
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            escape("<a href='x'>&\""),
            "&lt;a href=&#39;x&#39;&gt;&amp;&quot;"
        );
    }

    proptest! {
        /// Whatever was measured, the chart has no coordinate that is no number, and ends.
        #[test]
        fn any_numbers_make_a_chart(
            points in proptest::collection::vec((any::<f64>(), any::<f64>()), 0..30), max: f64, log: bool,
        ) {
            let scale = if log { Scale::log_around(max.abs() / 3.0, max.abs()) } else { Scale::from_zero(max) };
            let chart = Chart {
                description: "x".into(),
                x: Axis { title: "x".into(), scale: Scale::from_zero(1.0) },
                y: Axis { title: "y".into(), scale },
                curves: vec![Curve { name: "n".into(), class: "mef".into(), points, ..Curve::default() }],
                marks: vec![],
            };
            let svg = chart.svg();
            prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
            prop_assert!(svg.ends_with("</svg>"));
        }
    }
}
