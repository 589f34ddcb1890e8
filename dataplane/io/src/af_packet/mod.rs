//! The port on a Linux interface: an AF_PACKET socket (packet(7)) with
//! PACKET_VNET_HDR, so that hosts with segmentation and checksum offload are
//! served as they come. A TCP super-segment of up to 64 KiB crosses in one piece
//! in both directions, and how it is to be cut travels in its [`Meta`].
//!
//! ```text
//!  kernel -> [virtio_net_hdr] ++ frame -> landing buffers -> the same, or a HeapBuf of the frame's size
//!  HeapBuf -> [virtio_net_hdr] ++ frame -> kernel
//! ```
//! A long frame goes on in the buffer that it landed in. A short one is copied out,
//! so that a 60-byte frame that waits somewhere holds 2 KiB and not 64. Nothing is
//! zeroed per packet.

mod fanout;
mod merging;
mod messages;
mod pool;
mod rx;
mod socket;
mod tx;
mod vnet;

use crate::os;
use crate::port::{Caps, Port, PortError, PortStats};
pub use fanout::Steering;
use mef_packet::{HeapBuf, Packet};
use merging::Merging;
use pool::Pool;
use socket::Socket;
use std::io;
use std::os::fd::RawFd;

/// How to open an [`AfPacket`].
#[derive(Clone, Debug)]
pub struct AfPacketOptions {
    /// Exchange offload metadata with the kernel. Without it frames are cut and
    /// summed before they arrive only where the sender's offloads are off, and none
    /// above the MTU can be sent.
    pub vnet_hdr: bool,
    /// Socket buffers, bytes of kernel memory.
    pub rcvbuf: usize,
    pub sndbuf: usize,
    /// Tell when the kernel received each frame. It reads a clock for each then, and so does whoever
    /// takes it: without, `rx_time` is when the frame was taken.
    pub timestamps: bool,
    /// Also take frames that are addressed to other stations.
    pub promiscuous: bool,
    /// Hand frames to the driver past the queueing discipline, where the device
    /// segments by itself (the kernel does it only behind a queueing discipline).
    pub qdisc_bypass: bool,
    /// Where the interface has GRO on, have the kernel join UDP packets too while the port is open
    /// (Linux 6.2, [`AfPacket::merges_udp`]). Needs `vnet_hdr`.
    pub merge_udp: bool,
}

impl Default for AfPacketOptions {
    fn default() -> Self {
        Self {
            vnet_hdr: true,
            rcvbuf: 64 << 20,
            sndbuf: 64 << 20,
            timestamps: true,
            promiscuous: true,
            qdisc_bypass: true,
            merge_udp: false,
        }
    }
}

/// A port on a Linux network interface.
pub struct AfPacket {
    name: String,
    socket: Socket,
    caps: Caps,
    stats: PortStats,
    pool: Pool,
    rx: rx::Receiver,
    tx: tx::Sender,
    /// The port is one of several on its interface, whose frames are spread so.
    steering: Option<Steering>,
    /// Whether the interface joins UDP packets for us; the first of several ports has asked for it.
    merging: io::Result<Option<Merging>>,
}

impl AfPacket {
    /// Opens `interface` of the calling thread's network namespace with the default options.
    ///
    /// # Errors
    /// `NoInterface`, `NotPermitted`, or `Os` with the call that failed.
    pub fn open(interface: &str) -> Result<Self, PortError> {
        Self::open_with(interface, &AfPacketOptions::default())
    }

