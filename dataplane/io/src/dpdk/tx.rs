//! Sending: what the device does by itself is left to it, the rest is done here,
//! so that every port takes super-segments and partial checksums.
//!
//! ```text
//!  Packet -- whole, complete ------------------------------------> mbuf
//!         -- partial checksum -- device can -> flags, else summed -> mbuf
//!         -- super-segment ----- device can -> chain of mbufs, else cut -> mbufs
//! ```

use std::ptr::NonNull;

use mef_dpdk_sys as sys;
use mef_packet::wire::checksum::{self, Sum};
use mef_packet::wire::segment::{self, Segments};
use mef_packet::wire::{ethernet, ipv4, tcp, udp};
use mef_packet::{Buffer, Checksum, Gso, Packet};

use super::buf::{DpdkBuf, Mbuf, Memory};
use super::device::{Device, Offloads};
use super::Spare;
use crate::port::PortStats;

/// Packets that one call hands to the device.
const BURST: usize = 64;

/// What waits for the next burst of one transmit queue.
#[derive(Default)]
pub(super) struct Sender {
    burst: Vec<*mut sys::rte_mbuf>,
    bytes: Vec<u32>,
    /// Some packet of the burst has flags that the driver may have to see first.
    offloaded: bool,
}

// SAFETY: the mbufs of a burst belong to it alone, and are no thread's.
unsafe impl Send for Sender {}

impl Sender {
    /// Sends all of `batch`; buffers of the heap are handed to `spare` for reuse.
    pub fn send(
        &mut self,
        device: &Device,
        queue: u16,
        stats: &mut PortStats,
        batch: &mut Vec<Packet<DpdkBuf>>,
        spare: &mut Spare,
    ) {
        let most = usize::from(device.mtu) + ethernet::HEADER_LEN;
        for mut packet in batch.drain(..) {
            let plain = packet.meta.gso == Gso::None
                && !matches!(packet.meta.checksum, Checksum::Partial { .. });
            let done = if plain {
                self.whole(device, packet.buf, most, spare)
            } else if packet.meta.gso == Gso::None {
                self.partial(device, &mut packet)
                    .and_then(|()| self.whole(device, packet.buf, most, spare))
            } else {
                let done = self.segmented(device, queue, stats, &mut packet, most);
                recycle(packet.buf, spare);
                done
            };
            if done.is_none() {
                stats.tx_dropped += 1;
            }
            if self.burst.len() >= BURST {
                self.flush(device, queue, stats);
            }
        }
        self.flush(device, queue, stats);
    }

    fn push(&mut self, mbuf: Mbuf) {
        self.bytes.push(mbuf.len() as u32);
        self.burst.push(mbuf.into_raw());
    }

    /// One packet as it is on the wire.
    #[inline]
    fn whole(
        &mut self,
        device: &Device,
        buf: DpdkBuf,
        most: usize,
        spare: &mut Spare,
    ) -> Option<()> {
        if buf.len() > most || buf.is_empty() {
            recycle(buf, spare);
            return None;
        }
        match buf.0 {
            Memory::Mbuf(mbuf) => self.push(mbuf),
            Memory::Heap(heap) => {
                let mbuf = copied(device, heap.bytes());
                recycle(DpdkBuf(Memory::Heap(heap)), spare);
                self.push(mbuf?);
            }
        }
        Some(())
    }

    /// Completes a checksum, or leaves it to the device.
    fn partial(&mut self, device: &Device, packet: &mut Packet<DpdkBuf>) -> Option<()> {
        let Checksum::Partial { start, offset } = packet.meta.checksum else {
            return Some(());
        };
        if let Memory::Mbuf(mbuf) = &mut packet.buf.0 {
            if let Some(work) = checksum_flags(device.offloads, mbuf.bytes(), start, offset) {
                mbuf.offload(work, 0);
                self.offloaded = true;
                return Some(());
            }
        }
        checksum::complete_partial(packet.buf.bytes_mut(), start, offset).ok()
    }

