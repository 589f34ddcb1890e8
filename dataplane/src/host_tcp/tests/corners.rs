//! Corners of TCP, each named after the document that says what has to happen.

use std::time::Duration;

use super::super::wire::{self, parse_tcp, Outgoing, ACK, FIN, PSH, RST, SYN};
use super::super::{End, Endpoint, HostTcp, HostTcpConfig, Role, SegmentError};
use super::played::*;
use super::*;

#[test]
fn rfc7323_old_segments_are_refused_and_time_stamps_echoed() {
    let mut p = Played::new(true);
    let data = p.data(0, ACK, &[1; 100]);
    let stamp = parse_tcp(&data)
        .unwrap()
        .data_options()
        .timestamps
        .unwrap()
        .0;
    p.give(&data);
    let ack = p.take();
    let echo = parse_tcp(&ack[0])
        .unwrap()
        .data_options()
        .timestamps
        .unwrap()
        .1;
    assert_eq!(echo, stamp);
    // In the window, but from an earlier time.
    let mut old = p.segment(100, 0, ACK);
    old.timestamps = Some((stamp - 1, 0));
    old.payload_len = 100;
    let mut old = old.to_packet();
    old.extend_from_slice(&[9; 100]);
    p.give(&old);
    assert_eq!(p.tcp.readable(), 100);
    assert_eq!(p.take().len(), 1, "and acknowledged");
    // After 24 days a time-stamp says nothing any more.
    p.now += Duration::from_secs(25 * 24 * 3600);
    p.give(&old);
    assert_eq!(p.tcp.readable(), 200);
}

#[test]
fn rfc7323_time_stamps_may_wrap() {
    let mut p = Played::new(true);
    for (i, stamp) in [u32::MAX / 2, u32::MAX - 5, 3].into_iter().enumerate() {
        let mut s = p.segment(i as u32 * 10, 0, ACK);
        s.timestamps = Some((stamp, 0));
        s.payload_len = 10;
        let mut s = s.to_packet();
        s.extend_from_slice(&[1; 10]);
        p.give(&s);
        p.take();
        assert_eq!(p.tcp.readable(), 10 * (i + 1));
    }
}

#[test]
fn rfc5961_acknowledgements_of_what_was_never_sent_are_challenged() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 1000]);
    p.take();
    for acked in [1001, 100_000, 0x8000_0000] {
        let s = p.segment(0, acked, ACK);
        p.give(&s.to_packet());
        assert_eq!(p.tcp.unacknowledged(), 1000);
    }
    assert_eq!(p.take().len(), 1, "one challenge a second");
}

#[test]
fn rfc9293_a_closed_window_is_probed_less_and_less_often() {
    let mut p = Played::new(false);
    let mut s = p.segment(0, 0, ACK);
    s.window = 0;
    let closed = s.to_packet();
    p.give(&closed);
    p.tcp.write(&[1; 5000]);
    assert_eq!(p.pieces(), []);
    let mut last = Duration::ZERO;
    for _ in 0..5 {
        let mut waited = p.wait();
        let mut probe = p.take();
        while probe.is_empty() {
            waited += p.wait();
            probe = p.take();
        }
        assert_eq!(probe.len(), 1);
        let s = parse_tcp(&probe[0]).unwrap();
        assert_eq!((s.seq, s.payload.len()), (p.iss, 0));
        assert!(
            waited >= 200 * MS && waited > last,
            "{waited:?} after {last:?}"
        );
        last = waited;
        p.give(&closed);
        assert_eq!(p.pieces(), []);
    }
    p.ack(0, &[]);
    assert_eq!(p.pieces().iter().map(|s| s.1).sum::<usize>(), 5000);
}

#[test]
fn rfc9293_a_host_that_answers_probes_is_waited_for_and_one_that_does_not_is_not() {
    for answers in [true, false] {
        let mut p = Played::new(false);
        let role = Role::Passive {
            local: SERVER,
            remote: CLIENT,
        };
        let limited = HostTcpConfig {
            timeout: Some(Duration::from_secs(20)),
            ..config(7)
        };
        p.tcp = Endpoint::new(p.now, role, &limited).unwrap();
        let syn = Outgoing {
            window: 0,
            ..Outgoing::new(CLIENT, SERVER, IRS, 0, SYN)
        };
        p.give(&syn.to_packet());
        p.iss = parse_tcp(&p.take()[0]).unwrap().seq;
        let mut closed = p.segment(0, 0, ACK);
        closed.window = 0;
        let closed = closed.to_packet();
        p.give(&closed);
        p.tcp.write(&[1; 5000]);
        let end = p.now + Duration::from_secs(600);
        while p.now < end && p.tcp.state().end.is_none() {
            if !p.take().is_empty() && answers {
                p.give(&closed);
            }
            if p.tcp.state().end.is_none() {
                p.wait();
            }
        }
        let expected = (!answers).then_some(End::TimedOut);
        assert_eq!(p.tcp.state().end, expected);
    }
}

#[test]
fn rfc9293_a_fin_goes_through_a_closed_window() {
    let mut p = Played::new(false);
    let mut s = p.segment(0, 0, ACK);
    s.window = 0;
    p.give(&s.to_packet());
    p.tcp.finish();
    let mut sent = Vec::new();
    while sent.is_empty() {
        p.wait();
        sent = p.take();
    }
    assert!(parse_tcp(&sent[0]).unwrap().has(FIN));
}

#[test]
fn rfc6093_urgent_data_stays_in_line() {
    const URG: u8 = 0x20;
    let mut p = Played::new(false);
    let mut data = p.data(0, ACK | URG | PSH, b"abc");
    let urgent_pointer = data.len() - 3 - 2;
    data[urgent_pointer + 1] = 2;
    p.give(&data);
    let mut got = Vec::new();
    p.tcp.read(|b| {
        got.extend_from_slice(b);
        b.len()
    });
    assert_eq!(got, b"abc");
}

