//! How the rows of a router become rows of a table.

use super::format::{count, rate, share, size, time};
use super::table::{left, right, Column};
use crate::control::LinkState;
use crate::report::{
    Drop, Flow, FlowState, Link, Neighbour, NeighbourState, Port, Route, RouteKind, Worker,
};

/// A row that a person can read.
pub trait Tabular {
    const COLUMNS: &'static [Column];
    fn cells(&self) -> Vec<String>;
}

const NONE: &str = "-";

fn or_none(text: Option<&String>) -> String {
    text.map_or(NONE, String::as_str).to_owned()
}

pub fn link_state(state: LinkState) -> &'static str {
    match state {
        LinkState::Up => "up",
        LinkState::Handshake => "handshake",
        LinkState::Silent => "silent",
    }
}

impl Tabular for Link {
    const COLUMNS: &'static [Column] = &[
        left("PEER"),
        left("STATE"),
        left("PORT"),
        left("ENDPOINT"),
        right("RTT"),
        right("LOSS"),
        right("MTU"),
        right("LINE"),
        right("GRANTED"),
        left("ESTIMATE"),
        right("FLOWS"),
        right("SENT"),
        right("RECEIVED"),
        right("RESENT"),
        right("REPAIRED"),
        right("DROPPED"),
    ];

    fn cells(&self) -> Vec<String> {
        let alarm = if self.capacity_alarm { " !" } else { "" };
        vec![
            self.peer.clone(),
            link_state(self.state).to_owned(),
            self.port.clone(),
            self.endpoint.map_or(NONE.to_owned(), |e| e.to_string()),
            time(self.rtt_us),
            share(self.loss),
            self.mtu.to_string(),
            rate(self.line_bps as f64),
            rate(self.rate_bps as f64) + alarm,
            self.estimate.as_ref().map_or(NONE.to_owned(), |e| {
                format!(
                    "{} {}/{}",
                    e.phase,
                    time(e.queue_us),
                    time(e.wanted_queue_us)
                )
            }),
            count(self.split_flows),
            size(self.sent_bytes),
            size(self.received_bytes),
            size(self.retransmitted_bytes),
            size(self.recovered_bytes),
            count(self.dropped_packets),
        ]
    }
}

impl Tabular for Worker {
    const COLUMNS: &'static [Column] = &[
        right("WORKER"),
        right("LINKS UP"),
        right("FLOWS"),
        right("RECEIVED"),
        right("SENT"),
        right("GIVEN"),
        right("TAKEN"),
        right("DROPPED"),
        right("CPU"),
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.to_string(),
            self.links_up.to_string(),
            count(self.split_flows),
            size(self.received_bytes),
            size(self.sent_bytes),
            count(self.given_packets),
            count(self.taken_packets),
            count(self.dropped_packets),
            time(self.cpu_us),
        ]
    }
}

impl Tabular for Port {
    const COLUMNS: &'static [Column] = &[
        left("PORT"),
        left("INTERFACE"),
        left("MAC"),
        left("ADDRESSES"),
        right("MTU"),
        right("UP"),
        right("DOWN"),
        right("RECEIVED"),
        right("PACKETS"),
        right("MISSED"),
        right("SENT"),
        right("PACKETS"),
        right("REFUSED"),
        right("DROPPED"),
    ];

    fn cells(&self) -> Vec<String> {
        let line = |bps: Option<u64>| bps.map_or(NONE.to_owned(), |b| rate(b as f64));
        vec![
            self.port.clone(),
            self.interface.clone(),
            self.mac.clone(),
            self.addresses.join(","),
            self.mtu.to_string(),
            line(self.line_up_bps),
            line(self.line_down_bps),
            size(self.received_bytes),
            count(self.received_packets),
            count(self.missed_packets),
            size(self.sent_bytes),
            count(self.sent_packets),
            count(self.refused_packets),
            count(self.dropped_packets),
        ]
    }
}

