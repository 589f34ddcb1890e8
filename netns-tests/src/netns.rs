//! Network namespaces of the lab and the processes in them. Everything made here
//! carries the prefix `mef<pid>-` and is registered, so that it is removed on
//! every way out: normal end, error, panic, SIGINT, SIGTERM, SIGHUP. What a
//! killed lab left behind is swept by the next one.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once};

use mef_io::os::{has_capability, Cap};
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Where iproute2 keeps the names.
const NAMES: &str = "/run/netns";

#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("making network namespaces needs {0}; run as root (or simulate with --sim)")]
    Capability(&'static str),
    #[error("the lab needs the program `ip`: install iproute2")]
    NoIproute,
    #[error("ip {what}: {message}")]
    Ip { what: String, message: String },
    #[error("{what}: {source}")]
    Os {
        what: String,
        source: std::io::Error,
    },
}

fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> NetnsError {
    let what = what.into();
    move |source| NetnsError::Os { what, source }
}

/// What has to be gone when this process is.
#[derive(Default)]
struct Registry {
    namespaces: BTreeSet<String>,
    children: BTreeSet<i32>,
    folders: BTreeSet<PathBuf>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    namespaces: BTreeSet::new(),
    children: BTreeSet::new(),
    folders: BTreeSet::new(),
});
static SIGNALS: Once = Once::new();
/// A program in the foreground answers the terminal's interrupts itself.
static IGNORE_INTERRUPT: AtomicBool = AtomicBool::new(false);

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The prefix of everything that this process makes.
pub fn prefix() -> String {
    format!("mef{}-", std::process::id())
}

/// Checks rights and tools, sweeps what dead labs left, and from now on cleans up at signals.
///
/// # Errors
/// A missing capability or a missing `ip`.
pub fn prepare() -> Result<(), NetnsError> {
    for cap in [Cap::SysAdmin, Cap::NetAdmin, Cap::NetRaw] {
        if !has_capability(cap) {
            return Err(NetnsError::Capability(cap.name()));
        }
    }
    let there = Command::new("ip")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if there.is_err() {
        return Err(NetnsError::NoIproute);
    }
    SIGNALS.call_once(clean_up_at_signals);
    sweep();
    Ok(())
}

/// While true, SIGINT is left to the program in the foreground.
pub fn ignore_interrupt(ignore: bool) {
    IGNORE_INTERRUPT.store(ignore, Ordering::Relaxed);
}

fn clean_up_at_signals() {
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGINT && IGNORE_INTERRUPT.load(Ordering::Relaxed) {
                continue;
            }
            remove_everything();
            std::process::exit(128 + signal);
        }
    });
}

