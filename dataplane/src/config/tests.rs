use std::path::Path;

use mef_protocol::classes::Class;

use super::*;

/// Has eth0 and eth1, and one private key.
struct TestHost;

fn own_key() -> PrivateKey {
    PrivateKey::generate([1; 32])
}

impl Host for TestHost {
    fn interface_exists(&self, name: &str) -> bool {
        ["eth0", "eth1"].contains(&name)
    }

    fn pci_device_exists(&self, address: &str) -> bool {
        address == "0000:01:00.0"
    }

    fn has_dpdk(&self) -> bool {
        true
    }

    fn private_key(&self, file: &Path) -> Result<PrivateKey, String> {
        if file == Path::new("/etc/mef/a.key") {
            return Ok(own_key());
        }
        Err(format!("{}: no such key", file.display()))
    }
}

const VALID: &str = r#"[router]
name = "site-a"
private_key = "a.key"
memory = "512MiB"
engine = "aes-gcm"
open = "confirm"
control = "/run/mef/a.sock"
realtime = false

[[port]]
name = "lan"
interface = "eth0"
driver = "af_packet"
addresses = ["10.1.0.1/24", "10.1.1.1/24"]
mtu = 1500

[[port]]
name = "wan"
interface = "eth1"
addresses = ["192.0.2.1/30"]
listen = 4801
[port.line]
up = "100Mbit/s"
down = "1.5Gbit/s"
overhead = -4

[[peer]]
name = "site-b"
public_key = "KEY-B"
port = "wan"
endpoint = "192.0.2.2:4800"
prefixes = ["10.2.0.0/24", "10.3.0.0/16"]

[[peer]]
name = "site-c"
public_key = "KEY-C"
port = "wan"
prefixes = ["10.4.0.0/16"]

[[route]]
prefix = "0.0.0.0/0"
via = "192.0.2.2"

[[route]]
prefix = "10.9.0.0/16"
via = "site-b"

[[policy]]
source = "10.1.0.0/24"
destination = "10.2.0.0/24"
protocol = "tcp"
port = 5201
source_port = 40001
mode = "split"
open = "early"
weight = 2.0

[[policy]]
protocol = "tcp"
port = 22
mode = "datagram"
weight = 10
class = "bulk"
fallback = "plain"
"#;

fn keyed(text: &str) -> String {
    let key = |n: u8| PrivateKey::generate([n; 32]).public().to_string();
    text.replace("KEY-OWN", &own_key().public().to_string())
        .replace("KEY-B", &key(2))
        .replace("KEY-C", &key(3))
}

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(&keyed(text), Path::new("/etc/mef/a.toml"), &TestHost)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn every_key_has_its_meaning() {
    let config = read(VALID).unwrap();
    assert_eq!(config.name, "site-a");
    assert_eq!(config.private_key.public(), own_key().public());
    assert_eq!(config.memory, Bytes(512 << 20));
    let other = read(&VALID.replace("memory = \"512MiB\"", "host_buffer = \"1MiB\"")).unwrap();
    assert_eq!(other.host_buffer, Bytes(1 << 20));
    assert_eq!(
        (config.engine, config.open, config.realtime),
        (EngineKind::AesGcm, OpenMode::Confirm, false)
    );
    assert_eq!(
        config.control.as_deref(),
        Some(Path::new("/run/mef/a.sock"))
    );

    let lan = config.port(PortId(0)).unwrap();
    assert_eq!(
        (
            lan.name.as_str(),
            lan.interface.as_str(),
            lan.mtu,
            lan.listen
        ),
        ("lan", "eth0", Some(1500), 4800)
    );
    assert_eq!(lan.addresses, [net("10.1.0.1/24"), net("10.1.1.1/24")]);
    assert_eq!(
        lan.address_towards(IpAddr::from([10, 1, 1, 7])),
        Some(IpAddr::from([10, 1, 1, 1]))
    );
    assert_eq!(
        lan.address_towards(IpAddr::from([8, 8, 8, 8])),
        Some(IpAddr::from([10, 1, 0, 1]))
    );
    assert_eq!(lan.line, None);
    let wan = config.port(PortId(1)).unwrap();
    assert_eq!((wan.mtu, wan.listen), (None, 4801));
    assert_eq!(
        wan.line,
        Some(Line {
            up: BitRate::from_mbit(100),
            down: BitRate::from_mbit(1500),
            auto: None,
            down_known: true,
            overhead: -4,
            copy_dscp: true,
            burst: Duration::from_micros(250),
        })
    );

    let b = config.peer(PeerId(0)).unwrap();
    assert_eq!((b.name.as_str(), b.port), ("site-b", PortId(1)));
    assert_eq!(b.public_key, PrivateKey::generate([2; 32]).public());
    assert_eq!(b.endpoint, Some("192.0.2.2:4800".parse().unwrap()));
    assert_eq!(b.prefixes, [net("10.2.0.0/24"), net("10.3.0.0/16")]);
    assert_eq!(config.peer(PeerId(1)).unwrap().endpoint, None);

    let gateway = Via::Gateway {
        port: PortId(1),
        address: IpAddr::from([192, 0, 2, 2]),
    };
    assert_eq!(
        config.routes,
        [
            StaticRoute {
                prefix: net("0.0.0.0/0"),
                via: gateway
            },
            StaticRoute {
                prefix: net("10.9.0.0/16"),
                via: Via::Peer(PeerId(0))
            },
        ]
    );
    assert_eq!(
        config.policies[0],
        Policy {
            source: Some(net("10.1.0.0/24")),
            destination: Some(net("10.2.0.0/24")),
            protocol: Some(Protocol::Tcp),
            port: Some(5201),
            source_port: Some(40001),
            mode: Some(Mode::Split),
            open: Some(OpenMode::Early),
            weight: Some(2.0),
            class: None,
            fallback: None,
        }
    );
}

