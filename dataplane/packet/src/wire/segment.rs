//! Cutting a super-segment of TCP, or a super-frame of UDP, into the packets
//! that it stands for, where no NIC will do it: each with its own lengths,
//! identification, sequence number, flags and complete checksums.
//!
//! ```text
//!  [ IP | TCP, seq s, PSH FIN | a a a a a a a a a a ]   gso_size 4
//!  [ IP | TCP, seq s | a a a a ] [ IP, id+1 | TCP, seq s+4 | a a a a ] [ IP, id+2 | TCP, seq s+8, PSH FIN | a a ]
//! ```

use alloc::vec::Vec;

use super::checksum::{self, Sum};
use super::tcp::Flags;
use super::{ipv4, ipv6, put, tcp, u16_at, u32_at, u8_at, udp, WireError};

/// Where the transport header of an IP packet begins, and which it is; `None` for later fragments and
/// what is no IP packet.
pub fn transport(packet: &[u8]) -> Option<(usize, u8)> {
    match packet.first()? >> 4 {
        4 => {
            let view = ipv4::View::parse_quoted(packet).ok()?;
            (view.fragment_offset() == 0).then(|| (view.header_len(), view.protocol()))
        }
        6 => {
            let view = ipv6::View::parse_quoted(packet).ok()?;
            let later = view.fragment().is_some_and(|f| f.offset != 0);
            (!later).then(|| (view.header_len(), view.protocol()))
        }
        _ => None,
    }
}

/// The packets that a super-segment is cut into.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    packet: &'a [u8],
    transport_at: usize,
    payload_at: usize,
    tcp: bool,
    size: usize,
    /// Payload bytes cut so far.
    done: usize,
    index: u16,
}

impl<'a> Segments<'a> {
    /// Cuts `packet`, an IP packet with a TCP or UDP payload, every `size` bytes of that payload.
    ///
    /// # Errors
    /// `BadVersion` or `BadLength` for what is no such packet, or where `size` is 0; `Truncated`.
    pub fn new(packet: &'a [u8], size: u16) -> Result<Self, WireError> {
        let (transport_at, protocol) = transport(packet).ok_or(WireError::BadVersion)?;
        let header = packet.get(transport_at..).ok_or(WireError::Truncated)?;
        let (tcp, len) = match protocol {
            ipv4::PROTOCOL_TCP => (true, tcp::View::parse(header)?.header_len()),
            ipv4::PROTOCOL_UDP if header.len() >= udp::HEADER_LEN => (false, udp::HEADER_LEN),
            ipv4::PROTOCOL_UDP => return Err(WireError::Truncated),
            _ => return Err(WireError::BadVersion),
        };
        if size == 0 {
            return Err(WireError::BadLength);
        }
        Ok(Self {
            packet,
            transport_at,
            payload_at: transport_at + len,
            tcp,
            size: usize::from(size),
            done: 0,
            index: 0,
        })
    }

    /// Bytes of the largest of the packets.
    pub fn largest(&self) -> usize {
        self.payload_at + self.size.min(self.packet.len() - self.payload_at)
    }

    /// Packets that are still to come; the first comes even without a payload.
    pub fn remaining(&self) -> usize {
        let left = self.packet.len() - self.payload_at - self.done;
        if self.index == 0 {
            left.div_ceil(self.size).max(1)
        } else {
            left.div_ceil(self.size)
        }
    }

