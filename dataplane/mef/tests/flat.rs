//! How evenly a bulk transfer comes out: what its reader gets by the tenth of a second, on paths on
//! which what was sent again is lost again several times in every round trip.

#![allow(clippy::unwrap_used)]

mod wire;

use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::link::Event;

use wire::{byte_at, setup, Wire};

/// What a reader got: bytes by the time they were there, in order.
struct Read {
    got: Vec<(Instant, u64)>,
    from: Instant,
    rate: BitRate,
}

impl Read {
    /// Bytes between two times after the start, in seconds.
    fn between(&self, a: f64, b: f64) -> u64 {
        let at = |s: f64| self.from + Duration::from_secs_f64(s);
        let within = |t: &Instant| *t >= at(a) && *t < at(b);
        self.got
            .iter()
            .filter(|(t, _)| within(t))
            .map(|g| g.1)
            .sum()
    }

    /// Of what the line can carry of full packets' payload, second by second.
    fn shares(&self, from: u64, to: u64, loss: f64) -> Vec<f64> {
        let ceiling =
            self.rate.bits_per_second() as f64 / 8.0 * 1424.0 / 1514.0 * 0.995 * (1.0 - loss);
        (from..to)
            .map(|s| self.between(s as f64, s as f64 + 1.0) as f64 / ceiling)
            .collect()
    }

    /// The longest time in which nothing came, in seconds.
    fn standstill(&self, from: f64) -> f64 {
        let from = self.from + Duration::from_secs_f64(from);
        let times: Vec<Instant> = self
            .got
            .iter()
            .map(|g| g.0)
            .filter(|t| *t >= from)
            .collect();
        times
            .windows(2)
            .map(|w| w[1].since(w[0]).as_secs_f64())
            .fold(0.0, f64::max)
    }
}

/// Sends as much as goes through one flow for `seconds`; `path` changes the wire as time goes by.
fn bulk(w: &mut Wire, seconds: u64, mut path: impl FnMut(&mut Wire, f64)) -> Read {
    let from = w.now;
    let flow = w.ends[0].link.open(w.now, setup()).unwrap();
    let (mut written, mut read) = (0u64, 0u64);
    let mut got = Vec::new();
    while w.now < from + Duration::from_secs(seconds) {
        path(w, w.now.since(from).as_secs_f64());
        let e = &mut w.ends[0];
        let room = e.link.write_room(&e.pool, flow);
        if room > 0 {
            let data: Vec<u8> = (written..written + room as u64).map(byte_at).collect();
            written += e.link.write(&mut e.pool, flow, &data) as u64;
        }
        w.step();
        let e = &mut w.ends[1];
        while let Some(event) = e.link.poll_event() {
            if let Event::Setup { flow, .. } = event {
                e.link.accept(w.now, flow);
            }
        }
        while e.link.view(flow).is_some() {
            let n = e.link.peek(flow).len();
            if n == 0 {
                break;
            }
            let first = e.link.peek(flow)[0];
            assert_eq!(first, byte_at(read));
            read += n as u64;
            got.push((w.now, n as u64));
            e.link.consume(w.now, &mut e.pool, flow, n);
        }
    }
    Read {
        got,
        from,
        rate: w.rate,
    }
}

fn say(name: &str, w: &Wire, r: &Read, shares: &[f64], skip: f64) -> (f64, f64) {
    let (least, most) = shares
        .iter()
        .fold((f64::MAX, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let s = w.ends[0].link.stats();
    let standstill = r.standstill(skip);
    println!(
        "{name}: mean {mean:.3}, by the second {least:.2} to {most:.2}, longest standstill {:.0} ms; {} packets, {} lost, {} repairs, {} bytes sent again, {} brought back",
        standstill * 1000.0, s.packets_sent, s.packets_lost, s.repairs_sent, s.bytes_retransmitted,
        w.ends[1].link.stats().bytes_recovered,
    );
    (mean, standstill)
}

#[test]
fn a_reader_at_500_ms_and_5_percent_waits_for_what_is_lost_twice_no_longer_than_for_the_rest() {
    let mut w = Wire::new(BitRate::from_mbit(30), Duration::from_millis(500), 0.05, 1);
    w.up();
    let r = bulk(&mut w, 25, |_, _| {});
    let shares = r.shares(5, 25, 0.05);
    let (mean, standstill) = say("30 Mbit/s, 500 ms, 5%", &w, &r, &shares, 5.0);
    assert!(standstill < 0.3, "nothing for {standstill} s");
    assert!(mean > 0.965, "{mean}");
    assert!(shares.iter().all(|s| (0.8..1.2).contains(s)), "{shares:?}");
}

#[test]
fn where_little_is_lost_twice_the_middle_gets_next_to_no_repair() {
    let mut w = Wire::new(BitRate::from_mbit(100), Duration::from_millis(200), 0.01, 1);
    w.up();
    let r = bulk(&mut w, 12, |_, _| {});
    let shares = r.shares(4, 12, 0.01);
    let (mean, _) = say("100 Mbit/s, 200 ms, 1%", &w, &r, &shares, 4.0);
    let s = w.ends[0].link.stats();
    assert!(s.repairs_sent * 1000 < s.packets_sent, "{s:?}");
    assert!(mean > 0.98, "{mean}");
}

/// A drone flies off: what is waited for an answer was learnt on a path half as long, and the
/// reader's end sends little. Both have to learn the new one at once.
#[test]
fn a_path_that_becomes_much_longer_from_one_packet_to_the_next_stops_nobody() {
    for seed in 0..8 {
        let rtt = Duration::from_millis;
        let mut w = Wire::new(BitRate::from_mbit(30), rtt(20), 0.0, seed);
        w.up();
        let r = bulk(&mut w, 20, |w, t| {
            (w.delay, w.loss) = match t {
                t if t < 4.0 => (rtt(10), 0.0),
                t if t < 10.0 => (rtt(25), 0.01),
                _ => (rtt(150), 0.03),
            };
        });
        let (first, second) = (r.shares(6, 10, 0.01), r.shares(16, 20, 0.03));
        assert!(first.iter().all(|s| *s > 0.8), "seed {seed}: {first:?}");
        assert!(second.iter().all(|s| *s > 0.6), "seed {seed}: {second:?}");
        let slow = w.ends[1].link.rtt().smoothed();
        assert!(slow > rtt(250), "seed {seed}: {slow:?}");
        assert!(!w.ends[1].link.is_silent());
    }
}
