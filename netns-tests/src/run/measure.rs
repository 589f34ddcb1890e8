//! One run: a topology up, its idle path probed, its load carried, its figures.
//!
//! ```text
//!  up | warm-up | idle probe |<---------- load, `seconds` long ---------->| grace | collect
//!                            origin            window (tail)          snapshot
//! ```

use std::time::{Duration, Instant};

use mef_io::os::monotonic_now;
use nix::sys::signal::Signal;

use super::load::{plan, warm_up_time, AgentPlan, Ends, GRACE, IDLE_PROBE};
use super::network::{Build, Network};
use super::process::Process;
use super::progress::Progress;
use super::router::Status;
use super::RunError;
use crate::cli::Transport;
use crate::load::{AgentOutcome, Event};
use crate::netns::Namespaces;
use crate::results::{self, merge, tail_window, MergeInput, Run};
use crate::topology::{Side, Topology};
use crate::wan::stats::SERIES_STEP_S;
use crate::wan::Snapshot;

/// Between the agents' orders and the origin of the load.
const LEAD: Duration = Duration::from_millis(100);
/// An agent that does not answer for so long is given up.
const ANSWER: Duration = Duration::from_secs(10);
/// How often a router is asked what it knows of its line.
pub(crate) const ESTIMATES_EVERY: Duration = Duration::from_millis(500);
/// Behind MEF routers hosts run what most of the world runs.
const HOST_DEFAULT: &str = "cubic";

/// One run that is to be made.
pub struct Case<'a> {
    pub topology: &'a Topology,
    pub transport: Transport,
    pub repeat: u32,
    pub variant: &'a str,
    pub seconds: u32,
    pub seed: u64,
    pub keep: bool,
}

impl Case<'_> {
    pub fn describe(&self) -> String {
        let mut what = self.transport.name().to_owned();
        if self.transport == Transport::Mef {
            what += &format!(" ({})", self.topology.router.open.name());
        }
        if !self.variant.is_empty() {
            what += &format!(", {}", self.variant);
        }
        format!("{what}, repeat {}", self.repeat + 1)
    }
}

/// How long a run takes at most, about.
pub fn expected_seconds(topology: &Topology, seconds: u32) -> f64 {
    let idle = if topology.probe.is_some() {
        IDLE_PROBE.as_secs_f64()
    } else {
        0.0
    };
    f64::from(seconds) + idle + warm_up_time(topology).as_secs_f64() + 1.5
}

pub(crate) fn has_bulk(topology: &Topology) -> bool {
    topology.loads.iter().any(|l| l.kind.is_endless())
}

/// A load agent that runs.
struct Agent {
    process: Process,
    ends: Ends,
    outcome: Option<AgentOutcome>,
}

impl Agent {
    fn start(net: &Namespaces, plan: &AgentPlan, ends: Ends) -> Result<Self, RunError> {
        let name = format!("load agent {}", plan.spec.name);
        let process = Process::start_self(net, &plan.host, &name, &["lab", "agent"])?;
        Ok(Self {
            process,
            ends,
            outcome: None,
        })
    }

    /// Gives it its task; it is bound to its addresses when this returns.
    fn order(&mut self, plan: &AgentPlan) -> Result<(), RunError> {
        self.process.say(&plan.spec)?;
        match self.event(ANSWER)? {
            Some(Event::Listening { .. }) => Ok(()),
            Some(Event::Failed { message }) => Err(self.process.failed(&message)),
            other => Err(self.process.failed(&format!(
                "expected to hear that it listens, heard {other:?}"
            ))),
        }
    }

    fn event(&mut self, timeout: Duration) -> Result<Option<Event>, RunError> {
        let Some(line) = self.process.line(timeout)? else {
            return Ok(None);
        };
        serde_json::from_str(&line)
            .map(Some)
            .map_err(|e| self.process.failed(&format!("said {line:?}: {e}")))
    }

    /// Takes in what it has said; true once it has delivered.
    fn poll(&mut self, timeout: Duration) -> Result<bool, RunError> {
        let until = Instant::now() + timeout;
        while self.outcome.is_none() {
            match self.event(until.saturating_duration_since(Instant::now()))? {
                None => break,
                Some(Event::Done(outcome)) => self.outcome = Some(outcome),
                Some(Event::Failed { message }) => return Err(self.process.failed(&message)),
                Some(Event::Listening { .. } | Event::Progress(_)) => {}
            }
        }
        Ok(self.outcome.is_some())
    }

