//! Router advertisements (RFC 4861 section 6.2): hosts of a port learn from them
//! that the router is their way out, which prefixes are on the link (and, for
//! /64s, that they may make themselves addresses in them, RFC 4862), and its MTU.
//!
//! ```text
//!   start --> 3 times, 16 s apart --> every 200 to 600 s --> stop: lifetime 0
//!                  ^ a solicitation brings the next within 0.5 s,
//!                    but no closer than 3 s to the last
//! ```

use core::time::Duration;
use std::net::{IpAddr, Ipv6Addr};

use mef_packet::wire::checksum::{pseudo_header, Sum};
use mef_packet::wire::ethernet::{self, ETHERTYPE_IPV6};
use mef_packet::wire::icmpv6::ND_HOP_LIMIT;
use mef_packet::wire::ipv6::{self, PROTOCOL_ICMPV6};
use mef_packet::wire::MacAddr;
use mef_packet::Instant;

use super::Interface;
use crate::drops::DropReason;

pub(super) const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

// RFC 4861 sections 6.2.1 and 10.
const MAX_INTERVAL: Duration = Duration::from_secs(600);
const MIN_INTERVAL: Duration = Duration::from_secs(200);
const INITIAL: u8 = 3;
const INITIAL_INTERVAL: Duration = Duration::from_secs(16);
const MIN_BETWEEN: Duration = Duration::from_secs(3);
const MAX_ANSWER_DELAY: Duration = Duration::from_millis(500);
/// Three times the greatest interval.
const LIFETIME: u16 = 1800;
const VALID: u32 = 30 * 24 * 3600;
const PREFERRED: u32 = 7 * 24 * 3600;
const HOP_LIMIT: u8 = 64;

const SOURCE_LINK_LAYER: u8 = 1;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

/// When a port advertises itself.
#[derive(Debug)]
pub(super) struct Advertiser {
    next: Instant,
    last: Option<Instant>,
    initial: u8,
    /// For intervals that differ from router to router.
    random: u64,
}

impl Advertiser {
    /// The first is due at `now`.
    pub fn new(now: Instant, mac: MacAddr) -> Self {
        let seed = mac.iter().fold(1u64, |n, b| n << 8 | u64::from(*b));
        Self {
            next: now,
            last: None,
            initial: INITIAL,
            random: seed,
        }
    }

    /// A time up to `most`, by xorshift64.
    fn random(&mut self, most: Duration) -> Duration {
        let mut x = self.random.max(1);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random = x;
        most.mul_f64((x >> 11) as f64 / (1u64 << 53) as f64)
    }

    pub fn next(&self) -> Instant {
        self.next
    }

    /// A host asks (RFC 4861 section 6.2.6).
    pub fn solicited(&mut self, now: Instant) {
        let soon = now + self.random(MAX_ANSWER_DELAY);
        let earliest = self.last.map_or(soon, |at| soon.max(at + MIN_BETWEEN));
        self.next = self.next.min(earliest);
    }

    /// Whether one is due now; it counts as sent.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.next > now {
            return false;
        }
        self.last = Some(now);
        self.initial = self.initial.saturating_sub(1);
        let wait = MIN_INTERVAL + self.random(MAX_INTERVAL - MIN_INTERVAL);
        let wait = if self.initial > 0 {
            wait.min(INITIAL_INTERVAL)
        } else {
            wait
        };
        self.next = now + wait;
        true
    }
}

/// Checks a router solicitation (RFC 4861 section 6.1.1).
pub(super) fn check_solicitation(
    src: Ipv6Addr,
    hop_limit: u8,
    message: &[u8],
) -> Result<(), DropReason> {
    let bad = Err(DropReason::NeighbourDiscoveryBad);
    let (Some([_, code, ..]), Some(mut options)) = (message.first_chunk::<8>(), message.get(8..))
    else {
        return bad;
    };
    if *code != 0 || hop_limit != ND_HOP_LIMIT {
        return bad;
    }
    while let [kind, words, ..] = *options {
        let rest = options.get(usize::from(words) * 8..);
        let (Some(rest), true) = (rest, words > 0) else {
            return bad;
        };
        if kind == SOURCE_LINK_LAYER && src.is_unspecified() {
            return bad;
        }
        options = rest;
    }
    if options.is_empty() {
        Ok(())
    } else {
        bad
    }
}

/// An advertisement to all hosts of a port whose packets are at most `mtu` bytes; with `leaving`, that
/// the router is no way out any more (RFC 4861 section 6.2.5).
pub(super) fn advertisement(interface: &Interface, mtu: u16, leaving: bool) -> Option<Vec<u8>> {
    let src = interface.link_local()?;
    let lifetime = if leaving { 0 } else { LIFETIME };
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, HOP_LIMIT, 0];
    message.extend(lifetime.to_be_bytes());
    // Reachable and retransmission time: the hosts' own.
    message.extend([0; 8]);
    message.extend([SOURCE_LINK_LAYER, 1]);
    message.extend(interface.mac);
    message.extend([MTU, 1, 0, 0]);
    message.extend(u32::from(mtu).to_be_bytes());
    for net in &interface.addresses {
        let IpAddr::V6(prefix) = net.network() else {
            continue;
        };
        let autonomous = if net.prefix_len() == 64 {
            AUTONOMOUS
        } else {
            0
        };
        message.extend([
            PREFIX_INFORMATION,
            4,
            net.prefix_len(),
            ON_LINK | autonomous,
        ]);
        message.extend(VALID.to_be_bytes());
        message.extend(PREFERRED.to_be_bytes());
        message.extend([0; 4]);
        message.extend(prefix.octets());
    }
    let sum = pseudo_header(src, ALL_NODES, PROTOCOL_ICMPV6, message.len()).folded();
    let checksum = Sum::ZERO.word(sum).bytes(&message).checksum();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&checksum.to_be_bytes());
    }
    let mut frame = vec![0; ethernet::HEADER_LEN + ipv6::HEADER_LEN];
    let (head, ip) = frame.split_at_mut(ethernet::HEADER_LEN);
    let ethernet = ethernet::Header {
        dst: ipv6::multicast_mac(ALL_NODES),
        src: interface.mac,
        ethertype: ETHERTYPE_IPV6,
    };
    let header = ipv6::Header {
        hop_limit: ND_HOP_LIMIT,
        ..ipv6::Header::new(src, ALL_NODES, PROTOCOL_ICMPV6)
    };
    ethernet.emit(head).ok()?;
    header.emit(ip, message.len()).ok()?;
    frame.extend(message);
    Some(frame)
}
