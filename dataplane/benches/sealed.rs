//! Cycles per packet of a link that carries datagrams: two routers on DPDK's rings,
//! UDP packets of many flows through both of them, beside the crypto engine alone.
//!
//! ```text
//!  generator -> [ A: classify, queue, schedule, frame, seal ] -> net_ring -> [ B: open, unpack, tx ] -> net_null
//!               `------------ measured -------------------'                `------ measured ------'
//! ```
//! `cargo bench -p mef-dataplane --features dpdk --bench sealed -- [FLOWS [SECONDS [LIMIT]]]`.
//! Fails where a side takes more than `LIMIT` cycles a packet above the engine, if that is given.
//! The clock that the routers see is moved on by hand, as fast as their line, so that it never limits.

#![allow(clippy::unwrap_used)]

#[path = "common/mod.rs"]
mod common;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use common::{
    arp_request, put, report, ring, seed, sink, udp_frame, Bench, Device, Joined, Stages,
};
use mef_crypto::{EngineKind, PrivateKey, TAG_LEN};
use mef_dataplane::config;
use mef_dataplane::router::{Router, BATCH};
use mef_io::{os, Port};
use mef_packet::Instant;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// In its time a batch of the largest packets crosses the line five times.
const STEP: Duration = Duration::from_micros(40);
/// What the link adds to one datagram inside of its packet.
const FRAMING: usize = mef_protocol::codec::INNER_HEADER + mef_protocol::codec::DATAGRAM_OVERHEAD;

fn router(me: u8, now: Instant, lan: Joined, wan: Joined) -> Router<Joined> {
    let other = 3 - me;
    let key = PrivateKey::generate([other; 32]).public();
    let text = format!(
        "[router]\nprivate_key = \"a.key\"\nmemory = \"256MiB\"\n\
        [[port]]\nname = \"lan\"\ninterface = \"lan\"\naddresses = [\"10.{me}.0.1/16\"]\n\
        [[port]]\nname = \"wan\"\ninterface = \"wan\"\naddresses = [\"192.0.2.{me}/24\"]\nlisten = 4800\n\
        [port.line]\nup = \"100Gbit/s\"\ndown = \"100Gbit/s\"\n\
        [[peer]]\nname = \"other\"\npublic_key = \"{key}\"\nport = \"wan\"\n\
        endpoint = \"192.0.2.{other}:4800\"\nprefixes = [\"10.{other}.0.0/16\"]\n"
    );
    let config = config::parse(&text, Path::new("/bench.toml"), &Bench(me)).unwrap();
    Router::new(now, config, vec![lan, wan], seed(me)).unwrap()
}

/// Both routers and what stands around them.
struct World {
    now: Instant,
    a: Router<Joined>,
    b: Router<Joined>,
    generator: Device,
    /// A's address towards the generator.
    mac: [u8; 6],
    /// Where B's hosts are.
    hosts: Device,
}

impl World {
    fn new() -> Self {
        let now = Instant::from_millis(1000);
        let (generator, ab, ba, hosts) = (ring(0), ring(1), ring(2), sink(0));
        let asks = ring(3);
        let (lan_a, lan_b) = (
            Joined::new(&generator, &sink(1), 1),
            Joined::new(&asks, &hosts, 3),
        );
        let (mac, to) = (lan_b.caps().mac, lan_a.caps().mac);
        let mut a = router(1, now, lan_a, Joined::new(&ba, &ab, 2));
        let mut b = router(2, now, lan_b, Joined::new(&ab, &ba, 4));
        let host = Ipv4Addr::new(10, 2, 0, 2);
        put(
            &asks,
            &[arp_request(
                mac,
                Ipv4Addr::new(10, 2, 0, 1),
                [2, 0, 0, 0, 0, 9],
                host,
            )],
        );
        // Until the session is there, and the path's size found.
        let mut at = now;
        for _ in 0..3000 {
            at += Duration::from_millis(1);
            a.poll(at);
            b.poll(at);
        }
        Self {
            now: at,
            a,
            b,
            generator,
            mac: to,
            hosts,
        }
    }

    fn arrived(&self) -> u64 {
        self.hosts.borrow().stats().tx_packets
    }
}

