//! The time without traffic: datagrams from a1 to b1 and back all the time, and
//! when answers came; and a router that a test may kill and start anew.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mef_dataplane::control::{self, LinkState, Snapshot};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::lab::{mef, signal, wait_for, Lab, A1, B1};

const PORT: u16 = 7777;
/// Between two datagrams.
pub const BEAT: Duration = Duration::from_millis(5);

/// Asks b1 from a1 every 5 ms until dropped.
pub struct Pulse {
    stop: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pulse {
    pub fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let (ready, listening) = std::sync::mpsc::channel();
        let until = Arc::clone(&stop);
        let echo = lab.thread("b1", move || {
            let socket = UdpSocket::bind((B1, PORT)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(100)))
                .unwrap();
            ready.send(()).unwrap();
            let mut room = [0; 64];
            while !until.load(Ordering::Relaxed) {
                if let Ok((n, from)) = socket.recv_from(&mut room) {
                    // An error that an earlier one brought is of no interest.
                    let _ = socket.send_to(&room[..n], from);
                }
            }
        });
        listening.recv().unwrap();
        let (until, seen) = (Arc::clone(&stop), Arc::clone(&arrivals));
        let ask = lab.thread("a1", move || {
            let socket = UdpSocket::bind((A1, 0)).unwrap();
            socket.connect((B1, PORT)).unwrap();
            socket.set_read_timeout(Some(BEAT)).unwrap();
            let (mut next, mut room) = (Instant::now(), [0; 64]);
            while !until.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    next += BEAT;
                    let _ = socket.send(b"pulse");
                }
                match socket.recv(&mut room) {
                    Ok(_) => seen.lock().unwrap().push(Instant::now()),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    // An ICMP error: nothing came.
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        let pulse = Self {
            stop,
            arrivals,
            threads: vec![echo, ask],
        };
        wait_for("the first answer", Duration::from_secs(10), || {
            pulse.first_after(None).map(drop).ok_or(String::new())
        });
        pulse
    }

    /// The first answer after a time, or of all.
    pub fn first_after(&self, time: Option<Instant>) -> Option<Instant> {
        let arrivals = self.arrivals.lock().unwrap();
        arrivals
            .iter()
            .find(|t| time.is_none_or(|from| **t > from))
            .copied()
    }

    /// The longest time without an answer from `from` until now.
    pub fn longest_gap(&self, from: Instant) -> Duration {
        let arrivals = self.arrivals.lock().unwrap();
        let later = arrivals.iter().filter(|t| **t > from).copied();
        let (gap, last) = later.fold((Duration::ZERO, from), |(gap, last), t| {
            (gap.max(t - last), t)
        });
        gap.max(last.elapsed())
    }

    /// Waits for answers after `from`; how long that took.
    pub fn resumes(&self, from: Instant, limit: Duration) -> Duration {
        wait_for("an answer", limit, || {
            self.first_after(Some(from)).ok_or(String::new())
        }) - from
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// A router in the place of the lab's own.
pub struct OwnRouter {
    child: Child,
    side: char,
    socket: PathBuf,
    log: PathBuf,
}

/// Files of the lab's routers.
fn folder(lab: &Lab) -> PathBuf {
    std::env::temp_dir().join(format!("mef{}-0", lab.pid()))
}

impl OwnRouter {
    /// Kills the lab's router of a side and starts one with its configuration, changed.
    pub fn instead(lab: &Lab, side: char, change: impl FnOnce(String) -> String) -> Self {
        let mut own = Self::instead_of(lab, side, change);
        own.wait_up(lab, Duration::from_secs(10));
        own
    }

    /// The same, without waiting for its link.
    pub fn instead_of(lab: &Lab, side: char, change: impl FnOnce(String) -> String) -> Self {
        let router = lab.routers_pid(side);
        kill(Pid::from_raw(router), Signal::SIGKILL).unwrap();
        // The lab waits for it at its own end only. Its socket answers until the last thread has ended,
        // which is after the first one became a zombie.
        wait_for("its end", Duration::from_secs(10), || {
            let Ok(threads) = std::fs::read_dir(format!("/proc/{router}/task")) else {
                return Ok(());
            };
            let threads = threads.count();
            let stat = std::fs::read_to_string(format!("/proc/{router}/stat")).unwrap_or_default();
            let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
            let dead = threads <= 1 && (state.is_empty() || state.starts_with('Z'));
            dead.then_some(())
                .ok_or(format!("{threads} threads, {state}"))
        });
        let file = folder(lab).join(format!("{side}.toml"));
        let text = change(std::fs::read_to_string(&file).unwrap());
        std::fs::write(folder(lab).join(format!("{side}-own.toml")), text).unwrap();
        Self::start(lab, side, &[])
    }

    /// Starts the router of a side with the configuration that it was given before.
    pub fn start(lab: &Lab, side: char, environment: &[(&str, &str)]) -> Self {
        let file = folder(lab).join(format!("{side}-own.toml"));
        let log = lab.folder.path().join(format!("{side}-own.log"));
        let said = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = lab.command(&format!("r{side}"), mef());
        command
            .args(["router", "run", "-c"])
            .arg(file)
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(said);
        Self {
            child: command.spawn().unwrap(),
            side,
            socket: folder(lab).join(format!("{side}.sock")),
            log,
        }
    }

    pub fn status(&self) -> std::io::Result<Snapshot> {
        control::query(&self.socket, Duration::from_secs(2))
    }

    /// Waits until its link is up, at both ends.
    pub fn wait_up(&mut self, lab: &Lab, limit: Duration) {
        let up = |s: &Snapshot| s.links.iter().all(|l| l.state == LinkState::Up);
        wait_for("the link", limit, || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!(
                    "the router of side {}: {status}: {}",
                    self.side,
                    self.said()
                );
            }
            let own = self.status().map_err(|e| e.to_string())?;
            let other = lab.status(if self.side == 'a' { 'b' } else { 'a' });
            if up(&own) && up(&other) {
                return Ok(());
            }
            Err(format!("{:?} {:?}", own.links, other.links))
        });
    }

    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn terminate(&self) {
        signal(&self.child, Signal::SIGTERM);
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        wait_for("the router's end", limit, || {
            self.child.try_wait().unwrap().ok_or(String::new())
        })
    }

    /// What it has written to its log.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for OwnRouter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lab {
    /// The process of a side's router.
    pub fn routers_pid(&self, side: char) -> i32 {
        let namespace = self.namespace(&format!("r{side}"));
        let out = Command::new("ip")
            .args(["netns", "pids", &namespace])
            .output()
            .unwrap();
        let pids = String::from_utf8_lossy(&out.stdout).into_owned();
        let router = |pid: &&str| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|n| n.starts_with("mef"))
        };
        let pid = pids.split_whitespace().find(router);
        pid.unwrap_or_else(|| panic!("no router in {namespace}"))
            .parse()
            .unwrap()
    }
}
