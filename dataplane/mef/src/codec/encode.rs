//! Frames to bytes, packed until a packet is full.

use std::net::{IpAddr, SocketAddr};

use crate::classes::Class;

use super::{
    kind, Frame, Received, BASE_MASK, DATAGRAM_OVERHEAD, FLAG_DATA, FLAG_REPAIR, FRAME_HEADER,
    INNER_HEADER, STREAM_HEADER,
};

/// Inner header of a packet with one DGRAM frame, and all of that frame in front of its datagram of
/// `len` bytes; `None` for one that is too long.
pub fn datagram_front(
    flags: u16,
    flow: u32,
    len: usize,
) -> Option<[u8; INNER_HEADER + DATAGRAM_OVERHEAD]> {
    let body = u16::try_from(len + DATAGRAM_OVERHEAD - FRAME_HEADER).ok()?;
    let ([a, b], [high, low]) = (flags.to_be_bytes(), body.to_be_bytes());
    let [w, x, y, z] = flow.to_be_bytes();
    let kind = kind::DGRAM;
    Some([0, 0, 0, 0, a, b, 64, 1, kind, high, low, w, x, y, z])
}

/// The flags of a packet that holds one DGRAM frame and nothing else, so that its datagram stands where
/// [`datagram_front`] ends; `None` for any other.
#[inline]
pub fn single_datagram(inner: &[u8]) -> Option<u16> {
    let front = inner.first_chunk::<{ INNER_HEADER + DATAGRAM_OVERHEAD }>()?;
    let [_, _, _, _, a, b, _, frames, kind, high, low, ..] = *front;
    let body = usize::from(u16::from_be_bytes([high, low]));
    let whole = INNER_HEADER + FRAME_HEADER + body == inner.len();
    let flags = u16::from_be_bytes([a, b]);
    let framed = flags & (FLAG_DATA | FLAG_REPAIR) == 0;
    (frames == 1 && kind == kind::DGRAM && whole && framed).then_some(flags)
}

/// Builds the inner part of one packet in a caller's buffer.
#[derive(Debug)]
pub struct Builder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    limit: usize,
    frames: u8,
    flags: u16,
    /// The packet is DATA or REPAIR of this flow, and nothing else fits.
    alone: Option<u32>,
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
            alone: None,
        }
    }
    /// Bytes left for frames, their headers included.
    pub fn room(&self) -> usize {
        if self.alone.is_some() {
            return 0;
        }
        self.limit.saturating_sub(self.out.len() - self.start)
    }
    pub fn is_empty(&self) -> bool {
        self.frames == 0 && self.alone.is_none()
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
        match *frame {
            Frame::Data {
                flow,
                offset,
                payload,
            } => self.push_data(flow, offset, payload.len(), |out| {
                out.extend_from_slice(payload);
                true
            }),
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
                self.push_alone(FLAG_REPAIR, flow, packed, symbol.len(), |out| {
                    out.extend_from_slice(symbol);
                    true
                })
            }
            _ if self.alone.is_some() => false,
            _ => {
                let at = self.out.len();
                self.out.extend_from_slice(&[0; FRAME_HEADER]);
                let kind = encode_body(frame, self.out);
                self.close(at, kind)
            }
        }
    }

    /// Makes the packet DATA whose `len` payload bytes `fill` appends; `false`, and nothing changed, where
    /// it does not fit, something is in it already, or `fill` fails.
    pub fn push_data(
        &mut self,
        flow: u32,
        offset: u64,
        len: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        self.push_alone(FLAG_DATA, flow, offset, len, fill)
    }

    fn push_alone(
        &mut self,
        flag: u16,
        flow: u32,
        head: u64,
        len: usize,
        fill: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        if !self.is_empty() || STREAM_HEADER + len > self.room() {
            return false;
        }
        let at = self.out.len();
        self.out.extend_from_slice(&head.to_be_bytes());
        let body = self.out.len();
        if !fill(self.out) || self.out.len() != body + len {
            self.out.truncate(at);
            return false;
        }
        self.flags |= flag;
        self.alone = Some(flow);
        true
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
        let [w, x, y, z] = self.alone.unwrap_or(0).to_be_bytes();
        let header = [w, x, y, z, a, b, 64, self.frames];
        if let Some(h) = self.out.get_mut(self.start..self.start + INNER_HEADER) {
            h.copy_from_slice(&header);
        }
        self.out.len() - self.start
    }
}

fn encode_address(a: &SocketAddr, family: u8, out: &mut Vec<u8>) {
    match a.ip() {
        IpAddr::V4(ip) if family == 4 => out.extend_from_slice(&ip.octets()),
        IpAddr::V4(ip) => out.extend_from_slice(&ip.to_ipv6_mapped().octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
    out.extend_from_slice(&a.port().to_be_bytes());
}

/// Bit 0: opened early; bits 1 and 2: class.
fn setup_flags(early: bool, class: Class) -> u8 {
    let class = match class {
        Class::Balanced => 0,
        Class::Latency => 1,
        Class::Bulk => 2,
    };
    u8::from(early) | class << 1
}

fn encode_body(frame: &Frame<'_>, out: &mut Vec<u8>) -> u8 {
    macro_rules! put {
        ($($v:expr),*) => { $(out.extend_from_slice(&$v.to_be_bytes());)* };
    }
    match *frame {
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
            // One family for both: a connection has no ends of two.
            let v4 = setup.source.is_ipv4() && setup.destination.is_ipv4();
            let family = if v4 { 4 } else { 6u8 };
            put!(
                flow,
                setup.weight,
                setup_flags(setup.early, setup.class),
                setup.dscp,
                setup.mss,
                family
            );
            encode_address(&setup.source, family, out);
            encode_address(&setup.destination, family, out);
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
            read,
            room,
            pace,
        } => {
            put!(flow, max_offset, received, read, room, pace);
            kind::WINDOW
        }
        Frame::Heard { flow, ago_ms } => {
            // The largest number is the question.
            put!(flow, ago_ms.map_or(u32::MAX, |ms| ms.min(u32::MAX - 1)));
            kind::HEARD
        }
        Frame::Gone { ref host, ref far } => {
            let family = if host.is_ipv4() && far.is_ipv4() {
                4
            } else {
                6u8
            };
            out.push(family);
            encode_address(host, family, out);
            encode_address(far, family, out);
            kind::GONE
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
        Frame::PathChallenge { token } => {
            put!(token);
            kind::PATH_CHALLENGE
        }
        Frame::PathResponse { token } => {
            put!(token);
            kind::PATH_RESPONSE
        }
        Frame::Probe { padding } => {
            out.resize(out.len() + padding, 0);
            kind::PROBE
        }
        Frame::Unknown { kind } => kind,
        // They have no frame.
        Frame::Data { .. } | Frame::Repair { .. } => 0,
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
