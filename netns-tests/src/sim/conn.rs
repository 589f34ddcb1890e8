//! One TCP connection of a simulated host and what its application does with
//! it: the load agent's client and server as a list of steps, each done as far
//! as the connection allows.
//!
//! ```text
//!  client, bulk or transfer:  header, payload | FIN | receipt <-
//!  client, request:           header | payload <- | receipt, FIN
//!  server:                    header <- | then the other half of the same
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use mef_dataplane::host_tcp::{End, HostTcp, SmoltcpHost};
use mef_packet::Instant;

use crate::load::header::{Header, Receipt, LEN};
use crate::load::payload::{hex, Blocks, Cursor};
use crate::load::transfer::{account, made};
use crate::load::{AgentOutcome, FlowError, FlowKind, FlowSpec, ReceivedFlow, SentFlow};

/// Bytes handed to the connection at a time.
const CHUNK: u64 = 256 * 1024;

/// One thing to do.
enum Step {
    Write {
        bytes: Vec<u8>,
        at: usize,
    },
    Send(Sending),
    Finish,
    /// The header of a client.
    ReadHeader(Vec<u8>),
    /// A receipt; it must tell this many bytes, if that is known.
    ReadReceipt {
        bytes: Vec<u8>,
        flow: u64,
    },
    Receive(Receiving),
}

struct Sending {
    cursor: Cursor,
    /// Bytes to send, or until when.
    limit: Limit,
    /// When a paced source has more.
    more_at: Option<Instant>,
    pauses: Vec<(Instant, Instant)>,
    /// Index into [`AgentOutcome::sent`].
    record: usize,
}

#[derive(Clone, Copy)]
enum Limit {
    Bytes(u64),
    Until(Instant),
    /// What a source of so many bit/s has made since a time, until another.
    Paced(u64, Instant, Instant),
}

/// A paced source delivers this often.
const PACE: Duration = Duration::from_millis(5);

struct Receiving {
    cursor: Cursor,
    /// Index into [`AgentOutcome::received`].
    record: usize,
}

/// What connections of a host share.
pub(super) struct Shared<'a> {
    pub now: Instant,
    pub outcome: &'a mut AgentOutcome,
    pub blocks: &'a Blocks,
}

/// Whose end of the flow this is.
enum Role {
    Client {
        flow: FlowSpec,
        /// Index into [`AgentOutcome::clients`].
        record: usize,
        chain: usize,
        give_up: Option<Instant>,
    },
    Server,
}

/// A connection and its application.
pub(super) struct Conn {
    pub tcp: SmoltcpHost,
    role: Role,
    steps: VecDeque<Step>,
    connected: bool,
    /// The application has no more to do.
    done: bool,
}

fn named(phase: &str, errno: &str) -> FlowError {
    FlowError {
        phase: phase.to_owned(),
        errno: errno.to_owned(),
    }
}

fn errno(end: End) -> &'static str {
    match end {
        End::Refused => "ECONNREFUSED",
        End::ResetByPeer => "ECONNRESET",
        End::Unreachable { .. } => "EHOSTUNREACH",
        End::Aborted => "ECONNABORTED",
        End::TimedOut => "ETIMEDOUT",
    }
}

impl Step {
    fn phase(&self) -> &'static str {
        match self {
            Step::Write { .. } | Step::Send(_) => "send",
            Step::Finish => "close",
            Step::ReadHeader(_) | Step::ReadReceipt { .. } | Step::Receive(_) => "receive",
        }
    }
}

