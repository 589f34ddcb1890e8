//! The router's part of sessions with its peers: handshake messages in and
//! out, what is said to somebody with a session that is gone, challenges.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mef_crypto::{Admission, Header, PacketType, SessionConfig};
use mef_io::Port;
use mef_packet::{Buffer, Instant};
use mef_protocol::line::LinkEnd;

use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::outer;
use crate::peer::Fresh;
use crate::persist::Counters;

impl<P: Port> Router<P> {
    pub(super) fn fresh(&mut self, now: Instant) -> Fresh {
        let entropy = (self.seed.entropy)();
        let [a, b, c, d, ..] = entropy;
        let mut index = u32::from_be_bytes([a, b, c, d]);
        // Two sessions of one router never have the same.
        while self
            .lines
            .iter()
            .flat_map(|l| &l.peers)
            .any(|p| p.slot(index).is_some() || p.initiator_index() == Some(index))
        {
            index = index.wrapping_add(1);
        }
        Fresh {
            index,
            counter: self.initiation_counter(now),
            boot_id: self.seed.boot_id,
            entropy: (self.seed.entropy)(),
        }
    }

    /// What was accepted from the peers before this start is not accepted again.
    pub fn accepted_before(&mut self, counters: &Counters) {
        for p in &self.config.peers {
            self.responder
                .allow(p.public_key, counters.of(&p.public_key));
        }
    }

    /// The counter that an initiation would have now, and the last ones accepted from the peers.
    pub fn initiation_counters(&self, now: Instant) -> (u64, BTreeMap<String, u64>) {
        let accepted = self.config.peers.iter().filter_map(|p| {
            let last = self.responder.last_counter(&p.public_key)?;
            Some((p.public_key.to_string(), last))
        });
        (self.initiation_counter(now), accepted.collect())
    }

    fn initiation_counter(&self, now: Instant) -> u64 {
        self.seed
            .initiation_base
            .saturating_add(now.since(self.started).as_nanos() as u64)
    }

    pub(super) fn session_config(&self, line: usize) -> SessionConfig {
        // 50 ms of the line in full packets, at least 8192 (the session's own lower bound).
        let rate = self.lines.get(line).map_or(0, |l| {
            l.line.capacity().bytes_in(Duration::from_millis(50)).0
        });
        SessionConfig {
            engine: self.config.engine,
            lane: self.worker(),
            replay_window: (rate / 64) as usize,
            ..SessionConfig::default()
        }
    }

    /// What is due of sessions: their end, a handshake, a challenge.
    pub(super) fn session_timers(&mut self, now: Instant) {
        if self.gate.is_stale(now) {
            self.gate.renew(now, (self.seed.entropy)());
        }
        self.close_lanes(now);
        for line in 0..self.lines.len() {
            for place in 0..self.lines.get(line).map_or(0, |l| l.peers.len()) {
                let Some(p) = self
                    .lines
                    .get_mut(line)
                    .and_then(|l| l.peers.get_mut(place))
                else {
                    continue;
                };
                if p.expiry_due() <= now {
                    let had = p.has_session();
                    p.expire(now);
                    let id = p.id;
                    if had && !p.has_session() {
                        tracing::warn!(
                            peer = self.peer_name(id),
                            "the session ended, no other took its place"
                        );
                    }
                }
                let Some(p) = self
                    .lines
                    .get_mut(line)
                    .and_then(|l| l.peers.get_mut(place))
                else {
                    continue;
                };
                if let Some((to, token)) = p.challenge(now) {
                    self.send_challenge(now, line, place, to, token);
                }
                let due = self
                    .lines
                    .get(line)
                    .and_then(|l| l.peers.get(place))
                    .is_some_and(|p| p.handshake_due(now) <= now && self.has_lane(p.id));
                if due {
                    self.initiate(now, line, place);
                }
            }
        }
    }

    /// When [`session_timers`](Self::session_timers) has something to do.
    pub(super) fn session_due(&self, now: Instant) -> Instant {
        self.lines
            .iter()
            .flat_map(|l| &l.peers)
            .map(|p| {
                let challenge = p.path.due().filter(|_| p.has_session());
                let handshake = match self.has_lane(p.id) {
                    true => p.handshake_due(now),
                    false => Instant::FAR_FUTURE,
                };
                handshake
                    .min(p.expiry_due())
                    .min(challenge.unwrap_or(Instant::FAR_FUTURE))
            })
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
    }

    fn initiate(&mut self, now: Instant, line: usize, place: usize) {
        let fresh = self.fresh(now);
        let config = self.session_config(line);
        let key = self.config.private_key.clone();
        let Some(peer) = self
            .lines
            .get_mut(line)
            .and_then(|l| l.peers.get_mut(place))
        else {
            return;
        };
        let Ok(Some((to, message))) = peer.initiate(now, &key, &fresh, config) else {
            return;
        };
        self.stats.handshakes += 1;
        self.send_udp(now, line, to, &message);
    }

