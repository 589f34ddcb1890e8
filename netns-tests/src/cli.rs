//! The command line of `mef lab`: builds a topology and measures it, or lends
//! its parts (the WAN emulator, one host of a topology) to other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use crate::frontier::{self, FrontierArgs};
use crate::gate;
use crate::report::{frontier_svg, print_table, write_combined, write_report, write_sweep};
use crate::results::Results;
use crate::run::{self, Outcome, RunError};
use crate::sim::{self, SimRequest};
use crate::sweep::{self, SweepArgs};
use crate::topology::{read, read_wan, Driver, Side};
use crate::wan;

/// Build topologies from network namespaces, emulate the WAN, measure real TCP over it.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Build a topology, put its load on it, print and write what was measured.
    Run(RunArgs),
    /// The WAN emulator alone, between two interfaces.
    ///
    /// It works on frames as on a wire: segmentation offload has to be off where
    /// they come from (`unsegmented` in its figures counts what was not). SIGUSR1
    /// prints the figures as JSON, and so does its end.
    Wan(WanArgs),
    /// Bring a topology up, run a command in one of its hosts, take it down.
    Exec(ExecArgs),
    /// Bring a topology up, open a shell in one of its hosts, take it down when it ends.
    Shell(ShellArgs),
    /// Run a matrix of RTT, loss, size and transport, and draw goodput against them.
    Sweep(SweepArgs),
    /// Draw goodput against queueing delay on lines of unknown capacity, with an oracle beside it.
    Frontier(FrontierArgs),
    /// Put several result files into one report.
    Report(ReportArgs),
    /// Say whether results are good enough (for scripts); exit code 1 if not.
    Check(CheckArgs),
    /// The load tool; reads its task from standard input.
    #[command(hide = true)]
    Agent,
}

/// Who carries the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Transport {
    /// Linux hosts with CUBIC, routers are plain Linux.
    Cubic,
    /// Linux hosts with BBR, routers are plain Linux.
    Bbr,
    /// Linux hosts as they come, routers are MEF routers.
    Mef,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::Mef => "mef",
        }
    }
}

/// How `exec` and `shell` build the routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RouterKind {
    /// MEF routers.
    Mef,
    /// Linux forwards.
    Direct,
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Topology file (TOML); `topologies/README.md` lists those that come with the source.
    pub topology: PathBuf,
    /// Transports to compare, interleaved.
    #[arg(long, value_delimiter = ',', default_values = ["cubic", "bbr", "mef"])]
    pub transport: Vec<Transport>,
    /// Runs of each transport and variant.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Length of a run in seconds; the topology's own if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=86400))]
    pub seconds: Option<u32>,
    /// Seed of every random choice: losses, order of the flows, payload.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Ports of the routers; the topology's own if not given.
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
    /// Write the results to this file.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write an HTML report into this directory.
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Run in the simulator, in one process with a virtual clock (transport mef only).
    #[arg(long)]
    pub sim: bool,
    /// Override a value of the topology, for example `--set wan.loss=0.05`.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The line that carries the payload follows this trace (Mahimahi's format).
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Keep the router's configuration and log files and say where they are.
    #[arg(long)]
    pub keep: bool,
}

#[derive(Clone, Debug, Args)]
pub struct WanArgs {
    /// Interface on side a.
    #[arg(long)]
    pub a: String,
    /// Interface on side b.
    #[arg(long)]
    pub b: String,
    /// File with a `[wan]` table as in a topology.
    #[arg(long)]
    pub config: PathBuf,
    /// Seed of losses, jitter and duplication.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Obey commands on standard input (origin, window, snapshot, quit), one a line.
    #[arg(long, hide = true)]
    pub controlled: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// Topology file.
    pub topology: PathBuf,
    /// Host to run the command in, for example `a1`.
    pub host: String,
    /// What the routers are.
    #[arg(long, value_enum, default_value = "mef")]
    pub transport: RouterKind,
    /// Run a shell command in another host meanwhile, for example `--with 'b1=iperf3 -s'`.
    #[arg(long, value_name = "HOST=COMMAND")]
    pub with: Vec<String>,
    /// Seed of the WAN's random choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Override a value of the topology.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct ShellArgs {
    /// Topology file.
    pub topology: PathBuf,
    /// Host to open the shell in, for example `a1`.
    pub host: String,
    /// What the routers are.
    #[arg(long, value_enum, default_value = "mef")]
    pub transport: RouterKind,
    /// Override a value of the topology.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Result files written by `mef lab run --json`.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// Directory for the HTML report.
    #[arg(long)]
    pub report: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Result files written by `mef lab run --json`; runs over MEF routers are checked, by the median of the repeats.
    #[arg(required = true)]
    pub results: Vec<PathBuf>,
    /// Least goodput as a share of the ceiling, such as 0.95.
    #[arg(long, value_name = "SHARE")]
    pub goodput: Option<f64>,
    /// Longest 99th percentile of the line's queue, such as 5ms; with it, no packet may be dropped there.
    #[arg(long, value_name = "TIME", value_parser = duration_arg)]
    pub queue: Option<std::time::Duration>,
}

fn duration_arg(text: &str) -> Result<std::time::Duration, String> {
    crate::topology::units::duration(text)
        .ok_or_else(|| "expected a time such as 5ms (us, ms, s, min)".to_owned())
}

