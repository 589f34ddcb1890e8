//! From what the agents of a run delivered to the run's figures.

use std::collections::{BTreeMap, HashMap};

use super::playback::{playback, Playback};
use super::{stats, Flow, Probe, Router, Run, Series, Wan};
use crate::load::{
    AgentOutcome, ClientFlow, Finish, FlowKind, ReceivedFlow, SentFlow, BUCKET_NS, CBR, PROBE_IDLE,
    PROBE_LOADED,
};

/// What the lab knows of a run beside its agents' outcomes.
#[derive(Clone, Debug)]
pub struct MergeInput<'a> {
    pub transport: &'a str,
    pub repeat: u32,
    pub open: Option<&'a str>,
    pub variant: &'a str,
    /// As configured, 0..1, of the direction that carries the payload.
    pub loss: f64,
    /// As configured, of the direction that carries the payload.
    pub rate_bps: f64,
    pub seed: u64,
    /// The agents' common origin, CLOCK_MONOTONIC ns.
    pub origin_ns: u64,
    /// How long the load ran, from the origin.
    pub seconds: f64,
    /// Beginning and end of the tail, seconds from the origin; without it
    /// [`tail_window`] of the flows as they started.
    pub tail: Option<(f64, f64)>,
    /// Every agent's, the idle probe's too.
    pub outcomes: &'a [AgentOutcome],
    pub wan: Wan,
    pub router: Router,
    /// (start in seconds from the origin, step in seconds, longest queueing delay per step in us).
    pub queue_series: Option<(f64, f64, Vec<u64>)>,
}

/// Beginning and end of the window for steady figures, seconds from the
/// origin: the last min(30 s, 2/3 of the run), but not before 1 s after the
/// last bulk flow has started, if that leaves anything.
pub fn tail_window(seconds: f64, last_start_s: f64) -> (f64, f64) {
    let from = seconds - (seconds * 2.0 / 3.0).min(30.0);
    let settled = last_start_s + 1.0;
    if settled < seconds {
        (from.max(settled), seconds)
    } else {
        (from, seconds)
    }
}

/// Errors of single flows are listed up to here.
const ERRORS_KEPT: usize = 20;

/// One run's figures. Never fails: what is missing is counted as not delivered
/// and said in `errors`.
pub fn merge(input: &MergeInput<'_>) -> Run {
    let outcomes = input.outcomes;
    let received: HashMap<u64, &ReceivedFlow> = outcomes
        .iter()
        .flat_map(|o| &o.received)
        .map(|r| (r.id, r))
        .collect();
    let sent: HashMap<u64, &SentFlow> = outcomes
        .iter()
        .flat_map(|o| &o.sent)
        .map(|s| (s.id, s))
        .collect();
    let clients: BTreeMap<u64, &ClientFlow> = outcomes
        .iter()
        .flat_map(|o| &o.clients)
        .map(|c| (c.id, c))
        .collect();

    let since_origin = |ns: u64| (ns as f64 - input.origin_ns as f64) / 1e9;
    let bulk_starts = clients
        .values()
        .filter(|c| c.kind.is_timed())
        .filter_map(|c| c.connect_ns)
        .map(since_origin);
    let last_bulk_start =
        bulk_starts.fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
    let tail = input
        .tail
        .unwrap_or_else(|| tail_window(input.seconds, last_bulk_start.unwrap_or(0.0)));
    let tail_s = (tail.1 - tail.0).max(f64::MIN_POSITIVE);

    let mut errors = Vec::new();
    let mut flows: Vec<Flow> = clients
        .values()
        .map(|c| {
            let r = received.get(&c.id).copied();
            let in_tail = r.map_or(0.0, |r| bytes_between(r, input.origin_ns, tail));
            let flow = flow(
                c,
                r,
                sent.get(&c.id).copied(),
                in_tail * 8.0 / tail_s,
                &since_origin,
            );
            if let Some(e) = flow.error.as_ref().filter(|_| !in_wait(c)) {
                errors.push(format!("flow {} ({}): {e}", c.id, flow.kind));
            }
            flow
        })
        .collect();
    flows.extend(constant(outcomes, input.origin_ns, tail));
    flows.sort_by_key(|f| f.id);
    if errors.len() > ERRORS_KEPT {
        let more = errors.len() - ERRORS_KEPT;
        errors.truncate(ERRORS_KEPT);
        errors.push(format!("{more} more flows failed"));
    }
    let waited = clients.values().filter(|c| in_wait(c)).count();
    if waited > 0 {
        errors.push(format!("{waited} flows had not begun: {WAITED}"));
    }
    for o in outcomes {
        if o.finish == Finish::Deadline {
            errors.push(format!("{}: the load agent ran into its deadline", o.name));
        }
        errors.extend(o.errors.iter().map(|e| format!("{}: {e}", o.name)));
    }

    let bulk: Vec<f64> = flows
        .iter()
        .filter(|f| f.kind == kind_name(FlowKind::Bulk))
        .map(|f| f.goodput_bps)
        .collect();
    let from_connect = goodput_from_connect(input, &clients, &received, !bulk.is_empty());
    // Without flows that last as long as the run the figures cover all of it.
    let endless = |f: &Flow| f.kind != "transfer" && f.kind != "request";
    let probe_window = flows.iter().any(endless).then_some(tail);
    let probe = probe(outcomes, PROBE_LOADED, input.origin_ns, probe_window);
    let probe_idle = probe_of(outcomes, PROBE_IDLE);

    Run {
        transport: input.transport.to_owned(),
        repeat: input.repeat,
        open: input.open.map(str::to_owned),
        variant: input.variant.to_owned(),
        loss: input.loss,
        seed: input.seed,
        seconds: input.seconds,
        tail_seconds: if bulk.is_empty() {
            0.0
        } else {
            tail.1 - tail.0
        },
        goodput_bps: if bulk.is_empty() {
            from_connect
        } else {
            bulk.iter().sum()
        },
        goodput_from_connect_bps: from_connect,
        ceiling_bps: stats::ceiling(input.rate_bps, input.loss),
        jain: stats::jain(&bulk),
        probe_p99_us: probe.p99_us,
        probe_idle_p99_us: probe_idle.p99_us,
        probe,
        probe_idle,
        wan: input.wan.clone(),
        router: input.router.clone(),
        series: series(input, &received, bulk.len() > 1),
        steps: Vec::new(),
        flows,
        errors,
    }
}

