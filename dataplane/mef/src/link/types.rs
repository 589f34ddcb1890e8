//! What goes between a link and the router that has it: configuration, events, errors,
//! packets that were packed, views and counters.

use core::time::Duration;
use std::net::SocketAddr;

use mef_packet::BitRate;

use super::DatagramStats;
use crate::codec::{FrameError, Setup};
use crate::recv_stream::StreamError;
use crate::send_stream::End;

/// What a link is told when it is made.
#[derive(Clone, Copy, Debug)]
pub struct LinkConfig {
    /// Exactly one end has this set: it numbers its flows evenly, the other oddly.
    pub even_flows: bool,
    pub boot_id: u64,
    /// Largest IP packet of the port.
    pub port_mtu: u16,
    pub line_up: BitRate,
    pub line_down: BitRate,
    /// Stream bytes this end will hold for all flows of the link.
    pub link_credit: u64,
    /// IP, UDP and crypto bytes around the inner packet.
    pub packet_overhead: u16,
    /// Bytes that the line carries beside the IP packet.
    pub frame_overhead: u16,
}

/// A thing with packets to send, as the line's scheduler knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SendKey {
    Stream(u32),
    Datagram(u32),
}

/// What the router is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer has said HELLO: flows may be opened.
    Up,
    /// The peer has another boot id than before: every flow is gone.
    PeerRestarted {
        flows: Vec<u32>,
    },
    /// The peer wants a flow to one of our hosts.
    Setup {
        flow: u32,
        setup: Setup,
    },
    /// Something about a flow changed: opened, refused, readable, room to write, ended.
    Flow(u32),
    /// A datagram for a host on this side.
    Datagram(Vec<u8>),
    /// The peer's host wants to know whether ours is alive, or ours was last heard so long ago.
    AliveAsked {
        flow: u32,
    },
    Heard {
        flow: u32,
        ago: Duration,
    },
    /// A connection from before this router was restarted, whose host may still believe in it.
    Gone {
        host: SocketAddr,
        far: SocketAddr,
    },
    /// Nothing was acknowledged for so long that only probes are sent.
    Silent,
    /// Acknowledgements are back.
    Resumed,
    PathMtu(u16),
    /// The peer answered a challenge with this token.
    PathResponse(u64),
}

/// Why a packet was refused; it counts as not received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("an acknowledgement of packets that were never sent")]
    AckOfUnsent,
    #[error("a flow number that the peer may not use")]
    BadFlow,
    #[error("frames of flows before the HELLO of this session")]
    BeforeHello,
}

/// Why a datagram was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    #[error("the flow's queue is full")]
    QueueFull,
    #[error("larger than a link takes")]
    TooBig,
}

/// A packet that [`Link::poll_control`] or [`Link::poll_flow`] wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Bytes of the inner packet appended to the caller's buffer.
    pub inner_len: usize,
    /// Bytes that the line is charged.
    pub line_bytes: u64,
    /// How long a datagram waited in its queue.
    pub waited: Option<Duration>,
    /// For the packet around: that of the datagram in it, or the DS field of a split flow and Not-ECT (its
    /// ECN ends at the router that answers its host); 0 for control.
    pub traffic_class: u8,
    /// The flow's next packet belongs behind this one, before anybody else's: the other half of a datagram.
    pub more: bool,
}

/// How far the opening of a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Pending,
    Open,
    Refused(u8),
}

/// What the router can see of a flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowView {
    pub opening: Opening,
    pub readable: u64,
    /// The peer's half ended behind what is readable.
    pub recv_end: Option<End>,
    /// All of the peer's bytes were consumed.
    pub recv_finished: bool,
    pub unsent: u64,
    pub held: u64,
    pub retransmitted: u64,
    pub recovered: u64,
    /// Stream bytes sent at least once, and read by the router.
    pub sent: u64,
    pub read: u64,
    /// How far the peer lets this end send, and this end the peer.
    pub credit: u64,
    pub granted: u64,
}

/// Counters of a link since it was made.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkStats {
    pub packets_sent: u64,
    /// As the line counts them.
    pub bytes_sent: u64,
    pub packets_received: u64,
    pub bytes_received: u64,
    pub packets_lost: u64,
    pub packets_spurious: u64,
    pub repairs_sent: u64,
    pub bytes_retransmitted: u64,
    pub bytes_recovered: u64,
    pub datagrams: DatagramStats,
}
