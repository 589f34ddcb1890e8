//! A peer: the handshake and sessions that secure the link to it, and the link
//! itself. Sans-IO; the router carries the UDP payloads.
//!
//! ```text
//!            initiate                     response            first packet opens
//!  no session --------> awaiting answer ----------> session <------------------- responded
//!      ^                                            |     ^                          ^
//!      |                          120 s: initiate --'     '-- initiation accepted ---'
//!      '---- 180 s old, and no other has taken its place
//! ```
//!
//! A handshake begins where there is no session, when one is 120 s old, after a
//! silence, and when the peer says that it knows of no session. The old session
//! stays in use until the new one is confirmed by its first packet, and receives
//! for a while longer; packet numbers go on, so nothing is lost over it. Only
//! where one of the two ends was started anew the link starts anew too. Where
//! both ends initiate at once, the one with the smaller public key gets its way.

mod path;

use std::net::SocketAddr;
use std::time::Duration;

use mef_crypto::{
    Cookie, HandshakeError, Initiation, Initiator, Offer, PrivateKey, PublicKey, Responder, Role,
    Session, SessionConfig,
};
use mef_packet::Instant;
use mef_protocol::line::LinkEnd;
use mef_protocol::link::{DatagramStats, Link, LinkConfig};

pub use path::Path;

use crate::config::PeerId;
use crate::outer;

/// First wait for an answer to an initiation; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(300);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A link that hears nothing for as long tries a new handshake beside its probes.
const SILENT_HANDSHAKE: Duration = Duration::from_secs(2);
/// How long an unanswered crossing initiation of ours wins over the peer's.
const CROSSING: Duration = Duration::from_secs(2);
/// How often it is repeated before the peer's own counts.
const CROSSING_ATTEMPTS: u32 = 3;
/// A session is renewed at this age by the end that initiated it, and a little later by the other.
const RENEW: Duration = Duration::from_secs(120);
const RENEW_LATE: Duration = Duration::from_secs(135);
/// A session that was not renewed by then ends.
const EXPIRE: Duration = Duration::from_secs(180);
/// How long a session that was replaced may still receive what was under way.
const LINGER: Duration = Duration::from_secs(10);
/// Least time between two handshakes that somebody unproved asks for.
const HINT_INTERVAL: Duration = Duration::from_secs(5);
/// A cookie is good for as long as the peer's secret: not much longer than this.
const COOKIE_LIFE: Duration = Duration::from_secs(120);

/// Which of a peer's sessions a packet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Current,
    Next,
    Previous,
}

/// A session and the time from which its age counts.
struct Aged {
    session: Session,
    since: Instant,
}

/// A session that waits for its first packet.
struct Unconfirmed {
    session: Session,
    since: Instant,
    /// Where our answer went: who has it receives there.
    answered_to: SocketAddr,
}

