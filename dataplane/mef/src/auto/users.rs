//! Who uses a line of unknown capacity: links, and packets in the clear. While more than one does,
//! there is one rate, of the line, which its scheduler divides among the flows of all of them.
//!
//! ```text
//!               a second user                       rate of the leader's controller
//!   ONE LINK ──────────────────▶ SHARED ─────▶ budget of the line ─────▶ scheduler
//!   its own rate ◀────────────── the leader: the link whose reports come soonest,
//!               one is left      the others' controllers follow and learn
//! ```
//!
//! Every link's controller [sees the line](crate::link) through its own packets, so any one of them
//! can decide; two that decide at once would each take the other's packets for its own success. The
//! one with the shortest way answers soonest. Where the leader has little to send, it asks the peer
//! now and then, as packets in the clear are reported by nobody.

use mef_packet::time::Duration;
use mef_packet::{BitRate, Bytes, Instant};

use super::AutoRate;
use crate::bucket::LineBudget;
use crate::line::{LinkEnd, UTILISATION};
use crate::link::Link;

/// Who sent nothing for so long does not use the line.
const IN_USE: Duration = Duration::from_secs(1);
/// How often it is asked who leads.
const LOOK: Duration = Duration::from_millis(100);
/// A link has used the line for so long before it leads for its shorter way: its base delay is known by then.
const KNOWN: Duration = Duration::from_secs(8);
/// A shorter way is one of less than this share of the leader's, and by more than the time.
const SHORTER: f64 = 0.7;
const BY: Duration = Duration::from_millis(2);
/// A link's reports may be so much older than another's before its path is taken for gone.
const BEHIND: Duration = Duration::from_millis(100);
/// A leader without packets asks so often, or once in so many packets of the line.
const SAMPLE: Duration = Duration::from_millis(10);
const SAMPLE_BYTES: Bytes = Bytes(8 * 1514);

/// What one user has sent.
#[derive(Clone, Copy, Debug, Default)]
struct User {
    sent: u64,
    /// From when on, without a pause, and the last time.
    since: Option<Instant>,
    last: Option<Instant>,
}

impl User {
    fn uses(&mut self, now: Instant) {
        if !self.is_active(now) {
            self.since = Some(now);
        }
        self.last = Some(now);
    }
    fn is_active(&self, now: Instant) -> bool {
        self.last.is_some_and(|t| now.since(t) < IN_USE)
    }
}

/// The users of one line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Users {
    /// By place; none on a line whose capacity is known.
    links: Vec<User>,
    plain: User,
    total: u64,
    leader: Option<usize>,
    next_look: Option<Instant>,
    /// While more than one link uses the line, or packets in the clear do.
    budget: Option<LineBudget>,
}

impl Users {
    /// The link in this place sent `bytes`; `data` is what hosts gave it.
    pub fn sent(&mut self, now: Instant, place: usize, bytes: u64, data: bool) {
        if let Some(user) = self.links.get_mut(place) {
            user.sent += bytes;
            self.total += bytes;
            if data {
                user.uses(now);
            }
        }
    }

    /// A packet in the clear of `bytes` left.
    pub fn sent_plain(&mut self, now: Instant, bytes: u64) {
        if !self.links.is_empty() {
            self.total += bytes;
            self.plain.uses(now);
        }
    }

    /// Charges everything that leaves.
    pub fn charge(&mut self, now: Instant, bytes: u64) {
        if let Some(b) = &mut self.budget {
            b.charge(now, Bytes(bytes));
        }
    }

    /// Whether the line has one rate for all its users.
    pub fn is_shared(&self) -> bool {
        self.budget.is_some()
    }

    /// When the next packet may leave, as far as the users' common rate is concerned.
    pub fn next_at(&mut self, now: Instant) -> Instant {
        self.budget.as_mut().map_or(now, |b| b.next_at(now))
    }

    /// Nobody waits.
    pub fn idle(&mut self) {
        if let Some(b) = &mut self.budget {
            b.idle();
        }
    }

    /// What the link in this place is to know before its next packet.
    pub fn tell<E: LinkEnd>(&self, now: Instant, place: usize, end: &mut E) {
        if let Some(user) = self.links.get(place) {
            let in_use = user.is_active(now) || (self.is_shared() && self.leader == Some(place));
            let others = self.total.saturating_sub(user.sent);
            end.link_mut().note_beside(others, in_use);
        }
    }

