//! What the sealed part of a link packet looks like (big-endian):
//!
//! ```text
//! inner   flow_group:32 flags:16 ttl:8 n:8, then n frames
//! frame   kind:8 len:16 body
//! ```
//!
//! An unknown kind is skipped by its length. Rates and weights are IEEE 754
//! f32. Every number is checked by who uses it; this file checks lengths only.

use std::net::{Ipv4Addr, SocketAddrV4};

use mef_packet::BitRate;

/// Bytes of the inner header.
pub const INNER_HEADER: usize = 8;
/// Bytes in front of each frame's body.
pub const FRAME_HEADER: usize = 3;
/// Bytes of a DATA frame beside its payload.
pub const DATA_OVERHEAD: usize = FRAME_HEADER + 12;
/// Bytes of a REPAIR frame beside its symbol.
/// The same as of DATA, so that a repair symbol is as long as a full DATA payload.
pub const REPAIR_OVERHEAD: usize = DATA_OVERHEAD;
/// Most data symbols of one span (10 bits of the REPAIR frame).
pub const MAX_SPAN_SYMBOLS: usize = 1024;
/// Most repair symbols of one span (11 bits of the REPAIR frame).
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

mod kind {
    pub const DATA: u8 = 1;
    pub const REPAIR: u8 = 2;
    pub const DGRAM: u8 = 3;
    pub const FRAG: u8 = 4;
    pub const SETUP: u8 = 8;
    pub const OPENED: u8 = 9;
    pub const REFUSED: u8 = 10;
    pub const FIN: u8 = 11;
    pub const RESET: u8 = 12;
    pub const WINDOW: u8 = 13;
    pub const ACK: u8 = 16;
    pub const HELLO: u8 = 32;
    pub const PING: u8 = 33;
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
    pub flow_group: u32,
    pub flags: u16,
    pub ttl: u8,
    pub frames: u8,
}

/// Which two hosts a split flow joins, and how it is carried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// The host that opened the connection.
    pub source: SocketAddrV4,
    /// The host it wants to reach.
    pub destination: SocketAddrV4,
    pub weight: f32,
    /// The opener has already answered its host (`open = "early"`).
    pub early: bool,
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
/// symbol, the last one `last` bytes long. On the wire `base_low:28 symbols-1:10 index:11 last:15`.
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
    /// repair brought back, which no packet number speaks of). Flow 0 is the credit of the whole link.
    Window {
        flow: u32,
        max_offset: u64,
        received: u64,
    },
    Ack(Ack<'a>),
    Hello(Hello),
    /// Packets below `floor` no longer matter to the sender.
    Ping {
        floor: u64,
    },
    /// Padding that makes the packet as large as the path is asked to carry.
    Probe {
        padding: usize,
    },
    Unknown {
        kind: u8,
    },
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], FrameError> {
        if n > self.0.len() {
            return Err(FrameError::ShortBody);
        }
        let (a, b) = self.0.split_at(n);
        self.0 = b;
        Ok(a)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.bytes(N)?.try_into().map_err(|_| FrameError::ShortBody)
    }
    fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(u8::from_be_bytes(self.array()?))
    }
    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_be_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_be_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_be_bytes(self.array()?))
    }
    fn f32(&mut self) -> Result<f32, FrameError> {
        let v = f32::from_be_bytes(self.array()?);
        if v.is_finite() && v >= 0.0 {
            Ok(v)
        } else {
            Err(FrameError::BadValue)
        }
    }
    fn address(&mut self) -> Result<SocketAddrV4, FrameError> {
        let ip: [u8; 4] = self.array()?;
        Ok(SocketAddrV4::new(Ipv4Addr::from(ip), self.u16()?))
    }
    fn rest(&mut self) -> &'a [u8] {
        core::mem::take(&mut self.0)
    }
}

/// Splits a decrypted packet into its header and an iterator over its frames.
///
/// # Errors
/// `TruncatedHeader` where there are fewer than [`INNER_HEADER`] bytes; the
/// iterator yields the other errors and ends behind the first one.
pub fn parse(packet: &[u8]) -> Result<(Inner, Frames<'_>), FrameError> {
    let mut r = Reader(packet);
    let inner = (|| {
        Ok::<_, FrameError>(Inner {
            flow_group: r.u32()?,
            flags: r.u16()?,
            ttl: r.u8()?,
            frames: r.u8()?,
        })
    })()
    .map_err(|_| FrameError::TruncatedHeader)?;
    Ok((
        inner,
        Frames {
            rest: r.0,
            left: inner.frames,
        },
    ))
}

/// Iterator over the frames of a packet.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
    left: u8,
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, FrameError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let frame = self.take();
        if frame.is_err() {
            self.left = 0;
        }
        Some(frame)
    }
}

