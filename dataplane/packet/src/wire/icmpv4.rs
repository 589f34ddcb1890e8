//! ICMP for IPv4 (RFC 792; RFC 1191 for the MTU of "too big"): echo, the errors
//! that a router sends and reads, and whether it may send one at all.

use super::checksum::{self, Sum};
use super::{ipv4, put, u16_at, u8_at, WireError};
use core::net::Ipv4Addr;

pub const HEADER_LEN: usize = 8;
/// An error with its IP header is at most this long (RFC 1812, 4.3.2.3).
pub const MAX_ERROR_LEN: usize = 576;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const REDIRECT: u8 = 5;
const ECHO_REQUEST: u8 = 8;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const CODE_TOO_BIG: u8 = 4;

/// Codes of "destination unreachable" that a router sends or meets.
pub mod unreachable {
    pub const NETWORK: u8 = 0;
    pub const HOST: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const PORT: u8 = 3;
    pub const ADMINISTRATIVELY_PROHIBITED: u8 = 13;
}

/// An error about somebody's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Any code of [`unreachable`] but 4.
    Unreachable(u8),
    /// "Fragmentation needed"; the MTU in bytes, 0 from routers before RFC 1191.
    TooBig { mtu: u16 },
    /// Code 0 in transit, 1 in reassembly.
    TimeExceeded(u8),
}

/// An ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    EchoRequest {
        ident: u16,
        seq: u16,
        data: &'a [u8],
    },
    EchoReply {
        ident: u16,
        seq: u16,
        data: &'a [u8],
    },
    /// `quoted` begins with the IP header of the packet it is about: see [`ipv4::View::parse_quoted`].
    Error { error: Error, quoted: &'a [u8] },
    /// Everything else; `body` is what follows the checksum.
    Other { kind: u8, code: u8, body: &'a [u8] },
}

impl<'a> Message<'a> {
    /// The message that an IPv4 payload consists of.
    ///
    /// # Errors
    /// `Truncated` below 8 bytes, `BadChecksum`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let rest = bytes.get(HEADER_LEN..).ok_or(WireError::Truncated)?;
        checksum::verify(Sum::ZERO, bytes)?;
        let (kind, code) = (u8_at(bytes, 0), u8_at(bytes, 1));
        let (first, second) = (u16_at(bytes, 4), u16_at(bytes, 6));
        let error = |error| Self::Error {
            error,
            quoted: rest,
        };
        Ok(match (kind, code) {
            (ECHO_REQUEST, 0) => Self::EchoRequest {
                ident: first,
                seq: second,
                data: rest,
            },
            (ECHO_REPLY, 0) => Self::EchoReply {
                ident: first,
                seq: second,
                data: rest,
            },
            (UNREACHABLE, CODE_TOO_BIG) => error(Error::TooBig { mtu: second }),
            (UNREACHABLE, code) => error(Error::Unreachable(code)),
            (TIME_EXCEEDED, code) => error(Error::TimeExceeded(code)),
            _ => Self::Other {
                kind,
                code,
                body: bytes.get(4..).unwrap_or(&[]),
            },
        })
    }

    /// Bytes that [`emit`](Self::emit) writes.
    pub fn len(&self) -> usize {
        match self {
            Self::EchoRequest { data, .. } | Self::EchoReply { data, .. } => {
                HEADER_LEN + data.len()
            }
            Self::Error { quoted, .. } => HEADER_LEN + quoted.len(),
            Self::Other { body, .. } => 4 + body.len(),
        }
    }
    /// Never: a message has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the message, checksum included; returns its length.
    ///
    /// # Errors
    /// `NoRoom` if `out` is shorter than that, or `Other` has a body below 4 bytes.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, WireError> {
        let len = self.len();
        let out = out.get_mut(..len).ok_or(WireError::NoRoom)?;
        if len < HEADER_LEN {
            return Err(WireError::NoRoom);
        }
        let mut head = |kind: u8, code: u8, first: u16, second: u16, data: &[u8]| {
            put(out, 0, &[kind, code, 0, 0])?;
            put(out, 4, &first.to_be_bytes())?;
            put(out, 6, &second.to_be_bytes())?;
            put(out, HEADER_LEN, data)
        };
        match *self {
            Self::EchoRequest { ident, seq, data } => head(ECHO_REQUEST, 0, ident, seq, data)?,
            Self::EchoReply { ident, seq, data } => head(ECHO_REPLY, 0, ident, seq, data)?,
            Self::Error { error, quoted } => match error {
                Error::Unreachable(code) => head(UNREACHABLE, code, 0, 0, quoted)?,
                Error::TooBig { mtu } => head(UNREACHABLE, CODE_TOO_BIG, 0, mtu, quoted)?,
                Error::TimeExceeded(code) => head(TIME_EXCEEDED, code, 0, 0, quoted)?,
            },
            Self::Other { kind, code, body } => {
                put(out, 0, &[kind, code, 0, 0])?;
                put(out, 4, body)?;
            }
        }
        checksum::fill(Sum::ZERO, out, 2)?;
        Ok(len)
    }
}

