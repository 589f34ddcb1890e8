//! The host side of a split flow: a TCP endpoint that stands in for the far
//! host towards an unmodified host on a local port.
//!
//! ```text
//!   host --- port --- [ HostTcp ] --- bytes --- link to the far router
//!            SYN, segments, FIN       read/write/finish/abort
//! ```
//!
//! Two roles. Passive: the host opens, the endpoint answers as the far server.
//! Active: the endpoint opens to the host as the far client. The caller moves
//! the bytes; the endpoint knows neither the link nor the flow table.
//!
//! ```text
//!              SYN in          ACK in
//!   Passive ---------> (SYN-ACK) ----.            FIN in: remote_finished once all is read
//!                                     v          .-------------------------------------.
//!                        connecting -> established                                      > over: TimeWait record
//!                                     ^          '-------------------------------------'
//!   Active  ---------> (SYN) --------'            FIN acknowledged: local_finished
//!              SYN out         SYN-ACK in         RST, ICMP, timeout, abort: `end` says which
//! ```
//!
//! Segments are handed over whole: towards the host the endpoint emits
//! super-segments of up to 64 KiB that carry the host's real segment size in
//! [`SegmentMeta::gso_size`], from the host it takes what segmentation offload
//! merged. Transport checksums are neither verified nor completed here: the
//! port does both ([`SegmentMeta::checksum`]).
//!
//! [`Endpoint`] is what the router uses. `SmoltcpHost` (feature `smoltcp-host`)
//! stands on smoltcp: the simulator's hosts, and somebody else's idea of TCP for
//! the tests.

mod endpoint;
mod reset;
#[cfg(any(test, feature = "smoltcp-host"))]
mod smoltcp_host;
mod time_wait;
mod wire;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use mef_packet::wire::{ip, ipv4, ipv6};
use mef_packet::{Checksum, Instant};

pub use endpoint::Endpoint;
pub use reset::{question, rst_for};
#[cfg(any(test, feature = "smoltcp-host"))]
pub use smoltcp_host::SmoltcpHost;
pub use time_wait::TimeWait;
pub use wire::icmp_flow;

/// Which side of the handshake the endpoint takes. `local` is whom it stands
/// in for, `remote` the host behind the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Answers the host's SYN as the far server.
    Passive {
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// Opens to the host as the far client.
    Active {
        local: SocketAddr,
        remote: SocketAddr,
    },
}

impl Role {
    pub fn local(&self) -> SocketAddr {
        match *self {
            Role::Passive { local, .. } | Role::Active { local, .. } => local,
        }
    }
    pub fn remote(&self) -> SocketAddr {
        match *self {
            Role::Passive { remote, .. } | Role::Active { remote, .. } => remote,
        }
    }
}

/// What an endpoint is created with.
#[derive(Clone, Copy, Debug)]
pub struct HostTcpConfig {
    /// Most that the receive buffer may grow to, bytes, 4 KiB to 64 MiB (clamped); fixes the
    /// window scale. Memory is taken as bytes arrive, not when the endpoint is created.
    pub rx_buffer: usize,
    /// Most that the transmit buffer may grow to, bytes, 4 KiB to 64 MiB (clamped).
    pub tx_buffer: usize,
    /// MTU of the port, bytes: the announced MSS is this less 40, with IPv6 less 60.
    pub local_mtu: u16,
    /// Seeds the initial sequence number; must be unpredictable to hosts (RFC 6528).
    pub isn_seed: u64,
    /// How long the host may be silent while a SYN, data or a FIN waits for its
    /// acknowledgement; `None` waits for ever. An idle connection never times out.
    pub timeout: Option<Duration>,
    /// Keeps losses that show no sign of congestion from slowing the host down.
    pub pardon: bool,
}

impl Default for HostTcpConfig {
    fn default() -> Self {
        Self {
            rx_buffer: 4 << 20,
            tx_buffer: 4 << 20,
            local_mtu: 1500,
            isn_seed: 0,
            timeout: None,
            pardon: true,
        }
    }
}

/// What the caller has to know of a packet it was handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentMeta {
    /// Payload bytes per packet on the wire, 0 if the packet needs no cutting.
    pub gso_size: u16,
}

impl SegmentMeta {
    /// The checksum state of the packet once `l2_len` bytes stand before its IP header.
    /// `ip_packet` is that packet, as it was handed out: its header has no options.
    pub fn checksum(&self, l2_len: u16, ip_packet: &[u8]) -> Checksum {
        let header = match ip::version(ip_packet) {
            6 => ipv6::HEADER_LEN,
            _ => ipv4::HEADER_LEN,
        };
        Checksum::Partial {
            start: l2_len.saturating_add(header as u16),
            offset: wire::TCP_CHECKSUM as u16,
        }
    }
}

