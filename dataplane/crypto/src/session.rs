//! A session: what two routers share after a handshake. It seals and opens
//! the transport packets of one lane, with packet numbers, keys and a replay
//! window of its own; each pair of workers has a session.

use std::fmt;
use std::ops::Range;

use crate::engine::{EngineError, EngineKind};
use crate::header::{Header, HeaderError, PacketType};
use crate::keys::PublicKey;
use crate::lane::{RecvLane, SendLane};
use crate::replay::{MAX_WINDOW, MIN_WINDOW};
use crate::schedule::{Direction, Secret};
use crate::{HEADER_LEN, OVERHEAD, TAG_LEN};

/// How much one key may do, in AES blocks of 16 bytes (of the plaintext, the tag
/// and the header): the confidentiality limits of AES-GCM
/// (draft-irtf-cfrg-aead-limits), which packet counts alone do not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From here on the sender takes the key of the next epoch.
    pub ratchet_blocks: u64,
    /// Beyond this a key neither seals nor opens. A sender whose `ratchet_blocks`
    /// is not below it never ratchets.
    pub stop_blocks: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ratchet_blocks: 1 << 34,
            stop_blocks: 1 << 35,
        }
    }
}

/// What a session is made with. The lane has to be the same at both ends, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    pub engine: EngineKind,
    /// The pair of workers that the session is between.
    pub lane: u16,
    /// Packets it remembers against replay; kept between
    /// [`MIN_WINDOW`] and [`MAX_WINDOW`].
    pub replay_window: usize,
    pub limits: Limits,
}

impl SessionConfig {
    pub(crate) fn window(&self) -> usize {
        self.replay_window.clamp(MIN_WINDOW, MAX_WINDOW)
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            engine: EngineKind::default(),
            lane: 0,
            replay_window: MIN_WINDOW,
            limits: Limits::default(),
        }
    }
}

/// Which end of the handshake this one was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Initiator,
    Responder,
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("{0} bytes are too few for header space and tag space ({OVERHEAD})")]
    TooShort(usize),
    #[error("the key or the packet numbers of the session are used up; a new handshake is due")]
    LimitReached,
    #[error("the cipher refused to seal")]
    Engine,
}

impl From<EngineError> for SealError {
    fn from(EngineError: EngineError) -> Self {
        Self::Engine
    }
}

/// Why a packet was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.reason())]
pub enum OpenError {
    /// Shorter than header and tag.
    Truncated,
    BadVersion,
    /// Not a transport packet.
    UnknownType,
    /// For another session.
    UnknownSession,
    /// Of another lane than the session's.
    UnknownLane,
    /// Neither the current epoch nor one beside it.
    BadEpoch,
    /// Its packet number was seen before.
    Replayed,
    /// Below the replay window.
    TooOld,
    /// Forged, damaged, or of another key.
    Unauthentic,
    /// The peer used a key beyond what AES-GCM allows.
    LimitReached,
}

impl OpenError {
    /// Every reason, in the order of the checks.
    pub const ALL: [Self; 10] = [
        Self::Truncated,
        Self::BadVersion,
        Self::UnknownType,
        Self::UnknownSession,
        Self::UnknownLane,
        Self::BadEpoch,
        Self::Replayed,
        Self::TooOld,
        Self::LimitReached,
        Self::Unauthentic,
    ];

    /// The name under which such drops are counted.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadVersion => "bad_version",
            Self::UnknownType => "unknown_type",
            Self::UnknownSession => "unknown_session",
            Self::UnknownLane => "unknown_lane",
            Self::BadEpoch => "bad_epoch",
            Self::Replayed => "replayed",
            Self::TooOld => "too_old",
            Self::Unauthentic => "unauthentic",
            Self::LimitReached => "limit_reached",
        }
    }
}

impl From<HeaderError> for OpenError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Truncated(_) => Self::Truncated,
            HeaderError::Version(_) => Self::BadVersion,
            HeaderError::Type(_) => Self::UnknownType,
        }
    }
}

/// A packet that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The packet number.
    pub counter: u64,
    /// Where in the packet the plaintext now is.
    pub payload: Range<usize>,
}

