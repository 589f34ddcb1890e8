//! Packets that no honest host sends: nothing may panic, and no byte that was
//! not sent may be read.

use proptest::prelude::*;

use super::super::smoltcp_host::segment::{parse_tcp, ACK, FIN, SYN};
use super::super::{icmp_flow, rst_for, HostTcp, HostTcpConfig, TimeWait};
use super::*;

const IRS: u32 = u32::MAX - 5_000;

/// A passive endpoint that has answered a scaling host's SYN; its sequence number.
fn half_open(rx_buffer: usize) -> (Net, u32) {
    let mut net = Net::with(
        config(1),
        HostTcpConfig {
            rx_buffer,
            ..config(2)
        },
    );
    let mut syn = header(CLIENT, SERVER, SYN, IRS, 0);
    syn.syn = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
    };
    net.sides[1]
        .tcp
        .handle_segment(net.now, &syn.to_packet())
        .unwrap();
    let ours = parse_tcp(&net.collect(1)[0]).unwrap().seq.wrapping_add(1);
    (net, ours)
}

/// A segment whose payload is the right one for its place in the stream.
fn segment_at(offset: i64, len: usize, flags: u8, ack: u32, window: u16) -> Vec<u8> {
    let seq = IRS.wrapping_add(1).wrapping_add(offset as u32);
    let mut h = header(CLIENT, SERVER, flags, seq, ack);
    h.window = window;
    let payload: Vec<u8> = (offset..offset + len as i64)
        .map(|i| stream_byte(11, i as u64))
        .collect();
    with_payload(h, &payload)
}

#[test]
fn a_host_that_ignores_the_window_gets_no_further() {
    // The window of a SYN is not scaled: 65535 bytes, whatever the buffer. The host sends 3 MB
    // before it has heard anything more, in and out of order.
    for reversed in [false, true] {
        let (mut net, ours) = half_open(1 << 20);
        let mut offsets: Vec<i64> = (0..50).map(|i| i * 60_000).collect();
        if reversed {
            offsets.reverse();
        }
        for offset in offsets {
            let p = segment_at(offset, 60_000, ACK, ours, 1000);
            net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
        }
        assert_eq!(net.sides[1].tcp.readable(), 65_535);
        net.collect(1);
        net.sides[1].read(11, usize::MAX);
        assert_eq!(net.sides[1].received, 65_535);
    }
}

#[test]
fn a_fin_behind_the_window_does_not_end_the_stream_early() {
    let (mut net, ours) = half_open(8 << 10);
    let p = segment_at(0, 10_000, ACK | FIN, ours, 1000);
    net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
    assert_eq!(net.sides[1].tcp.readable(), 8 << 10);
    net.sides[1].read(11, usize::MAX);
    assert!(!net.sides[1].tcp.state().remote_finished);
    net.collect(1);
    let rest = segment_at(8 << 10, 10_000 - (8 << 10), ACK | FIN, ours, 1000);
    net.sides[1].tcp.handle_segment(net.now, &rest).unwrap();
    net.sides[1].read(11, usize::MAX);
    assert_eq!(net.sides[1].received, 10_000);
    assert!(net.sides[1].tcp.state().remote_finished);
}

#[test]
fn a_probe_of_a_zero_window_is_answered() {
    let (mut net, ours) = half_open(8 << 10);
    let p = segment_at(0, 8 << 10, ACK, ours, 1000);
    net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
    assert_eq!(parse_tcp(&net.collect(1)[0]).unwrap().window, 0);
    for _ in 0..3 {
        let probe = segment_at(8 << 10, 1, ACK, ours, 1000);
        net.sides[1].tcp.handle_segment(net.now, &probe).unwrap();
        let answer = net.collect(1);
        assert_eq!(answer.len(), 1);
        let s = parse_tcp(&answer[0]).unwrap();
        assert_eq!((s.ack, s.window), (IRS.wrapping_add(1 + (8 << 10)), 0));
    }
}

