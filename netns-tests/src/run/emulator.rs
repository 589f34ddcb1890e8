//! The WAN emulator as a child process: `mef lab wan --controlled`.

use std::path::Path;
use std::time::Duration;

use super::process::Process;
use super::RunError;
use crate::netns::Namespaces;
use crate::wan::stats::Command;
use crate::wan::Snapshot;

const ANSWER: Duration = Duration::from_secs(5);

pub struct Emulator(Process);

impl Emulator {
    /// Starts it in `namespace` between interfaces `a` and `b`, ready when this returns.
    pub fn start(
        net: &Namespaces,
        namespace: &str,
        (a, b): (&str, &str),
        config: &Path,
        seed: u64,
    ) -> Result<Self, RunError> {
        let config = config.display().to_string();
        let seed = seed.to_string();
        let mut process = Process::start_self(
            net,
            namespace,
            &format!("WAN emulator {a}-{b}"),
            &[
                "lab",
                "wan",
                "--a",
                a,
                "--b",
                b,
                "--config",
                &config,
                "--seed",
                &seed,
                "--controlled",
            ],
        )?;
        match process.line(ANSWER)? {
            Some(line) if line.contains("ready") => Ok(Self(process)),
            _ => Err(process.failed("is not ready after 5 s")),
        }
    }

    /// The load starts now.
    pub fn origin(&mut self) -> Result<(), RunError> {
        self.0.say(&Command::Origin)
    }

    /// What is measured from now on counts.
    pub fn window(&mut self) -> Result<(), RunError> {
        self.0.say(&Command::Window)
    }

    pub fn snapshot(&mut self) -> Result<Snapshot, RunError> {
        self.0.say(&Command::Snapshot)?;
        let line = self
            .0
            .line(ANSWER)?
            .ok_or_else(|| self.0.failed("gives no figures within 5 s"))?;
        serde_json::from_str(&line).map_err(|e| self.0.failed(&format!("gave {line:?}: {e}")))
    }
}
