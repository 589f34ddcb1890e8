//! Topologies: two sites with their hosts and routers, the WAN between them and
//! the load on it, read from one TOML format for namespaces and simulator.
//!
//! ```text
//!  a1 --+                                  +-- b1
//!  a2 --+-- router a ==== WAN ==== router b +-- b2
//! 10.1.N.2          192.0.2.0/29          10.2.N.2
//! 2001:db8:1:N::2   2001:db8:f::/64       2001:db8:2:N::2    with IPv6
//! ```

mod check;
mod file;
mod read;
pub mod units;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use mef_packet::{BitRate, Bytes};
use serde::Deserialize;

use crate::wan::{DirectionConfig, Loss, WanConfig};

pub use read::{read, read_text, read_wan, TopologyError, Variant};

/// When a MEF router answers a host's SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Open {
    /// After the server has accepted.
    #[default]
    Confirm,
    /// At once.
    Early,
}

impl Open {
    pub fn name(self) -> &'static str {
        match self {
            Self::Confirm => "confirm",
            Self::Early => "early",
        }
    }
}

/// The AEAD implementation the routers use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    #[default]
    Ring,
    AesGcm,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::AesGcm => "aes-gcm",
        }
    }
}

/// What the routers' ports stand on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Driver {
    #[default]
    AfPacket,
    /// DPDK's `net_af_packet`, which sees no super-segments: the lab switches the offloads
    /// of its hosts off. For correctness, not for speed.
    Dpdk,
}

/// What a load does; `from` calls connect() in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `from` sends until the run ends.
    Bulk,
    /// `from` sends `size` bytes.
    Transfer,
    /// `from` asks, `to` answers with `size` bytes.
    Request,
    /// `from` sends over TCP at `rate`, as a camera does, until the run ends.
    Stream,
    /// `from` sends UDP datagrams at a constant rate, whatever becomes of them, until the run ends.
    Cbr,
}

impl Kind {
    /// Whether it goes on until the run ends.
    pub fn is_endless(self) -> bool {
        matches!(self, Self::Bulk | Self::Stream | Self::Cbr)
    }
}

/// Class of a load's flows, as in a router's policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    Latency,
    Balanced,
    Bulk,
}

impl Class {
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Balanced => "balanced",
            Self::Bulk => "bulk",
        }
    }
}

/// What routers that are told no capacity optimise for, as in their configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    Latency,
    Balanced,
    Throughput,
}

impl Target {
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Balanced => "balanced",
            Self::Throughput => "throughput",
        }
    }
}

/// An IP version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    #[default]
    Ipv4,
    Ipv6,
}

impl Family {
    /// What a host that speaks this has addresses of.
    pub fn with_ipv4(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Self::Ipv4],
            Self::Ipv6 => &[Self::Ipv4, Self::Ipv6],
        }
    }
}

/// One of the two sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
    fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }
    /// All addresses of the site's hosts in a family.
    pub fn prefix(self, family: Family) -> IpNet {
        match family {
            Family::Ipv4 => net(Ipv4Addr::new(10, self.number(), 0, 0), 16),
            Family::Ipv6 => net(documentation(self.number(), 0, 0), 48),
        }
    }
    /// The router's address on the WAN, with the length of its network.
    pub fn wan_address(self, family: Family) -> IpNet {
        match family {
            Family::Ipv4 => net(Ipv4Addr::new(192, 0, 2, self.number()), 29),
            Family::Ipv6 => net(documentation(0xf, 0, self.number()), 64),
        }
    }
}

/// An address of the block that is for documentation (RFC 3849).
fn documentation(site: u8, network: u8, host: u8) -> Ipv6Addr {
    let [site, network, host] = [site, network, host].map(u16::from);
    Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, host)
}

fn net(address: impl Into<IpAddr>, length: u8) -> IpNet {
    let address = address.into();
    // The lengths written in this module all fit their family.
    IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address))
}

/// A host, alone in its network with its router.
#[derive(Clone, Debug)]
pub struct Host {
    /// `a1`, `a2`, ..., `b1`, ...
    pub name: String,
    pub side: Side,
    /// From 1, in the order of the file.
    pub number: u8,
    /// What loads use; with IPv6 the host has its IPv4 address beside it.
    pub family: Family,
    /// Emulated between the host and its router, both ways alike.
    pub access_delay: Duration,
    /// Share of packets lost there, each way.
    pub access_loss: f64,
    /// Attached to the WAN itself: its traffic shares the line with the routers' and passes neither.
    pub foreign: bool,
}

