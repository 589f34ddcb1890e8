//! What leaves in the clear though it is for a peer: by policy, as a fallback, beside the link.

use mef_dataplane::control::LinkState;
use mef_dataplane::drops::{DropReason, Stage};
use mef_packet::wire::ecn::Ecn;
use mef_packet::wire::tcp;

use super::world::*;

const PLAIN_DNS: &str = "[[policy]]\nprotocol = \"udp\"\nport = 53\nmode = \"plain\"";

#[test]
fn plain_mode_goes_past_the_link_where_both_routers_agree() {
    let mut w = up_with(policy(PLAIN_DNS), policy(PLAIN_DNS));
    let query = udp_packet(A, B, 53, &data(40));
    w.host_sends(0, &query);
    w.host_sends(0, &udp_packet(A, B, 54, &data(40)));
    w.run(ms(50));
    assert_eq!(w.clear.len(), 1);
    let mut received = w.received(1);
    received.sort_by_key(|p| p[23]);
    assert_eq!(received[0], behind(&query, Ecn::NotEct));
    assert_eq!(received.len(), 2);
    assert_eq!(w.snapshot(0).counters["plain_packets"], 1);
    assert_eq!(w.snapshot(0).counters["fallback_packets"], 0);
    assert!(w.snapshot(0).alarms.is_empty());
    // Too large for the way in the clear.
    w.host_sends(0, &udp_packet(A, B, 53, &data(1473)));
    w.run(ms(50));
    assert_eq!(w.icmp_and_mtu(0), [(ROUTER_A, 3, 4, 1500)]);
}

#[test]
fn who_claims_to_come_from_behind_a_peer_in_the_clear_is_refused() {
    let mut w = up_with(policy(PLAIN_DNS), Extra::default());
    w.host_sends(0, &udp_packet(A, B, 53, &data(40)));
    w.run(ms(50));
    assert_eq!(w.clear.len(), 1);
    assert_eq!(w.received(1).len(), 0);
    assert_eq!(w.count(1, Stage::Carry, DropReason::PeerInTheClear), 1);
}

const FALLBACK: &str = "[[policy]]\nprotocol = \"tcp\"\nfallback = \"plain\"\n\
                        [[policy]]\nprotocol = \"udp\"\nport = 9\nfallback = \"plain\"";

#[test]
fn fallback_takes_new_flows_past_a_link_that_does_not_work_and_keeps_them_there() {
    let mut w = up_with(policy(FALLBACK), policy(FALLBACK));
    w.cut = true;
    // Something has to be sent before silence is noticed.
    w.host_sends(0, &udp_packet(A, B, 10, b"x"));
    w.host_sends(1, &udp_packet(B, A, 10, b"x"));
    w.run(ms(8000));
    w.forget();
    let datagram = udp_packet(A, B, 9, &data(40));
    let (from, to) = ((A, 40_000), (B, 80));
    let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    w.host_sends(0, &datagram);
    w.host_sends(0, &syn);
    // No policy lets these: they wait for the link.
    w.host_sends(0, &udp_packet(A, B, 10, &data(40)));
    w.run(ms(50));
    assert_eq!(
        w.received(1),
        [behind(&datagram, Ecn::NotEct), behind(&syn, Ecn::NotEct)]
    );
    let s = w.snapshot(0);
    assert_eq!(
        (s.counters["fallback_packets"], s.counters["flows"]),
        (2, 0)
    );
    assert!(
        s.alarms
            .iter()
            .any(|a| a == "link to other: fallback in use, packets leave in the clear"),
        "{:?}",
        s.alarms
    );
    let answer = segment(to, from, 5000, tcp::Flags::SYN | tcp::Flags::ACK, b"");
    w.host_sends(1, &answer);
    w.run(ms(50));
    assert_eq!(w.received(0), [behind(&answer, Ecn::NotEct)]);

    // The link is back: what began in the clear stays there, what is new does not.
    w.cut = false;
    w.run(ms(8000));
    assert_eq!(w.snapshot(0).links[0].state, LinkState::Up);
    w.forget();
    let ack = segment(from, to, 1001, tcp::Flags::ACK, b"GET /");
    w.host_sends(0, &ack);
    w.host_sends(0, &datagram);
    w.run(ms(100));
    let clear: Vec<u8> = w.clear.iter().map(|p| p[9]).collect();
    assert_eq!(clear, [6]);
    assert_eq!(w.received(1).len(), 2);
    let (from, to) = ((A, 40_001), (B, 80));
    w.host_sends(0, &segment(from, to, 1000, tcp::Flags::SYN, b""));
    w.run(ms(100));
    assert_eq!(w.flow_counts(), [1, 1]);
    w.run(ms(60_000));
    assert!(
        w.snapshot(0).alarms.is_empty(),
        "{:?}",
        w.snapshot(0).alarms
    );
}

