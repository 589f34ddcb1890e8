//! The guard against a model of a line: paced packets into a drop-tail queue, a
//! delay, loss and jitter behind it, acknowledgements on the way back.

use super::*;
use crate::loss::LossEstimator;
use std::collections::BTreeMap;

struct Rng(u64);
impl Rng {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

const PACKET: u64 = 1514;
const CONFIGURED: u64 = 100;

#[derive(Clone, Copy)]
struct Sent {
    at: Instant,
    bytes: u64,
}

struct Ack {
    sample: AckSample,
    acked: u32,
    lost: u32,
}

/// One direction of a line under a sender that always has something to send.
struct Line {
    rtt: Duration,
    /// Extra delay of the path, beyond the round trip at the start.
    longer: Duration,
    mbit: u64,
    queue_limit: u64,
    loss: f64,
    jitter: Duration,
    skew: f64,
    /// Share of the granted rate that the sender uses.
    use_share: f64,
    rng: Rng,
    now: Instant,
    free_at: Instant,
    sent_bytes: u64,
    counter: u64,
    arrivals: BTreeMap<(Instant, u64), Sent>,
    acks: BTreeMap<Instant, Ack>,
    /// Receiver: highest counter, number of packets, bytes, as of the last acknowledgement too.
    largest: Option<(u64, Sent, Instant)>,
    received: u64,
    acked_largest: u64,
    acked_received: u64,
    delivered: u64,
    ack_due: Instant,
    estimator: LossEstimator,
    guard: CapacityGuard,
    /// (when, queueing delay in ms) per packet; (when, bytes) delivered; rates over time.
    queue: Vec<(Instant, f64)>,
    log: Vec<(Instant, u64)>,
}

impl Line {
    fn new(rtt_ms: u64, mbit: u64) -> Self {
        Self {
            rtt: Duration::from_millis(rtt_ms),
            longer: Duration::ZERO,
            mbit,
            queue_limit: CONFIGURED * 125_000 * rtt_ms.max(50) / 1000,
            loss: 0.0,
            jitter: Duration::ZERO,
            skew: 0.0,
            use_share: 1.0,
            rng: Rng(11),
            now: Instant::from_millis(1000),
            free_at: Instant::ZERO,
            sent_bytes: 0,
            counter: 0,
            arrivals: BTreeMap::new(),
            acks: BTreeMap::new(),
            largest: None,
            received: 0,
            acked_largest: 0,
            acked_received: 0,
            delivered: 0,
            ack_due: Instant::ZERO,
            estimator: LossEstimator::new(),
            guard: CapacityGuard::new(BitRate::from_mbit(CONFIGURED)),
            queue: vec![],
            log: vec![],
        }
    }

    fn run(&mut self, seconds: f64) -> &mut Self {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.deliver();
            self.send();
            let rate = self.guard.rate().scale(self.use_share);
            self.now += rate.time_for(mef_packet::Bytes(PACKET));
        }
        self
    }

    fn send(&mut self) {
        let line = BitRate::from_mbit(self.mbit);
        let wait = self.free_at.since(self.now);
        self.sent_bytes += PACKET;
        self.counter += 1;
        let sent = Sent {
            at: self.now,
            bytes: self.sent_bytes,
        };
        if line.bytes_in(wait).0 + PACKET > self.queue_limit {
            return;
        }
        self.free_at = self.free_at.max(self.now) + line.time_for(mef_packet::Bytes(PACKET));
        self.queue.push((self.now, wait.as_secs_f64() * 1e3));
        if self.rng.unit() < self.loss {
            return;
        }
        let jitter = self.jitter.mul_f64(self.rng.unit());
        let at = self.free_at + self.rtt / 2 + self.longer + jitter;
        self.arrivals.insert((at, self.counter), sent);
    }

    fn deliver(&mut self) {
        while let Some((&(at, counter), &sent)) = self.arrivals.first_key_value() {
            if at > self.now {
                break;
            }
            self.arrivals.pop_first();
            self.received += 1;
            self.delivered += PACKET;
            self.log.push((at, PACKET));
            if self.largest.is_none_or(|l| counter > l.0) {
                self.largest = Some((counter, sent, at));
            }
            if at >= self.ack_due {
                self.ack_due = at + (self.rtt / 8).max(Duration::from_millis(5));
                self.acknowledge(at);
            }
        }
        while let Some(entry) = self.acks.first_entry() {
            if *entry.key() > self.now {
                break;
            }
            let (at, ack) = entry.remove_entry();
            self.estimator.on_lost(ack.lost);
            self.estimator.on_acked(ack.acked);
            self.guard
                .on_ack(at, self.rtt, self.estimator.mean(), ack.sample);
        }
        self.guard.poll(self.now);
    }

