//! A topology that is up for the length of a test, and threads and programs in its hosts.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mef_dataplane::control::{self, Snapshot};
use mef_io::os::{has_capability, Cap};
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

pub const A1: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
pub const B1: Ipv4Addr = Ipv4Addr::new(10, 2, 1, 2);

/// Two labs at a time would measure each other.
pub static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The binary under test.
pub fn mef() -> PathBuf {
    std::env::var_os("MEF_BIN").map_or_else(|| env!("CARGO_BIN_EXE_mef").into(), PathBuf::from)
}

/// Why a test with these programs cannot be done here.
pub fn missing(programs: &[&str]) -> Option<String> {
    for cap in [Cap::SysAdmin, Cap::NetAdmin, Cap::NetRaw] {
        if !has_capability(cap) {
            return Some(format!("{} is missing", cap.name()));
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |p: &str| std::env::split_paths(&path).any(|dir| dir.join(p).exists());
    programs
        .iter()
        .chain(&["ip"])
        .find(|p| !there(p))
        .map(|p| format!("the program {p} is missing"))
}

/// Ends the test, with a message, where it cannot be done.
macro_rules! need {
    ($($program:literal),*) => {
        if let Some(why) = crate::lab::missing(&[$($program),*]) {
            eprintln!("skipped: {why}");
            return;
        }
    };
}
pub(crate) use need;

/// Runs `f` until it gives something, or fails the test with what it said last.
pub fn wait_for<T>(what: &str, limit: Duration, mut f: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + limit;
    loop {
        match f() {
            Ok(t) => return t,
            Err(last) => assert!(
                Instant::now() < until,
                "{what}: not within {limit:?}: {last}"
            ),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What stands between the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routers {
    Mef,
    /// Linux forwards: the path as it would be without MEF.
    Direct,
}

/// Hosts `a1` and `b1`, the routers `ra` and `rb`, the `wan` between them.
pub struct Lab {
    child: Child,
    pub folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    /// Brings up one host a site behind a WAN with the TOML keys of `wan`.
    pub fn up(routers: Routers, wan: &str) -> Self {
        Self::up_with(routers, wan, "")
    }

    /// The same with more tables of the topology.
    pub fn up_with(routers: Routers, wan: &str, tables: &str) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("topology.toml");
        std::fs::write(
            &file,
            format!("description = 'a test'\n[wan]\n{wan}\n{tables}\n"),
        )
        .unwrap();
        let transport = match routers {
            Routers::Mef => "mef",
            Routers::Direct => "direct",
        };
        // The topology lives as long as the shell, and that as long as its input is open.
        let mut child = Command::new(mef())
            .args(["lab", "exec", file.to_str().unwrap(), "a1"])
            .args(["--transport", transport])
            .args(["--", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        // Ends with the child if that fails.
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "the lab did not come up: {:?}", child.wait());
        Self {
            child,
            folder,
            _alone: alone,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn namespace(&self, host: &str) -> String {
        format!("mef{}-{host}", self.pid())
    }

    /// Starts a thread in a host.
    pub fn thread<T: Send + 'static>(
        &self,
        host: &str,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = File::open(Path::new("/run/netns").join(self.namespace(host))).unwrap();
        std::thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        })
    }

    /// A command that will run in a host, or in `ra`, `rb`, `wan`.
    pub fn command(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host)])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs a shell script in a host; `$A1` and `$B1` are the hosts' addresses.
    pub fn sh(&self, host: &str, script: &str) -> Output {
        let mut command = self.command(host, "timeout");
        command
            .args(["120", "sh", "-c", script])
            .env("A1", A1.to_string())
            .env("B1", B1.to_string())
            .current_dir(self.folder.path());
        command.output().unwrap()
    }

    /// The same, and it has to succeed.
    pub fn sh_ok(&self, host: &str, script: &str) -> String {
        let out = self.sh(host, script);
        assert!(
            out.status.success(),
            "{script}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Starts a program in a host that is ended with the test.
    pub fn background(&self, host: &str, program: &str, args: &[&str]) -> Background {
        let mut command = self.command(host, program);
        command
            .args(args)
            .current_dir(self.folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Background(command.spawn().unwrap())
    }

    /// What the router of site `a` or `b` says of itself.
    pub fn status(&self, side: char) -> Snapshot {
        control::query(&self.socket(side), Duration::from_secs(5)).unwrap()
    }

    /// Where it says so.
    pub fn socket(&self, side: char) -> PathBuf {
        std::env::temp_dir().join(format!("mef{}-0/{side}.sock", self.pid()))
    }

    fn end(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&self.child, Signal::SIGTERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.end();
    }
}

/// Signals a child that has not been waited for.
pub fn signal(child: &Child, signal: Signal) {
    let _ = kill(Pid::from_raw(child.id() as i32), signal);
}

/// A program that is ended when dropped.
pub struct Background(pub Child);

impl Background {
    /// Ends it; what it said, if that was to be heard.
    pub fn end(mut self) -> String {
        signal(&self.0, Signal::SIGTERM);
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            out.read_to_string(&mut said).unwrap();
        }
        said
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        signal(&self.0, Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
