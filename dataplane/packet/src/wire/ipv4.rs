//! IPv4 (RFC 791): the header with all its length checks, and the few changes
//! that a router makes to it, each with an incremental checksum update (RFC 1624).

use super::checksum::{self, Sum};
use super::{array, put, u16_at, u8_at, WireError};
use core::net::Ipv4Addr;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
pub const MAX_HEADER_LEN: usize = 60;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const TOTAL_LEN_AT: usize = 2;
const TTL_AT: usize = 8;
/// Where the header checksum stands.
pub const CHECKSUM_AT: usize = 10;

/// A checked view of an IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// A view of the packet that `bytes` begin with; what lies behind its total
    /// length (Ethernet padding) is left out.
    ///
    /// # Errors
    /// `Truncated`, `BadVersion`, `BadHeaderLength`, `BadLength`, `BadChecksum`.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let view = Self::parse_unverified(bytes)?;
        view.verify_checksum()?;
        Ok(view)
    }

    /// As [`parse`](Self::parse), without looking at the header checksum.
    ///
    /// # Errors
    /// `Truncated`, `BadVersion`, `BadHeaderLength`, `BadLength`.
    #[inline]
    pub fn parse_unverified(bytes: &'a [u8]) -> Result<Self, WireError> {
        let view = Self::parse_quoted(bytes)?;
        let total = usize::from(view.total_len());
        let payload_len = total
            .checked_sub(view.header.len())
            .ok_or(WireError::BadLength)?;
        let payload = view
            .payload
            .get(..payload_len)
            .ok_or(WireError::Truncated)?;
        Ok(Self { payload, ..view })
    }

    /// As [`parse`](Self::parse), for the start of a packet that an ICMP error quotes: the payload
    /// may be cut short, the checksum is not looked at.
    ///
    /// # Errors
    /// `Truncated` if the header is not whole, `BadVersion`, `BadHeaderLength`.
    #[inline]
    pub fn parse_quoted(bytes: &'a [u8]) -> Result<Self, WireError> {
        let first = *bytes.first().ok_or(WireError::Truncated)?;
        if first >> 4 != 4 {
            return Err(WireError::BadVersion);
        }
        let header_len = usize::from(first & 0x0f) * 4;
        if header_len < HEADER_LEN {
            return Err(WireError::BadHeaderLength);
        }
        let (header, payload) = bytes
            .split_at_checked(header_len)
            .ok_or(WireError::Truncated)?;
        Ok(Self { header, payload })
    }

    /// # Errors
    /// `BadChecksum`.
    #[inline]
    pub fn verify_checksum(&self) -> Result<(), WireError> {
        checksum::verify(Sum::ZERO, self.header)
    }
    pub fn header_len(&self) -> usize {
        self.header.len()
    }
    /// Bytes of header and payload, as stated.
    pub fn total_len(&self) -> u16 {
        u16_at(self.header, TOTAL_LEN_AT)
    }
    /// The DS field (RFC 2474) and the ECN bits (RFC 3168).
    pub fn dscp_ecn(&self) -> u8 {
        u8_at(self.header, 1)
    }
    pub fn ident(&self) -> u16 {
        u16_at(self.header, 4)
    }
    pub fn dont_fragment(&self) -> bool {
        u16_at(self.header, 6) & DONT_FRAGMENT != 0
    }
    pub fn more_fragments(&self) -> bool {
        u16_at(self.header, 6) & MORE_FRAGMENTS != 0
    }
    /// Where in the original packet's payload this fragment begins, bytes.
    pub fn fragment_offset(&self) -> u16 {
        (u16_at(self.header, 6) & 0x1fff) << 3
    }
    /// Whether this is one of several fragments, the first included.
    pub fn is_fragment(&self) -> bool {
        u16_at(self.header, 6) & 0x3fff != 0
    }
    pub fn ttl(&self) -> u8 {
        u8_at(self.header, TTL_AT)
    }
    pub fn protocol(&self) -> u8 {
        u8_at(self.header, 9)
    }
    pub fn checksum(&self) -> u16 {
        u16_at(self.header, CHECKSUM_AT)
    }
    pub fn src(&self) -> Ipv4Addr {
        array::<4>(self.header, 12).into()
    }
    pub fn dst(&self) -> Ipv4Addr {
        array::<4>(self.header, 16).into()
    }
    /// Options with their padding, unparsed.
    pub fn options(&self) -> &'a [u8] {
        self.header.get(HEADER_LEN..).unwrap_or(&[])
    }
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
    /// The fields as a value.
    pub fn header(&self) -> Header {
        Header {
            dscp_ecn: self.dscp_ecn(),
            ident: self.ident(),
            dont_fragment: self.dont_fragment(),
            more_fragments: self.more_fragments(),
            fragment_offset: self.fragment_offset(),
            ttl: self.ttl(),
            protocol: self.protocol(),
            src: self.src(),
            dst: self.dst(),
        }
    }
}

