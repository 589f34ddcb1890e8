//! Transfers over two links on a virtual wire.

#![allow(clippy::unwrap_used)]

mod wire;

use std::time::Duration;

use mef_packet::BitRate;
use mef_protocol::link::Event;

use wire::{byte_at, setup, Wire};

/// Moves `size` bytes over a fresh flow; returns seconds until the last byte, checks every byte.
fn transfer(w: &mut Wire, size: u64) -> f64 {
    let start = w.now;
    let flow = w.ends[0].link.open(w.now, setup()).unwrap();
    let (mut written, mut read) = (0u64, 0u64);
    let limit = start + Duration::from_secs(300);
    while read < size {
        let e = &mut w.ends[0];
        let room = e
            .link
            .write_room(&e.pool, flow)
            .min((size - written) as usize);
        // A short first write, as a request's header is, must not put every packet across two repair symbols.
        let room = if written == 0 { room.min(64) } else { room };
        if room > 0 {
            let data: Vec<u8> = (written..written + room as u64).map(byte_at).collect();
            written += e.link.write(&mut e.pool, flow, &data) as u64;
            if written == size {
                e.link.finish(w.now, flow);
            }
        }
        w.step();
        let e = &mut w.ends[1];
        while let Some(ev) = e.link.poll_event() {
            if let Event::Setup { flow: f, .. } = ev {
                assert_eq!(f, flow);
                e.link.accept(w.now, flow);
            }
        }
        loop {
            let n = {
                let p = e.link.peek(flow);
                for (i, b) in p.iter().enumerate() {
                    assert_eq!(*b, byte_at(read + i as u64), "byte {}", read + i as u64);
                }
                p.len()
            };
            if n == 0 {
                break;
            }
            read += n as u64;
            e.link.consume(w.now, &mut e.pool, flow, n);
        }
        assert!(w.now < limit, "stalled at {read} of {size} bytes");
    }
    let took = w.now.since(start).as_secs_f64();
    // The other half ends, and nothing of the flow remains at either end.
    w.ends[1].link.finish(w.now, flow);
    for e in &mut w.ends {
        e.link.release(&mut e.pool, flow);
    }
    let until = w.now + Duration::from_secs(10);
    while w.ends[0].link.flow_count() + w.ends[1].link.flow_count() > 0 {
        w.step();
        for e in &mut w.ends {
            while e.link.poll_event().is_some() {}
        }
        if let Some(v) = w.ends[0].link.view(flow) {
            if v.recv_finished || v.recv_end.is_some() {
                let e = &mut w.ends[0];
                e.link.consume(w.now, &mut e.pool, flow, 0);
            }
        }
        assert!(
            w.now < until,
            "the flow is not forgotten: {:?} {:?}",
            w.ends[0].link.view(flow),
            w.ends[1].link.view(flow)
        );
    }
    assert_eq!(
        (w.ends[0].pool.used_bytes(), w.ends[1].pool.used_bytes()),
        (0, 0)
    );
    took
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

const RTT: Duration = Duration::from_millis(200);

#[test]
fn short_transfers_take_one_way_and_their_size() {
    for (loss, small, big) in [
        (0.0, 0.115, 0.195),
        (0.01, 0.115, 0.195),
        (0.05, 0.118, 0.205),
        (0.2, 0.125, 0.23),
    ] {
        let mut w = Wire::new(BitRate::from_mbit(100), RTT, loss, 3);
        w.up();
        for _ in 0..15 {
            transfer(&mut w, 1_000_000);
        }
        let a: Vec<f64> = (0..100).map(|_| transfer(&mut w, 100_000)).collect();
        let b: Vec<f64> = (0..100).map(|_| transfer(&mut w, 1_000_000)).collect();
        let slow = a.iter().filter(|t| **t > 1.3 * 0.13).count()
            + b.iter().filter(|t| **t > 1.3 * 0.21).count();
        println!("loss {loss}: 100 kB {:.3} s, 1 MB {:.3} s, slow {slow} of 200, worst {:.3} {:.3}, repair loss {:?}", median(a.clone()), median(b.clone()),
            a.iter().copied().fold(0.0, f64::max), b.iter().copied().fold(0.0, f64::max), w.ends[0].link.stats());
        assert!(median(a) < small && median(b) < big);
        assert!(
            loss > 0.06 || slow <= 6,
            "{slow} of 200 transfers waited for a round trip"
        );
    }
}

#[test]
fn bulk_fills_the_line_at_any_loss() {
    for (loss, share) in [(0.0, 0.965), (0.01, 0.965), (0.05, 0.96), (0.2, 0.94)] {
        let mut w = Wire::new(BitRate::from_mbit(100), RTT, loss, 9);
        w.up();
        let size = 150_000_000;
        let took = transfer(&mut w, size);
        let ceiling = 100e6 * 1448.0 / 1514.0 * (1.0 - loss);
        // The last byte's way and the tail's repair are not the line's rate.
        let got = size as f64 * 8.0 / (took - 0.1) / ceiling;
        println!(
            "loss {loss}: {:.3} of the ceiling in {took:.2} s, queue {:?}, {:?}",
            got,
            w.queue_max,
            w.ends[0].link.stats()
        );
        assert!(got > share, "{got} of the ceiling at loss {loss}");
        assert!(w.queue_max < Duration::from_millis(2));
    }
}

#[test]
fn reordering_costs_little() {
    let mut w = Wire::new(BitRate::from_mbit(100), RTT, 0.01, 9);
    w.jitter = Duration::from_millis(10);
    w.up();
    let took = transfer(&mut w, 60_000_000);
    let ceiling = 100e6 * 1448.0 / 1514.0 * 0.99;
    let got = 60e6 * 8.0 / (took - 0.1) / ceiling;
    println!("{got:.3} {:?}", w.ends[0].link.stats());
    assert!(got > 0.94, "{got}");
}

#[test]
fn a_path_that_shrinks_is_found_out() {
    let mut w = Wire::new(BitRate::from_mbit(100), RTT, 0.0, 9);
    w.up();
    assert_eq!(w.ends[0].link.path_mtu(), 1500);
    w.mtu = 1400;
    let took = transfer(&mut w, 10_000_000);
    println!("{took:.2} s, mtu {}", w.ends[0].link.path_mtu());
    assert!(took < 0.97 + 1.0, "stalled: {took} s");
    assert!((1380..=1400).contains(&w.ends[0].link.path_mtu()));
}

#[test]
fn a_black_hole_is_left_quickly() {
    let mut w = Wire::new(BitRate::from_mbit(100), RTT, 0.0, 9);
    w.up();
    let flow = w.ends[0].link.open(w.now, setup()).unwrap();
    let start = w.now;
    let (mut read, mut last, mut series) = (0u64, 0u64, Vec::new());
    let mut tick = start;
    let mut silent_at = None;
    while w.now < start + Duration::from_secs(9) {
        let e = &mut w.ends[0];
        let room = e.link.write_room(&e.pool, flow);
        if room > 0 {
            let data = vec![0; room];
            e.link.write(&mut e.pool, flow, &data);
        }
        let t = w.now.since(start).as_secs_f64();
        w.hole = (3.0..6.0).contains(&t);
        w.step();
        let e = &mut w.ends[1];
        while e.link.poll_event().is_some() {}
        loop {
            let n = e.link.peek(flow).len();
            if n == 0 {
                break;
            }
            read += n as u64;
            e.link.consume(w.now, &mut e.pool, flow, n);
        }
        let e = &mut w.ends[0];
        while let Some(ev) = e.link.poll_event() {
            println!("{t:.3} {ev:?}");
            if ev == Event::Silent {
                silent_at.get_or_insert(t);
            }
        }
        if w.now >= tick {
            tick = w.now + Duration::from_millis(100);
            series.push((read - last) * 8 / 100_000);
            last = read;
        }
    }
    println!("{series:?}");
    assert!(
        silent_at.is_some_and(|t| (3.0..4.3).contains(&t)),
        "{silent_at:?}"
    );
    // Two round trips after its end bytes arrive, and the line is full again soon.
    let resumed: u64 = series[64..].iter().take(10).sum();
    assert!(resumed > 750, "{series:?}");
}

/// What a link costs that carries nothing: a question from each end now and then, and its answers.
#[test]
fn an_idle_link_says_little_and_is_not_taken_for_dead() {
    for (loss, most) in [(0.0, 2.5), (0.2, 5.0)] {
        let mut w = Wire::new(BitRate::from_mbit(100), RTT, loss, 3);
        w.up();
        let said = w.ends[0].number + w.ends[1].number;
        let start = w.now;
        while w.now < start + Duration::from_secs(300) {
            w.step();
            for e in &mut w.ends {
                while let Some(event) = e.link.poll_event() {
                    assert!(event != Event::Silent, "at {:?}", w.now.since(start));
                }
            }
        }
        let packets = w.ends[0].number + w.ends[1].number - said;
        let rate = packets as f64 / w.now.since(start).as_secs_f64();
        println!("{loss}: {rate:.1} packets/s");
        assert!((0.5..most).contains(&rate), "{rate:.1} packets a second");
    }
}
