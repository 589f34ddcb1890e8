//! What fails, and how long nothing passes then: sessions that end and begin,
//! peers that die, come back, and move. Each test asserts the time without traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::net::Ipv4Addr;
use std::time::Duration;

use machine::settings::over_a_path;
use machine::*;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::{End, HostTcp};

/// The longest time without a ping's arrival at B, while A sends one every 5 ms for `time`.
fn longest_gap(w: &mut World, time: Duration) -> Duration {
    let (start, mut last, mut gap) = (w.now, w.now, Duration::ZERO);
    let (mut next, mut n) = (w.now, 0);
    w.sides[1].inbox.clear();
    while w.now.since(start) < time {
        if w.now >= next {
            next = w.now + ms(5);
            n += 1;
            w.host_sends(0, &ip(A, B, 1, &echo(n, 56)));
        }
        w.step();
        if w.sides[1].inbox.drain(..).any(|p| p[9] == 1 && p[20] == 8) {
            gap = gap.max(w.now.since(last));
            last = w.now;
        }
    }
    gap.max(w.now.since(last))
}

#[test]
fn a_session_is_renewed_without_a_lost_packet() {
    let mut w = World::up(over_a_path());
    let sessions = w.counter(0, "sessions");
    let lost = w.counter(0, "link_packets_lost");
    let gap = longest_gap(&mut w, Duration::from_secs(300));
    assert!(w.counter(0, "sessions") >= sessions + 2, "120 s each");
    assert!(w.counter(1, "sessions") >= 3);
    assert_eq!(w.counter(0, "link_packets_lost"), lost);
    // What is under way is not there yet.
    assert!(w.counter(0, "datagrams_sent") - w.counter(1, "datagrams_received") <= 10);
    // One ping every 5 ms: nothing of a renewal shows.
    assert!(gap <= ms(30), "{gap:?}");
}

#[test]
fn a_bulk_flow_crosses_renewals_at_its_rate() {
    let mut w = World::up(Settings {
        rates: ["10Mbit/s"; 2],
        ..over_a_path()
    });
    let f = w.connect(40_000, 80);
    let payload = [7; 4096];
    let mut per_second = Vec::new();
    for _ in 0..260 {
        let until = w.now + Duration::from_secs(1);
        let mut got = 0;
        while w.now < until {
            w.client(f).write(&payload);
            got += w.server(f).read(<[u8]>::len);
            w.step();
        }
        per_second.push(got);
    }
    assert!(w.counter(0, "sessions") >= 3);
    let steady = &per_second[5..];
    let mean = steady.iter().sum::<usize>() / steady.len();
    let least = *steady.iter().min().unwrap();
    assert!(mean * 8 > 9_000_000, "{mean}");
    assert!(
        least * 100 > mean * 97,
        "{least} of {mean} bytes in the worst second"
    );
    // Acknowledgements that are late may make one look lost; none is.
    assert_eq!(
        w.counter(0, "link_packets_lost"),
        w.counter(0, "link_packets_spurious")
    );
}

#[test]
fn lost_handshakes_of_a_renewal_are_made_up_for_in_time() {
    let mut w = World::up(over_a_path());
    // For 40 s from the renewal on, every message of handshakes is lost.
    let from = w.now + Duration::from_secs(110);
    w.run(from.since(w.now));
    w.lose = Box::new(|_, f| f.get(42).is_some_and(|b| [0x11, 0x12].contains(b)));
    assert!(longest_gap(&mut w, Duration::from_secs(50)) <= ms(30));
    assert_eq!(w.counter(0, "sessions"), 1);
    w.lose = Box::new(|_, _| false);
    assert!(longest_gap(&mut w, Duration::from_secs(10)) <= ms(30));
    assert_eq!(w.counter(0, "sessions"), 2);
    // Where none succeeds the session ends, and says so.
    w.lose = Box::new(|_, f| f.get(42).is_some_and(|b| [0x11, 0x12].contains(b)));
    w.run(Duration::from_secs(185));
    assert!(!w.is_up(0) && !w.is_up(1));
    w.host_sends(0, &ip(A, B, 1, &echo(1, 56)));
    w.run(ms(100));
    assert_eq!(w.count(0, Stage::Carry, DropReason::NoSession), 1);
    w.lose = Box::new(|_, _| false);
    let time = w.run_until(Duration::from_secs(5), |w| w.is_up(0) && w.is_up(1));
    assert!(time <= ms(1100), "{time:?}");
}

