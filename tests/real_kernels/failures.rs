//! What fails, between real hosts: each test states the time without traffic
//! and has a bound for it. The path has a round trip of 100 ms.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{mpsc, Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{need, wait_for, Lab, Routers, B1};
use crate::pulse::{OwnRouter, Pulse};

const WAN: &str = "rate='50Mbit/s'\nrtt='100ms'\nqueue='1BDP'";
/// Nothing takes as long.
const STALL: Duration = Duration::from_secs(20);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// How an end of a connection saw it end, when, and the bytes that it had read.
#[derive(Clone, Copy, Debug)]
struct Ended {
    how: Option<ErrorKind>,
    at: Instant,
    read: usize,
}

/// Reads until the connection ends.
fn read_on(mut stream: &TcpStream) -> Ended {
    stream.set_read_timeout(Some(STALL)).unwrap();
    let (mut read, mut room) = (0, vec![0; 1 << 16]);
    let how = loop {
        match stream.read(&mut room) {
            Ok(0) => break None,
            Ok(n) => read += n,
            Err(e) => break Some(e.kind()),
        }
    };
    let at = Instant::now();
    Ended { how, at, read }
}

/// Connections from a1 to b1; each end reads until its end and tells it.
struct Connections {
    ends: mpsc::Receiver<(&'static str, usize, Ended)>,
    clients: Vec<TcpStream>,
    /// Clients whose sender, not their reader, heard of the reset: a socket says so once.
    reset: Arc<Mutex<Vec<usize>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Connections {
    fn open(lab: &Lab, port: u16, count: usize) -> Self {
        let (tell, ends) = mpsc::channel();
        let (ready, listening) = mpsc::channel();
        let at_server = tell.clone();
        let server = lab.thread("b1", move || {
            let listener = TcpListener::bind((B1, port)).unwrap();
            ready.send(()).unwrap();
            let readers: Vec<_> = (0..count)
                .map(|i| {
                    let (stream, _) = listener.accept().unwrap();
                    let tell = at_server.clone();
                    std::thread::spawn(move || {
                        let _ = tell.send(("server", i, read_on(&stream)));
                    })
                })
                .collect();
            readers.into_iter().for_each(|r| r.join().unwrap());
        });
        listening.recv().unwrap();
        let clients: Vec<TcpStream> = (0..count)
            .map(|_| {
                let opened = lab.thread("a1", move || connect(port));
                opened.join().unwrap().unwrap()
            })
            .collect();
        let mut threads = vec![server];
        for (i, c) in clients.iter().enumerate() {
            let (stream, tell) = (c.try_clone().unwrap(), tell.clone());
            threads.push(std::thread::spawn(move || {
                let _ = tell.send(("client", i, read_on(&stream)));
            }));
        }
        Self {
            ends,
            clients,
            reset: Arc::default(),
            threads,
        }
    }

    /// Has a client send all the time, until that fails.
    fn flood(&mut self, client: usize) {
        let mut stream = self.clients[client].try_clone().unwrap();
        stream.set_write_timeout(Some(STALL)).unwrap();
        let reset = Arc::clone(&self.reset);
        self.threads.push(std::thread::spawn(move || {
            let bytes = [7; 1 << 14];
            let error = loop {
                if let Err(e) = stream.write_all(&bytes) {
                    break e.kind();
                }
            };
            if error == ErrorKind::ConnectionReset {
                reset.lock().unwrap().push(client);
            }
        }));
    }

    fn ends(&self, count: usize) -> Vec<(&'static str, usize, Ended)> {
        let next = |_| {
            self.ends
                .recv_timeout(STALL)
                .expect("an end that does not come")
        };
        (0..count).map(next).collect()
    }

    /// Whether an end heard RST.
    fn was_reset(&self, who: &str, i: usize, end: &Ended) -> bool {
        if end.how == Some(ErrorKind::ConnectionReset) {
            return true;
        }
        let sender = || self.reset.lock().unwrap().contains(&i);
        let until = Instant::now() + ms(500);
        while who == "client" && !sender() && Instant::now() < until {
            std::thread::sleep(ms(1));
        }
        who == "client" && sender()
    }

    fn join(self) {
        drop(self.clients);
        self.threads.into_iter().for_each(|t| t.join().unwrap());
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((B1, port)), STALL)
}

/// Opens, sends a byte and gets it back, again and again until that works; how long that took.
fn new_connection(lab: &Lab) -> Duration {
    let (ready, listening) = mpsc::channel();
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        ready.send(listener.local_addr().unwrap().port()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&byte).unwrap();
    });
    let port = listening.recv().unwrap();
    let began = Instant::now();
    lab.thread("a1", move || {
        let mut stream = wait_for("a connection", STALL, || {
            connect(port).map_err(|e| e.to_string())
        });
        stream.write_all(&[1]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    })
    .join()
    .unwrap();
    server.join().unwrap();
    began.elapsed()
}

/// SIGTERM: flows that end in time end whole, the others are reset at both hosts, nobody waits.
#[test]
fn a_router_told_to_stop_lets_flows_end_then_resets_them_and_exits_with_0() {
    need!();
    let lab = Lab::up(Routers::Mef, WAN);
    let drain = |t: String| t.replace("drain = \"0s\"", "drain = \"2s\"");
    let mut router = OwnRouter::instead(&lab, 'a', drain);
    let mut flows = Connections::open(&lab, 7000, 3);
    flows.flood(1);
    let told = Instant::now();
    router.terminate();
    // The first has 2 MB to send, and sends them; the second does not stop; the third says nothing.
    let mut ends_whole = flows.clients[0].try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        ends_whole.write_all(&vec![7; 2_000_000]).unwrap();
        ends_whole.shutdown(std::net::Shutdown::Write).unwrap();
    });
    std::thread::sleep(ms(50));
    let asked = Instant::now();
    let refused = lab.thread("a1", || connect(7000)).join().unwrap();
    let refused = (refused.map(drop).unwrap_err().kind(), asked.elapsed());
    sender.join().unwrap();
    let status = router.wait(STALL);
    let stopped = told.elapsed();
    // Client 0 waits for the server's half, which closes with the server's end.
    let ends = flows.ends(6);
    let reset: Vec<_> = ends
        .iter()
        .filter(|e| e.2.how == Some(ErrorKind::ConnectionReset))
        .collect();
    let last = reset.iter().map(|e| e.2.at - told).max().unwrap();
    println!(
        "SIGTERM with 2 s to drain: the router ended after {stopped:.2?}, reset hosts heard so {last:.2?} after it; \
         a new connection was refused ({:?}) after {:.2?}",
        refused.0, refused.1
    );
    assert_eq!(status.code(), Some(0), "{}", router.said());
    assert!((ms(1900)..ms(3000)).contains(&stopped), "{stopped:?}");
    assert!(
        refused.1 < ms(500) && refused.0 == ErrorKind::HostUnreachable,
        "{refused:?}"
    );
    let of = |who: &str, i: usize| ends.iter().find(|e| e.0 == who && e.1 == i).unwrap().2;
    assert_eq!(
        (of("server", 0).how, of("server", 0).read),
        (None, 2_000_000)
    );
    assert_eq!(of("client", 0).how, None);
    for i in [1, 2] {
        assert!(flows.was_reset("server", i, &of("server", i)));
        assert!(flows.was_reset("client", i, &of("client", i)));
    }
    // The far host of who was still sending waits a second for bytes that no longer come.
    assert!(last < ms(3500), "{last:?}");
    flows.join();
}

