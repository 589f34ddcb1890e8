//! A line of unknown capacity that several links and packets in the clear use: one router with a link to
//! each of several others, behind a bottleneck of its own; virtual time, no crypto.

#![allow(clippy::unwrap_used)]

mod ends;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use mef_packet::{BitRate, Bytes, Instant};
use mef_protocol::auto::Target;
use mef_protocol::chunks::ChunkPool;
use mef_protocol::classes::Class;
use mef_protocol::codec::Setup;
use mef_protocol::line::{Departure, Line};
use mef_protocol::link::{DatagramFlow, Event, Link};

use ends::{config, setup, End, Ref, Rng};

/// What an `auto` line may at most be.
const CEILING: BitRate = BitRate(1_000_000_000);

/// What is on its way over a link: when it arrives, its number, bytes on the line, inner packet.
type Packet = (Instant, u64, u64, Vec<u8>);

/// What hosts without a link send.
enum Plain {
    /// Datagrams of 1400 bytes.
    Constant { rate: BitRate, next: Instant },
    /// A window that grows by a packet per round trip and halves on loss (RFC 5681), over `rtt`.
    Tcp {
        rtt: Duration,
        window: f64,
        next: u64,
        acked: u64,
        recover: u64,
        threshold: f64,
    },
}

struct World {
    start: Instant,
    now: Instant,
    links: Vec<(Link, u64)>,
    pool: ChunkPool,
    line: Line<Vec<u8>>,
    far: Vec<End>,
    delays: Vec<Duration>,
    losses: Vec<f64>,
    random: Rng,
    /// The bottleneck: rate, when it is free, and what its queue holds at most.
    rate: BitRate,
    free_at: Instant,
    longest: Duration,
    /// Arrivals at the far routers, and what these send, in the order of each.
    down: Vec<VecDeque<Packet>>,
    up: Vec<VecDeque<Packet>>,
    /// Acknowledgements of packets in the clear: when, of which flow, which of them.
    answers: BTreeMap<(Instant, u64), (u32, u64)>,
    order: u64,
    /// Which links have something to send, with their stream.
    busy: Vec<Option<u32>>,
    plain: BTreeMap<u32, Plain>,
    /// Since the last [`measure`](World::measure): line bytes by link, and in the clear by flow.
    carried: Vec<u64>,
    clear: BTreeMap<u32, u64>,
    /// Time in the bottleneck's queue, of every packet; drops there, and where we wait ourselves.
    queue: Vec<Duration>,
    drops: u64,
    refused: u64,
    measured: Instant,
}

#[derive(Debug)]
struct Measured {
    /// Mbit/s.
    links: Vec<f64>,
    clear: Vec<f64>,
    used: f64,
    p50: f64,
    p95: f64,
    drops: u64,
}

impl World {
    fn new(mbit: u64, rtts: &[u64]) -> Self {
        let now = Instant::from_millis(1000);
        let n = rtts.len();
        let link = |i: usize| {
            let mut config = config(true, CEILING, 256 << 20);
            config.boot_id = 100 + i as u64;
            let mut link = Link::new(now, config);
            link.estimate_capacity(now, Target::Balanced);
            (link, 0)
        };
        let mut w = Self {
            start: now,
            now,
            links: (0..n).map(link).collect(),
            pool: ChunkPool::new(1 << 30),
            line: Line::new(now, CEILING),
            far: (0..n)
                .map(|_| End::new(now, config(false, CEILING, 256 << 20), 1 << 30))
                .collect(),
            delays: rtts.iter().map(|r| Duration::from_millis(*r) / 2).collect(),
            losses: vec![0.0; n],
            random: Rng::new(1),
            rate: BitRate::from_mbit(mbit),
            free_at: now,
            longest: Duration::from_millis(300),
            down: (0..n).map(|_| VecDeque::new()).collect(),
            up: (0..n).map(|_| VecDeque::new()).collect(),
            answers: BTreeMap::new(),
            order: 0,
            busy: vec![None; n],
            plain: BTreeMap::new(),
            carried: vec![0; n],
            clear: BTreeMap::new(),
            queue: Vec::new(),
            drops: 0,
            refused: 0,
            measured: now,
        };
        w.line.set_interval(Duration::from_micros(250));
        for (i, rtt) in rtts.iter().enumerate() {
            let rtt = Some(Duration::from_millis(*rtt));
            w.links[i].0.session_started(now, rtt);
            w.far[i].link.session_started(now, rtt);
        }
        w.run(2.0);
        assert!(w.links.iter().all(|l| l.0.is_up()));
        w
    }

