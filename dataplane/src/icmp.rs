//! The ICMP messages a router sends (RFC 792, RFC 1812 section 4.3): answers to
//! echo requests, and errors about packets it could not deliver. What may not
//! be answered (RFC 1812 section 4.3.2.7) is not, and every kind of message
//! has its own limit per second, so that nobody can make the router shout.

use core::time::Duration;
use std::net::IpAddr;

use mef_packet::wire::icmpv4::{self, unreachable, Message};
use mef_packet::wire::ipv4::{self, Header, View};
use mef_packet::wire::WireError;
use mef_packet::Instant;

use crate::drops::DropReason;
use crate::fib::is_martian;

/// Messages of each kind per second, unless told otherwise.
pub const DEFAULT_RATE: u32 = 1000;

/// What is said about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpError {
    NetUnreachable,
    HostUnreachable,
    ProtocolUnreachable,
    PortUnreachable,
    /// Needs to be fragmented and must not be (RFC 1191); the largest packet that passes, bytes.
    FragmentationNeeded {
        mtu: u16,
    },
    /// Communication administratively prohibited.
    Prohibited,
    /// Time to live exceeded in transit.
    TimeExceeded,
}

/// Number of limiters: one for echo replies, one for each kind of error.
const KINDS: usize = 8;
const ECHO: usize = 7;

impl IcmpError {
    const fn kind(self) -> usize {
        match self {
            Self::NetUnreachable => 0,
            Self::HostUnreachable => 1,
            Self::ProtocolUnreachable => 2,
            Self::PortUnreachable => 3,
            Self::FragmentationNeeded { .. } => 4,
            Self::Prohibited => 5,
            Self::TimeExceeded => 6,
        }
    }

    const fn on_the_wire(self) -> icmpv4::Error {
        match self {
            Self::NetUnreachable => icmpv4::Error::Unreachable(unreachable::NETWORK),
            Self::HostUnreachable => icmpv4::Error::Unreachable(unreachable::HOST),
            Self::ProtocolUnreachable => icmpv4::Error::Unreachable(unreachable::PROTOCOL),
            Self::PortUnreachable => icmpv4::Error::Unreachable(unreachable::PORT),
            Self::FragmentationNeeded { mtu } => icmpv4::Error::TooBig { mtu },
            Self::Prohibited => {
                icmpv4::Error::Unreachable(unreachable::ADMINISTRATIVELY_PROHIBITED)
            }
            Self::TimeExceeded => icmpv4::Error::TimeExceeded(0),
        }
    }
}

/// A token bucket: `rate` per second, at most a tenth of a second's worth at once.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Time that one message costs; `None` lets nothing pass.
    cost: Option<Duration>,
    /// The moment until which past messages have used up the rate.
    used_until: Instant,
}

const BURST: Duration = Duration::from_millis(100);

impl Bucket {
    fn new(rate: u32) -> Self {
        Self {
            cost: Duration::from_secs(1).checked_div(rate),
            used_until: Instant::ZERO,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let Some(cost) = self.cost else { return false };
        let from = self.used_until.max(now - BURST);
        // One message is always allowed at a rate below 10/s, where it costs more than the burst.
        if from + cost.min(BURST) > now {
            return false;
        }
        self.used_until = from + cost;
        true
    }
}

/// Makes the router's ICMP messages, within their limits.
#[derive(Clone, Debug)]
pub struct Icmp {
    buckets: [Bucket; KINDS],
    /// Messages not sent because of the limit.
    pub limited: u64,
}

impl Default for Icmp {
    fn default() -> Self {
        Self::new(DEFAULT_RATE)
    }
}

impl Icmp {
    /// `rate` is the number of messages per second of each kind; 0 sends none.
    pub fn new(rate: u32) -> Self {
        Self {
            buckets: [Bucket::new(rate); KINDS],
            limited: 0,
        }
    }

