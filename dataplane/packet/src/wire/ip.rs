//! A packet of either version: what the router asks of a header without
//! caring which of the two it is.

use core::net::IpAddr;

use super::{ipv4, ipv6, WireError};

/// A checked view of an IPv4 or IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    V4(ipv4::View<'a>),
    V6(ipv6::View<'a>),
}

/// The version that the first byte of `packet` states; 0 for no packet at all.
#[inline]
pub fn version(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |b| b >> 4)
}

/// Bytes of a header without options, of the family of `address`.
pub const fn header_len_of(address: &IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    }
}

impl<'a> View<'a> {
    /// A view of the packet that `bytes` begin with, header checksum included where there is one.
    ///
    /// # Errors
    /// Those of [`ipv4::View::parse`] and [`ipv6::View::parse`].
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        match version(bytes) {
            6 => ipv6::View::parse(bytes).map(Self::V6),
            _ => ipv4::View::parse(bytes).map(Self::V4),
        }
    }

    /// As [`parse`](Self::parse), without looking at IPv4's header checksum.
    ///
    /// # Errors
    /// As [`parse`](Self::parse) but `BadChecksum`.
    #[inline]
    pub fn parse_unverified(bytes: &'a [u8]) -> Result<Self, WireError> {
        match version(bytes) {
            6 => ipv6::View::parse(bytes).map(Self::V6),
            _ => ipv4::View::parse_unverified(bytes).map(Self::V4),
        }
    }

    /// A packet of which an ICMP error quotes the start.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), for the headers alone.
    #[inline]
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, WireError> {
        match version(bytes) {
            6 => ipv6::View::parse_quoted(bytes).map(Self::V6),
            _ => ipv4::View::parse_quoted(bytes).map(Self::V4),
        }
    }

    pub fn src(&self) -> IpAddr {
        match self {
            Self::V4(v) => v.src().into(),
            Self::V6(v) => v.src().into(),
        }
    }
    pub fn dst(&self) -> IpAddr {
        match self {
            Self::V4(v) => v.dst().into(),
            Self::V6(v) => v.dst().into(),
        }
    }
    /// The protocol of the payload, IPv6 extension headers walked over.
    pub fn protocol(&self) -> u8 {
        match self {
            Self::V4(v) => v.protocol(),
            Self::V6(v) => v.protocol(),
        }
    }
    /// Whether the payload is ICMP of the packet's own version.
    pub fn is_icmp(&self) -> bool {
        match self {
            Self::V4(v) => v.protocol() == ipv4::PROTOCOL_ICMP,
            Self::V6(v) => v.protocol() == ipv6::PROTOCOL_ICMPV6,
        }
    }
    /// Time to live or hop limit.
    pub fn ttl(&self) -> u8 {
        match self {
            Self::V4(v) => v.ttl(),
            Self::V6(v) => v.hop_limit(),
        }
    }
    /// The DS field and the ECN bits.
    pub fn dscp_ecn(&self) -> u8 {
        match self {
            Self::V4(v) => v.dscp_ecn(),
            Self::V6(v) => v.traffic_class(),
        }
    }
    /// Bytes in front of the payload.
    pub fn header_len(&self) -> usize {
        match self {
            Self::V4(v) => v.header_len(),
            Self::V6(v) => v.header_len(),
        }
    }
    /// Bytes of header and payload, as stated.
    pub fn total_len(&self) -> usize {
        match self {
            Self::V4(v) => usize::from(v.total_len()),
            Self::V6(v) => v.total_len(),
        }
    }
    /// Whether this is one of several fragments, the first included.
    pub fn is_fragment(&self) -> bool {
        match self {
            Self::V4(v) => v.is_fragment(),
            Self::V6(v) => v.is_fragment(),
        }
    }
    /// Where in the original packet this fragment begins, bytes; 0 for a whole packet.
    pub fn fragment_offset(&self) -> u16 {
        match self {
            Self::V4(v) => v.fragment_offset(),
            Self::V6(v) => v.fragment().map_or(0, |f| f.offset),
        }
    }
    /// Whether a router must not cut it: never one of IPv6 (RFC 8200, 5).
    pub fn dont_fragment(&self) -> bool {
        match self {
            Self::V4(v) => v.dont_fragment(),
            Self::V6(_) => true,
        }
    }
    pub fn payload(&self) -> &'a [u8] {
        match self {
            Self::V4(v) => v.payload(),
            Self::V6(v) => v.payload(),
        }
    }
}

/// Counts the time to live down by one and returns what is left. The packet must have been parsed before.
///
/// # Errors
/// `TtlExpired`, and no change, if nothing would be left; `Truncated`.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) -> Result<u8, WireError> {
    match version(packet) {
        6 => ipv6::decrement_hop_limit(packet),
        _ => ipv4::decrement_ttl(packet),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_answer_alike() {
        let mut v4 = vec![0; 28];
        ipv4::Header {
            dscp_ecn: 0x2e,
            ttl: 9,
            ..ipv4::Header::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17)
        }
        .emit(&mut v4, 8)
        .unwrap();
        let mut v6 = vec![0; 48];
        ipv6::Header {
            traffic_class: 0x2e,
            hop_limit: 9,
            ..ipv6::Header::new(
                "2001:db8::1".parse().unwrap(),
                "2001:db8::2".parse().unwrap(),
                17,
            )
        }
        .emit(&mut v6, 8)
        .unwrap();
        for (mut packet, src, header) in [(v4, "10.0.0.1", 20), (v6, "2001:db8::1", 40)] {
            let v = View::parse(&packet).unwrap();
            let src: IpAddr = src.parse().unwrap();
            assert_eq!((v.src(), v.protocol(), v.ttl()), (src, 17, 9));
            assert_eq!((v.header_len(), header_len_of(&v.src())), (header, header));
            assert_eq!((v.total_len(), v.payload().len()), (packet.len(), 8));
            assert!(!v.is_fragment() && !v.is_icmp() && v.dont_fragment());
            assert_eq!(v.dscp_ecn(), 0x2e);
            assert_eq!(decrement_ttl(&mut packet), Ok(8));
            let v = View::parse(&packet).unwrap();
            assert_eq!((v.ttl(), v.dscp_ecn()), (8, 0x2e));
        }
        assert_eq!(View::parse(&[]).unwrap_err(), WireError::Truncated);
        assert_eq!(View::parse(&[0x55; 60]).unwrap_err(), WireError::BadVersion);
    }
}
