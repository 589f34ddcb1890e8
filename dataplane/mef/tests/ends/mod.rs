//! What every test of links needs of them: their configuration, the end of one on its line, a
//! connection to open, and chance that is the same each time.

#![allow(dead_code)]

use mef_packet::{BitRate, Instant};
use mef_protocol::chunks::ChunkPool;
use mef_protocol::codec::Setup;
use mef_protocol::line::{Line, LinkEnd};
use mef_protocol::link::{Link, LinkConfig};

/// Bytes of a link packet around what it carries, in an IP packet.
pub const OVERHEAD: u16 = 60;

/// Of one of two ends, on lines of `rate` both ways; the other end may send `link_credit` bytes.
pub fn config(even: bool, rate: BitRate, link_credit: u64) -> LinkConfig {
    LinkConfig {
        even_flows: even,
        boot_id: 5 + u64::from(even),
        port_mtu: 1500,
        line_up: rate,
        line_down: rate,
        link_credit,
        packet_overhead: OVERHEAD,
        frame_overhead: 14,
    }
}

/// A link, its memory and its line.
pub struct End {
    pub link: Link,
    /// Of its next packet.
    pub number: u64,
    pub pool: ChunkPool,
    pub line: Line<Vec<u8>>,
}

impl End {
    pub fn new(now: Instant, config: LinkConfig, memory: u64) -> Self {
        Self {
            link: Link::new(now, config),
            number: 0,
            pool: ChunkPool::new(memory),
            line: Line::new(now, config.line_up),
        }
    }
}

/// A link and the number of its next packet, as a line sees them.
pub struct Ref<'a>(pub &'a mut Link, pub u64);

impl LinkEnd for Ref<'_> {
    fn link(&self) -> &Link {
        self.0
    }
    fn link_mut(&mut self) -> &mut Link {
        self.0
    }
    fn next_number(&self) -> Option<u64> {
        Some(self.1)
    }
}

pub fn setup() -> Setup {
    Setup {
        source: "10.1.0.2:40000".parse().unwrap(),
        destination: "10.2.0.2:80".parse().unwrap(),
        weight: 1.0,
        early: false,
        class: Default::default(),
        dscp: 0,
        mss: 1460,
    }
}

/// Xorshift (Marsaglia 2003).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// Vigna's xorshift64*: close numbers have nothing in common.
    fn mixed(&mut self) -> u64 {
        self.next().wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// From 0 on, below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
    pub fn chance(&mut self, p: f64) -> bool {
        (self.mixed() >> 11) as f64 / ((1u64 << 53) as f64) < p
    }
    pub fn below(&mut self, n: u64) -> u64 {
        (self.mixed() >> 11) % n.max(1)
    }
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
