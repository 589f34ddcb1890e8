//! Routers with two workers each: that flows spread over them and stay where they
//! belong, that nothing is reordered, and that the line is shared as by one.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use mef_dataplane::control;
use mef_dataplane::report::{Page, Query, Worker};

use crate::byte_exact::exchange;
use crate::lab::{need, Lab, Routers, B1};
use crate::shares::Flows;

const TWO: &str = "[router]\nworkers = 2";
const FLOWS: u16 = 16;

/// What each worker of a side says.
pub fn workers(lab: &Lab, side: char) -> Vec<Worker> {
    let page: Page<Worker> =
        control::ask(&lab.socket(side), Query::Workers, Duration::from_secs(5)).unwrap();
    page.rows
}

/// The ports are told the agreed key when the link comes up: what came before may have gone another way.
fn given(lab: &Lab) -> u64 {
    let all = ['a', 'b'].map(|side| workers(lab, side));
    all.iter().flatten().map(|w| w.given_packets).sum()
}

/// As many connections as there are flows, each with so many random bytes both ways.
fn connections(lab: &Lab, bytes: u64) {
    let (ready, listening) = std::sync::mpsc::channel();
    let server = lab.thread("b1", move || {
        let listener = TcpListener::bind((B1, 7000)).unwrap();
        ready.send(()).unwrap();
        let one = |n| {
            let (stream, from) = listener.accept().unwrap();
            let thread = std::thread::spawn(move || exchange(stream, 100 + n, bytes));
            (from.port(), thread)
        };
        let all: Vec<_> = (0..u64::from(FLOWS)).map(one).collect();
        let joined = all.into_iter().map(|(port, t)| (port, t.join().unwrap()));
        joined.collect::<HashMap<_, _>>()
    });
    listening.recv().unwrap();
    let client = lab.thread("a1", move || {
        let one = |n| {
            let stream = TcpStream::connect((B1, 7000)).unwrap();
            let port = stream.local_addr().unwrap().port();
            let thread = std::thread::spawn(move || exchange(stream, n, bytes));
            (port, thread)
        };
        let all: Vec<_> = (0..u64::from(FLOWS)).map(one).collect();
        let joined = all.into_iter().map(|(port, t)| (port, t.join().unwrap()));
        joined.collect::<Vec<_>>()
    });
    let (sent, mut got) = (client.join().unwrap(), server.join().unwrap());
    for (port, (sent_a, got_a, number_a)) in sent {
        let (sent_b, got_b, number_b) = got.remove(&port).unwrap();
        assert_eq!((number_a, number_b), (bytes, bytes));
        assert!(sent_a == got_b, "a to b: other bytes than were sent");
        assert!(sent_b == got_a, "b to a: other bytes than were sent");
    }
}

#[test]
fn connections_spread_over_two_workers_and_arrive_byte_for_byte() {
    need!();
    let wan = "rate='200Mbit/s'\nrtt='40ms'\nqueue='1BDP'\nloss=0.02\njitter='5ms'\nreorder=true";
    let lab = Lab::up_with(Routers::Mef, wan, TWO);
    let before = given(&lab);
    connections(&lab, 3_000_000);
    for side in ['a', 'b'] {
        let all = workers(&lab, side);
        println!("{side}: {all:?}");
        assert_eq!(all.len(), 2);
        for w in &all {
            assert_eq!(w.links_up, 1, "{side}: {w:?}");
            // Sixteen connections: hardly ever all of one worker.
            assert!(w.received_bytes > 3_000_000, "{side}: {w:?}");
            assert!(w.sent_bytes > 3_000_000, "{side}: {w:?}");
        }
        let status = lab.status(side);
        assert!(status.ready, "{status:?}");
        assert!(status.alarms.is_empty(), "{side}: {:?}", status.alarms);
        assert_eq!(status.counters["flows_reset"], 0);
        assert_eq!(status.drops.get("ingress.worker.handover_full"), None);
    }
    // The ports give everything to the worker that it belongs to.
    assert_eq!(given(&lab), before);
}

#[test]
fn two_workers_share_the_line_as_one_would() {
    need!();
    const RATE: f64 = 100e6;
    // What of a line a link can carry of TCP's payload over IPv4.
    const CEILING: f64 = 0.945;
    let lab = Lab::up_with(
        Routers::Mef,
        "rate='100Mbit/s'\nrtt='20ms'\nqueue='1BDP'",
        TWO,
    );
    let time = Duration::from_secs(5);
    let wire = || {
        (
            lab.status('a').counters["port_wan_tx_bytes"],
            Instant::now(),
        )
    };
    // One flow: all of it is one worker's. Nine: so many on each as the hash wills.
    for flows in [1, 9] {
        let ports: Vec<u16> = (7600..7600 + flows).collect();
        let all = Flows::start(&lab, &ports);
        std::thread::sleep(Duration::from_secs(2));
        let before = wire();
        let got = all.measure(time);
        let after = wire();
        let spread: Vec<u64> = workers(&lab, 'a').iter().map(|w| w.split_flows).collect();
        drop(all);
        let share = |bytes: u64| bytes as f64 * 8.0 / time.as_secs_f64() / RATE;
        let sum = share(got.iter().sum());
        let sent = (after.0 - before.0) as f64 * 8.0;
        let sent = sent / (after.1 - before.1).as_secs_f64() / RATE;
        let squares: f64 = got.iter().map(|b| share(*b).powi(2)).sum();
        let jain = sum * sum / squares / f64::from(flows);
        println!("{flows} flows, {spread:?} by worker: {sum:.4} of the line, Jain {jain:.4}, on the wire {sent:.4}; {got:?}");
        assert!(sum > CEILING - 0.03, "{sum}");
        assert!(jain > 0.99, "{jain} {got:?}");
        assert!(sent < 1.0, "{sent}");
        let alarms = lab.status('a').alarms;
        assert!(alarms.is_empty(), "{alarms:?}");
    }
}

