//! How connections end: FIN in either order, RST at any point, TIME-WAIT.

use std::time::Duration;

use super::super::smoltcp_host::segment::{parse_tcp, ACK, FIN, RST, SYN};
use super::super::{rst_for, End, HostTcp};
use super::*;

/// Both FINs are through, and nothing is left to do for either endpoint.
#[track_caller]
fn both_over(net: &mut Net) {
    net.run(Duration::from_secs(30), |n| {
        n.states().iter().all(|s| s.over() && s.local_finished)
    });
    net.settle();
    for s in &net.sides {
        assert_eq!(s.tcp.state().end, None);
        assert_eq!(s.tcp.poll_timeout(), None);
        assert!(s.tcp.time_wait_record().is_some());
    }
}

#[test]
fn half_close_in_either_order() {
    for first in 0..2 {
        let mut net = Net::established();
        let second = 1 - first;
        net.sides[first].to_send = 50_000;
        net.sides[first].then_finish = true;
        net.run(Duration::from_secs(5), |n| {
            n.states()[second].remote_finished
        });
        net.settle();
        assert!(net.states()[first].local_finished);
        assert!(!net.states()[first].over());
        assert_eq!(net.sides[first].tcp.writable(), 0);
        // The other direction goes on for as long as it likes.
        net.now += Duration::from_secs(600);
        net.sides[second].to_send = 3_000_000;
        net.run(Duration::from_secs(10), |n| {
            n.sides[first].received == 3_000_000
        });
        net.sides[second].then_finish = true;
        both_over(&mut net);
        assert_eq!(net.sides[second].received, 50_000);
    }
}

#[test]
fn both_finish_at_once() {
    let mut net = Net::established();
    for s in &mut net.sides {
        s.to_send = 1000;
        s.then_finish = true;
    }
    both_over(&mut net);
    assert!(net.sides.iter().all(|s| s.received == 1000));
}

#[test]
fn finishing_before_the_handshake_waits_for_it() {
    let mut net = Net::new();
    net.sides[0].tcp.finish();
    net.sides[1].tcp.finish();
    both_over(&mut net);
    assert!(net
        .states()
        .iter()
        .all(|s| s.established && s.remote_finished));
}

#[test]
fn an_empty_direction_finishes_too() {
    let mut net = Net::new();
    net.sides[0].to_send = 1;
    for s in &mut net.sides {
        s.then_finish = true;
    }
    both_over(&mut net);
    assert_eq!((net.sides[0].received, net.sides[1].received), (0, 1));
}

#[test]
fn a_reset_arrives_after_the_bytes_before_it() {
    for who in 0..2 {
        for bytes in [0, 1, 1460, 100_000, 400_000] {
            let mut net = Net::established();
            let other = 1 - who;
            net.sides[who].to_send = bytes;
            net.run(Duration::from_secs(5), |n| n.sides[other].received == bytes);
            net.settle();
            // More bytes in order, unread when the reset comes.
            net.sides[other].read_limit = 0;
            net.sides[who].to_send = bytes + 2000;
            net.run(Duration::from_secs(5), |n| {
                n.sides[other].tcp.readable() == 2000
            });
            net.sides[who].tcp.abort();
            net.run(Duration::from_secs(5), |n| n.states()[other].end.is_some());
            assert_eq!(net.states()[other].end, Some(End::ResetByPeer));
            assert_eq!(net.states()[who].end, Some(End::Aborted));
            net.sides[other].read(net.sides[who].seed, usize::MAX);
            assert_eq!(net.sides[other].received, bytes + 2000);
            assert_eq!(net.sides[other].tcp.writable(), 0);
            net.settle();
        }
    }
}

#[test]
fn resets_in_mid_transfer_end_both_sides() {
    for who in 0..2 {
        for at in [1, 5_000, 123_456, 1_000_000] {
            let mut net = Net::established();
            for s in &mut net.sides {
                s.to_send = 2_000_000;
            }
            net.run(Duration::from_secs(5), |n| n.sides[1].received >= at);
            net.sides[who].tcp.abort();
            net.run(Duration::from_secs(5), |n| {
                n.states().iter().all(|s| s.end.is_some())
            });
            assert_eq!(net.states()[1 - who].end, Some(End::ResetByPeer));
            net.settle();
        }
    }
}

