//! From the file as written to a [`Config`]: names are resolved, values get
//! their types, and what contradicts itself is refused. Everything the file
//! alone can show is checked first, then what depends on the machine.

use core::ops::{Range, RangeInclusive};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use mef_crypto::EngineKind;
use mef_packet::{BitRate, Bytes, PortId};
use toml::Spanned;

use super::error::{ConfigError, Source};
use super::raw::{RawConfig, RawLine, RawPeer, RawPolicy, RawPort, RawRoute, RawRouter};
use super::units::{format_bytes, format_rate, parse_bytes, parse_rate};
use super::{Config, Driver, Host, Line, Mode, OpenMode, Peer, PeerId, Policy, Port, Protocol, StaticRoute, Via, DEFAULT_LISTEN};
use crate::fib::{is_martian, is_martian_prefix, Fib, Route};

const MAX_PORTS: usize = 64;
const MAX_PEERS: usize = 1024;
/// A name of more bytes does not fit the kernel's `sockaddr_un`.
const MAX_SOCKET_PATH: usize = 107;
const MIN_MEMORY: Bytes = Bytes(1 << 20);
const DEFAULT_MEMORY: Bytes = Bytes(1 << 30);
const RATES: RangeInclusive<BitRate> = BitRate(1_000)..=BitRate(1_000_000_000_000);

type Text = Spanned<String>;
type Checked<T> = Result<T, ConfigError>;

pub(super) fn validate(raw: &RawConfig, source: &Source<'_>, host: &dyn Host) -> Checked<Config> {
    let mut v = Validator { source, host, ports: Vec::new(), peers: Vec::new(), networks: Vec::new(), prefixes: Vec::new() };
    let router = raw.router.get_ref();
    let settings = v.router(router)?;
    v.ports(&raw.port)?;
    v.peers(&raw.peer)?;
    let routes = v.routes(&raw.route)?;
    let policies = raw.policy.iter().map(|p| v.policy(p.get_ref())).collect::<Checked<Vec<_>>>()?;
    v.endpoints(&raw.peer, &routes)?;

    v.interfaces(&raw.port)?;
    let private_key = host.private_key(&settings.private_key).map_err(|message| ConfigError::PrivateKey {
        file: source.file.to_owned(),
        line: source.line(router.private_key.span().start),
        message,
    })?;
    let own = private_key.public();
    for (peer, raw) in v.peers.iter().zip(&raw.peer).filter(|(p, _)| p.public_key == own) {
        let key = &raw.get_ref().public_key;
        let advice = format!("give the key that `mef keys public` prints on the router {}", peer.name);
        return Err(source.error(&key.span(), "peer.public_key", "this router's own public key", "the peer's", advice));
    }
    Ok(Config {
        name: settings.name,
        private_key,
        memory: settings.memory,
        engine: settings.engine,
        open: settings.open,
        control: settings.control,
        realtime: router.realtime.unwrap_or(true),
        ports: v.ports,
        peers: v.peers,
        routes,
        policies,
    })
}

struct Settings {
    name: String,
    private_key: PathBuf,
    memory: Bytes,
    engine: EngineKind,
    open: OpenMode,
    control: Option<PathBuf>,
}

struct Validator<'a> {
    source: &'a Source<'a>,
    host: &'a dyn Host,
    ports: Vec<Port>,
    peers: Vec<Peer>,
    /// The ports' networks, with the name of the port.
    networks: Vec<(Ipv4Net, String)>,
    /// The peers' prefixes.
    prefixes: Vec<(Ipv4Net, PeerId, String)>,
}

