//! A line: what a port is attached to. One budget for everything it carries,
//! and one fair scheduler over the flows of all its links. A link whose
//! bottleneck is elsewhere (the peer's downlink, a capacity that the guard
//! found to be smaller) has a budget of its own; its flows are parked while
//! that one is in debt, so that the others use the line meanwhile.

use mef_packet::{BitRate, Bytes, Instant};

use crate::bucket::LineBudget;
use crate::chunks::ChunkPool;
use crate::link::{Link, Packed, SendKey};
use crate::scheduler::FairScheduler;

/// Share of the configured capacity that is used. The rest drains what jitter leaves in the
/// bottleneck's queue.
pub const UTILISATION: f64 = 0.995;

/// One end of a link as the line sees it.
pub trait LinkEnd {
    fn link(&self) -> &Link;
    fn link_mut(&mut self) -> &mut Link;
    /// Number that the next sealed packet gets; `None` where there is no session.
    fn next_number(&self) -> Option<u64>;
}

#[derive(Debug)]
struct Limit {
    budget: LineBudget,
    parked: Vec<(SendKey, u32)>,
}

/// Budget and scheduler of one line.
#[derive(Debug)]
pub struct Line {
    capacity: BitRate,
    budget: LineBudget,
    scheduler: FairScheduler<(usize, SendKey)>,
    /// By link.
    limits: Vec<Option<Limit>>,
}

impl Line {
    /// A line that carries `capacity` upwards, counted as Ethernet frames without FCS.
    pub fn new(now: Instant, capacity: BitRate) -> Self {
        Self {
            capacity,
            budget: LineBudget::new(now, capacity.scale(UTILISATION), 0),
            scheduler: FairScheduler::new(),
            limits: Vec::new(),
        }
    }
    pub fn capacity(&self) -> BitRate {
        self.capacity
    }
    /// Bytes of capacity that were lost because the router woke too late.
    pub fn lost_credit(&self) -> Bytes {
        Bytes(self.budget.lost_credit_bytes())
    }
    /// Charges a packet that does not wait for its turn, such as a handshake.
    pub fn charge(&mut self, now: Instant, bytes: u64) {
        self.budget.charge(now, Bytes(bytes));
    }

    fn take_news<E: LinkEnd>(&mut self, now: Instant, ends: &mut [E]) {
        if self.limits.len() < ends.len() {
            self.limits.resize_with(ends.len(), || None);
        }
        for (i, end) in ends.iter_mut().enumerate() {
            while let Some((key, weight)) = end.link_mut().poll_activated() {
                self.scheduler.activate((i, key), weight);
            }
            let Some(limit) = self.limits.get_mut(i) else {
                continue;
            };
            let rate = end.link().rate_limit();
            if rate < self.capacity {
                let rate = rate.scale(UTILISATION);
                match limit {
                    Some(l) if l.budget.rate() != rate => l.budget.set_rate(now, rate),
                    Some(_) => {}
                    None => {
                        *limit = Some(Limit {
                            budget: LineBudget::new(now, rate, 0),
                            parked: Vec::new(),
                        })
                    }
                }
            } else if let Some(l) = limit.take() {
                for (key, weight) in l.parked {
                    self.scheduler.activate((i, key), weight);
                }
            }
            if let Some(l) = limit {
                if !l.parked.is_empty() && l.budget.next_at(now) <= now {
                    for (key, weight) in l.parked.drain(..) {
                        self.scheduler.activate((i, key), weight);
                    }
                }
            }
        }
    }

    /// Packs the next packet that may leave now, appended to `out`, and says of which link it is.
    pub fn poll<E: LinkEnd>(
        &mut self,
        now: Instant,
        ends: &mut [E],
        pool: &mut ChunkPool,
        out: &mut Vec<u8>,
    ) -> Option<(usize, Packed)> {
        self.take_news(now, ends);
        if self.budget.next_at(now) > now {
            return None;
        }
        for (i, end) in ends.iter_mut().enumerate() {
            let Some(number) = end.next_number() else {
                continue;
            };
            if let Some(packed) = end.link_mut().poll_control(now, number, out) {
                self.pay(now, i, packed.line_bytes);
                return Some((i, packed));
            }
        }
        while let Some((i, key)) = self.scheduler.pick() {
            if let Some(Some(limit)) = self.limits.get_mut(i) {
                if limit.budget.next_at(now) > now {
                    let weight = self.scheduler.weight((i, key)).unwrap_or(1000);
                    self.scheduler.deactivate((i, key));
                    limit.parked.push((key, weight));
                    continue;
                }
            }
            let packed = ends.get_mut(i).and_then(|end| {
                let number = end.next_number()?;
                end.link_mut().poll_flow(now, number, key, pool, out)
            });
            match packed {
                Some(packed) => {
                    self.scheduler.charge((i, key), Bytes(packed.line_bytes));
                    self.pay(now, i, packed.line_bytes);
                    return Some((i, packed));
                }
                None => self.scheduler.deactivate((i, key)),
            }
        }
        self.budget.idle();
        None
    }

    fn pay(&mut self, now: Instant, link: usize, bytes: u64) {
        self.budget.charge(now, Bytes(bytes));
        if let Some(Some(l)) = self.limits.get_mut(link) {
            l.budget.charge(now, Bytes(bytes));
        }
    }

    /// When [`poll`](Self::poll) may have something to send next.
    pub fn poll_timeout<E: LinkEnd>(&mut self, now: Instant, ends: &[E]) -> Instant {
        let ready = self.budget.next_at(now);
        if !self.scheduler.is_empty() {
            return ready;
        }
        self.budget.idle();
        let mut at = Instant::FAR_FUTURE;
        for l in self
            .limits
            .iter_mut()
            .flatten()
            .filter(|l| !l.parked.is_empty())
        {
            at = at.min(l.budget.next_at(now));
        }
        for end in ends {
            at = at.min(end.link().poll_timeout(now));
        }
        at.max(ready)
    }
}
