//! What makes a MEF link secret and authentic: node keys, the Noise handshake,
//! the lanes' keys and the replay window. Sans-IO: bytes and randomness in,
//! bytes out; only the two key-file functions in [`keys`] touch the system.
//!
//! ```text
//!  Initiator::new ──initiation──▶ Responder::read ─▶ Initiation ─▶ Responder::accept
//!       │                                                               │      │
//!  Initiator::finish ◀────────────────response──────────────────────────┘      │
//!       ▼                                                                      ▼
//!    Session  ◀──── transport packets: seal_in_place / open, per lane ────▶  Session
//! ```
//!
//! A transport packet is the 16-byte LINK header (authenticated), the sealed
//! frames, and a 16-byte tag: [`OVERHEAD`] bytes around the plaintext.
#![forbid(unsafe_code)]

pub mod cookie;
pub mod engine;
pub mod handshake;
pub mod header;
pub mod keys;
pub mod replay;
pub mod session;

mod lane;
mod schedule;

pub use cookie::{Admission, Cookie, Gate};
pub use engine::{Engine, EngineKind};
pub use handshake::{HandshakeError, Initiation, Initiator, Offer, Responder};
pub use header::{Header, HeaderError, PacketType};
pub use keys::{load_private_key, write_private_key, KeyError, PrivateKey, PublicKey};
pub use session::{Limits, OpenError, Opened, Role, SealError, Session, SessionConfig};

/// Length of the LINK header, bytes.
pub const HEADER_LEN: usize = 16;
/// Length of the authentication tag, bytes.
pub const TAG_LEN: usize = 16;
/// What a transport packet adds to its plaintext, bytes.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
