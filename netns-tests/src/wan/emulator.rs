//! Real frames through two [`Direction`]s: keeps each frame until it is due and
//! measures how well that was kept. Works on any pair of [`Port`]s.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use mef_io::Port;
use mef_packet::{Buffer, Gso, HeapBuf, Instant, Meta, Packet};

use super::config::WanConfig;
use super::core::{Direction, Verdict};
use super::histogram::Histogram;
use super::stats::{DirectionSnapshot, Snapshot, SERIES_STEP_S};

/// Frames sent between two readings of the clock.
const SEND_BATCH: usize = 16;
/// A day of series at its step.
const LONGEST_SERIES: usize = 864_000;

struct Held {
    bytes: Vec<u8>,
    meta: Meta,
    due: Instant,
    /// Of `due - arrival`, what is propagation; `None` for a duplicate.
    propagation: Option<Duration>,
    back_to_back: bool,
    /// Bits of this frame and of those lost since the one before.
    bits: u64,
}

/// A direction and what it holds.
struct Lane {
    direction: Direction,
    /// (due, sequence number, slot)
    due: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    lost_bits: u64,
    last_sent: Option<Instant>,
    busy_bits: u64,
    busy_ns: i128,
    delay: Histogram,
    series: Vec<u64>,
}

impl Lane {
    fn new(direction: Direction) -> Self {
        Self {
            direction,
            due: BinaryHeap::new(),
            lost_bits: 0,
            last_sent: None,
            busy_bits: 0,
            busy_ns: 0,
            delay: Histogram::default(),
            series: Vec::new(),
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, ..))| *at)
    }

    fn snapshot(&self) -> DirectionSnapshot {
        let c = self.direction.counters();
        DirectionSnapshot {
            rate_bps: if self.busy_ns > 0 {
                self.busy_bits as f64 * 1e9 / self.busy_ns as f64
            } else {
                0.0
            },
            offered: c.offered,
            offered_bytes: c.offered_bytes,
            delivered: c.delivered,
            delivered_bytes: c.delivered_bytes,
            duplicated: c.duplicated,
            queue_drops: c.queue_drops,
            loss_drops: c.loss_drops,
            mtu_drops: c.mtu_drops,
            blackhole_drops: c.blackhole_drops,
            queue_p50_us: c.queue_delay.quantile(0.5),
            queue_p95_us: c.queue_delay.quantile(0.95),
            queue_p99_us: c.queue_delay.quantile(0.99),
            queue_max_us: c.queue_delay.max(),
            delay_us: self.delay.quantile(0.5),
            missed: 0,
            refused: 0,
            queue_us: self.series.clone(),
        }
    }
}

/// The emulator between port `a` and port `b`.
pub struct Emulator<P: Port<Buf = HeapBuf>> {
    ports: [P; 2],
    /// Lane `i` carries what came in through port `i`.
    lanes: [Lane; 2],
    slots: Vec<Held>,
    free: Vec<usize>,
    sequence: u64,
    origin: Option<Instant>,
    window_start: Instant,
    lateness: Histogram,
    unsegmented: u64,
    received: Vec<Packet<HeapBuf>>,
    sending: Vec<Packet<HeapBuf>>,
}

impl<P: Port<Buf = HeapBuf>> Emulator<P> {
    pub fn new(a: P, b: P, config: &WanConfig, now: Instant, seed: u64) -> Self {
        let lane =
            |c: &super::DirectionConfig, seed| Lane::new(Direction::new(c.clone(), now, seed));
        Self {
            ports: [a, b],
            lanes: [
                lane(&config.a_to_b, seed.wrapping_mul(2)),
                lane(&config.b_to_a, seed.wrapping_mul(2).wrapping_add(1)),
            ],
            slots: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            origin: None,
            window_start: now,
            lateness: Histogram::default(),
            unsegmented: 0,
            received: Vec::with_capacity(64),
            sending: Vec::with_capacity(SEND_BATCH),
        }
    }

    pub fn ports(&self) -> &[P; 2] {
        &self.ports
    }

    /// The load starts at `now`.
    pub fn set_origin(&mut self, now: Instant) {
        self.origin = Some(now);
        for lane in &mut self.lanes {
            lane.direction.set_origin(now);
            lane.series.clear();
        }
    }

