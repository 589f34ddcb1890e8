//! A session: what two routers share after a handshake. It seals and opens
//! transport packets, each on one lane; packet numbers, keys and replay windows
//! belong to the lane. Until the peers have agreed on a number of lanes, in the
//! session itself, there is lane 0 only.

use std::fmt;
use std::ops::Range;

use crate::engine::{EngineError, EngineKind};
use crate::header::{Header, HeaderError, PacketType};
use crate::keys::PublicKey;
use crate::lane::{RecvLane, SendLane};
use crate::replay::{MAX_WINDOW, MIN_WINDOW};
use crate::schedule::{Direction, Secret};
use crate::{HEADER_LEN, OVERHEAD, TAG_LEN};

/// Most lanes a session may have: 32 workers at either end.
pub const MAX_LANES: u16 = 1024;

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

/// What a session is made with; nothing in it has to agree between the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    pub engine: EngineKind,
    /// Packets a lane remembers against replay; kept between
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
    #[error("lane {0} is not one of this session's")]
    UnknownLane(u16),
    #[error("the key or the packet numbers of the lane are used up; a new handshake is due")]
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
    /// Not one of the lanes agreed on.
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

/// The lanes could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanesError {
    #[error("{0} lanes: expected 1 to {MAX_LANES}")]
    Count(u16),
    #[error(
        "the session has {have} lanes already, {wanted} were asked for; lanes are agreed on once"
    )]
    Agreed { have: u16, wanted: u16 },
    #[error("the lanes' keys could not be derived")]
    Engine,
}

/// A packet that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub lane: u16,
    /// The packet number in its lane.
    pub counter: u64,
    /// Where in the packet the plaintext now is.
    pub payload: Range<usize>,
}

/// The two halves of the handshake's raw split, kept until the lanes are agreed on.
struct Split {
    send: Secret,
    recv: Secret,
}

/// One end of an established session.
pub struct Session {
    local_index: u32,
    peer_index: u32,
    peer: PublicKey,
    role: Role,
    config: SessionConfig,
    split: Option<Split>,
    lanes: Vec<(SendLane, RecvLane)>,
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
        let split = match role {
            Role::Initiator => Split {
                send: to_responder,
                recv: to_initiator,
            },
            Role::Responder => Split {
                send: to_initiator,
                recv: to_responder,
            },
        };
        let lanes = vec![derive_lane(&split, role, 0, &config)?];
        // An initiator has seen an answer made for it just now; a responder has not yet.
        let confirmed = role == Role::Initiator;
        Ok(Self {
            local_index,
            peer_index,
            peer,
            role,
            config,
            split: Some(split),
            lanes,
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

    /// Numbers the packets sealed on lane 0 from `counter` on, or from where they are, if that is
    /// more: a session that renews another goes on with its numbers, so that whoever keeps account
    /// of packets sees one sequence. The nonces are those of another key.
    pub fn number_from(&mut self, counter: u64) {
        if let Some((send, _)) = self.lanes.first_mut() {
            send.number_from(counter);
        }
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

    /// The lanes there are; 1 until [`agree_lanes`](Self::agree_lanes).
    pub fn lane_count(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// Sets up lanes 0 to `count - 1` and wipes the secrets they were derived from;
    /// lane 0 goes on as it is. Asking again for the same number changes nothing.
    pub fn agree_lanes(&mut self, count: u16) -> Result<(), LanesError> {
        if count == 0 || count > MAX_LANES {
            return Err(LanesError::Count(count));
        }
        let have = self.lane_count();
        let Some(split) = &self.split else {
            return if count == have {
                Ok(())
            } else {
                Err(LanesError::Agreed {
                    have,
                    wanted: count,
                })
            };
        };
        let more = (have..count).map(|lane| derive_lane(split, self.role, lane, &self.config));
        let more = more
            .collect::<Result<Vec<_>, _>>()
            .map_err(|EngineError| LanesError::Engine)?;
        self.lanes.extend(more);
        self.split = None;
        Ok(())
    }

    /// The number the next packet sealed on `lane` will have; 0 for a lane there is not.
    pub fn next_counter(&self, lane: u16) -> u64 {
        self.lanes
            .get(usize::from(lane))
            .map_or(0, |(send, _)| send.next_counter())
    }

    /// Seals `packet` in place: 16 bytes of header space, the plaintext, 16 bytes of
    /// tag space ([`OVERHEAD`] in all). Returns the packet's number.
    ///
    /// # Errors
    /// The packet must not be sent then; its content is unspecified.
    pub fn seal_in_place(&mut self, lane: u16, packet: &mut [u8]) -> Result<u64, SealError> {
        let header = Header {
            kind: PacketType::Transport,
            epoch: 0,
            lane,
            receiver_index: self.peer_index,
            counter: 0,
        };
        let (send, _) = self
            .lanes
            .get_mut(usize::from(lane))
            .ok_or(SealError::UnknownLane(lane))?;
        send.seal(header, packet)
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
        let (_, recv) = self
            .lanes
            .get_mut(usize::from(header.lane))
            .ok_or(OpenError::UnknownLane)?;
        recv.open(&header, packet)?;
        self.confirmed = true;
        Ok(Opened {
            lane: header.lane,
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
            .field("lanes", &self.lanes.len())
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}

fn derive_lane(
    split: &Split,
    role: Role,
    lane: u16,
    config: &SessionConfig,
) -> Result<(SendLane, RecvLane), EngineError> {
    let (out, back) = match role {
        Role::Initiator => (Direction::ToResponder, Direction::ToInitiator),
        Role::Responder => (Direction::ToInitiator, Direction::ToResponder),
    };
    Ok((
        SendLane::new(&split.send, out, lane, config)?,
        RecvLane::new(&split.recv, back, lane, config)?,
    ))
}