    /// A super-segment.
    fn segmented(
        &mut self,
        device: &Device,
        queue: u16,
        stats: &mut PortStats,
        packet: &mut Packet<DpdkBuf>,
        most: usize,
    ) -> Option<()> {
        let size = packet.meta.gso_size;
        let bytes = packet.buf.bytes_mut();
        if let Some(head) = chained(device, bytes, packet.meta.gso, size) {
            self.bytes.push(bytes.len() as u32);
            self.burst.push(head);
            self.offloaded = true;
            return Some(());
        }
        let (header, ip) = bytes.split_at_checked(ethernet::HEADER_LEN)?;
        let segments = Segments::new(ip, size).ok()?;
        if header.len() + segments.largest() > most {
            return None;
        }
        for segment in segments {
            let mut mbuf = Mbuf::alloc(device.pool)?;
            mbuf.append(header.len())?.copy_from_slice(header);
            mbuf.append(segment.len())?.copy_from_slice(&segment);
            self.push(mbuf);
            if self.burst.len() >= BURST {
                self.flush(device, queue, stats);
            }
        }
        Some(())
    }

    /// Hands the burst to the device; what it does not take is dropped and counted.
    fn flush(&mut self, device: &Device, queue: u16, stats: &mut PortStats) {
        let mut total = self.burst.len();
        if total == 0 {
            return;
        }
        if std::mem::take(&mut self.offloaded) {
            // SAFETY: `total` mbufs of ours; the port runs and the queue is this one's.
            let good = unsafe {
                sys::shim_tx_prepare(device.id, queue, self.burst.as_mut_ptr(), total as u16)
            };
            total = usize::from(good).min(total);
        }
        let mut sent = 0;
        while let Some(rest) = self.burst.get_mut(sent..total).filter(|r| !r.is_empty()) {
            // SAFETY: as above; the device owns what it takes.
            let n = unsafe {
                sys::shim_tx_burst(device.id, queue, rest.as_mut_ptr(), rest.len() as u16)
            };
            if n == 0 {
                break;
            }
            sent += usize::from(n);
        }
        stats.tx_packets += sent as u64;
        stats.tx_bytes += self
            .bytes
            .iter()
            .take(sent)
            .map(|b| u64::from(*b))
            .sum::<u64>();
        if let Some(rest) = self.burst.get_mut(sent..).filter(|r| !r.is_empty()) {
            stats.tx_dropped += rest.len() as u64;
            // SAFETY: the device has not taken these, so they are ours to free.
            unsafe { sys::shim_mbuf_free_bulk(rest.as_mut_ptr(), rest.len() as u32) };
        }
        self.burst.clear();
        self.bytes.clear();
    }
}

pub(super) fn recycle(buf: DpdkBuf, spare: &mut Spare) {
    if let Memory::Heap(mut heap) = buf.0 {
        if spare.len() < super::MAX_SPARE && heap.capacity() >= super::HEAP_CAPACITY {
            heap.reset();
            spare.push(heap);
        }
    }
}

fn copied(device: &Device, bytes: &[u8]) -> Option<Mbuf> {
    let mut mbuf = Mbuf::alloc(device.pool)?;
    mbuf.append(bytes.len())?.copy_from_slice(bytes);
    Some(mbuf)
}

/// Work for the device: its flags, and how long the headers are.
#[derive(Clone, Copy)]
struct Work {
    flags: u64,
    l3: u16,
    l4: u8,
}

/// How to have the device complete this checksum; `None` if it cannot.
fn checksum_flags(offloads: Offloads, frame: &[u8], start: u16, offset: u16) -> Option<Work> {
    let family = family_flag(frame)?;
    let transport = segment::transport(frame.get(ethernet::HEADER_LEN..)?)?;
    if transport.0 + ethernet::HEADER_LEN != usize::from(start) {
        return None;
    }
    let (flags, l4) = match (transport.1, usize::from(offset)) {
        (ipv4::PROTOCOL_TCP, tcp::CHECKSUM_AT) if offloads.tcp_checksum => {
            let tcp = tcp::View::parse(frame.get(usize::from(start)..)?).ok()?;
            (sys::SHIM_MBUF_TCP_CHECKSUM, tcp.header_len())
        }
        (ipv4::PROTOCOL_UDP, udp::CHECKSUM_AT) if offloads.udp_checksum => {
            (sys::SHIM_MBUF_UDP_CHECKSUM, udp::HEADER_LEN)
        }
        _ => return None,
    };
    Some(Work {
        flags: family | flags,
        l3: transport.0 as u16,
        l4: l4 as u8,
    })
}

