//! What an agent is told and what it tells: the JSON that crosses the pipe
//! between the lab and the load agents in the hosts' namespaces. All times
//! are nanoseconds of CLOCK_MONOTONIC, which every namespace of a machine
//! shares, so that a time taken by a sender and one taken by a receiver can be
//! subtracted from each other.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Width of the buckets in which receivers count bytes, ns.
pub const BUCKET_NS: u64 = 100_000_000;

/// Flow id of the probe on the idle path, by convention of the lab.
pub const PROBE_IDLE: u64 = 1;
/// Flow id of the probe beside the load, by convention of the lab.
pub const PROBE_LOADED: u64 = 2;
/// Datagrams at a constant rate have the id of their flow above this one.
pub const CBR: u64 = 1 << 32;

/// Everything one agent has to do. It ends when all clients and probe senders
/// have finished and (if it has servers) `expect_flows` flows have ended, on
/// SIGTERM, or at `deadline_ns`; in each case it delivers what it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSpec {
    /// The host's name, repeated in the outcome.
    pub name: String,
    /// What the flows' start times count from; now, if it is not given.
    pub origin_ns: Option<u64>,
    pub deadline_ns: Option<u64>,
    pub servers: Vec<ServerSpec>,
    /// A server-only agent ends by itself after so many flows have ended;
    /// without it, only by a signal or the deadline.
    pub expect_flows: Option<u64>,
    pub flows: Vec<FlowSpec>,
    pub probes: Vec<ProbeSpec>,
}

/// What an agent listens on. Port 0 takes a free one; the `listening` event says which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "proto", rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerSpec {
    /// Takes flows of every kind.
    Tcp { listen: SocketAddr },
    /// Receives probes.
    Udp { listen: SocketAddr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowKind {
    /// The client sends for `duration_ms`, then closes its half; what has not
    /// arrived `grace_ms` later is cut off.
    Bulk,
    /// The client sends exactly `size` bytes and closes its half.
    Transfer,
    /// The client asks and the server sends exactly `size` bytes.
    Request,
    /// As bulk, at most `rate_bps` times the time since its start.
    Stream,
}

impl FlowKind {
    /// Whether the client sends for a time.
    pub fn is_timed(self) -> bool {
        matches!(self, Self::Bulk | Self::Stream)
    }
}

/// When a flow calls connect().
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// So many ms after the agent's origin.
    AtMs(u64),
    /// So many ms after the flow before it in the list has ended, however it ended.
    AfterPreviousMs(u64),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowSpec {
    /// Unique in the run: both ends account under it.
    pub id: u64,
    pub target: SocketAddr,
    pub kind: FlowKind,
    /// Payload bytes; not used by `bulk`.
    #[serde(default)]
    pub size: u64,
    /// Payload of `stream`, bit/s.
    #[serde(default)]
    pub rate_bps: u64,
    /// How long `bulk` and `stream` send, ms.
    #[serde(default)]
    pub duration_ms: u64,
    /// How long `bulk` waits for the rest to arrive, ms.
    #[serde(default = "default_grace")]
    pub grace_ms: u64,
    pub start: Start,
    /// The whole flow is given up after so many ms; without it at the agent's deadline.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Congestion control of the side that sends the payload; the kernel's default without it.
    #[serde(default)]
    pub congestion: Option<String>,
    #[serde(default)]
    pub source: Option<IpAddr>,
    /// For policies that match on it.
    #[serde(default)]
    pub source_port: Option<u16>,
    /// SHA-256 at both ends. Every byte is compared with the payload that the
    /// header announced in any case.
    #[serde(default = "default_true")]
    pub hash: bool,
    /// Of the payload.
    #[serde(default)]
    pub seed: u64,
}

fn default_grace() -> u64 {
    2_000
}
fn default_true() -> bool {
    true
}
fn default_interval() -> u64 {
    10_000
}
fn default_payload() -> usize {
    64
}

/// A stream of small UDP packets with their time of sending in them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSpec {
    /// `PROBE_IDLE` or `PROBE_LOADED`.
    pub id: u64,
    pub target: SocketAddr,
    /// After the agent's origin.
    #[serde(default)]
    pub start_ms: u64,
    pub duration_ms: u64,
    #[serde(default = "default_interval")]
    pub interval_us: u64,
    /// UDP payload, bytes, at least 32.
    #[serde(default = "default_payload")]
    pub payload: usize,
}

