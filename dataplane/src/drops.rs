//! Why packets are dropped, and the counters that say so. Nothing is dropped
//! without a reason from [`DropReason`], counted under the stage that dropped
//! it; counting is one addition, names are only made when somebody asks.

use core::fmt;

use mef_crypto::OpenError;
use mef_packet::wire::WireError;

/// Declares a fieldless enum with a static name and a place in an array per variant.
macro_rules! named_enum {
    ($(#[$head:meta])* $name:ident { $( $(#[$doc:meta])* $variant:ident = $text:literal, )* }) => {
        $(#[$head])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $( $(#[$doc])* $variant, )* }

        impl $name {
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];
            pub const COUNT: usize = Self::ALL.len();

            /// The name under which operators see it.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

named_enum! {
    /// The stages a packet passes, in the order of its journey.
    Stage {
        /// Validation, own addresses, what the router answers itself.
        Ingress = "ingress",
        /// Decryption and unpacking of what came over a link.
        Open = "open",
        /// Flow lookup and policy.
        Classify = "classify",
        /// Forwarding table and next hop.
        Route = "route",
        /// Split, datagram or plain carriage.
        Carry = "carry",
        /// The fair scheduler of a line.
        Line = "line",
        /// Frames, acknowledgements and repair into packets.
        Pack = "pack",
        /// Encryption.
        Seal = "seal",
        /// Handing over to the port.
        Tx = "tx",
    }
}

named_enum! {
    /// Why a packet was dropped.
    DropReason {
        /// Shorter than an Ethernet header, or of an Ethernet type the router does not speak.
        EthernetBad = "ethernet.bad",
        /// Addressed to another station's MAC address; normal on a shared segment.
        NotForUs = "ethernet.not_for_us",
        /// An Ethernet type other than IPv4, ARP and, on a port with an IPv6 address, IPv6.
        EtherTypeUnsupported = "ethernet.unsupported_type",
        /// An ARP message that makes no sense, or claims an address it may not have.
        ArpBad = "arp.bad",
        /// A Neighbour Discovery message that makes no sense, or claims an address it may not have.
        NeighbourDiscoveryBad = "nd.bad",
        /// The packet ends before its headers do.
        Truncated = "wire.truncated",
        /// The IP version is not that of the frame.
        BadVersion = "ip.bad_version",
        /// An IPv6 extension header in a place where it may not be, or more than eight of them.
        ExtensionHeaders = "ip.extension_headers",
        /// The IP header's length is impossible.
        BadHeaderLength = "ip.bad_header_length",
        /// A length field contradicts the packet's real length.
        BadLength = "ip.bad_length",
        /// The checksum of a header or its payload is wrong: the packet was damaged on its way.
        BadChecksum = "ip.bad_checksum",
        /// A TCP header with an option whose length is impossible.
        BadTcpOption = "tcp.bad_option",
        /// A header that the router makes itself does not fit: a packet too large for what is put around it.
        NoRoom = "wire.no_room",
        /// The source address can not be a sender: multicast, broadcast, loopback or zero.
        MartianSource = "ip.martian_source",
        /// The destination may not be forwarded to: multicast, broadcast, loopback or reserved.
        MartianDestination = "ip.martian_destination",
        /// A host used one of the router's own addresses as its source.
        OwnAddressSpoofed = "ip.own_address_spoofed",
        /// The packet's time to live ran out here: a routing loop, or a traceroute.
        TtlExpired = "ip.ttl_expired",
        /// No route to the destination.
        NoRoute = "ip.no_route",
        /// For the router itself, but nothing here takes it.
        NoListener = "ip.no_listener",
        /// Larger than the next hop takes, and may not be fragmented; the sender was told.
        TooBig = "ip.too_big",
        /// A fragment, where only whole packets can be carried.
        FragmentUnsupported = "ip.fragment_unsupported",
        /// A fragment of TCP of an impossible length or place, or one of too many of its packet.
        FragmentBad = "ip.fragment_bad",
        /// Fragments of TCP that overlap or contradict each other: all of that packet's (RFC 5722).
        FragmentOverlap = "ip.fragment_overlap",
        /// A fragment of TCP whose packet did not become whole in time.
        FragmentLate = "ip.fragment_late",
        /// More fragments of TCP wait for others than the router keeps: the oldest packet's gave way.
        FragmentsFull = "ip.fragments_full",
        /// An IP protocol, or an option, that this path does not carry.
        UnsupportedProtocol = "ip.unsupported_protocol",
        /// Nobody answers ARP or Neighbour Discovery for the next hop.
        UnresolvedNeighbour = "neighbour.unresolved",
        /// Too many packets wait for the next hop's answer to ARP or Neighbour Discovery.
        NeighbourQueueFull = "neighbour.queue_full",
        /// Too many neighbours on the port: a scan, or a flood of ARP or Neighbour Discovery.
        NeighbourTableFull = "neighbour.table_full",
        /// A peer sent a packet with a source outside the `prefixes` configured for it.
        SourceNotAllowed = "peer.source_not_allowed",
        /// A peer sent a packet for a destination it may not reach through this router.
        DestinationNotAllowed = "peer.destination_not_allowed",
        /// No session with the peer yet: the link is down or still shaking hands.
        NoSession = "peer.no_session",
        /// The handshake came from a key that no `[[peer]]` has.
        UnknownPeer = "peer.unknown",
        /// A link packet too short to be one.
        CryptoTruncated = "crypto.truncated",
        /// A link packet of another protocol version.
        CryptoBadVersion = "crypto.bad_version",
        /// A link packet of an unknown type.
        CryptoUnknownType = "crypto.unknown_type",
        /// A link packet for a session that is gone or never was; normal for a moment after a restart.
        CryptoUnknownSession = "crypto.unknown_session",
        /// A lane above the negotiated number.
        CryptoUnknownLane = "crypto.unknown_lane",
        /// A key epoch other than the current one and its neighbours.
        CryptoBadEpoch = "crypto.bad_epoch",
        /// Seen before: duplicated by the network, or replayed by somebody.
        CryptoReplayed = "crypto.replayed",
        /// Older than the replay window remembers.
        CryptoTooOld = "crypto.too_old",
        /// Damaged or forged: the authentication tag does not match.
        CryptoUnauthentic = "crypto.unauthentic",
        /// The key has protected as much as it safely may; a new handshake is due.
        CryptoLimitReached = "crypto.limit_reached",
        /// A handshake message that could not be read, or that was replayed.
        HandshakeRefused = "crypto.handshake_refused",
        /// More handshakes than are read without proof: the sender was asked for a cookie.
        CookieAsked = "crypto.cookie_asked",
        /// A frame inside a link packet ends before its fields do.
        FrameTruncated = "frame.truncated",
        /// A frame with a value outside of what the protocol allows.
        FrameBadValue = "frame.bad_value",
        /// A peer sent more bytes of a stream than it had credit for.
        FrameBeyondCredit = "frame.beyond_credit",
        /// The other half of a datagram did not come in time.
        HalfMissing = "frame.half_missing",
        /// A frame of an unknown kind, skipped: the peer may be newer.
        FrameUnknownKind = "frame.unknown_kind",
        /// A frame, or a TCP segment, of a flow that does not exist (any more).
        UnknownFlow = "flow.unknown",
        /// The flow's queue is full: the sender is faster than its fair rate.
        QueueFull = "flow.queue_full",
        /// The flow's packets wait too long for their turn (CoDel, RFC 8289): its sender is to slow down.
        QueueDelay = "flow.queue_delay",
        /// Waited so long for its turn, while the line stood still, that nobody misses it.
        QueueStale = "flow.queue_stale",
        /// More flows than the router keeps.
        FlowTableFull = "flow.table_full",
        /// More connections are being opened than the router waits for: the oldest of them gave way.
        HalfOpenFull = "flow.half_open_full",
        /// The router was told to stop and takes no new flows.
        Draining = "flow.draining",
        /// The memory budget (`memory` in the configuration) is used up.
        Memory = "memory.exhausted",
        /// Marked "congestion experienced" on the line, but its transport would not see the mark (RFC 6040).
        MarkUnseen = "ip.mark_unseen",
        /// An ICMP error that may not be answered, or an error about an error.
        NotAnswerable = "icmp.not_answerable",
        /// Policy forbids it.
        RefusedPolicy = "policy.refused",
        /// It claims to come from behind a peer, came in the clear, and no policy lets its flow do so.
        PeerInTheClear = "policy.peer_in_the_clear",
        /// Another worker's, which has too many packets waiting that were handed to it.
        Handover = "worker.handover_full",
        /// More answers or errors per second than the router sends.
        RateLimited = "rate_limited",
        /// The port did not take it: its queue is full or its link is down.
        TxRefused = "tx.refused",
        /// Dropped because the router, the flow or the link it belonged to ended.
        Closed = "closed",
    }
}

impl From<WireError> for DropReason {
    // Without a wildcard: a new wire error does not compile until it has a reason.
    fn from(e: WireError) -> Self {
        match e {
            WireError::Truncated => Self::Truncated,
            WireError::BadVersion => Self::BadVersion,
            WireError::BadHeaderLength => Self::BadHeaderLength,
            WireError::BadLength => Self::BadLength,
            WireError::BadChecksum => Self::BadChecksum,
            WireError::BadArp => Self::ArpBad,
            WireError::BadNeighbourDiscovery => Self::NeighbourDiscoveryBad,
            WireError::BadExtension => Self::ExtensionHeaders,
            WireError::BadOption => Self::BadTcpOption,
            WireError::TtlExpired => Self::TtlExpired,
            WireError::NotAnswerable => Self::NotAnswerable,
            WireError::NoRoom => Self::NoRoom,
        }
    }
}

impl From<OpenError> for DropReason {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Truncated => Self::CryptoTruncated,
            OpenError::BadVersion => Self::CryptoBadVersion,
            OpenError::UnknownType => Self::CryptoUnknownType,
            OpenError::UnknownSession => Self::CryptoUnknownSession,
            OpenError::UnknownLane => Self::CryptoUnknownLane,
            OpenError::BadEpoch => Self::CryptoBadEpoch,
            OpenError::Replayed => Self::CryptoReplayed,
            OpenError::TooOld => Self::CryptoTooOld,
            OpenError::Unauthentic => Self::CryptoUnauthentic,
            OpenError::LimitReached => Self::CryptoLimitReached,
        }
    }
}

/// Drops by reason.
pub type ByReason = [u64; DropReason::COUNT];

/// Drop counters of one worker, by stage and reason; and by reason for each port
/// and link, as far as it is known with which of them a packet had to do.
#[derive(Clone)]
#[repr(align(64))]
pub struct Counters {
    drops: Box<[ByReason; Stage::COUNT]>,
    ports: Vec<ByReason>,
    links: Vec<ByReason>,
    /// Where the packet at hand came in, and the link it came over or is to take.
    port: Option<usize>,
    link: Option<usize>,
}

impl Default for Counters {
    fn default() -> Self {
        Self::new(0, 0)
    }
}

impl Counters {
    /// Counters for so many ports and links.
    pub fn new(ports: usize, links: usize) -> Self {
        Self {
            drops: Box::new([[0; DropReason::COUNT]; Stage::COUNT]),
            ports: vec![[0; DropReason::COUNT]; ports],
            links: vec![[0; DropReason::COUNT]; links],
            port: None,
            link: None,
        }
    }

    /// What is dropped from here on came in at the port with this number.
    #[inline]
    pub fn at_port(&mut self, port: u16) {
        self.port = Some(usize::from(port));
        self.link = None;
    }

    /// What is dropped from here on has to do with the link with this number too.
    #[inline]
    pub fn at_link(&mut self, link: u16) {
        self.link = Some(usize::from(link));
    }

    /// What is dropped from here on has nothing to do with either.
    #[inline]
    pub fn elsewhere(&mut self) {
        (self.port, self.link) = (None, None);
    }

    /// Counts one packet dropped by `stage` because of `reason`.
    #[inline]
    pub fn count(&mut self, stage: Stage, reason: DropReason) {
        self.count_many(stage, reason, 1);
    }

    /// Counts `n` packets at once.
    #[inline]
    pub fn count_many(&mut self, stage: Stage, reason: DropReason, n: u64) {
        let all = self.drops.get_mut(stage as usize);
        let port = self.port.and_then(|p| self.ports.get_mut(p));
        let link = self.link.and_then(|l| self.links.get_mut(l));
        for place in [all, port, link].into_iter().flatten() {
            let c = &mut place[reason as usize];
            *c = c.wrapping_add(n);
        }
    }

    /// Packets that came in at a port and were dropped, by reason.
    pub fn of_port(&self, port: u16) -> Option<&ByReason> {
        self.ports.get(usize::from(port))
    }

    /// Packets that came over a link, or were to take it, and were dropped, by reason.
    pub fn of_link(&self, link: u16) -> Option<&ByReason> {
        self.links.get(usize::from(link))
    }

    pub fn get(&self, stage: Stage, reason: DropReason) -> u64 {
        self.drops[stage as usize][reason as usize]
    }

    /// All packets dropped for `reason`, whatever the stage.
    pub fn by_reason(&self, reason: DropReason) -> u64 {
        Stage::ALL.iter().map(|s| self.get(*s, reason)).sum()
    }

    pub fn total(&self) -> u64 {
        self.drops.iter().flatten().sum()
    }

    /// Adds another worker's counters to these.
    pub fn merge(&mut self, other: &Self) {
        let pairs = self.drops.iter_mut().zip(other.drops.iter());
        let pairs = pairs.chain(self.ports.iter_mut().zip(&other.ports));
        let pairs = pairs.chain(self.links.iter_mut().zip(&other.links));
        for (a, b) in pairs.flat_map(|(a, b)| a.iter_mut().zip(b)) {
            *a = a.wrapping_add(*b);
        }
    }

    /// The counters that are not zero, in the order of stages and reasons.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, DropReason, u64)> + '_ {
        Stage::ALL.iter().flat_map(move |&s| {
            DropReason::ALL
                .iter()
                .map(move |&r| (s, r, self.get(s, r)))
                .filter(|&(_, _, n)| n > 0)
        })
    }

    /// The counters that are not zero under their full names, such as `ingress.ip.bad_checksum`.
    pub fn named(&self) -> std::collections::BTreeMap<String, u64> {
        self.iter()
            .map(|(s, r, n)| (format!("{s}.{r}"), n))
            .collect()
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(s, r, n)| ((s, r), n)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_for_a_metric() {
        let names: HashSet<&str> = DropReason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
        let stages: HashSet<&str> = Stage::ALL.iter().map(|s| s.as_str()).collect();
        assert_eq!(stages.len(), Stage::COUNT);
        for name in names.iter().chain(&stages) {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_' || b == b'.'),
                "{name}"
            );
        }
    }

    #[test]
    fn discriminants_are_the_places_in_the_array() {
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
        }
        for (i, s) in Stage::ALL.iter().enumerate() {
            assert_eq!(*s as usize, i);
        }
    }

    #[test]
    fn counts_per_stage_and_reason_and_merges() {
        let mut a = Counters::default();
        a.count(Stage::Ingress, DropReason::BadChecksum);
        a.count_many(Stage::Open, DropReason::BadChecksum, 2);
        let mut b = Counters::default();
        b.count(Stage::Ingress, DropReason::BadChecksum);
        b.count(Stage::Tx, DropReason::Closed);
        a.merge(&b);
        let all: Vec<_> = a.iter().collect();
        assert_eq!(
            all,
            [
                (Stage::Ingress, DropReason::BadChecksum, 2),
                (Stage::Open, DropReason::BadChecksum, 2),
                (Stage::Tx, DropReason::Closed, 1),
            ]
        );
        assert_eq!(a.total(), 5);
        assert_eq!(a.by_reason(DropReason::BadChecksum), 4);
        assert_eq!(a.named().get("open.ip.bad_checksum"), Some(&2));
    }

    #[test]
    fn counts_where_a_packet_came_in_and_over_which_link() {
        let bad = DropReason::BadChecksum;
        let mut a = Counters::new(2, 1);
        a.count(Stage::Tx, bad);
        a.at_port(1);
        a.count(Stage::Ingress, bad);
        a.at_link(0);
        a.count(Stage::Open, bad);
        // The next packet has nothing to do with the link.
        a.at_port(1);
        a.count(Stage::Ingress, bad);
        a.at_port(7);
        a.count(Stage::Ingress, bad);
        a.elsewhere();
        a.count(Stage::Ingress, bad);
        let mut b = a.clone();
        b.merge(&a);
        for (counters, times) in [(&a, 1), (&b, 2)] {
            assert_eq!(counters.by_reason(bad), 6 * times);
            let port = |p| counters.of_port(p).map(|c| c[bad as usize]);
            assert_eq!(
                (port(0), port(1), port(7)),
                (Some(0), Some(3 * times), None)
            );
            assert_eq!(counters.of_link(0).map(|c| c[bad as usize]), Some(times));
        }
    }
}
