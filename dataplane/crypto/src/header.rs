//! The LINK header that every UDP payload of a link begins with: 16 bytes,
//! big-endian, readable by anybody, authenticated by the session.
//!
//! ```text
//!  0        4        8               16                              32
//!  ┌────────┬────────┬───────────────┬──────────────────────────────┐
//!  │ ver    │ type   │ epoch         │ lane                         │
//!  ├────────┴────────┴───────────────┴──────────────────────────────┤
//!  │ receiver_index                                                 │
//!  ├────────────────────────────────────────────────────────────────┤
//!  │ counter (64 bits)                                              │
//!  └────────────────────────────────────────────────────────────────┘
//! ```

use crate::HEADER_LEN;

/// The protocol version this code speaks, in the upper four bits of the first byte.
pub const VERSION: u8 = 1;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PacketType {
    Initiation = 1,
    Response = 2,
    /// A responder under load asks for proof of the address first.
    CookieReply = 3,
    Transport = 4,
    /// Says that a transport packet came for a session that is not known here; not authentic.
    NoSession = 5,
}

/// Why bytes are no LINK header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("{0} bytes are too few for the 16-byte LINK header")]
    Truncated(usize),
    #[error("protocol version {0}, this router speaks {VERSION}")]
    Version(u8),
    #[error("unknown packet type {0}")]
    Type(u8),
}

/// A parsed LINK header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: PacketType,
    /// The low eight bits of the key epoch; zero in handshake messages.
    pub epoch: u8,
    /// The pair of workers the packet travels between.
    pub lane: u16,
    /// The session index of the packet's receiver; in an [`PacketType::Initiation`] the sender's own.
    pub receiver_index: u32,
    /// The packet number within the lane; zero in handshake messages.
    pub counter: u64,
}

impl Header {
    /// Reads the header at the front of `packet`.
    pub fn parse(packet: &[u8]) -> Result<Self, HeaderError> {
        let Some(&[ver_type, epoch, l0, l1, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7]) =
            packet.first_chunk::<HEADER_LEN>()
        else {
            return Err(HeaderError::Truncated(packet.len()));
        };
        if ver_type >> 4 != VERSION {
            return Err(HeaderError::Version(ver_type >> 4));
        }
        let kind = match ver_type & 0x0f {
            1 => PacketType::Initiation,
            2 => PacketType::Response,
            3 => PacketType::CookieReply,
            4 => PacketType::Transport,
            5 => PacketType::NoSession,
            other => return Err(HeaderError::Type(other)),
        };
        Ok(Self {
            kind,
            epoch,
            lane: u16::from_be_bytes([l0, l1]),
            receiver_index: u32::from_be_bytes([r0, r1, r2, r3]),
            counter: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
        })
    }

    /// The header as it stands on the wire.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let [l0, l1] = self.lane.to_be_bytes();
        let [r0, r1, r2, r3] = self.receiver_index.to_be_bytes();
        let [c0, c1, c2, c3, c4, c5, c6, c7] = self.counter.to_be_bytes();
        let ver_type = VERSION << 4 | self.kind as u8;
        [
            ver_type, self.epoch, l0, l1, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_on_the_wire() {
        let header = Header {
            kind: PacketType::Transport,
            epoch: 0xab,
            lane: 0x0102,
            receiver_index: 0x0304_0506,
            counter: 0x0708_090a_0b0c_0d0e,
        };
        assert_eq!(
            header.emit(),
            [0x14, 0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc, 0xd, 0xe]
        );
    }

    proptest! {
        #[test]
        fn whatever_parses_is_emitted_unchanged(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            match Header::parse(&bytes) {
                Ok(header) => prop_assert_eq!(&header.emit()[..], &bytes[..HEADER_LEN]),
                Err(HeaderError::Truncated(n)) => prop_assert!(n < HEADER_LEN && n == bytes.len()),
                Err(HeaderError::Version(v)) => prop_assert!(v != VERSION),
                Err(HeaderError::Type(t)) => prop_assert!(!(1..=5).contains(&t)),
            }
        }

        #[test]
        fn emitted_headers_parse(epoch: u8, lane: u16, receiver_index: u32, counter: u64, kind in 0usize..3) {
            let kind = [PacketType::Initiation, PacketType::Response, PacketType::Transport][kind];
            let header = Header { kind, epoch, lane, receiver_index, counter };
            prop_assert_eq!(Header::parse(&header.emit()), Ok(header));
        }
    }
}
