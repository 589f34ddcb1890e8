//! Fragmented TCP, put together again before its flow: a split connection is
//! answered here, so here is where its segments end (RFC 791 section 3.2, RFC
//! 8200 section 4.5). Other protocols cross in their fragments.
//!
//! ```text
//!  fragment ─▶ [ by source, destination, identification ] ── all there ──────▶ whole packet
//!                 ├─ overlaps another (RFC 5722), contradicts it ─▶ dropped, and all of its packet's that still come
//!                 ├─ 30 s after the first of its packet ──────────▶ dropped
//!                 └─ oldest of too many, or of too many bytes ────▶ dropped
//! ```
//!
//! What is kept has bounds, per source and in all: who sends only halves takes no
//! more than that, and from others only what comes in fragments.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use mef_packet::wire::ecn::{self, Ecn};
use mef_packet::wire::{ip, ipv4, ipv6};
use mef_packet::Instant;

/// How long the fragments of a packet are waited for; hosts wait as long (RFC 791: 15 s; Linux: 30 s).
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Most packets that are waited for, and most of them from one source.
pub const MAX_PACKETS: usize = 256;
pub const MAX_OF_SOURCE: usize = 64;
/// Most bytes of fragments that are kept.
pub const MAX_BYTES: usize = 2 << 20;
/// Most fragments of one packet: as many as 64 KiB in packets of 576 bytes have.
pub const MAX_FRAGMENTS: usize = 120;
/// Largest IP packet.
const MAX_PACKET: usize = 65_535;

/// Why a fragment was not kept. What was kept of its packet is gone, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a fragment of an impossible length or place, or one of too many")]
    Bad,
    #[error("fragments that overlap or contradict each other (RFC 5722)")]
    Overlap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    ident: u32,
}

/// What a fragment says of its place in the packet.
struct Piece<'a> {
    key: Key,
    /// Place of `bytes` in the fragmentable part.
    start: usize,
    bytes: &'a [u8],
    more: bool,
    /// What stands in front of the fragmentable part, ready for the whole packet but for its lengths.
    header: Vec<u8>,
}

#[derive(Debug)]
struct Pending {
    since: Instant,
    /// The first fragment's; empty until it came.
    header: Vec<u8>,
    /// By their place.
    pieces: BTreeMap<usize, Vec<u8>>,
    bytes: usize,
    /// Length of the fragmentable part, once its last fragment came.
    total: Option<usize>,
    /// One was marked "congestion experienced"; one was not ECN-capable.
    marked: bool,
    not_capable: bool,
    /// Refused: what still comes of it is refused, too.
    refused: bool,
}

/// The fragments that wait for others.
#[derive(Debug, Default)]
pub struct Reassembly {
    pending: HashMap<Key, Pending>,
    /// All, oldest first; entries of packets that are gone are skipped.
    order: VecDeque<(Instant, Key)>,
    bytes: usize,
    expired: u64,
    displaced: u64,
}

/// Reads an IPv4 fragment.
fn piece4(packet: &[u8]) -> Option<Piece<'_>> {
    let v = ipv4::View::parse_unverified(packet).ok()?;
    let mut header = packet.get(..v.header_len())?.to_vec();
    // No longer one of several; what it says of being cut stays.
    let dont_fragment = u8::from(v.dont_fragment()) << 6;
    header.get_mut(6..8)?.copy_from_slice(&[dont_fragment, 0]);
    Some(Piece {
        key: Key {
            src: v.src().into(),
            dst: v.dst().into(),
            ident: v.ident().into(),
        },
        start: v.fragment_offset().into(),
        bytes: v.payload(),
        more: v.more_fragments(),
        header,
    })
}

