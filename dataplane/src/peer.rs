//! A peer: the handshake and sessions that secure the link to it, and the link
//! itself. Sans-IO; the router carries the UDP payloads.
//!
//! ```text
//!            initiate                     response            first packet opens
//!  no session --------> awaiting answer ----------> session <------------------- responded
//!      ^                                               |                             ^
//!      '---- silent too long, or key limit: initiate --'     initiation accepted ----'
//! ```
//!
//! The old session stays usable until the new one is confirmed by its first
//! packet. Where both ends initiate at once, the one with the smaller public
//! key gets its way.

use std::net::SocketAddr;
use std::time::Duration;

use mef_crypto::{
    HandshakeError, Initiation, Initiator, PrivateKey, PublicKey, Responder, Session, SessionConfig,
};
use mef_packet::Instant;
use mef_protocol::line::LinkEnd;
use mef_protocol::link::{DatagramStats, Link, LinkConfig};

use crate::config::PeerId;

/// First wait for an answer to an initiation; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(300);
const RETRY_MAX: Duration = Duration::from_secs(4);
/// A link that hears nothing for as long tries a new handshake beside its probes.
const SILENT_HANDSHAKE: Duration = Duration::from_secs(2);
/// How long an unanswered crossing initiation of ours wins over the peer's.
const CROSSING: Duration = Duration::from_secs(2);

/// Which of a peer's sessions a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Current,
    Next,
    Previous,
}

/// One peer of a line.
pub struct Peer {
    pub id: PeerId,
    pub key: PublicKey,
    pub link: Link,
    /// Where it was last heard, or is configured to be.
    pub remote: Option<SocketAddr>,
    current: Option<Session>,
    next: Option<Session>,
    previous: Option<Session>,
    initiator: Option<Initiator>,
    initiated_at: Instant,
    retry: Duration,
    next_attempt: Instant,
    we_win_crossing: bool,
    /// What of the link's queues is already among the router's counters.
    pub counted: DatagramStats,
}

/// What an initiation needs from outside.
pub struct Fresh {
    /// Session index not in use.
    pub index: u32,
    /// Grows with every initiation, over restarts too.
    pub counter: u64,
    pub boot_id: u64,
    pub entropy: [u8; 32],
}

impl Peer {
    pub fn new(
        now: Instant,
        id: PeerId,
        key: PublicKey,
        own: PublicKey,
        endpoint: Option<SocketAddr>,
        link: LinkConfig,
    ) -> Self {
        Self {
            id,
            key,
            link: Link::new(now, link),
            remote: endpoint,
            current: None,
            next: None,
            previous: None,
            initiator: None,
            initiated_at: Instant::ZERO,
            retry: RETRY_MIN,
            next_attempt: now,
            we_win_crossing: own < key,
            counted: DatagramStats::default(),
        }
    }

    pub fn has_session(&self) -> bool {
        self.current.is_some()
    }

    /// When [`initiate`](Self::initiate) is due; `FAR_FUTURE` while all is well or the peer has to come to us.
    pub fn handshake_due(&self, now: Instant) -> Instant {
        if self.remote.is_none() {
            return Instant::FAR_FUTURE;
        }
        let healthy = self.current.is_some() && self.link.silent_for(now) < SILENT_HANDSHAKE;
        if healthy {
            return if self.link.is_silent() {
                now + SILENT_HANDSHAKE
            } else {
                Instant::FAR_FUTURE
            };
        }
        self.next_attempt
    }

    /// Makes the first handshake message.
    ///
    /// # Errors
    /// What the handshake reports; the next attempt comes by itself.
    pub fn initiate(
        &mut self,
        now: Instant,
        own: &PrivateKey,
        fresh: &Fresh,
        config: SessionConfig,
    ) -> Result<Vec<u8>, HandshakeError> {
        self.next_attempt = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        let (initiator, message) = Initiator::new(
            own,
            &self.key,
            fresh.index,
            fresh.counter,
            fresh.boot_id,
            fresh.entropy,
            config,
        )?;
        self.initiator = Some(initiator);
        self.initiated_at = now;
        Ok(message)
    }

