//! TCP segments (RFC 9293): the header, its checksum, and the changes that a
//! split connection makes to the options of a SYN. The options themselves are
//! in [`tcp_options`](super::tcp_options).

use super::checksum::{self, pseudo_header, Delta, Sum};
use super::tcp_options::{self, Options, END, KIND_MSS, NOP};
use super::{ipv4, put, u16_at, u32_at, u8_at, WireError};
use core::net::IpAddr;
use core::ops::{BitOr, BitOrAssign};

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
pub const MAX_HEADER_LEN: usize = 60;
/// Where in the header the checksum is.
pub const CHECKSUM_AT: usize = 16;

/// The control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u8);

impl Flags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const PSH: Self = Self(0x08);
    pub const ACK: Self = Self(0x10);
    pub const URG: Self = Self(0x20);
    pub const ECE: Self = Self(0x40);
    pub const CWR: Self = Self(0x80);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// Whether one of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A checked view of a TCP segment (or super-segment).
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    header: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// A view of the segment that an IPv4 payload consists of. Options are checked
    /// when they are iterated over, the checksum when asked.
    ///
    /// # Errors
    /// `Truncated`, or `BadHeaderLength` for a data offset below 5.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let header_len = header_len(bytes)?;
        let (header, payload) = bytes
            .split_at_checked(header_len)
            .ok_or(WireError::Truncated)?;
        Ok(Self { header, payload })
    }

    /// Verifies a complete checksum.
    ///
    /// # Errors
    /// `BadChecksum`.
    pub fn verify_checksum(
        &self,
        src: impl Into<IpAddr>,
        dst: impl Into<IpAddr>,
    ) -> Result<(), WireError> {
        let len = self.header.len() + self.payload.len();
        // A header is a multiple of four bytes, so the payload begins at an even offset.
        let sum = pseudo_header(src, dst, ipv4::PROTOCOL_TCP, len).bytes(self.header);
        checksum::verify(sum, self.payload)
    }
    pub fn src_port(&self) -> u16 {
        u16_at(self.header, 0)
    }
    pub fn dst_port(&self) -> u16 {
        u16_at(self.header, 2)
    }
    pub fn seq(&self) -> u32 {
        u32_at(self.header, 4)
    }
    pub fn ack(&self) -> u32 {
        u32_at(self.header, 8)
    }
    pub fn flags(&self) -> Flags {
        Flags(u8_at(self.header, 13))
    }
    /// As sent, not scaled.
    pub fn window(&self) -> u16 {
        u16_at(self.header, 14)
    }
    pub fn checksum(&self) -> u16 {
        u16_at(self.header, CHECKSUM_AT)
    }
    pub fn urgent(&self) -> u16 {
        u16_at(self.header, 18)
    }
    pub fn header_len(&self) -> usize {
        self.header.len()
    }
    pub fn options(&self) -> Options<'a> {
        Options::new(self.option_bytes())
    }
    /// Options with their padding, unparsed.
    pub fn option_bytes(&self) -> &'a [u8] {
        self.header.get(HEADER_LEN..).unwrap_or(&[])
    }
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
    /// Sequence numbers that the segment takes: payload, SYN and FIN (SEG.LEN).
    pub fn sequence_len(&self) -> u32 {
        self.payload.len() as u32
            + u32::from(self.flags().contains(Flags::SYN))
            + u32::from(self.flags().contains(Flags::FIN))
    }
    /// The fixed fields as a value.
    pub fn header(&self) -> Header {
        Header {
            src_port: self.src_port(),
            dst_port: self.dst_port(),
            seq: self.seq(),
            ack: self.ack(),
            flags: self.flags(),
            window: self.window(),
            urgent: self.urgent(),
        }
    }
}

fn header_len(segment: &[u8]) -> Result<usize, WireError> {
    if segment.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let len = usize::from(u8_at(segment, 12) >> 4) * 4;
    if len < HEADER_LEN {
        return Err(WireError::BadHeaderLength);
    }
    Ok(len)
}

