//! The corners of split TCP, each with the RFC that speaks of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod machine;

use std::time::Duration;

use machine::settings::over_a_path;
use machine::*;
use mef_dataplane::drops::{DropReason, Stage};
use mef_dataplane::host_tcp::HostTcp;
use mef_packet::wire::ipv4;

/// RFC 9293, section 3.10.7.1: a segment of no connection is answered with RST, at a bounded rate.
#[test]
fn unknown_segments_are_answered_with_rst_within_a_rate() {
    let mut w = World::up(over_a_path());
    let stray = |port| Segment::new((A, port), (B, 80), ACK);
    w.host_sends(0, &stray(50_000).packet());
    w.run(ms(5));
    assert_eq!(w.stray_resets(0), 1);
    assert_eq!(w.count(0, Stage::Carry, DropReason::UnknownFlow), 1);
    // A RST is not answered.
    w.host_sends(0, &Segment::new((A, 50_001), (B, 80), RST | ACK).packet());
    w.run(ms(5));
    assert_eq!(w.stray_resets(0), 0);
    for i in 0..40_000u32 {
        w.host_sends(0, &stray((i % 60_000) as u16).packet());
        if i % 500 == 0 {
            w.run(ms(5));
        }
    }
    w.run(ms(50));
    let answered = w.stray_resets(0);
    assert!((9_000..16_000).contains(&answered), "{answered}");
    assert!(w.count(0, Stage::Carry, DropReason::RateLimited) > 20_000);
    assert_eq!(w.sides[0].router.flow_count(), 0);
}

/// `adopt = "forward"`: a connection from before the router goes on as datagrams.
#[test]
fn unknown_segments_are_forwarded_where_that_is_wanted() {
    let mut w = World::up(Settings {
        router: "engine = \"aes-gcm\"\nadopt = \"forward\"".into(),
        ..over_a_path()
    });
    let mut s = Segment::new((A, 50_000), (B, 80), ACK);
    s.payload = b"from before".to_vec();
    w.host_sends(0, &s.packet());
    w.run(ms(50));
    assert_eq!(w.stray_resets(0), 0);
    let got: Vec<_> = w.sides[1].inbox.iter().filter(|p| p[9] == 6).collect();
    assert_eq!(got.len(), 1);
    assert_eq!(&got[0][40..], b"from before");
}

/// RFC 4987: SYNs that nobody means take little, and no place from those that are meant.
#[test]
fn a_flood_of_syns_takes_a_hundredth_of_the_others_goodput_at_most() {
    let flows: Vec<u16> = (0..10).map(|i| 40_000 + i).collect();
    let mut w = World::up(over_a_path());
    let flows: Vec<Flow> = flows.iter().map(|p| w.connect(*p, 80)).collect();
    let payload = [7; 16_384];
    let second = |w: &mut World, syns: u32, at: &mut u32| {
        let until = w.now + Duration::from_secs(1);
        let mut got = 0;
        while w.now < until {
            for f in &flows {
                w.client(*f).write(&payload);
                got += w.server(*f).read(<[u8]>::len);
            }
            for _ in 0..syns / 2000 {
                *at += 1;
                // From many hosts of the site, to hosts that are not there and to one that is.
                let source = [10, 1, 0, 3 + (*at % 200) as u8];
                let to = [10, 2, 0, 2 + (*at % 100) as u8];
                let port = 1024 + (*at % 60_000) as u16;
                let s = Segment::new((source, port), (to, 9), SYN);
                w.host_sends(0, &s.packet());
            }
            w.step();
        }
        got
    };
    let mut at = 0;
    let mut measure = |w: &mut World, seconds, syns| -> usize {
        (0..seconds).map(|_| second(w, syns, &mut at)).sum()
    };
    measure(&mut w, 5, 0);
    let alone = measure(&mut w, 3, 0);
    let flooded = measure(&mut w, 5, 10_000) / 5 * 3;
    let after = measure(&mut w, 3, 0);
    let best = alone.max(after);
    assert!(
        flooded * 100 >= best * 99,
        "{flooded} beside the flood, {alone} before and {after} after it"
    );
    // Somebody who means it gets through meanwhile.
    let mut at = 100_000;
    let mut opened = 0;
    for i in 0..5 {
        let f = w.connect(45_000 + i, 80);
        let start = w.now;
        while w.now.since(start) < ms(500) && !w.client(f).state().established {
            for _ in 0..5 {
                at += 1;
                let source = [10, 1, 0, 3 + (at % 200) as u8];
                let s = Segment::new((source, 1024 + (at % 60_000) as u16), (B, 9), SYN);
                w.host_sends(0, &s.packet());
            }
            w.step();
        }
        opened += u32::from(w.client(f).state().established);
    }
    assert_eq!(opened, 5);
    // All of it is forgotten again.
    w.run(Duration::from_secs(150));
    assert!(
        w.sides[0].router.flow_count() <= 20,
        "{}",
        w.sides[0].router.flow_count()
    );
}

