//! Segments as they stand in packets: what is read from those of the host, and
//! how ours are written. IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::SegmentError;

pub(super) const TCP_HEADER: usize = 20;
pub(super) const IPV4_HEADER: usize = 20;
/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
const IPV6_HEADER: usize = 40;
const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = 6;
const PROTO_ICMPV6: u8 = 58;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

const OPT_END: u8 = 0;
const OPT_NOP: u8 = 1;
const OPT_MSS: u8 = 2;
const OPT_WINDOW_SCALE: u8 = 3;
const OPT_SACK_PERMITTED: u8 = 4;
const OPT_SACK: u8 = 5;
const OPT_TIMESTAMPS: u8 = 8;
/// Bytes that time-stamps take in every segment, padding included.
pub(super) const TIMESTAMPS_LEN: u16 = 12;
/// Most SACK blocks in a segment without other options.
pub(super) const MAX_BLOCKS: usize = 4;

fn u8_at(b: &[u8], at: usize) -> Option<u8> {
    b.get(at).copied()
}
fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
fn v4_at(b: &[u8], at: usize) -> Option<IpAddr> {
    u32_at(b, at).map(|a| IpAddr::V4(Ipv4Addr::from(a)))
}
fn v6_at(b: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = b.get(at..at + 16)?.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

/// `a - b` in sequence space (RFC 9293 §3.4): negative if `a` is before `b`.
pub(super) fn seq_diff(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// Bytes of the IP header that [`Outgoing`] writes towards `address`.
pub(super) fn ip_header_len(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => IPV4_HEADER,
        IpAddr::V6(_) => IPV6_HEADER,
    }
}

/// What an IP packet carries.
#[derive(Debug)]
pub(super) enum Packet<'a> {
    Tcp(Segment<'a>),
    Icmp(IcmpError),
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

/// An ICMP error about a TCP segment of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpError {
    /// Who sent the segment that did not arrive, and to whom.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub kind: IcmpKind,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum IcmpKind {
    /// Destination unreachable with this code (RFC 792, RFC 4443 §3.1).
    Unreachable { code: u8 },
    /// Too big for a next hop with this MTU, 0 where the router does not say (RFC 1191, RFC 8201).
    TooBig { mtu: u32 },
}

/// Where what follows the IP header begins, which protocol it is, and where it ends.
struct Layout {
    protocol: u8,
    body: usize,
    end: usize,
}

fn layout(p: &[u8], quoted: bool) -> Result<Layout, SegmentError> {
    let found = match u8_at(p, 0).ok_or(SegmentError::Malformed)? >> 4 {
        4 => layout_v4(p)?,
        6 => layout_v6(p)?,
        _ => return Err(SegmentError::Malformed),
    };
    // A quoted packet is cut short.
    if !quoted && (found.end > p.len() || found.body > found.end) {
        return Err(SegmentError::Malformed);
    }
    Ok(found)
}

fn layout_v4(p: &[u8]) -> Result<Layout, SegmentError> {
    let bad = SegmentError::Malformed;
    let body = usize::from(u8_at(p, 0).ok_or(bad)? & 0x0f) * 4;
    if body < IPV4_HEADER {
        return Err(bad);
    }
    // More fragments, or an offset.
    if u16_at(p, 6).ok_or(bad)? & 0x3fff != 0 {
        return Err(SegmentError::Fragment);
    }
    Ok(Layout {
        protocol: u8_at(p, 9).ok_or(bad)?,
        body,
        end: usize::from(u16_at(p, 2).ok_or(bad)?),
    })
}

fn layout_v6(p: &[u8]) -> Result<Layout, SegmentError> {
    let bad = SegmentError::Malformed;
    let end = IPV6_HEADER + usize::from(u16_at(p, 4).ok_or(bad)?);
    let mut protocol = u8_at(p, 6).ok_or(bad)?;
    let mut body = IPV6_HEADER;
    // Hop-by-hop, routing, destination options, fragment; nobody honest chains more than these.
    for _ in 0..8 {
        let len = match protocol {
            0 | 43 | 60 => (usize::from(u8_at(p, body + 1).ok_or(bad)?) + 1) * 8,
            44 if u16_at(p, body + 2).ok_or(bad)? & !6 != 0 => return Err(SegmentError::Fragment),
            44 => 8,
            _ => {
                return Ok(Layout {
                    protocol,
                    body,
                    end,
                })
            }
        };
        protocol = u8_at(p, body).ok_or(bad)?;
        body += len;
    }
    Err(bad)
}

fn addresses(p: &[u8]) -> Option<(IpAddr, IpAddr)> {
    if u8_at(p, 0)? >> 4 == 4 {
        Some((v4_at(p, 12)?, v4_at(p, 16)?))
    } else {
        Some((v6_at(p, 8)?, v6_at(p, 24)?))
    }
}

/// Reads `p`; checksums are the port's business.
pub(super) fn parse(p: &[u8]) -> Result<Packet<'_>, SegmentError> {
    let found = layout(p, false)?;
    let body = p.get(found.body..found.end).unwrap_or(&[]);
    match (found.protocol, u8_at(p, 0).unwrap_or(0) >> 4) {
        (PROTO_TCP, _) => tcp(p, body).map(Packet::Tcp),
        (PROTO_ICMP, 4) | (PROTO_ICMPV6, 6) => icmp(found.protocol, body).map(Packet::Icmp),
        _ => None,
    }
    .ok_or(SegmentError::Malformed)
}