    fn begin(&mut self, place: usize) {
        let setup = Setup {
            early: true,
            ..setup()
        };
        self.busy[place] = self.links[place].0.open(self.now, setup);
        assert!(self.busy[place].is_some());
    }

    fn constant(&mut self, flow: u32, mbit: u64) {
        let plain = Plain::Constant {
            rate: BitRate::from_mbit(mbit),
            next: self.now,
        };
        self.plain.insert(flow, plain);
    }

    fn tcp(&mut self, flow: u32, rtt: u64) {
        let plain = Plain::Tcp {
            rtt: Duration::from_millis(rtt),
            window: 10.0,
            next: 0,
            acked: 0,
            recover: 0,
            threshold: f64::INFINITY,
        };
        self.plain.insert(flow, plain);
    }

    /// A packet enters the bottleneck; when it has passed.
    fn cross(&mut self, bytes: u64) -> Option<Instant> {
        let begins = self.free_at.max(self.now);
        let waits = begins.since(self.now);
        if waits > self.longest {
            self.drops += 1;
            return None;
        }
        self.queue.push(waits);
        self.free_at = begins + self.rate.time_for(Bytes(bytes));
        Some(self.free_at)
    }

    fn send_plain(&mut self, flow: u32, sequence: u64) {
        let of = DatagramFlow {
            id: flow,
            weight: 1000,
            class: Class::Balanced,
        };
        let mut packet = vec![0; 1400];
        packet[0] = 0x45;
        packet[4..8].copy_from_slice(&flow.to_be_bytes());
        packet[8..16].copy_from_slice(&sequence.to_be_bytes());
        if self.line.send_plain(self.now, of, packet).is_err() {
            self.refused += 1;
        }
    }

    /// What hosts in the clear send now, and when they want to again.
    fn hosts(&mut self) -> Instant {
        let mut at = Instant::FAR_FUTURE;
        let mut out = Vec::new();
        for (flow, plain) in &mut self.plain {
            match plain {
                Plain::Constant { rate, next } => {
                    while *next <= self.now {
                        out.push((*flow, 0));
                        *next += rate.time_for(Bytes(1414));
                    }
                    at = at.min(*next);
                }
                Plain::Tcp {
                    window,
                    next,
                    acked,
                    ..
                } => {
                    while ((*next - *acked) as f64) < *window {
                        out.push((*flow, *next));
                        *next += 1;
                    }
                }
            }
        }
        for (flow, sequence) in out {
            self.send_plain(flow, sequence);
        }
        at
    }

    fn answered(&mut self, flow: u32, sequence: u64) {
        if let Some(Plain::Tcp {
            window,
            next,
            acked,
            recover,
            threshold,
            ..
        }) = self.plain.get_mut(&flow)
        {
            // Packets stay in order: a gap is a loss.
            if sequence > *acked && sequence >= *recover {
                *window = (*window / 2.0).max(2.0);
                *threshold = *window;
                *recover = *next;
            } else if *window < *threshold {
                *window += 1.0;
            } else {
                *window += 1.0 / *window;
            }
            *acked = sequence + 1;
        }
    }

