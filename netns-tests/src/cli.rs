//! The command line of `mef lab`: builds a topology and measures it, or lends
//! its parts (the WAN emulator, one host of a topology) to other programs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use crate::{run, wan};

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
    Wan(WanArgs),
    /// Bring a topology up, run a command in one of its hosts, take it down.
    Exec(ExecArgs),
    /// Bring a topology up, open a shell in one of its hosts, take it down when it ends.
    Shell(ShellArgs),
    /// Put several result files into one report.
    Report(ReportArgs),
    /// The load tool; reads its task from standard input.
    #[command(hide = true)]
    Agent,
    /// Runs a command in a namespace of the lab; it dies with the lab.
    #[command(hide = true)]
    Enter(EnterArgs),
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
    /// Ports of the routers.
    #[arg(long, default_value = "af_packet", value_parser = ["af_packet"])]
    pub driver: String,
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
pub struct EnterArgs {
    namespace: String,
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs `mef lab ...`. Exit code 0: done; 1: failed; 2: bad input; else that of the command run.
pub fn main(args: LabArgs) -> ExitCode {
    let _ = (run::NAME, wan::NAME);
    match args.command {
        LabCommand::Run(_) => todo_exit("run"),
        LabCommand::Wan(_) => todo_exit("wan"),
        LabCommand::Exec(_) => todo_exit("exec"),
        LabCommand::Shell(_) => todo_exit("shell"),
        LabCommand::Report(_) => todo_exit("report"),
        LabCommand::Agent => todo_exit("agent"),
        LabCommand::Enter(_) => todo_exit("enter"),
    }
}

fn todo_exit(what: &str) -> ExitCode {
    eprintln!("mef lab {what}: not there yet");
    ExitCode::FAILURE
}