/// DPDK's devices spread packets by a hash of their own: half of them come to the other worker.
#[test]
fn what_dpdk_gives_to_the_wrong_worker_is_handed_over() {
    need!();
    if !cfg!(feature = "dpdk") {
        eprintln!("skipped: built without DPDK");
        return;
    }
    let wan = "rate='100Mbit/s'\nrtt='20ms'\nqueue='1BDP'";
    let lab = Lab::up_with(Routers::Mef, wan, "[router]\ndriver = 'dpdk'\nworkers = 2");
    let before = given(&lab);
    connections(&lab, 2_000_000);
    assert!(given(&lab) > before + 1000);
    for side in ['a', 'b'] {
        for w in workers(&lab, side) {
            println!("{side}: {w:?}");
            assert!(
                w.links_up == 1 && w.received_packets > 1000,
                "{side}: {w:?}"
            );
        }
        let status = lab.status(side);
        assert_eq!(status.counters["flows_reset"], 0);
        assert_eq!(status.drops.get("ingress.worker.handover_full"), None);
    }
}

/// Sends `count` numbered datagrams on each of several flows, evenly over `time`.
fn send_numbered(lab: &Lab, to: u16, count: u32, time: Duration) -> std::thread::JoinHandle<()> {
    lab.thread("a1", move || {
        let bind = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let sockets: Vec<UdpSocket> = (0..FLOWS).map(bind).collect();
        let start = Instant::now();
        for n in 0..count {
            for socket in &sockets {
                let mut bytes = [0; 200];
                bytes[..4].copy_from_slice(&n.to_be_bytes());
                socket.send_to(&bytes, (B1, to)).unwrap();
            }
            let due = time.mul_f64(f64::from(n) / f64::from(count));
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
    })
}

/// Receives until nothing comes for a second; how many came of each flow. Fails where one is out of order.
fn receive_in_order(lab: &Lab, port: u16) -> std::thread::JoinHandle<HashMap<SocketAddr, u32>> {
    let socket = lab.thread("b1", move || UdpSocket::bind((B1, port)).unwrap());
    let socket = socket.join().unwrap();
    // All that is sent to it at once, as a test on a busy machine may be late in reading.
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
        .unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    std::thread::spawn(move || {
        let (mut flows, mut bytes) = (HashMap::<SocketAddr, (u32, u32)>::new(), [0; 2048]);
        let mut began = false;
        loop {
            let (n, from) = match socket.recv_from(&mut bytes) {
                Ok(got) => got,
                Err(_) if began => break,
                Err(_) => continue,
            };
            began = true;
            assert_eq!(n, 200);
            let number = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let (next, count) = flows.entry(from).or_default();
            assert!(number >= *next, "{from}: {number} behind {next}");
            (*next, *count) = (number + 1, *count + 1);
        }
        flows.into_iter().map(|(f, (_, n))| (f, n)).collect()
    })
}

fn every_flow_arrives_in_order(lab: &Lab, port: u16) {
    const COUNT: u32 = 4000;
    let receiver = receive_in_order(lab, port);
    send_numbered(lab, port, COUNT, Duration::from_secs(4))
        .join()
        .unwrap();
    let flows = receiver.join().unwrap();
    println!("{flows:?}");
    assert_eq!(flows.len(), usize::from(FLOWS));
    assert!(flows.values().all(|n| *n == COUNT), "{flows:?}");
}

#[test]
fn no_flow_of_datagrams_is_reordered_over_a_link_or_in_the_clear() {
    need!();
    let more = format!(
        "{TWO}\nmore = '''\n[[policy]]\nprotocol = \"udp\"\nport = 7501\nmode = \"plain\"\n\
         [[policy]]\nprotocol = \"udp\"\nsource_port = 7501\nmode = \"plain\"\n\
         [[route]]\nprefix = \"0.0.0.0/0\"\nvia = \"PEER\"\n'''"
    );
    let lab = Lab::up_with(Routers::Mef, "rate='200Mbit/s'\nrtt='10ms'", &more);
    // Echo requests and answers, fragments among them.
    for size in [56, 1472, 4000] {
        lab.sh_ok("a1", &format!("ping -q -c 3 -i 0.1 -W 5 -s {size} $B1"));
    }
    let mut before = workers(&lab, 'b');
    for port in [7500, 7501] {
        every_flow_arrives_in_order(&lab, port);
        let after = workers(&lab, 'b');
        for (b, a) in before.iter().zip(&after) {
            let received = a.received_packets - b.received_packets;
            assert!(received > 2000, "{port}: {received}, {a:?}");
        }
        before = after;
    }
    let status = lab.status('a');
    assert!(status.counters["plain_packets"] > 8000);
    println!("{:?}", status.drops);
}
