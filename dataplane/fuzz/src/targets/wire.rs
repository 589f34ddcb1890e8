//! The views of packets: what parses can be read everywhere, and written again.

use std::net::Ipv4Addr;

use mef_packet::wire::{
    arp, checksum, ecn, ethernet, icmpv4, ipv4, segment, tcp, tcp_options, udp,
};

use super::input::Input;

const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);

pub fn ethernet_and_arp(data: &[u8]) {
    if let Ok((header, payload)) = ethernet::Header::parse(data) {
        let mut again = data.to_vec();
        header.emit(&mut again).expect("room for what was parsed");
        assert_eq!(again, data);
        assert_eq!(payload.len() + ethernet::HEADER_LEN, data.len());
        if let Ok(packet) = arp::Packet::parse(payload) {
            let mut again = payload.to_vec();
            packet.emit(&mut again).expect("room for what was parsed");
            assert_eq!(arp::Packet::parse(&again), Ok(packet));
        }
    }
    let mut frame = data.to_vec();
    let mut input = Input(data);
    let (start, offset) = (input.u16(), input.u16());
    let _ = checksum::complete_partial(&mut frame, start % 64, offset % 64);
    let _ = checksum::complete_partial(&mut frame, start, offset);
}

pub fn ipv4_packet(data: &[u8]) {
    if let Ok(view) = ipv4::View::parse_quoted(data) {
        let _ = (view.options(), view.payload(), view.header());
    }
    let Ok(view) = ipv4::View::parse_unverified(data) else {
        assert!(ipv4::View::parse(data).is_err());
        return;
    };
    let verified = ipv4::View::parse(data).is_ok();
    assert_eq!(verified, view.verify_checksum().is_ok());
    assert!(usize::from(view.total_len()) <= data.len());
    assert_eq!(
        view.header_len() + view.payload().len(),
        usize::from(view.total_len())
    );
    let _ = (view.ident(), view.dont_fragment(), view.more_fragments());
    let _ = (view.fragment_offset(), view.dscp_ecn(), view.options());
    let header = view.header();
    let mut again = vec![0; ipv4::HEADER_LEN + view.payload().len()];
    if header.emit(&mut again, view.payload().len()).is_ok() {
        let read = ipv4::View::parse(&again).expect("what was just written");
        assert_eq!(read.header(), header);
    }
    let (payload, dscp_ecn) = (view.payload().to_vec(), view.dscp_ecn());
    let mut changed = data.to_vec();
    if ipv4::decrement_ttl(&mut changed).is_ok() && verified {
        let v = ipv4::View::parse(&changed).expect("its checksum follows");
        assert_eq!(v.payload(), payload);
    }
    if ipv4::set_dscp_ecn(&mut changed, !dscp_ecn).is_ok() && verified {
        assert!(ipv4::View::parse(&changed).is_ok());
    }
    let shorter = view.header_len() + view.payload().len() / 2;
    let shorter = u16::try_from(shorter).expect("below the total length");
    if ipv4::set_total_len(&mut changed, shorter).is_ok() && verified {
        assert!(ipv4::View::parse(&changed).is_ok());
    }
    if ipv4::fill_checksum(&mut changed).is_ok() {
        assert!(ipv4::View::parse(&changed).is_ok());
    }
}

pub fn tcp_segment(data: &[u8]) {
    let Ok(view) = tcp::View::parse(data) else {
        return;
    };
    let _ = view.verify_checksum(A, B);
    assert_eq!(view.header_len() + view.payload().len(), data.len());
    let _ = (view.sequence_len(), view.urgent(), view.window());
    let options: Result<Vec<_>, _> = view.options().collect();
    if let Ok(options) = options {
        let mut out = [0; tcp_options::MAX_LEN];
        if let Ok(n) = tcp_options::emit(&mut out, &options) {
            let mut segment = vec![0; tcp::MAX_HEADER_LEN];
            let len = (view.header().emit(&mut segment, &out[..n])).expect("room for any header");
            let read = tcp::View::parse(&segment[..len]).expect("what was just written");
            let read: Result<Vec<_>, _> = read.options().collect();
            assert_eq!(read.expect("what was just written"), options);
        }
    }
    let mut again = data.to_vec();
    view.header()
        .emit(&mut again, view.option_bytes())
        .expect("room for what was parsed");
    let mut fresh = data.to_vec();
    tcp::fill_checksum(&mut fresh, A, B).expect("a whole header");
    let verify = |segment: &[u8]| tcp::View::parse(segment).and_then(|v| v.verify_checksum(A, B));
    assert_eq!(verify(&fresh), Ok(()));
    let payload = view.payload().to_vec();
    let changes = [
        tcp::rewrite_mss(&mut fresh.clone(), 1300).is_ok(),
        tcp::remove_option(&mut fresh.clone(), tcp_options::KIND_FAST_OPEN).is_ok(),
    ];
    for (i, _) in changes.iter().enumerate().filter(|(_, ok)| **ok) {
        let mut changed = fresh.clone();
        let change = match i {
            0 => tcp::rewrite_mss(&mut changed, 1300),
            _ => tcp::remove_option(&mut changed, tcp_options::KIND_FAST_OPEN),
        };
        if let Ok(Some(change)) = change {
            change
                .update_checksum(&mut changed)
                .expect("a whole header");
            assert_eq!(verify(&changed), Ok(()));
            let v = tcp::View::parse(&changed).expect("as well formed as before");
            assert_eq!(v.payload(), payload);
        }
    }
}

