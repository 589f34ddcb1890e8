//! The memory budget reached: two thousand connections whose readers stop, both
//! ways, on routers that have little memory, and flows that go on beside them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::lab::{need, wait_for, Lab, Routers, B1};
use crate::many::{many_descriptors, resident, runtime};

const PATH: &str = "rate='100Mbit/s'\nrtt='200ms'\nqueue='1BDP'";
const MEMORY: u64 = 64 << 20;
const STALLED: u16 = 7100;
const HEALTHY: [u16; 2] = [7101, 7102];
const FLOWS: usize = 2000;

/// How many bytes each stalled connection carries each way, and the receive buffer of its hosts
/// (0: what the kernel has).
fn load() -> (usize, u32) {
    if std::env::var_os("MEF_LONG").is_some() {
        (300_000, 0)
    } else {
        (50_000, 8192)
    }
}

fn byte(connection: u64, at: usize) -> u8 {
    (at as u64)
        .wrapping_mul(connection * 2 + 3)
        .wrapping_add(at as u64 >> 8) as u8
}

/// What the stalled connections have come to.
#[derive(Default)]
struct Seen {
    open: AtomicU64,
    done: AtomicU64,
    errors: Mutex<Vec<String>>,
}

/// Writes all bytes of one direction, reads those of the other once that is allowed.
async fn exchange(
    stream: TcpStream,
    connection: u64,
    bytes: usize,
    mut resume: watch::Receiver<bool>,
    seen: Arc<Seen>,
) {
    let (mut read, mut write) = stream.into_split();
    seen.open.fetch_add(1, Ordering::Relaxed);
    let writer = tokio::spawn(async move {
        let data: Vec<u8> = (0..bytes).map(|i| byte(connection, i)).collect();
        write
            .write_all(&data)
            .await
            .map_err(|e| format!("write: {e}"))?;
        write.shutdown().await.map_err(|e| format!("shutdown: {e}"))
    });
    let done = async {
        resume.wait_for(|go| *go).await.map_err(|e| e.to_string())?;
        let mut all = Vec::new();
        read.read_to_end(&mut all)
            .await
            .map_err(|e| format!("read: {e} after {} bytes", all.len()))?;
        if all.len() != bytes
            || all
                .iter()
                .enumerate()
                .any(|(i, b)| *b != byte(connection, i))
        {
            return Err(format!("{} other bytes than were sent", all.len()));
        }
        writer.await.map_err(|e| e.to_string())?
    };
    match done.await {
        Ok(()) => {
            seen.done.fetch_add(1, Ordering::Relaxed);
        }
        Err(e) => seen.errors.lock().unwrap().push(e),
    }
}

fn socket(buffer: u32) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    if buffer > 0 {
        socket.set_recv_buffer_size(buffer).unwrap();
    }
    socket.set_reuseaddr(true).unwrap();
    socket
}

/// A flow that is read: from a1 to b1 or back. Counts what arrives.
fn healthy(lab: &Lab, port: u16, upwards: bool, stop: &Arc<AtomicBool>) -> Arc<AtomicU64> {
    let received = Arc::new(AtomicU64::new(0));
    let (ready, listening) = std::sync::mpsc::channel();
    let carry = move |stop: Arc<AtomicBool>, count: Arc<AtomicU64>, sends: bool| {
        move |mut stream: TcpStream| async move {
            let mut room = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                if sends {
                    let _ = stream.write_all(&room).await;
                } else if let Ok(n @ 1..) = stream.read(&mut room).await {
                    count.fetch_add(n as u64, Ordering::Relaxed);
                } else {
                    return;
                }
            }
        }
    };
    let serve = carry(Arc::clone(stop), Arc::clone(&received), !upwards);
    runtime(lab, "b1", move || async move {
        let listener = TcpListener::bind((B1, port)).await.unwrap();
        ready.send(()).unwrap();
        serve(listener.accept().await.unwrap().0).await;
    });
    listening.recv().unwrap();
    let ask = carry(Arc::clone(stop), Arc::clone(&received), upwards);
    runtime(lab, "a1", move || async move {
        ask(TcpStream::connect((B1, port)).await.unwrap()).await;
    });
    received
}

