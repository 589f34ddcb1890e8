//! The rows.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::control::LinkState;

/// What is known of a line of unknown capacity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// `starting`, `following`, `draining`, `asking`, `dipping` or `competing`.
    pub phase: String,
    /// Others fill the queue, and the link holds its own against them.
    pub competes: bool,
    /// What the line was last seen to deliver to this link.
    pub delivered_bps: u64,
    /// Delay in the line's queue, and what is wanted there while nobody else fills it.
    pub queue_us: u64,
    pub wanted_queue_us: u64,
    /// Round trip without a queue.
    pub base_rtt_us: u64,
    /// Times that the path was found to have become longer.
    pub base_changes: u64,
    /// Share lost whatever is sent, 0 to 1.
    pub random_loss: f64,
}

/// A link to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub peer: String,
    /// Whose line it uses.
    pub port: String,
    pub state: LinkState,
    /// Where the peer was last heard, or is configured to be.
    pub endpoint: Option<SocketAddr>,
    pub rtt_us: u64,
    pub rtt_min_us: u64,
    /// Share of the packets lost on the way to the peer, 0 to 1.
    pub loss: f64,
    /// Largest IP packet that the path is known to carry.
    pub mtu: u16,
    /// Configured capacity towards the peer.
    pub line_bps: u64,
    /// What the link may use of it now.
    pub rate_bps: u64,
    /// The path was seen to carry less than configured.
    pub capacity_alarm: bool,
    /// On a line of unknown capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Estimate>,
    /// Packets for the peer leave in the clear, as policy lets them where the link does not work.
    pub fallback: bool,
    /// For how long nothing was acknowledged.
    pub silent_us: u64,
    pub split_flows: u64,
    /// Flows that have datagrams waiting, and these datagrams.
    pub datagram_flows: u64,
    pub datagram_queue_bytes: u64,
    pub sent_packets: u64,
    /// As Ethernet frames without FCS, with what the line adds.
    pub sent_bytes: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
    pub lost_packets: u64,
    /// Declared lost, but arrived.
    pub spurious_packets: u64,
    pub repair_packets: u64,
    pub retransmitted_bytes: u64,
    /// Brought back by repair, without a retransmission.
    pub recovered_bytes: u64,
    /// Datagrams whose other half did not come in time.
    pub expired_datagrams: u64,
    /// Datagrams that were marked "congestion experienced" instead of dropped.
    pub marked_datagrams: u64,
    /// Handshake messages sent to open one, and sessions that came about.
    pub handshakes_started: u64,
    pub sessions: u64,
    /// Packets of the link that were dropped, see `drops`.
    pub dropped_packets: u64,
}

/// A port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Port {
    pub port: String,
    pub interface: String,
    pub mac: String,
    pub addresses: Vec<String>,
    pub mtu: u16,
    /// Capacity of the line on it, if there is one.
    pub line_up_bps: Option<u64>,
    pub line_down_bps: Option<u64>,
    pub received_packets: u64,
    pub received_bytes: u64,
    /// Lost before the router saw them.
    pub missed_packets: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Refused by the device or the kernel.
    pub refused_packets: u64,
    /// Capacity of the line lost because the router woke too late.
    pub lost_credit_bytes: u64,
    /// Packets that came in here and were dropped, see `drops`.
    pub dropped_packets: u64,
}

/// Packets dropped for one reason by one stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    pub stage: String,
    pub reason: String,
    pub packets: u64,
}

/// One of the threads that share the flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    pub worker: u16,
    /// Peers that it has a link to which works.
    pub links_up: u64,
    pub split_flows: u64,
    pub received_packets: u64,
    pub received_bytes: u64,
    pub sent_packets: u64,
    pub sent_bytes: u64,
    /// Packets of other workers' flows that came to it, and of its own that came to others.
    pub given_packets: u64,
    pub taken_packets: u64,
    pub dropped_packets: u64,
    /// Processor time of its thread.
    pub cpu_us: u64,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// A network of a port.
    Connected,
    /// `prefixes` of a peer.
    Peer,
    /// A `[[route]]`.
    Static,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    pub prefix: String,
    pub kind: RouteKind,
    /// The peer, or the address of the next router; nothing where the destination itself is the next hop.
    pub via: Option<String>,
    pub port: Option<String>,
    /// Its link is up; always true where it leads over none.
    pub up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeighbourState {
    /// Asked for, not answered yet.
    Incomplete,
    Reachable,
    /// Known, and asked whether it is still there.
    Probing,
}

/// A station on the network of a port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    pub port: String,
    pub address: IpAddr,
    pub mac: Option<String>,
    pub state: NeighbourState,
    /// Since it was confirmed, or first asked for.
    pub age_us: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// The far host has not answered yet.
    Opening,
    Open,
    /// One of the two hosts has closed its half, or reset.
    Closing,
}

/// A split flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// `split`.
    pub mode: String,
    pub peer: String,
    /// Where its host is.
    pub port: String,
    /// The host on this side, and the one behind the peer.
    pub host: SocketAddr,
    pub far: SocketAddr,
    /// Number on the link.
    pub number: u32,
    pub state: FlowState,
    /// From this side's host to the link, and back.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Taken from the host and not sent yet, or not acknowledged.
    pub unsent_bytes: u64,
    pub held_bytes: u64,
    pub retransmitted_bytes: u64,
    pub recovered_bytes: u64,
    /// How many more bytes the peer lets this end send.
    pub credit_bytes: u64,
}
