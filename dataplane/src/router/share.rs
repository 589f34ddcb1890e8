//! This worker's part of each line, and of the downlink of each peer that has a
//! narrower one: see [`Shares`](crate::workers::Shares). A router with one worker
//! has all of them.

use mef_io::Port;
use mef_packet::Instant;
use mef_protocol::line::UTILISATION;

use super::Router;
use crate::config::PeerId;
use crate::workers::{Claim, Moment};

/// By line, and by peer.
#[derive(Debug, Default)]
pub(super) struct Claims {
    lines: Vec<Claim>,
    links: Vec<Claim>,
}

impl<P: Port> Router<P> {
    /// Has the lines go by what this worker may use of them.
    pub(super) fn take_shares(&mut self, now: Instant, moment: Moment) {
        let Self {
            crew,
            lines,
            claims,
            ..
        } = self;
        let Some(crew) = crew.as_deref() else { return };
        let (me, shared) = (crew.me(), &crew.shared);
        claims.lines.resize_with(lines.len(), Claim::default);
        for (l, claim) in lines.iter_mut().zip(&mut claims.lines) {
            if let Some(shares) = shared.line(l.port) {
                let whole = l.line.capacity().scale(UTILISATION);
                let load = l.line.load(now);
                if let Some(share) = claim.turn(now, moment, me, shares, whole, load) {
                    l.line.set_share(now, share);
                }
            }
            for (place, peer) in l.peers.iter_mut().enumerate() {
                let Some(down) = peer.link.narrower_downlink() else {
                    continue;
                };
                let id = usize::from(peer.id.0);
                if claims.links.len() <= id {
                    claims.links.resize_with(id + 1, Claim::default);
                }
                let (Some(claim), Some(shares)) =
                    (claims.links.get_mut(id), shared.link(PeerId(peer.id.0)))
                else {
                    continue;
                };
                let load = l.line.link_load(now, place);
                let whole = down.scale(UTILISATION);
                if let Some(share) = claim.turn(now, moment, me, shares, whole, load) {
                    peer.link.set_share(share);
                }
            }
        }
    }

    /// When to look again, if nothing happens before.
    pub(super) fn shares_due(&self) -> Option<Instant> {
        let claims = self.claims.lines.iter().chain(&self.claims.links);
        claims.filter_map(Claim::due).min()
    }
}
