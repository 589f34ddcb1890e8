use std::net::{Ipv4Addr, Ipv6Addr};

use mef_packet::wire::checksum::Sum;
use mef_packet::wire::ipv4::{Header, View};
use proptest::prelude::*;

use super::*;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const NOW: Instant = Instant::from_millis(5_000);

fn packet(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; ipv4::HEADER_LEN];
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

fn udp(src: Ipv4Addr, dst: Ipv4Addr, len: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
    packet(Header::new(src, dst, ipv4::PROTOCOL_UDP), &payload)
}

fn error(kind: IcmpError, offending: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![1, 2, 3];
    let result = Icmp::default().error(NOW, kind, offending, ROUTER.into(), false, &mut out);
    assert_eq!(out.is_empty(), result.is_err());
    result.map(|()| out)
}

#[test]
fn errors_quote_the_packet_and_say_what_they_should() {
    let offending = udp(HOST, FAR, 100);
    for (kind, expected) in [
        (IcmpError::NetUnreachable, [3, 0, 0, 0]),
        (IcmpError::HostUnreachable, [3, 1, 0, 0]),
        (IcmpError::ProtocolUnreachable, [3, 2, 0, 0]),
        (IcmpError::PortUnreachable, [3, 3, 0, 0]),
        (
            IcmpError::FragmentationNeeded { mtu: 1400 },
            [3, 4, 0x05, 0x78],
        ),
        (IcmpError::Prohibited, [3, 13, 0, 0]),
        (IcmpError::TimeExceeded, [11, 0, 0, 0]),
    ] {
        let sent = error(kind, &offending).unwrap();
        let view = View::parse(&sent).unwrap();
        assert_eq!(
            (view.src(), view.dst(), view.ttl(), view.protocol()),
            (ROUTER, HOST, 64, 1)
        );
        assert_eq!(usize::from(view.total_len()), sent.len());
        let icmp = view.payload();
        assert!(Sum::ZERO.bytes(icmp).is_valid());
        assert_eq!([icmp[0], icmp[1], icmp[6], icmp[7]], expected, "{kind:?}");
        assert_eq!(&icmp[4..6], [0, 0]);
        assert_eq!(&icmp[8..], offending);
    }
}

#[test]
fn long_packets_are_quoted_up_to_576_bytes_and_padding_not_at_all() {
    let long = udp(HOST, FAR, 1400);
    assert_eq!(error(IcmpError::TimeExceeded, &long).unwrap().len(), 576);
    let mut padded = udp(HOST, FAR, 1);
    padded.extend_from_slice(&[0xee; 25]);
    assert_eq!(
        error(IcmpError::TimeExceeded, &padded).unwrap().len(),
        20 + 8 + 21
    );
}

#[test]
fn what_may_not_be_answered_is_not() {
    let icmp = |kind: u8| packet(Header::new(HOST, FAR, 1), &[kind, 0, 0, 0, 0, 0, 0, 0]);
    for kind in [3, 4, 5, 11, 12] {
        assert_eq!(
            error(IcmpError::TimeExceeded, &icmp(kind)),
            Err(DropReason::NotAnswerable),
            "type {kind}"
        );
    }
    for kind in [0, 8, 13] {
        assert!(
            error(IcmpError::TimeExceeded, &icmp(kind)).is_ok(),
            "type {kind}"
        );
    }
    let empty = packet(Header::new(HOST, FAR, 1), &[]);
    assert_eq!(
        error(IcmpError::TimeExceeded, &empty),
        Err(DropReason::NotAnswerable)
    );

    let mut fragment = Header::new(HOST, FAR, 17);
    fragment.dont_fragment = false;
    fragment.more_fragments = true;
    assert!(error(IcmpError::TimeExceeded, &packet(fragment, &[0; 8])).is_ok());
    fragment.fragment_offset = 8;
    assert_eq!(
        error(IcmpError::TimeExceeded, &packet(fragment, &[0; 8])),
        Err(DropReason::NotAnswerable)
    );

    for bad in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        let bad: Ipv4Addr = bad.parse().unwrap();
        assert_eq!(
            error(IcmpError::HostUnreachable, &udp(bad, FAR, 8)),
            Err(DropReason::NotAnswerable),
            "from {bad}"
        );
        assert_eq!(
            error(IcmpError::HostUnreachable, &udp(HOST, bad, 8)),
            Err(DropReason::NotAnswerable),
            "to {bad}"
        );
    }
    let mut out = Vec::new();
    let broadcast = Icmp::default().error(
        NOW,
        IcmpError::PortUnreachable,
        &udp(HOST, FAR, 8),
        ROUTER.into(),
        true,
        &mut out,
    );
    assert_eq!(broadcast, Err(DropReason::NotAnswerable));
}

