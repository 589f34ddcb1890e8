//! Whole agents on the loopback interface, server and client in this process.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::thread::JoinHandle;

use super::*;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Running {
    tcp: SocketAddr,
    udp: SocketAddr,
    stopper: Stopper,
    thread: JoinHandle<AgentOutcome>,
}

fn server(expect_flows: Option<u64>) -> Running {
    let agent = Agent::bind(AgentSpec {
        name: "server".into(),
        servers: vec![
            ServerSpec::Tcp { listen: ANY },
            ServerSpec::Udp { listen: ANY },
        ],
        expect_flows,
        ..AgentSpec::default()
    })
    .unwrap();
    let [tcp, udp] = *agent.addresses() else {
        panic!("two servers have two addresses");
    };
    let stopper = agent.stopper();
    let thread = std::thread::spawn(move || agent.run(|_| ()).unwrap());
    Running {
        tcp,
        udp,
        stopper,
        thread,
    }
}

fn run(flows: Vec<FlowSpec>, probes: Vec<ProbeSpec>) -> AgentOutcome {
    Agent::bind(AgentSpec {
        name: "client".into(),
        flows,
        probes,
        ..AgentSpec::default()
    })
    .unwrap()
    .run(|_| ())
    .unwrap()
}

fn flow(id: u64, target: SocketAddr, kind: FlowKind, size: u64) -> FlowSpec {
    FlowSpec {
        id,
        target,
        kind,
        size,
        rate_bps: 0,
        duration_ms: 1_000,
        grace_ms: 2_000,
        start: Start::AtMs(0),
        timeout_ms: Some(20_000),
        congestion: Some("cubic".into()),
        source: None,
        source_port: None,
        hash: true,
        seed: 42,
    }
}

#[test]
fn bulk_transfers_and_a_request_arrive_whole_and_are_accounted() {
    let server = server(Some(22));
    let mut flows = vec![flow(1, server.tcp, FlowKind::Bulk, 0)];
    for i in 0..20 {
        let size = if i % 2 == 0 { 100_000 } else { 1_000_001 };
        flows.push(FlowSpec {
            start: if i == 0 {
                Start::AtMs(10)
            } else {
                Start::AfterPreviousMs(1)
            },
            ..flow(100 + i, server.tcp, FlowKind::Transfer, size)
        });
    }
    flows.push(FlowSpec {
        start: Start::AtMs(50),
        ..flow(200, server.tcp, FlowKind::Request, 3_000_000)
    });
    let client = run(flows, vec![]);
    let served = server.thread.join().unwrap();

    assert_eq!(client.finish, Finish::Complete);
    assert_eq!(served.finish, Finish::Complete);
    assert_eq!(served.errors, Vec::<String>::new());
    assert_eq!(client.clients.len(), 22);
    for c in &client.clients {
        assert!(c.complete && !c.cut && c.error.is_none(), "{c:?}");
        assert!(c.connect_ns <= c.connected_ns && c.connected_ns <= c.end_ns);
    }
    let sent: HashMap<u64, &SentFlow> = client
        .sent
        .iter()
        .chain(&served.sent)
        .map(|s| (s.id, s))
        .collect();
    let received: Vec<&ReceivedFlow> = client.received.iter().chain(&served.received).collect();
    assert_eq!(received.len(), 22);
    for r in received {
        assert!(r.complete && r.payload_ok && r.error.is_none(), "{r:?}");
        assert!(r.sha256.is_some());
        assert_eq!(r.sha256, sent[&r.id].sha256, "flow {}", r.id);
        assert_eq!(r.bytes, sent[&r.id].bytes);
        assert_eq!(r.buckets.iter().sum::<u64>(), r.bytes);
        assert!(r.size == 0 || r.bytes == r.size);
        assert!(Some(r.connect_ns) < r.first_ns && r.first_ns <= r.last_ns);
    }
    let bulk = served
        .received
        .iter()
        .find(|r| r.kind == FlowKind::Bulk)
        .unwrap();
    let lasted = bulk.last_ns.unwrap() - bulk.connect_ns;
    assert!(
        (900_000_000..3_000_000_000).contains(&lasted),
        "bulk took {lasted} ns"
    );
    assert!(client.received.iter().all(|r| r.kind == FlowKind::Request));

    // Chained flows do not overlap: the next one starts when the receiver has the one before.
    let chained: Vec<&ClientFlow> = client
        .clients
        .iter()
        .filter(|c| (100..200).contains(&c.id))
        .collect();
    for pair in chained.windows(2) {
        assert!(pair[0].end_ns.unwrap() + 1_000_000 <= pair[1].connect_ns.unwrap());
    }
}

#[test]
fn the_probe_measures_delay_and_loses_nothing_on_loopback() {
    let server = server(None);
    let probe = ProbeSpec {
        id: PROBE_IDLE,
        target: server.udp,
        start_ms: 0,
        duration_ms: 300,
        interval_us: 5_000,
        payload: 64,
    };
    let client = run(vec![], vec![probe]);
    server.stopper.stop();
    let served = server.thread.join().unwrap();

    assert_eq!(served.finish, Finish::Signal);
    let sent = &client.probes_sent[0];
    assert_eq!((sent.packets, sent.refused), (60, 0));
    let got = &served.probes_received[0];
    assert_eq!(
        (got.id, got.delay_us.len(), got.duplicates),
        (PROBE_IDLE, 60, 0)
    );
    let mut delays = got.delay_us.clone();
    delays.sort_unstable();
    // Far above what loopback takes, far below a wrong clock or a missing subtraction.
    assert!(delays[30] < 20_000, "median {} us", delays[30]);
    assert!(got.sent_ns.windows(2).all(|w| w[0] < w[1]));
}