/// The fixed fields of a header, for emitting one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: Flags,
    pub window: u16,
    pub urgent: u16,
}

impl Header {
    /// Writes header and options (padded: [`tcp_options::emit`] gives such) with checksum zero; returns
    /// their length, at which the payload goes.
    ///
    /// # Errors
    /// `NoRoom` if they do not fit `segment`, or the options exceed 40 bytes or are no multiple of 4.
    pub fn emit(&self, segment: &mut [u8], options: &[u8]) -> Result<usize, WireError> {
        let len = HEADER_LEN + options.len();
        if options.len() & 3 != 0 || len > MAX_HEADER_LEN {
            return Err(WireError::NoRoom);
        }
        let b = segment.get_mut(..len).ok_or(WireError::NoRoom)?;
        put(b, 0, &self.src_port.to_be_bytes())?;
        put(b, 2, &self.dst_port.to_be_bytes())?;
        put(b, 4, &self.seq.to_be_bytes())?;
        put(b, 8, &self.ack.to_be_bytes())?;
        put(b, 12, &[(len as u8) << 2, self.flags.0])?;
        put(b, 14, &self.window.to_be_bytes())?;
        put(b, CHECKSUM_AT, &[0, 0])?;
        put(b, 18, &self.urgent.to_be_bytes())?;
        put(b, HEADER_LEN, options)?;
        Ok(len)
    }
}

/// Computes and stores the checksum of a whole segment.
///
/// # Errors
/// `Truncated` below 20 bytes.
pub fn fill_checksum(
    segment: &mut [u8],
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
) -> Result<(), WireError> {
    if segment.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let pseudo = pseudo_header(src, dst, ipv4::PROTOCOL_TCP, segment.len());
    checksum::fill(pseudo, segment, CHECKSUM_AT)?;
    Ok(())
}

/// Stores the pseudo-header's sum alone, for `Checksum::Partial { start: offset of the TCP header, offset: 16 }`.
/// The sum is that of `len` bytes of header and payload: the whole of a super-segment.
///
/// # Errors
/// `Truncated` if `segment` has no whole header.
pub fn fill_partial_checksum(
    segment: &mut [u8],
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    len: usize,
) -> Result<(), WireError> {
    if segment.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let sum = pseudo_header(src, dst, ipv4::PROTOCOL_TCP, len).folded();
    put(segment, CHECKSUM_AT, &sum.to_be_bytes())
}

/// A header change, and what it does to the checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionChange {
    /// The MSS that was there; 0 for a removed option.
    pub old_mss: u16,
    pub delta: Delta,
}

impl OptionChange {
    /// Updates the complete checksum of `segment`. Not to be called for a partial
    /// checksum, whose field does not cover the header.
    ///
    /// # Errors
    /// `Truncated` below 20 bytes.
    pub fn update_checksum(&self, segment: &mut [u8]) -> Result<(), WireError> {
        if segment.len() < HEADER_LEN {
            return Err(WireError::Truncated);
        }
        let checksum = self.delta.apply(u16_at(segment, CHECKSUM_AT));
        put(segment, CHECKSUM_AT, &checksum.to_be_bytes())
    }
}

/// Replaces the value of the MSS option; `None` (and no change) if there is none.
/// The checksum field is left as it is: see [`OptionChange::update_checksum`].
///
/// # Errors
/// `Truncated`, `BadHeaderLength`, `BadOption`; no change then.
pub fn rewrite_mss(segment: &mut [u8], new: u16) -> Result<Option<OptionChange>, WireError> {
    change_option(segment, KIND_MSS, |option| {
        let old = u16_at(option, 2);
        put(option, 2, &new.to_be_bytes()).map(|()| old)
    })
}

