//! Many flows at once: two thousand that stay, five hundred new ones a second
//! beside them, and a flood of SYNs that nobody means.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::resource::{getrlimit, setrlimit, Resource};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::lab::{need, Lab, Routers, A1, B1};

const PATH: &str = "rate='100Mbit/s'\nrtt='200ms'\nqueue='1BDP'";
/// Servers listen on so many ports, so that a host's ephemeral ports suffice.
const PORTS: std::ops::Range<u16> = 7000..7004;
/// No single step of a connection may take longer.
const STALL: Duration = Duration::from_secs(20);

fn long() -> bool {
    std::env::var_os("MEF_LONG").is_some()
}

/// Runs `work` on a runtime of its own in `host`.
pub fn runtime<F, T>(
    lab: &Lab,
    host: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<T>
where
    F: std::future::Future<Output = T>,
    T: Send + 'static,
{
    lab.thread(host, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    })
}

/// As many descriptors as the system lets us have.
pub fn many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

/// Answers every request of eight bytes (how many bytes are wanted) until the client has no more.
fn serve(lab: &Lab) -> (Arc<AtomicBool>, std::thread::JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let (ready, listening) = std::sync::mpsc::channel();
    let thread = runtime(lab, "b1", move || async move {
        for port in PORTS {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind(SocketAddr::from((B1, port))).unwrap();
            let listener = socket.listen(4096).unwrap();
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(answer(stream));
                }
            });
        }
        ready.send(()).unwrap();
        while !until.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    listening.recv().unwrap();
    (stop, thread)
}

async fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; 8];
    while stream.read_exact(&mut request).await.is_ok() {
        let bytes = vec![request[0]; u64::from_be_bytes(request) as usize & 0xff_ffff];
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Asks for `size` bytes, each of which has to be `mark`.
async fn ask(stream: &mut TcpStream, mark: u8, size: u32) -> Result<(), String> {
    let mut request = u64::from(size).to_be_bytes();
    request[0] = mark;
    let step = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    stream.write_all(&request).await.map_err(step("write"))?;
    let mut bytes = vec![0; size as usize];
    stream.read_exact(&mut bytes).await.map_err(step("read"))?;
    if bytes.iter().any(|b| *b != mark) {
        return Err("other bytes than were sent".into());
    }
    Ok(())
}

async fn open(port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect((B1, port))
        .await
        .map_err(|e| format!("connect: {e}"))?;
    stream.set_nodelay(true).unwrap();
    Ok(stream)
}

async fn within<T>(
    what: impl std::future::Future<Output = Result<T, String>>,
) -> Result<T, String> {
    tokio::time::timeout(STALL, what)
        .await
        .map_err(|_| format!("nothing for {STALL:?}"))?
}

/// What a client saw go wrong, and how long what went right took.
#[derive(Default)]
struct Seen {
    errors: Mutex<Vec<String>>,
    took: Mutex<Vec<Duration>>,
    stayed: AtomicU64,
}

impl Seen {
    fn note(&self, result: Result<Duration, String>) {
        match result {
            Ok(t) => self.took.lock().unwrap().push(t),
            Err(e) => self.errors.lock().unwrap().push(e),
        }
    }
}

/// Resident memory of the routers `ra` and `rb`, bytes.
pub fn resident(lab: &Lab) -> [u64; 2] {
    ["ra", "rb"].map(|r| {
        let pids = lab.sh_ok(
            r,
            "for p in $(ip netns pids $(ip netns identify)); do echo $p $(cat /proc/$p/comm); done",
        );
        let pid = pids
            .lines()
            .find_map(|l| {
                l.split_once(' ')
                    .filter(|(_, name)| name.starts_with("mef"))
            })
            .map(|(pid, _)| pid)
            .unwrap_or_else(|| panic!("no router in {r}: {pids}"));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    })
}

/// Holds `count` connections open, each asking for 1 kB about every second, until told to stop.
fn stay(
    lab: &Lab,
    count: usize,
    seen: &Arc<Seen>,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let (seen, stop) = (Arc::clone(seen), Arc::clone(stop));
    runtime(lab, "a1", move || async move {
        let mut tasks = Vec::new();
        for i in 0..count {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            tasks.push(tokio::spawn(async move {
                let port = PORTS.start + (i % PORTS.len()) as u16;
                let mut stream = match within(open(port)).await {
                    Ok(s) => s,
                    Err(e) => return seen.note(Err(format!("lasting flow: {e}"))),
                };
                seen.stayed.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    if let Err(e) = within(ask(&mut stream, i as u8, 1000)).await {
                        return seen.note(Err(format!("lasting flow: {e}")));
                    }
                    tokio::time::sleep(Duration::from_secs(1).saturating_sub(asked.elapsed()))
                        .await;
                }
            }));
            // Connections come at 1,000 a second, not at once: hosts' accept queues are bounded.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for t in tasks {
            t.await.unwrap();
        }
    })
}

