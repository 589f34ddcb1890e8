//! The forwarding table: longest-prefix match over IPv4 and IPv6 destinations.
//!
//! [`Fib`] fills a [`PrefixTable`] from the ports' networks, the static routes and the
//! peers' prefixes, and takes out what may never be forwarded (RFC 1812
//! section 5.3.7, RFC 2644; RFC 4291 section 2.5 for IPv6).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use mef_packet::PortId;

use crate::config::{Peer, PeerId, Port, StaticRoute, Via};
use crate::prefix_table::PrefixTable;

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// An address of the router itself, on this port.
    Local(PortId),
    /// The broadcast address of a connected network; for the router to hear, never forwarded.
    Broadcast(PortId),
    /// A neighbour on this port: the destination itself is resolved.
    Connected { port: PortId },
    /// Through another router.
    Via { port: PortId, next_hop: IpAddr },
    /// Over the link to a peer.
    Peer(PeerId),
}

/// Blocks that are never a destination to forward to. IPv4: "this network", loopback, multicast,
/// reserved. IPv6: unspecified, loopback and what embeds IPv4 addresses; link-local; multicast.
const MARTIAN: [(IpAddr, u8); 7] = [
    (IpAddr::V4(Ipv4Addr::new(0, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
    (IpAddr::V4(Ipv4Addr::new(240, 0, 0, 0)), 4),
    (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 64),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
    (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
];

/// Whether `address` can neither be a sender that is answered through the forwarding table nor be
/// forwarded to. IPv4: 0/8, 127/8, multicast, reserved and limited broadcast. IPv6: ::/64, link-local
/// (which has a meaning on one port only) and multicast.
#[inline]
pub const fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first == 0 || first == 127 || first >= 224
        }
        IpAddr::V6(a) => {
            let [first, second, ..] = a.octets();
            a.to_bits() >> 64 == 0 || first == 0xff || (first == 0xfe && second & 0xc0 == 0x80)
        }
    }
}

/// Whether every address of `net` [is martian](is_martian).
pub fn is_martian_prefix(net: IpNet) -> bool {
    // From /3 on no prefix reaches from one of the blocks over good addresses into another.
    net.prefix_len() >= 3 && is_martian(net.network()) && is_martian(net.broadcast())
}

/// The forwarding table of one configuration; read-only, shared by all workers.
#[derive(Clone, Debug)]
pub struct Fib {
    routes: PrefixTable<Route>,
    sources: PrefixTable<PeerId>,
    /// The router's own addresses in order, so that asking for them touches no table.
    own_v4: Vec<Ipv4Addr>,
    own_v6: Vec<Ipv6Addr>,
}

impl Fib {
    /// Builds the table of a valid configuration; ports and peers are known by their place in the slices.
    pub fn new(ports: &[Port], peers: &[Peer], statics: &[StaticRoute]) -> Self {
        let mut routes: Vec<(IpNet, Option<Route>)> = Vec::new();
        let mut sources = Vec::new();
        let ids = || 0..=u16::MAX;
        // Of equal prefixes the later counts: static before peers before connected before own before holes.
        for route in statics {
            routes.push((
                route.prefix,
                Some(match route.via {
                    Via::Gateway { port, address } => Route::Via {
                        port,
                        next_hop: address,
                    },
                    Via::Peer(peer) => Route::Peer(peer),
                }),
            ));
        }
        for (id, peer) in ids().map(PeerId).zip(peers) {
            for &prefix in &peer.prefixes {
                routes.push((prefix, Some(Route::Peer(id))));
                sources.push((prefix, Some(id)));
            }
        }
        for (port, config) in ids().map(PortId).zip(ports) {
            for net in &config.addresses {
                routes.push((net.trunc(), Some(Route::Connected { port })));
                // A /31 or /32 has no broadcast address (RFC 3021), nor has IPv6.
                if net.addr().is_ipv4() && net.prefix_len() < 31 {
                    routes.push((IpNet::from(net.broadcast()), Some(Route::Broadcast(port))));
                    routes.push((IpNet::from(net.network()), Some(Route::Broadcast(port))));
                }
                routes.push((IpNet::from(net.addr()), Some(Route::Local(port))));
            }
        }
        routes.extend(
            MARTIAN
                .iter()
                .filter_map(|&(a, len)| Some((IpNet::new(a, len).ok()?, None))),
        );
        let addresses = ports.iter().flat_map(|p| &p.addresses);
        let (mut own_v4, mut own_v6) = (Vec::new(), Vec::new());
        for net in addresses {
            match net.addr() {
                IpAddr::V4(a) => own_v4.push(a),
                IpAddr::V6(a) => own_v6.push(a),
            }
        }
        own_v4.sort_unstable();
        own_v6.sort_unstable();
        Self {
            routes: PrefixTable::new(routes),
            sources: PrefixTable::new(sources),
            own_v4,
            own_v6,
        }
    }

    /// Where a packet to `destination` goes; `None` if there is no route or it may not be forwarded.
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<Route> {
        self.routes.lookup(destination)
    }

    /// As [`lookup`](Self::lookup); the route where it stands.
    #[inline]
    pub fn find(&self, destination: &IpAddr) -> &Option<Route> {
        self.routes.find(destination)
    }

    /// Whether `source` lies in the prefixes configured for `peer`.
    #[inline]
    pub fn source_allowed(&self, peer: PeerId, source: &IpAddr) -> bool {
        *self.sources.find(source) == Some(peer)
    }

    /// The peer whose prefixes `source` lies in.
    #[inline]
    pub fn peer_of(&self, source: IpAddr) -> Option<PeerId> {
        self.sources.lookup(source)
    }

    /// Whether `address` is one of the router's own.
    #[inline]
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            // To halve is to guess at each step.
            IpAddr::V4(a) if self.own_v4.len() <= 8 => self.own_v4.contains(&a),
            IpAddr::V4(a) => self.own_v4.binary_search(&a).is_ok(),
            IpAddr::V6(a) => self.own_v6.binary_search(&a).is_ok(),
        }
    }

    /// As [`lookup`](Self::lookup) for the `destination` of each of `packets`, appended to `routes`;
    /// they wait for memory together rather than one after the other.
    #[inline]
    pub fn lookup_all<T>(
        &self,
        packets: &[T],
        destination: impl Fn(&T) -> IpAddr,
        routes: &mut Vec<Option<Route>>,
    ) {
        self.routes.lookup_all(packets, destination, routes);
    }
}

