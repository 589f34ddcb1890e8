//! The threads of a router's workers: the first is the calling one, so that a
//! router with one worker has no other. What they do together is done here: the
//! counters of handshakes are kept for all, and they end when none has a flow left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mef_io::Port;

use super::{Bell, Crew, Shared};
use crate::config::Config;
use crate::persist::{Counters, Keeper};
use crate::report::{Asker, Mailbox};

/// The counters that outlive a restart, of all workers. Used once a second by each.
#[derive(Debug)]
pub struct Records(Mutex<Keeper>);

impl Records {
    pub fn new(keeper: Keeper) -> Self {
        Self(Mutex::new(keeper))
    }

    /// What is known of the peers.
    pub fn stored(&self) -> Counters {
        let keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.stored().clone()
    }

    /// As [`Keeper::used`], where another worker may have come further already.
    pub fn used(&self, own: u64, mut peers: BTreeMap<String, u64>) {
        let mut keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|key, n| keeper.stored().peers.get(key).is_none_or(|old| *n > *old));
        keeper.used(own, peers);
    }
}

/// The parts of the workers of a configuration, which the asker's questions wake; none for one alone.
pub fn crew<B>(config: &Config, key: u64, asker: &Asker) -> Vec<Option<Crew<B>>> {
    if config.workers <= 1 {
        return vec![None];
    }
    let (ports, peers) = (config.ports.len(), config.peers.len());
    let shared = Arc::new(Shared::new(config.workers, ports, peers, key));
    let bells = asker.bells().map(|b| Arc::new(Bell::new(b))).collect();
    Crew::all(&shared, bells).into_iter().map(Some).collect()
}

/// What becomes of the others when a worker ends: in order it has told them before.
struct End<'a> {
    stop: &'a AtomicBool,
    shared: Option<Arc<Shared>>,
    in_order: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if self.in_order {
            return;
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(shared) = &self.shared {
            shared.drained();
        }
    }
}

/// Runs `work` for each worker on a thread of its own, with its ports, its mailbox and its part of the
/// crew, until all have ended; where one fails the others are stopped.
///
/// # Errors
/// What the first that failed says; `none` where a thread could not be started.
pub fn run_all<P: Port + Send, E: Send>(
    ports: Vec<Vec<P>>,
    mailboxes: Vec<Mailbox>,
    crew: Vec<Option<Crew<P::Buf>>>,
    stop: &AtomicBool,
    none: impl Fn(std::io::Error) -> E,
    work: impl Fn(Vec<P>, Mailbox, Option<Crew<P::Buf>>) -> Result<(), E> + Sync,
) -> Result<(), E>
where
    P::Buf: Send,
{
    let mut parts = ports.into_iter().zip(mailboxes).zip(crew);
    let Some(((ports, mailbox), first)) = parts.next() else {
        return Ok(());
    };
    let work = &work;
    let guarded = |ports, mailbox, crew: Option<Crew<P::Buf>>| {
        let mut end = End {
            stop,
            shared: crew.as_ref().map(|c| Arc::clone(&c.shared)),
            in_order: false,
        };
        let result = work(ports, mailbox, crew);
        end.in_order = result.is_ok();
        result
    };
    let guarded = &guarded;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        let mut failed = None;
        for (n, ((ports, mailbox), crew)) in (1..).zip(parts) {
            let thread = std::thread::Builder::new().name(format!("mef-worker-{n}"));
            match thread.spawn_scoped(scope, move || guarded(ports, mailbox, crew)) {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    failed = Some(none(e));
                }
            }
        }
        let mut result = failed.map_or(Ok(()), Err);
        if result.is_ok() {
            result = guarded(ports, mailbox, first);
        }
        for thread in threads {
            // A worker that panicked has said so on stderr.
            if let Ok(other) = thread.join() {
                result = result.and(other);
            }
        }
        result
    })
}