    /// Everything that is due now is done; when there is something again.
    fn step(&mut self, until: Instant) -> Instant {
        let now = self.now;
        while let Some(entry) = self.answers.first_entry().filter(|e| e.key().0 <= now) {
            let (flow, sequence) = entry.remove();
            self.answered(flow, sequence);
        }
        for i in 0..self.links.len() {
            while self.up[i].front().is_some_and(|p| p.0 <= now) {
                let (_, number, bytes, inner) = self.up[i].pop_front().unwrap();
                let (link, pool) = (&mut self.links[i].0, &mut self.pool);
                link.handle_packet(now, pool, number, bytes, &inner)
                    .unwrap();
            }
            while self.down[i].front().is_some_and(|p| p.0 <= now) {
                let (_, number, bytes, inner) = self.down[i].pop_front().unwrap();
                let e = &mut self.far[i];
                e.link
                    .handle_packet(now, &mut e.pool, number, bytes, &inner)
                    .unwrap();
            }
            let e = &mut self.far[i];
            while let Some(event) = e.link.poll_event() {
                if let Event::Setup { flow, .. } = event {
                    e.link.accept(now, flow);
                }
            }
            if let Some(flow) = self.busy[i] {
                loop {
                    let n = e.link.peek(flow).len();
                    if n == 0 {
                        break;
                    }
                    e.link.consume(now, &mut e.pool, flow, n);
                }
            }
            let (link, pool) = (&mut self.links[i].0, &mut self.pool);
            while link.poll_event().is_some() {}
            if let Some(flow) = self.busy[i] {
                let room = link.write_room(pool, flow);
                if room > 0 {
                    link.write(pool, flow, &vec![7; room]);
                }
            }
        }
        let mut next = self.hosts().min(until);
        for (link, _) in &mut self.links {
            link.handle_timeout(now, &mut self.pool);
        }
        loop {
            let mut out = Vec::new();
            let mut refs: Vec<_> = self.links.iter_mut().map(|l| Ref(&mut l.0, l.1)).collect();
            match self.line.poll(now, &mut refs, &mut self.pool, &mut out) {
                Some(Departure::Link(place, packed)) => {
                    let number = self.links[place].1;
                    self.links[place].1 += 1;
                    let bytes = packed.line_bytes;
                    let Some(at) = self.cross(bytes) else {
                        continue;
                    };
                    self.carried[place] += bytes;
                    if self.random.unit() < self.losses[place] {
                        continue;
                    }
                    let at = at + self.delays[place];
                    self.down[place].push_back((at, number, bytes, out));
                }
                Some(Departure::Plain(packet, _)) => {
                    let bytes = packet.len() as u64 + 14;
                    let Some(at) = self.cross(bytes) else {
                        continue;
                    };
                    let flow = u32::from_be_bytes(packet[4..8].try_into().unwrap());
                    let sequence = u64::from_be_bytes(packet[8..16].try_into().unwrap());
                    *self.clear.entry(flow).or_default() += bytes;
                    if let Some(Plain::Tcp { rtt, .. }) = self.plain.get(&flow) {
                        self.order += 1;
                        self.answers
                            .insert((at + *rtt, self.order), (flow, sequence));
                    }
                }
                None => {
                    next = next.min(self.line.poll_timeout(now, &refs));
                    break;
                }
            }
        }
        for i in 0..self.far.len() {
            let e = &mut self.far[i];
            e.link.handle_timeout(now, &mut e.pool);
            loop {
                let mut out = Vec::new();
                let mut refs = [Ref(&mut e.link, e.number)];
                match e.line.poll(now, &mut refs, &mut e.pool, &mut out) {
                    Some(Departure::Link(_, packed)) => {
                        let number = e.number;
                        e.number += 1;
                        let at = now + self.delays[i];
                        self.up[i].push_back((at, number, packed.line_bytes, out));
                    }
                    Some(Departure::Plain(..)) => {}
                    None => {
                        next = next.min(e.line.poll_timeout(now, &refs));
                        break;
                    }
                }
            }
            next = next.min(self.up[i].front().map_or(next, |p| p.0));
            next = next.min(self.down[i].front().map_or(next, |p| p.0));
        }
        if let Some((at, _)) = self.answers.first_key_value() {
            next = next.min(at.0);
        }
        next
    }

    fn run(&mut self, seconds: f64) {
        let until = self.now + Duration::from_secs_f64(seconds);
        while self.now < until {
            let next = self.step(until);
            // A router looks every few microseconds at the soonest.
            self.now = next.max(self.now + Duration::from_micros(20));
        }
    }

    fn forget(&mut self) {
        self.carried.fill(0);
        self.clear.clear();
        self.queue.clear();
        self.drops = 0;
        self.measured = self.now;
    }

    /// The next so many seconds.
    fn measure(&mut self, seconds: f64) -> Measured {
        self.forget();
        self.run(seconds);
        let time = self.now.since(self.measured).as_secs_f64();
        let mbit = |bytes: u64| bytes as f64 * 8e-6 / time;
        let mut queue = std::mem::take(&mut self.queue);
        queue.sort_unstable();
        let quantile = |q: f64| queue[(queue.len() as f64 * q) as usize].as_secs_f64() * 1e3;
        let all = self.carried.iter().sum::<u64>() + self.clear.values().sum::<u64>();
        let m = Measured {
            links: self.carried.iter().map(|b| mbit(*b)).collect(),
            clear: self.clear.values().map(|b| mbit(*b)).collect(),
            used: mbit(all) * 1e6 / self.rate.0 as f64,
            p50: quantile(0.5),
            p95: quantile(0.95),
            drops: self.drops,
        };
        println!(
            "{:5.1} s: {m:.2?}",
            self.now.since(self.start).as_secs_f64()
        );
        m
    }
}

