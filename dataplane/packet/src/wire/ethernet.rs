//! Ethernet II frames without VLAN tag.

use super::{array, put, u16_at, WireError};

/// An Ethernet address.
pub type MacAddr = [u8; 6];

pub const BROADCAST: MacAddr = [0xff; 6];
pub const HEADER_LEN: usize = 14;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Whether a frame to this address is for many (broadcast included).
pub const fn is_multicast(mac: MacAddr) -> bool {
    mac[0] & 1 == 1
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub dst: MacAddr,
    pub src: MacAddr,
    pub ethertype: u16,
}

impl Header {
    /// The header of `frame` and what follows it (padding of short frames included).
    ///
    /// # Errors
    /// `Truncated` below 14 bytes.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let payload = frame.get(HEADER_LEN..).ok_or(WireError::Truncated)?;
        let header = Self {
            dst: array(frame, 0),
            src: array(frame, 6),
            ethertype: u16_at(frame, 12),
        };
        Ok((header, payload))
    }

    /// Writes the header to the first 14 bytes of `frame`.
    ///
    /// # Errors
    /// `NoRoom` if there are fewer.
    #[inline]
    pub fn emit(&self, frame: &mut [u8]) -> Result<(), WireError> {
        let b = frame.get_mut(..HEADER_LEN).ok_or(WireError::NoRoom)?;
        put(b, 0, &self.dst)?;
        put(b, 6, &self.src)?;
        put(b, 12, &self.ethertype.to_be_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parses_what_it_emits(dst: MacAddr, src: MacAddr, ethertype: u16, payload: Vec<u8>) {
            let header = Header { dst, src, ethertype };
            let mut frame = vec![0; HEADER_LEN];
            frame.extend_from_slice(&payload);
            header.emit(&mut frame).unwrap();
            prop_assert_eq!(Header::parse(&frame), Ok((header, &payload[..])));
            prop_assert_eq!(Header::parse(&frame[..13]), Err(WireError::Truncated));
            prop_assert_eq!(header.emit(&mut frame[..13]), Err(WireError::NoRoom));
        }
    }

    #[test]
    fn on_the_wire_in_the_order_of_the_standard() {
        let mut frame = [0; 14];
        Header {
            dst: [1, 2, 3, 4, 5, 6],
            src: [7, 8, 9, 10, 11, 12],
            ethertype: ETHERTYPE_ARP,
        }
        .emit(&mut frame)
        .unwrap();
        assert_eq!(frame, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 6]);
        assert!(is_multicast(BROADCAST) && !is_multicast([2, 0, 0, 0, 0, 1]));
    }
}
