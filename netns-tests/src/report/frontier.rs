//! The drawing of `mef lab frontier`: one SVG that stands alone, a panel for each topology.

use std::fmt::Write as _;

use super::svg::escape;
use crate::frontier::{Curve, Panel};

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;
const LEGEND: f64 = 30.0;
/// Ends of the axes: ms, logarithmic, and shares of what the line can carry.
const QUEUE: (f64, f64) = (20.0, 5000.0);
const GOODPUT: (f64, f64) = (0.70, 1.0);
const STYLE: &str = "text{font:11px system-ui,sans-serif;fill:#333}.h{font-weight:600;font-size:13px}\
.g{stroke:#ddd}.l{fill:none;stroke-width:1.5}@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#444}}";

fn colour(name: &str) -> &'static str {
    match name.split(',').next() {
        Some("MEF") => "#0a7d5a",
        Some("BBR") => "#c2571a",
        Some("CUBIC") => "#8a63c7",
        _ => "#888",
    }
}

/// The whole picture.
pub fn svg(panels: &[Panel]) -> String {
    let width = WIDTH * panels.len() as f64 + RIGHT;
    let height = HEIGHT + LEGEND;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-label=\"goodput against queueing delay\"><style>{STYLE}</style>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate({} 0)\">", WIDTH * i as f64);
        draw(&mut out, panel);
        out.push_str("</g>\n");
    }
    let mut names: Vec<&Curve> = Vec::new();
    for curve in panels.iter().flat_map(|p| &p.curves) {
        if !names.iter().any(|n| n.name == curve.name) {
            names.push(curve);
        }
    }
    let mut x = LEFT;
    for curve in names {
        let y = HEIGHT + 12.0;
        mark(&mut out, curve, x, y - 4.0, "");
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{y}\">{}</text>",
            x + 10.0,
            escape(&curve.name)
        );
        x += 30.0 + 6.2 * curve.name.chars().count() as f64;
    }
    out.push_str("</svg>\n");
    out
}

fn px(ms: f64) -> f64 {
    let share = (ms.max(QUEUE.0) / QUEUE.0).ln() / (QUEUE.1 / QUEUE.0).ln();
    LEFT + share.min(1.0) * (WIDTH - LEFT - RIGHT)
}

fn py(share: f64) -> f64 {
    let place = ((share - GOODPUT.0) / (GOODPUT.1 - GOODPUT.0)).clamp(0.0, 1.05);
    HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)
}

/// A dot for the settings of one thing, a ring for what was measured.
fn mark(out: &mut String, curve: &Curve, x: f64, y: f64, title: &str) {
    let c = colour(&curve.name);
    let (fill, r) = if curve.joined { (c, 3) } else { ("none", 5) };
    let _ = write!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\" fill=\"{fill}\" stroke=\"{c}\" stroke-width=\"2\">\
         <title>{}</title></circle>",
        escape(title)
    );
}

fn draw(out: &mut String, panel: &Panel) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let _ = write!(
        out,
        "<text class=\"h\" x=\"{LEFT}\" y=\"16\">{}</text>",
        escape(&panel.title)
    );
    for ms in [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0] {
        let x = px(ms);
        let _ = write!(
            out,
            "<path class=\"g\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{ms}</text>",
            bottom + 15.0
        );
    }
    for percent in [70, 75, 80, 85, 90, 95, 100] {
        let y = py(f64::from(percent) / 100.0);
        let _ = write!(
            out,
            "<path class=\"g\" d=\"M{LEFT} {y:.1}H{right}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent}%</text>",
            LEFT - 5.0,
            y + 4.0
        );
    }
    let _ = write!(
        out,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">queue, 95th percentile, ms</text>",
        (LEFT + right) / 2.0,
        bottom + 32.0
    );
    for curve in &panel.curves {
        if curve.joined {
            let places = curve.points.iter().map(|p| (px(p.queue_ms), py(p.goodput)));
            let path: Vec<String> = places.map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let _ = write!(
                out,
                "<path class=\"l\" stroke=\"{}\" d=\"M{}\"/>",
                colour(&curve.name),
                path.join("L")
            );
        }
        for p in &curve.points {
            let title = format!(
                "{}: {:.1}% at {:.0} ms",
                p.name,
                100.0 * p.goodput,
                p.queue_ms
            );
            mark(out, curve, px(p.queue_ms), py(p.goodput), &title);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontier::Point;

    #[test]
    fn every_point_is_in_the_picture_and_names_are_escaped() {
        let point = |name: &str, queue_ms: f64, goodput: f64| Point {
            name: name.to_owned(),
            queue_ms,
            goodput,
        };
        let panel = Panel {
            title: "a <line>".to_owned(),
            curves: vec![
                Curve {
                    name: "MEF, simulated".to_owned(),
                    joined: true,
                    points: vec![point("latency", 200.0, 0.8), point("balanced", 400.0, 0.9)],
                },
                Curve {
                    name: "BBR, measured".to_owned(),
                    joined: false,
                    points: vec![point("BBR, measured", 9e9, 0.1)],
                },
            ],
        };
        let text = svg(&[panel.clone(), panel]);
        // Two panels of three points, and two in the legend.
        assert_eq!(text.matches("<circle").count(), 8);
        assert!(text.contains("latency: 80.0% at 200 ms"));
        assert!(text.contains("a &lt;line&gt;") && !text.contains("NaN"));
        assert!(px(9e9) <= WIDTH && py(0.1) <= HEIGHT);
    }
}
