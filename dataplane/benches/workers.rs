//! What a second worker brings: plain forwarding as in `forward`, by one worker and
//! by two at a time, each on a thread and rings of its own, beside what a bare
//! forwarder makes of a second core.
//!
//! ```text
//!  generator -> net_ring -> [ worker 0 ] -> net_null        rings between the workers, unused
//!  generator -> net_ring -> [ worker 1 ] -> net_null        while flows come where they belong
//! ```
//! `cargo bench -p mef-dataplane --features dpdk --bench workers -- [ROUTES [FLOWS [SECONDS [LEAST]]]]`.
//! One and two workers take turns, four rounds of SECONDS each; fails where two carry less than
//! `LEAST` hundredths of what one carries, if that is given.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "common/mod.rs"]
mod common;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::{arp_request, put, ring, seed, sink, udp_frame, Bench, Joined};
use ipnet::{IpNet, Ipv4Net};
use mef_dataplane::config::{self, Config, StaticRoute, Via};
use mef_dataplane::router::{Router, BATCH};
use mef_dataplane::workers::{Crew, Shared};
use mef_io::dpdk::DpdkBuf;
use mef_io::{os, Port};
use mef_packet::{FlowEnd, FlowHash, PortId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const KEY: u64 = 0x9e37_79b9_7f4a_7c15;
/// The IP packet of the smallest frame.
const SIZE: usize = 46;
const ROUNDS: usize = 4;

#[derive(Clone, Copy)]
struct Size {
    routes: usize,
    flows: usize,
    time: Duration,
}

/// Where flows go: networks of 256 addresses.
fn prefixes(count: usize) -> Vec<Ipv4Net> {
    let mut random = SmallRng::seed_from_u64(1);
    let mut net = || Ipv4Addr::from(random.random_range(0x0b00_0000..0x7f00_0000u32) & !0xff);
    (0..count)
        .map(|_| Ipv4Net::new(net(), 24).unwrap())
        .collect()
}

fn configuration(prefixes: &[Ipv4Net]) -> Config {
    let text = "[router]\nprivate_key = \"a.key\"\n\
        [[port]]\nname = \"in\"\ninterface = \"in\"\naddresses = [\"198.51.100.1/24\"]\n\
        [[port]]\nname = \"out\"\ninterface = \"out\"\naddresses = [\"192.0.2.1/24\"]\n";
    let mut config = config::parse(text, Path::new("/bench.toml"), &Bench(1)).unwrap();
    let route = |p: &Ipv4Net| StaticRoute {
        prefix: IpNet::V4(*p),
        via: Via::Gateway {
            port: PortId(1),
            address: GATEWAY.into(),
        },
    };
    config.routes = prefixes.iter().map(route).collect();
    config
}

/// The frames of the flows that belong to one of `workers`.
fn frames(size: Size, prefixes: &[Ipv4Net], dst: [u8; 6], me: u16, workers: u16) -> Vec<Vec<u8>> {
    let (hash, mut random) = (FlowHash::new(KEY), SmallRng::seed_from_u64(2));
    let mut frames = Vec::new();
    for _ in 0..size.flows {
        let net = prefixes[random.random_range(0..prefixes.len())];
        let to = Ipv4Addr::from(u32::from(net.network()) | random.random_range(0..256));
        let from = Ipv4Addr::from(0x0a00_0000 | random.random_range(0..1 << 24));
        let ports: (u16, u16) = (random.random(), random.random());
        let end = |address: Ipv4Addr, port| FlowEnd {
            address: address.into(),
            port,
        };
        let (a, b) = (end(from, ports.0), end(to, ports.1));
        if hash.worker(a, b, 17, u32::from(workers)) == u32::from(me) {
            frames.push(udp_frame(dst, (from, ports.0), (to, ports.1), SIZE));
        }
    }
    frames
}

/// Cycles per packet of one worker, all in all and of the forwarding alone, median of its batches.
fn worker(size: Size, crew: Option<Crew<DpdkBuf>>, first: u32, begin: &Barrier, bare: bool) -> u64 {
    let (me, workers) = crew
        .as_ref()
        .map_or((0, 1), |c| (c.me(), c.shared.workers()));
    let prefixes = prefixes(size.routes);
    let (generator, network) = (ring(first), ring(first + 1));
    let mut input = Joined::new(&generator, &sink(first), 1);
    let output = Joined::new(&network, &sink(first + 1), 2);
    let frames = frames(size, &prefixes, input.caps().mac, me, workers);
    let mut cycles: Vec<u64> = Vec::new();
    let mut measure = |step: &mut dyn FnMut()| {
        begin.wait();
        let start = Instant::now();
        while start.elapsed() < size.time {
            for batch in frames.chunks_exact(BATCH) {
                put(&generator, batch);
                let before = os::cycles();
                step();
                cycles.push((os::cycles() - before) / BATCH as u64);
            }
        }
    };
    if bare {
        let mut batch = Vec::new();
        measure(&mut || {
            input.rx(&mut batch, BATCH);
            input.tx(&mut batch);
        });
    } else {
        let (now, mac) = (os::monotonic_now(), output.caps().mac);
        let ports = vec![input, output];
        let config = configuration(&prefixes);
        let mut router = Router::with_crew(now, config, ports, seed(7), crew).unwrap();
        put(
            &network,
            &[arp_request(mac, OWN, [2, 0, 0, 0, 1, 1], GATEWAY)],
        );
        router.poll(now);
        measure(&mut || {
            router.poll(os::monotonic_now());
        });
        let drops = router.counters().named();
        assert!(drops.is_empty(), "packets were dropped: {drops:?}");
        assert_eq!(router.crew_stats().given, 0);
    }
    cycles.drain(..(frames.len() / BATCH).min(cycles.len() / 2));
    cycles.sort_unstable();
    cycles[cycles.len() / 2]
}

/// So many workers at the same time; cycles per packet of each.
fn run(size: Size, workers: u16, bare: bool) -> Vec<u64> {
    let shared = Arc::new(Shared::new(workers, 2, 0, KEY));
    let bells = (0..workers).map(|_| Arc::default()).collect();
    let crew = Crew::all(&shared, bells);
    let begin = Barrier::new(usize::from(workers));
    let begin = &begin;
    std::thread::scope(|scope| {
        let start = |crew: Crew<DpdkBuf>| {
            let first = 2 * u32::from(crew.me());
            // One alone is a router as it is without others.
            let crew = (workers > 1).then_some(crew);
            scope.spawn(move || worker(size, crew, first, begin, bare))
        };
        let threads: Vec<_> = crew.into_iter().map(start).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

/// Packets per million cycles of all of them.
fn rate(cycles: &[u64]) -> f64 {
    cycles.iter().map(|c| 1e6 / *c as f64).sum()
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let mut next = |default: usize| numbers.next().unwrap_or(default);
    let size = Size {
        routes: next(1_000),
        flows: next(100_000),
        time: Duration::from_secs(next(2) as u64),
    };
    let least = next(0) as f64 / 100.0;
    for (what, bare) in [("bare forwarder", true), ("plain forwarding", false)] {
        let mut gains = Vec::new();
        for _ in 0..ROUNDS {
            let (one, two) = (run(size, 1, bare), run(size, 2, bare));
            let gain = rate(&two) / rate(&one);
            println!("{what}: one {one:?}, two {two:?} cycles a packet: {gain:.2} times as many");
            gains.push(gain);
        }
        gains.sort_by(f64::total_cmp);
        let gain = (gains[ROUNDS / 2 - 1] + gains[ROUNDS / 2]) / 2.0;
        println!("{what}: two workers carry {gain:.2} times what one carries");
        assert!(bare || gain >= least, "{gain:.2}, {least} is the least");
    }
}
