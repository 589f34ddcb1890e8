//! Who shares a line with whom, between real hosts: a UDP sender that does not
//! listen beside TCP flows of the same host, and TCP in the clear beside TCP
//! over the link.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{need, Lab, Routers, B1};

const RATE: u64 = 50_000_000;
const PATH: &str = "rate='50Mbit/s'\nrtt='40ms'\nqueue='1BDP'";
const PORT: u16 = 7300;
const UDP_PORT: u16 = 7400;
const PLAIN_PORT: u16 = 7500;

fn long() -> bool {
    std::env::var_os("MEF_LONG").is_some()
}

/// TCP flows from `a1` to `b1`, counted where they arrive.
pub struct Flows {
    stop: Arc<AtomicBool>,
    counts: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Flows {
    pub fn start(lab: &Lab, ports: &[u16]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut counts, mut threads) = (Vec::new(), Vec::new());
        for &port in ports {
            let count = Arc::new(AtomicU64::new(0));
            let (ready, listening) = std::sync::mpsc::channel();
            let (counter, until) = (Arc::clone(&count), Arc::clone(&stop));
            threads.push(lab.thread("b1", move || {
                let listener = TcpListener::bind((B1, port)).unwrap();
                ready.send(()).unwrap();
                let (mut stream, _) = listener.accept().unwrap();
                let mut room = vec![0; 1 << 16];
                stream
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .unwrap();
                while !until.load(Ordering::Relaxed) {
                    match stream.read(&mut room) {
                        Ok(0) => return,
                        Ok(n) => {
                            counter.fetch_add(n as u64, Ordering::Relaxed);
                        }
                        Err(_) => {}
                    }
                }
            }));
            listening.recv().unwrap();
            let until = Arc::clone(&stop);
            threads.push(lab.thread("a1", move || {
                let mut stream = TcpStream::connect((B1, port)).unwrap();
                stream
                    .set_write_timeout(Some(Duration::from_millis(200)))
                    .unwrap();
                let bytes = vec![7; 1 << 16];
                while !until.load(Ordering::Relaxed) {
                    let _ = stream.write(&bytes);
                }
            }));
            counts.push(count);
        }
        Self {
            stop,
            counts,
            threads,
        }
    }

    /// Bytes of each within `time`.
    pub fn measure(&self, time: Duration) -> Vec<u64> {
        let read = || -> Vec<u64> {
            let counts = self.counts.iter();
            counts.map(|c| c.load(Ordering::Relaxed)).collect()
        };
        let before = read();
        std::thread::sleep(time);
        read().iter().zip(before).map(|(a, b)| a - b).collect()
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

/// Sends UDP from `a1` to `b1` at `rate` bit/s until told to stop.
fn blast(lab: &Lab, rate: u64) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    const SIZE: usize = 1400;
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    // Somebody is there: no ICMP.
    let sink = lab.thread("b1", || UdpSocket::bind((B1, UDP_PORT)).unwrap());
    let sink = sink.join().unwrap();
    let thread = lab.thread("a1", move || {
        let _sink = sink;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect(SocketAddr::from((B1, UDP_PORT))).unwrap();
        let (bytes, start, mut sent) = (vec![5; SIZE], Instant::now(), 0u64);
        while !until.load(Ordering::Relaxed) {
            let due = start.elapsed().as_secs_f64() * rate as f64 / 8.0 / SIZE as f64;
            while sent < due as u64 {
                let _ = socket.send(&bytes);
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        sent * SIZE as u64
    });
    (stop, thread)
}

#[test]
fn a_blast_at_three_times_the_line_leaves_the_tcp_flows_of_its_host_their_share() {
    need!();
    let time = Duration::from_secs(if long() { 20 } else { 5 });
    let lab = Lab::up(Routers::Mef, PATH);
    let ports: Vec<u16> = (PORT..PORT + 9).collect();
    let flows = Flows::start(&lab, &ports);
    // A tenth flow of TCP first: what is fair.
    let fair = {
        let tenth = Flows::start(&lab, &[PORT + 9]);
        std::thread::sleep(Duration::from_secs(2));
        let all = flows.measure(time);
        drop(tenth);
        all.iter().sum::<u64>() / 9
    };
    let (stop, blaster) = blast(&lab, 3 * RATE);
    std::thread::sleep(Duration::from_secs(2));
    let got = flows.measure(time);
    stop.store(true, Ordering::Relaxed);
    let offered = blaster.join().unwrap();
    let least = got.iter().min().copied().unwrap();
    let share = least as f64 / fair as f64;
    println!(
        "least {share:.4} of the fair {:.3} Mbit/s; {:.0} Mbit/s of UDP offered; {got:?}\n{:?}",
        fair as f64 * 8.0 / time.as_secs_f64() / 1e6,
        offered as f64 * 8.0 / (time.as_secs_f64() + 2.0) / 1e6,
        lab.status('a').drops,
    );
    assert!(share >= 0.98, "{share}");
    assert!(lab.status('a').counters["port_lan1_rx_missed"] == 0);
}

#[test]
fn tcp_in_the_clear_shares_the_line_with_tcp_over_the_link() {
    need!();
    let time = Duration::from_secs(if long() { 20 } else { 8 });
    let more = format!(
        "[router]\nmore = '''\n[[policy]]\nprotocol = \"tcp\"\nport = {PLAIN_PORT}\nmode = \"plain\"\n\
         [[policy]]\nprotocol = \"tcp\"\nsource_port = {PLAIN_PORT}\nmode = \"plain\"\n\
         [[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"PEER\"\n'''"
    );
    let lab = Lab::up_with(Routers::Mef, PATH, &more);
    let flows = Flows::start(&lab, &[PORT, PLAIN_PORT]);
    std::thread::sleep(Duration::from_secs(3));
    let got = flows.measure(time);
    let rates: Vec<f64> = got
        .iter()
        .map(|b| *b as f64 * 8.0 / time.as_secs_f64() / RATE as f64)
        .collect();
    let status = lab.status('a');
    println!(
        "link {:.3}, in the clear {:.3} of the line; drops {:?}",
        rates[0], rates[1], status.drops
    );
    assert!(status.counters["plain_packets"] > 1000);
    // Headers take 3 to 6 in a hundred. Who is over the link has its half, who is not
    // is a TCP of Linux that answers to drops.
    assert!((0.45..0.6).contains(&rates[0]), "{rates:?}");
    assert!((0.38..0.5).contains(&rates[1]), "{rates:?}");
    assert!(rates[0] + rates[1] > 0.9, "{rates:?}");
}