/// Cycles per packet of the engine alone, sealing and opening, for plaintexts of these lengths.
fn engine(lengths: &[usize]) -> (u64, u64) {
    let engine = EngineKind::Ring.with_key(&[5; 32]).unwrap();
    let mut packets: Vec<Vec<u8>> = lengths.iter().map(|n| vec![7; n + TAG_LEN]).collect();
    let (mut seal, mut open) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let before = os::cycles();
        for (n, p) in packets.iter_mut().enumerate() {
            let (data, tag) = p.split_last_chunk_mut::<TAG_LEN>().unwrap();
            *tag = engine.seal([n as u8; 12], &[3; 16], data).unwrap();
        }
        let between = os::cycles();
        for (n, p) in packets.iter_mut().enumerate() {
            engine.open([n as u8; 12], &[3; 16], p).unwrap();
        }
        let after = os::cycles();
        seal.push((between - before) / lengths.len() as u64);
        open.push((after - between) / lengths.len() as u64);
    }
    seal.sort_unstable();
    open.sort_unstable();
    (seal[seal.len() / 2], open[open.len() / 2])
}

/// Sends packets of these sizes, one after the other; cycles above the engine of the dearer side. With
/// `stages` their parts are measured too, which costs some cycles itself.
fn run(
    w: &mut World,
    what: &str,
    sizes: &[usize],
    flows: usize,
    time: Duration,
    stages: bool,
) -> u64 {
    let mut random = SmallRng::seed_from_u64(1);
    let mac = w.mac;
    let to = Ipv4Addr::new(10, 2, 0, 2);
    let frame = |n: usize, random: &mut SmallRng| {
        let from = Ipv4Addr::from(0x0a01_0002 + (n as u32 & 0xfff));
        udp_frame(
            mac,
            (from, random.random()),
            (to, 9),
            sizes[n % sizes.len()],
        )
    };
    let flows = flows.div_ceil(BATCH) * BATCH;
    let frames: Vec<Vec<u8>> = (0..flows).map(|n| frame(n, &mut random)).collect();
    let lengths: Vec<usize> = sizes
        .iter()
        .cycle()
        .take(BATCH)
        .map(|s| s + FRAMING)
        .collect();
    let (engine_seal, engine_open) = engine(&lengths);

    let (mut seal, mut open) = (Vec::new(), Vec::new());
    let mut laps = stages.then(|| (Stages::start(&mut w.a), Stages::start(&mut w.b)));
    let before = w.arrived();
    let sealed_before = w.a.counters().total() + w.b.counters().total();
    let started = std::time::Instant::now();
    let mut sent = 0;
    while started.elapsed() < time {
        for batch in frames.chunks_exact(BATCH) {
            put(&w.generator, batch);
            w.now += STEP;
            let t0 = os::cycles();
            w.a.poll(w.now);
            let t1 = os::cycles();
            w.b.poll(w.now);
            let t2 = os::cycles();
            seal.push((t1 - t0) / BATCH as u64);
            open.push((t2 - t1) / BATCH as u64);
            if let Some((a, b)) = &mut laps {
                a.note(&mut w.a);
                b.note(&mut w.b);
            }
            sent += BATCH as u64;
        }
    }
    for _ in 0..100 {
        w.now += Duration::from_millis(1);
        w.a.poll(w.now);
        w.b.poll(w.now);
    }
    let arrived = w.arrived() - before;
    println!("\n{what}: {flows} flows, {arrived} of {sent} packets arrived");
    let drops = w.a.counters().total() + w.b.counters().total() - sealed_before;
    assert!(
        drops == 0,
        "A dropped {:?}, B dropped {:?}",
        w.a.counters(),
        w.b.counters()
    );
    assert_eq!(arrived, sent);
    let (a, b) = laps.unzip();
    let seal = report("A, sealing", &mut seal);
    a.into_iter().for_each(Stages::report);
    let open = report("B, opening", &mut open);
    b.into_iter().for_each(Stages::report);
    let above = (
        seal.saturating_sub(engine_seal),
        open.saturating_sub(engine_open),
    );
    println!(
        "engine alone: seals in {engine_seal}, opens in {engine_open}; above it: A {}, B {}",
        above.0, above.1
    );
    above.0.max(above.1)
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let mut next = |default: usize| numbers.next().unwrap_or(default);
    let (flows, seconds, limit) = (next(1000), next(2), next(usize::MAX) as u64);
    let time = Duration::from_secs(seconds as u64);
    let mut w = World::new();
    let imix = [64, 64, 570, 64, 64, 570, 64, 1420, 64, 570, 64, 570];
    let mixes = [
        ("64 bytes", &[64][..]),
        ("512 bytes", &[512]),
        ("1420 bytes", &[1420]),
        ("IMIX", &imix),
    ];
    for (what, sizes) in mixes {
        let above = run(&mut w, what, sizes, flows, time, false);
        assert!(
            above <= limit,
            "{above} cycles a packet above the engine, {limit} are the limit"
        );
    }
    println!("\nThe same with its stages, reading the clock between them included:");
    for (what, sizes) in mixes {
        run(&mut w, what, sizes, flows, time, true);
    }
}