/// One end of an established session.
pub struct Session {
    local_index: u32,
    peer_index: u32,
    peer: PublicKey,
    role: Role,
    lane: u16,
    send: SendLane,
    recv: RecvLane,
    confirmed: bool,
    peer_boot_id: u64,
}

impl Session {
    /// `to_responder` and `to_initiator` are the raw split, in Noise's order.
    pub(crate) fn new(
        role: Role,
        peer: PublicKey,
        (local_index, peer_index): (u32, u32),
        (to_responder, to_initiator): (Secret, Secret),
        config: SessionConfig,
    ) -> Result<Self, EngineError> {
        let lane = config.lane;
        let to_responder = (to_responder, Direction::ToResponder);
        let to_initiator = (to_initiator, Direction::ToInitiator);
        let (send, recv) = match role {
            Role::Initiator => (to_responder, to_initiator),
            Role::Responder => (to_initiator, to_responder),
        };
        let send = SendLane::new(&send.0, send.1, lane, &config)?;
        let recv = RecvLane::new(&recv.0, recv.1, lane, &config)?;
        // An initiator has seen an answer made for it just now; a responder has not yet.
        let confirmed = role == Role::Initiator;
        Ok(Self {
            local_index,
            peer_index,
            peer,
            role,
            lane,
            send,
            recv,
            confirmed,
            peer_boot_id: 0,
        })
    }

    /// The index under which the peer's packets arrive.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    pub fn peer_index(&self) -> u32 {
        self.peer_index
    }

    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// What the peer said of its current start in the handshake.
    pub fn peer_boot_id(&self) -> u64 {
        self.peer_boot_id
    }

    pub(crate) fn set_peer_boot_id(&mut self, boot_id: u64) {
        self.peer_boot_id = boot_id;
    }

    /// Numbers the packets sealed from `counter` on, or from where they are, if that is
    /// more: a session that renews another goes on with its numbers, so that whoever keeps account
    /// of packets sees one sequence. The nonces are those of another key.
    pub fn number_from(&mut self, counter: u64) {
        self.send.number_from(counter);
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the peer has proved to hold this session's keys. A responder's
    /// session is confirmed by the first packet that opens; until then it may stem
    /// from a replayed initiation and must not replace an older session.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// The number the next packet sealed will have.
    pub fn next_counter(&self) -> u64 {
        self.send.next_counter()
    }

    /// Seals `packet` in place: 16 bytes of header space, the plaintext, 16 bytes of
    /// tag space ([`OVERHEAD`] in all). Returns the packet's number.
    ///
    /// # Errors
    /// The packet must not be sent then; its content is unspecified.
    pub fn seal_in_place(&mut self, packet: &mut [u8]) -> Result<u64, SealError> {
        let header = Header {
            kind: PacketType::Transport,
            epoch: 0,
            lane: self.lane,
            receiver_index: self.peer_index,
            counter: 0,
        };
        self.send.seal(header, packet)
    }

    /// Opens a transport packet in place.
    ///
    /// # Errors
    /// Whatever the error, the session has not changed; the packet's content is unspecified.
    pub fn open(&mut self, packet: &mut [u8]) -> Result<Opened, OpenError> {
        let header = Header::parse(packet)?;
        if header.kind != PacketType::Transport {
            return Err(OpenError::UnknownType);
        }
        let end = packet
            .len()
            .checked_sub(TAG_LEN)
            .filter(|&end| end >= HEADER_LEN)
            .ok_or(OpenError::Truncated)?;
        if header.receiver_index != self.local_index {
            return Err(OpenError::UnknownSession);
        }
        if header.lane != self.lane {
            return Err(OpenError::UnknownLane);
        }
        self.recv.open(&header, packet)?;
        self.confirmed = true;
        Ok(Opened {
            counter: header.counter,
            payload: HEADER_LEN..end,
        })
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("role", &self.role)
            .field("local_index", &self.local_index)
            .field("peer_index", &self.peer_index)
            .field("lane", &self.lane)
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}
