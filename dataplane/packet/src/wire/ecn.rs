//! The traffic class of IPv4 and IPv6 packets: the DS field (RFC 2474) and the
//! ECN bits (RFC 3168), and what becomes of the latter where a packet leaves a
//! tunnel (RFC 6040).

use super::{ipv4, ipv6, WireError};

/// The two ECN bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// Its transport does not answer to marks: it can only be dropped.
    #[default]
    NotEct = 0,
    /// ECN-capable, ECT(1) (RFC 9331: it wants marks early).
    Ect1 = 1,
    /// ECN-capable, ECT(0).
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

impl Ecn {
    /// The ECN bits of a traffic class.
    pub const fn of_class(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// The ECN bits of an IP packet; `NotEct` for what is none.
    pub fn of(packet: &[u8]) -> Self {
        Self::of_class(traffic_class(packet).unwrap_or(0))
    }

    /// Whether the packet may be marked instead of dropped.
    pub const fn is_capable(self) -> bool {
        !matches!(self, Self::NotEct)
    }

    /// What the inner packet leaves a tunnel with when `self` is what it has and `outer` came around
    /// it (RFC 6040, figure 4); `None` where it must be dropped, because its transport would not see the mark.
    pub const fn leaving(self, outer: Self) -> Option<Self> {
        match (self, outer) {
            (Self::NotEct, Self::Ce) => None,
            (Self::NotEct, _) => Some(Self::NotEct),
            (Self::Ce, _) | (_, Self::Ce) => Some(Self::Ce),
            (Self::Ect1, _) | (Self::Ect0, Self::Ect1) => Some(Self::Ect1),
            (Self::Ect0, _) => Some(Self::Ect0),
        }
    }
}

/// DS field and ECN bits of an IPv4 or IPv6 packet; `None` for what is neither.
#[inline]
pub fn traffic_class(packet: &[u8]) -> Option<u8> {
    match packet {
        [first, second, ..] if first >> 4 == 4 => Some(*second),
        [first, second, ..] if first >> 4 == 6 => Some(first << 4 | second >> 4),
        _ => None,
    }
}

/// Sets DS field and ECN bits.
///
/// # Errors
/// `BadVersion` for what is neither IPv4 nor IPv6, `Truncated` for a cut header.
pub fn set_traffic_class(packet: &mut [u8], value: u8) -> Result<(), WireError> {
    match packet.first().ok_or(WireError::Truncated)? >> 4 {
        4 => ipv4::set_dscp_ecn(packet, value),
        6 => ipv6::set_traffic_class(packet, value),
        _ => Err(WireError::BadVersion),
    }
}

/// Sets the ECN bits alone.
///
/// # Errors
/// As [`set_traffic_class`].
pub fn set(packet: &mut [u8], ecn: Ecn) -> Result<(), WireError> {
    let class = traffic_class(packet).ok_or(WireError::BadVersion)?;
    if class & 3 == ecn as u8 {
        return Ok(());
    }
    set_traffic_class(packet, class & 0xfc | ecn as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    #[test]
    fn leaves_a_tunnel_as_figure_4_of_rfc_6040_says() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        // Rows: inner; columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let figure = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in figure {
            for (outer, leaves) in [NotEct, Ect0, Ect1, Ce].into_iter().zip(row) {
                assert_eq!(inner.leaving(outer), leaves, "{inner:?} in {outer:?}");
            }
        }
    }

    #[test]
    fn what_is_no_ip_packet_has_no_class_and_is_left_alone() {
        for bytes in [&[][..], &[0x45], &[0x60], &[0x15, 0xff, 3, 4]] {
            assert_eq!(traffic_class(bytes), None);
            let mut copy = bytes.to_vec();
            assert!(set_traffic_class(&mut copy, 3).is_err());
            assert_eq!(copy, bytes);
        }
    }

    proptest! {
        #[test]
        fn sets_the_class_and_nothing_else(old: u8, new: u8, flow_label in 0u32..1 << 20) {
            let mut v4 = [0; 20];
            let header = ipv4::Header {
                dscp_ecn: old,
                ..ipv4::Header::new(Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2), 17)
            };
            header.emit(&mut v4, 0).unwrap();
            set_traffic_class(&mut v4, new).unwrap();
            let view = ipv4::View::parse(&v4).unwrap();
            prop_assert_eq!(view.header(), ipv4::Header { dscp_ecn: new, ..header });

            let word = 6 << 28 | u32::from(old) << 20 | flow_label;
            let mut v6 = word.to_be_bytes().to_vec();
            v6.resize(ipv6::HEADER_LEN, 0);
            prop_assert_eq!(traffic_class(&v6), Some(old));
            set_traffic_class(&mut v6, new).unwrap();
            prop_assert_eq!(traffic_class(&v6), Some(new));
            let after = u32::from_be_bytes([v6[0], v6[1], v6[2], v6[3]]);
            prop_assert_eq!(after, 6 << 28 | u32::from(new) << 20 | flow_label);
            set(&mut v6, Ecn::Ce).unwrap();
            prop_assert_eq!((Ecn::of(&v6), traffic_class(&v6)), (Ecn::Ce, Some(new | 3)));
        }
    }
}
