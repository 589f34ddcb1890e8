//! How workers reach each other: a ring for one writer and one reader between any
//! two of them, and a bell for those that sleep.
//!
//! A worker that is about to sleep says so, looks into its rings once more, and
//! sleeps; whoever has put something there rings where it was said. So either the
//! sleeper sees the packet or the writer sees the sleeper, and nobody makes a
//! system call for one that is awake.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{fence, AtomicBool, Ordering};
use std::sync::Arc;

use mef_packet::Packet;
use rtrb::{Consumer, Producer, RingBuffer};

use super::Shared;

/// Packets that one ring holds.
const RING: usize = 1024;

/// Why a packet is handed to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// An IP packet of a flow of its own, or for its UDP port.
    Onward,
    /// The same, whose time to live is counted down already.
    Carry,
    /// A copy of what a neighbour said: the payload of an ARP frame.
    Arp,
    /// The same in an IPv6 packet.
    NeighbourDiscovery,
}

/// A packet on its way to another worker.
#[derive(Debug)]
pub struct Handed<B> {
    pub why: Why,
    pub packet: Packet<B>,
}

/// Wakes a worker that sleeps.
#[derive(Debug, Default)]
pub struct Bell {
    asleep: AtomicBool,
    /// Readable for the sleeper when something is written here; without it nobody sleeps.
    wake: Option<Arc<UnixStream>>,
}

impl Bell {
    /// Rings by writing to `wake`, which never blocks.
    pub fn new(wake: Arc<UnixStream>) -> Self {
        Self {
            asleep: AtomicBool::new(false),
            wake: Some(wake),
        }
    }

    fn ring(&self) {
        // Behind what was put into the ring, as `sleep` is before the last look into it.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            if let Some(mut wake) = self.wake.as_deref() {
                // A full socket wakes as well.
                let _ = wake.write(&[1]);
            }
        }
    }
}

/// What a worker has counted of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrewStats {
    /// Handed to other workers, and got from them, of flows.
    pub given: u64,
    pub taken: u64,
}

/// A worker's part of what connects it with the others.
#[derive(Debug)]
pub struct Crew<B> {
    me: u16,
    pub shared: Arc<Shared>,
    bells: Vec<Arc<Bell>>,
    /// By worker; none to itself.
    to: Vec<Option<Producer<Handed<B>>>>,
    from: Vec<Consumer<Handed<B>>>,
    /// Workers to ring for, as bits.
    told: u64,
    pub stats: CrewStats,
}

impl<B> Crew<B> {
    /// The parts of all workers that share this, each with its bell.
    pub fn all(shared: &Arc<Shared>, bells: Vec<Arc<Bell>>) -> Vec<Self> {
        let workers = usize::from(shared.workers());
        let part = |me: usize| Self {
            me: me as u16,
            shared: Arc::clone(shared),
            bells: bells.clone(),
            to: Vec::new(),
            from: Vec::new(),
            told: 0,
            stats: CrewStats::default(),
        };
        let mut crew: Vec<Self> = (0..workers).map(part).collect();
        for from in 0..workers {
            for to in 0..workers {
                let ring = (from != to).then(|| RingBuffer::new(RING));
                let (producer, consumer) = ring.unzip();
                if let Some(c) = crew.get_mut(from) {
                    c.to.push(producer);
                }
                if let Some(c) = crew.get_mut(to) {
                    c.from.extend(consumer);
                }
            }
        }
        crew
    }

    pub fn me(&self) -> u16 {
        self.me
    }

    /// Hands a packet to another worker.
    ///
    /// # Errors
    /// The packet, where its ring is full, or there is no such worker.
    pub fn give(&mut self, to: u16, why: Why, packet: Packet<B>) -> Result<(), Packet<B>> {
        let Some(Some(ring)) = self.to.get_mut(usize::from(to)) else {
            return Err(packet);
        };
        let rtrb::PushError::Full(handed) = match ring.push(Handed { why, packet }) {
            Ok(()) => {
                self.told |= 1 << (to & 63);
                self.stats.given += u64::from(matches!(why, Why::Onward | Why::Carry));
                return Ok(());
            }
            Err(full) => full,
        };
        Err(handed.packet)
    }

