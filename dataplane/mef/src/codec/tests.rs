use std::net::Ipv4Addr;

use super::*;
use proptest::prelude::*;

fn round_trip(frame: Frame<'_>) {
    let mut out = vec![0xEE; 5];
    let mut b = Builder::new(&mut out, 1400);
    assert!(b.push(&frame));
    b.flag(FLAG_ELICITS_ACK);
    let n = b.finish();
    assert_eq!(n, out.len() - 5);
    let (inner, mut frames) = parse(&out[5..]).unwrap();
    let (alone, group) = match frame {
        Frame::Data { flow, .. } => (FLAG_DATA, flow),
        Frame::Repair { flow, .. } => (FLAG_REPAIR, flow),
        _ => (0, 0),
    };
    assert_eq!(inner.flags, FLAG_ELICITS_ACK | alone);
    assert_eq!(
        (inner.flow_group, inner.frames),
        (group, u8::from(alone == 0))
    );
    assert_eq!(frames.next(), Some(Ok(frame)));
    assert_eq!(frames.next(), None);
}

#[test]
fn every_frame_survives_the_wire() {
    let a = SocketAddr::new(Ipv4Addr::new(10, 1, 0, 2).into(), 1234);
    let b = SocketAddr::new(Ipv4Addr::new(10, 2, 0, 2).into(), 80);
    let setup = Setup {
        source: a,
        destination: b,
        weight: 2.5,
        early: true,
        class: Class::Latency,
        dscp: 46,
        mss: 1460,
    };
    let v6 = |text: &str| SocketAddr::new(text.parse().unwrap(), 443);
    let hello = Hello {
        boot_id: 7,
        workers: 1,
        hash_key: 9,
        mtu: 1500,
        line_up: BitRate::from_mbit(100),
        line_down: BitRate::from_mbit(40),
        link_credit: 1 << 29,
        flow_credit: 1 << 24,
    };
    for f in [
        Frame::Data {
            flow: 3,
            offset: 1 << 40,
            payload: &[1, 2, 3],
        },
        Frame::Repair {
            flow: 3,
            span: SpanId::new(9, 1024, 77),
            index: 2047,
            symbol: &[9; 100],
        },
        Frame::Datagram {
            flow: 1,
            packet: &[4; 64],
        },
        Frame::Fragment {
            id: 1,
            index: 0,
            count: 2,
            bytes: &[5; 9],
        },
        Frame::Setup { flow: 8, setup },
        Frame::Setup {
            flow: 9,
            setup: Setup {
                source: v6("2001:db8:1::2"),
                destination: v6("2001:db8:2::2"),
                ..setup
            },
        },
        Frame::Opened { flow: 8 },
        Frame::Refused { flow: 8, code: 3 },
        Frame::Fin {
            flow: 8,
            offset: 77,
        },
        Frame::Reset {
            flow: 8,
            offset: 77,
            code: 1,
        },
        Frame::Window {
            flow: 0,
            max_offset: u64::MAX,
            received: 3,
            read: 2,
            room: u32::MAX,
            pace: 7,
        },
        Frame::Heard {
            flow: 8,
            ago_ms: None,
        },
        Frame::Heard {
            flow: 8,
            ago_ms: Some(75_000),
        },
        Frame::Gone {
            host: setup.source,
            far: setup.destination,
        },
        Frame::Gone {
            host: v6("2001:db8:1::2"),
            far: v6("2001:db8:2::2"),
        },
        Frame::Ack(Ack {
            largest: 100,
            rx_time_us: 5,
            delay_us: 6,
            delivered_bytes: 7,
            drops: 0,
            received: Received::Bitmap(&[0xff, 0x01]),
        }),
        Frame::Hello(hello),
        Frame::Ping { floor: 12 },
        Frame::PathChallenge { token: u64::MAX },
        Frame::PathResponse { token: 0x0102 },
        Frame::Probe { padding: 900 },
    ] {
        round_trip(f);
    }
}

