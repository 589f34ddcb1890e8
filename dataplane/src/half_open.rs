//! Connections that hosts have asked for and that are not open yet. A SYN costs
//! its sender nothing, so it may cost the router, the link and the far site only
//! little (RFC 4987): openings that were not completed by both hosts have a rate,
//! and SYNs beyond it wait here as small records, in a fair order of their sources.
//! An opening that is completed counts no longer, and shows that its source is
//! there: half of the turns are for such sources, however many others ask.
//!
//! ```text
//!  SYN ─▶ nothing waits and the rate allows ─────────────────────▶ open: SETUP
//!         else: waits, one record a connection, by source address
//!                 └─ each source in turn, oldest first, as the rate allows ─▶ open
//!                 └─ WAIT later, or oldest of too many: forgotten, its host asks again
//!  open, completed ─▶ the rate has its share of this one back
//!  open, not answered ─▶ oldest of too many: closed, its host asks again
//! ```

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use mef_packet::{BitRate, Instant, PortId};
use mef_protocol::codec::Setup;

use crate::config::PeerId;
use crate::flow_table::FlowKey;
use crate::rate::RateLimit;

/// What a connection's opening that fails costs the link, bytes of the line: SETUP twice and its
/// end twice, each in a packet with others of its round.
const OPENING: f64 = 200.0;
/// Share of a line that openings may take which are not completed.
const SHARE: f64 = 0.006;
/// Those that wait go together every so often: alone, a packet's headers cost more than its SETUP.
const ROUND: Duration = Duration::from_millis(10);
/// Such openings a second that the slowest line carries, and how many at once.
const LEAST: u32 = 20;
const BURST: u32 = 256;
/// Most SYNs that wait; some 300 bytes each.
pub const MAX_WAITING: usize = 16_384;
/// The latest so many sources that completed a connection are remembered, and up to as many more.
const MAX_PROVEN: usize = 1024;
/// A host asks again after 1, 3 and 7 s (RFC 6298): what waited for longer is stale.
const WAIT: Duration = Duration::from_secs(5);
/// Most connections that were asked for over the links and not answered yet.
pub const MAX_HALF_OPEN: usize = 4096;

/// A SYN that waits for its turn.
#[derive(Clone, Debug)]
pub struct HeldSyn {
    pub peer: PeerId,
    pub port: PortId,
    pub setup: Setup,
    /// The packet as it came.
    pub packet: Box<[u8]>,
}

impl HeldSyn {
    pub fn key(&self) -> FlowKey {
        FlowKey {
            host: self.setup.source,
            far: self.setup.destination,
        }
    }
}

/// What becomes of a SYN.
#[derive(Debug)]
pub enum Admitted {
    /// Its connection may be opened now.
    Open(Box<HeldSyn>),
    /// It waits, or waited already.
    Held,
    /// It waits, and another that came long ago is forgotten for it.
    InPlaceOf,
}

/// Sources that completed a connection. They are kept in two sets, of which the elder one is
/// forgotten as a whole when the other is full: every step takes the same time.
#[derive(Debug, Default)]
struct Proven {
    latest: HashSet<IpAddr>,
    before: HashSet<IpAddr>,
}

impl Proven {
    fn contains(&self, source: IpAddr) -> bool {
        self.latest.contains(&source) || self.before.contains(&source)
    }

    fn insert(&mut self, source: IpAddr) {
        if self.latest.len() >= MAX_PROVEN && !self.latest.contains(&source) {
            std::mem::swap(&mut self.latest, &mut self.before);
            self.latest.clear();
        }
        self.latest.insert(source);
    }
}

/// The SYNs that wait, and how many may be let go when.
#[derive(Debug)]
pub struct HalfOpen {
    rate: RateLimit,
    /// Before this, none of those that wait goes.
    round: Instant,
    held: HashMap<FlowKey, (Instant, Box<HeldSyn>)>,
    /// By source, oldest first. Entries of connections that were taken out meanwhile are skipped.
    queues: HashMap<IpAddr, VecDeque<(Instant, FlowKey)>>,
    /// Sources in the order of their turns: those that completed a connection, and the others.
    turns: [VecDeque<IpAddr>; 2],
    /// Which of the two comes first.
    first: usize,
    proven: Proven,
    /// All, oldest first.
    order: VecDeque<(Instant, FlowKey)>,
    /// Connections that were opened, oldest first; some of them are answered by now.
    opened: VecDeque<(PeerId, u32)>,
}

impl HalfOpen {
    /// For links over lines of which the fastest carries `line`.
    pub fn new(now: Instant, line: BitRate) -> Self {
        let per_second = (line.bytes_per_second() * SHARE / OPENING) as u32;
        Self {
            rate: RateLimit::new(now, per_second.max(LEAST), BURST),
            round: now,
            held: HashMap::new(),
            queues: HashMap::new(),
            turns: Default::default(),
            first: 0,
            proven: Proven::default(),
            order: VecDeque::new(),
            opened: VecDeque::new(),
        }
    }

