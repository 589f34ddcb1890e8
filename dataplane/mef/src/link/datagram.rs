//! Whole IP packets over the link: a queue per flow, kept short by CoDel, and two
//! fragments for what exceeds one packet. ECN crosses as RFC 6040 says: the packet
//! around a datagram has its traffic class, and what happened to it outside is
//! combined into what the datagram had.
//!
//! ```text
//!   send_datagram -> queue of the flow -> its turn on the line -> DGRAM.., FRAG 0 | FRAG 1, DGRAM.., FRAG 0 | ..
//!   DGRAM, or both FRAGs within 100 ms + RTT/2 -> outer ECN into inner -> Event::Datagram
//! ```

use core::time::Duration;

use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::Instant;

use super::{DatagramError, Event, Link, SendKey};
use crate::aqm::{Limits, QueueStats};
use crate::classes::Class;
use crate::codec::{Builder, Frame, DATAGRAM_OVERHEAD, FRAGMENT_OVERHEAD, INNER_HEADER};

/// Largest datagram that a link takes, bytes: hosts keep the path of an Ethernet whatever the link's is.
pub const MAX_DATAGRAM: usize = 1500;
/// Most datagrams whose other half is awaited.
const MAX_REASSEMBLY: usize = 256;
/// What hosts add to the round trip of the link: their own networks, delayed acknowledgements.
const HOSTS_RTT: Duration = Duration::from_millis(50);
/// A flow whose datagrams leave at most this far apart may leave a rest for its next turn: far less
/// than receivers wait for it.
const SOON: Duration = Duration::from_millis(20);
/// Datagrams whose memory is kept for the next ones.
const MAX_BUFFERS: usize = 256;
/// Bytes of a datagram for which it is worth beginning it in a packet that has others.
const LEAST_PART: usize = 128;

/// Which flow a datagram is of, and what that flow is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramFlow {
    /// Equal for packets that must keep their order, and for as few others as can be.
    pub id: u32,
    /// Share of the line in thousandths of an ordinary flow's.
    pub weight: u32,
    pub class: Class,
}

/// Counters of datagrams since the link was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramStats {
    pub queues: QueueStats,
    /// Datagrams whose other half did not come in time, or was one too many to await.
    pub halves_expired: u64,
    /// Datagrams that were marked on the way though their transport would not see it (RFC 6040).
    pub mark_unseen: u64,
}

/// What one packet carries of a datagram.
#[derive(Debug)]
pub(super) enum Piece {
    Whole(Vec<u8>),
    Half { id: u32, index: u8, bytes: Vec<u8> },
}

/// A piece on its way out, with what the packet around it needs.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub flow: u32,
    pub piece: Piece,
    /// Of the datagram, as it leaves its queue.
    pub traffic_class: u8,
    pub waited: Duration,
}

#[derive(Debug)]
pub(super) struct Reassembly {
    at: Instant,
    /// What the packets around the halves had come to.
    outer: Ecn,
    parts: [Option<Vec<u8>>; 2],
}

impl Link {
    /// Bounds of the queues: about the round trip that the hosts see. Never more than a quarter of what may arrive.
    pub(super) fn datagram_limits(&self) -> Limits {
        let memory = usize::try_from(self.config.link_credit / 4).unwrap_or(usize::MAX);
        let rtt = if self.rtt.is_known() {
            self.rtt.smoothed()
        } else {
            Duration::from_millis(200)
        };
        Limits::new(self.rate_limit(), rtt + HOSTS_RTT, memory)
    }

    /// Whether a datagram of `size` bytes of `flow` would be taken now; to be asked before it is put together.
    ///
    /// # Errors
    /// Why it would not.
    pub fn admits_datagram(
        &mut self,
        now: Instant,
        flow: u32,
        size: usize,
    ) -> Result<(), DatagramError> {
        if size > self.datagram_limit() {
            return Err(DatagramError::TooBig);
        }
        if !self.datagrams.admits(now, flow, size) {
            return Err(DatagramError::QueueFull);
        }
        Ok(())
    }

