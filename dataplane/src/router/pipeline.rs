//! The journey of a packet, from the port it came in by to the queue of a line
//! or another port, and from the queues to the wire.
//!
//! ```text
//! push: rx -> Ingress -> Classify -> Route -> Carry -> a flow's queue, or a port
//!                '-> Open -> frames -> events: host bytes, datagrams -> a port
//! pull: Line (budget, fair share) -> Pack -> Seal -> tx
//! ```

use mef_io::Port;
use mef_packet::{Instant, Packet};
use mef_protocol::line::Departure;

use super::Router;
use crate::drops::{DropReason, Stage};

/// Why a packet does not go on to the next stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// It has arrived where it was going.
    Done,
    Drop(Stage, DropReason),
}

/// What a stage hands on.
pub(super) type Step<T> = Result<T, Stop>;

pub(super) fn dropped<T>(stage: Stage, reason: impl Into<DropReason>) -> Step<T> {
    Err(Stop::Drop(stage, reason.into()))
}

impl<P: Port> Router<P> {
    /// Takes one packet from its port as far as it goes now.
    pub(super) fn push(&mut self, now: Instant, packet: Packet<P::Buf>) {
        self.counters.at_port(packet.meta.port.0);
        let journey = self
            .ingress(now, packet)
            .and_then(|transit| self.classify(transit))
            .and_then(|classified| self.route(now, classified))
            .and_then(|routed| self.carry(now, routed));
        if let Err(Stop::Drop(stage, reason)) = journey {
            self.counters.count(stage, reason);
        }
        self.counters.elsewhere();
    }

    /// Sends what the lines may send now.
    pub(super) fn pull(&mut self, now: Instant) {
        for line in 0..self.lines.len() {
            while let Some(departure) = self.pack(now, line) {
                let done = match departure {
                    Departure::Link(place, packed) => {
                        if let Some(peer) = self.lines.get(line).and_then(|l| l.peers.get(place)) {
                            self.counters.at_link(peer.id.0);
                        }
                        self.seal(now, line, place, packed)
                    }
                    Departure::Plain(plain, _) => {
                        self.counters.elsewhere();
                        self.send_plain(now, line, plain)
                    }
                };
                if let Err(Stop::Drop(stage, reason)) = done {
                    self.counters.count(stage, reason);
                }
            }
        }
        self.counters.elsewhere();
    }
}
