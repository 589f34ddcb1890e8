//! The rows that operators see, and what the metrics are made of.

use std::time::Duration;

use mef_io::Port;
use mef_packet::wire::MacAddr;
use mef_packet::{Instant, PortId};
use mef_protocol::auto::AutoRate;
use mef_protocol::link::Opening;

use super::Router;
use crate::config::{PeerId, Via};
use crate::control::LinkState;
use crate::drops::{DropReason, Stage};
use crate::flow_table::SplitFlow;
use crate::metrics::Sample;
use crate::peer::Peer;
use crate::report::{self, FlowState, Page, Query, Reply, RouteKind, PAGE};

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn text(mac: MacAddr) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// What the controller of a link on a line of unknown capacity says of it.
pub(super) fn estimate(auto: &AutoRate) -> report::Estimate {
    report::Estimate {
        phase: auto.phase().as_str().to_owned(),
        competes: auto.competes(),
        delivered_bps: auto.delivered().bits_per_second(),
        queue_us: us(auto.queue()),
        wanted_queue_us: us(auto.wanted()),
        base_rtt_us: us(auto.base_rtt()),
        base_changes: auto.base_changes(),
        random_loss: auto.random_loss(),
    }
}

impl<P: Port> Router<P> {
    /// Answers one question; `cpu` is what the process has used.
    pub fn report(&self, now: Instant, cpu: Duration, query: Query) -> Reply {
        match query {
            Query::Status => Reply::Status(Box::new(self.snapshot(now, cpu))),
            Query::Links => Reply::Links(self.page(self.link_rows(now), None)),
            Query::Ports => Reply::Ports(self.page(self.port_rows(), None)),
            Query::Drops => Reply::Drops(self.page(self.drop_rows(), None)),
            Query::Workers => Reply::Workers(self.page(vec![self.worker_row()], None)),
            Query::Routes { from } => Reply::Routes(self.routes(from)),
            Query::Neighbours { from } => Reply::Neighbours(self.neighbour_rows(now, from)),
            Query::Flows { from } => Reply::Flows(self.flow_rows(from)),
            Query::Metrics => Reply::Metrics(Box::new(self.sample(now, cpu))),
        }
    }

    fn page<T>(&self, rows: Vec<T>, next: Option<u64>) -> Page<T> {
        Page {
            router: self.config.name.clone(),
            rows,
            next,
        }
    }

    fn port_name(&self, id: PortId) -> &str {
        self.config.port(id).map_or("?", |p| p.name.as_str())
    }

    fn sample(&self, now: Instant, cpu: Duration) -> Sample {
        Sample {
            status: self.snapshot(now, cpu),
            digest: self.config.digest,
            links: self.link_rows(now),
            ports: self.port_rows(),
            drops: self.counters.clone(),
            queue_wait: self.waited.clone(),
            memory_used: self.memory(),
            memory_limit: self.config.memory,
            workers: vec![self.worker_row()],
        }
    }

    pub(super) fn link_state(peer: &Peer) -> LinkState {
        if !peer.link.is_up() {
            LinkState::Handshake
        } else if peer.link.is_silent() {
            LinkState::Silent
        } else {
            LinkState::Up
        }
    }

