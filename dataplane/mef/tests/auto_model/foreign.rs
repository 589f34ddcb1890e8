//! Traffic that shares the bottleneck and knows nothing of MEF: CUBIC (RFC 9438), BBR (version 1,
//! as far as it decides about shares) and senders that do not listen. Time in milliseconds.

use std::collections::VecDeque;

/// What a foreign flow is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Cubic,
    Bbr,
    /// A constant rate, Mbit/s.
    Constant(f64),
}

/// A flow from `start` to `end`, seconds.
#[derive(Clone, Copy, Debug)]
pub struct Foreign {
    pub kind: Kind,
    pub start: f64,
    pub end: f64,
}

/// What a packet remembers for its acknowledgement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp {
    pub at: f64,
    delivered: f64,
    delivered_at: f64,
    /// Packets dropped in front of it.
    lost: u32,
    round: u64,
}

pub struct Sender {
    what: Foreign,
    inflight: f64,
    lost: u32,
    delivered: f64,
    delivered_at: f64,
    tokens: f64,
    cwnd: f64,
    ssthresh: f64,
    rtt_min: (f64, f64),
    srtt: f64,
    recovery_until: f64,
    /// When something was last sent after a silence, or acknowledged.
    alive: f64,
    // CUBIC
    w_max: f64,
    epoch: f64,
    k: f64,
    w_est: f64,
    // BBR
    bw: VecDeque<(u64, f64)>,
    round: u64,
    round_end: f64,
    full: (f64, u32),
    startup: bool,
    drain: bool,
    cycle: usize,
    cycle_at: f64,
    probe_until: f64,
}

const PACKET: f64 = 1514.0;
const GAINS: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

impl Sender {
    pub fn new(what: Foreign) -> Self {
        Self {
            what,
            inflight: 0.0,
            lost: 0,
            delivered: 0.0,
            delivered_at: 0.0,
            tokens: 0.0,
            cwnd: 10.0,
            ssthresh: f64::INFINITY,
            rtt_min: (f64::INFINITY, 0.0),
            srtt: 0.0,
            recovery_until: 0.0,
            alive: 0.0,
            w_max: 0.0,
            epoch: -1.0,
            k: 0.0,
            w_est: 0.0,
            bw: VecDeque::new(),
            round: 0,
            round_end: 0.0,
            full: (0.0, 0),
            startup: true,
            drain: false,
            cycle: 2,
            cycle_at: 0.0,
            probe_until: -1.0,
        }
    }

    fn bandwidth(&self) -> f64 {
        self.bw.iter().map(|b| b.1).fold(0.0, f64::max)
    }

    /// Packets that leave in the millisecond `t`.
    pub fn send(&mut self, t: f64) -> u32 {
        if t < self.what.start * 1e3 || t >= self.what.end * 1e3 {
            return 0;
        }
        self.time_out(t);
        match self.what.kind {
            Kind::Constant(mbit) => {
                self.tokens += mbit * 125.0 / PACKET;
            }
            Kind::Cubic => self.tokens = (self.cwnd - self.inflight).max(0.0),
            Kind::Bbr => {
                let bw = self.bandwidth();
                let gain = if self.startup {
                    2.885
                } else if self.drain {
                    1.0 / 2.885
                } else {
                    GAINS[self.cycle]
                };
                let bdp = bw * self.rtt_min.0.min(1e4);
                let cwnd = if t < self.probe_until {
                    4.0
                } else if bw == 0.0 {
                    10.0
                } else if self.startup || self.drain {
                    2.885 * bdp
                } else {
                    2.0 * bdp
                };
                let rate = if bw == 0.0 { 0.5 } else { 0.99 * gain * bw };
                self.tokens = (self.tokens + rate).min(rate + 2.0);
                let room = (cwnd.max(4.0) - self.inflight).max(0.0);
                let n = self.tokens.min(room).floor();
                self.tokens -= n;
                self.inflight += n;
                return n as u32;
            }
        }
        let n = self.tokens.floor();
        self.tokens -= n;
        self.inflight += n;
        n as u32
    }

    /// All that was in flight is lost, and nothing after it came to tell.
    fn time_out(&mut self, t: f64) {
        if self.inflight <= 0.0 {
            self.alive = t;
        }
        if t - self.alive < 2.0 * self.srtt + 200.0 || self.srtt == 0.0 {
            return;
        }
        self.alive = t;
        self.inflight = 0.0;
        self.lost = 0;
        if self.what.kind == Kind::Cubic {
            self.w_max = self.cwnd;
            self.ssthresh = (0.7 * self.cwnd).max(2.0);
            self.cwnd = 1.0;
            self.epoch = -1.0;
        }
    }

