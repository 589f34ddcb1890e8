//! Cycles per packet of plain forwarding: whole routers on DPDK's rings, 64-byte
//! packets (60 without FCS) of many flows to random routes, beside a forwarder
//! that only moves buffers.
//!
//! ```text
//!  generator -> net_ring -> [ router: rx, FIB, neighbour, tx ] -> net_null (frees, as a NIC does)
//!                           `---------- measured ----------'
//! ```
//! `cargo bench -p mef-dataplane --features dpdk --bench forward -- [ROUTES [FLOWS [SECONDS]]]`.
//! Every batch of 64 is measured by the time-stamp counter on its own; the median is
//! what the code costs, the rest is what else the machine did.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use mef_crypto::PrivateKey;
use mef_dataplane::config::{self, Config, Host, StaticRoute, Via};
use mef_dataplane::router::{Router, Seed, BATCH};
use mef_io::dpdk::DpdkBuf;
use mef_io::{os, Caps, DpdkOptions, DpdkPort, Port, PortStats};
use mef_packet::wire::{arp, ethernet, ipv4, udp};
use mef_packet::{Buffer, Meta, Packet, PortId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Without FCS.
const FRAME: usize = 60;

/// A ring gives back what was sent to it, so that the generator and the router share it.
type Ring = Rc<RefCell<DpdkPort>>;

/// Receives from a ring and sends to another device.
struct Joined {
    from: Ring,
    to: DpdkPort,
}

impl Port for Joined {
    type Buf = DpdkBuf;
    fn rx(&mut self, out: &mut Vec<Packet<DpdkBuf>>, max: usize) -> usize {
        self.from.borrow_mut().rx(out, max)
    }
    fn tx(&mut self, batch: &mut Vec<Packet<DpdkBuf>>) {
        self.to.tx(batch);
    }
    fn alloc(&mut self, capacity: usize) -> DpdkBuf {
        self.to.alloc(capacity)
    }
    fn recycle(&mut self, buf: DpdkBuf) {
        self.to.recycle(buf);
    }
    fn caps(&self) -> Caps {
        self.from.borrow().caps()
    }
    fn stats(&self) -> PortStats {
        PortStats {
            tx_packets: self.to.stats().tx_packets,
            ..self.from.borrow().stats()
        }
    }
    fn poll_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}

struct Bench;

impl Host for Bench {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(PrivateKey::generate([1; 32]))
    }
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
    let mut config = config::parse(text, Path::new("/bench.toml"), &Bench).unwrap();
    let via = Via::Gateway {
        port: PortId(1),
        address: GATEWAY.into(),
    };
    config.routes = prefixes
        .iter()
        .map(|p| StaticRoute {
            prefix: IpNet::V4(*p),
            via,
        })
        .collect();
    config
}

/// One frame of each flow, to an address in one of the prefixes.
fn frames(
    count: usize,
    prefixes: &[Ipv4Net],
    dst: [u8; 6],
    random: &mut SmallRng,
) -> Vec<[u8; FRAME]> {
    let frame = |random: &mut SmallRng| {
        let mut f = [0; FRAME];
        ethernet::Header {
            dst,
            src: [2, 0, 0, 0, 0, 1],
            ethertype: ethernet::ETHERTYPE_IPV4,
        }
        .emit(&mut f)
        .unwrap();
        let net = prefixes[random.random_range(0..prefixes.len())];
        let host = random.random::<u32>() & u32::from(net.hostmask());
        let to = Ipv4Addr::from(u32::from(net.network()) | host);
        let from = Ipv4Addr::from(0x0a00_0000 | random.random_range(0..1 << 24));
        ipv4::Header::new(from, to, ipv4::PROTOCOL_UDP)
            .emit(&mut f[14..], FRAME - 34)
            .unwrap();
        udp::Header {
            src_port: random.random(),
            dst_port: random.random(),
        }
        .emit(&mut f[34..], FRAME - 34)
        .unwrap();
        f
    };
    (0..count).map(|_| frame(random)).collect()
}

