//! The views of IPv6 packets and ICMPv6 messages, as [`super::wire`] has it for IPv4.

use std::net::Ipv6Addr;

use mef_packet::wire::{icmpv6, ip, ipv6};

const A: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);

pub fn ipv6_packet(data: &[u8]) {
    if let Ok(view) = ipv6::View::parse_quoted(data) {
        assert!(view.header_len() + view.payload().len() <= data.len());
    }
    let Ok(view) = ipv6::View::parse(data) else {
        return;
    };
    assert!(view.total_len() <= data.len());
    assert_eq!(view.header_len() + view.payload().len(), view.total_len());
    assert_eq!(
        data.get(usize::from(view.protocol_at())),
        Some(&view.protocol())
    );
    assert_eq!(view.is_fragment(), view.fragment().is_some());
    assert_eq!(view.has_extensions(), view.header_len() > ipv6::HEADER_LEN);
    let payload = view.payload().to_vec();
    let mut changed = data.to_vec();
    if let Ok(left) = ipv6::decrement_hop_limit(&mut changed) {
        assert_eq!(left, view.hop_limit() - 1);
    }
    ipv6::set_traffic_class(&mut changed, !view.traffic_class()).expect("a whole header");
    let read = ipv6::View::parse(&changed).expect("nothing else was changed");
    assert_eq!(read.traffic_class(), !view.traffic_class());
    assert_eq!(
        (read.flow_label(), read.payload()),
        (view.flow_label(), &payload[..])
    );
    if let Ok(either) = ip::View::parse(data) {
        assert_eq!(
            (either.src(), either.dst()),
            (view.src().into(), view.dst().into())
        );
    }
}

pub fn icmpv6_message(data: &[u8]) {
    let fixed = with_checksum(data);
    for bytes in [data, &fixed] {
        let Ok(message) = icmpv6::Message::parse(bytes, A, B) else {
            continue;
        };
        let mut again = vec![0; message.len()];
        match message.emit(&mut again, A, B) {
            Ok(n) => assert_eq!(icmpv6::Message::parse(&again[..n], A, B), Ok(message)),
            // A body of less than the four bytes that every message has.
            Err(_) => assert!(message.len() < icmpv6::HEADER_LEN),
        }
    }
    let errors = [
        icmpv6::Error::TimeExceeded(0),
        icmpv6::Error::TooBig { mtu: 1280 },
        icmpv6::Error::Unreachable(0),
        icmpv6::Error::ParameterProblem {
            code: 1,
            pointer: 40,
        },
    ];
    for error in errors {
        let mut out = vec![0; icmpv6::MAX_ERROR_LEN];
        if let Ok(n) = icmpv6::build_error(&mut out, error, B, data) {
            assert!(n <= icmpv6::MAX_ERROR_LEN);
            let v = ipv6::View::parse(&out[..n]).expect("what was just built");
            assert!(!icmpv6::is_answerable(&v), "an error about an error");
        }
    }
}

/// The message with the checksum it has on its way from A to B.
pub fn with_checksum(message: &[u8]) -> Vec<u8> {
    use mef_packet::wire::checksum::Sum;
    let mut fixed = message.to_vec();
    if let Some(field) = fixed.get_mut(2..4) {
        field.fill(0);
        let length = u32::try_from(message.len()).unwrap_or(0);
        let pseudo = Sum::ZERO.bytes(&A.octets()).bytes(&B.octets());
        let sum = pseudo.dword(length).word(58).bytes(&fixed).checksum();
        fixed[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    fixed
}

/// A solicitation as a host sends it, and an echo request behind a hop-by-hop header.
pub fn seeds() -> [Vec<u8>; 2] {
    let solicitation = icmpv6::Message::Solicitation {
        target: B,
        source: Some([2, 0, 0, 0, 9, 9]),
    };
    let mut out = vec![0; solicitation.len()];
    solicitation.emit(&mut out, A, B).expect("room");
    let echo = icmpv6::Message::EchoRequest {
        ident: 7,
        seq: 1,
        data: b"0123",
    };
    let mut body = vec![0; echo.len()];
    echo.emit(&mut body, A, B).expect("room");
    let payload = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &body].concat();
    let mut packet = vec![0; ipv6::HEADER_LEN];
    ipv6::Header::new(A, B, 0)
        .emit(&mut packet, payload.len())
        .expect("room");
    packet.extend_from_slice(&payload);
    [out, packet]
}