/// Runs `mef lab ...`. Exit code 0: done; 1: failed; 2: bad input; else that of the command run.
pub fn main(args: LabArgs) -> ExitCode {
    let done = match args.command {
        LabCommand::Run(args) => run_command(&args),
        LabCommand::Sweep(args) => sweep_command(&args),
        LabCommand::Frontier(args) => frontier_command(&args),
        LabCommand::Wan(args) => wan_command(&args),
        LabCommand::Exec(args) => run::exec(&args),
        LabCommand::Shell(args) => run::shell(&args),
        LabCommand::Report(args) => report_command(&args),
        LabCommand::Check(args) => check_command(&args),
        LabCommand::Agent => Ok(crate::load::agent_main()),
    };
    done.unwrap_or_else(|e| {
        eprintln!("mef lab: {e}");
        ExitCode::from(if e.is_input() { 2 } else { 1 })
    })
}

fn run_command(args: &RunArgs) -> Result<ExitCode, RunError> {
    let mut variants = read(&args.topology, &args.set)?;
    if let Some(trace) = &args.trace {
        let path = std::path::absolute(trace).map_err(|source| RunError::File {
            path: trace.clone(),
            source,
        })?;
        let side = variants
            .first()
            .map_or(Side::A, |v| v.topology.payload_from());
        let (from, to) = (side.letter(), side.other().letter());
        let mut sets = args.set.clone();
        sets.push(format!(
            "wan.{from}_to_{to}.trace={:?}",
            path.display().to_string()
        ));
        variants = read(&args.topology, &sets)?;
    }
    if let Some(driver) = args.driver {
        for v in &mut variants {
            v.topology.router.driver = driver;
        }
    }
    let command = command_line();
    let outcome = if args.sim {
        if args.transport != [Transport::Mef] {
            return Err(RunError::Usage(
                "--sim runs MEF routers only: add --transport mef".to_owned(),
            ));
        }
        let request = SimRequest {
            variants: &variants,
            repeat: args.repeat,
            seconds: args.seconds,
            seed: args.seed,
            command: &command,
        };
        let results = sim::run(&request).map_err(|e| RunError::Usage(e.to_string()))?;
        Outcome {
            results,
            failure: None,
        }
    } else {
        run::run(args, &variants, &command)?
    };
    let Outcome { results, failure } = outcome;
    if !results.runs.is_empty() {
        print!("{}", print_table(&results));
    }
    // What was measured before a failure is worth keeping.
    if let Some(path) = &args.json {
        results
            .write(path)
            .map_err(|e| RunError::Usage(e.to_string()))?;
    }
    if let Some(dir) = &args.report {
        let path = write_report(dir, &results).map_err(|source| RunError::File {
            path: dir.clone(),
            source,
        })?;
        println!("report: {}", path.display());
    }
    match failure {
        Some(e) => Err(e),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn sweep_command(args: &SweepArgs) -> Result<ExitCode, RunError> {
    let done = sweep::sweep(args, &command_line())?;
    print!("{}", sweep::table(&done));
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&done).map_err(|e| RunError::Usage(e.to_string()))?;
        std::fs::write(path, text + "\n").map_err(|source| RunError::File {
            path: path.clone(),
            source,
        })?;
    }
    if let Some(dir) = &args.report {
        let path = write_sweep(dir, &done).map_err(|source| RunError::File {
            path: dir.clone(),
            source,
        })?;
        println!("report: {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn frontier_command(args: &FrontierArgs) -> Result<ExitCode, RunError> {
    let panels = frontier::frontier(args, &command_line())?;
    for panel in &panels {
        println!("{}", panel.title);
        for (curve, p) in panel
            .curves
            .iter()
            .flat_map(|c| c.points.iter().map(move |p| (c, p)))
        {
            println!(
                "  {:26} {:18} {:5.1}% {:7.0} ms",
                curve.name,
                p.name,
                100.0 * p.goodput,
                p.queue_ms
            );
        }
    }
    std::fs::write(&args.svg, frontier_svg(&panels)).map_err(|source| RunError::File {
        path: args.svg.clone(),
        source,
    })?;
    println!("drawing: {}", args.svg.display());
    Ok(ExitCode::SUCCESS)
}

fn wan_command(args: &WanArgs) -> Result<ExitCode, RunError> {
    let config = if args.controlled {
        let fail = |source| RunError::File {
            path: args.config.clone(),
            source,
        };
        let text = std::fs::read_to_string(&args.config).map_err(fail)?;
        serde_json::from_str(&text).map_err(|e| fail(e.into()))?
    } else {
        read_wan(&args.config)?
    };
    wan::run::run(&args.a, &args.b, &config, args.seed, args.controlled).map_err(|e| {
        RunError::Child {
            name: "WAN emulator".to_owned(),
            message: e.to_string(),
        }
    })
}

fn report_command(args: &ReportArgs) -> Result<ExitCode, RunError> {
    let all: Vec<Results> = args
        .results
        .iter()
        .map(|path| Results::read(path))
        .collect::<Result<_, _>>()
        .map_err(|e| RunError::Usage(e.to_string()))?;
    for results in &all {
        println!("{}", print_table(results));
    }
    let path = write_combined(&args.report, &all).map_err(|source| RunError::File {
        path: args.report.clone(),
        source,
    })?;
    println!("report: {}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn check_command(args: &CheckArgs) -> Result<ExitCode, RunError> {
    let limits = gate::Limits {
        goodput: args.goodput,
        queue: args.queue,
    };
    let mut all_good = true;
    for path in &args.results {
        let results = Results::read(path).map_err(|e| RunError::Usage(e.to_string()))?;
        for verdict in gate::check(&results, &limits) {
            println!("{verdict}");
            all_good &= verdict.failures.is_empty();
        }
    }
    Ok(if all_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The command as it could be typed again.
fn command_line() -> String {
    let quote = |arg: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    let rest = std::env::args_os()
        .skip(1)
        .map(|a| quote(a.to_string_lossy().into_owned()));
    std::iter::once("mef".to_owned())
        .chain(rest)
        .collect::<Vec<_>>()
        .join(" ")
}
