//! Two whole routers on a virtual clock, with hosts of both IP versions behind
//! them and a link over either: what an IPv6 router owes its neighbours
//! (RFC 4861, RFC 4443, RFC 8200), and that nothing of it depends on what the link runs over.
//!
//! ```text
//!   host A ::2 -- lan ::1 [router A] wan ==== wire ==== wan [router B] lan ::1 -- host B ::2
//!       2001:db8:1::/64, 10.1.0.0/24                      2001:db8:2::/64, 10.2.0.0/24
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod connections;
#[path = "../machine/mod.rs"]
mod machine;
mod world;

use mef_dataplane::drops::{DropReason, Stage};
use mef_packet::wire::icmpv6::{Error, Message};
use mef_packet::wire::tcp_options::TcpOption;
use mef_packet::wire::{ethernet, ipv4, ipv6, tcp, tcp_options};
use mef_packet::Meta;

use world::*;

#[test]
fn pings_of_both_versions_cross_links_over_both_versions() {
    for underlay in [Underlay::V4, Underlay::V6] {
        let mut w = up(underlay, "");
        // Up to the largest that an Ethernet carries, in two pieces over the link.
        for data in [0, 56, 1300, 1452] {
            let sent = ping(A, B, 64, data);
            let [got] = carried(&mut w, 0, 1, &sent).try_into().unwrap();
            // Two routers have seen it, and nothing else has changed.
            let mut expected = sent;
            expected[7] = 62;
            assert!(got == expected, "{underlay:?} {data}");
        }
        let [got] = carried(&mut w, 0, 1, &ping4(1472)).try_into().unwrap();
        assert_eq!(got.len(), 1500);
        for (router, dst) in [(ROUTER_A, ROUTER_A), (ROUTER_B, ROUTER_B)] {
            let [got] = carried(&mut w, 0, 0, &ping(A, dst, 64, 56))
                .try_into()
                .unwrap();
            assert_eq!(kind_of(&got), (router.parse().unwrap(), 129));
        }
        assert_eq!(w.dropped(), [0, 0], "{underlay:?}");
    }
}

#[test]
fn the_router_answers_at_its_link_local_address() {
    let mut w = up(Underlay::V6, "");
    let own = ipv6::link_local(mac(1, 0)).to_string();
    for src in ["fe80::99", A] {
        let [got] = carried(&mut w, 0, 0, &ping(src, &own, 255, 8))
            .try_into()
            .unwrap();
        assert_eq!(kind_of(&got), (own.parse().unwrap(), 129), "{src}");
    }
    // From a link-local address the router itself can be reached, and nobody beyond it.
    let [got] = carried(&mut w, 0, 0, &ping("fe80::99", ROUTER_A, 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), (ROUTER_A.parse().unwrap(), 129));
    let beyond = ping("fe80::99", B, 64, 8);
    w.a_drops(&beyond, Stage::Ingress, DropReason::MartianSource);
    let elsewhere = ping(A, "fe80::1234", 64, 8);
    w.a_drops(&elsewhere, Stage::Route, DropReason::NoRoute);
}

#[test]
fn a_next_hop_may_be_link_local() {
    let route = "[[route]]\nprefix = \"2001:db8:{me}:7::/64\"\nvia = \"fe80::99%lan\"";
    let mut w = up(Underlay::V4, route);
    let [got] = carried(&mut w, 0, 1, &ping(A, "2001:db8:2:7::5", 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), (A.parse().unwrap(), 128));
    let [got] = carried(&mut w, 1, 0, &ping("2001:db8:2:7::5", A, 64, 8))
        .try_into()
        .unwrap();
    assert_eq!(kind_of(&got), ("2001:db8:2:7::5".parse().unwrap(), 128));
    assert_eq!(w.dropped(), [0, 0]);
}