    /// Opens `interface` of the calling thread's network namespace. The port stays
    /// with it when the thread moves elsewhere.
    ///
    /// # Errors
    /// `NoInterface`, `NotPermitted`, or `Os` with the call that failed.
    pub fn open_with(interface: &str, options: &AfPacketOptions) -> Result<Self, PortError> {
        let os_error = |what| {
            move |source: std::io::Error| PortError::Os {
                name: interface.to_owned(),
                what,
                source,
            }
        };
        let index = os::interface_index(interface).map_err(|e| match e.raw_os_error() {
            Some(libc::ENODEV) | None => PortError::NoInterface {
                name: interface.to_owned(),
            },
            _ => os_error("looking it up")(e),
        })?;
        let mtu = os::interface_mtu(interface).map_err(os_error("reading its MTU"))?;
        let mac = os::interface_mac(interface).map_err(os_error("reading its address"))?;
        let socket = Socket::open(interface, index, options)?;
        let bypass = options.qdisc_bypass && tx::device_segments(interface);
        if bypass {
            socket
                .set_qdisc_bypass(true)
                .map_err(os_error("bypassing the queueing discipline"))?;
        }
        let merging = if options.merge_udp && options.vnet_hdr {
            Merging::ask(interface)
        } else {
            Ok(None)
        };
        let caps = Caps {
            // The loopback interface has 65536.
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            mac,
            tcp_gso: options.vnet_hdr,
            udp_gso: options.vnet_hdr && socket::kernel_is_at_least(6, 2),
            tx_checksum: options.vnet_hdr,
        };
        Ok(Self {
            name: interface.to_owned(),
            caps,
            stats: PortStats::default(),
            pool: Pool::default(),
            rx: rx::Receiver::new(options.vnet_hdr, options.timestamps),
            tx: tx::Sender::new(options.vnet_hdr, bypass),
            socket,
            steering: None,
            merging,
        })
    }

    /// Opens `interface` of the calling thread's network namespace with a port for each of several
    /// workers, over which the kernel spreads what arrives as `steering` says.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_queues(
        interface: &str,
        options: &AfPacketOptions,
        steering: Steering,
    ) -> Result<Vec<Self>, PortError> {
        let os_error = |source: std::io::Error| PortError::Os {
            name: interface.to_owned(),
            what: "spreading its frames over several workers (PACKET_FANOUT)",
            source,
        };
        let open = |_| Self::open_with(interface, options);
        let mut ports = (0..steering.queues.max(1))
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut group = 0;
        for port in &mut ports {
            group = fanout::join(&port.socket, group).map_err(os_error)?;
            port.steering = Some(steering);
        }
        if let Some(first) = ports.first() {
            fanout::steer(&first.socket, &steering).map_err(os_error)?;
        }
        // What came before is in every socket.
        let mut early = Vec::new();
        for port in &mut ports {
            while port.rx(&mut early, 64) > 0 {
                early.clear();
            }
            port.stats = PortStats::default();
        }
        Ok(ports)
    }

    /// Whether the kernel was asked to join UDP packets that arrive here and does so; it will be told
    /// to leave it when the port is closed.
    ///
    /// # Errors
    /// Why it does not, though it has GRO on: nothing else is wrong with the port then.
    pub fn merges_udp(&self) -> Result<bool, &io::Error> {
        self.merging.as_ref().map(Option::is_some)
    }

    /// The interface's name when it was opened.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Port for AfPacket {
    type Buf = HeapBuf;

    fn rx(&mut self, out: &mut Vec<Packet<HeapBuf>>, max: usize) -> usize {
        self.rx
            .receive(&self.socket, &mut self.pool, &mut self.stats, out, max)
    }

    fn tx(&mut self, batch: &mut Vec<Packet<HeapBuf>>) {
        self.tx
            .send(&self.name, &self.socket, &mut self.stats, batch);
        for packet in batch.drain(..) {
            self.pool.put(packet.buf);
        }
    }

    fn alloc(&mut self, capacity: usize) -> HeapBuf {
        self.pool.get(capacity)
    }

    fn recycle(&mut self, buf: HeapBuf) {
        self.pool.put(buf);
    }

    fn caps(&self) -> Caps {
        self.caps
    }

    fn stats(&self) -> PortStats {
        PortStats {
            rx_missed: self.stats.rx_missed + self.socket.missed(),
            ..self.stats
        }
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.socket.fd())
    }

    fn steer(&mut self, key: u64) -> bool {
        let Some(mut steering) = self.steering else {
            return false;
        };
        steering.key = key;
        if self.steering == Some(steering) {
            return true;
        }
        let done = fanout::steer(&self.socket, &steering).is_ok();
        if done {
            self.steering = Some(steering);
        }
        done
    }
}
