//! Two links on a virtual wire: rate, delay, loss; no crypto, no hosts.

#![allow(dead_code)]

#[path = "../ends/mod.rs"]
mod ends;

use std::collections::BinaryHeap;
use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::codec::Setup;
use mef_protocol::line::Departure;

use ends::{config, End, Ref, Rng, OVERHEAD};

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Flying(std::cmp::Reverse<(Instant, u64)>, usize, u64, u64, Vec<u8>);

pub struct Wire {
    pub now: Instant,
    pub ends: [End; 2],
    pub rate: BitRate,
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: f64,
    pub mtu: usize,
    pub hole: bool,
    pub rng: Rng,
    pub free_at: [Instant; 2],
    pub queue_max: Duration,
    pub flying: BinaryHeap<Flying>,
    pub order: u64,
}

impl Wire {
    pub fn new(rate: BitRate, rtt: Duration, loss: f64, seed: u64) -> Self {
        Self::with_memory(rate, rtt, loss, seed, 1 << 30)
    }

    /// Both ends have `memory` bytes.
    pub fn with_memory(rate: BitRate, rtt: Duration, loss: f64, seed: u64, memory: u64) -> Self {
        let now = Instant::from_millis(1000);
        let end = |even| {
            let config = config(even, rate, ChunkPool::promise(memory));
            End::new(now, config, memory)
        };
        let mut w = Self {
            now,
            ends: [end(true), end(false)],
            rate,
            delay: rtt / 2,
            jitter: Duration::ZERO,
            loss,
            mtu: 1500,
            hole: false,
            rng: Rng::new(seed),
            free_at: [now; 2],
            queue_max: Duration::ZERO,
            flying: BinaryHeap::new(),
            order: 0,
        };
        for e in &mut w.ends {
            e.link.session_started(now, Some(rtt));
        }
        w
    }

    /// Sends what may leave now and moves on to the next moment at which something happens.
    pub fn step(&mut self) {
        let mut next = Instant::FAR_FUTURE;
        for side in 0..2 {
            let e = &mut self.ends[side];
            e.link.handle_timeout(self.now, &mut e.pool);
            loop {
                let mut out = Vec::new();
                let mut refs = [Ref(&mut e.link, e.number)];
                let Some(Departure::Link(_, packed)) =
                    e.line.poll(self.now, &mut refs, &mut e.pool, &mut out)
                else {
                    next = next.min(e.line.poll_timeout(self.now, &refs));
                    break;
                };
                assert_eq!(packed.inner_len, out.len());
                let number = e.number;
                e.number += 1;
                let start = self.free_at[side].max(self.now);
                self.queue_max = self.queue_max.max(start.since(self.now));
                self.free_at[side] =
                    start + self.rate.time_for(mef_packet::Bytes(packed.line_bytes));
                if self.hole
                    || self.rng.unit() < self.loss
                    || out.len() + usize::from(OVERHEAD) > self.mtu
                {
                    continue;
                }
                let at = self.free_at[side] + self.delay + self.jitter.mul_f64(self.rng.unit());
                self.order += 1;
                self.flying.push(Flying(
                    std::cmp::Reverse((at, self.order)),
                    1 - side,
                    number,
                    packed.line_bytes,
                    out,
                ));
            }
        }
        if let Some(f) = self.flying.peek() {
            next = next.min(f.0 .0 .0);
        }
        self.now = next.max(self.now + Duration::from_nanos(1));
        while self.flying.peek().is_some_and(|f| f.0 .0 .0 <= self.now) {
            let f = self.flying.pop().unwrap();
            let e = &mut self.ends[f.1];
            e.link
                .handle_packet(self.now, &mut e.pool, f.2, f.3, &f.4)
                .unwrap();
        }
    }

    pub fn up(&mut self) {
        let until = self.now + Duration::from_secs(20);
        while !(self.ends[0].link.is_up() && self.ends[1].link.is_up()) {
            self.step();
            assert!(self.now < until);
        }
        // Let the path's MTU be found before anything is measured.
        let until = self.now + Duration::from_secs(3);
        while self.now < until {
            self.step();
        }
        for e in &mut self.ends {
            while e.link.poll_event().is_some() {}
        }
    }
}

/// A connection whose bytes need not wait for its acceptance.
pub fn setup() -> Setup {
    Setup {
        early: true,
        ..ends::setup()
    }
}

pub fn byte_at(i: u64) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}
