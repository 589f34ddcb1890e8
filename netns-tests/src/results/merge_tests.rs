//! Outcomes made by hand, whose figures are known.

use super::*;
use crate::load::{FlowError, ProbeReceived, ProbeSent};

const ORIGIN: u64 = 1_000 * BUCKET_NS + BUCKET_NS / 2;

fn at(seconds: f64) -> u64 {
    ORIGIN + (seconds * 1e9) as u64
}

fn client(id: u64, kind: FlowKind, size: u64, start_s: f64) -> ClientFlow {
    ClientFlow {
        id,
        kind,
        size,
        rate_bps: 0,
        duration_ms: 0,
        connect_ns: Some(at(start_s)),
        connected_ns: Some(at(start_s + 0.2)),
        end_ns: Some(at(start_s + 9.0)),
        complete: true,
        cut: false,
        error: None,
    }
}

fn received(
    id: u64,
    kind: FlowKind,
    size: u64,
    start_s: f64,
    first_s: f64,
    buckets: Vec<u64>,
) -> ReceivedFlow {
    let bucket0 = at(first_s) / BUCKET_NS;
    ReceivedFlow {
        id,
        kind,
        size,
        connect_ns: at(start_s),
        first_ns: Some(at(first_s)),
        last_ns: Some((bucket0 + buckets.len() as u64) * BUCKET_NS - BUCKET_NS / 2),
        bytes: buckets.iter().sum(),
        payload_ok: true,
        complete: true,
        sha256: Some("aa".into()),
        bucket0,
        buckets,
        error: None,
    }
}

fn sent(id: u64, retransmitted: u64) -> SentFlow {
    SentFlow {
        id,
        bytes: 0,
        retransmitted,
        rtt_us: 0,
        sha256: Some("aa".into()),
    }
}

fn input(outcomes: &[AgentOutcome]) -> MergeInput<'_> {
    MergeInput {
        transport: "mef",
        repeat: 3,
        open: Some("early"),
        variant: "1% loss",
        loss: 0.01,
        rate_bps: 100e6,
        seed: 9,
        origin_ns: ORIGIN,
        seconds: 9.0,
        tail: None,
        outcomes,
        wan: Wan::default(),
        router: Router::default(),
        queue_series: None,
    }
}

#[test]
fn the_tail_is_the_last_two_thirds_at_most_30_s_and_settled() {
    assert_eq!(tail_window(15.0, 0.0), (5.0, 15.0));
    assert_eq!(tail_window(60.0, 0.0), (30.0, 60.0));
    assert_eq!(tail_window(6.0, 3.0), (4.0, 6.0));
    assert_eq!(tail_window(3.0, 2.5), (1.0, 3.0));
}

#[test]
fn two_bulk_flows_share_the_tail() {
    // 1 MB per 100 ms (80 Mbit/s) and half of it, all the time; the first 3 s of 9 are not the tail.
    let outcomes = [
        AgentOutcome {
            clients: vec![
                client(1, FlowKind::Bulk, 0, 0.0),
                client(2, FlowKind::Bulk, 0, 0.0),
            ],
            sent: vec![sent(1, 7), sent(2, 5)],
            ..AgentOutcome::default()
        },
        AgentOutcome {
            received: vec![
                received(1, FlowKind::Bulk, 0, 0.0, 0.0, vec![1_000_000; 95]),
                received(2, FlowKind::Bulk, 0, 0.0, 0.0, vec![500_000; 95]),
            ],
            ..AgentOutcome::default()
        },
    ];
    let run = merge(&input(&outcomes));
    assert_eq!(run.tail_seconds, 6.0);
    assert!((run.goodput_bps - 120e6).abs() < 1.0, "{}", run.goodput_bps);
    assert!((run.goodput_from_connect_bps - 120e6).abs() < 1.0);
    assert!((run.jain - 0.9).abs() < 1e-9);
    assert!((run.flows[1].goodput_bps - 40e6).abs() < 1.0);
    assert_eq!(run.flows.iter().map(|f| f.retransmitted).sum::<u64>(), 12);
    assert!((run.ceiling_bps - 100e6 * 1448.0 / 1514.0 * 0.99).abs() < 1.0);
    assert_eq!(run.errors, Vec::<String>::new());
    // The origin lies in the middle of a bucket.
    assert!((run.series.start_s + 0.05).abs() < 1e-9);
    assert_eq!(run.series.goodput_bps.len(), 95);
    assert_eq!(run.series.flows.len(), 2);
    assert_eq!(
        (run.repeat, run.open.as_deref(), run.variant.as_str()),
        (3, Some("early"), "1% loss")
    );
}

