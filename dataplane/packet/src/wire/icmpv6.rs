//! ICMPv6 (RFC 4443): echo, the errors that a router sends and reads, whether it
//! may send one at all; and the messages of Neighbour Discovery (RFC 4861) that
//! find a neighbour's Ethernet address.

use super::checksum::{self, pseudo_header};
use super::ipv6::{self, PROTOCOL_ICMPV6};
use super::{array, put, u16_at, u32_at, u8_at, MacAddr, WireError};
use core::net::Ipv6Addr;

pub const HEADER_LEN: usize = 8;
/// An error with its IP header is at most this long (RFC 4443, 2.4 c).
pub const MAX_ERROR_LEN: usize = ipv6::MIN_MTU as usize;
/// Where in the message the checksum is.
pub const CHECKSUM_AT: usize = 2;
/// The hop limit of Neighbour Discovery: nothing that was forwarded has it.
pub const ND_HOP_LIMIT: u8 = 255;
/// Bytes of a solicitation or advertisement with one link-layer address.
pub const ND_LEN: usize = 32;

const UNREACHABLE: u8 = 1;
const TOO_BIG: u8 = 2;
const TIME_EXCEEDED: u8 = 3;
const PARAMETER_PROBLEM: u8 = 4;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;

/// Codes of "destination unreachable" that a router sends or meets.
pub mod unreachable {
    pub const NO_ROUTE: u8 = 0;
    pub const ADMINISTRATIVELY_PROHIBITED: u8 = 1;
    pub const ADDRESS: u8 = 3;
    pub const PORT: u8 = 4;
}

/// Codes of "parameter problem".
pub mod parameter_problem {
    pub const ERRONEOUS_FIELD: u8 = 0;
    pub const NEXT_HEADER: u8 = 1;
    pub const OPTION: u8 = 2;
}

/// An error about somebody's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A code of [`unreachable`].
    Unreachable(u8),
    /// The MTU of the next hop, bytes.
    TooBig { mtu: u32 },
    /// Code 0 in transit, 1 in reassembly.
    TimeExceeded(u8),
    /// A code of [`parameter_problem`], and the offset of what is wrong in the packet.
    ParameterProblem { code: u8, pointer: u32 },
}

/// An ICMPv6 message.
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
    /// `quoted` begins with the IP header of the packet it is about: see [`ipv6::View::parse_quoted`].
    Error {
        error: Error,
        quoted: &'a [u8],
    },
    /// Who has `target`? `source` is the asker's Ethernet address, absent while it checks whether
    /// the address is free.
    Solicitation {
        target: Ipv6Addr,
        source: Option<MacAddr>,
    },
    Advertisement(Advertisement),
    /// Everything else; `body` is what follows the checksum.
    Other {
        kind: u8,
        code: u8,
        body: &'a [u8],
    },
}

/// Where `target` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub target: Ipv6Addr,
    /// The Ethernet address; absent where the asker used it to ask.
    pub mac: Option<MacAddr>,
    /// The sender is a router.
    pub router: bool,
    /// Answers a solicitation.
    pub solicited: bool,
    /// Replaces what is known.
    pub replaces: bool,
}

/// The Ethernet address in the options of a Neighbour Discovery message; an option without length
/// makes the whole message invalid (RFC 4861, 4.6), one of another kind is skipped.
fn link_layer_address(mut options: &[u8], kind: u8) -> Result<Option<MacAddr>, WireError> {
    let mut found = None;
    while !options.is_empty() {
        let len = usize::from(u8_at(options, 1)) * 8;
        let (option, rest) = options
            .split_at_checked(len)
            .filter(|(option, _)| !option.is_empty())
            .ok_or(WireError::BadNeighbourDiscovery)?;
        if u8_at(option, 0) == kind && len == 8 {
            found = Some(array(option, 2));
        }
        options = rest;
    }
    Ok(found)
}