    fn deliver(&mut self, timeout: Duration) -> Result<AgentOutcome, RunError> {
        self.poll(timeout)?;
        let outcome = self
            .outcome
            .take()
            .ok_or_else(|| self.process.failed("delivers no outcome"))?;
        self.process.stop(Duration::from_secs(1));
        Ok(outcome)
    }

    /// Ends it and takes what it has.
    fn finish(mut self) -> Result<AgentOutcome, RunError> {
        if self.outcome.is_none() {
            self.process.signal(Signal::SIGTERM);
        }
        self.deliver(ANSWER)
    }
}

/// Makes one run.
pub fn measure(case: &Case<'_>, progress: &Progress) -> Result<Run, RunError> {
    let topology = case.topology;
    let mef = case.transport == Transport::Mef;
    let congestion = match case.transport {
        Transport::Mef => topology.congestion.as_deref().unwrap_or(HOST_DEFAULT),
        direct => direct.name(),
    };
    let mut network = Network::up(Build {
        topology,
        mef,
        seed: case.seed,
        keep: case.keep,
    })?;
    if case.keep {
        progress.note(&format!("      files: {}", network.scratch().display()));
    }
    let mut plan = plan(topology, case.seconds, case.seed, Some(congestion));
    let mut outcomes = Vec::new();

    let mut servers = Vec::new();
    for s in &plan.servers {
        let mut agent = Agent::start(network.namespaces(), s, Ends::Probe)?;
        agent.order(s)?;
        servers.push(agent);
    }
    let mut warm_up = Vec::new();
    for w in &plan.warm_up {
        let mut agent = Agent::start(network.namespaces(), w, Ends::Probe)?;
        agent.order(w)?;
        warm_up.push(agent);
    }
    for mut agent in warm_up {
        // Not of interest: what is lost here is lost to ARP.
        agent.deliver(warm_up_time(topology) + ANSWER)?;
    }
    if let Some(idle) = &plan.idle {
        let mut agent = Agent::start(network.namespaces(), idle, Ends::Probe)?;
        agent.order(idle)?;
        wait_with_progress(IDLE_PROBE, progress);
        outcomes.push(agent.deliver(ANSWER)?);
    }

    let mut clients = Vec::new();
    for (p, ends) in &plan.clients {
        clients.push(Agent::start(network.namespaces(), p, *ends)?);
    }
    let seconds = Duration::from_secs(u64::from(case.seconds));
    let origin = Instant::now() + LEAD;
    let origin_ns = (monotonic_now() + LEAD).as_nanos();
    for (agent, (p, ends)) in clients.iter_mut().zip(&mut plan.clients) {
        let deadline = match ends {
            Ends::WithRun => seconds,
            Ends::AfterGrace | Ends::Probe => seconds + GRACE + Duration::from_secs(1),
        };
        p.spec.origin_ns = Some(origin_ns);
        p.spec.deadline_ns =
            Some(origin_ns + u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX / 2));
        agent.order(p)?;
    }
    let before: Vec<Status> = network
        .routers()
        .iter_mut()
        .map(|r| r.status())
        .collect::<Result<_, _>>()?;

    let bulk = has_bulk(topology);
    let last_start = topology
        .loads
        .iter()
        .filter(|l| l.kind.is_endless())
        .map(|l| l.start)
        .max();
    let tail = bulk.then(|| {
        tail_window(
            seconds.as_secs_f64(),
            last_start.unwrap_or_default().as_secs_f64(),
        )
    });
    let window = tail.map_or(Duration::ZERO, |(from, _)| Duration::from_secs_f64(from));
    std::thread::sleep(origin.saturating_duration_since(Instant::now()));
    network.wan().origin()?;
    let mut windowed = false;
    let sender = match topology.payload_from() {
        Side::A => 0,
        Side::B => 1,
    };
    let watched = topology.router.auto.is_some();
    let mut estimates = Vec::new();
    let end = loop {
        let now = origin.elapsed();
        if watched && now >= ESTIMATES_EVERY * u32::try_from(estimates.len()).unwrap_or(u32::MAX) {
            if let Some(router) = network.routers().get_mut(sender) {
                estimates.extend(router.status()?.estimate(now.as_secs_f64()));
            }
        }
        if !windowed && now >= window {
            network.start_window()?;
            windowed = true;
        }
        if now >= seconds {
            break seconds;
        }
        let mut busy = bulk;
        for agent in clients.iter_mut().filter(|a| a.ends != Ends::Probe) {
            busy |= !agent.poll(Duration::ZERO)?;
        }
        for agent in &mut servers {
            agent.poll(Duration::ZERO)?;
        }
        if !busy {
            break now;
        }
        progress.tick();
        std::thread::sleep(Duration::from_millis(20));
    };
    let snapshot = network.wan().snapshot()?;
    let access = network.access_snapshots()?;
    let after: Vec<Status> = network
        .routers()
        .iter_mut()
        .map(|r| r.status())
        .collect::<Result<_, _>>()?;

    for mut agent in clients {
        // The probe has no end of its own when the load is over early.
        outcomes.push(match agent.ends {
            Ends::Probe => agent.finish()?,
            Ends::WithRun | Ends::AfterGrace => agent.deliver(GRACE + ANSWER)?,
        });
    }
    for agent in servers {
        outcomes.push(agent.finish()?);
    }
    let mut router = results::Router::default();
    for (after, before) in after.iter().zip(&before) {
        router.add(&after.since(before));
    }
    let payload_from = topology.payload_from();
    let line = topology.wan_from(payload_from);
    let wan = wan_figures(&snapshot, &access, payload_from);
    let queue = match payload_from {
        Side::A => &snapshot.a_to_b.queue_us,
        Side::B => &snapshot.b_to_a.queue_us,
    };
    let mut run = merge(&MergeInput {
        transport: case.transport.name(),
        repeat: case.repeat,
        open: mef.then(|| topology.router.open.name()),
        variant: case.variant,
        loss: line.loss.mean(),
        rate_bps: line
            .mean_rate(window, end)
            .map_or(0.0, |r| r.bits_per_second() as f64),
        seed: case.seed,
        origin_ns,
        seconds: end.as_secs_f64(),
        tail,
        outcomes: &outcomes,
        wan,
        router,
        queue_series: Some((0.0, SERIES_STEP_S, queue.clone())),
    });
    run.series.estimates = estimates;
    run.steps = results::steps(&run.series, line, run.seconds);
    run.errors.extend(doubts(&snapshot, "WAN emulator"));
    for snapshot in &access {
        run.errors.extend(doubts(snapshot, "access emulator"));
    }
    Ok(run)
}

