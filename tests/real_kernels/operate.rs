//! What operators use: the metrics with curl and promtool, `mef show`, and `mef top` in a terminal.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::{mef, need, wait_for, Lab, Routers};

const WAN: &str = "rate='50Mbit/s'\nrtt='20ms'\nqueue='1BDP'";
const SOON: Duration = Duration::from_secs(20);

fn file(lab: &Lab, name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("mef{}-0/{name}", lab.pid()))
}

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs/monitoring")
        .join(name)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn scrape(lab: &Lab) -> String {
    let url = "http://127.0.0.1:9464/metrics";
    lab.sh_ok("ra", &format!("curl -sS --fail --max-time 10 {url}"))
}

/// Names of the samples of a scrape.
fn names(scrape: &str) -> BTreeSet<String> {
    let samples = scrape.lines().filter(|l| !l.starts_with('#'));
    let name = |l: &str| l.split(['{', ' ']).next().unwrap().to_owned();
    samples.map(name).collect()
}

/// The names of metrics in a text of expressions.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
    let ours = words.filter(|w| w.starts_with("mef_") || w.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// Every string under a key of this name.
fn strings(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                match v {
                    Value::String(s) if k == key => found.push(s.clone()),
                    _ => strings(v, key, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| strings(v, key, found)),
        _ => {}
    }
}

#[test]
fn curl_gets_metrics_that_promtool_likes_and_that_dashboard_and_alerts_name() {
    need!("curl", "promtool", "ping");
    let lab = Lab::up(Routers::Mef, WAN);
    let first = scrape(&lab);
    lab.sh_ok("a1", "ping -c 3 -i 0.1 $B1");
    let later = scrape(&lab);
    let series = |s: &str| -> BTreeSet<String> {
        let samples = s.lines().filter(|l| !l.starts_with('#'));
        let series = samples.map(|l| l.rsplit_once(' ').unwrap().0.to_owned());
        series.collect()
    };
    assert_eq!(series(&first), series(&later));
    let value = |name: &str| -> f64 {
        let line = later.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    assert!(value("mef_datagrams_sent_total") >= 3.0);
    assert_eq!(value("mef_link_up{link=\"site-b\"}"), 1.0);
    assert!(value("mef_link_rtt_seconds{link=\"site-b\"}") > 0.015);
    assert!(value("process_resident_memory_bytes") > 1e6);

    let mut check = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = check.stdin.take().unwrap();
    input.write_all(later.as_bytes()).unwrap();
    drop(input);
    let out = check.wait_with_output().unwrap();
    let said = text(&out.stdout) + &text(&out.stderr);
    assert!(out.status.success() && said.trim().is_empty(), "{said}");

    for args in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts-tests.yml"],
        ["check", "config", "prometheus.yml"],
    ] {
        let mut promtool = Command::new("promtool");
        let out = promtool.args(args).current_dir(docs("")).output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.success(), "{args:?}: {said}");
    }

    let there = names(&later);
    let dashboard = std::fs::read_to_string(docs("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let mut expressions = Vec::new();
    strings(&dashboard, "expr", &mut expressions);
    strings(&dashboard, "query", &mut expressions);
    assert!(expressions.len() > 30);
    let rules = std::fs::read_to_string(docs("alerts.yml")).unwrap();
    let wanted = named(&(expressions.join("\n") + &rules));
    assert!(wanted.len() > 30);
    let missing: Vec<&String> = wanted.difference(&there).collect();
    assert!(missing.is_empty(), "no such metric: {missing:?}");

    let other = lab.sh(
        "ra",
        "curl -sS -o /dev/null -w '%{http_code}' http://127.0.0.1:9464/",
    );
    assert_eq!(text(&other.stdout), "404");
    let post = "curl -sS -o /dev/null -w '%{http_code}' -d x http://127.0.0.1:9464/metrics";
    assert_eq!(text(&lab.sh("ra", post).stdout), "405");
}

fn show(args: &[&str]) -> Output {
    Command::new(mef()).arg("show").args(args).output().unwrap()
}

fn rows(socket: &str, what: &str) -> Vec<Value> {
    let out = show(&[what, "--socket", socket, "-o", "json"]);
    assert!(out.status.success(), "{what}: {}", text(&out.stderr));
    let page: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(page["router"], "site-a");
    assert!(page.get("next").is_none(), "{what} is not whole");
    page["rows"].as_array().unwrap().clone()
}

#[test]
fn show_tells_flows_links_ports_drops_routes_and_neighbours() {
    need!("python3", "ping");
    let lab = Lab::up(Routers::Mef, WAN);
    let socket = file(&lab, "a.sock");
    let socket = socket.to_str().unwrap();
    let config = file(&lab, "a.toml");
    lab.sh_ok("a1", "ping -c 1 $B1; ping -c 1 -t 1 $B1; true");
    // 600 idle connections: more than two pages of flows.
    let server = "import socket,time\n\
        s=socket.create_server(('10.2.1.2',7000),backlog=1000)\n\
        k=[s.accept() for _ in range(600)]\n\
        time.sleep(60)";
    let client = "import socket,time\n\
        k=[]\n\
        for _ in range(600):\n\
        \x20 c=socket.create_connection(('10.2.1.2',7000),10)\n\
        \x20 c.send(b'hello'); k.append(c)\n\
        time.sleep(60)";
    let _server = lab.background("b1", "python3", &["-c", server]);
    wait_for("the server", SOON, || {
        let out = lab.sh("b1", "ss -ltn | grep -q :7000");
        out.status.success().then_some(()).ok_or(String::new())
    });
    let _client = lab.background("a1", "python3", &["-c", client]);
    let flows = wait_for("600 flows", Duration::from_secs(60), || {
        let flows = rows(socket, "flows");
        let sent = |f: &&Value| f["state"] == "open" && f["sent_bytes"] == 5;
        let open = flows.iter().filter(sent).count();
        (open == 600).then_some(flows).ok_or(format!("{open}"))
    });
    let hosts: BTreeSet<&str> = flows.iter().map(|f| f["host"].as_str().unwrap()).collect();
    assert_eq!(hosts.len(), 600);
    assert!(flows
        .iter()
        .all(|f| f["far"] == "10.2.1.2:7000" && f["peer"] == "site-b"));

    let links = rows(socket, "links");
    assert_eq!((links.len(), &links[0]["state"]), (1, &Value::from("up")));
    assert_eq!(links[0]["split_flows"], 600);
    let ports = rows(socket, "ports");
    let named: Vec<&str> = ports.iter().map(|p| p["port"].as_str().unwrap()).collect();
    assert_eq!(named, ["lan1", "wan"]);
    let expired = rows(socket, "drops");
    let expired = expired.iter().find(|d| d["reason"] == "ip.ttl_expired");
    assert_eq!(expired.unwrap()["packets"], 1);
    assert!(rows(socket, "routes")
        .iter()
        .any(|r| r["via"] == "site-b" && r["up"] == true));
    assert!(rows(socket, "neighbours")
        .iter()
        .any(|n| n["address"] == "10.1.1.2" && n["state"] == "reachable"));

    // For people, found through the configuration.
    for (what, shown) in [
        ("flows", "10.2.1.2:7000"),
        ("links", "site-b"),
        ("ports", "lan1"),
        ("drops", "ip.ttl_expired"),
        ("routes", "connected"),
        ("neighbours", "reachable"),
    ] {
        let out = show(&[what, "-c", config.to_str().unwrap()]);
        let table = text(&out.stdout);
        assert!(
            out.status.success() && table.contains(shown),
            "{what}: {table}"
        );
        let head = table.lines().next().unwrap();
        assert_eq!(head, head.to_uppercase());
    }
    let nobody = show(&["links", "--socket", "/nonexistent/mef.sock"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).starts_with("/nonexistent/mef.sock: "));
    let no_file = show(&["links", "-c", "/nonexistent/mef.toml"]);
    assert_eq!(no_file.status.code(), Some(2));
    let neither = show(&["links"]);
    assert_eq!(neither.status.code(), Some(2));
}

/// Runs `mef top` on a terminal of 40 lines and 140 columns, types q when it has
/// seen enough, and prints what was drawn.
const PTY: &str = r#"
import fcntl, os, pty, select, struct, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    time.sleep(0.3)
    os.environ["TERM"] = "xterm-256color"
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
seen, asked, until = b"", False, time.time() + 20
while time.time() < until:
    if select.select([fd], [], [], 0.1)[0]:
        try:
            data = os.read(fd, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    if not asked and seen.count(b"Mbit/s") >= 3 and b"site-b" in seen:
        asked = True
        os.write(fd, b"q")
sys.stdout.buffer.write(seen)
sys.stdout.flush()
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status) if asked else 99)
"#;

#[test]
fn top_draws_on_a_terminal_until_q_and_refuses_a_pipe() {
    need!("python3", "iperf3");
    let lab = Lab::up(Routers::Mef, WAN);
    let socket = file(&lab, "a.sock");
    let socket = socket.to_str().unwrap();
    let _server = lab.background("b1", "iperf3", &["-s", "-1"]);
    let _client = lab.background("a1", "iperf3", &["-c", "10.2.1.2", "-t", "30"]);
    let out = Command::new("python3")
        .args(["-c", PTY, mef().to_str().unwrap()])
        .args(["top", "--socket", socket, "-i", "0.5"])
        .output()
        .unwrap();
    let drawn = text(&out.stdout);
    assert!(
        out.status.success(),
        "{}: {drawn}{}",
        out.status,
        text(&out.stderr)
    );
    for shown in [
        "site-a",
        "site-b",
        "may send",
        "flows:",
        "drops",
        "10.2.1.2:5201",
    ] {
        assert!(drawn.contains(shown), "{shown} was not drawn: {drawn}");
    }
    // The terminal is left as it was found.
    assert!(drawn.contains("\u{1b}[?1049h") && drawn.contains("\u{1b}[?1049l"));

    let piped = Command::new(mef())
        .args(["top", "--socket", socket])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(piped.status.code(), Some(2));
    assert!(text(&piped.stderr).contains("mef show"));
    // One line of seven: the reader leaves before all is written.
    let head = format!(
        "{} show ports --socket {socket} | head -n 1",
        mef().display()
    );
    let out = Command::new("sh").args(["-c", &head]).output().unwrap();
    assert!(out.status.success() && text(&out.stderr).is_empty());
}