impl Conn {
    /// A client that has just called connect().
    pub fn client(
        shared: &mut Shared<'_>,
        tcp: SmoltcpHost,
        flow: FlowSpec,
        record: usize,
        chain: usize,
        pauses: Vec<(Instant, Instant)>,
    ) -> Self {
        let now = shared.now;
        let header = Header {
            kind: flow.kind,
            hash: flow.hash,
            flow: flow.id,
            size: flow.size,
            connect_ns: now.as_nanos(),
            seed: flow.seed,
            congestion: String::new(),
        };
        let mut steps = VecDeque::new();
        // Only a congestion control's name can be too long, and there is none.
        let bytes = header.encode().map(|h| h.to_vec()).unwrap_or_default();
        steps.push_back(Step::Write { bytes, at: 0 });
        let cursor = Cursor::new(shared.blocks.get(flow.seed), flow.id, flow.hash);
        let millis = Duration::from_millis;
        match flow.kind {
            FlowKind::Bulk | FlowKind::Stream | FlowKind::Transfer => {
                let limit = match flow.kind {
                    FlowKind::Bulk => Limit::Until(now + millis(flow.duration_ms)),
                    FlowKind::Stream => {
                        Limit::Paced(flow.rate_bps, now, now + millis(flow.duration_ms))
                    }
                    _ => Limit::Bytes(flow.size),
                };
                steps.push_back(shared.send(flow.id, cursor, limit, pauses));
                steps.push_back(Step::Finish);
                steps.push_back(Step::ReadReceipt {
                    bytes: Vec::new(),
                    flow: flow.id,
                });
            }
            FlowKind::Request => {
                steps.push_back(shared.receive(&header, cursor));
            }
        }
        if let Some(c) = shared.outcome.clients.get_mut(record) {
            c.connect_ns = Some(now.as_nanos());
        }
        let give_up = match flow.kind {
            FlowKind::Bulk | FlowKind::Stream => {
                Some(now + millis(flow.duration_ms) + millis(flow.grace_ms))
            }
            _ => flow.timeout_ms.map(|ms| now + millis(ms)),
        };
        Self {
            tcp,
            role: Role::Client {
                flow,
                record,
                chain,
                give_up,
            },
            steps,
            connected: false,
            done: false,
        }
    }

    /// A server that waits to be told what is wanted.
    pub fn server(tcp: SmoltcpHost) -> Self {
        Self {
            tcp,
            role: Role::Server,
            steps: VecDeque::from([Step::ReadHeader(Vec::new())]),
            connected: false,
            done: false,
        }
    }

    /// The chain that goes on when this flow has ended.
    pub fn chain(&self) -> Option<usize> {
        match self.role {
            Role::Client { chain, .. } => Some(chain),
            Role::Server => None,
        }
    }

    /// The flow of a client.
    pub fn flow(&self) -> Option<&FlowSpec> {
        match &self.role {
            Role::Client { flow, .. } => Some(flow),
            Role::Server => None,
        }
    }

    pub fn is_done(&self) -> bool {
        self.done
    }

