//! Two routers with two workers each, in memory, whose ports spread packets as badly
//! as can be: all that one worker should have comes to the other.

#![allow(clippy::unwrap_used, clippy::panic)]

mod machine;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mef_dataplane::control::{LinkSnapshot, LinkState};
use mef_dataplane::report::{Query, Reply};
use mef_dataplane::router::Router;
use mef_dataplane::workers::{Crew, Shared};
use mef_io::{MemPort, MemWire};
use mef_packet::wire::udp;
use mef_packet::{Buffer, HeapBuf, Instant, Meta, Packet};

use machine::{arp_request, caps, from_host, ip, mac, packet, seed, Settings, A, B};

struct Worker {
    router: Router<MemPort>,
    lan: MemWire,
    wan: MemWire,
}

fn side(now: Instant, me: u8, workers: u16, rate: &'static str) -> Vec<Worker> {
    let settings = Settings {
        router: format!("memory = \"64MiB\"\nworkers = {workers}"),
        rates: [rate; 2],
        ..Settings::default()
    };
    let config = machine::parse(me, &settings.text(me));
    // The larger key, which counts, is 77: each of two workers has some of the tests' flows.
    let shared = Arc::new(Shared::new(workers, 2, 1, u64::from(78 - me)));
    let bells = (0..workers).map(|_| Arc::default()).collect();
    let worker = |crew: Crew<HeapBuf>| {
        let port = |port| MemPort::detached(caps(me, port, 1500), 1 << 14);
        let ((lan, lan_wire), (wan, wan_wire)) = (port(0), port(1));
        let entropy = now.as_nanos() + u64::from(crew.me());
        let start = seed(me, entropy, now.as_nanos());
        let start = mef_dataplane::router::Seed {
            boot_id: now.as_nanos() + u64::from(me),
            ..start
        };
        let ports = vec![lan, wan];
        Worker {
            router: Router::with_crew(now, config.clone(), ports, start, Some(crew)).unwrap(),
            lan: lan_wire,
            wan: wan_wire,
        }
    };
    Crew::all(&shared, bells).into_iter().map(worker).collect()
}

/// A datagram from the host of side 1 to that of side 2.
fn datagram(flow: u16, number: u32) -> Packet<HeapBuf> {
    let mut udp = vec![0; 8 + 400];
    let ports = udp::Header {
        src_port: 20_000 + flow,
        dst_port: 443,
    };
    ports.emit(&mut udp, 400).unwrap();
    udp[8..12].copy_from_slice(&number.to_be_bytes());
    let frame = from_host(mac(1, 0), &ip(A, B, 17, &udp));
    packet(&frame, Meta::default())
}

struct World {
    now: Instant,
    sides: [Vec<Worker>; 2],
    wan_bytes: u64,
    /// Next number and count, by flow, and the worker that sent it to the host.
    got: HashMap<u16, (u32, u32, usize)>,
}

impl World {
    /// With so many workers on each side.
    fn new(workers: [u16; 2], rate: &'static str) -> Self {
        let now = Instant::from_millis(1000);
        let mut w = Self {
            now,
            sides: [
                side(now, 1, workers[0], rate),
                side(now, 2, workers[1], rate),
            ],
            wan_bytes: 0,
            got: HashMap::new(),
        };
        // Heard by one worker, to be known to all.
        for (i, side) in (1..).zip(&w.sides) {
            side[0]
                .lan
                .inject(packet(&arp_request(i), Meta::default()))
                .unwrap();
        }
        let up = |w: &Self| {
            let linked = usize::from(workers[0].min(workers[1]));
            let of_side = |side: &Vec<Worker>| {
                let links = side
                    .iter()
                    .map(|x| x.router.snapshot(w.now, Duration::ZERO).links);
                let up = |l: &LinkSnapshot| l.state == LinkState::Up;
                links.flatten().filter(up).count() == linked
            };
            w.sides.iter().all(of_side)
        };
        for _ in 0..10_000 {
            w.step();
            if up(&w) {
                return w;
            }
        }
        panic!("not every worker has a link");
    }

    fn step(&mut self) {
        self.now += Duration::from_micros(250);
        for from in 0..2 {
            for worker in 0..self.sides[from].len() {
                let w = &mut self.sides[from][worker];
                w.router.poll(self.now);
                let (mut lan, mut wan) = (Vec::new(), Vec::new());
                w.lan.take_sent(&mut lan);
                w.wan.take_sent(&mut wan);
                self.arrived(worker, &lan);
                for p in wan {
                    let bytes = p.buf.bytes();
                    self.wan_bytes += if from == 0 { bytes.len() as u64 } else { 0 };
                    // A link's packet comes to the worker that it is not for.
                    let udp = bytes[12..14] == [8, 0] && bytes[23] == 17;
                    let port = if udp { u16::from(bytes[37]) } else { 0 };
                    let to = usize::from(port + 1) % self.sides[1 - from].len();
                    self.sides[1 - from][to].wan.inject(p).unwrap();
                }
            }
        }
    }

    fn arrived(&mut self, worker: usize, frames: &[Packet<HeapBuf>]) {
        for p in frames {
            let b = p.buf.bytes();
            if b[12..14] != [8, 0] || b[23] != 17 {
                continue;
            }
            let flow = u16::from_be_bytes([b[34], b[35]]);
            let number = u32::from_be_bytes([b[42], b[43], b[44], b[45]]);
            let (next, count, by) = self.got.entry(flow).or_insert((0, 0, worker));
            assert!(number >= *next, "{flow}: {number} behind {next}");
            assert_eq!(*by, worker, "{flow} is of two workers");
            (*next, *count) = (number + 1, *count + 1);
        }
    }
}

