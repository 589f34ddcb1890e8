//! Split connections between hosts of either version.

use std::net::SocketAddr;

use mef_dataplane::host_tcp::HostTcp;
use mef_packet::wire::icmpv6::Error;
use mef_packet::wire::{ipv4, ipv6, tcp};

use super::syn;
use super::world::*;

/// The byte at `i` of what side `side` sends.
fn byte(side: usize, i: usize) -> u8 {
    ((i ^ side << 20).wrapping_mul(0x9E37_79B1) >> 15) as u8
}

#[test]
fn split_connections_of_either_version_carry_every_byte() {
    const BYTES: usize = 3_000_000;
    for (underlay, client, server) in [
        (Underlay::V4, A, B),
        (Underlay::V6, A, B),
        (Underlay::V6, "10.1.0.2", "10.2.0.2"),
    ] {
        let mut w = up(underlay, "");
        let client = SocketAddr::new(client.parse().unwrap(), 40_000);
        let server = SocketAddr::new(server.parse().unwrap(), 443);
        let flow = w.connect_between(client, server);
        let mut written = [0; 2];
        let mut read = [0; 2];
        for _ in 0..20_000 {
            w.run(ms(1));
            for i in 0..2 {
                let tcp = w.tcp(i, flow);
                let room = tcp.writable().min(BYTES - written[i]);
                let data: Vec<u8> = (0..room).map(|n| byte(i, written[i] + n)).collect();
                written[i] += tcp.write(&data);
                if written[i] == BYTES {
                    tcp.finish();
                }
                tcp.read(|got| {
                    let from = read[i];
                    let right = got.iter().enumerate();
                    assert!(right.clone().all(|(n, b)| *b == byte(1 - i, from + n)));
                    read[i] += got.len();
                    got.len()
                });
            }
            if (0..2).all(|i| w.tcp(i, flow).state().remote_finished) {
                break;
            }
        }
        assert_eq!(read, [BYTES; 2], "{client} over {underlay:?}");
        for i in 0..2 {
            let state = w.tcp(i, flow).state();
            assert!(state.remote_finished && state.end.is_none(), "{state:?}");
            assert_eq!(w.counter(i, "flows_opened"), 1);
        }
        assert_eq!(w.dropped(), [0, 0]);
    }
}

#[test]
fn refused_and_unreachable_come_back_as_the_far_host_would_say_it() {
    let mut w = up(Underlay::V6, "");
    // Nobody has this address: the far router asks for it three times.
    w.host_sends(0, &syn(A, "2001:db8:2::77", 1440));
    w.run(ms(4000));
    assert_eq!(
        errors(&mut w),
        [(ROUTER_A.to_owned(), Error::Unreachable(3))]
    );
    // Nobody listens: host B says so, and so does the router in its name.
    w.host_sends(0, &syn(A, B, 1440));
    w.run(ms(60));
    let [asked] = w.received(1).try_into().unwrap();
    let v = ipv6::View::parse(&asked).unwrap();
    let t = tcp::View::parse(v.payload()).unwrap();
    t.verify_checksum(v.src(), v.dst()).unwrap();
    assert_eq!((v.src(), v.dst()), (addr(A), addr(B)));
    assert_eq!(t.flags(), tcp::Flags::SYN);
    let header = tcp::Header {
        src_port: 22,
        dst_port: 40_000,
        ack: t.seq().wrapping_add(1),
        flags: tcp::Flags::RST | tcp::Flags::ACK,
        ..Default::default()
    };
    let mut rst = vec![0; 20];
    header.emit(&mut rst, &[]).unwrap();
    tcp::fill_checksum(&mut rst, addr(B), addr(A)).unwrap();
    let [answer] = carried(&mut w, 1, 0, &packet(B, A, ipv4::PROTOCOL_TCP, &rst))
        .try_into()
        .unwrap();
    let v = ipv6::View::parse(&answer).unwrap();
    let t = tcp::View::parse(v.payload()).unwrap();
    t.verify_checksum(v.src(), v.dst()).unwrap();
    assert_eq!((v.src(), t.ack()), (addr(B), 2));
    assert!(t.flags().contains(tcp::Flags::RST));
}