    fn send_challenge(
        &mut self,
        now: Instant,
        line: usize,
        place: usize,
        to: SocketAddr,
        token: u64,
    ) {
        self.inner.clear();
        let Some(l) = self.lines.get_mut(line) else {
            return;
        };
        let packed = l.peers.get_mut(place).and_then(|p| {
            let number = p.next_number()?;
            p.link.pack_challenge(now, number, token, &mut self.inner)
        });
        let Some(packed) = packed else { return };
        l.line.charge(now, packed.line_bytes);
        if let Err(Stop::Drop(stage, reason)) = self.seal_to(now, line, place, packed, Some(to)) {
            self.counters.count(stage, reason);
        }
    }

    /// A challenge of ours came back.
    pub(super) fn path_answered(&mut self, now: Instant, peer: PeerId, token: u64) {
        let moved = self
            .peer_mut(peer)
            .and_then(|p| p.path_answered(now, token));
        if let Some(address) = moved {
            self.stats.peers_moved += 1;
            tracing::info!(peer = self.peer_name(peer), %address, "the peer is at another address now");
        }
    }

    pub(super) fn open_initiation(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Step<()> {
        let configured = self
            .lines
            .get(line)
            .is_some_and(|l| l.peers.iter().any(|p| p.is_at(from)));
        match self.gate.admit(now, from, configured, datagram) {
            Admission::Read => {}
            Admission::AskCookie(reply) => {
                self.send_udp(now, line, from, &reply);
                return dropped(Stage::Open, DropReason::CookieAsked);
            }
            Admission::Refuse => return dropped(Stage::Open, DropReason::RateLimited),
        }
        let initiation = match self.responder.read(datagram) {
            Ok(i) => i,
            Err(mef_crypto::HandshakeError::UnknownPeer(_)) => {
                return dropped(Stage::Open, DropReason::UnknownPeer)
            }
            Err(_) => return dropped(Stage::Open, DropReason::HandshakeRefused),
        };
        let fresh = self.fresh(now);
        let config = self.session_config(line);
        let key = *initiation.peer();
        let Some(peer) = self
            .lines
            .get_mut(line)
            .and_then(|l| l.peers.iter_mut().find(|p| p.key == key))
        else {
            return dropped(Stage::Open, DropReason::UnknownPeer);
        };
        match peer.respond(now, from, &mut self.responder, initiation, &fresh, config) {
            Ok(Some(message)) => {
                self.stats.handshakes += 1;
                self.send_udp(now, line, from, &message);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(_) => dropped(Stage::Open, DropReason::HandshakeRefused),
        }
    }

    /// A response, or a cookie reply: both answer an initiation of ours.
    pub(super) fn open_answer(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        header: Header,
        datagram: &[u8],
    ) -> Step<()> {
        let found = self.lines.get_mut(line).and_then(|l| {
            l.peers
                .iter_mut()
                .find(|p| p.initiator_index() == Some(header.receiver_index))
        });
        let Some(peer) = found else {
            return dropped(Stage::Open, DropReason::CryptoUnknownSession);
        };
        let taken = match header.kind {
            PacketType::CookieReply => peer.cookie_reply(now, datagram),
            _ => peer.finish(now, from, datagram),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(_) => dropped(Stage::Open, DropReason::HandshakeRefused),
        }
    }

    /// A transport packet came for a session that there is not: its sender is told, so that it
    /// need not find out by silence. What is said is shorter than what provoked it, not often,
    /// and makes a peer do no more than a handshake.
    pub(super) fn unknown_session(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        header: Header,
        length: usize,
    ) -> Step<()> {
        if length > mef_crypto::OVERHEAD && self.hints.take(now) {
            let hint = Header {
                kind: PacketType::NoSession,
                ..header
            };
            self.send_udp(now, line, from, &hint.emit());
        }
        dropped(Stage::Open, DropReason::CryptoUnknownSession)
    }

    /// Somebody says that a packet of ours was of no session.
    pub(super) fn open_hint(&mut self, now: Instant, line: usize, header: Header) -> Step<()> {
        let known = self.lines.get_mut(line).is_some_and(|l| {
            l.peers
                .iter_mut()
                .any(|p| p.no_session_hint(now, header.receiver_index, header.counter))
        });
        if known {
            Ok(())
        } else {
            dropped(Stage::Open, DropReason::CryptoUnknownSession)
        }
    }

    /// Sends a handshake message as one UDP datagram; it does not wait for its turn, but is charged.
    fn send_udp(&mut self, now: Instant, line: usize, to: SocketAddr, payload: &[u8]) {
        let Some(l) = self.lines.get_mut(line) else {
            return;
        };
        let (port, listen) = (l.port, l.listen);
        l.line
            .charge(now, outer::line_bytes(payload.len(), &to.ip()));
        let Some(buf) = self.buffer_of(port, payload) else {
            return;
        };
        debug_assert_eq!(buf.len(), payload.len());
        self.send_outer(now, port, listen, to, buf);
    }
}
