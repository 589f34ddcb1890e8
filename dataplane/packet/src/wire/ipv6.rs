//! IPv6 (RFC 8200): the header with its length checks, and the walk over the
//! extension headers to what the packet carries.
//!
//! ```text
//!  header 40 | hop-by-hop | destination options | routing | fragment | ... | payload
//!            '--------- at most 8 of them, walked over -----------------'   protocol()
//! ```
//!
//! The walk ends early, and what it stands at counts as the payload, where
//! nothing behind it can be read or may be acted on: a later fragment, ESP, AH
//! (its content must stay as it is), a header that nobody here knows, and a
//! routing header that still has stops to make (its transport checksum is over
//! another destination than the header's). Refused are more than eight headers,
//! a hop-by-hop header anywhere but first, headers that end behind the packet,
//! and jumbograms (RFC 2675), which no port of the router carries.

use super::{array, put, u16_at, u32_at, u8_at, WireError};
use core::net::Ipv6Addr;

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Extension headers that are walked over.
pub const MAX_EXTENSIONS: usize = 8;
/// What every IPv6 link carries (section 5), bytes.
pub const MIN_MTU: u16 = 1280;

pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const PROTOCOL_ICMPV6: u8 = 58;
pub const NO_NEXT_HEADER: u8 = 59;

const PAYLOAD_LEN_AT: usize = 4;
const NEXT_HEADER_AT: usize = 6;
const HOP_LIMIT_AT: usize = 7;

/// Where in the original packet a fragment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes.
    pub offset: u16,
    pub more: bool,
    pub ident: u32,
}

/// A checked view of an IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The fixed header and the extension headers that were walked over.
    header: &'a [u8],
    payload: &'a [u8],
    protocol: u8,
    protocol_at: u16,
    fragment: Option<Fragment>,
}

impl<'a> View<'a> {
    /// A view of the packet that `bytes` begin with; what lies behind its payload
    /// length (Ethernet padding) is left out.
    ///
    /// # Errors
    /// `Truncated`, `BadVersion`, `BadExtension`.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.first().is_some_and(|b| b >> 4 != 6) {
            return Err(WireError::BadVersion);
        }
        if bytes.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let end = HEADER_LEN + usize::from(u16_at(bytes, PAYLOAD_LEN_AT));
        Self::walk(bytes.get(..end).ok_or(WireError::Truncated)?)
    }

    /// As [`parse`](Self::parse), for the start of a packet that an ICMP error quotes: the payload may
    /// be cut short.
    ///
    /// # Errors
    /// `Truncated` if the headers are not whole, `BadVersion`, `BadExtension`.
    #[inline]
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.first().is_some_and(|b| b >> 4 != 6) {
            return Err(WireError::BadVersion);
        }
        if bytes.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        Self::walk(bytes)
    }

    /// `packet` has a whole fixed header.
    #[inline]
    fn walk(packet: &'a [u8]) -> Result<Self, WireError> {
        let mut protocol = u8_at(packet, NEXT_HEADER_AT);
        let mut at = HEADER_LEN;
        let mut protocol_at = NEXT_HEADER_AT;
        let mut fragment = None;
        let mut walked = 0;
        while matches!(
            protocol,
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS
        ) {
            walked += 1;
            if walked > MAX_EXTENSIONS || (protocol == HOP_BY_HOP && walked > 1) {
                return Err(WireError::BadExtension);
            }
            let extension = packet.get(at..).unwrap_or(&[]);
            let len = match protocol {
                FRAGMENT => 8,
                _ => (usize::from(u8_at(extension, 1)) + 1) * 8,
            };
            let extension = extension.get(..len).ok_or(WireError::Truncated)?;
            if protocol == ROUTING && u8_at(extension, 3) != 0 {
                break;
            }
            if protocol == FRAGMENT {
                let word = u16_at(extension, 2);
                let found = Fragment {
                    offset: word & 0xfff8,
                    more: word & 1 != 0,
                    ident: u32_at(extension, 4),
                };
                // A packet that is its only fragment is none (RFC 6946).
                if found.offset != 0 || found.more {
                    fragment = Some(found);
                }
            }
            protocol = u8_at(extension, 0);
            protocol_at = at;
            at += len;
            if fragment.is_some_and(|f| f.offset != 0) {
                break;
            }
        }
        let (header, payload) = packet.split_at_checked(at).ok_or(WireError::Truncated)?;
        Ok(Self {
            header,
            payload,
            protocol,
            protocol_at: u16::try_from(protocol_at).unwrap_or(u16::MAX),
            fragment,
        })
    }

    /// Bytes in front of the payload, extension headers included.
    pub fn header_len(&self) -> usize {
        self.header.len()
    }
    /// Bytes of header and payload, as stated.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + usize::from(u16_at(self.header, PAYLOAD_LEN_AT))
    }
    /// The DS field and the ECN bits.
    pub fn traffic_class(&self) -> u8 {
        (u16_at(self.header, 0) >> 4) as u8
    }
    pub fn flow_label(&self) -> u32 {
        u32_at(self.header, 0) & 0xf_ffff
    }
    pub fn hop_limit(&self) -> u8 {
        u8_at(self.header, HOP_LIMIT_AT)
    }
    /// The protocol of the payload: the next header that the walk ended at.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }
    /// Where in the packet the byte is that names the protocol.
    pub fn protocol_at(&self) -> u16 {
        self.protocol_at
    }
    /// `None` for a whole packet.
    pub fn fragment(&self) -> Option<Fragment> {
        self.fragment
    }
    /// Whether this is one of several fragments, the first included.
    pub fn is_fragment(&self) -> bool {
        self.fragment.is_some()
    }
    /// Whether there are extension headers in front of the payload.
    pub fn has_extensions(&self) -> bool {
        self.header.len() > HEADER_LEN
    }
    pub fn src(&self) -> Ipv6Addr {
        array::<16>(self.header, 8).into()
    }
    pub fn dst(&self) -> Ipv6Addr {
        array::<16>(self.header, 24).into()
    }
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// The fields of a header without extension headers, for emitting one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    pub hop_limit: u8,
    pub next_header: u8,
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
}

