//! Where the fuzzer starts from: what real encoders write, a few bytes each.

use mef_packet::wire::{arp, ethernet, icmpv4, ipv4, tcp, tcp_options, udp};
use mef_protocol::codec::{self, Ack, Builder, Frame, Received, SpanId};

use super::input::with_length;
use super::{handshake, host_tcp, link, router, wire6};

const A: [u8; 4] = [10, 1, 0, 2];
const B: [u8; 4] = [10, 2, 0, 2];

/// The first corpus of the target called `name`.
pub fn of(name: &str) -> Vec<Vec<u8>> {
    match name {
        "ethernet" => vec![ethernet_arp()],
        "ipv4" => vec![ip(17, &udp_bytes()), ip(1, &echo()), options()],
        "tcp" => vec![syn(), with_payload()],
        "udp" => vec![udp_bytes()],
        "icmp" => vec![echo(), ip(1, &echo()), ip(17, &udp_bytes()), error()],
        "ipv6" => vec![wire6::seeds()[1].clone()],
        "icmpv6" => wire6::seeds().to_vec(),
        "segment" => vec![super_segment(false), super_segment(true)],
        "reassembly" => super::reassembly::seeds(),
        "codec" => vec![every_frame(), data(), repair()],
        "link" => vec![conversation()],
        "handshake" => vec![messages()],
        "transport" => vec![sealed()],
        "host_tcp" => vec![passive(), active()],
        "icmp_flow" => vec![error()],
        "router" => vec![split_flow(), pings()],
        "direct" => super::direct::seeds(),
        "config" => vec![
            router::config_text(1).into_bytes(),
            include_bytes!("config.toml").to_vec(),
        ],
        "control" => vec![b"flows 256".to_vec(), b"status".to_vec()],
        "topology" => vec![include_bytes!("../../../../topologies/lossy-200ms.toml").to_vec()],
        "wan_trace" => vec![b"0\n1\n1\n5\n20\n".to_vec()],
        _ => Vec::new(),
    }
}

fn ethernet_arp() -> Vec<u8> {
    let packet = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: [2, 0, 0, 0, 9, 9],
        sender_ip: A.into(),
        target_mac: [0; 6],
        target_ip: [10, 1, 0, 1].into(),
    };
    let mut frame = vec![0; ethernet::HEADER_LEN + arp::LEN];
    let header = ethernet::Header {
        dst: ethernet::BROADCAST,
        src: packet.sender_mac,
        ethertype: ethernet::ETHERTYPE_ARP,
    };
    header.emit(&mut frame).expect("room");
    packet
        .emit(&mut frame[ethernet::HEADER_LEN..])
        .expect("room");
    frame
}

fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ipv4::HEADER_LEN + payload.len()];
    packet[ipv4::HEADER_LEN..].copy_from_slice(payload);
    ipv4::Header::new(A.into(), B.into(), protocol)
        .emit(&mut packet, payload.len())
        .expect("room");
    packet
}

/// A header with a router alert, and a fragment.
fn options() -> Vec<u8> {
    let mut p = ip(17, &[&[0x94, 4, 0, 0][..], &udp_bytes()].concat());
    (p[0], p[6]) = (0x46, 0x20);
    ipv4::fill_checksum(&mut p).expect("a whole header");
    p
}

fn udp_bytes() -> Vec<u8> {
    let mut d = vec![0; udp::HEADER_LEN];
    d.extend_from_slice(b"query");
    let header = udp::Header {
        src_port: 5353,
        dst_port: 53,
    };
    header.emit(&mut d, 5).expect("room");
    udp::fill_checksum(&mut d, A, B).expect("a whole header");
    d
}

/// Where to cut, then a packet that may be fragmented.
fn super_segment(of_udp: bool) -> Vec<u8> {
    let mut packet = match of_udp {
        true => ip(17, &udp_bytes()),
        false => ip(6, &with_payload()),
    };
    packet[6] = 0;
    ipv4::fill_checksum(&mut packet).expect("a whole header");
    [&[0, 2, 0, 60][..], &packet].concat()
}