fn within(found: f64, expected: f64, by: f64) {
    assert!(
        (found / expected - 1.0).abs() <= by,
        "{found:.2}, expected {expected:.2}"
    );
}

/// Nobody waits longer than with one link alone: half a step of the rate beyond what is wanted, 10 ms.
fn steady(m: &Measured) {
    assert!(m.used > 0.95, "{}", m.used);
    assert!(m.p50 < 15.0 && m.p95 < 25.0, "{} {}", m.p50, m.p95);
    assert_eq!(m.drops, 0);
}

#[test]
fn one_link_has_the_line_and_a_queue_of_ten_milliseconds() {
    for rtt in [20, 200] {
        let mut w = World::new(20, &[rtt, 100]);
        w.begin(0);
        w.run(5.0);
        for mbit in [20, 60] {
            w.rate = BitRate::from_mbit(mbit);
            w.run(5.0);
            let m = w.measure(20.0);
            steady(&m);
            assert!(m.links[1] < 0.02, "{}", m.links[1]);
        }
    }
}

#[test]
fn two_links_have_half_of_the_line_each() {
    for (rtts, later) in [
        ([100, 100], 3.0),
        ([100, 100], 0.0),
        ([20, 200], 3.0),
        ([200, 20], 3.0),
        ([200, 20], 0.0),
    ] {
        println!("{rtts:?}, {later} s later");
        let mut w = World::new(20, &rtts);
        w.begin(0);
        w.run(later);
        w.begin(1);
        w.run(3.0);
        for mbit in [20, 20, 60, 20] {
            w.rate = BitRate::from_mbit(mbit);
            w.run(2.0);
            let m = w.measure(10.0);
            within(m.links[0], m.links[1], 0.05);
            steady(&m);
        }
    }
}

#[test]
fn links_that_come_and_go_leave_the_line_to_the_others() {
    for rtts in [[20, 200, 60], [200, 20, 60]] {
        println!("{rtts:?}");
        let mut w = World::new(30, &rtts);
        w.begin(0);
        w.run(5.0);
        for _ in 0..3 {
            w.begin(1);
            w.begin(2);
            w.run(1.0);
            let m = w.measure(5.0);
            for l in &m.links {
                within(*l, 10.0, 0.1);
            }
            assert!(m.p95 < 40.0, "{}", m.p95);
            w.busy[1] = None;
            w.busy[2] = None;
            w.run(1.0);
            let m = w.measure(5.0);
            within(m.links[0], 30.0, 0.05);
            assert!(m.p95 < 40.0, "{}", m.p95);
            // The first pauses, the second has it all.
            w.busy[0] = None;
            w.begin(1);
            w.run(1.0);
            let m = w.measure(5.0);
            within(m.links[1], 30.0, 0.05);
            assert!(m.p95 < 40.0, "{}", m.p95);
            w.busy[1] = None;
            w.begin(0);
            w.run(1.0);
        }
    }
}

#[test]
fn packets_in_the_clear_beside_a_link_are_paced_and_have_their_share() {
    for rtt in [20, 200] {
        let mut w = World::new(20, &[rtt]);
        println!("{rtt} ms, constant");
        w.begin(0);
        w.run(3.0);
        w.constant(5, 30);
        w.run(5.0);
        let m = w.measure(15.0);
        within(m.links[0], 10.0, 0.05);
        steady(&m);
        // What waits too long is dropped here, where its flow alone hears of it.
        assert!(w.refused > 0);
        w.plain.clear();
        println!("tcp");
        w.tcp(6, 50);
        w.run(5.0);
        for mbit in [20, 60] {
            w.rate = BitRate::from_mbit(mbit);
            w.run(5.0);
            let m = w.measure(15.0);
            within(m.links[0], *m.clear.last().unwrap(), 0.1);
            steady(&m);
        }
        // Little in the clear is all carried, and the link has the rest.
        w.plain.clear();
        w.constant(7, 2);
        w.run(3.0);
        let m = w.measure(10.0);
        within(*m.clear.last().unwrap(), 2.0, 0.02);
        within(m.links[0], 58.0, 0.05);
        steady(&m);
    }
}

