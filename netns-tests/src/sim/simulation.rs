//! One run in the simulator, in the phases of one in namespaces.
//!
//! ```text
//!  links up | warm-up | idle probe |<------- load ------->| grace | figures
//!  '------- start --------------'  origin   advance_to     '--- finish ---'
//! ```

use std::time::Duration;

use mef_dataplane::control::Snapshot;
use mef_packet::Instant;

use super::world::World;
use super::SimError;
use crate::load::{AgentOutcome, Finish, FlowSpec};
use crate::results::{self, merge, tail_window, MergeInput, Run};
use crate::run::load::{plan, warm_up_time, GRACE, IDLE_PROBE};
use crate::run::measure::{has_bulk, wan_figures, ESTIMATES_EVERY};
use crate::run::Status;
use crate::topology::{Side, Topology};
use crate::wan::stats::SERIES_STEP_S;

/// A handshake over a long path that loses every fifth frame takes its time.
const READY: Duration = Duration::from_secs(20);
/// Between the end of the idle probe and the origin of the load.
const LEAD: Duration = Duration::from_millis(500);
/// How often the end of the load is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// A topology with MEF routers and its load, on a virtual clock.
pub struct Simulation {
    topology: Topology,
    seconds: Duration,
    seed: u64,
    world: World,
    origin: Instant,
    before: Vec<Status>,
    /// Of the steady figures, from the origin.
    tail: Option<(f64, f64)>,
    windowed: bool,
}

fn status(snapshot: &Snapshot) -> Status {
    // What one writes for the control socket the other reads from there.
    serde_json::to_value(snapshot)
        .and_then(serde_json::from_value)
        .unwrap_or_default()
}

impl Simulation {
    /// Builds the network, brings the links up, measures the idle path and
    /// starts the load, whose origin is the time at which this returns.
    ///
    /// # Errors
    /// See [`SimError`].
    pub fn start(topology: &Topology, seconds: u32, seed: u64) -> Result<Self, SimError> {
        let mut world = World::new(topology, seed)?;
        let limit = Instant::ZERO + READY;
        while !statuses(&world).iter().all(Status::is_up) {
            if world.now >= limit {
                return Err(SimError::NotUp {
                    seconds: READY.as_secs(),
                });
            }
            world.run_until(world.now + LOOK);
        }
        let mut plan = plan(topology, seconds, seed, None);
        for (client, _) in &mut plan.clients {
            for flow in &mut client.spec.flows {
                // One block of payload for all flows, each of which begins elsewhere in it.
                flow.seed = seed;
            }
        }
        for server in &plan.servers {
            if let Some(host) = world.host(&server.host) {
                for s in &server.spec.servers {
                    host.listen(s);
                }
            }
        }
        start_probes(&mut world, plan.warm_up.iter().map(|p| (&p.host, &p.spec)));
        world.run_until(world.now + warm_up_time(topology));
        if plan.idle.is_some() {
            start_probes(&mut world, plan.idle.iter().map(|p| (&p.host, &p.spec)));
            world.run_until(world.now + IDLE_PROBE);
        }
        world.run_until(world.now + LEAD + topology.wan.rtt());

        let origin = world.now;
        for (client, _) in &plan.clients {
            if let Some(host) = world.host(&client.host) {
                host.start_flows(origin, &client.spec.flows);
                for probe in &client.spec.probes {
                    host.start_probe(origin, probe);
                }
            }
        }
        if let Some(wan) = world.emulators.first_mut() {
            wan.set_origin(origin);
        }
        let last_start = topology
            .loads
            .iter()
            .filter(|l| l.kind.is_endless())
            .map(|l| l.start)
            .max();
        let tail = has_bulk(topology).then(|| {
            tail_window(
                f64::from(seconds),
                last_start.unwrap_or_default().as_secs_f64(),
            )
        });
        Ok(Self {
            before: statuses(&world),
            topology: topology.clone(),
            seconds: Duration::from_secs(u64::from(seconds)),
            seed,
            world,
            origin,
            tail,
            windowed: false,
        })
    }

    /// Time since the origin of the load.
    pub fn elapsed(&self) -> Duration {
        self.world.now.since(self.origin)
    }

    /// Goes on to a time after the origin, the end of the load at the latest.
    pub fn advance_to(&mut self, at: Duration) {
        let at = at.min(self.seconds);
        let window = self.window();
        if !self.windowed && at >= window {
            self.world.run_until(self.origin + window);
            for emulator in &mut self.world.emulators {
                emulator.start_window(self.origin + window);
            }
            self.windowed = true;
        }
        self.world.run_until(self.origin + at);
    }

