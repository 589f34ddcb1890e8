//! `struct virtio_net_hdr` (VIRTIO 1.2, 5.1.6; linux/virtio_net.h), which stands in
//! front of every frame of a socket with PACKET_VNET_HDR, and what it means in
//! terms of [`Meta`]. The fields are in the machine's byte order.

use mef_packet::wire::{ethernet, ipv4, ipv6, tcp, udp, WireError};
use mef_packet::{Checksum, Gso, Meta};

pub(super) const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Sets the offload fields of `meta` from a received header; `None` for a kind of
/// segmentation that nobody here knows.
pub(super) fn decode(header: &[u8; LEN], meta: &mut Meta) -> Option<()> {
    let [flags, gso_type, _, _, g0, g1, s0, s1, o0, o1] = *header;
    meta.gso = match gso_type & !GSO_ECN {
        GSO_NONE => Gso::None,
        GSO_TCPV4 => Gso::TcpV4,
        GSO_TCPV6 => Gso::TcpV6,
        GSO_UDP_L4 => Gso::Udp,
        _ => return None,
    };
    meta.gso_size = if meta.gso == Gso::None {
        0
    } else {
        u16::from_ne_bytes([g0, g1])
    };
    meta.checksum = if flags & NEEDS_CSUM != 0 {
        Checksum::Partial {
            start: u16::from_ne_bytes([s0, s1]),
            offset: u16::from_ne_bytes([o0, o1]),
        }
    } else if flags & DATA_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::Complete
    };
    Some(())
}

/// The header for a frame that is to be sent. Where a frame is to be cut and its
/// transport checksum is not partial, it is made so in `frame`: the kernel sums
/// each segment anew and starts from the pseudo-header.
///
/// # Errors
/// What is wrong with a frame that is to be cut and is not what `meta` says.
pub(super) fn encode(meta: &Meta, frame: &mut [u8]) -> Result<[u8; LEN], WireError> {
    let mut gso_type = GSO_NONE;
    let mut hdr_len = 0usize;
    let mut checksum = meta.checksum;
    if meta.gso != Gso::None {
        if meta.gso_size == 0 {
            return Err(WireError::BadLength);
        }
        let l4 = transport_offset(meta.gso, frame)?;
        let segment = frame.get_mut(l4..).ok_or(WireError::Truncated)?;
        let (l4_len, offset) = match meta.gso {
            Gso::Udp => {
                gso_type = GSO_UDP_L4;
                (
                    udp::View::parse(segment).map(|_| udp::HEADER_LEN)?,
                    udp::CHECKSUM_AT,
                )
            }
            kind => {
                let view = tcp::View::parse(segment)?;
                gso_type = if kind == Gso::TcpV4 {
                    GSO_TCPV4
                } else {
                    GSO_TCPV6
                };
                if view.flags().contains(tcp::Flags::CWR) {
                    gso_type |= GSO_ECN;
                }
                (view.header_len(), tcp::CHECKSUM_AT)
            }
        };
        hdr_len = l4 + l4_len;
        if !matches!(checksum, Checksum::Partial { .. }) {
            fill_pseudo_header(meta.gso, frame, l4)?;
            checksum = Checksum::Partial {
                start: l4 as u16,
                offset: offset as u16,
            };
        }
    }
    let (flags, start, offset) = match checksum {
        Checksum::Complete => (0, 0, 0),
        Checksum::Verified => (DATA_VALID, 0, 0),
        Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
    };
    let gso_size = if gso_type == GSO_NONE {
        0
    } else {
        meta.gso_size
    };
    let [h, g, s, o] = [hdr_len as u16, gso_size, start, offset].map(u16::to_ne_bytes);
    Ok([
        flags, gso_type, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1],
    ])
}