impl<'a> Frames<'a> {
    fn take(&mut self) -> Result<Frame<'a>, FrameError> {
        let mut head = Reader(self.rest);
        let (kind, len) = (|| Ok::<_, FrameError>((head.u8()?, head.u16()?)))()
            .map_err(|_| FrameError::TruncatedFrame)?;
        let body = head
            .bytes(usize::from(len))
            .map_err(|_| FrameError::TruncatedFrame)?;
        self.rest = head.0;
        parse_body(kind, body)
    }
}

fn parse_body(kind: u8, body: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut r = Reader(body);
    Ok(match kind {
        kind::DATA => Frame::Data {
            flow: r.u32()?,
            offset: r.u64()?,
            payload: r.rest(),
        },
        kind::REPAIR => {
            let flow = r.u32()?;
            let packed = r.u64()?;
            let span = SpanId {
                base_low: (packed >> 36) as u32,
                symbols: ((packed >> 26) & 0x3ff) as u16 + 1,
                last: (packed & 0x7fff) as u16,
            };
            let index = ((packed >> 15) & 0x7ff) as u16;
            let symbol = r.rest();
            if span.last == 0 || usize::from(span.last) > symbol.len() {
                return Err(FrameError::BadValue);
            }
            Frame::Repair {
                flow,
                span,
                index,
                symbol,
            }
        }
        kind::DGRAM => Frame::Datagram {
            flow: r.u32()?,
            packet: r.rest(),
        },
        kind::FRAG => Frame::Fragment {
            id: r.u32()?,
            index: r.u8()?,
            count: r.u8()?,
            bytes: r.rest(),
        },
        kind::SETUP => {
            let flow = r.u32()?;
            let weight = r.f32()?;
            let early = r.u8()? & 1 != 0;
            let mss = r.u16()?;
            let family = r.u8()?;
            if family != 4 || weight == 0.0 {
                return Err(FrameError::BadValue);
            }
            Frame::Setup {
                flow,
                setup: Setup {
                    source: r.address()?,
                    destination: r.address()?,
                    weight,
                    early,
                    mss,
                },
            }
        }
        kind::OPENED => Frame::Opened { flow: r.u32()? },
        kind::REFUSED => Frame::Refused {
            flow: r.u32()?,
            code: r.u8()?,
        },
        kind::FIN => Frame::Fin {
            flow: r.u32()?,
            offset: r.u64()?,
        },
        kind::RESET => Frame::Reset {
            flow: r.u32()?,
            offset: r.u64()?,
            code: r.u8()?,
        },
        kind::WINDOW => Frame::Window {
            flow: r.u32()?,
            max_offset: r.u64()?,
            received: r.u64()?,
        },
        kind::ACK => {
            let (largest, rx_time_us, delay_us) = (r.u64()?, r.u64()?, r.u32()?);
            let (delivered_bytes, drops, format) = (r.u64()?, r.u32()?, r.u8()?);
            let received = match format {
                0 => Received::Runs(r.rest()),
                1 => Received::Bitmap(r.rest()),
                _ => return Err(FrameError::BadValue),
            };
            Frame::Ack(Ack {
                largest,
                rx_time_us,
                delay_us,
                delivered_bytes,
                drops,
                received,
            })
        }
        kind::HELLO => {
            let version = r.u8()?;
            if version != 1 {
                return Err(FrameError::BadValue);
            }
            let hello = Hello {
                boot_id: r.u64()?,
                workers: r.u16()?,
                hash_key: r.u64()?,
                mtu: r.u16()?,
                line_up: BitRate(r.f32()? as u64),
                line_down: BitRate(r.f32()? as u64),
                link_credit: r.u64()?,
                flow_credit: r.u64()?,
            };
            if hello.mtu < 576 || hello.line_down.0 < 1000 {
                return Err(FrameError::BadValue);
            }
            Frame::Hello(hello)
        }
        kind::PING => Frame::Ping { floor: r.u64()? },
        kind::PROBE => Frame::Probe {
            padding: r.rest().len(),
        },
        kind => Frame::Unknown { kind },
    })
}

/// Builds the inner part of one packet in a caller's buffer.
#[derive(Debug)]
pub struct Builder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
    frames: u8,
    flags: u16,
}

