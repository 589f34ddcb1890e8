//! Wrong configurations, missing rights, interrupts: one message, the right exit
//! code, and nothing left.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{mef, need, signal, wait_for, Lab, Routers};

/// A router with one port; `KEY` and `PEER` are made by [`Site::new`].
const CONFIG: &str = r#"[router]
name = "site-a"
private_key = "a.key"
control = "CONTROL"

[[port]]
name = "wan"
interface = "lo"
addresses = ["192.0.2.1/30"]
listen = 4800
[port.line]
up = "100Mbit/s"
down = "100Mbit/s"

[[peer]]
name = "site-b"
public_key = "PEER"
port = "wan"
endpoint = "192.0.2.2:4800"
prefixes = ["10.2.0.0/16"]
"#;

/// A folder with a key and a valid configuration.
struct Site {
    folder: tempfile::TempDir,
    config: String,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str| {
            let path = folder.path().join(name);
            let path = path.to_str().unwrap();
            let made = Command::new(mef())
                .args(["keys", "generate", path])
                .output();
            assert!(made.as_ref().unwrap().status.success(), "{made:?}");
            let public = Command::new(mef()).args(["keys", "public", path]).output();
            let public = String::from_utf8(public.unwrap().stdout).unwrap();
            public.split_whitespace().last().unwrap().to_owned()
        };
        key("a.key");
        let config = CONFIG
            .replace("PEER", &key("b.key"))
            .replace("CONTROL", folder.path().join("a.sock").to_str().unwrap());
        Self { folder, config }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("a.toml")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("a.sock")
    }

    fn router(&self, what: &str, config: &str) -> Output {
        std::fs::write(self.file(), config).unwrap();
        Command::new("timeout")
            .args(["10", mef().to_str().unwrap(), "router", what, "-c"])
            .arg(self.file())
            .env_remove("MEF_LOG")
            .output()
            .unwrap()
    }
}

#[test]
fn a_wrong_configuration_is_one_message_and_exit_code_2() {
    let site = Site::new();
    let out = site.router("check", &site.config);
    assert!(out.status.success(), "{out:?}");
    let peer = site.config.split('"').find(|s| s.len() == 44).unwrap();
    // What is replaced by what, and what the message has to name: line, key, found.
    for (old, new, expected) in [
        ("listen =", "listne =", [":10: ", "listne", "listen"]),
        (
            "up = \"100Mbit/s\"",
            "up = \"100 Mb\"",
            [":12: ", "port.line.up", "100 Mb"],
        ),
        (
            "10.2.0.0/16",
            "10.2.0.0/33",
            [":20: ", "peer.prefixes", "10.2.0.0/33"],
        ),
        (
            "10.2.0.0/16\"",
            "10.2.0.0/16\", \"10.2.3.0/24\"",
            [":20: ", "peer.prefixes", "10.2.3.0/24"],
        ),
        (
            "\"lo\"",
            "\"nowhere0\"",
            [":8: ", "port.interface", "nowhere0"],
        ),
        (peer, "c2hvcnQ=", [":17: ", "peer.public_key", "c2hvcnQ="]),
        (
            "a.key",
            "none.key",
            [":3: ", "router.private_key", "none.key"],
        ),
        ("[[port]]", "[[port]", [":6: ", "", ""]),
        (
            "\"wan\"\nendpoint",
            "\"wam\"\nendpoint",
            [":18: ", "peer.port", "wam"],
        ),
    ] {
        let config = site.config.replacen(old, new, 1);
        assert_ne!(config, site.config, "{old}");
        for what in ["check", "run"] {
            let out = site.router(what, &config);
            let said = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(2), "{what} {new}: {said}");
            assert_eq!(said.trim_end().lines().count(), 1, "{what} {new}: {said}");
            assert!(said.contains("a.toml"), "{what} {new}: {said}");
            for part in expected {
                assert!(
                    said.contains(part),
                    "{what} {new}: {part:?} is not in {said}"
                );
            }
            assert!(
                !site.socket().exists(),
                "{what} {new}: something was started"
            );
        }
    }
    // A key that others could read.
    let key = site.folder.path().join("a.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let out = site.router("run", &site.config);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.contains("0600") || said.contains("600"), "{said}");
}

