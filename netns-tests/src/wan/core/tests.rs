use super::*;
use crate::wan::config::Scheduled;
use crate::wan::trace::Trace;
use mef_packet::{BitRate, Bytes};
use proptest::prelude::*;
use std::sync::Arc;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn line(mbit: u64) -> DirectionConfig {
    DirectionConfig {
        line: Line::Rate(BitRate::from_mbit(mbit)),
        delay: MS(100),
        ..DirectionConfig::default()
    }
}

fn start() -> Instant {
    Instant::from_millis(1000)
}

/// Delivery instants of `n` frames of `len` bytes that all come at once.
fn burst(d: &mut Direction, n: usize, len: u32) -> Vec<Option<Instant>> {
    (0..n)
        .map(|_| match d.push(start(), len) {
            Verdict::Deliver { at, .. } => Some(at),
            Verdict::Drop(_) => None,
        })
        .collect()
}

#[test]
fn rate_and_delay_are_exact() {
    let mut d = Direction::new(line(100), start(), 1);
    let at = burst(&mut d, 10_000, 1514);
    // 1514 bytes at 100 Mbit/s are 121.12 us; no rounding may add up over 10,000 frames.
    assert_eq!(
        at[0],
        Some(start() + MS(100) + Duration::from_nanos(121_120))
    );
    assert_eq!(
        at[9_999],
        Some(start() + MS(100) + Duration::from_nanos(1_211_200_000))
    );
}

#[test]
fn a_rate_that_does_not_divide_evenly_does_not_drift() {
    let mut cfg = line(1);
    cfg.line = Line::Rate(BitRate(97_000_003));
    let mut d = Direction::new(cfg, start(), 1);
    let at = burst(&mut d, 100_000, 777)
        .last()
        .copied()
        .flatten()
        .unwrap();
    let exact = 100_000.0 * 777.0 * 8.0 / 97_000_003.0;
    let got = at.since(start() + MS(100)).as_secs_f64();
    assert!((got - exact).abs() < 1e-6, "{got} {exact}");
}

#[test]
fn a_small_frame_on_an_idle_line_is_not_delayed_by_the_queue() {
    let mut d = Direction::new(line(100), start(), 1);
    for i in 0..100u64 {
        let now = start() + MS(i * 10);
        let Verdict::Deliver {
            at, back_to_back, ..
        } = d.push(now, 64)
        else {
            panic!("lost on a clean line")
        };
        assert_eq!(at, now + MS(100) + Duration::from_nanos(5_120));
        assert!(!back_to_back);
    }
    assert_eq!(d.counters().queue_delay.max(), 0);
}

#[test]
fn the_queue_holds_what_it_is_given_and_drops_the_tail() {
    let mut cfg = line(100);
    cfg.queue = Bytes(15_140);
    let mut d = Direction::new(cfg, start(), 1);
    let at = burst(&mut d, 25, 1514);
    assert_eq!(at.iter().flatten().count(), 10);
    assert!(at[..10].iter().all(Option::is_some));
    assert_eq!(d.counters().queue_drops, 15);
    // Three frame times later there is room for exactly three more.
    let later = start() + Duration::from_nanos(3 * 121_120);
    assert_eq!(d.backlog(later), 7 * 1514);
    for _ in 0..3 {
        assert!(matches!(d.push(later, 1514), Verdict::Deliver { .. }));
    }
    assert_eq!(d.push(later, 1514), Verdict::Drop(DropReason::Queue));
    assert_eq!(d.counters().queue_delay.max(), 9 * 1514 * 8 / 100);
}

#[test]
fn independent_loss_is_within_four_sigma() {
    for p in [0.001, 0.01, 0.15] {
        let mut cfg = line(1_000_000);
        cfg.loss = Loss::Iid(p);
        let mut d = Direction::new(cfg, start(), 7);
        let n = 200_000;
        burst(&mut d, n, 1514);
        let sigma = (n as f64 * p * (1.0 - p)).sqrt();
        let lost = d.counters().loss_drops as f64;
        assert!((lost - n as f64 * p).abs() < 4.0 * sigma, "p {p}: {lost}");
        assert_eq!(d.counters().delivered + d.counters().loss_drops, n as u64);
    }
}

#[test]
fn gilbert_losses_have_the_mean_and_the_burst_length_asked_for() {
    let mut cfg = line(1_000_000);
    cfg.loss = Loss::bursts(0.02, 8.0);
    assert!((cfg.loss.mean() - 0.02).abs() < 1e-12);
    let mut d = Direction::new(cfg, start(), 3);
    let lost: Vec<bool> = burst(&mut d, 1_000_000, 100)
        .iter()
        .map(Option::is_none)
        .collect();
    let total = lost.iter().filter(|l| **l).count();
    let bursts = lost.windows(2).filter(|w| !w[0] && w[1]).count();
    let (mean, length) = (total as f64 / 1e6, total as f64 / bursts as f64);
    assert!((mean - 0.02).abs() < 0.0025, "{mean}");
    assert!((length - 8.0).abs() < 0.7, "{length}");
}

#[test]
fn lost_frames_have_used_the_line() {
    let mut cfg = line(100);
    cfg.loss = Loss::Iid(0.5);
    let mut d = Direction::new(cfg, start(), 9);
    let at = burst(&mut d, 1000, 1514);
    for (i, at) in at.iter().enumerate() {
        let nth = Duration::from_nanos(121_120 * (i as u64 + 1));
        assert!(at.is_none_or(|at| at == start() + MS(100) + nth));
    }
}

