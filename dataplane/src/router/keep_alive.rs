//! Keep-alives (RFC 9293 section 3.8.4) say that the far host is alive, so they
//! are answered only as long as that is known; and what hosts still believe in
//! when a router that carried it is gone.
//!
//! ```text
//!  host A    router A                                 router B    host B
//!  probe --> far host heard within 75 s? answered
//!            else held -------- asks ---------------> heard within 75 s? says when
//!                                                     else probe -----> answer
//!        <-- answered <---- heard 0 s ago -----------                <--'
//!                                                     63 s of probes without one:
//!    RST <----------------- RESET -------------------  over
//!
//!            restarted <-------- HELLO ------------->  RST to its host
//!            ACK <- for each: gone (its two ends) ---
//!  ACK, where it stands --> [no such flow] --> RST in its place
//! ```
//!
//! A host that only listens would wait for ever behind a restarted router: nothing
//! of what that knew is left. The peer knows the connections, the host knows where
//! it stands (RFC 9293 section 3.10.7.4: it answers a segment out of its window),
//! and then a RST can be made that it believes (RFC 5961).

use std::net::SocketAddr;
use std::time::Duration;

use mef_io::Port;
use mef_packet::Instant;

use super::Router;
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::fib::Route;
use crate::flow_table::FlowKey;
use crate::host_tcp;

/// A host that was heard so long ago counts as alive: as long as Linux waits between keep-alives.
const ALIVE_FOR: Duration = Duration::from_secs(75);
/// The peer is asked about one flow at most so often.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the far host of a flow, and who waits for word of ours.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAlive {
    /// When the far host was last heard.
    far_heard: Option<Instant>,
    asked: Option<Instant>,
    /// Our host's keep-alive waits for its answer.
    held: bool,
    /// Since when the peer waits for word of our host.
    wanted: Option<Instant>,
}

impl<P: Port> Router<P> {
    /// A keep-alive of a flow's host. True where it must wait, because the far host may be gone.
    pub(super) fn holds_keep_alive(&mut self, now: Instant, index: usize) -> bool {
        let Some(f) = self.flows.get_mut(index) else {
            return false;
        };
        let known = f.alive.far_heard;
        if known.is_some_and(|t| now.since(t) < ALIVE_FOR) {
            return false;
        }
        let Some(host) = &mut f.host else {
            return false;
        };
        host.hold_keep_alive(now);
        f.alive.held = true;
        let due = f.alive.asked.is_none_or(|t| now.since(t) >= ASK_EVERY);
        if due {
            f.alive.asked = Some(now);
            let (peer, number) = (f.peer, f.number);
            self.with_link(peer, |link, _| link.ask_heard(now, number));
        }
        true
    }

    /// The peer asks whether our host is alive.
    pub(super) fn alive_asked(&mut self, now: Instant, peer: PeerId, number: u32) {
        let Some(index) = self.flows.by_number(peer, number) else {
            return;
        };
        let Some(f) = self.flows.get_mut(index) else {
            return;
        };
        let Some(host) = &mut f.host else { return };
        let heard = host.heard();
        if now.since(heard) < ALIVE_FOR {
            self.with_link(peer, |link, _| link.say_heard(now, number, heard));
            return;
        }
        host.probe(now);
        f.alive.wanted = Some(now);
        self.mark(index);
    }

    /// The peer tells when its host was last heard.
    pub(super) fn far_heard(&mut self, now: Instant, peer: PeerId, number: u32, ago: Duration) {
        let Some(index) = self.flows.by_number(peer, number) else {
            return;
        };
        if let Some(f) = self.flows.get_mut(index) {
            let at = now - ago;
            f.alive.far_heard = f.alive.far_heard.max(Some(at));
            if core::mem::take(&mut f.alive.held) {
                if let Some(host) = &mut f.host {
                    host.answer_keep_alive();
                }
                self.mark(index);
            }
        }
    }

    /// Our host has answered what the peer asked for, if it did.
    pub(super) fn tell_heard(&mut self, now: Instant, index: usize) {
        let Some(f) = self.flows.get_mut(index) else {
            return;
        };
        let (Some(wanted), Some(host)) = (f.alive.wanted, &f.host) else {
            return;
        };
        let heard = host.heard();
        if heard >= wanted {
            f.alive.wanted = None;
            let (peer, number) = (f.peer, f.number);
            self.with_link(peer, |link, _| link.say_heard(now, number, heard));
        }
    }

    /// The peer was restarted: it is told of a flow that it carried, so that its host does not wait.
    pub(super) fn tell_gone(&mut self, now: Instant, index: usize) {
        let Some(f) = self.flows.get(index).filter(|f| f.host.is_some()) else {
            return;
        };
        let (peer, ours, theirs) = (f.peer, f.key.host, f.key.far);
        self.with_link(peer, |link, _| link.tell_gone(now, theirs, ours));
    }

    /// A connection from before we were started: its host is asked where it stands, and its answer,
    /// of a flow that there is not, gets a RST.
    pub(super) fn gone_before(
        &mut self,
        now: Instant,
        peer: PeerId,
        host: SocketAddr,
        far: SocketAddr,
    ) {
        if !self.fib.source_allowed(peer, &far.ip()) {
            self.counters
                .count(Stage::Open, DropReason::SourceNotAllowed);
            return;
        }
        let local = matches!(
            self.fib.lookup(host.ip()),
            Some(Route::Connected { .. } | Route::Via { .. })
        );
        if !local || self.flows.by_key(&FlowKey { host, far }).is_some() {
            return;
        }
        if !self.resets.take(now) {
            self.counters.count(Stage::Open, DropReason::RateLimited);
            return;
        }
        let [a, b, c, d, ..] = (self.seed.entropy)();
        let question = host_tcp::question(far, host, u32::from_be_bytes([a, b, c, d]));
        if let Some(question) = question {
            self.send_segment(now, &question, 0);
        }
    }
}
