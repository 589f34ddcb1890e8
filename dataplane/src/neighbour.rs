//! Which MAC address a neighbour has: ARP (RFC 826) with the rules of RFC 1122
//! section 2.3.2 for IPv4, Neighbour Discovery (RFC 4861) for IPv6, one table
//! and one life of an entry for both. Sans-IO: the caller passes packets and
//! time in, and takes [`Event`]s out. Packets for a neighbour that is not yet
//! known wait here.
//!
//! ```text
//!             resolve                     answer
//!  (nothing) ---------> Incomplete --------------------> Reachable <---------.
//!      ^    broadcast,  | 3 requests, 1 s apart,         |  60 s, in use:    | answer
//!      |    multicast   v unanswered                     v  3 unicasts       |
//!      '------- Unreachable: packets returned         Probing --------------'
//!      ^                                                 | unanswered
//!      '-------------------------------------------------'  (traffic flows while probing)
//! ```
//!
//! An entry comes into being when the router needs it, or when a host asks for
//! one of the router's own addresses (it is about to be answered). Any other
//! message, gratuitous or not, only updates what exists. What IPv6 neighbours
//! say unasked is probed after 5 s in use rather than 60 (RFC 4861's STALE and
//! DELAY). Tables and queues are bounded, and what nobody uses makes room first.

mod advertise;
mod arp;
mod nd;

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;
use ipnet::IpNet;
use mef_packet::wire::{ipv6, MacAddr};
use mef_packet::{Instant, PortId};

use crate::drops::DropReason;
use crate::report::NeighbourState;

use self::advertise::Advertiser;

const RETRY: Duration = Duration::from_secs(1);
const TRIES: u8 = 3;
const REACHABLE: Duration = Duration::from_secs(60);
/// RFC 4861's DELAY_FIRST_PROBE_TIME.
const UNCONFIRMED: Duration = Duration::from_secs(5);
/// Neighbours per port.
const MAX_ENTRIES: usize = 1024;
/// Of these, unanswered ones: a scan must not keep the others out.
const MAX_INCOMPLETE: usize = 512;
/// Packets that wait for one neighbour, and for all of a port.
const MAX_HELD: usize = 16;
const MAX_HELD_PER_PORT: usize = 512;

/// A port as its neighbours see it.
#[derive(Clone, Debug)]
pub struct Interface {
    pub mac: MacAddr,
    /// The router's own addresses with the networks they lie in.
    pub addresses: Vec<IpNet>,
    /// The MTU that hosts are to use, where the router advertises itself to them.
    pub advertise: Option<u16>,
}

impl Interface {
    /// The link-local address, on a port that has an IPv6 address.
    pub fn link_local(&self) -> Option<Ipv6Addr> {
        let v6 = self.addresses.iter().any(|net| net.addr().is_ipv6());
        v6.then(|| ipv6::link_local(self.mac))
    }

    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|net| net.addr() == ip)
            || self.link_local().is_some_and(|own| ip == own)
    }

    /// Whether a host with this address can be on the port.
    fn may_be_neighbour(&self, ip: IpAddr) -> bool {
        if let IpAddr::V6(ip) = ip {
            if ipv6::is_link_local(ip) {
                return self.link_local().is_some();
            }
        }
        self.addresses.iter().any(|net| {
            let edge = ip.is_ipv4()
                && net.prefix_len() < 31
                && (ip == net.network() || ip == net.broadcast());
            // The first of an IPv6 network stands for its routers (RFC 4291, 2.6.1).
            let anycast = ip.is_ipv6() && net.prefix_len() < 127 && ip == net.network();
            net.contains(&ip) && !edge && !anycast
        })
    }
}

/// The answer to [`Neighbours::resolve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Known(MacAddr),
    /// Asked for; [`hold`](Neighbours::hold) the packet.
    Pending,
    /// Can not be asked for now; drop the packet for this reason.
    Refused(DropReason),
}

/// What the caller has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// Send this Ethernet frame.
    Send { port: PortId, frame: Vec<u8> },
    /// The neighbour of a held packet is known: send it.
    Deliver {
        port: PortId,
        mac: MacAddr,
        packet: T,
    },
    /// Nobody answered: tell the packet's sender (ICMP host unreachable).
    Unreachable {
        port: PortId,
        neighbour: IpAddr,
        packet: T,
    },
    /// Gave way to a newer packet.
    Dropped { packet: T, reason: DropReason },
    /// Another station uses one of the router's own addresses.
    Conflict {
        port: PortId,
        address: IpAddr,
        mac: MacAddr,
    },
}

