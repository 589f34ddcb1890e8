//! What stands around a link packet on its way: UDP over IPv4 or IPv6, whichever
//! the peer's address is. One figure for each family feeds every size computed
//! from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mef_packet::wire::{ethernet, ipv4, ipv6, udp, WireError};
use mef_packet::{Buffer, Checksum};

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

#[cfg(test)]
mod tests {
    use mef_packet::wire::checksum::complete_partial;
    use mef_packet::wire::ip;
    use mef_packet::HeapBuf;

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
}