#[test]
fn a_killed_peer_is_back_within_a_second_and_its_flows_end_with_rst() {
    for endpoint_of_a in [true, false] {
        for killed in [0, 1] {
            let mut w = World::up(Settings {
                endpoint_of_a,
                ..over_a_path()
            });
            let f = w.connect(40_000, 80);
            w.run(ms(200));
            assert!(w.client(f).state().established && w.server(f).state().established);
            w.client(f).write(b"hello");
            w.run(ms(200));
            assert_eq!(w.server(f).readable(), 5);
            w.restart(killed, Duration::ZERO);
            let what = format!("router {killed} killed, endpoint of A known: {endpoint_of_a}");
            let time = w.run_until(Duration::from_secs(10), |w| w.is_up(0) && w.is_up(1));
            // Three round trips of 40 ms, or a second where it has to be noticed by an idle end.
            assert!(time <= Duration::from_secs(1) + ms(200), "{what}: {time:?}");
            // Both hosts hear of it by themselves, though neither sends anything.
            let reset = Some(End::ResetByPeer);
            let time = w.run_until(Duration::from_secs(5), |w| {
                w.client(f).state().end == reset && w.server(f).state().end == reset
            });
            assert!(time <= ms(200), "{what}: {time:?}");
            // And a new flow works.
            let f = w.connect(40_001, 80);
            w.run(ms(300));
            assert!(w.client(f).state().established, "{what}");
        }
    }
}

#[test]
fn a_restarted_responder_is_noticed_by_the_first_packet() {
    // B cannot initiate: it does not know where A is. A sends all the time.
    let mut w = World::up(Settings {
        endpoint_of_a: false,
        ..over_a_path()
    });
    w.restart(1, Duration::ZERO);
    let gap = longest_gap(&mut w, Duration::from_secs(3));
    // Half a round trip until B says so, one and a half for the handshake and HELLO.
    assert!(gap <= ms(200), "{gap:?}");
}

#[test]
fn forged_hints_cost_a_handshake_every_five_seconds_at_most() {
    let mut w = World::up(over_a_path());
    // The attacker sees every packet and answers each with "no such session".
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let sink = seen.clone();
    w.lose = Box::new(move |from, f| {
        if from == 0 && f.get(42) == Some(&0x14) {
            sink.borrow_mut().push(f[42..58].to_vec());
        }
        false
    });
    let before = w.counter(0, "handshakes");
    let mut last = w.now;
    w.sides[1].inbox.clear();
    let mut gap = Duration::ZERO;
    for n in 0..4000 {
        w.host_sends(0, &ip(A, B, 1, &echo(n, 56)));
        w.run(ms(5));
        for header in seen.borrow_mut().drain(..) {
            let mut hint = header;
            hint[0] = 0x15;
            let mut udp = vec![0x12, 0xc0, 0x12, 0xc0, 0, 24, 0, 0];
            udp.extend_from_slice(&hint);
            let forged = ip([192, 0, 2, 2], [192, 0, 2, 1], 17, &udp);
            w.wan_receives(0, &forged);
        }
        if w.sides[1].inbox.drain(..).count() > 0 {
            gap = gap.max(w.now.since(last));
            last = w.now;
        }
    }
    let made = w.counter(0, "handshakes") - before;
    assert!((3..=6).contains(&made), "{made} handshakes in 20 s");
    assert!(gap <= ms(30), "{gap:?}");
}

#[test]
fn an_outage_ends_with_the_path_and_ends_no_flow() {
    for outage in [2, 20, 200] {
        let mut w = World::up(over_a_path());
        let f = w.connect(40_000, 80);
        w.run(ms(200));
        w.cut = true;
        w.client(f).write(b"into the outage");
        w.run(Duration::from_secs(outage));
        w.cut = false;
        let time = w.run_until(Duration::from_secs(10), |w| w.server(f).readable() == 15);
        // A probe every 250 ms at the most, or a handshake a second where the session is over.
        assert!(
            time <= Duration::from_secs(1) + ms(250),
            "{outage} s: {time:?}"
        );
        assert_eq!(w.client(f).state().end, None);
    }
}