impl<'a> Builder<'a> {
    /// Appends to `out`; the inner part takes at most `limit` bytes, header included.
    pub fn new(out: &'a mut Vec<u8>, limit: usize) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; INNER_HEADER]);
        Self {
            out,
            start,
            limit,
            frames: 0,
            flags: 0,
        }
    }
    /// Bytes left for frames, their headers included.
    pub fn room(&self) -> usize {
        self.limit.saturating_sub(self.out.len() - self.start)
    }
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }
    pub fn flag(&mut self, flag: u16) {
        self.flags |= flag;
    }
    pub fn flags(&self) -> u16 {
        self.flags
    }
    /// Inner bytes so far.
    pub fn len(&self) -> usize {
        self.out.len() - self.start
    }

    /// Appends a frame; `false`, and nothing changed, where it does not fit.
    pub fn push(&mut self, frame: &Frame<'_>) -> bool {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_HEADER]);
        let kind = encode_body(frame, self.out);
        self.close(at, kind)
    }

    /// Appends a DATA frame whose `len` payload bytes `fill` writes.
    pub fn push_data(
        &mut self,
        flow: u32,
        offset: u64,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> bool {
        if DATA_OVERHEAD + len > self.room() {
            return false;
        }
        let at = self.out.len();
        self.out.extend_from_slice(&[0; FRAME_HEADER]);
        self.out.extend_from_slice(&flow.to_be_bytes());
        self.out.extend_from_slice(&offset.to_be_bytes());
        let body = self.out.len();
        self.out.resize(body + len, 0);
        if let Some(b) = self.out.get_mut(body..) {
            fill(b);
        }
        self.close(at, kind::DATA)
    }

    fn close(&mut self, at: usize, kind: u8) -> bool {
        let body = self.out.len() - at - FRAME_HEADER;
        let fits = self.out.len() - self.start <= self.limit && self.frames < u8::MAX;
        let (Ok(len), true) = (u16::try_from(body), fits) else {
            self.out.truncate(at);
            return false;
        };
        let l = len.to_be_bytes();
        if let Some(h) = self.out.get_mut(at..at + FRAME_HEADER) {
            h.copy_from_slice(&[kind, l[0], l[1]]);
        }
        self.frames += 1;
        true
    }

    /// Writes the inner header; returns the inner length.
    pub fn finish(self) -> usize {
        let [a, b] = self.flags.to_be_bytes();
        let header = [0, 0, 0, 0, a, b, 64, self.frames];
        if let Some(h) = self.out.get_mut(self.start..self.start + INNER_HEADER) {
            h.copy_from_slice(&header);
        }
        self.out.len() - self.start
    }
}

fn encode_address(a: &SocketAddrV4, out: &mut Vec<u8>) {
    out.extend_from_slice(&a.ip().octets());
    out.extend_from_slice(&a.port().to_be_bytes());
}

fn encode_body(frame: &Frame<'_>, out: &mut Vec<u8>) -> u8 {
    macro_rules! put {
        ($($v:expr),*) => { $(out.extend_from_slice(&$v.to_be_bytes());)* };
    }
    match *frame {
        Frame::Data {
            flow,
            offset,
            payload,
        } => {
            put!(flow, offset);
            out.extend_from_slice(payload);
            kind::DATA
        }
        Frame::Repair {
            flow,
            span,
            index,
            symbol,
        } => {
            let packed = (u64::from(span.base_low) & BASE_MASK) << 36
                | (u64::from(span.symbols.saturating_sub(1)) & 0x3ff) << 26
                | (u64::from(index) & 0x7ff) << 15
                | (u64::from(span.last) & 0x7fff);
            put!(flow, packed);
            out.extend_from_slice(symbol);
            kind::REPAIR
        }
        Frame::Datagram { flow, packet } => {
            put!(flow);
            out.extend_from_slice(packet);
            kind::DGRAM
        }
        Frame::Fragment {
            id,
            index,
            count,
            bytes,
        } => {
            put!(id, index, count);
            out.extend_from_slice(bytes);
            kind::FRAG
        }
        Frame::Setup { flow, ref setup } => {
            put!(flow, setup.weight, u8::from(setup.early), setup.mss, 4u8);
            encode_address(&setup.source, out);
            encode_address(&setup.destination, out);
            kind::SETUP
        }
        Frame::Opened { flow } => {
            put!(flow);
            kind::OPENED
        }
        Frame::Refused { flow, code } => {
            put!(flow, code);
            kind::REFUSED
        }
        Frame::Fin { flow, offset } => {
            put!(flow, offset);
            kind::FIN
        }
        Frame::Reset { flow, offset, code } => {
            put!(flow, offset, code);
            kind::RESET
        }
        Frame::Window {
            flow,
            max_offset,
            received,
        } => {
            put!(flow, max_offset, received);
            kind::WINDOW
        }
        Frame::Ack(ref a) => {
            put!(
                a.largest,
                a.rx_time_us,
                a.delay_us,
                a.delivered_bytes,
                a.drops
            );
            let (format, bytes) = match a.received {
                Received::Runs(b) => (0u8, b),
                Received::Bitmap(b) => (1u8, b),
            };
            out.push(format);
            out.extend_from_slice(bytes);
            kind::ACK
        }
        Frame::Hello(ref h) => {
            put!(1u8, h.boot_id, h.workers, h.hash_key, h.mtu);
            put!(
                (h.line_up.0 as f32),
                (h.line_down.0 as f32),
                h.link_credit,
                h.flow_credit
            );
            kind::HELLO
        }
        Frame::Ping { floor } => {
            put!(floor);
            kind::PING
        }
        Frame::Probe { padding } => {
            out.resize(out.len() + padding, 0);
            kind::PROBE
        }
        Frame::Unknown { kind } => kind,
    }
}

