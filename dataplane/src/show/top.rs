//! `mef top`: looks at the router again and again, and what changed between two
//! looks becomes rates.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::{all, screen, PATIENCE};
use crate::control::{self, Snapshot};
use crate::report::{Drop, Flow, Link, Query};

/// Pages of flows that are looked at; with more flows than that, some are not seen.
const PAGES: usize = 20;

/// One look at the router.
#[derive(Clone, Debug, Default)]
pub struct Look {
    pub status: Snapshot,
    pub links: Vec<Link>,
    pub drops: Vec<Drop>,
    pub flows: Vec<Flow>,
    /// There are more flows than were looked at.
    pub more_flows: bool,
}

fn look(path: &Path) -> io::Result<Look> {
    let flows = all::<Flow>(path, PAGES, |from| Query::Flows { from })?;
    Ok(Look {
        status: control::query(path, PATIENCE)?,
        links: all::<Link>(path, 1, |_| Query::Links)?.rows,
        drops: all::<Drop>(path, 1, |_| Query::Drops)?.rows,
        more_flows: flows.next.is_some(),
        flows: flows.rows,
    })
}

/// A link with what it carries now, bit/s.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkRate {
    pub link: Link,
    pub sent: f64,
    pub received: f64,
}

/// A flow with what it carries now, bit/s.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRate {
    pub flow: Flow,
    pub sent: f64,
    pub received: f64,
}

/// What changed between two looks.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub now: Look,
    pub links: Vec<LinkRate>,
    /// The busiest first.
    pub flows: Vec<FlowRate>,
    /// Those that happen now, packets per second, the most frequent first; then the rest by number.
    pub drops: Vec<(Drop, f64)>,
    /// Share of one core.
    pub cpu: f64,
}

impl Change {
    /// Rates of what changed from `before` to `now` in `time`; without a look before, or after a restart, all are 0.
    pub fn between(before: Option<&Look>, now: Look, time: Duration) -> Self {
        let seconds = time.as_secs_f64();
        let per_second = |before: Option<u64>, now: u64| match before {
            Some(before) if seconds > 0.0 => now.saturating_sub(before) as f64 / seconds,
            _ => 0.0,
        };
        let rate = |before, now| per_second(before, now) * 8.0;
        let of_link = |l: &Link| before?.links.iter().find(|b| b.peer == l.peer);
        let link = |l: &Link| LinkRate {
            link: l.clone(),
            sent: rate(of_link(l).map(|b| b.sent_bytes), l.sent_bytes),
            received: rate(of_link(l).map(|b| b.received_bytes), l.received_bytes),
        };
        let links = now.links.iter().map(link).collect();

        let key = |f: &Flow| (f.host, f.far, f.number);
        let known: HashMap<(SocketAddr, SocketAddr, u32), &Flow> = before
            .into_iter()
            .flat_map(|b| &b.flows)
            .map(|f| (key(f), f))
            .collect();
        let of_flow = |f: &Flow| known.get(&key(f)).copied();
        let flow = |f: &Flow| FlowRate {
            flow: f.clone(),
            sent: rate(of_flow(f).map(|b| b.sent_bytes), f.sent_bytes),
            received: rate(of_flow(f).map(|b| b.received_bytes), f.received_bytes),
        };
        let mut flows: Vec<FlowRate> = now.flows.iter().map(flow).collect();
        flows.sort_by(|a, b| (b.sent + b.received).total_cmp(&(a.sent + a.received)));

        let of_drop = |d: &Drop| {
            let same = |b: &&Drop| b.stage == d.stage && b.reason == d.reason;
            // What was not there at the last look was zero then.
            before.map(|b| b.drops.iter().find(same).map_or(0, |b| b.packets))
        };
        let drop = |d: &Drop| (d.clone(), per_second(of_drop(d), d.packets));
        let mut drops: Vec<(Drop, f64)> = now.drops.iter().map(drop).collect();
        drops.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.packets.cmp(&a.0.packets)));

        let cpu = match before {
            Some(b) if seconds > 0.0 => (now.status.cpu_s - b.status.cpu_s).max(0.0) / seconds,
            _ => 0.0,
        };
        Self {
            now,
            links,
            flows,
            drops,
            cpu,
        }
    }
}