    pub fn waiting(&self) -> usize {
        self.held.len()
    }

    /// Takes a host's SYN.
    pub fn admit(&mut self, now: Instant, syn: HeldSyn) -> Admitted {
        let key = syn.key();
        if self.held.contains_key(&key) {
            return Admitted::Held;
        }
        if self.held.is_empty() && self.rate.take(now) {
            return Admitted::Open(Box::new(syn));
        }
        let full = self.held.len() >= MAX_WAITING && self.forget_oldest();
        let source = key.host.ip();
        let queue = self.queues.entry(source).or_default();
        if queue.is_empty() {
            let [proven, others] = &mut self.turns;
            if self.proven.contains(source) {
                proven.push_back(source);
            } else {
                others.push_back(source);
            }
        }
        queue.push_back((now, key));
        self.order.push_back((now, key));
        self.held.insert(key, (now, Box::new(syn)));
        if full {
            Admitted::InPlaceOf
        } else {
            Admitted::Held
        }
    }

    /// The next connection that may be opened now.
    pub fn next(&mut self, now: Instant) -> Option<Box<HeldSyn>> {
        while self
            .order
            .front()
            .is_some_and(|(at, _)| now.since(*at) >= WAIT)
        {
            self.forget_oldest();
        }
        if now < self.round {
            return None;
        }
        let first = self.first;
        let found = match self.turn(now, first)? {
            Some(syn) => Some(syn),
            None => self.turn(now, 1 - first)?,
        };
        self.first = 1 - first;
        found
    }

    /// The next of one ring of sources; nothing at all when the rate allows no more.
    fn turn(&mut self, now: Instant, ring: usize) -> Option<Option<Box<HeldSyn>>> {
        let turns = self.turns.get_mut(ring)?;
        while let Some(source) = turns.front().copied() {
            let queue = self.queues.get_mut(&source);
            let Some((at, key)) = queue.and_then(|q| q.pop_front()) else {
                turns.pop_front();
                self.queues.remove(&source);
                continue;
            };
            if self.held.get(&key).is_none_or(|h| h.0 != at) {
                continue;
            }
            if !self.rate.take(now) {
                if let Some(q) = self.queues.get_mut(&source) {
                    q.push_front((at, key));
                }
                self.round = now + ROUND;
                return None;
            }
            turns.rotate_left(1);
            return Some(self.held.remove(&key).map(|(_, syn)| syn));
        }
        Some(None)
    }

    /// Both hosts completed a connection that was let go; the one that asked is `source`.
    pub fn completed(&mut self, source: IpAddr) {
        self.rate.give_back();
        self.proven.insert(source);
    }