/// TCP segments of a connection that came to the host of a side, oldest first: flags, sequence and
/// acknowledgement number, payload.
fn arrived(w: &mut World, side: usize, from: u16, to: u16) -> Vec<(u8, u32, u32, Vec<u8>)> {
    let number = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    let mut all = Vec::new();
    w.sides[side].inbox.retain(|p| {
        let ours = p[9] == 6 && p[20..24] == ports;
        if ours {
            let at = 20 + usize::from(p[32] >> 4) * 4;
            let (seq, ack) = (number(&p[24..28]), number(&p[28..32]));
            all.push((p[33] & 0x3f, seq, ack, p[at..].to_vec()));
        }
        !ours
    });
    all
}

/// The opening SYN of the host of a side, and of the one that it wants.
fn opening(side: usize) -> Segment {
    let ends = [(A, 5000), (B, 6000)];
    let mut syn = Segment::new(ends[side], ends[1 - side], SYN);
    syn.seq = 1000 * (1 + side as u32);
    syn
}

/// A split connection whose two hosts the test plays: the next segment of each.
fn by_hand(w: &mut World) -> [Segment; 2] {
    let mut next = [opening(0), opening(1)];
    w.host_sends(0, &next[0].packet());
    w.run(ms(40));
    let asked = arrived(w, 1, 5000, 6000);
    next[1].flags = SYN | ACK;
    next[1].ack = asked[0].1.wrapping_add(1);
    w.host_sends(1, &next[1].packet());
    w.run(ms(60));
    let answered = arrived(w, 0, 6000, 5000);
    assert_eq!(answered[0].0, SYN | ACK);
    next[0].ack = answered[0].1.wrapping_add(1);
    for (side, s) in next.iter_mut().enumerate() {
        s.flags = ACK;
        s.seq += 1;
        w.host_sends(side, &s.packet());
    }
    w.run(ms(60));
    arrived(w, 1, 5000, 6000);
    arrived(w, 0, 6000, 5000);
    next
}

