//! What a router tells about itself: the rows and their pages, where drops are
//! counted, and the metrics over HTTP, asked while it forwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use mef_dataplane::control::LinkState;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::metrics::{render, MetricsServer};
use mef_dataplane::report::{
    mailbox, FlowState, Mailbox, NeighbourState, Query, Reply, RouteKind, PAGE,
};
use mef_packet::Meta;

use machine::*;

fn settings() -> Settings {
    Settings {
        router: "memory = \"16MiB\"".into(),
        lan: "\"10.{me}.0.1/16\"",
        wan: "\"192.0.2.{me}/30\"",
        rates: ["100Mbit/s", "50Mbit/s"],
        prefixes: "\"10.{other}.0.0/16\"",
        tables: ["[[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"10.{me}.0.9\""; 2].map(str::to_owned),
        hosts: |_| false,
        ..Settings::default()
    }
}

fn up() -> World {
    let w = World::up(settings());
    let Reply::Links(links) = ask(&w, Query::Links) else {
        panic!("no links")
    };
    assert_eq!(links.rows[0].state, LinkState::Up);
    w
}

fn ask(w: &World, query: Query) -> Reply {
    w.sides[0]
        .router
        .report(w.now, Duration::from_secs(3), query)
}

/// A frame comes from host A.
fn send(w: &World, frame: &[u8]) {
    inject(&w.sides[0].lan, frame, Meta::default());
}

fn not_ip() -> Vec<u8> {
    framed(mac(1, 0), HOST_MAC, 0x88b5, b"not IP")
}

fn from_a(dst: [u8; 4], protocol: u8, body: &[u8]) -> Vec<u8> {
    from_host(mac(1, 0), &ip(A, dst, protocol, body))
}

fn syn(from: u16) -> Vec<u8> {
    let syn = Segment::new((A, from), (B, 80), SYN);
    from_host(mac(1, 0), &syn.packet())
}

