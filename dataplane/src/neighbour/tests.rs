use std::net::Ipv4Addr;

use proptest::prelude::*;

use mef_packet::wire::arp::{self, Operation};
use mef_packet::wire::ethernet::BROADCAST;

use super::*;

const LAN: PortId = PortId(0);
const WAN: PortId = PortId(1);
const OUR_MAC: MacAddr = [2, 0, 0, 0, 0, 1];
const HOST_MAC: MacAddr = [2, 0, 0, 0, 0, 9];
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9));
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 0, 1));

type Table = Neighbours<u32>;

fn table() -> Table {
    let interface = |mac, addresses: &[&str]| Interface {
        mac,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        advertise: None,
    };
    Neighbours::new([
        interface(OUR_MAC, &["10.1.0.1/16", "10.9.0.1/24"]),
        interface([2, 0, 0, 0, 0, 2], &["192.0.2.1/30"]),
    ])
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000_000 + ms)
}

fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => panic!("ARP is IPv4's"),
    }
}

fn message(
    operation: Operation,
    sender_ip: IpAddr,
    sender_mac: MacAddr,
    target_ip: IpAddr,
) -> Vec<u8> {
    let mut bytes = vec![0; arp::LEN];
    arp::Packet {
        operation,
        sender_mac,
        sender_ip: v4(sender_ip),
        target_mac: OUR_MAC,
        target_ip: v4(target_ip),
    }
    .emit(&mut bytes)
    .unwrap();
    bytes
}

fn answer(table: &mut Table, now: Instant, ip: IpAddr, mac: MacAddr) {
    table
        .handle_arp(now, LAN, &message(Operation::Reply, ip, mac, OURS))
        .unwrap();
}

fn events(table: &mut Table) -> Vec<Event<u32>> {
    std::iter::from_fn(|| table.poll_event()).collect()
}

/// The only event, which must be a frame; returned as who it goes to and what it says.
fn sent(table: &mut Table) -> (MacAddr, arp::Packet) {
    match events(table).as_slice() {
        [Event::Send { port: LAN, frame }] => {
            assert_eq!(frame[12..14], [8, 6]);
            assert_eq!(frame[6..12], OUR_MAC);
            (
                frame[..6].try_into().unwrap(),
                arp::Packet::parse(&frame[14..]).unwrap(),
            )
        }
        other => panic!("expected one frame: {other:?}"),
    }
}

#[test]
fn an_unknown_neighbour_is_asked_for_and_its_packets_follow_in_order() {
    let mut t = table();
    assert_eq!(t.resolve(at(0), LAN, HOST), Resolution::Pending);
    let (to, request) = sent(&mut t);
    assert_eq!(to, BROADCAST);
    assert_eq!(
        (
            request.operation,
            request.sender_ip,
            request.sender_mac,
            request.target_ip
        ),
        (Operation::Request, v4(OURS), OUR_MAC, v4(HOST))
    );
    t.hold(LAN, HOST, 1);
    assert_eq!(t.resolve(at(1), LAN, HOST), Resolution::Pending);
    t.hold(LAN, HOST, 2);
    assert_eq!(events(&mut t), []);
    answer(&mut t, at(5), HOST, HOST_MAC);
    let deliver = |packet| Event::Deliver {
        port: LAN,
        mac: HOST_MAC,
        packet,
    };
    assert_eq!(events(&mut t), [deliver(1), deliver(2)]);
    assert_eq!(t.resolve(at(6), LAN, HOST), Resolution::Known(HOST_MAC));
    // The answer overtook a packet that the caller was about to hold.
    t.hold(LAN, HOST, 3);
    assert_eq!(events(&mut t), [deliver(3)]);
    assert_eq!(t.len(WAN), 0);
}

#[test]
fn the_request_comes_from_the_address_in_the_same_network() {
    let mut t = table();
    t.resolve(at(0), LAN, IpAddr::from([10, 9, 0, 7]));
    assert_eq!(sent(&mut t).1.sender_ip, Ipv4Addr::new(10, 9, 0, 1));
}