/// Reads an IPv6 fragment; its header is taken out.
fn piece6(packet: &[u8]) -> Option<Piece<'_>> {
    let v = ipv6::View::parse(packet).ok()?;
    let fragment = v.fragment()?;
    let (mut names, mut at) = (6, ipv6::HEADER_LEN);
    for _ in 0..ipv6::MAX_EXTENSIONS {
        let header = packet.get(at..)?;
        match *packet.get(names)? {
            ipv6::FRAGMENT => {
                let mut header = packet.get(..at)?.to_vec();
                *header.get_mut(names)? = *packet.get(at)?;
                return Some(Piece {
                    key: Key {
                        src: v.src().into(),
                        dst: v.dst().into(),
                        ident: fragment.ident,
                    },
                    start: fragment.offset.into(),
                    bytes: packet.get(at + 8..v.total_len())?,
                    more: fragment.more,
                    header,
                });
            }
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS => {
                names = at;
                at += (usize::from(*header.get(1)?) + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}

impl Pending {
    fn new(since: Instant) -> Self {
        Self {
            since,
            header: Vec::new(),
            pieces: BTreeMap::new(),
            bytes: 0,
            total: None,
            marked: false,
            not_capable: false,
            refused: false,
        }
    }

    /// Takes in a fragment; true where it was there already.
    fn add(&mut self, piece: &Piece<'_>, ecn: Ecn) -> Result<bool, Refused> {
        let (start, end) = (piece.start, piece.start + piece.bytes.len());
        let empty = piece.bytes.is_empty();
        let uneven = piece.more && piece.bytes.len() % 8 != 0;
        if empty || uneven || end + piece.header.len() > MAX_PACKET {
            return Err(Refused::Bad);
        }
        if self
            .pieces
            .get(&start)
            .is_some_and(|p| p[..] == *piece.bytes)
        {
            return Ok(true);
        }
        let before = self.pieces.range(..end).next_back();
        let overlaps = before.is_some_and(|(at, p)| at + p.len() > start);
        let known = self.total.is_some_and(|t| end > t || !piece.more);
        let last = self.pieces.last_key_value();
        let beyond = !piece.more && last.is_some_and(|(at, p)| at + p.len() > end);
        if overlaps || known || beyond {
            return Err(Refused::Overlap);
        }
        if self.pieces.len() >= MAX_FRAGMENTS {
            return Err(Refused::Bad);
        }
        if !piece.more {
            self.total = Some(end);
        }
        if start == 0 {
            self.header.clone_from(&piece.header);
        }
        self.marked |= ecn == Ecn::Ce;
        self.not_capable |= ecn == Ecn::NotEct;
        self.bytes += piece.bytes.len();
        self.pieces.insert(start, piece.bytes.to_vec());
        Ok(false)
    }

    fn is_whole(&self) -> bool {
        !self.refused && !self.header.is_empty() && self.total == Some(self.bytes)
    }

    /// The packet; all of it is there.
    fn join(self) -> Result<Vec<u8>, Refused> {
        // RFC 3168 section 5.3: a mark that not every fragment's transport would see is a drop.
        if self.marked && self.not_capable {
            return Err(Refused::Bad);
        }
        let mut packet = self.header;
        for bytes in self.pieces.values() {
            packet.extend_from_slice(bytes);
        }
        if self.marked {
            ecn::set(&mut packet, Ecn::Ce).map_err(|_| Refused::Bad)?;
        }
        let stated = match ip::version(&packet) {
            6 => packet.len().saturating_sub(ipv6::HEADER_LEN),
            _ => packet.len(),
        };
        let stated = u16::try_from(stated)
            .map_err(|_| Refused::Bad)?
            .to_be_bytes();
        let at = if ip::version(&packet) == 6 { 4 } else { 2 };
        if let Some(field) = packet.get_mut(at..at + 2) {
            field.copy_from_slice(&stated);
        }
        if ip::version(&packet) != 6 {
            ipv4::fill_checksum(&mut packet).map_err(|_| Refused::Bad)?;
        }
        Ok(packet)
    }
}

impl Reassembly {
    /// Takes a fragment, an IP packet whose headers were checked; returns the packet that it made
    /// whole, if it did.
    ///
    /// # Errors
    /// [`Refused`]: the fragment was dropped, with what was kept of its packet.
    pub fn take(&mut self, now: Instant, packet: &[u8]) -> Result<Option<Vec<u8>>, Refused> {
        let piece = match ip::version(packet) {
            6 => piece6(packet),
            _ => piece4(packet),
        }
        .ok_or(Refused::Bad)?;
        self.expire(now);
        let key = piece.key;
        if !self.pending.contains_key(&key) {
            self.make_room(key.src);
            self.pending.insert(key, Pending::new(now));
            self.order.push_back((now, key));
            if self.order.len() > 4 * MAX_PACKETS {
                let pending = &self.pending;
                self.order
                    .retain(|(at, k)| pending.get(k).is_some_and(|p| p.since == *at));
            }
        }
        let Some(pending) = self.pending.get_mut(&key) else {
            return Err(Refused::Bad);
        };
        if pending.refused {
            return Err(Refused::Overlap);
        }
        match pending.add(&piece, Ecn::of(packet)) {
            Ok(true) => Ok(None),
            Ok(false) => {
                self.bytes += piece.bytes.len();
                if pending.is_whole() {
                    return self.forget(&key).map(Pending::join).transpose();
                }
                while self.bytes > MAX_BYTES && self.displace(None) {}
                Ok(None)
            }
            Err(refused) => {
                // Kept without its content, so that the rest of it is refused, too.
                self.bytes -= pending.bytes;
                let since = pending.since;
                *pending = Pending::new(since);
                pending.refused = true;
                Err(refused)
            }
        }
    }

    fn forget(&mut self, key: &Key) -> Option<Pending> {
        let gone = self.pending.remove(key)?;
        self.bytes -= gone.bytes;
        Some(gone)
    }

    /// One more packet is to have a place.
    fn make_room(&mut self, src: IpAddr) {
        let of_source = self.pending.keys().filter(|k| k.src == src).count();
        if of_source >= MAX_OF_SOURCE {
            self.displace(Some(src));
        } else if self.pending.len() >= MAX_PACKETS {
            self.displace(None);
        }
    }

    /// The oldest packet, or the oldest of a source, gives way. False where there is none.
    fn displace(&mut self, src: Option<IpAddr>) -> bool {
        let oldest = self.order.iter().position(|(at, k)| {
            src.is_none_or(|s| s == k.src) && self.pending.get(k).is_some_and(|p| p.since == *at)
        });
        let Some((_, key)) = oldest.and_then(|i| self.order.remove(i)) else {
            return false;
        };
        let gone = self.forget(&key);
        self.displaced += gone.map_or(0, |p| p.pieces.len() as u64);
        true
    }

    /// Forgets what was waited for in vain.
    pub fn expire(&mut self, now: Instant) {
        while let Some(&(at, key)) = self.order.front() {
            let gone = self.pending.get(&key).is_none_or(|p| p.since != at);
            if !gone && now.since(at) < PATIENCE {
                return;
            }
            self.order.pop_front();
            if !gone {
                let late = self.forget(&key);
                self.expired += late.map_or(0, |p| p.pieces.len() as u64);
            }
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.order.front().map(|(at, _)| *at + PATIENCE)
    }

    /// Fragments dropped since this was last asked: those that waited in vain, and those that gave
    /// way to others.
    pub fn take_dropped(&mut self) -> (u64, u64) {
        let dropped = (self.expired, self.displaced);
        (self.expired, self.displaced) = (0, 0);
        dropped
    }

    /// Bytes of fragments that are kept.
    pub fn memory(&self) -> usize {
        self.bytes
    }

    /// Packets that are waited for.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests;
