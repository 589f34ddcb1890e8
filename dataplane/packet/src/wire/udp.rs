//! UDP (RFC 768), over IPv4 and IPv6 (RFC 8200, 8.1).

use super::checksum::{self, pseudo_header};
use super::{ipv4, put, u16_at, WireError};
use core::net::IpAddr;

pub const HEADER_LEN: usize = 8;
/// Where in the header the checksum is.
pub const CHECKSUM_AT: usize = 6;

/// A checked view of a UDP datagram (or super-frame, whose stated length is that of the whole).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// A view of the datagram that an IPv4 payload consists of.
    ///
    /// # Errors
    /// `Truncated`, or `BadLength` if the stated length is below 8.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        if bytes.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let len = usize::from(u16_at(bytes, 4));
        if len < HEADER_LEN {
            return Err(WireError::BadLength);
        }
        Ok(Self {
            bytes: bytes.get(..len).ok_or(WireError::Truncated)?,
        })
    }

    /// Verifies a complete checksum; zero means that the sender has made none, which IPv6 does not allow.
    ///
    /// # Errors
    /// `BadChecksum`.
    pub fn verify_checksum(
        &self,
        src: impl Into<IpAddr>,
        dst: impl Into<IpAddr>,
    ) -> Result<(), WireError> {
        let src = src.into();
        if self.checksum() == 0 && src.is_ipv4() {
            return Ok(());
        }
        checksum::verify(
            pseudo_header(src, dst, ipv4::PROTOCOL_UDP, self.bytes.len()),
            self.bytes,
        )
    }
    pub fn src_port(&self) -> u16 {
        u16_at(self.bytes, 0)
    }
    pub fn dst_port(&self) -> u16 {
        u16_at(self.bytes, 2)
    }
    /// Bytes of header and payload.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Whether there is no payload.
    pub fn is_empty(&self) -> bool {
        self.payload().is_empty()
    }
    pub fn checksum(&self) -> u16 {
        u16_at(self.bytes, CHECKSUM_AT)
    }
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
    pub fn header(&self) -> Header {
        Header {
            src_port: self.src_port(),
            dst_port: self.dst_port(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src_port: u16,
    pub dst_port: u16,
}

impl Header {
    /// Writes 8 bytes of header with checksum zero ("none") for `payload_len` bytes that follow.
    ///
    /// # Errors
    /// `NoRoom` if `datagram` is shorter than 8 bytes or header and payload exceed 65535.
    #[inline]
    pub fn emit(&self, datagram: &mut [u8], payload_len: usize) -> Result<(), WireError> {
        let len = u16::try_from(HEADER_LEN + payload_len).map_err(|_| WireError::NoRoom)?;
        let b = datagram.get_mut(..HEADER_LEN).ok_or(WireError::NoRoom)?;
        put(b, 0, &self.src_port.to_be_bytes())?;
        put(b, 2, &self.dst_port.to_be_bytes())?;
        put(b, 4, &len.to_be_bytes())?;
        put(b, CHECKSUM_AT, &[0, 0])
    }
}

/// Computes and stores the checksum of a whole datagram.
///
/// # Errors
/// `Truncated` below 8 bytes.
pub fn fill_checksum(
    datagram: &mut [u8],
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
) -> Result<(), WireError> {
    if datagram.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let pseudo = pseudo_header(src, dst, ipv4::PROTOCOL_UDP, datagram.len());
    // Zero on the wire means "none"; a sum of zero is sent as its other representation.
    if checksum::fill(pseudo, datagram, CHECKSUM_AT)? == 0 {
        put(datagram, CHECKSUM_AT, &[0xff, 0xff])?;
    }
    Ok(())
}

/// Stores the pseudo-header's sum alone, for `Checksum::Partial { start: offset of the UDP header, offset: 6 }`.
/// The sum is that of `len` bytes of header and payload: the whole of a super-frame.
///
/// # Errors
/// `Truncated` if `datagram` has no whole header.
pub fn fill_partial_checksum(
    datagram: &mut [u8],
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    len: usize,
) -> Result<(), WireError> {
    if datagram.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let sum = pseudo_header(src, dst, ipv4::PROTOCOL_UDP, len).folded();
    put(datagram, CHECKSUM_AT, &sum.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parses_what_it_emits(src_port: u16, dst_port: u16, src: u32, dst: u32, payload in prop::collection::vec(any::<u8>(), 0..100), padding in 0usize..9, flip: prop::sample::Index) {
            let (src, dst) = (Ipv4Addr::from_bits(src), Ipv4Addr::from_bits(dst));
            let mut bytes = vec![0; HEADER_LEN];
            bytes.extend_from_slice(&payload);
            Header { src_port, dst_port }.emit(&mut bytes, payload.len()).unwrap();
            prop_assert!(View::parse(&bytes).unwrap().verify_checksum(src, dst).is_ok());
            let mut partial = bytes.clone();
            fill_checksum(&mut bytes, src, dst).unwrap();
            fill_partial_checksum(&mut partial, src, dst, HEADER_LEN + payload.len()).unwrap();
            checksum::complete_partial(&mut partial, 0, 6).unwrap();
            prop_assert_eq!(&partial, &bytes);
            let len = bytes.len();
            bytes.resize(len + padding, 0);
            let v = View::parse(&bytes).unwrap();
            prop_assert_eq!((v.header(), v.payload()), (Header { src_port, dst_port }, &payload[..]));
            prop_assert_ne!(v.checksum(), 0);
            prop_assert!(v.verify_checksum(src, dst).is_ok());
            if padding == 0 && !(4..8).contains(&flip.index(len)) {
                bytes[flip.index(len)] ^= 0x10;
                prop_assert_eq!(View::parse(&bytes).unwrap().verify_checksum(src, dst), Err(WireError::BadChecksum));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..40), a: u32) {
            if let Ok(v) = View::parse(&bytes) {
                prop_assert!(v.len() <= bytes.len() && v.payload().len() + 8 == v.len());
                let _ = (v.header(), v.is_empty(), v.verify_checksum(Ipv4Addr::from_bits(a), Ipv4Addr::from_bits(!a)));
            }
            let _ = fill_checksum(&mut bytes, Ipv4Addr::from_bits(a), Ipv4Addr::from_bits(!a));
        }
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_its_other_representation() {
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let header = Header {
            src_port: 1,
            dst_port: 2,
        };
        let mut bytes = [0; 10];
        header.emit(&mut bytes, 2).unwrap();
        fill_checksum(&mut bytes, src, dst).unwrap();
        // With the checksum itself as payload the sum becomes 0xffff, its complement zero.
        bytes.copy_within(6..8, 8);
        let mut partial = bytes;
        fill_checksum(&mut bytes, src, dst).unwrap();
        assert_eq!(bytes[6..8], [0xff, 0xff]);
        fill_partial_checksum(&mut partial, src, dst, 10).unwrap();
        checksum::complete_partial(&mut partial, 0, 6).unwrap();
        assert_eq!(partial, bytes);
        View::parse(&bytes)
            .unwrap()
            .verify_checksum(src, dst)
            .unwrap();
    }

    #[test]
    fn names_what_is_wrong() {
        let error = |b: &[u8]| View::parse(b).map(|_| ()).unwrap_err();
        assert_eq!(error(&[0; 7]), WireError::Truncated);
        assert_eq!(error(&[0, 1, 0, 2, 0, 7, 0, 0]), WireError::BadLength);
        assert_eq!(error(&[0, 1, 0, 2, 0, 9, 0, 0]), WireError::Truncated);
        assert_eq!(
            Header {
                src_port: 1,
                dst_port: 2
            }
            .emit(&mut [0; 8], 65528),
            Err(WireError::NoRoom)
        );
    }
}
