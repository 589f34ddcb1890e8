//! The few fields of an IPv4 packet that the host side looks at itself, and
//! the small packets that it makes itself: acknowledgements, resets, a SYN
//! with other options than came in. Everything else is smoltcp's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::SegmentError;

pub(in crate::host_tcp) const IPV4_HEADER: usize = 20;
pub(in crate::host_tcp) const TCP_HEADER: usize = 20;
/// Offset of the checksum in a TCP header.
pub(in crate::host_tcp) const TCP_CHECKSUM: usize = 16;

const PROTO_ICMP: u8 = 1;
const PROTO_TCP: u8 = 6;

pub(in crate::host_tcp) const FIN: u8 = 0x01;
pub(in crate::host_tcp) const SYN: u8 = 0x02;
pub(in crate::host_tcp) const RST: u8 = 0x04;
pub(in crate::host_tcp) const PSH: u8 = 0x08;
pub(in crate::host_tcp) const ACK: u8 = 0x10;

const OPT_END: u8 = 0;
const OPT_NOP: u8 = 1;
const OPT_MSS: u8 = 2;
const OPT_WINDOW_SCALE: u8 = 3;
const OPT_SACK_PERMITTED: u8 = 4;

fn u8_at(b: &[u8], at: usize) -> Option<u8> {
    b.get(at).copied()
}
fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}
fn addr_at(b: &[u8], at: usize) -> Option<IpAddr> {
    u32_at(b, at).map(|a| Ipv4Addr::from_bits(a).into())
}
fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(dst) = b.get_mut(at..at + bytes.len()) {
        dst.copy_from_slice(bytes);
    }
}

/// `a - b` in sequence space (RFC 9293 §3.4): negative if `a` is before `b`.
pub(in crate::host_tcp) fn seq_diff(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// What an IPv4 packet carries.
pub(in crate::host_tcp) enum Packet<'a> {
    Tcp(Segment<'a>),
    Unreachable(Unreachable),
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub(in crate::host_tcp) struct Segment<'a> {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: &'a [u8],
    pub payload_len: usize,
    /// IP and TCP header together, bytes.
    pub headers_len: usize,
    pub ip_header_len: usize,
}

/// An ICMP destination unreachable about a TCP segment (RFC 792).
#[derive(Clone, Copy, Debug)]
pub(in crate::host_tcp) struct Unreachable {
    pub code: u8,
    /// Next hop's MTU with code 4 (RFC 1191), 0 where the router does not say.
    pub mtu: u16,
    /// Who sent the segment that did not arrive.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
}

/// The IPv4 header of `p` and what follows it, cut at the total length.
fn ipv4(p: &[u8]) -> Option<(usize, &[u8])> {
    let first = u8_at(p, 0)?;
    let header_len = usize::from(first & 0x0f) * 4;
    let total = usize::from(u16_at(p, 2)?);
    if first >> 4 != 4 || header_len < IPV4_HEADER {
        return None;
    }
    Some((header_len, p.get(header_len..total)?))
}

/// Reads `p`; checksums are the port's business.
pub(in crate::host_tcp) fn parse(p: &[u8]) -> Result<Packet<'_>, SegmentError> {
    let (header_len, body) = ipv4(p).ok_or(SegmentError::Malformed)?;
    // More fragments, or an offset.
    if u16_at(p, 6).unwrap_or(0) & 0x3fff != 0 {
        return Err(SegmentError::Fragment);
    }
    match u8_at(p, 9) {
        Some(PROTO_TCP) => tcp(p, header_len, body).map(Packet::Tcp),
        Some(PROTO_ICMP) => unreachable(body).map(Packet::Unreachable),
        _ => None,
    }
    .ok_or(SegmentError::Malformed)
}

/// The TCP segment in `p`, if it is one.
pub(in crate::host_tcp) fn parse_tcp(p: &[u8]) -> Option<Segment<'_>> {
    match parse(p) {
        Ok(Packet::Tcp(s)) => Some(s),
        _ => None,
    }
}

fn tcp<'a>(p: &[u8], ip_header_len: usize, body: &'a [u8]) -> Option<Segment<'a>> {
    let header_len = usize::from(u8_at(body, 12)? >> 4) * 4;
    let options = body.get(TCP_HEADER..header_len)?;
    Some(Segment {
        src: SocketAddr::new(addr_at(p, 12)?, u16_at(body, 0)?),
        dst: SocketAddr::new(addr_at(p, 16)?, u16_at(body, 2)?),
        seq: u32_at(body, 4)?,
        ack: u32_at(body, 8)?,
        flags: u8_at(body, 13)?,
        window: u16_at(body, 14)?,
        options,
        payload_len: body.len().checked_sub(header_len)?,
        headers_len: ip_header_len + header_len,
        ip_header_len,
    })
}

fn unreachable(icmp: &[u8]) -> Option<Unreachable> {
    if u8_at(icmp, 0)? != 3 {
        return None;
    }
    // The quoted packet is cut short, so its total length says nothing here.
    let quoted = icmp.get(8..)?;
    let header_len = usize::from(u8_at(quoted, 0)? & 0x0f) * 4;
    if u8_at(quoted, 0)? >> 4 != 4
        || header_len < IPV4_HEADER
        || u8_at(quoted, 9)? != PROTO_TCP
        || u16_at(quoted, 6)? & 0x1fff != 0
    {
        return None;
    }
    Some(Unreachable {
        code: u8_at(icmp, 1)?,
        mtu: u16_at(icmp, 6)?,
        src: SocketAddr::new(addr_at(quoted, 12)?, u16_at(quoted, header_len)?),
        dst: SocketAddr::new(addr_at(quoted, 16)?, u16_at(quoted, header_len + 2)?),
        seq: u32_at(quoted, header_len + 4)?,
    })
}