    /// When [`next`](Self::next) may have something.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        (!self.held.is_empty()).then(|| self.round.max(now + Duration::from_millis(2)))
    }

    /// Takes out a SYN that waits: its host gave up, or its connection goes another way.
    pub fn take(&mut self, key: &FlowKey) -> Option<Box<HeldSyn>> {
        self.held.remove(key).map(|(_, syn)| syn)
    }

    fn forget_oldest(&mut self) -> bool {
        while let Some((at, key)) = self.order.pop_front() {
            if self.held.get(&key).is_some_and(|h| h.0 == at) {
                self.held.remove(&key);
                return true;
            }
        }
        false
    }

    /// A connection was opened; returns those that have to be closed for it. `waits` says
    /// whether one is still not answered.
    pub fn opened(
        &mut self,
        flow: (PeerId, u32),
        mut waits: impl FnMut((PeerId, u32)) -> bool,
    ) -> Vec<(PeerId, u32)> {
        self.opened.push_back(flow);
        if self.opened.len() < 2 * MAX_HALF_OPEN {
            return Vec::new();
        }
        self.opened.retain(|f| waits(*f));
        let excess = self.opened.len().saturating_sub(MAX_HALF_OPEN);
        self.opened.drain(..excess).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn syn(source: u8, port: u16) -> HeldSyn {
        HeldSyn {
            peer: PeerId(0),
            port: PortId(0),
            setup: Setup {
                source: SocketAddr::from(([10, 1, 0, source], port)),
                destination: SocketAddr::from(([10, 2, 0, 2], 80)),
                weight: 1.0,
                early: false,
                mss: 1460,
                class: Default::default(),
                dscp: 0,
            },
            packet: vec![0; 60].into(),
        }
    }

    #[test]
    fn a_record_is_small() {
        let heap = core::mem::size_of::<HeldSyn>() + 60;
        let tables = core::mem::size_of::<(FlowKey, (Instant, Box<HeldSyn>))>()
            + 2 * core::mem::size_of::<(Instant, FlowKey)>();
        assert!(heap + tables <= 512, "{heap} + {tables} bytes");
    }

    #[test]
    fn sources_take_turns_within_the_rate() {
        let mut now = Instant::from_millis(1000);
        let mut h = HalfOpen::new(now, BitRate(100_000_000));
        let mut open = 0;
        for port in 1..=10_000 {
            open += u32::from(matches!(h.admit(now, syn(2, port)), Admitted::Open(_)));
        }
        assert_eq!(open, BURST);
        assert_eq!(h.waiting(), 10_000 - BURST as usize);
        // Another host's SYN is the second to go.
        assert!(matches!(h.admit(now, syn(3, 1)), Admitted::Held));
        assert!(matches!(h.admit(now, syn(3, 1)), Admitted::Held));
        let mut gone = Vec::new();
        while now < Instant::from_millis(2000) {
            now += Duration::from_millis(1);
            while let Some(s) = h.next(now) {
                gone.push(s.setup.source);
            }
        }
        assert!(gone
            .iter()
            .take(2)
            .any(|s| *s == SocketAddr::from(([10, 1, 0, 3], 1))));
        let rate = (100e6 / 8.0 * SHARE / OPENING) as usize;
        assert!(gone.len().abs_diff(rate) <= 5, "{} a second", gone.len());
        // Completed ones make room.
        let round = |h: &mut HalfOpen, now| std::iter::from_fn(|| h.next(now)).count();
        now += ROUND;
        round(&mut h, now);
        let known = [10, 1, 0, 4].into();
        (0..20).for_each(|_| h.completed(known));
        now += ROUND;
        let with = round(&mut h, now);
        assert!((23..=25).contains(&with), "{with}");
        // What waited for too long is forgotten.
        now += WAIT;
        assert!(h.next(now).is_none());
        assert_eq!(h.waiting(), 0);
    }

    #[test]
    fn sources_that_completed_a_connection_have_half_of_the_turns() {
        let now = Instant::from_millis(1000);
        let mut h = HalfOpen::new(now, BitRate(1_000));
        h.completed([10, 1, 0, 250].into());
        for port in 1..=BURST as u16 {
            assert!(matches!(h.admit(now, syn(2, port)), Admitted::Open(_)));
        }
        for source in 0..200 {
            h.admit(now, syn(source, 5000));
        }
        for port in 1..=4 {
            h.admit(now, syn(250, port));
        }
        let now = now + Duration::from_secs(1);
        let sources: Vec<bool> = std::iter::from_fn(|| h.next(now))
            .map(|s| s.setup.source.ip() == IpAddr::from([10, 1, 0, 250]))
            .collect();
        assert_eq!(sources.len(), LEAST as usize);
        assert_eq!(sources.iter().filter(|s| **s).count(), 4);
        assert!(sources[..8].iter().filter(|s| **s).count() == 4);
    }

    #[test]
    fn the_latest_proven_sources_are_remembered_and_no_more_than_two_sets_of_them() {
        let source = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut p = Proven::default();
        let limit = MAX_PROVEN as u32;
        for n in 0..10 * limit {
            p.insert(source(n));
            // This one completes connections all the time.
            p.insert(source(7));
            assert!(p.contains(source(7)));
            assert!(p.contains(source(n)) && p.contains(source(n.saturating_sub(limit - 2))));
            assert!(p.latest.len() <= MAX_PROVEN && p.before.len() <= MAX_PROVEN);
        }
        assert!(!p.contains(source(6)) && !p.contains(source(7 * limit)));
    }

    #[test]
    fn the_oldest_give_way_and_nothing_is_left_behind() {
        let now = Instant::from_millis(1000);
        let mut h = HalfOpen::new(now, BitRate(1_000));
        let mut given_way = 0;
        for source in 0..40 {
            for port in 1..=1000 {
                given_way += usize::from(matches!(
                    h.admit(now, syn(source, port)),
                    Admitted::InPlaceOf
                ));
            }
        }
        assert_eq!(h.waiting(), MAX_WAITING);
        assert_eq!(given_way, 40_000 - BURST as usize - MAX_WAITING);
        assert!(h.take(&syn(39, 1000).key()).is_some());
        assert!(h.take(&syn(0, 1).key()).is_none());
    }

    #[test]
    fn unanswered_ones_beyond_the_limit_are_closed_oldest_first() {
        let now = Instant::from_millis(1000);
        let mut h = HalfOpen::new(now, BitRate(1_000));
        let mut closed = Vec::new();
        for n in 0..3 * MAX_HALF_OPEN as u32 {
            closed.extend(h.opened((PeerId(0), n), |f| f.1 % 2 == 0));
        }
        assert!(closed.windows(2).all(|w| w[0].1 < w[1].1));
        assert!(closed.iter().all(|f| f.1 % 2 == 0));
        assert!(h.opened.len() < 2 * MAX_HALF_OPEN);
    }
}