#[test]
fn the_same_seed_gives_the_same_path_and_another_seed_another() {
    let run = |seed| {
        let mut cfg = line(50);
        cfg.loss = Loss::Iid(0.1);
        cfg.jitter = MS(10);
        cfg.reorder = true;
        cfg.duplicate = 0.05;
        burst(&mut Direction::new(cfg, start(), seed), 2000, 1000)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn jitter_reorders_only_when_it_may() {
    for reorder in [false, true] {
        let mut cfg = line(100);
        cfg.jitter = MS(10);
        cfg.reorder = reorder;
        let mut d = Direction::new(cfg, start(), 1);
        let at: Vec<Instant> = burst(&mut d, 2000, 1514).into_iter().flatten().collect();
        let overtakes = at.windows(2).filter(|w| w[1] < w[0]).count();
        assert_eq!(overtakes > 500, reorder, "{overtakes}");
        for (i, at) in at.iter().enumerate() {
            let sent = start() + Duration::from_nanos(121_120 * (i as u64 + 1));
            assert!(*at >= sent + MS(100) && *at <= sent + MS(110));
        }
    }
}

#[test]
fn duplicates_arrive_twice_and_do_not_use_the_line_twice() {
    let mut cfg = line(100);
    cfg.duplicate = 0.25;
    let mut d = Direction::new(cfg, start(), 1);
    let at = burst(&mut d, 10_000, 1514);
    let n = d.counters().duplicated;
    assert!((2300..2700).contains(&n), "{n}");
    assert_eq!(
        at[9_999],
        Some(start() + MS(100) + Duration::from_nanos(1_211_200_000))
    );
}

#[test]
fn a_rate_that_changes_under_a_frame_is_charged_to_the_bit() {
    let mut cfg = line(100);
    cfg.delay = Duration::ZERO;
    cfg.changes = vec![
        Scheduled {
            at: MS(1),
            change: Change::Rate(BitRate::from_mbit(10)),
        },
        Scheduled {
            at: MS(2),
            change: Change::Rate(BitRate::from_mbit(100)),
        },
    ];
    let mut d = Direction::new(cfg, start(), 1);
    // 1 ms at 100 Mbit/s is 12,500 bytes, the next at 10 Mbit/s 1,250 bytes.
    let at: Vec<Instant> = burst(&mut d, 15, 1250).into_iter().flatten().collect();
    assert_eq!(at[9], start() + MS(1));
    assert_eq!(at[10], start() + MS(2));
    assert_eq!(at[11], start() + MS(2) + Duration::from_micros(100));
}

#[test]
fn the_mtu_and_the_black_hole_follow_the_schedule() {
    let mut cfg = line(100);
    cfg.mtu = 1500;
    cfg.changes = vec![
        Scheduled {
            at: MS(10),
            change: Change::Mtu(1400),
        },
        Scheduled {
            at: MS(20),
            change: Change::Blackhole(true),
        },
        Scheduled {
            at: MS(30),
            change: Change::Blackhole(false),
        },
    ];
    let mut d = Direction::new(cfg, Instant::ZERO, 1);
    d.set_origin(start());
    let mut at = |ms, len| match d.push(start() + MS(ms), len) {
        Verdict::Deliver { .. } => None,
        Verdict::Drop(r) => Some(r),
    };
    assert_eq!(at(0, 1514), None);
    assert_eq!(at(0, 1515), Some(DropReason::Mtu));
    assert_eq!(at(10, 1415), Some(DropReason::Mtu));
    assert_eq!(at(10, 1414), None);
    assert_eq!(at(21, 64), Some(DropReason::Blackhole));
    assert_eq!(at(31, 1414), None);
}

#[test]
fn a_trace_delivers_1500_bytes_at_each_opportunity_and_none_is_saved_up() {
    let trace = Trace::parse("10\n20\n20\n40\n").unwrap();
    let cfg = DirectionConfig {
        line: Line::Trace(Arc::new(trace)),
        ..DirectionConfig::default()
    };
    let mut d = Direction::new(cfg, start(), 1);
    let at: Vec<u64> = burst(&mut d, 5, 1500)
        .into_iter()
        .flatten()
        .map(|t| t.since(start()).as_millis() as u64)
        .collect();
    assert_eq!(at, [10, 20, 20, 40, 50]);
    // Idle from 50 to 81 ms: the opportunities at 60, 60 and 80 are gone.
    let Verdict::Deliver { at, .. } = d.push(start() + MS(81), 1500) else {
        panic!()
    };
    assert_eq!(at, start() + MS(90));
}

proptest! {
    /// Whatever comes in: nothing leaves before it could, in order, and every frame is accounted for.
    #[test]
    fn conservation_and_order(
        frames in proptest::collection::vec((0u64..2_000_000, 64u32..1515), 1..400),
        mbit in 1u64..1000, queue in 2_000u64..100_000, loss in 0.0f64..0.3, seed: u64,
    ) {
        let mut cfg = line(mbit);
        cfg.queue = Bytes(queue);
        cfg.loss = Loss::Iid(loss);
        let mut d = Direction::new(cfg, Instant::ZERO, seed);
        let (mut now, mut last) = (start(), Instant::ZERO);
        for (gap, len) in &frames {
            now += Duration::from_nanos(*gap);
            if let Verdict::Deliver { at, .. } = d.push(now, *len) {
                let earliest = now + MS(100) + BitRate::from_mbit(mbit).time_for(Bytes(u64::from(*len)));
                prop_assert!(at + Duration::from_nanos(1) >= earliest && at >= last);
                last = at;
            }
            prop_assert!(d.backlog(now) <= queue);
        }
        let c = d.counters();
        prop_assert_eq!(c.offered, frames.len() as u64);
        prop_assert_eq!(c.offered, c.delivered + c.queue_drops + c.loss_drops);
    }
}
