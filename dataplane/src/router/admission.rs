//! The router's part of what hosts begin: SYNs that wait for their turn, and
//! segments of connections that there are not.

use mef_io::Port;
use mef_packet::Instant;

use super::pipeline::{dropped, Step};
use super::Router;
use crate::config::{Adopt, PeerId};
use crate::drops::{DropReason, Stage};
use crate::flow_table::SplitFlow;
use crate::half_open::{Admitted, HeldSyn};
use crate::host_tcp::{self, HostTcp};
use crate::icmp::IcmpError;

impl<P: Port> Router<P> {
    /// A SYN of a connection that is not known yet.
    pub(super) fn admit_syn(&mut self, now: Instant, syn: HeldSyn) -> Step<()> {
        if self.draining.is_some() {
            // The host may try another way, or later.
            self.complain(now, syn.port, &syn.packet, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::Draining);
        }
        let up = self.peer_mut(syn.peer).is_some_and(|p| p.link.is_up());
        if !up {
            self.complain(now, syn.port, &syn.packet, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::NoSession);
        }
        match self.half_open.admit(now, syn) {
            Admitted::Open(syn) => self.open_flow(now, *syn),
            Admitted::Held => Ok(()),
            Admitted::InPlaceOf => dropped(Stage::Carry, DropReason::HalfOpenFull),
        }
    }

    /// Lets the SYNs go whose turn it is.
    pub(super) fn open_waiting(&mut self, now: Instant) {
        while let Some(syn) = self.half_open.next(now) {
            if self.flows.by_key(&syn.key()).is_some() {
                continue;
            }
            if let Err(super::pipeline::Stop::Drop(stage, reason)) = self.open_flow(now, *syn) {
                self.counters.count(stage, reason);
            }
        }
    }

    fn open_flow(&mut self, now: Instant, syn: HeldSyn) -> Step<()> {
        let HeldSyn {
            peer,
            port,
            setup,
            packet,
        } = syn;
        let key = crate::flow_table::FlowKey {
            host: setup.source,
            far: setup.destination,
        };
        let Some(number) = self.peer_mut(peer).and_then(|p| p.link.open(now, setup)) else {
            self.complain(now, port, &packet, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::NoSession);
        };
        self.stats.flows_opened += 1;
        let index = self.flows.insert(SplitFlow {
            key,
            peer,
            number,
            port,
            host: None,
            syn: Some(packet.into_vec()),
            syns: 1,
            dscp: setup.dscp,
            accepted: true,
            counted: true,
            host_closed: false,
            link_closed: false,
            reset_at: None,
            share: Default::default(),
            alive: Default::default(),
            dirty: false,
        });
        if setup.early {
            self.answer_host(now, index);
        }
        let flows = &self.flows;
        let waits = |(peer, number): (PeerId, u32)| {
            flows
                .by_number(peer, number)
                .and_then(|i| flows.get(i))
                .is_some_and(|f| match &f.host {
                    None => true,
                    Some(host) => f.accepted && host.state().connecting(),
                })
        };
        for (peer, number) in self.half_open.opened((peer, number), waits) {
            if let Some(index) = self.flows.by_number(peer, number) {
                // Without a word to its host: if it means it, it asks again.
                self.close(now, index, true);
                self.counters.count(Stage::Carry, DropReason::HalfOpenFull);
            }
        }
        Ok(())
    }

    /// A segment of no known connection that opens none (RFC 9293 section 3.10.7.1). True where it
    /// is to go on as a datagram.
    pub(super) fn stray_segment(&mut self, now: Instant, packet: &[u8]) -> Step<bool> {
        if self.config.adopt == Adopt::Forward {
            return Ok(true);
        }
        if !self.resets.take(now) {
            return dropped(Stage::Carry, DropReason::RateLimited);
        }
        if let Some(rst) = host_tcp::rst_for(packet) {
            self.send_segment(now, &rst, 0);
        }
        dropped(Stage::Carry, DropReason::UnknownFlow)
    }
}