/// SIGKILL and a restart after a while, of either router: every host of every flow hears RST within a
/// second of its return, also those that only listen, and all goes on by itself.
#[test]
fn a_killed_router_hangs_nobody_when_it_is_back() {
    need!();
    for side in ['a', 'b'] {
        let lab = Lab::up(Routers::Mef, WAN);
        let router = OwnRouter::instead(&lab, side, |t| t);
        let pulse = Pulse::start(&lab);
        // Two send all the time, two have nothing to say.
        let mut flows = Connections::open(&lab, 7000, 4);
        flows.flood(0);
        flows.flood(1);
        std::thread::sleep(ms(1500));
        router.kill();
        std::thread::sleep(ms(2000));
        let back = Instant::now();
        let router = OwnRouter::start(&lab, side, &[]);
        let resumed = pulse.resumes(back, STALL);
        let ends = flows.ends(8);
        let opened = new_connection(&lab);
        let last = ends
            .iter()
            .map(|e| e.2.at.saturating_duration_since(back))
            .max()
            .unwrap();
        println!(
            "router {side} killed, started again 2 s later: datagrams passed {resumed:.2?} after its start, the last \
             of 8 hosts' ends heard RST after {last:.2?}; a new connection then took {opened:.2?}"
        );
        for (who, i, end) in &ends {
            assert!(flows.was_reset(who, *i, end), "{who} {i}: {end:?}");
        }
        assert!(
            resumed < ms(1500) && last < ms(1500),
            "{resumed:?} {last:?}"
        );
        assert!(opened < ms(1000), "{opened:?}");
        flows.join();
        drop((pulse, router));
    }
}

