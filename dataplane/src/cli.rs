//! `mef router run` and `mef router check`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::{config, daemon};

#[derive(Debug, clap::Args)]
pub struct RouterArgs {
    #[command(subcommand)]
    command: RouterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum RouterCommand {
    /// Run the router in the foreground until Ctrl-C or SIGTERM.
    Run {
        /// Configuration (TOML).
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say whether a configuration is valid, or what is wrong with it; starts nothing.
    Check {
        /// Configuration (TOML).
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Carries out the command; exit code 2 means that the configuration is wrong.
pub fn main(args: &RouterArgs) -> ExitCode {
    match &args.command {
        RouterCommand::Check { config } => match config::check(config) {
            Ok(summary) => {
                println!("{summary}");
                ExitCode::SUCCESS
            }
            Err(e) => {
                eprintln!("{e}");
                ExitCode::from(2)
            }
        },
        RouterCommand::Run { config } => {
            let filter = tracing_subscriber::EnvFilter::try_from_env("MEF_LOG")
                .unwrap_or_else(|_| "info".into());
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_writer(std::io::stderr)
                .init();
            match daemon::run(config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("{e}");
                    ExitCode::from(e.exit_code())
                }
            }
        }
    }
}