impl Segment<'_> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
    /// Length in sequence space, SYN and FIN included.
    pub fn seq_len(&self) -> u32 {
        self.payload_len as u32 + u32::from(self.has(SYN)) + u32::from(self.has(FIN))
    }
    /// The options that a SYN negotiates with; a malformed rest is ignored.
    pub fn syn_options(&self) -> SynOptions {
        let mut found = SynOptions::default();
        walk_options(self.options, |_, kind, value| match (kind, value) {
            (OPT_MSS, &[a, b]) => found.mss = Some(u16::from_be_bytes([a, b])),
            // RFC 7323 §2.3: a larger shift counts as 14.
            (OPT_WINDOW_SCALE, &[s]) => found.window_scale = Some(s.min(14)),
            (OPT_SACK_PERMITTED, &[]) => found.sack_permitted = true,
            _ => {}
        });
        found
    }
}

/// Options of a SYN that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::host_tcp) struct SynOptions {
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
}

/// Calls `f` with the offset, kind and value of every option before the first malformed one.
fn walk_options(options: &[u8], mut f: impl FnMut(usize, u8, &[u8])) {
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
                f(at, kind, value);
                at += len;
            }
        }
    }
}

/// Overwrites the MSS option of the segment in `p` (20-byte IP header), if it has one.
pub(in crate::host_tcp) fn set_mss(p: &mut [u8], mss: u16) {
    let Some(s) = parse_tcp(p) else { return };
    let mut value_at = None;
    walk_options(s.options, |at, kind, _| {
        if kind == OPT_MSS {
            value_at = Some(at + 2);
        }
    });
    if let Some(at) = value_at {
        let base = s.ip_header_len + TCP_HEADER;
        put(p, base + at, &mss.to_be_bytes());
    }
}

/// The sum of `bytes` as 16-bit words in one's complement, not folded (RFC 1071).
fn sum16(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|c| match *c {
            [a, b] => u32::from(u16::from_be_bytes([a, b])),
            [a] => u32::from(a) << 8,
            _ => 0,
        })
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Writes the pseudo-header sum (RFC 9293 §3.1) into the checksum field of the segment in `p`.
pub(in crate::host_tcp) fn set_partial_checksum(p: &mut [u8]) {
    let Some((header_len, body)) = ipv4(p) else {
        return;
    };
    let len = body.len() as u32;
    let addresses = p.get(12..20).map_or(0, sum16);
    let sum = fold(addresses + u32::from(PROTO_TCP) + len);
    put(p, header_len + TCP_CHECKSUM, &sum.to_be_bytes());
}

/// A segment without payload that this module sends itself.
#[derive(Clone, Copy, Debug)]
pub(in crate::host_tcp) struct Header {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub syn: SynOptions,
}

impl Header {
    /// The packet: TTL 64, DF, identification 0 (RFC 6864), IP checksum complete, TCP checksum partial.
    pub fn to_packet(self) -> Vec<u8> {
        let mut options = Vec::new();
        if let Some(mss) = self.syn.mss {
            options.extend([OPT_MSS, 4]);
            options.extend(mss.to_be_bytes());
        }
        if let Some(shift) = self.syn.window_scale {
            options.extend([OPT_NOP, OPT_WINDOW_SCALE, 3, shift]);
        }
        if self.syn.sack_permitted {
            options.extend([OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2]);
        }
        let total = IPV4_HEADER + TCP_HEADER + options.len();
        let mut p = Vec::with_capacity(total);
        p.extend([0x45, 0]);
        p.extend((total as u16).to_be_bytes());
        p.extend([0, 0, 0x40, 0, 64, PROTO_TCP, 0, 0]);
        for end in [self.src, self.dst] {
            match end.ip() {
                IpAddr::V4(a) => p.extend(a.octets()),
                IpAddr::V6(_) => return Vec::new(),
            }
        }
        let ip_sum = !fold(sum16(&p));
        put(&mut p, 10, &ip_sum.to_be_bytes());
        p.extend(self.src.port().to_be_bytes());
        p.extend(self.dst.port().to_be_bytes());
        p.extend(self.seq.to_be_bytes());
        p.extend(self.ack.to_be_bytes());
        let words = ((TCP_HEADER + options.len()) / 4) as u8;
        p.extend([words << 4, self.flags]);
        p.extend(self.window.to_be_bytes());
        p.extend([0, 0, 0, 0]);
        p.extend(options);
        set_partial_checksum(&mut p);
        p
    }
}

/// A copy of the segment in `p` with only the first `keep` bytes of its payload and neither
/// FIN nor PSH. The IP checksum is left as it was.
pub(in crate::host_tcp) fn truncated(p: &[u8], s: &Segment<'_>, keep: usize) -> Vec<u8> {
    let total = s.headers_len + keep.min(s.payload_len);
    let mut copy = p.get(..total).unwrap_or(p).to_vec();
    put(&mut copy, 2, &(total as u16).to_be_bytes());
    put(&mut copy, s.ip_header_len + 13, &[s.flags & !(FIN | PSH)]);
    copy
}