    fn acknowledge(&mut self, at: Instant) {
        let Some((counter, sent, rx)) = self.largest else {
            return;
        };
        let acked = (self.received - self.acked_received) as u32;
        let lost = (counter - self.acked_largest).saturating_sub(u64::from(acked)) as u32;
        self.acked_largest = counter;
        self.acked_received = self.received;
        // The receiver's clock is off by an hour and runs at its own speed.
        let rx_us = (rx.as_micros() as f64 * (1.0 + self.skew)) as u64 + 3_600_000_000;
        let sample = AckSample {
            sent_at: sent.at,
            sent_bytes: sent.bytes,
            rx_us,
            delivered_bytes: self.delivered,
            receiver_drops: 0,
        };
        self.acks.insert(
            at + self.rtt / 2,
            Ack {
                sample,
                acked,
                lost,
            },
        );
    }

    /// 95th percentile of the queueing delay of packets sent in the last `seconds`.
    fn queue_p95(&self, seconds: f64) -> f64 {
        let from = self.now - Duration::from_secs_f64(seconds);
        let mut q: Vec<f64> = self
            .queue
            .iter()
            .filter(|(t, _)| *t >= from)
            .map(|x| x.1)
            .collect();
        q.sort_by(f64::total_cmp);
        q[q.len() * 95 / 100]
    }

    /// Mbit/s received in the last `seconds`.
    fn goodput(&self, seconds: f64) -> f64 {
        let from = self.now - Duration::from_secs_f64(seconds);
        let bytes: u64 = self
            .log
            .iter()
            .filter(|(t, _)| *t >= from)
            .map(|x| x.1)
            .sum();
        bytes as f64 * 8.0 / seconds / 1e6
    }
}

fn wrong_capacity(rtt_ms: u64, mbit: u64, loss: f64, jitter_ms: u64) {
    let mut l = Line::new(rtt_ms, mbit);
    l.loss = loss;
    l.jitter = Duration::from_millis(jitter_ms);
    let name = format!("RTT {rtt_ms} line {mbit} loss {loss} jitter {jitter_ms}");
    l.run(3.0);
    let alarm = l
        .guard
        .alarm()
        .unwrap_or_else(|| panic!("{name}: no alarm"));
    assert_eq!(alarm.configured, BitRate::from_mbit(CONFIGURED));
    let seen = alarm.seen.0 as f64 / 1e6 / mbit as f64;
    assert!(
        (0.9..1.07).contains(&seen),
        "{name}: saw {:.1}",
        alarm.seen.0 as f64 / 1e6
    );
    l.run(17.0);
    let (q, g) = (
        l.queue_p95(17.0),
        l.goodput(20.0) / (1.0 - loss) / mbit as f64,
    );
    println!("{name}: queue p95 {q:.1} ms, {:.1}% of the line", g * 100.0);
    assert!(q <= 50.0, "{name}: queue p95 {q:.1} ms after 3 s");
    assert!(g >= 0.9, "{name}: {:.1}% of the line", g * 100.0);
    assert!(l.guard.alarm().is_some());
}

#[test]
fn a_line_slower_than_configured_is_found() {
    for rtt in [20, 200] {
        for mbit in [80, 50, 90, 20] {
            wrong_capacity(rtt, mbit, 0.0, 0);
        }
    }
}

#[test]
fn a_slow_lossy_line_is_found_too() {
    for rtt in [20, 200] {
        for mbit in [80, 50] {
            wrong_capacity(rtt, mbit, 0.01, 0);
            wrong_capacity(rtt, mbit, 0.05, 5);
        }
    }
}

#[test]
fn a_line_that_becomes_slower_and_recovers_is_followed() {
    for rtt in [20, 200] {
        let mut l = Line::new(rtt, 100);
        l.run(5.0);
        assert_eq!(l.guard.alarm(), None);
        l.mbit = 50;
        l.run(20.0);
        assert!(l.guard.alarm().is_some());
        assert!(l.goodput(10.0) > 0.9 * 50.0, "{}", l.goodput(10.0));
        l.mbit = 100;
        l.run(90.0);
        assert_eq!(
            l.guard.alarm(),
            None,
            "RTT {rtt}: still at {:?}",
            l.guard.rate()
        );
        assert!(l.queue_p95(5.0) < 5.0);
    }
}

#[test]
fn loss_and_jitter_alone_change_nothing() {
    for rtt in [20, 200] {
        for (loss, jitter) in [(0.2, 0), (0.0, 10), (0.2, 10), (0.05, 18)] {
            let mut l = Line::new(rtt, 101);
            l.loss = loss;
            l.jitter = Duration::from_millis(jitter);
            for _ in 0..60 {
                l.run(1.0);
                assert_eq!(
                    l.guard.alarm(),
                    None,
                    "RTT {rtt} loss {loss} jitter {jitter}"
                );
            }
        }
    }
}

#[test]
fn loss_that_sets_in_changes_nothing() {
    let mut l = Line::new(200, 101);
    l.run(5.0);
    l.loss = 0.2;
    l.run(20.0);
    assert_eq!(l.guard.rate(), BitRate::from_mbit(CONFIGURED));
}

