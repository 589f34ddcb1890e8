//! Several workers of one router: each is a whole [`Router`](crate::router::Router)
//! with a thread, flows, links and a queue of every port of its own. A flow belongs
//! to one of them by a keyed hash of its 5-tuple, which both ends of a link share,
//! and stays there.
//!
//! ```text
//!   port, queue 0 --> [worker 0: flows, neighbours, links by UDP port + 0] <==> worker 0 of the peer
//!                          ^ |
//!              rings: what came to the wrong queue, what neighbours say
//!                          | v
//!   port, queue 1 --> [worker 1: flows, neighbours, links by UDP port + 1] <==> worker 1 of the peer
//! ```
//!
//! What workers share is read without a lock: [`Shared`] changes when a peer says
//! HELLO. A packet that came to another worker than its flow's is handed over
//! through a bounded ring, and a worker that sleeps is woken once for all of them.

mod ring;
mod shares;
mod threads;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use mef_packet::flow_hash::{FlowEnd, FlowHash};
use mef_packet::PortId;

pub use ring::{Bell, Crew, CrewStats, Handed, Why};
pub use shares::{Claim, Moment, Shares};
pub use threads::{crew, run_all, Records};

use crate::config::{FlowTuple, PeerId};

/// The key of a router with so many peers, from random bits: the first byte counts the peers. The
/// larger key of two ends is the one that counts, so whoever has the most peers, such as the centre
/// of a star, divides the flows to all of them by the same one.
pub fn flow_key(random: u64, peers: usize) -> u64 {
    let peers = u8::try_from(peers).unwrap_or(u8::MAX);
    random >> 8 | u64::from(peers) << 56
}

/// What is agreed with a peer.
#[derive(Debug)]
struct Lanes {
    /// Workers that have a link to it: as many as both ends have, 1 before its HELLO.
    count: AtomicU32,
    /// Of the flow hash.
    key: AtomicU64,
}

/// What the workers of a router know together.
#[derive(Debug)]
pub struct Shared {
    workers: u16,
    /// This router's own key.
    key: u64,
    lanes: Vec<Lanes>,
    /// By port.
    lines: Vec<Shares>,
    /// By peer, of its downlink.
    links: Vec<Shares>,
    drained: AtomicU32,
}

impl Shared {
    /// For a router with so many workers, ports and peers; nobody outside is to know `key`.
    pub fn new(workers: u16, ports: usize, peers: usize, key: u64) -> Self {
        let lanes = || Lanes {
            count: AtomicU32::new(1),
            key: AtomicU64::new(key),
        };
        Self {
            workers: workers.max(1),
            key,
            lanes: (0..peers).map(|_| lanes()).collect(),
            lines: (0..ports).map(|_| Shares::new(workers)).collect(),
            links: (0..peers).map(|_| Shares::new(workers)).collect(),
            drained: AtomicU32::new(0),
        }
    }

    pub fn workers(&self) -> u16 {
        self.workers
    }
    /// This router's own key of the flow hash, which it tells its peers.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// How the line of a port is shared.
    pub fn line(&self, port: PortId) -> Option<&Shares> {
        self.lines.get(usize::from(port.0))
    }
    /// How the downlink of a peer is shared.
    pub fn link(&self, peer: PeerId) -> Option<&Shares> {
        self.links.get(usize::from(peer.0))
    }

    /// How many workers have a link to the peer.
    #[inline]
    pub fn lanes(&self, peer: PeerId) -> u32 {
        let lanes = self.lanes.get(usize::from(peer.0));
        lanes.map_or(1, |l| l.count.load(Ordering::Acquire))
    }

    /// The key of the hash that divides flows to the peer.
    pub fn lane_key(&self, peer: PeerId) -> u64 {
        let lanes = self.lanes.get(usize::from(peer.0));
        lanes.map_or(self.key, |l| l.key.load(Ordering::Relaxed))
    }

    /// The worker of a flow to or from hosts of the peer.
    #[inline]
    pub fn owner(&self, peer: PeerId, flow: &FlowTuple) -> u16 {
        let lanes = self.lanes(peer);
        if lanes <= 1 {
            return 0;
        }
        let a = FlowEnd {
            address: flow.source,
            port: flow.source_port,
        };
        let b = FlowEnd {
            address: flow.destination,
            port: flow.port,
        };
        let hash = FlowHash::new(self.lane_key(peer));
        hash.worker(a, b, flow.protocol, lanes) as u16
    }

