//! What becomes of packets that are not split TCP: two whole routers back to
//! back on ports in memory and a virtual clock, a host behind each, and a way
//! between the routers for packets in the clear.
//!
//! ```text
//!   host A .2 -- lan [router A] wan ==== wire ==== wan [router B] lan -- host B .2
//!        10.1.0.0/24         192.0.2.0/30                   10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod in_the_clear;
#[path = "../machine/mod.rs"]
mod machine;
mod world;

use mef_dataplane::drops::{DropReason, Stage};
use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::{ipv4, tcp, udp};
use mef_packet::{Checksum, Gso, Meta};

use world::*;

#[test]
fn datagrams_keep_all_but_ttl_and_marks() {
    let mut w = up_plainly();
    for (class, len) in [(0, 8), (0xb8, 100), (0x29, 1472), (0x2a, 1472), (0x03, 700)] {
        let packet = ip(A, B, 17, class, len != 100, &udp_bytes(A, B, 9, &data(len)));
        w.forget();
        w.host_sends(0, &packet);
        w.run(ms(50));
        assert_eq!(w.received(1), [behind(&packet, Ecn::of_class(class))]);
        // Its class stands outside, for whoever carries the line; control has none.
        assert!(w.classes.contains(&class), "{:?}", w.classes);
        assert!(w.classes.iter().all(|c| [0, class].contains(c)));
        w.marks = true;
        w.host_sends(0, &packet);
        w.run(ms(50));
        let marked = if class & 3 == 0 { Ecn::NotEct } else { Ecn::Ce };
        assert_eq!(w.received(1), [behind(&packet, marked)]);
        w.marks = false;
    }
    assert_eq!(w.dropped(), [0, 0]);
}

#[test]
fn a_split_connection_keeps_the_class_of_its_syn_and_ends_its_marks_here() {
    let mut w = up_plainly();
    let (from, to) = ((A, 40_000), (B, 80));
    let mut syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    // AF41, and ECT(0), which no SYN should have.
    ecn::set_traffic_class(&mut syn, 0x8a).unwrap();
    w.host_sends(0, &syn);
    w.run(ms(50));
    let opened = w.received(1).remove(0);
    assert_eq!((opened[1], opened[9]), (0x88, 6));
    let seq = tcp::View::parse(&opened[20..]).unwrap().seq();
    let mut answer = segment(to, from, 5000, tcp::Flags::SYN | tcp::Flags::ACK, b"");
    answer[28..32].copy_from_slice(&(seq + 1).to_be_bytes());
    let (s, d) = (std::net::Ipv4Addr::from(B), std::net::Ipv4Addr::from(A));
    tcp::fill_checksum(&mut answer[20..], s, d).unwrap();
    w.host_sends(1, &answer);
    w.run(ms(50));
    let accepted = w.received(0).remove(0);
    assert_eq!((accepted[1], accepted[9]), (0x88, 6));
    let theirs = tcp::View::parse(&accepted[20..]).unwrap().seq();
    w.forget();
    let mut data = segment(from, to, 1001, tcp::Flags::ACK, b"GET /");
    data[28..32].copy_from_slice(&(theirs + 1).to_be_bytes());
    tcp::fill_checksum(&mut data[20..], d, s).unwrap();
    w.host_sends(0, &data);
    w.run(ms(50));
    let delivered = w.received(1);
    assert!(delivered
        .iter()
        .any(|p| p.ends_with(b"GET /") && p[1] == 0x88));
    // The stream's packets show the class; control does not.
    assert!(w.classes.contains(&0x88), "{:?}", w.classes);
    assert!(
        w.classes.iter().all(|c| [0, 0x88].contains(c)),
        "{:?}",
        w.classes
    );
}

#[test]
fn the_class_outside_can_be_switched_off_but_not_the_marks() {
    let zero = Extra {
        line: "dscp = \"zero\"",
        ..Extra::default()
    };
    let mut w = up_with(zero, Extra::default());
    w.host_sends(
        0,
        &ip(A, B, 17, 0xba, true, &udp_bytes(A, B, 9, &data(100))),
    );
    w.run(ms(50));
    assert!(w.classes.contains(&2) && w.classes.iter().all(|c| c & 0xfc == 0));
    assert_eq!(w.received(1)[0][1], 0xba);
}

#[test]
fn hosts_have_a_path_of_1500_bytes_and_are_told_so() {
    let mut w = up_plainly();
    w.host_sends(0, &udp_packet(A, B, 9, &data(1473)));
    w.run(ms(50));
    assert_eq!(w.icmp_and_mtu(0), [(ROUTER_A, 3, 4, 1500)]);
    assert_eq!(w.count(0, Stage::Carry, DropReason::TooBig), 1);
    assert_eq!(w.received(1).len(), 0);
    // Where its header allows it, it is fragmented instead.
    let large = ip(A, B, 17, 0, false, &udp_bytes(A, B, 9, &data(4000)));
    w.host_sends(0, &large);
    w.run(ms(50));
    let fragments = w.received(1);
    assert_eq!(
        fragments.iter().map(Vec::len).collect::<Vec<_>>(),
        [1500, 1500, 1068]
    );
    let mut joined = Vec::new();
    for f in &fragments {
        let v = ipv4::View::parse(f).unwrap();
        assert_eq!(
            (usize::from(v.fragment_offset()), v.ident()),
            (joined.len(), 99)
        );
        joined.extend_from_slice(v.payload());
    }
    assert_eq!(joined, large[20..]);
}

