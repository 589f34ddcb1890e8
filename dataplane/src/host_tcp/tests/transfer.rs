//! Bytes: both directions, loss, windows.

use std::time::Duration;

use super::super::smoltcp_host::segment::{parse_tcp, seq_diff, ACK};
use super::super::{HostTcp, HostTcpConfig};
use super::*;

const TEN_MB: u64 = 10_000_000;

fn both_ways(mut net: Net, bytes: u64, limit: Duration) -> Net {
    for s in &mut net.sides {
        s.to_send = bytes;
        s.then_finish = true;
    }
    net.run(limit, |n| {
        n.states()
            .iter()
            .all(|s| s.remote_finished && s.local_finished && s.over())
    });
    for s in &net.sides {
        assert_eq!(s.received, bytes);
        assert_eq!(s.tcp.state().end, None);
    }
    net
}

#[test]
fn ten_megabytes_each_way_in_wire_packets() {
    let net = both_ways(Net::new(), TEN_MB, Duration::from_secs(10));
    for s in &net.sides {
        let (largest, gso_size) = s.largest;
        assert_eq!(gso_size, 1448);
        assert!(largest > 30_000, "{largest}");
        assert_eq!(largest % 1448, 0, "super-segments are whole segments");
    }
}

#[test]
fn ten_megabytes_each_way_in_super_segments() {
    let mut net = Net::new();
    net.whole = true;
    let net = both_ways(net, TEN_MB, Duration::from_secs(10));
    assert!(
        net.sent_packets < 5_000,
        "{} packets for 20 MB",
        net.sent_packets
    );
}

#[test]
fn loss_changes_no_byte() {
    for (loss, bytes) in [(1, TEN_MB), (10, 1_000_000), (100, 200_000)] {
        let mut net = Net::new();
        net.loss = loss;
        for s in &mut net.sides {
            s.to_send = bytes;
        }
        net.run(Duration::from_secs(3600), |n| {
            n.sides.iter().all(|s| s.received == bytes)
        });
    }
}

#[test]
fn sequence_numbers_wrap() {
    let mut net = Net::new();
    let irs = u32::MAX - 30_000;
    let syn = header(
        CLIENT,
        SERVER,
        super::super::smoltcp_host::segment::SYN,
        irs,
        0,
    )
    .to_packet();
    net.sides[1].tcp.handle_segment(net.now, &syn).unwrap();
    let ours = parse_tcp(&net.collect(1)[0]).unwrap().seq.wrapping_add(1);
    let mut sent = 0u64;
    while sent < 100_000 {
        let seq = irs.wrapping_add(1).wrapping_add(sent as u32);
        let p = with_payload(
            header(CLIENT, SERVER, ACK, seq, ours),
            &stream(11, sent, 1000),
        );
        net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
        sent += 1000;
        net.sides[1].read(11, usize::MAX);
        assert_eq!(net.sides[1].received, sent);
        let acks = net.collect(1);
        assert_eq!(parse_tcp(&acks[0]).unwrap().ack, seq.wrapping_add(1000));
    }
}

#[test]
fn one_acknowledgement_for_a_batch() {
    let mut net = Net::established();
    net.sides[0].tcp.write(&stream(11, 0, 20 * 1460));
    let packets = net.collect(0);
    let mut out = Vec::new();
    let parts: Vec<_> = packets
        .iter()
        .flat_map(|p| cut(p, SegmentMeta { gso_size: 1460 }))
        .collect();
    assert_eq!(parts.len(), 20);
    for p in &parts {
        net.sides[1].tcp.handle_segment(net.now, p).unwrap();
    }
    let meta = net.sides[1].tcp.poll_transmit(net.now, &mut out);
    assert!(meta.is_some());
    assert!(net.sides[1].tcp.poll_transmit(net.now, &mut out).is_none());
}

