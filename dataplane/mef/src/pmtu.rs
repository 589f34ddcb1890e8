//! The path MTU of a link: datagram packetization-layer discovery (RFC 8899),
//! black-hole detection included.
//!
//! ```text
//!          start: all likely sizes at once      every likely size decided
//!  BASE ─────────────────────────────▶ SEARCH ─────────────────────────▶ REFINE
//!  1280 ◀───────────────────────────┐    ▲ ▲  up to 8 sizes at once between │
//!          black hole: 1280 passes, │    │ │  the largest acknowledged and  │
//!          larger packets do not    │    │ │  the smallest failed, until    │
//!                                   │    │ │  they are 8 bytes apart        │
//!                                COMPLETE◀┼────────────────────────────────┘
//!                                   └────┘ every 10 minutes
//! ```
//!
//! Probes go out in parallel, because on a long path one after another would
//! take seconds; a size has failed after three of them. A larger acknowledged
//! size overrules a failed smaller one, so random loss delays but does not mislead.
//!
//! A black hole is suspected when many packets above 1280 bytes in a row are
//! lost or stay unanswered for more than a round trip. Then probes of 1280 go
//! out, and only if one is acknowledged is the size, and not the link, at fault.

use mef_packet::time::Duration;
use mef_packet::Instant;

/// What every IPv6 path carries, and where a link starts (RFC 8899: BASE_PLPMTU). IP packet bytes.
pub const BASE: u16 = 1280;
const LIKELY: [u16; 9] = [1500, 1492, 1480, 1454, 1428, 1400, 1380, 1340, 1300];
const STEP: u16 = 8;
const TRIES: u8 = 3;
/// Sizes probed at once while refining.
const PARALLEL: u16 = 8;
const RAISE: Duration = Duration::from_secs(600);
/// Large packets lost in a row that raise a suspicion: at 20% independent loss 4e-9.
const SUSPICIOUS_LOSSES: u32 = 12;
/// A confirmation that went unanswered is not repeated for as long.
const SUSPICION_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Waiting,
    /// Given up as lost if not acknowledged by then.
    InFlight(Instant),
    Failed,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    size: u16,
    tries: u8,
    outcome: Outcome,
}

impl Probe {
    fn new(size: u16) -> Self {
        Self {
            size,
            tries: 0,
            outcome: Outcome::Waiting,
        }
    }
    fn lost(&mut self) {
        self.outcome = if self.tries < TRIES {
            Outcome::Waiting
        } else {
            Outcome::Failed
        };
    }
    fn expire(&mut self, now: Instant) {
        if matches!(self.outcome, Outcome::InFlight(until) if now >= until) {
            self.lost();
        }
    }
    fn send(&mut self, until: Instant) -> u16 {
        self.tries += 1;
        self.outcome = Outcome::InFlight(until);
        self.size
    }
}

/// Path MTU of one link, in bytes of IP packet.
#[derive(Clone, Debug)]
pub struct PathMtu {
    current: u16,
    max: u16,
    /// Smallest size known not to pass.
    failed: Option<u16>,
    probes: Vec<Probe>,
    raise_at: Instant,
    /// Round trip and the longest the peer holds an acknowledgement back.
    answer_time: Duration,
    black_hole: BlackHole,
    black_holes: u64,
}

/// What has happened to packets above [`BASE`] since the last of them was acknowledged.
#[derive(Clone, Copy, Debug, Default)]
struct BlackHole {
    lost: u32,
    sent: u32,
    first_sent: Option<Instant>,
    confirm: Option<Probe>,
    pause_until: Instant,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self::new()
    }
}

impl PathMtu {
    /// At [`BASE`], with nothing to probe until [`start`](Self::start).
    pub fn new() -> Self {
        Self {
            current: BASE,
            max: BASE,
            failed: None,
            probes: Vec::new(),
            raise_at: Instant::FAR_FUTURE,
            answer_time: Duration::from_secs(1),
            black_hole: BlackHole::default(),
            black_holes: 0,
        }
    }

    /// The link is up; `max` is the MTU of the port it leaves by. Starts over from [`BASE`].
    pub fn start(&mut self, now: Instant, max: u16) {
        self.max = max.max(BASE);
        self.current = BASE;
        self.black_hole = BlackHole::default();
        self.search(now);
    }