impl<'a> Message<'a> {
    /// The message that the payload of an IPv6 packet from `src` to `dst` consists of.
    ///
    /// # Errors
    /// `Truncated` below 8 bytes, `BadChecksum`, `BadNeighbourDiscovery`.
    pub fn parse(bytes: &'a [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<Self, WireError> {
        let rest = bytes.get(HEADER_LEN..).ok_or(WireError::Truncated)?;
        checksum::verify(pseudo_header(src, dst, PROTOCOL_ICMPV6, bytes.len()), bytes)?;
        let (kind, code, word) = (u8_at(bytes, 0), u8_at(bytes, 1), u32_at(bytes, 4));
        let (ident, seq) = (u16_at(bytes, 4), u16_at(bytes, 6));
        let error = |error| Self::Error {
            error,
            quoted: rest,
        };
        let options = || rest.get(16..).ok_or(WireError::BadNeighbourDiscovery);
        Ok(match (kind, code) {
            (ECHO_REQUEST, 0) => Self::EchoRequest {
                ident,
                seq,
                data: rest,
            },
            (ECHO_REPLY, 0) => Self::EchoReply {
                ident,
                seq,
                data: rest,
            },
            (UNREACHABLE, code) => error(Error::Unreachable(code)),
            (TOO_BIG, _) => error(Error::TooBig { mtu: word }),
            (TIME_EXCEEDED, code) => error(Error::TimeExceeded(code)),
            (PARAMETER_PROBLEM, code) => error(Error::ParameterProblem {
                code,
                pointer: word,
            }),
            (SOLICITATION, 0) => Self::Solicitation {
                source: link_layer_address(options()?, OPTION_SOURCE)?,
                target: array::<16>(rest, 0).into(),
            },
            (ADVERTISEMENT, 0) => Self::Advertisement(Advertisement {
                mac: link_layer_address(options()?, OPTION_TARGET)?,
                target: array::<16>(rest, 0).into(),
                router: word >> 31 & 1 != 0,
                solicited: word >> 30 & 1 != 0,
                replaces: word >> 29 & 1 != 0,
            }),
            (SOLICITATION | ADVERTISEMENT, _) => return Err(WireError::BadNeighbourDiscovery),
            _ => Self::Other {
                kind,
                code,
                body: bytes.get(4..).unwrap_or(&[]),
            },
        })
    }

    /// Bytes that [`emit`](Self::emit) writes.
    pub fn len(&self) -> usize {
        let option = |mac: &Option<MacAddr>| if mac.is_some() { 8 } else { 0 };
        match self {
            Self::EchoRequest { data, .. } | Self::EchoReply { data, .. } => {
                HEADER_LEN + data.len()
            }
            Self::Error { quoted, .. } => HEADER_LEN + quoted.len(),
            Self::Solicitation { source, .. } => HEADER_LEN + 16 + option(source),
            Self::Advertisement(a) => HEADER_LEN + 16 + option(&a.mac),
            Self::Other { body, .. } => 4 + body.len(),
        }
    }
    /// Never: a message has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the message, with the checksum it has on the way from `src` to `dst`; returns its length.
    ///
    /// # Errors
    /// `NoRoom` if `out` is shorter than that, or `Other` has a body below 4 bytes.
    pub fn emit(&self, out: &mut [u8], src: Ipv6Addr, dst: Ipv6Addr) -> Result<usize, WireError> {
        let len = self.len();
        let out = out.get_mut(..len).ok_or(WireError::NoRoom)?;
        if len < HEADER_LEN {
            return Err(WireError::NoRoom);
        }
        let mut head = |kind: u8, code: u8, word: u32, data: &[u8]| {
            put(out, 0, &[kind, code, 0, 0])?;
            put(out, 4, &word.to_be_bytes())?;
            put(out, HEADER_LEN, data)
        };
        let echo = |ident: u16, seq: u16| u32::from(ident) << 16 | u32::from(seq);
        let mut option = None;
        match *self {
            Self::EchoRequest { ident, seq, data } => {
                head(ECHO_REQUEST, 0, echo(ident, seq), data)?
            }
            Self::EchoReply { ident, seq, data } => head(ECHO_REPLY, 0, echo(ident, seq), data)?,
            Self::Error { error, quoted } => match error {
                Error::Unreachable(code) => head(UNREACHABLE, code, 0, quoted)?,
                Error::TooBig { mtu } => head(TOO_BIG, 0, mtu, quoted)?,
                Error::TimeExceeded(code) => head(TIME_EXCEEDED, code, 0, quoted)?,
                Error::ParameterProblem { code, pointer } => {
                    head(PARAMETER_PROBLEM, code, pointer, quoted)?
                }
            },
            Self::Solicitation { target, source } => {
                head(SOLICITATION, 0, 0, &target.octets())?;
                option = source.map(|mac| (OPTION_SOURCE, mac));
            }
            Self::Advertisement(a) => {
                let flags = u32::from(a.router) << 31
                    | u32::from(a.solicited) << 30
                    | u32::from(a.replaces) << 29;
                head(ADVERTISEMENT, 0, flags, &a.target.octets())?;
                option = a.mac.map(|mac| (OPTION_TARGET, mac));
            }
            Self::Other { kind, code, body } => {
                put(out, 0, &[kind, code, 0, 0])?;
                put(out, 4, body)?;
            }
        }
        if let Some((kind, mac)) = option {
            put(out, HEADER_LEN + 16, &[kind, 1])?;
            put(out, HEADER_LEN + 18, &mac)?;
        }
        let pseudo = pseudo_header(src, dst, PROTOCOL_ICMPV6, len);
        checksum::fill(pseudo, out, CHECKSUM_AT)?;
        Ok(len)
    }

