//! Brings a topology up: namespaces, cables, addresses, emulators, routers.
//!
//! ```text
//!  mefN-a1            mefN-ra              mefN-wan             mefN-rb            mefN-b1
//!  [eth0]--------[lan1  wan]--------[a  emulator  b]--------[wan  lan1]--------[eth0]
//!  [eth0]--------[a2f bridge ai]--[a emulator ...   in mefN-wan: a foreign host
//!  [eth0]--[a2h emulator a2r, in mefN-wan]--[lan2]           a host with an access path
//! ```

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mef_io::os::{set_interface_offload, Offload};

use super::emulator::Emulator;
use super::router::MefRouter;
use super::RunError;
use crate::netns::{release_folder, scratch_folder, Namespaces};
use crate::topology::{Driver, Family, Host, Side, Topology};
use crate::wan::Snapshot;

/// Hosts may open windows that hold any path of the lab.
const TCP_BUFFER_MAX: &str = "268435456";

/// A topology that is up; taken down when dropped.
pub struct Network {
    // In the order they have to go: processes before the namespaces they are in.
    routers: Vec<MefRouter>,
    wan: Emulator,
    access: Vec<Emulator>,
    net: Namespaces,
    scratch: Scratch,
}

/// What to build.
#[derive(Clone, Copy)]
pub struct Build<'a> {
    pub topology: &'a Topology,
    /// MEF routers; else Linux forwards.
    pub mef: bool,
    pub seed: u64,
    /// Leave configurations and logs behind.
    pub keep: bool,
}

fn router_namespace(side: Side) -> &'static str {
    match side {
        Side::A => "ra",
        Side::B => "rb",
    }
}

impl Network {
    pub fn up(build: Build<'_>) -> Result<Self, RunError> {
        let topology = build.topology;
        let hosts = topology.hosts.iter().map(|h| h.name.as_str());
        let names: Vec<&str> = hosts.chain(["ra", "rb", "wan"]).collect();
        let scratch = Scratch(scratch_folder(build.keep)?);
        let net = Namespaces::create(&names)?;
        for side in [Side::A, Side::B] {
            let letter = side.letter().to_string();
            let shared = topology.hosts.iter().any(|h| h.side == side && h.foreign);
            let end = if shared { share(&net, side)? } else { letter };
            net.cable((router_namespace(side), "wan"), ("wan", &end))?;
            if shared {
                join(&net, side, &end)?;
            }
            segmented(&net, router_namespace(side), "wan")?;
        }
        for host in &topology.hosts {
            cable_host(&net, host)?;
            set_up_host(&net, host)?;
            if build.mef && topology.router.driver == Driver::Dpdk {
                segmented(&net, &host.name, "eth0")?;
            }
        }
        let config = write_wan(&scratch.0, "wan", &topology.wan)?;
        let wan = Emulator::start(&net, "wan", ("a", "b"), &config, build.seed)?;
        let mut access = Vec::new();
        for host in &topology.hosts {
            if let Some(path) = host.access() {
                let config = write_wan(&scratch.0, &host.name, &path)?;
                let ends = (access_interface(host, 'h'), access_interface(host, 'r'));
                access.push(Emulator::start(
                    &net,
                    "wan",
                    (&ends.0, &ends.1),
                    &config,
                    build.seed,
                )?);
            }
        }
        let routers = if build.mef {
            MefRouter::start_pair(&net, topology, &scratch.0)?
        } else {
            for side in [Side::A, Side::B] {
                set_up_linux_router(&net, topology, side)?;
            }
            Vec::new()
        };
        Ok(Self {
            routers,
            wan,
            access,
            net,
            scratch,
        })
    }

    pub fn namespaces(&self) -> &Namespaces {
        &self.net
    }

    pub fn routers(&mut self) -> &mut [MefRouter] {
        &mut self.routers
    }

    /// The emulator of the WAN.
    pub fn wan(&mut self) -> &mut Emulator {
        &mut self.wan
    }

    /// What the emulators of the access paths measured.
    pub fn access_snapshots(&mut self) -> Result<Vec<Snapshot>, RunError> {
        self.access.iter_mut().map(Emulator::snapshot).collect()
    }

    /// The measured window of every emulator starts now.
    pub fn start_window(&mut self) -> Result<(), RunError> {
        self.wan.window()?;
        self.access.iter_mut().try_for_each(Emulator::window)
    }

    /// Where configurations and logs are.
    pub fn scratch(&self) -> &Path {
        &self.scratch.0
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for router in &mut self.routers {
            router.stop();
        }
    }
}

/// Configurations, keys, control sockets and logs; goes with its owner unless kept.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        release_folder(&self.0);
    }
}

/// The emulator is given frames as they are on a wire: what its side of the
/// cable is sent leaves segmented and with its checksums, as from a NIC.
fn segmented(net: &Namespaces, namespace: &str, interface: &str) -> Result<(), RunError> {
    net.inside(namespace, || {
        for offload in [Offload::Tso, Offload::Gso, Offload::TxChecksum] {
            set_interface_offload(interface, offload, false).map_err(|source| {
                RunError::Offload {
                    interface: format!("{interface} in {namespace}"),
                    source,
                }
            })?;
        }
        Ok(())
    })?
}