    /// When something is to be done without a packet.
    pub fn next(&self) -> Option<Instant> {
        let pause = match self.steps.front() {
            Some(Step::Send(s)) => s.next(),
            _ => None,
        };
        let give_up = match &self.role {
            Role::Client { give_up, .. } if !self.done => *give_up,
            _ => None,
        };
        [self.tcp.poll_timeout(), pause, give_up]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what can be done; true once the application has just ended.
    pub fn pump(&mut self, shared: &mut Shared<'_>) -> bool {
        if self.done {
            // Whatever still comes is not ours.
            self.tcp.read(<[u8]>::len);
            return false;
        }
        let state = self.tcp.state();
        if state.established && !self.connected {
            self.connected = true;
            if let Role::Client { record, .. } = &self.role {
                if let Some(c) = shared.outcome.clients.get_mut(*record) {
                    c.connected_ns = Some(shared.now.as_nanos());
                }
            }
        }
        let result = self.work(shared);
        let over = match &self.role {
            Role::Client { give_up, .. } => give_up.is_some_and(|t| shared.now >= t),
            Role::Server => false,
        };
        match result {
            Ok(true) => self.end(shared, Ok(())),
            Ok(false) if over => self.give_up(shared, "TIMEOUT"),
            Ok(false) => return false,
            Err(e) => self.end(shared, Err(e)),
        }
        true
    }

    /// Ends the application, whatever is left.
    pub fn give_up(&mut self, shared: &mut Shared<'_>, why: &str) {
        if self.done {
            return;
        }
        let phase = match (self.connected, self.steps.front()) {
            (true, Some(step)) => step.phase(),
            _ => "connect",
        };
        self.end(shared, Err(named(phase, why)));
        self.tcp.abort();
    }

    fn end(&mut self, shared: &mut Shared<'_>, result: Result<(), FlowError>) {
        self.done = true;
        let now = shared.now.as_nanos();
        match &self.role {
            Role::Client { flow, record, .. } => {
                if let Some(c) = shared.outcome.clients.get_mut(*record) {
                    c.end_ns = Some(now);
                    match result {
                        Ok(()) => c.complete = true,
                        Err(e)
                            if flow.kind.is_timed()
                                && self.connected
                                && matches!(e.errno.as_str(), "TIMEOUT" | "STOPPED") =>
                        {
                            c.cut = true;
                        }
                        Err(e) => c.error = Some(e),
                    }
                }
            }
            Role::Server => {
                if let (Err(e), Some(Step::Receive(r))) = (result, self.steps.front()) {
                    if let Some(r) = shared.outcome.received.get_mut(r.record) {
                        r.error.get_or_insert(e);
                    }
                }
            }
        }
        for step in &self.steps {
            if let Step::Receive(r) = step {
                if let Some(record) = shared.outcome.received.get_mut(r.record) {
                    record.sha256 = r.cursor.sha256().map(|h| hex(&h));
                }
            }
        }
    }

    /// True when all steps are done.
    fn work(&mut self, shared: &mut Shared<'_>) -> Result<bool, FlowError> {
        loop {
            let Some(step) = self.steps.front_mut() else {
                return Ok(true);
            };
            let phase = step.phase();
            let finished = match step {
                Step::Write { bytes, at } => {
                    *at += self.tcp.write(bytes.get(*at..).unwrap_or_default());
                    *at == bytes.len()
                }
                Step::Send(s) => s.go(&mut self.tcp, shared),
                Step::Finish => {
                    self.tcp.finish();
                    true
                }
                Step::ReadHeader(bytes) => {
                    if read_block(&mut self.tcp, bytes) {
                        let block = block(bytes)?;
                        let header =
                            Header::decode(&block).map_err(|e| named("header", &e.to_string()))?;
                        let next = shared.serve(&header);
                        self.steps.pop_front();
                        self.steps.extend(next);
                        continue;
                    }
                    false
                }
                Step::ReadReceipt { bytes, flow } => {
                    let complete = read_block(&mut self.tcp, bytes);
                    if complete {
                        let receipt = Receipt::decode(&block(bytes)?)
                            .map_err(|_| named("receipt", "HEADER"))?;
                        let sent = shared.outcome.sent.iter().find(|s| s.id == *flow);
                        if sent.is_some_and(|s| s.bytes != receipt.bytes) {
                            return Err(named("receipt", "SHORT"));
                        }
                    }
                    complete
                }
                Step::Receive(r) => match r.go(&mut self.tcp, shared)? {
                    Some(receipt) => {
                        self.steps.pop_front();
                        let bytes = receipt.encode().to_vec();
                        self.steps.push_back(Step::Write { bytes, at: 0 });
                        self.steps.push_back(Step::Finish);
                        continue;
                    }
                    None => false,
                },
            };
            if finished {
                self.steps.pop_front();
                continue;
            }
            let state = self.tcp.state();
            if let Some(end) = state.end {
                let phase = if self.connected { phase } else { "connect" };
                return Err(named(phase, errno(end)));
            }
            if state.remote_finished && phase == "receive" {
                return Err(named("receive", "SHORT"));
            }
            return Ok(false);
        }
    }
}

fn read_block(tcp: &mut SmoltcpHost, into: &mut Vec<u8>) -> bool {
    while into.len() < LEN && tcp.readable() > 0 {
        tcp.read(|bytes| {
            let n = bytes.len().min(LEN - into.len());
            into.extend_from_slice(bytes.get(..n).unwrap_or_default());
            n
        });
    }
    into.len() == LEN
}

fn block(bytes: &[u8]) -> Result<[u8; LEN], FlowError> {
    bytes.try_into().map_err(|_| named("receive", "SHORT"))
}

impl Sending {
    fn paused(&self, now: Instant) -> Option<Instant> {
        let pause = self.pauses.iter().find(|(a, b)| (*a..*b).contains(&now));
        pause.map(|(_, until)| *until)
    }