#[test]
fn flows_arrive_whole_and_in_order_whichever_worker_their_packets_come_to() {
    let mut w = World::new([2, 2], "1Gbit/s");
    // Handshakes that cross leave an answer that nobody waits for.
    let drops = |w: &World| {
        let workers = w.sides.iter().flatten();
        let counters = workers.map(|x| x.router.counters().named());
        counters.collect::<Vec<_>>()
    };
    let before = drops(&w);
    const FLOWS: u16 = 16;
    for number in 0..500 {
        for flow in 0..FLOWS {
            // All of a flow at one worker, as a NIC does it; its own is as often another.
            let to = usize::from(flow % 2);
            w.sides[0][to].lan.inject(datagram(flow, number)).unwrap();
        }
        w.step();
    }
    for _ in 0..400 {
        w.step();
    }
    assert_eq!(w.got.len(), usize::from(FLOWS));
    assert!(w.got.values().all(|(_, n, _)| *n == 500), "{:?}", w.got);
    let by = |worker| w.got.values().filter(|(_, _, by)| *by == worker).count();
    assert!(by(0) > 2 && by(1) > 2, "{:?}", w.got);
    for side in &w.sides {
        for worker in side {
            let row = match worker.router.report(w.now, Duration::ZERO, Query::Workers) {
                Reply::Workers(page) => page.rows[0].clone(),
                other => panic!("{other:?}"),
            };
            assert!(
                row.given_packets > 500 && row.taken_packets > 500,
                "{row:?}"
            );
            assert_eq!(row.links_up, 1);
        }
    }
    assert_eq!(drops(&w), before);
}

#[test]
fn the_line_is_shared_by_flows_whatever_workers_they_are_of() {
    const LINE: u64 = 50_000_000;
    let mut w = World::new([2, 2], "50Mbit/s");
    // Five flows, each of which alone would fill the line: some workers have more than others.
    const FLOWS: u16 = 5;
    let mut number = 0;
    let mut feed = |w: &mut World, ms: u32| {
        for _ in 0..ms {
            for flow in 0..FLOWS {
                for n in 0..16 {
                    let to = usize::from(flow % 2);
                    let _ = w.sides[0][to].lan.inject(datagram(flow, number + n));
                }
            }
            number += 16;
            for _ in 0..4 {
                w.step();
            }
        }
    };
    feed(&mut w, 1000);
    w.got.values_mut().for_each(|(_, count, _)| *count = 0);
    let before = w.wan_bytes;
    feed(&mut w, 2000);
    let wire = (w.wan_bytes - before) * 8;
    let counts: Vec<u32> = w.got.values().map(|(_, n, _)| *n).collect();
    let mean = f64::from(counts.iter().sum::<u32>()) / f64::from(FLOWS);
    let used = wire as f64 / (2 * LINE) as f64;
    println!("{counts:?}, {used:.4} of the line");
    assert!((0.96..1.0).contains(&used), "{used}");
    let fair = |n: &u32| (f64::from(*n) / mean - 1.0).abs() < 0.06;
    assert!(counts.iter().all(fair), "{counts:?}");
    // Both have a part of it.
    let by = |worker| w.got.values().any(|(_, _, by)| *by == worker);
    assert!(by(0) && by(1), "{:?}", w.got);
}

#[test]
fn ends_with_different_numbers_of_workers_have_as_many_links_as_both_have() {
    for workers in [[1, 3], [3, 2], [2, 4]] {
        let mut w = World::new(workers, "1Gbit/s");
        for number in 0..100 {
            for flow in 0..20 {
                let to = usize::from(flow % workers[0]);
                w.sides[0][to].lan.inject(datagram(flow, number)).unwrap();
            }
            w.step();
        }
        for _ in 0..400 {
            w.step();
        }
        assert_eq!(w.got.len(), 20);
        assert!(w.got.values().all(|(_, n, _)| *n == 100), "{:?}", w.got);
        let linked = usize::from(workers[0].min(workers[1]));
        let by: BTreeSet<usize> = w.got.values().map(|(_, _, by)| *by).collect();
        assert_eq!(by, (0..linked).collect(), "{workers:?}");
    }
}

#[test]
fn a_peer_that_comes_back_with_fewer_workers_leaves_no_link_behind() {
    let mut w = World::new([2, 2], "1Gbit/s");
    w.sides[1] = side(w.now, 2, 1, "1Gbit/s");
    w.sides[1][0]
        .lan
        .inject(packet(&arp_request(2), Meta::default()))
        .unwrap();
    // Until it is seen that it was started anew.
    for _ in 0..40_000 {
        w.step();
        let of = |i: usize| w.sides[0][i].router.snapshot(w.now, Duration::ZERO).links;
        if of(1).is_empty() && of(0)[0].state == LinkState::Up {
            break;
        }
    }
    // The other end is still to hear what this one has heard.
    for _ in 0..400 {
        w.step();
    }
    w.got.clear();
    for number in 0..50 {
        for flow in 0..10 {
            w.sides[0][0].lan.inject(datagram(flow, number)).unwrap();
        }
        w.step();
    }
    for _ in 0..400 {
        w.step();
    }
    let counters = w
        .sides
        .iter()
        .flatten()
        .map(|x| x.router.counters().named());
    let counters: Vec<_> = counters.collect();
    assert_eq!(w.got.len(), 10, "{counters:?}");
    assert!(w.got.values().all(|(_, n, _)| *n == 50), "{:?}", w.got);
    let dropped: u64 = w.sides[0].iter().map(|x| x.router.counters().total()).sum();
    let links = w.sides[0][1].router.snapshot(w.now, Duration::ZERO).links;
    assert!(links.is_empty() && dropped < 100, "{links:?} {dropped}");
}