fn access_interface(host: &Host, end: char) -> String {
    format!("{}{end}", host.name)
}

fn lan(host: &Host) -> String {
    format!("lan{}", host.number)
}

/// Makes room for several at this end of the WAN: a bridge, with the emulator's interface behind it.
/// Returns the name of the interface that the router's cable ends in.
fn share(net: &Namespaces, side: Side) -> Result<String, RunError> {
    let l = side.letter();
    net.cable(("wan", &l.to_string()), ("wan", &format!("{l}i")))?;
    net.ip(
        "wan",
        &format!("link add {l}br type bridge\nlink set dev {l}br up\n"),
    )?;
    join(net, side, &format!("{l}i"))?;
    Ok(format!("{l}r"))
}

fn join(net: &Namespaces, side: Side, interface: &str) -> Result<(), RunError> {
    let bridge = format!("{}br", side.letter());
    Ok(net.ip(
        "wan",
        &format!("link set dev {interface} master {bridge}\n"),
    )?)
}

fn cable_host(net: &Namespaces, host: &Host) -> Result<(), RunError> {
    if host.foreign {
        let end = format!("{}f", host.name);
        net.cable((&host.name, "eth0"), ("wan", &end))?;
        join(net, host.side, &end)?;
        return segmented(net, &host.name, "eth0");
    }
    let (router, lan) = (router_namespace(host.side), lan(host));
    if host.access().is_none() {
        net.cable((&host.name, "eth0"), (router, &lan))?;
        return Ok(());
    }
    net.cable((&host.name, "eth0"), ("wan", &access_interface(host, 'h')))?;
    net.cable((router, &lan), ("wan", &access_interface(host, 'r')))?;
    segmented(net, &host.name, "eth0")?;
    segmented(net, router, &lan)
}

fn set_up_host(net: &Namespaces, host: &Host) -> Result<(), RunError> {
    let most = |small: &str| format!("{small}\t{TCP_BUFFER_MAX}");
    net.sysctl(
        &host.name,
        &[
            ("net/ipv4/tcp_rmem", &most("4096\t131072")),
            ("net/ipv4/tcp_wmem", &most("4096\t16384")),
            ("net/ipv4/tcp_no_metrics_save", "1"),
            ("net/ipv4/ip_forward", "0"),
        ],
    )?;
    if host.foreign {
        let commands = add_address(host.address_of(Family::Ipv4), "eth0");
        return Ok(net.ip(&host.name, &commands)?);
    }
    if host.family == Family::Ipv6 {
        enable_ipv6(net, &host.name)?;
    }
    let mut commands = String::new();
    for &family in host.family.with_ipv4() {
        commands += &add_address(host.address_of(family), "eth0");
        let gateway = host.gateway_of(family).addr();
        commands += &format!("route add default via {gateway}\n");
    }
    Ok(net.ip(&host.name, &commands)?)
}

/// The lab's addresses are known to be unique: nobody waits for the proof (RFC 4862).
fn add_address(address: IpNet, interface: &str) -> String {
    let nodad = if address.addr().is_ipv6() {
        " nodad"
    } else {
        ""
    };
    format!("addr add {address} dev {interface}{nodad}\n")
}

fn enable_ipv6(net: &Namespaces, namespace: &str) -> Result<(), RunError> {
    Ok(net.sysctl(
        namespace,
        &[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
        ],
    )?)
}

fn set_up_linux_router(net: &Namespaces, topology: &Topology, side: Side) -> Result<(), RunError> {
    let namespace = router_namespace(side);
    net.sysctl(namespace, &[("net/ipv4/ip_forward", "1")])?;
    if topology.family == Family::Ipv6 {
        enable_ipv6(net, namespace)?;
        net.sysctl(namespace, &[("net/ipv6/conf/all/forwarding", "1")])?;
    }
    // As its administrator would: a WAN that carries less than 1500 bytes is known.
    let mtu = topology.wan_from(side).mtu.min(1500);
    let mut commands = format!("link set dev wan mtu {mtu}\n");
    let other = side.other();
    for &family in topology.family.with_ipv4() {
        commands += &add_address(side.wan_address(family), "wan");
        for host in topology.hosts_of(side) {
            commands += &add_address(host.gateway_of(family), &lan(host));
        }
        let (prefix, via) = (other.prefix(family), other.wan_address(family).addr());
        commands += &format!("route add {prefix} via {via}\n");
    }
    Ok(net.ip(namespace, &commands)?)
}

/// The emulator reads what the topology said, resolved.
fn write_wan(folder: &Path, name: &str, wan: &crate::wan::WanConfig) -> Result<PathBuf, RunError> {
    let path = folder.join(format!("{name}.json"));
    let text = serde_json::to_string(wan).map_err(|e| RunError::File {
        path: path.clone(),
        source: e.into(),
    })?;
    std::fs::write(&path, text).map_err(|source| RunError::File {
        path: path.clone(),
        source,
    })?;
    Ok(path)
}