/// The TCP segment in `p`, if it is one.
pub(super) fn parse_tcp(p: &[u8]) -> Option<Segment<'_>> {
    match parse(p) {
        Ok(Packet::Tcp(s)) => Some(s),
        _ => None,
    }
}

/// The flow that an ICMP error is about: (`local`, `remote`) as in [`Role`](super::Role).
/// `None` for any other packet.
pub fn icmp_flow(ip_packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    match parse(ip_packet) {
        Ok(Packet::Icmp(e)) => Some((e.src, e.dst)),
        _ => None,
    }
}

fn tcp<'a>(p: &'a [u8], body: &'a [u8]) -> Option<Segment<'a>> {
    let (src, dst) = addresses(p)?;
    let header_len = usize::from(u8_at(body, 12)? >> 4) * 4;
    Some(Segment {
        src: SocketAddr::new(src, u16_at(body, 0)?),
        dst: SocketAddr::new(dst, u16_at(body, 2)?),
        seq: u32_at(body, 4)?,
        ack: u32_at(body, 8)?,
        flags: u8_at(body, 13)?,
        window: u16_at(body, 14)?,
        options: body.get(TCP_HEADER..header_len)?,
        payload: body.get(header_len..)?,
    })
}

fn icmp(protocol: u8, body: &[u8]) -> Option<IcmpError> {
    let (kind, code) = (u8_at(body, 0)?, u8_at(body, 1)?);
    let kind = match (protocol, kind, code) {
        (PROTO_ICMP, 3, 4) => IcmpKind::TooBig {
            mtu: u32::from(u16_at(body, 6)?),
        },
        (PROTO_ICMP, 3, code) | (PROTO_ICMPV6, 1, code) => IcmpKind::Unreachable { code },
        (PROTO_ICMPV6, 2, _) => IcmpKind::TooBig {
            mtu: u32_at(body, 4)?,
        },
        _ => return None,
    };
    let quoted = body.get(8..)?;
    let found = layout(quoted, true).ok()?;
    if found.protocol != PROTO_TCP {
        return None;
    }
    let (src, dst) = addresses(quoted)?;
    Some(IcmpError {
        src: SocketAddr::new(src, u16_at(quoted, found.body)?),
        dst: SocketAddr::new(dst, u16_at(quoted, found.body + 2)?),
        seq: u32_at(quoted, found.body + 4)?,
        kind,
    })
}

/// Options that a SYN negotiates with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SynOptions {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<(u32, u32)>,
}

/// Calls `f` with kind and value of every option before the first malformed one.
fn walk_options<'a>(options: &'a [u8], mut f: impl FnMut(u8, &'a [u8])) {
    let mut at = 0;
    while let Some(kind) = u8_at(options, at) {
        match kind {
            OPT_END => return,
            OPT_NOP => at += 1,
            _ => {
                let Some(len) = u8_at(options, at + 1).map(usize::from) else {
                    return;
                };
                let Some(value) = options.get(at + 2..at + len) else {
                    return;
                };
                f(kind, value);
                at += len;
            }
        }
    }
}

impl Segment<'_> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Length in sequence space, SYN and FIN included.
    pub fn seq_len(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }

    /// What a SYN offers. Multipath TCP, fast open and unknown options count for nothing.
    pub fn syn_options(&self) -> SynOptions {
        let mut found = SynOptions::default();
        walk_options(self.options, |kind, value| match (kind, value) {
            (OPT_MSS, &[a, b]) => found.mss = Some(u16::from_be_bytes([a, b])),
            // RFC 7323 §2.3: a larger shift counts as 14.
            (OPT_WINDOW_SCALE, &[s]) => found.window_scale = Some(s.min(14)),
            (OPT_SACK_PERMITTED, &[]) => found.sack_permitted = true,
            (OPT_TIMESTAMPS, v) => found.timestamps = timestamps(v),
            _ => {}
        });
        found
    }

    /// TSval and TSecr (RFC 7323 §3.2), and the SACK blocks (RFC 2018 §3).
    pub fn data_options(&self) -> DataOptions {
        // What nearly every segment has: padding and time-stamps.
        if let (Some([OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10]), 12) =
            (self.options.get(..4), self.options.len())
        {
            return DataOptions {
                timestamps: timestamps(self.options.get(4..).unwrap_or(&[])),
                ..DataOptions::default()
            };
        }
        let mut found = DataOptions::default();
        walk_options(self.options, |kind, value| match kind {
            OPT_TIMESTAMPS => found.timestamps = timestamps(value),
            OPT_SACK => {
                for block in value.chunks_exact(8) {
                    if let (Some(a), Some(b), Some(slot)) = (
                        u32_at(block, 0),
                        u32_at(block, 4),
                        found.blocks.get_mut(found.block_count),
                    ) {
                        *slot = (a, b);
                        found.block_count += 1;
                    }
                }
            }
            _ => {}
        });
        found
    }
}

