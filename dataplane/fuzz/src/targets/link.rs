//! What a peer says: frames that parse are written again as they were, and a
//! link that hears them in any order stays within its memory and goes on.

use std::time::Duration;

use mef_packet::{BitRate, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::codec::{self, Ack, Builder, Frame, Hello, Received, Setup, SpanId};
use mef_protocol::line::{Line, LinkEnd};
use mef_protocol::link::{DatagramFlow, Event, Link, LinkConfig};

use super::input::Input;

/// Writes what `packet` says; `None` where it does not parse, or where its
/// frames do not fit, as unknown ones are not written.
fn rewritten(packet: &[u8]) -> Option<Vec<u8>> {
    let (inner, frames) = codec::parse(packet).ok()?;
    let frames: Vec<Frame<'_>> = frames.collect::<Result<_, _>>().ok()?;
    let mut out = Vec::new();
    let mut builder = Builder::new(&mut out, 1 << 17);
    builder.flag(inner.flags);
    for frame in frames
        .iter()
        .filter(|f| !matches!(f, Frame::Unknown { .. }))
    {
        assert!(builder.push(frame), "{frame:?}");
    }
    builder.finish();
    Some(out)
}

pub fn frames(data: &[u8]) {
    if let Some(once) = rewritten(data) {
        // Not `data` itself: it may hold unknown frames, and numbers in longer forms than needed.
        assert_eq!(rewritten(&once).as_ref(), Some(&once));
    }
    let mut rest = data;
    if let Some(v) = codec::take_varint(&mut rest) {
        let mut again = Vec::new();
        codec::put_varint(v, &mut again);
        assert_eq!(codec::take_varint(&mut &again[..]), Some(v));
    }
}

struct End {
    link: Link,
    number: u64,
}

impl LinkEnd for End {
    fn link(&self) -> &Link {
        &self.link
    }
    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
    fn next_number(&self) -> Option<u64> {
        Some(self.number)
    }
}

pub fn setup() -> Setup {
    Setup {
        source: "10.1.0.2:40000".parse().expect("an address"),
        destination: "10.2.0.2:80".parse().expect("an address"),
        weight: 1.0,
        early: false,
        class: Default::default(),
        dscp: 46,
        mss: 1460,
    }
}

pub fn hello(boot_id: u64) -> Hello {
    Hello {
        boot_id,
        workers: 1,
        hash_key: 0,
        mtu: 1500,
        line_up: BitRate::from_mbit(10),
        line_down: BitRate::from_mbit(10),
        link_credit: 1 << 20,
        flow_credit: 1 << 18,
    }
}

/// Memory that the router would give the link.
const MEMORY: u64 = 4 << 20;

pub fn conversation(data: &[u8]) {
    let mut input = Input(data);
    let mut now = Instant::from_millis(1);
    let rate = BitRate::from_mbit(10);
    let link = Link::new(
        now,
        LinkConfig {
            even_flows: true,
            boot_id: 1,
            port_mtu: 1500,
            line_up: rate,
            line_down: rate,
            link_credit: 1 << 20,
            packet_overhead: 60,
            frame_overhead: 14,
        },
    );
    let mut ends = [End { link, number: 0 }];
    let mut line: Line = Line::new(now, rate);
    let mut pool = ChunkPool::new(MEMORY);
    let (mut peers_number, mut packet) = (0, Vec::new());
    let rtt = Some(Duration::from_millis(20));
    ends[0].link.session_started(now, rtt);
    for _ in 0..400 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let flow = u32::from(input.u8() % 8);
        let [end] = &mut ends;
        let link = &mut end.link;
        match op % 16 {
            0 => now += Duration::from_millis(u64::from(input.u16())),
            1 => now += Duration::from_micros(u64::from(input.u16())),
            2 => {
                let bytes = input.bytes();
                let _ = link.handle_packet(now, &mut pool, peers_number, 100, bytes);
                peers_number += 1;
            }
            3..=8 => {
                let flags = u16::from(op >> 4) & 7;
                let frames: Vec<_> = (0..=input.u8() % 4)
                    .map(|_| frame_of(&mut input, end.number))
                    .collect();
                let mut left = &frames[..];
                while !left.is_empty() {
                    packet.clear();
                    let mut builder = Builder::new(&mut packet, 1400);
                    builder.flag(flags);
                    // One that fits nowhere is not said.
                    let n = left.iter().take_while(|f| builder.push(f)).count();
                    left = &left[n.max(1)..];
                    builder.finish();
                    let line_bytes = packet.len() as u64 + 70;
                    let link = &mut end.link;
                    let _ = link.handle_packet(now, &mut pool, peers_number, line_bytes, &packet);
                    peers_number += 1 + u64::from(op >> 6);
                }
            }
            9 => {
                let _ = link.open(now, setup());
            }
            10 => {
                let bytes = input.bytes();
                let room = link.write_room(&pool, flow);
                let n = link.write(&mut pool, flow, &bytes[..room.min(bytes.len())]);
                assert!(n <= room);
            }
            11 => match op >> 4 {
                0..=3 => link.finish(now, flow),
                4..=6 => link.reset(now, &mut pool, flow, 0),
                7..=9 => link.release(&mut pool, flow),
                10..=12 => link.accept(now, flow),
                _ => link.refuse(now, &mut pool, flow, 1),
            },
            12 => {
                let n = link.peek(flow).len().min(usize::from(input.u16()));
                link.consume(now, &mut pool, flow, n);
            }
            13 => {
                let flow = DatagramFlow {
                    id: flow,
                    weight: 1000,
                    class: Default::default(),
                };
                let _ = link.send_datagram(now, flow, input.bytes().to_vec());
            }
            14 if op == 14 => link.session_started(now, None),
            _ => {}
        }
        settle(now, &mut ends, &mut line, &mut pool);
    }
}

