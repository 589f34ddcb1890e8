//! Interrupt moderation: where packets come densely, a router that is woken for each
//! spends most of its time on waking. Where a line's `burst` says that this matters more
//! than promptness, it does not listen to its ports for a
//! while, takes what has come together, and is woken by its own timers only.
//!
//! ```text
//!            two to 64 packets are to be expected while it is deaf
//!  listening --------------------------------------------------> deaf, for a while
//!  (woken by  <------------------------------------------------  (then it looks at all
//!   packets)     other numbers, or nothing came                   ports, and is deaf again)
//! ```
//! A packet that comes alone is taken at once. Where more come, the next is there before a
//! sleep has begun: the router looks once more before it goes to sleep. NICs do the same to the processors
//! that they interrupt. Where memory is short, hosts have windows of a few segments, which
//! half a millisecond more on each round trip would starve: then it always listens.

use std::time::Duration;

use mef_packet::Instant;

use crate::config::Config;

/// Bursts up to this say that promptness matters more than processor time.
const PROMPT: Duration = Duration::from_micros(500);
/// So few packets that come in that time are worth waiting for.
const FEW: u32 = 2;
/// More packets than these are a batch by themselves.
const MANY: u32 = 64;
/// What is due so shortly before or after the end of that time is done together with it.
const TOGETHER: Duration = Duration::from_micros(125);
/// A longer silence says no more of how dense the packets behind it are.
const SILENCE: Duration = Duration::from_millis(10);

/// How to spend the time until something is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// At most this long, but until a packet arrives.
    Listening(Duration),
    /// For this long, whatever arrives.
    Deaf(Duration),
}

impl Sleep {
    /// Whether there is nothing to wait for.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Listening(Duration::ZERO) | Self::Deaf(Duration::ZERO)
        )
    }

    /// The same without waiting.
    pub fn over(self) -> Self {
        match self {
            Self::Listening(_) => Self::Listening(Duration::ZERO),
            Self::Deaf(_) => Self::Deaf(Duration::ZERO),
        }
    }
}

/// When to listen.
#[derive(Clone, Copy, Debug)]
pub struct Moderation {
    /// For how long to be deaf; never where it is zero.
    hold: Duration,
    /// Packets of late, in 1/256, and the time that they took: both forget by and by.
    packets: u64,
    time: Duration,
    looked: Instant,
    /// More come than are waited for, and the last look found some.
    bulk: bool,
    /// Until then the ports are left alone.
    deaf_until: Option<Instant>,
}

impl Moderation {
    /// Packets may wait for `hold`, not at all if that is zero. Nothing arrived before `now`.
    pub fn new(now: Instant, hold: Duration) -> Self {
        Self {
            hold,
            packets: 0,
            time: SILENCE,
            looked: now,
            bulk: false,
            deaf_until: None,
        }
    }

    /// As it suits the router's lines: one that sends a millisecond at a time needs not look more often.
    /// None where no line says so, as on a short access half a millisecond more is several round
    /// trips, and none where a line's capacity is estimated, from when its packets arrive.
    pub fn of(now: Instant, config: &Config) -> Self {
        let lines = config.ports.iter().filter_map(|p| p.line);
        let longest = lines.clone().map(|l| l.burst).max().unwrap_or_default();
        let prompt = longest <= PROMPT || lines.clone().any(|l| l.auto.is_some());
        Self::new(now, if prompt { Duration::ZERO } else { longest })
    }

    /// Whether packets are never let wait.
    pub fn is_off(&self) -> bool {
        self.hold.is_zero()
    }

    /// Whether to look at the ports now.
    pub fn listens(&self, now: Instant) -> bool {
        self.deaf_until.is_none_or(|until| now + TOGETHER >= until)
    }

    /// The ports were looked at, and this many packets were there.
    pub fn took(&mut self, now: Instant, packets: usize) {
        let since = now.since(self.looked).min(SILENCE);
        self.looked = now;
        self.time = self.time * 3 / 4 + since;
        self.packets = self.packets * 3 / 4 + 256 * packets as u64;
        // How many packets, in 1/256, times nanoseconds.
        let expected = u128::from(self.packets) * self.hold.as_nanos();
        let times = |n: u32| u128::from(n) * 256 * self.time.as_nanos();
        let dense = (times(FEW)..=times(MANY)).contains(&expected);
        let waits = packets > 0 && dense;
        self.bulk = packets > 0 && expected > times(MANY);
        self.deaf_until = waits.then(|| now + self.hold);
    }