/// Turns the echo request that `message` is into its reply, in place.
///
/// # Errors
/// `Truncated` below 8 bytes, `NotAnswerable` if it is no echo request.
pub fn make_echo_reply(message: &mut [u8]) -> Result<(), WireError> {
    if message.len() < HEADER_LEN {
        return Err(WireError::Truncated);
    }
    let old = u16_at(message, 0);
    if old != u16::from(ECHO_REQUEST) << 8 {
        return Err(WireError::NotAnswerable);
    }
    put(message, 0, &[ECHO_REPLY, 0])?;
    checksum::update_at(message, 2, old, 0)?;
    // A reply may be all zeros, and the sum of nothing but zeros is the one that an update gets wrong (RFC 1624).
    if u16_at(message, 2) == 0 && message.iter().all(|&b| b == 0) {
        put(message, 2, &[0xff, 0xff])?;
    }
    Ok(())
}

/// Whether an ICMP error may be sent about `packet` (RFC 1122, 3.2.2; RFC 1812, 4.3.2.7): not
/// about ICMP errors, later fragments, multicast or broadcast destinations, or
/// sources that are no single host. Packets that came as link-layer broadcast are the caller's to sort out.
pub fn is_answerable(packet: &ipv4::View<'_>) -> bool {
    let (src, dst) = (packet.src(), packet.dst());
    let bad_src = src.is_unspecified() || src.is_loopback() || src.octets()[0] >= 224;
    let about_icmp = packet.protocol() == ipv4::PROTOCOL_ICMP
        && packet.payload().first().is_none_or(|kind| {
            matches!(
                *kind,
                UNREACHABLE | 4 | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM
            )
        });
    !bad_src && dst.octets()[0] < 224 && packet.fragment_offset() == 0 && !about_icmp
}

/// Writes a whole IPv4 packet with an ICMP error about `offending` (an IPv4 packet
/// from its header on) from `src` to the source of that packet; it quotes as much
/// of it as 576 bytes have room for. Returns its length; `out` of
/// [`MAX_ERROR_LEN`] bytes is always enough.
///
/// # Errors
/// What is wrong with `offending`; `NotAnswerable` if none may be sent about it
/// ([`is_answerable`]); `NoRoom`.
pub fn build_error(
    out: &mut [u8],
    error: Error,
    src: Ipv4Addr,
    offending: &[u8],
) -> Result<usize, WireError> {
    let view = ipv4::View::parse_unverified(offending)?;
    if !is_answerable(&view) {
        return Err(WireError::NotAnswerable);
    }
    let room = MAX_ERROR_LEN - ipv4::HEADER_LEN - HEADER_LEN;
    let len = view.header_len() + view.payload().len();
    let quoted = offending.get(..len.min(room)).unwrap_or(offending);
    let (head, body) = out
        .split_at_mut_checked(ipv4::HEADER_LEN)
        .ok_or(WireError::NoRoom)?;
    let len = Message::Error { error, quoted }.emit(body)?;
    let header = ipv4::Header {
        // Internetwork control (RFC 1812, 4.3.2.5).
        dscp_ecn: 0xc0,
        ..ipv4::Header::new(src, view.src(), ipv4::PROTOCOL_ICMP)
    };
    header.emit(head, len)?;
    Ok(ipv4::HEADER_LEN + len)
}

#[cfg(test)]
mod tests {
    use super::super::ipv4::tests::any_header;
    use super::*;
    use proptest::prelude::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

    fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0; 20];
        ipv4::Header::new([10, 0, 0, 1].into(), [10, 9, 0, 1].into(), protocol)
            .emit(&mut p, payload.len())
            .unwrap();
        p.extend_from_slice(payload);
        p
    }

    fn any_message(data: &[u8]) -> impl Strategy<Value = Message<'_>> {
        prop_oneof![
            any::<(u16, u16)>().prop_map(move |(ident, seq)| Message::EchoRequest {
                ident,
                seq,
                data
            }),
            any::<(u16, u16)>().prop_map(move |(ident, seq)| Message::EchoReply {
                ident,
                seq,
                data
            }),
            (0u8..4).prop_map(move |c| Message::Error {
                error: Error::Unreachable(c),
                quoted: data
            }),
            any::<u16>().prop_map(move |mtu| Message::Error {
                error: Error::TooBig { mtu },
                quoted: data
            }),
            (0u8..2).prop_map(move |c| Message::Error {
                error: Error::TimeExceeded(c),
                quoted: data
            }),
            any::<u8>().prop_map(move |code| Message::Other {
                kind: 13,
                code,
                body: data
            }),
        ]
    }

    const DATA: [u8; 61] = {
        let mut d = [0; 61];
        let mut i = 0;
        while i < 61 {
            d[i] = (i * 37) as u8;
            i += 1;
        }
        d
    };

    proptest! {
        #[test]
        fn parses_what_it_emits(message in any_message(&DATA), spare in 0usize..5) {
            let mut out = vec![0xee; message.len() + spare];
            let len = message.emit(&mut out).unwrap();
            prop_assert_eq!(Message::parse(&out[..len]), Ok(message));
            prop_assert_eq!(message.emit(&mut out[..len - 1]), Err(WireError::NoRoom));
            out[len / 2] ^= 0x20;
            prop_assert_eq!(Message::parse(&out[..len]), Err(WireError::BadChecksum));
        }

        #[test]
        fn echo_reply_in_place_equals_the_one_built(ident: u16, seq: u16, data: Vec<u8>) {
            let mut out = vec![0; 8 + data.len()];
            Message::EchoRequest { ident, seq, data: &data }.emit(&mut out).unwrap();
            make_echo_reply(&mut out).unwrap();
            prop_assert_eq!(Message::parse(&out), Ok(Message::EchoReply { ident, seq, data: &data }));
            prop_assert_eq!(make_echo_reply(&mut out), Err(WireError::NotAnswerable));
        }

        #[test]
        fn errors_quote_what_fits_and_go_to_the_source(header in any_header(), later_fragment: bool, len in 0usize..2000, mtu: u16) {
            let fragment_offset = if later_fragment { header.fragment_offset } else { 0 };
            let header = ipv4::Header { fragment_offset, ..header };
            let mut offending = vec![0; 20];
            header.emit(&mut offending, len).unwrap();
            offending.resize(20 + len, 3);
            let mut out = [0xee; MAX_ERROR_LEN];
            match build_error(&mut out, Error::TooBig { mtu }, ROUTER, &offending) {
                Ok(n) => {
                    prop_assert!(header.fragment_offset == 0);
                    let v = ipv4::View::parse(&out[..n]).unwrap();
                    prop_assert_eq!((v.src(), v.dst(), v.protocol()), (ROUTER, header.src, 1));
                    let Ok(Message::Error { error, quoted }) = Message::parse(v.payload()) else { panic!("no error") };
                    prop_assert_eq!(error, Error::TooBig { mtu });
                    prop_assert_eq!(quoted, &offending[..(20 + len).min(548)]);
                    prop_assert_eq!(ipv4::View::parse_quoted(quoted).unwrap().header(), header);
                }
                Err(e) => {
                    prop_assert_eq!(e, WireError::NotAnswerable);
                    prop_assert!(!is_answerable(&ipv4::View::parse(&offending).unwrap()));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::parse(&bytes);
            let _ = build_error(&mut [0; 600], Error::TimeExceeded(0), ROUTER, &bytes);
            let _ = make_echo_reply(&mut bytes);
            let len = bytes.len();
            if len >= 8 {
                checksum::fill(Sum::ZERO, &mut bytes, 2).unwrap();
                let mut again = vec![0; len];
                let message = Message::parse(&bytes).unwrap();
                prop_assert_eq!(message.emit(&mut again).unwrap(), len);
            }
        }
    }

    #[test]
    fn no_error_is_sent_about_what_must_not_be_answered() {
        let ask =
            |p: &[u8]| build_error(&mut [0; 576], Error::TimeExceeded(0), ROUTER, p).map(|_| ());
        let refused = Err(WireError::NotAnswerable);
        assert_eq!(ask(&packet(17, &[1; 8])), Ok(()));
        assert_eq!(ask(&packet(1, &[8; 8])), Ok(()), "an echo request");
        for kind in [3, 4, 5, 11, 12] {
            assert_eq!(ask(&packet(1, &[kind; 8])), refused, "ICMP type {kind}");
        }
        assert_eq!(ask(&packet(1, &[])), refused);
        let with = |f: &dyn Fn(&mut ipv4::Header)| {
            let mut h = ipv4::Header::new([10, 0, 0, 1].into(), [10, 9, 0, 1].into(), 17);
            f(&mut h);
            let mut p = [0; 28];
            h.emit(&mut p, 8).unwrap();
            ask(&p)
        };
        assert_eq!(with(&|h| h.fragment_offset = 8), refused);
        assert_eq!(with(&|h| h.more_fragments = true), Ok(()));
        assert_eq!(with(&|h| h.dst = Ipv4Addr::BROADCAST), refused);
        assert_eq!(with(&|h| h.dst = [224, 0, 0, 1].into()), refused);
        assert_eq!(with(&|h| h.src = Ipv4Addr::UNSPECIFIED), refused);
        assert_eq!(with(&|h| h.src = [127, 0, 0, 1].into()), refused);
        assert_eq!(with(&|h| h.src = [239, 0, 0, 1].into()), refused);
    }
}