    /// How long an answer may take: the round trip and the peer's acknowledgement delay.
    /// A second until told otherwise.
    pub fn set_rtt(&mut self, rtt: Duration, ack_delay: Duration) {
        // A quarter more, for what varies.
        self.answer_time = (rtt + ack_delay + rtt / 4).max(Duration::from_millis(5));
    }

    /// The size packets may have now.
    pub fn current(&self) -> u16 {
        self.current
    }

    /// How often packets of the size in use have stopped passing.
    pub fn black_holes(&self) -> u64 {
        self.black_holes
    }

    /// Nothing is left to find out before the next raise timer.
    pub fn is_complete(&self) -> bool {
        self.probes.is_empty() && self.black_hole.confirm.is_none()
    }

    /// Size of the probe to send now, if any; to be called until `None`.
    pub fn poll_probe(&mut self, now: Instant) -> Option<u16> {
        let until = now + self.answer_time;
        self.suspect_silence(now);
        if let Some(probe) = &mut self.black_hole.confirm {
            probe.expire(now);
            match probe.outcome {
                Outcome::Waiting => return Some(probe.send(until)),
                Outcome::InFlight(_) => return None,
                Outcome::Failed => {
                    // Nothing passes at all: the link's matter, not the size's.
                    self.black_hole = BlackHole {
                        pause_until: now + SUSPICION_PAUSE,
                        ..BlackHole::default()
                    };
                }
            }
        }
        if now >= self.raise_at {
            self.search(now);
        }
        for probe in &mut self.probes {
            probe.expire(now);
        }
        self.settle(now);
        self.probes
            .iter_mut()
            .find(|p| p.outcome == Outcome::Waiting)
            .map(|p| p.send(until))
    }

    /// When [`poll_probe`](Self::poll_probe) will next have something to do.
    pub fn next_at(&self, now: Instant) -> Instant {
        let due = |p: &Probe| match p.outcome {
            Outcome::InFlight(until) => until,
            Outcome::Waiting | Outcome::Failed => now,
        };
        // While a suspicion is being confirmed, everything else waits.
        if let Some(probe) = &self.black_hole.confirm {
            return due(probe);
        }
        let silence = match self.black_hole.first_sent {
            Some(first) if self.current > BASE && self.black_hole.sent >= SUSPICIOUS_LOSSES => {
                (first + self.answer_time).max(self.black_hole.pause_until)
            }
            _ => Instant::FAR_FUTURE,
        };
        self.probes
            .iter()
            .map(due)
            .min()
            .unwrap_or(self.raise_at)
            .min(silence)
    }

    /// A probe of `size` was acknowledged. Sizes never probed are not believed.
    pub fn on_probe_acked(&mut self, now: Instant, size: u16) {
        if size == BASE && self.black_hole.confirm.is_some() {
            self.fall_back(now);
        } else if size <= self.max
            && size > self.current
            && self.probes.iter().any(|p| p.size == size && p.tries > 0)
        {
            self.current = size;
            self.failed = self.failed.filter(|&f| f > size);
            self.probes.retain(|p| p.size > size);
            self.black_hole = BlackHole::default();
            self.settle(now);
        }
    }

    /// A probe of `size` was declared lost; the next try may go at once.
    pub fn on_probe_lost(&mut self, now: Instant, size: u16) {
        if size == BASE {
            if let Some(probe) = &mut self.black_hole.confirm {
                probe.lost();
            }
        }
        for probe in self
            .probes
            .iter_mut()
            .filter(|p| p.size == size && matches!(p.outcome, Outcome::InFlight(_)))
        {
            probe.lost();
        }
        self.settle(now);
    }

    /// Nothing passed for a while, whatever its size, and now something does: that was no black hole for large packets.
    pub fn path_returned(&mut self) {
        self.black_hole = BlackHole::default();
    }

    /// A packet that is not a probe leaves.
    pub fn on_packet_sent(&mut self, now: Instant, size: u16) {
        if size > BASE {
            self.black_hole.first_sent.get_or_insert(now);
            self.black_hole.sent = self.black_hole.sent.saturating_add(1);
        }
    }

    /// A packet above 1280 bytes that is not a probe was acknowledged: that clears every suspicion.
    pub fn on_large_acked(&mut self) {
        self.black_hole = BlackHole {
            pause_until: self.black_hole.pause_until,
            ..BlackHole::default()
        };
    }