    fn cut(&self, from: usize, to: usize) -> Result<Vec<u8>, WireError> {
        let total = self.packet.len() - self.payload_at;
        let mut out = Vec::with_capacity(self.payload_at + to - from);
        out.extend_from_slice(self.packet.get(..self.payload_at).unwrap_or(&[]));
        let payload = self
            .packet
            .get(self.payload_at + from..self.payload_at + to);
        out.extend_from_slice(payload.ok_or(WireError::Truncated)?);
        let transport_len = out.len() - self.transport_at;
        let v4 = u8_at(&out, 0) >> 4 == 4;
        if v4 {
            let len = u16::try_from(out.len()).map_err(|_| WireError::NoRoom)?;
            put(&mut out, 2, &len.to_be_bytes())?;
            let ident = u16_at(&out, 4).wrapping_add(self.index);
            put(&mut out, 4, &ident.to_be_bytes())?;
            ipv4::fill_checksum(&mut out)?;
        } else {
            let len = u16::try_from(out.len() - ipv6::HEADER_LEN).map_err(|_| WireError::NoRoom)?;
            put(&mut out, 4, &len.to_be_bytes())?;
        }
        let pseudo = self.pseudo_header(v4, transport_len);
        let head = out.get_mut(self.transport_at..).unwrap_or(&mut []);
        if self.tcp {
            let sequence = u32_at(head, 4).wrapping_add(from as u32);
            put(head, 4, &sequence.to_be_bytes())?;
            let mut flags = u8_at(head, 13);
            if to < total {
                flags &= !(Flags::FIN.0 | Flags::PSH.0);
            }
            if from > 0 {
                // Congestion window reduced is said once (RFC 3168, 6.1.2).
                flags &= !Flags::CWR.0;
            }
            put(head, 13, &[flags])?;
            checksum::fill(pseudo, head, tcp::CHECKSUM_AT)?;
        } else {
            let len = u16::try_from(transport_len).map_err(|_| WireError::NoRoom)?;
            put(head, 4, &len.to_be_bytes())?;
            if checksum::fill(pseudo, head, udp::CHECKSUM_AT)? == 0 {
                put(head, udp::CHECKSUM_AT, &[0xff, 0xff])?;
            }
        }
        Ok(out)
    }

    fn pseudo_header(&self, v4: bool, len: usize) -> Sum {
        let protocol = if self.tcp {
            ipv4::PROTOCOL_TCP
        } else {
            ipv4::PROTOCOL_UDP
        };
        // Source and destination stand next to each other in both headers.
        let addresses = if v4 { 12..20 } else { 8..ipv6::HEADER_LEN };
        Sum::ZERO
            .bytes(self.packet.get(addresses).unwrap_or(&[]))
            .word(u16::from(protocol))
            .dword(len as u32)
    }
}

impl Iterator for Segments<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let total = self.packet.len().checked_sub(self.payload_at)?;
        if self.done >= total && self.index > 0 {
            return None;
        }
        let to = (self.done + self.size).min(total);
        let packet = self.cut(self.done, to).ok()?;
        self.done = to;
        self.index = self.index.wrapping_add(1);
        Some(packet)
    }
}

