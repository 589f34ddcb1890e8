//! The handshake: Noise_IK_25519_AESGCM_SHA256 (Noise revision 34), one round
//! trip, both messages small enough never to be fragmented. Either end knows the
//! other's public key beforehand; a responder answers nobody else.
//!
//! ```text
//! initiation (128 bytes)  LINK header │ [cookie] │ e │ s sealed │ counter:64 boot_id:64 sealed
//! response    (76 bytes)  LINK header │ e │ responder's index:32 boot_id:64 sealed
//! ```
//!
//! The headers name the lane that the session is for.
//! A responder under load asks for a cookie first (see [`crate::cookie`]); an
//! initiation with one is 16 bytes longer. The initiation's header and cookie are part of the prologue, the response's header is the
//! only one the initiator takes, so a changed bit anywhere is detected. The
//! counter of a node's initiations only grows, over restarts too, which is what
//! makes a recorded initiation worthless.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use crate::cookie::{self, Cookie, COOKIE_LEN};
use crate::engine::EngineError;
use crate::header::{Header, HeaderError, PacketType};
use crate::keys::{PrivateKey, PublicKey};
use crate::session::{Role, Session, SessionConfig};
use crate::{HEADER_LEN, TAG_LEN};

const PATTERN: &str = "Noise_IK_25519_AESGCM_SHA256";
const PROLOGUE: &[u8] = b"MEF1";
const OFFER_LEN: usize = 16;
const ANSWER_LEN: usize = 12;

/// Length of an initiation, bytes of UDP payload.
pub const INITIATION_LEN: usize = HEADER_LEN + 32 + (32 + TAG_LEN) + OFFER_LEN + TAG_LEN;
/// Length of an initiation that carries a cookie.
pub const INITIATION_COOKIE_LEN: usize = INITIATION_LEN + COOKIE_LEN;
/// Length of a response, bytes of UDP payload; less than what it answers.
pub const RESPONSE_LEN: usize = HEADER_LEN + 32 + ANSWER_LEN + TAG_LEN;

/// Why a handshake message was refused, or could not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("handshake: {0}")]
    Header(#[from] HeaderError),
    #[error("handshake: expected packet type {expected:?}, found {found:?}")]
    UnexpectedType {
        expected: PacketType,
        found: PacketType,
    },
    #[error("handshake: expected a message of {expected} bytes, found {found}")]
    Length { expected: usize, found: usize },
    #[error("handshake: a header field that must be zero is not")]
    NonZeroField,
    #[error("handshake: response for session index {found}, ours is {expected}")]
    UnexpectedIndex { expected: u32, found: u32 },
    #[error("handshake: for lane {found}, this is lane {expected}")]
    UnexpectedLane { expected: u16, found: u16 },
    #[error("handshake: message is forged, damaged, or for another key")]
    Unauthentic,
    #[error("handshake: initiation from {0}, which is no configured peer")]
    UnknownPeer(PublicKey),
    #[error(
        "handshake: initiation {counter} replayed, the last one accepted from this peer was {last}"
    )]
    ReplayedInitiation { counter: u64, last: u64 },
    #[error("handshake: already finished")]
    Finished,
    #[error("handshake: internal error: {0}")]
    Internal(String),
}

impl HandshakeError {
    /// The name under which such drops are counted.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Header(HeaderError::Truncated(_)) | Self::Length { .. } => "handshake_length",
            Self::Header(HeaderError::Version(_)) => "bad_version",
            Self::Header(HeaderError::Type(_)) | Self::UnexpectedType { .. } => "unknown_type",
            Self::NonZeroField => "handshake_header",
            Self::UnexpectedIndex { .. } => "unknown_session",
            Self::UnexpectedLane { .. } => "unknown_lane",
            Self::Unauthentic => "handshake_unauthentic",
            Self::UnknownPeer(_) => "unknown_peer",
            Self::ReplayedInitiation { .. } => "replayed_initiation",
            Self::Finished => "handshake_finished",
            Self::Internal(_) => "handshake_internal",
        }
    }
}

impl From<snow::Error> for HandshakeError {
    fn from(error: snow::Error) -> Self {
        match error {
            snow::Error::Decrypt | snow::Error::Dh | snow::Error::Input => Self::Unauthentic,
            other => Self::Internal(other.to_string()),
        }
    }
}

impl From<EngineError> for HandshakeError {
    fn from(EngineError: EngineError) -> Self {
        Self::Internal("key derivation failed".into())
    }
}

