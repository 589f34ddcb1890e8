//! What policy decides for a flow: how it is carried, with which share and
//! class, and what happens where that is not possible.

use core::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use mef_packet::wire::ipv6::PROTOCOL_ICMPV6;
use mef_protocol::classes::Class;

use super::{Config, OpenMode};

/// How a flow is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its host is answered here, its bytes travel as a reliable stream. TCP only.
    Split,
    /// Its packets travel over the link as they are.
    Datagram,
    /// Its packets leave in the clear, past the link.
    Plain,
}

impl Mode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Datagram => "datagram",
            Self::Plain => "plain",
        }
    }
}

/// What becomes of a new flow while its peer has no session, or that is asymmetric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Its host is told that the far one cannot be reached.
    #[default]
    Refuse,
    /// It leaves in the clear, counted and alarmed.
    Plain,
}

/// IP protocols that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
    Tcp,
    Udp,
}

impl Protocol {
    /// The number in the IPv4 header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Whether it is the protocol of `flow`.
    pub const fn is_of(self, flow: &FlowTuple) -> bool {
        match (self, flow.source) {
            (Self::Icmp, IpAddr::V6(_)) => flow.protocol == PROTOCOL_ICMPV6,
            _ => flow.protocol == self.number(),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What the flows that match all given keys are given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    pub source: Option<IpNet>,
    pub destination: Option<IpNet>,
    pub protocol: Option<Protocol>,
    pub port: Option<u16>,
    pub source_port: Option<u16>,
    pub mode: Option<Mode>,
    pub open: Option<OpenMode>,
    pub weight: Option<f64>,
    pub class: Option<Class>,
    pub fallback: Option<Fallback>,
}

/// A flow as policies see it; ports are 0 where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub source_port: u16,
    pub port: u16,
}

impl FlowTuple {
    /// Whether it is ICMP of its own IP version.
    pub const fn is_icmp(&self) -> bool {
        Protocol::Icmp.is_of(self)
    }

    /// The same flow seen from its other end.
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.port,
            port: self.source_port,
        }
    }
}

/// What policy decided for one flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Treatment {
    pub mode: Mode,
    pub open: OpenMode,
    pub weight: f64,
    pub class: Class,
    pub fallback: Fallback,
}

impl Default for Treatment {
    /// What the router's own packets are given.
    fn default() -> Self {
        Self {
            mode: Mode::Datagram,
            open: OpenMode::default(),
            weight: 1.0,
            class: Class::default(),
            fallback: Fallback::default(),
        }
    }
}

impl Treatment {
    /// Whether packets of the flow may be seen in the clear.
    pub fn allows_plain(&self) -> bool {
        self.mode == Mode::Plain || self.fallback == Fallback::Plain
    }
}

impl Policy {
    /// Whether all keys that the policy has match.
    pub fn matches(&self, flow: &FlowTuple) -> bool {
        let ported =
            flow.protocol == Protocol::Tcp.number() || flow.protocol == Protocol::Udp.number();
        self.source.is_none_or(|net| net.contains(&flow.source))
            && self
                .destination
                .is_none_or(|net| net.contains(&flow.destination))
            && self.protocol.is_none_or(|p| p.is_of(flow))
            && self.port.is_none_or(|p| ported && p == flow.port)
            && self
                .source_port
                .is_none_or(|p| ported && p == flow.source_port)
    }
}

/// As `mef router check` shows it: what it matches, and what it decides.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut matched = false;
        let mut on = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            matched = true;
            write!(f, "{text} ")
        };
        if let Some(p) = self.protocol {
            on(f, format_args!("{}", p.as_str()))?;
        }
        if let Some(net) = self.source {
            on(f, format_args!("from {net}"))?;
        }
        if let Some(port) = self.source_port {
            on(f, format_args!("from port {port}"))?;
        }
        if let Some(net) = self.destination {
            on(f, format_args!("to {net}"))?;
        }
        if let Some(port) = self.port {
            on(f, format_args!("to port {port}"))?;
        }
        if !matched {
            f.write_str("everything ")?;
        }
        f.write_str("->")?;
        let mut decided = false;
        let mut given = |f: &mut fmt::Formatter<'_>, text: fmt::Arguments<'_>| {
            decided = true;
            write!(f, " {text}")
        };
        if let Some(mode) = self.mode {
            given(f, format_args!("{}", mode.as_str()))?;
        }
        if let Some(open) = self.open {
            let open = match open {
                OpenMode::Confirm => "confirm",
                OpenMode::Early => "early",
            };
            given(f, format_args!("open {open}"))?;
        }
        if let Some(weight) = self.weight {
            given(f, format_args!("weight {weight}"))?;
        }
        if let Some(class) = self.class {
            let class = match class {
                Class::Latency => "latency",
                Class::Balanced => "balanced",
                Class::Bulk => "bulk",
            };
            given(f, format_args!("class {class}"))?;
        }
        if let Some(fallback) = self.fallback {
            let fallback = match fallback {
                Fallback::Refuse => "refuse",
                Fallback::Plain => "plain",
            };
            given(f, format_args!("fallback {fallback}"))?;
        }
        if !decided {
            f.write_str(" the defaults")?;
        }
        Ok(())
    }
}

impl Config {
    /// The treatment of a flow: that of the first policy that matches, with
    /// TCP split and everything else a datagram flow where it names no mode.
    #[inline]
    pub fn treatment(&self, flow: &FlowTuple) -> Treatment {
        let policy = self.policies.iter().find(|p| p.matches(flow));
        let tcp = flow.protocol == Protocol::Tcp.number();
        let mode = match policy.and_then(|p| p.mode) {
            Some(mode @ (Mode::Datagram | Mode::Plain)) => mode,
            Some(Mode::Split) | None if tcp => Mode::Split,
            Some(Mode::Split) | None => Mode::Datagram,
        };
        Treatment {
            mode,
            open: policy.and_then(|p| p.open).unwrap_or(self.open),
            weight: policy.and_then(|p| p.weight).unwrap_or(1.0),
            class: policy.and_then(|p| p.class).unwrap_or_default(),
            fallback: policy.and_then(|p| p.fallback).unwrap_or_default(),
        }
    }
}