/// Overwrites every option of `kind` with NOPs, so that nothing moves; `None` (and
/// no change) if there is none. The checksum field is left as it is.
///
/// # Errors
/// `Truncated`, `BadHeaderLength`, `BadOption`; no change then.
pub fn remove_option(segment: &mut [u8], kind: u8) -> Result<Option<OptionChange>, WireError> {
    if kind == END || kind == NOP {
        return Ok(None);
    }
    change_option(segment, kind, |option| {
        option.fill(NOP);
        Ok(0)
    })
}

/// Applies `change` to every option of `kind`, whose result for the last of them is reported.
fn change_option(
    segment: &mut [u8],
    kind: u8,
    change: impl Fn(&mut [u8]) -> Result<u16, WireError>,
) -> Result<Option<OptionChange>, WireError> {
    let len = header_len(segment)?;
    let options = segment
        .get_mut(HEADER_LEN..len)
        .ok_or(WireError::Truncated)?;
    if tcp_options::spans(options).any(|s| s.is_err()) {
        return Err(WireError::BadOption);
    }
    let before = Sum::ZERO.bytes(options);
    let mut old = None;
    let mut at = 0;
    // What is changed keeps its length, so that walking on from behind it stays right.
    while let Some(Ok(span)) = options
        .get(at..)
        .and_then(|rest| tcp_options::spans(rest).next())
    {
        let (from, to) = (at + span.at, at + span.at + span.len);
        let option = options.get_mut(from..to).ok_or(WireError::BadOption)?;
        if span.kind == kind {
            old = Some(change(option)?);
        }
        at = to;
    }
    let delta = Delta::new(before, Sum::ZERO.bytes(options));
    Ok(old.map(|old_mss| OptionChange { old_mss, delta }))
}

#[cfg(test)]
mod tests {
    use super::super::tcp_options::TcpOption;
    use super::*;
    use core::net::Ipv4Addr;
    use proptest::prelude::*;

    prop_compose! {
        fn any_tcp()(src_port: u16, dst_port: u16, seq: u32, ack: u32, flags: u8, window: u16, urgent: u16) -> Header {
            Header { src_port, dst_port, seq, ack, flags: Flags(flags), window, urgent }
        }
    }