#[cfg(test)]
mod tests {
    use prefix_trie::PrefixMap;
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn port(addresses: &[&str]) -> Port {
        Port {
            name: "p".into(),
            interface: "i".into(),
            driver: Default::default(),
            addresses: addresses.iter().map(|a| net(a)).collect(),
            mtu: None,
            listen: 4800,
            advertise: false,
            pardon_losses: true,
            merge_udp: true,
            line: None,
        }
    }

    fn peer(prefixes: &[&str]) -> Peer {
        Peer {
            name: "q".into(),
            public_key: mef_crypto::PrivateKey::generate([7; 32]).public(),
            port: PortId(1),
            endpoint: None,
            prefixes: prefixes.iter().map(|p| net(p)).collect(),
        }
    }

    #[test]
    fn a_router_with_one_peer() {
        let via = Via::Gateway {
            port: PortId(1),
            address: address("192.0.2.2"),
        };
        let fib = Fib::new(
            &[
                port(&["10.1.0.1/24"]),
                port(&["192.0.2.1/30", "198.51.100.1/31"]),
            ],
            &[
                peer(&["10.2.0.0/24"]),
                peer(&["10.3.0.0/16", "10.4.0.1/32"]),
            ],
            &[
                StaticRoute {
                    prefix: net("0.0.0.0/0"),
                    via,
                },
                StaticRoute {
                    prefix: net("10.9.0.0/16"),
                    via: Via::Peer(PeerId(1)),
                },
            ],
        );
        let gateway = Some(Route::Via {
            port: PortId(1),
            next_hop: address("192.0.2.2"),
        });
        for (destination, route) in [
            ("10.1.0.1", Some(Route::Local(PortId(0)))),
            ("10.1.0.2", Some(Route::Connected { port: PortId(0) })),
            ("10.1.0.255", Some(Route::Broadcast(PortId(0)))),
            ("10.1.0.0", Some(Route::Broadcast(PortId(0)))),
            ("10.1.1.1", gateway),
            ("192.0.2.1", Some(Route::Local(PortId(1)))),
            ("192.0.2.3", Some(Route::Broadcast(PortId(1)))),
            ("198.51.100.0", Some(Route::Connected { port: PortId(1) })),
            ("198.51.100.1", Some(Route::Local(PortId(1)))),
            ("10.2.0.77", Some(Route::Peer(PeerId(0)))),
            ("10.3.200.1", Some(Route::Peer(PeerId(1)))),
            ("10.4.0.1", Some(Route::Peer(PeerId(1)))),
            ("10.4.0.2", gateway),
            ("10.9.0.1", Some(Route::Peer(PeerId(1)))),
            ("8.8.8.8", gateway),
            ("127.0.0.1", None),
            ("0.0.0.0", None),
            ("224.0.0.1", None),
            ("239.255.255.255", None),
            ("240.0.0.1", None),
            ("255.255.255.255", None),
        ] {
            assert_eq!(fib.lookup(address(destination)), route, "{destination}");
        }
        assert!(fib.source_allowed(PeerId(0), &address("10.2.0.1")));
        assert!(!fib.source_allowed(PeerId(1), &address("10.2.0.1")));
        // Routed to the peer, but not a source accepted from it.
        assert!(!fib.source_allowed(PeerId(1), &address("10.9.0.1")));
        assert!(fib.is_own(address("10.1.0.1")) && !fib.is_own(address("10.1.0.2")));
    }

