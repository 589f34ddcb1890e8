use core::time::Duration;

use proptest::prelude::*;

use super::super::{Resolution, Table};
use super::*;

const LAN: PortId = PortId(0);
const OUR_MAC: MacAddr = [2, 0, 0, 0, 0, 1];
const HOST_MAC: MacAddr = [2, 0, 0, 0, 0, 9];
const OTHER_MAC: MacAddr = [2, 0, 0, 0, 0, 8];
const HOST: &str = "2001:db8:1::9";
const OURS: &str = "2001:db8:1::1";
const OUR_LINK_LOCAL: &str = "fe80::ff:fe00:1";

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn table() -> Neighbours<u32> {
    let interface = |mac, addresses: &[&str]| Interface {
        mac,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        advertise: None,
    };
    Neighbours::new([
        interface(OUR_MAC, &["10.1.0.1/16", "2001:db8:1::1/64"]),
        interface([2, 0, 0, 0, 0, 2], &["192.0.2.1/30"]),
    ])
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(1_000_000 + ms)
}

fn packet(src: &str, dst: &str, hop_limit: u8, message: &Message<'_>) -> Vec<u8> {
    let mut out = vec![0; 200];
    let header = ipv6::Header {
        hop_limit,
        ..ipv6::Header::new(ip(src), ip(dst), PROTOCOL_ICMPV6)
    };
    let len = message.emit_packet(&mut out, &header).unwrap();
    out.truncate(len);
    out
}

fn handle(t: &mut Neighbours<u32>, now: Instant, packet: &[u8]) -> Result<bool, DropReason> {
    t.handle_nd(now, LAN, &ipv6::View::parse(packet).unwrap())
}

fn solicit(t: &mut Neighbours<u32>, src: &str, target: &str, source: Option<MacAddr>) {
    let dst = ipv6::solicited_node(ip(target)).to_string();
    let target = ip(target);
    let message = Message::Solicitation { target, source };
    handle(t, at(0), &packet(src, &dst, 255, &message)).unwrap();
}

/// An advertisement of HOST: (MAC, solicited, replaces).
fn advertise(t: &mut Neighbours<u32>, now: Instant, mac: MacAddr, solicited: bool, replaces: bool) {
    let message = Message::Advertisement(Advertisement {
        target: ip(HOST),
        mac: Some(mac),
        router: false,
        solicited,
        replaces,
    });
    let dst = if solicited { OURS } else { "ff02::1" };
    handle(t, now, &packet(HOST, dst, 255, &message)).unwrap();
}

fn events(t: &mut Neighbours<u32>) -> Vec<Event<u32>> {
    std::iter::from_fn(|| t.poll_event()).collect()
}

/// The frames that are to be sent, as (destination MAC, source, destination, message), each of
/// them checked for what every one of them must have.
fn frames(t: &mut Neighbours<u32>) -> Vec<(MacAddr, Ipv6Addr, Ipv6Addr, String)> {
    let read = |e: Event<u32>| {
        let Event::Send { frame, .. } = e else {
            panic!("{e:?}")
        };
        let (header, rest) = ethernet::Header::parse(&frame).unwrap();
        assert_eq!((header.src, header.ethertype), (OUR_MAC, ETHERTYPE_IPV6));
        let v = ipv6::View::parse(rest).unwrap();
        assert_eq!(rest.len(), v.total_len());
        let message = Message::parse(v.payload(), v.src(), v.dst()).unwrap();
        assert_eq!(
            v.hop_limit(),
            if v.has_extensions() { 1 } else { 255 },
            "{message:?}"
        );
        (header.dst, v.src(), v.dst(), format!("{message:?}"))
    };
    events(t).into_iter().map(read).collect()
}

fn resolve(t: &mut Neighbours<u32>, now: Instant) -> Resolution {
    t.resolve(now, LAN, ip(HOST).into())
}