/// One line on an agent's stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// Every server is bound; `addresses` in the order of `servers`. Comes
    /// first, with an empty list from an agent without servers.
    Listening { addresses: Vec<SocketAddr> },
    /// At most five a second.
    Progress(Progress),
    /// The last line.
    Done(AgentOutcome),
    /// Instead of `done`: the agent could not start.
    Failed { message: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Since the origin.
    pub seconds: f64,
    pub received_bytes: u64,
    /// Of the payload received since the last progress line.
    pub rate_bps: f64,
    pub flows_done: u64,
    pub flows_failed: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// All that was asked for has ended.
    #[default]
    Complete,
    Deadline,
    Signal,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentOutcome {
    pub name: String,
    pub finish: Finish,
    pub origin_ns: u64,
    /// CPU time of the agent's process, seconds.
    pub cpu_s: f64,
    /// The flows whose connect() this agent called.
    pub clients: Vec<ClientFlow>,
    /// The payloads this agent received (as server of bulk and transfer, as client of request).
    pub received: Vec<ReceivedFlow>,
    /// The payloads this agent sent.
    pub sent: Vec<SentFlow>,
    pub probes_sent: Vec<ProbeSent>,
    pub probes_received: Vec<ProbeReceived>,
    /// What happened outside any flow (a connection without our header, say).
    pub errors: Vec<String>,
}

/// A flow as its client saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientFlow {
    pub id: u64,
    pub kind: FlowKind,
    /// Payload bytes asked for; 0 for bulk.
    pub size: u64,
    /// Of `stream`, bit/s.
    #[serde(default)]
    pub rate_bps: u64,
    pub duration_ms: u64,
    /// connect() was called; `None`: the flow was not started.
    pub connect_ns: Option<u64>,
    pub connected_ns: Option<u64>,
    pub end_ns: Option<u64>,
    /// The other end (or this one, for a request) has all of it.
    pub complete: bool,
    /// A bulk flow that had to be cut off when its grace had passed.
    pub cut: bool,
    pub error: Option<FlowError>,
}

impl ClientFlow {
    /// One of the plan, before its turn.
    pub fn planned(flow: &FlowSpec) -> Self {
        Self {
            id: flow.id,
            kind: flow.kind,
            size: flow.size,
            rate_bps: flow.rate_bps,
            duration_ms: flow.duration_ms,
            connect_ns: None,
            connected_ns: None,
            end_ns: None,
            complete: false,
            cut: false,
            error: None,
        }
    }
}

/// Why and where a flow failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowError {
    /// connect, send, receive, close.
    pub phase: String,
    /// The name of the errno (`ECONNREFUSED`), or `TIMEOUT`, `SHORT`, `HEADER`.
    pub errno: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SentFlow {
    pub id: u64,
    pub bytes: u64,
    /// Segments that TCP sent again (TCP_INFO).
    pub retransmitted: u64,
    /// Smoothed RTT of the sending socket at its end, us (TCP_INFO).
    pub rtt_us: u64,
    pub sha256: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceivedFlow {
    pub id: u64,
    pub kind: FlowKind,
    /// Payload bytes that were announced; 0 for bulk.
    pub size: u64,
    /// When the client called connect(), from the flow's header.
    pub connect_ns: u64,
    pub first_ns: Option<u64>,
    pub last_ns: Option<u64>,
    pub bytes: u64,
    /// Every byte was the one that the header's seed announced.
    pub payload_ok: bool,
    /// The stream was closed by its sender after all of it.
    pub complete: bool,
    pub sha256: Option<String>,
    /// Payload per `BUCKET_NS`; bucket i covers `(bucket0 + i) * BUCKET_NS` of the clock.
    pub bucket0: u64,
    pub buckets: Vec<u64>,
    pub error: Option<FlowError>,
}

impl ReceivedFlow {
    /// One of which nothing has arrived yet.
    pub fn announced(id: u64, kind: FlowKind, size: u64, connect_ns: u64) -> Self {
        Self {
            id,
            kind,
            size,
            connect_ns,
            first_ns: None,
            last_ns: None,
            bytes: 0,
            payload_ok: true,
            complete: false,
            sha256: None,
            bucket0: 0,
            buckets: Vec::new(),
            error: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeSent {
    pub id: u64,
    pub packets: u64,
    /// Refused by the sender's own kernel.
    pub refused: u64,
}

/// What arrived of a probe, in order of arrival.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeReceived {
    pub id: u64,
    /// UDP payload of a packet, bytes.
    #[serde(default)]
    pub payload: u64,
    /// When each packet was sent.
    pub sent_ns: Vec<u64>,
    /// One-way delay of each, us.
    pub delay_us: Vec<u32>,
    pub duplicates: u64,
}