fn echo(data: &[u8]) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
    icmp.extend_from_slice(data);
    let sum = Sum::ZERO.bytes(&icmp).checksum().to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    packet(
        Header {
            dscp_ecn: 0xb8,
            ..Header::new(HOST, ROUTER, 1)
        },
        &icmp,
    )
}

fn reply_to(request: &[u8]) -> Result<Vec<u8>, DropReason> {
    let mut out = vec![9];
    let result = Icmp::default().echo_reply(NOW, request, &mut out);
    assert_eq!(out.is_empty(), result.is_err());
    result.map(|()| out)
}

#[test]
fn echo_is_answered_with_its_own_bytes() {
    for len in [0, 1, 56, 1472, 65_000] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let reply = reply_to(&echo(&data)).unwrap();
        let view = View::parse(&reply).unwrap();
        assert_eq!(
            (view.src(), view.dst(), view.ttl(), view.dscp_ecn()),
            (ROUTER, HOST, 64, 0xb8)
        );
        assert!(Sum::ZERO.bytes(view.payload()).is_valid());
        assert_eq!(&view.payload()[..2], [0, 0]);
        assert_eq!(&view.payload()[4..8], [0x12, 0x34, 0, 7]);
        assert_eq!(&view.payload()[8..], data);
    }
}

#[test]
fn what_is_no_sound_echo_request_is_refused() {
    let good = echo(&[1; 30]);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(reply_to(&damaged), Err(DropReason::BadChecksum));
    assert_eq!(reply_to(&good[..40]), Err(DropReason::Truncated));
    assert_eq!(
        reply_to(&udp(HOST, ROUTER, 30)),
        Err(DropReason::NoListener)
    );
    assert_eq!(
        reply_to(&reply_to(&good).unwrap()),
        Err(DropReason::NoListener)
    );
    let short = packet(Header::new(HOST, ROUTER, 1), &[8, 0, 0xf7, 0xff]);
    assert_eq!(reply_to(&short), Err(DropReason::Truncated));
    let fragment = Header {
        more_fragments: true,
        dont_fragment: false,
        ..Header::new(HOST, ROUTER, 1)
    };
    assert_eq!(
        reply_to(&packet(fragment, &good[20..])),
        Err(DropReason::FragmentUnsupported)
    );
    let from_nobody = packet(Header::new(Ipv4Addr::UNSPECIFIED, ROUTER, 1), &good[20..]);
    assert_eq!(reply_to(&from_nobody), Err(DropReason::MartianSource));
    let to_all = packet(Header::new(HOST, Ipv4Addr::BROADCAST, 1), &good[20..]);
    assert_eq!(reply_to(&to_all), Err(DropReason::MartianDestination));
}

#[test]
fn each_kind_has_its_own_limit() {
    let mut icmp = Icmp::new(1000);
    let (offending, mut out) = (udp(HOST, FAR, 8), Vec::new());
    let mut sent = |icmp: &mut Icmp, kind, from: u64, to: u64, step: usize| {
        (from..to)
            .step_by(step)
            .filter(|us| {
                icmp.error(
                    Instant::from_micros(*us),
                    kind,
                    &offending,
                    ROUTER.into(),
                    false,
                    &mut out,
                )
                .is_ok()
            })
            .count()
    };
    // 100 at once, then 1000 a second, whatever is asked for.
    let n = sent(&mut icmp, IcmpError::TimeExceeded, 1_000_000, 2_000_000, 10);
    assert!((1099..=1101).contains(&n), "{n}");
    assert_eq!(icmp.limited, 100_000 - n as u64);
    assert_eq!(
        sent(
            &mut icmp,
            IcmpError::HostUnreachable,
            2_000_000,
            2_000_050,
            1
        ),
        50
    );
    // A long pause is not saved up.
    let n = sent(
        &mut icmp,
        IcmpError::TimeExceeded,
        60_000_000,
        60_001_000,
        1,
    );
    assert!((100..=102).contains(&n), "{n}");
    assert_eq!(
        sent(&mut Icmp::new(0), IcmpError::TimeExceeded, 1, 1_000, 1),
        0
    );
    assert_eq!(
        sent(
            &mut Icmp::new(1),
            IcmpError::TimeExceeded,
            10_000_000,
            20_000_000,
            1_000
        ),
        10
    );
}

const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

fn packet6(header: ipv6::Header, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; ipv6::HEADER_LEN];
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

fn echo6(src: Ipv6Addr, dst: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    let request = icmpv6::Message::EchoRequest {
        ident: 5,
        seq: 6,
        data,
    };
    let header = ipv6::Header {
        traffic_class: 0xbb,
        ..ipv6::Header::new(src, dst, ipv6::PROTOCOL_ICMPV6)
    };
    let mut p = vec![0; ipv6::HEADER_LEN + request.len()];
    request.emit_packet(&mut p, &header).unwrap();
    p
}

