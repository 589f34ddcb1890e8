//! The lab as a whole, over Linux routers: needs root, network namespaces and
//! the `mef` binary (`MEF_BIN`, else the one of this build).

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use mef_io::os::{has_capability, Cap};
use mef_lab::results::Results;

/// The binary, or why this test cannot be done here. Where it could be done, a missing binary fails it.
fn mef() -> Result<PathBuf, String> {
    for cap in [Cap::SysAdmin, Cap::NetAdmin, Cap::NetRaw] {
        if !has_capability(cap) {
            return Err(format!("{} is missing", cap.name()));
        }
    }
    let given = std::env::var_os("MEF_BIN").map(PathBuf::from);
    let path = given.unwrap_or_else(|| {
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("mef")
    });
    assert!(
        path.exists(),
        "{} is not there: run `cargo build -p mef` first, or set MEF_BIN",
        path.display()
    );
    Ok(path)
}

fn topology(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../topologies")
        .join(name)
}

fn lab(mef: &Path, args: &[&str]) -> Output {
    Command::new(mef).arg("lab").args(args).output().unwrap()
}

fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

fn namespaces_of(pid: u32) -> usize {
    let prefix = format!("mef{pid}-");
    let names = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    names
        .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
        .count()
}

macro_rules! mef_or_skip {
    () => {
        match mef() {
            Ok(path) => path,
            Err(why) => {
                eprintln!("skipped: {why}");
                return;
            }
        }
    };
}

#[test]
fn cubic_fills_a_clean_line_of_100_mbit_and_20_ms() {
    let mef = mef_or_skip!();
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("out.json");
    let file = topology("clean-200ms.toml");
    let out = lab(
        &mef,
        &[
            "run",
            file.to_str().unwrap(),
            "--transport",
            "cubic",
            "--seconds",
            "3",
            "--set",
            "wan.rtt=20ms",
            "--json",
            json.to_str().unwrap(),
        ],
    );
    assert!(out.status.success(), "{}", text(&out));
    let results = Results::read(&json).unwrap();
    assert_eq!(results.topology, "clean-200ms");
    let run = &results.runs[0];
    assert_eq!(run.errors, Vec::<String>::new());
    assert!(
        run.flows[0].sha256_ok && run.flows[0].complete,
        "{:?}",
        run.flows[0]
    );
    // The ceiling is 95.6 Mbit/s; CUBIC has found it before the tail begins.
    assert!(
        run.goodput_bps > 0.9 * run.ceiling_bps && run.goodput_bps < 1.01 * run.ceiling_bps,
        "{}",
        run.goodput_bps
    );
    // Measured by the emulator, not copied: near the truth and not exactly it.
    assert!(
        (run.wan.rate_bps / 100e6 - 1.0).abs() < 0.01,
        "{}",
        run.wan.rate_bps
    );
    assert!(
        (20_000..21_000).contains(&run.wan.rtt_us),
        "{}",
        run.wan.rtt_us
    );
    assert!(
        run.wan.offered > 10_000 && run.wan.loss_drops == 0,
        "{:?}",
        run.wan
    );
    assert!(
        (10_000..13_000).contains(&run.probe_idle_p99_us),
        "{}",
        run.probe_idle_p99_us
    );
    assert!(run.probe_p99_us > run.probe_idle_p99_us);
}

#[test]
fn a_host_reaches_the_other_site_and_the_exit_code_comes_back() {
    let mef = mef_or_skip!();
    let file = topology("clean-200ms.toml");
    // A TCP connection takes one round trip: the emulator's, not less and hardly more.
    let script = "python3 - <<'END'
import os, socket, time
start = time.monotonic()
try:
    socket.create_connection((os.environ['B1'], 9), timeout=5)
except ConnectionRefusedError:
    pass
start = time.monotonic()
try:
    socket.create_connection((os.environ['B1'], 9), timeout=5)
except ConnectionRefusedError:
    print('refused after', time.monotonic() - start)
END
exit 7";
    let out = lab(
        &mef,
        &[
            "exec",
            file.to_str().unwrap(),
            "a1",
            "--transport",
            "direct",
            "--set",
            "wan.rtt=50ms",
            "--",
            "sh",
            "-c",
            script,
        ],
    );
    assert_eq!(out.status.code(), Some(7), "{}", text(&out));
    let said = String::from_utf8_lossy(&out.stdout);
    let seconds: f64 = said
        .trim()
        .strip_prefix("refused after ")
        .unwrap()
        .parse()
        .unwrap();
    assert!((0.05..0.06).contains(&seconds), "{said}");
}

/// As a web server's workers do, whose master is killed.
#[test]
fn what_a_command_leaves_behind_ends_with_the_lab() {
    let mef = mef_or_skip!();
    let file = topology("clean-200ms.toml");
    let file = file.to_str().unwrap();
    let orphan = "b1=sleep 777 >/dev/null 2>&1 & echo $! >&2";
    let with = ["--transport", "direct", "--with", orphan];
    // Until the orphan runs, at most 5 s.
    let wait = [
        "--",
        "timeout",
        "5",
        "sh",
        "-c",
        "until pgrep -fx 'sleep 777' >/dev/null; do :; done",
    ];
    let mut args = vec!["exec", file, "a1"];
    args.extend(with.into_iter().chain(wait));
    let out = lab(&mef, &args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let pid: u32 = said
        .lines()
        .find_map(|l| l.trim().parse().ok())
        .unwrap_or_else(|| panic!("no process number: {}", text(&out)));
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    assert!(!command.starts_with(b"sleep\x00777"), "{pid} runs on");
}

#[test]
fn nothing_is_left_after_an_interrupt() {
    let mef = mef_or_skip!();
    let file = topology("clean-200ms.toml");
    let mut child = Command::new(&mef)
        .args([
            "lab",
            "run",
            file.to_str().unwrap(),
            "--transport",
            "cubic",
            "--seconds",
            "30",
        ])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while namespaces_of(pid) < 5 && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(namespaces_of(pid), 5);
    let kill = Command::new("kill")
        .args(["-INT", &pid.to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(namespaces_of(pid), 0);
    assert!(!std::env::temp_dir().join(format!("mef{pid}-0")).exists());
}

#[test]
fn bad_input_is_refused_before_anything_is_built() {
    let mef = mef_or_skip!();
    let file = topology("clean-200ms.toml");
    let file = file.to_str().unwrap();
    for (args, expected) in [
        (
            &["run", file, "--set", "wan.los=1"][..],
            "unknown field `los`",
        ),
        (&["run", "/nowhere.toml"][..], "/nowhere.toml"),
        (&["exec", file, "c1", "--", "true"][..], "a1, b1"),
    ] {
        let out = lab(&mef, args);
        assert_eq!(out.status.code(), Some(2), "{}", text(&out));
        assert!(text(&out).contains(expected), "{}", text(&out));
    }
}