#[test]
fn silence_is_unreachable_after_three_requests_and_may_be_tried_again() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    t.hold(LAN, HOST, 1);
    sent(&mut t);
    for second in [1, 2] {
        assert_eq!(t.poll_timeout(), Some(at(second * 1000)));
        t.handle_timeout(at(second * 1000 - 1));
        assert_eq!(events(&mut t), []);
        t.handle_timeout(at(second * 1000));
        assert_eq!(sent(&mut t).0, BROADCAST);
    }
    t.hold(LAN, HOST, 2);
    t.handle_timeout(at(3000));
    let returned = |packet| Event::Unreachable {
        port: LAN,
        neighbour: HOST,
        packet,
    };
    assert_eq!(events(&mut t), [returned(1), returned(2)]);
    assert_eq!((t.len(LAN), t.poll_timeout()), (0, None));
    t.hold(LAN, HOST, 3);
    assert_eq!(
        events(&mut t),
        [Event::Dropped {
            packet: 3,
            reason: DropReason::UnresolvedNeighbour
        }]
    );
    assert_eq!(t.resolve(at(3001), LAN, HOST), Resolution::Pending);
}

#[test]
fn a_neighbour_in_use_is_probed_by_unicast_while_traffic_flows() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    answer(&mut t, at(0), HOST, HOST_MAC);
    events(&mut t);
    t.resolve(at(100), LAN, HOST);
    assert_eq!(t.poll_timeout(), Some(at(60_000)));
    t.handle_timeout(at(60_000));
    let (to, request) = sent(&mut t);
    assert_eq!((to, request.target_ip), (HOST_MAC, v4(HOST)));
    assert_eq!(
        t.resolve(at(60_100), LAN, HOST),
        Resolution::Known(HOST_MAC)
    );
    answer(&mut t, at(60_200), HOST, HOST_MAC);
    assert_eq!(
        (events(&mut t), t.poll_timeout()),
        (vec![], Some(at(120_200)))
    );
    t.resolve(at(60_300), LAN, HOST);

    // Now it is gone.
    t.handle_timeout(at(120_200));
    assert_eq!(sent(&mut t).0, HOST_MAC);
    for ms in [121_200, 122_200] {
        assert_eq!(t.resolve(at(ms), LAN, HOST), Resolution::Known(HOST_MAC));
        t.handle_timeout(at(ms));
        assert_eq!(sent(&mut t).0, HOST_MAC);
    }
    t.handle_timeout(at(123_200));
    assert_eq!(events(&mut t), []);
    assert_eq!(t.resolve(at(123_201), LAN, HOST), Resolution::Pending);
    assert_eq!(sent(&mut t).0, BROADCAST);
}

#[test]
fn an_unused_neighbour_is_forgotten_without_a_word() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    answer(&mut t, at(0), HOST, HOST_MAC);
    events(&mut t);
    t.handle_timeout(at(60_000));
    assert_eq!(
        (events(&mut t), t.len(LAN), t.poll_timeout()),
        (vec![], 0, None)
    );
}

#[test]
fn who_asks_for_us_is_answered_and_known() {
    let mut t = table();
    t.handle_arp(
        at(0),
        LAN,
        &message(Operation::Request, HOST, HOST_MAC, OURS),
    )
    .unwrap();
    let (to, reply) = sent(&mut t);
    assert_eq!(to, HOST_MAC);
    assert_eq!(
        (reply.operation, reply.sender_ip, reply.sender_mac),
        (Operation::Reply, v4(OURS), OUR_MAC)
    );
    assert_eq!((reply.target_ip, reply.target_mac), (v4(HOST), HOST_MAC));
    assert_eq!(t.resolve(at(1), LAN, HOST), Resolution::Known(HOST_MAC));
}

#[test]
fn what_is_not_for_us_is_neither_answered_nor_learned() {
    let mut t = table();
    let other = IpAddr::from([10, 1, 0, 50]);
    for target in [other, HOST, IpAddr::from([192, 0, 2, 1])] {
        t.handle_arp(
            at(0),
            LAN,
            &message(Operation::Request, HOST, HOST_MAC, target),
        )
        .unwrap();
        t.handle_arp(
            at(0),
            LAN,
            &message(Operation::Reply, HOST, HOST_MAC, target),
        )
        .unwrap();
    }
    assert_eq!((events(&mut t), t.len(LAN)), (vec![], 0));
    // Probing whether our address is free: answered, not learned.
    t.handle_arp(
        at(0),
        LAN,
        &message(
            Operation::Request,
            Ipv4Addr::UNSPECIFIED.into(),
            HOST_MAC,
            OURS,
        ),
    )
    .unwrap();
    assert_eq!(sent(&mut t).0, HOST_MAC);
    assert_eq!(t.len(LAN), 0);
}