/// The name of a kind in the JSON.
pub fn kind_name(kind: FlowKind) -> &'static str {
    match kind {
        FlowKind::Bulk => "bulk",
        FlowKind::Transfer => "transfer",
        FlowKind::Request => "request",
        FlowKind::Stream => "stream",
    }
}

/// Why a flow of the plan was never begun.
const WAITED: &str = "the run was over before their time, or before those ahead of them had ended";

/// It was planned, but the agent stopped before its turn came: nothing of it has failed.
fn in_wait(client: &ClientFlow) -> bool {
    client.connect_ns.is_none() && client.end_ns.is_none() && client.error.is_none()
}

fn flow(
    client: &ClientFlow,
    received: Option<&ReceivedFlow>,
    sent: Option<&SentFlow>,
    tail_bps: f64,
    since_origin: &dyn Fn(u64) -> f64,
) -> Flow {
    let between = |from: Option<u64>, to: Option<u64>| match (from, to) {
        (Some(from), Some(to)) => to.saturating_sub(from) as f64 / 1e9,
        _ => 0.0,
    };
    let bytes = received.map_or(0, |r| r.bytes);
    let seconds = between(client.connect_ns, received.and_then(|r| r.last_ns));
    let bulk = client.kind.is_timed();
    // A bulk flow cut off by its sender has not failed; its receiver saw a reset.
    let complete = client.cut || (client.complete && received.is_some_and(|r| r.complete));
    let hashes = (
        received.and_then(|r| r.sha256.as_deref()),
        sent.and_then(|s| s.sha256.as_deref()),
    );
    let hash_ok = client.cut || !matches!(hashes, (Some(a), Some(b)) if a != b);
    let error = match (&client.error, received.and_then(|r| r.error.as_ref())) {
        _ if in_wait(client) => Some(format!("had not begun: {WAITED}")),
        (Some(e), _) => Some(format!("{} {}", e.phase, e.errno)),
        (None, Some(e)) if !client.cut => Some(format!("receiver: {} {}", e.phase, e.errno)),
        _ if received.is_none() => Some("nothing arrived".to_owned()),
        _ if client.end_ns.is_none() => Some("had not ended when the run did".to_owned()),
        _ => None,
    };
    Flow {
        id: client.id,
        kind: kind_name(client.kind).to_owned(),
        size: client.size,
        bytes,
        goodput_bps: match (bulk, seconds > 0.0) {
            (true, _) => tail_bps,
            (false, true) => bytes as f64 * 8.0 / seconds,
            (false, false) => 0.0,
        },
        seconds,
        connect_seconds: between(client.connect_ns, client.connected_ns),
        sha256_ok: complete && hash_ok && received.is_some_and(|r| r.payload_ok),
        retransmitted: sent.map_or(0, |s| s.retransmitted),
        complete,
        start_s: client.connect_ns.map_or(0.0, since_origin),
        error,
        playback: received
            .filter(|_| client.rate_bps > 0)
            .map(|r| play(r, client)),
        datagrams: None,
    }
}

