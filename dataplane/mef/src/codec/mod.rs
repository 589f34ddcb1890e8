//! What the sealed part of a link packet looks like (big-endian):
//!
//! ```text
//! inner   flow_group:32 flags:16 ttl:8 n:8, then n frames
//! frame   kind:8 len:16 body
//! ```
//!
//! Bytes of streams, and repair symbols, are what most packets are full of, so each has a packet
//! of its own and no frame's header: a flag says which, `flow_group` is the flow, n is 0.
//!
//! ```text
//! DATA    offset:64 payload
//! REPAIR  base:28 symbols-1:10 index:11 last:15 symbol
//! ```
//!
//! An unknown kind is skipped by its length. Rates and weights are IEEE 754
//! f32. Every number is checked by who uses it; this file checks lengths only.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use mef_packet::BitRate;

use crate::classes::Class;

pub use decode::{parse, take_varint, Frames};
pub use encode::{datagram_front, put_varint, single_datagram, Builder};

/// Bytes of the inner header.
pub const INNER_HEADER: usize = 8;
/// Bytes in front of each frame's body.
pub const FRAME_HEADER: usize = 3;
/// Bytes between the inner header and the payload of DATA, or the symbol of REPAIR: as many for both, so that a
/// repair symbol is as long as a full DATA payload.
pub const STREAM_HEADER: usize = 8;
/// Most data symbols of one span (10 bits of REPAIR).
pub const MAX_SPAN_SYMBOLS: usize = 1024;
/// Most repair symbols of one span (11 bits of REPAIR).
pub const MAX_REPAIR_SYMBOLS: usize = 2048;
/// Bytes of a DGRAM frame beside its packet.
pub const DATAGRAM_OVERHEAD: usize = FRAME_HEADER + 4;

/// Bytes of a FRAG frame beside its piece.
pub const FRAGMENT_OVERHEAD: usize = FRAME_HEADER + 6;

/// Set in the code of a RESET that answers the peer's: the sender still hands on the bytes in front
/// of the peer's reset. Without it the sender reads nothing more, and the peer may drop what it holds.
pub const RESET_ECHO: u8 = 0x80;

/// Inner flag: the sender wants this packet acknowledged.
pub const FLAG_ELICITS_ACK: u16 = 1;
/// Inner flag: the sender has nothing more to send now, acknowledge at once.
pub const FLAG_ACK_NOW: u16 = 2;
/// Inner flag: the sender does not know the line's capacity, so it wants to hear also that nothing arrives.
pub const FLAG_KEEP_REPORTING: u16 = 4;
/// Inner flag: DATA of the flow `flow_group`, up to the packet's end.
const FLAG_DATA: u16 = 8;
/// Inner flag: REPAIR of the flow `flow_group`, up to the packet's end.
const FLAG_REPAIR: u16 = 16;

mod kind {
    pub const DGRAM: u8 = 3;
    pub const FRAG: u8 = 4;
    pub const SETUP: u8 = 8;
    pub const OPENED: u8 = 9;
    pub const REFUSED: u8 = 10;
    pub const FIN: u8 = 11;
    pub const RESET: u8 = 12;
    pub const WINDOW: u8 = 13;
    pub const HEARD: u8 = 14;
    pub const GONE: u8 = 15;
    pub const ACK: u8 = 16;
    pub const HELLO: u8 = 32;
    pub const PING: u8 = 33;
    pub const PATH_CHALLENGE: u8 = 34;
    pub const PATH_RESPONSE: u8 = 35;
    pub const PROBE: u8 = 36;
}

/// Why a packet's content was refused. The packet is dropped whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the inner header is cut short")]
    TruncatedHeader,
    #[error("a frame is longer than its packet")]
    TruncatedFrame,
    #[error("a frame's body is shorter than its kind needs")]
    ShortBody,
    #[error("a field holds a value that is not allowed")]
    BadValue,
}

/// The inner header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The flow, of DATA and REPAIR; else 0.
    pub flow_group: u32,
    pub flags: u16,
    pub ttl: u8,
    pub frames: u8,
}

/// Which two hosts a split flow joins, and how it is carried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// The host that opened the connection.
    pub source: SocketAddr,
    /// The host it wants to reach.
    pub destination: SocketAddr,
    pub weight: f32,
    /// The opener has already answered its host (`open = "early"`).
    pub early: bool,
    pub class: Class,
    /// DS field (RFC 2474) of the opening host's packets, 0 to 63.
    pub dscp: u8,
    /// Maximum segment size that the opener's host announced.
    pub mss: u16,
}

