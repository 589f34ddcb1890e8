//! From a topology's loads to what each load agent is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::SeedableRng;

use crate::load::{
    AgentSpec, FlowKind, FlowSpec, ProbeSpec, ServerSpec, Start, CBR, PROBE_IDLE, PROBE_LOADED,
};
use crate::topology::{Kind, Load, Topology};

const PROBE_PORT: u16 = 5200;
/// Flow id of the packets that only warm the paths up: neither of the measured probes.
const WARM_UP: u64 = 0;
/// How long a bulk flow may take to empty the path after its end.
pub const GRACE: Duration = Duration::from_secs(2);
/// Length of the probe on the idle path.
pub const IDLE_PROBE: Duration = Duration::from_secs(2);

/// One agent: the namespace it runs in and its task.
pub struct AgentPlan {
    pub host: String,
    pub spec: AgentSpec,
}

/// All agents of a run.
pub struct LoadPlan {
    /// Started first; end when asked.
    pub servers: Vec<AgentPlan>,
    /// A few packets along every path, so that no measured one waits for ARP.
    pub warm_up: Vec<AgentPlan>,
    /// Alone on the idle path.
    pub idle: Option<AgentPlan>,
    /// The load; `origin_ns` and `deadline_ns` are filled in when it starts.
    pub clients: Vec<(AgentPlan, Ends)>,
}

/// When a client agent is to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ends {
    /// With the run: what has not finished then is counted as such.
    WithRun,
    /// A bulk sender, shortly after the run.
    AfterGrace,
    /// The probe goes on while anything else does.
    Probe,
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Tells every host what to do. `congestion`: of the senders, the kernel's default if not given.
pub fn plan(topology: &Topology, seconds: u32, seed: u64, congestion: Option<&str>) -> LoadPlan {
    let run = Duration::from_secs(u64::from(seconds));
    let mut listen: BTreeMap<usize, Vec<ServerSpec>> = BTreeMap::new();
    let mut flows: BTreeMap<(usize, Ends), Vec<FlowSpec>> = BTreeMap::new();
    let mut constant: BTreeMap<usize, Vec<ProbeSpec>> = BTreeMap::new();
    let mut id = 0;
    for (i, load) in topology.loads.iter().enumerate() {
        let Some(target) = topology
            .hosts
            .get(load.to)
            .map(|h| SocketAddr::new(h.address(), load.port))
        else {
            continue;
        };
        let servers = listen.entry(load.to).or_default();
        let duration_ms = millis(run.saturating_sub(load.start));
        if load.kind == Kind::Cbr {
            servers.push(ServerSpec::Udp { listen: target });
            let list = constant.entry(load.from).or_default();
            for _ in 0..load.count {
                id += 1;
                list.push(ProbeSpec {
                    id: CBR + id,
                    target,
                    start_ms: millis(load.start),
                    duration_ms,
                    interval_us: u64::try_from(load.interval.as_micros()).unwrap_or(u64::MAX),
                    payload: load.sizes.first().map_or(0, |s| s.0 as usize),
                });
            }
            continue;
        }
        servers.push(ServerSpec::Tcp { listen: target });
        let ends = match load.kind {
            Kind::Transfer | Kind::Request => Ends::WithRun,
            Kind::Bulk | Kind::Stream | Kind::Cbr => Ends::AfterGrace,
        };
        let list = flows.entry((load.from, ends)).or_default();
        for (n, size) in sizes(load, seed ^ (i as u64)).into_iter().enumerate() {
            id += 1;
            list.push(FlowSpec {
                id,
                target,
                kind: match load.kind {
                    Kind::Bulk => FlowKind::Bulk,
                    Kind::Transfer => FlowKind::Transfer,
                    Kind::Request => FlowKind::Request,
                    Kind::Stream | Kind::Cbr => FlowKind::Stream,
                },
                size,
                rate_bps: load.rate.0,
                duration_ms,
                grace_ms: millis(GRACE),
                start: if n == 0 || load.together || load.kind.is_endless() {
                    Start::AtMs(millis(load.start))
                } else {
                    Start::AfterPreviousMs(millis(load.gap))
                },
                timeout_ms: load.timeout.map(millis),
                congestion: load.congestion.clone().or(congestion.map(str::to_owned)),
                source: None,
                source_port: None,
                hash: true,
                seed: seed.wrapping_add(id),
            });
        }
    }
    let mut idle = None;
    let mut clients: Vec<(AgentPlan, Ends)> = Vec::new();
    for ((host, ends), flows) in flows {
        if let Some(host) = topology.hosts.get(host) {
            let spec = AgentSpec {
                name: host.name.clone(),
                flows,
                ..AgentSpec::default()
            };
            clients.push((
                AgentPlan {
                    host: host.name.clone(),
                    spec,
                },
                ends,
            ));
        }
    }
    for (host, probes) in constant {
        if let Some(host) = topology.hosts.get(host) {
            let spec = AgentSpec {
                name: format!("{}, datagrams", host.name),
                probes,
                ..AgentSpec::default()
            };
            let plan = AgentPlan {
                host: host.name.clone(),
                spec,
            };
            clients.push((plan, Ends::AfterGrace));
        }
    }
    let address = |i: usize| {
        topology
            .hosts
            .get(i)
            .map(|h| SocketAddr::new(h.address(), PROBE_PORT))
    };
    let paths: BTreeSet<(usize, usize)> = topology
        .loads
        .iter()
        .map(|l| (l.from, l.to))
        .chain(topology.probe)
        .collect();
    let mut warm_up = Vec::new();
    for &(from, to) in &paths {
        if let (Some(sender), Some(target)) = (topology.hosts.get(from), address(to)) {
            let server = ServerSpec::Udp { listen: target };
            let servers = listen.entry(to).or_default();
            if !servers.contains(&server) {
                servers.push(server);
            }
            warm_up.push(probe_agent(
                &sender.name,
                "warm-up",
                WARM_UP,
                target,
                warm_up_time(topology),
            ));
        }
    }
    if let Some((from, to)) = topology.probe {
        if let (Some(sender), Some(target)) = (topology.hosts.get(from), address(to)) {
            idle = Some(probe_agent(
                &sender.name,
                "idle probe",
                PROBE_IDLE,
                target,
                IDLE_PROBE,
            ));
            let loaded = probe_agent(&sender.name, "probe", PROBE_LOADED, target, run);
            clients.push((loaded, Ends::Probe));
        }
    }
    let servers = listen
        .into_iter()
        .filter_map(|(host, servers)| {
            let host = topology.hosts.get(host)?;
            let spec = AgentSpec {
                name: format!("{}, server", host.name),
                servers,
                ..AgentSpec::default()
            };
            Some(AgentPlan {
                host: host.name.clone(),
                spec,
            })
        })
        .collect();
    LoadPlan {
        servers,
        warm_up,
        idle,
        clients,
    }
}