impl Validator<'_> {
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
                    return Err(self.wrong(memory, "router.memory", &least, "raise it, or leave it out for 1GiB"));
                }
                bytes
            }
            None => DEFAULT_MEMORY,
        };
        let engine = match &raw.engine {
            Some(text) => self.choice(text, "router.engine", &[("ring", EngineKind::Ring), ("aes-gcm", EngineKind::AesGcm)])?,
            None => EngineKind::default(),
        };
        let control = match &raw.control {
            Some(text) => {
                let path = self.path(text, "router.control")?;
                if path.as_os_str().len() > MAX_SOCKET_PATH {
                    let expected = format!("a path of at most {MAX_SOCKET_PATH} bytes, the limit for sockets");
                    return Err(self.wrong(text, "router.control", &expected, "choose a shorter one, such as \"/run/mef.sock\""));
                }
                Some(path)
            }
            None => None,
        };
        Ok(Settings {
            name,
            private_key: self.path(&raw.private_key, "router.private_key")?,
            memory,
            engine,
            open: self.open(raw.open.as_ref(), "router.open")?.unwrap_or_default(),
            control,
        })
    }

    fn ports(&mut self, raw: &[Spanned<RawPort>]) -> Checked<()> {
        if raw.is_empty() {
            let advice = "add a table such as [[port]] with name, interface and addresses";
            return Err(self.source.error(&(0..0), "port", "no [[port]]", "at least one port", advice));
        }
        self.at_most(raw, MAX_PORTS, "port")?;
        self.unique(raw.iter().map(|p| &p.get_ref().name), "port.name", "a name of its own for every port")?;
        self.unique(raw.iter().map(|p| &p.get_ref().interface), "port.interface", "every interface in one port only")?;
        for port in raw {
            let port = self.port(port.get_ref())?;
            self.ports.push(port);
        }
        Ok(())
    }

    fn port(&mut self, raw: &RawPort) -> Checked<Port> {
        let name = self.name(&raw.name, "port.name")?;
        let interface = raw.interface.get_ref();
        let odd = |c: char| c.is_whitespace() || c == '/' || c.is_control();
        if interface.is_empty() || interface.len() > 15 || interface.contains(odd) || interface.starts_with('.') {
            let expected = "an interface name of 1 to 15 characters";
            return Err(self.wrong(&raw.interface, "port.interface", expected, "take one that `ip link` lists"));
        }
        let driver = match &raw.driver {
            Some(text) => self.choice(text, "port.driver", &[("af_packet", Driver::AfPacket)])?,
            None => Driver::default(),
        };
        if raw.addresses.get_ref().is_empty() {
            let advice = "give the router an address there, such as \"10.1.0.1/24\"";
            return Err(self.source.error(&raw.addresses.span(), "port.addresses", "an empty list", "at least one address", advice));
        }
        let mut addresses = Vec::new();
        for text in raw.addresses.get_ref() {
            let net = self.address(text)?;
            if let Some((other, port)) = self.networks.iter().find(|(other, _)| overlap(other, &net)) {
                let expected = format!("no overlap with {other} on port {port}");
                return Err(self.wrong(text, "port.addresses", &expected, "give every address a network of its own"));
            }
            self.networks.push((net, name.clone()));
            addresses.push(net);
        }
        Ok(Port {
            name,
            interface: interface.clone(),
            driver,
            addresses,
            // IPv4 hosts need not take more than 576 bytes, and nothing smaller is a network (RFC 791).
            mtu: self.number(raw.mtu.as_ref(), "port.mtu", 576..=65535)?.map(|n| n as u16),
            listen: self.number(raw.listen.as_ref(), "port.listen", 1..=65535)?.map_or(DEFAULT_LISTEN, |n| n as u16),
            line: raw.line.as_ref().map(|line| self.line(line.get_ref())).transpose()?,
        })
    }

    fn line(&self, raw: &RawLine) -> Checked<Line> {
        let rate = |text: &Text, key: &str| {
            let rate = self.parse(text, key, parse_rate)?;
            if RATES.contains(&rate) {
                return Ok(rate);
            }
            let expected = format!("a rate from {} to {}", format_rate(*RATES.start()), format_rate(*RATES.end()));
            Err(self.wrong(text, key, &expected, "give what the line really carries"))
        };
        Ok(Line {
            up: rate(&raw.up, "port.line.up")?,
            down: rate(&raw.down, "port.line.down")?,
            overhead: self.number(raw.overhead.as_ref(), "port.line.overhead", -128..=256)?.unwrap_or(0) as i16,
        })
    }

    fn peers(&mut self, raw: &[Spanned<RawPeer>]) -> Checked<()> {
        self.at_most(raw, MAX_PEERS, "peer")?;
        self.unique(raw.iter().map(|p| &p.get_ref().name), "peer.name", "a name of its own for every peer")?;
        self.unique(raw.iter().map(|p| &p.get_ref().public_key), "peer.public_key", "a key of its own for every peer")?;
        self.unique(raw.iter().filter_map(|p| p.get_ref().endpoint.as_ref()), "peer.endpoint", "an endpoint of its own for every peer")?;
        for (id, peer) in (0..=u16::MAX).map(PeerId).zip(raw) {
            let peer = self.peer(id, peer.get_ref())?;
            self.peers.push(peer);
        }
        Ok(())
    }

    fn peer(&mut self, id: PeerId, raw: &RawPeer) -> Checked<Peer> {
        let name = self.name(&raw.name, "peer.name")?;
        let public_key = raw.public_key.get_ref().parse().map_err(|_| {
            let expected = "the base64 of a router's 32-byte public key";
            self.wrong(&raw.public_key, "peer.public_key", expected, "copy what `mef keys public` prints on the peer")
        })?;
        let port = (0..=u16::MAX).map(PortId).zip(&self.ports).find(|(_, p)| p.name == *raw.port.get_ref());
        let Some((port_id, port)) = port else {
            let names: Vec<&str> = self.ports.iter().map(|p| p.name.as_str()).collect();
            let expected = format!("the name of a port ({})", names.join(", "));
            return Err(self.wrong(&raw.port, "peer.port", &expected, "name one of these, or add the [[port]]"));
        };
        if port.line.is_none() {
            let found = format!("port {} without a [port.line]", port.name);
            let advice = "add [port.line] with up and down under that port";
            return Err(self.source.error(&raw.port.span(), "peer.port", found, "a port whose line's capacity is known", advice));
        }
        if let Some(mtu) = port.mtu.filter(|mtu| *mtu < 1280) {
            let found = format!("port {} with an mtu of {mtu}", port.name);
            return Err(self.source.error(&raw.port.span(), "peer.port", found, "a port with an mtu of at least 1280, where links start", "raise port.mtu"));
        }
        if raw.prefixes.get_ref().is_empty() {
            let advice = "list the networks behind the peer, such as \"10.2.0.0/24\"";
            return Err(self.source.error(&raw.prefixes.span(), "peer.prefixes", "an empty list", "at least one prefix", advice));
        }
        let mut prefixes = Vec::new();
        for text in raw.prefixes.get_ref() {
            let net = self.prefix(text, "peer.prefixes")?;
            if let Some((other, _, peer)) = self.prefixes.iter().find(|(other, _, _)| overlap(other, &net)) {
                let expected = format!("no overlap with {other} of peer {peer}");
                return Err(self.wrong(text, "peer.prefixes", &expected, "give every address to one peer only"));
            }
            if let Some((other, port)) = self.networks.iter().find(|(other, _)| overlap(other, &net)) {
                let expected = format!("no overlap with {} of this router's port {port}", other.trunc());
                return Err(self.wrong(text, "peer.prefixes", &expected, "list only what is behind the peer"));
            }
            self.prefixes.push((net, id, name.clone()));
            prefixes.push(net);
        }
        let endpoint = match &raw.endpoint {
            Some(text) => Some(text.get_ref().parse::<SocketAddrV4>().ok().filter(|e| e.port() != 0).ok_or_else(|| {
                self.wrong(text, "peer.endpoint", "an IPv4 address and UDP port such as \"192.0.2.2:4800\"", "correct it, or leave it out if the peer comes to us")
            })?),
            None => None,
        };
        Ok(Peer { name, public_key, port: port_id, endpoint, prefixes })
    }

    fn routes(&self, raw: &[Spanned<RawRoute>]) -> Checked<Vec<StaticRoute>> {
        self.unique(raw.iter().map(|r| &r.get_ref().prefix), "route.prefix", "one route for every prefix")?;
        raw.iter().map(|route| self.route(route.get_ref())).collect()
    }

    fn route(&self, raw: &RawRoute) -> Checked<StaticRoute> {
        let prefix = self.prefix(&raw.prefix, "route.prefix")?;
        if let Some((_, port)) = self.networks.iter().find(|(net, _)| net.trunc() == prefix) {
            let expected = format!("no route to the own network of port {port}");
            return Err(self.wrong(&raw.prefix, "route.prefix", &expected, "remove the route: the port leads there already"));
        }
        let via = self.via(&raw.via)?;
        // Such a route would send in the clear what is meant for the link.
        let inside = self.prefixes.iter().find(|(net, id, _)| net.contains(&prefix) && via != Via::Peer(*id));
        if let Some((net, _, peer)) = inside {
            let expected = format!("no route inside {net}, which goes to peer {peer}");
            return Err(self.wrong(&raw.prefix, "route.prefix", &expected, "remove the route, or the prefix from the peer"));
        }
        Ok(StaticRoute { prefix, via })
    }

    fn via(&self, text: &Text) -> Checked<Via> {
        if let Some((id, _)) = (0..=u16::MAX).map(PeerId).zip(&self.peers).find(|(_, p)| p.name == *text.get_ref()) {
            return Ok(Via::Peer(id));
        }
        let advice = "name a router on a port's own network, or a peer";
        let address: Ipv4Addr = text.get_ref().parse().map_err(|_| self.wrong(text, "route.via", "an IPv4 address or the name of a peer", advice))?;
        if let Some((_, id, _)) = self.prefixes.iter().find(|(net, _, _)| net.contains(&address)) {
            return Ok(Via::Peer(*id));
        }
        let fib = Fib::new(&self.ports, &[], &[]);
        match fib.lookup(address) {
            Some(Route::Connected { port }) => Ok(Via::Gateway { port, address }),
            Some(_) => Err(self.wrong(text, "route.via", "another router's address, not one of this router or a broadcast", advice)),
            None => {
                let networks: Vec<String> = self.networks.iter().map(|(net, _)| net.trunc().to_string()).collect();
                Err(self.wrong(text, "route.via", &format!("an address in a connected network ({})", networks.join(", ")), advice))
            }
        }
    }

    fn policy(&self, raw: &RawPolicy) -> Checked<Policy> {
        let net = |text: &Option<Text>, key: &str| text.as_ref().map(|t| self.prefix(t, key)).transpose();
        let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("icmp", Protocol::Icmp)];
        let protocol = raw.protocol.as_ref().map(|t| self.choice(t, "policy.protocol", &protocols)).transpose()?;
        let port = |n: &Option<Spanned<i64>>, key: &str| {
            if let Some(n) = n.as_ref().filter(|_| protocol == Some(Protocol::Icmp)) {
                let advice = "remove the port, or match tcp or udp";
                return Err(self.source.error(&n.span(), key, "a port beside protocol = \"icmp\"", "no port, as ICMP has none", advice));
            }
            Ok(self.number(n.as_ref(), key, 1..=65535)?.map(|n| n as u16))
        };
        let modes = [("split", Mode::Split), ("datagram", Mode::Datagram)];
        let mode = raw.mode.as_ref().map(|t| self.choice(t, "policy.mode", &modes)).transpose()?;
        if let (Some(text), Some(Mode::Split), Some(Protocol::Udp | Protocol::Icmp)) = (&raw.mode, mode, protocol) {
            return Err(self.wrong(text, "policy.mode", "\"datagram\", as only TCP can be split", "change the mode, or match protocol = \"tcp\""));
        }
        let weight = raw.weight.as_ref();
        if let Some(w) = weight.filter(|w| !(0.01..=1000.0).contains(w.get_ref())) {
            let found = w.get_ref().to_string();
            return Err(self.source.error(&w.span(), "policy.weight", found, "a weight from 0.01 to 1000", "weights are relative to the default of 1"));
        }
        Ok(Policy {
            source: net(&raw.source, "policy.source")?,
            destination: net(&raw.destination, "policy.destination")?,
            protocol,
            port: port(&raw.port, "policy.port")?,
            source_port: port(&raw.source_port, "policy.source_port")?,
            mode,
            open: self.open(raw.open.as_ref(), "policy.open")?,
            weight: weight.map(|w| *w.get_ref()),
        })
    }

    /// Every endpoint must be reachable in the clear through its peer's own port.
    fn endpoints(&self, raw: &[Spanned<RawPeer>], routes: &[StaticRoute]) -> Checked<()> {
        let fib = Fib::new(&self.ports, &self.peers, routes);
        for (peer, raw) in self.peers.iter().zip(raw) {
            let (Some(endpoint), Some(text)) = (peer.endpoint, &raw.get_ref().endpoint) else { continue };
            let name = |id: PortId| self.ports.get(usize::from(id.0)).map_or("?", |p| p.name.as_str());
            let problem = match fib.lookup(*endpoint.ip()) {
                Some(Route::Connected { port } | Route::Via { port, .. }) if port == peer.port => continue,
                Some(Route::Connected { port } | Route::Via { port, .. }) => {
                    format!("an address reached through port {}, while this one is reached through {}", name(peer.port), name(port))
                }
                Some(Route::Peer(_)) => "an address outside of the prefixes of all peers: a link can not run inside a link".to_owned(),
                Some(Route::Local(_) | Route::Broadcast(_)) => "another machine's address, not one of this router or a broadcast".to_owned(),
                None => "an address that some network or route of this file leads to".to_owned(),
            };
            return Err(self.wrong(text, "peer.endpoint", &problem, "correct it, or add a [[route]] to it"));
        }
        Ok(())
    }

    fn interfaces(&self, raw: &[Spanned<RawPort>]) -> Checked<()> {
        match raw.iter().map(|p| &p.get_ref().interface).find(|i| !self.host.interface_exists(i.get_ref())) {
            Some(text) => Err(self.wrong(text, "port.interface", "an interface that exists here", "take one that `ip link` lists, or create it")),
            None => Ok(()),
        }
    }

    fn wrong(&self, text: &Text, key: &str, expected: &str, advice: &str) -> ConfigError {
        self.source.error(&text.span(), key, format!("\"{}\"", text.get_ref()), expected, advice)
    }

    fn name(&self, text: &Text, key: &str) -> Checked<String> {
        let name = text.get_ref();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if (1..=32).contains(&name.len()) && name.bytes().all(plain) && name.parse::<Ipv4Addr>().is_err() {
            return Ok(name.clone());
        }
        Err(self.wrong(text, key, "1 to 32 letters, digits, '-', '_' or '.', and no address", "choose such a name"))
    }

    fn parse<T, E: ToString>(&self, text: &Text, key: &str, parse: fn(&str) -> Result<T, E>) -> Checked<T> {
        parse(text.get_ref()).map_err(|e| self.wrong(text, key, &e.to_string(), "write it in one of these forms"))
    }

    fn choice<T: Copy>(&self, text: &Text, key: &str, choices: &[(&str, T)]) -> Checked<T> {
        choices.iter().find(|(name, _)| name == text.get_ref()).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
            self.wrong(text, key, &names.join(" or "), "take one of these, in lower case")
        })
    }

    fn open(&self, text: Option<&Text>, key: &str) -> Checked<Option<OpenMode>> {
        text.map(|t| self.choice(t, key, &[("confirm", OpenMode::Confirm), ("early", OpenMode::Early)])).transpose()
    }

    fn number(&self, n: Option<&Spanned<i64>>, key: &str, range: RangeInclusive<i64>) -> Checked<Option<i64>> {
        match n {
            Some(n) if !range.contains(n.get_ref()) => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.source.error(&n.span(), key, n.get_ref().to_string(), expected, "change it, or leave it out for the default"))
            }
            n => Ok(n.map(|n| *n.get_ref())),
        }
    }

    fn path(&self, text: &Text, key: &str) -> Checked<PathBuf> {
        if text.get_ref().is_empty() || text.get_ref().contains('\0') {
            return Err(self.wrong(text, key, "a path, absolute or relative to this file", "give one"));
        }
        Ok(self.source.file.parent().unwrap_or(Path::new("")).join(text.get_ref()))
    }

    fn prefix(&self, text: &Text, key: &str) -> Checked<Ipv4Net> {
        let net: Ipv4Net = text.get_ref().parse().map_err(|_| {
            self.wrong(text, key, "an IPv4 prefix such as \"10.2.0.0/24\"", "write address/length; one host is /32")
        })?;
        if net.trunc() != net {
            let expected = format!("a prefix without host bits, such as \"{}\"", net.trunc());
            return Err(self.wrong(text, key, &expected, "write it so, or lengthen the prefix"));
        }
        if is_martian_prefix(net) {
            let expected = "a prefix that can be routed, not 0/8, 127/8, multicast or reserved";
            return Err(self.wrong(text, key, expected, "correct or remove it"));
        }
        Ok(net)
    }

    /// An address of the router's own with its network.
    fn address(&self, text: &Text) -> Checked<Ipv4Net> {
        let key = "port.addresses";
        let net: Ipv4Net = text.get_ref().parse().ok().filter(|net: &Ipv4Net| net.prefix_len() > 0).ok_or_else(|| {
            self.wrong(text, key, "an IPv4 address with its network's length, such as \"10.1.0.1/24\"", "write address/length")
        })?;
        let edge = net.prefix_len() < 31 && (net.addr() == net.network() || net.addr() == net.broadcast());
        if edge || is_martian(net.addr()) {
            let expected = "an address that a host can have, not a network's first or last, 0/8, 127/8, multicast or reserved";
            return Err(self.wrong(text, key, expected, "choose another address"));
        }
        Ok(net)
    }

    fn at_most<T>(&self, tables: &[Spanned<T>], most: usize, key: &str) -> Checked<()> {
        match tables.get(most) {
            Some(t) => {
                let found = format!("{} tables [[{key}]]", tables.len());
                Err(self.source.error(&t.span(), key, found, format!("at most {most}"), "spread them over several routers"))
            }
            None => Ok(()),
        }
    }

    fn unique<'t>(&self, texts: impl Iterator<Item = &'t Text>, key: &str, expected: &str) -> Checked<()> {
        let mut seen: HashMap<&str, Range<usize>> = HashMap::new();
        for text in texts {
            if let Some(first) = seen.insert(text.get_ref(), text.span()) {
                let found = format!("\"{}\" again, first on line {}", text.get_ref(), self.source.line(first.start));
                return Err(self.source.error(&text.span(), key, found, expected, "change or remove one of the two"));
            }
        }
        Ok(())
    }
}

fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}
