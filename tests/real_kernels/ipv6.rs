//! IPv6 hosts, and links over IPv6, between real Linux kernels: Neighbour
//! Discovery, path MTU and offloads as they are, every byte of both versions over both.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::byte_exact::exchange;
use crate::lab::{need, Lab, Routers, B1};

const A1_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, 2);
const B1_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 1, 0, 0, 0, 2);
const WAN: &str = "rate='200Mbit/s'\nrtt='40ms'\nqueue='1BDP'";

/// The tables of a topology with hosts and link of these families.
fn families(hosts: &str, link: &str) -> String {
    format!("[host]\nfamily='{hosts}'\n[router]\nfamily='{link}'")
}

fn both_ways(lab: &Lab, to: IpAddr, bytes: u64) {
    let address = SocketAddr::new(to, 7000);
    let (ready, listening) = std::sync::mpsc::channel();
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        (exchange(stream, 2, bytes), from)
    });
    listening.recv().unwrap();
    let client = lab.thread("a1", move || {
        let stream = TcpStream::connect(address).unwrap();
        let own = stream.local_addr().unwrap();
        (exchange(stream, 1, bytes), own)
    });
    let ((sent_a, got_a, number_a), own) = client.join().unwrap();
    let ((sent_b, got_b, number_b), from) = server.join().unwrap();
    assert_eq!(from, own, "the server sees who it is");
    assert_eq!((number_a, number_b), (bytes, bytes));
    assert!(sent_a == got_b, "a to b: other bytes than were sent");
    assert!(sent_b == got_a, "b to a: other bytes than were sent");
}

#[test]
fn hosts_of_either_version_over_links_of_either_version() {
    need!();
    let bytes = match std::env::var_os("MEF_LONG") {
        Some(_) => 500_000_000,
        None => 20_000_000,
    };
    let lossy = format!("{WAN}\nloss=0.02\njitter='5ms'\nreorder=true\nduplicate=0.01");
    for (hosts, link, to) in [
        ("ipv6", "ipv4", B1_V6.into()),
        ("ipv4", "ipv6", B1.into()),
        ("ipv6", "ipv6", B1_V6.into()),
    ] {
        let lab = Lab::up_with(Routers::Mef, &lossy, &families(hosts, link));
        both_ways(&lab, to, bytes);
        let flows = lab.status('a').counters["flows_opened"];
        assert_eq!(flows, 1, "{hosts} over {link} was not split");
    }
}

#[test]
fn ping_traceroute_and_large_packets_see_an_ipv6_path() {
    need!("ping", "traceroute");
    let lab = Lab::up_with(Routers::Mef, WAN, &families("ipv6", "ipv6"));
    let to = B1_V6;
    for (what, options) in [
        ("small", "-s 56"),
        // The largest packet that an Ethernet carries, and the host will not fragment it.
        ("large", "-M do -s 1452"),
        // Larger: the host cuts it itself, as only hosts do.
        ("cut by the host", "-s 3000"),
    ] {
        let said = lab.sh_ok("a1", &format!("ping -6 -c 5 -i 0.1 -W 2 {options} {to}"));
        assert!(said.contains(" 0% packet loss"), "{what}: {said}");
    }
    // Beside it the IPv4 of the same hosts, over the same link.
    let said = lab.sh_ok("a1", "ping -4 -c 3 -i 0.1 -W 2 -M do -s 1472 $B1");
    assert!(said.contains(" 0% packet loss"), "{said}");
    // Every probe that reaches the host wants an answer, more than Linux gives by itself.
    lab.sh_ok(
        "b1",
        "sysctl -qw net.ipv6.icmp.ratelimit=0 net.ipv4.icmp_msgs_per_sec=10000 net.ipv4.icmp_msgs_burst=10000",
    );
    for how in ["", "-I", "-T -p 7"] {
        let said = lab.sh_ok("a1", &format!("traceroute -6 -n -q 1 -w 2 {how} {to}"));
        for hop in [
            " 1  2001:db8:1:1::1",
            " 2  2001:db8:2:1::1",
            " 3  2001:db8:2:1::2",
        ] {
            // A TCP SYN is answered for by the routers: its path ends with the host.
            let seen = said.contains(hop) || how.starts_with("-T");
            let drops = ['a', 'b'].map(|r| lab.status(r).drops);
            assert!(seen, "{how}: {hop} is not in\n{said}{drops:?}");
        }
    }
    // The router answers at all its addresses, the link-local one among them.
    for own in ["2001:db8:1:1::1", "2001:db8:2:1::1"] {
        lab.sh_ok("a1", &format!("ping -6 -c 2 -i 0.1 -W 2 {own}"));
    }
    let neighbours = lab.sh_ok("a1", "ip -6 neigh show dev eth0");
    assert!(
        neighbours.contains("2001:db8:1:1::1 ") && neighbours.contains(" router "),
        "{neighbours}"
    );

    // Nobody has this address: the last router says so.
    let said = lab.sh("a1", "ping -6 -c 1 -W 5 2001:db8:2:1::77");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("From 2001:db8:2:1::1") && said.contains("Address unreachable"),
        "{said}"
    );
    let said = lab.sh("a1", "ping -6 -c 1 -W 5 2001:db8:99::1");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("No route"), "{said}");
}

