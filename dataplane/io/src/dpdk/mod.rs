//! Ports on DPDK: NICs by their PCI address, and virtual devices such as
//! `net_af_packet` (a Linux interface), `net_ring` and `net_null` (benchmarks).
//!
//! ```text
//!  EAL (once per process) - pools of mbufs - Device (configured, started) - DpdkPort, one per queue
//! ```
//! Packets stay in the mbuf they were received into, from one device to the next.
//! What a device does not do, checksums and segmentation, the port does, and says so.

mod buf;
mod device;
mod eal;
mod tx;

use std::ptr::NonNull;
use std::sync::Arc;

use mef_dpdk_sys as sys;
use mef_packet::{Buffer, Checksum, HeapBuf, Meta, Packet};

use crate::device::DeviceName;
use crate::os;
use crate::port::{Caps, Port, PortError, PortStats};
pub use buf::DpdkBuf;
use buf::{Mbuf, Memory};
use device::Device;

/// Packets that one call takes from the device.
const BURST: usize = 64;
/// Buffers of the heap hold the longest super-segment.
const HEAP_CAPACITY: usize = 65535 + 18;
/// So many of them wait for reuse.
const MAX_SPARE: usize = 64;

/// Buffers of the heap for reuse, in the boxes that they travel in.
#[allow(clippy::vec_box)]
type Spare = Vec<Box<HeapBuf>>;

/// How to open a [`DpdkPort`].
#[derive(Clone, Debug)]
pub struct DpdkOptions {
    pub device: DeviceName,
    /// Largest IP packet, bytes; the interface's for devices that stand on one, else 1500.
    pub mtu: Option<u16>,
}

/// One receive queue and one transmit queue of a device.
pub struct DpdkPort {
    device: Arc<Device>,
    queue: u16,
    stats: PortStats,
    burst: [*mut sys::rte_mbuf; BURST],
    sender: tx::Sender,
    spare: Spare,
    /// Packets of several segments and allocations that found the pool empty.
    copied: u64,
}

// SAFETY: the pointers in `burst` mean nothing between calls; the queue is this port's alone.
unsafe impl Send for DpdkPort {}

impl DpdkPort {
    /// Opens all devices of a router, a queue each, and DPDK before them. Virtual devices on
    /// interfaces look for those in the calling thread's network namespace. The calling thread
    /// should be the one that uses the ports.
    ///
    /// # Errors
    /// `Device` with the step that failed and the reason, `NoInterface`.
    pub fn open_all(options: &[DpdkOptions]) -> Result<Vec<Self>, PortError> {
        let names: Vec<&DeviceName> = options.iter().map(|o| &o.device).collect();
        let pages = eal::start(&names)?;
        eal::register_thread();
        let mut ports = Vec::new();
        for o in options {
            ports.extend(Self::queues(Device::open(o, 1, pages)?));
        }
        Ok(ports)
    }

    /// Opens all devices of a router with a queue of each for every worker: the ports of the first
    /// worker, of the second, and so on, each in the order of `options`.
    ///
    /// # Errors
    /// As [`open_queues`](Self::open_queues).
    pub fn open_workers(
        options: &[DpdkOptions],
        workers: u16,
    ) -> Result<Vec<Vec<Self>>, PortError> {
        let names: Vec<&DeviceName> = options.iter().map(|o| &o.device).collect();
        let pages = eal::start(&names)?;
        let mut all: Vec<Vec<Self>> = (0..workers.max(1)).map(|_| Vec::new()).collect();
        for o in options {
            let queues = Self::queues(Device::open(o, workers.max(1), pages)?);
            for (of_worker, queue) in all.iter_mut().zip(queues) {
                of_worker.push(queue);
            }
        }
        Ok(all)
    }

    /// Opens a device with a queue for each of several workers: the device spreads flows over
    /// them, and [`Port::alarms`] tells of a queue that gets none.
    ///
    /// # Errors
    /// As [`open_all`](Self::open_all); also where the device has fewer queues.
    pub fn open_queues(options: &DpdkOptions, queues: u16) -> Result<Vec<Self>, PortError> {
        let pages = eal::start(&[&options.device])?;
        eal::register_thread();
        Ok(Self::queues(Device::open(options, queues.max(1), pages)?))
    }

    fn queues(device: Device) -> Vec<Self> {
        let device = Arc::new(device);
        let queues = u16::try_from(device.received.len()).unwrap_or(u16::MAX);
        (0..queues)
            .map(|queue| Self {
                device: Arc::clone(&device),
                queue,
                stats: PortStats::default(),
                burst: [std::ptr::null_mut(); BURST],
                sender: tx::Sender::default(),
                spare: Vec::new(),
                copied: 0,
            })
            .collect()
    }

    /// What was found out about the device that its operator should know, such as work done in software.
    pub fn notes(&self) -> &[String] {
        &self.device.notes
    }

    /// Whether the link is up, as far as the device says.
    pub fn link_is_up(&self) -> bool {
        self.device.link_is_up()
    }

    /// A heap buffer for what fits into no mbuf.
    fn heap(&mut self, capacity: usize) -> Box<HeapBuf> {
        match self.spare.pop() {
            Some(buf) if buf.capacity() >= capacity => buf,
            _ => Box::new(HeapBuf::with_capacity(capacity.max(HEAP_CAPACITY))),
        }
    }

