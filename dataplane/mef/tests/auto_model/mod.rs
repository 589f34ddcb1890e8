//! A bottleneck in virtual time: packets of 1514 bytes, a drop-tail queue before a line that
//! follows a trace or a schedule of rates, then loss and delay; reports on the way back.
//! A MEF sender, and others that share the line with it.

#![allow(dead_code, clippy::unwrap_used)]

pub mod foreign;

use foreign::{Foreign, Sender, Stamp};
use mef_packet::time::Duration;
use mef_packet::{BitRate, Instant};
use mef_protocol::auto::{AutoRate, Params, Report};
use std::collections::VecDeque;

pub const FRAME: u64 = 1514;
const BYTES: f64 = FRAME as f64;

/// What the line carries.
#[derive(Clone)]
pub enum Line {
    /// From each second on, Mbit/s.
    Steps(Vec<(f64, f64)>),
    /// Opportunities of 1500 bytes per millisecond, repeating.
    Trace(Vec<u16>),
}

impl Line {
    /// Reads a trace in Mahimahi's format.
    pub fn read(path: &std::path::Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let at: Vec<usize> = text.lines().filter_map(|l| l.trim().parse().ok()).collect();
        let mut per_ms = vec![0u16; (*at.last()?).max(1)];
        let n = per_ms.len();
        for t in at {
            per_ms[t % n] += 1;
        }
        Some(Self::Trace(per_ms))
    }
    fn bytes(&self, ms: usize) -> f64 {
        match self {
            Self::Trace(t) => 1500.0 * f64::from(t[ms % t.len()]),
            Self::Steps(s) => {
                let at = ms as f64 / 1e3;
                let rate = s.iter().rev().find(|x| x.0 <= at).map_or(0.0, |x| x.1);
                rate * 125.0
            }
        }
    }
    /// Bytes per second over a trace, or at the start.
    pub fn mean(&self) -> f64 {
        match self {
            Self::Trace(t) => {
                1500.0 * 1e3 * t.iter().map(|x| f64::from(*x)).sum::<f64>() / t.len() as f64
            }
            Self::Steps(s) => s[0].1 * 125e3,
        }
    }
}

#[derive(Clone)]
pub struct Setup {
    pub line: Line,
    /// Milliseconds each way.
    pub forward: usize,
    pub back: usize,
    /// From each second on, more milliseconds forward, reached linearly.
    pub longer: Vec<(f64, f64)>,
    /// Seconds at the mean rate.
    pub queue: f64,
    pub loss: f64,
    pub seconds: f64,
    /// Start of the window that is measured, seconds.
    pub from: f64,
    /// How long the receiver waits for company before it reports.
    pub ack_ms: usize,
    pub foreign: Vec<Foreign>,
    /// Seconds before there is anything to send; until then a packet keeps the link up now and then.
    pub quiet: f64,
    /// Of the random choices.
    pub seed: u64,
}

#[derive(Default)]
pub struct Outcome {
    /// Share of the line's bytes that were used in the window, by everybody and by each: MEF, then
    /// the foreign flows.
    pub used: f64,
    pub shares: Vec<f64>,
    /// Packets of MEF: time in the queue, ms.
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    /// Packets that found the queue full: MEF's, and of each foreign flow.
    pub drops: u64,
    pub foreign_drops: Vec<(u64, u64)>,
    /// Per 10 ms: bytes carried, longest time in the queue, ms.
    pub series: Vec<(f64, f64)>,
    /// Per 10 ms: bytes of MEF, its rate in bytes/s, whether it competes.
    pub mef: Vec<(f64, f64, bool)>,
    pub base_changes: u64,
}

struct Packet {
    at: usize,
    owner: usize,
    sent: u64,
    stamp: Stamp,
}

/// The schedule's value at `t`, between two entries on the straight line.
fn more(schedule: &[(f64, f64)], t: f64) -> usize {
    let i = schedule.partition_point(|x| x.0 <= t);
    match (i.checked_sub(1).map(|i| schedule[i]), schedule.get(i)) {
        (Some(a), Some(b)) => (a.1 + (b.1 - a.1) * (t - a.0) / (b.0 - a.0)) as usize,
        (Some(a), None) => a.1 as usize,
        _ => 0,
    }
}

struct Rng(u64);
impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The receiver of the MEF link: what arrived, and when to say so.
#[derive(Default)]
struct Receiver {
    delivered: u64,
    pending: u32,
    first: usize,
    newest: Option<(usize, Packet)>,
    last_report: usize,
}

impl Receiver {
    fn take(&mut self, t: usize, p: Packet) {
        self.delivered += FRAME;
        if self.pending == 0 {
            self.first = t;
        }
        self.pending += 1;
        self.newest = Some((t, p));
    }
    fn report(&mut self, t: usize, ack_ms: usize) -> Option<Report> {
        let (rx, p) = self.newest.as_ref()?;
        let due = match self.pending {
            0 => t - rx < 1500 && t - self.last_report >= ack_ms,
            n => n >= 64 || t - self.first >= ack_ms,
        };
        if !due {
            return None;
        }
        self.pending = 0;
        self.last_report = t;
        Some(Report {
            sent_at: instant(p.at),
            sent_bytes: p.sent,
            rx_us: (*rx as u64) * 1000,
            hold_us: ((t - rx) * 1000) as u64,
            delivered_bytes: self.delivered,
        })
    }
}

fn instant(ms: usize) -> Instant {
    Instant::from_millis(ms as u64 + 1000)
}

