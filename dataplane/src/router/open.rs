//! Open: what came over a link is authenticated, decrypted and taken apart.

use std::net::SocketAddr;

use mef_crypto::{Header, PacketType, HEADER_LEN, TAG_LEN};
use mef_io::Port;
use mef_packet::wire::ecn::Ecn;
use mef_packet::{Buffer, Gso, Instant, Packet};
use mef_protocol::link::{PacketError, FRONT};
use mef_protocol::recv_stream::StreamError;

use super::pipeline::{dropped, Step, Stop};
use super::Router;
use crate::config::PeerId;
use crate::drops::{DropReason, Stage};
use crate::outer;

impl<P: Port> Router<P> {
    /// Takes a UDP datagram of a link, or a super-frame of several, whose payload begins at `at`. The
    /// peer, where what is left in the buffer of `packet` is a datagram of its hosts.
    pub(super) fn open(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        packet: &mut Packet<P::Buf>,
        at: usize,
    ) -> Step<Option<PeerId>> {
        self.outer = Ecn::of(packet.buf.bytes());
        let gso = packet.meta.gso == Gso::Udp && packet.meta.gso_size > 0;
        let Some(payload) = packet.buf.bytes_mut().get_mut(at..) else {
            return dropped(Stage::Open, DropReason::Truncated);
        };
        let size = if gso {
            usize::from(packet.meta.gso_size)
        } else {
            payload.len().max(1)
        };
        if payload.len() <= size {
            let arrived = self.open_one(now, line, from, payload, true)?;
            if arrived.is_some() {
                let end = packet.buf.len().saturating_sub(TAG_LEN);
                packet.buf.truncate(end);
                if packet.buf.trim_front(at + HEADER_LEN + FRONT).is_none() {
                    return dropped(Stage::Open, DropReason::Truncated);
                }
            }
            return Ok(arrived);
        }
        for datagram in payload.chunks_mut(size) {
            let step = self.open_one(now, line, from, datagram, false);
            if let Err(Stop::Drop(stage, reason)) = step {
                self.counters.count(stage, reason);
            }
        }
        Ok(None)
    }

    /// One packet of a link. Where it is the only one of its buffer, what is a datagram may be taken
    /// from where it lies, behind the headers of packet and frame.
    #[inline]
    fn open_one(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        datagram: &mut [u8],
        only: bool,
    ) -> Step<Option<PeerId>> {
        let header = match Header::parse(datagram) {
            Ok(h) => h,
            Err(e) => return dropped(Stage::Open, mef_crypto::OpenError::from(e)),
        };
        let done = match header.kind {
            PacketType::Transport => {
                return self.open_transport(now, line, from, header, datagram, only)
            }
            PacketType::Initiation => self.open_initiation(now, line, from, datagram),
            PacketType::Response | PacketType::CookieReply => {
                self.open_answer(now, line, from, header, datagram)
            }
            PacketType::NoSession => self.open_hint(now, line, header),
        };
        done.map(|()| None)
    }

    fn open_transport(
        &mut self,
        now: Instant,
        line: usize,
        from: SocketAddr,
        header: Header,
        datagram: &mut [u8],
        only: bool,
    ) -> Step<Option<PeerId>> {
        let Some(l) = self.lines.get_mut(line) else {
            return Ok(None);
        };
        let found = l
            .peers
            .iter_mut()
            .find_map(|p| p.slot(header.receiver_index).map(|s| (p, s)));
        let Some((peer, slot)) = found else {
            let refused = self.unknown_session(now, line, from, header, datagram.len());
            return refused.map(|()| None);
        };
        let entropy = &mut self.seed.entropy;
        let token = || {
            let [a, b, c, d, e, f, g, h, ..] = entropy();
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        };
        self.counters.at_link(peer.id.0);
        let line_bytes = outer::line_bytes(datagram.len(), &from.ip());
        let (number, range) = match peer.open(now, slot, from, datagram, token) {
            Ok(o) => o,
            Err(e) => return dropped(Stage::Open, e),
        };
        let inner = datagram.get_mut(range).unwrap_or(&mut []);
        let outer = self.outer;
        if only
            && peer
                .link
                .take_directly(now, number, line_bytes, outer, inner)
        {
            return Ok(Some(peer.id));
        }
        match peer.link.handle_marked_packet(
            now,
            &mut self.pool,
            number,
            line_bytes,
            self.outer,
            inner,
        ) {
            Ok(()) => Ok(None),
            Err(e) => dropped(Stage::Open, reason(e)),
        }
    }
}

fn reason(e: PacketError) -> DropReason {
    match e {
        PacketError::Frame(mef_protocol::codec::FrameError::BadValue) => DropReason::FrameBadValue,
        PacketError::Frame(_) => DropReason::FrameTruncated,
        PacketError::Stream(StreamError::NoMemory) => DropReason::Memory,
        PacketError::Stream(StreamError::BeyondCredit) => DropReason::FrameBeyondCredit,
        PacketError::Stream(StreamError::BeyondEnd) | PacketError::AckOfUnsent => {
            DropReason::FrameBadValue
        }
        PacketError::BadFlow => DropReason::FlowTableFull,
        PacketError::BeforeHello => DropReason::NoSession,
    }
}
