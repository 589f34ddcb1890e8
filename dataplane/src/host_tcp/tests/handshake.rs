//! SYN and SYN-ACK: options, refusal, unreachable, loss, timeout.

use std::time::Duration;

use proptest::prelude::*;

use super::super::smoltcp_host::segment::{parse_tcp, SynOptions, ACK, RST, SYN};
use super::super::{
    icmp_flow, rst_for, End, Endpoint, HostTcp, HostTcpConfig, HostTcpError, Role, SegmentError,
};
use super::*;

#[test]
fn announces_the_mss_of_the_port_and_learns_that_of_the_host() {
    let mut net = Net::with(
        HostTcpConfig {
            local_mtu: 9000,
            ..config(1)
        },
        HostTcpConfig {
            local_mtu: 1400,
            ..config(2)
        },
    );
    let syn = net.collect(0);
    assert_eq!(mss_of(&syn[0]), Some(8960));
    net.sides[1].tcp.handle_segment(net.now, &syn[0]).unwrap();
    let syn_ack = net.collect(1);
    assert_eq!(syn_ack.len(), 1, "the SYN is answered at once");
    assert_eq!(mss_of(&syn_ack[0]), Some(1360));
    assert_eq!(
        parse_tcp(&syn_ack[0]).unwrap().syn_options().window_scale,
        Some(3)
    );
    net.sides[0]
        .tcp
        .handle_segment(net.now, &syn_ack[0])
        .unwrap();
    net.settle();
    assert_eq!(
        net.sides.each_ref().map(|s| s.tcp.remote_mss()),
        [1360, 8960]
    );
    // Either side cuts to what both allow.
    for s in &mut net.sides {
        s.to_send = 500_000;
    }
    net.run(Duration::from_secs(5), |n| {
        n.sides.iter().all(|s| s.received == 500_000)
    });
    for s in &net.sides {
        let (largest, gso_size) = s.largest;
        // Time-stamps take 12 bytes of each packet.
        assert_eq!(gso_size, 1348);
        assert!(largest > 30_000, "{largest}");
        assert_eq!(largest % 1348, 0);
    }
}

#[test]
fn a_syn_without_options_is_answered_without_scaling_and_cut_to_536() {
    let mut net = Net::new();
    let syn = with_payload(header(CLIENT, SERVER, SYN, 77, 0), b"data on a SYN");
    net.sides[1].tcp.handle_segment(net.now, &syn).unwrap();
    let answer = net.collect(1);
    let s = parse_tcp(&answer[0]).unwrap();
    assert_eq!(
        (s.flags, s.ack),
        (SYN | ACK, 78),
        "data on a SYN is not acknowledged"
    );
    assert_eq!(
        s.syn_options(),
        SynOptions {
            mss: Some(1460),
            ..Default::default()
        }
    );
    let mut ack = header(CLIENT, SERVER, ACK, 78, s.seq.wrapping_add(1));
    ack.window = 20_000;
    net.sides[1]
        .tcp
        .handle_segment(net.now, &ack.to_packet())
        .unwrap();
    assert!(net.sides[1].tcp.state().established);
    assert_eq!(net.sides[1].tcp.write(&stream(22, 0, 50_000)), 50_000);
    let mut out = Vec::new();
    let meta = net.sides[1].tcp.poll_transmit(net.now, &mut out).unwrap();
    assert_eq!(meta.gso_size, 536);
    assert_eq!(out.len() - 40, 37 * 536, "the window is not exceeded");
}

#[test]
fn other_options_of_a_syn_do_no_harm() {
    // Time-stamps, multipath TCP, fast open, an unknown kind, a truncated one.
    for extra in [
        &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1][..],
        &[30, 12, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8],
        &[34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
        &[253, 4, 9, 9],
        &[5, 200, 1, 1],
        &[2, 0, 1, 1],
    ] {
        let mut net = Net::new();
        let syn = header(CLIENT, SERVER, SYN, 9, 0);
        let mut p = Header {
            syn: SynOptions {
                mss: Some(1000),
                ..Default::default()
            },
            ..syn
        }
        .to_packet();
        p.extend_from_slice(extra);
        let total = p.len();
        p[3] = total as u8;
        p[32] = (((total - 20) / 4) << 4) as u8;
        net.sides[1].tcp.handle_segment(net.now, &p).unwrap();
        let answer = net.collect(1);
        assert_eq!(answer.len(), 1, "{extra:?}");
        assert_eq!(net.sides[1].tcp.remote_mss(), 1000);
    }
}

#[test]
fn a_refused_connection_says_so() {
    let mut net = Net::new();
    let syn = net.collect(0);
    let rst = rst_for(&syn[0]).unwrap();
    net.sides[0].tcp.handle_segment(net.now, &rst).unwrap();
    assert_eq!(net.states()[0].end, Some(End::Refused));
    assert!(net.states()[0].over());
    assert!(net.collect(0).is_empty());
    assert_eq!(net.sides[0].tcp.poll_timeout(), None);
}

#[test]
fn a_reset_that_acknowledges_something_else_refuses_nothing() {
    let mut net = Net::new();
    let syn = net.collect(0);
    let seq = parse_tcp(&syn[0]).unwrap().seq;
    for (flags, ack) in [(RST | ACK, seq), (RST | ACK, seq.wrapping_add(2)), (RST, 0)] {
        let rst = header(SERVER, CLIENT, flags, 0, ack).to_packet();
        net.sides[0].tcp.handle_segment(net.now, &rst).unwrap();
        assert!(net.states()[0].connecting());
    }
}