#[test]
fn gratuitous_arp_moves_a_known_neighbour_only() {
    let mut t = table();
    let gratuitous = |mac| message(Operation::Request, HOST, mac, HOST);
    t.handle_arp(at(0), LAN, &gratuitous(HOST_MAC)).unwrap();
    assert_eq!(t.len(LAN), 0);
    t.resolve(at(0), LAN, HOST);
    answer(&mut t, at(1), HOST, HOST_MAC);
    let moved = [2, 0, 0, 0, 0, 0x77];
    t.handle_arp(at(2), LAN, &gratuitous(moved)).unwrap();
    assert_eq!(t.resolve(at(3), LAN, HOST), Resolution::Known(moved));
    assert_eq!(t.timers.len(), 1);
}

#[test]
fn nonsense_is_refused() {
    let mut t = table();
    let mut bad = |bytes: &[u8]| t.handle_arp(at(0), LAN, bytes);
    let request = |ip, mac| message(Operation::Request, ip, mac, OURS);
    assert_eq!(
        bad(&request(HOST, HOST_MAC)[..27]),
        Err(DropReason::Truncated)
    );
    assert_eq!(bad(&[0; 28]), Err(DropReason::ArpBad));
    for mac in [BROADCAST, [1, 0, 0, 0, 0, 1], [0; 6], OUR_MAC] {
        assert_eq!(bad(&request(HOST, mac)), Err(DropReason::ArpBad), "{mac:?}");
    }
    for ip in ["10.1.255.255", "10.1.0.0", "192.0.2.2", "224.0.0.1"] {
        assert_eq!(
            bad(&request(ip.parse().unwrap(), HOST_MAC)),
            Err(DropReason::ArpBad),
            "{ip}"
        );
    }
    assert_eq!(events(&mut t), []);
    assert_eq!(t.len(LAN), 0);
    for ip in ["10.1.255.255", "10.1.0.1", "192.0.2.2"] {
        assert_eq!(
            t.resolve(at(0), LAN, ip.parse().unwrap()),
            Resolution::Refused(DropReason::UnresolvedNeighbour),
            "{ip}"
        );
    }
    assert_eq!(
        t.resolve(at(0), PortId(7), HOST),
        Resolution::Refused(DropReason::UnresolvedNeighbour)
    );
}

#[test]
fn a_second_station_with_our_address_is_reported() {
    let mut t = table();
    t.handle_arp(at(0), LAN, &message(Operation::Reply, OURS, HOST_MAC, HOST))
        .unwrap();
    assert_eq!(
        events(&mut t),
        [Event::Conflict {
            port: LAN,
            address: OURS,
            mac: HOST_MAC
        }]
    );
    assert_eq!(t.len(LAN), 0);
}