    /// A pause's end, or the end of sending.
    fn next(&self) -> Option<Instant> {
        let end = match self.limit {
            Limit::Until(at) => Some(at),
            Limit::Paced(..) => self.more_at,
            Limit::Bytes(_) => None,
        };
        // Later than the current time, or passed: then it has had its effect.
        self.pauses.iter().map(|(_, b)| *b).chain(end).min()
    }

    fn go(&mut self, tcp: &mut SmoltcpHost, shared: &mut Shared<'_>) -> bool {
        let now = shared.now;
        self.pauses.retain(|(_, until)| *until > now);
        let Some(record) = shared.outcome.sent.get_mut(self.record) else {
            return true;
        };
        loop {
            let left = match self.limit {
                Limit::Bytes(n) => n - record.bytes,
                Limit::Until(end) if now < end => u64::MAX,
                Limit::Until(_) => 0,
                Limit::Paced(rate, from, until) => {
                    let at = now.min(until).as_nanos();
                    let left = made(rate, from.as_nanos(), at).saturating_sub(record.bytes);
                    self.more_at = Some(now + PACE);
                    if left == 0 && now < until {
                        return false;
                    }
                    left
                }
            };
            if left == 0 {
                record.sha256 = self.cursor.sha256().map(|h| hex(&h));
                return true;
            }
            if self.paused(now).is_some() {
                return false;
            }
            let n = tcp.write(self.cursor.next(left.min(CHUNK)));
            if n == 0 {
                return false;
            }
            self.cursor.advance(n);
            record.bytes += n as u64;
        }
    }
}

impl Receiving {
    /// A receipt at the end of the stream.
    fn go(
        &mut self,
        tcp: &mut SmoltcpHost,
        shared: &mut Shared<'_>,
    ) -> Result<Option<Receipt>, FlowError> {
        let now = shared.now.as_nanos();
        let Some(record) = shared.outcome.received.get_mut(self.record) else {
            return Ok(None);
        };
        while tcp.readable() > 0 {
            let mut same = true;
            let n = tcp.read(|bytes| {
                same = self.cursor.check(bytes);
                bytes.len()
            });
            account(record, now, n as u64);
            record.payload_ok &= same;
        }
        if !tcp.state().remote_finished {
            return Ok(None);
        }
        let hash = self.cursor.sha256();
        record.sha256 = hash.map(|h| hex(&h));
        record.complete = record.size == 0 || record.bytes == record.size;
        if !record.complete {
            let short = named("receive", "SHORT");
            record.error = Some(short.clone());
            return Err(short);
        }
        Ok(Some(Receipt {
            flow: record.id,
            bytes: record.bytes,
            last_ns: record.last_ns.unwrap_or(0),
            sha256: hash.unwrap_or_default(),
        }))
    }
}

impl Shared<'_> {
    fn send(
        &mut self,
        id: u64,
        cursor: Cursor,
        limit: Limit,
        pauses: Vec<(Instant, Instant)>,
    ) -> Step {
        self.outcome.sent.push(SentFlow {
            id,
            bytes: 0,
            retransmitted: 0,
            rtt_us: 0,
            sha256: None,
        });
        Step::Send(Sending {
            cursor,
            limit,
            more_at: None,
            pauses,
            record: self.outcome.sent.len() - 1,
        })
    }

    fn receive(&mut self, header: &Header, cursor: Cursor) -> Step {
        self.outcome.received.push(ReceivedFlow::announced(
            header.flow,
            header.kind,
            header.size,
            header.connect_ns,
        ));
        Step::Receive(Receiving {
            cursor,
            record: self.outcome.received.len() - 1,
        })
    }

    /// What a server does with a client's header.
    fn serve(&mut self, header: &Header) -> Vec<Step> {
        let block = self.blocks.get(header.seed);
        let cursor = Cursor::new(block, header.flow, header.hash);
        match header.kind {
            FlowKind::Bulk | FlowKind::Stream | FlowKind::Transfer => {
                vec![self.receive(header, cursor)]
            }
            FlowKind::Request => vec![
                self.send(header.flow, cursor, Limit::Bytes(header.size), Vec::new()),
                Step::Finish,
                Step::ReadReceipt {
                    bytes: Vec::new(),
                    flow: header.flow,
                },
            ],
        }
    }
}