    /// What the router of `side` says of itself now.
    pub fn status(&self, side: Side) -> Snapshot {
        let router = self.world.router(side);
        router.map_or_else(Snapshot::default, |r| {
            r.snapshot(self.world.now, Duration::ZERO)
        })
    }

    /// The router of `side` is killed and another started in its place.
    ///
    /// # Errors
    /// See [`SimError`].
    pub fn restart_router(&mut self, side: Side) -> Result<(), SimError> {
        self.world.restart(side)
    }

    /// The sender of flow `id` has nothing to send from one time after the
    /// origin to another. To be said before the flow starts.
    pub fn pause(&mut self, id: u64, from: Duration, to: Duration) {
        let (from, to) = (self.origin + from, self.origin + to);
        for host in self.world.hosts_mut() {
            host.pause(id, from, to);
        }
    }

    /// What the hosts have accounted for so far.
    pub fn outcomes(&self) -> Vec<AgentOutcome> {
        self.world.hosts().map(|h| h.outcome.clone()).collect()
    }

    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.tail.map_or(0.0, |(from, _)| from))
    }

    fn is_busy(&self) -> bool {
        self.world.hosts().any(super::host::Host::is_busy)
    }

    /// Carries the load to its end and puts the figures together.
    pub fn finish(mut self) -> Run {
        let topology = &self.topology.clone();
        let bulk = has_bulk(topology);
        let mut estimates = Vec::new();
        while self.elapsed() < self.seconds && (bulk || self.is_busy()) {
            let now = self.elapsed();
            if now >= ESTIMATES_EVERY * u32::try_from(estimates.len()).unwrap_or(u32::MAX) {
                let sender = status(&self.status(topology.payload_from()));
                estimates.extend(sender.estimate(now.as_secs_f64()));
            }
            self.advance_to(self.elapsed() + LOOK);
        }
        if !self.windowed {
            self.advance_to(self.elapsed());
        }
        let end = self.elapsed();
        let now = self.world.now;
        let mut snapshots = self.world.emulators.iter().map(|e| e.snapshot(now));
        let snapshot = snapshots.next().unwrap_or_default();
        let access: Vec<_> = snapshots.collect();
        let after = statuses(&self.world);

        let is_bulk = |f: &FlowSpec| f.kind.is_timed();
        for host in self.world.hosts_mut() {
            host.give_up(now, |f| !is_bulk(f));
            if !bulk {
                host.stop_probes();
            }
        }
        let last = now + GRACE + Duration::from_secs(1);
        while self.is_busy() && self.world.now < last {
            self.world.run_until(self.world.now + LOOK);
        }
        let now = self.world.now;
        for host in self.world.hosts_mut() {
            host.give_up(now, is_bulk);
        }
        // What is under way, resets and the last probes, still counts.
        self.world.run_until(now + topology.wan.rtt() + LOOK);

        let mut router = results::Router::default();
        for (after, before) in after.iter().zip(&self.before) {
            router.add(&after.since(before));
        }
        let mut outcomes = self.outcomes();
        for o in &mut outcomes {
            // The hosts of bulk flows end a grace later than the load: that is no failure.
            if bulk && o.finish == Finish::Deadline && o.clients.iter().all(|c| c.error.is_none()) {
                o.finish = Finish::Complete;
            }
        }
        let payload_from = topology.payload_from();
        let line = topology.wan_from(payload_from);
        let queue = match payload_from {
            Side::A => &snapshot.a_to_b.queue_us,
            Side::B => &snapshot.b_to_a.queue_us,
        };
        let mut run = merge(&MergeInput {
            transport: "mef",
            repeat: 0,
            open: Some(topology.router.open.name()),
            variant: "",
            loss: line.loss.mean(),
            rate_bps: line
                .mean_rate(self.window(), end)
                .map_or(0.0, |r| r.bits_per_second() as f64),
            seed: self.seed,
            origin_ns: self.origin.as_nanos(),
            seconds: end.as_secs_f64(),
            tail: self.tail,
            outcomes: &outcomes,
            wan: wan_figures(&snapshot, &access, payload_from),
            router,
            queue_series: Some((0.0, SERIES_STEP_S, queue.clone())),
        });
        run.series.estimates = estimates;
        run.steps = crate::results::steps(&run.series, line, run.seconds);
        run
    }
}

fn statuses(world: &World) -> Vec<Status> {
    let now = world.now;
    let routers = world.routers();
    routers
        .map(|r| status(&r.snapshot(now, Duration::ZERO)))
        .collect()
}

fn start_probes<'a>(
    world: &mut World,
    agents: impl Iterator<Item = (&'a String, &'a crate::load::AgentSpec)>,
) {
    let now = world.now;
    for (host, spec) in agents {
        if let Some(host) = world.host(host) {
            for probe in &spec.probes {
                host.start_probe(now, probe);
            }
        }
    }
}
