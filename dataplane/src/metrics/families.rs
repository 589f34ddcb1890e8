//! Every family of metrics and where its values come from. Base units: seconds,
//! bytes, bytes per second, shares of one.

use std::time::SystemTime;

use super::text::{Kind, Text};
use super::{process, Sample};
use crate::control::LinkState;
use crate::drops::{ByReason, DropReason, Stage};
use crate::report::{Estimate, Link, Port, Worker};

/// Upper bounds of the queue's histogram, microseconds.
const WAIT_US: [u64; 13] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000,
];

type LinkColumn = (&'static str, Kind, &'static str, fn(&Link) -> f64);
type PortColumn = (&'static str, Kind, &'static str, fn(&Port) -> f64);
type WorkerColumn = (&'static str, Kind, &'static str, fn(&Worker) -> f64);

fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

/// 0 where the capacity is configured.
fn estimate(link: &Link, of: fn(&Estimate) -> f64) -> f64 {
    link.estimate.as_ref().map_or(0.0, of)
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

fn bytes_per_second(bps: u64) -> f64 {
    bps as f64 / 8.0
}

const LINKS: &[LinkColumn] = {
    use Kind::{Counter, Gauge};
    &[
        ("mef_link_up", Gauge, "1 while the link has a session and its packets are acknowledged.", |l| flag(l.state == LinkState::Up)),
        ("mef_link_silent_seconds", Gauge, "For how long nothing was acknowledged; 0 while all is well.", |l| seconds(l.silent_us)),
        ("mef_link_rtt_seconds", Gauge, "Smoothed round-trip time of the path.", |l| seconds(l.rtt_us)),
        ("mef_link_rtt_min_seconds", Gauge, "Smallest round-trip time of the path of late.", |l| seconds(l.rtt_min_us)),
        ("mef_link_loss_ratio", Gauge, "Share of the packets lost on the way to the peer.", |l| l.loss),
        ("mef_link_path_mtu_bytes", Gauge, "Largest IP packet that the path is known to carry.", |l| f64::from(l.mtu)),
        ("mef_link_capacity_bytes_per_second", Gauge, "Configured capacity of the line towards the peer.", |l| bytes_per_second(l.line_bps)),
        ("mef_link_granted_bytes_per_second", Gauge, "What the link may use of it now; what it achieves is the rate of mef_link_sent_bytes_total.", |l| bytes_per_second(l.rate_bps)),
        ("mef_link_competes", Gauge, "1 while others fill the queue of a line of unknown capacity and the link holds its own against them.", |l| estimate(l, |e| flag(e.competes))),
        ("mef_link_delivered_bytes_per_second", Gauge, "What a line of unknown capacity was last seen to deliver to the link.", |l| estimate(l, |e| bytes_per_second(e.delivered_bps))),
        ("mef_link_queue_seconds", Gauge, "Delay in the queue of a line of unknown capacity.", |l| estimate(l, |e| seconds(e.queue_us))),
        ("mef_link_queue_wanted_seconds", Gauge, "The delay there that is wanted while nobody else fills the queue.", |l| estimate(l, |e| seconds(e.wanted_queue_us))),
        ("mef_link_base_rtt_seconds", Gauge, "Round trip without a queue on a line of unknown capacity.", |l| estimate(l, |e| seconds(e.base_rtt_us))),
        ("mef_link_capacity_alarm", Gauge, "1 while the path was seen to carry less than configured.", |l| flag(l.capacity_alarm)),
        ("mef_link_fallback", Gauge, "1 while packets for the peer leave in the clear, past the link.", |l| flag(l.fallback)),
        ("mef_link_split_flows", Gauge, "Split flows on the link.", |l| l.split_flows as f64),
        ("mef_link_datagram_flows", Gauge, "Flows that have datagrams waiting for the link.", |l| l.datagram_flows as f64),
        ("mef_link_datagram_queue_bytes", Gauge, "Datagrams that wait for the link.", |l| l.datagram_queue_bytes as f64),
        ("mef_link_sent_packets_total", Counter, "Packets sent to the peer.", |l| l.sent_packets as f64),
        ("mef_link_sent_bytes_total", Counter, "Bytes sent to the peer, as the line carries them.", |l| l.sent_bytes as f64),
        ("mef_link_received_packets_total", Counter, "Packets of the peer that were authentic and new.", |l| l.received_packets as f64),
        ("mef_link_received_bytes_total", Counter, "Bytes in these packets, as the line carries them.", |l| l.received_bytes as f64),
        ("mef_link_lost_packets_total", Counter, "Packets to the peer that were declared lost.", |l| l.lost_packets as f64),
        ("mef_link_spurious_lost_packets_total", Counter, "Of these, packets that arrived after all.", |l| l.spurious_packets as f64),
        ("mef_link_repair_packets_total", Counter, "Repair symbols sent to the peer.", |l| l.repair_packets as f64),
        ("mef_link_retransmitted_bytes_total", Counter, "Stream bytes sent again.", |l| l.retransmitted_bytes as f64),
        ("mef_link_recovered_bytes_total", Counter, "Stream bytes from the peer that repair brought back.", |l| l.recovered_bytes as f64),
        ("mef_link_expired_datagrams_total", Counter, "Datagrams of the peer whose other half did not come in time.", |l| l.expired_datagrams as f64),
        ("mef_link_marked_datagrams_total", Counter, "Datagrams to the peer marked as having met congestion, instead of dropped.", |l| l.marked_datagrams as f64),
        ("mef_link_handshakes_started_total", Counter, "Handshakes that this router began.", |l| l.handshakes_started as f64),
        ("mef_link_sessions_total", Counter, "Sessions that handshakes of either end led to.", |l| l.sessions as f64),
    ]
};

const PORTS: &[PortColumn] = {
    use Kind::{Counter, Gauge};
    &[
        (
            "mef_port_mtu_bytes",
            Gauge,
            "Largest IP packet of the port.",
            |p| f64::from(p.mtu),
        ),
        (
            "mef_port_received_packets_total",
            Counter,
            "Frames received; a super-segment counts once.",
            |p| p.received_packets as f64,
        ),
        (
            "mef_port_received_bytes_total",
            Counter,
            "Bytes of these frames.",
            |p| p.received_bytes as f64,
        ),
        (
            "mef_port_missed_packets_total",
            Counter,
            "Frames lost before the router saw them, as it was too slow.",
            |p| p.missed_packets as f64,
        ),
        (
            "mef_port_sent_packets_total",
            Counter,
            "Frames sent; a super-segment counts once.",
            |p| p.sent_packets as f64,
        ),
        (
            "mef_port_sent_bytes_total",
            Counter,
            "Bytes of these frames.",
            |p| p.sent_bytes as f64,
        ),
        (
            "mef_port_refused_packets_total",
            Counter,
            "Frames that the device or the kernel did not take.",
            |p| p.refused_packets as f64,
        ),
        (
            "mef_port_lost_credit_bytes_total",
            Counter,
            "Capacity of the port's line lost because the router woke too late.",
            |p| p.lost_credit_bytes as f64,
        ),
    ]
};

const WORKERS: &[WorkerColumn] = {
    use Kind::{Counter, Gauge};
    &[
        (
            "mef_worker_cpu_seconds_total",
            Counter,
            "Processor time of the worker's thread.",
            |w| seconds(w.cpu_us),
        ),
        (
            "mef_worker_split_flows",
            Gauge,
            "Split flows of the worker.",
            |w| w.split_flows as f64,
        ),
        (
            "mef_worker_received_packets_total",
            Counter,
            "Frames that came in at the worker's queues.",
            |w| w.received_packets as f64,
        ),
        (
            "mef_worker_given_packets_total",
            Counter,
            "Of these, packets of other workers' flows, which were handed over.",
            |w| w.given_packets as f64,
        ),
        (
            "mef_worker_taken_packets_total",
            Counter,
            "Packets of the worker's flows that other workers handed over.",
            |w| w.taken_packets as f64,
        ),
    ]
};

/// Of the counters of the control socket, those that stand for the whole router
/// and are no sum over ports or links; with their help. What ends in `_bytes` is no counter.
fn whole_router(name: &str) -> Option<(String, Kind, &'static str)> {
    let summed = ["port_", "link_", "stream_", "line_"];
    if matches!(name, "memory_used_bytes" | "flows") || summed.iter().any(|p| name.starts_with(p)) {
        return None;
    }
    let help = match name {
        "host_buffer_bytes" => "Memory in use for what passes between split flows and their hosts.",
        "flows_opened" => "Split flows opened.",
        "flows_refused" => "Split flows that the far host or its router refused.",
        "flows_reset" => "Split flows that a host or a router reset.",
        "handshakes" => "Handshake messages sent.",
        "datagrams_sent" => "Datagrams that went to a link.",
        "datagrams_received" => "Datagrams that came over a link.",
        "flows_asymmetric" => "Flows whose answers seem to take another way.",
        "losses_pardoned" => {
            "Losses on the hosts' access that the hosts were kept from slowing down for."
        }
        "packets_reassembled" => {
            "TCP packets for peers' hosts that came in fragments and were joined."
        }
        "flows_crossing" => "Connections that both hosts opened at once, carried as datagrams.",
        "sessions" => "Sessions with peers, renewals included.",
        "peers_moved" => "Times that a peer proved to be at another address than before.",
        "datagrams_marked" => "Datagrams marked as having met congestion, instead of dropped.",
        "plain_packets" => "Packets for a peer's hosts that left in the clear.",
        "fallback_packets" => "Of these, packets whose link did not work.",
        "address_conflicts" => {
            "Times that another station was heard with an address of the router."
        }
        _ => "See the counter of this name of the control socket.",
    };
    Some(match name.ends_with("_bytes") {
        true => (format!("mef_{name}"), Kind::Gauge, help),
        false => (format!("mef_{name}_total"), Kind::Counter, help),
    })
}

/// The metrics of `sample` as text; `started` is when the process began.
pub fn render(sample: &Sample, started: SystemTime) -> String {
    let mut t = Text::default();
    t.family("mef_build_info", Kind::Gauge, "Always 1; what runs here.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let digest: String = sample.digest.iter().map(|b| format!("{b:02x}")).collect();
    let labels = [("router", sample.status.name.as_str()), ("sha256", &digest)];
    let help = "Always 1; hash of the configuration file that is in use.";
    t.family("mef_config_info", Kind::Gauge, help)
        .sample(&labels, 1.0);
    let help = "1 while every link is up.";
    t.family("mef_ready", Kind::Gauge, help)
        .sample(&[], flag(sample.status.ready));
    let help = "Alarms raised at present.";
    t.family("mef_alarms", Kind::Gauge, help)
        .sample(&[], sample.status.alarms.len() as f64);
    let help = "Memory in use for what flows have buffered.";
    t.family("mef_memory_used_bytes", Kind::Gauge, help)
        .sample(&[], sample.memory_used.0 as f64);
    let help = "The budget for it, router.memory.";
    t.family("mef_memory_limit_bytes", Kind::Gauge, help)
        .sample(&[], sample.memory_limit.0 as f64);
    for (name, &value) in &sample.status.counters {
        if let Some((name, kind, help)) = whole_router(name) {
            t.family(&name, kind, help).count(&[], value);
        }
    }
    let split = sample.status.counters.get("flows").copied().unwrap_or(0);
    let datagram: u64 = sample.links.iter().map(|l| l.datagram_flows).sum();
    let help = "Flows by mode: split ones, and those with datagrams that wait for a link.";
    t.family("mef_flows", Kind::Gauge, help)
        .count(&[("mode", "split")], split)
        .count(&[("mode", "datagram")], datagram);
    queue_wait(&mut t, sample);
    for (name, kind, help, value) in PORTS {
        t.family(name, *kind, help);
        for p in &sample.ports {
            t.sample(&[("port", &p.port)], value(p));
        }
    }
    for (name, kind, help, value) in LINKS {
        t.family(name, *kind, help);
        for l in &sample.links {
            t.sample(&[("link", &l.peer)], value(l));
        }
    }
    for (name, kind, help, value) in WORKERS {
        t.family(name, *kind, help);
        for w in &sample.workers {
            t.sample(&[("worker", &w.worker.to_string())], value(w));
        }
    }
    drops(&mut t, sample);
    process::render(&mut t, sample.status.cpu_s, started);
    t.finish()
}

fn queue_wait(t: &mut Text, sample: &Sample) {
    let h = &sample.queue_wait;
    let help = "Time that datagrams waited in the queues of the lines.";
    t.family("mef_queue_wait_seconds", Kind::Histogram, help);
    for us in WAIT_US {
        let bound = seconds(us).to_string();
        t.with_suffix("_bucket", &[("le", &bound)], h.at_most_us(us) as f64);
    }
    t.with_suffix("_bucket", &[("le", "+Inf")], h.count() as f64);
    t.with_suffix("_sum", &[], seconds(h.sum_us()));
    t.with_suffix("_count", &[], h.count() as f64);
}

fn drops(t: &mut Text, sample: &Sample) {
    let help = "Packets dropped, by the stage that dropped them and why.";
    t.family("mef_dropped_packets_total", Kind::Counter, help);
    for stage in Stage::ALL {
        for reason in DropReason::ALL {
            let labels = [("stage", stage.as_str()), ("reason", reason.as_str())];
            t.count(&labels, sample.drops.get(*stage, *reason));
        }
    }
    let help = "Packets that came in at a port and were dropped, by reason.";
    t.family("mef_port_dropped_packets_total", Kind::Counter, help);
    for (p, id) in sample.ports.iter().zip(0u16..) {
        by_reason(t, ("port", &p.port), sample.drops.of_port(id));
    }
    let help = "Packets that came over a link, or were to take it, and were dropped, by reason.";
    t.family("mef_link_dropped_packets_total", Kind::Counter, help);
    for (l, id) in sample.links.iter().zip(0u16..) {
        by_reason(t, ("link", &l.peer), sample.drops.of_link(id));
    }
}

fn by_reason(t: &mut Text, place: (&str, &str), counts: Option<&ByReason>) {
    for (reason, n) in DropReason::ALL.iter().zip(counts.into_iter().flatten()) {
        t.count(&[place, ("reason", reason.as_str())], *n);
    }
}