/// Everything that the router asks of a link after it did something to it.
fn settle(now: Instant, ends: &mut [End; 1], line: &mut Line, pool: &mut ChunkPool) {
    {
        let [end] = &mut *ends;
        end.link.handle_timeout(now, pool);
        while let Some(event) = end.link.poll_event() {
            if let Event::Setup { flow, .. } = event {
                end.link.accept(now, flow);
            }
        }
        for flow in 0..8 {
            if let Some(v) = end.link.view(flow) {
                assert!(end.link.peek(flow).len() as u64 <= v.readable);
            }
        }
    }
    let mut out = Vec::new();
    for _ in 0..64 {
        out.clear();
        if line.poll(now, ends, pool, &mut out).is_none() {
            break;
        }
        let (_, frames) = codec::parse(&out).expect("what the link itself says");
        for frame in frames {
            frame.expect("what the link itself says");
        }
        ends[0].number += 1;
    }
    let _ = line.poll_timeout(now, ends);
    assert!(
        pool.used_bytes() <= MEMORY + (64 << 10),
        "beyond the budget"
    );
}

fn frame_of<'a>(input: &mut Input<'a>, sent: u64) -> Frame<'a> {
    let (kind, flow) = (input.u8(), u32::from(input.u8() % 8));
    let small = |input: &mut Input<'a>| match input.u8() {
        n @ 0..=199 => u64::from(n) * 100,
        200..=229 => u64::from(input.u32()),
        230..=249 => u64::from(input.u16()),
        _ => input.u64(),
    };
    match kind % 16 {
        0..=2 => Frame::Data {
            flow,
            offset: small(input),
            payload: input.bytes(),
        },
        3 | 4 => Frame::Repair {
            flow,
            span: SpanId::new(small(input), 1 + input.u16() % 1024, 1 + input.u16() % 1400),
            index: input.u16() % 2048,
            symbol: input.bytes(),
        },
        5 => Frame::Datagram {
            flow,
            packet: input.bytes(),
        },
        6 => Frame::Fragment {
            id: u32::from(input.u8()),
            index: input.u8() % 3,
            count: input.u8() % 4,
            bytes: input.bytes(),
        },
        7 => Frame::Setup {
            flow,
            setup: setup(),
        },
        8 => Frame::Opened { flow },
        9 => Frame::Refused {
            flow,
            code: input.u8(),
        },
        10 => Frame::Fin {
            flow,
            offset: small(input),
        },
        11 => Frame::Reset {
            flow,
            offset: small(input),
            code: input.u8(),
        },
        12 => Frame::Window {
            flow,
            max_offset: small(input),
            received: small(input),
            read: small(input),
            room: u32::from(input.u8()) << 8,
            pace: u32::from(input.u8()) << 8,
        },
        13 | 14 => {
            let behind = u64::from(input.u8() % 16);
            let bytes = input.bytes();
            Frame::Ack(Ack {
                largest: sent.saturating_sub(behind),
                rx_time_us: small(input),
                delay_us: input.u32() >> 8,
                delivered_bytes: small(input),
                drops: u32::from(input.u8()),
                received: match input.u8() % 2 {
                    0 => Received::Runs(bytes),
                    _ => Received::Bitmap(bytes),
                },
            })
        }
        _ => match input.u8() % 4 {
            0 => Frame::Ping {
                floor: small(input),
            },
            1 => Frame::Probe {
                padding: usize::from(input.u16()),
            },
            _ => Frame::Hello(hello(9 + u64::from(flow / 7))),
        },
    }
}
