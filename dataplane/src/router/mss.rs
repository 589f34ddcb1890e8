//! The segment size that two hosts agree on where the router does not stand
//! between them: the SYNs of TCP that is not split say at most what the path
//! carries in one piece, so that their segments need neither fragments nor an
//! ICMP message that some firewall drops.

use mef_packet::wire::segment::transport;
use mef_packet::wire::tcp_options::TcpOption;
use mef_packet::wire::{ipv4, tcp};

/// Whether `packet` is the first of a TCP connection from its sender.
pub(super) fn is_syn(packet: &[u8]) -> bool {
    segment(packet).is_some()
}

/// Where the TCP header of a SYN or SYN-ACK begins.
fn segment(packet: &[u8]) -> Option<usize> {
    let (at, protocol) = transport(packet)?;
    if protocol != ipv4::PROTOCOL_TCP {
        return None;
    }
    let view = tcp::View::parse(packet.get(at..)?).ok()?;
    view.flags().contains(tcp::Flags::SYN).then_some(at)
}

/// Lowers the MSS option of a SYN to what makes packets of at most `largest` bytes; true if it was
/// higher. The segment's checksum has to be complete, and stays so. A SYN without the option
/// means less than any path's size, and is left alone (RFC 9293, 3.7.1). So is one with TCP-AO, whose
/// code covers the options (RFC 5925, 5.1; that of TCP-MD5 does not).
pub(super) fn clamp(packet: &mut [u8], largest: usize) -> bool {
    let Some(at) = segment(packet) else {
        return false;
    };
    let room = largest.saturating_sub(at + tcp::HEADER_LEN);
    let Ok(most) = u16::try_from(room.min(usize::from(u16::MAX))) else {
        return false;
    };
    let Some(bytes) = packet.get_mut(at..) else {
        return false;
    };
    let higher = tcp::View::parse(bytes).is_ok_and(|v| {
        let has = |what: fn(&TcpOption<'_>, u16) -> bool| {
            v.options().any(|o| o.is_ok_and(|o| what(&o, most)))
        };
        has(|o, most| matches!(o, TcpOption::Mss(mss) if *mss > most))
            && !has(|o, _| matches!(o, TcpOption::Ao(_)))
    });
    if !higher || most == 0 {
        return false;
    }
    match tcp::rewrite_mss(bytes, most) {
        Ok(Some(change)) => change.update_checksum(bytes).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use mef_packet::wire::{ip, ipv6, tcp_options};
    use proptest::prelude::*;

    use super::*;

    fn packet(v6: bool, flags: tcp::Flags, mss: Option<u16>) -> Vec<u8> {
        let mut options = [0; 40];
        let list = [TcpOption::WindowScale(7), TcpOption::SackPermitted];
        let with: Vec<TcpOption<'_>> = list.into_iter().chain(mss.map(TcpOption::Mss)).collect();
        let n = tcp_options::emit(&mut options, &with).unwrap();
        let header = tcp::Header {
            src_port: 40_000,
            dst_port: 443,
            seq: 7,
            flags,
            ..Default::default()
        };
        let mut segment = vec![0; tcp::HEADER_LEN + n];
        header.emit(&mut segment, &options[..n]).unwrap();
        let mut packet;
        if v6 {
            let (a, b) = (
                "2001:db8:1::2".parse().unwrap(),
                "2001:db8:2::2".parse().unwrap(),
            );
            packet = vec![0; ipv6::HEADER_LEN];
            let header = ipv6::Header::new(a, b, ipv4::PROTOCOL_TCP);
            header.emit(&mut packet, segment.len()).unwrap();
            tcp::fill_checksum(&mut segment, a, b).unwrap();
        } else {
            let (a, b) = ([10, 1, 0, 2].into(), [10, 2, 0, 2].into());
            packet = vec![0; ipv4::HEADER_LEN];
            let header = ipv4::Header::new(a, b, ipv4::PROTOCOL_TCP);
            header.emit(&mut packet, segment.len()).unwrap();
            tcp::fill_checksum(&mut segment, a, b).unwrap();
        }
        packet.extend(segment);
        packet
    }

    fn mss_of(packet: &[u8]) -> Option<u16> {
        let v = ip::View::parse(packet).unwrap();
        let t = tcp::View::parse(v.payload()).unwrap();
        t.verify_checksum(v.src(), v.dst()).unwrap();
        t.options().find_map(|o| match o {
            Ok(TcpOption::Mss(mss)) => Some(mss),
            _ => None,
        })
    }

    #[test]
    fn a_syn_says_what_the_path_carries() {
        use tcp::Flags;
        for (v6, offered, clamped) in [(false, 1460, 1360), (true, 1440, 1340)] {
            for flags in [Flags::SYN, Flags::SYN | Flags::ACK] {
                let mut p = packet(v6, flags, Some(offered));
                assert!(is_syn(&p) && clamp(&mut p, 1400));
                assert_eq!(mss_of(&p), Some(clamped));
                // What is low enough stays, and so does what is no SYN or has no such option.
                assert!(!clamp(&mut p, 1400) && !clamp(&mut p, 9000));
                assert_eq!(mss_of(&p), Some(clamped));
            }
            for mut p in [
                packet(v6, Flags::SYN, None),
                packet(v6, Flags::ACK, Some(offered)),
                packet(v6, Flags::SYN, Some(536)),
            ] {
                let before = p.clone();
                assert!(!clamp(&mut p, 1400) && p == before);
            }
        }
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right(v6: bool, offered: u16, largest in 0usize..10_000) {
            let mut p = packet(v6, tcp::Flags::SYN, Some(offered));
            let changed = clamp(&mut p, largest);
            let now = mss_of(&p).unwrap();
            let room = largest as i64 - if v6 { 60 } else { 40 };
            prop_assert_eq!(changed, room > 0 && i64::from(offered) > room);
            prop_assert_eq!(i64::from(now), if changed { room } else { offered.into() });
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), largest: u16) {
            let _ = is_syn(&bytes);
            clamp(&mut bytes, largest.into());
        }
    }
}
