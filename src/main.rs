//! `mef`, the one binary: dispatches to the router, the keys and the lab.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// MEF router: tells every flow its fair rate inside the network and encrypts all that leaves it.
#[derive(Parser)]
#[command(name = "mef", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a router, or check its configuration.
    Router(mef_dataplane::cli::RouterArgs),
    /// Make and show node keys.
    Keys(mef_dataplane::keys_cli::KeysArgs),
    /// What a running router knows: flows, links, ports, drops, routes, neighbours.
    Show(mef_dataplane::show::ShowArgs),
    /// Watch a running router.
    Top(mef_dataplane::show::TopArgs),
    /// Topologies of network namespaces: measure, try out, show.
    Lab(mef_lab::cli::LabArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Router(args) => mef_dataplane::cli::main(&args),
        Command::Keys(args) => mef_dataplane::keys_cli::main(&args),
        Command::Show(args) => mef_dataplane::show::main(&args),
        Command::Top(args) => mef_dataplane::show::top(&args),
        Command::Lab(args) => mef_lab::cli::main(args),
    }
}