    fn link_rows(&self, now: Instant) -> Vec<report::Link> {
        let fallen: Vec<PeerId> = self.manners.in_fallback(now).collect();
        let of = |&(line, place): &(usize, usize)| {
            let l = self.lines.get(line)?;
            let p = l.peers.get(place)?;
            if !self.has_lane(p.id) {
                return None;
            }
            let (link, s, d) = (&p.link, p.link.stats(), p.link.datagram_stats());
            let (datagram_flows, datagram_queue_bytes) = link.datagram_queues();
            let dropped = self.counters.of_link(p.id.0).map_or(0, |c| c.iter().sum());
            Some(report::Link {
                peer: self.peer_name(p.id).to_owned(),
                port: self.port_name(l.port).to_owned(),
                state: Self::link_state(p),
                endpoint: p.path.address(),
                rtt_us: us(link.rtt().smoothed()),
                rtt_min_us: us(link.rtt().min()),
                loss: link.loss(),
                mtu: link.path_mtu(),
                line_bps: l.line.capacity().bits_per_second(),
                rate_bps: link.rate_limit().bits_per_second(),
                capacity_alarm: link.guard().alarm().is_some(),
                estimate: link.estimate().map(estimate),
                silent_us: us(link.silent_for(now)),
                split_flows: link.flow_count() as u64,
                datagram_flows: datagram_flows as u64,
                datagram_queue_bytes: datagram_queue_bytes as u64,
                sent_packets: s.packets_sent,
                sent_bytes: s.bytes_sent,
                received_packets: s.packets_received,
                received_bytes: s.bytes_received,
                lost_packets: s.packets_lost,
                spurious_packets: s.packets_spurious,
                repair_packets: s.repairs_sent,
                retransmitted_bytes: s.bytes_retransmitted,
                recovered_bytes: s.bytes_recovered,
                expired_datagrams: d.halves_expired,
                marked_datagrams: d.queues.marked,
                handshakes_started: p.initiations(),
                sessions: p.sessions(),
                fallback: fallen.contains(&p.id),
                dropped_packets: dropped,
            })
        };
        self.places.iter().filter_map(of).collect()
    }

    fn port_rows(&self) -> Vec<report::Port> {
        let all = self.ports.iter().zip(&self.config.ports).zip(0u16..);
        let row = |((p, c), id)| {
            let (p, c): (&super::PortState<P>, &crate::config::Port) = (p, c);
            let s = p.port.stats();
            let line = p.line.and_then(|l| self.lines.get(l));
            report::Port {
                port: c.name.clone(),
                interface: c.interface.clone(),
                mac: text(p.mac),
                addresses: c.addresses.iter().map(ToString::to_string).collect(),
                mtu: p.mtu,
                line_up_bps: c.line.map(|l| l.up.bits_per_second()),
                line_down_bps: c.line.map(|l| l.down.bits_per_second()),
                received_packets: s.rx_packets,
                received_bytes: s.rx_bytes,
                missed_packets: s.rx_missed + s.rx_errors + s.rx_no_buffer,
                sent_packets: s.tx_packets,
                sent_bytes: s.tx_bytes,
                refused_packets: s.tx_dropped,
                lost_credit_bytes: line.map_or(0, |l| l.line.lost_credit().0),
                dropped_packets: self.counters.of_port(id).map_or(0, |c| c.iter().sum()),
            }
        };
        all.map(row).collect()
    }

    fn drop_rows(&self) -> Vec<report::Drop> {
        let row = |(stage, reason, packets): (Stage, DropReason, u64)| report::Drop {
            stage: stage.as_str().to_owned(),
            reason: reason.as_str().to_owned(),
            packets,
        };
        self.counters.iter().map(row).collect()
    }

    fn worker_row(&self) -> report::Worker {
        let crew = self.crew_stats();
        let mut row = report::Worker {
            worker: self.worker(),
            split_flows: self.flows.len() as u64,
            given_packets: crew.given,
            taken_packets: crew.taken,
            dropped_packets: self.counters.total(),
            cpu_us: us(mef_io::os::thread_cpu_time()),
            ..report::Worker::default()
        };
        for p in self.lines.iter().flat_map(|l| &l.peers) {
            row.links_up += u64::from(Self::link_state(p) == LinkState::Up);
        }
        for s in self.ports.iter().map(|p| p.port.stats()) {
            row.received_packets += s.rx_packets;
            row.received_bytes += s.rx_bytes;
            row.sent_packets += s.tx_packets;
            row.sent_bytes += s.tx_bytes;
        }
        row
    }