    #[test]
    fn ipv6_beside_ipv4() {
        let via = Via::Gateway {
            port: PortId(1),
            address: address("fe80::1"),
        };
        let fib = Fib::new(
            &[
                port(&["10.1.0.1/24", "2001:db8:1::1/64"]),
                port(&["2001:db8:f::/127"]),
            ],
            &[peer(&["10.2.0.0/24", "2001:db8:2::/48"])],
            &[StaticRoute {
                prefix: net("::/0"),
                via,
            }],
        );
        let default = Some(Route::Via {
            port: PortId(1),
            next_hop: address("fe80::1"),
        });
        for (destination, route) in [
            ("2001:db8:1::1", Some(Route::Local(PortId(0)))),
            (
                "2001:db8:1::ffff",
                Some(Route::Connected { port: PortId(0) }),
            ),
            // There are no broadcasts.
            (
                "2001:db8:1:0:ffff:ffff:ffff:ffff",
                Some(Route::Connected { port: PortId(0) }),
            ),
            ("2001:db8:1:1::1", default),
            ("2001:db8:2:ffff::1", Some(Route::Peer(PeerId(0)))),
            ("2001:db8:f::", Some(Route::Local(PortId(1)))),
            ("2001:db8:f::1", Some(Route::Connected { port: PortId(1) })),
            ("64:ff9b::a02:2", default),
            ("::1", None),
            ("::", None),
            ("::ffff:10.2.0.1", None),
            ("fe80::1", None),
            ("ff02::1", None),
            // One family's default route says nothing of the other.
            ("8.8.8.8", None),
        ] {
            assert_eq!(fib.lookup(address(destination)), route, "{destination}");
        }
        assert!(fib.source_allowed(PeerId(0), &address("2001:db8:2::9")));
        assert!(!fib.source_allowed(PeerId(0), &address("2001:db8:3::9")));
        assert!(!fib.source_allowed(PeerId(0), &address("::ffff:10.2.0.9")));
    }

    #[test]
    fn nothing_configured_is_no_route() {
        let fib = Fib::new(&[], &[], &[]);
        assert_eq!(fib.lookup(address("10.0.0.1")), None);
        assert!(!fib.source_allowed(PeerId(0), &address("10.0.0.1")));
    }