#[test]
fn what_cannot_go_further_is_counted_once_and_explained() {
    let mut w = up(Underlay::V4, "");
    w.a_drops(&ping(A, B, 1, 8), Stage::Route, DropReason::TtlExpired);
    let exceeded = |from: &str| (from.to_owned(), Error::TimeExceeded(0));
    assert_eq!(errors(&mut w), [exceeded(ROUTER_A)]);
    // The second router of a traceroute.
    w.host_sends(0, &ping(A, B, 2, 8));
    w.run(ms(60));
    assert_eq!(errors(&mut w), [exceeded(ROUTER_B)]);
    let nowhere = ping(A, "2001:db8:99::1", 64, 8);
    w.a_drops(&nowhere, Stage::Route, DropReason::NoRoute);
    let unreachable = |code| (ROUTER_A.to_owned(), Error::Unreachable(code));
    assert_eq!(errors(&mut w), [unreachable(0)]);
    let to_router = datagram(A, ROUTER_A, 53, b"hello");
    w.a_drops(&to_router, Stage::Ingress, DropReason::NoListener);
    assert_eq!(errors(&mut w), [unreachable(4)]);
    // No IPv6 router fragments; what the link takes is said.
    let large = datagram(A, B, 53, &[1; 1453]);
    w.a_drops(&large, Stage::Carry, DropReason::TooBig);
    let too_big = Error::TooBig { mtu: 1500 };
    assert_eq!(errors(&mut w), [(ROUTER_A.to_owned(), too_big)]);
    // Nobody there, at the far end: three questions, and then the sender hears of it.
    w.host_sends(0, &ping(A, "2001:db8:2::77", 64, 8));
    w.run(ms(3100));
    let missing = (ROUTER_B.to_owned(), Error::Unreachable(3));
    assert_eq!(errors(&mut w), [missing]);
}

#[test]
fn what_nobody_may_send_is_counted_and_goes_nowhere() {
    let mut w = up(Underlay::V6, "");
    let mut spoofed_version = ping(A, B, 64, 8);
    for (packet, reason) in [
        (ping("::1", B, 64, 8), DropReason::MartianSource),
        (ping("::", B, 64, 8), DropReason::MartianSource),
        (ping("ff02::1", B, 64, 8), DropReason::MartianSource),
        (ping("::ffff:10.1.0.2", B, 64, 8), DropReason::MartianSource),
        (ping(ROUTER_A, B, 64, 8), DropReason::OwnAddressSpoofed),
        (ping(A, "ff0e::1", 64, 8), DropReason::MartianDestination),
        // Neighbour Discovery that a router has passed on.
        (
            icmp6(
                A,
                ROUTER_A,
                254,
                &Message::Solicitation {
                    target: addr(ROUTER_A),
                    source: Some(HOST_MAC),
                },
            ),
            DropReason::NeighbourDiscoveryBad,
        ),
        // A hop-by-hop header that is not the first.
        (
            packet(A, B, 60, &[0, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0]),
            DropReason::ExtensionHeaders,
        ),
        (packet(A, B, 60, &[58, 1, 1, 4]), DropReason::Truncated),
        // For the router itself, in pieces.
        (
            packet(
                A,
                ROUTER_A,
                44,
                &[58, 0, 0, 1, 0, 0, 0, 1, 128, 0, 0, 0, 0, 0, 0, 0],
            ),
            DropReason::FragmentUnsupported,
        ),
    ] {
        w.a_drops(&packet, Stage::Ingress, reason);
    }
    // An IPv4 header in an IPv6 frame.
    spoofed_version[0] = 0x45;
    let frame = framed(
        mac(1, 0),
        HOST_MAC,
        ethernet::ETHERTYPE_IPV6,
        &spoofed_version,
    );
    inject(&w.sides[0].lan, &frame, Meta::default());
    w.run(ms(5));
    assert_eq!(w.count(0, Stage::Ingress, DropReason::BadVersion), 1);
    assert!(errors(&mut w).is_empty());
    // A source that is not behind its router: refused by the other one.
    w.host_sends(0, &ping("2001:db8:77::1", B, 64, 8));
    w.run(ms(60));
    assert!(w.sides[1].inbox.is_empty());
    assert_eq!(w.count(1, Stage::Open, DropReason::SourceNotAllowed), 1);
}

