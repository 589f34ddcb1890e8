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

mod spec;

pub use spec::*;

use std::process::ExitCode;

/// The agent's process: one [`AgentSpec`] on stdin, [`Event`]s on stdout.
/// Success if it delivered an outcome, whatever became of the flows.
pub fn agent_main() -> ExitCode {
    ExitCode::FAILURE
}