#[test]
fn an_unknown_neighbour_is_asked_for_in_its_group_and_packets_wait() {
    let mut t = table();
    assert_eq!(resolve(&mut t, at(0)), Resolution::Pending);
    t.hold(LAN, ip(HOST).into(), 1);
    let asked = frames(&mut t);
    let [(mac, src, dst, message)] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(*mac, [0x33, 0x33, 0xff, 0, 0, 9]);
    assert_eq!((*src, *dst), (ip(OURS), ip("ff02::1:ff00:9")));
    let question = Message::Solicitation {
        target: ip(HOST),
        source: Some(OUR_MAC),
    };
    assert_eq!(*message, format!("{question:?}"));
    advertise(&mut t, at(5), HOST_MAC, true, true);
    let delivered = Event::Deliver {
        port: LAN,
        mac: HOST_MAC,
        packet: 1,
    };
    assert_eq!(events(&mut t), [delivered]);
    assert_eq!(resolve(&mut t, at(6)), Resolution::Known(HOST_MAC));
    // In use after a minute: asked directly, while traffic goes on.
    t.handle_timeout(at(60_005));
    assert_eq!(frames(&mut t)[0].0, HOST_MAC);
    assert_eq!(resolve(&mut t, at(60_006)), Resolution::Known(HOST_MAC));
    advertise(&mut t, at(60_010), HOST_MAC, true, true);
    t.handle_timeout(at(100_000));
    assert_eq!(resolve(&mut t, at(100_000)), Resolution::Known(HOST_MAC));
}

#[test]
fn nobody_answers() {
    let mut t = table();
    resolve(&mut t, at(0));
    t.hold(LAN, ip(HOST).into(), 7);
    for s in 1..=3 {
        assert_eq!(frames(&mut t).len(), 1, "{s}");
        t.handle_timeout(at(s * 1000));
    }
    let unreachable = Event::Unreachable {
        port: LAN,
        neighbour: ip(HOST).into(),
        packet: 7,
    };
    assert_eq!(events(&mut t), [unreachable]);
    assert!(t.is_empty(LAN));
}

#[test]
fn questions_for_own_addresses_are_answered() {
    for own in [OURS, OUR_LINK_LOCAL] {
        let mut t = table();
        solicit(&mut t, HOST, own, Some(HOST_MAC));
        let answer = Advertisement {
            target: ip(own),
            mac: Some(OUR_MAC),
            router: true,
            solicited: true,
            replaces: true,
        };
        let message = format!("{:?}", Message::Advertisement(answer));
        assert_eq!(frames(&mut t), [(HOST_MAC, ip(own), ip(HOST), message)]);
        assert_eq!(resolve(&mut t, at(1)), Resolution::Known(HOST_MAC));
        // Somebody about to take the address is told that it is taken, before anything is learned.
        let mut t = table();
        solicit(&mut t, "::", own, None);
        let answer = Advertisement {
            solicited: false,
            ..answer
        };
        let message = format!("{:?}", Message::Advertisement(answer));
        let all = [0x33, 0x33, 0, 0, 0, 1];
        assert_eq!(frames(&mut t), [(all, ip(own), ip("ff02::1"), message)]);
        assert!(t.is_empty(LAN));
    }
    // Others' addresses are others' matter.
    let mut t = table();
    solicit(&mut t, HOST, "2001:db8:1::77", Some(HOST_MAC));
    assert_eq!(events(&mut t), []);
    assert!(t.is_empty(LAN));
}

#[test]
fn what_a_neighbour_says_unasked_is_soon_asked_about() {
    let mut t = table();
    solicit(&mut t, HOST, OURS, Some(HOST_MAC));
    events(&mut t);
    assert_eq!(resolve(&mut t, at(100)), Resolution::Known(HOST_MAC));
    assert_eq!(t.poll_timeout(), Some(at(5_000)));
    t.handle_timeout(at(5_000));
    assert_eq!(frames(&mut t)[0].0, HOST_MAC);
    advertise(&mut t, at(5_001), HOST_MAC, true, true);
    assert_eq!(t.poll_timeout(), Some(at(65_001)));
    // An answer of another station that does not insist (RFC 4861 section 7.2.5) changes nothing
    // but how soon the known one is asked; one that insists takes over.
    advertise(&mut t, at(6_000), OTHER_MAC, false, false);
    assert_eq!(resolve(&mut t, at(6_001)), Resolution::Known(HOST_MAC));
    assert_eq!(t.poll_timeout(), Some(at(11_000)));
    advertise(&mut t, at(7_000), OTHER_MAC, false, true);
    assert_eq!(resolve(&mut t, at(7_001)), Resolution::Known(OTHER_MAC));
    assert_eq!(t.poll_timeout(), Some(at(12_000)));
    // Nobody asked, and nobody is known by that address: nothing is learned.
    let mut t = table();
    advertise(&mut t, at(0), HOST_MAC, false, true);
    assert!(t.is_empty(LAN));
}

