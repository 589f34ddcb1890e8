//! What the router knows about a packet beside its bytes.

use crate::time::Instant;

/// Index of a port in the running configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// How a super-segment is to be cut, or was joined: the payload bytes per wire packet are in [`Meta::gso_size`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    #[default]
    None,
    TcpV4,
    TcpV6,
    Udp,
}

/// What is known of the transport checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// As on the wire: complete, not yet verified.
    #[default]
    Complete,
    /// Verified by the hardware or the kernel.
    Verified,
    /// The field holds the pseudo-header sum only; who sends it sums from `start` on
    /// (offset in the frame) and stores at `start + offset`.
    Partial { start: u16, offset: u16 },
}

/// Travels with every packet; `Copy`, at most one cache line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Meta {
    /// The port it came in through.
    pub port: PortId,
    /// When the kernel or the NIC received it.
    pub rx_time: Instant,
    pub gso: Gso,
    pub gso_size: u16,
    pub checksum: Checksum,
}

const _: () = assert!(core::mem::size_of::<Meta>() <= 64);

/// A packet: its bytes from the Ethernet header on, and what is known of it.
#[derive(Debug)]
pub struct Packet<B> {
    pub buf: B,
    pub meta: Meta,
}