    /// A packet that is not a probe was declared lost.
    pub fn on_packet_lost(&mut self, now: Instant, size: u16) {
        if size <= BASE || self.current <= BASE {
            return;
        }
        self.black_hole.lost = self.black_hole.lost.saturating_add(1);
        if self.black_hole.lost >= SUSPICIOUS_LOSSES {
            self.suspect(now);
        }
    }

    /// So many large packets and not one answer for longer than an answer takes.
    fn suspect_silence(&mut self, now: Instant) {
        let b = &self.black_hole;
        let silent = b
            .first_sent
            .is_some_and(|first| now >= first + self.answer_time);
        if silent && b.sent >= SUSPICIOUS_LOSSES && self.current > BASE {
            self.suspect(now);
        }
    }

    fn suspect(&mut self, now: Instant) {
        if self.black_hole.confirm.is_none() && now >= self.black_hole.pause_until {
            self.black_hole.confirm = Some(Probe::new(BASE));
        }
    }

    fn fall_back(&mut self, now: Instant) {
        self.black_holes += 1;
        self.current = BASE;
        self.black_hole = BlackHole::default();
        self.search(now);
    }

    /// Probes all likely sizes above the one in use.
    fn search(&mut self, now: Instant) {
        self.failed = None;
        self.raise_at = now + RAISE;
        let (current, max) = (self.current, self.max);
        let sizes = core::iter::once(max).chain(LIKELY.into_iter().filter(|&s| s < max));
        self.probes = sizes.filter(|&s| s > current).map(Probe::new).collect();
    }

