//! Two links on a virtual wire: rate, delay, loss; no crypto, no hosts.

#![allow(dead_code)]

use std::collections::BinaryHeap;
use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::codec::Setup;
use mef_protocol::line::{Departure, Line, LinkEnd};
use mef_protocol::link::{Link, LinkConfig};

pub struct End {
    pub link: Link,
    pub number: u64,
    pub pool: ChunkPool,
    pub line: Line,
}
struct Ref<'a>(&'a mut Link, u64);
impl LinkEnd for Ref<'_> {
    fn link(&self) -> &Link {
        self.0
    }
    fn link_mut(&mut self) -> &mut Link {
        self.0
    }
    fn next_number(&self) -> Option<u64> {
        Some(self.1)
    }
}

pub struct Rng(u64);
impl Rng {
    pub fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

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

const OVERHEAD: u16 = 60;

impl Wire {
    pub fn new(rate: BitRate, rtt: Duration, loss: f64, seed: u64) -> Self {
        Self::with_memory(rate, rtt, loss, seed, 1 << 30)
    }

    /// Both ends have `memory` bytes.
    pub fn with_memory(rate: BitRate, rtt: Duration, loss: f64, seed: u64, memory: u64) -> Self {
        let now = Instant::from_millis(1000);
        let end = |even: bool| End {
            link: Link::new(
                now,
                LinkConfig {
                    even_flows: even,
                    boot_id: 5 + u64::from(even),
                    port_mtu: 1500,
                    line_up: rate,
                    line_down: rate,
                    link_credit: ChunkPool::promise(memory),
                    packet_overhead: OVERHEAD,
                    frame_overhead: 14,
                },
            ),
            number: 0,
            pool: ChunkPool::new(memory),
            line: Line::new(now, rate),
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
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
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

pub fn setup() -> Setup {
    Setup {
        source: "10.1.0.2:40000".parse().unwrap(),
        destination: "10.2.0.2:80".parse().unwrap(),
        weight: 1.0,
        early: true,
        class: Default::default(),
        dscp: 0,
        mss: 1460,
    }
}

pub fn byte_at(i: u64) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 13) as u8
}