pub fn run(s: &Setup, p: Params) -> Outcome {
    let mut rng = Rng(0x1234_5678_9abc_def1 ^ s.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let rtt = Duration::from_millis((s.forward + s.back) as u64);
    let mut auto = AutoRate::with_params(instant(0), p, BitRate::from_mbit(1000));
    auto.session_started(instant(0), rtt);
    let mut others: Vec<Sender> = s.foreign.iter().map(|f| Sender::new(*f)).collect();
    let limit = (s.queue * s.line.mean()).max(20.0 * BYTES) as u64;
    let (mut queue, mut queued) = (VecDeque::<Packet>::new(), 0u64);
    let mut pipe = VecDeque::<(usize, Packet)>::new();
    let mut acks = VecDeque::<(usize, Report)>::new();
    let mut foreign_acks = VecDeque::<(usize, usize, Stamp)>::new();
    let mut receiver = Receiver::default();
    let (mut tokens, mut sent, mut credit) = (0.0f64, 0u64, 0.0f64);
    let flows = 1 + others.len();
    let mut o = Outcome {
        foreign_drops: vec![(0, 0); others.len()],
        ..Outcome::default()
    };
    let (mut carried, mut offered) = (vec![0.0f64; flows], 0.0f64);
    let mut delays: Vec<u32> = Vec::new();
    let from = (s.from * 1e3) as usize;
    let (mut step, mut step_queue, mut step_mef) = (0.0f64, 0.0f64, 0.0f64);
    for t in 0..(s.seconds * 1e3) as usize {
        let now = instant(t);
        while acks.front().is_some_and(|a| a.0 <= t) {
            auto.on_report(now, rtt, sent, acks.pop_front().unwrap().1);
        }
        while foreign_acks.front().is_some_and(|a| a.0 <= t) {
            let (_, i, stamp) = foreign_acks.pop_front().unwrap();
            others[i].on_ack(t as f64, stamp);
        }
        auto.poll(now, sent);
        let rate = auto.rate().bytes_per_second() / 1e3;
        tokens = (tokens + rate).min(rate + BYTES);
        if (t as f64) < s.quiet * 1e3 {
            tokens = if t % 250 == 0 { 0.0 } else { -1.0 };
        }
        // Who has how many packets in this millisecond; they enter the queue in random order.
        let mut waiting = vec![0u32; flows];
        while tokens >= 0.0 {
            tokens -= BYTES;
            waiting[0] += 1;
        }
        for (i, f) in others.iter_mut().enumerate() {
            waiting[i + 1] = f.send(t as f64);
        }
        let mut left: u32 = waiting.iter().sum();
        while left > 0 {
            let mut pick = (rng.unit() * f64::from(left)) as u32;
            let owner = waiting
                .iter()
                .position(|w| {
                    let here = pick < *w;
                    pick = pick.saturating_sub(*w);
                    here
                })
                .unwrap_or(0);
            waiting[owner] -= 1;
            left -= 1;
            let full = queued + FRAME > limit;
            let mut stamp = Stamp::default();
            match owner.checked_sub(1) {
                None => {
                    sent += FRAME;
                    o.drops += u64::from(full);
                }
                Some(i) => {
                    o.foreign_drops[i].0 += u64::from(full);
                    o.foreign_drops[i].1 += 1;
                    if full {
                        others[i].dropped();
                    } else {
                        stamp = others[i].stamp(t as f64);
                    }
                }
            }
            if !full {
                queued += FRAME;
                queue.push_back(Packet {
                    at: t,
                    owner,
                    sent,
                    stamp,
                });
            }
        }
        let c = s.line.bytes(t);
        if t >= from {
            offered += c;
        }
        credit = if queue.is_empty() { c } else { credit + c };
        while credit >= BYTES {
            let Some(p) = queue.pop_front() else { break };
            credit -= BYTES;
            queued -= FRAME;
            step += BYTES;
            step_queue = step_queue.max((t - p.at) as f64);
            if p.owner == 0 {
                step_mef += BYTES;
            }
            if t >= from {
                carried[p.owner] += BYTES;
                if p.owner == 0 {
                    delays.push((t - p.at) as u32);
                }
            }
            if p.owner > 0 {
                foreign_acks.push_back((t + s.forward + s.back, p.owner - 1, p.stamp));
            } else if rng.unit() >= s.loss {
                let extra = more(&s.longer, t as f64 / 1e3);
                let at = (t + s.forward + extra).max(pipe.back().map_or(0, |x| x.0));
                pipe.push_back((at, p));
            }
        }
        if queue.is_empty() {
            credit = 0.0;
        }
        if t % 10 == 9 {
            o.series.push((step, step_queue));
            o.mef
                .push((step_mef, auto.rate().bytes_per_second(), auto.competes()));
            (step, step_queue, step_mef) = (0.0, 0.0, 0.0);
        }
        while pipe.front().is_some_and(|x| x.0 <= t) {
            receiver.take(t, pipe.pop_front().unwrap().1);
        }
        if let Some(report) = receiver.report(t, s.ack_ms) {
            if rng.unit() >= s.loss {
                acks.push_back((t + s.back, report));
            }
        }
    }
    delays.sort_unstable();
    let quantile = |p: f64| {
        let i = (delays.len() as f64 * p) as usize;
        delays.get(i).copied().map_or(0.0, f64::from)
    };
    (o.p50, o.p95, o.p99) = (quantile(0.5), quantile(0.95), quantile(0.99));
    o.base_changes = auto.base_changes();
    o.used = carried.iter().sum::<f64>() / offered;
    o.shares = carried.iter().map(|c| c / offered).collect();
    o
}