    #[test]
    fn a_small_table_is_small() {
        let fib = Fib::new(
            &[port(&["10.1.0.1/24"]), port(&["192.0.2.1/30"])],
            &[peer(&["10.2.0.0/24"])],
            &[],
        );
        // Two roots of 256 KiB, and a few nodes.
        assert!(fib.routes.bytes() <= 540 << 10, "{}", fib.routes.bytes());
    }

    /// Prefixes that nest often: few different addresses, every length.
    fn prefixes() -> impl Strategy<Value = Vec<(IpNet, Option<u32>)>> {
        let v4 = prop_oneof![any::<u32>(), any::<u32>().prop_map(|a| a & 0x0303_0303)];
        let few = 0x0003_0003_0000_0003_0000_0003_0000_0103;
        let v6 = prop_oneof![any::<u128>(), any::<u128>().prop_map(move |a| a & few)];
        let v4 =
            (v4, 0u8..=32).prop_map(|(a, len)| IpNet::new_assert(Ipv4Addr::from(a).into(), len));
        let v6 =
            (v6, 0u8..=128).prop_map(|(a, len)| IpNet::new_assert(Ipv6Addr::from(a).into(), len));
        let prefix = prop_oneof![v4, v6].prop_map(|p| p.trunc());
        prop::collection::vec((prefix, prop::option::weighted(0.9, any::<u32>())), 0..200)
    }

    /// The address `by` further (or back).
    fn step(a: IpAddr, by: i8) -> IpAddr {
        match a {
            IpAddr::V4(a) => a
                .to_bits()
                .wrapping_add_signed(by.into())
                .to_be_bytes()
                .into(),
            IpAddr::V6(a) => a
                .to_bits()
                .wrapping_add_signed(by.into())
                .to_be_bytes()
                .into(),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_binary_trie(prefixes in prefixes(), random in prop::collection::vec(any::<IpAddr>(), 50)) {
            let table = PrefixTable::new(prefixes.iter().copied());
            let (mut v4, mut v6) = (PrefixMap::new(), PrefixMap::new());
            for (prefix, value) in &prefixes {
                match prefix {
                    IpNet::V4(p) => v4.insert(*p, *value),
                    IpNet::V6(p) => v6.insert(*p, *value),
                };
            }
            // The edges of every prefix, and one step beyond them, are where an expansion goes wrong.
            let edges = prefixes.iter().flat_map(|(p, _)| {
                let (low, high) = (p.network(), p.broadcast());
                [low, high, step(low, -1), step(high, 1)]
            });
            let all: Vec<IpAddr> = edges.chain(random).collect();
            let mut together = Vec::new();
            table.lookup_all(&all, |a| *a, &mut together);
            prop_assert_eq!(together.len(), all.len());
            for (a, found) in all.into_iter().zip(together) {
                let expected = match a {
                    IpAddr::V4(a) => v4.get_lpm(&a.into()).and_then(|(_, v)| *v),
                    IpAddr::V6(a) => v6.get_lpm(&a.into()).and_then(|(_, v)| *v),
                };
                prop_assert_eq!(table.lookup(a), expected, "{}", a);
                prop_assert_eq!(found, expected, "{} among others", a);
            }
        }

        #[test]
        fn martians_are_the_blocks_that_are_taken_out(any in any::<IpAddr>(), first in any::<u16>(), rest in any::<u32>()) {
            let all = |prefix| StaticRoute { prefix: net(prefix), via: Via::Peer(PeerId(0)) };
            let fib = Fib::new(&[], &[], &[all("0.0.0.0/0"), all("::/0")]);
            let v6 = u128::from(first) << 112 | u128::from(rest);
            for a in [any, Ipv6Addr::from(v6).into(), Ipv6Addr::from(u128::from(rest)).into()] {
                prop_assert_eq!(fib.lookup(a).is_none(), is_martian(a), "{}", a);
            }
        }
    }
}
