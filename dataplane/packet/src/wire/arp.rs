//! ARP for IPv4 over Ethernet (RFC 826).

use super::{array, put, u16_at, MacAddr, WireError};
use core::net::Ipv4Addr;

/// Bytes of an ARP packet behind the Ethernet header.
pub const LEN: usize = 28;

/// Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub operation: Operation,
    pub sender_mac: MacAddr,
    pub sender_ip: Ipv4Addr,
    /// Meaningless in a request.
    pub target_mac: MacAddr,
    pub target_ip: Ipv4Addr,
}

impl Packet {
    /// Reads the payload of an Ethernet frame; padding behind it is ignored.
    ///
    /// # Errors
    /// `Truncated` below 28 bytes, `BadArp` for another hardware or protocol, or
    /// an operation other than request and reply.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let b = payload.get(..LEN).ok_or(WireError::Truncated)?;
        if array(b, 0) != KIND {
            return Err(WireError::BadArp);
        }
        Ok(Self {
            operation: match u16_at(b, 6) {
                1 => Operation::Request,
                2 => Operation::Reply,
                _ => return Err(WireError::BadArp),
            },
            sender_mac: array(b, 8),
            sender_ip: array::<4>(b, 14).into(),
            target_mac: array(b, 18),
            target_ip: array::<4>(b, 24).into(),
        })
    }

    /// Writes the packet to the first 28 bytes of `payload`.
    ///
    /// # Errors
    /// `NoRoom` if there are fewer.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), WireError> {
        let b = payload.get_mut(..LEN).ok_or(WireError::NoRoom)?;
        put(b, 0, &KIND)?;
        let operation: u16 = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        put(b, 6, &operation.to_be_bytes())?;
        put(b, 8, &self.sender_mac)?;
        put(b, 14, &self.sender_ip.octets())?;
        put(b, 18, &self.target_mac)?;
        put(b, 24, &self.target_ip.octets())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parses_what_it_emits(reply: bool, sender_mac: MacAddr, sender_ip: u32, target_mac: MacAddr, target_ip: u32, pad in 0usize..20) {
            let packet = Packet {
                operation: if reply { Operation::Reply } else { Operation::Request },
                sender_mac,
                sender_ip: Ipv4Addr::from_bits(sender_ip),
                target_mac,
                target_ip: Ipv4Addr::from_bits(target_ip),
            };
            let mut bytes = vec![0; LEN + pad];
            packet.emit(&mut bytes).unwrap();
            prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
            prop_assert_eq!(Packet::parse(&bytes[..27]), Err(WireError::Truncated));
        }

        #[test]
        fn arbitrary_bytes_parse_only_if_they_come_out_again(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                let mut again = [0; LEN];
                packet.emit(&mut again).unwrap();
                prop_assert_eq!(&again[..], &bytes[..LEN]);
            }
        }
    }

    #[test]
    fn refuses_other_hardware_protocols_and_operations() {
        let mut good = [0; LEN];
        good[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        assert!(Packet::parse(&good).is_ok());
        for at in 0..8 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(Packet::parse(&bad), Err(WireError::BadArp), "byte {at}");
        }
    }
}