#[test]
fn rfc9293_a_repeated_syn_is_answered_again_at_once() {
    let mut net = Net::new();
    let syn = net.collect(0);
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    let first = net.collect(1);
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    let second = net.collect(1);
    assert_eq!(first, second);
    // The timer of the third goes on from there.
    assert!(net.sides[1].tcp.poll_timeout().unwrap() >= net.now + Duration::from_secs(1));
}

#[test]
fn rfc9293_a_crossing_syn_is_not_answered() {
    let mut net = Net::new();
    net.collect(0);
    let crossing = Outgoing::new(SERVER, CLIENT, 99, 0, SYN).to_packet();
    net.sides[0].tcp.handle_segment(net.now, &crossing).unwrap();
    assert!(net.collect(0).is_empty());
    assert!(net.states()[0].connecting());
}

#[test]
fn rfc9293_a_host_that_shrinks_its_window_is_heeded() {
    let mut p = Played::new(false);
    p.tcp.write(&[1; 40 * 1460]);
    p.take();
    p.now += 20 * MS;
    // Half of what is on its way has no place any more.
    let mut s = p.segment(0, 10 * SEG, ACK);
    s.window = (10 * SEG / 128) as u16;
    p.give(&s.to_packet());
    assert_eq!(p.pieces(), []);
    p.now += 20 * MS;
    p.ack(40 * SEG, &[]);
    assert_eq!(p.tcp.unacknowledged(), 0);
}

#[test]
fn rfc6528_sequence_numbers_are_unpredictable_and_follow_the_clock() {
    let iss = |now: Instant, seed: u64, port: u16| {
        let mut remote = SERVER;
        remote.set_port(port);
        let role = Role::Active {
            local: CLIENT,
            remote,
        };
        let mut tcp = Endpoint::new(now, role, &config(seed)).unwrap();
        let mut out = Vec::new();
        tcp.poll_transmit(now, &mut out).unwrap();
        parse_tcp(&out).unwrap().seq
    };
    let now = Instant::from_millis(1);
    assert_eq!(iss(now, 1, 80), iss(now, 1, 80));
    assert_ne!(iss(now, 1, 80), iss(now, 2, 80));
    assert_ne!(iss(now, 1, 80), iss(now, 1, 81));
    let later = iss(now + Duration::from_secs(1), 1, 80);
    assert_eq!(later.wrapping_sub(iss(now, 1, 80)), 250_000);
}

#[test]
fn rfc8201_packet_too_big_makes_ipv6_segments_smaller_at_once() {
    let mut net = Net::between(
        [Kind::Own, Kind::Own],
        [CLIENT6, SERVER6],
        [config(1), config(2)],
    );
    net.connect();
    net.sides[0].to_send = 200_000;
    net.sides[0].write();
    let first = net.collect(0);
    assert_eq!(net.sides[0].largest.1, 1428);
    let too_big = |mtu: u32, about: &[u8]| {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, 58, 64];
        p.extend(&about[24..40]);
        p.extend(&about[8..24]);
        p.extend([2, 0, 0, 0]);
        p.extend(mtu.to_be_bytes());
        p.extend(&about[..60]);
        let length = ((p.len() - 40) as u16).to_be_bytes();
        p[4..6].copy_from_slice(&length);
        p
    };
    let icmp = too_big(1300, &first[0]);
    assert_eq!(wire::icmp_flow(&icmp), Some((CLIENT6, SERVER6)));
    net.sides[0].largest = (0, 0);
    net.sides[0].tcp.handle_segment(net.now, &icmp).unwrap();
    // No timer is waited for.
    assert!(!net.collect(0).is_empty());
    assert_eq!(net.sides[0].largest.1, 1300 - 40 - 20 - 12);
    net.run(Duration::from_secs(2), |n| n.sides[1].received == 200_000);
    // About a segment that is not in flight (RFC 5927).
    assert_eq!(
        net.sides[0].tcp.handle_segment(net.now, &icmp),
        Err(SegmentError::StaleIcmp)
    );
}

#[test]
fn rfc1337_a_reset_does_not_end_time_wait() {
    let mut p = Played::new(true);
    p.tcp.finish();
    assert!(parse_tcp(&p.take()[0]).unwrap().has(FIN));
    let mut fin = p.segment(0, 1, ACK | FIN);
    fin.window = 100;
    let fin = fin.to_packet();
    p.give(&fin);
    assert!(p.tcp.state().time_wait);
    let answer = p.take();
    // Hosts that insist on time-stamps get them from the record too (RFC 7323 §3.2).
    let stamps = parse_tcp(&answer[0]).unwrap().data_options().timestamps;
    assert_eq!(stamps.map(|s| s.1), Some(5020));
    let rst = p.segment(1, 1, RST).to_packet();
    p.give(&rst);
    assert!(p.tcp.state().over() && p.tcp.state().end.is_none());
    p.give(&fin);
    assert_eq!(p.take(), answer);
}

/// Not an RFC, but a promise: an idle connection holds no buffer, and the rest is small.
#[test]
fn an_idle_connection_costs_little() {
    let mut net = Net::new();
    for s in &mut net.sides {
        s.to_send = 3_000_000;
    }
    net.run(Duration::from_secs(10), |n| {
        n.sides.iter().all(|s| s.received == 3_000_000)
    });
    net.settle();
    for s in &net.sides {
        assert!(s.tcp.memory() < 1024, "{}", s.tcp.memory());
    }
    assert!(size_of::<Endpoint>() <= 1536, "{}", size_of::<Endpoint>());
}