/// Ends every child and removes every namespace and folder of this process.
pub fn remove_everything() {
    let mut all = registry();
    for pid in std::mem::take(&mut all.children) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for name in std::mem::take(&mut all.namespaces) {
        delete(&name);
    }
    for folder in std::mem::take(&mut all.folders) {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Removes the namespaces and folders of labs whose process is no more.
fn sweep() {
    let stale = |name: &str| {
        let pid = name
            .strip_prefix("mef")?
            .split_once('-')?
            .0
            .parse::<u32>()
            .ok()?;
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    };
    for name in names_in(Path::new(NAMES)) {
        if stale(&name).is_some() {
            delete(&name);
        }
    }
    for name in names_in(&std::env::temp_dir()) {
        if stale(&name).is_some() {
            let _ = std::fs::remove_dir_all(std::env::temp_dir().join(name));
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn pids_in(namespace: &str) -> Vec<i32> {
    let out = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output();
    out.map(|o| {
        String::from_utf8_lossy(&o.stdout)
            .split_whitespace()
            .filter_map(|p| p.parse().ok())
            .collect()
    })
    .unwrap_or_default()
}

/// Removes a namespace of ours with every program in it: what a shell or a command of the lab
/// has left behind. Nobody else can know its name.
fn delete(namespace: &str) {
    let own = i32::try_from(std::process::id()).ok();
    for pid in pids_in(namespace) {
        if Some(pid) != own {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = Command::new("ip")
        .args(["netns", "del", namespace])
        .stderr(Stdio::null())
        .status();
}

/// Runs `ip` commands, one a line, in `namespace` or outside of any.
pub fn ip(namespace: Option<&str>, commands: &str) -> Result<(), NetnsError> {
    let mut ip = Command::new("ip");
    if let Some(ns) = namespace {
        ip.args(["-n", ns]);
    }
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|_| NetnsError::NoIproute)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(commands.as_bytes()).map_err(os("ip"))?;
    }
    let out = child.wait_with_output().map_err(os("ip"))?;
    if out.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&out.stderr)
        .trim()
        .replace('\n', "; ");
    // "Command failed -:7" names the line.
    let line = message
        .rsplit_once("-:")
        .and_then(|(_, n)| {
            n.split(|c: char| !c.is_ascii_digit())
                .next()?
                .parse::<usize>()
                .ok()
        })
        .and_then(|n| commands.lines().nth(n.checked_sub(1)?));
    Err(NetnsError::Ip {
        what: format!(
            "{} ({})",
            line.unwrap_or("-batch"),
            namespace.unwrap_or("root namespace")
        ),
        message,
    })
}

/// A set of namespaces that is removed when dropped.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    names: Vec<String>,
}

impl Namespaces {
    /// Makes one namespace a name, loopback up, IPv6 off.
    pub fn create(names: &[&str]) -> Result<Self, NetnsError> {
        let made = Self {
            prefix: prefix(),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
        };
        registry()
            .namespaces
            .extend(made.names.iter().map(|n| made.full(n)));
        let commands: String = made
            .names
            .iter()
            .map(|n| format!("netns add {}\n", made.full(n)))
            .collect();
        ip(None, &commands)?;
        for name in &made.names {
            made.sysctl(
                name,
                &[
                    ("net/ipv6/conf/all/disable_ipv6", "1"),
                    ("net/ipv6/conf/default/disable_ipv6", "1"),
                    ("net/ipv4/conf/all/rp_filter", "0"),
                    ("net/ipv4/conf/default/rp_filter", "0"),
                ],
            )?;
            ip(Some(&made.full(name)), "link set lo up\n")?;
        }
        Ok(made)
    }

    /// The name that `ip netns` knows.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn ip(&self, name: &str, commands: &str) -> Result<(), NetnsError> {
        ip(Some(&self.full(name)), commands)
    }

    /// Lays a cable between two namespaces; both ends are up.
    pub fn cable(&self, a: (&str, &str), b: (&str, &str)) -> Result<(), NetnsError> {
        let (na, nb) = (self.full(a.0), self.full(b.0));
        ip(
            None,
            &format!(
                "link add name {} netns {na} type veth peer name {} netns {nb}\n",
                a.1, b.1
            ),
        )?;
        self.ip(a.0, &format!("link set dev {} up\n", a.1))?;
        self.ip(b.0, &format!("link set dev {} up\n", b.1))
    }

    /// Runs `f` in a thread that is inside `name`.
    pub fn inside<T: Send>(
        &self,
        name: &str,
        f: impl FnOnce() -> T + Send,
    ) -> Result<T, NetnsError> {
        let path = Path::new(NAMES).join(self.full(name));
        let file = std::fs::File::open(&path).map_err(os(path.display().to_string()))?;
        std::thread::scope(|s| {
            s.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::Os {
                    what: "setns".to_owned(),
                    source: e.into(),
                })?;
                Ok(f())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Writes kernel settings of a namespace; those of a protocol that the kernel lacks are left out.
    pub fn sysctl(&self, name: &str, settings: &[(&str, &str)]) -> Result<(), NetnsError> {
        self.inside(name, || {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                if !path.exists() && key.starts_with("net/ipv6/") {
                    continue;
                }
                std::fs::write(&path, value)
                    .map_err(os(format!("{} = {value}", path.display())))?;
            }
            Ok(())
        })?
    }

    /// A command that will run in `name`.
    pub fn command(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.full(name)])
            .arg(program);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let full = self.full(name);
            delete(&full);
            registry().namespaces.remove(&full);
        }
    }
}

/// Makes a folder for files of this process, removed when it ends. One to `keep`
/// stays, under a name that no later lab sweeps away.
pub fn scratch_folder(keep: bool) -> Result<PathBuf, NetnsError> {
    use std::os::unix::fs::DirBuilderExt;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let kept = if keep { "kept-" } else { "" };
    let path = std::env::temp_dir().join(format!("{kept}{}{number}", prefix()));
    // Private keys are written here.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(os(path.display().to_string()))?;
    if !keep {
        registry().folders.insert(path.clone());
    }
    Ok(path)
}

/// Removes a scratch folder that is not to be kept.
pub fn release_folder(path: &Path) {
    if registry().folders.remove(path) {
        let _ = std::fs::remove_dir_all(path);
    }
}

/// Has a child killed when this process ends by a signal.
pub(crate) fn register_child(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        registry().children.insert(pid);
    }
}

/// To be called before the child is waited for: its number may be somebody else's afterwards.
pub(crate) fn forget_child(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        registry().children.remove(&pid);
    }
}