#[test]
fn udp_over_ipv6_comes_and_goes_in_every_size() {
    need!();
    let lab = Lab::up_with(Routers::Mef, WAN, &families("ipv6", "ipv6"));
    let address = SocketAddr::new(B1_V6.into(), 7001);
    let soon = Some(Duration::from_secs(10));
    let (ready, listening) = std::sync::mpsc::channel();
    let echo = lab.thread("b1", move || {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(soon).unwrap();
        ready.send(()).unwrap();
        let mut bytes = [0; 9000];
        loop {
            let (n, from) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!(from.ip(), IpAddr::from(A1_V6));
            socket.send_to(&bytes[..n], from).unwrap();
            if n == 1 {
                return;
            }
        }
    });
    listening.recv().unwrap();
    let client = lab.thread("a1", move || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(soon).unwrap();
        // 1452 fill an Ethernet; from there on the hosts fragment.
        for n in [0, 100, 1200, 1400, 1451, 1452, 1453, 4000, 8000, 1] {
            let sent: Vec<u8> = (0..n).map(|i: usize| (i * 31) as u8).collect();
            socket.send_to(&sent, address).unwrap();
            let mut got = [0; 9000];
            let (len, _) = socket
                .recv_from(&mut got)
                .unwrap_or_else(|e| panic!("{n} bytes: {e}"));
            assert!(got[..len] == sent[..], "{n} bytes came back otherwise");
        }
    });
    client.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_link_over_ipv6_finds_what_its_path_carries() {
    need!();
    for mtu in [1280, 1400] {
        let wan = format!("{WAN}\nmtu={mtu}");
        let lab = Lab::up_with(Routers::Mef, &wan, &families("ipv6", "ipv6"));
        both_ways(&lab, B1_V6.into(), 2_000_000);
        for side in ['a', 'b'] {
            let found = lab.status(side).links[0].mtu;
            assert!(
                found <= mtu && mtu - found < 8,
                "{found} of a path that carries {mtu}"
            );
        }
    }
}

#[test]
fn hosts_learn_their_way_out_and_make_themselves_addresses() {
    need!("ping");
    let tables = families("ipv6", "ipv6").replace("[router]", "[router]\nadvertise=true");
    let lab = Lab::up_with(Routers::Mef, WAN, &tables);
    // A host that is plugged in, as it comes: no address, no route, nobody to ask but the link.
    lab.sh_ok(
        "a1",
        "ip link set eth0 down && ip -6 route flush proto static; ip -6 addr flush dev eth0 scope global
         sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.autoconf=1 && ip link set eth0 up",
    );
    let soon = Duration::from_secs(15);
    let (route, address) = crate::lab::wait_for("a route and an address", soon, || {
        let route = lab.sh_ok("a1", "ip -6 route show default");
        let address = lab.sh_ok("a1", "ip -6 addr show dev eth0 scope global");
        // Duplicate Address Detection takes a second.
        if route.contains("via fe80::")
            && address.contains("dynamic")
            && !address.contains("tentative")
        {
            Ok((route, address))
        } else {
            Err(format!("{route}{address}"))
        }
    });
    assert!(
        route.contains("proto ra") && route.contains("expires"),
        "{route}"
    );
    assert!(address.contains("inet6 2001:db8:1:1:"), "{address}");
    let said = lab.sh_ok("a1", &format!("ping -6 -c 3 -i 0.1 -W 2 {B1_V6}"));
    assert!(said.contains(" 0% packet loss"), "{said}");
    // A router that stops says that it is no way out any more.
    let router = format!("kill -TERM $(ip netns pids {})", lab.namespace("ra"));
    lab.sh_ok("a1", &router);
    crate::lab::wait_for("the route to go", Duration::from_secs(5), || {
        let route = lab.sh_ok("a1", "ip -6 route show default");
        if route.contains("via fe80::") {
            Err(route)
        } else {
            Ok(())
        }
    });
}