    /// Somebody waits for what is next: listens to the ports until packets say otherwise.
    pub fn listen(&mut self) {
        self.deaf_until = None;
    }

    /// How to sleep from `now` until `wake`, when a timer is due.
    pub fn sleep(&mut self, now: Instant, wake: Instant) -> Sleep {
        // Once: what a look without packets does not end, this does.
        let bulk = std::mem::take(&mut self.bulk);
        match self.deaf_until {
            None if bulk => Sleep::Listening(Duration::ZERO),
            None => Sleep::Listening(wake.since(now)),
            Some(until) if wake <= until + TOGETHER => Sleep::Deaf(wake.since(now)),
            Some(until) => Sleep::Deaf(until.since(now)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_micros(500);
    const NO_TIMER: Instant = Instant::FAR_FUTURE;

    /// Packets `spacing` apart for 100 ms: how often the router looks, and how long one waits at most.
    fn run(hold: Duration, spacing: Duration) -> (u32, Duration) {
        let mut m = Moderation::new(Instant::ZERO, hold);
        let (mut now, mut looks, mut longest) = (Instant::ZERO, 0, Duration::ZERO);
        let mut next = Instant::ZERO + spacing;
        while now < Instant::from_millis(100) {
            now = match m.sleep(now, NO_TIMER) {
                Sleep::Listening(_) => now.max(next),
                Sleep::Deaf(wait) => now + wait,
            };
            assert!(m.listens(now));
            longest = longest.max(now.since(next));
            let mut packets = 0;
            while next <= now {
                (next, packets) = (next + spacing, packets + 1);
            }
            m.took(now, packets);
            looks += 1;
        }
        (looks, longest)
    }

    #[test]
    fn dense_packets_are_taken_together_and_seldom_ones_at_once() {
        let us = Duration::from_micros;
        let (looks, longest) = run(us(500), us(20));
        assert!((200..300).contains(&looks), "{looks}");
        assert!(longest <= us(500), "{longest:?}");
        assert_eq!(run(us(500), us(251)), (399, Duration::ZERO));
        assert_eq!(run(us(500), us(5000)), (20, Duration::ZERO));
        // More than a batch comes meanwhile; only at first it seems less.
        let (looks, longest) = run(us(500), us(6));
        assert!(looks > 15_000 && longest <= us(500), "{looks}, {longest:?}");
        // Where it is switched off.
        assert_eq!(run(us(0), us(20)), (5_000, Duration::ZERO));
    }

    #[test]
    fn in_bulk_it_looks_once_more_and_then_sleeps() {
        let mut m = Moderation::new(Instant::ZERO, HOLD);
        let at = |us| Instant::from_micros(us);
        for n in 1..=50 {
            m.took(at(10 * n), 64);
        }
        assert_eq!(m.sleep(at(500), at(700)), Sleep::Listening(Duration::ZERO));
        let wait = Duration::from_micros(200);
        assert_eq!(m.sleep(at(500), at(700)), Sleep::Listening(wait));
    }

    #[test]
    fn silence_ends_it() {
        let mut m = Moderation::new(Instant::ZERO, HOLD);
        let at = |us| Instant::from_micros(us);
        for n in 1..=50 {
            m.took(at(100 * n), 1);
        }
        assert_eq!(m.sleep(at(5000), NO_TIMER), Sleep::Deaf(HOLD));
        m.took(at(5500), 0);
        let wait = NO_TIMER.since(at(5500));
        assert_eq!(m.sleep(at(5500), NO_TIMER), Sleep::Listening(wait));
    }

    #[test]
    fn timers_are_kept_and_what_is_due_about_then_is_done_with_them() {
        let mut m = Moderation::new(Instant::ZERO, HOLD);
        let at = |us| Instant::from_micros(us);
        (m.time, m.packets) = (Duration::from_micros(100), 256);
        m.took(at(2), 1);
        let us = |us| Sleep::Deaf(Duration::from_micros(us));
        assert_eq!(m.sleep(at(2), at(252)), us(250));
        assert!(!m.listens(at(252)));
        assert_eq!(m.sleep(at(252), at(600)), us(348));
        assert!(m.listens(at(600)));
        assert_eq!(m.sleep(at(252), at(700)), us(250));
        assert!(m.listens(at(380)));
        m.listen();
        assert_eq!(
            m.sleep(at(252), at(700)),
            Sleep::Listening(Duration::from_micros(448))
        );
        assert!(m.listens(at(252)));
        m.took(at(252), 1);
        // What is overdue does not wait.
        assert_eq!(m.sleep(at(252), at(200)), us(0));
    }
}
