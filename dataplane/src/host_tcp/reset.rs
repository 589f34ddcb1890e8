//! The answer to a segment that belongs to no connection, and the question that
//! brings such a segment.

use std::net::{IpAddr, SocketAddr};

use super::wire::{parse_tcp, Outgoing, ACK, RST};

/// The RST for a segment without a flow (RFC 9293 §3.10.7.1), as an IP packet whose TCP
/// checksum is partial. `None` for a RST, for what is not a whole TCP segment, and for a sender
/// that cannot be answered. The caller limits the rate.
pub fn rst_for(ip_packet: &[u8]) -> Option<Vec<u8>> {
    let s = parse_tcp(ip_packet)?;
    let from = s.src.ip();
    let is_many = |a: IpAddr| a.is_multicast() || matches!(a, IpAddr::V4(a) if a.is_broadcast());
    if s.has(RST) || from.is_unspecified() || is_many(from) || is_many(s.dst.ip()) {
        return None;
    }
    let (seq, ack, flags) = if s.has(ACK) {
        (s.ack, 0, RST)
    } else {
        (0, s.seq.wrapping_add(s.seq_len()), RST | ACK)
    };
    Some(Outgoing::new(s.dst, s.src, seq, ack, flags).to_packet())
}

/// A segment that a host with the connection from `remote` to `local` answers with where it stands,
/// because it can hardly be in its window (RFC 9293 §3.10.7.4), and a host without it with RST. `None`
/// where there can be no such connection.
pub fn question(local: SocketAddr, remote: SocketAddr, seq: u32) -> Option<Vec<u8>> {
    let ends = [local, remote];
    let unfit = |e: &SocketAddr| {
        let broadcast = matches!(e.ip(), IpAddr::V4(a) if a.is_broadcast());
        e.port() == 0 || e.ip().is_unspecified() || e.ip().is_multicast() || broadcast
    };
    if ends.iter().any(unfit) || local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    Some(Outgoing::new(local, remote, seq, 0, ACK).to_packet())
}
