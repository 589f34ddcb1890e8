//! From the file as written to a [`Config`]: names are resolved, values get
//! their types, and what contradicts itself is refused. Everything the file
//! alone can show is checked first, then what depends on the machine.

mod devices;
mod fields;
mod lifecycle;
mod links;
mod policy;
mod workers;

use core::ops::RangeInclusive;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use mef_crypto::EngineKind;
use mef_packet::{BitRate, Bytes};
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::error::{ConfigError, Source};
use super::raw::{RawConfig, RawLine, RawPort, RawRouter};
use super::units::{format_bytes, format_rate, parse_bytes, parse_rate, parse_time};
use super::{Config, Host, Line, OpenMode, Peer, PeerId, Port, Target, DEFAULT_LISTEN, MOST_AUTO};

/// In place of a capacity that nobody knows.
const AUTO: &str = "auto";
const MAX_PORTS: usize = 64;
const MAX_PEERS: usize = 1024;
/// A name of more bytes does not fit the kernel's `sockaddr_un`.
const MAX_SOCKET_PATH: usize = 107;
const MIN_MEMORY: Bytes = Bytes(1 << 20);
const DEFAULT_MEMORY: Bytes = Bytes(1 << 30);
/// What a host's window is at first, and the most that a window can say (RFC 7323).
const HOST_BUFFER: (Bytes, Bytes) = (Bytes(64 << 10), Bytes(64 << 20));
const DEFAULT_HOST_BUFFER: Bytes = Bytes(4 << 20);
/// What a line carries in this time leaves at once.
const DEFAULT_BURST: Duration = Duration::from_micros(250);
const BURSTS: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_millis(10);
const RATES: RangeInclusive<BitRate> = BitRate(1_000)..=BitRate(1_000_000_000_000);

type Text = Spanned<String>;
type Checked<T> = Result<T, ConfigError>;

pub(super) fn validate(raw: &RawConfig, source: &Source<'_>, host: &dyn Host) -> Checked<Config> {
    let mut v = Validator::new(source, host);
    let router = raw.router.get_ref();
    let settings = v.router(router)?;
    let lifecycle = v.lifecycle(router)?;
    v.ports(&raw.port)?;
    v.peers(&raw.peer)?;
    let routes = v.routes(&raw.route)?;
    let policies = raw
        .policy
        .iter()
        .map(|p| v.policy(p.get_ref()))
        .collect::<Checked<Vec<_>>>()?;
    v.endpoints(&raw.peer, &routes)?;
    let workers = v.workers(raw, settings.memory)?;

    v.devices(&raw.port)?;
    let private_key =
        host.private_key(&settings.private_key)
            .map_err(|message| ConfigError::PrivateKey {
                file: source.file.to_owned(),
                line: source.line(router.private_key.span().start),
                message,
            })?;
    let own = private_key.public();
    if let Some((peer, raw)) = v
        .peers
        .iter()
        .zip(&raw.peer)
        .find(|(p, _)| p.public_key == own)
    {
        let key = &raw.get_ref().public_key;
        let advice = format!(
            "give the key that `mef keys public` prints on the router {}",
            peer.name
        );
        return Err(source.error(
            &key.span(),
            "peer.public_key",
            "this router's own public key",
            "the peer's",
            advice,
        ));
    }
    Ok(Config {
        name: settings.name,
        private_key,
        memory: settings.memory,
        host_buffer: settings.host_buffer,
        engine: settings.engine,
        open: settings.open,
        control: settings.control,
        metrics: settings.metrics,
        digest: Sha256::digest(source.text).into(),
        realtime: router.realtime.unwrap_or(true),
        adopt: lifecycle.adopt,
        drain: lifecycle.drain,
        state: lifecycle.state,
        workers,
        ports: v.ports,
        peers: v.peers,
        routes,
        policies,
    })
}

/// The control socket that the file names, without a look at the rest of it.
pub(super) fn control(raw: &RawConfig, source: &Source<'_>) -> Checked<Option<PathBuf>> {
    Validator::new(source, &super::ThisMachine).control(raw.router.get_ref())
}

struct Settings {
    name: String,
    private_key: PathBuf,
    memory: Bytes,
    host_buffer: Bytes,
    engine: EngineKind,
    open: OpenMode,
    control: Option<PathBuf>,
    metrics: Option<SocketAddr>,
}