#[test]
fn what_neighbour_discovery_must_not_be() {
    let mut t = table();
    let bad = Err(DropReason::NeighbourDiscoveryBad);
    let question = |target: &str, source| Message::Solicitation {
        target: ip(target),
        source,
    };
    let answer = |target: &str, mac, solicited| {
        Message::Advertisement(Advertisement {
            target: ip(target),
            mac: Some(mac),
            router: false,
            solicited,
            replaces: true,
        })
    };
    let ours = &ipv6::solicited_node(ip(OURS)).to_string();
    let good = question(OURS, Some(HOST_MAC));
    for (src, dst, hop_limit, message) in [
        // Came through a router.
        (HOST, OURS, 254, good),
        (HOST, ours, 255, question("ff02::5", Some(HOST_MAC))),
        // RFC 4861 section 7.1.1: from nowhere, with an address or not to the group.
        ("::", ours, 255, good),
        ("::", OURS, 255, question(OURS, None)),
        // Another network's host, a group's Ethernet address, and our own.
        ("2001:db8:2::9", ours, 255, good),
        (
            HOST,
            ours,
            255,
            question(OURS, Some([0x33, 0x33, 0, 0, 0, 1])),
        ),
        (HOST, ours, 255, question(OURS, Some(OUR_MAC))),
        (HOST, "ff02::1", 255, answer(HOST, HOST_MAC, true)),
        (HOST, OURS, 255, answer("ff02::5", HOST_MAC, false)),
        (HOST, OURS, 255, answer("2001:db8:2::9", HOST_MAC, false)),
        (HOST, OURS, 255, answer(HOST, OUR_MAC, false)),
    ] {
        let packet = packet(src, dst, hop_limit, &message);
        assert_eq!(
            handle(&mut t, at(0), &packet),
            bad,
            "{src} {dst} {message:?}"
        );
    }
    assert_eq!(events(&mut t), []);
    assert!(t.is_empty(LAN));
    let echo = Message::EchoRequest {
        ident: 1,
        seq: 2,
        data: &[],
    };
    assert_eq!(
        handle(&mut t, at(0), &packet(HOST, OURS, 64, &echo)),
        Ok(false)
    );
    let mut damaged = packet(HOST, OURS, 255, &good);
    damaged[50] ^= 1;
    assert_eq!(
        handle(&mut t, at(0), &damaged),
        Err(DropReason::BadChecksum)
    );
}

#[test]
fn another_station_with_an_own_address_is_a_conflict() {
    let mut t = table();
    let conflict = |address: &str, mac| Event::Conflict {
        port: LAN,
        address: ip(address).into(),
        mac,
    };
    let message = Message::Advertisement(Advertisement {
        target: ip(OUR_LINK_LOCAL),
        mac: Some(HOST_MAC),
        router: false,
        solicited: false,
        replaces: true,
    });
    handle(&mut t, at(0), &packet(HOST, "ff02::1", 255, &message)).unwrap();
    assert_eq!(events(&mut t), [conflict(OUR_LINK_LOCAL, HOST_MAC)]);
    solicit(&mut t, OURS, OURS, Some(HOST_MAC));
    assert_eq!(events(&mut t), [conflict(OURS, HOST_MAC)]);
}

#[test]
fn a_port_announces_groups_and_addresses() {
    let mut t = table();
    t.announce(at(0), LAN);
    let all = events(&mut t);
    // ARP of the IPv4 address, the report, and a question and an answer for each IPv6 address.
    assert_eq!(all.len(), 1 + 1 + 2 * 2);
    t.events.extend(all.into_iter().skip(1));
    let said = frames(&mut t);
    assert_eq!(said[0].2, ip("ff02::16"));
    // Both own addresses end in :1 of the same three bytes, so that one group serves both.
    assert!(said[0].3.contains("kind: 143"), "{}", said[0].3);
    assert_eq!((said[1].1, said[3].1), (ip("::"), ip("::")));
    assert!(said[4].3.contains("2001:db8:1::1"));
    // A port without IPv6 says nothing, and knows no IPv6 neighbour.
    t.announce(at(0), PortId(1));
    assert_eq!(events(&mut t).len(), 1);
    let refused = Resolution::Refused(DropReason::UnresolvedNeighbour);
    for neighbour in ["fe80::9", HOST] {
        assert_eq!(t.resolve(at(0), PortId(1), ip(neighbour).into()), refused);
    }
    // Nor does anybody have the first address of a network (RFC 4291 section 2.6.1).
    assert_eq!(t.resolve(at(0), LAN, ip("2001:db8:1::").into()), refused);
    let pending = t.resolve(at(0), LAN, ip("fe80::9").into());
    assert_eq!(pending, Resolution::Pending);
    assert_eq!(frames(&mut t)[0].1, ip(OUR_LINK_LOCAL));
}