    /// Writes to `out` the IPv4 packet that tells the sender of `offending`
    /// (an IPv4 packet as it arrived) about `error`. `source` is the router's
    /// address on the port it arrived at; `broadcast` says that it came in a
    /// link-layer broadcast or is for a broadcast address that only the
    /// forwarding table knows.
    ///
    /// # Errors
    /// [`DropReason::NotAnswerable`] if nothing may be said about the packet,
    /// [`DropReason::RateLimited`], or what is wrong with its header; `out` is empty then.
    pub fn error(
        &mut self,
        now: Instant,
        error: IcmpError,
        offending: &[u8],
        source: IpAddr,
        broadcast: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        out.clear();
        let view = View::parse_unverified(offending)?;
        let martian = is_martian(view.src().into()) || is_martian(view.dst().into());
        let IpAddr::V4(source) = source else {
            return Err(DropReason::NotAnswerable);
        };
        if broadcast || martian || !icmpv4::is_answerable(&view) {
            return Err(DropReason::NotAnswerable);
        }
        self.take(now, error.kind())?;
        out.resize(icmpv4::MAX_ERROR_LEN, 0);
        let built = icmpv4::build_error(out, error.on_the_wire(), source, offending);
        // Cut to what was written, or to nothing.
        out.truncate(built.unwrap_or(0));
        built?;
        Ok(())
    }

    /// Writes to `out` the answer to the echo request `request`, an IPv4
    /// packet for one of the router's own addresses. Options are not returned.
    ///
    /// # Errors
    /// [`DropReason::NoListener`] for other ICMP messages, [`DropReason::FragmentUnsupported`]
    /// for part of one, [`DropReason::MartianSource`] or [`DropReason::MartianDestination`] where
    /// an answer has nowhere to go, [`DropReason::RateLimited`], or what is wrong with the packet;
    /// `out` is empty then.
    pub fn echo_reply(
        &mut self,
        now: Instant,
        request: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        out.clear();
        let view = View::parse(request)?;
        if view.is_fragment() {
            return Err(DropReason::FragmentUnsupported);
        }
        if view.protocol() != ipv4::PROTOCOL_ICMP {
            return Err(DropReason::NoListener);
        }
        let Message::EchoRequest { ident, seq, data } = Message::parse(view.payload())? else {
            return Err(DropReason::NoListener);
        };
        if is_martian(view.src().into()) {
            return Err(DropReason::MartianSource);
        }
        if is_martian(view.dst().into()) {
            return Err(DropReason::MartianDestination);
        }
        self.take(now, ECHO)?;
        let reply = Message::EchoReply { ident, seq, data };
        // The sender's class of service, but not its ECN bits: nothing here responds to marks.
        let header = Header {
            dscp_ecn: view.dscp_ecn() & 0xfc,
            dont_fragment: view.dont_fragment(),
            ..Header::new(view.dst(), view.src(), ipv4::PROTOCOL_ICMP)
        };
        out.resize(ipv4::HEADER_LEN + reply.len(), 0);
        let emitted = match out.split_at_mut_checked(ipv4::HEADER_LEN) {
            Some((head, body)) => reply.emit(body).and_then(|len| header.emit(head, len)),
            None => Err(WireError::NoRoom),
        };
        if emitted.is_err() {
            out.clear();
        }
        Ok(emitted?)
    }

    fn take(&mut self, now: Instant, kind: usize) -> Result<(), DropReason> {
        if self
            .buckets
            .get_mut(kind)
            .is_some_and(|bucket| bucket.take(now))
        {
            return Ok(());
        }
        self.limited += 1;
        Err(DropReason::RateLimited)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mef_packet::wire::checksum::Sum;
    use proptest::prelude::*;

    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
    const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const NOW: Instant = Instant::from_millis(5_000);

    fn packet(header: Header, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0; ipv4::HEADER_LEN];
        header.emit(&mut p, payload.len()).unwrap();
        p.extend_from_slice(payload);
        p
    }

    fn udp(src: Ipv4Addr, dst: Ipv4Addr, len: usize) -> Vec<u8> {
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        packet(Header::new(src, dst, ipv4::PROTOCOL_UDP), &payload)
    }

    fn error(kind: IcmpError, offending: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut out = vec![1, 2, 3];
        let result = Icmp::default().error(NOW, kind, offending, ROUTER.into(), false, &mut out);
        assert_eq!(out.is_empty(), result.is_err());
        result.map(|()| out)
    }