#[test]
fn clock_skew_changes_nothing() {
    for skew in [100e-6, -100e-6] {
        let mut l = Line::new(200, 101);
        l.skew = skew;
        l.run(60.0);
        assert_eq!(l.guard.alarm(), None);
    }
}

#[test]
fn a_path_that_becomes_longer_does_not_hold_the_rate_down() {
    for rtt in [20, 200] {
        let mut l = Line::new(rtt, 101);
        l.run(5.0);
        l.longer = Duration::from_millis(60);
        l.run(15.0);
        assert_eq!(l.guard.alarm(), None, "RTT {rtt}: {:?}", l.guard.rate());
        assert!(l.goodput(15.0) > 93.0, "RTT {rtt}: {}", l.goodput(15.0));
    }
}

/// Who only acknowledges sends little, and a longer path delays that little once.
#[test]
fn a_path_that_becomes_longer_under_little_traffic_is_no_slow_line() {
    for seed in 1..20 {
        let mut l = Line::new(20, 100);
        (l.use_share, l.loss, l.rng) = (0.004, 0.03, Rng(seed));
        for step in 0..5u64 {
            l.longer = Duration::from_millis(75 * step);
            l.run(5.0);
            assert!(
                l.guard.alarm().is_none(),
                "seed {seed} step {step}: {:?}",
                l.guard.alarm()
            );
        }
    }
}

/// What little was sent waits behind a line that carries half of it.
#[test]
fn a_line_that_carries_less_than_a_little_is_found() {
    let mut l = Line::new(50, 2);
    (l.use_share, l.queue_limit) = (0.04, 2 << 20);
    l.run(8.0);
    let seen = l.guard.alarm().map(|a| a.seen).unwrap();
    assert!((1_500_000..2_300_000).contains(&seen.0), "{seen:?}");
}

#[test]
fn a_line_that_stands_still_for_a_moment_is_soon_trusted_again() {
    for rtt in [20, 200] {
        let mut l = Line::new(rtt, 101);
        l.run(5.0);
        l.free_at = l.now + Duration::from_millis(150);
        l.run(10.0);
        assert_eq!(l.guard.alarm(), None, "RTT {rtt}: {:?}", l.guard.rate());
        assert!(l.goodput(10.0) > 90.0, "RTT {rtt}: {}", l.goodput(10.0));
    }
}

#[test]
fn a_limit_that_is_not_used_is_not_raised() {
    let mut l = Line::new(20, 50);
    l.run(5.0);
    let held = l.guard.rate();
    l.use_share = 0.3;
    l.run(30.0);
    assert!(
        l.guard.rate() <= held.scale(1.1),
        "{:?} after {held:?}",
        l.guard.rate()
    );
}

#[test]
fn a_receiver_that_drops_is_given_what_it_takes() {
    let mut g = CapacityGuard::new(BitRate::from_mbit(100));
    // 100 Mbit/s sent, every fourth packet dropped by the receiver, no queue.
    for i in 1..200u64 {
        let t = Instant::from_millis(1000 + 5 * i);
        let sample = AckSample {
            sent_at: t,
            sent_bytes: i * 62_500,
            rx_us: t.as_micros() + 10_000,
            delivered_bytes: i * 46_875,
            receiver_drops: i * 10,
        };
        g.on_ack(
            t + Duration::from_millis(20),
            Duration::from_millis(20),
            0.0,
            sample,
        );
        if g.alarm().is_some() {
            break;
        }
    }
    let seen = g.alarm().unwrap().seen.0 as f64 / 1e6;
    assert!((70.0..80.0).contains(&seen), "{seen}");
}

#[test]
fn a_new_session_keeps_the_limit_and_goes_on_watching() {
    let mut l = Line::new(20, 50);
    l.run(5.0);
    let held = l.guard.rate();
    // The peer restarts: its counter of bytes begins at zero.
    l.delivered = 0;
    l.arrivals.clear();
    l.acks.clear();
    l.guard.session_started(l.now);
    l.run(2.0);
    assert!(l.guard.rate() <= held.scale(1.15) && l.guard.alarm().is_some());
    l.mbit = 25;
    l.run(3.0);
    let rate = l.guard.rate().0 as f64 / 1e6;
    assert!((20.0..27.5).contains(&rate), "{rate}");
}

#[test]
fn nonsense_from_a_peer_is_survived() {
    let mut g = CapacityGuard::new(BitRate::from_mbit(100));
    let mut rng = Rng(5);
    for i in 0..10_000u64 {
        let mut any = || (rng.unit() * 1.8e19) as u64;
        let sample = AckSample {
            sent_at: Instant::from_millis(i),
            sent_bytes: i * 1000,
            rx_us: any() >> (i % 64),
            delivered_bytes: any() >> (i % 61),
            receiver_drops: any(),
        };
        g.on_ack(
            Instant::from_millis(i + 20),
            Duration::from_nanos(any()),
            rng.unit() * 3.0 - 1.0,
            sample,
        );
        assert!(g.rate() > BitRate(0) && g.rate() <= BitRate::from_mbit(100));
    }
}
