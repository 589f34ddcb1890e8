//! Peers and routes: who is reached through what, without two answers for one
//! address, and without a way past a link's encryption.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use mef_packet::wire::ipv6::is_link_local;
use mef_packet::PortId;
use toml::Spanned;

use super::{overlap, Checked, Text, Validator, MAX_PEERS};
use crate::config::raw::{RawPeer, RawRoute};
use crate::config::{Peer, PeerId, Port, StaticRoute, Via};
use crate::fib::{Fib, Route};

impl Validator<'_> {
    pub(super) fn peers(&mut self, raw: &[Spanned<RawPeer>]) -> Checked<()> {
        self.at_most(raw, MAX_PEERS, "peer")?;
        self.unique(
            raw.iter().map(|p| &p.get_ref().name),
            "peer.name",
            "a name of its own for every peer",
        )?;
        self.unique(
            raw.iter().map(|p| &p.get_ref().public_key),
            "peer.public_key",
            "a key of its own for every peer",
        )?;
        self.unique(
            raw.iter().filter_map(|p| p.get_ref().endpoint.as_ref()),
            "peer.endpoint",
            "an endpoint of its own for every peer",
        )?;
        for (id, peer) in (0..=u16::MAX).map(PeerId).zip(raw) {
            let peer = self.peer(id, peer.get_ref())?;
            self.peers.push(peer);
        }
        Ok(())
    }

    pub(super) fn peer(&mut self, id: PeerId, raw: &RawPeer) -> Checked<Peer> {
        let name = self.name(&raw.name, "peer.name")?;
        let public_key = raw.public_key.get_ref().parse().map_err(|_| {
            let expected = "the base64 of a router's 32-byte public key";
            self.wrong(
                &raw.public_key,
                "peer.public_key",
                expected,
                "copy what `mef keys public` prints on the peer",
            )
        })?;
        let port = (0..=u16::MAX)
            .map(PortId)
            .zip(&self.ports)
            .find(|(_, p)| p.name == *raw.port.get_ref());
        let Some((port_id, port)) = port else {
            let names: Vec<&str> = self.ports.iter().map(|p| p.name.as_str()).collect();
            let expected = format!("the name of a port ({})", names.join(", "));
            return Err(self.wrong(
                &raw.port,
                "peer.port",
                &expected,
                "name one of these, or add the [[port]]",
            ));
        };
        if port.line.is_none() {
            let found = format!("port {} without a [port.line]", port.name);
            let advice = "add [port.line] with up and down under that port";
            return Err(self.source.error(
                &raw.port.span(),
                "peer.port",
                found,
                "a port whose line's capacity is known",
                advice,
            ));
        }
        if let Some(mtu) = port.mtu.filter(|mtu| *mtu < 1280) {
            let found = format!("port {} with an mtu of {mtu}", port.name);
            return Err(self.source.error(
                &raw.port.span(),
                "peer.port",
                found,
                "a port with an mtu of at least 1280, where links start",
                "raise port.mtu",
            ));
        }
        if raw.prefixes.get_ref().is_empty() {
            let advice = "list the networks behind the peer, such as \"10.2.0.0/24\"";
            return Err(self.source.error(
                &raw.prefixes.span(),
                "peer.prefixes",
                "an empty list",
                "at least one prefix",
                advice,
            ));
        }
        let mut prefixes = Vec::new();
        for text in raw.prefixes.get_ref() {
            let net = self.prefix(text, "peer.prefixes")?;
            if let Some((other, _, peer)) = self
                .prefixes
                .iter()
                .find(|(other, _, _)| overlap(other, &net))
            {
                let expected = format!("no overlap with {other} of peer {peer}");
                return Err(self.wrong(
                    text,
                    "peer.prefixes",
                    &expected,
                    "give every address to one peer only",
                ));
            }
            if let Some((other, port)) =
                self.networks.iter().find(|(other, _)| overlap(other, &net))
            {
                let expected = format!(
                    "no overlap with {} of this router's port {port}",
                    other.trunc()
                );
                return Err(self.wrong(
                    text,
                    "peer.prefixes",
                    &expected,
                    "list only what is behind the peer",
                ));
            }
            self.prefixes.push((net, id, name.clone()));
            prefixes.push(net);
        }
        let endpoint = match &raw.endpoint {
            Some(text) => Some(
                text.get_ref()
                    .parse::<SocketAddr>()
                    .ok()
                    .filter(|e| e.port() != 0)
                    // Without the scope that the text of a link-local address may have.
                    .map(|e| SocketAddr::new(e.ip(), e.port()))
                    .ok_or_else(|| {
                        self.wrong(
                            text,
                            "peer.endpoint",
                            "an address and UDP port such as \"192.0.2.2:4800\" or \"[2001:db8::2]:4800\"",
                            "correct it, or leave it out if the peer comes to us",
                        )
                    })?,
            ),
            None => None,
        };
        Ok(Peer {
            name,
            public_key,
            port: port_id,
            endpoint,
            prefixes,
        })
    }

    pub(super) fn routes(&self, raw: &[Spanned<RawRoute>]) -> Checked<Vec<StaticRoute>> {
        self.unique(
            raw.iter().map(|r| &r.get_ref().prefix),
            "route.prefix",
            "one route for every prefix",
        )?;
        raw.iter()
            .map(|route| self.route(route.get_ref()))
            .collect()
    }

    pub(super) fn route(&self, raw: &RawRoute) -> Checked<StaticRoute> {
        let prefix = self.prefix(&raw.prefix, "route.prefix")?;
        if let Some((_, port)) = self.networks.iter().find(|(net, _)| net.trunc() == prefix) {
            let expected = format!("no route to the own network of port {port}");
            return Err(self.wrong(
                &raw.prefix,
                "route.prefix",
                &expected,
                "remove the route: the port leads there already",
            ));
        }
        let via = self.via(&raw.via)?;
        if let Via::Gateway { address, .. } = via {
            if address.is_ipv4() != prefix.addr().is_ipv4() {
                let expected = format!("a next hop of the family of {prefix}");
                let advice = "correct the address, or route through a peer, which carries both";
                return Err(self.wrong(&raw.via, "route.via", &expected, advice));
            }
        }
        // Such a route would send in the clear what is meant for the link.
        let inside = self
            .prefixes
            .iter()
            .find(|(net, id, _)| net.contains(&prefix) && via != Via::Peer(*id));
        if let Some((net, _, peer)) = inside {
            let expected = format!("no route inside {net}, which goes to peer {peer}");
            return Err(self.wrong(
                &raw.prefix,
                "route.prefix",
                &expected,
                "remove the route, or the prefix from the peer",
            ));
        }
        Ok(StaticRoute { prefix, via })
    }

    pub(super) fn via(&self, text: &Text) -> Checked<Via> {
        if let Some((id, _)) = (0..=u16::MAX)
            .map(PeerId)
            .zip(&self.peers)
            .find(|(_, p)| p.name == *text.get_ref())
        {
            return Ok(Via::Peer(id));
        }
        let advice = "name a router on a port's own network, or a peer";
        if let Some(via) = self.link_local(text) {
            return via;
        }
        let address: IpAddr = text.get_ref().parse().map_err(|_| {
            self.wrong(
                text,
                "route.via",
                "an address, a link-local one with its port such as \"fe80::1%wan\", or the name of a peer",
                advice,
            )
        })?;
        if let Some((_, id, _)) = self
            .prefixes
            .iter()
            .find(|(net, _, _)| net.contains(&address))
        {
            return Ok(Via::Peer(*id));
        }
        let fib = Fib::new(&self.ports, &[], &[]);
        match fib.lookup(address) {
            Some(Route::Connected { port }) => Ok(Via::Gateway { port, address }),
            Some(_) => Err(self.wrong(
                text,
                "route.via",
                "another router's address, not one of this router or a broadcast",
                advice,
            )),
            None => {
                let networks: Vec<String> = self
                    .networks
                    .iter()
                    .map(|(net, _)| net.trunc().to_string())
                    .collect();
                Err(self.wrong(
                    text,
                    "route.via",
                    &format!(
                        "an address in a connected network ({})",
                        networks.join(", ")
                    ),
                    advice,
                ))
            }
        }
    }

    /// A next hop such as "fe80::1%wan": its address says nothing of where it is, so the port does.
    fn link_local(&self, text: &Text) -> Option<Checked<Via>> {
        let (address, name) = text.get_ref().split_once('%')?;
        let address: Ipv6Addr = address.parse().ok().filter(|a| is_link_local(*a))?;
        let ports = (0..=u16::MAX).map(PortId).zip(&self.ports);
        let v6 = |p: &Port| p.addresses.iter().any(|a| a.addr().is_ipv6());
        let found = ports.clone().find(|(_, p)| p.name == name && v6(p));
        Some(match found {
            Some((port, _)) => Ok(Via::Gateway {
                port,
                address: address.into(),
            }),
            None => {
                let names: Vec<&str> = ports
                    .filter(|(_, p)| v6(p))
                    .map(|(_, p)| p.name.as_str())
                    .collect();
                let expected = format!(
                    "a port with an IPv6 address behind the % ({})",
                    names.join(", ")
                );
                let advice = "name one of these, or give the port an IPv6 address";
                Err(self.wrong(text, "route.via", &expected, advice))
            }
        })
    }

    /// Every endpoint must be reachable in the clear through its peer's own port.
    pub(super) fn endpoints(
        &self,
        raw: &[Spanned<RawPeer>],
        routes: &[StaticRoute],
    ) -> Checked<()> {
        let fib = Fib::new(&self.ports, &self.peers, routes);
        for (peer, raw) in self.peers.iter().zip(raw) {
            let (Some(endpoint), Some(text)) = (peer.endpoint, &raw.get_ref().endpoint) else {
                continue;
            };
            let name = |id: PortId| {
                self.ports
                    .get(usize::from(id.0))
                    .map_or("?", |p| p.name.as_str())
            };
            let problem = match fib.lookup(endpoint.ip()) {
                Some(Route::Connected { port } | Route::Via { port, .. }) if port == peer.port => continue,
                Some(Route::Connected { port } | Route::Via { port, .. }) => {
                    format!("an address reached through port {}, while this one is reached through {}", name(peer.port), name(port))
                }
                Some(Route::Peer(_)) => "an address outside of the prefixes of all peers: a link can not run inside a link".to_owned(),
                Some(Route::Local(_) | Route::Broadcast(_)) => "another machine's address, not one of this router or a broadcast".to_owned(),
                None => "an address that some network or route of this file leads to".to_owned(),
            };
            return Err(self.wrong(
                text,
                "peer.endpoint",
                &problem,
                "correct it, or add a [[route]] to it",
            ));
        }
        Ok(())
    }
}