impl Tabular for Drop {
    const COLUMNS: &'static [Column] = &[left("STAGE"), left("REASON"), right("PACKETS")];

    fn cells(&self) -> Vec<String> {
        vec![self.stage.clone(), self.reason.clone(), count(self.packets)]
    }
}

impl Tabular for Route {
    const COLUMNS: &'static [Column] = &[
        left("PREFIX"),
        left("KIND"),
        left("VIA"),
        left("PORT"),
        left("STATE"),
    ];

    fn cells(&self) -> Vec<String> {
        let kind = match self.kind {
            RouteKind::Connected => "connected",
            RouteKind::Peer => "peer",
            RouteKind::Static => "static",
        };
        vec![
            self.prefix.clone(),
            kind.to_owned(),
            or_none(self.via.as_ref()),
            or_none(self.port.as_ref()),
            if self.up { "up" } else { "down" }.to_owned(),
        ]
    }
}

impl Tabular for Neighbour {
    const COLUMNS: &'static [Column] = &[
        left("PORT"),
        left("ADDRESS"),
        left("MAC"),
        left("STATE"),
        right("AGE"),
    ];

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            NeighbourState::Incomplete => "incomplete",
            NeighbourState::Reachable => "reachable",
            NeighbourState::Probing => "probing",
        };
        vec![
            self.port.clone(),
            self.address.to_string(),
            or_none(self.mac.as_ref()),
            state.to_owned(),
            time(self.age_us),
        ]
    }
}

impl Tabular for Flow {
    const COLUMNS: &'static [Column] = &[
        left("HOST"),
        left("FAR"),
        left("PEER"),
        left("MODE"),
        left("STATE"),
        right("SENT"),
        right("RECEIVED"),
        right("UNSENT"),
        right("HELD"),
        right("RESENT"),
        right("REPAIRED"),
        right("CREDIT"),
    ];

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            FlowState::Opening => "opening",
            FlowState::Open => "open",
            FlowState::Closing => "closing",
        };
        vec![
            self.host.to_string(),
            self.far.to_string(),
            self.peer.clone(),
            self.mode.clone(),
            state.to_owned(),
            size(self.sent_bytes),
            size(self.received_bytes),
            size(self.unsent_bytes),
            size(self.held_bytes),
            size(self.retransmitted_bytes),
            size(self.recovered_bytes),
            size(self.credit_bytes),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::table::Table;

    fn fits<T: Tabular>(row: &T) -> String {
        assert_eq!(row.cells().len(), T::COLUMNS.len());
        let mut table = Table::new(T::COLUMNS);
        table.row(row.cells());
        table.to_string()
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let link = Link {
            peer: "site-b".into(),
            rtt_us: 200_000,
            capacity_alarm: true,
            rate_bps: 80_000_000,
            ..Link::default()
        };
        let shown = fits(&link);
        assert!(
            shown.contains("200 ms") && shown.contains("80 Mbit/s !"),
            "{shown}"
        );
        fits(&Port::default());
        fits(&Drop::default());
        fits(&Route {
            prefix: "10.0.0.0/8".into(),
            kind: RouteKind::Static,
            via: None,
            port: None,
            up: true,
        });
        fits(&Neighbour {
            port: "lan".into(),
            address: [10, 1, 0, 2].into(),
            mac: None,
            state: NeighbourState::Incomplete,
            age_us: 1,
        });
        fits(&Flow {
            mode: "split".into(),
            peer: "b".into(),
            port: "lan".into(),
            host: ([10, 1, 0, 2], 4000).into(),
            far: ([10, 2, 0, 2], 80).into(),
            number: 2,
            state: FlowState::Open,
            sent_bytes: 1,
            received_bytes: 2,
            unsent_bytes: 3,
            held_bytes: 4,
            retransmitted_bytes: 5,
            recovered_bytes: 6,
            credit_bytes: 7,
        });
    }
}