/// The fields of a header without options, for emitting one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub dscp_ecn: u8,
    pub ident: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// Bytes, a multiple of 8.
    pub fragment_offset: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
}

impl Header {
    /// A whole packet with TTL 64 that must not be fragmented (RFC 6864: its identification says nothing).
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8) -> Self {
        Self {
            dscp_ecn: 0,
            ident: 0,
            dont_fragment: true,
            more_fragments: false,
            fragment_offset: 0,
            ttl: 64,
            protocol,
            src,
            dst,
        }
    }

    /// Writes 20 bytes of header, checksum included, for `payload_len` bytes that follow.
    ///
    /// # Errors
    /// `NoRoom` if `packet` is shorter than 20 bytes or header and payload exceed 65535.
    pub fn emit(&self, packet: &mut [u8], payload_len: usize) -> Result<(), WireError> {
        let total = u16::try_from(HEADER_LEN + payload_len).map_err(|_| WireError::NoRoom)?;
        let b = packet.get_mut(..HEADER_LEN).ok_or(WireError::NoRoom)?;
        let flags = if self.dont_fragment { DONT_FRAGMENT } else { 0 }
            | if self.more_fragments {
                MORE_FRAGMENTS
            } else {
                0
            }
            | self.fragment_offset >> 3;
        put(b, 0, &[0x45, self.dscp_ecn])?;
        put(b, TOTAL_LEN_AT, &total.to_be_bytes())?;
        put(b, 4, &self.ident.to_be_bytes())?;
        put(b, 6, &flags.to_be_bytes())?;
        put(b, TTL_AT, &[self.ttl, self.protocol, 0, 0])?;
        put(b, 12, &self.src.octets())?;
        put(b, 16, &self.dst.octets())?;
        checksum::fill(Sum::ZERO, b, CHECKSUM_AT)?;
        Ok(())
    }
}

/// Counts the TTL down by one and returns what is left (RFC 1812, 5.3.1). The
/// packet must have been parsed before.
///
/// # Errors
/// `TtlExpired`, and no change, if nothing would be left; `Truncated`.
#[inline]
pub fn decrement_ttl(packet: &mut [u8]) -> Result<u8, WireError> {
    if packet.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let old = u16_at(packet, TTL_AT);
    let ttl = (old >> 8) as u8;
    if ttl <= 1 {
        return Err(WireError::TtlExpired);
    }
    let new = old - 0x100;
    put(packet, TTL_AT, &new.to_be_bytes())?;
    checksum::update_at(packet, CHECKSUM_AT, old, new)?;
    Ok(ttl - 1)
}

/// Sets the DS field and the ECN bits.
///
/// # Errors
/// `Truncated`.
pub fn set_dscp_ecn(packet: &mut [u8], value: u8) -> Result<(), WireError> {
    let old = u16_at(packet, 0);
    set_word(packet, 0, old & 0xff00 | u16::from(value))
}

/// Sets the total length, header included.
///
/// # Errors
/// `Truncated` if `packet` has no whole header. The length is not checked against it.
pub fn set_total_len(packet: &mut [u8], total: u16) -> Result<(), WireError> {
    set_word(packet, TOTAL_LEN_AT, total)
}

fn set_word(packet: &mut [u8], at: usize, new: u16) -> Result<(), WireError> {
    if packet.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let old = u16_at(packet, at);
    put(packet, at, &new.to_be_bytes())?;
    checksum::update_at(packet, CHECKSUM_AT, old, new)
}

