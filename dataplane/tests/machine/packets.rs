//! Frames and packets as hosts make them.

use mef_io::MemWire;
use mef_packet::wire::{arp, checksum, ethernet, ipv4};
use mef_packet::{Checksum, HeapBuf, Meta, Packet};

use super::HOST_MAC;

pub const A: [u8; 4] = [10, 1, 0, 2];
pub const B: [u8; 4] = [10, 2, 0, 2];
pub const ROUTER_A: [u8; 4] = [10, 1, 0, 1];
pub const ROUTER_B: [u8; 4] = [10, 2, 0, 1];

pub fn framed(dst: [u8; 6], src: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ethernet::HEADER_LEN];
    let header = ethernet::Header {
        dst,
        src,
        ethertype,
    };
    header.emit(&mut frame).unwrap();
    frame.extend_from_slice(payload);
    frame
}

/// An IP packet from a host to a port.
pub fn from_host(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ethertype = match packet[0] >> 4 {
        6 => ethernet::ETHERTYPE_IPV6,
        _ => ethernet::ETHERTYPE_IPV4,
    };
    framed(to, HOST_MAC, ethertype, packet)
}

pub fn packet(frame: &[u8], meta: Meta) -> Packet<HeapBuf> {
    Packet {
        buf: HeapBuf::from_slice(frame),
        meta,
    }
}

/// What finds no room is lost.
pub fn inject(wire: &MemWire, frame: &[u8], meta: Meta) {
    let _ = wire.inject(packet(frame, meta));
}

/// The host of router `me` asks who its router is.
pub fn arp_request(me: u8) -> Vec<u8> {
    let request = arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: HOST_MAC,
        sender_ip: [10, me, 0, 2].into(),
        target_mac: [0; 6],
        target_ip: [10, me, 0, 1].into(),
    };
    let mut bytes = [0; arp::LEN];
    request.emit(&mut bytes).unwrap();
    framed([0xff; 6], HOST_MAC, ethernet::ETHERTYPE_ARP, &bytes)
}

/// A packet behind its Ethernet header as the host's kernel sees it: with its checksum.
pub fn completed(packet: &[u8], checksum: Checksum) -> Vec<u8> {
    let mut p = packet.to_vec();
    if let Checksum::Partial { start, offset } = checksum {
        let start = start - ethernet::HEADER_LEN as u16;
        checksum::complete_partial(&mut p, start, offset).unwrap();
    }
    p
}

/// RFC 1071.
pub fn sum(bytes: &[u8]) -> [u8; 2] {
    let mut s = 0u32;
    for c in bytes.chunks(2) {
        s += u32::from(c[0]) << 8 | u32::from(c.get(1).copied().unwrap_or(0));
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    (!(s as u16)).to_be_bytes()
}

pub fn ip_with(header: &ipv4::Header, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0; ipv4::HEADER_LEN];
    header.emit(&mut p, payload.len()).unwrap();
    p.extend_from_slice(payload);
    p
}

pub fn ip(src: [u8; 4], dst: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    ip_with(
        &ipv4::Header::new(src.into(), dst.into(), protocol),
        payload,
    )
}

/// The bytes of an ICMP echo request with so many bytes of data.
pub fn echo(sequence: u16, data: usize) -> Vec<u8> {
    let mut m = vec![8, 0, 0, 0, 0, 7];
    m.extend_from_slice(&sequence.to_be_bytes());
    m.resize(8 + data, 0x55);
    let c = sum(&m);
    m[2..4].copy_from_slice(&c);
    m
}

/// A TCP segment, header first, with its checksum.
#[derive(Clone, Debug)]
pub struct Segment {
    pub src: ([u8; 4], u16),
    pub dst: ([u8; 4], u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

impl Segment {
    pub fn new(src: ([u8; 4], u16), dst: ([u8; 4], u16), flags: u8) -> Self {
        Self {
            src,
            dst,
            seq: 1000,
            ack: 0,
            flags,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// The segment without its IP header.
    pub fn tcp(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        while options.len() % 4 != 0 {
            options.push(1);
        }
        let mut t = Vec::new();
        t.extend_from_slice(&self.src.1.to_be_bytes());
        t.extend_from_slice(&self.dst.1.to_be_bytes());
        t.extend_from_slice(&self.seq.to_be_bytes());
        t.extend_from_slice(&self.ack.to_be_bytes());
        t.push((((20 + options.len()) / 4) << 4) as u8);
        t.push(self.flags);
        t.extend_from_slice(&[0xff, 0xff, 0, 0, 0, 0]);
        t.extend_from_slice(&options);
        t.extend_from_slice(&self.payload);
        let mut pseudo = Vec::new();
        pseudo.extend_from_slice(&self.src.0);
        pseudo.extend_from_slice(&self.dst.0);
        pseudo.extend_from_slice(&[0, 6]);
        pseudo.extend_from_slice(&(t.len() as u16).to_be_bytes());
        pseudo.extend_from_slice(&t);
        let c = sum(&pseudo);
        t[16..18].copy_from_slice(&c);
        t
    }

    pub fn packet(&self) -> Vec<u8> {
        ip(self.src.0, self.dst.0, 6, &self.tcp())
    }
}