#[test]
fn a_peer_that_moved_is_followed_after_a_challenge() {
    let mut w = World::up(Settings {
        endpoint_of_a: false,
        ..over_a_path()
    });
    let f = w.connect(40_000, 80);
    w.run(ms(200));
    let mut next = w.now;
    w.a_is_at = Some((Ipv4Addr::new(192, 0, 2, 77), 5555));
    // Both ways are in use; from B's side the way back is what was lost.
    let moved = w.now;
    let mut answered = None;
    while w.now.since(moved) < Duration::from_secs(2) {
        if w.now >= next {
            next = w.now + ms(5);
            w.client(f).write(b"ping.");
            w.server(f).write(b"pong.");
        }
        w.step();
        let got = w.client(f).read(<[u8]>::len);
        if got > 0 && w.now.since(moved) > w.settings.delay {
            answered.get_or_insert(w.now.since(moved));
        }
    }
    // Half a round trip to B, one for the challenge, half for the first bytes.
    let time = answered.unwrap();
    assert!(time <= ms(150), "{time:?}");
    assert_eq!(w.counter(1, "peers_moved"), 1);
    assert_eq!(w.client(f).state().end, None);
}

#[test]
fn a_forged_source_moves_nobody_and_gets_three_times_its_bytes_at_most() {
    let mut w = World::up(over_a_path());
    // An attacker on the path lets fresh packets of A arrive from an address of his own,
    // and swallows what is sent there.
    let at = (Ipv4Addr::new(192, 0, 2, 66), 1234);
    let to_attacker = std::rc::Rc::new(std::cell::Cell::new(0u64));
    let sink = to_attacker.clone();
    w.a_is_at = Some(at);
    w.lose = Box::new(move |from, f| {
        if from == 1 && f.get(30..34) == Some(&[192, 0, 2, 66]) {
            sink.set(sink.get() + f.len() as u64);
            return true;
        }
        false
    });
    let sent = w.bytes[0];
    w.host_sends(0, &ip(A, B, 1, &echo(1, 56)));
    w.run(ms(50));
    w.a_is_at = None;
    let sent = w.bytes[0] - sent;
    w.run(Duration::from_secs(3));
    assert_eq!(w.counter(1, "peers_moved"), 0);
    let swallowed = to_attacker.get();
    assert!(
        swallowed > 0 && swallowed <= 3 * sent + 14,
        "{swallowed} for {sent}"
    );
    // All goes on where A really is.
    w.sides[1].inbox.clear();
    assert!(longest_gap(&mut w, Duration::from_secs(1)) <= ms(60));
}

#[test]
fn a_flood_of_initiations_leaves_a_handshake_its_way() {
    let mut w = World::new(Settings {
        endpoint_of_a: false,
        ..over_a_path()
    });
    let mut x = 7u32;
    let mut forged = move || {
        x = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let mut message = vec![0x11, 0, 0, 0];
        message.extend_from_slice(&x.to_be_bytes());
        message.resize(16, 0);
        while message.len() < 128 {
            x = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            message.push((x >> 24) as u8);
        }
        let mut udp = vec![0x12, 0xc0, 0x12, 0xc0, 0, 136, 0, 0];
        udp.extend_from_slice(&message);
        ip([10, 9, (x >> 8) as u8, x as u8], [192, 0, 2, 2], 17, &udp)
    };
    let start = w.now;
    let mut up_at = None;
    // 4,000 a second at B, which does not know where A is.
    while w.now.since(start) < Duration::from_secs(4) {
        for _ in 0..2 {
            let f = forged();
            w.wan_receives(1, &f);
        }
        w.step();
        if up_at.is_none() && w.is_up(0) && w.is_up(1) {
            up_at = Some(w.now.since(start));
        }
    }
    let time = up_at.unwrap();
    assert!(time <= Duration::from_secs(2), "{time:?}");
    let asked = w.count(1, Stage::Open, DropReason::CookieAsked);
    let refused = w.count(1, Stage::Open, DropReason::RateLimited);
    let read = w.count(1, Stage::Open, DropReason::HandshakeRefused);
    assert!(read <= 50 * 5 + 50, "{read} initiations cost X25519");
    assert!(asked > 0 && refused > 0, "{asked} {refused}");
}