#[test]
fn extension_headers_and_fragments_cross_as_they_are() {
    let mut w = up(Underlay::V6, "");
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    let mut with_options = packet(A, B, 60, &[&options[..], &[9; 40]].concat());
    let first = packet(
        A,
        B,
        44,
        &[&[17, 0, 0, 1, 0, 0, 0, 5][..], &[8; 64]].concat(),
    );
    let later = packet(
        A,
        B,
        44,
        &[&[17, 0, 0, 64, 0, 0, 0, 5][..], &[7; 64]].concat(),
    );
    for sent in [&mut with_options, &mut first.clone(), &mut later.clone()] {
        let got = carried(&mut w, 0, 1, sent);
        sent[7] -= 2;
        assert_eq!(got, std::slice::from_ref(sent));
    }
}

/// An echo request between the IPv4 addresses of the hosts.
fn ping4(data: usize) -> Vec<u8> {
    machine::ip(machine::A, machine::B, 1, &echo(1, data))
}

/// A SYN with an MSS option.
fn syn(src: &str, dst: &str, mss: u16) -> Vec<u8> {
    let mut options = [0; 40];
    let n = tcp_options::emit(&mut options, &[TcpOption::Mss(mss)]).unwrap();
    let header = tcp::Header {
        src_port: 40_000,
        dst_port: 22,
        seq: 1,
        flags: tcp::Flags::SYN,
        window: 65_535,
        ..Default::default()
    };
    let mut segment = vec![0; 60];
    let len = header.emit(&mut segment, &options[..n]).unwrap();
    segment.truncate(len);
    tcp::fill_checksum(&mut segment, addr(src), addr(dst)).unwrap();
    packet(src, dst, ipv4::PROTOCOL_TCP, &segment)
}

#[test]
fn tcp_that_is_not_split_is_told_what_the_path_carries() {
    let policy = "[[policy]]\nprotocol = \"tcp\"\nmode = \"datagram\"";
    for (underlay, outer) in [(Underlay::V4, 28), (Underlay::V6, 48)] {
        let mut w = up(underlay, policy);
        let [got] = carried(&mut w, 0, 1, &syn(A, B, 1440)).try_into().unwrap();
        let v = ipv6::View::parse(&got).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        t.verify_checksum(v.src(), v.dst()).unwrap();
        // LINK header and tag, inner header, DGRAM frame; IPv6 and TCP header of the host's own.
        let mss = 1500 - outer - 32 - 8 - 7 - 60;
        assert_eq!(t.options().next(), Some(Ok(TcpOption::Mss(mss))));
        // What is low enough is left alone.
        let [got] = carried(&mut w, 0, 1, &syn(A, B, 1000)).try_into().unwrap();
        let v = ipv6::View::parse(&got).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        assert_eq!(t.options().next(), Some(Ok(TcpOption::Mss(1000))));
    }
}

#[test]
fn a_port_without_ipv6_does_not_speak_it() {
    let mut w = up(Underlay::V4, "");
    let question = icmp6(
        "fe80::99",
        "ff02::1:ff00:101",
        255,
        &Message::Solicitation {
            target: ipv6::link_local(mac(1, 1)),
            source: Some(HOST_MAC),
        },
    );
    let frame = framed(mac(1, 1), HOST_MAC, ethernet::ETHERTYPE_IPV6, &question);
    inject(&w.sides[0].wan, &frame, Meta::default());
    w.run(ms(5));
    let counters = w.sides[0].router.counters();
    assert_eq!(
        counters.get(Stage::Ingress, DropReason::EtherTypeUnsupported),
        1
    );
}
