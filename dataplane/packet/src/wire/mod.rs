//! Typed views of the wire formats that the router reads and writes: views over
//! `&[u8]` that copy nothing, and emitters over `&mut [u8]`. A view is checked
//! once, when it is made; what it then gives out cannot fail. Nothing here keeps
//! state, and no input makes it panic.

pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod segment;
pub mod tcp;
pub mod tcp_options;
pub mod udp;

pub use ethernet::MacAddr;

/// Why bytes are not what they should be, or cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WireError {
    /// Ends before its header does, or before the length that the header states.
    Truncated,
    /// The IP version is another than it should be: neither 4 nor 6, or not the one of the Ethernet type.
    BadVersion,
    /// The stated header length is below the minimum or above the packet's.
    BadHeaderLength,
    /// The stated packet length is below the header's.
    BadLength,
    BadChecksum,
    /// ARP for something other than IPv4 over Ethernet, or with an unknown operation.
    BadArp,
    /// A Neighbour Discovery message with an impossible field (RFC 4861, 6.1 and 7.1).
    BadNeighbourDiscovery,
    /// An IPv6 extension header that may not stand where it does, or one too many.
    BadExtension,
    /// A TCP option with a length that is impossible or runs out of the header.
    BadOption,
    /// The time to live is used up.
    TtlExpired,
    /// An ICMP error must not be sent about this packet (RFC 1122, 3.2.2).
    NotAnswerable,
    /// The buffer to write to is too small, or the lengths do not fit their fields.
    NoRoom,
}

impl WireError {
    /// Stable name, for counters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::BadVersion => "bad_version",
            Self::BadHeaderLength => "bad_header_length",
            Self::BadLength => "bad_length",
            Self::BadChecksum => "bad_checksum",
            Self::BadArp => "bad_arp",
            Self::BadNeighbourDiscovery => "bad_nd",
            Self::BadExtension => "bad_extension",
            Self::BadOption => "bad_option",
            Self::TtlExpired => "ttl_expired",
            Self::NotAnswerable => "not_answerable",
            Self::NoRoom => "no_room",
        }
    }
}

impl core::fmt::Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Truncated => "packet ends before its header or its stated length",
            Self::BadVersion => "IP version is neither 4 nor 6, or not that of the frame",
            Self::BadHeaderLength => "stated header length is impossible",
            Self::BadLength => "stated packet length is below the header's",
            Self::BadChecksum => "checksum is wrong",
            Self::BadArp => "ARP is not IPv4 over Ethernet, or its operation is unknown",
            Self::BadNeighbourDiscovery => "Neighbour Discovery message has an impossible field",
            Self::BadExtension => "IPv6 extension header in a wrong place, or more than eight",
            Self::BadOption => "TCP option length is impossible",
            Self::TtlExpired => "time to live is used up",
            Self::NotAnswerable => "no ICMP error may be sent about this packet",
            Self::NoRoom => "does not fit the buffer or its length field",
        })
    }
}

impl core::error::Error for WireError {}

/// The `N` bytes at `at`; zeroes where a view's check has a hole, instead of a panic.
#[inline]
pub(crate) fn array<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b.get(at..)
        .and_then(|b| b.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

#[inline]
pub(crate) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(b, at))
}

#[inline]
pub(crate) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(b, at))
}

#[inline]
pub(crate) fn u8_at(b: &[u8], at: usize) -> u8 {
    b.get(at).copied().unwrap_or(0)
}

/// Writes `bytes` at `at`.
#[inline]
pub(crate) fn put(b: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), WireError> {
    b.get_mut(at..)
        .and_then(|b| b.get_mut(..bytes.len()))
        .ok_or(WireError::NoRoom)?
        .copy_from_slice(bytes);
    Ok(())
}
