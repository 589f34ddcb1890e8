//! Longest-prefix match from addresses to values.
//!
//! A multibit trie with leaf pushing (Srinivasan and Varghese, "Fast address
//! lookups using controlled prefix expansion", 1999), a tree for each family.
//! The first step takes sixteen bits, so that, as with DIR-24-8 (Gupta, Lin and
//! McKeown, "Routing lookups in hardware at memory access speeds", 1998), an IPv4
//! lookup is two loads for prefixes up to /24 and three beyond, but the first of
//! them in 256 KiB that stay in the cache and the rest in memory that grows with
//! the table. IPv6 takes a byte more a step: seven loads up to /64.
//!
//! ```text
//! root          [ 10.1 | 0 ........ 65535 ]   an entry is a value, nothing,
//!   `-> node    [  2   | 0 .......... 255 ]   or the next node
//!         `-> node ...
//! ```
//! Built once, never changed; equal values are stored once, so that a million
//! routes to a few next hops leave the cache to the tree.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
use mef_io::os;

/// Set in an entry that names a node rather than a value.
const CHILD: u32 = 1 << 31;
/// Bits of the first step, and entries of a root.
const ROOT_BITS: usize = 16;
const ROOT: usize = 1 << ROOT_BITS;

/// Longest-prefix match from addresses to values.
#[derive(Clone, Debug)]
pub struct PrefixTable<V> {
    /// Of IPv4 and IPv6; empty for a family without prefixes.
    roots: [Vec<u32>; 2],
    nodes: Vec<[u32; 256]>,
    /// By entry; the first one stands for nothing.
    values: Vec<Option<V>>,
}

impl<V: Copy + Eq + Hash> PrefixTable<V> {
    /// Builds the table; `None` as a value makes a hole in shorter prefixes.
    /// Of equal prefixes the later one counts.
    pub fn new(prefixes: impl IntoIterator<Item = (IpNet, Option<V>)>) -> Self {
        let mut sorted: Vec<(IpNet, Option<V>)> = prefixes.into_iter().collect();
        // Short before long (and stable), so that a prefix never meets the children of a longer one.
        sorted.sort_by_key(|(net, _)| net.prefix_len());
        let mut table = Self {
            roots: [Vec::new(), Vec::new()],
            nodes: Vec::new(),
            values: vec![None],
        };
        let mut numbers: HashMap<Option<V>, u32> = HashMap::new();
        for (net, value) in sorted {
            let entry = *numbers.entry(value).or_insert_with(|| {
                table.values.push(value);
                u32::try_from(table.values.len() - 1).unwrap_or(0) & !CHILD
            });
            table.insert(net, entry);
        }
        // Lookups in a large table would miss the TLB as often as the cache.
        let mut nodes = Vec::with_capacity(table.nodes.len());
        os::advise_huge_pages(&mut nodes);
        nodes.append(&mut table.nodes);
        table.nodes = nodes;
        table
    }

    fn insert(&mut self, net: IpNet, entry: u32) {
        let (family, octets) = Octets::of(net.network());
        let Some(root) = self.roots.get_mut(family) else {
            return;
        };
        if root.is_empty() {
            root.resize(ROOT, 0);
        }
        let [high, low, rest @ ..] = octets.as_slice() else {
            return;
        };
        let at = usize::from(u16::from_be_bytes([*high, *low]));
        let mut remaining = usize::from(net.prefix_len());
        if remaining <= ROOT_BITS {
            if let Some(entries) = root.get_mut(at..at + (1 << (ROOT_BITS - remaining))) {
                entries.fill(entry);
            }
            return;
        }
        remaining -= ROOT_BITS;
        let Some(slot) = root.get_mut(at) else { return };
        let mut node = child(slot, &mut self.nodes);
        for octet in rest {
            let at = usize::from(*octet);
            if remaining <= 8 {
                let span = at..at + (1 << (8 - remaining));
                let entries = self.nodes.get_mut(node).and_then(|n| n.get_mut(span));
                entries.unwrap_or(&mut []).fill(entry);
                return;
            }
            remaining -= 8;
            let Some(mut slot) = self.nodes.get(node).map(|n| n[at]) else {
                return;
            };
            let next = child(&mut slot, &mut self.nodes);
            if let Some(n) = self.nodes.get_mut(node) {
                n[at] = slot;
            }
            node = next;
        }
    }
}