#[test]
fn two_thousand_flows_stay_while_five_hundred_a_second_come_and_go() {
    need!("sysctl");
    let (seconds, lasting, per_second) = if long() {
        (60, 2000, 500)
    } else {
        (8, 2000, 500)
    };
    many_descriptors();
    let lab = Lab::up(Routers::Mef, PATH);
    lab.sh_ok("a1", "sysctl -qw net.ipv4.ip_local_port_range='1024 65535'");
    let (stop_server, server) = serve(&lab);
    // What comes to be with the first flow is not the flows' share.
    let seen = Arc::new(Seen::default());
    let warm = Arc::clone(&seen);
    runtime(&lab, "a1", move || async move {
        for _ in 0..20 {
            let began = Instant::now();
            let mut stream = within(open(PORTS.start)).await.unwrap();
            warm.note(
                within(ask(&mut stream, 1, 100_000))
                    .await
                    .map(|()| began.elapsed()),
            );
        }
    })
    .join()
    .unwrap();
    let before = resident(&lab);
    let stop = Arc::new(AtomicBool::new(false));
    let lasting_flows = stay(&lab, lasting, &seen, &stop);
    crate::lab::wait_for("the lasting flows", Duration::from_secs(30), || {
        let n = seen.stayed.load(Ordering::Relaxed) as usize;
        let errors = seen.errors.lock().unwrap();
        assert!(errors.is_empty(), "{errors:?}");
        if n == lasting {
            Ok(())
        } else {
            Err(format!("{n} are open"))
        }
    });
    let held = resident(&lab);
    let per_flow = [0, 1].map(|i| held[i].saturating_sub(before[i]) / lasting as u64);
    seen.took.lock().unwrap().clear();
    let new = Arc::clone(&seen);
    runtime(&lab, "a1", move || async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
        let mut tasks = Vec::new();
        for i in 0..seconds * per_second {
            tick.tick().await;
            let seen = Arc::clone(&new);
            tasks.push(tokio::spawn(async move {
                let began = Instant::now();
                let done = within(async {
                    let mut stream = open(PORTS.start + (i % 4) as u16).await?;
                    ask(&mut stream, i as u8, 5_000).await?;
                    stream
                        .shutdown()
                        .await
                        .map_err(|e| format!("shutdown: {e}"))?;
                    match stream.read(&mut [0]).await {
                        Ok(0) => Ok(()),
                        other => Err(format!("after the end: {other:?}")),
                    }
                })
                .await;
                seen.note(
                    done.map(|()| began.elapsed())
                        .map_err(|e| format!("new flow {i}: {e}")),
                );
            }));
        }
        for t in tasks {
            t.await.unwrap();
        }
    })
    .join()
    .unwrap();
    stop.store(true, Ordering::Relaxed);
    lasting_flows.join().unwrap();
    stop_server.store(true, Ordering::Relaxed);
    server.join().unwrap();
    let errors = seen.errors.lock().unwrap();
    let mut took = seen.took.lock().unwrap();
    took.sort();
    let at = |q: f64| took[((took.len() - 1) as f64 * q) as usize].as_millis();
    println!(
        "{lasting} flows stayed, {} came and went in {seconds} s: median {} ms, p99 {} ms, worst {} ms; \
         {} and {} bytes a flow that stays; {} errors",
        took.len(), at(0.5), at(0.99), at(1.0), per_flow[0], per_flow[1], errors.len(),
    );
    assert!(
        errors.is_empty(),
        "{} errors, the first {:?}",
        errors.len(),
        &errors[..errors.len().min(5)]
    );
    assert_eq!(took.len() as u32, seconds * per_second);
    for side in ['a', 'b'] {
        let drops = lab.status(side).drops;
        println!("drops of {side}: {drops:?}");
    }
}