#[test]
fn a_refused_flow_says_so_and_the_next_one_still_runs() {
    let server = server(Some(1));
    let closed = TcpListener::bind(ANY).unwrap().local_addr().unwrap();
    let client = run(
        vec![
            flow(1, closed, FlowKind::Transfer, 1_000),
            FlowSpec {
                start: Start::AfterPreviousMs(0),
                ..flow(2, server.tcp, FlowKind::Transfer, 1_000)
            },
            FlowSpec {
                congestion: Some("nosuch".into()),
                ..flow(3, server.tcp, FlowKind::Transfer, 1_000)
            },
        ],
        vec![],
    );
    let errors: HashMap<u64, Option<FlowError>> = client
        .clients
        .iter()
        .map(|c| (c.id, c.error.clone()))
        .collect();
    let refused = errors[&1].clone().unwrap();
    assert_eq!(
        (refused.phase.as_str(), refused.errno.as_str()),
        ("connect", "ECONNREFUSED")
    );
    assert_eq!(errors[&2], None);
    assert_eq!(errors[&3].clone().unwrap().errno, "ENOENT");
    assert!(server.thread.join().unwrap().received[0].complete);
}

#[test]
fn a_flow_to_somebody_who_never_reads_ends_at_its_timeout() {
    let silent = TcpListener::bind(ANY).unwrap();
    let target = silent.local_addr().unwrap();
    let client = run(
        vec![FlowSpec {
            timeout_ms: Some(300),
            ..flow(1, target, FlowKind::Transfer, 100_000_000)
        }],
        vec![],
    );
    let c = &client.clients[0];
    assert_eq!(c.error.clone().unwrap().errno, "TIMEOUT");
    assert!(!c.complete);
    assert!(client.sent[0].bytes < 100_000_000);
}

#[test]
fn a_bulk_flow_whose_rest_does_not_arrive_is_cut_and_is_no_error() {
    let silent = TcpListener::bind(ANY).unwrap();
    let target = silent.local_addr().unwrap();
    let client = run(
        vec![FlowSpec {
            duration_ms: 200,
            grace_ms: 200,
            timeout_ms: None,
            ..flow(1, target, FlowKind::Bulk, 0)
        }],
        vec![],
    );
    let c = &client.clients[0];
    assert!(c.cut && !c.complete && c.error.is_none(), "{c:?}");
}

#[test]
fn an_agent_that_is_stopped_delivers_what_it_has() {
    let server = server(None);
    let agent = Agent::bind(AgentSpec {
        flows: vec![FlowSpec {
            duration_ms: 60_000,
            timeout_ms: None,
            ..flow(1, server.tcp, FlowKind::Bulk, 0)
        }],
        ..AgentSpec::default()
    })
    .unwrap();
    let stopper = agent.stopper();
    let mut seen = 0;
    let client = agent.run(|p| {
        seen += 1;
        if seen == 2 {
            assert!(p.seconds > 0.3);
            stopper.stop();
        }
    });
    server.stopper.stop();
    let served = server.thread.join().unwrap();
    assert_eq!(client.unwrap().finish, Finish::Signal);
    let r = &served.received[0];
    assert!(r.bytes > 0 && r.payload_ok && r.last_ns.is_some());
}

#[test]
fn the_deadline_ends_an_agent() {
    let agent = Agent::bind(AgentSpec {
        servers: vec![ServerSpec::Tcp { listen: ANY }],
        deadline_ns: Some(sys::now_ns() + 100_000_000),
        ..AgentSpec::default()
    })
    .unwrap();
    assert_eq!(agent.run(|_| ()).unwrap().finish, Finish::Deadline);
}

#[test]
fn strangers_are_reported_and_leave_no_flow() {
    use std::io::Write as _;
    let server = server(Some(1));
    let mut stranger = std::net::TcpStream::connect(server.tcp).unwrap();
    stranger.write_all(&[b'x'; 64]).unwrap();
    let served = server.thread.join().unwrap();
    assert!(served.received.is_empty());
    assert!(
        served.errors[0].contains("not a connection of the load tool"),
        "{:?}",
        served.errors
    );
}

#[test]
fn specification_and_events_have_the_documented_json() {
    let spec: AgentSpec = serde_json::from_str(
        r#"{"name":"h1","origin_ns":5,
            "servers":[{"proto":"tcp","listen":"10.1.0.2:5201"}],
            "flows":[{"id":1,"target":"10.2.0.2:5201","kind":"transfer","size":1000,"start":{"after_previous_ms":20}}],
            "probes":[{"id":2,"target":"10.2.0.2:5202","duration_ms":1000}]}"#,
    )
    .unwrap();
    assert_eq!(spec.flows[0].start, Start::AfterPreviousMs(20));
    assert_eq!(
        (spec.probes[0].interval_us, spec.probes[0].payload),
        (10_000, 64)
    );
    assert!(serde_json::from_str::<AgentSpec>(r#"{"flow":[]}"#).is_err());
    let line = serde_json::to_string(&Event::Listening {
        addresses: vec![ANY],
    })
    .unwrap();
    assert_eq!(line, r#"{"event":"listening","addresses":["127.0.0.1:0"]}"#);
    let done = Event::Done(AgentOutcome::default());
    let line = serde_json::to_string(&done).unwrap();
    assert!(line.starts_with(r#"{"event":"done""#));
    assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), done);
}
