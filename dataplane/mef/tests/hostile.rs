//! A peer that says anything: damaged and invented frames must neither panic
//! nor make the link hold more than its budget.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ends;

use mef_packet::{BitRate, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::codec::{
    Ack, Builder, Frame, Hello, Received, SpanId, FLAG_ACK_NOW, FLAG_ELICITS_ACK,
};
use mef_protocol::link::{Link, SendKey};
use proptest::prelude::*;
use std::time::Duration;

use ends::{config, setup};

fn link(even: bool) -> Link {
    let config = config(even, BitRate::from_mbit(10), 1 << 20);
    Link::new(Instant::from_millis(1), config)
}

fn hello() -> Hello {
    Hello {
        boot_id: 9,
        workers: 1,
        hash_key: 0,
        mtu: 1500,
        line_up: BitRate::from_mbit(10),
        line_down: BitRate::from_mbit(10),
        link_credit: 1 << 20,
        flow_credit: 1 << 18,
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..50,
        0u64..300_000,
        any::<u64>(),
        Just(u64::MAX),
        Just(u64::MAX - 1)
    ]
}

#[derive(Clone, Debug)]
struct Said {
    kind: u8,
    flow: u32,
    a: u64,
    b: u64,
    bytes: Vec<u8>,
    damage: Option<(usize, u8)>,
    pause: u64,
}

fn said() -> impl Strategy<Value = Said> {
    (
        0u8..14,
        0u32..8,
        number(),
        number(),
        prop::collection::vec(any::<u8>(), 0..200),
        prop::option::weighted(0.1, (0usize..200, any::<u8>())),
        0u64..400,
    )
        .prop_map(|(kind, flow, a, b, bytes, damage, pause)| Said {
            kind,
            flow,
            a,
            b,
            bytes,
            damage,
            pause,
        })
}

fn packet(s: &Said) -> Vec<u8> {
    let mut out = Vec::new();
    let mut b = Builder::new(&mut out, 1400);
    let bytes = &s.bytes[..];
    let flow = s.flow;
    let frame = match s.kind {
        0 | 1 => Frame::Data {
            flow,
            offset: s.a,
            payload: bytes,
        },
        2 | 3 => Frame::Repair {
            flow,
            span: SpanId::new(s.a, (s.b % 1024) as u16 + 1, (s.a % 300) as u16 + 1),
            index: (s.b % 2048) as u16,
            symbol: bytes,
        },
        4 => Frame::Fin { flow, offset: s.a },
        5 => Frame::Reset {
            flow,
            offset: s.a,
            code: s.b as u8,
        },
        6 => Frame::Window {
            flow,
            max_offset: s.a,
            received: s.b,
            read: s.b / 2,
            room: s.a as u32,
            pace: s.b as u32,
        },
        7 => Frame::Ack(Ack {
            largest: s.a,
            rx_time_us: s.b,
            delay_us: s.b as u32,
            delivered_bytes: s.a,
            drops: s.b as u32,
            received: if s.b % 2 == 0 {
                Received::Runs(bytes)
            } else {
                Received::Bitmap(bytes)
            },
        }),
        8 => Frame::Setup {
            flow,
            setup: setup(),
        },
        9 => Frame::Opened { flow },
        10 => Frame::Refused {
            flow,
            code: s.b as u8,
        },
        11 => Frame::Ping { floor: s.a },
        12 => Frame::Fragment {
            id: s.a as u32,
            index: s.b as u8,
            count: 2,
            bytes,
        },
        _ => Frame::Hello(Hello {
            boot_id: 9 + u64::from(s.b % 10 == 0),
            link_credit: s.a,
            flow_credit: s.b,
            ..hello()
        }),
    };
    b.push(&frame);
    b.flag(FLAG_ELICITS_ACK | FLAG_ACK_NOW);
    b.finish();
    if let Some((at, with)) = s.damage {
        if let Some(x) = out.get_mut(at) {
            *x ^= with;
        }
    }
    out
}

proptest! {
    #[test]
    fn nothing_a_peer_says_breaks_a_link(talk in prop::collection::vec(said(), 1..150)) {
        let mut now = Instant::from_millis(1);
        let mut pool = ChunkPool::new(1 << 20);
        let mut l = link(true);
        l.session_started(now, Some(Duration::from_millis(10)));
        let mut first = Vec::new();
        let mut b = Builder::new(&mut first, 1400);
        b.push(&Frame::Hello(hello()));
        b.finish();
        l.handle_packet(now, &mut pool, 0, 100, &first).unwrap();
        let ours = l.open(now, setup()).unwrap();
        l.write(&mut pool, ours, &[7; 50_000]);
        let mut sent = 0;
        for (i, s) in talk.iter().enumerate() {
            now += Duration::from_millis(s.pause);
            let _ = l.handle_packet(now, &mut pool, 1 + i as u64, 200, &packet(s));
            while l.poll_event().is_some() {}
            while l.poll_activated().is_some() {}
            l.handle_timeout(now, &mut pool);
            let mut out = Vec::new();
            for _ in 0..20 {
                if l.poll_control(now, sent, &mut out).is_none() {
                    break;
                }
                sent += 1;
            }
            for flow in 0..8 {
                let n = l.peek(flow).len();
                l.consume(now, &mut pool, flow, n);
                if l.poll_flow(now, sent, SendKey::Stream(flow), &mut pool, &mut out).is_some() {
                    sent += 1;
                }
            }
            prop_assert!(pool.used_bytes() <= pool.limit_bytes());
            prop_assert!(l.flow_count() <= 8);
            let _ = l.poll_timeout(now);
            let _ = l.rate_limit();
        }
        for flow in 0..8 {
            l.reset(now, &mut pool, flow, 1);
        }
        l.session_started(now, None);
        l.handle_timeout(now, &mut pool);
    }
}