    /// Forgets what was counted.
    pub fn start_window(&mut self, now: Instant) {
        self.window_start = now;
        self.lateness.clear();
        self.unsegmented = 0;
        for lane in &mut self.lanes {
            lane.direction.reset_counters();
            lane.delay.clear();
            lane.busy_bits = 0;
            lane.busy_ns = 0;
            lane.last_sent = None;
        }
    }

    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let [a, b] = &self.lanes;
        let [port_a, port_b] = [self.ports[0].stats(), self.ports[1].stats()];
        let a_to_b = DirectionSnapshot {
            missed: port_a.rx_missed,
            refused: port_b.tx_dropped,
            ..a.snapshot()
        };
        let b_to_a = DirectionSnapshot {
            missed: port_b.rx_missed,
            refused: port_a.tx_dropped,
            ..b.snapshot()
        };
        Snapshot {
            seconds: now.since(self.window_start).as_secs_f64(),
            rtt_us: a_to_b.delay_us + b_to_a.delay_us,
            a_to_b,
            b_to_a,
            lateness_p50_us: self.lateness.quantile(0.5),
            lateness_p99_us: self.lateness.quantile(0.99),
            lateness_max_us: self.lateness.max(),
            unsegmented: self.unsegmented,
            realtime: false,
            cpu_s: 0.0,
        }
    }

    /// Takes in what has arrived; returns how many frames.
    pub fn receive(&mut self, max: usize) -> usize {
        let mut total = 0;
        for side in [0, 1] {
            let mut received = std::mem::take(&mut self.received);
            total += self.ports[side].rx(&mut received, max);
            for packet in received.drain(..) {
                self.accept(side, &packet);
                self.ports[side].recycle(packet.buf);
            }
            self.received = received;
        }
        total
    }

    fn accept(&mut self, side: usize, packet: &Packet<HeapBuf>) {
        let bytes = packet.buf.bytes();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if packet.meta.gso != Gso::None {
            self.unsegmented += 1;
        }
        let lane = &mut self.lanes[side];
        let arrival = packet.meta.rx_time;
        let (at, back_to_back, waited, propagation, again) = match lane.direction.push(arrival, len)
        {
            Verdict::Drop(reason) => {
                if reason == super::DropReason::Loss {
                    lane.lost_bits += u64::from(len) * 8;
                }
                return;
            }
            Verdict::Deliver {
                at,
                back_to_back,
                waited,
                propagation,
                again,
            } => (at, back_to_back, waited, propagation, again),
        };
        if let Some(origin) = self.origin {
            let step = (arrival.since(origin).as_secs_f64() / SERIES_STEP_S) as usize;
            if step < LONGEST_SERIES {
                if lane.series.len() <= step {
                    lane.series.resize(step + 1, 0);
                }
                if let Some(longest) = lane.series.get_mut(step) {
                    *longest =
                        (*longest).max(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
                }
            }
        }
        let bits = std::mem::take(&mut lane.lost_bits) + u64::from(len) * 8;
        self.hold(side, packet, at, Some(propagation), back_to_back, bits);
        if let Some(again) = again {
            self.hold(side, packet, again, None, false, 0);
        }
    }

    fn hold(
        &mut self,
        side: usize,
        packet: &Packet<HeapBuf>,
        due: Instant,
        propagation: Option<Duration>,
        back_to_back: bool,
        bits: u64,
    ) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Held {
                bytes: Vec::new(),
                meta: Meta::default(),
                due,
                propagation: None,
                back_to_back: false,
                bits: 0,
            });
            self.slots.len() - 1
        });
        if let Some(held) = self.slots.get_mut(slot) {
            held.bytes.clear();
            held.bytes.extend_from_slice(packet.buf.bytes());
            held.meta = packet.meta;
            held.due = due;
            held.propagation = propagation;
            held.back_to_back = back_to_back;
            held.bits = bits;
        }
        self.lanes[side]
            .due
            .push(Reverse((due, self.sequence, slot)));
        self.sequence += 1;
    }

    /// When the next frame has to leave.
    pub fn next_due(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(Lane::next_due).min()
    }

    /// Sends what is due by `clock`, which is read again every few frames.
    pub fn release(&mut self, clock: impl Fn() -> Instant) {
        loop {
            let now = clock();
            let mut more = false;
            for side in [0, 1] {
                self.release_batch(side, now);
                more |= self.lanes[side].next_due().is_some_and(|at| at <= now);
            }
            if !more {
                return;
            }
        }
    }

    fn release_batch(&mut self, side: usize, now: Instant) {
        let out = 1 - side;
        while self.sending.len() < SEND_BATCH {
            let lane = &mut self.lanes[side];
            let Some(Reverse((due, _, slot))) = lane.due.peek().copied() else {
                break;
            };
            if due > now {
                break;
            }
            lane.due.pop();
            let Some(held) = self.slots.get(slot) else {
                continue;
            };
            let late = now.since(held.due);
            self.lateness.record(micros(late));
            if let Some(propagation) = held.propagation {
                lane.delay.record(micros(propagation + late));
                if let Some(last) = lane.last_sent.filter(|_| held.back_to_back) {
                    lane.busy_bits += held.bits;
                    lane.busy_ns += i128::from(now.as_nanos()) - i128::from(last.as_nanos());
                }
                lane.last_sent = Some(now);
            }
            let mut buf = self.ports[out].alloc(held.bytes.len());
            buf.set(&held.bytes);
            self.sending.push(Packet {
                buf,
                meta: held.meta,
            });
            self.free.push(slot);
        }
        if !self.sending.is_empty() {
            self.ports[out].tx(&mut self.sending);
        }
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