/// A SYN from `source` to `destination` with nothing behind it.
fn syn(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), sequence: u32) -> Vec<u8> {
    let mut p = vec![0; 40];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&40u16.to_be_bytes());
    p[8] = 64;
    p[9] = 6;
    p[12..16].copy_from_slice(&source.0.octets());
    p[16..20].copy_from_slice(&destination.0.octets());
    p[20..22].copy_from_slice(&source.1.to_be_bytes());
    p[22..24].copy_from_slice(&destination.1.to_be_bytes());
    p[24..28].copy_from_slice(&sequence.to_be_bytes());
    p[32] = 0x50;
    p[33] = 0x02;
    p[34..36].copy_from_slice(&64_240u16.to_be_bytes());
    let words = |b: &[u8]| {
        b.chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
            .sum::<u32>()
    };
    let mut sum = words(&p[12..40]) + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    p[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    p
}

/// Bytes that `flows` bulk transfers from a1 to b1 have brought, counted at the receiver.
fn bulk(
    lab: &Lab,
    flows: usize,
    stop: &Arc<AtomicBool>,
) -> (Arc<AtomicU64>, Vec<std::thread::JoinHandle<()>>) {
    use std::io::{Read, Write};
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    let (ready, listening) = std::sync::mpsc::channel();
    let mut threads = vec![lab.thread("b1", move || {
        let listener = std::net::TcpListener::bind((B1, 6999)).unwrap();
        ready.send(()).unwrap();
        let readers: Vec<_> = (0..flows)
            .map(|_| {
                let (mut stream, _) = listener.accept().unwrap();
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || {
                    let mut room = vec![0; 1 << 16];
                    while let Ok(n @ 1..) = stream.read(&mut room) {
                        counter.fetch_add(n as u64, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for r in readers {
            r.join().unwrap();
        }
    })];
    listening.recv().unwrap();
    for _ in 0..flows {
        let stop = Arc::clone(stop);
        threads.push(lab.thread("a1", move || {
            let mut stream = std::net::TcpStream::connect((B1, 6999)).unwrap();
            stream.set_write_timeout(Some(STALL)).unwrap();
            let bytes = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                stream.write_all(&bytes).unwrap();
            }
        }));
    }
    (received, threads)
}

#[test]
fn a_flood_of_syns_takes_nothing_from_the_flows_beside_it() {
    need!();
    let (window, count) = if long() { (10, 50_000) } else { (4, 20_000) };
    let lab = Lab::up(Routers::Mef, PATH);
    let stop = Arc::new(AtomicBool::new(false));
    let (received, threads) = bulk(&lab, 9, &stop);
    // From the first byte on a second passes until every flow has its share.
    crate::lab::wait_for("the first bytes", STALL, || {
        if received.load(Ordering::Relaxed) > 12_000_000 {
            Ok(())
        } else {
            Err("few bytes".into())
        }
    });
    let measure = |what: &str| {
        let (began, at) = (Instant::now(), received.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_secs(window));
        let rate =
            (received.load(Ordering::Relaxed) - at) as f64 * 8.0 / began.elapsed().as_secs_f64();
        println!("{what}: {:.2} Mbit/s", rate / 1e6);
        rate
    };
    let alone = measure("alone");
    let flood = lab.thread("a1", move || {
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
        let mut random = SmallRng::seed_from_u64(1);
        let pause = Duration::from_secs(window) / count;
        let mut next = Instant::now();
        for i in 0..count {
            // Half in the host's own name, whose kernel refuses the answers, half in the names of nobody.
            let source = if i % 2 == 0 {
                A1
            } else {
                Ipv4Addr::new(10, 1, 1, random.random_range(10..250))
            };
            let packet = syn(
                (source, random.random_range(1024..=65535)),
                (B1, random.random_range(1..=65535)),
                random.random(),
            );
            let to = SockAddr::from(std::net::SocketAddrV4::new(B1, 0));
            raw.send_to(&packet, &to).unwrap();
            next += pause;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    let flooded = measure("beside the flood");
    flood.join().unwrap();
    let after = measure("after it");
    stop.store(true, Ordering::Relaxed);
    for t in threads {
        t.join().unwrap();
    }
    println!("drops at the ingress: {:?}", lab.status('a').drops);
    println!("drops at the egress: {:?}", lab.status('b').drops);
    assert!(
        flooded >= 0.99 * alone,
        "{flooded} of {alone} and {after} bit/s"
    );
}