    /// Takes over one mbuf of a burst.
    #[inline]
    fn received(&mut self, raw: NonNull<sys::rte_mbuf>, meta: &mut Meta) -> DpdkBuf {
        // SAFETY: valid, and ours since the burst.
        let header = unsafe { raw.as_ref() };
        let good = header.ol_flags & sys::SHIM_MBUF_L4_MASK == sys::SHIM_MBUF_L4_GOOD;
        meta.checksum = if good {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        if header.nb_segs == 1 {
            // SAFETY: one segment, ours.
            return DpdkBuf(Memory::Mbuf(unsafe { Mbuf::from_raw(raw) }));
        }
        self.joined(raw)
    }

    /// A packet that came in several segments, as one piece.
    #[cold]
    fn joined(&mut self, raw: NonNull<sys::rte_mbuf>) -> DpdkBuf {
        self.copied += 1;
        // SAFETY: valid, and ours since the burst.
        let total = unsafe { raw.as_ref() }.pkt_len as usize;
        let mut heap = self.heap(total);
        let mut segment = Some(raw);
        while let Some(s) = segment {
            // SAFETY: the segments of a packet are valid as long as it is, each with data_len
            // bytes at data_off.
            let (bytes, next) = unsafe {
                let h = s.as_ref();
                let data = h.buf_addr.cast::<u8>().add(usize::from(h.data_off));
                let bytes = std::slice::from_raw_parts(data, usize::from(h.data_len));
                (bytes, h.next)
            };
            if let Some(room) = heap.append(bytes.len()) {
                room.copy_from_slice(bytes);
            }
            segment = NonNull::new(next);
        }
        // SAFETY: ours, and not used any more; frees all segments.
        unsafe { sys::shim_mbuf_free(raw.as_ptr()) };
        DpdkBuf(Memory::Heap(heap))
    }
}

impl Port for DpdkPort {
    type Buf = DpdkBuf;

    fn rx(&mut self, out: &mut Vec<Packet<DpdkBuf>>, max: usize) -> usize {
        let max = max.min(BURST) as u16;
        // SAFETY: the device runs, the queue is ours alone, and there is room for `max`.
        let n =
            unsafe { sys::shim_rx_burst(self.device.id, self.queue, self.burst.as_mut_ptr(), max) };
        if n == 0 {
            return 0;
        }
        let mut meta = Meta {
            rx_time: os::monotonic_now(),
            ..Meta::default()
        };
        out.reserve(usize::from(n));
        let mut bytes = 0;
        let burst = self.burst;
        for raw in burst.iter().take(usize::from(n)) {
            if let Some(raw) = NonNull::new(*raw) {
                let buf = self.received(raw, &mut meta);
                bytes += buf.len() as u64;
                out.push(Packet { buf, meta });
            }
        }
        self.stats.rx_packets += u64::from(n);
        self.stats.rx_bytes += bytes;
        if let Some(r) = self.device.received.get(usize::from(self.queue)) {
            r.set(self.stats.rx_packets);
        }
        usize::from(n)
    }

    fn tx(&mut self, batch: &mut Vec<Packet<DpdkBuf>>) {
        self.sender.send(
            &self.device,
            self.queue,
            &mut self.stats,
            batch,
            &mut self.spare,
        );
    }

    fn alloc(&mut self, capacity: usize) -> DpdkBuf {
        if capacity <= usize::from(self.device.room) {
            if let Some(mbuf) = Mbuf::alloc(self.device.pool) {
                return DpdkBuf(Memory::Mbuf(mbuf));
            }
            self.copied += 1;
        }
        DpdkBuf(Memory::Heap(self.heap(capacity)))
    }

    fn recycle(&mut self, buf: DpdkBuf) {
        tx::recycle(buf, &mut self.spare);
    }

    fn caps(&self) -> Caps {
        Caps {
            mtu: self.device.mtu,
            mac: self.device.mac,
            // By the device or by the port itself.
            tcp_gso: true,
            // To cut what was only just put together would be work for nothing.
            udp_gso: self.device.offloads.udp_segmentation,
            tx_checksum: true,
        }
    }

    fn stats(&self) -> PortStats {
        // The device counts for all its queues, so that one port tells of it.
        let device = if self.queue == 0 {
            self.device.stats()
        } else {
            PortStats::default()
        };
        PortStats {
            rx_missed: device.rx_missed,
            rx_errors: device.rx_errors,
            rx_no_buffer: device.rx_no_buffer,
            tx_dropped: self.stats.tx_dropped + device.tx_dropped,
            ..self.stats
        }
    }

    fn alarms(&self) -> Vec<String> {
        if self.queue != 0 {
            return Vec::new();
        }
        let mut alarms = Vec::new();
        if !self.device.link_is_up() {
            alarms.push(format!("{}: link is down", self.device.name));
        }
        for queue in self.device.silent_queues() {
            alarms.push(format!(
                "{}: queue {queue} receives nothing: the device does not spread these flows",
                self.device.name
            ));
        }
        alarms
    }

    fn attach(&mut self) {
        eal::register_thread();
    }

    fn poll_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }
}