    #[test]
    fn errors_quote_the_packet_and_say_what_they_should() {
        let offending = udp(HOST, FAR, 100);
        for (kind, expected) in [
            (IcmpError::NetUnreachable, [3, 0, 0, 0]),
            (IcmpError::HostUnreachable, [3, 1, 0, 0]),
            (IcmpError::ProtocolUnreachable, [3, 2, 0, 0]),
            (IcmpError::PortUnreachable, [3, 3, 0, 0]),
            (
                IcmpError::FragmentationNeeded { mtu: 1400 },
                [3, 4, 0x05, 0x78],
            ),
            (IcmpError::Prohibited, [3, 13, 0, 0]),
            (IcmpError::TimeExceeded, [11, 0, 0, 0]),
        ] {
            let sent = error(kind, &offending).unwrap();
            let view = View::parse(&sent).unwrap();
            assert_eq!(
                (view.src(), view.dst(), view.ttl(), view.protocol()),
                (ROUTER, HOST, 64, 1)
            );
            assert_eq!(usize::from(view.total_len()), sent.len());
            let icmp = view.payload();
            assert!(Sum::ZERO.bytes(icmp).is_valid());
            assert_eq!([icmp[0], icmp[1], icmp[6], icmp[7]], expected, "{kind:?}");
            assert_eq!(&icmp[4..6], [0, 0]);
            assert_eq!(&icmp[8..], offending);
        }
    }

    #[test]
    fn long_packets_are_quoted_up_to_576_bytes_and_padding_not_at_all() {
        let long = udp(HOST, FAR, 1400);
        assert_eq!(error(IcmpError::TimeExceeded, &long).unwrap().len(), 576);
        let mut padded = udp(HOST, FAR, 1);
        padded.extend_from_slice(&[0xee; 25]);
        assert_eq!(
            error(IcmpError::TimeExceeded, &padded).unwrap().len(),
            20 + 8 + 21
        );
    }

    #[test]
    fn what_may_not_be_answered_is_not() {
        let icmp = |kind: u8| packet(Header::new(HOST, FAR, 1), &[kind, 0, 0, 0, 0, 0, 0, 0]);
        for kind in [3, 4, 5, 11, 12] {
            assert_eq!(
                error(IcmpError::TimeExceeded, &icmp(kind)),
                Err(DropReason::NotAnswerable),
                "type {kind}"
            );
        }
        for kind in [0, 8, 13] {
            assert!(
                error(IcmpError::TimeExceeded, &icmp(kind)).is_ok(),
                "type {kind}"
            );
        }
        let empty = packet(Header::new(HOST, FAR, 1), &[]);
        assert_eq!(
            error(IcmpError::TimeExceeded, &empty),
            Err(DropReason::NotAnswerable)
        );

        let mut fragment = Header::new(HOST, FAR, 17);
        fragment.dont_fragment = false;
        fragment.more_fragments = true;
        assert!(error(IcmpError::TimeExceeded, &packet(fragment, &[0; 8])).is_ok());
        fragment.fragment_offset = 8;
        assert_eq!(
            error(IcmpError::TimeExceeded, &packet(fragment, &[0; 8])),
            Err(DropReason::NotAnswerable)
        );

        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
        ] {
            let bad: Ipv4Addr = bad.parse().unwrap();
            assert_eq!(
                error(IcmpError::HostUnreachable, &udp(bad, FAR, 8)),
                Err(DropReason::NotAnswerable),
                "from {bad}"
            );
            assert_eq!(
                error(IcmpError::HostUnreachable, &udp(HOST, bad, 8)),
                Err(DropReason::NotAnswerable),
                "to {bad}"
            );
        }
        let mut out = Vec::new();
        let broadcast = Icmp::default().error(
            NOW,
            IcmpError::PortUnreachable,
            &udp(HOST, FAR, 8),
            ROUTER.into(),
            true,
            &mut out,
        );
        assert_eq!(broadcast, Err(DropReason::NotAnswerable));
    }