/// RFC 9293, section 3.5, figure 8: two hosts that open to each other at once have one connection.
/// Both routers find so whatever is lost between them, and leave it to the hosts.
#[test]
fn rfc9293_a_crossing_pair_of_syns_goes_on_as_datagrams() {
    const PORTS: [u16; 2] = [5000, 6000];
    for lost in [None, Some(0), Some(1)] {
        for later in [0, 15] {
            let mut w = World::up(over_a_path());
            let what = format!("lost {lost:?}, {later} ms later");
            if let Some(side) = lost {
                // What this router says first, both times: the other does not hear of its SETUP.
                let until = std::cell::Cell::new(8);
                w.lose = Box::new(move |from, f| {
                    let loses = from == side && f.get(42) == Some(&0x14) && until.get() > 0;
                    until.set(until.get() - u32::from(loses));
                    loses
                });
            }
            w.host_sends(0, &opening(0).packet());
            w.run(ms(later));
            w.host_sends(1, &opening(1).packet());
            w.run(ms(900));
            if lost.is_some() {
                // Datagrams are not sent again: hosts do that.
                for side in [0, 1] {
                    w.host_sends(side, &opening(side).packet());
                }
                w.run(ms(100));
            }
            let mut got = [Vec::new(), Vec::new()];
            for side in [0, 1] {
                got[side] = arrived(&mut w, side, PORTS[1 - side], PORTS[side]);
                let sent = opening(1 - side);
                assert!(!got[side].is_empty(), "{what}: nothing came to {side}");
                for s in &got[side] {
                    // It is the other host's own: flags and number are as they were.
                    assert_eq!((s.0, s.1), (SYN, sent.seq), "{what}");
                }
                assert_eq!(w.counter(side, "flows_crossing"), 1, "{what}");
                assert_eq!(w.sides[side].router.flow_count(), 0, "{what}");
            }
            // The hosts complete it: each acknowledges the other's SYN, then bytes flow.
            for side in [0, 1] {
                let mut answer = opening(side);
                answer.flags = SYN | ACK;
                answer.ack = opening(1 - side).seq + 1;
                w.host_sends(side, &answer.packet());
            }
            w.run(ms(60));
            for side in [0, 1] {
                let mut data = opening(side);
                data.flags = ACK;
                data.seq += 1;
                data.ack = opening(1 - side).seq + 1;
                data.payload = format!("from {side}").into_bytes();
                w.host_sends(side, &data.packet());
            }
            w.run(ms(60));
            for side in [0, 1] {
                let got = arrived(&mut w, side, PORTS[1 - side], PORTS[side]);
                let (own, other) = (opening(side).seq + 1, opening(1 - side).seq);
                let expected = [
                    (SYN | ACK, other, own, Vec::new()),
                    (
                        ACK,
                        other + 1,
                        own,
                        format!("from {}", 1 - side).into_bytes(),
                    ),
                ];
                assert_eq!(got, expected, "{what}");
                assert_eq!(w.stray_resets(side), 0, "{what}");
                assert_eq!(w.sides[side].router.flow_count(), 0);
            }
        }
    }
}

/// RFC 9293, section 3.5: where the far host's SYN comes after ours has been sent to it, it answers
/// ours; the connection is split and open at both ends.
#[test]
fn rfc9293_a_host_that_opens_what_it_is_being_asked_for_answers() {
    let mut w = World::up(over_a_path());
    w.host_sends(0, &opening(0).packet());
    w.run(ms(40));
    let asked = arrived(&mut w, 1, 5000, 6000);
    assert_eq!(asked.len(), 1);
    w.host_sends(1, &opening(1).packet());
    w.run(ms(5));
    let mut answer = opening(1);
    answer.flags = SYN | ACK;
    answer.ack = asked[0].1.wrapping_add(1);
    w.host_sends(1, &answer.packet());
    w.run(ms(60));
    let at_b = arrived(&mut w, 1, 5000, 6000);
    assert_eq!((at_b[0].0, at_b[0].2), (ACK, opening(1).seq + 1));
    let at_a = arrived(&mut w, 0, 6000, 5000);
    assert_eq!((at_a[0].0, at_a[0].2), (SYN | ACK, opening(0).seq + 1));
    for side in [0, 1] {
        assert_eq!(w.sides[side].router.flow_count(), 1);
        assert_eq!(w.counter(side, "flows_crossing"), 0);
    }
}

/// RFC 5925, section 5.1: the code of TCP-AO covers a segment with its options, so what is signed crosses
/// as it is, and its connection as datagrams. Larger segments than the link carries in one piece are two.
#[test]
fn rfc5925_signed_connections_go_as_datagrams_and_are_not_touched() {
    let mut w = World::up(over_a_path());
    let signed = |mut s: Segment, code: u8| {
        if s.flags & SYN == SYN {
            // An MSS of 1460, which no link carries in one piece.
            s.options.extend([2, 4, 0x05, 0xb4]);
        }
        s.options.extend([29, 16, 1, 1]);
        s.options.extend([code; 12]);
        s
    };
    let mut answer = opening(1);
    answer.flags = SYN | ACK;
    answer.ack = opening(0).seq + 1;
    let mut data = opening(0);
    data.flags = ACK;
    data.seq += 1;
    data.ack = opening(1).seq + 1;
    data.payload = vec![0xa5; 1444];
    let mut end = opening(1);
    end.flags = RST;
    end.seq += 1;
    for (of, (from, segment)) in [(0, opening(0)), (1, answer), (0, data), (1, end)]
        .into_iter()
        .enumerate()
    {
        let segment = signed(segment, of as u8);
        w.host_sends(from, &segment.packet());
        w.run(ms(60));
        let got: Vec<_> = w.sides[1 - from].inbox.drain(..).collect();
        assert_eq!(got.len(), 1, "segment {of}");
        assert!(got[0][20..] == segment.tcp(), "segment {of} was changed");
    }
    assert_eq!([0, 1].map(|i| w.sides[i].router.flow_count()), [0, 0]);
    assert_eq!([0, 1].map(|i| w.counter(i, "flows_opened")), [0, 0]);
}