#[test]
fn what_is_left_out_has_its_default() {
    let text = "[router]\nprivate_key = \"a.key\"\n[[port]]\nname = \"lan\"\ninterface = \"eth0\"\naddresses = [\"10.1.0.1/24\"]\n";
    let config = read(text).unwrap();
    assert_eq!(config.name, "mef");
    assert_eq!(config.host_buffer, Bytes(4 << 20));
    assert_eq!(config.memory, Bytes(1 << 30));
    assert_eq!(
        (config.engine, config.open, config.realtime),
        (EngineKind::Ring, OpenMode::Confirm, true)
    );
    assert_eq!(config.control, None);
    let port = &config.ports[0];
    assert_eq!(
        (port.driver, port.mtu, port.listen),
        (Driver::AfPacket, None, 4800)
    );
    assert!(config.peers.is_empty() && config.routes.is_empty() && config.policies.is_empty());
}

/// Two ports on DPDK.
fn devices(lan: &str, wan: &str) -> String {
    let port = |name: &str, device: &str, net: u8| {
        format!("[[port]]\nname = \"{name}\"\ndriver = \"dpdk\"\ndevice = \"{device}\"\naddresses = [\"10.{net}.0.1/24\"]\n")
    };
    format!(
        "[router]\nprivate_key = \"a.key\"\n{}{}",
        port("lan", lan, 1),
        port("wan", wan, 2)
    )
}

