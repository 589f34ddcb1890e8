//! What the threads of an agent share: the stop flag, the records that they
//! write while they run (so that an agent that is stopped delivers what it has)
//! and the notices that tell the agent's main thread what has ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::payload::Blocks;
use super::spec::{
    ClientFlow, FlowError, FlowKind, ProbeReceived, ProbeSent, ReceivedFlow, SentFlow,
};

/// A record that one thread writes and the main thread copies at the end.
pub type Slot<T> = Arc<Mutex<T>>;

/// A lock that a thread which died has held is still good: records are only ever added to.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A chain of flows or a probe sender has ended.
    TaskEnded,
    /// A connection that a server took has ended.
    ServedEnded,
    Signal,
}

#[derive(Debug)]
struct List<T>(Mutex<Vec<Slot<T>>>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> List<T> {
    fn add(&self, record: T) -> Slot<T> {
        let slot = Arc::new(Mutex::new(record));
        lock(&self.0).push(Arc::clone(&slot));
        slot
    }
    fn copy(&self) -> Vec<T> {
        lock(&self.0)
            .iter()
            .map(|slot| lock(slot).clone())
            .collect()
    }
}

#[derive(Debug)]
pub struct Shared {
    stop: AtomicBool,
    pub origin_ns: u64,
    pub blocks: Blocks,
    pub received_bytes: AtomicU64,
    pub flows_done: AtomicU64,
    pub flows_failed: AtomicU64,
    notices: Mutex<Sender<Notice>>,
    clients: List<ClientFlow>,
    received: List<ReceivedFlow>,
    sent: List<SentFlow>,
    probes_sent: List<ProbeSent>,
    probes_received: List<ProbeReceived>,
    errors: Mutex<Vec<String>>,
}

/// Errors outside flows are listed up to here, in case a peer makes many.
const ERRORS_KEPT: usize = 50;

impl Shared {
    pub fn new(origin_ns: u64, notices: Sender<Notice>) -> Self {
        Self {
            stop: AtomicBool::new(false),
            origin_ns,
            blocks: Blocks::default(),
            received_bytes: AtomicU64::new(0),
            flows_done: AtomicU64::new(0),
            flows_failed: AtomicU64::new(0),
            notices: Mutex::new(notices),
            clients: List::default(),
            received: List::default(),
            sent: List::default(),
            probes_sent: List::default(),
            probes_received: List::default(),
            errors: Mutex::default(),
        }
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
    /// Sleeps until a time of CLOCK_MONOTONIC; false if the agent stops before it.
    pub fn sleep_until(&self, ns: u64) -> bool {
        loop {
            if self.stopped() {
                return false;
            }
            let left = ns.saturating_sub(super::sys::now_ns());
            if left == 0 {
                return true;
            }
            std::thread::sleep(Duration::from_nanos(left).min(Duration::from_millis(50)));
        }
    }
    /// The main thread may be gone already when the process ends: then nobody needs it.
    pub fn notify(&self, notice: Notice) {
        let _ = lock(&self.notices).send(notice);
    }
    pub fn error(&self, message: String) {
        let mut errors = lock(&self.errors);
        if errors.len() < ERRORS_KEPT {
            errors.push(message);
        }
    }
    pub fn count(&self, error: Option<&FlowError>) {
        match error {
            None => self.flows_done.fetch_add(1, Ordering::Relaxed),
            Some(_) => self.flows_failed.fetch_add(1, Ordering::Relaxed),
        };
    }

    pub fn client(&self, record: ClientFlow) -> Slot<ClientFlow> {
        self.clients.add(record)
    }
    pub fn receiving(
        &self,
        id: u64,
        kind: FlowKind,
        size: u64,
        connect_ns: u64,
    ) -> Slot<ReceivedFlow> {
        self.received
            .add(ReceivedFlow::announced(id, kind, size, connect_ns))
    }
    pub fn sending(&self, id: u64) -> Slot<SentFlow> {
        self.sent.add(SentFlow {
            id,
            bytes: 0,
            retransmitted: 0,
            rtt_us: 0,
            sha256: None,
        })
    }
    pub fn probe_sending(&self, id: u64) -> Slot<ProbeSent> {
        self.probes_sent.add(ProbeSent {
            id,
            packets: 0,
            refused: 0,
        })
    }
    pub fn probe_receiving(&self, id: u64) -> Slot<ProbeReceived> {
        self.probes_received.add(ProbeReceived {
            id,
            ..ProbeReceived::default()
        })
    }

    /// Copies of all records as they are now.
    pub fn outcome(&self) -> super::spec::AgentOutcome {
        super::spec::AgentOutcome {
            origin_ns: self.origin_ns,
            cpu_s: super::sys::process_cpu_s(),
            clients: self.clients.copy(),
            received: self.received.copy(),
            sent: self.sent.copy(),
            probes_sent: self.probes_sent.copy(),
            probes_received: self.probes_received.copy(),
            errors: lock(&self.errors).clone(),
            ..super::spec::AgentOutcome::default()
        }
    }
}