#[test]
fn a_reset_during_the_handshake() {
    // The host gives up after the SYN-ACK.
    let mut net = Net::new();
    let syn = net.collect(0);
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    let syn_ack = net.collect(1);
    let rst = rst_for(&syn_ack[0]).unwrap();
    net.sides[1].tcp.handle_segment(net.now, &rst).unwrap();
    assert_eq!(net.states()[1].end, Some(End::ResetByPeer));
    assert_eq!(net.sides[1].tcp.poll_timeout(), None);
    // A SYN on the same ports is another connection's business.
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    assert!(parse_tcp(&net.collect(1)[0]).unwrap().has(RST));

    // We give up instead: before any SYN silently, after it with a reset that the host believes.
    let mut net = Net::new();
    net.sides[1].tcp.abort();
    assert!(net.collect(1).is_empty());
    net.sides[0].tcp.abort();
    assert!(net.collect(0).is_empty());
    for answered in [false, true] {
        let mut net = Net::new();
        let syn = net.collect(0);
        net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
        if answered {
            let syn_ack = net.collect(1);
            net.sides[0]
                .tcp
                .handle_segment(net.now, &syn_ack[0])
                .unwrap();
        }
        net.sides[1].tcp.abort();
        let rst = net.collect(1);
        assert_eq!(rst.len(), 1);
        net.sides[0].tcp.handle_segment(net.now, &rst[0]).unwrap();
        let end = if answered {
            End::ResetByPeer
        } else {
            End::Refused
        };
        assert_eq!(net.states()[0].end, Some(end));
    }
    // And the opener, when its SYN was answered or not.
    let mut net = Net::new();
    let syn = net.collect(0);
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    net.collect(1);
    net.sides[0].tcp.abort();
    let rst = net.collect(0);
    net.sides[1].tcp.handle_segment(net.now, &rst[0]).unwrap();
    assert_eq!(net.states()[1].end, Some(End::ResetByPeer));
}

#[test]
fn only_the_exact_sequence_number_resets() {
    let mut net = Net::established();
    let probe = {
        net.sides[0].tcp.write(b"x");
        net.collect(0)
    };
    let expected = parse_tcp(&probe[0]).unwrap().seq;
    net.sides[1].tcp.handle_segment(net.now, &probe[0]).unwrap();
    net.collect(1);
    for wrong in [
        expected,
        expected + 2,
        expected + 60_000,
        expected + 1_000_000,
    ] {
        let rst = header(CLIENT, SERVER, RST, wrong, 0).to_packet();
        net.sides[1].tcp.handle_segment(net.now, &rst).unwrap();
        assert_eq!(net.states()[1].end, None);
    }
    // One challenge for all of them, saying where the connection stands.
    let challenge = net.collect(1);
    assert_eq!(challenge.len(), 1);
    assert_eq!(parse_tcp(&challenge[0]).unwrap().ack, expected + 1);
    let rst = header(CLIENT, SERVER, RST, expected + 1, 0).to_packet();
    net.sides[1].tcp.handle_segment(net.now, &rst).unwrap();
    assert_eq!(net.states()[1].end, Some(End::ResetByPeer));
}

#[test]
fn a_syn_in_an_open_connection_is_challenged() {
    let mut net = Net::established();
    let syn = header(CLIENT, SERVER, SYN, 12345, 0).to_packet();
    net.sides[1].tcp.handle_segment(net.now, &syn).unwrap();
    let challenge = net.collect(1);
    assert_eq!(challenge.len(), 1);
    assert_eq!(parse_tcp(&challenge[0]).unwrap().flags, ACK);
    // A host that has forgotten the connection answers with a reset, which ends it.
    let rst = rst_for(&challenge[0]).unwrap();
    net.sides[1].tcp.handle_segment(net.now, &rst).unwrap();
    assert_eq!(net.states()[1].end, Some(End::ResetByPeer));
}