    /// Largest datagram that goes in one piece, bytes, once it is known what the path carries.
    pub fn whole_datagram(&self) -> Option<usize> {
        let known = self.pmtu.current() > crate::pmtu::BASE || self.pmtu.is_complete();
        let whole = self
            .inner_limit()
            .saturating_sub(INNER_HEADER + DATAGRAM_OVERHEAD);
        known.then_some(whole.min(MAX_DATAGRAM))
    }

    /// Largest datagram that the link takes now, bytes.
    pub fn datagram_limit(&self) -> usize {
        let half = self
            .inner_limit()
            .saturating_sub(INNER_HEADER + FRAGMENT_OVERHEAD);
        MAX_DATAGRAM.min(2 * half)
    }

    /// Queues an IP packet of a datagram flow.
    ///
    /// # Errors
    /// [`DatagramError`], and the packet is to be dropped.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        flow: DatagramFlow,
        packet: Vec<u8>,
    ) -> Result<(), DatagramError> {
        self.admits_datagram(now, flow.id, packet.len())?;
        self.send_admitted(now, flow, packet)
    }

    /// As [`send_datagram`](Self::send_datagram), where [`admits_datagram`](Self::admits_datagram) was asked just now.
    ///
    /// # Errors
    /// `QueueFull` where other flows have less in a memory that is full.
    pub fn send_admitted(
        &mut self,
        now: Instant,
        flow: DatagramFlow,
        packet: Vec<u8>,
    ) -> Result<(), DatagramError> {
        self.datagrams
            .push_admitted(now, flow.id, flow.weight, flow.class, packet)
            .map_err(|_| DatagramError::QueueFull)?;
        self.activated
            .push((SendKey::Datagram(flow.id), flow.weight));
        Ok(())
    }

    /// Whether it is worth asking `key` for another packet.
    pub fn has_more(&self, key: SendKey) -> bool {
        match key {
            SendKey::Stream(_) => true,
            SendKey::Datagram(flow) => {
                self.datagrams.has(flow)
                    || self.half.is_some()
                    || (!self.rests.is_empty() && self.rests.contains_key(&flow))
            }
        }
    }

    /// An empty buffer for a datagram, with the memory of an earlier one where there is one.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// Takes the memory of a datagram back.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.buffers.len() < MAX_BUFFERS {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    /// What the flow sends next: the rest of what it sent last, or its next datagram.
    fn take_piece(&mut self, now: Instant, flow: u32) -> Option<Outgoing> {
        if let Some(half) = self.half.take_if(|h| h.flow == flow) {
            return Some(half);
        }
        if !self.rests.is_empty() {
            if let Some(rest) = self.rests.remove(&flow) {
                return Some(rest);
            }
        }
        let (packet, waited) = self.datagrams.pop(now, flow)?;
        Some(Outgoing {
            flow,
            traffic_class: ecn::traffic_class(&packet).unwrap_or(0),
            piece: Piece::Whole(packet),
            waited,
        })
    }

    /// Fills a packet with what one flow has waiting, as far as it has the traffic class of the first.
    ///
    /// A datagram that exceeds a packet goes in two. Where the flow's turns come so often that the
    /// rest will not be late, that shares a packet with the next datagram: two halves each would
    /// cost a line of full-sized datagrams a tenth. Else the halves go back to back.
    pub(super) fn fill_datagrams(
        &mut self,
        now: Instant,
        flow: u32,
        b: &mut Builder<'_>,
    ) -> Option<(u8, Duration)> {
        let limit = self.inner_limit();
        let whole = limit.saturating_sub(INNER_HEADER + DATAGRAM_OVERHEAD);
        let part = limit.saturating_sub(INNER_HEADER + FRAGMENT_OVERHEAD);
        let mut first: Option<(u8, Duration)> = None;
        while let Some(mut next) = self.take_piece(now, flow) {
            let alone = first.is_none();
            if first.is_some_and(|(class, _)| class != next.traffic_class) {
                self.rests.insert(flow, next);
                break;
            }
            let room = b.room();
            match &mut next.piece {
                Piece::Whole(packet) if DATAGRAM_OVERHEAD + packet.len() <= room => {
                    b.push(&Frame::Datagram { flow, packet });
                }
                Piece::Whole(packet) => {
                    let splits = packet.len() > whole
                        && (alone || room >= FRAGMENT_OVERHEAD + LEAST_PART)
                        && packet.len() <= 2 * part;
                    if !splits {
                        if alone {
                            // The path shrank while it waited.
                            continue;
                        }
                        self.rests.insert(flow, next);
                        break;
                    }
                    let behind = self.datagrams.packets(flow);
                    let often = behind > 0 && next.waited <= SOON * u32::from(behind);
                    let cut = if often || !alone {
                        (room - FRAGMENT_OVERHEAD).min(packet.len() - 1)
                    } else {
                        packet.len().div_ceil(2)
                    };
                    // What is left has to fit into one packet.
                    if packet.len() - cut > part {
                        self.rests.insert(flow, next);
                        break;
                    }
                    let id = self.next_fragment;
                    self.next_fragment = id.wrapping_add(1);
                    let bytes = packet.split_off(cut);
                    b.push(&Frame::Fragment {
                        id,
                        index: 0,
                        count: 2,
                        bytes: packet,
                    });
                    let rest = Outgoing {
                        flow,
                        piece: Piece::Half {
                            id,
                            index: 1,
                            bytes,
                        },
                        traffic_class: next.traffic_class,
                        waited: next.waited,
                    };
                    first.get_or_insert((next.traffic_class, next.waited));
                    if often {
                        self.rests.insert(flow, rest);
                    } else {
                        self.half = Some(rest);
                    }
                    break;
                }
                Piece::Half { id, index, bytes } => {
                    if FRAGMENT_OVERHEAD + bytes.len() > room {
                        // The path shrank between the two.
                        continue;
                    }
                    b.push(&Frame::Fragment {
                        id: *id,
                        index: *index,
                        count: 2,
                        bytes,
                    });
                }
            }
            first.get_or_insert((next.traffic_class, next.waited));
            let (Piece::Whole(sent) | Piece::Half { bytes: sent, .. }) = next.piece;
            self.recycle(sent);
        }
        first
    }

    /// Hands a datagram on, with what its ECN bits become behind the tunnel.
    pub(super) fn arrive(&mut self, mut packet: Vec<u8>, outer: Ecn) {
        match Ecn::of(&packet).leaving(outer) {
            Some(ecn) => {
                // Of what is no IP packet nothing is changed: who forwards it refuses it.
                let _ = ecn::set(&mut packet, ecn);
                self.events.push_back(Event::Datagram(packet));
            }
            None => self.stats.datagrams.mark_unseen += 1,
        }
    }

    pub(super) fn join(&mut self, now: Instant, id: u32, index: u8, bytes: &[u8], outer: Ecn) {
        if index > 1 || bytes.len() > MAX_DATAGRAM {
            return;
        }
        if !self.reassembly.contains_key(&id) && self.reassembly.len() >= MAX_REASSEMBLY {
            self.expire_fragments(now);
            if self.reassembly.len() >= MAX_REASSEMBLY {
                self.stats.datagrams.halves_expired += 1;
                return;
            }
        }
        let r = self.reassembly.entry(id).or_insert_with(|| Reassembly {
            at: now,
            outer,
            parts: [None, None],
        });
        if outer == Ecn::Ce {
            r.outer = Ecn::Ce;
        }
        if let Some(p) = r.parts.get_mut(usize::from(index)) {
            *p = Some(bytes.to_vec());
        }
        if r.parts.iter().all(Option::is_some) {
            if let Some(r) = self.reassembly.remove(&id) {
                let whole = r.parts.into_iter().flatten().flatten().collect();
                self.arrive(whole, r.outer);
            }
        }
    }

    pub(super) fn expire_fragments(&mut self, now: Instant) {
        let limit = Duration::from_millis(100) + self.rtt.smoothed() / 2;
        let before = self.reassembly.len();
        self.reassembly.retain(|_, r| now.since(r.at) < limit);
        self.stats.datagrams.halves_expired += (before - self.reassembly.len()) as u64;
    }

    /// Counters of datagrams.
    pub fn datagram_stats(&self) -> DatagramStats {
        DatagramStats {
            queues: self.datagrams.stats(),
            ..self.stats.datagrams
        }
    }

    /// Bytes of datagrams that wait for their turn.
    pub fn datagrams_waiting(&self) -> usize {
        self.datagrams.bytes()
    }
}