fn timestamps(value: &[u8]) -> Option<(u32, u32)> {
    (value.len() == 8)
        .then(|| Some((u32_at(value, 0)?, u32_at(value, 4)?)))
        .flatten()
}

/// Options of a segment other than a SYN.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DataOptions {
    pub timestamps: Option<(u32, u32)>,
    blocks: [(u32, u32); MAX_BLOCKS],
    block_count: usize,
}

impl DataOptions {
    pub fn blocks(&self) -> &[(u32, u32)] {
        self.blocks.get(..self.block_count).unwrap_or(&[])
    }
}

/// A segment of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub syn: Option<SynOptions>,
    pub timestamps: Option<(u32, u32)>,
    pub sack: &'a [(u32, u32)],
    /// Bytes that the caller appends.
    pub payload_len: usize,
}

impl Outgoing<'_> {
    /// A segment that says no more than its numbers.
    pub fn new(src: SocketAddr, dst: SocketAddr, seq: u32, ack: u32, flags: u8) -> Self {
        Self {
            src,
            dst,
            seq,
            ack,
            flags,
            window: 0,
            syn: None,
            timestamps: None,
            sack: &[],
            payload_len: 0,
        }
    }

    pub fn to_packet(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(80);
        self.emit(&mut out);
        out
    }

    fn put_options(&self, out: &mut Vec<u8>) {
        if let Some(syn) = &self.syn {
            if let Some(mss) = syn.mss {
                out.extend([OPT_MSS, 4]);
                out.extend(mss.to_be_bytes());
            }
            if let Some(shift) = syn.window_scale {
                out.extend([OPT_NOP, OPT_WINDOW_SCALE, 3, shift]);
            }
            if syn.sack_permitted {
                out.extend([OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2]);
            }
        }
        if let Some((val, ecr)) = self.timestamps {
            out.extend([OPT_NOP, OPT_NOP, OPT_TIMESTAMPS, 10]);
            out.extend(val.to_be_bytes());
            out.extend(ecr.to_be_bytes());
        }
        if !self.sack.is_empty() {
            out.extend([OPT_NOP, OPT_NOP, OPT_SACK, (2 + 8 * self.sack.len()) as u8]);
            for (a, b) in self.sack {
                out.extend(a.to_be_bytes());
                out.extend(b.to_be_bytes());
            }
        }
    }

    /// Appends the packet's headers to `out`: hop limit 64, DF, identification 0 (RFC 6864), the
    /// IP header complete, the pseudo-header sum (RFC 9293 §3.1) in the checksum field.
    pub fn emit(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let ip = start + ip_header_len(self.dst.ip());
        out.resize(ip, 0);
        out.extend(self.src.port().to_be_bytes());
        out.extend(self.dst.port().to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        out.extend([0, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend([0, 0, 0, 0]);
        self.put_options(out);
        let words = ((out.len() - ip) / 4) as u8;
        put(out, ip + 12, &[words << 4]);
        let total = out.len() - start + self.payload_len;
        let tcp_len = (out.len() - ip + self.payload_len) as u32;
        let mut sum = u32::from(PROTO_TCP) + (tcp_len & 0xffff) + (tcp_len >> 16);
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut h = [0u8; IPV4_HEADER];
                put(&mut h, 0, &[0x45, 0]);
                put(&mut h, 2, &(total as u16).to_be_bytes());
                put(&mut h, 6, &[0x40, 0, 64, PROTO_TCP]);
                put(&mut h, 12, &src.octets());
                put(&mut h, 16, &dst.octets());
                let checksum = !fold(sum16(&h));
                put(&mut h, 10, &checksum.to_be_bytes());
                sum += sum16(&src.octets()) + sum16(&dst.octets());
                put(out, start, &h);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut h = [0u8; IPV6_HEADER];
                put(&mut h, 0, &[0x60]);
                put(&mut h, 4, &(tcp_len as u16).to_be_bytes());
                put(&mut h, 6, &[PROTO_TCP, 64]);
                put(&mut h, 8, &src.octets());
                put(&mut h, 24, &dst.octets());
                sum += sum16(&src.octets()) + sum16(&dst.octets());
                put(out, start, &h);
            }
            // A connection has one family: `Endpoint::new` sees to it.
            _ => {}
        }
        put(out, ip + TCP_CHECKSUM, &fold(sum).to_be_bytes());
    }
}

fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(dst) = b.get_mut(at..at + bytes.len()) {
        dst.copy_from_slice(bytes);
    }
}

/// The sum of `bytes`, an even number of them, as 16-bit words, not folded (RFC 1071).
fn sum16(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .filter_map(|c| u16_at(c, 0))
        .map(u32::from)
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