/// Why a connection ended without both FINs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host answered the SYN with RST.
    Refused,
    /// The host reset the connection.
    ResetByPeer,
    /// ICMP destination unreachable with this code came back for the SYN.
    Unreachable { code: u8 },
    /// [`HostTcp::abort`] was called.
    Aborted,
    /// [`HostTcpConfig::timeout`] passed; the host was sent a RST.
    TimedOut,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// The handshake was completed at some time.
    pub established: bool,
    /// The host's FIN arrived in order and every byte before it has been read.
    pub remote_finished: bool,
    /// The host acknowledged our FIN, and with it every byte written.
    pub local_finished: bool,
    /// Both FINs are through as far as TCP is concerned (bytes may be unread):
    /// [`HostTcp::time_wait_record`] can take the place of the endpoint once they are read.
    pub time_wait: bool,
    /// The connection ended otherwise. Bytes that arrived before can still be read.
    pub end: Option<End>,
}

impl HostState {
    /// The handshake is under way or has not begun.
    pub fn connecting(&self) -> bool {
        !self.established && self.end.is_none()
    }
    /// No packet will add to it: it ended early (bytes that came before may still be unread), or
    /// both FINs are through and everything is read, and only a [`TimeWait`] record need remain.
    pub fn over(&self) -> bool {
        self.end.is_some() || (self.time_wait && self.remote_finished)
    }
}

/// Why a connection cannot be represented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostTcpError {
    #[error("{0} cannot be an end of a TCP connection: a unicast address and a port other than 0 are needed")]
    Unaddressable(SocketAddr),
    #[error("MTU {0} is below 576 bytes, the least an IPv4 port must carry")]
    Mtu(u16),
}

/// Why a packet did not reach the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("neither a TCP segment nor an ICMP error about one, or cut short")]
    Malformed,
    #[error("a fragment: reassemble before the flow")]
    Fragment,
    #[error("addresses or ports of another flow")]
    WrongFlow,
    #[error("an ICMP message about a segment that is not in flight (RFC 5927)")]
    StaleIcmp,
}

/// A TCP endpoint towards one local host. Sans-IO: time comes in, packets come in and go out.
///
/// After any call other than the getters, call [`poll_transmit`](Self::poll_transmit)
/// until it returns `None`; a batch of segments may be handled first, so that it costs one
/// acknowledgement.
pub trait HostTcp {
    /// Takes an IP packet of this flow from the host: a segment (up to 64 KiB, its
    /// checksum verified by the port), or an ICMP unreachable about one of ours.
    fn handle_segment(&mut self, now: Instant, ip_packet: &[u8]) -> Result<(), SegmentError>;

    /// The same; bytes that come in order while none wait to be read are shown to `sink` first, as
    /// [`read`](Self::read) would, and only what it leaves is kept.
    fn handle_segment_into(
        &mut self,
        now: Instant,
        ip_packet: &[u8],
        _sink: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Result<(), SegmentError> {
        self.handle_segment(now, ip_packet)
    }

    /// As [`poll_transmit`](Self::poll_transmit), but appends the packet to `out`.
    fn append_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta> {
        let mut packet = Vec::new();
        let meta = self.poll_transmit(now, &mut packet)?;
        out.extend_from_slice(&packet);
        Some(meta)
    }

    /// Puts the next IP packet towards the host into `out`, replacing its content, with the
    /// IP header complete and the pseudo-header sum in the checksum field. `None` leaves `out` as it is.
    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SegmentMeta>;

    /// When [`poll_transmit`](Self::poll_transmit) has to be called next if nothing else happens.
    fn poll_timeout(&self) -> Option<Instant>;

    /// Bytes that arrived in order and wait to be read.
    fn readable(&self) -> usize;

    /// Shows `f` the next bytes (the contiguous part, perhaps not all of
    /// [`readable`](Self::readable)) and drops as many of them as it returns. The host's window
    /// opens by as much: it is told at once if its window had been zero or at least doubles by
    /// it, otherwise with the next acknowledgement.
    fn read<F: FnOnce(&[u8]) -> usize>(&mut self, f: F) -> usize;

    /// Bytes that [`write`](Self::write) would take now; 0 until established and after `finish`.
    fn writable(&self) -> usize;

    /// Queues bytes towards the host; returns how many were taken.
    fn write(&mut self, data: &[u8]) -> usize;

    /// Bytes written that the host has not acknowledged.
    fn unacknowledged(&self) -> usize;

    /// FIN after what was written; before the handshake it is kept until then.
    fn finish(&mut self);

    /// RST as soon as polled; nothing is sent if the host has heard of no connection, or has
    /// finished it.
    fn abort(&mut self);

    fn state(&self) -> HostState;

    /// The largest segment the host says it takes, bytes; 536 until its SYN was seen (RFC 9293 §3.7.1).
    fn remote_mss(&self) -> u16;

    /// True for a keep-alive probe (one old byte or none just below the window), so that the
    /// caller can hold it back while the far host is not known to be alive.
    fn is_keep_alive(&self, ip_packet: &[u8]) -> bool;

    /// The record that can answer for this connection once [`HostState::time_wait`] is set.
    fn time_wait_record(&self) -> Option<TimeWait>;

    /// Bytes of memory held beside the endpoint itself: both buffers and what is kept about
    /// the segments in them.
    fn memory(&self) -> usize;
}