fn echo() -> Vec<u8> {
    let message = icmpv4::Message::EchoRequest {
        ident: 7,
        seq: 1,
        data: b"0123456789",
    };
    let mut out = vec![0; message.len()];
    message.emit(&mut out).expect("room");
    out
}

fn error() -> Vec<u8> {
    let mut out = vec![0; icmpv4::MAX_ERROR_LEN];
    let about = host_tcp::segment(1, 0, 2, &[], &[]);
    let error = icmpv4::Error::TooBig { mtu: 1400 };
    let n = icmpv4::build_error(&mut out, error, B.into(), &about).expect("answerable");
    out.truncate(n);
    out
}

fn tcp_bytes(flags: tcp::Flags, options: &[tcp_options::TcpOption<'_>], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [0; tcp_options::MAX_LEN];
    let n = tcp_options::emit(&mut bytes, options).expect("room");
    let header = tcp::Header {
        src_port: 40000,
        dst_port: 80,
        seq: 1,
        flags,
        window: 64240,
        ..tcp::Header::default()
    };
    let mut segment = vec![0; tcp::HEADER_LEN + n + payload.len()];
    segment[tcp::HEADER_LEN + n..].copy_from_slice(payload);
    header.emit(&mut segment, &bytes[..n]).expect("room");
    tcp::fill_checksum(&mut segment, A, B).expect("a whole header");
    segment
}

fn syn() -> Vec<u8> {
    use tcp_options::TcpOption::{FastOpen, Mss, SackPermitted, Timestamps, WindowScale};
    let options = [
        Mss(1460),
        SackPermitted,
        Timestamps { value: 1, echo: 0 },
        WindowScale(7),
        FastOpen(&[]),
    ];
    tcp_bytes(tcp::Flags::SYN, &options, &[])
}

fn with_payload() -> Vec<u8> {
    let sack = [0, 0, 0, 9, 0, 0, 0, 12];
    let options = [tcp_options::TcpOption::Sack(&sack)];
    tcp_bytes(tcp::Flags::ACK | tcp::Flags::PSH, &options, b"hello")
}

fn every_frame() -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = Builder::new(&mut out, 1400);
    builder.flag(codec::FLAG_ELICITS_ACK);
    for frame in [
        Frame::Hello(link::hello(9)),
        Frame::Ping { floor: 3 },
        Frame::Setup {
            flow: 2,
            setup: link::setup(),
        },
        Frame::Opened { flow: 2 },
        Frame::Refused { flow: 4, code: 1 },
        Frame::Datagram {
            flow: 1,
            packet: &[4; 8],
        },
        Frame::Fragment {
            id: 1,
            index: 0,
            count: 2,
            bytes: &[5; 9],
        },
        Frame::Fin {
            flow: 2,
            offset: 105,
        },
        Frame::Reset {
            flow: 2,
            offset: 105,
            code: 1,
        },
        Frame::Window {
            flow: 2,
            max_offset: 1 << 20,
            received: 3,
            read: 2,
            room: 1 << 20,
            pace: 1 << 16,
        },
        Frame::Ack(Ack {
            largest: 100,
            rx_time_us: 5,
            delay_us: 6,
            delivered_bytes: 7,
            drops: 0,
            received: Received::Runs(&[3, 1, 4]),
        }),
        Frame::Probe { padding: 9 },
    ] {
        assert!(builder.push(&frame), "{frame:?}");
    }
    builder.finish();
    out
}

fn alone(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = Builder::new(&mut out, 1400);
    builder.flag(codec::FLAG_ELICITS_ACK);
    assert!(builder.push(frame), "{frame:?}");
    builder.finish();
    out
}

fn data() -> Vec<u8> {
    alone(&Frame::Data {
        flow: 2,
        offset: 100,
        payload: b"bytes",
    })
}

fn repair() -> Vec<u8> {
    alone(&Frame::Repair {
        flow: 2,
        span: SpanId::new(0, 3, 4),
        index: 1,
        symbol: &[7; 8],
    })
}