#[test]
fn a_reader_that_stops_stops_the_writer_and_starts_it_again() {
    let mut net = Net::established();
    net.sides[1].read_limit = 0;
    net.sides[0].to_send = 2_000_000;
    let start = net.now;
    net.run(Duration::from_secs(120), |n| {
        n.now.since(start) > Duration::from_secs(60)
    });
    // A reader that never reads is worth no more than the window at first, to within a segment.
    let unread = net.sides[1].tcp.readable();
    assert!(unread > (64 << 10) - 1448 && unread <= 64 << 10, "{unread}");
    // The window opens with the first read, without waiting for a probe.
    let before = net.now;
    net.sides[1].read(11, 64 << 10);
    let update = net.collect(1);
    assert_eq!(update.len(), 1);
    assert!(parse_tcp(&update[0]).unwrap().window > 0);
    net.sides[0]
        .tcp
        .handle_segment(net.now, &update[0])
        .unwrap();
    net.sides[1].read_limit = usize::MAX;
    net.run(Duration::from_secs(5), |n| n.sides[1].received == 2_000_000);
    assert!(net.now.since(before) < Duration::from_millis(500));
}

#[test]
fn a_lost_window_update_is_made_up_for_by_a_probe() {
    let mut net = Net::established();
    net.sides[1].read_limit = 0;
    net.sides[0].to_send = 1_000_000;
    let start = net.now;
    net.run(Duration::from_secs(60), |n| {
        n.now.since(start) > Duration::from_secs(5)
    });
    net.sides[1].read(11, 200_000);
    assert!(!net.collect(1).is_empty(), "thrown away");
    net.sides[1].read_limit = usize::MAX;
    net.run(Duration::from_secs(90), |n| {
        n.sides[1].received == 1_000_000
    });
}

#[test]
fn slow_readers_of_any_step_get_every_byte() {
    for step in [1000, 1459, 3001, 70_000] {
        let mut net = Net::new();
        net.sides[1].read_limit = step;
        net.sides[0].to_send = 600_000;
        net.sides[0].then_finish = true;
        net.run(Duration::from_secs(600), |n| n.states()[1].remote_finished);
        assert_eq!(net.sides[1].received, 600_000);
    }
}

/// The rule that [`HostTcp::read`] documents: told at once when the window was zero or doubles.
#[test]
fn window_updates_follow_the_doubling_rule() {
    let mut net = Net::established();
    net.sides[1].read_limit = 0;
    // Leaves a window of a quarter of the buffer.
    net.sides[0].to_send = 48 << 10;
    net.run(Duration::from_secs(5), |n| {
        n.sides[1].tcp.readable() == 48 << 10
    });
    net.settle();
    net.sides[1].read(11, 8 << 10);
    assert!(net.collect(1).is_empty(), "16 KiB to 24 KiB is not told");
    net.sides[1].read(11, 9 << 10);
    let update = net.collect(1);
    assert_eq!(update.len(), 1, "16 KiB to 33 KiB is");
    let s = parse_tcp(&update[0]).unwrap();
    assert_eq!(usize::from(s.window) << 3, 33 << 10);
}

#[test]
fn the_window_never_moves_back_by_more_than_its_scale() {
    let mut net = Net::with(
        config(1),
        HostTcpConfig {
            rx_buffer: 1 << 20,
            ..config(2)
        },
    );
    net.connect();
    net.sides[0].to_send = 3_000_000;
    net.sides[1].read_limit = 0;
    let mut edge: Option<u32> = None;
    for round in 0..400 {
        net.sides[1].read(11, 7_777 * (round % 3));
        let parts: Vec<_> = net
            .collect(0)
            .iter()
            .flat_map(|p| cut(p, SegmentMeta { gso_size: 1448 }))
            .collect();
        // The first round acknowledges what was read, the others each segment.
        for p in std::iter::once(None).chain(parts.iter().map(Some)) {
            if let Some(p) = p {
                net.sides[1].tcp.handle_segment(net.now, p).unwrap();
            }
            for ack in net.collect(1) {
                let s = parse_tcp(&ack).unwrap();
                let right = s.ack.wrapping_add(u32::from(s.window) << 5);
                if let Some(e) = edge {
                    assert!(
                        seq_diff(right, e) > -32,
                        "moved back by {}",
                        -seq_diff(right, e)
                    );
                }
                edge = Some(edge.map_or(right, |e| if seq_diff(right, e) > 0 { right } else { e }));
                net.sides[0].tcp.handle_segment(net.now, &ack).unwrap();
            }
        }
        net.sides[0].write();
    }
    assert!(
        net.sides[1].received > 1_000_000,
        "{}",
        net.sides[1].received
    );
}