/// CBR flows, as their datagrams arrived.
fn constant(outcomes: &[AgentOutcome], origin_ns: u64, tail: (f64, f64)) -> Vec<Flow> {
    let ids: std::collections::BTreeSet<u64> = outcomes
        .iter()
        .flat_map(|o| &o.probes_sent)
        .map(|p| p.id)
        .filter(|id| *id > CBR)
        .collect();
    let flow = |id: u64| {
        let received = || outcomes.iter().flat_map(|o| &o.probes_received);
        let of_id = || received().filter(move |p| p.id == id);
        let first = of_id().flat_map(|p| p.sent_ns.iter()).min().copied();
        let inside = |ns: &&u64| {
            let s = (**ns as f64 - origin_ns as f64) / 1e9;
            s >= tail.0 && s < tail.1
        };
        let payload = of_id().map(|p| p.payload).max().unwrap_or(0);
        let count = |n: usize| n as f64 * payload as f64 * 8.0 / (tail.1 - tail.0);
        let in_tail = of_id()
            .flat_map(|p| p.sent_ns.iter())
            .filter(inside)
            .count();
        let datagrams = probe(outcomes, id, origin_ns, Some(tail));
        Flow {
            id: id - CBR,
            kind: "cbr".to_owned(),
            bytes: datagrams.received * payload,
            goodput_bps: count(in_tail),
            complete: datagrams.received > 0,
            sha256_ok: datagrams.received > 0,
            start_s: first.map_or(0.0, |ns| (ns as f64 - origin_ns as f64) / 1e9),
            error: (datagrams.received == 0).then(|| "nothing arrived".to_owned()),
            datagrams: Some(datagrams),
            ..Flow::default()
        }
    };
    ids.into_iter().map(flow).collect()
}

/// What somebody saw who watched a stream as it came.
fn play(received: &ReceivedFlow, client: &ClientFlow) -> Playback {
    let connect = client.connect_ns.unwrap_or_default();
    let begin = received.bucket0 as f64 * BUCKET_NS as f64 - connect as f64;
    // What counts is the media's own time: what was sent after the end of the run does not.
    let end = client.duration_ms as f64 / 1e3;
    playback(&received.buckets, begin / 1e9, client.rate_bps as f64, end)
}

/// Payload received within a window of seconds from the origin; a bucket that
/// the window cuts counts in proportion.
fn bytes_between(flow: &ReceivedFlow, origin_ns: u64, window: (f64, f64)) -> f64 {
    let at = |s: f64| origin_ns as f64 + s * 1e9;
    let (from, to) = (at(window.0), at(window.1));
    let width = BUCKET_NS as f64;
    flow.buckets
        .iter()
        .zip(flow.bucket0..)
        .map(|(bytes, bucket)| {
            let begins = bucket as f64 * width;
            let inside = (begins + width).min(to) - begins.max(from);
            *bytes as f64 * (inside / width).clamp(0.0, 1.0)
        })
        .sum()
}

fn goodput_from_connect(
    input: &MergeInput<'_>,
    clients: &BTreeMap<u64, &ClientFlow>,
    received: &HashMap<u64, &ReceivedFlow>,
    bulk: bool,
) -> f64 {
    let Some(first) = clients.values().filter_map(|c| c.connect_ns).min() else {
        return 0.0;
    };
    let from = (first as f64 - input.origin_ns as f64) / 1e9;
    let last = received
        .values()
        .filter_map(|r| r.last_ns)
        .max()
        .unwrap_or(first);
    let to = if bulk {
        input.seconds
    } else {
        (last as f64 - input.origin_ns as f64) / 1e9
    };
    if to <= from {
        return 0.0;
    }
    let bytes: f64 = if bulk {
        received
            .values()
            .map(|r| bytes_between(r, input.origin_ns, (from, to)))
            .sum()
    } else {
        received.values().map(|r| r.bytes as f64).sum()
    };
    bytes * 8.0 / (to - from)
}

fn probe_of(outcomes: &[AgentOutcome], id: u64) -> Probe {
    probe(outcomes, id, 0, None)
}

