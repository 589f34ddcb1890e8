//! Two thousand flows whose readers stop, on routers with little memory, and one
//! that is read beside them.

#![allow(clippy::unwrap_used)]

mod wire;

use std::collections::HashMap;
use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::link::Event;

use wire::{byte_at, setup, Wire};

const MEMORY: u64 = 64 << 20;
const RTT: Duration = Duration::from_millis(200);

/// What a host takes before its program has read anything.
const KERNEL: u64 = 60_001;

struct App {
    /// To be written in all, and what was.
    size: u64,
    written: u64,
    read: u64,
    /// The program at the far end reads.
    reads: bool,
}

struct Hosts {
    apps: HashMap<u32, App>,
    /// Most that was held at both ends.
    most: [u64; 2],
    retry: Instant,
}

impl Hosts {
    fn open(&mut self, w: &mut Wire, size: u64, reads: bool) -> u32 {
        let flow = w.ends[0].link.open(w.now, setup()).unwrap();
        self.apps.insert(
            flow,
            App {
                size,
                written: 0,
                read: 0,
                reads,
            },
        );
        self.feed(w, flow);
        flow
    }

    /// The host at end 0 writes what is taken from it.
    fn feed(&mut self, w: &mut Wire, flow: u32) {
        let (e, a) = (&mut w.ends[0], self.apps.get_mut(&flow).unwrap());
        loop {
            let room = e.link.write_room(&e.pool, flow) as u64;
            let n = room.min(a.size - a.written).min(16_384);
            let data: Vec<u8> = (a.written..a.written + n).map(byte_at).collect();
            let n = e.link.write(&mut e.pool, flow, &data) as u64;
            a.written += n;
            if n == 0 {
                return;
            }
            if a.written == a.size {
                e.link.finish(w.now, flow);
            }
        }
    }

    /// The host at end 1 takes what it has room for.
    fn drink(&mut self, w: &mut Wire, flow: u32) {
        let (e, a) = (&mut w.ends[1], self.apps.get_mut(&flow).unwrap());
        loop {
            let room = if a.reads {
                KERNEL
            } else {
                KERNEL.saturating_sub(a.read)
            };
            let bytes = e.link.peek(flow);
            let n = bytes.len().min(room as usize);
            assert!(bytes[..n]
                .iter()
                .enumerate()
                .all(|(i, b)| *b == byte_at(a.read + i as u64)));
            if n == 0 {
                e.link.reader(flow, room, a.reads && a.read > 2 * KERNEL);
                return;
            }
            a.read += n as u64;
            e.link.consume(w.now, &mut e.pool, flow, n);
        }
    }

    fn run(&mut self, w: &mut Wire, time: Duration) {
        let until = w.now + time;
        while w.now < until {
            w.step();
            while let Some(event) = w.ends[0].link.poll_event() {
                if let Event::Flow(flow) = event {
                    self.feed(w, flow);
                }
            }
            while let Some(event) = w.ends[1].link.poll_event() {
                match event {
                    Event::Setup { flow, .. } => w.ends[1].link.accept(w.now, flow),
                    Event::Flow(flow) => self.drink(w, flow),
                    _ => {}
                }
            }
            if w.now >= self.retry {
                self.retry = w.now + Duration::from_millis(20);
                let mut flows: Vec<u32> = self.apps.keys().copied().collect();
                flows.sort_unstable();
                for flow in flows {
                    self.feed(w, flow);
                }
            }
            for (most, e) in self.most.iter_mut().zip(&w.ends) {
                *most = e.pool.used_bytes().max(*most);
                assert!(*most <= MEMORY);
            }
        }
    }
}

fn beside_stalled_readers(loss: f64, spacing: Duration) -> (f64, f64) {
    let mut w = Wire::with_memory(BitRate::from_mbit(100), RTT, loss, 5, MEMORY);
    w.up();
    let mut hosts = Hosts {
        apps: HashMap::new(),
        most: [0; 2],
        retry: w.now,
    };
    let stalled: Vec<u32> = (0..2000)
        .map(|_| {
            hosts.run(&mut w, spacing);
            hosts.open(&mut w, 150_000, false)
        })
        .collect();
    hosts.run(&mut w, Duration::from_secs(15));
    let total = |h: &Hosts| h.apps.values().map(|a| a.read).sum::<u64>();
    let mut taken = 0;
    while taken != total(&hosts) {
        taken = total(&hosts);
        hosts.run(&mut w, Duration::from_secs(2));
    }
    let held = w.ends.each_ref().map(|e| e.pool.used_bytes());

    let healthy = hosts.open(&mut w, u64::MAX, true);
    let began = w.now;
    while hosts.apps[&healthy].read < 5_000_000 {
        hosts.run(&mut w, Duration::from_millis(10));
        assert!(
            w.now.since(began) < Duration::from_secs(10),
            "{}",
            hosts.apps[&healthy].read
        );
    }
    let late = w.now.since(began).as_secs_f64();
    let before = hosts.apps[&healthy].read;
    hosts.run(&mut w, Duration::from_secs(5));
    let rate = (hosts.apps[&healthy].read - before) as f64 * 8e-6 / 5.0;

    // Read again, they all come to their end.
    for flow in &stalled {
        hosts.apps.get_mut(flow).unwrap().reads = true;
        hosts.drink(&mut w, *flow);
    }
    hosts.run(&mut w, Duration::from_secs(60));
    let unread = stalled
        .iter()
        .filter(|f| hosts.apps[f].read < 150_000)
        .count();
    println!(
        "loss {loss}, {spacing:?} apart: held {held:?} stalled, {:?} at most; beside them {rate:.1} Mbit/s, 5 MB after {late:.2} s",
        hosts.most
    );
    assert_eq!(unread, 0);
    (rate, late)
}

#[test]
fn one_who_reads_beside_two_thousand_who_stopped() {
    let (rate, late) = beside_stalled_readers(0.0, Duration::from_millis(1));
    assert!(rate > 0.9 * 94.0, "{rate}");
    assert!(late < 4.0, "{late}");
}

#[test]
fn the_same_with_loss_and_one_after_another() {
    // Each has the line to itself for a time in which its host takes most of what it will.
    let (rate, late) = beside_stalled_readers(0.01, Duration::from_millis(4));
    assert!(rate > 0.9 * 93.0, "{rate}");
    assert!(late < 4.0, "{late}");
}