/// What is left of the options of an IPv4 header in fragments behind the first (RFC 791, 3.1: those
/// with the copied flag), padded to words.
fn copied_options(options: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), options);
    while let [kind, ..] = rest {
        let len = match (kind, rest) {
            (0, _) => break,
            (1, _) => 1,
            (_, [_, len, ..]) if *len >= 2 => usize::from(*len),
            _ => break,
        };
        let Some((option, behind)) = rest.split_at_checked(len) else {
            break;
        };
        if kind & 0x80 != 0 {
            out.extend_from_slice(option);
        }
        rest = behind;
    }
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// The fragments of an IPv4 packet for a path of `mtu` bytes (RFC 791, RFC 1812 section 4.2.2.7).
///
/// # Errors
/// `NoRoom` where its header says that it must not be fragmented, or `mtu` is too small for any; what
/// is wrong with the header.
pub fn fragments(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, WireError> {
    let view = ipv4::View::parse_unverified(packet)?;
    if view.dont_fragment() {
        return Err(WireError::NoRoom);
    }
    let (payload, first) = (view.payload(), view.fragment_offset());
    let later_options = copied_options(view.options());
    let (mut out, mut at) = (Vec::new(), 0);
    loop {
        let options = if at == 0 {
            view.options()
        } else {
            &later_options
        };
        let header_len = ipv4::HEADER_LEN + options.len();
        let room = mtu.saturating_sub(header_len) & !7;
        if room == 0 {
            return Err(WireError::NoRoom);
        }
        let rest = payload.len() - at;
        let last = rest <= mtu.saturating_sub(header_len);
        let take = if last { rest } else { room };
        let mut fragment = packet
            .get(..ipv4::HEADER_LEN)
            .ok_or(WireError::Truncated)?
            .to_vec();
        fragment.extend_from_slice(options);
        fragment.extend_from_slice(payload.get(at..at + take).unwrap_or(&[]));
        let total = u16::try_from(fragment.len()).map_err(|_| WireError::NoRoom)?;
        let offset = u16::try_from(usize::from(first) + at).map_err(|_| WireError::BadLength)?;
        let more = !last || view.more_fragments();
        put(&mut fragment, 0, &[0x40 | (header_len / 4) as u8])?;
        put(&mut fragment, 2, &total.to_be_bytes())?;
        let word = offset >> 3 | if more { 0x2000 } else { 0 };
        put(&mut fragment, 6, &word.to_be_bytes())?;
        ipv4::fill_checksum(&mut fragment)?;
        out.push(fragment);
        at += take;
        if last {
            return Ok(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
    }

    fn v4(protocol: u8, transport: &[u8], ident: u16) -> Vec<u8> {
        let mut p = vec![0; 20];
        let header = ipv4::Header {
            ident,
            dscp_ecn: 0x2a,
            ..ipv4::Header::new(A, B, protocol)
        };
        header.emit(&mut p, transport.len()).unwrap();
        p.extend_from_slice(transport);
        p
    }

    /// The same transport behind an IPv6 header with a destination-options header.
    fn v6(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let mut p = vec![0x62, 0xa0, 0, 1, 0, 0, 60, 64];
        p.extend_from_slice(&[0x20; 16]);
        p.extend_from_slice(&[0x21; 16]);
        p.extend_from_slice(&[protocol, 0, 1, 4, 0, 0, 0, 0]);
        p.extend_from_slice(transport);
        let len = (p.len() - 40) as u16;
        p[4..6].copy_from_slice(&len.to_be_bytes());
        p
    }

    fn tcp_header(seq: u32, flags: u8) -> Vec<u8> {
        let mut t = vec![0x9c, 0x40, 0, 80];
        t.extend_from_slice(&seq.to_be_bytes());
        t.extend_from_slice(&[0, 0, 0, 9, 0x80, flags, 0x10, 0, 0xde, 0xad, 0, 0]);
        // NOP NOP and a time-stamp.
        t.extend_from_slice(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        t
    }

    /// Whether the transport's checksum is that of its pseudo-header and content.
    fn sound(packet: &[u8], at: usize, protocol: u8) -> bool {
        let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
        Sum::ZERO
            .bytes(&packet[addresses])
            .word(u16::from(protocol))
            .dword((packet.len() - at) as u32)
            .bytes(&packet[at..])
            .is_valid()
    }

    proptest! {
        #[test]
        fn tcp_is_cut_as_a_nic_would(
            len in 0usize..9000, size in 1u16..3000, seq: u32, ident: u16, flags: u8, six: bool,
        ) {
            let mut t = tcp_header(seq, flags);
            let data = payload(len);
            t.extend_from_slice(&data);
            let packet = if six { v6(6, &t) } else { v4(6, &t, ident) };
            let at = if six { 48 } else { 20 };
            let cut = Segments::new(&packet, size).unwrap();
            let largest = cut.largest();
            prop_assert_eq!(cut.remaining(), cut.clone().count());
            let pieces: Vec<_> = cut.collect();
            prop_assert_eq!(pieces.len(), len.div_ceil(usize::from(size)).max(1));
            prop_assert_eq!(pieces.iter().map(Vec::len).max(), Some(largest));
            let mut offset = 0;
            for (i, p) in pieces.iter().enumerate() {
                let (first, last) = (i == 0, i + 1 == pieces.len());
                if six {
                    prop_assert_eq!(usize::from(u16_at(p, 4)), p.len() - 40);
                    prop_assert_eq!(&p[..4], &packet[..4]);
                } else {
                    let view = ipv4::View::parse(p).unwrap();
                    prop_assert_eq!(usize::from(view.total_len()), p.len());
                    prop_assert_eq!(view.ident(), ident.wrapping_add(i as u16));
                    prop_assert_eq!(view.dscp_ecn(), 0x2a);
                }
                prop_assert!(sound(p, at, 6));
                let s = tcp::View::parse(&p[at..]).unwrap();
                prop_assert_eq!(s.seq(), seq.wrapping_add(offset as u32));
                let keep = |bits: u8, here: bool| if here { 0 } else { bits };
                prop_assert_eq!(s.flags().0, flags & !keep(0x09, last) & !keep(0x80, first));
                prop_assert_eq!(s.option_bytes(), &t[20..32]);
                prop_assert_eq!(s.payload(), &data[offset..offset + s.payload().len()]);
                prop_assert_eq!(s.payload().len(), usize::from(size).min(len - offset));
                offset += s.payload().len();
            }
            prop_assert_eq!(offset, len);
        }

        #[test]
        fn udp_is_cut_into_whole_datagrams(len in 0usize..9000, size in 1u16..3000, six: bool) {
            let mut u = vec![0x9c, 0x40, 0, 53, 0, 0, 0xde, 0xad];
            let data = payload(len);
            u.extend_from_slice(&data);
            let packet = if six { v6(17, &u) } else { v4(17, &u, 65_530) };
            let at = if six { 48 } else { 20 };
            let mut joined = Vec::new();
            for p in Segments::new(&packet, size).unwrap() {
                prop_assert!(sound(&p, at, 17));
                let view = udp::View::parse(&p[at..]).unwrap();
                prop_assert_eq!(view.len(), p.len() - at);
                prop_assert_ne!(view.checksum(), 0);
                joined.extend_from_slice(view.payload());
            }
            prop_assert_eq!(joined, data);
        }

        #[test]
        fn any_bytes_are_refused_or_cut(bytes: Vec<u8>, first in 0x40u8..0x70, size: u16, mtu in 0usize..200) {
            let mut bytes = bytes;
            if let Some(b) = bytes.first_mut() {
                *b = first;
            }
            if let Ok(cut) = Segments::new(&bytes, size) {
                prop_assert!(cut.take(70_000).count() <= 65_536);
            }
            if let Ok(list) = fragments(&bytes, mtu) {
                prop_assert!(list.iter().all(|f| f.len() <= mtu));
            }
        }

        #[test]
        fn fragments_join_to_what_they_came_from(
            len in 0usize..5000, mtu in 68usize..1600, offset in 0u16..100, more: bool, options in 0usize..2,
        ) {
            let data = payload(len);
            let header = ipv4::Header {
                dont_fragment: false,
                more_fragments: more,
                fragment_offset: offset * 8,
                ident: 77,
                ..ipv4::Header::new(A, B, 17)
            };
            let mut packet = vec![0; 20];
            // One option that every fragment keeps, one that only the first has.
            let extra: &[u8] = if options == 0 { &[] } else { &[0x82, 4, 1, 2, 7, 4, 3, 4] };
            header.emit(&mut packet, data.len() + extra.len()).unwrap();
            packet[0] += extra.len() as u8 / 4;
            packet.extend_from_slice(extra);
            packet.extend_from_slice(&data);
            ipv4::fill_checksum(&mut packet).unwrap();
            let list = fragments(&packet, mtu).unwrap();
            let mut joined = Vec::new();
            for (i, f) in list.iter().enumerate() {
                prop_assert!(f.len() <= mtu);
                let v = ipv4::View::parse(f).unwrap();
                prop_assert_eq!(v.ident(), 77);
                prop_assert_eq!(usize::from(v.fragment_offset()), usize::from(offset) * 8 + joined.len());
                prop_assert_eq!(v.more_fragments(), more || i + 1 < list.len());
                prop_assert_eq!(v.options().len(), if i == 0 { extra.len() } else { extra.len() / 2 });
                joined.extend_from_slice(v.payload());
            }
            prop_assert_eq!(joined, data);
        }
    }

    #[test]
    fn what_must_not_be_fragmented_is_not() {
        let packet = v4(17, &payload(2000), 1);
        assert_eq!(fragments(&packet, 1500), Err(WireError::NoRoom));
    }
}