#[test]
fn without_a_fallback_a_link_that_was_never_up_refuses() {
    let mut w = World::new(settings(Extra::default(), Extra::default()));
    w.cut = true;
    w.run(ms(500));
    w.host_sends(0, &segment((A, 40_000), (B, 80), 1, tcp::Flags::SYN, b""));
    w.host_sends(0, &udp_packet(A, B, 9, b"x"));
    w.run(ms(100));
    assert_eq!(w.icmp(0), [(ROUTER_A, 3, 1), (ROUTER_A, 3, 1)]);
    assert_eq!(w.clear.len(), 0);
    assert_eq!(w.count(0, Stage::Carry, DropReason::NoSession), 2);
}

#[test]
fn three_syns_without_an_answer_are_asymmetric_and_take_the_fallback() {
    for fallback in [true, false] {
        let extra = if fallback {
            policy(FALLBACK)
        } else {
            Extra::default()
        };
        let mut w = up_with(extra, extra);
        let (from, to) = ((A, 40_000), (B, 80));
        let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
        // Host B's answers take another way: here nothing comes back.
        for wait in [1000, 2000, 1000] {
            assert_eq!(w.snapshot(0).counters["flows_asymmetric"], 0);
            w.host_sends(0, &syn);
            w.run(ms(wait));
        }
        assert_eq!(w.snapshot(0).counters["flows_asymmetric"], 1);
        assert_eq!(w.clear.len(), usize::from(fallback));
        let own = w
            .received(1)
            .iter()
            .filter(|p| **p == behind(&syn, Ecn::NotEct))
            .count();
        assert_eq!(own, usize::from(fallback));
        assert_eq!(w.sides[0].router.flow_count(), 0);
        // Without a fallback the host hears that the far one is unreachable.
        let told = w.icmp(0);
        let expected: &[_] = if fallback { &[] } else { &[(ROUTER_A, 3, 1)] };
        assert_eq!(told, expected);
        // Repeated once more, it goes the way that was found, or is asked anew.
        w.forget();
        w.host_sends(0, &syn);
        w.run(ms(100));
        assert_eq!(w.clear.len(), usize::from(fallback));
        assert_eq!(w.sides[0].router.flow_count(), usize::from(!fallback));
    }
}

#[test]
fn what_leaves_in_the_clear_stays_within_the_line_and_shares_it_with_the_link() {
    let mut w = up_plainly();
    let far = [203, 0, 113, 9];
    let (mut clear, mut linked) = (0u64, 0u64);
    // 240 Mbit/s for a stranger in the clear, as much over the link, for a second.
    for at in 0..1500 {
        for i in 0..20 {
            w.host_sends(0, &udp_packet(A, far, 7000, &data(1400 + i % 2)));
            w.host_sends(0, &udp_packet(A, B, 7000, &data(1300)));
        }
        if at == 500 {
            w.forget();
        }
        w.run(ms(1));
    }
    clear += w.clear.iter().map(|p| p.len() as u64 + 14).sum::<u64>();
    linked += w.received(1).len() as u64 * (1328 + 15 + 60 + 14);
    let used = (clear + linked) as f64 * 8.0 / 100e6;
    assert!(used > 0.97 && used < 1.0, "{used}");
    let share = clear as f64 / (clear + linked) as f64;
    assert!((share - 0.5).abs() < 0.02, "{share}");
    let full = w.count(0, Stage::Carry, DropReason::QueueFull);
    assert!(full > 20_000, "{full}");
    // Every packet that went in left, waits, or is counted.
    let counters = w.sides[0].router.counters();
    assert_eq!(
        counters.total(),
        counters.by_reason(DropReason::QueueFull) + counters.by_reason(DropReason::QueueDelay)
    );
}
