//! Packets over a link as they are: into the queue of their flow, cut or
//! fragmented where they are larger than what the link takes, and at the other
//! end out to their host.

use std::net::IpAddr;

use mef_io::Port;
use mef_packet::wire::ipv4;
use mef_packet::wire::segment::{fragments, Segments};
use mef_packet::{Buffer, Gso, Instant};
use mef_protocol::classes::Class;
use mef_protocol::link::{DatagramError, DatagramFlow, DatagramStats, Link};

use super::ingress::Transit;
use super::mss;
use super::pipeline::{dropped, Step};
use super::plain::may_fragment;
use super::route::Classified;
use super::Router;
use crate::config::{FlowTuple, PeerId, Treatment};
use crate::drops::{Counters, DropReason, Stage};
use crate::icmp::IcmpError;

/// What became of a packet at the link's door.
#[derive(Default)]
struct Taken {
    sent: u64,
    full: u64,
    too_big: bool,
}

/// Numbers flows under a key: products of 64 bits each, folded, as wyhash mixes. Nobody outside sees
/// the numbers, so that nobody learns which packets share one.
pub(super) struct FlowNumbers([u64; 4]);

impl FlowNumbers {
    pub(super) fn new(key: [u8; 32]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(key.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |w, b| w << 8 | u64::from(*b));
        }
        Self(words)
    }

    #[inline]
    fn of(&self, tuple: &FlowTuple, class: Class) -> u64 {
        let ports = (tuple.source_port, tuple.port);
        self.of_parts(
            &tuple.source,
            &tuple.destination,
            ports,
            tuple.protocol,
            class,
        )
    }

    /// As [`of`](Self::of), of a flow that is nowhere put together.
    #[inline]
    fn of_parts(
        &self,
        source: &IpAddr,
        destination: &IpAddr,
        (source_port, port): (u16, u16),
        protocol: u8,
        class: Class,
    ) -> u64 {
        const fn mix(a: u64, b: u64) -> u64 {
            let product = (a as u128).wrapping_mul(b as u128);
            product as u64 ^ (product >> 64) as u64
        }
        let Self([a, b, c, d]) = *self;
        let ports = u64::from(source_port) << 16 | u64::from(port);
        let rest = ports << 32 | u64::from(protocol) << 8 | class as u64;
        let addresses = match (source, destination) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits())
            }
            (src, dst) => {
                let bits = |address: &IpAddr| match address {
                    IpAddr::V4(address) => u128::from(address.to_bits()),
                    IpAddr::V6(address) => address.to_bits(),
                };
                let (src, dst) = (bits(src), bits(dst));
                let source = mix(src as u64 ^ c, (src >> 64) as u64 ^ d);
                source ^ mix(dst as u64 ^ b, (dst >> 64) as u64 ^ c)
            }
        };
        mix(mix(addresses ^ a, rest ^ b) ^ c, d)
    }
}

impl Taken {
    /// Queues what `make` puts together, if there is room for `size` bytes of it.
    fn offer(
        &mut self,
        now: Instant,
        link: &mut Link,
        flow: DatagramFlow,
        size: usize,
        make: impl FnOnce(&mut Link) -> Option<Vec<u8>>,
    ) -> bool {
        let result = link.admits_datagram(now, flow.id, size).and_then(|()| {
            make(link).map_or(Err(DatagramError::TooBig), |packet| {
                link.send_admitted(now, flow, packet)
            })
        });
        match result {
            Ok(()) => self.sent += 1,
            Err(DatagramError::QueueFull) => self.full += 1,
            Err(DatagramError::TooBig) => self.too_big = true,
        }
        result.is_ok()
    }
}

impl<P: Port> Router<P> {
    /// The queue of a packet, and what it is given.
    pub(super) fn datagram_flow(&self, from: &Classified<P::Buf>) -> DatagramFlow {
        self.flow_of(&from.tuple, &from.treatment)
    }

    /// Number of a flow. Keyed, so that nobody can choose to share another's queue; 24 bits
    /// keep the number of queues of a flood bounded.
    fn flow_number(&self, tuple: &FlowTuple, class: Class) -> u32 {
        (self.flow_numbers.of(tuple, class) & 0xff_ffff) as u32
    }

    /// The same, of the flow of a packet in `bytes`.
    #[inline]
    pub(super) fn transit_number(&self, transit: &Transit, bytes: &[u8], class: Class) -> u32 {
        let ports = transit.ports(bytes);
        let (src, dst) = (&transit.src, &transit.dst);
        let number = self
            .flow_numbers
            .of_parts(src, dst, ports, transit.protocol, class);
        (number & 0xff_ffff) as u32
    }

    /// The queue of a flow, and what it is given.
    pub(super) fn flow_of(&self, tuple: &FlowTuple, treatment: &Treatment) -> DatagramFlow {
        DatagramFlow {
            id: self.flow_number(tuple, treatment.class),
            weight: (treatment.weight * 1000.0) as u32,
            class: treatment.class,
        }
    }

