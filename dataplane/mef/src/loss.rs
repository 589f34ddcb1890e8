//! How much a path loses, remembered beyond the life of any flow: what repair
//! needs to know before the first packet of a flow is lost.
//!
//! Outcomes come in the order of sending and are counted in blocks of 64. The
//! mean decays over about 2000 packets; a short memory of 256 packets takes
//! over when it says significantly more, so that a path that turns bad is
//! believed at once and one that turns good only slowly. The index of
//! dispersion of the losses per block (variance over mean, 1 when losses are
//! independent) tells bursts, as of a Gilbert-Elliott channel: equal means then
//! need more repair.

const BLOCK: u32 = 64;
/// Packets after which what was seen weighs 1/e.
const LONG: f64 = 2000.0;
const SHORT: f64 = 256.0;
/// What is assumed before anything was seen, and with the weight of how many packets.
const PRIOR_PACKETS: f64 = 64.0;
/// Least loss that repair is computed for: an estimate of zero after a lucky stretch is not to be trusted.
pub const FLOOR: f64 = 0.01;
/// Most that burstiness adds.
pub const MAX_BURST_FACTOR: f64 = 5.0;
const CEILING: f64 = 0.9;

/// Loss estimate of one direction of a path.
#[derive(Clone, Debug)]
pub struct LossEstimator {
    block_packets: u32,
    block_lost: u32,
    long: Memory,
    short: Memory,
    /// Decayed sums over whole blocks: their number, their losses, the squares of these.
    blocks: f64,
    block_sum: f64,
    block_squares: f64,
}

#[derive(Clone, Copy, Debug)]
struct Memory {
    packets: f64,
    lost: f64,
}

impl Memory {
    fn decay(&mut self, factor: f64) {
        self.packets *= factor;
        self.lost *= factor;
    }
}

impl Default for LossEstimator {
    fn default() -> Self {
        Self::new()
    }
}

impl LossEstimator {
    pub fn new() -> Self {
        let prior = Memory {
            packets: PRIOR_PACKETS,
            lost: PRIOR_PACKETS * FLOOR,
        };
        Self {
            block_packets: 0,
            block_lost: 0,
            long: prior,
            short: prior,
            blocks: 0.0,
            block_sum: 0.0,
            block_squares: 0.0,
        }
    }

    /// `packets` further packets, in the order of sending, arrived.
    pub fn on_acked(&mut self, packets: u32) {
        self.count(packets, 0);
    }

    /// `packets` further packets, in the order of sending, were lost.
    pub fn on_lost(&mut self, packets: u32) {
        self.count(packets, 1);
    }

    /// `packets` that were counted as lost have arrived after all.
    pub fn on_spurious(&mut self, packets: u32) {
        let here = packets.min(self.block_lost);
        self.block_lost -= here;
        let n = f64::from(packets - here);
        self.long.lost = (self.long.lost - n).max(0.0);
        self.short.lost = (self.short.lost - n).max(0.0);
        self.block_sum = (self.block_sum - n).max(0.0);
        self.block_squares = (self.block_squares - n).max(0.0);
    }

    /// Share of packets lost, 0 to 0.9, no floor.
    pub fn mean(&self) -> f64 {
        let (n, lost) = (f64::from(self.block_packets), f64::from(self.block_lost));
        let long = (self.long.lost + lost) / (self.long.packets + n);
        let packets = self.short.packets + n;
        let short = (self.short.lost + lost) / packets;
        // What chance alone makes of it; bursts make more.
        let spread = (self.burst_factor() * long.max(FLOOR) / packets).sqrt();
        long.max(short - 2.0 * spread).clamp(0.0, CEILING)
    }

    /// By how much repair has to exceed what independent losses of this mean would need: 1 to 5.
    pub fn burst_factor(&self) -> f64 {
        if self.blocks < 4.0 || self.block_sum < 1.0 {
            return 1.0;
        }
        let mean = self.block_sum / self.blocks;
        let variance = (self.block_squares / self.blocks - mean * mean).max(0.0);
        let p = (mean / f64::from(BLOCK)).min(CEILING);
        let dispersion = variance / (mean * (1.0 - p));
        // The index of n blocks of independent losses scatters by sqrt(2 / n) around 1, and more
        // when there are few losses in all.
        let noise = 3.0 * (2.0 / self.blocks + 1.0 / self.block_sum).sqrt();
        if dispersion < 1.0 + noise {
            return 1.0;
        }
        dispersion.clamp(1.0, MAX_BURST_FACTOR)
    }

    /// The loss to compute repair for: mean times burst factor, at least 1%, at most 90%.
    pub fn repair_loss(&self) -> f64 {
        (self.mean() * self.burst_factor()).clamp(FLOOR, CEILING)
    }