/// Where the TCP or UDP header of a frame that is to be cut begins.
fn transport_offset(gso: Gso, frame: &[u8]) -> Result<usize, WireError> {
    let (ethernet, packet) = ethernet::Header::parse(frame)?;
    match (ethernet.ethertype, gso) {
        (ethernet::ETHERTYPE_IPV4, Gso::TcpV4 | Gso::Udp) => {
            Ok(ethernet::HEADER_LEN + ipv4::View::parse_unverified(packet)?.header_len())
        }
        (ethernet::ETHERTYPE_IPV6, Gso::TcpV6 | Gso::Udp) => {
            Ok(ethernet::HEADER_LEN + ipv6::View::parse_quoted(packet)?.header_len())
        }
        _ => Err(WireError::BadVersion),
    }
}

fn fill_pseudo_header(gso: Gso, frame: &mut [u8], l4: usize) -> Result<(), WireError> {
    let (head, segment) = frame.split_at_mut_checked(l4).ok_or(WireError::Truncated)?;
    let (ethernet, packet) = ethernet::Header::parse(head)?;
    if ethernet.ethertype == ethernet::ETHERTYPE_IPV6 {
        let ip = ipv6::View::parse_quoted(packet)?;
        let len = segment.len();
        return if gso == Gso::Udp {
            udp::fill_partial_checksum(segment, ip.src(), ip.dst(), len)
        } else {
            tcp::fill_partial_checksum(segment, ip.src(), ip.dst(), len)
        };
    }
    let ip = ipv4::View::parse_quoted(packet)?;
    let len = usize::from(ip.total_len()).saturating_sub(ip.header_len());
    if gso == Gso::Udp {
        udp::fill_partial_checksum(segment, ip.src(), ip.dst(), len)
    } else {
        tcp::fill_partial_checksum(segment, ip.src(), ip.dst(), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mef_packet::wire::checksum;
    use std::net::Ipv4Addr;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

    fn tcp_frame(payload: usize, flags: tcp::Flags) -> Vec<u8> {
        let mut f = vec![0x5a; 14 + 20 + 32 + payload];
        ethernet::Header {
            dst: [2; 6],
            src: [4; 6],
            ethertype: 0x0800,
        }
        .emit(&mut f)
        .unwrap();
        ipv4::Header::new(A, B, 6)
            .emit(&mut f[14..], 32 + payload)
            .unwrap();
        let header = tcp::Header {
            src_port: 1,
            dst_port: 2,
            flags,
            ..Default::default()
        };
        header.emit(&mut f[34..], &[1; 12]).unwrap();
        tcp::fill_checksum(&mut f[34..], A, B).unwrap();
        f
    }

    #[test]
    fn complete_super_segment_becomes_partial_with_the_same_sum() {
        let mut frame = tcp_frame(5000, tcp::Flags::ACK);
        let before = frame.clone();
        let meta = Meta {
            gso: Gso::TcpV4,
            gso_size: 1448,
            ..Meta::default()
        };
        let header = encode(&meta, &mut frame).unwrap();
        let mut back = Meta::default();
        decode(&header, &mut back).unwrap();
        assert_eq!((back.gso, back.gso_size), (Gso::TcpV4, 1448));
        assert_eq!(
            back.checksum,
            Checksum::Partial {
                start: 34,
                offset: 16
            }
        );
        assert_eq!(header[2..4], 66u16.to_ne_bytes(), "header length");
        assert_ne!(frame, before);
        checksum::complete_partial(&mut frame, 34, 16).unwrap();
        assert_eq!(frame, before);
    }

    #[test]
    fn partial_and_verified_come_back_as_they_went() {
        for checksum in [
            Checksum::Complete,
            Checksum::Verified,
            Checksum::Partial {
                start: 34,
                offset: 16,
            },
        ] {
            for gso in [Gso::None, Gso::TcpV4] {
                let mut frame = tcp_frame(3000, tcp::Flags::ACK);
                let gso_size = if gso == Gso::None { 0 } else { 1400 };
                let meta = Meta {
                    gso,
                    gso_size,
                    checksum,
                    ..Meta::default()
                };
                let mut back = Meta::default();
                decode(&encode(&meta, &mut frame).unwrap(), &mut back).unwrap();
                assert_eq!((back.gso, back.gso_size), (gso, gso_size));
                if gso == Gso::None {
                    assert_eq!(back.checksum, checksum);
                }
            }
        }
    }

    #[test]
    fn congestion_window_reduced_is_told_to_whom_cuts() {
        let meta = Meta {
            gso: Gso::TcpV4,
            gso_size: 1448,
            ..Meta::default()
        };
        let header = encode(
            &meta,
            &mut tcp_frame(5000, tcp::Flags::ACK | tcp::Flags::CWR),
        )
        .unwrap();
        assert_eq!(header[1], GSO_TCPV4 | GSO_ECN);
        let mut back = Meta::default();
        decode(&header, &mut back).unwrap();
        assert_eq!(back.gso, Gso::TcpV4);
    }

    #[test]
    fn udp_super_frame() {
        let mut f = vec![7; 14 + 28 + 2800];
        ethernet::Header {
            dst: [2; 6],
            src: [4; 6],
            ethertype: 0x0800,
        }
        .emit(&mut f)
        .unwrap();
        ipv4::Header::new(A, B, 17)
            .emit(&mut f[14..], 2808)
            .unwrap();
        udp::Header {
            src_port: 1,
            dst_port: 2,
        }
        .emit(&mut f[34..], 2800)
        .unwrap();
        let header = encode(
            &Meta {
                gso: Gso::Udp,
                gso_size: 1400,
                ..Meta::default()
            },
            &mut f,
        )
        .unwrap();
        assert_eq!(header[..2], [NEEDS_CSUM, GSO_UDP_L4]);
        assert_eq!(
            header[6..10],
            [34u16.to_ne_bytes(), 6u16.to_ne_bytes()].concat()
        );
        checksum::complete_partial(&mut f, 34, 6).unwrap();
        assert!(udp::View::parse(&f[34..])
            .unwrap()
            .verify_checksum(A, B)
            .is_ok());
    }

    #[test]
    fn tcp_over_ipv6_super_segment() {
        // Without and with an extension header (destination options) in front of TCP.
        for options in [&[][..], &[6, 0, 1, 4, 0, 0, 0, 0]] {
            let l4 = 54 + options.len();
            let mut f = vec![9; l4 + 20 + 4000];
            ethernet::Header {
                dst: [2; 6],
                src: [4; 6],
                ethertype: 0x86dd,
            }
            .emit(&mut f)
            .unwrap();
            let next = if options.is_empty() { 6 } else { 60 };
            ipv6::Header::new([9; 16].into(), [9; 16].into(), next)
                .emit(&mut f[14..], options.len() + 4020)
                .unwrap();
            f[54..l4].copy_from_slice(options);
            tcp::Header::default().emit(&mut f[l4..], &[]).unwrap();
            let header = encode(
                &Meta {
                    gso: Gso::TcpV6,
                    gso_size: 1428,
                    ..Meta::default()
                },
                &mut f,
            )
            .unwrap();
            assert_eq!(header[..2], [NEEDS_CSUM, GSO_TCPV6]);
            assert_eq!(header[2..4], (l4 as u16 + 20).to_ne_bytes());
            assert_eq!(header[6..8], (l4 as u16).to_ne_bytes());
            let expected = checksum::Sum::ZERO
                .bytes(&[9; 32])
                .word(6)
                .dword(4020)
                .folded();
            assert_eq!(f[l4 + 16..l4 + 18], expected.to_be_bytes());
        }
    }

    #[test]
    fn what_is_not_as_the_meta_says_is_refused() {
        let gso = |gso, gso_size| Meta {
            gso,
            gso_size,
            ..Meta::default()
        };
        assert!(encode(&gso(Gso::TcpV4, 0), &mut tcp_frame(5000, tcp::Flags::ACK)).is_err());
        assert!(encode(
            &gso(Gso::TcpV6, 1400),
            &mut tcp_frame(5000, tcp::Flags::ACK)
        )
        .is_err());
        assert!(encode(&gso(Gso::TcpV4, 1400), &mut [0; 10]).is_err());
        for len in 0..60 {
            assert!(encode(
                &gso(Gso::TcpV4, 1400),
                &mut tcp_frame(5000, tcp::Flags::ACK)[..len]
            )
            .is_err());
        }
        let mut meta = Meta::default();
        assert_eq!(decode(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0], &mut meta), None);
    }
}