/// A neighbour as operators see it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    pub address: IpAddr,
    pub mac: Option<MacAddr>,
    pub state: NeighbourState,
    /// When it was last confirmed, or first asked for.
    pub since: Instant,
}

#[derive(Debug)]
enum State<T> {
    Incomplete { tries: u8, held: VecDeque<T> },
    Reachable(MacAddr),
    Probing { mac: MacAddr, tries: u8 },
}

#[derive(Debug)]
struct Entry<T> {
    state: State<T>,
    /// Resolved since it was last confirmed.
    used: bool,
    /// When the address was last confirmed, or first asked for.
    since: Instant,
    /// Its one place among the timers.
    timer: Instant,
}

#[derive(Debug)]
struct Table<T> {
    interface: Interface,
    entries: HashMap<IpAddr, Entry<T>>,
    incomplete: usize,
    held: usize,
    advertiser: Option<Advertiser>,
}

/// The neighbours of all ports. `T` is what waits for an unknown one: a packet.
#[derive(Debug)]
pub struct Neighbours<T> {
    tables: Vec<Table<T>>,
    timers: BTreeSet<(Instant, PortId, IpAddr)>,
    events: VecDeque<Event<T>>,
    /// Some that are known and marked as used, until anything changes.
    recent: [Option<(PortId, IpAddr, MacAddr)>; RECENT],
    changes: u64,
}

/// Neighbours that are found without a search.
const RECENT: usize = 16;

/// Where a neighbour stands among the recent ones.
#[inline]
fn recent_place(ip: &IpAddr) -> usize {
    let low = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    usize::from(low) % RECENT
}

impl<T> Neighbours<T> {
    /// Empty tables for the ports, which [`PortId`] numbers in this order.
    pub fn new(interfaces: impl IntoIterator<Item = Interface>) -> Self {
        let table = |interface| Table {
            interface,
            entries: HashMap::new(),
            incomplete: 0,
            held: 0,
            advertiser: None,
        };
        Self {
            tables: interfaces.into_iter().map(table).collect(),
            timers: BTreeSet::new(),
            events: VecDeque::new(),
            recent: [None; RECENT],
            changes: 0,
        }
    }