fn open(device: &str) -> DpdkPort {
    let options = DpdkOptions {
        device: device.parse().unwrap(),
        mtu: None,
    };
    DpdkPort::open_all(&[options]).unwrap().remove(0)
}

fn ring(number: u32) -> Ring {
    Rc::new(RefCell::new(open(&format!("net_ring{number}"))))
}

fn put(ring: &Ring, frames: &[[u8; FRAME]]) {
    let mut port = ring.borrow_mut();
    let mut batch = Vec::with_capacity(frames.len());
    for frame in frames {
        let mut buf = port.alloc(FRAME);
        buf.append(FRAME).unwrap().copy_from_slice(frame);
        batch.push(Packet {
            buf,
            meta: Meta::default(),
        });
    }
    port.tx(&mut batch);
}

/// Runs `step` on batches for some time; cycles per packet of each batch.
fn measure(
    generator: &Ring,
    frames: &[[u8; FRAME]],
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
    all.sort_unstable();
    all
}

fn report(what: &str, cycles: &[u64]) {
    let at = |q: f64| cycles[((cycles.len() - 1) as f64 * q) as usize];
    println!(
        "{what:<24} {:>6} cycles a packet (10%: {}, 90%: {}; {} batches of {BATCH})",
        at(0.5),
        at(0.1),
        at(0.9),
        cycles.len()
    );
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse().ok());
    let mut next = |default: usize| numbers.next().unwrap_or(default);
    let (routes, flows, seconds) = (next(1_000_000), next(100_000), next(3));
    let time = Duration::from_secs(seconds as u64);
    let mut random = SmallRng::seed_from_u64(1);

    let (generator, gateway) = (ring(0), ring(1));
    let sink = |n: u32| open(&format!("net_null{n},no-rx=1"));
    for note in generator.borrow().notes() {
        println!("note: {note}");
    }
    let prefixes = prefixes(routes, &mut random);
    let frames = frames(flows, &prefixes, generator.borrow().caps().mac, &mut random);

    let mut bare = Joined {
        from: Rc::clone(&generator),
        to: sink(0),
    };
    let mut batch = Vec::new();
    let cycles = measure(&generator, &frames, time, || {
        bare.rx(&mut batch, BATCH);
        bare.tx(&mut batch);
    });
    report("bare forwarder", &cycles);

    let started = Instant::now();
    let out = Joined {
        from: Rc::clone(&gateway),
        to: sink(1),
    };
    let out_mac = out.caps().mac;
    let seed = Seed {
        entropy: Box::new(|| [7; 32]),
        boot_id: 1,
        initiation_base: 1,
    };
    let now = os::monotonic_now();
    let mut router = Router::new(now, configuration(&prefixes), vec![bare, out], seed).unwrap();
    println!(
        "{routes} routes built in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    // The gateway's address is asked for with the first packet, and told.
    put(&generator, &frames[..1]);
    router.poll(now);
    let mut answer = [0; FRAME];
    ethernet::Header {
        dst: out_mac,
        src: GATEWAY_MAC,
        ethertype: ethernet::ETHERTYPE_ARP,
    }
    .emit(&mut answer)
    .unwrap();
    arp::Packet {
        operation: arp::Operation::Reply,
        sender_mac: GATEWAY_MAC,
        sender_ip: GATEWAY,
        target_mac: out_mac,
        target_ip: Ipv4Addr::new(192, 0, 2, 1),
    }
    .emit(&mut answer[14..])
    .unwrap();
    put(&gateway, &[answer]);
    router.poll(now);

    let cycles = measure(&generator, &frames, time, || {
        router.poll(os::monotonic_now());
    });
    report("plain forwarding", &cycles);
    let drops = router.counters().named();
    assert!(drops.is_empty(), "packets were dropped: {drops:?}");
}