#[derive(Clone, Debug)]
enum Event {
    Segment {
        offset: i64,
        len: usize,
        flags: u8,
        ack: i64,
        window: u16,
    },
    Read(usize),
    Write(usize),
    Poll,
    Wait(u64),
    Finish,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (-2_000i64..200_000, 0usize..62_000, flags(), -5i64..100_000, any::<u16>()).prop_map(
            |(offset, len, flags, ack, window)| Event::Segment { offset, len, flags, ack, window }),
        // Short segments in order, so that streams get somewhere.
        8 => (0i64..4, 1usize..3000).prop_map(
            |(k, len)| Event::Segment { offset: k * 2000, len, flags: ACK, ack: 0, window: 9000 }),
        3 => (0usize..100_000).prop_map(Event::Read),
        2 => (0usize..100_000).prop_map(Event::Write),
        6 => Just(Event::Poll),
        1 => (0u64..5_000_000).prop_map(Event::Wait),
        1 => Just(Event::Finish),
    ]
}

/// Mostly ACK, sometimes anything.
fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(ACK), 1 => Just(ACK | FIN), 1 => any::<u8>()]
}

proptest! {

    /// Whatever the host sends within the right addresses, the bytes read are those of the
    /// stream, in order.
    #[test]
    fn only_bytes_of_the_stream_are_read(
        rx_buffer in prop_oneof![Just(4usize << 10), Just(64 << 10), Just(256 << 10)],
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let (mut net, ours) = half_open(rx_buffer);
        let mut finished = None;
        for e in events {
            match e {
                Event::Segment { offset, len, flags, ack, window } => {
                    let ack = ours.wrapping_add(ack as u32);
                    let p = segment_at(offset, len, flags, ack, window);
                    net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
                }
                Event::Read(n) => {
                    net.sides[1].read(11, n);
                }
                Event::Write(n) => {
                    net.sides[1].tcp.write(&vec![0; n]);
                }
                Event::Poll => {
                    net.collect(1);
                }
                Event::Wait(us) => net.now += Duration::from_micros(us),
                Event::Finish => net.sides[1].tcp.finish(),
            }
            let side = &net.sides[1];
            prop_assert!(side.tcp.readable() <= rx_buffer);
            // The end of the stream is final.
            if side.tcp.state().remote_finished {
                prop_assert_eq!(*finished.get_or_insert(side.received), side.received);
            } else {
                prop_assert_eq!(finished, None);
            }
        }
        net.collect(1);
        net.sides[1].read(11, usize::MAX);
    }

    /// Damage to any byte of any packet, at any length.
    #[test]
    fn damaged_packets_are_survived(
        len in 0usize..200,
        cut_to in 0usize..300,
        damage in proptest::collection::vec((0usize..300, any::<u8>()), 0..6),
        flags: u8,
    ) {
        let (mut net, ours) = half_open(64 << 10);
        let mut p = segment_at(0, len, flags, ours, 100);
        for (at, value) in damage {
            if let Some(b) = p.get_mut(at) {
                *b = value;
            }
        }
        p.truncate(cut_to);
        let _ = net.sides[1].tcp.handle_segment(net.now, &p);
        let _ = net.sides[1].tcp.is_keep_alive(&p);
        let _ = rst_for(&p);
        let _ = icmp_flow(&p);
        let record = TimeWait { local: SERVER, remote: CLIENT, snd_nxt: 1, rcv_nxt: 2, timestamps: None };
        let _ = record.answer(&p);
        let _ = record.may_reopen(&p);
        net.collect(1);
    }

    #[test]
    fn noise_is_survived(p in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut net, _) = half_open(64 << 10);
        let _ = net.sides[1].tcp.handle_segment(net.now, &p);
        let _ = rst_for(&p);
        let _ = icmp_flow(&p);
        net.collect(1);
    }
}