/// The node that an entry leads to, made of the entry where there is none.
fn child(slot: &mut u32, nodes: &mut Vec<[u32; 256]>) -> usize {
    if *slot & CHILD == 0 {
        nodes.push([*slot; 256]);
        *slot = CHILD | u32::try_from(nodes.len() - 1).unwrap_or(0);
    }
    (*slot & !CHILD) as usize
}

impl<V: Copy> PrefixTable<V> {
    /// The value of the longest prefix that contains `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<V> {
        *self.find(&address)
    }

    /// As [`lookup`](Self::lookup); the value where it stands.
    #[inline]
    pub fn find(&self, address: &IpAddr) -> &Option<V> {
        let root = self.root(address);
        self.stored(match address {
            IpAddr::V4(a) => self.follow(root, &a.octets()[2..]),
            IpAddr::V6(a) => self.follow(root, &a.octets()[2..]),
        })
    }

    /// The values of the `address` of all `items` in their order, appended to `found`. Each step is
    /// taken for many of them before the next one is taken for any: they wait for memory together.
    pub fn lookup_all<T>(
        &self,
        items: &[T],
        address: impl Fn(&T) -> IpAddr,
        found: &mut Vec<Option<V>>,
    ) {
        const TOGETHER: usize = 64;
        for items in items.chunks(TOGETHER) {
            let mut entries = [0; TOGETHER];
            let each = || items.iter().map(&address);
            for (entry, address) in entries.iter_mut().zip(each()) {
                *entry = self.root(&address);
            }
            for (entry, address) in entries.iter_mut().zip(each()) {
                *entry = match address {
                    IpAddr::V4(a) => self.follow(*entry, &a.octets()[2..3]),
                    IpAddr::V6(a) => self.follow(*entry, &a.octets()[2..3]),
                };
            }
            for (entry, address) in entries.iter_mut().zip(each()) {
                *entry = match address {
                    IpAddr::V4(a) => self.follow(*entry, &a.octets()[3..]),
                    IpAddr::V6(a) => self.follow(*entry, &a.octets()[3..]),
                };
            }
            let entries = entries.iter().take(items.len());
            found.extend(entries.map(|e| *self.stored(*e)));
        }
    }

    #[inline]
    fn root(&self, address: &IpAddr) -> u32 {
        let (root, high) = match address {
            IpAddr::V4(a) => (&self.roots[0], (a.to_bits() >> ROOT_BITS) as usize),
            IpAddr::V6(a) => (&self.roots[1], usize::from(a.segments()[0])),
        };
        root.get(high).copied().unwrap_or(0)
    }

    #[inline]
    fn follow(&self, mut entry: u32, octets: &[u8]) -> u32 {
        for octet in octets {
            if entry & CHILD == 0 {
                break;
            }
            let node = self.nodes.get((entry & !CHILD) as usize);
            entry = node.map_or(0, |n| n[usize::from(*octet)]);
        }
        entry
    }

    /// Where the value of an entry stands. To be copied from there in one piece: one that was put
    /// together just before would have to wait for its parts.
    #[inline]
    fn stored(&self, entry: u32) -> &Option<V> {
        self.values.get(entry as usize).unwrap_or(&None)
    }

    /// Memory of roots and nodes, bytes.
    pub fn bytes(&self) -> usize {
        let roots: usize = self.roots.iter().map(Vec::len).sum();
        roots * size_of::<u32>() + self.nodes.len() * size_of::<[u32; 256]>()
    }
}

/// The bytes of an address.
enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Octets {
    /// With the number of the root of its family.
    fn of(address: IpAddr) -> (usize, Self) {
        match address {
            IpAddr::V4(a) => (0, Self::V4(a.octets())),
            IpAddr::V6(a) => (1, Self::V6(a.octets())),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}