    /// Takes failed sizes out and, when none is left, probes the gap that remains.
    fn settle(&mut self, now: Instant) {
        let failed = self
            .probes
            .iter()
            .filter(|p| p.outcome == Outcome::Failed)
            .map(|p| p.size)
            .min();
        if let Some(size) = failed {
            self.failed = Some(self.failed.map_or(size, |f| f.min(size)));
            self.probes.retain(|p| p.outcome != Outcome::Failed);
            self.raise_at = now + RAISE;
        }
        let Some(failed) = self.failed else { return };
        if !self.probes.is_empty() || failed <= self.current.saturating_add(STEP) {
            return;
        }
        let gap = failed - self.current;
        let step = (gap / (PARALLEL + 1)).next_multiple_of(STEP).max(STEP);
        let current = self.current;
        self.probes = (1..=PARALLEL)
            .rev()
            .map(|i| current.saturating_add(i * step))
            .filter(|&s| s < failed)
            .map(Probe::new)
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(200);
    const MS: Duration = Duration::from_millis(1);

    struct Rng(u64);
    impl Rng {
        fn unit(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    /// A path with an MTU, random loss, and a sender of one full packet per millisecond.
    struct Path {
        mtu: u16,
        loss: f64,
        now: Instant,
        rng: Rng,
        pmtu: PathMtu,
        answers: Vec<(Instant, u16, bool, bool)>,
        probes: u32,
    }

    impl Path {
        fn new(mtu: u16, max: u16, loss: f64, seed: u64) -> Self {
            let mut pmtu = PathMtu::new();
            pmtu.set_rtt(RTT, Duration::from_millis(25));
            pmtu.start(Instant::ZERO, max);
            Self {
                mtu,
                loss,
                now: Instant::ZERO,
                rng: Rng(seed),
                pmtu,
                answers: vec![],
                probes: 0,
            }
        }
        fn send(&mut self, size: u16, probe: bool) {
            let arrives = size <= self.mtu && self.rng.unit() >= self.loss;
            // Losses are noticed a little after the answer to a later packet.
            let delay = if arrives { RTT } else { RTT + 20 * MS };
            self.answers.push((self.now + delay, size, probe, arrives));
        }
        fn run(&mut self, ms: u64, data: bool) {
            for _ in 0..ms {
                let now = self.now;
                let due: Vec<_> = self
                    .answers
                    .iter()
                    .filter(|a| a.0 <= now)
                    .copied()
                    .collect();
                self.answers.retain(|a| a.0 > now);
                for (_, size, probe, arrives) in due {
                    match (probe, arrives) {
                        (true, true) => self.pmtu.on_probe_acked(now, size),
                        (true, false) => self.pmtu.on_probe_lost(now, size),
                        (false, true) if size > BASE => self.pmtu.on_large_acked(),
                        (false, true) => {}
                        (false, false) => self.pmtu.on_packet_lost(now, size),
                    }
                }
                while let Some(size) = self.pmtu.poll_probe(now) {
                    self.probes += 1;
                    self.send(size, true);
                }
                assert!(self.pmtu.next_at(now) > now, "everything due was done");
                if data {
                    let size = self.pmtu.current();
                    self.pmtu.on_packet_sent(now, size);
                    self.send(size, false);
                }
                self.now += MS;
            }
        }
    }

    #[test]
    fn common_sizes_are_found_within_one_round_trip() {
        for mtu in [1500, 1492, 1428, 1280] {
            let mut p = Path::new(mtu, 1500, 0.0, 1);
            p.run(202, false);
            assert_eq!(p.pmtu.current(), mtu);
        }
    }

    #[test]
    fn any_size_is_found_to_within_a_step() {
        for mtu in (1280..=1500).step_by(7).chain([2000, 4000, 8999, 9000]) {
            let mut p = Path::new(mtu, 9000, 0.0, 1);
            p.run(6000, false);
            let found = p.pmtu.current();
            assert!(
                found <= mtu && mtu - found <= STEP,
                "{found} on a path of {mtu}"
            );
            assert!(p.pmtu.is_complete());
            assert!(p.probes < 120, "{}", p.probes);
        }
    }

    #[test]
    fn random_loss_does_not_mislead_for_long() {
        for seed in 1..=20 {
            let mut p = Path::new(1492, 1500, 0.2, seed);
            p.run(5000, true);
            assert!(
                p.pmtu.current() >= 1480,
                "seed {seed}: {}",
                p.pmtu.current()
            );
            assert_eq!(p.pmtu.black_holes(), 0);
        }
    }

    #[test]
    fn twenty_percent_loss_is_not_a_black_hole() {
        let mut p = Path::new(1500, 1500, 0.2, 42);
        p.run(120_000, true);
        assert_eq!(p.pmtu.black_holes(), 0);
        assert_eq!(p.pmtu.current(), 1500);
    }

    #[test]
    fn a_black_hole_is_found_within_three_round_trips() {
        let mut p = Path::new(1500, 1500, 0.01, 5);
        p.run(2000, true);
        assert_eq!(p.pmtu.current(), 1500);
        p.mtu = 1400;
        p.run(700, true);
        assert_eq!(p.pmtu.black_holes(), 1);
        assert!(p.pmtu.current() <= 1400);
        p.run(1500, true);
        assert!(
            (1392..=1400).contains(&p.pmtu.current()),
            "{}",
            p.pmtu.current()
        );
    }

    #[test]
    fn a_dead_link_is_not_a_black_hole() {
        let mut p = Path::new(1500, 1500, 0.0, 5);
        p.run(1000, true);
        p.loss = 1.0;
        let before = p.probes;
        p.run(10_000, true);
        assert!(p.probes - before <= 30, "{}", p.probes - before);
        p.loss = 0.0;
        p.run(3000, true);
        assert_eq!(p.pmtu.black_holes(), 0);
        assert_eq!(p.pmtu.current(), 1500);
    }

    #[test]
    fn an_mtu_that_grew_is_found_by_the_raise_timer() {
        let mut p = Path::new(1400, 1500, 0.0, 5);
        p.run(2000, false);
        assert!(p.pmtu.current() <= 1400);
        p.mtu = 1500;
        p.now = Instant::from_millis(605_000);
        p.run(1000, false);
        assert_eq!(p.pmtu.current(), 1500);
    }

    #[test]
    fn acknowledgements_of_what_was_never_probed_are_not_believed() {
        let mut m = PathMtu::new();
        m.on_probe_acked(Instant::ZERO, 9000);
        m.start(Instant::ZERO, 1500);
        m.on_probe_acked(Instant::ZERO, 1500);
        m.on_probe_acked(Instant::ZERO, u16::MAX);
        assert_eq!(m.current(), BASE);
        assert_eq!(m.poll_probe(Instant::ZERO), Some(1500));
        m.on_probe_acked(Instant::ZERO, 1500);
        assert_eq!(m.current(), 1500);
    }

    #[test]
    fn a_port_below_the_base_probes_nothing() {
        let mut m = PathMtu::new();
        m.start(Instant::ZERO, 600);
        assert_eq!(m.poll_probe(Instant::ZERO), None);
        assert_eq!(m.current(), BASE);
    }
}
