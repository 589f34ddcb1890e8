use super::*;
use crate::wan::config::{DirectionConfig, Line, Loss};
use mef_io::{Caps, MemPort, MemWire};
use mef_packet::{BitRate, Bytes};
use std::cell::Cell;

const CAPS: Caps = Caps {
    mtu: 1500,
    mac: [2, 0, 0, 0, 0, 1],
    tcp_gso: false,
    udp_gso: false,
    tx_checksum: false,
};

struct Bench {
    emulator: Emulator<MemPort>,
    a: MemWire,
    b: MemWire,
    now: Cell<Instant>,
}

impl Bench {
    fn new(a_to_b: DirectionConfig, b_to_a: DirectionConfig) -> Self {
        let (port_a, a) = MemPort::detached(CAPS, 10_000);
        let (port_b, b) = MemPort::detached(CAPS, 10_000);
        let now = Instant::from_millis(500);
        let config = WanConfig { a_to_b, b_to_a };
        Self {
            emulator: Emulator::new(port_a, port_b, &config, now, 1),
            a,
            b,
            now: Cell::new(now),
        }
    }

    fn send(wire: &MemWire, at: Instant, bytes: &[u8]) {
        let meta = Meta {
            rx_time: at,
            ..Meta::default()
        };
        wire.inject(Packet {
            buf: HeapBuf::from_slice(bytes),
            meta,
        })
        .unwrap();
    }

    /// Lets time pass to each due frame up to `until`, `late` behind it.
    fn run(&mut self, until: Instant, late: Duration) {
        self.emulator.receive(10_000);
        while let Some(due) = self.emulator.next_due().filter(|d| *d <= until) {
            self.now.set(self.now.get().max(due + late));
            self.emulator.release(|| self.now.get());
        }
    }

    fn received(wire: &MemWire) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        wire.take_sent(&mut out);
        out.iter().map(|p| p.buf.bytes().to_vec()).collect()
    }
}

fn line(mbit: u64, delay_ms: u64) -> DirectionConfig {
    DirectionConfig {
        line: Line::Rate(BitRate::from_mbit(mbit)),
        delay: Duration::from_millis(delay_ms),
        queue: Bytes(1_000_000),
        ..DirectionConfig::default()
    }
}

#[test]
fn frames_cross_unchanged_in_order_and_when_they_are_due() {
    let mut bench = Bench::new(line(100, 20), line(10, 30));
    let start = bench.now.get();
    let frames: Vec<Vec<u8>> = (0..50u8)
        .map(|i| vec![i; 60 + usize::from(i) * 29])
        .collect();
    for f in &frames {
        Bench::send(&bench.a, start, f);
        Bench::send(&bench.b, start, f);
    }
    bench.run(start + Duration::from_millis(20), Duration::ZERO);
    assert!(
        Bench::received(&bench.b).is_empty(),
        "before its propagation delay"
    );
    bench.run(start + Duration::from_secs(2), Duration::ZERO);
    assert_eq!(Bench::received(&bench.b), frames);
    assert_eq!(Bench::received(&bench.a), frames);
    let s = bench.emulator.snapshot(bench.now.get());
    assert_eq!((s.a_to_b.delivered, s.b_to_a.delivered), (50, 50));
    // Within the histogram's resolution.
    assert!(
        (20_000..=20_320).contains(&s.a_to_b.delay_us),
        "{}",
        s.a_to_b.delay_us
    );
    assert!((50_000..=50_800).contains(&s.rtt_us), "{}", s.rtt_us);
    assert_eq!(s.lateness_max_us, 0);
}

#[test]
fn the_measured_rate_is_that_of_the_line_also_when_frames_are_lost() {
    let mut lossy = line(50, 20);
    lossy.loss = Loss::Iid(0.2);
    let mut bench = Bench::new(lossy, line(100, 20));
    let start = bench.now.get();
    for _ in 0..600 {
        Bench::send(&bench.a, start, &[7; 1514]);
    }
    bench.run(start + Duration::from_secs(10), Duration::ZERO);
    let s = bench.emulator.snapshot(bench.now.get());
    assert!(
        (s.a_to_b.rate_bps / 50e6 - 1.0).abs() < 0.01,
        "{}",
        s.a_to_b.rate_bps
    );
    assert_eq!(s.a_to_b.loss_drops + s.a_to_b.delivered, 600);
    assert!((s.a_to_b.loss() - 0.2).abs() < 0.07);
    assert_eq!(s.b_to_a.rate_bps, 0.0);
}

#[test]
fn a_late_emulator_says_so_and_does_not_shift_what_follows() {
    let mut bench = Bench::new(line(100, 20), line(100, 20));
    let start = bench.now.get();
    for i in 0..100u64 {
        Bench::send(&bench.a, start + Duration::from_millis(i), &[1; 1000]);
    }
    let late = Duration::from_micros(300);
    bench.run(start + Duration::from_secs(1), late);
    let s = bench.emulator.snapshot(bench.now.get());
    assert!(
        (300..=305).contains(&s.lateness_p50_us),
        "{}",
        s.lateness_p50_us
    );
    // Every frame is late by itself, not by the sum of all lateness before it.
    assert!(s.lateness_max_us <= 305, "{}", s.lateness_max_us);
    assert_eq!(s.a_to_b.queue_max_us, 0);
}

#[test]
fn a_window_forgets_what_was_before_and_the_series_does_not() {
    let mut bench = Bench::new(line(1, 20), line(100, 20));
    let start = bench.now.get();
    bench.emulator.set_origin(start);
    for _ in 0..10 {
        Bench::send(&bench.a, start, &[1; 1250]);
    }
    bench.run(start + Duration::from_secs(1), Duration::ZERO);
    bench.emulator.start_window(bench.now.get());
    Bench::send(&bench.a, start + Duration::from_millis(1500), &[1; 100]);
    bench.run(start + Duration::from_secs(3), Duration::ZERO);
    let s = bench.emulator.snapshot(bench.now.get());
    assert_eq!((s.a_to_b.offered, s.a_to_b.queue_max_us), (1, 0));
    // The tenth frame waited for nine of 10 ms each.
    assert_eq!(s.a_to_b.queue_us.first(), Some(&90_000));
    assert_eq!(s.a_to_b.queue_us.len(), 16);
}

#[test]
fn super_segments_are_counted() {
    let mut bench = Bench::new(line(100, 20), line(100, 20));
    let meta = Meta {
        rx_time: bench.now.get(),
        gso: Gso::TcpV4,
        gso_size: 1448,
        ..Meta::default()
    };
    bench
        .a
        .inject(Packet {
            buf: HeapBuf::from_slice(&[0; 9000]),
            meta,
        })
        .unwrap();
    bench.run(bench.now.get(), Duration::ZERO);
    assert_eq!(bench.emulator.snapshot(bench.now.get()).unsegmented, 1);
}