/// RFC 8684, section 3.2: a connection that joins another goes to the host that has that other, with
/// its options. Section 3.1: one that offers multipath has none, because the offer is taken out.
#[test]
fn rfc8684_joins_go_as_datagrams_and_offers_are_removed() {
    for (subtype, whole) in [(0u8, false), (1, true)] {
        let mut w = World::up(over_a_path());
        let mut syn = opening(0);
        syn.options = vec![30, 12, subtype << 4 | 1, 7, 1, 2, 3, 4, 5, 6, 7, 8];
        w.host_sends(0, &syn.packet());
        w.run(ms(60));
        let options = |p: &Vec<u8>| p[40..20 + usize::from(p[32] >> 4) * 4].to_vec();
        let syns: Vec<_> = w.sides[1].inbox.iter().filter(|p| p[9] == 6).collect();
        assert_eq!(syns.len(), 1);
        let has = options(syns[0]).windows(12).any(|o| *o == syn.options[..]);
        assert_eq!(has, whole, "subtype {subtype}: {:?}", options(syns[0]));
        if !whole {
            assert!(!options(syns[0]).starts_with(&[30]));
        }
        let flows = usize::from(!whole);
        assert_eq!(w.sides[0].router.flow_count(), flows);
        // The answer takes the same way.
        let mut answer = opening(1);
        answer.flags = SYN | ACK;
        answer.ack = if whole { syn.seq + 1 } else { 0 };
        answer.options = vec![30, 16, 0x10, 7, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        if whole {
            w.host_sends(1, &answer.packet());
            w.run(ms(60));
            let back = &w.sides[0].inbox.iter().find(|p| p[9] == 6).unwrap();
            assert_eq!(options(back), answer.options);
        }
    }
}

/// RFC 9293, section 3.10.7.4 at each end, with the bytes between: a reset is delivered behind what was
/// sent before it, and where that cannot be delivered, after a second.
#[test]
fn rfc9293_a_reset_comes_behind_its_bytes_or_after_a_second() {
    // A reader that stops has at most what its flow is promised on its way to it.
    for (size, reads) in [(100_000, true), (6 << 20, true), (400_000, false)] {
        let mut w = World::up(over_a_path());
        let f = w.connect(40_000, 80);
        w.run(ms(200));
        let bytes: Vec<u8> = (0..size).map(|i| (i / 251) as u8).collect();
        let (mut written, mut got) = (0, Vec::new());
        let until = w.now + Duration::from_secs(20);
        while written < size || w.client(f).unacknowledged() > 0 {
            written += w.client(f).write(&bytes[written..]);
            assert!(w.now < until, "{written} of {size} bytes taken");
            w.step();
            if reads {
                w.server(f).read(|b| {
                    got.extend_from_slice(b);
                    b.len()
                });
            }
        }
        w.client(f).abort();
        let end = Some(mef_dataplane::host_tcp::End::ResetByPeer);
        let time = w.run_until(Duration::from_secs(5), |w| {
            let tcp = w.server(f);
            if reads {
                tcp.read(|b| {
                    got.extend_from_slice(b);
                    b.len()
                });
            }
            tcp.state().end == end
        });
        if reads {
            // Half a round trip, and what was still on its way.
            assert!(time <= ms(600), "{size}: {time:?}");
            assert!(got == bytes, "{} of {size} bytes", got.len());
        } else {
            assert!((ms(1000)..ms(1300)).contains(&time), "{time:?}");
            assert!(w.server(f).readable() < size);
        }
        w.run(ms(500));
        assert_eq!([0, 1].map(|i| w.sides[i].router.flow_count()), [0, 0]);
    }
}

/// A fragment with this identification; `field` is its header's third word's second half.
fn fragment(protocol: u8, ident: u16, field: u16, payload: &[u8]) -> Vec<u8> {
    let header = ipv4::Header {
        ident,
        dont_fragment: false,
        more_fragments: field & 0x2000 != 0,
        fragment_offset: (field & 0x1fff) * 8,
        ..ipv4::Header::new(A.into(), B.into(), protocol)
    };
    ip_with(&header, payload)
}

/// RFC 791, section 3.2: a connection whose segments come in fragments is split like any other; RFC
/// 5722: fragments that overlap are dropped. Those of other protocols cross as they are.
#[test]
fn rfc791_fragments_of_tcp_are_joined_and_others_cross() {
    let mut w = World::up(over_a_path());
    let [mut data, _] = by_hand(&mut w);
    let bytes: Vec<u8> = (0..3000).map(|i| (i / 7) as u8).collect();
    // Three segments in three fragments each, every one in another order; of the second two overlap.
    let mut sent = 0;
    for (i, order) in [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]]
        .iter()
        .enumerate()
    {
        data.payload = bytes[sent..sent + 1000].to_vec();
        let segment = data.tcp();
        for part in order {
            let range = part * 344..segment.len().min((part + 1) * 344);
            let more = if *part < 2 { 0x2000 } else { 0 };
            let place = more | (part * 344 / 8) as u16;
            let piece = segment[range].to_vec();
            w.host_sends(0, &fragment(6, 70 + i as u16, place, &piece));
            if i == 1 && *part == 0 {
                let inside = fragment(6, 71, 0x2000 | 8, &[0; 64]);
                w.host_sends(0, &inside);
            }
        }
        w.run(ms(5));
        // The second did not arrive, and is sent again.
        if i != 1 {
            sent += 1000;
            data.seq += 1000;
        }
    }
    w.run(ms(60));
    let got: Vec<u8> = arrived(&mut w, 1, 5000, 6000)
        .into_iter()
        .flat_map(|s| s.3)
        .collect();
    assert!(got == bytes, "{} bytes", got.len());
    assert_eq!(w.counter(0, "packets_reassembled"), 3);
    assert_eq!(w.count(0, Stage::Carry, DropReason::FragmentOverlap), 2);
    // UDP's go on as they are.
    w.sides[1].inbox.clear();
    for (place, len) in [(0x2000, 512), (64, 100)] {
        let piece = fragment(17, 9, place, &vec![7; len]);
        w.host_sends(0, &piece);
    }
    w.run(ms(60));
    assert_eq!(w.sides[1].inbox.len(), 2);
    // One of a packet that does not become whole is dropped after 30 s.
    w.host_sends(0, &fragment(6, 99, 0x2000, &[0; 64]));
    w.run(Duration::from_secs(29));
    assert_eq!(w.count(0, Stage::Carry, DropReason::FragmentLate), 0);
    w.run(Duration::from_secs(2));
    assert_eq!(w.count(0, Stage::Carry, DropReason::FragmentLate), 1);
}