impl Header {
    /// A packet with hop limit 64.
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8) -> Self {
        Self {
            traffic_class: 0,
            flow_label: 0,
            hop_limit: 64,
            next_header,
            src,
            dst,
        }
    }

    /// Writes 40 bytes of header for `payload_len` bytes that follow.
    ///
    /// # Errors
    /// `NoRoom` if `packet` is shorter than 40 bytes or the payload exceeds 65535.
    pub fn emit(&self, packet: &mut [u8], payload_len: usize) -> Result<(), WireError> {
        let payload_len = u16::try_from(payload_len).map_err(|_| WireError::NoRoom)?;
        let b = packet.get_mut(..HEADER_LEN).ok_or(WireError::NoRoom)?;
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        put(b, 0, &first.to_be_bytes())?;
        put(b, PAYLOAD_LEN_AT, &payload_len.to_be_bytes())?;
        put(b, NEXT_HEADER_AT, &[self.next_header, self.hop_limit])?;
        put(b, 8, &self.src.octets())?;
        put(b, 24, &self.dst.octets())
    }
}

/// Counts the hop limit down by one and returns what is left. The packet must have been parsed before.
///
/// # Errors
/// `TtlExpired`, and no change, if nothing would be left; `Truncated`.
#[inline]
pub fn decrement_hop_limit(packet: &mut [u8]) -> Result<u8, WireError> {
    if packet.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let left = u8_at(packet, HOP_LIMIT_AT).saturating_sub(1);
    if left == 0 {
        return Err(WireError::TtlExpired);
    }
    put(packet, HOP_LIMIT_AT, &[left])?;
    Ok(left)
}

/// Sets the DS field and the ECN bits.
///
/// # Errors
/// `Truncated`.
pub fn set_traffic_class(packet: &mut [u8], value: u8) -> Result<(), WireError> {
    if packet.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let word = u16_at(packet, 0) & 0xf00f | u16::from(value) << 4;
    put(packet, 0, &word.to_be_bytes())
}

/// The multicast group in which a node hears solicitations for `address` (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let low = address.to_bits() & 0xff_ffff;
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low)
}

/// The Ethernet address of a multicast group (RFC 2464, 7).
pub fn multicast_mac(group: Ipv6Addr) -> super::MacAddr {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The link-local address that follows from an Ethernet address (RFC 2464, 5; modified EUI-64).
pub fn link_local(mac: super::MacAddr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id))
}

