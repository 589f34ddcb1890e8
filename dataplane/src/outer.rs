//! What stands around a link packet on its way: UDP over IPv4 or IPv6, whichever
//! the peer's address is. One figure for each family feeds every size computed
//! from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mef_packet::wire::checksum::Sum;
use mef_packet::wire::{ethernet, ipv4, ipv6, udp, WireError};
use mef_packet::{Buffer, Checksum, HeapBuf};

/// Bytes that [`wrap`] puts in front of a packet to `to`.
pub(crate) const fn header_len(to: &IpAddr) -> usize {
    udp::HEADER_LEN + mef_packet::wire::ip::header_len_of(to)
}

/// The unspecified address of a family.
pub(crate) const fn any(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

/// Outer IP and UDP header, LINK header and tag of a packet to `to`, bytes.
pub(crate) const fn packet_overhead(to: &IpAddr) -> u16 {
    (header_len(to) + mef_crypto::OVERHEAD) as u16
}

/// Bytes on Ethernet of a UDP datagram with `payload` bytes to or from `peer`.
pub(crate) const fn line_bytes(payload: usize, peer: &IpAddr) -> u64 {
    (payload + header_len(peer) + ethernet::HEADER_LEN) as u64
}

/// Puts UDP and IP headers with the traffic class (DS field and ECN bits) in front of `buf`, not to be
/// fragmented; what its checksum is then.
///
/// The content is authenticated by its tag. Over IPv4 the checksum is zero, which says that there
/// is none (RFC 768). Over IPv6 that is allowed for tunnels (RFC 6935), but firewalls and
/// translators on the way drop such datagrams; so there is one, left to the port to complete.
///
/// # Errors
/// `NoRoom` without headroom, or above 64 KiB; `BadVersion` if the addresses are of two families.
pub(crate) fn wrap<B: Buffer>(
    buf: &mut B,
    from: SocketAddr,
    to: SocketAddr,
    class: u8,
) -> Result<Checksum, WireError> {
    let payload = buf.len();
    let datagram = payload + udp::HEADER_LEN;
    let ports = udp::Header {
        src_port: from.port(),
        dst_port: to.port(),
    };
    let headers = buf.prepend(header_len(&to.ip())).ok_or(WireError::NoRoom)?;
    let (ip, u) = headers
        .split_at_mut_checked(headers.len().saturating_sub(udp::HEADER_LEN))
        .ok_or(WireError::NoRoom)?;
    ports.emit(u, payload)?;
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = ipv4::Header {
                dscp_ecn: class,
                ..ipv4::Header::new(src, dst, ipv4::PROTOCOL_UDP)
            };
            header.emit(ip, datagram)?;
            Ok(Checksum::Verified)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = ipv6::Header {
                traffic_class: class,
                ..ipv6::Header::new(src, dst, ipv4::PROTOCOL_UDP)
            };
            header.emit(ip, datagram)?;
            udp::fill_partial_checksum(u, src, dst, datagram)?;
            Ok(Checksum::Partial {
                start: (ethernet::HEADER_LEN + ipv6::HEADER_LEN) as u16,
                offset: udp::CHECKSUM_AT as u16,
            })
        }
        _ => Err(WireError::BadVersion),
    }
}

/// Headers between two IPv4 addresses, made once for many packets; an Ethernet header in front, to be
/// used once the neighbour's address is [known](Self::set_neighbour).
pub(crate) struct Headers {
    bytes: [u8; ETHERNET + HEADERS],
    /// Of the IPv4 header, without length and traffic class.
    sum: Sum,
}

const ETHERNET: usize = ethernet::HEADER_LEN;
const HEADERS: usize = ipv4::HEADER_LEN + udp::HEADER_LEN;

impl Headers {
    /// `None` where the addresses are not both of IPv4.
    pub(crate) fn new(from: SocketAddr, to: SocketAddr) -> Option<Self> {
        let mut empty = HeapBuf::with_capacity(0);
        let checksum = wrap(&mut empty, from, to, 0).ok()?;
        if checksum != Checksum::Verified {
            return None;
        }
        let mut bytes = [0; ETHERNET + HEADERS];
        let ip = bytes.get_mut(ETHERNET..)?;
        ip.copy_from_slice(empty.bytes());
        for field in [TOTAL_LEN_AT, ipv4::CHECKSUM_AT] {
            ip.get_mut(field..field + 2)?.fill(0);
        }
        let sum = Sum::ZERO.bytes(ip.get(..ipv4::HEADER_LEN)?);
        Some(Self { bytes, sum })
    }

    /// From `source` to the neighbour `destination`.
    pub(crate) fn set_neighbour(&mut self, destination: [u8; 6], source: [u8; 6]) {
        let header = ethernet::Header {
            dst: destination,
            src: source,
            ethertype: ethernet::ETHERTYPE_IPV4,
        };
        // There is room.
        let _ = header.emit(&mut self.bytes);
    }

    /// As [`wrap`].
    ///
    /// # Errors
    /// `NoRoom`.
    #[inline]
    pub(crate) fn put<B: Buffer>(&self, buf: &mut B, class: u8) -> Result<(), WireError> {
        let payload = buf.len();
        let headers = buf.prepend(HEADERS).and_then(|h| h.first_chunk_mut());
        let headers: &mut [u8; HEADERS] = headers.ok_or(WireError::NoRoom)?;
        *headers = *self.bytes.last_chunk().ok_or(WireError::NoRoom)?;
        self.complete(headers, payload, class)
    }