/// The end that asks for a session; kept until a response finishes it.
pub struct Initiator {
    noise: HandshakeState,
    peer: PublicKey,
    index: u32,
    config: SessionConfig,
    /// What a cookie reply has to name.
    echo: [u8; COOKIE_LEN],
}

/// What an initiation says of its sender.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// The sender's index for the session.
    pub index: u32,
    /// Greater than in any initiation made with this key before.
    pub counter: u64,
    /// Changes whenever the sender starts anew.
    pub boot_id: u64,
    /// What the responder's cookie reply held, if it asked for one.
    pub cookie: Option<Cookie>,
}

impl Initiator {
    /// Starts a handshake with `peer`; returns the UDP payload to send. `index` is ours for
    /// the session, `counter` greater than in any initiation made with this key before,
    /// `entropy` 32 bytes from a cryptographic random source, never used for anything else.
    pub fn new(
        local: &PrivateKey,
        peer: &PublicKey,
        index: u32,
        counter: u64,
        boot_id: u64,
        entropy: [u8; 32],
        config: SessionConfig,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let offer = Offer {
            index,
            counter,
            boot_id,
            cookie: None,
        };
        Self::with_offer(local, peer, offer, entropy, config)
    }

    /// The same, with all that an initiation can say.
    ///
    /// # Errors
    /// Only what the cryptographic library reports.
    pub fn with_offer(
        local: &PrivateKey,
        peer: &PublicKey,
        offer: Offer,
        entropy: [u8; 32],
        config: SessionConfig,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let index = offer.index;
        let mut header = handshake_header(PacketType::Initiation, config.lane, index)
            .emit()
            .to_vec();
        header.extend(offer.cookie.iter().flatten());
        let ephemeral = Ephemeral::default();
        ephemeral.set(entropy);
        let mut noise = builder(&ephemeral)?
            .local_private_key(local.as_bytes())?
            .remote_public_key(peer.as_bytes())?
            .prologue(&[PROLOGUE, &header].concat())?
            .build_initiator()?;
        let said = [offer.counter.to_be_bytes(), offer.boot_id.to_be_bytes()].concat();
        let length = INITIATION_LEN - HEADER_LEN + header.len();
        let packet = write(&mut noise, &header, &said, length)?;
        Ok((
            Self {
                noise,
                peer: *peer,
                index,
                config,
                echo: cookie::echo(&packet),
            },
            packet,
        ))
    }

    /// Our index for the session: the `receiver_index` of its response.
    pub fn index(&self) -> u32 {
        self.index
    }

    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// Takes the peer's response.
    ///
    /// # Errors
    /// A response that is refused changes nothing: the right one may still come.
    pub fn finish(&mut self, response: &[u8]) -> Result<Session, HandshakeError> {
        if self.noise.is_handshake_finished() {
            return Err(HandshakeError::Finished);
        }
        let (header, message) = parse(response, PacketType::Response, RESPONSE_LEN)?;
        if header.receiver_index != self.index {
            return Err(HandshakeError::UnexpectedIndex {
                expected: self.index,
                found: header.receiver_index,
            });
        }
        on_lane(self.config.lane, header.lane)?;
        let [a, b, c, d, boot @ ..]: [u8; ANSWER_LEN] = read(&mut self.noise, message)?;
        let indices = (self.index, u32::from_be_bytes([a, b, c, d]));
        let mut session = session(
            &mut self.noise,
            Role::Initiator,
            self.peer,
            indices,
            self.config,
        )?;
        session.set_peer_boot_id(u64::from_be_bytes(boot));
        Ok(session)
    }

