//! The journey of a packet, from the port it came in by to the queue of a line
//! or another port, and from the queues to the wire.
//!
//! ```text
//! push: rx -> Ingress -> FIB -> Route -> Carry -> a flow's queue, or a port
//!                          '-> Open -> frames -> events: host bytes, datagrams -> a port
//! pull: Line (budget, fair share) -> Pack -> Seal -> tx
//! ```
//! The packets of a batch stay where rx put them, and what is known of each stands
//! beside it, until the last stage takes them out one by one. Ingress and the
//! forwarding table are done for the whole batch, so that its packets wait for
//! memory together.

use mef_io::Port;
use mef_packet::{Instant, Packet, PortId};

use super::ingress::Transit;
use super::laps::Lap;
use super::Router;
use crate::drops::{DropReason, Stage};
use crate::fib::Route;

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

/// What is known of the packets of a batch, in their order.
#[derive(Default)]
pub(super) struct Batch {
    transits: Vec<Transit>,
    routes: Vec<Option<Route>>,
    /// Ingress has not been its end.
    go_on: Vec<bool>,
}

impl Batch {
    /// None for a packet that has come to its end.
    fn iter(&self) -> impl Iterator<Item = (Option<&Transit>, &Option<Route>)> {
        let transits = self.transits.iter().zip(&self.go_on);
        let transits = transits.map(|(t, on)| on.then_some(t));
        transits.zip(&self.routes)
    }
}

impl<P: Port> Router<P> {
    /// Takes packets that came in at `port` as far as they go now.
    pub(super) fn push(&mut self, now: Instant, port: PortId, inbox: &mut Vec<Packet<P::Buf>>) {
        if inbox.is_empty() {
            return;
        }
        let mut batch = core::mem::take(&mut self.batch);
        batch.transits.resize(inbox.len(), Transit::NONE);
        batch.go_on.clear();
        for (packet, transit) in inbox.iter_mut().zip(&mut batch.transits) {
            packet.meta.port = port;
            self.counters.at_port(port.0);
            let step = self.ingress(now, packet, transit);
            batch.go_on.push(self.continued(step).is_some());
        }
        self.laps.end(Lap::Ingress);
        batch.routes.clear();
        let destination = |transit: &Transit| transit.dst;
        self.fib
            .lookup_all(&batch.transits, destination, &mut batch.routes);
        self.laps.end(Lap::Fib);
        for (packet, (transit, route)) in inbox.drain(..).zip(batch.iter()) {
            let Some(transit) = transit else { continue };
            self.counters.at_port(port.0);
            let Some(packet) = self.keep_own(packet, transit, route) else {
                continue;
            };
            let step = self.onward(now, packet, transit, route);
            self.continued(step);
        }
        self.counters.elsewhere();
        self.laps.end(Lap::Carry);
        self.batch = batch;
    }

    /// Counts what did not get past a stage.
    fn continued<T>(&mut self, step: Step<T>) -> Option<T> {
        match step {
            Ok(next) => Some(next),
            Err(Stop::Done) => None,
            Err(Stop::Drop(stage, reason)) => {
                self.counters.count(stage, reason);
                None
            }
        }
    }

    pub(super) fn onward(
        &mut self,
        now: Instant,
        mut packet: Packet<P::Buf>,
        transit: &Transit,
        route: &Option<Route>,
    ) -> Step<()> {
        match route {
            Some(Route::Local(_)) => match self.local(now, &mut packet, transit) {
                Ok(Some(peer)) => self.deliver_directly(now, peer, packet),
                done => {
                    self.recycle(packet.meta.port, packet.buf);
                    done.map(|_| ())
                }
            },
            Some(Route::Broadcast(_)) => dropped(Stage::Ingress, DropReason::MartianDestination),
            found => {
                let route = self.route(now, &mut packet, transit, found.as_ref())?;
                if let Route::Peer(peer) = *route {
                    self.counters.at_link(peer.0);
                    if let Some(sealed) = self.seal_transit(now, peer, transit, &mut packet) {
                        self.send_sealed(now, peer, sealed?, packet.buf);
                        return Ok(());
                    }
                }
                self.carry(now, packet, transit, route)
            }
        }
    }

    /// Sends what the lines may send now.
    pub(super) fn pull(&mut self, now: Instant) {
        for line in 0..self.lines.len() {
            self.pull_line(now, line);
        }
        self.counters.elsewhere();
    }
}