/// One peer of a line.
pub struct Peer {
    pub id: PeerId,
    pub key: PublicKey,
    pub link: Link,
    pub path: Path,
    /// Where it is configured to be.
    endpoint: Option<SocketAddr>,
    current: Option<Aged>,
    next: Option<Unconfirmed>,
    previous: Option<Aged>,
    /// Number of the next packet when there is no session; it goes on from one to the next.
    next_number: u64,
    /// The highest number that has come: what is above it is fresh.
    newest: Option<u64>,
    /// The peer's start that the link's state belongs to.
    boot_id: Option<u64>,
    initiator: Option<Initiator>,
    initiated_at: Instant,
    retry: Duration,
    next_attempt: Instant,
    attempts: u32,
    /// Somebody says that the peer has no session with us, or a key is used up.
    renew_now: bool,
    last_hint: Option<Instant>,
    cookie: Option<(Instant, Cookie)>,
    we_win_crossing: bool,
    /// What of the link's queues is already among the router's counters.
    pub counted: DatagramStats,
    initiations: u64,
    sessions: u64,
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
            path: Path::new(endpoint),
            endpoint,
            current: None,
            next: None,
            previous: None,
            next_number: 0,
            newest: None,
            boot_id: None,
            initiator: None,
            initiated_at: Instant::ZERO,
            retry: RETRY_MIN,
            next_attempt: now,
            attempts: 0,
            renew_now: false,
            last_hint: None,
            cookie: None,
            we_win_crossing: own < key,
            counted: DatagramStats::default(),
            initiations: 0,
            sessions: 0,
        }
    }

    pub fn has_session(&self) -> bool {
        self.current.is_some()
    }
    /// Sessions that were established with it, renewals included.
    pub fn sessions(&self) -> u64 {
        self.sessions
    }
    /// Handshakes that this end began.
    pub fn initiations(&self) -> u64 {
        self.initiations
    }
    /// Whether `from` is an address that this peer is configured at or was heard from.
    pub fn is_at(&self, from: SocketAddr) -> bool {
        [self.endpoint, self.path.address()]
            .iter()
            .flatten()
            .any(|a| a.ip() == from.ip())
    }

    /// When [`initiate`](Self::initiate) is due; `FAR_FUTURE` while all is well or the peer has to come to us.
    pub fn handshake_due(&self, now: Instant) -> Instant {
        if self.path.address().is_none() {
            return Instant::FAR_FUTURE;
        }
        let Some(current) = &self.current else {
            return self.next_attempt;
        };
        if self.renew_now || self.link.silent_for(now) >= SILENT_HANDSHAKE {
            return self.next_attempt;
        }
        let age = match current.session.role() {
            Role::Initiator => RENEW,
            Role::Responder => RENEW_LATE,
        };
        let due = self.next_attempt.max(current.since + age);
        if self.link.is_silent() {
            due.min(now + SILENT_HANDSHAKE)
        } else {
            due
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn expiry_due(&self) -> Instant {
        let current = self.current.as_ref().map(|s| s.since + EXPIRE);
        let next = self.next.as_ref().map(|s| s.since + EXPIRE);
        let previous = self.previous.as_ref().map(|s| s.since);
        [current, next, previous]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
    }

    /// Ends the sessions whose time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.previous.as_ref().is_some_and(|s| s.since <= now) {
            self.previous = None;
        }
        if self.next.as_ref().is_some_and(|s| s.since + EXPIRE <= now) {
            self.next = None;
        }
        if let Some(old) = self.current.take_if(|s| s.since + EXPIRE <= now) {
            self.next_number = old.session.next_counter();
            self.link.session_lost();
        }
    }

    /// Ends all sessions: there is nobody at the other end any more.
    pub fn close(&mut self) {
        (self.next, self.previous, self.initiator) = (None, None, None);
        if let Some(old) = self.current.take() {
            self.next_number = old.session.next_counter();
            self.link.session_lost();
        }
    }

    /// Makes the first handshake message, and says where to send it.
    ///
    /// # Errors
    /// What the handshake reports; the next attempt comes by itself.
    pub fn initiate(
        &mut self,
        now: Instant,
        own: &PrivateKey,
        fresh: &Fresh,
        config: SessionConfig,
    ) -> Result<Option<(SocketAddr, Vec<u8>)>, HandshakeError> {
        self.next_attempt = now + self.retry;
        self.retry = (self.retry * 2).min(RETRY_MAX);
        // One that moved and is silent may be back where it is configured.
        let turn = self.attempts;
        self.attempts = turn.wrapping_add(1);
        let to = match (self.path.address(), self.endpoint) {
            (Some(a), Some(e)) if a != e && turn % 2 == 1 => e,
            (Some(a), _) => a,
            (None, Some(e)) => e,
            (None, None) => return Ok(None),
        };
        let cookie = self
            .cookie
            .filter(|(since, _)| now.since(*since) < COOKIE_LIFE)
            .map(|(_, cookie)| cookie);
        let offer = Offer {
            index: fresh.index,
            counter: fresh.counter,
            boot_id: fresh.boot_id,
            cookie,
        };
        let (initiator, message) =
            Initiator::with_offer(own, &self.key, offer, fresh.entropy, config)?;
        self.initiator = Some(initiator);
        self.initiated_at = now;
        self.initiations += 1;
        Ok(Some((to, message)))
    }

    pub fn initiator_index(&self) -> Option<u32> {
        self.initiator.as_ref().map(Initiator::index)
    }

    /// The peer is under load and asks for proof of our address: the next initiation, at once, has it.
    ///
    /// # Errors
    /// A reply by somebody who has not seen our initiation changes nothing.
    pub fn cookie_reply(&mut self, now: Instant, reply: &[u8]) -> Result<(), HandshakeError> {
        let Some(initiator) = &self.initiator else {
            return Ok(());
        };
        let cookie = initiator.cookie(reply)?;
        let first = self
            .cookie
            .is_none_or(|(since, old)| old != cookie || now.since(since) >= COOKIE_LIFE);
        self.cookie = Some((now, cookie));
        if first {
            self.next_attempt = now;
            self.renew_now |= self.current.is_some();
        }
        Ok(())
    }

    /// Somebody at the peer's end says that there is no session for our packets. He is not
    /// proved: a handshake asks, at most one in [`HINT_INTERVAL`], and the session stays until
    /// it has succeeded.
    pub fn no_session_hint(&mut self, now: Instant, index: u32, number: u64) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        let sent = current.session.next_counter();
        let ours = current.session.peer_index() == index && number < sent && number + 65_536 > sent;
        let due = self.last_hint.is_none_or(|t| now.since(t) >= HINT_INTERVAL);
        if ours && due {
            self.last_hint = Some(now);
            self.renew_now = true;
            self.retry = RETRY_MIN;
            self.next_attempt = now;
        }
        ours
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
        if self.path.address().is_none() {
            self.path.proved(from);
        }
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
        from: SocketAddr,
        responder: &mut Responder,
        initiation: Initiation,
        fresh: &Fresh,
        config: SessionConfig,
    ) -> Result<Option<Vec<u8>>, HandshakeError> {
        let crossing = self.initiator.is_some() && now.since(self.initiated_at) < CROSSING;
        let wins = crossing && self.we_win_crossing;
        // One that goes unanswered for long may be refused there: then the peer's own is answered too.
        if wins && self.attempts <= CROSSING_ATTEMPTS {
            return Ok(None);
        }
        let (session, message) =
            responder.accept(initiation, fresh.index, fresh.entropy, config)?;
        if !wins {
            self.initiator = None;
        }
        self.next_attempt = self.next_attempt.max(now + RETRY_MIN);
        self.next = Some(Unconfirmed {
            session,
            since: now,
            answered_to: from,
        });
        Ok(Some(message))
    }

    /// What stands around the peer's packets depends on the IP version of its address.
    fn fit_headers(&mut self) {
        if let Some(at) = self.path.address() {
            self.link
                .set_packet_overhead(outer::packet_overhead(&at.ip()));
        }
    }

    fn install(&mut self, now: Instant, mut session: Session, rtt: Option<Duration>) {
        let boot_id = session.peer_boot_id();
        let same_start = self.boot_id == Some(boot_id);
        if let Some(old) = self.current.take() {
            self.next_number = old.session.next_counter();
            self.previous = same_start.then_some(Aged {
                since: (now + LINGER).min(old.since + EXPIRE),
                session: old.session,
            });
        }
        if same_start {
            session.number_from(self.next_number);
        } else {
            self.previous = None;
            self.newest = None;
            self.boot_id = Some(boot_id);
        }
        self.current = Some(Aged {
            session,
            since: now,
        });
        self.next = None;
        self.fit_headers();
        self.renew_now = false;
        self.retry = RETRY_MIN;
        self.next_attempt = now + RETRY_MAX;
        self.attempts = 0;
        self.sessions += 1;
        if same_start {
            self.link.session_renewed(now, rtt);
        } else {
            self.link.session_started(now, rtt);
        }
    }

    pub fn slot(&self, index: u32) -> Option<Slot> {
        let is = |s: Option<&Session>| s.is_some_and(|s| s.local_index() == index);
        if is(self.current.as_ref().map(|s| &s.session)) {
            Some(Slot::Current)
        } else if is(self.next.as_ref().map(|s| &s.session)) {
            Some(Slot::Next)
        } else if is(self.previous.as_ref().map(|s| &s.session)) {
            Some(Slot::Previous)
        } else {
            None
        }
    }

    /// Decrypts a transport packet in place; returns its number and where its inner packet lies.
    /// `token` makes the token of a challenge, where one is needed.
    ///
    /// # Errors
    /// What the session says of an unauthentic or repeated packet.
    pub fn open(
        &mut self,
        now: Instant,
        slot: Slot,
        from: SocketAddr,
        packet: &mut [u8],
        token: impl FnOnce() -> u64,
    ) -> Result<(u64, core::ops::Range<usize>), mef_crypto::OpenError> {
        let session = match slot {
            Slot::Current => self.current.as_mut().map(|s| &mut s.session),
            Slot::Next => self.next.as_mut().map(|s| &mut s.session),
            Slot::Previous => self.previous.as_mut().map(|s| &mut s.session),
        };
        let Some(session) = session else {
            return Err(mef_crypto::OpenError::UnknownSession);
        };
        let opened = session.open(packet)?;
        if slot == Slot::Next {
            if let Some(next) = self.next.take() {
                if from == next.answered_to {
                    // It has our answer, so it receives there.
                    self.path.proved(from);
                } else if self.path.address().is_none() {
                    self.path.proved(next.answered_to);
                }
                self.install(now, next.session, None);
            }
        }
        if self.newest.is_none_or(|n| opened.counter > n) {
            self.newest = Some(opened.counter);
            self.path.heard(now, from, packet.len() as u64, token);
        }
        Ok((opened.counter, opened.payload))
    }

    /// The challenge that is due: whereto and its token.
    pub fn challenge(&mut self, now: Instant) -> Option<(SocketAddr, u64)> {
        self.current.as_ref()?;
        let patience = (self.link.rtt().smoothed() * 3 / 2).max(Duration::from_millis(100));
        self.path.challenge(now, patience)
    }

    /// The peer answered a challenge; the address where it is from now on, if it was the right answer.
    pub fn path_answered(&mut self, now: Instant, token: u64) -> Option<SocketAddr> {
        let address = self.path.answered(token)?;
        self.fit_headers();
        self.link.path_changed(now);
        Some(address)
    }

    /// Seals `packet` (room for the header, the inner packet, room for the tag) in place.
    pub fn seal(&mut self, packet: &mut [u8]) -> Result<u64, mef_crypto::SealError> {
        let Some(current) = &mut self.current else {
            return Err(mef_crypto::SealError::LimitReached);
        };
        let sealed = current.session.seal_in_place(packet);
        if sealed.is_err() {
            // The key is used up: only another session helps.
            self.renew_now = true;
        }
        sealed
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
        self.current.as_ref().map(|s| s.session.next_counter())
    }
}