/// Two round trips of the longest path: ARP across it and a packet behind it.
pub fn warm_up_time(topology: &Topology) -> Duration {
    let access = topology
        .hosts
        .iter()
        .map(|h| h.access_delay)
        .max()
        .unwrap_or_default();
    2 * (topology.wan.rtt() + 2 * access) + Duration::from_millis(200)
}

fn probe_agent(
    host: &str,
    what: &str,
    id: u64,
    target: SocketAddr,
    duration: Duration,
) -> AgentPlan {
    AgentPlan {
        host: host.to_owned(),
        spec: AgentSpec {
            name: format!("{host}, {what}"),
            probes: vec![ProbeSpec {
                id,
                target,
                start_ms: 0,
                duration_ms: millis(duration),
                interval_us: 10_000,
                payload: 64,
            }],
            ..AgentSpec::default()
        },
    }
}

/// Every flow's size: each size `count` times, in an order drawn from `seed`.
fn sizes(load: &Load, seed: u64) -> Vec<u64> {
    if load.kind.is_endless() {
        return vec![0; load.count as usize];
    }
    let mut list: Vec<u64> = load
        .sizes
        .iter()
        .flat_map(|size| std::iter::repeat_n(size.0, load.count as usize))
        .collect();
    if load.sizes.len() > 1 {
        list.shuffle(&mut SmallRng::seed_from_u64(seed));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::read;

    fn topology(text: &str) -> Topology {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.toml");
        std::fs::write(&path, text).unwrap();
        read(&path, &[]).unwrap().remove(0).topology
    }

    #[test]
    fn short_flows_come_in_a_random_order_that_the_seed_decides() {
        let t =
            topology("description='x'\n[[load]]\nkind='transfer'\nsizes=['100kB','1MB']\ncount=50");
        let order = |seed| -> Vec<u64> {
            let p = plan(&t, 10, seed, None);
            p.clients[0].0.spec.flows.iter().map(|f| f.size).collect()
        };
        let first = order(1);
        assert_eq!(first.iter().filter(|s| **s == 100_000).count(), 50);
        assert_eq!(first.len(), 100);
        assert_eq!(first, order(1));
        assert_ne!(first, order(2));
        let p = plan(&t, 10, 1, Some("bbr"));
        let flows = &p.clients[0].0.spec.flows;
        assert_eq!(flows[0].start, Start::AtMs(0));
        assert!(flows[1..]
            .iter()
            .all(|f| f.start == Start::AfterPreviousMs(50)));
        assert!(flows.iter().all(|f| f.congestion.as_deref() == Some("bbr")));
        assert_eq!(p.clients[0].1, Ends::WithRun);
    }

    #[test]
    fn flow_numbers_are_unique_and_every_target_listens() {
        let t = topology(
            "description='x'\n[[load]]\nkind='bulk'\ncount=2\nstart='1s'\n[[load]]\nkind='request'\nfrom='b1'\nto='a1'\nsize='1MB'\ncount=3",
        );
        let p = plan(&t, 10, 1, None);
        let flows: Vec<&FlowSpec> = p.clients.iter().flat_map(|(c, _)| &c.spec.flows).collect();
        let mut ids: Vec<u64> = flows.iter().map(|f| f.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [1, 2, 3, 4, 5]);
        for f in flows {
            let expected = ServerSpec::Tcp { listen: f.target };
            assert!(
                p.servers.iter().any(|s| s.spec.servers.contains(&expected)),
                "{f:?}"
            );
            if f.kind == FlowKind::Bulk {
                assert_eq!((f.duration_ms, f.start), (9_000, Start::AtMs(1_000)));
            }
        }
        assert!(p.idle.is_some());
        // Every path that a flow takes is warmed up, and so is the probe's.
        let warm: Vec<&str> = p.warm_up.iter().map(|w| w.host.as_str()).collect();
        assert_eq!(warm, ["a1", "b1"]);
        // The probe goes with the bulk, from a to b.
        assert!(p.servers.iter().any(|s| s.host == "b1"
            && s.spec
                .servers
                .iter()
                .any(|x| matches!(x, ServerSpec::Udp { .. }))));
    }
}
