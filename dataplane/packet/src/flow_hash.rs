//! Which worker a flow belongs to: a keyed hash of its 5-tuple that is the same
//! in both directions, so that both ends of a link, and whoever spreads packets
//! over a port's queues, come to the same worker without asking.
//!
//! Only 32-bit operations: the kernel's packet filters compute the same. Keyed,
//! so that who does not know the key cannot send all of his flows to one worker.

use core::net::IpAddr;

/// One end of a flow; `port` is 0 where there is none, as in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEnd {
    pub address: IpAddr,
    pub port: u16,
}

/// The hash under one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowHash {
    address: u32,
    port: u32,
}

/// The two multipliers of `lowbias32` (C. Wellons, "Prospecting for Hash Functions", 2018).
pub const MULTIPLIERS: [u32; 2] = [0x7feb_352d, 0x846c_a68b];

const fn mix(x: u32) -> u32 {
    let x = (x ^ x >> 16).wrapping_mul(MULTIPLIERS[0]);
    let x = (x ^ x >> 15).wrapping_mul(MULTIPLIERS[1]);
    x ^ x >> 16
}

impl FlowHash {
    pub const fn new(key: u64) -> Self {
        Self {
            address: (key >> 32) as u32,
            port: key as u32,
        }
    }

    /// The two halves of the key: what addresses and what ports are combined with.
    pub const fn halves(&self) -> [u32; 2] {
        [self.address, self.port]
    }

    #[inline]
    fn end(&self, end: FlowEnd) -> u32 {
        let address = match end.address {
            IpAddr::V4(v4) => mix(v4.to_bits() ^ self.address),
            IpAddr::V6(v6) => {
                let bits = v6.to_bits();
                let words = [bits >> 96, bits >> 64, bits >> 32, bits].map(|w| w as u32);
                words
                    .iter()
                    .fold(self.address, |so_far, word| mix(word ^ so_far))
            }
        };
        mix(address.wrapping_add(u32::from(end.port) ^ self.port))
    }

    /// The hash of a flow between two ends, whichever of them is the first.
    #[inline]
    pub fn of(&self, a: FlowEnd, b: FlowEnd, protocol: u8) -> u32 {
        let ends = self.end(a).wrapping_add(self.end(b));
        mix(ends.wrapping_add(u32::from(protocol)))
    }

    /// Which of `workers` (at least one) the flow belongs to.
    #[inline]
    pub fn worker(&self, a: FlowEnd, b: FlowEnd, protocol: u8, workers: u32) -> u32 {
        self.of(a, b, protocol) % workers.max(1)
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn ends(n: u32, v6: bool) -> [FlowEnd; 2] {
        let (a, b): (IpAddr, IpAddr) = if v6 {
            let net = 0x2001_0db8u128 << 96;
            (
                Ipv6Addr::from(net | u128::from(n)).into(),
                Ipv6Addr::from(net | 1 << 80 | 9).into(),
            )
        } else {
            (
                Ipv4Addr::from(0x0a01_0000 + (n & 0xff)).into(),
                Ipv4Addr::from(0x0a02_0000 + (n >> 8 & 3)).into(),
            )
        };
        [
            FlowEnd {
                address: a,
                port: 30_000 + (n >> 3) as u16,
            },
            FlowEnd {
                address: b,
                port: 443,
            },
        ]
    }

    #[test]
    fn both_directions_are_one_flow() {
        let hash = FlowHash::new(0x1234_5678_9abc_def0);
        for n in 0..1000 {
            for v6 in [false, true] {
                let [a, b] = ends(n, v6);
                assert_eq!(hash.of(a, b, 6), hash.of(b, a, 6));
                assert_ne!(hash.of(a, b, 6), hash.of(a, b, 17));
            }
        }
    }

    #[test]
    fn flows_spread_evenly_under_every_key_and_differently_under_each() {
        for workers in [2, 3, 4, 7] {
            for key in [0, 1, 0xffff_ffff_ffff_ffff, 0x1234_5678_9abc_def0] {
                let hash = FlowHash::new(key);
                let mut counts = [0u32; 7];
                let mut moved = 0;
                for n in 0..7000 {
                    let [a, b] = ends(n, n % 2 == 0);
                    let worker = hash.worker(a, b, 6, workers);
                    counts[worker as usize] += 1;
                    moved += u32::from(worker != FlowHash::new(key ^ 77).worker(a, b, 6, workers));
                }
                let fair = 7000 / workers;
                let fits = |n: &u32| n.abs_diff(fair) < fair / 8;
                assert!(counts.iter().take(workers as usize).all(fits), "{counts:?}");
                // Another key is another spread.
                let expected = 7000 - fair;
                assert!(moved.abs_diff(expected) < expected / 8, "{moved} moved");
            }
        }
    }

    #[test]
    fn one_worker_has_all() {
        let [a, b] = ends(5, false);
        assert_eq!(FlowHash::new(3).worker(a, b, 6, 1), 0);
        assert_eq!(FlowHash::new(3).worker(a, b, 6, 0), 0);
    }
}