/// What an edge says of itself at the start of a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hello {
    pub boot_id: u64,
    pub workers: u16,
    pub hash_key: u64,
    /// Largest IP packet the port can receive.
    pub mtu: u16,
    pub line_up: BitRate,
    pub line_down: BitRate,
    /// Bytes of streams that the sender of this HELLO will hold for all flows of the link.
    pub link_credit: u64,
    /// Bytes that a new flow may send before its first WINDOW.
    pub flow_credit: u64,
}

/// What has arrived: `largest` and a description of what else down from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ack<'a> {
    pub largest: u64,
    /// When `largest` arrived, microseconds of the receiver's clock.
    pub rx_time_us: u64,
    /// How long the acknowledgement of `largest` waited, microseconds.
    pub delay_us: u32,
    /// Bytes of this session that arrived, counted as on the line.
    pub delivered_bytes: u64,
    /// Packets that arrived and had to be dropped.
    pub drops: u32,
    pub received: Received<'a>,
}

/// Two ways to say which packets below `largest` arrived; the shorter one is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Received<'a> {
    /// Variable-length integers: packets received down from `largest` (at least 1), then gap, run, gap, run ...
    Runs(&'a [u8]),
    /// Bit i of byte j set: packet `largest - (8 j + i)` arrived.
    Bitmap(&'a [u8]),
}

/// The stretch of a stream that a repair symbol covers: `symbols` pieces as long as the
/// symbol, the last one `last` bytes long. More than one lie on multiples of their size, and of the
/// first what is below the base counts as zeros; one alone starts at the base. On the wire `base_low:28 symbols-1:10 index:11 last:15`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId {
    /// The low 28 bits of the stream offset at which the span starts.
    pub base_low: u32,
    /// 1 to 1024.
    pub symbols: u16,
    /// 1 to 32767.
    pub last: u16,
}

impl SpanId {
    pub fn new(base: u64, symbols: u16, last: u16) -> Self {
        Self {
            base_low: (base & BASE_MASK) as u32,
            symbols,
            last,
        }
    }
    /// The offset nearest to `reference` whose low bits are those of the span.
    pub fn base_near(self, reference: u64) -> u64 {
        let low = u64::from(self.base_low);
        let candidate = (reference & !BASE_MASK) | low;
        let half = (BASE_MASK + 1) >> 1;
        if candidate > reference + half {
            candidate.saturating_sub(BASE_MASK + 1)
        } else if candidate + half < reference {
            candidate + BASE_MASK + 1
        } else {
            candidate
        }
    }
}

const BASE_MASK: u64 = (1 << 28) - 1;

/// One frame, borrowing the packet it came in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Frame<'a> {
    Data {
        flow: u32,
        offset: u64,
        payload: &'a [u8],
    },
    Repair {
        flow: u32,
        span: SpanId,
        index: u16,
        symbol: &'a [u8],
    },
    Datagram {
        flow: u32,
        packet: &'a [u8],
    },
    Fragment {
        id: u32,
        index: u8,
        count: u8,
        bytes: &'a [u8],
    },
    Setup {
        flow: u32,
        setup: Setup,
    },
    Opened {
        flow: u32,
    },
    Refused {
        flow: u32,
        code: u8,
    },
    Fin {
        flow: u32,
        offset: u64,
    },
    Reset {
        flow: u32,
        offset: u64,
        code: u8,
    },
    /// How far a flow may send, and up to where its bytes arrived without a gap (also those that
    /// repair brought back, which no packet number speaks of); what the host has read, for how many
    /// bytes beyond that it has room, and how many it is known to read in eight round trips. Flow 0 is
    /// the credit of the whole link.
    Window {
        flow: u32,
        max_offset: u64,
        received: u64,
        read: u64,
        room: u32,
        pace: u32,
    },
    /// When the flow's host on the sender's side was last heard, milliseconds ago; `None` asks the same
    /// of the receiver's.
    Heard {
        flow: u32,
        ago_ms: Option<u32>,
    },
    /// A connection that the receiver carried before it was restarted, by its own host and the far one.
    Gone {
        host: SocketAddr,
        far: SocketAddr,
    },
    Ack(Ack<'a>),
    Hello(Hello),
    /// Packets below `floor` no longer matter to the sender.
    Ping {
        floor: u64,
    },
    /// Sent to an address from which the peer was heard for the first time.
    PathChallenge {
        token: u64,
    },
    /// The token of a challenge, which only who receives there can know.
    PathResponse {
        token: u64,
    },
    /// Padding that makes the packet as large as the path is asked to carry.
    Probe {
        padding: usize,
    },
    Unknown {
        kind: u8,
    },
}