    pub(super) fn carry_datagram(
        &mut self,
        now: Instant,
        peer: PeerId,
        mut from: Classified<P::Buf>,
    ) -> Step<()> {
        let gso = from.packet.meta.gso != Gso::None;
        if !gso {
            Self::complete_checksum(&mut from.packet)?;
        }
        let flow = self.datagram_flow(&from);
        let whole = self.peer(peer).and_then(|p| p.link.whole_datagram());
        let tcp = from.tuple.protocol == ipv4::PROTOCOL_TCP;
        if let (Some(whole), true, false) = (whole, tcp, gso) {
            mss::clamp(from.packet.buf.bytes_mut(), whole);
        }
        if !gso {
            if let Some(sealed) = self.seal_directly(now, peer, flow.id, &mut from.packet) {
                self.send_sealed(now, peer, sealed?, from.packet.buf);
                return Ok(());
            }
        }
        let bytes = from.packet.buf.bytes();
        let Some(p) = self.peer_mut(peer) else {
            return dropped(Stage::Carry, DropReason::NoRoute);
        };
        if !p.link.is_up() {
            self.complain(now, from.port, bytes, IcmpError::HostUnreachable);
            return dropped(Stage::Carry, DropReason::NoSession);
        }
        let link = &mut p.link;
        let limit = link.datagram_limit();
        let mut taken = Taken::default();
        if gso {
            let mut cut = match Segments::new(bytes, from.packet.meta.gso_size) {
                Ok(cut) => cut,
                Err(e) => return dropped(Stage::Carry, e),
            };
            let size = cut.largest();
            while cut.remaining() > 0 {
                if !taken.offer(now, link, flow, size, |_| cut.next()) {
                    if !taken.too_big {
                        // The one refused is counted.
                        taken.full += cut.remaining().saturating_sub(1) as u64;
                    }
                    break;
                }
            }
        } else if bytes.len() > limit && may_fragment(bytes) {
            match fragments(bytes, limit) {
                Ok(list) => {
                    for f in list {
                        taken.offer(now, link, flow, f.len(), |_| Some(f));
                    }
                }
                Err(e) => return dropped(Stage::Carry, e),
            }
        } else {
            taken.offer(now, link, flow, bytes.len(), |link| {
                let mut copy = link.buffer();
                copy.extend_from_slice(bytes);
                Some(copy)
            });
        }
        self.stats.datagrams_sent += taken.sent;
        self.counters
            .count_many(Stage::Carry, DropReason::QueueFull, taken.full);
        if taken.too_big {
            let mtu = u16::try_from(limit).unwrap_or(u16::MAX);
            self.complain(
                now,
                from.port,
                from.packet.buf.bytes(),
                IcmpError::FragmentationNeeded { mtu },
            );
            return dropped(Stage::Carry, DropReason::TooBig);
        }
        Ok(())
    }

    /// Counts what the queues of links and lines have dropped since this was last done.
    pub(super) fn count_queue_drops(&mut self) {
        for l in &mut self.lines {
            let total = DatagramStats {
                queues: l.line.plain().stats(),
                ..DatagramStats::default()
            };
            self.counters.elsewhere();
            count_new(&mut self.counters, &mut l.counted, total);
            for p in &mut l.peers {
                self.counters.at_link(p.id.0);
                count_new(&mut self.counters, &mut p.counted, p.link.datagram_stats());
            }
        }
        self.counters.elsewhere();
    }
}

fn count_new(counters: &mut Counters, counted: &mut DatagramStats, total: DatagramStats) {
    if *counted == total {
        return;
    }
    let (a, b) = (&total.queues, &counted.queues);
    for (stage, reason, n) in [
        (
            Stage::Line,
            DropReason::QueueDelay,
            a.delayed.saturating_sub(b.delayed),
        ),
        (
            Stage::Line,
            DropReason::QueueFull,
            a.evicted.saturating_sub(b.evicted),
        ),
        (
            Stage::Line,
            DropReason::QueueStale,
            a.stale.saturating_sub(b.stale),
        ),
        (
            Stage::Open,
            DropReason::HalfMissing,
            total.halves_expired.saturating_sub(counted.halves_expired),
        ),
        (
            Stage::Open,
            DropReason::MarkUnseen,
            total.mark_unseen.saturating_sub(counted.mark_unseen),
        ),
    ] {
        counters.count_many(stage, reason, n);
    }
    *counted = total;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn flows_have_numbers_of_their_own() {
        // As of a random source: no word like another.
        let key = |seed: u64| {
            let mut key = [0; 32];
            for (i, word) in (1..).zip(key.chunks_exact_mut(8)) {
                let x = (seed + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(
                    &(x ^ x >> 29)
                        .wrapping_mul(0xbf58_476d_1ce4_e5b9)
                        .to_be_bytes(),
                );
            }
            key
        };
        let numbers = FlowNumbers::new(key(7));
        let other = FlowNumbers::new(key(9));
        let tuple = |v6: bool, n: u32| FlowTuple {
            source: if v6 {
                Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(n >> 8)).into()
            } else {
                std::net::Ipv4Addr::from(0x0a01_0000 | n >> 8).into()
            },
            destination: if v6 {
                Ipv6Addr::from(0x2001_0db8 << 96 | 1 << 80).into()
            } else {
                [10, 2, 0, 2].into()
            },
            protocol: 17,
            source_port: 1024 + (n & 0xff) as u16,
            port: 443,
        };
        let mut all = HashSet::new();
        for n in 0..2000 {
            for v6 in [false, true] {
                let t = tuple(v6, n);
                assert_eq!(numbers.of(&t, Class::Bulk), numbers.of(&t, Class::Bulk));
                assert_ne!(numbers.of(&t, Class::Bulk), other.of(&t, Class::Bulk));
                for class in [Class::Latency, Class::Balanced, Class::Bulk] {
                    // The bits that are used.
                    all.insert(numbers.of(&t, class) & 0xff_ffff);
                    all.insert(numbers.of(&t.reversed(), class) & 0xff_ffff);
                }
            }
        }
        // Of 24,000 among 2^24 about 17 meet by chance.
        assert!(all.len() > 24_000 - 60, "{}", all.len());
    }
}
