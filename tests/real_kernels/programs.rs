//! Programs as they come, unchanged, through the routers.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::lab::{need, Lab, Routers};
use crate::ssh::{listening, Sshd};

const PATH: &str = "rate='100Mbit/s'\nrtt='40ms'\nqueue='1BDP'\nloss=0.01";

/// Makes a file of random bytes that everybody may read.
fn random_file(path: &Path, megabytes: u32) {
    let of = format!("of={}", path.display());
    let dd = Command::new("dd")
        .args([
            "if=/dev/urandom",
            &of,
            "bs=1M",
            &format!("count={megabytes}"),
        ])
        .stderr(std::process::Stdio::null())
        .status();
    assert!(dd.unwrap().success());
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
}

#[test]
fn curl_fetches_from_nginx() {
    need!("nginx", "curl", "ss");
    let lab = Lab::up(Routers::Mef, PATH);
    let folder = lab.folder.path();
    // The server's workers are another user.
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    for (name, megabytes) in [("one", 1), ("ten", 10)] {
        random_file(&folder.join(name), megabytes);
    }
    let dir = folder.display();
    let config = format!(
        "daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log;
         events {{}}
         http {{ access_log off; client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2;
                 fastcgi_temp_path {dir}/t3; uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
                 server {{ listen 8080; root {dir}; }} }}"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let _nginx = lab.background("b1", "nginx", &["-c", file.to_str().unwrap()]);
    listening(&lab, "b1", 8080);
    for name in ["one", "ten", "one"] {
        lab.sh_ok(
            "a1",
            &format!("curl -sS --max-time 30 -o got http://$B1:8080/{name} && cmp got {name}"),
        );
    }
    // Two files over one connection, and an answer that is no file.
    let codes = lab.sh_ok(
        "a1",
        "curl -sS --max-time 30 -o got1 -o got2 -w '%{num_connects} %{http_code}\n' http://$B1:8080/one http://$B1:8080/nowhere",
    );
    assert_eq!(codes, "1 200\n0 404\n");
}

#[test]
fn iperf3_runs_both_ways() {
    need!("iperf3", "ss");
    let lab = Lab::up(Routers::Mef, PATH);
    let _server = lab.background("b1", "iperf3", &["-s"]);
    listening(&lab, "b1", 5201);
    for direction in ["", "-R", "--bidir"] {
        let said = lab.sh_ok("a1", &format!("iperf3 -c $B1 -t 3 -f k {direction}"));
        let received: Vec<f64> = said
            .lines()
            .filter(|l| l.ends_with("receiver"))
            .map(|l| {
                let words: Vec<&str> = l.split_whitespace().collect();
                let unit = words.iter().position(|w| *w == "Kbits/sec").unwrap();
                words[unit - 1].parse().unwrap()
            })
            .collect();
        assert!(!received.is_empty(), "{said}");
        // The line carries 94.7 Mbit/s; CUBIC by itself finds less than 10 of them. Three
        // seconds are short, and both ways at once iperf3 is what a small machine waits for.
        let least = if direction == "--bidir" {
            25_000.0
        } else {
            60_000.0
        };
        assert!(received.iter().all(|r| *r > least), "{said}");
    }
}

#[test]
fn rsync_copies_over_ssh() {
    need!("rsync", "ssh", "sshd", "ssh-keygen", "ss");
    let lab = Lab::up(Routers::Mef, PATH);
    let folder = lab.folder.path();
    let dir = folder.display();
    let sshd = Sshd::start(&lab);
    let ssh = &sshd.ssh;
    let tree = folder.join("tree/deep");
    std::fs::create_dir_all(&tree).unwrap();
    random_file(&tree.join("large"), 5);
    for i in 0..50 {
        std::fs::write(tree.join(format!("small{i}")), format!("{i}").repeat(i)).unwrap();
    }
    lab.sh_ok(
        "a1",
        &format!(
            "rsync -a --timeout=30 -e '{ssh}' tree/ root@$B1:{dir}/pushed/ && diff -r tree pushed"
        ),
    );
    // Pulled, with a change in the middle of the large file to be found.
    let change =
        "printf changed | dd of=pushed/deep/large bs=1 seek=2000000 conv=notrunc 2>/dev/null";
    lab.sh_ok(
        "a1",
        &format!("{change}; rsync -a --timeout=30 -e '{ssh}' root@$B1:{dir}/pushed/ tree/ && diff -r tree pushed"),
    );
}

#[test]
fn ping_traceroute_and_large_packets_see_a_path() {
    need!("ping", "traceroute");
    let lab = Lab::up(Routers::Mef, "rate='100Mbit/s'\nrtt='40ms'\nqueue='1BDP'");
    let said = lab.sh_ok("a1", "ping -c 10 -i 0.05 -W 2 $B1");
    assert!(said.contains(" 0% packet loss"), "{said}");
    let times = said.rsplit_once("= ").unwrap().1;
    let average: f64 = times.split('/').nth(1).unwrap().parse().unwrap();
    assert!((40.0..50.0).contains(&average), "{said}");
    // The largest packet of an Ethernet, not to be fragmented; and one that its host fragments.
    for size in ["-M do -s 1472", "-s 4000"] {
        lab.sh_ok("a1", &format!("ping -c 3 -i 0.2 -W 2 {size} $B1"));
    }
    // The routers' own hops, then the host; nothing in between is shown.
    let said = lab.sh_ok("a1", "traceroute -n -q 1 -w 2 -m 6 $B1");
    let hops: Vec<&str> = said
        .lines()
        .skip(1)
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    assert_eq!(hops.first(), Some(&"10.1.1.1"), "{said}");
    assert_eq!(hops.last(), Some(&"10.2.1.2"), "{said}");
    assert!(hops.len() <= 3, "{said}");
    // The router answers for itself.
    lab.sh_ok("a1", "ping -c 2 -i 0.1 -W 2 10.1.1.1");
}

#[test]
fn names_resolve_over_udp_and_over_tcp() {
    need!("dig", "dnsmasq", "ss");
    let lab = Lab::up(Routers::Mef, "rate='100Mbit/s'\nrtt='40ms'\nqueue='1BDP'");
    let mut records = String::new();
    for i in 0..60 {
        let _ = write!(records, "--txt-record=long.test,{:0>40} ", i);
    }
    let script = format!(
        "exec dnsmasq -k -p 5353 -C /dev/null --no-resolv --no-hosts --user=root --pid-file= \
         --address=/name.test/192.0.2.77 {records}"
    );
    let _server = lab.background("b1", "sh", &["-c", &script]);
    listening(&lab, "b1", 5353);
    let dig = "dig +time=3 +tries=1 +short -p 5353 @$B1";
    let said = lab.sh_ok("a1", &format!("{dig} name.test A"));
    assert_eq!(said, "192.0.2.77\n");
    let said = lab.sh_ok("a1", &format!("{dig} +tcp name.test A"));
    assert_eq!(said, "192.0.2.77\n");
    // Too long for a datagram of 1232 bytes: asked again over TCP.
    let said = lab.sh_ok("a1", &format!("{dig} +bufsize=1232 long.test TXT"));
    assert_eq!(
        said.lines().filter(|l| l.contains("\"0000")).count(),
        60,
        "{said}"
    );
}

#[test]
fn clocks_are_compared_over_ntp() {
    need!("chronyd", "ss");
    let lab = Lab::up(Routers::Mef, "rate='100Mbit/s'\nrtt='40ms'\nqueue='1BDP'");
    let dir = lab.folder.path().display();
    // -x: neither of them touches the machine's clock.
    let server = format!(
        "exec chronyd -x -d -u root 'local stratum 8' 'allow all' 'cmdport 0' 'pidfile {dir}/ntp.pid'"
    );
    let _server = lab.background("b1", "sh", &["-c", &server]);
    let said = lab.sh_ok(
        "a1",
        &format!("chronyd -x -Q -t 30 -u root \"server $B1 iburst\" 'cmdport 0' 'pidfile {dir}/ntpc.pid' 2>&1"),
    );
    let offset: f64 = said
        .split("wrong by ")
        .nth(1)
        .and_then(|t| t.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("{said}"));
    // Both hosts have one clock, and both ways take the same time.
    assert!(offset.abs() < 0.002, "{said}");
}

#[test]
fn mtr_sees_every_hop_without_loss() {
    need!("mtr");
    let lab = Lab::up(Routers::Mef, "rate='100Mbit/s'\nrtt='40ms'\nqueue='1BDP'");
    for protocol in ["", "--udp", "--tcp"] {
        let said = lab.sh_ok("a1", &format!("mtr -n -r -c 5 -i 0.3 -G 1 {protocol} $B1"));
        let hops: Vec<Vec<&str>> = said
            .lines()
            .filter(|l| l.contains(".|--"))
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(hops.first().map(|h| h[1]), Some("10.1.1.1"), "{said}");
        assert_eq!(hops.last().map(|h| h[1]), Some("10.2.1.2"), "{said}");
        assert!(hops.iter().all(|h| h[2] == "0.0%"), "{said}");
    }
}
