//! A child process inside a namespace that speaks JSON lines and dies with the lab.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{mpsc, Arc, Mutex};
use std::time::{Duration, Instant};

use mef_io::os::set_command_parent_death_signal;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::RunError;
use crate::netns::{forget_child, register_child, Namespaces};

/// Lines of a child's stderr that are kept for the message about its failure.
const STDERR_LINES: usize = 30;

/// A running child; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts this very program with `args` in a namespace.
    ///
    /// The child gets SIGKILL when the calling thread ends: call it from one that stays.
    pub fn start_self(
        net: &Namespaces,
        namespace: &str,
        name: &str,
        args: &[&str],
    ) -> Result<Self, RunError> {
        let fail = |source| RunError::Child {
            name: name.to_owned(),
            message: format!("cannot be started: {source}"),
        };
        let program = std::env::current_exe().map_err(fail)?;
        let mut command = net.command(namespace, program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        set_command_parent_death_signal(&mut command, Signal::SIGKILL as i32);
        let mut child = command.spawn().map_err(fail)?;
        register_child(child.id());
        let (send, lines) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(err) = child.stderr.take() {
            let kept = Arc::clone(&stderr);
            std::thread::spawn(move || {
                for line in BufReader::new(err).lines().map_while(Result::ok) {
                    let mut kept = kept.lock().unwrap_or_else(|p| p.into_inner());
                    if kept.len() == STDERR_LINES {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
            });
        }
        let stdin = child.stdin.take();
        Ok(Self {
            name: name.to_owned(),
            child,
            stdin,
            lines,
            stderr,
        })
    }

    /// Writes one value as a line.
    pub fn say(&mut self, value: &impl serde::Serialize) -> Result<(), RunError> {
        let mut line = serde_json::to_vec(value).map_err(|e| self.failed(&e.to_string()))?;
        line.push(b'\n');
        let written = self
            .stdin
            .as_mut()
            .map(|s| s.write_all(&line).and_then(|()| s.flush()));
        match written {
            Some(Ok(())) => Ok(()),
            Some(Err(e)) => Err(self.failed(&format!("does not take its orders: {e}"))),
            None => Err(self.failed("its input is closed")),
        }
    }

    /// The next line of its output, `None` if none comes within `timeout`.
    pub fn line(&mut self, timeout: Duration) -> Result<Option<String>, RunError> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.wait(Duration::from_secs(2));
                let how = status.map_or("closed its output".to_owned(), |s| format!("ended ({s})"));
                Err(self.failed(&how))
            }
        }
    }

    /// An error about this child with the end of what it wrote to stderr.
    pub fn failed(&self, what: &str) -> RunError {
        let said = self.stderr();
        let message = if said.is_empty() {
            what.to_owned()
        } else {
            format!("{what}; it said:\n{said}")
        };
        RunError::Child {
            name: self.name.clone(),
            message,
        }
    }

    /// The last lines it wrote to stderr.
    pub fn stderr(&self) -> String {
        let kept = self.stderr.lock().unwrap_or_else(|p| p.into_inner());
        kept.iter().cloned().collect::<Vec<_>>().join("\n")
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // Not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => {
                    forget_child(self.child.id());
                    return Some(status);
                }
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        }
    }

    /// Asks it to end, then makes it.
    pub fn stop(&mut self, timeout: Duration) {
        self.stdin = None;
        if self.is_running() {
            self.signal(Signal::SIGTERM);
            if self.wait(timeout).is_none() {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
        forget_child(self.child.id());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        forget_child(self.child.id());
    }
}