    /// Writes a whole packet with the message, from its IPv6 header on; returns its length.
    ///
    /// # Errors
    /// `NoRoom`, as for [`emit`](Self::emit).
    pub fn emit_packet(&self, out: &mut [u8], header: &ipv6::Header) -> Result<usize, WireError> {
        let (head, body) = out
            .split_at_mut_checked(ipv6::HEADER_LEN)
            .ok_or(WireError::NoRoom)?;
        let len = self.emit(body, header.src, header.dst)?;
        header.emit(head, len)?;
        Ok(ipv6::HEADER_LEN + len)
    }
}

/// Whether an ICMPv6 error may be sent about `packet` (RFC 4443, 2.4 e): not about errors and
/// redirects, nor to a source that is no single node; and not about a later fragment, whose
/// sender could not tell what it is about. A multicast destination is answerable to none of the
/// errors that this router sends. Packets that came as link-layer multicast are the caller's to sort out.
pub fn is_answerable(packet: &ipv6::View<'_>) -> bool {
    let (src, dst) = (packet.src(), packet.dst());
    let about_error = packet.protocol() == PROTOCOL_ICMPV6
        && packet
            .payload()
            .first()
            .is_none_or(|kind| *kind < ECHO_REQUEST || *kind == REDIRECT);
    let later = packet.fragment().is_some_and(|f| f.offset != 0);
    let bad_src = src.is_unspecified() || src.is_loopback() || src.is_multicast();
    !(bad_src || dst.is_multicast() || later || about_error)
}