/// Whether `address` has a meaning on one link only (fe80::/10).
pub const fn is_link_local(address: Ipv6Addr) -> bool {
    address.to_bits() >> 118 == 0x3fa
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        pub fn any_header()(traffic_class: u8, flow_label in 0u32..1 << 20, hop_limit: u8, src: u128, dst: u128) -> Header {
            // Next header TCP, which no walk goes over.
            Header { traffic_class, flow_label, hop_limit, next_header: 6, src: src.into(), dst: dst.into() }
        }
    }

    fn header(next_header: u8) -> Header {
        Header::new(
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
            next_header,
        )
    }

    /// A packet with these extension headers, the payload type 6 and 12 bytes of payload. What an
    /// extension says is its next header is put right.
    fn with(extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let len: usize = extensions.iter().map(|e| e.1.len()).sum();
        let mut packet = vec![0; HEADER_LEN];
        let first = extensions.first().map_or(6, |e| e.0);
        header(first).emit(&mut packet, len + 12).unwrap();
        for (i, (_, bytes)) in extensions.iter().enumerate() {
            let at = packet.len();
            packet.extend(bytes);
            packet[at] = extensions.get(i + 1).map_or(6, |e| e.0);
        }
        packet.extend([0xab; 12]);
        packet
    }

    /// An options header of `words` times 8 bytes.
    fn options(words: u8) -> Vec<u8> {
        let mut b = vec![0; usize::from(words) * 8];
        b[1] = words - 1;
        b
    }

    fn fragment(offset: u16, more: bool) -> Vec<u8> {
        let mut b = vec![0, 0];
        b.extend((offset | u16::from(more)).to_be_bytes());
        b.extend([9, 8, 7, 6]);
        b
    }

    fn routing(kind: u8, left: u8) -> Vec<u8> {
        let mut b = vec![0; 24];
        b[1..4].copy_from_slice(&[2, kind, left]);
        b
    }

    #[test]
    fn reads_a_header_field_by_field() {
        let mut b = vec![0; HEADER_LEN];
        let h = Header {
            traffic_class: 0xb9,
            flow_label: 0xabcde,
            hop_limit: 7,
            ..header(17)
        };
        h.emit(&mut b, 3).unwrap();
        assert_eq!(b[..8], [0x6b, 0x9a, 0xbc, 0xde, 0, 3, 17, 7]);
        assert_eq!(View::parse(&b).unwrap_err(), WireError::Truncated);
        b.extend([1, 2, 3, 0, 0]);
        let v = View::parse(&b).unwrap();
        assert_eq!(
            (v.traffic_class(), v.flow_label(), v.hop_limit()),
            (0xb9, 0xabcde, 7)
        );
        assert_eq!((v.src(), v.dst(), v.protocol()), (h.src, h.dst, 17));
        assert_eq!((v.payload(), v.total_len()), (&[1, 2, 3][..], 43));
        assert!(!v.is_fragment() && !v.has_extensions());
        set_traffic_class(&mut b, 0x46).unwrap();
        assert_eq!(decrement_hop_limit(&mut b), Ok(6));
        let v = View::parse(&b).unwrap();
        assert_eq!(
            (v.traffic_class(), v.flow_label(), v.hop_limit()),
            (0x46, 0xabcde, 6)
        );
        b[7] = 1;
        assert_eq!(decrement_hop_limit(&mut b), Err(WireError::TtlExpired));
        b[0] = 0x45;
        assert_eq!(View::parse(&b).unwrap_err(), WireError::BadVersion);
    }

    #[test]
    fn extension_headers_are_walked_over() {
        let all = with(&[
            (HOP_BY_HOP, options(1)),
            (DESTINATION_OPTIONS, options(3)),
            (ROUTING, routing(4, 0)),
            (FRAGMENT, fragment(0, false)),
            (DESTINATION_OPTIONS, options(2)),
        ]);
        let v = View::parse(&all).unwrap();
        assert_eq!((v.protocol(), v.payload()), (6, &[0xab; 12][..]));
        assert_eq!(v.header_len(), 40 + 8 + 24 + 24 + 8 + 16);
        assert_eq!(v.protocol_at(), 40 + 8 + 24 + 24 + 8);
        // An atomic fragment (RFC 6946) is a whole packet.
        assert!(!v.is_fragment() && v.has_extensions());
        for end in 0..all.len() {
            assert_eq!(
                View::parse(&all[..end]).unwrap_err(),
                WireError::Truncated,
                "{end}"
            );
        }
        let eight = vec![(DESTINATION_OPTIONS, options(1)); 8];
        assert_eq!(View::parse(&with(&eight)).unwrap().protocol(), 6);
        let nine = vec![(DESTINATION_OPTIONS, options(1)); 9];
        assert_eq!(
            View::parse(&with(&nine)).unwrap_err(),
            WireError::BadExtension
        );
        let late = [(DESTINATION_OPTIONS, options(1)), (HOP_BY_HOP, options(1))];
        assert_eq!(
            View::parse(&with(&late)).unwrap_err(),
            WireError::BadExtension
        );
    }

    #[test]
    fn the_walk_ends_where_nothing_behind_may_be_read() {
        let first = with(&[(FRAGMENT, fragment(0, true))]);
        let v = View::parse(&first).unwrap();
        let found = Fragment {
            offset: 0,
            more: true,
            ident: 0x0908_0706,
        };
        assert_eq!((v.fragment(), v.protocol()), (Some(found), 6));
        // What follows the fragment header of a later one only looks like a header.
        let later = with(&[
            (FRAGMENT, fragment(1280, false)),
            (DESTINATION_OPTIONS, options(1)),
        ]);
        let v = View::parse(&later).unwrap();
        assert_eq!(
            (v.protocol(), v.payload().len()),
            (DESTINATION_OPTIONS, 8 + 12)
        );
        assert_eq!(v.fragment().unwrap().offset, 1280);
        // On its way to another stop: the upper layer's checksum is not over this destination.
        let underway = with(&[(HOP_BY_HOP, options(1)), (ROUTING, routing(0, 1))]);
        let v = View::parse(&underway).unwrap();
        assert_eq!((v.protocol(), v.header_len()), (ROUTING, 48));
        for opaque in [50, 51, NO_NEXT_HEADER, 135, 253] {
            let v = with(&[(DESTINATION_OPTIONS, options(1)), (opaque, options(1))]);
            assert_eq!(View::parse(&v).unwrap().protocol(), opaque);
        }
    }

    #[test]
    fn addresses_that_follow_from_others() {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        assert_eq!(
            solicited_node(ip("2001:db8::12:3456:789a")),
            ip("ff02::1:ff56:789a")
        );
        assert_eq!(
            multicast_mac(ip("ff02::1:ff56:789a")),
            [0x33, 0x33, 0xff, 0x56, 0x78, 0x9a]
        );
        // The example of RFC 4291, appendix A, with its first bit of meaning inverted.
        assert_eq!(
            link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]),
            ip("fe80::3656:78ff:fe9a:bcde")
        );
        assert!(is_link_local(ip("fe80::1")) && is_link_local(ip("febf::1")));
        assert!(!is_link_local(ip("fec0::1")) && !is_link_local(ip("fe7f::1")));
    }

    proptest! {
        #[test]
        fn parses_what_it_emits(header in any_header(), payload in prop::collection::vec(any::<u8>(), 0..100), padding in 0usize..50) {
            let mut packet = vec![0; HEADER_LEN];
            packet.extend_from_slice(&payload);
            header.emit(&mut packet, payload.len()).unwrap();
            packet.resize(packet.len() + padding, 0);
            let v = View::parse(&packet).unwrap();
            prop_assert_eq!(v.payload(), &payload[..]);
            let again = Header {
                traffic_class: v.traffic_class(), flow_label: v.flow_label(), hop_limit: v.hop_limit(),
                next_header: v.protocol(), src: v.src(), dst: v.dst(),
            };
            prop_assert_eq!(again, header);
            prop_assert_eq!(header.emit(&mut packet, 65_536), Err(WireError::NoRoom));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), next in prop_oneof![Just(0u8), Just(43), Just(44), Just(60), any::<u8>()], v6: bool) {
            if let (true, Some(b)) = (v6, bytes.first_mut()) {
                *b = 0x60 | *b & 0x0f;
            }
            if let (true, Some(b)) = (v6, bytes.get_mut(4..7)) {
                b.copy_from_slice(&[0, b[1] & 0x7f, next]);
            }
            for view in [View::parse(&bytes), View::parse_quoted(&bytes)].into_iter().flatten() {
                prop_assert!(view.header_len() + view.payload().len() <= bytes.len());
                prop_assert!(view.header_len() >= HEADER_LEN);
                let _ = (view.src(), view.dst(), view.fragment(), view.total_len());
            }
            let _ = (decrement_hop_limit(&mut bytes), set_traffic_class(&mut bytes, 9));
        }
    }
}