#[test]
fn an_announcement_names_every_own_address() {
    let mut t = table();
    t.announce(at(0), LAN);
    let targets: Vec<IpAddr> = events(&mut t)
        .iter()
        .map(|e| match e {
            Event::Send { frame, .. } => {
                let p = arp::Packet::parse(&frame[14..]).unwrap();
                assert_eq!((p.sender_ip, &frame[..6]), (p.target_ip, &BROADCAST[..]));
                IpAddr::V4(p.target_ip)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(targets, [OURS, IpAddr::from([10, 9, 0, 1])]);
}

fn nth_host(n: u16) -> IpAddr {
    Ipv4Addr::from_bits(0x0a01_1000 + u32::from(n)).into()
}

#[test]
fn the_oldest_held_packet_gives_way() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    sent(&mut t);
    for n in 0..MAX_HELD as u32 + 2 {
        t.hold(LAN, HOST, n);
    }
    let dropped = |packet| Event::Dropped {
        packet,
        reason: DropReason::NeighbourQueueFull,
    };
    assert_eq!(events(&mut t), [dropped(0), dropped(1)]);

    // All neighbours of the port together have a limit too.
    for n in 0..MAX_INCOMPLETE as u16 - 1 {
        t.resolve(at(1), LAN, nth_host(n));
        t.hold(LAN, nth_host(n), 1000 + u32::from(n));
    }
    let refused = events(&mut t)
        .iter()
        .filter(|e| matches!(e, Event::Dropped { .. }))
        .count();
    assert_eq!(refused, MAX_HELD + MAX_INCOMPLETE - 1 - MAX_HELD_PER_PORT);
    t.handle_timeout(at(1001));
    t.handle_timeout(at(2001));
    t.handle_timeout(at(3001));
    let returned = events(&mut t)
        .iter()
        .filter(|e| matches!(e, Event::Unreachable { .. }))
        .count();
    assert_eq!(returned, MAX_HELD_PER_PORT);
    assert_eq!((t.tables[0].held, t.tables[0].incomplete), (0, 0));
}

#[test]
fn a_scan_does_not_push_out_who_is_there() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    answer(&mut t, at(0), HOST, HOST_MAC);
    let outcomes: Vec<Resolution> = (0..4000)
        .map(|n| t.resolve(at(1), LAN, nth_host(n)))
        .collect();
    assert_eq!(
        outcomes
            .iter()
            .filter(|r| **r == Resolution::Pending)
            .count(),
        MAX_INCOMPLETE
    );
    assert_eq!(
        outcomes.last(),
        Some(&Resolution::Refused(DropReason::NeighbourTableFull))
    );
    // A host that speaks to us is still learned, and an answer still taken.
    let speaker = IpAddr::from([10, 1, 200, 1]);
    t.handle_arp(
        at(2),
        LAN,
        &message(Operation::Request, speaker, HOST_MAC, OURS),
    )
    .unwrap();
    assert_eq!(t.resolve(at(3), LAN, speaker), Resolution::Known(HOST_MAC));
    assert_eq!(t.resolve(at(3), LAN, HOST), Resolution::Known(HOST_MAC));
    // And three seconds later it is over.
    (1..=3).for_each(|s| t.handle_timeout(at(1 + 1000 * s)));
    assert_eq!(t.len(LAN), 2);
}

#[test]
fn a_flood_of_claims_makes_room_at_the_expense_of_the_unused() {
    let mut t = table();
    t.resolve(at(0), LAN, HOST);
    answer(&mut t, at(0), HOST, HOST_MAC);
    t.resolve(at(0), LAN, HOST);
    for n in 0..5000 {
        t.handle_arp(
            at(1 + u64::from(n)),
            LAN,
            &message(Operation::Request, nth_host(n), HOST_MAC, OURS),
        )
        .unwrap();
    }
    assert_eq!(t.len(LAN), MAX_ENTRIES);
    assert_eq!(t.timers.len(), MAX_ENTRIES);
    assert_eq!(t.resolve(at(6000), LAN, HOST), Resolution::Known(HOST_MAC));
    assert_eq!(
        t.resolve(at(6000), LAN, nth_host(4999)),
        Resolution::Known(HOST_MAC)
    );
    assert_eq!(t.resolve(at(6000), LAN, nth_host(9)), Resolution::Pending);
}

proptest! {
    /// Every packet comes out exactly once, and the bookkeeping agrees with the
    /// entries, whatever happens in whatever order.
    #[test]
    fn no_packet_is_lost_and_no_timer_forgotten(steps in prop::collection::vec((0u8..5, 0u16..12, 0u64..2500), 1..300)) {
        let mut t = table();
        let (mut now, mut given, mut back) = (at(0), 0u32, Vec::new());
        for (what, host, ms) in steps {
            now += Duration::from_millis(ms);
            let ip = nth_host(host);
            match what {
                0 | 1 => {
                    if t.resolve(now, LAN, ip) == Resolution::Pending {
                        t.hold(LAN, ip, given);
                        given += 1;
                    }
                }
                2 => answer(&mut t, now, ip, HOST_MAC),
                3 => t.handle_arp(now, LAN, &message(Operation::Request, ip, HOST_MAC, OURS)).unwrap(),
                _ => t.handle_timeout(now),
            }
            let table = &t.tables[0];
            let incomplete = table.entries.values().filter_map(|e| match &e.state {
                State::Incomplete { held, .. } => Some(held.len()),
                _ => None,
            });
            prop_assert_eq!((table.incomplete, table.held), incomplete.fold((0, 0), |(n, h), held| (n + 1, h + held)));
            let timers: BTreeSet<_> = table.entries.iter().map(|(ip, e)| (e.timer, LAN, *ip)).collect();
            prop_assert_eq!(&timers, &t.timers);
            back.extend(events(&mut t));
        }
        while let Some(next) = t.poll_timeout() {
            t.handle_timeout(next);
        }
        back.extend(events(&mut t));
        let mut packets: Vec<u32> = back.iter().filter_map(|e| match e {
            Event::Deliver { packet, .. } | Event::Unreachable { packet, .. } | Event::Dropped { packet, .. } => Some(*packet),
            Event::Send { .. } | Event::Conflict { .. } => None,
        }).collect();
        packets.sort_unstable();
        prop_assert_eq!(packets, (0..given).collect::<Vec<_>>());
        prop_assert_eq!(t.len(LAN), 0);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64), sound: bool) {
        let mut t = table();
        let mut bytes = bytes;
        if let Some(head) = bytes.get_mut(..8).filter(|_| sound) {
            head.copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        }
        let _ = t.handle_arp(at(0), LAN, &bytes);
        prop_assert!(t.len(LAN) <= 1);
    }
}