#[test]
fn slow_start_is_in_from_connect_and_not_in_the_tail() {
    let mut buckets = vec![0; 30];
    buckets.extend(vec![1_000_000; 61]);
    let outcomes = [AgentOutcome {
        clients: vec![client(1, FlowKind::Bulk, 0, 0.0)],
        sent: vec![sent(1, 0)],
        received: vec![received(1, FlowKind::Bulk, 0, 0.0, 0.0, buckets)],
        ..AgentOutcome::default()
    }];
    let run = merge(&input(&outcomes));
    assert!((run.goodput_bps - 80e6).abs() < 1.0);
    assert!((run.goodput_from_connect_bps - 80e6 * 60.5 / 90.0).abs() < 1e5);
}

#[test]
fn a_transfer_is_timed_from_connect_to_the_last_byte() {
    let outcomes = [AgentOutcome {
        clients: vec![client(5, FlowKind::Transfer, 1_500, 2.0)],
        sent: vec![sent(5, 1)],
        received: vec![received(
            5,
            FlowKind::Transfer,
            1_500,
            2.0,
            2.35,
            vec![1_000, 500],
        )],
        ..AgentOutcome::default()
    }];
    let run = merge(&input(&outcomes));
    let f = &run.flows[0];
    assert!((f.seconds - 0.5).abs() < 1e-6, "{}", f.seconds);
    assert!((f.goodput_bps - 24_000.0).abs() < 1.0);
    assert!((f.connect_seconds - 0.2).abs() < 1e-6);
    assert!(f.sha256_ok && f.complete && f.error.is_none());
    assert_eq!(run.tail_seconds, 0.0);
    assert!((run.goodput_bps - 24_000.0).abs() < 1.0);
}

#[test]
fn what_is_wrong_is_said() {
    let mut differs = received(1, FlowKind::Transfer, 10, 0.0, 0.3, vec![10]);
    differs.sha256 = Some("bb".into());
    let mut corrupt = received(2, FlowKind::Transfer, 10, 0.0, 0.3, vec![10]);
    corrupt.payload_ok = false;
    let mut reset = received(6, FlowKind::Bulk, 0, 0.0, 0.3, vec![10]);
    reset.complete = false;
    reset.error = Some(FlowError {
        phase: "receive".into(),
        errno: "ECONNRESET".into(),
    });
    let refused = ClientFlow {
        complete: false,
        error: Some(FlowError {
            phase: "connect".into(),
            errno: "ECONNREFUSED".into(),
        }),
        ..client(3, FlowKind::Transfer, 10, 0.0)
    };
    // The agent stopped before its turn came; the other one's socket could not be made.
    let never = |id| ClientFlow {
        connect_ns: None,
        connected_ns: None,
        end_ns: None,
        complete: false,
        ..client(id, FlowKind::Transfer, 10, 0.0)
    };
    let socket = ClientFlow {
        end_ns: Some(at(0.1)),
        error: Some(FlowError {
            phase: "connect".into(),
            errno: "ENOENT".into(),
        }),
        ..never(8)
    };
    let cut = ClientFlow {
        complete: false,
        cut: true,
        ..client(6, FlowKind::Bulk, 0, 0.0)
    };
    let outcomes = [AgentOutcome {
        name: "h1".into(),
        finish: Finish::Deadline,
        clients: vec![
            client(1, FlowKind::Transfer, 10, 0.0),
            client(2, FlowKind::Transfer, 10, 0.0),
            refused,
            never(4),
            client(5, FlowKind::Transfer, 10, 0.0),
            cut,
            never(7),
            socket,
        ],
        sent: vec![sent(1, 0), sent(2, 0), sent(6, 0)],
        received: vec![differs, corrupt, reset],
        ..AgentOutcome::default()
    }];
    let run = merge(&input(&outcomes));
    let ok: Vec<bool> = run.flows.iter().map(|f| f.sha256_ok).collect();
    assert_eq!(ok, [false, false, false, false, false, true, false, false]);
    let of = |id: u64| run.flows.iter().find(|f| f.id == id).unwrap().error.clone();
    let waited = format!("had not begun: {WAITED}");
    assert_eq!([of(4), of(7)], [Some(waited.clone()), Some(waited)]);
    assert_eq!(
        run.errors,
        [
            "flow 3 (transfer): connect ECONNREFUSED",
            "flow 5 (transfer): nothing arrived",
            "flow 8 (transfer): connect ENOENT",
            "2 flows had not begun: the run was over before their time, or before those ahead of them had ended",
            "h1: the load agent ran into its deadline",
        ]
    );
}