/// A keep-alive of the host whose next segment this is.
fn keep_alive(next: &Segment) -> Vec<u8> {
    let mut s = next.clone();
    s.seq -= 1;
    s.packet()
}

/// RFC 9293, section 3.8.4: a keep-alive is answered where the far host was heard of late, at once; else
/// when it has answered one.
#[test]
fn rfc9293_a_keep_alive_is_answered_for_a_host_that_is_there() {
    let mut w = World::up(over_a_path());
    let next = by_hand(&mut w);
    w.run(Duration::from_secs(30));
    // Host B was heard 30 s ago: what is asked is only its router, a round trip away.
    w.host_sends(0, &keep_alive(&next[0]));
    w.run(ms(39));
    assert_eq!(arrived(&mut w, 0, 6000, 5000), []);
    w.run(ms(6));
    let answer = arrived(&mut w, 0, 6000, 5000);
    assert_eq!(
        (answer.len(), answer[0].0, answer[0].2),
        (1, ACK, next[0].seq)
    );
    assert_eq!(arrived(&mut w, 1, 5000, 6000), []);
    // For 45 s more that is known here.
    w.run(Duration::from_secs(40));
    w.host_sends(0, &keep_alive(&next[0]));
    w.run(ms(2));
    assert_eq!(arrived(&mut w, 0, 6000, 5000).len(), 1);
    // Then it is asked itself; its answer is what is passed on.
    w.run(Duration::from_secs(10));
    w.host_sends(0, &keep_alive(&next[0]));
    w.run(ms(25));
    let probe = arrived(&mut w, 1, 5000, 6000);
    assert_eq!(probe.len(), 1);
    assert_eq!((probe[0].0, probe[0].1), (ACK, next[1].ack.wrapping_sub(1)));
    w.run(ms(200));
    assert_eq!(arrived(&mut w, 0, 6000, 5000), []);
    w.host_sends(1, &next[1].packet());
    w.run(ms(25));
    assert_eq!(arrived(&mut w, 0, 6000, 5000).len(), 1);
    // It is not asked again while nobody asks.
    w.run(Duration::from_secs(100));
    assert_eq!(arrived(&mut w, 1, 5000, 6000), []);
    assert_eq!(w.sides[0].router.flow_count(), 1);
}