struct Validator<'a> {
    source: &'a Source<'a>,
    host: &'a dyn Host,
    ports: Vec<Port>,
    peers: Vec<Peer>,
    /// The ports' networks, with the name of the port.
    networks: Vec<(IpNet, String)>,
    /// The peers' prefixes.
    prefixes: Vec<(IpNet, PeerId, String)>,
}

impl<'a> Validator<'a> {
    fn new(source: &'a Source<'a>, host: &'a dyn Host) -> Self {
        Self {
            source,
            host,
            ports: Vec::new(),
            peers: Vec::new(),
            networks: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    fn router(&self, raw: &RawRouter) -> Checked<Settings> {
        let name = match &raw.name {
            Some(name) => self.name(name, "router.name")?,
            None => "mef".to_owned(),
        };
        let memory = match &raw.memory {
            Some(memory) => {
                let bytes = self.parse(memory, "router.memory", parse_bytes)?;
                if bytes < MIN_MEMORY {
                    let least = format!("at least {}", format_bytes(MIN_MEMORY));
                    return Err(self.wrong(
                        memory,
                        "router.memory",
                        &least,
                        "raise it, or leave it out for 1GiB",
                    ));
                }
                bytes
            }
            None => DEFAULT_MEMORY,
        };
        let host_buffer = match &raw.host_buffer {
            Some(text) => {
                let bytes = self.parse(text, "router.host_buffer", parse_bytes)?;
                let (least, most) = HOST_BUFFER;
                if bytes < least || bytes > most {
                    let range = format!("{} to {}", format_bytes(least), format_bytes(most));
                    return Err(self.wrong(
                        text,
                        "router.host_buffer",
                        &range,
                        "choose twice what a host's access carries in its round trip, or leave it out for 4MiB",
                    ));
                }
                bytes
            }
            None => DEFAULT_HOST_BUFFER,
        };
        let engine = match &raw.engine {
            Some(text) => self.choice(
                text,
                "router.engine",
                &[("ring", EngineKind::Ring), ("aes-gcm", EngineKind::AesGcm)],
            )?,
            None => EngineKind::default(),
        };
        let metrics = match &raw.metrics {
            Some(text) => Some(text.get_ref().parse().map_err(|_| {
                self.wrong(
                    text,
                    "router.metrics",
                    "an address and a TCP port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"",
                    "give one of this machine's own, or remove it to serve no metrics",
                )
            })?),
            None => None,
        };
        Ok(Settings {
            name,
            private_key: self.path(&raw.private_key, "router.private_key")?,
            memory,
            host_buffer,
            engine,
            open: self
                .open(raw.open.as_ref(), "router.open")?
                .unwrap_or_default(),
            control: self.control(raw)?,
            metrics,
        })
    }

    fn control(&self, raw: &RawRouter) -> Checked<Option<PathBuf>> {
        let Some(text) = &raw.control else {
            return Ok(None);
        };
        let path = self.path(text, "router.control")?;
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let expected =
                format!("a path of at most {MAX_SOCKET_PATH} bytes, the limit for sockets");
            return Err(self.wrong(
                text,
                "router.control",
                &expected,
                "choose a shorter one, such as \"/run/mef.sock\"",
            ));
        }
        Ok(Some(path))
    }

    fn ports(&mut self, raw: &[Spanned<RawPort>]) -> Checked<()> {
        if raw.is_empty() {
            let advice = "add a table such as [[port]] with name, interface and addresses";
            return Err(self.source.error(
                &(0..0),
                "port",
                "no [[port]]",
                "at least one port",
                advice,
            ));
        }
        self.at_most(raw, MAX_PORTS, "port")?;
        self.unique(
            raw.iter().map(|p| &p.get_ref().name),
            "port.name",
            "a name of its own for every port",
        )?;
        self.unique(
            raw.iter().filter_map(|p| p.get_ref().interface.as_ref()),
            "port.interface",
            "every interface in one port only",
        )?;
        for port in raw {
            let port = self.port(port.get_ref())?;
            self.ports.push(port);
        }
        self.distinct_devices(raw)?;
        Ok(())
    }

    fn port(&mut self, raw: &RawPort) -> Checked<Port> {
        let name = self.name(&raw.name, "port.name")?;
        let (driver, interface) = self.device(raw)?;
        if raw.addresses.get_ref().is_empty() {
            let advice = "give the router an address there, such as \"10.1.0.1/24\"";
            return Err(self.source.error(
                &raw.addresses.span(),
                "port.addresses",
                "an empty list",
                "at least one address",
                advice,
            ));
        }
        let mut addresses = Vec::new();
        for text in raw.addresses.get_ref() {
            let net = self.address(text)?;
            if let Some((other, port)) =
                self.networks.iter().find(|(other, _)| overlap(other, &net))
            {
                let expected = format!("no overlap with {other} on port {port}");
                return Err(self.wrong(
                    text,
                    "port.addresses",
                    &expected,
                    "give every address a network of its own",
                ));
            }
            self.networks.push((net, name.clone()));
            addresses.push(net);
        }
        // IPv4 hosts need not take more than 576 bytes, and nothing smaller is a network (RFC 791).
        let mtu = self.number(raw.mtu.as_ref(), "port.mtu", 576..=65535)?;
        let v6 = addresses.iter().any(|net| net.addr().is_ipv6());
        let least = i64::from(mef_packet::wire::ipv6::MIN_MTU);
        if let (Some(raw), true) = (raw.mtu.as_ref(), v6 && mtu.is_some_and(|m| m < least)) {
            return Err(self.source.error(
                &raw.span(),
                "port.mtu",
                raw.get_ref().to_string(),
                format!("at least {least} on a port with an IPv6 address (RFC 8200)"),
                "raise it, or give the port IPv4 addresses only",
            ));
        }
        let advertise = raw.advertise.as_ref().filter(|a| *a.get_ref());
        if let (Some(raw), false) = (advertise, v6) {
            return Err(self.source.error(
                &raw.span(),
                "port.advertise".to_owned(),
                "true",
                "false, as the port has no IPv6 address",
                "add one to port.addresses, such as \"2001:db8:1::1/64\", or remove the key",
            ));
        }
        Ok(Port {
            name,
            interface,
            driver,
            addresses,
            mtu: mtu.map(|n| n as u16),
            listen: self
                .number(raw.listen.as_ref(), "port.listen", 1..=65535)?
                .map_or(DEFAULT_LISTEN, |n| n as u16),
            advertise: advertise.is_some(),
            pardon_losses: raw.pardon_losses.unwrap_or(true),
            merge_udp: raw.merge_udp.unwrap_or(true),
            line: raw
                .line
                .as_ref()
                .map(|line| self.line(line.get_ref()))
                .transpose()?,
        })
    }

    fn line(&self, raw: &RawLine) -> Checked<Line> {
        let rate = |text: &Text, key: &str| {
            if text.get_ref() == AUTO {
                return Ok(None);
            }
            let rate = self.parse(text, key, parse_rate)?;
            if RATES.contains(&rate) {
                return Ok(Some(rate));
            }
            let expected = format!(
                "a rate from {} to {}, or \"auto\"",
                format_rate(*RATES.start()),
                format_rate(*RATES.end())
            );
            Err(self.wrong(text, key, &expected, "give what the line really carries"))
        };
        let up = rate(&raw.up, "port.line.up")?;
        let down = rate(&raw.down, "port.line.down")?;
        let target = match &raw.target {
            Some(text) if up.is_some() => {
                return Err(self.wrong(
                    text,
                    "port.line.target",
                    "nothing beside an `up` that is a rate",
                    "write up = \"auto\", or remove it",
                ));
            }
            Some(text) => {
                let choices = [
                    ("latency", Target::Latency),
                    ("balanced", Target::Balanced),
                    ("throughput", Target::Throughput),
                ];
                self.choice(text, "port.line.target", &choices)?
            }
            None => Target::default(),
        };
        Ok(Line {
            up: up.unwrap_or(MOST_AUTO),
            down: down.unwrap_or(MOST_AUTO),
            auto: up.is_none().then_some(target),
            down_known: down.is_some(),
            overhead: self
                .number(raw.overhead.as_ref(), "port.line.overhead", -128..=256)?
                .unwrap_or(0) as i16,
            copy_dscp: match &raw.dscp {
                Some(text) => {
                    self.choice(text, "port.line.dscp", &[("copy", true), ("zero", false)])?
                }
                None => true,
            },
            burst: self.burst(raw.burst.as_ref())?,
        })
    }

    fn burst(&self, raw: Option<&Text>) -> Checked<Duration> {
        let Some(text) = raw else {
            return Ok(DEFAULT_BURST);
        };
        let time = self.parse(text, "port.line.burst", parse_time)?;
        if BURSTS.contains(&time) {
            return Ok(time);
        }
        let advice = "a longer burst costs less processor time and makes a longer queue; leave it out for 250 us";
        Err(self.wrong(text, "port.line.burst", "1ms to 10ms", advice))
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
