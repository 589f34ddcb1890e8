//! The trait that every kind of port implements.

use mef_packet::{Buffer, Packet};

/// What a port can do with what it is given.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Link-layer payload of one wire packet, bytes (1500 on Ethernet).
    pub mtu: u16,
    /// The port's own address.
    pub mac: [u8; 6],
    /// Takes and gives TCP super-segments up to 64 KiB (see `Meta::gso`).
    pub tcp_gso: bool,
    /// Takes and gives UDP super-frames.
    pub udp_gso: bool,
    /// Completes partial checksums on transmit.
    pub tx_checksum: bool,
}

/// What a port has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    /// Lost before the router saw them (ring or socket buffer full).
    pub rx_missed: u64,
    /// Damaged on the wire, by the device's own count.
    pub rx_errors: u64,
    /// Lost because there was no buffer to receive them into.
    pub rx_no_buffer: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Refused by the device or the kernel (queue full, link down).
    pub tx_dropped: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("interface {name}: {what}: {source}")]
    Os {
        name: String,
        what: &'static str,
        source: std::io::Error,
    },
    #[error("interface {name} does not exist here; `ip link` lists those that do")]
    NoInterface { name: String },
    #[error("interface {name}: opening a packet socket needs CAP_NET_RAW; run as root or grant it with `setcap cap_net_raw,cap_net_admin,cap_sys_nice+ep`")]
    NotPermitted { name: String },
    #[error("device {name}: {what}: {reason}")]
    Device {
        name: String,
        what: &'static str,
        reason: String,
    },
}

/// A source and sink of packets. Never blocks.
pub trait Port {
    type Buf: Buffer;
    /// Appends at most `max` packets that have arrived to `out`; returns how many.
    fn rx(&mut self, out: &mut Vec<Packet<Self::Buf>>, max: usize) -> usize;
    /// Sends all of `batch` and leaves it empty; what the device refuses is dropped and counted.
    fn tx(&mut self, batch: &mut Vec<Packet<Self::Buf>>);
    /// An empty buffer with headroom for every header the router puts on, and room for `capacity` bytes.
    fn alloc(&mut self, capacity: usize) -> Self::Buf;
    /// Gives a buffer back that was not sent.
    fn recycle(&mut self, buf: Self::Buf);
    fn caps(&self) -> Caps;
    fn stats(&self) -> PortStats;
    /// What an operator should know of: a link that is down, a queue that gets nothing.
    fn alarms(&self) -> Vec<String> {
        Vec::new()
    }
    /// Called once in the thread that is going to use the port.
    fn attach(&mut self) {}
    /// Spreads flows over the workers' ports by [`mef_packet::FlowHash`] under this key from now on, where
    /// the device can; false if it goes on as before. May be called seldom, and for one port of a device.
    fn steer(&mut self, _key: u64) -> bool {
        false
    }
    /// Readable when packets wait, for `poll(2)`; `None` for ports without a descriptor.
    fn poll_fd(&self) -> Option<std::os::fd::RawFd>;
}
