//! The 64 bytes that a client sends first on each TCP connection, and the 64
//! with which a receiver acknowledges a payload end to end. Payload sizes never
//! include them. Integers are big-endian.
//!
//! ```text
//! header:   magic 8 | kind 1 | flags 1 | 0 6 | flow 8 | size 8 | connect_ns 8 | seed 8 | congestion 16
//! receipt:  magic 8 | flow 8 | bytes 8 | last_ns 8 | sha256 32
//! ```

use super::spec::FlowKind;

pub const LEN: usize = 64;

const HEADER_MAGIC: [u8; 8] = *b"MEFload1";
const RECEIPT_MAGIC: [u8; 8] = *b"MEFrcpt1";
const FLAG_HASH: u8 = 1;

/// What a receiver has to know to account for a flow by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FlowKind,
    /// SHA-256 at both ends.
    pub hash: bool,
    pub flow: u64,
    /// Payload bytes; 0 for bulk.
    pub size: u64,
    /// When the client called connect(), CLOCK_MONOTONIC ns.
    pub connect_ns: u64,
    /// Of the payload.
    pub seed: u64,
    /// Congestion control for the server's side of a request; at most 15
    /// bytes, as in the kernel; empty: the kernel's default.
    pub congestion: String,
}

/// "Received, to the last byte."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub flow: u64,
    pub bytes: u64,
    pub last_ns: u64,
    /// All zero where hashing is off.
    pub sha256: [u8; 32],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("not a connection of the load tool (wrong magic)")]
    Magic,
    #[error("unknown flow kind {0}")]
    Kind(u8),
    #[error("the congestion control's name is not text")]
    Congestion,
    #[error("the congestion control's name has more than 15 bytes")]
    CongestionLength,
}

fn kind_code(kind: FlowKind) -> u8 {
    match kind {
        FlowKind::Bulk => 1,
        FlowKind::Transfer => 2,
        FlowKind::Request => 3,
        FlowKind::Stream => 4,
    }
}

fn put(to: &mut [u8], from: &[u8]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = *f;
    }
}

fn integer(from: &[u8; LEN], at: usize) -> u64 {
    from.iter()
        .skip(at)
        .take(8)
        .fold(0, |n, b| (n << 8) | u64::from(*b))
}

impl Header {
    pub fn encode(&self) -> Result<[u8; LEN], HeaderError> {
        let name = self.congestion.as_bytes();
        if name.len() > 15 {
            return Err(HeaderError::CongestionLength);
        }
        let mut out = [0; LEN];
        put(&mut out[..8], &HEADER_MAGIC);
        out[8] = kind_code(self.kind);
        out[9] = if self.hash { FLAG_HASH } else { 0 };
        put(&mut out[16..24], &self.flow.to_be_bytes());
        put(&mut out[24..32], &self.size.to_be_bytes());
        put(&mut out[32..40], &self.connect_ns.to_be_bytes());
        put(&mut out[40..48], &self.seed.to_be_bytes());
        put(&mut out[48..], name);
        Ok(out)
    }

    pub fn decode(from: &[u8; LEN]) -> Result<Self, HeaderError> {
        if from[..8] != HEADER_MAGIC {
            return Err(HeaderError::Magic);
        }
        let kind = match from[8] {
            1 => FlowKind::Bulk,
            2 => FlowKind::Transfer,
            3 => FlowKind::Request,
            4 => FlowKind::Stream,
            other => return Err(HeaderError::Kind(other)),
        };
        let name: Vec<u8> = from[48..].iter().copied().take_while(|b| *b != 0).collect();
        if name.len() > 15 || !name.iter().all(u8::is_ascii_graphic) {
            return Err(HeaderError::Congestion);
        }
        Ok(Self {
            kind,
            hash: from[9] & FLAG_HASH != 0,
            flow: integer(from, 16),
            size: integer(from, 24),
            connect_ns: integer(from, 32),
            seed: integer(from, 40),
            congestion: String::from_utf8(name).map_err(|_| HeaderError::Congestion)?,
        })
    }
}

impl Receipt {
    pub fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        put(&mut out[..8], &RECEIPT_MAGIC);
        put(&mut out[8..16], &self.flow.to_be_bytes());
        put(&mut out[16..24], &self.bytes.to_be_bytes());
        put(&mut out[24..32], &self.last_ns.to_be_bytes());
        put(&mut out[32..], &self.sha256);
        out
    }

    pub fn decode(from: &[u8; LEN]) -> Result<Self, HeaderError> {
        if from[..8] != RECEIPT_MAGIC {
            return Err(HeaderError::Magic);
        }
        let mut sha256 = [0; 32];
        put(&mut sha256, &from[32..]);
        Ok(Self {
            flow: integer(from, 8),
            bytes: integer(from, 16),
            last_ns: integer(from, 24),
            sha256,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = FlowKind> {
        prop_oneof![
            Just(FlowKind::Bulk),
            Just(FlowKind::Transfer),
            Just(FlowKind::Request),
            Just(FlowKind::Stream)
        ]
    }

    proptest! {
        #[test]
        fn header_survives_the_wire(
            kind in kinds(), hash: bool, flow: u64, size: u64, connect_ns: u64, seed: u64,
            congestion in "[a-z0-9_-]{0,15}",
        ) {
            let header = Header { kind, hash, flow, size, connect_ns, seed, congestion };
            let wire = header.encode().unwrap();
            prop_assert_eq!(Header::decode(&wire).unwrap(), header);
        }

        #[test]
        fn receipt_survives_the_wire(flow: u64, bytes: u64, last_ns: u64, sha256: [u8; 32]) {
            let receipt = Receipt { flow, bytes, last_ns, sha256 };
            prop_assert_eq!(Receipt::decode(&receipt.encode()).unwrap(), receipt);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), LEN), valid_magic: bool) {
            let mut wire: [u8; LEN] = bytes.try_into().unwrap();
            if valid_magic {
                wire[..8].copy_from_slice(&HEADER_MAGIC);
            }
            if let Ok(header) = Header::decode(&wire) {
                prop_assert!(valid_magic);
                prop_assert!(header.encode().is_ok());
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let header = Header {
            kind: FlowKind::Bulk,
            hash: true,
            flow: 1,
            size: 0,
            connect_ns: 2,
            seed: 3,
            congestion: "cubic".into(),
        };
        let good = header.encode().unwrap();
        let mut bad = good;
        bad[0] = b'X';
        assert_eq!(Header::decode(&bad), Err(HeaderError::Magic));
        let mut bad = good;
        bad[8] = 9;
        assert_eq!(Header::decode(&bad), Err(HeaderError::Kind(9)));
        let mut bad = good;
        bad[48] = 0xff;
        assert_eq!(Header::decode(&bad), Err(HeaderError::Congestion));
        assert_eq!(Receipt::decode(&good), Err(HeaderError::Magic));
        let long = Header {
            congestion: "sixteen-letters-".into(),
            ..header
        };
        assert_eq!(long.encode(), Err(HeaderError::CongestionLength));
    }
}