    /// As [`put`](Self::put), with the Ethernet header.
    ///
    /// # Errors
    /// `NoRoom`.
    #[inline]
    pub(crate) fn put_frame<B: Buffer>(&self, buf: &mut B, class: u8) -> Result<(), WireError> {
        let payload = buf.len();
        let room = buf
            .prepend(self.bytes.len())
            .and_then(|h| h.first_chunk_mut());
        let frame: &mut [u8; ETHERNET + HEADERS] = room.ok_or(WireError::NoRoom)?;
        *frame = self.bytes;
        let headers = frame.last_chunk_mut().ok_or(WireError::NoRoom)?;
        self.complete(headers, payload, class)
    }

    /// What depends on the packet.
    #[inline]
    fn complete(
        &self,
        headers: &mut [u8; HEADERS],
        payload: usize,
        class: u8,
    ) -> Result<(), WireError> {
        let total = u16::try_from(payload + HEADERS).map_err(|_| WireError::NoRoom)?;
        let datagram = total - ipv4::HEADER_LEN as u16;
        let sum = self.sum.word(total).word(u16::from(class));
        let mut set = |at: usize, word: u16| {
            let [high, low] = word.to_be_bytes();
            (headers[at], headers[at + 1]) = (high, low);
        };
        set(TOTAL_LEN_AT, total);
        set(ipv4::CHECKSUM_AT, sum.checksum());
        set(UDP_LENGTH_AT, datagram);
        headers[CLASS_AT] = class;
        Ok(())
    }
}

const CLASS_AT: usize = 1;
const TOTAL_LEN_AT: usize = 2;
const UDP_LENGTH_AT: usize = ipv4::HEADER_LEN + 4;

#[cfg(test)]
mod tests {
    use mef_packet::wire::checksum::complete_partial;
    use mef_packet::wire::ip;

    use super::*;

    #[test]
    fn a_packet_is_wrapped_in_the_family_of_its_peer() {
        for (from, to, overhead) in [
            ("192.0.2.1:4800", "192.0.2.2:4801", 28),
            ("[2001:db8::1]:4800", "[2001:db8::2]:4801", 48),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut buf = HeapBuf::from_slice(&[0x5a; 333]);
            let checksum = wrap(&mut buf, from, to, 0xb9).unwrap();
            assert_eq!(header_len(&to.ip()), overhead);
            assert_eq!(buf.len(), overhead + 333);
            // As the port does before the frame leaves; its offsets count from the Ethernet header.
            if let Checksum::Partial { start, offset } = checksum {
                complete_partial(buf.bytes_mut(), start - 14, offset).unwrap();
            }
            let v = ip::View::parse(buf.bytes()).unwrap();
            assert_eq!((v.src(), v.dst(), v.ttl()), (from.ip(), to.ip(), 64));
            assert!(v.dont_fragment() && v.dscp_ecn() == 0xb9);
            let u = udp::View::parse(v.payload()).unwrap();
            assert_eq!((u.src_port(), u.dst_port()), (4800, 4801));
            assert_eq!(u.payload(), [0x5a; 333]);
            assert_eq!(u.checksum() != 0, to.is_ipv6());
            u.verify_checksum(v.src(), v.dst()).unwrap();
        }
        let (v4, v6) = (
            "192.0.2.1:1".parse().unwrap(),
            "[2001:db8::2]:1".parse().unwrap(),
        );
        let mut buf = HeapBuf::from_slice(&[1; 9]);
        assert_eq!(wrap(&mut buf, v4, v6, 0), Err(WireError::BadVersion));
        let mut buf = HeapBuf::from_slice(&[1; 65_535]);
        assert_eq!(wrap(&mut buf, v6, v6, 0), Err(WireError::NoRoom));
    }

    #[test]
    fn prepared_headers_are_the_same() {
        let (from, to): (SocketAddr, SocketAddr) = (
            "192.0.2.1:4800".parse().unwrap(),
            "198.51.100.7:4801".parse().unwrap(),
        );
        let mut headers = Headers::new(from, to).unwrap();
        headers.set_neighbour([2; 6], [4; 6]);
        for (len, class) in [(0, 0), (1, 3), (64, 0xb9), (1400, 0), (9000, 0xff)] {
            let (mut a, mut b) = (
                HeapBuf::from_slice(&vec![7; len]),
                HeapBuf::from_slice(&vec![7; len]),
            );
            wrap(&mut a, from, to, class).unwrap();
            headers.put(&mut b, class).unwrap();
            assert_eq!(a.bytes(), b.bytes());
            let mut frame = HeapBuf::from_slice(&vec![7; len]);
            headers.put_frame(&mut frame, class).unwrap();
            let (ethernet, ip) = frame.bytes().split_at(14);
            assert_eq!(
                ethernet,
                [[2; 6], [4; 6]]
                    .concat()
                    .iter()
                    .chain(&[8, 0])
                    .copied()
                    .collect::<Vec<u8>>()
            );
            assert_eq!(a.bytes(), ip);
        }
        let mut large = HeapBuf::from_slice(&[1; 65_535]);
        assert_eq!(headers.put(&mut large, 0), Err(WireError::NoRoom));
        assert_eq!(headers.put_frame(&mut large, 0), Err(WireError::NoRoom));
        let v6 = "[2001:db8::2]:1".parse().unwrap();
        assert!(Headers::new(v6, v6).is_none() && Headers::new(from, v6).is_none());
    }
}
