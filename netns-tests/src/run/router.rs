//! The two MEF routers of a topology: their keys and configuration files, their
//! processes, and what they say on their control sockets.

use std::fmt::Write as _;
use std::io::Read;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mef_crypto::{write_private_key, PrivateKey, PublicKey};
use mef_dataplane::report::Estimate;
use mef_packet::BitRate;
use serde::Deserialize;

use super::process::Process;
use super::RunError;
use crate::netns::Namespaces;
use crate::results;
use crate::topology::{Driver, Family, Kind, Load, Side, Topology};

/// The underlay's UDP port on both sides.
const LINK_PORT: u16 = 4800;
/// A handshake over a long path that loses every fifth frame takes its time.
const READY: Duration = Duration::from_secs(20);

pub struct MefRouter {
    name: String,
    process: Process,
    control: PathBuf,
}

/// What a router's control socket tells, as far as the lab needs it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub ready: bool,
    pub links: Vec<LinkStatus>,
    pub drops: std::collections::BTreeMap<String, u64>,
    pub queue_p99_us: u64,
    pub cpu_s: f64,
    pub alarms: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LinkStatus {
    pub state: String,
    pub rate_bps: u64,
    pub estimate: Option<Estimate>,
}

impl Status {
    /// What the router knows of its line, if nobody told it the capacity.
    pub(crate) fn estimate(&self, seconds: f64) -> Option<results::Estimate> {
        let link = self.links.first()?;
        let e = link.estimate.as_ref()?;
        Some(results::Estimate {
            seconds,
            phase: e.phase.clone(),
            competes: e.competes,
            rate_bps: link.rate_bps,
            delivered_bps: e.delivered_bps,
            queue_us: e.queue_us,
            wanted_queue_us: e.wanted_queue_us,
        })
    }

    pub(crate) fn is_up(&self) -> bool {
        self.ready && !self.links.is_empty() && self.links.iter().all(|l| l.state == "up")
    }

    /// What was counted since `before`; alarms and queue are those of now.
    pub fn since(&self, before: &Status) -> results::Router {
        let drops = self.drops.iter().filter_map(|(reason, n)| {
            let n = n.saturating_sub(before.drops.get(reason).copied().unwrap_or(0));
            (n > 0).then(|| (reason.clone(), n))
        });
        results::Router {
            drops: drops.collect(),
            queue_p99_us: self.queue_p99_us,
            cpu_s: self.cpu_s - before.cpu_s,
            alarms: self.alarms.clone(),
        }
    }
}

impl MefRouter {
    /// Starts both routers; their links are up when this returns.
    pub fn start_pair(
        net: &Namespaces,
        topology: &Topology,
        folder: &Path,
    ) -> Result<Vec<Self>, RunError> {
        let key_a = make_key(&folder.join("a.key"))?;
        let key_b = make_key(&folder.join("b.key"))?;
        let mut routers = Vec::new();
        for (side, peer) in [(Side::A, &key_b), (Side::B, &key_a)] {
            let letter = side.letter();
            let control = folder.join(format!("{letter}.sock"));
            let text = configuration(topology, side, peer, &control);
            let file = folder.join(format!("{letter}.toml"));
            std::fs::write(&file, text).map_err(|source| RunError::File {
                path: file.clone(),
                source,
            })?;
            let name = format!("router {letter}");
            let file = file.display().to_string();
            let process = Process::start_self(
                net,
                &format!("r{letter}"),
                &name,
                &["router", "run", "-c", &file],
            )?;
            routers.push(Self {
                name,
                process,
                control,
            });
        }
        let until = Instant::now() + READY;
        for router in &mut routers {
            router.wait_ready(until)?;
        }
        Ok(routers)
    }

