//! The router's configuration: a TOML file becomes a [`Config`] value that the
//! rest of the router can rely on, or one [`ConfigError`] that says where it is
//! wrong and what to do.
//!
//! ```text
//! text --raw--> fields with their places --validate--> Config (names resolved, units typed)
//! ```

mod error;
mod policy;
mod raw;
mod units;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use mef_crypto::{EngineKind, PrivateKey, PublicKey};
use mef_packet::{BitRate, Bytes, PortId};
pub use mef_protocol::auto::Target;

pub use error::ConfigError;
pub use policy::{Fallback, FlowTuple, Mode, Policy, Protocol, Treatment};
pub use units::{
    format_bytes, format_measured, format_rate, parse_bytes, parse_rate, parse_time, UnitError,
};

/// UDP port of links where the file names none.
pub const DEFAULT_LISTEN: u16 = 4800;

/// Index of a peer in the running configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// A configuration that was found to be valid.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub private_key: PrivateKey,
    /// Limit of everything the router buffers for flows.
    pub memory: Bytes,
    /// Most that a split flow buffers towards its host, each way.
    pub host_buffer: Bytes,
    /// Which AES-256-GCM implementation encrypts links.
    pub engine: EngineKind,
    /// What split flows do where no policy says otherwise.
    pub open: OpenMode,
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    /// SHA-256 of the text it was read from.
    pub digest: [u8; 32],
    /// Pace at real-time priority where allowed.
    pub realtime: bool,
    /// What becomes of TCP segments of connections that are not known.
    pub adopt: Adopt,
    /// How long running flows may go on after the router was told to stop.
    pub drain: Duration,
    /// Folder for what has to outlive a restart.
    pub state: Option<PathBuf>,
    /// Threads that share the flows, 1 to 32.
    pub workers: u16,
    /// Indexed by [`PortId`].
    pub ports: Vec<Port>,
    /// Indexed by [`PeerId`].
    pub peers: Vec<Peer>,
    pub routes: Vec<StaticRoute>,
    /// In the order of the file: the first that matches wins.
    pub policies: Vec<Policy>,
}

/// What becomes of a TCP segment that belongs to no known connection and opens none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// Its sender gets a RST.
    #[default]
    Reset,
    /// It goes on as a datagram: a connection from before the router goes on without being split.
    Forward,
}

/// When the host's SYN is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// After the server has answered the far edge.
    #[default]
    Confirm,
    /// At once.
    Early,
}

/// Which kind of port an interface is opened as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    #[default]
    AfPacket,
    Dpdk,
}

impl Driver {
    /// As the file names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AfPacket => "af_packet",
            Self::Dpdk => "dpdk",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    pub name: String,
    /// The network interface, or DPDK's name of the device.
    pub interface: String,
    pub driver: Driver,
    /// The router's own addresses with the networks they lie in; at least one.
    pub addresses: Vec<IpNet>,
    /// Largest IP packet, bytes, at least 1280 where the port has an IPv6 address; the interface's where the file names none.
    pub mtu: Option<u16>,
    /// UDP port of the links on this port.
    pub listen: u16,
    /// Whether IPv6 hosts of the port are told that the router is their way out.
    pub advertise: bool,
    /// Whether hosts of the port are kept from slowing down for losses without congestion.
    pub pardon_losses: bool,
    /// Whether the kernel may be asked to join the UDP packets of a line on receipt.
    pub merge_udp: bool,
    /// Present on every port that has peers.
    pub line: Option<Line>,
}

impl Port {
    /// The own address that lies in the same network as `neighbour`, else the first of its family.
    pub fn address_towards(&self, neighbour: IpAddr) -> Option<IpAddr> {
        let near = self.addresses.iter().find(|net| net.contains(&neighbour));
        let of_family = || {
            let v4 = neighbour.is_ipv4();
            self.addresses.iter().find(|net| net.addr().is_ipv4() == v4)
        };
        near.or_else(of_family).map(|net| net.addr())
    }
}

/// What a line of unknown capacity is taken to carry at most.
pub const MOST_AUTO: BitRate = BitRate::from_mbit(10_000);

/// What a port is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it carries; where nobody knows, the most that is believed.
    pub up: BitRate,
    pub down: BitRate,
    /// Nobody knows what the line carries upwards: it is estimated, to this end.
    pub auto: Option<Target>,
    /// `down` was given.
    pub down_known: bool,
    /// Bytes that the line adds to (or takes from) each Ethernet frame without FCS.
    pub overhead: i16,
    /// Link packets carry the DS field of what is in them.
    pub copy_dscp: bool,
    /// What the line carries in this time may leave at once.
    pub burst: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    pub name: String,
    pub public_key: PublicKey,
    pub port: PortId,
    /// Where the peer is; without it, it comes to us.
    pub endpoint: Option<SocketAddr>,
    /// Routed to the peer, and the only sources accepted from it.
    pub prefixes: Vec<IpNet>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticRoute {
    pub prefix: IpNet,
    pub via: Via,
}

