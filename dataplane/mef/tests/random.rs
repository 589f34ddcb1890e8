//! Random lives of two links over a bad wire: whatever is opened, written,
//! finished, reset, refused, read slowly, cut off or restarted, every byte that
//! arrives is right, every flow ends, and nothing is kept.
#![allow(clippy::unwrap_used, clippy::panic)]

mod ends;

use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::time::Duration;

use mef_packet::{BitRate, Bytes, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::line::{Departure, Line};
use mef_protocol::link::{Event, Link, LinkConfig, Opening};
use mef_protocol::send_stream::End as StreamEnd;

use ends::{config, setup, Ref, Rng, OVERHEAD};

/// What the router does with one flow, played by the test.
#[derive(Debug)]
struct App {
    accepted: bool,
    refuses: bool,
    accept_at: Instant,
    to_write: u64,
    written: u64,
    finished: bool,
    read: u64,
    /// Bytes that the host takes per visit; 0 is a host that has stopped.
    appetite: usize,
    resets_at: Option<Instant>,
    reset_seen: Option<Instant>,
}

struct End {
    link: Link,
    config: LinkConfig,
    number: u64,
    pool: ChunkPool,
    line: Line<Vec<u8>>,
    apps: BTreeMap<u32, App>,
    /// The replay window of the crypto layer.
    heard: HashSet<u64>,
    delivered: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    key: std::cmp::Reverse<(Instant, u64)>,
    to: usize,
    session: u32,
    number: u64,
    line_bytes: u64,
    inner: Vec<u8>,
}

struct World {
    now: Instant,
    rng: Rng,
    ends: [End; 2],
    rate: BitRate,
    delay: Duration,
    jitter: Duration,
    loss: f64,
    duplicates: f64,
    mtu: usize,
    cut_until: Instant,
    free_at: [Instant; 2],
    flying: BinaryHeap<Flying>,
    session: u32,
    order: u64,
    refused_packets: u64,
}

const TICK: Duration = Duration::from_millis(5);

fn byte_at(flow: u32, from: usize, i: u64) -> u8 {
    (i.wrapping_add(u64::from(flow) * 2 + from as u64)
        .wrapping_mul(2_654_435_761)
        >> 13) as u8
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed + 1);
        let now = Instant::from_millis(1000);
        let rate = BitRate::from_mbit(rng.pick(&[2, 10, 40, 100]));
        let memory = rng.pick(&[1u64 << 20, 4 << 20, 64 << 20]);
        let rtt = Duration::from_millis(rng.pick(&[2, 20, 100, 300]));
        let end = |even: bool| {
            let config = config(even, rate, ChunkPool::promise(memory));
            let ends::End {
                link,
                number,
                pool,
                line,
            } = ends::End::new(now, config, memory);
            End {
                link,
                config,
                number,
                pool,
                line,
                apps: BTreeMap::new(),
                heard: HashSet::new(),
                delivered: 0,
            }
        };
        let ends = [end(true), end(false)];
        let mut w = Self {
            now,
            ends,
            rate,
            delay: rtt / 2,
            jitter: Duration::from_millis(rng.pick(&[0, 0, 3, 20])),
            loss: rng.pick(&[0.0, 0.01, 0.05, 0.2]),
            duplicates: rng.pick(&[0.0, 0.02]),
            mtu: 1500,
            cut_until: Instant::ZERO,
            free_at: [now; 2],
            flying: BinaryHeap::new(),
            session: 0,
            order: 0,
            refused_packets: 0,
            rng,
        };
        w.new_session();
        w
    }

    fn new_session(&mut self) {
        self.session += 1;
        let rtt = self.delay * 2;
        for (i, e) in self.ends.iter_mut().enumerate() {
            e.number = 0;
            e.heard.clear();
            e.link.session_started(self.now, (i == 0).then_some(rtt));
        }
    }

    /// One end starts anew, as after a crash; the other hears of it by the handshake and HELLO.
    fn restart(&mut self, side: usize) {
        let e = &mut self.ends[side];
        e.config.boot_id += 100;
        e.link = Link::new(self.now, e.config);
        e.pool = ChunkPool::new(e.pool.limit_bytes());
        e.line = Line::new(self.now, self.rate);
        e.apps.clear();
        self.new_session();
    }

    fn open(&mut self, side: usize) {
        let now = self.now;
        let Some(flow) = self.ends[side].link.open(now, setup()) else {
            return;
        };
        let app = self.app(true);
        self.ends[side].apps.insert(flow, app);
    }

    fn app(&mut self, opener: bool) -> App {
        let r = &mut self.rng;
        App {
            accepted: opener,
            refuses: r.chance(0.1),
            accept_at: self.now + Duration::from_millis(r.below(100)),
            to_write: r.pick(&[0, 1, 500, 20_000, 200_000, 800_000]),
            written: 0,
            finished: false,
            read: 0,
            appetite: r.pick(&[0, 100, 5000, usize::MAX, usize::MAX]),
            resets_at: r
                .chance(0.25)
                .then_some(self.now + Duration::from_millis(r.below(3000))),
            reset_seen: None,
        }
    }

    /// What the routers at both ends do now and then.
    fn hosts(&mut self) {
        for side in 0..2 {
            while let Some(event) = self.ends[side].link.poll_event() {
                match event {
                    Event::Setup { flow, .. } => {
                        let app = self.app(false);
                        let old = self.ends[side].apps.insert(flow, app);
                        assert!(old.is_none(), "flow {flow} was set up twice");
                    }
                    Event::PeerRestarted { flows } => {
                        for f in flows {
                            self.ends[side].apps.remove(&f);
                        }
                    }
                    _ => {}
                }
            }
            let numbers: Vec<u32> = self.ends[side].apps.keys().copied().collect();
            for flow in numbers {
                if self.visit(side, flow) {
                    self.ends[side].apps.remove(&flow);
                }
            }
        }
    }

    /// Works on one flow; true when the router has no more to do with it.
    fn visit(&mut self, side: usize, flow: u32) -> bool {
        let now = self.now;
        let End {
            link,
            pool,
            apps,
            delivered,
            ..
        } = &mut self.ends[side];
        let app = apps.get_mut(&flow).unwrap();
        let Some(view) = link.view(flow) else {
            panic!("side {side} flow {flow}: forgotten before the router released it: {app:?}");
        };
        if !app.accepted {
            if now < app.accept_at {
                return false;
            }
            if app.refuses {
                link.refuse(now, pool, flow, 2);
                return true;
            }
            link.accept(now, flow);
            app.accepted = true;
        }
        if let Opening::Refused(code) = view.opening {
            assert!(code == 1 || code == 2);
            link.reset(now, pool, flow, 0);
            return true;
        }
        if app.resets_at.is_some_and(|t| t <= now) {
            link.reset(now, pool, flow, 1);
            return true;
        }
        let room = link.write_room(pool, flow) as u64;
        let n = room.min(app.to_write - app.written);
        if n > 0 {
            let data: Vec<u8> = (app.written..app.written + n)
                .map(|i| byte_at(flow, side, i))
                .collect();
            app.written += link.write(pool, flow, &data) as u64;
        }
        if app.written == app.to_write && !app.finished {
            app.finished = true;
            link.finish(now, flow);
        }
        let mut hunger = app.appetite;
        loop {
            let bytes = link.peek(flow);
            let n = bytes.len().min(hunger);
            for (i, b) in bytes.iter().take(n).enumerate() {
                let at = app.read + i as u64;
                assert_eq!(*b, byte_at(flow, 1 - side, at), "flow {flow} byte {at}");
            }
            if n == 0 {
                break;
            }
            hunger -= n;
            app.read += n as u64;
            *delivered += n as u64;
            link.consume(now, pool, flow, n);
        }
        let Some(view) = link.view(flow) else {
            panic!("side {side} flow {flow}: gone while it was read");
        };
        match view.recv_end {
            Some(StreamEnd::Reset(_)) => {
                let since = *app.reset_seen.get_or_insert(now);
                if view.recv_finished || now.since(since) > Duration::from_secs(1) {
                    link.reset(now, pool, flow, 0);
                    return true;
                }
            }
            Some(_) if view.recv_finished && app.finished => {
                link.release(pool, flow);
                return true;
            }
            _ => {}
        }
        false
    }

    fn run_until(&mut self, until: Instant) {
        while self.now < until {
            self.hosts();
            let tick = (self.now + TICK).min(until);
            while self.now < tick {
                self.step(tick);
            }
        }
    }

    fn step(&mut self, limit: Instant) {
        let mut next = limit;
        for side in 0..2 {
            let e = &mut self.ends[side];
            e.link.handle_timeout(self.now, &mut e.pool);
            let mut sent = 0;
            loop {
                let mut out = Vec::new();
                let mut refs = [Ref(&mut e.link, e.number)];
                let Some(Departure::Link(_, packed)) =
                    e.line.poll(self.now, &mut refs, &mut e.pool, &mut out)
                else {
                    next = next.min(e.line.poll_timeout(self.now, &refs));
                    break;
                };
                sent += 1;
                assert!(sent < 1000, "sends without end");
                let number = e.number;
                e.number += 1;
                let start = self.free_at[side].max(self.now);
                self.free_at[side] = start + self.rate.time_for(Bytes(packed.line_bytes));
                let lost = self.rng.chance(self.loss)
                    || out.len() + usize::from(OVERHEAD) > self.mtu
                    || self.now < self.cut_until;
                let copies = 1 + usize::from(self.rng.chance(self.duplicates));
                for _ in 0..if lost { 0 } else { copies } {
                    let late =
                        Duration::from_micros(self.rng.below(self.jitter.as_micros() as u64 + 1));
                    self.order += 1;
                    self.flying.push(Flying {
                        key: std::cmp::Reverse((
                            self.free_at[side] + self.delay + late,
                            self.order,
                        )),
                        to: 1 - side,
                        session: self.session,
                        number,
                        line_bytes: packed.line_bytes,
                        inner: out.clone(),
                    });
                }
            }
        }
        if let Some(f) = self.flying.peek() {
            next = next.min(f.key.0 .0);
        }
        self.now = next.max(self.now + Duration::from_nanos(1000));
        while self.flying.peek().is_some_and(|f| f.key.0 .0 <= self.now) {
            let f = self.flying.pop().unwrap();
            let e = &mut self.ends[f.to];
            if f.session != self.session || !e.heard.insert(f.number) {
                continue;
            }
            let taken =
                e.link
                    .handle_packet(self.now, &mut e.pool, f.number, f.line_bytes, &f.inner);
            // Before the peer's HELLO, or without memory, a packet may be refused; it comes again.
            if let Err(error) = taken {
                self.refused_packets += 1;
                assert!(
                    matches!(
                        error,
                        mef_protocol::link::PacketError::BeforeHello
                            | mef_protocol::link::PacketError::Stream(
                                mef_protocol::recv_stream::StreamError::NoMemory
                            )
                    ),
                    "an honest peer's packet was refused: {error}"
                );
            }
        }
    }

    /// Everybody hangs up in order, and the world must become empty.
    fn settle(&mut self, patience: Duration) {
        for e in &mut self.ends {
            for app in e.apps.values_mut() {
                app.appetite = usize::MAX;
                app.to_write = app.written;
            }
        }
        let until = self.now + patience;
        loop {
            self.run_until(self.now + Duration::from_millis(100));
            for e in &mut self.ends {
                for app in e.apps.values_mut() {
                    app.appetite = usize::MAX;
                    app.to_write = app.to_write.min(app.written.max(1000));
                }
            }
            let flows: usize = self.ends.iter().map(|e| e.link.flow_count()).sum();
            if flows == 0 {
                break;
            }
            if self.now >= until {
                for (side, e) in self.ends.iter().enumerate() {
                    println!(
                        "side {side}: mtu {} rate {:?} stats {:?} credit {:?} up {} silent {} flows {} used {}",
                        e.link.path_mtu(),
                        e.link.rate_limit(),
                        e.link.stats(),
                        e.link.stream_credit(),
                        e.link.is_up(),
                        e.link.is_silent(),
                        e.link.flow_count(),
                        e.pool.used_bytes()
                    );
                    for f in (0..4000).filter(|f| e.link.view(*f).is_some()) {
                        println!("  {f}: {:?} {:?}", e.link.view(f), e.apps.get(&f));
                    }
                }
                panic!("{flows} flows did not end");
            }
        }
        // A restart ends flows before their hosts hear of it.
        self.hosts();
        for (side, e) in self.ends.iter().enumerate() {
            assert_eq!(e.pool.used_bytes(), 0, "side {side} keeps memory");
            assert!(e.apps.is_empty());
        }
    }
}

