//! Cycles per packet of plain forwarding, whole and by stage: a router on DPDK's
//! rings, 64-byte packets (60 without FCS) of many flows to random routes by way of
//! sixteen neighbours, beside a forwarder that only moves buffers.
//!
//! ```text
//!  generator -> net_ring -> [ router: rx, FIB, neighbour, tx ] -> net_null (frees, as a NIC does)
//!                           `---------- measured ----------'
//! ```
//! `cargo bench -p mef-dataplane --features dpdk --bench forward -- [ROUTES [FLOWS [SECONDS [LIMIT]]]]`.
//! Fails where forwarding takes more cycles a packet than `LIMIT`, if that is given.
//! Every batch of 64 is measured by the time-stamp counter on its own; the median is
//! what the code costs, the rest is what else the machine did.

#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{
    arp_request, put, report, ring, seed, sink, udp_frame, Bench, Device, Joined, Stages,
};
use ipnet::{IpNet, Ipv4Net};
use mef_dataplane::config::{self, Config, StaticRoute, Via};
use mef_dataplane::router::{Router, BATCH};
use mef_io::{os, Port};
use mef_packet::PortId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const GATEWAYS: u8 = 16;
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The IP packet of the smallest frame.
const SIZE: usize = 46;

const fn gateway(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 2 + number % GATEWAYS)
}

/// Random prefixes, most of them as long as those of the Internet's table: /24 six of ten, few above.
fn prefixes(count: usize, random: &mut SmallRng) -> Vec<Ipv4Net> {
    let mut list = Vec::with_capacity(count);
    while list.len() < count {
        let length = match random.random_range(0..100) {
            0..60 => 24,
            60..85 => random.random_range(20..24),
            85..99 => random.random_range(12..20),
            _ => random.random_range(25..=32),
        };
        let address = Ipv4Addr::from(random.random::<u32>());
        if (1..224).contains(&address.octets()[0]) && address.octets()[0] != 127 {
            list.push(Ipv4Net::new(address, length).unwrap().trunc());
        }
    }
    list
}

fn configuration(prefixes: &[Ipv4Net]) -> Config {
    let text = "[router]\nprivate_key = \"a.key\"\n\
        [[port]]\nname = \"in\"\ninterface = \"in\"\naddresses = [\"198.51.100.1/24\"]\n\
        [[port]]\nname = \"out\"\ninterface = \"out\"\naddresses = [\"192.0.2.1/24\"]\n";
    let mut config = config::parse(text, Path::new("/bench.toml"), &Bench(1)).unwrap();
    let via = |number: u8| Via::Gateway {
        port: PortId(1),
        address: gateway(number).into(),
    };
    config.routes = prefixes
        .iter()
        .zip((0..=u8::MAX).cycle())
        .map(|(p, number)| StaticRoute {
            prefix: IpNet::V4(*p),
            via: via(number),
        })
        .collect();
    config
}

/// One frame of each flow, to an address in one of the prefixes.
fn frames(count: usize, prefixes: &[Ipv4Net], dst: [u8; 6], random: &mut SmallRng) -> Vec<Vec<u8>> {
    let frame = |random: &mut SmallRng| {
        let net = prefixes[random.random_range(0..prefixes.len())];
        let host = random.random::<u32>() & u32::from(net.hostmask());
        let to = Ipv4Addr::from(u32::from(net.network()) | host);
        let from = Ipv4Addr::from(0x0a00_0000 | random.random_range(0..1 << 24));
        udp_frame(dst, (from, random.random()), (to, random.random()), SIZE)
    };
    (0..count).map(|_| frame(random)).collect()
}

/// Runs `step` on batches for some time; cycles per packet of each batch.
fn measure(
    generator: &Device,
    frames: &[Vec<u8>],
    time: Duration,
    mut step: impl FnMut(),
) -> Vec<u64> {
    let (mut all, start) = (Vec::new(), Instant::now());
    while start.elapsed() < time {
        for batch in frames.chunks_exact(BATCH) {
            put(generator, batch);
            let before = os::cycles();
            step();
            all.push((os::cycles() - before) / BATCH as u64);
        }
    }
    // The first round is spent on warming up.
    all.drain(..(frames.len() / BATCH).min(all.len() / 2));
    all
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let mut next = |default: usize| numbers.next().unwrap_or(default);
    let (routes, flows, seconds) = (next(1_000_000), next(100_000), next(3));
    let limit = next(usize::MAX) as u64;
    let time = Duration::from_secs(seconds as u64);
    let mut random = SmallRng::seed_from_u64(1);

    let (generator, network) = (ring(0), ring(1));
    for note in generator.borrow().notes() {
        println!("note: {note}");
    }
    let prefixes = prefixes(routes, &mut random);
    let mut bare = Joined::new(&generator, &sink(0), 1);
    let frames = frames(flows, &prefixes, bare.caps().mac, &mut random);
    let mut batch = Vec::new();
    let mut cycles = measure(&generator, &frames, time, || {
        bare.rx(&mut batch, BATCH);
        bare.tx(&mut batch);
    });
    report("bare forwarder", &mut cycles);

    let started = Instant::now();
    let out = Joined::new(&network, &sink(1), 2);
    let out_mac = out.caps().mac;
    let now = os::monotonic_now();
    let mut router = Router::new(now, configuration(&prefixes), vec![bare, out], seed(7)).unwrap();
    println!(
        "{routes} routes built in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let asks = |n: u8| arp_request(out_mac, OWN, [2, 0, 0, 0, 1, n], gateway(n));
    put(&network, &(0..GATEWAYS).map(asks).collect::<Vec<_>>());
    router.poll(now);

    let mut cycles = measure(&generator, &frames, time, || {
        router.poll(os::monotonic_now());
    });
    let median = report("plain forwarding", &mut cycles);
    let mut stages = Stages::start(&mut router);
    measure(&generator, &frames, time / 2, || {
        router.poll(os::monotonic_now());
        stages.note(&mut router);
    });
    stages.report();
    let drops = router.counters().named();
    assert!(drops.is_empty(), "packets were dropped: {drops:?}");
    assert!(
        median <= limit,
        "{median} cycles a packet, {limit} are the limit"
    );
}