    /// The peer said in its HELLO that it has `workers` and this key; the larger one of both is the one
    /// that counts. Returns whether anything is new.
    pub fn learn(&self, peer: PeerId, workers: u16, key: u64) -> bool {
        let Some(lanes) = self.lanes.get(usize::from(peer.0)) else {
            return false;
        };
        let key = self.key.max(key);
        let count = u32::from(workers.clamp(1, self.workers));
        // The key first: whoever sees several lanes finds it.
        let changed = lanes.key.swap(key, Ordering::Relaxed) != key;
        lanes.count.swap(count, Ordering::Release) != count || changed
    }

    /// The key that flows of most peers with several lanes are divided by, for the ports to spread
    /// frames alike: this router's own before any other, where as many have it.
    pub fn key_of_most(&self) -> u64 {
        let mut peers = HashMap::from([(self.key, 0)]);
        for lanes in &self.lanes {
            if lanes.count.load(Ordering::Acquire) > 1 {
                *peers.entry(lanes.key.load(Ordering::Relaxed)).or_insert(0) += 1;
            }
        }
        let most = peers
            .into_iter()
            .max_by_key(|(k, n)| (*n, *k == self.key, *k));
        most.map_or(self.key, |(key, _)| key)
    }

    /// A worker has no flow left after the router was told to stop.
    pub fn drained(&self) {
        self.drained.fetch_add(1, Ordering::Relaxed);
    }
    /// No worker has.
    pub fn all_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed) >= u32::from(self.workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(n: u16) -> FlowTuple {
        FlowTuple {
            source: [10, 1, 0, 2].into(),
            destination: [10, 2, 0, 2].into(),
            protocol: 6,
            source_port: n,
            port: 443,
        }
    }

    #[test]
    fn both_ends_agree_whatever_they_have() {
        for (ours, theirs) in [(1, 4), (4, 1), (2, 2), (4, 3), (2, 32)] {
            let (a, b) = (Shared::new(ours, 1, 1, 7), Shared::new(theirs, 1, 1, 9));
            let peer = PeerId(0);
            assert_eq!(a.owner(peer, &tuple(1)), 0, "before HELLO");
            let several = ours.min(theirs) > 1;
            assert!(a.learn(peer, theirs, b.key()), "its key is the larger");
            assert_eq!(b.learn(peer, ours, a.key()), several);
            assert!(!a.learn(peer, theirs, b.key()));
            let mut used = std::collections::BTreeSet::new();
            for n in 0..1000 {
                let owner = a.owner(peer, &tuple(n));
                assert_eq!(owner, b.owner(peer, &tuple(n).reversed()));
                used.insert(owner);
            }
            assert_eq!(used.len(), usize::from(ours.min(theirs)));
        }
    }

    #[test]
    fn all_of_a_star_go_by_the_key_of_its_centre_and_a_peer_alone_moves_no_port() {
        let random = |n: u64| (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let centre = Shared::new(2, 1, 5, flow_key(random(0), 5));
        for n in 0..4u16 {
            let end = Shared::new(2, 1, 1, flow_key(random(u64::from(n) + 1), 1));
            centre.learn(PeerId(n), 2, end.key());
            end.learn(PeerId(0), 2, centre.key());
            assert_eq!(centre.lane_key(PeerId(n)), centre.key());
            assert_eq!(end.key_of_most(), centre.key());
            assert_eq!(centre.key_of_most(), centre.key());
        }
        centre.learn(PeerId(4), 2, u64::MAX);
        assert_eq!(centre.lane_key(PeerId(4)), u64::MAX);
        assert_eq!(centre.key_of_most(), centre.key());
        // One with a single worker has no say.
        let end = Shared::new(2, 1, 2, flow_key(random(9), 2));
        end.learn(PeerId(0), 1, u64::MAX);
        assert_eq!(end.key_of_most(), end.key());
        // More peers than a byte counts are as many as it can.
        assert_eq!(flow_key(u64::MAX, 1000), u64::MAX);
        assert!(flow_key(0, 3) > flow_key(u64::MAX, 2));
    }

    #[test]
    fn nonsense_of_a_peer_is_bounded() {
        let s = Shared::new(2, 1, 1, 7);
        s.learn(PeerId(0), 0, 0);
        assert_eq!(s.lanes(PeerId(0)), 1);
        s.learn(PeerId(0), u16::MAX, 0);
        assert_eq!(s.lanes(PeerId(0)), 2);
        assert!(!s.learn(PeerId(3), 2, 0));
        assert_eq!(s.owner(PeerId(3), &tuple(1)), 0);
    }
}