#[test]
fn a_listener_query_is_answered() {
    let mut t = table();
    let query = Message::Other {
        kind: LISTENER_QUERY,
        code: 0,
        body: &[0; 24],
    };
    handle(&mut t, at(0), &packet("fe80::9", "ff02::1", 1, &query)).unwrap();
    let frame = t.listener_frame();
    // Hop-by-hop header first, router alert in it, the checksum over the report alone.
    assert_eq!(frame[54..62], [58, 0, 5, 2, 0, 0, 1, 0]);
    let v = ipv6::View::parse(&frame[14..]).unwrap();
    assert!(Message::parse(v.payload(), v.src(), v.dst()).is_ok());
    assert_eq!(v.payload()[6..12], [0, 1, CHANGE_TO_EXCLUDE, 0, 0, 0]);
    assert_eq!(v.payload()[12..28], ip("ff02::1:ff00:1").octets());
    // Forwarded queries, and those from nowhere, are not.
    handle(&mut t, at(0), &packet("fe80::9", "ff02::1", 2, &query)).unwrap();
    handle(&mut t, at(0), &packet(HOST, "ff02::1", 1, &query)).unwrap();
    assert_eq!(events(&mut t), []);
}

impl Neighbours<u32> {
    fn listener_frame(&mut self) -> Vec<u8> {
        match self.poll_event() {
            Some(Event::Send { frame, .. }) => frame,
            other => panic!("{other:?}"),
        }
    }
}

/// A port that advertises itself, and what it sends at `ms`.
fn advertising() -> Neighbours<u32> {
    let mut t = Neighbours::new([Interface {
        mac: OUR_MAC,
        addresses: vec![
            "2001:db8:1::1/64".parse().unwrap(),
            "2001:db8:2::1/80".parse().unwrap(),
        ],
        advertise: Some(1492),
    }]);
    t.announce(at(0), LAN);
    events(&mut t);
    t
}

/// Router advertisements that are sent until `until`, with when.
fn advertisements(t: &mut Neighbours<u32>, until: Instant) -> Vec<(Instant, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some(now) = t.poll_timeout().filter(|at| *at <= until) {
        t.handle_timeout(now);
        for event in events(t) {
            let Event::Send { frame, .. } = event else {
                panic!("{event:?}")
            };
            let v = ipv6::View::parse(&frame[ethernet::HEADER_LEN..]).unwrap();
            assert_eq!(
                (v.src(), v.dst(), v.hop_limit()),
                (ip(OUR_LINK_LOCAL), ip("ff02::1"), 255)
            );
            // Message::parse verifies the checksum.
            let message = Message::parse(v.payload(), v.src(), v.dst()).unwrap();
            let Message::Other {
                kind: 134,
                code: 0,
                body,
            } = message
            else {
                panic!("{message:?}")
            };
            all.push((now, body.to_vec()));
        }
    }
    all
}

fn router_solicitation(src: &str, hop_limit: u8, code: u8, options: &[u8]) -> Vec<u8> {
    let body = [&[0; 4][..], options].concat();
    let message = Message::Other {
        kind: 133,
        code,
        body: &body,
    };
    packet(src, "ff02::2", hop_limit, &message)
}

#[test]
fn rfc4861_a_router_advertises_its_prefixes_and_its_mtu() {
    let mut t = advertising();
    let all = advertisements(&mut t, at(3_600_000));
    let gaps: Vec<Duration> = all.windows(2).map(|w| w[1].0.since(w[0].0)).collect();
    assert_eq!(all[0].0, at(0));
    assert_eq!(gaps[..2], [Duration::from_secs(16); 2]);
    let regular = Duration::from_secs(200)..=Duration::from_secs(600);
    assert!(gaps[2..].iter().all(|g| regular.contains(g)), "{gaps:?}");
    assert!((8..20).contains(&all.len()), "{}", all.len());
    let expected = [
        &[64, 0, 0x07, 0x08][..],
        &[0; 8],
        &[1, 1],
        &OUR_MAC,
        &[5, 1, 0, 0, 0, 0, 0x05, 0xd4],
        // A /64, in which hosts may make themselves addresses, and a /80, in which they may not.
        &[
            3, 4, 64, 0xc0, 0, 0x27, 0x8d, 0, 0, 0x09, 0x3a, 0x80, 0, 0, 0, 0,
        ],
        &ip("2001:db8:1::").octets(),
        &[
            3, 4, 80, 0x80, 0, 0x27, 0x8d, 0, 0, 0x09, 0x3a, 0x80, 0, 0, 0, 0,
        ],
        &ip("2001:db8:2::").octets(),
    ]
    .concat();
    assert_eq!(all[3].1, expected);
    // At the end it is no way out any more.
    t.withdraw();
    let Some(Event::Send { frame, .. }) = t.poll_event() else {
        panic!("nothing was said")
    };
    let body = &frame[ethernet::HEADER_LEN + ipv6::HEADER_LEN + 4..];
    assert_eq!(body[2..4], [0, 0]);
    assert_eq!(t.poll_timeout(), None);
}