/// Writes a whole IPv6 packet with an ICMPv6 error about `offending` (an IPv6 packet
/// from its header on) from `src` to the source of that packet; it quotes as much
/// of it as 1280 bytes have room for. Returns its length; `out` of
/// [`MAX_ERROR_LEN`] bytes is always enough.
///
/// # Errors
/// What is wrong with `offending`; `NotAnswerable` if none may be sent about it
/// ([`is_answerable`]); `NoRoom`.
pub fn build_error(
    out: &mut [u8],
    error: Error,
    src: Ipv6Addr,
    offending: &[u8],
) -> Result<usize, WireError> {
    let view = ipv6::View::parse(offending)?;
    if !is_answerable(&view) {
        return Err(WireError::NotAnswerable);
    }
    let room = MAX_ERROR_LEN - ipv6::HEADER_LEN - HEADER_LEN;
    let quoted = offending
        .get(..view.total_len().min(room))
        .unwrap_or(offending);
    let header = ipv6::Header::new(src, view.src(), PROTOCOL_ICMPV6);
    Message::Error { error, quoted }.emit_packet(out, &header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn any_message(data: &[u8]) -> impl Strategy<Value = Message<'_>> {
        let error = prop_oneof![
            any::<u8>().prop_map(Error::Unreachable),
            any::<u32>().prop_map(|mtu| Error::TooBig { mtu }),
            any::<u8>().prop_map(Error::TimeExceeded),
            any::<(u8, u32)>()
                .prop_map(|(code, pointer)| Error::ParameterProblem { code, pointer }),
        ];
        let flags = any::<(bool, bool, bool)>();
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
            error.prop_map(move |error| Message::Error {
                error,
                quoted: data
            }),
            any::<(u128, Option<MacAddr>)>().prop_map(|(target, source)| Message::Solicitation {
                target: target.into(),
                source
            }),
            (any::<(u128, Option<MacAddr>)>(), flags).prop_map(
                |((target, mac), (router, solicited, replaces))| {
                    Message::Advertisement(Advertisement {
                        target: target.into(),
                        mac,
                        router,
                        solicited,
                        replaces,
                    })
                }
            ),
        ]
    }

    #[test]
    fn a_solicitation_as_linux_sends_it() {
        let bytes = [
            0x87, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0,
            0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 9,
        ];
        let (src, target) = (ip("2001:db8:1::2"), ip("2001:db8:1::1"));
        let dst = ipv6::solicited_node(target);
        let message = Message::Solicitation {
            target,
            source: Some([2, 0, 0, 0, 0, 9]),
        };
        let mut out = [0; 100];
        assert_eq!(message.emit(&mut out, src, dst), Ok(ND_LEN));
        let checksum = [out[2], out[3]];
        out[2..4].fill(0);
        assert_eq!(out[..ND_LEN], bytes);
        out[2..4].copy_from_slice(&checksum);
        assert_eq!(Message::parse(&out[..ND_LEN], src, dst), Ok(message));
        // The addresses are part of the sum.
        assert_eq!(
            Message::parse(&out[..ND_LEN], target, dst),
            Err(WireError::BadChecksum)
        );
    }

    #[test]
    fn impossible_neighbour_discovery_is_refused() {
        let (src, dst) = (ip("fe80::1"), ip("fe80::2"));
        let parse = |body: &[u8]| {
            let mut bytes = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], body].concat();
            let pseudo = pseudo_header(src, dst, PROTOCOL_ICMPV6, bytes.len());
            checksum::fill(pseudo, &mut bytes, CHECKSUM_AT).unwrap();
            Message::parse(&bytes, src, dst).map(|_| ())
        };
        let target = [1; 16];
        let with = |options: &[u8]| parse(&[&target[..], options].concat());
        assert_eq!(with(&[]), Ok(()));
        assert_eq!(
            with(&[200, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Ok(())
        );
        for bad in [
            &[1, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 2, 0, 0, 0, 0, 0, 0],
            &[1],
        ] {
            assert_eq!(with(bad), Err(WireError::BadNeighbourDiscovery), "{bad:?}");
        }
        assert_eq!(parse(&target[..15]), Err(WireError::BadNeighbourDiscovery));
    }

    #[test]
    fn what_may_be_answered() {
        let packet = |src: &str, dst: &str, next: u8, payload: &[u8]| {
            let mut p = vec![0; 40];
            ipv6::Header::new(ip(src), ip(dst), next)
                .emit(&mut p, payload.len())
                .unwrap();
            p.extend_from_slice(payload);
            p
        };
        let answerable = |p: &[u8]| is_answerable(&ipv6::View::parse(p).unwrap());
        let (a, b) = ("2001:db8::1", "2001:db8:9::1");
        assert!(answerable(&packet(a, b, 17, &[0; 8])));
        assert!(answerable(&packet(a, b, 58, &[128, 0])));
        assert!(answerable(&packet(a, b, 44, &[17, 0, 0, 1, 0, 0, 0, 1, 5])));
        for no in [
            packet(a, b, 58, &[1, 0]),
            packet(a, b, 58, &[137, 0]),
            packet(a, b, 58, &[]),
            packet(a, "ff02::1", 17, &[0; 8]),
            packet("::", b, 17, &[0; 8]),
            packet("::1", b, 17, &[0; 8]),
            packet("ff02::1", b, 17, &[0; 8]),
            packet(a, b, 44, &[17, 0, 0, 8, 0, 0, 0, 1, 5]),
        ] {
            assert!(!answerable(&no), "{no:?}");
        }
        // However long the packet, the error fits every path.
        let long = packet(a, b, 17, &[7; 3000]);
        let mut out = [0; MAX_ERROR_LEN];
        let len = build_error(
            &mut out,
            Error::TooBig { mtu: 1400 },
            ip("2001:db8::9"),
            &long,
        );
        assert_eq!(len, Ok(1280));
        let v = ipv6::View::parse(&out).unwrap();
        assert_eq!(
            (v.src(), v.dst(), v.hop_limit()),
            (ip("2001:db8::9"), ip(a), 64)
        );
        let Ok(Message::Error { error, quoted }) = Message::parse(v.payload(), v.src(), v.dst())
        else {
            panic!("no error message")
        };
        assert_eq!(error, Error::TooBig { mtu: 1400 });
        assert_eq!(quoted, &long[..1280 - 48]);
    }

    proptest! {
        #[test]
        fn parses_what_it_emits(
            (data, message) in prop::collection::vec(any::<u8>(), 0..60).prop_flat_map(|data| {
                let leaked: &'static [u8] = data.leak();
                (Just(leaked), any_message(leaked))
            }),
            src: u128, dst: u128, flip: prop::sample::Index,
        ) {
            let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
            let mut out = vec![0; 100 + data.len()];
            let len = message.emit(&mut out, src, dst).unwrap();
            prop_assert_eq!(len, message.len());
            prop_assert_eq!(Message::parse(&out[..len], src, dst), Ok(message));
            out[flip.index(len)] ^= 0x10;
            prop_assert_eq!(Message::parse(&out[..len], src, dst), Err(WireError::BadChecksum));
            prop_assert_eq!(message.emit(&mut out[..len - 1], src, dst), Err(WireError::NoRoom));
        }

        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 130u8..140, sound: bool) {
            let (src, dst) = (Ipv6Addr::from(1), Ipv6Addr::from(2));
            if let (true, Some(first)) = (sound && bytes.len() >= 8, bytes.first_mut()) {
                *first = kind;
                let pseudo = pseudo_header(src, dst, PROTOCOL_ICMPV6, bytes.len());
                checksum::fill(pseudo, &mut bytes, CHECKSUM_AT).unwrap();
            }
            let _ = Message::parse(&bytes, src, dst);
            let mut out = [0; MAX_ERROR_LEN];
            let _ = build_error(&mut out, Error::TimeExceeded(0), src, &bytes);
        }
    }
}
