//! What is lost towards a host and how it is made good, each named after the
//! document that says what has to happen.

use std::time::Duration;

use super::super::wire::{parse_tcp, Outgoing, SynOptions, ACK, SYN};
use super::super::{Endpoint, HostTcp, Role};
use super::played::*;
use super::*;

fn sent(n: u32) -> (u32, usize) {
    (n * SEG, SEG as usize)
}

#[test]
fn rfc8985_a_hole_is_filled_within_a_round_trip() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 10 * 1460]);
    assert_eq!(p.pieces().len(), 10);
    p.now += 20 * MS;
    // The third is missing, and three that were sent after it are there.
    p.ack(2 * SEG, &[(3 * SEG, 6 * SEG)]);
    assert_eq!(p.pieces(), [sent(2)]);
    p.now += 20 * MS;
    p.ack(10 * SEG, &[]);
    assert_eq!(p.tcp.unacknowledged(), 0);
}

#[test]
fn rfc8985_reordering_is_waited_for() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 10 * 1460]);
    p.take();
    p.now += 20 * MS;
    // Only one arrived early: not yet a loss.
    p.ack(2 * SEG, &[(3 * SEG, 4 * SEG)]);
    assert_eq!(p.pieces(), []);
    let waited = p.wait();
    // A quarter of the least round-trip time.
    assert!(waited >= 4 * MS && waited <= 6 * MS, "{waited:?}");
    assert_eq!(p.pieces(), [sent(2)]);
}

#[test]
fn rfc8985_a_lost_tail_is_probed_after_two_round_trips() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 10 * 1460]);
    p.take();
    p.now += 20 * MS;
    p.ack(7 * SEG, &[]);
    assert_eq!(p.pieces(), []);
    let waited = p.wait();
    assert!(waited >= 40 * MS && waited <= 45 * MS, "{waited:?}");
    assert_eq!(p.pieces(), [sent(9)]);
    p.now += 20 * MS;
    // The probe arrived: what was sent before is lost.
    p.ack(7 * SEG, &[(9 * SEG, 10 * SEG)]);
    let waited = p.wait();
    assert!(waited <= 6 * MS, "{waited:?}");
    assert_eq!(p.pieces(), [sent(7), sent(8)]);
}

#[test]
fn rfc8985_a_repair_that_is_lost_again_is_made_again() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 10 * 1460]);
    p.take();
    p.now += 20 * MS;
    p.ack(0, &[(SEG, 10 * SEG)]);
    assert_eq!(p.pieces(), [sent(0)]);
    let waited = p.wait();
    assert!(waited <= 250 * MS, "{waited:?}");
    assert_eq!(p.pieces(), [sent(0)]);
}

#[test]
fn rfc6582_without_sack_three_duplicates_tell_a_loss_and_each_step_the_next() {
    let now = Instant::from_millis(10_000);
    let role = Role::Passive {
        local: SERVER,
        remote: CLIENT,
    };
    let tcp = Endpoint::new(now, role, &config(7)).unwrap();
    let mut p = Played {
        now,
        tcp,
        iss: 0,
        timestamps: false,
    };
    let syn = Outgoing {
        window: 65_535,
        syn: Some(SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            ..SynOptions::default()
        }),
        ..Outgoing::new(CLIENT, SERVER, IRS, 0, SYN)
    };
    p.give(&syn.to_packet());
    p.iss = parse_tcp(&p.take()[0]).unwrap().seq;
    p.now += 20 * MS;
    p.ack(0, &[]);
    p.tcp.write(&[1; 10 * 1460]);
    p.take();
    p.now += 20 * MS;
    p.ack(0, &[]);
    p.ack(0, &[]);
    assert_eq!(p.pieces(), []);
    p.ack(0, &[]);
    assert_eq!(p.pieces(), [sent(0)]);
    p.now += 20 * MS;
    p.ack(4 * SEG, &[]);
    assert_eq!(p.pieces(), [sent(4)]);
    p.now += 20 * MS;
    p.ack(10 * SEG, &[]);
    assert_eq!(p.tcp.unacknowledged(), 0);

    // To such a host every segment out of order is a duplicate of its own.
    for i in 1..4 {
        let data = p.data(i * 100, ACK, &[1; 100]);
        p.give(&data);
    }
    assert_eq!(p.take().len(), 3);
}

#[test]
fn rfc2018_a_host_that_takes_back_what_it_had_is_sent_it_again() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 4 * 1460]);
    p.take();
    p.now += 20 * MS;
    p.ack(0, &[(SEG, 4 * SEG)]);
    assert_eq!(p.pieces(), [sent(0)]);
    p.now += 20 * MS;
    // The first has arrived; the rest is not told any more, and was thrown away.
    p.ack(SEG, &[]);
    let mut again = p.pieces();
    while again.len() < 3 && p.now < Instant::from_millis(15_000) {
        p.wait();
        again.extend(p.pieces());
    }
    assert_eq!(again, [sent(1), sent(2), sent(3)]);
}

#[test]
fn rfc2883_a_duplicate_is_reported_once() {
    let mut p = Played::new(false);
    let data = p.data(0, ACK, &[1; 500]);
    p.give(&data);
    p.take();
    p.give(&data);
    let acks = p.take();
    let s = parse_tcp(&acks[0]).unwrap();
    assert_eq!(s.ack, IRS + 501);
    assert_eq!(s.data_options().blocks(), [(IRS + 1, IRS + 501)]);
    let next = p.data(500, ACK, &[1; 500]);
    p.give(&next);
    let acks = p.take();
    assert!(parse_tcp(&acks[0])
        .unwrap()
        .data_options()
        .blocks()
        .is_empty());
}

#[test]
fn rfc6298_the_timer_follows_the_round_trip_and_backs_off() {
    let mut p = Played::new(false);
    // One segment: whether the host holds back its acknowledgement is not known.
    p.tcp.write(&[1; 100]);
    assert_eq!(p.pieces(), [(0, 100)]);
    let mut waited = Duration::ZERO;
    let mut times = Vec::new();
    while times.len() < 4 {
        waited += p.wait();
        if !p.pieces().is_empty() {
            times.push(waited);
            waited = Duration::ZERO;
        }
    }
    assert!(times[0] >= 200 * MS && times[0] <= 250 * MS, "{times:?}");
    for w in times.windows(2) {
        assert!(
            w[1] >= w[0] * 19 / 10 && w[1] <= w[0] * 21 / 10,
            "{times:?}"
        );
    }
}

#[test]
fn rfc3522_a_timeout_in_error_is_taken_back() {
    let mut p = Played::new(true);
    p.tcp.write(&[1; 20 * 1448]);
    let first = p.take();
    let stamp = parse_tcp(&first[0])
        .unwrap()
        .data_options()
        .timestamps
        .unwrap()
        .0;
    // The host is out of reach for a second.
    let end = p.now + 1000 * MS;
    let mut again = 0;
    while p.now < end {
        p.wait();
        again += p.take().len();
    }
    assert!((1..15).contains(&again), "{again}");
    // It was only late: the acknowledgement is of the first sending.
    let mut s = p.segment(0, 2 * 1448, ACK);
    s.timestamps = Some((6000, stamp));
    p.give(&s.to_packet());
    assert_eq!(
        p.pieces(),
        [],
        "what is not known to be lost is not sent again"
    );
}
