//! A host that sends anything: the endpoint that stands in for the far host
//! must never panic, and what it says must itself be valid TCP.

use std::time::Duration;

use mef_dataplane::host_tcp::{self, Endpoint, HostTcp, HostTcpConfig, Role, TimeWait};
use mef_packet::wire::{ip, ipv4, tcp};
use mef_packet::Instant;

use super::input::Input;

const HOST: [u8; 4] = [10, 1, 0, 2];
const FAR: [u8; 4] = [10, 2, 0, 2];
const HOST_PORT: u16 = 40000;
const FAR_PORT: u16 = 80;

/// The packet of a host with these TCP fields; checksums are right.
pub fn segment(seq: u32, ack: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = tcp::Header {
        src_port: HOST_PORT,
        dst_port: FAR_PORT,
        seq,
        ack,
        flags: tcp::Flags(flags),
        window: 0xffff,
        ..tcp::Header::default()
    };
    let options = &options[..options.len().min(40) & !3];
    let mut segment = vec![0; tcp::HEADER_LEN + options.len() + payload.len()];
    segment[tcp::HEADER_LEN + options.len()..].copy_from_slice(payload);
    header.emit(&mut segment, options).expect("room for it");
    tcp::fill_checksum(&mut segment, HOST, FAR).expect("a whole header");
    from_host(ipv4::PROTOCOL_TCP, &segment)
}

fn from_host(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ipv4::HEADER_LEN + payload.len()];
    packet[ipv4::HEADER_LEN..].copy_from_slice(payload);
    ipv4::Header::new(HOST.into(), FAR.into(), protocol)
        .emit(&mut packet, payload.len())
        .expect("room for it");
    packet
}

/// What the host knows of the conversation.
#[derive(Default)]
struct Seen {
    /// Where the endpoint's next byte would be, and what it has acknowledged.
    next: u32,
    acked: u32,
    last: Vec<u8>,
}

pub fn endpoint(data: &[u8]) {
    let mut input = Input(data);
    let first = input.u8();
    let local = "10.2.0.2:80".parse().expect("an address");
    let remote = "10.1.0.2:40000".parse().expect("an address");
    let role = match first & 1 {
        0 => Role::Passive { local, remote },
        _ => Role::Active { local, remote },
    };
    let config = HostTcpConfig {
        rx_buffer: 16 << 10,
        tx_buffer: 16 << 10,
        timeout: (first & 2 != 0).then_some(Duration::from_secs(100)),
        ..HostTcpConfig::default()
    };
    let mut now = Instant::from_millis(1);
    let mut host = Endpoint::new(now, role, &config).expect("valid addresses");
    let mut seen = Seen::default();
    let mut record: Option<TimeWait> = None;
    let mut written = 0;
    listen(now, &mut host, &mut seen);
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let mut said = None;
        match op % 16 {
            0..=6 => said = Some(a_segment(&mut input, op, &seen)),
            7 => said = Some(from_host(ipv4::PROTOCOL_TCP, input.bytes())),
            8 => said = Some(input.bytes().to_vec()),
            9 => {
                // An ICMP error about what the endpoint sent last.
                let mut icmp = vec![3, input.u8() % 16, 0, 0, 0, 0, 0, 0];
                icmp.extend_from_slice(&seen.last[..seen.last.len().min(28)]);
                let sum = mef_packet::wire::checksum::Sum::ZERO
                    .bytes(&icmp)
                    .checksum();
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                said = Some(from_host(ipv4::PROTOCOL_ICMP, &icmp));
            }
            10 => now += Duration::from_millis(u64::from(input.u16())),
            11 => {
                let n = usize::from(input.u16());
                let before = host.readable();
                let taken = host.read(|bytes| bytes.len().min(n));
                assert!(taken <= n && host.readable() + taken == before);
            }
            12 => {
                let bytes = input.bytes();
                let room = host.writable();
                let n = host.write(bytes);
                assert!(n <= room.min(bytes.len()));
                written += n;
            }
            13 => host.finish(),
            14 if op == 14 => host.abort(),
            _ => {}
        }
        if let Some(packet) = said {
            let _ = host.is_keep_alive(&packet);
            let _ = host_tcp::rst_for(&packet).map(|rst| check(&rst));
            if let Some(record) = &record {
                let _ = record.may_reopen(&packet);
                let _ = record.answer(&packet).map(|answer| check(&answer));
            }
            let _ = host.handle_segment(now, &packet);
        }
        listen(now, &mut host, &mut seen);
        assert!(host.readable() <= 16 << 10);
        assert!(host.unacknowledged() <= written);
        record = record.or(host.time_wait_record());
        let _ = (host.state().over(), host.poll_timeout(), host.remote_mss());
    }
}

fn a_segment(input: &mut Input<'_>, op: u8, seen: &Seen) -> Vec<u8> {
    let near = |input: &mut Input<'_>, base: u32| match input.u8() {
        n @ 0..=127 => base.wrapping_add(u32::from(n / 16)),
        n @ 128..=191 => base.wrapping_sub(u32::from(n - 128)),
        192..=239 => base.wrapping_add(u32::from(input.u16())),
        _ => input.u32(),
    };
    let (seq, ack) = (near(input, seen.acked), near(input, seen.next));
    // Mostly what belongs into a conversation, sometimes anything.
    let flags = match op >> 4 {
        0 | 1 => 0x02,
        2..=7 => 0x10,
        8 | 9 => 0x18,
        10 | 11 => 0x11,
        12 => 0x04,
        13 => 0x12,
        _ => input.u8(),
    };
    let options = match op % 16 {
        0 => input.bytes(),
        1 => &[2, 4, 5, 0xb4, 1, 3, 3, 7],
        _ => &[],
    };
    segment(seq, ack, flags, options, input.bytes())
}

/// Takes all that the endpoint says, as its host would.
fn listen(now: Instant, host: &mut Endpoint, seen: &mut Seen) {
    let mut out = Vec::new();
    for _ in 0..1000 {
        if host.poll_transmit(now, &mut out).is_none() {
            return;
        }
        let (next, acked) = check(&out);
        if let Some(next) = next {
            seen.next = next;
        }
        if let Some(acked) = acked {
            seen.acked = acked;
        }
        seen.last.clone_from(&out);
    }
    panic!("it never stops talking");
}

/// That a packet is whole, from the far host to this one; the sequence number behind it, and what it acknowledges.
fn check(packet: &[u8]) -> (Option<u32>, Option<u32>) {
    let v = ip::View::parse(packet).expect("a whole packet");
    let t = tcp::View::parse(v.payload()).expect("a whole segment");
    assert!(t.options().all(|o| o.is_ok()));
    let end = t.seq().wrapping_add(t.sequence_len());
    let rst = t.flags().contains(tcp::Flags::RST);
    let acks = t.flags().contains(tcp::Flags::ACK);
    ((!rst).then_some(end), acks.then_some(t.ack()))
}

/// The flow that an ICMP error speaks of, and the answer to a segment of none.
pub fn icmp_flow(data: &[u8]) {
    let _ = host_tcp::icmp_flow(data);
    let _ = host_tcp::icmp_flow(&from_host(ipv4::PROTOCOL_ICMP, data));
    let _ = host_tcp::rst_for(data).map(|rst| check(&rst));
    let _ = host_tcp::rst_for(&from_host(ipv4::PROTOCOL_TCP, data)).map(|rst| check(&rst));
}