    /// The stamp of a packet that entered the queue.
    pub fn stamp(&mut self, t: f64) -> Stamp {
        Stamp {
            at: t,
            delivered: self.delivered,
            delivered_at: if self.delivered_at > 0.0 {
                self.delivered_at
            } else {
                t
            },
            lost: std::mem::take(&mut self.lost),
            round: self.round,
        }
    }

    pub fn dropped(&mut self) {
        self.lost += 1;
    }

    pub fn on_ack(&mut self, t: f64, s: Stamp) {
        let rtt = (t - s.at).max(1.0);
        self.alive = t;
        self.inflight = (self.inflight - 1.0 - f64::from(s.lost)).max(0.0);
        self.delivered += 1.0;
        self.delivered_at = t;
        self.srtt = if self.srtt == 0.0 {
            rtt
        } else {
            0.875 * self.srtt + 0.125 * rtt
        };
        match self.what.kind {
            Kind::Constant(_) => {}
            Kind::Cubic => {
                if s.lost > 0 && t > self.recovery_until {
                    self.recovery_until = t + rtt;
                    self.w_max = if self.cwnd < self.w_max {
                        0.85 * self.cwnd
                    } else {
                        self.cwnd
                    };
                    self.cwnd = (0.7 * self.cwnd).max(2.0);
                    self.ssthresh = self.cwnd;
                    self.epoch = -1.0;
                } else if self.cwnd < self.ssthresh {
                    // HyStart: leave slow start when a queue shows.
                    self.rtt_min.0 = self.rtt_min.0.min(rtt);
                    if rtt > self.rtt_min.0 + (self.rtt_min.0 / 8.0).clamp(4.0, 16.0)
                        && self.cwnd > 16.0
                    {
                        self.ssthresh = self.cwnd;
                    }
                    self.cwnd += 1.0;
                } else {
                    if self.epoch < 0.0 {
                        self.epoch = t;
                        self.k = if self.w_max > self.cwnd {
                            ((self.w_max - self.cwnd) / 0.4).cbrt()
                        } else {
                            0.0
                        };
                        self.w_max = self.w_max.max(self.cwnd);
                        self.w_est = self.cwnd;
                    }
                    let time = (t - self.epoch + self.srtt) / 1e3;
                    let target = (0.4 * (time - self.k).powi(3) + self.w_max).min(1.5 * self.cwnd);
                    self.w_est += 3.0 * 0.3 / 1.7 / self.cwnd;
                    let step = if target > self.cwnd {
                        (target - self.cwnd) / self.cwnd
                    } else {
                        0.01 / self.cwnd
                    };
                    self.cwnd = (self.cwnd + step).max(self.w_est);
                }
            }
            Kind::Bbr => {
                if rtt < self.rtt_min.0 || t - self.rtt_min.1 > 10e3 {
                    if t - self.rtt_min.1 > 10e3 && rtt >= self.rtt_min.0 {
                        self.probe_until = t + 200.0 + self.rtt_min.0;
                    }
                    self.rtt_min = (rtt, t);
                } else if t < self.probe_until {
                    self.rtt_min = (self.rtt_min.0.min(rtt), t);
                }
                let rate = (self.delivered - s.delivered)
                    / (t - s.delivered_at).max(rtt.min(self.srtt)).max(1.0);
                if s.at >= self.round_end {
                    self.round += 1;
                    self.round_end = t;
                    if self.startup {
                        let bw = self.bandwidth();
                        if bw > 1.25 * self.full.0 {
                            self.full = (bw, 0);
                        } else {
                            self.full.1 += 1;
                            if self.full.1 >= 3 {
                                self.startup = false;
                                self.drain = true;
                            }
                        }
                    }
                }
                self.bw.push_back((self.round, rate));
                while self.bw.len() > 1 && self.bw.front().is_some_and(|b| b.0 + 10 < self.round) {
                    self.bw.pop_front();
                }
                if self.bw.len() > 4000 {
                    // Keep the largest of neighbours.
                    let v: Vec<_> = self.bw.iter().copied().collect();
                    self.bw = v
                        .chunks(2)
                        .map(|c| {
                            if c.len() > 1 && c[1].1 > c[0].1 {
                                c[1]
                            } else {
                                c[0]
                            }
                        })
                        .collect();
                }
                if self.drain && self.inflight <= self.bandwidth() * self.rtt_min.0 {
                    self.drain = false;
                    self.cycle_at = t;
                }
                // Probing goes on until it fills the pipe or loses, draining until the pipe is no more
                // than full.
                let past = t - self.cycle_at > self.rtt_min.0;
                let bdp = self.bandwidth() * self.rtt_min.0;
                let next = match self.cycle {
                    0 => past && (s.lost > 0 || self.inflight >= 1.25 * bdp),
                    1 => past || self.inflight <= bdp,
                    _ => past,
                };
                if !self.startup && !self.drain && next {
                    self.cycle = (self.cycle + 1) % 8;
                    self.cycle_at = t;
                }
            }
        }
    }
}
