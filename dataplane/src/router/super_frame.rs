//! Pack and Seal in batches: what a line may send now leaves as super-frames,
//! link packets of one size side by side in one buffer, which the port takes in
//! one piece and the device, or the kernel, cuts.
//!
//! ```text
//!   [ IP | UDP | LINK inner tag | LINK inner tag | ... | LINK inner tag ]    gso_size: one packet
//!                 each packed where it will leave from, and sealed in place
//! ```
//!
//! A super-frame holds what the line carries in its burst time (250 us unless
//! configured), or one packet: what is behind it in the line's bottleneck never
//! sees more of it at once. Another
//! peer, another DS field or a longer packet begin a new one, a shorter packet
//! ends it. Ports that take none get packets one by one.

use std::net::SocketAddr;

use mef_crypto::HEADER_LEN as LINK_HEADER;
use mef_io::Port;
use mef_packet::{Buffer, Bytes, Instant};
use mef_protocol::line::Departure;

use super::output::TAG;
use super::pipeline::Stop;
use super::Router;
use crate::drops::{DropReason, Stage};

/// Most bytes of link packets in one: with every header it stays an IP packet.
const MOST_BYTES: usize = 65_535 - 128;
/// Most packets in one that kernels cut (UDP_MAX_SEGMENTS before Linux 6.9).
const MOST_PACKETS: usize = 64;

/// Sealed link packets that leave together.
struct SuperFrame<B> {
    buf: B,
    /// Place of the peer.
    place: usize,
    class: u8,
    /// Bytes of each packet but the last.
    size: usize,
    packets: usize,
    /// What the line is charged for them, bytes.
    charged: u64,
    /// The last one was shorter: nothing may follow it.
    ended: bool,
}

/// How much one super-frame of a line may hold.
#[derive(Clone, Copy)]
struct Limits {
    /// As the line counts them.
    burst: Bytes,
    packets: usize,
    /// Room that its buffer has.
    capacity: usize,
}

impl<B: Buffer> SuperFrame<B> {
    fn empty(buf: B) -> Self {
        Self {
            buf,
            place: 0,
            class: 0,
            size: 0,
            packets: 0,
            charged: 0,
            ended: false,
        }
    }

    fn takes(&self, place: usize, class: u8, size: usize) -> bool {
        self.packets == 0
            || (self.place == place && self.class == class && self.size >= size && !self.ended)
    }

    /// Enters a packet that stands behind the others.
    fn enter(&mut self, place: usize, class: u8, size: usize, charged: u64) {
        if self.packets == 0 {
            (self.place, self.class, self.size) = (place, class, size);
        }
        self.ended = size < self.size;
        self.packets += 1;
        self.charged += charged;
    }

    fn is_full(&self, limits: Limits) -> bool {
        let one = self.charged.checked_div(self.packets as u64).unwrap_or(0);
        self.ended
            || self.packets >= limits.packets
            || self.charged + one > limits.burst.0
            || self.buf.len() + self.size > MOST_BYTES
    }
}

impl<P: Port> Router<P> {
    fn limits(&self, line: usize) -> Option<Limits> {
        let l = self.lines.get(line)?;
        let caps = self.ports.get(usize::from(l.port.0))?.port.caps();
        let one = usize::from(caps.mtu);
        if !caps.udp_gso {
            return Some(Limits {
                burst: Bytes(0),
                packets: 1,
                capacity: one,
            });
        }
        let burst = l.line.capacity().bytes_in(l.burst);
        let bytes = usize::try_from(burst.0)
            .unwrap_or(MOST_BYTES)
            .min(MOST_BYTES);
        Some(Limits {
            burst,
            packets: MOST_PACKETS,
            // The packet that begins the next one is written behind the last.
            capacity: if bytes < 2 * one { one } else { bytes + one },
        })
    }

