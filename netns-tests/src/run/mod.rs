//! `mef lab run`: brings a topology up for every repeat, variant and transport in
//! turn, measures, and puts the figures together.

mod emulator;
mod exec;
pub(crate) mod load;
pub(crate) mod measure;
mod network;
mod process;
mod progress;
pub(crate) mod router;

use std::path::PathBuf;

pub use exec::{exec, shell};
pub use network::{Build, Network};
pub use router::Status;

use crate::cli::{RunArgs, Transport};
use crate::netns::{self, NetnsError};
use crate::results::{Discarded, Machine, Results, Run};
use crate::topology::{Topology, TopologyError, Variant};
use measure::{measure, Case};
use progress::Progress;

/// An emulator later than this (p99) spoils the run: it is repeated.
const LATENESS_LIMIT_US: u64 = 500;
/// Times that a spoilt run is repeated.
const RETRIES: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Topology(#[from] TopologyError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("{name}: {message}")]
    Child { name: String, message: String },
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("interface {interface}: switching segmentation off: {source}")]
    Offload {
        interface: String,
        source: std::io::Error,
    },
    #[error("host {name:?} is not in this topology; its hosts are {known}")]
    NoHost { name: String, known: String },
    #[error("{0}")]
    Usage(String),
}

impl RunError {
    /// True if what the user gave is at fault, not what happened.
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Topology(_) | Self::NoHost { .. } | Self::Usage(_)
        )
    }
}

/// What a `mef lab run` delivers: all that was measured, and why it ended early if it did.
pub struct Outcome {
    pub results: Results,
    pub failure: Option<RunError>,
}

/// One run that is to be made.
struct Planned<'a> {
    variant: &'a Variant,
    index: usize,
    transport: Transport,
    repeat: u32,
}

/// Every repeat of every variant, transports side by side in time. Transports
/// without MEF routers skip variants that differ in nothing but the routers.
fn planned<'a>(
    variants: &'a [Variant],
    transports: &[Transport],
    repeats: u32,
) -> Vec<Planned<'a>> {
    let mut list = Vec::new();
    for repeat in 0..repeats {
        for (index, variant) in variants.iter().enumerate() {
            for &transport in transports {
                if transport == Transport::Mef || variant.same_without_routers.is_none() {
                    list.push(Planned {
                        variant,
                        index,
                        transport,
                        repeat,
                    });
                }
            }
        }
    }
    list
}

/// Runs everything that `args` asks for; `variants` as read from its topology.
///
/// # Errors
/// What stops the lab before its first run. A failure later is part of the outcome.
pub fn run(args: &RunArgs, variants: &[Variant], command: &str) -> Result<Outcome, RunError> {
    let Some(first) = variants.first().map(|v| &v.topology) else {
        return Err(RunError::Usage("the topology has no variant".to_owned()));
    };
    if first.loads.is_empty() {
        return Err(RunError::Usage(format!(
            "{}: nothing to measure: it has no [[load]] (`mef lab exec` and `shell` work without)",
            args.topology.display()
        )));
    }
    let mut transports = args.transport.clone();
    transports.dedup();
    netns::prepare()?;
    let mut outcome = Outcome {
        results: Results {
            machine: Machine::facts(),
            topology: first.name.clone(),
            description: first.description.clone(),
            command: command.to_owned(),
            ..Results::default()
        },
        failure: None,
    };
    let plan = planned(variants, &transports, args.repeat);
    let seconds = |t: &Topology| args.seconds.unwrap_or(t.seconds);
    let total = plan
        .iter()
        .map(|p| measure::expected_seconds(&p.variant.topology, seconds(&p.variant.topology)));
    let mut progress = Progress::new(plan.len(), total.sum());
    for p in &plan {
        let topology = &p.variant.topology;
        let case = Case {
            topology,
            transport: p.transport,
            repeat: p.repeat,
            variant: &p.variant.label,
            seconds: seconds(topology),
            seed: run_seed(args.seed, p.repeat, p.index),
            keep: args.keep,
        };
        progress.start_run(&case);
        match measure_until_punctual(&case, &mut progress, &mut outcome.results.discarded) {
            Ok(run) => {
                progress.finish_run(&run);
                outcome.results.runs.push(run);
            }
            Err(e) => {
                outcome.failure = Some(e);
                break;
            }
        }
    }
    progress.end();
    Ok(outcome)
}

/// Another path for every repeat and variant, the same one for every transport.
pub(crate) fn run_seed(seed: u64, repeat: u32, variant: usize) -> u64 {
    seed.wrapping_mul(1_000_003)
        .wrapping_add(u64::from(repeat) << 20)
        .wrapping_add(variant as u64)
}

fn measure_until_punctual(
    case: &Case<'_>,
    progress: &mut Progress,
    discarded: &mut Vec<Discarded>,
) -> Result<Run, RunError> {
    let mut tries = 0;
    loop {
        let mut run = measure(case, progress)?;
        let late = run.wan.lateness_p99_us;
        if late <= LATENESS_LIMIT_US {
            return Ok(run);
        }
        let reason =
            format!("the WAN emulator was {late} us late (p99), more than {LATENESS_LIMIT_US}");
        if tries == RETRIES {
            run.errors
                .push(format!("{reason}, in every one of {} tries", RETRIES + 1));
            return Ok(run);
        }
        tries += 1;
        progress.note(&format!("repeated: {reason}"));
        discarded.push(Discarded { reason, run });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::read;
    use std::path::Path;

    #[test]
    fn transports_alternate_and_linux_skips_what_only_routers_see() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies/short-flows.toml");
        let variants = read(&path, &[]).unwrap();
        let plan = planned(&variants, &[Transport::Cubic, Transport::Mef], 2);
        let short: Vec<(u32, usize, &str)> = plan
            .iter()
            .map(|p| (p.repeat, p.index, p.transport.name()))
            .collect();
        assert_eq!(short[..3], [(0, 0, "cubic"), (0, 0, "mef"), (0, 1, "mef")]);
        // 2 repeats x (3 losses for cubic + 6 variants for mef)
        assert_eq!(short.len(), 18);
        assert_eq!(run_seed(1, 0, 0), run_seed(1, 0, 0));
        assert_ne!(run_seed(1, 0, 0), run_seed(1, 1, 0));
        assert_ne!(run_seed(1, 0, 0), run_seed(1, 0, 1));
    }
}
