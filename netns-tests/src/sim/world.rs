//! The simulated network and its clock: routers, emulators and hosts, the
//! cables between them, and the loop that moves frames until nothing is left
//! to do at a time, then goes to the next time that anything asks for.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use mef_crypto::{PrivateKey, PublicKey};
use mef_dataplane::config::{self, Config};
use mef_dataplane::router::{Router, Seed};
use mef_io::{Caps, MemPort, MemWire};
use mef_packet::{HeapBuf, Instant, Packet};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

use super::host::{Host, Place};
use super::SimError;
use crate::run::router::configuration;
use crate::topology::{Side, Topology};
use crate::wan::emulator::Emulator;

/// A router that asks to be called again at once is called so much later.
const STEP: Duration = Duration::from_micros(10);
/// Frames on a cable: no queue of its own.
const CABLE: usize = 1 << 20;
/// Nanoseconds that initiation counters start above.
const EPOCH: u64 = 1 << 60;

/// What a cable on a site offers, like a veth: super-segments and partial checksums.
fn lan_caps(mac: [u8; 6]) -> Caps {
    Caps {
        mtu: 1500,
        mac,
        tcp_gso: true,
        udp_gso: true,
        tx_checksum: true,
    }
}

/// On the WAN frames are as on a wire.
fn wan_caps(mac: [u8; 6]) -> Caps {
    Caps {
        tcp_gso: false,
        udp_gso: false,
        tx_checksum: false,
        ..lan_caps(mac)
    }
}

/// Port 0 of a site is the WAN's, `number` that of a host; station 0 the router, 1 the host.
fn mac(side: Side, number: u8, station: u8) -> [u8; 6] {
    [2, 0, 0, side.letter() as u8, number, station]
}

fn key(side: Side) -> PrivateKey {
    PrivateKey::generate([side.letter() as u8; 32])
}

/// The machine that a simulated router is configured on.
struct Machine(Side);

impl config::Host for Machine {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(key(self.0))
    }
}

/// Index into [`World::wires`].
type Wire = usize;

struct RouterPlace {
    side: Side,
    config: Config,
    router: Router<MemPort>,
    /// The far ends of its ports.
    wires: Vec<Wire>,
    caps: Vec<Caps>,
    wake: Instant,
    starts: u64,
}

pub(super) struct World {
    pub now: Instant,
    seed: u64,
    wires: Vec<MemWire>,
    /// Wires whose ends are tied to each other.
    joints: Vec<(Wire, Wire)>,
    /// The WAN's first, then those of the hosts with an access path.
    pub emulators: Vec<Emulator<MemPort>>,
    routers: Vec<RouterPlace>,
    /// In the order of the topology.
    hosts: Vec<(Host, Wire)>,
    frames: Vec<Packet<HeapBuf>>,
}

impl World {
    pub fn new(topology: &Topology, seed: u64) -> Result<Self, SimError> {
        let now = Instant::ZERO;
        let mut world = Self {
            now,
            seed,
            wires: Vec::new(),
            joints: Vec::new(),
            emulators: Vec::new(),
            routers: Vec::new(),
            hosts: Vec::new(),
            frames: Vec::new(),
        };
        let (wan_a, wire_a) = world.port(lan_caps([2; 6]));
        let (wan_b, wire_b) = world.port(lan_caps([2; 6]));
        world
            .emulators
            .push(Emulator::new(wan_a, wan_b, &topology.wan, now, seed));
        for (side, wan_wire) in [(Side::A, wire_a), (Side::B, wire_b)] {
            world.add_site(topology, side, wan_wire)?;
        }
        // As in the topology, whose indices the load uses.
        world.hosts.sort_by_key(|(h, _)| {
            topology
                .hosts
                .iter()
                .position(|t| t.address() == h.address())
        });
        Ok(world)
    }

    fn add_site(&mut self, topology: &Topology, side: Side, wan: Wire) -> Result<(), SimError> {
        let peer: PublicKey = key(side.other()).public();
        let control = Path::new("/run/mef.sock");
        let text = configuration(topology, side, &peer, control);
        let config = config::parse(&text, Path::new("/etc/mef.toml"), &Machine(side))?;
        let (mut ports, mut wires, mut caps) = (Vec::new(), Vec::new(), Vec::new());
        for host in topology.hosts_of(side) {
            let offered = lan_caps(mac(side, host.number, 0));
            let (port, wire) = self.port(offered);
            ports.push(port);
            wires.push(wire);
            caps.push(offered);
            let mut host_wire = wire;
            if let Some(path) = host.access() {
                let (near, near_wire) = self.port(lan_caps([2; 6]));
                let (far, far_wire) = self.port(lan_caps([2; 6]));
                let emulator = Emulator::new(near, far, &path, self.now, self.seed);
                self.emulators.push(emulator);
                self.joints.push((far_wire, wire));
                host_wire = near_wire;
            }
            let IpAddr::V4(address) = host.address() else {
                return Err(SimError::Ipv6Hosts);
            };
            let place = Place {
                address,
                mac: mac(side, host.number, 1),
                gateway: offered.mac,
            };
            let seed = self.seed ^ u64::from(address.to_bits()) << 16;
            self.hosts
                .push((Host::new(&host.name, place, seed), host_wire));
        }
        let offered = wan_caps(mac(side, 0, 0));
        let (port, wire) = self.port(offered);
        ports.push(port);
        wires.push(wire);
        caps.push(offered);
        self.joints.push((wire, wan));
        let router = Router::new(self.now, config.clone(), ports, self.seed_of(side, 0))?;
        self.routers.push(RouterPlace {
            side,
            config,
            router,
            wires,
            caps,
            wake: self.now,
            starts: 1,
        });
        Ok(())
    }