#[test]
fn a_clock_that_was_set_back_locks_out_only_who_keeps_no_counter() {
    let mut w = World::up(over_a_path());
    // Without a stored counter: the clock is an hour behind, peers refuse.
    w.restart(0, Duration::from_secs(3600));
    w.sides[1].inbox.clear();
    w.run(Duration::from_secs(3));
    assert!(w.count(1, Stage::Open, DropReason::HandshakeRefused) > 0);
    // With one, it goes on above it.
    let (own, _) = w.sides[0].router.initiation_counters(w.now);
    assert!(own < w.now.as_nanos());
    w.restart_with_base(0, w.now.as_nanos() + 600_000_000_000);
    let time = w.run_until(Duration::from_secs(10), |w| w.is_up(0) && w.is_up(1));
    assert!(time <= Duration::from_secs(1), "{time:?}");
}

#[test]
fn a_recorded_initiation_is_refused_after_a_restart_that_knows_the_counter() {
    let mut w = World::new(Settings {
        endpoint_of_a: false,
        ..over_a_path()
    });
    let recorded = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let sink = recorded.clone();
    w.lose = Box::new(move |from, f| {
        if from == 0 && f.get(42) == Some(&0x11) {
            sink.borrow_mut().push(f[14..].to_vec());
        }
        false
    });
    w.run(Duration::from_secs(2));
    let (_, accepted) = w.sides[1].router.initiation_counters(w.now);
    assert_eq!(accepted.len(), 1);
    w.restart(1, Duration::ZERO);
    w.cut = true;
    let counters = mef_dataplane::persist::Counters {
        own: 0,
        peers: accepted,
    };
    w.sides[1].router.accepted_before(&counters);
    let before = w.counter(1, "handshakes");
    for packet in recorded.borrow().clone() {
        w.wan_receives(1, &packet);
    }
    w.run(ms(10));
    assert!(w.count(1, Stage::Open, DropReason::HandshakeRefused) > 0);
    assert_eq!(w.counter(1, "handshakes"), before);
}

#[test]
fn a_router_that_is_told_to_stop_lets_flows_end_then_resets_them() {
    let mut w = World::up(over_a_path());
    let ends = w.connect(40_000, 80);
    let stays = w.connect(40_001, 80);
    w.run(ms(200));
    let told = w.now;
    w.sides[0].router.drain(w.now, Duration::from_secs(2));
    // No new flow, from either side, and its host is told.
    let late = w.connect(40_002, 80);
    w.run(ms(50));
    let heard = w.sides[0].inbox.iter().any(|p| p[9] == 1 && p[20] == 3);
    assert!(heard && !w.client(late).state().established);
    assert_eq!(w.count(0, Stage::Carry, DropReason::Draining), 1);
    // A running one goes on, and ends in order.
    w.client(ends).write(b"the rest");
    w.client(ends).finish();
    w.server(ends).finish();
    w.run(Duration::from_secs(1));
    assert_eq!(w.server(ends).readable(), 8);
    w.server(ends).read(<[u8]>::len);
    w.run(ms(300));
    assert!(w.server(ends).state().over() && w.server(ends).state().end.is_none());
    assert!(!w.sides[0].router.is_drained(w.now));
    assert_eq!(w.client(stays).state().end, None);
    w.run_until(Duration::from_secs(3), |w| {
        w.sides[0].router.is_drained(w.now)
    });
    let time = w.now.since(told);
    assert!(
        (Duration::from_secs(2)..Duration::from_millis(2300)).contains(&time),
        "{time:?}"
    );
    assert_eq!(w.client(stays).state().end, Some(End::ResetByPeer));
    w.run(ms(100));
    assert_eq!(w.server(stays).state().end, Some(End::ResetByPeer));
    // With nothing running it is over at once.
    let mut w = World::up(over_a_path());
    w.sides[0].router.drain(w.now, Duration::from_secs(60));
    assert!(w.sides[0].router.is_drained(w.now));
}

#[test]
fn a_link_comes_up_although_its_first_packets_are_lost() {
    for lossy in [0, 1] {
        let mut w = World::new(over_a_path());
        let until = w.now + ms(400);
        let mut seen = 0;
        w.lose = Box::new(move |from, f| {
            seen += u32::from(from == lossy && f.get(42) == Some(&0x14));
            from == lossy && f.get(42) == Some(&0x14) && seen <= 6
        });
        w.run(until.since(w.now));
        let time = w.run_until(Duration::from_secs(10), |w| w.is_up(0) && w.is_up(1));
        assert!(time <= Duration::from_secs(2), "{time:?}");
    }
}