    /// The cookie in a reply to our initiation, to be put into the next one.
    ///
    /// # Errors
    /// A reply that does not name the initiation comes from somebody who has not seen it.
    pub fn cookie(&self, reply: &[u8]) -> Result<Cookie, HandshakeError> {
        let (header, body) = parse(reply, PacketType::CookieReply, cookie::REPLY_LEN)?;
        if header.receiver_index != self.index {
            return Err(HandshakeError::UnexpectedIndex {
                expected: self.index,
                found: header.receiver_index,
            });
        }
        on_lane(self.config.lane, header.lane)?;
        let (echo, rest) = body
            .split_first_chunk::<COOKIE_LEN>()
            .ok_or(HandshakeError::Unauthentic)?;
        let cookie = rest
            .first_chunk::<COOKIE_LEN>()
            .filter(|_| *echo == self.echo)
            .ok_or(HandshakeError::Unauthentic)?;
        Ok(*cookie)
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("peer", &self.peer)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// The end that is asked: the peers it answers, and the last initiation it took from each.
#[derive(Debug)]
pub struct Responder {
    local: PrivateKey,
    boot_id: u64,
    peers: HashMap<PublicKey, Option<u64>>,
}

impl Responder {
    pub fn new(local: PrivateKey) -> Self {
        Self {
            local,
            boot_id: 0,
            peers: HashMap::new(),
        }
    }

    /// What its answers say of this start of the node.
    pub fn with_boot_id(mut self, boot_id: u64) -> Self {
        self.boot_id = boot_id;
        self
    }

    /// Answers `peer` from now on, but no initiation up to `last`; what was accepted
    /// from it before stays remembered.
    pub fn allow(&mut self, peer: PublicKey, last: Option<u64>) {
        let known = self.peers.entry(peer).or_default();
        *known = (*known).max(last);
    }

    /// Answers `peer` no more, and forgets its counter.
    pub fn forget(&mut self, peer: &PublicKey) {
        self.peers.remove(peer);
    }

    /// The counter of the last initiation accepted from `peer`.
    pub fn last_counter(&self, peer: &PublicKey) -> Option<u64> {
        self.peers.get(peer).copied().flatten()
    }

    /// Reads an initiation: who sent it, and that it is fresh. Changes nothing and answers nothing.
    pub fn read(&self, packet: &[u8]) -> Result<Initiation, HandshakeError> {
        let with_cookie = packet.len() == INITIATION_COOKIE_LEN;
        let length = if with_cookie {
            INITIATION_COOKIE_LEN
        } else {
            INITIATION_LEN
        };
        let (header, body) = parse(packet, PacketType::Initiation, length)?;
        let (cookie, message) = body
            .split_at_checked(if with_cookie { COOKIE_LEN } else { 0 })
            .ok_or(HandshakeError::Unauthentic)?;
        let ephemeral = Ephemeral::default();
        let mut noise = builder(&ephemeral)?
            .local_private_key(self.local.as_bytes())?
            .prologue(&[PROLOGUE, &header.emit(), cookie].concat())?
            .build_responder()?;
        let offer: [u8; OFFER_LEN] = read(&mut noise, message)?;
        let (counter, boot_id) = (u128::from_be_bytes(offer) >> 64, u128::from_be_bytes(offer));
        let peer = noise
            .get_remote_static()
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .and_then(|key| PublicKey::from_bytes(key).ok())
            .ok_or(HandshakeError::Unauthentic)?;
        let initiation = Initiation {
            noise,
            ephemeral,
            peer,
            peer_index: header.receiver_index,
            lane: header.lane,
            counter: counter as u64,
            boot_id: boot_id as u64,
        };
        self.check_fresh(&initiation)?;
        Ok(initiation)
    }

    /// Answers an initiation: the session, and the UDP payload to send. `index` is ours for
    /// the session; `entropy` as in [`Initiator::new`]. Of two initiations that were read,
    /// the one with the lower counter is refused once the other has been accepted. One for
    /// another lane than that of `config` is refused.
    pub fn accept(
        &mut self,
        mut initiation: Initiation,
        index: u32,
        entropy: [u8; 32],
        config: SessionConfig,
    ) -> Result<(Session, Vec<u8>), HandshakeError> {
        self.check_fresh(&initiation)?;
        on_lane(config.lane, initiation.lane)?;
        initiation.ephemeral.set(entropy);
        let header =
            handshake_header(PacketType::Response, initiation.lane, initiation.peer_index).emit();
        let mut answer = index.to_be_bytes().to_vec();
        answer.extend_from_slice(&self.boot_id.to_be_bytes());
        let packet = write(&mut initiation.noise, &header, &answer, RESPONSE_LEN)?;
        let indices = (index, initiation.peer_index);
        let mut session = session(
            &mut initiation.noise,
            Role::Responder,
            initiation.peer,
            indices,
            config,
        )?;
        session.set_peer_boot_id(initiation.boot_id);
        self.peers.insert(initiation.peer, Some(initiation.counter));
        Ok((session, packet))
    }

    fn check_fresh(&self, initiation: &Initiation) -> Result<(), HandshakeError> {
        match self.peers.get(&initiation.peer) {
            None => Err(HandshakeError::UnknownPeer(initiation.peer)),
            Some(&Some(last)) if initiation.counter <= last => {
                Err(HandshakeError::ReplayedInitiation {
                    counter: initiation.counter,
                    last,
                })
            }
            Some(_) => Ok(()),
        }
    }
}

/// An authentic initiation that waits to be accepted.
pub struct Initiation {
    noise: HandshakeState,
    ephemeral: Ephemeral,
    peer: PublicKey,
    peer_index: u32,
    lane: u16,
    counter: u64,
    boot_id: u64,
}

impl Initiation {
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// The peer's index for the session.
    pub fn peer_index(&self) -> u32 {
        self.peer_index
    }

    /// The peer's initiation counter.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Changes whenever the peer starts anew.
    pub fn boot_id(&self) -> u64 {
        self.boot_id
    }
}

impl fmt::Debug for Initiation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiation")
            .field("peer", &self.peer)
            .field("peer_index", &self.peer_index)
            .field("counter", &self.counter)
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

pub(crate) fn handshake_header(kind: PacketType, lane: u16, receiver_index: u32) -> Header {
    Header {
        kind,
        epoch: 0,
        lane,
        receiver_index,
        counter: 0,
    }
}

fn on_lane(expected: u16, found: u16) -> Result<(), HandshakeError> {
    if expected == found {
        Ok(())
    } else {
        Err(HandshakeError::UnexpectedLane { expected, found })
    }
}

/// The header and the Noise message of a handshake packet; checks all that costs nothing.
fn parse(
    packet: &[u8],
    expected: PacketType,
    length: usize,
) -> Result<(Header, &[u8]), HandshakeError> {
    let header = Header::parse(packet)?;
    if header.kind != expected {
        return Err(HandshakeError::UnexpectedType {
            expected,
            found: header.kind,
        });
    }
    let wrong_length = HandshakeError::Length {
        expected: length,
        found: packet.len(),
    };
    if packet.len() != length {
        return Err(wrong_length);
    }
    if header != handshake_header(expected, header.lane, header.receiver_index) {
        return Err(HandshakeError::NonZeroField);
    }
    let (_, message) = packet.split_at_checked(HEADER_LEN).ok_or(wrong_length)?;
    Ok((header, message))
}

fn read<const N: usize>(
    noise: &mut HandshakeState,
    message: &[u8],
) -> Result<[u8; N], HandshakeError> {
    let mut payload = [0; N];
    match noise.read_message(message, &mut payload)? {
        n if n == N => Ok(payload),
        _ => Err(HandshakeError::Unauthentic),
    }
}

fn write(
    noise: &mut HandshakeState,
    header: &[u8],
    payload: &[u8],
    length: usize,
) -> Result<Vec<u8>, HandshakeError> {
    let mut packet = vec![0; length];
    let (front, message) = packet.split_at_mut(header.len().min(length));
    front.copy_from_slice(header);
    let written = noise.write_message(payload, message)?;
    if written != message.len() {
        return Err(HandshakeError::Internal(format!(
            "message of {written} bytes, expected {}",
            message.len()
        )));
    }
    Ok(packet)
}

fn session(
    noise: &mut HandshakeState,
    role: Role,
    peer: PublicKey,
    indices: (u32, u32),
    config: SessionConfig,
) -> Result<Session, HandshakeError> {
    let (to_responder, to_initiator) = noise.dangerously_get_raw_split();
    let split = (Zeroizing::new(to_responder), Zeroizing::new(to_initiator));
    Ok(Session::new(role, peer, indices, split, config)?)
}

fn builder<'a>(ephemeral: &Ephemeral) -> Result<Builder<'a>, HandshakeError> {
    Ok(Builder::with_resolver(
        PATTERN.parse()?,
        Box::new(Resolver(ephemeral.clone())),
    ))
}

/// The one random value a side of the handshake needs, put in by the caller and
/// taken out once; whoever asks again, or too early, gets an error.
#[derive(Clone, Default)]
struct Ephemeral(Arc<Mutex<Option<Zeroizing<[u8; 32]>>>>);

impl Ephemeral {
    fn set(&self, entropy: [u8; 32]) {
        if let Ok(mut slot) = self.0.lock() {
            *slot = Some(Zeroizing::new(entropy));
        }
    }
}

impl Random for Ephemeral {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let entropy = self
            .0
            .lock()
            .ok()
            .and_then(|mut slot| slot.take())
            .ok_or(snow::Error::Rng)?;
        if dest.len() != entropy.len() {
            return Err(snow::Error::Rng);
        }
        dest.copy_from_slice(entropy.as_slice());
        Ok(())
    }
}

/// Snow's own primitives, with the caller's randomness instead of the system's.
struct Resolver(Ephemeral);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(self.0.clone()))
    }
    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }
    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }
    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}