    /// The next packet of the ring at this place, of which there are [`rings`](Self::rings).
    pub fn take(&mut self, ring: usize) -> Option<Handed<B>> {
        let handed = self.from.get_mut(ring)?.pop().ok()?;
        self.stats.taken += u64::from(matches!(handed.why, Why::Onward | Why::Carry));
        Some(handed)
    }
    pub fn rings(&self) -> usize {
        self.from.len()
    }

    /// Wakes those that were given something since the last call.
    pub fn ring(&mut self) {
        if self.told == 0 {
            return;
        }
        for (i, bell) in self.bells.iter().enumerate() {
            if self.told >> (i & 63) & 1 == 1 {
                bell.ring();
            }
        }
        self.told = 0;
    }

    /// About to sleep: false where something came meanwhile.
    pub fn sleep(&mut self) -> bool {
        let Some(bell) = self.bells.get(usize::from(self.me)) else {
            return false;
        };
        bell.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let quiet = self.from.iter().all(Consumer::is_empty);
        if !quiet {
            bell.asleep.store(false, Ordering::Relaxed);
        }
        quiet
    }

    /// Awake again.
    pub fn wake(&mut self) {
        if let Some(bell) = self.bells.get(usize::from(self.me)) {
            bell.asleep.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use mef_packet::{Buffer, HeapBuf, Meta};

    use super::*;

    fn packet(n: u32) -> Packet<HeapBuf> {
        Packet {
            buf: HeapBuf::from_slice(&n.to_be_bytes()),
            meta: Meta::default(),
        }
    }

    fn crew(workers: u16, bells: Vec<Arc<Bell>>) -> Vec<Crew<HeapBuf>> {
        Crew::all(&Arc::new(Shared::new(workers, 1, 1, 7)), bells)
    }

    #[test]
    fn packets_arrive_in_order_and_a_full_ring_gives_them_back() {
        let mut crew = crew(3, vec![Arc::default(), Arc::default(), Arc::default()]);
        for n in 0..RING as u32 {
            assert!(crew[0].give(2, Why::Onward, packet(n)).is_ok());
        }
        assert!(crew[0].give(2, Why::Onward, packet(0)).is_err());
        assert!(crew[0].give(0, Why::Onward, packet(0)).is_err());
        assert!(crew[0].give(3, Why::Onward, packet(0)).is_err());
        assert!(crew[1].give(2, Why::Arp, packet(9)).is_ok());
        let mut got = Vec::new();
        for ring in 0..crew[2].rings() {
            while let Some(h) = crew[2].take(ring) {
                got.push((
                    h.why,
                    u32::from_be_bytes(h.packet.buf.bytes().try_into().unwrap()),
                ));
            }
        }
        let mut expected: Vec<_> = (0..RING as u32).map(|n| (Why::Onward, n)).collect();
        expected.push((Why::Arp, 9));
        assert_eq!(got, expected);
        assert_eq!(crew[0].stats.given, RING as u64);
        assert_eq!((crew[1].stats.given, crew[2].stats.taken), (0, RING as u64));
    }

    #[test]
    fn nobody_sleeps_past_a_packet() {
        let (theirs, mut ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let bells = vec![Arc::default(), Arc::new(Bell::new(Arc::new(theirs)))];
        let mut crew = crew(2, bells);
        let (mut second, mut first) = (crew.pop().unwrap(), crew.pop().unwrap());
        const PACKETS: u32 = 20_000;
        let writer = std::thread::spawn(move || {
            for n in 0..PACKETS {
                while first.give(1, Why::Onward, packet(n)).is_err() {
                    std::thread::yield_now();
                }
                first.ring();
                if n % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < PACKETS {
            while let Some(h) = second.take(0) {
                assert_eq!(h.packet.buf.bytes(), next.to_be_bytes());
                next += 1;
            }
            if next < PACKETS && second.sleep() {
                // Fails the test after its timeout if the bell is not rung.
                let n = ours.read(&mut [0; 64]).unwrap();
                assert!(n > 0);
                second.wake();
            }
        }
        writer.join().unwrap();
    }
}