    fn routes(&self, from: u64) -> Page<report::Route> {
        let connected = self.config.ports.iter().flat_map(|port| {
            port.addresses.iter().map(|net| report::Route {
                prefix: net.trunc().to_string(),
                kind: RouteKind::Connected,
                via: None,
                port: Some(port.name.clone()),
                up: true,
            })
        });
        let peers = self.config.peers.iter().zip(0u16..).flat_map(|(peer, id)| {
            let prefixes = peer.prefixes.iter();
            prefixes.map(move |net| self.peer_route(net.to_string(), RouteKind::Peer, PeerId(id)))
        });
        let statics = self.config.routes.iter().map(|route| match route.via {
            Via::Peer(id) => self.peer_route(route.prefix.to_string(), RouteKind::Static, id),
            Via::Gateway { port, address } => report::Route {
                prefix: route.prefix.to_string(),
                kind: RouteKind::Static,
                via: Some(address.to_string()),
                port: Some(self.port_name(port).to_owned()),
                up: true,
            },
        });
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        let all = connected.chain(peers).chain(statics);
        let mut rows: Vec<_> = all.skip(skip).take(PAGE + 1).collect();
        let more = rows.len() > PAGE;
        rows.truncate(PAGE);
        self.page(rows, more.then(|| from.saturating_add(PAGE as u64)))
    }

    fn peer_route(&self, prefix: String, kind: RouteKind, id: PeerId) -> report::Route {
        let place = self.places.get(usize::from(id.0));
        let peer = place.and_then(|&(line, place)| self.lines.get(line)?.peers.get(place));
        let port = self.config.peer(id).map(|p| p.port);
        report::Route {
            prefix,
            kind,
            via: Some(self.peer_name(id).to_owned()),
            port: port.map(|p| self.port_name(p).to_owned()),
            up: peer.is_some_and(|p| Self::link_state(p) == LinkState::Up),
        }
    }

    /// One port's neighbours at a time, of which there are a bounded number.
    fn neighbour_rows(&self, now: Instant, from: u64) -> Page<report::Neighbour> {
        let count = self.config.ports.len() as u64;
        let port = PortId(u16::try_from(from).unwrap_or(u16::MAX));
        let name = self.port_name(port);
        let known = self.neighbours.list(port);
        let row = |n: crate::neighbour::Known| report::Neighbour {
            port: name.to_owned(),
            address: n.address,
            mac: n.mac.map(text),
            state: n.state,
            age_us: us(now.since(n.since)),
        };
        let rows = known.map(row).collect();
        let next = from.saturating_add(1);
        self.page(rows, (next < count).then_some(next))
    }

    fn flow_rows(&self, from: u64) -> Page<report::Flow> {
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let mut rows = Vec::new();
        for (index, flow) in self.flows.from(start) {
            if rows.len() == PAGE {
                return self.page(rows, Some(index as u64));
            }
            rows.push(self.flow_row(flow));
        }
        self.page(rows, None)
    }

    fn flow_row(&self, flow: &SplitFlow) -> report::Flow {
        let place = self.places.get(usize::from(flow.peer.0));
        let peer = place.and_then(|&(line, place)| self.lines.get(line)?.peers.get(place));
        let view = peer.and_then(|p| p.link.view(flow.number));
        let opening = view.is_some_and(|v| v.opening == Opening::Pending);
        let state = if flow.host_closed || flow.link_closed || flow.reset_at.is_some() {
            FlowState::Closing
        } else if opening || !flow.accepted || flow.host.is_none() {
            FlowState::Opening
        } else {
            FlowState::Open
        };
        report::Flow {
            mode: "split".to_owned(),
            peer: self.peer_name(flow.peer).to_owned(),
            port: self.port_name(flow.port).to_owned(),
            host: flow.key.host,
            far: flow.key.far,
            number: flow.number,
            state,
            sent_bytes: view.map_or(0, |v| v.sent),
            received_bytes: view.map_or(0, |v| v.read),
            unsent_bytes: view.map_or(0, |v| v.unsent),
            held_bytes: view.map_or(0, |v| v.held),
            retransmitted_bytes: view.map_or(0, |v| v.retransmitted),
            recovered_bytes: view.map_or(0, |v| v.recovered),
            credit_bytes: view.map_or(0, |v| v.credit.saturating_sub(v.sent)),
        }
    }
}