fn family_flag(frame: &[u8]) -> Option<u64> {
    match frame.get(ethernet::HEADER_LEN)? >> 4 {
        4 => Some(sys::SHIM_MBUF_IPV4),
        6 => Some(sys::SHIM_MBUF_IPV6),
        _ => None,
    }
}

/// A chain of mbufs that the device cuts itself; `None` if it cannot.
fn chained(device: &Device, frame: &mut [u8], gso: Gso, size: u16) -> Option<*mut sys::rte_mbuf> {
    let can = match gso {
        Gso::None => false,
        Gso::TcpV4 | Gso::TcpV6 => device.offloads.tcp_segmentation,
        Gso::Udp => device.offloads.udp_segmentation,
    };
    let pieces = frame.len().div_ceil(usize::from(device.room.max(1)));
    if !can || size == 0 || pieces > usize::from(device.offloads.segments) {
        return None;
    }
    let mut family = family_flag(frame)?;
    let ip = frame.get_mut(ethernet::HEADER_LEN..)?;
    let (l3, _) = segment::transport(ip)?;
    let transport = ip.get_mut(l3..)?;
    let len = transport.len() as u16;
    let (flag, l4) = if gso == Gso::Udp {
        uncount(transport, udp::CHECKSUM_AT, len)?;
        let flags = sys::SHIM_MBUF_UDP_SEGMENT | sys::SHIM_MBUF_UDP_CHECKSUM;
        (flags, udp::HEADER_LEN)
    } else {
        let header = tcp::View::parse(transport).ok()?.header_len();
        uncount(transport, tcp::CHECKSUM_AT, len)?;
        let flags = sys::SHIM_MBUF_TCP_SEGMENT | sys::SHIM_MBUF_TCP_CHECKSUM;
        (flags, header)
    };
    if family == sys::SHIM_MBUF_IPV4 {
        ip.get_mut(10..12)?.fill(0);
        family |= sys::SHIM_MBUF_IPV4_CHECKSUM;
    }
    let mut pieces = frame.chunks(usize::from(device.room.max(1)));
    let mut head = copied(device, pieces.next()?)?;
    let work = Work {
        flags: family | flag,
        l3: l3 as u16,
        l4: l4 as u8,
    };
    head.offload(work, size);
    for piece in pieces {
        head.chain(copied(device, piece)?)?;
    }
    Some(head.into_raw())
}

/// Takes the length out of a pseudo-header's sum: that of each piece is the device's to add.
fn uncount(transport: &mut [u8], at: usize, len: u16) -> Option<()> {
    let field = transport.get_mut(at..at + 2)?;
    let sum = u16::from_be_bytes([*field.first()?, *field.last()?]);
    let without = Sum::ZERO.word(sum).word(!len).folded();
    field.copy_from_slice(&without.to_be_bytes());
    Some(())
}

impl Mbuf {
    fn offload(&mut self, work: Work, segment: u16) {
        // SAFETY: this mbuf is ours.
        unsafe {
            sys::shim_mbuf_tx_offload(
                self.raw().as_ptr(),
                work.flags,
                ethernet::HEADER_LEN as u8,
                work.l3,
                work.l4,
                segment,
            );
        }
    }

    /// Appends another; `None` if there are too many already.
    fn chain(&mut self, tail: Mbuf) -> Option<()> {
        let tail = tail.into_raw();
        // SAFETY: both are ours; the tail belongs to the head from now on.
        let done = unsafe { sys::shim_mbuf_chain(self.raw().as_ptr(), tail) };
        if done == 0 {
            return Some(());
        }
        if let Some(tail) = NonNull::new(tail) {
            // SAFETY: the chain has not taken it, so it is ours still.
            drop(unsafe { Mbuf::from_raw(tail) });
        }
        None
    }
}
