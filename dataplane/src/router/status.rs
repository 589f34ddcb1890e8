//! What the router says about itself.

use std::time::Duration;

use mef_io::Port;
use mef_packet::Instant;

use super::Router;
use crate::config::{format_measured, format_rate, PeerId};
use crate::control::{LinkSnapshot, LinkState, Snapshot};

impl<P: Port> Router<P> {
    /// As alarms name a link: of several workers, each has its own.
    fn link_name(&self, id: PeerId) -> String {
        let peer = self.peer_name(id);
        match &self.crew {
            Some(crew) => format!("{peer} (worker {})", crew.me()),
            None => peer.to_owned(),
        }
    }

    /// The state of the router at `now`; `cpu` is what its process has used.
    pub fn snapshot(&self, now: Instant, cpu: Duration) -> Snapshot {
        let mut links = Vec::new();
        let mut alarms = self.troubles.texts();
        let mut counters = std::collections::BTreeMap::new();
        let mut add = |name: &str, n: u64| *counters.entry(name.to_owned()).or_insert(0) += n;
        let peers = self.lines.iter().flat_map(|l| &l.peers);
        for p in peers.filter(|p| self.has_lane(p.id)) {
            let link = &p.link;
            let state = if !link.is_up() {
                LinkState::Handshake
            } else if link.is_silent() {
                LinkState::Silent
            } else {
                LinkState::Up
            };
            links.push(LinkSnapshot {
                peer: self.peer_name(p.id).to_owned(),
                state,
                rtt_us: link.rtt().smoothed().as_micros() as u64,
                mtu: link.path_mtu(),
                loss: link.loss(),
                rate_bps: link.rate_limit().bits_per_second(),
                estimate: link.estimate().map(super::report::estimate),
                flows: link.flow_count() as u64,
            });
            if let Some(a) = link.guard().alarm() {
                alarms.push(format!(
                    "link to {}: configured {}, seen {}: check `line` of its port",
                    self.link_name(p.id),
                    format_rate(a.configured),
                    format_measured(a.seen)
                ));
            }
            if link.is_silent() {
                alarms.push(format!(
                    "link to {}: silent for {:.1} s",
                    self.link_name(p.id),
                    link.silent_for(now).as_secs_f64()
                ));
            }
            let d = link.datagram_stats();
            add("datagrams_marked", d.queues.marked);
            add("sessions", p.sessions());
            let s = link.stats();
            add("link_packets_sent", s.packets_sent);
            add("link_packets_received", s.packets_received);
            add("link_packets_lost", s.packets_lost);
            add("link_packets_spurious", s.packets_spurious);
            add("link_repairs_sent", s.repairs_sent);
            add("stream_bytes_retransmitted", s.bytes_retransmitted);
            add("stream_bytes_recovered", s.bytes_recovered);
        }
        for l in &self.lines {
            add("line_credit_lost_bytes", l.line.lost_credit().0);
            add("datagrams_marked", l.line.plain().stats().marked);
        }
        for peer in self.manners.in_fallback(now) {
            alarms.push(format!(
                "link to {}: fallback in use, packets leave in the clear",
                self.peer_name(peer)
            ));
        }
        let t = self.stats;
        add("flows", self.flows.len() as u64);
        add("flows_opened", t.flows_opened);
        add("flows_refused", t.flows_refused);
        add("flows_reset", t.flows_reset);
        add("handshakes", t.handshakes);
        add("peers_moved", t.peers_moved);
        add("datagrams_sent", t.datagrams_sent);
        add("datagrams_received", t.datagrams_received);
        add("address_conflicts", t.address_conflicts);
        add("packets_reassembled", self.stats.packets_reassembled);
        add("flows_asymmetric", self.manners.flows_asymmetric);
        add("flows_crossing", self.manners.flows_crossing);
        add("losses_pardoned", self.flows.losses_pardoned());
        add("plain_packets", self.manners.plain_packets);
        add("fallback_packets", self.manners.fallback_packets());
        add("memory_used_bytes", self.memory().0);
        add("host_buffer_bytes", self.host_buffers().0);
        for (p, c) in self.ports.iter().zip(&self.config.ports) {
            alarms.extend(p.port.alarms());
            let s = p.port.stats();
            for (what, n) in [
                ("rx_packets", s.rx_packets),
                ("rx_bytes", s.rx_bytes),
                ("rx_missed", s.rx_missed),
                ("rx_errors", s.rx_errors),
                ("rx_no_buffer", s.rx_no_buffer),
                ("tx_packets", s.tx_packets),
                ("tx_bytes", s.tx_bytes),
                ("tx_dropped", s.tx_dropped),
            ] {
                add(&format!("port_{}_{what}", c.name), n);
            }
        }
        Snapshot {
            name: self.config.name.clone(),
            ready: links.iter().all(|l| l.state == LinkState::Up),
            links,
            drops: self.counters.named(),
            queue_p99_us: self.waited.percentile_us(0.99),
            cpu_s: cpu.as_secs_f64(),
            alarms,
            counters,
        }
    }
}
