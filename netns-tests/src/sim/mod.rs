//! The same topologies in one process with a virtual clock: what `mef lab run
//! --sim` runs. The routers are the real ones, over ports in memory; the WAN is
//! the emulator that the namespaces have; hosts are TCP endpoints that do what
//! the load agents do.
//!
//! ```text
//!  host --- [access emulator] --- router a === WAN emulator === router b --- host
//!           each a state machine that says when it wants to be looked at next
//! ```
//!
//! Nothing takes time but what the emulators make take time: processors are
//! infinitely fast and cables on the sites have no length. Equal seeds give
//! equal results, to the byte.

mod conn;
mod host;
mod simulation;
mod world;

pub use simulation::Simulation;

use crate::results::{Machine, Results};
use crate::run::run_seed;
use crate::topology::Variant;

/// What `mef lab run --sim` is asked for.
#[derive(Clone, Debug)]
pub struct SimRequest<'a> {
    pub variants: &'a [Variant],
    pub repeat: u32,
    /// Length of a run; the topology's own if not given.
    pub seconds: Option<u32>,
    pub seed: u64,
    /// For the results: the command as typed.
    pub command: &'a str,
}

#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error("{topology}: nothing to measure: it has no [[load]]")]
    NoLoad { topology: String },
    #[error("simulated hosts speak IPv4 only: leave out --sim, or set host.family=\"ipv4\"")]
    Ipv6Hosts,
    #[error("{topology}: hosts that pass no router (`foreign`) are Linux's, not the simulator's; run it without --sim")]
    Foreign { topology: String },
    #[error("the configuration of a simulated router is refused: {0}")]
    Config(#[from] mef_dataplane::config::ConfigError),
    #[error("a simulated router does not start: {0}")]
    Router(#[from] mef_dataplane::router::RouterError),
    #[error("the routers' link is not up after {seconds} virtual seconds; does the WAN lose everything?")]
    NotUp { seconds: u64 },
}

/// Runs every variant with MEF routers in the simulator.
///
/// # Errors
/// See [`SimError`].
pub fn run(request: &SimRequest<'_>) -> Result<Results, SimError> {
    let Some(first) = request.variants.first().map(|v| &v.topology) else {
        return Ok(Results::default());
    };
    if first.loads.is_empty() {
        return Err(SimError::NoLoad {
            topology: first.name.clone(),
        });
    }
    if first.has_foreign() {
        return Err(SimError::Foreign {
            topology: first.name.clone(),
        });
    }
    let mut results = Results {
        // The figures do not depend on the machine, nor on the day.
        machine: Machine {
            cpu: "simulator with a virtual clock".to_owned(),
            ..Machine::default()
        },
        topology: first.name.clone(),
        description: first.description.clone(),
        command: request.command.to_owned(),
        ..Results::default()
    };
    for repeat in 0..request.repeat {
        for (index, variant) in request.variants.iter().enumerate() {
            let topology = &variant.topology;
            let seconds = request.seconds.unwrap_or(topology.seconds);
            let seed = run_seed(request.seed, repeat, index);
            let mut run = Simulation::start(topology, seconds, seed)?.finish();
            run.repeat = repeat;
            run.variant = variant.label.clone();
            results.runs.push(run);
        }
    }
    Ok(results)
}
