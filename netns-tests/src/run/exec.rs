//! `mef lab exec` and `mef lab shell`: any program in a host of a topology.

use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use mef_io::os::set_command_parent_death_signal;
use nix::sys::signal::Signal;

use super::network::{Build, Network};
use super::RunError;
use crate::cli::{ExecArgs, RouterKind, ShellArgs};
use crate::netns::{self, forget_child, register_child};
use crate::topology::{read, Topology};

/// Runs a command in a host; its exit code is ours.
pub fn exec(args: &ExecArgs) -> Result<ExitCode, RunError> {
    let topology = first_variant(&args.topology, &args.set)?;
    host_or_error(&topology, &args.host)?;
    let mut background = Vec::new();
    for with in &args.with {
        let (host, command) = with.split_once('=').ok_or_else(|| {
            RunError::Usage(format!(
                "--with {with}: expected HOST=COMMAND such as 'b1=iperf3 -s'"
            ))
        })?;
        host_or_error(&topology, host)?;
        background.push((host, command));
    }
    netns::prepare()?;
    let network = up(&topology, args.transport, args.seed)?;
    let mut guards = Vec::new();
    for (host, command) in background {
        let mut child = network.namespaces().command(host, "sh");
        child.args(["-c", command]).stdin(Stdio::null());
        guards.push(Started::spawn(child, &topology, &network, host)?);
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Err(RunError::Usage("no command given".to_owned()));
    };
    let mut command = network.namespaces().command(&args.host, program);
    command.args(rest);
    foreground(command, &topology, &network, &args.host)
}

/// Opens a shell in a host.
pub fn shell(args: &ShellArgs) -> Result<ExitCode, RunError> {
    let topology = first_variant(&args.topology, &args.set)?;
    host_or_error(&topology, &args.host)?;
    netns::prepare()?;
    let network = up(&topology, args.transport, 1)?;
    eprintln!("{}: {}", topology.name, topology.description);
    for host in &topology.hosts {
        eprintln!(
            "  {} {}   another shell: ip netns exec {} bash",
            host.name,
            host.address(),
            network.namespaces().full(&host.name)
        );
    }
    let program = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let command = network.namespaces().command(&args.host, program);
    foreground(command, &topology, &network, &args.host)
}

fn first_variant(path: &std::path::Path, sets: &[String]) -> Result<Topology, RunError> {
    let variant = read(path, sets)?.into_iter().next();
    variant
        .map(|v| v.topology)
        .ok_or_else(|| RunError::Usage("the topology has no variant".to_owned()))
}

fn host_or_error(topology: &Topology, name: &str) -> Result<(), RunError> {
    if topology.host(name).is_some() {
        return Ok(());
    }
    let known: Vec<&str> = topology.hosts.iter().map(|h| h.name.as_str()).collect();
    Err(RunError::NoHost {
        name: name.to_owned(),
        known: known.join(", "),
    })
}

fn up(topology: &Topology, routers: RouterKind, seed: u64) -> Result<Network, RunError> {
    let mut network = Network::up(Build {
        topology,
        mef: routers == RouterKind::Mef,
        seed,
        keep: false,
    })?;
    network.wan().origin()?;
    Ok(network)
}

/// A child that is killed when dropped.
struct Started(Child);

impl Started {
    fn spawn(
        mut command: Command,
        topology: &Topology,
        network: &Network,
        host: &str,
    ) -> Result<Self, RunError> {
        for h in &topology.hosts {
            command.env(h.name.to_uppercase(), h.address().to_string());
        }
        command.env("MEF_LAB_PREFIX", network.namespaces().full(""));
        set_command_parent_death_signal(&mut command, Signal::SIGKILL as i32);
        let child = command.spawn().map_err(|e| RunError::Child {
            name: format!("command in {host}"),
            message: e.to_string(),
        })?;
        register_child(child.id());
        Ok(Self(child))
    }

    fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.0.wait();
        forget_child(self.0.id());
        status
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.wait();
    }
}

/// The terminal's interrupts are for the command; the lab goes when the command has ended.
fn foreground(
    command: Command,
    topology: &Topology,
    network: &Network,
    host: &str,
) -> Result<ExitCode, RunError> {
    use std::os::unix::process::ExitStatusExt;
    netns::ignore_interrupt(true);
    let status = Started::spawn(command, topology, network, host).and_then(|mut child| {
        child.wait().map_err(|e| RunError::Child {
            name: host.to_owned(),
            message: e.to_string(),
        })
    });
    netns::ignore_interrupt(false);
    let status = status?;
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}