    /// Grows whenever what [`resolve`](Self::resolve) said before may no longer hold, or has to be
    /// asked again so that it is known to be in use.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn changed(&mut self) {
        self.recent = [None; RECENT];
        self.changes += 1;
    }

    /// The MAC address of `ip` on `port`; an unknown one is asked for.
    #[inline]
    pub fn resolve(&mut self, now: Instant, port: PortId, ip: IpAddr) -> Resolution {
        match self.known(port, &ip) {
            Some(mac) => Resolution::Known(mac),
            None => self.look_up(now, port, ip),
        }
    }

    /// The MAC address of `ip` on `port` if it was resolved just before; else [`resolve`](Self::resolve) knows.
    #[inline]
    pub fn known(&self, port: PortId, ip: &IpAddr) -> Option<MacAddr> {
        match &self.recent[recent_place(ip)] {
            Some((at, of, mac)) if *at == port && of == ip => Some(*mac),
            _ => None,
        }
    }

    fn look_up(&mut self, now: Instant, port: PortId, ip: IpAddr) -> Resolution {
        let Some(table) = self.tables.get_mut(usize::from(port.0)) else {
            return Resolution::Refused(DropReason::UnresolvedNeighbour);
        };
        match table.entries.get_mut(&ip) {
            Some(entry) => {
                entry.used = true;
                match entry.state {
                    State::Reachable(mac) | State::Probing { mac, .. } => {
                        self.recent[recent_place(&ip)] = Some((port, ip, mac));
                        Resolution::Known(mac)
                    }
                    State::Incomplete { .. } => Resolution::Pending,
                }
            }
            None => self.ask(now, port, ip),
        }
    }

    #[cold]
    fn ask(&mut self, now: Instant, port: PortId, ip: IpAddr) -> Resolution {
        let Some(table) = self.tables.get_mut(usize::from(port.0)) else {
            return Resolution::Refused(DropReason::UnresolvedNeighbour);
        };
        if !table.interface.may_be_neighbour(ip) || table.interface.is_own(ip) {
            return Resolution::Refused(DropReason::UnresolvedNeighbour);
        }
        if table.incomplete >= MAX_INCOMPLETE || !table.make_room(port, &mut self.timers) {
            return Resolution::Refused(DropReason::NeighbourTableFull);
        }
        let timer = now + RETRY;
        let state = State::Incomplete {
            tries: 1,
            held: VecDeque::new(),
        };
        table.entries.insert(
            ip,
            Entry {
                state,
                used: true,
                since: now,
                timer,
            },
        );
        table.incomplete += 1;
        self.timers.insert((timer, port, ip));
        self.events
            .push_back(request(port, &table.interface, ip, None));
        Resolution::Pending
    }

    /// What is known of the neighbours of `port`, in no order.
    pub fn list(&self, port: PortId) -> impl Iterator<Item = Known> + '_ {
        let table = self.tables.get(usize::from(port.0));
        let entries = table.into_iter().flat_map(|t| &t.entries);
        entries.map(|(&address, entry)| {
            let (state, mac) = match entry.state {
                State::Incomplete { .. } => (NeighbourState::Incomplete, None),
                State::Reachable(mac) => (NeighbourState::Reachable, Some(mac)),
                State::Probing { mac, .. } => (NeighbourState::Probing, Some(mac)),
            };
            Known {
                address,
                mac,
                state,
                since: entry.since,
            }
        })
    }

    /// Keeps a packet until its neighbour, which [`resolve`](Self::resolve)
    /// called pending, answers. The oldest gives way to it if too many wait.
    pub fn hold(&mut self, port: PortId, ip: IpAddr, packet: T) {
        let entry = self
            .tables
            .get_mut(usize::from(port.0))
            .and_then(|t| Some((t.entries.get_mut(&ip)?, &mut t.held)));
        let event = match entry {
            Some((
                Entry {
                    state: State::Incomplete { held, .. },
                    ..
                },
                total,
            )) => {
                let displaced = if held.len() >= MAX_HELD || *total >= MAX_HELD_PER_PORT {
                    *total -= usize::from(!held.is_empty());
                    // With the port's room used up by others, the packet itself has to go.
                    held.pop_front()
                } else {
                    None
                };
                if *total < MAX_HELD_PER_PORT {
                    held.push_back(packet);
                    *total += 1;
                    displaced.map(|packet| Event::Dropped {
                        packet,
                        reason: DropReason::NeighbourQueueFull,
                    })
                } else {
                    Some(Event::Dropped {
                        packet,
                        reason: DropReason::NeighbourQueueFull,
                    })
                }
            }
            Some((
                Entry {
                    state: State::Reachable(mac) | State::Probing { mac, .. },
                    ..
                },
                _,
            )) => Some(Event::Deliver {
                port,
                mac: *mac,
                packet,
            }),
            None => Some(Event::Dropped {
                packet,
                reason: DropReason::UnresolvedNeighbour,
            }),
        };
        self.events.extend(event);
    }

    /// Takes over what a neighbour said; `wait` is how long to believe it while it is in use.
    fn learn(&mut self, now: Instant, port: PortId, ip: IpAddr, mac: MacAddr, wait: Duration) {
        self.changed();
        let Some(table) = self.tables.get_mut(usize::from(port.0)) else {
            return;
        };
        if !table.entries.contains_key(&ip) && !table.make_room(port, &mut self.timers) {
            return;
        }
        let timer = now + wait;
        let known = table.entries.get(&ip);
        let entry = Entry {
            state: State::Reachable(mac),
            // Whoever waits for it, or has used it, goes on doing so.
            used: wait < REACHABLE && known.is_some_and(|e| e.used),
            since: now,
            timer,
        };
        if let Some(old) = table.entries.insert(ip, entry) {
            self.timers.remove(&(old.timer, port, ip));
            if let State::Incomplete { held, .. } = old.state {
                table.incomplete -= 1;
                table.held -= held.len();
                self.events
                    .extend(
                        held.into_iter()
                            .map(|packet| Event::Deliver { port, mac, packet }),
                    );
            }
        }
        self.timers.insert((timer, port, ip));
    }

    /// Tells the hosts on `port` where the router's own addresses are now (RFC 5227 section 2.3,
    /// RFC 4861 section 7.2.6), and asks whether anybody else has them (RFC 4862 section 5.4).
    pub fn announce(&mut self, now: Instant, port: PortId) {
        if let Some(table) = self.tables.get_mut(usize::from(port.0)) {
            if table.interface.advertise.is_some() {
                table.advertiser = Some(Advertiser::new(now, table.interface.mac));
            }
            let frames = arp::announcements(&table.interface)
                .chain(nd::announcements(&table.interface))
                .map(|frame| Event::Send { port, frame });
            self.events.extend(frames);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let advertisers = self.tables.iter().filter_map(|t| t.advertiser.as_ref());
        let entries = self.timers.first().map(|(at, _, _)| *at);
        entries
            .into_iter()
            .chain(advertisers.map(Advertiser::next))
            .min()
    }

    /// Tells the hosts that the router is no way out any more.
    pub fn withdraw(&mut self) {
        for (port, table) in (0..).map(PortId).zip(&mut self.tables) {
            let told = table.advertiser.take().and(table.interface.advertise);
            let frame = told.and_then(|mtu| advertise::advertisement(&table.interface, mtu, true));
            self.events
                .extend(frame.map(|frame| Event::Send { port, frame }));
        }
    }

    /// Repeats requests, probes old entries and gives up on silent ones.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (port, table) in (0..).map(PortId).zip(&mut self.tables) {
            let due = table.advertiser.as_mut().is_some_and(|a| a.take(now));
            let told = table.interface.advertise.filter(|_| due);
            let frame = told.and_then(|mtu| advertise::advertisement(&table.interface, mtu, false));
            self.events
                .extend(frame.map(|frame| Event::Send { port, frame }));
        }
        while let Some(&(at, port, ip)) = self.timers.first().filter(|(at, _, _)| *at <= now) {
            self.changed();
            self.timers.remove(&(at, port, ip));
            let Some(table) = self.tables.get_mut(usize::from(port.0)) else {
                continue;
            };
            let Some(entry) = table.entries.get_mut(&ip) else {
                continue;
            };
            let asked = match &mut entry.state {
                State::Incomplete { tries, .. } if *tries < TRIES => {
                    *tries += 1;
                    Some(None)
                }
                State::Probing { mac, tries } if *tries < TRIES => {
                    *tries += 1;
                    Some(Some(*mac))
                }
                State::Reachable(mac) if entry.used => {
                    let mac = *mac;
                    entry.state = State::Probing { mac, tries: 1 };
                    Some(Some(mac))
                }
                _ => None,
            };
            if let Some(mac) = asked {
                entry.timer = now + RETRY;
                self.timers.insert((entry.timer, port, ip));
                self.events
                    .push_back(request(port, &table.interface, ip, mac));
            } else if let Some(Entry {
                state: State::Incomplete { held, .. },
                ..
            }) = table.entries.remove(&ip)
            {
                table.incomplete -= 1;
                table.held -= held.len();
                let returned = held.into_iter().map(|packet| Event::Unreachable {
                    port,
                    neighbour: ip,
                    packet,
                });
                self.events.extend(returned);
            }
        }
    }

    /// The router's link-local address on `port`, if it speaks IPv6 there.
    pub fn link_local(&self, port: PortId) -> Option<Ipv6Addr> {
        self.tables
            .get(usize::from(port.0))
            .and_then(|t| t.interface.link_local())
    }

    /// Whether `ip` is an address of the router on `port`.
    pub fn is_own(&self, port: PortId, ip: IpAddr) -> bool {
        self.tables
            .get(usize::from(port.0))
            .is_some_and(|t| t.interface.is_own(ip))
    }

    /// What is to be done next, until there is nothing.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// Forgets the answers that the last message made necessary: somebody else gives them.
    pub fn say_nothing(&mut self) {
        self.events
            .retain(|e| !matches!(e, Event::Send { .. } | Event::Conflict { .. }));
    }

    /// Neighbours on `port`, answered or not.
    pub fn len(&self, port: PortId) -> usize {
        self.tables
            .get(usize::from(port.0))
            .map_or(0, |t| t.entries.len())
    }

    pub fn is_empty(&self, port: PortId) -> bool {
        self.len(port) == 0
    }
}

impl<T> Table<T> {
    /// Whether there is room for one more entry, after the longest unused one was removed if need be.
    fn make_room(
        &mut self,
        port: PortId,
        timers: &mut BTreeSet<(Instant, PortId, IpAddr)>,
    ) -> bool {
        if self.entries.len() < MAX_ENTRIES {
            return true;
        }
        let idle = self
            .entries
            .iter()
            .filter(|(_, e)| !e.used && matches!(e.state, State::Reachable(_)));
        // By time and address, not by the map's order, so that a simulation repeats itself.
        let Some((_, ip)) = idle.map(|(ip, e)| (e.since, *ip)).min() else {
            return false;
        };
        if let Some(entry) = self.entries.remove(&ip) {
            timers.remove(&(entry.timer, port, ip));
        }
        true
    }
}

/// A request for `ip`, to its last known address or to all.
fn request<T>(port: PortId, interface: &Interface, ip: IpAddr, mac: Option<MacAddr>) -> Event<T> {
    let frame = match ip {
        IpAddr::V4(ip) => arp::request(interface, ip, mac),
        IpAddr::V6(ip) => nd::solicitation(interface, ip, mac),
    };
    Event::Send { port, frame }
}

#[cfg(test)]
mod tests;