#[test]
fn who_lacks_a_right_is_told_which() {
    need!("capsh");
    let site = Site::new();
    std::fs::write(site.file(), &site.config).unwrap();
    let mef = mef();
    let router = format!(
        "exec {} router run -c {}",
        mef.display(),
        site.file().display()
    );
    let topology = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/clean-200ms.toml");
    let lab = format!("exec {} lab run {}", mef.display(), topology.display());
    for (command, right) in [
        (&router, "cap_net_raw"),
        (&router, "cap_net_admin"),
        (&lab, "cap_net_raw"),
        (&lab, "cap_net_admin"),
        (&lab, "cap_sys_admin"),
    ] {
        let out = Command::new("timeout")
            .args([
                "10",
                "capsh",
                &format!("--drop={right}"),
                "--",
                "-c",
                command,
            ])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(
            matches!(out.status.code(), Some(1 | 2)),
            "{:?} {said}",
            out.status
        );
        assert!(
            said.contains(&right.to_uppercase()),
            "{command} without {right}: {said}"
        );
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        assert!(!site.socket().exists(), "something was started");
    }
}

#[test]
fn an_interrupted_router_leaves_nothing() {
    need!();
    let lab = Lab::up(Routers::Direct, "rate='100Mbit/s'");
    let site = Site::new();
    std::fs::write(site.file(), &site.config).unwrap();
    for by in [Signal::SIGINT, Signal::SIGTERM] {
        let mut router = lab.command("a1", mef());
        router.args(["router", "run", "-c"]).arg(site.file());
        let mut router = router.stderr(Stdio::null()).spawn().unwrap();
        wait_for("the control socket", Duration::from_secs(10), || {
            let there = site.socket().exists();
            there
                .then_some(())
                .ok_or(format!("{:?}", router.try_wait()))
        });
        signal(&router, by);
        assert_eq!(router.wait().unwrap().code(), Some(0));
        assert!(!site.socket().exists());
    }
}

fn names_in(folder: &Path, prefix: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with(prefix))
        .collect()
}

/// When a process was started, in ticks since boot: what tells it from a later one with its number.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let behind_name = stat.rsplit_once(')')?.1;
    behind_name.split_whitespace().nth(19).map(str::to_owned)
}

#[test]
fn an_interrupted_lab_leaves_no_namespace_no_interface_and_no_process() {
    need!();
    let topology = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/clean-200ms.toml");
    let interfaces = || names_in(Path::new("/sys/class/net"), "");
    for by in [Signal::SIGINT, Signal::SIGTERM] {
        let before = interfaces();
        let mut lab = Command::new(mef())
            .args(["lab", "run", topology.to_str().unwrap()])
            .args(["--transport", "mef", "--seconds", "60"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prefix = format!("mef{}-", lab.id());
        let namespaces = || names_in(Path::new("/run/netns"), &prefix);
        // Up to the load: two routers, the emulator, two agents.
        let children = wait_for("the load", Duration::from_secs(30), || {
            let mut all: Vec<(u32, String)> = Vec::new();
            for name in namespaces() {
                let out = Command::new("ip").args(["netns", "pids", &name]).output();
                let text = String::from_utf8(out.unwrap().stdout).unwrap();
                let pids = text.split_whitespace().filter_map(|p| p.parse().ok());
                all.extend(pids.filter_map(|pid: u32| Some((pid, started(pid)?))));
            }
            if all.len() < 5 {
                return Err(format!("{all:?}, {:?}", lab.try_wait()));
            }
            Ok(all)
        });
        signal(&lab, by);
        assert_eq!(lab.wait().unwrap().code(), Some(128 + by as i32));
        assert_eq!(namespaces(), Vec::<String>::new());
        assert_eq!(
            names_in(&std::env::temp_dir(), &prefix),
            Vec::<String>::new()
        );
        assert_eq!(interfaces(), before);
        for (pid, since) in children {
            // Killed; gone as soon as somebody has waited for it.
            wait_for("its processes", Duration::from_secs(5), || {
                let there = started(pid).as_ref() == Some(&since);
                (!there)
                    .then_some(())
                    .ok_or(format!("process {pid} is still there"))
            });
        }
    }
}