/// A byte every 10 ms from a1 to b1 and back over one connection, for as long as the test lasts.
struct Flow {
    stop: Arc<std::sync::atomic::AtomicBool>,
    arrivals: Arc<Mutex<Vec<Instant>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    fn start(lab: &Lab) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let (ready, listening) = mpsc::channel();
        let server = lab.thread("b1", move || {
            let listener = TcpListener::bind((B1, 7001)).unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut room = [0; 1000];
            while let Ok(n @ 1..) = stream.read(&mut room) {
                stream.write_all(&room[..n]).unwrap();
            }
        });
        listening.recv().unwrap();
        let (until, seen) = (Arc::clone(&stop), Arc::clone(&arrivals));
        let client = lab.thread("a1", move || {
            let mut stream = connect(7001).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(STALL)).unwrap();
            let mut reader = stream.try_clone().unwrap();
            let reads = std::thread::spawn(move || {
                let (mut room, mut expected) = ([0; 1000], 0u8);
                while let Ok(n @ 1..) = reader.read(&mut room) {
                    for b in &room[..n] {
                        assert_eq!(*b, expected);
                        expected = expected.wrapping_add(1);
                    }
                    seen.lock().unwrap().push(Instant::now());
                }
            });
            let mut byte = 0u8;
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                stream.write_all(&[byte]).unwrap();
                byte = byte.wrapping_add(1);
                std::thread::sleep(ms(10));
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            reads.join().unwrap();
        });
        let flow = Self {
            stop,
            arrivals,
            threads: vec![server, client],
        };
        wait_for("the flow", STALL, || {
            let n = flow.arrivals.lock().unwrap().len();
            (n > 20).then_some(()).ok_or(format!("{n} came back"))
        });
        flow
    }

    /// The longest time in which nothing came back, since `from`.
    fn longest_gap(&self, from: Instant) -> Duration {
        let arrivals = self.arrivals.lock().unwrap();
        let later = arrivals.iter().filter(|t| **t > from).copied();
        let (gap, last) = later.fold((Duration::ZERO, from), |(g, l), t| (g.max(t - l), t));
        gap.max(last.elapsed())
    }

    /// Every byte came back in order.
    fn join(mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

/// The cable between a router and the WAN is pulled for a while.
#[test]
fn a_pulled_cable_ends_no_flow_and_the_link_is_back_when_it_is() {
    need!("ip");
    let lab = Lab::up(Routers::Mef, WAN);
    let pulse = Pulse::start(&lab);
    let flow = Flow::start(&lab);
    lab.sh_ok("ra", "ip link set wan down");
    std::thread::sleep(Duration::from_secs(3));
    lab.sh_ok("ra", "ip link set wan up");
    let back = Instant::now();
    let resumed = pulse.resumes(back, STALL);
    std::thread::sleep(ms(2000));
    let stood = flow.longest_gap(back);
    println!(
        "cable pulled for 3 s: datagrams passed again {resumed:.2?} after it was back, the flow's bytes within {stood:.2?}"
    );
    assert!(
        resumed < ms(1500) && stood < ms(2000),
        "{resumed:?} {stood:?}"
    );
    flow.join();
}

/// A NAT on the way gives the router another port (RFC 4787): the peer follows after a challenge, flows go on.
#[test]
fn a_peer_whose_port_changes_is_followed_and_flows_go_on() {
    need!("nft");
    moves(
        "table netdev nat {\n\
        chain out { type filter hook ingress device ar priority 0;\n\
        ip saddr 192.0.2.1 udp sport 4800 udp sport set 5555\n}\n\
        chain in { type filter hook ingress device ai priority 0;\n\
        ip daddr 192.0.2.1 udp dport 4800 drop\n\
        ip daddr 192.0.2.1 udp dport 5555 udp dport set 4800\n}\n}",
    );
}

/// The line has another address after its modem dialled in again: at the peer all that the router
/// sends comes from there, and what goes to the old one arrives nowhere.
#[test]
fn a_peer_whose_address_changes_is_followed_and_flows_go_on() {
    need!("nft");
    moves(
        "table netdev nat {\n\
        chain out { type filter hook ingress device ar priority 0;\n\
        ip saddr 192.0.2.1 ip saddr set 192.0.2.5\n\
        arp saddr ip 192.0.2.1 arp saddr ip set 192.0.2.5\n}\n\
        chain in { type filter hook ingress device ai priority 0;\n\
        ip daddr 192.0.2.1 drop\n\
        ip daddr 192.0.2.5 ip daddr set 192.0.2.1\n\
        arp daddr ip 192.0.2.5 arp daddr ip set 192.0.2.1\n}\n}",
    );
}

/// From some moment on these rules change what passes between the router `ra` and the WAN.
fn moves(moved: &str) {
    // With a host of its own at the WAN there is a bridge on the way, where a filter can stand.
    let lab = Lab::up_with(
        Routers::Mef,
        WAN,
        "[[site.a.host]]\n[[site.a.host]]\nforeign = true",
    );
    let pulse = Pulse::start(&lab);
    let flow = Flow::start(&lab);
    let before = Instant::now();
    lab.sh_ok("wan", &format!("nft -f - <<'END'\n{moved}\nEND"));
    std::thread::sleep(Duration::from_secs(3));
    let (gap, stood) = (pulse.longest_gap(before), flow.longest_gap(before));
    let followed = lab.status('b').counters["peers_moved"];
    println!("moved: no answer for {gap:.2?}, the flow stood for {stood:.2?}");
    assert_eq!(followed, 1);
    // One round trip for the challenge beside the one on the way, and what was lost is sent again.
    assert!(gap < ms(500) && stood < ms(1000), "{gap:?} {stood:?}");
    flow.join();
}

/// The wall clock jumps, and is an hour behind at the next start: no packet asks it.
#[test]
fn a_clock_that_jumps_is_noticed_by_nobody() {
    need!("faketime");
    let library = std::fs::read_dir("/usr/lib")
        .unwrap()
        .flatten()
        .map(|e| e.path().join("faketime/libfaketime.so.1"))
        .find(|p| p.exists())
        .expect("libfaketime of the program faketime");
    let lab = Lab::up(Routers::Mef, WAN);
    let clock = lab.folder.path().join("clock");
    let set = |offset: &str| std::fs::write(&clock, format!("{offset}\n")).unwrap();
    let state = lab.folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    let with_state = |t: String| {
        let keep = format!("drain = \"0s\"\nstate = \"{}\"", state.display());
        t.replace("drain = \"0s\"", &keep)
    };
    OwnRouter::instead(&lab, 'a', with_state).kill();
    let environment = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    set("+0");
    let mut router = OwnRouter::start(&lab, 'a', &environment);
    router.wait_up(&lab, STALL);
    let pulse = Pulse::start(&lab);
    let flow = Flow::start(&lab);
    for offset in ["-1h", "+1d", "-30d", "+0"] {
        let from = Instant::now();
        set(offset);
        std::thread::sleep(ms(1500));
        let (gap, stood) = (pulse.longest_gap(from), flow.longest_gap(from));
        println!("clock set {offset}: no answer for {gap:.2?}, the flow stood for {stood:.2?}");
        assert!(
            gap < ms(300) && stood < ms(300),
            "{offset}: {gap:?} {stood:?}"
        );
    }
    flow.join();
    router.kill();
    set("-1h");
    let back = Instant::now();
    let router = OwnRouter::start(&lab, 'a', &environment);
    let resumed = pulse.resumes(back, STALL);
    println!("started again with the clock an hour back: datagrams passed {resumed:.2?} after");
    assert!(resumed < ms(2000), "{resumed:?}: {}", router.said());
    assert!(
        router.said().contains("the clock is behind"),
        "{}",
        router.said()
    );
}

/// A file system of its own, gone with the test.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    /// With room for so little that it can be filled.
    fn mount(at: std::path::PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let mut mount = std::process::Command::new("mount");
        let status = mount
            .args(["-t", "tmpfs", "-o", "size=64k,nr_inodes=12", "tmpfs"])
            .arg(&at)
            .status();
        assert!(status.unwrap().success());
        Self(at)
    }

    /// Neither a byte nor a file more.
    fn fill(&self) {
        let _ = std::fs::write(self.0.join("filler"), vec![0; 1 << 17]);
        let more = (0..20).map(|i| std::fs::write(self.0.join(format!("f{i}")), b""));
        assert!(more.filter(|r| r.is_err()).count() > 0);
    }

    fn clear(&self) {
        for e in std::fs::read_dir(&self.0).unwrap().flatten() {
            if e.file_name().to_string_lossy().starts_with('f') {
                std::fs::remove_file(e.path()).unwrap();
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

/// The disk with the state and the control socket is full, at the start and later: the router forwards,
/// says so, and uses what is there again once there is room.
#[test]
fn a_full_disk_stops_no_packet() {
    need!("mount", "umount", "curl");
    let lab = Lab::up(Routers::Mef, WAN);
    let disk = Tmpfs::mount(lab.folder.path().join("disk"));
    let (state, socket) = (disk.0.clone(), disk.0.join("control.sock"));
    disk.fill();
    let own = |t: String| {
        let keep = format!("drain = \"0s\"\nstate = \"{}\"", state.display());
        let lines = t.replace("drain = \"0s\"", &keep);
        let lines = lines.lines().map(|l| match l.starts_with("control = ") {
            true => format!("control = \"{}\"\n", socket.display()),
            false => format!("{l}\n"),
        });
        lines.collect::<String>()
    };
    let pulse = Pulse::start(&lab);
    let router = OwnRouter::instead_of(&lab, 'a', own);
    let back = Instant::now();
    let resumed = pulse.resumes(back, STALL);
    let flow = Flow::start(&lab);
    let alarms = || {
        let metrics = lab.sh_ok(
            "ra",
            "curl -sS --fail --max-time 10 http://127.0.0.1:9464/metrics",
        );
        let line = metrics
            .lines()
            .find_map(|l| l.strip_prefix("mef_alarms ").map(str::to_owned));
        line.unwrap().parse::<f64>().unwrap()
    };
    let full = Instant::now();
    wait_for("the alarms", STALL, || {
        let n = alarms();
        (n >= 2.0)
            .then_some(())
            .ok_or(format!("{n}: {}", router.said()))
    });
    disk.clear();
    let query = || mef_dataplane::control::query(&socket, Duration::from_secs(2));
    wait_for("the control socket", STALL, || {
        query().map(drop).map_err(|e| e.to_string())
    });
    wait_for("no alarm", STALL, || {
        let said = query().map_err(|e| e.to_string())?.alarms;
        said.is_empty().then_some(()).ok_or(format!("{said:?}"))
    });
    let free = full.elapsed();
    let (gap, stood) = (pulse.longest_gap(full), flow.longest_gap(full));
    println!(
        "disk full: datagrams passed {resumed:.2?} after the start; no answer for {gap:.2?} and the flow stood for \
         {stood:.2?} in {free:.1?} with a full disk and after"
    );
    assert!(
        resumed < ms(1500) && gap < ms(300) && stood < ms(300),
        "{resumed:?} {gap:?} {stood:?}"
    );
    assert!(state.join("counters").exists());
    flow.join();
}