#[test]
fn two_thousand_stalled_readers_hold_what_the_budget_says() {
    need!();
    many_descriptors();
    let (bytes, buffer) = load();
    let lab = Lab::up_with(Routers::Mef, PATH, "[router]\nmemory = '64MiB'");
    let before = resident(&lab);
    let (go, resume) = watch::channel(false);
    let [near, far] = [Arc::new(Seen::default()), Arc::new(Seen::default())];

    let (ready, listening) = std::sync::mpsc::channel();
    let (seen, resumed) = (Arc::clone(&far), resume.clone());
    let server = runtime(&lab, "b1", move || async move {
        let listening = socket(buffer);
        listening.bind(SocketAddr::from((B1, STALLED))).unwrap();
        let listener = listening.listen(4096).unwrap();
        ready.send(()).unwrap();
        let mut tasks = Vec::new();
        for _ in 0..FLOWS {
            let (stream, from) = listener.accept().await.unwrap();
            let (seen, resumed) = (Arc::clone(&seen), resumed.clone());
            let connection = u64::from(from.port());
            tasks.push(tokio::spawn(exchange(
                stream, connection, bytes, resumed, seen,
            )));
        }
        for t in tasks {
            t.await.unwrap();
        }
    });
    listening.recv().unwrap();
    let seen = Arc::clone(&near);
    let client = runtime(&lab, "a1", move || async move {
        let mut tasks = Vec::new();
        for _ in 0..FLOWS {
            let (seen, resumed) = (Arc::clone(&seen), resume.clone());
            tasks.push(tokio::spawn(async move {
                match socket(buffer)
                    .connect(SocketAddr::from((B1, STALLED)))
                    .await
                {
                    Ok(stream) => {
                        let connection = u64::from(stream.local_addr().unwrap().port());
                        exchange(stream, connection, bytes, resumed, seen).await;
                    }
                    Err(e) => seen.errors.lock().unwrap().push(format!("connect: {e}")),
                }
            }));
            // Hosts' accept queues are bounded.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for t in tasks {
            t.await.unwrap();
        }
    });

    // From here on until the end nobody may hold more than the budget.
    let mut most = [0u64; 2];
    let mut look = || {
        let counters = ['a', 'b'].map(|side| lab.status(side).counters);
        for (i, c) in counters.iter().enumerate() {
            most[i] = most[i].max(c["memory_used_bytes"]);
            assert!(c["memory_used_bytes"] <= MEMORY, "{c:?}");
        }
        for s in [&near, &far] {
            let errors = s.errors.lock().unwrap();
            assert!(
                errors.is_empty(),
                "{} errors: {:?}",
                errors.len(),
                errors[0]
            );
        }
        counters.map(|c| c["memory_used_bytes"])
    };
    let mut before_that = (Instant::now(), [0, 0]);
    let stalled = wait_for(
        "all connections stand still",
        Duration::from_secs(60),
        || {
            let held = look();
            let open = near.open.load(Ordering::Relaxed) + far.open.load(Ordering::Relaxed);
            if open < 2 * FLOWS as u64
                || held
                    .iter()
                    .zip(before_that.1)
                    .any(|(n, o)| n.abs_diff(o) > 8192)
            {
                before_that = (Instant::now(), held);
            }
            if before_that.0.elapsed() > Duration::from_secs(1) {
                Ok(held)
            } else {
                Err(format!("{open} ends are open, {held:?} bytes held"))
            }
        },
    );
    println!("{FLOWS} connections stalled both ways: {stalled:?} bytes held, resident {before:?} before, {:?} now", resident(&lab));

    let stop = Arc::new(AtomicBool::new(false));
    let flows = [
        healthy(&lab, HEALTHY[0], true, &stop),
        healthy(&lab, HEALTHY[1], false, &stop),
    ];
    let began = Instant::now();
    let counts = || flows.each_ref().map(|f| f.load(Ordering::Relaxed));
    // Beside so many it begins slowly: its window has to be seen to be read.
    wait_for("the flows beside them", Duration::from_secs(15), || {
        look();
        let now = counts();
        if now.iter().all(|n| *n > 5_000_000) {
            Ok(())
        } else {
            Err(format!("{now:?} bytes"))
        }
    });
    let start = (began.elapsed(), counts());
    while began.elapsed() < start.0 + Duration::from_secs(5) {
        look();
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = (began.elapsed() - start.0).as_secs_f64();
    let rates = [0, 1].map(|i| (counts()[i] - start.1[i]) as f64 * 8e-6 / seconds);
    println!("beside them {rates:.1?} Mbit/s, 5 MB after {:?}", start.0);
    stop.store(true, Ordering::Relaxed);
    let dropped = ['a', 'b'].map(|side| lab.status(side).drops);
    println!("drops: {dropped:?}");

    go.send(true).unwrap();
    let resumed = Instant::now();
    wait_for(
        "all bytes of all connections",
        Duration::from_secs(120),
        || {
            look();
            let done = near.done.load(Ordering::Relaxed) + far.done.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            if done == 2 * FLOWS as u64 {
                Ok(())
            } else {
                Err(format!("{done} ends are done"))
            }
        },
    );
    println!(
        "all done {:?} after they were read again; at most {most:?} bytes held, resident {:?}",
        resumed.elapsed(),
        resident(&lab)
    );
    client.join().unwrap();
    server.join().unwrap();
    for drops in ['a', 'b'].map(|side| lab.status(side).drops) {
        for inside in ["memory", "credit"] {
            let of = drops
                .iter()
                .filter(|(name, n)| name.contains(inside) && **n > 0);
            assert_eq!(of.count(), 0, "{drops:?}");
        }
    }
    for rate in rates {
        assert!(rate > 0.9 * 93.0, "{rates:?} Mbit/s");
    }
}