    /// Looks at who uses the line. The common rate, while there is one.
    pub fn look<E: LinkEnd>(
        &mut self,
        now: Instant,
        ends: &mut [E],
        interval: Duration,
    ) -> Option<BitRate> {
        if self.links.is_empty() && ends.iter().all(|e| e.link().estimate().is_none()) {
            return None;
        }
        if self.links.len() < ends.len() {
            self.links.resize_with(ends.len(), User::default);
        }
        let active = self.links.iter().filter(|l| l.is_active(now)).count();
        let shared = active > 1 || self.plain.is_active(now);
        if self.next_look.is_none_or(|t| now >= t) || shared != self.is_shared() {
            self.next_look = Some(now + LOOK);
            self.choose(now, ends);
        }
        let leader = self.leader.filter(|_| shared);
        let course = leader.and_then(|l| ends.get(l)?.link().estimate().map(AutoRate::course));
        let (Some(leader), Some(course)) = (leader, course) else {
            self.budget = None;
            return None;
        };
        for (i, end) in ends.iter_mut().enumerate() {
            if i == leader {
                let every = SAMPLE.max(course.rate().time_for(SAMPLE_BYTES));
                end.link_mut().sample(now, every);
            } else if let Some(auto) = end.link_mut().estimate_mut() {
                auto.follow(course);
            }
        }
        let rate = course.rate().scale(UTILISATION);
        match &mut self.budget {
            Some(b) if b.rate() != rate => b.set_rate(now, rate),
            Some(_) => {}
            None => {
                let mut budget = LineBudget::new(now, rate, 0);
                budget.set_interval(interval);
                self.budget = Some(budget);
            }
        }
        Some(course.rate())
    }

    /// Who is to lead; the new leader goes on from where the former one was.
    fn choose<E: LinkEnd>(&mut self, now: Instant, ends: &mut [E]) {
        let usable = |i: &usize| {
            ends.get(*i).is_some_and(|e| {
                let link = e.link();
                link.estimate().is_some() && link.is_up() && !link.is_silent()
            })
        };
        let is_active = |i: &usize| self.links.get(*i).is_some_and(|l| l.is_active(now));
        let mut pool: Vec<usize> = (0..ends.len()).filter(is_active).filter(usable).collect();
        if pool.is_empty() {
            // Packets in the clear alone: any link can tell what becomes of them.
            pool.extend((0..ends.len()).filter(usable));
        }
        let lag = |i: usize| ends.get(i).map_or(Duration::MAX, |e| way(e.link()));
        let seen = |i: usize| ends.get(i).and_then(|e| e.link().knows_since());
        // Whose path carries nothing any more does not slow the others.
        if let Some(newest) = pool.iter().copied().max_by_key(|i| seen(*i)) {
            let (latest, least) = (seen(newest), lag(newest));
            pool.retain(|i| match (latest, seen(*i)) {
                (Some(t), Some(mine)) => t.since(mine) <= lag(*i).saturating_sub(least) + BEHIND,
                (latest, mine) => latest == mine,
            });
        }
        let Some(nearest) = pool.iter().copied().min_by_key(|i| lag(*i)) else {
            return;
        };
        let since = self.links.get(nearest).and_then(|u| u.since);
        let known = is_active(&nearest) && since.is_some_and(|t| now.since(t) >= KNOWN);
        let chosen = match self.leader.filter(|l| pool.contains(l)) {
            Some(l) if !(known && is_shorter(lag(nearest), lag(l))) => l,
            _ => nearest,
        };
        let before = self.leader.filter(|l| *l != chosen);
        let gone = before.is_some_and(|l| !pool.contains(&l));
        let before = before.and_then(|l| ends.get(l)?.link().estimate());
        let standing = before.map_or(0.0, |b| b.standing(now));
        let before = before.map(AutoRate::course);
        self.leader = Some(chosen);
        if let Some(auto) = ends
            .get_mut(chosen)
            .and_then(|e| e.link_mut().estimate_mut())
        {
            auto.lead(now, before, gone, standing);
        }
    }
}

/// Whether a way is so much shorter than another that it is worth a new leader.
fn is_shorter(way: Duration, than: Duration) -> bool {
    way + BY < than && way < than.mul_f64(SHORTER)
}

/// Round trip of a packet that meets no queue.
fn way(link: &Link) -> Duration {
    match link.estimate() {
        Some(auto) if auto.delivered().0 > 0 => auto.base_rtt(),
        _ => link.rtt().min(),
    }
}