pub fn udp_datagram(data: &[u8]) {
    let Ok(view) = udp::View::parse(data) else {
        return;
    };
    let _ = view.verify_checksum(A, B);
    assert_eq!(view.len(), udp::HEADER_LEN + view.payload().len());
    assert!(view.len() <= data.len());
    let mut again = data[..view.len()].to_vec();
    view.header()
        .emit(&mut again, view.payload().len())
        .expect("room for what was parsed");
    udp::fill_checksum(&mut again, A, B).expect("a whole header");
    let read = udp::View::parse(&again).expect("what was just written");
    assert_eq!(read.verify_checksum(A, B), Ok(()));
    assert_eq!(
        (read.header(), read.payload()),
        (view.header(), view.payload())
    );
}

pub fn icmp_message(data: &[u8]) {
    if let Ok(message) = icmpv4::Message::parse(data) {
        let mut again = vec![0; message.len()];
        match message.emit(&mut again) {
            Ok(n) => assert_eq!(icmpv4::Message::parse(&again[..n]), Ok(message)),
            // A body of less than the four bytes that every message has.
            Err(_) => assert!(message.len() < icmpv4::HEADER_LEN),
        }
    }
    let mut reply = data.to_vec();
    if icmpv4::make_echo_reply(&mut reply).is_ok() && icmpv4::Message::parse(data).is_ok() {
        assert!(icmpv4::Message::parse(&reply).is_ok());
    }
    let errors = [
        icmpv4::Error::TimeExceeded(0),
        icmpv4::Error::TooBig { mtu: 1400 },
        icmpv4::Error::Unreachable(icmpv4::unreachable::HOST),
    ];
    for error in errors {
        let mut out = vec![0; icmpv4::MAX_ERROR_LEN];
        if let Ok(n) = icmpv4::build_error(&mut out, error, A, data) {
            assert!(n <= icmpv4::MAX_ERROR_LEN);
            let v = ipv4::View::parse(&out[..n]).expect("what was just built");
            assert!(!icmpv4::is_answerable(&v), "an error about an error");
        }
    }
}

/// Super-segments are cut without a byte lost or added, packets fragmented within the MTU.
pub fn cutting(data: &[u8]) {
    let mut input = Input(data);
    let (size, mtu) = (input.u16(), usize::from(input.u16()));
    let packet = input.0;
    if let Ok(cut) = segment::Segments::new(packet, size) {
        let (largest, count) = (cut.largest(), cut.remaining());
        let pieces: Vec<Vec<u8>> = cut.take(count + 1).collect();
        assert!(pieces.len() <= count);
        assert!(pieces.iter().all(|p| p.len() <= largest));
    }
    if let Ok(fragments) = segment::fragments(packet, mtu) {
        let view = ipv4::View::parse_unverified(packet).expect("what was just fragmented");
        let mut joined = Vec::new();
        for fragment in &fragments {
            assert!(fragments.len() == 1 || fragment.len() <= mtu);
            let v = ipv4::View::parse(fragment).expect("a whole packet");
            assert_eq!(
                usize::from(v.fragment_offset()),
                usize::from(view.fragment_offset()) + joined.len()
            );
            joined.extend_from_slice(v.payload());
        }
        assert_eq!(joined, view.payload());
    }
    let mut marked = packet.to_vec();
    let before = ecn::traffic_class(packet);
    if ecn::set(&mut marked, ecn::Ecn::Ce).is_ok() {
        assert_eq!(ecn::Ecn::of(&marked), ecn::Ecn::Ce);
        let class = ecn::traffic_class(&marked);
        assert_eq!(class.map(|c| c & 0xfc), before.map(|c| c & 0xfc));
    }
}