    fn wait_ready(&mut self, until: Instant) -> Result<(), RunError> {
        let mut last = "its control socket does not answer".to_owned();
        while Instant::now() < until {
            if !self.process.is_running() {
                return Err(self.process.failed("ended before its link was up"));
            }
            match self.read_status() {
                Ok(status) if status.is_up() => return Ok(()),
                Ok(status) => {
                    let states: Vec<&str> = status.links.iter().map(|l| l.state.as_str()).collect();
                    last = format!("ready: {}, links: {states:?}", status.ready);
                }
                Err(e) => last = e.to_string(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self
            .process
            .failed(&format!("is not up within {} s ({last})", READY.as_secs())))
    }

    /// What the router says of itself.
    pub fn status(&mut self) -> Result<Status, RunError> {
        if !self.process.is_running() {
            return Err(self.process.failed("ended during the run"));
        }
        self.read_status().map_err(|e| {
            self.process
                .failed(&format!("{}: {e}", self.control.display()))
        })
    }

    fn read_status(&self) -> std::io::Result<Status> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(std::io::Error::from)
    }

    /// Ends it; what it last wrote to stderr goes to its log.
    pub fn stop(&mut self) {
        self.process.stop(Duration::from_secs(2));
        let _ = std::fs::write(self.control.with_extension("log"), self.process.stderr());
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

fn make_key(path: &Path) -> Result<PublicKey, RunError> {
    let fail = |message: String| RunError::Child {
        name: "key".to_owned(),
        message,
    };
    let mut entropy = [0u8; 32];
    getrandom::fill(&mut entropy).map_err(|e| fail(e.to_string()))?;
    let key = PrivateKey::generate(entropy);
    write_private_key(path, &key).map_err(|e| fail(e.to_string()))?;
    Ok(key.public())
}

/// A rate as the router's configuration spells it.
fn rate(r: BitRate) -> String {
    match r.bits_per_second() {
        bits if bits % 1_000_000 == 0 => format!("{}Mbit/s", bits / 1_000_000),
        bits if bits % 1_000 == 0 => format!("{}kbit/s", bits / 1_000),
        bits => format!("{bits}bit/s"),
    }
}

/// The configuration file of one router. Prefixes, ports and interfaces are those
/// of [`super::network`].
pub(crate) fn configuration(
    topology: &Topology,
    side: Side,
    peer: &PublicKey,
    control: &Path,
) -> String {
    let letter = side.letter();
    let other = side.other();
    let settings = &topology.router;
    let (up, down) = topology.configured(side);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "[router]\nname = \"site-{letter}\"\nprivate_key = \"{letter}.key\"\nengine = \"{}\"\nopen = \"{}\"\ncontrol = {:?}\nmetrics = \"127.0.0.1:9464\"\ndrain = \"0s\"",
        settings.engine.name(),
        settings.open.name(),
        control.display().to_string(),
    );
    if let Some(memory) = settings.memory {
        let _ = writeln!(text, "memory = \"{}B\"", memory.0);
    }
    if let Some(workers) = settings.workers {
        let _ = writeln!(text, "workers = {workers}");
    }
    for host in topology.hosts_of(side) {
        let families = host.family.with_ipv4().iter();
        let addresses: Vec<String> = families.map(|&f| host.gateway_of(f).to_string()).collect();
        let _ = writeln!(
            text,
            "\n[[port]]\nname = \"lan{n}\"\n{}\naddresses = {addresses:?}",
            device(settings.driver, host.number, &format!("lan{}", host.number)),
            n = host.number,
        );
        if settings.advertise && host.family.with_ipv4().contains(&Family::Ipv6) {
            text.push_str("advertise = true\n");
        }
    }
    let _ = writeln!(
        text,
        "\n[[port]]\nname = \"wan\"\n{}\naddresses = [\"{}\"]\nlisten = {LINK_PORT}\n[port.line]",
        device(settings.driver, 0, "wan"),
        side.wan_address(settings.family),
    );
    let _ = match settings.auto {
        Some(target) => writeln!(
            text,
            "up = \"auto\"\ndown = \"auto\"\ntarget = \"{}\"",
            target.name()
        ),
        None => writeln!(text, "up = \"{}\"\ndown = \"{}\"", rate(up), rate(down)),
    };
    let families = topology.family.with_ipv4().iter();
    let prefixes: Vec<String> = families.map(|&f| other.prefix(f).to_string()).collect();
    let _ = writeln!(
        text,
        "\n[[peer]]\nname = \"site-{}\"\npublic_key = \"{peer}\"\nport = \"wan\"\nendpoint = \"{}\"\nprefixes = {prefixes:?}",
        other.letter(),
        SocketAddr::new(other.wan_address(settings.family).addr(), LINK_PORT),
    );
    for load in topology
        .loads
        .iter()
        .filter(|l| l.weight != 1.0 || l.open.is_some() || l.class.is_some())
    {
        let _ = write!(text, "{}", policy(topology, load));
    }
    // The way past the link differs by side.
    let peer = other.wan_address(settings.family).addr();
    let more = settings.more.replace("PEER", &peer.to_string());
    let _ = writeln!(text, "\n{more}");
    text
}

/// The keys of a port on `interface`; `number` is different for each port.
fn device(driver: Driver, number: impl std::fmt::Display, interface: &str) -> String {
    match driver {
        Driver::AfPacket => format!("interface = \"{interface}\""),
        Driver::Dpdk => {
            format!("driver = \"dpdk\"\ndevice = \"net_af_packet{number},iface={interface}\"")
        }
    }
}

fn policy(topology: &Topology, load: &Load) -> String {
    let address = |i: usize| topology.hosts.get(i).map(|h| IpNet::from(h.address()));
    let (Some(from), Some(to)) = (address(load.from), address(load.to)) else {
        return String::new();
    };
    let (protocol, mode) = match load.kind {
        Kind::Cbr => ("udp", "datagram"),
        _ => ("tcp", "split"),
    };
    let mut text = format!(
        "\n[[policy]]\nsource = \"{from}\"\ndestination = \"{to}\"\nprotocol = \"{}\"\nport = {}\nmode = \"{}\"\nweight = {:?}\n",
        protocol, load.port, mode, load.weight,
    );
    if let Some(class) = load.class {
        let _ = writeln!(text, "class = \"{}\"", class.name());
    }
    if let Some(open) = load.open {
        let _ = writeln!(text, "open = \"{}\"", open.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::read;
    use mef_dataplane::config::{self, Host};

    struct Lab;

    impl Host for Lab {
        fn interface_exists(&self, _: &str) -> bool {
            true
        }
        fn has_dpdk(&self) -> bool {
            true
        }
        fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
            Ok(PrivateKey::generate([1; 32]))
        }
    }

    fn parse(topology: &Topology, side: Side) -> config::Config {
        let peer = PrivateKey::generate([2; 32]).public();
        let text = configuration(topology, side, &peer, Path::new("/tmp/x/a.sock"));
        config::parse(&text, Path::new("/tmp/x/a.toml"), &Lab)
            .unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    #[test]
    fn the_router_accepts_what_is_written_for_every_topology() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "toml") {
                for variant in read(&path, &[]).unwrap() {
                    for side in [Side::A, Side::B] {
                        let config = parse(&variant.topology, side);
                        assert_eq!(config.peers.len(), 1);
                        assert_eq!(
                            config.ports.len(),
                            variant.topology.hosts_of(side).count() + 1
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn ports_on_dpdk_are_devices_on_the_same_interfaces() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies/clean-200ms.toml");
        let set = ["driver='dpdk'".to_owned()];
        let topology = read(&path, &set).unwrap().remove(0).topology;
        let config = parse(&topology, Side::A);
        let devices: Vec<&str> = config.ports.iter().map(|p| p.interface.as_str()).collect();
        let wanted = ["net_af_packet1,iface=lan1", "net_af_packet0,iface=wan"];
        assert_eq!(devices, wanted);
        assert!(config
            .ports
            .iter()
            .all(|p| p.driver == config::Driver::Dpdk));
    }

    #[test]
    fn weights_and_open_modes_of_loads_become_policies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        let text = "description='x'\n[wan]\nrate='12345678bit/s'\n[router]\nmemory='100MB'\nengine='aes-gcm'\nopen='early'\n
            [[load]]\nkind='bulk'\n[[load]]\nkind='bulk'\nweight=4\nopen='confirm'";
        std::fs::write(&path, text).unwrap();
        let topology = read(&path, &[]).unwrap().remove(0).topology;
        let config = parse(&topology, Side::A);
        assert_eq!(config.memory, mef_packet::Bytes(100_000_000));
        assert_eq!(config.policies.len(), 1);
        assert_eq!(config.policies[0].weight, Some(4.0));
    }

    #[test]
    fn counters_count_from_the_start_of_the_load() {
        let status = |n, cpu_s| Status {
            drops: [
                ("route.none".to_owned(), n),
                ("ingress.short".to_owned(), 3),
            ]
            .into(),
            cpu_s,
            ..Status::default()
        };
        let router = status(10, 5.0).since(&status(4, 1.5));
        assert_eq!(router.drops, [("route.none".to_owned(), 6)].into());
        assert_eq!(router.cpu_s, 3.5);
    }
}