/// Appends `v` in 7-bit groups, least significant first (LEB128).
pub fn put_varint(mut v: u64, out: &mut Vec<u8>) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

/// Takes a variable-length integer off the front; `None` where it is cut short or too long.
pub fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u64::from(b & 0x7f).checked_shl(shift)?;
        if b < 0x80 {
            return Some(v);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(frame: Frame<'_>) {
        let mut out = vec![0xEE; 5];
        let mut b = Builder::new(&mut out, 1400);
        assert!(b.push(&frame));
        b.flag(FLAG_ELICITS_ACK);
        let n = b.finish();
        assert_eq!(n, out.len() - 5);
        let (inner, mut frames) = parse(&out[5..]).unwrap();
        assert_eq!((inner.flags, inner.frames), (FLAG_ELICITS_ACK, 1));
        assert_eq!(frames.next(), Some(Ok(frame)));
        assert_eq!(frames.next(), None);
    }

    #[test]
    fn every_frame_survives_the_wire() {
        let a = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 2), 1234);
        let b = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 2), 80);
        let hello = Hello {
            boot_id: 7,
            workers: 1,
            hash_key: 9,
            mtu: 1500,
            line_up: BitRate::from_mbit(100),
            line_down: BitRate::from_mbit(40),
            link_credit: 1 << 29,
            flow_credit: 1 << 24,
        };
        for f in [
            Frame::Data {
                flow: 3,
                offset: 1 << 40,
                payload: &[1, 2, 3],
            },
            Frame::Repair {
                flow: 3,
                span: SpanId::new(9, 1024, 77),
                index: 2047,
                symbol: &[9; 100],
            },
            Frame::Datagram {
                flow: 1,
                packet: &[4; 64],
            },
            Frame::Fragment {
                id: 1,
                index: 0,
                count: 2,
                bytes: &[5; 9],
            },
            Frame::Setup {
                flow: 8,
                setup: Setup {
                    source: a,
                    destination: b,
                    weight: 2.5,
                    early: true,
                    mss: 1460,
                },
            },
            Frame::Opened { flow: 8 },
            Frame::Refused { flow: 8, code: 3 },
            Frame::Fin {
                flow: 8,
                offset: 77,
            },
            Frame::Reset {
                flow: 8,
                offset: 77,
                code: 1,
            },
            Frame::Window {
                flow: 0,
                max_offset: u64::MAX,
                received: 3,
            },
            Frame::Ack(Ack {
                largest: 100,
                rx_time_us: 5,
                delay_us: 6,
                delivered_bytes: 7,
                drops: 0,
                received: Received::Bitmap(&[0xff, 0x01]),
            }),
            Frame::Hello(hello),
            Frame::Ping { floor: 12 },
            Frame::Probe { padding: 900 },
        ] {
            round_trip(f);
        }
    }

    #[test]
    fn a_frame_that_does_not_fit_leaves_no_trace() {
        let mut out = Vec::new();
        let mut b = Builder::new(&mut out, 20);
        assert!(!b.push(&Frame::Ping { floor: 1 }) || b.room() < 20);
        assert!(!b.push(&Frame::Datagram {
            flow: 1,
            packet: &[0; 50]
        }));
        let n = b.finish();
        let (inner, frames) = parse(&out[..n]).unwrap();
        assert_eq!(usize::from(inner.frames), frames.count());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            if let Ok((_, frames)) = parse(&bytes) {
                for f in frames { let _ = f; }
            }
        }
        #[test]
        fn a_spans_base_is_found_again(base in 0u64..1 << 40, d in -100_000_000i64..100_000_000) {
            let id = SpanId::new(base, 1, 1);
            prop_assert_eq!(id.base_near(base.saturating_add_signed(d)), base);
        }
        #[test]
        fn varints_round_trip(v in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(v, &mut out);
            let mut s = &out[..];
            prop_assert_eq!(take_varint(&mut s), Some(v));
            prop_assert!(s.is_empty());
        }
    }
}
