//! TCP connections that are not split, and must stay so whatever policy or the
//! link say later: those that began in the clear, or as datagrams at the other
//! router, whose policy may differ. A segment of theirs that were split would
//! be answered with a reset.
//!
//! A connection is forgotten an hour or two after its last segment, earlier
//! where there are very many: of two generations the older is dropped whole.

use std::collections::HashMap;
use std::time::Duration;

use mef_packet::Instant;

use crate::flow_table::FlowKey;

/// How a connection that is not split travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// Its segments cross the link as they are.
    Datagram,
    /// Its segments leave in the clear.
    Plain,
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    how: Whole,
    since: Instant,
}

/// For as long after it was pinned a SYN is the one that is repeated; later its port is used anew.
const SYN_REPEATS: Duration = Duration::from_secs(130);
/// Length of a generation, and most connections of one.
const GENERATION: Duration = Duration::from_secs(3600);
const MOST: usize = 32_768;

/// The connections, by the host on this side and the far one.
#[derive(Debug, Default)]
pub struct Pinned {
    young: HashMap<FlowKey, Pin>,
    old: HashMap<FlowKey, Pin>,
    turn_at: Instant,
}

impl Pinned {
    /// Remembers, from now on, how the connection travels.
    pub fn pin(&mut self, now: Instant, key: FlowKey, how: Whole) {
        let since = now;
        self.keep(now, key, Pin { how, since });
    }

    fn keep(&mut self, now: Instant, key: FlowKey, pin: Pin) {
        if self.young.len() >= MOST || now >= self.turn_at {
            self.old = core::mem::take(&mut self.young);
            self.turn_at = now + GENERATION;
        }
        self.young.insert(key, pin);
    }

    /// How the connection of a segment travels, if it is one of these; `syn` where the segment opens one.
    pub fn get(&mut self, now: Instant, key: &FlowKey, syn: bool) -> Option<Whole> {
        let known = self.young.get(key).copied();
        let pin = known.or_else(|| self.old.remove(key))?;
        if syn && now.since(pin.since) > SYN_REPEATS {
            self.young.remove(key);
            self.old.remove(key);
            return None;
        }
        if known.is_none() || now >= self.turn_at {
            self.keep(now, *key, pin);
        }
        Some(pin.how)
    }

    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> FlowKey {
        FlowKey {
            host: (core::net::Ipv4Addr::from(0x0a01_0000 + n), 40_000).into(),
            far: "10.2.0.2:22".parse().unwrap(),
        }
    }

    #[test]
    fn who_is_heard_is_kept_and_who_is_not_is_forgotten() {
        let mut p = Pinned::default();
        let at = |s: u64| Instant::from_millis(s * 1000);
        p.pin(at(1), key(1), Whole::Plain);
        p.pin(at(1), key(2), Whole::Datagram);
        for s in (600..20_000).step_by(600) {
            assert_eq!(p.get(at(s), &key(1), false), Some(Whole::Plain), "{s} s");
        }
        assert_eq!(p.get(at(20_000), &key(2), false), None);
        assert!(p.len() <= 2);
        // Its port is used anew, by a connection whose SYN is repeated.
        assert_eq!(p.get(at(20_000), &key(1), true), None);
        assert!(p.is_empty());
        p.pin(at(20_000), key(1), Whole::Datagram);
        assert_eq!(p.get(at(20_003), &key(1), true), Some(Whole::Datagram));
    }

    #[test]
    fn a_flood_is_bounded_and_takes_nothing_from_who_is_heard() {
        let mut p = Pinned::default();
        let now = Instant::from_millis(1000);
        p.pin(now, key(0), Whole::Datagram);
        for n in 1..300_000 {
            p.pin(now, key(n), Whole::Plain);
            if n % 1000 == 0 {
                assert_eq!(p.get(now, &key(0), false), Some(Whole::Datagram));
            }
        }
        assert!(p.len() <= 2 * MOST);
    }
}