    pub fn initiator_index(&self) -> Option<u32> {
        self.initiator.as_ref().map(Initiator::index)
    }

    /// Takes the answer to our initiation.
    ///
    /// # Errors
    /// A refused answer changes nothing.
    pub fn finish(
        &mut self,
        now: Instant,
        from: SocketAddr,
        response: &[u8],
    ) -> Result<(), HandshakeError> {
        let Some(initiator) = &mut self.initiator else {
            return Ok(());
        };
        let session = initiator.finish(response)?;
        self.initiator = None;
        self.remote = Some(from);
        self.install(now, session, Some(now.since(self.initiated_at)));
        Ok(())
    }

    /// Answers the peer's initiation; `None` where our own crosses it and wins.
    ///
    /// # Errors
    /// A refused initiation changes nothing.
    pub fn respond(
        &mut self,
        now: Instant,
        responder: &mut Responder,
        initiation: Initiation,
        fresh: &Fresh,
        config: SessionConfig,
    ) -> Result<Option<Vec<u8>>, HandshakeError> {
        let crossing = self.initiator.is_some() && now.since(self.initiated_at) < CROSSING;
        if crossing && self.we_win_crossing {
            return Ok(None);
        }
        let (session, message) =
            responder.accept(initiation, fresh.index, fresh.entropy, config)?;
        self.initiator = None;
        self.next_attempt = now + RETRY_MAX;
        self.next = Some(session);
        Ok(Some(message))
    }

    fn install(&mut self, now: Instant, session: Session, rtt: Option<Duration>) {
        self.previous = self.current.replace(session);
        self.next = None;
        self.retry = RETRY_MIN;
        self.next_attempt = now + RETRY_MAX;
        self.link.session_started(now, rtt);
    }

    pub fn slot(&self, index: u32) -> Option<Slot> {
        let is = |s: &Option<Session>| s.as_ref().is_some_and(|s| s.local_index() == index);
        if is(&self.current) {
            Some(Slot::Current)
        } else if is(&self.next) {
            Some(Slot::Next)
        } else if is(&self.previous) {
            Some(Slot::Previous)
        } else {
            None
        }
    }

    /// Decrypts a transport packet in place; returns its number and where its inner packet lies,
    /// or `None` for one of the old session, whose content no longer counts.
    ///
    /// # Errors
    /// What the session says of an unauthentic or repeated packet.
    pub fn open(
        &mut self,
        now: Instant,
        slot: Slot,
        from: SocketAddr,
        packet: &mut [u8],
    ) -> Result<Option<(u64, core::ops::Range<usize>)>, mef_crypto::OpenError> {
        let session = match slot {
            Slot::Current => &mut self.current,
            Slot::Next => &mut self.next,
            Slot::Previous => &mut self.previous,
        };
        let Some(session) = session else {
            return Err(mef_crypto::OpenError::UnknownSession);
        };
        let opened = session.open(packet)?;
        match slot {
            Slot::Current => {}
            Slot::Previous => return Ok(None),
            Slot::Next => {
                if let Some(session) = self.next.take() {
                    self.remote = Some(from);
                    self.install(now, session, None);
                }
            }
        }
        Ok(Some((opened.counter, opened.payload)))
    }

    /// Seals `packet` (room for the header, the inner packet, room for the tag) in place.
    pub fn seal(&mut self, packet: &mut [u8]) -> Result<u64, mef_crypto::SealError> {
        match &mut self.current {
            Some(s) => s.seal_in_place(0, packet),
            None => Err(mef_crypto::SealError::LimitReached),
        }
    }
}

impl LinkEnd for Peer {
    fn link(&self) -> &Link {
        &self.link
    }
    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
    fn next_number(&self) -> Option<u64> {
        self.current.as_ref().map(|s| s.next_counter(0))
    }
}
