//! The connections to hosts within the memory budget: how large a window a host
//! is told, and how much is on its way to it.
//!
//! An eighth of the budget is for either direction. While more than half of it is
//! free every connection gets a sixteenth of what is free above the half; one that
//! was seen to read may have a quarter of what is free. Everyone has a little.

use mef_io::Port;
use mef_packet::Instant;
use mef_protocol::chunks::{ChunkPool, Use};

use super::Router;
use crate::flow_table::SplitFlow;
use crate::host_tcp::{Endpoint, HostTcp, TimeWait};

/// What a connection counts for in the budget.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostShare {
    window: usize,
    to_host: usize,
    held: usize,
}

/// The window before anything is known of a host, bytes.
const WINDOW: usize = 64 << 10;

/// What every connection may hold.
fn least(share: usize) -> usize {
    (share / 4096).clamp(2048, 16 << 10)
}

/// What a connection may hold beside the `left` bytes of `share` that nobody holds.
fn most(share: usize, left: usize, known: bool) -> usize {
    let fair = if known {
        left / 4
    } else {
        left.saturating_sub(share / 2) / 16
    };
    fair.max(least(share))
}

/// Whether less than half of either share is free, and not every connection has what it could use.
pub(super) fn is_scarce(pool: &ChunkPool) -> bool {
    let scarce = |u| pool.room(u) < pool.share(u) / 2;
    scarce(Use::FromHosts) || scarce(Use::ToHosts)
}

/// The window that a new connection begins with.
pub(super) fn first_window(pool: &ChunkPool) -> usize {
    let (share, left) = (pool.share(Use::FromHosts), pool.room(Use::FromHosts));
    most(share, left, false).min(WINDOW)
}

/// Lets a window grow into what is left; it only does when the host's bytes are read.
pub(super) fn cap_window(pool: &ChunkPool, host: &mut Endpoint) {
    let (share, left) = (pool.share(Use::FromHosts), pool.room(Use::FromHosts));
    host.cap_window(most(share, left, true));
}

/// Bytes that may be handed to the connection now. Of what the host has no room for only a segment
/// waits here, so that its window is probed and silly ones are not filled; the rest stays in the
/// stream, where it is the flow's credit.
pub(super) fn write_room(pool: &ChunkPool, host: &Endpoint) -> usize {
    let (share, left) = (pool.share(Use::ToHosts), pool.room(Use::ToHosts));
    let most = most(share, left, host.is_read()).saturating_sub(host.unacknowledged());
    let taken = host.host_room() + u64::from(host.remote_mss());
    most.min(usize::try_from(taken).unwrap_or(usize::MAX))
}

/// Counts what the connection holds by now.
fn recount(pool: &mut ChunkPool, flow: &mut SplitFlow) {
    let old = flow.share;
    let mut new = HostShare::default();
    if let Some(host) = &mut flow.host {
        if is_scarce(pool) {
            host.release_spare();
        }
        let [from, to] = host.held();
        new = HostShare {
            window: host.window().max(from),
            to_host: to,
            held: from + to,
        };
    }
    pool.recount(Use::FromHosts, old.window, new.window, [old.held, new.held]);
    pool.recount(Use::ToHosts, old.to_host, new.to_host, [0, 0]);
    flow.share = new;
}

impl<P: Port> Router<P> {
    /// Counts what the flow's connection to its host holds by now.
    pub(super) fn recount(&mut self, index: usize) {
        if let Some(flow) = self.flows.get_mut(index) {
            recount(&mut self.pool, flow);
        }
    }

    /// Takes a flow out, and its connection out of the books.
    pub(super) fn remove_flow(
        &mut self,
        now: Instant,
        index: usize,
        record: Option<TimeWait>,
    ) -> Option<SplitFlow> {
        let mut flow = self.flows.remove(now, index, record)?;
        flow.host = None;
        recount(&mut self.pool, &mut flow);
        Some(flow)
    }
}