    fn port(&mut self, caps: Caps) -> (MemPort, Wire) {
        let (port, wire) = MemPort::detached(caps, CABLE);
        self.wires.push(wire);
        (port, self.wires.len() - 1)
    }

    fn seed_of(&self, side: Side, starts: u64) -> Seed {
        let own = self.seed ^ (side.letter() as u64) << 48 ^ starts << 32;
        let mut rng = SmallRng::seed_from_u64(own);
        Seed {
            boot_id: rng.next_u64(),
            initiation_base: EPOCH + self.now.as_nanos(),
            entropy: Box::new(move || {
                let mut bytes = [0; 32];
                rng.fill_bytes(&mut bytes);
                bytes
            }),
        }
    }

    /// Ends the router of `side` without a word and starts another with its configuration.
    pub fn restart(&mut self, side: Side) -> Result<(), SimError> {
        let now = self.now;
        let Some(i) = self.routers.iter().position(|r| r.side == side) else {
            return Ok(());
        };
        let Some((config, caps, wires, starts)) = self
            .routers
            .get(i)
            .map(|r| (r.config.clone(), r.caps.clone(), r.wires.clone(), r.starts))
        else {
            return Ok(());
        };
        let mut ports = Vec::new();
        for (caps, wire) in caps.into_iter().zip(wires) {
            let (port, fresh) = MemPort::detached(caps, CABLE);
            ports.push(port);
            if let Some(w) = self.wires.get_mut(wire) {
                *w = fresh;
            }
        }
        let router = Router::new(now, config, ports, self.seed_of(side, starts))?;
        if let Some(r) = self.routers.get_mut(i) {
            r.router = router;
            r.wake = now;
            r.starts += 1;
        }
        Ok(())
    }

    pub fn router(&self, side: Side) -> Option<&Router<MemPort>> {
        let r = self.routers.iter().find(|r| r.side == side)?;
        Some(&r.router)
    }

    pub fn routers(&self) -> impl Iterator<Item = &Router<MemPort>> {
        self.routers.iter().map(|r| &r.router)
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().map(|(h, _)| h)
    }

    pub fn hosts_mut(&mut self) -> impl Iterator<Item = &mut Host> {
        self.hosts.iter_mut().map(|(h, _)| h)
    }

    pub fn host(&mut self, name: &str) -> Option<&mut Host> {
        self.hosts_mut().find(|h| h.outcome.name == name)
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Instant) {
        loop {
            self.settle();
            let next = self.next();
            if next > until {
                self.now = self.now.max(until);
                return;
            }
            self.now = next;
        }
    }

    /// The next time that anything is to be done, later than now.
    fn next(&self) -> Instant {
        let routers = self.routers.iter().map(|r| r.wake);
        let emulators = self.emulators.iter().filter_map(Emulator::next_due);
        let hosts = self.hosts.iter().filter_map(|(h, _)| h.next());
        routers
            .chain(emulators)
            .chain(hosts)
            .min()
            .unwrap_or(Instant::FAR_FUTURE)
            .max(self.now + Duration::from_nanos(1))
    }

    /// Does all there is to do now.
    fn settle(&mut self) {
        let now = self.now;
        loop {
            let mut moved = false;
            for &(a, b) in &self.joints {
                moved |= pass(now, &self.wires, a, b, &mut self.frames);
                moved |= pass(now, &self.wires, b, a, &mut self.frames);
            }
            for emulator in &mut self.emulators {
                moved |= emulator.receive(usize::MAX) > 0;
                if emulator.next_due().is_some_and(|t| t <= now) {
                    emulator.release(|| now);
                    moved = true;
                }
            }
            for r in &mut self.routers {
                let pending = r
                    .wires
                    .iter()
                    .any(|w| self.wires.get(*w).is_some_and(|w| w.pending() > 0));
                if pending || r.wake <= now {
                    r.router.poll(now);
                    r.wake = r.router.next_wake(now).max(now + STEP);
                    moved = true;
                }
            }
            for (host, wire) in &mut self.hosts {
                if let Some(wire) = self.wires.get(*wire) {
                    moved |= host.poll(now, wire);
                }
            }
            if !moved {
                return;
            }
        }
    }
}

/// Carries frames from one end to the other; true if there were any.
fn pass(
    now: Instant,
    wires: &[MemWire],
    from: Wire,
    to: Wire,
    frames: &mut Vec<Packet<HeapBuf>>,
) -> bool {
    let (Some(from), Some(to)) = (wires.get(from), wires.get(to)) else {
        return false;
    };
    if !from.has_sent() {
        return false;
    }
    from.take_sent(frames);
    for mut packet in frames.drain(..) {
        packet.meta.rx_time = now;
        // A full cable drops, and its port counts it.
        let _ = to.inject(packet);
    }
    true
}
