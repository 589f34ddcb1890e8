//! The parts of the controller; the whole of it is measured in `tests/auto.rs`.

use super::base::Base;
use super::reports::{Point, Reports};
use super::*;

/// A report every 25 ms of `rate` bytes/s, of which the share `loss` is lost.
fn steady(reports: &mut Reports, from: f64, to: f64, rate: f64, loss: f64) {
    let (mut sent, mut delivered) = reports.last().map_or((0.0, 0.0), |p| (p.sent, p.delivered));
    let mut at = from;
    while at < to {
        sent += 0.025 * rate;
        delivered += 0.025 * rate * (1.0 - loss);
        reports.push(Point {
            at,
            sent_at: at - 0.1,
            sent,
            delivered,
            delay: 0.1,
            rate: 0.0,
        });
        reports.foretell(rate * (1.0 - loss));
        at += 0.025;
    }
}

#[test]
fn the_base_is_the_least_of_ten_seconds() {
    let mut b = Base::default();
    b.learn(0.0, 0.100);
    for i in 1..90 {
        b.learn(f64::from(i) * 0.1, 0.120);
    }
    assert!((b.above(0.130) - 0.030).abs() < 1e-9);
    assert!(b.staleness(8.9, 0.001) > 0.8);
    for i in 90..120 {
        b.learn(f64::from(i) * 0.1, 0.120);
    }
    assert!((b.above(0.130) - 0.010).abs() < 1e-9);
    // What others' queues may cover is remembered for longer.
    assert!((b.above_floor(0.130) - 0.030).abs() < 1e-9);
    b.replace(12.0, 0.200);
    assert_eq!(b.above(0.200), 0.0);
    assert_eq!(b.above(0.190), 0.0);
}

#[test]
fn rates_are_of_the_window_that_is_asked_for() {
    let mut r = Reports::default();
    steady(&mut r, 0.0, 1.0, 1e6, 0.0);
    steady(&mut r, 1.0, 2.0, 3e6, 0.0);
    assert!((r.rate_over(0.5) / 3e6 - 1.0).abs() < 0.01);
    assert!((r.rate_over(1.9) / 2e6 - 1.0).abs() < 0.05);
}

#[test]
fn loss_that_goes_away_when_less_is_sent_is_not_random() {
    let mut r = Reports::default();
    steady(&mut r, 0.0, 2.0, 2e6, 0.2);
    assert!((r.random_loss() - 0.2).abs() < 0.01);
    assert!(r.loss_in_doubt(false));
    let from = r.last().unwrap().sent;
    steady(&mut r, 2.0, 2.3, 1.5e6, 0.0);
    r.verify(from, r.last().unwrap().sent, false);
    assert!(r.random_loss() <= 0.03 + 1e-9, "{}", r.random_loss());
    assert!(!r.loses_more(0.2, 0.04));

    let mut r = Reports::default();
    steady(&mut r, 0.0, 2.0, 2e6, 0.2);
    let from = r.last().unwrap().sent;
    steady(&mut r, 2.0, 2.3, 1.5e6, 0.2);
    r.verify(from, r.last().unwrap().sent, false);
    assert!((r.random_loss() - 0.2).abs() < 0.02);
    assert!(!r.loss_in_doubt(false));
    steady(&mut r, 2.3, 2.6, 1.5e6, 0.5);
    assert!(r.loses_more(0.2, 0.04));
}

#[test]
fn old_and_repeated_reports_change_nothing() {
    let at = |ms: u64| Instant::from_millis(1000 + ms);
    let mut a = AutoRate::new(at(0), Target::Balanced, BitRate::from_mbit(1000));
    let rtt = Duration::from_millis(50);
    a.session_started(at(0), rtt);
    let report = |ms: u64| Report {
        sent_at: at(ms),
        sent_bytes: 1000 * ms,
        rx_us: 77_000_000 + (ms + 25) * 1000,
        hold_us: 0,
        delivered_bytes: 1000 * ms,
    };
    for ms in (0..200).step_by(10) {
        a.on_report(at(ms + 50), rtt, 1000 * (ms + 50), report(ms));
    }
    let before = (a.delivered(), a.queue());
    assert!((a.delivered().0 as f64 / 8e6 - 1.0).abs() < 0.05);
    a.on_report(at(250), rtt, 250_000, report(40));
    a.on_report(at(250), rtt, 250_000, report(190));
    assert_eq!((a.delivered(), a.queue()), before);
}

/// A peer that reports nonsense gets a rate between the floor and the ceiling.
#[test]
fn nonsense_stays_within_bounds() {
    let at = |ms: u64| Instant::from_millis(1000 + ms);
    let ceiling = BitRate::from_mbit(1000);
    let mut a = AutoRate::new(at(0), Target::Balanced, ceiling);
    let rtt = Duration::from_millis(50);
    let mut x = 1u64;
    for ms in 0..5000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let report = Report {
            sent_at: at(ms % 97),
            sent_bytes: x,
            rx_us: x.rotate_left(17),
            hold_us: x >> 40,
            delivered_bytes: x.rotate_left(29),
        };
        a.on_report(at(ms), rtt, 1500 * ms, report);
        a.poll(at(ms), 1500 * ms);
        assert!(a.rate().0 > 0 && a.rate() <= ceiling, "{:?}", a.rate());
    }
}
