//! Ports in memory, for tests and the simulator: two of them joined by a cable, or
//! one whose other end is a [`MemWire`] in the hands of whoever plays the network.
//! Single-threaded; nothing here knows the time, so that a frame carries the
//! `rx_time` that it was given.
//!
//! ```text
//!   MemPort ---- cable ---- MemPort        pair()
//!   MemPort ---- cable ---- MemWire        detached(): take_sent() <- tx, inject() -> rx
//! ```

use crate::port::{Caps, Port, PortStats};
use mef_packet::wire::checksum;
use mef_packet::{Buffer, Checksum, Gso, HeapBuf, Packet};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::rc::Rc;

/// One direction of a cable, holding at most `capacity` frames.
#[derive(Debug)]
struct Lane {
    frames: VecDeque<Packet<HeapBuf>>,
    capacity: usize,
    /// Frames from the [`MemWire`] that found it full.
    missed: u64,
}

type SharedLane = Rc<RefCell<Lane>>;

fn lane(capacity: usize) -> SharedLane {
    Rc::new(RefCell::new(Lane {
        frames: VecDeque::new(),
        capacity,
        missed: 0,
    }))
}

/// Puts `packet` on the lane, or gives it back if that is full.
fn push(lane: &SharedLane, packet: Packet<HeapBuf>) -> Result<(), Packet<HeapBuf>> {
    let mut lane = lane.borrow_mut();
    if lane.frames.len() >= lane.capacity {
        return Err(packet);
    }
    lane.frames.push_back(packet);
    Ok(())
}

/// A port in memory. As a NIC does, it refuses what its [`Caps`] do not offer:
/// frames above the MTU, super-segments; partial checksums it completes itself where
/// the capability is not there, else they cross as they are, as on a veth.
pub struct MemPort {
    caps: Caps,
    incoming: SharedLane,
    outgoing: SharedLane,
    stats: PortStats,
    spare: Vec<HeapBuf>,
}

/// Buffers that wait for reuse.
const MAX_SPARE: usize = 256;

impl MemPort {
    /// Two ports and a cable with room for `capacity` frames each way.
    pub fn pair(caps_a: Caps, caps_b: Caps, capacity: usize) -> (Self, Self) {
        let (ab, ba) = (lane(capacity), lane(capacity));
        (
            Self::new(caps_a, Rc::clone(&ba), Rc::clone(&ab)),
            Self::new(caps_b, ab, ba),
        )
    }

    /// A port and the other end of its cable, with room for `capacity` frames each way.
    pub fn detached(caps: Caps, capacity: usize) -> (Self, MemWire) {
        let (sent, to_receive) = (lane(capacity), lane(capacity));
        let wire = MemWire {
            sent: Rc::clone(&sent),
            to_receive: Rc::clone(&to_receive),
        };
        (Self::new(caps, to_receive, sent), wire)
    }

    fn new(caps: Caps, incoming: SharedLane, outgoing: SharedLane) -> Self {
        Self {
            caps,
            incoming,
            outgoing,
            stats: PortStats::default(),
            spare: Vec::new(),
        }
    }

    /// Whether the device would take the packet; completes its checksum if need be.
    fn accept(&self, packet: &mut Packet<HeapBuf>) -> bool {
        let fits = match packet.meta.gso {
            Gso::None => {
                packet.buf.len()
                    <= usize::from(self.caps.mtu) + mef_packet::wire::ethernet::HEADER_LEN
            }
            Gso::TcpV4 | Gso::TcpV6 => self.caps.tcp_gso && packet.meta.gso_size > 0,
            Gso::Udp => self.caps.udp_gso && packet.meta.gso_size > 0,
        };
        if !fits || packet.buf.is_empty() {
            return false;
        }
        match packet.meta.checksum {
            Checksum::Partial { start, offset } if !self.caps.tx_checksum => {
                packet.meta.checksum = Checksum::Complete;
                checksum::complete_partial(packet.buf.bytes_mut(), start, offset).is_ok()
            }
            _ => true,
        }
    }
}

impl Port for MemPort {
    type Buf = HeapBuf;

