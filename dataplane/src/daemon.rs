//! The daemon: opens the ports that the configuration names, runs the router
//! on this thread and publishes its state until it is told to stop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use mef_io::{os, Port};

use crate::config::{self, Config, ConfigError};
use crate::control::{ControlError, Standing};
use crate::metrics::{MetricsError, MetricsServer};
use crate::moderation::{Moderation, Sleep};
use crate::persist::Keeper;
use crate::ports::{self, Backoff, Ports};
use crate::report::{mailboxes, Asker, Mailbox};
use crate::router::{Router, RouterError, Seed};
use crate::troubles::Troubles;
use crate::workers::{self, Crew, Records};

/// Why the router does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the router needs {0}: run it as root, or `setcap cap_net_raw,cap_net_admin,cap_sys_nice+ep` on the binary")]
    Capability(&'static str),
    #[error(transparent)]
    Port(#[from] mef_io::PortError),
    #[error(transparent)]
    Router(#[from] RouterError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("no socket to ask the router through: {0}")]
    Mailbox(std::io::Error),
    #[error("starting a worker's thread: {0}")]
    Thread(std::io::Error),
    #[error("waiting for packets: {0}")]
    Wait(std::io::Error),
    #[error("the system gives no random numbers: {0}")]
    Entropy(getrandom::Error),
    #[error("signal handler: {0}")]
    Signal(std::io::Error),
}

impl DaemonError {
    /// 2 where the user's input is wrong, 1 where the machine refuses.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            _ => 1,
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut b = [0; N];
    getrandom::fill(&mut b)?;
    Ok(b)
}

/// Longest time that the router waits for packets: an operator's question wakes it, but not where
/// it has as many ports as descriptors can be waited for.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// How often it is looked whether counters are to be kept.
const KEEP: Duration = Duration::from_secs(1);
/// Real-time priority of the pacing thread: below what administrators keep for watchdogs.
const PRIORITY: u8 = 20;

/// Runs the router of the configuration in `file` until SIGINT or SIGTERM, and then until its flows
/// have ended or their time is over.
///
/// # Errors
/// See [`DaemonError`]; nothing was started then.
pub fn run(file: &Path) -> Result<(), DaemonError> {
    let config = config::load(file)?;
    for cap in [os::Cap::NetRaw, os::Cap::NetAdmin] {
        if !os::has_capability(cap) {
            return Err(DaemonError::Capability(cap.name()));
        }
    }
    // Once here, so that a machine without randomness is told before anything starts.
    let key = u64::from_be_bytes(random().map_err(DaemonError::Entropy)?);
    let key = workers::flow_key(key, config.peers.len());
    let ports = ports::open(&config, key)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second one does not wait for flows.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .map_err(DaemonError::Signal)?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(DaemonError::Signal)?;
    }
    // Before this thread gets its priority, which theirs would inherit.
    let (asker, mailboxes) = mailboxes(config.workers).map_err(DaemonError::Mailbox)?;
    let control = config.control.as_deref();
    let troubles = Troubles::default();
    let _control = control
        .map(|path| Standing::start(path, asker.clone(), &troubles))
        .transpose()?;
    let metrics = config.metrics;
    let _metrics = metrics
        .map(|address| MetricsServer::start(address, &asker))
        .transpose()?;
    let boot_id = u64::from_be_bytes(random().map_err(DaemonError::Entropy)?);
    let state = config.state.as_deref();
    let (keeper, initiation_base) = Keeper::start(state, os::realtime_nanos(), &troubles);
    let common = Common {
        records: Records::new(keeper),
        stop: &stop,
        troubles,
        boot_id,
        initiation_base,
        config,
    };
    mef_protocol::repair::warm_up();
    match ports {
        Ports::AfPacket(ports) => start(&common, ports, mailboxes, key, &asker),
        #[cfg(feature = "dpdk")]
        Ports::Dpdk(ports) => start(&common, ports, mailboxes, key, &asker),
    }
}

/// What all workers have in common.
struct Common<'a> {
    config: Config,
    records: Records,
    stop: &'a AtomicBool,
    troubles: Troubles,
    boot_id: u64,
    initiation_base: u64,
}