#[test]
fn thousands_of_flows_come_in_pages_and_each_of_them_once() {
    const FLOWS: u16 = 3 * PAGE as u16 + 7;
    let mut w = up();
    for i in 0..FLOWS {
        send(&w, &syn(10_000 + i));
        w.run(ms(1));
    }
    // A link opens so many connections a second and no more: the last ones wait their turn.
    w.run(Duration::from_secs(2));
    let (mut from, mut pages, mut seen) = (0, 0, BTreeSet::new());
    loop {
        let Reply::Flows(page) = ask(&w, Query::Flows { from }) else {
            panic!("no flows")
        };
        assert!(page.rows.len() <= PAGE);
        for f in &page.rows {
            assert_eq!((f.state, f.mode.as_str()), (FlowState::Opening, "split"));
            assert_eq!((f.peer.as_str(), f.port.as_str()), ("other", "lan"));
            assert_eq!(f.far, "10.2.0.2:80".parse::<SocketAddr>().unwrap());
            assert!(seen.insert(f.host));
        }
        pages += 1;
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!((pages, seen.len()), (4, usize::from(FLOWS)));
    // A mark beyond the end is an empty page.
    let Reply::Flows(page) = ask(&w, Query::Flows { from: u64::MAX }) else {
        panic!("no flows")
    };
    assert!(page.rows.is_empty() && page.next.is_none());
}

#[test]
fn drops_are_counted_where_the_packet_came_in_and_over_which_link() {
    let mut w = up();
    let before = |w: &World| {
        let c = w.sides[0].router.counters();
        (c.total(), c.of_port(0).unwrap().iter().sum::<u64>())
    };
    let (total, lan) = before(&w);
    send(&w, &not_ip());
    // To a host behind the peer, but too large for any link.
    send(&w, &from_a([10, 2, 0, 2], 17, &[0; 1400]));
    send(&w, &from_a([10, 1, 0, 1], 99, &[0; 8]));
    w.run(ms(20));
    let (after_total, after_lan) = before(&w);
    assert_eq!((after_total - total, after_lan - lan), (2, 2));
    let c = w.sides[0].router.counters();
    let unsupported = DropReason::EtherTypeUnsupported;
    assert_eq!(c.of_port(0).unwrap()[unsupported as usize], 1);
    assert_eq!(c.of_port(1).unwrap()[unsupported as usize], 0);
    assert_eq!(c.get(Stage::Ingress, unsupported), 1);
    assert_eq!(c.of_link(0).unwrap().iter().sum::<u64>(), 0);

    // A SYN for a host that nobody answers for ends at the other router, over the link.
    send(&w, &from_a([10, 2, 0, 0], 17, &[0; 8]));
    w.run(ms(50));
    let b = w.sides[1].router.counters();
    let refused = DropReason::DestinationNotAllowed;
    assert_eq!(b.of_link(0).unwrap()[refused as usize], 1, "{b:?}");
    assert_eq!(b.by_reason(refused), 1);
}

#[test]
fn links_ports_routes_and_neighbours_are_what_was_configured_and_seen() {
    let mut w = up();
    send(&w, &arp_request(1));
    w.run(ms(50));
    let Reply::Links(links) = ask(&w, Query::Links) else {
        panic!("no links")
    };
    let [link] = &links.rows[..] else {
        panic!("{links:?}")
    };
    assert_eq!((link.peer.as_str(), link.port.as_str()), ("other", "wan"));
    assert_eq!(link.endpoint, Some("192.0.2.2:4800".parse().unwrap()));
    assert_eq!((link.line_bps, link.rate_bps), (100_000_000, 50_000_000));
    assert!(link.sent_packets > 0 && link.sent_bytes > 60 * link.sent_packets);
    assert!(link.received_bytes > 0 && link.sessions == 1);

    let Reply::Ports(ports) = ask(&w, Query::Ports) else {
        panic!("no ports")
    };
    let [lan, wan] = &ports.rows[..] else {
        panic!("{ports:?}")
    };
    assert_eq!(
        (lan.interface.as_str(), lan.mac.as_str()),
        ("eth0", "02:00:00:00:01:00")
    );
    assert_eq!(
        (lan.line_up_bps, wan.line_down_bps),
        (None, Some(50_000_000))
    );
    assert!(lan.received_packets >= 1 && wan.sent_packets > 0);

    let Reply::Routes(routes) = ask(&w, Query::Routes { from: 0 }) else {
        panic!("no routes")
    };
    let shown: Vec<_> = routes
        .rows
        .iter()
        .map(|r| (r.prefix.as_str(), r.kind, r.via.as_deref(), r.up))
        .collect();
    assert_eq!(
        shown,
        [
            ("10.1.0.0/16", RouteKind::Connected, None, true),
            ("192.0.2.0/30", RouteKind::Connected, None, true),
            ("10.2.0.0/16", RouteKind::Peer, Some("other"), true),
            ("0.0.0.0/0", RouteKind::Static, Some("10.1.0.9"), true),
        ]
    );

    let (mut from, mut known) = (Some(0), Vec::new());
    while let Some(mark) = from {
        let Reply::Neighbours(page) = ask(&w, Query::Neighbours { from: mark }) else {
            panic!("no neighbours")
        };
        known.extend(page.rows);
        from = page.next;
    }
    known.sort_by_key(|n| n.address);
    let shown: Vec<_> = known
        .iter()
        .map(|n| {
            (
                n.port.as_str(),
                n.address.to_string(),
                n.mac.as_deref(),
                n.state,
            )
        })
        .collect();
    let reachable = NeighbourState::Reachable;
    assert_eq!(
        shown,
        [
            (
                "lan",
                "10.1.0.2".to_owned(),
                Some("02:00:00:00:09:09"),
                reachable
            ),
            (
                "wan",
                "192.0.2.2".to_owned(),
                Some("02:00:00:00:02:01"),
                reachable
            ),
        ]
    );
}

/// Names and labels of every sample.
fn series(text: &str) -> BTreeSet<&str> {
    let samples = text.lines().filter(|l| !l.starts_with('#'));
    samples.map(|l| l.rsplit_once(' ').unwrap().0).collect()
}

fn metrics(w: &World) -> String {
    let Reply::Metrics(sample) = ask(w, Query::Metrics) else {
        panic!("no sample")
    };
    render(&sample, SystemTime::UNIX_EPOCH)
}

fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|l| l.strip_prefix(series));
    line.unwrap_or_else(|| panic!("no {series}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn the_same_series_from_the_start_to_the_end_and_no_addresses_in_them() {
    let mut w = World::new(settings());
    let first = metrics(&w);
    assert_eq!(value(&first, "mef_ready"), 0.0);
    assert_eq!(value(&first, "mef_link_up{link=\"other\"}"), 0.0);
    w.run(Duration::from_secs(1));
    for i in 0..20 {
        send(&w, &syn(10_000 + i));
    }
    send(&w, &not_ip());
    send(&w, &from_a([10, 2, 0, 2], 17, &[0; 100]));
    w.run(ms(200));
    let later = metrics(&w);
    assert_eq!(series(&first), series(&later));
    assert!(!later.contains("10.1.0.2") && !later.contains("10000"));
    let explained = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/monitoring/README.md");
    let explained = std::fs::read_to_string(explained).unwrap();
    for family in later.lines().filter_map(|l| l.strip_prefix("# HELP ")) {
        let (name, help) = family.split_once(' ').unwrap();
        assert!(explained.contains(&format!("\n| `{name}` | ")), "{name}");
        assert!(!help.starts_with("See the counter"), "{name} has no help");
    }
    for (series, expected) in [
        ("mef_ready", 1.0),
        ("mef_link_up{link=\"other\"}", 1.0),
        ("mef_flows{mode=\"split\"}", 20.0),
        ("mef_flows{mode=\"datagram\"}", 0.0),
        ("mef_flows_opened_total", 20.0),
        ("mef_datagrams_sent_total", 1.0),
        ("mef_memory_limit_bytes", 16.0 * 1024.0 * 1024.0),
        ("mef_link_capacity_bytes_per_second{link=\"other\"}", 12.5e6),
        ("mef_link_granted_bytes_per_second{link=\"other\"}", 6.25e6),
        ("mef_queue_wait_seconds_count", 1.0),
        ("mef_queue_wait_seconds_bucket{le=\"+Inf\"}", 1.0),
        (
            "mef_dropped_packets_total{stage=\"ingress\",reason=\"ethernet.unsupported_type\"}",
            1.0,
        ),
        (
            "mef_port_dropped_packets_total{port=\"lan\",reason=\"ethernet.unsupported_type\"}",
            1.0,
        ),
        ("process_cpu_seconds_total", 3.0),
    ] {
        assert_eq!(value(&later, series), expected, "{series}");
    }
    let digest = "mef_config_info{router=\"r1\",sha256=\"";
    let at = later.find(digest).unwrap() + digest.len();
    assert!(later[at..at + 64].bytes().all(|b| b.is_ascii_hexdigit()));
}

fn http(address: SocketAddr, say: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(say.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Lets the router forward and answer until `done`.
fn serve_until(w: &mut World, mailbox: &mut Mailbox, done: impl Fn() -> bool) {
    while !done() {
        w.run(ms(1));
        let (now, router) = (w.now, &w.sides[0].router);
        mailbox.answer(true, |q| router.report(now, Duration::ZERO, q));
    }
}

#[test]
fn metrics_are_served_over_http_and_nothing_else_is() {
    let mut w = up();
    let (asker, mut mailbox) = mailbox().unwrap();
    let server = MetricsServer::start("127.0.0.1:0".parse().unwrap(), &asker).unwrap();
    let address = server.address();
    let taken = MetricsServer::start(address, &asker).unwrap_err();
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");

    let client = std::thread::spawn(move || {
        let head = "Host: x\r\n\r\n";
        let good = http(address, &format!("GET /metrics HTTP/1.1\r\n{head}"));
        let (top, body) = good.split_once("\r\n\r\n").unwrap();
        assert!(top.starts_with("HTTP/1.1 200 OK\r\n"), "{top}");
        assert!(
            top.contains("Content-Type: text/plain; version=0.0.4"),
            "{top}"
        );
        assert!(top.contains(&format!("Content-Length: {}\r\n", body.len())));
        assert_eq!(value(body, "mef_ready"), 1.0);
        for (say, status) in [
            ("GET / HTTP/1.1\r\n", "404"),
            ("GET /metricsx HTTP/1.1\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n", "405"),
            ("metrics\r\n", "400"),
            ("GET /metrics SMTP\r\n", "400"),
            ("\u{1}\u{2}\r\n", "400"),
            ("GET /metrics?x=1 HTTP/1.0\r\n", "200"),
        ] {
            let answer = http(address, &format!("{say}{head}"));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{say}: {answer}"
            );
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(9 << 10));
        assert!(http(address, &long).starts_with("HTTP/1.1 431 "));
        // One that says nothing is told so, and does not keep the others from being served.
        let idle: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let good = http(address, &format!("GET /metrics HTTP/1.1\r\n{head}"));
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"));
        for mut stream in idle {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
        }
    });
    serve_until(&mut w, &mut mailbox, || client.is_finished());
    client.join().unwrap();

    drop(mailbox);
    let gone = http(address, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(gone.starts_with("HTTP/1.1 503 "), "{gone}");
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}