#[test]
fn packets_in_the_clear_beside_links_without_traffic_are_paced() {
    for rtt in [20, 200] {
        let mut w = World::new(20, &[rtt, 100]);
        w.constant(5, 30);
        w.run(10.0);
        let m = w.measure(10.0);
        steady(&m);
        w.plain.clear();
        w.tcp(6, 50);
        w.run(10.0);
        let m = w.measure(10.0);
        steady(&m);
        let asked: f64 = m.links.iter().sum();
        assert!(asked < 0.1, "{asked}");
        // A link that begins beside them.
        w.begin(1);
        w.run(3.0);
        let m = w.measure(10.0);
        within(m.links[1], 10.0, 0.1);
        steady(&m);
    }
}

#[test]
fn a_link_whose_path_fails_or_loses_does_not_slow_the_others() {
    for seed in 1..=4 {
        let mut w = World::new(20, &[20, 100]);
        w.random = Rng::new(seed);
        w.begin(0);
        w.run(1.0);
        w.begin(1);
        w.run(5.0);
        for (loss, least) in [(0.02, 0.95), (0.1, 0.9)] {
            w.losses[0] = loss;
            w.run(20.0);
            let m = w.measure(10.0);
            assert!(m.used > least && m.p95 < 40.0, "{m:?}");
        }
        // From one moment to the next nothing arrives.
        w.losses[0] = 1.0;
        w.run(0.5);
        let m = w.measure(2.0);
        assert!(m.used > 0.25, "{}", m.used);
        w.run(5.0);
        // The new leader's base is too low by what it waited in the former one's queue: it drains in vain for
        // as long as that is remembered.
        let m = w.measure(10.0);
        assert!(m.links[1] > 14.0, "{m:?}");
        w.run(20.0);
        let m = w.measure(10.0);
        within(m.links[1], 20.0, 0.05);
        w.losses[0] = 0.0;
        w.run(10.0);
        let m = w.measure(10.0);
        within(m.links[0], m.links[1], 0.1);
        steady(&m);
    }
}

/// At once, and not when most of what was seen says so.
#[test]
fn loss_that_sets_in_does_not_stop_the_line() {
    for rtt in [20, 100, 200] {
        for loss in [0.05, 0.1, 0.2] {
            let mut w = World::new(20, &[rtt]);
            w.begin(0);
            w.run(6.0);
            w.losses[0] = loss;
            let m = w.measure(3.0);
            assert!(m.used > 0.93, "{rtt} ms, {loss}: {m:?}");
            let m = w.measure(10.0);
            assert!(m.used > 0.96 && m.drops == 0, "{rtt} ms, {loss}: {m:?}");
        }
    }
}

#[test]
fn two_links_use_a_line_that_varies_as_well_as_one() {
    let of = |rtts: &[u64]| {
        let mut w = World::new(20, rtts);
        for place in 0..rtts.len() {
            w.begin(place);
        }
        let mut random = Rng::new(7);
        let (mut rate, mut offered) = (20.0f64, 0.0);
        let mut turn = |w: &mut World| {
            rate = (rate * (1.0 + 0.3 * (random.unit() * 2.0 - 1.0))).clamp(4.0, 40.0);
            w.rate = BitRate((rate * 1e6) as u64);
            w.run(0.1);
            rate * 0.1
        };
        for _ in 0..100 {
            turn(&mut w);
        }
        w.forget();
        for _ in 0..600 {
            offered += turn(&mut w);
        }
        let got: Vec<f64> = w.carried.iter().map(|b| *b as f64 * 8e-6).collect();
        w.queue.sort_unstable();
        let p95 = w.queue[w.queue.len() * 95 / 100].as_secs_f64() * 1e3;
        let used = got.iter().sum::<f64>() / offered;
        println!("{rtts:?}: {got:.1?} Mbit, {used:.3} used, {p95:.1} ms");
        if let [a, b] = got[..] {
            within(a, b, 0.1);
        }
        (used, p95)
    };
    let (used, p95) = of(&[100]);
    for rtts in [[100, 100], [20, 100]] {
        let two = of(&rtts);
        assert!(two.0 > used - 0.03 && two.1 < 1.25 * p95, "{two:?}");
    }
}