    fn echo(data: &[u8]) -> Vec<u8> {
        let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 7];
        icmp.extend_from_slice(data);
        let sum = Sum::ZERO.bytes(&icmp).checksum().to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        packet(
            Header {
                dscp_ecn: 0xb8,
                ..Header::new(HOST, ROUTER, 1)
            },
            &icmp,
        )
    }

    fn reply_to(request: &[u8]) -> Result<Vec<u8>, DropReason> {
        let mut out = vec![9];
        let result = Icmp::default().echo_reply(NOW, request, &mut out);
        assert_eq!(out.is_empty(), result.is_err());
        result.map(|()| out)
    }

    #[test]
    fn echo_is_answered_with_its_own_bytes() {
        for len in [0, 1, 56, 1472, 65_000] {
            let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let reply = reply_to(&echo(&data)).unwrap();
            let view = View::parse(&reply).unwrap();
            assert_eq!(
                (view.src(), view.dst(), view.ttl(), view.dscp_ecn()),
                (ROUTER, HOST, 64, 0xb8)
            );
            assert!(Sum::ZERO.bytes(view.payload()).is_valid());
            assert_eq!(&view.payload()[..2], [0, 0]);
            assert_eq!(&view.payload()[4..8], [0x12, 0x34, 0, 7]);
            assert_eq!(&view.payload()[8..], data);
        }
    }

    #[test]
    fn what_is_no_sound_echo_request_is_refused() {
        let good = echo(&[1; 30]);
        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(reply_to(&damaged), Err(DropReason::BadChecksum));
        assert_eq!(reply_to(&good[..40]), Err(DropReason::Truncated));
        assert_eq!(
            reply_to(&udp(HOST, ROUTER, 30)),
            Err(DropReason::NoListener)
        );
        assert_eq!(
            reply_to(&reply_to(&good).unwrap()),
            Err(DropReason::NoListener)
        );
        let short = packet(Header::new(HOST, ROUTER, 1), &[8, 0, 0xf7, 0xff]);
        assert_eq!(reply_to(&short), Err(DropReason::Truncated));
        let fragment = Header {
            more_fragments: true,
            dont_fragment: false,
            ..Header::new(HOST, ROUTER, 1)
        };
        assert_eq!(
            reply_to(&packet(fragment, &good[20..])),
            Err(DropReason::FragmentUnsupported)
        );
        let from_nobody = packet(Header::new(Ipv4Addr::UNSPECIFIED, ROUTER, 1), &good[20..]);
        assert_eq!(reply_to(&from_nobody), Err(DropReason::MartianSource));
        let to_all = packet(Header::new(HOST, Ipv4Addr::BROADCAST, 1), &good[20..]);
        assert_eq!(reply_to(&to_all), Err(DropReason::MartianDestination));
    }

    #[test]
    fn each_kind_has_its_own_limit() {
        let mut icmp = Icmp::new(1000);
        let (offending, mut out) = (udp(HOST, FAR, 8), Vec::new());
        let mut sent = |icmp: &mut Icmp, kind, from: u64, to: u64, step: usize| {
            (from..to)
                .step_by(step)
                .filter(|us| {
                    icmp.error(
                        Instant::from_micros(*us),
                        kind,
                        &offending,
                        ROUTER.into(),
                        false,
                        &mut out,
                    )
                    .is_ok()
                })
                .count()
        };
        // 100 at once, then 1000 a second, whatever is asked for.
        let n = sent(&mut icmp, IcmpError::TimeExceeded, 1_000_000, 2_000_000, 10);
        assert!((1099..=1101).contains(&n), "{n}");
        assert_eq!(icmp.limited, 100_000 - n as u64);
        assert_eq!(
            sent(
                &mut icmp,
                IcmpError::HostUnreachable,
                2_000_000,
                2_000_050,
                1
            ),
            50
        );
        // A long pause is not saved up.
        let n = sent(
            &mut icmp,
            IcmpError::TimeExceeded,
            60_000_000,
            60_001_000,
            1,
        );
        assert!((100..=102).contains(&n), "{n}");
        assert_eq!(
            sent(&mut Icmp::new(0), IcmpError::TimeExceeded, 1, 1_000, 1),
            0
        );
        assert_eq!(
            sent(
                &mut Icmp::new(1),
                IcmpError::TimeExceeded,
                10_000_000,
                20_000_000,
                1_000
            ),
            10
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_nor_make_a_broken_answer(mut bytes in prop::collection::vec(any::<u8>(), 0..700), fix: bool) {
            if let Some(first) = bytes.first_mut().filter(|_| fix) {
                *first = 0x40 | (*first & 0x0f);
            }
            let answers = [error(IcmpError::FragmentationNeeded { mtu: 1280 }, &bytes), reply_to(&bytes)];
            for out in answers.into_iter().flatten() {
                let view = View::parse(&out).unwrap();
                prop_assert!(Sum::ZERO.bytes(view.payload()).is_valid());
                prop_assert!(out.len() <= icmpv4::MAX_ERROR_LEN || view.payload()[0] == 0);
            }
        }
    }
}