#[test]
fn ipv6_errors_say_the_same_in_their_own_words() {
    use icmpv6::Error;
    let offending = packet6(ipv6::Header::new(HOST6, FAR6, 17), &[1; 2000]);
    let wire = |kind| {
        let mut out = Vec::new();
        Icmp::default()
            .error(NOW, kind, &offending, ROUTER6.into(), false, &mut out)
            .unwrap();
        let v = ipv6::View::parse(&out).unwrap();
        assert_eq!((v.src(), v.dst(), out.len()), (ROUTER6, HOST6, 1280));
        match icmpv6::Message::parse(v.payload(), v.src(), v.dst()).unwrap() {
            icmpv6::Message::Error { error, quoted } => {
                assert_eq!(quoted, &offending[..1232]);
                error
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wire(IcmpError::NetUnreachable), Error::Unreachable(0));
    assert_eq!(wire(IcmpError::Prohibited), Error::Unreachable(1));
    assert_eq!(wire(IcmpError::HostUnreachable), Error::Unreachable(3));
    assert_eq!(wire(IcmpError::PortUnreachable), Error::Unreachable(4));
    assert_eq!(wire(IcmpError::TimeExceeded), Error::TimeExceeded(0));
    let too_big = |mtu| wire(IcmpError::FragmentationNeeded { mtu });
    assert_eq!(too_big(1400), Error::TooBig { mtu: 1400 });
    assert_eq!(too_big(1000), Error::TooBig { mtu: 1280 });
    let problem = Error::ParameterProblem {
        code: 1,
        pointer: 6,
    };
    assert_eq!(wire(IcmpError::ProtocolUnreachable), problem);
    let refused = |offending: &[u8], source: IpAddr| {
        let (kind, mut out) = (IcmpError::TimeExceeded, vec![1]);
        let result = Icmp::default().error(NOW, kind, offending, source, false, &mut out);
        assert!(out.is_empty());
        result.unwrap_err()
    };
    let link_local: Ipv6Addr = "fe80::9".parse().unwrap();
    let no = DropReason::NotAnswerable;
    let from_link_local = packet6(ipv6::Header::new(link_local, FAR6, 17), &[1; 20]);
    assert_eq!(refused(&from_link_local, ROUTER6.into()), no);
    // A router without an address of that version has nothing to answer from.
    assert_eq!(refused(&offending, ROUTER.into()), no);
    assert_eq!(refused(&offending, Ipv6Addr::UNSPECIFIED.into()), no);
}

#[test]
fn ipv6_echo_is_answered_with_its_own_bytes() {
    let link_local: Ipv6Addr = "fe80::9".parse().unwrap();
    for (src, data) in [(HOST6, 0), (HOST6, 1452), (link_local, 56), (FAR6, 60_000)] {
        let data: Vec<u8> = (0..data).map(|i| (i * 7) as u8).collect();
        let reply = reply_to(&echo6(src, ROUTER6, &data)).unwrap();
        let v = ipv6::View::parse(&reply).unwrap();
        assert_eq!(
            (v.src(), v.dst(), v.hop_limit(), v.traffic_class()),
            (ROUTER6, src, 64, 0xb8)
        );
        let expected = icmpv6::Message::EchoReply {
            ident: 5,
            seq: 6,
            data: &data,
        };
        let message = icmpv6::Message::parse(v.payload(), v.src(), v.dst());
        assert_eq!(message, Ok(expected));
    }
    let mut damaged = echo6(HOST6, ROUTER6, &[1; 9]);
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(reply_to(&damaged), Err(DropReason::BadChecksum));
    let to_all = echo6(HOST6, "ff02::1".parse().unwrap(), &[]);
    assert_eq!(reply_to(&to_all), Err(DropReason::MartianDestination));
    let from_nobody = echo6(Ipv6Addr::UNSPECIFIED, ROUTER6, &[]);
    assert_eq!(reply_to(&from_nobody), Err(DropReason::MartianSource));
    // ICMP of the other version is no ICMP.
    let odd = packet6(ipv6::Header::new(HOST6, ROUTER6, 1), &echo(&[])[20..]);
    assert_eq!(reply_to(&odd), Err(DropReason::NoListener));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_nor_make_a_broken_answer(mut bytes in prop::collection::vec(any::<u8>(), 0..700), fix: bool) {
        if let Some(first) = bytes.first_mut().filter(|_| fix) {
            *first = 0x40 | (*first & 0x0f);
        }
        let answers = [error(IcmpError::FragmentationNeeded { mtu: 1280 }, &bytes), reply_to(&bytes)];
        for out in answers.into_iter().flatten() {
            if out[0] >> 4 == 6 {
                prop_assert!(ipv6::View::parse(&out).is_ok());
                continue;
            }
            let view = View::parse(&out).unwrap();
            prop_assert!(Sum::ZERO.bytes(view.payload()).is_valid());
            prop_assert!(out.len() <= icmpv4::MAX_ERROR_LEN || view.payload()[0] == 0);
        }
    }
}