/// Its HELLO, then everything else there is to say.
fn conversation() -> Vec<u8> {
    let mut out = Vec::new();
    for packet in [every_frame(), data(), repair()] {
        out.extend_from_slice(&[2, 0]);
        out.extend_from_slice(&with_length(&packet));
    }
    // Opens a flow, writes to it, lets time pass, and hears data for the peer's flow.
    out.extend_from_slice(&[9, 0, 10, 2]);
    out.extend_from_slice(&with_length(&[1; 40]));
    out.extend_from_slice(&[0, 0, 0, 50]);
    out.extend_from_slice(&[0x13, 0, 1, 7, 3, 0, 3, 0]);
    out.extend_from_slice(&with_length(b"payload"));
    out.extend_from_slice(&[0x14, 0, 0, 13, 0, 1]);
    out.extend_from_slice(&with_length(&[4]));
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 11, 2, 0, 0, 1, 0]);
    out
}

fn messages() -> Vec<u8> {
    let (_, first) = handshake::initiation();
    let (_, second) = handshake::response(&first);
    [with_length(&first), second].concat()
}

fn sealed() -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&with_length(b"text"));
    out.extend_from_slice(&[2, 4]);
    out.extend_from_slice(&with_length(b"damaged"));
    out.extend_from_slice(&[0, 20, 1, 3]);
    out.extend_from_slice(&with_length(&[0x14, 0, 0, 0, 0, 0, 0, 7]));
    out
}

/// Operations of the endpoint's target; near numbers are 0, an empty string is two zeros.
fn passive() -> Vec<u8> {
    let mut out = vec![0];
    out.extend_from_slice(&[0x01, 0, 0, 0, 0]); // SYN with options
    out.extend_from_slice(&[0x22, 0, 0, 0, 0]); // ACK
    out.extend_from_slice(&[0x82, 0, 0]); // data
    out.extend_from_slice(&with_length(b"GET /"));
    out.extend_from_slice(&[11, 0, 5, 12]); // read, write
    out.extend_from_slice(&with_length(b"200"));
    out.extend_from_slice(&[0x22, 0, 0, 0, 0, 13, 0xa2, 0, 0, 0, 0, 10, 1, 0]);
    out
}

fn active() -> Vec<u8> {
    let mut out = vec![1];
    out.extend_from_slice(&[0xd1, 240, 0, 0, 0, 9, 0, 0, 0]); // SYN-ACK
    out.extend_from_slice(&[12]);
    out.extend_from_slice(&with_length(b"GET /"));
    out.extend_from_slice(&[
        0x22, 0, 0, 0, 0, 9, 3, 13, 0x22, 0, 0, 0, 0, 0xc2, 0, 0, 0, 0,
    ]);
    out
}

/// No change to the IP header.
const AS_IT_IS: [u8; 2] = [0xff, 0];

fn split_flow() -> Vec<u8> {
    let mut out = vec![12, 0, 2];
    out.extend_from_slice(&with_length(&syn()));
    out.extend_from_slice(&AS_IT_IS);
    // Time passes, then the host behind B answers, and each the other.
    for (side, reply, text) in [
        (9u8, 1u8, &b""[..]),
        (8, 0, b""),
        (8, 2, b"GET /"),
        (9, 2, b"200"),
        (8, 3, b""),
        (9, 3, b""),
    ] {
        out.extend_from_slice(&[0, 0, 3, side]);
        if reply == 1 {
            out.extend_from_slice(&[0, 0, 0, 9]);
        }
        out.push(reply);
        out.extend_from_slice(&with_length(text));
        out.extend_from_slice(&AS_IT_IS);
    }
    out
}

fn pings() -> Vec<u8> {
    let mut out = Vec::new();
    for to in [1, 2, 3] {
        out.extend_from_slice(&[12, 3, to]);
        out.extend_from_slice(&with_length(&echo()));
        out.extend_from_slice(&AS_IT_IS);
        out.extend_from_slice(&[13, 2, to]);
        out.extend_from_slice(&with_length(&udp_bytes()));
        out.extend_from_slice(&AS_IT_IS);
    }
    out
}