    fn rx(&mut self, out: &mut Vec<Packet<HeapBuf>>, max: usize) -> usize {
        let mut lane = self.incoming.borrow_mut();
        let n = max.min(lane.frames.len());
        for packet in lane.frames.drain(..n) {
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += packet.buf.len() as u64;
            out.push(packet);
        }
        n
    }

    fn tx(&mut self, batch: &mut Vec<Packet<HeapBuf>>) {
        for mut packet in batch.drain(..) {
            let len = packet.buf.len() as u64;
            let refused = if self.accept(&mut packet) {
                push(&self.outgoing, packet).err()
            } else {
                Some(packet)
            };
            match refused {
                None => {
                    self.stats.tx_packets += 1;
                    self.stats.tx_bytes += len;
                }
                Some(packet) => {
                    self.stats.tx_dropped += 1;
                    self.recycle(packet.buf);
                }
            }
        }
    }

    fn alloc(&mut self, capacity: usize) -> HeapBuf {
        match self.spare.pop() {
            Some(buf) if buf.capacity() >= capacity => buf,
            _ => HeapBuf::with_capacity(capacity),
        }
    }

    fn recycle(&mut self, mut buf: HeapBuf) {
        buf.reset();
        if self.spare.len() < MAX_SPARE {
            self.spare.push(buf);
        }
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> PortStats {
        PortStats {
            rx_missed: self.incoming.borrow().missed,
            ..self.stats
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

/// The network's end of a cable: takes what the port has sent, gives it what it is to receive.
pub struct MemWire {
    sent: SharedLane,
    to_receive: SharedLane,
}

impl MemWire {
    /// Appends all frames that the port has sent since the last call.
    pub fn take_sent(&self, out: &mut Vec<Packet<HeapBuf>>) {
        out.extend(self.sent.borrow_mut().frames.drain(..));
    }

    /// Whether frames wait in [`take_sent`](Self::take_sent).
    pub fn has_sent(&self) -> bool {
        !self.sent.borrow().frames.is_empty()
    }

    /// Lets the port receive `packet`, with the `rx_time` that its meta says.
    ///
    /// # Errors
    /// The packet, if the cable is full; the port counts it as missed.
    pub fn inject(&self, packet: Packet<HeapBuf>) -> Result<(), Packet<HeapBuf>> {
        push(&self.to_receive, packet).inspect_err(|_| self.to_receive.borrow_mut().missed += 1)
    }

    /// Frames that the port has not received yet.
    pub fn pending(&self) -> usize {
        self.to_receive.borrow().frames.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mef_packet::wire::{ipv4, udp};
    use mef_packet::{Instant, Meta};
    use std::net::Ipv4Addr;

    const PLAIN: Caps = Caps {
        mtu: 1500,
        mac: [2, 0, 0, 0, 0, 1],
        tcp_gso: false,
        udp_gso: false,
        tx_checksum: false,
    };
    const FULL: Caps = Caps {
        tcp_gso: true,
        udp_gso: true,
        tx_checksum: true,
        ..PLAIN
    };

    fn packet(len: usize, meta: Meta) -> Packet<HeapBuf> {
        Packet {
            buf: HeapBuf::from_slice(&vec![len as u8; len]),
            meta,
        }
    }

    #[test]
    fn what_one_end_sends_the_other_receives_in_order() {
        let (mut a, mut b) = MemPort::pair(FULL, FULL, 10);
        let at = Meta {
            rx_time: Instant::from_micros(7),
            ..Meta::default()
        };
        a.tx(&mut (60..65).map(|n| packet(n, at)).collect());
        b.tx(&mut vec![packet(99, Meta::default())]);
        let mut got = Vec::new();
        assert_eq!(b.rx(&mut got, 3), 3);
        assert_eq!(b.rx(&mut got, 64), 2);
        assert_eq!(
            got.iter().map(|p| p.buf.len()).collect::<Vec<_>>(),
            [60, 61, 62, 63, 64]
        );
        assert!(got.iter().all(|p| p.meta.rx_time == at.rx_time));
        assert_eq!((a.rx(&mut got, 64), a.rx(&mut got, 64)), (1, 0));
        assert_eq!(
            a.stats(),
            PortStats {
                tx_packets: 5,
                tx_bytes: 310,
                rx_packets: 1,
                rx_bytes: 99,
                ..PortStats::default()
            }
        );
    }

    #[test]
    fn a_full_cable_drops_and_says_so() {
        let (mut a, mut b) = MemPort::pair(PLAIN, PLAIN, 2);
        let mut batch: Vec<_> = (0..5).map(|_| packet(60, Meta::default())).collect();
        a.tx(&mut batch);
        assert!(batch.is_empty());
        assert_eq!(
            (
                a.stats().tx_packets,
                a.stats().tx_dropped,
                b.stats().rx_missed
            ),
            (2, 3, 0)
        );
        assert_eq!(b.rx(&mut batch, 64), 2);

        let (port, wire) = MemPort::detached(PLAIN, 1);
        assert!(wire.inject(packet(60, Meta::default())).is_ok());
        assert!(wire
            .inject(packet(61, Meta::default()))
            .is_err_and(|p| p.buf.len() == 61));
        assert_eq!((port.stats().rx_missed, wire.pending()), (1, 1));
    }

    #[test]
    fn a_plain_device_refuses_super_segments_and_long_frames_a_capable_one_takes_them() {
        let gso = Meta {
            gso: Gso::TcpV4,
            gso_size: 1448,
            ..Meta::default()
        };
        let batch = || {
            vec![
                packet(1514, Meta::default()),
                packet(1515, Meta::default()),
                packet(60_000, gso),
                packet(0, Meta::default()),
            ]
        };
        let (mut plain, wire) = MemPort::detached(PLAIN, 9);
        plain.tx(&mut batch());
        let mut sent = Vec::new();
        wire.take_sent(&mut sent);
        assert_eq!(sent.iter().map(|p| p.buf.len()).collect::<Vec<_>>(), [1514]);
        assert_eq!(plain.stats().tx_dropped, 3);
        let (mut full, wire) = MemPort::detached(FULL, 9);
        full.tx(&mut batch());
        assert!(wire.has_sent());
        sent.clear();
        wire.take_sent(&mut sent);
        assert_eq!(
            sent.iter()
                .map(|p| (p.buf.len(), p.meta.gso_size))
                .collect::<Vec<_>>(),
            [(1514, 0), (60_000, 1448)]
        );
        assert!(!wire.has_sent());
    }

    #[test]
    fn partial_checksums_are_completed_only_for_a_plain_device() {
        let (src, dst) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut frame = [5u8; 62];
        ipv4::Header::new(src, dst, 17)
            .emit(&mut frame[14..], 28)
            .unwrap();
        udp::Header {
            src_port: 1,
            dst_port: 2,
        }
        .emit(&mut frame[34..], 20)
        .unwrap();
        udp::fill_partial_checksum(&mut frame[34..], src, dst, 28).unwrap();
        let meta = Meta {
            checksum: Checksum::Partial {
                start: 34,
                offset: 6,
            },
            ..Meta::default()
        };
        for (caps, complete) in [(PLAIN, true), (FULL, false)] {
            let (mut a, mut b) = MemPort::pair(caps, caps, 4);
            a.tx(&mut vec![Packet {
                buf: HeapBuf::from_slice(&frame),
                meta,
            }]);
            let mut got = Vec::new();
            b.rx(&mut got, 4);
            assert_eq!(
                got[0].meta.checksum,
                if complete {
                    Checksum::Complete
                } else {
                    meta.checksum
                }
            );
            let udp = udp::View::parse(&got[0].buf.bytes()[34..]).unwrap();
            assert_eq!(udp.verify_checksum(src, dst).is_ok(), complete);
        }
    }

    #[test]
    fn buffers_come_back_empty_whatever_was_in_them() {
        let (mut a, _wire) = MemPort::detached(PLAIN, 1);
        a.recycle(HeapBuf::from_slice(&[1; 100]));
        for capacity in [10, 2000] {
            let buf = a.alloc(capacity);
            assert!(buf.is_empty() && buf.capacity() >= capacity);
        }
    }
}