    fn segment(header: &Header, options: &[TcpOption<'_>], payload: &[u8]) -> Vec<u8> {
        let mut area = [0; 40];
        let n = tcp_options::emit(&mut area, options).unwrap();
        let mut bytes = vec![0; HEADER_LEN + n];
        header.emit(&mut bytes, &area[..n]).unwrap();
        bytes.extend_from_slice(payload);
        bytes
    }

    const A: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
    const B: Ipv4Addr = Ipv4Addr::new(10, 4, 5, 6);

    proptest! {
        #[test]
        fn parses_what_it_emits(header in any_tcp(), payload in prop::collection::vec(any::<u8>(), 0..100), flip: prop::sample::Index) {
            let mut bytes = segment(&header, &[TcpOption::Mss(1460)], &payload);
            let mut partial = bytes.clone();
            fill_checksum(&mut bytes, A, B).unwrap();
            fill_partial_checksum(&mut partial, A, B, bytes.len()).unwrap();
            checksum::complete_partial(&mut partial, 0, 16).unwrap();
            // They may differ in how they write zero only.
            if bytes[16..18] != [0, 0] {
                prop_assert_eq!(&partial, &bytes);
            }
            let v = View::parse(&bytes).unwrap();
            prop_assert_eq!((v.header(), v.payload(), v.header_len()), (header, &payload[..], 24));
            prop_assert!(v.verify_checksum(A, B).is_ok());
            let extra = u32::from(header.flags.0 & 1) + u32::from(header.flags.0 >> 1 & 1);
            prop_assert_eq!(v.sequence_len(), payload.len() as u32 + extra);
            let at = flip.index(bytes.len());
            if at != 12 {
                bytes[at] ^= 0x04;
                prop_assert_eq!(View::parse(&bytes).unwrap().verify_checksum(A, B), Err(WireError::BadChecksum));
            }
        }

        #[test]
        fn option_changes_keep_the_checksum_right(
            header in any_tcp(), old: u16, new: u16, lead in 0usize..4, payload in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            // An unknown option of varying length in front, so that the MSS sits at odd offsets too.
            let data = [0x5a; 3];
            let options = [TcpOption::Other { kind: 200, data: &data[..lead.min(3)] }, TcpOption::Mss(old), TcpOption::SackPermitted];
            let mut bytes = segment(&header, &options, &payload);
            fill_checksum(&mut bytes, A, B).unwrap();
            let change = rewrite_mss(&mut bytes, new).unwrap().unwrap();
            prop_assert_eq!(change.old_mss, old);
            change.update_checksum(&mut bytes).unwrap();
            let v = View::parse(&bytes).unwrap();
            prop_assert!(v.verify_checksum(A, B).is_ok());
            prop_assert_eq!(v.options().find_map(|o| match o { Ok(TcpOption::Mss(m)) => Some(m), _ => None }), Some(new));

            let len = bytes.len();
            let change = remove_option(&mut bytes, 200).unwrap().unwrap();
            change.update_checksum(&mut bytes).unwrap();
            let v = View::parse(&bytes).unwrap();
            prop_assert!(v.verify_checksum(A, B).is_ok());
            let left: Vec<_> = v.options().map(Result::unwrap).collect();
            prop_assert_eq!(left, vec![TcpOption::Mss(new), TcpOption::SackPermitted]);
            prop_assert_eq!((bytes.len(), v.payload()), (len, &payload[..]));
            prop_assert_eq!(remove_option(&mut bytes, 200), Ok(None));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..90), kind: u8, mss: u16) {
            if let Ok(v) = View::parse(&bytes) {
                prop_assert_eq!(v.header_len() + v.payload().len(), bytes.len());
                let _ = (v.header(), v.options().count(), v.verify_checksum(A, B), v.sequence_len());
            }
            let before = bytes.clone();
            if !matches!(rewrite_mss(&mut bytes, mss), Ok(Some(_))) {
                prop_assert_eq!(&bytes, &before);
            }
            if !matches!(remove_option(&mut bytes, kind), Ok(Some(_))) && !matches!(rewrite_mss(&mut bytes, mss), Ok(Some(_))) {
                prop_assert_eq!(&bytes, &before);
            }
            let _ = (fill_checksum(&mut bytes, A, B), fill_partial_checksum(&mut bytes, A, B, mss.into()));
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let error = |b: &[u8]| View::parse(b).map(|_| ()).unwrap_err();
        let mut b = [0u8; 24];
        b[12] = 0x40;
        assert_eq!(error(&b), WireError::BadHeaderLength);
        b[12] = 0x70;
        assert_eq!(error(&b), WireError::Truncated);
        b[12] = 0x60;
        assert_eq!(error(&b[..19]), WireError::Truncated);
        assert!(View::parse(&b).is_ok());
        b[20..].copy_from_slice(&[2, 5, 0, 0]);
        assert_eq!(rewrite_mss(&mut b, 9), Err(WireError::BadOption));
        assert_eq!(
            Header::default().emit(&mut [0; 80], &[0; 3]),
            Err(WireError::NoRoom)
        );
        assert_eq!(
            Header::default().emit(&mut [0; 80], &[0; 44]),
            Err(WireError::NoRoom)
        );
        assert_eq!(
            Header::default().emit(&mut [0; 19], &[]),
            Err(WireError::NoRoom)
        );
    }

    #[test]
    fn flags_combine() {
        let syn_ack = Flags::SYN | Flags::ACK;
        assert!(syn_ack.contains(Flags::SYN) && !syn_ack.contains(Flags::SYN | Flags::RST));
        assert!(syn_ack.intersects(Flags::SYN | Flags::RST) && !syn_ack.intersects(Flags::FIN));
    }
}
