//! Receive offload on a router's line: UDP of others that the kernel joins there comes
//! out at their host as the datagrams that were sent, and the interface is given back.

use std::fs::File;
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mef_dataplane::control;
use mef_io::os::{set_interface_offload, InterfaceFeatures, Offload};
use nix::sched::{setns, CloneFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags, SockaddrIn};

use crate::lab::{mef, need, signal, wait_for};

const SOON: Duration = Duration::from_secs(10);
const FEATURE: &str = "rx-udp-gro-forwarding";
const DATAGRAM: usize = 1200;

const CONFIG: &str = r#"
[router]
name = "r"
private_key = "r.key"
control = "CONTROL"

[[port]]
name = "wan"
interface = "wan"
addresses = ["198.51.100.1/24"]
[port.line]
up = "1Gbit/s"
down = "1Gbit/s"

[[port]]
name = "lan"
interface = "lan"
addresses = ["10.1.0.1/24"]
"#;

fn sh(script: &str) {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(out.status.success(), "{script}: {out:?}");
}

/// A host outside, a router, and a host behind it.
struct Path3 {
    tag: String,
    folder: tempfile::TempDir,
    router: Option<Child>,
}

impl Path3 {
    fn up() -> Self {
        let tag = format!("meg{}", std::process::id());
        let path = Self {
            tag,
            folder: tempfile::tempdir().unwrap(),
            router: None,
        };
        let t = &path.tag;
        sh(&format!(
            "for n in o r h; do ip netns add {t}-$n; ip -n {t}-$n link set lo up; done
             ip -n {t}-o link add eth0 type veth peer name wan netns {t}-r
             ip -n {t}-h link add eth0 type veth peer name lan netns {t}-r
             for i in 'o eth0' 'h eth0' 'r wan' 'r lan'; do set -- $i; ip -n {t}-$1 link set $2 up; done
             ip -n {t}-o addr add 198.51.100.2/24 dev eth0; ip -n {t}-o route add default via 198.51.100.1
             ip -n {t}-h addr add 10.1.0.2/24 dev eth0; ip -n {t}-h route add default via 10.1.0.1"
        ));
        path
    }

    /// What `f` says in the namespace of `host`.
    fn within<T: Send>(&self, host: &str, f: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(format!("{}-{host}", self.tag)));
        let file = file.unwrap();
        std::thread::scope(|s| {
            let thread = s.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            thread.join().unwrap()
        })
    }

    fn start(&mut self) {
        let folder = self.folder.path();
        let key = folder.join("r.key");
        let mut made = Command::new(mef());
        made.args(["keys", "generate"]).arg(key);
        assert!(made.output().unwrap().status.success());
        let control = folder.join("r.sock");
        let file = folder.join("r.toml");
        std::fs::write(&file, CONFIG.replace("CONTROL", control.to_str().unwrap())).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-r", self.tag)]);
        command.arg(mef()).args(["router", "run", "-c"]).arg(file);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.router = Some(command.spawn().unwrap());
        wait_for("the router", SOON, || {
            std::fs::metadata(&control)
                .map(drop)
                .map_err(|e| e.to_string())
        });
    }

    fn stop(&mut self) {
        if let Some(mut router) = self.router.take() {
            signal(&router, Signal::SIGTERM);
            let _ = router.wait();
        }
    }

    fn joins(&self) -> bool {
        let active = self.within("r", || InterfaceFeatures::of("wan").unwrap().active());
        active.unwrap().iter().any(|f| f == FEATURE)
    }
}

impl Drop for Path3 {
    fn drop(&mut self) {
        self.stop();
        for n in ["o", "r", "h"] {
            let name = format!("{}-{n}", self.tag);
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

#[test]
fn datagrams_of_others_that_the_kernel_joins_arrive_as_they_were_sent() {
    need!();
    let mut path = Path3::up();
    path.within("o", || {
        let of = InterfaceFeatures::of("eth0").unwrap();
        of.switch("tx-udp-segmentation", false).unwrap();
    });
    path.within("r", || {
        set_interface_offload("wan", Offload::Gro, true).unwrap()
    });
    assert!(!path.joins());
    path.start();
    if !path.joins() {
        eprintln!("skipped: the kernel does not join UDP for packet sockets");
        return;
    }
    let target: SocketAddr = "10.1.0.2:9000".parse().unwrap();
    let receiver = path.within("h", || UdpSocket::bind(target).unwrap());
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let sender = path.within("o", || UdpSocket::bind("0.0.0.0:0").unwrap());
    // The neighbours get to know each other.
    let mut buf = vec![0; 65_536];
    sender.send_to(b"first", target).unwrap();
    assert_eq!(receiver.recv(&mut buf).unwrap(), 5);

    for round in 0..20usize {
        // Cut by the sender's kernel, all at once, the last one shorter.
        let bytes: Vec<u8> = (0..30 * DATAGRAM + 70 + round)
            .map(|n| (n / 7 + round) as u8)
            .collect();
        let size = DATAGRAM as u16;
        let to: SockaddrIn = "10.1.0.2:9000"
            .parse::<std::net::SocketAddrV4>()
            .unwrap()
            .into();
        let cut = [ControlMessage::UdpGsoSegments(&size)];
        let whole = [IoSlice::new(&bytes)];
        sendmsg(
            sender.as_raw_fd(),
            &whole,
            &cut,
            MsgFlags::empty(),
            Some(&to),
        )
        .unwrap();
        for sent in bytes.chunks(DATAGRAM) {
            let n = receiver.recv(&mut buf).unwrap();
            assert!(
                buf[..n] == *sent,
                "round {round}: {n} bytes of {}",
                sent.len()
            );
        }
    }
    // 20 rounds of 31 datagrams and what neighbours say; now and then the kernel hands on a part.
    let socket = path.folder.path().join("r.sock");
    let counters = control::query(&socket, SOON).unwrap().counters;
    let frames = counters["port_wan_rx_packets"];
    assert!(frames < 200, "{frames} frames: they were not joined");
    path.stop();
    assert!(!path.joins(), "the interface was not given back");
}
