//! The ICMP messages a router sends, for IPv4 (RFC 792, RFC 1812 section 4.3)
//! and IPv6 (RFC 4443): answers to echo requests, and errors about packets it
//! could not deliver, in the version of the packet. What may not be answered
//! (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4) is not, and every kind of
//! message has its own limit per second, so that nobody can make the router shout.

use core::time::Duration;
use std::net::IpAddr;

use mef_packet::wire::ip::View;
use mef_packet::wire::{icmpv4, icmpv6, ipv4, ipv6, WireError};
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
    /// Needs to be fragmented and must not be (RFC 1191; packet too big, RFC 8201); the largest
    /// packet that passes, bytes.
    FragmentationNeeded {
        mtu: u16,
    },
    /// Communication administratively prohibited.
    Prohibited,
    /// Time to live, or hop limit, exceeded in transit.
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

    const fn v4(self) -> icmpv4::Error {
        use icmpv4::unreachable;
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

    /// About `offending`, in whose header the protocol is named.
    fn v6(self, offending: &ipv6::View<'_>) -> icmpv6::Error {
        use icmpv6::{parameter_problem, unreachable};
        match self {
            Self::NetUnreachable => icmpv6::Error::Unreachable(unreachable::NO_ROUTE),
            Self::HostUnreachable => icmpv6::Error::Unreachable(unreachable::ADDRESS),
            Self::ProtocolUnreachable => icmpv6::Error::ParameterProblem {
                code: parameter_problem::NEXT_HEADER,
                pointer: offending.protocol_at().into(),
            },
            Self::PortUnreachable => icmpv6::Error::Unreachable(unreachable::PORT),
            // Every IPv6 host relies on 1280 (RFC 8200, 5): a smaller figure would be disregarded.
            Self::FragmentationNeeded { mtu } => icmpv6::Error::TooBig {
                mtu: mtu.max(ipv6::MIN_MTU).into(),
            },
            Self::Prohibited => {
                icmpv6::Error::Unreachable(unreachable::ADMINISTRATIVELY_PROHIBITED)
            }
            Self::TimeExceeded => icmpv6::Error::TimeExceeded(0),
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

    /// Writes to `out` the packet that tells the sender of `offending`
    /// (an IP packet as it arrived) about `error`. `source` is the router's
    /// address of the same version, on the port it arrived at if there is one; `broadcast` says
    /// that it came in a link-layer broadcast or is for a broadcast address that only the
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
        let martian = is_martian(view.src()) || is_martian(view.dst());
        if broadcast || martian || source.is_unspecified() {
            return Err(DropReason::NotAnswerable);
        }
        let answerable = match &view {
            View::V4(v) => icmpv4::is_answerable(v),
            View::V6(v) => icmpv6::is_answerable(v),
        };
        if !answerable {
            return Err(DropReason::NotAnswerable);
        }
        self.take(now, error.kind())?;
        out.resize(icmpv4::MAX_ERROR_LEN.max(icmpv6::MAX_ERROR_LEN), 0);
        let built = match (&view, source) {
            (View::V4(_), IpAddr::V4(source)) => {
                icmpv4::build_error(out, error.v4(), source, offending)
            }
            (View::V6(v), IpAddr::V6(source)) => {
                icmpv6::build_error(out, error.v6(v), source, offending)
            }
            _ => Err(WireError::NotAnswerable),
        };
        // Cut to what was written, or to nothing.
        out.truncate(built.unwrap_or(0));
        built?;
        Ok(())
    }

    /// Writes to `out` the answer to the echo request `request`, an IP
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
        if !view.is_icmp() {
            return Err(DropReason::NoListener);
        }
        let made = match &view {
            View::V4(v) => self.echo_reply_v4(now, v, out),
            View::V6(v) => self.echo_reply_v6(now, v, out),
        };
        if made.is_err() {
            out.clear();
        }
        made
    }

    fn echo_reply_v4(
        &mut self,
        now: Instant,
        view: &ipv4::View<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        use icmpv4::Message;
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
        let header = ipv4::Header {
            dscp_ecn: view.dscp_ecn() & 0xfc,
            dont_fragment: view.dont_fragment(),
            ..ipv4::Header::new(view.dst(), view.src(), ipv4::PROTOCOL_ICMP)
        };
        out.resize(ipv4::HEADER_LEN + reply.len(), 0);
        let (head, body) = out
            .split_at_mut_checked(ipv4::HEADER_LEN)
            .ok_or(WireError::NoRoom)?;
        let len = reply.emit(body)?;
        Ok(header.emit(head, len)?)
    }

    fn echo_reply_v6(
        &mut self,
        now: Instant,
        view: &ipv6::View<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), DropReason> {
        use icmpv6::Message;
        let (src, dst) = (view.src(), view.dst());
        let Message::EchoRequest { ident, seq, data } = Message::parse(view.payload(), src, dst)?
        else {
            return Err(DropReason::NoListener);
        };
        // On the port itself a link-local address is as good as any.
        let martian = |a| is_martian(IpAddr::V6(a)) && !ipv6::is_link_local(a);
        if martian(src) {
            return Err(DropReason::MartianSource);
        }
        if martian(dst) {
            return Err(DropReason::MartianDestination);
        }
        self.take(now, ECHO)?;
        let reply = Message::EchoReply { ident, seq, data };
        let header = ipv6::Header {
            traffic_class: view.traffic_class() & 0xfc,
            ..ipv6::Header::new(dst, src, ipv6::PROTOCOL_ICMPV6)
        };
        out.resize(ipv6::HEADER_LEN + reply.len(), 0);
        reply.emit_packet(out, &header)?;
        Ok(())
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
mod tests;
