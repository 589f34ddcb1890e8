//! What `mef top` draws.
//!
//! ```text
//!  router, memory, processor, alarms
//!  links   with what they carry, round-trip time, loss, queue
//!  flows   the busiest first       | drops per second
//! ```

use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};
use ratatui::Frame;

use super::format::{count, rate, share, size, time};
use super::tables::link_state;
use super::top::Change;
use crate::control::LinkState;

/// Draws `change`; `trouble` is why there is no newer one.
pub fn draw(frame: &mut Frame<'_>, change: &Change, trouble: Option<&str>) {
    let alarms = change.now.status.alarms.len().min(5);
    let links = change.links.len().clamp(1, 12);
    let heights = [
        Constraint::Length(2 + alarms as u16 + u16::from(trouble.is_some())),
        Constraint::Length(links as u16 + 3),
        Constraint::Min(4),
    ];
    let [head, middle, rest] = Layout::vertical(heights).areas(frame.area());
    let widths = [Constraint::Min(60), Constraint::Length(44)];
    let [left, right] = Layout::horizontal(widths).areas(rest);
    draw_head(frame, head, change, trouble);
    draw_links(frame, middle, change);
    draw_flows(frame, left, change);
    draw_drops(frame, right, change);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, change: &Change, trouble: Option<&str>) {
    let s = &change.now.status;
    let used = s.counters.get("memory_used_bytes").copied().unwrap_or(0);
    let mut lines = vec![
        Line::from(format!(
            "{}   {} of memory   {:.0} % of a core   queue p99 {}   q quits",
            s.name,
            size(used),
            change.cpu * 100.0,
            time(s.queue_p99_us)
        ))
        .bold(),
        Line::default(),
    ];
    if let Some(text) = trouble {
        lines.insert(1, Line::from(format!("no answer: {text}")).red());
    }
    for alarm in s.alarms.iter().take(5) {
        lines.insert(lines.len() - 1, Line::from(format!("! {alarm}")).red());
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn heads<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::UNDERLINED))
}

fn draw_links(frame: &mut Frame<'_>, area: Rect, change: &Change) {
    let rows = change.links.iter().map(|l| {
        let state = Cell::from(link_state(l.link.state));
        let state = match l.link.state {
            LinkState::Up => state.green(),
            LinkState::Handshake | LinkState::Silent => state.red(),
        };
        Row::new([
            Cell::from(l.link.peer.clone()),
            state,
            Cell::from(rate(l.sent)),
            Cell::from(rate(l.received)),
            Cell::from(rate(l.link.rate_bps as f64)),
            Cell::from(time(l.link.rtt_us)),
            Cell::from(share(l.link.loss)),
            Cell::from(size(l.link.datagram_queue_bytes)),
            Cell::from(count(l.link.split_flows)),
        ])
    });
    let widths = [
        Constraint::Min(12),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(8),
    ];
    let names = [
        "peer", "state", "sends", "receives", "may send", "rtt", "loss", "queue", "flows",
    ];
    let table = Table::new(rows, widths).header(heads(names));
    frame.render_widget(table.block(Block::bordered().title("links")), area);
}

fn draw_flows(frame: &mut Frame<'_>, area: Rect, change: &Change) {
    let rows = change.flows.iter().take(usize::from(area.height)).map(|f| {
        Row::new([
            f.flow.host.to_string(),
            f.flow.far.to_string(),
            rate(f.sent),
            rate(f.received),
        ])
    });
    let widths = [
        Constraint::Min(21),
        Constraint::Min(21),
        Constraint::Length(11),
        Constraint::Length(11),
    ];
    let more = if change.now.more_flows {
        " and more"
    } else {
        ""
    };
    let title = format!("flows: {}{more}", count(change.flows.len() as u64));
    let table = Table::new(rows, widths).header(heads(["host", "far", "sends", "receives"]));
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, change: &Change) {
    let rows = change
        .drops
        .iter()
        .take(usize::from(area.height))
        .map(|(d, per_second)| {
            let row = Row::new([
                format!("{}.{}", d.stage, d.reason),
                format!("{per_second:.0}"),
            ]);
            if *per_second > 0.0 {
                row
            } else {
                row.dim()
            }
        });
    let widths = [Constraint::Min(20), Constraint::Length(8)];
    let table = Table::new(rows, widths).header(heads(["drops", "per s"]));
    frame.render_widget(table.block(Block::bordered()), area);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::backend::TestBackend;
    use ratatui::Terminal;

    use super::super::top::tests::{flow, looked};
    use super::*;

    fn drawn(change: &Change, trouble: Option<&str>, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|f| draw(f, change, trouble)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn shows_links_flows_drops_alarms_and_trouble() {
        let mut now = looked(2_500_000, 13, 2.0);
        now.status.alarms = vec!["link to b: silent for 3.2 s".into()];
        now.links[0].rtt_us = 200_000;
        now.more_flows = true;
        let before = looked(0, 3, 1.5);
        let change = Change::between(Some(&before), now, Duration::from_secs(1));
        let text = drawn(&change, Some("it is gone"), 130, 30);
        for shown in [
            "site-a",
            "50 % of a core",
            "! link to b: silent for 3.2 s",
            "no answer: it is gone",
            "20 Mbit/s",
            "40 Mbit/s",
            "200 ms",
            "10.1.0.2:2",
            "flows: 2 and more",
            "ingress.arp.bad",
        ] {
            assert!(text.contains(shown), "{shown} is not in\n{text}");
        }
    }

    #[test]
    fn any_terminal_is_large_enough_not_to_fail() {
        let mut now = looked(1, 1, 1.0);
        now.flows = (0..3000).map(|n| flow(n, 5)).collect();
        now.links = vec![now.links[0].clone(); 40];
        now.status.alarms = vec!["x".repeat(300); 40];
        let change = Change::between(None, now, Duration::ZERO);
        for (width, height) in [(1, 1), (10, 3), (40, 8), (80, 24), (300, 90)] {
            drawn(&change, Some("x"), width, height);
        }
        drawn(&Change::default(), None, 80, 24);
    }
}