impl Host {
    /// Where loads find it.
    pub fn address(&self) -> IpAddr {
        self.address_of(self.family).addr()
    }
    /// Its address, with the length of its network.
    pub fn address_of(&self, family: Family) -> IpNet {
        self.station(family, 2)
    }
    /// The router's address in this host's network.
    pub fn gateway_of(&self, family: Family) -> IpNet {
        self.station(family, 1)
    }
    fn station(&self, family: Family, n: u8) -> IpNet {
        let (site, number) = (self.side.number(), self.number);
        if self.foreign {
            let last = site.saturating_mul(100).saturating_add(number);
            return net(Ipv4Addr::new(198, 51, 100, last), 24);
        }
        match family {
            Family::Ipv4 => net(Ipv4Addr::new(10, site, number, n), 24),
            Family::Ipv6 => net(documentation(site, number, n), 64),
        }
    }
    /// The path between the host and its router, `None` if it is a plain cable.
    pub fn access(&self) -> Option<WanConfig> {
        (!self.access_delay.is_zero() || self.access_loss > 0.0).then(|| {
            let one_way = DirectionConfig {
                delay: self.access_delay,
                loss: Loss::Iid(self.access_loss),
                ..DirectionConfig::default()
            };
            WanConfig {
                a_to_b: one_way.clone(),
                b_to_a: one_way,
            }
        })
    }
}

/// Settings of both routers, as far as a topology has a say.
#[derive(Clone, Debug, Default)]
pub struct Router {
    /// What the link between the two runs over.
    pub family: Family,
    /// Capacity that the routers believe in, both directions; the line's own if not given.
    pub configured: Option<BitRate>,
    /// The routers are told nothing and find it out.
    pub auto: Option<Target>,
    pub open: Open,
    pub memory: Option<Bytes>,
    /// IPv6 hosts hear router advertisements.
    pub advertise: bool,
    /// Tables that the configurations of both routers have beside the usual ones.
    pub more: String,
    pub engine: Engine,
    pub driver: Driver,
    /// Workers of each router; the simulator's have one.
    pub workers: Option<u16>,
}

/// One entry of `[[load]]`.
#[derive(Clone, Debug)]
pub struct Load {
    pub kind: Kind,
    /// Index into [`Topology::hosts`].
    pub from: usize,
    pub to: usize,
    /// Bulk: flows side by side. Else: flows of each size.
    pub count: u32,
    /// Empty for bulk.
    pub sizes: Vec<Bytes>,
    pub start: Duration,
    /// Between the end of one flow and the start of the next, unless `together`.
    pub gap: Duration,
    pub together: bool,
    /// A flow that takes longer is given up.
    pub timeout: Option<Duration>,
    pub weight: f64,
    pub open: Option<Open>,
    pub class: Option<Class>,
    /// Of a stream: payload.
    pub rate: BitRate,
    /// Of CBR: between two datagrams, whose payload is the only entry of `sizes`.
    pub interval: Duration,
    /// Congestion control of these flows, whatever the run compares.
    pub congestion: Option<String>,
    /// Where `to` listens; one port a load, so that policies can tell loads apart.
    pub port: u16,
}

impl Load {
    /// The site that the payload leaves.
    pub fn payload_from(&self, topology: &Topology) -> Side {
        let connects = topology.hosts.get(self.from).map_or(Side::A, |h| h.side);
        match self.kind {
            Kind::Bulk | Kind::Transfer | Kind::Stream | Kind::Cbr => connects,
            Kind::Request => connects.other(),
        }
    }
}

/// A topology with every default filled in.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The file's name without `.toml`.
    pub name: String,
    /// One sentence: what it shows.
    pub description: String,
    /// Length of a run.
    pub seconds: u32,
    pub hosts: Vec<Host>,
    pub wan: WanConfig,
    pub router: Router,
    /// Congestion control of the hosts behind MEF routers; the kernel's default if not given.
    pub congestion: Option<String>,
    /// What the hosts speak.
    pub family: Family,
    pub loads: Vec<Load>,
    /// Host indices (from, to) of the UDP probe.
    pub probe: Option<(usize, usize)>,
}

impl Topology {
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|h| h.name == name)
    }
    /// The hosts behind the router of `side`.
    pub fn hosts_of(&self, side: Side) -> impl Iterator<Item = &Host> {
        let behind = move |h: &&Host| h.side == side && !h.foreign;
        self.hosts.iter().filter(behind)
    }
    /// Whether hosts share the line that pass no router.
    pub fn has_foreign(&self) -> bool {
        self.hosts.iter().any(|h| h.foreign)
    }
    /// The site that the payload of the first load leaves.
    pub fn payload_from(&self) -> Side {
        self.loads.first().map_or(Side::A, |l| l.payload_from(self))
    }
    /// The WAN from `side` to the other.
    pub fn wan_from(&self, side: Side) -> &DirectionConfig {
        match side {
            Side::A => &self.wan.a_to_b,
            Side::B => &self.wan.b_to_a,
        }
    }
    /// What the router of `side` is told that its line carries: (up, down).
    pub fn configured(&self, side: Side) -> (BitRate, BitRate) {
        let real = |from| {
            self.wan_from(from)
                .line
                .mean_rate()
                .unwrap_or(BitRate::from_mbit(1000))
        };
        match self.router.configured {
            Some(rate) => (rate, rate),
            None => (real(side), real(side.other())),
        }
    }
}