#[test]
fn rfc4861_solicitations_are_answered_soon_and_not_too_often() {
    let mut t = advertising();
    advertisements(&mut t, at(100_000));
    let asked = at(120_000);
    handle(
        &mut t,
        asked,
        &router_solicitation("fe80::9", 255, 0, &[1, 1, 2, 0, 0, 0, 0, 9]),
    )
    .unwrap();
    let told = advertisements(&mut t, asked + Duration::from_millis(500));
    assert_eq!(told.len(), 1);
    // A crowd that asks at once is answered once in three seconds.
    for n in 1..100u64 {
        let now = asked + Duration::from_millis(500 + n * 30);
        handle(&mut t, now, &router_solicitation("::", 255, 0, &[])).unwrap();
        let more = advertisements(&mut t, now);
        let early = now.since(told[0].0) < Duration::from_secs(3);
        assert!(more.is_empty() || !early);
    }
    advertisements(&mut t, asked + Duration::from_secs(20));
    // Section 6.1.1: these are no solicitations.
    for bad in [
        router_solicitation("fe80::9", 254, 0, &[]),
        router_solicitation("fe80::9", 255, 1, &[]),
        router_solicitation("::", 255, 0, &[1, 1, 2, 0, 0, 0, 0, 9]),
        router_solicitation("fe80::9", 255, 0, &[1, 0, 0, 0, 0, 0, 0, 0]),
        router_solicitation("fe80::9", 255, 0, &[1, 2, 2, 0, 0, 0, 0, 9]),
    ] {
        let now = asked + Duration::from_secs(30);
        assert_eq!(
            handle(&mut t, now, &bad),
            Err(DropReason::NeighbourDiscoveryBad)
        );
        assert!(t.poll_timeout().unwrap() > now + Duration::from_secs(1));
    }
    // A port that does not advertise hears them and says nothing.
    let mut t = table();
    assert_eq!(
        handle(&mut t, at(0), &router_solicitation("::", 255, 0, &[])),
        Ok(true)
    );
    assert_eq!(t.poll_timeout(), None);
}

proptest! {
    #[test]
    fn arbitrary_messages_keep_the_table_sound(
        steps in prop::collection::vec((any::<bool>(), 0u8..6, 0u8..6, any::<Option<[u8; 1]>>(), any::<(bool, bool)>(), 0u64..9_000), 1..60)
    ) {
        let mut t = table();
        let mut now = at(0);
        let address = |n: u8| match n {
            0 => "::".to_owned(),
            1 => OURS.to_owned(),
            n => format!("2001:db8:1::{n}"),
        };
        for (question, src, target, mac, (solicited, replaces), wait) in steps {
            now += Duration::from_millis(wait);
            let mac = mac.map(|[last]| [2, 0, 0, 0, 0, last]);
            let target = address(target);
            let message = if question {
                Message::Solicitation { target: ip(&target), source: mac }
            } else {
                Message::Advertisement(Advertisement { target: ip(&target), mac, router: false, solicited, replaces })
            };
            let _ = handle(&mut t, now, &packet(&address(src), OURS, 255, &message));
            if solicited {
                t.resolve(now, LAN, ip(&target).into());
            }
            t.handle_timeout(now);
            let table: &Table<u32> = &t.tables[0];
            prop_assert!(table.entries.keys().all(|k| table.interface.may_be_neighbour(*k) && !table.interface.is_own(*k)));
            prop_assert_eq!(table.entries.len(), t.timers.len());
            let incomplete = table.entries.values().filter(|e| matches!(e.state, State::Incomplete { .. })).count();
            prop_assert_eq!(incomplete, table.incomplete);
            events(&mut t);
        }
    }
}