/// Counts are of the whole probe, delays of what was sent within the window.
fn probe(outcomes: &[AgentOutcome], id: u64, origin_ns: u64, window: Option<(f64, f64)>) -> Probe {
    let of_id = || {
        outcomes
            .iter()
            .flat_map(|o| &o.probes_received)
            .filter(|p| p.id == id)
    };
    let inside = |sent_ns: u64| {
        window.is_none_or(|(from, to)| {
            let s = (sent_ns as f64 - origin_ns as f64) / 1e9;
            s >= from && s < to
        })
    };
    let mut delays: Vec<f64> = of_id()
        .flat_map(|p| p.sent_ns.iter().zip(&p.delay_us))
        .filter(|(sent_ns, _)| inside(**sent_ns))
        .map(|(_, delay)| f64::from(*delay))
        .collect();
    delays.sort_by(f64::total_cmp);
    let at = |q| stats::quantile_sorted(&delays, q).unwrap_or(0.0).round() as u64;
    Probe {
        sent: outcomes
            .iter()
            .flat_map(|o| &o.probes_sent)
            .filter(|p| p.id == id)
            .map(|p| p.packets)
            .sum(),
        received: of_id().map(|p| p.delay_us.len() as u64).sum(),
        duplicates: of_id().map(|p| p.duplicates).sum(),
        p50_us: at(0.5),
        p95_us: at(0.95),
        p99_us: at(0.99),
        p999_us: at(0.999),
        max_us: at(1.0),
    }
}

fn series(input: &MergeInput<'_>, received: &HashMap<u64, &ReceivedFlow>, by_flow: bool) -> Series {
    let some = || received.values().filter(|r| !r.buckets.is_empty());
    let first = some().map(|r| r.bucket0).min().unwrap_or(0);
    let end = some()
        .map(|r| r.bucket0 + r.buckets.len() as u64)
        .max()
        .unwrap_or(first);
    let interval_s = BUCKET_NS as f64 / 1e9;
    let steps = (end - first) as usize;
    let mut all = vec![0.0; steps];
    let mut flows = BTreeMap::new();
    for r in some() {
        let mut own = vec![0.0; if by_flow { steps } else { 0 }];
        let skip = (r.bucket0 - first) as usize;
        for (i, bytes) in r.buckets.iter().enumerate() {
            let bps = *bytes as f64 * 8.0 / interval_s;
            if let Some(sum) = all.get_mut(skip + i) {
                *sum += bps;
            }
            if let Some(own) = own.get_mut(skip + i) {
                *own = bps;
            }
        }
        if by_flow && r.kind == FlowKind::Bulk {
            flows.insert(r.id, own);
        }
    }
    let (queue_start_s, queue_us) = match &input.queue_series {
        Some((start, step, values)) => (*start, resample(values, *step, interval_s)),
        None => (0.0, Vec::new()),
    };
    Series {
        interval_s,
        start_s: if steps == 0 {
            0.0
        } else {
            (first as f64 * BUCKET_NS as f64 - input.origin_ns as f64) / 1e9
        },
        goodput_bps: all,
        flows,
        queue_us,
        queue_start_s,
        estimates: Vec::new(),
        probe_us: worst_per_step(input, interval_s),
    }
}

/// The longest of each `to` seconds of a series with a step of `from` seconds.
fn resample(values: &[u64], from: f64, to: f64) -> Vec<u64> {
    let mut out: Vec<u64> = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let step = ((i as f64 + 0.5) * from / to) as usize;
        if out.len() <= step {
            // A step longer than ours is held.
            let held = if from > to { *value } else { 0 };
            out.resize(step + 1, held);
        }
        if let Some(longest) = out.get_mut(step) {
            *longest = (*longest).max(*value);
        }
    }
    out
}

fn worst_per_step(input: &MergeInput<'_>, interval_s: f64) -> Vec<(f64, u32)> {
    let mut worst: BTreeMap<i64, (f64, u32)> = BTreeMap::new();
    let probes = input.outcomes.iter().flat_map(|o| &o.probes_received);
    for p in probes.filter(|p| p.id == PROBE_LOADED) {
        for (sent_ns, delay) in p.sent_ns.iter().zip(&p.delay_us) {
            let s = (*sent_ns as f64 - input.origin_ns as f64) / 1e9;
            let step = worst
                .entry((s / interval_s).floor() as i64)
                .or_insert((s, *delay));
            if *delay > step.1 {
                *step = (s, *delay);
            }
        }
    }
    worst.into_values().collect()
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