#[test]
fn icmp_unreachable_ends_a_connection_attempt_only() {
    for code in [0, 1, 3, 13] {
        let mut net = Net::new();
        let syn = net.collect(0);
        let icmp = icmp_unreachable(&syn[0], code, 0);
        assert_eq!(icmp_flow(&icmp), Some((CLIENT, SERVER)));
        net.sides[0].tcp.handle_segment(net.now, &icmp).unwrap();
        assert_eq!(net.states()[0].end, Some(End::Unreachable { code }));
        assert!(net.collect(0).is_empty(), "nobody is there to be reset");
    }
    // Once established it is a hint at most (RFC 5461 §2.2).
    let mut net = Net::established();
    net.sides[0].tcp.write(b"x");
    let data = net.collect(0);
    let icmp = icmp_unreachable(&data[0], 1, 0);
    net.sides[0].tcp.handle_segment(net.now, &icmp).unwrap();
    assert_eq!(net.states()[0].end, None);
}

#[test]
fn icmp_about_nothing_in_flight_is_refused() {
    let mut net = Net::new();
    let syn = net.collect(0);
    let mut forged = syn[0].clone();
    forged[24] ^= 1;
    let icmp = icmp_unreachable(&forged, 1, 0);
    assert_eq!(
        net.sides[0].tcp.handle_segment(net.now, &icmp),
        Err(SegmentError::StaleIcmp)
    );
    let mut other = syn[0].clone();
    other[21] ^= 1;
    let icmp = icmp_unreachable(&other, 1, 0);
    assert_eq!(
        net.sides[0].tcp.handle_segment(net.now, &icmp),
        Err(SegmentError::WrongFlow)
    );
    assert!(net.states()[0].connecting());
}

#[test]
fn fragmentation_needed_makes_segments_smaller() {
    let mut net = Net::established();
    net.sides[0].tcp.write(&stream(11, 0, 10_000));
    let data = net.collect(0);
    let icmp = icmp_unreachable(&data[0], 4, 1300);
    net.sides[0].tcp.handle_segment(net.now, &icmp).unwrap();
    net.sides[0].written = 10_000;
    net.sides[0].to_send = 100_000;
    net.sides[0].largest = (0, 0);
    net.run(Duration::from_secs(10), |n| n.sides[1].received == 100_000);
    assert_eq!(net.sides[0].largest.1, 1248);
}

#[test]
fn lost_syn_and_syn_ack_are_repeated() {
    let mut net = Net::new();
    net.cut_off = true;
    let start = net.now;
    net.run(Duration::from_secs(10), |n| {
        n.now.since(start) > Duration::from_millis(2500)
    });
    net.cut_off = false;
    net.connect();
    assert!(net.now.since(start) < Duration::from_secs(8));
}

#[test]
fn a_silent_host_times_out_only_while_it_owes_something() {
    let timeout = Some(Duration::from_secs(20));
    let mut net = Net::with(
        HostTcpConfig {
            timeout,
            ..config(1)
        },
        HostTcpConfig {
            timeout,
            ..config(2)
        },
    );
    net.connect();
    // Idle for an hour.
    net.now += Duration::from_secs(3600);
    net.settle();
    assert!(net.states().iter().all(|s| s.end.is_none()));
    net.cut_off = true;
    let start = net.now;
    net.sides[0].to_send = 1000;
    net.run(Duration::from_secs(60), |n| n.states()[0].end.is_some());
    assert_eq!(net.states()[0].end, Some(End::TimedOut));
    let took = net.now.since(start);
    assert!(
        took >= Duration::from_secs(20) && took < Duration::from_secs(21),
        "{took:?}"
    );
    assert_eq!(net.states()[1].end, None);
}

#[test]
fn addresses_that_cannot_be_hosts_are_refused() {
    for bad in [
        "0.0.0.0:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "10.0.0.1:0",
    ] {
        let bad: SocketAddr = bad.parse().unwrap();
        for role in [
            Role::Active {
                local: bad,
                remote: SERVER,
            },
            Role::Active {
                local: CLIENT,
                remote: bad,
            },
            Role::Passive {
                local: bad,
                remote: CLIENT,
            },
            Role::Passive {
                local: SERVER,
                remote: bad,
            },
        ] {
            let got = Endpoint::new(Instant::ZERO, role, &config(0));
            assert_eq!(got.err(), Some(HostTcpError::Unaddressable(bad)));
        }
    }
}

proptest! {
    /// RFC 9293 §3.10.7.1: with ACK the reset takes its sequence number from it, without it
    /// acknowledges all of the segment; never a reset for a reset.
    #[test]
    fn resets_for_segments_without_a_flow(flags in 0u8..64, seq: u32, ack: u32, len in 0usize..2000) {
        let p = with_payload(header(CLIENT, SERVER, flags, seq, ack), &vec![7; len]);
        let rst = rst_for(&p);
        prop_assert_eq!(rst.is_none(), flags & RST != 0);
        if let Some(rst) = rst {
            let s = parse_tcp(&rst).unwrap();
            prop_assert_eq!((s.src, s.dst, s.payload_len), (SERVER, CLIENT, 0));
            if flags & ACK != 0 {
                prop_assert_eq!((s.flags, s.seq), (RST, ack));
            } else {
                let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
                prop_assert_eq!((s.flags, s.seq), (RST | ACK, 0));
                prop_assert_eq!(s.ack, seq.wrapping_add(len as u32 + control));
            }
        }
    }
}