#[test]
fn probes_are_told_apart_and_cut_to_the_tail() {
    let probe = |id, from: f64, n: u64, delay: fn(u64) -> u32| ProbeReceived {
        payload: 64,
        id,
        sent_ns: (0..n).map(|i| at(from) + i * 10_000_000).collect(),
        delay_us: (0..n).map(delay).collect(),
        duplicates: 1,
    };
    let outcomes = [AgentOutcome {
        clients: vec![client(1, FlowKind::Bulk, 0, 0.0)],
        received: vec![received(1, FlowKind::Bulk, 0, 0.0, 0.0, vec![1; 90])],
        probes_sent: vec![ProbeSent {
            id: PROBE_LOADED,
            packets: 900,
            refused: 0,
        }],
        probes_received: vec![
            probe(PROBE_IDLE, -2.0, 100, |_| 100_100),
            // A queue while the flow starts, gone before the tail begins at 3 s.
            probe(PROBE_LOADED, 0.0, 899, |i| {
                if i < 300 {
                    300_000
                } else {
                    101_000
                }
            }),
        ],
        ..AgentOutcome::default()
    }];
    let run = merge(&input(&outcomes));
    assert_eq!(
        (run.probe_idle_p99_us, run.probe_p99_us),
        (100_100, 101_000)
    );
    assert_eq!(
        (run.probe.sent, run.probe.received, run.probe.duplicates),
        (900, 899, 1)
    );
    assert_eq!(run.series.probe_us.iter().map(|p| p.1).max(), Some(300_000));
    assert!((88..=92).contains(&run.series.probe_us.len()));
}

#[test]
fn resampling_keeps_the_longest_delay() {
    assert_eq!(resample(&[1, 9, 2, 3, 4, 5], 0.05, 0.1), [9, 3, 5]);
    assert_eq!(resample(&[5, 7], 0.2, 0.1), [5, 5, 7, 7]);
}

#[test]
fn results_survive_the_file_and_have_the_documented_keys() {
    let results = crate::results::Results {
        topology: "t".into(),
        runs: vec![merge(&input(&[]))],
        ..Default::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.json");
    results.write(&path).unwrap();
    assert_eq!(crate::results::Results::read(&path).unwrap(), results);
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let run = &json["runs"][0];
    for key in [
        "transport",
        "repeat",
        "open",
        "loss",
        "flows",
        "goodput_bps",
        "goodput_from_connect_bps",
        "ceiling_bps",
        "jain",
        "probe_p99_us",
        "probe_idle_p99_us",
        "wan",
        "router",
    ] {
        assert!(!run[key].is_null() || run.get(key).is_some(), "{key}");
    }
    for key in [
        "rate_bps",
        "rtt_us",
        "loss",
        "lateness_p99_us",
        "offered",
        "delivered",
        "queue_drops",
        "loss_drops",
        "queue_p50_us",
        "queue_p95_us",
        "queue_p99_us",
    ] {
        assert!(run["wan"].get(key).is_some(), "wan.{key}");
    }
    for key in ["drops", "queue_p99_us", "cpu_s"] {
        assert!(run["router"].get(key).is_some(), "router.{key}");
    }
}