fn wait_with_progress(time: Duration, progress: &Progress) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        progress.tick();
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn wan_figures(
    snapshot: &Snapshot,
    access: &[Snapshot],
    payload_from: Side,
) -> results::Wan {
    let d = match payload_from {
        Side::A => &snapshot.a_to_b,
        Side::B => &snapshot.b_to_a,
    };
    let lateness = access
        .iter()
        .map(|s| s.lateness_p99_us)
        .fold(snapshot.lateness_p99_us, u64::max);
    results::Wan {
        rate_bps: d.rate_bps,
        rtt_us: snapshot.rtt_us,
        loss: d.loss(),
        lateness_p99_us: lateness,
        offered: d.offered,
        delivered: d.delivered,
        queue_drops: d.queue_drops,
        loss_drops: d.loss_drops,
        queue_p50_us: d.queue_p50_us,
        queue_p95_us: d.queue_p95_us,
        queue_p99_us: d.queue_p99_us,
    }
}

/// What makes an emulator's figures doubtful, in words.
fn doubts(s: &Snapshot, name: &str) -> Vec<String> {
    let mut list = Vec::new();
    let missed = s.a_to_b.missed + s.b_to_a.missed;
    let refused = s.a_to_b.refused + s.b_to_a.refused;
    if missed > 0 {
        list.push(format!(
            "{name}: the kernel lost {missed} frames before it saw them"
        ));
    }
    if refused > 0 {
        list.push(format!(
            "{name}: the kernel refused {refused} frames that it sent"
        ));
    }
    if s.unsegmented > 0 {
        list.push(format!(
            "{name}: {} super-segments came in one piece",
            s.unsegmented
        ));
    }
    list
}