/// Draws until the user has seen enough.
///
/// # Errors
/// What the terminal fails with. A router that does not answer is shown as such, and asked again.
pub fn run(path: &Path, interval: Duration) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = refresh(path, interval, &mut terminal);
    ratatui::restore();
    result
}

fn refresh(
    path: &Path,
    interval: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> io::Result<()> {
    let mut last: Option<(Instant, Look)> = None;
    let mut change = Change::default();
    loop {
        let at = Instant::now();
        let trouble = match look(path) {
            Ok(now) => {
                let before = last.as_ref().map(|(t, l)| (at - *t, l));
                let (time, before) = before.unzip();
                change = Change::between(before, now.clone(), time.unwrap_or_default());
                last = Some((at, now));
                None
            }
            Err(e) => Some(format!("{}: {e}", path.display())),
        };
        terminal.draw(|frame| screen::draw(frame, &change, trouble.as_deref()))?;
        let until = at + interval;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('q' | 'Q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Char('c') if control => return Ok(()),
                        _ => {}
                    }
                }
                Event::Resize(..) => {
                    terminal.draw(|frame| screen::draw(frame, &change, trouble.as_deref()))?;
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::report::FlowState;

    pub fn flow(host_port: u16, sent_bytes: u64) -> Flow {
        Flow {
            mode: "split".into(),
            peer: "b".into(),
            port: "lan".into(),
            host: ([10, 1, 0, 2], host_port).into(),
            far: ([10, 2, 0, 2], 80).into(),
            number: u32::from(host_port),
            state: FlowState::Open,
            sent_bytes,
            received_bytes: 0,
            unsent_bytes: 0,
            held_bytes: 0,
            retransmitted_bytes: 0,
            recovered_bytes: 0,
            credit_bytes: 0,
        }
    }

    pub fn looked(bytes: u64, packets: u64, cpu_s: f64) -> Look {
        let link = Link {
            peer: "b".into(),
            sent_bytes: bytes,
            received_bytes: 2 * bytes,
            ..Link::default()
        };
        let drop = |reason: &str, packets| Drop {
            stage: "ingress".into(),
            reason: reason.into(),
            packets,
        };
        Look {
            status: Snapshot {
                name: "site-a".into(),
                cpu_s,
                ..Snapshot::default()
            },
            links: vec![link],
            drops: vec![drop("ip.no_route", 1000), drop("arp.bad", packets)],
            flows: vec![flow(1, 500), flow(2, bytes)],
            more_flows: false,
        }
    }

    #[test]
    fn rates_are_what_changed_in_the_time_between() {
        let first = Change::between(None, looked(1000, 3, 1.0), Duration::ZERO);
        assert_eq!((first.links[0].sent, first.cpu), (0.0, 0.0));
        let two = Duration::from_secs(2);
        let c = Change::between(Some(&first.now), looked(5000, 13, 2.0), two);
        assert_eq!((c.links[0].sent, c.links[0].received), (16_000.0, 32_000.0));
        let busiest: Vec<_> = c.flows.iter().map(|f| (f.flow.number, f.sent)).collect();
        assert_eq!(busiest, [(2, 16_000.0), (1, 0.0)]);
        let drops: Vec<_> = c
            .drops
            .iter()
            .map(|(d, r)| (d.reason.as_str(), *r))
            .collect();
        assert_eq!(drops, [("arp.bad", 5.0), ("ip.no_route", 0.0)]);
        assert_eq!(c.cpu, 0.5);
        // The router was restarted: its counters are below what they were.
        let c = Change::between(Some(&c.now), looked(10, 0, 0.1), two);
        assert_eq!((c.links[0].sent, c.drops[0].1, c.cpu), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_flow_that_was_not_there_before_has_no_rate_yet() {
        let mut now = looked(1000, 0, 0.0);
        now.flows.push(flow(3, 1 << 30));
        let before = looked(1000, 0, 0.0);
        let c = Change::between(Some(&before), now, Duration::from_secs(1));
        assert!(c.flows.iter().all(|f| f.sent == 0.0));
    }
}