    /// Sends what the line may send now.
    pub(super) fn pull_line(&mut self, now: Instant, line: usize) {
        let Some(limits) = self.limits(line) else {
            return;
        };
        let mut frame: Option<SuperFrame<P::Buf>> = None;
        loop {
            let mut open = match frame.take() {
                Some(open) => open,
                None => match self.new_frame(line, limits) {
                    Some(open) => open,
                    None => return,
                },
            };
            let at = open.buf.len();
            let Some(departure) = self.pack_behind(now, line, &mut open) else {
                self.send_frame_of(now, line, open);
                return;
            };
            let (place, packed) = match departure {
                Departure::Plain(plain, waited) => {
                    self.waited.record(waited);
                    self.send_frame_of(now, line, open);
                    self.counters.elsewhere();
                    if let Err(Stop::Drop(stage, reason)) = self.send_plain(now, line, plain) {
                        self.counters.count(stage, reason);
                    }
                    continue;
                }
                Departure::Link(place, packed) => (place, packed),
            };
            if let Some(waited) = packed.waited {
                self.waited.record(waited);
            }
            let Some(l) = self.lines.get_mut(line) else {
                return;
            };
            let class = packed.traffic_class & if l.copy_dscp { 0xff } else { 3 };
            let sealed = l.peers.get_mut(place).is_some_and(|peer| {
                self.counters.at_link(peer.id.0);
                let packet = open.buf.bytes_mut().get_mut(at..);
                packet.is_some_and(|p| peer.seal(p).is_ok())
            });
            if !sealed {
                self.counters.count(Stage::Seal, DropReason::NoSession);
                open.buf.truncate(at);
                frame = Some(open);
                continue;
            }
            let size = open.buf.len() - at;
            if !open.takes(place, class, size) {
                // Rare: another peer's, another class, or longer than those before it.
                let Some(mut next) = self.new_frame(line, limits) else {
                    return;
                };
                let moved = match (open.buf.bytes().get(at..), next.buf.append(size)) {
                    (Some(packet), Some(room)) => {
                        room.copy_from_slice(packet);
                        true
                    }
                    _ => false,
                };
                open.buf.truncate(at);
                self.send_frame_of(now, line, open);
                if !moved {
                    self.counters.count(Stage::Seal, DropReason::NoRoom);
                    continue;
                }
                open = next;
            }
            open.enter(place, class, size, packed.line_bytes);
            if open.is_full(limits) {
                self.send_frame_of(now, line, open);
            } else {
                frame = Some(open);
            }
        }
    }

    fn new_frame(&mut self, line: usize, limits: Limits) -> Option<SuperFrame<P::Buf>> {
        let port = self.lines.get(line)?.port;
        let p = self.ports.get_mut(usize::from(port.0))?;
        Some(SuperFrame::empty(p.port.alloc(limits.capacity)))
    }

    /// Appends what leaves next, with room for the LINK header in front and the tag behind.
    fn pack_behind(
        &mut self,
        now: Instant,
        line: usize,
        open: &mut SuperFrame<P::Buf>,
    ) -> Option<Departure<super::plain::PlainPacket<P::Buf>>> {
        let Self {
            lines, pool, inner, ..
        } = self;
        let l = lines.get_mut(line)?;
        let departure = open.buf.append_with(inner, |out| {
            let start = out.len();
            out.resize(start + LINK_HEADER, 0);
            let departure = l.line.poll(now, &mut l.peers, pool, out);
            match departure {
                Some(Departure::Link(..)) => out.resize(out.len() + TAG, 0),
                _ => out.truncate(start),
            }
            departure
        });
        let Some(departure) = departure else {
            // The port's buffer is smaller than its MTU.
            self.counters.count(Stage::Seal, DropReason::NoRoom);
            return None;
        };
        if departure.is_some() {
            l.last_sent = now;
        }
        departure
    }

    /// Puts UDP and IP around the frame's packets and sends them.
    fn send_frame_of(&mut self, now: Instant, line: usize, frame: SuperFrame<P::Buf>) {
        let Some(l) = self.lines.get(line) else {
            return;
        };
        let (port, listen) = (l.port, l.listen);
        let peer = l.peers.get(frame.place);
        let to: Option<SocketAddr> = peer.and_then(|p| p.path.address());
        if frame.packets == 0 {
            if let Some(p) = self.ports.get_mut(usize::from(port.0)) {
                p.port.recycle(frame.buf);
            }
            return;
        }
        if let Some(peer) = peer {
            self.counters.at_link(peer.id.0);
        }
        let Some(to) = to else {
            self.counters.count(Stage::Seal, DropReason::NoSession);
            return;
        };
        let gso = (frame.packets > 1).then(|| u16::try_from(frame.size).unwrap_or(u16::MAX));
        self.send_outer_cut(now, port, listen, to, frame.class, frame.buf, gso);
    }
}
