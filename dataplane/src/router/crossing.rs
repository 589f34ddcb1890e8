//! Simultaneous open (RFC 9293 section 3.5): two hosts open the same connection
//! to each other at once. Neither answers the other's router as a server would,
//! so such a connection is not split: both SYNs go on as datagrams and the hosts
//! settle it between them.
//!
//! ```text
//!   host A     router A                         router B     host B
//!   SYN -----> [held] -- SETUP --.  .-- SETUP -- [held] <----- SYN
//!                                 \/
//!              [held] <- SETUP --'  '-- SETUP -> [held]            both see it
//!              REFUSED(crossing) ===><=== REFUSED(crossing)        or are told
//!         <--- SYN of B ---- datagrams ---- SYN of A ------>
//!   SYN-ACK, ACK ----------- datagrams ------------ SYN-ACK, ACK
//! ```
//!
//! A router that holds its host's SYN and gets a SETUP for the same connection
//! knows that the other holds one too: it would have answered the first SETUP
//! with its host otherwise. The code in REFUSED tells the other where its SETUP
//! was lost. Where a router has asked its host already, the host's own SYN finds
//! that flow and the host answers ours: RFC 9293 lets it, and the flow is split.

use mef_io::Port;
use mef_packet::Instant;

use super::route::tuple_of;
use super::Router;
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::flow_table::FlowKey;
use crate::pinned::Whole;

impl<P: Port> Router<P> {
    /// Takes the SYN of this connection that is held back here, and its flow with it; `None` where
    /// there is none, because it was answered or never came.
    fn take_held_syn(&mut self, now: Instant, key: &FlowKey) -> Option<(PeerId, Vec<u8>)> {
        if let Some(held) = self.half_open.take(key) {
            return Some((held.peer, held.packet.into_vec()));
        }
        let index = self.flows.by_key(key)?;
        let flow = self.flows.get_mut(index)?;
        if flow.host.is_some() {
            return None;
        }
        let (peer, syn) = (flow.peer, flow.syn.take()?);
        self.close(now, index, true);
        Some((peer, syn))
    }

    /// The peer's host opens the connection that `key` names, from its side. True if our host does so
    /// too: the connection goes on as datagrams.
    pub(super) fn crosses(&mut self, now: Instant, key: FlowKey) -> bool {
        let Some((peer, syn)) = self.take_held_syn(now, &key) else {
            return false;
        };
        self.manners.flows_crossing += 1;
        self.manners.pinned.pin(now, key, Whole::Datagram);
        self.send_held_syn(now, peer, syn);
        true
    }

    /// Sends a SYN that was held back as the datagram it came as.
    fn send_held_syn(&mut self, now: Instant, peer: PeerId, syn: Vec<u8>) {
        let Some(tuple) = tuple_of(&syn) else { return };
        let flow = self.flow_of(&tuple, &self.config.treatment(&tuple));
        let sent = self.peer_mut(peer).map(|p| {
            let mut syn = syn;
            if let Some(whole) = p.link.whole_datagram() {
                super::mss::clamp(&mut syn, whole);
            }
            p.link.send_datagram(now, flow, syn)
        });
        match sent {
            Some(Ok(())) => self.stats.datagrams_sent += 1,
            // Its host sends it again.
            _ => self.counters.count(Stage::Carry, DropReason::QueueFull),
        }
    }
}