#[test]
fn unread_bytes_outlive_time_wait() {
    let mut net = Net::established();
    net.sides[0].tcp.finish();
    net.settle();
    net.sides[0].read_limit = 0;
    net.sides[1].to_send = 60_000;
    net.sides[1].then_finish = true;
    net.run(Duration::from_secs(5), |n| n.states()[0].time_wait);
    net.settle();
    net.now += Duration::from_secs(3600);
    net.settle();
    assert!(!net.states()[0].over(), "bytes are unread");
    net.sides[0].read(22, usize::MAX);
    assert_eq!(net.sides[0].received, 60_000);
    assert!(net.states()[0].over());
}

#[test]
fn the_record_answers_a_repeated_fin_and_tells_a_new_connection() {
    let mut net = Net::established();
    net.sides[0].tcp.finish();
    net.settle();
    net.sides[1].tcp.finish();
    let last_fin = net.collect(1).pop().unwrap();
    assert!(parse_tcp(&last_fin).unwrap().has(FIN));
    net.sides[0].tcp.handle_segment(net.now, &last_fin).unwrap();
    let ack = net.collect(0);
    assert_eq!(ack.len(), 1);
    let record = net.sides[0].tcp.time_wait_record().unwrap();
    assert_eq!((record.local, record.remote), (CLIENT, SERVER));
    assert_eq!(record.answer(&last_fin), Some(ack[0].clone()));
    // So does the endpoint, while it is still there.
    net.sides[0].tcp.handle_segment(net.now, &last_fin).unwrap();
    assert_eq!(net.collect(0), ack);
    // The other side takes it, and is done.
    net.sides[1].tcp.handle_segment(net.now, &ack[0]).unwrap();
    assert!(net.states()[1].over() && net.states()[1].local_finished);

    let from_host =
        |flags, seq: u32| header(SERVER, CLIENT, flags, seq, record.snd_nxt).to_packet();
    assert_eq!(record.answer(&from_host(ACK, record.rcv_nxt)), None);
    assert_eq!(record.answer(&from_host(RST, record.rcv_nxt)), None);
    assert!(record
        .answer(&from_host(ACK, record.rcv_nxt.wrapping_sub(1)))
        .is_some());
    let syn = |seq| header(SERVER, CLIENT, SYN, seq, 0).to_packet();
    assert!(record.may_reopen(&syn(record.rcv_nxt.wrapping_add(1000))));
    assert!(!record.may_reopen(&syn(record.rcv_nxt.wrapping_sub(1000))));
    let stranger = header(CLIENT, SERVER, SYN, record.rcv_nxt.wrapping_add(1000), 0).to_packet();
    assert!(!record.may_reopen(&stranger));
    assert_eq!(record.answer(&stranger), None);
}

#[test]
fn keep_alives_are_recognised() {
    let mut net = Net::established();
    net.sides[0].tcp.write(b"x");
    let data = net.collect(0);
    let s = parse_tcp(&data[0]).unwrap();
    let (next, ours) = (s.seq.wrapping_add(1), s.ack);
    assert!(!net.sides[1].tcp.is_keep_alive(&data[0]));
    net.sides[1].tcp.handle_segment(net.now, &data[0]).unwrap();
    net.collect(1);
    let empty = header(CLIENT, SERVER, ACK, next.wrapping_sub(1), ours).to_packet();
    let one = with_payload(
        header(CLIENT, SERVER, ACK, next.wrapping_sub(1), ours),
        b"\0",
    );
    let ack = header(CLIENT, SERVER, ACK, next, ours).to_packet();
    assert!(net.sides[1].tcp.is_keep_alive(&empty));
    assert!(net.sides[1].tcp.is_keep_alive(&one));
    assert!(!net.sides[1].tcp.is_keep_alive(&ack));
    net.sides[1].tcp.handle_segment(net.now, &empty).unwrap();
    assert_eq!(net.collect(1).len(), 1, "answered");
}