/// RFC 9293, section 3.8.4: no single unanswered probe ends a connection; a host that answers none of six
/// is gone, and the other, whose keep-alives get no answer meanwhile, hears so by RST.
#[test]
fn rfc9293_the_death_of_the_far_host_is_carried_to_who_asks() {
    let mut w = World::up(over_a_path());
    let next = by_hand(&mut w);
    w.run(Duration::from_secs(100));
    let began = w.now;
    let mut asked_at = Vec::new();
    let mut resets = Vec::new();
    let mut keep_alives = 0;
    let mut refused = Vec::new();
    while resets.is_empty() && w.now.since(began) < Duration::from_secs(120) {
        if w.now.since(began) >= Duration::from_secs(10) * keep_alives {
            keep_alives += 1;
            w.host_sends(0, &keep_alive(&next[0]));
        }
        w.run(ms(5));
        for s in arrived(&mut w, 1, 5000, 6000) {
            match s.0 & RST {
                0 => asked_at.push(w.now.since(began).as_secs()),
                _ => refused.push(s),
            }
        }
        resets = arrived(&mut w, 0, 6000, 5000);
    }
    let time = w.now.since(began);
    assert_eq!(asked_at, [0, 1, 3, 7, 15, 31]);
    assert!((ms(63_000)..ms(63_200)).contains(&time), "{time:?}");
    // Nothing but the RST came, and the host believes it.
    assert_eq!(resets.len(), 1);
    assert_eq!((resets[0].0 & RST, resets[0].1), (RST, next[0].ack));
    assert_eq!(refused.len(), 1);
    w.run(ms(200));
    assert_eq!([0, 1].map(|i| w.sides[i].router.flow_count()), [0, 0]);
}

/// RFC 9293, section 3.8.6.1: probes of a closed window are answered whatever is known of the far host.
#[test]
fn rfc9293_probes_of_a_closed_window_are_answered_at_once() {
    let mut w = World::up(Settings {
        router: "engine = \"aes-gcm\"\nmemory = \"64MiB\"\nhost_buffer = \"64KiB\"".into(),
        ..over_a_path()
    });
    let [mut a, _] = by_hand(&mut w);
    // Host B takes nothing, and its router as little: the window closes.
    let mut window = u16::MAX;
    while window > 0 {
        a.payload = vec![7; 1000];
        w.host_sends(0, &a.packet());
        a.seq += 1000;
        w.run(ms(2));
        if let Some(p) = w.sides[0].inbox.iter().rfind(|p| p[9] == 6) {
            window = u16::from_be_bytes([p[34], p[35]]);
        }
        assert!(a.seq < 64 << 20);
    }
    a.payload.clear();
    w.run(Duration::from_secs(5));
    arrived(&mut w, 0, 6000, 5000);
    w.host_sends(0, &keep_alive(&a));
    w.run(ms(2));
    assert_eq!(arrived(&mut w, 0, 6000, 5000).len(), 1);
}
