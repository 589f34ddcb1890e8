//! The load tool: TCP flows that are accounted at their receiver, and a UDP
//! probe that measures one-way delay beside them.
//!
//! The lab starts one agent a host, as a child process in the host's network
//! namespace (`mef lab agent`), writes one [`AgentSpec`] on its stdin and reads
//! [`Event`]s, one JSON object a line, from its stdout:
//!
//! ```text
//!   lab                          agent in h2                 agent in h1
//!    | -- AgentSpec{servers} ------> |                            |
//!    | <- {"event":"listening"} ---- |                            |
//!    | -- AgentSpec{flows, probes} -------------------------------> |
//!    |                               | <== header, payload ======= |
//!    | <- {"event":"progress"} ----- |                            |
//!    |                               | == receipt ===============> |
//!    | <- {"event":"done"} ---------------------------------------- |
//!    | -- SIGTERM -----------------> |
//!    | <- {"event":"done"} --------- |
//! ```

mod agent;
pub(crate) mod client;
mod conn;
pub(crate) mod header;
pub(crate) mod payload;
pub(crate) mod probe;
mod server;
mod spec;
mod state;
mod sys;
pub(crate) mod transfer;

pub use agent::{Agent, AgentError, Stopper};
pub use spec::*;

use std::io::Write;
use std::process::ExitCode;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The agent's process: one [`AgentSpec`] on stdin, [`Event`]s on stdout.
/// Success if it delivered an outcome, whatever became of the flows.
pub fn agent_main() -> ExitCode {
    match agent() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // The lab reads stdout; whoever tries the agent by hand, stderr.
            eprintln!("mef lab agent: {message}");
            let _ = say(&Event::Failed { message });
            ExitCode::FAILURE
        }
    }
}

fn agent() -> Result<(), String> {
    // Taken before the specification is read: no signal may end the agent without an outcome.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| format!("cannot handle signals: {e}"))?;
    // One value, not all of stdin: the lab may keep the pipe open.
    let spec = serde_json::Deserializer::from_reader(std::io::stdin().lock())
        .into_iter::<AgentSpec>()
        .next()
        .ok_or("nothing on stdin; expected one JSON object, an agent's specification")?
        .map_err(|e| format!("stdin is not an agent's specification: {e}"))?;
    let agent = Agent::bind(spec).map_err(|e| e.to_string())?;
    let stopper = agent.stopper();
    std::thread::spawn(move || {
        for _ in signals.forever() {
            stopper.stop();
        }
    });
    let listening = Event::Listening {
        addresses: agent.addresses().to_vec(),
    };
    say(&listening)?;
    let outcome = agent
        .run(|progress| {
            // A lab that is gone is noticed with the outcome.
            let _ = say(&Event::Progress(progress));
        })
        .map_err(|e| e.to_string())?;
    say(&Event::Done(outcome))
}

/// One line on stdout.
fn say(event: &Event) -> Result<(), String> {
    let mut line = serde_json::to_vec(event).map_err(|e| e.to_string())?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)
        .and_then(|()| out.flush())
        .map_err(|e| format!("stdout: {e}"))
}

#[cfg(test)]
mod tests;