fn start<P: Port + Send>(
    common: &Common<'_>,
    ports: Vec<Vec<P>>,
    mailboxes: Vec<Mailbox>,
    key: u64,
    asker: &Asker,
) -> Result<(), DaemonError>
where
    P::Buf: Send,
{
    let crew = workers::crew(&common.config, key, asker);
    let work = |ports, mailbox, crew| serve(common, ports, mailbox, crew);
    workers::run_all(
        ports,
        mailboxes,
        crew,
        common.stop,
        DaemonError::Thread,
        work,
    )
}

/// One worker, on the calling thread.
fn serve<P: Port>(
    common: &Common<'_>,
    mut ports: Vec<P>,
    mut mailbox: Mailbox,
    crew: Option<Crew<P::Buf>>,
) -> Result<(), DaemonError> {
    let (config, stop) = (common.config.clone(), common.stop);
    ports.iter_mut().for_each(Port::attach);
    let entropy = Box::new(|| loop {
        if let Ok(b) = random() {
            return b;
        }
    });
    if config.realtime && os::set_realtime_priority(PRIORITY).is_err() {
        tracing::warn!(
            "no real-time priority (needs CAP_SYS_NICE): pacing will be coarser on a busy machine"
        );
    }
    if let Err(e) = os::set_timer_slack_ns(1) {
        tracing::warn!("timer slack stays at its default: {e}");
    }
    let seed = Seed {
        entropy,
        boot_id: common.boot_id,
        initiation_base: common.initiation_base,
    };
    let name = config.name.clone();
    // Ports that cannot wake us are looked at again and again.
    let polled = ports.iter().any(|p| p.poll_fd().is_none());
    let mut backoff = Backoff::new(os::monotonic_now());
    let mut moderation = Moderation::of(os::monotonic_now(), &config);
    let drain = config.drain;
    let shared = crew.as_ref().map(|c| Arc::clone(&c.shared));
    let mut drained = false;
    let mut router = Router::with_crew(os::monotonic_now(), config, ports, seed, crew)?;
    router.accepted_before(&common.records.stored());
    router.tell_troubles(common.troubles.clone());
    let mut fds = router.poll_fds();
    let question = fds.len();
    // With too many ports to wait for questions as well, they are looked for at every turn.
    let waits = question < os::MAX_POLL_FDS;
    if waits {
        fds.push(mailbox.poll_fd());
    }
    let ports = os::Ready(if waits { !(1 << question) } else { u64::MAX });
    let mut ready = ports;
    tracing::info!(router = name, "running");
    let mut keep_at = mef_packet::Instant::ZERO;
    loop {
        let now = os::monotonic_now();
        if stop.load(Ordering::Relaxed) {
            // Not in the turn that begins it: there may be last words.
            if !drained && router.is_drained(now) {
                drained = true;
                if let Some(shared) = &shared {
                    shared.drained();
                }
            }
            // What comes to one worker may be another's, so all stay until the last.
            if drained && shared.as_ref().is_none_or(|s| s.all_drained()) {
                break;
            }
            router.drain(now, drain);
        }
        let listens = polled || moderation.listens(now);
        let looks = |port| polled || (listens && ready.contains(port));
        let turn = router.turn(now, looks);
        let report = |query| router.report(now, os::process_cpu_time(), query);
        let asked = mailbox.answer(ready.contains(question), report);
        if now >= keep_at {
            keep_at = now + KEEP;
            let (own, peers) = router.initiation_counters(now);
            common.records.used(own, peers);
        }
        if (0..question).any(looks) {
            moderation.took(now, turn.packets);
        }
        if turn.scarce {
            moderation.listen();
        }
        let after = os::monotonic_now();
        // What is moderated looks again when it is time to; else more may be there already.
        let prompt = turn.packets > 0 && (turn.scarce || moderation.is_off());
        let wake = match turn.again || asked || prompt {
            true => after,
            false => router.next_wake(now).min(now + LONGEST_WAIT),
        };
        let mut sleep = if polled {
            let busy = turn.packets > 0 || wake == after;
            Sleep::Listening(wake.since(after).min(backoff.limit(after, busy)))
        } else {
            moderation.sleep(after, wake)
        };
        if !sleep.is_over() && !router.sleep() {
            sleep = sleep.over();
        }
        ready = match sleep {
            Sleep::Listening(wait) => os::poll_fds(&fds, wait),
            Sleep::Deaf(Duration::ZERO) => Ok(ports),
            Sleep::Deaf(wait) => os::poll_fds(&[], wait).map(|_| ports),
        }
        .map_err(DaemonError::Wait)?;
        router.wake();
    }
    tracing::info!(router = name, "stopped");
    Ok(())
}