#[derive(Clone, Copy)]
struct Chaos {
    cuts: bool,
    sessions: bool,
    restarts: bool,
    mtu: bool,
}

fn life(seed: u64, chaos: Chaos) -> World {
    let mut w = World::new(seed);
    w.run_until(w.now + Duration::from_secs(3));
    for _ in 0..40 {
        let side = w.rng.below(2) as usize;
        match w.rng.below(12) {
            0 if chaos.cuts => {
                w.cut_until = w.now + Duration::from_millis(w.rng.pick(&[50, 500, 2500]));
            }
            1 if chaos.sessions => w.new_session(),
            2 if chaos.restarts => w.restart(side),
            3 if chaos.mtu => w.mtu = w.rng.pick(&[1500, 1400, 1300]),
            4 => {
                let hungry = w.rng.pick(&[0, 1000, usize::MAX]);
                for a in w.ends[side].apps.values_mut() {
                    a.appetite = hungry;
                }
            }
            _ => {
                for _ in 0..=w.rng.below(4) {
                    w.open(side);
                }
            }
        }
        let pause = Duration::from_millis(w.rng.below(400));
        w.run_until(w.now + pause);
    }
    w.settle(Duration::from_secs(90));
    w
}

fn lives(range: std::ops::Range<u64>, chaos: Chaos) {
    let mut delivered = 0;
    for seed in range {
        println!("seed {seed}");
        let w = life(seed, chaos);
        delivered += w.ends[0].delivered + w.ends[1].delivered;
    }
    assert!(delivered > 1_000_000, "only {delivered} bytes were carried");
}

const CALM: Chaos = Chaos {
    cuts: false,
    sessions: false,
    restarts: false,
    mtu: false,
};

#[test]
fn flows_end_whatever_their_hosts_do() {
    lives(0..30, CALM);
}

#[test]
fn flows_end_over_outages_and_new_sessions() {
    lives(
        100..130,
        Chaos {
            cuts: true,
            sessions: true,
            ..CALM
        },
    );
}

#[test]
fn flows_end_when_peers_restart() {
    lives(
        200..230,
        Chaos {
            restarts: true,
            cuts: true,
            ..CALM
        },
    );
}

#[test]
fn flows_end_when_the_path_changes_its_mtu() {
    lives(300..330, Chaos { mtu: true, ..CALM });
}
