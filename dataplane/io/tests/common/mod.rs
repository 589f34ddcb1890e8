//! Network namespaces for a test, removed when it ends, however it ends.

use nix::sched::{setns, CloneFlags};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Namespace {
    pub name: String,
}

impl Namespace {
    /// A new namespace, or `None` (and a message) where this may not be made.
    pub fn create() -> Option<Self> {
        if !mef_io::os::has_capability(mef_io::os::Cap::SysAdmin) {
            eprintln!("skipped: network namespaces need CAP_SYS_ADMIN; run as root");
            return None;
        }
        remove_stale();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mefio-{}-{n}", std::process::id());
        ip(&["netns", "add", &name]);
        let ns = Self { name };
        // Neighbour discovery of IPv6 would be in the way of what the tests look for.
        for which in ["all", "default"] {
            ns.run(move || {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1").ok()
            });
        }
        ns.ip(&["link", "set", "lo", "up"]);
        Some(ns)
    }

    pub fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all);
    }

    /// A veth pair between two namespaces (or within one), both ends up.
    pub fn cable(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&[
            "link",
            "add",
            name,
            "type",
            "veth",
            "peer",
            "name",
            other_name,
            "netns",
            &other.name,
        ]);
        self.ip(&["link", "set", name, "up"]);
        other.ip(&["link", "set", other_name, "up"]);
        self.wait_until_active(name);
        other.wait_until_active(other_name);
    }

    /// Waits until the kernel has noticed the carrier: before that the interface has the
    /// queueing discipline "noop", which loses frames without a word.
    fn wait_until_active(&self, interface: &str) {
        let start = Instant::now();
        loop {
            let out = Command::new("ip")
                .args(["-n", &self.name, "-o", "link", "show", interface])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            if text.contains("state UP") && !text.contains("qdisc noop ") {
                return;
            }
            assert!(
                start.elapsed().as_secs() < 10,
                "{interface} does not come up: {text}"
            );
        }
    }

    /// Starts `f` on a thread of its own in this namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = Path::new("/run/netns").join(&self.name);
        thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            f()
        })
    }

    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(f).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn ip(args: &[&str]) {
    let out = Command::new("ip").args(args).output().unwrap();
    assert!(
        out.status.success(),
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Removes what test processes that were killed have left.
fn remove_stale() {
    for entry in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("mefio-")
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}