/// Where a static route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A router on a connected network.
    Gateway { port: PortId, address: IpAddr },
    /// Through the link to a peer.
    Peer(PeerId),
}

impl Config {
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(usize::from(id.0))
    }

    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(usize::from(id.0))
    }
}

/// What validation asks of the machine; the simulator answers for its own.
pub trait Host {
    fn interface_exists(&self, name: &str) -> bool;
    /// Whether there is a PCI device at `address`.
    fn pci_device_exists(&self, address: &str) -> bool {
        Path::new("/sys/bus/pci/devices").join(address).exists()
    }
    /// Whether this program can open ports on DPDK.
    fn has_dpdk(&self) -> bool {
        cfg!(feature = "dpdk")
    }
    /// The private key in `file`, or what is wrong with it.
    fn private_key(&self, file: &Path) -> Result<PrivateKey, String>;
}

/// The machine this program runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ThisMachine;

impl Host for ThisMachine {
    fn interface_exists(&self, name: &str) -> bool {
        // Of this thread's network namespace; a /sys mounted elsewhere shows another one's.
        match std::fs::read_to_string("/proc/thread-self/net/dev") {
            Ok(devices) => devices.lines().any(|line| {
                line.trim_start()
                    .split_once(':')
                    .is_some_and(|(dev, _)| dev == name)
            }),
            Err(_) => Path::new("/sys/class/net").join(name).exists(),
        }
    }

    fn private_key(&self, file: &Path) -> Result<PrivateKey, String> {
        mef_crypto::keys::load_private_key(file).map_err(|e| e.to_string())
    }
}

/// Reads and validates the configuration in `file` for this machine.
pub fn load(file: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
        file: file.to_owned(),
        source,
    })?;
    parse(&text, file, &ThisMachine)
}

/// The control socket that the configuration in `file` names. Needs neither the
/// private key nor the interfaces, and finds only what keeps it from being read.
pub fn control_path(file: &Path) -> Result<Option<PathBuf>, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read {
        file: file.to_owned(),
        source,
    })?;
    let raw = raw::read(&text, file)?;
    validate::control(&raw, &error::Source { text: &text, file })
}

/// Validates the configuration `text`; `file` is its name in messages, and paths in it are relative to its folder.
pub fn parse(text: &str, file: &Path, host: &dyn Host) -> Result<Config, ConfigError> {
    let raw = raw::read(text, file)?;
    validate::validate(&raw, &error::Source { text, file }, host)
}

/// What `mef router check -c FILE` prints when the file is valid.
pub fn check(file: &Path) -> Result<String, ConfigError> {
    load(file).map(|config| summary(&config))
}

fn summary(config: &Config) -> String {
    use core::fmt::Write;
    let mut s = format!(
        "configuration is valid: router {} with public key {}\n",
        config.name,
        config.private_key.public()
    );
    for port in &config.ports {
        let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
        // Writing into a String can not fail.
        let _ = write!(
            s,
            "  port {} on {}: {}",
            port.name,
            port.interface,
            addresses.join(", ")
        );
        if let Some(line) = &port.line {
            let _ = write!(
                s,
                ", line {} up, {} down",
                match line.auto {
                    Some(_) => "auto".to_owned(),
                    None => format_rate(line.up),
                },
                if line.down_known {
                    format_rate(line.down)
                } else {
                    "auto".to_owned()
                }
            );
        }
        s.push('\n');
    }
    for peer in &config.peers {
        let prefixes: Vec<String> = peer.prefixes.iter().map(ToString::to_string).collect();
        let port = config.port(peer.port).map_or("?", |p| p.name.as_str());
        let endpoint = peer
            .endpoint
            .map_or("any address".to_owned(), |e| e.to_string());
        let _ = writeln!(
            s,
            "  peer {} at {endpoint} through {port}: {}",
            peer.name,
            prefixes.join(", ")
        );
    }
    let _ = write!(
        s,
        "  {} static routes, {} policies, {} of memory for flows",
        config.routes.len(),
        config.policies.len(),
        format_bytes(config.memory)
    );
    for (i, policy) in config.policies.iter().enumerate() {
        let _ = write!(s, "\n  policy {}: {policy}", i + 1);
    }
    s
}

#[cfg(test)]
mod tests;
