//! The answer to a segment that belongs to no connection.

use std::net::IpAddr;

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
