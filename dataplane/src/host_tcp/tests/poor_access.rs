//! A radio LAN as access: 100 Mbit/s, 20 ms, packets lost at random. What is
//! asserted is the share of the line that a transfer to the host gets.

use std::time::Duration;

use super::super::HostTcpConfig;
use super::*;

const RATE: u64 = 100_000_000;

fn net(loss: u64, rtt: Duration, queue: Duration) -> Net {
    let config = |seed| HostTcpConfig {
        rx_buffer: 4 << 20,
        tx_buffer: 4 << 20,
        ..config(seed)
    };
    let mut net = Net::with(config(1), config(2));
    net.path = Path {
        delay: rtt / 2,
        jitter: Duration::ZERO,
        duplicate: 0,
        line: Some((RATE, (RATE as f64 / 8.0 * queue.as_secs_f64()) as u64)),
    };
    net.connect();
    net.loss = loss;
    net
}

/// Share of the line's rate that side 0 gets over `seconds`, from the first byte on.
fn share(net: &mut Net, seconds: u64) -> f64 {
    let start = net.now;
    net.sides[0].to_send = u64::MAX / 2;
    let limit = Duration::from_secs(seconds);
    let end = start + limit;
    net.run(limit + Duration::from_secs(1), |n| n.now >= end);
    net.sides[1].received as f64 * 8.0 / net.now.since(start).as_secs_f64() / RATE as f64
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn random_loss_costs_what_was_lost() {
    for (per_mille, least) in [(0, 0.93), (1, 0.93), (10, 0.9), (30, 0.85), (50, 0.8)] {
        let mut net = net(per_mille, 20 * MS, 20 * MS);
        let got = share(&mut net, 10);
        assert!(got >= least, "{per_mille} per mille lost: {got:.3}");
    }
}

#[test]
fn a_shallow_queue_or_a_deep_one_is_filled_and_not_overrun() {
    for (queue, least, most_lost) in [(2, 0.75, 0.12), (10, 0.85, 0.07), (500, 0.9, 0.0)] {
        let mut net = net(0, 20 * MS, queue * MS);
        let got = share(&mut net, 10);
        let lost = net.overflowed as f64 / net.sent_packets as f64;
        assert!(got >= least, "queue of {queue} ms: {got:.3}");
        assert!(lost <= most_lost, "queue of {queue} ms: {lost:.3} dropped");
    }
}

#[test]
fn reordering_is_not_loss() {
    let mut net = net(0, 20 * MS, 100 * MS);
    net.path.jitter = 3 * MS;
    let got = share(&mut net, 10);
    assert!(got >= 0.9, "{got:.3}");
}

/// 100 ms without anything, every second, as a radio that changes its channel.
#[test]
fn pauses_cost_little_more_than_themselves() {
    let mut net = net(1, 20 * MS, 200 * MS);
    let start = net.now;
    net.sides[0].to_send = u64::MAX / 2;
    for second in 0..10u64 {
        let cut = start + Duration::from_millis(second * 1000 + 900);
        net.run(Duration::from_secs(2), |n| n.now >= cut);
        net.cut_off = true;
        net.run(Duration::from_secs(2), |n| n.now >= cut + 100 * MS);
        net.cut_off = false;
    }
    let got = net.sides[1].received as f64 * 8.0 / net.now.since(start).as_secs_f64() / RATE as f64;
    assert!(got >= 0.7, "{got:.3}");
}

/// The sender's buffer and the receiver's window grow with the path, and only as far.
#[test]
fn buffers_follow_the_path() {
    let mut net = net(0, 20 * MS, 20 * MS);
    share(&mut net, 5);
    let [tx, rx] = net.sides.each_ref().map(|s| s.tcp.memory());
    // 250 kB are on the way in a round trip.
    assert!((250_000..3_000_000).contains(&tx), "{tx}");
    assert!(rx < 2_000_000, "{rx}");
    net.sides[0].to_send = net.sides[0].written;
    net.settle();
    for s in &net.sides {
        assert!(s.tcp.memory() < 4096, "{}", s.tcp.memory());
    }
}