    fn count(&mut self, mut packets: u32, lost: u32) {
        // Beyond a few memories' length more of the same changes nothing.
        packets = packets.min(16 * LONG as u32);
        while packets > 0 {
            let n = packets.min(BLOCK - self.block_packets);
            self.block_packets += n;
            self.block_lost += n * lost;
            packets -= n;
            if self.block_packets == BLOCK {
                self.close_block();
            }
        }
    }

    fn close_block(&mut self) {
        let (n, lost) = (f64::from(self.block_packets), f64::from(self.block_lost));
        for (memory, length) in [(&mut self.long, LONG), (&mut self.short, SHORT)] {
            memory.decay((-n / length).exp());
            memory.packets += n;
            memory.lost += lost;
        }
        // Dispersion is about rare events: it is remembered for longer than the mean.
        let keep = (-n / (2.0 * LONG)).exp();
        self.blocks = self.blocks * keep + 1.0;
        self.block_sum = self.block_sum * keep + lost;
        self.block_squares = self.block_squares * keep + lost * lost;
        self.block_packets = 0;
        self.block_lost = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// xorshift64*, so that the tests are the same everywhere.
    struct Rng(u64);
    impl Rng {
        fn unit(&mut self) -> f64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    fn feed(e: &mut LossEstimator, rng: &mut Rng, n: u32, p: f64) {
        for _ in 0..n {
            if rng.unit() < p {
                e.on_lost(1);
            } else {
                e.on_acked(1);
            }
        }
    }

    #[test]
    fn finds_the_mean_of_independent_losses_without_burst_factor() {
        for p in [0.02, 0.05, 0.2] {
            for seed in 1..=20 {
                let mut e = LossEstimator::new();
                feed(&mut e, &mut Rng(seed), 8000, p);
                assert!((e.mean() / p - 1.0).abs() < 0.6, "p {p}: {}", e.mean());
                assert!(e.burst_factor() < 1.5, "p {p}: {}", e.burst_factor());
            }
        }
    }

    #[test]
    fn a_clean_path_stays_at_the_floor() {
        let mut e = LossEstimator::new();
        assert_eq!(e.repair_loss(), FLOOR);
        e.on_acked(100_000);
        assert!(e.mean() < 1e-6, "{}", e.mean());
        assert_eq!(e.repair_loss(), FLOOR);
    }

    #[test]
    fn rises_within_hundreds_of_packets_and_falls_within_thousands() {
        let mut e = LossEstimator::new();
        let mut rng = Rng(7);
        feed(&mut e, &mut rng, 20_000, 0.001);
        feed(&mut e, &mut rng, 400, 0.1);
        assert!(e.mean() > 0.03, "after 400 packets at 10%: {}", e.mean());
        assert!(
            e.repair_loss() > 0.05,
            "after 400 packets at 10%: {}",
            e.repair_loss()
        );
        feed(&mut e, &mut rng, 4000, 0.1);
        feed(&mut e, &mut rng, 400, 0.0);
        assert!(
            e.mean() > 0.04,
            "400 good packets are no proof: {}",
            e.mean()
        );
        feed(&mut e, &mut rng, 16_000, 0.0);
        assert!(e.mean() < 0.005, "{}", e.mean());
    }

    #[test]
    fn bursts_ask_for_more_repair() {
        for seed in 1..=20 {
            let mut e = LossEstimator::new();
            let mut rng = Rng(seed);
            // Gilbert-Elliott: mean burst 8 packets, 2% lost on average.
            let (to_bad, to_good) = (0.0025, 0.125);
            let mut bad = false;
            for _ in 0..12_000 {
                bad = if bad {
                    rng.unit() >= to_good
                } else {
                    rng.unit() < to_bad
                };
                if bad {
                    e.on_lost(1);
                } else {
                    e.on_acked(1);
                }
            }
            assert!(e.burst_factor() > 2.5, "seed {seed}: {}", e.burst_factor());
            assert!(e.repair_loss() > 0.03, "seed {seed}: {}", e.repair_loss());
        }
    }

    #[test]
    fn spurious_losses_are_taken_back() {
        let mut e = LossEstimator::new();
        let mut rng = Rng(3);
        for _ in 0..100 {
            feed(&mut e, &mut rng, 90, 0.0);
            e.on_lost(10);
            e.on_spurious(10);
        }
        assert!(e.mean() < 0.002, "{}", e.mean());
    }

    #[test]
    fn extreme_counts_are_harmless() {
        let mut e = LossEstimator::new();
        e.on_lost(u32::MAX);
        assert!(e.mean() <= CEILING && e.repair_loss() <= CEILING);
        e.on_spurious(u32::MAX);
        assert!(e.mean() >= 0.0 && e.repair_loss() >= FLOOR);
    }
}
