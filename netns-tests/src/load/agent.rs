//! One agent: binds what it serves, starts a thread for each chain of flows,
//! each probe and each connection it takes, and ends when all is done, when it
//! is told to, or when its time is over.
//!
//! ```text
//!  bind --> run --+-- all tasks and expected flows ended --+--> stop threads --> outcome
//!                 +-- signal ------------------------------+
//!                 +-- deadline ----------------------------+
//! ```

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::time::Duration;

use super::client;
use super::probe;
use super::server;
use super::spec::{AgentOutcome, AgentSpec, Finish, Progress, ServerSpec};
use super::state::{Notice, Shared};
use super::sys;

const PROGRESS_NS: u64 = 200_000_000;
/// How long threads get to note their last figures when the agent stops.
const STOPPING_NS: u64 = 1_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("cannot listen on {address}: {source}; is the address on an interface of this namespace, and the port free?")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

type Task = Box<dyn FnOnce(&Arc<Shared>) + Send>;

enum Server {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

pub struct Agent {
    spec: AgentSpec,
    shared: Arc<Shared>,
    notices: Receiver<Notice>,
    servers: Vec<Server>,
    addresses: Vec<SocketAddr>,
}

/// Stops an agent from another thread.
#[derive(Clone)]
pub struct Stopper(Arc<Shared>);

impl Stopper {
    pub fn stop(&self) {
        self.0.notify(Notice::Signal);
    }
}

impl Agent {
    /// Binds every server, so that clients can be started once it has returned.
    pub fn bind(spec: AgentSpec) -> Result<Self, AgentError> {
        let mut servers = Vec::new();
        let mut addresses = Vec::new();
        for server in &spec.servers {
            let (ServerSpec::Tcp { listen } | ServerSpec::Udp { listen }) = server;
            let refused = |source| AgentError::Listen {
                address: *listen,
                source,
            };
            let (server, address) = match server {
                ServerSpec::Tcp { .. } => {
                    let listener = TcpListener::bind(listen).map_err(refused)?;
                    let address = listener.local_addr().map_err(refused)?;
                    (Server::Tcp(listener), address)
                }
                ServerSpec::Udp { .. } => {
                    let socket = UdpSocket::bind(listen).map_err(refused)?;
                    let address = socket.local_addr().map_err(refused)?;
                    (Server::Udp(socket), address)
                }
            };
            servers.push(server);
            addresses.push(address);
        }
        let (sender, notices) = channel();
        let origin_ns = spec.origin_ns.unwrap_or_else(sys::now_ns);
        Ok(Self {
            shared: Arc::new(Shared::new(origin_ns, sender)),
            spec,
            notices,
            servers,
            addresses,
        })
    }

    /// Where the servers listen, in the order of the specification.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Runs to the end. `progress` is called at most five times a second.
    pub fn run(self, mut progress: impl FnMut(Progress)) -> Result<AgentOutcome, AgentError> {
        let Self {
            spec,
            shared,
            notices,
            servers,
            ..
        } = self;
        let has_servers = !servers.is_empty();
        let mut threads = Vec::new();
        let spawn = |name: &str, task: Task, ends: bool| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    task(&shared);
                    if ends {
                        shared.notify(Notice::TaskEnded);
                    }
                })
                .map_err(AgentError::Thread)
        };
        for server in servers {
            threads.push(match server {
                Server::Tcp(l) => spawn("listen", Box::new(move |s| server::serve(s, &l)), false)?,
                Server::Udp(u) => spawn("probed", Box::new(move |s| probe::receive(s, &u)), false)?,
            });
        }
        let mut tasks = 0_u64;
        for chain in client::chains(&spec.flows) {
            threads.push(spawn(
                "flows",
                Box::new(move |s| client::run_chain(s, &chain)),
                true,
            )?);
            tasks += 1;
        }
        for one in spec.probes {
            threads.push(spawn(
                "probe",
                Box::new(move |s| probe::send(s, &one)),
                true,
            )?);
            tasks += 1;
        }

        let deadline_ns = spec.deadline_ns.unwrap_or(u64::MAX);
        let mut served = 0_u64;
        let mut meter = Meter::new(shared.origin_ns);
        let finish = loop {
            let expected = match spec.expect_flows {
                Some(n) => served >= n,
                None => !has_servers,
            };
            if tasks == 0 && expected {
                break Finish::Complete;
            }
            let now = sys::now_ns();
            if now >= deadline_ns {
                break Finish::Deadline;
            }
            if let Some(p) = meter.poll(now, &shared) {
                progress(p);
            }
            let wait = meter.next().min(deadline_ns).saturating_sub(now);
            match notices.recv_timeout(Duration::from_nanos(wait)) {
                Ok(Notice::TaskEnded) => tasks -= 1,
                Ok(Notice::ServedEnded) => served += 1,
                Ok(Notice::Signal) => break Finish::Signal,
                Err(_) => {}
            }
        };

        shared.stop();
        let give_up = sys::now_ns().saturating_add(STOPPING_NS);
        for thread in threads {
            while !thread.is_finished() && sys::now_ns() < give_up {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(AgentOutcome {
            name: spec.name,
            finish,
            ..shared.outcome()
        })
    }
}

/// Makes progress lines from the counters.
struct Meter {
    origin_ns: u64,
    last_ns: u64,
    last_bytes: u64,
}

impl Meter {
    fn new(origin_ns: u64) -> Self {
        Self {
            origin_ns,
            last_ns: sys::now_ns(),
            last_bytes: 0,
        }
    }

    fn next(&self) -> u64 {
        self.last_ns.saturating_add(PROGRESS_NS)
    }

    fn poll(&mut self, now: u64, shared: &Shared) -> Option<Progress> {
        if now < self.next() {
            return None;
        }
        let bytes = shared.received_bytes.load(Ordering::Relaxed);
        let passed = (now - self.last_ns) as f64 / 1e9;
        let rate_bps = (bytes - self.last_bytes) as f64 * 8.0 / passed;
        self.last_ns = now;
        self.last_bytes = bytes;
        Some(Progress {
            seconds: now.saturating_sub(self.origin_ns) as f64 / 1e9,
            received_bytes: bytes,
            rate_bps,
            flows_done: shared.flows_done.load(Ordering::Relaxed),
            flows_failed: shared.flows_failed.load(Ordering::Relaxed),
        })
    }
}