#[test]
fn devices_of_dpdk_are_checked_like_interfaces() {
    let config = read(&devices("0000:01:00.0", "net_af_packet0,iface=eth1")).unwrap();
    let names: Vec<(Driver, &str)> = config
        .ports
        .iter()
        .map(|p| (p.driver, p.interface.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            (Driver::Dpdk, "0000:01:00.0"),
            (Driver::Dpdk, "net_af_packet0,iface=eth1")
        ]
    );
    for (lan, wan, line, message) in [
        ("net_null0", "net_null0,copy=1", 11, "port.device: found \"net_null0,copy=1\", expected every device in one port only"),
        ("net_null0", "net_af_packet0,iface=none", 11, "port.device: found \"net_af_packet0,iface=none\", expected an interface that exists here"),
        ("0000:ff:1f.7", "net_null0", 6, "port.device: found \"0000:ff:1f.7\", expected a PCI device that exists here"),
    ] {
        let error = read(&devices(lan, wan)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(error.contains(&format!(":{line}:")), "{error}");
    }
}

/// A program that was built without DPDK.
struct Without;

impl Host for Without {
    fn interface_exists(&self, _: &str) -> bool {
        true
    }
    fn has_dpdk(&self) -> bool {
        false
    }
    fn private_key(&self, _: &Path) -> Result<PrivateKey, String> {
        Ok(own_key())
    }
}

#[test]
fn a_program_without_dpdk_says_so() {
    let text = devices("net_null0", "net_null1");
    let error = parse(&text, Path::new("/etc/mef/a.toml"), &Without).unwrap_err();
    let wanted = "port.driver: found \"dpdk\", expected \"af_packet\", as this program was built without DPDK; change it, or build with `cargo build --release`";
    assert!(error.to_string().contains(wanted), "{error}");
}

#[test]
fn the_first_policy_that_matches_wins() {
    let config = read(VALID).unwrap();
    let flow = FlowTuple {
        source: IpAddr::from([10, 1, 0, 2]),
        destination: IpAddr::from([10, 2, 0, 2]),
        protocol: 6,
        source_port: 40001,
        port: 5201,
    };
    let treated = |flow: FlowTuple| {
        let t = config.treatment(&flow);
        (t.mode, t.open, t.weight)
    };
    assert_eq!(treated(flow), (Mode::Split, OpenMode::Early, 2.0));
    let none = (Mode::Split, OpenMode::Confirm, 1.0);
    assert_eq!(
        treated(FlowTuple {
            source_port: 40002,
            ..flow
        }),
        none
    );
    assert_eq!(treated(FlowTuple { port: 5202, ..flow }), none);
    assert_eq!(
        treated(FlowTuple {
            source: IpAddr::from([10, 1, 1, 2]),
            ..flow
        }),
        none
    );
    assert_eq!(
        treated(FlowTuple {
            destination: IpAddr::from([10, 3, 0, 2]),
            ..flow
        }),
        none
    );
    assert_eq!(
        treated(FlowTuple {
            protocol: 17,
            ..flow
        }),
        (Mode::Datagram, OpenMode::Confirm, 1.0)
    );
    assert_eq!(
        treated(FlowTuple { port: 22, ..flow }),
        (Mode::Datagram, OpenMode::Confirm, 10.0)
    );
    let t = config.treatment(&FlowTuple { port: 22, ..flow });
    assert_eq!((t.class, t.fallback), (Class::Bulk, Fallback::Plain));
    let t = config.treatment(&flow);
    assert_eq!((t.class, t.fallback), (Class::Balanced, Fallback::Refuse));
    assert!(!t.allows_plain());
}

#[test]
fn plain_mode_and_the_outer_ds_field_are_what_the_file_says() {
    let text = VALID
        .replace("overhead = -4", "dscp = \"zero\"")
        .replace(
            "mode = \"datagram\"",
            "mode = \"plain\"\nclass = \"latency\"",
        )
        .replace("class = \"bulk\"\nfallback = \"plain\"\n", "");
    let config = read(&text).unwrap();
    assert!(!config.ports[1].line.unwrap().copy_dscp);
    let text = VALID.replace("overhead = -4", "burst = \"2ms\"");
    let burst = read(&text).unwrap().ports[1].line.unwrap().burst;
    assert_eq!(burst, Duration::from_millis(2));
    let t = config.treatment(&FlowTuple {
        source: IpAddr::from([10, 1, 0, 2]),
        destination: IpAddr::from([10, 2, 0, 2]),
        protocol: 6,
        source_port: 40001,
        port: 22,
    });
    assert_eq!((t.mode, t.class), (Mode::Plain, Class::Latency));
    assert!(t.allows_plain());
    let shown = summary(&config);
    for line in [
        "policy 1: tcp from 10.1.0.0/24 from port 40001 to 10.2.0.0/24 to port 5201 -> split open early weight 2",
        "policy 2: tcp to port 22 -> plain weight 10 class latency",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn ipv6_all_through() {
    let text = VALID
        .replace("\"192.0.2.1/30\"", "\"2001:db8:ffff::1/64\"")
        .replace("\"192.0.2.2:4800\"", "\"[2001:db8:ffff::2]:4800\"")
        .replace("\"10.1.1.1/24\"", "\"2001:db8:1::1/64\"")
        .replace("\"10.3.0.0/16\"", "\"2001:db8:2::/48\"")
        .replace(
            "\"0.0.0.0/0\"\nvia = \"192.0.2.2\"",
            "\"::/0\"\nvia = \"fe80::1%wan\"",
        )
        .replace("protocol = \"tcp\"\nport = 22", "protocol = \"icmp\"");
    let config = read(&text).unwrap();
    assert_eq!(
        config.peers[0].endpoint,
        Some("[2001:db8:ffff::2]:4800".parse().unwrap())
    );
    let gateway = Via::Gateway {
        port: PortId(1),
        address: "fe80::1".parse().unwrap(),
    };
    assert_eq!(config.routes[0].via, gateway);
    let lan = config.port(PortId(0)).unwrap();
    let near = |to: &str| {
        lan.address_towards(to.parse().unwrap())
            .unwrap()
            .to_string()
    };
    assert_eq!(near("2001:db8:9::9"), "2001:db8:1::1");
    assert_eq!(near("8.8.8.8"), "10.1.0.1");
    // ICMP is another protocol there.
    let weight = |source: &str, protocol| {
        let flow = FlowTuple {
            source: source.parse().unwrap(),
            destination: source.parse().unwrap(),
            protocol,
            source_port: 0,
            port: 0,
        };
        config.treatment(&flow).weight
    };
    assert_eq!((weight("10.1.0.2", 1), weight("10.1.0.2", 58)), (10.0, 1.0));
    let v6 = "2001:db8:1::2";
    assert_eq!((weight(v6, 1), weight(v6, 58)), (1.0, 10.0));
}

#[test]
fn a_policy_without_a_protocol_splits_tcp_only_and_ports_need_a_protocol_that_has_them() {
    let base = &VALID[..VALID.find("[[policy]]").unwrap()];
    let config = read(&format!(
        "{base}[[policy]]\nport = 53\nmode = \"split\"\nweight = 3\n"
    ))
    .unwrap();
    let flow = |protocol, port| FlowTuple {
        source: IpAddr::from([10, 1, 0, 2]),
        destination: IpAddr::from([10, 2, 0, 2]),
        protocol,
        source_port: 1024,
        port,
    };
    let treated = |protocol, port| {
        let t = config.treatment(&flow(protocol, port));
        (t.mode, t.weight)
    };
    assert_eq!(treated(6, 53), (Mode::Split, 3.0));
    assert_eq!(treated(17, 53), (Mode::Datagram, 3.0));
    assert_eq!(treated(1, 53), (Mode::Datagram, 1.0));
    assert_eq!(treated(6, 54), (Mode::Split, 1.0));
}

/// What is changed in [`VALID`], the line of the error, and the whole message behind it.
#[rustfmt::skip]
const BROKEN: &[(&str, &str, usize, &str)] = &[
    // What TOML and its types refuse.
    ("realtime = false", "realtme = false", 8,
     "router.realtme: found a key that does not exist here, expected one of `name`, `private_key`, `memory`, `host_buffer`, `engine`, `open`, `control`, `metrics`, `realtime`, `adopt`, `drain`, `state`, `workers`; correct its spelling or remove it"),
    ("[[policy]]\nprotocol", "[[polciy]]\nprotocol", 58, "polciy: found a key that does not exist here, expected one of `router`, `port`, `peer`, `route`, `policy`; correct its spelling or remove it"),
    ("overhead = -4", "overhed = -4", 25, "port.line.overhed: found a key that does not exist here, expected one of `up`, `down`, `target`, `overhead`, `dscp`, `burst`; correct its spelling or remove it"),
    ("mtu = 1500", "mtu = \"1500\"", 15, "port.mtu: found string \"1500\", expected a whole number; change its value"),
    ("realtime = false", "realtime = \"no\"", 8, "router.realtime: found string \"no\", expected a boolean; change its value"),
    ("name = \"lan\"", "name = lan", 11, "TOML"),
    ("mtu = 1500", "mtu = 1500\nmtu = 1400", 16, "port.mtu: found a second value for the same key, expected one value; remove one of the two"),
    // Names and references.
    ("name = \"wan\"", "name = \"lan\"", 18, "port.name: found \"lan\" again, first on line 11, expected a name of its own for every port; change or remove one of the two"),
    ("name = \"site-c\"", "name = \"site-b\"", 35, "peer.name: found \"site-b\" again, first on line 28, expected a name of its own for every peer"),
    ("interface = \"eth1\"", "interface = \"eth0\"", 19, "port.interface: found \"eth0\" again, first on line 12"),
    ("KEY-C", "KEY-B", 36, "peer.public_key: found"),
    ("name = \"site-a\"", "name = \"\"", 2, "router.name: found \"\", expected 1 to 32 letters, digits, '-', '_' or '.', and no address; choose such a name"),
    ("name = \"lan\"", "name = \"the lan\"", 11, "port.name: found \"the lan\", expected 1 to 32 letters"),
    ("name = \"site-b\"", "name = \"10.0.0.1\"", 28, "peer.name: found \"10.0.0.1\", expected"),
    ("KEY-B\"\nport = \"wan\"", "KEY-B\"\nport = \"wlan\"", 30, "peer.port: found \"wlan\", expected the name of a port (lan, wan); name one of these, or add the [[port]]"),
    ("KEY-B\"\nport = \"wan\"", "KEY-B\"\nport = \"lan\"", 30, "peer.port: found port lan without a [port.line], expected a port whose line's capacity is known; add [port.line] with up and down under that port"),
    ("listen = 4801", "listen = 4801\nmtu = 1279", 31, "peer.port: found port wan with an mtu of 1279, expected a port with an mtu of at least 1280, where links start; raise port.mtu"),
    // Units and ranges.
    ("\"100Mbit/s\"", "\"100 Mbit/s\"", 23, "port.line.up: found \"100 Mbit/s\", expected a rate such as \"64kbit/s\", \"100Mbit/s\" or \"1.5Gbit/s\" (units: bit/s, kbit/s, Mbit/s, Gbit/s; no space); write it in one of these forms"),
    ("\"1.5Gbit/s\"", "\"1.5GB/s\"", 24, "port.line.down: found \"1.5GB/s\", expected a rate such as"),
    ("\"100Mbit/s\"", "\"0Mbit/s\"", 23, "port.line.up: found \"0Mbit/s\", expected a rate from 1kbit/s to 1000Gbit/s, or \"auto\"; give what the line really carries"),
    ("\"512MiB\"", "\"512MB\"", 4, "router.memory: found \"512MB\", expected a size such as \"512MiB\" or \"1GiB\" (units: B, KiB, MiB, GiB, TiB; no space); write it in one of these forms"),
    ("memory = \"512MiB\"", "host_buffer = \"63KiB\"", 4, "router.host_buffer: found \"63KiB\", expected 64KiB to 64MiB; choose twice what a host's access carries in its round trip, or leave it out for 4MiB"),
    ("memory = \"512MiB\"", "host_buffer = \"65MiB\"", 4, "router.host_buffer: found \"65MiB\", expected 64KiB to 64MiB; choose twice what a host's access carries in its round trip, or leave it out for 4MiB"),
    ("\"512MiB\"", "\"1KiB\"", 4, "router.memory: found \"1KiB\", expected at least 1MiB"),
    ("realtime = false", "workers = 33", 8, "router.workers: found 33, expected a number from 1 to 32; change it, or leave it out for the default"),
    ("memory = \"512MiB\"", "memory = \"1MiB\"\nworkers = 2", 5, "router.workers: found 2, expected at least 2MiB of memory for them; raise router.memory, or have fewer workers"),
    ("realtime = false", "workers = 2\n[[port]]\nname = \"lte\"\ninterface = \"eth9\"\naddresses = [\"10.9.0.1/24\"]\nline = { up = \"auto\", down = \"auto\" }", 8,
     "router.workers: found 2, expected 1, as the line of port lte is of unknown capacity: each worker would estimate it by itself; state the line's capacity, or remove the key"),
    ("realtime = false\n\n[[port]]\nname = \"lan\"", "workers = 2\n\n[[port]]\nname = \"w\"\ninterface = \"eth8\"\naddresses = [\"10.9.0.1/24\"]\nlisten = 65535\nline = { up = \"1Mbit/s\", down = \"1Mbit/s\" }\n\n[[port]]\nname = \"lan\"", 8,
     "router.workers: found 2, expected a UDP port for each from `listen` of port w on, which is 65535; choose a smaller `listen`, or have fewer workers"),
    ("overhead = -4", "overhead = 1000", 25, "port.line.overhead: found 1000, expected a number from -128 to 256; change it, or leave it out for the default"),
    ("mtu = 1500", "mtu = 575", 15, "port.mtu: found 575, expected a number from 576 to 65535"),
    ("listen = 4801", "listen = 65536", 21, "port.listen: found 65536, expected a number from 1 to 65535"),
    ("weight = 2.0", "weight = 0", 56, "policy.weight: found 0, expected a weight from 0.01 to 1000; weights are relative to the default of 1"),
    ("weight = 10", "weight = 1000.5", 62, "policy.weight: found 1000.5, expected a weight from 0.01 to 1000"),
    ("weight = 10", "weight = nan", 62, "policy.weight: found NaN, expected"),
    ("port = 5201", "port = 0", 52, "policy.port: found 0, expected a number from 1 to 65535"),
    // Choices.
    ("\"aes-gcm\"", "\"AES\"", 5, "router.engine: found \"AES\", expected \"ring\" or \"aes-gcm\"; take one of these, in lower case"),
    ("open = \"confirm\"", "open = \"late\"", 6, "router.open: found \"late\", expected \"confirm\" or \"early\""),
    ("\"af_packet\"", "\"xdp\"", 13, "port.driver: found \"xdp\", expected \"af_packet\" or \"dpdk\""),
    // Devices.
    ("\"af_packet\"", "\"dpdk\"", 12, "port.interface: found \"eth0\", expected no such key beside driver = \"dpdk\"; give device = \"net_af_packet0,iface=NAME\""),
    ("interface = \"eth0\"", "device = \"net_null0\"", 12, "port.device: found \"net_null0\", expected no such key beside driver = \"af_packet\"; name an interface instead, or add driver = \"dpdk\""),
    ("interface = \"eth0\"\n", "", 11, "port.interface: found nothing, expected this key, which has no default; add it"),
    ("interface = \"eth0\"\ndriver = \"af_packet\"", "driver = \"dpdk\"", 11, "port.device: found nothing, expected this key"),
    ("interface = \"eth0\"\ndriver = \"af_packet\"", "device = \"eth0\"\ndriver = \"dpdk\"", 12, "port.device: found \"eth0\", expected a PCI address such as \"0000:01:00.0\", or a virtual device such as \"net_af_packet0,iface=eth0\""),
    ("interface = \"eth0\"\ndriver = \"af_packet\"", "device = \"net_null0\"\ndriver = \"dpdk\"", 18, "port.driver: found \"wan\", expected \"dpdk\" as on the first port; use one driver for all ports"),
    ("mode = \"datagram\"", "mode = \"steer\"", 61, "policy.mode: found \"steer\", expected \"split\", \"datagram\" or \"plain\", as this version steers no flows; take \"datagram\" for TCP that must stay end to end"),
    ("protocol = \"tcp\"\nport = 22", "protocol = \"sctp\"\nport = 22", 59, "policy.protocol: found \"sctp\", expected \"tcp\" or \"udp\" or \"icmp\""),
    ("protocol = \"tcp\"\nport = 5201", "protocol = \"udp\"\nport = 5201", 54, "policy.mode: found \"split\", expected \"datagram\" or \"plain\", as only TCP can be split; change the mode, or match protocol = \"tcp\""),
    ("protocol = \"tcp\"\nport = 22", "protocol = \"icmp\"\nport = 22", 60, "policy.port: found a port beside protocol = \"icmp\", expected no port, as ICMP has none"),
    ("mode = \"datagram\"", "mode = \"whole\"", 61, "policy.mode: found \"whole\", expected \"split\" or \"datagram\" or \"plain\""),
    ("class = \"bulk\"", "class = \"fast\"", 63, "policy.class: found \"fast\", expected \"latency\" or \"balanced\" or \"bulk\""),
    ("fallback = \"plain\"", "fallback = \"open\"", 64, "policy.fallback: found \"open\", expected \"refuse\" or \"plain\""),
    ("mode = \"datagram\"", "mode = \"plain\"", 64, "policy.fallback: found \"plain\", expected no fallback beside mode = \"plain\", which needs no peer; remove one of the two"),
    ("overhead = -4", "dscp = \"none\"", 25, "port.line.dscp: found \"none\", expected \"copy\" or \"zero\""),
    ("overhead = -4", "burst = \"11ms\"", 25, "port.line.burst: found \"11ms\", expected 1ms to 10ms; a longer burst costs less processor time and makes a longer queue; leave it out for 250 us"),
    ("overhead = -4", "burst = \"0ms\"", 25, "port.line.burst: found \"0ms\", expected 1ms to 10ms"),
    // Addresses.
    ("\"192.0.2.1/30\"", "\"192.0.2.1\"", 20, "port.addresses: found \"192.0.2.1\", expected an address with its network's length, such as \"10.1.0.1/24\" or \"2001:db8:1::1/64\"; write address/length"),
    ("\"192.0.2.1/30\"", "\"192.0.2.3/30\"", 20, "port.addresses: found \"192.0.2.3/30\", expected an address that a host can have"),
    ("\"192.0.2.1/30\"", "\"192.0.2.0/30\"", 20, "port.addresses: found \"192.0.2.0/30\", expected an address that a host can have"),
    ("\"192.0.2.1/30\"", "\"127.0.0.1/8\"", 20, "port.addresses: found \"127.0.0.1/8\", expected an address that a host can have"),
    ("\"192.0.2.1/30\"", "\"2001:db8::/64\"", 20, "port.addresses: found \"2001:db8::/64\", expected an address that a host can have, not a network's first, ::/64, link-local (every port has one by itself) or multicast; choose another address"),
    ("\"192.0.2.1/30\"", "\"fe80::1/64\"", 20, "port.addresses: found \"fe80::1/64\", expected an address that a host can have"),
    ("\"192.0.2.1/30\"", "\"2001:db8::1/129\"", 20, "port.addresses: found \"2001:db8::1/129\", expected an address with its"),
    ("\"10.1.1.1/24\"]\nmtu = 1500", "\"2001:db8::1/64\"]\nmtu = 1279", 15, "port.mtu: found 1279, expected at least 1280 on a port with an IPv6 address (RFC 8200); raise it, or give the port IPv4 addresses only"),
    ("[\"192.0.2.1/30\"]", "[]", 20, "port.addresses: found an empty list, expected at least one address"),
    ("\"192.0.2.1/30\"", "\"10.1.1.9/28\"", 20, "port.addresses: found \"10.1.1.9/28\", expected no overlap with 10.1.1.1/24 on port lan; give every address a network of its own"),
    ("\"10.1.1.1/24\"", "\"10.1.0.2/24\"", 14, "port.addresses: found \"10.1.0.2/24\", expected no overlap with 10.1.0.1/24 on port lan"),
    // Peers.
    ("KEY-B", "abc", 29, "peer.public_key: found \"abc\", expected the base64 of a router's 32-byte public key; copy what `mef keys public` prints on the peer"),
    ("KEY-B", "KEY-OWN", 29, "peer.public_key: found this router's own public key, expected the peer's; give the key that `mef keys public` prints on the router site-b"),
    ("\"10.4.0.0/16\"", "\"10.3.4.0/24\"", 38, "peer.prefixes: found \"10.3.4.0/24\", expected no overlap with 10.3.0.0/16 of peer site-b; give every address to one peer only"),
    ("\"10.4.0.0/16\"", "\"10.0.0.0/8\"", 38, "peer.prefixes: found \"10.0.0.0/8\", expected no overlap with 10.2.0.0/24 of peer site-b"),
    ("\"10.4.0.0/16\"", "\"10.1.1.128/25\"", 38, "peer.prefixes: found \"10.1.1.128/25\", expected no overlap with 10.1.1.0/24 of this router's port lan; list only what is behind the peer"),
    ("\"10.4.0.0/16\"", "\"192.0.2.0/24\"", 38, "expected no overlap with 192.0.2.0/30 of this router's port wan"),
    ("\"10.4.0.0/16\"", "\"10.4.0.1/16\"", 38, "peer.prefixes: found \"10.4.0.1/16\", expected a prefix without host bits, such as \"10.4.0.0/16\"; write it so, or lengthen the prefix"),
    ("\"10.4.0.0/16\"", "\"10.4.0.0/33\"", 38, "peer.prefixes: found \"10.4.0.0/33\", expected a prefix such as \"10.2.0.0/24\" or \"2001:db8:2::/48\"; write address/length; one host is /32 or /128"),
    ("\"10.4.0.0/16\"", "\"fe80::/64\"", 38, "peer.prefixes: found \"fe80::/64\", expected a prefix that can be routed, not ::/64, link-local or multicast"),
    ("\"10.4.0.0/16\"", "\"2001:db8:4::1/48\"", 38, "peer.prefixes: found \"2001:db8:4::1/48\", expected a prefix without host bits, such as \"2001:db8:4::/48\""),
    ("\"10.4.0.0/16\"", "\"239.0.0.0/8\"", 38, "peer.prefixes: found \"239.0.0.0/8\", expected a prefix that can be routed, not 0/8, 127/8, multicast or reserved"),
    ("[\"10.4.0.0/16\"]", "[]", 38, "peer.prefixes: found an empty list, expected at least one prefix"),
    ("\"192.0.2.2:4800\"", "\"192.0.2.2\"", 31, "peer.endpoint: found \"192.0.2.2\", expected an address and UDP port such as \"192.0.2.2:4800\" or \"[2001:db8::2]:4800\"; correct it, or leave it out if the peer comes to us"),
    ("\"192.0.2.2:4800\"", "\"192.0.2.2:0\"", 31, "peer.endpoint: found \"192.0.2.2:0\", expected an address and UDP port"),
    ("\"192.0.2.2:4800\"", "\"site-b.example:4800\"", 31, "peer.endpoint: found \"site-b.example:4800\", expected an address and UDP port"),
    ("\"192.0.2.2:4800\"", "\"192.0.2.1:4800\"", 31, "peer.endpoint: found \"192.0.2.1:4800\", expected another machine's address, not one of this router or a broadcast; correct it, or add a [[route]] to it"),
    ("\"192.0.2.2:4800\"", "\"224.0.0.1:4800\"", 31, "peer.endpoint: found \"224.0.0.1:4800\", expected an address that some network or route of this file leads to"),
    ("\"192.0.2.2:4800\"", "\"10.1.0.9:4800\"", 31, "peer.endpoint: found \"10.1.0.9:4800\", expected an address reached through port wan, while this one is reached through lan"),
    ("\"192.0.2.2:4800\"", "\"10.4.0.1:4800\"", 31, "peer.endpoint: found \"10.4.0.1:4800\", expected an address outside of the prefixes of all peers: a link can not run inside a link"),
    ("\"0.0.0.0/0\"\nvia = \"192.0.2.2\"\n", "\"0.0.0.0/1\"\nvia = \"192.0.2.2\"\n", 31, "peer.endpoint: found \"203.0.113.9:4800\", expected an address that some network or route of this file leads to"),
    ("\"192.0.2.2:4800\"", "\"[fe80::2%2]:4800\"", 31, "peer.endpoint: found \"[fe80::2%2]:4800\", expected an address that some network or route of this file leads to"),
    // Routes.
    ("via = \"192.0.2.2\"", "via = \"fe80::1%wan\"", 42, "route.via: found \"fe80::1%wan\", expected a port with an IPv6 address behind the % (); name one of these, or give the port an IPv6 address"),
    ("\"10.9.0.0/16\"\nvia = \"site-b\"", "\"2001:db8:9::/48\"\nvia = \"192.0.2.2\"", 46, "route.via: found \"192.0.2.2\", expected a next hop of the family of 2001:db8:9::/48; correct the address, or route through a peer, which carries both"),
    ("via = \"192.0.2.2\"", "via = \"198.51.100.1\"", 42, "route.via: found \"198.51.100.1\", expected an address in a connected network (10.1.0.0/24, 10.1.1.0/24, 192.0.2.0/30); name a router on a port's own network, or a peer"),
    ("via = \"192.0.2.2\"", "via = \"192.0.2.1\"", 42, "route.via: found \"192.0.2.1\", expected another router's address, not one of this router or a broadcast"),
    ("via = \"192.0.2.2\"", "via = \"192.0.2.3\"", 42, "route.via: found \"192.0.2.3\", expected another router's address"),
    ("via = \"site-b\"", "via = \"site-x\"", 46, "route.via: found \"site-x\", expected an address, a link-local one with its port such as \"fe80::1%wan\", or the name of a peer"),
    ("\"10.9.0.0/16\"", "\"0.0.0.0/0\"", 45, "route.prefix: found \"0.0.0.0/0\" again, first on line 41, expected one route for every prefix"),
    ("\"10.9.0.0/16\"", "\"10.4.1.0/24\"", 45, "route.prefix: found \"10.4.1.0/24\", expected no route inside 10.4.0.0/16, which goes to peer site-c; remove the route, or the prefix from the peer"),
    ("\"10.9.0.0/16\"", "\"10.1.1.0/24\"", 45, "route.prefix: found \"10.1.1.0/24\", expected no route to the own network of port lan"),
    // The machine.
    ("\"eth1\"", "\"eth7\"", 19, "port.interface: found \"eth7\", expected an interface that exists here; take one that `ip link` lists, or create it"),
    ("\"eth1\"", "\"../eth0\"", 19, "port.interface: found \"../eth0\", expected an interface name of 1 to 15 characters"),
    ("\"a.key\"", "\"keys/b.key\"", 3, "router.private_key: /etc/mef/keys/b.key: no such key"),
    ("\"a.key\"", "\"\"", 3, "router.private_key: found \"\", expected a path"),
];

#[test]
fn what_is_broken_is_named_with_its_line_and_a_way_out() {
    let mut wrong = Vec::new();
    for (from, to, line, message) in BROKEN {
        assert!(VALID.contains(from), "{from}");
        let mut text = VALID.replacen(from, to, 1);
        if message.contains("203.0.113.9") {
            text = text.replace("192.0.2.2:4800", "203.0.113.9:4800");
        }
        match read(&text) {
            Ok(_) => wrong.push(format!("{to}: accepted")),
            Err(e) => {
                let shown = e.to_string();
                if !shown.starts_with(&format!("/etc/mef/a.toml:{line}: "))
                    || !shown.contains(message)
                    || e.line() != Some(*line)
                {
                    wrong.push(format!("{to}\n   is {shown}\n  not :{line}: {message}"));
                }
                assert!(!shown.contains('\n'), "more than one line: {shown}");
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn what_only_looks_broken_is_accepted() {
    for (from, to) in [
        // A route for the peer's own prefix through that peer, and a shorter one past it.
        ("\"10.9.0.0/16\"", "\"10.2.0.0/25\""),
        ("\"10.9.0.0/16\"", "\"10.2.0.0/15\""),
        // A next hop behind a peer.
        ("via = \"site-b\"", "via = \"10.4.0.1\""),
        // A point-to-point network has no broadcast address (RFC 3021).
        ("\"10.1.1.1/24\"", "\"10.1.1.0/31\""),
        ("\"10.1.1.1/24\"", "\"10.1.1.1/32\""),
        // IPv6 beside IPv4, and instead of it; over a link of either family.
        (
            "\"10.1.1.1/24\"",
            "\"10.1.1.1/24\", \"2001:db8:1::1/64\", \"2001:db8:f::/127\"",
        ),
        ("\"10.3.0.0/16\"", "\"2001:db8:2::/48\", \"64:ff9b::/96\""),
        (
            "\"192.0.2.1/30\"",
            "\"192.0.2.1/30\", \"2001:db8:ffff::1/64\"",
        ),
        ("\"10.9.0.0/16\"", "\"2001:db8:9::/48\""),
        // Reached through the default route.
        ("\"192.0.2.2:4800\"", "\"203.0.113.9:4800\""),
        ("weight = 10", "weight = 0.01"),
        ("listen = 4801", "mtu = 1280"),
    ] {
        assert!(VALID.contains(from), "{from}");
        if let Err(e) = read(&VALID.replacen(from, to, 1)) {
            panic!("{to}: {e}");
        }
    }
}

#[test]
fn nothing_at_all_is_told_what_it_needs() {
    let error = read("").unwrap_err().to_string();
    assert_eq!(
        error,
        "/etc/mef/a.toml:1: router: found nothing, expected this key, which has no default; add it"
    );
    let error = read("[router]\nprivate_key = \"a.key\"\n")
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains(
            "port: found no [[port]], expected at least one port; add a table such as [[port]]"
        ),
        "{error}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load(Path::new("/nonexistent/a.toml")).unwrap_err();
    assert_eq!(error.line(), None);
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/a.toml: cannot read the configuration: "),
        "{error}"
    );
}

#[test]
fn a_real_file_is_checked_on_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("a.key");
    mef_crypto::write_private_key(&key, &own_key()).unwrap();
    let file = dir.path().join("a.toml");
    // Every machine has a loopback interface.
    std::fs::write(&file, keyed(&VALID.replace("eth0", "lo"))).unwrap();
    let error = check(&file).unwrap_err().to_string();
    assert!(
        error.contains("a.toml:19: port.interface: found \"eth1\""),
        "{error}"
    );

    let one_port = "[router]\nprivate_key = \"a.key\"\n[[port]]\nname = \"lan\"\ninterface = \"lo\"\naddresses = [\"10.1.0.1/24\"]\n";
    std::fs::write(&file, one_port).unwrap();
    let summary = check(&file).unwrap();
    assert!(
        summary.starts_with("configuration is valid: router mef with public key "),
        "{summary}"
    );
    assert!(
        summary.contains(&own_key().public().to_string())
            && summary.contains("port lan on lo: 10.1.0.1/24"),
        "{summary}"
    );

    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let error = check(&file).unwrap_err().to_string();
    assert!(
        error.contains("a.toml:2: router.private_key: ") && error.contains("chmod 0600"),
        "{error}"
    );
}

proptest::proptest! {
    /// Whatever a line is replaced by, the answer is a value or a message.
    #[test]
    fn any_damage_is_survived(line in 0usize..70, with in "[ -~]{0,30}") {
        let lines: Vec<&str> = VALID.lines().enumerate().map(|(i, l)| if i == line { with.as_str() } else { l }).collect();
        if let Err(e) = read(&lines.join("\n")) {
            proptest::prop_assert!(e.to_string().starts_with("/etc/mef/a.toml:"), "{}", e);
        }
    }
}
