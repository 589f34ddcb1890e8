//! What the link has to do with sessions that take each other's place and with
//! the peer's address: renewal without a lost packet, challenges and their answers.

use core::time::Duration;

use mef_packet::Instant;

use super::{Control, Event, Link, Packed};
use crate::carried::CarriedSet;
use crate::codec::{Builder, Frame};

/// Most challenges that wait for their answer.
const MAX_ANSWERS: usize = 4;
/// A challenge is small, so that it passes any path.
const CHALLENGE_LIMIT: usize = 64;

impl Link {
    /// A session with the same two starts of both ends took the place of the one before: packet
    /// numbers go on, so what is in flight stays so and its acknowledgements count. `rtt` is what
    /// the handshake took, where known.
    pub fn session_renewed(&mut self, now: Instant, rtt: Option<Duration>) {
        let was_up = self.in_session;
        self.in_session = true;
        // The responder goes on with the old session until a packet of the new one comes.
        self.ping_now = true;
        // A peer that was started anew may have missed what was said in a session it never used.
        self.control.now(Control::Hello);
        if self.silent {
            // The handshake is an answer: the path carries packets both ways.
            self.silent = false;
            self.last_ack = now;
            self.last_elicit = now;
            self.unanswered = None;
            self.pmtu.path_returned();
            self.events.push_back(Event::Resumed);
            self.activate_all();
        } else if !was_up {
            self.last_ack = now;
            self.last_elicit = now;
            self.unanswered = None;
            self.activate_all();
        }
        if let Some(rtt) = rtt.filter(|_| !self.rtt.is_known()) {
            self.rtt.sample(rtt);
        }
    }

    /// The peer is somewhere else now: size, delay and capacity of the path are learned anew.
    pub fn path_changed(&mut self, now: Instant) {
        self.rtt.path_changed();
        self.guard.session_started(now);
        if let (true, Some(peer)) = (self.probing, self.peer) {
            self.pmtu.start(now, self.config.port_mtu.min(peer.mtu));
            self.events.push_back(Event::PathMtu(self.pmtu.current()));
        }
    }

    /// Packs a challenge as packet `number`, appended to `out`; it is for another address than
    /// the rest of the link's packets.
    pub fn pack_challenge(
        &mut self,
        now: Instant,
        number: u64,
        token: u64,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        if !self.in_session {
            return None;
        }
        let mut b = Builder::new(out, CHALLENGE_LIMIT);
        b.push(&Frame::PathChallenge { token });
        let inner_len = b.finish();
        Some(self.account(now, number, inner_len, CarriedSet::NOTHING, false))
    }

    /// The peer wants to know whether packets reach this end where it was heard.
    pub(super) fn on_challenge(&mut self, token: u64) {
        if self.answers.len() < MAX_ANSWERS && !self.answers.contains(&token) {
            self.answers.push_back(token);
        }
    }
}