#[test]
fn a_frame_that_does_not_fit_leaves_no_trace() {
    let mut out = Vec::new();
    let mut b = Builder::new(&mut out, 20);
    assert!(!b.push(&Frame::Ping { floor: 1 }) || b.room() < 20);
    assert!(!b.push(&Frame::Datagram {
        flow: 1,
        packet: &[0; 50]
    }));
    let n = b.finish();
    let (inner, frames) = parse(&out[..n]).unwrap();
    assert_eq!(usize::from(inner.frames), frames.count());
}

#[test]
fn stream_bytes_have_a_packet_of_their_own() {
    let data = Frame::Data {
        flow: 3,
        offset: 1,
        payload: &[7; 80],
    };
    let ping = Frame::Ping { floor: 1 };
    let mut out = Vec::new();
    let mut b = Builder::new(&mut out, INNER_HEADER + STREAM_HEADER + 80);
    assert!(b.push(&data) && b.room() == 0 && !b.is_empty());
    assert!(!b.push(&ping) && !b.push(&data));
    assert_eq!(b.finish(), INNER_HEADER + STREAM_HEADER + 80);
    assert_eq!(parse(&out).unwrap().1.collect::<Vec<_>>(), [Ok(data)]);
    for (at, to, error) in [
        (7, 1, FrameError::BadValue),
        (5, (FLAG_DATA | FLAG_REPAIR) as u8, FrameError::BadValue),
    ] {
        let mut bad = out.clone();
        bad[at] = to;
        assert_eq!(parse(&bad).unwrap_err(), error);
    }
    let short = &out[..INNER_HEADER + STREAM_HEADER - 1];
    assert_eq!(parse(short).unwrap_err(), FrameError::ShortBody);

    out.clear();
    let mut b = Builder::new(&mut out, 1400);
    assert!(b.push(&ping) && !b.push(&data));
    b.finish();
    assert_eq!(parse(&out).unwrap().1.collect::<Vec<_>>(), [Ok(ping)]);
}

proptest! {
    /// Read in place it is what the frames say, and the other way round.
    #[test]
    fn one_datagram_and_nothing_else_is_recognised(
        kinds in proptest::collection::vec(0u8..4, 0..3),
        flags: u16,
        datagram in proptest::collection::vec(any::<u8>(), 0..100),
        cut in 0usize..4,
        change in proptest::option::of((0usize..20, any::<u8>())),
    ) {
        let mut packet = Vec::new();
        let mut b = Builder::new(&mut packet, 1400);
        b.flag(flags);
        for kind in kinds {
            b.push(&match kind {
                0 => Frame::Ping { floor: 7 },
                _ => Frame::Datagram { flow: 9, packet: &datagram },
            });
        }
        b.finish();
        packet.truncate(packet.len() - cut.saturating_sub(1));
        if let Some((at, to)) = change {
            if let Some(byte) = packet.get_mut(at) {
                *byte = to;
            }
        }
        let read = parse(&packet).ok().and_then(|(header, mut frames)| match frames.next()? {
            Ok(Frame::Datagram { packet: inside, .. })
                if header.frames == 1 && inside == &packet[packet.len() - inside.len()..]
                    && INNER_HEADER + DATAGRAM_OVERHEAD + inside.len() == packet.len() => Some(header.flags),
            _ => None,
        });
        prop_assert_eq!(single_datagram(&packet), read);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        if let Ok((_, frames)) = parse(&bytes) {
            for f in frames { let _ = f; }
        }
    }
    #[test]
    fn a_spans_base_is_found_again(base in 0u64..1 << 40, d in -100_000_000i64..100_000_000) {
        let id = SpanId::new(base, 1, 1);
        prop_assert_eq!(id.base_near(base.saturating_add_signed(d)), base);
    }
    #[test]
    fn varints_round_trip(v in any::<u64>()) {
        let mut out = Vec::new();
        put_varint(v, &mut out);
        let mut s = &out[..];
        prop_assert_eq!(take_varint(&mut s), Some(v));
        prop_assert!(s.is_empty());
    }
}
