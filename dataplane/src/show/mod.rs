//! `mef show` and `mef top`: a running router's state for people and programs.
//! Both ask on its control socket, page by page where there is much.

mod format;
mod screen;
mod table;
mod tables;
mod top;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::config::{self, ConfigError};
use crate::control;
use crate::report::{Drop, Flow, Link, Neighbour, Page, Port, Query, Route, Worker};

use table::Table;
use tables::Tabular;

/// How long the router may take for one page.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which router.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The router's configuration, for the control socket that it names.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The router's control socket.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    what: What,
    #[command(flatten)]
    which: Which,
    /// For people or for programs.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub struct TopArgs {
    #[command(flatten)]
    which: Which,
    /// Seconds from one look to the next, 0.1 to 60.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Split flows.
    Flows,
    /// Links to peers.
    Links,
    Ports,
    /// Packets dropped, by stage and reason.
    Drops,
    Routes,
    /// Stations on the ports' networks.
    Neighbours,
    /// Threads that share the flows.
    Workers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (0.1..=60.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("expected 0.1 to 60".to_owned())
    }
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}: router.control: found nothing, expected the path of a control socket; without one a router tells nothing, add it and restart the router", .0.display())]
    NoSocket(PathBuf),
    #[error("{}: {source}; is the router running, and are you its user or root?", path.display())]
    Ask { path: PathBuf, source: io::Error },
    #[error("output: {0}")]
    Output(io::Error),
    #[error(
        "mef top draws on a terminal, and this is none; `mef show links -o json` is for programs"
    )]
    NoTerminal,
}

impl ShowError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::NoSocket(_) | Self::NoTerminal => ExitCode::from(2),
            Self::Ask { .. } | Self::Output(_) => ExitCode::from(1),
        }
    }
}

impl Which {
    fn path(&self) -> Result<PathBuf, ShowError> {
        match (&self.socket, &self.config) {
            (Some(path), _) => Ok(path.clone()),
            (None, Some(file)) => {
                config::control_path(file)?.ok_or_else(|| ShowError::NoSocket(file.clone()))
            }
            (None, None) => Err(ShowError::NoSocket(PathBuf::new())),
        }
    }
}

/// `mef show`; exit code 2 for a wrong file, 1 where the router does not answer.
pub fn main(args: &ShowArgs) -> ExitCode {
    finish(show(args))
}

/// `mef top`; exit codes as of [`main`].
pub fn top(args: &TopArgs) -> ExitCode {
    finish(run_top(args))
}

fn finish(result: Result<(), ShowError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // `| head` has seen enough.
        Err(ShowError::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            e.exit_code()
        }
    }
}

fn run_top(args: &TopArgs) -> Result<(), ShowError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(ShowError::NoTerminal);
    }
    let path = args.which.path()?;
    top::run(&path, Duration::from_secs_f64(args.interval)).map_err(ShowError::Output)
}

fn show(args: &ShowArgs) -> Result<(), ShowError> {
    let path = &args.which.path()?;
    let output = args.output;
    match args.what {
        What::Flows => print::<Flow>(path, output, |from| Query::Flows { from }),
        What::Links => print::<Link>(path, output, |_| Query::Links),
        What::Ports => print::<Port>(path, output, |_| Query::Ports),
        What::Drops => print::<Drop>(path, output, |_| Query::Drops),
        What::Workers => print::<Worker>(path, output, |_| Query::Workers),
        What::Routes => print::<Route>(path, output, |from| Query::Routes { from }),
        What::Neighbours => print::<Neighbour>(path, output, |from| Query::Neighbours { from }),
    }
}

/// All pages in one, up to `pages` of them.
fn all<T: DeserializeOwned>(
    path: &Path,
    pages: usize,
    query: impl Fn(u64) -> Query,
) -> io::Result<Page<T>> {
    let mut all: Page<T> = control::ask(path, query(0), PATIENCE)?;
    for _ in 1..pages {
        let Some(from) = all.next else { break };
        let page: Page<T> = control::ask(path, query(from), PATIENCE)?;
        all.rows.extend(page.rows);
        all.next = page.next;
    }
    Ok(all)
}

fn print<T: Tabular + Serialize + DeserializeOwned>(
    path: &Path,
    output: Output,
    query: impl Fn(u64) -> Query,
) -> Result<(), ShowError> {
    let page: Page<T> = all(path, usize::MAX, query).map_err(|source| ShowError::Ask {
        path: path.to_owned(),
        source,
    })?;
    let text = match output {
        Output::Json => {
            serde_json::to_string(&page).map_err(|e| ShowError::Output(e.into()))? + "\n"
        }
        Output::Table => {
            let mut table = Table::new(T::COLUMNS);
            for row in &page.rows {
                table.row(row.cells());
            }
            table.to_string()
        }
    };
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(ShowError::Output)
}