#[test]
fn a_smaller_network_behind_the_other_router_is_reported_by_it() {
    let mut w = up(Settings {
        ports: |me| {
            let lan = if me == 2 { 1300 } else { 9000 };
            [caps(me, 0, lan), caps(me, 1, 1500)]
        },
        ..settings(Extra::default(), Extra::default())
    });
    w.host_sends(0, &udp_packet(A, B, 9, &data(1400)));
    w.run(ms(50));
    assert_eq!(w.icmp_and_mtu(0), [(ROUTER_B, 3, 4, 1300)]);
    assert_eq!(w.count(1, Stage::Carry, DropReason::TooBig), 1);
    w.host_sends(0, &ip(A, B, 17, 0, false, &udp_bytes(A, B, 9, &data(1400))));
    w.run(ms(50));
    assert_eq!(
        w.received(1).iter().map(Vec::len).collect::<Vec<_>>(),
        [1300, 148]
    );
    // Nobody is there: the host hears it from the router that knows.
    w.host_sends(0, &udp_packet(A, [10, 2, 0, 77], 9, &data(10)));
    w.run(ms(5000));
    assert_eq!(w.icmp_and_mtu(0), [(ROUTER_B, 3, 1, 0)]);
}

#[test]
fn super_frames_are_cut_into_the_packets_they_stand_for() {
    let mut w = up_with(
        policy("[[policy]]\nprotocol = \"tcp\"\nmode = \"datagram\""),
        Extra::default(),
    );
    let gso = |gso, gso_size, offset| Meta {
        gso,
        gso_size,
        checksum: Checksum::Partial { start: 34, offset },
        ..Meta::default()
    };
    w.host_offers(
        0,
        &udp_packet(A, B, 443, &data(10_000)),
        gso(Gso::Udp, 1200, 6),
    );
    w.run(ms(50));
    let mut joined = Vec::new();
    for p in w.received(1) {
        let v = ipv4::View::parse(&p).unwrap();
        let u = udp::View::parse(v.payload()).unwrap();
        u.verify_checksum(v.src(), v.dst()).unwrap();
        assert!(u.payload().len() == 1200 || u.payload().len() == 400);
        joined.extend_from_slice(u.payload());
    }
    assert_eq!(joined, data(10_000));

    let (from, to) = ((A, 40_000), (B, 80));
    let flags = tcp::Flags::ACK | tcp::Flags::PSH;
    let big = segment(from, to, 1000, flags, &data(20_000));
    w.host_offers(0, &big, gso(Gso::TcpV4, 1460, 16));
    w.run(ms(50));
    let (mut joined, mut seq) = (Vec::new(), 1000);
    let pieces = w.received(1);
    for (i, p) in pieces.iter().enumerate() {
        let v = ipv4::View::parse(p).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        t.verify_checksum(v.src(), v.dst()).unwrap();
        assert_eq!(t.seq(), seq);
        assert_eq!(t.flags().contains(tcp::Flags::PSH), i + 1 == pieces.len());
        seq += t.payload().len() as u32;
        joined.extend_from_slice(t.payload());
    }
    assert_eq!(joined, data(20_000));
    assert_eq!(pieces.len(), 14);
    // Each of them is too big: said once.
    w.host_offers(
        0,
        &udp_packet(A, B, 443, &data(10_000)),
        gso(Gso::Udp, 2000, 6),
    );
    w.run(ms(50));
    assert_eq!(w.icmp_and_mtu(0), [(ROUTER_A, 3, 4, 1500)]);
}

#[test]
fn a_connection_that_one_router_carries_whole_is_not_split_by_the_other() {
    let a = policy("[[policy]]\nprotocol = \"tcp\"\nport = 22\nmode = \"datagram\"");
    let mut w = up_with(a, Extra::default());
    let (from, to) = ((A, 40_000), (B, 22));
    let syn = segment(from, to, 1000, tcp::Flags::SYN, b"");
    w.host_sends(0, &syn);
    w.run(ms(50));
    assert_eq!(w.received(1), [behind(&syn, Ecn::NotEct)]);
    for (flags, payload) in [
        (tcp::Flags::SYN | tcp::Flags::ACK, &b""[..]),
        (tcp::Flags::ACK, b"SSH-2.0"),
        (tcp::Flags::FIN | tcp::Flags::ACK, b""),
    ] {
        let answer = segment(to, from, 5000, flags, payload);
        w.host_sends(1, &answer);
        w.run(ms(50));
        assert_eq!(w.received(0), [behind(&answer, Ecn::NotEct)]);
    }
    assert_eq!(w.flow_counts(), [0, 0]);
    assert_eq!(w.dropped(), [0, 0]);
}