/// Computes the header checksum anew.
///
/// # Errors
/// `Truncated`, `BadVersion`, `BadHeaderLength` as for a view.
pub fn fill_checksum(packet: &mut [u8]) -> Result<(), WireError> {
    let len = View::parse_quoted(packet)?.header_len();
    let header = packet.get_mut(..len).ok_or(WireError::Truncated)?;
    checksum::fill(Sum::ZERO, header, CHECKSUM_AT)?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        pub fn any_header()(
            dscp_ecn: u8, ident: u16, dont_fragment: bool, more_fragments: bool, offset in 0u16..8192,
            ttl: u8, protocol: u8, src: u32, dst: u32,
        ) -> Header {
            Header {
                dscp_ecn, ident, dont_fragment, more_fragments, fragment_offset: offset << 3, ttl, protocol,
                src: Ipv4Addr::from_bits(src), dst: Ipv4Addr::from_bits(dst),
            }
        }
    }

    /// The usual textbook example, with the checksum that it gives.
    const EXAMPLE: [u8; 20] = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn reads_a_header_field_by_field() {
        let v = View::parse_quoted(&EXAMPLE).unwrap();
        assert_eq!(
            (
                v.total_len(),
                v.ident(),
                v.dont_fragment(),
                v.ttl(),
                v.protocol()
            ),
            (115, 0, true, 64, 17)
        );
        assert_eq!((v.checksum(), v.verify_checksum()), (0xb861, Ok(())));
        assert_eq!(
            (v.src(), v.dst()),
            ([192, 168, 0, 1].into(), [192, 168, 0, 199].into())
        );
        let mut again = EXAMPLE;
        fill_checksum(&mut again).unwrap();
        assert_eq!(again, EXAMPLE);
        assert_eq!(View::parse(&EXAMPLE).unwrap_err(), WireError::Truncated);
    }

    #[test]
    fn names_what_is_wrong() {
        let mut b = [0u8; 40];
        Header::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17)
            .emit(&mut b, 20)
            .unwrap();
        let with = |at: usize, value: u8| {
            let mut c = b;
            c[at] = value;
            if at != 11 && at != 0 {
                fill_checksum(&mut c).unwrap();
            }
            View::parse(&c).map(|_| ())
        };
        assert_eq!(with(1, 0), Ok(()));
        assert_eq!(with(0, 0x65), Err(WireError::BadVersion));
        assert_eq!(with(0, 0x44), Err(WireError::BadHeaderLength));
        assert_eq!(with(0, 0x4f), Err(WireError::Truncated));
        assert_eq!(with(3, 41), Err(WireError::Truncated));
        assert_eq!(with(3, 19), Err(WireError::BadLength));
        assert_eq!(with(11, b[11] ^ 1), Err(WireError::BadChecksum));
        assert_eq!(View::parse(&[]).map(|_| ()), Err(WireError::Truncated));
        assert_eq!(View::parse(&b[..19]).map(|_| ()), Err(WireError::Truncated));
    }

    #[test]
    fn options_are_kept_apart_from_the_payload() {
        let mut b = [0u8; 32];
        Header::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 17)
            .emit(&mut b, 12)
            .unwrap();
        b[0] = 0x46;
        b[20..24].copy_from_slice(&[7, 3, 4, 0]);
        b[24] = 0x55;
        fill_checksum(&mut b).unwrap();
        let v = View::parse(&b).unwrap();
        assert_eq!(
            (
                v.header_len(),
                v.options(),
                v.payload().len(),
                v.payload()[0]
            ),
            (24, &[7, 3, 4, 0][..], 8, 0x55)
        );
    }

    proptest! {
        #[test]
        fn parses_what_it_emits(header in any_header(), payload in prop::collection::vec(any::<u8>(), 0..100), padding in 0usize..50) {
            let mut packet = vec![0; HEADER_LEN];
            packet.extend_from_slice(&payload);
            header.emit(&mut packet, payload.len()).unwrap();
            packet.resize(packet.len() + padding, 0);
            let v = View::parse(&packet).unwrap();
            prop_assert_eq!(v.header(), header);
            prop_assert_eq!(v.payload(), &payload[..]);
            prop_assert_eq!(v.is_fragment(), header.more_fragments || header.fragment_offset != 0);
        }

        #[test]
        fn changes_keep_the_checksum_right(header in any_header(), len in 0usize..60000, dscp: u8, total: u16) {
            let mut packet = [0; HEADER_LEN];
            header.emit(&mut packet, len).unwrap();
            let sound = |p: &[u8]| View::parse_quoted(p).unwrap().verify_checksum().is_ok();
            set_dscp_ecn(&mut packet, dscp).unwrap();
            prop_assert!(sound(&packet));
            set_total_len(&mut packet, total).unwrap();
            prop_assert!(sound(&packet));
            match decrement_ttl(&mut packet) {
                Ok(ttl) => prop_assert_eq!(ttl, header.ttl - 1),
                Err(e) => prop_assert!(e == WireError::TtlExpired && header.ttl <= 1),
            }
            prop_assert!(sound(&packet));
            let v = View::parse_quoted(&packet).unwrap();
            prop_assert_eq!((v.dscp_ecn(), v.total_len()), (dscp, total));
            prop_assert_eq!(v.ttl(), if header.ttl <= 1 { header.ttl } else { header.ttl - 1 });
        }

        #[test]
        fn too_long_is_refused(header in any_header(), len in 65516usize..70000) {
            prop_assert_eq!(header.emit(&mut [0; 20], len), Err(WireError::NoRoom));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), v4: bool) {
            if let (true, Some(b)) = (v4, bytes.first_mut()) {
                *b = 0x40 | *b & 0x0f;
            }
            for view in [View::parse(&bytes), View::parse_unverified(&bytes), View::parse_quoted(&bytes)].into_iter().flatten() {
                prop_assert!(view.header_len() + view.payload().len() <= bytes.len());
                prop_assert_eq!(view.options().len(), view.header_len() - 20);
                let _ = view.header();
            }
            let _ = (decrement_ttl(&mut bytes), fill_checksum(&mut bytes), set_total_len(&mut bytes, 7), set_dscp_ecn(&mut bytes, 9));
        }
    }
}
